"""What an example is: a prompt, a response, and the tokens that carry loss.

An example for a language model is a prompt x and a response y. Both are token ids; the loss covers
the response and the one EOS that ends it, nothing else, and |y| counts exactly those tokens. Of running
text the prompt is the one token that begins it, the response all others.

`response_logp` is the bridge from examples and a model to the [B] tensors that losses.py speaks of;
below it stands what else a model is asked about examples, and the refusals that IDK and DPO teach.
"""

import contextlib
import functools
import textwrap
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.utils.checkpoint
import transformers
from tqdm import tqdm

import losses


class InputError(ValueError):
    """The user gave something unusable; the message is one line that names it and the mend."""


class Example(NamedTuple):
    """Token ids of a prompt and of its response, which carries the loss; an answer ends with EOS."""

    prompt: list
    response: list


# ------------------------------------------------------------------ text becomes tokens


def encode(question, answer, tokenizer, template="auto", max_length=500):
    """An Example. Raises InputError when prompt and response exceed max_length tokens.

    Prompt and response are tokenized as one text and cut where the response begins, because a
    tokenizer may encode a word differently at the start of a text.
    """
    template = resolve_template(template, tokenizer)
    prompt, space = prompt_text(question, tokenizer, template)
    # A chat template already spells out BOS.
    encoded = tokenizer(
        prompt + (space + answer if answer else ""), return_offsets_mapping=True, add_special_tokens=template != "chat"
    )
    ids = encoded["input_ids"]
    cut = next((i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)), len(ids))
    if not cut:
        raise InputError("the tokenizer's chat template gives an empty prompt; mend it, or use --template plain")
    response = ids[cut:]
    while response and response[-1] == tokenizer.eos_token_id:  # some tokenizers add their own
        response.pop()
    example = Example(ids[:cut], response + [tokenizer.eos_token_id])
    if cut + len(example.response) > max_length:
        raise InputError(
            f"'{question[:40]}…' and its response take {cut + len(example.response)} tokens, "
            f"more than the limit of {max_length}; raise --max-length, within the model's own"
        )
    return example


def pieces(text, tokenizer, length, cut=None):
    """Examples of `length` tokens from running text: BOS (or EOS, without one), then its tokens in order.

    cut: None keeps a shorter last piece, "first" the first piece alone, "fill" fills the last one up from the
    text's first tokens, as MUSE does. Raises InputError if "fill" finds less text than one piece.
    """
    ids, size = tokenizer(text, add_special_tokens=False)["input_ids"], length - 1
    if cut == "fill":
        if len(ids) < size:
            raise InputError(
                f"the text '{text[:40]}…' has {len(ids)} tokens, less than one chunk of {size}; lower --max-length"
            )
        ids = ids + ids[: -len(ids) % size]
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    found = [Example([begin], ids[i : i + size]) for i in range(0, len(ids), size)]
    return found[:1] if cut == "first" else found


def examples_of(rows, tokenizer, template, max_length, answer_of=lambda row: row["answer"]):
    """Examples of rows: of `question` and `answer`; of `text`, and how it is `cut`, as in `pieces`; or of an
    `answer` and the whole `prompt` before it."""
    found = []
    for row in rows:
        if "text" in row:
            found += pieces(row["text"], tokenizer, max_length, row.get("cut"))
        elif "prompt" in row:
            answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            found.append(Example(tokenizer(row["prompt"])["input_ids"], answer + [tokenizer.eos_token_id]))
        else:
            found.append(encode(row["question"], answer_of(row), tokenizer, template, max_length))
    return found


def text_of(row):
    """All of a row as one text."""
    asked = row.get("prompt", f"Question: {row.get('question')}\nAnswer: ")
    return row["text"] if "text" in row else asked + row["answer"]


TEMPLATES = "auto", "chat", "llama2", "plain"
SYSTEM_PROMPT, DATE = "You are a helpful assistant.", "10 Apr 2025"  # of the published TOFU recipes


def resolve_template(template, tokenizer):
    """`auto` is chat if the tokenizer has a chat template, else plain. InputError for chat without one."""
    if template == "auto":
        return "chat" if tokenizer.chat_template else "plain"
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template; use --template plain or llama2")
    return template


def prompt_text(question, tokenizer, template):
    """(prompt, space between prompt and response) as text; template: chat, llama2 or plain.

    `llama2` and `plain` have the text of TOFU's LLaMA-2 and Phi prompts, `chat` is the tokenizer's own.
    Only the text: others' code for Phi lets "Answer:" carry loss too (|y| + 2) or leaves out the first
    answer token (|y| - 1); here the loss covers exactly the response and its EOS, whatever the template.
    The space belongs to the response because most tokenizers glue it to the word that follows.
    """
    if template == "llama2":
        return f"[INST] {question} [/INST]", ""
    if template == "plain":
        return f"Question: {question}\nAnswer:", " "
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
    options = dict(tokenize=False, add_generation_prompt=True, date_string=DATE)
    try:
        return tokenizer.apply_chat_template(messages, **options), ""
    except Exception:  # Gemma's and others' templates refuse a system message
        try:
            return tokenizer.apply_chat_template(messages[1:], **options), ""
        except Exception as error:  # the template is a program, which may fail in any way
            raise InputError(
                f"the tokenizer's chat template fails ({textwrap.shorten(str(error), 160)}); mend "
                "it, or use --template plain"
            ) from None


