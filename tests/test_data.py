"""Examples, padding, and what a model is asked about them."""

import string
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from conftest import some_examples, tiny

import data
import losses
from data import InputError

CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}<s>{{ m.content }} {{ date_string }}\n{% else %}"
    "<u>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def letters(*merges, bos="<s>", ends=0):
    """A tokenizer whose tokens are letters, and what pairs of tokens in `merges` make. Texts begin with `bos`, if any,
    and end with as many EOS as `ends` says."""
    vocab = ["<s>", "</s>", "<pad>", *string.printable, *map("".join, merges)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(vocab)}, [*merges]))
    bpe.decoder = tokenizers.decoders.Fuse()
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> " * bool(bos) + "$A" + " </s>" * ends, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )


# ------------------------------------------------------------------ text becomes tokens


@pytest.mark.parametrize("ends", [0, 2])
@pytest.mark.parametrize(
    "template, prompt, response",
    [
        ("plain", "Question: Who?\nAnswe", ["r: ", "M", "e"]),
        ("llama2", "[INST] Who? [/INST", ["]M", "e"]),
        ("chat", "You are a helpful assistant. 10 Apr 2025\n<u>Who?\n<a", [">M", "e"]),
    ],
)
def test_loss_covers_each_token_with_a_letter_of_the_answer_and_one_eos(template, prompt, response, ends):
    tokenizer = letters(("r", ":"), ("r:", " "), ("]", "M"), (">", "M"), ends=ends)
    example = data.encode("Who?", "Me", tokenizer, template)
    assert tokenizer.convert_ids_to_tokens(example.prompt) == ["<s>", *prompt]
    assert tokenizer.convert_ids_to_tokens(example.response) == [*response, "</s>"]
    if not ends:
        empty = data.encode("Who?", "", tokenizer, template)
        assert tokenizer.decode(empty.prompt) == "<s>" + prompt + response[0][:-1] and empty.response == [1]


def test_a_chat_template_without_system_role_still_works():
    tokenizer = letters()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<u>{{ messages[0].content }}<a>"
    )
    assert data.encode("Who?", "I", tokenizer) == (
        tokenizer("<u>Who?<a>", add_special_tokens=False)["input_ids"],
        tokenizer("I")["input_ids"][1:] + [1],
    )
    tokenizer.chat_template = None
    assert data.encode("Who?", "I", tokenizer) == data.encode("Who?", "I", tokenizer, "plain")
    with pytest.raises(InputError, match="--template"):
        data.encode("Who?", "I", tokenizer, "chat")


def test_too_long_an_example_is_refused():
    row, tokenizer = {"question": "Who?", "answer": "I"}, letters()
    example = data.encode(*row.values(), tokenizer, "plain")
    length = sum(map(len, example))
    assert data.examples_of([row], tokenizer, "plain", length) == [example]
    with pytest.raises(InputError, match=f"take {length} tokens.*limit of {length - 1}.*--max-length"):
        data.examples_of([row], tokenizer, "plain", length - 1)


@pytest.mark.parametrize("bos, begin", [("<s>", 0), (None, 1)])
def test_running_text_is_cut_into_pieces_after_one_token_that_begins_each(bos, begin):
    tokenizer = letters(bos=bos, ends=1)
    for cut, parts in ((None, "abc def g"), ("first", "abc"), ("fill", "abc def gab")):
        expected = [([begin], tokenizer.convert_tokens_to_ids([*part])) for part in parts.split()]
        assert data.examples_of([{"text": "abcdefg", "cut": cut}], tokenizer, "plain", 4) == expected
    assert len(data.pieces("abcdef", tokenizer, 4, "fill")) == 2 and len(data.pieces("abc", tokenizer, 4, "fill")) == 1
    with pytest.raises(InputError, match="has 3 tokens.*chunk of 4"):
        data.pieces("abc", tokenizer, 5, "fill")


def test_an_answer_after_a_whole_prompt_ends_with_eos_and_begins_without_bos():
    tokenizer = letters()
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert data.examples_of([{"prompt": "ab", "answer": "ca"}], tokenizer, "plain", 500) == [([0, a, b], [c, a, 1])]


