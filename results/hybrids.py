"""Which part of SimNPO's weight does it: 1/|y|, or that there is no reference? The two methods between it and NPO.

    python results/hybrids.py --method npo-mean --seed 0      any flags of train.py

| | sum over tokens | mean over tokens (1/|y|) |
|---|---|---|
| against the reference | NPO | npo-mean: −(2/β) log σ(−(β/|y|) (log πθ − log πref)) |
| no reference | simnpo-sum: −(2/β) log σ(−β log πθ) | SimNPO, γ = 0 |
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import losses
import train
from methods import METHODS, Method

HYBRIDS = {
    "npo-mean": Method(
        "NPO per token",
        "navy",
        "NPO on log-ratios per token",
        lambda args, y: losses.npo(y.logp / y.length, y.ref.logp / y.length, args.beta),
        lambda args, y: losses.npo_weight(y.logp / y.length, y.ref.logp / y.length, args.beta) / y.length,
        needs_reference=True,
        flags=("beta",),
    ),
    "simnpo-sum": Method(
        "SimNPO by sum",
        "darkgreen",
        "SimNPO without its 1/|y|",
        lambda args, y: losses.simnpo(y.logp, 1, args.beta),
        lambda args, y: losses.simnpo_weight(y.logp, 1, args.beta),
        flags=("beta",),
    ),
}


def main(argv=None):
    METHODS.update(HYBRIDS)
    train.main(argv)


if __name__ == "__main__":
    main()
