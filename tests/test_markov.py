"""The synthetic study: chains against App. B, sampler against the chains, the path and its summary."""
import argparse
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from tqdm import tqdm

import losses
import markov

SMALL = ["--sequences", "200", "--layers", "1", "--width", "16", "--epochs", "1", "--iterations", "4", "--batch", "2",
         "--probes", "6", "--device", "cpu", "--jobs", "1"]


def small(tmp_path, *more):
    return markov.parse_args([*SMALL, "--out", str(tmp_path / "out"), *more])


@pytest.mark.parametrize("name, designated", [("retain", (1, 2, 3)), ("forget1", (4, 5, 6)), ("forget2", (7, 8, 9))])
@pytest.mark.parametrize("leakage", [0.0, 0.2, 0.9])
def test_chains_are_those_of_appendix_b(name, designated, leakage):
    initial, transition = markov.chain(name, leakage)
    for j in range(1, 11):
        expected = (1 - leakage) / 3 if j in designated else leakage / 7
        assert initial[j - 1].item() == pytest.approx(expected, abs=1e-12)
        for i in range(1, 11):
            assert transition[i - 1, j - 1].item() == pytest.approx(expected if i in designated else 0.1, abs=1e-12)
    assert torch.allclose(transition.sum(1), torch.ones(10, dtype=torch.float64)) and initial.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", markov.DESIGNATED)
def test_sampler_follows_the_chain(name):
    initial, transition = markov.chain(name, 0.2)
    states = markov.sample(initial, transition, 5000, 9, torch.Generator().manual_seed(0)).numpy()
    assert states.shape == (5000, 9)
    first = np.bincount(states[:, 0], minlength=10)
    assert scipy.stats.chisquare(first, 5000 * initial.numpy()).pvalue > 1e-3
    before, after = states[:, :-1].ravel(), states[:, 1:].ravel()
    for i in range(10):
        counts = np.bincount(after[before == i], minlength=10)
        assert scipy.stats.chisquare(counts, counts.sum() * transition[i].numpy()).pvalue > 1e-3
    # the test has teeth: another chain's probabilities are refused
    other = markov.chain("forget1" if name != "forget1" else "retain", 0.2)[0].numpy()
    assert scipy.stats.chisquare(first, 5000 * other).pvalue < 1e-10


def test_data_sizes_are_those_of_appendix_b():
    args = argparse.Namespace(sequences=10000, test_sequences=2000, leakage=0.2)
    data = markov.make_data(markov.PANELS["left"][0], args, seed=0)
    assert {name: (tuple(a.shape), tuple(b.shape)) for name, (a, b) in data.items()} == {
        "retain": ((8000, 20), (2000, 20)), "forget1": ((4000, 20), (1000, 20)), "forget2": ((4000, 5), (1000, 5))}


def test_defaults_are_the_papers(tmp_path):
    args = markov.parse_args(["--out", str(tmp_path / "out")])
    assert (args.layers, args.heads, args.width, args.lr, args.epochs, args.pretrain_batch, args.iterations, args.batch,
            args.leakage, args.sequences) == (4, 4, 128, 5e-4, 5, 128, 50, 4, 0.2, 10000)
    assert [args.panels[panel][2] for panel in ("left", "right")] == [{"npo": 0.2, "simnpo": 4}, {"npo": 1.0, "simnpo": 4}]
    assert all(len(values) >= 5 for values in markov.GRID.values())


def test_initializations(tmp_path):
    model = markov.build_model(small(tmp_path, "--width", "64", "--init", "torch"), 0)
    assert model.transformer.wte.weight.std().item() == pytest.approx(1, abs=0.1)
    attention, head = model.transformer.h[0].attn.c_attn.weight.detach(), model.lm_head.weight.detach()
    for weight in (attention, head):
        assert weight.abs().max() <= 1 / 8 and weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert model.transformer.h[0].mlp.c_proj.weight.abs().max() <= 1 / 16  # its fan-in is 4 × 64
    assert model.lm_head.weight is not model.transformer.wte.weight
    tied = markov.build_model(small(tmp_path, "--width", "64", "--init", "gpt2"), 0)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert tied.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("init", ["torch", "gpt2"])
