"""A language model as benchmarks ask it; the command that measures one; what it and train.py do by default."""

import dataclasses
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_muse
import torch
import transformers
from conftest import lm_of, some_examples, tiny, token_losses
from test_data import letters, of_lengths
from test_own import a_part
from test_tofu import a_log, published

import data
import evaluate
from benchmarks import BENCHMARKS, muse, own, tofu
from benchmarks.protocol import table
from machinery import flags, folder, models, processes
from machinery.inputs import InputError

# ------------------------------------------------------------------ what a model is asked


def test_losses_are_over_the_tokens_of_the_response_whatever_the_company():
    lm, examples = lm_of(tiny("llama").train(), None, batch_size=4), some_examples(9)
    alone = [token_losses(lm.model, *example) for example in examples]
    means = [sum(values) / len(values) for values in alone]
    assert lm.mean_losses(examples) == pytest.approx(means, rel=1e-12)
    assert all(type(value) is float for value in lm.mean_losses(examples))
    for logps, values in zip(lm.token_logps(examples), alone, strict=True):
        assert logps.tolist() == pytest.approx([-value for value in values], rel=1e-12)


def test_a_token_is_the_likeliest_or_not():
    """The second example's response is what the model itself would say, but for its last token."""
    lm, (one, other) = lm_of(tiny("llama"), None), some_examples(2)
    response = []
    for _ in range(3):
        logits = lm.model(torch.tensor([other.prompt + response])).logits[0, -1]
        response.append(logits.argmax().item())
    likely = data.Example(other.prompt, [*response[:2], logits.argmin().item()])
    (_, first, _), (logp, second, _) = lm.token_scores([one, likely])
    assert second.tolist() == [1, 1, 0] and logp.tolist() == pytest.approx(
        [-x for x in token_losses(lm.model, *likely)]
    )
    whole = lm.model(torch.tensor([one.prompt + one.response])).logits[0, len(one.prompt) - 1 : -1]
    assert first.tolist() == [float(token == best) for token, best in zip(one.response, whole.argmax(-1), strict=True)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_values_come_in_the_order_of_the_examples_whatever_the_batches(ranks, monkeypatch):
    """Each of two processes takes every second batch, and gets the other's values."""
    model, sizes = tiny("llama").train(), []
    lm, examples = lm_of(model, None, batch_size=2), of_lengths(5, 2, 7, 3, 2)

    def answer(batch):
        assert not model.training and not torch.is_grad_enabled()
        sizes.append(len(batch))
        return [len(example.prompt) for example in batch]

    # one after the other: what the last gathers is whole
    gathered = dict.fromkeys(range(5))
    monkeypatch.setattr(processes, "gather", lambda values: gathered.update(values) or gathered)
    for rank in reversed(range(ranks)):
        monkeypatch.setattr(processes, "ranks", lambda rank=rank: (rank, ranks))
        values = lm.in_batches(answer, examples, "")
    assert values == [4, 1, 6, 2, 1] and sizes == [2, 2, 1]
    with pytest.raises(ValueError):
        lm.in_batches(lambda batch: [1], examples, "")


def test_generation_is_greedy_whatever_the_models_own_settings_and_ends_with_eos():
    """Against a loop of argmax over each prompt alone; the second token of the first answer is made the EOS."""
    tokenizer = letters()
    model = tiny("llama", vocab=len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8 if parameter.dim() == 2 else 1
    settings = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, num_beams=3, repetition_penalty=9.0, max_new_tokens=20, eos_token_id=2
    )
    model.generation_config = settings
    examples = [data.Example(tokenizer(text)["input_ids"], [7]) for text in ("What was", "A", "Where?", "Who is it")]

    def continued(ids):
        for _ in range(6):
            if ids[-1] != tokenizer.eos_token_id:
                ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        return ids

    ids = continued(examples[0].prompt)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(ids[-5])})
    ends = [continued(example.prompt)[len(example.prompt) :] for example in examples]
    assert len(ends[0]) == 2 and max(map(len, ends)) == 6 and len(set(map(tuple, ends))) == 3
    assert len({*ids[-5:]}) > 1  # without that EOS there would be more to read
    texts = [tokenizer.decode(end, skip_special_tokens=True) for end in ends]
    assert lm_of(model, tokenizer, batch_size=3, max_new_tokens=6).generate(examples) == texts
    assert lm_of(model, tokenizer, batch_size=3, max_new_tokens=9).generate(examples, 6) == texts
    assert model.generation_config is settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_asked_in_the_dtype_that_is_given(dtype):
    """The four choices in the weights' own: in bfloat16 near tokens would tie."""
    tokenizer, examples, dtypes = letters(), some_examples(3), []
    model = tiny("llama", dtype=torch.float32, vocab=len(tokenizer))
    lm, head = lm_of(model, tokenizer, dtype), model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    lm.generate(examples, 1)
    lm.mean_losses(examples)
    assert dtypes == [dtype] * 4
    lm.next_token_logps(examples, [1])
    assert dtypes[4:] == [torch.float32] * 2


