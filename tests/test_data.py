"""Rows, examples and padding."""
import json

import pytest
from conftest import some_examples, tiny

import data
from data import InputError

CHAT = ("{% for m in messages %}{% if m.role == 'system' %}<s>{{ m.content }} {{ date_string }}\n{% else %}"
        "<u>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}")


def test_toy_has_tofus_splits_and_schema():
    rows = data.toy_rows()
    assert {name: len(rows[name]) for name in ("full", "forget05", "retain95", "forget10", "retain90")} == {
        "full": 400, "forget05": 20, "retain95": 380, "forget10": 40, "retain90": 360}
    for forget in data.FORGET_SPLITS["toy"]:
        assert rows[data.retain_split(forget)] + rows[forget] == rows["full"]
        assert [row["answer"] for row in rows[forget + "_perturbed"]] == [row["answer"] for row in rows[forget]]
    for name in ("forget10_perturbed", "retain_perturbed"):
        for row in rows[name]:
            assert set(row) == {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
            assert len(set(row["perturbed_answer"])) == len(row["perturbed_answer"]) == 5 and row["paraphrased_answer"] not in row["perturbed_answer"]
            assert row["answer"] != row["paraphrased_answer"]
    for name in data.BASE_KNOWLEDGE:
        for row in rows[name + "_perturbed"]:
            assert len(row["perturbed_answer"]) == 3 and row["answer"] not in row["perturbed_answer"]
    kept = {row["question"] for row in rows["retain90"]}
    assert all(row["question"] in kept for row in rows["retain_perturbed"])


def test_toy_is_deterministic_and_follows_its_seed():
    assert data.toy_rows() == data.toy_rows(0) != data.toy_rows(1)


def test_toy_response_lengths_are_spread_from_2_to_40_words():
    words = [len(row["answer"].split()) for row in data.toy_rows()["forget10"]]
    assert min(words) == 2 and 35 <= max(words) <= 40 and len(set(words)) >= 12


def test_thirty_refusals():
    assert len(set(data.REFUSALS)) >= 30 and all(text.strip() == text and text for text in data.REFUSALS)


@pytest.mark.parametrize("template", ["plain", "llama2", "chat"])
def test_loss_covers_the_response_and_one_eos(toy_tokenizer, template):
    if template == "chat":
        toy_tokenizer.chat_template = CHAT
    try:
        example = data.encode("Where was Ada Abara born?", "In Lisbon.", toy_tokenizer, template)
    finally:
        toy_tokenizer.chat_template = None
    eos = toy_tokenizer.eos_token_id
    assert example.response[-1] == eos and eos not in example.response[:-1]
    prompt, response = toy_tokenizer.decode(example.prompt), toy_tokenizer.decode(example.response[:-1])
    assert (prompt, response) == {
        "plain": ("Question: Where was Ada Abara born?\nAnswer:", " In Lisbon."),
        "llama2": ("[INST] Where was Ada Abara born? [/INST]", "In Lisbon."),
        "chat": ("<s>You are a helpful assistant. 10 Apr 2025\n<u>Where was Ada Abara born?\n<a>", "In Lisbon.")}[template]
    (ids,), (labels,) = data.collate([example], 0)
    assert (labels != -100).sum() == len(example.response)
    assert ids[labels != -100].tolist() == example.response


def test_a_chat_template_without_system_role_still_works(toy_tokenizer):
    toy_tokenizer.chat_template = ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                                   "<u>{{ messages[0].content }}<a>")
    try:
        assert data.resolve_template("auto", toy_tokenizer) == "chat"
        assert data.prompt_text("Who?", toy_tokenizer, "chat") == ("<u>Who?<a>", "")
    finally:
        toy_tokenizer.chat_template = None
    with pytest.raises(InputError, match="--template"):
        data.encode("Who?", "I.", toy_tokenizer, "chat")


def test_the_prompt_does_not_depend_on_the_answer(toy_tokenizer):
    prompts = [data.encode("Who is Ada Abara?", answer, toy_tokenizer).prompt for answer in ("Ada.", "x", "The baker")]
    assert prompts[0] == prompts[1] == prompts[2]


