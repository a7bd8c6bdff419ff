"""What a run's folder survives, and what it refuses; the short form of faults.py."""

import json
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import runs
import torch
from test_bad_input import refused
from test_compare import a_run, flags_of

import data
import train
from data import InputError

SETTINGS = train.resolve(train.build_parser().parse_args(["--method", "npo", "--out", "x"]))


def test_only_what_changes_no_number_may_differ_on_resume(tmp_path):
    settings, free = runs.settings_of(SETTINGS), set()
    (tmp_path / "run.json").write_text(json.dumps(settings))
    for flag in settings["flags"]:
        try:
            runs.check_same_run(tmp_path, settings | {"flags": settings["flags"] | {flag: "other"}})
            free.add(flag)
        except InputError as error:
            assert f" had --{flag.replace('_', '-')} {settings['flags'][flag]}, not other" in str(error)
    assert free == {"out", "retrain", "micro_batch_size", "eval_batch_size", "grad_checkpointing", "save_every"}
    assert settings["flags"].keys() == vars(SETTINGS).keys() - {"resume", "overwrite"}


def test_a_digest_is_of_all_of_a_content_and_of_nothing_else():
    long = "x" * 10**5
    assert len({runs.digest(content) for content in (long, long + "y", [long], {"a": 1}, {"a": 2})}) == 5
    assert runs.digest({"a": 1, "b": 2}) == runs.digest({"b": 2, "a": 1})
    settings, root = runs.settings_of(SETTINGS), Path(runs.__file__).parent
    assert settings["code"] == {path.name: runs.digest(path.read_text(encoding="utf-8")) for path in root.glob("*.py")}


def test_what_was_logged_after_the_last_state_is_dropped(tmp_path):
    for name, key, numbers in (("log", "step", "123"), ("path", "epoch", "012"), ("epochs", "epoch", "12")):
        lines = [f'{{"{key}": {number}}}\n' for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines) + '[5]\n{"st')
    runs.forget_lines(tmp_path, 2, 1)
    kept = {path.name: [*map(json.loads, path.read_text().splitlines())] for path in tmp_path.iterdir()}
    assert kept == {
        "log.jsonl": [{"step": 1}, {"step": 2}],
        "path.jsonl": [{"epoch": 0}, {"epoch": 1}],
        "epochs.jsonl": [{"epoch": 1}],
    }


def test_processes_agree_on_the_largest(monkeypatch):
    """Of two: what stops one stops both."""

    def all_reduce(mine, operation):
        larger, smaller = torch.maximum(mine, torch.tensor([2, 0])), torch.minimum(mine, torch.tensor([2, 0]))
        mine.copy_({"MAX": larger, "MIN": smaller}[operation.name])

    monkeypatch.setattr(data, "ranks", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert runs.agreed(0, 1) == [2, 1]


def test_runs_on_what_became_of_one_model_compare(tmp_path):
    """Relearning starts from a run, whose folder names it; what counts is the model that it started from."""
    start = flags_of(a_run(tmp_path / "start", family="some/model"))
    folders = [a_run(tmp_path / name, "finetune", seed, start=start, family=name) for seed, name in enumerate("ab")]
    assert len(runs.read_runs(folders, lambda task: {})) == 2


def test_what_changed_since_is_refused_by_name_and_a_finished_run_says_so(
    toy_model_folder, tmp_path, monkeypatch, capsys
):
    run, forget = tmp_path / "run", tmp_path / "forget.jsonl"
    forget.write_text('{"question": "Who?", "answer": "I."}\n')
    command = [
        "--method",
        "simnpo",
        "--model",
        str(toy_model_folder),
        "--forget-file",
        str(forget),
        "--retain-file",
        str(forget),
        "--eval",
        "none",
        "--epochs",
        "1",
        "--out",
        str(run),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "draw_run", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.main(command)
    kept = (run / "run.json").read_text()
    for what, name, says in (
        ("code", "losses.py", "commit"),
        ("versions", "torch", "install torch 0.1 and transformers"),
    ):
        settings = json.loads(kept)
        settings[what][name] = "0.1"
        (run / "run.json").write_text(json.dumps(settings))
        refused(train.main, [*command, "--resume"], capsys, f"the {what} changed", f"({name})", says, "--overwrite")
    (run / "run.json").write_text("{")
    refused(train.main, [*command, "--resume"], capsys, "run.json")
    (run / "run.json").write_text(kept)
    forget.write_text('{"question": "Who?", "answer": "Me."}\n')
    with pytest.raises(SystemExit):
        train.main([*command, "--resume"])
    assert "the data changed since" in (error := capsys.readouterr().err) and "(forget set, retain set)" in error
    assert error.count("\n") == 1 and (run / "run.json").read_text() == kept
    forget.write_text('{"question": "Who?", "answer": "I."}\n')
    with runs.only_run(run):
        refused(train.main, [*command, "--resume"], capsys, "another run is at work", run)
        refused(train.main, [*command, "--overwrite"], capsys, "another run is at work", run)
    train.main([*command, "--resume"])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train.main([*command, "--resume"])
    assert "finished" in capsys.readouterr().out.splitlines()[-1]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused(train.main, [*command, "--resume", "--beta", "1"], capsys, "--beta 2.5, not 1.0")


def test_only_what_dead_runs_left_is_swept(tmp_path):
    for name in """.mine.new mine.old .mine.minunlearn.old .dead.minunlearn.new .dead.minunlearn.old
            .live.minunlearn.new""".split():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".dead.minunlearn.lock").touch()
    with filelock.FileLock(tmp_path / ".live.minunlearn.lock"), runs.only_run(tmp_path / "some" / "folder" / "run"):
        runs.sweep_killed(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".live.minunlearn.lock",
            ".live.minunlearn.new",
            ".mine.minunlearn.old",
            ".mine.new",
            "mine.old",
            "some",
        ]
    assert not (tmp_path / "some").exists()  # made for a run that made nothing


def test_through_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "run.json").write_text("{}")
    (tmp_path / "disk" / "run" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    args = train.build_parser().parse_args(["--method", "npo", "--out", str(tmp_path / "link"), "--overwrite"])
    args.out = Path(args.out)
    runs.open_folder(args, {"format": 0})
    assert (tmp_path / "link").is_symlink() and [path.name for path in args.out.iterdir()] == ["run.json"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["run"]
    assert "format" in (args.out / "run.json").read_text()


@pytest.mark.parametrize("left", [[], ["run.json.tmp"]])
def test_an_empty_folder_is_used_as_it_is(left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it could not be moved away, or replaced, without harm
    for name in left:
        (tmp_path / name).touch()
    args = train.build_parser().parse_args(["--method", "npo", "--out", "."])
    runs.choose_folder(args, "name")
    runs.open_folder(args, {"format": 0})
    assert [path.name for path in Path.cwd().iterdir()] == ["run.json"]


def test_a_few_faults_and_nothing_is_lost():
    command = [sys.executable, Path(__file__).with_name("faults.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    tries, recovered, lost = map(int, done.stdout.splitlines()[-1].split()[-3:])
    assert tries == recovered >= 9 and lost == 0
