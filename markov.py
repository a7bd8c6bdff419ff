"""The paper's synthetic study (Sec. 5, Fig. 6, App. B): where does unlearning power go?

    python markov.py                 both panels of Fig. 6, three seeds; figures, table, markov.json
    python markov.py --quick         one seed, fewer test sequences
    python markov.py --grid          the search for β that App. B mentions

Three Markov chains share ten states. *retain* wanders among states 1 to 3, *Forget1* among 4 to 6,
*Forget2* among 7 to 9; each leaves its states now and then, with probability ε. A small GPT-2 learns
to predict them, then NPO and SimNPO make it forget the last two. The true transition probabilities
are known, so how much is forgotten, and at what cost, is measured exactly: the KL divergence
KL(true transition ‖ model), in nats, mean over the transitions of test sequences. On a forget chain
it is the *forget quality* (higher is better), on retain the *retain distance* (lower is better).

    left panel   (L1)  lengths 20, 20, 5: does the short chain get forgotten too?
    right panel  (L2)  lengths 20, 20, 20, and Forget2 was never learnt: is it left in peace?

States count from 0 in the code. Only losses.py is needed. Gradients, not the forward pass, are what
the study is about, so besides Fig. 6 it draws how the gradient is shared between the two chains.
"""
import argparse
import concurrent.futures
import copy
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import transformers
from tqdm import tqdm

import losses

STATES = 10
DESIGNATED = {"retain": (0, 1, 2), "forget1": (3, 4, 5), "forget2": (6, 7, 8)}
FORGET = "forget1", "forget2"
METHODS = "npo", "simnpo"
# panel: (length of each chain's sequences, chains that pretraining sees, β of each method)
PANELS = {
    "left": ({"retain": 20, "forget1": 20, "forget2": 5}, ("retain", "forget1", "forget2"),
             {"npo": 0.2, "simnpo": 4.0}),
    "right": ({"retain": 20, "forget1": 20, "forget2": 20}, ("retain", "forget1"), {"npo": 1.0, "simnpo": 4.0}),
}
GRID = {"npo": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), "simnpo": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)}
HIGH = 0.8  # the second forget quality at which methods are compared

# ------------------------------------------------------------------ the chains


def chain(name, leakage):
    """(initial distribution [10], transition matrix [10, 10]) of App. B, for leakage ε in [0, 1).

    From a designated state the next one is drawn from the initial distribution: (1 - ε)/3 for each
    designated state, ε/7 for each other. From any other state all ten are equally likely.
    """
    initial = torch.full((STATES,), leakage / 7, dtype=torch.float64)
    initial[list(DESIGNATED[name])] = (1 - leakage) / 3
    transition = torch.full((STATES, STATES), 1 / STATES, dtype=torch.float64)
    transition[list(DESIGNATED[name])] = initial
    return initial, transition


def sample(initial, transition, count, length, generator):
    """`count` sequences of `length` states: int64 [count, length]."""
    states = [torch.multinomial(initial, count, replacement=True, generator=generator)]
    for _ in range(length - 1):
        states.append(torch.multinomial(transition[states[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(states, 1)


def make_data(lengths, args, seed):
    """{chain: (training sequences, test sequences)}: 80% and 20% of args.sequences."""
    generator = torch.Generator().manual_seed(seed)
    data = {}
    for name, length in lengths.items():
        count = args.sequences if name == "retain" else args.sequences // 2
        sequences = sample(*chain(name, args.leakage), count, length, generator)
        cut = count * 4 // 5
        tests = args.test_sequences if name == "retain" else args.test_sequences // 2
        data[name] = sequences[:cut], sequences[cut:][:tests]
    return data


def pad(sequences, length):
    """(ids, labels), both [N, length]: shorter sequences filled up with state 0, without loss there."""
    more = length - sequences.shape[1]
    return torch.nn.functional.pad(sequences, (0, more)), torch.nn.functional.pad(sequences, (0, more), value=-100)


# ------------------------------------------------------------------ the model


def build_model(args, seed):
    """A GPT-2 over ten states. --init torch: PyTorch's default scales and an output layer of its own.

    PyTorch draws embeddings from N(0, 1) and linear layers from U(±1/√fan_in); GPT-2 draws all from
    N(0, 0.02²) and ties its output layer to the token embedding. --embedding-std redraws the token
    embedding alone, and unties. README tells what hangs on it.
    """
    torch.manual_seed(seed)
    longest = max(max(lengths.values()) for lengths, _, _ in args.panels.values())
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=STATES, n_positions=longest, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function, as one operation instead of seven
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=args.init == "gpt2" and args.embedding_std is None))
    if args.init == "torch":
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight.normal_()
                elif isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D)):
                    # transformers' Conv1D keeps its weight as [in, out], Linear as [out, in]
                    fan_in = module.weight.shape[0 if isinstance(module, transformers.pytorch_utils.Conv1D) else 1]
                    for parameter in module.parameters():
                        parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    if args.embedding_std is not None:
        torch.nn.init.normal_(model.transformer.wte.weight, std=args.embedding_std)
    return model


