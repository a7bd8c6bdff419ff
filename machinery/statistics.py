"""Means with their spread, bootstrap intervals, AUC, and where a path crosses a level. numpy and scipy only."""

import numpy as np
import scipy  # which loads its parts when they are first used


def spread(values, form=".3f"):
    """`mean ± standard deviation` (n - 1) as text, or the value alone where there is one."""
    mean = format(np.mean(values), form)
    mean = mean.lstrip("-") if float(mean) == 0 else mean  # log10 of a p-value of 1 may be -0
    if len(values) < 2:
        return mean
    return f"{mean} ± {format(np.std(values, ddof=1), form)}"


def interval(values):
    """(mean, lower, upper): 95% t interval; the bounds are None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return mean, mean - half, mean + half


def difference(values, others):
    """(mean, lower, upper) of the mean of `values` less that of `others`, which are of other rows: Welch's 95% t
    interval; the bounds are None where either has fewer than two values."""
    mean = float(np.mean(values) - np.mean(others))
    if min(len(values), len(others)) < 2:
        return mean, None, None
    if np.ptp(values) == np.ptp(others) == 0:
        return mean, mean, mean
    low, high = scipy.stats.ttest_ind(values, others, equal_var=False).confidence_interval()
    return mean, float(low), float(high)


def bootstrap(statistic, *samples):
    """[low, high]: 95% percentile bootstrap interval of statistic(*samples, axis=…), each sample drawn anew by itself.

    The same draws at every call. [None, None] where a sample has fewer than two values, which tell of no spread.
    """
    if min(map(len, samples)) < 2:
        return [None, None]
    # random_state: scipy before 1.15 does not call it rng
    drawn = scipy.stats.bootstrap(samples, statistic, n_resamples=2000, method="percentile", random_state=0)
    return [*map(float, drawn.confidence_interval)]


def auc(first, second, axis=-1):
    """P(a value of `first` > one of `second`), ties counting half, in [0, 1], from ranks along an axis."""
    n, m = np.shape(first)[axis], np.shape(second)[axis]
    ranks = scipy.stats.rankdata(np.concatenate([first, second], axis), axis=axis)
    total = np.take(ranks, range(n), axis).sum(axis)
    return (total - n * (n + 1) / 2) / (n * m)


def bands(curves):
    """(mean, lower, upper) of curves at each place, [3, N]: 95% t intervals; NaN where a curve has None."""
    gap = None, None, None
    intervals = [gap if None in values else interval(values) for values in zip(*curves, strict=True)]
    return np.array(intervals, dtype=float).T


def crossing(reached, level, values):
    """What `values` is when `reached`, a list as long, first comes to `level`, interpolated; None if it never does.

    The first value where `reached` begins at the level.
    """
    i = next((i for i, value in enumerate(reached) if value >= level), None)
    if not i:
        return None if i is None else values[0]
    share = (level - reached[i - 1]) / (reached[i] - reached[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])
