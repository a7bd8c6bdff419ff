"""TOFU's arithmetic on hand-made numbers, logs of every layout, and measuring a model."""
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import tiny

import data
import evaluate
from data import InputError


def a_log(rows=(3, 4, 2, 2), seed=0):
    rng = np.random.default_rng(seed)
    return {name: {"loss": rng.uniform(0, 3, n).tolist(), "paraphrased_loss": rng.uniform(0, 3, n).tolist(),
                   "perturbed_loss": rng.uniform(1, 4, (n, 3)).tolist(), "rouge": rng.uniform(0.1, 1, n).tolist()}
            for name, n in zip(evaluate.SETS, rows)}


def test_truth_ratio_by_hand():
    ratio = evaluate.truth_ratio([1.0, 2.0], [[2.0, 3.0, 4.0], [1.0]])
    assert ratio == pytest.approx([math.exp(2), math.exp(-1)])
    assert evaluate.truth_ratio([0.0], [[1e4]]) == [math.inf]  # not a warning, not an error


def test_every_metric_by_hand():
    log = a_log()
    metrics = evaluate.summarize(log)
    forget, retain, real = log["forget"], log["retain"], log["real_authors"]
    c = {name: [math.exp(sum(wrong) / 3 - right) for right, wrong in
                zip(log[name]["paraphrased_loss"], log[name]["perturbed_loss"])] for name in evaluate.SETS}
    assert metrics["forget"]["probability"] == pytest.approx(sum(math.exp(-x) for x in forget["loss"]) / 3)
    assert metrics["forget"]["truth_ratio"] == pytest.approx(sum(min(x, 1 / x) for x in c["forget"]) / 3)
    assert metrics["retain"]["truth_ratio"] == pytest.approx(sum(max(0, 1 - 1 / x) for x in c["retain"]) / 4)
    assert metrics["retain"]["rouge"] == pytest.approx(sum(retain["rouge"]) / 4)
    offered = [math.exp(-right) / (math.exp(-right) + sum(math.exp(-w) for w in wrong))
               for right, wrong in zip(real["loss"], real["perturbed_loss"])]
    assert metrics["real_authors"]["probability"] == pytest.approx(sum(offered) / 2)
    nine = [metrics[name][part] for name in evaluate.SETS[1:] for part in evaluate.PARTS]
    assert metrics["model_utility"] == pytest.approx(9 / sum(1 / x for x in nine))
    assert metrics["forget_quality"] is None
    assert set(metrics) == {"forget_quality", "forget_quality_halves", "model_utility", "forget_examples", "repetition",
                            *evaluate.SETS}


def test_model_utility_is_zero_when_a_part_is():
    log = a_log()
    log["retain"]["rouge"] = [0.0] * 4
    assert evaluate.summarize(log)["model_utility"] == 0


def test_extreme_losses_give_numbers_not_nan():
    log = a_log()
    for name in evaluate.SETS:
        log[name]["loss"] = [5e3] * len(log[name]["loss"])
        log[name]["perturbed_loss"] = [[9e3, 8e3, 7e3] for _ in log[name]["loss"]]
    metrics = evaluate.summarize(log, evaluate.truth_ratio([1.0] * 3, [[2.0]] * 3))
    assert all(math.isfinite(metrics[name][part]) for name in evaluate.SETS for part in evaluate.PARTS)
    assert metrics["real_authors"]["probability"] == pytest.approx(1) and metrics["forget"]["truth_ratio"] == 0


def test_forget_quality_is_the_ks_p_value_and_needs_equal_sizes():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 1, 40), rng.lognormal(1, 1, 40)
    assert evaluate.forget_quality(a, a) == pytest.approx(1)
    assert evaluate.forget_quality(a, b) == scipy.stats.ks_2samp(a, b).pvalue < 0.01
    assert evaluate.forget_quality(1 / a, 1 / b) == pytest.approx(evaluate.forget_quality(a, b))
    with pytest.raises(InputError, match="40 forget examples with 39"):
        evaluate.forget_quality(a, b[:39])


def published(log, layout):
    content = {}
    for name, file in evaluate.PUBLISHED_SETS.items():
        columns = {their: log[name][ours] for ours, their in evaluate.PUBLISHED_FIELDS.items()}
        if layout == "dict":  # keyed by row number, and not in order
            columns = {their: {str(i): column[i] for i in reversed(range(len(column)))} for their, column in columns.items()}
        content[file] = columns
    return content


