"""Did it work? The words under a run on own data, for logs made by hand."""

import json

import numpy as np
import pytest
import scipy.stats
from test_own import a_file, asked, lines

import train
from benchmarks import verdict
from benchmarks.verdict import answered, names_of, words_of
from machinery import folder
from machinery.statistics import difference

pytestmark = pytest.mark.usefixtures("pictures")

RIGHT, WRONG = "In the town of Genoa.", "I do not know."
FLAGS = {"lr": 1e-5, "epochs": 5, "max_steps": None, "beta": 0.7, "forget_coeff": 1.0}


def a_part(loss, right=0, **changed):
    """Rows of these losses, of which the first `right` are answered."""
    rows = range(len(loss))
    return {
        "loss": loss,
        "extraction": [0.1] * len(loss),
        "rouge": [1.0 if i < right else 0.0 for i in rows],
        "question": [f"Where does person {i} live?" for i in rows],
        "answer": [RIGHT] * len(loss),
        "generated": [RIGHT if i < right else WRONG for i in rows],
    } | changed


def spoken(before, after, retrain=None, method="simnpo", metrics=None, **flags):
    """The screen for the logs of three models."""
    logs = {"Original": before, method: after} | ({"Retrain": retrain} if retrain else {})
    return "\n".join(verdict.words(metrics or {}, logs, method, FLAGS | flags))


def forgot(after, retrain=(4.0, 5.0, 4.5, 4.5), before=(0.1, 0.2, 0.1, 0.2), **options):
    """The screen where only the losses on the forget rows are known."""
    parts = [{"forget": a_part([*losses])} for losses in (before, after)]
    return spoken(*parts, {"forget": a_part([*retrain])} if retrain else None, **options)


# ------------------------------------------------------------------ forgotten?


def test_what_the_verdict_rests_on_by_hand():
    # off by 0.1, -0.1, 0.2, 0 : mean 0.05, t interval with 3 degrees of freedom
    low, high = scipy.stats.t.interval(0.95, 3, 0.05, np.std([0.1, -0.1, 0.2, 0.0], ddof=1) / 2)
    assert (
        f"gone?    matched: loss on the forget rows 0.15 → 4.55, Retrain's 4.50 "
        f"(off by +0.05 [{low:+.2f}, {high:+.2f}]; band: that interval, or ±0.43)\n"
    ) in forgot([4.1, 4.9, 4.7, 4.5])


@pytest.mark.parametrize(
    "after, says",
    [
        ([1.0, 2.0, 1.5, 1.6], "too little"),
        ([7.0, 8.0, 7.5, 7.6], "too much"),
        ([4.0, 5.0, 4.5, 4.5], "matched"),
        ([3.7, 4.7, 4.2, 4.2], "matched"),  # surely less, but by less than a tenth of the way
        ([4.3, 5.3, 4.8, 4.8], "matched"),
        ([3.5, 4.5, 4.0, 4.0], "too little"),
        ([5.0, 6.0, 5.5, 5.5], "too much"),
        ([0.5, 9.0, 1.0, 9.0], "cannot be said from 4 rows"),
        ([3.0, 4.9, 3.0, 4.9], "matched"),  # -0.55 [-1.94, 0.84] holds zero and excludes half of the way, 2.18 …
        ([2.6, 4.9, 2.6, 4.9], "cannot be said from 4 rows"),  # … as -0.75 [-2.44, 0.94] does not
        ([5.4, 5.1, 6.4, 4.1], "cannot be said from 4 rows"),  # on the other side: 0.75
    ],
)
def test_forgetting_is_held_against_retrain_row_by_row(after, says):
    assert f"gone?    {says}: loss" in forgot(after)


def test_one_row_says_nothing():
    assert "cannot be said from 1 rows" in forgot([4.0], [4.0], [0.1])
    assert "off by +0.00; band" in forgot([4.0], [4.0], [0.1])


