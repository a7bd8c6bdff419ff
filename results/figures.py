"""Figures of the paper that compare.py does not draw, from what runs of train.py wrote.

python results/figures.py KIND RUN… [--out FILE.png]
"""

import math

import numpy as np
import scipy.stats
from claims import correlation
from common import MUSE, TOFU, check_task, parser_of_runs

from benchmarks import muse, tofu
from compare import (
    add_picture_flags,
    benchmark_of,
    check_picture,
    compared_key,
    draw_path,
    epochs,
    group_runs,
    panels,
    read,
    with_quality,
)
from machinery.command import run_command
from machinery.inputs import InputError
from machinery.statistics import spread

# ------------------------------------------------------------------ truth ratios, and Min-K%


def half_of(run, half):
    """(log10 truth ratios of the shorter half (0) or the longer (1) of the forget set, Retrain's) of a run."""
    forget = run["metrics.log.json"]["forget"]
    retrained = run["reference.log.json"].get("Retrain")
    if not retrained:
        raise InputError(f"run '{run['folder']}' has no Retrain's log; train it with --retrain")
    mine, theirs = tofu.shared_rows(forget, retrained)
    rows = tofu.halves_of(np.array(forget["length"])[mine])[half]
    return tofu.log_ratio(forget)[mine][rows], tofu.log_ratio(retrained)[theirs][rows]


def draw_halves(runs):
    """Fig. 2, A4: truth ratios of the shortest and the longest half of the forget set, against Retrain's."""
    check_task(runs, "figure halves", TOFU)
    groups = group_runs(runs)
    figure, axes = panels(2, len(groups))
    for column, (label, group) in enumerate(groups.items()):
        for half, axis in enumerate(axes[:, column]):
            pairs = [half_of(run, half) for run in group]
            mine, retrained = (np.concatenate(values) for values in zip(*pairs, strict=True))
            for name, values, colour in (("Retrain", retrained, "grey"), (label, mine, group[0]["colour"])):
                draw_density(axis, values, name, colour)
            both = np.concatenate([mine, retrained])
            qualities = [tofu.forget_quality(*pair) for pair in pairs]
            axis.set(xlabel="log10 truth ratio", ylabel="density", xlim=(both.min() - 0.5, both.max() + 0.5))
            axis.set_title(f"{('shortest', 'longest')[half]} half: FQ {spread(qualities, '.2g')}", fontsize=9)
            axis.legend(fontsize=7)
    return figure


def draw_density(axis, values, name, colour):
    """A histogram, and an estimate of the density unless all values are the same."""
    axis.hist(values, bins=np.arange(-12, 12.1, 0.1), density=True, alpha=0.2, color=colour)
    if np.ptp(values) > 1e-9:
        x = np.linspace(values.min() - 0.5, values.max() + 0.5, 200)
        axis.plot(x, scipy.stats.gaussian_kde(values)(x), color=colour, label=name)


def draw_mink(runs):
    """Fig. A2: Min-K% scores of forget, retain and holdout texts (MUSE); a panel per model, all its runs."""
    check_task(runs, "figure mink", MUSE)

    # {model: the log of each of its runs}
    logs = {}
    for name in ("Original", "Retrain"):
        models = {compared_key(run): run["reference.log.json"].get(name) for run in runs}
        logs[name] = [log for log in models.values() if log and "privleak_forget" in log]
    for label, group in group_runs(runs).items():
        logs[label] = [run["metrics.log.json"] for run in group]
    logs = {name: group for name, group in logs.items() if group}

    figure, (axes,) = panels(1, len(logs))
    for axis, (name, group) in zip(axes, logs.items(), strict=True):
        for part, colour in zip(muse.TEXTS, ("C3", "C2", "black"), strict=True):
            values = np.concatenate([log[f"privleak_{part}"]["score"] for log in group])
            axis.hist(values, bins=30, density=True, alpha=0.4, color=colour, label=part)
        areas = [muse.auc(log["privleak_forget"]["score"], log["privleak_holdout"]["score"]) for log in group]
        axis.set_title(f"{name}: AUC {spread(areas, '.2f')}", fontsize=9)
        axis.set(xlabel="Min-40% score (nats)", ylabel="density")
        axis.legend(fontsize=7)
    return figure


# ------------------------------------------------------------------ weights over epochs


