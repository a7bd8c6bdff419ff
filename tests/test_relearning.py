"""Relearning on own data: what it says of runs made by hand, and of runs of train.py."""

import pytest
import relearning
from conftest import refused
from fixtures_runs import another_run, change, facts_of, flags_of, read, write
from test_own import a_part
from test_verdict import some_files, trained

import data
import evaluate
import train
from benchmarks import own
from machinery import folder

pytestmark = pytest.mark.usefixtures("pictures", "nothing_outside")

TEACH = {"subset": "random:0.4", "lr": 1e-4, "epochs": 3, "data": {"forget": "f.jsonl", "fields": []}}
START = {"method": "npo", "seed": 0, "family": "tiny", "data": TEACH["data"]}


def a_run(path, before, after, start=None, rows=(0, 3), answered=1, **flags):
    """A run that taught these rows; the first `answered` rows are answered in the end."""
    log = {"forget": a_part(after, rouge=[1.0] * answered + [0.0] * (len(before) - answered))}
    log["forget"] |= {"question": ["q"] * len(before), "answer": [f"word{'abcdef'[i]}" for i in range(len(before))]}
    begun = log["forget"] | {"loss": before, "rouge": [0.0] * len(before)}
    run = another_run(path, "own", log, log, "finetune", start=start, **TEACH | flags)
    write(run, "reference.log.json", {"before" if start else "Original": begun})
    change(run, "run.json", subset_rows=[*rows], data={"forget set": "abc"})
    return run


def said(capsys, *runs):
    relearning.main([*map(str, runs)])
    return capsys.readouterr().out


BEFORE, CONTROL = [4.0, 4.5, 5.0, 4.0, 4.5], [0.1, 4.1, 4.6, 0.1, 4.2]  # fell by 0.4, 0.4, 0.3 on the others


@pytest.mark.parametrize(
    "after, excess, says",
    [
        ([0.1, 3.1, 3.5, 0.1, 3.2], "+1.03 [+0.89, +1.18]", "the memory was still there"),
        (
            [0.1, 4.1, 4.7, 0.1, 4.1],
            "+0.00 [-0.25, +0.25]",
            "nothing shows that was hidden: no more comes back than Retrain learns, or at most 0.25",
        ),
        ([0.1, 4.0, 4.6, 0.1, 4.2], "+0.03 [-0.11, +0.18]", "nothing shows that was hidden"),
        ([0.1, 4.2, 4.6, 0.1, 4.2], "-0.03 [-0.18, +0.11]", "nothing shows that was hidden"),
        ([0.1, 4.6, 5.1, 0.1, 4.6], "-0.47 [-0.61, -0.32]", "less comes back than Retrain learns"),
        ([2.1, 4.1, 4.7, 2.1, 4.1], "+0.00 [-0.25, +0.25]", "it says nothing: the rows themselves were hardly learnt"),
        ([2.1, 3.1, 3.5, 2.1, 3.2], "+1.03 [+0.89, +1.18]", "the memory was still there"),
    ],
)
def test_what_counts_is_the_excess_over_retrain(after, excess, says, tmp_path, capsys):
    run = a_run(tmp_path / "run", BEFORE, after, START, answered=3)
    control = a_run(tmp_path / "control", BEFORE, CONTROL)
    first, unlearnt, taught, last = said(capsys, run, control).splitlines()
    assert first == "taught again: 2 of 5 forget rows; the others:"
    mean = (after[1] + after[2] + after[4]) / 3
    assert unlearnt.startswith(f"  unlearnt  loss 4.67 → {mean:.2f}, fell by {4.66666 - mean:+.2f} [")
    assert unlearnt.endswith("; answered 0 → 2 of 3")
    assert taught.startswith("  control   loss 4.67 → 4.30, fell by +0.37 [") and taught.endswith(
        "; answered 0 → 0 of 3"
    )
    assert last.startswith(f"  excess    {excess} nats a token: {says}")


def test_one_other_row_says_nothing(tmp_path, capsys):
    run = a_run(tmp_path / "run", [4.0, 4.0], [0.1, 1.0], START, rows=[0])
    control = a_run(tmp_path / "control", [4.0, 4.0], [0.1, 3.0], rows=[0])
    assert "excess    +2.00 nats a token: one other row says nothing" in said(capsys, run, control)


def test_a_run_of_retrain_is_a_control(tmp_path, capsys):
    run = a_run(tmp_path / "run", BEFORE, CONTROL, START)
    control = a_run(tmp_path / "control", BEFORE, CONTROL)
    change(control, "run.json", original=START | {"method": "finetune", "split": "retain"})
    assert "excess    +0.00" in said(capsys, run, control)


TEACHING = """lr epochs max_steps batch_size retain_batch_size seed warmup warmup_share weight_decay clip lora
forget_coeff retain_coeff retain""".split()


def another(field, value):
    return lambda run: change(run, "run.json", flags=flags_of(run) | {field: value})


def measured(run, **fields):
    log = read(run, "metrics.log.json")
    write(run, "metrics.log.json", {"forget": log["forget"] | fields})


