"""What only a GPU shows; skipped without one."""

import json

import pytest
import runs
import torch
from conftest import some_examples, tiny
from test_train import Crash, crash_in, flags, forget_set, loop

import data
import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def retained(model, examples):
    return train.retain_loss(model, None, examples, flags())


def flat(model):
    return torch.cat([p.grad.flatten().double().cpu() for p in model.parameters()])


def test_float64_gradient_is_that_of_the_cpu():
    gradients = []
    for device in ("cpu", "cuda"):
        model = tiny("llama").to(device)
        forget = forget_set(12) | {"answer_ref": torch.linspace(-30, -5, 12).double().to(device)}
        train.add_gradient(
            forget["answer"],
            1.0,
            lambda group: train.forget_loss(model, forget, group, flags()),
            5,
            torch.device(device),
            torch.float64,
        )
        gradients.append(flat(model))
    assert (gradients[0] - gradients[1]).norm() <= 1e-10 * gradients[0].norm()


def test_bfloat16_gradients_are_finite_and_close_whatever_the_lengths():
    model = tiny("llama", dtype=torch.float32).to("cuda")
    for seed in range(60):
        examples, results = some_examples(32, seed, longest=40), []
        for dtype in (torch.float32, torch.bfloat16):
            model.zero_grad()
            train.add_gradient(
                examples,
                1.0,
                lambda group: (retained(model, [examples[i] for i in group]),),
                16,
                torch.device("cuda"),
                dtype,
            )
            results.append(flat(model))
        assert torch.isfinite(results[1]).all()
        assert (results[0] - results[1]).norm() < 0.05 * results[0].norm()


def test_a_run_on_cuda_keeps_float32_weights_and_its_checkpoint_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)
    whole, broken, halves = (tiny("llama", dtype=torch.float32).to("cuda") for _ in range(3))
    loop(whole, flags(epochs=4), dtype=torch.bfloat16)
    with pytest.raises(Crash):
        loop(broken, flags(epochs=4), tmp_path, crash_in(2), dtype=torch.bfloat16)
    loop(halves, flags(epochs=4, resume=True), tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in halves.parameters()} == {torch.float32}
    for a, b in zip(whole.parameters(), halves.parameters()):
        assert torch.allclose(a, b, atol=1e-4)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_the_toy_on_cuda(tmp_path):
    train.main(["--method", "npo", "--out", str(tmp_path / "run")])
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["flags"]
    assert (settings["device"], settings["dtype"]) == ("cuda", "bfloat16")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["forget"]["probability"] < 0.5 < 0.9 < metrics["reference"]["Original"]["forget"]["probability"]


def test_response_logp_in_bfloat16_is_close_to_float32():
    model, examples = tiny("llama", dtype=torch.float32).to("cuda"), some_examples(16)
    exact, _ = data.response_logp(model, examples)
    with torch.autocast("cuda", torch.bfloat16):
        rough, _ = data.response_logp(model, examples)
    assert rough.dtype == torch.float32 and torch.allclose(exact, rough, rtol=0.03)


def test_no_micro_batch_waits_for_the_gpu():
    """Forget and retain gradients of one effective batch; only what is read once a step may wait."""
    model, retain = tiny("llama", dtype=torch.float32).to("cuda"), some_examples(16)
    forget = forget_set(16) | {"answer_ref": torch.linspace(-30, -5, 16).double()}

    def losses_of(group):
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss, *_ = train.forget_loss(model, forget, group, flags())
            loss = loss.sum() + retained(model, [retain[i] for i in group]).sum()
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return loss

    for start in range(0, 16, 4):
        assert torch.isfinite(losses_of(list(range(start, start + 4))))
