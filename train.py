"""Unlearn: one visible loop.

    python train.py --method simnpo --beta 2.5                  the toy task, on a CPU, in a minute
    python train.py --method npo --task tofu --split forget05   real TOFU, a 1B model, one GPU
    torchrun --nproc_per_node 8 train.py --out FOLDER …         the same on eight

Minimizes, by AdamW, Eq. 1 of the paper with a coefficient on each side (λ is their ratio):

    forget-coeff · mean ℓ_f over the forget batch  +  retain-coeff · mean ℓ_r over retain examples

Methods, by their forget loss ℓ_f (each a function in losses.py, an entry in methods.py):

"""

import copy
import itertools
import math
import random
import sys

import torch
from tqdm import tqdm

import baselines
import compare
import data
import evaluate
import losses
from benchmarks import BENCHMARKS, files
from machinery import cache, flags, folder, models, processes
from machinery import run as runs
from machinery.command import STOPS, run_command
from machinery.inputs import InputError, digest, read_json
from methods import METHODS

# ------------------------------------------------------------------ recipes: defaults of the flags

# Of all tasks: family of models, methods (* for all), flags. Each benchmark's own come after these and win.
RECIPES = [
    ("*", "*", dict(beta=0.1, gamma=0.0, forget_coeff=1.0, retain_coeff=1.0, retain="nll")),
    ("*", "*", dict(warmup=1.0, weight_decay=0.01, batch_size=32, clip=0.0)),
    ("*", ("finetune", "ga", "task-vector"), dict(retain="none")),
    ("*", ("wga", "tnpo"), dict(beta=1.0)),
    ("*", ("satimp",), dict(beta=5.0, beta2=1.0, retain_coeff=0.1)),
    ("*", ("undial",), dict(beta=10.0)),
    ("*", ("task-vector",), dict(alpha=1.0)),
    ("*", ("rmu",), dict(retain="activations", layer=7, steer=6.5, alpha=1200.0)),
    ("tiny", ("rmu",), dict(layer=1, steer=10.0, alpha=10.0)),
]
LORA_RATE = 20  # with --lora the recipe's learning rate times this: adapters take it, and need it, higher


def recipe(task, family, split, method):
    """{flag: default} of the flags that make a run what it is, from RECIPES and the benchmark's."""
    general = [(for_family, "*", methods, values) for for_family, methods, values in RECIPES]
    defaults = {}
    for for_family, for_split, methods, values in (*general, *BENCHMARKS[task].recipes):
        fits = for_family in ("*", family) and for_split in ("*", split) and (methods == "*" or method in methods)
        defaults |= values if fits else {}
    if method == "rmu":  # it trains at most three matrices, at a rate of its own
        defaults["lr"] = 3e-3 if family == "tiny" else 5e-5
    return defaults


# ------------------------------------------------------------------ the loop


def retain_loss(model, frozen, examples, args):
    """ℓ_r [n]: −log πθ(y|x) / |y|, or with --retain kl the mean over a response's tokens of KL(πref ‖ πθ)."""
    if args.retain == "nll":
        response = data.respond(model, examples)
        return losses.nll(response.logp, response.length)
    with torch.no_grad():
        ref_logits, _, _ = data.response_logits(frozen, examples)
    logits, _, length = data.response_logits(model, examples)
    return torch.stack([tokens.mean() for tokens in losses.kl(logits, ref_logits).split(length.tolist())])


def frozen_copy(model):
    """A copy of a model, to stay as it is. Weights that are not trained, such as those under adapters, both share."""
    shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


def reference_model(model, retain, args):
    """The model before unlearning, where the method or --retain kl needs its logits; else None."""
    method = METHODS[args.method]
    by_method = method.needs_reference and method.needs_logits
    by_retain = retain and args.retain == "kl"
    return frozen_copy(model) if by_method or by_retain else None


