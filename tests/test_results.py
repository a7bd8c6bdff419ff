"""The scripts that make what results/ shows."""

import argparse
import json
import math
import unittest.mock

import constant
import grid
import hybrids
import lens
import markov_grid
import matplotlib.figure
import numpy as np
import own_rows
import pytest
import raw_logits
import scipy.stats
import some_tofu
import torch
import weights
from conftest import refused, some_examples, tiny
from fixtures_runs import a_run, change, flags_of, on_the_way, pictures_of, read, write

import compare
import data
import markov
import train
from machinery.folder import read as read_checked
from machinery.inputs import InputError
from methods import METHODS


@pytest.fixture
def drawn(monkeypatch):
    """Figures that would have been saved."""
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_choose_takes_the_best_setting_that_keeps_utility(tmp_path, capsys):
    folders = [
        a_run(tmp_path / f"{method}{beta}{seed}", method, seed, quality + seed / 10, utility, beta=beta)
        for method, beta, quality, utility in (
            ("npo", 1.0, 0.7, 0.75),
            ("npo", 2.0, 0.5, 0.77),
            ("npo", 4.0, 0.5, 0.78),
            ("npo", 3.0, 0.1, 0.8),
            ("ga", 5.0, 0.8, 0.1),
            ("ga", 6.0, 0.2, 0.3),
        )
        for seed in (0, 1)
    ]
    for folder in folders:  # 95% of the mean of 0.8 and 0.82 is what must be kept
        metrics = read(folder, "metrics.json")
        metrics["reference"]["Original"]["model_utility"] += flags_of(folder)["seed"] / 50
        write(folder, "metrics.json", metrics)
    grid.main(["choose", *map(str, folders)])
    floor, *lines = capsys.readouterr().out.splitlines()
    assert floor.endswith("model utility of at least 0.769")
    assert [line.split() for line in lines] == [
        "NPO beta=4.0 forget quality 0.55 model utility 0.780 runs 2".split(),
        "GA beta=6.0 forget quality 0.25 model utility 0.300 runs 2".split(),
    ]  # none keeps enough: the one that keeps most

    # by what comes nearest to Retrain's value of a column; what Retrain lost, unlearning may lose too
    for folder in folders:
        metrics, method, beta = read(folder, "metrics.json"), *map(flags_of(folder).get, ("method", "beta"))
        metrics["reference"]["Retrain"]["model_utility"] = 0.74
        metrics["reference"]["Retrain"]["forget"]["probability"] = 0.2
        metrics["forget"]["probability"] = {"npo": 0.2, "ga": 0.3}[method] - beta / 100
        write(folder, "metrics.json", metrics)
    grid.main(["choose", *map(str, folders), "--nearest", "forget probability"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "forget probability nearest to Retrain's, 0.2, among settings with model utility of at least 0.703"
    assert [line.split()[:2] for line in lines] == [["NPO", "beta=1.0"], ["GA", "beta=6.0"]]
    refused(grid.main, ["choose", folders[0], "--nearest", "loss"], capsys, "--nearest", "'loss'", "forget probability")
    change(folders[0], "metrics.json", distance=None)
    refused(grid.main, ["choose", folders[0], "--nearest", "distance to Retrain"], capsys, "have 'distance to Retrain'")


def test_choose_paths_takes_the_cheapest_that_arrives_in_the_middle(tmp_path, capsys):
    folders = []
    for beta, seed, epoch, cost in (
        (1, 0, 5, 0.1),
        (2, 0, 7, 0.3),
        (3, 0, 8, 0.2),
        (3, 1, 9, 0.3),
        (4, 0, 12, 0.05),
        (5, 0, 8, 0.01),
        (5, 1, 99, 0.01),
    ):
        loss = [1 + 1.5 * i / epoch for i in range(17)]  # Retrain's, over all that is learnt, is 2.5
        folders.append(
            on_the_way(
                tmp_path / f"{beta}{seed}",
                "npo",
                seed,
                short=loss,
                long=loss,
                retain=[cost * i / epoch for i in range(17)],
            )
        )
        change(folders[-1], "run.json", flags=flags_of(folders[-1]) | {"beta": beta})
    grid.main(["paths", *map(str, folders)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in lines if line[0] == "*"] == ["* NPO beta=3"]
    assert [line.split("reached by ")[1] for line in lines] == [
        f"{arrived}, at epoch {epoch:.1f}, retain loss {cost:.4f}"
        for arrived, epoch, cost in (
            ("1 of 1", 5, 0.1),
            ("1 of 1", 7, 0.3),
            ("2 of 2", 8.5, 0.25),
            ("1 of 1", 12, 0.05),
            ("1 of 2", 8, 0.01),
        )
    ]
    grid.main(["paths", *map(str, folders), "--until", "0.75"])  # of 16 epochs
    assert [line[:12] for line in capsys.readouterr().out.splitlines() if line[0] == "*"] == ["* NPO beta=4"]


def test_the_grid_is_drawn_over_beta_and_gamma(tmp_path, drawn):
    folders = [
        a_run(
            tmp_path / f"{beta}{gamma}{seed}",
            "simnpo",
            seed,
            beta / 4 + seed / 10,
            gamma + seed / 10,
            beta=beta,
            gamma=gamma,
        )
        for beta, gamma in ((1.0, 0.0), (2.0, 0.0), (2.0, 0.5))
        for seed in (0, 1)
    ]
    grid.main(["draw", *map(str, folders), "--out", str(tmp_path / "f.png")])
    for axis, title, cells in zip(
        drawn[0].axes,
        ("forget quality", "model utility"),
        (("0.3", "nan", "0.55", "0.55"), ("0.05", "nan", "0.05", "0.55")),
        strict=False,
    ):
        where = {text.get_position(): text.get_text() for text in axis.texts}
        assert where == dict(zip(((0, 0), (1, 0), (0, 1), (1, 1)), cells, strict=False)) and axis.get_title() == title
        ticks = ([text.get_text() for text in side] for side in (axis.get_xticklabels(), axis.get_yticklabels()))
        assert [*ticks] == [["0", "0.5"], ["1", "2"]]
        assert np.isnan(axis.images[0].get_array().filled(np.nan)).tolist() == [[False, True], [False, False]]


def test_no_script_writes_over_what_is_there(tmp_path, capsys):
    """A picture goes only where --overwrite allows it, files only into a folder of their own."""
    (tmp_path / "there.png").write_text("mine")
    run = a_run(tmp_path / "run", "simnpo")
    (tmp_path / "markov.json").write_text(json.dumps({"settings": {"panels": {}}, "seeds": []}))
    for main, words in (
        (grid.main, ["draw", run]),
        (constant.main, ["runs", run]),
        (markov_grid.main, [tmp_path]),
    ):
        refused(main, [*words, "--out", tmp_path / "there.png"], capsys, "there.png exists", "--overwrite")
    for main in (own_rows.main, some_tofu.main):
        for path in (tmp_path, tmp_path / "there.png"):
            refused(main, [path], capsys, "name another folder")
    assert (tmp_path / "there.png").read_text() == "mine" and not (tmp_path / "forget.jsonl").exists()


def test_tofu_is_cut_to_its_first_and_last_authors(monkeypatch):
    """The last are forgotten; of each the first rows, with what is asked of them."""

    def rows_of(*authors):
        return [{"question": f"{author} {i}?", "answer": f"{author}/{i}"} for author in authors for i in range(20)]

    data = {"full": rows_of(*range(200)), "forget10_perturbed": rows_of(*range(180, 200))}
    data |= {"retain_perturbed": rows_of(*range(15))}
    for name in some_tofu.BASE_KNOWLEDGE:
        data[f"{name}_perturbed"] = [row | {"perturbed_answer": ["no"]} for row in rows_of(*range(5))]
    monkeypatch.setattr(some_tofu, "load_rows", lambda dataset, config: data[config])
    configs = some_tofu.cut("D", 5, 8)
    people = {
        "full": [0, 1, 2, 198, 199],
        "retain60": [0, 1, 2],
        "retain80": [0, 1, 2, 198],
        "retain_perturbed": [0, 1, 2],
    }
    for name, last in (("forget40", [198, 199]), ("forget20", [199])):
        people |= {name: last, f"{name}_perturbed": last}
    for name, authors in people.items():
        assert [row["answer"] for row in configs[name]] == [f"{author}/{i}" for author in authors for i in range(8)]
    for name in some_tofu.BASE_KNOWLEDGE:
        assert len(configs[name]) == 10 and configs[name] == rows_of(*range(5))[::10]
        assert all("perturbed_answer" in row for row in configs[f"{name}_perturbed"])


def test_rows_to_try_with_are_asked_in_other_words_or_are_articles(tmp_path):
    own_rows.main([str(tmp_path / "asked"), "--forget", "10", "--retain", "10", "--holdout", "0"])
    for row in read(tmp_path / "asked", "forget.jsonl"):
        assert row["paraphrase"] and row["paraphrase"] != row["question"]
    own_rows.main([str(tmp_path / "texts"), "--text", "--forget", "2", "--retain", "3", "--holdout", "1"])
    texts = {name: read(tmp_path / "texts", f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
    assert [*map(len, texts.values())] == [2, 3, 1]
    assert len({row["text"] for rows in texts.values() for row in rows}) == 6
    assert all(len(row["text"].split()) > 40 for rows in texts.values() for row in rows)


def test_rows_to_try_with_are_of_other_people_in_each_file_and_not_more_than_there_are(tmp_path, capsys):
    own_rows.main([str(tmp_path / "new"), "--forget", "20", "--retain", "1700", "--holdout", "0"])
    rows = {name: read(tmp_path / "new", f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
    assert [*map(len, rows.values())] == [20, 1700, 0]
    asked = [{row["question"] for row in rows[name]} for name in ("forget", "retain")]
    assert len(asked[0]) == 20 and len(asked[1]) == 1700 and not asked[0] & asked[1]
    refused(own_rows.main, [tmp_path / "n", "--retain", "16000"], capsys, "1600 names", "at most 16000 rows")
    refused(own_rows.main, [tmp_path / "n", "--text", "--retain", "1600"], capsys, "at most 1600 rows")
    refused(own_rows.main, [tmp_path / "n", "--forget", "21"], capsys, "--forget 21: an author has 10")
    assert not (tmp_path / "n").exists()


def test_grids_of_the_wrong_runs(tmp_path, nothing_written, capsys):
    refused(grid.main, ["draw", a_run(tmp_path / "d", "ga")], capsys, "GA", "--method simnpo")
    runs = [a_run(tmp_path / f"g{lr}", "simnpo", lr=lr) for lr in (1e-3, 1e-4)]
    refused(grid.main, ["draw", *runs], capsys, "lr=")
    refused(grid.main, ["draw", runs[0], "--out", "f.pdf"], capsys, ".png")
    refused(grid.main, ["choose", tmp_path / "absent"], capsys, "absent")
    damaged = a_run(tmp_path / "x", "simnpo")
    (damaged / "run.json").write_text((damaged / "run.json").read_text().replace('"beta": 1.0', '"beta": "x"'))
    refused(grid.main, ["draw", damaged], capsys, damaged, "run.json", "damaged")


def test_nine_methods_weights_are_printed_and_drawn(tmp_path, capsys, drawn):
    """Each token's, of a response of 12 whose tokens all have the same p; the reference model's log p is -0.05."""
    lens.main(["--out", str(tmp_path / "lens.png")])
    head, *rows = capsys.readouterr().out.splitlines()[1:11]
    by_hand = {
        "GA": lambda p: 12,
        "NPO, β 0.1": lambda p: 12 * 2 / (1 + math.exp(-0.1 * 12 * (math.log(p) + 0.05))),
        "TNPO, β 1": lambda p: 2 * p / (p + math.exp(-0.05)),
        "Weighted-GradDiff": lambda p: 1,
        "SimNPO, β 2.5, γ 0": lambda p: 2 * p**2.5 / (1 + p**2.5),
        "WGA, β 1": lambda p: p,
        "SatImp, β 5, β2 1": lambda p: p**5 * (1 - p),
        "CE-U": lambda p: p / (1 - p),
        "UNDIAL, β 10": lambda p: (1 - target) / (1 - p) - 1,
    }
    odds = math.exp(-0.05) / (1 - math.exp(-0.05)) * math.exp(-10)
    target = odds / (1 + odds)
    places = [float(value) for value in head.split()[5:]]
    assert places == [-0.001, -0.05, -0.5, -1, -2, -4, -6]
    for line, (name, weight) in zip(rows, by_hand.items(), strict=True):
        assert line.startswith(name + " ")
        shown = [float(value) for value in line[19:].split()]
        assert shown == pytest.approx([weight(math.exp(place)) / 12 for place in places], rel=0.05)

    # a curve for each length, and for 12 times 1 - p
    for axis, (name, weight) in zip(drawn[0].axes, by_hand.items(), strict=True):
        assert axis.get_title() == name
        for n, line in zip((3, 12, 40), axis.lines, strict=False):
            x, y = line.get_xdata()[200], line.get_ydata()[200]
            if name not in ("GA", "NPO, β 0.1"):
                assert y == pytest.approx(weight(math.exp(x)) / n)
        assert axis.lines[3].get_ydata()[200] == pytest.approx(axis.lines[1].get_ydata()[200] * (1 - math.exp(x)))


def test_the_weights_are_printed_and_drawn(tmp_path, capsys, drawn):
    weights.main(["--out", str(tmp_path / "w.png")])
    rows = [[*map(float, line.split())] for line in capsys.readouterr().out.splitlines()[4:11]]
    assert [row[0] for row in rows] == [0, -1, -2, -3, -4, -5, -6]

    def by_hand(x):
        npo, simnpo = (
            [2 / (1 + math.exp(-margin)) / count for margin, count in each]
            for each in ([(0.1 * n * (x + 0.05), 1) for n in (3, 12, 40)], [(2.5 * x, n) for n in (3, 12, 40)])
        )
        return npo, simnpo

    for x, *shown in rows:
        assert shown == pytest.approx(sum(by_hand(x), []), abs=6e-5)
    for axis, side in zip(drawn[0].axes, (0, 1), strict=False):
        curves = [line for line in axis.lines if line.get_label()[0] == "|"]
        assert [line.get_ydata()[40].item() for line in curves] == pytest.approx(by_hand(-4)[side])
    bounds = [line.get_ydata()[0] for line in axis.lines if line not in curves]
    assert bounds == pytest.approx([1 / 3, 1 / 12, 1 / 40])


def test_an_unwritable_picture_is_one_line_and_exit_two(tmp_path, nothing_written, capsys):
    refused(weights.main, ["--out", tmp_path / "absent" / "w.png"], capsys, "absent")


def test_the_search_for_beta_takes_the_cheapest_that_gets_there_and_draws_all(tmp_path, capsys, nothing_written, drawn):
    """By retain distance where each learnt chain reaches its own level."""

    def result(costs, *tops):
        paths = [
            {"iteration": [0, 1], "forget1": [0.0, top], "forget2": [0.0, 0.9 * top], "retain": [0.0, cost]}
            for cost, top in zip(costs, tops, strict=True)
        ]
        levels = {"left": {"forget1": 0.1, "forget2": 0.8}, "right": {"forget1": 0.4, "forget2": 9}}
        return {"retrained": levels} | {
            panel: {
                f"{method} {beta:g}": path
                for method, betas in markov.GRID.items()
                for beta, path in zip(betas, paths, strict=False)
            }
            for panel in levels
        }

    seeds = (
        result([0.5, 0.4, 0.3, 0.2, 0.1, 0.01], 1, 1, 1, 1.5, 1, 0.5),
        result([0.5, 0.4, 0.3, 0.1, 0.8, 0.01], *[1] * 6),
    )
    (tmp_path / "markov.json").write_text(json.dumps({"settings": {"panels": markov.PANELS}, "seeds": seeds}))
    markov_grid.main([str(tmp_path), "--out", str(tmp_path / "g.png")])
    chosen = json.loads(capsys.readouterr().out.splitlines()[0].removeprefix("chosen β: "))
    # the cheapest of all gets to 0.5 in one seed: as far as one panel asks
    assert chosen == {"left": {"npo": 0.5, "simnpo": 4.0}, "right": {"npo": 2.0, "simnpo": 16.0}}
    for axis, x in zip(drawn[0].axes, ((1.5 + 1.35 + 1 + 0.9) / 4, (1.5 + 1) / 2), strict=False):
        curves = {line.get_label(): np.transpose(line.get_data()) for line in axis.lines}
        assert len(curves) == 12 and curves["NPO β=0.5"][1] == pytest.approx((x, 0.15))
    refused(markov_grid.main, [tmp_path / "absent"], capsys, "absent", "--grid")


def further(part, nats):
    """A log's forget part with `nats` added to every loss."""
    return part | {
        "paraphrased_loss": [loss + nats for loss in part["paraphrased_loss"]],
        "perturbed_loss": [[loss + nats for loss in wrong] for wrong in part["perturbed_loss"]],
    }


def both_by_hand(part):
    """TOFU's truth ratios, and one over those with the constant."""
    pairs = [
        (sum(wrong) / 3, right) for wrong, right in zip(part["perturbed_loss"], part["paraphrased_loss"], strict=False)
    ]
    return (
        [math.exp(wrong - right) for wrong, right in pairs],
        [math.exp(-wrong) / (math.exp(-right) + 1e-10) for wrong, right in pairs],
    )


def test_a_constant_decides_what_is_far_away_and_ours_has_none(tmp_path, capsys, nothing_written, drawn):
    """Of two logs for every D, and of runs: one of which is 30 nats away."""
    near, far = a_run(tmp_path / "near"), a_run(tmp_path / "far", seed=1)
    log = read(far, "metrics.log.json")
    write(far, "metrics.log.json", log | {"forget": further(log["forget"], 30)})
    constant.main(["runs", str(far), str(near), "--out", str(tmp_path / "c.png")])
    lines, found = capsys.readouterr().out.splitlines()[1:3], []
    for line, folder in zip(lines, (near, far), strict=False):  # by loss
        parts = [read(folder, "metrics.log.json")["forget"], read(folder, "reference.log.json")["Retrain"]]
        p_values = [scipy.stats.ks_2samp(*ratios).pvalue for ratios in zip(*map(both_by_hand, parts), strict=False)]
        loss = np.mean(parts[0]["paraphrased_loss"])
        assert line.split() == [f"{loss:.2f}", *(f"{p:.2g}" for p in p_values), str(folder)]
        found += p_values
        points = [np.transpose(marks.get_data())[lines.index(line)] for marks in drawn[0].axes[0].lines]
        assert points == [pytest.approx([loss, math.log10(p)]) for p in p_values]
    assert found[3] < 1e-6 < found[2]

    # of over 300 rows the first 300 count, as TOFU's authors have it
    long = [read(near, name) for name in ("metrics.log.json", "reference.log.json")]
    for part in (long[0]["forget"], long[1]["Retrain"]):
        part |= {field: values * 40 for field, values in part.items()}
    parts = long[0]["forget"], long[1]["Retrain"]
    ratios = zip(*map(both_by_hand, [{field: each[field][:300] for field in each} for each in parts]), strict=True)
    loss, *p_values = constant.both_ways({"metrics.log.json": long[0], "reference.log.json": long[1], "folder": near})
    assert p_values == [pytest.approx(scipy.stats.ks_2samp(*both).pvalue, rel=1e-6, abs=0) for both in ratios]

    log, retrain = (read(near, name) for name in ("metrics.log.json", "reference.log.json"))
    for name, content in (("log.json", log), ("retrain.json", retrain["Retrain"])):
        (tmp_path / name).write_text(json.dumps(content if name == "log.json" else log | {"forget": content}))
    constant.main(["logs", str(tmp_path / "log.json"), str(tmp_path / "retrain.json")])
    first, _, _, *lines = capsys.readouterr().out.splitlines()
    c = both_by_hand(log["forget"])[0]
    assert first.endswith(f"forget quality {found[0]:.3g}, truth ratio {np.mean([min(x, 1 / x) for x in c]):.3g}")
    for line, nats in zip(lines, (0, 10, 15, 20, 25, 30), strict=True):
        c = both_by_hand(further(log["forget"], nats))[1]
        p = scipy.stats.ks_2samp(c, both_by_hand(retrain["Retrain"])[1]).pvalue
        assert line.split() == [str(nats), f"{p:.2g}", f"{np.mean([min(x, 1 / x) for x in c]):.2g}"]

    write(near, "reference.log.json", {"Retrain": {"truth_ratio": [1.0] * 12}})
    for arguments, says in (
        (["logs", tmp_path / "log.json", tmp_path / "absent.json"], "absent.json"),
        (["runs", near, "--out", "c.pdf"], ".png"),
        (["runs", tmp_path / "absent", "--out", "c.png"], "absent"),
        (["logs", near], "two files"),
        (["runs", near, "--out", "c.png"], "paraphrased_loss"),
    ):
        refused(constant.main, arguments, capsys, says)


@pytest.fixture
def methods_put_back():
    with unittest.mock.patch.dict(METHODS):
        yield


def test_hybrids_are_each_a_step_from_npo_and_from_simnpo():
    args = argparse.Namespace(beta=0.7)
    logp = torch.linspace(-40, -0.5, 7, dtype=torch.float64).requires_grad_()
    ref = torch.linspace(-30, -3, 7, dtype=torch.float64)
    length = torch.tensor([30, 20, 10, 5, 4, 2, 1])
    y = data.Response(logp, length, (), ref=data.Response(ref, length, ()))
    for method in hybrids.HYBRIDS.values():
        (gradient,) = torch.autograd.grad(method.loss(args, y).sum(), logp)
        assert gradient.dtype == torch.float64
        assert torch.allclose(gradient, method.weight(args, y), rtol=1e-12, atol=0)
    by_hand = -2 / 0.7 * torch.log(torch.sigmoid(-0.7 * (logp - ref) / length))
    assert torch.allclose(hybrids.HYBRIDS["npo-mean"].loss(args, y), by_hand)
    by_sum = -2 / 0.7 * torch.log(torch.sigmoid(-0.7 * logp))
    assert torch.allclose(hybrids.HYBRIDS["simnpo-sum"].loss(args, y), by_sum)


FLAGS = "--epochs 1 --max-length 60 --eval none --model".split()


def test_hybrids_go_through_the_loop_and_into_tables(methods_put_back, toy_model_folder, tmp_path, capsys):
    hybrids.main(["--method", "npo-mean", *FLAGS, str(toy_model_folder), "--out", str(tmp_path / "run")])
    (first,) = pictures_of(tmp_path / "run")
    assert read_checked(tmp_path / "run", "run.json")["method"] == {"name": "NPO per token", "colour": "navy"}
    met = read(tmp_path / "run", "log.jsonl")[0]["met"]
    assert met["weight"] == pytest.approx([1 / n for n in met["length"]]) and len(first["row"]) == 40
    runs = [a_run(tmp_path / name, name) for name in ("simnpo", "npo-mean", "simnpo-sum")]
    capsys.readouterr()
    compare.main(["table", *map(str, runs)])
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[4:7]]
    assert names == ["SimNPO", "NPO per token", "SimNPO by sum"]
    refused(hybrids.main, ["--method", "npo-sum"], capsys, "npo-sum")


def test_hybrids_are_methods_only_where_they_are_asked_for():
    assert not {*hybrids.HYBRIDS} & {*METHODS} and METHODS["npo"].loss is not raw_logits.npo


def test_raw_logit_losses_are_against_what_the_model_said_before():
    before, after = tiny("gpt2"), tiny("gpt2", seed=1)
    examples, args = some_examples(4), argparse.Namespace(beta=0.7, gamma=0.3)
    for method, entry in raw_logits.RAW.items():
        (y,) = train.respond(after, before, {"answer": examples}, [2, 0], entry)
        loss, logit = entry.loss(args, y), entry.weight(args, y)
        for place, (prompt, response) in enumerate([examples[2], examples[0]]):
            ref, z = (
                model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] for model in (before, after)
            )
            margin = 0.7 * (ref - z) if method == "npo" else -0.7 * z - 0.3
            by_hand = (-2 / 0.7 * torch.sigmoid(margin).log()).mean().item()
            assert loss[place].item() == pytest.approx(by_hand, rel=1e-5)
            assert logit[place].item() == pytest.approx(z.mean().item(), rel=1e-4)
            assert y.length[place] == len(response)


def test_raw_logit_losses_have_names_of_their_own_and_no_beta_of_zero(capsys):
    assert not {entry.name for entry in raw_logits.RAW.values()} & {entry.name for entry in METHODS.values()}
    y, args = argparse.Namespace(logits=(), ref=argparse.Namespace(logits=())), argparse.Namespace(beta=0.0, gamma=0.0)
    y.logits = y.ref.logits = (torch.zeros(2, 3),)
    for entry in raw_logits.RAW.values():
        with pytest.raises(InputError, match="--beta 0: .*more than 0"):
            entry.loss(args, y)


def test_raw_logit_losses_run_in_the_loop(methods_put_back, toy_model_folder, tmp_path):
    flags = ["--method", "npo", "--beta", "0.1", *FLAGS, str(toy_model_folder), "--out", str(tmp_path / "run")]
    raw_logits.main(flags)
    first, *_, last = (line["forget"] for line in read(tmp_path / "run", "log.jsonl"))
    assert first == pytest.approx(20 * math.log(2)) and last < first - 1e-4  # -2/0.1 log σ(0), until it moves
