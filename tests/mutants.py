"""Do the tests see a wrong number? Put small slips into a copy of the code, one at a time, and run what covers them.

    python tests/mutants.py [WORD …]     slips whose file or text holds a WORD (default: all); --jobs N at a time
    python tests/mutants.py --stale      only say which slips of slips.txt the code has no place for any more

The slips are in slips.txt beside this file. A slip finds its place in its file by its text. Prints each that no test
notices, and a table by file: tried, noticed, equal (it changes nothing, and slips.txt says why), not noticed, and those
whose tests took too long to say. Before, the tests are run without any slip: those that fail then would notice
whatever one does. POSIX only: each slip is tried in a forked process that has imported the libraries already.
"""

import argparse
import ast
import collections
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).parents[1]
LIBRARIES = (  # loaded before the forks
    "datasets",
    "hypothesis",
    "matplotlib.figure",
    "pytest",
    "rouge_score.rouge_scorer",
    "scipy.stats",
    "torch",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
LIMIT = 600  # seconds for the tests of one slip
SAID = "noticed", "equal", "not noticed", "too long"
# file, or folder: tests that cover it, the quickest first. What is not named here is covered by all of them.
COVERS = {
    "losses.py": "losses data markov train",
    "methods.py": "methods train losses",
    "data.py": "data methods models losses train ranks muse wmdp own tofu",
    "train.py": "train lora methods evaluate bad_input own faults ranks relearning",
    "baselines.py": "baselines train bad_input ranks",
    "evaluate.py": "evaluate memorization models lora tofu muse wmdp own bad_input bad_data train verdict",
    "compare.py": "compare results bad_runs train",
    "markov.py": "markov results",
    "benchmarks/protocol.py": "benchmarks tofu muse wmdp own compare",
    "benchmarks/toy.py": "toy memorization tofu muse wmdp train",
    "benchmarks/tofu.py": "tofu memorization benchmarks compare results bad_data evaluate train",
    "benchmarks/muse.py": "muse benchmarks compare results",
    "benchmarks/wmdp.py": "wmdp benchmarks compare",
    "benchmarks/files.py": "files own bad_data",
    "benchmarks/rouge.py": "files own tofu muse",
    "benchmarks/general.py": "general own",
    "benchmarks/verdict.py": "verdict",
    "benchmarks/memorization.py": "memorization own muse tofu",
    "benchmarks/own.py": "own memorization general verdict benchmarks compare bad_data fuzz",
    "machinery/cache.py": "train faults",
    "machinery/command.py": "bad_input markov compare train",
    "machinery/flags.py": "train lora bad_input evaluate own muse wmdp",
    "machinery/folder.py": "compare bad_runs faults train bad_input",
    "machinery/inputs.py": "bad_data tofu own muse wmdp bad_models bad_input fuzz",
    "machinery/models.py": "lora models bad_models toy evaluate train",
    "machinery/processes.py": "ranks",
    "machinery/run.py": "faults bad_input lora train ranks",
    "machinery/statistics.py": "memorization own verdict muse compare results markov",
    "results": "results relearning bad_runs compare markov",
}


class Slip(NamedTuple):
    right: str
    wrong: str
    equal: str  # why it changes nothing; empty if it does
    path: Path  # the file that holds `right`, from the project's root
    places: int  # how often it does: once, or the slip is stale


def read_slips(code):
    """Slips of slips.txt. code: {path: text}.

    Lines: the name of a file that is spoken of from here on; `- right`, `+ wrong`, maybe `= why equal`; others are
    comments.
    """
    lines = [*Path(__file__).with_name("slips.txt").read_text(encoding="utf-8").splitlines(), "- end"]
    slips, target, following, parts = [], None, None, {"-": [], "+": [], "=": []}
    for line in lines:
        mark, text = line[:2].strip(), line[2:]
        if mark == "-" and parts["+"]:
            slips.append(slip_of(target, code[target], *parts.values()))
            parts = {"-": [], "+": [], "=": []}
        if mark == "-":
            target = following
        if mark in parts:
            parts[mark].append(text)
        elif Path(line) in code:
            following = Path(line)
    return slips


def slip_of(path, code, right, wrong, equal):
    """A Slip from its lines; one that leaves no Python behind has no place."""
    slip = Slip(
        "\n".join(right), "\n".join(wrong), " ".join(equal), path, len(pattern_of("\n".join(right)).findall(code))
    )
    try:
        ast.parse(changed(code, slip))
    except SyntaxError:
        return slip._replace(places=0)
    return slip


def changed(code, slip):
    """The code with the slip made in it."""
    return pattern_of(slip.right).sub(lambda _: slip.wrong, code)


def pattern_of(text):
    """Finds `text` whatever its white space, so that a change of layout does not lose it."""
    return re.compile(r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", text))))


def tests_of(path):
    """Names of the tests that cover a file of the code, from the project's root."""
    names = COVERS.get(path.as_posix()) or COVERS.get(path.parts[0]) or ""
    files = {file.stem: str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")}
    return [files[f"test_{name}"] for name in names.split()] or ["tests"]


def noticed(copy, slip):
    """Whether a test fails in `copy`, a folder with the whole project, when the slip is made there: a word of SAID."""
    target = copy / slip.path
    before = target.read_text(encoding="utf-8")
    target.write_text(changed(before, slip), encoding="utf-8")
    tests = tests_of(slip.path)
    try:
        pid = os.fork()
        if pid == 0:
            run_tests(copy, tests)
        return wait(pid)
    finally:
        target.write_text(before, encoding="utf-8")


def run_tests(copy, tests):
    """In a child: run the tests of the copy up to the first that fails, and exit."""
    import pytest

    os.setpgid(0, 0)
    os.chdir(copy)
    screen = os.open(copy / "screen.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(screen, stream)
    status = 1
    try:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    finally:
        os._exit(int(status))


def wait(pid):
    """What the child's exit status says: a word of SAID."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "noticed" if os.waitstatus_to_exitcode(status) else "not noticed"
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "too long"


def in_parallel(slips, jobs):
    """Yield (slip, a word of SAID), as they end: each of `jobs` processes has a copy and every jobs-th slip."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        results, end = os.pipe()
        for job in range(jobs):
            copy = Path(folder, str(job), "copy")
            for name in files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            if os.fork() == 0:
                try:
                    for number in range(job, len(slips), jobs):
                        os.write(end, f"{number} {noticed(copy, slips[number])}\n".encode())
                finally:
                    os._exit(0)  # the copies are its parent's to delete
        os.close(end)
        with open(results) as lines:
            for line in lines:
                number, said = line.rstrip("\n").split(" ", 1)
                yield slips[int(number)], said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="tried are slips whose file or text holds one of these"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="slips tried at once (default: %(default)s)")
    parser.add_argument("--stale", action="store_true", help="try nothing; name the slips that have no place")
    args = parser.parse_args()
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = {
        Path(name): (ROOT / name).read_text(encoding="utf-8")
        for name in tracked.split()
        if not name.startswith("tests/")
    }
    slips = read_slips(code)

    stale = [slip for slip in slips if slip.places != 1]
    for slip in stale:
        print(f"stale, {slip.places} places in {slip.path}:\n  - {slip.right}\n  + {slip.wrong}")
    if args.stale:
        return len(stale)

    chosen = [
        slip for slip in slips if slip.places == 1 and (not args.words or any(word in str(slip) for word in args.words))
    ]
    equal = [slip for slip in chosen if slip.equal]
    counts = collections.defaultdict(collections.Counter)
    for slip in equal:
        counts[slip.path]["equal"] += 1
    for library in LIBRARIES:
        importlib.import_module(library)

    # without a slip no test may fail
    tried = [slip for slip in chosen if not slip.equal]
    unchanged = {slip.path: slip._replace(wrong=slip.right) for slip in tried}
    said_of = {slip.path: said for slip, said in in_parallel([*unchanged.values()], args.jobs)}
    failing = [str(path) for path in unchanged if said_of.get(path) != "not noticed"]
    if failing:
        raise SystemExit(f"without any slip the tests fail, or take too long, of {', '.join(failing)}")

    for slip, said in in_parallel(tried, args.jobs):
        counts[slip.path][said] += 1
        if said != "noticed":
            print(f"{said.upper()}  {slip.path}\n  - {slip.right}\n  + {slip.wrong}", flush=True)
    print(f"\n{'':28s}{'tried':>8s}" + "".join(f"{said:>13s}" for said in SAID))
    total = sum(counts.values(), collections.Counter())
    for path, count in [*sorted(counts.items()), ("all", total)]:
        print(f"{str(path):28s}{count.total():8d}" + "".join(f"{count[said]:13d}" for said in SAID))
    return len(chosen) - total["noticed"] - total["equal"]


if __name__ == "__main__":
    sys.exit(min(1, main()))
