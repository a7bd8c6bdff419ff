"""TOFU: rows and splits, the arithmetic of its metrics, logs that others published, measuring a model.

Two tasks share it: `tofu`, the benchmark of Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for
LLMs", from the Hub or a local folder, and `toy`, the same questions asked of toy.py's invented world.

Four sets are scored: forget, retain, real_authors, world_facts. A *log* of a model holds, under each set's
name, lists of equal length, a value per example; the arithmetic needs these, and nothing of the model:

    loss              mean token NLL of the answer, EOS included, in nats
    paraphrased_loss  the same for the paraphrased answer (real authors and world facts: the answer)
    perturbed_loss    the same for each wrong answer, a list per example
    rouge             ROUGE-L recall (stemmed) of the greedy generation against the answer
"""

import math
import sys
import warnings

import numpy as np
import scipy.special
import scipy.stats
import torch

import data
import runs
import toy
from data import InputError

# author: questions about one; size: of the from-scratch model, just large enough to know its task by heart
TASKS = {
    "toy": dict(
        forget_splits=("forget05", "forget10"),
        split="forget10",
        model="tiny",
        data=None,
        max_length=500,
        max_new_tokens=64,
        author=10,
        size=dict(vocab=1200, width=128, layers=2, heads=4),
    ),
    "tofu": dict(
        forget_splits=("forget01", "forget05", "forget10"),
        split="forget05",
        model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        data="locuslab/TOFU",
        max_length=500,
        max_new_tokens=200,
        author=20,
        size=dict(vocab=8000, width=512, layers=4, heads=8),
    ),
}
SETS = "forget", "retain", "real_authors", "world_facts"
PARTS = "probability", "rouge", "truth_ratio"
BASE_KNOWLEDGE = SETS[2:]  # what a from-scratch model must learn too, so that its utility can be measured
RETAIN_ROWS = 300  # TOFU's authors score the first 300 rows of retain_perturbed

