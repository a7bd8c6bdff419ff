"""Is an answer known by heart, and was it ever read? Measures that need no retrained model.

All are of one answer under one model. The first two are of which of its tokens are the likeliest. The others are what
membership inference attacks go by; how well each tells answers that were read from answers that never were is an AUC.
Sources: exact memorization as OpenUnlearning has it (Tirumala et al. 2022 call it so); extraction strength and loss by
zlib, Carlini et al. 2021, "Extracting Training Data from Large Language Models"; Min-K%, Shi et al. 2023, "Detecting
Pretraining Data from Large Language Models"; Min-K%++, Zhang et al. 2024.
"""

import zlib

import numpy as np

from machinery.inputs import POSITIVE, REAL, SHARE
from machinery.statistics import auc, bootstrap

LOWEST = 0.4  # share of the tokens that Min-K% and Min-K%++ look at

# lists in a part of a log, of a value per answer
FIELDS = {"memorized?": [SHARE], "extraction?": [SHARE], "zlib?": [POSITIVE], "mink?": [REAL], "minkpp?": [REAL]}
ATTACKS = {"loss": "loss", "zlib": "loss / zlib", "mink": "Min-40%", "minkpp": "Min-40%++"}
LESS = "loss", "zlib"  # of those, the less of it, the more familiar


def exact_memorization(likeliest):
    """Share in [0, 1] of a response's tokens that are the likeliest, from [|y|] whether each is."""
    return float(np.mean(likeliest, dtype=np.float64))


def extraction_strength(likeliest):
    """1 − k/|y| in [0, 1], k the length of the shortest prefix of a response after which every token is the
    likeliest, from [|y|] whether each is. 1: all come by themselves; 0: the last one does not (there OpenUnlearning has
    1/|y|)."""
    wrong = np.flatnonzero(np.logical_not(likeliest))
    k = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - k / len(likeliest)


def zlib_ratio(loss, text):
    """Mean token loss in nats over the bytes that the text takes when zlib has compressed it; at least 0.

    A repetitive text is likely under any model; divided by what it holds it can be compared with others.
    """
    return loss / len(zlib.compress(text.encode()))


def min_k(token_scores):
    """Mean of the lowest two fifths (LOWEST) of a response's token scores [|y|], of one at least.

    Of token log-probabilities it is Min-K%, in nats, at most 0; of log-probabilities less their mean under the model's
    own distribution at that place, in its standard deviations, it is Min-K%++.
    """
    lowest = np.sort(token_scores)[: max(1, int(LOWEST * len(token_scores)))]
    return float(np.mean(lowest, dtype=np.float64))


def measured(scores, texts):
    """Lists of a log's part, from evaluate.LM's `token_scores` of answers and their texts."""
    return {
        "loss": [-float(logp.mean()) for logp, _, _ in scores],
        "memorized": [exact_memorization(likeliest) for _, likeliest, _ in scores],
        "extraction": [extraction_strength(likeliest) for _, likeliest, _ in scores],
        "zlib": [zlib_ratio(-float(each[0].mean()), text) for each, text in zip(scores, texts, strict=True)],
        "mink": [min_k(logp) for logp, _, _ in scores],
        "minkpp": [min_k(normalized) for _, _, normalized in scores],
    }


def membership(forget, holdout):
    """{attack: [AUC, low, high]} of telling forget from holdout answers, of two parts of a log; None without both,
    or where one has losses alone.

    AUC = P(a forget answer looks more familiar than a holdout answer), ties counting half. 0.5: they cannot be told
    apart; above: what was to be forgotten still looks familiar; below: it looks stranger than what was never seen,
    which tells it apart too. With 95% bootstrap bounds, None for fewer than two rows.
    """
    aucs = {}
    for attack in ATTACKS:
        if forget and holdout and forget.get(attack) and holdout.get(attack):
            # the one that is to have more of it, first
            pair = (holdout[attack], forget[attack]) if attack in LESS else (forget[attack], holdout[attack])
            aucs[attack] = [float(auc(*pair)), *bootstrap(auc, *pair)]
    return aucs if len(aucs) > 1 else None


def auc_of(metrics, attack):
    """An attack's AUC, of metrics with `membership`; None where there is none."""
    return (metrics.get("membership") or {}).get(attack, [None])[0]
