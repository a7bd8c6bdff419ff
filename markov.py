"""The paper's synthetic study (Sec. 5, Fig. 6, App. B): where does unlearning power go?

    python markov.py                 both panels of Fig. 6, three seeds; figures, table, markov.json
    python markov.py --quick         one seed, fewer test sequences
    python markov.py --grid          every β of the search that App. B mentions, besides the chosen ones

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
    "left": (
        {"retain": 20, "forget1": 20, "forget2": 5},
        ("retain", "forget1", "forget2"),
        {"npo": 0.2, "simnpo": 4.0},
    ),
    "right": ({"retain": 20, "forget1": 20, "forget2": 20}, ("retain", "forget1"), {"npo": 1.0, "simnpo": 4.0}),
}
GRID = {"npo": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), "simnpo": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)}
HIGH = 0.8  # the second forget quality at which methods are compared
NAMES = {"npo": "NPO", "simnpo": "SimNPO", "forget1": "Forget1", "forget2": "Forget2"}

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


# ------------------------------------------------------------------ the model


def build_model(args, seed):
    """A GPT-2 over ten states. --init torch: PyTorch's default scales and an output layer of its own.

    PyTorch draws embeddings from N(0, 1) and linear layers from U(±1/√fan_in); GPT-2 draws all from
    N(0, 0.02²) and ties its output layer to the token embedding. --embedding-std redraws the token
    embedding alone, and unties. results/README.md tells what hangs on it.
    """
    torch.manual_seed(seed)
    longest = max(max(lengths.values()) for lengths, _, _ in args.panels.values())
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=STATES,
            n_positions=longest,
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.heads,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function, as one operation instead of seven
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=args.init == "gpt2" and args.embedding_std is None,
        )
    )
    if args.init == "torch":
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight)
            elif isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D)):
                # transformers' Conv1D keeps its weight as [in, out], Linear as [out, in]
                fan_in = module.weight.shape[1 if isinstance(module, torch.nn.Linear) else 0]
                for parameter in module.parameters():
                    torch.nn.init.uniform_(parameter, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    if args.embedding_std is not None:
        torch.nn.init.normal_(model.transformer.wte.weight, std=args.embedding_std)
    return model


def pretrain(model, sequences, args, seed, bar):
    """Minimize the cross-entropy averaged over a batch's tokens, in place. sequences: [[N, L], …]."""
    pools = [
        torch.cat([part for part in sequences if part.shape[1] == length]).to(model.device)
        for length in sorted({part.shape[1] for part in sequences})
    ]
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


def tests_of(data, args):
    """({chain: test sequences}, {chain: its transition matrix}), on the device."""
    return (
        {name: test.to(args.device) for name, (_, test) in data.items()},
        {name: chain(name, args.leakage)[1].float().to(args.device) for name in data},
    )


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


def gradient_power(model, probes, ref_logp, method, beta):
    """({chain: mean weight}, {chain: norm of Σ wᵢ ∇θ log πᵢ over its probes}).

    The norm of the *sum* is what the optimizer gets from a chain. (A sum of norms would also count what
    cancels between the sequences of a chain.)
    """
    weights, norms = {}, {}
    for name, sequences in probes.items():
        logp, length = losses.sequence_logp(model(sequences).logits, sequences)
        weight = (
            losses.npo_weight(logp.detach(), ref_logp[name], beta)
            if method == "npo"
            else losses.simnpo_weight(logp.detach(), length, beta)
        )
        gradients = torch.autograd.grad((weight * logp).sum(), list(model.parameters()))
        weights[name] = weight.mean().item()
        norms[name] = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    return weights, norms


# ------------------------------------------------------------------ unlearning


