"""Loading a model that the user names, and making the small one; weights from safetensors only, no remote code."""

import textwrap
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers

from machinery.inputs import InputError, ask_the_hub, check_size

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load_model(name, device, dtype, tokenizer=None):
    """(model, tokenizer) from a Hub id or a folder; weights from safetensors only, no remote code.

    tokenizer: where from, if the model has none of its own. Weights are float32, or float64 if dtype is.
    Raises InputError if they cannot be loaded, are not what config.json says, or the tokenizer has more tokens
    than the model, or so few that it must be another model's.
    """
    mend = "it needs config.json, a tokenizer and weights in safetensors (pickle files are not loaded)"
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise InputError(f"model folder '{name}' has no *.safetensors; {mend}")
    for path in Path(name).glob("*.json"):
        check_size(path)  # the libraries read it whole
    ask_the_hub(name)
    try:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception:
            if not tokenizer:
                raise
            ask_the_hub(tokenizer)
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        )
    except Exception as error:  # missing files, bad JSON, unknown architecture, no network: many kinds
        where = "" if Path(name).exists() else "it is no local folder, and the Hub did not give it: "
        reason = textwrap.shorten(str(error), 160)
        raise InputError(f"cannot load model '{name}' ({where}{reason}); {mend}") from None
    check_weights(name, model, report)
    rows = model.get_input_embeddings().weight.shape[0]
    # Models pad their embedding to a round number; Phi-1.5, by 1.8%, is the widest known to us.
    if not 0 <= rows - len(tokenizer) <= 0.02 * rows:
        raise InputError(
            f"model '{name}' embeds {rows} tokens but its tokenizer has {len(tokenizer)}; "
            "give it the tokenizer it was trained with"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no EOS token, which ends every response; set one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return model.to(device).eval(), tokenizer


def check_weights(name, model, report):
    """InputError unless all of a model's weights are in its files, as numbers to train, and nothing else is."""
    mend = "give a config.json and weights that belong together"
    # masked_bias: a constant in files of old GPT models; other such transformers itself passes over.
    unused = {key for key in report["unexpected_keys"] if not key.endswith(".masked_bias")}
    for what, keys in (("lacks", report["missing_keys"]), ("has no use for", unused)):
        if keys:
            raise InputError(f"model '{name}' {what} {len(keys)} weights, such as {min(keys)}; {mend}")
    made_for, weights = model.config.architectures, dict(model.named_parameters())
    if made_for is not None and type(model).__name__.lower() not in str(made_for).lower():
        raise InputError(f"model '{name}' is a {type(model).__name__}, but its architectures are {made_for}; {mend}")
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