@torch.no_grad()
def reference_logp(model, forget, args):
    """{side: N tensors [|y|]}: log πref of each token of what the method reads; {} for one that does not ask for them.

    Under the model before unlearning, which never changes: one pass and a number a token are enough, no copy is kept.
    """
    method, token_logp = METHODS[args.method], {}
    for side in method.reads if method.needs_reference else ():
        real = torch.promote_types(getattr(torch, args.dtype), torch.float32)
        lengths = [len(example.response) for example in forget[side]]
        logp = torch.zeros(sum(lengths), device=model.device, dtype=real)
        of_example = logp.split(lengths)
        batches = list(data.microbatches(forget[side], args.micro_batch_size))
        for places, divisor in tqdm(batches, desc="reference", disable=not processes.first() or None, leave=False):
            with data.autocast(model.device, getattr(torch, args.dtype)):
                response = data.respond(model, [forget[side][i] for i in places])
            if math.isfinite(divisor):  # else it is there for the other processes' sake
                for i, tokens in zip(places, response.token_logp, strict=True):
                    of_example[i].copy_(tokens)
        token_logp[side] = processes.add_up(logp).cpu().split(lengths)
    return token_logp


def respond(model, reference, forget, rows, method):
    """[Response] of the forget examples numbered `rows`, one for each side that the method reads.

    reference: the `reference_logp`, or for a method that needs its logits the frozen reference model.
    """
    responses = []
    for side in method.reads:
        examples, ref = [forget[side][row] for row in rows], None
        if method.needs_reference and method.needs_logits:
            with torch.no_grad():
                ref = data.respond(reference, examples, needs_logits=True)
        elif method.needs_reference:
            ref = data.response([reference[side][row] for row in rows], model.device)
        responses.append(data.respond(model, examples, method.needs_logits, ref))
    return responses