def pretrain(model, sequences, args, seed, bar):
    """Minimize the cross-entropy averaged over a batch's tokens, in place. sequences: a list of [N, L] tensors."""
    lengths = sorted({part.shape[1] for part in sequences})
    pools = [torch.cat([part for part in sequences if part.shape[1] == length]).to(model.device) for length in lengths]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.epochs):
        for rows in torch.randperm(sum(map(len, pools)), generator=generator).split(args.pretrain_batch):
            optimizer.zero_grad()
            batches = []  # a pass for each length, so that nothing is padded; their gradients add up
            for pool in pools:
                chosen = rows[(rows >= 0) & (rows < len(pool))]
                batches.append(pool[chosen.to(pool.device)])
                rows = rows - len(pool)
            tokens = sum(len(ids) * (ids.shape[1] - 1) for ids in batches)
            for ids in batches:
                if len(ids):
                    logp, _ = losses.sequence_logp(model(ids).logits, ids)
                    (-logp.sum() / tokens).backward()
            optimizer.step()
            bar.update()


# ------------------------------------------------------------------ measuring


@torch.no_grad()
def distances(model, tests, transitions):
    """{chain: KL(true ‖ model)}, mean over all transitions of its test sequences."""
    result = {}
    for name, sequences in tests.items():
        states = sequences[:, :-1]
        # 250 sequences fit a CPU's cache: over twice as fast there as all at once
        log_model = torch.cat([model(part).logits.log_softmax(-1) for part in states.split(250)])
        true = transitions[name][states]
        result[name] = (torch.xlogy(true, true) - true * log_model).sum(-1).mean().item()
    return result


def weights_of(method, beta, logp, ref_logp, length):
    """The closed-form gradient weight of each sequence."""
    return losses.npo_weight(logp, ref_logp, beta) if method == "npo" else losses.simnpo_weight(logp, length, beta)


def gradient_power(model, probes, ref_logp, method, beta):
    """({chain: mean weight}, {chain: norm of Σ wᵢ ∇θ log πᵢ over its probes}, cosine between the two sums).

    The norm of the *sum* is what the optimizer gets from a chain. (A sum of norms would also count what
    cancels between the sequences of a chain.)
    """
    weights, sums = {}, {}
    for name, sequences in probes.items():
        logp, length = losses.sequence_logp(model(sequences).logits, sequences)
        weight = weights_of(method, beta, logp.detach(), ref_logp[name], length)
        gradients = torch.autograd.grad((weight * logp).sum(), list(model.parameters()))
        weights[name] = weight.mean().item()
        sums[name] = torch.cat([gradient.flatten() for gradient in gradients])
    cosine = torch.nn.functional.cosine_similarity(*sums.values(), dim=0).item()
    return weights, {name: vector.norm().item() for name, vector in sums.items()}, cosine


# ------------------------------------------------------------------ unlearning


