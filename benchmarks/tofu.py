"""TOFU: rows and splits, the arithmetic of its metrics, logs that others published, measuring a model.

Two tasks share it: `tofu`, the benchmark of Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for
LLMs", from the Hub or a local folder, and `toy`, the same questions asked of toy.py's invented world.

Four sets are scored: forget, retain, real_authors, world_facts; and where the data have one, a holdout on authors that
no model learnt. A *log* of a model holds, under each set's name, lists of equal length, a value per example; the
arithmetic needs these, and nothing of the model:

    loss              mean token NLL of the answer, EOS included, in nats
    paraphrased_loss  the same for the paraphrased answer (real authors and world facts: the answer)
    perturbed_loss    the same for each wrong answer, a list per example
    rouge             ROUGE-L recall (stemmed) of the greedy generation against the answer

Of the forget set, and of a holdout with its losses alone, there is also what memorization.py measures.
"""

import contextlib
import functools
import math
import sys
import warnings

import numpy as np
import scipy

from benchmarks import memorization, rouge, toy
from benchmarks.protocol import Benchmark, Column
from machinery.inputs import (
    ANY_TEXT,
    POSITIVE,
    SHARE,
    TEXT,
    WHOLE,
    InputError,
    NotLoaded,
    check,
    load_split,
    note,
    read_object,
)

SETS = "forget", "retain", "real_authors", "world_facts"
MEANS = "probability", "rouge", "truth_ratio"
BASE_KNOWLEDGE = SETS[2:]  # what a from-scratch model must learn too, so that its utility can be measured
FIRST_ROWS = 300  # TOFU's authors score the first 300 rows of a set: of retain_perturbed, and for forget quality

# ------------------------------------------------------------------ rows


def retain_split(forget_split):
    """forget05 → retain95: the authors that stay."""
    return f"retain{100 - int(forget_split.removeprefix('forget')):02d}"


def forget_split_of(split, full):
    """The forget set that metrics are about: retain95 → forget05; full → what `full` says; else the split."""
    if split == "full":
        return full
    return f"forget{100 - int(split.removeprefix('retain')):02d}" if split.startswith("retain") else split


def load_rows(dataset, config):
    """Rows of one dataset configuration, as dicts.

    dataset: a Hub id or a local folder in the Hub's layout, where InputError when the configuration is missing,
    empty, or a row lacks a field; None for the invented world.
    """
    if dataset is None:
        return (toy.tofu_rows() | toy.holdout_rows())[config]
    shape = {"question": TEXT, "answer": TEXT}
    if config.endswith("_perturbed"):
        shape["perturbed_answer"] = [TEXT]
        if config.removesuffix("_perturbed") not in BASE_KNOWLEDGE:
            shape["paraphrased_answer"] = TEXT
    return load_split(dataset, config, "train", shape)


def training_rows(dataset, split, base_knowledge=False):
    """Rows of a split, and for a model that knows nothing the base knowledge after them."""
    configs = [split, *BASE_KNOWLEDGE] if base_knowledge else [split]
    return [row for config in configs for row in load_rows(dataset, config)]


def evaluation_rows(dataset, forget_split):
    """Rows of the four evaluation sets, and of a holdout where the data have one: {set: [row, ...]}."""
    configs = {name: f"{name}_perturbed" for name in SETS} | {"forget": f"{forget_split}_perturbed"}
    sets = {name: load_rows(dataset, config) for name, config in configs.items()}
    return sets | {"retain": sets["retain"][:FIRST_ROWS]} | held_out(dataset, forget_split)


def held_out(dataset, forget_split):
    """{"holdout": rows on authors that no split holds}; {} where the data have none.

    The toy has as many as are forgotten, some copies of TOFU too. InputError if one of them is in `full`, which
    Original learnt, or lacks a field.
    """
    try:
        rows = load_rows(dataset, forget_split.replace("forget", "holdout"))
    except NotLoaded as error:
        if "BuilderConfig" not in str(error):  # it is there, but cannot be read
            note(f"no holdout: {error}")
        return {}
    seen = {(row["question"], row["answer"]) for row in load_rows(dataset, "full")}
    shared = sum((row["question"], row["answer"]) in seen for row in rows)
    if shared:
        raise InputError(f"{shared} rows of the holdout are in 'full' of '{dataset}' too; take them out of either")
    return {"holdout": rows}


