"""TOFU's metrics: how well a model forgot, and what it still knows.

    python evaluate.py --task tofu --data locuslab/TOFU --split forget05 \\
        --model DIR_OR_HUB_ID --retrain DIR_OR_HUB_ID_OR_LOG --out metrics.json
    python evaluate.py --log PUBLISHED_LOG.json --retrain OTHER_LOG.json --out metrics.json
    python evaluate.py table RUN...          runs of train.py compared, mean ± spread over seeds
    python evaluate.py figure KIND RUN...    the paper's figures, from files that the runs wrote
    python evaluate.py answers RUN...        what the models answer, side by side
    python evaluate.py claims RUN...         which of the paper's claims hold in these runs
    python evaluate.py choose RUN...         the best setting of each method in a grid

The arithmetic (first part) works on numbers, the measuring (second part) gets those numbers from a
model. A published log holds the same numbers, so it goes through the same arithmetic. The last part
compares runs, and needs no model: only the small files in their folders.

Four sets are scored: forget, retain, real_authors, world_facts. Per example a *log* holds, under
each set's name, lists of equal length:

    loss              mean token NLL of the answer, EOS included, in nats
    paraphrased_loss  the same for the paraphrased answer (real authors and world facts: the answer)
    perturbed_loss    the same for each wrong answer, a list per example
    rouge             ROUGE-L recall (stemmed) of the greedy generation against the answer

Metrics are those of Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs".
"""
import argparse
import contextlib
import csv
import io
import json
import logging
import math
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import numpy as np
import scipy.special
import scipy.stats
import torch
import transformers
from tqdm import tqdm

import data
from data import InputError

SETS = "forget", "retain", "real_authors", "world_facts"
PARTS = "probability", "rouge", "truth_ratio"
RETAIN_ROWS = 300  # TOFU scores the first 300 rows of retain_perturbed

# ------------------------------------------------------------------ arithmetic, no model


def truth_ratio(paraphrased_loss, perturbed_loss):
    """c = exp(mean_k loss(perturbed_k) - loss(paraphrased)), per example: above 1, the truth is likelier.

    paraphrased_loss [N], perturbed_loss N lists of one or more; returns float64 [N], in [0, inf].
    """
    with np.errstate(over="ignore"):
        wrong = np.array([np.mean(losses) for losses in perturbed_loss], dtype=np.float64)
        return np.exp(wrong - np.asarray(paraphrased_loss, dtype=np.float64))


def ratio_of(log):
    """Truth ratios [N] of a log's forget set."""
    return truth_ratio(log["forget"]["paraphrased_loss"], log["forget"]["perturbed_loss"])


def forget_quality(ratio, retrain_ratio):
    """p-value, in [0, 1], of the two-sample Kolmogorov-Smirnov test between two sets of truth ratios.

    1: the unlearned model's cannot be told from the retrained model's. Both from the same forget
    set, so InputError when their sizes differ. It depends on ranks only: c and 1/c give the same.
    """
    check_same_size(len(ratio), len(retrain_ratio))
    with warnings.catch_warnings():
        # Just below 1 the exact value may come out above 1; scipy then takes the asymptotic one, and warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.ks_2samp(ratio, retrain_ratio).pvalue)


def halves_of(length):
    """(indices of the shorter half, indices of the longer half) of the forget set, by |y|; ties stay in order."""
    order = np.argsort(length, kind="stable")
    return order[:len(order) // 2], order[len(order) // 2:]


def quality_values(n):
    """The n + 1 values that forget quality can take on n forget examples, ascending, the last being 1.

    Without ties the statistic is a whole number of n-ths, so a p-value belongs to each of 0, …, n.
    """
    return [forget_quality(np.arange(n), np.arange(n) + k - 0.5 * (k > 0)) for k in range(n, -1, -1)]


def repetition(text):
    """Share of repeated word 4-grams, in [0, 1): 1 - distinct / all, 0 for fewer than four words.

    "rep-4" of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training".
    """
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(4))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def check_same_size(unlearned, retrained):
    """Raise InputError unless both have truth ratios for equally many forget examples."""
    if unlearned != retrained:
        raise InputError(f"forget quality compares {unlearned} forget examples with {retrained} of the retrained "
                         "reference; give --retrain a reference of the same forget split")


def model_utility(metrics):
    """Harmonic mean of the nine {probability, rouge, truth_ratio} × {retain, real authors, world facts}.

    metrics: {set: {part: number in [0, 1]}}. 0 as soon as one of the nine is 0.
    """
    return float(scipy.stats.hmean([metrics[name][part] for name in SETS[1:] for part in PARTS]))


def summarize(log, retrain_ratio=None):
    """From per-example values to the whole of metrics.json.

    log: as in this file's docstring. retrain_ratio: truth ratios of the retrained model on the
    forget set, or None, which makes forget_quality None. forget_quality_halves, for the shortest and
    the longest half of the forget set, and repetition, the mean over generated forget answers, are
    None where the log lacks `length` or `generated`. Raises InputError for a log that lacks a set or
    a list, has lists of different lengths, or values that are not numbers.
    """
    check_log(log)
    metrics = {"forget_quality": None, "forget_quality_halves": None, "model_utility": None,
               "forget_examples": len(log["forget"]["loss"]), "repetition": None}
    for name in SETS:
        values = log[name]
        ratio = truth_ratio(values["paraphrased_loss"], values["perturbed_loss"])
        if name in data.BASE_KNOWLEDGE:
            # p(answer) among the offered answers; p = exp(-loss), so a softmax, which cannot be 0/0
            probability = [scipy.special.softmax(-np.array([right, *wrong]))[0]
                           for right, wrong in zip(values["loss"], values["perturbed_loss"])]
        else:
            probability = np.exp(-np.array(values["loss"]))
        with np.errstate(divide="ignore"):
            inverse = 1 / ratio
        truth = np.minimum(ratio, inverse) if name == "forget" else np.maximum(0, 1 - inverse)
        metrics[name] = {"probability": float(np.mean(probability)), "rouge": float(np.mean(values["rouge"])),
                         "truth_ratio": float(np.mean(truth))}
        if name == "forget" and retrain_ratio is not None:
            metrics["forget_quality"] = forget_quality(ratio, retrain_ratio)
            if "length" in values and len(ratio) > 1:
                check_log(log, ("forget",), ("loss", "length"))
                metrics["forget_quality_halves"] = {
                    half: forget_quality(ratio[rows], np.asarray(retrain_ratio)[rows])
                    for half, rows in zip(("shortest", "longest"), halves_of(values["length"]))}
        if name == "forget" and "generated" in values:
            metrics["repetition"] = float(np.mean([repetition(str(text)) for text in values["generated"]]))
    metrics["model_utility"] = model_utility(metrics)
    return metrics


