"""Folders of runs that are damaged, or do not go together: what compare.py and results/ say."""

import json

import claims
import figures
import paths
import pytest
from conftest import refused
from fixtures_runs import UNSEEN, a_run, change, flags_of, on_the_way, read, write
from refusals import rows_of

import compare
from machinery import folder as run_folder

MAINS = {"compare": compare.main, "claims": claims.main, "paths": paths.main, "figures": figures.main}
# command | files that it reads
READ_BY = rows_of("""
compare table  | run.json metrics.json reference.log.json
compare table --columns all  | run.json metrics.json reference.log.json
compare answers  | run.json metrics.json metrics.log.json reference.log.json
compare figure epochs  | run.json metrics.json epochs.jsonl
compare figure tradeoff  | run.json metrics.json
claims  | run.json metrics.json log.jsonl epochs.jsonl
paths  | run.json metrics.json log.jsonl reference.log.json
figures halves  | run.json metrics.json metrics.log.json reference.log.json
figures mink  | run.json metrics.json metrics.log.json reference.log.json
figures weights  | run.json metrics.json log.jsonl
figures boxes  | run.json metrics.json log.jsonl
figures relearn  | run.json metrics.json epochs.jsonl
""")
COMMANDS = [command for command, _ in READ_BY]
WRITTEN_BY = {
    "run.json": "train.py",
    "log.jsonl": "train.py",
    "epochs.jsonl": "--eval epoch",
    "metrics.json": "--eval end",
    "metrics.log.json": "--eval end",
    "reference.log.json": "--eval end",
}


def run_of(command, *folders):
    """(main, its arguments) of a command of READ_BY."""
    script, *words = command.split()
    return MAINS[script], [*words, *folders]


def ended(run):
    """The run, with the digests of its files in run.json, as train.py leaves them."""
    change(run, "run.json", sums=run_folder.sums_of(run))
    return run


def two_runs(folder):
    return ended(a_run(folder / "good")), ended(a_run(folder / "bad", "simnpo"))


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("damage", [None, "", "{", "[1]"])
@pytest.mark.parametrize("command, file", [(command, file) for command, files in READ_BY for file in files.split()])
def test_a_run_that_lacks_what_is_asked_for(command, file, damage, tmp_path, nothing_written, capsys):
    good, bad = two_runs(tmp_path)
    (bad / file).unlink() if damage is None else (bad / file).write_text(damage)
    if file == "run.json" and damage is None:  # then it is no run, and passed over
        (good / file).unlink()
        return refused_after_passing_over(command, [good, bad], capsys)
    refused(*run_of(command, good, bad), capsys, bad, file, WRITTEN_BY[file])


CHANGED = {
    "metrics.json": [{"forget_quality": 0.9}, {"reference": []}, {"note": "mine"}],
    "run.json": [{"flags": []}, {"start": {"task": "toy"}}, {"sums": {}}, {"note": "mine"}],
    "log.jsonl": [{"epoch": 7}, {"met": {}}, {"retain": 0.0}],
    "epochs.jsonl": [{"distance": "x"}, {"forget_quality": 0.9}],
    "metrics.log.json": [{"forget": {}}],
    "reference.log.json": [{"Retrain": {"truth_ratio": [1.0] * 12}}, {"Original": {}}],
}


@pytest.mark.parametrize("command, files", READ_BY)
def test_any_change_of_a_runs_files_is_noticed(command, files, tmp_path, nothing_written, capsys):
    good, bad = two_runs(tmp_path)
    for file in files.split():
        whole = (bad / file).read_bytes()
        for fields in CHANGED[file]:
            lines = [json.dumps(json.loads(line) | fields) for line in whole.decode().splitlines()]
            (bad / file).write_text("\n".join(lines))
            refused(*run_of(command, good, bad), capsys, bad, file, "damaged, or was changed after the run")
        (bad / file).write_bytes(whole[:-1])
        if file != "run.json":  # its digest is of its content
            refused(*run_of(command, good, bad), capsys, bad, file, "damaged, or was changed after the run")
        (bad / file).write_bytes(whole)