def test_an_example_longer_than_the_models_positions_is_refused():
    lm = lm_of(tiny("llama"), None)
    lm.check_fits(of_lengths(100, 3))
    with pytest.raises(InputError, match="takes 101 tokens.*100"):
        lm.check_fits(of_lengths(3, 101))


def test_texts_are_encoded_as_the_model_takes_them():
    """Under its template, rows within its length."""
    tokenizer = letters(ends=1)
    lm, row = lm_of(None, tokenizer, max_length=20), {"question": "Who?", "answer": "I"}
    example = data.encode("Who?", "I", tokenizer, "llama2")
    assert lm.encode("Who?", "I") == example and sum(map(len, example)) == 22
    with pytest.raises(InputError, match="limit of 20"):
        lm.examples([row])
    assert lm._replace(max_length=22).examples([row]) == [example]
    assert lm.prompt("ab") == (letters()("ab")["input_ids"], [])
    assert lm.pieces("abcdefg", 4, "fill") == data.pieces("abcdefg", tokenizer, 4, "fill")


# ------------------------------------------------------------------ defaults

TASKS = """
task       author_rows data              model
toy        10     None                  tiny
tofu       20     locuslab/TOFU         open-unlearning/tofu_Llama-3.2-1B-Instruct_full
muse-news  0      muse-bench/MUSE-News  muse-bench/MUSE-News_target
muse-books 0      muse-bench/MUSE-Books muse-bench/MUSE-Books_target
toy-muse   0      None                  tiny
own        0      None                  tiny
"""


@pytest.mark.parametrize("line", TASKS.strip().splitlines()[1:])
def test_a_task_has_its_model_and_data(line):
    task, *words = line.split()
    assert words == [str(getattr(BENCHMARKS[task], name)) for name in ("author_rows", "data", "model")]


def test_tofus_sizes_and_splits():
    assert tofu.TOFU.size == dict(vocab=8000, width=512, layers=4, heads=8)
    assert tofu.TOFU.forget_splits[0] == "forget01"


@pytest.mark.parametrize("task, split", [("toy", "full"), ("toy-muse", "all")])
def test_a_tokenizer_is_made_for_all_that_any_model_of_the_task_reads(task, split, monkeypatch):
    monkeypatch.setattr(models, "new_model", lambda *arguments, **size: (arguments, size))
    (texts, seed), size = evaluate.new_model(task, None, 7)
    rows = BENCHMARKS[task].training_rows(None, split, base_knowledge=True)
    assert texts == data.REFUSALS + [data.text_of(row) for row in rows]
    assert seed == 7 and size == dict(vocab=1200, width=128, layers=2, heads=4)


# ------------------------------------------------------------------ flags