def test_the_token_embedding_can_be_redrawn_alone(init, tmp_path):
    plain, redrawn = (markov.build_model(small(tmp_path, "--width", "64", "--init", init, *more), 0)
                      for more in ([], ["--embedding-std", "0.5"]))
    assert redrawn.transformer.wte.weight.std().item() == pytest.approx(0.5, rel=0.2)
    assert redrawn.lm_head.weight is not redrawn.transformer.wte.weight
    for (name, one), other in zip(plain.transformer.named_parameters(), redrawn.transformer.parameters()):
        assert torch.equal(one, other) == (name != "wte.weight") or init == "gpt2" and one.std() == pytest.approx(other.std(), rel=0.3)


def test_one_panel_alone_is_the_same_panel(tmp_path):
    alone, both = (markov.run_seed(small(tmp_path, "--panel", panel), 0) for panel in ("left", "both"))
    assert set(alone) == {"retrained", "left"} and alone["left"] == both["left"]
    assert alone["retrained"]["left"] == both["retrained"]["left"]
    assert set(markov.run_seed(small(tmp_path, "--panel", "right"), 0)) == {"retrained", "right"}


class Oracle(torch.nn.Module):
    """A model that answers with a transition matrix."""

    def __init__(self, transition):
        super().__init__()
        self.log = transition.float().log()

    def forward(self, ids):
        return argparse.Namespace(logits=self.log[ids])


def test_distance_is_the_mean_divergence_per_transition():
    sequences = {name: markov.sample(*markov.chain(name, 0.2), 300, 7, torch.Generator().manual_seed(1))
                 for name in markov.DESIGNATED}
    true = {name: markov.chain(name, 0.2)[1].float() for name in markov.DESIGNATED}
    for name in markov.DESIGNATED:
        assert markov.distances(Oracle(true[name]), {name: sequences[name]}, true)[name] == pytest.approx(0, abs=1e-6)
    uniform = markov.distances(Oracle(torch.full((10, 10), 0.1)), sequences, true)
    for name, states in sequences.items():
        inside = np.isin(states[:, :-1].numpy(), markov.DESIGNATED[name])
        one = 0.8 * math.log(0.8 / 3 / 0.1) + 0.2 * math.log(0.2 / 7 / 0.1)
        assert uniform[name] == pytest.approx(inside.mean() * one, rel=1e-5)


@pytest.fixture
def start(tmp_path):
    args = small(tmp_path)
    model = markov.build_model(args, 0)
    data = markov.make_data(args.panels["left"][0], args, 0)
    markov.pretrain(model, [part[0] for part in data.values()], args, 0, tqdm(disable=True))
    return args, model, data


def test_first_iterations_weights_are_known_in_closed_form(start):
    args, model, data = start
    npo = markov.unlearn(model, data, "npo", 0.2, args, 0, tqdm(disable=True))
    simnpo = markov.unlearn(model, data, "simnpo", 4.0, args, 0, tqdm(disable=True))
    for name, transitions in (("forget1", 19), ("forget2", 4)):
        assert npo["weight_" + name][0] == 1
        expected = []
        for row in data[name][0][:args.probes]:
            log = model(row[None]).logits[0].log_softmax(-1)
            logp = sum(log[t, row[t + 1]].item() for t in range(transitions))
            expected.append(2 / (1 + math.exp(-4 * logp / transitions)) / transitions)
        assert simnpo["weight_" + name][0] == pytest.approx(np.mean(expected), rel=1e-4)
    assert npo["retain"][0] == simnpo["retain"][0]
    assert len(npo["power_forget1"]) == args.iterations + 1 and npo["iteration"] == [0, 2, 4]


def test_gradient_power_is_the_norm_of_the_weighted_sum(start):
    args, model, data = start
    probes = {name: data[name][0][:3] for name in markov.FORGET}
    ref = {name: torch.full((3,), -9.0) for name in markov.FORGET}
    weights, powers = markov.gradient_power(model, probes, ref, "npo", 0.2)
    sums = {}
    for name, rows in probes.items():
        total = 0
        for row in rows:
            logp, _ = losses.sequence_logp(model(row[None]).logits, row[None])
            w = 2 / (1 + math.exp(-0.2 * (logp.item() + 9)))
            total = total + w * torch.cat([g.flatten() for g in torch.autograd.grad(logp.sum(), list(model.parameters()))])
        sums[name] = total
        assert powers[name] == pytest.approx(total.norm().item(), rel=1e-4)