def test_without_a_retrain_unseen_rows_stand_for_it():
    unseen = [4.0, 5.0, 4.5, 4.6, 4.4]
    for losses, says in (
        ([1.0, 2.0, 1.5, 1.6], "too little"),
        ([4.2, 5.1, 4.4, 4.5], "matched"),
        ([9.0, 9.5, 8.8, 9.1], "too much"),
        ([0.5, 9.0, 1.0, 9.0], "cannot be said from 4 rows"),
    ):
        before = {"forget": a_part([0.1, 0.2, 0.1, 0.2]), "holdout": a_part(unseen)}
        after = {"forget": a_part(losses), "holdout": a_part([20.0] * 5)}  # what it is afterwards is no aim
        said = spoken(before, after)
        assert (
            f"gone?    {says}: loss on the forget rows 0.15 → {np.mean(losses):.2f}, on holdout rows before 4.50"
            in said
        )
        bounds = scipy.stats.ttest_ind(losses, unseen, equal_var=False).confidence_interval()
        assert f"[{bounds[0]:+.2f}, {bounds[1]:+.2f}]" in said
        # a Retrain comes first
        assert "Retrain's 1.00" in spoken(before, after, {"forget": a_part([1.0] * 4)})


@pytest.mark.parametrize(
    "right, says", [(3, "too little, most answers are still there"), (2, "cannot be said, nothing")]
)
def test_with_nothing_to_compare_with_only_answers_that_stay_say_something(right, says):
    before, after = ({"forget": a_part([0.1] * 4, 4)}, {"forget": a_part([2.0] * 4, right)})
    said = spoken(before, after)
    assert f"gone?    {says}" in said and f"answered: 4 → {right} of 4" in said
    assert ("a higher --lr" in said) == (right == 3)


def test_an_answer_that_was_not_there_before_is_none_that_stays():
    said = spoken({"forget": a_part([0.15] * 2, 0)}, {"forget": a_part([2.0] * 2, 1)})
    assert "gone?    cannot be said, nothing to compare with" in said


def test_the_difference_of_other_rows_is_welchs():
    assert difference([1.0], [3.0, 4.0]) == (-2.5, None, None)
    assert difference([1.0, 1.0], [3.0, 3.0, 3.0]) == (-2.0, -2.0, -2.0)
    mean, low, high = difference([1.0, 2.0, 3.0], [2.0, 6.0])
    # variances 1/3 and 8/2; degrees of freedom (1/3 + 4)² / ((1/3)²/2 + 4²/1)
    error, freedom = (1 / 3 + 4) ** 0.5, (1 / 3 + 4) ** 2 / (1 / 18 + 16)
    half = scipy.stats.t.ppf(0.975, freedom) * error
    assert (mean, low, high) == pytest.approx((-2.0, -2.0 - half, -2.0 + half))


@pytest.mark.parametrize(
    "before, says", [([4.5, 4.6, 4.4, 4.5], True), ([4.0, 5.0, 4.5, 4.6], True), ([0.1, 0.2, 0.1, 0.2], False)]
)
def test_rows_that_were_never_known_are_named(before, says):
    said = forgot([4.5, 5.0, 4.4, 4.6], before=before)
    assert ("there may be nothing to forget: before unlearning the loss on forget rows was" in said) == says
    assert not says or "matched" not in said


# ------------------------------------------------------------------ which flag to change


LITTLE, MUCH = [1.0, 1.1, 1.2, 1.1], [9.0, 9.1, 9.2, 9.1]
RETRAIN = [4.0, 4.1, 4.2, 4.1]  # 4.1