def train(model, forget, retain, args, run):
    """Update `model` in place by args.method; args holds the resolved flags, run is a machinery.run.Run.

    forget: {"answer": [Example], "refusal": [Example]}, those at least that the method reads; retain: [Example], or []
    for none. Raises Diverged, and after Ctrl-C KeyboardInterrupt, when all is saved.
    """
    method, dtype = METHODS[args.method], getattr(torch, args.dtype)

    # the model before unlearning: a copy where its logits are needed; the others take a number a token, from one pass
    frozen = reference_model(model, retain, args)
    processes.shard(model, dtype)
    processes.shard(frozen, dtype, trained=False)
    reference = frozen if method.needs_logits else reference_logp(model, forget, args)

    if args.grad_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    data.make_deterministic(model)
    sequences = forget[method.reads[0]]  # by which batches are cut; of another side there are as many
    data.check_deterministic(model, sequences[0], dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    epoch_steps = math.ceil(len(sequences) / args.batch_size)
    steps = args.max_steps or args.epochs * epoch_steps
    warmup = data.warmup_steps(args, steps, epoch_steps)
    done = run.resume(model, optimizer)  # steps behind us, 0 for a new run
    schedule = data.batches(len(sequences), len(retain), args.batch_size, args.seed, args.retain_batch_size)

    with run.loop(done, steps, epoch_steps):
        for step, (rows, drawn) in enumerate(itertools.islice(schedule, done, steps), done + 1):
            run.look(step, optimizer)
            optimizer.zero_grad()

            # forget: a micro-batch adds its *sum* over the batch's size, so the cut does not change the gradient; held
            # at --forget-until's target the loss counts for nothing, while the retain loss goes on
            forget_coeff = run.forget_coeff(args)
            for places, divisor in data.microbatches([sequences[row] for row in rows], args.micro_batch_size):
                part = [rows[i] for i in places]
                with data.autocast(model.device, dtype):
                    responses = respond(model, reference, forget, part, method)
                    loss, weight = method.loss(args, *responses), method.weight(args, *responses)
                (forget_coeff * loss.sum() / divisor).backward()
                run.add("forget", places, divisor, loss, weight, responses[0].length, responses[0].logp)
            run.check_finite(step, "forget", len(rows), model)

            # retain: as many examples or --retain-batch-size, which stay likely (nll) or as they were (kl)
            batch = [retain[i] for i in drawn]
            for places, divisor in data.microbatches(batch, args.micro_batch_size):
                with data.autocast(model.device, dtype):
                    loss = retain_loss(model, frozen, [batch[i] for i in places], args)
                (args.retain_coeff * loss.sum() / divisor).backward()
                run.add("retain", places, divisor, loss)
            run.check_finite(step, "retain", len(drawn), model)

            # step: linear warm-up, then linear decay
            rate = data.learning_rate(step, steps, warmup, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if args.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()

            # a line of log.jsonl with every sequence met; now and then, or on Ctrl-C, what --resume needs
            run.log(step, rows, drawn, rate, args)
            run.save_if_due(step, model, optimizer)


# ------------------------------------------------------------------ what is forgotten, and what is kept


def training_rows(args, split, path, **options):
    """Rows of a split of the task, or of the user's file in its place (task `own` has its files in args.data).

    Those that a new Original learns leave out the authors of --never-learnt.
    """
    benchmark = BENCHMARKS[args.task]
    if path and benchmark.forget_file_cut:
        return [row | {"cut": benchmark.forget_file_cut} for row in files.read_file(path, files.names_in(args.fields))]
    rows = benchmark.training_rows(args.data, split, **options)
    if args.model == "new" and split == "full" and args.never_learnt:
        forget = benchmark.training_rows(args.data, args.forget_split)
        count = benchmark.unseen_rows(len(forget), args.never_learnt)
        if not count:
            authors = len(forget) // benchmark.author_rows
            raise InputError(f"--never-learnt {args.never_learnt:g} of {authors} authors is none; raise it")
        unseen = forget[-count:]
        rows = [row for row in rows if row not in unseen]
    return rows


def load_examples(args, lm):
    """(forget, retain) as `train` takes them."""
    rows = lm.fitting(training_rows(args, args.split, args.forget_file, base_knowledge=args.model == "new"))
    forget = {"answer": lm.examples(rows)}
    if "refusal" in METHODS[args.method].reads:
        draw = random.Random(args.seed)
        forget["refusal"] = lm.examples(rows, answer_of=lambda row: draw.choice(data.REFUSALS))
    if args.subset:
        chosen = subset_of(forget["answer"], args)
        forget = {side: [examples[i] for i in chosen] for side, examples in forget.items()}

    retain = []
    if args.retain != "none":
        retain_split = BENCHMARKS[args.task].retain_split(args.forget_split)
        retain = lm.examples(lm.fitting(training_rows(args, retain_split, args.retain_file)))
    for part in (*forget.values(), retain):
        models.check_ids(lm.model, part)
    return forget, retain


def rows_of_subset(args, lm):
    """Numbers of the rows of the forget set, as it is measured, that --subset names examples of."""
    base_knowledge = args.model == "new"  # after the rows themselves, and drawn from as in `load_examples`
    rows = lm.fitting(training_rows(args, args.split, args.forget_file, base_knowledge=base_knowledge))
    counts = [len(lm.pieces(row["text"], lm.max_length, row.get("cut"))) if "text" in row else 1 for row in rows]
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    return sorted({owners[i] for i in subset_of(lm.examples(rows), args)})


def subset_of(examples, args):
    """Indices of the part of a forget set that --subset KIND:SHARE names, in order."""
    kind, share = args.subset.split(":")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(args.seed)).tolist()
    if kind == "shortest":
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].response))
    return sorted(order[: max(1, round(float(share) * len(examples)))])


# ------------------------------------------------------------------ a run: before, during and after the loop


def run(args, start, quiet=False):
    """One run from resolved flags, alone in its folder, args.out.

    start: the name of the model to change, or `new`. quiet: prints neither settings nor results.
    """
    with runs.only_run(args.out):
        runs.choose_folder(args)  # again: another run may have ended there just now
        processes.wait()  # all have seen the folder as it was
        if args.resume and folder.is_finished(args.out):
            runs.check_same_run(args.out, settings_of(args, start))
            print(f"the run in {args.out} is finished: nothing is left to do")
        else:
            run_alone(args, start, quiet)


