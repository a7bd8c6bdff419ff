"""Compare runs of train.py, from the small files in their folders: a table, answers side by side, two figures.

    python compare.py table RUN…                 a row per method and setting, mean ± standard deviation over seeds
    python compare.py answers RUN…               what the models answer, and how much each answer repeats itself
    python compare.py figure tradeoff RUN…       what is forgotten against what is kept
    python compare.py figure epochs RUN…         both over epochs, of runs with --eval epoch

No model is loaded. Folders that are no runs are passed over; runs of different tasks, splits or models are refused.
Runs of one method are averaged when only their seeds differ; else the flags that differ name them. The paper's other
figures, and its claims, are made by scripts in results/.
"""

import itertools
import textwrap
from pathlib import Path

import numpy as np

from benchmarks import BENCHMARKS
from benchmarks.protocol import Column, known
from benchmarks.tofu import repetition
from machinery.command import OneLineParser, number, run_command
from machinery.folder import lineage, read_runs
from machinery.inputs import InputError, check_writable, note, read_json
from machinery.statistics import bands, spread

# ------------------------------------------------------------------ runs, and groups of runs

# Flags that do not make runs two settings: they name models and data, or change speed and what is measured.
IMMATERIAL = {
    "seed",
    "out",
    "retrain",
    "model",
    "family",
    "data",
    "eval",
    "device",
    "eval_batch_size",
    "micro_batch_size",
    "grad_checkpointing",
    "tokenizer",
    "holdout_file",
    "probe_file",
}


def read(folders, *files):
    """Runs, as `folder.read_runs` gives them, with what each is called and stands for.

    flags: its own; start: those of the run that it relearns from, or None; seed: (Original's, that of the run which
    unlearnt), the same twice where Original is no run; name: `SimNPO`, or `SimNPO → fine-tuning shortest:0.2`; colour:
    of the method that unlearnt; setting: {flag: value}, all that matters; metrics: what metrics.json holds.
    """
    runs = read_runs(folders, *files)
    for run in runs:
        content = run["run.json"]
        flags = content["flags"]
        original, start, start_method = lineage(content)
        methods = [start_method, content["method"]] if start else [content["method"]]
        name = " → ".join(method["name"] for method in methods)
        own = (start or flags)["seed"]
        run |= {
            "flags": flags,
            "start": start,
            "seed": (original["seed"] if original else own, own),
            "name": " ".join(filter(None, [name, flags.get("subset")])),
            "colour": methods[0]["colour"],
            "setting": setting_of(flags) | setting_of(start, "start_") | setting_of(original, "original_"),
            "metrics": run["metrics.json"],
        }
    if isinstance(runs[0]["flags"].get("data"), dict) and len({run["setting"].get("retain_file") for run in runs}) > 1:
        note("these runs have different retain files: what is measured on the retain set is not of the same rows")
    return runs


def setting_of(flags, prefix=""):
    """{flag: value} of flags that matter, with the user's files by their whole paths; {} for None."""
    flags = flags or {}
    files = flags["data"] if isinstance(flags.get("data"), dict) else {}
    flags = flags | {f"{name}_file": path for name, path in files.items() if name != "fields"}
    return {f"{prefix}{flag}": value for flag, value in flags.items() if flag not in IMMATERIAL}


def benchmark_of(runs):
    """The benchmark that the runs are of. InputError if there is none."""
    task = runs[0]["flags"]["task"]
    if task not in BENCHMARKS:
        raise InputError(f"a run is of task {task[:20]}, which benchmarks/ lacks; add it there")
    return BENCHMARKS[task]


def with_quality(runs):
    """The runs. InputError unless it is known of each how well it forgot and kept, at each measured epoch."""
    benchmark = benchmark_of(runs)
    for column, run in itertools.product((benchmark.forgotten, benchmark.kept), runs):
        if None in map(column.value, [run["metrics"], *run.get("epochs.jsonl", [])]):
            raise InputError(f"run '{run['folder']}' has no {column.name}; it needs --retrain and a retain set")
    return runs


