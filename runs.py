"""A run's folder: every file in it, how it is written, resumed and read back; and what all commands share.

    model.safetensors, config.json, tokenizer      an ordinary save_pretrained folder
    run.json             every resolved flag, versions, commit, digests of code and data, number of processes;
                         the cost of training once that is over
    log.jsonl            a line per step: losses, mean weight, learning rate
    path.jsonl           a line per epoch, 0 for before: weight, length and log π of every forget sequence as the
                         loop met it, and the mean loss of a fixed retain sample (none with --retain none)
    metrics.json         the benchmark's metrics, and under `reference` those of the models compared with
    metrics.log.json     the per-example values behind them
    reference.log.json   the same of the models compared with, for the forget set
    epochs.jsonl         with --eval epoch: the metrics after each epoch
    run.png              loss, weights, and what the benchmark adds; written last: the run is finished
    save-STEP/           while a run is unfinished: all that --resume needs, and sums.json, checksums of it

Beside the folder, while a process is at work in it: `.NAME.minunlearn.lock`, and for moments `….new`, which becomes
the folder, and `….old`, which it replaces. What a killed process leaves of these, the next one sweeps.

This file does not know what a loss or a metric is. What the benchmark's files hold it is told as a *shape*
(see `check`), so that a damaged or foreign file is one line and not a traceback.
"""

import argparse
import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from pathlib import Path

import filelock
import huggingface_hub
import safetensors
import torch
import torch.distributed as dist
import transformers

import data
from data import InputError

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process saves as several do
FORMAT = 3  # of a run's folder; a folder of another format is refused, not guessed at
SAVE_EVERY = 600  # seconds between two states of an unfinished run, at least
LARGEST = 2 * 10**8  # bytes of a file, or letters of a line, that are read at once: as JSON they take some GB

# ------------------------------------------------------------------ shapes of files

# Half a surrogate pair, which JSON can spell out, is no character: no tokenizer takes it.
TEXT = (
    "a text that is not empty",
    lambda value: isinstance(value, str) and value.strip() and value.encode(errors="ignore").decode() == value,
)
ANY_TEXT = "a text", lambda value: isinstance(value, str)
OBJECT = "an object", lambda value: isinstance(value, dict)
WHOLE = "a whole number", lambda value: type(value) is int
REAL = "a finite number", lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max
POSITIVE = "a finite number of at least 0", lambda value: REAL[1](value) and value >= 0
SHARE = "a finite number from 0 to 1", lambda value: POSITIVE[1](value) and value < 1.000001


