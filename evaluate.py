"""Measure how well a model forgot, and what it still knows.

    python evaluate.py --task tofu --split forget05 --model DIR_OR_HUB_ID \\
        --retrain DIR_OR_HUB_ID_OR_LOG --out metrics.json
    python evaluate.py --log PUBLISHED_LOG.json --retrain OTHER_LOG.json --out metrics.json

The metrics are the benchmark's (tofu.py, muse.py, wmdp.py, own.py). Several runs are compared by compare.py.
"""

from pathlib import Path

import torch

import data
import muse
import own
import runs
import tofu
import toy
import wmdp
from data import InputError
from runs import number

# task: the module that knows it
BENCHMARKS = {task: module for module in (tofu, muse, wmdp, own) for task in module.TASKS}


def new_model(task, dataset, seed):
    """(model, tokenizer) with random weights, of the task's size."""
    # The tokenizer sees the same for Original and Retrain: a tokenizer is not what is to be unlearned.
    size = dict(BENCHMARKS[task].TASKS[task]["size"])
    rows = BENCHMARKS[task].training_rows(task, dataset, size.pop("made_for", "full"), base_knowledge=True)
    return toy.new_model(data.REFUSALS + [*map(data.text_of, rows)], seed, **size)


def load_model(args, name):
    """(model, tokenizer) by name, under the resolved flags."""
    return runs.load_model(name, torch.device(args.device), getattr(torch, args.dtype), args.tokenizer)


def measure(args, sets, model, tokenizer):
    """The log of a model on evaluation sets, under the resolved flags."""
    limit = min(args.max_length, getattr(model.config, "max_position_embeddings", args.max_length))
    return BENCHMARKS[args.task].measure(
        model,
        tokenizer,
        sets,
        getattr(torch, args.dtype),
        args.template,
        limit,
        args.eval_batch_size,
        args.max_new_tokens,
    )


def asked(args, sets):
    """What tells whether two logs answer the same questions under the same flags."""
    return runs.digest([sets, args.template, args.max_length, args.max_new_tokens, args.dtype])


def log_of(args, sets, name):
    """The log of a model by its name; of a run that was asked the same, the one that it left."""
    left, benchmark = Path(name, "metrics.log.json"), BENCHMARKS[args.task]
    if left.is_file() and runs.is_run(name):
        if runs.read_file(name, "run.json").get("asked") == asked(args, sets):
            log = runs.read_log(left)
            runs.check(log, {part: benchmark.LOG[part] for part in sets}, f"'{left}':")
            return log
    return measure(args, sets, *load_model(args, name))


def reference_by(args, sets, logs):
    """What the model is compared with, or None: of the log or the model that --retrain names, whose own log
    is put into `logs`, or what the benchmark's authors published of their Retrain."""
    benchmark = BENCHMARKS[args.task]
    if not args.retrain:
        return benchmark.TASKS[args.task].get("published")
    if args.retrain.endswith(".json"):
        return benchmark.read_reference(args.retrain, sets)
    logs["Retrain"] = logs.get("Retrain") or log_of(args, sets, args.retrain)
    return benchmark.reference_of(logs["Retrain"])


def judge(args, logs):
    """Put into the logs what a model in --retrain thinks of the answers in them, where the benchmark asks."""
    benchmark = BENCHMARKS[args.task]
    if hasattr(benchmark, "judge") and not (args.retrain or ".json").endswith(".json"):
        model, tokenizer = load_model(args, args.retrain)
        for log in logs.values():
            log["forget"]["judged"] = benchmark.judge(
                model, tokenizer, log["forget"], getattr(torch, args.dtype), args.template, args.eval_batch_size
            )


# ------------------------------------------------------------------ the command


def add_common_flags(parser):
    """The flags that train.py and evaluate.py share; `resolve_task` gives them their defaults."""
    add = parser.add_argument
    add(
        "--task",
        choices=BENCHMARKS,
        help="the benchmarks tofu, muse-news, muse-books, wmdp; toy, toy-muse, "
        "toy-wmdp: each asked of an invented world, no download; own: your files (default: toy, or own)",
    )
    add(
        "--data",
        help="where a benchmark's data are: a Hub id or a local folder of the same layout; for "
        "wmdp what its four data sets' names begin with (default: the benchmark's own on the Hub)",
    )
    add(
        "--forget-file",
        help="your own data to forget: .jsonl, .json or .csv of question and answer, .jsonl "
        "of text, or a .txt; with --task wmdp in place of its forget corpora",
    )
    add("--retain-file", help="your own data to keep, likewise")
    add("--fields", help="how these files call question, answer and text (default: question,answer,text)")
    add(
        "--tokenizer",
        help="of models that have none of their own: a folder or Hub id (default: for muse meta-llama/Llama-2-7b-hf)",
    )
    add(
        "--template",
        choices=data.TEMPLATES,
        help="prompt: the tokenizer's chat template, TOFU's LLaMA-2 "
        "one '[INST] … [/INST]', or plain 'Question: … Answer:' (default: auto: chat, if any)",
    )
    add(
        "--max-length",
        type=number(int, 2),
        help="most tokens of an example; text is cut into such pieces "
        "(default: 500; muse 2048, wmdp 512, their toys 128)",
    )
    add("--max-new-tokens", type=number(int, 1), help="for ROUGE (default: 64; tofu 200, muse 128)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float64"),
        help="what to compute in; under bfloat16 weights stay float32 (default: bfloat16 on CUDA, float32 on CPU)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    add("--overwrite", action="store_true", help="write over what --out names")


