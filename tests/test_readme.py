"""What README and the pages say is there: links, files, flags, and the numbers that one can compute."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import losses
import train

ROOT = Path(train.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("results/*.md")])
COMMANDS = "README.md", "results/metrics.md", "results/using.md"  # other pages name files of the reader's own
README = (ROOT / "README.md").read_text(encoding="utf-8")


def headings_of(page):
    """The anchors that a page of a repository has."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in [link for link in links if "://" not in link]:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings_of(target), link


def commands():
    """(script, kind, flags) of each command of COMMANDS that runs a script of this project; kind: `table`, …"""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in COMMANDS)
    text = text.replace("\\\n", " ")
    found = re.findall(r"python ([\w/]+\.py)([^`\n]*)", text)
    kinds = [re.findall(r"^ (table|answers|figure)\b", rest) for _, rest in found]
    flags = [re.findall(r"--[a-z][\w-]*", rest) for _, rest in found]
    return sorted({(script, *kind[:1], *of_it) for (script, _), kind, of_it in zip(found, kinds, flags, strict=True)})


@pytest.mark.parametrize("script, words", [(script, words) for script, *words in commands()], ids=str)
def test_commands_name_scripts_and_flags_that_exist(script, words, capsys, monkeypatch):
    assert (ROOT / script).exists()
    if script.startswith("tests/"):
        return
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    module = importlib.import_module(Path(script).stem)
    with pytest.raises(SystemExit):
        module.main([*[word for word in words if word[0] != "-"], "--help"])
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert {word for word in words if word[0] == "-"} <= known


def test_the_two_answers_weights_are_those_of_losses_py():
    """The table of README, whose cells end with a number, or are one."""
    rows = [line.split("|")[2:6] for line in README.splitlines() if re.match(r"\| (at the start|later) \|", line)]
    shown = [[cell.split("=")[-1].strip() for cell in row] for row in rows]
    logp, length = torch.tensor([[-0.5, -5.0], [-5.5, -55.0]]), torch.tensor([5, 50])
    npo = losses.npo_weight(logp, logp[0], 0.1).tolist()
    simnpo = losses.simnpo_weight(logp, length, 2.5).tolist()
    for row, *weights in zip(shown, npo, simnpo, strict=True):
        digits = [len(text.partition(".")[2]) for text in row]
        assert row == [f"{weight:.{digit}f}" for digit, weight in zip(digits, sum(weights, []), strict=True)]


def test_readmes_python_prints_what_the_table_says(capsys):
    (code,) = re.findall(r'python -c "([^"]+)"', README)
    exec(code, {})  # noqa: S102
    assert capsys.readouterr().out.strip() == "tensor([0.1751, 0.0175])"
    assert sys.modules["losses"] is losses