@pytest.mark.parametrize("layout", ["list", "dict"])
def test_a_published_log_gives_the_same_metrics_as_ours(tmp_path, layout):
    log = a_log(rows=(12, 11, 2, 2))
    (tmp_path / "log.json").write_text(json.dumps(published(log, layout)))
    (tmp_path / "ours.json").write_text(json.dumps(log))
    read = evaluate.read_log(tmp_path / "log.json")
    assert evaluate.summarize(read) == evaluate.summarize(evaluate.read_log(tmp_path / "ours.json"))
    assert list(evaluate.retrain_ratio_of_log(tmp_path / "log.json")) == list(evaluate.ratio_of(log))


def test_the_newer_frameworks_log_gives_the_same_forget_quality(tmp_path):
    log, other = a_log(rows=(30, 4, 2, 2)), a_log(rows=(30, 4, 2, 2), seed=5)
    scores = {str(i): {"score": 1 / c} for i, c in enumerate(evaluate.ratio_of(log))}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps({"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": scores}}))
    ratio = evaluate.retrain_ratio_of_log(tmp_path / "TOFU_EVAL.json")
    expected = evaluate.forget_quality(evaluate.ratio_of(other), evaluate.ratio_of(log))
    assert evaluate.forget_quality(evaluate.ratio_of(other), ratio) == pytest.approx(expected)


def test_published_llama2_logs_reproduce_the_papers_original_row(tofu_dir, tmp_path):
    """Table 2, forget10: Original has FQ 0.00 and MU 0.62; our check against numbers made by others."""
    logs = Path(tofu_dir).parent / "tofu_logs"
    if not logs.is_dir():
        pytest.skip("no published logs beside TOFU_DIR")
    evaluate.main(["--log", str(logs / "llama2-7b_full.json"), "--retrain", str(logs / "llama2-7b_retain90.json"),
                   "--out", str(tmp_path / "m.json")])
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["forget_quality"] < 1e-10 and metrics["model_utility"] == pytest.approx(0.62, abs=0.005)
    assert metrics["retain"] == pytest.approx({"probability": 0.99, "rouge": 0.98, "truth_ratio": 0.48}, abs=0.01)
    evaluate.main(["--log", str(logs / "llama2-7b_retain95.json"), "--retrain", str(logs / "llama2-7b_retain95.json"),
                   "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["forget_quality"] == pytest.approx(1)


def test_measure_scores_each_text_as_if_alone(toy_tokenizer):
    model = tiny("llama", vocab=len(toy_tokenizer))
    sets = {name: rows[:5] for name, rows in evaluate.load_sets("toy", "", "forget10").items()}
    log = evaluate.measure(model, toy_tokenizer, sets, torch.float64, batch_size=7, max_new_tokens=5)
    for name, rows in sets.items():
        for i, row in enumerate(rows):
            def alone(text):
                logp, length = data.response_logp(model, [data.encode(row["question"], text, toy_tokenizer)])
                return (-logp / length).item()
            assert log[name]["loss"][i] == pytest.approx(alone(row["answer"]))
            paraphrase = row["answer"] if name in data.BASE_KNOWLEDGE else row["paraphrased_answer"]
            assert log[name]["paraphrased_loss"][i] == pytest.approx(alone(paraphrase))
            assert log[name]["perturbed_loss"][i] == pytest.approx([alone(text) for text in row["perturbed_answer"]])
            prompt = data.encode(row["question"], "x", toy_tokenizer).prompt
            ids = list(prompt)
            for _ in range(5):
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
                if ids[-1] == toy_tokenizer.eos_token_id:
                    break
            assert log[name]["generated"][i] == toy_tokenizer.decode(ids[len(prompt):], skip_special_tokens=True).strip()
            assert log[name]["length"][i] == len(data.encode(row["question"], row["answer"], toy_tokenizer).response)
    evaluate.check_log(log)


def test_only_the_first_retain_rows_are_scored(monkeypatch):
    everything = data.load_rows("toy", "", "retain_perturbed")
    monkeypatch.setattr(evaluate, "RETAIN_ROWS", 7)
    assert evaluate.load_sets("toy", "", "forget10")["retain"] == everything[:7]


def test_evaluate_command_on_a_model_and_on_its_own_log(toy_model_folder, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    evaluate.main(["--model", str(toy_model_folder), "--retrain", str(toy_model_folder), "--out", str(out),
                   "--max-new-tokens", "3"])
    metrics = json.loads(out.read_text())
    assert metrics["forget_quality"] == pytest.approx(1) and set(metrics["retain"]) == set(evaluate.PARTS)
    again = tmp_path / "again.json"
    evaluate.main(["--log", str(tmp_path / "metrics.log.json"), "--out", str(again)])
    without = json.loads(again.read_text())
    for name in ("forget_quality", "forget_quality_halves"):
        assert without.pop(name) is None and metrics.pop(name)
    assert without == metrics
    assert "--retrain" in capsys.readouterr().out  # the screen says why there is no forget quality


def a_run(folder, method="npo", seed=0, quality=0.5, utility=0.7, start=None, **flags):
    """A folder with the files of a run, small and made up. start: the flags of the run it started from."""
    folder.mkdir(parents=True)
    flags = dict(task="toy", forget_split="forget10", model="tiny", method=method, seed=seed, beta=1.0, gamma=0.0,
                 out=str(folder), retrain="r", subset=None) | flags
    (folder / "run.json").write_text(json.dumps({"flags": flags} | ({"start": start} if start else {})))
    log, retrain = (a_log(rows=(12, 4, 2, 2), seed=s) for s in (10 + seed, 20 + seed))
    for one in (log, retrain):
        one["forget"] |= {"length": list(range(3, 15)), "question": ["Who?"] * 12, "answer": ["Me, the one."] * 12,
                          "generated": ["a b c d a b c d"] * 12}
    metrics = evaluate.summarize(log, evaluate.ratio_of(retrain)) | {"forget_quality": quality, "model_utility": utility,
                                                                     "train_seconds": 10.0 + seed, "peak_memory_bytes": 2e9}
    retrained = evaluate.summarize(retrain, evaluate.ratio_of(retrain))
    reference = {"before" if start else "Original": metrics | {"forget_quality": 1e-3, "model_utility": 0.8},
                 "Retrain": retrained | {"train_seconds": 99.0, "peak_memory_bytes": 3e9}}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"reference": reference}))
    (folder / "metrics.log.json").write_text(json.dumps(log))
    (folder / "reference.log.json").write_text(json.dumps({"Retrain": retrain["forget"]}))
    lengths = [4, 6, 9, 20, 33]
    (folder / "weights.jsonl").write_text("".join(json.dumps(
        {"epoch": epoch, "length": lengths, "weight": [1.0] * 5 if epoch == 1 and method == "npo" else
         [1 / n if epoch < 3 else 0.1 + 0.01 * (n % 2) for n in lengths]}) + "\n"
        for epoch in range(1, 12)))
    (folder / "epochs.jsonl").write_text("".join(json.dumps({"epoch": epoch} | metrics | {
        "forget_quality": quality * epoch / 3, "model_utility": utility - (0.1 * epoch if method == "npo" else 0)}) + "\n"
        for epoch in (1, 2, 3)))
    return folder


