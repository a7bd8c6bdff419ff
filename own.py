"""Your own data: questions and answers, or running text, to forget and to keep, from files.

One task, `own`. A .jsonl, .json or .csv file holds rows with `question` and `answer` (or whatever `--fields`
calls them), a .jsonl or .json also rows with `text`; a .txt is one text. There are no evaluation rows, so a
model is measured on what it was trained on, two sets, forget and retain. The log, a value per row:

    loss   mean token NLL of the answer, or of the text (its first piece), in nats
    rouge  ROUGE-L recall, stemmed, of the greedy generation against the answer, or the text's second half
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

import data
import runs
import tofu
from data import InputError

TASKS = {
    "own": dict(
        forget_splits=("forget",),
        split="forget",
        model="tiny",
        data={},
        max_length=500,
        max_new_tokens=64,
        size=dict(vocab=1200, width=128, layers=2, heads=4),
    )
}
SETS, FIELDS = ("forget", "retain"), ("question", "answer", "text")
MOST = 300  # rows of a set that are measured

# As in tofu.py: TOFU's, and for the small model what makes 20 rows known by heart and then forgotten.
RECIPES = [
    ("own", "*", "*", "*", dict(lr=1e-5, epochs=5, micro_batch_size=8, eval_batch_size=32)),
    ("own", "*", "*", ("npo",), dict(epochs=10)),
    ("own", "*", "*", ("simnpo",), dict(epochs=10, beta=2.5, forget_coeff=0.1375)),
    ("own", "tiny", "*", "*", dict(lr=1e-3, epochs=20, batch_size=8, forget_coeff=0.1, eval_batch_size=128)),
    ("own", "tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
    ("own", "tiny", "*", ("finetune",), dict(forget_coeff=1.0)),
    ("own", "new", "*", "*", dict(lr=2e-3, epochs=40, batch_size=8, eval_batch_size=128)),
]

# ------------------------------------------------------------------ rows


def data_of(forget_file, retain_file, fields=None):
    """What --data is for this task: the files, as absolute paths, and their field names."""
    if not forget_file:
        raise InputError("--task own needs data; give --forget-file, and --retain-file or --retain none")
    return {"fields": names_in(fields), "forget": str(Path(forget_file).absolute())} | (
        {"retain": str(Path(retain_file).absolute())} if retain_file else {}
    )


def names_in(fields):
    """What --fields says, as a list of three; FIELDS for None."""
    names = fields.split(",") if fields else [*FIELDS]
    if len(names) != 3 or not all(names):
        raise InputError(f"--fields: '{fields}' must be three names, such as question,answer,text")
    return names


def read_file(path, fields=FIELDS):
    """Rows of a file: {"question", "answer"} or {"text"}. InputError, naming the line, for anything else."""
    path, kind = Path(path), Path(path).suffix.lower()
    if kind not in (".jsonl", ".json", ".csv", ".txt"):
        raise InputError(f"'{path}' is no .jsonl, .json, .csv or .txt; give one of these")
    try:
        text = runs.read_text(path, "utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read '{path}' ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is no text in UTF-8; save it as that") from None
    place, found = 1, []  # where we are: a line, or an item of a .json
    try:
        if kind == ".txt":
            found = [(1, {fields[2]: text})]
        elif kind == ".json":
            found = json.loads(text)
        elif kind == ".jsonl":
            for place, line in enumerate(text.split("\n"), 1):
                found += [(place, json.loads(line))] if line.strip() else []
        else:
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            for row in reader:
                place = reader.line_num
                if None in row:
                    raise csv.Error("more cells than the first line has; quote what holds a comma")
                found.append((place, row))
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' line {place} is no valid {kind} ({error}); mend it there") from None
    if kind == ".json":
        runs.check(found, [runs.OBJECT], f"'{path}': item")
        found = [*enumerate(found, 1)]
    rows = []
    for place, row in found:
        row = row if isinstance(row, dict) else {}
        named = {ours: row.get(theirs) for ours, theirs in zip(FIELDS, fields)}
        kept = {"text": named["text"]} if named["text"] is not None else {field: named[field] for field in FIELDS[:2]}
        if not all(map(runs.TEXT[1], kept.values())):
            raise InputError(
                f"'{path}' line {place} lacks '{fields[0]}' and '{fields[1]}', or '{fields[2]}'; it has "
                f"{', '.join(map(str, row))[:200] or 'none'}; --fields tells what yours are called"
            )
        rows.append(kept)
    if not rows:
        raise InputError(f"'{path}' has no rows; give it at least one")
    return rows


def retain_split(forget_split):
    return "retain"


def forget_split_of(task, split):
    return "forget"


def training_rows(task, dataset, split, base_knowledge=False):
    """Rows to forget or to retain, or, for a from-scratch model, `full`: both."""
    splits = [each for each in SETS if each in dataset] if split == "full" else [split]
    return [row for each in splits for row in read_file(dataset[each], dataset["fields"])]


def evaluation_rows(task, dataset, forget_split):
    """{set: the first 300 rows of its file}"""
    return {each: training_rows(task, dataset, each)[:MOST] for each in SETS if each in dataset}


# ------------------------------------------------------------------ arithmetic, and measuring a model


def summarize(log, reference=None):
    """The whole of metrics.json. distance: root mean square of the difference of losses on the forget set
    from those of a retrained model, `reference`, as its forget part of a log; None without one.
    """
    runs.check(log, {"forget": LOG["forget"], "retain?": LOG["retain"]}, "the log's")
    metrics = {
        part: {"loss": float(np.mean(log[part]["loss"])), "rouge": float(np.mean(log[part]["rouge"]))}
        for part in SETS
        if log.get(part)
    }
    repeated = [*map(tofu.repetition, log["forget"]["generated"])]
    metrics |= {"distance": None, "repetition": float(np.mean(repeated))}
    if reference is not None:
        mine, theirs = log["forget"]["loss"], reference["loss"]
        if len(mine) != len(theirs):
            raise InputError(
                f"the retrained reference has {len(theirs)} forget rows, the model {len(mine)}; "
                "give --retrain one of the same files"
            )
        metrics["distance"] = float(np.sqrt(np.mean(np.square(np.subtract(mine, theirs)))))
    return metrics


def nearness(metrics):
    return None if metrics.get("distance") is None else -metrics["distance"]


# For tables and figures; see tofu.py.
COLUMNS = {
    "distance to Retrain ↓": (lambda metrics: metrics.get("distance"), "{:.3f}"),
    **{
        f"{part} {what} {sign}": (lambda m, part=part, what=what: (m.get(part) or {}).get(what), "{:.3f}")
        for part, what, sign in (
            ("forget", "loss", "→R"),
            ("forget", "rouge", "→R"),
            ("retain", "loss", "↓"),
            ("retain", "rouge", "↑"),
        )
    },
    "repeated 4-grams →R": (lambda metrics: metrics["repetition"], "{:.3f}"),
}
MAIN = [*COLUMNS]
BOLD = "distance to Retrain ↓", "retain rouge ↑"
KEPT = "ROUGE-L on retain", lambda metrics: (metrics.get("retain") or {}).get("rouge")
FORGOTTEN = PATH = "- distance to Retrain", nearness
OVER_EPOCHS = PATH, KEPT

NUMBERS = [runs.POSITIVE]
LOG = dict.fromkeys(
    SETS,
    {
        "loss": NUMBERS,
        "rouge": [runs.SHARE],
        "length": [runs.WHOLE],
        **dict.fromkeys(("question", "answer", "generated"), [runs.ANY_TEXT]),
    },
)
MEANS = {"loss": runs.POSITIVE, "rouge": runs.SHARE}
METRICS = {"forget": MEANS, "retain?": MEANS, "distance?": runs.POSITIVE, "repetition": runs.SHARE}
FILES = runs.files_of(METRICS, {"forget": LOG["forget"]}, {"loss": NUMBERS, "generated?": [runs.ANY_TEXT]})


def reference_of(log):
    return log["forget"]


def read_reference(path, sets=None):
    """The forget part of a retrained model's log, or of a run's reference.log.json."""
    log = runs.read_log(path)
    reference = log.get("Retrain") or log.get("forget")
    runs.check(reference, {"loss": NUMBERS}, f"'{path}': the forget part")
    return reference


def measure(model, tokenizer, sets, dtype, template="auto", max_length=500, batch_size=32, max_new_tokens=64):
    """The log of a model on sets as from `evaluation_rows`. A text is asked by half of its first piece."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    model.eval()
    log = {}
    for name, rows in sets.items():
        # Of a text the first piece, else it would have several losses.
        examples = data.examples_of([row | {"cut": "first"} for row in rows], tokenizer, template, max_length)
        halves = [
            data.Example(
                example.prompt + example.response[: len(example.response) // 2],
                example.response[len(example.response) // 2 :],
            )
            if "text" in row
            else example
            for row, example in zip(rows, examples)
        ]
        log[name] = part = {
            "loss": data.mean_losses(model, examples, batch_size, dtype),
            "length": [len(example.response) for example in examples],
        }
        for field, side in (("question", 0), ("answer", 1)):
            texts = tokenizer.batch_decode([half[side] for half in halves], skip_special_tokens=True)
            part[field] = [row.get(field, text) for row, text in zip(rows, texts)]
        texts = data.generate(model, tokenizer, halves, batch_size, dtype, max_new_tokens)
        part["generated"] = [*map(str.strip, texts)]
        part["rouge"] = [
            scorer.score(answer, text)["rougeL"].recall for answer, text in zip(part["answer"], part["generated"])
        ]
    return log


SPREAD = "loss on forget rows, nats a token"


def spread_of(reference):
    return reference["loss"]


def table(named_metrics):
    """Lines of text: one row per model, from {name: metrics}."""
    lines = [
        f"{'':12s}   distance         forget         retain  repeated",
        f"{'':12s} to Retrain  loss  ROUGE-L  loss  ROUGE-L   4-grams",
    ]
    for name, metrics in named_metrics.items():
        distance = "–" if metrics["distance"] is None else f"{metrics['distance']:.3f}"
        cells = [
            f"{metrics[part]['loss']:6.3f} {metrics[part]['rouge']:7.3f}" if part in metrics else "–" for part in SETS
        ]
        lines.append(f"{name:12s} {distance:>10s} {cells[0]:>14s} {cells[1]:>14s} {metrics['repetition']:9.3f}")
    return "\n".join(lines)


def notes(metrics, log):
    """Lines that belong under a table."""
    missing = metrics["distance"] is None
    return ["the distance needs a model that never saw the forget file; give --retrain"] * missing