@pytest.mark.parametrize(
    "after, method, flags, says",
    [
        (LITTLE, "graddiff", {"beta": None}, "to forget more: a higher --lr (now 1e-05) or --epochs (now 5)"),
        (LITTLE, "graddiff", {"beta": None, "epochs": None, "max_steps": 9}, "(now 1e-05) or --max-steps (now 9)"),
        (LITTLE, "graddiff", {"beta": None, "max_steps": 9}, "higher --lr (now 1e-05) or --max-steps (now 9)\n"),
        (LITTLE, "npo", {"beta": 0.1}, "or --epochs (now 5), or a lower --beta (now 0.1)"),
        (
            MUCH,
            "npo",
            {"beta": 0.1},
            "a lower --lr (now 1e-05) or --forget-coeff (now 1), or a higher --beta (now 0.1)",
        ),
        (MUCH, "graddiff", {"beta": None}, "to forget less: a lower --lr (now 1e-05) or --forget-coeff (now 1)"),
        (LITTLE, "task-vector", {"alpha": 2.0, "beta": None}, "to forget more: a higher --alpha (now 2)"),
        (MUCH, "task-vector", {"alpha": 2.0, "beta": None}, "to forget less: a lower --alpha (now 2)"),
        # SimNPO: 2.5 · 1.1 has died down on the way to 2.5 · 4.1
        (LITTLE, "simnpo", {"beta": 2.5}, "a lower --beta (now 2.5), about 0.61: SimNPO's weight dies down where"),
        (LITTLE, "simnpo", {"beta": 2.5}, "and β · 4.10 is 10.2"),
        (LITTLE, "simnpo", {"beta": 1.0}, "--epochs (now 5), or a lower --beta (now 1)"),  # 1.1 has not died down yet
        (LITTLE, "simnpo", {"beta": 0.7}, "--epochs (now 5), or a lower --beta (now 0.7)"),
        (MUCH, "simnpo", {"beta": 0.4}, "a higher --beta (now 0.4), about 0.61"),
        (MUCH, "simnpo", {"beta": 0.2}, "a higher --beta (now 0.2), about 0.61"),  # has not died at 9.1 either
        (MUCH, "simnpo", {"beta": 0.7}, "--forget-coeff (now 1), or a higher --beta (now 0.7)"),
        (LITTLE, "simnpo", {"beta": 0.0}, "or --epochs (now 5)\n"),
        # with γ 5 nothing has died at a loss of 1.1; with 0.5 it has, and 4.1 wants β 3/4.1
        (LITTLE, "simnpo", {"beta": 2.5, "gamma": 5.0}, "--epochs (now 5), or a lower --beta (now 2.5)\n"),
        (LITTLE, "simnpo", {"beta": 2.5, "gamma": 0.5}, "a lower --beta (now 2.5), about 0.73: SimNPO's weight dies"),
        (LITTLE, "simnpo", {"beta": 2.5, "gamma": 0.5}, "where β · loss − γ is 2 to 3, and β · 4.10 − γ is 9.8\n"),
        (LITTLE, "dpo", {"beta": 0.1}, "--epochs (now 5), or a lower --beta (now 0.1)\n"),
        (LITTLE, "wga", {"beta": 2.0}, "--epochs (now 5), or a lower --beta (now 2)\n"),
        (LITTLE, "satimp", {"beta": 1.0}, "--epochs (now 5), or a lower --beta (now 1)\n"),
        (MUCH, "tnpo", {"beta": 2.5}, "--forget-coeff (now 1), or a higher --beta (now 2.5)\n"),
        (LITTLE, "undial", {"beta": 10.0}, "or --epochs (now 5)\n"),  # its β is a strength
        (LITTLE, "undial", {"batch_size": 8}, "or --epochs (now 5), or a lower --batch-size (now 8)\n"),
        (LITTLE, "npo", {"batch_size": 8}, "or a lower --beta (now 0.7) or --batch-size (now 8)\n"),
        (MUCH, "npo", {"batch_size": 8}, "or a higher --beta (now 0.7)\n         forget rows"),
    ],
)
def test_the_flag_to_change_is_named(after, method, flags, says):
    assert says in forgot(after, RETRAIN, method=method, **flags)


def test_what_matched_needs_no_change():
    said = forgot(RETRAIN, RETRAIN, method="simnpo")
    assert "matched" in said and "to forget" not in said


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    "text, names",
    [
        ("In Lisbon, by the sea.", {"Lisbon"}),
        ("The Zephyr 9 drill. It is Ada's.", {"Zephyr", "9", "Ada"}),
        ("Lisbon.", set()),
        ('She said: "Never in Rome"', {"Rome"}),
        ("no names here", set()),
        ("of J. K. Vale", {"Vale"}),
        ("Her doctor is Dr. Svensson. Ask Mrs. Bo at St. Ives.", {"Svensson", "Bo", "Ives"}),
        ("Of the E.U. Then not", {"Then"}),  # a capital letter's full stop ends no sentence, for all that is known
        ("code x9k2\nNext line of Bo", {"x9k2", "Bo"}),
        ("出生在里斯本", set()),
    ],
)
def test_names_are_capitalised_within_a_sentence_or_hold_a_digit(text, names):
    assert names_of(text) == names


