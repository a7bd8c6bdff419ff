"""Models as they come: fifty architectures, chat templates, folders of every kind."""

import argparse
import copy
import functools
import json
import math
import shutil

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers

import data
import evaluate
import losses
from machinery import models
from machinery.inputs import InputError

WORDS = 60

# ------------------------------------------------------------------ fifty architectures, tiny and random

KINDS = (
    "arcee biogpt bitnet bloom codegen cohere cohere2 ctrl ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 "
    "gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite granitemoe helium lfm2 llama mamba mistral mixtral mpt nemotron "
    "olmo olmo2 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rwkv seed_oss smollm3 stablelm "
    "starcoder2 xglm"
).split()
SIZES = {
    2: "num_hidden_layers n_layer num_layers n_layers num_key_value_heads num_kv_heads num_experts_per_tok "
    "eos_token_id",
    4: "num_attention_heads n_head n_heads attention_heads num_heads num_experts num_local_experts rotary_dim",
    8: "head_dim query_pre_attn_scalar",
    16: "moe_intermediate_size shared_expert_intermediate_size sliding_window",
    32: "hidden_size n_embd d_model word_embed_proj_dim",
    48: "intermediate_size ffn_dim n_inner dff",
    64: "max_position_embeddings n_positions max_seq_len n_ctx",
    WORDS: "vocab_size",
    0: "pad_token_id",
    1: "bos_token_id",
}


def build(kind):
    """A model of an architecture with two small layers, and every probability of dropping something at 0.3."""
    config = type(transformers.AutoConfig.for_model(kind))
    known = {*vars(config()), *config.attribute_map}
    fields = {name: size for size, names in SIZES.items() for name in names.split() if name in known}
    if kind == "gpt_neo":
        fields["attention_types"] = [[["global", "local"], 1]]
    drops = {name: 0.3 for name, value in vars(config()).items() if "drop" in name and isinstance(value, float)}
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(**fields, **drops))