def run_alone(args, start, quiet):
    """Load, measure what the run is compared with, train, save, measure."""
    settings = settings_of(args, start)
    # what training cost: there once it is over
    cost = runs.check_same_run(args.out, settings).get("cost") if args.resume else None

    # everything that can be wrong with the user's files shows here, before anything is written
    sets = None if args.eval == "none" else evaluate.sets_of(args, args.forget_split)
    lm, theta = load_model(args, start)
    forget, retain = load_examples(args, lm)
    settings |= describe(args, lm, forget, retain)
    settings["asked"] = evaluate.questions_digest(args, sets)
    if args.resume:
        runs.check_same_run(args.out, settings)
    if not quiet:
        flags.print_settings(args)
    before = "before" if "start" in settings else "Original"  # "start": of a run that relearns
    lm.model.cpu()  # one model at a time on the GPU
    logs, retrained = evaluate.compared_with(args, sets, {before: start} if args.model != "new" else {})
    lm.model.to(args.device)
    runs.open_folder(args.out, settings | ({"cost": cost} if cost else {}), args.resume)

    # the loop, unless the run was interrupted when all was trained
    try:
        if cost:
            runs.drop_lines(args.out, math.inf, math.inf)
        else:
            on_epoch = after_epoch(args, lm, sets, logs, retrained) if args.eval == "epoch" else None
            at_target = (
                look_for_target(args, lm, sets, logs[before], retrained) if args.forget_until == "target" else None
            )
            notebook = runs.Run(args.out, args.method, args.resume, args.save_every, on_epoch, at_target)
            unlearn(lm, theta, forget, retain, args, notebook, start)
        if cost or processes.several() or args.lora:
            lm = evaluate.load(args, str(args.out))
            logs.pop(args.method, None)  # of adapters beside their weights, not of what was saved
        settings["cost"] = cost or notebook.cost()
        runs.write_settings(args.out, settings)
        runs.drop_saves(args.out)
        finish(args, settings, lm, sets, logs, retrained, quiet)
    except STOPS as stop:
        stop.mend = f"the same command with --resume --out {args.out} goes on"
        raise


def load_model(args, start):
    """(the LM to change, and with Task Vector its weights as they are, else None), with adapters under --lora."""
    lm, theta = baselines.prepare(evaluate.load(args, start, trained=not args.lora), args, evaluate.load)
    if args.lora:
        models.add_adapters(lm.model, args.lora, args.seed)
    return lm, theta


def describe(args, lm, forget, retain):
    """What run.json says of the examples."""
    described = {"data": {"forget set": digest(forget), "retain set": digest(retain)}}
    if args.subset:
        described["subset_rows"] = rows_of_subset(args, lm)
    return described


def unlearn(lm, theta, forget, retain, args, notebook, start):
    """Change lm.model by args.method, and save it. When it diverges, it is saved as it was before that step; of Task
    Vector, whose result is not what it trains, nothing is."""
    loop = baselines.train_rmu if args.method == "rmu" else train
    try:
        if not args.finetuned:
            loop(lm.model, forget, retain, args, notebook)
    except runs.Diverged as error:
        if theta:
            raise InputError(f"{error}. Its fine-tuning ended there, so no model was saved") from None
        save(lm, args, start)
        raise InputError(f"{error}. The model as it was before that step is in {args.out}") from None
    if theta and not args.finetuned:
        baselines.subtract(theta, lm.model, args)
    save(lm, args, start)


def save(lm, args, start):
    """Save lm.model as an ordinary folder: its adapters, if any, are added to the weights as the files of `start` hold
    them, which may be finer than those in memory."""
    model = lm.model
    if args.lora:
        model.cpu()
        model, _ = models.load_model(start, torch.device("cpu"), getattr(torch, args.dtype), args.tokenizer)
        models.merge(lm.model, model)
    runs.save_model(args.out, model, lm.tokenizer)


