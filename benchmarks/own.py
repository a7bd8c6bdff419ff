"""Your own data: questions and answers, or running text, to forget and to keep, from files.

One task, `own`. A .jsonl, .json or .csv file holds rows with `question` and `answer`, or `text` (or whatever `--fields`
calls them), or what files.py makes such rows of; a .txt is one text. A model is measured on what it was trained on, the
sets `forget` and `retain`; on rows of the same kind that it never saw, `holdout`, and on the facts to forget asked in
other words, `probe`, if there are any; and a pretrained one on `general` and `plain` (general.py). The log, a value per
row:

    loss        mean token NLL of the answer, or of the text (its first piece), in nats
    memorized   exact memorization, extraction strength, and what an attacker would go by: see memorization.py
    extraction
    zlib
    mink
    minkpp
    rouge       ROUGE-L recall of the greedy generation against the answer, or the first piece's second half; in
                words of any script (rouge.AnyScript), English ones stemmed

None of these needs a retrained model. An answer's tokens include the one that ends its turn.
"""

from pathlib import Path

import numpy as np

from benchmarks import general, memorization, rouge, verdict
from benchmarks.files import names_in, read_file
from benchmarks.protocol import Benchmark, Column
from benchmarks.tofu import repetition
from machinery.inputs import ANY_TEXT, POSITIVE, SHARE, WHOLE, InputError, check, read_object
from machinery.statistics import bootstrap

SETS = "forget", "retain"
FILES = *SETS, "holdout", "probe"
MOST = 300  # rows of a set that are measured
ENOUGH = 0.95  # of the way to the target, where --forget-until target holds

# ------------------------------------------------------------------ rows


def data_of(forget_file, retain_file, fields=None, holdout_file=None, probe_file=None):
    """What --data is for this task: the files, as absolute paths, and their field names."""
    if not forget_file:
        raise InputError("--task own needs data; give --forget-file, and --retain-file or --retain none")
    paths = dict(zip(FILES, (forget_file, retain_file, holdout_file, probe_file), strict=True))
    return {"fields": names_in(fields)} | {name: str(Path(path).absolute()) for name, path in paths.items() if path}


def training_rows(dataset, split, base_knowledge=False):
    """Rows of a file; or, for a from-scratch model, `full`: to forget and to retain; `all`: the holdout's too, which
    its tokenizer is made for: else new names are longer there, and less likely for that alone.

    dataset: as from `data_of`. InputError where it lacks the file.
    """
    splits = {"full": SETS, "all": (*SETS, "holdout")}.get(split, (split,))
    paths = [dataset[name] for name in splits if name in dataset]
    if not paths:
        raise InputError(f"--split {split} needs rows of it; give --{split}-file")
    return [row for path in paths for row in read_file(path, dataset["fields"])]


def evaluation_rows(dataset, forget_split):
    """{set: its first 300 rows}. InputError if holdout rows are among those trained on, or the probe asks nothing."""
    rows = {name: training_rows(dataset, name) for name in FILES if name in dataset}
    check_holdout(rows)
    if any("text" in row for row in rows.get("probe", ())):
        raise InputError(f"--probe-file: '{dataset['probe']}' holds text; give question and answer, which can be asked")

    # the same facts in other words
    forget = rows["forget"][:MOST]
    reworded = [row | {"question": row["paraphrase"]} for row in forget if "paraphrase" in row]
    if reworded:
        rows["probe"] = rows.get("probe", []) + reworded
    return {name: of_set[:MOST] for name, of_set in rows.items()}


def check_holdout(rows):
    """InputError if rows of `holdout`, white space aside, are rows of forget or retain."""
    seen = {name: {key_of(row) for row in of_set} for name, of_set in rows.items()}
    for name in SETS:
        shared = len(seen.get("holdout", set()) & seen.get(name, set()))
        if shared:
            raise InputError(
                f"--holdout-file: {shared} of its {len(seen['holdout'])} rows are in --{name}-file too; leave them out "
                "of the holdout, which is what the model never saw"
            )


def key_of(row):
    """What tells a row from others, without white space: its text, or its turns before, question and answer."""
    asked = [turn["content"] for turn in row.get("turns", ())] + [row.get("question", ""), row.get("answer", "")]
    return "".join((row["text"] if "text" in row else "".join(asked)).split())


