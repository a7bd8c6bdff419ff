"""The synthetic study: chains and data, each step against one taken by hand, the paths and what is said of them."""

import concurrent.futures
import json
import math
import pickle

import matplotlib.figure
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import refused
from tqdm import tqdm

import markov
from machinery.statistics import interval

SMALL = [
    "--sequences",
    "200",
    "--layers",
    "1",
    "--width",
    "16",
    "--epochs",
    "1",
    "--iterations",
    "4",
    "--batch",
    "2",
    "--probes",
    "6",
    "--device",
    "cpu",
    "--jobs",
    "1",
]
CHAINS = "retain", "forget1", "forget2"
BAR = tqdm(disable=True)
BETAS = {"left": {"npo": 0.2, "simnpo": 4}, "right": {"npo": 1, "simnpo": 4}}


def resolved(out, *flags):
    return markov.resolve(markov.build_parser().parse_args([*flags, "--out", str(out)]))


def small(tmp_path, *more):
    return resolved(tmp_path / "out", *SMALL, *more)


# ------------------------------------------------------------------ chains, data, models


@pytest.mark.parametrize("leakage", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("name, first", [("retain", 0), ("forget1", 3), ("forget2", 6)])
def test_chains_are_those_of_appendix_b(name, first, leakage):
    initial, transition = markov.chain(name, leakage)
    inside = np.isin(np.arange(10), range(first, first + 3))
    expected = np.where(inside, (1 - leakage) / 3, leakage / 7)
    assert initial.numpy() == pytest.approx(expected) and initial.dtype == torch.float64
    assert transition.numpy() == pytest.approx(np.where(inside[:, None], expected, 0.1))


def test_the_sampler_follows_the_chain():
    initial, transition = markov.chain("forget1", 0.2)
    states = markov.sample(initial, transition, 5000, 9, torch.Generator().manual_seed(0)).numpy()
    assert states.shape == (5000, 9)
    before, after = states[:, :-1].ravel(), states[:, 1:].ravel()
    for found, expected in [(states[:, 0], initial), *((after[before == i], transition[i]) for i in range(10))]:
        assert scipy.stats.chisquare(np.bincount(found, minlength=10), len(found) * expected.numpy()).pvalue > 1e-3


def test_data_is_cut_once_into_training_and_test_sequences(tmp_path):
    args = small(tmp_path, "--sequences", "30", "--test-sequences", "4", "--leakage", "0.3")
    data = markov.make_data({"retain": 20, "forget1": 20, "forget2": 5}, args, 3)
    generator = torch.Generator().manual_seed(3)
    for name, length, train, test in (("retain", 20, 24, 4), ("forget1", 20, 12, 2), ("forget2", 5, 12, 2)):
        whole = markov.sample(*markov.chain(name, 0.3), train * 5 // 4, length, generator)
        assert [*map(len, data[name])] == [train, test]
        assert torch.equal(torch.cat(data[name]), whole[: train + test])


LINEAR = 1 / 8 / 3**0.5


@pytest.mark.parametrize(
    "flags, token, position, attention, last, head",
    [
        ("--init torch", 1, 1, LINEAR, LINEAR / 2, LINEAR),
        ("--init torch --embedding-std 0.5", 0.5, 1, LINEAR, LINEAR / 2, LINEAR),
        ("--init gpt2", 0.02, 0.02, 0.02, 0.02 / 2**0.5, 0.02),
        ("--init gpt2 --embedding-std 0.5", 0.5, 0.02, 0.02, 0.02 / 2**0.5, 0.02),
    ],
)
def test_scales_of_the_initializations(flags, token, position, attention, last, head, tmp_path):
    """PyTorch's: N(0, 1) and U(±1/√fan_in), fan_in 64 and for the last layer of the MLP 4 × 64, biases too."""
    model = markov.build_model(small(tmp_path, "--width", "64", *flags.split()), 0)
    block = model.transformer.h[0]
    weights = [
        module.weight.std().item()
        for module in (model.transformer.wte, model.transformer.wpe, block.attn.c_attn, block.mlp.c_proj, model.lm_head)
    ]
    assert weights == pytest.approx([token, position, attention, last, head], rel=0.12)
    assert block.attn.c_attn.bias.std().item() == pytest.approx(attention if "torch" in flags else 0, rel=0.2)
    assert (model.lm_head.weight is model.transformer.wte.weight) == (flags == "--init gpt2")


# ------------------------------------------------------------------ training, by hand in float64


def log_p(model, row):
    """log πθ of each state of a sequence but the first, which is alone in its batch: no padding."""
    log = model(row[None]).logits[0].log_softmax(-1)
    return torch.stack([log[t, state] for t, state in enumerate(row[1:])])


def test_pretraining_is_cross_entropy_over_a_batchs_tokens_by_hand(tmp_path):
    args = small(tmp_path, "--pretrain-batch", "7", "--epochs", "2", "--lr", "0.01")
    parts = [
        torch.randint(0, 10, size, generator=torch.Generator().manual_seed(1)) for size in ((6, 9), (5, 5), (4, 9))
    ]
    model, plain = (markov.build_model(args, 0).double() for _ in range(2))
    markov.pretrain(model, parts, args, 3, BAR)
    rows, generator = [*parts[1], *parts[0], *parts[2]], torch.Generator().manual_seed(3)  # the shorter first
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for batch in [batch for _ in range(2) for batch in torch.randperm(15, generator=generator).split(7)]:
        optimizer.zero_grad()
        (-torch.cat([log_p(plain, rows[i]) for i in batch]).mean()).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=False):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def divergence(model, rows, transition):
    """KL(true ‖ model) of each transition, and their mean."""
    found = []
    for row in rows:
        said = model(row[None]).logits[0].softmax(-1).tolist()
        found += [
            sum(p * math.log(p / q) for p, q in zip(transition[state].tolist(), said[t], strict=False) if p)
            for t, state in enumerate(row[:-1])
        ]
    return np.mean(found)


@pytest.mark.parametrize("method, beta, leakage", [("npo", 0.7, 0.0), ("simnpo", 4.0, 0.3)])
def test_unlearning_is_three_steps_taken_by_hand(method, beta, leakage, tmp_path):
    """The path of KL, weights and powers: sequence by sequence, without padding, from the equations."""
    args = small(
        tmp_path,
        "--leakage",
        str(leakage),
        "--sequences",
        "40",
        "--iterations",
        "3",
        "--batch",
        "8",
        "--unlearn-lr",
        "0.01",
        "--probes",
        "3",
    )
    reference, model = (markov.build_model(args, 0).double() for _ in range(2))
    data = markov.make_data(args.panels["left"][0], args, 5)
    path = markov.unlearn(reference, data, method, beta, args, 7, BAR)
    forget = [*data["forget1"][0], *data["forget2"][0]]
    order = torch.randperm(32, generator=torch.Generator().manual_seed(7)).tolist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def margin(row):
        logp, count = log_p(model, row).sum(), len(row) - 1
        return beta * (logp - log_p(reference, row).sum().detach() if method == "npo" else logp / count)

    def loss(rows):
        return sum(-2 / beta * torch.log(torch.sigmoid(-margin(row))) for row in rows)

    assert {len(forget[i]) for i in order[:8]} == {5, 20}
    for step in range(4):
        for name in markov.FORGET:
            probes = data[name][0][:3]
            weights = [
                2 * torch.sigmoid(margin(row)).item() / (len(row) - 1 if method == "simnpo" else 1) for row in probes
            ]
            gradients = torch.autograd.grad(loss(probes), [*model.parameters()])
            power = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
            assert path[f"weight_{name}"][step] == pytest.approx(np.mean(weights), rel=1e-9)
            assert path[f"power_{name}"][step] == pytest.approx(power, rel=1e-9)
        if step != 1:
            for name in CHAINS:
                kl = divergence(model, data[name][1], markov.chain(name, leakage)[1])
                assert path[name][path["iteration"].index(step)] == pytest.approx(kl, rel=1e-5)
        optimizer.zero_grad()
        (loss([forget[i] for i in order[8 * step : 8 * step + 8]]) / 8).backward()
        optimizer.step()
    assert path["iteration"] == [0, 2, 3] and [*map(len, path.values())] == [3] * 4 + [4] * 4


# ------------------------------------------------------------------ the command


GOLDEN_FLAGS = [
    *SMALL,
    "--iterations",
    "9",
    "--lr",
    "3e-3",
    "--unlearn-lr",
    "1e-3",
    "--pretrain-batch",
    "16",
    "--seeds",
    "2",
    "--leakage",
    "0.1",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a tiny run of the command."""
    out = tmp_path_factory.mktemp("study")
    markov.main([*GOLDEN_FLAGS, "--out", str(out)])
    return out


GOLDEN = {
    "retrained": [0.343766, 0.970418, 1.037186, 0.343766, 1.050318, 0.914639],
    "left npo 0.2": [0.198523, 0.642451, 1.052994, 0.815172, 0.951057, 67.0596, 41.1379],
    "left simnpo 4": [0.200915, 0.629056, 1.029482, 8.73571e-06, 8.01715e-06, 6.95436e-04, 3.45029e-04],
    "right npo 1": [0.257699, 0.743642, 1.066322, 0.300194, 0.106423, 26.5551, 17.1256],
    "right simnpo 4": [0.263494, 0.742787, 1.021627, 6.94577e-06, 1.36173e-06, 7.46464e-04, 2.07748e-04],
}


def test_a_tiny_run_gives_the_numbers_that_it_gave(study):
    """Of seed 1: retrained KL, and each path's last KL, weights and powers. Stored; the steps are by hand above."""
    content = json.loads((study / "markov.json").read_text())
    retrained, *paths = (content["seeds"][1][part] for part in ("retrained", *BETAS))
    found = {f"{panel} {key}": path for panel, runs in zip(BETAS, paths, strict=False) for key, path in runs.items()}
    last = [*CHAINS, *(f"{what}_{name}" for what in ("weight", "power") for name in CHAINS[1:])]
    numbers = {"retrained": [retrained[panel][name] for panel in BETAS for name in CHAINS]} | {
        key: [path[name][-1] for name in last] for key, path in found.items()
    }
    assert [*numbers] == [*GOLDEN] and content["settings"]["lr"] == 3e-3
    for key, expected in GOLDEN.items():
        assert numbers[key] == pytest.approx(expected, rel=2e-3), key
    for figure in ("fig6.png", "power.png"):
        assert (study / figure).read_bytes()[:4] == b"\x89PNG"


def test_one_panel_alone_and_in_the_search_for_beta_is_the_same(study, tmp_path, monkeypatch):
    monkeypatch.setattr(markov, "GRID", {"npo": (0.2, 1.0), "simnpo": (4.0, 8.0)})
    both = json.loads((study / "seed1.json").read_text())["result"]
    alone = markov.run_seed(resolved(tmp_path, *GOLDEN_FLAGS, "--panel", "left", "--grid"), 1)
    assert set(alone["left"]) == {f"{method} {beta:g}" for method in markov.GRID for beta in markov.GRID[method]}
    assert alone["retrained"]["left"] == both["retrained"]["left"] and both["left"].items() <= alone["left"].items()
    alone = markov.run_seed(resolved(tmp_path, *GOLDEN_FLAGS, "--panel", "right"), 1)
    assert alone["retrained"]["right"] == both["retrained"]["right"] and alone["right"] == both["right"]


@pytest.mark.parametrize("text", ["null", "[]", "{", "{}", "[" * 99999], ids=lambda text: text[:2])
def test_a_seed_whose_file_is_damaged_is_not_finished(text, tmp_path):
    (tmp_path / "seed0.json").write_text(text)
    assert markov.finished(resolved(tmp_path), 0, {}) is None


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    command, ran = [*SMALL, "--out", str(tmp_path), "--seeds", "2"], []

    def run_seed(args, seed, position=0):
        ran.append(seed)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return pickle.loads(pickle.dumps((args, made_up()[seed])))[1]  # as processes hand them over

    monkeypatch.setattr(markov, "run_seed", run_seed)
    monkeypatch.setattr(markov, "figure", lambda *_, **__: None)
    monkeypatch.setattr(
        concurrent.futures, "ProcessPoolExecutor", lambda jobs, _: concurrent.futures.ThreadPoolExecutor(1)
    )
    with pytest.raises(SystemExit) as stop:
        markov.main(command)
    assert stop.value.code == 130 and (tmp_path / "seed0.json").exists() and not (tmp_path / "markov.json").exists()
    for more in ([], ["--jobs", "2"], ["--lr", "1e-3"], ["--lr", "1e-3", "--init", "gpt2", "--jobs", "2"]):
        markov.main(command + more)
    assert ran == [0, 1, 1, 0, 1, 0, 1]  # finished seeds are not run again; other settings are another study
    content = json.loads((tmp_path / "markov.json").read_text())
    assert content["seeds"] == made_up()[:2] and markov.report(content["seeds"], BETAS) in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            "",
            dict(
                layers=4,
                heads=4,
                width=128,
                lr=5e-4,
                unlearn_lr=5e-4,
                epochs=5,
                pretrain_batch=128,
                iterations=50,
                batch=4,
                leakage=0.2,
                sequences=10000,
                test_sequences=2000,
                probes=32,
                eval_every=2,
                seeds=3,
                init="torch",
                embedding_std=None,
            ),
        ),
        ("--quick", dict(seeds=1, test_sequences=200)),
        ("--quick --seeds 2 --lr 1", dict(seeds=2, lr=1, unlearn_lr=1)),
        ("--lr 1 --unlearn-lr 0", dict(lr=1, unlearn_lr=0)),
    ],
)
def test_defaults_are_the_papers(flags, expected, tmp_path):
    args = vars(resolved(tmp_path, *flags.split()))
    assert {name: args[name] for name in expected} == expected


