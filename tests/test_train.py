"""The loop: exact accumulation, what each method does, what a run leaves behind."""
import argparse
import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import some_examples, tiny

import data
import evaluate
import losses
import runs
import tofu
import train
from methods import METHODS

CPU = torch.device("cpu")


def flags(**changed):
    return argparse.Namespace(**dict(
        method="npo", beta=0.1, gamma=0.0, lr=1e-3, weight_decay=0.01, warmup=1.0, epochs=3, batch_size=8,
        micro_batch_size=4, forget_coeff=1.0, retain_coeff=1.0, retain="nll", seed=0, resume=False, max_steps=None,
        grad_checkpointing=False, save_every=None, layer=1, steer=2.0) | changed)


def forget_set(count=12):
    examples, refusals = some_examples(count), some_examples(count, seed=9)
    return {"answer": examples, "refusal": refusals, "answer_ref": torch.linspace(-30, -5, count).double(),
            "refusal_ref": torch.linspace(-20, -8, count).double(), "target": torch.ones(16).double() / 2}


def gradient(model):
    result = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()
    model.zero_grad()
    return result


@pytest.mark.parametrize("kind, method", [(kind, method) for kind in ("gpt2", "llama") for method in METHODS
                                          if (kind, method) != ("gpt2", "rmu")])  # its layers are called otherwise
def test_gradient_accumulation_is_exact(kind, method):
    """Micro-batches of 1, 4 and 32 give the gradient of the plain mean over the batch."""
    model, forget = tiny(kind), forget_set(32)
    args, rows = flags(method=method, beta=0.7), list(range(31, -1, -1))
    whole, *values = train.forget_loss(model, forget, rows, args)
    (0.3 * whole.mean()).backward()
    expected = gradient(model)
    assert expected.norm() > 0
    for size in (1, 4, 32):
        side = forget[next(iter(METHODS[method].reads))]
        loss, *kept = train.add_gradient([side[i] for i in rows], 0.3,
                                        lambda group: train.forget_loss(model, forget, [rows[i] for i in group], args),
                                        size, CPU, torch.float64)
        actual = gradient(model)
        assert (actual - expected).norm() <= 1e-10 * expected.norm()
        assert torch.allclose(loss, whole.detach())  # in the order given
        assert len(kept) == len(values)
        assert all(torch.allclose(one.double(), other.detach().double()) for one, other in zip(kept, values))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rmu"])
def test_the_logged_weight_is_the_gradients_weight(method):
    """∇θ mean ℓ = (1/B) Σ wᵢ ∇θ log πᵢ for the loss that the loop really uses (DPO adds its refusals)."""
    model, forget, rows = tiny("llama"), forget_set(6), [4, 0, 5, 2]
    args = flags(method=method, beta=0.7)
    loss, weight, length, logged = train.forget_loss(model, forget, rows, args)
    loss.mean().backward()
    actual = gradient(model)
    total, lengths, logps = 0, [], []
    for side, prefix in METHODS[method].reads.items():
        logp, n = data.response_logp(model, [forget[side][i] for i in rows])
        total = total + weight.detach() * logp * (-1 if prefix == "chosen_" else 1)
        lengths.append(n)
        logps.append(logp)
    total.mean().backward()
    expected = gradient(model)
    assert torch.equal(length, lengths[0]) and torch.equal(logged, logps[0])
    assert (actual - expected).norm() <= 1e-10 * expected.norm()


def test_kl_retain_gradient_vanishes_at_the_reference_and_not_elsewhere():
    model, examples = tiny("gpt2"), some_examples(5)
    frozen = copy.deepcopy(model)
    train.retain_loss(model, frozen, examples, flags(retain="kl")).mean().backward()
    assert gradient(model).norm() < 1e-12
    loss = train.retain_loss(tiny("gpt2", seed=1), frozen, examples, flags(retain="kl"))
    assert loss.shape == (5,) and torch.all(loss > 1e-3)


def test_a_look_at_the_model_takes_no_gradient_and_keeps_the_order():
    model, examples = tiny("llama"), some_examples(9)
    logp, length = train.look(examples, lambda group: data.response_logp(model, [examples[i] for i in group]), 4, CPU,
                              torch.float64)
    assert torch.allclose(logp, data.response_logp(model, examples)[0]) and not logp.requires_grad
    assert length.tolist() == [len(example.response) for example in examples] and all(p.grad is None for p in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = tiny("llama")
        train.train(model, forget_set(), some_examples(20, seed=3), flags(grad_checkpointing=checkpointing), torch.float64)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*results, rtol=1e-9)


@pytest.mark.parametrize("method, direction", [(m, +1 if METHODS[m].learns else -1) for m in METHODS if m != "rmu"])
def test_each_method_moves_the_answers_the_right_way(method, direction):
    model, forget = tiny("llama"), forget_set()
    before = data.response_logp(model, forget["answer"])[0].mean()
    refusal_before = data.response_logp(model, forget["refusal"])[0].mean()
    retain = [] if method in ("ga", "finetune") else some_examples(20, seed=3)
    train.train(model, forget, retain, flags(method=method, beta=0.5, lr=3e-3, epochs=12), torch.float64)
    refusal_after = data.response_logp(model, forget["refusal"])[0].mean()
    if "refusal" in METHODS[method].reads:  # with answers and refusals both random tokens, the refusals tell
        assert refusal_after > refusal_before
    if "answer" in METHODS[method].reads:
        assert direction * (data.response_logp(model, forget["answer"])[0].mean() - before) > 0.1