@pytest.mark.parametrize("cut", ["{", '{"step": 1, "ep', "NaN,", "[" * 100_000])
def test_a_run_that_was_killed_before_it_had_digests(cut, tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "run")
    with open(run / "log.jsonl", "a") as file:
        file.write(cut)
    refused(*run_of("figures weights", run), capsys, run, "log.jsonl", "train.py")


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("format_", [None, 4, "5", 6])
def test_a_run_of_another_version(format_, sealed, tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    settings = read(run, "run.json") | {"format": format_}
    (run / "run.json").write_text(json.dumps(run_folder.sealed(settings) if sealed else settings))
    refused(compare.main, ["table", run], capsys, run, "run.json", "another version")


def refused_after_passing_over(command, folders, capsys):
    main, words = run_of(command, *map(str, folders))
    with pytest.raises(SystemExit) as stop:
        main(words)
    *passed, error = capsys.readouterr().err.splitlines()
    assert error == f"{command.split()[0]}.py: none of these folders is a run; give folders that train.py made"
    assert stop.value.code == 2
    assert passed == [f"passed over {folder}: it has no run.json, so it is no run" for folder in folders]


def test_a_folder_that_is_no_run_is_passed_over_and_said_so(tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    compare.main(["table", str(tmp_path / "cache"), str(a_run(tmp_path / "a"))])
    said = capsys.readouterr()
    assert said.err == f"passed over {tmp_path / 'cache'}: it has no run.json, so it is no run\n"
    assert "| NPO | 1 |" in said.out


# ------------------------------------------------------------------ runs that do not go together


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("other", [{"task": "tofu"}, {"forget_split": "forget05"}, {"family": "some/model"}])
def test_runs_that_do_not_compare(command, other, tmp_path, nothing_written, capsys):
    one, two = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo", **other)
    refused(*run_of(command, one, two), capsys, two, *other.values(), "one task, split and model")


@pytest.mark.parametrize("command", ["claims", "figures halves", "compare figure epochs", "compare figure tradeoff"])
def test_a_run_without_a_retrained_reference(command, tmp_path, nothing_written, capsys):
    good, bad = a_run(tmp_path / "good"), a_run(tmp_path / "bad", seed=1)
    change(bad, "metrics.json", forget_quality=None)
    write(bad, "epochs.jsonl", *(line | {"forget_quality": None} for line in read(bad, "epochs.jsonl")))
    write(bad, "reference.log.json", {"Original": {"truth_ratio": [1.0]}})
    refused(*run_of(command, good, bad), capsys, bad, "--retrain")


def test_runs_that_do_not_belong_together(tmp_path, nothing_written, capsys):
    npo, simnpo = a_run(tmp_path / "npo"), a_run(tmp_path / "simnpo", "simnpo")
    other = a_run(tmp_path / "other", beta=3.0)
    again = a_run(tmp_path / "again", "finetune", start=flags_of(other), model=str(other), subset="random:0.2")
    refused(claims.main, [npo, simnpo, again], capsys, again, npo)
    refused(compare.main, ["table", npo, f"{npo}/"], capsys, npo, "twice")


def test_figures_and_claims_of_the_wrong_runs(tmp_path, nothing_written, capsys):
    one, two, three = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo"), a_run(tmp_path / "c")
    refused(figures.main, ["relearn", one, two, three], capsys, one, "--method finetune")
    refused(claims.main, [one], capsys, "--method simnpo")
    refused(claims.main, [one, two, three], capsys, three, "seed 0")


def without_logp(line):
    return line | {"met": {key: line["met"][key] for key in ("row", "weight", "length")}}


# what became of a run of NPO: files, and what is said of it
TWICE = {"truth_ratio": [1.0], "loss": [1.0]}
WRONG_PATHS = {
    "without losses": ({"reference.log.json": [{"Retrain": {"truth_ratio": [1.0] * 10}}]}, ["no Retrain's losses"]),
    "without Retrain": ({"reference.log.json": [{"Original": TWICE}]}, ["no Retrain's losses"]),
    "of other answers": ({"reference.log.json": [{"Retrain": TWICE}]}, ["has 1 forget answers"]),
    "without log π": ({"log.jsonl": without_logp}, ["no log π", "leave NPO out"]),
    "of RMU": (
        {"log.jsonl": without_logp, "run.json": lambda run: run | {"method": {"name": "RMU", "colour": "red"}}},
        ["no log π", "leave RMU out"],
    ),
    "of KL": (
        {"run.json": lambda run: run | {"flags": run["flags"] | {"retain": "kl"}}},
        ["no retain set", "--retain nll"],
    ),
}


@pytest.fixture(params=[(), ("--out", "paths.png")], ids=["table", "figure"])
def paths_refused(request, tmp_path, nothing_written, capsys):
    """Check that results/paths.py refuses a run, beside a good one of SimNPO or alone."""
    good = on_the_way(tmp_path / "good", "simnpo")

    def check(run, *says, alone=False, more=()):
        refused(paths.main, [*([] if alone else [good]), run, *request.param, *more], capsys, run, *says)

    return check


@pytest.mark.parametrize("name", WRONG_PATHS)
def test_paths_of_a_run_that_lacks_what_they_need(name, tmp_path, paths_refused):
    run = on_the_way(tmp_path / "run", "npo")
    files, says = WRONG_PATHS[name]
    for file, content in files.items():
        lines = read(run, file) if file.endswith("l") else [read(run, file)]
        write(run, file, *(content if isinstance(content, list) else map(content, lines)))
    paths_refused(run, *says)


def test_paths_of_runs_that_do_not_go_together(tmp_path, paths_refused):
    twice = on_the_way(tmp_path / "twice", "simnpo")
    paths_refused(twice, "a second one of seed 0; give one")
    for run in (tmp_path / "good", twice):
        change(run, "run.json", original={"method": "finetune", "seed": 3, "family": "tiny"})
    paths_refused(twice, "a second one of seed 0 from an Original of seed 3; give one")
    change(tmp_path / "good", "run.json", original=None)
    refusing = on_the_way(tmp_path / "idk", "idk", short=[1, 2], long=[1, 2], retain=[0.1, 0.2])
    paths_refused(refusing, "no log π", "leave IDK out")
    half = on_the_way(tmp_path / "half", "npo")
    write(half, "log.jsonl", *read(half, "log.jsonl")[:-1])
    paths_refused(half, "whole epochs")
    some = on_the_way(tmp_path / "unseen", "npo", unseen=UNSEEN["npo"])
    paths_refused(some, "0.5 of it never learnt", "one task, split and model")
    change(some, "run.json", flags=flags_of(some) | {"never_learnt": 1.0})
    paths_refused(some, "lower --never-learnt", alone=True)


def test_paths_of_more_that_was_never_learnt_than_there_is(tmp_path, paths_refused):
    whole, half = on_the_way(tmp_path / "whole", "npo"), on_the_way(tmp_path / "half", "npo", unseen=UNSEEN["npo"])
    paths_refused(whole, "of 10 forget rows", "lower --never-learnt", alone=True, more=["--never-learnt", "9"])
    paths_refused(half, "leave --never-learnt out", alone=True, more=["--never-learnt", "10"])


# ------------------------------------------------------------------ answers, and pictures


def test_answers_that_were_not_generated(tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    log = read(run, "metrics.log.json")
    del log["forget"]["generated"]
    write(run, "metrics.log.json", log)
    refused(compare.main, ["answers", run], capsys, run, "generated", "--eval end")


@pytest.mark.parametrize("command", ["compare figure tradeoff", "figures weights", "paths"])
def test_an_existing_picture_is_left_alone(command, tmp_path, capsys):
    run, picture = a_run(tmp_path / "a"), tmp_path / "f.png"
    picture.write_text("mine")
    refused(*run_of(command, run, "--out", picture), capsys, "--overwrite")
    assert picture.read_text() == "mine"


@pytest.mark.parametrize("command", ["compare figure epochs", "figures weights", "paths"])
@pytest.mark.parametrize(
    "out, says", [("picture.pdf", ".png"), ("absent/picture.png", "absent"), ("", "--out is empty")]
)
def test_a_picture_that_cannot_be_made(command, out, says, nothing_written, capsys):
    refused(*run_of(command, "absent", "--out", out), capsys, says)