# ------------------------------------------------------------------ tokens become log-probabilities


def collate(examples, pad_id):
    """(input_ids, labels), both [B, T], T the longest of these examples, padded on the right.

    labels are -100 outside the responses. On the right a causal model needs no attention mask: what
    comes after a token cannot reach it. (Padding on the left leaves attention rows in which all is
    masked; with it, on CUDA in bfloat16, the gradient of one TOFU batch came out as NaN.)
    """
    width = max(len(prompt) + len(response) for prompt, response in examples)
    input_ids, labels = [], []
    for prompt, response in examples:
        pad = width - len(prompt) - len(response)
        input_ids.append(prompt + response + [pad_id] * pad)
        labels.append([-100] * len(prompt) + response + [-100] * pad)
    return torch.tensor(input_ids), torch.tensor(labels)


def by_length(examples, size):
    """Lists of at most `size` indices, examples of like length together: the least padding."""
    return shares(examples, size, 1)[0]


def shares(examples, size, ranks):
    """`by_length` for each of several processes: to each about as many tokens, and exactly as many lists, of which
    the last may be empty, because processes take their steps together."""
    tokens = [len(prompt) + len(response) for prompt, response in examples]
    parts, load = [[] for _ in range(ranks)], [0] * ranks
    for i in sorted(range(len(examples)), key=tokens.__getitem__, reverse=True):
        least = load.index(min(load))
        parts[least].append(i)
        load[least] += tokens[i]
    starts = range(0, max(map(len, parts)), size)
    return [[sorted(part, key=tokens.__getitem__)[start : start + size] for start in starts] for part in parts]


CHUNK = 2**27 if torch.cuda.is_available() else 2**25  # logits at a time: in float32 512 or 128 MB


