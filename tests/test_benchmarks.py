"""What all benchmarks share: the type, the table of its columns, and that they stand beneath the method."""

import subprocess
import sys
from pathlib import Path

from benchmarks import BENCHMARKS, tofu
from benchmarks.protocol import Column, table

TABLE = """\
          forgetting is rare  x
              a  a long head  last
Original  0.500            3     2
Ours          –           -1    12"""


def test_a_column_is_as_wide_as_its_widest_cell_and_a_group_as_its_name():
    columns = [
        Column("a", lambda metrics: metrics["a"], screen=("forgetting is rare", "a")),
        Column("left out", lambda metrics: 1 / 0),
        Column("x", lambda metrics: metrics["x"], "d", screen=("x", "last")),
        Column("b", lambda metrics: metrics["b"], ".0f", "↑", screen=("forgetting is rare", "a long head")),
    ]
    known = {"a": 0.5, "b": 3, "x": 2}
    assert table(columns, {"Original": known, "Ours": {"a": None, "b": -1, "x": 12}}) == TABLE
    assert [column.title for column in columns[2:]] == ["x", "b ↑"]
    assert "alone" not in table([*columns, Column("y", lambda metrics: None, screen=("alone", ""))], {"Ours": known})
    narrow = [Column("a", lambda metrics: 1, "d", screen=("wide name", ""))]
    assert table(narrow, {"m": {}}) == "   wide name\n            \nm          1"


def test_tasks_are_named_as_in_help_and_their_forget_sets_lead_to_what_stays():
    assert [*BENCHMARKS] == "toy tofu muse-news muse-books toy-muse wmdp toy-wmdp own".split()
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.split in benchmark.forget_splits
        for split in benchmark.forget_splits:
            assert benchmark.retain_split(split).startswith("retain")
            assert benchmark.forget_split_of(split) == split
        assert benchmark.forget_split_of("full") == benchmark.split
        assert sum(column.bold for column in benchmark.columns) >= 2


def test_one_retrained_model_is_held_against_another_unless_they_are_one_or_of_other_rows():
    log = {"truth_ratio": [1.0, 10.0, 100.0], "length": [1, 2, 3]}
    other = {"truth_ratio": [1.0, 10.0, 1000.0]}
    metrics = tofu.floor({"model_utility": 0.5, "judged": 1.5, "distance": 0.0}, log, other)
    assert metrics == {"model_utility": 0.5, "judged": None} | tofu.compared(log, other)
    assert metrics["forget_quality_halves"] and tofu.floor({}, log, log) is None
    assert tofu.floor({}, log, {"truth_ratio": [1.0, 10.0]}) is None
    assert all(benchmark.floor is None for name, benchmark in BENCHMARKS.items() if name not in ("toy", "tofu"))


def test_benchmarks_need_no_torch():
    root = Path(__file__).parents[1]
    command = "import benchmarks, sys; print({'torch', 'transformers', 'data', 'train'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", command], cwd=root, text=True) == "set()\n"
