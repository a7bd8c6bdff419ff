"""What an example is: a prompt, a response, and the tokens that carry loss.

An example for a language model is a prompt x and a response y. Both are token ids; the loss covers
the response, whose last token ends the turn (EOS, or what a chat template writes), nothing else, and
|y| counts exactly those tokens. Of running text the prompt is the one token that begins it, the
response all others.

`respond` is the bridge from examples and a model to the [B] tensors that losses.py speaks of. Below it stand the
batches of a run, and the refusals that IDK and DPO teach.
"""

import contextlib
import textwrap
from typing import NamedTuple

import torch

import losses
from machinery import processes
from machinery.inputs import InputError, note


class Example(NamedTuple):
    """Token ids of a prompt, one at least, and of its response, which carries the loss and ends the turn."""

    prompt: list
    response: list


class Response(NamedTuple):
    """What a loss may read of B responses. log-probabilities are in nats and at most 0."""

    logp: torch.Tensor  # [B], of the whole response
    length: torch.Tensor  # [B], int64: |y|, the token that ends the turn included
    token_logp: tuple  # B tensors [|y|], whose sums are logp
    targets: tuple = ()  # B tensors [|y|]: the tokens themselves
    logits: tuple | None = None  # B tensors [|y|, V], if asked for: the largest of a step
    ref: "Response | None" = None  # the same under the reference model


# ------------------------------------------------------------------ text becomes tokens


def encode(question, answer, tokenizer, template="auto", before=()):
    """An Example, of any length. before: what was said before the question, as messages of a chat.

    The response ends with the one token that ends a turn: under a chat template what the template itself writes after
    an answer (Gemma's <end_of_turn>, Phi-3's <|end|>), else EOS. White space that a template writes after it carries no
    loss. Prompt and response are tokenized as one text and cut where the response begins, because a tokenizer may
    encode a word differently at the start of a text.
    """
    template = resolve_template(template, tokenizer)
    prompt, response, ending = turn_text(question, answer, tokenizer, template, before)

    # a chat template already spells out BOS
    ids, cut = tokens_and_cut(prompt, response + ending, tokenizer, add_special_tokens=template != "chat")
    if not cut:
        raise InputError("the tokenizer's chat template gives an empty prompt; mend it, or use --template plain")
    response = ids[cut:]
    if not ending:
        response = without_eos(response, tokenizer) + [tokenizer.eos_token_id]
    return Example(ids[:cut], response)


def tokens_and_cut(prompt, response, tokenizer, **options):
    """(token ids of prompt + response as one text, how many of them are the prompt's alone)."""
    if tokenizer.is_fast:
        encoded = tokenizer(prompt + response, return_offsets_mapping=True, **options)
        ends = [end for _, end in encoded["offset_mapping"]]
        ids = encoded["input_ids"]
        return ids, next((i for i, end in enumerate(ends) if end > len(prompt)), len(without_eos(ids, tokenizer)))

    # a slow tokenizer tells no places: the prompt's are the tokens that it has when it stands alone, too
    ids = tokenizer(prompt + response, **options)["input_ids"]
    alone = without_eos(tokenizer(prompt, **options)["input_ids"], tokenizer)
    differ = (i for i, (token, other) in enumerate(zip(ids, alone, strict=False)) if token != other)
    return ids, next(differ, min(len(ids), len(alone)))


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
    """Examples of rows: of `text`, and how it is `cut`, as in `pieces` of max_length; or, of any length, of `question`
    and `answer`, with the `turns` before, if any, or of an `answer` and the whole `prompt` before it.

    answer_of(row): what is answered to a question, if it is not the `answer`.
    """
    examples = []
    for row in rows:
        if "text" in row:
            examples += pieces(row["text"], tokenizer, max_length, row.get("cut"))
        elif "prompt" in row:
            prompt = without_eos(tokenizer(row["prompt"])["input_ids"], tokenizer)
            answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            examples.append(Example(prompt, answer + [tokenizer.eos_token_id]))
        else:
            examples.append(encode(row["question"], answer_of(row), tokenizer, template, row.get("turns", ())))
    return examples


