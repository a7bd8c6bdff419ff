"""Examples, padding, their log-probabilities under a model, and the batches of a run."""

import itertools
import math
import string

import pytest
import tokenizers
import torch
import transformers
from conftest import some_examples, tiny

import data
import losses
from machinery import processes
from machinery.inputs import InputError

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


@pytest.mark.parametrize("bos, begin", [("<s>", 0), (None, 1)])
def test_running_text_is_cut_into_pieces_after_one_token_that_begins_each(bos, begin):
    tokenizer = letters(bos=bos, ends=1)
    for cut, parts in ((None, "abc def g"), ("first", "abc"), ("fill", "abc def gab")):
        expected = [([begin], tokenizer.convert_tokens_to_ids([*part])) for part in parts.split()]
        assert data.examples_of([{"text": "abcdefg", "cut": cut}], tokenizer, "plain", 4) == expected
    assert len(data.pieces("abcdef", tokenizer, 4, "fill")) == 2 and len(data.pieces("abc", tokenizer, 4, "fill")) == 1
    with pytest.raises(InputError, match="has 3 tokens.*chunk of 4"):
        data.pieces("abc", tokenizer, 5, "fill")


@pytest.mark.parametrize("ends", [0, 1])
def test_an_answer_after_a_whole_prompt_ends_with_one_eos_and_begins_without_bos(ends):
    tokenizer = letters(ends=ends)
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert data.examples_of([{"prompt": "ab", "answer": "ca"}], tokenizer, "plain", 500) == [([0, a, b], [c, a, 1])]


def test_a_question_without_an_answer_is_a_prompt_without_eos_whatever_the_tokenizer_adds():
    assert (
        data.encode("Who?", "", letters(ends=1), "plain").prompt == data.encode("Who?", "", letters(), "plain").prompt
    )


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


ARCHITECTURES = {
    "gpt2": {},
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 24},
    "phi": {},
    "phi3": {},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.3},
    "bloom": {},
    "granite": {"logits_scaling": 7.0},
    "gpt_neox": {},
    "modernbert-decoder": {"local_attention": 8},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_only_the_responses_reach_the_output_layer_whatever_the_model_does_to_its_logits(kind):
    """Logits, log π and its gradient against all logits of the model's own forward."""
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

    # what a loss gets
    whole, seen = results(losses.sequence_logp(logits, labels)[0]), []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    response = data.respond(model, examples)
    hook.remove()
    lengths = [len(example.response) for example in examples]
    assert sum(hidden.shape[:-1].numel() for hidden in seen) == sum(lengths) and response.length.tolist() == lengths
    for ours, theirs in zip(results(response.logp), whole, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).norm() <= 1e-10 * theirs.norm()

    # of each token, and of the whole vocabulary at its place
    by_example, targets, length = data.response_logits(model, examples)
    assert length.tolist() == lengths and targets.tolist() == sum((example.response for example in examples), [])
    by_example = by_example.split(lengths)
    for i, (prompt, answer) in enumerate(examples):
        alone = logits[i, len(prompt) - 1 : len(prompt) + len(answer) - 1]
        assert torch.allclose(by_example[i], alone, rtol=1e-10)
        token_logp = alone.log_softmax(-1)[range(len(answer)), answer]
        assert torch.allclose(response.token_logp[i], token_logp, rtol=1e-10)


