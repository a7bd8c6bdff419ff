"""Loading a model that the user names, making the small one, LoRA; weights from safetensors only, no remote code."""

import importlib.util
import re
import textwrap
import warnings
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers

from machinery.inputs import InputError, ask_the_hub, check_size, read_json

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load_model(name, device, dtype, tokenizer=None, frozen=False):
    """(model, tokenizer) from a Hub id or a folder; weights from safetensors only, no remote code.

    tokenizer: where from, if the folder has none of its own; by default an adapter's is its base's. Weights are
    float32, or float64 if dtype is; if they are frozen and dtype is bfloat16, in part that (see `halve`). A LoRA
    adapter is merged into its base, if peft is installed. Raises InputError if they cannot be loaded, are not what
    config.json says, or the tokenizer cannot be this model's: ends no text, or uses tokens that the model does not
    embed.
    """
    check_folder(name)
    try:
        base = base_of(name)
        ask_the_hub(base)
        tokenizer = load_tokenizer(name, tokenizer or base)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            base,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        )
    except InputError:
        raise
    except Exception as error:  # missing files, bad JSON, unknown architecture, no network: many kinds
        where = "" if Path(name).exists() else "it is no local folder, and the Hub did not give it: "
        reason = textwrap.shorten(str(error), 160)
        raise InputError(f"cannot load model '{name}' ({where}{reason}); {NEEDS}") from None
    check_weights(name, model, report)
    if is_adapter(name):
        model = merge_adapter(name, model)
    check_tokenizer(name, model, tokenizer)
    if frozen and dtype == torch.bfloat16:
        halve(model)
    return model.to(device).eval(), tokenizer


NEEDS = "it needs config.json, a tokenizer and weights in safetensors (pickle files are not loaded)"


def is_adapter(name):
    return Path(name, "adapter_config.json").is_file()


def base_of(name):
    """The model that a folder is an adapter of, beside it or on the Hub; the folder itself if it is none."""
    if not is_adapter(name):
        return name
    base = read_json(Path(name, "adapter_config.json"))["base_model_name_or_path"]
    beside = Path(name).parent / base
    base = str(beside) if beside.is_dir() else base
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            f"'{name}' is a LoRA adapter of '{base}'; merge it first, or install peft, and it is merged on loading"
        )
    return base


def merge_adapter(name, model):
    """The base model with the adapter's weights merged in. InputError unless they are all used, and all it takes."""
    import peft

    mend = "give an adapter of this base model"
    try:
        adapter = peft.PeftModel.from_pretrained(model, name)
        with safetensors.safe_open(Path(name, "adapter_model.safetensors"), "pt") as file:
            keys = {*file.keys()}
    except Exception as error:  # no such file, other shapes, layers that the model lacks: many kinds
        raise InputError(f"cannot merge adapter '{name}' ({textwrap.shorten(str(error), 160)}); {mend}") from None

    # what the file lacks peft leaves at random or at zero, what it has besides peft leaves out, with a warning at most
    needed = {*peft.get_peft_model_state_dict(adapter, save_embedding_layers=False)}
    for what, others in (("lacks", needed - keys), ("has no use for", keys - needed - {*adapter.state_dict()})):
        if others:
            raise InputError(f"adapter '{name}' {what} {len(others)} weights, such as {min(others)}; {mend}")

    model = adapter.merge_and_unload().requires_grad_()
    check_numbers(name, model, dict(model.named_parameters()))
    return model


def check_folder(name):
    """InputError for a folder that holds no causal language model that we load: said by what it holds."""
    folder = Path(name)
    if not folder.is_dir():
        return
    for path in folder.glob("*.json"):
        check_size(path)  # the libraries read it whole
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"model folder '{name}' has no *.safetensors; {NEEDS}")
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError, RecursionError):
        return  # the library says what is wrong
    if isinstance(config, dict) and "vision_config" in config:
        raise InputError(
            f"model '{name}' is a vision-language model ({config.get('model_type')}); "
            "give the language model in it, saved as a causal language model"
        )


def load_tokenizer(name, other):
    """The tokenizer in a model's folder; else that of `other`."""
    try:
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # as many kinds as there are ways to be none
        ask_the_hub(other)
        return transformers.AutoTokenizer.from_pretrained(other, trust_remote_code=False)


# Constants that old checkpoints hold and transformers no longer does.
OLD_BUFFERS = ".masked_bias", ".attn.attention.bias", ".attn.bias", ".rotary_emb.inv_freq"


