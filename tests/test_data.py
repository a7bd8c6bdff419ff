"""Examples, padding, and their log-probabilities."""
import pytest
import torch
import transformers
from conftest import some_examples, tiny

import data
import losses
from data import InputError

CHAT = ("{% for m in messages %}{% if m.role == 'system' %}<s>{{ m.content }} {{ date_string }}\n{% else %}"
        "<u>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}")


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


@pytest.mark.parametrize("template", ["plain", "llama2"])
def test_an_empty_answer_is_its_end_after_the_same_prompt(toy_tokenizer, template):
    empty, full = (data.encode("Where was Ada Abara born?", answer, toy_tokenizer, template) for answer in ("", "In Lisbon."))
    assert empty.response == [toy_tokenizer.eos_token_id] and empty.prompt == full.prompt


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


ARCHITECTURES = {"gpt2": {}, "llama": {}, "qwen2": {}, "opt": {"word_embed_proj_dim": 16, "ffn_dim": 24}, "phi": {},
                 "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8}, "cohere": {"logit_scale": 0.3},
                 "granite": {"logits_scaling": 7.0}, "gpt_neox": {}, "bloom": {}, "modernbert-decoder": {"local_attention": 8}}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_only_the_responses_reach_the_output_layer_whatever_the_model_does_to_its_logits(kind, monkeypatch):
    """log π and its gradient against all logits of the model's own forward, whole and in chunks of four positions."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=0, eos_token_id=0, **ARCHITECTURES[kind])
    model, examples = transformers.AutoModelForCausalLM.from_config(config).double().eval(), some_examples(7)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    input_ids, labels = data.collate(examples, 0)
    logits = model(input_ids, use_cache=False).logits
    assert kind != "gemma2" or 2.5 < logits.abs().max() <= 3
    def results(logp):
        return logp.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(logp.square().sum(), list(model.parameters()),
                                                                                 allow_unused=True) if g is not None])
    whole = results(losses.sequence_logp(logits, labels)[0])
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-2]))
    for chunk, most in ((data.CHUNK, 10**9), (4 * 50, 4)):
        monkeypatch.setattr(data, "CHUNK", chunk)
        seen.clear()
        logp, length = data.response_logp(model, examples)
        assert sum(seen) == sum(length) == sum(len(example.response) for example in examples) and max(seen) <= most
        for ours, theirs in zip(results(logp), whole):
            assert ours.shape == theirs.shape and (ours - theirs).norm() <= 1e-10 * theirs.norm()
    assert torch.equal(model(input_ids, use_cache=False).logits, logits)  # its forward is its own again


def test_by_length_sorts_and_loses_nothing():
    examples = some_examples(23)
    groups = data.by_length(examples, 4)
    flat = [i for group in groups for i in group]
    lengths = [sum(map(len, examples[i])) for i in flat]
    assert sorted(flat) == list(range(23)) and lengths == sorted(lengths) and max(map(len, groups)) == 4
