"""The table of methods: an entry here makes a loss of losses.py a method, everywhere.

Flags, help texts, which responses are read, whether the reference model is needed, names and colours in
tables and figures, and the tests all follow from the entry. What a loss takes is read off its own
signature: `logp`, `length` and `ref_logp` of a response, and the flags `beta` and `gamma`; or `hidden`, the
activations of one layer, and the `target` that they are steered to.
"""

import inspect
from typing import Callable, NamedTuple

import losses


class Method(NamedTuple):
    """loss and weight take the same arguments. reads: {side of a forget example: prefix of the arguments
    that describe it}, the side whose weight and length are logged first; sides are `answer` and `refusal`,
    one of thirty ways to say "I don't know". learns: lowers the loss of what it reads, instead of raising it.
    flags: its own, besides those that the loss takes.
    """

    name: str
    colour: str
    about: str
    loss: Callable
    weight: Callable
    reads: dict = {"answer": ""}
    learns: bool = False
    flags: tuple = ()

    @property
    def takes(self):
        """Names of the loss's arguments."""
        return tuple(inspect.signature(self.loss).parameters)

    @property
    def own_flags(self):
        """Names of the flags that are not for every method: of its loss, and those that it lists."""
        return ({"beta", "gamma"} & set(self.takes)) | set(self.flags)


METHODS = {
    "finetune": Method(
        "fine-tuning",
        "C5",
        "−log π / |y|: learns the split instead of forgetting it",
        losses.nll,
        losses.nll_weight,
        learns=True,
    ),
    "ga": Method("GA", "C3", "gradient ascent: log π, without a retain loss", losses.ga, losses.ga_weight),
    "graddiff": Method("GradDiff", "C1", "gradient difference: log π, with a retain loss", losses.ga, losses.ga_weight),
    "wgraddiff": Method(
        "Weighted-GradDiff", "C8", "the same per token: log π / |y|", losses.weighted_ga, losses.weighted_ga_weight
    ),
    "idk": Method(
        "IDK",
        "C6",
        'learns a refusal ("I don\'t know") instead of the answer',
        losses.nll,
        losses.nll_weight,
        reads={"refusal": ""},
    ),
    "dpo": Method(
        "DPO",
        "C4",
        "direct preference optimization: a refusal preferred to the answer",
        losses.dpo,
        losses.dpo_weight,
        reads={"answer": "rejected_", "refusal": "chosen_"},
    ),
    "npo": Method("NPO", "C0", "Eq. 2: bounded, against the model before unlearning", losses.npo, losses.npo_weight),
    "simnpo": Method(
        "SimNPO", "C2", "Eq. 4: bounded, per token, without a reference", losses.simnpo, losses.simnpo_weight
    ),
    "task-vector": Method(
        "Task Vector",
        "deeppink",
        "fine-tunes, then goes the other way: θ − α (θ_ft − θ)",
        losses.nll,
        losses.nll_weight,
        learns=True,
        flags=("alpha", "finetuned"),
    ),
    "rmu": Method(
        "RMU",
        "C9",
        "steers one layer's activations to a random direction: ‖h − c·u‖² / d",
        losses.rmu,
        losses.rmu_gradient,
        flags=("layer", "steer", "alpha"),
    ),
}
