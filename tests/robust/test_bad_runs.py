"""Folders of runs that are damaged, or do not go together: what compare.py and results/ say."""

import json

import pytest
from refusals import refused, rows_of

import compare


COMPARISONS = ["table"], ["answers"], ["claims"], ["paths"], *(["figure", kind] for kind in compare.FIGURES)


@pytest.mark.parametrize("command", COMPARISONS, ids=" ".join)
@pytest.mark.parametrize("other", [{"task": "tofu"}, {"forget_split": "forget05"}, {"family": "some/model"}])
def test_runs_that_do_not_compare(command, other, tmp_path, nothing_written, capsys):
    runs = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo", **other)
    refused(compare.main, [*command, *runs], capsys, runs[1], *other.values(), "one task, split and model")


ALWAYS = ["metrics.json", "--eval end"], ["run.json", "train.py"]
NEEDED = [[" ".join(command), *cells] for command in COMPARISONS for cells in ALWAYS] + rows_of("""
figure halves  | metrics.log.json  | --eval end
figure halves  | reference.log.json  | --eval end
figure weights  | path.jsonl  | train.py
figure boxes  | path.jsonl  | train.py
figure epochs  | epochs.jsonl  | --eval epoch
figure relearn  | epochs.jsonl  | --eval epoch
answers  | metrics.log.json  | --eval end
claims  | path.jsonl  | train.py
claims  | epochs.jsonl  | --eval epoch
paths  | path.jsonl  | train.py
paths  | reference.log.json  | --eval end
table  | reference.log.json  | --eval end
""")


@pytest.mark.parametrize("command, file, mend", NEEDED)
@pytest.mark.parametrize("damage", [None, "", "{", "[1]"])
def test_a_run_that_lacks_what_is_asked_for(command, file, mend, damage, tmp_path, nothing_written, capsys):
    good, bad = a_run(tmp_path / "good"), a_run(tmp_path / "bad", "simnpo")
    (bad / file).unlink() if damage is None else (bad / file).write_text(damage)
    if file == "run.json" and damage is None:  # then it is no run, and passed over
        (good / file).unlink()
        return refused_after_passing_over(command.split(), [good, bad], capsys)
    refused(compare.main, [*command.split(), good, bad], capsys, bad, file, mend if damage != "[1]" else "")


@pytest.mark.parametrize(
    "command", [["claims"], ["figure", "halves"], ["figure", "epochs"], ["figure", "tradeoff"]], ids=" ".join
)
def test_a_run_without_a_retrained_reference(command, tmp_path, nothing_written, capsys):
    good, bad = a_run(tmp_path / "good"), a_run(tmp_path / "bad", seed=1)
    for name in ("metrics.json", "epochs.jsonl"):
        text = (bad / name).read_text().splitlines()
        (bad / name).write_text("\n".join(json.dumps(json.loads(line) | {"forget_quality": None}) for line in text))
    (bad / "reference.log.json").write_text(json.dumps({"Original": {"truth_ratio": [1.0]}}))
    refused(compare.main, [*command, good, bad], capsys, bad, "--retrain")


READ_BY = rows_of("""
claims  | run.json metrics.json path.jsonl epochs.jsonl
table  | run.json metrics.json reference.log.json
paths  | run.json metrics.json path.jsonl reference.log.json
answers  | run.json metrics.json metrics.log.json reference.log.json
figure epochs  | run.json metrics.json epochs.jsonl
figure halves  | run.json metrics.json metrics.log.json reference.log.json
""")
WRONG = rows_of("""
metrics.json  | {"forget_quality": "x"}
metrics.json  | {"forget_quality": [1]}
metrics.json  | {"model_utility": null}
metrics.json  | {"forget_quality_halves": "x"}
metrics.json  | {"forget_quality_halves": {"shortest": 1}}
metrics.json  | {"repetition": "x"}
metrics.json  | {"reference": []}
metrics.json  | {"reference": {"Other": {}}}
metrics.json  | {"retain": []}
metrics.json  | {"retain": {}}
metrics.json  | {"forget_examples": "40"}
metrics.json  | {"peak_memory_bytes": "x"}
metrics.json  | {"distance": -1}
metrics.json  | {"judged": "x"}
run.json  | {"flags": []}
run.json  | {"flags": {"task": null}}
run.json  | {"start": {"task": "toy"}}
run.json  | {"flags": {"beta": "x"}}
run.json  | {"flags": {"gamma": -1}}
run.json  | {"flags": {"subset": true}}
run.json  | {"flags": {"never_learnt": "half"}}
run.json  | {"flags": {"max_length": "x"}}
path.jsonl  | {"weight": ["x"]}
path.jsonl  | {"weight": []}
path.jsonl  | {"weight": null}
path.jsonl  | {"length": [1]}
path.jsonl  | {"epoch": "x"}
path.jsonl  | {"epoch": 7}
path.jsonl  | {"logp": [1.0]}
path.jsonl  | {"logp": ["x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x"]}
path.jsonl  | {"retain": -1}
epochs.jsonl  | {"distance": "x"}
epochs.jsonl  | {"forget_quality": "x"}
epochs.jsonl  | {"model_utility": null}
metrics.log.json  | {"forget": {}}
metrics.log.json  | {"forget": {"loss": "x"}}
reference.log.json  | {"Original": {"truth_ratio": [1.0], "generated": [1]}}
reference.log.json  | {"Retrain": []}
reference.log.json  | {"Retrain": {}}
reference.log.json  | {"Retrain": {"truth_ratio": ["x"]}}
""")