def check_weights(name, model, report):
    """InputError unless all of a model's weights are in its files, as numbers to train, and nothing else is."""
    mend = "give a config.json and weights that belong together"
    unused = {key for key in report["unexpected_keys"] if not key.endswith(OLD_BUFFERS)}
    for prefix in ("module.", "_orig_mod."):
        if any(key.startswith(prefix) for key in unused):
            raise InputError(
                f"model '{name}' has weights whose names begin with '{prefix}'; save it without that wrapper"
            )
    for what, keys in (("lacks", report["missing_keys"]), ("has no use for", unused)):
        if keys:
            raise InputError(f"model '{name}' {what} {len(keys)} weights, such as {min(keys)}; {mend}")
    made_for, weights = model.config.architectures, dict(model.named_parameters())
    if made_for is not None and type(model).__name__.lower() not in str(made_for).lower():
        raise InputError(f"model '{name}' is a {type(model).__name__}, but its architectures are {made_for}; {mend}")
    check_numbers(name, model, weights)


def check_numbers(name, model, weights):
    """InputError unless a model's weights are finite numbers to train. weights: {name: parameter}."""
    if getattr(model.config, "quantization_config", None):
        raise InputError(f"model '{name}' is quantized, as its config.json says; give one that is not")
    for path in Path(name).glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            for key in weights.keys() & file.keys():
                if "F" not in file.get_slice(key).get_dtype():
                    raise InputError(f"model '{name}' has whole numbers in {key}; give one that is not quantized")
    for key, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"model '{name}' has NaN or infinity in {key}; give one that did not diverge")


def check_tokenizer(name, model, tokenizer):
    """InputError unless a tokenizer can be the model's; a padding token that the model does not embed is replaced.

    Neither has to have exactly as many tokens as the other: models pad their embedding to a round number (by 2.4% the
    widest known to us), and tokenizers hold tokens that no text gives. `check_ids` looks at those that data do give.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no EOS token, which ends every response; set one")
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None and token >= rows:
            raise InputError(
                f"model '{name}' embeds {rows} tokens but its tokenizer's {tokenizer.decode([token])} is number "
                f"{token}; give it the tokenizer it was trained with"
            )
    if not 0.9 * len(tokenizer) < rows < 1.1 * len(tokenizer):
        raise InputError(
            f"model '{name}' embeds {rows} tokens but its tokenizer has {len(tokenizer)}; "
            "give it the tokenizer it was trained with"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads


def check_ids(model, examples):
    """InputError if examples, (prompt, response) of token ids, use a token that the model does not embed."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((max(ids) for example in examples for ids in example if ids), default=0)
    if largest >= rows:
        raise InputError(
            f"the tokenizer gives token number {largest}, but the model embeds {rows}; "
            "give it the tokenizer it was trained with"
        )


# ------------------------------------------------------------------ weights that are not trained, and LoRA


def linear_layers(model):
    """{name: layer} of what computes W x + b, but for the output layer, and what chooses a mixture's experts."""
    kinds = torch.nn.Linear, transformers.pytorch_utils.Conv1D
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
        and layer is not model.get_output_embeddings()
        and not re.search(r"(router|gate)(\.|$)", name)
    }


def halve(model):
    """Keep the weights of linear layers in bfloat16, in half the memory, for a model in which these are not trained.

    Autocast to bfloat16 rounds them at every use, so what is computed under it is the same, bit for bit.
    """
    for layer in linear_layers(model).values():
        layer.weight.data = layer.weight.data.bfloat16()


def add_adapters(model, rank, seed):
    """Freeze a model, and make each linear layer's W [out, in] W + 2 B A, of which A [rank, in], B [out, rank] are
    trained (LoRA, Hu et al. 2021, with α = 2 · rank).

    A is drawn by `seed` and B is 0, so at first the model computes what it did, bit for bit. They are float32, or
    float64 if W is. Only they get gradients, and optimizers leave alone what gets none. InputError if a layer is
    narrower than the rank, or the model has none that peft can adapt.
    """
    import peft

    layers = linear_layers(model)
    if not layers:
        raise InputError("--lora: this model has no linear layers to adapt; leave it out")
    narrowest = min(layers, key=lambda name: min(layers[name].weight.shape))
    width = min(layers[narrowest].weight.shape)
    if rank > width:
        raise InputError(f"--lora {rank}: {narrowest} is {width} wide, and a rank is at most that; lower it")

    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about GPT-2's layers, which hold W transposed: it sees to that itself
            peft.LoraModel(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*layers]), "default")
    except ValueError as error:
        reason = textwrap.shorten(str(error), 160)
        raise InputError(f"--lora: peft cannot adapt this model ({reason}); leave it out") from None
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def merge(model, base):
    """Add what a model's adapters learnt, 2 B A, to the weights of `base`, which is that model without them."""
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            base.get_submodule(name).weight += layer.get_delta_weight("default").to(base.device)


# ------------------------------------------------------------------ a small model from scratch


def new_model(texts, seed, vocab, width, layers, heads):
    """(model, tokenizer): a small Llama with random weights and a byte-level BPE made for `texts`.

    vocab is the most tokens that the BPE may have; width a multiple of heads. Float32, on the CPU.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<eos>"],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            from_scratch=True,  # so that later runs on it take the recipes of small models
        )
    )
    return model, tokenizer