def resolve_task(args):
    """Fill in the common flags' defaults; returns the benchmark's module."""
    args.task = args.task or ("own" if args.forget_file else "toy")
    benchmark, facts = BENCHMARKS[args.task], BENCHMARKS[args.task].TASKS[args.task]
    if facts["data"] is None:
        runs.refuse(args, ["data"], f"with --task {args.task}, whose data are embedded")
    if args.task not in own.TASKS and "files" not in facts:
        runs.refuse(args, ["forget_file", "retain_file"], f"with --task {args.task}, which has data")
    if not args.forget_file:
        runs.refuse(args, ["fields"], "without --forget-file")
    if args.task in own.TASKS and isinstance(args.data, str):
        raise InputError("--data has no use with --task own; give --forget-file and --retain-file")
    if args.task in own.TASKS and (args.forget_file or not args.data):
        args.data = own.data_of(args.forget_file, args.retain_file, args.fields)
    for flag in ("data", "split", "template", "max_length", "max_new_tokens", "tokenizer"):
        if getattr(args, flag) is None:
            setattr(args, flag, facts.get(flag, "auto" if flag == "template" else None))
    return benchmark


def check_split(args, splits):
    if args.split not in splits:
        raise InputError(f"--split {args.split}: task {args.task} has {', '.join(splits)}")


def inherit(args):
    """Fill in what --model RUN was made for and compared with, up to the first that flags say otherwise."""
    flags = runs.read_file(args.model, "run.json")["flags"]
    flags = flags | {"split": None if flags["model"] == "new" else flags["forget_split"]}
    if args.forget_file:
        return  # other data than the run's
    if flags["task"] not in BENCHMARKS:
        raise InputError(f"run '{args.model}' is of task {flags['task'][:20]}, which evaluate.py lacks; give --task")
    for flag in (
        "task",
        "data",
        "forget_file",
        "fields",
        "retain_file",
        "tokenizer",
        "template",
        "max_length",
        "max_new_tokens",
        "split",
        "retrain",
    ):
        if getattr(args, flag) is None:
            setattr(args, flag, flags.get(flag))
        if getattr(args, flag) != flags.get(flag):
            break


def run(args):
    if (args.model is None) == (args.log is None):
        raise InputError("give one of --model and --log; runs of train.py are compared by compare.py")
    out = Path(args.out)
    if out.suffix != ".json" or out.is_dir():
        raise InputError(f"--out: '{args.out}' is not the name of a .json file")
    if runs.is_run(out.parent):
        raise InputError(f"--out: {out.parent} is a run's folder, with files of that name; name another")
    log_path = out.with_suffix(".log.json")  # metrics.json → metrics.log.json
    for path in (out, log_path) if args.model else (out,):
        if path.exists() and not args.overwrite:
            raise InputError(f"--out: {path} exists; name another file or add --overwrite")
    data.wait()  # all have seen what is there
    runs.check_writable(out.parent)
    logs = {}
    if args.log:
        runs.refuse(
            args,
            (
                "data",
                "forget_file",
                "retain_file",
                "fields",
                "split",
                "template",
                "max_length",
                "max_new_tokens",
                "tokenizer",
                "dtype",
                "device",
                "batch_size",
            ),
            "with --log, where nothing is measured",
        )
        benchmark, facts = BENCHMARKS[args.task or "tofu"], BENCHMARKS[args.task or "tofu"].TASKS
        reference = (
            benchmark.read_reference(args.retrain) if args.retrain else facts[args.task or "tofu"].get("published")
        )
        log = (tofu if benchmark is tofu else runs).read_log(args.log)
        if "forget_truth_ratio" in log:
            raise InputError(
                f"--log: '{args.log}' holds truth ratios, which --retrain can use, but not the "
                "losses of the four sets; give our metrics.log.json or TOFU's published log"
            )
    else:
        if runs.is_run(args.model):
            inherit(args)
        benchmark = resolve_task(args)
        check_split(args, benchmark.TASKS[args.task]["forget_splits"])
        runs.resolve_device(args)
        args.forget_split = args.split
        args.eval_batch_size = args.batch_size or benchmark.TASKS[args.task].get("batch_size", 32)
        sets = benchmark.evaluation_rows(args.task, args.data, args.split)
        reference = reference_by(args, sets, logs)
        log = measure(args, sets, *load_model(args, args.model))
        judge(args, logs | {"model": log})
        runs.write_json(log_path, log)
    metrics = benchmark.summarize(log, reference)
    runs.write_json(out, metrics)
    others = {name: benchmark.summarize(each, reference) for name, each in logs.items()}
    print("\n".join([benchmark.table(others | {"model": metrics}), *benchmark.notes(metrics, log), f"written: {out}"]))


def main(argv=None):
    parser = runs.OneLineParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--model", help="the model to evaluate: a folder or a Hub id")
    add("--log", help="or an evaluation log to summarize without any model")
    add(
        "--retrain",
        help="reference for forget quality: the retrained model's folder or Hub id, or its log, "
        "a .json: ours, a run's reference.log.json, TOFU's published one, TOFU_EVAL.json (default: what the "
        "run in --model was compared with)",
    )
    add("--split", help="forget set (default: toy forget10, tofu forget05, muse forget, wmdp both)")
    add("--out", default="metrics.json", help="to write, and *.log.json beside it (default: %(default)s)")
    add("--batch-size", type=number(int, 1), help="default: 32, for muse 8")
    add_common_flags(parser)
    runs.run_command(parser, argv, run)


if __name__ == "__main__":
    main()