def unlearn(start, data, method, beta, args, seed, bar):
    """Run `method` from model `start` on the two forget chains alone, and return its path.

    data as from `make_data`. {quantity: list of numbers}. At `iteration`, every args.eval_every: retain,
    forget1, forget2 (KL). At every iteration, before its step: weight_ and power_ of each forget chain (see
    `gradient_power`).
    """
    model, device = copy.deepcopy(start), start.device
    tests, transitions = tests_of(data, args)
    # Shorter sequences are filled up with state 0, without loss there.
    sequences = [row for name in FORGET for row in data[name][0]]
    fill = torch.nn.utils.rnn.pad_sequence
    ids, labels = (fill(sequences, True, filler).to(device) for filler in (0, -100))
    probes = {name: data[name][0][: args.probes].to(device) for name in FORGET}
    with torch.no_grad():
        probe_ref = {name: losses.sequence_logp(start(rows).logits, rows)[0] for name, rows in probes.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.unlearn_lr, fused=True)
    # One seed for both methods: they see the same batches, so that their difference is not luck.
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).to(device)
    path = {
        name: []
        for name in ("iteration", *data, *(f"{what}_{name}" for what in ("weight", "power") for name in FORGET))
    }
    for iteration in range(args.iterations + 1):
        if iteration % args.eval_every == 0 or iteration == args.iterations:
            path["iteration"].append(iteration)
            for name, distance in distances(model, tests, transitions).items():
                path[name].append(distance)
        for what, values in zip(("weight", "power"), gradient_power(model, probes, probe_ref, method, beta)):
            for name, value in values.items():
                path[f"{what}_{name}"].append(value)
        bar.update()
        if iteration == args.iterations:
            break
        rows = order[args.batch * iteration : args.batch * (iteration + 1)]
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
    betas = {
        panel: {method: {chosen[method], *(GRID[method] if args.grid else ())} for method in METHODS}
        for panel, (_, _, chosen) in args.panels.items()
    }
    data = {
        panel: make_data(lengths, args, 1000 * seed + [*PANELS].index(panel))
        for panel, (lengths, _, _) in args.panels.items()
    }
    # The first panel's retain data serve both panels, so that one retrained model does.
    first = next(iter(data.values()))
    jobs = [("retrained", [first["retain"][0]])]
    for panel, (_, seen, _) in args.panels.items():
        data[panel]["retain"] = first["retain"]
        jobs.append((panel, [data[panel][name][0] for name in seen]))
    steps = sum(args.epochs * math.ceil(sum(map(len, parts)) / args.pretrain_batch) for _, parts in jobs)
    steps += sum(len(values) for panel in betas.values() for values in panel.values()) * (args.iterations + 1)
    result = {"retrained": {}}
    with tqdm(total=steps, desc=f"seed {seed}", position=position, leave=False, disable=None) as bar:
        for job, sequences in jobs:
            model = build_model(args, seed).to(args.device)
            pretrain(model, sequences, args, seed, bar)
            if job == "retrained":
                result[job] = {panel: distances(model, *tests_of(data[panel], args)) for panel in args.panels}
            else:
                result[job] = {
                    f"{method} {beta:g}": unlearn(model, data[job], method, beta, args, seed, bar)
                    for method in METHODS
                    for beta in betas[job][method]
                }
    return result


# ------------------------------------------------------------------ what the paths say


def crossing(path, chain_name, level, quantity="retain"):
    """`quantity` when a chain's KL first reaches `level`, interpolated; None if it never does.

    Quantities that are logged at every iteration are read at the measured ones.
    """
    reached, values = path[chain_name], path[quantity]
    if len(values) != len(reached):
        values = [values[i] for i in path["iteration"]]
    i = next((i for i, kl in enumerate(reached) if kl >= level), None)
    if not i:
        return None if i is None else values[0]
    share = (level - reached[i - 1]) / (reached[i] - reached[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])


def interval(values):
    """(mean, lower, upper): 95% t interval; the bounds are None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return mean, mean - half, mean + half


def ratio_interval(above, below):
    """(geometric mean, lower, upper) of paired ratios, all positive: the interval is of their logarithms."""
    bounds = interval(np.log(above) - np.log(below))
    return tuple(None if bound is None else math.exp(bound) for bound in bounds)


PAYS = "NPO pays more retain distance"
# panel, chain whose level is awaited, what is read then: (of a path, its name, claim that NPO's is larger)
READINGS = [
    ("left", "forget1", [("retain", "retain distance", None)]),
    (
        "left",
        "forget2",
        [
            ("retain", "retain distance", f"L1: to forget the short chain, {PAYS}"),
            ("forget1", "KL on Forget1", None),
            ("iteration", "iterations", None),
        ],
    ),
    (
        "right",
        "forget1",
        [
            ("retain", "retain distance", f"L2: to forget Forget1, {PAYS}"),
            ("forget2", "KL on Forget2", "L2: NPO forgets Forget2, never learnt, further than SimNPO does"),
        ],
    ),
]


def paths_of(results, panel, betas, method):
    """A method's path of each seed."""
    return [result[panel][f"{method} {betas[panel][method]:g}"] for result in results]