# ------------------------------------------------------------------ arithmetic, no model


def truth_ratio(paraphrased_loss, perturbed_loss):
    """c = exp(mean_k loss(perturbed_k) - loss(paraphrased)), per example: above 1, the truth is likelier.

    paraphrased_loss [N], perturbed_loss N lists of one or more; returns float64 [N], in [0, inf].
    """
    with np.errstate(over="ignore"):
        wrong = np.array([np.mean(losses) for losses in perturbed_loss], dtype=np.float64)
        return np.exp(wrong - np.asarray(paraphrased_loss, dtype=np.float64))


def ratio_of(part):
    """Truth ratios c [N] of a set's part of a log, or of one that holds just them; finite, as in JSON."""
    ratio = part.get("truth_ratio") or truth_ratio(part["paraphrased_loss"], part["perturbed_loss"])
    return np.minimum(ratio, sys.float_info.max)


def log_ratio(forget, within=12):
    """log10 of truth ratios [N], 0 where truth and wrong answers tie; within ±`within`, by default as in pictures."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(ratio_of(forget)), -within, within)


def forget_quality(ratio, retrain_ratio):
    """p-value, in [0, 1], of the two-sample Kolmogorov-Smirnov test between two sets of truth ratios.

    1: the unlearned model's cannot be told from the retrained one's. Of ranks only: c and 1/c give the same.
    """
    with warnings.catch_warnings():
        # Just below 1 the exact value may come out above 1; scipy then takes the asymptotic one, and warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.ks_2samp(ratio, retrain_ratio).pvalue)


def shared_rows(forget, retrained):
    """Positions in the forget parts of two models' logs of the rows that both have: two int arrays [M].

    By row number, since published logs stop at row 300; and rows from 300 on are left out, as TOFU's
    authors do: the same statistic of more rows has another p-value. InputError unless the logs are of one forget set:
    where both tell their answers those must agree, else both must have equally many rows.
    """
    mine, theirs = row_numbers(forget), row_numbers(retrained)
    _, left, right = np.intersect1d(mine, theirs, return_indices=True)
    same = len(left) == len(mine) == len(theirs)
    if forget.get("answer") and retrained.get("answer"):
        pairs = [(forget["answer"][i], retrained["answer"][j]) for i, j in zip(left, right, strict=True)]
        same = pairs and all(one == other for one, other in pairs)
    if not same:
        raise InputError(
            f"forget quality compares {len(mine)} forget examples with {len(theirs)} others of "
            "Retrain; give --retrain one of the same forget split"
        )
    first = np.array(mine)[left] < FIRST_ROWS
    return left[first], right[first]


def row_numbers(forget):
    """Numbers of the rows that the forget part of a log is of: those it tells, else all from 0."""
    fields = "truth_ratio", "paraphrased_loss", "answer"
    return forget.get("row") or range(max(len(forget.get(field, ())) for field in fields))


def compared(forget, retrained):
    """What of metrics.json compares the forget parts of two models' logs, on the `shared_rows`.

    distance: sqrt(mean (log10 c - log10 c_R)²), per example, so that unlike forget quality it is not of ranks;
    0 if every truth ratio is Retrain's. forget_quality_halves, of the shortest and the longest half, is
    None where `forget` lacks `length`.
    """
    rows, theirs = shared_rows(forget, retrained)
    ratio, aim = ratio_of(forget)[rows], ratio_of(retrained)[theirs]
    gap = log_ratio(forget, 300)[rows] - log_ratio(retrained, 300)[theirs]
    halves = None
    if forget.get("length") and len(rows) > 1:
        short, long = halves_of(np.array(forget["length"])[rows])
        halves = {
            "shortest": forget_quality(ratio[short], aim[short]),
            "longest": forget_quality(ratio[long], aim[long]),
        }
    return {
        "forget_quality": forget_quality(ratio, aim),
        "forget_quality_halves": halves,
        "distance": float(np.sqrt(np.mean(gap**2))),
        "forget_examples": len(rows),
    }


def halves_of(length):
    """(indices of the shorter half, of the longer half) of the forget set, by |y|; ties stay in order."""
    order = np.argsort(length, kind="stable")
    return order[: len(order) // 2], order[len(order) // 2 :]


def repetition(text):
    """Share of repeated word 4-grams, in [0, 1): 1 - distinct / all, 0 for fewer than four words.

    "rep-4" of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training".
    """
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def model_utility(metrics):
    """Harmonic mean of the nine {probability, rouge, truth_ratio} × {retain, real authors, world facts}.

    metrics: {set: {part: number in [0, 1]}}. 0 as soon as one of the nine is 0. As aggregate_eval_stat.py of
    TOFU's authors computes it; their utils.py has another formula, and other numbers.
    """
    return float(scipy.stats.hmean([metrics[name][part] for name in SETS[1:] for part in MEANS]))


def means_of(name, part):
    """{one of MEANS: mean} over the examples of one set; part: what a log holds under its name."""
    if name in BASE_KNOWLEDGE:
        # p(answer) among the offered answers; p = exp(-loss), so a softmax, which cannot be 0/0
        probability = [
            scipy.special.softmax(-np.array([right, *wrong]))[0]
            for right, wrong in zip(part["loss"], part["perturbed_loss"], strict=True)
        ]
    else:
        probability = np.exp(-np.array(part["loss"]))
    ratio = ratio_of(part)
    with np.errstate(divide="ignore"):
        inverse = 1 / ratio
    truth = np.minimum(ratio, inverse) if name == "forget" else np.maximum(0, 1 - inverse)
    return {
        "probability": float(np.mean(probability)),
        "rouge": float(np.mean(part["rouge"])),
        "truth_ratio": float(np.mean(truth)),  # of c, which the name means in a log, what the table calls truth
    }


def summarize(log, retrained=None):
    """From per-example values to the benchmark's part of metrics.json.

    log: as in this file's docstring. retrained: the forget part of the retrained model's log, or None, which
    makes what is `compared` None. repetition and judged, means over generated forget answers, are None where
    the log lacks `generated` or `judged`. InputError for a log that lacks a set or a list, has lists of
    different lengths, or values that are not numbers.
    """
    if "forget_truth_ratio" in log:
        raise InputError(
            "the log holds truth ratios, which --retrain can use, but not the losses of the four sets; "
            "give a TOFU_EVAL.json with losses, our metrics.log.json or TOFU's published log"
        )
    check(log, LOG, "the log's")
    forget = log["forget"]
    metrics = {
        "forget_quality": None,
        "forget_quality_halves": None,
        "distance": None,
        "model_utility": None,
        "forget_examples": len(forget["loss"]),
        "repetition": None,
        "judged": None,
        "memorized": None,
        "extraction": None,
        "membership": memorization.membership(forget, log.get("holdout")),
    }
    metrics |= {name: means_of(name, log[name]) for name in SETS}
    metrics["model_utility"] = model_utility(metrics)
    if forget.get("generated"):
        metrics["repetition"] = float(np.mean([*map(repetition, forget["generated"])]))
    for name in ("judged", "memorized", "extraction"):
        if forget.get(name):
            metrics[name] = float(np.mean(forget[name]))
    return metrics if retrained is None else metrics | compared(forget, retrained)


def floor(metrics, forget, retrained):
    """Metrics of one retrained model as if it had unlearned and another, of another seed, were its Retrain.

    As near as perfect unlearning comes. None where the two are one model, or have different numbers of rows.
    """
    if forget == retrained or len(forget["truth_ratio"]) != len(retrained["truth_ratio"]):
        return None
    return metrics | {"judged": None} | compared(forget, retrained)


# ------------------------------------------------------------------ logs, ours and others'

# shapes
NUMBERS = [POSITIVE]
EXTRAS = {
    "row?": [WHOLE],
    "length?": [WHOLE],
    "answer?": [ANY_TEXT],
    "generated?": [ANY_TEXT],
    "judged?": NUMBERS,
}
RATIOS = EXTRAS | {"truth_ratio": NUMBERS, "loss?": NUMBERS}
LOSSES = EXTRAS | {"paraphrased_loss": NUMBERS, "perturbed_loss": [NUMBERS]}
LOG = dict.fromkeys(SETS, LOSSES | memorization.FIELDS | {"loss": NUMBERS, "rouge": [SHARE]})
LOG |= {"holdout?": {"loss": NUMBERS} | memorization.FIELDS}

# what TOFU's authors call the sets and their lists
PUBLISHED_SETS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
PUBLISHED_FIELDS = {
    "loss": "avg_gt_loss",
    "paraphrased_loss": "avg_paraphrased_loss",
    "perturbed_loss": "average_perturb_loss",
    "rouge": "rougeL_recall",
    "answer": "generated_text",  # of each (prompt, what was generated, the right answer) the last
}

# what TOFU_EVAL.json of the newer framework, OpenUnlearning, calls them: a metric of a set, and a value of each row
FRAMEWORK_SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
FRAMEWORK_FIELDS = {
    "loss": ("Q_A_Prob", "avg_loss"),
    "paraphrased_loss": ("Q_A_PARA_Prob", "avg_loss"),
    "perturbed_loss": ("Q_A_PERT_Prob", "avg_loss"),
    "rouge": ("Q_A_ROUGE", "rougeL_recall"),
    "generated": ("Q_A_ROUGE", "generation"),
}


def by_row(column):
    """{row number: value} of a column that others published, a list or a dict by row. ValueError for other keys."""
    return {int(row): value for row, value in (column.items() if isinstance(column, dict) else enumerate(column))}


def published_column(content, name, field):
    """{row: value} of a field of a set in a log of TOFU's authors. KeyError, TypeError or ValueError if it lacks it."""
    column = by_row(content[PUBLISHED_SETS[name]][PUBLISHED_FIELDS[field]])
    if field == "answer":
        return {row: right_answer for row, (_, _, right_answer) in column.items()}
    return column


