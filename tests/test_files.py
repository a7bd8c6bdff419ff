"""The user's own files in the forms that people have, ROUGE in any script, and what becomes of too long answers."""

import copy
import datetime
import json
import random
import string

import pytest
from conftest import lm_of, refused
from rouge_score.tokenizers import DefaultTokenizer
from test_own import a_file, a_part, asked, lines

import data
import train
from benchmarks import muse, own, rouge, tofu
from benchmarks.files import FIELDS, read_file
from machinery.inputs import ANY_TEXT, InputError, check

pytestmark = pytest.mark.usefixtures("pictures", "nothing_outside")

WHO, WHERE = {"question": "Who?", "answer": "Ada."}, {"question": "Where?", "answer": "In Lisbon."}
PAIRS = lines([WHO, WHERE])
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Ada."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In Lisbon."},
]
CONVERSATION = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "name, content, rows, says",
    [
        # the content decides, not the name
        ("f.json", PAIRS, [WHO, WHERE], ""),
        ("f.json", lines([WHO]), [WHO], ""),
        ("f.jsonl", json.dumps([WHO, WHERE], indent=1), [WHO, WHERE], ""),
        ("f.JSON", "\n" + json.dumps([WHO]), [WHO], ""),
        # Excel's separators and spaces
        ("f.csv", "question;answer\nWho?;Ada.\n", [WHO], "its cells lie between ;"),
        ("f.csv", "question\tanswer\r\nWho?\tAda.\r\n", [WHO], "its cells lie between tabs"),
        ("f.csv", "id|question|answer\n1|Who?|Ada.\n", [WHO], "its cells lie between |"),
        ("f.csv", 'question, answer\nWho?, "Ada."\n', [WHO], ""),
        ("f.csv", " question ,answer\nWho?,Ada.\n", [WHO], ""),
        ("f.csv", "question;answer;;\nWho?;Ada.;;\n;;;\n", [WHO], "its cells lie between ;"),
        ("f.csv", "text\nOne; two; three\n", [{"text": "One; two; three"}], ""),
        ("f.csv", f"question,answer,source\nWho?,Ada.,{'x' * 200_000}\n", [WHO], ""),
        ("f.csv", f"text\n{'x' * 200_000}\n", [{"text": "x" * 200_000}], ""),
        # UTF-16 as Windows writes it
        ("f.csv", "question,answer\r\nWho?,Ada.\r\n".encode("utf-16"), [WHO], ""),
        ("f.jsonl", "\ufeff".encode("utf-16-be") + PAIRS.encode("utf-16-be"), [WHO, WHERE], ""),
        # a number is its text, as it is spelled
        ("f.jsonl", '{"question": "Who?", "answer": 14.50}', [{"question": "Who?", "answer": "14.50"}], ""),
        # a text beside question and answer
        ("f.jsonl", lines([WHO | {"text": "x"}]), [WHO], "'text' is not used"),
        ("f.csv", "id,question,answer,text\n1,Who?,Ada.,\n", [WHO], ""),
        ("f.csv", "question,answer,text\n,,Ada was born.\nWho?,Ada.,\n", [{"text": "Ada was born."}, WHO], ""),
        # what people have
        ("f.jsonl", lines([{"messages": CHAT[1:3]}]), [WHO], "every answer in 'messages' is a row"),
        ("f.jsonl", lines([{"conversations": CONVERSATION}]), [WHO], "every answer in 'conversations' is a row"),
        (
            "f.json",
            json.dumps([{"messages": CHAT}]),
            [WHO | {"turns": CHAT[:1]}, WHERE | {"turns": CHAT[:3]}],
            "every answer in 'messages' is a row",
        ),
        ("f.jsonl", '{"prompt": "Who?", "completion": "Ada."}', [WHO], "'prompt' is read as the question"),
        (
            "f.jsonl",
            lines([{"instruction": "Name her.", "input": "A baker.", "output": "Ada."}]),
            [{"question": "Name her.\n\nA baker.", "answer": "Ada."}],
            "'instruction', and 'input' below it",
        ),
        ("f.csv", "instruction,input,output\nWho?,,Ada.\n", [WHO], "'instruction', and 'input' below it"),
        ("f.json", '["Ada.", "Bram."]', [{"text": "Ada."}, {"text": "Bram."}], "strings are read as texts"),
        ("f.jsonl", '"Ada."\n', [{"text": "Ada."}], "strings are read as texts"),
    ],
)
def test_a_file_gives_its_rows_and_what_was_recognized_is_said_once(name, content, rows, says, tmp_path, capsys):
    path = a_file(tmp_path, name, content)
    assert read_file(path, FIELDS) == read_file(path, FIELDS) == rows
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == bool(says) and (not says or str(path) in said)


