"""The table of methods: what follows from an entry."""
import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compare
import losses
import train
from methods import METHODS


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rmu"])
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
    paired = {name for name in vars(losses) if hasattr(losses, name + "_weight")} | {"rmu"}
    assert {method.loss.__name__ for method in METHODS.values()} == paired
    assert all(method.weight.__name__ == method.loss.__name__ + ("_gradient" if flag == "rmu" else "_weight")
               for flag, method in METHODS.items())


def test_names_and_colours_are_one_to_a_method_and_help_shows_all():
    for field in ("name", "colour"):
        assert len({getattr(method, field) for method in METHODS.values()}) == len(METHODS)
    text = train.build_parser().format_help()
    assert all(re.search(rf"^ +{flag} +{re.escape(method.name)}: ", text, re.M) for flag, method in METHODS.items())
    assert [compare.colour_of(method.name + " beta=1.0") for method in METHODS.values()] == [
        method.colour for method in METHODS.values()]


def test_readmes_example_of_a_new_loss_is_all_that_it_takes(tmp_path, toy_model_folder):
    """The lines of README's section, put where it says: the tests of losses and methods pass, tables and figures know it."""
    root = Path(train.__file__).parent
    section = (root / "README.md").read_text(encoding="utf-8").split("## Add a loss")[1].split("```")[1]
    functions, entry = section.removeprefix("python\n").split('"hinge"')
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".*", "runs", "results"))
    with open(copy / "losses.py", "a", encoding="utf-8") as file:
        file.write("\n" + functions)
    table = (copy / "methods.py").read_text(encoding="utf-8")
    (copy / "methods.py").write_text(table.rstrip().removesuffix("}") + '    "hinge"' + entry + "}\n", encoding="utf-8")

    def python(*arguments):
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_methods.py", "-k",
           "derivative or every_loss or names")
    for method in ("hinge", "npo"):
        python("train.py", "--method", method, "--model", toy_model_folder, "--epochs", "1", "--beta", "9",
               "--max-new-tokens", "1", "--out", method)
    assert "| Hinge | 1 |" in python("compare.py", "table", "hinge", "npo")
    python("compare.py", "figure", "weights", "hinge", "npo")
    assert "simnpo, hinge;" in python("train.py", "--help")
    done = subprocess.run([sys.executable, root / "compare.py", "table", copy / "hinge"], capture_output=True, text=True)
    assert done.returncode == 2 and "methods.py lacks" in done.stderr  # a run of a method that is not there


def test_an_unknown_method_falls_into_no_branch():
    with pytest.raises(KeyError):
        train.forget_loss(None, {"answer": []}, [], argparse.Namespace(method="magic", beta=1.0, gamma=0.0))
