"""The paper's synthetic study (Sec. 5, Fig. 6, App. B): where does unlearning power go?

    python markov.py                 both panels of Fig. 6, three seeds; figures, table, markov.json
    python markov.py --quick         one seed, fewer test sequences
    python markov.py --grid          every β of the search that App. B mentions, besides the chosen ones

Three Markov chains share ten states. *retain* wanders among states 1 to 3, *Forget1* among 4 to 6,
*Forget2* among 7 to 9; each leaves its states now and then, with probability ε. A small GPT-2 learns
to predict them, then NPO and SimNPO make it forget the last two. The true transition probabilities
are known, so how much is forgotten, and at what cost, is measured exactly: the KL divergence
KL(true transition ‖ model), in nats, mean over the transitions of test sequences. On a forget chain
it is the paper's *forget quality* (higher is better; TOFU's p-value of that name is another thing), on
retain the *retain distance* (lower is better).

    left panel   (L1)  lengths 20, 20, 5: does the short chain get forgotten too?
    right panel  (L2)  lengths 20, 20, 20, and Forget2 was never learnt: is it left in peace?

Lengths are in states; |y| is one less, since the first state is the prompt. States count from 0 in the code. Of the
other files only losses.py matters here. Besides Fig. 6 it draws how the gradient is shared between the two chains.
"""

import collections
import concurrent.futures
import copy
import json
import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from tqdm import tqdm

import losses
from machinery.command import OneLineParser, number, run_command
from machinery.inputs import InputError, check_writable
from machinery.statistics import bands, crossing, interval

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
HIGH = 0.8  # methods are compared at the retrained model's KL on a forget chain, and at this one
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
    """{chain: (training, test sequences)}: 80% and at most 20% of args.sequences, of a forget chain of half as many."""
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

    PyTorch draws embeddings from N(0, 1) and linear layers from U(±1/√fan_in); GPT-2 draws weights from
    N(0, 0.02²), those into the residual stream smaller by √(2·layers), and ties its output layer to the
    token embedding. --embedding-std redraws the token embedding alone, and unties. results/README.md
    tells what hangs on it.
    """
    torch.manual_seed(seed)
    longest = max(max(lengths.values()) for lengths, _, _ in args.panels.values())
    config = transformers.GPT2Config(
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
    model = transformers.GPT2LMHeadModel(config)
    if args.init == "torch":
        model.apply(redraw)
    if args.embedding_std is not None:
        torch.nn.init.normal_(model.transformer.wte.weight, std=args.embedding_std)
    return model


def redraw(module):
    """Draw a module's weights again, at PyTorch's default scales, in place."""
    if isinstance(module, torch.nn.Embedding):
        torch.nn.init.normal_(module.weight)
    elif isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D)):
        # transformers' Conv1D keeps its weight as [in, out], Linear as [out, in]
        fan_in = module.weight.shape[1 if isinstance(module, torch.nn.Linear) else 0]
        bound = 1 / math.sqrt(fan_in)
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)


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

    data as from `make_data`. {quantity: list of numbers}. At `iteration`, every args.eval_every and after the last:
    retain, forget1, forget2 (KL). At every iteration, before its step: weight_ and power_ of each forget chain
    (see `gradient_power`).
    """
    model, device = copy.deepcopy(start), start.device
    tests, transitions = tests_of(data, args)

    # both forget chains as one set; shorter sequences are filled up with state 0, without loss there
    sequences = [row for name in FORGET for row in data[name][0]]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0).to(device)
    labels = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-100).to(device)
    # one seed for both methods: they see the same batches, so that their difference is not luck
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).to(device)

    # some sequences of each chain, for the gradient's share
    probes = {name: data[name][0][: args.probes].to(device) for name in FORGET}
    with torch.no_grad():
        probe_ref = {name: losses.sequence_logp(start(rows).logits, rows)[0] for name, rows in probes.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.unlearn_lr, fused=True)
    path = collections.defaultdict(list)
    for iteration in range(args.iterations + 1):
        # measure
        if iteration % args.eval_every == 0 or iteration == args.iterations:
            path["iteration"].append(iteration)
            for name, distance in distances(model, tests, transitions).items():
                path[name].append(distance)
        weights, norms = gradient_power(model, probes, probe_ref, method, beta)
        for name in FORGET:
            path[f"weight_{name}"].append(weights[name])
            path[f"power_{name}"].append(norms[name])
        bar.update()
        if iteration == args.iterations:
            return dict(path)

        # step
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


