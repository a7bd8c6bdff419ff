"""Runs compared: tables, answers, claims, paths and figures of small made-up runs, each number by hand."""

import io
import itertools
import math
import statistics
import sys

import claims
import common
import figures
import grid
import matplotlib.figure
import numpy as np
import paths
import pytest
import scipy.stats
from conftest import refused
from fixtures_runs import (
    LENGTHS,
    UNSEEN,
    WAYS,
    a_run,
    another_run,
    change,
    flags_of,
    on_the_way,
    pictures_of,
    read,
    write,
)
from test_tofu import a_log

import compare
from benchmarks import muse, tofu, wmdp
from machinery import folder as run_folder
from machinery.statistics import spread
from methods import METHODS


def forgotten(metrics):
    return math.log10(metrics["forget_quality"])


MAINS = {
    **{name: lambda argv, name=name: compare.main([name, *argv]) for name in ("table", "answers")},
    "claims": claims.main,
    "paths": paths.main,
    **{f"figure {kind}": lambda argv, kind=kind: compare.main(["figure", kind, *argv]) for kind in compare.FIGURES},
    **{f"figure {kind}": lambda argv, kind=kind: figures.main([kind, *argv]) for kind in figures.FIGURES},
    "figure paths": paths.main,
    "grid": grid.main,
}


