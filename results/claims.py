"""The paper's claims on NPO and SimNPO, and on relearning from them, as differences paired by seed.

    python results/claims.py RUN…

RUN: runs of NPO and SimNPO with --eval epoch, and if any, runs of --method finetune that start from those, on --subset
shortest:… or random:…
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
from common import TOFU, add_seed, check_task, parser_of_runs, verdict

from benchmarks.tofu import log_quality, quality
from compare import epochs, group_runs, read, with_quality
from machinery.command import run_command
from machinery.inputs import InputError
from machinery.statistics import interval

# ------------------------------------------------------------------ numbers of a run


def correlation(picture):
    """Pearson's r between weight and response length over the forget sequences of one of compare.epochs.

    0 where all weights are the same, as NPO's are before its first step, or all lengths.
    """
    weight, length = picture["weight"], picture["length"]
    alike = np.ptp(weight) <= 1e-5 * np.max(np.abs(weight))  # up to float32's rounding
    if alike or np.ptp(length) == 0:
        return 0.0
    return float(scipy.stats.pearsonr(length, weight).statistic)


def after(lines, epoch):
    """The line of an epoch, or of the last epoch if that is earlier."""
    return lines[min(epoch, len(lines)) - 1]


def r(run, epoch):
    """`correlation` in an epoch."""
    return correlation(after(run["path"], epoch))


def early_r(run):
    """Mean size of r in epochs 1 and 2."""
    return (abs(r(run, 1)) + abs(r(run, 2))) / 2


def measured(run, epoch):
    """Metrics after an epoch."""
    return after(run["epochs.jsonl"], epoch)


def gain(better, worse, value_of):
    """Difference in a metric between two runs."""
    return value_of(better["metrics"]) - value_of(worse["metrics"])


def shorter(metrics):
    """Forget quality on the shortest half less that on the longest."""
    return quality(metrics, "shortest") - quality(metrics, "longest")


def utility(metrics):
    return metrics["model_utility"]


def lasting(run):
    """log10 of the forget quality after relearning over that before: 0 is robust, -3 is a thousandth."""
    return log_quality(run["metrics"]) - log_quality(run["metrics"]["reference"]["before"])


# ------------------------------------------------------------------ the claims


class Claim(NamedTuple):
    """What the paper says: that `value` of `runs`, in the mean over seeds, is >, >= or < 0."""

    claim: str
    measured: str
    sign: str
    runs: tuple  # a key per run: (method, part that was relearnt or None)
    value: Callable


NPO, SIMNPO = ("npo", None), ("simnpo", None)
BOTH = SIMNPO, NPO
UNLEARNING = [
    Claim(
        "SimNPO has higher forget quality than NPO",
        "difference of forget quality",
        ">",
        BOTH,
        lambda simnpo, npo: gain(simnpo, npo, quality),
    ),
    Claim(
        "… on the shortest half too",
        "difference of forget quality there",
        ">",
        BOTH,
        lambda simnpo, npo: gain(simnpo, npo, lambda metrics: quality(metrics, "shortest")),
    ),
    Claim(
        "… and most of all there",
        "that difference - the same on the longest half",
        ">",
        BOTH,
        lambda simnpo, npo: gain(simnpo, npo, shorter),
    ),
    Claim(
        "… and comes nearer to Retrain",
        "difference of the distance, NPO - SimNPO",
        ">",
        BOTH,
        lambda simnpo, npo: gain(npo, simnpo, lambda metrics: metrics.get("distance")),
    ),
    Claim(
        "SimNPO's model utility is at least NPO's",
        "difference of model utility",
        ">=",
        BOTH,
        lambda simnpo, npo: gain(simnpo, npo, utility),
    ),
    Claim(
        "NPO is worse on the shortest half than on the longest",
        "NPO's forget quality there - on the longest half",
        "<",
        (NPO,),
        lambda npo: shorter(npo["metrics"]),
    ),
    Claim(
        "NPO loses more utility early",
        "difference of model utility after epoch 2",
        ">",
        BOTH,
        lambda simnpo, npo: utility(measured(simnpo, 2)) - utility(measured(npo, 2)),
    ),
    Claim(
        "NPO forgets less than SimNPO all along",
        "difference of log10 forget quality after epoch 3",
        ">",
        BOTH,
        lambda simnpo, npo: log_quality(measured(simnpo, 3)) - log_quality(measured(npo, 3)),
    ),
    Claim(
        "NPO's answers repeat themselves more",
        "difference of the share of repeated 4-grams, NPO - SimNPO",
        ">",
        BOTH,
        lambda simnpo, npo: gain(npo, simnpo, lambda metrics: metrics["repetition"]),
    ),
    Claim(
        "short responses get SimNPO's largest weights in epochs 1 and 2",
        "-r of weight and length, mean of the two",
        ">",
        (SIMNPO,),
        lambda simnpo: -(r(simnpo, 1) + r(simnpo, 2)) / 2,
    ),
    Claim(
        "… more so than NPO's, in epoch 1",
        "difference of the sizes of r",
        ">",
        BOTH,
        lambda simnpo, npo: abs(r(simnpo, 1)) - abs(r(npo, 1)),
    ),
    Claim(
        "… more so than NPO's, in epoch 2",
        "difference of the sizes of r",
        ">",
        BOTH,
        lambda simnpo, npo: abs(r(simnpo, 2)) - abs(r(npo, 2)),
    ),
    Claim(
        "… and less so later",
        "size of r in epochs 1 and 2 - in epoch 10 (or the last)",
        ">",
        (SIMNPO,),
        lambda simnpo: early_r(simnpo) - abs(r(simnpo, 10)),
    ),
    Claim(
        "… when NPO's depend on it more",
        "difference of the sizes of r in epoch 10",
        "<",
        BOTH,
        lambda simnpo, npo: abs(r(simnpo, 10)) - abs(r(npo, 10)),
    ),
]


def more_lasting(part):
    return Claim(
        f"SimNPO forgets more lastingly ({part}-relearn)",
        "difference of log10(FQ after / FQ before)",
        ">",
        (("simnpo", part), ("npo", part)),
        lambda simnpo, npo: lasting(simnpo) - lasting(npo),
    )


def short_against_random(claim, sign, method):
    return Claim(
        claim,
        "log10 FQ after shortest - after random",
        sign,
        ((method, "shortest"), (method, "random")),
        lambda shortest, random: gain(shortest, random, log_quality),
    )


CLAIMS = [
    *UNLEARNING,
    more_lasting("shortest"),
    more_lasting("random"),
    short_against_random("shortest-relearn is no worse than random-relearn for SimNPO", ">=", "simnpo"),
    short_against_random("… but is worse for NPO", "<", "npo"),
]

# ------------------------------------------------------------------ what the runs say of them


def by_key(runs):
    """{(method, part that was relearnt or None): {seed: run}}. InputError for runs that do not belong together."""
    check_task(runs, "claims", TOFU)
    groups = {}
    for run in runs:
        part = str(run["flags"].get("subset")).split(":")[0] if run["start"] else None
        method = (run["start"] or run["flags"])["method"]
        add_seed(groups.setdefault((method, part), {}), run)
    for group in groups.values():
        labels = [*group_runs([*group.values()])]
        if len(labels) > 1:
            raise InputError(f"these runs are of different settings ({', '.join(labels)}); give those of one")

    # relearning starts from the runs that are given
    for run in runs:
        start = run["start"]
        base = groups.get((start["method"], None), {}).get(run["seed"]) if start else None
        if base and start != base["flags"]:
            raise InputError(
                f"run '{run['folder']}' started from {start['out']}, not from '{base['folder']}'; "
                "give runs that belong together"
            )
    for method, _ in {NPO, SIMNPO} - groups.keys():
        raise InputError(f"the claims are about NPO and SimNPO; give runs of --method {method} too")
    return groups


def values_of(claim, groups):
    """A claim's value for every seed of which all its runs are there."""
    by_seeds = [groups.get(key, {}) for key in claim.runs]
    seeds = sorted(set.intersection(*map(set, by_seeds)))
    try:
        return [claim.value(*(by_seed[seed] for by_seed in by_seeds)) for seed in seeds]
    except (KeyError, TypeError):  # None, of what metrics may lack
        raise InputError(
            f"a run's metrics lack what the claim '{claim.claim}' needs; --eval epoch with --retrain measures it"
        ) from None


def claims_table(runs):
    """Markdown: each claim, what was measured, its mean and interval over seeds, and whether the claim holds.

    runs: read with log.jsonl and epochs.jsonl.
    """
    for run in runs:
        run["path"] = epochs(run["log.jsonl"])
    groups = by_key(runs)
    lines = ["| claim | measured | mean [95% interval] | seeds | verdict |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        values = values_of(claim, groups)
        mean, *bounds = [f"{value:.3g}" for value in interval(values) if value is not None] if values else ["–"]
        shown = f"{mean} [{', '.join(bounds)}]" if bounds else mean
        words = verdict(values, claim.sign)
        lines.append(f"| {claim.claim} | {claim.measured} | {shown} | {len(values)} | {words} |")
    return "\n".join(lines)


def main(argv=None):
    def run(args):
        print(claims_table(with_quality(read(args.runs, "log.jsonl", "epochs.jsonl"))))

    run_command(parser_of_runs("claims.py", __doc__), run, argv=argv)


if __name__ == "__main__":
    main()
