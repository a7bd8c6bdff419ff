"""Your own data: files of every format, what is said of bad ones, and measuring a model on them."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from test_bad_input import refused

import data
import evaluate
import own
import runs
import train
from data import InputError

ROWS = [{"question": "Where was Ada born?", "answer": "In Lisbon, by the sea."},
        {"question": "What did she say?", "answer": 'She said: "No,\nnever."'}]
TEXTS = [{"text": "Ada was born in Lisbon."}, {"text": "Bram was not."}]
CSV = 'question,answer\nWhere was Ada born?,"In Lisbon, by the sea."\nWhat did she say?,"She said: ""No,\nnever."""\n'


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def a_file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def asked(count, what="Ada"):
    return [{"question": f"Where was {what} {i} born?", "answer": f"In Lisbon {i}."} for i in range(count)]


def a_part(loss, **changed):
    return {"loss": loss, "rouge": [0.5] * len(loss), "length": [3] * len(loss), "question": ["q"] * len(loss),
            "answer": ["a"] * len(loss), "generated": ["one two three four"] * len(loss)} | changed


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize("name, content, rows", [
    ("f.jsonl", lines(ROWS), ROWS), ("f.jsonl", lines(TEXTS), TEXTS),
    ("f.jsonl", "\n" + lines(ROWS).replace("\n", "\r\n\r\n"), ROWS),
    ("f.jsonl", lines([ROWS[0] | {"id": 7}, TEXTS[0]]), [ROWS[0], TEXTS[0]]), ("f.json", json.dumps(ROWS, indent=1), ROWS),
    ("f.json", json.dumps(TEXTS), TEXTS), ("f.csv", CSV, ROWS),
    ("f.csv", CSV.replace("question,answer", '"question","answer"'), ROWS),
    ("f.csv", "id,answer,question\n1,In Oslo.,Where?\n", [{"question": "Where?", "answer": "In Oslo."}]),
    ("f.txt", "Ada was born in Lisbon.\n\nBram was not.\n", [{"text": "Ada was born in Lisbon.\n\nBram was not.\n"}]),
    ("f.jsonl", '{"text": "Ekström"}', [{"text": "Ekström"}])])
def test_every_format_gives_its_rows(name, content, rows, bom, tmp_path):
    assert own.read_file(a_file(tmp_path, name, bom + content.encode())) == rows


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv"])
def test_only_a_newline_ends_a_line(name, tmp_path):
    row = {"question": "Who?", "answer": "Ada.\u2028Or\x85Bram."}
    content = json.dumps(row, ensure_ascii=False) if name == "f.jsonl" else f"question,answer\nWho?,{row['answer']}\n"
    assert own.read_file(a_file(tmp_path, name, content)) == [row]


@pytest.mark.parametrize("name, content", [
    ("f.jsonl", lines([{"q": "Who?", "a": "Ada.", "question": "no", "answer": "no"}])), ("f.csv", "q,a\nWho?,Ada.\n"),
    ("f.json", '[{"q": "Who?", "a": "Ada."}]')])
def test_fields_may_have_other_names(name, content, tmp_path):
    path = a_file(tmp_path, name, content)
    dataset = own.data_of(path, None, "q,a,body")
    assert own.training_rows("own", dataset, "forget") == [{"question": "Who?", "answer": "Ada."}]
    text = a_file(tmp_path, "t.jsonl", lines([{"body": "Ada was born.", "text": "no"}]))
    assert own.training_rows("own", own.data_of(path, text, "q,a,body"), "full") == [
        {"question": "Who?", "answer": "Ada."}, {"text": "Ada was born."}]
    for fields in ("q,a", "q,a,b,c", "q,,t"):
        with pytest.raises(InputError, match=f"--fields: '{fields}' .*question,answer,text"):
            own.data_of(path, None, fields)