def flags_of(folder):
    return json.loads((folder / "run.json").read_text())["flags"]


def table_of(capsys, *arguments):
    evaluate.main(["table", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def test_table_over_runs(tmp_path, capsys):
    runs = [a_run(tmp_path / "a", seed=0, quality=0.2, utility=0.6), a_run(tmp_path / "b", seed=1, quality=0.4, utility=0.6),
            a_run(tmp_path / "c", "simnpo", quality=0.001, utility=0.7)]
    lines = table_of(capsys, *runs)
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:] if line[:1] == "|"}
    assert list(cells) == ["Original", "Retrain", "NPO", "SimNPO"]
    assert cells["NPO"][:3] == ["2", "**0.3 ± 0.14**", "-0.5 ± 0.2"] and cells["NPO"][5] == "0.600 ± 0.000"
    assert cells["SimNPO"][1:3] == ["0.001", "-3.0"] and cells["SimNPO"][5] == "**0.700**"
    assert cells["Original"][:2] == ["2", "0.001 ± 0"]  # seed 0's once, though two runs had it
    assert len({line.count("|") for line in lines if line[:1] == "|"}) == 1
    assert any(line.startswith("12 forget examples") for line in lines)
    wide = table_of(capsys, "--columns", "all", *runs)
    assert wide[0].count("|") == 3 + len(evaluate.COLUMNS) and "repeated 4-grams →R" in wide[0]

    lines = table_of(capsys, "--form", "csv", *runs)
    rows = list(csv.reader(lines))
    assert rows[0][:4] == ["method", "runs", "forget quality ↑ mean", "forget quality ↑ sd"]
    assert [len(row) for row in rows] == [len(rows[0])] * 5
    assert float(rows[3][2]) == pytest.approx(0.3) and float(rows[3][3]) == pytest.approx(math.sqrt(0.02)) and rows[4][3] == ""
    text = table_of(capsys, "--form", "text", *runs)
    assert text[3].startswith("NPO       2     *0.3 ± 0.14")
    cost = table_of(capsys, "--columns", "cost", *runs)
    assert cost[3] == "| Retrain | 2 | 99.0 ± 0.0 | 3.00 ± 0.00 |" and cost[4] == "| NPO | 2 | 10.5 ± 0.7 | 2.00 ± 0.00 |"

    other = a_run(tmp_path / "d", seed=2, beta=2.0)  # runs that differ are not averaged
    assert [line.split("|")[1].strip() for line in table_of(capsys, runs[0], other)[4:6]] == ["NPO beta=1.0", "NPO beta=2.0"]
    again = a_run(tmp_path / "e", "finetune", start=flags_of(runs[0]), model=str(runs[0]), subset="shortest:0.2")
    assert table_of(capsys, again)[3].startswith("| NPO → fine-tuning shortest:0.2 | 1 |")


