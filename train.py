"""Unlearn: one visible loop.

    python train.py --method simnpo --beta 2.5                  the toy task, on a CPU, in a minute
    python train.py --method npo --task tofu --split forget05   real TOFU, a 1B model, one GPU

Minimizes, by AdamW, Eq. 1 of the paper with a coefficient on each side (λ is their ratio):

    forget-coeff · mean ℓ_f over the forget batch  +  retain-coeff · mean ℓ_r over as many retain examples

Methods, by their forget loss ℓ_f (each a function in losses.py):

    ga         log π, without a retain loss      graddiff   log π
    wgraddiff  log π / |y|                       idk        nll of a refusal
    dpo        refusal preferred to answer       npo        Eq. 2
    simnpo     Eq. 4                             finetune   nll: learns the split instead of forgetting it
"""
import argparse
import copy
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import safetensors
import safetensors.torch
import tokenizers
import torch
import transformers
from tqdm import tqdm

import data
import evaluate
import losses
from data import InputError
from evaluate import number

METHODS = "finetune", "ga", "graddiff", "wgraddiff", "idk", "dpo", "npo", "simnpo"

# ------------------------------------------------------------------ recipes: defaults of the flags

# Later entries win. TOFU's are the paper's (App. C) and its published configurations. Those of the
# toy and of the from-scratch model were chosen on seeds that no table in README uses, over lr ×
# forget_coeff × epochs (README has the grids): the highest forget quality among settings that keep 95%
# of Original's model utility.
RECIPES = [
    # task, model, split, methods: flags
    ("*", "*", "*", METHODS, dict(beta=0.1, gamma=0.0, forget_coeff=1.0, retain_coeff=1.0, retain="nll", warmup=1.0,
                                  weight_decay=0.01, batch_size=32)),
    ("*", "*", "*", ("finetune", "ga"), dict(retain="none")),

    ("tofu", "*", "*", METHODS, dict(lr=1e-5, epochs=5, micro_batch_size=8, eval_batch_size=32)),
    ("tofu", "*", "*", ("npo",), dict(epochs=10)),
    ("tofu", "*", "forget05", ("npo",), dict(epochs=20)),
    ("tofu", "*", "*", ("simnpo",), dict(epochs=10, beta=2.5, forget_coeff=0.1375)),
    ("tofu", "*", "forget10", ("simnpo",), dict(beta=4.5, forget_coeff=0.125)),

    ("tofu", "tiny", "*", METHODS, dict(lr=1e-3, epochs=5, forget_coeff=0.1, micro_batch_size=32, eval_batch_size=256)),
    ("tofu", "tiny", "*", ("finetune", "ga"), dict(lr=3e-4, forget_coeff=1.0)),
    ("tofu", "tiny", "*", ("graddiff",), dict(forget_coeff=0.03)),
    ("tofu", "tiny", "*", ("npo",), dict(epochs=10, beta=0.05)),
    ("tofu", "tiny", "*", ("simnpo",), dict(lr=3e-4, epochs=20, beta=0.5)),

    ("toy", "*", "*", METHODS, dict(lr=1e-3, epochs=20, micro_batch_size=32, eval_batch_size=256)),
    ("toy", "*", "*", ("finetune",), dict(lr=3e-4, epochs=5)),
    ("toy", "*", "*", ("ga",), dict(lr=1e-4)),
    ("toy", "*", "*", ("graddiff",), dict(lr=3e-4, epochs=10, forget_coeff=0.03)),
    ("toy", "*", "*", ("wgraddiff",), dict(forget_coeff=0.1)),
    ("toy", "*", "*", ("npo",), dict(forget_coeff=0.03, beta=0.2)),
    ("toy", "*", "*", ("simnpo",), dict(forget_coeff=0.3, beta=2.5)),
]

# The from-scratch model of each task: just large enough to know its task by heart.
TINY = {
    "toy": dict(vocab=1200, width=128, layers=2, heads=4, epochs=20, lr=2e-3, batch_size=16, micro_batch_size=16),
    "tofu": dict(vocab=8000, width=512, layers=4, heads=8, epochs=20, lr=1e-3, batch_size=64, micro_batch_size=64),
}