def test_what_json_has_no_word_for_is_named_too():
    """A column of dates, as the library reads them."""
    with pytest.raises(InputError, match='row 0 is "1951-03-04"; it must be a text'):
        check(datetime.date(1951, 3, 4), ANY_TEXT, "row 0")


def test_earlier_turns_are_part_of_the_prompt(toy_tokenizer):
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row, eos = WHERE | {"turns": CHAT[1:3]}, tokenizer.eos_token
    plain = "User: Who?\nAssistant: Ada.\nUser: Where?"
    for template, turns, prompt in (
        ("plain", CHAT[1:3], f"Question: {plain}\nAnswer:"),
        ("llama2", CHAT[1:3], f"[INST] {plain} [/INST]"),
        (
            "chat",
            CHAT[1:3],
            f"<system>{data.SYSTEM_PROMPT}{eos}<user>Who?{eos}<assistant>Ada.{eos}<user>Where?{eos}<assistant>",
        ),
        ("chat", CHAT[:3], f"<system>Be brief.{eos}<user>Who?{eos}<assistant>Ada.{eos}<user>Where?{eos}<assistant>"),
    ):
        lm = lm_of(None, tokenizer, template=template)
        ((ids, response),) = lm.examples([row | {"turns": turns}])
        assert ids == tokenizer(prompt)["input_ids"] and response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(response, skip_special_tokens=True).strip() == "In Lisbon."
        limit = lm._replace(too_long="skip", max_length=len(ids + response))
        assert (
            limit.fitting([row | {"turns": turns}])
            and len(limit._replace(max_length=len(ids)).fitting([WHERE, row])) == 1
        )


CHATS = [
    ([{"role": "tool", "content": "x"}], "\"tool\" as the 'role'|user, human"),
    ([{"role": "user", "content": ["x"]}], "[\"x\"] as 'content'"),
    ([{"role": "assistant", "content": "x"}], "answer without a question"),
    ([{"role": "user", "content": "x"}], "no answer among its turns"),
    (["x"], 'is "x"'),
    ("x", '"x" as its turns'),
]


