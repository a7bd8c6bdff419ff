"""Rows from the user's own files: questions and answers, or running text, in the forms in which people have them.

A file becomes places (a line, an item of a list), each with a value; a value becomes rows. What was read otherwise than
as question and answer, or text, is said on stderr; what cannot be read is an InputError that names the place.
"""

import codecs
import csv
import io
import json
from pathlib import Path

from machinery.inputs import LARGEST, TEXT, InputError, check_size, note, read_text

FIELDS = "question", "answer", "text"


def names_in(fields):
    """What --fields says, as a list of three; FIELDS for None."""
    names = fields.split(",") if fields else [*FIELDS]
    if len(names) != 3 or not all(names):
        raise InputError(f"--fields: '{fields}' must be three names, such as question,answer,text")
    return names


def read_file(path, fields=FIELDS):
    """Rows of a file: {"question", "answer"}, with `turns` if something was said before, and with `paraphrase`, the
    question in other words, if there is such a column; or {"text"}.

    A .jsonl or .json may hold one list, or a value a line. The cells of a .csv lie between whichever of , ; | and tab
    its first line has most of. Text is UTF-8, or UTF-16 with a byte-order mark. InputError for anything else.
    """
    path = Path(path)
    try:
        read = READERS[path.suffix.lower()]
    except KeyError:
        raise InputError(f"'{path}' is no .jsonl, .json, .csv or .txt; give one of these") from None
    try:
        content = read_text(path, encoding_of(path))
    except OSError as error:
        raise InputError(f"cannot read '{path}' ({error.strerror}); check the path") from None
    except UnicodeError:
        raise InputError(f"'{path}' is no text in UTF-8, or UTF-16 with a byte-order mark; save it as that") from None

    rows = []
    for place, value in read(f"'{path}'", content):
        try:
            more, said = rows_of(value, fields)
        except ValueError as error:
            raise InputError(f"'{path}' {place} {error}") from None
        rows += more
        if said and path.suffix.lower() != ".txt":
            note(f"'{path}': {said}")
    if not rows:
        raise InputError(f"'{path}' has no rows; give it at least one")
    return rows


def encoding_of(path):
    check_size(path)
    with open(path, "rb") as file:
        begins = file.read(2)
    return "utf-16" if begins in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


# ------------------------------------------------------------------ a file becomes places with values


class Number(str):
    """A number in JSON, as the file spells it."""


def values_of(path, content):
    """Yield (place, value) of JSON: of a list its items, else of every line that is not blank."""
    if content.lstrip().startswith("["):
        yield from ((f"item {i}", value) for i, value in enumerate(parsed(path, content, 1), 1))
    else:
        lines = enumerate(content.split("\n"), 1)
        yield from ((f"line {number}", parsed(path, line, number)) for number, line in lines if line.strip())


def parsed(path, text, line):
    """What JSON text holds that begins in this line. In an object that has a key twice, None leads to that key."""

    def unique(pairs):
        keys = [key for key, _ in pairs]
        return dict(pairs) | {None: key for key in keys if keys.count(key) > 1}

    try:
        return json.loads(text, parse_int=Number, parse_float=Number, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where, reason = line + error.lineno - 1, f"{error.msg}, column {error.colno}"
    except RecursionError:
        where, reason = line, "it is nested too deep"
    raise InputError(f"{path} line {where} is no valid JSON ({reason}); mend it there")


def cells_of(path, content):
    """Yield (line, {column: cell}) of CSV, except of blank rows. A cell may span lines, so may a row."""
    first = content.lstrip().split("\n")[0]
    separator = max(",;|\t", key=first.count)  # of equals the first
    if separator != ",":
        note(f"{path}: its cells lie between {'tabs' if separator == chr(9) else separator}")
    csv.field_size_limit(LARGEST)
    spaced = f"{separator} " in first
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, skipinitialspace=spaced, strict=True)

    columns, place, line = None, "", 1
    try:
        for cells in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not any(map(str.strip, cells)):
                continue
            if columns is None:
                columns = columns_of(path, place, cells)
            elif any(cells[len(columns) :]):
                raise InputError(f"{path} {place} has more cells than columns; quote what holds a '{separator}'")
            else:
                yield place, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise InputError(f"{path} line {line} is no valid .csv ({error}); mend it there") from None


def columns_of(path, place, cells):
    """Names of columns, without the space around them."""
    columns = [cell.strip() for cell in cells]
    twice = [column for column in columns if column and columns.count(column) > 1]
    if twice:
        raise InputError(f"{path} {place} names the column '{twice[0]}' twice; leave one of them out")
    return columns


