"""What users give, checked at the door: text, JSON, data sets, logs. Every error is an InputError of one line.

`check` holds a value against a *shape*, so that a damaged or foreign file is one line and not a traceback. This file
imports no torch.
"""

import functools
import hashlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

LARGEST = 2 * 10**8  # bytes of a file, or letters of a line, that are read at once: as JSON they take some GB


class InputError(ValueError):
    """The user gave something unusable; the message is one line that names it and the mend."""


class NotLoaded(InputError):
    """A data set that is not there, or cannot be read at all."""


# ------------------------------------------------------------------ shapes

# Half a surrogate pair, which JSON can spell out, is no character: no tokenizer takes it.
TEXT = (
    "a text that is not empty",
    lambda value: isinstance(value, str) and value.strip() and value.encode(errors="ignore").decode() == value,
)
ANY_TEXT = "a text", lambda value: isinstance(value, str)
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
        check_object(value, shape, where)
    elif isinstance(shape, list) and isinstance(value, list) and value:
        for i, item in enumerate(value):
            check(item, shape[0], f"{where} {i}")
    elif isinstance(shape, (dict, list)) or not shape[1](value):
        kind = {dict: "an object", list: "a list of one or more"}.get(type(shape)) or shape[0]
        shown = "missing" if value is None else json.dumps(value, default=str)[:40]
        raise InputError(f"{where} is {shown}; it must be {kind}")


def check_object(value, shape, where):
    """`check` of a dict."""
    if "*" in shape:
        shape = dict.fromkeys(value, shape["*"])
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if value.get(name) is not None or name == key:
            check(value.get(name), inner, f"{where} '{name[:40]}'")

    lengths = {key: len(item) for key, item in value.items() if isinstance(item, list)}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{where} has lists of unequal length, {str(lengths)[:200]}; every example needs both")


# ------------------------------------------------------------------ files


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


def read_object(path):
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


def one_line(text):
    """Text with escapes for what is not to be printed, such as a newline or a terminal's codes in a name."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


@functools.cache
def note(line):
    """Tell on stderr, once, how something that the user gave was understood. Of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(one_line(line), file=sys.stderr)


def check_writable(folder):
    """Raise InputError unless a file can be made in `folder`. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out: cannot write to {folder} ({error.strerror}); name another folder") from None


# ------------------------------------------------------------------ data sets, local or of the Hub


def load_split(dataset, config, split, shape):
    """Rows of a split of a data set on the Hub, or in a local folder of the Hub's layout, as dicts.

    NotLoaded when it is missing or empty, InputError when a row is not of `shape`.
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
        raise NotLoaded(
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


def ask_the_hub(name):
    """Before `name` is loaded: if it is no folder and the Hub does not answer in 3 seconds, the libraries get
    to know, and look into their caches at once instead of trying for a minute."""
    import huggingface_hub

    if not os.path.exists(name) and not huggingface_hub.constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=3)
        except Exception:  # no name, no route, no answer: a kind for each
            huggingface_hub.constants.HF_HUB_OFFLINE = True