def test_pretraining_learns_what_it_sees_and_only_that(tmp_path):
    args = small(tmp_path, "--sequences", "2000", "--epochs", "12", "--width", "32", "--heads", "2", "--lr", "3e-3")
    data = markov.make_data(args.panels["right"][0], args, 0)
    model = markov.build_model(args, 0)
    markov.pretrain(model, [data[name][0] for name in args.panels["right"][1]], args, 0, tqdm(disable=True))
    kl = markov.distances(model, {name: test for name, (_, test) in data.items()},
                          {name: markov.chain(name, 0.2)[1].float() for name in data})
    assert kl["retain"] < 0.1 and kl["forget1"] < 0.1 and kl["forget2"] > 0.3


def test_pretraining_averages_over_a_batchs_tokens_whatever_their_lengths(tmp_path):
    """One step from equal starts: by length here, padded with transformers' own loss there."""
    args = small(tmp_path, "--pretrain-batch", "7", "--sequences", "20")
    parts = [torch.randint(0, 10, (4, 9)), torch.randint(0, 10, (3, 5))]
    model, plain = markov.build_model(args, 0), markov.build_model(args, 0)
    markov.pretrain(model, parts, args, 0, tqdm(disable=True))
    ids, labels = (torch.nn.utils.rnn.pad_sequence([row for part in parts for row in part], True, filler)
                   for filler in (0, -100))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=args.lr)
    plain(ids, labels=labels).loss.backward()
    optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_both_methods_forget_and_the_retrained_model_saw_retain_only(tmp_path, monkeypatch):
    seen = []
    original = markov.pretrain
    monkeypatch.setattr(markov, "pretrain", lambda model, parts, *rest: (seen.append(parts), original(model, parts, *rest)))
    args = small(tmp_path, "--sequences", "1000", "--iterations", "30", "--epochs", "4", "--lr", "3e-3", "--width", "32")
    result = markov.run_seed(args, 0)
    assert [len(parts) for parts in seen] == [1, 3, 2]  # retrained; left; right, without Forget2
    assert np.isin(seen[0][0][:, 0], markov.DESIGNATED["retain"]).mean() > 0.7
    assert all(torch.equal(parts[0], seen[0][0]) for parts in seen)  # one retain set, so one retrained model serves
    for key in ("npo 0.2", "simnpo 4"):
        assert result["left"][key]["forget1"][-1] > result["left"][key]["forget1"][0] + 0.05


def test_crossing_interpolates():
    path = {"iteration": [0, 2, 4], "forget1": [0.1, 0.3, 0.7], "retain": [0.0, 0.1, 0.5], "power_forget1": [0, 1, 2, 3, 4]}
    assert markov.crossing(path, "forget1", 0.5) == pytest.approx(0.3)
    assert markov.crossing(path, "forget1", 0.5, "power_forget1") == pytest.approx(3)
    assert markov.crossing(path, "forget1", 0.05) == 0 and markov.crossing(path, "forget1", 0.9) is None


def test_intervals():
    mean, low, high = markov.interval([1.0, 2.0, 3.0, 4.0])
    expected = scipy.stats.ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((2.5, expected.low, expected.high))
    assert markov.interval([3.0]) == (3.0, None, None)
    ratio = markov.ratio_interval([2.0, 8.0], [1.0, 2.0])
    assert ratio[0] == pytest.approx(math.sqrt(8)) and ratio[1] * ratio[2] == pytest.approx(8)


def fake(ratio, seeds=5):
    """Results in which NPO's retain distance is `ratio` times SimNPO's, give or take."""
    rng = np.random.default_rng(0)
    results = []
    for _ in range(seeds):
        base = {"iteration": [0, 1, 2], "forget1": [0.0, 0.5, 1.0], "forget2": [0.0, 0.5, 1.0],
                "power_forget1": [1, 1, 1], "power_forget2": [1, 1, 1]}
        scale = rng.uniform(0.9, 1.1)
        paths = {"simnpo 4": base | {"retain": [0.0, 0.1, 0.2]}, "npo 0.2": base | {"retain": [0.0, 0.1 * ratio * scale, 0.2 * ratio * scale]}}
        right = {key.replace("0.2", "1"): path for key, path in paths.items()}
        retrained = {name: 0.44 for name in markov.DESIGNATED}
        results.append({"left": paths, "right": right, "retrained": {"left": retrained, "right": retrained}})
    return results


