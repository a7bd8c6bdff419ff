"""What MUSE's published losses do: NPO and SimNPO on raw logits, elementwise over positions *and vocabulary*.

    python results/raw_logits.py --method npo --seed 0 --out runs/raw/npo-0     any flags of train.py; toy-muse

With z the logits, theirs is the mean over all entries of −(2/β) log σ(β (z_ref − z)) for NPO and of
−(2/β) log σ(−β z − γ) for SimNPO. NPO's pushes every logit down alike, which no softmax notices.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from machinery.inputs import InputError
from methods import METHODS


def scale(beta):
    """2/β. InputError for 0, where the published losses divide by it."""
    if not beta:
        raise InputError("--beta 0: these losses have no such limit; give more than 0")
    return 2 / beta


def npo(args, y):
    """[B]: mean of −(2/β) log σ(β (z_ref − z))."""
    pairs = zip(y.logits, y.ref.logits, strict=True)
    return torch.stack([-scale(args.beta) * F.logsigmoid(args.beta * (ref - z).float()).mean() for z, ref in pairs])


def simnpo(args, y):
    """[B]: mean of −(2/β) log σ(−β z − γ)."""
    bounded = [F.logsigmoid(-args.beta * z.float() - args.gamma).mean() for z in y.logits]
    return -scale(args.beta) * torch.stack(bounded)


def mean_logit(args, y):
    """[B]: what is logged as the weight."""
    return torch.stack([z.detach().float().mean() for z in y.logits])


RAW = {
    "npo": METHODS["npo"]._replace(name="NPO on raw logits", loss=npo, weight=mean_logit, needs_logits=True),
    "simnpo": METHODS["simnpo"]._replace(
        name="SimNPO on raw logits", loss=simnpo, weight=mean_logit, needs_logits=True
    ),
}


def main(argv=None):
    METHODS.update(RAW)
    train.main(["--task", "toy-muse", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