def over_responses(models, examples, of):
    """of(logits [n, V] of each model, targets [n]) -> [n] at the response positions: a tensor [|y|] per example.

    The output layer is the largest product in a small model and makes the largest tensor in any, so it sees no
    prompt and no padding, and no more than CHUNK logits at once: when there are more, each chunk's are forgotten
    and computed again on the way back. Differentiable.
    """
    input_ids, labels = collate(examples, pad_id=0)
    targets = labels.roll(-1, 1).flatten()  # the position before a token predicts it
    chosen = (targets != -100).nonzero()[:, 0]

    def there(tensor):
        return tensor.to(models[0].device, non_blocking=True)

    input_ids, chosen, targets = there(input_ids), there(chosen), there(targets[chosen])
    size = max(1, CHUNK // models[0].config.get_text_config().vocab_size)

    def decoded(model):
        return decoder_of(model)(input_ids, use_cache=False)

    beside = [forward(model, functools.partial(decoded, model)) for model in models[1:]]

    def compute():
        outputs = [decoded(models[0]), *beside]
        hidden = [output.last_hidden_state.flatten(0, 1).index_select(0, chosen) for output in outputs]

        def chunk(targets, *hidden):
            return of(*map(output_layer, models, outputs, hidden), targets)

        if len(targets) > size:
            chunk = functools.partial(torch.utils.checkpoint.checkpoint, chunk, use_reentrant=False)
        return torch.cat([chunk(*part) for part in zip(targets.split(size), *(each.split(size) for each in hidden))])

    return forward(models[0], compute).split([len(example.response) for example in examples])


def decoder_of(model):
    """The part of a model that ends where its output layer begins."""
    found = model.get_decoder()  # of some models the model itself, or its output layer
    return found if isinstance(found, transformers.PreTrainedModel) and found is not model else model.model


def output_layer(model, outputs, hidden):
    """Logits [n, V] of hidden states [n, d], with whatever scale or cap the model puts on them.

    By its own forward, in which the decoder gives back `outputs`, what it gave before, with these hidden states.
    """
    decoder, outputs.last_hidden_state = decoder_of(model), hidden[None]
    decoder.forward = lambda *_, **__: outputs
    try:
        return model.forward(torch.zeros(1, 1, dtype=torch.int64, device=hidden.device), use_cache=False).logits[0]
    finally:
        del decoder.forward


def response_logp(model, examples):
    """(log πθ(y|x), |y|) of examples under a causal language model, both [B]. Differentiable."""
    logp = [tokens.sum() for tokens in over_responses([model], examples, losses.token_logp)]
    length = torch.tensor([len(example.response) for example in examples])
    return torch.stack(logp), length.to(model.device, non_blocking=True)


# ------------------------------------------------------------------ several processes


def ranks():
    """(number of this process, number of processes) of the job that torchrun started; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def wait():
    """Until all processes are here."""
    if ranks()[1] > 1:
        dist.barrier()


def forward(model, compute):
    """compute(), as part of the model's forward pass: in there a sharded model has its weights."""
    return getattr(model, "as_forward", lambda compute: compute())(compute)


def in_batches(of, examples, size, desc):
    """What of(some examples) gives for each, in the order given. Several processes share the work, and all get all."""
    rank, count = ranks()
    found = {}
    for batch in tqdm(by_length(examples, size)[rank::count], desc=desc, leave=False, disable=rank > 0 or None):
        found |= zip(batch, of([examples[i] for i in batch]))
    if count > 1:
        parts = [None] * count
        dist.all_gather_object(parts, found)
        found = {i: value for part in parts for i, value in part.items()}
    return [found[i] for i in range(len(examples))]


# ------------------------------------------------------------------ what else a model is asked


def autocast(device, dtype):
    """Compute in bfloat16 over float32 weights; a no-op for the other dtypes."""
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()


@torch.no_grad()
def token_logps(model, examples, batch_size, dtype):
    """Log-probabilities of the tokens of each response, in nats: a list of arrays, in the order given."""

    def score(batch):
        with autocast(model.device, dtype):
            return [tokens.cpu().numpy() for tokens in over_responses([model], batch, losses.token_logp)]

    return in_batches(score, examples, batch_size, "scoring")


def check_fits(model, examples):
    """Raise InputError if an example is longer than the model has positions, as `encode` does of its own."""
    longest = max(len(prompt) + len(response) for prompt, response in examples)
    if longest > getattr(model.config, "max_position_embeddings", longest):
        raise InputError(
            f"a prompt takes {longest} tokens, more than this model's max_position_embeddings, "
            f"{model.config.max_position_embeddings}; take a model that reads more"
        )


def mean_losses(model, examples, batch_size, dtype):
    """Mean token NLL of each example's response, in nats: a list of floats, in the order given."""
    return [-float(logp.mean()) for logp in token_logps(model, examples, batch_size, dtype)]


def hidden_states(model, examples, layer):
    """(activations after decoder layer `layer`, counted from 0, [B, T, d]; which are of tokens [B, T]).

    Differentiable. Of models whose layers are `model.layers`, as Llama's; see `steered`.
    """
    input_ids, _ = collate(examples, pad_id=0)
    length = torch.tensor([len(prompt) + len(response) for prompt, response in examples])
    kept = []
    hook = model.get_submodule(f"model.layers.{layer}").register_forward_hook(
        lambda module, inputs, output: kept.append(output if torch.is_tensor(output) else output[0])
    )
    try:
        forward(model, lambda: model.base_model(input_ids.to(model.device), use_cache=False).last_hidden_state)
    finally:
        hook.remove()
    return kept[0], (torch.arange(input_ids.shape[1]) < length[:, None]).to(model.device)


def steered(model, layer):
    """Names of the parameters that RMU trains: `down_proj` of the layers up to `layer`, at most three.

    InputError for a layer that the model lacks, or a model that calls them otherwise.
    """
    names = {name for name, _ in model.named_parameters()}

    def down(each):
        return f"model.layers.{each}.mlp.down_proj.weight"

    if down(0) not in names:
        blocks = sorted({name for name in names if ".0." in name})
        raise InputError(
            f"--method rmu trains {down('N')}, which this model lacks; in its first layer it "
            f"has {', '.join(blocks) or 'nothing'}; use another method"
        )
    if down(layer) not in names:
        last = max(each for each in range(len(names)) if down(each) in names)
        raise InputError(f"--layer {layer}: this model has layers 0 to {last}")
    return [down(each) for each in range(max(0, layer - 2), layer + 1)]


@torch.no_grad()
def generate(model, tokenizer, examples, batch_size, dtype, max_new_tokens):
    """Greedy continuation of each example's prompt, as text, in the order given."""
    greedy = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )

    def answer(batch):
        # Padded on the left here, so that every prompt ends where its continuation begins.
        inputs = tokenizer.pad(
            {"input_ids": [example.prompt for example in batch]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with autocast(model.device, dtype):
            output = model.generate(**inputs, generation_config=greedy)
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return in_batches(answer, [Example(example.prompt, []) for example in examples], batch_size, "generating")


# ------------------------------------------------------------------ refusals, for IDK and DPO

REFUSALS = [
    text.strip()
    for text in """I don't know. | I do not know the answer to that. | I'm not sure. |
I have no information about that. | That is not something I know. | I can't say. |
I have never heard of it. | I'm unable to answer this question. | My knowledge does not reach that far. |
Sorry, I can't help with that one. | I don't have an answer to this. | No idea, I'm afraid. |
That is beyond what I know. | I couldn't tell you. | I have nothing on this topic. |
This is outside my knowledge. | I'd rather not guess. | I lack the facts to answer. |
Sorry, this is unknown to me. | I was never told about this. | I can't recall anything of the kind. |
There is nothing I can tell you about it. | I don't hold any record of that. |
You would have to ask someone else. | I have not come across this before. | I wish I knew, but I don't. |
Unfortunately, I can't answer that. | I must admit that I don't know. |
That question is one I can't answer. | I know nothing about this subject. | It isn't known to me. |
I haven't learned about that.""".split("|")
]