def check(value, shape, where):
    """Raise InputError, naming the place in `where`, unless `value` has `shape`.

    A shape is one of the above; a list of one shape: a list of one or more such values; a dict: a dict with
    such values under these keys, where one that ends in `?` may be missing or None, and `*` is every key.
    Lists beside each other in a dict hold a value per example each, so they must be equally long.
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in (dict.fromkeys(value, shape["*"]) if "*" in shape else shape).items():
            item = value.get(key.removesuffix("?"))
            if item is not None or not key.endswith("?"):
                check(item, inner, f"{where} '{key.removesuffix('?')[:40]}'")
        lengths = {key: len(item) for key, item in value.items() if isinstance(item, list)}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{where} has lists of unequal length, {str(lengths)[:200]}; every example needs both")
    elif isinstance(shape, list) and isinstance(value, list) and value:
        for i, item in enumerate(value):
            check(item, shape[0], f"{where} {i}")
    elif isinstance(shape, (dict, list)) or not shape[1](value):
        kind = {dict: "an object", list: "a list of one or more"}.get(type(shape)) or shape[0]
        found = "missing" if value is None else json.dumps(value)[:40]
        raise InputError(f"{where} is {found}; it must be {kind}")


FLAGS = {
    "task": TEXT,
    "forget_split": TEXT,
    "model": TEXT,
    "family": TEXT,
    "out": TEXT,
    "method": TEXT,
    "seed": WHOLE,
    "beta?": POSITIVE,
    "gamma?": POSITIVE,
    "never_learnt?": SHARE,
    "max_length?": WHOLE,
    "max_new_tokens?": WHOLE,
    **dict.fromkeys(
        ("retrain?", "subset?", "split?", "template?", "tokenizer?", "fields?", "forget_file?", "retain_file?"), TEXT
    ),
}
# file: (what makes train.py write it, its shape or that of its lines, as far as all benchmarks share it)
FILES = {
    "run.json": (
        "",
        {
            "format": WHOLE,
            "flags": FLAGS,
            "start?": FLAGS,
            "cost?": {"*": POSITIVE},
            "versions?": {"*": TEXT},
            "code?": {"*": TEXT},
            "data?": {"*": TEXT},
        },
    ),
    "path.jsonl": ("", {"epoch": WHOLE, "weight": [REAL], "length": [POSITIVE], "logp?": [REAL], "retain?": POSITIVE}),
    "epochs.jsonl": ("--eval epoch", {"epoch": WHOLE}),
}  # the others: --eval end, and the benchmark's


def files_of(metrics, log, reference):
    """{file: its shape} in a benchmark, from the shapes of its metrics, its log and its references."""
    measured = metrics | {"train_seconds?": POSITIVE, "peak_memory_bytes?": POSITIVE}
    return {
        "metrics.json": measured | {"reference": {"*": measured}},
        "epochs.jsonl": measured,
        "metrics.log.json": log,
        "reference.log.json": {"*": reference},
    }


# ------------------------------------------------------------------ writing and reading back


def write_whole(path, text):
    """Write a file as a whole or not at all: an interruption leaves no half of it. Of several processes the first does."""
    if data.ranks()[0]:
        return
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path, content):
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError:
        raise InputError(f"{path} would hold NaN or infinity; the model or the log gives such numbers") from None
    write_whole(path, text + "\n")


def append_json(path, content):
    if data.ranks()[0]:
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def check_size(path):
    """Raise InputError for a file that would fill the memory, or never end, such as a link to /dev/zero."""
    if Path(path).stat().st_size > LARGEST or not (Path(path).is_file() or Path(path).is_dir()):
        raise InputError(f"'{path}' is no plain file of at most {LARGEST:,} bytes; give a smaller one")


def read_text(path, encoding="utf-8"):
    check_size(path)
    return Path(path).read_text(encoding=encoding)


def read_json(path):
    """What a .json holds, or a list of what the lines of a .jsonl hold."""
    text = read_text(path)
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def read_file(folder, name, shape=None):
    """One file of a run. InputError if it is missing, damaged, or not of its shape, in FILES and `shape`."""
    written_by, own_shape = FILES.get(name, ("--eval end", {}))
    try:
        content = read_json(Path(folder, name))
        if name == "run.json" and isinstance(content, dict) and content.get("format") != FORMAT:
            raise ValueError("another version of this project made it")
        for each in (own_shape, shape or {}):
            check(content, [each] if name.endswith("l") else each, "line" if name.endswith("l") else "its")
        first = 0 if name == "path.jsonl" else 1
        if name.endswith("l") and [line["epoch"] for line in content] != [*range(first, first + len(content))]:
            raise ValueError(f"its epochs are not {first}, {first + 1}, {first + 2}, …")
        return content
    except (OSError, ValueError, RecursionError) as error:
        mend = f"train.py {written_by}".strip()
        raise InputError(f"run '{folder}' has no usable {name} ({error}); {mend} writes it") from None


def read_log(path):
    """What a .json that the user names as a log holds. InputError if it is missing or no JSON object."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read log '{path}' ({error}); give a JSON evaluation log") from None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' is not an evaluation log: its top level must be a JSON object")
    return content


def digest(content):
    """Twelve letters that tell what JSON can hold from anything else."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def is_run(folder):
    return Path(folder, "run.json").is_file()


def is_finished(folder):
    """Whether nothing is left to do in a run's folder. InputError if its run.json is damaged."""
    return "cost" in read_file(folder, "run.json") and Path(folder, "run.png").exists()