def check_log(log, sets=SETS, fields=("loss", "paraphrased_loss", "perturbed_loss", "rouge")):
    """Raise InputError unless `log` has, for each set, equally long lists of numbers in range."""
    def usable(value, field):
        if field == "perturbed_loss":
            return isinstance(value, list) and value and all(usable(one, "loss") for one in value)
        return type(value) in (int, float) and 0 <= value < (1.000001 if field == "rouge" else math.inf)
    for name in sets:
        values = log.get(name)
        if not isinstance(values, dict):
            raise InputError(f"the log has no values for '{name}'; it needs {', '.join(sets)}")
        for field in fields:
            column = values.get(field)
            if not isinstance(column, list) or not column:
                raise InputError(f"the log has no '{field}' for '{name}'; it needs a list each of {', '.join(fields)}")
            if len(column) != len(values[fields[0]]):
                raise InputError(f"the log has {len(column)} values of '{field}' for '{name}' but "
                                 f"{len(values[fields[0]])} of '{fields[0]}'; every example needs both")
            if not all(usable(value, field) for value in column):
                raise InputError(f"'{field}' of '{name}' in the log is not all finite numbers in range; a model that "
                                 "gives NaN or infinite losses cannot be scored")


# ------------------------------------------------------------------ logs that others published

PUBLISHED_SETS = {"forget": "eval_log_forget.json", "retain": "eval_log.json",
                  "real_authors": "eval_real_author_wo_options.json",
                  "world_facts": "eval_real_world_wo_options.json"}
PUBLISHED_FIELDS = {"loss": "avg_gt_loss", "paraphrased_loss": "avg_paraphrased_loss",
                    "perturbed_loss": "average_perturb_loss", "rouge": "rougeL_recall"}


def read_log(path):
    """A log from a JSON file: ours, or TOFU's published one, whose metrics are lists or dicts by row.

    Raises InputError if the file is missing, not JSON, or of neither kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read log '{path}' ({error}); give a JSON evaluation log") from None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' is not an evaluation log: its top level must be a JSON object")
    if not any(name in content for name in PUBLISHED_SETS.values()):
        return content
    log = {}
    for name, published in PUBLISHED_SETS.items():
        columns = content.get(published)
        if isinstance(columns, dict):
            log[name] = {}
            for field, their_name in PUBLISHED_FIELDS.items():
                column = columns.get(their_name)
                if isinstance(column, dict):
                    column = [column[row] for row in sorted(column, key=lambda row: (len(row), row))]  # "9" < "10"
                log[name][field] = column
    return log


def retrain_ratio_of_log(path):
    """Truth ratios [N] on the forget set from a log file; also from the newer framework's TOFU_EVAL.json."""
    log = read_log(path)
    if "forget_truth_ratio" in log:
        try:
            scores = log["forget_truth_ratio"]["value_by_index"]
            inverse = np.array([scores[row]["score"] for row in sorted(scores, key=lambda row: (len(row), row))],
                               dtype=float)
        except (KeyError, TypeError, ValueError, AttributeError):
            inverse = np.array([])
        if not len(inverse) or not np.all(np.isfinite(inverse)) or np.any(inverse < 0):
            raise InputError(f"'forget_truth_ratio' in '{path}' has no usable value_by_index; each row "
                             "needs a non-negative number 'score'")
        with np.errstate(divide="ignore"):
            return 1 / inverse
    check_log(log, sets=("forget",), fields=("paraphrased_loss", "perturbed_loss"))
    return ratio_of(log)


# ------------------------------------------------------------------ measuring a model


def resolve_device(device, dtype):
    """(device, dtype) from the flags: CUDA when present, with bfloat16; float32 on the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return torch.device(device), getattr(torch, dtype)


def autocast(device, dtype):
    """Compute in bfloat16 over float32 weights; a no-op for the other dtypes."""
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()


def load_model(name, device, dtype):
    """(model, tokenizer) from a Hub id or a folder; weights from safetensors only, no remote code.

    Weights are float32, or float64 if dtype is. Raises InputError if they cannot be loaded or the
    tokenizer has more tokens than the model, or so few that it must be another model's.
    """
    mend = "it needs config.json, a tokenizer and weights in safetensors (pickle files are not loaded)"
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise InputError(f"model folder '{name}' has no *.safetensors; {mend}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    except Exception as error:  # missing files, bad JSON, unknown architecture, no network: many kinds
        where = "" if Path(name).exists() else "it is no local folder, and the Hub did not give it: "
        raise InputError(f"cannot load model '{name}' ({where}{textwrap.shorten(str(error), 160)}); {mend}") from None
    lost = sorted(report["missing_keys"])
    if lost:
        raise InputError(f"model '{name}' lacks {len(lost)} weights, such as {lost[0]}; {mend}")
    rows = model.get_input_embeddings().weight.shape[0]
    # Models pad their embedding to a round number; Phi-1.5, by 1.8%, is the widest known to us.
    if not 0 <= rows - len(tokenizer) <= 0.02 * rows:
        raise InputError(f"model '{name}' embeds {rows} tokens but its tokenizer has {len(tokenizer)}; "
                         "give it the tokenizer it was trained with")
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no EOS token, which ends every response; set one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return model.to(device).eval(), tokenizer


def load_sets(task, dataset, split):
    """Rows of the four evaluation sets: {set: [row, ...]}."""
    configs = {"forget": f"{split}_perturbed", "retain": "retain_perturbed"}
    configs |= {name: f"{name}_perturbed" for name in data.BASE_KNOWLEDGE}
    sets = {name: data.load_rows(task, dataset, config) for name, config in configs.items()}
    sets["retain"] = sets["retain"][:RETAIN_ROWS]
    return sets


@torch.no_grad()
def mean_losses(model, examples, batch_size, dtype, progress="scoring"):
    """Mean token NLL of each example's response: a list of floats, in the order given."""
    losses = [0.0] * len(examples)
    for batch in tqdm(data.by_length(examples, batch_size), desc=progress, leave=False, disable=None):
        with autocast(model.device, dtype):
            logp, length = data.response_logp(model, [examples[i] for i in batch])
        for i, loss in zip(batch, (-logp / length).tolist()):
            losses[i] = loss
    return losses


@torch.no_grad()
def generate(model, tokenizer, examples, batch_size, dtype, max_new_tokens):
    """Greedy continuation of each example's prompt, as text, in the order given."""
    greedy = transformers.GenerationConfig(
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
        max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)
    prompts = [data.Example(example.prompt, []) for example in examples]
    texts = [""] * len(examples)
    for batch in tqdm(data.by_length(prompts, batch_size), desc="generating", leave=False, disable=None):
        # Padded on the left here, so that every prompt ends where its continuation begins.
        inputs = tokenizer.pad({"input_ids": [prompts[i].prompt for i in batch]}, padding_side="left",
                               return_tensors="pt").to(model.device)
        with autocast(model.device, dtype):
            output = model.generate(**inputs, generation_config=greedy)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        for i, answer in zip(batch, answers):
            texts[i] = answer.strip()
    return texts


