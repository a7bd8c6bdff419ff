"""Several processes do together what one does."""

import json
import os
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from conftest import tiny

import runs
import train


def test_two_processes_go_on_where_one_was_interrupted_and_end_where_one_does(toy_tokenizer, tmp_path, monkeypatch):
    """NPO with its reference, retain loss and evaluation, embeddings tied; the model to 1e-5, as all of its logs."""
    model, start_folder = tiny("llama", dtype=torch.float32, vocab=len(toy_tokenizer)), tmp_path / "start"
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(start_folder)
    toy_tokenizer.save_pretrained(start_folder)
    command = [
        "--model",
        str(start_folder),
        *"""--method npo --epochs 2 --batch-size 9 --micro-batch-size 4
        --device cpu --dtype float32 --max-new-tokens 2 --out""".split(),
    ]
    train.main([*command, str(tmp_path / "one")])
    log_path = train.log_path

    def interrupt(out, epoch, *rest):
        log_path(out, epoch, *rest)
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "log_path", interrupt)
    with pytest.raises(SystemExit):
        train.main([*command, str(tmp_path / "two")])
    assert runs.saves(tmp_path / "two")
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split(), train.__file__]
    done = subprocess.run(
        [*torchrun, *command, str(tmp_path / "two"), "--resume"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model, logs, metrics") == 1 and not runs.saves(tmp_path / "two")
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    start = safetensors.torch.load_file(start_folder / "model.safetensors")
    assert one.keys() == two.keys()
    assert (
        max((one[name] - two[name]).abs().max() for name in one)
        < 1e-5
        < 1e-3
        < max((one[name] - start[name]).abs().max() for name in one)
    )

    def numbers(content):
        if isinstance(content, (list, dict)):
            return [x for inner in (content.values() if isinstance(content, dict) else content) for x in numbers(inner)]
        return [content] if isinstance(content, (int, float)) else []

    for name in ("log.jsonl", "path.jsonl", "metrics.log.json"):
        ours, theirs = (runs.read_json(tmp_path / folder / name) for folder in ("one", "two"))
        assert len(numbers(ours)) > 50 and numbers(theirs) == pytest.approx(numbers(ours), rel=1e-3, abs=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
