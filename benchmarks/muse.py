"""MUSE: unlearn running text. Chunks to train on, and four numbers: VerbMem, KnowMem (twice), PrivLeak.

The benchmark of Shi et al. 2024, "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", in two
tasks, `muse-news` and `muse-books`, from the Hub or a local folder; and `toy-muse`, the same asked of
toy.py's invented world. Rows of its data set: `raw` and `privleak` hold `text`, `verbmem` `prompt` and `gt`,
`knowmem` `question` and `answer`. The log of a model, a value per example:

    verbmem                  rouge: ROUGE-L F1 of the continuation of `prompt` against the text's own
    forget, retain           rouge: the same of the answer to a question (KnowMem)
    privleak_forget, …       score: minus the mean of the lowest 40% of a text's token log-probabilities
"""

import functools

import numpy as np

from benchmarks import memorization, rouge, toy
from benchmarks.protocol import Benchmark, Column
from machinery.inputs import ANY_TEXT, POSITIVE, SHARE, TEXT, InputError, check, load_split, read_object
from machinery.statistics import auc

FOLDS = "forget", *(f"{kind}_{fold}" for kind in ("scal", "sust") for fold in (1, 2, 3, 4))
TEXTS = "forget", "retain", "holdout"
ANSWER_TOKENS = 32  # at most, for KnowMem
STOPS = "\n\n", "\nQuestion", "Question:"  # where an answer ends

# ------------------------------------------------------------------ rows


def retain_split(forget_split):
    """Whatever is to be forgotten, the retain set is `retain1`."""
    return "retain1"


def forget_split_of(split):
    """The forget set that metrics are about."""
    return "forget" if split in ("retain1", "full") else split


def load_rows(dataset, config, split):
    """Rows of a split of one configuration, as dicts. InputError if it is missing, empty or lacks a field.

    dataset: a Hub id or a local folder in the Hub's layout; None for the invented world.
    """
    if dataset is None:
        return toy.muse_rows()[config][split]
    shapes = {
        "verbmem": {"prompt": TEXT, "gt": TEXT},
        "knowmem": {"question": TEXT, "answer": TEXT},
    }
    return load_split(dataset, config, split, shapes.get(config, {"text": TEXT}))


def corpus(dataset, split):
    """The texts of a split as one row of `text`, joined by blank lines, to be cut into chunks that are all full."""
    config, _, fold = split.partition("_")
    rows = load_rows(dataset, config, f"forget_{fold}") if fold else load_rows(dataset, "raw", split)
    return {"text": "\n\n".join(row["text"] for row in rows), "cut": "fill"}


def training_rows(dataset, split, base_knowledge=False):
    """One row per corpus.

    Splits: forget, scal_N and sust_N (N of four folds), retain1; and for a from-scratch model full, which is
    forget and retain1. That learns with base_knowledge=True, and then the questions on what it reads as well.
    Its tokenizer is made for `all`: with a token for each name in the holdout too, else those are longer and
    less likely for that alone.
    """
    splits = {"full": ["forget", "retain1"], "all": ["forget", "retain1", "holdout"]}.get(split, [split])
    rows = [corpus(dataset, name) for name in splits]
    if base_knowledge:
        for name in splits:
            questions = load_rows(dataset, "knowmem", name.rstrip("1") + "_qa")
            rows += [{"prompt": prompt_of(row), "answer": row["answer"]} for row in questions]
    return rows


def question_rows(dataset, name):
    """Questions of KnowMem; under `before` the in-context examples, as text, if there are any."""
    examples = load_rows(dataset, "knowmem", f"{name}_qa_icl")
    before = "".join(f"{prompt_of(row)}{row['answer']}\n\n" for row in examples)
    return [row | {"before": before} for row in load_rows(dataset, "knowmem", f"{name}_qa")]


def evaluation_rows(dataset, forget_split):
    """{set: [row, ...]}"""
    return {
        "verbmem": load_rows(dataset, "verbmem", "forget"),
        "forget": question_rows(dataset, "forget"),
        "retain": question_rows(dataset, "retain"),
        **{f"privleak_{name}": load_rows(dataset, "privleak", name) for name in TEXTS},
    }


def prompt_of(row):
    return f"Question: {row['question']}\nAnswer: "


# ------------------------------------------------------------------ arithmetic, no model


def auc_of(log):
    """P(score of a forget text > of a holdout text), ties counting half, in [0, 1].

    The benchmark's direction: near 0 for a model that knows the forget texts by heart, near 0.5 for one that
    read neither, near 1 for one to which the forget texts look less likely than texts that it never saw.
    """
    return float(auc(log["privleak_forget"]["score"], log["privleak_holdout"]["score"]))