def test_halves_are_by_length_and_have_a_forget_quality_each():
    log, retrain = a_log(rows=(9, 4, 2, 2)), a_log(rows=(9, 4, 2, 2), seed=1)
    log["forget"]["length"] = [9, 1, 8, 2, 7, 3, 6, 4, 5]
    metrics = evaluate.summarize(log, evaluate.ratio_of(retrain))
    short, long = [1, 3, 5, 7], [8, 6, 4, 2, 0]
    for half, rows in (("shortest", short), ("longest", long)):
        expected = scipy.stats.ks_2samp(evaluate.ratio_of(log)[rows], evaluate.ratio_of(retrain)[rows]).pvalue
        assert metrics["forget_quality_halves"][half] == expected
    assert metrics["forget_examples"] == 9 and metrics["repetition"] is None
    assert evaluate.summarize(log)["forget_quality_halves"] is None


def test_repetition_counts_repeated_four_grams():
    assert evaluate.repetition("one two three") == evaluate.repetition("") == 0
    assert evaluate.repetition("a b c d e f") == 0
    assert evaluate.repetition("a a a a a a") == pytest.approx(2 / 3)  # three 4-grams, all the same
    log = a_log()
    log["forget"]["generated"] = ["a a a a a a", "a b", "c"]
    assert evaluate.summarize(log)["repetition"] == pytest.approx(2 / 9)


@pytest.mark.parametrize("n", [5, 40])
def test_the_values_that_forget_quality_can_take(n):
    values, draw = evaluate.quality_values(n), np.random.default_rng(0)
    assert len(values) == n + 1 and values == sorted(values) and values[-1] == 1
    assert values[0] == scipy.stats.ks_2samp(range(n), range(n, 2 * n)).pvalue < values[1]
    for _ in range(20):
        quality = evaluate.forget_quality(draw.normal(size=n), draw.normal(draw.uniform(0, 2), size=n))
        assert min(abs(quality - value) for value in values) < 1e-12


def test_runs_closer_than_one_example_are_not_to_be_ranked(tmp_path, capsys):
    values = evaluate.quality_values(12)
    close = [a_run(tmp_path / "a", quality=values[-4]), a_run(tmp_path / "b", "simnpo", quality=values[-4] + 1e-3),
             a_run(tmp_path / "c", "ga", quality=values[-7])]
    warnings = [line for line in table_of(capsys, *close) if line.startswith("warning")]
    assert len(warnings) == 1 and "SimNPO" in warnings[0] and " NPO" in warnings[0]


def test_relearning_from_different_settings_is_not_averaged(tmp_path, capsys):
    bases = [a_run(tmp_path / name, seed=seed, beta=beta) for name, seed, beta in (("a", 0, 1.0), ("b", 1, 2.0))]
    runs = [a_run(base / "again", "finetune", start=flags_of(base), model=str(base), subset="random:0.2") for base in bases]
    assert [line.split("|")[1].strip() for line in table_of(capsys, *runs)[3:5]] == [
        f"NPO → fine-tuning random:0.2 start-beta={beta}" for beta in (1.0, 2.0)]
    measured_alike = [a_run(tmp_path / "c", seed=5, eval="end"), a_run(tmp_path / "d", seed=6, eval="epoch")]
    assert table_of(capsys, *measured_alike)[4].startswith("| NPO | 2 |")


