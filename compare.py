"""Compare runs of train.py: tables, claims with intervals, figures, from the small files in their folders.

No model is loaded. Folders that are no runs are passed over; runs of different tasks, splits or models are
refused. Runs of one method are averaged when only their seeds differ; else the flags that differ name them.
"""

import math
import textwrap
from pathlib import Path

import numpy as np
import scipy.stats

import muse
import runs
import tofu
import wmdp
from data import InputError
from evaluate import BENCHMARKS
from markov import crossing, draw, interval
from methods import METHODS
from tofu import log_quality, quality, utility

# ------------------------------------------------------------------ runs, and groups of runs

# Flags that do not make runs two settings: they name files, or change speed and what is measured.
IMMATERIAL = (
    "seed",
    "out",
    "retrain",
    "model",
    "data",
    "eval",
    "device",
    "eval_batch_size",
    "micro_batch_size",
    "grad_checkpointing",
    "tokenizer",
    "forget_file",
    "retain_file",
)


def read(folders, *files):
    """Runs, as `runs.read_runs` gives them, with what each is called and stands for.

    flags: its own; start: those of the run whose model it started from, or None; seed: the start's, or its
    own; name: `SimNPO`, or `SimNPO → fine-tuning shortest:0.2`; setting: {flag: value}, all that matters.
    """
    found = runs.read_runs(folders, lambda task: of_task(task).FILES, *files)
    for run in found:
        flags, start = run["run.json"]["flags"], run["run.json"].get("start")
        methods = [METHODS.get(each["method"]) for each in (start, flags) if each]
        if None in methods:
            raise InputError(f"run '{run['folder']}' is of a method that methods.py lacks; add it there")
        name = " → ".join(method.name for method in methods)
        setting = [
            (prefix + flag, value)
            for prefix, each in (("", flags), ("start_", start or {}))
            for flag, value in each.items()
            if flag not in IMMATERIAL
        ]
        run |= {
            "flags": flags,
            "start": start,
            "seed": (start or flags)["seed"],
            "setting": dict(setting),
            "name": " ".join(filter(None, (name, flags.get("subset")))),
            "metrics": run["metrics.json"],
        }
    return found


def of_task(task):
    """The module that knows a task. InputError if there is none."""
    if task not in BENCHMARKS:
        raise InputError(f"a run is of task {task[:20]}, which evaluate.py lacks; add it there")
    return BENCHMARKS[task]


def benchmark_of(found, what="", *modules):
    """The module of the runs' benchmark. InputError unless it is one of `modules`, if any."""
    task = found[0]["flags"]["task"]
    if modules and of_task(task) not in modules:
        raise InputError(f"{what} is of {modules[0].__name__}; these runs are of {task}")
    return of_task(task)


def with_quality(found):
    """The runs. InputError unless it is known of each how well it forgot and kept, at each measured epoch."""
    for name, value_of in (benchmark_of(found).FORGOTTEN, benchmark_of(found).KEPT):
        for run in found:
            if None in map(value_of, (run["metrics"], *run.get("epochs.jsonl", []))):
                raise InputError(f"run '{run['folder']}' has no {name}; it needs --retrain and a retain set")
    return found


def group_runs(found):
    """{label: runs}: the name, and the flags in which the settings of runs of that name differ."""
    groups = {}
    for run in found:
        alike = [other["setting"] for other in found if other["name"] == run["name"]]
        differing = [flag for flag in alike[0] if any(other.get(flag) != alike[0][flag] for other in alike)]
        label = [run["name"], *(f"{flag.replace('_', '-')}={run['setting'].get(flag)}" for flag in differing)]
        groups.setdefault(" ".join(label), []).append(run)
    return groups


def references_of(found):
    """{"Original": [metrics, ...], "Retrain": [...]}: what the runs were compared with, once per seed."""
    by_name = {}
    for run in found:
        for name, metrics in run["metrics"]["reference"].items():
            if name != "before":  # the run that was started from, which has a folder of its own
                by_name.setdefault(name, {})[run["seed"]] = metrics
    return {name: list(by_seed.values()) for name, by_seed in by_name.items()}


def metrics_of(found):
    """{label: [metrics, ...]}: the models compared with, then the runs' own."""
    own = {label: [run["metrics"] for run in group] for label, group in group_runs(found).items()}
    return references_of(found) | own