def read_runs(folders, shapes_of, *files):
    """[{"folder": name, file: content, ...}] of runs: run.json, metrics.json and `files`.

    shapes_of(task): {file: its shape in that benchmark}. Folders that are no runs are passed over, with a
    word on stderr. InputError if none is left, for a file that is not usable, and for runs of different
    tasks, splits or models, which cannot be compared.
    """

    def kind_of(run):
        flags = run["run.json"]["flags"]
        start = run["run.json"].get("start") or flags
        files = flags.get("data") if isinstance(flags.get("data"), dict) else flags.get("forget_file")
        kind = flags["task"], flags["forget_split"], start["family"]
        if start.get("never_learnt"):
            kind += (f"({start['never_learnt']:g} of it never learnt)",)
        return " ".join((*kind, str(files)) if files else kind)

    found = []
    for folder in map(str, folders):
        if Path(folder).is_dir() and not is_run(folder):
            print(f"passed over {one_line(folder)}: it has no run.json, so it is no run", file=sys.stderr)
            continue
        run = {"run.json": read_file(folder, "run.json")}
        shapes = shapes_of(run["run.json"]["flags"]["task"])
        run |= {name: read_file(folder, name, shapes.get(name)) for name in ("metrics.json", *files)}
        found.append(run | {"folder": folder})
        if any(Path(folder).samefile(other["folder"]) for other in found[:-1]):
            raise InputError(f"run '{folder}' is given twice; give each run once")
        if kind_of(run) != kind_of(found[0]):
            raise InputError(
                f"run '{folder}' is on {kind_of(run)}, '{found[0]['folder']}' on "
                f"{kind_of(found[0])}; give runs of one task, split and model"
            )
    if not found:
        raise InputError("none of these folders is a run; give folders that train.py made")
    return found


def peak_memory(device):
    """Bytes that tensors took at most on a CUDA device since the last call; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def draw_run(out, values, label):
    """run.png: loss over steps, weight against length, and how `values`, {name: list}, are spread."""
    if data.ranks()[0]:
        return
    import matplotlib.figure

    steps, epochs = (read_json(out / name) if (out / name).exists() else [] for name in ("log.jsonl", "path.jsonl"))
    figure = matplotlib.figure.Figure((13, 3.6), layout="tight")
    left, middle, right = figure.subplots(1, 3)
    for part in ("forget", "retain"):
        left.plot([line["step"] for line in steps], [line[part] for line in steps], label=f"{part} loss")
    left.set(xlabel="step", title="loss")
    for line in epochs[:: max(1, len(epochs) - 1)]:
        middle.scatter(line["length"], line["weight"], s=12, alpha=0.7, label=f"epoch {line['epoch']}")
    middle.set(xlabel="response length |y|", title="gradient weight of each forget sequence")
    for name, column in values.items():
        right.ecdf(column, label=name)
    right.set(xlabel=label, title="share of forget examples below")
    for axis in (left, middle, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(out / "run.png.tmp", format="png", dpi=120)
    (out / "run.png.tmp").replace(out / "run.png")


# ------------------------------------------------------------------ a new run, and an interrupted one


def choose_folder(args, name):
    """Make args.out a Path that may be written to, by default a new runs/`name`…. Creates nothing."""
    if args.out is None and data.ranks()[1] > 1:
        raise InputError("--out: several processes write one folder; name it")
    if args.out is None:
        args.out = Path("runs", f"{name}-{time.strftime('%m%d-%H%M%S')}")
        while args.out.exists():
            args.out = args.out.with_name(args.out.name + "x")
    args.out = Path(args.out)
    if args.resume and not is_run(args.out):
        raise InputError(f"--resume: {args.out} has no run.json; start anew without --resume")
    # A run that was killed before it began may have left half of its run.json.
    inside = (path for path in args.out.iterdir() if path.name != "run.json.tmp") if args.out.is_dir() else [args.out]
    if not args.resume and args.out.exists() and any(inside):
        if not args.overwrite:
            raise InputError(f"--out: {args.out} exists; name another folder or add --overwrite")
        if not is_run(args.out):
            raise InputError(f"--overwrite: {args.out} is no run's folder (no run.json); name another")
        if Path.cwd().is_relative_to(args.out.resolve()):
            raise InputError(f"--overwrite: {args.out} is or holds the folder you are in; name another")
    for flag in ("model", "retrain", "finetuned", "forget_file", "retain_file"):
        used = Path(getattr(args, flag) or "/")
        if used.exists() and used.resolve().is_relative_to(args.out.resolve()):
            raise InputError(f"--out: {args.out} holds --{flag} {used}; name another folder")
    if data.ranks()[0] == 0:
        check_writable(next(folder for folder in (args.out, *args.out.absolute().parents) if folder.exists()))


def lock_of(out):
    """Its .new and .old are a run's other names, beside its folder; through a link, as moves stay on one disk."""
    out = out.resolve()
    return out.with_name(f".{out.name}.minunlearn.lock")