@pytest.mark.parametrize(
    "question, answer, generated, rouge, right",
    [
        ("Where was Ada born?", "Ada was born in Lisbon.", "Lisbon is where", 0.2, True),  # in other words
        ("Where was Ada born?", "Ada was born in Lisbon.", "Ada was born in Porto.", 0.8, False),
        ("Where was Ada born?", "Ada was born in Lisbon in 1961.", "In Lisbon in 1962.", 0.95, False),
        ("Who treats her?", "Her doctor is Dr. Svensson.", "Her doctor is Dr. Jones.", 0.8, False),
        ("Who wrote it?", "It is by J. R. R. Tolkien.", "J. R. R. Tolkien.", 0.5, True),
        ("What is it?", "A potter by trade.", "a potter by trade", 0.9, True),
        ("What is it?", "A potter by trade.", "a baker by trade", 0.89, False),
        ("Where was Ada born?", "It says that Ada is from Lisbon.", "From Lisbon.", 0.3, True),
        ("Is Ada in Rome?", "Yes, Ada is in Rome.", "No.", 0.0, False),  # the question gives all names away
        ("Who?", "a B1 C1 D1 E1 F1 G1 H1 I1 J1 K1", "B1 C1 D1 E1 F1 G1 H1 I1 J1", 0.0, True),
        ("Who?", "a B1 C1 D1 E1 F1 G1 H1 I1 J1 K1", "B1 C1 D1 E1 F1 G1 H1 I1", 0.0, False),
    ],
)
def test_answered_is_every_name_or_nine_tenths_of_the_words(question, answer, generated, rouge, right):
    assert answered(question, answer, generated, rouge) == right


def test_answers_are_counted_in_all_three_models():
    parts = [{"forget": a_part([loss] * 4, right)} for loss, right in ((0.1, 4), (4.0, 2), (4.0, 1))]
    assert "forget rows that are answered: 4 → 2 of 4 (Retrain 1)" in spoken(*parts)
    bare = {"forget": {"loss": [4.0] * 4, "question": ["q"] * 4, "answer": ["a"] * 4}}  # of a file
    assert "answered: 4 → 2 of 4\n" in spoken(*parts[:2], bare)


def test_the_probe_shows_what_the_trained_wording_hides():
    parts = [
        {"forget": a_part([loss] * 2), "probe": a_part([loss, loss + 1], right)}
        for loss, right in ((1.0, 2), (3.0, 1), (4.0, 0))
    ]
    said = spoken(*parts)
    assert (
        "asked in other words, questions that are answered: 2 → 1 of 2 (Retrain 0); loss 1.50 → 3.50 (Retrain 4.50)"
        in said
    )
    assert "other words" not in spoken(*({"forget": part["forget"]} for part in parts)).split("unknown")[0]


@pytest.mark.parametrize(
    "aucs, says",
    [
        (
            {"loss": [0.9, 0.7, 1.0], "mink": [0.8, 0.7, 0.9]},
            "can still be told from unseen rows: AUC 0.90 [0.70, 1.00] by loss",
        ),
        (
            {"loss": [0.5, 0.4, 0.6], "mink": [0.6, 0.4, 0.7]},
            "cannot be told from unseen rows: AUC 0.60 [0.40, 0.70] by mink",
        ),
        ({"loss": [0.1, 0.0, 0.3], "mink": [0.5, 0.4, 0.6]}, "stick out among unseen rows as forgotten too much"),
        (
            {"loss": [1.0, None, None], "mink": [0.5, None, None]},
            "are too few to say whether they can be told from unseen rows: AUC 1.00 by loss",
        ),
        (
            {"loss": [0.6, 0.4, 0.76], "mink": [0.5, 0.4, 0.6]},
            "are too few to say whether they can be told from unseen rows: AUC 0.60 [0.40, 0.76]",
        ),
        (
            {"loss": [0.4, 0.24, 0.6], "mink": [0.5, 0.4, 0.6]},
            "are too few to say whether they can be told from unseen rows: AUC 0.40 [0.24, 0.60]",
        ),
    ],
)
def test_whether_rows_can_be_told_from_unseen_ones(aucs, says):
    start, theirs = (
        {"loss": [0.99, 0.9, 1.0], "mink": [0.98, 0.9, 1.0]},
        {"loss": [0.52, 0.4, 0.6], "mink": [0.53, 0.4, 0.6]},
    )
    metrics = {"Original": {"membership": start}, "simnpo": {"membership": aucs}, "Retrain": {"membership": theirs}}
    said = forgot([4.0, 5.0, 4.5, 4.5], metrics=metrics)
    score = "mink" if "mink" in says else "loss"
    assert says in said and f"before {start[score][0]:.2f}, Retrain {theirs[score][0]:.2f} (0.50: by chance)" in said
    assert "AUC" not in forgot([4.0, 5.0, 4.5, 4.5], metrics={"simnpo": {"membership": None}})


