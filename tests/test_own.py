"""Your own data: files of every format, what is said of bad ones, and measuring a model on them."""

import json
import math
import re
import zlib
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import lm_of, near, refused, shown, token_losses

import data
import evaluate
import train
from benchmarks import BENCHMARKS, own
from benchmarks.protocol import table
from machinery.folder import read
from machinery.inputs import InputError, check
from machinery.statistics import bootstrap

pytestmark = pytest.mark.usefixtures("pictures")

ROWS = [
    {"question": "Where was Ada born?", "answer": "In Lisbon, by the sea."},
    {"question": "What did she say?", "answer": 'She said: "No,\nnever."'},
]
TEXTS = [{"text": "Ada was born in Lisbon."}, {"text": "Bram was not."}]
WHO = {"question": "Who?", "answer": "Ada."}
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
    return {
        "loss": loss,
        "rouge": [0.5] * len(loss),
        "length": [3] * len(loss),
        "question": ["q"] * len(loss),
        "answer": ["a"] * len(loss),
        "generated": ["one two three four"] * len(loss),
    } | changed


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize(
    "name, content, rows",
    [
        ("f.jsonl", lines(ROWS), ROWS),
        ("f.jsonl", lines(TEXTS), TEXTS),
        ("f.jsonl", "\n" + lines(ROWS).replace("\n", "\r\n\r\n"), ROWS),
        ("f.json", json.dumps(ROWS, indent=1), ROWS),
        ("f.jsonl", '{"question": "Who?", "answer": "Ada.", "id": 7}\n{"text": "Ada."}', [WHO, {"text": "Ada."}]),
        ("f.jsonl", '{"question": "Who?", "answer": "Ada.", "text": "no"}', [WHO]),
        ("f.json", json.dumps(TEXTS), TEXTS),
        ("f.csv", CSV, ROWS),
        ("f.csv", '"question","answer"\nWho?,Ada.\n', [WHO]),
        ("f.csv", "id,answer,question\n1,Ada.,Who?\n", [WHO]),
        (
            "f.txt",
            "Ada was born in Lisbon.\n\nBram was not.\n",
            [{"text": "Ada was born in Lisbon.\n\nBram was not.\n"}],
        ),
        ("f.jsonl", '{"text": "Ekström"}', [{"text": "Ekström"}]),
        # only a newline ends a line
        ("f.jsonl", '{"text": "Ada.\u2028Or\x85Bram."}', [{"text": "Ada.\u2028Or\x85Bram."}]),
        ("f.csv", "text\nAda.\u2028Or\x85Bram.\n", [{"text": "Ada.\u2028Or\x85Bram."}]),
    ],
)
def test_every_format_gives_its_rows(name, content, rows, bom, tmp_path):
    assert own.read_file(a_file(tmp_path, name, bom + content.encode())) == rows


@pytest.mark.parametrize(
    "name, content",
    [
        ("f.jsonl", '{"q": "Who?", "a": "Ada.", "question": "no", "answer": "no"}'),
        ("f.csv", "q,a\nWho?,Ada.\n"),
        ("f.json", '[{"q": "Who?", "a": "Ada."}]'),
    ],
)
def test_fields_may_have_other_names(name, content, tmp_path):
    text = a_file(tmp_path, "t.jsonl", '{"body": "Ada was born.", "text": "no"}')
    dataset = own.data_of(a_file(tmp_path, name, content), text, "q,a,body")
    assert own.training_rows(dataset, "full") == [WHO, {"text": "Ada was born."}]


@pytest.mark.parametrize("fields", ["q,a", "q,a,b,c", "q,,t"])
def test_field_names_are_three(fields):
    with pytest.raises(InputError, match=f"--fields: '{fields}' .*question,answer,text"):
        own.data_of("f.jsonl", None, fields)