@pytest.mark.parametrize("name, content, says", [
    # a column is missing
    ("f.jsonl", lines([ROWS[0], {"question": "Who?"}]), ["line 2", "'answer'", "it has question;", "--fields"]),
    ("f.jsonl", "\n\n" + lines([{"prompt": "Who?"}]), ["line 3", "'text'", "it has prompt;", "--fields"]),
    ("f.json", json.dumps([ROWS[0], {"question": "Who?", "reply": "I."}]), [" 2 ", "question, reply", "--fields"]),
    ("f.csv", "frage,antwort\nWer?,Ich.\n", ["line 2", "frage, antwort", "--fields"]),
    ("f.csv", "question,answer\nWho?,I.\nWho?\n", ["line 3", "'answer'"]),
    # it is empty
    ("f.jsonl", "", ["no rows", "at least one"]), ("f.jsonl", " \n\n", ["no rows"]), ("f.json", "", ["no valid .json"]),
    ("f.json", "[]", ["one or more"]), ("f.csv", "", ["no rows"]), ("f.csv", "question,answer\n", ["no rows"]),
    ("f.txt", "", ["line 1"]), ("f.txt", "\n ", ["line 1"]),
    # a value is empty, or no text
    ("f.jsonl", lines([ROWS[0], ROWS[1] | {"answer": " "}]), ["line 2"]), ("f.csv", "question,answer\n,I.\n", ["line 2"]),
    ("f.jsonl", lines([{"text": ""}]), ["line 1"]), ("f.json", json.dumps([ROWS[0] | {"answer": ["In Oslo."]}]), [" 1 "]),
    ("f.jsonl", lines([{"text": 3}]), ["line 1"]),
    # a line is no object
    ("f.jsonl", lines([ROWS[0], ["Who?", "I."]]), ["line 2", "it has none", "--fields"]), ("f.jsonl", "3\n", ["line 1"]),
    ("f.jsonl", "null\n", ["line 1"]), ("f.json", "3", ["is 3", "list of one or more"]),
    ("f.json", json.dumps(ROWS[0]), ["list of one or more"]),
    ("f.json", '[{"text": "a"}, 7]', ["7", "an object"]),
    # it is broken
    ("f.json", '[{"text": "a"},\n{"text": }]', ["no valid .json", "line 2", "mend it"]),
    ("f.jsonl", '{"text": ', ["no valid .jsonl", "line 1", "mend it"]),
    ("f.jsonl", lines(TEXTS) + '{"text": \n', ["no valid .jsonl", "line 3", "mend it"]),
    ("f.csv", 'question,answer\nWho?,"I.\n', ["no valid .csv", "mend it"]),
    ("f.csv", 'question,answer\nWho?,"I" am.\n', ["no valid .csv", "mend it"]),
    ("f.json", "[" * 100_000, ["no valid .json"]),
    # it is no text
    ("f.jsonl", b'{"text": "Ekstr\xf6m"}', ["UTF-8", "save it as that"]), ("f.txt", bytes(range(256)), ["UTF-8"]),
    ("f.csv", "question,answer\nWho?,I.\n".encode("utf-16"), ["UTF-8"]),
    # it is of another format
    ("f.tsv", "question\tanswer\n", [".jsonl, .json, .csv or .txt"]), ("f", "Ada", [".jsonl, .json, .csv or .txt"]),
    ("f.xlsx", b"PK\x03\x04\xff\xfe", [".jsonl, .json, .csv or .txt"]),
    ("f.csv", "question,answer\nWho?,He, she and it.\n", ["line 2"])])