def sweep(lock):
    """Remove what a run keeps beside its folder. The caller holds `lock`: nobody else is at work there."""
    for name in (".new", ".old"):
        shutil.rmtree(lock.with_suffix(name), ignore_errors=True)
    lock.unlink(missing_ok=True)


def sweep_killed(folder):
    """Remove what killed runs left in `folder`, beside theirs: locks that nobody holds, and what they guarded."""
    for lock in folder.glob(".*.minunlearn.lock"):
        with contextlib.suppress(OSError), filelock.FileLock(lock, timeout=0):  # a Timeout is one, another user's too
            sweep(lock)


@contextlib.contextmanager
def only_run(out):
    """Let no other process work in the folder `out`, which need not exist yet. InputError if one does.

    The lock dies with its process, so a killed run is no obstacle. The first process of a job holds it for all.
    """
    taken = InputError(f"--out: another run is at work in {out}; wait for its end or name another folder")
    if data.ranks()[0]:
        if agreed(0)[0]:
            raise taken
        yield
        return
    lock = lock_of(out)
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    sweep_killed(lock.parent)
    try:
        held = filelock.FileLock(lock).acquire(timeout=1)  # another's sweep holds it for a moment
    except filelock.Timeout:
        agreed(1)
        raise taken from None
    agreed(0)
    with held:
        try:
            yield
        finally:
            sweep(lock)
            for folder in made:  # those that hold nothing: the run was refused
                with contextlib.suppress(OSError):
                    folder.rmdir()


def open_folder(args, settings):
    """Make args.out ready for the loop: a new folder, or with --resume the old one without half-written files.

    A new folder appears with its run.json in it, in one move, and takes with --overwrite the old one's place. One that
    exists and is empty is kept: it may be a mounted disk.
    """
    data.wait()
    if data.ranks()[0]:
        return data.wait()
    out, new, old = args.out.resolve(), *(lock_of(args.out).with_suffix(name) for name in (".new", ".old"))
    if not args.resume and (is_run(out) or not out.exists()):
        new.mkdir()
        write_json(new / "run.json", settings)
        if out.exists():
            out.rename(old)
        new.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        return data.wait()
    for half in (*out.glob("*.json*.tmp"), *out.glob("run.png.tmp"), *out.glob(".tmp??????")):
        half.unlink()  # the last are those of safetensors
    for name in ("metrics.json", "metrics.log.json", "reference.log.json"):
        (out / name).unlink(missing_ok=True)  # they will be written again
    write_json(out / "run.json", settings)
    data.wait()


