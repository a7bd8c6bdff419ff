"""MUSE's rows, its chunks, its arithmetic by hand and by brute force, and measuring a model."""

import copy
import itertools
import json
import re
from statistics import mean

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from conftest import lm_of, near, refused, shown, tiny, token_losses
from test_data import letters
from tokenizers.processors import TemplateProcessing

import data
import train
from benchmarks import BENCHMARKS, muse, toy
from benchmarks.protocol import table
from machinery.folder import read
from machinery.inputs import ANY_TEXT, SHARE, TEXT, WHOLE, InputError, check

pytestmark = pytest.mark.usefixtures("pictures")


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
    return make_benchmark(
        folder,
        {
            "raw": {split: some_texts(f"raw {split}", 3) for split in ("forget", "retain1", "retain2", "holdout")},
            "verbmem": {
                "forget": [{"prompt": "Ada Abara was born", "gt": "in Lisbon, and her father was a baker."}] * 2
            },
            "knowmem": {
                split: some_questions(split) for split in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl")
            },
            "privleak": {split: some_texts(f"privleak {split}") for split in ("forget", "retain", "holdout")},
            **{
                config: {f"forget_{fold}": some_texts(f"{config} {fold}") for fold in (1, 2, 3, 4)}
                for config in ("scal", "sust")
            },
        }
        | changed,
        kind,
    )


def a_log():
    def answers(rouge, generated=""):
        return {"rouge": rouge, "generated": [generated] * len(rouge)}

    return {
        "verbmem": answers([0.5, 0.25], "one two three"),
        "forget": answers([1.0, 0.0, 0.5]),
        "retain": answers([0.75]),
        "privleak_forget": {"score": [1.0, 2.0]},
        "privleak_retain": {"score": [5.0]},
        "privleak_holdout": {"score": [1.5, 0.0, 3.0, 4.0]},
    }


def names_in(texts):
    """The authors that texts speak of."""
    return {
        match for text in texts for match in re.findall(rf"(?:{'|'.join(toy.FIRST)}) (?:{'|'.join(toy.LAST)})", text)
    }


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_the_count_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    forget, holdout = rng.integers(0, 6, 13) / 4, rng.integers(0, 6, 9) / 4
    pairs = list(itertools.product(forget, holdout))
    won, tied = sum(one > other for one, other in pairs), sum(one == other for one, other in pairs)
    assert tied > 5
    assert muse.auc(forget.tolist(), holdout.tolist()) == pytest.approx((won + tied / 2) / 117)


def test_every_metric_by_hand():
    metrics = muse.summarize(a_log(), {"auc": 0.5})
    assert metrics == pytest.approx(
        {"verbmem": 37.5, "knowmem_forget": 50, "knowmem_retain": 75, "words": 3, "auc": 3 / 8, "privleak": -25}
    )
    assert muse.summarize(a_log(), {"auc": 0.25})["privleak"] == pytest.approx(50)
    assert muse.summarize(a_log())["privleak"] is None
    with pytest.raises(InputError, match="AUC .* is 0.*--retrain"):  # it knows the forget set by heart
        muse.summarize(a_log(), {"auc": 0.0})


SHOWN = """37.5 VerbMem forget →R main
50.0 KnowMem forget →R main
-25.0 PrivLeak main
25.0 its size ↓ main bold
75.0 KnowMem retain ↑ main bold
0.375 AUC →R main
3.0 words written →R main
75 KnowMem retain
-25 -|PrivLeak|
-25 -|PrivLeak|
75 KnowMem retain
VerbMem KnowMem PrivLeak AUC words
forget forget retain written
NPO 37.5 50.0 75.0 -25.0 0.375 3.0
"""


def test_what_tables_and_figures_show_of_a_model():
    metrics, alone = muse.summarize(a_log(), {"auc": 0.5}), muse.summarize(a_log())
    for task in ("muse-news", "muse-books", "toy-muse"):
        assert shown(BENCHMARKS[task], metrics) == SHOWN
    assert muse.NO_LEAK.value(alone) is None and "PrivLeak" not in table(muse.COLUMNS, {"NPO": alone})
    assert "–" in table(muse.COLUMNS, {"NPO": alone, "SimNPO": metrics})
    assert muse.notes(metrics, {"forget": {}}) == [] and "--retrain" in muse.notes(alone, {"forget": {}})[0]