def test_a_response_holds_what_a_loss_may_read():
    model, examples = tiny("llama"), some_examples(3)
    response = data.respond(model, examples)
    assert response.ref is None and response.logits is None and response.length.dtype == torch.int64
    assert response.logp.tolist() == pytest.approx([tokens.sum().item() for tokens in response.token_logp])
    assert [tokens.tolist() for tokens in response.targets] == [example.response for example in examples]

    # all logits, if asked for, and what the reference model says
    more = data.respond(model, examples, needs_logits=True, ref=response)
    assert more.ref is response and [len(logits) for logits in more.logits] == response.length.tolist()
    for logits, targets, token_logp in zip(more.logits, more.targets, more.token_logp, strict=True):
        assert torch.allclose(losses.token_logp(logits, targets), token_logp, rtol=1e-12)

    # what is left of a response of which the log-probabilities are kept
    again = data.response(response.token_logp, "cpu")
    assert torch.equal(again.logp, response.logp) and torch.equal(again.length, response.length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_only_bfloat16_computes_in_another_dtype_than_the_weights(dtype):
    model = tiny("llama", dtype=torch.float32)
    with data.autocast(model.device, dtype):
        logits, _, _ = data.response_logits(model, some_examples(2))
    assert logits.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


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
def test_examples_of_like_length_stand_together_and_processes_share_the_tokens(
    lengths, size, ranks, expected, monkeypatch
):
    """A process without examples left takes one that counts for nothing, so that all take as many steps."""
    examples = of_lengths(*lengths)
    assert data.by_length(examples, size, ranks) == expected
    for rank in range(ranks):
        monkeypatch.setattr(processes, "ranks", lambda rank=rank: (rank, ranks))
        divisor = len(lengths) / ranks
        batches = [(places, divisor) if places else ([0], math.inf) for places in expected[rank]]
        assert [*data.microbatches(examples, size)] == batches
        assert [*data.microbatches([], size)] == []


@pytest.mark.parametrize("retain_size", [9, 0])
def test_an_epoch_is_a_permutation_and_as_many_retain_examples_are_drawn(retain_size):
    """Seven forget examples in batches of three; the same whenever it begins."""
    draw, expected = torch.Generator().manual_seed(5), []
    for _ in range(3):
        order = torch.randperm(7, generator=draw).tolist()
        for rows in (order[:3], order[3:6], order[6:]):
            size = (len(rows),) if retain_size else (0,)
            expected.append((rows, torch.randint(retain_size or 1, size, generator=draw).tolist()))
    assert [*itertools.islice(data.batches(7, retain_size, 3, 5), 9)] == expected
    assert [*itertools.islice(data.batches(7, retain_size, 3, 5), 4, 9)] == expected[4:]
    assert [sorted(sum((rows for rows, _ in expected[i : i + 3]), [])) for i in (0, 3, 6)] == [[*range(7)]] * 3


def test_a_retain_batch_may_be_larger_than_the_forget_batch():
    """Five retain examples with each batch of 3, 3 and 1; and without a retain set none."""
    steps = [*itertools.islice(data.batches(7, 100, 3, 5, retain_batch_size=5), 6)]
    assert [(len(rows), len(drawn)) for rows, drawn in steps] == [(3, 5), (3, 5), (1, 5)] * 2
    assert len({*itertools.chain(*(drawn for _, drawn in steps))}) > 15  # of all rows, anew each time
    assert [drawn for _, drawn in itertools.islice(data.batches(7, 0, 3, 5, retain_batch_size=5), 3)] == [[]] * 3
    for kept, size, counts in ((2, 5, [5, 5, 5]), (1, None, [3, 3, 1])):  # of fewer than that, some more than once
        steps = itertools.islice(data.batches(7, kept, 3, 5, size), 3)
        assert [len(drawn) for _, drawn in steps] == counts


@pytest.mark.parametrize(
    "steps, warmup, rates",
    [
        (6, 2, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        (4, 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (2, 4, [1 / 5, 2 / 5]),  # it ends within the warm-up
        (1, 1, [1 / 2]),
        (3, 0.5, [2 / 3 / 1, 2 / 2.5, 1 / 2.5]),
    ],
)
def test_the_learning_rate_rises_over_the_warm_up_and_falls_towards_zero(steps, warmup, rates):
    rates = [7 * rate for rate in rates]
    assert [data.learning_rate(step, steps, warmup, 7) for step in range(1, steps + 1)] == pytest.approx(rates)
