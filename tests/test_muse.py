"""MUSE's rows, its chunks, its arithmetic by hand and by brute force, and measuring a model."""
import copy
import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import tiny
from test_bad_input import refused

import data
import evaluate
import muse
import runs
import toy
import train
from data import InputError


def make_benchmark(folder, content, kind="jsonl"):
    """A data set in the Hub's layout, from {config: {split: [row, ...]}}."""
    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for config, splits in content.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}.{kind}"
            path.parent.mkdir(exist_ok=True)
            if kind == "parquet":
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"  - split: {split}", f"    path: {config}/{path.name}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def some_texts(what, count=2):
    return [{"text": f"{what} {i}. Ada Abara was born in Lisbon, and her father was a baker."} for i in range(count)]


def some_questions(what, count=2):
    return [{"question": f"Where was {what} {i} born?", "answer": f"In {what}-town {i}."} for i in range(count)]


def a_benchmark(folder, kind="jsonl", **changed):
    return make_benchmark(folder, {
        "raw": {split: some_texts(f"raw {split}", 3) for split in ("forget", "retain1", "retain2", "holdout")},
        "verbmem": {"forget": [{"prompt": "Ada Abara was born", "gt": "in Lisbon, and her father was a baker."}] * 2},
        "knowmem": {split: some_questions(split) for split in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl")},
        "privleak": {split: some_texts(f"privleak {split}") for split in ("forget", "retain", "holdout")},
        **{config: {f"forget_{fold}": some_texts(f"{config} {fold}") for fold in (1, 2, 3, 4)} for config in ("scal", "sust")}
    } | changed, kind)


def a_log():
    def answers(rouge, generated=""):
        return {"rouge": rouge, "generated": [generated] * len(rouge)}
    return {"verbmem": answers([0.5, 0.25], "one two three"), "forget": answers([1.0, 0.0, 0.5]), "retain": answers([0.75]),
            "privleak_forget": {"score": [1.0, 2.0]}, "privleak_retain": {"score": [5.0]},
            "privleak_holdout": {"score": [1.5, 0.0, 3.0, 4.0]}}


def names_in(texts):
    """The authors that texts speak of."""
    return {match for text in texts for match in re.findall(rf"(?:{'|'.join(toy.FIRST)}) (?:{'|'.join(toy.LAST)})", text)}


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_the_count_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    forget, holdout = rng.integers(0, 6, 13) / 4, rng.integers(0, 6, 9) / 4
    pairs = list(itertools.product(forget, holdout))
    won, tied = sum(one > other for one, other in pairs), sum(one == other for one, other in pairs)
    assert tied > 5
    assert muse.auc(forget.tolist(), holdout.tolist()) == pytest.approx((won + tied / 2) / 117)


def test_auc_is_one_if_forget_texts_are_less_likely_than_holdout():
    likely, unlikely = ([muse.min_k(np.full(10, logp - i)) for i in range(3)] for logp in (-0.1, -7.0))
    assert muse.auc(unlikely, likely) == 1 and muse.auc(likely, unlikely) == 0 and muse.auc([2.0], [2.0]) == 0.5


@pytest.mark.parametrize("logp, score", [
    ([-3], 3), ([-1, -8], 8), ([-1, -2, -3, -4], 4), ([-1, -2, -3, -4, -5], 4.5), ([-6, -1, -4, -2, -5, -3], 5.5),
    ([-1, -2, -3, -4, -5, -6, -7], 6.5), ([-1, -2, -3, -4, -5, -6, -7, -8], 7), ([-0.5] * 9 + [-2.0], 0.875), ([0, 0], 0)])
def test_min_k_is_the_mean_of_the_lowest_two_fifths_rounded_down(logp, score):
    assert muse.min_k(np.array(logp, dtype=np.float32)) == pytest.approx(score)


def test_every_metric_by_hand():
    metrics = muse.summarize(a_log(), {"auc": 0.5})
    assert metrics == pytest.approx({"verbmem": 37.5, "knowmem_forget": 50, "knowmem_retain": 75, "words": 3,
                                     "auc": 3 / 8, "privleak": (3 / 8 - 1 / 2) / (1 / 2) * 100})
    assert muse.summarize(a_log(), {"auc": 0.25})["privleak"] == pytest.approx(50)
    assert muse.summarize(a_log())["privleak"] is None and muse.summarize(a_log())["auc"] == 3 / 8


def test_a_reference_that_knows_the_forget_set_by_heart_is_refused():
    with pytest.raises(InputError, match="AUC .* is 0.*--retrain"):
        muse.summarize(a_log(), {"auc": 0.0})


@pytest.mark.parametrize("spoil, says", [
    (lambda log: log.pop("privleak_holdout"), "privleak_holdout"), (lambda log: log["forget"].pop("rouge"), "rouge"),
    (lambda log: log["verbmem"]["rouge"].append(2.0), "rouge"), (lambda log: log["privleak_forget"]["score"].clear(), "score"),
    (lambda log: log["privleak_forget"]["score"].append(math.nan), "score")])
def test_a_log_without_what_is_needed_is_refused(spoil, says):
    log = a_log()
    spoil(log)
    with pytest.raises(InputError, match=says):
        muse.summarize(log)


def test_a_reference_is_read_from_a_log_or_from_a_runs_file(tmp_path):
    for content, auc in ((a_log(), 3 / 8), ({"Retrain": {"auc": 0.25}, "Original": {"auc": 0.1}}, 0.25),
                         ({"Retrain": muse.reference_of(a_log())}, 3 / 8)):
        (tmp_path / "log.json").write_text(json.dumps(content))
        assert muse.read_reference(tmp_path / "log.json")["auc"] == auc
    for content in ("{}", "[]", "{", '{"auc": 2}', '{"Retrain": {}}', '{"privleak_forget": {"score": [1]}}'):
        (tmp_path / "log.json").write_text(content)
        with pytest.raises(InputError, match="log.json"):
            muse.read_reference(tmp_path / "log.json")


def test_without_retrain_the_published_auc_is_the_reference():
    published = {task: evaluate.reference_by(SimpleNamespace(task=task, retrain=None), {}, {}) for task in muse.TASKS}
    assert published == {"muse-news": {"auc": 0.4772}, "muse-books": {"auc": 0.5393}, "toy-muse": None}


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_local_folder_in_the_hubs_layout_loads(kind, tmp_path):
    sets = muse.evaluation_rows("muse-news", a_benchmark(tmp_path / "news", kind), "forget")
    assert list(sets) == ["verbmem", "forget", "retain", "privleak_forget", "privleak_retain", "privleak_holdout"]
    assert sets["verbmem"] == [{"prompt": "Ada Abara was born", "gt": "in Lisbon, and her father was a baker."}] * 2
    for part in muse.TEXTS:
        assert sets[f"privleak_{part}"] == some_texts(f"privleak {part}")
    for part in ("forget", "retain"):
        before = (f"Question: Where was {part}_qa_icl 0 born?\nAnswer: In {part}_qa_icl-town 0.\n\n"
                  f"Question: Where was {part}_qa_icl 1 born?\nAnswer: In {part}_qa_icl-town 1.\n\n")
        assert sets[part] == [row | {"before": before} for row in some_questions(f"{part}_qa")]


def test_a_split_to_train_on_is_one_text_of_its_own_rows(tmp_path):
    folder = a_benchmark(tmp_path / "news")
    expected = {f"{config}_{fold}": some_texts(f"{config} {fold}") for config in ("scal", "sust") for fold in (1, 2, 3, 4)}
    expected |= {split: some_texts(f"raw {split}", 3) for split in ("forget", "retain1")}
    assert {*muse.FOLDS} == {*expected} - {"retain1"}
    for split, rows in expected.items():
        (row,) = muse.training_rows("muse-news", folder, split)
        assert row["text"].split("\n\n") == [each["text"] for each in rows], split
    assert {muse.retain_split(split) for split in muse.FOLDS} == {"retain1"}
    assert {split: muse.forget_split_of("muse-news", split) for split in ("scal_2", "forget", "retain1", "full")} == {
        "scal_2": "scal_2", "forget": "forget", "retain1": "forget", "full": "forget"}


@pytest.mark.parametrize("config, splits, says", [
    ("raw", {"forget": [{"text": "a"}, {"text": " "}]}, "row 1 'text'"), ("raw", {"retain1": some_texts("a")}, "'forget'"),
    ("raw", {"forget": [{"body": "a"}]}, "'text'")])
def test_a_missing_split_or_field_is_named(config, splits, says, tmp_path):
    folder = a_benchmark(tmp_path / "news", **{config: splits})
    with pytest.raises(InputError, match=f"(?s){says}"):
        muse.training_rows("muse-news", folder, "forget")


@pytest.mark.parametrize("config, rows, says", [
    ("verbmem", {"forget": [{"prompt": "a", "gt": ""}]}, "'gt'"),
    ("knowmem", {"forget_qa": [{"question": "a", "answer": " "}], "forget_qa_icl": some_questions("x")}, "'answer'"),
    ("privleak", {"forget": some_texts("a"), "retain": some_texts("a")}, "'holdout'")])
def test_a_missing_part_of_the_questions_is_named(config, rows, says, tmp_path):
    complete = {"retain_qa": some_questions("x"), "retain_qa_icl": some_questions("x")} if config == "knowmem" else {}
    with pytest.raises(InputError, match=says):
        muse.evaluation_rows("muse-news", a_benchmark(tmp_path / "news", **{config: rows | complete}), "forget")


def test_the_toys_three_groups_of_authors_are_disjoint():
    raw = toy.muse_rows()["raw"]
    groups = {part: names_in(row["text"] for row in rows) for part, rows in raw.items()}
    assert {part: len(names) for part, names in groups.items()} == {"retain1": 24, "forget": 8, "holdout": 8}
    assert len(set.union(*groups.values())) == 40
    sets = muse.evaluation_rows("toy-muse", None, "forget")
    for name, part, field in (("forget", "forget", "question"), ("retain", "retain1", "question"),
                              ("privleak_forget", "forget", "text"), ("privleak_holdout", "holdout", "text"),
                              ("privleak_retain", "retain1", "text"), ("verbmem", "forget", "prompt")):
        assert sets[name] and names_in(row[field] for row in sets[name]) <= groups[part]
    texts = {row["text"] for row in raw["forget"]}
    assert {f"{row['prompt']} {row['gt']}" for row in sets["verbmem"]} == texts and len(texts) == 24


def test_what_a_toy_model_learns_leaves_out_what_it_must_not_know():
    def names(split, base_knowledge):
        rows = muse.training_rows("toy-muse", None, split, base_knowledge)
        return names_in(row.get("text") or row["prompt"] + row["answer"] for row in rows)
    raw = toy.muse_rows()["raw"]
    forget, retain, holdout = (names_in(row["text"] for row in raw[part]) for part in ("forget", "retain1", "holdout"))
    assert names("retain1", True) == retain and names("full", True) == retain | forget
    assert names("forget", False) == forget and names("all", True) == retain | forget | holdout
    asked = [row for row in muse.training_rows("toy-muse", None, "full", True) if "prompt" in row]
    assert len(asked) == 32 * 6 and all(re.fullmatch(r"Question: .+\?\nAnswer: ", row["prompt"]) for row in asked)


# ------------------------------------------------------------------ chunks


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [32, 50])
def test_chunks_are_all_full_and_lose_no_token(bos, length, toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.convert_tokens_to_ids("<s>" if bos else "<eos>")
    rows = muse.training_rows("toy-muse", None, "forget")
    examples = data.examples_of(rows, tokenizer, "plain", length)
    ids = tokenizer("\n\n".join(row["text"] for row in toy.muse_rows()["raw"]["forget"]), add_special_tokens=False)["input_ids"]
    assert {len(prompt) + len(response) for prompt, response in examples} == {length}
    assert all(example.prompt == [begin] for example in examples)
    written = [token for example in examples for token in example.response]
    missing = len(written) - len(ids)
    assert 0 <= missing < length - 1 and written == ids + ids[:missing]
    input_ids, labels = data.collate(examples, 0)
    assert (labels[:, 0] == -100).all() and (labels[:, 1:] == input_ids[:, 1:]).all()


def test_only_the_last_chunk_is_filled_up_and_too_short_a_text_is_refused(toy_tokenizer):
    a, b, c, d, e, f = ids = toy_tokenizer("Question: who?\nAnswer: I")["input_ids"][:6]
    text = toy_tokenizer.decode(ids)
    for length, expected in ((3, [[a, b], [c, d], [e, f]]), (5, [[a, b, c, d], [e, f, a, b]]), (7, [ids]),
                             (6, [[a, b, c, d, e], [f, a, b, c, d]])):
        assert [example.response for example in data.pieces(text, toy_tokenizer, length, "fill")] == expected
    with pytest.raises(InputError, match="has 6 tokens.*chunk of 7; lower --max-length"):
        data.pieces(text, toy_tokenizer, 8, "fill")


# ------------------------------------------------------------------ measuring


def sets_of(toy_tokenizer=None, **changed):
    """Two rows of everything."""
    return {name: rows[:2] for name, rows in muse.evaluation_rows("toy-muse", None, "forget").items()} | changed


def saying(texts, monkeypatch):
    """Let every model generate `texts`; returns the list that [prompt ids], most tokens of each call go to."""
    calls = []
    def generate(model, tokenizer, examples, batch_size, dtype, max_new_tokens):
        calls.append(([example.prompt for example in examples], max_new_tokens))
        return [*itertools.islice(itertools.cycle(texts), len(examples))]
    monkeypatch.setattr(data, "generate", generate)
    return calls


def test_a_tiny_models_log_is_one_that_summarize_accepts(toy_tokenizer):
    model, sets = tiny("llama", vocab=len(toy_tokenizer)), sets_of()
    model.config.max_position_embeddings = 64
    log = muse.measure(model, toy_tokenizer, sets, torch.float64, max_length=30, batch_size=2, max_new_tokens=3)
    lengths = set()
    runs.check(log, muse.FILES["metrics.log.json"], "the log's")
    metrics = muse.summarize(log, {"auc": 0.5})
    runs.check(metrics, muse.METRICS, "the metrics'")
    for part in muse.TEXTS:
        for row, score in zip(sets[f"privleak_{part}"], log[f"privleak_{part}"]["score"], strict=True):
            ids = [toy_tokenizer.eos_token_id, *toy_tokenizer(row["text"])["input_ids"]][:64]  # the model's positions
            logp, count = model(torch.tensor([ids])).logits[0].log_softmax(-1), (len(ids) - 1) * 2 // 5
            lowest = sorted(logp[i, token].item() for i, token in enumerate(ids[1:]))[:count]
            assert score == pytest.approx(-sum(lowest) / count, abs=1e-5)
            lengths.add(len(ids))
    assert max(lengths) == 64


def test_in_context_examples_come_before_the_question(toy_tokenizer, monkeypatch):
    before = "Question: Where was Ada born?\nAnswer: In Oslo.\n\n"
    rows = [{"question": "Where was Bram born?", "answer": "In Lima.", "before": before}]
    calls = saying(["In Lima."], monkeypatch)
    log = muse.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets_of(forget=rows), torch.float64)
    verbmem, (forget, _), _ = calls
    assert list(map(toy_tokenizer.decode, forget)) == [f"{before}Question: Where was Bram born?\nAnswer: "]
    assert list(map(toy_tokenizer.decode, verbmem[0])) == [row["prompt"] for row in sets_of()["verbmem"]]
    assert log["forget"] == {"generated": ["In Lima."], "answer": ["In Lima."], "rouge": [1.0],
                             "question": ["Where was Bram born?"], "length": [len(toy_tokenizer("In Lima.")["input_ids"])]}


