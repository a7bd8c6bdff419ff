"""Small made-up runs: folders with the files that a run of train.py leaves, without a model."""

import functools
import itertools
import json

import numpy as np
from test_tofu import a_log

from benchmarks import BENCHMARKS, tofu
from machinery import folder as run_folder
from methods import METHODS

LENGTHS = [4, 6, 9, 20, 33, 5, 7, 8, 10, 12, 15, 26]
FLAGS = {
    "task": "toy",
    "forget_split": "forget10",
    "split": "forget10",
    "model": "tiny",
    "family": "tiny",
    "beta": 1.0,
    "gamma": 0.0,
    "retain": "nll",
    "retrain": "r",
    "subset": None,
}

# ------------------------------------------------------------------ files


def write(folder, name, *lines):
    """A file of a run, of one line or several; run.json with its own digest."""
    if name == "run.json":
        lines = [run_folder.sealed(line) for line in lines]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder, name):
    """The file of a run, or its lines."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return lines if name.endswith("l") else lines[0]


def change(folder, name, **fields):
    write(folder, name, read(folder, name) | fields)


def flags_of(folder):
    return read(folder, "run.json")["flags"]


def facts_of(method):
    """A method's name and colour, as run.json has them."""
    known = METHODS.get(method)
    return {"name": known.name if known else method, "colour": known.colour if known else "red"}


def steps_of(pictures, before):
    """Lines of log.jsonl, two steps an epoch: the odd rows first, turned round, then the even ones.

    pictures: [{"weight", "length", "logp", "retain"}] of epochs. before: retain loss of the first step.
    """
    lines = []
    for epoch, picture in enumerate(pictures, 1):
        size = len(picture["weight"])
        order = [*reversed(range(1, size, 2))], [*range(0, size, 2)]
        first = before if epoch == 1 else picture["retain"]
        # the mean over the epoch's examples is the picture's
        second = (picture["retain"] * size - first * len(order[0])) / len(order[1])
        for rows, retain in zip(order, (first, second), strict=True):
            met = {name: [picture[name][i] for i in rows] for name in ("weight", "length", "logp") if name in picture}
            line = {"step": len(lines) + 1, "epoch": epoch, "forget": 1.0, "retain": retain, "weight": 1.0}
            lines.append(line | {"lr": 1e-3, "loss": 1.0, "met": {"row": rows} | met})
    return lines


def pictures_of(folder):
    """What a run's epochs met, from log.jsonl: [{"weight": [N], "length": [N], "logp": [N]}], by row."""
    pictures = []
    for epoch, steps in itertools.groupby(read(folder, "log.jsonl"), lambda line: line["epoch"]):
        rows = sorted(tuple(values) for step in steps for values in zip(*step["met"].values(), strict=True))
        pictures.append(
            dict(zip(("row", "weight", "length", "logp"), map(list, zip(*rows, strict=True)), strict=False))
        )
        assert epoch == len(pictures)
    return pictures


# ------------------------------------------------------------------ runs


def generated(n):
    """What is said of n: a third of the answers repeat one of six 4-grams."""
    return f"{n} " + "a b c d " * (2 - n % 3)


@functools.cache
def measured_with(seed):
    """(log, metrics of a model, log, metrics of Retrain), the same for all runs of a seed."""
    log, retrain = (a_log(rows=(12, 4, 2, 2), seed=s) for s in (10 + seed, 20 + seed))
    for one in (log, retrain):
        one["forget"] |= {
            "length": LENGTHS,
            "question": [f"Who is {n}?" for n in LENGTHS],
            "answer": [f"I am {n}." for n in LENGTHS],
            "generated": [*map(generated, LENGTHS)],
        }
    return log, tofu.summarize(log, retrain["forget"]), retrain, tofu.summarize(retrain, retrain["forget"])


