"""The table of methods: what follows from an entry."""
import re

import pytest
import torch

import compare
import losses
import train
from methods import METHODS, Method


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_the_derivative_of_the_loss_in_each_response_that_it_reads(method):
    method = METHODS[method]
    known = {"beta": 0.7, "gamma": 0.3}
    for side, prefix in method.reads.items():
        known[prefix + "logp"] = torch.linspace(-40, -0.5, 7, dtype=torch.float64).requires_grad_()
        known[prefix + "ref_logp"] = torch.linspace(-30, -3, 7, dtype=torch.float64)
        known[prefix + "length"] = torch.tensor([30, 20, 10, 5, 4, 2, 1])
    given = [known[name] for name in method.takes]
    weight = method.weight(*given)
    for prefix in method.reads.values():
        gradient, = torch.autograd.grad(method.loss(*given).sum(), known[prefix + "logp"], retain_graph=True)
        assert torch.allclose(gradient, -weight if prefix == "chosen_" else weight, rtol=1e-12)


def test_every_loss_with_a_weight_is_a_method():
    paired = {name for name in vars(losses) if hasattr(losses, name + "_weight")}
    assert {method.loss.__name__ for method in METHODS.values()} == paired
    assert all(method.weight.__name__ == method.loss.__name__ + "_weight" for method in METHODS.values())


def test_names_and_colours_are_one_to_a_method_and_help_shows_all():
    for field in ("name", "colour"):
        assert len({getattr(method, field) for method in METHODS.values()}) == len(METHODS)
    text = train.build_parser().format_help()
    assert all(re.search(rf"^ +{flag} +{re.escape(method.name)}: ", text, re.M) for flag, method in METHODS.items())
    assert [compare.colour_of(method.name + " beta=1.0") for method in METHODS.values()] == [
        method.colour for method in METHODS.values()]


def test_an_entry_is_all_that_a_new_loss_needs(monkeypatch, tmp_path, toy_model_folder, capsys):
    """README's example, from the flag to the table."""
    def hinge(logp, length, beta):
        return torch.relu(beta + logp / length)

    def hinge_weight(logp, length, beta):
        return (beta + logp / length > 0) / length
    monkeypatch.setitem(METHODS, "hinge", Method("Hinge", "C9", "stops at β nats a token", hinge, hinge_weight))
    runs = [tmp_path / "a", tmp_path / "b"]
    for method, out in zip(("hinge", "npo"), runs):
        train.main(["--method", method, "--model", str(toy_model_folder), "--out", str(out), "--epochs", "1", "--beta", "9",
                    "--max-new-tokens", "2"])
    compare.main(["table", *map(str, runs)])
    compare.main(["figure", "weights", *map(str, runs), "--out", str(tmp_path / "f.png")])
    assert "\n| Hinge | 1 |" in capsys.readouterr().out
    monkeypatch.undo()  # a run of a method that is there no more
    with pytest.raises(SystemExit) as stop:
        compare.main(["table", *map(str, runs)])
    assert stop.value.code == 2 and "methods.py lacks" in capsys.readouterr().err
