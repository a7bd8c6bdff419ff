"""Every method through the same lens: how much it weighs ∇θ log p_t of each token of a response.

python results/lens.py        prints the weights, and draws results/lens.png
"""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from weights import LENGTHS, REF_TOKEN_LOGP

from compare import check_picture
from data import Response
from machinery.command import OneLineParser, run_command
from methods import METHODS

SHOWN = {  # flags of each, the published defaults
    "ga": {},
    "npo": {"beta": 0.1},
    "tnpo": {"beta": 1.0},
    "wgraddiff": {},
    "simnpo": {"beta": 2.5, "gamma": 0},
    "wga": {"beta": 1.0},
    "satimp": {"beta": 5.0, "beta2": 1.0},
    "ceu": {},
    "undial": {"beta": 10.0},
}


def response_of(token_logp, length, ref=None):
    """A Response for each of token_logp [N], all of whose `length` tokens have that log-probability.

    There are two tokens, of which it has the second, so that the logits are log(1 - p) and log p.
    """
    logits = torch.stack([torch.log(-torch.expm1(token_logp)), token_logp], -1)
    return Response(
        token_logp * length,
        torch.full(token_logp.shape, length),
        tuple(token_logp[:, None].expand(-1, length)),
        tuple(torch.ones(len(token_logp), length, dtype=torch.int64)),
        tuple(logits[:, None].expand(-1, length, -1)),
        ref,
    )


def weights(name, token_logp, length):
    """[N]: a method's weight on ∇θ log p_t of each of a response's tokens."""
    ref = response_of(torch.full_like(token_logp, REF_TOKEN_LOGP), length)
    return METHODS[name].weight(SimpleNamespace(**SHOWN[name]), response_of(token_logp, length, ref))


def label(name):
    symbols = {"beta": "β", "beta2": "β2", "gamma": "γ"}
    flags = [f"{symbols[flag]} {value:g}" for flag, value in SHOWN[name].items()]
    return ", ".join([METHODS[name].name, *flags])


def draw():
    token_logp = -torch.logspace(-3, math.log10(6), 400, dtype=torch.float64)
    figure = matplotlib.figure.Figure((10, 8), layout="tight")
    axes = figure.subplots(3, 3, sharex=True, sharey=True).flatten()
    for axis, name in zip(axes, SHOWN, strict=True):
        for n in LENGTHS:
            axis.plot(token_logp, weights(name, token_logp, n), label=f"|y| = {n}")
        pull = weights(name, token_logp, LENGTHS[1]) * -torch.expm1(token_logp)
        axis.plot(token_logp, pull, "k:", linewidth=1, label=f"|y| = {LENGTHS[1]}, times 1 − p")
        axis.axvline(REF_TOKEN_LOGP, color="grey", linewidth=0.6)
        axis.set(yscale="log", ylim=(1e-4, 300))
        axis.set_title(label(name), fontsize=10)
    for axis in axes[-3:]:
        axis.set_xlabel("log p of each token")
    for axis in axes[::3]:
        axis.set_ylabel("weight on ∇θ log p")
    axes[0].legend(fontsize=8)
    return figure


def table(length=12):
    """The weights at some places, as text."""
    token_logp = torch.tensor([-0.001, -0.05, -0.5, -1, -2, -4, -6], dtype=torch.float64)
    head = "log p of each token" + "".join(f"{value:11.3f}" for value in token_logp.tolist())
    rows = [f"{label(name):19s}" + "".join(f"{w:11.2g}" for w in weights(name, token_logp, length)) for name in SHOWN]
    return "\n".join([f"weight on each token's ∇θ log p, |y| = {length}", head, *rows])


def run(args):
    out = check_picture(args.out, overwrite=True)
    draw().savefig(out, dpi=110)
    print(f"{table()}\n\ndrawn: {out}")


def main(argv=None):
    parser = OneLineParser(prog="lens.py", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("lens.png"), help="PNG to draw (default: %(default)s)"
    )
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