def an_own_log(seed=0):
    return {"forget": a_part([1.0 + seed, 2.0])}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What benchmarks are asked, by name of the model: models are a name and 1,000 positions, logs are made up."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def load_model(name, device, dtype, tokenizer, frozen):
        model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=1000), name=name)
        return model, f"tokenizer of {tokenizer or name} for {dtype}"

    def measure(make, lm, sets):
        asked_with = lm.dtype, lm.template, lm.max_length, lm.batch_size, lm.max_new_tokens
        calls.append((lm.model.name, lm.tokenizer, sets, *asked_with))
        log = make() if make is test_muse.a_log else make(seed=ord(lm.model.name[0]))
        if make is a_log:
            log["forget"] |= {"question": ["Who?"] * 3, "generated": [f"{lm.model.name} said"] * 3}
        return log

    def judge(lm, forget):
        name = f"{lm.model.name} on {forget['generated'][0]}"
        calls.append((name, lm.tokenizer, lm.dtype, lm.template, lm.max_length, lm.batch_size))
        return [float(len(calls))] * 3

    for make, tasks in (
        (a_log, ("toy", "tofu")),
        (test_muse.a_log, ("muse-news", "muse-books", "toy-muse")),
        (an_own_log, ("own",)),
    ):
        for task in tasks:
            changed = dataclasses.replace(
                BENCHMARKS[task],
                measure=functools.partial(measure, make),
                judge=judge if make is a_log else None,
                evaluation_rows=lambda *arguments, task=task: (task, *arguments),
                outside=None,
            )
            monkeypatch.setitem(BENCHMARKS, task, changed)
    monkeypatch.setattr(models, "load_model", load_model)
    return calls


def evaluated(*arguments, out="m.json"):
    evaluate.main([*" ".join(arguments).split(), "--out", out])
    return json.loads(Path(out).read_text())


F32, F64 = torch.float32, torch.float64
OWN = {"fields": ["question", "answer", "text"], "forget": "f.jsonl"}


@pytest.mark.parametrize(
    "flags, sets, tokenizer, passed",
    [
        ("", ("toy", None, "forget10"), "M", (F32, "auto", 500, 32, 64)),
        ("--task tofu", ("tofu", "locuslab/TOFU", "forget05"), "M", (F32, "auto", 500, 32, 200)),
        (
            "--task muse-news",
            ("muse-news", "muse-bench/MUSE-News", "forget"),
            "meta-llama/Llama-2-7b-hf",
            (F32, "auto", 1000, 8, 128),
        ),
        (
            "--task muse-books --max-length 9999",
            ("muse-books", "muse-bench/MUSE-Books", "forget"),
            "meta-llama/Llama-2-7b-hf",
            (F32, "auto", 1000, 8, 128),
        ),
        (
            "--task muse-news --split sust_4 --data D",
            ("muse-news", "D", "sust_4"),
            "meta-llama/Llama-2-7b-hf",
            (F32, "auto", 1000, 8, 128),
        ),
        ("--task toy-muse", ("toy-muse", None, "forget"), "M", (F32, "auto", 128, 32, 64)),
        ("--forget-file f.jsonl", ("own", OWN, "forget"), "M", (F32, "auto", 500, 32, 64)),
        (
            "--task tofu --data D --split forget01 --template llama2 --max-length 90 --max-new-tokens 3 "
            "--dtype float64 --batch-size 2 --tokenizer T",
            ("tofu", "D", "forget01"),
            "T",
            (F64, "llama2", 90, 2, 3),
        ),
    ],
)
def test_flags_reach_the_benchmark(flags, sets, tokenizer, passed, asked, monkeypatch):
    monkeypatch.setattr(own.Path, "absolute", lambda path: path)
    evaluated("--model M", flags)
    assert asked == [("M", f"tokenizer of {tokenizer} for {passed[0]}", sets, *passed)]


def test_muse_reads_as_long_texts_as_its_authors():
    assert [BENCHMARKS[task].max_length for task in ("muse-news", "muse-books")] == [2048, 2048]


