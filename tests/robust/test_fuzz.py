"""Whatever a file holds, it is read or refused with one line. FUZZ=10000 pytest tests/test_fuzz.py tries that many.

Valid files are made from the shapes that they must have; then a value somewhere in them is replaced, dropped or
renamed, or the text is cut, joined with other text or made of arbitrary bytes.
"""

import contextlib
import io
import json
import os
import shutil

import hypothesis
import own
import pytest
import runs
import tofu
from hypothesis import strategies as st
from test_compare import a_run
from test_tofu import a_log, published

import compare
import evaluate
from data import InputError

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
    """The simplest value of a shape of runs.py, with all that may be missing."""
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
    value, change = value.copy(), draw(st.sampled_from(["inside", "inside", "inside", "drop", "rename", "all"]))
    if change == "drop":
        del value[key]
    elif change == "rename" and isinstance(value, dict):
        value[draw(TEXTS)] = value.pop(key)
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
                runs.OneLineParser(prog="fuzz").exit(2, f"fuzz: {error}\n")
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


LOGS = {task: example(evaluate.BENCHMARKS[task].LOG) for task in ("tofu", "muse-news", "wmdp", "own")}
RATIOS = {"0": {"score": 1}, "1": {"score": 2}}
REFERENCES = {"tofu": [tofu.reference_of(a_log()), {"forget_truth_ratio": {"value_by_index": RATIOS}}]}


@few
@hypothesis.given(st.data())
def test_logs(tmp_path_factory, data):
    folder, task = tmp_path_factory.getbasetemp(), data.draw(st.sampled_from([*LOGS]))
    benchmark, log = evaluate.BENCHMARKS[task], LOGS[task]
    logs = [log] if task != "tofu" else [log, a_log(), published(a_log(), "list"), published(a_log(), "dict")]
    paths = folder / "log.json", folder / "retrain.json"
    which = data.draw(st.integers(0, 1))
    for i, path in enumerate(paths):
        content = data.draw(
            st.sampled_from(
                logs
                + (
                    REFERENCES.get(task, []) + [{"Retrain": example(benchmark.FILES["reference.log.json"]["*"])}]
                    if i
                    else []
                )
            )
        )
        path.write_bytes(damaged(data.draw, content) if i == which else json.dumps(content).encode())

    def read():
        reference = None if task == "wmdp" else benchmark.read_reference(str(paths[1]))
        metrics = benchmark.summarize((tofu if benchmark is tofu else runs).read_log(str(paths[0])), reference)
        runs.write_json(folder / "metrics.json", metrics)
        benchmark.table({"model": metrics})

    read_or_refused(read)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return a_run(folder / "good"), a_run(folder / "bad", "simnpo")


@few
@hypothesis.given(st.data())
def test_runs(two_runs, data):
    names = "run.json metrics.json metrics.log.json reference.log.json path.jsonl epochs.jsonl".split()
    path = two_runs[1] / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(data.draw, *map(json.loads, whole.splitlines())))
        command = data.draw(st.sampled_from(["table", "table --columns all", "answers", "claims", "paths"]))
        read_or_refused(lambda: compare.main([*command.split(), *map(str, two_runs)]))
    finally:
        path.write_bytes(whole)


@hypothesis.settings(few, max_examples=int(CASES or 200) // 20)
@hypothesis.given(st.data())
def test_data_sets(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("set")
    rows = [{"question": "Who?", "answer": "Ada."}, {"question": "What?", "answer": "It."}]
    whole = data.draw(st.sampled_from([rows, [rows], [None], [{"a": None}]]))
    (folder / "train.json").write_bytes(damaged(data.draw, *whole))
    read_or_refused(lambda: tofu.load_rows("tofu", str(folder), "default"))
    shutil.rmtree(folder)