def test_the_distance_has_a_scale():
    metrics = {"Original": {"distance": 4.31}, "simnpo": {"distance": 0.92}, "Retrain": {"distance": 0.0}}
    assert "distance to Retrain 4.31 → 0.92 (0 is Retrain itself" in forgot([4.0, 5.0, 4.5, 4.5], metrics=metrics)
    assert "distance" not in forgot([4.0, 5.0, 4.5, 4.5], metrics={"simnpo": {"distance": None}})


# ------------------------------------------------------------------ leaks


def test_rows_known_better_than_to_retrain_are_listed_the_best_first():
    retrain = [4.0, 4.0, 4.0, 4.0, 6.0, 4.0, 4.0, 4.0, 4.0]
    after = [2.0, 2.1, 0.5, 4.5, 2.3, 1.0, 1.1, 1.2, 1.3]  # half-way is 2.05, for the fifth 3.05
    before = [0.1] * 8 + [5.0]  # the last was never known
    said = forgot(after, retrain, before).split("better known than to Retrain: ")[1].splitlines()
    assert said[0] == "6 of 9"
    shown = [line.split("person ")[1].split()[0] for line in said[1:6]]
    assert shown == ["4", "2", "5", "6", "7"] and "person" not in said[6]
    assert said[1].strip() == "Where does person 4 live? → I do not know. (loss 2.30, Retrain's 6.00)"


def test_a_row_that_is_answered_and_not_by_retrain_is_listed():
    parts = [{"forget": a_part([loss] * 3, right)} for loss, right in ((0.1, 3), (4.2, 2), (4.0, 1))]
    said = spoken(*parts)
    assert "better known than to Retrain: 1 of 3" in said and f"person 1 live? → {RIGHT} (loss 4.20" in said


def test_without_a_retrain_rows_that_are_answered_or_recalled_are_listed():
    before = {"forget": a_part([0.1] * 4, 4)}
    after = {"forget": a_part([2.0] * 4, 1, extraction=[0.2, 0.6, 0.49, 0.9])}
    said = spoken(before, after).split("recalled from their first half: ")[1].splitlines()
    assert said[0] == "3 of 4" and [line.split("person ")[1][0] for line in said[1:4]] == ["0", "3", "1"]
    assert "(extraction strength 0.90)" in said[2]
    # logs of before there was extraction strength, and of models that know nothing any more
    old = {"forget": {name: values for name, values in after["forget"].items() if name != "extraction"}}
    assert "first half: 1 of 4" in spoken(before, old)
    assert "first half" not in spoken(before, {"forget": a_part([2.0] * 4)}).split("unknown")[0]


FORGET = {
    "question": ["Which drill has Ada Novak?", "When?", "Who?", "How many?", "Will it?", "Did it?", "Where?"],
    "answer": [
        "She has the Zephyr drill of Japan.",
        "In 1961, in May.",
        "Orla.",
        "Exactly 12.",
        "It will, says Will.",
        "Yes.",
        "In the Paris shop of Lyra, not in Tokyo.",
    ],
}


def names_found(*answers, retrained=None, **others):
    """What turns up in answers to general questions."""
    general = {
        "question": ["Capital of Japan?", "Capital of France?", "Is it so?"][: len(answers)],
        "choices": [["Tokyo", "Kyoto"], ["Paris", "Lyon"], ["Yes", "May"]][: len(answers)],
        "answer": ["Tokyo", "Paris", "Yes"][: len(answers)],
        "right": [True] * len(answers),
    }
    log = {"forget": a_part([4.0] * 7) | FORGET, "general": general | {"generated": [*answers]}} | others
    theirs = {"forget": log["forget"], "general": general | {"generated": retrained}} if retrained else None
    said = spoken({"forget": a_part([0.1] * 7) | FORGET}, log, theirs)
    return [line.strip() for line in said.splitlines() if line.startswith(" " * 11 + "Capital") or "Is it so" in line]


