"""Writing a run's folder: alone in it, whole files, saves to go on from, the loop's log. folder.py lists the files.

Beside the folder, while a process is at work in it: `.NAME.minunlearn.lock`, and for moments `….new`, which becomes
the folder, and `….old`, which it replaces. What a killed process leaves of these, the next one sweeps.

This file does not know what a loss, a method or a metric is.
"""

import ast
import contextlib
import io
import json
import math
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import filelock
import torch
import transformers
from tqdm import tqdm

from machinery import folder, processes
from machinery.inputs import InputError, check_writable, digest

try:
    import resource
except ImportError:  # on Windows
    resource = None

SAVE_EVERY = 600  # seconds between two states of an unfinished run, at least

# ------------------------------------------------------------------ whole files


def write_text(path, text):
    """Write a file as a whole or not at all: an interruption leaves no half of it. Of several processes the first."""
    if processes.first():
        temporary = Path(f"{path}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def write_json(path, content):
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError:
        raise InputError(f"{path} would hold NaN or infinity; the model or the log gives such numbers") from None
    write_text(path, text + "\n")


def append_json(path, content):
    if processes.first():
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


def write_settings(out, settings):
    write_json(out / "run.json", folder.sealed(settings))


def drop_lines(out, step, epoch):
    """Drop what was logged after `step` steps and `epoch` whole epochs, and what a crash left of a line."""

    def is_before(line, key, last):
        try:
            return json.loads(line)[key] <= last
        except (ValueError, KeyError, TypeError):
            return False

    for name, key, last in (("log.jsonl", "step", step), ("epochs.jsonl", "epoch", epoch)):
        if (out / name).exists():
            lines = (out / name).read_text(encoding="utf-8").splitlines()
            write_text(out / name, "".join(line + "\n" for line in lines if is_before(line, key, last)))


# ------------------------------------------------------------------ one folder, one run


def choose_folder(args):
    """Make args.out a Path that may be written to, by default a new one under runs/. Creates nothing.

    InputError if it is taken, holds what the run reads, or cannot be written to.
    """
    if args.out is None and processes.several():
        raise InputError("--out: several processes write one folder; name it")
    args.out = Path(args.out or unused_name(args))
    if args.resume and not folder.is_run(args.out):
        raise InputError(f"--resume: {args.out} has no run.json; start anew without --resume")
    if not args.resume and holds_something(args.out):
        check_replaceable(args.out, args.overwrite)

    for flag in ("model", "retrain", "finetuned", "data", "forget_file", "retain_file", "holdout_file", "probe_file"):
        value = getattr(args, flag)
        used = Path("/" if not value or isinstance(value, dict) else value)  # a dict: the user's files, by their flags
        if used.exists() and used.resolve().is_relative_to(args.out.resolve()):
            raise InputError(f"--out: {args.out} holds --{flag.replace('_', '-')} {used}; name another folder")
    if processes.first():
        check_writable(next(parent for parent in (args.out, *args.out.absolute().parents) if parent.exists()))


def unused_name(args):
    """runs/ what the run is and the time of day, and more if that exists."""
    out = Path("runs", f"{args.task}-{args.split}-{args.method}-seed{args.seed}-{time.strftime('%m%d-%H%M%S')}")
    while out.exists():
        out = out.with_name(out.name + "x")
    return out


def holds_something(out):
    """Whether there is more than what a run that was killed before it began may have left: half of its run.json."""
    if not out.is_dir():
        return out.exists()
    return any(path.name != "run.json.tmp" for path in out.iterdir())


def check_replaceable(out, overwrite):
    """InputError unless `out`, which holds something, is a run's folder that --overwrite may replace."""
    if not overwrite:
        raise InputError(f"--out: {out} exists; name another folder or add --overwrite")
    if not folder.is_run(out):
        raise InputError(f"--overwrite: {out} is no run's folder (no run.json); name another")
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(f"--overwrite: {out} is or holds the folder you are in; name another")


def lock_of(out):
    """Its .new and .old are a run's other names, beside its folder; through a link, as moves stay on one disk."""
    out = out.resolve()
    return out.with_name(f".{out.name}.minunlearn.lock")


def sweep(lock):
    """Remove what a run keeps beside its folder. The caller holds `lock`: nobody else is at work there."""
    for name in (".new", ".old"):
        shutil.rmtree(lock.with_suffix(name), ignore_errors=True)
    lock.unlink(missing_ok=True)


def sweep_killed(parent):
    """Remove what killed runs left in `parent`, beside theirs: locks that nobody holds, and what they guarded."""
    for lock in parent.glob(".*.minunlearn.lock"):
        with contextlib.suppress(OSError), filelock.FileLock(lock, timeout=0):  # a Timeout is one, another user's too
            sweep(lock)


@contextlib.contextmanager
def only_run(out):
    """Let no other process work in the folder `out`, which need not exist yet. InputError if one does.

    The lock dies with its process, so a killed run is no obstacle. The first process of a job holds it for all.
    """
    taken = InputError(f"--out: another run is at work in {out}; wait for its end or name another folder")
    if not processes.first():
        if processes.agree(0)[0]:
            raise taken
        yield
        return

    lock = lock_of(out)
    new_parents = [parent for parent in lock.parents if not parent.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    sweep_killed(lock.parent)
    try:
        held = filelock.FileLock(lock).acquire(timeout=1)  # another's sweep holds it for a moment
    except filelock.Timeout:
        processes.agree(1)
        raise taken from None
    processes.agree(0)
    with held:
        try:
            yield
        finally:
            sweep(lock)
            for parent in new_parents:  # those that hold nothing: the run was refused
                with contextlib.suppress(OSError):
                    parent.rmdir()


def open_folder(out, settings, resume):
    """Make `out` ready for the loop: a new folder, or to resume the old one without half-written files.

    A new folder appears with its run.json in it, in one move, and takes with --overwrite the old one's place. One that
    exists and is empty is kept: it may be a mounted disk.
    """
    processes.wait()
    if processes.first():
        real = out.resolve()
        if resume or real.exists() and not folder.is_run(real):
            clean_folder(real)
            write_settings(real, settings)
        else:
            new, old = lock_of(out).with_suffix(".new"), lock_of(out).with_suffix(".old")
            new.mkdir()
            write_settings(new, settings)
            if real.exists():
                real.rename(old)
            new.rename(real)
            shutil.rmtree(old, ignore_errors=True)
    processes.wait()


def clean_folder(out):
    """Remove what is half-written (.tmp?????? are safetensors' own), and what will be written again."""
    for half in (*out.glob("*.json*.tmp"), *out.glob("run.png.tmp"), *out.glob(".tmp??????")):
        half.unlink()
    for name in ("metrics.json", "metrics.log.json", "reference.log.json"):
        (out / name).unlink(missing_ok=True)


def save_model(out, model, tokenizer):
    """An ordinary save_pretrained folder, also for other tools. OSError if it cannot be written."""
    weights = processes.whole_weights(model)
    try:
        if processes.first():
            model.save_pretrained(out, state_dict=weights)
            tokenizer.save_pretrained(out)
    except Exception as error:  # each library raises its own when the disk is full
        raise OSError(str(error)) from None
    processes.wait()


# ------------------------------------------------------------------ what may not change between two parts of a run

ROOT = Path(__file__).parents[1]
# Code that decides what is measured, and all that decides numbers.
MEASURING = "data.py", "evaluate.py", *sorted(f"benchmarks/{path.name}" for path in ROOT.glob("benchmarks/*.py"))
DECISIVE = "losses.py", "methods.py", "train.py", "baselines.py", *MEASURING
HIDDEN = "resume", "overwrite", "given", "recipe"  # what of the resolved flags is no setting
# What may differ when a run is resumed: it changes where and how fast, not what is computed.
MAY_CHANGE = "out", "retrain", "micro_batch_size", "eval_batch_size", "grad_checkpointing", "save_every"


def settings_of(args, start, method):
    """What run.json says at first: every resolved flag, versions, the commit of this code and its files' digests.

    start: the model to change. method: (name, colour) as tables and figures show it.
    """
    flags = {name: value for name, value in vars(args).items() if name not in HIDDEN}
    settings = {
        "format": folder.FORMAT,
        "flags": flags | {"out": str(args.out)},
        "method": dict(zip(("name", "colour"), method, strict=True)),
        "versions": {package.__name__: package.__version__ for package in (torch, transformers)},
        "commit": commit(),
        "code": {name: code_digest(ROOT / name) for name in DECISIVE},
        "processes": processes.ranks()[1],
        "original": None,
    }
    return settings | (folder.lineage_from(folder.read(start, "run.json")) if folder.is_run(start) else {})


def commit():
    """Of this code, as git names it; None without git."""

    def git(*command):
        return subprocess.run(["git", "-C", ROOT, *command], check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def code_digest(path):
    """Of what a .py computes: its syntax tree without docstrings, so comments and layout may change."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.AST(body=[ast.Expr(value=ast.Constant()), *_]):
                del node.body[0]
    return digest(ast.dump(tree))


def check_same_run(out, settings):
    """The run.json of the run to resume. InputError that names what is not as in `settings`: a flag, the code, a
    library, or the data as far as `settings` knows them; of a finished run only the flags count."""
    before = folder.read(out, "run.json")
    decides = {"retrain"} if settings["flags"].get("forget_until") == "target" else set()
    for flag, value in json.loads(json.dumps(settings["flags"])).items():
        if flag not in set(MAY_CHANGE) - decides and before["flags"].get(flag) != value:
            raise InputError(
                f"--resume: the run in {out} had --{flag.replace('_', '-')} "
                f"{before['flags'].get(flag)}, not {value}; give the same flags"
            )
    if folder.is_finished(out):
        return before

    libraries = " and ".join(" ".join(pair) for pair in before["versions"].items())
    mends = {
        "method": "use the script that began it",
        "code": f"go back to that of commit {before['commit']}",
        "versions": f"install {libraries}",
        "data": "give the data as they were",
    }
    for what, mend in mends.items():
        then = before.get(what, {})
        now = settings.get(what, then)
        changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if changed:
            raise InputError(
                f"--resume: the {what} changed since the run in {out} began ({', '.join(changed)}); "
                f"{mend}, or start anew with --overwrite"
            )
    return before


# ------------------------------------------------------------------ what the loop tells and asks


class Diverged(InputError):
    """A loss or a gradient stopped being finite; the model still is what it was before that step."""


class Run:
    """The loop's notebook: log lines, a bar, the state to go on from. `out` None: nothing is written.

    on_epoch(epoch) is called after each epoch, and its time is not counted. save_every: epochs between two saves;
    None: ten minutes, or more if that took over a twentieth of the time. at_target(): whether forgetting has come far
    enough, and is held there; None: it is never asked.
    """

    def __init__(self, out=None, desc="", resume=False, save_every=None, on_epoch=None, at_target=None):
        self.out, self.desc, self.resuming, self.save_every, self.on_epoch = out, desc, resume, save_every, on_epoch
        self.at_target, self.held = at_target, False
        self.seconds, self.peak, self.clock = 0.0, 0, time.perf_counter()
        self.saved_at, self.saving = self.clock, 0.0
        self.columns = {}  # {part: [(places, values, …), …]} of the step in progress

    def resume(self, model, optimizer):
        """Undo an interruption; returns the number of steps that are done, 0 for a new run."""
        peak_memory(model.device)
        if not self.out or not self.resuming:
            return 0
        done, self.seconds, self.held = load_state(self.out, model, optimizer)
        return done

    @contextlib.contextmanager
    def loop(self, done, steps, epoch_steps):
        """Around the loop: the log, a bar, and a Ctrl-C that lets the step in progress end whole."""
        self.done, self.steps, self.epoch_steps = done, steps, epoch_steps
        self.began = self.told_at = time.perf_counter()
        writes = self.out and processes.first()
        if self.out and self.resuming:
            drop_lines(self.out, done, math.inf if done >= steps else done // epoch_steps)
        with (
            open(self.out / "log.jsonl", "a", encoding="utf-8") if writes else io.StringIO() as self.file,
            tqdm(total=steps, initial=done, desc=self.desc, disable=not processes.first() or None) as self.bar,
            deferred_interrupt() as self.interrupted,
        ):
            yield

    def add(self, part, places, divisor, *values):
        """Note what a micro-batch gave: tensors [n], for the examples at `places` of the part's batch."""
        real = places if math.isfinite(divisor) else []  # a row taken for the other processes' sake does not count
        self.columns.setdefault(part, []).append((real, [value.detach()[: len(real)] for value in values]))

    def values(self, part, count):
        """What was added for a part's batch of `count` examples, as tensors [count] in its order, of all processes."""
        batches = self.columns.get(part, [])
        columns = []
        for column in zip(*(values for _, values in batches), strict=True):
            column = torch.cat(column)
            places = torch.tensor(sum((places for places, _ in batches), []), device=column.device, dtype=torch.int64)
            columns.append(processes.add_up(column.new_zeros(count).index_copy(0, places, column)))
        return columns

    def check_finite(self, step, part, count, model):
        """Raise Diverged, before the optimizer steps, if a part's mean loss or the gradient so far is not finite."""
        if not count:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        for what, value in (("loss", self.values(part, count)[0].mean()), ("gradient", norm)):
            if not torch.isfinite(value):
                raise Diverged(
                    f"step {step}: the {part} {what} is {value.item()}; lower --lr or the {part} coefficient"
                )

    def log(self, step, rows, drawn, rate, args):
        """A line of log.jsonl: the step's mean losses, and of the forget sequences `rows` what they gave."""
        loss, *columns = self.values("forget", len(rows))
        line = {"step": step, "epoch": 1 + (step - 1) // self.epoch_steps, "forget": loss.mean().item(), "retain": 0.0}
        line |= {"weight": columns[0].mean().item(), "lr": rate}
        line["loss"] = self.forget_coeff(args) * line["forget"]
        if drawn:
            line["retain"] = self.values("retain", len(drawn))[0].mean().item()
            line["loss"] += args.retain_coeff * line["retain"]
        names = ("weight", "length", "logp")[: len(columns)]
        met = {"row": rows} | {name: column.tolist() for name, column in zip(names, columns, strict=True)}
        self.file.write(json.dumps(line | {"met": met}) + "\n")
        self.bar.set_postfix({name: line[name] for name in ("forget", "weight", "retain")})
        self.bar.update()
        self.tell_if_due(step, line)
        self.columns = {}
        self.seconds += time.perf_counter() - self.clock

        # after an epoch
        if step % self.epoch_steps == 0 or step == self.steps:
            self.file.flush()
            self.peak = max(self.peak, peak_memory(loss.device))
            if self.on_epoch:
                self.on_epoch(line["epoch"])
                peak_memory(loss.device)
        self.clock = time.perf_counter()

    def forget_coeff(self, args):
        """The factor on the forget loss of the step in progress: 0 while forgetting is held."""
        return 0.0 if self.held else args.forget_coeff

    def look(self, step, optimizer):
        """Before a step: with --forget-until target, hold forgetting from here on, or go on with it. It is asked after
        the first epoch, then each quarter of one. To hold it AdamW's momentum is dropped too, a running mean of some
        ten gradients, which would forget on.
        """
        done, each = step - 1, max(1, self.epoch_steps // 4)
        if not self.at_target or done < self.epoch_steps or done % each:
            return
        before, self.held = self.held, self.at_target()
        if self.held and not before:
            for moments in optimizer.state.values():
                moments["exp_avg"].zero_()

    def tell_if_due(self, step, line):
        """Where no terminal shows the bar: a line at tenths of the steps, or after five minutes; not every second."""
        now, tenths = time.perf_counter(), [10 * each // self.steps for each in (step - 1, step)]
        if processes.first() and self.bar.disable and now - self.told_at > (5 if tenths[0] < tenths[1] else 300):
            self.told_at = now
            left = (now - self.began) / (step - self.done) * (self.steps - step)
            means = f"forget {line['forget']:.3f}, retain {line['retain']:.3f}"
            print(f"step {step} of {self.steps}, {means}, {left:.0f} s left", file=sys.stderr, flush=True)

    def save_if_due(self, step, model, optimizer):
        """Now and then what --resume needs. After a first Ctrl-C too, then KeyboardInterrupt(signal)."""
        if self.save_every:
            due = step % (self.save_every * self.epoch_steps) == 0
        else:
            due = time.perf_counter() - self.saved_at > max(SAVE_EVERY, 20 * self.saving)
        stop, due = processes.agree(self.interrupted[0] if self.interrupted else 0, due)
        if self.out and (stop or due):
            self.file.flush()
            self.saving = save_state(self.out, model, optimizer, step, self.seconds, self.held)
            self.saved_at = time.perf_counter()
        if stop:
            raise KeyboardInterrupt(stop)
        self.clock = time.perf_counter()

    def cost(self):
        """What training took, for run.json and metrics.json."""
        return {"train_seconds": self.seconds} | ({"peak_memory_bytes": self.peak} if self.peak else {})


def peak_memory(device):
    """Bytes that tensors took at most on a CUDA device since the last call. On a CPU what the whole process ever took,
    libraries, loading and Original and Retrain included; 0 where the system does not say (Windows)."""
    if device.type != "cuda":
        return resident_memory()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def resident_memory(status="/proc/self/status"):
    """Bytes of main memory that this process took at most; 0 if the system does not say."""
    with contextlib.suppress(OSError, IndexError):  # Linux, whose getrusage counts a larger parent process too
        return 1024 * int(Path(status).read_text().split("VmHWM:")[1].split()[0])
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


# ------------------------------------------------------------------ the state to go on from


def state_of(model, optimizer, step, seconds, held):
    """All that --resume needs, as {name: tensor}; an optimizer that has not stepped yet is filled in."""
    state = {"step": torch.tensor(step), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    state["held"] = torch.tensor(held)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        moments = optimizer.state[parameter]
        if not moments:
            moments["step"] = torch.zeros((), device=parameter.device)
            moments["exp_avg"] = torch.zeros_like(parameter)
            moments["exp_avg_sq"] = torch.zeros_like(parameter)
        state |= {f"parameter.{name}": parameter.detach()} | {f"{key}.{name}": moments[key] for key in moments}
    return state


def saves(out):
    """Folders of a run's saves, the newest first."""
    return sorted(out.glob("save-*[0-9]"), reverse=True)


def drop_saves(out):
    """Remove what only --resume needs, and what is half-written."""
    if processes.first():
        for path in (*out.glob("save-*"), *out.glob("*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def tensor_sums(save):
    """{name: SHA-256} of the tensors' files in a save."""
    return folder.sums_of(save, sorted(path.name for path in save.glob("*.safetensors")))


def is_whole(save):
    """Whether a save's files are what its checksums say."""
    try:
        return json.loads((save / "sums.json").read_text(encoding="utf-8")) == tensor_sums(save) != {}
    except (OSError, ValueError, RecursionError):
        return False


def reason_of(error):
    """What the library that saves says in one line; for a process that failed it would print its traceback too.

    It wraps whatever stops it: a Ctrl-C or SIGTERM is raised again as what it is."""
    failure = next(iter(getattr(error, "failures", {}).values()), [error])[0]
    if isinstance(failure, KeyboardInterrupt):
        raise failure from None
    return textwrap.shorten(str(failure), 160)


def save_state(out, model, optimizer, step, seconds, held=False):
    """Save all that --resume needs in OUT/save-STEP, of which the newest two are kept; returns the seconds it took.

    Every process writes its shards (torch.distributed.checkpoint, in safetensors), and any number of them can read it.
    """
    from torch.distributed import checkpoint  # here, as it takes a second that most runs need not spend

    started = time.perf_counter()
    save = out / f"save-{step:08d}"
    unfinished = save.with_suffix(".tmp")
    if processes.first():
        for left in out.glob("save-*.tmp"):
            shutil.rmtree(left)
    processes.wait()

    writer = checkpoint.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    try:
        state = state_of(model, optimizer, step, seconds, held)
        checkpoint.save(state, no_dist=not processes.several(), storage_writer=writer)
    except (Exception, checkpoint.CheckpointException) as error:  # a kind for each way in which it fails
        raise OSError(f"{unfinished}: {reason_of(error)}") from None

    if processes.first():
        write_json(unfinished / "sums.json", tensor_sums(unfinished))
        if save.exists():  # of this very step, and damaged, or it would not be made again
            shutil.rmtree(save)
        unfinished.rename(save)
        for old in saves(out)[2:]:
            shutil.rmtree(old)
    processes.wait()
    return time.perf_counter() - started


def load_state(out, model, optimizer):
    """(steps, seconds, whether forgetting is held) of the newest whole save, filled into model and optimizer; (0, 0.0,
    False) without any.

    Says which saves are damaged. InputError if none is whole, or it does not fit this run.
    """
    if not saves(out):
        return 0, 0.0, False
    for save in saves(out):
        if is_whole(save):
            break
        print(f"{save} is damaged; going on from the one before", file=sys.stderr)
    else:
        raise InputError(f"--resume: every save in {out} is damaged; start anew with --overwrite")

    from torch.distributed import checkpoint

    state = state_of(model, optimizer, 0, 0.0, False)
    reader = checkpoint.HuggingFaceStorageReader(str(save))
    try:
        checkpoint.load(state, storage_reader=reader, no_dist=not processes.several())
    except (Exception, checkpoint.CheckpointException) as error:  # a kind for each way in which it may not fit
        raise InputError(
            f"--resume: {save} does not fit this run ({reason_of(error)}); start anew with --overwrite"
        ) from None
    return state["step"].item(), state["seconds"].item(), state["held"].item()