def unlearn(start, data, method, beta, args, seed, bar):
    """Run `method` from model `start` on the two forget chains alone, and return its path.

    data as from `make_data`. {quantity: list of numbers}. At `iteration`, every args.eval_every: retain,
    forget1, forget2 (KL). At every iteration, before its step: weight_ and power_ of each forget chain
    and their cosine (see `gradient_power`), and `moved`, ‖θ - θ₀‖ / ‖θ₀‖.
    """
    model, device = copy.deepcopy(start), start.device
    tests = {name: test.to(device) for name, (_, test) in data.items()}
    transitions = {name: chain(name, args.leakage)[1].float().to(device) for name in data}
    longest = max(data[name][0].shape[1] for name in FORGET)
    ids, labels = (torch.cat(parts).to(device) for parts in zip(*(pad(data[name][0], longest) for name in FORGET)))
    probes = {name: data[name][0][:args.probes].to(device) for name in FORGET}
    with torch.no_grad():
        probe_ref = {name: losses.sequence_logp(start(rows).logits, rows)[0] for name, rows in probes.items()}
        initial = [parameter.clone() for parameter in start.parameters()]
        size = torch.nn.utils.get_total_norm(initial)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.unlearn_lr, fused=True)
    # One seed for both methods: they see the same batches, so that their difference is not luck.
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).to(device)
    path = {name: [] for name in ("iteration", *data, "moved", "cosine")}
    path |= {f"{what}_{name}": [] for what in ("weight", "power") for name in FORGET}
    for iteration in range(args.iterations + 1):
        if iteration % args.eval_every == 0 or iteration == args.iterations:
            path["iteration"].append(iteration)
            for name, distance in distances(model, tests, transitions).items():
                path[name].append(distance)
        weights, powers, cosine = gradient_power(model, probes, probe_ref, method, beta)
        for name in FORGET:
            path["weight_" + name].append(weights[name])
            path["power_" + name].append(powers[name])
        path["cosine"].append(cosine)
        with torch.no_grad():
            moved = [parameter - before for parameter, before in zip(model.parameters(), initial)]
            path["moved"].append((torch.nn.utils.get_total_norm(moved) / size).item())
        bar.update()
        if iteration == args.iterations:
            break
        rows = order[args.batch * iteration:args.batch * (iteration + 1)]
        logp, length = losses.sequence_logp(model(ids[rows]).logits, labels[rows])
        if method == "npo":
            with torch.no_grad():
                ref_logp, _ = losses.sequence_logp(start(ids[rows]).logits, labels[rows])
            loss = losses.npo(logp, ref_logp, beta)
        else:
            loss = losses.simnpo(logp, length, beta)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return path


