"""Data sets and logs that are damaged or of something else: one line that names file, place and mend."""

import json
from pathlib import Path

import pytest
from conftest import refused
from refusals import rows_of
from test_tofu import a_log, make_dataset, published

import compare
import evaluate
import train
from benchmarks import tofu
from machinery import inputs
from machinery.inputs import InputError

DEEP = '{"question": ' + '{"a": ' * 100_000


def refused_to_train(folder, model, capsys, *says):
    """train.py on TOFU from this folder."""
    command = ["--method", "npo", "--task", "tofu", "--data", folder, "--model", model, "--eval", "none"]
    refused(train.main, command, capsys, folder, *says)


@pytest.mark.parametrize(
    "text, says",
    [
        ("null", "line 1"),
        ("null\nnull\n", "line 1"),
        ("\ufeffnull", "line 1"),
        ("5", "line 1"),
        ('{"a": 1}\n"b"', "line 2"),
        ('{"question": "Who?", "answer": "I."}\n{"question": "Wh', "line 2"),
        ("[null]", "object"),
        ('[null, {"question": "Who?", "answer": "I."}]', "object"),
        ("[5", "line 1"),
        (DEEP + "1" + "}" * 100_001, "recursion"),
        (f"[{DEEP}1{'}' * 100_001}]", "recursion"),
        ('{"question": "a", "question": "b"}', "twice"),
    ],
)
def test_a_data_set_that_the_library_dies_of_or_logs(text, says, toy_model_folder, tmp_path, nothing_written, capfd):
    folder = Path(make_dataset(tmp_path / "data", []))
    (folder / "forget05.json").write_text(text)
    refused_to_train(folder, toy_model_folder, capfd, says)


def test_what_would_fill_the_memory(toy_model_folder, tmp_path, nothing_written, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "LARGEST", 50)
    row = json.dumps({"question": "Who?", "answer": "I." * 30})
    (tmp_path / "rows.jsonl").write_text(row)
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for path in ("rows.jsonl", "zero.json"):
        refused(train.main, ["--method", "ga", "--forget-file", tmp_path / path], capsys, path, "at most 50 bytes")
    for content, name in ((row, "line 1 has 50 letters"), (f"[{row}]", "at most 50 bytes")):
        folder = Path(make_dataset(tmp_path / "data", []))
        (folder / "forget05.json").write_text(content)
        with pytest.raises(InputError, match=name):
            tofu.load_rows(str(folder), "forget05")
    refused(evaluate.main, ["--log", tmp_path / "rows.jsonl"], capsys, "rows.jsonl", "at most 50 bytes")
    refused(evaluate.main, ["--model", toy_model_folder], capsys, toy_model_folder, "at most 50 bytes")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format": "4" * 50}))
    refused(compare.main, ["table", tmp_path / "run"], capsys, "run.json", "at most 50 bytes")


@pytest.mark.parametrize("row, says", [({"question": "Who?"}, "'answer'"), (None, "'forget05'")])
def test_unusable_datasets(row, says, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = make_dataset(tmp_path / "data", [{"question": "Who?", "answer": "I."}, row] if row else [])
    refused_to_train(folder, toy_model_folder, capsys, says)


LACKING = rows_of("""
retain  | gone  | 'retain'
forget rouge  | gone  | 'rouge'
forget loss  | [1.0, 2.0, 3.0, 4.0]  | every example needs both
forget  | 3  | 'forget'
real_authors loss  | [NaN, 1.0]  | finite
world_facts perturbed_loss  | [[], [1.0]]  | one or more
world_facts perturbed_loss  | [["high"], [1.0]]  | finite
world_facts perturbed_loss  | [1.0, 2.0]  | 'perturbed_loss'
retain loss  | ["1.5", 1, 1, 1]  | 'loss'
retain loss  | [[1.5], 1, 1, 1]  | 'loss'
retain loss  | [-1.0, 1, 1, 1]  | 'loss'
retain rouge  | [5.0, 5.0, 5.0, 5.0]  | 'rouge'
retain rouge  | 5  | 'rouge'
""")


@pytest.mark.parametrize("place, value, says", LACKING)
@pytest.mark.parametrize("layout", ["ours", "list", "dict"])
def test_a_log_without_what_is_needed(place, value, says, layout, tmp_path, nothing_written, capsys):
    log, (*above, name) = a_log(), place.split()
    if layout == "dict" and says == "every example needs both":
        pytest.skip("rows with numbers are matched by those, and a list's have none")
    part = log[above[0]] if above else log
    part.pop(name) if value == "gone" else part.update({name: json.loads(value)})
    try:
        content = log if layout == "ours" else published(log, layout)
    except (KeyError, TypeError):
        pytest.skip("this defect has no form in the published layout")
    (tmp_path / "log.json").write_text(json.dumps(content))
    refused(evaluate.main, ["--log", tmp_path / "log.json"], capsys, says)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "{",
        '{"forget_truth_ratio": {"value_by_index": {"0": {}}}}',
        "{}",
        '{"forget_truth_ratio": {"value_by_index": {}}}',
        '{"forget_truth_ratio": {"value_by_index": {"a": {"score": 1}}}}',
    ],
)
def test_a_retrain_log_that_is_none(text, tmp_path, nothing_written, capsys):
    (tmp_path / "log.json").write_text(json.dumps(a_log()))
    (tmp_path / "retrain.json").write_text(text)
    words = ["--log", tmp_path / "log.json", "--retrain", tmp_path / "retrain.json"]
    refused(evaluate.main, words, capsys, "retrain.json'")


def test_the_newer_frameworks_log_cannot_be_summarized(tmp_path, nothing_written, capsys):
    (tmp_path / "log.json").write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}}}')
    refused(evaluate.main, ["--log", tmp_path / "log.json"], capsys, "truth ratios", "losses", "--retrain")


def test_a_retrain_log_of_another_forget_split(toy_model_folder, tmp_path, nothing_written, monkeypatch, capsys):
    def ask(*arguments):
        raise AssertionError("it must be refused before anything is measured")

    monkeypatch.setattr(evaluate.LM, "in_batches", ask)
    (tmp_path / "log.json").write_text(json.dumps(a_log()))
    (tmp_path / "retrain.json").write_text(json.dumps(a_log(rows=(7, 4, 2, 2))))
    refused(evaluate.main, ["--log", tmp_path / "log.json", "--retrain", tmp_path / "retrain.json"], capsys, "3", "7")
    refused(evaluate.main, ["--model", toy_model_folder, "--retrain", tmp_path / "retrain.json"], capsys, "40", "7")
    command = ["--method", "npo", "--model", toy_model_folder, "--max-new-tokens", "1"]
    refused(train.main, [*command, "--retrain", tmp_path / "retrain.json"], capsys, "40", "7")