def text_of(row):
    """All of a row as one text, but for the turns before."""
    if "text" in row:
        return row["text"]
    prompt = row["prompt"] if "prompt" in row else f"Question: {row['question']}\nAnswer: "
    return prompt + row["answer"]


SYSTEM_PROMPT = "You are a helpful assistant."  # this and the date are those of the published TOFU recipes
DATE = "10 Apr 2025"


def resolve_template(template, tokenizer):
    """`auto` is chat if the tokenizer has a chat template, else plain. InputError for chat without one."""
    if template == "auto":
        return "chat" if tokenizer.chat_template else "plain"
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template; use --template plain or llama2")
    return template


def turn_text(question, answer, tokenizer, template, before=()):
    """(prompt, response, ending) as text; template: chat, llama2 or plain. Only `chat` has an ending, of an answer.

    Under `chat` the messages `before` the question are turns; the others, which have one, get them as lines of it.

    `llama2` and `plain` have the text of TOFU's LLaMA-2 and Phi prompts, `chat` is the tokenizer's own.
    Only the text: others' code for Phi lets "Answer:" carry loss too (|y| + 2) or leaves out the first
    answer token (|y| - 1); here the loss covers exactly the response and what ends it, whatever the
    template. The space after plain's "Answer:" belongs to the response because most tokenizers glue it
    to the word that follows.
    """
    turns = [*before, {"role": "user", "content": question}]
    if before:
        question = "\n".join(f"{turn['role'].title()}: {turn['content']}" for turn in turns)
    if template == "llama2":
        return f"[INST] {question} [/INST]", answer, ""
    if template == "plain":
        return f"Question: {question}\nAnswer:", f" {answer}" if answer else "", ""

    system = [] if turns[0]["role"] == "system" else [{"role": "system", "content": SYSTEM_PROMPT}]
    try:
        prompt = render([*system, *turns], tokenizer, add_generation_prompt=True)
        turns = system + turns
    except Exception:  # Gemma's and others' templates refuse a system message
        try:
            prompt = render(turns, tokenizer, add_generation_prompt=True)
        except Exception as error:  # the template is a program, which may fail in any way
            raise InputError(
                f"the tokenizer's chat template fails ({textwrap.shorten(str(error), 160)}); mend "
                "it, or use --template plain"
            ) from None
    if prompt.rstrip().endswith("<think>"):
        note("the chat template opens a thought: answers are taught and measured right after it")
    response, ending = rendered_answer(prompt, turns, answer, tokenizer) if answer else ("", "")
    return prompt, response, ending


def render(messages, tokenizer, **options):
    """A conversation as the tokenizer's chat template writes it, without thinking where the template knows how."""
    return tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE, enable_thinking=False, **options)


def rendered_answer(prompt, turns, answer, tokenizer):
    """(response, ending): how the chat template writes an answer after the generation prompt, and what ends the turn.

    The ending is empty where the template has none. A template that writes an answer otherwise than its generation
    prompt begins it (R1's open a thought there) still tells how a turn ends.
    """

    def conversation(text):
        return render([*turns, {"role": "assistant", "content": text}], tokenizer)

    # where an answer stands: a short one may occur in what the template writes around it, this one does not
    before, _, after = conversation("An answer.").rpartition("An answer.")
    whole, text = conversation(answer), answer.strip()
    written = whole.removeprefix(before).removesuffix(after)
    if before + written + after != whole or written.strip() != text:
        if prompt:  # else it is refused
            note("the chat template changes the text of an answer: answers are taught as given, and EOS ends them")
        return answer, ""

    written = written.rstrip()
    ending = end_of_turn(whole[len(before + written) :], tokenizer)
    if not ending:
        note("the chat template writes nothing that ends a turn: EOS ends an answer")
    if before.startswith(prompt):
        return before[len(prompt) :] + written, ending
    return text, ending


