"""Unlearn: one visible loop.

    python train.py --method simnpo --beta 2.5                  the toy task, on a CPU, in a minute
    python train.py --method npo --task tofu --split forget05   real TOFU, a 1B model, one GPU
    torchrun --nproc_per_node 8 train.py --out FOLDER …         the same on eight

Minimizes, by AdamW, Eq. 1 of the paper with a coefficient on each side (λ is their ratio):

    forget-coeff · mean ℓ_f over the forget batch  +  retain-coeff · mean ℓ_r over as many retain examples

Methods, by their forget loss ℓ_f (each a function in losses.py, an entry in methods.py):

"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import filelock
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import evaluate
import losses
import own
import runs
from data import InputError
from methods import METHODS
from runs import number

# ------------------------------------------------------------------ recipes: defaults of the flags

# Of all tasks; each benchmark's own (tofu.RECIPES, …) come after these and win.
RECIPES = [
    # task, model, split, methods: flags
    (
        "*",
        "*",
        "*",
        "*",
        dict(
            beta=0.1,
            gamma=0.0,
            forget_coeff=1.0,
            retain_coeff=1.0,
            retain="nll",
            warmup=1.0,
            weight_decay=0.01,
            batch_size=32,
        ),
    ),
    ("*", "*", "*", ("finetune", "ga", "task-vector"), dict(retain="none")),
    ("*", "*", "*", ("task-vector",), dict(alpha=1.0)),
    ("*", "*", "*", ("rmu",), dict(retain="activations", layer=7, steer=6.5, alpha=1200.0)),
    ("*", "tiny", "*", ("rmu",), dict(layer=1, steer=10.0, alpha=10.0)),
]


def recipe(task, model, split, method):
    """Defaults for the flags, from RECIPES and the benchmark's."""
    flags = {}
    for *entry, methods, values in [*RECIPES, *evaluate.BENCHMARKS[task].RECIPES]:
        fits = all(mine in ("*", asked) for mine, asked in zip(entry, (task, model, split)))
        if fits and (methods == "*" or method in methods):
            flags |= values
    # RMU steers three matrices, at a rate of its own.
    return flags | ({"lr": 3e-3 if model == "tiny" else 5e-5} if method == "rmu" else {})


# ------------------------------------------------------------------ one effective batch


def forget_loss(model, forget, rows, args):
    """(ℓ_f [n], its weight [n], |y| [n], log π [n]) for the forget sequences with numbers `rows`.

    forget: {"answer": [Example], "refusal": [Example], "answer_ref": [N], "refusal_ref": [N]}, as far as
    the method reads them; for RMU also "target", c·u [d]. args: method, beta, gamma, layer. RMU's weight is
    the mean norm of its gradient with respect to a token's activation; it computes no log π.
    """
    method, known = METHODS[args.method], {"beta": args.beta, "gamma": args.gamma}
    if "hidden" in method.takes:
        hidden, tokens = data.hidden_states(model, [forget["answer"][i] for i in rows], args.layer)
        given, length = (hidden, forget["target"]), tokens.sum(1)

        def mean(values):
            return (values * tokens).sum(1) / length

        return mean(method.loss(*given)), mean(method.weight(*given).norm(dim=-1)), length
    for side, prefix in method.reads.items():
        examples = [forget[side][i] for i in rows]
        known[prefix + "logp"], known[prefix + "length"] = data.response_logp(model, examples)
        if prefix + "ref_logp" in method.takes:
            known[prefix + "ref_logp"] = forget[side + "_ref"][rows].to(model.device, non_blocking=True)
    given, first = [known[name] for name in method.takes], next(iter(method.reads.values()))
    return method.loss(*given), method.weight(*given), known[first + "length"], known[first + "logp"]


def retain_loss(model, frozen, examples, args):
    """ℓ_r [n]: nll, KL from the frozen model, or the distance from its activations, after args.retain."""
    if args.retain == "nll":
        return losses.nll(*data.response_logp(model, examples))
    if args.retain == "activations":
        hidden, tokens = data.hidden_states(model, examples, args.layer)
        with torch.no_grad():
            ref_hidden, _ = data.hidden_states(frozen, examples, args.layer)
        return (losses.rmu(hidden, ref_hidden) * tokens).sum(1) / tokens.sum(1)
    divergence = data.over_responses(
        [model, frozen], examples, lambda logits, ref_logits, targets: losses.kl(logits, ref_logits)
    )
    return torch.stack([tokens.mean() for tokens in divergence])