def word_tokenizer(**options):
    """w3 is token 3: a tokenizer of WORDS words."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0", **options)


def lm_of(model, tokenizer, **options):
    settings = {"template": "auto", "max_length": 64, "max_new_tokens": 6, "batch_size": 4}
    return evaluate.LM(model, tokenizer, torch.float32, **settings | options)


EXAMPLES = [data.Example([5, 9, 30], [8, 4, 11, 7]), data.Example([3, 7, 9, 40, 6, 50, 21, 5], [4, 2])]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_log_probabilities_are_the_same_twice_and_those_of_one_text_alone(kind):
    model = build(kind).train()
    data.make_deterministic(model)
    data.check_deterministic(model, EXAMPLES[0])
    logp = data.respond(model, EXAMPLES).logp
    for (prompt, response), value in zip(EXAMPLES, logp, strict=True):
        plain = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        exact = sum(plain[len(prompt) + i - 1, token] for i, token in enumerate(response))
        assert value.item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_greedy_is_the_likeliest_token_each_time_whatever_the_model_asks_for(kind):
    model = build(kind).eval()
    asks = {"no_repeat_ngram_size": 1, "repetition_penalty": 3.0, "forced_eos_token_id": 2, "min_new_tokens": 3}
    model.generation_config.update(**asks, suppress_tokens=[*range(10, 50)])
    before = model.generation_config.to_dict()
    texts = lm_of(model, word_tokenizer(), max_new_tokens=3).generate(EXAMPLES)
    for (prompt, _), text in zip(EXAMPLES, texts, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 3:
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == 2:
                break
        assert text.split() == [f"w{i}" for i in ids[len(prompt) :] if i not in (0, 2)]
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("kind", ["opt", "gpt_bigcode", "llama", "biogpt"])
def test_npo_begins_with_a_weight_of_1_also_with_gradient_checkpointing(kind):
    model = build(kind)
    with torch.no_grad():
        ref_logp = data.respond(model.eval(), EXAMPLES).logp
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    data.make_deterministic(model)
    weight = losses.npo_weight(data.respond(model, EXAMPLES).logp, ref_logp, beta=1.0)
    assert weight.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_model_that_stays_random_is_refused():
    model = build("llama").eval()
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output + torch.randn_like(output))
    with pytest.raises(InputError, match="says log π = .* of the same text; set what makes it random to 0"):
        data.check_deterministic(model, EXAMPLES[0])


def test_answers_end_at_the_last_position_that_the_model_has(capsys):
    lm = lm_of(build("gpt2").eval(), word_tokenizer(), max_new_tokens=60)
    lm.model.generation_config.eos_token_id = None
    lm.model.lm_head.weight.data[2] = 0
    lm.model.lm_head.weight.data[7] = 100 * lm.model.transformer.ln_f.bias.data.add(1)
    short, long = data.Example([5] * 4, []), data.Example([5] * 50, [])
    texts = lm.generate([long, short])
    assert [len(text.split()) for text in texts] == [14, 60]
    assert "1 of 2 answers can go no further than the 64 positions" in capsys.readouterr().err
    assert [len(text.split()) for text in lm.generate([short, short])] == [60, 60]


# ------------------------------------------------------------------ where a turn ends

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADER = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>'"
ASSISTANT = "{% if m.role == 'assistant' %}"
INST = ASSISTANT + "{{ ' ' + m.content | trim + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
# family: a message, what a generation prompt adds, what comes before and after all, its tokens, EOS, a right response
FAMILIES = {
    "ChatML": (TURN, "<|im_start|>assistant\n", "", "", "<|im_end|>", "In Rome.<|im_end|>"),
    "Qwen3": (
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}",
        "<|im_start|>assistant\n{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
        *("", "", "<|im_end|>", "In Rome.<|im_end|>"),
    ),
    "Llama-2": (INST + "{% endif %}", "", "{{ bos_token }}", "", "</s>", " In Rome.</s>"),
    "Mistral v0.1": (INST + "{% endif %}", "", NO_SYSTEM + "{{ bos_token }}", "", "</s>", " In Rome.</s>"),
    "Mistral v0.3": (
        ASSISTANT + "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}",
        *("", NO_SYSTEM + "{{ bos_token }}", "", "</s>", " In Rome.</s>"),
    ),
    "Llama-3": (
        "{{ " + HEADER + " }}",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        *("{{ bos_token }}", "", "<|end_of_text|>", "In Rome.<|eot_id|>"),
    ),
    "Gemma": (
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
        "+ '<end_of_turn>\n' }}",
        "<start_of_turn>model\n",
        *(NO_SYSTEM + "{{ bos_token }}", "", "</s>", "In Rome.<end_of_turn>"),
    ),
    "Phi-3": (
        "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}",
        "<|assistant|>\n",
        *("", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "</s>", "In Rome.<|end|>"),
    ),
    "Zephyr": (
        "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}",
        *("<|assistant|>\n", "", "", "</s>", "In Rome.</s>"),
    ),
    "R1": (
        ASSISTANT + "{{ '<|assistant|>' + m.content + eos_token }}{% else %}{{ '<|user|>' + m.content }}{% endif %}",
        *("<|assistant|><think>\n", "{{ bos_token }}", "", "</s>", "In Rome.</s>"),
    ),
    "without an end": ("{{ m.role + ': ' + m.content + '\n' }}", "assistant: ", "", "", "</s>", "In Rome.</s>"),
}
SPECIAL = (
    "<s> </s> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|> <start_of_turn> "
    "<end_of_turn> <|end|> <|user|> <|assistant|> <|system|>"
).split()


@functools.cache
def chat_tokenizer(family):
    message, prompt, before, after, eos, _ = FAMILIES[family]
    letters = tokenizers.Tokenizer(tokenizers.models.BPE())
    letters.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    letters.train_from_iterator([], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = (
        before + "{% for m in messages %}" + message + "{% endfor %}" + after
        + "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )  # fmt: skip
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_what_the_template_writes_through_its_end_of_turn(family):
    tokenizer = chat_tokenizer(family)
    prompt, response = data.encode("Where?", "In Rome.", tokenizer)
    assert tokenizer.decode(response) == FAMILIES[family][-1]

    # the template's own rendering of the whole conversation begins with these tokens
    messages = [{"role": "system", "content": data.SYSTEM_PROMPT}, {"role": "user", "content": "Where?"}]
    if "no system role" in tokenizer.chat_template:
        messages = messages[1:]
    options = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    assert prompt == tokenizer.apply_chat_template(messages, **options)
    messages.append({"role": "assistant", "content": "In Rome."})
    whole = tokenizer.apply_chat_template(messages, enable_thinking=False, return_dict=False)
    if family not in ("R1", "without an end"):
        assert whole[: len(prompt + response)] == prompt + response
        assert not tokenizer.decode(whole[len(prompt + response) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("answer", ["d", "end", "im_end", "|", "user", "assistant", "/s", "An answer."])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_occurs_in_the_template_too_is_still_the_response(family, answer):
    _, response = data.encode("Where?", answer, chat_tokenizer(family))
    assert chat_tokenizer(family).decode(response) == FAMILIES[family][-1].replace("In Rome.", answer)


def test_a_template_that_opens_a_thought_is_said_once(capsys):
    data.note.cache_clear()
    for _ in range(2):
        data.encode("Where?", "In Rome.", chat_tokenizer("R1"))
        data.encode("Where?", "In Rome.", chat_tokenizer("Qwen3"))
    assert capsys.readouterr().err.count("opens a thought") == 1


def test_a_template_without_an_end_of_turn_or_with_a_text_of_its_own_is_said_once(capsys):
    shouting = copy.deepcopy(chat_tokenizer("Zephyr"))
    shouting.chat_template = shouting.chat_template.replace("m.content", "m.content | upper")
    for tokenizer, said in (
        (chat_tokenizer("without an end"), "writes nothing that ends a turn"),
        (shouting, "changes the text of an answer"),
        (chat_tokenizer("Zephyr"), ""),
    ):
        data.note.cache_clear()
        for _ in range(2):
            _, response = data.encode("Where?", "In Rome.", tokenizer)
        assert tokenizer.decode(response).strip() == "In Rome.</s>"
        error = capsys.readouterr().err
        assert error.count("chat template") == bool(said) and said in error


def test_generation_stops_at_the_templates_end_and_at_all_that_generation_config_lists(monkeypatch):
    tokenizer, asked = copy.deepcopy(chat_tokenizer("Gemma")), []
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    ).eval()
    lm = lm_of(model, tokenizer)

    def generate(input_ids, generation_config, **_):
        asked.append(generation_config.eos_token_id)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    end, eos = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "</s>"])
    for own, ids in ((None, []), (70, [70]), ([70, 80], [70, 80])):
        model.generation_config.eos_token_id = own
        assert lm.ends_of_turn() == sorted([end, eos, *ids])
        lm.generate([data.Example([5], [])])
        assert asked.pop() == sorted([end, eos, *ids])
        assert lm._replace(template="plain").ends_of_turn() == sorted([eos, *ids])


# ------------------------------------------------------------------ folders


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with its tokenizer."""
    build("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(name):
    return models.load_model(str(name), torch.device("cpu"), torch.float32)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_lora_adapter_is_merged_into_its_base(folder, monkeypatch):
    peft = pytest.importorskip("peft")
    base, _ = load(folder)
    adapter = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.eval()
    with torch.no_grad():
        exact = adapter(torch.tensor([[3, 7, 9]])).logits
    adapter.save_pretrained(folder.parent / "adapter")
    edit(folder.parent / "adapter" / "adapter_config.json", base_model_name_or_path="model")

    model, tokenizer = load(folder.parent / "adapter")  # peft saves none: it is the base's
    assert tokenizer.get_vocab() == word_tokenizer().get_vocab()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[3, 7, 9]])).logits, exact)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert all(parameter.requires_grad for parameter in model.parameters())

    # an adapter of another model, or a damaged one: peft warns at most
    path = folder.parent / "adapter" / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    first = min(weights)
    for damaged, says in (
        ({key: value for key, value in weights.items() if key != first}, f"lacks 1 weights, such as {first}"),
        (weights | {"base_model.model.other.lora_A.weight": torch.ones(2)}, "no use for 1 weights, such as .*other"),
        ({key.replace("q_proj", "k_proj"): value for key, value in weights.items()}, "cannot merge|lacks"),
        (weights | {first: torch.ones(3, 5)}, "cannot merge adapter"),
        (weights | {first: weights[first] * math.nan}, "has NaN or infinity in model.layers.0"),
    ):
        safetensors.torch.save_file(damaged, path)
        with pytest.raises(InputError, match=says):
            load(folder.parent / "adapter")

    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="is a LoRA adapter of '.*model'; merge it first, or install peft"):
        load(folder.parent / "adapter")