def test_answers_average_over_the_runs_of_a_method(tmp_path, capsys):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", seed=1)]
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    (runs[1] / "metrics.json").write_text(json.dumps(metrics | {"repetition": 0.6}))
    evaluate.main(["answers", *map(str, runs)])
    assert capsys.readouterr().out.splitlines()[-1].strip() == "NPO  0.400 ± 0.283"


def test_a_terminal_without_arrows(tmp_path):
    done = subprocess.run([sys.executable, evaluate.__file__, "table", a_run(tmp_path / "a")], capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "forget quality ?" in done.stdout and done.stderr == ""


def test_choose_takes_the_best_setting_that_keeps_utility(tmp_path, capsys):
    runs = [a_run(tmp_path / "wild", beta=1.0, quality=0.9, utility=0.5), a_run(tmp_path / "good", beta=2.0, quality=0.6, utility=0.77),
            a_run(tmp_path / "equal", beta=4.0, quality=0.6, utility=0.765), a_run(tmp_path / "weak", beta=3.0, quality=0.1, utility=0.8), a_run(tmp_path / "ga", "ga", quality=0.9, utility=0.1)]
    evaluate.main(["choose", *map(str, runs)])
    lines = capsys.readouterr().out.splitlines()
    assert "0.760" in lines[0] and lines[1].startswith("NPO beta=2.0 ") and lines[2].startswith("GA ") and len(lines) == 3


def test_answers_side_by_side(tmp_path, capsys):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo")]
    evaluate.main(["answers", *map(str, runs), "--show", "3"])
    screen = capsys.readouterr().out
    assert screen.count("Who?") == 3 and screen.count(" NPO  0.20  a b c d a b c d") == 3
    assert "Retrain  0.200" in screen and "truth  0.000" in screen


def claim_runs(folder, seeds=5):
    """SimNPO a little ahead, by amounts that differ between seeds; it forgets lastingly, NPO does not."""
    runs = []
    for seed in range(seeds):
        for method, quality in (("npo", 0.4 + 0.02 * seed), ("simnpo", 0.6 + 0.03 * seed)):
            run = a_run(folder / f"{method}{seed}", method, seed, quality, utility=0.7 - 0.01 * seed * (method == "npo"))
            runs.append(run)
            for subset in ("shortest", "random"):
                after = {"npo": 1e-6, "simnpo": 2e-3}[method] * (1.5 if subset == "random" else 1) * (1 + 0.1 * seed)
                runs.append(a_run(folder / f"{method}{seed}{subset}", "finetune", seed + 50, after, start=flags_of(run),
                                  model=str(run), subset=f"{subset}:0.2"))
    return runs


def test_claims_with_intervals_and_verdicts(tmp_path, capsys):
    runs = claim_runs(tmp_path)
    evaluate.main(["claims", *map(str, runs)])
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in capsys.readouterr().out.splitlines()[2:]]
    by_hand = scipy.stats.ttest_1samp([0.2 + 0.01 * seed for seed in range(5)], 0).confidence_interval()
    assert rows[0][2] == f"0.22 [{by_hand.low:.3g}, {by_hand.high:.3g}]" and rows[0][3:] == ["5", "holds"]
    r = -np.corrcoef([4, 6, 9, 20, 33], [1 / n for n in (4, 6, 9, 20, 33)])[0, 1]
    said, by_claim = {row[0]: row[-1] for row in rows}, {row[0]: row[2] for row in rows}
    assert by_claim["NPO loses more utility early"].startswith("0.22 [")  # 0.2, and 0 to 0.04 more by seed
    assert by_claim["… more so than NPO's, in epoch 1"].startswith(f"{r:.3g} [")
    assert by_claim["… more so than NPO's, in epoch 2"].startswith("0 [")
    assert by_claim["short responses get SimNPO's largest weights in epochs 1 and 2"].startswith(f"{r:.3g} ")
    assert by_claim["NPO's answers repeat themselves more"].startswith("0 ")
    halves = [json.loads((tmp_path / f"{m}{s}" / "metrics.json").read_text())["forget_quality_halves"] for s in range(5) for m in ("simnpo", "npo")]
    gaps = [[one[half] - other[half] for half in ("shortest", "longest")] for one, other in zip(halves[::2], halves[1::2])]
    assert rows[1][2].startswith(f"{np.mean(gaps, axis=0)[0]:.3g}") and rows[2][2].startswith(f"{np.mean(gaps, axis=0) @ [1, -1]:.3g}")
    assert said["SimNPO's model utility is at least NPO's"] == said["SimNPO forgets more lastingly (shortest-relearn)"] == "holds"
    assert said["shortest-relearn is no worse than random-relearn for SimNPO"] == "does not hold"  # log10(1 / 1.5) in each seed
    assert said["… but is worse for NPO"] == said["… and less so later"] == "holds"
    evaluate.main(["claims", *map(str, runs[:1] + runs[3:4])])
    lines = capsys.readouterr().out.splitlines()
    assert "can't tell" in lines[2] and "no runs for it" in lines[-1]  # one seed says nothing


