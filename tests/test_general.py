"""What lies outside any file: general questions and plain text."""

import math
from statistics import mean
from types import SimpleNamespace

import pytest
from conftest import lm_of, tiny, token_losses
from test_own import a_file, asked, lines

import evaluate
from benchmarks import general
from benchmarks.own import data_of
from machinery.inputs import check


def test_every_question_has_four_choices_and_the_passages_are_of_a_length():
    sets = general.rows()
    questions = [row["question"] for row in sets["general"]]
    assert len({*questions}) == len(questions) == 40
    for row in sets["general"]:
        assert len({*row["choices"]}) == 4 and row["answer"] == row["choices"][0] and "_" not in "".join(row["choices"])
    assert sets["general"][0] == {
        "question": "What is the capital of France?",
        "choices": [f"The capital of France is {city}." for city in ("Paris", "Lyon", "Geneva", "Brussels")],
        "answer": "The capital of France is Paris.",
    }
    assert len(sets["plain"]) == 8 and all(60 <= len(row["text"].split()) <= 100 for row in sets["plain"])


def test_an_answer_is_right_if_it_is_the_likeliest_by_its_mean(toy_llama, toy_tokenizer, saying):
    """Of two orders of the same choices at most one is right, of equal ones neither."""
    choices = ["In Lisbon.", "The cats sat by the sea and she wrote.", "No, never.", "A novel"]
    lm, question = lm_of(toy_llama, toy_tokenizer), "Where was Ada born?"
    losses = {choice: mean(token_losses(toy_llama, *lm.encode(question, choice))) for choice in choices}
    totals = {choice: sum(token_losses(toy_llama, *lm.encode(question, choice))) for choice in choices}
    best = min(choices, key=losses.get)
    assert best != min(choices, key=totals.get)  # not by the sum
    orders = [sorted(choices, key=first.__ne__) for first in choices] + [[best] * 2 + choices[:2]]
    rows = [{"question": question, "choices": order, "answer": order[0]} for order in orders]
    calls = saying(" In Lisbon. ")
    log = general.measure(lm, {"general": rows})
    check(log, general.LOG, "the log's")
    assert log["general"] == {
        "question": [question] * 5,
        "choices": orders,
        "answer": [order[0] for order in orders],
        "right": [order[0] == best for order in orders[:4]] + [False],
        "generated": ["In Lisbon."] * 5,
    }
    assert calls[0][0] == [f"[INST] {question} [/INST]"] * 5 and calls[0][2] == general.ANSWER_TOKENS


@pytest.mark.parametrize("positions", [500, 24])
def test_of_what_is_longer_than_the_model_reads_a_part_is_measured(positions, toy_tokenizer, capsys):
    lm = lm_of(tiny("llama", vocab=len(toy_tokenizer)), toy_tokenizer)
    lm.model.config.max_position_embeddings = positions
    sets = general.rows()
    log = general.measure(lm, {"general": sets["general"][:3], "plain": sets["plain"][:2]})
    ids = [toy_tokenizer(row["text"], add_special_tokens=False)["input_ids"] for row in sets["plain"][:2]]
    assert log["plain"]["length"] == [min(len(text), positions - 1) for text in ids] and min(map(len, ids)) > 24
    losses = [mean(token_losses(lm.model, [toy_tokenizer.eos_token_id], text[: positions - 1])) for text in ids]
    assert log["plain"]["loss"] == pytest.approx(losses)
    assert len(log["general"]["right"]) == len(log["general"]["generated"]) == 3 and not capsys.readouterr().err


def test_accuracy_and_perplexity_by_hand():
    questions = {"right": [True, True, False, True]}
    plain = {"loss": [1.0, 2.0], "length": [30, 10]}
    metrics = general.summarize({"general": questions, "plain": plain})
    low, high = metrics["general"]["interval"]["accuracy"]
    assert metrics["general"]["accuracy"] == 0.75 and low in (0.25, 0.5) and high == 1.0
    assert metrics["plain"] == pytest.approx({"loss": 1.25, "perplexity": math.exp(1.25)})
    assert general.summarize({"forget": plain}) == {}
    lost = general.summarize({"plain": {"loss": [1e4], "length": [3]}})["plain"]
    assert lost["loss"] == 1e4 and math.isfinite(lost["perplexity"])


@pytest.mark.parametrize("model, is_asked", [("hub/model", True), ("tiny", False), ("new", False)])
def test_pretrained_models_only_are_asked(model, is_asked, tmp_path):
    args = SimpleNamespace(task="own", model=model, data=data_of(a_file(tmp_path, "f.jsonl", lines(asked(2))), None))
    outside = general.rows() if is_asked else {}
    assert evaluate.sets_of(args, "forget") == {"forget": asked(2)} | outside
    muse = SimpleNamespace(task="toy", model=model, data=None)
    assert "general" not in evaluate.sets_of(muse, "forget10")
