"""The table of methods: what follows from an entry."""

import inspect
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import compare
import losses
import methods
import train
from data import Response
from methods import METHODS

# The loss where the answer has log π -6, log πref -4 and |y| 3, the refusal -8, -5 and 5, β is 0.5 and γ 0.25; for RMU
# of the activations (3, 1) steered to (1, 1). And the flags that are the method's own.
REF, LOWERED = math.exp(-4 / 3), math.exp(-4 / 3 - 0.5)
CROSS = (2 * LOWERED - (1 - REF) * math.log(1 - math.exp(-2))) / (1 - REF + LOWERED)  # of two tokens in all
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
    # each of three tokens has log p -2, log p_ref -4/3
    "wga": (-2 * math.exp(-2 * 0.5), "beta"),
    "satimp": (-2 * math.exp(-2 * 0.5) * (1 - math.exp(-2)) ** 0.75, "beta beta2"),
    "tnpo": (4 * math.log(1 + math.exp(0.5 * (-2 + 4 / 3))), "beta"),
    "ceu": (-math.log(1 - math.exp(-2)), ""),
    "undial": (CROSS, "beta"),
    "rmu": (4 / 2, "layer steer alpha"),
}
ARGS = SimpleNamespace(beta=0.5, beta2=0.75, gamma=0.25)


def a_response(logp, length, ref=None):
    """The Response of one example, whose tokens are equally likely; there are two, of which it has the second."""
    logp = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    token_logp = (logp / length).expand(length)
    logits = torch.stack([torch.log1p(-token_logp.exp()), token_logp], -1)
    targets = torch.ones(length, dtype=torch.int64)
    return Response(logp, torch.tensor([length]), (token_logp,), (targets,), (logits,), ref)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_loss_and_flags_are_what_the_papers_say_and_its_weight_is_the_derivative(name):
    """Of the first thing that it reads; where that is the answer beside a refusal, the refusal's is the opposite."""
    method = METHODS[name]
    refs = {"answer": a_response(-4.0, 3), "refusal": a_response(-5.0, 5)}
    sides = {"answer": a_response(-6.0, 3, refs["answer"]), "refusal": a_response(-8.0, 5, refs["refusal"])}
    inputs = [sides[side] for side in method.reads]
    variables = [response.logp for response in inputs]
    if name == "rmu":
        variables = [torch.tensor([3.0, 1.0], requires_grad=True)]
        inputs = [variables[0], torch.ones(2)]

    if name in BY_HAND:
        value, flags = BY_HAND[name]
        assert method.loss(ARGS, *inputs).item() == pytest.approx(value) and {*method.flags} == {*flags.split()}
    for args in (ARGS, SimpleNamespace(beta=5.0, beta2=0.5, gamma=0.5)):
        loss, weight = method.loss(args, *inputs), method.weight(args, *inputs)
        gradients = torch.autograd.grad(loss.sum(), variables, retain_graph=True)
        assert torch.allclose(gradients[0], weight, rtol=1e-12)
        if name == "dpo":
            assert torch.allclose(gradients[1], -weight, rtol=1e-12)
    assert weight.abs().sum() > 0  # else the derivative says nothing


def test_the_answers_weight_comes_first():
    """What is logged as a method's weight and length; and who needs what."""
    assert {name for name in BY_HAND if METHODS[name].reads[0] == "refusal"} == {"idk"}
    assert {name for name in BY_HAND if METHODS[name].reads == ("answer", "refusal")} == {"dpo"}
    assert {name for name in BY_HAND if METHODS[name].needs_reference} == {"dpo", "npo", "tnpo", "undial"}
    assert {name for name in BY_HAND if METHODS[name].needs_logits} == {"ceu", "undial"}


def test_every_loss_with_a_weight_is_a_method():
    """And is called by its name, so that it can be searched for."""
    paired = {name for name in vars(losses) if hasattr(losses, name + "_weight")}
    for called in [f"{name}{end}" for name in paired for end in ("", "_weight")] + ["rmu", "rmu_gradient"]:
        assert re.search(rf"\blosses\.{called}[(,]", inspect.getsource(methods)), called


def test_names_and_colours_are_one_to_a_method_and_help_shows_all():
    for field in ("name", "colour"):
        assert len({getattr(method, field) for method in METHODS.values()}) == len(METHODS)
    text = train.build_parser().format_help()
    for flag, method in METHODS.items():
        assert re.search(rf"^ +{flag} +{re.escape(method.name)}: ", text, re.M)


# ------------------------------------------------------------------ README's section "Add a loss"

ROOT = Path(train.__file__).parent
USED = """
import sys, pytest, compare, train
name, *flags = sys.argv[1:]
tests = "tests/test_methods.py", "--deselect", "tests/test_methods.py::THIS"
assert pytest.main(["-q", "-p", "no:cacheprovider", *tests]) == 0
train.main(["--method", name, "--beta", "9", "--epochs", "1", *flags, "--out", "run"])
compare.main(["table", "run"])
train.main(["--help"])
"""


def readmes_example(**renamed):
    """{file: text to put there} of README's section, with words in it renamed."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Add a loss")[1].split("```")[1]
    for word, other in renamed.items():
        assert word in section
        section = section.replace(word, other)
    _, functions, entry = re.split(r"^# (?:losses|methods)\.py\n", section, flags=re.M)
    return {"losses.py": functions.rstrip() + "\n", "methods.py": entry}


def test_readmes_example_of_a_new_loss_is_all_that_it_takes(tmp_path, toy_model_folder, capsys):
    """Put where it says, under another name: the tests pass, it trains, tables and help know it."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "results"))
    example = readmes_example(hinge="readmes_own", Hinge="README's own", olive="#818100")
    code, table = [(copy / name).read_text(encoding="utf-8") for name in example]
    (copy / "losses.py").write_text(f"{code}\n\n{example['losses.py']}", encoding="utf-8")
    assert table.rstrip().endswith("\n}")
    (copy / "methods.py").write_text(table.rstrip()[:-1] + example["methods.py"] + "}\n", encoding="utf-8")

    # used
    rows = tmp_path / "mine.jsonl"
    rows.write_text(json.dumps({"question": "Who?", "answer": "A baker."}))
    flags = ["--forget-file", rows, "--retain", "none", "--max-new-tokens", "1", "--model", toy_model_folder]
    this = test_readmes_example_of_a_new_loss_is_all_that_it_takes.__name__
    command = [sys.executable, "-c", USED.replace("THIS", this), "readmes_own", *flags]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| README's own | 1 |" in done.stdout
    shown = " ".join(done.stdout.split())
    assert "readmes_own README's own: stops at β nats a token" in shown
    assert re.search(r"--beta BETA [a-z_, -]*\breadmes_own: temperature", shown)

    # a run of a method that this project lacks is shown too
    compare.main(["table", str(copy / "run")])
    assert "| README's own | 1 |" in capsys.readouterr().out