def test_panels_are_the_papers(tmp_path):
    def panels(*flags):
        return resolved(tmp_path, *flags).panels

    left, right = dict(zip(CHAINS, (20, 20, 5), strict=False)), dict(zip(CHAINS, (20, 20, 20), strict=False))
    assert panels() == {"left": (left, CHAINS, BETAS["left"]), "right": (right, CHAINS[:2], BETAS["right"])}
    changed = panels("--beta-npo", "5", "6", "--beta-simnpo", "7", "8", "--panel", "right")
    assert changed == {"right": (right, CHAINS[:2], {"npo": 6, "simnpo": 8})}


# ------------------------------------------------------------------ what the paths say


def made_up():
    """Results of four seeds in which every quantity goes in a straight line; in one, Forget2 gets less far than 0.8."""
    rng = np.random.default_rng(0)

    def line(low, high):
        start, end = low * rng.uniform(0.8, 1.2), high * rng.uniform(0.8, 1.2)
        return [start, (start + end) / 2, end]

    results = []
    for seed in range(4):
        result = {"retrained": {panel: {name: rng.uniform(0.3, 0.5) for name in CHAINS} for panel in BETAS}}
        for panel, betas in BETAS.items():
            result[panel] = {
                f"{method} {beta}": {
                    "iteration": [0, 2, 4],
                    "retain": line(0.05, 0.4),
                    "forget1": line(0.1, 1.2),
                    "forget2": line(0.2, 0.6 if (seed, method) == (2, "simnpo") else 1.1),
                    "power_forget1": rng.uniform(1, 2, 5).tolist(),
                    "power_forget2": rng.uniform(1, 2, 5).tolist(),
                }
                for method, beta in betas.items()
            }
        results.append(result)
    return results


