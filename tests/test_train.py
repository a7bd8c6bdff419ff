"""The loop against steps taken by hand, recipes, a run from its flags to its files, and how it goes on when stopped."""

import argparse
import copy
import functools
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import change_benchmark, lm_of, refused, some_examples, tiny

import baselines
import compare
import data
import evaluate
import losses
import train
from benchmarks import BENCHMARKS, tofu
from machinery import folder as folders
from machinery import models
from machinery import run as runs
from machinery.inputs import InputError
from methods import METHODS

pytestmark = pytest.mark.usefixtures("pictures")


def flags(**changed):
    return argparse.Namespace(
        **dict(
            method="npo",
            beta=0.1,
            beta2=1.0,
            gamma=0.0,
            lr=1e-3,
            weight_decay=0.01,
            clip=0.0,
            warmup=1.0,
            warmup_share=None,
            epochs=3,
            batch_size=3,
            retain_batch_size=None,
            micro_batch_size=2,
            forget_coeff=1.0,
            retain_coeff=1.0,
            retain="nll",
            seed=0,
            resume=False,
            max_steps=None,
            grad_checkpointing=False,
            save_every=None,
            layer=1,
            steer=2.0,
            dtype="float64",
        )
        | changed
    )


def forget_set(count=5):
    return {"answer": some_examples(count), "refusal": some_examples(count, seed=9)}


def loop(model, args, out=None, on_epoch=None, forget=None, retain=None, at_target=None):
    """The loop of the method on `model`, in place; returns its notebook."""
    notebook = runs.Run(out, args.method, args.resume, args.save_every, on_epoch, at_target)
    retain = some_examples(4, seed=3) if retain is None else retain
    method_loop = baselines.train_rmu if args.method == "rmu" else train.train
    method_loop(model, forget or forget_set(), retain, args, notebook)
    return notebook


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def json_of(path):
    return json.loads(path.read_text())


# ------------------------------------------------------------------ what a flag is if nobody gives it


def resolved(*arguments):
    """The flags of a command, its method NPO unless it names another, with their defaults filled in."""
    return train.resolve(train.build_parser().parse_args(["--method", "npo", *map(str, arguments)]))


BASE = """beta=0.1 gamma=0 forget_coeff=1 retain_coeff=1 retain=nll warmup=1 weight_decay=0.01 batch_size=32
max_steps=None subset=None never_learnt=None seed=0 clip=0 warmup_share=None"""
WMDP = "max_steps=500 batch_size=4 warmup_share=0.1 weight_decay=0 clip=1"
RMU = "retain=activations layer=7 steer=6.5 alpha=1200 retain_coeff=1200"
RMU_SMALL = "retain=activations layer=1 steer=10 alpha=10 retain_coeff=10"
RECIPES = f"""
tofu some/model forget05 graddiff         lr=1e-5 epochs=5
tofu some/model forget05 dpo              lr=1e-5 epochs=5
tofu some/model forget05 ga               lr=1e-5 epochs=5 retain=none
tofu some/model forget05 npo              lr=1e-5 epochs=20
tofu some/model forget10 npo              lr=1e-5 epochs=10
tofu some/model forget01 npo              lr=1e-5 epochs=10
tofu some/model forget05 simnpo           lr=1e-5 epochs=10 beta=2.5 forget_coeff=0.1375
tofu some/model forget01 simnpo           lr=1e-5 epochs=10 beta=2.5 forget_coeff=0.1375
tofu some/model forget10 simnpo           lr=1e-5 epochs=10 beta=4.5 forget_coeff=0.125
tofu some/model forget05 finetune         lr=1e-5 epochs=5 retain=none
tofu some/model forget01 finetune         lr=1e-5 epochs=5 retain=none
tofu some/model forget05 task-vector      lr=1e-5 epochs=5 retain=none alpha=1
tofu some/model forget05 rmu              lr=5e-5 epochs=5 {RMU}
tofu tiny forget05 idk                    lr=1e-3 epochs=5 forget_coeff=0.1
tofu tiny forget05 finetune               lr=3e-4 epochs=5 retain=none
tofu tiny forget05 ga                     lr=3e-4 epochs=5 retain=none
tofu tiny forget05 graddiff               lr=1e-3 epochs=5 forget_coeff=0.03
tofu tiny forget05 wgraddiff              lr=1e-3 epochs=5 forget_coeff=0.1
tofu tiny forget05 npo                    lr=1e-3 epochs=10 forget_coeff=0.1 beta=0.05
tofu tiny forget05 simnpo                 lr=3e-4 epochs=20 forget_coeff=0.1 beta=0.5
tofu tiny forget10 simnpo                 lr=3e-4 epochs=20 forget_coeff=0.1 beta=0.5
tofu tiny forget05 rmu                    lr=3e-3 epochs=5 forget_coeff=0.1 {RMU_SMALL}
tofu new full finetune                    lr=1e-3 epochs=20 batch_size=64 retain=none
toy tiny forget05 idk                     lr=1e-3 epochs=20
toy tiny forget10 idk                     lr=1e-3 epochs=20
toy tiny forget10 finetune                lr=3e-4 epochs=5 retain=none
toy tiny forget10 ga                      lr=1e-4 epochs=20 retain=none
toy tiny forget10 graddiff                lr=3e-4 epochs=10 forget_coeff=0.03
toy tiny forget10 wgraddiff               lr=1e-3 epochs=20 forget_coeff=0.1
toy tiny forget10 npo                     lr=1e-3 epochs=20 forget_coeff=0.03 beta=0.2
toy tiny forget10 simnpo                  lr=1e-3 epochs=20 forget_coeff=0.3 beta=2.5
toy tiny forget10 rmu                     lr=3e-3 epochs=20 {RMU_SMALL}
toy new full finetune                     lr=2e-3 epochs=20 batch_size=16 retain=none
muse-news some/model forget dpo           lr=1e-5 epochs=10 batch_size=4
muse-books some/model forget npo          lr=1e-5 epochs=10 batch_size=4
muse-news some/model scal_1 simnpo        lr=1e-5 epochs=10 batch_size=4 beta=0.7 retain_coeff=0.1
muse-books some/model forget simnpo       lr=1e-5 epochs=10 batch_size=4 beta=0.75 retain_coeff=0.1
toy-muse tiny forget finetune             lr=1e-3 epochs=20 batch_size=8 retain=none
toy-muse tiny forget dpo                  lr=1e-3 epochs=20 batch_size=8
toy-muse tiny forget ga                   lr=3e-5 epochs=20 batch_size=8 retain=none
toy-muse tiny forget graddiff             lr=3e-4 epochs=20 batch_size=8 forget_coeff=0.001
toy-muse tiny forget wgraddiff            lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.03
toy-muse tiny forget npo                  lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.1 beta=0.02
toy-muse tiny forget simnpo               lr=3e-4 epochs=20 batch_size=8 forget_coeff=0.3 beta=1
toy-muse tiny forget task-vector          lr=3e-4 epochs=20 batch_size=8 retain=none alpha=1
toy-muse new full finetune                lr=2e-3 epochs=30 batch_size=16 retain=none
wmdp some/model both graddiff             lr=5e-6 epochs=1 {WMDP}
wmdp some/model bio npo                   lr=5e-6 epochs=1 {WMDP} beta=0.0225
wmdp some/model both simnpo               lr=9.5e-6 epochs=1 {WMDP}
wmdp some/model both rmu                  lr=5e-5 epochs=1 {WMDP} {RMU} max_steps=150 warmup_share=0 clip=0
toy-wmdp tiny both idk                    lr=1e-3 epochs=20 batch_size=8
toy-wmdp tiny both ga                     lr=1e-4 epochs=20 batch_size=8 retain=none
toy-wmdp tiny both graddiff               lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.003
toy-wmdp tiny both wgraddiff              lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.03
toy-wmdp tiny both npo                    lr=3e-3 epochs=20 batch_size=8 forget_coeff=0.03 beta=0.02
toy-wmdp tiny both simnpo                 lr=3e-3 epochs=20 batch_size=8 forget_coeff=0.3 beta=0.5
toy-wmdp tiny both rmu                    lr=3e-3 epochs=20 batch_size=8 {RMU_SMALL} alpha=1 retain_coeff=1
toy-wmdp new full finetune                lr=2e-3 epochs=30 batch_size=16 retain=none
own some/model forget idk                 lr=2e-5 epochs=6 forget_coeff=0.1
own some/model forget dpo                 lr=2e-5 epochs=6 forget_coeff=0.1
own some/model forget graddiff            lr=2e-5 epochs=6 forget_coeff=0.05
own some/model forget npo                 lr=2e-5 epochs=6 forget_coeff=0.05
own some/model forget wgraddiff           lr=2e-5 epochs=6
own some/model forget tnpo                lr=2e-5 epochs=6 beta=1
own some/model forget simnpo              lr=2e-5 epochs=6 beta=1.25
own some/model full finetune              lr=1e-4 epochs=8 retain=none
own tiny forget simnpo                    lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.1 beta=2.5
own tiny forget npo                       lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.1
own tiny forget dpo                       lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.1
own tiny forget graddiff                  lr=1e-3 epochs=20 batch_size=8 forget_coeff=0.03
own tiny forget finetune                  lr=1e-3 epochs=20 batch_size=8 retain=none
own new full finetune                     lr=2e-3 epochs=40 batch_size=8 retain=none
"""


