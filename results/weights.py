"""The picture of the whole paper: gradient weights of NPO and SimNPO, side by side.

python results/weights.py        prints them, and draws results/weights.png
"""

import sys
from pathlib import Path

import matplotlib.figure
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import losses
from compare import check_picture
from machinery.command import OneLineParser, run_command

NPO_BETA, SIMNPO_BETA, REF_TOKEN_LOGP = 0.1, 2.5, -0.05
LENGTHS = 3, 12, 40


def weight_curves():
    """Weights against log π per token: {|y|: (token_logp [N], NPO's w [N], SimNPO's w' [N])}."""
    token_logp = torch.linspace(-6, 0, 121, dtype=torch.float64)
    curves = {}
    for n in LENGTHS:
        ref_logp = torch.full_like(token_logp, REF_TOKEN_LOGP * n)
        npo = losses.npo_weight(token_logp * n, ref_logp, NPO_BETA)
        simnpo = losses.simnpo_weight(token_logp * n, torch.full_like(token_logp, n), SIMNPO_BETA)
        curves[n] = token_logp, npo, simnpo
    return curves


def draw(curves):
    figure = matplotlib.figure.Figure((9, 3.4), layout="tight")
    left, right = figure.subplots(1, 2)
    for n, (token_logp, npo, simnpo) in curves.items():
        left.plot(token_logp, npo, label=f"|y| = {n}")
        (line,) = right.plot(token_logp, simnpo, label=f"|y| = {n}")
        right.axhline(1 / n, color=line.get_color(), linewidth=0.8, linestyle=":")
    left.axvline(REF_TOKEN_LOGP, color="grey", linewidth=0.8, linestyle="--", label="reference model")
    left.set(title=f"NPO, β = {NPO_BETA}: 1 at the reference, for all lengths", ylabel="gradient weight")
    right.set_title(f"SimNPO, β = {SIMNPO_BETA}: at most 1/|y| (dotted)")
    for axis in (left, right):
        axis.set_xlabel("log πθ(y|x) / |y|   (memorized → right edge)")
        axis.legend()
    return figure


def table(curves):
    """The weights at seven places, as text."""
    heads = [f"   NPO |y|={n:<3d}" for n in curves] + [f"   SimNPO |y|={n:<3d}" for n in curves]
    lines = [
        f"Weight on ∇θ log πθ(y|x). NPO: β={NPO_BETA}, reference log π per token {REF_TOKEN_LOGP}. "
        f"SimNPO: β={SIMNPO_BETA}, γ=0.\nGA is 1 everywhere; weighted GA is 1/|y|.\n",
        "log π per token" + "".join(heads),
    ]
    token_logp = curves[LENGTHS[0]][0]
    for i in range(120, -1, -20):
        cells = [f"{npo[i]:14.4f}" for _, npo, _ in curves.values()]
        cells += [f"{simnpo[i]:17.4f}" for _, _, simnpo in curves.values()]
        lines.append(f"{token_logp[i]:15.1f}" + "".join(cells))
    return "\n".join(lines)


def run(args):
    out, curves = check_picture(args.out, overwrite=True), weight_curves()
    draw(curves).savefig(out, dpi=120)
    print(f"{table(curves)}\n\ndrawn: {out}")


def main(argv=None):
    parser = OneLineParser(prog="weights.py", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("weights.png"), help="PNG to draw (default: %(default)s)"
    )
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