def test_a_reference_is_read_from_a_log_or_from_a_runs_file(tmp_path):
    reference = muse.compared_part(a_log() | {"forget": {"generated": ["said"]}})
    assert reference["generated"] == ["said"] and muse.MUSE_NEWS.spread[1](reference) == [1.0, 2.0]
    path, runs_file = tmp_path / "log.json", {"Retrain": reference, "Original": {"auc": 0.1}}
    for content, auc in ((a_log(), 3 / 8), (runs_file, 3 / 8), ({"auc": 0.25}, 0.25)):
        path.write_text(json.dumps(content))
        assert muse.read_retrained(path)["auc"] == auc
    for content in ("{}", "{", '{"auc": 2}', '{"Retrain": {}}', '{"privleak_forget": {"score": [1]}}'):
        path.write_text(content)
        with pytest.raises(InputError, match="log.json"):
            muse.read_retrained(path)


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_local_folder_in_the_hubs_layout_loads(kind, tmp_path):
    sets = muse.evaluation_rows(a_benchmark(tmp_path / "news", kind), "forget")
    assert list(sets) == ["verbmem", "forget", "retain", "privleak_forget", "privleak_retain", "privleak_holdout"]
    assert sets["verbmem"] == [{"prompt": "Ada Abara was born", "gt": "in Lisbon, and her father was a baker."}] * 2
    for part in muse.TEXTS:
        assert sets[f"privleak_{part}"] == some_texts(f"privleak {part}")
    for part in ("forget", "retain"):
        before = (
            f"Question: Where was {part}_qa_icl 0 born?\nAnswer: In {part}_qa_icl-town 0.\n\n"
            f"Question: Where was {part}_qa_icl 1 born?\nAnswer: In {part}_qa_icl-town 1.\n\n"
        )
        assert sets[part] == [row | {"before": before} for row in some_questions(f"{part}_qa")]


def test_a_split_to_train_on_is_one_text_of_its_own_rows(tmp_path):
    folder = a_benchmark(tmp_path / "news")
    expected = {
        f"{config}_{fold}": some_texts(f"{config} {fold}") for config in ("scal", "sust") for fold in (1, 2, 3, 4)
    }
    expected |= {split: some_texts(f"raw {split}", 3) for split in ("forget", "retain1")}
    assert {*muse.FOLDS} == {*expected} - {"retain1"}
    for split, rows in expected.items():
        text = "\n\n".join(row["text"] for row in rows)
        assert muse.training_rows(folder, split) == [{"text": text, "cut": "fill"}]
    assert {muse.retain_split(split) for split in muse.FOLDS} == {"retain1"}
    assert {split: muse.forget_split_of(split) for split in ("scal_2", "forget", "retain1", "full")} == {
        "scal_2": "scal_2",
        "forget": "forget",
        "retain1": "forget",
        "full": "forget",
    }


@pytest.mark.parametrize(
    "config, rows, says",
    [
        ("raw", {"forget": [{"text": "a"}, {"text": " "}]}, "row 1 'text'"),
        ("raw", {"retain1": some_texts("a")}, "'forget'"),
        ("raw", {"forget": [{"body": "a"}]}, "'text'"),
        ("verbmem", {"forget": [{"prompt": "a", "gt": ""}]}, "'gt'"),
        (
            "knowmem",
            {"forget_qa": [{"question": "a", "answer": " "}], "forget_qa_icl": some_questions("x")},
            "'answer'",
        ),
        ("privleak", {"forget": some_texts("a"), "retain": some_texts("a")}, "'holdout'"),
    ],
)
def test_a_missing_split_or_field_is_named(config, rows, says, tmp_path):
    folder = a_benchmark(tmp_path / "news", **{config: rows})
    with pytest.raises(InputError, match=f"(?s){says}"):
        muse.training_rows(folder, "forget")
        muse.evaluation_rows(folder, "forget")


def test_the_toy_asks_about_three_groups_of_authors_and_teaches_the_right_ones():
    raw = toy.muse_rows()["raw"]
    groups = {part: names_in(row["text"] for row in rows) for part, rows in raw.items()}
    assert [len(names) for names in groups.values()] == [24, 8, 8] and len(set.union(*groups.values())) == 40
    for name, rows in muse.evaluation_rows(None, "forget").items():
        part = "retain1" if "retain" in name else "holdout" if "holdout" in name else "forget"
        named = names_in(row.get("question") or row.get("text") or row["prompt"] for row in rows)
        assert set() != named <= groups[part]
    verbmem = toy.muse_rows()["verbmem"]["forget"]
    assert [f"{row['prompt']} {row['gt']}" for row in verbmem] == [row["text"] for row in raw["forget"]]
    for split, parts in (("retain1", ["retain1"]), ("full", ["retain1", "forget"]), ("all", [*groups])):
        rows, known = muse.training_rows(None, split, True), set.union(*(groups[part] for part in parts))
        texts, questions = rows[: len(parts)], rows[len(parts) :]
        assert names_in(row["text"] for row in texts) == known and len(questions) == 6 * len(known)
        assert names_in(row["prompt"] + row["answer"] for row in questions) == known
        assert all(re.fullmatch(r"Question: .+\?\nAnswer: ", row["prompt"]) for row in questions)


