"""What a constant in the truth ratio does to forget quality.

    python results/constant.py logs LOG.json RETRAIN.json    adds D nats to every loss of a log, which changes no true c
    python results/constant.py runs RUN... --out FILE.png    runs that forgot too much, through both formulas

TOFU's c = exp(mean wrong loss − right loss). A newer framework computes c' = p(wrong) / (p(right) + 1e-10).
"""

import sys

import numpy as np
from common import TOFU, check_task

from benchmarks import tofu
from compare import add_picture_flags, check_picture, panels, read
from machinery.command import OneLineParser, run_command
from machinery.inputs import InputError, check


def inverse_with_constant(forget, nats=0.0):
    """c' [N] of the forget part of a log with `nats` added to every loss."""
    wrong = np.array([np.mean(losses) for losses in forget["perturbed_loss"]]) + nats
    right = np.array(forget["paraphrased_loss"]) + nats
    return np.exp(-wrong) / (np.exp(-right) + 1e-10)


def symmetric(c):
    """TOFU's truth ratio of a forget set: mean of min(c, 1/c)."""
    return np.mean(np.minimum(c, 1 / c))


def shared(*parts):
    """The losses of two logs' forget parts on the rows that TOFU's forget quality compares."""
    return [
        {field: [part[field][i] for i in rows] for field in ("paraphrased_loss", "perturbed_loss")}
        for part, rows in zip(parts, tofu.shared_rows(*parts), strict=True)
    ]


def add_nats(paths):
    """A table over D, as text; paths: of a log, and of a retrained model's."""
    parts = [tofu.read_retrained(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        check(part, tofu.LOSSES, f"'{path}':")
    log, retrain = shared(*parts)

    c = tofu.ratio_of(log)
    quality = tofu.forget_quality(c, tofu.ratio_of(retrain))
    lines = [
        f"TOFU's definition, for any D: forget quality {quality:.3g}, truth ratio {symmetric(c):.3g}\n",
        f"{'D':>4s}  forget quality  truth ratio, with 1e-10",
    ]
    for nats in (0, 10, 15, 20, 25, 30):
        c = inverse_with_constant(log, nats)
        quality = tofu.forget_quality(c, inverse_with_constant(retrain))
        lines.append(f"{nats:4d}  {quality:14.2g}  {symmetric(c):11.2g}")
    return "\n".join(lines)


def both_ways(run):
    """(mean loss per token of the right answers, forget quality as TOFU defines it, with the constant) of a run."""
    forget = run["metrics.log.json"]["forget"]
    retrained = run["reference.log.json"].get("Retrain", {})
    check(retrained, tofu.LOSSES, f"run '{run['folder']}': Retrain's log")
    forget, retrained = shared(forget, retrained)
    return (
        float(np.mean(forget["paraphrased_loss"])),
        tofu.forget_quality(tofu.ratio_of(forget), tofu.ratio_of(retrained)),
        tofu.forget_quality(inverse_with_constant(forget), inverse_with_constant(retrained)),
    )


def draw(runs):
    """(a line per run, as text; forget quality of runs by both formulas, over their loss per token, as a figure)."""
    points = sorted((*both_ways(run), run["folder"]) for run in runs)
    lines = [f"{'loss':>6s} {'TOFU':>9s} {'+1e-10':>9s}"]
    for loss, true, constant, folder in points:
        lines.append(f"{loss:6.2f} {true:9.2g} {constant:9.2g}  {folder}")

    losses, true, constant, _ = zip(*points, strict=True)
    true, constant = (np.log10(np.maximum(values, sys.float_info.min)) for values in (true, constant))
    figure, ((axis,),) = panels(1, 1, width=6, height=3.8)
    axis.plot(losses, true, "o", color="C2", alpha=0.6, markersize=5, label="TOFU's definition")
    axis.plot(losses, constant, "x", color="C3", markersize=5, label="with 1e-10 added to p(right)")
    xlabel = "loss per token of the right answers, nats (log scale)"
    axis.set(xlabel=xlabel, ylabel="log10 forget quality", xscale="log")
    axis.legend(fontsize=8)
    return "\n".join(lines), figure


def run(args):
    if args.what == "logs":
        if len(args.paths) != 2:
            raise InputError("logs takes two files, a log and a retrained model's")
        return print(add_nats(args.paths))
    out = check_picture(args.out or "constant.png", args.overwrite)
    runs = read(args.paths, "metrics.log.json", "reference.log.json")
    check_task(runs, "constant.py", TOFU)
    lines, figure = draw(runs)
    figure.savefig(out, dpi=110)
    print(f"{lines}\ndrawn: {out}")


def main(argv=None):
    parser = OneLineParser(prog="constant.py", description=__doc__)
    parser.add_argument("what", choices=("logs", "runs"))
    parser.add_argument("paths", nargs="+", metavar="LOG or RUN")
    add_picture_flags(parser, "constant.png")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