def settings_of(args, start):
    """What run.json says at first."""
    method = METHODS[args.method]
    return runs.settings_of(args, start, (method.name, method.colour))


def after_epoch(args, lm, sets, logs, retrained):
    """What --eval epoch does after each: a line of epochs.jsonl, and one on the screen."""

    benchmark = BENCHMARKS[args.task]

    def measure(epoch):
        logs[args.method] = benchmark.measure(lm, sets)
        metrics = benchmark.summarize(logs[args.method], retrained)
        runs.append_json(args.out / "epochs.jsonl", {"epoch": epoch, **metrics})
        tqdm.write("  ".join([f"epoch {epoch}", *(column.words(metrics) for column in benchmark.over_epochs)]))
        data.make_deterministic(lm.model)  # gradient checkpointing is on again, which measuring switched off

    return measure


def look_for_target(args, lm, sets, before, retrained):
    """What --forget-until target asks now and then: whether forgetting has come far enough. The first time that it has
    is said on the screen.

    before: the log of the model before unlearning.
    """
    look, said = BENCHMARKS[args.task].look(lm, sets, before, retrained), []

    def at_target():
        words = look()
        data.make_deterministic(lm.model)  # as above
        if words and not said:
            said.append(words)
            tqdm.write(f"{words}: forgetting is held there")
        return bool(words)

    return at_target


def finish(args, settings, lm, sets, logs, retrained, quiet):
    """After training: measure, write, show."""
    benchmark = BENCHMARKS[args.task]
    if sets:
        logs[args.method] = logs.get(args.method) or benchmark.measure(lm, sets)
        lm.model.cpu()
        evaluate.ask_retrained(args, logs)
        metrics = evaluate.write_metrics(args, logs, retrained, settings["cost"])
        if not quiet:
            evaluate.report(args, logs, metrics, retrained)
    runs.write_settings(args.out, settings | {"sums": folder.sums_of(args.out)})
    if processes.first():
        label, values_of = benchmark.spread
        values = {name: values_of(benchmark.compared_part(log)) for name, log in logs.items()}
        compare.draw_run(args.out, values, label)
    if not quiet and args.eval == "epoch" and args.method != "finetune" and "Original" in logs:
        print(evaluate.best_epoch(benchmark, read_json(args.out / "epochs.jsonl"), metrics["Original"]))
    if not quiet:
        print(f"\nmodel, logs{', metrics' if sets else ''} and run.png are in {args.out}")


# ------------------------------------------------------------------ Original and Retrain, made from scratch


def teach(args, split, name):
    """Folder of a run that taught a new model `split`: Original for full, else Retrain. Made once, and kept.

    name: what is printed.
    """
    # the flags of that run
    given = build_parser().parse_args([])
    given.method, given.model, given.split = "finetune", "new", split
    given.eval = "none" if args.eval == "none" else "end"
    handed_on = ["task", "data", "seed", "template", "max_length", "too_long", "dtype", "device"]
    for flag in handed_on if args.eval == "none" else [*handed_on, "max_new_tokens"]:
        setattr(given, flag, getattr(args, flag))
    lesson = resolve(given)
    if split == "full" and args.never_learnt:
        lesson.never_learnt, lesson.forget_split = args.never_learnt, args.forget_split

    # its folder, by the rows and the flags that decide its weights, not by the code
    benchmark = BENCHMARKS[args.task]
    splits = benchmark.tokenizer_split, split
    rows = [training_rows(lesson, each, None, base_knowledge=True) for each in splits]
    training = "lr", "epochs", "batch_size", "warmup", "weight_decay", "clip"
    decisive = *training, "template", "max_length", "too_long", "dtype"
    recipe = [getattr(lesson, flag) for flag in decisive]
    kind = f"{args.task}-{split}-seed{args.seed}"
    lesson.out = cache.path_of(kind, [rows, benchmark.size, *recipe])
    flag = "model" if split == "full" else "retrain"
    hint = f"in fewer: --method finetune --model new --split {split} --epochs N --out DIR, and --{flag} DIR"
    return cache.make(lesson, lambda lesson: run(lesson, "new", quiet=True), name, hint)


