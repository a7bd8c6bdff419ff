"""Did it work? A run on own data in words: gone or not, at what cost, what cannot be known without more.

Pure functions of {name of a model: log} and {name: metrics} as own.py has them. Each gives lines of the screen, none
where it has nothing to go by. Differences are of mean losses, in nats a token, with their 95% t interval: row by row
where both models were asked the same rows, Welch's where the rows are others.

*Forgetting* is held against a target: Retrain's loss on the forget rows; without a Retrain the loss of the model
before unlearning on rows that it never saw, the holdout. The *way* is from where the loss began to the target. Too
little, too much: the interval of what is missing excludes zero, and the mean is off by over a tenth of the way (with
thousands of rows the interval would exclude zero for any difference). Else matched, if the interval excludes that only
half of the way, or half as much again, was gone; else the rows are too few to tell.

*Answered*: what the model says holds every name and number of the right answer that the question does not give (of ten
or more nine tenths), however it is worded; an answer without any is answered by a ROUGE-L recall of 0.9. Names are
capitalised words that do not begin a sentence; in a language that writes all nouns so, nouns are names.
"""

import itertools
import re
import textwrap
from typing import NamedTuple

import numpy as np

from benchmarks.rouge import WORDS
from machinery.statistics import difference, interval

BAND = 0.1  # share of the way
ANSWERED = 0.9  # share of the names and numbers, or of all words
RECALLED = 0.5  # extraction strength
UNTOLD = 0.25  # from 0.5, as far as an AUC's interval may reach if rows cannot be told from others
MOST, STRANGE = 5, 3  # known rows and strange names that are shown
DIES = 2, 3  # β · loss − γ, loss per token, where SimNPO's weight 2σ(γ − β · loss) / |y| is 0.24 and 0.09 of 1/|y|
BOUNDED = "npo", "simnpo", "dpo", "wga", "satimp", "tnpo"  # methods that a lower β lets forget more
BEFORE = "before", "Original"  # what the model before unlearning is called, in this order
OTHERS = "retain", "holdout", "general"  # sets whose answers should hold no forgotten name
TITLES = "Mr", "Mrs", "Ms", "Dr", "Prof", "St"  # whose full stop ends no sentence, and which name nobody
CLOSED = "yes", "no", "true", "false", "none"  # answers of one word that name nothing

ABBREVIATED = re.compile(rf"\b([A-Z]|{'|'.join(TITLES)})\.$")


class Case(NamedTuple):
    """A run: logs of the model before and after unlearning and of Retrain, and their metrics; {} where there are none.

    target: a Target, or None."""

    logs: tuple
    metrics: tuple
    method: str
    flags: dict
    target: tuple | None = None

    def column(self, part, field):
        """Of each log a field of a set; None where it is not known."""
        return [(log.get(part) or {}).get(field) for log in self.logs]

    def measured(self, *names):
        """Of each of the metrics the value under these names; None where it is not known."""
        values = []
        for value in self.metrics:
            for name in names:
                value = (value or {}).get(name)
            values.append(value)
        return values


class Target(NamedTuple):
    """Whose loss forgetting should reach, that loss, and the loss on forget rows less it, before and after, as (mean,
    low, high)."""

    whose: str
    loss: float
    before: tuple
    after: tuple

    @property
    def band(self):
        return BAND * max(0, -self.before[0])

    @property
    def verdict(self):
        off, low, high = self.after
        if low is None:
            return "cannot be said"
        if high < 0 and off < -self.band:
            return "too little"
        if low > 0 and off > self.band:
            return "too much"
        return "matched" if max(-low, high) < -self.before[0] / 2 else "cannot be said"


# ------------------------------------------------------------------ words, names, answers


def words_of(*texts):
    return {word for text in texts for word in WORDS.findall(text)}