def run_seed(args, seed, position=0):
    """All of one seed: {"retrained": {chain: KL}, panel: {"npo beta": path, "simnpo beta": path, ...}}."""
    if args.device == "cpu" and args.jobs > 1:
        torch.set_num_threads(max(1, os.cpu_count() // args.jobs))
    betas = {panel: {method: GRID[method] if args.grid else (chosen[method],) for method in METHODS}
             for panel, (_, _, chosen) in args.panels.items()}
    data = {panel: make_data(lengths, args, 1000 * seed + [*PANELS].index(panel))
            for panel, (lengths, _, _) in args.panels.items()}
    # The first panel's retain data serve both panels, so that one retrained model does.
    first = next(iter(data.values()))
    jobs = [("retrained", [first["retain"][0]])]
    for panel, (_, seen, _) in args.panels.items():
        data[panel]["retain"] = first["retain"]
        jobs.append((panel, [data[panel][name][0] for name in seen]))
    steps = sum(args.epochs * math.ceil(sum(map(len, parts)) / args.pretrain_batch) for _, parts in jobs)
    steps += sum(len(values) for panel in betas.values() for values in panel.values()) * (args.iterations + 1)
    result = {}
    with tqdm(total=steps, desc=f"seed {seed}", position=position, leave=False, disable=None) as bar:
        for job, sequences in jobs:
            model = build_model(args, seed).to(args.device)
            pretrain(model, sequences, args, seed, bar)
            if job == "retrained":
                result["retrained"] = {}
                for panel in args.panels:
                    tests = {name: test.to(args.device) for name, (_, test) in data[panel].items()}
                    transitions = {name: chain(name, args.leakage)[1].float().to(args.device) for name in tests}
                    result["retrained"][panel] = distances(model, tests, transitions)
                continue
            result[job] = {f"{method} {beta:g}": unlearn(model, data[job], method, beta, args, seed, bar)
                           for method in METHODS for beta in betas[job][method]}
    return result


# ------------------------------------------------------------------ what the paths say


def crossing(path, chain_name, level, quantity="retain"):
    """`quantity` when the KL of a chain first reaches `level`, interpolated between measurements; None if never.

    Quantities that are logged at every iteration are read at the measured ones.
    """
    reached = path[chain_name]
    values = path[quantity]
    if len(values) != len(reached):
        values = [values[i] for i in path["iteration"]]
    for i, kl in enumerate(reached):
        if kl >= level:
            if i == 0:
                return values[0]
            share = (level - reached[i - 1]) / (kl - reached[i - 1])
            return values[i - 1] + share * (values[i] - values[i - 1])
    return None


def interval(values):
    """(mean, lower, upper): 95% t interval; the bounds are None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return mean, mean - half, mean + half


def ratio_interval(above, below):
    """(geometric mean, lower, upper) of paired ratios, all positive: the interval is that of their logarithms."""
    return tuple(None if bound is None else math.exp(bound) for bound in interval(np.log(above) - np.log(below)))


def paired(results, panel, betas, chain_name, level_of, quantity="retain"):
    """(NPO's values, SimNPO's values, number of seeds) at a crossing, from the seeds in which both get there."""
    both = []
    for result in results:
        level = level_of(result)
        both.append([crossing(result[panel][f"{method} {betas[panel][method]:g}"], chain_name, level, quantity)
                     for method in METHODS])
    both = [pair for pair in both if None not in pair]
    return [pair[0] for pair in both], [pair[1] for pair in both], len(results)


def summarize(results, betas):
    """Rows of the table: dicts with panel, what, npo, simnpo, ratio (each an interval) and seeds (reached, all)."""
    rows = []
    for panel in betas:
        for chain_name in FORGET if panel == "left" else FORGET[:1]:
            for label, level_of in (("the retrained model's KL", lambda r, c=chain_name: r["retrained"][panel][c]),
                                    (f"KL {HIGH}", lambda r: HIGH)):
                quantities = [("retain", "retain distance")]
                if panel == "right":
                    quantities.append(("forget2", "KL on Forget2"))
                elif chain_name == "forget2":  # what else has happened until the short chain is forgotten
                    quantities += [("forget1", "KL on Forget1"), ("iteration", "iterations")]
                for quantity, what in quantities:
                    npo, simnpo, seeds = paired(results, panel, betas, chain_name, level_of, quantity)
                    row = {"panel": panel, "what": f"{what} when {chain_name.title()} reaches {label}", "chain": chain_name,
                           "quantity": quantity, "high": label.startswith("KL"), "seeds": [len(npo), seeds]}
                    if npo:
                        row |= {"npo": interval(npo), "simnpo": interval(simnpo)}
                        if min(npo + simnpo) > 0:  # 0 iterations: it was there before the first
                            row["ratio"] = ratio_interval(npo, simnpo)
                    rows.append(row)
    return rows


def verdict(row):
    """holds, fails or can't tell: is NPO's number larger than SimNPO's, paired by seed, at 95%?"""
    if "ratio" not in row or row["ratio"][1] is None:
        return "can't tell"
    _, low, high = row["ratio"]
    return "holds" if low > 1 else "fails" if high < 1 else "can't tell"


def report(results, betas):
    """The table and the claims, as text."""
    def shown(values, form="{:.3f}"):
        if values is None:
            return "–"
        mean, low, high = values
        return form.format(mean) + ("" if low is None else f" [{form.format(low)}, {form.format(high)}]")
    rows = summarize(results, betas)
    lines = ["| panel | quantity | NPO | SimNPO | NPO / SimNPO | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['panel']} | {row['what']} | {shown(row.get('npo'))} | {shown(row.get('simnpo'))} | "
                     f"{shown(row.get('ratio'), '{:.2f}')} | {row['seeds'][0]} of {row['seeds'][1]} |")
    lines += ["", "mean [95% interval over seeds]; the ratio is paired by seed (geometric mean)", ""]
    for claim, panel, chain_name, quantity in (
            ("L1: to forget the short chain, NPO pays more retain distance", "left", "forget2", "retain"),
            ("L2: NPO forgets Forget2, never learnt, further than SimNPO does", "right", "forget1", "forget2"),
            ("L2: to forget Forget1, NPO pays more retain distance", "right", "forget1", "retain")):
        at = {row["high"]: verdict(row) for row in rows
              if (row["panel"], row["chain"], row["quantity"]) == (panel, chain_name, quantity)}
        if at:
            lines.append(f"{claim}: {at[False]} at the retrained model's KL, {at[True]} at {HIGH}")
    for panel in betas:
        for method in METHODS:
            paths = [result[panel][f"{method} {betas[panel][method]:g}"] for result in results]
            share = interval([path["power_forget2"][0] / (path["power_forget1"][0] + path["power_forget2"][0])
                              for path in paths])
            moved = interval([path["moved"][-1] for path in paths])
            lines.append(f"{panel}, {method}: Forget2's share of the gradient at the first iteration {shown(share)}; "
                         f"weights moved by {shown(moved)} of their norm in the end")
    return "\n".join(lines)


def choose_betas(results, panels):
    """{panel: {method: β}} with the least mean retain distance at the retrained model's KL; ties to the first.

    Mean over the forget chains that pretraining saw. A β that does not get there in every seed is out,
    unless none does.
    """
    chosen = {}
    for panel, (_, seen, _) in panels.items():
        chosen[panel] = {}
        for method in METHODS:
            costs = {}
            for beta in GRID[method]:
                values = [crossing(result[panel][f"{method} {beta:g}"], name, result["retrained"][panel][name])
                          for result in results for name in FORGET if name in seen]
                costs[beta] = math.inf if None in values else float(np.mean(values))
            chosen[panel][method] = min(costs, key=costs.get)
    return chosen


# ------------------------------------------------------------------ figures


def draw(axis, x, curves, label, **style):
    """Mean of curves over seeds, with a 95% band where there are at least two. Gaps (None) are left out."""
    columns = [[value for value in column if value is not None] for column in zip(*curves)]
    columns = [column if len(column) == len(curves) else None for column in columns]  # all seeds or nothing
    bounds = [(math.nan,) * 3 if column is None else tuple(math.nan if b is None else b for b in interval(column))
              for column in columns]
    mean, low, high = (np.array(side) for side in zip(*bounds))
    line, = axis.plot(x, mean, label=label, **style)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def start_figure(panels):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.9), squeeze=False)
    return figure, dict(zip(panels, axes[0]))