def floor_of(found):
    """{"Retrain of another seed": [metrics, ...]}: each seed's Retrain compared with the next seed's, which is
    as near as perfect unlearning comes. Empty unless seeds of TOFU have a Retrain each."""
    by_seed = {}
    for run in found if benchmark_of(found) is tofu else ():
        metrics, log = (part.get("Retrain") for part in (run["metrics"]["reference"], run["reference.log.json"]))
        if metrics and log:
            by_seed[run["seed"]] = metrics | {"judged": None}, log
    retrained = [by_seed[seed] for seed in sorted(by_seed)]
    pairs = [
        metrics | tofu.compared(log, other)
        for (metrics, log), (_, other) in zip(retrained, retrained[1:])
        if log != other and len(log["truth_ratio"]) == len(other["truth_ratio"])
    ]
    return {"Retrain of another seed": pairs} if pairs else {}


# ------------------------------------------------------------------ tables

COST = {
    "training s ↓": (lambda metrics: metrics.get("train_seconds"), "{:.1f}"),
    "peak memory GB ↓": (lambda m: (m.get("peak_memory_bytes") or 0) / 1e9 or None, "{:.2f}"),
}
SHOWN = "main", "all", "cost"
# by a column's last sign
BETTER = {"↑": lambda mean: mean, "↓": lambda mean: -mean}


def spread(values, form):
    """mean ± standard deviation (n - 1), or the value alone where there is one."""
    mean = form.format(np.mean(values))
    mean = mean.lstrip("-") if float(mean) == 0 else mean  # log10 of a p-value of 1 may be -0
    return mean + (f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else "")


