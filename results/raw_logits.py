"""What MUSE's published losses do: NPO and SimNPO on raw logits, elementwise over positions *and vocabulary*.

    python results/raw_logits.py --method npo --seed 0 --out runs/raw/npo-0     any flags of train.py; toy-muse

With z the logits, theirs is the mean over all entries of −(2/β) log σ(β (z_ref − z)) for NPO and of
−(2/β) log σ(−β z − γ) for SimNPO. NPO's pushes every logit down alike, which no softmax notices.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import train
from methods import METHODS


class RawResponse(NamedTuple):
    """Of a batch of responses, in place of data.Response."""

    logp: torch.Tensor  # [B]: mean logit, which log.jsonl gets as logp and as weight
    length: torch.Tensor  # [B]: |y|
    logits: tuple  # B of [|y|, V]
    ref_logits: tuple  # the same under the model before unlearning


def npo(args, y):
    """[B]: mean of −(2/β) log σ(β (z_ref − z))."""
    pairs = zip(y.logits, y.ref_logits, strict=True)
    return torch.stack([-2 / args.beta * F.logsigmoid(args.beta * (ref - z)).mean() for z, ref in pairs])


def simnpo(args, y):
    """[B]: mean of −(2/β) log σ(−β z − γ)."""
    return torch.stack([-2 / args.beta * F.logsigmoid(-args.beta * z - args.gamma).mean() for z in y.logits])


def mean_logit(args, y):
    return y.logp


RAW = {
    "npo": METHODS["npo"]._replace(loss=npo, weight=mean_logit, needs_reference=False),
    "simnpo": METHODS["simnpo"]._replace(loss=simnpo, weight=mean_logit),
}


def logits_of(model, examples):
    """B tensors [|y|, V], float32: the logits that predict each token of a response."""
    logits, _, length = data.response_logits(model, examples)
    return logits.float().split(length.tolist())


def respond(model, answers, reference):
    """RawResponse of answers. reference: their `logits_of` before unlearning, or [] if the loss has none."""
    logits = logits_of(model, answers)
    mean = torch.stack([z.detach().mean() for z in logits])
    length = torch.tensor([len(z) for z in logits], device=mean.device)
    return RawResponse(mean, length, logits, reference)


def main(argv=None):
    """train.py with the other losses; their reference is what the model says before its first step."""
    METHODS.update(RAW)
    loop, respond_to = train.train, train.respond
    reference = []  # logits of each forget sequence

    def with_reference(model, forget, retain, args, *rest):
        reference.clear()
        if args.method == "npo":
            with torch.no_grad():
                reference.extend(z.clone() for answer in forget["answer"] for z in logits_of(model, [answer]))
        return loop(model, forget, retain, args, *rest)

    def respond_raw(model, forget, ref_logp, rows, method):
        if method not in RAW.values():
            return respond_to(model, forget, ref_logp, rows, method)
        known = [reference[row] for row in rows] if reference else []
        return [respond(model, [forget["answer"][row] for row in rows], known)]

    train.train, train.respond = with_reference, respond_raw
    train.main(["--task", "toy-muse", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
