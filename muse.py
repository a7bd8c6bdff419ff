"""MUSE: unlearn running text. Chunks to train on, and four numbers: VerbMem, KnowMem (twice), PrivLeak.

The benchmark of Shi et al. 2024, "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", in two
tasks, `muse-news` and `muse-books`, from the Hub or a local folder; and `toy-muse`, the same asked of
toy.py's invented world. Rows of its data set: `raw` and `privleak` hold `text`, `verbmem` `prompt` and `gt`,
`knowmem` `question` and `answer`. The log of a model, a value per example:

    verbmem                  rouge: ROUGE-L F1 of the continuation of `prompt` against the text's own
    forget, retain           rouge: the same of the answer to a question (KnowMem)
    privleak_forget, …       score: minus the mean of the lowest 40% of a text's token log-probabilities
"""

import numpy as np
import scipy.stats

import data
import runs
import toy
from data import InputError

FOLDS = "forget", *(f"{kind}_{fold}" for kind in ("scal", "sust") for fold in (1, 2, 3, 4))
REAL = dict(
    forget_splits=("forget",),
    split="forget",
    max_length=2048,
    max_new_tokens=128,
    batch_size=8,
    tokenizer="meta-llama/Llama-2-7b-hf",
)
TASKS = {  # published: of the benchmark's own Retrain
    "muse-news": REAL
    | dict(
        model="muse-bench/MUSE-News_target", data="muse-bench/MUSE-News", forget_splits=FOLDS, published={"auc": 0.4772}
    ),
    "muse-books": REAL
    | dict(model="muse-bench/MUSE-Books_target", data="muse-bench/MUSE-Books", published={"auc": 0.5393}),
    "toy-muse": dict(
        forget_splits=("forget",),
        split="forget",
        model="tiny",
        data=None,
        max_length=128,
        max_new_tokens=64,
        size=dict(vocab=1200, width=128, layers=2, heads=4, made_for="all"),
    ),
}
ANSWER_TOKENS = 32  # at most, for KnowMem
LOWEST = 0.4  # the share of tokens that Min-K% looks at
STOPS = "\n\n", "\nQuestion", "Question:"  # where an answer ends
TEXTS = "forget", "retain", "holdout"

# As in tofu.py. SimNPO's are the paper's published commands, the toy's were chosen by results/twins.sh.
RECIPES = [
    ("muse-news", "*", "*", "*", dict(lr=1e-5, epochs=10, batch_size=4, micro_batch_size=1, eval_batch_size=8)),
    ("muse-books", "*", "*", "*", dict(lr=1e-5, epochs=10, batch_size=4, micro_batch_size=1, eval_batch_size=8)),
    ("muse-news", "*", "*", ("simnpo",), dict(beta=0.7, retain_coeff=0.1)),
    ("muse-books", "*", "*", ("simnpo",), dict(beta=0.75, retain_coeff=0.1)),
    ("toy-muse", "*", "*", "*", dict(lr=1e-3, epochs=20, batch_size=8, micro_batch_size=8, eval_batch_size=128)),
    ("toy-muse", "*", "*", ("ga",), dict(lr=3e-5)),
    ("toy-muse", "*", "*", ("graddiff",), dict(lr=3e-4, forget_coeff=0.001)),
    ("toy-muse", "*", "*", ("wgraddiff",), dict(forget_coeff=0.03)),
    ("toy-muse", "*", "*", ("npo",), dict(forget_coeff=0.1, beta=0.02)),
    ("toy-muse", "*", "*", ("simnpo",), dict(lr=3e-4, forget_coeff=0.3, beta=1.0)),
    ("toy-muse", "*", "*", ("task-vector",), dict(lr=3e-4)),
    ("toy-muse", "new", "*", ("finetune",), dict(lr=2e-3, epochs=30, batch_size=16, micro_batch_size=16)),
]

# ------------------------------------------------------------------ rows


def retain_split(forget_split):
    """Whatever is to be forgotten, the retain set is `retain1`."""
    return "retain1"


def forget_split_of(task, split):
    return "forget" if split in ("retain1", "full") else split


def load_rows(task, dataset, config, split):
    """Rows of a split of one configuration, as dicts. InputError if it is missing, empty or lacks a field."""
    shape = {
        "verbmem": {"prompt": runs.TEXT, "gt": runs.TEXT},
        "knowmem": {"question": runs.TEXT, "answer": runs.TEXT},
    }.get(config, {"text": runs.TEXT})
    if task == "toy-muse":
        return toy.muse_rows()[config][split]
    return runs.load_split(dataset, config, split, shape)


