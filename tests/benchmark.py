"""What the loop's step costs, against the other ways to take it. Run by hand:

    python tests/benchmark.py                             a small Llama on the device at hand, in some minutes
    python tests/benchmark.py --size 1b --device cuda     of Llama-3.2-1B's shape; 7b: LLaMA-2 7B's; random weights

One effective batch, 32 forget and 32 retain examples, with AdamW's step. Same model, same examples, in turns; what is
printed are medians, and of ratios the median of each round's. Examples are TOFU's forget05 and retain95 from the folder
in TOFU_DIR, or else the toy's.
"""

import argparse
import copy
import functools
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tqdm import tqdm

import data
import evaluate
import losses
import train
from benchmarks import BENCHMARKS
from machinery import run as runs
from machinery.command import OneLineParser, number, run_command
from machinery.inputs import InputError
from methods import METHODS

SIZES = {  # as LlamaConfig has it: width, of the MLP, layers, heads, key-value heads, vocabulary
    "tiny": (256, 688, 4, 4, 4, 32000),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
BETA = {"simnpo": 2.5, "npo": 0.1, "graddiff": None, "wga": 1, "satimp": 5, "tnpo": 1, "ceu": None, "undial": 10}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # bfloat16, dense, as their maker states them


def new_model(size, vocab=None):
    width, mlp, layers, heads, kv_heads, full_vocab = SIZES[size]
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab or full_vocab,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=size == "1b",
        )
    )


def some_examples(count):
    """(forget, retain, tokenizer): `count` of each, evenly out of all."""
    folder = os.environ.get("TOFU_DIR") or None
    if folder and not os.path.isdir(folder):
        raise InputError(f"TOFU_DIR: '{folder}' is no folder; name the one that holds TOFU, or none for the toy")
    task, split = ("tofu", "forget05") if folder else ("toy", "forget10")
    benchmark, tokenizer = BENCHMARKS[task], evaluate.new_model(task, folder, 0)[1]
    samples = []
    for name in (split, benchmark.retain_split(split)):
        rows = benchmark.training_rows(folder, name)
        examples = data.examples_of(rows, tokenizer, "plain", 500)
        samples.append([examples[i * len(examples) // count] for i in range(count)])
    return *samples, tokenizer


# ------------------------------------------------------------------ ways to take a step


def padded_logp(model, examples, pad_to=None):
    """log π and |y| the plain way: padded to `pad_to` or the longest, with logits at every position."""
    input_ids, labels = data.collate(examples, 0)
    if pad_to:
        more = pad_to - input_ids.shape[1]
        input_ids = torch.nn.functional.pad(input_ids, (0, more))
        labels = torch.nn.functional.pad(labels, (0, more), value=-100)
    return losses.sequence_logp(model(input_ids.to(model.device), use_cache=False).logits, labels.to(model.device))


def plain(model, forget, retain, method, micro, logp_of, frozen, dtype):
    """Micro-batches in the order given; frozen: NPO's reference model, run every time."""
    for examples in (forget, retain):
        for start in range(0, len(examples), micro):
            some = examples[start : start + micro]
            with data.autocast(model.device, dtype):
                logp, length = logp_of(model, some)
                if examples is retain:
                    loss = losses.nll(logp, length)
                elif method == "simnpo":
                    loss = losses.simnpo(logp, length, BETA[method])
                else:
                    with torch.no_grad():
                        ref_logp, _ = logp_of(frozen, some)
                    loss = losses.npo(logp, ref_logp, BETA[method])
            (loss.sum() / len(examples)).backward()


def ours(model, forget, retain, method, micro, ref_logp, dtype, frozen=None):
    """The loop's own functions. frozen: the reference model, of a method that needs its logits."""
    args = argparse.Namespace(method=method, beta=BETA[method], beta2=1.0, gamma=0.0, retain="nll")
    method, notebook = METHODS[method], runs.Run()
    for places, divisor in data.microbatches(forget, micro):
        with data.autocast(model.device, dtype):
            (response,) = train.respond(model, frozen or {"answer": ref_logp}, {"answer": forget}, places, method)
            loss, weight = method.loss(args, response), method.weight(args, response)
        (loss.sum() / divisor).backward()
        notebook.add("forget", places, divisor, loss, weight, response.length, response.logp)
    notebook.check_finite(1, "forget", len(forget), model)
    for places, divisor in data.microbatches(retain, micro):
        with data.autocast(model.device, dtype):
            loss = train.retain_loss(model, None, [retain[i] for i in places], args)
        (loss.sum() / divisor).backward()
        notebook.add("retain", places, divisor, loss)
    notebook.check_finite(1, "retain", len(retain), model)


def floor(model, forget, retain, micro, dtype):
    """A bare forward and backward pass: no padding, a micro-batch's tokens in one row, token cross-entropy."""
    for examples in (forget, retain):
        for group in data.by_length(examples, micro)[0]:
            ids, labels, places = [], [], []
            for prompt, response in (examples[i] for i in group):
                ids, labels = ids + prompt + response, labels + [-100] * (len(prompt) - 1) + response + [-100]
                places += range(len(prompt) + len(response))
            ids, labels, places = (torch.tensor(values, device=model.device) for values in (ids, labels, places))
            chosen = (labels != -100).nonzero()[:, 0]
            with data.autocast(model.device, dtype):
                hidden = model.model(ids[None], position_ids=places[None], use_cache=False).last_hidden_state[0]
                loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]).float(), labels[chosen])
            loss.backward()


