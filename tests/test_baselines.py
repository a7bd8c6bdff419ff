"""RMU's parts and Task Vector's; the loop of RMU against steps taken by hand is in test_train.py."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from conftest import lm_of, some_examples, tiny

import baselines
from machinery.inputs import InputError


def test_hidden_states_are_those_of_the_layer_and_padding_is_told():
    model, examples = tiny("llama"), some_examples(5)
    hidden, tokens = baselines.hidden_states(model, examples, 0)
    assert not model.model.layers[0]._forward_hooks
    for i, (prompt, response) in enumerate(examples):
        alone = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[1][0]
        assert torch.allclose(hidden[i, : len(alone)], alone) and tokens[i].sum() == len(alone)
        mean = baselines.mean_of_tokens(hidden.sum(-1), tokens)[i]
        assert mean.item() == pytest.approx(alone.sum(-1).mean().item())


def of_layers(count):
    names = [f"model.layers.{i}.mlp.{side}_proj.weight" for i in range(count) for side in ("up", "down")]
    return SimpleNamespace(named_parameters=lambda: [(name, None) for name in names])


@pytest.mark.parametrize(
    "layer, trained", [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (4, [2, 3, 4]), (7, [5, 6, 7]), (8, [6, 7, 8])]
)
def test_rmu_trains_the_layer_and_the_two_before(layer, trained):
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in trained]
    assert baselines.steered_weights(of_layers(9), layer) == names


@pytest.mark.parametrize(
    "model, layer, says", [(of_layers(2), 2, "layers 0 to 1"), (tiny("gpt2"), 0, "transformer.h.0.mlp.c_proj.weight")]
)
def test_rmu_says_what_it_cannot_train(model, layer, says):
    with pytest.raises(InputError, match=says):
        baselines.steered_weights(model, layer)
    lm = lm_of(model, None)
    with pytest.raises(InputError, match=says):
        baselines.prepare(lm, argparse.Namespace(method="rmu", layer=layer), None)


def test_only_the_task_vector_keeps_the_weights_it_began_with():
    lm = lm_of(tiny("llama"), None)
    for method in ("npo", "finetune"):
        assert baselines.prepare(lm, argparse.Namespace(method=method), None) == (lm, None)
    same, theta = baselines.prepare(lm, argparse.Namespace(method="task-vector", finetuned=None), None)
    assert same is lm
    for before, parameter in zip(theta, lm.model.parameters(), strict=True):
        assert torch.equal(before, parameter) and before.data_ptr() != parameter.data_ptr()


def test_the_task_vector_goes_back_from_where_fine_tuning_went():
    """θ − α (θ_ft − θ), of a model that is there already; not of one of other shapes."""
    args = argparse.Namespace(method="task-vector", alpha=2.0, finetuned="tuned")
    start, tuned = tiny("llama"), tiny("llama", seed=1)
    expected = [p - 2 * (q - p) for p, q in zip(start.parameters(), tuned.parameters(), strict=True)]
    names = []

    def load(args, name, trained):
        names.append(name)
        return lm_of(tuned, None)

    lm, theta = baselines.prepare(lm_of(start, None), args, load)
    assert names == ["tuned"] and lm.model is tuned and theta
    assert all(torch.allclose(*pair) for pair in zip(tuned.parameters(), expected, strict=True))
    for other, says in ((tiny("gpt2"), "weights"), (tiny("llama", vocab=60), "shapes")):
        with pytest.raises(InputError, match=f"--finetuned tuned.*{says}.*fine-tuned from --model"):
            baselines.subtract(theta, other, args)