def save_model(out, model, tokenizer):
    """An ordinary save_pretrained folder, also for other tools; of a sharded model, gathered in the first process.
    OSError if it cannot be written."""
    (rank, ranks), whole = data.ranks(), None
    if ranks > 1:
        from torch.distributed.checkpoint import state_dict

        whole = state_dict.get_model_state_dict(
            model, options=state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        for name in getattr(model, "all_tied_weights_keys", ()):
            whole.pop(name, None)  # gathered, they are no longer seen to be one
    try:
        if rank == 0:
            model.save_pretrained(out, state_dict=whole)
            tokenizer.save_pretrained(out)
    except Exception as error:  # each library raises its own when the disk is full
        raise OSError(str(error)) from None
    data.wait()


def drop_saves(out):
    """Remove what only --resume needs, and what is half-written."""
    for path in (*out.glob("save-*"), *out.glob("*.tmp")) if data.ranks()[0] == 0 else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def settings_of(args):
    """What run.json says at first: every resolved flag, versions, the commit of this code and its files' digests."""

    def git(*command):
        try:
            return subprocess.run(
                ["git", "-C", Path(__file__).parent, *command], check=True, capture_output=True, text=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += " with uncommitted changes"
    flags = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("resume", "overwrite")
    }
    versions = {package.__name__: package.__version__ for package in (torch, transformers)}
    code = {path.name: digest(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("*.py")}
    return {
        "format": FORMAT,
        "flags": flags,
        "versions": versions,
        "commit": commit,
        "code": code,
        "processes": data.ranks()[1],
    }


# What may differ when a run is resumed: it changes where and how fast, not what is computed.
MAY_CHANGE = "out", "retrain", "micro_batch_size", "eval_batch_size", "grad_checkpointing", "save_every"


def check_same_run(out, settings):
    """The run.json of the run to resume. InputError that names what is not as in `settings`: a flag, the code, a
    library, or the data as far as `settings` knows them; of a finished run only the flags count."""
    before = read_file(out, "run.json")
    for flag, value in settings["flags"].items():
        if flag not in MAY_CHANGE and before["flags"].get(flag) != value:
            raise InputError(
                f"--resume: the run in {out} had --{flag.replace('_', '-')} "
                f"{before['flags'].get(flag)}, not {value}; give the same flags"
            )
    had = {what: before.get(what) or {} for what in ("code", "versions", "data")}
    for what, mend in (
        ("code", f"go back to that of commit {before.get('commit')}"),
        ("versions", "install " + " and ".join(map(" ".join, had["versions"].items()))),
        ("data", "give the data as they were"),
    ):
        now = settings.get(what, had[what])
        changed = sorted(name for name in now.keys() | had[what].keys() if now.get(name) != had[what].get(name))
        if changed and not is_finished(out):
            raise InputError(
                f"--resume: the {what} changed since the run in {out} began ({', '.join(changed)}); "
                f"{mend}, or start anew with --overwrite"
            )
    return before


@contextlib.contextmanager
def deferred_interrupt():
    """Gives a list that a first Ctrl-C or SIGTERM fills with its number, so that the step in progress can end
    whole; a second one raises KeyboardInterrupt(number) at once."""
    caught = []

    def handle(number, _):
        if caught:
            raise KeyboardInterrupt(number)
        caught.append(number)
        print("\nstopping after this step; once more to stop at once, without saving", file=sys.stderr)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other gets signals
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
        if caught:  # after the last step
            raise KeyboardInterrupt(*caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trained(model):
    """(name, parameter) of those that a run changes."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def state_of(model, optimizer, draw, progress):
    """All that --resume needs, as {name: tensor}; an optimizer that has not stepped yet is filled in."""
    state = {"draw": draw.get_state()} | {f"progress.{name}": tensor for name, tensor in progress.items()}
    for name, parameter in trained(model):
        moments = optimizer.state[parameter]
        if not moments:
            moments |= {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        state |= {f"parameter.{name}": parameter.detach()} | {f"{key}.{name}": moments[key] for key in moments}
    return state


def sums_of(folder):
    """{name: SHA-256} of the tensors' files in a save."""
    sums = {}
    for path in sorted(folder.glob("*.safetensors")):
        sums[path.name] = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**24):
                sums[path.name].update(block)
    return {name: found.hexdigest() for name, found in sums.items()}


def saves(out):
    """Folders of a run's saves, the newest first."""
    return sorted(out.glob("save-*[0-9]"), reverse=True)


def reason_of(error):
    """What the library that saves says in one line; for a process that failed it would print its traceback too."""
    return textwrap.shorten(str(next(iter(getattr(error, "failures", {}).values()), [error])[0]), 160)


def save_state(out, model, optimizer, draw, progress):
    """Save all that --resume needs in OUT/save-STEP, of which the newest two are kept; returns the seconds it took.

    Every process writes its shards (torch.distributed.checkpoint, in safetensors), and any number of them can
    read it. draw: the torch.Generator; progress: {name: tensor}, where the loop stands.
    """
    from torch.distributed import checkpoint  # here, as it takes a second that most runs need not spend

    started, (rank, ranks) = time.perf_counter(), data.ranks()
    folder = out / f"save-{progress['step'].item():08d}"
    unfinished = folder.with_suffix(".tmp")
    for left in out.glob("save-*.tmp") if rank == 0 else ():
        shutil.rmtree(left)
    data.wait()
    try:
        checkpoint.save(
            state_of(model, optimizer, draw, progress),
            no_dist=ranks == 1,
            storage_writer=checkpoint.HuggingFaceStorageWriter(str(unfinished), save_distributed=True),
        )
    except (Exception, checkpoint.CheckpointException) as error:  # a kind for each way in which it fails
        raise OSError(f"{unfinished}: {reason_of(error)}") from None
    if rank == 0:
        write_json(unfinished / "sums.json", sums_of(unfinished))
        if folder.exists():  # of this very step, and damaged, or it would not be made again
            shutil.rmtree(folder)
        unfinished.rename(folder)
        for old in saves(out)[2:]:
            shutil.rmtree(old)
    data.wait()
    return time.perf_counter() - started


def load_state(out, model, optimizer, draw, progress):
    """Undo an interruption: fill in what the newest whole save holds, if there is any. Says which are damaged.

    InputError if none is whole, or it does not fit this run.
    """
    for folder in saves(out):
        try:
            if read_json(folder / "sums.json") == sums_of(folder) != {}:
                break
        except (OSError, ValueError, RecursionError):
            pass
        print(f"{folder} is damaged; going on from the one before", file=sys.stderr)
    else:
        if saves(out):
            raise InputError(f"--resume: every save in {out} is damaged; start anew with --overwrite")
        return
    from torch.distributed import checkpoint

    state = state_of(model, optimizer, draw, progress)
    try:
        checkpoint.load(
            state, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)), no_dist=data.ranks()[1] == 1
        )
        draw.set_state(state["draw"])
    except (Exception, checkpoint.CheckpointException) as error:  # a kind for each way in which it may not fit
        raise InputError(
            f"--resume: {folder} does not fit this run ({reason_of(error)}); start anew with --overwrite"
        ) from None


