"""The flags that train.py and evaluate.py share, and where their defaults come from.

A default stands in one place: in the benchmark, in a recipe, or here. argparse only says what the user gave; the
defaults follow from that, and --help shows what it would resolve to.
"""

import argparse

import torch

from machinery import folder, processes
from machinery.command import OneLineParser, number, refuse
from machinery.inputs import InputError

TRAINING = (
    "lr lora weight_decay clip warmup warmup_share epochs max_steps batch_size retain_batch_size subset forget_until"
).split()
TEMPLATES = "auto", "chat", "llama2", "plain"
# What a run hands on to a command whose --model it is, besides its Retrain
FORGET_SET = "task", "data", "forget_file", "fields", "split"
OTHER_ROWS = "retain_file", "holdout_file", "probe_file"
SCORED = "tokenizer", "template", "max_length", "too_long"


class ShowDefaults(argparse.RawDescriptionHelpFormatter):
    """Help that keeps its lines and shows the default of each flag that has one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:  # 0.0 is shown
            return action.help
        return f"{action.help} (default: {str(action.default).replace('%', '%%')})"


# ------------------------------------------------------------------ the flags, under four headings


def add_what(parser, methods, tasks):
    add = parser.add_argument_group("what").add_argument
    add("--method", choices=methods, metavar="METHOD", help="what to do; see above")
    add_task(add, tasks)
    add(
        "--split",
        help="what to forget: toy, tofu: forget05, forget10, tofu also 01 (20, 30, 40, 50 and 90, which some copies of "
        "the data have); muse: forget, News also scal_1 … 4, sust_1 … 4; wmdp: bio, cyber, both; own: forget, the rows "
        "of --forget-file. With --method finetune, what to learn: also retain90, …95, (tofu) …99, (muse) retain1, "
        "retain, (own) retain, or full, which is both files of own",
    )
    add("--forget-split", help="finetune: the forget set that it is measured on (default: the one beside --split)")
    add(
        "--subset",
        type=subset,
        metavar="KIND:SHARE",
        help="a part of --split: shortest:0.2 is the fifth of the shortest responses, random:0.2 a fifth drawn by "
        "--seed; for relearning (default: all)",
    )
    add(
        "--model",
        help="the model to change, a folder or a Hub id. `new`: a small one with random weights, for --method "
        "finetune, which teaches it --split and the base knowledge. `tiny`: two such runs, Original (full) and Retrain "
        "(without --split), kept in ~/.cache/minunlearn or in MINUNLEARN_CACHE",
    )
    add(
        "--never-learnt",
        type=number(float, 0, high=1),
        metavar="SHARE",
        help="toy, tofu from scratch: Original does not learn this share of the authors to forget, the last ones; the "
        "forget set still holds them",
    )
    add(
        "--retrain",
        help="to compare with: the retrained model's folder or Hub id, or its log, a .json (default: "
        "none; with --model tiny it is made on the spot)",
    )


def add_task(add, tasks):
    add(
        "--task",
        choices=tasks,
        help="the benchmarks tofu, muse-news, muse-books, wmdp; toy, toy-muse, toy-wmdp: each asked of an invented "
        "world, no download; own: your files",
    )


def add_data(parser):
    """The heading `data`: rows, prompts, lengths."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        help="where a benchmark's data are: a Hub id or a local folder of the same layout; for wmdp what its four data "
        "sets' names begin with",
    )
    add(
        "--forget-file",
        help="your own data to forget: .jsonl, .json or .csv of question and answer, of text or of chat messages, or a "
        ".txt; with --task wmdp in place of its forget corpora",
    )
    add("--retain-file", help="your own data to keep, likewise")
    add(
        "--holdout-file",
        help="own: rows of the same kind that the model never saw; measured, and their loss is where forgetting is "
        "held (--forget-until) without --retrain",
    )
    add(
        "--probe-file",
        help="own: questions that ask for the facts to forget in other words, only measured; or a `paraphrase` beside "
        "each question to forget",
    )
    add("--fields", help="own: how these files call question, answer and text, such as q,a,text")
    add("--tokenizer", help="of models that have none of their own: a folder or Hub id")
    add(
        "--template",
        choices=TEMPLATES,
        help="prompt: the tokenizer's chat template, TOFU's LLaMA-2 one '[INST] … [/INST]', or plain 'Question: … "
        "Answer:'; auto: chat, if any",
    )
    add("--max-length", type=number(int, 2), help="most tokens of an example; text is cut into such pieces")
    add(
        "--too-long",
        choices=("refuse", "cut", "skip"),
        help="what to do with a question and answer that take more: stop, cut off the answer's end (EOS with it), or "
        "leave the row out, for training and measuring alike",
    )