# Micro-batches of the from-scratch model: on a CPU logits of 8 examples stay in the cache, which takes 0.73 of 32's time.
FITS = 64 if torch.cuda.is_available() else 8
# Defaults of train.py's flags, later ones win: task, model, split, methods (* for all), flags. TOFU's are the
# paper's (App. C) and its published configurations. Those of the toy and of the from-scratch model were
# chosen on seeds that no table uses, over lr × forget_coeff × epochs (results/README.md has the grids): the
# highest forget quality among settings that keep 95% of Original's model utility.
RECIPES = [
    ("tofu", "*", "*", "*", dict(lr=1e-5, epochs=5, micro_batch_size=8, eval_batch_size=32)),
    ("tofu", "*", "*", ("npo",), dict(epochs=10)),
    ("tofu", "*", "forget05", ("npo",), dict(epochs=20)),
    ("tofu", "*", "*", ("simnpo",), dict(epochs=10, beta=2.5, forget_coeff=0.1375)),
    ("tofu", "*", "forget10", ("simnpo",), dict(beta=4.5, forget_coeff=0.125)),
    (
        "tofu",
        "tiny",
        "*",
        "*",
        dict(lr=1e-3, epochs=5, forget_coeff=0.1, micro_batch_size=min(FITS, 32), eval_batch_size=256),
    ),
    ("tofu", "tiny", "*", ("finetune", "ga"), dict(lr=3e-4, forget_coeff=1.0)),
    ("tofu", "tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
    ("tofu", "tiny", "*", ("npo",), dict(epochs=10, beta=0.05)),
    ("tofu", "tiny", "*", ("simnpo",), dict(lr=3e-4, epochs=20, beta=0.5)),
    (
        "tofu",
        "new",
        "*",
        ("finetune",),
        dict(lr=1e-3, epochs=20, batch_size=64, micro_batch_size=FITS, eval_batch_size=256),
    ),
    ("toy", "*", "*", "*", dict(lr=1e-3, epochs=20, micro_batch_size=32, eval_batch_size=256)),
    ("toy", "*", "*", ("finetune",), dict(lr=3e-4, epochs=5)),
    ("toy", "*", "*", ("ga",), dict(lr=1e-4)),
    ("toy", "*", "*", ("graddiff",), dict(lr=3e-4, epochs=10, forget_coeff=0.03)),
    ("toy", "*", "*", ("wgraddiff",), dict(forget_coeff=0.1)),
    ("toy", "*", "*", ("npo",), dict(forget_coeff=0.03, beta=0.2)),
    ("toy", "*", "*", ("simnpo",), dict(forget_coeff=0.3, beta=2.5)),
    ("toy", "new", "*", ("finetune",), dict(lr=2e-3, epochs=20, batch_size=16, micro_batch_size=16)),
]

# ------------------------------------------------------------------ rows


def retain_split(forget_split):
    """forget05 → retain95: the authors that stay."""
    return f"retain{100 - int(forget_split.removeprefix('forget')):02d}"


def forget_split_of(task, split):
    """The forget set that metrics are about: retain95 → forget05; full → the task's; else the split."""
    if split == "full":
        return TASKS[task]["split"]
    return f"forget{100 - int(split.removeprefix('retain')):02d}" if split.startswith("retain") else split


def never_learnt(task, count, share):
    """How many of `count` forget rows, the last ones, Original did not learn: of a share of the authors."""
    author = TASKS[task]["author"]
    return round(share * count / author) * author


def load_rows(task, dataset, config):
    """Rows of one dataset configuration, as dicts.

    dataset: for tofu a Hub id or a local folder in the Hub's layout; not used for toy. Raises InputError
    when the configuration is missing, empty, or a row lacks a field.
    """
    shape = {"question": runs.TEXT, "answer": runs.TEXT}
    if config.endswith("_perturbed"):
        shape["perturbed_answer"] = [runs.TEXT]
        if config.removesuffix("_perturbed") not in BASE_KNOWLEDGE:
            shape["paraphrased_answer"] = runs.TEXT
    return toy.toy_rows()[config] if task == "toy" else runs.load_split(dataset, config, "train", shape)


def training_rows(task, dataset, split, base_knowledge=False):
    """Rows of a split, and for a model that knows nothing the base knowledge after them."""
    configs = [split, *(BASE_KNOWLEDGE if base_knowledge else ())]
    return [row for config in configs for row in load_rows(task, dataset, config)]


def evaluation_rows(task, dataset, forget_split):
    """Rows of the four evaluation sets: {set: [row, ...]}."""
    rows = {name: load_rows(task, dataset, f"{forget_split if name == 'forget' else name}_perturbed") for name in SETS}
    return rows | {"retain": rows["retain"][:RETAIN_ROWS]}


# ------------------------------------------------------------------ arithmetic, no model


def truth_ratio(paraphrased_loss, perturbed_loss):
    """c = exp(mean_k loss(perturbed_k) - loss(paraphrased)), per example: above 1, the truth is likelier.

    paraphrased_loss [N], perturbed_loss N lists of one or more; returns float64 [N], in [0, inf].
    """
    with np.errstate(over="ignore"):
        wrong = np.array([np.mean(losses) for losses in perturbed_loss], dtype=np.float64)
        return np.exp(wrong - np.asarray(paraphrased_loss, dtype=np.float64))


def ratio_of(forget):
    """Truth ratios [N] of the forget part of a log, or of one that holds just them; finite, as in JSON."""
    ratio = forget.get("truth_ratio") or truth_ratio(forget["paraphrased_loss"], forget["perturbed_loss"])
    return np.minimum(ratio, sys.float_info.max)


def log_ratio(forget, within=12):
    """log10 of truth ratios [N], 0 where truth and wrong answers tie; within ±12, which pictures show."""
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


def shared_rows(forget, reference):
    """Positions in the forget parts of two models' logs of the rows that both have: two int arrays [M].

    By row number, since published logs stop at row 300. InputError unless they are of one forget set: where
    both tell their answers those must agree, else both must have equally many rows.
    """
    mine, theirs = (
        part.get("row")
        or range(max(len(part.get(field, ())) for field in ("truth_ratio", "paraphrased_loss", "answer")))
        for part in (forget, reference)
    )
    _, left, right = np.intersect1d(mine, theirs, return_indices=True)
    same = len(left) == len(mine) == len(theirs)
    if forget.get("answer") and reference.get("answer"):
        pairs = [(forget["answer"][i], reference["answer"][j]) for i, j in zip(left, right)]
        same = pairs and all(one == other for one, other in pairs)
    if not same:
        raise InputError(
            f"forget quality compares {len(mine)} forget examples with {len(theirs)} others of "
            "the retrained reference; give --retrain a reference of the same forget split"
        )
    return left, right


def compared(forget, reference):
    """What of metrics.json compares the forget parts of two models' logs, on the rows that both have.

    distance: sqrt(mean (log10 c - log10 c_R)²), per example, so that unlike forget quality it is not of ranks;
    0 if every truth ratio is the reference's. forget_quality_halves, of the shortest and the longest half, is
    None where `forget` lacks `length`.
    """
    rows, theirs = shared_rows(forget, reference)
    ratio, retrained = ratio_of(forget)[rows], ratio_of(reference)[theirs]
    gap = log_ratio(forget, 300)[rows] - log_ratio(reference, 300)[theirs]
    found = {
        "forget_quality": forget_quality(ratio, retrained),
        "forget_quality_halves": None,
        "distance": float(np.sqrt(np.mean(gap**2))),
        "forget_examples": len(rows),
    }
    if forget.get("length") and len(rows) > 1:
        found["forget_quality_halves"] = {
            half: forget_quality(ratio[part], retrained[part])
            for half, part in zip(("shortest", "longest"), halves_of(np.array(forget["length"])[rows]))
        }
    return found


def halves_of(length):
    """(indices of the shorter half, of the longer half) of the forget set, by |y|; ties stay in order."""
    order = np.argsort(length, kind="stable")
    return order[: len(order) // 2], order[len(order) // 2 :]


def repetition(text):
    """Share of repeated word 4-grams, in [0, 1): 1 - distinct / all, 0 for fewer than four words.

    "rep-4" of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training".
    """
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(4))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def model_utility(metrics):
    """Harmonic mean of the nine {probability, rouge, truth_ratio} × {retain, real authors, world facts}.

    metrics: {set: {part: number in [0, 1]}}. 0 as soon as one of the nine is 0. As aggregate_eval_stat.py of
    TOFU's authors computes it; their utils.py has another formula, and other numbers.
    """
    return float(scipy.stats.hmean([metrics[name][part] for name in SETS[1:] for part in PARTS]))


def summarize(log, reference=None):
    """From per-example values to the whole of metrics.json.

    log: as in this file's docstring. reference: the forget part of the retrained model's log, or None, which
    makes what is `compared` None. repetition and judged, means over generated forget answers, are None where
    the log lacks `generated` or `judged`. InputError for a log that lacks a set or a list, has lists of
    different lengths, or values that are not numbers.
    """
    runs.check(log, LOG, "the log's")
    metrics = {
        "forget_quality": None,
        "forget_quality_halves": None,
        "distance": None,
        "model_utility": None,
        "forget_examples": len(log["forget"]["loss"]),
        "repetition": None,
        "judged": None,
    }
    for name in SETS:
        values = log[name]
        ratio = ratio_of(values)
        if name in BASE_KNOWLEDGE:
            # p(answer) among the offered answers; p = exp(-loss), so a softmax, which cannot be 0/0
            probability = [
                scipy.special.softmax(-np.array([right, *wrong]))[0]
                for right, wrong in zip(values["loss"], values["perturbed_loss"])
            ]
        else:
            probability = np.exp(-np.array(values["loss"]))
        with np.errstate(divide="ignore"):
            inverse = 1 / ratio
        truth = np.minimum(ratio, inverse) if name == "forget" else np.maximum(0, 1 - inverse)
        metrics[name] = {
            "probability": float(np.mean(probability)),
            "rouge": float(np.mean(values["rouge"])),
            "truth_ratio": float(np.mean(truth)),
        }
    metrics["model_utility"] = model_utility(metrics)
    forget = log["forget"]
    if forget.get("generated"):
        metrics["repetition"] = float(np.mean([*map(repetition, forget["generated"])]))
    if forget.get("judged"):
        metrics["judged"] = float(np.mean(forget["judged"]))
    return metrics | (compared(forget, reference) if reference is not None else {})


def quality(metrics, half=None):
    """Forget quality, or that of the `shortest` or `longest` half of the forget set, or None."""
    return (metrics.get("forget_quality_halves") or {}).get(half) if half else metrics.get("forget_quality")


def log_quality(metrics):
    """log10 of forget quality, or None. A p-value below float64's range counts as its smallest."""
    return None if quality(metrics) is None else math.log10(max(quality(metrics), sys.float_info.min))


def utility(metrics):
    return metrics["model_utility"]


def distance(metrics):
    return metrics.get("distance")


# For tables and figures. column: (value of a run's metrics, format); ↑ more is better, ↓ less is, →R nearer
# to Retrain's is. What is kept and what is forgotten, more of either being better; the latter over epochs.
COLUMNS = {
    "forget quality ↑": (quality, "{:.2g}"),
    "log10 of it ↑": (log_quality, "{:.1f}"),
    "distance to Retrain ↓": (distance, "{:.3f}"),
    "shortest half ↑": (lambda metrics: quality(metrics, "shortest"), "{:.2g}"),
    "longest half ↑": (lambda metrics: quality(metrics, "longest"), "{:.2g}"),
    "model utility ↑": (utility, "{:.3f}"),
    **{
        f"{name} {part} {'→R' if name == 'forget' else '↑'}".replace("_", " "): (
            lambda metrics, name=name, part=part: metrics[name][part],
            "{:.3f}",
        )
        for name in SETS
        for part in PARTS
    },
    "repeated 4-grams →R": (lambda metrics: metrics.get("repetition"), "{:.3f}"),
    "answers under Retrain →R": (lambda metrics: metrics.get("judged"), "{:.2f}"),
}
MAIN = [*[*COLUMNS][:8], "retain probability ↑", *[*COLUMNS][-2:]]
BOLD = "forget quality ↑", "distance to Retrain ↓", "model utility ↑"
KEPT, FORGOTTEN = ("model utility", utility), ("forget quality", quality)
PATH = "log10 forget quality", log_quality
OVER_EPOCHS = PATH, ("distance to Retrain", distance), KEPT

# What logs and a run's files hold of this benchmark, as shapes of runs.py.
NUMBERS, SHARE = [runs.POSITIVE], runs.SHARE
MORE = {
    "row?": [runs.WHOLE],
    "length?": [runs.WHOLE],
    "answer?": [runs.ANY_TEXT],
    "generated?": [runs.ANY_TEXT],
    "judged?": NUMBERS,
}
RATIOS = MORE | {"truth_ratio": NUMBERS, "loss?": NUMBERS}
LOSSES = MORE | {"paraphrased_loss": NUMBERS, "perturbed_loss": [NUMBERS]}
LOG = dict.fromkeys(SETS, LOSSES | {"loss": NUMBERS, "rouge": [SHARE]})
METRICS = {
    "forget_quality?": SHARE,
    "forget_quality_halves?": {"shortest": SHARE, "longest": SHARE},
    "distance?": runs.POSITIVE,
    "model_utility": SHARE,
    "forget_examples": runs.WHOLE,
    "repetition?": SHARE,
    "judged?": runs.POSITIVE,
    **{name: dict.fromkeys(PARTS, SHARE) for name in SETS},
}
FILES = runs.files_of(
    METRICS,
    {
        "forget": LOG["forget"]
        | {"length": [runs.WHOLE], "question": [runs.TEXT], "answer": [runs.TEXT], "generated": [runs.ANY_TEXT]}
    },
    RATIOS,
)


def reference_of(log):
    """What of a model's log others are compared with, and pictures show beside theirs."""
    return log["forget"] | {"truth_ratio": ratio_of(log["forget"]).tolist()}


# ------------------------------------------------------------------ logs, ours and others'

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
    "answer": "generated_text",
}  # prompt, what was generated, the right answer