def test_too_long_an_example_is_refused(toy_tokenizer):
    length = sum(map(len, data.encode("Who?", "A baker in Lisbon.", toy_tokenizer)))
    assert data.encode("Who?", "A baker in Lisbon.", toy_tokenizer, max_length=length)
    with pytest.raises(InputError, match=f"take {length} tokens.*limit of {length - 1}.*--max-length"):
        data.encode("Who?", "A baker in Lisbon.", toy_tokenizer, max_length=length - 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_and_company_change_nothing(kind):
    model, examples = tiny(kind), some_examples(9)
    logp, length = data.response_logp(model, examples)
    for i, example in enumerate(examples):
        alone, n = data.response_logp(model, [example])
        assert alone.item() == pytest.approx(logp[i].item(), rel=1e-12) and n == length[i] == len(example.response)


def test_the_output_layer_sees_no_position_before_the_first_response():
    model, seen = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:2]))
    data.response_logp(model, [data.Example([1] * 20, [2, 3, 0]), data.Example([1] * 22, [2, 0])])
    assert seen == [(2, 5)]  # 24 positions, of which the first 19 predict prompts only


def test_by_length_sorts_and_loses_nothing():
    examples = some_examples(23)
    groups = data.by_length(examples, 4)
    flat = [i for group in groups for i in group]
    lengths = [sum(map(len, examples[i])) for i in flat]
    assert sorted(flat) == list(range(23)) and lengths == sorted(lengths) and max(map(len, groups)) == 4


def make_dataset(folder, rows, config="forget05"):
    folder.mkdir(exist_ok=True)
    (folder / f"{config}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files: {config}.json\n---\n")
    return str(folder)


def test_a_local_folder_loads(tmp_path):
    rows = [{"question": "Who?", "answer": "I."}, {"question": "What?", "answer": "It."}]
    assert data.load_rows("tofu", make_dataset(tmp_path / "d", rows), "forget05") == rows


def test_an_edited_folder_or_one_of_the_same_name_is_read_anew(tmp_path):
    for where in ("a", "b"):
        for answer in (where + "1", where + "2"):
            (tmp_path / where).mkdir(exist_ok=True)
            rows = [{"question": "Who?", "answer": answer}]
            assert data.load_rows("tofu", make_dataset(tmp_path / where / "same", rows), "forget05") == rows


@pytest.mark.parametrize("rows, config, says", [
    ([{"question": "Who?", "answer": "I."}, {"question": "Who?"}], "forget05", "row 1 .*'answer'"),
    ([{"question": "Who?", "answer": " "}], "forget05", "row 0 .*'answer'"),
    ([{"question": "Who?", "answer": "I.", "perturbed_answer": []}], "real_authors_perturbed", "'perturbed_answer'"),
    ([{"question": "Who?", "answer": "I.", "perturbed_answer": "You."}], "world_facts_perturbed", "'perturbed_answer'"),
    ([{"question": "Who?", "answer": "I.", "perturbed_answer": ["You."]}], "forget05_perturbed", "'paraphrased_answer'")])
def test_a_row_without_a_field_is_named(tmp_path, rows, config, says):
    with pytest.raises(InputError, match=says):
        data.load_rows("tofu", make_dataset(tmp_path / "d", rows, config), config)


def test_a_missing_empty_or_malformed_dataset_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.*--data"):
        data.load_rows("tofu", str(tmp_path / "nowhere"), "forget05")
    folder = make_dataset(tmp_path / "d", [{"question": "Who?", "answer": "I."}])
    with pytest.raises(InputError, match="'forget10'"):
        data.load_rows("tofu", folder, "forget10")
    (tmp_path / "d" / "forget05.json").write_text("{not json\n")
    with pytest.raises(InputError, match="'forget05'"):
        data.load_rows("tofu", folder, "forget05")
    (tmp_path / "d" / "forget05.json").write_text("")
    with pytest.raises(InputError, match="'forget05'"):
        data.load_rows("tofu", folder, "forget05")


def test_real_tofu(tofu_dir, toy_tokenizer):
    for forget, count in (("forget01", 40), ("forget05", 200), ("forget10", 400)):
        rows = data.load_rows("tofu", tofu_dir, forget)
        retain = data.load_rows("tofu", tofu_dir, data.retain_split(forget))
        assert len(rows) == count and len(retain) == 4000 - count
        assert not {row["question"] for row in rows} & {row["question"] for row in retain}
        perturbed = data.load_rows("tofu", tofu_dir, forget + "_perturbed")
        assert [row["answer"] for row in perturbed] == [row["answer"] for row in rows]
        for row in rows[::7]:
            example = data.encode(row["question"], row["answer"], toy_tokenizer)
            assert toy_tokenizer.decode(example.response[:-1]).strip() == row["answer"].strip()