def reading(path, awaited, level, quantity):
    """By the rule of three; None if the level is not reached."""
    way = (level - path[awaited][0]) / (path[awaited][-1] - path[awaited][0])
    return path[quantity][0] + way * (path[quantity][-1] - path[quantity][0]) if way <= 1 else None


def t_interval(values):
    bounds = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return [np.mean(values), bounds.low, bounds.high]


PAYS = "NPO pays more retain distance"
# panel, awaited, read then; its name in the table, and the claim that NPO's is larger
READ = [
    ("left", "forget1", "retain", "retain distance", None),
    ("left", "forget2", "forget1", "KL on Forget1", None),
    ("left", "forget2", "retain", "retain distance", f"L1: to forget the short chain, {PAYS}"),
    ("left", "forget2", "iteration", "iterations", None),
    ("right", "forget1", "retain", "retain distance", f"L2: to forget Forget1, {PAYS}"),
    ("right", "forget1", "forget2", "KL on Forget2", "L2: NPO forgets Forget2, never learnt, further than SimNPO does"),
]


@pytest.mark.parametrize("panel, awaited, quantity, what, claim", READ)
def test_the_methods_are_paired_by_seed_at_equal_forgetting(panel, awaited, quantity, what, claim):
    results, text, verdicts = made_up(), markov.report(made_up(), BETAS), []
    assert text.count(" of 4 |") == 2 * len(READ)
    for name, fixed in (("the retrained model's KL", None), ("KL 0.8", 0.8)):
        pairs = [
            [
                reading(path, awaited, fixed or result["retrained"][panel][awaited], quantity)
                for path in result[panel].values()
            ]
            for result in results
        ]
        npo, simnpo = np.transpose([pair for pair in pairs if None not in pair])
        ratio = np.exp(t_interval(np.log(npo / simnpo)))
        shown = "{:.3f} [{:.3f}, {:.3f}] | {:.3f} [{:.3f}, {:.3f}] | {:.2f} [{:.2f}, {:.2f}]".format(
            *t_interval(npo), *t_interval(simnpo), *ratio
        )
        assert f"| {panel} | {what} when {awaited.title()} reaches {name} | {shown} | {len(npo)} of 4 |" in text
        verdicts.append(f"{markov.verdict({'ratio': ratio})} at {name.removeprefix('KL ')}")
    assert not claim or f"\n{claim}: {', '.join(verdicts)}\n" in text