def add_recipe(parser, methods):
    add = parser.add_argument_group(
        "recipe", "Defaults depend on task, model, split and method (RECIPES here and in the benchmark's file)."
    ).add_argument

    def of(flag):
        return ", ".join(name for name, method in methods.items() if flag in method.flags)

    add(
        "--beta",
        type=number(float, 0),
        help=f"{of('beta')}: temperature; 0 is the limit of GA. wga, satimp: exponent of p. undial: by how much the "
        "token's logit is lowered",
    )
    add("--beta2", type=number(float, 0), help=f"{of('beta2')}: exponent of 1 − p, beside --beta of p")
    add("--gamma", type=number(float, 0), help=f"{of('gamma')}: margin, Eq. 4 (β · published code's)")
    add("--forget-coeff", type=number(float, 0), help="factor on the forget loss")
    add("--retain-coeff", type=number(float, 0), help="factor on the retain loss; λ is this / --forget-coeff")
    add("--alpha", type=number(float, 0), help="task-vector: how far to go back; rmu: its --retain-coeff")
    add("--layer", type=number(int, 0), help="rmu: whose activations, from 0; it and two below are trained")
    add("--steer", type=number(float, 0), help="rmu: c, the length of the vector to steer to")
    add(
        "--finetuned",
        help="task-vector: a model already fine-tuned from --model on the forget set, to try several --alpha (default: "
        "it is fine-tuned here)",
    )
    add(
        "--retain",
        choices=("nll", "kl", "activations", "none"),
        help="retain loss: nll, KL from the original model, (rmu) distance from its activations, none",
    )
    add("--lr", type=number(float, 0), help="AdamW's learning rate after the warm-up; it decays to 0")
    add(
        "--lora",
        type=number(int, 1),
        metavar="RANK",
        help="train adapters of that rank on all linear layers and not the weights (LoRA): less memory. They are added "
        "to the weights on saving; --lr's default is twenty times as high",
    )
    add("--weight-decay", type=number(float, 0), help="AdamW's")
    add("--clip", type=number(float, 0), metavar="NORM", help="most of a step's gradient norm; 0: no clipping")
    add("--warmup", type=number(float, 0), help="length of the warm-up in epochs")
    add(
        "--warmup-share",
        type=number(float, 0, high=1),
        metavar="SHARE",
        help="its length as a share of all steps, whatever --warmup",
    )
    add("--epochs", type=number(int, 1), help="passes over the forget set")
    add("--max-steps", type=number(int, 1), help="stop after so many steps, whatever --epochs")
    add(
        "--forget-until",
        choices=("target", "end"),
        help="own: target leaves the forget loss out of steps while the loss on the forget rows has come 95%% of the "
        "way to Retrain's (without --retrain: the holdout's); it looks after the first epoch, then each quarter of "
        "one. end keeps it in all. Default with a pretrained model: target where one is known, in smaller batches; but "
        "for idk, dpo, rmu, task-vector, --subset and torchrun",
    )
    add(
        "--batch-size",
        type=number(int, 1),
        help="forget examples a step (effective batch); own, pretrained: by the number of rows and --forget-until",
    )
    add("--retain-batch-size", type=number(int, 1), help="retain examples a step; without it as many as to forget")
    add("--micro-batch-size", type=number(int, 1), help="examples at a time; does not change the gradient")