def group_runs(runs):
    """{label: runs}: the name, and the flags in which the settings of runs of that name differ."""
    groups = {}
    for run in runs:
        settings = [other["setting"] for other in runs if other["name"] == run["name"]]
        flags = dict.fromkeys(itertools.chain(*settings))
        values = [label_of(flag, run["setting"], settings) for flag in flags if differs(flag, settings)]
        groups.setdefault(" ".join([run["name"], *values]), []).append(run)
    return groups


def label_of(flag, setting, settings):
    """`flag=value` of a setting; a file goes by its name, unless another one of `settings` has that name."""
    value = setting.get(flag)
    if flag.endswith("_file") and value:
        paths = {other[flag] for other in settings if other.get(flag)}
        value = Path(value).name if len({Path(path).name for path in paths}) == len(paths) else value
    return f"{flag.replace('_', '-')}={value}"


def differs(flag, settings):
    """Whether a flag has two values in settings; one without it has None. Of an Original's flags those tell runs apart
    that have one, and `original_method` these from the others."""
    if flag.startswith("original_") and flag != "original_method":
        settings = [setting for setting in settings if "original_method" in setting]
    return any(setting.get(flag) != settings[0].get(flag) for setting in settings)


def compared_key(run):
    """What tells the models that a run was compared with from another run's: Original's seed, Retrain, retain rows."""
    return run["seed"][0], str(run["flags"].get("retrain")), str(run["setting"].get("retain_file"))


def compared_models(runs):
    """{"Original": [metrics, …], "Retrain": […]}: what the runs were compared with, once per seed; of Originals that
    were taught otherwise, each."""
    by_name, settings = {}, [run["setting"] for run in runs]
    flags = dict.fromkeys(itertools.chain(*settings))
    taught = [flag for flag in flags if flag.startswith("original_") and differs(flag, settings)]
    for run in runs:
        for name, metrics in run["metrics"]["reference"].items():
            if name != "before":  # the run that was started from, which has a folder of its own
                key = *compared_key(run), *(str(run["setting"].get(flag)) for flag in taught if name == "Original")
                by_name.setdefault(name, {})[key] = metrics
    return {name: list(models.values()) for name, models in by_name.items()}


def floor_of(runs):
    """{"Retrain of another seed": [metrics, …]}: each seed's Retrain compared with the next seed's, which is as near
    as perfect unlearning comes. Empty unless seeds have a Retrain each, and the benchmark compares them."""
    floor = benchmark_of(runs).floor
    models = {}
    for run in runs:
        metrics = run["metrics"]["reference"].get("Retrain")
        log = run["reference.log.json"].get("Retrain")
        if metrics and log:
            models.setdefault(run["seed"][0], (metrics, log))  # of two that were taught otherwise the first
    retrained = [models[seed] for seed in sorted(models)]
    pairs = itertools.pairwise(retrained) if floor else ()
    rows = [floor(metrics, log, other) for (metrics, log), (_, other) in pairs]
    rows = [row for row in rows if row]
    return {"Retrain of another seed": rows} if rows else {}


def models_of(runs):
    """{label: [metrics, …]}: the models compared with, then the runs' own."""
    own = {label: [run["metrics"] for run in group] for label, group in group_runs(runs).items()}
    return compared_models(runs) | own


# ------------------------------------------------------------------ tables

COST = (
    Column("training s", lambda metrics: metrics.get("train_seconds"), ".1f", "↓"),
    Column("peak memory GB", lambda metrics: (metrics.get("peak_memory_bytes") or 0) / 1e9 or None, ".2f", "↓"),
)
SHOWN = "main", "all", "cost"


