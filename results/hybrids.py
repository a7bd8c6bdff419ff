"""Which part of SimNPO's weight does it: 1/|y|, or that there is no reference? The two methods between it and NPO.

    python results/hybrids.py train.py --method npo-mean --seed 0      any flags of train.py, or of compare.py
    python results/hybrids.py compare.py paths RUN...

| | sum over tokens | mean over tokens (1/|y|) |
|---|---|---|
| against the reference | NPO | npo-mean: −(2/β) log σ(−(β/|y|) (log πθ − log πref)) |
| no reference | simnpo-sum: −(2/β) log σ(−β log πθ) | SimNPO, γ = 0 |
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import losses
from methods import METHODS, Method


def npo_mean(logp, ref_logp, length, beta):
    return losses.npo(logp / length, ref_logp / length, beta)


def npo_mean_weight(logp, ref_logp, length, beta):
    """w = 2σ((β/|y|) (log πθ - log πref)) / |y|"""
    return losses.npo_weight(logp / length, ref_logp / length, beta) / length


def simnpo_sum(logp, beta):
    return losses.simnpo(logp, 1, beta)


def simnpo_sum_weight(logp, beta):
    """w = 2σ(β log πθ)"""
    return losses.simnpo_weight(logp, 1, beta)


METHODS |= {
    "npo-mean": Method("NPO per token", "navy", "NPO on log-ratios per token", npo_mean, npo_mean_weight),
    "simnpo-sum": Method("SimNPO by sum", "darkgreen", "SimNPO without its 1/|y|", simnpo_sum, simnpo_sum_weight),
}

if __name__ == "__main__":
    command = sys.argv[1].removesuffix(".py") if len(sys.argv) > 1 else ""
    if command not in ("train", "compare"):
        print("hybrids.py: name the command first, train.py or compare.py", file=sys.stderr)
        sys.exit(2)
    __import__(command).main(sys.argv[2:])