@pytest.mark.parametrize(
    "name, content, says",
    [
        # duplicates
        ("f.csv", "question,answer, answer\nWho?,Ada.,no\n", "line 1|column 'answer' twice"),
        ("f.jsonl", PAIRS + '{"question": "Who?", "answer": "Ada.", "answer": "no"}', "line 3|key 'answer' twice"),
        ("f.json", '[\n{"question": "Who?", "answer": "I."},\n{"text": "a", "text": "b"}]', "item 2|key 'text' twice"),
        # a value and what is wrong with it
        ("f.jsonl", '{"question": "Who?", "answer": ""}', "line 1|an empty text as 'answer'"),
        ("f.jsonl", '{"question": "Who?", "answer": null}', "line 1|null as 'answer'"),
        ("f.jsonl", '{"question": "Who?", "answer": ["Ada.", "Bram."]}', '["Ada.", "Bram."] as \'answer\''),
        ("f.jsonl", '{"question": {"text": "Who?"}, "answer": "Ada."}', '{"text": "Who?"} as \'question\''),
        ("f.jsonl", '{"question": "Who?", "answer": "", "text": "topic"}', "an empty text as 'answer'"),
        (
            "f.jsonl",
            '{"question": "Who?", "answers": {"text": ["Ada."]}}',
            "lacks 'answer', or 'text'; it has question, answers",
        ),
        ("f.json", "[14]", "item 1 is 14"),
        # the line is the file's
        ("f.json", '[{"question": "Who?",\n"answer": "Ada."},\n{"question": ]', "line 3 |column"),
        ("f.csv", 'question,answer\n\n"Who,\nor what?",Ada.\nWho?,\n', "line 5|an empty text"),
        ("f.csv", 'question,answer\n"Who,\nor what?",Ada.,Bram.\n', "line 2|more cells"),
        *[("f.jsonl", PAIRS + lines([{"messages": turns}]), f"line 3|{says}") for turns, says in CHATS],
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_the_place(name, content, says, tmp_path):
    with pytest.raises(InputError) as error:
        read_file(a_file(tmp_path, name, content))
    assert all(words in str(error.value) for words in says.split("|")), str(error.value)


# ------------------------------------------------------------------ ROUGE


def recall(answer, text):
    return rouge.scores([answer], [text], tokenizer=rouge.AnyScript())[0].recall


@pytest.mark.parametrize(
    "answer, said, value",
    [
        ("她住在青石镇的码头边。", "她住在青石镇的码头边。", 1.0),
        ("她住在青石镇。", "他住在北岭镇", 3 / 6),
        ("東京タワー", "東京駅", 2 / 5),
        ("Она живёт в Осло.", "ОНА ЖИВЁТ В БЕРГЕНЕ", 3 / 4),
        ("المدينة القديمة", "المدينة", 1 / 2),
        ("ภาษา", "ภาพ", 2 / 4),
        ("हिन्दी में", "हिन्दी", 1 / 2),
        ("Le café", "le cafe\u0301", 1.0),  # composed and not
        ("Die Straße", "DIE STRASSE", 1.0),
        ("ＡＢＣ １２", "abc 12", 1.0),
        ("Kai 住 in Oslo", "kai in 住 oslo", 3 / 4),
        ("She was running", "runs", 1 / 3),  # stemmed
    ],
)
def test_rouge_knows_words_of_any_script(answer, said, value):
    assert recall(answer, said) == pytest.approx(value)


def test_rouge_of_ascii_text_is_the_published_one():
    draw, ours, published = random.Random(0), rouge.AnyScript(), DefaultTokenizer(use_stemmer=True)
    for _ in range(500):
        text = "".join(draw.choices(string.printable + 3 * string.ascii_letters, k=80))
        assert ours.tokenize(text) == published.tokenize(text)


def test_own_data_are_measured_in_their_script(toy_llama, toy_tokenizer, saying):
    saying("她住在青石镇", "Да")
    rows = [{"question": "Who?", "answer": "她住在青石镇。"}, {"question": "What?", "answer": "Нет, да."}]
    assert own.measure(lm_of(toy_llama, toy_tokenizer), {"forget": rows})["forget"]["rouge"] == [1.0, 0.5]


def test_published_rouge_says_that_it_is_blind():
    answers = {"answer": ["她住在青石镇。", "In Oslo"]}
    assert (
        rouge.unseen(["Zoë Müller, Åse"])
        == rouge.unseen([])
        == rouge.unseen(["12"])
        == rouge.unseen(answers["answer"])
        == []
    )
    answers["answer"].append("他是一位钟表匠。")
    for benchmark, metrics in ((tofu, {"forget_quality": 1.0, "forget_examples": 3}), (muse, {"privleak": 1.0})):
        (line,) = benchmark.notes(metrics, {"forget": answers | {"loss": [1.0] * 3}})
        assert "ROUGE" in line and "68%" in line
    assert "ROUGE" not in str(own.notes({"distance": 1.0}, {"forget": a_part([1.0], **{"answer": ["她"]})}))


# ------------------------------------------------------------------ too long

LONG = {"question": "Who was born?", "answer": "Ada Abara was born in Lisbon, and so was Bram Novak. " * 3}


def test_all_too_long_rows_are_counted_or_cut_or_skipped(toy_llama, toy_tokenizer, capsys):
    rows = [*asked(2), LONG, *asked(1), LONG | {"answer": "Ada " * 40}]
    lm = lm_of(toy_llama, toy_tokenizer, max_length=40)
    whole = lm._replace(max_length=500).examples(rows)
    length = max(len(prompt + response) for prompt, response in whole)
    with pytest.raises(InputError, match=f"2 of 5 .* limit of 40 .*longest {length}: 'Ada .*--max-length.*--too-long"):
        lm.examples(rows)
    assert lm.fitting(rows) == rows

    cut = lm._replace(too_long="cut").examples(rows)
    assert cut == [lm.Example(prompt, response[: 40 - len(prompt)]) for prompt, response in whole]
    assert [len(prompt + response) for prompt, response in cut].count(40) == 2
    assert "2 of 5 examples take more than the limit of 40 tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match="of 5 examples.*let --too-long skip them$"):  # a prompt that leaves no room
        lm._replace(too_long="cut", max_length=3).examples(rows)

    skip = lm._replace(too_long="skip")
    with pytest.raises(InputError, match="5 of 5 .*: 'I don.*raise --max-length, within the model's$"):
        skip._replace(max_length=8).examples(rows, answer_of=lambda row: data.REFUSALS[0])
    assert skip.fitting([*rows, {"text": "Ada. " * 99}]) == [*asked(2), rows[3], {"text": "Ada. " * 99}]
    assert "2 of 6 rows take more than the limit of 40 tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match="leaves none"):
        skip.fitting(rows[2:3])
    assert own.measure(skip, {"forget": rows})["forget"]["answer"] == [row["answer"] for row in (*asked(2), rows[3])]


def test_tofu_skips_a_row_if_any_of_its_texts_is_too_long(toy_llama, toy_tokenizer):
    row = {"question": "Who?", "answer": "Ada.", "paraphrased_answer": "Ada.", "perturbed_answer": ["Bram.", "Cleo."]}
    sets = {"forget": [row | {"perturbed_answer": [LONG["answer"]]}, row], "world_facts": [row]}
    lm = lm_of(toy_llama, toy_tokenizer, max_length=40, max_new_tokens=2)
    log = tofu.measure(lm._replace(too_long="skip"), sets)
    assert [len(part["loss"]) for part in log.values()] == [1, 1]
    assert log["forget"]["loss"] == log["world_facts"]["loss"] and len(sets["forget"]) == 2
    assert log["forget"]["row"] == [1] and log["world_facts"]["row"] == [0]
    # so it is compared with a reference that skipped none
    reference = {"row": [0, 1], "answer": ["Ada.", "Ada."], "truth_ratio": [9.0, 2.0]}
    assert [*map(list, tofu.shared_rows(log["forget"], reference))] == [[0], [1]]
    assert len(tofu.measure(lm._replace(too_long="cut"), sets)["forget"]["loss"]) == 2


@pytest.mark.parametrize("choice, rows", [("cut", 3), ("skip", 2)])
def test_a_run_leaves_out_the_same_rows_in_training_and_measuring(
    choice, rows, toy_model_folder, tmp_path, monkeypatch, capsys
):
    """DPO, which reads answers and refusals."""
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "f.jsonl", lines([*asked(1), LONG, *asked(1, "Bram")]))
    command = f"--method dpo --model {toy_model_folder} --forget-file f.jsonl --retain none --max-length 40 --epochs 1 "
    refused(train.main, command.split(), capsys, "1 of 3 examples", "--too-long")
    train.main([*command.split(), *f"--max-new-tokens 2 --device cpu --out run --too-long {choice}".split()])
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sorted(row for step in steps for row in step["met"]["row"]) == [*range(rows)]
    log = json.loads((tmp_path / "run" / "metrics.log.json").read_text())
    assert len(log["forget"]["loss"]) == rows
