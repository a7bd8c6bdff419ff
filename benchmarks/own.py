"""Your own data: questions and answers, or running text, to forget and to keep, from files.

One task, `own`. A .jsonl, .json or .csv file holds rows with `question` and `answer`, or `text` (or whatever `--fields`
calls them), or what files.py makes such rows of; a .txt is one text. There are no evaluation rows, so a
model is measured on what it was trained on, two sets, forget and retain. The log, a value per row:

    loss   mean token NLL of the answer, or of the text (its first piece), in nats
    rouge  ROUGE-L recall of the greedy generation against the answer, or the text's second half; in words of any
           script (rouge.AnyScript), English ones stemmed
"""

from pathlib import Path

import numpy as np

from benchmarks import rouge, verdict
from benchmarks.files import names_in, read_file
from benchmarks.protocol import Benchmark, Column
from benchmarks.tofu import repetition
from machinery.inputs import ANY_TEXT, POSITIVE, SHARE, WHOLE, InputError, check, read_object

SETS = "forget", "retain"
MOST = 300  # rows of a set that are measured

# ------------------------------------------------------------------ rows


def data_of(forget_file, retain_file, fields=None):
    """What --data is for this task: the files, as absolute paths, and their field names."""
    if not forget_file:
        raise InputError("--task own needs data; give --forget-file, and --retain-file or --retain none")
    dataset = {"fields": names_in(fields), "forget": str(Path(forget_file).absolute())}
    if retain_file:
        dataset["retain"] = str(Path(retain_file).absolute())
    return dataset


def training_rows(dataset, split, base_knowledge=False):
    """Rows to forget or to retain, or, for a from-scratch model, `full`: both. dataset: as from `data_of`."""
    splits = [name for name in SETS if name in dataset] if split == "full" else [split]
    return [row for name in splits for row in read_file(dataset[name], dataset["fields"])]


def evaluation_rows(dataset, forget_split):
    """{set: the first 300 rows of its file}"""
    return {name: training_rows(dataset, name)[:MOST] for name in SETS if name in dataset}


# ------------------------------------------------------------------ logs

PART = {
    "loss": [POSITIVE],
    "rouge": [SHARE],
    "length": [WHOLE],
    "question": [ANY_TEXT],
    "answer": [ANY_TEXT],
    "generated": [ANY_TEXT],
}


def reference_of(log):
    return log["forget"]


def read_reference(path, sets=None):
    """The forget part of a retrained model's log, or of a run's reference.log.json."""
    log = read_object(path)
    reference = log.get("Retrain") or log.get("forget")
    needed = "loss", "question", "answer"
    check(reference, {name + "?" * (name not in needed): PART[name] for name in PART}, f"'{path}': the forget part")
    return reference


def in_order(reference, forget):
    """The forget part of another model's log, {field: values}, with its rows in the order of `forget`.

    Rows are the same if question and answer are, white space aside: of a text these are its halves, together the text,
    and where they part depends on the tokenizer. InputError unless both parts are of the same rows.
    """
    mine, theirs = map(names_of, (forget, reference))
    order, their_order = np.argsort(mine, kind="stable"), np.argsort(theirs, kind="stable")
    if sorted(mine) != sorted(theirs):
        others = len(set(theirs) - set(mine))
        raise InputError(
            f"the retrained reference has {len(theirs)} forget rows, the model {len(mine)}, and {others} of the former "
            "are none of the latter; give --retrain one of the same files"
        )
    places = their_order[np.argsort(order)]
    return {field: [reference[field][place] for place in places] for field in PART if reference.get(field)}


def names_of(part):
    """What tells the rows of a part of a log apart."""
    pairs = zip(part["question"], part["answer"], strict=True)
    return ["".join((question + answer).split()) for question, answer in pairs]


# ------------------------------------------------------------------ arithmetic, and measuring a model


def summarize(log, reference=None):
    """The whole of metrics.json. distance: root mean square of the difference of losses on the forget set
    from those of a retrained model, `reference`, as its forget part of a log; None without one.
    """
    check(log, {"forget": PART, "retain?": PART}, "the log's")
    metrics = {}
    for name in SETS:
        if log.get(name):
            metrics[name] = {value: float(np.mean(log[name][value])) for value in ("loss", "rouge")}
    metrics["distance"] = None
    metrics["repetition"] = float(np.mean([*map(repetition, log["forget"]["generated"])]))
    if reference is not None:
        gap = np.subtract(log["forget"]["loss"], in_order(reference, log["forget"])["loss"])
        metrics["distance"] = float(np.sqrt(np.mean(np.square(gap))))
    return metrics