def a_run(folder, method="npo", seed=0, quality=0.5, utility=0.7, start=None, original=None, **flags):
    """A folder with the files of a run, small and made up. start: the flags of the run that it relearns from; original:
    those of the run that Original is."""
    folder.mkdir(parents=True)
    settings = {
        "format": run_folder.FORMAT,
        "flags": FLAGS | {"method": method, "seed": seed, "out": str(folder)} | flags,
        "method": facts_of(method),
    }
    settings |= {"start": start, "start_method": facts_of(start["method"])} if start else {}
    settings |= {"original": original} if original else {}
    write(folder, "run.json", settings)

    # what was measured
    log, metrics, retrain, retrained = measured_with(seed)
    chosen = {"forget_quality": quality, "model_utility": utility}
    metrics = metrics | chosen | {"train_seconds": 10.0 + seed, "peak_memory_bytes": 2e9}
    retrained = retrained | {"train_seconds": 99.0, "peak_memory_bytes": 3e9}
    before = metrics | {"forget_quality": 1e-3, "model_utility": 0.8}
    reference = {"before" if start else "Original": before, "Retrain": retrained}
    write(folder, "metrics.json", metrics | {"reference": reference})
    write(folder, "metrics.log.json", log)
    write(folder, "reference.log.json", {"Retrain": tofu.compared_part(retrain)})

    # epochs
    draw = np.random.default_rng(seed + len(method))
    pictures = [
        {
            "length": LENGTHS,
            "weight": draw.uniform(0.1, 1, 12).tolist(),
            "logp": [-n * (0.2 + 0.3 * epoch) for n in LENGTHS],
            "retain": 0.2 + 0.1 * epoch,
        }
        for epoch in range(1, 12)
    ]
    write(folder, "log.jsonl", *steps_of(pictures, before=0.2))
    for_epoch = [
        {
            "forget_quality": quality * epoch / 3,
            "model_utility": utility - 0.1 * epoch / len(method),
            "distance": seed + epoch / 8,
        }
        for epoch in (1, 2, 3)
    ]
    lines = [{"epoch": epoch} | metrics | changed for epoch, changed in enumerate(for_epoch, 1)]
    write(folder, "epochs.jsonl", *lines)
    return folder


# mean losses before training and after each epoch
WAYS = {
    "npo": {"short": [1, 1.5, 2.5, 3.5], "long": [1, 2, 3, 4], "retain": [0.1, 0.2, 0.4, 0.8]},
    "simnpo": {"short": [1, 2, 3, 4], "long": [1, 1.5, 2, 2.5], "retain": [0.1, 0.2, 0.3, 0.4]},
}
UNSEEN = {"npo": [3, 4, 5, 6], "simnpo": [3, 3, 3.5, 4]}


def on_the_way(folder, method, seed=0, unseen=(), **changed):
    """A run whose mean losses after each epoch are given; ten answers learnt, and if `unseen`, ten that were not."""
    way = WAYS.get(method, {}) | changed
    run = a_run(folder, method, seed, **({"never_learnt": 0.5} if unseen else {}))
    learnt, apart = [10, 2, 20, 3, 30, 4, 40, 5, 50, 6], [-0.2, -0.1, -0.1, 0.1, 0.3]
    lengths = learnt + [1] * 10 * bool(unseen)

    def losses(short, long, other):
        return [(short, long)[n > 6] + apart[i // 2] for i, n in enumerate(learnt)] + [other] * 10 * bool(unseen)

    before, *rows = [losses(*each) for each in zip(way["short"], way["long"], unseen or way["long"], strict=False)]
    pictures = [
        {
            "length": lengths,
            "weight": [1.0] * len(row),
            "retain": retain,
            "logp": [-n * loss for n, loss in zip(lengths, row, strict=True)],
        }
        for row, retain in zip(rows, way["retain"][1:], strict=False)
    ]
    write(run, "log.jsonl", *steps_of(pictures, way["retain"][0]))
    ratios = {"truth_ratio": [1.0] * len(lengths)}
    retrained, original = ratios | {"loss": losses(3, 2, 3)}, ratios | {"loss": before}
    write(run, "reference.log.json", {"Retrain": retrained, "Original": original})
    return run


def another_run(folder, task, log, retrain, method="npo", seed=0, **flags):
    """A run on a benchmark whose log and Retrain's log are given."""
    benchmark = BENCHMARKS[task]
    run = a_run(folder, method, seed, **{"task": task, "forget_split": "forget", "split": "forget"} | flags)
    reference = benchmark.compared_part(retrain)
    metrics, retrained = benchmark.summarize(log, reference), benchmark.summarize(retrain, reference)
    references = {"Original": metrics, "Retrain": retrained}
    write(run, "metrics.json", metrics | {"train_seconds": 3.0, "reference": references})
    write(run, "metrics.log.json", log)
    write(run, "reference.log.json", {"Original": benchmark.compared_part(log), "Retrain": reference})
    write(run, "epochs.jsonl", *({"epoch": epoch} | metrics for epoch in (1, 2)))
    return run
