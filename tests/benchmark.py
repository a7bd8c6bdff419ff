"""What each saving in the loop buys. Run by hand: python tests/benchmark.py [--device cuda]

One effective batch (32 forget + 32 retain examples with lengths like TOFU's) through SimNPO or NPO
and the retain loss, forward and backward, on a small Llama with a 32k vocabulary. The variants take
turns within each round, and what is printed is the median ratio to the last row, this project's way.
"""
import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tqdm import tqdm

import data
import losses
import runs


def padded_logp(model, examples, pad_to=None):
    """log π and |y| the plain way: padded to `pad_to` or the longest, with logits at every position."""
    input_ids, labels = data.collate(examples, 0)
    if pad_to:
        more = pad_to - input_ids.shape[1]
        input_ids = torch.nn.functional.pad(input_ids, (0, more))
        labels = torch.nn.functional.pad(labels, (0, more), value=-100)
    return losses.sequence_logp(model(input_ids.to(model.device), use_cache=False).logits, labels.to(model.device))


def step(model, frozen, forget, retain, method, micro, logp_of, ordered, device, dtype):
    """Gradient of one effective batch; frozen: a reference model to run every time, or None."""
    ref = torch.full((len(forget),), -30.0, device=device)
    for examples, is_forget in ((forget, True), (retain, False)):
        groups = data.by_length(examples, micro)
        if not ordered:
            groups = [list(range(start, min(start + micro, len(examples)))) for start in range(0, len(examples), micro)]
        for group in groups:
            chosen = [examples[i] for i in group]
            with data.autocast(device, dtype):
                logp, length = logp_of(model, chosen)
                if not is_forget:
                    loss = losses.nll(logp, length)
                elif method == "simnpo":
                    loss = losses.simnpo(logp, length, 2.5)
                else:
                    if frozen is not None:
                        with torch.no_grad():
                            ref_logp, _ = logp_of(frozen, chosen)
                    loss = losses.npo(logp, ref_logp if frozen is not None else ref[group], 0.1)
            (loss.sum() / len(examples)).backward()
    model.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device, dtype = runs.resolve_device(argparse.Namespace(device=args.device, dtype=None))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32000, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512)).to(device)
    frozen = copy.deepcopy(model)
    # prompts of 10 to 24 tokens and responses of 5 to 70, mean 37: TOFU's, in LLaMA-2's tokenizer
    draw = torch.Generator().manual_seed(0)
    def some(count):
        return [data.Example(torch.randint(1, 32000, (int(torch.randint(10, 25, (1,), generator=draw)),)).tolist(),
                             torch.randint(1, 32000, (int(torch.randint(5, 70, (1,), generator=draw)),)).tolist())
                for _ in range(count)]
    forget, retain = some(32), some(32)

    def everywhere(model, examples):
        return padded_logp(model, examples)

    def fixed(model, examples):
        return padded_logp(model, examples, pad_to=500)
    variants = {
        "NPO: padded to 500, one at a time, reference model every step": ("npo", frozen, 1, fixed, False),
        "SimNPO: padded to 500, one at a time": ("simnpo", None, 1, fixed, False),
        "SimNPO: padded to the longest of 8": ("simnpo", None, 8, everywhere, False),
        "… and sorted by length first": ("simnpo", None, 8, everywhere, True),
        "NPO as here: reference log-probabilities computed once": ("npo", None, 8, data.response_logp, True),
        "SimNPO as here: … and no logits for prompts": ("simnpo", None, 8, data.response_logp, True),
    }
    seconds = {name: [] for name in variants}
    for turn in tqdm(range(args.rounds + 1), desc="rounds", disable=None):
        for name, (method, reference, micro, logp_of, ordered) in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step(model, reference, forget, retain, method, micro, logp_of, ordered, device, dtype)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    base = seconds[list(variants)[-1]]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, {str(dtype).removeprefix('torch.')}, median of {args.rounds} rounds")
    for name, times in seconds.items():
        print(f"{statistics.median(t / b for t, b in zip(times, base)):6.2f} ×  {statistics.median(times):8.3f} s   {name}")


if __name__ == "__main__":
    main()