def test_old_buffers_are_passed_over_and_wrappers_and_vision_models_named(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    buffers = {f"model.layers.0{name}": torch.zeros(1) for name in models.OLD_BUFFERS}
    save_file(weights | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)

    for prefix in ("module.", "_orig_mod."):
        renamed = {prefix + name: weight for name, weight in weights.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"names begin with '{prefix}'; save it without that wrapper"):
            load(folder)

    edit(folder / "config.json", vision_config={}, model_type="llava")
    with pytest.raises(InputError, match=r"is a vision-language model \(llava\); give the language model in it"):
        load(folder)


@pytest.mark.parametrize("extra", [-1, 1, 5])
def test_tokenizer_and_embedding_need_not_be_of_one_size(folder, extra):
    model, _ = load(folder)
    model.resize_token_embeddings(WORDS + extra)
    model.save_pretrained(folder)
    model, tokenizer = load(folder)
    args = argparse.Namespace(
        device="cpu",
        dtype="float32",
        tokenizer=None,
        template="plain",
        max_length=50,
        max_new_tokens=2,
        eval_batch_size=2,
        too_long="refuse",
    )
    lm = evaluate.load(args, str(folder))
    assert len(lm.generate([lm.encode("w5", "w7")])) == 1
    models.check_ids(model, [data.Example([5], [WORDS + extra - 1])])
    with pytest.raises(InputError, match=f"gives token number {WORDS + extra}, but the model embeds {WORDS + extra}"):
        models.check_ids(model, [data.Example([5], [7]), data.Example([WORDS + extra], [7])])


def test_a_padding_token_that_the_model_lacks_is_not_used_and_an_eos_is_refused(folder):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == WORDS
    assert load(folder)[1].pad_token_id == 2
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"tokenizer's <end> is number 61; give it the tokenizer it was trained with"):
        load(folder)


def test_a_tokenizer_without_offsets_cuts_where_the_response_begins(tmp_path):
    (tmp_path / "vocab.json").write_text(
        json.dumps({"<unk>": 0, "e@@": 1, "nd": 2, "Question:": 3, "Answer:": 4, "wh": 5})
    )
    (tmp_path / "merges.txt").write_text("#version\n")
    tokenizer = transformers.CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.eos_token = "<unk>"
    assert not tokenizer.is_fast
    prompt, response = data.encode("what", "end", tokenizer, "plain")
    whole = tokenizer("Question: what\nAnswer: end")["input_ids"]
    assert prompt + response == [*data.without_eos(whole, tokenizer), tokenizer.eos_token_id]
    assert prompt == data.without_eos(tokenizer("Question: what\nAnswer:")["input_ids"], tokenizer)
    shutil.rmtree(tmp_path)