def framework_column(content, name, field):
    """The same of OpenUnlearning's TOFU_EVAL.json, of its 400 retain rows the 300 that TOFU's authors score."""
    metric, value = FRAMEWORK_FIELDS[field]
    if field == "paraphrased_loss" and name in BASE_KNOWLEDGE:
        metric = "Q_A_Prob"  # the answer stands in
    column = by_row(content[f"{FRAMEWORK_SETS[name]}_{metric}"]["value_by_index"])
    column = {row: values[value] for row, values in column.items() if values and values[value] is not None}
    return {row: number for row, number in column.items() if row < FIRST_ROWS or name != "retain"}


def aligned(columns, where):
    """{"row": numbers of the rows that all columns have, field: their values}, from {field: {row: value}}.

    Each column of a log may lack rows of its own; how many are left out for that is said on stderr.
    """
    numbers = [set(column) for column in columns.values()]
    rows, some = sorted(set.intersection(*numbers)), set.union(*numbers)
    if len(rows) < len(some):
        print(f"{where} lacks values in {len(some) - len(rows)} of {len(some)} rows, left out here", file=sys.stderr)
    return {"row": rows} | {field: [column[row] for row in rows] for field, column in columns.items()}


def compared_part(log):
    """What of a model's log others are compared with, and pictures show beside theirs."""
    return log["forget"] | {"truth_ratio": ratio_of(log["forget"]).tolist()}


