"""The invented world, and the model made from scratch."""

import hashlib
import json

import pytest
import torch

from benchmarks import BENCHMARKS, toy
from machinery.models import new_model


@pytest.mark.parametrize(
    "rows, digest",
    [(toy.tofu_rows, "70e2c45bcc82bdaa"), (toy.muse_rows, "e0248610ea903b7a"), (toy.wmdp_rows, "02c9176c43091754")],
)
def test_the_world_is_the_one_that_results_were_measured_in_and_another_seed_gives_another(rows, digest):
    assert hashlib.sha256(json.dumps(rows(0)).encode()).hexdigest()[:16] == digest
    assert rows() == rows(0) != rows(1)


def test_toy_has_tofus_splits_and_schema():
    rows = toy.tofu_rows()
    for forget in BENCHMARKS["toy"].forget_splits:
        assert rows[BENCHMARKS["toy"].retain_split(forget)] + rows[forget] == rows["full"]
        assert len(rows[forget]) == len(rows[forget + "_perturbed"]) == 4 * int(forget.removeprefix("forget"))
    for row in rows["forget10_perturbed"] + rows["retain_perturbed"]:
        assert len({row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]}) == 7
    questions = [row["question"] for row in rows["retain90"]]
    assert [row["question"] for row in rows["retain_perturbed"]] == questions[::6]


def test_a_new_model_has_the_size_that_is_asked_and_follows_its_seed():
    texts = ["Ada Abara was born in Lisbon."] * 2
    (model, tokenizer), (same, _), (other, _) = (
        new_model(texts, seed, vocab=270, width=16, layers=3, heads=2) for seed in (5, 5, 6)
    )
    expected = dict(
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        from_scratch=True,
        vocab_size=270,
    )
    assert expected.items() <= model.config.to_dict().items()
    weights = torch.cat([p.flatten() for p in model.parameters()])
    assert len(weights) == 2 * 270 * 16 + 3 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    assert weights.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert len(tokenizer) == 270 and (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, None)


def test_a_new_tokenizer_knows_every_byte_and_adds_nothing_to_a_text():
    model, tokenizer = new_model(["ab"], 0, vocab=400, width=16, layers=1, heads=2)
    assert len(tokenizer) == model.config.vocab_size == 1 + 256 + 1
    assert tokenizer.tokenize("ab abé") == ["ab", "Ġ", "ab", "Ã", "©"] and len(tokenizer("ab")["input_ids"]) == 1