def measure(model, tokenizer, sets, dtype, template="auto", max_length=500, batch_size=32, max_new_tokens=200,
            with_text=True):
    """The log of a model on evaluation sets (as from `load_sets`, or some of them).

    Beyond what this file's docstring lists, it records question, answer, generated and length (|y| of
    the answer). with_text=False skips generation, and with it rouge and generated.
    """
    from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    model.eval()
    texts = []  # (set, row, field, text): everything to score, so that one sorted pass scores it all
    for name, rows in sets.items():
        for row in rows:
            texts.append((name, row, "loss", row["answer"]))
            if name not in data.BASE_KNOWLEDGE:
                texts.append((name, row, "paraphrased_loss", row["paraphrased_answer"]))
            texts += [(name, row, "perturbed_loss", text) for text in row["perturbed_answer"]]
    examples = [data.encode(row["question"], text, tokenizer, template, max_length) for _, row, _, text in texts]
    losses = mean_losses(model, examples, batch_size, dtype)
    answers = [example for example, (_, _, field, _) in zip(examples, texts) if field == "loss"]
    generated = generate(model, tokenizer, answers, batch_size, dtype, max_new_tokens) if with_text else None

    log = {name: {"loss": [], "paraphrased_loss": [], "perturbed_loss": []} for name in sets}
    for (name, _, field, text), loss in zip(texts, losses):
        if field == "loss":
            log[name]["perturbed_loss"].append([])
            if name in data.BASE_KNOWLEDGE:
                log[name]["paraphrased_loss"].append(loss)
        if field == "perturbed_loss":
            log[name]["perturbed_loss"][-1].append(loss)
        else:
            log[name][field].append(loss)
    start = 0
    for name, rows in sets.items():
        stop = start + len(rows)
        log[name] |= {"question": [row["question"] for row in rows], "answer": [row["answer"] for row in rows],
                      "length": [len(example.response) for example in answers[start:stop]]}
        if with_text:
            log[name]["generated"] = generated[start:stop]
            log[name]["rouge"] = [scorer.score(row["answer"], text)["rougeL"].recall
                                  for row, text in zip(rows, generated[start:stop])]
        start = stop
    return log


# ------------------------------------------------------------------ one screen


def table(named_metrics):
    """Lines of text: one row per model, from {name: metrics}."""
    lines = [f"{'':12s} {'forget':>9s} {'model':>7s}" + "".join(f"  {name:^20s}" for name in SETS),
             f"{'':12s} {'quality':>9s} {'utility':>7s}" + "  prob. ROUGE-L  truth" * len(SETS)]
    for name, metrics in named_metrics.items():
        quality = metrics["forget_quality"]
        lines.append(f"{name:12s} {'–' if quality is None else f'{quality:.2g}':>9s} {metrics['model_utility']:7.3f}"
                     + "".join("  " + "{:5.3f} {:7.3f} {:6.3f}".format(*(metrics[s][part] for part in PARTS))
                               for s in SETS))
    return "\n".join(lines)


# ------------------------------------------------------------------ comparing runs, no model

NAMES = {"ga": "GA", "graddiff": "GradDiff", "wgraddiff": "Weighted-GradDiff", "idk": "IDK", "dpo": "DPO", "npo": "NPO",
         "simnpo": "SimNPO", "finetune": "fine-tuning"}
# Files of a run, and what to give train.py so that it writes them.
WRITTEN_WITH = {"run.json": "", "weights.jsonl": "", "metrics.json": "--eval end", "metrics.log.json": "--eval end",
                "reference.log.json": "--eval end", "epochs.jsonl": "--eval epoch"}


def read_runs(folders, *files):
    """[{"folder": name, file: content, ...}] of runs of train.py; run.json and metrics.json always, `files` besides.

    Raises InputError that names the run and the flag if a file is missing or damaged, and for runs of
    different tasks, splits or models, which cannot be compared.
    """
    runs = []
    for folder in folders:
        run = {"folder": str(folder)}
        for name in ("run.json", "metrics.json", *files):
            try:
                text = Path(folder, name).read_text(encoding="utf-8")
                parts = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else [json.loads(text)]
                if not parts:
                    raise ValueError("it is empty")
                for part in parts:
                    check_part(name, part)
                if name.endswith(".jsonl") and [part["epoch"] for part in parts] != list(range(1, len(parts) + 1)):
                    raise ValueError("its epochs are not 1, 2, 3, …")
            except (OSError, ValueError, RecursionError) as error:
                mend = f"train.py {WRITTEN_WITH[name]}".strip() + " writes it"
                raise InputError(f"run '{folder}' has no usable {name} ({error}); {mend}") from None
            run[name] = parts if name.endswith(".jsonl") else parts[0]
        if any(Path(folder).resolve() == Path(other["folder"]).resolve() for other in runs):
            raise InputError(f"run '{folder}' is given twice; give each run once")
        if kind_of(run) != kind_of((runs or [run])[0]):
            raise InputError(f"run '{folder}' is on {' '.join(kind_of(run))}, '{runs[0]['folder']}' on "
                             f"{' '.join(kind_of(runs[0]))}; give runs of one task, split and model")
        runs.append(run)
    return runs