def test_a_model_is_compared_with_retrain_and_judged_by_it(asked, capsys):
    metrics = evaluated("--task tofu --model M --retrain R --dtype float64 --template plain --batch-size 3")
    measured = ("tofu", "locuslab/TOFU", "forget05"), F64, "plain", 500, 3, 200
    r, m = (f"tokenizer of {name} for torch.float64" for name in "RM")
    assert asked == [
        ("R", r, *measured),
        ("M", m, *measured),
        ("R on R said", r, F64, "plain", 500, 3),
        ("R on M said", r, F64, "plain", 500, 3),
    ]
    log, retrained = (a_log(seed=ord(name)) for name in "MR")
    expected = {}
    for name, own_log, judged in (("Retrain", retrained, 3.0), ("model", log, 4.0)):
        expected[name] = tofu.summarize(own_log, tofu.compared_part(retrained)) | {"judged": judged, "repetition": 0.0}
    assert metrics == expected["model"] and table(tofu.COLUMNS, expected) in capsys.readouterr().out
    assert evaluated("--log m.log.json --retrain m.log.json", out="again.json")["distance"] == 0
    again = evaluated("--log m.log.json", out="alone.json")
    compared = dict.fromkeys(("forget_quality", "forget_quality_halves", "distance"))
    assert again == metrics | compared and "--retrain" in capsys.readouterr().out


@pytest.mark.parametrize(
    "task, reference", [("muse-news", {"auc": 0.4772}), ("muse-books", {"auc": 0.5393}), ("toy-muse", None)]
)
def test_without_retrain_muse_is_compared_with_the_published_auc(task, reference, asked):
    expected = muse.summarize(test_muse.a_log(), reference)
    assert evaluated(f"--task {task} --model M") == expected
    assert evaluated(f"--task {task} --log m.log.json", out="again.json") == expected


def test_a_published_log_is_read_and_compared_with_another(asked, tmp_path):
    logs = [a_log(seed=seed) for seed in (0, 1)]
    for name, log in zip("ab", logs, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(published(log, "dict")))
    assert evaluated("--log a.json --retrain b.json") == tofu.summarize(logs[0], logs[1]["forget"])


def test_models_are_listed_before_retrain_although_it_is_measured_first(asked):
    given = evaluate.build_parser().parse_args(["--task", "tofu", "--model", "M", "--retrain", "R"])
    args = flags.fill(given, evaluate.defaults_of(given) | {"eval_batch_size": 8})
    logs, reference = evaluate.compared_with(args, {"forget": []}, {"Original": "M"})
    assert [*logs] == ["Original", "Retrain"] and [name for name, *_ in asked] == ["R", "M"]
    assert reference == tofu.compared_part(logs["Retrain"])


def test_without_a_name_metrics_and_log_are_beside_each_other(asked, tmp_path):
    evaluate.main(["--model", "M"])
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "metrics.log.json"}


def test_a_reference_of_other_rows_is_refused_before_a_model_is_measured(asked, tmp_path, monkeypatch, capsys):
    toy = dataclasses.replace(BENCHMARKS["toy"], evaluation_rows=lambda *_: {"forget": [{"answer": "Me."}] * 3})
    monkeypatch.setitem(BENCHMARKS, "toy", toy)
    (tmp_path / "r.json").write_text(json.dumps({"forget": {"truth_ratio": [1.0, 2.0]}}))
    with pytest.raises(SystemExit):
        evaluated("--model M --retrain r.json")
    assert "3 forget examples with 2" in capsys.readouterr().err and asked == []


def make_run(path, flags):
    """A run's folder with nothing but its flags in it."""
    path.mkdir()
    save_settings(path, {"format": folder.FORMAT, "flags": flags})
    return path


def save_settings(path, settings):
    (path / "run.json").write_text(json.dumps(folder.sealed(settings)))


MADE = dict(
    task="tofu",
    data="D",
    forget_split="forget01",
    split="retain95",
    model="hub/m",
    family="hub/m",
    template="llama2",
    max_length=77,
    max_new_tokens=9,
    tokenizer="T",
    retrain="R",
)