def summarize(results, betas):
    """Each of READINGS when its chain reaches the retrained model's KL, and HIGH, paired by seed.

    A list of {panel, what, claim, level, npo, simnpo, ratio: an interval each, seeds: [reached, all]}.
    """
    rows = []
    for panel, awaited, quantities in (reading for reading in READINGS if reading[0] in betas):
        levels = {
            "the retrained model's KL": [result["retrained"][panel][awaited] for result in results],
            f"KL {HIGH}": [HIGH] * len(results),
        }
        for level, values in levels.items():
            for quantity, what, claim in quantities:
                both = [
                    [
                        crossing(path, awaited, value, quantity)
                        for path, value in zip(paths_of(results, panel, betas, method), values)
                    ]
                    for method in METHODS
                ]
                pairs = [pair for pair in zip(*both) if None not in pair]
                row = {
                    "panel": panel,
                    "what": f"{what} when {NAMES[awaited]} reaches {level}",
                    "claim": claim,
                    "level": level,
                    "seeds": [len(pairs), len(results)],
                }
                if pairs:
                    npo, simnpo = zip(*pairs)
                    row |= {"npo": interval(npo), "simnpo": interval(simnpo)}
                    if min(npo + simnpo) > 0:  # 0 iterations: it was there before the first
                        row["ratio"] = ratio_interval(npo, simnpo)
                rows.append(row)
    return rows


def verdict(row):
    """holds, fails or can't tell: is NPO's number larger than SimNPO's, paired by seed, at 95%?"""
    _, low, high = row.get("ratio", (None, None, None))
    return "can't tell" if low is None or low <= 1 <= high else "holds" if low > 1 else "fails"


def report(results, betas):
    """The table and the claims, as text."""
    forms = {"npo": "{:.3f}", "simnpo": "{:.3f}", "ratio": "{:.2f}"}

    def shown(values, form="{:.3f}"):
        if values is None:
            return "–"
        mean, low, high = values
        return form.format(mean) + ("" if low is None else f" [{form.format(low)}, {form.format(high)}]")

    rows, claims = summarize(results, betas), {}
    lines = ["| panel | quantity | NPO | SimNPO | NPO / SimNPO | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        numbers = [shown(row.get(key), form) for key, form in forms.items()]
        lines.append(" | ".join([f"| {row['panel']}", row["what"], *numbers, "{} of {} |".format(*row["seeds"])]))
        if row["claim"]:
            said = f"{verdict(row)} at {row['level'].removeprefix('KL ')}"
            claims.setdefault(row["claim"], []).append(said)
    lines += [
        "",
        "mean [95% interval over seeds]; the ratio is paired by seed (geometric mean)",
        "",
        *(f"{claim}: {', '.join(said)}" for claim, said in claims.items()),
    ]
    for panel in betas:
        for method in METHODS:
            paths = paths_of(results, panel, betas, method)
            first = shown(interval([power_share(path)[0] for path in paths]))
            lines.append(f"{panel}, {method}: Forget2's share of the gradient at the first iteration {first}")
    return "\n".join(lines)


def power_share(path):
    """Forget2's share of the gradient at every iteration."""
    return [two / (one + two) for one, two in zip(path["power_forget1"], path["power_forget2"])]


# ------------------------------------------------------------------ figures

TITLES = {"left": "Forget2 is short", "right": "Forget2 was never learnt"}
COLOURS, LINES = {"npo": "C0", "simnpo": "C1"}, {"forget1": "--", "forget2": "-"}


def draw(axis, x, curves, label, **style):
    """Mean of curves over seeds, with a 95% band if there are two or more; a gap where one has None."""
    gap = [math.nan] * 3
    bounds = np.array([gap if None in column else interval(column) for column in zip(*curves)], dtype=float)
    axis.plot(x, bounds[:, 0], label=label, **style)
    axis.fill_between(x, bounds[:, 1], bounds[:, 2], color=style["color"], alpha=0.15, linewidth=0)


def figure(path, panels, ylabel, draw_panel, **legend):
    """A PNG of a panel each, drawn by draw_panel(axis, panel)."""
    import matplotlib.figure

    whole = matplotlib.figure.Figure((5.2 * len(panels), 3.9), layout="tight")
    for axis, panel in zip(whole.subplots(1, len(panels), squeeze=False)[0], panels):
        draw_panel(axis, panel)
        axis.set_title(TITLES[panel])
        axis.legend(**legend)
    whole.axes[0].set_ylabel(ylabel)
    whole.savefig(path, dpi=120)


def draw_fig6(results, betas, path):
    """Retain distance against forget quality; the retrained model as symbols."""

    def panel_of(axis, panel):
        for method in METHODS:
            paths = paths_of(results, panel, betas, method)
            for name in FORGET:
                levels = np.linspace(0, 1.5, 61)
                levels = levels[levels >= np.mean([p[name][0] for p in paths])]
                draw(
                    axis,
                    levels,
                    [[crossing(p, name, level) for level in levels] for p in paths],
                    f"{NAMES[method]}, {NAMES[name]}",
                    color=COLOURS[method],
                    linestyle=LINES[name],
                )
        for name, marker in zip(FORGET, ("*", "o")):
            retrained = [result["retrained"][panel] for result in results]
            x, y = (np.mean([distance[each] for distance in retrained]) for each in (name, "retain"))
            axis.plot(x, y, "k" + marker, label=f"retrained, {NAMES[name]}", linestyle="none")
        axis.set_xlabel("forget quality: KL on the forget chain (more is better)")

    figure(path, betas, "retain distance: KL on retain\n(less is better)", panel_of, fontsize=7)


def draw_power(results, betas, path):
    """Forget2's share of the gradient at every iteration."""

    def panel_of(axis, panel):
        for method in METHODS:
            shares = [power_share(path) for path in paths_of(results, panel, betas, method)]
            draw(axis, range(len(shares[0])), shares, NAMES[method], color=COLOURS[method])
        axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel="iteration", ylim=(0, 1))

    figure(path, betas, "Forget2's share of the gradient", panel_of)