def scaled(flags):
    """{"batch_size", "retain_batch_size"} that go by the number of rows: a fifth of those to be forgotten, at least 4,
    so that six epochs are about thirty steps, on which depends how far forgetting goes (their square root, so more
    steps, where it is held at its target), and three rows to keep with each; a twelfth of those to be learnt, 4 to 8.

    flags: those that are known yet. A text counts once for each piece of max_length tokens, of about four letters each.
    """
    if not Path(flags.get("forget_file") or "absent").is_file() or flags["split"] not in (*SETS, "full"):
        return {}  # which is said where it is read
    data = data_of(flags["forget_file"], flags.get("retain_file"), flags.get("fields"))
    rows = training_rows(data, flags["split"])
    count = sum(1 + len(row.get("text", "")) // (4 * flags["max_length"]) for row in rows)
    if flags.get("subset"):
        count *= float(flags["subset"].partition(":")[2])
    if flags["method"] == "finetune":
        return {"batch_size": min(8, max(4, int(count / 12)))}
    held = flags.get("forget_until") == "target"
    size = flags.get("batch_size") or (max(2, round(count**0.5)) if held else max(4, int(count / 5)))
    return {"batch_size": size, "retain_batch_size": 3 * size}


# ------------------------------------------------------------------ logs

PART = {
    "loss": [POSITIVE],
    **memorization.FIELDS,  # logs of before there were these lack them
    "rouge": [SHARE],
    "length": [WHOLE],
    "question": [ANY_TEXT],
    "answer": [ANY_TEXT],
    "generated": [ANY_TEXT],
}
LOG = {"forget": PART} | {f"{name}?": PART for name in FILES[1:]} | general.LOG
MEANS = "loss", "rouge", "memorized", "extraction"


def compared_part(log):
    return log["forget"]


def read_retrained(path, sets=None):
    """The forget part of a retrained model's log, or of a run's reference.log.json."""
    log = read_object(path)
    retrained = log.get("Retrain") or log.get("forget")
    needed = "loss", "question", "answer"
    shapes = {name.removesuffix("?"): shape for name, shape in PART.items()}
    shapes = {name + "?" * (name not in needed): shape for name, shape in shapes.items()}
    check(retrained, shapes, f"'{path}': the forget part")
    return retrained


def in_order(retrained, forget):
    """The forget part of another model's log, {field: values}, with its rows in the order of `forget`.

    Rows are the same if question and answer are, white space aside: of a text these are its halves, together the text,
    and where they part depends on the tokenizer. InputError unless both parts are of the same rows.
    """
    mine, theirs = map(names_of, (forget, retrained))
    order, their_order = np.argsort(mine, kind="stable"), np.argsort(theirs, kind="stable")
    if sorted(mine) != sorted(theirs):
        others = len(set(theirs) - set(mine))
        raise InputError(
            f"Retrain has {len(theirs)} forget rows, the model {len(mine)}, and {others} of the former "
            "are none of the latter; give --retrain one of the same files"
        )
    places = their_order[np.argsort(order)]
    known = {name.removesuffix("?") for name in PART}
    return {field: [retrained[field][place] for place in places] for field in known if retrained.get(field)}


def names_of(part):
    """What tells the rows of a part of a log apart."""
    pairs = zip(part["question"], part["answer"], strict=True)
    return ["".join((question + answer).split()) for question, answer in pairs]


# ------------------------------------------------------------------ arithmetic, and measuring a model


def means_of(part):
    """Of a part of a log the means, and under `interval` their 95% bootstrap bounds."""
    values = {value: part[value] for value in MEANS if part.get(value)}
    means = {value: float(np.mean(column)) for value, column in values.items()}
    return means | {"interval": {value: bootstrap(np.mean, column) for value, column in values.items()}}


def summarize(log, retrained=None):
    """The benchmark's part of metrics.json. distance: root mean square of the difference of losses on the forget set
    from those of `retrained`, the forget part of the retrained model's log; None without one.
    """
    check(log, LOG, "the log's")
    metrics = {name: means_of(log[name]) for name in FILES if log.get(name)} | general.summarize(log)
    metrics["membership"] = memorization.membership(log.get("forget"), log.get("holdout"))
    metrics["distance"] = None
    metrics["repetition"] = float(np.mean([*map(repetition, log["forget"]["generated"])]))
    if retrained is not None:
        gap = np.subtract(log["forget"]["loss"], in_order(retrained, log["forget"])["loss"])
        metrics["distance"] = float(np.sqrt(np.mean(np.square(gap))))
    return metrics


def measure(lm, sets):
    """The log of a model on sets as from `evaluation_rows`, and on those of general.py."""
    log = {name: measured(lm, rows) for name, rows in sets.items() if name in FILES}
    return log | general.measure(lm, sets)


def measured(lm, rows):
    """The part of a log on rows. A text is asked by half of its first piece."""
    rows = lm.fitting(rows)
    examples = asked(lm, rows)
    texts = lm.tokenizer.batch_decode([example.response for example in examples], skip_special_tokens=True)
    part = memorization.measured(lm.token_scores(examples), texts)
    part["length"] = [len(example.response) for example in examples]

    # its question is the first half, its answer the second
    halves = [halved(lm, e) if "text" in row else e for row, e in zip(rows, examples, strict=True)]
    for field, side in (("question", 0), ("answer", 1)):
        texts = lm.tokenizer.batch_decode([half[side] for half in halves], skip_special_tokens=True)
        part[field] = [row.get(field, text) for row, text in zip(rows, texts, strict=True)]

    part["generated"] = [*map(str.strip, lm.generate(halves))]
    words = rouge.scores(part["answer"], part["generated"], tokenizer=rouge.AnyScript())
    return part | {"rouge": [score.recall for score in words]}


def asked(lm, rows):
    """Examples of rows as they are measured: of a text the first piece, else it would have several losses."""
    return lm.examples([row | {"cut": "first"} for row in rows])


def halved(lm, example):
    """An Example whose prompt has taken the first half of the response."""
    half = len(example.response) // 2
    return lm.Example(example.prompt + example.response[:half], example.response[half:])


def look(lm, sets, before, retrained):
    """A function that says in words that the loss on the forget rows has come 95% of the way to the verdict's target,
    or None.

    before: the log of the model before unlearning; retrained: Retrain's forget part, or None. One of them has the loss
    to come to.
    """
    whose, losses = verdict.aim(retrained and retrained["loss"], before.get("holdout", {}).get("loss"))
    first, target = np.mean(before["forget"]["loss"]), np.mean(losses)
    examples = asked(lm, lm.fitting(sets["forget"]))

    def reached():
        loss = np.mean(lm.mean_losses(examples))
        if loss < first + ENOUGH * (target - first):
            return None
        return f"the loss on the forget rows is {loss:.2f}, {whose} {target:.2f}"

    return reached


# ------------------------------------------------------------------ tables and figures


def distance(metrics):
    return metrics.get("distance")


def nearness(metrics):
    return None if distance(metrics) is None else -distance(metrics)


MISSING = {
    "distance": "the distance needs a model that never saw the forget file; give --retrain",
    "membership": "whether forget rows can be told from rows never seen is not known; give --holdout-file",
    "probe": "whether the facts come when asked in other words is not known; give --probe-file or a column paraphrase",
}


def notes(metrics, log):
    """Lines that belong under a table: what is not known, and what would tell."""
    return [line for name, line in MISSING.items() if metrics.get(name) is None]


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
    mean_column("forget", "memorized", "memor.", "→R"),
    mean_column("forget", "extraction", "extract.", "→R"),
    mean_column("probe", "rouge", "ROUGE-L", "→R"),
    Column(
        "AUC by loss",
        lambda metrics: memorization.auc_of(metrics, "loss"),
        ".3f",
        "→R",
        screen=("membership", "AUC"),
    ),
    mean_column("retain", "loss", "loss", "↓"),
    RETAINED,
    mean_column("general", "accuracy", "accuracy", "↑"),
    mean_column("plain", "perplexity", "perplexity", "↓")._replace(form=".1f"),
    Column("repeated 4-grams", lambda metrics: metrics["repetition"], ".3f", "→R", screen=("repeated", "4-grams")),
)
KEPT = RETAINED._replace(name="ROUGE-L on retain")
NEARNESS = Column("- distance to Retrain", nearness, ".3f", "↑")