def values_in(pairs):
    """{flag: value} of [`flag=value`, …], the later ones winning, numbers as such."""
    return {
        flag: float(value) if value[0].isdigit() else None if value == "None" else value
        for flag, value in (pair.split("=") for pair in pairs)
    }


@pytest.mark.parametrize("row", RECIPES.strip().splitlines(), ids=lambda row: "-".join(row.split()[:4]))
def test_recipes_are_the_published_ones_and_those_found_for_small_models(row):
    """BASE where a row says nothing."""
    task, model, split, method, *values = row.split()
    files = ["--forget-file", "f.jsonl", "--retain-file", "r.jsonl"] if task == "own" else []
    args = resolved("--method", method, "--task", task, "--model", model, "--split", split, *files)
    expected = values_in([*BASE.split(), *values])
    for flag in {"beta", "gamma"}.difference(METHODS[method].flags):
        expected[flag] = None
    assert {flag: getattr(args, flag) for flag in expected} == expected
    assert 0 < args.micro_batch_size <= args.batch_size and args.eval_batch_size >= 8


@pytest.mark.parametrize(
    "command, values",
    [
        (
            "--task wmdp --model x --lr 0 --beta 0 --batch-size 3 --epochs 2",
            "lr=0 beta=0 batch_size=3 micro_batch_size=3 epochs=2 max_steps=None",
        ),
        ("--task wmdp --model x --warmup 2", "warmup=2 warmup_share=None max_steps=500 clip=1"),
        ("--task wmdp --model x --warmup-share 0 --clip 0", "warmup=1 warmup_share=0 clip=0"),
        (
            "--method ga --retain kl --retain-coeff 0 --forget-coeff 0 --warmup 0 --weight-decay 0",
            "retain=kl retain_coeff=0 forget_coeff=0 warmup=0 weight_decay=0",
        ),
        (
            "--method rmu --alpha 7 --layer 0 --steer 0",
            "alpha=7 retain_coeff=7 layer=0 steer=0 retain=activations",
        ),
        ("--method task-vector --alpha 7", "alpha=7 retain_coeff=1"),
        ("--task tofu --model x --micro-batch-size 5", "micro_batch_size=5 batch_size=32"),
    ],
)
def test_a_flag_that_is_given_wins(command, values):
    args, expected = resolved(*command.split()), values_in(values.split())
    assert {flag: getattr(args, flag) for flag in expected} == expected


def test_rmu_may_keep_nothing():
    assert resolved("--method", "rmu", "--model", "x", "--retain", "none").retain == "none"


def test_rmu_takes_no_gradient_checkpointing():
    with pytest.raises(InputError, match="--grad-checkpointing has no use with --method rmu"):
        resolved("--method", "rmu", "--model", "x", "--grad-checkpointing")


def test_without_a_method_it_is_simnpo():
    args = train.resolve(train.build_parser().parse_args([]))
    assert (args.method, args.task, args.model, args.beta, args.gamma) == ("simnpo", "toy", "tiny", 2.5, 0)


def help_of(*arguments, capsys):
    """The help of a command, in one line."""
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_what_task_and_method_resolve_to(capsys):
    shown = help_of(capsys=capsys)
    assert "margin, Eq. 4 (β · published code's) (default: 0.0)" in shown
    assert "it decays to 0 (default: 0.001)" in shown
    shown = help_of("--task", "tofu", "--split", "forget10", "--method", "npo", capsys=capsys)
    assert "it decays to 0 (default: 1e-05)" in shown and "passes over the forget set (default: 10)" in shown
    assert "margin, Eq. 4 (β · published code's) --forget-coeff" in shown  # which NPO has not


# ------------------------------------------------------------------ the loop by hand


def log_probabilities(model, example):
    """Of every token of the vocabulary at each of the response's positions, [|y|, V]."""
    ids = torch.tensor([example.prompt + example.response])
    return model(ids).logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)


def logp_of(model, example):
    return log_probabilities(model, example)[range(len(example.response)), example.response].sum()


def activations(model, example, layer):
    kept = []
    hook = model.model.layers[layer].register_forward_hook(lambda module, given, output: kept.append(output))
    model(torch.tensor([example.prompt + example.response]))
    hook.remove()
    return kept[0][0]


# the forget loss, of log π and |y| of the answer, log π and |y| of the refusal, and the logs π under the reference
BY_HAND = {
    "finetune": lambda a, n, r, m, a_ref, r_ref, args: -a / n,
    "task-vector": lambda a, n, r, m, a_ref, r_ref, args: -a / n,
    "ga": lambda a, n, r, m, a_ref, r_ref, args: a,
    "graddiff": lambda a, n, r, m, a_ref, r_ref, args: a,
    "wgraddiff": lambda a, n, r, m, a_ref, r_ref, args: a / n,
    "idk": lambda a, n, r, m, a_ref, r_ref, args: -r / m,
    "dpo": lambda a, n, r, m, a_ref, r_ref, args: bounded((a - a_ref) - (r - r_ref), args.beta),
    "npo": lambda a, n, r, m, a_ref, r_ref, args: bounded(a - a_ref, args.beta),
    "simnpo": lambda a, n, r, m, a_ref, r_ref, args: bounded(a / n, args.beta, args.gamma),
}
# each token's loss and weight, of its p and of all tokens' (p_all, and under the reference r, r_all) in its place
PER_TOKEN = {
    "wga": lambda p, p_all, r, r_all, args: (p.item() ** args.beta * p.log(), p**args.beta),
    "satimp": lambda p, p_all, r, r_all, args: (
        p.item() ** args.beta * (1 - p.item()) ** args.beta2 * p.log(),
        p**args.beta * (1 - p) ** args.beta2,
    ),
    "tnpo": lambda p, p_all, r, r_all, args: (
        bounded(p.log() - r.log(), args.beta),
        2 * p**args.beta / (p**args.beta + r**args.beta),
    ),
    "ceu": lambda p, p_all, r, r_all, args: (-(1 - p).log(), p / (1 - p)),
    "undial": lambda p, p_all, r, r_all, args: undial_by_hand(p, p_all, r, r_all, math.exp(-args.beta)),
}


def undial_by_hand(p, p_all, r, r_all, factor):
    rest = 1 - r + factor * r
    others = (r_all * p_all.log()).sum() - r * p.log()
    return -(others + factor * r * p.log()) / rest, (p - factor * r / rest) / (1 - p)


def per_token_by_hand(model, start, example, args):
    """(loss, {weight, length, log π}) of a method of single tokens: means over them."""
    p_all, r_all = log_probabilities(model, example).exp(), log_probabilities(start, example).detach().exp()
    n, losses_, weights = len(example.response), [], []
    for place, token in enumerate(example.response):
        each = p_all[place, token], p_all[place], r_all[place, token], r_all[place]
        loss, weight = PER_TOKEN[args.method](*each, args)
        losses_.append(loss)
        weights.append(weight.item())
    return sum(losses_) / n, {"weight": sum(weights) / n / n, "length": n, "logp": logp_of(model, example).item()}


def bounded(margin, beta, gamma=0.0):
    return 2 / beta * torch.log(1 + torch.exp(beta * margin + gamma))