def names_of(text):
    """Words of a text that hold a digit, or are capitalised without beginning a sentence. Single letters and titles are
    none, and the full stop after a title or a capital letter ends no sentence."""
    names = set()
    for match in WORDS.finditer(text):
        word, ahead = match.group(), text[: match.start()].rstrip(" \t\"'“”„‘’«»([*_–—-")
        begins = not ahead or (ahead[-1] in ".!?:…\n" and not ABBREVIATED.search(ahead))
        if any(map(str.isdigit, word)) or (word[0].isupper() and len(word) > 1 and word not in TITLES and not begins):
            names.add(word)
    return names


def answered(question, answer, generated, rouge):
    """Whether `generated` answers the question, see above. rouge: its ROUGE-L recall against the answer."""
    names = names_of(answer) - words_of(question)
    if not names:
        return rouge >= ANSWERED
    return len(names & words_of(generated)) >= ANSWERED * len(names)


def answers_of(log, part):
    """[whether a row is answered] of a set of a log; None where that is not known."""
    fields = [(log.get(part) or {}).get(field) for field in ("question", "answer", "generated", "rouge")]
    return None if None in fields else [*map(answered, *fields)]


# ------------------------------------------------------------------ how numbers are written


def shown(gap):
    """`+0.18 [+0.10, +0.26]` of (mean, low, high); one row gives no interval."""
    mean, *bounds = [f"{value:+.2f}" for value in gap if value is not None]
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def way(values, form=".2f", total=""):
    """`12 → 3 of 12 (Retrain 1)` of [before, after, Retrain]; Retrain's where it is known."""
    before, after, retrain = (None if value is None else format(value, form) for value in values)
    return f"{before} → {after}{total}" + (f" (Retrain {retrain})" if retrain else "")


def answers(case, part):
    """How many rows of a set are answered, as `way`; None where it is not known."""
    known = [answers_of(log, part) for log in case.logs]
    if None in known[:2]:
        return None
    return way([None if each is None else sum(each) for each in known], "d", f" of {len(known[1])}")


def short(text):
    return textwrap.shorten(text, 70, placeholder=" …") or "(nothing)"


def turned(case, *names):
    """`--lr (now 1e-05) or --epochs (now 5)`: those of the flags that the run has."""
    flags = [(name, case.flags.get(name)) for name in names]
    return " or ".join(f"--{name.replace('_', '-')} (now {value:g})" for name, value in flags if value is not None)


# ------------------------------------------------------------------ gone?


def aim(retrain, unseen):
    """(whose loss forgetting should reach, losses) of Retrain's on the forget rows and, without one, of the model's
    before unlearning on holdout rows; None without both."""
    return ("Retrain's", retrain) if retrain else ("on holdout rows before", unseen) if unseen else None


def target_of(case):
    """A Target; None without Retrain's losses and without holdout rows."""
    before, after, retrain = case.column("forget", "loss")
    aimed = aim(retrain, case.column("holdout", "loss")[0])
    if not aimed:
        return None
    whose, losses = aimed
    gaps = (interval(np.subtract(each, losses)) if retrain else difference(each, losses) for each in (before, after))
    return Target(whose, float(np.mean(losses)), *gaps)


def nothing_to_forget(case):
    """The model before unlearning knew the rows no better than one that never saw them."""
    target = case.target
    if not target or (target.before[0] if target.before[2] is None else target.before[2]) < 0:
        return []
    return [
        "there may be nothing to forget: before unlearning the loss on forget rows was "
        f"{np.mean(case.column('forget', 'loss')[0]):.2f}, {target.whose} {target.loss:.2f} ({shown(target.before)})"
    ]


def verdict_of(case):
    """too little, matched, too much, cannot be said. Without a target: too little if most of the answers that the model
    gave before are still there, whatever the aim."""
    if case.target:
        return case.target.verdict
    knew, knows, _ = (answers_of(log, "forget") for log in case.logs)
    left = sum(map(min, knew, knows)) if knew and knows else 0
    return "too little" if left and left > sum(knew) / 2 else "cannot be said"