def add_gradient(examples, coefficient, loss_of, micro_batch_size, device, dtype):
    """Add the gradient of coefficient · mean ℓ over `examples`, a micro-batch at a time.

    Exact: each micro-batch adds its *sum* of losses over the whole batch's size, so that neither the
    order (sorted by length, which saves padding) nor the cut changes the gradient. loss_of maps a
    list of numbers into `examples` to (ℓ [n], ...). Returns its outputs in the order of `examples`,
    detached. Several processes take a share each, by tokens, and all get all outputs.
    """
    (rank, ranks), kept, order = data.ranks(), [], []
    for group in data.shares(examples, micro_batch_size, ranks)[rank]:
        with data.autocast(device, dtype):
            outputs = loss_of(group or [0])  # with nothing left to do, for the others' sake
        if torch.is_grad_enabled():
            # Processes' gradients are averaged, and what is wanted is their sum.
            (coefficient * ranks * outputs[0].sum() * bool(group) / len(examples)).backward()
        kept.append([output.detach()[: len(group)] for output in outputs])
        order += group
    order = torch.tensor(order, device=device, dtype=torch.int64)
    columns = [torch.cat(column) for column in zip(*kept)]
    columns = [column.new_zeros(len(examples)).index_copy(0, order, column) for column in columns]
    for column in columns if ranks > 1 else []:
        dist.all_reduce(column)
    return columns


@torch.no_grad()
def look(examples, outputs_of, micro_batch_size, device, dtype):
    """What add_gradient returns, without a gradient: how all examples fare under the model as it is."""
    return add_gradient(examples, 0, outputs_of, micro_batch_size, device, dtype)


def shard(model, dtype, trained=True):
    """Spread a model's weights, gradients and optimizer over the processes of a job, layer by layer; else nothing.

    PyTorch's FSDP2: a layer's weights are gathered for its forward and its backward pass, and its gradient is
    averaged over the processes, in float32.
    """
    if data.ranks()[1] > 1:
        from torch.distributed import fsdp  # here, as it takes a second that one process need not spend

        half = {"param_dtype": dtype, "reduce_dtype": torch.float32} if dtype == torch.bfloat16 else {}
        options = {
            "mp_policy": fsdp.MixedPrecisionPolicy(**half),
            "reshard_after_forward": True,
            "mesh": dist.init_device_mesh(model.device.type, (data.ranks()[1],)),
        }
        for module in model.modules():
            if type(module).__name__ in (model._no_split_modules or ()):
                fsdp.fully_shard(module, **options)
        model.as_forward = lambda compute: compute()
        # What no optimizer changes may stay gathered; `over_responses` relies on it.
        fsdp.fully_shard(model, **options | {"reshard_after_forward": trained})
        fsdp.register_fsdp_forward_method(model, "as_forward")


# ------------------------------------------------------------------ the loop


class Diverged(InputError):
    """A loss or a gradient stopped being finite; the model still is what it was before that step."""