def training_rows(task, dataset, split, base_knowledge=False):
    """One row per corpus: its texts joined by blank lines, to be cut into chunks that are all full.

    Splits: forget, scal_N and sust_N (N of four folds), retain1; and for a from-scratch model full, which is
    forget and retain1. That learns with base_knowledge=True, and then the questions on what it reads as well.
    Its tokenizer is made for `all`: with a token for each name in the holdout too, else those are longer and
    less likely for that alone.
    """

    def corpus(split):
        config, _, fold = split.partition("_")
        texts = load_rows(task, dataset, config, f"forget_{fold}") if fold else load_rows(task, dataset, "raw", split)
        return {"text": "\n\n".join(row["text"] for row in texts), "cut": "fill"}

    splits = {"full": ["forget", "retain1"], "all": ["forget", "retain1", "holdout"]}.get(split, [split])
    asked = (
        [row for each in splits for row in load_rows(task, dataset, "knowmem", each.rstrip("1") + "_qa")]
        if base_knowledge
        else []
    )
    return [*map(corpus, splits), *({"prompt": prompt_of(row), "answer": row["answer"]} for row in asked)]


def evaluation_rows(task, dataset, forget_split):
    """{set: [row, ...]}; the questions with their in-context examples, if any, as `before`."""

    def questions(part):
        before = "".join(
            f"{prompt_of(row)}{row['answer']}\n\n" for row in load_rows(task, dataset, "knowmem", f"{part}_qa_icl")
        )
        return [row | {"before": before} for row in load_rows(task, dataset, "knowmem", f"{part}_qa")]

    return {
        "verbmem": load_rows(task, dataset, "verbmem", "forget"),
        "forget": questions("forget"),
        "retain": questions("retain"),
        **{f"privleak_{part}": load_rows(task, dataset, "privleak", part) for part in TEXTS},
    }


def prompt_of(row):
    return f"Question: {row['question']}\nAnswer: "


# ------------------------------------------------------------------ arithmetic, no model


def min_k(token_logp):
    """Min-K% score of a text: minus the mean of its lowest 40% token log-probabilities, in nats, at least 0.

    Shi et al. 2023, "Detecting Pretraining Data from Large Language Models". Low for a text known by heart.
    """
    lowest = np.sort(token_logp)[: max(1, int(LOWEST * len(token_logp)))]
    return -float(np.mean(lowest, dtype=np.float64))


def auc(forget, holdout):
    """P(score of a forget text > of a holdout text), ties counting half, in [0, 1], from ranks.

    The benchmark's direction: near 0 for a model that knows the forget texts by heart, near 0.5 for one that
    read neither, near 1 for one to which the forget texts look less likely than texts that it never saw.
    """
    ranks = scipy.stats.rankdata([*forget, *holdout])[: len(forget)]
    return float((ranks.sum() - len(forget) * (len(forget) + 1) / 2) / (len(forget) * len(holdout)))


def summarize(log, reference=None):
    """The whole of metrics.json: means × 100, AUC, and PrivLeak = (AUC - AUC_retrain) / AUC_retrain × 100.

    reference: {"auc": of the retrained model, ...}, or None, which makes privleak None.
    """
    runs.check(log, LOG, "the log's")
    mine = reference_of(log)["auc"]
    metrics = {
        name: 100 * float(np.mean(log[part]["rouge"]))
        for name, part in (("verbmem", "verbmem"), ("knowmem_forget", "forget"), ("knowmem_retain", "retain"))
    }
    metrics |= {
        "auc": mine,
        "privleak": None,
        "words": float(np.mean([len(text.split()) for text in log["verbmem"]["generated"]])),
    }
    if reference is not None:
        theirs = reference["auc"]
        if theirs == 0:
            raise InputError(
                "the AUC of the retrained reference is 0, so it knows the forget set by heart; "
                "give --retrain a model that never saw it"
            )
        metrics["privleak"] = (mine - theirs) / theirs * 100
    return metrics


NUMBERS, ROUGE = [runs.POSITIVE], {"rouge": [runs.SHARE], "generated": [runs.ANY_TEXT]}
LOG = {"verbmem": ROUGE, "forget": ROUGE, "retain": ROUGE, **{f"privleak_{part}": {"score": NUMBERS} for part in TEXTS}}
METRICS = {
    "verbmem": runs.POSITIVE,
    "knowmem_forget": runs.POSITIVE,
    "knowmem_retain": runs.POSITIVE,
    "auc": runs.SHARE,
    "privleak?": runs.REAL,
    "words": runs.POSITIVE,
}
REFERENCE = {"auc": runs.SHARE}


def leak(metrics):
    """Size of PrivLeak, or None: its sign changes on the way, so its mean over runs hides how far it is."""
    return None if metrics.get("privleak") is None else abs(metrics["privleak"])


