"""What the loop's step costs, against the other ways to take it. Run by hand:

    python tests/benchmark.py                             a small Llama on the device at hand, in some minutes
    python tests/benchmark.py --size 1b --device cuda     of Llama-3.2-1B's shape; 7b: LLaMA-2 7B's; random weights

One effective batch, 32 forget and 32 retain examples, with AdamW's step. Same model, same examples, in turns; what is
printed are medians, and of ratios the median of each round's. Examples are TOFU's forget05 and retain95 from the folder in
TOFU_DIR, or else the toy's.
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
import runs
import train

SIZES = {  # as LlamaConfig has it: width, of the MLP, layers, heads, key-value heads, vocabulary
    "tiny": (256, 688, 4, 4, 4, 32000),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
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
    task, folder, split = (
        ("tofu", os.environ["TOFU_DIR"], "forget05") if os.environ.get("TOFU_DIR") else ("toy", None, "forget10")
    )
    benchmark, tokenizer = evaluate.BENCHMARKS[task], evaluate.new_model(task, folder, 0)[1]
    found = []
    for name in (split, benchmark.retain_split(split)):
        rows = benchmark.training_rows(task, folder, name)
        examples = data.examples_of(rows, tokenizer, "plain", 500)
        found.append([examples[i * len(examples) // count] for i in range(count)])
    return *found, tokenizer


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
                    loss = losses.simnpo(logp, length, 2.5)
                else:
                    with torch.no_grad():
                        ref_logp, _ = logp_of(frozen, some)
                    loss = losses.npo(logp, ref_logp, 0.1)
            (loss.sum() / len(examples)).backward()


def ours(model, forget, retain, method, micro, ref, dtype):
    """The loop's own functions."""
    args = argparse.Namespace(method=method, beta=2.5, gamma=0.0, retain="nll", layer=None)
    sides = {"answer": forget, "answer_ref": ref}
    loss, *_ = train.add_gradient(
        forget, 1.0, lambda group: train.forget_loss(model, sides, group, args), micro, model.device, dtype
    )
    train.check_finite(1, "forget", loss.mean(), model)
    (loss,) = train.add_gradient(
        retain,
        1.0,
        lambda group: (train.retain_loss(model, None, [retain[i] for i in group], args),),
        micro,
        model.device,
        dtype,
    )
    train.check_finite(1, "retain", loss.mean(), model)


def floor(model, forget, retain, micro, dtype):
    """A bare forward and backward pass: no padding, a micro-batch's tokens in one row, token cross-entropy."""
    for examples in (forget, retain):
        for group in data.by_length(examples, micro):
            ids, labels, places = [], [], []
            for prompt, response in (examples[i] for i in group):
                ids, labels = ids + prompt + response, labels + [-100] * (len(prompt) - 1) + response + [-100]
                places += range(len(prompt) + len(response))
            ids, labels, places = (torch.tensor(each, device=model.device) for each in (ids, labels, places))
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
        ratio = statistics.median(a / b for a, b in zip(seconds, measured[base][0]))
        median = statistics.median(seconds)
        print(
            f"{ratio:7.3f} {median:9.3f} {memory / 1e6:8.0f}"
            + (f"{tokens / median:10.0f}" if tokens else f"{'':10s}")
            + (f"{flops / median:6.2f}" if flops else f"{'':6s}")
            + f"   {name}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--micro", type=int, default=8, help="micro-batch size (default: %(default)s)")
    args = parser.parse_args()
    device, dtype = runs.resolve_device(argparse.Namespace(device=args.device, dtype=None))
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    forget, retain, tokenizer = some_examples(32)
    tokens = sum(len(each.prompt) + len(each.response) for each in forget + retain)
    answers = sum(len(each.response) for each in forget + retain)
    print(
        f"{on}, {str(dtype).removeprefix('torch.')}, {args.size}, {args.rounds} rounds; {len(forget)} + {len(retain)} examples, "
        f"{tokens} tokens, {answers} of them in responses"
    )

    model = new_model(args.size).to(device)
    frozen = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

    def step(gradient, *given):
        def take():
            gradient(model, *given)
            optimizer.step()
            optimizer.zero_grad()

        return take

    ref = data.response_logp(frozen, forget)[0].cpu()  # where the loop keeps it
    everywhere, to_500 = padded_logp, functools.partial(padded_logp, pad_to=500)
    ours_is = f"SimNPO, ours: micro-batch {args.micro}"
    ways = {
        ours_is: step(ours, forget, retain, "simnpo", args.micro, ref, dtype),
        "NPO, ours": step(ours, forget, retain, "npo", args.micro, ref, dtype),
        "GradDiff, ours": step(ours, forget, retain, "graddiff", args.micro, ref, dtype),
        "SimNPO, ours, micro-batch 4": step(ours, forget, retain, "simnpo", 4, ref, dtype),
        "SimNPO, ours, micro-batch 32": step(ours, forget, retain, "simnpo", 32, ref, dtype),
        "floor: tokens packed, bare cross-entropy": step(floor, forget, retain, args.micro, dtype),
        "SimNPO, padded to the longest of 8, all logits": step(
            plain, forget, retain, "simnpo", 8, everywhere, None, dtype
        ),
        "NPO, the same, with a reference model": step(plain, forget, retain, "npo", 8, everywhere, frozen, dtype),
        "SimNPO, published: padded to 500, one at a time": step(
            plain, forget, retain, "simnpo", 1, to_500, None, dtype
        ),
        "NPO, published: with a reference model": step(plain, forget, retain, "npo", 1, to_500, frozen, dtype),
    }
    # 6 per weight and token that meets it, attention's products left out (they are below 2% at these lengths).
    layers = sum(p.numel() for name, p in model.named_parameters() if "layers" in name)
    head = model.lm_head.weight.numel()
    roof = next((value for card, value in PEAK_FLOPS.items() if card in on), None)
    table(
        "a step",
        in_turns(ways, args.rounds, device),
        ours_is,
        tokens,
        roof and 6 * (layers * tokens + head * answers) / roof,
    )

    model.eval()

    def scoring(size):
        return lambda: data.token_logps(model, forget + retain, size, dtype)

    def generating(size):
        return lambda: data.generate(model, tokenizer, forget, size, dtype, 16)

    table(
        "scoring 64 responses",
        in_turns({"32 at a time": scoring(32), "one at a time": scoring(1)}, args.rounds, device),
        "32 at a time",
    )
    table(
        "generating 32 × 16 tokens",
        in_turns({"32 at a time": generating(32), "one at a time": generating(1)}, args.rounds, device),
        "32 at a time",
    )

    many = some_examples(256)[:2]
    growth = {
        f"{times}×": step(ours, many[0][: 32 * times], many[1][: 32 * times], "simnpo", args.micro, ref, dtype)
        for times in (1, 2, 4, 8)
    }
    table("a step of SimNPO with more data", in_turns(growth, args.rounds, device), "1×")
    if args.size != "7b":

        def of(other):
            return lambda: (ours(other, forget, retain, "simnpo", args.micro, ref, dtype), other.zero_grad())

        ways = {f"{vocab:,} tokens": of(new_model(args.size, vocab).to(device)) for vocab in (8192, 32768, 131072)}
        table("gradient of SimNPO by vocabulary", in_turns(ways, args.rounds, device), "32,768 tokens")


if __name__ == "__main__":
    main()