# ------------------------------------------------------------------ measuring


def measured(model, tokenizer, dtype=torch.float64, most=128, **changed):
    """The log of two rows of everything, or of those that are changed."""
    sets = {name: rows[:2] for name, rows in muse.evaluation_rows(None, "forget").items()}
    return muse.measure(lm_of(model, tokenizer, dtype, max_length=30, max_new_tokens=most), sets | changed)


def test_a_text_is_scored_by_its_lowest_tokens_as_far_as_the_model_reads(toy_llama, toy_tokenizer, saying):
    saying("a")
    toy_llama.config.max_position_embeddings = 64
    log = measured(toy_llama.train(), toy_tokenizer)
    check(log, muse.LOG, "the log's")
    for part in muse.TEXTS:
        for row, score in zip(toy.muse_rows()["privleak"][part][:2], log[f"privleak_{part}"]["score"], strict=True):
            ids = toy_tokenizer(row["text"])["input_ids"][:63]
            losses = sorted(token_losses(toy_llama, [toy_tokenizer.eos_token_id], ids))
            assert score == pytest.approx(mean(losses[-(len(ids) * 2 // 5) :]), rel=1e-6)
    half = measured(toy_llama.float(), toy_tokenizer, torch.bfloat16)
    assert near(half["privleak_forget"]["score"], log["privleak_forget"]["score"])
    with pytest.raises(InputError, match="a prompt takes .* tokens, more than"):
        measured(toy_llama, toy_tokenizer, verbmem=[{"prompt": "Where? " * 99, "gt": "In"}])


@pytest.mark.parametrize("most", [128, 4])
def test_prompts_begin_with_bos_and_the_texts_own_tokens_are_counted_without(most, toy_tokenizer, saying):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begin
    text, before = "Ada Abara was born in Lisbon, and so was Bram.", "Question: Where was Ada?\nAnswer: In Oslo.\n\n"
    first = toy_tokenizer.decode(toy_tokenizer(text)["input_ids"][:most])
    calls = saying(first)
    row, verbmem = {"question": "Who?", "answer": "In Lima.", "before": before}, {"prompt": "Where?", "gt": text}
    model = tiny("llama", vocab=len(tokenizer))
    log = measured(model, tokenizer, torch.bfloat16, most, forget=[row], verbmem=[verbmem])
    assert calls[0] == (["<s>Where?"], torch.bfloat16, most)
    assert calls[1] == ([f"<s>{before}Question: Who?\nAnswer: "], torch.bfloat16, min(most, 32))
    assert calls[2][1:] == (torch.bfloat16, min(most, 32))
    assert log["verbmem"] == {"generated": [first], "answer": [first], "rouge": [1.0]}
    log["forget"].pop("rouge")
    length = [len(toy_tokenizer("In Lima.")["input_ids"])]
    assert log["forget"] == {"generated": [first], "answer": ["In Lima."], "question": ["Who?"], "length": length}


def parrot(tokenizer, text):
    """A model that, whatever came before, goes on after each letter as `text` does, and after EOS says x."""
    size = len(tokenizer)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=2 * (-(-size // 2)),
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=500,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float64)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    follows = dict(zip(ids, [*ids[1:], tokenizer.vocab["x"]], strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.fill_diagonal_(1)
        for token, successor in follows.items():
            model.lm_head.weight[successor, token] = 1
    return model


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_a_tokenizer_that_ends_each_text_with_eos_changes_nothing(ends):
    """A prompt that ended in EOS would be a text that is over; what is compared, counted and scored has none either."""
    tokenizer = letters(ends=ends)
    row, verbmem = {"question": "Where?", "answer": "Paris", "before": ""}, {"prompt": "In P", "gt": "aris"}
    lm = lm_of(parrot(tokenizer, " Paris"), tokenizer, max_new_tokens=9)
    text = [{"text": "In Paris it rains."}]
    sets = dict.fromkeys(("privleak_forget", "privleak_retain", "privleak_holdout"), text)
    log = muse.measure(lm, {"verbmem": [verbmem], "forget": [row], "retain": [row]} | sets)
    assert log["verbmem"] == {"generated": ["aris"], "answer": ["aris"], "rouge": [1.0]}
    for name in ("forget", "retain"):
        assert (log[name]["generated"], log[name]["rouge"], log[name]["length"]) == (["Paris"], [1.0], [5])
    ids = tokenizer.convert_tokens_to_ids([*text[0]["text"]])
    losses = sorted(token_losses(lm.model, [tokenizer.bos_token_id], ids))
    assert log["privleak_forget"]["score"] == [pytest.approx(mean(losses[-(len(ids) * 2 // 5) :]))]
    # what a model is taught: a row of a prompt and an answer, and a text's pieces
    rows = [{"prompt": muse.prompt_of(row), "answer": "Paris"}, text[0]]
    lesson, piece = data.examples_of(rows, tokenizer, "plain", 500)
    assert tokenizer.convert_ids_to_tokens(lesson.prompt) == ["<s>", *"Question: Where?\nAnswer: "]
    assert tokenizer.convert_ids_to_tokens(lesson.response) == [*"Paris", "</s>"] and piece == ([0], ids)


@pytest.mark.parametrize(
    "said, kept",
    [
        ("In Lisbon.\n\nAnd Oslo.", "In Lisbon."),
        ("In Lisbon.\nQuestion 2", "In Lisbon."),
        ("In Lisbon. Question: who?", "In Lisbon."),
        ("In Lisbon.\nAnd Oslo.", "In Lisbon.\nAnd Oslo."),
        ("Question: who?", ""),
        ("\n\nIn Lisbon.", ""),
        (" In Lisbon. \n\nHe.", "In Lisbon."),
        ("In Lisbon. Question: who?\n\nHe.", "In Lisbon."),
        ("In\nQuestion: who?\n\nHe. Question: what?", "In"),
    ],
)
def test_an_answer_ends_at_the_first_of_three_stops(said, kept, toy_llama, toy_tokenizer, saying):
    saying(said)
    log = measured(toy_llama, toy_tokenizer)
    assert log["forget"]["generated"] == log["retain"]["generated"] == [kept] * 2
    assert log["verbmem"]["generated"] == [said.strip()] * 2


@pytest.mark.parametrize(
    "answer, said, rouge",
    [
        ("The cat sat on the mat.", "the cat lay on a mat, running", 2 * 4 / (7 + 6)),
        ("he runs", "he run", 1 / 2),  # stemmed it would be 1
        ("one two", "one two three four five six", 1 / 2),  # recall would be 1
        ("a b c d", "d c b a", 1 / 4),
        ("one", "two", 0),
        ("one", "", 0),
    ],
)
def test_rouge_is_the_f1_of_the_longest_common_subsequence(answer, said, rouge, toy_llama, toy_tokenizer, saying):
    saying(said)
    log = measured(toy_llama, toy_tokenizer, forget=[{"question": "Who?", "answer": answer, "before": ""}])
    assert log["forget"]["rouge"] == [pytest.approx(rouge)]


# ------------------------------------------------------------------ the commands


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("muse-news --split scal_5", "scal_1"),
        ("muse-news --split retain1", "scal_1"),
        ("toy-muse --split scal_1", "forget"),
        ("toy-muse --forget-file x", "--forget-file"),
    ],
)
def test_train_refuses(arguments, says, nothing_written, capsys):
    refused(train.main, ["--method", "npo", "--task", *arguments.split()], capsys, says)


KNOWMEM = {
    "rouge": [SHARE],
    "generated": [ANY_TEXT],
    "length": [WHOLE],
    "question": [TEXT],
    "answer": [TEXT],
}
GOLDEN = [
    [69.31471805599453, 7.088110137609468],
    [68.99675655038978, 7.085965407193519],
    [68.38070534624357, 7.088173538454716],
    [7.17750849494262, 7.170213829084084, 7.168562570769901],
    [0.6736111111111112],
]


def test_a_whole_run_on_the_toy_gives_these_numbers(toy_model_folder, tmp_path, capsys):
    flags = f"--model {toy_model_folder} --task toy-muse --max-steps 3 --max-new-tokens 2 --out {tmp_path}/run"
    train.main(f"--method npo --epochs 1 --dtype float64 --device cpu {flags}".split())
    assert "PrivLeak" in (said := capsys.readouterr().out) and "--retrain" in said
    metrics, log, steps = (read(tmp_path / "run", name) for name in ("metrics.json", "metrics.log.json", "log.jsonl"))
    check(log, muse.LOG | {"forget": KNOWMEM}, "the log's")
    assert list(metrics["reference"]) == ["Original"] and metrics["privleak"] is None
    assert [len(log[part]["rouge"]) for part in ("verbmem", "forget", "retain")] == [24, 48, 144]
    # the model's 100 positions, all but the first
    assert {length for step in steps for length in step["met"]["length"]} == {99}
    # Stored, computed in float64: a change of what is read, drawn or scored shows here.
    numbers = [[step["forget"], step["retain"]] for step in steps]
    numbers += [[mean(log[f"privleak_{part}"]["score"]) for part in muse.TEXTS], [metrics["auc"]]]
    assert numbers == [pytest.approx(row, rel=1e-6) for row in GOLDEN]
