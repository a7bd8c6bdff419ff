"""Grids of settings: the best of each method, and the paper's Fig. A1. Reads runs of train.py, loads no model.

python results/grid.py choose RUN...                 the setting that keeps 95% of utility and forgets best
python results/grid.py paths RUN...                  the cheapest of those that forget in the middle of the run
python results/grid.py draw RUN... --out FILE.png    SimNPO over β and γ
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import runs
from compare import (
    benchmark_of,
    group_runs,
    panels,
    quality,
    read,
    reading,
    references_of,
    utility,
    with_paths,
    with_quality,
)
from data import InputError


def choose(found, keep=0.95):
    """The setting of each method that forgets best, in the mean, while it keeps `keep` of what Original has.

    By forget quality and model utility, or what stands for them in the benchmark (FORGOTTEN and KEPT). Of equals
    the one that keeps more; where none keeps enough, the one that keeps most.
    """
    (kept_name, kept_of), (gained_name, gained_of) = benchmark_of(found).KEPT, benchmark_of(found).FORGOTTEN
    original = references_of(found).get("Original")
    if not original:
        raise InputError("these runs have no Original to compare utility with; give runs that start from one")
    floor, scored = keep * np.mean([*map(kept_of, original)]), {}
    for label, group in group_runs(found).items():
        gained, kept = (np.mean([of(run["metrics"]) for run in group]) for of in (gained_of, kept_of))
        line = f"{label:60s} {gained_name} {gained:.3g}  {kept_name} {kept:.3f}  runs {len(group)}"
        score = kept >= floor, gained if kept >= floor else kept, kept, line
        scored[group[0]["name"]] = max(score, scored.get(group[0]["name"], score))
    return "\n".join(
        [
            f"highest {gained_name} among settings with {kept_name} of at least {floor:.3f}",
            *(line for *_, line in scored.values()),
        ]
    )


def choose_paths(found, first=6, last=11):
    """The setting of each method with the least loss on retain when the forget answers reach Retrain's loss.

    Of those that reach it in every run, in the mean between epochs `first` and `last`: so that all methods have had
    about as many retain steps by then. Every setting is listed, the chosen ones with a star.
    """
    lines, best = {}, {}
    for label, group in with_paths(found).items():
        for run in group.values():
            run["path"][0]["epoch"] = [line["epoch"] for line in run["path.jsonl"]]
        at = [(reading(run, "learnt", 1, "epoch"), reading(run, "learnt", 1, "retain")) for run in group.values()]
        at = [each for each in at if None not in each]
        epoch, cost = np.mean(at, 0) if at else (math.nan, math.nan)
        name = next(iter(group.values()))["name"]
        lines[label] = f"{label:50s} reached by {len(at)} of {len(group)}, at epoch {epoch:.1f}, retain loss {cost:.4f}"
        if len(at) == len(group) and first <= epoch <= last:
            best[name] = min((cost, label), best.get(name, (math.inf, label)))
    chosen = [label for _, label in best.values()]
    return "\n".join(("* " if label in chosen else "  ") + line for label, line in lines.items())


def draw(found):
    """Fig. A1: forget quality and model utility over β and γ, from runs of SimNPO in a loop over both."""
    cells, names = {}, sorted({run["name"] for run in found})
    if names != ["SimNPO"]:
        raise InputError(f"the grid is SimNPO's, these are of {' and '.join(names)}; give runs of --method simnpo")
    for label, group in group_runs(found).items():
        if any(not flag.startswith(("beta=", "gamma=")) for flag in label.split(" ")[1:]):
            raise InputError(f"these runs differ in more than β and γ ({label}); give those of one setting")
        cells[group[0]["flags"]["beta"], group[0]["flags"]["gamma"]] = [run["metrics"] for run in group]
    betas, gammas = (sorted(set(side)) for side in zip(*cells))
    figure, (axes,) = panels(1, 2, width=4.6, height=3.6)
    for axis, of, title, form in zip(axes, (quality, utility), ("forget quality", "model utility"), (".2g", ".3g")):
        values = np.full((len(betas), len(gammas)), math.nan)
        for (beta, gamma), group in cells.items():
            values[betas.index(beta), gammas.index(gamma)] = np.mean([*map(of, group)])
        image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        for i, j in np.ndindex(values.shape):
            axis.text(
                j,
                i,
                f"{values[i, j]:{form}}",
                ha="center",
                va="center",
                fontsize=8,
                color="white",
                bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1},
            )
        axis.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        axis.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axis.set(xlabel="γ", ylabel="β", title=title)
        figure.colorbar(image, ax=axis)
    return figure


def run(args):
    if args.what == "paths":
        return print(choose_paths(read(args.runs, "path.jsonl", "reference.log.json")))
    found = with_quality(read(args.runs))
    if args.what == "choose":
        return print(choose(found))
    if args.out.suffix != ".png" or not args.out.parent.is_dir():
        raise InputError(f"--out: '{args.out}' is not the name of a .png file in an existing folder")
    draw(found).savefig(args.out, dpi=110)
    print(f"drawn: {args.out}")


def main(argv=None):
    parser = runs.OneLineParser(prog="grid.py", description=__doc__)
    parser.add_argument("what", choices=("choose", "paths", "draw"))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of train.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("toy-grid.png"), help="a PNG")
    runs.run_command(parser, argv, run)


if __name__ == "__main__":
    main()
