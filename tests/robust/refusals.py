"""What the tests of bad input share: how a command refuses, and tables of what it is given."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import tiny


def refused(main, arguments, capsys, *says):
    """Run a command that must refuse, and check how: one line on stderr with all of `says`, exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for words in says:
        assert str(words) in error, error


def rows_of(text):
    """Rows of words, of lines whose cells are separated by ` | `."""
    return [[cell.strip() for cell in line.split(" | ")] for line in text.strip().splitlines()]


def row_name(cells):
    return " ".join(cells[0].split()[:9]) if isinstance(cells, list) else None


def copied(folder, to, *leave_out):
    """A copy of a flat folder without some of its files."""
    to.mkdir()
    for path in Path(folder).iterdir():
        if path.name not in leave_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def save_tiny(folder, tokenizer, kind="llama", vocab=None):
    """An untrained model's folder."""
    tiny(kind, dtype=torch.float32, vocab=vocab or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_json(folder, to, name, **changed):
    """A copy of a model folder, other values in one of its files."""
    content = json.loads((folder / name).read_text()) | changed
    (copied(folder, to) / name).write_text(json.dumps(content))
    return to


def with_weights(folder, to, **changed):
    """A copy of a model folder with other weights, or more."""
    weights = safetensors.torch.load_file(folder / "model.safetensors") | changed
    safetensors.torch.save_file(weights, copied(folder, to) / "model.safetensors", metadata={"format": "pt"})
    return to