def recipe(task, model, split, method):
    """Defaults for the flags, from RECIPES."""
    flags = {}
    for for_task, for_model, for_split, methods, values in RECIPES:
        if for_task in ("*", task) and for_model in ("*", model) and for_split in ("*", split) and method in methods:
            flags |= values
    return flags


# ------------------------------------------------------------------ one effective batch


def forget_loss(model, forget, rows, args):
    """(ℓ_f [n], its weight [n], |y| [n]) for the forget sequences with numbers `rows`.

    forget: {"answer": [Example], "refusal": [Example], "answer_ref": [N], "refusal_ref": [N]}, the
    last three only where the method needs them. args: method, beta, gamma.
    """
    side = "refusal" if args.method == "idk" else "answer"
    logp, length = data.response_logp(model, [forget[side][i] for i in rows])
    if args.method in ("finetune", "idk"):
        return losses.nll(logp, length), losses.nll_weight(logp, length), length
    if args.method in ("ga", "graddiff"):
        return losses.ga(logp), losses.ga_weight(logp), length
    if args.method == "wgraddiff":
        return losses.weighted_ga(logp, length), losses.weighted_ga_weight(logp, length), length
    if args.method == "simnpo":
        setting = logp, length, args.beta, args.gamma
        return losses.simnpo(*setting), losses.simnpo_weight(*setting), length
    if args.method == "npo":
        setting = logp, forget["answer_ref"][rows], args.beta
        return losses.npo(*setting), losses.npo_weight(*setting), length
    refusal_logp, _ = data.response_logp(model, [forget["refusal"][i] for i in rows])
    setting = refusal_logp, forget["refusal_ref"][rows], logp, forget["answer_ref"][rows], args.beta
    return losses.dpo(*setting), losses.dpo_weight(*setting), length


def retain_loss(model, frozen, examples):
    """ℓ_r [n]: nll, or the KL divergence from the frozen model where there is one."""
    if frozen is None:
        return losses.nll(*data.response_logp(model, examples))
    logits, labels = data.response_logits(model, examples)
    with torch.no_grad():
        ref_logits, _ = data.response_logits(frozen, examples)
    return losses.kl(logits, ref_logits, labels)


def add_gradient(examples, coefficient, loss_of, micro_batch_size, device, dtype):
    """Add the gradient of coefficient · mean ℓ over `examples`, a micro-batch at a time.

    Exact: each micro-batch adds its *sum* of losses over the whole batch's size, so that neither the
    order (sorted by length, which saves padding) nor the cut changes the gradient. loss_of maps a
    list of numbers into `examples` to (ℓ [n], ...). Returns its outputs in the order of `examples`,
    detached.
    """
    kept, order = [], []
    for group in data.by_length(examples, micro_batch_size):
        with evaluate.autocast(device, dtype):
            outputs = loss_of(group)
        (coefficient * outputs[0].sum() / len(examples)).backward()
        kept.append([output.detach() for output in outputs])
        order += group
    back = torch.tensor(order, device=device).argsort()
    return [torch.cat(column)[back] for column in zip(*kept)]


@torch.no_grad()
def reference_logp(model, examples, args, device, dtype):
    """log πref of each example's response [N]. It never changes, so once is enough and no copy is kept."""
    result = torch.empty(len(examples), device=device, dtype=torch.promote_types(model.dtype, torch.float32))
    for group in data.by_length(examples, args.micro_batch_size):
        with evaluate.autocast(device, dtype):
            result[group] = data.response_logp(model, [examples[i] for i in group])[0].to(result.dtype)
    return result


# ------------------------------------------------------------------ the loop


class Diverged(InputError):
    """A loss or a gradient stopped being finite; the model still is what it was before that step."""