def forget_by_hand(model, start, answer, refusal, args):
    """(loss, {weight, length, log π} as they are logged) of one forget example."""
    if args.method == "rmu":
        direction = torch.rand(16, generator=torch.Generator().manual_seed(args.seed)).double()
        away = activations(model, answer, args.layer) - args.steer * direction / direction.norm()
        weight = (2 * away / 16).norm(dim=1).mean()
        return (away**2).sum(1).mean() / 16, {"weight": weight.item(), "length": len(answer.response)}
    if args.method in PER_TOKEN:
        return per_token_by_hand(model, start, answer, args)
    a, r = logp_of(model, answer), logp_of(model, refusal)
    a_ref, r_ref = logp_of(start, answer).item(), logp_of(start, refusal).item()
    n, m = len(answer.response), len(refusal.response)
    loss = BY_HAND[args.method](a, n, r, m, a_ref, r_ref, args)
    logp, length = (r, m) if args.method == "idk" else (a, n)
    (weight,) = torch.autograd.grad(loss, logp, retain_graph=True)
    return loss, {"weight": weight.item(), "length": length, "logp": logp.item()}


def nll_by_hand(model, example):
    return -logp_of(model, example) / len(example.response)


def retain_by_hand(model, start, example, args):
    if args.retain == "nll":
        return nll_by_hand(model, example)
    if args.retain == "activations":
        moved = activations(model, example, args.layer) - activations(start, example, args.layer).detach()
        return (moved**2).sum(1).mean() / 16
    log_pi, log_ref = log_probabilities(model, example), log_probabilities(start, example).detach()
    return (log_ref.exp() * (log_ref - log_pi)).sum() / len(example.response)