def draw_weights(runs):
    """Fig. 3a, 5: gradient weight against response length at epochs 1, 2, 3 and 10; a row per run."""
    figure, axes = panels(len(runs), 4)
    for row, run in zip(axes, runs, strict=True):
        pictures = epochs(run["log.jsonl"])
        weights = [weight for picture in pictures for weight in picture["weight"]]
        limits = min(0, min(weights) * 1.05), max(0, max(weights) * 1.05)  # of a loss that is lowered they are negative
        for axis, epoch in zip(row, (1, 2, 3, min(10, len(pictures))), strict=True):
            if epoch > len(pictures):
                axis.set_axis_off()
                continue
            picture = pictures[epoch - 1]
            axis.scatter(picture["length"], picture["weight"], s=10, alpha=0.6, color=run["colour"])
            axis.set_title(f"epoch {picture['epoch']}: {r_of(picture)}", fontsize=9)
            axis.set(xlabel="response length |y|", ylim=limits if any(limits) else (0, 1))
        row[0].set_ylabel(f"weight of {run['name']}")
    return figure


def r_of(picture):
    """Pearson's r of weight and length and its 95% interval, as text."""
    if not correlation(picture):
        return "r = 0 (all alike)"
    result = scipy.stats.pearsonr(picture["length"], picture["weight"])
    low, high = result.confidence_interval() if len(picture["length"]) > 3 else (math.nan, math.nan)
    return f"r = {result.statistic:.2f} [{low:.2f}, {high:.2f}]"


def draw_boxes(runs):
    """Fig. 3b: the gradient weights of all forget sequences in each epoch, as box plots; a panel per run."""
    figure, (axes,) = panels(1, len(runs), width=5)
    for axis, run in zip(axes, runs, strict=True):
        pictures = epochs(run["log.jsonl"])
        numbers = [picture["epoch"] for picture in pictures]
        axis.boxplot(
            [picture["weight"] for picture in pictures],
            positions=numbers,
            widths=0.6,
            flierprops={"markersize": 2},
            medianprops={"color": run["colour"]},
        )
        ticks = numbers[:: max(1, len(numbers) // 10)]
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(xlabel="epoch", ylabel="gradient weight", title=run["name"])
        if min(min(picture["weight"]) for picture in pictures) >= 0:
            axis.set_ylim(bottom=0)
    return figure


# ------------------------------------------------------------------ relearning


def draw_relearn(runs):
    """Fig. A3: what stays forgotten after each epoch of relearning a part of the forget set."""
    figure, ((axis,),) = panels(1, 1, width=5.6, height=4)
    column = benchmark_of(runs).over_epochs[0]
    for label, group in group_runs(runs).items():
        if not all(run["start"] for run in group):
            raise InputError(
                f"run '{group[0]['folder']}' is not one of relearning; make those with --method "
                "finetune --model RUN --eval epoch"
            )
        draw_path(axis, group, column.value, label, linestyle="--" if "random" in label else "-", marker="o")
    axis.set(xlabel="epochs of relearning", ylabel=column.name, xticks=range(1 + len(runs[0]["epochs.jsonl"])))
    axis.legend(fontsize=7)
    return figure


# ------------------------------------------------------------------ the command

# kind: (function, whether it shows what was forgotten and kept, files of a run that it needs besides metrics.json)
FIGURES = {
    "halves": (draw_halves, True, "metrics.log.json", "reference.log.json"),
    "mink": (draw_mink, False, "metrics.log.json", "reference.log.json"),
    "weights": (draw_weights, False, "log.jsonl"),
    "boxes": (draw_boxes, False, "log.jsonl"),
    "relearn": (draw_relearn, True, "epochs.jsonl"),
}


def run(args):
    draw, measured, *files = FIGURES[args.kind]
    out = check_picture(args.out or f"{args.kind}.png", args.overwrite)
    runs = read(args.runs, *files)
    draw(with_quality(runs) if measured else runs).savefig(out, dpi=110)
    print(f"written: {out}")


def main(argv=None):
    kinds = "".join(f"\n    {kind:9s} {draw.__doc__}" for kind, (draw, *_) in FIGURES.items())
    parser = parser_of_runs("figures.py", __doc__ + kinds, kinds=FIGURES)
    add_picture_flags(parser)
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