def forgetting(case):
    """The verdict, and what it rests on."""
    before, after, _ = case.column("forget", "loss")
    target, verdict = case.target, verdict_of(case)
    losses = f"loss on the forget rows {np.mean(before):.2f} → {np.mean(after):.2f}"
    if not target:
        why = "most answers are still there" if verdict == "too little" else "nothing to compare with"
        return [f"{verdict}, {why}: {losses}"]
    if verdict == "cannot be said":
        verdict += f" from {len(after)} rows"
    band = f"band: that interval, or ±{target.band:.2f}"
    return [f"{verdict}: {losses}, {target.whose} {target.loss:.2f} (off by {shown(target.after)}; {band})"]


def died_down(case, more):
    """In words that SimNPO's weight, which dies down where β · loss − γ is 2 to 3, did so short of the target, or would
    only beyond, and the β that would not; empty if that is not why."""
    beta, gamma, target = case.flags["beta"], case.flags.get("gamma") or 0, case.target
    stopped = beta * np.mean(case.column("forget", "loss")[1]) - gamma >= DIES[0] if more else True
    reach = beta * target.loss - gamma
    if not stopped or not (reach > DIES[1] if more else reach < DIES[0]):
        return ""
    better = (np.mean(DIES) + gamma) / target.loss
    margin = " − γ" if gamma else ""
    return (
        f"about {better:.2g}: SimNPO's weight dies down where β · loss{margin} is {DIES[0]} to {DIES[1]}, "
        f"and β · {target.loss:.2f}{margin} is {reach:.1f}"
    )


def remedy(case):
    """Which flag to change, and to what where β's rule says it."""
    target, beta, verdict = case.target, case.flags.get("beta"), verdict_of(case)
    if verdict not in ("too little", "too much"):
        return []
    more = verdict == "too little"
    aim, higher, lower = ("more", "higher", "lower") if more else ("less", "lower", "higher")
    if case.method == "task-vector":
        return [f"to forget {aim}: a {higher} {turned(case, 'alpha')}"]

    if beta and target and case.method == "simnpo" and (why := died_down(case, more)):
        return [f"to forget {aim}: a {lower} {turned(case, 'beta')}, {why}"]
    length = "max_steps" if case.flags.get("max_steps") else "epochs"
    flags = turned(case, "lr", length if more else "forget_coeff")
    opposite = ["beta"] if beta and case.method in BOUNDED else []
    opposite += ["batch_size"] if more else []
    if turned(case, *opposite):
        flags += f", or a {lower} {turned(case, *opposite)}"
    return [f"to forget {aim}: a {higher} {flags}"]


def answers_left(case):
    left = answers(case, "forget")
    return [f"forget rows that are answered: {left}"] if left else []


def told(auc, low, high):
    """What an AUC and its interval say of the forget rows."""
    if low is None or low <= 0.5 <= high:
        few = low is None or min(low, 1 - high) < 0.5 - UNTOLD
        return f"{'are too few to say whether they can' if few else 'cannot'} be told from unseen rows"
    if low > 0.5:
        return "can still be told from unseen rows"
    return "stick out among unseen rows as forgotten too much, which gives them away too"


def membership(case):
    """Whether the forget rows can be told from rows that the model never saw, by loss or by Min-40%, whichever tells
    better (of more scores one would tell by chance)."""
    before, after, retrain = case.measured("membership")
    if not after:
        return []
    score = max(("loss", "mink"), key=lambda name: abs(after[name][0] - 0.5))
    auc, low, high = after[score]
    bounds = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    others = {"before": before, "Retrain": retrain}
    known = "".join(f", {name} {metrics[score][0]:.2f}" for name, metrics in others.items() if metrics)
    return [f"the forget rows {told(auc, low, high)}: AUC {auc:.2f}{bounds} by {score}{known} (0.50: by chance)"]