def test_the_report_ends_with_forget2s_share_of_the_first_gradient():
    results = made_up()
    lines = markov.report(results, BETAS).splitlines()[-4:]
    for line, (panel, method) in zip(
        lines, [(panel, method) for panel in BETAS for method in BETAS[panel]], strict=False
    ):
        powers = [
            [result[panel][f"{method} {BETAS[panel][method]}"][f"power_{name}"][0] for name in CHAINS[1:]]
            for result in results
        ]
        shown = "{:.3f} [{:.3f}, {:.3f}]".format(*t_interval([two / (one + two) for one, two in powers]))
        assert line == f"{panel}, {method}: Forget2's share of the gradient at the first iteration {shown}"


@pytest.mark.parametrize(
    "ratio, word",
    [
        ((3, 1.1, 9), "holds"),
        ((3, 1, 9), "can't tell"),
        ((1, 0.5, 2), "can't tell"),
        ((0.5, 0.2, 1), "can't tell"),
        ((0.5, 0.2, 0.9), "fails"),
        ((3, None, None), "can't tell"),
        (None, "can't tell"),
    ],
)
def test_verdicts_follow_the_interval(ratio, word):
    assert markov.verdict({"ratio": ratio} if ratio else {}) == word


def test_one_seed_has_no_interval_and_none_that_gets_there_no_number():
    assert interval([3.0]) == (3.0, None, None)
    rows = markov.summarize(made_up()[2:3], BETAS)
    assert rows[0]["ratio"][1:] == (None, None)
    for i in (3, 5, 7):
        assert rows[i].keys().isdisjoint({"npo", "ratio"}) and rows[i]["seeds"] == [0, 1]


