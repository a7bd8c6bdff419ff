"""The picture of the whole paper: gradient weights of NPO and SimNPO, side by side.

python results/weights.py        prints them, and draws results/weights.png
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import losses
import runs

NPO_BETA, SIMNPO_BETA, REF_TOKEN_LOGP = 0.1, 2.5, -0.05


def weight_curves(lengths=(3, 12, 40)):
    """Weights against log π per token: {length: (token_logp [N], NPO's w [N], SimNPO's w' [N])}."""
    token_logp = torch.linspace(-6, 0, 121, dtype=torch.float64)
    curves = {}
    for n in lengths:
        w = losses.npo_weight(token_logp * n, torch.full_like(token_logp, REF_TOKEN_LOGP * n), NPO_BETA)
        curves[n] = token_logp, w, losses.simnpo_weight(token_logp * n, torch.full_like(token_logp, n), SIMNPO_BETA)
    return curves


def draw(curves, out):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="tight")
    for n, (token_logp, npo_w, simnpo_w) in curves.items():
        left.plot(token_logp, npo_w, label=f"|y| = {n}")
        (line,) = right.plot(token_logp, simnpo_w, label=f"|y| = {n}")
        right.axhline(1 / n, color=line.get_color(), linewidth=0.8, linestyle=":")
    left.set(title=f"NPO, β = {NPO_BETA}: starts at 1 for every response", ylabel="gradient weight")
    right.set_title(f"SimNPO, β = {SIMNPO_BETA}: at most 1/|y| (dotted)")
    for axis in (left, right):
        axis.set_xlabel("log πθ(y|x) / |y|   (memorized → right edge)")
        axis.legend()
    figure.savefig(out, dpi=120)


def main(argv=None):
    parser = runs.OneLineParser(prog="weights.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("weights.png"), help="PNG to draw (default: %(default)s)"
    )
    out, curves = parser.parse_args(argv).out, weight_curves()
    print(
        f"Weight on ∇θ log πθ(y|x). NPO: β={NPO_BETA}, reference log π per token {REF_TOKEN_LOGP}. "
        f"SimNPO: β={SIMNPO_BETA}, γ=0.\nGA is 1 everywhere; weighted GA is 1/|y|.\n"
    )
    print(
        "log π per token"
        + "".join(f"   NPO |y|={n:<3d}" for n in curves)
        + "".join(f"   SimNPO |y|={n:<3d}" for n in curves)
    )
    for i in range(120, -1, -20):
        print(
            f"{next(iter(curves.values()))[0][i]:15.1f}"
            + "".join(f"{w[i]:14.4f}" for _, w, _ in curves.values())
            + "".join(f"{w[i]:17.4f}" for _, _, w in curves.values())
        )
    try:
        if out.suffix != ".png":
            raise ValueError("it is not the name of a .png file")
        draw(curves, out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"weights.py: cannot write {out}: {error}; give --out a PNG in a writable folder\n")
    print(f"\ndrawn: {out}")


if __name__ == "__main__":
    main()