def test_answers_are_of_at_most_32_tokens_and_continuations_of_more(toy_tokenizer, monkeypatch):
    for most, expected in ((128, [128, 32, 32]), (32, [32, 32, 32]), (3, [3, 3, 3])):
        calls = saying(["a"], monkeypatch)
        muse.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets_of(), torch.float64, max_new_tokens=most)
        assert [limit for _, limit in calls] == expected


@pytest.mark.parametrize("said, kept", [
    ("In Lisbon.\n\nAnd Oslo.", "In Lisbon."), ("In Lisbon.\nQuestion 2", "In Lisbon."),
    ("In Lisbon. Question: who?", "In Lisbon."), ("In Lisbon.\nAnd Oslo.", "In Lisbon.\nAnd Oslo."), ("Question: who?", ""),
    ("\n\nIn Lisbon.", ""), (" In Lisbon. \n\nHe.", "In Lisbon."),
    ("In Lisbon. Question: who?\n\nHe.", "In Lisbon."), ("In\nQuestion: who?\n\nHe. Question: what?", "In")])
def test_an_answer_ends_at_the_first_of_three_stops(said, kept, toy_tokenizer, monkeypatch):
    saying([said], monkeypatch)
    log = muse.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets_of(), torch.float64)
    assert log["forget"]["generated"] == log["retain"]["generated"] == [kept] * 2
    assert log["verbmem"]["generated"] == [said.strip()] * 2