def summarize(log, retrained=None):
    """The whole of metrics.json: means × 100, AUC, and PrivLeak = (AUC - AUC_retrain) / AUC_retrain × 100.

    retrained: {"auc": of the retrained model, ...}, or None, which makes privleak None.
    """
    check(log, LOG, "the log's")
    metrics = {
        "verbmem": 100 * float(np.mean(log["verbmem"]["rouge"])),
        "knowmem_forget": 100 * float(np.mean(log["forget"]["rouge"])),
        "knowmem_retain": 100 * float(np.mean(log["retain"]["rouge"])),
        "auc": auc_of(log),
        "privleak": None,
        "words": float(np.mean([len(text.split()) for text in log["verbmem"]["generated"]])),
    }
    if retrained is not None:
        aim = retrained["auc"]
        if aim == 0:
            raise InputError(
                "the AUC of Retrain is 0, so it knows the forget set by heart; give --retrain a model that never saw it"
            )
        metrics["privleak"] = (metrics["auc"] - aim) / aim * 100
    return metrics


# ------------------------------------------------------------------ logs

ROUGE = {"rouge": [SHARE], "generated": [ANY_TEXT]}
SCORES = {"score": [POSITIVE]}
LOG = {"verbmem": ROUGE, "forget": ROUGE, "retain": ROUGE, **{f"privleak_{name}": SCORES for name in TEXTS}}


def compared_part(log):
    """What of a model's log others are compared with, and pictures show beside theirs."""
    scores = {f"privleak_{name}": log[f"privleak_{name}"] for name in TEXTS}
    return scores | {"auc": auc_of(log), "generated": log["forget"]["generated"]}


def read_retrained(path, sets=None):
    """{"auc": …} of a retrained model, from its log or a run's reference.log.json."""
    log = read_object(path)
    if "privleak_forget" in log:
        check(log, LOG, f"'{path}':")
        return compared_part(log)
    retrained = log.get("Retrain", log)
    check(retrained, {"auc": SHARE}, f"'{path}':")
    return retrained


# ------------------------------------------------------------------ measuring a model


def measure(lm, sets):
    """The log of a model on sets as from `evaluation_rows`. The prompts are MUSE's own, whatever lm.template."""

    def tokens(text):
        return lm.tokenizer(text, add_special_tokens=False)["input_ids"]

    # VerbMem: a continuation, of which the published ones are longer than what is compared
    rows = sets["verbmem"]
    continuations = lm.tokenizer.batch_decode(
        [tokens(row["gt"])[: lm.max_new_tokens] for row in rows], skip_special_tokens=True
    )
    log = {"verbmem": answered(lm, [row["prompt"] for row in rows], continuations, lm.max_new_tokens)}

    # KnowMem: an answer
    for name in ("forget", "retain"):
        rows = sets[name]
        prompts, answers = [row["before"] + prompt_of(row) for row in rows], [row["answer"] for row in rows]
        log[name] = answered(lm, prompts, answers, min(ANSWER_TOKENS, lm.max_new_tokens), STOPS)
        log[name]["question"] = [row["question"] for row in rows]
        log[name]["length"] = [len(tokens(answer)) for answer in answers]

    # PrivLeak: texts, not cut into chunks but as far as the model reads
    texts = {name: rows for name, rows in sets.items() if name.startswith("privleak")}
    examples = [lm.pieces(row["text"], lm.positions, "first")[0] for rows in texts.values() for row in rows]
    scores = (-memorization.min_k(logp) for logp in lm.token_logps(examples))  # low for a text known by heart
    return log | {name: {"score": [next(scores) for _ in rows]} for name, rows in texts.items()}


def answered(lm, prompts, answers, max_new_tokens, stops=()):
    """The part of a log on prompts: what a model says, up to the first of `stops`, and its ROUGE-L F1, unstemmed."""
    examples = [*map(lm.prompt, prompts)]
    lm.check_fits(examples)
    texts = lm.generate(examples, max_new_tokens)
    texts = [min((text.split(stop)[0] for stop in stops), key=len, default=text).strip() for text in texts]

    fmeasures = [score.fmeasure for score in rouge.scores(answers, texts)]
    return {"generated": texts, "answer": answers, "rouge": fmeasures}


# ------------------------------------------------------------------ tables and figures


def privleak(metrics):
    return metrics.get("privleak")


