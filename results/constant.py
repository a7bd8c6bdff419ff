"""What a constant in the truth ratio does to forget quality.

    python results/constant.py logs LOG.json RETRAIN.json    adds D nats to every loss of a log, which changes no true c
    python results/constant.py runs RUN... --out FILE.png    runs that forgot too much, through both formulas

TOFU's c = exp(mean wrong loss − right loss). A newer framework computes c' = p(wrong) / (p(right) + 1e-10).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import compare
import runs
import tofu
from data import InputError


def inverse_with_constant(forget, nats=0.0):
    """c' [N] of the forget part of a log with `nats` added to every loss."""
    wrong = np.array([np.mean(losses) for losses in forget["perturbed_loss"]]) + nats
    return np.exp(-wrong) / (np.exp(-(np.array(forget["paraphrased_loss"]) + nats)) + 1e-10)


def add_nats(log, retrain):
    """A table over D, as text; log, retrain: names of files."""
    parts = [tofu.read_reference(path) for path in (log, retrain)]
    for path, part in zip((log, retrain), parts):
        runs.check(part, tofu.LOSSES, f"'{path}':")
    log, retrain = (
        {field: [part[field][i] for i in kept] for field in ("paraphrased_loss", "perturbed_loss")}
        for part, kept in zip(parts, tofu.shared_rows(*parts))
    )
    c = tofu.ratio_of(log)
    lines = [
        f"TOFU's definition, for any D: forget quality {tofu.forget_quality(c, tofu.ratio_of(retrain)):.3g}, "
        f"truth ratio {np.mean(np.minimum(c, 1 / c)):.3g}\n",
        f"{'D':>4s}  forget quality  truth ratio, with 1e-10",
    ]
    for nats in (0, 10, 15, 20, 25, 30):
        c = inverse_with_constant(log, nats)
        quality = tofu.forget_quality(c, inverse_with_constant(retrain))
        lines.append(f"{nats:4d}  {quality:14.2g}  {np.mean(np.minimum(c, 1 / c)):11.2g}")
    return "\n".join(lines)


def both_ways(run):
    """(mean loss per token of the right answers, forget quality as TOFU defines it, with the constant) of a run."""
    mine, theirs = run["metrics.log.json"]["forget"], run["reference.log.json"].get("Retrain", {})
    runs.check(theirs, tofu.LOSSES, f"run '{run['folder']}': Retrain's log")
    return (
        float(np.mean(mine["paraphrased_loss"])),
        tofu.forget_quality(tofu.ratio_of(mine), tofu.ratio_of(theirs)),
        tofu.forget_quality(inverse_with_constant(mine), inverse_with_constant(theirs)),
    )


def draw(found):
    """(a line per run, as text; forget quality of runs by both formulas, over their loss per token, as a figure)."""
    figure, ((axis,),) = compare.panels(1, 1, width=6, height=3.8)
    lines, points = (
        [f"{'loss':>6s} {'TOFU':>9s} {'+1e-10':>9s}"],
        sorted((*both_ways(run), run["folder"]) for run in found),
    )
    for loss, true, constant, folder in points:
        lines.append(f"{loss:6.2f} {true:9.2g} {constant:9.2g}  {folder}")
    losses, true, constant, _ = zip(*points)
    true, constant = (np.log10(np.maximum(values, sys.float_info.min)) for values in (true, constant))
    axis.plot(losses, true, "o", color="C2", alpha=0.6, markersize=5, label="TOFU's definition")
    axis.plot(losses, constant, "x", color="C3", markersize=5, label="with 1e-10 added to p(right)")
    axis.set(
        xlabel="loss per token of the right answers, nats (log scale)", ylabel="log10 forget quality", xscale="log"
    )
    axis.legend(fontsize=8)
    return "\n".join(lines), figure


def run(args):
    if args.what == "logs":
        if len(args.paths) != 2:
            raise InputError("logs takes two files, a log and a retrained model's")
        return print(add_nats(*args.paths))
    if args.out.suffix != ".png" or not args.out.parent.is_dir():
        raise InputError(f"--out: '{args.out}' is not the name of a .png file in an existing folder")
    found = compare.read(args.paths, "metrics.log.json", "reference.log.json")
    compare.benchmark_of(found, "constant.py", tofu)
    lines, figure = draw(found)
    figure.savefig(args.out, dpi=110)
    print(f"{lines}\ndrawn: {args.out}")


def main(argv=None):
    parser = runs.OneLineParser(prog="constant.py", description=__doc__)
    parser.add_argument("what", choices=("logs", "runs"))
    parser.add_argument("paths", nargs="+", metavar="LOG or RUN")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("constant.png"), help="a PNG")
    runs.run_command(parser, argv, run)


if __name__ == "__main__":
    main()
