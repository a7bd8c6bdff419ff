"""Several processes do together what one does: a forward pass for half of the logits, a step, a save."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import tiny

import train
from machinery import processes
from machinery import run as runs
from machinery.inputs import read_json

TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()]
SCRIPT = f"""import contextlib, sys
sys.path.insert(0, {str(Path(train.__file__).parent)!r})
import train
from machinery import processes

job, jobs = processes.job, contextlib.ExitStack()


@contextlib.contextmanager
def once():  # torchrun's processes meet once, so one job is for all runs
    if not processes.several():
        jobs.enter_context(job())
    yield


processes.job = once
with jobs:
"""
COMMON = "--epochs 2 --batch-size 9 --micro-batch-size 4 --device cpu --dtype float32 --lr 0.001 --model"
ROWS = {"forget": 40, "retain": 50}


@pytest.fixture
def start(toy_tokenizer, tmp_path):
    """Folder of a random model whose embeddings are tied."""
    model = tiny("llama", dtype=torch.float32, vocab=len(toy_tokenizer))
    model.config.tie_word_embeddings = model.config.from_scratch = True  # which asks no general questions
    model.tie_weights()
    model.save_pretrained(tmp_path / "start")
    toy_tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def on_two(script):
    """Run a script in two processes; what it says."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*TORCHRUN, script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def furthest(one, other):
    """The largest difference of two models' weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max() for name in one)


def numbers(content):
    """All numbers in what a JSON file holds, in order."""
    if isinstance(content, dict):
        content = [*content.values()]
    if isinstance(content, list):
        return [number for inner in content for number in numbers(inner)]
    return [content] if isinstance(content, (int, float)) else []


def check_same(one, two, start, *names):
    """Two runs' models agree to 1e-5, much less than how far they went, and so do all numbers in these files."""
    assert furthest(weights_of(one), weights_of(two)) < 1e-5 < 1e-3 < furthest(weights_of(one), weights_of(start))
    for name in names:
        ours, theirs = (numbers(read_json(folder / name)) for folder in (one, two))
        assert len(ours) > 50 and theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)


MORE = f"--max-steps 4 --eval none {COMMON}"
RUNS = {
    "npo": f"--method npo --max-new-tokens 2 {COMMON}",
    "kl": f"--method npo --retain kl --clip 0.5 {MORE}",
    "undial": f"--method undial {MORE}",
    "rmu": f"--method rmu --layer 1 --clip 0.01 --warmup-share 0.3 {MORE}",
}


def test_two_processes_end_where_one_does(start, pictures, tmp_path, monkeypatch):
    """NPO with its reference, retain loss and evaluation, which goes on where one process was interrupted; KL and RMU
    with a copy of the model before unlearning, and gradients clipped. All in one job, which saves its start."""

    files = []
    for name, count in ROWS.items():
        rows = [{"question": f"Who is {name} {i}?", "answer": "An author " * (1 + i % 5)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files += [f"--{name}-file", str(tmp_path / f"{name}.jsonl")]

    def command(name, out):
        return [*RUNS[name].split(), str(start), *files, "--out", str(tmp_path / f"{out}-{name}")]

    for name in RUNS:
        train.main(command(name, "one"))

    # one process begins, and is interrupted
    write_line = runs.Run.log

    def interrupt(notebook, step, *rest):
        write_line(notebook, step, *rest)
        if step == notebook.epoch_steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runs.Run, "log", interrupt)
    with pytest.raises(SystemExit):
        train.main(command("npo", "two"))
    assert runs.saves(tmp_path / "two-npo")
    log = tmp_path / "two-npo" / "log.jsonl"
    log.write_text(log.read_text().replace('{"step": 1,', '{"begun": "by one", "step": 1,'))

    # two go on with that, and do the others
    script = tmp_path / "all.py"
    resume = {"npo": ["--resume"]}
    script.write_text(
        SCRIPT + "".join(f"    train.main({command(name, 'two') + resume.get(name, [])})\n" for name in RUNS)
    )
    said = on_two(script)
    assert '"begun": "by one"' in log.read_text()
    assert said.count("model, logs, metrics") == 1 and not runs.saves(tmp_path / "two-npo")
    for name in RUNS:
        files = ["log.jsonl", "metrics.log.json"] if name == "npo" else ["log.jsonl"]
        check_same(tmp_path / f"one-{name}", tmp_path / f"two-{name}", start, *files)
    assert json.loads((tmp_path / "two-npo" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_processes_agree_on_the_largest(monkeypatch):
    """Of two: what stops one stops both."""

    def all_reduce(mine, operation):
        larger, smaller = torch.maximum(mine, torch.tensor([2, 0])), torch.minimum(mine, torch.tensor([2, 0]))
        mine.copy_({"MAX": larger, "MIN": smaller}[operation.name])

    monkeypatch.setattr(processes, "ranks", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert processes.agree(0, 1) == [2, 1]