def test_weights_that_have_died_to_0_share_nothing(monkeypatch):
    drawn, results = [], made_up()
    for name in CHAINS[1:]:
        results[0]["left"]["simnpo 4"][f"power_{name}"][0] = 0.0
    assert "left, simnpo: Forget2's share of the gradient at the first iteration –\n" in markov.report(results, BETAS)
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    markov.draw_power(results, BETAS, "power.png")
    (line,) = (line for line in drawn[0].axes[0].lines if line.get_label() == "SimNPO")
    assert np.isnan(line.get_ydata()[0]) and np.isfinite(line.get_ydata()[1:]).all()


@pytest.mark.parametrize(
    "level, quantity, value",
    [
        (0.5, "retain", 0.3),
        (0.7, "retain", 0.5),
        (0.5, "logged", 30),
        (0.3, "logged", 20),
        (0.05, "retain", 0.2),
        (0.05, "logged", 0),
        (0.9, "retain", None),
    ],
)
def test_a_level_is_crossed_where_a_chain_first_reaches_it(level, quantity, value):
    path = {
        "iteration": [0, 2, 4, 6, 8],
        "forget1": [0.1, 0.3, 0.7, 0.2, 0.8],
        "retain": [0.2, 0.1, 0.5, 3, 4],
        "logged": [0, 50, 20, 90, 40, 90, 9, 9, 9],
    }
    assert markov.reading(path, "forget1", level, quantity) == (value if value is None else pytest.approx(value))