# ------------------------------------------------------------------ the command


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="markov.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"markov.py: {message} (see markov.py --help)\n")
    add, lowest = parser.add_argument, {}
    add("--quick", action="store_true", help="one seed and a tenth of the test sequences; the same training")
    add("--grid", action="store_true", help="every β of GRID too, for results/markov_grid.py to choose from")
    add(
        "--init",
        choices=("torch", "gpt2"),
        default="torch",
        help="torch: PyTorch's default initialization, untied output layer. gpt2: GPT-2's own (default: torch)",
    )
    add("--panel", choices=("both", *PANELS), default="both", help="of Fig. 6 (default: both)")
    add("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    add(
        "--out",
        default="runs/markov",
        help="folder for figures and numbers; finished seeds in it are not run again (default: %(default)s)",
    )
    for flag, kind, low, default, text in (
        ("seeds", int, 1, None, "number of seeds: 0, 1, … (default: 3; 1 with --quick)"),
        (
            "jobs",
            int,
            1,
            None,
            "seeds run at once, a process each (default: 1 on a CPU; on a GPU, where "
            "a seed mostly waits for kernel launches, one for each CPU core but one)",
        ),
        ("sequences", int, 20, 10000, "of the retain chain, half as many of the others; 80%% train"),
        ("test-sequences", int, 2, None, "used of the retain chain, half of the others (default: all)"),
        ("layers", int, 1, 4, "of the GPT-2"),
        ("heads", int, 1, 4, "of the GPT-2"),
        ("width", int, 1, 128, "of the GPT-2"),
        ("epochs", int, 1, 5, "of pretraining"),
        ("pretrain-batch", int, 1, 128, "sequences a pretraining step"),
        ("iterations", int, 1, 50, "of unlearning"),
        ("batch", int, 1, 4, "sequences an iteration"),
        ("eval-every", int, 1, 2, "iterations between KL measurements"),
        ("probes", int, 1, 32, "sequences of each forget chain that measure the gradient's share"),
        ("lr", float, 0, 5e-4, "AdamW's learning rate"),
        ("unlearn-lr", float, 0, None, "the same for unlearning (default: --lr)"),
        (
            "embedding-std",
            float,
            0,
            None,
            "redraw the token embedding from N(0, STD²), with an output layer of its own; all else as --init says",
        ),
        ("leakage", float, 0, 0.2, "ε, below 1"),
    ):
        add(
            "--" + flag,
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=text + (f" (default: {default})" if default else ""),
        )
        lowest[flag] = low
    for method in METHODS:
        add(
            f"--beta-{method}",
            type=float,
            nargs=2,
            metavar=("LEFT", "RIGHT"),
            default=[betas[method] for _, _, betas in PANELS.values()],
            help="β (default: %(default)s)",
        )
        lowest[f"beta-{method}"] = 0
    args = parser.parse_args(argv)
    for flag, low in lowest.items():
        below = 1 if flag == "leakage" else math.inf
        given = getattr(args, flag.replace("-", "_"))
        for value in np.atleast_1d(low if given is None else given):
            if not low <= value < below:
                parser.error(f"--{flag}: {value} must be at least {low} and below {below}")
    if args.width % args.heads:
        parser.error(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.iterations * args.batch > args.sequences // 2 * 4 // 5 * 2:
        parser.error(
            f"--iterations {args.iterations} of --batch {args.batch} need more sequences than "
            f"--sequences {args.sequences} gives; raise it"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.unlearn_lr = args.lr if args.unlearn_lr is None else args.unlearn_lr
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.test_sequences = args.test_sequences or (args.sequences // (50 if args.quick else 5))
    args.jobs = args.jobs or (max(1, min(args.seeds, os.cpu_count() - 1)) if args.device == "cuda" else 1)
    args.panels = {
        panel: (lengths, seen, {method: getattr(args, f"beta_{method}")[i] for method in METHODS})
        for i, (panel, (lengths, seen, _)) in enumerate(PANELS.items())
        if args.panel in ("both", panel)
    }
    if not args.out:
        parser.error("--out is empty; name a folder")
    args.out = Path(args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / ".writable").touch()
        (args.out / ".writable").unlink()
    except OSError as error:
        parser.error(f"--out: cannot write to {args.out} ({error.strerror}); name another folder")
    return args


def finished(args, seed, settings):
    """A finished seed from --out, or None if it is absent or was run with other settings."""
    try:
        saved = json.loads((args.out / f"seed{seed}.json").read_text(encoding="utf-8"))
        return saved["result"] if saved["settings"] == settings else None
    except (OSError, ValueError, KeyError):
        return None


def run_seeds(args, seeds, keep):
    """keep(seed, result) for each of `seeds`, args.jobs at a time."""
    if args.jobs == 1:
        for seed in tqdm(seeds, desc="seeds", position=1, disable=None):
            keep(seed, run_seed(args, seed))
        return
    # spawn: CUDA does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_seed, args, seed, 1 + seed): seed for seed in seeds}
        try:
            ended = concurrent.futures.as_completed(waiting)
            for done in tqdm(ended, total=len(seeds), desc="seeds", disable=None):
                keep(waiting[done], done.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(argv=None):
    args = parse_args(argv)
    transformers.logging.set_verbosity_error()
    apart = "seeds", "out", "jobs", "quick"  # what does not change a seed's numbers
    settings = {name: value for name, value in vars(args).items() if name not in apart}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    results = {seed: finished(args, seed, settings) for seed in range(args.seeds)}
    missing, started = [seed for seed, result in results.items() if result is None], time.perf_counter()
    if len(missing) < args.seeds:
        print(f"{args.seeds - len(missing)} of {args.seeds} seeds were already in {args.out}")

    def keep(seed, result):
        results[seed] = result
        temporary = args.out / f"seed{seed}.tmp"
        temporary.write_text(json.dumps({"settings": settings, "result": result}), encoding="utf-8")
        temporary.replace(args.out / f"seed{seed}.json")

    try:
        run_seeds(args, missing, keep)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished seeds are in {args.out}, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - started

    results = [results[seed] for seed in range(args.seeds)]
    betas = {panel: chosen for panel, (_, _, chosen) in args.panels.items()}
    print(report(results, betas))
    draw_fig6(results, betas, args.out / "fig6.png")
    draw_power(results, betas, args.out / "power.png")
    content = {"settings": settings, "betas": betas, "summary": summarize(results, betas), "seeds": results}
    (args.out / "markov.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    if missing:
        print(f"{len(missing)} seeds in {seconds:.0f} s on {args.device}, {args.jobs} at a time")
    print(f"fig6.png, power.png, markov.json are in {args.out}")


if __name__ == "__main__":
    main()