def read_log(path):
    """A log from a JSON file: ours, TOFU's published one, or a TOFU_EVAL.json that holds losses. Others' sets get
    `row`, their row numbers.

    InputError if the file is missing, not JSON, or has columns whose rows nobody can tell.
    """
    content = read_object(path)
    if {"forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"} <= content.keys():
        column_of, fields = framework_column, FRAMEWORK_FIELDS
    elif set(PUBLISHED_SETS.values()) & content.keys():
        column_of, fields = published_column, PUBLISHED_FIELDS
        for name in set(PUBLISHED_SETS.values()) & content.keys():
            check(content[name], {}, f"'{path}' '{name}'")  # of lists, that they are equally long
    else:
        return content

    log = {}
    for name in SETS:
        columns = {}
        for field in fields:
            # what a log lacks will be missed where it is needed
            with contextlib.suppress(KeyError, TypeError, ValueError):
                columns[field] = column_of(content, name, field)
        if columns:
            log[name] = aligned(columns, f"'{path}': {name}")
    return log


def read_retrained(path, sets=None):
    """The forget part of a retrained model's log: from a log file, a run's reference.log.json, or a TOFU_EVAL.json.

    InputError if it is none of these, or not of the rows of `sets`, as from `evaluation_rows`.
    """
    retrained = forget_part(path)
    if sets:
        shared_rows({"answer": [row["answer"] for row in sets["forget"]]}, retrained)
    return retrained