def train(model, forget, retain, args, dtype, out=None, on_epoch=None, title="unlearning"):
    """Update `model` in place by args.method; args holds the resolved flags.

    forget as for `forget_loss`; retain: list of Examples, or [] for none. With `out`, a folder, writes
    log.jsonl (a line a step) and weights.jsonl (a line an epoch), and after each epoch all that
    --resume needs. on_epoch(epoch) is called after each epoch. Raises Diverged.
    """
    device = model.device
    answers = forget["refusal"] if args.method == "idk" else forget["answer"]
    if args.method in ("npo", "dpo"):
        forget["answer_ref"] = reference_logp(model, forget["answer"], args, device, dtype)
    if args.method == "dpo":
        forget["refusal_ref"] = reference_logp(model, forget["refusal"], args, device, dtype)
    frozen = copy.deepcopy(model).eval() if retain and args.retain == "kl" else None

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # with dropout log πθ would be random, and NPO's weight not 1 at θ = ref
    if args.grad_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay,
                                  fused=True)
    epoch_steps = math.ceil(len(answers) / args.batch_size)
    steps, warmup = args.epochs * epoch_steps, args.warmup * epoch_steps
    draw = torch.Generator().manual_seed(args.seed)
    first_epoch = load_state(out, model, optimizer, draw) if out and args.resume else 1

    step = (first_epoch - 1) * epoch_steps
    bar = tqdm(total=steps, initial=step, desc=title, disable=None)
    log = open(out / "log.jsonl", "a", encoding="utf-8") if out else None
    for epoch in range(first_epoch, args.epochs + 1):
        weights, lengths = [0.0] * len(answers), [0] * len(answers)
        order = torch.randperm(len(answers), generator=draw).tolist()
        for start in range(0, len(order), args.batch_size):
            step += 1
            rows = order[start:start + args.batch_size]
            optimizer.zero_grad()

            loss_f, weight, length = add_gradient(
                [answers[i] for i in rows], args.forget_coeff,
                lambda group: forget_loss(model, forget, [rows[i] for i in group], args),
                args.micro_batch_size, device, dtype)
            check_finite(step, "forget", loss_f.mean(), model)

            loss_r = torch.zeros(1, device=device)
            if retain:
                drawn = torch.randint(len(retain), (len(rows),), generator=draw).tolist()
                examples = [retain[i] for i in drawn]
                loss_r, = add_gradient(
                    examples, args.retain_coeff,
                    lambda group: (retain_loss(model, frozen, [examples[i] for i in group]),),
                    args.micro_batch_size, device, dtype)
                check_finite(step, "retain", loss_r.mean(), model)

            rate = args.lr * min(step / (warmup + 1), (steps - step + 1) / max(1.0, steps - warmup))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

            for i, w, n in zip(rows, weight.tolist(), length.tolist()):
                weights[i], lengths[i] = w, n
            line = {"step": step, "epoch": epoch, "forget": loss_f.mean().item(), "retain": loss_r.mean().item(),
                    "weight": weight.mean().item(), "lr": rate}
            line["loss"] = args.forget_coeff * line["forget"] + (args.retain_coeff * line["retain"] if retain else 0)
            bar.set_postfix({name: f"{line[name]:.3g}" for name in ("loss", "forget", "retain", "weight")})
            bar.update()
            if log:
                log.write(json.dumps(line) + "\n")
        if out:
            log.flush()
            append_json(out / "weights.jsonl", {"epoch": epoch, "weight": weights, "length": lengths})
        if on_epoch:
            on_epoch(epoch)
            model.train()
        if out:
            save_state(out, model, optimizer, draw, epoch)
    bar.close()
    if out:
        log.close()
    model.eval()


def check_finite(step, part, loss, model):
    """Raise Diverged, before the optimizer steps, if a part's loss or the gradient so far is not finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for what, value in (("loss", loss), ("gradient", torch.nn.utils.get_total_norm(gradients))):
        if not torch.isfinite(value):
            raise Diverged(f"step {step}: the {part} {what} is {value.item()}; lower --lr or the {part} coefficient")


def append_json(path, content):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def save_state(out, model, optimizer, draw, epoch):
    """All that --resume needs, in one file, replaced in one move: a crash leaves the previous epoch's."""
    tensors = {"draw": draw.get_state()}
    for name, parameter in model.named_parameters():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value.contiguous()
    safetensors.torch.save_file(tensors, out / "resume.tmp", metadata={"epoch": str(epoch)})
    (out / "resume.tmp").replace(out / "resume.safetensors")