def leak(metrics):
    """Size of PrivLeak, or None: its sign changes on the way, so its mean over runs hides how far it is."""
    return None if privleak(metrics) is None else abs(privleak(metrics))


def no_leak(metrics):
    return None if leak(metrics) is None else -leak(metrics)


def notes(metrics, log):
    """Lines that belong under a table."""
    lines = rouge.unseen(log["forget"].get("answer") or [])
    if metrics["privleak"] is None:
        lines.append("PrivLeak needs the AUC of a retrained model; give --retrain a model or a log")
    return lines


RETAINED = Column(
    "KnowMem retain",
    lambda metrics: metrics["knowmem_retain"],
    ".1f",
    "↑",
    bold=True,
    screen=("KnowMem", "retain"),
)
NO_LEAK = Column("-|PrivLeak|", no_leak, ".1f")
COLUMNS = (
    Column("VerbMem forget", lambda metrics: metrics["verbmem"], ".1f", "→R", screen=("VerbMem", "forget")),
    Column("KnowMem forget", lambda metrics: metrics["knowmem_forget"], ".1f", "→R", screen=("KnowMem", "forget")),
    Column("PrivLeak", privleak, ".1f", screen=("PrivLeak", "")),
    Column("its size", leak, ".1f", "↓", bold=True),
    RETAINED,
    Column("AUC", lambda metrics: metrics["auc"], ".3f", "→R", screen=("AUC", "")),
    Column("words written", lambda metrics: metrics["words"], ".1f", "→R", screen=("words", "written")),
)

# ------------------------------------------------------------------ the three tasks

TASK = functools.partial(
    Benchmark,
    split="forget",
    training_rows=training_rows,
    evaluation_rows=evaluation_rows,
    retain_split=retain_split,
    forget_split_of=forget_split_of,
    measure=measure,
    summarize=summarize,
    log=LOG,
    compared_part=compared_part,
    read_retrained=read_retrained,
    read_log=read_object,
    columns=COLUMNS,
    kept=RETAINED,
    forgotten=NO_LEAK,
    over_epochs=(NO_LEAK, RETAINED),
    spread=("Min-40% score of forget texts, nats", lambda retrained: retrained["privleak_forget"]["score"]),
    notes=notes,
)
REAL = functools.partial(
    TASK,
    tokenizer="meta-llama/Llama-2-7b-hf",
    max_length=2048,
    max_new_tokens=128,
    eval_batch_size=8,
)

# SimNPO's are the paper's published commands; the toy's were chosen by results/twins.sh.
REAL_RECIPE = dict(lr=1e-5, epochs=10, batch_size=4, micro_batch_size=1, eval_batch_size=8)
MUSE_NEWS = REAL(
    name="muse-news",
    forget_splits=FOLDS,
    data="muse-bench/MUSE-News",
    model="muse-bench/MUSE-News_target",
    published={"auc": 0.4772},
    recipes=(
        ("*", "*", "*", REAL_RECIPE),
        ("*", "*", ("simnpo",), dict(beta=0.7, retain_coeff=0.1)),
    ),
)
MUSE_BOOKS = REAL(
    name="muse-books",
    forget_splits=("forget",),
    data="muse-bench/MUSE-Books",
    model="muse-bench/MUSE-Books_target",
    published={"auc": 0.5393},
    recipes=(
        ("*", "*", "*", REAL_RECIPE),
        ("*", "*", ("simnpo",), dict(beta=0.75, retain_coeff=0.1)),
    ),
)
TOY_MUSE = TASK(
    name="toy-muse",
    forget_splits=("forget",),
    max_length=128,
    recipes=(
        ("*", "*", "*", dict(lr=1e-3, epochs=20, batch_size=8, micro_batch_size=8, eval_batch_size=128)),
        ("*", "*", ("ga",), dict(lr=3e-5)),
        ("*", "*", ("graddiff",), dict(lr=3e-4, forget_coeff=0.001)),
        ("*", "*", ("wgraddiff",), dict(forget_coeff=0.03)),
        ("*", "*", ("npo",), dict(forget_coeff=0.1, beta=0.02)),
        ("*", "*", ("simnpo",), dict(lr=3e-4, forget_coeff=0.3, beta=1.0)),
        ("*", "*", ("task-vector",), dict(lr=3e-4)),
        ("new", "*", ("finetune",), dict(lr=2e-3, epochs=30, batch_size=16, micro_batch_size=16)),
    ),
    size=dict(vocab=1200, width=128, layers=2, heads=4),
    tokenizer_split="all",
)