def table(found, columns="main"):
    """The paper's Table 2, A1 or A2 (or A3): a row per method, mean ± standard deviation; columns: of SHOWN.

    Bold: the best of the methods that unlearn, in the benchmark's BOLD columns.
    """
    benchmark, own, groups = benchmark_of(found), group_runs(found), metrics_of(found)
    if columns != "cost":
        groups = (
            {label: groups.pop(label) for label in ("Original", "Retrain") if label in groups}
            | floor_of(found)
            | groups
        )
    shown = {
        "all": benchmark.COLUMNS | COST,
        "cost": COST,
        "main": {name: benchmark.COLUMNS[name] for name in benchmark.MAIN},
    }[columns]
    values = {
        label: {column: [value_of(metrics) for metrics in group] for column, (value_of, _) in shown.items()}
        for label, group in groups.items()
    }

    def cell(label, column):
        if None in values[label][column]:
            return "–"
        text = spread(values[label][column], shown[column][1])
        if column not in benchmark.BOLD or label not in own:
            return text
        means = [np.mean(values[each][column]) for each in own if None not in values[each][column]]
        best = len(means) > 1 and np.mean(values[label][column]) == max(means, key=BETTER[column[-1]])
        return f"**{text}**" if best else text

    rows = [["method", "runs", *shown], ["---"] * (2 + len(shown))]
    rows += [[label, str(len(group)), *(cell(label, column) for column in shown)] for label, group in groups.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def answers(found, count):
    """Answers to `count` forget questions, from short to long truths, and how repetitive each method is.

    A method with several runs answers by its first; the share at the end is the mean over all of them.
    """
    if benchmark_of(found) is wmdp:
        raise InputError("answers shows what was generated; WMDP's questions are answered by letter")
    asked, groups = found[0]["metrics.log.json"]["forget"], group_runs(found)
    others = found[0]["reference.log.json"]
    shown = {"truth": asked["answer"]} | {
        name: others[name]["generated"] for name in others if "generated" in others[name]
    }
    shown |= {label: group[0]["metrics.log.json"]["forget"]["generated"] for label, group in groups.items()}
    order = np.argsort(asked["length"], kind="stable")
    if any(len(texts) != len(order) for texts in shown.values()):
        raise InputError("these runs answer different numbers of questions; give runs of one split")
    width, lines = max(map(len, shown)), []
    for place in sorted({int(i) for i in np.linspace(0, len(order) - 1, min(count, len(order)))}):
        lines.append(f"\n{'Q':>{width}s}        {asked['question'][order[place]]}")
        for label, texts in shown.items():
            text = textwrap.fill(texts[order[place]] or "(nothing)", 100, subsequent_indent=" " * (width + 8))
            lines.append(f"{label:>{width}s}  {tofu.repetition(texts[order[place]]):4.2f}  {text}")
    lines += ["", "beside each answer: its share of repeated 4-grams. Mean over all forget answers and runs:"]
    for label, texts in shown.items():
        said = [run["metrics.log.json"]["forget"]["generated"] for run in groups.get(label, [])] or [texts]
        share = spread([np.mean([*map(tofu.repetition, each)]) for each in said], "{:.3f}")
        lines.append(f"{label:>{width}s}  {share}")
    return "\n".join(lines)


# ------------------------------------------------------------------ the paper's claims


def correlation(line):
    """Pearson's r between weight and response length over the forget sequences of one line of path.jsonl.

    0 where all weights are the same, as NPO's are before its first step, or all lengths.
    """
    alike = np.ptp(line["weight"]) <= 1e-5 * np.max(np.abs(line["weight"]))  # up to float32's rounding
    if alike or np.ptp(line["length"]) == 0:
        return 0.0
    return float(scipy.stats.pearsonr(line["length"], line["weight"]).statistic)


def after(run, epoch, value_of, file="epochs.jsonl"):
    """A value of the line of an epoch, or of the last epoch if that is earlier."""
    return value_of(run[file][min(epoch, run[file][-1]["epoch"]) - run[file][0]["epoch"]])


def r(run, epoch):
    return after(run, epoch, correlation, "path.jsonl")


def gain(better, worse, of):
    """Difference in a metric between two runs."""
    return of(better["metrics"]) - of(worse["metrics"])


def lasting(run):
    """log10 of the forget quality after relearning over that before: 0 is robust, -3 is a thousandth."""
    return log_quality(run["metrics"]) - log_quality(run["metrics"]["reference"]["before"])


NPO, SIMNPO, SHORT, LONG = ("npo", None), ("simnpo", None), "shortest", "longest"
BOTH = SIMNPO, NPO
# claim of the paper, what is measured, its sign if so, runs (method, relearnt part), value of those runs
CLAIMS = [
    (
        "SimNPO has higher forget quality than NPO",
        "difference of forget quality",
        ">",
        BOTH,
        lambda s, n: gain(s, n, quality),
    ),
    (
        "… on the shortest half too",
        "difference of forget quality there",
        ">",
        BOTH,
        lambda s, n: gain(s, n, lambda m: quality(m, SHORT)),
    ),
    (
        "… and most of all there",
        "that difference - the same on the longest half",
        ">",
        BOTH,
        lambda s, n: gain(s, n, lambda m: quality(m, SHORT) - quality(m, LONG)),
    ),
    (
        "… and comes nearer to Retrain",
        "difference of the distance, NPO - SimNPO",
        ">",
        BOTH,
        lambda s, n: gain(n, s, tofu.distance),
    ),
    (
        "SimNPO's model utility is at least NPO's",
        "difference of model utility",
        ">=",
        BOTH,
        lambda s, n: gain(s, n, utility),
    ),
    (
        "NPO is worse on the shortest half than on the longest",
        "NPO's forget quality there - on the longest half",
        "<",
        (NPO,),
        lambda n: quality(n["metrics"], SHORT) - quality(n["metrics"], LONG),
    ),
    (
        "NPO loses more utility early",
        "difference of model utility after epoch 2",
        ">",
        BOTH,
        lambda s, n: after(s, 2, utility) - after(n, 2, utility),
    ),
    (
        "NPO forgets less than SimNPO all along",
        "difference of log10 forget quality after epoch 3",
        ">",
        BOTH,
        lambda s, n: after(s, 3, log_quality) - after(n, 3, log_quality),
    ),
    (
        "NPO's answers repeat themselves more",
        "difference of the share of repeated 4-grams, NPO - SimNPO",
        ">",
        BOTH,
        lambda s, n: gain(n, s, lambda m: m["repetition"]),
    ),
    (
        "short responses get SimNPO's largest weights in epochs 1 and 2",
        "-r of weight and length, mean of the two",
        ">",
        (SIMNPO,),
        lambda s: -(r(s, 1) + r(s, 2)) / 2,
    ),
    *(
        (
            f"… more so than NPO's, in epoch {epoch}",
            "difference of the sizes of r",
            ">",
            BOTH,
            lambda s, n, epoch=epoch: abs(r(s, epoch)) - abs(r(n, epoch)),
        )
        for epoch in (1, 2)
    ),
    (
        "… and less so later",
        "size of r in epochs 1 and 2 - in epoch 10 (or the last)",
        ">",
        (SIMNPO,),
        lambda s: (abs(r(s, 1)) + abs(r(s, 2))) / 2 - abs(r(s, 10)),
    ),
    (
        "… when NPO's depend on it more",
        "difference of the sizes of r in epoch 10",
        "<",
        BOTH,
        lambda s, n: abs(r(s, 10)) - abs(r(n, 10)),
    ),
    *(
        (
            f"SimNPO forgets more lastingly ({part}-relearn)",
            "difference of log10(FQ after / FQ before)",
            ">",
            (("simnpo", part), ("npo", part)),
            lambda s, n: lasting(s) - lasting(n),
        )
        for part in (SHORT, "random")
    ),
    *(
        (
            claim,
            "log10 FQ after shortest - after random",
            sign,
            ((method, SHORT), (method, "random")),
            lambda s, r: gain(s, r, log_quality),
        )
        for claim, sign, method in (
            ("shortest-relearn is no worse than random-relearn for SimNPO", ">=", "simnpo"),
            ("… but is worse for NPO", "<", "npo"),
        )
    ),
]


def claims(found):
    """Of CLAIMS: (claim, what was measured, (mean, lower, upper) over seeds, number of seeds, verdict).

    found: NPO and SimNPO, and if any, runs of --method finetune that start from those, on --subset shortest:…
    or random:…, all read with path.jsonl and epochs.jsonl. Differences are paired by seed.
    """
    benchmark_of(found, "claims", tofu)
    by_key = {}  # {(method, relearnt part): {seed: run}}
    for run in found:
        part = str(run["flags"].get("subset")).split(":")[0] if run["start"] else None
        by_seed = by_key.setdefault(((run["start"] or run["flags"])["method"], part), {})
        if by_seed.setdefault(run["seed"], run) is not run:
            raise InputError(f"run '{run['folder']}' is a second one of seed {run['seed']}; give one")
    for run in found:
        base = by_key.get((run["start"]["method"], None), {}).get(run["seed"]) if run["start"] else None
        if base and run["start"] != base["flags"]:
            raise InputError(
                f"run '{run['folder']}' started from {run['start']['out']}, not from "
                f"'{base['folder']}'; give runs that belong together"
            )
    for method, _ in {NPO, SIMNPO} - by_key.keys():
        raise InputError(f"the claims are about NPO and SimNPO; give runs of --method {method} too")
    for claim, what, sign, keys, value_of in CLAIMS:
        seeds = sorted(set.intersection(*(set(by_key.get(key, ())) for key in keys)))
        try:
            values = [value_of(*(by_key[key][seed] for key in keys)) for seed in seeds]
        except (KeyError, TypeError):  # None, of what metrics may lack
            raise InputError(
                f"a run's metrics lack what the claim '{claim}' needs; train.py --eval epoch with --retrain measures it"
            ) from None
        yield claim, what, interval(values) if values else None, len(values), verdict(values, sign)


def verdict(values, sign):
    """holds, does not hold, or can't tell: is the mean of `values` >, >= or < 0, by its 95% interval?"""
    if len(values) < 2:
        return "can't tell" if values else "no runs for it"
    _, low, high = interval(values)
    if sign == "<":
        low, high = -high, -low
    if low > 0 or (sign == ">=" and low == 0):
        return "holds"
    return "does not hold" if high < 0 or (sign != ">=" and high == 0) else "can't tell"


def claims_table(found):
    """Markdown of `claims`."""
    lines = ["| claim | measured | mean [95% interval] | seeds | verdict |", "|---|---|---|---|---|"]
    for claim, what, values, seeds, said in claims(found):
        mean, *bounds = [f"{value:.3g}" for value in values or () if value is not None] or "–"
        shown = f"{mean} [{', '.join(bounds)}]" if bounds else mean
        lines.append(f"| {claim} | {what} | {shown} | {seeds} | {said} |")
    return "\n".join(lines)


# ------------------------------------------------------------------ the paper's claims at equal forgetting

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


def path_of(run):
    """({group: its mean token loss after each epoch}, {group: that under Retrain}), in nats.

    Groups: learnt, the forget answers that Original learnt; short and long, its halves by |y|; never learnt, the
    others if any; and retain, the run's sample, of which Retrain's is not known.
    """
    lines, name = run["path.jsonl"], run["folder"]
    lengths, retrained = lines[0]["length"], run["reference.log.json"].get("Retrain", {}).get("loss")
    if "answer" not in METHODS[run["flags"]["method"]].reads or None in [line.get("logp") for line in lines]:
        raise InputError(f"run '{name}' followed no log π of the answers to forget; leave {run['name']} out")
    if None in [line.get("retain") for line in lines] or not retrained:
        raise InputError(f"run '{name}' has no retain set, or no Retrain's losses; train it with both")
    if {len(retrained)} != {len(line["logp"]) for line in lines}:
        raise InputError(
            f"run '{name}': Retrain's log has {len(retrained)} forget answers, its path others; "
            "give runs on a whole forget set, for whole epochs"
        )
    count = len(lengths)
    learnt = count - tofu.never_learnt(run["flags"]["task"], count, run["flags"].get("never_learnt") or 0)
    if learnt < 2:
        raise InputError(f"run '{name}': Original learnt none of what is to be forgotten; lower --never-learnt")
    short, long = tofu.halves_of(lengths[:learnt])
    rows = {"short": short, "long": long, "learnt": range(learnt), "never learnt": range(learnt, count)}
    loss = -np.array([line["logp"] for line in lines]) / lengths
    rows = {group: list(part) for group, part in rows.items() if len(part)}
    path = {group: loss[:, part].mean(1).tolist() for group, part in rows.items()}
    return (
        path | {"retain": [line["retain"] for line in lines]},
        {group: np.mean(np.array(retrained)[part]) for group, part in rows.items()},
    )


def reading(run, awaited, share, quantity):
    """The loss of one group when another has gone `share` of its way to Retrain's; None if it never does."""
    path, retrained = run["path"]
    start = path[awaited][0]
    return crossing(path, awaited, start + share * (retrained[awaited] - start), quantity)


def with_paths(found):
    """{label: {seed: run}} of runs of TOFU, with their `path_of`; the first run's label first."""
    benchmark_of(found, "paths", tofu)
    groups = {}
    for label, group in group_runs(found).items():
        for run in group:
            if groups.setdefault(label, {}).setdefault(run["seed"], run) is not run:
                raise InputError(f"run '{run['folder']}' is a second one of seed {run['seed']}; give one")
            run["path"] = path_of(run)
    return groups


def paths(found):
    """Of READINGS, at each of WAY, each group of runs against the first, paired by seed: (when, what was read,
    label, {label: mean of seeds in both}, interval of the difference, seeds in both, seeds, claim, verdict)."""
    first, *others = (groups := with_paths(found))
    if not others:
        raise InputError(f"these runs are all of {first}; give those of another method or setting too")
    for awaited, quantity, claim, sign in READINGS:
        for level, share in WAY.items():
            values = {
                label: {seed: reading(run, awaited, share, quantity) for seed, run in group.items()}
                for label, group in groups.items()
                if quantity in next(iter(group.values()))["path"][0]
            }
            for other in others if values else ():
                seeds = sorted(set(values[first]) & set(values[other]))
                pairs = [(values[first][seed], values[other][seed]) for seed in seeds]
                pairs = [pair for pair in pairs if None not in pair]
                gaps = [theirs - ours for ours, theirs in pairs]
                yield (
                    f"{awaited} {level}",
                    quantity,
                    other,
                    *(np.mean(pairs, 0) if pairs else (None, None)),
                    interval(gaps) if gaps else None,
                    len(gaps),
                    len(seeds),
                    claim,
                    verdict(gaps, sign),
                )


def paths_table(found):
    """Markdown of `paths`."""

    def form(value):
        return "–" if value is None else f"{value:.3f}"

    first = next(iter(group_runs(found)))
    lines = [
        f"| when | loss on | {first} | another | difference [95% interval] | seeds | the paper says of it | verdict |",
        "|---" * 8 + "|",
    ]
    for when, quantity, other, ours, theirs, gap, reached, seeds, claim, said in paths(found):
        mean, low, high = map(form, gap or (None,) * 3)
        lines.append(
            f"| {when} | {quantity} | {form(ours)} | {form(theirs)} {other} | {mean} [{low}, {high}] | "
            f"{reached} of {seeds} | {claim} | {said} |"
        )
    return "\n".join(lines)


def draw_paths(found):
    """At equal forgetting: losses of short, long, never-learnt and retain answers on the way to Retrain."""
    groups, shares = with_paths(found), np.linspace(0, 1, 26)
    shown = [group for group in ("short", "long", "never learnt", "retain") if group in found[0]["path"][0]]
    figure, (axes,) = panels(1, len(shown), height=3)
    for axis, quantity in zip(axes, shown):
        for label, group in groups.items():
            curves = [[reading(run, "learnt", share, quantity) for share in shares] for run in group.values()]
            draw(axis, shares, curves, label, color=colour_of(label))
        axis.set(xlabel="way to Retrain of what was learnt", title=f"loss on {quantity}")
    axes[0].set_ylabel("nats a token")
    axes[0].legend(fontsize=7)
    return figure


# ------------------------------------------------------------------ the paper's figures


def colour_of(label):
    """One colour for a method in every figure."""
    colours = {"Original": "black", "Retrain": "grey"} | {each.name: each.colour for each in METHODS.values()}
    return colours[max((name for name in colours if label.startswith(name)), key=len)]


def panels(rows, columns, width=3.4, height=2.7):
    """(figure, axes [rows, columns])"""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_halves(found):
    """Fig. 2, A4: truth ratios of the shortest and the longest half of the forget set, against Retrain's."""
    benchmark_of(found, "figure halves", tofu)
    groups = group_runs(found)
    figure, axes = panels(2, len(groups))
    for column, (label, group) in enumerate(groups.items()):
        for half, axis in enumerate(axes[:, column]):
            pooled, qualities = {"Retrain": [], label: []}, []
            for run in group:
                forget = run["metrics.log.json"]["forget"]
                retrained = run["reference.log.json"].get("Retrain")
                if not retrained:
                    raise InputError(f"run '{run['folder']}' has no Retrain's log; train it with --retrain")
                mine, theirs = tofu.shared_rows(forget, retrained)
                rows = tofu.halves_of(np.array(forget["length"])[mine])[half]
                pooled["Retrain"].append(tofu.log_ratio(retrained)[theirs][rows])
                pooled[label].append(tofu.log_ratio(forget)[mine][rows])
                qualities.append(tofu.forget_quality(pooled[label][-1], pooled["Retrain"][-1]))
            pooled = {name: np.concatenate(values) for name, values in pooled.items()}
            for name, values in pooled.items():
                colour = colour_of(name)
                axis.hist(values, bins=np.arange(-12, 12.1, 0.1), density=True, alpha=0.2, color=colour)
                if np.ptp(values) > 1e-9:
                    x = np.linspace(values.min() - 0.5, values.max() + 0.5, 200)
                    axis.plot(x, scipy.stats.gaussian_kde(values)(x), color=colour, label=name)
            both = np.concatenate([*pooled.values()])
            axis.set(xlabel="log10 truth ratio", ylabel="density", xlim=(both.min() - 0.5, both.max() + 0.5))
            axis.set_title(f"{(SHORT, LONG)[half]} half: FQ {spread(qualities, '{:.2g}')}", fontsize=9)
            axis.legend(fontsize=7)
    return figure


def draw_mink(found):
    """Fig. A2: Min-K% scores of forget, retain and holdout texts (MUSE); a panel per model, all its runs."""
    benchmark_of(found, "figure mink", muse)
    scores = {}  # {model: [{part: scores}]}
    for name in ("Original", "Retrain"):
        kept = {run["seed"]: run["reference.log.json"].get(name) for run in found}
        scores[name] = [each for each in kept.values() if each and "privleak_forget" in each]
    for label, group in group_runs(found).items():
        scores[label] = [run["metrics.log.json"] for run in group]
    scores = {name: each for name, each in scores.items() if each}
    figure, (axes,) = panels(1, len(scores))
    for axis, (name, each) in zip(axes, scores.items()):
        for part, colour in zip(muse.TEXTS, ("C3", "C2", "black")):
            values = np.concatenate([one[f"privleak_{part}"]["score"] for one in each])
            axis.hist(values, bins=30, density=True, alpha=0.4, color=colour, label=part)
        areas = [muse.reference_of({"forget": {"generated": []}} | one)["auc"] for one in each]
        axis.set_title(f"{name}: AUC {spread(areas, '{:.2f}')}", fontsize=9)
        axis.set(xlabel="Min-40% score (nats)", ylabel="density")
        axis.legend(fontsize=7)
    return figure


def draw_weights(found):
    """Fig. 3a, 5: gradient weight against response length at epochs 1, 2, 3 and 10; a row per run."""
    figure, axes = panels(len(found), 4)
    for row, run in zip(axes, found):
        lines = run["path.jsonl"]
        highest = max(max(line["weight"]) for line in lines)
        for axis, epoch in zip(row, (1, 2, 3, min(10, len(lines) - 1))):
            if epoch >= len(lines):
                axis.set_axis_off()
                continue
            line, title = lines[epoch], "r = 0 (all alike)"
            axis.scatter(line["length"], line["weight"], s=10, alpha=0.6, color=colour_of(run["name"]))
            if correlation(line):
                result = scipy.stats.pearsonr(line["length"], line["weight"])
                low, high = result.confidence_interval() if len(line["length"]) > 3 else (math.nan, math.nan)
                title = f"r = {result.statistic:.2f} [{low:.2f}, {high:.2f}]"
            axis.set_title(f"epoch {line['epoch']}: {title}", fontsize=9)
            axis.set(xlabel="response length |y|", ylim=(0, highest * 1.05 or 1))
        row[0].set_ylabel(f"weight of {run['name']}")
    return figure


def draw_boxes(found):
    """Fig. 3b: the gradient weights of all forget sequences at each epoch, as box plots; a panel per run."""
    figure, axes = panels(1, len(found), width=5)
    for axis, run in zip(axes[0], found):
        epochs = [line["epoch"] for line in run["path.jsonl"]]
        axis.boxplot(
            [line["weight"] for line in run["path.jsonl"]],
            positions=epochs,
            widths=0.6,
            flierprops={"markersize": 2},
            medianprops={"color": colour_of(run["name"])},
        )
        ticks = epochs[:: max(1, len(epochs) // 10)]
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(xlabel="epoch", ylabel="gradient weight", title=run["name"], ylim=(0, None))
    return figure


def draw_path(axis, group, value_of, label, **style):
    """A metric before training and after each epoch of runs with --eval epoch: mean over seeds, 95% band."""
    paths = []
    for run in group:
        before = run["metrics"]["reference"].get("before" if run["start"] else "Original")
        if before is None:
            raise InputError(f"run '{run['folder']}' lacks what it started from in metrics.json; train again")
        paths.append([value_of(metrics) for metrics in (before, *run["epochs.jsonl"])])
    draw(axis, range(min(map(len, paths))), paths, label, color=colour_of(label), **style)


def draw_epochs(found):
    """Fig. 3c, d: what is forgotten and what is kept over epochs, with Original and Retrain as lines."""
    shown = benchmark_of(found).OVER_EPOCHS
    figure, (axes,) = panels(1, len(shown), width=5, height=3.6)
    for axis, (title, value_of) in zip(axes, shown):
        for label, group in group_runs(found).items():
            draw_path(axis, group, value_of, label)
        for name, group in references_of(found).items():
            axis.axhline(np.mean([*map(value_of, group)]), color=colour_of(name), linestyle=":", label=name)
        axis.set(xlabel="epoch (0: before)", title=title)
    axes[-1].legend(fontsize=7)
    return figure


def draw_relearn(found):
    """Fig. A3: what stays forgotten after each epoch of relearning a part of the forget set."""
    figure, ((axis,),) = panels(1, 1, width=5.6, height=4)
    name, value_of = benchmark_of(found).PATH
    for label, group in group_runs(found).items():
        if not all(run["start"] for run in group):
            raise InputError(
                f"run '{group[0]['folder']}' is not one of relearning; make those with --method "
                "finetune --model RUN --eval epoch"
            )
        draw_path(axis, group, value_of, label, linestyle="--" if "random" in label else "-", marker="o")
    axis.set(xlabel="epochs of relearning", ylabel=name, xticks=range(1 + len(found[0]["epochs.jsonl"])))
    axis.legend(fontsize=7)
    return figure


def draw_tradeoff(found):
    """Fig. 4: what is forgotten against what is kept; a small point per run, a large one for the mean."""
    figure, ((axis,),) = panels(1, 1, width=5.6, height=4.2)
    (kept, kept_of), (forgotten, forgotten_of) = benchmark_of(found).KEPT, benchmark_of(found).FORGOTTEN
    for (label, group), marker in zip(metrics_of(found).items(), "os^vD*PX" * len(found)):
        x, y = ([of(metrics) for metrics in group] for of in (kept_of, forgotten_of))
        axis.scatter(x, y, s=14, alpha=0.4, color=colour_of(label))
        axis.scatter(np.mean(x), np.mean(y), s=70, marker=marker, color=colour_of(label), label=label)
    axis.set(xlabel=f"{kept} (more is better)", ylabel=f"{forgotten} (more is better)")
    axis.legend(fontsize=7)
    return figure


# kind: (function, files of a run that it needs besides metrics.json)
FIGURES = {
    "halves": (draw_halves, "metrics.log.json", "reference.log.json"),
    "mink": (draw_mink, "metrics.log.json", "reference.log.json"),
    "weights": (draw_weights, "path.jsonl"),
    "boxes": (draw_boxes, "path.jsonl"),
    "paths": (draw_paths, "path.jsonl", "reference.log.json"),
    "epochs": (draw_epochs, "epochs.jsonl"),
    "tradeoff": (draw_tradeoff,),
    "relearn": (draw_relearn, "epochs.jsonl"),
}

# ------------------------------------------------------------------ the command


def print_table(args):
    print(table(read(args.runs, "reference.log.json"), args.columns))
    if args.columns != "cost":
        print(
            "\nmean ± standard deviation over runs; ↑ more is better, ↓ less is better, →R nearer to "
            "Retrain's is better"
        )


def save_figure(args):
    figure, *files = FIGURES[args.kind]
    out = Path(args.out or f"{args.kind}.png")
    if out.suffix != ".png":
        raise InputError(f"--out: '{out}' is not the name of a .png file")
    if out.exists() and not args.overwrite:
        raise InputError(f"--out: {out} exists; name another file or add --overwrite")
    runs.check_writable(out.parent)
    found = read(args.runs, *files)
    unmeasured = "weights", "boxes", "mink", "paths"
    figure(found if args.kind in unmeasured else with_quality(found)).savefig(out, dpi=110)
    print(f"written: {out}")


def main(argv=None):
    commands = {
        "table": ("a row per method and setting, mean ± standard deviation over seeds", print_table),
        "figure": ("a figure of the paper, drawn from what the runs wrote", save_figure),
        "answers": (
            "what the models answer, and how much each answer repeats itself",
            lambda args: print(answers(read(args.runs, "metrics.log.json", "reference.log.json"), args.show)),
        ),
        "claims": (
            "the paper's claims on NPO, SimNPO and relearning from them, paired by seed",
            lambda args: print(claims_table(with_quality(read(args.runs, "path.jsonl", "epochs.jsonl")))),
        ),
        "paths": (
            "runs of the first method given against the others, at equal forgetting, paired by seed",
            lambda args: print(paths_table(read(args.runs, "path.jsonl", "reference.log.json"))),
        ),
    }
    parser = runs.OneLineParser(prog="compare.py", description=__doc__)
    chosen = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (what, run) in commands.items():
        kinds = "".join(f"\n  {kind:9s} {function.__doc__}" for kind, (function, *_) in FIGURES.items())
        command = chosen.add_parser(name, help=what, description=what + f"\n{kinds}" * (name == "figure"))
        command.set_defaults(run=run)
        add = command.add_argument
        if name == "table":
            add(
                "--columns",
                choices=SHOWN,
                default="main",
                help="all: every metric; cost: time and memory of training (default: %(default)s)",
            )
        if name == "figure":
            add("kind", choices=FIGURES, metavar="KIND", help=", ".join(FIGURES))
            add("--out", help="a .png file (default: KIND.png)")
            add("--overwrite", action="store_true", help="write over what --out names")
        if name == "answers":
            add("--show", type=runs.number(int, 1), default=5, help="questions (default: %(default)s)")
        add("runs", nargs="+", metavar="RUN", help="folder of a run of train.py")
    runs.run_command(parser, argv, lambda args: args.run(args))


if __name__ == "__main__":
    main()