@pytest.mark.parametrize(
    "name, content, says",
    [
        # a column is missing
        (
            "f.jsonl",
            '{"question": "Who?", "answer": "I."}\n{"question": "Who?"}',
            "line 2|'answer'|it has question;|--fields",
        ),
        ("f.jsonl", '\n\n{"prompt": "Who?"}', "line 3|'text'|it has prompt;|--fields"),
        ("f.json", '[{"text": "a"}, {"question": "Who?", "reply": "I."}]', " 2 |question, reply|--fields"),
        ("f.csv", "frage,antwort\nWer?,Ich.\n", "line 2|frage, antwort|--fields"),
        ("f.csv", "question,answer\nWho?,I.\nWho?\n", "line 3|'answer'"),
        # it is empty
        ("f.jsonl", "", "no rows|at least one"),
        ("f.jsonl", " \n\n", "no rows"),
        ("f.json", "", "no rows"),
        ("f.json", "[]", "no rows"),
        ("f.csv", "", "no rows"),
        ("f.csv", "question,answer\n", "no rows"),
        ("f.txt", "\n ", "line 1"),
        # a value is empty, or no text
        ("f.jsonl", '{"text": "a"}\n{"question": "Who?", "answer": " "}', "line 2"),
        ("f.jsonl", '{"text": ""}', "line 1"),
        ("f.csv", "question,answer\n,I.\n", "line 2"),
        ("f.json", '[{"question": "Who?", "answer": ["In Oslo."]}]', " 1 "),
        ("f.jsonl", '{"text": false}', "line 1|false as 'text'"),
        # a line is no object
        ("f.jsonl", '{"text": "a"}\n["Who?", "I."]', 'line 2|is ["Who?", "I."]|an object'),
        ("f.jsonl", "3\n", "line 1"),
        ("f.jsonl", "null\n", "line 1"),
        ("f.json", "3", "line 1 is 3|an object"),
        ("f.json", '[{"text": "a"}, 7]', "7|an object"),
        # it is broken
        ("f.json", '[{"text": "a"},\n{"text": }]', "no valid JSON|line 2 |mend it"),
        ("f.jsonl", '{"text": "a"}\n{"text": \n', "no valid JSON|line 2 |mend it"),
        ("f.csv", 'question,answer\nWho?,"I.\n', "no valid .csv|mend it"),
        ("f.csv", 'question,answer\nWho?,"I" am.\n', "no valid .csv|mend it"),
        ("f.json", "[" * 100_000, "no valid JSON|nested"),
        # it is no text
        ("f.jsonl", b'{"text": "Ekstr\xf6m"}', "UTF-8|save it as that"),
        ("f.txt", bytes(range(256)), "UTF-8"),
        # it is of another format
        ("f.tsv", "question\tanswer\n", ".jsonl, .json, .csv or .txt"),
        ("f", "Ada", ".jsonl, .json, .csv or .txt"),
        ("f.csv", "question,answer\nWho?,He, she and it.\n", "line 2"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_a_mend(name, content, says, tmp_path):
    path = a_file(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        own.read_file(path)
    said = str(error.value)
    assert all(words in said for words in (str(path), *says.split("|"))) and "\n" not in said


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.jsonl.*No such file.*check the path"):
        own.read_file(tmp_path / "absent.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="folder.csv.*directory"):
        own.read_file(tmp_path / "folder.csv")


def test_rows_of_a_split_and_of_the_evaluation(tmp_path):
    ada, bram = (asked(count, what) for count, what in ((305, "Ada"), (3, "Bram")))
    forget, retain = (a_file(tmp_path, f"{name}.jsonl", lines(rows)) for name, rows in (("ada", ada), ("bram", bram)))
    for path, splits in (
        (retain, {"forget": ada, "retain": bram, "full": ada + bram}),
        (None, {"forget": ada, "full": ada}),
    ):
        dataset = own.data_of(forget, path)
        for split, rows in splits.items():
            assert own.training_rows(dataset, split) == rows
        assert own.evaluation_rows(dataset, "forget") == {
            name: rows[:300] for name, rows in splits.items() if name != "full"
        }
    with pytest.raises(InputError, match="--split retain needs rows of it; give --retain-file"):
        own.training_rows(dataset, "retain")


# ------------------------------------------------------------------ arithmetic


def test_questions_in_other_words_are_the_probe(tmp_path):
    said = {"question": "Who?", "answer": "Ada.", "paraphrase": "Who is it?"}
    forget = a_file(tmp_path, "f.jsonl", lines([said, *asked(2), said | {"paraphrase": " "}]))
    other = {"question": "Name?", "answer": "Ada."}
    probe = a_file(tmp_path, "p.jsonl", lines([other]))
    reworded = {"question": "Who is it?", "answer": "Ada.", "paraphrase": "Who is it?"}
    for path, rows in ((None, [reworded]), (probe, [other, reworded])):
        sets = own.evaluation_rows(own.data_of(forget, None, probe_file=path), "forget")
        assert sets == {"forget": [said, *asked(2), WHO], "probe": rows}
    with pytest.raises(InputError, match="line 1 has .*as 'paraphrase'; it must be a text"):
        own.read_file(a_file(tmp_path, "bad.jsonl", lines([said | {"paraphrase": [3]}])))
    renamed = a_file(tmp_path, "r.csv", "paraphrase,answer\nWho?,Ada.\n")
    assert own.read_file(renamed, ["paraphrase", "answer", "text"]) == [WHO]


@pytest.mark.parametrize("flag, taken", [("forget", 1), ("retain", 2)])
def test_holdout_rows_that_were_trained_on_are_counted(flag, taken, tmp_path):
    spaced = {"question": "Where  was Ada 0 born?", "answer": "In Lisbon 0.\n"}
    holdout = a_file(tmp_path, "h.jsonl", lines([spaced, *asked(1), *asked(2, "Bram"), {"text": "Ada was born."}]))
    forget = a_file(tmp_path, "f.jsonl", lines(asked(305)[::-1] if flag == "forget" else asked(1, "Cleo")))
    retain = a_file(tmp_path, "r.jsonl", lines(asked(4, "Bram") if flag == "retain" else asked(1, "Dora")))
    with pytest.raises(InputError, match=f"--holdout-file: {taken} of its 4 rows are in --{flag}-file too; leave them"):
        own.evaluation_rows(own.data_of(forget, retain, holdout_file=holdout), "forget")


def test_a_holdout_row_may_ask_the_same_after_other_turns(tmp_path):
    def chat(said):
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "Yes."}]
        return {"messages": [*turns, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "No."}]}

    rows = {"f": chat("Ada?"), "r": chat("Bram?"), "h": chat("Cleo?")}
    forget, retain, holdout = (a_file(tmp_path, f"{name}.jsonl", lines([row])) for name, row in rows.items())
    sets = own.evaluation_rows(own.data_of(forget, retain, None, holdout), "forget")
    assert [row["answer"] for row in sets["holdout"]] == ["Yes.", "No."]
    # and the same question with another answer is another row
    rows = [{"question": "Who?", "answer": answer} for answer in ("Ada.", "Bram.")]
    assert own.key_of(rows[0]) != own.key_of(rows[1]) and own.key_of(rows[0]) == own.key_of(dict(rows[0]))


def test_a_holdout_is_measured_and_a_tokenizer_is_made_for_it_but_nothing_is_trained_on_it(tmp_path):
    rows = {"ada": asked(2), "bram": asked(3, "Bram"), "cleo": asked(305, "Cleo"), "probe": asked(1, "Dora")}
    files = {name: a_file(tmp_path, f"{name}.jsonl", lines(of_file)) for name, of_file in rows.items()}
    dataset = own.data_of(files["ada"], files["bram"], None, files["cleo"], files["probe"])
    assert own.training_rows(dataset, "full") == rows["ada"] + rows["bram"]
    assert own.training_rows(dataset, own.OWN.tokenizer_split) == rows["ada"] + rows["bram"] + rows["cleo"]
    assert own.evaluation_rows(dataset, "forget") == {
        "forget": rows["ada"],
        "retain": rows["bram"],
        "holdout": rows["cleo"][:300],
        "probe": rows["probe"],
    }


def test_every_metric_by_hand():
    log = {
        "forget": a_part([1.0, 2.0, 9.0], generated=["a a a a a a", "a b", "c"], rouge=[1.0, 0.0, 0.2]),
        "retain": a_part([0.5, 1.5]),
    }
    metrics = own.summarize(log, a_part([1.0, 4.0, 8.0]))
    forget, retain = metrics["forget"], metrics["retain"]
    assert [forget["loss"], forget["rouge"], retain["loss"], retain["rouge"]] == pytest.approx([4.0, 0.4, 1.0, 0.5])
    assert metrics["membership"] is None and "memorized" not in forget  # of a log of before there was such
    assert metrics["distance"] == pytest.approx(math.sqrt((0 + 4 + 1) / 3)) and metrics["repetition"] == pytest.approx(
        2 / 9
    )
    assert own.summarize(log, own.compared_part(log))["distance"] == 0


def test_means_have_bootstrap_intervals():
    """Of two values the mean of two draws is one of them in a quarter of the cases each, of one nothing is known."""
    part = a_part([1.0, 3.0], memorized=[0.25, 0.75], extraction=[1.0, 1.0], mink=[-1.0, -2.0])
    means = own.summarize({"forget": part, "probe": a_part([2.0])})
    assert means["forget"] == {
        "loss": 2.0,
        "rouge": 0.5,
        "memorized": 0.5,
        "extraction": 1.0,
        "interval": {"loss": [1.0, 3.0], "rouge": [0.5, 0.5], "memorized": [0.25, 0.75], "extraction": [1.0, 1.0]},
    }
    assert means["probe"] == {"loss": 2.0, "rouge": 0.5, "interval": dict.fromkeys(("loss", "rouge"), [None, None])}

    # of a hundred draws from 0 to 99 the standard error is 2.9; a mean of what is at least 0 is at least 0
    low, high = bootstrap(np.mean, np.arange(100.0))
    assert (low, high) == pytest.approx((49.5 - 5.7, 49.5 + 5.7), abs=0.5)
    assert bootstrap(np.mean, np.arange(100.0)) == [low, high]
    assert bootstrap(np.mean, [0.0, 0.0, 0.0, 8.0]) == [0.0, 6.0]


def test_a_reference_is_matched_by_its_rows_whatever_their_order():
    rows = {"question": ["Where?", "Who?", "Who?", ""], "answer": ["Here.", "Ada.", "Bram.", "Ada was born."]}
    log = {"forget": a_part([1.0, 2.0, 3.0, 4.0], **rows)}
    turned = {name: values[::-1] for name, values in a_part([1.0, 2.0, 3.0, 6.0], **rows).items()}
    assert own.summarize(log, turned | {"note": 5})["distance"] == 1.0  # by row number: 2.6
    # where the halves of a text part depends on the tokenizer
    halved = rows | {"question": ["Where?", "Who?", "Who?", "Ada was"], "answer": ["Here.", "Ada.", "Bram.", "born."]}
    assert own.summarize(log, a_part([1.0, 2.0, 3.0, 4.0], **halved))["distance"] == 0.0
    for other in (
        rows | {"answer": ["There.", "Ada.", "Bram.", "Ada was born."]},
        {"question": ["Who?"], "answer": ["Ada."]},
    ):
        with pytest.raises(InputError, match="Retrain has . forget rows, the model 4.*--retrain"):
            own.summarize(log, a_part([1.0] * len(other["answer"]), **other))


SHOWN = """1.291 distance to Retrain ↓ main bold
4.000 forget loss →R main
0.400 forget rouge →R main
0.300 forget memorized →R main
0.200 forget extraction →R main
0.600 probe rouge →R main
0.700 AUC by loss →R main
1.000 retain loss ↓ main
0.500 retain rouge ↑ main bold
0.800 general accuracy ↑ main
12.2 plain perplexity ↓ main
0.222 repeated 4-grams →R main
0.5 ROUGE-L on retain
-1.291 - distance to Retrain
-1.291 - distance to Retrain
0.5 ROUGE-L on retain
distance forget probe membership retain general plain repeated
to Retrain loss ROUGE-L memor. extract. ROUGE-L AUC loss ROUGE-L accuracy perplexity 4-grams
NPO 1.291 4.000 0.400 0.300 0.200 0.600 0.700 1.000 0.500 0.800 12.2 0.222
"""


def test_what_tables_and_figures_show_of_a_model():
    metrics = {
        "forget": {"loss": 4.0, "rouge": 0.4, "memorized": 0.3, "extraction": 0.2},
        "retain": {"loss": 1.0, "rouge": 0.5},
        "probe": {"rouge": 0.6},
        "membership": {"loss": [0.7, 0.6, 0.8], "mink": [0.1, 0.0, 0.2]},
        "general": {"accuracy": 0.8},
        "plain": {"loss": 2.5, "perplexity": 12.18},
        "distance": 1.291,
        "repetition": 2 / 9,
    }
    alone = own.summarize({"forget": a_part([1.0])})
    assert shown(BENCHMARKS["own"], metrics) == SHOWN and "retain" not in alone
    assert {column.value(alone) for column in (*own.COLUMNS[3:11], own.KEPT, own.NEARNESS)} == {None}
    assert table(own.COLUMNS, {"NPO": alone}).splitlines()[-1].split() == "NPO 1.000 0.500 0.000".split()
    beside = table(own.COLUMNS, {"before": metrics, "NPO": alone}).splitlines()[-1]
    assert beside.split() == "NPO – 1.000 0.500 – – – – – – – – 0.000".split()
    lines = own.notes(alone, {})
    assert [flag in line for flag, line in zip(("--retrain", "--holdout-file", "--probe-file"), lines, strict=True)]
    assert own.notes(metrics, {}) == [] and own.notes(metrics | {"membership": None}, {}) == lines[1:2]
    assert own.OWN.spread[1]({"loss": [1.0], "rouge": [0.5]}) == [1.0]


def test_a_reference_is_read_from_a_log_or_from_a_runs_file(tmp_path):
    for content in ({"forget": a_part([1.0, 2.0])}, {"Original": a_part([9.0]), "Retrain": a_part([1.0, 2.0])}):
        assert own.read_retrained(a_file(tmp_path, "log.json", json.dumps(content)))["loss"] == [1.0, 2.0]
    # all that it tells is kept, in the order of the model's rows
    part = a_part([1.0, 2.0]) | {"question": ["p", "q"], "memorized": [0.1, 0.2]}
    turned = {field: values[::-1] for field, values in part.items()}
    assert own.in_order(turned, part) == part
    for content in (
        "{}",
        "[]",
        "{",
        '{"forget": {}}',
        '{"forget": {"loss": [1.0], "question": ["q"], "answer": ["a"], "memorized": ["x"]}}',
        '{"forget": {"loss": []}}',
        '{"forget": {"loss": [1.0]}}',
        '{"Retrain": {"loss": ["x"]}}',
        '{"forget": {"loss": [-1]}}',
        '{"forget": {"loss": [1.0], "question": ["q"], "answer": ["a"], "generated": [3]}}',
        '{"forget": {"loss": [1.0], "question": ["q"], "answer": ["a"], "generated": ["a", "b"]}}',
    ):
        with pytest.raises(InputError, match="log.json"):
            own.read_retrained(a_file(tmp_path, "log.json", content))


# ------------------------------------------------------------------ measuring


@pytest.mark.parametrize("most", [14, 40])
def test_a_text_is_asked_by_its_first_half(most, toy_llama, toy_tokenizer, saying):
    texts = [
        "Ada Abara was born in Lisbon, and so was Bram Novak.",
        "Her father was a baker, and she wrote ghost stories.",
    ]
    eos, ids = toy_tokenizer.eos_token_id, [toy_tokenizer(text)["input_ids"][: most - 1] for text in texts]
    halves = [[*map(toy_tokenizer.decode, (text[: len(text) // 2], text[len(text) // 2 :]))] for text in ids]
    questions, answers = map(list, zip(*halves, strict=True))
    assert most == 40 or len(ids[0]) == len(ids[1]) == 13  # cut, and of odd length
    calls = saying(answers[0], "zebra")
    sets = {"forget": [{"text": text} for text in texts]}
    log = own.measure(lm_of(toy_llama, toy_tokenizer, max_length=most, max_new_tokens=7), sets)["forget"]
    assert calls == [(["<eos>" + text for text in questions], torch.float64, 7)]
    losses = [token_losses(toy_llama, [eos], text) for text in ids]
    assert log.pop("loss") == pytest.approx([mean(of_text) for of_text in losses], rel=1e-9)
    worst = [sorted(of_text)[-int(0.4 * len(of_text)) :] for of_text in losses]
    assert log.pop("mink") == pytest.approx([-mean(of_text) for of_text in worst], rel=1e-9)
    assert {*log.pop("memorized"), *log.pop("extraction")} == {0.0}
    texts = [toy_tokenizer.decode(text) for text in ids]
    sizes = [len(zlib.compress(text.encode())) for text in texts]
    assert log.pop("zlib") == pytest.approx([mean(of_text) / size for of_text, size in zip(losses, sizes, strict=True)])
    assert all(-20 < value < 0 for value in log.pop("minkpp"))
    assert log == {
        "answer": answers,
        "question": questions,
        "rouge": [1.0, 0.0],
        "generated": [answers[0].strip(), "zebra"],
        "length": [len(text) for text in ids],
    }  # of both halves, like the loss


def test_questions_are_measured_as_if_alone(toy_llama, toy_tokenizer, saying):
    rows = [*asked(2), {"question": "Who is it?", "answer": "The cats sat."}]
    calls = saying("In Lisbon 0.", "nowhere", "the cat is here")
    sets = {"forget": rows, "retain": rows}
    log = own.measure(lm_of(toy_llama.train(), toy_tokenizer), sets)
    check(log, BENCHMARKS["own"].log, "the log's")
    assert {*log["forget"]} == {name.rstrip("?") for name in own.PART}
    prompts = [f"[INST] {row['question']} [/INST]" for row in rows]
    assert log["forget"] == log["retain"] and [call[0] for call in calls] == [prompts] * 2
    log = log["forget"]
    half = own.measure(lm_of(toy_llama.float(), toy_tokenizer, torch.bfloat16), sets)["forget"]
    assert near(half["loss"], log["loss"])
    assert log["rouge"] == pytest.approx([1, 0, 2 / 3])  # the recall, stemmed
    assert [log["question"], log["answer"]] == [[row[field] for row in rows] for field in ("question", "answer")]
    responses = [toy_tokenizer(row["answer"])["input_ids"] + [toy_tokenizer.eos_token_id] for row in rows]
    assert log["length"] == [*map(len, responses)]
    assert log["loss"] == pytest.approx(
        [
            mean(token_losses(toy_llama.double(), toy_tokenizer(prompt)["input_ids"], response))
            for prompt, response in zip(prompts, responses, strict=True)
        ],
        rel=1e-6,
    )


def test_memorization_is_of_the_tokens_that_are_the_likeliest():
    """A model that foresees these tokens of three answers of 4, 2 and 3 tokens, and has these log-probabilities."""
    scores = [([-1.0, -4.0, 0.0, 0.0], [1, 0, 1, 1]), ([-2.0, -1.0], [1, 1]), ([-6.0, -3.0, -3.0], [0, 0, 0])]
    rows = asked(3)

    class Fake:
        fitting = staticmethod(lambda rows: rows)
        examples = staticmethod(lambda rows: [data.Example([1], [2] * len(logp)) for logp, _ in scores])
        tokenizer = SimpleNamespace(batch_decode=lambda texts, **_: [""] * 3)
        generate = staticmethod(lambda examples: [" In Lisbon 0. ", "Rome", ""])

        def token_scores(self, examples):
            return [torch.tensor([*pair, pair[0]]).double().numpy() for pair in scores]

    part = own.measure(Fake(), {"probe": rows})["probe"]
    assert part.pop("loss") == [1.25, 1.5, 4.0] and part.pop("memorized") == [0.75, 1.0, 0.0]
    assert part.pop("extraction") == [0.5, 1.0, 0.0] and part.pop("mink") == part.pop("minkpp") == [-4.0, -2.0, -6.0]
    assert part.pop("zlib") == [1.25 / 8, 1.5 / 8, 4.0 / 8]  # of no text
    assert part.pop("rouge") == [1.0, 0.0, 0.0] and part.pop("generated") == ["In Lisbon 0.", "Rome", ""]
    assert part == {
        "length": [4, 2, 3],
        "question": [row["question"] for row in rows],
        "answer": [row["answer"] for row in rows],
    }


def test_a_long_text_is_trained_on_in_pieces(toy_tokenizer):
    text = "Ada Abara was born in Lisbon, and so was Bram Novak."
    ids = toy_tokenizer(text)["input_ids"]
    examples = data.examples_of([{"text": text}], toy_tokenizer, "plain", 7)
    assert [example.response for example in examples] == [ids[i : i + 6] for i in range(0, len(ids), 6)]
    assert {tuple(example.prompt) for example in examples} == {(toy_tokenizer.eos_token_id,)}


@pytest.mark.parametrize(
    "count, flags, size",
    [
        (12, {}, 4),
        (50, {}, 10),
        (1000, {}, 200),
        (2, {"forget_until": "target"}, 2),
        (12, {"forget_until": "target"}, 3),
        (1000, {"forget_until": "target"}, 32),
        (30, {"method": "finetune"}, 4),
        (80, {"method": "finetune"}, 6),
        (50, {"method": "finetune", "split": "full"}, 7),
        (1000, {"method": "finetune"}, 8),
        (80, {"subset": "random:0.5"}, 8),
    ],
)
def test_the_batch_size_of_a_pretrained_model_goes_by_the_rows(count, flags, size, tmp_path):
    """A fifth of those to forget, at least 4, or their square root where forgetting is held; a twelfth of those to
    learn, 4 to 8; `full`: both files."""
    forget = a_file(tmp_path, "f.jsonl", lines(asked(count)))
    retain = a_file(tmp_path, "r.jsonl", lines(asked(40, "Bram")))
    known = {"forget_file": str(forget), "retain_file": str(retain), "split": "forget", "method": "npo"}
    scaled = own.scaled(known | {"max_length": 500} | flags)
    assert scaled.pop("retain_batch_size", 3 * size) == 3 * size and scaled == {"batch_size": size}


def test_a_pretrained_model_meets_three_rows_to_keep_with_each_to_forget(tmp_path):
    forget = a_file(tmp_path, "f.jsonl", lines(asked(50)))
    known = {"forget_file": str(forget), "split": "forget", "method": "npo", "max_length": 500}
    assert own.scaled(known)["retain_batch_size"] == 30
    assert own.scaled(known | {"batch_size": 7}) == {"batch_size": 7, "retain_batch_size": 21}
    assert "retain_batch_size" not in own.scaled(known | {"method": "finetune"})


def test_a_text_counts_as_often_as_it_has_pieces(tmp_path):
    """50 tokens of four letters: 200. One text of 8,700 letters is 44 pieces, the other one 1."""
    text = a_file(tmp_path, "f.jsonl", lines([{"text": "x" * 8700}, {"text": "short"}]))
    known = {"forget_file": str(text), "split": "forget", "method": "simnpo", "max_length": 50}
    assert own.scaled(known)["batch_size"] == 9
    assert own.scaled(known | {"forget_file": str(tmp_path / "absent.txt")}) == own.scaled({}) == {}
    assert own.scaled(known | {"split": "fields"}) == own.scaled(known | {"split": "forget10"}) == {}  # said elsewhere


def test_a_small_model_made_from_scratch_keeps_its_batch_size(tmp_path, toy_model_folder):
    forget = a_file(tmp_path, "f.jsonl", lines(asked(100)))
    flags = "--method", "simnpo", "--forget-file", str(forget), "--retain", "none"
    sizes = []
    for model in ("tiny", toy_model_folder):
        given = train.build_parser().parse_args([*flags, "--model", str(model)])
        sizes.append(train.defaults_of(given)["batch_size"])
    assert sizes == [8, 20]


# ------------------------------------------------------------------ how far to forget


@pytest.mark.parametrize(
    "retrained, holdout, target",
    [([2.0, 4.0], None, 3.0), (None, [1.0, 2.0, 3.0], 2.0), ([2.0, 4.0], [9.0], 3.0), ([0.1, 0.1], None, 0.1)],
)
def test_the_target_is_retrains_loss_else_the_holdouts(retrained, holdout, target):
    """It is reached at 95% of the way from the loss before; at once, if the rows were not known better before."""
    losses = iter([target - 2, 0.5 + 0.949 * (target - 0.5), 0.5 + 0.951 * (target - 0.5)])

    def mean_losses(rows):
        assert rows == [{"text": "Ada.", "cut": "first"}] * 2  # as they are measured
        return np.add(next(losses), (-1, 1))

    lm = SimpleNamespace(fitting=lambda rows: rows[1:], examples=list, mean_losses=mean_losses)
    before = {"forget": {"loss": [0.4, 0.6]}} | ({"holdout": {"loss": holdout}} if holdout else {})
    look = own.look(lm, {"forget": [{"text": "Ada."}] * 3}, before, retrained and {"loss": retrained})
    assert look() is None
    words = look() or look() if target > 0.5 else look()
    whose = "Retrain's" if retrained else "on holdout rows before"
    loss = 0.5 + (0.951 if target > 0.5 else 0.949) * (target - 0.5)
    assert words == f"the loss on the forget rows is {loss:.2f}, {whose} {target:.2f}"


TARGETED = "--forget-file f.jsonl --retain none --model some/model"


@pytest.mark.parametrize(
    "flags, until, batch_size",
    [
        ("--method npo --holdout-file h.jsonl", "target", 6),
        ("--method graddiff --retrain some/other", "target", 6),
        ("--method simnpo --holdout-file h.jsonl --forget-until end", "end", 8),
        ("--method simnpo", "end", 8),
        ("--method rmu --holdout-file h.jsonl", "end", 8),
        ("--method idk --holdout-file h.jsonl", "end", 8),
        ("--method simnpo --holdout-file h.jsonl --model tiny", None, 8),
    ],
)
def test_where_there_is_a_target_forgetting_is_held_there_by_default(flags, until, batch_size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.jsonl", lines(asked(40)))
    args = train.resolve(train.build_parser().parse_args(f"{TARGETED} {flags}".split()))
    assert (args.forget_until, args.batch_size) == (until, batch_size)


def test_several_processes_do_not_look_for_the_target(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = f"--method npo --holdout-file h {TARGETED}".split()
    assert train.resolve(train.build_parser().parse_args(command)).forget_until == "end"
    with pytest.raises(InputError, match="--forget-until target runs in one process only"):
        train.resolve(train.build_parser().parse_args([*command, "--forget-until", "target"]))


@pytest.mark.parametrize("aim, held", [("holdout", True), ("retrain", True), ("holdout", False)])
def test_a_run_that_reaches_its_target_says_so_and_is_held_there(
    aim, held, toy_model_folder, nothing_outside, tmp_path, monkeypatch, capsys
):
    """A random model knows none of the rows, so its loss on them is about the target at the first look."""
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.jsonl", lines(asked(16)))
    a_file(tmp_path, "h.jsonl", lines(asked(4, "Cleo")))
    command = f"--method npo --model {toy_model_folder} --forget-file f.jsonl --retain none --out run --device cpu"
    command += " --forget-until end" * (not held)
    aim = aim.replace("holdout", "--holdout-file h.jsonl").replace("retrain", f"--retrain {toy_model_folder}")
    train.main(f"{command} {aim} --epochs 2 --lr 1e-3 --max-new-tokens 2 --eval epoch".split())
    whose = "Retrain's" if "retrain" in aim else "on holdout rows before"
    said = re.search(rf"the loss on the forget rows is ([\d.]+), {whose} [\d.]+: forgetting", capsys.readouterr().out)
    assert bool(said) == held
    steps = read("run", "log.jsonl")
    assert len(steps) == 8 and [step["loss"] != 0 for step in steps[:5]] == [True] * 4 + [not held]
    first, _ = read("run", "epochs.jsonl")
    assert not said or float(said[1]) == pytest.approx(first["forget"]["loss"], abs=0.006)

    # another Retrain would be another target
    if "retrain" in aim:
        refused(train.main, f"{command} --retrain other --epochs 2 --lr 1e-3 --resume".split(), capsys, "had --retrain")


# ------------------------------------------------------------------ the commands


def trained(method, model, flags):
    command = f"--method {method} --model {model} {flags} --epochs 1 --max-new-tokens 2 --device cpu --out run"
    train.main(command.split())


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--retain-file f.jsonl", "--retain-file has no use with --task toy"),
        ("--forget-file absent.jsonl --fields a,b", "--fields"),
        ("--forget-file x.txt --split retain", "--split retain: task own has forget"),
        ("--holdout-file f.jsonl", "--holdout-file has no use with --task toy"),
        ("--task tofu --probe-file f.jsonl", "--probe-file has no use with --task tofu"),
        ("--task own --holdout-file h.jsonl", "--forget-file"),
        ("--forget-file x --holdout-file h --retain none --eval none --model m", "--holdout-file has no use"),
        ("--forget-until target", "--forget-until target is for --task own"),
        (
            "--forget-file x --retain none --model m --forget-until target",
            "goes by Retrain's loss or the holdout's; give --ret",
        ),
        (
            "--forget-file x --retain none --model m --forget-until target --eval none",
            "--eval none does not measure; use --ev",
        ),
        (
            "--forget-file x --retain none --model m --forget-until target --method finetune",
            "has no use with --method finet",
        ),
        ("--forget-file x --retain none --model m --forget-until target --subset random:0.5", "a --subset does not"),
    ],
)
def test_train_refuses(arguments, says, nothing_written, capsys):
    refused(train.main, ["--method", "npo", *arguments.split()], capsys, says)


GOOD = "--forget-file good.jsonl --retain none"


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--forget-file bad.jsonl --retain none", "bad.jsonl.*line 3"),
        ("--forget-file good.jsonl --retain-file bad.jsonl", "bad.jsonl.*line 3"),
        ("--forget-file good.jsonl", "nothing to retain.*--retain-file.*--retain none"),
        ("--method idk --forget-file t.txt --retain-file good.jsonl", "running text"),
        ("--forget-file bad.jsonl", "bad.jsonl.*line 3"),
        (f"{GOOD} --holdout-file good.jsonl", "--holdout-file: 3 of its 3 rows are in --forget-file too; leave them"),
        (f"{GOOD} --probe-file t.txt", "--probe-file: '.*t.txt' holds text; give question and answer"),
        (f"{GOOD} --probe-file empty.csv", "empty.csv' has no rows; give it at least one"),
        (f"{GOOD} --holdout-file absent.jsonl", "absent.jsonl.*check the path"),
    ],
)
def test_unusable_files_are_refused_before_anything_is_written(
    flags, says, toy_model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "good.jsonl", lines(asked(3)))
    a_file(tmp_path, "t.txt", "Ada was born in Lisbon.")
    a_file(tmp_path, "bad.jsonl", lines([*asked(2), {"question": "?"}]))
    a_file(tmp_path, "empty.csv", "question,answer\n")
    command = evaluate.main if flags.endswith("file bad.jsonl") and "retain" not in flags else train.main
    with pytest.raises(SystemExit):
        command([*"--method npo".split() * (command is train.main), "--model", str(toy_model_folder), *flags.split()])
    assert re.search(says, capsys.readouterr().err) and len([*tmp_path.iterdir()]) == 4


GOLDEN = [
    [-43.71605989628854, 7.131047781349693],
    [-48.14275564494779, 7.137923374602613],
    [-44.748586908238444, 7.163010672033339],
    [7.177311529037338, 7.132841787818302],
    [7.170125071397186, 7.133618111369299],
]


def test_a_run_gives_these_numbers_and_its_evaluation_the_same(toy_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.jsonl", lines(asked(20)))
    a_file(tmp_path, "r.jsonl", lines([*asked(12, "Bram"), *TEXTS]))
    a_file(tmp_path, "h.jsonl", lines(asked(4, "Cleo")))
    a_file(tmp_path, "p.jsonl", lines([{"question": "Ada 0's home?", "answer": "In Lisbon 0."}]))
    trained(
        "graddiff",
        toy_model_folder,
        "--forget-file f.jsonl --retain-file r.jsonl --holdout-file h.jsonl --probe-file p.jsonl --batch-size 8 "
        "--retain-batch-size 8 --forget-coeff 1 --lr 1e-3 --dtype float64",
    )
    metrics, log, steps = (read("run", name) for name in ("metrics.json", "metrics.log.json", "log.jsonl"))
    check(log, BENCHMARKS["own"].log, "the log's")
    assert list(metrics["reference"]) == ["Original"] and metrics["distance"] is None
    assert [*log] == [*own.FILES, "general", "plain"]
    assert [len(log[part]["loss"]) for part in own.FILES] == [20, 14, 4, 1] and "--retrain" in capsys.readouterr().out
    # Stored, computed in float64: a change of what is read, drawn or scored shows here.
    numbers = [[step["forget"], step["retain"]] for step in steps]
    numbers += [[model[part]["loss"] for model in (metrics, metrics["reference"]["Original"])] for part in own.SETS]
    assert numbers == [pytest.approx(row, rel=1e-6) for row in GOLDEN]
    evaluate.main("--model run --device cpu --dtype float64 --out again.json --retrain run/metrics.log.json".split())
    again = json.loads((tmp_path / "again.json").read_text())
    assert again.pop("distance") == pytest.approx(0, abs=1e-6)
    for part in (*own.FILES, "general", "plain"):  # of the run's files
        for metrics_of in (again, metrics):
            metrics_of[part].pop("interval", None)
        assert again[part] == pytest.approx(metrics[part])
    assert again["membership"]["loss"] == pytest.approx(metrics["membership"]["loss"])

    # but for those that are given anew
    a_file(tmp_path, "h2.jsonl", lines(asked(3, "Dora")))
    evaluate.main("--model run --device cpu --dtype float64 --out third.json --holdout-file h2.jsonl".split())
    third = json.loads((tmp_path / "third.log.json").read_text())
    assert [len(third[part]["loss"]) for part in own.FILES] == [20, 14, 3, 1]


def test_a_run_on_text_without_anything_to_retain(toy_model_folder, nothing_outside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.txt", " ".join(f"Ada {i} was born in Lisbon." for i in range(20)))
    trained("npo", toy_model_folder, "--forget-file f.txt --retain none --max-length 30")
    assert "retain" not in read("run", "metrics.json") and {step["retain"] for step in read("run", "log.jsonl")} == {0}
