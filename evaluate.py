"""Measure how well a model forgot, and what it still knows.

    python evaluate.py --task tofu --split forget05 --model DIR_OR_HUB_ID \\
        --retrain DIR_OR_HUB_ID_OR_LOG --out metrics.json
    python evaluate.py --log PUBLISHED_LOG.json --retrain OTHER_LOG.json --out metrics.json

The metrics are the benchmark's (tofu.py). Several runs are compared by compare.py.
"""
from pathlib import Path

import torch

import data
import runs
import tofu
from data import InputError
from runs import number

BENCHMARKS = {task: tofu for task in tofu.TASKS}  # task: the module that knows it

def measure(args, sets, model, tokenizer, **options):
    """The log of a model on evaluation sets, under the resolved flags."""
    limit = min(args.max_length, getattr(model.config, "max_position_embeddings", args.max_length))
    return BENCHMARKS[args.task].measure(
        model, tokenizer, sets, getattr(torch, args.dtype), args.template, limit, args.eval_batch_size,
        args.max_new_tokens, **options)

def asked(args, sets):
    """What tells whether two logs answer the same questions under the same flags."""
    return runs.digest([sets, args.template, args.max_length, args.max_new_tokens, args.dtype])

def log_of(args, sets, name, parts=None, **options):
    """The log of a model by its name; of a run that was asked the same, the one that it left.

    parts: of `sets`, if not all are needed.
    """
    left, benchmark = Path(name, "metrics.log.json"), BENCHMARKS[args.task]
    if left.is_file() and runs.is_run(name):
        if runs.read_file(name, "run.json").get("asked") == asked(args, sets):
            log = benchmark.read_log(left)
            runs.check(log, dict.fromkeys(sets, benchmark.LOG), f"'{left}':")
            return log
    model, tokenizer = runs.load_model(name, torch.device(args.device), getattr(torch, args.dtype))
    return measure(args, {part: sets[part] for part in parts or sets}, model, tokenizer, **options)

def read_reference(args, sets):
    """The forget part of the retrained model's log, from the .json that --retrain names."""
    reference = BENCHMARKS[args.task].read_reference(args.retrain)
    BENCHMARKS[args.task].shared_rows({"answer": [row["answer"] for row in sets["forget"]]}, reference)
    return reference

def notes(metrics, log):
    """Lines that belong under a table: what forget quality lacks, or on how many rows it was computed."""
    if metrics["forget_quality"] is None:
        return ["forget quality needs a retrained reference; give --retrain a model or a log"]
    shared, n = metrics["forget_examples"], len(log["forget"]["loss"])
    return [f"forget quality is of the {shared} of {n} forget examples that the reference has"] * (shared < n)

# ------------------------------------------------------------------ the command

def add_common_flags(parser):
    """The flags that train.py and evaluate.py share; `resolve_task` gives them their defaults."""
    add = parser.add_argument
    add("--task", choices=BENCHMARKS, help="toy: embedded, no download. tofu: the benchmark (default: toy)")
    add("--data", help="for tofu, a Hub id or a local folder of the same layout (default: locuslab/TOFU)")
    add("--template", choices=data.TEMPLATES, help="prompt: the tokenizer's chat template, TOFU's LLaMA-2 "
        "one '[INST] … [/INST]', or plain 'Question: … Answer:' (default: auto: chat, if any)")
    add("--max-length", type=number(int, 2), help="most tokens of an example (default: 500)")
    add("--max-new-tokens", type=number(int, 1), help="to generate for ROUGE (default: toy 64, tofu 200)")
    add("--dtype", choices=("float32", "bfloat16", "float64"), help="what to compute in; under bfloat16 "
        "weights stay float32 (default: bfloat16 on CUDA, float32 on CPU)")
    add("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    add("--overwrite", action="store_true", help="write over what --out names")

def resolve_task(args):
    """Fill in the common flags' defaults; returns the benchmark's module."""
    args.task = args.task or "toy"
    facts = BENCHMARKS[args.task].TASKS[args.task]
    if facts["data"] is None:
        runs.refuse(args, ["data"], f"with --task {args.task}, whose data are embedded")
    for flag, value in dict(data=facts["data"], split=facts["split"], template="auto", max_length=500,
                            max_new_tokens=facts["max_new_tokens"]).items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return BENCHMARKS[args.task]

def check_split(args, splits):
    if args.split not in splits:
        raise InputError(f"--split {args.split}: task {args.task} has {', '.join(splits)}")

def inherit(args):
    """Fill in what --model RUN was made for and compared with, up to the first that flags say otherwise."""
    flags = runs.read_file(args.model, "run.json")["flags"]
    flags = flags | {"split": None if flags["model"] == "new" else flags["forget_split"]}
    for flag in ("task", "data", "template", "max_length", "max_new_tokens", "split", "retrain"):
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
    runs.check_writable(out.parent)
    if args.log:
        runs.refuse(args, ("task", "data", "split", "template", "max_length", "max_new_tokens", "dtype",
                           "device", "batch_size"), "with --log, where nothing is measured")
        benchmark, reference = tofu, tofu.read_reference(args.retrain) if args.retrain else None
        log = tofu.read_log(args.log)
        if "forget_truth_ratio" in log:
            raise InputError(f"--log: '{args.log}' holds truth ratios, which --retrain can use, but not the "
                             "losses of the four sets; give our metrics.log.json or TOFU's published log")
    else:
        if runs.is_run(args.model):
            inherit(args)
        benchmark = resolve_task(args)
        check_split(args, benchmark.TASKS[args.task]["forget_splits"])
        device, dtype = runs.resolve_device(args)
        args.forget_split, args.eval_batch_size = args.split, args.batch_size or 32
        sets, reference = benchmark.evaluation_rows(args.task, args.data, args.split), None
        if args.retrain:
            reference = read_reference(args, sets) if args.retrain.endswith(".json") else log_of(
                args, sets, args.retrain, ["forget"], with_text=False)["forget"]
        log = measure(args, sets, *runs.load_model(args.model, device, dtype))
        runs.write_json(log_path, log)
    metrics = benchmark.summarize(log, reference)
    runs.write_json(out, metrics)
    print("\n".join([benchmark.table({"model": metrics}), *notes(metrics, log), f"written: {out}"]))

def main(argv=None):
    parser = runs.OneLineParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--model", help="the model to evaluate: a folder or a Hub id")
    add("--log", help="or an evaluation log to summarize without any model")
    add("--retrain", help="reference for forget quality: the retrained model's folder or Hub id, or its log, "
        "a .json: ours, a run's reference.log.json, TOFU's published one, TOFU_EVAL.json (default: what the "
        "run in --model was compared with)")
    add("--split", help="forget set (default: forget10 for toy, forget05 for tofu)")
    add("--out", default="metrics.json", help="to write, and *.log.json beside it (default: %(default)s)")
    add("--batch-size", type=number(int, 1), help="default: 32")
    add_common_flags(parser)
    runs.run_command(parser, argv, run)

if __name__ == "__main__":
    main()
