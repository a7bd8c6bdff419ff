"""What a run's folder survives, and what it refuses; the short form of faults.py."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch
from conftest import refused
from fixtures_runs import a_run, flags_of
from torch.distributed import checkpoint

import compare
import train
from machinery import folder
from machinery import run as runs
from machinery.inputs import InputError, digest

SETTINGS = train.resolve(train.build_parser().parse_args(["--method", "npo", "--out", "x"]))


@pytest.fixture
def settings():
    """What run.json says at first, of a run of NPO on the toy."""
    return train.settings_of(SETTINGS, "tiny")


# ------------------------------------------------------------------ what may differ on --resume


def test_only_what_changes_no_number_may_differ_on_resume(settings, tmp_path):
    runs.write_settings(tmp_path, settings)
    free = set()
    for flag in settings["flags"]:
        try:
            runs.check_same_run(tmp_path, settings | {"flags": settings["flags"] | {flag: "other"}})
            free.add(flag)
        except InputError as error:
            assert f" had --{flag.replace('_', '-')} {settings['flags'][flag]}, not other" in str(error)
    assert free == {"out", "retrain", "micro_batch_size", "eval_batch_size", "grad_checkpointing", "save_every"}
    assert settings["flags"].keys() == vars(SETTINGS).keys() - {"resume", "overwrite", "given", "recipe"}


def test_a_digest_is_of_all_of_a_content_and_of_nothing_else(settings):
    long = "x" * 10**5
    assert len({digest(content) for content in (long, long + "y", [long], {"a": 1}, {"a": 2})}) == 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    root = Path(train.__file__).parent
    assert settings["code"] == {name: runs.code_digest(root / name) for name in settings["code"]}


def test_the_code_that_decides_numbers_is_what_a_run_computes_with(settings):
    """The method and all that measures; not how runs are compared, or their folders written."""
    method = {"losses.py", "methods.py", "data.py", "train.py", "baselines.py", "evaluate.py"}
    measuring = {f"benchmarks/{path.name}" for path in Path(train.__file__).with_name("benchmarks").glob("*.py")}
    assert len(measuring) > 9 and settings["code"].keys() == method | measuring


def test_what_changed_since_is_refused_by_name_and_a_finished_run_says_so(
    toy_model_folder, tmp_path, monkeypatch, capsys
):
    run, forget = tmp_path / "run", tmp_path / "forget.jsonl"
    forget.write_text('{"question": "Who?", "answer": "I."}\n')
    command = ["--method", "simnpo", "--model", toy_model_folder, "--forget-file", forget, "--retain-file", forget]
    command = [*map(str, command), *"--eval none --epochs 1 --out".split(), str(run)]
    with monkeypatch.context() as patch:
        patch.setattr(compare, "draw_run", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(command)
    before = (run / "run.json").read_text()

    # code and libraries
    for what, name, says in (
        ("code", "losses.py", "commit"),
        ("versions", "torch", "install torch 0.1 and transformers"),
    ):
        settings = json.loads(before)
        settings[what][name] = "0.1"
        runs.write_settings(run, settings)
        refused(train.main, [*command, "--resume"], capsys, f"the {what} changed", f"({name})", says, "--overwrite")

    # run.json itself, as text and as what another hand makes of it
    for damaged in ("{", before.replace('"seed": 0', '"seed": 1')):
        (run / "run.json").write_text(damaged)
        refused(train.main, [*command, "--resume"], capsys, "run.json")
    (run / "run.json").write_text(before)

    # data
    forget.write_text('{"question": "Who?", "answer": "Me."}\n')
    refused(train.main, [*command, "--resume"], capsys, "the data changed since", "(forget set, retain set)")
    assert (run / "run.json").read_text() == before
    forget.write_text('{"question": "Who?", "answer": "I."}\n')

    # another process
    with runs.only_run(run):
        refused(train.main, [*command, "--resume"], capsys, "another run is at work", run)
        refused(train.main, [*command, "--overwrite"], capsys, "another run is at work", run)

    # a finished run is left as it is
    train.main([*command, "--resume"])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train.main([*command, "--resume"])
    assert "finished" in capsys.readouterr().out.splitlines()[-1]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused(train.main, [*command, "--resume", "--beta", "1"], capsys, "--beta 1.25, not 1.0")


# ------------------------------------------------------------------ files and folders


def test_what_was_logged_after_the_last_state_is_dropped(tmp_path):
    for name, key, numbers in (("log", "step", "123"), ("epochs", "epoch", "12")):
        lines = [f'{{"{key}": {number}}}\n' for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines) + '[5]\n{"st')
    runs.drop_lines(tmp_path, 2, 1)
    left = {path.name: [*map(json.loads, path.read_text().splitlines())] for path in tmp_path.iterdir()}
    assert left == {"log.jsonl": [{"step": 1}, {"step": 2}], "epochs.jsonl": [{"epoch": 1}]}


def test_runs_on_what_became_of_one_model_compare(tmp_path):
    """Relearning starts from a run, whose folder names it; what counts is the model that it started from."""
    start = flags_of(a_run(tmp_path / "start", family="some/model"))
    folders = [a_run(tmp_path / name, "finetune", seed, start=start, family=name) for seed, name in enumerate("ab")]
    assert len(folder.read_runs(folders)) == 2


def test_only_what_dead_runs_left_is_swept(tmp_path):
    for name in """.mine.new mine.old .mine.minunlearn.old .dead.minunlearn.new .dead.minunlearn.old
            .live.minunlearn.new""".split():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".dead.minunlearn.lock").touch()
    with filelock.FileLock(tmp_path / ".live.minunlearn.lock"), runs.only_run(tmp_path / "some" / "folder" / "run"):
        runs.sweep_killed(tmp_path)
        live = ".live.minunlearn.lock", ".live.minunlearn.new"
        mine = ".mine.minunlearn.old", ".mine.new", "mine.old"
        assert sorted(path.name for path in tmp_path.iterdir()) == [*live, *mine, "some"]
    assert not (tmp_path / "some").exists()  # made for a run that made nothing


def test_through_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path):
    out = tmp_path / "link"
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "run.json").write_text("{}")
    (tmp_path / "disk" / "run" / "old").touch()
    out.symlink_to(tmp_path / "disk" / "run")
    runs.open_folder(out, {"format": 0}, resume=False)
    assert out.is_symlink() and [path.name for path in out.iterdir()] == ["run.json"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["run"]
    assert "format" in (out / "run.json").read_text()


def test_an_interrupt_is_one_also_where_the_saving_library_wraps_it(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt(signal.SIGTERM)

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    runs.save_state(tmp_path, model, optimizer, 1, 0.0)
    monkeypatch.setattr(checkpoint.HuggingFaceStorageReader, "read_data", interrupt)
    monkeypatch.setattr(checkpoint.HuggingFaceStorageWriter, "write_data", interrupt)
    for stopped in (
        lambda: runs.load_state(tmp_path, model, optimizer),  # "does not fit this run; start anew" would lose it
        lambda: runs.save_state(tmp_path, model, optimizer, 2, 0.0),
    ):
        with pytest.raises(KeyboardInterrupt) as caught:
            stopped()
        assert caught.value.args == (signal.SIGTERM,)


@pytest.mark.parametrize("left", [[], ["run.json.tmp"]])
def test_an_empty_folder_is_used_as_it_is(left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it could not be moved away, or replaced, without harm
    for name in left:
        (tmp_path / name).touch()
    args = train.build_parser().parse_args(["--method", "npo", "--out", "."])
    runs.choose_folder(args)
    runs.open_folder(args.out, {"format": 0}, args.resume)
    assert [path.name for path in Path.cwd().iterdir()] == ["run.json"]


def test_a_few_faults_and_nothing_is_lost():
    command = [sys.executable, Path(__file__).with_name("faults.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, total = [[*map(int, line.split()[-3:])] for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 8 and all(tries == recovered > 0 and lost == 0 for tries, recovered, lost in rows)
    assert total == [sum(column) for column in zip(*rows, strict=True)]