def test_correlation_of_equal_weights_or_lengths_is_none():
    assert evaluate.correlation({"weight": [1.0, 1.0 + 1e-7, 1.0], "length": [3, 5, 9]}) == 0
    assert evaluate.correlation({"weight": [0.1, 0.2, 0.3], "length": [4, 4, 4]}) == 0
    assert evaluate.correlation({"weight": [0.1, 0.2, 0.3], "length": [1, 2, 3]}) == pytest.approx(1)


@pytest.mark.parametrize("values, sign, said", [
    ([1, 2, 3.0], ">", "can't tell"), ([2, 2.1, 2.2], ">", "holds"), ([2, 2.1, 2.2], "<", "does not hold"),
    ([-2, -2.1, -2.2], "<", "holds"), ([0, 0, 0.0], ">=", "holds"), ([0, 0, 0.0], ">", "does not hold"), ([5.0], ">", "can't tell")])
def test_verdicts(values, sign, said):
    assert evaluate.verdict(values, sign) == said


@pytest.mark.parametrize("kind", evaluate.FIGURES)
def test_every_figure_is_drawn_from_the_files_of_runs(kind, tmp_path):
    if kind == "relearn":
        runs = [run for run in claim_runs(tmp_path / "runs", 2) if run.name[-1] in "tm"]
    elif kind == "grid":
        runs = [a_run(tmp_path / f"{beta}{gamma}", "simnpo", beta=beta, gamma=gamma) for beta in (1.0, 2.0) for gamma in (0.0, 0.5)][:3]
    else:
        runs = [a_run(tmp_path / f"{method}{seed}", method, seed) for method in ("npo", "simnpo") for seed in (0, 1)]
    evaluate.main(["figure", kind, *map(str, runs), "--out", str(tmp_path / "f.png")])
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_figures_show_what_the_runs_say(tmp_path):
    runs = [a_run(tmp_path / f"{method}{seed}", method, seed, 0.5 + seed / 10) for method in ("npo", "simnpo") for seed in (0, 1)]
    panels = evaluate.draw_weights(evaluate.read_runs(runs[2:], "weights.jsonl")).axes
    r = scipy.stats.pearsonr([4, 6, 9, 20, 33], [1 / n for n in (4, 6, 9, 20, 33)])
    assert f"r = {r.statistic:.2f} [{r.confidence_interval().low:.2f}" in panels[0].get_title() and "epoch 10" in panels[3].get_title()
    assert panels[0].collections[0].get_offsets().tolist() == [[n, 1 / n] for n in (4, 6, 9, 20, 33)]
    quality, _ = evaluate.draw_epochs(evaluate.read_runs(runs, "epochs.jsonl")).axes
    expected = [np.mean([math.log10(x) for x in values]) for values in
                ([1e-3, 1e-3], [0.5 / 3, 0.6 / 3], [1 / 3, 0.4], [0.5, 0.6])]
    assert quality.lines[0].get_ydata() == pytest.approx(expected)
    halves = evaluate.draw_halves(evaluate.read_runs(runs[:1], "metrics.log.json", "reference.log.json")).axes
    metrics = json.loads((runs[0] / "metrics.json").read_text())["forget_quality_halves"]
    assert [axis.get_title() for axis in halves] == [f"{half} half: FQ {metrics[half]:.2g}" for half in ("shortest", "longest")]
    (axis,) = evaluate.draw_tradeoff(evaluate.read_runs(runs)).axes
    assert [0.7, 0.55] in [points.get_offsets().tolist()[0] for points in axis.collections]
    quality, _, *_ = evaluate.draw_grid(evaluate.read_runs(runs[2:])).axes
    assert quality.texts[0].get_text() == "0.55"
