"""What lies outside any file: general questions and plain English, to see what unlearning costs elsewhere.

For pretrained models; one that was made from scratch knows nothing of it. Written for this project, on common
knowledge. The log, a value a question and a value a passage:

    general  right       whether of four choices the right one is likeliest: has the highest mean token log-probability
                         as an answer. The mean, so that a choice does not lose by its length
             generated   what the model answers when it is asked without choices, greedily: where forgotten names may
                         turn up
    plain    loss        mean token NLL of the passage in nats; length: its tokens
"""

import math

import numpy as np

from machinery.inputs import ANY_TEXT, POSITIVE, WHOLE
from machinery.statistics import bootstrap

ANSWER_TOKENS = 20  # at most, of an answer

# question | right choice | three wrong ones
QUESTIONS = """
What is the capital of France? | Paris | Lyon | Geneva | Brussels
How many days does a week have? | Seven | Five | Nine | Ten
"""

PASSAGES = ("The bakery on the corner opens at six in the morning, and by seven there is a line at the door.",)

# ------------------------------------------------------------------ rows


def rows():
    """{set: rows}: of `general` question, choices (the first is right) and answer; of `plain` text."""
    lines = [[*map(str.strip, line.split("|"))] for line in QUESTIONS.strip().splitlines()]
    general = [{"question": question, "choices": choices, "answer": choices[0]} for question, *choices in lines]
    return {"general": general, "plain": [{"text": text} for text in PASSAGES]}


# ------------------------------------------------------------------ logs, and the arithmetic on them

TRUTH = "true or false", lambda value: value in (True, False)
LOG = {
    "general?": {
        "question": [ANY_TEXT],
        "choices": [[ANY_TEXT]],
        "answer": [ANY_TEXT],
        "right": [TRUTH],
        "generated": [ANY_TEXT],
    },
    "plain?": {"loss": [POSITIVE], "length": [WHOLE]},
}


def summarize(log):
    """Metrics of the two sets, as far as the log has them. plain: loss in nats a token, over all tokens; exp(loss)."""
    metrics = {}
    if log.get("general"):
        right = log["general"]["right"]
        metrics["general"] = {"accuracy": float(np.mean(right)), "interval": {"accuracy": bootstrap(np.mean, right)}}
    if log.get("plain"):
        loss = float(np.average(log["plain"]["loss"], weights=log["plain"]["length"]))
        metrics["plain"] = {"loss": loss, "perplexity": math.exp(min(loss, 700))}  # exp(710) is no float
    return metrics


# ------------------------------------------------------------------ measuring a model


def measure(lm, sets):
    """The log's parts on `general` and `plain`, as from `rows`, if they are among the sets."""
    log = {}
    if "general" in sets:
        log["general"] = answered(lm, sets["general"])
    if "plain" in sets:
        examples = [lm.pieces(row["text"], lm.positions, "first")[0] for row in sets["plain"]]
        lengths = [len(example.response) for example in examples]
        log["plain"] = {"loss": lm.mean_losses(examples), "length": lengths}
    return log


def answered(lm, rows):
    """The log's part on questions. Of one that is longer than the model reads, its end is asked."""
    examples = [lm.encode(row["question"], choice) for row in rows for choice in row["choices"]]
    room = lm.positions - max(ANSWER_TOKENS, *(len(example.response) for example in examples))
    examples = [lm.Example(prompt[-room:], response) for prompt, response in examples]

    # right, if likelier than each of the wrong ones; with ties it is not
    losses = np.reshape(lm.mean_losses(examples), (len(rows), -1))
    right = losses[:, 0] < losses[:, 1:].min(1)

    part = {field: [row[field] for row in rows] for field in ("question", "choices", "answer")}
    asked = examples[:: losses.shape[1]]
    texts = lm.generate(asked, ANSWER_TOKENS)
    return part | {"right": right.tolist(), "generated": [*map(str.strip, texts)]}