def by_row(column):
    """(row numbers, values) of a published column, which is a list, or a dict by row: "9" before "10"."""
    items = column.items() if isinstance(column, dict) else enumerate(column)
    return map(list, zip(*sorted(((int(row), value) for row, value in items), key=lambda item: item[0])))


def read_log(path):
    """A log from a JSON file: ours, or TOFU's published one. A published set gets `row`, its row numbers.

    InputError if the file is missing, not JSON, or of neither kind.
    """
    content = runs.read_log(path)
    if not set(PUBLISHED_SETS.values()) & content.keys():
        return content
    log = {}
    for name, published in PUBLISHED_SETS.items():
        for field, their_name in PUBLISHED_FIELDS.items():
            try:
                rows, column = by_row(content[published][their_name])
                if field == "answer":
                    column = [right_answer for _, _, right_answer in column]
                log.setdefault(name, {}).update({"row": rows, field: list(column)})
            except (KeyError, TypeError, ValueError):
                continue  # what is needed will be missed where it is needed
    return log


def read_reference(path, sets=None):
    """The forget part of a retrained model's log: from a log file, a run's reference.log.json, or the newer
    framework's TOFU_EVAL.json, which holds truth ratios the other way up.

    InputError if it is none of these, or not of the rows of `sets`, as from `evaluation_rows`.
    """
    reference = forget_part(path)
    if sets:
        shared_rows({"answer": [row["answer"] for row in sets["forget"]]}, reference)
    return reference