def add_run(parser):
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, 0, high=2**31), help="of the order, the draws and a new model's weights")
    add("--grad-checkpointing", action="store_true", help="recompute activations: less memory, more time")
    add("--eval", choices=("end", "epoch", "none"), help="when to measure")
    add("--eval-batch-size", type=number(int, 1), help="examples at a time when measuring")
    add_measuring(add)
    add("--out", help="folder for model, logs and metrics (default: a new one under runs/)")
    add(
        "--save-every",
        type=number(int, 1),
        metavar="EPOCHS",
        help="how often to save what --resume needs; the newest two saves are kept (default: every ten minutes, less "
        "often if that takes over a twentieth of the time)",
    )
    add("--resume", action="store_true", help="go on with the interrupted run in --out")


def add_measuring(add):
    add("--max-new-tokens", type=number(int, 1), help="of an answer, when measuring")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float64"),
        help="what to compute in; under bfloat16 weights that are trained stay float32",
    )
    add("--device", choices=("cpu", "cuda"), help="CUDA if present")
    add("--overwrite", action="store_true", help="write over what --out names")


def subset(text):
    """An argparse type: `shortest:SHARE` or `random:SHARE` with 0 < SHARE <= 1, given back as it is."""
    kind, _, share = text.partition(":")
    try:
        if kind in ("shortest", "random") and 0 < float(share) <= 1:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text[:20]}' is not shortest:SHARE or random:SHARE, 0 < SHARE <= 1")


# ------------------------------------------------------------------ their defaults


def parse(parser, words, defaults_of):
    """What the user gave, all else None. --help shows the defaults that follow from it: defaults_of(given)."""
    given = parser.parse_args([word for word in words if word not in ("-h", "--help")])
    if "-h" in words or "--help" in words:
        parser.set_defaults(**defaults_of(given))
        parser.parse_args(["--help"])
    return given


def of_some(methods):
    """Flags of some methods, not of all."""
    return {flag for method in methods.values() for flag in method.flags}


def fill(given, defaults):
    """The flags with their defaults; args.given holds those that the user gave, the others None."""
    args = argparse.Namespace(**vars(given) | {"given": given})
    for flag, default in defaults.items():
        if getattr(args, flag, None) is None:
            setattr(args, flag, default)
    return args


def to_hand_on(model):
    """{flag: value} of what a run was made for and compared with, as the user might give it."""
    flags = folder.read(model, "run.json")["flags"]
    flags["split"] = None if flags["model"] == "new" else flags["forget_split"]
    if isinstance(flags.get("data"), dict):
        files = flags.pop("data")
        flags |= {f"{name}_file": path for name, path in files.items() if name != "fields"}
    names = *FORGET_SET, *OTHER_ROWS, *SCORED, "max_new_tokens", "retrain"
    return {flag: flags[flag] for flag in names if flags.get(flag) is not None}


def handed_on(given):
    """({flag: value} of what the run in --model was made for and compared with, the flag that keeps its Retrain out).

    Without what the user says otherwise; another task, or forget file, leaves nothing. Retrain stays out where the
    forget set is not the run's, or where it is a log and answers are not scored as there; a model is measured anew.
    """
    if not given.model or not folder.is_run(given.model) or given.forget_file:
        return {}, None
    values = to_hand_on(given.model)
    others = [flag for flag, value in vars(given).items() if value is not None and value != values.get(flag)]
    decisive = (*FORGET_SET, *SCORED) if values.get("retrain", "").endswith(".json") else FORGET_SET
    bar = next((flag for flag in decisive if flag in others and "retrain" in values), None)
    if "task" in others:
        values = {}
    if bar:
        others.append("retrain")
    return {flag: value for flag, value in values.items() if flag not in others}, bar


def print_handed_on(given):
    """What --model's run has handed on."""
    values, bar = handed_on(given)
    values = {flag: value for flag, value in values.items() if getattr(given, flag, None) is None}
    if values:
        print("from the run:", *(f"{flag}={value}" for flag, value in values.items()))
    if bar and not given.retrain:
        print(f"not from the run: its Retrain, since --{bar.replace('_', '-')} is not the run's")