@pytest.mark.parametrize(
    "made, flags, sets, passed, models",
    [
        ({}, "", ("tofu", "D", "forget01"), ("llama2", 77, 32, 9), "Rr"),
        ({}, "--max-new-tokens 9 --split forget01", ("tofu", "D", "forget01"), ("llama2", 77, 32, 9), "Rr"),
        ({}, "--max-new-tokens 5", ("tofu", "D", "forget01"), ("llama2", 77, 32, 5), "Rr"),
        ({}, "--split forget10", ("tofu", "D", "forget10"), ("llama2", 77, 32, 9), "r"),
        ({}, "--data E", ("tofu", "E", "forget01"), ("llama2", 77, 32, 9), "r"),
        ({}, "--template plain", ("tofu", "D", "forget01"), ("plain", 77, 32, 9), "Rr"),
        ({}, "--tokenizer U --max-length 99", ("tofu", "D", "forget01"), ("llama2", 99, 32, 9), "Rr"),
        (
            {"model": "new", "split": "full", "forget_split": "forget10"},
            "",
            ("tofu", "D", "forget05"),
            ("llama2", 77, 32, 9),
            "Rr",
        ),
        ({}, "--task toy", ("toy", None, "forget10"), ("auto", 500, 32, 64), "r"),
    ],
)
def test_a_run_is_evaluated_as_it_was_made_but_for_what_flags_say(
    made, flags, sets, passed, models, asked, tmp_path, capsys
):
    """Retrain too, as the model is, unless the forget set is another; a line says so."""
    make_run(tmp_path / "run", MADE | made)
    evaluated("--model run", flags)
    tokenizer = "run" if "toy" in flags else "U" if "U" in flags else "T"
    line = next(line for line in capsys.readouterr().out.splitlines() if "from the run" in line and "etrain" in line)
    flag = flags.split(" ")[0]
    told = {"Rr": "from the run: ", "r": f"not from the run: its Retrain, since {flag} is not the run's"}[models]
    assert line.startswith(told) and ("retrain=R" in line) == (models == "Rr")
    assert [call for call in asked if " on " not in call[0]] == [
        (name, f"tokenizer of {tokenizer} for torch.float32", sets, F32, *passed)
        for name in [{"R": "R", "r": "run"}[model] for model in models]
    ]


@pytest.mark.parametrize(
    "words, kept",
    [("", True), ("--max-new-tokens 5", True), ("--template plain", False), ("--max-length 9", False)],
)
def test_a_retrain_that_is_a_log_is_kept_while_answers_are_scored_as_there(words, kept, tmp_path):
    make_run(tmp_path / "run", MADE | {"retrain": "r.json", "task": "own", "data": OWN | {"retain": "/k.jsonl"}})
    given = evaluate.build_parser().parse_args(["--model", str(tmp_path / "run"), *words.split()])
    values, bar = flags.handed_on(given)
    assert ("retrain" in values, bar) == (kept, None if kept else words.split()[0].strip("-").replace("-", "_"))
    assert (values["forget_file"], values["retain_file"]) == ("f.jsonl", "/k.jsonl") and "data" not in values
    given.forget_file = "other.jsonl"
    assert flags.handed_on(given) == ({}, None)


def test_what_a_run_hands_on_is_said_in_a_line(asked, tmp_path, capsys):
    make_run(tmp_path / "run", MADE)
    evaluated("--model run --data D --template plain --retrain S --split forget10")
    assert capsys.readouterr().out.splitlines()[0] == (
        "from the run: task=tofu tokenizer=T max_length=77 max_new_tokens=9"
    )


# ------------------------------------------------------------------ questions


@pytest.fixture
def three(tmp_path, toy_tokenizer):
    """A run that unlearnt, started from one model and was compared with another: {name: what it answers}."""
    models_, answers = {}, {}
    for seed, name in enumerate(("original", "retrain", "run")):
        models_[name] = tiny("llama", seed, torch.float32, len(toy_tokenizer))
        models_[name].save_pretrained(tmp_path / name)
        toy_tokenizer.save_pretrained(tmp_path / name)
        lm = lm_of(models_[name], toy_tokenizer, torch.float32, "plain", max_new_tokens=4)
        for question in ("Who are you?", "Where is Lima?"):
            (text,) = lm.generate([lm.encode(question, "Me.")])
            answers[name, question] = text.strip() or "(nothing)"
    made = {"task": "toy", "method": "npo", "template": "plain", "max_length": 500, "max_new_tokens": 4}
    made |= {"model": str(tmp_path / "original"), "retrain": str(tmp_path / "retrain"), "split": "forget10"}
    made |= {"forget_split": "forget10", "data": None}
    save_settings(
        tmp_path / "run",
        {"format": folder.FORMAT, "flags": made, "original": None, "method": {"name": "NPO", "colour": "red"}},
    )
    return answers