def check_part(name, part):
    """Raise ValueError unless a file of a run, or a line of it, holds the kinds of values that train.py writes."""
    def number(value):
        return type(value) in (int, float) and math.isfinite(value)

    def numbers(values):
        return isinstance(values, list) and len(values) > 0 and all(map(number, values))

    def metrics(values):
        halves = values["forget_quality_halves"]
        return (all(value is None or number(value) for value in (values["forget_quality"], values["repetition"]))
                and number(values["model_utility"]) and all(number(values[s][part]) for s in SETS for part in PARTS)
                and (halves is None or number(halves["shortest"]) and number(halves["longest"]))
                and all(number(values.get(cost, 0)) for cost in ("train_seconds", "peak_memory_bytes", "forget_examples")))
    try:
        if name == "run.json":
            good = all(type(flags[flag]) is kind for flags in (part["flags"], part.get("start", part["flags"]))
                       for flag, kind in (("task", str), ("forget_split", str), ("model", str), ("out", str), ("seed", int)))
            good = good and number(part["flags"]["beta"]) and number(part["flags"]["gamma"])
            good = good and {part["flags"]["method"], part.get("start", part["flags"])["method"]} <= set(NAMES)
        elif name == "weights.jsonl":
            good = numbers(part["weight"]) and numbers(part["length"]) and len(part["weight"]) == len(part["length"])
            good = good and number(part["epoch"])
        elif name == "metrics.log.json":
            check_log(part, ("forget",), ("loss", "paraphrased_loss", "perturbed_loss", "length"))
            texts = [part["forget"][field] for field in ("question", "answer", "generated")]
            good = all(isinstance(text, str) for column in texts for text in column)
            good = good and {len(column) for column in texts} == {len(part["forget"]["loss"])}
        elif name == "reference.log.json":
            for log in part.values():
                if "truth_ratio" not in log:
                    check_log({"forget": log}, ("forget",), ("paraphrased_loss", "perturbed_loss"))
            good = all(numbers(log["truth_ratio"]) for log in part.values() if "truth_ratio" in log)
            good = good and all(isinstance(text, str) for log in part.values() for text in log.get("generated", []))
        elif name == "epochs.jsonl":
            good = metrics(part) and number(part["epoch"])
        else:
            good = metrics(part) and all(label in ("Original", "Retrain", "before") and metrics(values)
                                         for label, values in part["reference"].items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not good:
        raise ValueError("values in it are not of the kind that train.py writes")


def check_quality(runs):
    """Raise InputError unless every run has a forget quality, at each measured epoch. Returns the runs."""
    for run in runs:
        if any(metrics["forget_quality"] is None for metrics in (run["metrics.json"], *run.get("epochs.jsonl", []))):
            raise InputError(f"run '{run['folder']}' has no forget quality; train it with --retrain")
    return runs


def settings_of(run):
    return run["run.json"]["flags"]


def start_of(run):
    """Flags of the run whose model this one started from, or this one's own."""
    return run["run.json"].get("start") or settings_of(run)


def seed_of(run):
    return start_of(run)["seed"]


def kind_of(run):
    """What must be the same for runs to be compared."""
    return settings_of(run)["task"], settings_of(run)["forget_split"], start_of(run)["model"]


def name_of(run):
    """`SimNPO`; `SimNPO → fine-tuning shortest:0.2` for a run that started from another."""
    flags = settings_of(run)
    name = " ".join(filter(None, (NAMES[flags["method"]], flags.get("subset"))))
    return name if start_of(run) is flags else f"{NAMES[start_of(run)['method']]} → {name}"


# Flags that do not make runs two settings: they name files, or change speed and what is measured.
IMMATERIAL = {"seed", "out", "retrain", "model", "data", "eval", "device", "eval_batch_size", "micro_batch_size",
              "grad_checkpointing"}


def material_flags(run):
    """{flag: value} of a run and, as `start_flag`, of the run that it started from."""
    flags = {flag: value for flag, value in settings_of(run).items() if flag not in IMMATERIAL}
    if start_of(run) is not settings_of(run):
        flags |= {f"start_{flag}": value for flag, value in start_of(run).items() if flag not in IMMATERIAL}
    return flags


def group_runs(runs):
    """{label: runs}: the name, and the flags in which runs of that name, or those they started from, differ."""
    by_name, groups = {}, {}
    for run in runs:
        by_name.setdefault(name_of(run), []).append(run)
    for name, alike in by_name.items():
        flags = [material_flags(run) for run in alike]
        differing = [flag for flag in flags[0] if len({json.dumps(other.get(flag)) for other in flags}) > 1]
        for run, values in zip(alike, flags):
            label = " ".join([name, *(f"{flag.replace('_', '-')}={values.get(flag)}" for flag in differing)])
            groups.setdefault(label, []).append(run)
    return groups


def references_of(runs):
    """{"Original": {seed: metrics}, "Retrain": {...}}: what the runs were compared with, once per seed."""
    found = {}
    for run in runs:
        for name, metrics in run["metrics.json"]["reference"].items():
            found.setdefault(name, {})[seed_of(run)] = metrics
    found.pop("before", None)  # the run that was started from, which has a folder of its own
    return found


def log_quality(metrics):
    """log10 of forget quality, or None. A p-value below float64's range counts as its smallest."""
    quality = metrics["forget_quality"]
    return None if quality is None else math.log10(max(quality, sys.float_info.min))


def interval(values):
    """(mean, lower, upper): 95% t interval; lower and upper are None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return mean, mean - half, mean + half


# ------------------------------------------------------------------ comparing runs: tables

# column: (value of a run's metrics, format). ↑ more is better, ↓ less is, →R nearer to Retrain's is.
QUALITY = "forget quality ↑"
COLUMNS = {
    QUALITY: (lambda metrics: metrics["forget_quality"], "{:.2g}"),
    "log10 of it ↑": (log_quality, "{:.1f}"),
    "shortest half ↑": (lambda metrics: (metrics["forget_quality_halves"] or {}).get("shortest"), "{:.2g}"),
    "longest half ↑": (lambda metrics: (metrics["forget_quality_halves"] or {}).get("longest"), "{:.2g}"),
    "model utility ↑": (lambda metrics: metrics["model_utility"], "{:.3f}")}
COLUMNS |= {f"{name} {part} {'→R' if name == 'forget' else '↑'}".replace("_", " "):
            (lambda metrics, name=name, part=part: metrics[name][part], "{:.3f}") for name in SETS for part in PARTS}
COLUMNS |= {
    "repeated 4-grams →R": (lambda metrics: metrics["repetition"], "{:.3f}"),
    "training s ↓": (lambda metrics: metrics.get("train_seconds"), "{:.1f}"),
    "peak memory GB ↓": (lambda metrics: metrics.get("peak_memory_bytes") and metrics["peak_memory_bytes"] / 1e9, "{:.2f}")}
SHOWN = {"main": [*COLUMNS][:7] + ["retain probability ↑"], "all": [*COLUMNS], "cost": [*COLUMNS][-2:]}


def spread(values, form):
    """mean ± standard deviation (n - 1), or the value alone where there is one."""
    return form.format(np.mean(values)) + (f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else "")


def runs_table(runs, form="markdown", columns="main"):
    """The paper's Table 2 (and A3) over runs: a row per method, mean ± standard deviation over seeds.

    form: text, markdown or csv (there mean and standard deviation get a column each); columns: a key of
    SHOWN. The best forget quality and model utility of the unlearning methods are bold (text: *).
    """
    groups = {name: list(by_seed.values()) for name, by_seed in references_of(runs).items()}
    unlearnt = {label: [run["metrics.json"] for run in group] for label, group in group_runs(runs).items()}
    groups |= unlearnt
    values = {label: {column: [COLUMNS[column][0](metrics) for metrics in group] for column in SHOWN[columns]}
              for label, group in groups.items()}
    for row in values.values():
        for column in row:
            row[column] = [] if None in row[column] else row[column]
    best = set()
    for column in {QUALITY, "model utility ↑"} & set(SHOWN[columns]):
        means = {label: np.mean(values[label][column]) for label in unlearnt if values[label][column]}
        best |= {(label, column) for label in means if len(means) > 1 and means[label] == max(means.values())}
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "runs", *(f"{column} {what}" for column in SHOWN[columns] for what in ("mean", "sd"))])
        for label, row in values.items():
            numbers = [number for column in row.values() for number in
                       (("", "") if not column else (np.mean(column), np.std(column, ddof=1) if len(column) > 1 else ""))]
            writer.writerow([label, len(groups[label]), *numbers])
        return text.getvalue().rstrip("\n")
    mark = ("{}", "**{}**") if form == "markdown" else ("{}", "*{}")
    cells = [["method", "runs", *SHOWN[columns]]]
    for label, row in values.items():
        cells.append([label, str(len(groups[label])),
                      *(mark[(label, column) in best].format(spread(row[column], COLUMNS[column][1])) if row[column] else "–"
                        for column in row)])
    if form == "markdown":
        cells.insert(1, ["---"] * len(cells[0]))
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def coarseness(runs):
    """What the number of forget examples allows to tell apart: a line, and one for each pair that it does not."""
    n = min(run["metrics.json"].get("forget_examples", 0) for run in runs)
    groups = {label: [run["metrics.json"]["forget_quality"] for run in group] for label, group in group_runs(runs).items()}
    means = {label: np.mean(values) for label, values in groups.items() if None not in values}
    if not n or not means:
        return []
    values = quality_values(n)
    highest = list(dict.fromkeys(f"{value:.2g}" for value in values))[-6:]
    lines = [f"{n} forget examples: forget quality takes {n + 1} values, the highest being {', '.join(highest)}; one example "
             "can move it from one to the next"]
    ranked = sorted(means, key=means.get)
    for low, high in zip(ranked, ranked[1:]):
        step = next((above - below for below, above in zip(values, values[1:]) if above >= means[high]), 0)
        if means[high] > 1e-3 and means[high] - means[low] < step:
            lines.append(f"warning: {high} ({means[high]:.2g}) and {low} ({means[low]:.2g}) differ by less than {step:.2g}, the step "
                         "that one example makes there in one run; do not rank them by it")
    return lines


def choose(runs, keep=0.95):
    """The setting of each method with the highest mean forget quality among those that keep `keep` of Original's utility.

    Of equals the one with the higher utility; where none keeps it, the one with the highest utility.
    Lines of text: method, its flags, numbers.
    """
    original = references_of(runs).get("Original")
    if not original:
        raise InputError("these runs have no Original to compare utility with; give runs that start from --model tiny or a "
                         "Hub model")
    floor = keep * np.mean([metrics["model_utility"] for metrics in original.values()])
    scored = {}
    for label, group in group_runs(runs).items():
        quality, utility = ([run["metrics.json"][name] for run in group] for name in ("forget_quality", "model_utility"))
        quality, utility = np.mean(quality), np.mean(utility)
        row = f"{label:60s} forget quality {quality:.2g}  utility {utility:.3f}  runs {len(group)}"
        score = quality if utility >= floor else utility
        scored.setdefault(name_of(group[0]), []).append((utility >= floor, score, utility, row))
    return "\n".join([f"highest forget quality among settings with utility of at least {floor:.3f}"]
                     + [max(rows)[-1] for rows in scored.values()])


def answers(runs, count):
    """Answers to `count` forget questions, from short to long truths, and how repetitive each method is.

    A method with several runs answers by its first; the share at the end is the mean over all of them.
    """
    shown = {"truth": runs[0]["metrics.log.json"]["forget"]["answer"]}
    for name, log in runs[0]["reference.log.json"].items():
        if "generated" in log:
            shown[name] = log["generated"]
    for label, group in group_runs(runs).items():
        shown[label] = group[0]["metrics.log.json"]["forget"]["generated"]
    order = np.argsort(runs[0]["metrics.log.json"]["forget"]["length"], kind="stable")
    if any(len(texts) != len(order) for texts in shown.values()):
        raise InputError("these runs answer different numbers of questions; give runs of one split")
    width = max(map(len, shown))
    lines = []
    for row in sorted({int(i) for i in np.linspace(0, len(order) - 1, min(count, len(order)))}):
        lines.append(f"\n{'Q':>{width}s}        {runs[0]['metrics.log.json']['forget']['question'][order[row]]}")
        for label, texts in shown.items():
            text = textwrap.fill(texts[order[row]] or "(nothing)", 100, subsequent_indent=" " * (width + 8))
            lines.append(f"{label:>{width}s}  {repetition(texts[order[row]]):4.2f}  {text}")
    lines += ["", "beside each answer: its share of repeated 4-grams. Mean over all forget answers, and over a method's runs:"]
    shares = {label: np.mean(list(map(repetition, texts))) for label, texts in shown.items()}
    shares |= {label: spread([run["metrics.json"]["repetition"] for run in group], "{:.3f}")
               for label, group in group_runs(runs).items()}
    return "\n".join(lines + [f"{label:>{width}s}  " + (share if isinstance(share, str) else f"{share:.3f}")
                              for label, share in shares.items()])


# ------------------------------------------------------------------ comparing runs: the paper's claims


def correlation(line):
    """Pearson's r between weight and response length over the forget sequences of one line of weights.jsonl.

    0 where all weights are the same, as NPO's are before its first step, or all lengths.
    """
    alike = np.ptp(line["weight"]) <= 1e-5 * np.max(np.abs(line["weight"]))  # up to float32's rounding
    if alike or np.ptp(line["length"]) == 0:
        return 0.0
    return float(scipy.stats.pearsonr(line["length"], line["weight"]).statistic)


def claims(runs):
    """[(claim of the paper, what was measured, (mean, lower, upper) over seeds, verdict)].

    runs: NPO and SimNPO, and where there are any, runs of --method finetune that start from those, on
    --subset shortest:… or random:…; read with weights.jsonl and epochs.jsonl. Differences are paired by seed.
    """
    found = {}  # {(method, subset or None): {seed: run}}
    for run in runs:
        subset = None if start_of(run) is settings_of(run) else str(settings_of(run).get("subset")).split(":")[0]
        key = start_of(run)["method"], subset
        if seed_of(run) in found.setdefault(key, {}):
            raise InputError(f"run '{run['folder']}' is a second one of {name_of(run)} with seed {seed_of(run)}; give one")
        found[key][seed_of(run)] = run
    for (method, subset), by_seed in found.items():
        for seed, run in by_seed.items():
            base = found.get((method, None), {}).get(seed)
            if subset and base and start_of(run) != settings_of(base):
                raise InputError(f"run '{run['folder']}' started from {start_of(run)['out']}, not from '{base['folder']}'; give "
                                 "runs that belong together")
    for method in ("npo", "simnpo"):
        if (method, None) not in found:
            raise InputError(f"the claims are about NPO and SimNPO; give runs of --method {method} too")

    def paired(value_of, *keys):
        """`value_of` of one run for each key, for the seeds that all have."""
        seeds = sorted(set.intersection(*(set(found.get(key, ())) for key in keys)))
        return [value_of(*(found[key][seed] for key in keys)) for seed in seeds]

    def quality(run, half=None):
        return run["metrics.json"]["forget_quality_halves"][half] if half else run["metrics.json"]["forget_quality"]

    def r(run, epoch):
        return correlation(run["weights.jsonl"][min(epoch, len(run["weights.jsonl"])) - 1])

    def at_epoch(run, epoch, value_of):
        return value_of(run["epochs.jsonl"][min(epoch, len(run["epochs.jsonl"])) - 1])

    def kept(run):
        """log10 of the forget quality after relearning over that before: 0 is robust, -3 is a thousandth."""
        return log_quality(run["metrics.json"]) - log_quality(run["metrics.json"]["reference"]["before"])
    npo, simnpo = ("npo", None), ("simnpo", None)
    measured = [
        ("SimNPO has higher forget quality than NPO", "difference of forget quality",
         paired(lambda s, n: quality(s) - quality(n), simnpo, npo), ">"),
        ("… on the shortest half too", "difference of forget quality there",
         paired(lambda s, n: quality(s, "shortest") - quality(n, "shortest"), simnpo, npo), ">"),
        ("… and most of all there", "that difference - the same on the longest half",
         paired(lambda s, n: quality(s, "shortest") - quality(n, "shortest") - quality(s, "longest") + quality(n, "longest"),
                simnpo, npo), ">"),
        ("SimNPO's model utility is at least NPO's", "difference of model utility",
         paired(lambda s, n: s["metrics.json"]["model_utility"] - n["metrics.json"]["model_utility"], simnpo, npo), ">="),
        ("NPO is worse on the shortest half than on the longest", "NPO's forget quality there - on the longest half",
         paired(lambda n: quality(n, "shortest") - quality(n, "longest"), npo), "<"),
        ("NPO loses more utility early", "difference of model utility after epoch 2",
         paired(lambda s, n: at_epoch(s, 2, lambda m: m["model_utility"]) - at_epoch(n, 2, lambda m: m["model_utility"]),
                simnpo, npo), ">"),
        ("NPO forgets less than SimNPO all along", "difference of log10 forget quality after epoch 3",
         paired(lambda s, n: at_epoch(s, 3, log_quality) - at_epoch(n, 3, log_quality), simnpo, npo), ">"),
        ("NPO's answers repeat themselves more", "difference of the share of repeated 4-grams, NPO - SimNPO",
         paired(lambda s, n: n["metrics.json"]["repetition"] - s["metrics.json"]["repetition"], simnpo, npo), ">"),
        ("short responses get SimNPO's largest weights in epochs 1 and 2", "-r of weight and length, mean of the two",
         paired(lambda s: -(r(s, 1) + r(s, 2)) / 2, simnpo), ">"),
        *((f"… more so than NPO's, in epoch {epoch}", "difference of the sizes of r",
           paired(lambda s, n, epoch=epoch: abs(r(s, epoch)) - abs(r(n, epoch)), simnpo, npo), ">") for epoch in (1, 2)),
        ("… and less so later", "size of r in epochs 1 and 2 - in epoch 10 (or the last)",
         paired(lambda s: (abs(r(s, 1)) + abs(r(s, 2))) / 2 - abs(r(s, 10)), simnpo), ">"),
        ("… when NPO's depend on it more", "difference of the sizes of r in epoch 10",
         paired(lambda s, n: abs(r(s, 10)) - abs(r(n, 10)), simnpo, npo), "<")]
    for subset in ("shortest", "random"):
        measured.append((f"SimNPO forgets more lastingly ({subset}-relearn)", "difference of log10(FQ after / FQ before)",
                         paired(lambda s, n: kept(s) - kept(n), ("simnpo", subset), ("npo", subset)), ">"))
    for method, claim, sign in (("simnpo", "shortest-relearn is no worse than random-relearn for SimNPO", ">="),
                                ("npo", "… but is worse for NPO", "<")):
        measured.append((claim, "log10 FQ after shortest - after random",
                         paired(lambda s, n: log_quality(s["metrics.json"]) - log_quality(n["metrics.json"]),
                                (method, "shortest"), (method, "random")), sign))
    return [(claim, what, interval(values), verdict(values, sign), len(values)) if values
            else (claim, what, None, "no runs for it", 0) for claim, what, values, sign in measured]


def verdict(values, sign):
    """holds, does not hold, or can't tell: is the mean of `values` >, >= or < 0, by its 95% interval?"""
    _, low, high = interval(values)
    if low is None:
        return "can't tell"
    if sign == "<":
        low, high = -high, -low
    return "holds" if low > 0 or (sign == ">=" and low == 0) else "does not hold" if high < 0 or (
        sign != ">=" and high == 0) else "can't tell"


def claims_table(runs):
    """Markdown of `claims`."""
    lines = ["| claim | measured | mean [95% interval] | seeds | verdict |", "|---|---|---|---|---|"]
    for claim, what, values, said, seeds in claims(runs):
        shown = "–" if values is None else f"{values[0]:.3g}" + (
            "" if values[1] is None else f" [{values[1]:.3g}, {values[2]:.3g}]")
        lines.append(f"| {claim} | {what} | {shown} | {seeds} | {said} |")
    return "\n".join(lines)


# ------------------------------------------------------------------ comparing runs: the paper's figures

COLOURS = dict(zip([name for name in NAMES.values()] + ["Original", "Retrain"],
                   ["C3", "C1", "C8", "C6", "C4", "C0", "C2", "C5", "black", "grey"]))


def colour_of(label):
    """One colour for a method in every figure."""
    return next(COLOURS[name] for name in sorted(COLOURS, key=len, reverse=True) if label.startswith(name))


def log_ratio(log):
    """log10 of truth ratios [N] of the forget part of a log, or of a reference that has only those; within ±12."""
    ratio = np.array(log["truth_ratio"]) if "truth_ratio" in log else ratio_of({"forget": log})
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(ratio), -12, 12)