# For tables and figures; see tofu.py.
COLUMNS = {
    "VerbMem forget →R": (lambda metrics: metrics["verbmem"], "{:.1f}"),
    "KnowMem forget →R": (lambda metrics: metrics["knowmem_forget"], "{:.1f}"),
    "PrivLeak": (lambda metrics: metrics.get("privleak"), "{:.1f}"),
    "its size ↓": (leak, "{:.1f}"),
    "KnowMem retain ↑": (lambda metrics: metrics["knowmem_retain"], "{:.1f}"),
    "AUC →R": (lambda metrics: metrics["auc"], "{:.3f}"),
    "words written →R": (lambda metrics: metrics["words"], "{:.1f}"),
}
MAIN = [*COLUMNS]
BOLD = "its size ↓", "KnowMem retain ↑"
KEPT = "KnowMem retain", lambda metrics: metrics["knowmem_retain"]
FORGOTTEN = PATH = "-|PrivLeak|", lambda metrics: None if leak(metrics) is None else -leak(metrics)
OVER_EPOCHS = PATH, KEPT

# file of a run: its shape in this benchmark
FILES = runs.files_of(
    METRICS,
    {**LOG, "forget": ROUGE | {"length": [runs.WHOLE], "question": [runs.TEXT], "answer": [runs.TEXT]}},
    REFERENCE | {"generated?": [runs.ANY_TEXT], **{f"privleak_{part}?": {"score": NUMBERS} for part in TEXTS}},
)


def reference_of(log):
    """What of a model's log others are compared with, and pictures show beside theirs."""
    part = {f"privleak_{part}": log[f"privleak_{part}"] for part in TEXTS}
    return part | {
        "auc": auc(*(part[f"privleak_{each}"]["score"] for each in ("forget", "holdout"))),
        "generated": log["forget"]["generated"],
    }


def read_reference(path, sets=None):
    """{"auc": …} of a retrained model, from its log or a run's reference.log.json."""
    log = runs.read_log(path)
    if "privleak_forget" in log:
        runs.check(log, LOG, f"'{path}':")
        return reference_of(log)
    reference = log.get("Retrain", log)
    runs.check(reference, REFERENCE, f"'{path}':")
    return reference


# ------------------------------------------------------------------ measuring a model


def measure(model, tokenizer, sets, dtype, template=None, max_length=2048, batch_size=8, max_new_tokens=128):
    """The log of a model on sets as from `evaluation_rows`. The prompts are MUSE's own, not `template`."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    model.eval()
    log = {}

    def write(name, prompts, answers, most, **more):
        examples = [data.Example(tokenizer(prompt)["input_ids"], []) for prompt in prompts]
        data.check_fits(model, examples)
        texts = data.generate(model, tokenizer, examples, batch_size, dtype, most)
        if name != "verbmem":
            texts = [min((text.split(stop)[0] for stop in STOPS), key=len) for text in texts]
        texts = [*map(str.strip, texts)]
        log[name] = {
            "generated": texts,
            "answer": answers,
            "rouge": [scorer.score(answer, text)["rougeL"].fmeasure for answer, text in zip(answers, texts)],
            **more,
        }

    # The published continuations are longer than what is compared.
    def tokens(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = sets["verbmem"]
    write(
        "verbmem",
        [row["prompt"] for row in rows],
        tokenizer.batch_decode([tokens(row["gt"])[:max_new_tokens] for row in rows], skip_special_tokens=True),
        max_new_tokens,
    )
    for name in ("forget", "retain"):
        rows = sets[name]
        answers = [row["answer"] for row in rows]
        write(
            name,
            [row["before"] + prompt_of(row) for row in rows],
            answers,
            min(ANSWER_TOKENS, max_new_tokens),
            question=[row["question"] for row in rows],
            length=[len(tokens(answer)) for answer in answers],
        )
    texts = {name: rows for name, rows in sets.items() if name.startswith("privleak")}
    # These texts are not cut into chunks.
    longest = getattr(model.config, "max_position_embeddings", max_length)
    examples = [data.pieces(row["text"], tokenizer, longest, "first")[0] for rows in texts.values() for row in rows]
    scores = iter(map(min_k, data.token_logps(model, examples, batch_size, dtype)))
    return log | {name: {"score": [next(scores) for _ in rows]} for name, rows in texts.items()}


SPREAD = "Min-40% score of forget texts, nats"


def spread_of(reference):
    """What run.png shows the distribution of, from `reference_of` a log."""
    return reference["privleak_forget"]["score"]


def table(named_metrics):
    """Lines of text: one row per model, from {name: metrics}, the columns of the paper's Table A1."""
    lines = [
        f"{'':12s}   VerbMem   KnowMem  PrivLeak    AUC   KnowMem  words",
        f"{'':12s}    forget    forget                     retain",
    ]
    for name, metrics in named_metrics.items():
        shown = "–" if metrics["privleak"] is None else f"{metrics['privleak']:.2f}"
        lines.append(
            f"{name:12s} {metrics['verbmem']:9.2f} {metrics['knowmem_forget']:9.2f} {shown:>9s} "
            f"{metrics['auc']:6.3f} {metrics['knowmem_retain']:9.2f} {metrics['words']:6.1f}"
        )
    return "\n".join(lines)


def notes(metrics, log):
    """Lines that belong under a table."""
    if metrics["privleak"] is None:
        return ["PrivLeak needs the AUC of a retrained model; give --retrain a model or a log"]
    return []
