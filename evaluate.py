"""TOFU's metrics: how well a model forgot, and what it still knows.

    python evaluate.py --task tofu --data locuslab/TOFU --split forget05 \\
        --model DIR_OR_HUB_ID --retrain DIR_OR_HUB_ID_OR_LOG --out metrics.json
    python evaluate.py --log PUBLISHED_LOG.json --retrain OTHER_LOG.json --out metrics.json
    python evaluate.py table RUN...          a table over runs of train.py

The arithmetic (first half) works on numbers, the measuring (second half) gets those numbers from a
model. A published log holds the same numbers, so it goes through the same arithmetic.

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
import json
import logging
import math
import sys
import tempfile
import textwrap
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
    return float(scipy.stats.ks_2samp(ratio, retrain_ratio).pvalue)


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
    forget set, or None, which makes forget_quality None. Raises InputError for a log that lacks a
    set or a list, has lists of different lengths, or values that are not numbers.
    """
    check_log(log)
    metrics = {"forget_quality": None, "model_utility": None}
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


# ------------------------------------------------------------------ showing and saving


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


def runs_table(folders):
    """Markdown over runs of train.py: a row per method and setting, mean ± standard deviation over its seeds.

    Original and Retrain come from the runs' own metrics.json. Raises InputError for a folder without
    one, or for runs of different tasks, splits or models.
    """
    runs, compared = [], None
    for folder in folders:
        try:
            flags = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))["flags"]
            metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
            kind = [flags[name] for name in ("task", "forget_split", "model", "method", "seed")][:3]
            runs.append((flags, metrics))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} is not a finished run with metrics ({error}); train with --eval end") from None
        if compared not in (None, kind):
            raise InputError(f"{folder} is a run on {' '.join(kind)}, others are on {' '.join(compared)}; "
                             "give runs of one task, split and model")
        compared = kind
    groups = {}
    for flags, metrics in runs:
        for name, reference in metrics.get("reference", {}).items():
            groups.setdefault(name, {})[flags["seed"]] = reference  # one per seed, however many runs share it
    for flags, metrics in runs:
        # Runs of a method are one row only if nothing but the seed differs.
        alike = [other for other, _ in runs if other["method"] == flags["method"]]
        differing = [flag for flag in flags if flag not in ("seed", "out", "retrain")
                     and any(other.get(flag) != flags[flag] for other in alike)]
        label = " ".join([flags["method"], *(f"{flag}={flags[flag]}" for flag in differing)])
        groups.setdefault(label, {})[flags["out"]] = metrics
    lines = ["| method | runs | forget quality | model utility | "
             + " | ".join(f"{name.replace('_', ' ')} {part.replace('_', ' ')}" for name in SETS for part in PARTS) + " |",
             "|---" * (4 + len(SETS) * len(PARTS)) + "|"]
    for name, group in groups.items():
        group = list(group.values())
        columns = [[run[column] for run in group] for column in ("forget_quality", "model_utility")]
        columns += [[run[s][part] for run in group] for s in SETS for part in PARTS]
        cells = ["–" if None in column else spread(column, "{:.2g}" if i == 0 else "{:.3f}")
                 for i, column in enumerate(columns)]
        lines.append(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values, form):
    """mean ± standard deviation (n - 1), or the value alone where there is one."""
    return form.format(np.mean(values)) + (f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else "")


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
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries, when there is no network
    try:
        return run(args)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
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


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["table"]:
        parser = OneLineParser(prog="evaluate.py table", description="Compare runs of train.py: a Markdown table, a row "
                               "per method, mean ± standard deviation over seeds.")
        parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
        return run_cli(parser, argv[1:], lambda args: print(runs_table(args.runs)))
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