@pytest.mark.parametrize("ratio, word", [(3, "holds"), (1, "can't tell"), (0.3, "fails")])
def test_verdicts_follow_the_interval(ratio, word):
    betas = {panel: chosen for panel, (_, _, chosen) in markov.PANELS.items()}
    text = markov.report(fake(ratio), betas)
    assert f"NPO pays more retain distance: {word} at the retrained model's KL, {word} at 0.8" in text
    assert "5 of 5" in text
    rows = {row["what"]: row for row in markov.summarize(fake(ratio), betas) if row["panel"] == "left"}
    assert rows["iterations when Forget2 reaches KL 0.8"]["npo"][0] == pytest.approx(1.6) and rows["KL on Forget1 when Forget2 reaches KL 0.8"]["simnpo"][0] == pytest.approx(0.8)
    rows = markov.summarize(fake(ratio, seeds=1), betas)
    assert all(markov.verdict(row) == "can't tell" for row in rows)  # one seed has no interval


def test_the_command_draws_writes_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = [*SMALL, "--out", str(out), "--seeds", "2"]
    original, ran = markov.run_seed, []

    def interrupted(args, seed, position=0):
        if seed == 1:
            raise KeyboardInterrupt
        ran.append(seed)
        return original(args, seed)
    monkeypatch.setattr(markov, "run_seed", interrupted)
    with pytest.raises(SystemExit) as stop:
        markov.main(command)
    assert stop.value.code == 130 and (out / "seed0.json").exists() and not (out / "markov.json").exists()

    monkeypatch.setattr(markov, "run_seed", lambda args, seed, position=0: (ran.append(seed), original(args, seed))[1])
    markov.main(command)
    assert ran == [0, 1]  # the finished seed was not run again
    markov.main(command)
    assert ran == [0, 1]
    markov.main([*command, "--lr", "1e-3"])
    assert ran == [0, 1, 0, 1]  # other settings are another study
    screen = capsys.readouterr().out
    assert "| left |" in screen and "L1:" in screen and "L2:" in screen
    content = json.loads((out / "markov.json").read_text())
    assert len(content["seeds"]) == 2 and content["settings"]["lr"] == 1e-3
    for figure in ("fig6.png", "power.png"):
        assert (out / figure).stat().st_size > 10_000
    assert set(content["seeds"][0]["left"]) == {"npo 0.2", "simnpo 4"}


def test_seeds_in_processes_of_their_own_give_the_same(tmp_path):
    markov.main([*SMALL, "--seeds", "2", "--out", str(tmp_path / "one")])
    markov.main([*SMALL, "--seeds", "2", "--out", str(tmp_path / "two"), "--jobs", "2"])
    one, two = (json.loads((tmp_path / name / "markov.json").read_text()) for name in ("one", "two"))
    for panel in ("left", "right"):
        for key, path in one["seeds"][1][panel].items():
            assert path["retain"] == pytest.approx(two["seeds"][1][panel][key]["retain"], rel=1e-3)


@pytest.mark.parametrize("arguments, says", [
    (["--seeds", "0"], "--seeds"), (["--sequences", "-5"], "--sequences"), (["--layers", "0"], "--layers"),
    (["--width", "0"], "--width"), (["--width", "30"], "--heads"), (["--epochs", "0"], "--epochs"),
    (["--batch", "0"], "--batch"), (["--iterations", "-1"], "--iterations"), (["--test-sequences", "0"], "--test-sequences"),
    (["--leakage", "1"], "--leakage"), (["--leakage", "-0.1"], "--leakage"), (["--leakage", "nan"], "--leakage"),
    (["--beta-npo", "-1", "1"], "--beta-npo"), (["--beta-simnpo", "4", "inf"], "--beta-simnpo"), (["--lr", "-1"], "--lr"),
    (["--iterations", "500", "--sequences", "200"], "--iterations"), (["--init", "zeros"], "--init"),
    (["--out", "/proc/none/below"], "--out"), (["--out", ""], "--out is empty"), (["--jobs", "0"], "--jobs"),
    (["--embedding-std", "-1"], "--embedding-std"), (["--panel", "middle"], "--panel")])
def test_bad_input_is_one_line_and_exit_two(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        markov.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and says in error
    assert list(tmp_path.iterdir()) == []