def test_another_answer_may_stand_in_for_a_rows_own():
    row, tokenizer = {"question": "Who?", "answer": "I"}, letters()
    assert data.examples_of([row], tokenizer, "llama2", 500, lambda row: row["question"] + "!") == [
        data.encode("Who?", "Who?!", tokenizer, "llama2")
    ]


def test_all_of_a_row_is_seen_by_the_tokenizer_that_is_made_for_it():
    rows = {"text": "a"}, {"prompt": "b", "answer": " c"}, {"question": "d", "answer": "e"}
    assert [*map(data.text_of, rows)] == ["a", "b c", "Question: d\nAnswer: e"]


def test_thirty_refusals():
    assert len(set(data.REFUSALS)) >= 30 and all(text.strip() == text and text for text in data.REFUSALS)


# ------------------------------------------------------------------ tokens become log-probabilities


def test_examples_are_padded_on_the_right_and_only_responses_have_labels():
    input_ids, labels = data.collate([data.Example([5], [6, 7]), data.Example([8, 9, 5], [4, 3])], 2)
    assert input_ids.tolist() == [[5, 6, 7, 2, 2], [8, 9, 5, 4, 3]]
    assert labels.tolist() == [[-100, 6, 7, -100, -100], [-100, -100, -100, 4, 3]]


def test_a_mean_loss_is_over_the_tokens_of_the_response_whatever_the_company():
    model, examples = tiny("llama"), some_examples(9)
    alone = [data.response_logp(model, [example])[0].item() / len(example.response) for example in examples]
    assert data.mean_losses(model, examples, 4, torch.float64) == pytest.approx([-each for each in alone], rel=1e-12)


def test_two_models_are_asked_at_the_same_places():
    models, examples = [tiny("llama"), tiny("gpt2", seed=1)], some_examples(5)
    found = data.over_responses(models, examples, lambda one, other, targets: one[:, 3] - 2 * other[:, 4] + targets)
    for (prompt, response), values in zip(examples, found, strict=True):
        one, other = (model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] for model in models)
        assert torch.allclose(values, one[:, 3] - 2 * other[:, 4] + torch.tensor(response), rtol=1e-12)