def axes_grid(rows, columns, width=3.4, height=2.7):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")


def draw_halves(runs):
    """Fig. 2, A4: truth ratios of the shortest and the longest half of the forget set, against Retrain's."""
    groups = group_runs(runs)
    figure, axes = axes_grid(2, len(groups))
    for column, (label, group) in enumerate(groups.items()):
        for row, half in enumerate(("shortest", "longest")):
            axis, qualities = axes[row, column], []
            pooled = {"Retrain": [], label: []}
            for run in group:
                if "Retrain" not in run["reference.log.json"]:
                    raise InputError(f"run '{run['folder']}' has no Retrain in reference.log.json; train it with --retrain")
                retrained, ratio = log_ratio(run["reference.log.json"]["Retrain"]), log_ratio(run["metrics.log.json"]["forget"])
                check_same_size(len(ratio), len(retrained))
                rows = halves_of(run["metrics.log.json"]["forget"]["length"])[row]
                pooled["Retrain"].append(retrained[rows])
                pooled[label].append(ratio[rows])
                qualities.append(forget_quality(pooled[label][-1], pooled["Retrain"][-1]))
            for name, values in pooled.items():
                values = np.concatenate(values)
                axis.hist(values, bins=np.arange(-12, 12.1, 0.1), density=True, alpha=0.2, color=colour_of(name))
                if np.ptp(values) > 1e-9:
                    x = np.linspace(values.min() - 0.5, values.max() + 0.5, 200)
                    axis.plot(x, scipy.stats.gaussian_kde(values)(x), color=colour_of(name), label=name)
            limits = np.concatenate(pooled["Retrain"] + pooled[label])
            axis.set_xlim(limits.min() - 0.5, limits.max() + 0.5)
            axis.set_title(f"{half} half: FQ {spread(qualities, '{:.2g}')}", fontsize=9)
            axis.legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("log10 truth ratio")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    return figure


