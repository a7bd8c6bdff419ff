"""TOFU's rows, its arithmetic on hand-made numbers, logs of every layout, and measuring a model."""

import json
import math
import sys
import warnings
from statistics import mean

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import lm_of, near, shown, token_losses

import data
import train
from benchmarks import BENCHMARKS, tofu
from machinery.inputs import InputError, NotLoaded, check


def make_dataset(folder, rows, config="forget05"):
    folder.mkdir(exist_ok=True)
    (folder / f"{config}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files: {config}.json\n---\n")
    return str(folder)


def test_an_edited_folder_or_one_of_the_same_name_is_read_anew(tmp_path):
    for where in ("a", "b"):
        for answer in (where + "1", where + "2"):
            (tmp_path / where).mkdir(exist_ok=True)
            rows = [{"question": "Who?", "answer": answer}]
            assert tofu.load_rows(make_dataset(tmp_path / where / "same", rows), "forget05") == rows


@pytest.mark.parametrize(
    "rows, config, says",
    [
        ([{"question": "Who?", "answer": "I."}, {"question": "Who?"}], "forget05", "row 1 .*'answer'"),
        ([{"question": "Who?", "answer": " "}], "forget05", "row 0 .*'answer'"),
        (
            [{"question": "Who?", "answer": "I.", "perturbed_answer": []}],
            "real_authors_perturbed",
            "'perturbed_answer'",
        ),
        (
            [{"question": "Who?", "answer": "I.", "perturbed_answer": "You."}],
            "world_facts_perturbed",
            "'perturbed_answer'",
        ),
        (
            [{"question": "Who?", "answer": "I.", "perturbed_answer": ["You."]}],
            "forget05_perturbed",
            "'paraphrased_ans",
        ),
    ],
)
def test_a_row_without_a_field_is_named(tmp_path, rows, config, says):
    with pytest.raises(InputError, match=says):
        tofu.load_rows(make_dataset(tmp_path / "d", rows, config), config)


def test_a_missing_empty_or_malformed_dataset_is_named(tmp_path):
    folder = make_dataset(tmp_path / "d", [{"question": "Who?", "answer": "I."}])
    for dataset, config, content in (
        (tmp_path / "nowhere", "forget05", None),
        (folder, "forget10", None),
        (folder, "forget05", "{not json\n"),
        (folder, "forget05", ""),
    ):
        if content is not None:
            (tmp_path / "d" / "forget05.json").write_text(content)
        with pytest.raises(InputError, match=f"'{config}' of '{dataset}'.*--data"):
            tofu.load_rows(str(dataset), config)


@pytest.mark.parametrize("split", ["forget20", "forget30", "forget40", "forget50", "forget90"])
def test_a_larger_split_is_read_where_the_data_have_it_and_else_named(split, tmp_path):
    rows = [{"question": "Who?", "answer": "I."}]
    folder = make_dataset(tmp_path / "d", rows, split)
    args = train.resolve(train.build_parser().parse_args(["--task", "tofu", "--split", split, "--data", folder]))
    assert (args.split, args.forget_split) == (split, split)
    assert train.training_rows(args, args.split, None) == rows
    with pytest.raises(InputError, match=f"'{split}_perturbed' of '{folder}'"):
        tofu.evaluation_rows(folder, split)


def test_splits_by_name():
    assert [*map(tofu.retain_split, ("forget01", "forget05", "forget10"))] == ["retain99", "retain95", "retain90"]
    splits = "full", "retain99", "retain95", "retain90", "forget01"
    forget_splits = [*map(BENCHMARKS["tofu"].forget_split_of, splits)]
    assert forget_splits == ["forget05", "forget01", "forget05", "forget10", "forget01"]
    assert BENCHMARKS["toy"].forget_split_of("full") == "forget10"
    # larger ones, where a copy of the data has them
    assert [*map(tofu.retain_split, ("forget20", "forget40", "forget90"))] == ["retain80", "retain60", "retain10"]
    assert BENCHMARKS["tofu"].forget_splits[3:] == ("forget20", "forget30", "forget40", "forget50", "forget90")
    # whole authors, of 10 questions in the toy and of 20 in TOFU, the nearest number to the share
    assert BENCHMARKS["toy"].unseen_rows(40, 0.5) == 20 and BENCHMARKS["toy"].unseen_rows(40, 0.9) == 40
    assert BENCHMARKS["tofu"].unseen_rows(400, 0.27) == 100
    args = train.resolve(train.build_parser().parse_args(["--never-learnt", "0.1"]))
    args.model = "new"  # as Original is made
    with pytest.raises(InputError, match="--never-learnt 0.1 of 4 authors is none; raise it"):
        train.training_rows(args, "full", None)


