"""Is what own data lost gone, or only hidden? Some of the forgotten rows were taught again: do the others come back?

    python results/relearning.py RUN CONTROL

RUN: --method finetune --subset KIND:SHARE --model U, U a run that unlearnt. CONTROL: the same with Retrain as --model,
which never saw the rows. What its loss on the other rows falls by, any model learns from rows of their kind; what
counts is how much more RUN's falls.
"""

from typing import NamedTuple

import numpy as np
from common import check_task

from benchmarks.verdict import answers_of, shown
from compare import read
from machinery.command import OneLineParser, run_command
from machinery.folder import lineage
from machinery.inputs import InputError
from machinery.statistics import interval

# flags with which runs teach differently
TEACHING = """lr epochs max_steps batch_size retain_batch_size seed warmup warmup_share weight_decay clip lora
forget_coeff retain_coeff retain""".split()
KINDS = {True: "a model that unlearnt", False: "one that did not, Retrain"}


class Relearning(NamedTuple):
    """Losses of all forget rows in nats a token, and whether they are answered, before and after teaching some."""

    before: np.ndarray
    after: np.ndarray
    answered_before: np.ndarray
    answered_after: np.ndarray


def check_pair(run, control):
    """InputError unless both taught the same rows in the same way, RUN to a model that unlearnt, CONTROL to another."""
    check_task([run], "relearning", ["own"])
    for each, kind in ((run, True), (control, False)):
        if each["flags"]["method"] != "finetune" or not each["run.json"].get("subset_rows"):
            raise InputError(
                f"run '{each['folder']}' relearns nothing; give one of --method finetune --subset KIND:SHARE"
            )
        split = each["flags"]["split"]
        if split != each["flags"]["forget_split"]:
            raise InputError(
                f"run '{each['folder']}' was taught other rows than the forget set's; leave --split {split} out"
            )
        if bool(each["start"]) != kind:
            raise InputError(f"run '{each['folder']}' does not start from {KINDS[kind]}; give RUN first, then CONTROL")
    original, _, _ = lineage(control["run.json"])
    learnt = (original or {}).get("split", "retain")
    if learnt != "retain":
        raise InputError(
            f"run '{control['folder']}' starts from a model that learnt the rows (--split {learnt}); give one that "
            "starts from Retrain, of --split retain"
        )

    differing = [
        f"--{flag.replace('_', '-')}" for flag in TEACHING if run["flags"].get(flag) != control["flags"].get(flag)
    ]
    for name, what in (("forget set", "the rows that they teach"), ("retain set", "the rows that they keep")):
        if run["run.json"]["data"].get(name) != control["run.json"]["data"].get(name):
            differing.append(what)
    parts = [each["metrics.log.json"]["forget"] for each in (run, control)]
    if any(parts[0][field] != parts[1][field] for field in ("question", "answer")):
        differing.append("the rows that they measure")
    if differing:
        names = f"'{run['folder']}' and '{control['folder']}'"
        raise InputError(f"runs {names} differ in {', '.join(differing)}; teach and measure the same")


def relearning_of(run):
    """A Relearning of a run."""
    before = run["reference.log.json"].get("before" if run["start"] else "Original")
    after = run["metrics.log.json"]["forget"]
    if not before:
        raise InputError(f"run '{run['folder']}' was not measured before; give one that starts from another model")
    answered = (answers_of({"forget": part}, "forget") for part in (before, after))
    return Relearning(*map(np.array, (before["loss"], after["loss"], *answered)))


def meaning(excess, taught):
    """What it says. excess: (mean, low, high); taught: mean losses of RUN on the rows taught, before and after."""
    mean, low, high = excess
    if low is not None and low > 0:
        return "the memory was still there: more comes back than these rows teach a model that never saw the others"
    if taught[1] > taught[0] / 2:
        return "it says nothing: the rows themselves were hardly learnt; give both runs more --epochs or a higher --lr"
    if low is None:
        return "one other row says nothing; teach a smaller part"
    if high < 0:
        return (
            "less comes back than Retrain learns: nothing shows that was hidden, but rows of this kind are learnt worse"
        )
    return f"nothing shows that was hidden: no more comes back than Retrain learns, or at most {high:.2f} nats a token"


def relearning_text(run, control):
    """Lines: the rows taught, what the loss on the others fell by in both runs, the excess, and what it means."""
    check_pair(run, control)
    parts = {"unlearnt": relearning_of(run), "control": relearning_of(control)}
    count = len(parts["unlearnt"].before)
    taught = [row for row in run["run.json"]["subset_rows"] if row < count]
    others = [row for row in range(count) if row not in taught]
    if not taught or not others:
        raise InputError(f"--subset {run['flags']['subset']} leaves no rows to compare; teach a smaller part")

    lines, falls = [f"taught again: {len(taught)} of {count} forget rows; the others:"], []
    for name, part in parts.items():
        falls.append((part.before - part.after)[others])
        before, after = part.before[others].mean(), part.after[others].mean()
        answers = f"{part.answered_before[others].sum()} → {part.answered_after[others].sum()} of {len(others)}"
        fell = shown(interval(falls[-1]))
        lines.append(f"  {name:9} loss {before:.2f} → {after:.2f}, fell by {fell}; answered {answers}")
    excess = interval(falls[0] - falls[1])
    unlearnt = parts["unlearnt"]
    losses = unlearnt.before[taught].mean(), unlearnt.after[taught].mean()
    return "\n".join([*lines, f"  excess    {shown(excess)} nats a token: {meaning(excess, losses)}"])


def main(argv=None):
    def run(args):
        print(relearning_text(*read([args.run, args.control], "metrics.log.json", "reference.log.json")))

    parser = OneLineParser(prog="relearning.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run that taught a model that unlearnt")
    parser.add_argument("control", metavar="CONTROL", help="the run that taught Retrain")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
