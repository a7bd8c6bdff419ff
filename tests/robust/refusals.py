"""What the tests of bad input share: tables of words, and an untrained model's folder."""

import torch
from conftest import tiny


def rows_of(text):
    """Rows of words, of lines whose cells are separated by ` | `."""
    return [[cell.strip() for cell in line.split(" | ")] for line in text.strip().splitlines()]


def row_name(cells):
    return " ".join(cells[0].split()[:9]) if isinstance(cells, list) else None


def save_tiny(folder, tokenizer, kind="llama", vocab=None):
    """An untrained model's folder."""
    tiny(kind, dtype=torch.float32, vocab=vocab or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