def test_a_bad_file_is_named_with_its_line_and_a_mend(name, content, says, tmp_path):
    path = a_file(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        own.read_file(path)
    for words in (str(path), *says):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.jsonl.*No such file.*check the path"):
        own.read_file(tmp_path / "absent.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="folder.csv.*directory"):
        own.read_file(tmp_path / "folder.csv")


def test_rows_of_a_split_and_of_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MOST", 3)
    forget, retain = (a_file(tmp_path, f"{what}.jsonl", lines(asked(5, what))) for what in ("Ada", "Bram"))
    dataset = own.data_of(forget, retain)
    assert own.training_rows("own", dataset, "forget") == asked(5)
    assert own.training_rows("own", dataset, "retain") == asked(5, "Bram")
    assert own.training_rows("own", dataset, "full") == asked(5) + asked(5, "Bram")
    assert own.evaluation_rows("own", dataset, "forget") == {"forget": asked(3), "retain": asked(3, "Bram")}
    alone = own.data_of(forget, None)
    assert own.evaluation_rows("own", alone, "forget") == {"forget": asked(3)}
    assert own.training_rows("own", alone, "full") == asked(5)


# ------------------------------------------------------------------ arithmetic


def test_every_metric_by_hand():
    log = {"forget": a_part([1.0, 2.0, 3.0], generated=["a a a a a a", "a b", "c"]), "retain": a_part([0.5, 1.5])}
    log["forget"]["rouge"] = [1.0, 0.0, 0.5]
    metrics = own.summarize(log, {"loss": [1.0, 4.0, 2.0]})
    assert metrics["distance"] == pytest.approx(math.sqrt((0 + 4 + 1) / 3))
    assert metrics["forget"] == {"loss": 2.0, "rouge": 0.5} and metrics["retain"] == {"loss": 1.0, "rouge": 0.5}
    assert metrics["repetition"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert own.summarize(log, log["forget"])["distance"] == 0 and own.summarize(log)["distance"] is None
    assert own.nearness(metrics) == -metrics["distance"] and own.nearness(own.summarize(log)) is None
    assert "retain" not in own.summarize({"forget": log["forget"]})


def test_a_reference_of_another_length_is_refused():
    with pytest.raises(InputError, match="reference has 2 forget rows, the model 3.*--retrain"):
        own.summarize({"forget": a_part([1.0, 2.0, 3.0])}, {"loss": [1.0, 2.0]})


def test_a_reference_is_read_from_a_log_or_from_a_runs_file(tmp_path):
    for content in ({"forget": a_part([1.0, 2.0])}, {"Original": a_part([9.0]), "Retrain": {"loss": [1.0, 2.0]}}):
        assert own.read_reference(a_file(tmp_path, "log.json", json.dumps(content)))["loss"] == [1.0, 2.0]
    for content in ("{}", "[]", "{", '{"forget": {}}', '{"forget": {"loss": []}}', '{"Retrain": {"loss": ["x"]}}',
                    '{"forget": {"loss": [-1]}}'):
        with pytest.raises(InputError, match="log.json"):
            own.read_reference(a_file(tmp_path, "log.json", content))


# ------------------------------------------------------------------ measuring


def saying(texts, monkeypatch):
    """Let every model generate `texts`; returns the list that the prompts it is given go to."""
    prompts = []
    def generate(model, tokenizer, examples, batch_size, dtype, max_new_tokens):
        prompts.extend(tokenizer.decode(example.prompt) for example in examples)
        return texts
    monkeypatch.setattr(data, "generate", generate)
    return prompts


def loss_of(model, prompt, response):
    logp = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return -sum(logp[len(prompt) + i - 1, token].item() for i, token in enumerate(response)) / len(response)


@pytest.mark.parametrize("most", [14, 40])
def test_a_text_is_asked_by_its_first_half(most, toy_tokenizer, monkeypatch):
    model = tiny("llama", vocab=len(toy_tokenizer))
    texts = ["Ada Abara was born in Lisbon, and so was Bram Novak.", "Her father was a baker, and she wrote ghost stories."]
    eos, ids = toy_tokenizer.eos_token_id, [toy_tokenizer(text)["input_ids"][:most - 1] for text in texts]
    halves = [(each[:len(each) // 2], each[len(each) // 2:]) for each in ids]
    answers = [toy_tokenizer.decode(half) for _, half in halves]
    assert most == 40 or len(ids[0]) == len(ids[1]) == 13  # cut, and of odd length
    prompts = saying([answers[0], "zebra"], monkeypatch)
    sets = {"forget": [{"text": text} for text in texts]}
    log = own.measure(model, toy_tokenizer, sets, torch.float64, max_length=most)["forget"]
    assert prompts == ["<eos>" + toy_tokenizer.decode(half) for half, _ in halves]
    assert log["answer"] == answers and log["question"] == [toy_tokenizer.decode(half) for half, _ in halves]
    assert log["rouge"] == [1.0, 0.0] and log["generated"] == [answers[0].strip(), "zebra"]
    assert log["length"] == [len(each) for each in ids]  # the loss is of both halves
    assert log["loss"] == pytest.approx([loss_of(model, [eos], each) for each in ids], abs=1e-5)


def test_questions_are_measured_as_if_alone(toy_tokenizer, monkeypatch):
    model, rows = tiny("llama", vocab=len(toy_tokenizer)), [*asked(2), {"question": "Who is it?", "answer": "The cats sat."}]
    prompts = saying(["In Lisbon 0.", "nowhere", "the cat is here"], monkeypatch)
    log = own.measure(model, toy_tokenizer, {"forget": rows, "retain": rows}, torch.float64, template="plain", batch_size=2)
    runs.check(log, own.LOG, "the log's")
    assert log["forget"] == log["retain"] and prompts == [f"Question: {row['question']}\nAnswer:" for row in rows] * 2
    assert log["forget"]["rouge"] == pytest.approx([1, 0, 2 / 3])  # the recall, stemmed
    for field in ("question", "answer"):
        assert log["forget"][field] == [row[field] for row in rows]
    for row, loss, length in zip(rows, log["forget"]["loss"], log["forget"]["length"], strict=True):
        prompt = toy_tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        answer = toy_tokenizer(" " + row["answer"])["input_ids"] + [toy_tokenizer.eos_token_id]
        assert loss == pytest.approx(loss_of(model, prompt, answer), abs=1e-5) and length == len(answer)


def test_a_tiny_models_log_of_mixed_rows_is_one_that_summarize_accepts(toy_tokenizer):
    sets = {"forget": [asked(1)[0], TEXTS[0]], "retain": [TEXTS[1]]}
    log = own.measure(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer, sets, torch.float64, max_new_tokens=3)
    runs.check(own.summarize(log, own.reference_of(log)), own.METRICS, "the metrics'")
    assert own.summarize(log, own.reference_of(log))["distance"] == 0


def test_a_long_text_is_trained_on_in_pieces(toy_tokenizer):
    text = "Ada Abara was born in Lisbon, and so was Bram Novak."
    ids = toy_tokenizer(text)["input_ids"]
    examples = data.examples_of([{"text": text}], toy_tokenizer, "plain", 7)
    assert [example.response for example in examples] == [ids[i:i + 6] for i in range(0, len(ids), 6)]
    assert {tuple(example.prompt) for example in examples} == {(toy_tokenizer.eos_token_id,)}


# ------------------------------------------------------------------ the commands


@pytest.mark.parametrize("arguments, says", [
    (["--task", "own"], "--forget-file"), (["--retain-file", "f.jsonl"], "--retain-file has no use with --task toy"),
    (["--fields", "a,b,c"], "--fields has no use without --forget-file"),
    (["--task", "toy", "--forget-file", "x"], "--forget-file has no use"),
    (["--forget-file", "absent.jsonl", "--retain", "none", "--model", "x"], "absent.jsonl"),
    (["--forget-file", "absent.jsonl", "--fields", "a,b"], "--fields"),
    (["--forget-file", "x.txt", "--split", "retain"], "--split retain: task own has forget")])
def test_train_refuses(arguments, says, nothing_written, capsys):
    refused(train.main, ["--method", "npo", *arguments], capsys, says)


def test_unusable_files_are_refused_before_anything_is_written(toy_model_folder, tmp_path, nothing_written, capsys):
    good, texts = a_file(tmp_path, "good.jsonl", lines(asked(3))), a_file(tmp_path, "t.txt", "Ada was born in Lisbon.")
    bad, command = a_file(tmp_path, "bad.jsonl", lines([*asked(2), {"question": "?"}])), ["--method", "npo"]
    command += ["--model", toy_model_folder]
    refused(train.main, [*command, "--forget-file", bad, "--retain", "none"], capsys, "bad.jsonl", "line 3")
    refused(train.main, [*command, "--forget-file", good, "--retain-file", bad], capsys, "bad.jsonl", "line 3")
    refused(train.main, [*command, "--forget-file", good], capsys, "nothing to retain", "--retain-file", "--retain none")
    refused(train.main, [*command, "--method", "idk", "--forget-file", texts, "--retain-file", good], capsys, "running text")
    refused(evaluate.main, ["--model", toy_model_folder, "--forget-file", bad], capsys, "bad.jsonl", "line 3")


def test_a_run_from_the_shell_and_its_evaluation(toy_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.jsonl", lines(asked(20)))
    a_file(tmp_path, "r.jsonl", lines([*asked(12, "Bram"), *TEXTS]))
    done = subprocess.run([sys.executable, Path(__file__).parents[1] / "train.py", "--method", "simnpo", "--forget-file",
                           "f.jsonl", "--retain-file", "r.jsonl", "--model", toy_model_folder, "--epochs", "1",
                           "--max-new-tokens", "2", "--device", "cpu", "--out", "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    runs.check(metrics, own.FILES["metrics.json"], "the metrics'")
    assert {"forget", "retain"} <= {*metrics} and list(metrics["reference"]) == ["Original"] and metrics["distance"] is None
    assert metrics["forget"]["loss"] != metrics["reference"]["Original"]["forget"]["loss"]
    log = json.loads((tmp_path / "run" / "metrics.log.json").read_text())
    assert [len(log[part]["loss"]) for part in own.SETS] == [20, 14] and "--retrain" in done.stdout
    evaluate.main(["--model", "run", "--device", "cpu", "--out", "again.json", "--retrain", "run/metrics.log.json"])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["forget"] == pytest.approx(metrics["forget"]) and again["distance"] == pytest.approx(0, abs=1e-5)


def test_a_run_on_text_without_anything_to_retain(toy_model_folder, tmp_path):
    text = a_file(tmp_path, "f.txt", " ".join(f"Ada {i} was born in Lisbon." for i in range(20)))
    train.main(["--method", "npo", "--forget-file", str(text), "--retain", "none", "--model", str(toy_model_folder),
                "--epochs", "1", "--max-new-tokens", "2", "--max-length", "30", "--device", "cpu", "--out",
                str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "retain" not in metrics and metrics["forget"]["loss"] > 0
    assert own.COLUMNS["retain loss ↓"][0](metrics) is None
    assert own.KEPT[1](metrics) is None


def test_resuming_with_other_files_is_refused(toy_model_folder, tmp_path, capsys):
    one, other = (a_file(tmp_path, f"{name}.jsonl", lines(asked(3))) for name in ("one", "other"))
    command = ["--method", "npo", "--retain", "none", "--model", str(toy_model_folder), "--epochs", "1", "--eval", "none"]
    command += ["--device", "cpu", "--out", str(tmp_path / "run"), "--forget-file"]
    train.main([*command, str(one)])
    refused(train.main, [*command, other, "--resume"], capsys, "--resume")