def defaults(given, benchmarks):
    """{flag: default} of the shared flags, from what the user gave, what --model hands on, and the benchmark."""
    values, _ = handed_on(given)
    task = given.task or values.get("task") or ("own" if given.forget_file else "toy")
    if task not in benchmarks:
        raise InputError(f"run '{given.model}' is of task {task[:20]}, which benchmarks/ lacks; give --task")
    benchmark = benchmarks[task]
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shared = {
        "task": task,
        "split": benchmark.split,
        "data": benchmark.data,
        "tokenizer": benchmark.tokenizer,
        "template": "auto",
        "max_length": benchmark.max_length,
        "too_long": "refuse",
        "max_new_tokens": benchmark.max_new_tokens,
        "device": device,
        "dtype": "bfloat16" if device == "cuda" else "float32",
    }
    return shared | values


def print_settings(args):
    """What the user chose, what a run handed on, and what the recipe filled in; the rest is in run.json."""
    print_handed_on(args.given)
    chosen = {flag: value for flag, value in vars(args.given).items() if value is not None and value is not False}
    filled = {flag: getattr(args, flag) for flag in args.recipe if flag not in chosen}
    for what, values in (("chosen", chosen), ("recipe", filled)):
        words = [f"{flag}={value}" for flag, value in values.items() if value is not None]
        print(f"{what}:", *words, flush=True)


# ------------------------------------------------------------------ what goes together


def resolve(args, methods, benchmarks):
    """The flags of train.py, with what follows from others filled in. InputError for what does not go together."""
    benchmark = benchmarks[args.task]
    check(args, benchmark)
    more = [*map(benchmark.retain_split, benchmark.forget_splits), "full"] if args.method == "finetune" else []
    check_split(args, [*benchmark.forget_splits, *more])
    if args.method != "finetune":
        refuse(args.given, ["forget_split"], f"with --method {args.method}, which forgets --split")
    args.forget_split = args.forget_split or benchmark.forget_split_of(args.split)
    check_split(args, benchmark.forget_splits, "forget_split")
    args.family = folder.family_of(args.model)
    check_method(args, methods)
    check_model(args, benchmark)
    check_run(args)
    if args.forget_until == "target" and (why := without_target(vars(args), benchmark)):
        raise InputError(f"--forget-until target {why}")
    if args.lora:
        check_lora(args)
    if folder.is_run(args.model):
        before = folder.read(args.model, "run.json")["flags"]
        if before["forget_split"] == args.forget_split:
            args.never_learnt = before.get("never_learnt")
    if args.method == "rmu":
        args.retain_coeff = args.alpha
    return args


def check(args, benchmark):
    """InputError unless the shared flags go together. Puts the user's files, if the task is of those, in args.data."""
    given = args.given
    check_device(args)
    if benchmark.data_of:
        if isinstance(given.data, str):
            raise InputError(f"--data has no use with --task {args.task}; give --forget-file and --retain-file")
        if not isinstance(args.data, dict):  # else of the run that Original and Retrain are made for
            files = args.forget_file, args.retain_file, args.fields, args.holdout_file, args.probe_file
            args.data = benchmark.data_of(*files)
    elif benchmark.data is None:
        refuse(given, ["data"], f"with --task {args.task}, whose data are embedded")
    if not benchmark.data_of and not benchmark.forget_file_cut:
        refuse(given, ["forget_file", "retain_file"], f"with --task {args.task}, which has data")
    if not benchmark.data_of:
        refuse(given, ["holdout_file", "probe_file"], f"with --task {args.task}; they are for --task own")
    if not args.forget_file and not args.retain_file:
        refuse(given, ["fields"], "without --forget-file or --retain-file")


def check_device(args):
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")


def check_split(args, splits, flag="split"):
    split = getattr(args, flag)
    if split not in splits:
        raise InputError(f"--{flag.replace('_', '-')} {split}: task {args.task} has {', '.join(splits)}")