def run_seed(args, seed, position=0):
    """All of one seed: {"retrained": {panel: {chain: KL}}, panel: {"npo 0.2": path, "simnpo 4": path, …}}."""
    if args.device == "cpu" and args.jobs > 1:
        torch.set_num_threads(max(1, os.cpu_count() // args.jobs))
    # what is unlearnt in each panel: (method, β)
    settings = {}
    for panel, (_, _, chosen) in args.panels.items():
        betas = {method: {chosen[method], *(GRID[method] if args.grid else ())} for method in METHODS}
        settings[panel] = [(method, beta) for method in METHODS for beta in betas[method]]

    # data; both panels have the left one's retain data, so that one retrained model does
    data, seen = {}, {}  # seen: by each pretraining, of which the retrained model's is the first
    for panel, (lengths, chains, _) in args.panels.items():
        data[panel] = make_data(lengths, args, 1000 * seed + [*PANELS].index(panel))
        data[panel] |= make_data({"retain": lengths["retain"]}, args, 1000 * seed)
        seen.setdefault("retrained", [data[panel]["retain"][0]])
        seen[panel] = [data[panel][name][0] for name in chains]

    steps = sum(args.epochs * math.ceil(sum(map(len, parts)) / args.pretrain_batch) for parts in seen.values())
    steps += sum(map(len, settings.values())) * (args.iterations + 1)
    result = {}
    with tqdm(total=steps, desc=f"seed {seed}", position=position, leave=False, disable=None) as bar:
        for job, sequences in seen.items():
            model = build_model(args, seed).to(args.device)
            pretrain(model, sequences, args, seed, bar)
            if job == "retrained":
                result[job] = {panel: distances(model, *tests_of(data[panel], args)) for panel in args.panels}
                continue
            result[job] = {
                f"{method} {beta:g}": unlearn(model, data[job], method, beta, args, seed, bar)
                for method, beta in settings[job]
            }
    return result


# ------------------------------------------------------------------ what the paths say


def reading(path, chain_name, level, quantity="retain"):
    """`quantity` when a chain's KL first reaches `level`, interpolated; None if it never does.

    Quantities that are logged at every iteration are read at the measured ones.
    """
    reached, values = path[chain_name], path[quantity]
    if len(values) != len(reached):
        values = [values[i] for i in path["iteration"]]
    return crossing(reached, level, values)


def ratio_interval(above, below):
    """(geometric mean, lower, upper) of paired ratios, all positive: the interval is of their logarithms."""
    bounds = interval(np.log(above) - np.log(below))
    return tuple(None if bound is None else math.exp(bound) for bound in bounds)


class Reading(NamedTuple):
    """A number of a path at the moment when a chain is forgotten, and the claim that NPO's is the larger one."""

    panel: str
    awaited: str  # the chain
    quantity: str  # of the path
    what: str  # its name
    claim: str | None = None


PAYS = "NPO pays more retain distance"
PUSHES = "NPO forgets Forget2, never learnt, further than SimNPO does"
READINGS = [
    Reading("left", "forget1", "retain", "retain distance"),
    Reading("left", "forget2", "retain", "retain distance", f"L1: to forget the short chain, {PAYS}"),
    Reading("left", "forget2", "forget1", "KL on Forget1"),
    Reading("left", "forget2", "iteration", "iterations"),
    Reading("right", "forget1", "retain", "retain distance", f"L2: to forget Forget1, {PAYS}"),
    Reading("right", "forget1", "forget2", "KL on Forget2", f"L2: {PUSHES}"),
]


def paths_of(results, panel, betas, method):
    """A method's path of each seed."""
    return [result[panel][f"{method} {betas[panel][method]:g}"] for result in results]


def summarize(results, betas):
    """Each of READINGS when its chain reaches the retrained model's KL, and HIGH, paired by seed.

    A list of {panel, what, claim, level, npo, simnpo, ratio: an interval each, seeds: [reached, all]}.
    """
    rows = []
    for each in [each for each in READINGS if each.panel in betas]:
        retrained = [result["retrained"][each.panel][each.awaited] for result in results]
        rows.append(row_of(each, "the retrained model's KL", retrained, results, betas))
        rows.append(row_of(each, f"KL {HIGH}", [HIGH] * len(results), results, betas))
    return rows


def row_of(each, level, values, results, betas):
    """A row of `summarize`. level: the name of the moment; values: the awaited chain's KL then, of every seed."""
    numbers = []
    for method in METHODS:
        paths = paths_of(results, each.panel, betas, method)
        numbers.append(
            [reading(path, each.awaited, value, each.quantity) for path, value in zip(paths, values, strict=True)]
        )
    pairs = [pair for pair in zip(*numbers, strict=True) if None not in pair]  # seeds in which both get there
    row = {
        "panel": each.panel,
        "what": f"{each.what} when {NAMES[each.awaited]} reaches {level}",
        "claim": each.claim,
        "level": level,
        "seeds": [len(pairs), len(results)],
    }
    return row | compared(pairs)


def compared(pairs):
    """{method: interval, ratio: interval} of (NPO's, SimNPO's number) of each seed; {} of none."""
    if not pairs:
        return {}
    npo, simnpo = zip(*pairs, strict=True)
    intervals = {"npo": interval(npo), "simnpo": interval(simnpo)}
    if min(npo + simnpo) > 0:  # 0 iterations: it was there before the first
        intervals["ratio"] = ratio_interval(npo, simnpo)
    return intervals


def verdict(row):
    """holds, fails or can't tell: is NPO's number larger than SimNPO's, paired by seed, at 95%?"""
    _, low, high = row.get("ratio", (None, None, None))
    return "can't tell" if low is None or low <= 1 <= high else "holds" if low > 1 else "fails"


def shown(values, form=".3f"):
    """An interval as text; – for None."""
    if values is None:
        return "–"
    mean, low, high = values
    return format(mean, form) + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def report(results, betas):
    """The table and the claims, as text."""
    # a line of the table per reading, and of each claim the verdict at every level
    claims = collections.defaultdict(list)
    lines = ["| panel | quantity | NPO | SimNPO | NPO / SimNPO | seeds |", "|---|---|---|---|---|---|"]
    for row in summarize(results, betas):
        npo, simnpo, ratio = shown(row.get("npo")), shown(row.get("simnpo")), shown(row.get("ratio"), ".2f")
        seeds = "{} of {}".format(*row["seeds"])
        lines.append(f"| {row['panel']} | {row['what']} | {npo} | {simnpo} | {ratio} | {seeds} |")
        if row["claim"]:
            claims[row["claim"]].append(f"{verdict(row)} at {row['level'].removeprefix('KL ')}")
    lines += ["", "mean [95% interval over seeds]; the ratio is paired by seed (geometric mean)", ""]
    lines += [f"{claim}: {', '.join(verdicts)}" for claim, verdicts in claims.items()]

    # how the first gradient is shared
    for panel in betas:
        for method in METHODS:
            first = [power_share(path)[0] for path in paths_of(results, panel, betas, method)]
            share = shown(None if None in first else interval(first))
            lines.append(f"{panel}, {method}: Forget2's share of the gradient at the first iteration {share}")
    return "\n".join(lines)


def power_share(path):
    """Forget2's share of the gradient at every iteration: its norm over the sum of both chains' norms; None where both
    weights have died to 0."""
    powers = zip(path["power_forget1"], path["power_forget2"], strict=True)
    return [second / (first + second) if first + second else None for first, second in powers]


# ------------------------------------------------------------------ figures

TITLES = {"left": "Forget2 is short", "right": "Forget2 was never learnt"}
COLOURS = {"npo": "C0", "simnpo": "C2"}  # as in methods.py
LINES = {"forget1": "--", "forget2": "-"}
MARKERS = {"forget1": "*", "forget2": "o"}


def draw(axis, x, curves, label, **style):
    """Mean of curves over seeds, with a 95% band if there are two or more; a gap where one has None."""
    mean, low, high = bands(curves)
    axis.plot(x, mean, label=label, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def figure(path, panels, ylabel, draw_panel, **legend):
    """A PNG of a panel each, drawn by draw_panel(axis, panel)."""
    import matplotlib.figure

    whole = matplotlib.figure.Figure((5.2 * len(panels), 3.9), layout="tight")
    for axis, panel in zip(whole.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
                levels = levels[levels >= np.mean([path[name][0] for path in paths])]
                curves = [[reading(path, name, level) for level in levels] for path in paths]
                style = {"color": COLOURS[method], "linestyle": LINES[name]}
                draw(axis, levels, curves, f"{NAMES[method]}, {NAMES[name]}", **style)
        retrained = [result["retrained"][panel] for result in results]
        y = np.mean([distance["retain"] for distance in retrained])
        for name, marker in MARKERS.items():
            x = np.mean([distance[name] for distance in retrained])
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


def build_parser():
    parser = OneLineParser(prog="markov.py", description=__doc__)
    count, real = {"type": number(int, 1), "metavar": "N"}, {"type": number(float, 0), "metavar": "X"}

    add = parser.add_argument_group("what to run").add_argument
    add("--seeds", **count, help="number of seeds: 0, 1, … (default: 3; 1 with --quick)")
    add("--quick", action="store_true", help="one seed and a tenth of the test sequences; the same training")
    add("--panel", choices=("both", *PANELS), default="both", help="of Fig. 6 (default: both)")
    add("--grid", action="store_true", help="every β of GRID too, for results/markov_grid.py to choose from")
    add(
        "--jobs",
        **count,
        help="seeds run at once, a process each (default: 1 on a CPU; on a GPU, where a seed mostly waits for kernel "
        "launches, one for each CPU core but one)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: CUDA if present")
    add(
        "--out",
        default="runs/markov",
        help="folder for figures and numbers; finished seeds in it are not run again (default: %(default)s)",
    )

    add = parser.add_argument_group("chains").add_argument
    add("--leakage", **real, default=0.2, help="ε, below 1 (default: %(default)s)")
    add(
        "--sequences",
        type=number(int, 20),
        metavar="N",
        default=10000,
        help="of the retain chain, half as many of the others; 80%% train (default: %(default)s)",
    )
    add(
        "--test-sequences",
        type=number(int, 2),
        metavar="N",
        help="used of the retain chain, half of the others (default: all)",
    )

    add = parser.add_argument_group("model").add_argument
    add("--layers", **count, default=4, help="of the GPT-2 (default: %(default)s)")
    add("--heads", **count, default=4, help="of the GPT-2 (default: %(default)s)")
    add("--width", **count, default=128, help="of the GPT-2 (default: %(default)s)")
    add(
        "--init",
        choices=("torch", "gpt2"),
        default="torch",
        help="torch: PyTorch's default initialization, untied output layer. gpt2: GPT-2's own (default: torch)",
    )
    add(
        "--embedding-std",
        **real,
        help="redraw the token embedding from N(0, X²), with an output layer of its own; all else as --init says",
    )

    add = parser.add_argument_group("training").add_argument
    add("--epochs", **count, default=5, help="of pretraining (default: %(default)s)")
    add("--pretrain-batch", **count, default=128, help="sequences a pretraining step (default: %(default)s)")
    add("--lr", **real, default=5e-4, help="AdamW's learning rate (default: %(default)s)")
    add("--unlearn-lr", **real, help="the same for unlearning (default: --lr)")
    add("--iterations", **count, default=50, help="of unlearning (default: %(default)s)")
    add("--batch", **count, default=4, help="sequences an iteration (default: %(default)s)")
    for method in METHODS:
        add(
            f"--beta-{method}",
            type=number(float, 0),
            nargs=2,
            metavar=("LEFT", "RIGHT"),
            default=[betas[method] for _, _, betas in PANELS.values()],
            help="β (default: %(default)s)",
        )
    add("--eval-every", **count, default=2, help="iterations between KL measurements (default: %(default)s)")
    add(
        "--probes",
        **count,
        default=32,
        help="sequences of each forget chain that measure the gradient's share (default: %(default)s)",
    )
    return parser


def resolve(args):
    """Fill in what depends on other flags, and make the folder. InputError for what does not go together."""
    check_flags(args)

    # defaults
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.unlearn_lr = args.lr if args.unlearn_lr is None else args.unlearn_lr
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.test_sequences = args.test_sequences or max(2, args.sequences // (50 if args.quick else 5))
    if not args.jobs:
        args.jobs = max(1, min(args.seeds, os.cpu_count() - 1)) if args.device == "cuda" else 1
    args.panels = {
        panel: (lengths, chains, {method: getattr(args, f"beta_{method}")[i] for method in METHODS})
        for i, (panel, (lengths, chains, _)) in enumerate(PANELS.items())
        if args.panel in ("both", panel)
    }

    # the folder
    args.out = Path(args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make {args.out} ({error.strerror}); name another folder") from None
    check_writable(args.out)
    return args


def check_flags(args):
    """InputError for flags that do not go together."""
    if args.leakage >= 1:
        raise InputError(f"--leakage {args.leakage} must be below 1")
    if args.width % args.heads:
        raise InputError(f"--width {args.width} must be a multiple of --heads {args.heads}")
    if args.iterations * args.batch > args.sequences // 2 * 4 // 5 * 2:
        raise InputError(
            f"--iterations {args.iterations} of --batch {args.batch} need more sequences than "
            f"--sequences {args.sequences} gives; raise it"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")


def finished(args, seed, settings):
    """A finished seed from --out, or None if it is absent or was run with other settings."""
    try:
        saved = json.loads((args.out / f"seed{seed}.json").read_text(encoding="utf-8"))
        return saved["result"] if saved["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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


def study(args):
    """Run the seeds that --out lacks, and write the report, the figures and markov.json."""
    transformers.logging.set_verbosity_error()
    apart = "seeds", "out", "jobs", "quick"  # what does not change a seed's numbers
    settings = {name: value for name, value in vars(args).items() if name not in apart}
    settings = json.loads(json.dumps(settings))  # as it will be read back

    # seeds that are finished, and those that are not
    results = {seed: finished(args, seed, settings) for seed in range(args.seeds)}
    missing = [seed for seed, result in results.items() if result is None]
    started = time.perf_counter()
    if len(missing) < args.seeds:
        print(f"{args.seeds - len(missing)} of {args.seeds} seeds were already in {args.out}")

    def keep(seed, result):
        results[seed] = result
        temporary = args.out / f"seed{seed}.tmp"
        temporary.write_text(json.dumps({"settings": settings, "result": result}), encoding="utf-8")
        temporary.replace(args.out / f"seed{seed}.json")

    try:
        run_seeds(args, missing, keep)
    except KeyboardInterrupt as stop:
        stop.mend = f"finished seeds are in {args.out}, the same command goes on"
        raise
    seconds = time.perf_counter() - started

    # what they say
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


def main(argv=None):
    run_command(build_parser(), lambda args: study(resolve(args)), argv=argv)


if __name__ == "__main__":
    main()
