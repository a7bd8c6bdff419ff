"""Grids of settings: the best of each method, and the paper's Fig. A1. Reads runs of train.py, loads no model.

python results/grid.py choose RUN...                 the setting that keeps 95% of utility and forgets best
python results/grid.py choose RUN... --nearest "forget probability"     or comes nearest to Retrain's
python results/grid.py paths RUN...                  the cheapest of those that forget in the middle of the run
python results/grid.py draw RUN... --out FILE.png    SimNPO over β and γ
"""

import math

import numpy as np
from common import parser_of_runs
from paths import add_never_learnt, reading, with_paths

from compare import (
    add_picture_flags,
    benchmark_of,
    check_picture,
    compared_models,
    group_runs,
    panels,
    read,
    with_quality,
)
from machinery.command import number, run_command
from machinery.inputs import InputError


def choose(runs, keep=0.95, nearest=None):
    """The setting of each method that forgets best, in the mean, while it keeps `keep` of what Original has.

    By forget quality and model utility, or what stands for them in the benchmark. nearest: the name of a column in
    whose place Retrain's value is the aim; then it must keep `keep` of what Retrain has, if that is less than Original.
    Of equals the one that keeps more; where none keeps enough, the one that keeps most.
    """
    kept, forgotten = benchmark_of(runs).kept, benchmark_of(runs).forgotten
    others = compared_models(runs)

    def mean_of(column, metrics):
        values = [column.value(each) for each in metrics]
        if None in values:
            raise InputError(f"not all of these runs have '{column.name}'; leave out those that lack it")
        return np.mean(values)

    for name in ("Original", "Retrain") if nearest else ("Original",):
        if not others.get(name):
            raise InputError(f"these runs have no {name} to compare utility with; give runs that have one")
    floor = keep * mean_of(kept, others["Original"])
    if nearest:
        forgotten = column_of(runs, nearest)
        aim = mean_of(forgotten, others["Retrain"])
        floor = min(floor, keep * mean_of(kept, others["Retrain"]))

    # the best score of each method: (does it keep enough, what counts then, what it keeps, its line)
    best = {}
    for label, group in group_runs(runs).items():
        reached, rest = (mean_of(column, [run["metrics"] for run in group]) for column in (forgotten, kept))
        gain = -abs(reached - aim) if nearest else reached
        line = f"{label:60s} {forgotten.name} {reached:.3g}  {kept.name} {rest:.3f}  runs {len(group)}"
        score = rest >= floor, gain if rest >= floor else rest, rest, line
        name = group[0]["name"]
        best[name] = max(score, best.get(name, score))
    what = f"{forgotten.name} nearest to Retrain's, {aim:.3g}," if nearest else f"highest {forgotten.name}"
    title = f"{what} among settings with {kept.name} of at least {floor:.3f}"
    return "\n".join([title, *(line for *_, line in best.values())])


def column_of(runs, name):
    """The column of that name of the runs' benchmark."""
    columns = {column.name: column for column in benchmark_of(runs).columns}
    if name not in columns:
        raise InputError(f"--nearest: no column '{name}'; there are {', '.join(columns)}")
    return columns[name]


def choose_paths(runs, never_learnt=None, first=6 / 16, last=11 / 16):
    """The setting of each method with the least loss on retain when the forget answers reach Retrain's loss.

    Of those that reach it in every run, in the mean between the shares `first` and `last` of all epochs: so that all
    methods have had about as many retain steps by then. Every setting is listed, the chosen ones with a star.
    """
    lines, best = {}, {}
    for label, group in with_paths(runs, never_learnt).items():
        # epoch and retain loss where the runs arrive
        arrivals = [[reading(run, "learnt", 1, quantity) for quantity in ("epoch", "retain")] for run in group.values()]
        arrivals = [arrival for arrival in arrivals if None not in arrival]
        epoch, cost = np.mean(arrivals, 0) if arrivals else (math.nan, math.nan)
        reached = f"reached by {len(arrivals)} of {len(group)}, at epoch {epoch:.1f}, retain loss {cost:.4f}"
        lines[label] = f"{label:50s} {reached}"

        run = next(iter(group.values()))
        name, epochs = run["name"], run["path"][0]["epoch"][-1]
        if len(arrivals) == len(group) and first <= epoch / epochs <= last:
            best[name] = min((cost, label), best.get(name, (math.inf, label)))
    chosen = [label for _, label in best.values()]
    return "\n".join(("* " if label in chosen else "  ") + line for label, line in lines.items())


def draw(runs):
    """Fig. A1: forget quality and model utility over β and γ, from runs of SimNPO in a loop over both."""
    names = sorted({run["name"] for run in runs})
    if names != ["SimNPO"]:
        raise InputError(f"the grid is SimNPO's, these are of {' and '.join(names)}; give runs of --method simnpo")
    cells = {}
    for label, group in group_runs(runs).items():
        if any(not flag.startswith(("beta=", "gamma=")) for flag in label.split(" ")[1:]):
            raise InputError(f"these runs differ in more than β and γ ({label}); give those of one setting")
        flags = group[0]["flags"]
        cells[flags["beta"], flags["gamma"]] = [run["metrics"] for run in group]

    betas = sorted({beta for beta, _ in cells})
    gammas = sorted({gamma for _, gamma in cells})
    benchmark = benchmark_of(runs)
    figure, (axes,) = panels(1, 2, width=4.6, height=3.6)
    for axis, column, form in zip(axes, (benchmark.forgotten, benchmark.kept), (".2g", ".3g"), strict=True):
        values = np.full((len(betas), len(gammas)), math.nan)
        for (beta, gamma), group in cells.items():
            values[betas.index(beta), gammas.index(gamma)] = np.mean([column.value(metrics) for metrics in group])
        image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        box = {"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1}
        for i, j in np.ndindex(values.shape):
            text = f"{values[i, j]:{form}}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white", bbox=box)
        axis.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        axis.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axis.set(xlabel="γ", ylabel="β", title=column.name)
        figure.colorbar(image, ax=axis)
    return figure


def run(args):
    if args.kind == "paths":
        runs = read(args.runs, "log.jsonl", "reference.log.json")
        return print(choose_paths(runs, args.never_learnt, last=args.until))
    if args.kind == "choose":
        return print(choose(with_quality(read(args.runs)), nearest=args.nearest))
    out = check_picture(args.out or "grid.png", args.overwrite)
    draw(with_quality(read(args.runs))).savefig(out, dpi=110)
    print(f"drawn: {out}")


def main(argv=None):
    parser = parser_of_runs("grid.py", __doc__, kinds=("choose", "paths", "draw"))
    add_never_learnt(parser)
    until = "paths: share of the run in which the answers must get there (default: the middle, 11/16)"
    parser.add_argument("--until", type=number(float, 0, high=1), default=11 / 16, metavar="SHARE", help=until)
    parser.add_argument("--nearest", metavar="COLUMN", help="choose by what comes nearest to Retrain's, not by quality")
    add_picture_flags(parser, "grid.png")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