def forget_part(path):
    """Of the log in a file; see `read_reference`."""
    log = read_log(path)
    if "forget_truth_ratio" in log:
        shape = {"forget_truth_ratio": {"value_by_index": {"*": {"score": runs.POSITIVE}}}}
        runs.check(log, shape, f"'{path}':")
        try:
            rows, scores = by_row(log["forget_truth_ratio"]["value_by_index"])
        except ValueError:
            raise InputError(f"'{path}': the keys of 'value_by_index' must be row numbers") from None
        with np.errstate(divide="ignore", over="ignore"):
            return {"row": rows, "truth_ratio": (1 / np.array([score["score"] for score in scores])).tolist()}
    forget = log["Retrain"] if "Retrain" in log else log.get("forget")
    ratios = isinstance(forget, dict) and "truth_ratio" in forget
    runs.check({"forget": forget}, {"forget": RATIOS if ratios else LOSSES}, "the log's")
    return reference_of({"forget": forget})


# ------------------------------------------------------------------ measuring a model


def measure(model, tokenizer, sets, dtype, template="auto", max_length=500, batch_size=32, max_new_tokens=200):
    """The log of a model on evaluation sets (as from `evaluation_rows`, or some of them).

    Beyond what this file's docstring lists, it records question, answer, generated and length (|y| of
    the answer).
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    model.eval()
    asked = []  # (set, row, field, text): everything to score, so that one sorted pass scores it all
    for name, rows in sets.items():
        for row in rows:
            asked.append((name, row, "loss", row["answer"]))
            if name not in BASE_KNOWLEDGE:
                asked.append((name, row, "paraphrased_loss", row["paraphrased_answer"]))
            asked += [(name, row, "perturbed_loss", text) for text in row["perturbed_answer"]]
    examples = [data.encode(row["question"], text, tokenizer, template, max_length) for _, row, _, text in asked]
    losses = data.mean_losses(model, examples, batch_size, dtype)

    log = {
        name: {"loss": [], "paraphrased_loss": [], "perturbed_loss": [], "question": [], "answer": [], "length": []}
        for name in sets
    }
    answers = []  # the examples whose prompts are to be answered
    for (name, row, field, text), example, loss in zip(asked, examples, losses):
        part = log[name]
        if field == "perturbed_loss":
            part[field][-1].append(loss)
            continue
        part[field].append(loss)
        if field == "loss":
            answers.append(example)
            part["perturbed_loss"].append([])
            part["question"].append(row["question"])
            part["answer"].append(text)
            part["length"].append(len(example.response))
            if name in BASE_KNOWLEDGE:
                part["paraphrased_loss"].append(loss)
    texts = data.generate(model, tokenizer, answers, batch_size, dtype, max_new_tokens)
    generated = map(str.strip, texts)
    for part in log.values():
        part["generated"] = [next(generated) for _ in part["answer"]]
        part["rouge"] = [
            scorer.score(answer, text)["rougeL"].recall for answer, text in zip(part["answer"], part["generated"])
        ]
    return log


def judge(model, tokenizer, forget, dtype, template, batch_size):
    """Mean token loss, in nats, that Retrain gives to each generated answer in the forget part of a log.

    model, tokenizer: Retrain's. Gibberish is unlikely under it, a fluent wrong answer is not.
    """
    said = [
        data.encode(question, text, tokenizer, template, math.inf)
        for question, text in zip(forget["question"], forget["generated"])
    ]
    return data.mean_losses(model, said, batch_size, dtype)


SPREAD = "log10 truth ratio"
spread_of = log_ratio  # what run.png shows the distribution of


def notes(metrics, log):
    """Lines that belong under a table: what forget quality lacks, or on how many rows it was computed."""
    if metrics["forget_quality"] is None:
        return ["forget quality needs a retrained reference; give --retrain a model or a log"]
    shared, n = metrics["forget_examples"], len(log["forget"]["loss"])
    return [f"forget quality is of the {shared} of {n} forget examples that the reference has"] * (shared < n)


def table(named_metrics):
    """Lines of text: one row per model, from {name: metrics}."""
    lines = [
        f"{'':12s} {'forget':>8s} {'distance':>9s} {'model':>7s}" + "".join(f"  {name:^20s}" for name in SETS),
        f"{'':12s} {'quality':>8s} {'to Retrain':>10s} {'utility':>6s}" + "  prob. ROUGE-L  truth" * len(SETS),
    ]
    for name, metrics in named_metrics.items():
        quality, apart = (
            "–" if metrics[key] is None else f"{metrics[key]:{form}}"
            for key, form in (("forget_quality", ".2g"), ("distance", ".3f"))
        )
        lines.append(
            f"{name:12s} {quality:>8s} {apart:>9s} {metrics['model_utility']:7.3f}"
            + "".join("  " + "{:5.3f} {:7.3f} {:6.3f}".format(*(metrics[s][part] for part in PARTS)) for s in SETS)
        )
    return "\n".join(lines)