def draw_weights(runs):
    """Fig. 3a, 5: gradient weight against response length at epochs 1, 2, 3 and 10; a row of panels per run."""
    figure, axes = axes_grid(len(runs), 4)
    for row, run in zip(axes, runs):
        lines = run["weights.jsonl"]
        for axis, epoch in zip(row, (1, 2, 3, min(10, len(lines)))):
            if epoch > len(lines):
                axis.set_axis_off()
                continue
            line = lines[epoch - 1]
            axis.scatter(line["length"], line["weight"], s=10, alpha=0.6, color=colour_of(name_of(run)))
            title = "r = 0 (all alike)"
            if correlation(line):
                result = scipy.stats.pearsonr(line["length"], line["weight"])
                bounds = result.confidence_interval() if len(line["length"]) > 3 else (math.nan, math.nan)
                title = f"r = {result.statistic:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"
            axis.set_title(f"epoch {line['epoch']}: {title}", fontsize=9)
            axis.set_ylim(0, max(map(max, (line["weight"] for line in lines))) * 1.05 or 1)
        row[0].set_ylabel(f"weight of {name_of(run)}")
    for axis in axes[-1]:
        axis.set_xlabel("response length |y|")
    return figure


def draw_boxes(runs):
    """Fig. 3b: the gradient weights of all forget sequences at each epoch, as box plots; a panel per run."""
    figure, axes = axes_grid(1, len(runs), width=5)
    for axis, run in zip(axes[0], runs):
        epochs = [line["epoch"] for line in run["weights.jsonl"]]
        axis.boxplot([line["weight"] for line in run["weights.jsonl"]], positions=epochs, widths=0.6,
                     flierprops={"markersize": 2}, medianprops={"color": colour_of(name_of(run))})
        axis.set_xticks(epochs[::max(1, len(epochs) // 10)], [str(epoch) for epoch in epochs[::max(1, len(epochs) // 10)]])
        axis.set(xlabel="epoch", title=name_of(run), ylim=(0, None))
    axes[0, 0].set_ylabel("gradient weight")
    return figure


def draw_band(axis, paths, label, **style):
    """Mean over seeds with a 95% band; paths: lists of numbers for epochs 0, 1, …, cut to the shortest."""
    epochs = min(map(len, paths))
    bounds = np.array([interval(column) for column in list(zip(*paths))[:epochs]], dtype=float)
    axis.plot(range(epochs), bounds[:, 0], label=label, **style)
    axis.fill_between(range(epochs), bounds[:, 1], bounds[:, 2], alpha=0.15, linewidth=0, color=style["color"])


def over_epochs(run, value_of):
    """[value before training, after epoch 1, ...] of the metrics that a run with --eval epoch logged."""
    reference = run["metrics.json"]["reference"]
    before = reference.get("before", reference.get("Original"))
    if before is None:
        raise InputError(f"run '{run['folder']}' has neither Original nor 'before' in metrics.json; train it again")
    return [value_of(metrics) for metrics in (before, *run["epochs.jsonl"])]


def draw_epochs(runs):
    """Fig. 3c, d: forget quality and model utility over epochs, with Original and Retrain as lines."""
    figure, (axes,) = axes_grid(1, 2, width=5, height=3.6)
    measured = (log_quality, "log10 forget quality"), (COLUMNS["model utility ↑"][0], "model utility")
    for axis, (value_of, title) in zip(axes, measured):
        for label, group in group_runs(runs).items():
            draw_band(axis, [over_epochs(run, value_of) for run in group], label, color=colour_of(label))
        for name, by_seed in references_of(runs).items():
            axis.axhline(np.mean([value_of(metrics) for metrics in by_seed.values()]), color=colour_of(name), linestyle=":",
                         label=name)
        axis.set(xlabel="epoch (0: before)", title=title)
    axes[1].legend(fontsize=7)
    return figure


def draw_tradeoff(runs):
    """Fig. 4: forget quality against model utility; a small point per run, a large one for a method's mean."""
    figure, ((axis,),) = axes_grid(1, 1, width=5.6, height=4.2)
    groups = {name: list(by_seed.values()) for name, by_seed in references_of(runs).items()}
    groups |= {label: [run["metrics.json"] for run in group] for label, group in group_runs(runs).items()}
    for i, (label, group) in enumerate(groups.items()):
        x, y = ([metrics[name] for metrics in group] for name in ("model_utility", "forget_quality"))
        axis.scatter(x, y, s=14, alpha=0.4, color=colour_of(label))
        axis.scatter(np.mean(x), np.mean(y), s=70, marker="os^vD*PX"[i % 8], color=colour_of(label), label=label)
    axis.set(xlabel="model utility (more is better)", ylabel="forget quality (more is better)", ylim=(-0.04, 1.04))
    axis.legend(fontsize=7)
    return figure


def draw_grid(runs):
    """Fig. A1: forget quality and model utility over β and γ, from runs of SimNPO in a loop over both."""
    names, cells = sorted({name_of(run) for run in runs}), {}
    if names != ["SimNPO"]:
        raise InputError(f"the grid is SimNPO's, these runs are of {' and '.join(names)}; give those of --method simnpo")
    others = [label.split(" ") for label in group_runs(runs)]
    if any(not flag.startswith(("beta=", "gamma=")) for label in others for flag in label[1:]):
        raise InputError(f"these runs differ in more than β and γ ({' '.join(others[0][1:])}); give those of one setting")
    for run in runs:
        cells.setdefault((settings_of(run)["beta"], settings_of(run)["gamma"]), []).append(run["metrics.json"])
    betas, gammas = (sorted(set(side)) for side in zip(*cells))
    figure, (axes,) = axes_grid(1, 2, width=4.6, height=3.6)
    for axis, name in zip(axes, ("forget_quality", "model_utility")):
        values = np.array([[np.mean([metrics[name] for metrics in cells[beta, gamma]]) if (beta, gamma) in cells else math.nan
                            for gamma in gammas] for beta in betas], dtype=float)
        image = axis.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        for i, j in np.ndindex(values.shape):
            digits = 3 if name == "model_utility" else 2
            axis.text(j, i, f"{values[i, j]:.{digits}g}", ha="center", va="center", fontsize=8, color="white",
                      bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1})
        axis.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        axis.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axis.set(xlabel="γ", ylabel="β", title=name.replace("_", " "))
        figure.colorbar(image, ax=axis)
    return figure


def draw_relearn(runs):
    """Fig. A3: forget quality after each epoch of relearning a part of the forget set."""
    figure, ((axis,),) = axes_grid(1, 1, width=5.6, height=4)
    for label, group in group_runs(runs).items():
        if any(start_of(run) is settings_of(run) for run in group):
            raise InputError(f"run '{group[0]['folder']}' is not one of relearning; make those with --method finetune --model RUN "
                             "--eval epoch")
        draw_band(axis, [over_epochs(run, log_quality) for run in group], label, color=colour_of(label),
                  linestyle="--" if "random" in label else "-", marker="o")
    axis.set(xlabel="epochs of relearning", ylabel="log10 forget quality", xticks=range(1 + len(runs[0]["epochs.jsonl"])))
    axis.legend(fontsize=7)
    return figure


# kind: (function, files of a run that it needs besides metrics.json)
FIGURES = {"halves": (draw_halves, "metrics.log.json", "reference.log.json"), "weights": (draw_weights, "weights.jsonl"),
           "boxes": (draw_boxes, "weights.jsonl"), "epochs": (draw_epochs, "epochs.jsonl"), "tradeoff": (draw_tradeoff,),
           "grid": (draw_grid,), "relearn": (draw_relearn, "epochs.jsonl")}


# ------------------------------------------------------------------ saving, and the command line


def write_json(path, content):
    """Write a file as a whole or not at all: an interruption leaves no half of it."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def log_path(metrics_path):
    """metrics.json → metrics.log.json: where the per-example values go."""
    return Path(metrics_path).with_suffix(".log.json")


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line on stderr, without the usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(kind, low, high=1e12):
    """An argparse type: an int or float with low <= number <= high, which no NaN or infinity is."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:20]} must be at least {low}" + (f" and at most {high}" if value > high else ""))
        return value
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def add_common_flags(parser):
    """The flags that train.py and evaluate.py share."""
    parser.add_argument("--task", choices=data.FORGET_SPLITS, default="toy",
                        help="toy: embedded, no download. tofu: the TOFU benchmark (default: %(default)s)")
    parser.add_argument("--data", default="locuslab/TOFU",
                        help="for --task tofu, a Hub id or a local folder of the same layout (default: %(default)s)")
    parser.add_argument("--template", choices=data.TEMPLATES, default="auto",
                        help="prompt: the tokenizer's chat template, TOFU's LLaMA-2 form '[INST] … [/INST]', or plain "
                        "'Question: … Answer:'; auto is chat if there is one, else plain (default: %(default)s)")
    parser.add_argument("--max-length", type=number(int, 2), default=500,
                        help="most tokens in prompt and response; a longer example is an error (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=number(int, 1),
                        help="most tokens to generate for ROUGE (default: 64 for toy, 200 for tofu)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float64"), default="auto",
                        help="what to compute in; weights stay float32 under bfloat16 (default: bfloat16 on CUDA, "
                        "float32 on CPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument("--overwrite", action="store_true", help="write over what --out names")


def run_cli(parser, argv, run):
    """Parse, run, and turn InputError into one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ↑ shows ? instead
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries, when there is no network
    try:
        return run(args)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except BrokenPipeError:  # … | head
        sys.stdout = None
    except OSError as error:
        parser.exit(2, f"{parser.prog}: cannot read or write a file ({error}); check the path and its permissions\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: interrupted\n")
    except torch.cuda.OutOfMemoryError:
        parser.exit(2, f"{parser.prog}: the GPU is out of memory; lower the micro-batch or batch size"
                       " or use --grad-checkpointing\n")


def check_writable(folder):
    """Raise InputError unless a file can be made in `folder`. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out: cannot write to folder {folder} ({error.strerror}); name one that you may write to") from None


def check_split(args, splits):
    if args.split not in splits:
        raise InputError(f"--split {args.split}: task {args.task} has {', '.join(splits)}")


def save_figure(args):
    draw, *files = FIGURES[args.kind]
    out = Path(args.out or f"{args.kind}.png")
    if out.suffix != ".png":
        raise InputError(f"--out: '{out}' is not the name of a .png file")
    if out.exists() and not args.overwrite:
        raise InputError(f"--out: {out} exists; name another file or add --overwrite")
    check_writable(out.parent)
    runs = read_runs(args.runs, *files)
    draw(runs if args.kind in ("weights", "boxes") else check_quality(runs)).savefig(out, dpi=110)
    print(f"written: {out}")


def print_table(args):
    runs = read_runs(args.runs)
    print(runs_table(runs, args.form, args.columns))
    if args.form != "csv" and args.columns != "cost":
        print("\nmean ± standard deviation over runs; ↑ more is better, ↓ less is better, →R nearer to Retrain's is better")
        print("\n".join(coarseness(runs)))


def compare_cli(command, argv):
    """The commands that work on folders of runs."""
    what = {"table": "Compare runs: a row per method and setting, mean ± standard deviation over seeds.",
            "figure": "Draw a figure of the paper from what runs wrote:\n\n"
            + "\n".join(f"  {kind:9s} {draw.__doc__}" for kind, (draw, *_) in FIGURES.items()),
            "answers": "Print what models answer to forget questions, with the share of repeated 4-grams of each answer.",
            "claims": "Test the paper's claims on runs of NPO and SimNPO (and of relearning from them), paired by seed.",
            "choose": "From a grid of runs, print each method's setting with the highest forget quality among those that keep "
            "95% of Original's model utility."}
    parser = OneLineParser(prog=f"evaluate.py {command}", description=what[command],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    if command == "figure":
        parser.add_argument("kind", choices=FIGURES, metavar="KIND", help=", ".join(FIGURES))
        parser.add_argument("--out", help="a .png file (default: KIND.png)")
        parser.add_argument("--overwrite", action="store_true", help="write over what --out names")
    if command == "table":
        parser.add_argument("--form", choices=("text", "markdown", "csv"), default="markdown", help="default: %(default)s")
        parser.add_argument("--columns", choices=SHOWN, default="main", help="all: every metric; cost: time and memory of training "
                            "(default: %(default)s)")
    if command == "answers":
        parser.add_argument("--show", type=number(int, 1), default=5, help="number of questions (default: %(default)s)")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of train.py")
    run_cli(parser, argv, {
        "table": print_table, "figure": save_figure,
        "answers": lambda args: print(answers(read_runs(args.runs, "metrics.log.json", "reference.log.json"), args.show)),
        "claims": lambda args: print(claims_table(check_quality(read_runs(args.runs, "weights.jsonl", "epochs.jsonl")))),
        "choose": lambda args: print(choose(check_quality(read_runs(args.runs))))}[command])


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("table", "figure", "answers", "claims", "choose"):
        return compare_cli(argv[0], argv[1:])
    parser = OneLineParser(prog="evaluate.py", description=__doc__.split("\n\nThe arithmetic")[0],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="the model to evaluate: a folder or a Hub id")
    source.add_argument("--log", help="or an evaluation log to summarize without any model")
    parser.add_argument("--retrain", help="reference for forget quality: the retrained model's folder or Hub id, or "
                        "its evaluation log, a name ending in .json (ours, TOFU's published ones, or TOFU_EVAL.json)")
    parser.add_argument("--split", help="forget set (default: forget10 for toy, forget05 for tofu)")
    parser.add_argument("--out", default="metrics.json",
                        help="where to write; per-example values go beside it, as *.log.json (default: %(default)s)")
    parser.add_argument("--batch-size", type=number(int, 1), default=32, help="default: %(default)s")
    add_common_flags(parser)
    return run_cli(parser, argv, run)


def run(args):
    args.split = args.split or data.DEFAULTS[args.task]["split"]
    args.max_new_tokens = args.max_new_tokens or data.DEFAULTS[args.task]["max_new_tokens"]
    check_split(args, data.FORGET_SPLITS[args.task])
    out = Path(args.out)
    if out.suffix != ".json" or out.is_dir():
        raise InputError(f"--out: '{args.out}' is not the name of a .json file")
    for path in (out, log_path(out)) if args.model else (out,):
        if path.exists() and not args.overwrite:
            raise InputError(f"--out: {path} exists; name another file or add --overwrite")
    check_writable(out.parent)
    retrain = None
    if args.retrain and args.retrain.endswith(".json"):
        retrain = retrain_ratio_of_log(args.retrain)
    if args.log:
        if args.retrain and retrain is None:
            raise InputError("--retrain must be a log (.json) when --log is one")
        log = read_log(args.log)
    else:
        device, dtype = resolve_device(args.device, args.dtype)
        sets = load_sets(args.task, args.data, args.split)
        options = dict(dtype=dtype, template=args.template, max_length=args.max_length, batch_size=args.batch_size,
                       max_new_tokens=args.max_new_tokens)
        if args.retrain and retrain is None:
            reference = measure(*load_model(args.retrain, device, dtype), {"forget": sets["forget"]},
                                with_text=False, **options)
            retrain = ratio_of(reference)
        if retrain is not None:
            check_same_size(len(sets["forget"]), len(retrain))  # before the long part
        log = measure(*load_model(args.model, device, dtype), sets, **options)
    metrics = summarize(log, retrain)
    write_json(out, metrics)
    if args.model:
        write_json(log_path(out), log)
    print(table({"model": metrics}))
    if retrain is None:
        print("forget quality needs a retrained reference; give --retrain a model or a log")
    print(f"written: {out}")
    return metrics


if __name__ == "__main__":
    main()