# ------------------------------------------------------------------ measuring


def peak(device, reset=False):
    """Most bytes taken since the last reset: of tensors on a GPU; of the process on a Linux CPU."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats() if reset else torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmHWM")


def resident(what):
    """Bytes of this process in memory: VmRSS now, VmHWM at most. Linux only."""
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(what))) * 1024


def in_turns(ways, rounds, device):
    """{name: ([seconds of each round], bytes above those before)} of {name: function}; the first round warms up."""
    seconds, memory = {name: [] for name in ways}, {}
    for turn in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, way in ways.items():
            peak(device, reset=True)
            before = torch.cuda.memory_allocated() if device.type == "cuda" else resident("VmRSS")
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
                memory[name] = max(memory.get(name, 0), peak(device) - before)
    return {name: (seconds[name], memory[name]) for name in ways}


def table(title, measured, base, tokens=None, flops=None):
    """ratio: to `base`, the median of each round's."""
    print(f"\n{title}\n{'ratio':>7s} {'seconds':>9s} {'+ MB':>8s}{'tokens/s':>10s}{'MFU':>6s}")
    for name, (seconds, memory) in measured.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, measured[base][0], strict=True))
        median = statistics.median(seconds)
        print(
            f"{ratio:7.3f} {median:9.3f} {memory / 1e6:8.0f}"
            + (f"{tokens / median:10.0f}" if tokens else f"{'':10s}")
            + (f"{flops / median:6.2f}" if flops else f"{'':6s}")
            + f"   {name}"
        )