def load_state(out, model, optimizer, draw):
    """Undo an interruption; returns the epoch to go on with. Drops what was logged after the saved epoch.

    Raises InputError if resume.safetensors is damaged or of another model.
    """
    try:
        with safetensors.safe_open(out / "resume.safetensors", "pt", device=str(model.device)) as file, torch.no_grad():
            epoch = int(file.metadata()["epoch"])
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"parameter.{name}"))
                optimizer.state[parameter] = {key: file.get_tensor(f"{key}.{name}")
                                              for key in ("step", "exp_avg", "exp_avg_sq")}
            draw.set_state(file.get_tensor("draw").cpu())
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--resume: {out / 'resume.safetensors'} does not fit this run "
                         f"({' '.join(str(error).split())[:120]}); start anew with --overwrite") from None
    for name in ("log.jsonl", "weights.jsonl", "epochs.jsonl"):
        if (out / name).exists():
            lines = [line for line in (out / name).read_text(encoding="utf-8").splitlines()
                     if line.endswith("}") and json.loads(line)["epoch"] <= epoch]
            (out / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return epoch + 1


def reset_peak_memory(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """Bytes. On CUDA the most that tensors took since `reset_peak_memory`; on a CPU the most that the process
    ever had resident, libraries and all. 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # Unix only
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ------------------------------------------------------------------ a model from scratch


def tiny_model(task, texts, seed):
    """(model, tokenizer): a small Llama with random weights and a byte-level BPE made for `texts`."""
    size = TINY[task]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=size["vocab"], special_tokens=["<eos>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size["width"], intermediate_size=2 * size["width"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"], num_key_value_heads=size["heads"],
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=0, pad_token_id=0,
        from_scratch=True))  # so that later runs on it take the recipes of small models
    return model, tokenizer


def tiny_folder(split, args, device, dtype):
    """Folder of a from-scratch model that knows the base knowledge and `split`; trained if not cached.

    split: `full` makes Original, a retain split makes Retrain. A cached one is reused when task, data,
    seed and recipe are the same.
    """
    rows = {config: data.load_rows(args.task, args.data, config) for config in ("full", split, *data.BASE_KNOWLEDGE)}
    size = TINY[args.task]
    settings = {"task": args.task, "split": split, "seed": args.seed, "dtype": str(dtype), "max_length": args.max_length,
                "template": args.template, **size, "rows": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = args.root / "cache" / f"{args.task}-{split}-seed{args.seed}-{digest}"
    if folder.exists():
        return folder
    # The tokenizer sees `full` for both models: a tokenizer is not what is to be unlearned.
    texts = data.REFUSALS + [f"Question: {row['question']}\nAnswer: {row['answer']}"
                             for config in ("full", *data.BASE_KNOWLEDGE) for row in rows[config]]
    model, tokenizer = tiny_model(args.task, texts, args.seed)
    model.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    taught = [data.encode(row["question"], row["answer"], tokenizer, args.template, args.max_length)
              for config in (split, *data.BASE_KNOWLEDGE) for row in rows[config]]
    lesson = argparse.Namespace(
        method="finetune", lr=size["lr"], epochs=size["epochs"], batch_size=size["batch_size"],
        micro_batch_size=size["micro_batch_size"], warmup=1.0, weight_decay=0.01, forget_coeff=1.0, retain_coeff=0.0,
        retain="none", seed=args.seed, resume=False, grad_checkpointing=False)
    name = "Original" if split == "full" else "Retrain"
    reset_peak_memory(device)
    started = time.perf_counter()
    train(model, {"answer": taught}, [], lesson, dtype, title=f"{name} from scratch ({split})")
    unfinished = folder.with_name(f"{folder.name}.unfinished{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    evaluate.write_json(unfinished / "settings.json", settings)
    evaluate.write_json(unfinished / "cost.json", {"train_seconds": time.perf_counter() - started,
                                                   "peak_memory_bytes": peak_memory(device)})
    try:
        unfinished.rename(folder)
    except OSError:  # another run made the same model meanwhile
        shutil.rmtree(unfinished)
    return folder


# ------------------------------------------------------------------ a run: before, during and after the loop


def subset(text):
    """An argparse type: `shortest:SHARE` or `random:SHARE` with 0 < SHARE <= 1, given back as it is."""
    kind, _, share = text.partition(":")
    try:
        if kind not in ("shortest", "random") or not 0 < float(share) <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is not shortest:SHARE or random:SHARE with a share above 0 and at most 1")
    return text


def build_parser():
    parser = evaluate.OneLineParser(prog="train.py", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--method", choices=METHODS, required=True, help="what to do to the model; see above")
    add("--split", help="what to forget: forget05 or forget10, for tofu also forget01 (default: forget10 for toy, "
        "forget05 for tofu). With --method finetune, what to learn: also retain90, retain95, full or, for tofu, retain99")
    add("--subset", type=subset, metavar="KIND:SHARE", help="train on a part of --split only: shortest:0.2 is the fifth with "
        "the shortest responses, random:0.2 a fifth drawn by --seed; for relearning (default: all of it)")
    add("--model", help="the model to change, a folder or a Hub id; `tiny` is a small one made from scratch on the spot "
        "(default: tiny for toy; open-unlearning/tofu_Llama-3.2-1B-Instruct_full for tofu)")
    add("--retrain", help="reference for forget quality: the retrained model's folder or Hub id, or its evaluation log "
        "(default: none; with --model tiny it is made on the spot)")
    evaluate.add_common_flags(parser)
    recipe_flags = parser.add_argument_group("recipe", "Defaults depend on task, split and method (RECIPES in "
                                             "train.py); a run prints what it resolved.")
    add = recipe_flags.add_argument
    add("--beta", type=number(float, 0), help="temperature of npo, simnpo and dpo, at least 0; 0 is the GA limit")
    add("--gamma", type=number(float, 0), help="reward margin of simnpo, as in Eq. 4 (β times the published code's)")
    add("--forget-coeff", type=number(float, 0), help="factor on the forget loss")
    add("--retain-coeff", type=number(float, 0), help="factor on the retain loss; λ of Eq. 1 is this over --forget-coeff")
    add("--retain", choices=("nll", "kl", "none"), help="retain loss: nll, the divergence from the original model, or none")
    add("--lr", type=number(float, 0), help="AdamW's peak learning rate, after a linear warm-up; it decays to 0")
    add("--weight-decay", type=number(float, 0), help="AdamW's")
    add("--warmup", type=number(float, 0), help="length of the warm-up in epochs")
    add("--epochs", type=number(int, 1), help="passes over the forget set")
    add("--batch-size", type=number(int, 1), help="forget examples a step (effective batch)")
    add("--micro-batch-size", type=number(int, 1), help="examples at a time; changes memory and speed, not the gradient")
    parser.add_argument("--seed", type=number(int, 0, high=2**31), default=0,
                        help="of the order, the draws and a tiny model's weights (default: %(default)s)")
    parser.add_argument("--grad-checkpointing", action="store_true", help="recompute activations: less memory, more time")
    parser.add_argument("--eval", choices=("end", "epoch", "none"), default="end",
                        help="when to measure TOFU's metrics (default: %(default)s)")
    parser.add_argument("--eval-batch-size", type=number(int, 1), help="examples at a time when measuring")
    parser.add_argument("--out", help="folder for model, logs and metrics (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --out, from its last epoch")
    return parser


def is_tiny(model):
    """Whether --model names a from-scratch model, or a run that started from one."""
    try:
        return model == "tiny" or json.loads(Path(model, "config.json").read_text(encoding="utf-8")).get("from_scratch", False)
    except (OSError, ValueError):
        return False


def resolve(args):
    """Fill in what depends on other flags, and refuse what does not go together."""
    args.split = args.split or data.DEFAULTS[args.task]["split"]
    args.max_new_tokens = args.max_new_tokens or data.DEFAULTS[args.task]["max_new_tokens"]
    evaluate.check_split(args, data.splits_of(args.task) if args.method == "finetune" else data.FORGET_SPLITS[args.task])
    args.forget_split = data.forget_split_of(args.split, args.task)
    if args.split != args.forget_split and args.model in (None, "tiny"):
        raise InputError(f"--method finetune --split {args.split} teaches a model that does not know the task yet; name one "
                         "with --model (Original and Retrain from scratch lie in the cache folder of any tiny run)")
    args.model = args.model or {"toy": "tiny", "tofu": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"}[args.task]
    defaults = recipe(args.task, "tiny" if is_tiny(args.model) else args.model, args.split, args.method)
    if args.micro_batch_size is None:  # the recipe's is only what fits well, so it yields to a small batch
        args.micro_batch_size = min(defaults["micro_batch_size"], args.batch_size or defaults["batch_size"])
    for flag, value in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    if args.micro_batch_size > args.batch_size:
        raise InputError(f"--micro-batch-size {args.micro_batch_size} is larger than --batch-size {args.batch_size}; "
                         "make it at most that")
    if args.resume and not args.out:
        raise InputError("--resume needs --out, the folder of the interrupted run")
    if args.resume and args.overwrite:
        raise InputError("--resume goes on with a run and --overwrite discards it; give one of them")
    return args


def choose_folder(args):
    """args.out as a Path that may be written to, and args.root, its parent. Creates nothing."""
    if args.out is None:
        name = f"{args.task}-{args.split}-{args.method}-b{args.beta:g}-seed{args.seed}-{time.strftime('%m%d-%H%M%S')}"
        args.out = Path("runs", name)
        while args.out.exists():
            args.out = args.out.with_name(args.out.name + "x")
    args.out = Path(args.out)
    args.root = args.out.parent
    if args.resume:
        if not (args.out / "resume.safetensors").is_file():
            raise InputError(f"--resume: {args.out} has no resume.safetensors, so nothing was interrupted there after "
                             "its first epoch; start anew without --resume")
    elif args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        if not args.overwrite:
            raise InputError(f"--out: {args.out} exists; name another folder or add --overwrite")
        if not (args.out / "run.json").is_file():
            raise InputError(f"--overwrite: {args.out} is not a run's folder (no run.json), so it is left alone; "
                             "name another")
    for flag in ("model", "retrain"):
        used = getattr(args, flag)
        if used and Path(used).exists() and Path(used).resolve().is_relative_to(args.out.resolve()):
            raise InputError(f"--out: {args.out} holds --{flag} {used}, which would be written over; name another folder")
    evaluate.check_writable(next(folder for folder in (args.out, *args.out.absolute().parents) if folder.exists()))


def run_settings(args):
    """What run.json says: every resolved flag, versions, and the commit of this code."""
    def git(*command):
        try:
            return subprocess.run(["git", "-C", Path(__file__).parent, *command], capture_output=True, text=True,
                                  check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += " with uncommitted changes"
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
             if name not in ("resume", "overwrite", "root")}
    versions = {package.__name__: package.__version__ for package in (torch, transformers)}
    return {"flags": flags, "versions": versions, "commit": commit}


# What may differ when a run is resumed: it changes where and how fast, not what is computed.
MAY_CHANGE = "out", "retrain", "micro_batch_size", "eval_batch_size", "grad_checkpointing", "eval", "max_new_tokens"


def check_same_run(args, settings):
    """Raise InputError unless the run to resume had the same flags."""
    try:
        before = json.loads((args.out / "run.json").read_text(encoding="utf-8"))["flags"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume: {args.out / 'run.json'} is not usable ({error}); start anew with --overwrite") from None
    for flag, value in settings["flags"].items():
        if flag not in MAY_CHANGE and before.get(flag) != value:
            raise InputError(f"--resume: the run in {args.out} had --{flag.replace('_', '-')} {before.get(flag)}, "
                             f"not {value}; give the same flags")


def that_apply(flags):
    """The flags without those that the method or the task does not use: what is worth printing."""
    unused = [] if flags["method"] in ("npo", "simnpo", "dpo") else ["beta"]
    unused += [] if flags["method"] == "simnpo" else ["gamma"]
    unused += ["retain_coeff"] if flags["retain"] == "none" else []
    unused += ["data"] if flags["task"] == "toy" else []
    unused += [] if flags["subset"] else ["subset"]
    return {flag: value for flag, value in flags.items() if flag not in unused}


def load_examples(args, tokenizer, limit):
    """(forget, retain) as `train` takes them."""
    def examples(rows, answer_of):
        return [data.encode(row["question"], answer_of(row), tokenizer, args.template, limit) for row in rows]
    rows = data.load_rows(args.task, args.data, args.split)
    forget = {"answer": examples(rows, lambda row: row["answer"])}
    if args.method in ("idk", "dpo"):
        refuse = random.Random(args.seed)
        forget["refusal"] = examples(rows, lambda row: refuse.choice(data.REFUSALS))
    if args.subset:
        kind, share = args.subset.split(":")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
        if kind == "shortest":
            order = sorted(range(len(rows)), key=lambda i: len(forget["answer"][i].response))
        kept = sorted(order[:max(1, round(float(share) * len(rows)))])
        forget = {side: [examples[i] for i in kept] for side, examples in forget.items()}
    retain = []
    if args.retain != "none":
        retain = examples(data.load_rows(args.task, args.data, data.retain_split(args.forget_split)),
                          lambda row: row["answer"])
    return forget, retain


def cached_log(folder, sets, args, measure):
    """The log of a cached from-scratch model, measured once for these evaluation rows and this generation length."""
    digest = hashlib.sha256(json.dumps([sets, args.max_new_tokens], sort_keys=True).encode()).hexdigest()[:12]
    path = Path(folder) / f"{args.forget_split}-{digest}.log.json"
    if not path.exists():
        evaluate.write_json(path, measure(folder))
    return evaluate.read_log(path)


def draw_run(out, ratios):
    """run.png: loss over steps, weight against length, truth ratios. Drawn from the run's own files."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [json.loads(line) for line in (out / "weights.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
    for part in ("forget", "retain"):
        left.plot([line["step"] for line in steps], [line[part] for line in steps], label=f"{part} loss")
    left.set(xlabel="step", title="loss")
    for line in epochs[:: max(1, len(epochs) - 1)]:
        middle.scatter(line["length"], line["weight"], s=12, alpha=0.7, label=f"epoch {line['epoch']}")
    middle.set(xlabel="response length |y|", title="gradient weight of each forget sequence")
    for name, ratio in ratios.items():
        right.ecdf(torch.tensor(ratio).log10().clamp(-8, 8).numpy(), label=name)
    right.set(xlabel="log10 truth ratio", title="share of forget examples below")
    for axis in (left, middle, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "run.png", dpi=120)
    plt.close(figure)


def run(args):
    resolve(args)
    choose_folder(args)
    device, dtype = evaluate.resolve_device(args.device, args.dtype)
    args.device, args.dtype = device.type, str(dtype).removeprefix("torch.")
    settings = run_settings(args)
    if args.resume:
        check_same_run(args, settings)
    print("settings:", " ".join(f"{flag}={value}" for flag, value in that_apply(settings["flags"]).items()))

    # Everything that can be wrong with the user's files shows here, before anything is written to --out.
    retrain_ratio, logs, before = None, {}, "Original"
    sets = evaluate.load_sets(args.task, args.data, args.forget_split) if args.eval != "none" else None
    if (Path(args.model) / "run.json").is_file():  # a run of ours: what it was compared with serves again
        before = "before"
        try:
            settings["start"] = json.loads((Path(args.model) / "run.json").read_text(encoding="utf-8"))["flags"]
            args.retrain = args.retrain or settings["start"]["retrain"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--model: {args.model}/run.json is not usable ({error}); mend or remove it") from None
    if args.retrain and args.retrain.endswith(".json"):
        retrain_ratio = evaluate.retrain_ratio_of_log(args.retrain)
    original = args.model
    if original == "tiny":
        original = str(tiny_folder("full", args, device, dtype))
        if args.retrain is None and sets:
            args.retrain = str(tiny_folder(data.retain_split(args.forget_split), args, device, dtype))
    settings["flags"]["retrain"] = args.retrain
    model, tokenizer = evaluate.load_model(original, device, dtype)
    limit = min(args.max_length, getattr(model.config, "max_position_embeddings", args.max_length))
    forget, retain = load_examples(args, tokenizer, limit)

    def measure(model_or_folder, tokenizer=tokenizer):
        if isinstance(model_or_folder, str):
            model_or_folder, tokenizer = evaluate.load_model(model_or_folder, device, dtype)
        return evaluate.measure(model_or_folder, tokenizer, sets, dtype, args.template, limit,
                                args.eval_batch_size, args.max_new_tokens)

    if sets:
        made_here = args.model == "tiny"
        logs[before] = cached_log(original, sets, args, measure) if made_here else measure(model)
        if args.retrain and retrain_ratio is None:
            logs["Retrain"] = cached_log(args.retrain, sets, args, measure) if made_here else measure(args.retrain)
            retrain_ratio = evaluate.ratio_of(logs["Retrain"])
        if retrain_ratio is not None:
            evaluate.check_same_size(len(sets["forget"]), len(retrain_ratio))

    if args.overwrite and args.out.exists():
        shutil.rmtree(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    evaluate.write_json(args.out / "run.json", settings)

    measuring, peak = 0.0, 0

    def on_epoch(epoch):
        nonlocal measuring, peak
        if args.eval == "epoch":
            if not measuring or device.type == "cuda":  # a CPU's peak cannot be reset, so measuring would count later
                peak = max(peak, peak_memory(device))
            started = time.perf_counter()
            logs[args.method] = measure(model)
            metrics = evaluate.summarize(logs[args.method], retrain_ratio)
            append_json(args.out / "epochs.jsonl", {"epoch": epoch, **metrics})
            measuring += time.perf_counter() - started
            reset_peak_memory(device)
    reset_peak_memory(device)
    started = time.perf_counter()
    try:
        train(model, forget, retain, args, dtype, args.out, on_epoch, title=args.method)
        cost = {"train_seconds": time.perf_counter() - started - measuring,
                "peak_memory_bytes": peak if measuring and device.type == "cpu" else max(peak, peak_memory(device))}
        print("trained in {train_seconds:.1f} s; peak memory {:.2f} GB".format(cost["peak_memory_bytes"] / 1e9, **cost))
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        if sets:
            if args.eval == "end" or args.method not in logs:  # resumed after the last epoch
                logs[args.method] = measure(model)
            # The time of a resumed run is that of its last part only, so it is none.
            report(args, logs, retrain_ratio, cost if not args.resume else {})
        draw_run(args.out, {name: evaluate.ratio_of(log) for name, log in logs.items()})
    except Diverged as error:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
        raise InputError(f"{error}. The model as it was before that step is in {args.out}") from None
    except KeyboardInterrupt:
        again = "--resume, which goes on from the last whole epoch" if (args.out / "resume.safetensors").exists() \
            else "--overwrite: no epoch was finished"
        print(f"\ninterrupted; give the same command with --out {args.out} and {again}", file=sys.stderr)
        raise SystemExit(130) from None
    (args.out / "resume.safetensors").unlink()
    print(f"\nmodel, logs{', metrics' if sets else ''} and run.png are in {args.out}")


def report(args, logs, retrain_ratio, cost):
    """Write metrics.json, metrics.log.json and reference.log.json; print the table and one answer before and after."""
    metrics = {name: evaluate.summarize(log, retrain_ratio) for name, log in logs.items()}
    metrics[args.method] |= cost
    if args.model == "tiny" and (Path(args.retrain) / "cost.json").exists():
        metrics["Retrain"] |= json.loads((Path(args.retrain) / "cost.json").read_text(encoding="utf-8"))
    reference = {name: value for name, value in metrics.items() if name != args.method}
    evaluate.write_json(args.out / "metrics.json", metrics[args.method] | {"reference": reference})
    evaluate.write_json(args.out / "metrics.log.json", logs[args.method])
    # What figures of this run need from the models it was compared with.
    references = {name: log["forget"] for name, log in logs.items() if name != args.method}
    if retrain_ratio is not None and "Retrain" not in references:  # a log; JSON has no infinity
        references["Retrain"] = {"truth_ratio": [min(ratio, sys.float_info.max) for ratio in map(float, retrain_ratio)]}
    evaluate.write_json(args.out / "reference.log.json", references)
    print("\n" + evaluate.table(metrics))
    if retrain_ratio is None:
        print("forget quality needs a retrained reference; give --retrain a model or a log")
    forget = logs[args.method]["forget"]
    middle = sorted(range(len(forget["length"])), key=lambda i: forget["length"][i])[len(forget["length"]) // 2]
    print(f"\n{'asked':>10s}: {forget['question'][middle]}\n{'truth':>10s}: {forget['answer'][middle]}")
    for name, log in logs.items():
        print(f"{name:>10s}: {log['forget']['generated'][middle]}")


def main(argv=None):
    evaluate.run_cli(build_parser(), argv, run)


if __name__ == "__main__":
    main()
