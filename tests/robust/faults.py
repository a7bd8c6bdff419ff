"""Kill, starve and damage runs: whatever happens to one, --resume or the same command must end it as if nothing had.

    python tests/robust/faults.py [KIND …]     kinds of run: new, --overwrite, --resume, tiny (default: all)
    python tests/robust/faults.py --short      a few tries

Prints tries, recovered and lost for each fault; lost must be 0. Recovered: the run then finishes, its model and its
log.jsonl are those of an undisturbed run, bit by bit, and nothing half-written is left in its folder, beside it or in
the cache. Each try is a forked process that has imported everything; it saves after every step. POSIX only.
"""

import dataclasses
import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # bit-identical, and safe to fork
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]  # tests, and the project

import matplotlib.figure
import torch
import transformers
import transformers.models.llama.modeling_llama  # noqa: F401  once, before the forks
from conftest import tiny

import evaluate
import train
from benchmarks import BENCHMARKS
from machinery import folder
from machinery import run as runs

CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")
RUN = "--method simnpo --split forget05 --subset shortest:0.5 --batch-size 4 --epochs 2 --eval none".split()

# ------------------------------------------------------------------ one process, and what happens to it


def start(work, command, act=None, bytes_a_file=None, dies=False):
    """Fork a process that runs train.py's `command`; returns its id and a pipe from its screen.

    act(n, event, args) is called before its nth file-system call in `work`. A file that grows past bytes_a_file kills
    the process in the middle of that write if it `dies`, else the write fails as on a full disk.
    """
    screen, end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(end)
        return pid, screen
    status, save = 70, runs.save_state
    try:
        sys.stdout = sys.stderr = open(end, "w", buffering=1)
        os.environ["MINUNLEARN_CACHE"] = str(work / "cache")
        runs.SAVE_EVERY, runs.save_state = 0, lambda *given: save(*given) * 0.0  # took no time: after every step
        matplotlib.figure.Figure.savefig = lambda figure, path, **_: path.write_bytes(b"quick")
        BENCHMARKS["toy"] = smaller(BENCHMARKS["toy"])
        if bytes_a_file is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, resource.RLIM_INFINITY))
        if act:
            watch(work, act)
        train.main(command)
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def smaller(benchmark):
    """A benchmark whose from-scratch model is made in a moment."""
    quick = "new", "*", ("finetune",), dict(epochs=1, batch_size=128)
    return dataclasses.replace(benchmark, size=benchmark.size | {"width": 16}, recipes=(*benchmark.recipes, quick))


def watch(work, act):
    count, busy = 0, False

    def hook(event, args):
        nonlocal count, busy
        # Below an open folder, shutil.rmtree names files without their folder.
        if event in CALLS and not busy and (str(args[0]).startswith(str(work)) or event in ("os.remove", "os.rmdir")):
            count, busy = count + 1, True
            try:
                act(count, event, args)
            finally:
                busy = False

    sys.addaudithook(hook)


def writes(event, args):
    return event == "os.mkdir" or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


def kill_at(n, number=signal.SIGKILL):
    return lambda count, event, args: count == n and os.kill(os.getpid(), number)