def steps_of(args, model, forget, retain, dtype):
    """(ours of a method, size of micro-batches and examples; {name: a step}, ours first)"""
    frozen = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    ref_logp = [tokens.detach().cpu() for tokens in data.respond(frozen, forget).token_logp]  # where the loop keeps it
    to_500 = functools.partial(padded_logp, pad_to=500)

    def step(gradient, *given):
        def take():
            gradient(model, *given)
            optimizer.step()
            optimizer.zero_grad()

        return take

    def by_us(method, micro, forget=forget, retain=retain):
        return step(ours, forget, retain, method, micro, ref_logp, dtype, frozen if method == "undial" else None)

    def plainly(method, micro, logp_of, frozen=None):
        return step(plain, forget, retain, method, micro, logp_of, frozen, dtype)

    return by_us, {
        f"SimNPO, ours: micro-batch {args.micro}": by_us("simnpo", args.micro),
        "NPO, ours": by_us("npo", args.micro),
        "GradDiff, ours": by_us("graddiff", args.micro),
        **{
            f"{METHODS[name].name}, ours": by_us(name, args.micro)
            for name in ("wga", "satimp", "tnpo", "ceu", "undial")
        },
        "SimNPO, ours, micro-batch 4": by_us("simnpo", 4),
        "SimNPO, ours, micro-batch 32": by_us("simnpo", 32),
        "floor: tokens packed, bare cross-entropy": step(floor, forget, retain, args.micro, dtype),
        "SimNPO, padded to the longest of 8, all logits": plainly("simnpo", 8, padded_logp),
        "NPO, the same, with a reference model": plainly("npo", 8, padded_logp, frozen),
        "SimNPO, published: padded to 500, one at a time": plainly("simnpo", 1, to_500),
        "NPO, published: with a reference model": plainly("npo", 1, to_500, frozen),
    }


def flops_of(model, tokens, answers):
    """Of a step: 6 per weight and token that meets it; attention's products, below 2% at these lengths, left out."""
    layers = sum(parameter.numel() for name, parameter in model.named_parameters() if "layers" in name)
    return 6 * (layers * tokens + model.lm_head.weight.numel() * answers)


def run(args):
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    forget, retain, tokenizer = some_examples(32)
    tokens = sum(len(example.prompt) + len(example.response) for example in forget + retain)
    answers = sum(len(example.response) for example in forget + retain)
    print(
        f"{card}, {str(dtype).removeprefix('torch.')}, {args.size}, {args.rounds} rounds; "
        f"{len(forget)} + {len(retain)} examples, {tokens} tokens, {answers} of them in responses"
    )

    # a step
    model = new_model(args.size).to(device)
    by_us, ways = steps_of(args, model, forget, retain, dtype)
    roof = next((value for name, value in PEAK_FLOPS.items() if name in card), None)
    flops = roof and flops_of(model, tokens, answers) / roof
    table("a step", in_turns(ways, args.rounds, device), next(iter(ways)), tokens, flops)

    # measuring
    def scoring(size):
        lm = evaluate.LM(model, tokenizer, dtype, "plain", 500, 16, size)
        return lambda: lm.token_logps(forget + retain)

    def generating(size):
        lm = evaluate.LM(model, tokenizer, dtype, "plain", 500, 16, size)
        return lambda: lm.generate(forget)

    for title, way in (("scoring 64 responses", scoring), ("generating 32 × 16 tokens", generating)):
        ways = {"32 at a time": way(32), "one at a time": way(1)}
        table(title, in_turns(ways, args.rounds, device), "32 at a time")

    # more data, more tokens to choose from
    more_forget, more_retain, _ = some_examples(256)
    sizes = {f"{times}×": 32 * times for times in (1, 2, 4, 8)}
    growth = {name: by_us("simnpo", args.micro, more_forget[:n], more_retain[:n]) for name, n in sizes.items()}
    table("a step of SimNPO with more data", in_turns(growth, args.rounds, device), "1×")
    if args.size == "7b":
        return

    def gradient_of(other):
        return lambda: (ours(other, forget, retain, "simnpo", args.micro, None, dtype), other.zero_grad())

    ways = {f"{vocab:,} tokens": gradient_of(new_model(args.size, vocab).to(device)) for vocab in (8192, 32768, 131072)}
    table("gradient of SimNPO by vocabulary", in_turns(ways, args.rounds, device), "32,768 tokens")


def main(argv=None):
    parser = OneLineParser(prog="benchmark.py", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: %(default)s")
    parser.add_argument("--rounds", type=number(int, 1), default=5, help="default: %(default)s")
    parser.add_argument("--micro", type=number(int, 1), default=8, help="micro-batch size (default: %(default)s)")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