def forget_part(path):
    """Of the log in a file; see `read_retrained`."""
    log = read_log(path)
    if "forget_truth_ratio" in log:
        return framework_ratios(log, path)
    forget = log["Retrain"] if "Retrain" in log else log.get("forget")
    ratios = isinstance(forget, dict) and "truth_ratio" in forget
    check({"forget": forget}, {"forget": RATIOS if ratios else LOSSES}, f"'{path}':")
    return compared_part({"forget": forget})


def framework_ratios(content, path):
    """The forget part that a TOFU_EVAL.json gives where it holds no losses: truth ratios c, from their scores.

    A score is 1/c = wrong / right; or, by the aggregator `prob_mean`, right / (right + wrong) = c / (1 + c), which
    never passes 1. The file does not say which: agg_value is the plain mean of the second, and of the first too if none
    of them passes 1. But of a model that never saw the forget set 1/c passes 1 in about three rows of ten (of the
    published Original in one of ten), so where no score does, they are taken for the second.
    """
    check(content, {"forget_truth_ratio": {"value_by_index": {"*": {"score": POSITIVE}}}}, f"'{path}':")
    try:
        column = by_row(content["forget_truth_ratio"]["value_by_index"])
        rows = sorted(column)
        scores = np.array([column[row]["score"] for row in rows])
        largest = scores.max()
    except ValueError:
        raise InputError(f"'{path}': the keys of 'value_by_index' must be row numbers") from None
    with np.errstate(divide="ignore", over="ignore"):
        ratio = scores / (1 - scores) if largest <= 1 else 1 / scores
    return compared_part({"forget": {"row": rows, "truth_ratio": ratio.tolist()}})


# ------------------------------------------------------------------ measuring a model


def texts_scored(name, row):
    """What is scored of a row of a set: its answer, its paraphrase (base knowledge has none), its wrong answers."""
    paraphrase = [] if name in BASE_KNOWLEDGE else [row["paraphrased_answer"]]
    return [row["answer"], *paraphrase, *row["perturbed_answer"]]


def measure(lm, sets):
    """The log of a model on evaluation sets (as from `evaluation_rows`, or some of them).

    Beyond what this file's docstring lists, it records question, answer, generated, length (|y| of the answer) and
    row, its number among all rows of the set.
    """
    log, answers = measure_questions(lm, {name: rows for name, rows in sets.items() if name in SETS})
    return with_memorization(lm, log, answers, sets.get("holdout", []))


def measure_questions(lm, sets):
    """(the log of the four sets, {set: examples of its answers})"""
    # one pass, sorted by length, scores all texts of the rows that are not too long
    asked, scored_rows = [], {}
    for name, rows in sets.items():
        texts_of = functools.partial(texts_scored, name)
        numbered = [row | {"row": number} for number, row in enumerate(rows)]
        scored_rows[name] = lm.fitting(numbered, texts_of)
        asked += [{"question": row["question"], "answer": text} for row in scored_rows[name] for text in texts_of(row)]
    examples = lm.examples(asked)
    losses = lm.mean_losses(examples)

    # their losses, in that order
    scored = iter(zip(examples, losses, strict=True))
    log, answers = {}, {}  # answers: examples of each set
    for name, rows in scored_rows.items():
        part = {"loss": [], "paraphrased_loss": [], "perturbed_loss": [], "length": []}
        part |= {field: [row[field] for row in rows] for field in ("question", "answer", "row")}
        answers[name] = []
        for row in rows:
            example, loss = next(scored)
            answers[name].append(example)
            part["length"].append(len(example.response))
            part["loss"].append(loss)
            part["paraphrased_loss"].append(loss if name in BASE_KNOWLEDGE else next(scored)[1])
            part["perturbed_loss"].append([next(scored)[1] for _ in row["perturbed_answer"]])
        log[name] = part

    # what the model itself answers
    generated = map(str.strip, lm.generate([example for examples in answers.values() for example in examples]))
    for part in log.values():
        part["generated"] = [next(generated) for _ in part["answer"]]
        part["rouge"] = [score.recall for score in rouge.scores(part["answer"], part["generated"], stem=True)]
    return log, answers


