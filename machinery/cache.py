"""Models made from scratch, kept: Original and Retrain are made once, in ~/.cache/minunlearn or $MINUNLEARN_CACHE."""

import os
import shutil
from pathlib import Path

import filelock

from machinery import folder, processes
from machinery import run as runs
from machinery.command import STOPS
from machinery.inputs import InputError, digest


def path_of(name, made_of):
    """Where in the cache a model is that depends on `made_of`, which JSON can hold."""
    cache = Path(os.environ.get("MINUNLEARN_CACHE") or Path.home() / ".cache" / "minunlearn")
    return cache / f"{name}-{digest([folder.FORMAT, made_of])}"


def is_made(out):
    try:
        return "cost" in folder.read(out, "run.json")
    except InputError:
        return False


def make(args, run, name, hint):
    """The folder args.out of the run(args), of which two commands that need it make one. Prints what happens.

    name, hint: what the model is called, and what the user might do instead.
    """
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{args.out}.lock"):
        runs.sweep_killed(args.out.parent)
        if is_made(args.out):
            runs.drop_saves(args.out)  # if it was killed before it did
            print(f"{name}: kept in {args.out}")
            return str(args.out)
        if processes.several():
            raise InputError(
                f"--model tiny: {name} is not in the cache yet, and one process makes it; run the command once without "
                "torchrun"
            )
        print(
            f"{name}: a new model learns {args.split} in {args.epochs} epochs, into {args.out}\n      ({hint})",
            flush=True,
        )
        go_on_or_begin(args, run)
        return str(args.out)


def go_on_or_begin(args, run):
    """run(args), resumed where an interruption left something; made anew where that is damaged, or of other flags."""
    try:
        if folder.is_run(args.out):
            try:
                args.resume = True
                return run(args)
            except InputError:
                args.resume = False
        shutil.rmtree(args.out, ignore_errors=True)
        run(args)
    except STOPS as stop:
        stop.mend = "the same command goes on from here"
        raise
