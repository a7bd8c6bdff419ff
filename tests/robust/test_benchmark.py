"""The benchmark of a step measures ways to one gradient, and refuses in one line."""

import benchmark
import pytest
import torch
from conftest import refused, some_examples, tiny

import data
import losses


@pytest.mark.parametrize("method", ["simnpo", "npo"])
def test_all_ways_take_the_same_step(method):
    forget, retain = some_examples(8), some_examples(8, seed=1)
    frozen = tiny("llama", seed=1)
    ref_logp = [tokens.detach() for tokens in data.respond(frozen, forget).token_logp]
    to_30 = lambda model, examples: benchmark.padded_logp(model, examples, pad_to=30)  # noqa: E731
    gradients = []
    for way, *arguments in (
        (benchmark.ours, 3, ref_logp),
        (benchmark.plain, 2, benchmark.padded_logp, frozen),
        (benchmark.plain, 1, to_30, frozen),
    ):
        model = tiny("llama")
        way(model, forget, retain, method, *arguments, torch.float64)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert torch.allclose(gradients[0], gradients[2], rtol=1e-9, atol=1e-12)
    assert gradients[0].norm() > 1e-3


def test_the_floor_is_the_mean_loss_of_response_tokens():
    """One in a row; where several are packed, each sees the ones before it: the work is a step's, the loss is not."""
    model, plain, examples = tiny("llama"), tiny("llama"), some_examples(6)
    benchmark.floor(model, examples, examples, 1, torch.float64)
    y = data.respond(plain, examples)
    (2 * losses.nll(y.logp, y.length).sum()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_table_has_ratios_of_each_round(capsys):
    benchmark.table("a step", {"ours": ([1.0, 2.0, 4.0], 3e6), "floor": ([0.5, 1.0, 4.0], 1e6)}, "ours", 100, 1.0)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = ["1.000 2.000 3 50 0.50 ours", "0.500 1.000 1 100 1.00 floor"]
    assert said == ["", "a step", "ratio seconds + MB tokens/s MFU", *rows]


@pytest.mark.parametrize(
    "folder, words, says",
    [
        ("absent", "", "TOFU_DIR: 'absent' is no folder"),
        (".", "", "'full' of '.'"),
        ("", "--rounds 0", "--rounds"),
        ("", "--size 2b", "--size"),
    ],
)
def test_the_benchmark_refuses(folder, words, says, nothing_written, monkeypatch, capsys):
    monkeypatch.setenv("TOFU_DIR", folder)
    refused(benchmark.main, words.split(), capsys, "benchmark.py", says)