@pytest.mark.parametrize("file, spoil", WRONG)
def test_values_of_the_wrong_kind(file, spoil, tmp_path, nothing_written, capsys):
    good, bad, spoil = a_run(tmp_path / "good"), a_run(tmp_path / "bad", "simnpo"), json.loads(spoil)
    if isinstance(spoil.get("flags"), dict):
        spoil["flags"] = flags_with(**spoil["flags"])
    lines = (bad / file).read_text().splitlines()
    (bad / file).write_text("\n".join(json.dumps(json.loads(line) | spoil) for line in lines[:3]))
    for command, files in READ_BY:
        if file in files.split():
            refused(compare.main, [*command.split(), good, bad], capsys, bad, file)


def refused_after_passing_over(command, folders, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([*command, *map(str, folders)])
    *passed, error = capsys.readouterr().err.splitlines()
    assert error == "compare.py: none of these folders is a run; give folders that train.py made"
    assert stop.value.code == 2
    assert passed == [f"passed over {folder}: it has no run.json, so it is no run" for folder in folders]


def test_a_folder_that_is_no_run_is_passed_over_and_said_so(tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    compare.main(["table", str(tmp_path / "cache"), str(a_run(tmp_path / "a"))])
    said = capsys.readouterr()
    assert said.err == f"passed over {tmp_path / 'cache'}: it has no run.json, so it is no run\n"
    assert "| NPO | 1 |" in said.out


@pytest.mark.parametrize("format_", [None, 2, "3", 4])
def test_a_run_of_another_version(format_, tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"format": format_}))
    refused(compare.main, ["table", run], capsys, run, "run.json", "another version")


def test_runs_that_do_not_belong_together(tmp_path, nothing_written, capsys):
    npo, simnpo = a_run(tmp_path / "npo"), a_run(tmp_path / "simnpo", "simnpo")
    other = a_run(tmp_path / "other", beta=3.0)
    again = a_run(tmp_path / "again", "finetune", start=flags_of(other), model=str(other), subset="random:0.2")
    refused(compare.main, ["claims", npo, simnpo, again], capsys, again, npo)
    refused(compare.main, ["table", npo, f"{npo}/"], capsys, npo, "twice")


def test_figures_and_claims_of_the_wrong_runs(tmp_path, nothing_written, capsys):
    runs = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo"), a_run(tmp_path / "c")
    refused(compare.main, ["figure", "relearn", *runs], capsys, runs[0], "--method finetune")
    refused(compare.main, ["claims", runs[0]], capsys, "--method simnpo")
    refused(compare.main, ["claims", *runs], capsys, runs[2], "seed 0")


@pytest.mark.parametrize("command", [["paths"], ["figure", "paths"]], ids=" ".join)
def test_paths_of_the_wrong_runs(command, tmp_path, nothing_written, capsys):
    good = on_the_way(tmp_path / "good", "simnpo")

    def spoiled(name, file, change):
        """A run of NPO whose lines of a file became what `change` makes of them."""
        run = on_the_way(tmp_path / name, "npo")
        lines = [json.dumps(change(json.loads(line))) for line in (run / file).read_text().splitlines()]
        (run / file).write_text("\n".join(lines))
        return run

    def without(name):
        return lambda line: {key: line[key] for key in line if key != name}

    def cut(line):
        return line | {key: line[key][:5] for key in ("weight", "length", "logp") if line["epoch"] == 3}

    def with_text(run, file, old, new):
        (run / file).write_text((run / file).read_text().replace(old, new))
        return run

    lossless, short = {"Retrain": {"truth_ratio": [1.0] * 10}}, {"Retrain": {"truth_ratio": [1.0], "loss": [1.0]}}
    some = on_the_way(tmp_path / "unseen", "npo", unseen=UNSEEN["npo"])
    for run, *says in (
        (on_the_way(tmp_path / "twice", "simnpo"), "a second one of seed 0"),
        (
            on_the_way(tmp_path / "idk", "idk", short=[1, 2], long=[1, 2], retain=[0.1, 0.2]),
            "no log π",
            "leave IDK out",
        ),
        (spoiled("broken", "path.jsonl", without("logp")), "no log π", "leave NPO out"),
        (
            with_text(spoiled("rmu", "path.jsonl", without("logp")), "run.json", '"npo"', '"rmu"'),
            "no log π",
            "leave RMU out",
        ),
        (spoiled("sampleless", "path.jsonl", without("retain")), "no retain set"),
        (spoiled("lossless", "reference.log.json", lambda log: lossless), "no Retrain's losses"),
        (spoiled("alone", "reference.log.json", lambda log: {"Original": log["Retrain"]}), "no Retrain's losses"),
        (spoiled("other", "reference.log.json", lambda log: short), "has 1 forget answers"),
        (spoiled("half", "path.jsonl", cut), "whole epochs"),
        (some, "0.5 of it never learnt", "one task, split and model"),
    ):
        refused(compare.main, [*command, good, run], capsys, run, *says)
    with_text(some, "run.json", '"never_learnt": 0.5', '"never_learnt": 1.0')
    refused(compare.main, [*command, some], capsys, some, "lower --never-learnt")


def test_answers_that_were_not_generated(tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    log = json.loads((run / "metrics.log.json").read_text())
    del log["forget"]["generated"]
    (run / "metrics.log.json").write_text(json.dumps(log))
    refused(compare.main, ["answers", run], capsys, run, "generated", "--eval end")


def test_an_existing_picture_is_left_alone(tmp_path, capsys):
    run, picture = a_run(tmp_path / "a"), tmp_path / "f.png"
    picture.write_text("mine")
    refused(compare.main, ["figure", "tradeoff", run, "--out", picture], capsys, "--overwrite")
    assert picture.read_text() == "mine"