def with_memorization(lm, log, answers, holdout):
    """The log, with what memorization.py measures of the forget set and of holdout rows, where there are any.

    answers: {set: examples}. The forget set's losses stay those of the pass over all texts.
    """
    if "forget" in log:
        forget = log["forget"]
        log["forget"] = memorization.measured(lm.token_scores(answers["forget"]), forget["answer"]) | forget
    if holdout:
        holdout = lm.fitting(holdout)
        texts = [row["answer"] for row in holdout]
        log["holdout"] = memorization.measured(lm.token_scores(lm.examples(holdout)), texts)
    return log


def judge(lm, forget):
    """Mean token loss, in nats, that a model gives to each generated answer in the forget part of a log.

    lm: Retrain. Gibberish is unlikely under it, a fluent wrong answer is not.
    """
    pairs = zip(forget["question"], forget["generated"], strict=True)
    return lm.mean_losses([lm.encode(question, text) for question, text in pairs])


# ------------------------------------------------------------------ tables and figures


def quality(metrics, half=None):
    """Forget quality, or that of the `shortest` or `longest` half of the forget set, or None."""
    if half:
        return (metrics.get("forget_quality_halves") or {}).get(half)
    return metrics.get("forget_quality")


def log_quality(metrics):
    """log10 of forget quality, or None. A p-value below float64's range counts as its smallest."""
    return None if quality(metrics) is None else math.log10(max(quality(metrics), sys.float_info.min))


def notes(metrics, log):
    """Lines that belong under a table: what forget quality lacks, on how many rows it was computed, what ROUGE sees."""
    lines = rouge.unseen(log["forget"].get("answer") or [])
    shared, n = metrics["forget_examples"], len(log["forget"]["loss"])
    if metrics["forget_quality"] is None:
        lines.append("forget quality needs a retrained model; give --retrain a model or a log")
    elif shared == FIRST_ROWS < n:
        lines.append(f"forget quality is of the first {shared} of {n} forget examples, as TOFU's authors compute it")
    elif shared < n:
        first = f", of the first {FIRST_ROWS}" if n > FIRST_ROWS else ""
        lines.append(f"forget quality is of the {shared} of {n} forget examples that Retrain has{first}")
    return lines