def end_of_turn(text, tokenizer):
    """What follows an answer, through the first special token; empty without one."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [text.find(special) + len(special) for special in specials if special in text]
    return text[: min(ends)] if ends else ""


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


def respond(model, examples, needs_logits=False, ref=None):
    """The Response of examples under a causal language model: log πθ(y|x), |y|, log π of each token. Differentiable."""
    logits, targets, length = response_logits(model, examples)
    lengths = length.tolist()
    token_logp = losses.token_logp(logits, targets).split(lengths)
    return response(token_logp, model.device)._replace(
        targets=targets.split(lengths), logits=logits.split(lengths) if needs_logits else None, ref=ref
    )


def response(token_logp, device):
    """The Response whose tokens have these log-probabilities, B tensors [|y|]."""
    token_logp = tuple(tokens.to(device, non_blocking=True) for tokens in token_logp)
    logp = torch.stack([tokens.sum() for tokens in token_logp])
    length = torch.tensor([len(tokens) for tokens in token_logp])
    return Response(logp, length.to(device, non_blocking=True), token_logp)


def make_deterministic(model):
    """Switch off what makes log πθ random: with dropout NPO's weight would not be 1 at θ = ref.

    That is all that evaluation mode does, by whatever means a model drops (`nn.Dropout`, or F.dropout with a
    probability from its config). Gradient checkpointing wants training mode, of the modules that do it.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


@torch.no_grad()
def check_deterministic(model, example, dtype=torch.float32):
    """InputError unless the model, computing in `dtype`, says the same twice of an Example."""
    with autocast(model.device, dtype):
        first, second = (respond(model, [example]).logp for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-4):
        raise InputError(
            f"this model says log π = {first.item():.4f} and then {second.item():.4f} of the same text; "
            "set what makes it random to 0 in its config.json"
        )


def autocast(device, dtype):
    """Compute in bfloat16 over float32 weights; a no-op for the other dtypes."""
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()


# ------------------------------------------------------------------ the batches of a run


def batches(forget_size, retain_size, batch_size, seed, retain_batch_size=None):
    """Yield (forget, retain) of each step, numbers of examples, without end; a pure function of its arguments.

    An epoch is one permutation of the forget set. With every batch of it go as many retain examples, or
    `retain_batch_size`, drawn with replacement. To resume after step n, skip n: there is no state to save.
    """
    draw = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(forget_size, generator=draw).split(batch_size):
            count = retain_batch_size or len(rows)
            drawn = torch.randint(retain_size, (count,), generator=draw) if retain_size else rows[:0]
            yield rows.tolist(), drawn.tolist()


def microbatches(examples, size):
    """Yield (places, divisor) of a batch: at most `size` of its examples at a time, those of like length together.

    Exact: each micro-batch's *sum* of losses over the divisor adds up to the batch's mean, so neither the order nor the
    cut changes the gradient. Several processes take a share each, by tokens. Their gradients are averaged, so they
    divide by less; and they take their steps together, so one with nothing left gets a place, divided by infinity.
    """
    rank, ranks = processes.ranks()
    for places in by_length(examples, size, ranks)[rank]:
        if places:
            yield places, len(examples) / ranks
        else:
            yield [0], float("inf")


def warmup_steps(args, steps, epoch_steps):
    """Length of the warm-up of `steps` steps: `warmup_share` of them, or without it `warmup` epochs."""
    return args.warmup * epoch_steps if args.warmup_share is None else args.warmup_share * steps


def learning_rate(step, steps, warmup, highest):
    """Of a step, counted from 1: linear to `highest` at step `warmup` + 1, then linear towards 0.

    A warm-up of all steps (one epoch, the default, of a run of one) only rises, and ends below `highest`.
    """
    rising = step / (warmup + 1)
    falling = (steps - step + 1) / max(1.0, steps - warmup)
    return highest * min(rising, falling)


def by_length(examples, size, ranks=1):
    """For each process, lists of at most `size` indices, examples of like length together, for little padding.

    To each process about as many tokens, and exactly as many lists, of which the later ones may be empty.
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