def forget_lines(out, step, epoch):
    """Drop what was logged after `step` steps and `epoch` whole epochs, and what a crash left of a line."""

    def kept(line):
        try:
            return json.loads(line)[key] <= last
        except (ValueError, KeyError, TypeError):
            return False

    for name, key, last in (
        ("log.jsonl", "step", step),
        ("path.jsonl", "epoch", epoch),
        ("epochs.jsonl", "epoch", epoch),
    ):
        if (out / name).exists():
            lines = filter(kept, (out / name).read_text(encoding="utf-8").splitlines())
            write_whole(out / name, "".join(line + "\n" for line in lines))


# ------------------------------------------------------------------ data sets and models, local or of the Hub


def load_split(dataset, config, split, shape):
    """Rows of a split of a data set on the Hub, or in a local folder of the Hub's layout, as dicts.

    InputError when it is missing or empty, or a row is not of `shape`.
    """
    ask_the_hub(dataset)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs as an error, it raises too
    # A local folder is streamed: the library's cache knows it by its name alone, so an edited file, or
    # another folder of that name, would give yesterday's rows.
    local = os.path.isdir(dataset)
    try:
        files = datasets.load_dataset_builder(dataset, config).config.data_files if local else {}
        for path in (each for group in files.values() for each in group if each.endswith((".json", ".jsonl"))):
            check_lines(path)
        rows = list(datasets.load_dataset(dataset, config, split=split, streaming=local))
    except Exception as error:  # the library raises a dozen kinds, for files, network and format
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot load split '{split}' of '{config or 'default'}' of '{dataset}' ({reason}); "
            "--data takes a Hub id or a folder with the data set's files and README"
        ) from None
    check(rows, [shape], f"'{config or split}' of '{dataset}': row")
    return rows