QUALITY = Column("forget quality", quality, ".2g", "↑", bold=True, screen=("forget", "quality"))
DISTANCE = Column(
    "distance to Retrain",
    lambda metrics: metrics.get("distance"),
    ".3f",
    "↓",
    bold=True,
    screen=("distance", "to Retrain"),
)
UTILITY = Column(
    "model utility", lambda metrics: metrics["model_utility"], ".3f", "↑", bold=True, screen=("model", "utility")
)
GROUPS = {
    "forget": "forget set",
    "retain": "retain set",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
HEADINGS = {"probability": "prob.", "rouge": "ROUGE-L", "truth_ratio": "truth"}
IN_MAIN = ("forget", "probability"), ("forget", "rouge"), ("retain", "probability")


def mean_column(name, part):
    """The column of one part's mean over one set."""
    return Column(
        f"{name} {part}".replace("_", " "),
        lambda metrics: metrics[name][part],
        ".3f",
        "→R" if name == "forget" else "↑",
        main=(name, part) in IN_MAIN,
        screen=(GROUPS[name], HEADINGS[part]),
    )


COLUMNS = (
    QUALITY,
    Column("log10 forget quality", log_quality, ".1f", "↑"),
    DISTANCE,
    Column("quality, shortest half", lambda metrics: quality(metrics, "shortest"), ".2g", "↑"),
    Column("quality, longest half", lambda metrics: quality(metrics, "longest"), ".2g", "↑"),
    UTILITY,
    *(mean_column(name, part) for name in SETS for part in MEANS),
    Column("repeated 4-grams", lambda metrics: metrics.get("repetition"), ".3f", "→R"),
    Column("answers under Retrain", lambda metrics: metrics.get("judged"), ".2f", "→R"),
    Column("exact memorization", lambda metrics: metrics.get("memorized"), ".3f", "→R", main=False),
    Column("extraction strength", lambda metrics: metrics.get("extraction"), ".3f", "→R", main=False),
    *(
        Column(f"AUC by {name}", functools.partial(memorization.auc_of, attack=attack), ".3f", "→R", main=False)
        for attack, name in memorization.ATTACKS.items()
    ),
)

# ------------------------------------------------------------------ the two tasks

TASK = functools.partial(
    Benchmark,
    training_rows=training_rows,
    evaluation_rows=evaluation_rows,
    retain_split=retain_split,
    measure=measure,
    summarize=summarize,
    log=LOG,
    compared_part=compared_part,
    read_retrained=read_retrained,
    read_log=read_log,
    judge=judge,
    floor=floor,
    columns=COLUMNS,
    kept=UTILITY,
    forgotten=QUALITY,
    over_epochs=(Column("log10 forget quality", log_quality), DISTANCE, UTILITY),
    spread=("log10 truth ratio", log_ratio),
    notes=notes,
)

# The recipes of TOFU are the paper's (App. C) and its published configurations. Those of the toy and of the
# from-scratch model were chosen on seeds that no table uses, over lr × forget_coeff × epochs (results/README.md has
# the grids): the highest forget quality among settings that keep 95% of Original's model utility. Micro-batches of
# the from-scratch model are for a CPU, where logits of 8 examples stay in the cache, which takes 0.73 of 32's time.
TOFU = TASK(
    name="tofu",
    # the last five only in some copies of the data
    forget_splits=("forget01", "forget05", "forget10", "forget20", "forget30", "forget40", "forget50", "forget90"),
    split="forget05",
    forget_split_of=functools.partial(forget_split_of, full="forget05"),
    data="locuslab/TOFU",
    model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
    max_new_tokens=200,
    recipes=(
        ("*", "*", "*", dict(lr=1e-5, epochs=5, micro_batch_size=8, eval_batch_size=32)),
        ("*", "*", ("npo",), dict(epochs=10)),
        ("*", "forget05", ("npo",), dict(epochs=20)),
        ("*", "*", ("simnpo",), dict(epochs=10, beta=2.5, forget_coeff=0.1375)),
        ("*", "forget10", ("simnpo",), dict(beta=4.5, forget_coeff=0.125)),
        ("tiny", "*", "*", dict(lr=1e-3, epochs=5, forget_coeff=0.1, micro_batch_size=8, eval_batch_size=256)),
        ("tiny", "*", ("finetune", "ga"), dict(lr=3e-4, forget_coeff=1.0)),
        ("tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
        ("tiny", "*", ("npo",), dict(epochs=10, beta=0.05)),
        ("tiny", "*", ("simnpo",), dict(lr=3e-4, epochs=20, beta=0.5)),
        ("new", "*", ("finetune",), dict(lr=1e-3, epochs=20, batch_size=64, micro_batch_size=8, eval_batch_size=256)),
    ),
    size=dict(vocab=8000, width=512, layers=4, heads=8),  # just large enough to know its task by heart
    author_rows=20,
)
TOY = TASK(
    name="toy",
    forget_splits=("forget05", "forget10"),
    split="forget10",
    forget_split_of=functools.partial(forget_split_of, full="forget10"),
    recipes=(
        ("*", "*", "*", dict(lr=1e-3, epochs=20, micro_batch_size=32, eval_batch_size=256)),
        ("*", "*", ("finetune",), dict(lr=3e-4, epochs=5)),
        ("*", "*", ("ga",), dict(lr=1e-4)),
        ("*", "*", ("graddiff",), dict(lr=3e-4, epochs=10, forget_coeff=0.03)),
        ("*", "*", ("wgraddiff",), dict(forget_coeff=0.1)),
        ("*", "*", ("npo",), dict(forget_coeff=0.03, beta=0.2)),
        ("*", "*", ("simnpo",), dict(forget_coeff=0.3, beta=2.5)),
        ("new", "*", ("finetune",), dict(lr=2e-3, epochs=20, batch_size=16, micro_batch_size=16)),
    ),
    size=dict(vocab=1200, width=128, layers=2, heads=4),
    author_rows=10,
)