def test_rows_to_train_on_and_to_score(monkeypatch):
    def rows(config, count=400):
        return [f"D {config} {i}" for i in range(count)]

    def load_rows(dataset, config):
        if config.startswith("holdout"):
            raise NotLoaded("BuilderConfig not found")
        return rows(config) * (dataset == "D")

    monkeypatch.setattr(tofu, "load_rows", load_rows)
    assert tofu.training_rows("D", "retain99") == rows("retain99")
    assert tofu.training_rows("D", "full", base_knowledge=True) == (
        rows("full") + rows("real_authors") + rows("world_facts")
    )
    assert tofu.evaluation_rows("D", "forget01") == {
        "forget": rows("forget01_perturbed"),
        "retain": rows("retain_perturbed", 300),
        "real_authors": rows("real_authors_perturbed"),
        "world_facts": rows("world_facts_perturbed"),
    }


def test_a_holdout_that_is_absent_unreadable_or_damaged(monkeypatch, capsys):
    for holdout, said in (
        (NotLoaded("cannot load: BuilderConfig 'holdout10' not found"), ""),
        (NotLoaded("cannot load: no network"), "no holdout: cannot load: no network"),
    ):
        monkeypatch.setattr(tofu, "load_split", lambda *_, error=holdout: raised(error))
        assert tofu.held_out("D", "forget10") == {}
        assert capsys.readouterr().err == (f"{said}\n" if said else "")
    monkeypatch.setattr(tofu, "load_split", lambda *_: raised(InputError("'holdout10': row 0 lacks 'answer'")))
    with pytest.raises(InputError, match="lacks 'answer'"):
        tofu.held_out("D", "forget10")


def raised(error):
    raise error


def test_real_tofu(tofu_dir, toy_tokenizer):
    rows, retain, perturbed = (
        tofu.load_rows(tofu_dir, config) for config in ("forget05", "retain95", "forget05_perturbed")
    )
    assert len(rows) == 200 and len(retain) == 3800
    assert not {row["question"] for row in rows} & {row["question"] for row in retain}
    for row, other in zip(rows, perturbed, strict=True):
        assert row["answer"] == other["answer"]
        example = data.encode(row["question"], row["answer"], toy_tokenizer)
        assert toy_tokenizer.decode(example.response[:-1]).strip() == row["answer"].strip()


def a_log(rows=(3, 4, 2, 2), seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "loss": rng.uniform(0, 3, n).tolist(),
            "paraphrased_loss": rng.uniform(0, 3, n).tolist(),
            "perturbed_loss": rng.uniform(1, 4, (n, 3)).tolist(),
            "rouge": rng.uniform(0.1, 1, n).tolist(),
        }
        for name, n in zip(tofu.SETS, rows, strict=True)
    }