def train(model, forget, retain, args, dtype, out=None, on_epoch=None):
    """Update `model` in place by args.method; args holds the resolved flags. Returns {"train_seconds": …}.

    forget as for `forget_loss`; retain: list of Examples, or [] for none. With `out`, a folder, writes
    log.jsonl (a line a step) and path.jsonl (a line an epoch), and now and then all that --resume needs.
    on_epoch(epoch) is called after each epoch, and its time is not counted. Raises Diverged, and after Ctrl-C
    KeyboardInterrupt, when all is saved.
    """
    clock, device, method, rank = time.perf_counter(), model.device, METHODS[args.method], data.ranks()[0]
    runs.peak_memory(device)
    frozen = copy.deepcopy(model).eval() if retain and args.retain in ("kl", "activations") else None
    if "layer" in method.flags:
        changed = data.steered(model, args.layer)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in changed
        draw = torch.Generator().manual_seed(args.seed)
        direction = torch.rand(model.config.hidden_size, generator=draw).to(device, model.dtype)
        forget["target"] = args.steer * direction / direction.norm()
    shard(model, dtype)
    if frozen:
        shard(frozen.requires_grad_(False), dtype, trained=False)
    for side, prefix in method.reads.items():
        if prefix + "ref_logp" in method.takes:  # it never changes: once is enough, and no copy is kept

            def reference(rows, examples=forget[side]):
                return data.response_logp(model, [examples[i] for i in rows])

            forget[side + "_ref"] = look(forget[side], reference, args.micro_batch_size, device, dtype)[0].cpu()
    responses = forget[next(iter(method.reads))]

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # with dropout log πθ would be random, and NPO's weight not 1 at θ = ref
    if args.grad_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    changing = [parameter for _, parameter in runs.trained(model)]
    optimizer = torch.optim.AdamW(changing, lr=args.lr, weight_decay=args.weight_decay, fused=True)
    epoch_steps = math.ceil(len(responses) / args.batch_size)
    steps, warmup = args.max_steps or args.epochs * epoch_steps, args.warmup * epoch_steps
    draw = torch.Generator().manual_seed(args.seed)
    kept = torch.randperm(len(retain), generator=torch.Generator().manual_seed(args.seed)).tolist()
    sample = [retain[i] for i in kept[: math.ceil(len(responses) / 2)]]
    # Steps and seconds so far; of the epoch in progress, the order of its sequences, and how they were met.
    zeros = torch.zeros(len(responses), dtype=torch.float64)
    progress = {
        "step": torch.tensor(0),
        "seconds": torch.tensor(0.0, dtype=torch.float64),
        "order": zeros.long(),
        "weight": zeros,
        "length": zeros.long(),
        "logp": zeros.clone(),
        "sample": torch.zeros(len(sample), dtype=torch.float64),
    }
    if out and args.resume:
        runs.load_state(out, model, optimizer, draw, progress)
        done = progress["step"].item()
        runs.forget_lines(out, done, math.inf if done >= steps else done // epoch_steps if done else -1)
    saved, saving, peak = clock, 0.0, 0

    def met(rows, start, values):
        """Note (weight, |y|, log π) of forget sequences, and how as large a part of the sample fares now."""
        for name, column in zip(("weight", "length", "logp"), values):
            progress[name][rows] = column.cpu().to(progress[name].dtype)
        part = slice(*(count * len(sample) // len(responses) for count in (start, start + len(rows))))
        if shown := sample[part]:
            logp, length = look(
                shown,
                lambda group: data.response_logp(model, [shown[i] for i in group]),
                args.micro_batch_size,
                device,
                dtype,
            )
            progress["sample"][part] = losses.nll(logp, length).cpu().double()

    if progress["step"] == 0:
        _, *values = look(
            responses, lambda group: forget_loss(model, forget, group, args), args.micro_batch_size, device, dtype
        )
        met(range(len(responses)), 0, values)
        log_path(out, 0, progress, slice(None))

    log = open(out / "log.jsonl", "a", encoding="utf-8") if out and rank == 0 else io.StringIO()
    bar = tqdm(total=steps, initial=progress["step"].item(), desc=args.method, disable=rank > 0 or None)
    with log, bar, runs.deferred_interrupt() as interrupted:
        for step in range(progress["step"].item() + 1, steps + 1):
            epoch, start = 1 + (step - 1) // epoch_steps, (step - 1) % epoch_steps * args.batch_size
            if start == 0:
                progress["order"] = torch.randperm(len(responses), generator=draw)
            rows = progress["order"][start : start + args.batch_size].tolist()
            optimizer.zero_grad()

            loss_f, *values = add_gradient(
                [responses[i] for i in rows],
                args.forget_coeff,
                lambda group: forget_loss(model, forget, [rows[i] for i in group], args),
                args.micro_batch_size,
                device,
                dtype,
            )
            check_finite(step, "forget", loss_f.mean(), model)

            loss_r = torch.zeros(1, device=device)
            if retain:
                drawn = torch.randint(len(retain), (len(rows),), generator=draw).tolist()
                examples = [retain[i] for i in drawn]
                (loss_r,) = add_gradient(
                    examples,
                    args.retain_coeff,
                    lambda group: (retain_loss(model, frozen, [examples[i] for i in group], args),),
                    args.micro_batch_size,
                    device,
                    dtype,
                )
                check_finite(step, "retain", loss_r.mean(), model)

            met(rows, start, values)
            rate = args.lr * min(step / (warmup + 1), (steps - step + 1) / max(1.0, steps - warmup))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

            line = {
                "step": step,
                "epoch": epoch,
                "forget": loss_f.mean().item(),
                "retain": loss_r.mean().item(),
                "weight": values[0].mean().item(),
                "lr": rate,
            }
            line["loss"] = args.forget_coeff * line["forget"]
            line["loss"] += args.retain_coeff * line["retain"] if retain else 0
            log.write(json.dumps(line) + "\n")
            shown = {"learning" if method.learns else "forget": line["forget"], "weight": line["weight"]}
            bar.set_postfix(shown | ({"retain": line["retain"]} if retain else {}))
            bar.update()
            progress["step"].fill_(step)
            progress["seconds"] += time.perf_counter() - clock
            if step % epoch_steps == 0 or step == steps:
                log.flush()
                # All of them, unless --max-steps ends within an epoch.
                log_path(out, epoch, progress, progress["order"][: start + len(rows)].sort().values)
                peak = max(peak, runs.peak_memory(device))
                if on_epoch:
                    on_epoch(epoch)
                    model.train()
                    runs.peak_memory(device)
            if args.save_every:
                due = step % (args.save_every * epoch_steps) == 0
            else:  # at most a twentieth of the time goes into saving, however large the model
                due = time.perf_counter() - saved > max(runs.SAVE_EVERY, 20 * saving)
            stop, due = runs.agreed(interrupted[0] if interrupted else 0, due)
            if out and (stop or due):
                log.flush()
                saving = runs.save_state(out, model, optimizer, draw, progress)
                saved = time.perf_counter()
            if stop:
                raise KeyboardInterrupt(stop)
            clock = time.perf_counter()
    model.eval().requires_grad_()
    return {"train_seconds": progress["seconds"].item()} | ({"peak_memory_bytes": peak} if peak else {})


def log_path(out, epoch, progress, seen):
    """A line of path.jsonl: how the loop met the forget sequences `seen`, and the retain sample."""
    line = {name: progress[name][seen].tolist() for name in ("weight", "length", "logp")}
    if not any(line["logp"]):
        del line["logp"]  # RMU's
    if len(progress["sample"]):
        line["retain"] = progress["sample"].mean().item()
    if out:
        runs.append_json(out / "path.jsonl", {"epoch": epoch} | line)


def check_finite(step, part, loss, model):
    """Raise Diverged, before the optimizer steps, if a part's loss or the gradient so far is not finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for what, value in (("loss", loss), ("gradient", getattr(norm, "full_tensor", lambda: norm)())):
        if not torch.isfinite(value):
            raise Diverged(f"step {step}: the {part} {what} is {value.item()}; lower --lr or the {part} coefficient")


# ------------------------------------------------------------------ a run: before, during and after the loop


def training_rows(args, split, path, **options):
    """Rows of a split of the task, or of the user's file in its place."""
    benchmark = evaluate.BENCHMARKS[args.task]
    if path and args.task not in own.TASKS:
        cut = {"cut": benchmark.TASKS[args.task]["files"]}
        return [row | cut for row in own.read_file(path, own.names_in(args.fields))]
    rows = benchmark.training_rows(args.task, args.data, split, **options)
    if args.model == "new" and split == "full" and args.never_learnt:
        unseen = benchmark.training_rows(args.task, args.data, args.forget_split)
        unseen = unseen[len(unseen) - benchmark.never_learnt(args.task, len(unseen), args.never_learnt) :]
        rows = [row for row in rows if row not in unseen]
    return rows


def load_examples(args, tokenizer, limit):
    """(forget, retain) as `train` takes them."""

    def examples(rows, *answer_of):
        return data.examples_of(rows, tokenizer, args.template, min(limit, args.max_length), *answer_of)

    rows = training_rows(args, args.split, args.forget_file, base_knowledge=args.model == "new")
    forget = {"answer": examples(rows)}
    if "refusal" in METHODS[args.method].reads:
        refuse = random.Random(args.seed)
        forget["refusal"] = examples(rows, lambda row: refuse.choice(data.REFUSALS))
    count = len(forget["answer"])
    if args.subset:
        kind, share = args.subset.split(":")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(args.seed)).tolist()
        if kind == "shortest":
            order = sorted(range(count), key=lambda i: len(forget["answer"][i].response))
        kept = sorted(order[: max(1, round(float(share) * count))])
        forget = {side: [every[i] for i in kept] for side, every in forget.items()}
    kept = evaluate.BENCHMARKS[args.task].retain_split(args.forget_split)
    return forget, examples(training_rows(args, kept, args.retain_file)) if args.retain != "none" else []


def from_scratch(split, args, part):
    """Folder of a run in the cache that taught a new model `split`: Original for full, else Retrain."""
    benchmark = evaluate.BENCHMARKS[args.task]
    lesson = build_parser().parse_args("--method finetune --model new --split".split() + [split])
    for flag in ("task", "data", "seed", "template", "max_length", "max_new_tokens", "dtype", "device"):
        setattr(lesson, flag, getattr(args, flag))
    resolve(lesson).eval = "none" if args.eval == "none" else "end"
    if args.never_learnt and split == "full":
        lesson.never_learnt, lesson.forget_split = args.never_learnt, args.forget_split
    made_for = benchmark.TASKS[args.task]["size"].get("made_for", "full")
    rows = [training_rows(lesson, each, None, base_knowledge=True) for each in (made_for, split)]
    made_of = [
        runs.FORMAT,
        rows,
        benchmark.TASKS[args.task]["size"],
        lesson.lr,
        lesson.epochs,
        lesson.batch_size,
        lesson.template,
        lesson.max_length,
        lesson.dtype,
    ]
    cache = Path(os.environ.get("MINUNLEARN_CACHE") or Path.home() / ".cache" / "minunlearn")
    cache.mkdir(parents=True, exist_ok=True)
    lesson.out = cache / f"{args.task}-{split}-seed{args.seed}-{runs.digest(made_of)}"
    name, flag = ("Original", "model") if split == "full" else ("Retrain", "retrain")
    with filelock.FileLock(f"{lesson.out}.lock"):  # two runs that need the same model make it once
        runs.sweep_killed(cache)
        with contextlib.suppress(InputError):
            if "cost" in runs.read_file(lesson.out, "run.json"):
                runs.drop_saves(lesson.out)  # if it was killed before it did
                print(f"[{part}/3] {name}: kept in {lesson.out}")
                return str(lesson.out)
        if data.ranks()[1] > 1:
            raise InputError(
                f"--model tiny: {name} is not in the cache yet, and one process makes it; run the command "
                "once without torchrun"
            )
        print(
            f"[{part}/3] {name}: a new model learns {split} in {lesson.epochs} epochs, into {lesson.out}\n"
            f"      (in fewer: --method finetune --model new --split {split} --epochs N --out DIR, and "
            f"--{flag} DIR)",
            flush=True,
        )
        for lesson.resume in (True, False) if runs.is_run(lesson.out) else (False,):
            if not lesson.resume:
                shutil.rmtree(lesson.out, ignore_errors=True)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    run(lesson)
                return str(lesson.out)
            except InputError:
                if not lesson.resume:
                    raise  # else what was left is damaged, or of other flags: made anew
            except runs.STOPS as stop:
                stop.mend = "the same command goes on from here"
                raise


def run(args):
    """One run from resolved flags, alone in its folder."""
    name = f"{args.task}-{args.split}-{args.method}-seed{args.seed}"
    runs.choose_folder(args, name)
    with runs.only_run(args.out):
        runs.choose_folder(args, name)  # again: another run may have ended there just now
        run_in_folder(args)


def run_in_folder(args):
    """Check, load, measure what the run is compared with, train, save, measure."""
    benchmark = evaluate.BENCHMARKS[args.task]
    data.wait()  # all have seen the folder as it was
    if data.ranks()[1] > 1 and (args.eval == "epoch" or "finetuned" in METHODS[args.method].flags):
        raise InputError("--eval epoch and --method task-vector run in one process only; leave torchrun out")
    device, dtype = runs.resolve_device(args)
    settings = runs.settings_of(args)
    cost = runs.check_same_run(args.out, settings).get("cost") if args.resume else None
    if args.resume and runs.is_finished(args.out):
        return print(f"the run in {args.out} is finished: nothing is left to do")

    # Everything that can be wrong with the user's files shows here, before anything is written to --out.
    if "refusal" in METHODS[args.method].reads and not all(
        "question" in row for row in training_rows(args, args.split, args.forget_file)
    ):
        raise InputError(
            f"--method {args.method} refuses to answer questions, and these data are running text; use another method"
        )
    sets, reference, logs, before, original = None, None, {}, "Original", args.model
    if args.eval != "none":
        sets = benchmark.evaluation_rows(args.task, args.data, args.forget_split)
        settings["asked"] = evaluate.asked(args, sets)
    if runs.is_run(args.model):
        start = runs.read_file(args.model, "run.json")["flags"]
        if start["model"] != "new":  # it unlearnt something
            before, settings["start"] = "before", start
    if sets and (args.retrain or ".json").endswith(".json"):
        reference = evaluate.reference_by(args, sets, logs)
    if args.model == "tiny":
        original = from_scratch("full", args, 1)
        if args.retrain is None and sets and not (args.task in own.TASKS and "retain" not in args.data):
            args.retrain = from_scratch(benchmark.retain_split(args.forget_split), args, 2)
        print(f"[3/3] {args.method}: Original forgets {args.split}")
    if args.model == "new":
        model, tokenizer = evaluate.new_model(args.task, args.data, args.seed)
        model.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    else:
        model, tokenizer = evaluate.load_model(args, original)
    theta = tuned = None
    if args.layer is not None:
        data.steered(model, args.layer)
    if "finetuned" in METHODS[args.method].flags:
        theta = [parameter.detach().cpu().clone() for parameter in model.parameters()]
        if args.finetuned:
            tuned, _ = evaluate.load_model(args, args.finetuned)
            subtract(theta, tuned, args)
    forget, retain = load_examples(args, tokenizer, getattr(model.config, "max_position_embeddings", 10**9))
    settings["flags"]["retrain"] = args.retrain
    settings["data"] = {"forget set": runs.digest(forget), "retain set": runs.digest(retain)}
    if args.resume:
        runs.check_same_run(args.out, settings)
    print(
        "settings:",
        " ".join(f"{flag}={value}" for flag, value in settings["flags"].items() if value is not None),
        flush=True,
    )
    if sets and args.model != "new":
        logs[before] = evaluate.log_of(args, sets, original)
    if sets and args.retrain and reference is None:
        reference = evaluate.reference_by(args, sets, logs)

    if logs and reference:
        benchmark.summarize(next(iter(logs.values())), reference)  # raises for a reference of another kind
    runs.open_folder(args, settings | ({"cost": cost} if cost else {}))

    def on_epoch(epoch):
        if args.eval == "epoch":
            logs[args.method] = evaluate.measure(args, sets, model, tokenizer)
            metrics = benchmark.summarize(logs[args.method], reference)
            runs.append_json(args.out / "epochs.jsonl", {"epoch": epoch, **metrics})

    try:
        if cost is None:
            if tuned is None:
                cost = train(model, forget, retain, args, dtype, args.out, on_epoch)
                if theta:
                    subtract(theta, model, args)
            else:
                model, cost = tuned, {"train_seconds": 0.0}
            runs.save_model(args.out, model, tokenizer)
            if data.ranks()[1] > 1:  # each measures its share of the examples by itself, with a model that is whole
                del model
                model, _ = runs.load_model(str(args.out), device, dtype)
        else:  # interrupted when all was trained
            model, _ = runs.load_model(str(args.out), device, dtype)
            runs.forget_lines(args.out, math.inf, math.inf)
        runs.write_json(args.out / "run.json", settings | {"cost": cost})
        runs.drop_saves(args.out)
        if sets:
            logs[args.method] = logs.get(args.method) or evaluate.measure(args, sets, model, tokenizer)
            evaluate.judge(args, logs)
            report(args, logs, reference, cost)
        values = {name: benchmark.spread_of(benchmark.reference_of(log)) for name, log in logs.items()}
        runs.draw_run(args.out, values, benchmark.SPREAD)
    except Diverged as error:
        if theta:
            raise InputError(f"{error}. Its fine-tuning ended there, so no model was saved") from None
        runs.save_model(args.out, model, tokenizer)
        raise InputError(f"{error}. The model as it was before that step is in {args.out}") from None
    except runs.STOPS as stop:
        stop.mend = f"the same command with --resume --out {args.out} goes on"
        raise
    print(f"\nmodel, logs{', metrics' if sets else ''} and run.png are in {args.out}")


@torch.no_grad()
def subtract(theta, model, args):
    """Make `model`, fine-tuned from theta, a list of tensors, what the task vector makes of it."""
    parameters = dict(model.named_parameters())
    if len(parameters) != len(theta):
        raise InputError(
            f"--finetuned {args.finetuned} has {len(parameters)} weights, --model {len(theta)}; "
            "give a model fine-tuned from --model"
        )
    for (name, parameter), before in zip(parameters.items(), theta):
        try:
            parameter.copy_(losses.task_vector(before, parameter.cpu(), args.alpha))
        except ValueError as error:
            raise InputError(
                f"--finetuned {args.finetuned}: {error} at {name}; give a model fine-tuned from --model"
            ) from None


def report(args, logs, reference, cost):
    """Write metrics and logs; print the table, and one answer before and after."""
    benchmark = evaluate.BENCHMARKS[args.task]
    metrics = {name: benchmark.summarize(log, reference) for name, log in logs.items()}
    metrics[args.method] |= cost
    if "Retrain" in logs and runs.is_run(args.retrain):
        metrics["Retrain"] |= runs.read_file(args.retrain, "run.json").get("cost", {})
    others = [name for name in logs if name != args.method]
    parts = {name: benchmark.reference_of(logs[name]) for name in others}
    runs.write_json(args.out / "metrics.log.json", logs[args.method])
    runs.write_json(args.out / "reference.log.json", ({"Retrain": reference} if args.retrain else {}) | parts)
    runs.write_json(
        args.out / "metrics.json", metrics[args.method] | {"reference": {name: metrics[name] for name in others}}
    )
    print(
        "\n".join(
            [
                "",
                benchmark.table(metrics),
                *benchmark.notes(metrics[args.method], logs[args.method]),
                f"trained in {cost['train_seconds']:.1f} s",
                "",
            ]
        )
    )
    forget = logs[args.method].get("forget", {})
    if "generated" in forget:
        by_length = sorted(range(len(forget["length"])), key=lambda i: forget["length"][i])
        for name, texts in (
            ("asked", forget["question"]),
            ("truth", forget["answer"]),
            *((name, log["forget"]["generated"]) for name, log in logs.items()),
        ):
            print(f"{name:>10s}: {texts[by_length[len(by_length) // 2]]}")


# ------------------------------------------------------------------ the command

TRAINING = "lr", "weight_decay", "warmup", "epochs", "max_steps", "batch_size", "subset"
OWN_FLAGS = set.union(*(method.own_flags for method in METHODS.values()))  # of some methods, not of all


def subset(text):
    """An argparse type: `shortest:SHARE` or `random:SHARE` with 0 < SHARE <= 1, given back as it is."""
    kind, _, share = text.partition(":")
    try:
        if kind in ("shortest", "random") and 0 < float(share) <= 1:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text[:20]}' is not shortest:SHARE or random:SHARE, 0 < SHARE <= 1")


def build_parser():
    methods = "\n".join(f"    {flag:11s}  {method.name}: {method.about}" for flag, method in METHODS.items())

    def taking(name):
        return ", ".join(flag for flag, method in METHODS.items() if name in method.takes)

    parser = runs.OneLineParser(prog="train.py", description=__doc__ + methods)
    add = parser.add_argument
    add("--method", choices=METHODS, required=True, metavar="METHOD", help="what to do; see above")
    add(
        "--split",
        help="what to forget: toy, tofu: forget05, forget10, tofu also 01 (default: toy forget10, "
        "tofu forget05); muse: forget, News also scal_1 … 4, sust_1 … 4; wmdp: bio, cyber, both. With "
        "--method finetune, what to learn: also retain90, …95, (tofu) …99, (muse) retain1, retain, or full",
    )
    add(
        "--subset",
        type=subset,
        metavar="KIND:SHARE",
        help="a part of --split: shortest:0.2 is the fifth of "
        "the shortest responses, random:0.2 a fifth drawn by --seed; for relearning (default: all)",
    )
    add(
        "--model",
        help="the model to change, a folder or a Hub id. `new`: a small one with random weights, "
        "for --method finetune, which teaches it --split and the base knowledge. `tiny`: two such runs, "
        "Original (full) and Retrain (without --split), kept in ~/.cache/minunlearn or in MINUNLEARN_CACHE "
        "(default: tiny for toys and own data; each benchmark's own)",
    )
    add(
        "--never-learnt",
        type=number(float, 0, high=1),
        metavar="SHARE",
        help="toy, tofu from scratch: Original "
        "does not learn this share of the authors to forget, the last ones; the forget set still holds them",
    )
    add(
        "--retrain",
        help="reference for forget quality: the retrained model's folder or Hub id, or its log, "
        "a .json (default: none; with --model tiny it is made on the spot)",
    )
    evaluate.add_common_flags(parser)
    add = parser.add_argument_group(
        "recipe",
        "Defaults depend on task, model, split and method (RECIPES here and in "
        "the benchmark's file); a run prints what it resolved.",
    ).add_argument
    add("--beta", type=number(float, 0), help=f"temperature of {taking('beta')}; 0 is the limit of GA")
    add("--gamma", type=number(float, 0), help=f"margin of {taking('gamma')}, Eq. 4 (β · published code's)")
    add("--forget-coeff", type=number(float, 0), help="factor on the forget loss")
    add("--retain-coeff", type=number(float, 0), help="factor on the retain loss; λ is this / --forget-coeff")
    add("--alpha", type=number(float, 0), help="task-vector: how far to go back; rmu: its --retain-coeff")
    add("--layer", type=number(int, 0), help="rmu: whose activations, from 0; it and two below are trained")
    add("--steer", type=number(float, 0), help="rmu: c, the length of the vector to steer to")
    add(
        "--finetuned",
        help="task-vector: a model already fine-tuned from --model on the forget set, to try "
        "several --alpha (default: it is fine-tuned here)",
    )
    add(
        "--retain",
        choices=("nll", "kl", "activations", "none"),
        help="retain loss: nll, KL from the original model, (rmu) distance from its activations, none",
    )
    add("--lr", type=number(float, 0), help="AdamW's learning rate after the warm-up; it decays to 0")
    add("--weight-decay", type=number(float, 0), help="AdamW's")
    add("--warmup", type=number(float, 0), help="length of the warm-up in epochs")
    add("--epochs", type=number(int, 1), help="passes over the forget set")
    add("--max-steps", type=number(int, 1), help="stop after so many steps, whatever --epochs")
    add("--batch-size", type=number(int, 1), help="forget examples a step (effective batch)")
    add("--micro-batch-size", type=number(int, 1), help="examples at a time; does not change the gradient")
    add = parser.add_argument
    add(
        "--seed",
        type=number(int, 0, high=2**31),
        default=0,
        help="of the order, the draws and a new model's weights (default: %(default)s)",
    )
    add("--grad-checkpointing", action="store_true", help="recompute activations: less memory, more time")
    add("--eval", choices=("end", "epoch", "none"), default="end", help="when to measure (default: end)")
    add("--eval-batch-size", type=number(int, 1), help="examples at a time when measuring")
    add("--out", help="folder for model, logs and metrics (default: a new one under runs/)")
    add(
        "--save-every",
        type=number(int, 1),
        metavar="EPOCHS",
        help="how often to save what --resume needs; the newest "
        "two saves are kept (default: every ten minutes, less often if that takes over a twentieth of the time)",
    )
    add("--resume", action="store_true", help="go on with the interrupted run in --out")
    return parser


def resolve(args):
    """Fill in what depends on other flags, and refuse what does not go together. Returns args."""
    method = METHODS[args.method]
    runs.refuse(args, OWN_FLAGS - method.own_flags, f"with --method {args.method}")
    if "layer" in method.flags:
        runs.refuse(args, ["retain_coeff"], "with --method rmu, which calls it --alpha")
        if args.retain == "none":
            runs.refuse(args, ["alpha"], "without a retain loss")
    if args.finetuned:
        runs.refuse(args, TRAINING, "with --finetuned, where nothing is trained")
    if "finetuned" in method.flags and args.eval == "epoch":
        raise InputError("--eval epoch: --method task-vector has only its fine-tuning's; use --eval end")
    if args.eval == "none":
        runs.refuse(args, ("retrain", "max_new_tokens", "eval_batch_size"), "with --eval none")
    if args.model and runs.is_run(args.model):
        evaluate.inherit(args)
    benchmark = evaluate.resolve_task(args)
    facts, splits = benchmark.TASKS[args.task], benchmark.TASKS[args.task]["forget_splits"]
    more = [*map(benchmark.retain_split, splits), "full"] if args.method == "finetune" else []
    evaluate.check_split(args, [*splits, *more])
    args.forget_split = benchmark.forget_split_of(args.task, args.split)
    args.model = args.model or facts["model"]
    if args.model in ("new", "tiny") and "size" not in facts:
        raise InputError(f"--model {args.model}: task {args.task} has no small model; give a pretrained one")
    if args.never_learnt and (
        "author" not in facts or args.model != "tiny" and (args.model, args.split) != ("new", "full")
    ):
        raise InputError("--never-learnt is for --model tiny, or new with --split full, on toy and tofu")
    if runs.is_run(args.model):
        start = runs.read_file(args.model, "run.json")["flags"]
        if start["forget_split"] == args.forget_split:
            args.never_learnt = start.get("never_learnt")
    if args.split != args.forget_split and args.model == "tiny":
        raise InputError(
            f"--split {args.split} teaches a model that does not know it; add --model new or a pretrained --model"
        )
    if args.model == "new" and args.method != "finetune":
        raise InputError(f"--model new knows nothing for --method {args.method} to unlearn; use --model tiny")
    args.family = runs.family_of(args.model)
    defaults = recipe(args.task, args.family, args.split, args.method)
    if args.micro_batch_size is None:  # the recipe's is only what fits well, so it yields to a small batch
        args.micro_batch_size = min(defaults["micro_batch_size"], args.batch_size or defaults["batch_size"])
    if args.epochs is not None:
        defaults.pop("max_steps", None)
    args.retain = args.retain or defaults["retain"]
    if args.retain == "none":
        runs.refuse(args, ["retain_coeff"], "without a retain loss")
    if args.task in own.TASKS and args.retain != "none" and "retain" not in args.data:
        raise InputError("nothing to retain; give --retain-file, or --retain none")
    if args.retain == "activations" and "layer" not in method.flags:
        raise InputError(f"--retain activations: --method {args.method} has no layer; use nll or kl")
    for flag, value in defaults.items():
        if args.finetuned and flag in TRAINING:
            continue
        if getattr(args, flag) is None and flag not in OWN_FLAGS - method.own_flags:
            setattr(args, flag, value)
    if "layer" in method.flags:
        args.retain_coeff = args.alpha
    if not args.finetuned and args.micro_batch_size > args.batch_size:
        raise InputError(f"--micro-batch-size {args.micro_batch_size} is larger than --batch-size; lower it")
    if args.resume and not args.out:
        raise InputError("--resume needs --out, the folder of the interrupted run")
    if args.resume and args.overwrite:
        raise InputError("--resume goes on with a run and --overwrite discards it; give one of them")
    return args


def main(argv=None):
    runs.run_command(build_parser(), argv, lambda args: run(resolve(args)))


if __name__ == "__main__":
    main()