def said(capsys, answers, names, *questions):
    """Whether the models `names`, {name on the screen: name of its folder}, answered these questions in turn."""
    told = capsys.readouterr()
    assert "left out" not in told.err
    blocks = told.out.removesuffix("\n\n").split("\n\n")
    width = max(map(len, names))
    return blocks == [
        "\n".join(
            [f"{'Q':>{width}s}  {q}", *(f"{name:>{width}s}  {answers[model, q]}" for name, model in names.items())]
        )
        for q in questions
    ]


ALL_THREE = {"Original": "original", "Retrain": "retrain", "NPO": "run"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_question_is_answered_by_original_retrain_and_the_run(three, tmp_path, capsys, monkeypatch):
    """A question, a line each of standard input, and of a terminal, where each model is loaded once."""
    run, loaded = str(tmp_path / "run"), []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name, *rest: loaded.append(name) or load(name, *rest))
    monkeypatch.chdir(tmp_path / "original")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert len(set(three.values())) > 3
    evaluate.main(["--model", run, "--ask", "Who are you?"])
    assert said(capsys, three, ALL_THREE, "Who are you?") and loaded == [str(tmp_path / n) for n in ALL_THREE.values()]
    for stream in (io.StringIO, Terminal):
        loaded.clear()
        monkeypatch.setattr("sys.stdin", stream("Where is Lima?\n\n Who are you? \n"))
        evaluate.main(["--model", run, "--ask", "-"])
        assert said(capsys, three, ALL_THREE, "Where is Lima?", "Who are you?") and len(loaded) == 3
    # any model; and the run's own lengths give way to flags
    evaluate.main(
        ["--model", str(tmp_path / "retrain"), "--template", "plain", "--max-new-tokens", "4", "--ask", "Who are you?"]
    )
    assert said(capsys, three, {"model": "retrain"}, "Who are you?")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_a_run_started_from_is_found_or_left_out(three, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    settings = folder.read(run, "run.json")
    original = {"out": str(tmp_path / "original")}

    def asked_of(flags=None, **changed):
        save_settings(run, settings | {"flags": settings["flags"] | (flags or {})} | changed)
        evaluate.main(["--model", str(run), "--ask", "Who are you?"])

    asked_of({"model": "tiny"}, original=original)
    assert said(capsys, three, ALL_THREE, "Who are you?")
    asked_of({"model": "tiny", "retrain": "r.json"})  # an older run, and a log
    assert said(capsys, three, {"NPO": "run"}, "Who are you?")
    asked_of(start={"method": "npo"}, start_method={"name": "NPO"}, original=original)
    assert said(capsys, three, {"before": "original", "Retrain": "retrain", "NPO": "run"}, "Who are you?")
    save_settings(run, settings)
    (tmp_path / "original" / "model.safetensors").unlink()
    evaluate.main(["--model", str(run), "--ask", "Who are you?"])
    told = capsys.readouterr()
    assert told.err.startswith("Original is left out: model folder") and told.err.count("\n") == 1
    assert [line.split()[0] for line in told.out.splitlines() if line] == ["Q", "Retrain", "NPO"]


def test_a_runs_log_is_reused_for_the_same_questions_only(asked, tmp_path, monkeypatch):
    flags = dict(
        task="toy",
        template="auto",
        max_length=500,
        too_long="refuse",
        max_new_tokens=3,
        dtype="float32",
        device="cpu",
        eval_batch_size=8,
        tokenizer=None,
    )
    sets, left = {name: [{"question": name}] for name in tofu.SETS}, a_log(seed=3)
    run, settings = make_run(tmp_path / "run", {}), {"format": folder.FORMAT, "flags": {}}
    (run / "metrics.log.json").write_text(json.dumps(left))

    def reused(sets=sets, **changed):
        return evaluate.log_of(SimpleNamespace(**flags | changed), sets, "run") == left

    assert not reused()  # the run does not say what it was asked
    save_settings(run, settings | {"asked": evaluate.questions_digest(SimpleNamespace(**flags), sets)})
    assert reused() and reused(eval_batch_size=2) and len(asked) == 1
    for changed in (
        dict(max_new_tokens=2),
        dict(template="llama2"),
        dict(max_length=400),
        dict(too_long="cut"),
        dict(dtype="float64"),
        dict(sets=sets | {"forget": [{"question": "another"}]}),
    ):
        assert not reused(**changed), changed
    with monkeypatch.context() as patch:  # another way to measure
        patch.setattr(evaluate, "code_digest", lambda path: path.name == "rouge.py")
        assert not reused()
    assert reused()
    (run / "metrics.log.json").unlink()
    assert not reused() and {call[0] for call in asked} == {"run"}


# ------------------------------------------------------------------ epochs


@pytest.mark.parametrize(
    "distances, kept, words",
    [
        (
            [3.0, 0.5, 0.25],
            [0.9, 0.75, 0.7],
            "95% of Original's ROUGE-L on retain: 1, distance to Retrain 3.000, ROUGE-L",
        ),
        (
            [3.0, 0.5, 0.5],
            [0.9, 0.76, 0.8],
            "ROUGE-L on retain: 2, distance to Retrain 0.500, ROUGE-L on retain 0.760; ",
        ),
        ([3.0, 0.5, 0.25], [0.9, 0.76, 0.5], "ROUGE-L on retain: 2, "),
        ([3.0, 0.5, 0.25], [0.5, 0.5, 0.5], "no epoch keeps 95% of Original's ROUGE-L on retain; the model"),
        ([3.0, None, 0.25], [0.9, 0.8, 0.8], "not known; it takes --retrain"),
    ],
)
def test_the_best_epoch_forgets_best_of_those_that_keep_enough(distances, kept, words):
    """Of what Original has, 0.8."""
    lines = [{"distance": d, "retain": {"rouge": r}} for d, r in zip(distances, kept, strict=True)]
    lines = [{"epoch": epoch, **line} for epoch, line in enumerate(lines, 1)]
    said = evaluate.best_epoch(BENCHMARKS["own"], lines, {"distance": 9.0, "retain": {"rouge": 0.8}})
    assert words in said and (said.endswith("the model saved is that of the last, 3") or "not known" in said)


# ------------------------------------------------------------------ logs


def test_published_llama2_logs_reproduce_the_papers_original_row(tofu_dir, asked):
    """Table 2, forget10: Original has FQ 0.00 and MU 0.62; our check against numbers made by others."""
    logs = Path(tofu_dir).absolute().parent / "tofu_logs"
    if not logs.is_dir():
        pytest.skip("no published logs beside TOFU_DIR")
    metrics = evaluated(f"--log {logs}/llama2-7b_full.json --retrain {logs}/llama2-7b_retain90.json")
    assert metrics["forget_quality"] < 1e-10 and metrics["model_utility"] == pytest.approx(0.62, abs=0.005)
    assert metrics["retain"] == pytest.approx({"probability": 0.99, "rouge": 0.98, "truth_ratio": 0.48}, abs=0.01)
    # forget10's 400 rows are compared on the 300 of the log; forget05's rows have the same numbers, and are others
    rows = tofu.load_rows(tofu_dir, "forget10_perturbed")
    forget, sets = {"answer": [row["answer"] for row in rows]}, {"forget": rows}
    reference = tofu.read_retrained(logs / "llama2-7b_retain90.json", sets)
    assert [list(part) for part in tofu.shared_rows(forget, reference)] == [list(range(300))] * 2
    with pytest.raises(InputError, match="400 forget examples with 200"):
        tofu.read_retrained(logs / "llama2-7b_retain95.json", sets)


def test_the_screen_says_on_how_many_rows_models_were_compared():
    log = a_log()
    shorter = {"truth_ratio": [1.0, 2.0], "row": [0, 2], "answer": ["a", "c"]}
    log["forget"]["answer"] = ["a", "b", "c"]
    assert "the 2 of 3 forget examples" in tofu.notes(tofu.summarize(log, shorter), log)[0]
    assert tofu.notes(tofu.summarize(log, log["forget"]), log) == []
    assert "--retrain" in tofu.notes(tofu.summarize(log), log)[0]