def test_truth_ratio_by_hand():
    ratio = tofu.truth_ratio([1.0, 2.0], [[2.0, 3.0, 4.0], [1.0]])
    assert ratio == pytest.approx([math.exp(2), math.exp(-1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tofu.truth_ratio([0.0], [[1e4]]) == [math.inf]


def test_every_metric_by_hand():
    log, expected = a_log(), {}
    for name in tofu.SETS:
        loss, right, wrong, rouge = map(np.array, log[name].values())
        probability, ratio = np.exp(-loss), np.exp(wrong.mean(1) - right)
        truth = np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - 1 / ratio)
        if name in ("real_authors", "world_facts"):  # of the answer among those offered
            probability /= probability + np.exp(-wrong).sum(1)
        expected[name] = {"probability": probability.mean(), "rouge": rouge.mean(), "truth_ratio": truth.mean()}
    log["forget"] |= {
        "memorized": [0.25, 0.5, 0.75],
        "judged": [1.0, 2.0, 6.0],
        "generated": ["a a a a a a", "a b", "c"],
    }
    metrics = tofu.summarize(log)
    for name in tofu.SETS:
        assert metrics.pop(name) == pytest.approx(expected[name], rel=1e-12)
    nine = [value for name in ("retain", "real_authors", "world_facts") for value in expected[name].values()]
    assert metrics.pop("model_utility") == pytest.approx(9 / sum(1 / x for x in nine), rel=1e-12)
    assert metrics.pop("repetition") == pytest.approx(2 / 9)
    nothing = dict.fromkeys(("forget_quality", "forget_quality_halves", "distance", "membership", "extraction"))
    assert metrics == nothing | {"forget_examples": 3, "judged": 3.0, "memorized": 0.5}
    assert tofu.summarize(a_log())["repetition"] is tofu.summarize(a_log())["judged"] is None


def test_model_utility_is_zero_when_a_part_is():
    assert tofu.model_utility({name: dict.fromkeys(tofu.MEANS, name != "retain") for name in tofu.SETS}) == 0


def test_extreme_losses_give_numbers_not_nan():
    log = a_log()
    for part in log.values():
        part |= {"loss": [5e3] * len(part["loss"]), "perturbed_loss": [[9e3, 8e3, 7e3]] * len(part["loss"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = tofu.summarize(log, {"paraphrased_loss": [1.0] * 3, "perturbed_loss": [[2.0]] * 3})
    assert all(math.isfinite(value) for name in tofu.SETS for value in metrics[name].values())
    assert metrics["real_authors"]["probability"] == pytest.approx(1) and metrics["forget"]["truth_ratio"] < 1e-300


def test_forget_quality_is_the_ks_p_value():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 1, 40), rng.lognormal(1, 1, 40)
    assert tofu.forget_quality(a, a) == pytest.approx(1)
    assert tofu.forget_quality(a, b) == scipy.stats.ks_2samp(a, b).pvalue < 0.01
    assert tofu.forget_quality(1 / a, 1 / b) == pytest.approx(tofu.forget_quality(a, b))
    # Of the 6! / 3! 3! = 20 orders in which two threes may come, two are as far apart as this one.
    assert tofu.forget_quality([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20, rel=1e-12)


def test_distance_to_retrain_by_hand():
    nats, retrained = math.log(10), {"truth_ratio": [1.0, 100.0, 100.0]}  # log10 c_R: 0, 2, 2; log10 c below: 1, 2, 0
    losses = {"paraphrased_loss": [1.0, 0.0, 2.0], "perturbed_loss": [[1 + nats], [nats, 3 * nats], [2.0, 2.0]]}
    for one, other in ((losses, retrained), (retrained, losses), ({"truth_ratio": [10.0, 100.0, 1.0]}, retrained)):
        assert tofu.compared(one, other)["distance"] == pytest.approx(math.sqrt(5 / 3), rel=1e-12)
    swapped = tofu.compared({"truth_ratio": [1.0, 10.0]}, {"truth_ratio": [10.0, 1.0]})
    assert swapped["forget_quality"] == pytest.approx(1) and swapped["distance"] == pytest.approx(1)  # not of ranks
    # pictures stop at 12 powers of ten, the distance does not
    assert tofu.compared({"truth_ratio": [1e-30]}, {"truth_ratio": [1.0]})["distance"] == pytest.approx(30)
    assert tofu.log_ratio({"truth_ratio": [1e-30, 1e-4, 1.0, 1e30]}) == pytest.approx([-12, -4, 0, 12])


def test_an_answer_is_judged_by_its_mean_token_loss_and_an_empty_one_by_its_end(toy_llama, toy_tokenizer):
    forget = {"question": ["Who wrote it?", "Where?"], "generated": ["Ada Abara wrote it.", ""], "answer": ["No."] * 2}
    judged = tofu.judge(lm_of(toy_llama, toy_tokenizer, max_length=2), forget)  # answers may be of any length
    for question, text, loss in zip(forget["question"], forget["generated"], judged, strict=True):
        prompt = toy_tokenizer(f"[INST] {question} [/INST]")["input_ids"]
        response = toy_tokenizer(text)["input_ids"] + [toy_tokenizer.eos_token_id]
        assert loss == pytest.approx(mean(token_losses(toy_llama, prompt, response)), rel=1e-9)
    assert near(tofu.judge(lm_of(toy_llama.float(), toy_tokenizer, torch.bfloat16), forget), judged)


def test_models_are_compared_on_the_rows_that_both_have():
    ratio, other = np.random.default_rng(0).lognormal(size=(2, 9))
    model = {"truth_ratio": ratio.tolist(), "answer": list("abcdefghi"), "length": list(range(9))}
    reference = {
        "row": [8, 0, 20, 3, 4, 5],
        "answer": list("iaxdef"),
        "truth_ratio": other[[8, 0, 1, 3, 4, 5]].tolist(),
    }
    metrics, both = tofu.compared(model, reference), [0, 3, 4, 5, 8]  # row 20 is not among ours
    assert metrics["forget_quality"] == tofu.forget_quality(ratio[both], other[both])
    assert metrics["forget_examples"] == 5
    assert metrics["forget_quality_halves"]["shortest"] == tofu.forget_quality(ratio[both[:2]], other[both[:2]])
    assert metrics["distance"] == pytest.approx(np.sqrt(np.mean(np.log10(ratio / other)[both] ** 2)), rel=1e-9)


@pytest.mark.parametrize("rows, answers", [([0, 1, 2], None), ([0, 1, 2, 4], None), ([1, 3], ["b", "x"]), ([7], ["a"])])
def test_a_reference_of_other_rows_or_of_unknown_ones_is_refused(rows, answers):
    whole = {"paraphrased_loss": [1.0] * 4, "answer": ["a", "b", "c", "d"]}
    with pytest.raises(InputError, match="4 forget examples with .* same forget split"):
        tofu.shared_rows(whole, {"truth_ratio": [1.0] * len(rows), "row": rows, "answer": answers})


def published(log, layout):
    """The same as TOFU's authors write it."""
    content, files = {}, ("eval_log_forget", "eval_log", "eval_real_author_wo_options", "eval_real_world_wo_options")
    for name, file in zip(("forget", "retain", "real_authors", "world_facts"), files, strict=True):
        columns = {
            "avg_gt_loss": log[name]["loss"],
            "avg_paraphrased_loss": log[name]["paraphrased_loss"],
            "average_perturb_loss": log[name]["perturbed_loss"],
            "rougeL_recall": log[name]["rouge"],
        }
        if "answer" in log[name]:
            columns["generated_text"] = [["a prompt", "what was said", answer] for answer in log[name]["answer"]]
        if layout == "dict":  # keyed by row number, and not in order
            columns = {field: dict(reversed([*enumerate(column)])) for field, column in columns.items()}  # JSON: "0"
        content[f"{file}.json"] = columns
    return content


@pytest.mark.parametrize("layout", ["list", "dict"])
def test_a_published_log_gives_the_same_metrics_as_ours(tmp_path, layout):
    log = a_log(rows=(12, 11, 2, 2))
    log["forget"]["answer"] = [f"answer {i}" for i in range(12)]
    (tmp_path / "log.json").write_text(json.dumps(published(log, layout)))
    assert tofu.summarize(tofu.read_log(tmp_path / "log.json")) == tofu.summarize(log)
    reference = tofu.read_retrained(tmp_path / "log.json")
    assert reference["truth_ratio"] == tofu.compared_part(log)["truth_ratio"] == [*tofu.ratio_of(log["forget"])]
    assert reference["row"] == [*range(12)] and reference["answer"] == log["forget"]["answer"]


@pytest.mark.parametrize("layout", ["dict", "evaluation"])
def test_columns_that_lack_different_rows_are_matched_by_row_number(layout, tmp_path, capsys):
    log, path = a_log(rows=(12, 5, 2, 2)), tmp_path / "log.json"
    content = json.loads(json.dumps(published(log, "dict") if layout == "dict" else an_evaluation(log)))
    if layout == "dict":
        columns = content["eval_log_forget.json"]
        del columns["average_perturb_loss"]["0"], columns["avg_paraphrased_loss"]["11"], columns["rougeL_recall"]["4"]
    else:
        content["forget_Q_A_PERT_Prob"]["value_by_index"]["0"] = None
        del content["forget_Q_A_PARA_Prob"]["value_by_index"]["11"]
        content["forget_Q_A_ROUGE"]["value_by_index"]["4"]["rougeL_recall"] = None
    path.write_text(json.dumps(content))
    part, rows = tofu.read_log(path)["forget"], [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert "forget lacks values in 3 of 12 rows" in capsys.readouterr().err
    assert part.pop("row") == rows and {"loss", "paraphrased_loss", "perturbed_loss", "rouge"} <= part.keys()
    for field in ("loss", "paraphrased_loss", "perturbed_loss", "rouge"):
        assert part[field] == [log["forget"][field][row] for row in rows]
    assert tofu.read_retrained(path)["truth_ratio"] == [tofu.ratio_of(log["forget"])[row] for row in rows]


def test_lists_of_unequal_length_are_refused(tmp_path):
    content = published(a_log(), "list")
    content["eval_log.json"]["avg_gt_loss"].pop()
    (tmp_path / "log.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'eval_log.json' has lists of unequal length"):
        tofu.read_log(tmp_path / "log.json")


def test_forget_quality_is_of_the_first_300_rows(tmp_path):
    """One statistic, D = 0.1, of 300 and of 400 rows: TOFU's authors take the first."""
    ratio = np.arange(1.0, 401)
    other = ratio - 0.5
    other[:30], other[300:310] = 1e3, 1e3  # of the first 300, and of all
    model, reference = ({"truth_ratio": values.tolist(), "length": [*range(400)]} for values in (ratio, other))
    metrics = tofu.compared(model, reference)
    assert metrics["forget_examples"] == 300
    assert metrics["forget_quality"] == pytest.approx(scipy.stats.ks_2samp(ratio[:300], other[:300]).pvalue)
    assert metrics["forget_quality"] == pytest.approx(0.0996, abs=1e-3)
    assert tofu.forget_quality(ratio, other) == pytest.approx(0.0366, abs=1e-3)
    short = metrics["forget_quality_halves"]["shortest"]
    assert short == tofu.forget_quality(ratio[:150], other[:150])
    log = {"forget": {"loss": [0.0] * 400}}
    assert "the first 300 of 400 forget examples" in tofu.notes(metrics, log)[0]
    lacking = tofu.compared(
        model | {"answer": ["a"] * 400}, {"truth_ratio": [1.0, 2.0], "row": [7, 350], "answer": ["a"] * 2}
    )
    assert lacking["forget_examples"] == 1
    assert "the 1 of 400 forget examples that Retrain has" in tofu.notes(lacking, log)[0]


# ------------------------------------------------------------------ the newer framework's TOFU_EVAL.json


def an_evaluation(log, scores=None):
    """The same as OpenUnlearning writes it; scores: of the forget set's truth ratios, else by its first definition."""
    content = {}
    for name, their_name in zip(tofu.SETS, ("forget", "retain", "ra", "wf"), strict=True):
        for metric, field, value in (
            ("Q_A_Prob", "loss", "avg_loss"),
            ("Q_A_PARA_Prob", "paraphrased_loss", "avg_loss"),
            ("Q_A_PERT_Prob", "perturbed_loss", "avg_loss"),
            ("Q_A_ROUGE", "rouge", "rougeL_recall"),
        ):
            if metric != "Q_A_PARA_Prob" or name in ("forget", "retain"):
                rows = {str(i): {value: number} for i, number in reversed([*enumerate(log[name][field])])}
                content[f"{their_name}_{metric}"] = {"agg_value": 0.5, "value_by_index": rows}
    for row in content["forget_Q_A_ROUGE"]["value_by_index"].values():
        row["generation"] = "a b c d a b c d"
    scores = 1 / np.array(tofu.ratio_of(log["forget"])) if scores is None else scores
    rows = {str(i): {"score": score} for i, score in reversed([*enumerate(scores)])}
    content["forget_truth_ratio"] = {"agg_value": float(np.minimum(scores, 1 / scores).mean()), "value_by_index": rows}
    return content


def test_the_newer_frameworks_log_gives_the_same_metrics_as_ours(tmp_path):
    """From its losses, whatever its truth ratios say; of its 400 retain rows the first 300 count."""
    log = a_log(rows=(40, 400, 3, 3))
    for name in ("real_authors", "world_facts"):
        log[name]["paraphrased_loss"] = log[name]["loss"]  # the answer stands in
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(an_evaluation(log, scores=np.full(40, 7.0))))
    metrics = tofu.summarize(
        tofu.read_log(tmp_path / "TOFU_EVAL.json"), tofu.read_retrained(tmp_path / "TOFU_EVAL.json")
    )
    first = {field: values[:300] for field, values in log["retain"].items()}
    expected = tofu.summarize(log | {"retain": first}, log["forget"])
    assert metrics == expected | {"repetition": pytest.approx(1 / 5)} and metrics["distance"] == 0


@pytest.mark.parametrize("kind", ["wrong / right", "right / (right + wrong)"])
def test_the_newer_frameworks_truth_ratios_alone_are_read_by_either_of_its_definitions(kind, tmp_path):
    ratio = np.random.default_rng(0).lognormal(size=30)
    scores = 1 / ratio if kind == "wrong / right" else ratio / (1 + ratio)
    content = {"forget_truth_ratio": an_evaluation(a_log(rows=(30, 4, 2, 2)), scores)["forget_truth_ratio"]}
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(content))
    assert tofu.read_retrained(path) == {"row": [*range(30)], "truth_ratio": pytest.approx(ratio.tolist())}
    with pytest.raises(InputError, match="truth ratios, which --retrain can use, but not the losses"):
        tofu.summarize(tofu.read_log(path))


@pytest.mark.parametrize("scores", [[1.0, 0.5], [0.0, 2.0]])
def test_a_truth_ratio_that_is_infinite_becomes_the_largest_number(scores, tmp_path):
    """As JSON has no infinity: where right or wrong answers have no probability at all."""
    column = {str(row): {"score": score} for row, score in enumerate(scores)}
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps({"forget_truth_ratio": {"value_by_index": column}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tofu.read_retrained(path)["truth_ratio"] == [sys.float_info.max, 1 if scores[0] else 0.5]


def test_of_a_runs_references_the_retrained_model_counts(tmp_path):
    retrain, original = {"truth_ratio": [2.0], "generated": ["r"]}, {"truth_ratio": [1.0], "generated": ["o"]}
    (tmp_path / "reference.log.json").write_text(json.dumps({"Original": original, "Retrain": retrain}))
    assert tofu.read_retrained(tmp_path / "reference.log.json") == retrain


def test_halves_are_by_length_and_have_a_forget_quality_each():
    ratio, other = np.random.default_rng(0).lognormal(size=(2, 9))
    model, retrain = {"truth_ratio": ratio.tolist()}, {"truth_ratio": other.tolist()}
    halves = tofu.compared(model | {"length": [9, 1, 8, 2, 7, 3, 6, 4, 5]}, retrain)["forget_quality_halves"]
    for half, rows in (("shortest", [1, 3, 5, 7]), ("longest", [0, 2, 4, 6, 8])):
        assert halves[half] == scipy.stats.ks_2samp(ratio[rows], other[rows]).pvalue
    assert tofu.compared(model, retrain)["forget_quality_halves"] is None


def test_of_equally_long_answers_the_earlier_counts_as_shorter():
    lengths = np.random.default_rng(0).integers(3, 6, 200).tolist()
    in_order = sorted(range(200), key=lengths.__getitem__)  # which keeps the order of ties
    assert [half.tolist() for half in tofu.halves_of(lengths)] == [in_order[:100], in_order[100:]]


@pytest.mark.parametrize(
    "text, share",
    [
        ("one two three", 0),
        ("", 0),
        ("a b c d e f", 0),
        ("a b c d a b c d", 1 / 5),
        ("a a a a a a", 2 / 3),
        ("a b c a b c", 0),
    ],
)
def test_repetition_counts_repeated_four_grams(text, share):
    assert tofu.repetition(text) == pytest.approx(share)


def test_measure_scores_each_text_as_if_alone(toy_llama, toy_tokenizer, saying):
    model, eos = toy_llama.train(), toy_tokenizer.eos_token_id
    sets = {name: rows[:2] for name, rows in tofu.evaluation_rows(None, "forget10").items() if name in tofu.SETS}
    calls = saying(" What it says. ", "And more.")
    log = tofu.measure(lm_of(model, toy_tokenizer, max_length=60, max_new_tokens=5, batch_size=7), sets)
    check(log, tofu.LOG, "the log's")
    prompts = {name: [f"[INST] {row['question']} [/INST]" for row in rows] for name, rows in sets.items()}
    assert calls == [(sum(prompts.values(), []), torch.float64, 5)]
    for name, rows in sets.items():
        part = log[name]
        assert part["generated"] == ["What it says.", "And more."]
        for i, row in enumerate(rows):
            answer, prompt = row["answer"], toy_tokenizer(prompts[name][i])["input_ids"]
            texts = [answer, row.get("paraphrased_answer", answer), *row["perturbed_answer"]]
            responses = [ids + [eos] for ids in toy_tokenizer(texts)["input_ids"]]
            alone = [mean(token_losses(model, prompt, response)) for response in responses]
            losses = [part["loss"][i], part["paraphrased_loss"][i], *part["perturbed_loss"][i]]
            assert losses == pytest.approx(alone, rel=1e-9)
            texts = [part[field][i] for field in ("question", "answer", "length")]
            assert texts == [row["question"], answer, len(responses[0])]
    half = tofu.measure(lm_of(model.float(), toy_tokenizer, torch.bfloat16, max_length=60), sets)
    assert near(half["forget"]["loss"], log["forget"]["loss"])
    with pytest.raises(InputError, match="limit of 20 tokens.*raise --max-length"):
        tofu.measure(lm_of(model, toy_tokenizer, torch.float32, max_length=20), sets)


@pytest.mark.parametrize(
    "answer, said, rouge",
    [
        ("The cat sat on the mat.", "the cat lay on a mat, running", 4 / 6),
        ("he runs", "He run!", 1),  # stemmed
        ("one two", "one two three four", 1),
        ("one two three four", "one two", 1 / 2),
        ("a b c d", "d c b a", 1 / 4),
    ],
)
def test_rouge_is_the_stemmed_recall_of_what_is_common(answer, said, rouge, toy_llama, toy_tokenizer, saying):
    saying(said)
    row = {"question": "Who?", "answer": answer, "perturbed_answer": ["No."]}
    log = tofu.measure(lm_of(toy_llama, toy_tokenizer), {"world_facts": [row]})
    assert log["world_facts"]["rouge"] == pytest.approx([rouge])


SHOWN = """0.0001 forget quality ↑ main bold
-4.0 log10 forget quality ↑ main
0.750 distance to Retrain ↓ main bold
0.12 quality, shortest half ↑ main
0.5 quality, longest half ↑ main
0.625 model utility ↑ main bold
0.000 forget probability →R main
0.010 forget rouge →R main
0.020 forget truth ratio →R
0.100 retain probability ↑ main
0.110 retain rouge ↑
0.120 retain truth ratio ↑
0.200 real authors probability ↑
0.210 real authors rouge ↑
0.220 real authors truth ratio ↑
0.300 world facts probability ↑
0.310 world facts rouge ↑
0.320 world facts truth ratio ↑
0.875 repeated 4-grams →R main
2.00 answers under Retrain →R main
0.125 exact memorization →R
0.250 extraction strength →R
0.900 AUC by loss →R
0.800 AUC by loss / zlib →R
0.700 AUC by Min-40% →R
0.600 AUC by Min-40%++ →R
0.625 model utility
0.0001 forget quality
-4 log10 forget quality
0.75 distance to Retrain
0.625 model utility
forget distance model forget set retain set real authors world facts
quality to Retrain utility prob. ROUGE-L truth prob. ROUGE-L truth prob. ROUGE-L truth prob. ROUGE-L truth
NPO 0.0001 0.750 0.625 0.000 0.010 0.020 0.100 0.110 0.120 0.200 0.210 0.220 0.300 0.310 0.320
"""


def test_what_tables_and_figures_show_of_a_model():
    metrics = dict(forget_quality=1e-4, forget_quality_halves={"shortest": 0.12, "longest": 0.5}, distance=0.75)
    metrics |= dict(model_utility=0.625, repetition=0.875, judged=2.0, memorized=0.125, extraction=0.25)
    metrics["membership"] = {"loss": [0.9], "zlib": [0.8], "mink": [0.7], "minkpp": [0.6]}
    for i, name in enumerate(tofu.SETS):
        metrics[name] = {part: i / 10 + j / 100 for j, part in enumerate(tofu.MEANS)}
    assert shown(BENCHMARKS["tofu"], metrics) == shown(BENCHMARKS["toy"], metrics) == SHOWN
    assert tofu.log_quality({"forget_quality": 0.0}) == pytest.approx(-307.65, abs=0.01)  # of the least float64