def check_method(args, methods):
    """InputError for flags that the method has no use for."""
    given, method = args.given, methods[args.method]
    refuse(given, of_some(methods) - set(method.flags), f"with --method {args.method}")
    if args.method == "rmu":
        refuse(given, ["retain_coeff"], "with --method rmu, which calls it --alpha")
        if args.grad_checkpointing:
            raise InputError("--grad-checkpointing has no use with --method rmu; leave it out")
        if args.retain not in ("activations", "none"):
            raise InputError(f"--retain {args.retain}: --method rmu has activations or none; give one of them")
        if args.retain == "none":
            refuse(given, ["alpha"], "without a retain loss")
    elif args.retain == "activations":
        raise InputError(f"--retain activations: --method {args.method} has no layer; use nll or kl")
    if args.retain == "none":
        refuse(given, ["retain_coeff", "retain_batch_size"], "without a retain loss")
    if given.finetuned:
        refuse(given, TRAINING, "with --finetuned, where nothing is trained")
    if args.method == "task-vector" and args.eval == "epoch":
        raise InputError("--eval epoch: --method task-vector has only its fine-tuning's; use --eval end")


def check_model(args, benchmark):
    """InputError unless model, split and method go together."""
    if args.model in ("new", "tiny") and not benchmark.size:
        raise InputError(f"--model {args.model}: task {args.task} has no small model; give a pretrained one")
    learns_all = args.model == "new" and args.split == "full"
    if args.never_learnt and not (benchmark.author_rows and (args.model == "tiny" or learns_all)):
        raise InputError("--never-learnt is for --model tiny, or new with --split full, on toy and tofu")
    if args.split != args.forget_split and args.model == "tiny":
        raise InputError(
            f"--split {args.split} teaches a model that does not know it; add --model new or a pretrained --model"
        )
    if args.model == "new" and args.method != "finetune":
        raise InputError(f"--model new knows nothing for --method {args.method} to unlearn; use --model tiny")
    if benchmark.data_of and args.retain != "none" and "retain" not in args.data:
        raise InputError("nothing to retain; give --retain-file, or --retain none")


def check_run(args):
    """InputError unless what to measure, to write and to go on from go together."""
    if args.eval == "none":
        measuring = "retrain", "holdout_file", "probe_file", "max_new_tokens", "eval_batch_size"
        refuse(args.given, measuring, "with --eval none")
    if not args.finetuned and args.micro_batch_size > args.batch_size:
        raise InputError(f"--micro-batch-size {args.micro_batch_size} is larger than --batch-size; lower it")
    if args.resume and not args.out:
        raise InputError("--resume needs --out, the folder of the interrupted run")
    if args.resume and args.overwrite:
        raise InputError("--resume goes on with a run and --overwrite discards it; give one of them")
    if processes.in_job() and (args.eval == "epoch" or args.method == "task-vector"):
        raise InputError("--eval epoch and --method task-vector run in one process only; leave torchrun out")


def without_target(flags, benchmark):
    """Why a run has no target to forget until; None if it has one. flags: {flag: value} as far as they are known."""
    target = flags.get("retrain") or flags.get("holdout_file")
    unfit = "finetune", "idk", "dpo", "rmu", "task-vector"  # idk, dpo: the answers stay likely
    reasons = {
        "is for --task own": not benchmark.look,
        f"has no use with --method {flags['method']}": flags["method"] in unfit,
        "goes by what --eval none does not measure; use --eval end": flags["eval"] == "none",
        "goes by forget rows that a --subset does not learn from; leave it out": flags.get("subset"),
        "runs in one process only; leave torchrun out": processes.in_job(),
        "goes by Retrain's loss or the holdout's; give --retrain or --holdout-file": not target,
    }
    return next((why for why, applies in reasons.items() if applies), None)


def check_lora(args):
    """InputError for what is not trained through adapters."""
    if args.method in ("rmu", "task-vector"):
        raise InputError(f"--lora: --method {args.method} works on the weights themselves; leave it out")
    if args.model == "new":
        raise InputError("--lora: random weights alone are nothing to adapt; leave it out with --model new")
    if processes.in_job():
        raise InputError("--lora runs in one process only; leave torchrun out")


def parser(prog, description):
    return OneLineParser(prog=prog, description=description, formatter_class=ShowDefaults)