def finish(figure, axes, label, path):
    import matplotlib.pyplot as plt
    next(iter(axes.values())).set_ylabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


STYLE = {("npo", "forget1"): "C0--", ("npo", "forget2"): "C0-", ("simnpo", "forget1"): "C1--", ("simnpo", "forget2"): "C1-"}
TITLES = {"left": "Forget2 is short", "right": "Forget2 was never learnt"}
NAMES = {"npo": "NPO", "simnpo": "SimNPO", "forget1": "Forget1", "forget2": "Forget2"}


def draw_fig6(results, betas, path):
    """Retain distance against forget quality; the retrained model as symbols."""
    figure, axes = start_figure(betas)
    levels = np.linspace(0, 1.5, 61)
    for panel, axis in axes.items():
        for (method, name), style in STYLE.items():
            key = f"{method} {betas[panel][method]:g}"
            begin = np.mean([result[panel][key][name][0] for result in results])
            x = levels[levels >= begin]
            curves = [[crossing(result[panel][key], name, level) for level in x] for result in results]
            draw(axis, x, curves, f"{NAMES[method]}, {NAMES[name]}", color=style[:2], linestyle=style[2:])
        for name, marker in zip(FORGET, ("*", "o")):
            axis.plot(np.mean([result["retrained"][panel][name] for result in results]),
                      np.mean([result["retrained"][panel]["retain"] for result in results]), "k" + marker,
                      label=f"retrained, {NAMES[name]}", linestyle="none")
        axis.set(xlabel="forget quality: KL on the forget chain (more is better)",
                 title=TITLES[panel])
        axis.legend(fontsize=7)
    finish(figure, axes, "retain distance: KL on retain\n(less is better)", path)


def draw_power(results, betas, path):
    """Forget2's share of the gradient at every iteration."""
    figure, axes = start_figure(betas)
    for panel, axis in axes.items():
        for method in METHODS:
            paths = [result[panel][f"{method} {betas[panel][method]:g}"] for result in results]
            shares = [[two / (one + two) for one, two in zip(p["power_forget1"], p["power_forget2"])] for p in paths]
            draw(axis, range(len(shares[0])), shares, NAMES[method], color=STYLE[method, "forget2"][:2])
        axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel="iteration", ylim=(0, 1),
                 title=TITLES[panel])
        axis.legend()
    finish(figure, axes, "Forget2's share of the gradient", path)