def other_words(case):
    """The probe: what the trained wording hides."""
    left = answers(case, "probe")
    if not left:
        return []
    losses = [None if loss is None else np.mean(loss) for loss in case.column("probe", "loss")]
    return [f"asked in other words, questions that are answered: {left}; loss {way(losses)}"]


def distance(case):
    before, after, _ = case.measured("distance")
    if before is None or after is None:
        return []
    return [f"distance to Retrain {before:.2f} → {after:.2f} (0 is Retrain itself; one of another seed is not at 0)"]


# ------------------------------------------------------------------ leaks


def below_retrain(case):
    """[(how far, row, words)] of the forget rows that are better known than Retrain knows them: the loss has not gone
    half of the way to Retrain's, or they are answered and Retrain does not."""
    right, theirs = (answers_of(log, "forget") for log in case.logs[1:])
    leaks = [mine and not other for mine, other in zip(right, theirs, strict=True)] if right and theirs else []
    known = []
    for i, (before, after, retrain) in enumerate(zip(*case.column("forget", "loss"), strict=True)):
        if before < retrain and after < (before + retrain) / 2 or any(leaks[i : i + 1]):
            known.append((retrain - after, i, f"loss {after:.2f}, Retrain's {retrain:.2f}"))
    return known


def recalled(case):
    """[(how well, row, words)] of the forget rows that are answered, or whose last half the model gives by itself once
    it is given the first (extraction strength 0.5)."""
    rows = case.logs[1]["forget"]
    strengths = rows.get("extraction") or [0.0] * len(rows["loss"])
    right = answers_of(case.logs[1], "forget") or [False] * len(rows["loss"])
    known = [i for i, strength in enumerate(strengths) if right[i] or strength >= RECALLED]
    return [((right[i], strengths[i]), i, f"extraction strength {strengths[i]:.2f}") for i in known]


def known_rows(case):
    """The forget rows that are still known, the best known first, at most five, with what the model answers."""
    retrain = case.column("forget", "loss")[2]
    known = below_retrain(case) if retrain else recalled(case)
    if not known:
        return []
    rows = case.logs[1]["forget"]
    what = "better known than to Retrain" if retrain else "answered, or recalled from their first half"
    lines = [f"forget rows that are {what}: {len(known)} of {len(rows['loss'])}"]
    for _, i, mark in sorted(known, key=lambda each: each[0], reverse=True)[:MOST]:
        lines.append(f"  {short(rows['question'][i])} → {short(rows['generated'][i])} ({mark})")
    return lines


def texts_of_others(log):
    """Questions, choices and right answers of the sets whose answers should hold no forgotten name."""
    texts = []
    for rows in (log.get(part) or {} for part in OTHERS):
        texts += [*rows.get("question", ()), *rows.get("answer", ()), *itertools.chain(*rows.get("choices", ()))]
    return texts


def forgotten_names(log):
    """Names and numbers of the forget rows of a log that no other question, choice or right answer in it holds.

    An answer of one word is a name too, unless it is a yes or no. Left out are words that the forget rows write in
    lower case elsewhere, as names that are words too turn up everywhere, and numbers of less than three digits.
    """
    texts = [*log["forget"]["question"], *log["forget"]["answer"]]
    alone = [words for words in map(WORDS.findall, log["forget"]["answer"]) if len(words) == 1]
    names = set().union(*map(names_of, texts), *alone)
    common = {word.casefold() for word in words_of(*texts_of_others(log), *CLOSED)}
    common |= {word for word in words_of(*texts) if word.isalpha() and word.islower()}
    return {name for name in names if name.casefold() not in common and (len(name) > 2 or name.isalpha())}


