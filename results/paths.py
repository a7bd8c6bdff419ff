"""The paper's claims at equal forgetting: what has one group of answers lost when another has gone its way to Retrain?

    python results/paths.py RUN…                      runs of the first method against the others, paired by seed
    python results/paths.py RUN… --out FILE.png       and a picture of the ways
    python results/paths.py RUN… --never-learnt 20    Original had never learnt the last 20 rows of the forget set

Losses are mean token losses in nats, after each epoch, as the loop met the answers; so runs on TOFU and on your own
questions can be compared, of models from scratch and others. results/paths.md is about them.
"""

import itertools

import numpy as np
from common import TOFU, add_seed, check_task, parser_of_runs, verdict

from benchmarks.own import names_of
from benchmarks.tofu import halves_of
from compare import benchmark_of, check_picture, draw_curve, epochs, group_runs, panels, read
from machinery.command import number, run_command
from machinery.inputs import InputError
from machinery.statistics import crossing, interval

WAY = {"half-way to Retrain": 0.5, "at Retrain": 1.0}
# whose loss is awaited, whose is read then, what the paper says of a method against SimNPO, its sign if so
READINGS = [
    ("long", "short", "L1, allocation: it leaves short answers behind", "<"),
    ("short", "long", "L1, allocation: it over-forgets long answers", ">"),
    ("short", "retain", "L1, cost: forgetting short answers costs it more", ">"),
    ("long", "retain", "the same cost for long answers", ">"),
    ("learnt", "never learnt", "L2: it pushes further what was never learnt", ">"),
    ("learnt", "retain", "the cost of forgetting all", ">"),
]

# ------------------------------------------------------------------ the way of a run


def answers_met(run):
    """compare.epochs of a run. InputError unless it followed log π of all answers, and the loss on retain examples."""
    pictures = epochs(run["log.jsonl"])
    if run["flags"]["method"] == "idk" or not all("logp" in picture for picture in pictures):
        raise InputError(f"run '{run['folder']}' followed no log π of the answers to forget; leave {run['name']} out")
    if run["flags"]["retain"] != "nll":
        raise InputError(f"run '{run['folder']}' has no retain set, or no loss on it; train it with --retain nll")
    return pictures


def losses_of(run, name, pictures):
    """The mean token loss of each forget answer under a model that the run was compared with, [N], in nats."""
    loss = run["reference.log.json"].get(name, {}).get("loss")
    if not loss:
        raise InputError(f"run '{run['folder']}' has no {name}'s losses; train it with --retrain and --eval end")
    if {len(loss)} != {len(picture["row"]) for picture in pictures}:
        raise InputError(
            f"run '{run['folder']}': {name}'s log has {len(loss)} forget answers, its epochs others; "
            "give runs on a whole forget set, for whole epochs; of your own data, on at most 300 questions"
        )
    parts = [run["reference.log.json"][other] for other in (name, "Retrain")]
    rows = [names_of(part) for part in parts if "question" in part]
    if any(names != rows[0] for names in rows):
        raise InputError(f"run '{run['folder']}': Retrain's log has its rows in another order; give --retrain a model")
    return np.array(loss)


def groups_of(run, length, never_learnt=None):
    """{group: its rows of the forget set}: learnt, the answers that Original learnt; short and long, its halves by |y|;
    never learnt, the others if any: the last rows, so many as `never_learnt` says, or else the run's own flag."""
    count, share = len(length), run["flags"].get("never_learnt")
    if share and never_learnt is not None:
        raise InputError(f"run '{run['folder']}' tells itself what was never learnt; leave --never-learnt out")
    learnt = count - (never_learnt or (benchmark_of([run]).unseen_rows(count, share) if share else 0))
    if learnt < 2:
        raise InputError(
            f"run '{run['folder']}': of {count} forget rows Original learnt less than two; lower --never-learnt"
        )
    short, long = halves_of(length[:learnt])
    rows = {"short": short, "long": long, "learnt": range(learnt), "never learnt": range(learnt, count)}
    return {group: list(part) for group, part in rows.items() if len(part)}


def path_of(run, never_learnt=None):
    """({group: its mean token loss before training and after each epoch}, {group: that under Retrain}), in nats.

    Groups: those of `groups_of`, and retain, the examples that an epoch met, of which Retrain's is not known.
    """
    pictures = answers_met(run)
    retrained = losses_of(run, "Retrain", pictures)
    before = losses_of(run, "before" if run["start"] else "Original", pictures)
    lengths = pictures[0]["length"]
    rows = groups_of(run, lengths, never_learnt)
    loss = np.array([before, *(-np.array(picture["logp"]) / lengths for picture in pictures)])

    path = {group: loss[:, part].mean(1).tolist() for group, part in rows.items()}
    path["retain"] = [run["log.jsonl"][0]["retain"], *(picture["retain"] for picture in pictures)]
    path["epoch"] = [*range(len(loss))]
    return path, {group: np.mean(retrained[part]) for group, part in rows.items()}


