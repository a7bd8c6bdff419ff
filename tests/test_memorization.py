"""What needs no retrained model: is an answer known by heart, and was it read? By hand."""

import zlib

import numpy as np
import pytest
import torch
from conftest import lm_of, some_examples, tiny

from benchmarks import memorization, tofu


@pytest.mark.parametrize(
    "logp, score",
    [
        ("-3", 3),
        ("-1 -8", 8),
        ("-1 -2 -3 -4", 4),
        ("-1 -2 -3 -4 -5", 4.5),
        ("-6 -1 -4 -2 -5 -3", 5.5),
        ("-1 -2 -3 -4 -5 -6 -7 -8", 7),
        ("-1 -2 -3 -4 -5 -6 -7 -8 -9", 8),
        ("-.5 -.5 -.5 -.5 -2", 1.25),
        ("0 0", 0),
    ],
)
def test_min_k_is_the_mean_of_the_lowest_two_fifths_rounded_down(logp, score):
    assert -memorization.min_k(np.array(logp.split(), dtype=np.float32)) == pytest.approx(score)


@pytest.mark.parametrize(
    "likeliest, strength",
    [
        ([1, 1, 1, 1], 1.0),
        ([0, 1, 1, 1], 0.75),
        ([1, 0, 1], 1 / 3),
        ([0, 1, 0, 1, 1], 0.4),
        ([1, 1, 1, 0], 0.0),  # by OpenUnlearning's code 0.25
        ([1], 1.0),
        ([0], 0.0),
    ],
)
def test_extraction_strength_counts_the_tokens_that_come_to_the_end(likeliest, strength):
    assert memorization.extraction_strength(np.array(likeliest)) == pytest.approx(strength)


def test_forget_rows_that_look_more_familiar_than_the_holdout_have_an_auc_above_a_half():
    """By loss 5.5 of 6 pairs, by Min-40% 4 of 6."""
    forget, holdout = {"loss": [1.0, 2.0], "mink": [-1.0, -3.0]}, {"loss": [3.0, 2.0, 5.0], "mink": [-2.0, -4.0, -2.5]}
    auc = memorization.membership(forget, holdout)
    assert [auc["loss"][0], auc["mink"][0]] == pytest.approx([5.5 / 6, 4 / 6])
    for value, low, high in auc.values():
        assert 0 <= low <= value <= high <= 1 and low < high
    strange = memorization.membership(holdout, forget)
    assert strange["loss"][0] == pytest.approx(0.5 / 6) and strange["mink"][0] == pytest.approx(2 / 6)
    alone = memorization.membership({"loss": [1.0], "mink": [-1.0]}, holdout)
    assert alone == {"loss": [1.0, None, None], "mink": [1.0, None, None]}
    assert memorization.membership(forget, None) is memorization.membership(forget, {"loss": [1.0]}) is None


def test_each_measure_by_hand():
    scores = [np.array([[-1.0, -3.0, -2.0], [1, 0, 1], [0.5, -1.5, 0.0]]), np.array([[-0.5], [1], [2.0]])]
    part = memorization.measured(scores, ["abc" * 50, "A barber."])
    sizes = [len(zlib.compress(text.encode())) for text in ("abc" * 50, "A barber.")]
    assert sizes[0] < 20 and part["zlib"] == pytest.approx([2 / sizes[0], 0.5 / sizes[1]])
    assert part["loss"] == pytest.approx([2, 0.5]) and part["memorized"] == pytest.approx([2 / 3, 1])
    assert part["extraction"] == pytest.approx([1 / 3, 1])
    assert part["mink"] == [-3, -0.5] and part["minkpp"] == [-1.5, 2]


def test_all_four_attacks_have_an_auc_that_is_a_half_where_nothing_differs():
    part = {attack: [1.0, 2.0] for attack in memorization.ATTACKS}
    aucs = memorization.membership(part, part)
    assert {attack: values[0] for attack, values in aucs.items()} == dict.fromkeys(memorization.ATTACKS, 0.5)
    assert memorization.auc_of({"membership": aucs}, "zlib") == 0.5 and memorization.auc_of({}, "zlib") is None

    # each from its own side: a row with less loss, less of it by zlib, and more of the others is the more familiar
    known = {"loss": [0.1, 0.2], "zlib": [0.01, 0.02], "mink": [-0.5, -0.4], "minkpp": [0.5, 0.6]}
    unknown = {"loss": [3.0, 4.0], "zlib": [0.1, 0.2], "mink": [-5.0, -4.0], "minkpp": [-2.0, -3.0]}
    assert {values[0] for values in memorization.membership(known, unknown).values()} == {1.0}


def test_log_probabilities_are_normalized_by_the_models_own_distribution():
    """(log p_t − μ) / σ, μ and σ of log p over the vocabulary under p, in float64."""
    lm, examples = lm_of(tiny("llama"), None), some_examples(3)
    for (logp, _, normalized), (prompt, response) in zip(lm.token_scores(examples), examples, strict=True):
        logits = lm.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        for place, token in enumerate(response):
            p = logits[place].softmax(-1).tolist()
            mean = sum(each * np.log(each) for each in p)
            deviation = sum(each * (np.log(each) - mean) ** 2 for each in p) ** 0.5
            assert logp[place] == pytest.approx(np.log(p[token]), rel=1e-9)
            assert normalized[place] == pytest.approx((np.log(p[token]) - mean) / deviation, rel=1e-6)


def test_the_toys_holdout_is_on_authors_whom_nobody_learnt(toy_llama, toy_tokenizer, saying):
    for split, count in (("forget05", 20), ("forget10", 40)):
        rows = tofu.evaluation_rows(None, split)["holdout"]
        assert len(rows) == len({row["question"] for row in rows}) == count
        assert not {row["question"] for row in rows} & {row["question"] for row in tofu.load_rows(None, "full")}

    # only its answers are scored, beside the forget set's; the forget set's losses stay those of the one pass
    saying("What it says.", "And more.")
    sets = {name: part[:2] for name, part in tofu.evaluation_rows(None, "forget10").items() if name != "retain"}
    log = tofu.measure(lm_of(toy_llama, toy_tokenizer, max_length=60), sets)
    assert {*log["holdout"]} == {"loss", *(name.rstrip("?") for name in memorization.FIELDS)}
    assert {*log["holdout"]} < {*log["forget"]} and "memorized" not in log["real_authors"]
    log["retain"] = log["real_authors"]
    metrics = tofu.summarize(log)
    assert {*metrics["membership"]} == {*memorization.ATTACKS} and 0 <= metrics["memorized"] <= 1
    del log["holdout"], log["forget"]["extraction"]
    assert tofu.summarize(log)["membership"] is tofu.summarize(log)["extraction"] is None


def test_a_holdout_that_was_learnt_is_refused(monkeypatch):
    rows = {"full": [{"question": "Who?", "answer": "Ada."}], "holdout01": [{"question": "Who?", "answer": "Bram."}]}
    monkeypatch.setattr(tofu, "load_rows", lambda dataset, config: rows[config])
    assert tofu.held_out("D", "forget01") == {"holdout": rows["holdout01"]}
    rows["holdout01"] = rows["full"]
    with pytest.raises(tofu.InputError, match="1 rows of the holdout are in 'full' of 'D'"):
        tofu.held_out("D", "forget01")
