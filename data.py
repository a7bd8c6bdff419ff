"""What an example is: a prompt, a response, and the tokens that carry loss.

An example for a language model is a prompt x and a response y. Both are token ids; the loss covers
the response and the one EOS that ends it, nothing else, and |y| counts exactly those tokens. Of running
text the prompt is the one token that begins it, the response all others.

`respond` is the bridge from examples and a model to the [B] tensors that losses.py speaks of. Below it stand the
batches of a run, and the refusals that IDK and DPO teach.
"""

import contextlib
import textwrap
from typing import NamedTuple

import torch

import losses
from machinery import processes
from machinery.inputs import InputError


class Example(NamedTuple):
    """Token ids of a prompt and of its response, which carries the loss; an answer ends with EOS."""

    prompt: list
    response: list


class Response(NamedTuple):
    """What a loss may read of B responses. log-probabilities are in nats and at most 0."""

    logp: torch.Tensor  # [B], of the whole response
    length: torch.Tensor  # [B], int64: |y|, EOS included
    token_logp: tuple  # B tensors [|y|], whose sums are logp
    ref_logp: torch.Tensor | None = None  # [B], logp under the reference model


# ------------------------------------------------------------------ text becomes tokens


def encode(question, answer, tokenizer, template="auto", max_length=500):
    """An Example. Raises InputError when prompt and response exceed max_length tokens.

    Prompt and response are tokenized as one text and cut where the response begins, because a
    tokenizer may encode a word differently at the start of a text.
    """
    template = resolve_template(template, tokenizer)
    prompt, space = prompt_text(question, tokenizer, template)
    text = prompt + (space + answer if answer else "")

    # a chat template already spells out BOS
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=template != "chat")
    ids = encoded["input_ids"]
    ends = [end for _, end in encoded["offset_mapping"]]
    cut = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
    if not cut:
        raise InputError("the tokenizer's chat template gives an empty prompt; mend it, or use --template plain")

    response = without_eos(ids[cut:], tokenizer) + [tokenizer.eos_token_id]
    if cut + len(response) > max_length:
        raise InputError(
            f"'{question[:40]}…' and its response take {cut + len(response)} tokens, "
            f"more than the limit of {max_length}; raise --max-length, within the model's own"
        )
    return Example(ids[:cut], response)


def without_eos(ids, tokenizer):
    """Token ids without the EOS that some tokenizers add by themselves."""
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def pieces(text, tokenizer, length, cut=None):
    """Examples of `length` tokens from running text: BOS (or EOS, without one), then its tokens in order.

    cut: None keeps a shorter last piece, "first" the first piece alone, "fill" fills the last one up from the
    text's first tokens, as MUSE does. Raises InputError if "fill" finds less text than one piece.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    size = length - 1
    if cut == "fill":
        if len(ids) < size:
            raise InputError(
                f"the text '{text[:40]}…' has {len(ids)} tokens, less than one chunk of {size}; lower --max-length"
            )
        ids = ids + ids[: -len(ids) % size]

    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    examples = [Example([begin], ids[i : i + size]) for i in range(0, len(ids), size)]
    return examples[:1] if cut == "first" else examples


def examples_of(rows, tokenizer, template, max_length, answer_of=lambda row: row["answer"]):
    """Examples of rows: of `question` and `answer`; of `text`, and how it is `cut`, as in `pieces`; or of an
    `answer` and the whole `prompt` before it."""
    examples = []
    for row in rows:
        if "text" in row:
            examples += pieces(row["text"], tokenizer, max_length, row.get("cut"))
        elif "prompt" in row:
            prompt = without_eos(tokenizer(row["prompt"])["input_ids"], tokenizer)
            answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            examples.append(Example(prompt, answer + [tokenizer.eos_token_id]))
        else:
            examples.append(encode(row["question"], answer_of(row), tokenizer, template, max_length))
    return examples


def text_of(row):
    """All of a row as one text."""
    if "text" in row:
        return row["text"]
    prompt = row["prompt"] if "prompt" in row else f"Question: {row['question']}\nAnswer: "
    return prompt + row["answer"]


TEMPLATES = "auto", "chat", "llama2", "plain"
SYSTEM_PROMPT = "You are a helpful assistant."  # this and the date are those of the published TOFU recipes
DATE = "10 Apr 2025"


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


def response_logits(model, examples):
    """(logits [n, V], targets [n], length [B]) at the n positions that predict a response token, in order.

    The output layer makes the largest tensor in a model, so it is asked for no prompt and no padding. Differentiable.
    """
    input_ids, labels = collate(examples, pad_id=0)
    targets = labels.roll(-1, 1)  # the position before a token predicts it
    predicts = targets != -100

    def on_device(tensor):
        return tensor.to(model.device, non_blocking=True)  # does not wait for what a GPU is at

    logits = model(on_device(input_ids), use_cache=False, logits_to_keep=on_device(predicts)).logits
    return logits, on_device(targets[predicts]), predicts.sum(1)


def respond(model, examples, ref_logp=None):
    """The Response of examples under a causal language model: log πθ(y|x), |y|, log π of each token. Differentiable."""
    logits, targets, length = response_logits(model, examples)
    token_logp = losses.token_logp(logits, targets).split(length.tolist())
    logp = torch.stack([tokens.sum() for tokens in token_logp])
    return Response(logp, length.to(logp.device, non_blocking=True), token_logp, ref_logp)


def disable_dropout(model):
    """With dropout log πθ would be random, and NPO's weight not 1 at θ = ref."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def autocast(device, dtype):
    """Compute in bfloat16 over float32 weights; a no-op for the other dtypes."""
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()


# ------------------------------------------------------------------ the batches of a run


def batches(forget_size, retain_size, batch_size, seed):
    """Yield (forget rows, retain rows) of each step, without end; a pure function of its arguments.

    An epoch is one permutation of the forget set. With every batch of it go as many retain examples, drawn
    with replacement. To resume after step n, skip n: there is no state to save.
    """
    draw = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(forget_size, generator=draw).split(batch_size):
            drawn = torch.randint(retain_size, (len(rows),), generator=draw) if retain_size else rows[:0]
            yield rows.tolist(), drawn.tolist()


def microbatches(examples, size):
    """Yield (places, divisor) of a batch: at most `size` of its examples at a time, those of like length together.

    Exact: each micro-batch's *sum* of losses over the divisor adds up to the batch's mean, so neither the order nor the
    cut changes the gradient. Several processes take a share each, by tokens. Their gradients are averaged, so they
    divide by less; and they take their steps together, so one with nothing left gets a place, divided by infinity.
    """
    rank, ranks = processes.ranks()
    for places in by_length(examples, size, ranks)[rank] if examples else []:
        if places:
            yield places, len(examples) / ranks
        else:
            yield [0], float("inf")


def learning_rate(step, steps, warmup, highest):
    """Of a step, counted from 1: linear to `highest` over `warmup` steps, then linear towards 0."""
    rising = step / (warmup + 1)
    falling = (steps - step + 1) / max(1.0, steps - warmup)
    return highest * min(rising, falling)


def by_length(examples, size, ranks=1):
    """For each process, lists of at most `size` indices, examples of like length together: the least padding.

    To each process about as many tokens, and exactly as many lists, of which the last may be empty.
    """
    tokens = [len(prompt) + len(response) for prompt, response in examples]
    shares = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in sorted(range(len(examples)), key=tokens.__getitem__, reverse=True):
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += tokens[i]

    starts = range(0, max(map(len, shares)), size)
    ordered = [sorted(share, key=tokens.__getitem__) for share in shares]
    return [[share[start : start + size] for start in starts] for share in ordered]


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