def cells(column, models, unlearnt):
    """Of a table's column, {label: mean ± standard deviation}, the best of the labels `unlearnt` in bold.

    – where it is not known of one of them.
    """
    values = {label: [column.value(metrics) for metrics in group] for label, group in models.items()}
    texts = {label: "–" if None in group else spread(group, column.form) for label, group in values.items()}
    means = {label: np.mean(values[label]) for label in unlearnt if None not in values[label]}
    if column.bold and len(means) > 1:
        best = min(means.values()) if column.better == "↓" else max(means.values())
        texts |= {label: f"**{texts[label]}**" for label, mean in means.items() if mean == best}
    return texts


def table(runs, shown="main"):
    """As the paper's Tables 2, A1 and A2: a row per method, mean ± standard deviation; shown: of SHOWN."""
    # a row per model, those that unlearnt last
    groups = group_runs(runs)
    models = models_of(runs)
    if shown != "cost":
        others = {label: models.pop(label) for label in ("Original", "Retrain") if label in models}
        models = others | floor_of(runs) | models

    columns = benchmark_of(runs).columns
    columns = {"main": [column for column in columns if column.main], "all": [*columns, *COST], "cost": COST}[shown]
    columns = known(columns, [*itertools.chain(*models.values())])
    texts = [cells(column, models, groups) for column in columns]

    rows = [["method", "runs", *(column.title for column in columns)], ["---"] * (2 + len(columns))]
    rows += [[label, str(len(group)), *(column[label] for column in texts)] for label, group in models.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ------------------------------------------------------------------ answers


def answers_of(runs):
    """{label: the answers to the forget questions, of each of its runs}, the truth and the models compared with first.

    InputError for runs that generated none, and for runs of different questions.
    """
    for run in runs:
        if "generated" not in run["metrics.log.json"].get("forget", {}):
            raise InputError(
                f"run '{run['folder']}' has no generated answers in its metrics.log.json; give runs of train.py "
                "--eval end on a benchmark whose questions are answered in words"
            )
    forget, *others = [run["metrics.log.json"]["forget"] for run in runs]
    if not all(same_questions(forget, other) for other in others):
        raise InputError("these runs answer different questions; give runs of one split")

    texts = {"truth": [forget["answer"]]}
    for name, log in runs[0]["reference.log.json"].items():
        if "generated" in log and same_questions(forget, log):
            texts[name] = [log["generated"]]
        elif "generated" in log:
            note(f"{name} was asked other questions, or in another order: it is left out")
    for label, group in group_runs(runs).items():
        texts[label] = [run["metrics.log.json"]["forget"]["generated"] for run in group]
    return texts


def same_questions(forget, other):
    """Whether two forget parts of logs are of the same rows in one order, as far as the other one tells its rows."""
    told = [field for field in ("question", "answer") if field in other]
    return len(forget["answer"]) == len(other["generated"]) and all(forget[field] == other[field] for field in told)


def answers(runs, count):
    """Answers to `count` forget questions, from short to long truths, and how repetitive each method is.

    A method with several runs answers by its first; the share at the end is the mean over all of them, but of Original
    and Retrain over the first run's.
    """
    texts = answers_of(runs)
    forget = runs[0]["metrics.log.json"]["forget"]
    width = max(map(len, texts))

    # a block per question
    order = np.argsort(forget["length"], kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)
    lines = []
    for row in order[places]:
        lines.append(f"\n{'Q':>{width}s}        {forget['question'][row]}")
        for label, (first, *_) in texts.items():
            text = textwrap.fill(first[row] or "(nothing)", 100, subsequent_indent=" " * (width + 8))
            lines.append(f"{label:>{width}s}  {repetition(first[row]):4.2f}  {text}")

    lines += ["", "beside each answer: its share of repeated 4-grams. Mean over all forget answers and runs:"]
    for label, of_runs in texts.items():
        shares = [np.mean([repetition(text) for text in of_run]) for of_run in of_runs]
        lines.append(f"{label:>{width}s}  {spread(shares)}")
    return "\n".join(lines)


# ------------------------------------------------------------------ figures


def panels(rows, columns, width=3.4, height=2.7):
    """(figure, axes [rows, columns])"""
    import matplotlib.figure

    figure = matplotlib.figure.Figure((width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def colours_of(runs):
    """{label: colour}: one colour for a method in every figure."""
    return {"Original": "black", "Retrain": "grey"} | {
        label: group[0]["colour"] for label, group in group_runs(runs).items()
    }


def draw_curve(axis, x, curves, label, **style):
    """Mean of curves over seeds, with a 95% band if there are two or more; a gap where one has None."""
    mean, low, high = bands(curves)
    axis.plot(x, mean, label=label, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def draw_path(axis, group, value_of, label, **style):
    """A metric before training and after each epoch of runs with --eval epoch: mean over seeds, 95% band."""
    curves = []
    for run in group:
        before = run["metrics"]["reference"].get("before" if run["start"] else "Original")
        if before is None:
            raise InputError(f"run '{run['folder']}' lacks what it started from in metrics.json; train again")
        curves.append([value_of(metrics) for metrics in [before, *run["epochs.jsonl"]]])
    epochs = range(min(map(len, curves)))
    draw_curve(axis, epochs, [curve[: len(epochs)] for curve in curves], label, color=group[0]["colour"], **style)


def draw_epochs(runs):
    """Fig. 3c, d: what is forgotten and what is kept over epochs, with Original and Retrain as lines."""
    columns = benchmark_of(runs).over_epochs
    colours = colours_of(runs)
    figure, (axes,) = panels(1, len(columns), width=5, height=3.6)
    for axis, column in zip(axes, columns, strict=True):
        for label, group in group_runs(runs).items():
            draw_path(axis, group, column.value, label)
        for name, group in compared_models(runs).items():
            level = np.mean([column.value(metrics) for metrics in group])
            axis.axhline(level, color=colours[name], linestyle=":", label=name)
        axis.set(xlabel="epoch (0: before)", title=column.name)
    axes[-1].legend(fontsize=7)
    return figure


def draw_tradeoff(runs):
    """Fig. 4: what is forgotten against what is kept; a small point per run, a large one for the mean."""
    kept, forgotten = benchmark_of(runs).kept, benchmark_of(runs).forgotten
    colours = colours_of(runs)
    figure, ((axis,),) = panels(1, 1, width=5.6, height=4.2)
    for (label, group), marker in zip(models_of(runs).items(), itertools.cycle("os^vD*PX"), strict=False):
        x = [kept.value(metrics) for metrics in group]
        y = [forgotten.value(metrics) for metrics in group]
        axis.scatter(x, y, s=14, alpha=0.4, color=colours[label])
        axis.scatter(np.mean(x), np.mean(y), s=70, marker=marker, color=colours[label], label=label)
    axis.set(xlabel=f"{kept.name} (more is better)", ylabel=f"{forgotten.name} (more is better)")
    axis.legend(fontsize=7)
    return figure


# kind: (function, files of a run that it needs besides metrics.json)
FIGURES = {"epochs": (draw_epochs, "epochs.jsonl"), "tradeoff": (draw_tradeoff,)}

# ------------------------------------------------------------------ one run


def epochs(lines):
    """What each epoch met, from the lines of log.jsonl: [{"epoch", "row", "weight", "length", "logp", "retain"}, …].

    row, weight, length and logp hold a value per forget sequence, in the order of its rows; logp is missing where a
    method has none. retain is the mean of the steps' retain losses, each counting as its forget sequences do (which is
    that of the retain examples met, if those were as many); 0 without a retain loss.
    """
    pictures = []
    for epoch, group in itertools.groupby(lines, key=lambda line: line["epoch"]):
        steps = list(group)
        sizes = [len(step["met"]["row"]) for step in steps]
        retain = np.average([step["retain"] for step in steps], weights=sizes)
        met = {name: list(itertools.chain(*(step["met"][name] for step in steps))) for name in steps[0]["met"]}
        order = np.argsort(met["row"], kind="stable")
        picture = {name: [values[i] for i in order] for name, values in met.items()}
        pictures.append({"epoch": epoch, "retain": float(retain)} | picture)
    return pictures


def draw_run(folder, values, label):
    """run.png of a run's folder: loss over steps, weight against length in the first and the last epoch, and how
    `values`, {name: list}, are spread."""
    import matplotlib.figure

    steps = read_json(Path(folder, "log.jsonl")) if Path(folder, "log.jsonl").exists() else []  # none with --finetuned
    figure = matplotlib.figure.Figure((13, 3.6), layout="tight")
    left, middle, right = figure.subplots(1, 3)

    for part in ("forget", "retain"):
        left.plot([line["step"] for line in steps], [line[part] for line in steps], label=f"{part} loss")
    left.set(xlabel="step", title="loss")

    pictures = epochs(steps)
    for picture in pictures[:: max(1, len(pictures) - 1)]:
        middle.scatter(picture["length"], picture["weight"], s=12, alpha=0.7, label=f"epoch {picture['epoch']}")
    middle.set(xlabel="response length |y|", title="gradient weight of each forget sequence")

    for name, column in values.items():
        right.ecdf(column, label=name)
    right.set(xlabel=label, title="share of forget examples below")

    for axis in (left, middle, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)

    # as a whole or not at all: with run.png a run is finished
    temporary = Path(folder, "run.png.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(Path(folder, "run.png"))


# ------------------------------------------------------------------ the command


def check_picture(out, overwrite=False):
    """`out`, the name of a picture to make, as a Path. InputError if it is no .png, is there, or cannot be made."""
    out = Path(out)
    if out.suffix != ".png":
        raise InputError(f"--out: '{out}' is not the name of a .png file")
    if out.exists() and not overwrite:
        raise InputError(f"--out: {out} exists; name another file or add --overwrite")
    check_writable(out.parent)
    return out


def print_table(args):
    print(table(read(args.runs, "reference.log.json"), args.columns))
    if args.columns != "cost":
        print(
            "\nmean ± standard deviation over runs; ↑ more is better, ↓ less is better, →R nearer to "
            "Retrain's is better"
        )


def print_answers(args):
    print(answers(read(args.runs, "metrics.log.json", "reference.log.json"), args.show))


def save_figure(args):
    draw, *files = FIGURES[args.kind]
    out = check_picture(args.out or f"{args.kind}.png", args.overwrite)
    draw(with_quality(read(args.runs, *files))).savefig(out, dpi=110)
    print(f"written: {out}")


def add_picture_flags(command, name="KIND.png"):
    """--out and --overwrite, as `check_picture` takes them. name: the default, for the help."""
    command.add_argument("--out", help=f"a .png file (default: {name})")
    command.add_argument("--overwrite", action="store_true", help="write over what --out names")


def build_parser():
    parser = OneLineParser(prog="compare.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name, run, about, more=""):
        command = commands.add_parser(name, help=about, description=about + more)
        command.set_defaults(run=run)
        return command

    rows = add_command("table", print_table, "a row per method and setting, mean ± standard deviation over seeds")
    rows.add_argument(
        "--columns",
        choices=SHOWN,
        default="main",
        help="all: every metric; cost: time and memory of training (default: %(default)s)",
    )

    texts = add_command("answers", print_answers, "what the models answer, and how much each answer repeats itself")
    texts.add_argument("--show", type=number(int, 1), default=5, help="questions (default: %(default)s)")

    kinds = "".join(f"\n  {kind:9s} {draw.__doc__}" for kind, (draw, *_) in FIGURES.items())
    figure = add_command("figure", save_figure, "a figure, drawn from what the runs wrote", more=f"\n{kinds}")
    figure.add_argument("kind", choices=FIGURES, metavar="KIND", help=", ".join(FIGURES))
    add_picture_flags(figure)

    for command in (rows, texts, figure):
        command.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of train.py")
    return parser


def main(argv=None):
    run_command(build_parser(), lambda args: args.run(args), argv=argv)


if __name__ == "__main__":
    main()