@pytest.fixture
def said(capsys):
    """What a command says: its lines."""

    def run(command, *arguments):
        MAINS[command]([*map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def table(said):
    """{row: {column: cell}} of the table that a command prints; the first column names the row."""

    def run(*arguments):
        header, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in said(*arguments) if line[:1] == "|"
        )
        return {line[0]: dict(zip(header, line, strict=True)) for line in lines}

    return run


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """What a figure shows, without a picture."""

    def draw(kind, *folders):
        drawn = []
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
        MAINS[f"figure {kind}"]([*map(str, folders), "--out", str(tmp_path / "f.png")])
        return drawn[0].axes

    return draw


def of_all(folders, *path):
    """One number of metrics.json of each run."""
    found = [read(folder, "metrics.json") for folder in folders]
    for key in path:
        found = [each[key] for each in found]
    return found


# ------------------------------------------------------------------ tables


def test_a_table_has_mean_and_deviation_of_each_method_and_the_best_in_bold(tmp_path, table):
    npo = [a_run(tmp_path / "a", quality=0.2, utility=0.6), a_run(tmp_path / "b", seed=1, quality=0.4, utility=0.62)]
    simnpo = a_run(tmp_path / "c", "simnpo", quality=0.001, utility=0.8)  # as much as Original
    change(simnpo, "metrics.json", distance=0.1)
    rows = table("table", "--columns", "all", *npo, simnpo)
    assert {name: row["runs"] for name, row in rows.items()} == {
        "Original": "2",
        "Retrain": "2",
        "Retrain of another seed": "1",
        "NPO": "2",
        "SimNPO": "1",
    }  # once per seed
    for column, form, *path in (
        ("forget quality ↑", ".2g", "forget_quality"),
        ("distance to Retrain ↓", ".3f", "distance"),
        ("model utility ↑", ".3f", "model_utility"),
        ("quality, shortest half ↑", ".2g", "forget_quality_halves", "shortest"),
        ("forget truth ratio →R", ".3f", "forget", "truth_ratio"),
        ("training s ↓", ".1f", "train_seconds"),
    ):
        for row, *place in (("NPO",), ("Retrain", "reference", "Retrain")):
            values = of_all(npo, *place, *path)
            assert rows[row][column].strip("*") == f"{np.mean(values):{form}} ± {statistics.stdev(values):{form}}"
    assert rows["NPO"]["log10 forget quality ↑"] == "-0.5 ± 0.2" and rows["SimNPO"]["log10 forget quality ↑"] == "-3.0"
    assert {(name, column) for name, row in rows.items() for column, cell in row.items() if "**" in cell} == {
        ("NPO", "forget quality ↑"),
        ("SimNPO", "distance to Retrain ↓"),
        ("SimNPO", "model utility ↑"),
    }
    main, cost = (table("table", "--columns", columns, *npo)["NPO"] for columns in ("main", "cost"))
    titles = [column.title for column in tofu.COLUMNS if column.main and column.name != "answers under Retrain"]
    assert [*main] == ["method", "runs", *titles] and "**" not in str(main)  # nothing to be better than
    assert [*cost.values()] == ["NPO", "2", "10.5 ± 0.7", "2.00 ± 0.00"]


def test_the_best_is_the_best_in_the_mean(tmp_path, table):
    npo = [a_run(tmp_path / "a", quality=0.2), a_run(tmp_path / "b", seed=1, quality=0.4)]
    rows = table("table", *npo, a_run(tmp_path / "c", "simnpo", quality=0.35))
    assert [name for name, row in rows.items() if "**" in row["forget quality ↑"]] == ["SimNPO"]


def test_runs_are_averaged_unless_a_flag_that_matters_differs(tmp_path, table):
    immaterial = "model retrain tokenizer data device eval eval_batch_size micro_batch_size grad_checkpointing".split()
    for flag in [*immaterial, "beta", "gamma", "lr", "epochs", "batch_size", "retain", "dtype"]:
        kind = str if flag in immaterial[:5] else int
        pair = [a_run(tmp_path / f"{flag}{i}", "simnpo", i, **{flag: kind(i)}) for i in (1, 2)]
        labels = ["SimNPO"] if flag in immaterial else [f"SimNPO {flag.replace('_', '-')}={i}" for i in (1, 2)]
        assert [*table("table", *pair, a_run(tmp_path / f"{flag}3", beta=3))][3:] == [*labels, "NPO"]


def test_a_run_of_before_a_flag_is_one_without_it(tmp_path, table):
    pair = [a_run(tmp_path / "old", "simnpo"), a_run(tmp_path / "new", "simnpo", lora=8)]
    assert "lora" not in flags_of(pair[0])
    assert [*table("table", *pair)][2:] == ["SimNPO lora=None", "SimNPO lora=8"]


def test_relearning_is_named_and_grouped_by_where_it_started(tmp_path, table):
    bases = [a_run(tmp_path / name, seed=seed, beta=beta) for name, seed, beta in (("a", 0, 1.0), ("b", 1, 2.0))]
    again = [
        a_run(base / "again", "finetune", start=flags_of(base), model=str(base), subset="random:0.2") for base in bases
    ]
    assert [*table("table", *again)][1:] == [f"NPO → fine-tuning random:0.2 start-beta={beta}" for beta in (1.0, 2.0)]
    assert [*table("table", again[0])] == [
        "Retrain",
        "NPO → fine-tuning random:0.2",
    ]  # `before` has a folder of its own
    assert {run["colour"] for run in compare.read(again)} == {METHODS["npo"].colour}


TAUGHT = {"method": "finetune", "seed": 0, "family": "a/model", "model": "a/model", "lr": 1e-4, "split": "retain90"}


def from_original(folder, method, seed=0, own_seed=None, **taught):
    """A run that starts from a fine-tuned model's folder, whose name differs by seed."""
    original = TAUGHT | {"seed": seed, "out": f"runs/original-{seed}"} | taught
    own_seed = seed if own_seed is None else own_seed
    path = original["out"]
    return a_run(folder, method, own_seed, original=original, model=path, family=path, retrain=f"retrain-{seed}")


def test_runs_from_a_fine_tuned_original_are_their_methods(tmp_path, table, axes):
    """Originals of three seeds are seeds, although each has a folder of its own; colours are the methods'."""
    runs = [
        from_original(tmp_path / f"{method}{seed}", method, seed) for method in ("npo", "simnpo") for seed in (0, 1, 2)
    ]
    rows = table("table", *runs)
    assert {name: row["runs"] for name, row in rows.items()} == {
        "Original": "3",
        "Retrain": "3",
        "Retrain of another seed": "2",
        "NPO": "3",
        "SimNPO": "3",
    }
    assert [run["colour"] for run in compare.read(runs)[::3]] == [METHODS[name].colour for name in ("npo", "simnpo")]
    for axis, start in zip(axes("epochs", *runs), (-3, None, 0.8), strict=True):
        starts = [curves_of(axis)[name][0] for name in ("NPO", "SimNPO", "Original")]
        assert start is None or starts == pytest.approx([start] * 3)


def test_originals_that_were_taught_otherwise_are_told_apart(tmp_path, table):
    """By name, and from a model that no run taught; and what relearns from a run has that one's Original."""
    runs = [from_original(tmp_path / str(lr), "npo", i, lr=lr) for i, lr in enumerate((1e-4, 1e-5))]
    assert [*table("table", *runs)][3:] == ["NPO original-lr=0.0001", "NPO original-lr=1e-05"]
    taught = [
        from_original(tmp_path / name, "npo", i, data=files_of(f"/{name}.jsonl", "/k.jsonl"))
        for i, name in enumerate(("all", "half"))
    ]
    assert [*table("table", *taught)][3:] == [f"NPO original-forget-file={name}.jsonl" for name in ("all", "half")]
    of_one = from_original(tmp_path / "one", "npo", 0, own_seed=5)
    rows = table("table", runs[0], of_one)
    assert (rows["Original"]["runs"], rows["NPO"]["runs"]) == ("1", "2")  # one Original, two runs of it
    mixed = [a_run(tmp_path / "as-it-came", original=None), runs[0]]
    change(mixed[0], "run.json", flags=flags_of(mixed[0]) | {"family": "a/model"})
    for order in (mixed, mixed[::-1]):
        assert {*table("table", *order)} >= {"NPO original-method=None", "NPO original-method=finetune"}
    halves = [from_original(tmp_path / f"of-{split}", "npo", 0, split=split) for split in ("full", "retain95")]
    rows = table("table", *halves)  # two Originals of one seed, and one Retrain
    assert (rows["Original"]["runs"], rows["Retrain"]["runs"]) == ("2", "1")
    change(halves[1], "run.json", flags=flags_of(halves[1]) | {"retrain": "another"})
    log = read(halves[1], "reference.log.json")
    log["Retrain"]["truth_ratio"].reverse()
    write(halves[1], "reference.log.json", log)
    assert "Retrain of another seed" not in table("table", *halves)  # another one of the same seed
    again = a_run(tmp_path / "again", "finetune", 9, start=flags_of(of_one), original=TAUGHT)
    (read_again,) = compare.read([again])
    assert read_again["name"] == "NPO → fine-tuning" and read_again["seed"] == (0, 5)


def test_a_run_says_what_its_model_comes_from():
    """Of a pretrained model P: taught twice, unlearnt, taught again, unlearnt again."""
    tuned = {"flags": {"method": "finetune", "family": "P", "seed": 1}, "method": "FT", "original": None}
    assert run_folder.lineage_from(tuned) == {"original": tuned["flags"]}
    further = {"flags": {"method": "finetune", "family": "runs/tuned", "seed": 2}, **run_folder.lineage_from(tuned)}
    original = {"method": "finetune", "family": "P", "seed": 2}
    assert run_folder.lineage_from(further) == {"original": original}
    npo = {"flags": {"method": "npo", "family": "runs/further"}, "method": "NPO", "original": original}
    again = {"flags": {"method": "finetune"}, "method": "FT", **run_folder.lineage_from(npo)}
    assert run_folder.lineage(again) == (original, npo["flags"], "NPO")
    assert run_folder.lineage_from(again) == {"original": original, "start": again["flags"], "start_method": "FT"}
    assert run_folder.lineage(run_folder.lineage_from(again)) == (original, again["flags"], "FT")
    scratch = {"flags": {"method": "finetune", "family": "new"}, "method": "FT", "original": None}
    assert run_folder.lineage_from(scratch) == {"original": {"method": "finetune", "family": "tiny"}}
    assert run_folder.lineage({}) == (None, None, None)


def test_no_number_is_minus_zero():
    assert spread([-0.0], ".1f") == spread([-1e-17], ".1f") == "0.0"
    assert spread([-0.04, 0.04], ".1f") == "0.0 ± 0.1"
    assert spread([-0.2], ".1f") == "-0.2" and spread([0, 1, 5], ".1f") == "2.0 ± 2.6"


def test_a_terminal_without_arrows(tmp_path, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    compare.main(["table", str(a_run(tmp_path / "a"))])
    screen.flush()
    assert b"forget quality ?" in screen.buffer.getvalue()


def test_retrain_of_another_seed_is_the_floor(tmp_path, table):
    folders = [a_run(tmp_path / str(seed), seed=seed) for seed in (2, 0, 1)]
    c = [np.log10(tofu.ratio_of(a_log(rows=(12, 4, 2, 2), seed=20 + seed)["forget"])) for seed in range(3)]
    for kept, *pairs in ((folders, (0, 1), (1, 2)), (folders[:2], (0, 2))):
        row = table("table", "--columns", "all", *kept)["Retrain of another seed"]
        distances = [np.sqrt(np.mean((c[i] - c[j]) ** 2)) for i, j in pairs]
        rouge = of_all([folders[(i + 1) % 3] for i, _ in pairs], "reference", "Retrain", "retain", "rouge")
        assert [row[name] for name in ("runs", "distance to Retrain ↓", "retain rouge ↑")] == [
            str(len(pairs)),
            *(spread(values) for values in (distances, rouge)),
        ]
    assert "Retrain of another seed" not in table("table", folders[0])


def test_epochs_are_what_their_steps_met_by_row():
    """Two epochs of three sequences, in steps of two and of one: lists by row, retain as the mean over them."""
    met = [([2, 0], 3.0), ([1], 6.0), ([1, 2], 1.0), ([0], 1.0)]
    lines = [
        {"epoch": 1 + i // 2, "retain": retain, "met": {"row": rows, "weight": [10 * i + row for row in rows]}}
        for i, (rows, retain) in enumerate(met)
    ]
    assert compare.epochs(lines) == [
        {"epoch": 1, "retain": 4.0, "row": [0, 1, 2], "weight": [0, 11, 2]},
        {"epoch": 2, "retain": 1.0, "row": [0, 1, 2], "weight": [30, 21, 22]},
    ]


def test_a_runs_own_picture(tmp_path, monkeypatch):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *to, **how: drawn.append(figure) or save(figure, *to, **how)
    )
    folder = a_run(tmp_path / "a")
    compare.draw_run(folder, {"NPO": [1.0, 2.0, 4.0]}, "nats")
    loss, weights, spread_of = drawn[0].axes
    steps, pictures = read(folder, "log.jsonl"), pictures_of(folder)
    assert curves_of(loss)["retain loss"] == pytest.approx([line["retain"] for line in steps])
    assert [marks.get_label() for marks in weights.collections] == ["epoch 1", "epoch 11"]
    for marks, met in zip(weights.collections, (pictures[0], pictures[-1]), strict=True):
        assert marks.get_offsets().T.tolist() == [LENGTHS, met["weight"]]
    assert spread_of.get_xlabel() == "nats" and curves_of(spread_of)["NPO"][-1] == 1
    assert sorted(path.name for path in folder.glob("run.png*")) == ["run.png"]
    (folder / "log.jsonl").unlink()  # nothing was trained
    compare.draw_run(folder, {}, "nats")
    assert all(not len(line.get_xdata()) for line in drawn[-1].axes[0].lines)


# ------------------------------------------------------------------ answers


ANSWERS = """
Q Who is 4?
truth 0.00 I am 4.
Retrain 0.00 4 a b c d
NPO 0.00 4 a b c d
SimNPO 0.00 4 a b c d

Q Who is 9?
truth 0.00 I am 9.
Retrain 0.17 9 a b c d a b c d
NPO 0.17 9 a b c d a b c d
SimNPO 0.17 9 a b c d a b c d

Q Who is 33?
truth 0.00 I am 33.
Retrain 0.17 33 a b c d a b c d
NPO 0.17 33 a b c d a b c d
SimNPO 0.17 33 a b c d a b c d

beside each answer: its share of repeated 4-grams. Mean over all forget answers and runs:
truth 0.000
Retrain 0.069
NPO 0.135 ± 0.092
SimNPO 0.069"""


def test_answers_stand_beside_their_question_from_short_to_long_truths(tmp_path, said):
    """The shortest, the sixth of twelve, the longest; NPO's second run repeats a fifth of all 4-grams."""
    runs = [
        a_run(tmp_path / f"{method}{seed}", method, seed) for method, seed in (("npo", 0), ("npo", 1), ("simnpo", 0))
    ]
    log = read(runs[1], "metrics.log.json")
    log["forget"]["generated"] = ["a b c d a b c d"] * 12
    write(runs[1], "metrics.log.json", log)
    assert [" ".join(line.split()) for line in said("answers", *runs, "--show", "3")] == ANSWERS.splitlines()


def test_answers_to_other_questions_do_not_stand_side_by_side(tmp_path, said, capsys):
    runs = [a_run(tmp_path / method, method, 0) for method in ("npo", "simnpo")]
    reference = read(runs[0], "reference.log.json")
    reference["Retrain"] |= {"question": read(runs[0], "metrics.log.json")["forget"]["question"][::-1]}
    write(runs[0], "reference.log.json", reference)
    assert not any(line.split()[:1] == ["Retrain"] for line in said("answers", *runs))
    log = read(runs[1], "metrics.log.json")
    log["forget"]["question"] = log["forget"]["question"][::-1]
    write(runs[1], "metrics.log.json", log)
    refused(compare.main, ["answers", *runs], capsys, "different questions")


# ------------------------------------------------------------------ claims


def claim_runs(folder):
    """Runs of made-up numbers: NPO, SimNPO, and relearning from both; seeds not in the order of folders."""
    draw, folders = np.random.default_rng(1).uniform, {}
    for method, order in (("npo", (0, 1, 2, 3)), ("simnpo", (2, 3, 0, 1))):
        for seed in order:
            base = folders[method, seed] = a_run(folder / f"{method}{seed}", method, seed, draw(0.1, 1), draw(0.5, 0.8))
            halves = {"shortest": draw(0.1, 1), "longest": draw(0.1, 1)}
            change(base, "metrics.json", distance=draw(0.1, 1), repetition=draw(0.1, 1), forget_quality_halves=halves)
            if method == "npo":  # it ends after epoch 2
                write(base, "epochs.jsonl", *read(base, "epochs.jsonl")[:2])
            for part in ("shortest", "random"):
                run = folders[method, seed, part] = a_run(
                    folder / f"{method}{seed}{part}",
                    "finetune",
                    7 + seed * len(method),
                    draw(1e-5, 1e-3),
                    start=flags_of(base),
                    model=str(base),
                    subset=f"{part}:0.2",
                )
                metrics = read(run, "metrics.json")
                metrics["reference"]["before"]["forget_quality"] = draw(1e-3, 1)
                write(run, "metrics.json", metrics)
    return folders


SIGNS = "> > > > >= < > > > > > > > < > > >= <".split()


def claimed_by_hand(folders, seed):
    """What each claim is about, for one seed."""

    def numbers(method):
        metrics, epochs = (read(folders[method, seed], name) for name in ("metrics.json", "epochs.jsonl"))
        r = [np.corrcoef(met["length"], met["weight"])[0, 1] for met in pictures_of(folders[method, seed])]
        relearnt = [read(folders[method, seed, part], "metrics.json") for part in ("shortest", "random")]
        after, before = (
            [forgotten(each) for each in many]
            for many in (relearnt, [each["reference"]["before"] for each in relearnt])
        )
        return np.array(
            [
                metrics["forget_quality"],
                *metrics["forget_quality_halves"].values(),
                metrics["distance"],
                metrics["model_utility"],
                metrics["repetition"],
                epochs[1]["model_utility"],
                forgotten(epochs[:3][-1]),
                (r[0] + r[1]) / 2,
                *np.abs([r[0], r[1], r[9]]),
                *after,
                *np.subtract(after, before),
            ]
        )

    simnpo, npo = numbers("simnpo"), numbers("npo")
    quality, short, long, distance, utility, repeats, early, along, _, first, second, tenth, *_, lasts, at_random = (
        simnpo - npo
    )
    return [
        quality,
        short,
        short - long,
        -distance,
        utility,
        npo[1] - npo[2],
        early,
        along,
        -repeats,
        -simnpo[8],
        first,
        second,
        (simnpo[9] + simnpo[10]) / 2 - simnpo[11],
        tenth,
        lasts,
        at_random,
        simnpo[12] - simnpo[13],
        npo[12] - npo[13],
    ]


def test_claims_are_paired_by_seed_each_by_hand(tmp_path, said, capsys):
    folders = claim_runs(tmp_path)
    _, _, *lines = said("claims", *folders.values())
    for line, sign, *values in zip(lines, SIGNS, *(claimed_by_hand(folders, seed) for seed in range(4)), strict=True):
        low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
        assert line.endswith(f"| {np.mean(values):.3g} [{low:.3g}, {high:.3g}] | 4 | {common.verdict(values, sign)} |")
    other = a_run(tmp_path / "other", "npo", 9, beta=7.0)
    refused(claims.main, [*folders.values(), other], capsys, "different settings (NPO beta=1.0, NPO beta=7.0)")
    one = said("claims", *(folders[key] for key in (("npo", 1), ("npo", 2), ("simnpo", 1))))
    assert "| 1 | can't tell |" in one[2] and one[-1].endswith("| – | 0 | no runs for it |")


@pytest.mark.parametrize(
    "values, sign, words",
    [
        ([1, 2, 3.0], ">", "can't tell"),
        ([2, 2.1, 2.2], ">", "holds"),
        ([2, 2.1, 2.2], "<", "does not hold"),
        ([-2, -2.1, -2.2], "<", "holds"),
        ([-2, -2.1, -2.2], ">=", "does not hold"),
        ([1, 2, 3.0], "<", "can't tell"),
        ([0, 0, 0.0], ">=", "holds"),
        ([0, 0, 0.0], ">", "does not hold"),
        ([0, 0, 0.0], "<", "does not hold"),
        ([5.0], ">", "can't tell"),
        ([], ">", "no runs for it"),
    ],
)
def test_verdicts(values, sign, words):
    assert common.verdict(values, sign) == words


def test_correlation_of_equal_weights_or_lengths_is_none():
    assert claims.correlation({"weight": [1.0, 1.0 + 1e-7, 1.0], "length": [3, 5, 9]}) == 0
    assert claims.correlation({"weight": [0.1, 0.2, 0.3], "length": [4, 4, 4]}) == 0
    r = scipy.stats.pearsonr([3, 5, 9], [1, 1.001, 1.003]).statistic
    assert claims.correlation({"weight": [1, 1.001, 1.003], "length": [3, 5, 9]}) == pytest.approx(r)


# ------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two runs of NPO, then two of SimNPO."""
    folder = tmp_path_factory.mktemp("four")
    return [
        a_run(folder / f"{method}{seed}", method, seed, 0.3 + seed / 10 + 0.2 * (method == "npo"), 0.6 + seed / 20)
        for method in ("npo", "simnpo")
        for seed in (0, 1)
    ]


def test_a_figure_is_written_and_not_over_another(four, tmp_path, capsys):
    for main, kind in ((compare.main, ["figure", "tradeoff"]), (figures.main, ["boxes"])):
        command = [*kind, str(four[0]), "--out", str(tmp_path / f"{kind[-1]}.png")]
        out = tmp_path / f"{kind[-1]}.png"
        out.write_bytes(b"mine")
        refused(main, command, capsys, "--overwrite")
        assert out.read_bytes() == b"mine"
        main([*command, "--overwrite"])
        assert out.read_bytes()[:4] == b"\x89PNG"


def test_figures_of_weights_show_each_epochs(four, axes):
    path = pictures_of(four[3])
    for axis, epoch in zip(axes("weights", four[3]), (1, 2, 3, 10), strict=True):
        r = scipy.stats.pearsonr(LENGTHS, path[epoch - 1]["weight"])
        low, high = r.confidence_interval()
        assert axis.get_title() == f"epoch {epoch}: r = {r.statistic:.2f} [{low:.2f}, {high:.2f}]"
        assert axis.collections[0].get_offsets().T.tolist() == [LENGTHS, path[epoch - 1]["weight"]]
    for axis, folder in zip(axes("boxes", *four[:2]), four, strict=False):
        medians = {
            np.mean(line.get_xdata()): line.get_ydata()[0]
            for line in axis.lines
            if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) > 0.5
        }
        assert medians == pytest.approx(
            {epoch: np.median(met["weight"]) for epoch, met in enumerate(pictures_of(folder), 1)}
        )


def test_paths_want_retrains_rows_in_the_runs_order(tmp_path, capsys):
    runs = [on_the_way(tmp_path / method, method) for method in ("simnpo", "npo")]
    for run in runs:
        logs = read(run, "reference.log.json")
        rows = [f"row {n}" for n in range(10)]
        logs["Original"] |= {"question": rows, "answer": rows}
        logs["Retrain"] |= {"question": [f" {row}" for row in rows], "answer": rows}  # the same but for white space
        write(run, "reference.log.json", logs)
    paths.main([*map(str, runs)])
    logs["Retrain"] = {name: values[::-1] for name, values in logs["Retrain"].items()}
    write(runs[1], "reference.log.json", logs)
    refused(paths.main, runs, capsys, "another order")


def test_weights_below_zero_are_in_the_picture(four, tmp_path, axes):
    """Those of a loss that is lowered, as IDK's −1/|y|."""
    run = a_run(tmp_path / "run", "idk")
    lines = read(run, "log.jsonl")
    for line in lines:
        line["met"]["weight"] = [-1 / n for n in line["met"]["length"]]
    write(run, "log.jsonl", *lines)
    for kind in ("weights", "boxes"):
        low, high = axes(kind, run)[0].get_ylim()
        assert low < -1 / 4 and -1 / 33 < high < 0.1 and low < high
        low, high = axes(kind, four[3])[0].get_ylim()
        assert low == 0 and high > 0.9


def curves_of(axis):
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def by_epoch(folders, start, of):
    return np.mean(
        [
            [
                of(metrics)
                for metrics in (read(folder, "metrics.json")["reference"][start], *read(folder, "epochs.jsonl"))
            ]
            for folder in folders
        ],
        0,
    )


def test_figures_over_epochs_begin_with_what_training_began_with(four, axes, tmp_path):
    for axis, of in zip(
        axes("epochs", *four),
        (forgotten, lambda metrics: metrics["distance"], lambda metrics: metrics["model_utility"]),
        strict=True,
    ):
        curves = curves_of(axis)
        for label, folders in (("NPO", four[:2]), ("SimNPO", four[2:])):
            assert curves[label] == pytest.approx(by_epoch(folders, "Original", of))
        for band, folders in zip(axis.collections, (four[:2], four[2:]), strict=True):
            x, y = band.get_paths()[0].vertices.T
            last = [of(read(folder, "epochs.jsonl")[-1]) for folder in folders]
            ends = scipy.stats.t.interval(0.95, 1, np.mean(last), scipy.stats.sem(last))
            assert [y[x == 3].min(), y[x == 3].max()] == pytest.approx(ends)
        for label in ("Original", "Retrain"):
            assert curves[label] == pytest.approx([np.mean([*map(of, of_all(four[:2], "reference", label))])] * 2)
    folders = claim_runs(tmp_path)
    (axis,) = axes("relearn", *(folder for key, folder in folders.items() if len(key) == 3))
    for name, method in (("NPO", "npo"), ("SimNPO", "simnpo")):
        for part in ("shortest", "random"):
            group = [folders[method, seed, part] for seed in range(4)]
            assert curves_of(axis)[f"{name} → fine-tuning {part}:0.2"] == pytest.approx(
                by_epoch(group, "before", forgotten)
            )


def test_the_tradeoff_shows_runs_and_their_means(four, axes):
    (axis,) = axes("tradeoff", *four)
    points = [group.get_offsets().tolist() for group in axis.collections]
    assert [group.get_label() for group in axis.collections[1::2]] == ["Original", "Retrain", "NPO", "SimNPO"]
    for place, folders in ((4, four[:2]), (6, four[2:])):
        expected = [[of_all([folder], "model_utility")[0], of_all([folder], "forget_quality")[0]] for folder in folders]
        assert points[place] == expected and points[place + 1] == [pytest.approx(np.mean(expected, 0))]


def test_the_halves_are_drawn_of_truth_ratios_with_retrains(four, axes):
    order = np.argsort(LENGTHS)
    logs = [
        [read(folder, "reference.log.json")["Retrain"] for folder in four[:2]],
        [read(folder, "metrics.log.json")["forget"] for folder in four[:2]],
    ]
    for axis, half, rows in zip(
        axes("halves", *four[:2]), ("shortest", "longest"), (order[:6], order[6:]), strict=True
    ):
        qualities = of_all(four[:2], "forget_quality_halves", half)
        assert axis.get_title() == f"{half} half: FQ {np.mean(qualities):.2g} ± {statistics.stdev(qualities):.2g}"
        for line, label, pair in zip(axis.lines, ("Retrain", "NPO"), logs, strict=True):
            values = np.log10(np.concatenate([tofu.ratio_of(log)[rows] for log in pair]))
            x, y = line.get_data()
            assert line.get_label() == label and x[0] == pytest.approx(values.min() - 0.5)
            assert y == pytest.approx(scipy.stats.gaussian_kde(values)(x))


# ------------------------------------------------------------------ at equal forgetting


# awaited, read: half-way and at Retrain of SimNPO, the same of NPO, by hand from `on_the_way`; is the paper right?
BY_HAND = {
    ("long", "short"): (2, 3, 1.25, 1.5, "holds"),
    ("short", "long"): (1.5, 2, 2.5, 3.5, "holds"),
    ("short", "retain"): (0.2, 0.3, 0.3, 0.6, "holds"),
    ("long", "retain"): (0.2, 0.3, 0.15, 0.2, "does not hold"),
    ("learnt", "never learnt"): (3, 3.5, 4, 4.75, "holds"),
    ("learnt", "retain"): (0.2, 0.3, 0.2, 0.35, "holds"),
}


@pytest.mark.parametrize("unseen", [False, True])
def test_paths_at_equal_forgetting_by_hand(unseen, tmp_path, said, axes):
    """Seeds differ by a tenth on retain in both methods: paired by seed, their difference is exact."""
    folders = [
        on_the_way(
            tmp_path / f"{method}{seed}",
            method,
            seed,
            UNSEEN[method] if unseen else (),
            retain=[loss + shift for loss in WAYS[method]["retain"]],
        )
        for method, order in (("simnpo", (0, 1)), ("npo", (1, 0)))
        for seed in order
        for shift in [seed / 10 - 0.05]
    ]
    lines = iter(said("paths", *folders)[2:])
    for (awaited, quantity), (*values, words) in BY_HAND.items():
        for when, (ours, theirs) in zip(("half-way to", "at"), zip(values[:2], values[2:], strict=False), strict=False):
            if quantity != "never learnt" or unseen:
                gap = f"{theirs - ours:.3f}"
                cells = [cell.strip() for cell in next(lines).strip("|").split("|")]
                assert cells[:6] == [
                    f"{awaited} {when} Retrain",
                    quantity,
                    f"{ours:.3f}",
                    f"{theirs:.3f} NPO",
                    f"{gap} [{gap}, {gap}]".replace("-0.000", "0.000"),
                    "2 of 2",
                ]
                assert cells[-1] == words or ours == theirs
    assert next(lines, None) is None
    turned = said("paths", *folders[::-1])  # the first given is what the others are compared with
    assert (
        turned[0].startswith("| when | loss on | NPO | another")
        and "| short | 1.250 | 2.000 SimNPO | 0.750" in turned[2]
    )
    shown = {axis.get_title(): [line.get_ydata()[[0, -1]] for line in axis.lines] for axis in axes("paths", *folders)}
    assert [*shown] == [f"loss on {group}" for group in ("short", "long", *["never learnt"] * unseen, "retain")]
    assert shown["loss on short"] == [pytest.approx((1, at)) for at in (3, 2.25)]
    assert shown["loss on retain"] == [pytest.approx((0.1, at)) for at in (0.3, 0.35)]


def test_paths_count_the_seeds_that_got_there_and_say_when_they_disagree(tmp_path, said):
    flat, never = [0.1] * 4, [1, 1.5, 1.7, 1.9]  # short answers' half-way is 2
    folders = [on_the_way(tmp_path / f"s{seed}", "simnpo", seed) for seed in (0, 1, 2)]
    folders += [on_the_way(tmp_path / "n0", "npo"), on_the_way(tmp_path / "n1", "npo", 1, retain=flat)]
    folders += [
        on_the_way(tmp_path / "g0", "graddiff", short=[1, 2, 3, 4], long=[1, 3, 5, 7], retain=flat),
        on_the_way(tmp_path / "g1", "graddiff", 1, short=never, long=[1, 3, 5, 7], retain=flat),
        on_the_way(tmp_path / "w1", "ga", 1, short=never, long=never, retain=flat),
    ]
    text = "\n".join(said("paths", *folders))
    half = scipy.stats.t.ppf(0.975, 1) * 0.1  # the standard error of 0.1 and -0.1
    for line, words in (
        (f"retain | 0.200 | 0.200 NPO | 0.000 [-{half:.3f}, {half:.3f}] | 2 of 2", "can't tell"),
        ("long | 1.500 | 3.000 GradDiff | 1.500 [–, –] | 1 of 2", "can't tell"),
        ("long | – | – GA | – [–, –] | 0 of 1", "no runs for it"),
    ):
        (found,) = (each for each in text.splitlines() if each.startswith(f"| short half-way to Retrain | {line}"))
        assert found.endswith(f"| {words} |")


def test_paths_of_a_pretrained_original_are_told_what_it_never_learnt(tmp_path, said, axes):
    """The same ways, with the last ten of twenty rows never learnt; the runs themselves do not know."""
    folders = [
        on_the_way(tmp_path / f"{told}{method}", method, unseen=UNSEEN[method])
        for told in (0, 1)
        for method in ("simnpo", "npo")
    ]
    for run in folders[2:]:
        change(run, "run.json", flags=flags_of(run) | {"never_learnt": None}, original=TAUGHT)
    told = said("paths", *folders[:2])
    assert said("paths", *folders[2:], "--never-learnt", 10) == told and len(told) == 14
    assert said("paths", *folders[2:], "--never-learnt", 18)[-4].startswith(
        "| learnt half-way to Retrain | never learnt"
    )
    assert len(said("paths", *folders[2:])) == 12  # all learnt
    grids = [said("grid", "paths", *folders[:2]), said("grid", "paths", *folders[2:], "--never-learnt", "10")]
    assert grids[0] == grids[1] != said("grid", "paths", *folders[2:])


def test_paths_are_of_your_own_questions_too(tmp_path, said):
    """Losses alone: no truth ratios."""
    folders = []
    for method in ("simnpo", "npo"):
        run = on_the_way(tmp_path / method, method)
        files = {"forget": "/f.jsonl", "retain": "/r.jsonl", "fields": []}
        change(run, "run.json", flags=flags_of(run) | {"task": "own", "forget_split": "forget", "data": files})
        logs = read(run, "reference.log.json")
        write(run, "reference.log.json", {name: {"loss": log["loss"]} for name, log in logs.items()})
        folders.append(run)
    assert said("paths", *folders)[2].startswith("| long half-way to Retrain | short | 2.000 | 1.250 NPO | -0.750 [")


# ------------------------------------------------------------------ the other benchmarks


def a_muse_log(shift=0.0, rouge=0.5):
    part = {
        "rouge": [rouge, 0.0],
        "generated": ["a b", "c"],
        "answer": ["a", "c"],
        "question": ["q", "r"],
        "length": [1, 2],
    }
    return {
        "verbmem": part,
        "forget": part,
        "retain": part | {"rouge": [1.0, 1.0]},
        **{f"privleak_{part}": {"score": [1.0 + shift * (part == "forget"), 2.0]} for part in muse.TEXTS},
    }


def a_wmdp_log(chosen=(0, 1, 2, 3)):
    return {
        name: {"chosen": list(chosen), "answer": [0, 1, 2, 2], "margin": [1.0, 0.5, 0.25, -2.0]} for name in wmdp.SETS
    }


def an_own_log(loss=1.0):
    part = {
        "loss": [loss, 2.0],
        "rouge": [0.5, 1.0],
        "length": [3, 4],
        "question": ["a", "b"],
        "answer": ["c", "d"],
        "generated": ["e", "f"],
    }
    return {"forget": part, "retain": part}


LOGS = {
    "toy-muse": (a_muse_log(3.0), a_muse_log()),
    "toy-wmdp": (a_wmdp_log((1, 1, 1, 1)), a_wmdp_log()),
    "own": (an_own_log(4.0), an_own_log()),
}
NONE = "{} ± 0.0".format


@pytest.mark.parametrize(
    "task, cells, point",
    [
        ("toy-muse", "25.0 25.0 75.0 **75.0 **100.0 0.875 1.5", (100, -75)),
        ("toy-wmdp", "**0.750 **0.750 **0.250 0.217 0.217 0.217 1.00", (0.25, 0.75)),
        ("own", "**2.121 3.000 0.750 3.000 **0.750 0.000", (0.75, -2.1213)),
    ],
)
def test_tables_and_figures_of_the_other_benchmarks(task, cells, point, tmp_path, table, axes, capsys):
    folders = [
        another_run(tmp_path / f"{method}{seed}", task, *LOGS[task], method, seed)
        for method in ("npo", "rmu", "task-vector")
        for seed in (0, 1)
    ]
    rows = table("table", *folders)
    assert [*rows] == ["Original", "Retrain", "NPO", "RMU", "Task Vector"]
    assert [cell.split(" ")[0] for cell in rows["NPO"].values()] == ["NPO", "2", *cells.split(" ")]
    (axis,) = axes("tradeoff", *folders)
    assert axis.collections[5].get_offsets().tolist() == [pytest.approx(point, rel=1e-4)]
    forgotten, kept = (curves_of(axis)["RMU"] for axis in axes("epochs", *folders))
    assert np.transpose([kept, forgotten]).tolist() == [pytest.approx(point, rel=1e-4)] * 3
    kinds = ["halves", "paths"] + ["mink"] * (task != "toy-muse")
    for command in ("claims", *(["answers"] if task == "toy-wmdp" else [])):
        refused(MAINS[command], folders, capsys, *["paths.py"] * (task == "own"))
    if task != "own":
        refused(MAINS["paths"], folders, capsys, "paths is of toy and tofu and own")
    for kind in kinds:
        refused(MAINS[f"figure {kind}"], [*folders, "--out", tmp_path / "no.png"], capsys)


def test_figure_mink_shows_retrains_scores_and_the_runs(tmp_path, axes):
    """NPO's forget scores 4, 2 beat the holdout's 1, 2 in three and a half of four pairs, Retrain's 1, 2 in two."""
    folders = []
    for seed, low in enumerate((1.0, 1.0)):
        log = a_muse_log(3.0) | {"privleak_retain": {"score": [0.25, 9.0 + seed]}}
        folders.append(another_run(tmp_path / f"{seed}", "toy-muse", log, a_muse_log(), seed=seed))
    panels = axes("mink", *folders)
    assert [axis.get_title() for axis in panels] == [
        "Original: AUC 0.88 ± 0.00",
        "Retrain: AUC 0.50 ± 0.00",
        "NPO: AUC 0.88 ± 0.00",
    ]
    for axis, retain in zip(panels, ((0.25, 10), (1, 2), (0.25, 10)), strict=False):
        ends = {
            label: (bars[0].get_x(), bars[-1].get_x() + bars[-1].get_width())
            for bars, label in zip(axis.containers, axis.get_legend_handles_labels()[1], strict=False)
        }
        assert ends["retain"] == pytest.approx(retain) and ends["holdout"] == pytest.approx((1, 2))


def test_runs_of_a_task_that_is_not_known(tmp_path, capsys):
    refused(MAINS["table"], [a_run(tmp_path / "a", task="magic")], capsys, "magic")


def files_of(forget, retain, **more):
    return {"forget": forget, "retain": retain, "fields": []} | more


@pytest.mark.parametrize("task, field", [("own", "data"), ("toy-wmdp", "forget_file")])
def test_runs_on_other_forget_files_are_not_compared(task, field, tmp_path, table, capsys):
    files = [files_of(name, "/k") if field == "data" else name for name in ("a.jsonl", "b.jsonl")]
    folders = [
        another_run(tmp_path / str(i), task, *LOGS[task], seed=i, **{field: each}) for i, each in enumerate(files)
    ]
    refused(MAINS["table"], folders, capsys, "b.jsonl")
    assert table("table", folders[0])["NPO"]["runs"] == "1"


def test_runs_that_keep_other_files_are_told_apart_and_noted(tmp_path, table, capsys):
    """By the file's name where that tells them apart, by its whole path where it does not; what is only measured
    beside, and where Original's files are the same, does not matter."""
    note, counts = "these runs have different retain files", itertools.count()

    def names_of(*files, **more):
        runs = [
            another_run(
                tmp_path / str(next(counts)), "own", *LOGS["own"], seed=i, data=data, retain_file="k.jsonl", **more
            )
            for i, data in enumerate(files)
        ]
        rows = table("table", *runs)
        compare.note.cache_clear()
        compare.read(runs)
        return [*rows][2:], rows["Original"]["runs"], note in capsys.readouterr().err

    ours, theirs = files_of("/f.jsonl", "/ours.jsonl"), files_of("/f.jsonl", "/theirs.jsonl")
    assert names_of(ours, theirs) == (["NPO retain-file=ours.jsonl", "NPO retain-file=theirs.jsonl"], "2", True)
    same = files_of("/f.jsonl", "/a/k.jsonl"), files_of("/f.jsonl", "/b/k.jsonl")
    assert names_of(*same) == (["NPO retain-file=/a/k.jsonl", "NPO retain-file=/b/k.jsonl"], "2", True)
    more = files_of("/f.jsonl", "/ours.jsonl", holdout="/h.jsonl", probe="/p.jsonl")
    assert names_of(ours, more) == (["NPO"], "2", False)
    assert names_of(ours) == (["NPO"], "1", False)