def draw_grid(results, panels, path):
    """The tradeoff of every β: retain distance against the mean KL of the forget chains that were learnt."""
    figure, axes = start_figure(panels)
    import matplotlib
    for panel, axis in axes.items():
        for method, colours in (("npo", "Blues"), ("simnpo", "Oranges")):
            for beta, colour in zip(GRID[method], matplotlib.colormaps[colours](np.linspace(0.4, 1, len(GRID[method])))):
                paths = [result[panel][f"{method} {beta:g}"] for result in results]
                seen = [name for name in FORGET if name in panels[panel][1]]
                x = np.mean([[p[name] for name in seen] for p in paths], axis=(0, 1))
                axis.plot(x, np.mean([p["retain"] for p in paths], axis=0), color=colour, label=f"{NAMES[method]} β={beta:g}")
        axis.set(xlabel="forget quality, mean over learnt chains and seeds", title=TITLES[panel], xlim=(0, 1.5), ylim=(0, 0.4))
        axis.legend(fontsize=6, ncols=2)
    finish(figure, axes, "retain distance", path)


# ------------------------------------------------------------------ the command


def number(kind, low, below=math.inf):
    """An argparse type: a finite number of `kind` with low <= number < below."""
    def parse(text):
        value = kind(text)
        if not math.isfinite(value) or value < low or value >= below:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low}" + (f" and below {below}" if below < math.inf else ""))
        return value
    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="markov.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"markov.py: {message} (see markov.py --help)\n")
    add = parser.add_argument
    add("--seeds", type=number(int, 1), default=None, help="number of seeds: 0, 1, … (default: 3; 1 with --quick)")
    add("--quick", action="store_true", help="one seed and a tenth of the test sequences; the same training")
    add("--grid", action="store_true", help="try every β of GRID for both methods and choose; slower")
    add("--init", choices=("torch", "gpt2"), default="torch",
        help="torch: PyTorch's default initialization, untied output layer. gpt2: GPT-2's own (default: %(default)s)")
    add("--embedding-std", type=number(float, 0), default=None, metavar="STD",
        help="redraw the token embedding from N(0, STD²), with an output layer of its own; all else as --init says")
    add("--panel", choices=("both", *PANELS), default="both", help="of Fig. 6 (default: %(default)s)")
    add("--out", default="runs/markov", help="folder for figures and numbers; finished seeds in it are not run again "
        "(default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    add("--jobs", type=number(int, 1), default=None, help="seeds run at once, a process each (default: 1 on CPU; on a GPU, "
        "where a single seed mostly waits for kernel launches, one for each CPU core but one)")
    for flag, low, default, text in (
            ("sequences", 20, 10000, "sequences of the retain chain, half as many of each forget chain; 80%% train"),
            ("test-sequences", 2, None, "test sequences used of the retain chain, half as many of the others (default: all)"),
            ("layers", 1, 4, "of the GPT-2"), ("heads", 1, 4, "of the GPT-2"), ("width", 1, 128, "of the GPT-2"),
            ("epochs", 1, 5, "of pretraining"), ("pretrain-batch", 1, 128, "sequences a pretraining step"),
            ("iterations", 1, 50, "of unlearning"), ("batch", 1, 4, "sequences an unlearning iteration"),
            ("eval-every", 1, 2, "iterations between KL measurements"),
            ("probes", 1, 32, "sequences of each forget chain on which the gradient's share is measured")):
        add("--" + flag, type=number(int, low), default=default, help=text + ("" if default is None else f" (default: {default})"))
    add("--lr", type=number(float, 0), default=5e-4, help="AdamW's learning rate (default: %(default)s)")
    add("--unlearn-lr", type=number(float, 0), default=None, help="the same for unlearning (default: --lr)")
    add("--leakage", type=number(float, 0, below=1), default=0.2, help="ε (default: %(default)s)")
    for panel, (lengths, _, betas) in PANELS.items():
        add(f"--{panel}-lengths", type=number(int, 2), nargs=3, default=list(lengths.values()), metavar="L",
            help=f"sequence lengths of retain, Forget1, Forget2 (default: {' '.join(map(str, lengths.values()))})")
    for method in METHODS:
        add(f"--beta-{method}", type=number(float, 0), nargs=2, metavar=("LEFT", "RIGHT"),
            default=[betas[method] for _, _, betas in PANELS.values()], help="β in the two panels (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.width % args.heads:
        parser.error(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.iterations * args.batch > args.sequences // 2 * 4 // 5 * 2:
        parser.error(f"--iterations {args.iterations} of --batch {args.batch} need more forget sequences than --sequences "
                     f"{args.sequences} gives; raise it")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.unlearn_lr = args.lr if args.unlearn_lr is None else args.unlearn_lr
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.test_sequences = args.test_sequences or (args.sequences // (50 if args.quick else 5))
    args.jobs = args.jobs or (max(1, min(args.seeds, os.cpu_count() - 1)) if args.device == "cuda" else 1)
    args.panels = {panel: (dict(zip(DESIGNATED, getattr(args, f"{panel}_lengths"))), seen,
                           {method: getattr(args, f"beta_{method}")[i] for method in METHODS})
                   for i, (panel, (_, seen, _)) in enumerate(PANELS.items()) if args.panel in ("both", panel)}
    if len({lengths["retain"] for lengths, _, _ in args.panels.values()}) > 1:
        parser.error("the retrained model serves both panels, so retain must have one length in both")
    args.out = Path(args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / ".writable").touch()
        (args.out / ".writable").unlink()
    except OSError as error:
        parser.error(f"--out: cannot write to {args.out} ({error.strerror}); name a folder that you may write to")
    return args


def finished(args, seed, settings):
    """A finished seed from --out, or None if it is absent or was run with other settings."""
    try:
        saved = json.loads((args.out / f"seed{seed}.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return saved["result"] if saved.get("settings") == settings else None


def main(argv=None):
    args = parse_args(argv)
    transformers.logging.set_verbosity_error()
    settings = {name: value for name, value in vars(args).items() if name not in ("seeds", "out", "jobs", "quick")}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    results = {seed: finished(args, seed, settings) for seed in range(args.seeds)}
    missing = [seed for seed, result in results.items() if result is None]
    if len(missing) < args.seeds:
        print(f"{args.seeds - len(missing)} of {args.seeds} seeds were already in {args.out}")
    started = time.perf_counter()

    def keep(seed, result):
        results[seed] = result
        temporary = args.out / f"seed{seed}.tmp"
        temporary.write_text(json.dumps({"settings": settings, "result": result}), encoding="utf-8")
        temporary.replace(args.out / f"seed{seed}.json")
    try:
        if args.jobs == 1:
            for seed in tqdm(missing, desc="seeds", position=1, disable=None):
                keep(seed, run_seed(args, seed))
        else:
            # spawn: CUDA does not survive a fork
            with concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
                waiting = {pool.submit(run_seed, args, seed, 1 + seed): seed for seed in missing}
                try:
                    for done in tqdm(concurrent.futures.as_completed(waiting), total=len(missing), desc="seeds", disable=None):
                        keep(waiting[done], done.result())
                except KeyboardInterrupt:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished seeds are in {args.out} and the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - started

    results = [results[seed] for seed in range(args.seeds)]
    betas = {panel: chosen for panel, (_, _, chosen) in args.panels.items()}
    if args.grid:
        betas = choose_betas(results, args.panels)
        draw_grid(results, args.panels, args.out / "grid.png")
        print("chosen β:", json.dumps(betas))
    print(report(results, betas))
    draw_fig6(results, betas, args.out / "fig6.png")
    draw_power(results, betas, args.out / "power.png")
    content = {"settings": settings, "betas": betas, "summary": summarize(results, betas), "seeds": results}
    (args.out / "markov.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    if missing:
        print(f"{len(missing)} seeds in {seconds:.0f} s on {args.device}, {args.jobs} at a time")
    print(f"fig6.png, power.png, {'grid.png, ' if args.grid else ''}markov.json are in {args.out}")


if __name__ == "__main__":
    main()
