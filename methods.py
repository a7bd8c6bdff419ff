"""The table of methods: an entry here makes a loss of losses.py a method, everywhere.

Flags, help texts, which responses are read, whether the reference model is needed, names and colours in tables and
figures, and the tests all follow from the entry. In its calls `args` are the flags of train.py and `y` the response
that the method reads, a data.Response: y.logp, y.length, y.token_logp, y.ref.logp, …
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import losses


class Method(NamedTuple):
    """loss and weight: (args, response, …) → [B], a response for each of `reads`, in that order.

    reads: sides of a forget example: `answer`, and `refusal`, one of data.REFUSALS, ways to say "I don't know". The
    first one's weight, length and log π are logged. needs_reference: their `ref` is there; needs_logits: `logits` are,
    and with both `ref.logits` too. flags: those that not every method has.
    """

    name: str
    colour: str
    about: str
    loss: Callable
    weight: Callable
    reads: tuple = ("answer",)
    needs_reference: bool = False
    needs_logits: bool = False
    flags: tuple = ()


def per_token(function, *tokens, **settings):
    """[B]: the mean over each response's tokens of a loss of single tokens, or of its weight.

    tokens: what the function takes, each as B tensors.
    """
    return torch.stack([function(*parts, **settings).mean() for parts in zip(*tokens, strict=True)])


METHODS = {
    "finetune": Method(
        "fine-tuning",
        "C5",
        "−log π / |y|: learns the split instead of forgetting it",
        lambda args, y: losses.nll(y.logp, y.length),
        lambda args, y: losses.nll_weight(y.logp, y.length),
    ),
    # with or without a retain loss: RECIPES in train.py says it
    "ga": Method(
        "GA",
        "C3",
        "gradient ascent: log π, without a retain loss",
        lambda args, y: losses.ga(y.logp),
        lambda args, y: losses.ga_weight(y.logp),
    ),
    "graddiff": Method(
        "GradDiff",
        "C1",
        "gradient difference: log π, with a retain loss",
        lambda args, y: losses.ga(y.logp),
        lambda args, y: losses.ga_weight(y.logp),
    ),
    "wgraddiff": Method(
        "Weighted-GradDiff",
        "C8",
        "the same per token: log π / |y|",
        lambda args, y: losses.ga_per_token(y.logp, y.length),
        lambda args, y: losses.ga_per_token_weight(y.logp, y.length),
    ),
    "idk": Method(
        "IDK",
        "C6",
        'learns a refusal ("I don\'t know") instead of the answer',
        lambda args, refusal: losses.nll(refusal.logp, refusal.length),
        lambda args, refusal: losses.nll_weight(refusal.logp, refusal.length),
        reads=("refusal",),
    ),
    "dpo": Method(
        "DPO",
        "C4",
        "direct preference optimization: a refusal preferred to the answer",
        lambda args, y, refusal: losses.dpo(refusal.logp, refusal.ref.logp, y.logp, y.ref.logp, args.beta),
        lambda args, y, refusal: losses.dpo_weight(refusal.logp, refusal.ref.logp, y.logp, y.ref.logp, args.beta),
        reads=("answer", "refusal"),
        needs_reference=True,
        flags=("beta",),
    ),
    "npo": Method(
        "NPO",
        "C0",
        "Eq. 2: bounded, against the model before unlearning",
        lambda args, y: losses.npo(y.logp, y.ref.logp, args.beta),
        lambda args, y: losses.npo_weight(y.logp, y.ref.logp, args.beta),
        needs_reference=True,
        flags=("beta",),
    ),
    "simnpo": Method(
        "SimNPO",
        "C2",
        "Eq. 4: bounded, per token, without a reference",
        lambda args, y: losses.simnpo(y.logp, y.length, args.beta, args.gamma),
        lambda args, y: losses.simnpo_weight(y.logp, y.length, args.beta, args.gamma),
        flags=("beta", "gamma"),
    ),
    # losses of single tokens: of their weights w_t / |y| the mean is logged
    "wga": Method(
        "WGA",
        "goldenrod",
        "weighted gradient ascent, per token: p^β log p",
        lambda args, y: per_token(losses.wga, y.token_logp, beta=args.beta),
        lambda args, y: per_token(losses.wga_weight, y.token_logp, beta=args.beta) / y.length,
        flags=("beta",),
    ),
    "satimp": Method(
        "SatImp",
        "salmon",
        "saturation and importance, per token: p^β (1 − p)^β2 log p",
        lambda args, y: per_token(losses.satimp, y.token_logp, beta1=args.beta, beta2=args.beta2),
        lambda args, y: per_token(losses.satimp_weight, y.token_logp, beta1=args.beta, beta2=args.beta2) / y.length,
        flags=("beta", "beta2"),
    ),
    "tnpo": Method(
        "TNPO",
        "deepskyblue",
        "NPO of every single token",
        lambda args, y: per_token(losses.tnpo, y.token_logp, y.ref.token_logp, beta=args.beta),
        lambda args, y: per_token(losses.tnpo_weight, y.token_logp, y.ref.token_logp, beta=args.beta) / y.length,
        needs_reference=True,
        flags=("beta",),
    ),
    "ceu": Method(
        "CE-U",
        "teal",
        "cross-entropy to the model's own distribution without the token: −log(1 − p)",
        lambda args, y: per_token(losses.ceu, y.logits, y.targets),
        lambda args, y: per_token(losses.ceu_weight, y.logits, y.targets) / y.length,
        needs_logits=True,
    ),
    "undial": Method(
        "UNDIAL",
        "indigo",
        "cross-entropy to the reference model's distribution, the token's logit lowered by β",
        lambda args, y: per_token(losses.undial, y.logits, y.ref.logits, y.targets, beta=args.beta),
        lambda args, y: per_token(losses.undial_weight, y.logits, y.ref.logits, y.targets, beta=args.beta) / y.length,
        needs_reference=True,
        needs_logits=True,
        flags=("beta",),
    ),
    "task-vector": Method(  # what follows fine-tuning is in baselines.py
        "Task Vector",
        "deeppink",
        "fine-tunes, then goes the other way: θ − α (θ_ft − θ)",
        lambda args, y: losses.nll(y.logp, y.length),
        lambda args, y: losses.nll_weight(y.logp, y.length),
        flags=("alpha", "finetuned"),
    ),
    "rmu": Method(  # its loop is in baselines.py; of activations h [B, T, d]: a loss [B, T], a gradient [B, T, d]
        "RMU",
        "C9",
        "steers one layer's activations to a random direction: ‖h − c·u‖² / d",
        lambda args, h, target: losses.rmu(h, target),
        lambda args, h, target: losses.rmu_gradient(h, target),
        flags=("layer", "steer", "alpha"),
    ),
}