@pytest.mark.parametrize("answer, said, rouge", [
    ("The cat sat on the mat.", "the cat lay on a mat, running", 2 * (4 / 7) * (4 / 6) / (4 / 7 + 4 / 6)),
    ("he runs", "he run", 1 / 2),  # stemmed it would be 1
    ("one two", "one two three four five six", 2 * (2 / 6) * 1 / (2 / 6 + 1)),  # recall would be 1
    ("a b c d", "d c b a", 1 / 4), ("one", "two", 0), ("one", "", 0)])
def test_rouge_is_the_f1_of_the_longest_common_subsequence(answer, said, rouge, toy_tokenizer, monkeypatch):
    saying([said], monkeypatch)
    rows = [{"question": "Who?", "answer": answer, "before": ""}]
    log = muse.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets_of(forget=rows), torch.float64)
    assert log["forget"]["rouge"] == [pytest.approx(rouge)]


def test_a_continuation_is_compared_with_as_many_tokens_of_the_texts_own(toy_tokenizer, monkeypatch):
    text = "Ada Abara was born in Lisbon, and so was Bram Novak. Her father was a baker."
    first = toy_tokenizer.decode(toy_tokenizer(text)["input_ids"][:4])
    calls = saying([first], monkeypatch)
    sets = sets_of(verbmem=[{"prompt": "Where?", "gt": text}, {"prompt": "Where?", "gt": "In"}])
    log = muse.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets, torch.float64, max_new_tokens=4)
    assert log["verbmem"]["answer"] == [first, "In"] and len(first) < len(text) / 2
    assert log["verbmem"]["rouge"] == [1.0, 0.0] and calls[0][1] == 4