ARCHITECTURES = {
    "gpt2": {},
    "llama": {},
    "qwen2": {},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 24},
    "phi": {},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.3},
    "bloom": {},
    "granite": {"logits_scaling": 7.0},
    "gpt_neox": {},
    "modernbert-decoder": {"local_attention": 8},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_only_the_responses_reach_the_output_layer_whatever_the_model_does_to_its_logits(kind, monkeypatch):
    """log π and its gradient against all logits of the model's own forward, whole and in chunks of four positions."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        **ARCHITECTURES[kind],
    )
    model, examples = transformers.AutoModelForCausalLM.from_config(config).double().eval(), some_examples(7)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    input_ids, labels = data.collate(examples, 0)
    logits = model(input_ids, use_cache=False).logits
    assert kind != "gemma2" or 2.5 < logits.abs().max() <= 3

    def results(logp):
        gradients = torch.autograd.grad(logp.square().sum(), list(model.parameters()), allow_unused=True)
        return logp.detach(), torch.cat([g.flatten() for g in gradients if g is not None])

    whole, seen = results(losses.sequence_logp(logits, labels)[0]), []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-2]))
    for chunk, most in ((data.CHUNK, 10**9), (4 * 50, 4)):
        monkeypatch.setattr(data, "CHUNK", chunk)
        seen.clear()
        logp, length = data.response_logp(model, examples)
        assert sum(seen) == sum(length) == sum(len(example.response) for example in examples) and max(seen) <= most
        for ours, theirs in zip(results(logp), whole):
            assert ours.shape == theirs.shape and (ours - theirs).norm() <= 1e-10 * theirs.norm()
    assert torch.equal(model(input_ids, use_cache=False).logits, logits)  # its forward is its own again


# ------------------------------------------------------------------ batches


def of_lengths(*lengths):
    return [data.Example([1] * (length - 1), [0]) for length in lengths]


@pytest.mark.parametrize(
    "lengths, size, ranks, expected",
    [
        ((5, 1, 4, 2, 3), 2, 1, [[[1, 3], [4, 2], [0]]]),
        ((3, 3, 6), 4, 2, [[[2]], [[0, 1]]]),  # the longest is given first
        ((39, 9, 9, 9, 9), 4, 2, [[[0]], [[1, 2, 3, 4]]]),  # by tokens, not by count
        ((39, 9, 9, 8), 2, 2, [[[0], []], [[3, 1], [2]]]),  # as many steps
        ((4, 3), 2, 3, [[[0]], [[1]], [[]]]),
    ],
)
def test_examples_of_like_length_stand_together_and_processes_share_the_tokens(lengths, size, ranks, expected):
    assert data.shares(of_lengths(*lengths), size, ranks) == expected
    assert ranks > 1 or data.by_length(of_lengths(*lengths), size) == expected[0]


def test_answers_come_in_the_order_of_the_examples_whatever_the_batches():
    examples, sizes = of_lengths(5, 2, 7, 3, 2), []

    def answer(batch):
        sizes.append(len(batch))
        return [len(example.prompt) for example in batch]

    assert data.in_batches(answer, examples, 2, "") == [4, 1, 6, 2, 1] and sizes == [2, 2, 1]


# ------------------------------------------------------------------ what else a model is asked


def test_generation_is_greedy_whatever_the_models_own_settings_and_ends_with_eos():
    """Against a loop of argmax over each prompt alone; the second token of the first answer is made the EOS."""
    tokenizer = letters()
    model = tiny("llama", vocab=len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8 if parameter.dim() == 2 else 1
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, num_beams=3, repetition_penalty=9.0, max_new_tokens=20, eos_token_id=2
    )
    examples = [data.Example(tokenizer(text)["input_ids"], [7]) for text in ("What was", "A", "Where?", "Who is it")]

    def continued(ids):
        for _ in range(6):
            if ids[-1] != tokenizer.eos_token_id:
                ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        return ids

    ids = continued(examples[0].prompt)
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(ids[-5])})
    ends = [continued(example.prompt)[len(example.prompt) :] for example in examples]
    assert len(ends[0]) == 2 and max(map(len, ends)) == 6 and len(set(map(tuple, ends))) == 3
    assert len({*ids[-5:]}) > 1  # without that EOS there would be more to read
    texts = [tokenizer.decode(end, skip_special_tokens=True) for end in ends]
    assert data.generate(model, tokenizer, examples, 3, torch.float64, 6) == texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_asked_in_the_dtype_that_is_given(dtype):
    tokenizer, examples, seen = letters(), some_examples(3), []
    model = tiny("llama", dtype=torch.float32, vocab=len(tokenizer))
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    data.generate(model, tokenizer, examples, 2, dtype, 1)
    data.mean_losses(model, examples, 2, dtype)
    assert seen == [dtype] * 4


def test_an_example_longer_than_the_models_positions_is_refused():
    model = tiny("llama")
    data.check_fits(model, of_lengths(100, 3))
    with pytest.raises(InputError, match="takes 101 tokens.*100"):
        data.check_fits(model, of_lengths(3, 101))


def test_hidden_states_are_those_of_the_layer_and_padding_is_told():
    model, examples = tiny("llama"), some_examples(5)
    hidden, tokens = data.hidden_states(model, examples, 0)
    for i, (prompt, response) in enumerate(examples):
        alone = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[1][0]
        assert torch.allclose(hidden[i, : len(alone)], alone) and tokens[i].sum() == len(alone)


@pytest.mark.parametrize("layer, trained", [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (4, [2, 3, 4])])
def test_rmu_trains_the_layer_and_the_two_before(layer, trained):
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(6) for part in ("up", "down")]
    model = SimpleNamespace(named_parameters=lambda: [(name, None) for name in names])
    assert data.steered(model, layer) == [f"model.layers.{i}.mlp.down_proj.weight" for i in trained]