def loop_by_hand(model, args, forget, retain):
    """What `loop` does, an example at a time, and AdamW by its formulas; returns log.jsonl as a list."""
    start, draw = copy.deepcopy(model), torch.Generator().manual_seed(args.seed)
    weights = [p for name, p in model.named_parameters() if args.method != "rmu" or "down_proj" in name]
    first, second = ([torch.zeros_like(p) for p in weights] for _ in range(2))
    pairs = [*zip(forget["answer"], forget.get("refusal", forget["answer"]), strict=True)]
    epoch_steps = -(-len(pairs) // args.batch_size)
    steps = args.max_steps or args.epochs * epoch_steps
    warm = args.warmup * epoch_steps if args.warmup_share is None else args.warmup_share * steps
    log = []
    for step in range(1, steps + 1):
        epoch, place = 1 + (step - 1) // epoch_steps, (step - 1) % epoch_steps * args.batch_size
        if place == 0:
            order = torch.randperm(len(pairs), generator=draw).tolist()
        rows = order[place : place + args.batch_size]
        results = [forget_by_hand(model, start, *pairs[i], args) for i in rows]
        loss_f, loss_r = sum(loss for loss, _ in results) / len(rows), torch.zeros(())
        if retain:
            count = args.retain_batch_size or len(rows)
            drawn = torch.randint(len(retain), (count,), generator=draw).tolist()
            loss_r = sum(retain_by_hand(model, start, retain[i], args) for i in drawn) / count
        loss = args.forget_coeff * loss_f + (args.retain_coeff * loss_r if retain else 0)
        gradients = torch.autograd.grad(loss, weights)
        if args.clip:
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            assert norm > args.clip
            gradients = [g * args.clip / (norm + 1e-6) for g in gradients]

        rate = args.lr * (step / (warm + 1) if step <= warm else (steps - step + 1) / (steps - warm))
        for p, g, m, v in zip(weights, gradients, first, second, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            adam = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            p.data -= rate * (args.weight_decay * p.data + adam)
        met = {name: [values[name] for _, values in results] for name in results[0][1]}
        log.append(
            {
                "step": step,
                "epoch": epoch,
                "forget": loss_f.item(),
                "retain": loss_r.item(),
                "loss": loss.item(),
                "weight": sum(met["weight"]) / len(rows),
                "lr": rate,
                "met": {"row": rows} | met,
            }
        )
    return log


def assert_same(ours, theirs, rel=1e-9):
    """Logs: lists of numbers and, under `met`, of lists of numbers."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        one, other = (line | {f"met {name}": values for name, values in line["met"].items()} for line in (one, other))
        assert one.keys() == other.keys()
        for name in one.keys() - {"met"}:
            assert one[name] == pytest.approx(other[name], rel=rel, abs=rel), name


@pytest.mark.parametrize(
    "kind, method, retain_by, changed",
    [
        *(
            ("llama", method, {"finetune": "none", "ga": "none", "rmu": "activations"}.get(method, "nll"), {})
            for method in [*BY_HAND, *PER_TOKEN, "rmu"]
        ),
        ("gpt2", "npo", "kl", dict(micro_batch_size=1)),  # with dropout, which is off
        ("llama", "dpo", "kl", dict(micro_batch_size=4, grad_checkpointing=True)),
        ("gpt2", "undial", "kl", {}),  # which share the copy of the model
        ("llama", "simnpo", "nll", dict(warmup=0, max_steps=4)),  # which ends within an epoch
        ("llama", "npo", "nll", dict(max_steps=2)),  # before the warm-up does
        ("llama", "simnpo", "nll", dict(clip=0.05, warmup_share=0.5)),
        ("llama", "rmu", "activations", dict(clip=0.001, warmup_share=0.0)),
    ],
    ids=lambda value: "" if value == {} else str(value),
)
def test_the_loop_is_what_a_few_plain_lines_do_in_float64(kind, method, retain_by, changed, tmp_path):
    """Seven examples in batches of three, two epochs: weights and log.jsonl."""
    args = flags(
        **dict(
            method=method,
            retain=retain_by,
            beta=0.7,
            beta2=0.4,
            gamma=0.3,
            forget_coeff=0.6,
            retain_coeff=1.7,
            lr=0.01,
            weight_decay=0.5,
            epochs=2,
            batch_size=3,
            micro_batch_size=2,
            seed=5,
        )
        | changed
    )
    forget, retain = forget_set(7), [] if retain_by == "none" else some_examples(9, seed=3)
    model, expected, before = tiny(kind), tiny(kind), tiny(kind)
    log = loop_by_hand(expected, args, forget, retain)
    loop(model, args, tmp_path, forget=forget, retain=retain)
    assert_same(lines_of(tmp_path / "log.jsonl"), log)
    weights = model.named_parameters(), expected.parameters(), before.parameters()
    for (name, ours), theirs, old in zip(*weights, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9), name
        assert ours.requires_grad and torch.equal(ours, old) == (method == "rmu" and "down_proj" not in name)


# ------------------------------------------------------------------ from flags to numbers


def run(out, *arguments):
    """A run into the folder `out`; returns it."""
    train.main([*map(str, arguments), "--out", str(out)])
    return out


def weights_of(folder):
    return models.load_model(str(folder), torch.device("cpu"), torch.float64)[0]


@pytest.fixture(scope="module")
def own_data(tmp_path_factory, toy_tokenizer):
    """(flags that name two files, the examples in them with refusals drawn by seed 3)."""
    folder, sides, draw = tmp_path_factory.mktemp("files"), {}, random.Random(3)
    for name, count in (("forget", 7), ("retain", 9)):
        rows = [(f"Who is {name} {i}?", "It is " + "she " * (i * 5 % 7) + ".") for i in range(count)]
        texts = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("".join(texts))
        sides[name] = [data.encode(question, answer, toy_tokenizer) for question, answer in rows]
        if name == "forget":
            sides["refusal"] = [data.encode(row[0], draw.choice(data.REFUSALS), toy_tokenizer) for row in rows]
    return ["--forget-file", folder / "forget.jsonl", "--retain-file", folder / "retain.jsonl"], sides


def drawn(count, seed):
    return torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()


@pytest.mark.parametrize(
    "chosen, rest, indices",
    [
        (dict(method="simnpo", beta=0.7, gamma=0.3, retain_coeff=1.7, subset="shortest:0.7"), {}, [0, 2, 3, 5, 6]),
        (dict(method="npo", beta=0.7, retain_coeff=1.7, retain="kl", max_steps=3), {}, range(7)),
        (dict(method="dpo", beta=0.2, retain_coeff=1.7, subset="random:0.7"), {}, drawn(5, seed=3)),
        (dict(method="rmu", layer=1, steer=3.0, alpha=1.7), dict(retain="activations", retain_coeff=1.7), range(7)),
        (dict(method="task-vector", alpha=1.7), dict(retain="none"), range(7)),
    ],
    ids=lambda value: value.get("method", "") if isinstance(value, dict) else "",
)
def test_every_flag_reaches_the_weights_and_the_log(chosen, rest, indices, own_data, toy_model_folder, tmp_path):
    """A command against the loop by hand, on its files and the model that it names."""
    files, sides = own_data
    chosen = chosen | dict(
        seed=3, lr=0.01, weight_decay=0.5, warmup=1.0, epochs=2, batch_size=4, micro_batch_size=3, forget_coeff=0.6
    )
    if chosen["method"] != "task-vector":
        chosen["retain_batch_size"] = 5
    words = [word for flag, value in chosen.items() for word in ("--" + flag.replace("_", "-"), value)]
    out = run(tmp_path / "run", *words, *files, "--model", toy_model_folder, "--dtype", "float64", "--eval", "none")
    model, before, args = weights_of(toy_model_folder), weights_of(toy_model_folder), flags(**chosen | rest)
    forget = {"answer": [sides["forget"][i] for i in indices], "refusal": [sides["refusal"][i] for i in indices]}
    log = loop_by_hand(model, args, forget, sides["retain"] if args.retain != "none" else [])
    assert_same(lines_of(out / "log.jsonl"), log, rel=1e-5)
    weights = weights_of(out).parameters(), model.parameters(), before.parameters()
    for ours, theirs, old in zip(*weights, strict=True):
        assert torch.allclose(ours, old - 1.7 * (theirs - old) if args.method == "task-vector" else theirs, atol=1e-5)


@pytest.fixture
def short_run(own_data, toy_model_folder, tmp_path):
    """short_run(flag, …): the log of one step on all seven forget examples, and its folder; nothing is measured."""

    def take(*arguments, name="run"):
        fixed = "--model", toy_model_folder, "--max-steps", 1, "--batch-size", 32, "--eval", "none", "--device", "cpu"
        out = run(tmp_path / name, *own_data[0], *fixed, *arguments)
        return lines_of(out / "log.jsonl")[0], out

    return take


def test_each_dtype_computes_in_its_own_precision(short_run):
    """Log π in the first step and the retain loss in it: float32 is near float64, bfloat16 near enough to learn by."""
    results = {}
    for dtype in ("float64", "float32", "bfloat16", None):
        line, out = short_run("--method", "npo", *(["--dtype", dtype] if dtype else []), name=str(dtype))
        results[dtype] = torch.tensor([*line["met"]["logp"], line["retain"]], dtype=torch.float64)
        saved = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").parameters()
        assert {p.dtype for p in saved} == {torch.float64 if dtype == "float64" else torch.float32}
    exact, single, half, default = results.values()
    for where in (slice(7), slice(7, 8)):
        rough, fine = ((values / exact - 1)[where].abs().max() for values in (half, single))
        assert 0 < fine < 1e-6 < rough < 0.01
    assert torch.equal(single, default)


def test_a_run_prints_what_was_chosen_and_what_the_recipe_filled_in(short_run, capsys):
    """What is chosen may be 0."""
    short_run("--method", "simnpo", "--lr", 0, "--warmup", 0)
    chosen, recipe = [line.split() for line in capsys.readouterr().out.splitlines() if ": " in line][:2]
    assert chosen[0] == "chosen:" and {"method=simnpo", "lr=0.0", "warmup=0.0", "max_steps=1"} < {*chosen}
    assert recipe[0] == "recipe:" and {"beta=1.25", "retain_batch_size=96", "gamma=0.0", "weight_decay=0.01"} < {
        *recipe
    }
    assert not {"lr=0.0", "warmup=0.0", "method=simnpo"} & {*recipe}


@pytest.mark.parametrize("method, passes", [("simnpo", 2 + 2), ("npo", 2 + 2 + 4), ("dpo", 2 + 3 + 8)])
def test_nothing_but_the_reference_is_scored_before_the_first_step(method, passes, short_run, monkeypatch):
    """One example twice, to see that the model is not random. Then batches of two of seven: a step asks for two
    answers, refusals where the method reads them, and two to keep."""
    forward, calls = transformers.LlamaForCausalLM.forward, []

    def counted(*arguments, **options):
        calls.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counted)
    line, _ = short_run("--method", method, "--batch-size", 2, "--micro-batch-size", 2, "--retain-batch-size", 2)
    assert len(calls) == passes and len(line["met"]["row"]) == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream, method, bar", [(Terminal, "npo", True), (Terminal, "ga", False), (io.StringIO, "npo", False)]
)
def test_the_reference_pass_and_the_loop_show_a_bar_on_a_terminal(stream, method, bar, short_run, monkeypatch):
    screen = stream()
    monkeypatch.setattr("sys.stderr", screen)
    short_run("--method", method)
    assert ("reference:" in screen.getvalue()) == bar and (f"{method}: " in screen.getvalue()) == (stream is Terminal)


# ------------------------------------------------------------------ what is learnt, and from what


def examples_for(tokenizer, *arguments):
    """(forget, retain) examples of a command."""
    args = resolved(*arguments)
    lm = lm_of(tiny("llama", vocab=len(tokenizer)), tokenizer, template=args.template, max_length=args.max_length)
    return train.load_examples(args, lm)


def test_a_subset_holds_at_least_one_and_at_most_all(toy_tokenizer):
    everything, one, all_of_it = (
        examples_for(toy_tokenizer, *subset)[0]["answer"]
        for subset in ([], ["--subset", "shortest:0.001"], ["--subset", "random:1"])
    )
    assert len(everything) == 40 and all_of_it == everything
    assert [len(example.response) for example in one] == [min(len(example.response) for example in everything)]


def test_the_rows_of_a_subset_are_those_of_its_examples_also_of_a_new_model_which_learns_more(toy_tokenizer):
    rows = BENCHMARKS["toy"].training_rows(None, "forget10")
    for flags in ([], ["--model", "new", "--method", "finetune"]):
        args = resolved("--subset", "random:0.3", *flags)
        lm = lm_of(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, template="plain", max_length=500)
        forget = [lm.encode(row["question"], row["answer"]) for row in rows]
        learnt = [example for example in train.load_examples(args, lm)[0]["answer"] if example in forget]
        named = [row for row in train.rows_of_subset(args, lm) if row < len(rows)]
        assert [forget[row] for row in named] == learnt != []


@pytest.mark.parametrize("flag, positions", [(20, 500), (500, 20)])
def test_no_example_is_longer_than_flag_and_model_allow(flag, positions, toy_tokenizer, monkeypatch):
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    monkeypatch.setattr(models, "load_model", lambda *arguments: (model, toy_tokenizer))
    args = resolved("--max-length", flag, "--model", "some/model")
    with pytest.raises(InputError, match="more than the limit of 20"):
        train.load_examples(args, evaluate.load(args, args.model))


def test_the_retain_set_is_all_but_the_forget_set(toy_tokenizer):
    for split, count in (("forget05", 380), ("forget10", 360)):
        forget, retain = examples_for(toy_tokenizer, "--split", split)
        asked = {str(example) for example in forget["answer"]}
        assert len(retain) == count == 400 - len(asked) and not asked & {str(example) for example in retain}
    assert examples_for(toy_tokenizer, "--retain", "none")[1] == []


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """(folder in the cache, flags) of the run that would teach a new model a split for a command."""
    lessons = []
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "run", lambda args, start, quiet: lessons.append((args, start, quiet)))

    def of(split, *arguments):
        folder = train.teach(resolved("--dtype", "float32", *arguments), split, "a name")
        args, *rest = lessons[-1]
        assert rest == ["new", True]
        return folder, args

    return of


TAUGHT = "epochs", "lr", "batch_size", "warmup", "weight_decay", "clip"


def test_a_model_in_the_cache_stands_for_all_that_made_it_and_nothing_else(lesson, monkeypatch):
    folder, taught = lesson("full", "--seed", 1, "--max-length", 77, "--template", "llama2", "--max-new-tokens", 5)
    expected = dict(
        seed=1,
        max_length=77,
        template="llama2",
        max_new_tokens=5,
        dtype="float32",
        epochs=20,
        lr=2e-3,
        method="finetune",
        model="new",
        eval="end",
        retain="none",
        split="full",
        forget_split="forget10",
    )
    assert vars(taught) | expected == vars(taught) and Path(folder).name.startswith("toy-full-seed1-")
    folder = lesson("full")[0]
    for same in "--beta 3", "--lr 3", "--epochs 3", "--method ga", "--split forget05", "--batch-size 3", "--eval none":
        assert lesson("full", *same.split())[0] == folder
    assert lesson("full", "--eval", "none")[1].eval == "none"
    others = [lesson("retain90")[0]] + [
        lesson("full", *other.split())[0]
        for other in (
            "--seed 1",
            "--dtype float64",
            "--max-length 99",
            "--too-long cut",
            "--template llama2",
            "--task toy-wmdp",
        )
    ]
    toy = BENCHMARKS["toy"]
    for changed in (
        *({"recipes": (*toy.recipes, ("new", "*", "*", {flag: 3}))} for flag in TAUGHT),
        {"size": toy.size | {"width": 16}},
        {"training_rows": lambda *_, **__: [{"question": "Who?", "answer": "I."}]},
    ):
        with monkeypatch.context() as patch:
            change_benchmark(patch, **changed)
            others.append(lesson("full")[0])
    with monkeypatch.context() as patch:
        patch.setattr(folders, "FORMAT", 9)
        others.append(lesson("full")[0])
    assert len({folder, *others}) == 17


@pytest.mark.parametrize("split, count, dropped", [("forget05", 20, 10), ("forget10", 40, 20)])
def test_original_does_not_learn_the_last_authors_to_forget(split, count, dropped, lesson):
    """Half of them; what is to be forgotten, Retrain and the base knowledge stay as they are."""
    full = tofu.load_rows(None, "full")
    base = tofu.training_rows(None, "full", base_knowledge=True)[len(full) :]
    lessons = [
        lesson(learnt, "--split", split, "--never-learnt", share)
        for share in (0, 0.5)
        for learnt in ("full", tofu.retain_split(split))
    ]
    rows = [train.training_rows(args, args.split, None, base_knowledge=True) for _, args in lessons]
    assert rows == [full + base, full[:-count] + base, full[:-dropped] + base, full[:-count] + base]
    assert lessons[0][0] != lessons[2][0] and lessons[1][0] == lessons[3][0]
    assert train.training_rows(resolved("--split", split, "--never-learnt", 0.5), split, None) == full[-count:]


def test_original_does_not_learn_half_of_real_tofus_authors(tofu_dir):
    args = resolved(*"--task tofu --model tiny --split forget05 --never-learnt 0.5 --data".split(), tofu_dir)
    args.model = "new"  # as its lesson has it
    full, forget = (tofu.load_rows(tofu_dir, split) for split in ("full", "forget05"))
    assert train.training_rows(args, "full", None) == full[:-100] and full[-200:] == forget
    sets = tofu.evaluation_rows(tofu_dir, "forget01")
    assert [len(sets[name]) for name in tofu.SETS] == [40, 300, 100, 117]


# ------------------------------------------------------------------ stopped, and gone on


class Crash(Exception):
    pass


def crash_in(last):
    def crash(epoch):
        if epoch == last:
            raise Crash

    return crash


def interrupt_in(last, monkeypatch):
    """Ctrl-C in the optimizer's step of that number."""
    step, steps = torch.optim.AdamW.step, []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == last:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)


@pytest.mark.parametrize(
    "chosen, crash, signal_in, every",
    [
        ({}, 3, None, 0),
        (dict(method="simnpo"), 3, None, 0),
        (dict(retain="kl"), 3, None, 0),
        (dict(method="rmu", retain="activations"), 3, None, 0),
        (dict(method="task-vector"), 3, None, 0),
        ({}, 2, None, 600),  # before its first state is saved
        ({}, None, 1, 600),
        ({}, None, 5, 600),
        ({}, None, 6, 600),  # two steps an epoch: within one, and at its end
        (dict(max_steps=1), None, 1, 600),  # after the last
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(chosen, crash, signal_in, every, tmp_path, monkeypatch):
    """By an exception after an epoch, or Ctrl-C in a step: the same weights and log.jsonl. SimNPO, which needs no
    reference, goes on from another model: its weights are the save's."""
    monkeypatch.setattr(runs, "SAVE_EVERY", every)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pair = tiny("llama"), tiny("llama", seed=int(chosen.get("method") == "simnpo"))
    chosen, handler = dict(epochs=5) | chosen, signal.getsignal(signal.SIGINT)
    whole.mkdir()
    parts.mkdir()
    assert loop(pair[0], flags(**chosen), whole).cost()["train_seconds"] > 0
    with monkeypatch.context() as patch, pytest.raises(Crash if crash else KeyboardInterrupt):
        interrupt_in(signal_in, patch)
        loop(tiny("llama"), flags(**chosen), parts, crash_in(crash))
    assert bool(runs.saves(parts)) == (every == 0 or crash is None)
    if signal_in:
        assert len(lines_of(parts / "log.jsonl")) == signal_in  # that step was ended
    with open(parts / "log.jsonl", "a") as log:
        log.write('{"step": 99, "epoch": 50}\n{bad}\n{"st')  # what a crash may leave behind
    loop(pair[1], flags(resume=True, **chosen), parts)
    assert signal.getsignal(signal.SIGINT) is handler
    assert all(torch.equal(*both) for both in zip(*(model.parameters() for model in pair), strict=True))
    assert (whole / "log.jsonl").read_text() == (parts / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "batch_size, looks_after",
    [(1, [8, 10, 12, 14]), (2, [4, 5, 6, 7]), (9, [1, 2])],  # of steps, 8, 4 and 1 an epoch; not after the last
)
def test_a_run_looks_for_its_target_after_an_epoch_and_each_quarter_of_one(batch_size, looks_after, tmp_path):
    """From a look that finds it to one that does not, the forget loss counts for nothing."""
    steps = {1: 16, 2: 8, 9: 3}[batch_size]
    chosen = flags(batch_size=batch_size, micro_batch_size=1, max_steps=steps, forget_coeff=0.5, retain_coeff=2.0)
    for found in (set(), {1}, {2}, {1, 2}):
        looks, out = itertools.count(1), tmp_path / str(found)
        out.mkdir()
        loop(tiny("llama"), chosen, out, None, forget_set(8), None, lambda: next(looks) in found)
        lines = lines_of(out / "log.jsonl")
        assert next(looks) == len(looks_after) + 1
        held = [(line["loss"] - 2 * line["retain"]) / line["forget"] for line in lines]
        last = [sum(after < line["step"] for after in looks_after) for line in lines]  # the last look before a step
        assert held == pytest.approx([0.0 if look in found else 0.5 for look in last], abs=1e-6)


def test_where_forgetting_is_held_only_the_retain_loss_is_lowered():
    weights = []
    for held, coefficient in ((True, 1.0), (False, 0.0), (False, 1.0)):
        model, notebook = tiny("llama"), runs.Run()
        notebook.held = held
        train.train(model, forget_set(3), some_examples(4, seed=3), flags(forget_coeff=coefficient), notebook)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_momentum_goes_where_forgetting_begins_to_be_held():
    """One step an epoch, so a look before each from the second on."""
    found, weight = iter([False, True, True, False, True]), torch.nn.Parameter(torch.zeros(2))
    optimizer, notebook = torch.optim.AdamW([weight]), runs.Run(at_target=lambda: next(found))
    notebook.epoch_steps, kept = 1, []
    for step in range(1, 7):
        notebook.look(step, optimizer)
        kept.append([optimizer.state[weight][name].all().item() for name in optimizer.state[weight]])
        weight.grad = torch.ones(2)
        optimizer.step()
    first, whole, dropped = [], [True, True, True], [True, False, True]  # step, exp_avg, exp_avg_sq
    assert kept == [first, whole, dropped, whole, whole, dropped]


def test_a_run_whose_forgetting_is_held_is_resumed_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    """Two steps an epoch, so a look before each from the third on; all from the third on find the target. Saved after
    step 5, within an epoch, the first that is held."""
    chosen, pair = dict(epochs=5), (tiny("llama"), tiny("llama"))
    for part in ("whole", "parts"):
        (tmp_path / part).mkdir()

    def from_the_third(looks):
        count = itertools.count(looks + 1)
        return lambda: next(count) >= 3

    loop(pair[0], flags(**chosen), tmp_path / "whole", at_target=from_the_third(0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_in(5, patch)
        loop(tiny("llama"), flags(**chosen), tmp_path / "parts", at_target=from_the_third(0))
    loop(pair[1], flags(resume=True, **chosen), tmp_path / "parts", at_target=from_the_third(3))
    assert all(torch.equal(*both) for both in zip(*(model.parameters() for model in pair), strict=True))
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "parts/log.jsonl").read_text()


@pytest.mark.parametrize("words", [None, "far enough"])
def test_a_look_for_the_target_leaves_the_model_as_it_trains(words, monkeypatch, capsys):
    """The layers in train mode, without which there would be no gradient checkpointing."""
    model = tiny("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    monkeypatch.setattr(train, "BENCHMARKS", {"own": SimpleNamespace(look=lambda *_: lambda: model.eval() and words)})
    at_target = train.look_for_target(argparse.Namespace(task="own"), SimpleNamespace(model=model), {}, {}, None)
    assert at_target() == bool(words) and any(module.training for module in model.modules())
    at_target()  # which is said once
    assert capsys.readouterr().out.count(f"{words}: forgetting is held there") == bool(words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_one_after_the_last_step_stops_too(number):
    with pytest.raises(KeyboardInterrupt) as stop, runs.deferred_interrupt() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted == [signal.SIGINT]
        os.kill(os.getpid(), number)
    assert stop.value.args == (number,)
    with pytest.raises(KeyboardInterrupt) as stop, runs.deferred_interrupt():
        os.kill(os.getpid(), number)
    assert stop.value.args == (number,)


def test_states_are_saved_by_time_and_take_at_most_a_twentieth_of_it(tmp_path, monkeypatch):
    """A step takes five minutes, a save 100 s; what is done after an epoch a second, which counts for nothing."""
    now, saved, step = [0.0], [], torch.optim.AdamW.step

    def slow_step(*arguments):
        now[0] += 300
        return step(*arguments)

    def slow_save(*arguments):
        saved.append(now[0])
        now[0] += 100
        return 100.0

    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(torch.optim.AdamW, "step", slow_step)
    monkeypatch.setattr(runs, "save_state", slow_save)

    def an_epochs_end(epoch):
        now[0] += 1

    notebook = loop(tiny("gpt2"), flags(epochs=20, batch_size=1), tmp_path, an_epochs_end, forget_set(2), [])
    assert runs.SAVE_EVERY < saved[0] < runs.SAVE_EVERY + 310 and len(saved) > 3  # 200 minutes
    assert all(2000 < later - earlier - 100 < 2310 for earlier, later in itertools.pairwise(saved))
    assert notebook.cost()["train_seconds"] == 40 * 300  # without the saves


def test_save_every_counts_epochs_and_a_damaged_save_is_passed_over(tmp_path, capsys):
    """Two steps an epoch. Interrupted after the fourth epoch's save, whose bit flips."""
    whole, parts = tiny("llama"), tiny("llama")
    loop(whole, flags(epochs=6))
    with pytest.raises(Crash):
        loop(tiny("llama"), flags(epochs=6, save_every=2), tmp_path, crash_in(5))
    newest, older = runs.saves(tmp_path)
    assert [newest.name, older.name] == ["save-00000008", "save-00000004"]
    (shard,) = newest.glob("*.safetensors")
    bits = bytearray(shard.read_bytes())
    bits[len(bits) // 2] ^= 1
    shard.write_bytes(bits)
    loop(parts, flags(epochs=6, save_every=2, resume=True), tmp_path)
    assert "save-00000008 is damaged" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert [line["step"] for line in lines_of(tmp_path / "log.jsonl")] == list(range(1, 13))


class Sick(torch.autograd.Function):
    """Is what it is, and has an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("part", ["forget", "retain"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_gone_wrong_stops_the_run_before_the_step(
    part, what, own_data, toy_model_folder, tmp_path, monkeypatch, capsys
):
    """In the third step: the model of two steps is saved, and the message says where."""
    calls, healthy = [], losses.simnpo if part == "forget" else losses.nll

    def sick(*arguments):
        loss = healthy(*arguments)
        calls.append(1)
        if len(calls) < 3:
            return loss
        return loss * float("nan") if what == "loss" else Sick.apply(loss)

    step, stepped = torch.optim.AdamW.step, []

    def kept(optimizer, *arguments):
        step(optimizer, *arguments)
        stepped.append([weight.detach().clone() for weight in optimizer.param_groups[0]["params"]])

    monkeypatch.setattr(torch.optim.AdamW, "step", kept)
    monkeypatch.setattr(losses, healthy.__name__, sick)
    command = "--method", "simnpo", *own_data[0], "--model", toy_model_folder
    command += *"--batch-size 4 --retain-batch-size 4 --eval none --out".split(), tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train.main([*map(str, command)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and f"step 3: the {part} {what} is" in error and str(tmp_path) in error
    assert len(lines_of(tmp_path / "run" / "log.jsonl")) == len(stepped) == 2
    saved = weights_of(tmp_path / "run").parameters()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(saved, stepped[-1], strict=True))


CODE = '# Says hello.\n\ndef f(x):\n    """Twice."""\n    return 2 * x\n'


@pytest.mark.parametrize(
    "right, wrong, same",
    [
        ("# Says hello.", "# Says goodbye.", True),
        ("# Says hello.", '"""Says hello."""', True),
        ('"""Twice."""', '"""Two of it."""', True),
        ('"""Twice."""', "", True),
        ("return 2 * x", "return (2 *\n    x)  # two", True),
        ("return 2 * x", "return 3 * x", False),
        ("return 2 * x", "return x * 2", False),
        ("return 2 * x", "return '2' * x", False),
        ("f(x)", "f(y)", False),
    ],
)
def test_the_code_is_what_it_computes_whatever_the_comments(right, wrong, same, tmp_path):
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text(CODE)
    after.write_text(CODE.replace(right, wrong))
    assert (runs.code_digest(before) == runs.code_digest(after)) == same


def test_a_changed_number_in_the_code_is_not_gone_on_with_and_a_changed_comment_is(
    own_data, toy_model_folder, tmp_path, monkeypatch, capsys
):
    root, command = (
        tmp_path / "root",
        ("--method", "npo", *own_data[0], "--model", toy_model_folder, *"--eval none".split()),
    )
    (root / "benchmarks").mkdir(parents=True)
    for name in runs.DECISIVE:
        shutil.copy(runs.ROOT / name, root / name)
    monkeypatch.setattr(runs, "ROOT", root)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_in(3, patch)
        run(tmp_path / "run", *command)
    with monkeypatch.context() as patch:  # as results/raw_logits.py does
        patch.setitem(METHODS, "npo", METHODS["npo"]._replace(name="NPO on raw logits"))
        capsys.readouterr()
        says = "the method changed", "(name)", "use the script that began it"
        refused(train.main, [*command, "--resume", "--out", tmp_path / "run"], capsys, *says)
    code = (root / "train.py").read_text()
    assert code.count("warmup=1.0") == 1
    (root / "train.py").write_text(code.replace("warmup=1.0", "warmup=2.0"))
    capsys.readouterr()
    refused(train.main, [*command, "--resume", "--out", tmp_path / "run"], capsys, "the code changed", "(train.py)")
    (root / "train.py").write_text("# Another comment.\n" + code.replace("    # the model before", "    # that before"))
    run(tmp_path / "run", *command, "--resume")
    assert folders.is_finished(tmp_path / "run")


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def quick_toy(monkeypatch):
    """The toy with from-scratch models of one epoch: for what a run writes, not for what it learns."""
    toy, short = BENCHMARKS["toy"], ("new", "*", ("finetune",), dict(epochs=1, batch_size=64))
    change_benchmark(monkeypatch, size=toy.size | {"width": 16}, recipes=(*toy.recipes, short))


QUICK = "--max-new-tokens", "3", "--epochs"


def test_a_run_leaves_an_ordinary_model_and_all_its_files(quick_toy, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    out = run(tmp_path / "run", "--method", "simnpo", "--beta", "2.5", "--eval", "epoch", *QUICK, 2)
    screen = capsys.readouterr().out
    for word in ("Original", "Retrain", "simnpo", "question:", str(out)):
        assert word in screen
    chosen, recipe = (
        next(line for line in screen.splitlines() if line.startswith(what)).split() for what in ("chosen:", "recipe:")
    )
    assert {*chosen} == {
        "chosen:",
        "method=simnpo",
        "beta=2.5",
        "eval=epoch",
        "max_new_tokens=3",
        "epochs=2",
        f"out={out}",
    }
    assert {"forget_coeff=0.3", "lr=0.001", "gamma=0.0", "retain=nll"} < {*recipe}
    assert not {word.split("=")[0] for word in chosen[1:]} & {word.split("=")[0] for word in recipe[1:]}
    assert {path.name for path in out.iterdir()} == set(
        """config.json epochs.jsonl generation_config.json log.jsonl metrics.json metrics.log.json model.safetensors
        reference.log.json run.json run.png tokenizer.json tokenizer_config.json""".split()
    )
    settings, metrics, log, references = (
        json_of(out / name) for name in ("run.json", "metrics.json", "metrics.log.json", "reference.log.json")
    )
    assert settings["flags"]["beta"] == 2.5 and settings["flags"]["retain"] == "nll" and settings["versions"]["torch"]
    assert settings["method"] == {"name": "SimNPO", "colour": "C2"} and folders.sums_of(out) == settings["sums"]
    splits = {"Original": "full", "Retrain": "retain90"}
    caches = {name: next(tmp_path.glob(f"cache/toy-{split}-*/run.json")).parent for name, split in splits.items()}
    logs = {name: json_of(folder / "metrics.log.json") for name, folder in caches.items()}
    assert references.keys() == {"Original", "Retrain"}
    for name, reference in references.items():
        assert {key: reference[key] for key in reference if key != "judged"} == tofu.compared_part(logs[name])

    # each model's numbers are those of its own log against Retrain's, its seconds those of its own training
    costs = {"": settings["cost"], "Original": {}, "Retrain": json_of(caches["Retrain"] / "run.json")["cost"]}
    for name, shown in ({"": metrics} | metrics["reference"]).items():
        expected = tofu.summarize(logs.get(name, log), references["Retrain"]) | costs[name]
        assert shown["membership"] == expected.pop("membership") and len(shown["membership"]) == 4
        assert all(shown[key] == pytest.approx(value) for key, value in expected.items() if key != "judged")
        for what in ("train_seconds", "peak_memory_bytes"):
            assert (what in shown) == (name != "Original")
    assert metrics["reference"]["Retrain"]["forget_quality"] == pytest.approx(1) and metrics["train_seconds"] > 0
    first, last = lines_of(out / "epochs.jsonl")
    assert (first["epoch"], last["epoch"]) == (1, 2) and last["forget"] == metrics["forget"] != first["forget"]
    for line in (first, last):
        shown = (
            f"epoch {line['epoch']}  log10 forget quality {math.log10(line['forget_quality']):.3f}  distance to Retrain"
        )
        assert f"{shown} {line['distance']:.3f}  model utility {line['model_utility']:.3f}\n" in screen
    assert "\nbest of the epochs" in screen or "\nno epoch keeps" in screen

    # the answer shown is the one of middle length, before and after
    middle = sorted(range(40), key=log["forget"]["length"].__getitem__)[20]
    for name, texts in (
        ("question", log["forget"]["question"]),
        ("truth", log["forget"]["answer"]),
        ("Original", logs["Original"]["forget"]["generated"]),
        ("simnpo", log["forget"]["generated"]),
    ):
        assert f"{name:>10s}: {texts[middle]}\n" in screen

    # the picture: losses by step, weights by length in the first and the last epoch, log10 truth ratios
    left, right, spread = pictures[-1].axes
    steps = lines_of(out / "log.jsonl")
    path = compare.epochs(steps)
    assert [picture["row"] for picture in path] == [[*range(40)]] * 2
    assert {line.get_label(): line.get_xydata().tolist() for line in left.lines} == {
        f"{part} loss": [[line["step"], line[part]] for line in steps] for part in ("forget", "retain")
    }
    assert {dots.get_label(): dots.get_offsets().tolist() for dots in right.collections} == {
        f"epoch {i}": [*map(list, zip(path[i - 1]["length"], path[i - 1]["weight"], strict=True))] for i in (1, 2)
    }
    assert {line.get_label(): sorted(line.get_xdata())[-40:] for line in spread.lines} == {
        name: pytest.approx(sorted(tofu.log_ratio(references.get(name, tofu.compared_part(log)))))
        for name in ("Original", "Retrain", "simnpo")
    }

    # the model on disk is the model that was measured
    assert transformers.AutoModelForCausalLM.from_pretrained(out).config.model_type == "llama"
    evaluate.main(["--model", str(out), "--out", str(tmp_path / "m.json"), *QUICK[:2]])
    again = json_of(tmp_path / "m.json")
    assert again["forget"] == pytest.approx(metrics["forget"], rel=1e-4)
    # and it knows what the run was compared with; the run's own file says so to others too
    assert again["forget_quality"] == pytest.approx(metrics["forget_quality"])
    command = "--model", out, "--out", tmp_path / "other.json", *QUICK[:2], "--retrain", out / "reference.log.json"
    evaluate.main([*map(str, command)])
    assert again["judged"] == pytest.approx(metrics["judged"], rel=1e-4)
    assert json_of(tmp_path / "other.json") == again | {"judged": None}  # that takes Retrain itself

    # a second run finds the cache, and writes over the first only when told
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")}
    assert len(stamps) == 2
    run(out, "--method", "dpo", "--overwrite", *QUICK, 1)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("model.safetensors")}
    assert json_of(out / "run.json")["flags"]["method"] == "dpo"


def test_finetune_on_a_retain_split_is_measured_against_its_forget_set(toy_tokenizer):
    command = "--method finetune --split retain95 --model some/model".split()
    assert resolved(*command).forget_split == "forget05"
    forget, retain = examples_for(toy_tokenizer, *command)
    assert len(forget["answer"]) == 380 and retain == []
    # or against the one that --forget-split names: an Original that the runs on it start from is measured once
    assert resolved(*command, "--forget-split", "forget10").forget_split == "forget10"
    everything = "--method finetune --split full --model some/model".split()
    assert resolved(*everything, "--forget-split", "forget10").forget_split == "forget10"


def test_relearning_is_of_what_the_run_forgot(quick_toy, tmp_path):
    """With its recipe and its reference, unless flags say otherwise: another split's Retrain knows some of it."""
    first = run(tmp_path / "first", "--method", "npo", "--split", "forget05", *QUICK, 1)

    def again(name, *arguments):
        out = run(tmp_path / name, "--method", "finetune", "--model", first, *arguments)
        return json_of(out / "run.json"), json_of(out / "metrics.json")

    before = json_of(first / "run.json")["flags"]
    settings, metrics = again("second")
    assert set(metrics["reference"]) == {"before", "Retrain"} and metrics["forget_quality"] is not None
    assert (
        metrics["forget_examples"] == 20 and settings["start"] == before and settings["start_method"]["name"] == "NPO"
    )
    assert settings["original"]["split"] == "full"  # of the run that --model tiny made
    expected = {"split": "forget05", "retrain": before["retrain"], "max_new_tokens": 3, "family": "tiny"}
    assert settings["flags"] | expected == settings["flags"]
    settings, metrics = again("third", "--split", "forget10")
    assert settings["flags"]["retrain"] is None and metrics["forget_quality"] is None
    assert [folders.family_of(model) for model in (str(first), before["retrain"], "tiny", "some/model")] == [
        "tiny",
        "tiny",
        "tiny",
        "some/model",
    ]
    evaluate.main(["--model", str(first), "--out", str(tmp_path / "m.json"), "--template", "llama2"])
    assert json_of(tmp_path / "m.json")["forget_quality"] is not None  # Retrain is measured under it too


def test_a_partial_model_in_the_cache_that_does_not_fit_is_made_anew(quick_toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path))
    args = resolved("--eval", "none")
    original = Path(train.teach(args, "full", "Original"))
    weights = (original / "model.safetensors").read_bytes()
    for damage in ("junk", "flags", "unsealed", "half a run.json", "run.json", "empty"):
        settings = json_of(original / "run.json")
        del settings["cost"]
        settings["flags"] |= {"device": "other"} if damage == "flags" else {}
        text = json.dumps(settings if damage == "unsealed" else folders.sealed(settings))
        (original / "run.json").write_text('{"format": 4, "fl' if damage == "half a run.json" else text)
        (original / "model.safetensors").unlink()
        (original / "save-00000009").mkdir()
        (original / "save-00000009" / "shard.safetensors").write_bytes(b"junk")
        if damage in ("run.json", "empty"):
            (original / "run.json").unlink()
        if damage == "empty":
            shutil.rmtree(original / "save-00000009")
        assert Path(train.teach(args, "full", "Original")) == original
        assert (original / "model.safetensors").read_bytes() == weights, damage
        assert "cost" in json_of(original / "run.json")


@pytest.fixture
def measured(monkeypatch):
    """The list of calls that measure a toy's model; its `at` may hold what is done in the call so many. All give what
    the first model did."""
    measure = BENCHMARKS["toy"].measure

    class Calls(list):
        at, log = {}, None

    calls = Calls()

    @functools.wraps(measure)
    def counted(*arguments):
        calls.append(1)
        calls.at.get(len(calls), lambda: None)()
        calls.log = calls.log or measure(*arguments)
        return copy.deepcopy(calls.log)

    change_benchmark(monkeypatch, measure=counted)
    return calls


def test_the_last_epoch_is_measured_once(quick_toy, measured, tmp_path, monkeypatch):
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    command = "--method", "npo", "--eval", "epoch", "--epochs", 2, "--max-new-tokens"
    run(tmp_path / "run", *command, 3)
    assert len(measured) == 4  # Original, Retrain, two epochs
    run(tmp_path / "again", *command, 3)
    assert len(measured) == 6  # the runs of Original and Retrain left their logs
    run(tmp_path / "other", *command, 2)
    assert len(measured) == 10  # which were asked for something else


def test_an_interrupted_measurement_can_be_resumed(toy_model_folder, measured, tmp_path, capsys):
    command = "--method", "npo", "--model", toy_model_folder, *QUICK, 2

    def interrupt():
        raise KeyboardInterrupt

    measured.at = {2: interrupt}  # the first is of the model before
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", *command)
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err and not (tmp_path / "run/run.png").exists()
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    out = run(tmp_path / "run", *command, "--resume", "--micro-batch-size", "3")  # nothing is trained again
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "metrics.json").exists() and not runs.saves(out) and len(lines_of(out / "log.jsonl")) == 4


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch, capsys):
    """At tenths of 20 steps, of which 2 are done, once 5 s have gone by, and after five minutes; else nothing."""
    clock = [100.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])
    notebook, line = runs.Run(), {"forget": 1.5, "retain": 0.25}
    with notebook.loop(2, 20, 10):
        for step, now in ((3, 104), (4, 105), (5, 200), (6, 220), (7, 500), (8, 525), (9, 826), (10, 827)):
            clock[0] = now
            notebook.tell_if_due(step, line)
        assert capsys.readouterr().err.splitlines() == [
            "step 6 of 20, forget 1.500, retain 0.250, 420 s left",
            "step 8 of 20, forget 1.500, retain 0.250, 850 s left",
            "step 9 of 20, forget 1.500, retain 0.250, 1141 s left",
        ]
        notebook.bar.disable = False  # a terminal has its bar
        clock[0] = 9999
        notebook.tell_if_due(20, line)
        notebook.bar.disable = True
    assert capsys.readouterr().err == ""


def test_a_new_model_is_taught_in_an_ordinary_run(quick_toy, tmp_path, capsys):
    """Original by hand, with fewer epochs; what starts from it is as what starts from `tiny`."""
    original = run(tmp_path / "original", "--method", "finetune", "--model", "new", "--split", "full", *QUICK, 2)
    settings = json_of(original / "run.json")["flags"]
    assert settings["epochs"] == 2 and settings["forget_split"] == "forget10"
    assert compare.epochs(lines_of(original / "log.jsonl"))[0]["row"] == [*range(448)]  # with what all know
    assert len(json_of(original / "metrics.log.json")["retain"]["loss"]) == 60
    out = run(tmp_path / "run", "--method", "simnpo", "--model", original, *QUICK, 1)
    settings = json_of(out / "run.json")
    assert set(json_of(out / "metrics.json")["reference"]) == {"Original"}
    assert "start" not in settings and settings["flags"]["family"] == "tiny" == settings["original"]["family"]
    assert settings["original"]["out"] == str(original) and settings["original"]["epochs"] == 2
    assert "forget quality needs" in capsys.readouterr().out


def test_each_part_is_named_and_ctrl_c_is_no_loss(quick_toy, tmp_path, monkeypatch, capsys):
    """Interrupted while Original is being made, the same command goes on: no step lost, none twice."""
    monkeypatch.setenv("MINUNLEARN_CACHE", str(tmp_path / "cache"))
    command = "--method", "npo", *QUICK, 1
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        interrupt_in(3, patch)
        run(tmp_path / "run", *command)
    said = capsys.readouterr()
    assert stop.value.code == 130 and "the same command goes on" in said.err and said.out.startswith("[1/3] Original: ")
    assert not (tmp_path / "run").exists() and list(tmp_path.glob("cache/toy-full*/save-*"))
    run(tmp_path / "run", *command)
    shown = capsys.readouterr().out
    assert [line[:14] for line in shown.splitlines() if line.startswith("[")] == [
        "[1/3] Original",
        "[2/3] Retrain:",
        "[3/3] npo: Ori",
    ] and str(tmp_path / "cache") in shown
    (log,) = tmp_path.glob("cache/toy-full*/log.jsonl")
    assert [line["step"] for line in lines_of(log)] == [1, 2, 3, 4, 5, 6, 7]  # 448 examples in batches of 64


def test_the_readmes_command_unlearns(tmp_path):
    """`python train.py --method simnpo --beta 2.5`, whole: Original knows, SimNPO has forgotten, utility stays."""
    metrics = json_of(run(tmp_path / "run", "--method", "simnpo", "--beta", "2.5") / "metrics.json")
    original, retrain = metrics["reference"]["Original"], metrics["reference"]["Retrain"]
    assert original["forget"]["probability"] > 0.9 > 0.5 > retrain["forget"]["probability"]
    assert original["forget_quality"] < 1e-6 < 0.01 < metrics["forget_quality"]
    assert metrics["model_utility"] > 0.95 * original["model_utility"]

    # README's table, whose last digits hang on the processor
    readme = (Path(train.__file__).parent / "README.md").read_text(encoding="utf-8")
    shown = {words[0]: words[1:] for words in map(str.split, readme.splitlines()) if len(words) == 6}
    for name, model in (("Original", original), ("Retrain", retrain), ("simnpo", metrics)):
        found = [model["model_utility"], *(model["forget"][key] for key in ("probability", "rouge"))]
        assert [*map(float, shown[name][1:])] == pytest.approx([*found, model["retain"]["rouge"]], abs=0.1)


def test_a_model_that_is_fine_tuned_already_takes_no_time(own_data, toy_model_folder, tmp_path):
    common = "--model", toy_model_folder, "--eval", "none", *own_data[0]
    tuned = run(tmp_path / "tuned", "--method", "finetune", "--lr", 1e-3, *common)
    out = run(tmp_path / "run", "--method", "task-vector", "--alpha", 2, "--finetuned", tuned, *common)
    weights = [weights_of(folder).parameters() for folder in (toy_model_folder, tuned, out)]
    for theta, theta_ft, made in zip(*weights, strict=True):
        assert torch.allclose(made, theta - 2 * (theta_ft - theta), atol=1e-6) and not torch.equal(theta, theta_ft)
    assert json_of(out / "run.json")["cost"] == {"train_seconds": 0}


def test_what_a_model_that_is_taught_begins_from_is_no_original(own_data, toy_model_folder, tmp_path, capsys):
    common = "--model", toy_model_folder, "--max-steps", 1, *own_data[0]
    for method, name in (("finetune", "before"), ("simnpo", "Original")):
        run(tmp_path / method, "--method", method, *common)
        first = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
        assert [name] in first and [name + ":"] in first and [{"before": "Original"}.get(name, "before")] not in first