# ------------------------------------------------------------------ the task

# For a pretrained model what a small grid chose (results/own_grid.sh); for the small one made from scratch what makes
# 20 rows known by heart and then forgotten.
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
    log=LOG,
    outside=general.rows,
    compared_part=compared_part,
    read_retrained=read_retrained,
    read_log=read_object,
    columns=COLUMNS,
    kept=KEPT,
    forgotten=NEARNESS,
    over_epochs=(NEARNESS, KEPT),
    spread=("loss on forget rows, nats a token", lambda retrained: retrained["loss"]),
    notes=notes,
    verdict=words,
    look=look,
    data_of=data_of,
    scaled=scaled,
    recipes=(
        ("*", "*", "*", dict(lr=2e-5, epochs=6, micro_batch_size=8, eval_batch_size=32)),
        ("*", "*", ("finetune",), dict(lr=1e-4, epochs=8)),
        ("*", "*", ("simnpo",), dict(beta=1.25)),
        ("*", "*", ("graddiff", "npo"), dict(forget_coeff=0.05)),  # about 1/|y|: of a whole answer
        ("*", "*", ("idk", "dpo"), dict(forget_coeff=0.1)),  # more, and it refuses everything
        ("tiny", "*", "*", dict(lr=1e-3, epochs=20, batch_size=8, forget_coeff=0.1, eval_batch_size=128)),
        ("tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
        ("tiny", "*", ("finetune",), dict(forget_coeff=1.0)),
        ("tiny", "*", ("simnpo",), dict(beta=2.5)),
        ("new", "*", "*", dict(lr=2e-3, epochs=40, batch_size=8, eval_batch_size=128)),
    ),
    size=dict(vocab=1200, width=128, layers=2, heads=4),
    tokenizer_split="all",
)