def reading(run, awaited, share, quantity):
    """The loss of one group when another has gone `share` of its way to Retrain's; None if it never does."""
    path, retrained = run["path"]
    start = path[awaited][0]
    return crossing(path[awaited], start + share * (retrained[awaited] - start), path[quantity])


def with_paths(runs, never_learnt=None):
    """{label: {seed: run}} of runs, with their `path_of`; the first run's label first."""
    check_task(runs, "paths", (*TOFU, "own"))
    groups = {}
    for label, group in group_runs(runs).items():
        groups[label] = {}
        for run in group:
            add_seed(groups[label], run)
            run["path"] = path_of(run, never_learnt)
    return groups


# ------------------------------------------------------------------ table and figure


def pairs_of(ours, theirs, awaited, share, quantity):
    """([(our reading, theirs) of each seed in which both get there], number of seeds that both have)."""
    seeds = sorted(set(ours) & set(theirs))
    pairs = [[reading(group[seed], awaited, share, quantity) for group in (ours, theirs)] for seed in seeds]
    return [pair for pair in pairs if None not in pair], len(seeds)


def paths_table(runs, never_learnt=None):
    """Markdown: of READINGS, at each of WAY, each group of runs against the first, paired by seed."""
    groups = with_paths(runs, never_learnt)
    first, *others = groups
    if not others:
        raise InputError(f"these runs are all of {first}; give those of another method or setting too")

    lines = [
        f"| when | loss on | {first} | another | difference [95% interval] | seeds | the paper says of it | verdict |",
        "|---" * 8 + "|",
    ]
    followed = runs[0]["path"][0]
    for (awaited, quantity, claim, sign), (level, share) in itertools.product(READINGS, WAY.items()):
        for other in others if quantity in followed else ():
            pairs, seeds = pairs_of(groups[first], groups[other], awaited, share, quantity)
            gaps = [theirs - ours for ours, theirs in pairs]
            numbers = [*np.mean(pairs, 0), *interval(gaps)] if pairs else [None] * 5
            ours, theirs, mean, low, high = ["–" if value is None else f"{value:.3f}" for value in numbers]
            lines.append(
                f"| {awaited} {level} | {quantity} | {ours} | {theirs} {other} | {mean} [{low}, {high}] | "
                f"{len(gaps)} of {seeds} | {claim} | {verdict(gaps, sign)} |"
            )
    return "\n".join(lines)


def draw_paths(runs):
    """At equal forgetting: losses of short, long, never-learnt and retain answers on the way to Retrain.

    runs: after `with_paths`.
    """
    shares = np.linspace(0, 1, 26)
    shown = [group for group in ("short", "long", "never learnt", "retain") if group in runs[0]["path"][0]]
    figure, (axes,) = panels(1, len(shown), height=3)
    for axis, quantity in zip(axes, shown, strict=True):
        for label, group in group_runs(runs).items():
            curves = [[reading(run, "learnt", share, quantity) for share in shares] for run in group]
            draw_curve(axis, shares, curves, label, color=group[0]["colour"])
        axis.set(xlabel="way to Retrain of what was learnt", title=f"loss on {quantity}")
    axes[0].set_ylabel("nats a token")
    axes[0].legend(fontsize=7)
    return figure


def run(args):
    out = check_picture(args.out, args.overwrite) if args.out else None
    runs = read(args.runs, "log.jsonl", "reference.log.json")
    print(paths_table(runs, args.never_learnt))
    if out:
        draw_paths(runs).savefig(out, dpi=110)
        print(f"written: {out}")


def add_never_learnt(parser):
    parser.add_argument(
        "--never-learnt",
        type=number(int, 1),
        metavar="ROWS",
        help="how many of the forget rows, the last ones, Original never learnt: where it was fine-tuned without them "
        "(default: what the runs were told)",
    )


def main(argv=None):
    parser = parser_of_runs("paths.py", __doc__)
    add_never_learnt(parser)
    parser.add_argument("--out", help="a .png file")
    parser.add_argument("--overwrite", action="store_true", help="write over what --out names")
    run_command(parser, run, argv=argv)


if __name__ == "__main__":
    main()