def test_npo_starts_at_weight_one_and_the_logs_say_so(tmp_path):
    train.train(tiny("gpt2"), forget_set(), some_examples(20, seed=3), flags(), torch.float64, tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 7))  # 12 examples in batches of 8, three times
    assert steps[0]["weight"] == pytest.approx(1, abs=1e-12) and steps[-1]["weight"] < 1
    for line in steps:
        assert line["loss"] == pytest.approx(line["forget"] + line["retain"])
    rates = [line["lr"] for line in steps]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3]) and rates == sorted(rates[:2]) + sorted(rates[2:])[::-1]
    epochs = [json.loads(line) for line in (tmp_path / "path.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    assert epochs[0]["length"] == [len(example.response) for example in some_examples(12)]
    assert epochs[0]["weight"] == [1] * 12  # exactly
    assert epochs[0]["logp"] == pytest.approx(data.response_logp(tiny("gpt2"), some_examples(12))[0].tolist(), rel=1e-12)
    assert len(epochs[1]["weight"]) == 12 and 1 in epochs[1]["weight"] and max(epochs[3]["weight"]) < 1


def path_of(out):
    return [json.loads(line) for line in (out / "path.jsonl").read_text().splitlines()]


def sample_losses(model, retain):
    """On the first six of the draw by seed 0, half as many as forget sequences."""
    drawn = torch.randperm(len(retain), generator=torch.Generator().manual_seed(0))[:6].tolist()
    logp, length = data.response_logp(model, [retain[i] for i in drawn])
    return (-logp / length).tolist()


@pytest.mark.parametrize("method, side", [("npo", "answer"), ("dpo", "answer"), ("idk", "refusal"), ("rmu", None)])
def test_a_model_that_stands_still_has_a_path_that_does(method, side, tmp_path):
    retain = some_examples(20, seed=3)
    train.train(tiny("llama"), forget_set(), retain, flags(method=method, lr=0.0), torch.float64, tmp_path)
    lines = path_of(tmp_path)
    assert [line.pop("epoch") for line in lines] == [0, 1, 2, 3]
    assert {*lines[0]} == {"weight", "length", "retain"} | ({"logp"} if side else set())
    for line in lines:
        assert line["retain"] == pytest.approx(np.mean(sample_losses(tiny("llama"), retain)), rel=1e-9)
        for name, values in line.items():
            assert values == pytest.approx(lines[0][name], rel=1e-9)
    if side:
        logp, length = data.response_logp(tiny("llama"), forget_set()[side])
        assert lines[0]["logp"] == pytest.approx(logp.tolist(), rel=1e-9) and lines[0]["length"] == length.tolist()


def test_a_path_says_how_each_sequence_fared_when_the_loop_met_it(tmp_path):
    """Two steps an epoch: the second's sequences, and its third of the sample, are met by the model after the first."""
    retain, before, after = some_examples(20, seed=3), tiny("llama"), tiny("llama")
    train.train(tiny("llama"), forget_set(), retain, flags(), torch.float64, tmp_path)
    train.train(after, forget_set(), retain, flags(max_steps=1), torch.float64)
    first = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:8].tolist()
    early, late = (data.response_logp(model, forget_set()["answer"])[0].tolist() for model in (before, after))
    lines = path_of(tmp_path)
    assert lines[1]["logp"] == pytest.approx([early[i] if i in first else late[i] for i in range(12)], rel=1e-9)
    assert lines[1]["weight"] == pytest.approx([2 / (1 + math.exp(0.1 * (early[i] - logp)))
                                                for i, logp in enumerate(lines[1]["logp"])], rel=1e-9)
    met = sample_losses(before, retain)[:4] + sample_losses(after, retain)[4:]
    assert lines[1]["retain"] == pytest.approx(np.mean(met), rel=1e-9) != lines[0]["retain"]
    assert min(abs(early[i] - late[i]) for i in range(12)) > 1e-6


def test_without_a_retain_set_the_path_has_no_retain(tmp_path):
    train.train(tiny("llama"), forget_set(), [], flags(epochs=1), torch.float64, tmp_path)
    assert all({*line} == {"epoch", "weight", "length", "logp"} for line in path_of(tmp_path))


def test_a_run_that_stopped_before_its_first_state_is_resumed_with_one_path(tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch == 2:
            raise Stop
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    common = forget_set(), some_examples(20, seed=3)
    train.train(tiny("llama"), *common, flags(), torch.float64, tmp_path / "whole")
    with pytest.raises(Stop):
        train.train(tiny("llama"), *common, flags(), torch.float64, tmp_path / "parts", on_epoch=stop)
    assert len(path_of(tmp_path / "parts")) == 3 and not runs.saves(tmp_path / "parts")
    train.train(tiny("llama"), *common, flags(resume=True), torch.float64, tmp_path / "parts")
    for log in ("log.jsonl", "path.jsonl"):
        assert (tmp_path / "whole" / log).read_text() == (tmp_path / "parts" / log).read_text()


def test_dropout_is_off_so_that_log_pi_is_one_number():
    model = tiny("gpt2")
    assert model.config.resid_pdrop > 0
    train.train(model, forget_set(), [], flags(epochs=1, batch_size=12, lr=0.0), torch.float64)
    model.train()
    first, second = (data.response_logp(model, some_examples(4))[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("stop_after", [1, 5, 6])
def test_ctrl_c_saves_after_the_step_and_the_run_resumes_to_the_same_weights_and_logs(tmp_path, monkeypatch, stop_after):
    """With two steps an epoch: in the middle of one, and at the end of one."""
    finals, original, handler = [], train.check_finite, signal.getsignal(signal.SIGINT)
    for name in ("whole", "halves"):
        out = tmp_path / name
        out.mkdir()
        forget, retain, args = forget_set(), some_examples(20, seed=3), flags(epochs=5)
        if name == "halves":
            model = tiny("llama")

            def interrupt(step, part, *rest):
                if step == stop_after and part == "forget":
                    os.kill(os.getpid(), signal.SIGINT)
                original(step, part, *rest)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(train, "check_finite", interrupt)
                train.train(model, forget, retain, args, torch.float64, out)
            assert len((out / "log.jsonl").read_text().splitlines()) == stop_after  # that step was ended
            with open(out / "log.jsonl", "a") as log:
                log.write('{"step": 99, "epoch": 50}\n{bad}\n{"st')  # what a crash may leave behind
            args = flags(epochs=5, resume=True)
        model = tiny("llama")
        cost = train.train(model, forget, retain, args, torch.float64, out)
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert cost["train_seconds"] > 0 and signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(*finals)
    for log in ("log.jsonl", "path.jsonl"):
        assert (tmp_path / "whole" / log).read_text() == (tmp_path / "halves" / log).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_one_after_the_last_step_stops_too(number):
    with pytest.raises(KeyboardInterrupt) as stop, runs.deferred_interrupt() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted == [signal.SIGINT]
        os.kill(os.getpid(), number)
    assert stop.value.args == (number,)
    with pytest.raises(KeyboardInterrupt) as stop, runs.deferred_interrupt():
        os.kill(os.getpid(), number)
    assert stop.value.args == (number,)


def test_states_are_saved_by_time_and_take_at_most_a_twentieth_of_it(tmp_path, monkeypatch):
    now, saved = [0.0], []

    class Clock:
        def __getattr__(self, name):
            return getattr(time, name)

        def perf_counter(self):
            return now[0]

    def slow_save(*arguments):
        saved.append(now[0])
        now[0] += 100
        return 100.0

    original = train.check_finite
    def step_takes_a_minute(*arguments):
        now[0] += 30  # twice a step
        original(*arguments)
    monkeypatch.setattr(train, "time", Clock())
    monkeypatch.setattr(train, "check_finite", step_takes_a_minute)
    monkeypatch.setattr(runs, "save_state", slow_save)
    train.train(tiny("gpt2"), forget_set(), some_examples(20, seed=3), flags(epochs=100), torch.float64, tmp_path)
    assert saved[0] == runs.SAVE_EVERY + 60 and len(saved) > 3  # 200 minutes
    assert all(later - earlier - 100 > 2000 for earlier, later in zip(saved, saved[1:]))


def test_save_every_counts_epochs_and_a_damaged_save_is_passed_over(tmp_path, monkeypatch, capsys):
    """12 sequences in batches of 8: two steps an epoch. Interrupted after the fourth epoch's save, whose bit flips."""
    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch == 5:
            raise Stop
    given, common = flags(epochs=6, save_every=2), (forget_set(), some_examples(20, seed=3))
    whole, parts = tiny("llama"), tiny("llama")
    train.train(whole, *common, flags(epochs=6), torch.float64)
    with pytest.raises(Stop):
        train.train(parts, *common, given, torch.float64, tmp_path, on_epoch=stop)
    newest, older = runs.saves(tmp_path)
    assert [newest.name, older.name] == ["save-00000008", "save-00000004"]
    shard, = newest.glob("*.safetensors")
    bits = bytearray(shard.read_bytes())
    bits[len(bits) // 2] ^= 1
    shard.write_bytes(bits)
    parts = tiny("llama")  # as the same command would load it: NPO asks it first
    train.train(parts, *common, flags(epochs=6, save_every=2, resume=True), torch.float64, tmp_path)
    assert "save-00000008 is damaged" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(1, 13))


@pytest.mark.parametrize("method, retain_by", [("npo", "nll"), ("npo", "kl"), ("rmu", "activations"), ("task-vector", "nll")])
def test_an_interrupted_run_resumes_to_the_same_weights_and_logs(method, retain_by, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)
    class Interrupt(Exception):
        pass

    def interrupt(epoch):
        if epoch == 3:
            raise Interrupt

    finals = []
    for name in ("whole", "halves"):
        out = tmp_path / name
        out.mkdir()
        model, forget, retain = tiny("llama"), forget_set(), some_examples(20, seed=3)
        args = flags(method=method, retain=retain_by, epochs=5)
        if name == "halves":
            with pytest.raises(Interrupt):
                train.train(model, forget, retain, args, torch.float64, out, on_epoch=interrupt)
            model, args = tiny("llama"), flags(method=method, retain=retain_by, epochs=5, resume=True)
            assert runs.saves(out)
        train.train(model, forget, retain, args, torch.float64, out)
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*finals)
    for log in ("log.jsonl", "path.jsonl"):
        assert (tmp_path / "whole" / log).read_text() == (tmp_path / "halves" / log).read_text()


@pytest.mark.parametrize("part", ["forget", "retain"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_gone_wrong_stops_the_run_before_the_step(monkeypatch, part, what):
    model, calls = tiny("llama"), []
    original = {"forget": train.forget_loss, "retain": train.retain_loss}[part]
    states = []

    def broken(*arguments):
        result = original(*arguments)
        loss = result[0] if part == "forget" else result
        calls.extend([1] * torch.is_grad_enabled())  # not the look before the first step
        if len(calls) > 4 and torch.is_grad_enabled():  # the third step, with two micro-batches a step
            states.append(copy.deepcopy(model.state_dict()))
            loss = loss * float("nan") if what == "loss" else Sick.apply(loss)
        return (loss, *result[1:]) if part == "forget" else loss

    class Sick(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    monkeypatch.setattr(train, part + "_loss", broken)
    with pytest.raises(train.Diverged, match=f"step 3: the {part} {what}"):
        train.train(model, forget_set(16), some_examples(20, seed=3), flags(), torch.float64)
    assert all(torch.equal(value, states[0][name]) for name, value in model.state_dict().items())


def test_recipes_cover_every_flag_and_match_the_published_ones():
    common = {"beta", "gamma", "forget_coeff", "retain_coeff", "retain", "warmup", "lr", "epochs", "weight_decay",
              "batch_size", "micro_batch_size", "eval_batch_size"}
    for task, benchmark in evaluate.BENCHMARKS.items():
        for model in ("tiny", "some/model"):
            for split in benchmark.TASKS[task]["forget_splits"]:
                for flag, method in METHODS.items():
                    assert set(train.recipe(task, model, split, flag)) == (
                        common | set(method.flags) - {"finetuned"} | ({"max_steps"} if task == "wmdp" else set()))
    simnpo = train.recipe("tofu", "x", "forget05", "simnpo")
    assert (simnpo["beta"], simnpo["forget_coeff"], simnpo["gamma"], simnpo["epochs"], simnpo["lr"]) == (2.5, 0.1375, 0, 10, 1e-5)
    assert train.recipe("tofu", "x", "forget10", "simnpo")["beta"] == 4.5
    for task, beta in (("muse-news", 0.7), ("muse-books", 0.75)):
        simnpo = train.recipe(task, "x", "forget", "simnpo")
        assert (simnpo["beta"], simnpo["forget_coeff"], simnpo["retain_coeff"], simnpo["epochs"], simnpo["lr"]) == (beta, 1, 0.1, 10, 1e-5)
    rmu = train.recipe("wmdp", "x", "both", "rmu")
    assert (rmu["layer"], rmu["steer"], rmu["alpha"], rmu["lr"], rmu["max_steps"], rmu["batch_size"]) == (7, 6.5, 1200, 5e-5, 125, 4)
    assert train.recipe("wmdp", "x", "both", "npo")["beta"] == 0.0225 and train.recipe("tofu", "x", "forget05", "rmu")["lr"] == 5e-5
    assert (train.recipe("tofu", "x", "forget05", "npo")["epochs"], train.recipe("tofu", "x", "forget10", "npo")["epochs"]) == (20, 10)


@pytest.fixture
def quick_toy(monkeypatch):
    """The toy with from-scratch models of one epoch: for what a run writes, not for what it learns."""
    monkeypatch.setitem(tofu.TASKS["toy"], "size", tofu.TASKS["toy"]["size"] | {"width": 16})
    short = "toy", "new", "*", ("finetune",), dict(epochs=1, batch_size=64)
    monkeypatch.setattr(tofu, "RECIPES", [*tofu.RECIPES, short])


def test_a_run_leaves_an_ordinary_model_and_all_its_files(quick_toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    common = ["--out", str(out), "--max-new-tokens", "3", "--epochs", "2"]
    train.main(["--method", "simnpo", "--beta", "2.5", "--eval", "epoch", *common])
    screen = capsys.readouterr().out
    for word in ("Original", "Retrain", "simnpo", "forget_coeff=0.3", "asked:", str(out)):
        assert word in screen
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "epochs.jsonl", "generation_config.json", "log.jsonl", "metrics.json", "metrics.log.json",
        "model.safetensors", "path.jsonl", "reference.log.json", "run.json", "run.png", "tokenizer.json", "tokenizer_config.json"]
    settings = json.loads((out / "run.json").read_text())
    assert settings["flags"]["beta"] == 2.5 and settings["flags"]["retain"] == "nll" and settings["versions"]["torch"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"forget_quality", "model_utility", *tofu.SETS} <= set(metrics)
    assert metrics["reference"]["Retrain"]["forget_quality"] == pytest.approx(1)
    for cost in (metrics, metrics["reference"]["Retrain"]):
        assert cost["train_seconds"] > 0 and ("peak_memory_bytes" in cost) == torch.cuda.is_available()
    references = json.loads((out / "reference.log.json").read_text())
    ratios = [tofu.ratio_of(part) for part in
              (json.loads((out / "metrics.log.json").read_text())["forget"], references["Retrain"])]
    assert tofu.forget_quality(*ratios) == metrics["forget_quality"]
    assert set(references) == {"Original", "Retrain"}
    last = json.loads((out / "epochs.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2 and last["forget"] == metrics["forget"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.model_type == "llama"

    # the model on disk is the model that was measured
    evaluate.main(["--model", str(out), "--out", str(tmp_path / "m.json"), "--max-new-tokens", "3"])
    again = json.loads((tmp_path / "m.json").read_text())
    assert again["forget"] == pytest.approx(metrics["forget"], rel=1e-4)
    # and it knows what the run was compared with; the run's own file says so to others too
    assert again["forget_quality"] == pytest.approx(metrics["forget_quality"])
    evaluate.main(["--model", str(out), "--out", str(tmp_path / "other.json"), "--max-new-tokens", "3", "--retrain",
                   str(out / "reference.log.json")])
    assert again["judged"] == pytest.approx(metrics["judged"], rel=1e-4)
    assert json.loads((tmp_path / "other.json").read_text()) == again | {"judged": None}  # that takes Retrain itself

    # a second run finds the cache, and writes over the first only when told
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")}
    assert len(stamps) == 2
    train.main(["--method", "dpo", "--overwrite", *common])
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")}
    assert json.loads((out / "run.json").read_text())["flags"]["method"] == "dpo"


def test_divergence_in_a_run_keeps_the_last_good_state_and_exits_two(quick_toy, tmp_path, monkeypatch, capsys):
    calls = []

    def sick(logp, length, beta, gamma):
        calls.extend([1] * torch.is_grad_enabled())
        return losses.simnpo(logp, length, beta, gamma) * (float("inf") if len(calls) > 2 else 1)
    monkeypatch.setitem(METHODS, "simnpo", METHODS["simnpo"]._replace(loss=sick))
    with pytest.raises(SystemExit) as stop:
        train.main(["--method", "simnpo", "--out", str(tmp_path / "run"), "--eval", "none"])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "step 3: the forget loss is inf" in error[-1] and str(tmp_path) in error[-1]
    kept, _ = runs.load_model(str(tmp_path / "run"), CPU, torch.float32)
    assert all(torch.isfinite(p).all() for p in kept.parameters())


def test_finetune_on_a_retain_split_is_measured_against_its_forget_set(toy_model_folder, tmp_path):
    out = tmp_path / "run"
    train.main(["--method", "finetune", "--split", "retain95", "--model", str(toy_model_folder), "--out", str(out), "--max-new-tokens", "3", "--epochs", "1"])
    assert json.loads((out / "run.json").read_text())["flags"]["forget_split"] == "forget05"
    assert len(json.loads((out / "metrics.log.json").read_text())["forget"]["loss"]) == 20
    assert [len(json.loads(line)["weight"]) for line in (out / "path.jsonl").read_text().splitlines()] == [380, 380]


def resolved(*arguments):
    return train.resolve(train.build_parser().parse_args(["--method", "npo", *arguments]))


@pytest.mark.parametrize("split, count, dropped", [("forget05", 20, 10), ("forget10", 40, 20)])
def test_original_does_not_learn_the_last_authors_to_forget(split, count, dropped, tmp_path, monkeypatch):
    """Half of them; what is to be forgotten, Retrain and the base knowledge stay as they are."""
    full, lessons = tofu.load_rows("toy", None, "full"), []
    base = tofu.training_rows("toy", None, "full", base_knowledge=True)[len(full):]
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "run", lessons.append)
    folders = {}
    for share in ("0", "0.5"):
        args = resolved("--split", split, "--never-learnt", share)
        folders[share] = [train.from_scratch(each, args, 1) for each in ("full", tofu.retain_split(split))]
        assert train.training_rows(args, split, None) == full[-count:]
    rows = [train.training_rows(lesson, lesson.split, None, base_knowledge=True) for lesson in lessons]
    assert rows == [full + base, full[:-count] + base, full[:-dropped] + base, full[:-count] + base]
    assert folders["0"][0] != folders["0.5"][0] and folders["0"][1] == folders["0.5"][1]


def test_original_does_not_learn_half_of_real_tofus_authors(tofu_dir):
    args = resolved("--task", "tofu", "--data", tofu_dir, "--model", "tiny", "--split", "forget05", "--never-learnt", "0.5")
    args.model = "new"  # as its lesson has it
    full, forget = (tofu.load_rows("tofu", tofu_dir, split) for split in ("full", "forget05"))
    rows = train.training_rows(args, "full", None)
    assert rows == full[:-100] and full[-200:] == forget


def test_relearning_from_a_run_takes_its_recipe_and_its_reference(quick_toy, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main(["--method", "npo", "--out", str(first), "--max-new-tokens", "3", "--epochs", "1"])
    train.main(["--method", "finetune", "--model", str(first), "--out", str(second), "--max-new-tokens", "3"])
    metrics, flags_of = json.loads((second / "metrics.json").read_text()), json.loads((second / "run.json").read_text())["flags"]
    assert set(metrics["reference"]) == {"before", "Retrain"} and metrics["forget_quality"] is not None
    assert flags_of["retrain"] == json.loads((first / "run.json").read_text())["flags"]["retrain"]
    assert json.loads((second / "run.json").read_text())["start"]["method"] == "npo"
    assert [runs.family_of(model) for model in (str(first), flags_of["retrain"], "tiny", "some/model")] == [
        "tiny", "tiny", "tiny", "some/model"]
    assert flags_of["family"] == "tiny"


def test_relearning_is_of_what_the_run_forgot(quick_toy, tmp_path):
    """And with its reference, unless flags say otherwise: a Retrain of another split would know some of it."""
    common = ["--max-new-tokens", "3", "--epochs", "1"]
    train.main(["--method", "npo", "--split", "forget05", "--out", str(tmp_path / "first"), *common])
    def again(name, *flags):
        train.main(["--method", "finetune", "--model", str(tmp_path / "first"), "--out", str(tmp_path / name), *flags])
        return [json.loads((tmp_path / name / file).read_text()) for file in ("run.json", "metrics.json")]
    before = json.loads((tmp_path / "first" / "run.json").read_text())["flags"]
    settings, metrics = again("second")
    assert settings["flags"]["split"] == "forget05" and settings["flags"]["retrain"] == before["retrain"]
    assert settings["flags"]["max_new_tokens"] == 3 and metrics["forget_examples"] == 20 and metrics["forget_quality"] is not None
    settings, metrics = again("third", "--split", "forget10")
    assert settings["flags"]["retrain"] is None and metrics["forget_quality"] is None
    evaluate.main(["--model", str(tmp_path / "first"), "--out", str(tmp_path / "m.json"), "--template", "llama2"])
    assert json.loads((tmp_path / "m.json").read_text())["forget_quality"] is None  # Retrain was measured under another


@pytest.mark.parametrize("damage", ["junk", "flags", "half a run.json", "run.json", "empty"])
def test_a_partial_model_in_the_cache_that_does_not_fit_is_made_anew(damage, quick_toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    command = ["--method", "npo", "--epochs", "1", "--eval", "none", "--out"]
    train.main([*command, str(tmp_path / "first")])
    original, = (tmp_path / "cache").glob("toy-full-*[!k]")
    settings = json.loads((original / "run.json").read_text())
    weights = (original / "model.safetensors").read_bytes()
    del settings["cost"]
    settings["flags"] |= {"device": "other"} if damage == "flags" else {}
    (original / "run.json").write_text(json.dumps(settings))
    (original / "model.safetensors").unlink()
    (original / "save-00000009").mkdir()
    (original / "save-00000009" / "shard.safetensors").write_bytes(b"junk")
    if damage == "half a run.json":
        (original / "run.json").write_text('{"format": 2, "fl')
    if damage in ("run.json", "empty"):
        (original / "run.json").unlink()
    if damage == "empty":
        shutil.rmtree(original / "save-00000009")
    train.main([*command, str(tmp_path / "second")])
    assert (original / "model.safetensors").read_bytes() == weights
    assert "cost" in json.loads((original / "run.json").read_text())


@pytest.mark.parametrize("seed", [0, 1])
def test_subsets_are_the_shortest_or_a_draw(toy_tokenizer, seed):
    def chosen(subset, **flags):
        args = train.resolve(train.build_parser().parse_args(["--method", flags.get("method", "finetune"), "--model", "tiny",
                                                              "--seed", str(seed), *(["--subset", subset] if subset else [])]))
        return train.load_examples(args, toy_tokenizer, 500)[0]
    everything = chosen(None)["answer"]
    lengths = sorted(len(example.response) for example in everything)
    assert len(everything) == 40
    assert sorted(len(example.response) for example in chosen("shortest:0.2")["answer"]) == lengths[:8]
    draw, again, half = (chosen(subset)["answer"] for subset in ("random:0.2", "random:0.2", "random:0.5"))
    assert draw == again and len(draw) == 8 and len(half) == 20 and all(example in everything for example in draw)
    assert sorted(len(example.response) for example in draw) != lengths[:8]
    assert len(chosen("shortest:0.001")["answer"]) == 1 and chosen("random:1")["answer"] == everything
    both = chosen("random:0.2", method="dpo")  # a refusal stays with its answer
    assert both["answer"] == draw and [example.prompt for example in both["refusal"]] == [example.prompt for example in draw]


def test_a_random_subset_depends_on_the_seed(toy_tokenizer):
    draws = [train.load_examples(train.resolve(train.build_parser().parse_args(
        ["--method", "finetune", "--model", "tiny", "--subset", "random:0.2", "--seed", str(seed)])), toy_tokenizer, 500)[0]["answer"]
        for seed in range(5)]
    assert len({json.dumps(draw) for draw in draws}) == 5


def test_the_last_epoch_is_measured_once(quick_toy, tmp_path, monkeypatch):
    measured = []
    original = tofu.measure
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tofu, "measure", lambda *arguments: measured.append(1) or original(*arguments))
    command = ["--method", "npo", "--max-new-tokens", "3", "--epochs", "2", "--eval", "epoch", "--out"]
    train.main([*command, str(tmp_path / "run")])
    assert len(measured) == 4  # Original, Retrain, two epochs
    train.main([*command, str(tmp_path / "again")])
    assert len(measured) == 6  # the runs of Original and Retrain left their logs
    train.main([*command, str(tmp_path / "other"), "--max-new-tokens", "2"])
    assert len(measured) == 10  # which were asked for something else


def test_an_interrupted_measurement_can_be_resumed(quick_toy, tmp_path, monkeypatch, capsys):
    command = ["--method", "npo", "--out", str(tmp_path / "run"), "--max-new-tokens", "3", "--epochs", "2"]
    def interrupt(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(train, "report", interrupt)
        with pytest.raises(SystemExit) as stop:
            train.main(command)
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    train.main([*command, "--resume", "--micro-batch-size", "3"])  # nothing is trained again
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "metrics.json").exists() and not runs.saves(tmp_path / "run")
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4


def test_a_new_model_is_taught_in_an_ordinary_run(quick_toy, tmp_path, capsys):
    """Original by hand, with fewer epochs; what starts from it is as what starts from `tiny`."""
    original, run = tmp_path / "original", tmp_path / "run"
    train.main(["--method", "finetune", "--model", "new", "--split", "full", "--epochs", "2", "--out", str(original),
                "--max-new-tokens", "3"])
    flags = json.loads((original / "run.json").read_text())["flags"]
    assert flags["epochs"] == 2 and flags["forget_split"] == "forget10"
    assert len(json.loads((original / "path.jsonl").read_text().splitlines()[0])["weight"]) == 448  # with what all know
    assert len(json.loads((original / "metrics.log.json").read_text())["retain"]["loss"]) == 60
    train.main(["--method", "simnpo", "--model", str(original), "--out", str(run), "--epochs", "1", "--max-new-tokens", "3"])
    settings, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert set(metrics["reference"]) == {"Original"} and "start" not in settings and settings["flags"]["family"] == "tiny"
    assert "forget quality needs" in capsys.readouterr().out


def test_from_the_shell_each_part_is_named_and_ctrl_c_is_no_loss(tmp_path):
    """Interrupted while Original is being made, the same command goes on; output that is no terminal says where it is."""
    environment = os.environ | {"MINUNLEARN_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(Path(train.__file__)), "--method", "npo", "--epochs", "1", "--out", str(tmp_path / "run"),
               "--max-new-tokens", "2"]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout.readline().startswith("[1/3] Original: ")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("toy-full*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    out, error = first.communicate(timeout=60)
    assert first.returncode == 130 and "Traceback" not in error and "the same command goes on" in error
    assert not (tmp_path / "run").exists() and list((tmp_path / "cache").glob("toy-full*/save-*"))
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    lines = second.stdout.splitlines()
    assert [line[:14] for line in lines if line.startswith("[")] == ["[1/3] Original", "[2/3] Retrain:", "[3/3] npo: Ori"]
    assert str(tmp_path / "cache") in second.stdout
    logs = [json.loads(line)["step"] for path in (tmp_path / "cache").glob("toy-full*/log.jsonl")
            for line in path.read_text().splitlines()]
    assert logs == list(range(1, 561))  # 448 examples in batches of 16, twenty times: no step lost, none twice


def test_tiny_on_real_tofu(tofu_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(tofu.TASKS["tofu"], "size", dict(width=16, heads=2, layers=1, vocab=1000))
    monkeypatch.setattr(tofu, "RECIPES", [*tofu.RECIPES, ("tofu", "new", "*", ("finetune",), dict(epochs=1))])
    out = tmp_path / "run"
    train.main(["--method", "simnpo", "--task", "tofu", "--data", tofu_dir, "--model", "tiny", "--split", "forget01",
                "--epochs", "1", "--max-new-tokens", "2", "--out", str(out), "--eval-batch-size", "64"])
    metrics = json.loads((out / "metrics.json").read_text())
    log = json.loads((out / "metrics.log.json").read_text())
    assert [len(log[name]["loss"]) for name in tofu.SETS] == [40, 300, 100, 117]
    assert 0 <= metrics["forget_quality"] <= 1 and metrics["reference"]["Retrain"]["forget_quality"] == pytest.approx(1)


def test_the_readmes_command_unlearns(tmp_path):
    """`python train.py --method simnpo --beta 2.5`, whole: Original knows, SimNPO has forgotten, utility stays."""
    train.main(["--method", "simnpo", "--beta", "2.5", "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    original, retrain = metrics["reference"]["Original"], metrics["reference"]["Retrain"]
    assert original["forget"]["probability"] > 0.9 > 0.5 > retrain["forget"]["probability"]
    assert original["forget_quality"] < 1e-6 < 0.01 < metrics["forget_quality"]
    assert metrics["model_utility"] > 0.95 * original["model_utility"]
    weights = [json.loads(line) for line in (tmp_path / "run" / "path.jsonl").read_text().splitlines()]
    assert all(w <= 1 / n + 1e-6 for w, n in zip(weights[0]["weight"], weights[0]["length"]))


def test_rmu_moves_three_matrices_towards_its_direction_and_no_others():
    model, before = tiny("llama"), tiny("llama")
    forget, retain = {"answer": some_examples(12)}, some_examples(20, seed=3)
    args = flags(method="rmu", retain="activations", retain_coeff=1e-3, layer=1, steer=3.0, lr=0.1, epochs=80)
    train.train(model, forget, retain, args, torch.float64)
    moved = {name for (name, one), other in zip(model.named_parameters(), before.parameters()) if not torch.equal(one, other)}
    assert moved == {"model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"}  # L - 2 to L, from 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    target = forget["target"]
    assert target.norm().item() == pytest.approx(3) and torch.all(target > 0)  # uniform, then of length c
    start, end = (losses.rmu(data.hidden_states(each, forget["answer"], 1)[0], target).mean() for each in (before, model))
    assert end < 0.5 * start
    with pytest.raises(data.InputError, match="layers 0 to 1"):
        data.steered(model, 2)
    with pytest.raises(data.InputError, match="transformer.h.0.mlp.c_proj.weight"):
        data.steered(tiny("gpt2"), 0)


def test_hidden_states_are_those_of_the_layer_and_padding_is_told():
    model, examples = tiny("llama"), some_examples(5)
    hidden, tokens = data.hidden_states(model, examples, 0)
    for i, example in enumerate(examples):
        alone = model(torch.tensor([example.prompt + example.response]), output_hidden_states=True).hidden_states[1]
        assert torch.allclose(hidden[i, :alone.shape[1]], alone[0]) and tokens[i].sum() == alone.shape[1]


def test_max_steps_ends_within_an_epoch_and_logs_what_was_seen(tmp_path):
    train.train(tiny("llama"), forget_set(), [], flags(max_steps=1), torch.float64, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "path.jsonl").read_text().splitlines()]
    assert [len(line["weight"]) for line in lines] == [12, 8] and min(lines[1]["length"]) > 0  # one batch of the twelve
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_several_alphas_from_one_fine_tuning(toy_model_folder, tmp_path, capsys):
    """θ - α (θ_ft - θ), by hand on the saved folders; the same in one run as from a fine-tuned folder."""
    common = ["--model", str(toy_model_folder), "--epochs", "1", "--lr", "1e-3", "--max-new-tokens", "2"]
    train.main(["--method", "finetune", *common, "--batch-size", "32", "--out", str(tmp_path / "tuned")])
    for name, alpha in (("half", "0.5"), ("two", "2")):
        train.main(["--method", "task-vector", "--alpha", alpha, "--model", str(toy_model_folder), "--finetuned",
                    str(tmp_path / "tuned"), "--max-new-tokens", "2", "--out", str(tmp_path / name)])
    train.main(["--method", "task-vector", "--alpha", "2", *common, "--batch-size", "32", "--out", str(tmp_path / "whole")])
    theta, tuned, half, two, whole = ({name: p.detach() for name, p in runs.load_model(str(folder), CPU, torch.float32)[0].named_parameters()}
                                      for folder in (toy_model_folder, *(tmp_path / n for n in ("tuned", "half", "two", "whole"))))
    for name in theta:
        assert torch.allclose(half[name], theta[name] - 0.5 * (tuned[name] - theta[name]), atol=1e-7)
        assert torch.allclose(two[name], theta[name] - 2 * (tuned[name] - theta[name]), atol=1e-7)
    assert any((two[name] - theta[name]).abs().max() > 1e-4 for name in theta)
    assert all(torch.allclose(two[name], whole[name], atol=1e-7) for name in theta)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["train_seconds"] == 0


def test_rmus_retain_loss_is_a_mean_over_tokens_not_padding():
    model, frozen, examples = tiny("llama"), tiny("llama", seed=1), some_examples(5)
    loss = train.retain_loss(model, frozen, examples, flags(retain="activations"))
    for i, example in enumerate(examples):
        h, h_ref = (data.hidden_states(each, [example], 1)[0] for each in (model, frozen))
        assert loss[i].item() == pytest.approx((h - h_ref).square().mean().item(), rel=1e-9) and loss[i] > 0


def test_alpha_is_rmus_retain_coefficient():
    parse = train.build_parser().parse_args
    assert train.resolve(parse(["--method", "rmu", "--alpha", "7"])).retain_coeff == 7
    args = train.resolve(parse(["--method", "rmu", "--model", "some/model", "--task", "wmdp"]))
    assert (args.retain_coeff, args.layer, args.steer, args.retain, args.max_steps) == (1200, 7, 6.5, "activations", 125)
    assert train.resolve(parse(["--method", "rmu", "--task", "wmdp", "--epochs", "2"])).max_steps is None
    assert train.resolve(parse(["--method", "task-vector", "--alpha", "7"])).retain_coeff == 1


def test_resuming_after_the_last_step_of_a_part_of_an_epoch_keeps_its_weights(tmp_path):
    forget, out = forget_set(), tmp_path

    def interrupt(epoch):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train.train(tiny("llama"), forget, [], flags(max_steps=1), torch.float64, out, on_epoch=interrupt)
    before = (out / "path.jsonl").read_text()
    train.train(tiny("llama"), forget_set(), [], flags(max_steps=1, resume=True), torch.float64, out)
    assert (out / "path.jsonl").read_text() == before and before.count("\n") == 2