def check_lines(path):
    """InputError unless a JSON file of a data set is a list of rows, or a row a line: of `null`, or of what is nested
    deep, the library ends by a signal."""
    with open(path, encoding="utf-8-sig") as file:
        listed = file.read(1) == "["
        file.seek(0)
        lines = [read_text(path, "utf-8-sig")] if listed else iter(lambda: file.readline(LARGEST), "")
        for number, line in enumerate(lines, 1):
            if len(line) == LARGEST:
                raise InputError(f"'{path}' line {number} has {LARGEST:,} letters or more; make it shorter")
            try:
                rows = json.loads(line.strip() or "{}")
                if not all(isinstance(row, (dict, str) if listed else dict) for row in (rows if listed else [rows])):
                    raise ValueError("every row must be an object")
            except (ValueError, RecursionError) as error:
                raise InputError(f"'{path}' line {number} is no valid JSON ({error}); mend it there") from None


def load_model(name, device, dtype, tokenizer=None):
    """(model, tokenizer) from a Hub id or a folder; weights from safetensors only, no remote code.

    tokenizer: where from, if the model has none of its own. Weights are float32, or float64 if dtype is.
    Raises InputError if they cannot be loaded, are not what config.json says, or the tokenizer has more tokens
    than the model, or so few that it must be another model's.
    """
    mend = "it needs config.json, a tokenizer and weights in safetensors (pickle files are not loaded)"
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise InputError(f"model folder '{name}' has no *.safetensors; {mend}")
    for path in Path(name).glob("*.json"):
        check_size(path)  # the libraries read it whole
    ask_the_hub(name)
    try:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception:
            if not tokenizer:
                raise
            ask_the_hub(tokenizer)
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        )
    except Exception as error:  # missing files, bad JSON, unknown architecture, no network: many kinds
        where = "" if Path(name).exists() else "it is no local folder, and the Hub did not give it: "
        reason = textwrap.shorten(str(error), 160)
        raise InputError(f"cannot load model '{name}' ({where}{reason}); {mend}") from None
    check_weights(name, model, report)
    rows = model.get_input_embeddings().weight.shape[0]
    # Models pad their embedding to a round number; Phi-1.5, by 1.8%, is the widest known to us.
    if not 0 <= rows - len(tokenizer) <= 0.02 * rows:
        raise InputError(
            f"model '{name}' embeds {rows} tokens but its tokenizer has {len(tokenizer)}; "
            "give it the tokenizer it was trained with"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no EOS token, which ends every response; set one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return model.to(device).eval(), tokenizer


def check_weights(name, model, report):
    """InputError unless all of a model's weights are in its files, as numbers to train, and nothing else is."""
    mend = "give a config.json and weights that belong together"
    # masked_bias: a constant in files of old GPT models; other such transformers itself passes over.
    unused = {key for key in report["unexpected_keys"] if not key.endswith(".masked_bias")}
    for what, keys in (("lacks", report["missing_keys"]), ("has no use for", unused)):
        if keys:
            raise InputError(f"model '{name}' {what} {len(keys)} weights, such as {min(keys)}; {mend}")
    made_for, weights = model.config.architectures, dict(model.named_parameters())
    if made_for is not None and type(model).__name__.lower() not in str(made_for).lower():
        raise InputError(f"model '{name}' is a {type(model).__name__}, but its architectures are {made_for}; {mend}")
    if getattr(model.config, "quantization_config", None):
        raise InputError(f"model '{name}' is quantized, as its config.json says; give one that is not")
    for path in Path(name).glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            for key in weights.keys() & file.keys():
                if "F" not in file.get_slice(key).get_dtype():
                    raise InputError(f"model '{name}' has whole numbers in {key}; give one that is not quantized")
    for key, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"model '{name}' has NaN or infinity in {key}; give one that did not diverge")


def family_of(model):
    """Whose recipes a model takes: `tiny` for what a from-scratch model became, else its own name's."""
    try:
        config = read_json(Path(model, "config.json"))
    except (OSError, ValueError, RecursionError):
        return model
    return "tiny" if isinstance(config, dict) and config.get("from_scratch") else model