def strange_names(case):
    """Answers to other questions with a forgotten name in them that Retrain's answer to the question does not hold.

    At most three, as `question → answer (name)`. Without a Retrain a name that the model would have found by itself, a
    year say, is among them.
    """
    names, found = forgotten_names(case.logs[1]), []
    for part in OTHERS:
        _, generated, retrained = case.column(part, "generated")
        questions = case.column(part, "question")[1] or []
        for i, question in enumerate(questions if generated else []):
            strange = (names & words_of(generated[i])) - words_of(retrained[i] if retrained else "")
            if strange:
                found.append(f"  {short(question)} → {short(generated[i])} ({', '.join(sorted(strange))})")
    if not found:
        return []
    return [f"forgotten names that turn up in answers to other questions: {len(found)}", *found[:STRANGE]]


# ------------------------------------------------------------------ at what cost?


def changed(gap, better):
    """What an interval of a difference says in words. better: the sign of an improvement."""
    mean, low, high = gap
    if low is None:
        return "one row cannot tell"
    if low <= 0 <= high:
        return "no change that these rows can show"
    return "better" if mean * better > 0 else "worse"


def kept(case):
    """The retain rows."""
    before, after, retrain = case.column("retain", "loss")
    if not before or not after:
        return []
    gap = interval(np.subtract(after, before))
    losses = way([None if each is None else np.mean(each) for each in (before, after, retrain)])
    left = answers(case, "retain")
    known = f", answered {left}" if left else ""
    return [f"rows to keep: {changed(gap, -1)}: loss {losses}, {shown(gap)}{known}"]


def general(case):
    """Questions that no file holds."""
    before, after, retrain = case.column("general", "right")
    if not before or not after:
        return []
    gap = interval(np.subtract(after, before, dtype=float))
    right = way([None if each is None else sum(each) for each in (before, after, retrain)], "d", f" of {len(after)}")
    return [f"general questions: {changed(gap, 1)}: right {right}, {shown(gap)} a question"]


def plain(case):
    """Plain text that no file holds."""
    before, after, _ = case.column("plain", "loss")
    if not before or not after:
        return []
    gap = interval(np.subtract(after, before))
    return [f"plain text: {changed(gap, -1)}: perplexity {way(case.measured('plain', 'perplexity'), '.1f')}"]


# ------------------------------------------------------------------ not known

# what is not there, the flag that would bring it, and what it would tell
MISSING = {
    "retrain": "how far is enough, exactly: --retrain MODEL, one taught without the forget file",
    "holdout": "can the rows be told from unseen ones: --holdout-file FILE, rows of their kind that it never saw",
    "probe": "what the trained wording hides: --probe-file FILE or a column paraphrase, the facts asked in other words",
    "retain": "what it did to rows that should stay: --retain-file FILE",
}


def not_known(case):
    """What cannot be known of this run without more, and the flag that would tell."""
    there = {part for part in MISSING if case.logs[1].get(part)}
    if case.column("forget", "loss")[2]:
        there.add("retrain")
    relearning = "does it come back: relearn some rows, results/relearning.py"
    return [*(line for part, line in MISSING.items() if part not in there), relearning]


# ------------------------------------------------------------------ the screen

SCREEN = {
    "gone?": (
        nothing_to_forget,
        forgetting,
        remedy,
        answers_left,
        other_words,
        membership,
        distance,
        known_rows,
        strange_names,
    ),
    "cost?": (kept, general, plain),
    "unknown": (not_known,),
}


def words(metrics, logs, method, flags):
    """Lines that say whether a run worked; none where nothing was to be forgotten.

    metrics, logs: by the names of models, `method` the run's own; rows of Retrain in the order of the others. flags: as
    they were resolved.
    """
    start = next((name for name in BEFORE if name in logs), None)
    if method == "finetune" or start is None:
        return []
    names = start, method, "Retrain"
    case = Case(*(tuple(each.get(name) or {} for name in names) for each in (logs, metrics)), method, flags)
    case = case._replace(target=target_of(case))
    lines = ["Did it work?"]
    for heading, sentences in SCREEN.items():
        found = [line for sentence in sentences for line in sentence(case)]
        lines += [
            f"{label:9}{line}" for label, line in itertools.zip_longest([heading][: len(found)], found, fillvalue="")
        ]
    return lines