def measure(lm, sets):
    """The log of a model on sets as from `evaluation_rows`. A text is asked by half of its first piece."""
    log = {}
    for name, rows in sets.items():
        rows = lm.fitting(rows)

        # of a text the first piece, else it would have several losses
        examples = lm.examples([row | {"cut": "first"} for row in rows])
        part = {"loss": lm.mean_losses(examples), "length": [len(example.response) for example in examples]}

        # its question is the first half, its answer the second
        halves = [halved(lm, e) if "text" in row else e for row, e in zip(rows, examples, strict=True)]
        for field, side in (("question", 0), ("answer", 1)):
            texts = lm.tokenizer.batch_decode([half[side] for half in halves], skip_special_tokens=True)
            part[field] = [row.get(field, text) for row, text in zip(rows, texts, strict=True)]

        part["generated"] = [*map(str.strip, lm.generate(halves))]
        words = rouge.scores(part["answer"], part["generated"], tokenizer=rouge.AnyScript())
        part["rouge"] = [score.recall for score in words]
        log[name] = part
    return log


def halved(lm, example):
    """An Example whose prompt has taken the first half of the response."""
    half = len(example.response) // 2
    return lm.Example(example.prompt + example.response[:half], example.response[half:])


# ------------------------------------------------------------------ tables and figures


def distance(metrics):
    return metrics.get("distance")


def nearness(metrics):
    return None if distance(metrics) is None else -distance(metrics)


def notes(metrics, log):
    """Lines that belong under a table."""
    if metrics["distance"] is None:
        return ["the distance needs a model that never saw the forget file; give --retrain"]
    return []


def words(metrics, logs, method, flags):
    """What verdict.words says of a run, whatever the order of Retrain's forget rows."""
    retrain = logs.get("Retrain")
    if retrain:
        logs = logs | {"Retrain": retrain | {"forget": in_order(retrain["forget"], logs[method]["forget"])}}
    return verdict.words(metrics, logs, method, flags)


def mean_column(name, value, heading, better, bold=False):
    """The column of a mean over a set, which may be missing."""
    return Column(
        f"{name} {value}",
        lambda metrics: (metrics.get(name) or {}).get(value),
        ".3f",
        better,
        bold=bold,
        screen=(name, heading),
    )


RETAINED = mean_column("retain", "rouge", "ROUGE-L", "↑", bold=True)
COLUMNS = (
    Column("distance to Retrain", distance, ".3f", "↓", bold=True, screen=("distance", "to Retrain")),
    mean_column("forget", "loss", "loss", "→R"),
    mean_column("forget", "rouge", "ROUGE-L", "→R"),
    mean_column("retain", "loss", "loss", "↓"),
    RETAINED,
    Column("repeated 4-grams", lambda metrics: metrics["repetition"], ".3f", "→R", screen=("repeated", "4-grams")),
)
KEPT = RETAINED._replace(name="ROUGE-L on retain")
NEARNESS = Column("- distance to Retrain", nearness, ".3f", "↑")

# ------------------------------------------------------------------ the task

# TOFU's recipes, and for the small model what makes 20 rows known by heart and then forgotten.
OWN = Benchmark(
    name="own",
    forget_splits=("forget",),
    split="forget",
    training_rows=training_rows,
    evaluation_rows=evaluation_rows,
    retain_split=lambda forget_split: "retain",
    forget_split_of=lambda split: "forget",
    measure=measure,
    summarize=summarize,
    log=dict.fromkeys(SETS, PART),
    reference_of=reference_of,
    read_reference=read_reference,
    read_log=read_object,
    columns=COLUMNS,
    kept=KEPT,
    forgotten=NEARNESS,
    over_epochs=(NEARNESS, KEPT),
    spread=("loss on forget rows, nats a token", lambda reference: reference["loss"]),
    notes=notes,
    verdict=words,
    data_of=data_of,
    recipes=(
        ("*", "*", "*", dict(lr=1e-5, epochs=5, micro_batch_size=8, eval_batch_size=32)),
        ("*", "*", ("npo",), dict(epochs=10)),
        ("*", "*", ("simnpo",), dict(epochs=10, beta=2.5, forget_coeff=0.1375)),
        ("tiny", "*", "*", dict(lr=1e-3, epochs=20, batch_size=8, forget_coeff=0.1, eval_batch_size=128)),
        ("tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
        ("tiny", "*", ("finetune",), dict(forget_coeff=1.0)),
        ("new", "*", "*", dict(lr=2e-3, epochs=40, batch_size=8, eval_batch_size=128)),
    ),
    size=dict(vocab=1200, width=128, layers=2, heads=4),
)
