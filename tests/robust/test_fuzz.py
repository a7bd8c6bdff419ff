"""Whatever a file holds, it is read or refused with one line.

FUZZ=10000 pytest tests/robust/test_fuzz.py tries that many. Valid files are made from the shapes that they must have;
then a value somewhere in them is replaced, dropped or renamed, or the text is cut, joined with other text or made of
arbitrary bytes.
"""

import contextlib
import io
import json
import os
import shutil

import claims
import hypothesis
import paths
import pytest
from fixtures_runs import a_run, change
from hypothesis import strategies as st
from test_tofu import a_log, published

import compare
from benchmarks import BENCHMARKS, own, tofu
from benchmarks.protocol import table
from machinery import folder as run_folder
from machinery import run as runs
from machinery.command import OneLineParser
from machinery.inputs import InputError

CASES = os.environ.get("FUZZ")  # without it the same few each time, so that the suite does not fail by chance
few = hypothesis.settings(
    max_examples=int(CASES or 100),
    derandomize=not CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

ODD = "\ud800", "\n", "\x1b[2J", "question", "forget", "Retrain", "9" * 5000, "x" * 5000
TEXTS = st.text(max_size=8) | st.sampled_from(ODD)
NUMBERS = st.booleans() | st.integers() | st.floats() | st.sampled_from([0, -1, 1e308, 5e-324, 10**400])
JSON = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def example(shape):
    """The simplest value of a shape of machinery/inputs.py, with all that may be missing."""
    if isinstance(shape, dict):
        return {key.removesuffix("?").replace("*", "Retrain"): example(inner) for key, inner in shape.items()}
    if isinstance(shape, list):
        return [example(shape[0])] * 2
    return next(value for value in ("Who is it?", 1) if shape[1](value))


def spoiled(draw, value):
    """The same with a change at one place, at any depth."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    key = draw(st.sampled_from([*value] if isinstance(value, dict) else range(len(value))))
    value, change = value.copy(), draw(st.sampled_from(["inside", "inside", "inside", "drop", "rename", "add", "all"]))
    if change == "drop":
        del value[key]
    elif change == "rename" and isinstance(value, dict):
        value[draw(TEXTS)] = value.pop(key)
    elif change == "add" and isinstance(value, dict):
        value[draw(TEXTS)] = draw(JSON)
    elif change == "all":  # so that lists stay equally long
        inner = draw(JSON)
        return dict.fromkeys(value, inner) if isinstance(value, dict) else [inner] * len(value)
    else:
        value[key] = spoiled(draw, value[key])
    return value


def damaged(draw, *values):
    """The bytes of a JSON file that holds these values, a line each, or of what happened to them."""
    kind = draw(st.sampled_from(["value", "value", "value", "text", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=40))
    which = draw(st.integers(0, len(values) - 1))
    values = [spoiled(draw, value) if i == which and kind == "value" else value for i, value in enumerate(values)]
    text = "\n".join(map(json.dumps, values))
    if kind == "text":
        at, until = sorted(draw(st.integers(0, len(text))) for _ in range(2))
        inserted = draw(st.sampled_from(["", "[" * 5000, '{"a":' * 5000, "null", ",", '"', "\n"]))
        text = text[:at] + inserted + text[until:]
    return text.encode()


def read_or_refused(read):
    """Run a reader; InputError alone may come out of it, and be printed as one line that one can read."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            return read()
        except InputError as error:
            with pytest.raises(SystemExit):
                OneLineParser(prog="fuzz").exit(2, f"fuzz: {error}\n")
        except SystemExit as stop:
            assert stop.code == 2
    line, end = said.getvalue()[:-1], said.getvalue()[-1:]
    assert line.isprintable() and end == "\n" and 10 < len(line) < 1000, said.getvalue()


@few
@hypothesis.given(st.data())
def test_own_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / ("fuzz" + data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".txt"])))
    rows = [{"question": "Who?", "answer": "Ada."}, {"text": "Ada was born."}]
    if path.suffix == ".csv":
        cells = data.draw(st.lists(st.lists(TEXTS | st.sampled_from(['"', ",", "\0"]), max_size=4), max_size=3))
        path.write_text("\n".join(map(",".join, [["question", "answer"], *cells])), errors="replace")
    else:
        path.write_bytes(damaged(data.draw, *([rows] if path.suffix == ".json" else rows)))
    for row in read_or_refused(lambda: own.read_file(path)) or ():
        assert row.keys() in ({"question", "answer"}, {"text"}) and all(value.encode() for value in row.values())


LOGS = {task: example(BENCHMARKS[task].log) for task in ("tofu", "muse-news", "wmdp", "own")}
NEWER = {"forget_truth_ratio": {"value_by_index": {"0": {"score": 1}, "1": {"score": 2}}}}
# what else may stand in a file that is named as a log, and as one of the retrained model
LAYOUTS = {"tofu": [a_log(), published(a_log(), "list"), published(a_log(), "dict")]}
REFERENCES = {"tofu": [tofu.compared_part(a_log()), NEWER]}


@few
@hypothesis.given(st.data())
def test_logs(tmp_path_factory, data):
    folder, task = tmp_path_factory.getbasetemp(), data.draw(st.sampled_from([*LOGS]))
    benchmark = BENCHMARKS[task]
    logs = [LOGS[task], *LAYOUTS.get(task, [])]
    retrained = [*logs, *REFERENCES.get(task, []), {"Retrain": benchmark.compared_part(LOGS[task])}]
    files = folder / "log.json", folder / "retrain.json"
    which = data.draw(st.integers(0, 1))
    for i, (path, contents) in enumerate(zip(files, (logs, retrained), strict=True)):
        content = data.draw(st.sampled_from(contents))
        path.write_bytes(damaged(data.draw, content) if i == which else json.dumps(content).encode())

    def read():
        reference = None if task == "wmdp" else benchmark.read_retrained(str(files[1]))
        metrics = benchmark.summarize(benchmark.read_log(str(files[0])), reference)
        runs.write_json(folder / "metrics.json", metrics)
        table(benchmark.columns, {"model": metrics})

    read_or_refused(read)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Folders of two runs, with the digests that train.py leaves in run.json."""
    folder = tmp_path_factory.mktemp("runs")
    ended = a_run(folder / "good"), a_run(folder / "bad", "simnpo")
    for run in ended:
        change(run, "run.json", sums=run_folder.sums_of(run))
    return ended


COMMANDS = (
    (compare.main, "table"),
    (compare.main, "table", "--columns", "all"),
    (compare.main, "answers"),
    (claims.main,),
    (paths.main,),
)


@few
@hypothesis.given(st.data())
def test_runs(two_runs, data):
    names = "run.json metrics.json metrics.log.json reference.log.json log.jsonl epochs.jsonl".split()
    path = two_runs[1] / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(data.draw, *map(json.loads, whole.splitlines())))
        main, *words = data.draw(st.sampled_from(COMMANDS))
        read_or_refused(lambda: main([*words, *map(str, two_runs)]))
    finally:
        path.write_bytes(whole)


@hypothesis.settings(few, max_examples=int(CASES or 200) // 20)
@hypothesis.given(st.data())
def test_data_sets(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("set")
    rows = [{"question": "Who?", "answer": "Ada."}, {"question": "What?", "answer": "It."}]
    whole = data.draw(st.sampled_from([rows, [rows], [None], [{"a": None}]]))
    (folder / "train.json").write_bytes(damaged(data.draw, *whole))
    read_or_refused(lambda: tofu.load_rows(str(folder), "default"))
    shutil.rmtree(folder)