READERS = {
    ".jsonl": values_of,
    ".json": values_of,
    ".csv": cells_of,
    ".txt": lambda path, content: [("line 1", content)],
}

# ------------------------------------------------------------------ a value becomes rows


def rows_of(value, fields):
    """(rows, what to say of how they were read, or None) of a value. ValueError says what is wrong with it.

    Question and answer go before a text, unless both are empty. After them come the FORMS. A string is a text.
    """
    question, answer, text = fields
    if isinstance(value, str) and not isinstance(value, Number):
        return [{"text": text_in({"text": value}, "text")}], "strings are read as texts"
    check_object(value)

    # ours
    unanswered = is_blank(value, question) and is_blank(value, answer)
    if {question, answer} <= value.keys() and not (unanswered and text in value):
        unused = f"'{text}' is not used, since there are '{question}' and '{answer}'"
        rows = pair(value, question, answer)
        if "paraphrase" not in fields and not is_blank(value, "paraphrase"):
            rows[0]["paraphrase"] = text_in(value, "paraphrase")
        return rows, None if is_blank(value, text) else unused
    if text in value:
        return [{"text": text_in(value, text)}], None

    # others'
    for keys, read, said in FORMS:
        if keys <= value.keys():
            return read(value), said
    missing = " and ".join(f"'{name}'" for name in (question, answer) if name not in value)
    names = ", ".join(value)[:200] or "none"
    raise ValueError(f"lacks {missing}, or '{text}'; it has {names}; --fields tells what yours are called")


def check_object(value):
    """ValueError unless a value is an object, with every key once."""
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}; it must be an object with question and answer, or with text")
    if None in value:
        raise ValueError(f"has the key '{value[None]}' twice; leave one of them out")


def is_blank(values, key):
    """Whether there is nothing under a key, or white space."""
    return not str(values.get(key) or "").strip()


def text_in(values, key):
    """The text under a key, or a number as it is spelled. ValueError, with the value, for anything else."""
    if not TEXT[1](values.get(key)):
        raise ValueError(f"has {shown(values.get(key))} as '{key}'; it must be {TEXT[0]}")
    return str(values[key])


def shown(value):
    """A value that is not what it should be, for a message."""
    text = value if isinstance(value, Number) else json.dumps(value)
    return "an empty text" if value == "" else text[:40]


def pair(values, question, answer):
    return [{"question": text_in(values, question), "answer": text_in(values, answer)}]


def alpaca(values):
    """`input`, if any, is what the instruction is about; both are the question."""
    keys = ["instruction"] if is_blank(values, "input") else ["instruction", "input"]
    return [{"question": "\n\n".join(text_in(values, key) for key in keys), "answer": text_in(values, "output")}]


ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def conversation(turns, role, content):
    """A row for every answer: the question just before it, and what was said before that, if anything, as `turns`."""
    if not isinstance(turns, list):
        raise ValueError(f"has {shown(turns)} as its turns; they must be a list")
    said, rows = [], []
    for turn in turns:
        check_object(turn)
        speaker = ROLES.get(str(turn.get(role)))
        if not speaker:
            raise ValueError(
                f"has {shown(turn.get(role))} as the '{role}' of a turn; it must be one of {', '.join(ROLES)}"
            )
        said.append({"role": speaker, "content": text_in(turn, content)})
        if speaker == "assistant":
            if [turn["role"] for turn in said[-2:-1]] != ["user"]:
                raise ValueError("has an answer without a question before it; let every answer follow one")
            *before, asked, answered = said
            row = {"question": asked["content"], "answer": answered["content"]}
            rows.append(row | {"turns": before} if before else row)
    if not rows:
        raise ValueError("has no answer among its turns; give it one")
    return rows


FORMS = (
    (
        {"messages"},
        lambda values: conversation(values["messages"], "role", "content"),
        "every answer in 'messages' is a row, what was said before it its prompt",
    ),
    (
        {"conversations"},
        lambda values: conversation(values["conversations"], "from", "value"),
        "every answer in 'conversations' is a row, what was said before it its prompt",
    ),
    (
        {"prompt", "completion"},
        lambda values: pair(values, "prompt", "completion"),
        "'prompt' is read as the question, 'completion' as the answer",
    ),
    (
        {"instruction", "output"},
        alpaca,
        "'instruction', and 'input' below it, are read as the question, 'output' as the answer",
    ),
)
