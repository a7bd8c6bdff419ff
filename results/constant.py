"""What a constant in the truth ratio does: adds D nats to every loss of a log, which changes no true c.

    python results/constant.py LOG.json RETRAIN.json

TOFU's c = exp(mean wrong loss − right loss). A newer framework computes c' = p(wrong) / (p(right) + 1e-10).
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import runs
import tofu


def inverse_with_constant(forget, nats=0.0):
    """c' [N] of the forget part of a log with `nats` added to every loss."""
    wrong = np.array([np.mean(losses) for losses in forget["perturbed_loss"]]) + nats
    return np.exp(-wrong) / (np.exp(-(np.array(forget["paraphrased_loss"]) + nats)) + 1e-10)


def main(argv=None):
    parser = runs.OneLineParser(prog="constant.py", description=__doc__)
    parser.add_argument("log")
    parser.add_argument("retrain")

    def run(args):
        log, retrain = (tofu.read_reference(path) for path in (args.log, args.retrain))
        for path, part in ((args.log, log), (args.retrain, retrain)):
            runs.check(part, tofu.LOSSES, f"'{path}':")
        rows, theirs = tofu.shared_rows(log, retrain)
        log, retrain = ({field: [part[field][i] for i in kept] for field in ("paraphrased_loss", "perturbed_loss")}
                        for part, kept in ((log, rows), (retrain, theirs)))
        c = tofu.ratio_of(log)
        print(f"TOFU's definition, for any D: forget quality {tofu.forget_quality(c, tofu.ratio_of(retrain)):.3g}, "
              f"truth ratio {np.mean(np.minimum(c, 1 / c)):.3g}\n\n{'D':>4s}  forget quality  truth ratio, with 1e-10")
        for nats in (0, 10, 15, 20, 25, 30):
            c = inverse_with_constant(log, nats)
            quality = tofu.forget_quality(c, inverse_with_constant(retrain))
            print(f"{nats:4d}  {quality:14.2g}  {np.mean(np.minimum(c, 1 / c)):11.2g}")
    runs.run_command(parser, argv, run)


if __name__ == "__main__":
    main()
