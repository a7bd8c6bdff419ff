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
import data
import train

ours = train.forget_loss
REFERENCE = {}  # logits of the model before unlearning, by the number of the forget sequence


def raw_loss(logits, ref_logits, method, beta, gamma):
    """ℓ of one sequence: logits [T, V], at the positions that predict its tokens."""
    margin = ref_logits - logits if method == "npo" else -logits
    return -2 / beta * F.logsigmoid(beta * margin - (gamma if method == "simnpo" else 0)).mean()


def forget_loss(model, forget, rows, args):
    """In place of train.forget_loss; as weight it logs the mean logit."""
    if args.method not in ("npo", "simnpo"):
        return ours(model, forget, rows, args)
    logits = data.over_responses([model], [forget["answer"][i] for i in rows], lambda logits, targets: logits.float())
    found = []
    for i, z in zip(rows, logits):
        reference = REFERENCE.setdefault(i, z.detach().clone()) if args.method == "npo" else None
        found.append(
            (
                raw_loss(z, reference, args.method, args.beta, args.gamma),
                z.detach().mean(),
                torch.tensor(len(z), device=z.device),
            )
        )
    return [torch.stack(column) for column in zip(*found)]


def main(argv=None):
    """train.py with the other losses; their reference is what the model says before its first step."""

    def with_reference(model, forget, retain, args, *rest):
        REFERENCE.clear()
        if args.method == "npo":
            with torch.no_grad():
                forget_loss(model, forget, list(range(len(forget["answer"]))), args)
        return loop(model, forget, retain, args, *rest)

    loop = train.train
    train.train, train.forget_loss = with_reference, forget_loss
    train.main(["--task", "toy-muse", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