def test_the_figures_show_what_the_paths_say(monkeypatch):
    drawn, results = [], made_up()
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    markov.draw_fig6(results, BETAS, "fig6.png")
    markov.draw_power(results, BETAS, "power.png")
    for panel, tradeoff, power in zip(BETAS, *(figure.axes for figure in drawn), strict=True):
        assert tradeoff.get_title() == power.get_title() == markov.TITLES[panel]
        curves = {line.get_label(): line for line in tradeoff.lines}
        for key, method in zip(results[0][panel], ("NPO", "SimNPO"), strict=False):
            paths = [result[panel][key] for result in results]
            for name in CHAINS[1:]:
                x, y = curves[f"{method}, {name.title()}"].get_data()
                assert x[0] == pytest.approx(0.025 * math.ceil(np.mean([path[name][0] for path in paths]) / 0.025))
                assert y[x.searchsorted(0.4)] == pytest.approx(
                    np.mean([reading(path, name, 0.4, "retain") for path in paths])
                )
                assert np.isnan(y[-1])
            (line,) = (line for line in power.lines if line.get_label() == method)
            one, two = ([path[f"power_{name}"] for path in paths] for name in CHAINS[1:])
            assert line.get_ydata() == pytest.approx(np.mean(np.array(two) / np.add(one, two), axis=0))
        for name in CHAINS[1:]:
            expected = [np.mean([result["retrained"][panel][each] for result in results]) for each in (name, "retain")]
            assert np.ravel(curves[f"retrained, {name.title()}"].get_data()) == pytest.approx(expected)


def test_a_curve_is_the_mean_with_a_band_and_has_a_gap_where_a_seed_is_missing():
    axis = matplotlib.figure.Figure().subplots()
    markov.draw(axis, [0, 1], [[1, 2], [3, None]], "x", color="C0")
    assert axis.lines[0].get_ydata() == pytest.approx([2, math.nan], nan_ok=True)
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert [band.min(), band.max()] == pytest.approx(t_interval([1, 3])[1:])


REFUSED = """--seeds 0 | --sequences -5 | --layers 0 | --width 0 | --heads 3 | --epochs 0 | --batch 0 | --iterations -1
    | --test-sequences 0 | --leakage 1 | --leakage -0.1 | --leakage nan | --beta-npo -1 1 | --beta-simnpo 4 inf
    | --lr -1 | --iterations 500 --sequences 200 | --init zeros | --out /proc/none/below | --out= | --jobs 0
    | --embedding-std -1 | --panel middle"""


@pytest.mark.parametrize("flags", REFUSED.split("|"))
def test_bad_input_is_one_line_and_exit_two(flags, nothing_written, capsys):
    refused(markov.main, flags.split(), capsys, flags.split()[0].strip("="))
