"""The table of methods: an entry here makes a loss of losses.py a method, everywhere.

Flags, help texts, which responses are read, whether the reference model is needed, names and colours in tables and
figures, and the tests all follow from the entry. In its calls `args` are the flags of train.py and `y` the response to
forget, a data.Response: y.logp, y.length, y.ref_logp, y.token_logp.
"""

from collections.abc import Callable
from typing import NamedTuple

import losses


class Method(NamedTuple):
    """loss and weight: (args, response, …) → [B], a response for each of `reads`, in that order.

    reads: sides of a forget example: `answer`, and `refusal`, one of thirty ways to say "I don't know". The first one's
    weight, length and log π are logged. needs_reference: their ref_logp are there. learns: lowers the loss of what it
    reads, instead of raising it. flags: those that not every method has.
    """

    name: str
    colour: str
    about: str
    loss: Callable
    weight: Callable
    reads: tuple = ("answer",)
    needs_reference: bool = False
    learns: bool = False
    flags: tuple = ()


METHODS = {
    "finetune": Method(
        "fine-tuning",
        "C5",
        "−log π / |y|: learns the split instead of forgetting it",
        lambda args, y: losses.nll(y.logp, y.length),
        lambda args, y: losses.nll_weight(y.logp, y.length),
        learns=True,
    ),
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
        lambda args, y: losses.weighted_ga(y.logp, y.length),
        lambda args, y: losses.weighted_ga_weight(y.logp, y.length),
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
        lambda args, y, refusal: losses.dpo(refusal.logp, refusal.ref_logp, y.logp, y.ref_logp, args.beta),
        lambda args, y, refusal: losses.dpo_weight(refusal.logp, refusal.ref_logp, y.logp, y.ref_logp, args.beta),
        reads=("answer", "refusal"),
        needs_reference=True,
        flags=("beta",),
    ),
    "npo": Method(
        "NPO",
        "C0",
        "Eq. 2: bounded, against the model before unlearning",
        lambda args, y: losses.npo(y.logp, y.ref_logp, args.beta),
        lambda args, y: losses.npo_weight(y.logp, y.ref_logp, args.beta),
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
    "task-vector": Method(  # what follows fine-tuning is in baselines.py
        "Task Vector",
        "deeppink",
        "fine-tunes, then goes the other way: θ − α (θ_ft − θ)",
        lambda args, y: losses.nll(y.logp, y.length),
        lambda args, y: losses.nll_weight(y.logp, y.length),
        learns=True,
        flags=("alpha", "finetuned"),
    ),
    "rmu": Method(  # its loop is in baselines.py: it reads activations h [B, T, d] and a target, no response
        "RMU",
        "C9",
        "steers one layer's activations to a random direction: ‖h − c·u‖² / d",
        lambda args, h, target: losses.rmu(h, target),
        lambda args, h, target: losses.rmu_gradient(h, target),
        flags=("layer", "steer", "alpha"),
    ),
}