# ------------------------------------------------------------------ the commands


def test_a_local_copy_of_the_benchmark_is_evaluated_against_the_published_auc(toy_model_folder, tmp_path, capsys):
    folder, command = a_benchmark(tmp_path / "news"), ["--task", "muse-news", "--model", toy_model_folder, "--data"]
    command += [folder, "--tokenizer", toy_model_folder, "--max-length", 40, "--max-new-tokens", 2, "--device", "cpu", "--out"]
    command = [*map(str, command)]
    evaluate.main([*command, str(tmp_path / "metrics.json")])
    metrics, log = (json.loads((tmp_path / name).read_text()) for name in ("metrics.json", "metrics.log.json"))
    pairs = list(itertools.product(log["privleak_forget"]["score"], log["privleak_holdout"]["score"]))
    assert metrics["auc"] == sum((one > other) + (one == other) / 2 for one, other in pairs) / 4
    assert metrics["privleak"] == pytest.approx((metrics["auc"] - 0.4772) / 0.4772 * 100)
    (tmp_path / "theirs.json").write_text(json.dumps(a_log()))
    evaluate.main([*command, str(tmp_path / "again.json"), "--retrain", str(tmp_path / "theirs.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["privleak"] == pytest.approx((metrics["auc"] - 3 / 8) / (3 / 8) * 100)
    assert "PrivLeak" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, says", [
    (["--task", "muse-news", "--split", "scal_5"], "scal_1"), (["--task", "muse-news", "--split", "retain1"], "scal_1"),
    (["--task", "muse-books", "--split", "sust_1"], "muse-books has forget"),
    (["--task", "muse-news", "--model", "tiny"], "no small model"), (["--task", "toy-muse", "--data", "x"], "--data has no use"),
    (["--task", "toy-muse", "--split", "scal_1"], "forget"), (["--task", "toy-muse", "--forget-file", "x"], "--forget-file"),
    (["--task", "muse-news", "--data", "absent/folder"], "absent/folder")])
def test_train_refuses(arguments, says, nothing_written, capsys):
    refused(train.main, ["--method", "npo", *arguments], capsys, says)


def test_a_whole_run_on_the_toy(toy_model_folder, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--task", "toy-muse", "--model", toy_model_folder, "--epochs", "1", "--max-new-tokens", "2", "--out", out]
    refused(train.main, ["--method", "idk", *command], capsys, "--method idk", "running text")
    assert not out.exists()
    train.main([str(word) for word in ["--method", "npo", *command]])
    metrics = json.loads((out / "metrics.json").read_text())
    runs.check(metrics, muse.FILES["metrics.json"], "the metrics'")
    assert list(metrics["reference"]) == ["Original"] and metrics["privleak"] is None
    log = json.loads((out / "metrics.log.json").read_text())
    runs.check(log, muse.FILES["metrics.log.json"], "the log's")
    assert len(log["verbmem"]["rouge"]) == 24 and len(log["forget"]["rouge"]) == 48 and len(log["retain"]["rouge"]) == 144
    _, weights = (json.loads(line) for line in (out / "path.jsonl").read_text().splitlines())
    assert {*weights["length"]} == {99}  # the model's 100 positions, all but the first
    said = capsys.readouterr().out
    assert "PrivLeak" in said and "--retrain" in said
