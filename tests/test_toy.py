"""The invented world."""
import tofu
import toy


def test_toy_has_tofus_splits_and_schema():
    rows = toy.toy_rows()
    assert {name: len(rows[name]) for name in ("full", "forget05", "retain95", "forget10", "retain90")} == {
        "full": 400, "forget05": 20, "retain95": 380, "forget10": 40, "retain90": 360}
    for forget in tofu.TASKS["toy"]["forget_splits"]:
        assert rows[tofu.retain_split(forget)] + rows[forget] == rows["full"]
        assert [row["answer"] for row in rows[forget + "_perturbed"]] == [row["answer"] for row in rows[forget]]
    for name in ("forget10_perturbed", "retain_perturbed"):
        for row in rows[name]:
            assert set(row) == {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
            assert len(set(row["perturbed_answer"])) == len(row["perturbed_answer"]) == 5 and row["paraphrased_answer"] not in row["perturbed_answer"]
            assert row["answer"] != row["paraphrased_answer"]
    for name in tofu.BASE_KNOWLEDGE:
        for row in rows[name + "_perturbed"]:
            assert len(row["perturbed_answer"]) == 3 and row["answer"] not in row["perturbed_answer"]
    kept = {row["question"] for row in rows["retain90"]}
    assert all(row["question"] in kept for row in rows["retain_perturbed"])


def test_toy_is_deterministic_and_follows_its_seed():
    assert toy.toy_rows() == toy.toy_rows(0) != toy.toy_rows(1)


def test_toy_response_lengths_are_spread_from_2_to_40_words():
    words = [len(row["answer"].split()) for row in toy.toy_rows()["forget10"]]
    assert min(words) == 2 and 35 <= max(words) <= 40 and len(set(words)) >= 12
