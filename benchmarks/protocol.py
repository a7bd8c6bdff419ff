"""What a benchmark is: one documented type, of which every task (`--task NAME`) is an instance.

A benchmark knows its rows, how a model is asked, the arithmetic of its metrics, and how they are shown. It knows
nothing of training, of methods or of files of a run, and imports no torch: a model is asked through an `evaluate.LM`.

A *log* holds per-example values under the name of each set of questions; *metrics* are what `summarize` makes of
it, a dict that goes into metrics.json; `retrained` is the part of the retrained model's log that others are compared
with.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


class Column(NamedTuple):
    """A number of metrics.json, as tables and figures show it.

    value: metrics → number, or None where it is not known. form: of format(). better: ↑ more is better, ↓ less is,
    →R nearer to Retrain's is; empty for neither. main: in the table of compare.py, else with `--columns all` only.
    bold: its best value is set in bold there. screen: (group, heading) in the table that a run prints, if it is there.
    """

    name: str
    value: Callable
    form: str = ".3f"
    better: str = ""
    main: bool = True
    bold: bool = False
    screen: tuple = ()

    @property
    def title(self):
        return f"{self.name} {self.better}".strip()

    def show(self, metrics):
        """The value as text; – where there is none."""
        value = self.value(metrics)
        return "–" if value is None else format(value, self.form)

    def words(self, metrics):
        """Name and value as text; of a column of `-x`, where more is better, those of x."""
        value, less = self.value(metrics), self.name.startswith("-")
        shown = "–" if value is None else format(-value if less else value, self.form)
        return f"{self.name.removeprefix('-').strip()} {shown}"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A task. `dataset` below is what --data says: a Hub id, a local folder, or what `data_of` makes of files."""

    name: str
    forget_splits: tuple  # names of the forget sets
    split: str  # the one that is forgotten by default

    # rows, as dicts: `question` and `answer`; or `text`, and how it is `cut` (data.pieces); or `prompt` and `answer`
    training_rows: Callable  # (dataset, split, base_knowledge=False): what a model learns or forgets
    evaluation_rows: Callable  # (dataset, forget split): {set: rows}
    retain_split: Callable  # forget split → the split that stays
    forget_split_of: Callable  # any split → the forget set that its metrics are about

    # a model's log, the arithmetic on it, and what is compared with
    measure: Callable  # (evaluate.LM, sets): log
    summarize: Callable  # (log, retrained or None): metrics
    log: dict  # the shape of a log, see machinery.inputs.check
    compared_part: Callable  # log → what others are compared with, if it is Retrain's
    read_retrained: Callable  # (path, sets=None): that part, from a file that the user names
    read_log: Callable  # path → log
    judge: Callable | None = None  # (LM of the retrained model, forget part of a log): its mean loss of each answer
    # (metrics, retrained, another's): metrics of one Retrain against another; None if they cannot be compared
    floor: Callable | None = None
    outside: Callable | None = None  # (): {set: rows} that no data set holds, measured on pretrained models only
    published: dict | None = None  # what the benchmark's authors published of their Retrain

    # tables and figures
    columns: tuple = ()
    kept: Column | None = None  # what should stay: the axes of the trade-off
    forgotten: Column | None = None  # what should go; more is better
    over_epochs: tuple = ()  # what is drawn over epochs; the first stands for forgetting
    spread: tuple = ()  # (label, compared part → values): whose distribution run.png shows
    notes: Callable = lambda metrics, log: []  # lines that belong under a table
    # ({name: metrics}, {name: log}, method, flags): lines that say whether a run worked
    verdict: Callable = lambda metrics, logs, method, flags: []

    # (LM, sets, log before unlearning, retrained): a function that says in words that forgetting has come far enough,
    # or None, of the LM as it then is; for --forget-until target
    look: Callable | None = None

    # defaults of flags
    data: str | None = None  # of --data; None where the data are embedded or the user's own files
    data_of: Callable | None = None  # (forget, retain file, fields, holdout, probe file): `dataset` of the user's files
    forget_file_cut: str | None = None  # --forget-file may replace the forget set: how its texts are cut
    scaled: Callable | None = None  # {flag: value} → {flag: default} that go by the user's files; pretrained models
    model: str = "tiny"
    tokenizer: str | None = None  # of models that have none of their own
    max_length: int = 500
    max_new_tokens: int = 64
    eval_batch_size: int = 32  # of evaluate.py
    recipes: tuple = ()  # (model, split, methods, flags), * for all; the last that fits wins

    # the small model made from scratch, if the task has one
    size: dict | None = None  # vocab, width, layers, heads
    tokenizer_split: str = "full"  # whose texts its tokenizer is made for
    author_rows: int = 0  # rows of one author, for --never-learnt; 0 where rows are not of authors

    def unseen_rows(self, count, share):
        """How many of `count` forget rows, the last ones, are of about this share of the authors."""
        return round(share * count / self.author_rows) * self.author_rows


def known(columns, metrics):
    """Those of the columns whose value is known of a model or more; metrics: of each model."""
    return [column for column in columns if any(column.value(of_model) is not None for of_model in metrics)]


def table(columns, named_metrics):
    """Lines of text from {name of a model: metrics}: the columns that a run shows on the screen."""
    shown = known([column for column in columns if column.screen], named_metrics.values())
    names = ["", *named_metrics]
    first = max(map(len, names))
    above, below = [" " * first], [f"{name:{first}}" for name in names]

    # a group's name stands above the first of its columns, which are as wide as it needs
    for group in dict.fromkeys(column.screen[0] for column in shown):
        block = [column for column in shown if column.screen[0] == group]
        cells = [[column.screen[1], *map(column.show, named_metrics.values())] for column in block]
        widths = [max(map(len, column)) for column in cells]
        widths[0] += max(0, len(group) - sum(widths) - 2 * (len(widths) - 1))
        above.append(group.ljust(sum(widths) + 2 * (len(widths) - 1)))
        for i in range(len(below)):
            below[i] += "".join(f"  {column[i]:>{width}}" for column, width in zip(cells, widths, strict=True))
    return "\n".join(["  ".join(above).rstrip(), *below])
