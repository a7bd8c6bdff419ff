"""A run's folder: its files, and how they are read back. Imports no torch; machinery/run.py writes them.

model.safetensors, config.json, tokenizer      an ordinary save_pretrained folder
run.json             every flag as it was resolved, versions, commit, digests of code and data, number of processes;
                     name and colour of the method; flags of the runs that the model comes from, see `lineage`; with
                     --subset the numbers of its rows; once training is over its cost; once all is over digests of the
                     files below
log.jsonl            a line a step: losses, mean weight, learning rate, and under `met` the forget sequences that the
                     step met: row, weight, length and log π of each (RMU has no log π)
metrics.json         the benchmark's metrics, and under `reference` those of the models compared with
metrics.log.json     the per-example values behind them
reference.log.json   the same of the models compared with, for the forget set
epochs.jsonl         with --eval epoch: the metrics after each epoch
run.png              loss, weights, and what the benchmark adds; written last: the run is finished
save-STEP/           while a run is unfinished: all that --resume needs, and sums.json, checksums of it
"""

import hashlib
import sys
from pathlib import Path

from machinery.inputs import InputError, digest, one_line, read_json

FORMAT = 5  # a folder of another format is refused, not guessed at
OURS = "log.jsonl", "metrics.json", "metrics.log.json", "reference.log.json", "epochs.jsonl"
WRITTEN_BY = {"epochs.jsonl": "train.py --eval epoch", "run.json": "train.py", "log.jsonl": "train.py"}


def is_run(folder):
    return Path(folder, "run.json").is_file()


def is_finished(folder):
    """Whether nothing is left to do in a run's folder. InputError if its run.json is damaged."""
    return "cost" in read(folder, "run.json") and Path(folder, "run.png").exists()


def sum_of(path):
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            total.update(block)
    return total.hexdigest()


def sums_of(folder, names=OURS):
    """{name: SHA-256} of those of the files `names` that are in a folder."""
    return {name: sum_of(Path(folder, name)) for name in names if Path(folder, name).exists()}


def sealed(settings):
    """What run.json holds, with its own digest in it."""
    content = {name: value for name, value in settings.items() if name != "digest"}
    return content | {"digest": digest(content)}


def read(folder, name):
    """What one of a run's files holds; of a .jsonl a list, an item a line.

    InputError if it is missing, damaged, or of a run that another version of this project made.
    """
    path = Path(folder, name)
    try:
        run = read_json(Path(folder, "run.json"))
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            raise ValueError("another version of this project made it")
        if run != sealed(run) or run.get("sums", {}).get(name) not in (None, sum_of(path)):
            raise ValueError("it is damaged, or was changed after the run")
        return run if name == "run.json" else read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        mend = WRITTEN_BY.get(name, "train.py --eval end")
        raise InputError(f"run '{folder}' has no usable {name} ({error}); {mend} writes it") from None


def lineage(settings):
    """What run.json says of the runs that a model comes from: (flags of Original, flags of the run that it relearns
    from, name and colour of that one's method); None where there is none.

    Original is a run of --method finetune with nothing unlearnt before it; a run from any other relearns.
    """
    return tuple(map(settings.get, ("original", "start", "start_method")))


def lineage_from(settings):
    """What run.json says of the runs that a model comes from, if it starts from the run of these settings."""
    flags = settings["flags"]
    original, start, _ = lineage(settings)
    if flags["method"] == "finetune" and not start:
        # an Original, of the model that was taught first
        family = "tiny" if flags["family"] == "new" else flags["family"]
        return {"original": flags | {"family": original["family"] if original else family}}
    return {"original": original, "start": flags, "start_method": settings["method"]}


def kind_of(run):
    """What runs must have in common to be compared, as text: task, forget set, model, and the user's forget file."""
    flags = run["run.json"]["flags"]
    original, start, _ = lineage(run["run.json"])
    start = start or flags
    words = [flags["task"], flags["forget_split"], (original or start)["family"]]
    if start.get("never_learnt"):
        words.append(f"({start['never_learnt']:g} of it never learnt)")
    file = flags["data"]["forget"] if isinstance(flags.get("data"), dict) else flags.get("forget_file")
    return " ".join([*words, file] if file else words)


def read_runs(folders, *files):
    """[{"folder": name, file: content, …}] of runs: run.json, metrics.json and `files`.

    Folders that are no runs are passed over, with a word on stderr. InputError if none is left, for a file that is not
    usable, and for runs of different tasks, splits or models, which cannot be compared.
    """
    runs = []
    for folder in map(str, folders):
        if Path(folder).is_dir() and not is_run(folder):
            print(f"passed over {one_line(folder)}: it has no run.json, so it is no run", file=sys.stderr)
            continue
        run = {name: read(folder, name) for name in ("run.json", "metrics.json", *files)} | {"folder": folder}
        if any(Path(folder).samefile(other["folder"]) for other in runs):
            raise InputError(f"run '{folder}' is given twice; give each run once")
        runs.append(run)
        if kind_of(run) != kind_of(runs[0]):
            raise InputError(
                f"run '{folder}' is on {kind_of(run)}, '{runs[0]['folder']}' on {kind_of(runs[0])}; "
                "give runs of one task, split and model"
            )
    if not runs:
        raise InputError("none of these folders is a run; give folders that train.py made")
    return runs


def family_of(model):
    """Whose recipes a model takes: `tiny` for what a from-scratch model became, else its own name's."""
    try:
        config = read_json(Path(model, "config.json"))
    except (OSError, ValueError, RecursionError):
        return model
    return "tiny" if isinstance(config, dict) and config.get("from_scratch") else model