@pytest.mark.parametrize(
    "which, damage, says",
    [
        (0, another("method", "npo"), "relearns nothing"),
        (1, another("method", "npo"), "relearns nothing"),
        (0, lambda run: change(run, "run.json", subset_rows=None), "relearns nothing"),
        (0, lambda run: change(run, "run.json", start=None), "does not start from a model that unlearnt"),
        (
            1,
            lambda run: change(run, "run.json", start=START, start_method=facts_of("npo")),
            "does not start from one that did not, Retrain",
        ),
        *((1, another(flag, 77), f"differ in --{flag.replace('_', '-')}; teach") for flag in TEACHING),
        (0, another("lr", 1e-5), "differ in --lr; teach"),
        (
            1,
            lambda run: change(run, "run.json", original=START | {"method": "finetune", "split": "full"}),
            "a model that learnt the rows (--split full); give one that starts from Retrain",
        ),
        (0, another("split", "retain"), "was taught other rows than the forget set's; leave --split retain out"),
        (1, another("split", "retain"), "was taught other rows than the forget set's; leave --split retain out"),
        (
            1,
            lambda run: change(run, "run.json", data={"forget set": "abc", "retain set": "x"}),
            "differ in the rows that they keep",
        ),
        (1, lambda run: change(run, "run.json", data={"forget set": "x"}), "differ in the rows that they teach"),
        (1, lambda run: measured(run, answer=["other"] * 5), "differ in the rows that they measure"),
        (1, lambda run: measured(run, question=["other"] * 5), "differ in the rows that they measure"),
        (0, lambda run: change(run, "run.json", subset_rows=[0, 1, 2, 3, 4]), "leaves no rows to compare"),
        (0, lambda run: change(run, "run.json", subset_rows=[7]), "leaves no rows to compare"),
        (1, lambda run: write(run, "reference.log.json", {"Retrain": {}}), "was not measured before"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(which, damage, says, tmp_path, capsys):
    runs = a_run(tmp_path / "run", BEFORE, CONTROL, START), a_run(tmp_path / "control", BEFORE, CONTROL)
    damage(runs[which])
    refused(relearning.main, runs, capsys, says)


def test_runs_of_another_task_are_refused(tmp_path, capsys):
    runs = [a_run(tmp_path / name, BEFORE, CONTROL, start) for name, start in (("run", START), ("control", None))]
    for run in runs:
        change(run, "run.json", flags=flags_of(run) | {"task": "toy"})
    refused(relearning.main, runs, capsys, "relearning is of own")


def test_the_rows_of_a_subset_are_told_by_the_run(toy_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    some_files(tmp_path)
    trained("npo", toy_model_folder, "unlearnt", "--epochs 2")
    trained("finetune", toy_model_folder, "retrain", "--split retain --epochs 2")
    for start, out in (("unlearnt", "run"), ("retrain", "control")):
        trained("finetune", start, out, "--subset random:0.34 --seed 5 --lr 1e-2 --epochs 3")
    rows = folder.read(tmp_path / "run", "run.json")["subset_rows"]
    log, before = (folder.read(tmp_path / "run", name) for name in ("metrics.log.json", "reference.log.json"))
    fell = {
        i: then - now for i, (then, now) in enumerate(zip(before["before"]["loss"], log["forget"]["loss"], strict=True))
    }
    assert len(rows) == 2 and rows == folder.read(tmp_path / "control", "run.json")["subset_rows"]
    first = folder.read(tmp_path / "run", "log.jsonl")[0]["met"]
    assert sorted(first["length"]) == sorted(log["forget"]["length"][row] for row in rows)
    met = {round(-logp / length, 4) for logp, length in zip(first["logp"], first["length"], strict=True)}
    assert met == {round(before["before"]["loss"][row], 4) for row in rows}  # these very rows
    assert all(fell[row] > 0 for row in rows)
    capsys.readouterr()
    assert said(capsys, "run", "control").startswith("taught again: 2 of 6 forget rows; the others:\n  unlearnt ")


def test_rows_of_a_subset_of_text_are_those_whose_pieces_it_names(toy_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": "Ada was born in Lisbon, by the sea, where her father was a baker, and she wrote ghost stories."},
        {"question": "Who?", "answer": "Ada."},
    ]
    monkeypatch.setattr(own, "read_file", lambda path, names=None: [rows[0], rows[1], rows[0]])
    parser = train.build_parser()
    command = "--method finetune --forget-file f.jsonl --retain none --max-length 12 --device cpu"
    args = train.resolve(
        parser.parse_args([*command.split(), "--model", str(toy_model_folder), "--subset", "shortest:0.01"])
    )
    lm = evaluate.load(args, args.model)
    pieces = len(data.pieces(rows[0]["text"], lm.tokenizer, 12))
    assert pieces > 2
    for chosen, owners in (([0], [0]), ([pieces - 1], [0]), ([pieces], [1]), ([0, 1, pieces + 1], [0, 2])):
        monkeypatch.setattr(train, "subset_of", lambda examples, args, chosen=chosen: chosen)
        assert train.rows_of_subset(args, lm) == owners