def tear_at(n):
    """Killed just after a file was opened to be written: it is there, and empty."""

    def act(count, event, args):
        if count == n:
            os.close(os.open(args[0], args[2], 0o600))
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def full_from(n):
    def act(count, event, args):
        if count >= n and writes(event, args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    return act


def ended(process):
    """(exit status, or minus the signal that killed it; what it said)"""
    pid, screen = process
    with open(screen) as file:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file.read()


def one_line(said):
    """Whether a process that refused said so in one line at the end, and nothing else went wrong."""
    return "Traceback" not in said and said.strip().splitlines()[-1].startswith("train.py: ")


# ------------------------------------------------------------------ what to disturb


class Trial:
    """One kind of run in a folder of its own: how to bring it about, and how it should end."""

    def __init__(self, root, name, model, last, before=None):
        """last: the command's last flag, if any; before: a folder that stands in the run's place at first."""
        self.work, self.before, self.name = root / name / "work", before, name
        self.command = [*RUN, "--model", str(model), "--out", str(self.work / "run"), *last]
        self.reset()
        calls = root / name / "calls"

        def note(count, event, args):
            with open(calls, "a") as file:
                tear = event == "open" and writes(event, args) and not os.path.isdir(args[0])
                save = event == "os.rename" and Path(args[1]).name.startswith("save-")
                file.write("tear\n" if tear else "save\n" if save else event + "\n")

        started = time.perf_counter()
        status, said = ended(self.start(note))
        assert status == 0, said
        self.seconds = time.perf_counter() - started
        self.calls = calls.read_text().split()
        self.whole = self.result()

    def reset(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        if self.before:
            shutil.copytree(self.before, self.work / "run")

    def start(self, *faults, command=None, **more):
        return start(self.work, command or self.command, *faults, **more)

    def result(self):
        """{file: bytes} of what must not depend on faults; what is half-written has no business there at all."""
        names = "model.safetensors", "log.jsonl"
        files = {}
        for path in self.work.rglob("*"):
            unfinished = path.name.startswith((".", "save-")) or path.suffix == ".tmp"
            if path.name in names or unfinished:
                files[str(path.relative_to(self.work))] = path.read_bytes() if path.name in names else None
        return files

    def recovers(self):
        """--resume goes on, or else the same command; then all is as if nothing had happened."""
        plain = [flag for flag in self.command if flag not in ("--resume", "--overwrite")]
        for command in ([*plain, "--resume"], self.command):
            status, said = ended(self.start(command=command))
            if status == 0:
                return self.result() == self.whole
            if not one_line(said):
                break
        return False


# ------------------------------------------------------------------ faults: each yields whether a try was recovered


def killed(trial, points):
    """Before file-system calls, and just after a file was opened to be written."""
    for n in points:
        for act in (kill_at, tear_at) if trial.calls[n - 1] == "tear" else (kill_at,):
            trial.reset()
            status, said = ended(trial.start(act(n)))
            yield status == -signal.SIGKILL and trial.recovers()


def killed_within_a_write(trial, sizes):
    for size in sizes:
        trial.reset()
        status, said = ended(trial.start(bytes_a_file=size, dies=True))
        yield status in (-signal.SIGXFSZ, 0) and trial.recovers()


def signalled(trial, moments, *numbers):
    """kill -9, SIGTERM or Ctrl-C at a moment; the last two save, say so and exit with 128 + signal."""
    for moment in moments:
        for number in numbers:
            trial.reset()
            process = trial.start()
            time.sleep(moment)
            os.kill(process[0], number)
            status, said = ended(process)
            told = status == 128 + number and one_line(said)
            yield (status in (0, -number) or told) and trial.recovers()


def interrupted(trial, points):
    """Ctrl-C or SIGTERM before a file-system call: within a step, a save, a load, or a library that wraps errors."""
    for n in points:
        number = (signal.SIGINT, signal.SIGTERM)[n % 2]
        trial.reset()
        status, said = ended(trial.start(kill_at(n, number)))
        told = status == 128 + number and one_line(said)
        yield (status in (0, -number) or told) and trial.recovers()


def full(trial, points, sizes):
    """No file can be made any more from a call on, or none can grow past a size: one line, status 2."""
    for fault in [{"act": full_from(n)} for n in points] + [{"bytes_a_file": size} for size in sizes]:
        trial.reset()
        status, said = ended(trial.start(**fault))
        yield (status == 0 or status == 2 and one_line(said)) and trial.recovers()


def two_at_once(trial, points):
    """A second process comes while the first stands still before its nth call: one of them refuses."""
    for n in points:
        trial.reset()
        first = trial.start(kill_at(n, signal.SIGSTOP))
        os.waitpid(first[0], os.WUNTRACED)
        outcomes = [ended(trial.start())]
        os.kill(first[0], signal.SIGCONT)
        outcomes.append(ended(first))
        yield (
            any(status == 0 for status, _ in outcomes)
            and all(status == 0 or status == 2 and one_line(said) for status, said in outcomes)
            and trial.result() == trial.whole
        )


def damaged(trial, draw, count):
    """The newest save is cut short, zeroed or has a bit flipped: noticed, said, and the one before it is used."""
    for i in range(count):
        trial.reset()
        newest = max((trial.work / "run").glob("save-*[0-9]"))
        path = draw.choice(sorted(newest.iterdir()))
        content = bytearray(path.read_bytes())
        place = draw.randrange(len(content))
        if i % 3 == 0:
            del content[place:]
        elif i % 3 == 1:
            content[place:] = bytes(len(content) - place)
        else:
            content[place] ^= 1 << draw.randrange(8)
        changed = content != path.read_bytes()
        path.write_bytes(content)
        status, said = ended(trial.start())
        yield status == 0 and (newest.name in said or not changed) and trial.result() == trial.whole


# ------------------------------------------------------------------ all of them


def trials(root, kinds):
    """Trials of these kinds of run, in turn: --resume, --overwrite, new, and `tiny`, which makes its model first."""
    if os.fork() == 0:  # tokenizers' threads would not survive later forks
        transformers.utils.logging.disable_progress_bar()
        tokenizer = evaluate.new_model("toy", None, seed=0)[1]
        tiny("llama", dtype=torch.float32, vocab=len(tokenizer)).save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        os._exit(0)
    os.wait()
    new = Trial(root, "new", root / "model", [])
    shutil.copytree(new.work / "run", root / "old")
    settings = folder.read(root / "old", "run.json")
    settings["flags"]["seed"] = 1
    runs.write_settings(root / "old", settings)
    new.reset()
    saves = [n for n, call in enumerate(new.calls, 1) if call == "save"]
    ended(new.start(kill_at(saves[3])))  # after three of six
    shutil.copytree(new.work / "run", root / "half")
    for kind in kinds:
        last, before = (
            ([kind], root / {"--resume": "half", "--overwrite": "old"}[kind]) if kind[0] == "-" else ([], None)
        )
        yield new if kind == "new" else Trial(root, kind, "tiny" if kind == "tiny" else root / "model", last, before)


def main(kinds):
    draw, total, short = random.Random(0), [0, 0], kinds == ["--short"]
    kinds = ["--resume"] if short else kinds or ["new", "--overwrite", "--resume", "tiny"]
    sizes = [0] if short else [0, 300, 800, 1200, 2000, 4000, 20_000, 50_000, 80_000, 170_000, 300_000]
    print(f"{'':44s} tries  recovered  lost")
    with tempfile.TemporaryDirectory() as root:
        for trial in trials(Path(root), kinds):
            points = range(1, len(trial.calls) + 1)
            moments = [draw.uniform(0.1, trial.seconds) for _ in range(1 if short else 10)]
            faults = {
                "killed at every call": killed(trial, draw.sample(points, 2) if short else points),
                "killed within a write": killed_within_a_write(trial, sizes),
                "killed at a moment": signalled(trial, moments, signal.SIGKILL),
                "SIGTERM or Ctrl-C at a moment": signalled(trial, moments, signal.SIGTERM, signal.SIGINT),
                "Ctrl-C or SIGTERM at every call": interrupted(trial, draw.sample(points, 1) if short else points),
                "disk full": full(trial, points[:: len(points) if short else 4], sizes),
            }
            if trial.name != "tiny":  # there the second waits for the first one's model
                faults["two at once"] = two_at_once(
                    trial, points[len(points) // 2 :: len(points)] if short else points[::5]
                )
            if trial.name == "--resume":
                faults["damaged saves"] = damaged(trial, draw, 3 if short else 51)
            for what, outcomes in faults.items():
                outcomes = list(outcomes)
                total = [total[0] + len(outcomes), total[1] + sum(outcomes)]
                lost = [i for i, recovered in enumerate(outcomes, 1) if not recovered]
                print(
                    f"{trial.name:12s}{what:32s}{len(outcomes):6d}{sum(outcomes):11d}{len(lost):6d}",
                    *["tries"] * bool(lost),
                    *lost,
                    flush=True,
                )
    print(f"{'all':44s}{total[0]:6d}{total[1]:11d}{total[0] - total[1]:6d}")
    return total[0] - total[1]


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