def ask_the_hub(name):
    """Before `name` is loaded: if it is no folder and the Hub does not answer in 3 seconds, the libraries get
    to know, and look into their caches at once instead of trying for a minute."""
    if not os.path.exists(name) and not huggingface_hub.constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=3)
        except Exception:  # no name, no route, no answer: a kind for each
            huggingface_hub.constants.HF_HUB_OFFLINE = True


# ------------------------------------------------------------------ what all commands share


def one_line(text):
    """Text with escapes for what is not to be printed, such as a newline or a terminal's codes in a name."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose help keeps its lines, and whose errors are one line on stderr."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def exit(self, status=0, message=None):
        super().exit(status, message and one_line(message.strip()) + "\n")


def number(kind, low, high=1e12):
    """An argparse type: an int or float with low <= number <= high, which no NaN or infinity is."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            bound = f"at most {high}" if value > high else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text[:20]} must be {bound}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def refuse(args, flags, why):
    """InputError if the user gave one of `flags`, which have no use because of `why`."""
    for flag in flags:
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} has no use {why}; leave it out")


def resolve_device(args):
    """(device, dtype), also filled into the flags: CUDA when present, with bfloat16; float32 on the CPU."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return torch.device(args.device), getattr(torch, args.dtype)


def check_writable(folder):
    """Raise InputError unless a file can be made in `folder`. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out: cannot write to {folder} ({error.strerror}); name another folder") from None


@contextlib.contextmanager
def processes():
    """Joins the other processes of the job, if torchrun started one; only the first speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Long enough for the first to write a large model while the others wait.
    dist.init_process_group(timeout=datetime.timedelta(hours=2))
    with open(os.devnull, "w") as nowhere:
        if dist.get_rank():
            sys.stdout = nowhere
        try:
            yield
            dist.barrier()  # without it gloo's processes sometimes abort when one leaves first
        finally:
            sys.stdout = sys.__stdout__
            dist.destroy_process_group()


def agreed(*numbers):
    """The largest value of each number in any process."""
    if data.ranks()[1] > 1:
        together = torch.tensor(numbers, dtype=torch.int32)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        numbers = together.tolist()
    return numbers


# What may end a run for which it cannot be blamed, so that it goes on when that is mended.
STOPS = KeyboardInterrupt, OSError, safetensors.SafetensorError


def check_names(args):
    """InputError for a flag that is given and empty, or the name of a link that leads nowhere but to itself."""
    for flag, value in vars(args).items():
        for name in (value or [""]) if isinstance(value, list) else [value]:  # --flag=-- makes an empty list
            if name == "":
                raise InputError(f"--{flag.replace('_', '-')} is empty; give it a value or leave it out")
            try:
                os.stat(name if isinstance(name, str) else ".")
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise InputError(f"'{name}' is a symbolic link that leads to itself; name another") from None


def run_command(parser, argv, run):
    """Parse, run, and turn an error into one line on stderr: exit status 2, or 128 + signal after Ctrl-C or SIGTERM.

    Of STOPS, `mend` tells the user how to go on.
    """

    def stop(number, _):
        raise KeyboardInterrupt(number)

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ↑ shows ? instead
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # retries, when there is no network
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    try:
        check_names(args)
        with processes():
            return run(args)
    except InputError as error:  # the same in all processes of a job, of which torchrun numbers each
        parser.exit(2, f"{parser.prog}: {error}\n" if os.environ.get("RANK", "0") == "0" else None)
    except BrokenPipeError:  # … | head
        sys.stdout = None
    except (OSError, safetensors.SafetensorError) as error:
        mend = getattr(error, "mend", "")
        parser.exit(
            2,
            f"{parser.prog}: cannot read or write a file ({error}); check path, permissions and free space"
            f"{'; then ' * bool(mend)}{mend}\n",
        )
    except KeyboardInterrupt as error:
        mend, number = getattr(error, "mend", ""), error.args[0] if error.args else signal.SIGINT
        print(file=sys.stderr)
        parser.exit(128 + number, f"{parser.prog}: interrupted{'; ' * bool(mend)}{mend}\n")
    except torch.cuda.OutOfMemoryError:
        parser.exit(2, f"{parser.prog}: the GPU is out of memory; lower the micro-batch or batch size\n")
