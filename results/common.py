"""What the scripts of results/ share: runs of one benchmark, one run per seed, and whether a claim holds.

They import it before anything of the project, since it puts the project's root where imports are looked for.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from compare import benchmark_of
from machinery.command import OneLineParser
from machinery.inputs import InputError
from machinery.statistics import interval

TOFU = "toy", "tofu"
MUSE = "toy-muse", "muse-news", "muse-books"


def check_task(runs, what, tasks):
    """InputError unless the runs are of one of `tasks`, which `what` is about."""
    name = benchmark_of(runs).name
    if name not in tasks:
        mend = "; results/paths.py compares those at equal forgetting" if name == "own" else ""
        raise InputError(f"{what} is of {' and '.join(tasks)}; these runs are of {name}{mend}")


def add_seed(by_seed, run):
    """Put a run into {seed: run}. InputError if there is one of its seed."""
    if run["seed"] in by_seed:
        original, own = run["seed"]
        of_original = f" from an Original of seed {original}" if original != own else ""
        raise InputError(f"run '{run['folder']}' is a second one of seed {own}{of_original}; give one")
    by_seed[run["seed"]] = run


def check_new(path):
    """InputError unless a folder for files to be written in is new, or empty."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} is there and not empty; name another folder")


def verdict(values, sign):
    """holds, does not hold, or can't tell: is the mean of `values` >, >= or < 0, by its 95% interval?"""
    if len(values) < 2:
        return "can't tell" if values else "no runs for it"
    _, low, high = interval(values)
    if sign == "<":
        low, high = -high, -low
    if low > 0 or (sign == ">=" and low == 0):
        return "holds"
    return "does not hold" if high < 0 or (sign != ">=" and high == 0) else "can't tell"


def parser_of_runs(name, about, kinds=None):
    """The parser of a script that takes folders of runs, and before them one of `kinds` if there are any."""
    parser = OneLineParser(prog=name, description=about)
    if kinds:
        parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of train.py")
    return parser
