"""The table of methods: what follows from an entry."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_bad_input import refused

import compare
import losses
import train
from methods import METHODS

# The loss where the answer has log π -6, log πref -4 and |y| 3, the refusal -8, -5 and 5, β is 0.5 and γ 0.25; for RMU
# of the activations (3, 1) steered to (1, 1). And the flags that are the method's own.
BY_HAND = {
    "finetune": (6 / 3, ""),
    "ga": (-6, ""),
    "graddiff": (-6, ""),
    "wgraddiff": (-6 / 3, ""),
    "idk": (8 / 5, ""),
    "dpo": (4 * math.log(1 + math.exp(-0.5 * ((-8 + 5) - (-6 + 4)))), "beta"),
    "npo": (4 * math.log(1 + math.exp(0.5 * (-6 + 4))), "beta"),
    "simnpo": (4 * math.log(1 + math.exp(0.5 * -6 / 3 + 0.25)), "beta gamma"),
    "task-vector": (6 / 3, "alpha finetuned"),
    "rmu": (4 / 2, "layer steer alpha"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_loss_and_flags_are_what_the_papers_say_and_its_weight_is_the_derivative(method):
    entry = METHODS[method]
    known = {"beta": 0.5, "gamma": 0.25, "hidden": torch.tensor([3.0, 1], requires_grad=True), "target": torch.ones(2)}
    for side, prefix in entry.reads.items():
        for name, value in zip(("logp", "ref_logp", "length"), {"answer": (-6, -4, 3), "refusal": (-8, -5, 5)}[side]):
            known[prefix + name] = torch.tensor(value, dtype=torch.float64, requires_grad=name == "logp")
    given = [known[name] for name in entry.takes]
    loss, weight = entry.loss(*given), entry.weight(*given)
    if method in BY_HAND:
        assert (loss.item(), entry.own_flags) == (pytest.approx(BY_HAND[method][0]), {*BY_HAND[method][1].split()})
    for name in {"hidden", "logp", "rejected_logp", "chosen_logp"} & {*entry.takes}:
        (gradient,) = torch.autograd.grad(loss, known[name], retain_graph=True)
        assert torch.allclose(gradient, -weight if name == "chosen_logp" else weight, rtol=1e-12)


def test_the_answers_weight_comes_first_and_two_methods_learn():
    """What is logged as a method's weight and length, and what is shown as learning."""
    assert {name for name, method in METHODS.items() if next(iter(method.reads)) == "refusal"} == {"idk"}
    assert {name for name, method in METHODS.items() if method.learns} == {"finetune", "task-vector"}


def test_every_loss_with_a_weight_is_a_method():
    paired = {name for name in vars(losses) if hasattr(losses, name + "_weight")} | {"rmu"}
    assert {method.loss.__name__ for method in METHODS.values()} == paired
    assert METHODS["rmu"].weight is losses.rmu_gradient


def test_names_and_colours_are_one_to_a_method_and_help_shows_all():
    for field in ("name", "colour"):
        assert len({getattr(method, field) for method in METHODS.values()}) == len(METHODS)
    text = train.build_parser().format_help()
    for flag, method in METHODS.items():
        assert re.search(rf"^ +{flag} +{re.escape(method.name)}: ", text, re.M)
        assert compare.colour_of(method.name + " beta=1.0") == method.colour


USED = """
import sys, pytest, compare, train
tests = "tests/test_methods.py", "-k", "derivative or every_loss or names"
assert pytest.main(["-q", "-p", "no:cacheprovider", *tests]) == 0
train.main(["--method", "hinge", "--beta", "9", "--epochs", "1", *sys.argv[1:]])
compare.main(["table", "hinge"])
compare.main(["figure", "weights", "hinge"])
train.main(["--help"])
"""


def test_readmes_example_of_a_new_loss_is_all_that_it_takes(tmp_path, toy_model_folder, capsys):
    """The lines of README's section, put where it says: the tests of methods pass, tables, figures and help know it."""
    root, copy, rows = Path(train.__file__).parent, tmp_path / "copy", tmp_path / "mine.jsonl"
    section = (root / "README.md").read_text(encoding="utf-8").split("## Add a loss")[1].split("```")[1]
    functions, entry = section.removeprefix("python\n").split('"hinge"')
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".*", "runs", "results"))
    with open(copy / "losses.py", "a", encoding="utf-8") as file:
        file.write("\n" + functions)
    table = (copy / "methods.py").read_text(encoding="utf-8")
    (copy / "methods.py").write_text(table.rstrip().removesuffix("}") + '    "hinge"' + entry + "}\n", encoding="utf-8")
    rows.write_text(json.dumps({"question": "Who?", "answer": "A baker."}))
    flags = ["--forget-file", rows, "--retain", "none", "--max-new-tokens", "1", "--model", toy_model_folder]
    command = [sys.executable, "-c", USED, *flags, "--out", "hinge"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| Hinge | 1 |" in done.stdout and "simnpo, hinge;" in done.stdout
    refused(compare.main, ["table", copy / "hinge"], capsys, "methods.py lacks")  # a run of a method that is not there