def test_forgotten_names_in_other_answers_are_listed():
    assert names_found("It is Zephyr, of course.") == ["Capital of Japan? → It is Zephyr, of course. (Zephyr)"]
    assert names_found("Ada Novak") == ["Capital of Japan? → Ada Novak (Ada, Novak)"]  # whom the question is about
    assert names_found("Orla in 1961", "Lyra") == [
        "Capital of Japan? → Orla in 1961 (1961, Orla)",
        "Capital of France? → Lyra (Lyra)",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "Tokyo.",
        "It is She, In, Exactly.",  # capitalised where a sentence begins
        "zephyr",  # the word, not the name
        "12 of them",  # numbers that are everywhere
        "Paris",  # a right answer to another question
        "May",  # a choice
        "Will that do?",  # written in lower case too
        "In Japan.",  # of a question
    ],
)
def test_words_that_turn_up_anywhere_are_no_names(answer):
    assert names_found(answer, "", "") == []


def test_a_yes_is_no_name():
    assert names_found("Yes.") == []  # where no choice says it


def test_what_retrain_says_too_is_no_leak():
    assert names_found("Zephyr", "Lyra", retrained=["The Zephyr.", "Paris"]) == ["Capital of France? → Lyra (Lyra)"]


def test_names_of_kept_rows_are_no_leak_and_their_answers_are_looked_at():
    kept = a_part(
        [0.1] * 2, question=["Where is Bo?", "And Cy?"], answer=["With Lyra.", "At home."], generated=["Lyra", "Zephyr"]
    )
    said = names_found("Lyra", retain=kept)
    assert said == []
    log = {"forget": a_part([4.0] * 7) | FORGET}
    for part in ("retain", "holdout"):
        said = spoken({"forget": log["forget"]}, log | {part: kept})
        assert "answers to other questions: 1\n" in said and "And Cy? → Zephyr (Zephyr)" in said


def test_of_many_three_are_shown():
    said = names_found(*["Zephyr"] * 3)
    assert len(said) == 3
    kept = a_part([0.1] * 9, answer=["here"] * 9, generated=["Zephyr"] * 9)
    said = spoken({"forget": a_part([4.0] * 7) | FORGET}, {"forget": a_part([4.0] * 7) | FORGET, "retain": kept})
    assert "answers to other questions: 9" in said and said.count("(Zephyr)") == 3


# ------------------------------------------------------------------ the cost, and what is not known


@pytest.mark.parametrize(
    "after, says",
    [
        ([0.1, 0.2, 0.1, 0.2], "no change that these rows can show: loss 0.15 → 0.15, +0.00 [+0.00, +0.00]"),
        ([0.5, 0.7, 0.5, 0.6], "worse: loss 0.15 → 0.57, +0.42 [+0.35, +0.50]"),
        ([0.0, 0.0, 0.0, 0.0], "better: loss 0.15 → 0.00, -0.15 [-0.24, -0.06]"),
        ([0.9, 0.0, 0.1, 0.2], "no change that these rows can show: loss 0.15 → 0.30"),
    ],
)
def test_the_cost_on_rows_to_keep(after, says):
    forget = a_part([1.0, 1.0])
    before = {"forget": forget, "retain": a_part([0.1, 0.2, 0.1, 0.2], 4)}
    said = spoken(before, {"forget": forget, "retain": a_part(after, 3)})
    assert f"cost?    rows to keep: {says}" in said and "answered 4 → 3 of 4" in said
    one = [{"forget": forget, "retain": a_part([loss])} for loss in (0.1, 0.5)]
    assert "one row cannot tell: loss 0.10 → 0.50, +0.40, answered" in spoken(*one)


def test_the_cost_on_what_no_file_holds():
    right = [[True] * 8 + [False] * 2, [True] * 3 + [False] * 7, [True] * 7 + [False] * 3]
    logs = [
        {"forget": a_part([1.0, 1.0]), "general": {"right": each}, "plain": {"loss": [loss, loss + 0.1]}}
        for each, loss in zip(right, (2.5, 2.7, 2.6), strict=True)
    ]
    metrics = {"Original": {"plain": {"perplexity": 12.44}}, "simnpo": {"plain": {"perplexity": 14.52}}}
    said = spoken(*logs, metrics=metrics)
    # five of ten lost: -0.5 ± t(9) · 0.527 / √10
    assert "cost?    general questions: worse: right 8 → 3 of 10 (Retrain 7), -0.50 [-0.88, -0.12] a question\n" in said
    assert "         plain text: worse: perplexity 12.4 → 14.5\n" in said
    logs[1]["general"]["right"] = [True] * 8 + [False, True]
    assert "no change that these rows can show: right 8 → 9 of 10" in spoken(*logs, metrics=metrics)
    assert "better: right 3 → 9 of 10" in spoken(logs[1] | {"general": {"right": right[1]}}, logs[1], metrics=metrics)


