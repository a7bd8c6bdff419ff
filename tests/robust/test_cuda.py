"""What only a GPU shows; skipped without one."""

import json

import benchmark
import pytest
import torch
import transformers
from conftest import some_examples, tiny
from test_train import Crash, crash_in, flags, forget_set, loop

import data
import train
from machinery import run as runs
from methods import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def flat(model):
    """The gradient as one vector, [parameters], float64 on the CPU."""
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])


def ref_of(examples):
    """Some log πref of each token: N tensors [|y|], float64."""
    return [torch.linspace(-3, -0.1, len(example.response)).double() for example in examples]


def test_float64_gradient_is_that_of_the_cpu():
    gradients = []
    for device in ("cpu", "cuda"):
        model, examples = tiny("llama").to(device), some_examples(12)
        benchmark.ours(model, examples, some_examples(12, seed=1), "npo", 5, ref_of(examples), torch.float64)
        gradients.append(flat(model))
    assert (gradients[0] - gradients[1]).norm() <= 1e-10 * gradients[0].norm()


def test_bfloat16_gradients_are_finite_and_close_whatever_the_lengths():
    model = tiny("llama", dtype=torch.float32).to("cuda")
    for seed in range(60):
        examples, gradients = some_examples(32, seed, longest=40), []
        for dtype in (torch.float32, torch.bfloat16):
            model.zero_grad()
            for places, divisor in data.microbatches(examples, 16):
                with data.autocast(model.device, dtype):
                    loss = train.retain_loss(model, None, [examples[i] for i in places], flags())
                (loss.sum() / divisor).backward()
            gradients.append(flat(model))
        assert torch.isfinite(gradients[1]).all()
        assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_a_run_on_cuda_keeps_float32_weights_and_its_checkpoint_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)
    chosen = dict(method="simnpo", epochs=4, dtype="bfloat16")
    # the last is another model: what it goes on from is the save's
    whole, broken, halves = (tiny("llama", seed, torch.float32).to("cuda") for seed in (0, 0, 1))
    loop(whole, flags(**chosen))
    with pytest.raises(Crash):
        loop(broken, flags(**chosen), tmp_path, crash_in(2))
    loop(halves, flags(resume=True, **chosen), tmp_path)
    assert {parameter.dtype for parameter in halves.parameters()} == {torch.float32}
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_the_toy_on_cuda(tmp_path):
    train.main(["--method", "npo", "--out", str(tmp_path / "run")])
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["flags"]
    assert (chosen["device"], chosen["dtype"]) == ("cuda", "bfloat16")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["forget"]["probability"] < 0.5 < 0.9 < metrics["reference"]["Original"]["forget"]["probability"]


def test_log_probabilities_in_bfloat16_are_close_to_float32():
    model, examples = tiny("llama", dtype=torch.float32).to("cuda"), some_examples(16)
    exact = data.respond(model, examples).logp
    with torch.autocast("cuda", torch.bfloat16):
        rough = data.respond(model, examples).logp
    assert rough.dtype == torch.float32 and torch.allclose(exact, rough, rtol=0.03)


def test_no_micro_batch_waits_for_the_gpu(monkeypatch):
    """Forget and retain gradients of one effective batch; only what is read once a step may wait.

    And transformers' own picking of positions by a mask, which asks the GPU how many there are; it is left out here.
    """
    model, retain = tiny("llama", dtype=torch.float32).to("cuda"), some_examples(16)
    forget = forget_set(16)
    ref_logp = {"answer": [tokens.float() for tokens in ref_of(forget["answer"])]}

    def pick(hidden, mask):
        torch.cuda.set_sync_debug_mode("default")
        places = mask.flatten().nonzero()[:, 0]
        torch.cuda.set_sync_debug_mode("error")
        return hidden.flatten(0, 1).index_select(0, places)

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "slice_logits_to_keep", pick)
    for start in range(0, 16, 4):
        rows = list(range(start, start + 4))
        torch.cuda.set_sync_debug_mode("error")
        try:
            (response,) = train.respond(model, ref_logp, forget, rows, METHODS["npo"])
            loss = METHODS["npo"].loss(flags(), response).sum()
            loss = loss + train.retain_loss(model, None, [retain[row] for row in rows], flags()).sum()
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(loss)