def start(args):
    """The run that the user asked for; before it, with --model tiny, up to two that make Original and Retrain."""
    benchmark = BENCHMARKS[args.task]
    runs.choose_folder(args)
    if args.retrain and args.retrain.endswith(".json"):
        benchmark.read_retrained(args.retrain)
    if "refusal" in METHODS[args.method].reads:
        check_questions(args)

    if args.model == "tiny" and benchmark.data_of:
        print(
            "no --model: a small one is made from scratch out of your files, to show how it goes; "
            "give --model the one that is to forget",
            flush=True,
        )

    original = args.model
    if args.model == "tiny" and not (args.resume and folder.is_finished(args.out)):
        original = teach(args, "full", "[1/3] Original")
        if not args.retrain and args.eval != "none" and can_retrain(args):
            args.retrain = teach(args, benchmark.retain_split(args.forget_split), "[2/3] Retrain")
        print(f"[3/3] {args.method}: Original {'learns' if args.method == 'finetune' else 'forgets'} {args.split}")
    run(args, original)


def can_retrain(args):
    """Whether there is anything that a retrained model could learn."""
    return not isinstance(args.data, dict) or "retain" in args.data


def check_questions(args):
    """InputError unless the forget set is questions, which a refusal can answer."""
    if not all("question" in row for row in training_rows(args, args.split, args.forget_file)):
        raise InputError(
            f"--method {args.method} refuses to answer questions, and these data are running text; use another method"
        )


# ------------------------------------------------------------------ the command


def defaults_of(given):
    """{flag: default} of every flag that has one, from what the user gave."""
    values = flags.defaults(given, BENCHMARKS) | {"method": given.method or "simnpo", "seed": 0, "eval": "end"}
    benchmark, method = BENCHMARKS[values["task"]], METHODS[values["method"]]
    values["model"] = given.model or benchmark.model
    split = given.split or values["split"]
    family = folder.family_of(values["model"])
    filled = recipe(values["task"], family, split, values["method"])
    if benchmark.scaled and family not in ("tiny", "new"):
        chosen = {flag: value for flag, value in vars(given).items() if value is not None}
        filled["forget_until"] = "end" if flags.without_target(values | chosen, benchmark) else "target"
        filled |= benchmark.scaled(values | {"forget_until": filled["forget_until"]} | chosen)

    # what does not go with what the user gave
    unused = flags.of_some(METHODS) - set(method.flags)
    if given.finetuned:
        unused |= set(flags.TRAINING)
    if given.epochs is not None:
        unused.add("max_steps")
    if given.warmup is not None:
        unused.add("warmup_share")
    if given.lora:
        filled["lr"] = round(LORA_RATE * filled["lr"], 9)  # 0.006, not 0.005999999999999999
    batch_size = given.batch_size or filled["batch_size"]
    filled["micro_batch_size"] = min(filled["micro_batch_size"], batch_size)  # the recipe's; the user's own is checked
    filled = {flag: value for flag, value in filled.items() if flag not in unused}
    return values | filled | {"recipe": [*filled]}


def resolve(given):
    """The resolved flags, from those that the user gave. InputError for what does not go together."""
    return flags.resolve(flags.fill(given, defaults_of(given)), METHODS, BENCHMARKS)


def build_parser():
    methods = "\n".join(f"    {flag:11s}  {method.name}: {method.about}" for flag, method in METHODS.items())
    parser = flags.parser("train.py", __doc__ + methods)
    flags.add_what(parser, METHODS, BENCHMARKS)
    flags.add_data(parser)
    flags.add_recipe(parser, METHODS)
    flags.add_run(parser)
    return parser


def main(argv=None):
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    run_command(parser, start, lambda words: resolve(flags.parse(parser, words, defaults_of)), words, processes.job)


if __name__ == "__main__":
    main()