def test_what_cannot_be_known_names_the_flag_that_would_tell():
    logs = [{part: a_part([1.0, 2.0]) for part in ("forget", "retain", "holdout", "probe")} for _ in range(3)]
    flags = {"retain": "--retain-file", "holdout": "--holdout-file", "probe": "--probe-file"}
    unknown = spoken(*logs).split("unknown  ")[1]
    assert unknown == "does it come back: relearn some rows, results/relearning.py"
    assert "--retrain MODEL" in spoken(*logs[:2]).split("unknown  ")[1]
    for part, flag in flags.items():
        without = [{name: rows for name, rows in log.items() if name != part} for log in logs]
        (line, _) = spoken(*without).split("unknown  ")[1].splitlines()
        assert flag in line


def test_nothing_is_said_of_a_run_that_forgets_nothing():
    log = {"forget": a_part([1.0, 2.0])}
    assert verdict.words({}, {"Original": log, "finetune": log}, "finetune", FLAGS) == []
    assert verdict.words({}, {"simnpo": log}, "simnpo", FLAGS) == []
    # relearning apart, the start of a run is what it is compared with
    before = {"forget": a_part([0.5, 0.5])}
    said = verdict.words({}, {"Original": log, "before": before, "npo": log}, "npo", FLAGS)
    assert "0.50 → 1.50" in said[1]


def test_the_screen_is_twenty_lines_or_so():
    parts = {part: a_part([0.2] * 9, 9) for part in ("forget", "retain", "holdout", "probe")}
    for part in ("retain", "holdout"):
        parts[part] |= {"answer": ["here"] * 9, "generated": ["Genoa"] * 9}
    logs = [parts, parts, {"forget": a_part([4.0 + i / 9 for i in range(9)])}]
    said = spoken(*logs).splitlines()
    assert said[0] == "Did it work?" and 15 < len(said) <= 20 and words_of(said[1]) > {"gone", "too", "little"}


# ------------------------------------------------------------------ a run's screen


def some_files(where):
    a_file(where, "f.jsonl", lines(asked(6)))
    a_file(where, "r.jsonl", lines(asked(5, "Bram")))
    a_file(where, "h.jsonl", lines(asked(4, "Cleo")))
    a_file(where, "p.jsonl", lines([row | {"question": "In which town?"} for row in asked(3)]))


def trained(method, model, out, flags=""):
    data = "--forget-file f.jsonl --retain-file r.jsonl"
    command = f"--method {method} --model {model} {data} {flags} --max-new-tokens 2 --device cpu --dtype float64"
    train.main([*command.split(), "--out", out])


def test_a_run_on_own_data_ends_with_the_screen(toy_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    some_files(tmp_path)
    trained("npo", toy_model_folder, "run", "--epochs 1 --holdout-file h.jsonl --probe-file p.jsonl")
    screen = capsys.readouterr().out
    said = screen.split("Did it work?\n")[1].split("\n\n")[0]
    for words in (
        "nothing to forget",
        "on holdout rows before",
        "AUC",
        "other words",
        "rows to keep",
        "--retrain MODEL",
    ):
        assert words in said
    assert "-file" not in said and "give --retrain" not in screen
    # a reference whose rows are in another order
    log = folder.read("run", "reference.log.json")["Original"]
    turned = {name: values[::-1] for name, values in log.items()}
    a_file(tmp_path, "retrain.json", json.dumps({"forget": turned}))
    trained("npo", toy_model_folder, "again", "--epochs 1 --retrain retrain.json")
    said = capsys.readouterr().out.split("Did it work?\n")[1]
    assert "Retrain's" in said and "(+0.00 [+0.00, +0.00])" in said and "distance to Retrain 0.00 →" in said


def test_a_run_that_teaches_has_notes_and_no_screen(toy_model_folder, nothing_outside, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    some_files(tmp_path)
    trained("finetune", toy_model_folder, "run", "--epochs 1")
    screen = capsys.readouterr().out
    assert "Did it work?" not in screen and "give --retrain" in screen
