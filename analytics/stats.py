"""Intervals of repeated measurements: what a handful of launches can say, and what it cannot.

Times, rates and energies are positive and their noise is multiplicative, so everything is done on logarithms: the
centre is the geometric mean and an interval is a factor. Values are those of independent launches of a configuration,
never the steps of one launch, which share its luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import stats

BOOTSTRAP_FROM = 20
"""Number of launches from which on the interval is bootstrapped; below, a bootstrap is too narrow."""

SAME = 0.02
"""Two figures whose ratio lies within ± this share of 1, interval and all, are called the same."""
LOSS = 0.05
"""Share of the ideal speed that must be gone, interval and all, before a loss is called visible."""
REACH = 4
"""A law is not to be trusted beyond this many times the largest measured number of devices."""


@dataclass(frozen=True)
class Estimate:
    """A figure from `n` launches, with an interval or, where nothing can be said about its spread, without (None)."""

    value: float
    low: float | None
    high: float | None
    n: int


@cache
def t_quantile(degrees: float, level: float) -> float:
    """Return the factor of a two-sided interval of Student's t at `level`."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


def _logs(values: Iterable[float]) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    if array.size == 0 or not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError(f"wanted one or more positive numbers, got {array.tolist()[:5]}")
    logs: np.ndarray = np.log(array)
    return logs


def geometric_mean(values: Iterable[float], level: float = 0.95, resamples: int = 9999) -> Estimate:
    """Return the geometric mean of positive `values` (any unit) and the interval that holds the true one at `level`.

    Below 20 values: Student's t on the logarithms. From 20 on: the BCa bootstrap of the mean of the logarithms
    (Efron, JASA 82, 1987; `scipy.stats.bootstrap`, seeded) at a level widened from a normal to a t quantile (the
    expanded interval of Hesterberg, The American Statistician 69, 2015), without which it covers 93 instead of 95 %
    at n = 20. One value has no interval. Raises ValueError for no values and for values that are not positive and
    finite.
    """
    logs = _logs(values)
    n, centre = len(logs), float(logs.mean())
    if n == 1:
        return Estimate(math.exp(centre), None, None, n)
    deviation = float(logs.std(ddof=1))
    if n < BOOTSTRAP_FROM or deviation == 0:
        half = t_quantile(n - 1, level) * deviation / math.sqrt(n)
        return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)
    wider = 2 * float(stats.norm.cdf(math.sqrt(n / (n - 1)) * t_quantile(n - 1, level))) - 1
    found = stats.bootstrap(
        (logs,),
        np.mean,
        confidence_level=wider,
        n_resamples=resamples,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(math.exp(centre), math.exp(found.low), math.exp(found.high), n)


Verdict = Literal["less", "more", "same", "cannot tell"]


def verdict(ratio: Estimate) -> Verdict:
    """Say what an interval of a ratio allows to say; without one, nothing."""
    if ratio.low is None or ratio.high is None:
        return "cannot tell"
    if ratio.low >= 1 - SAME and ratio.high <= 1 + SAME:
        return "same"
    return "more" if ratio.low > 1 else "less" if ratio.high < 1 else "cannot tell"


def ratio(pairs: Sequence[tuple[Iterable[float], Iterable[float]]], level: float = 0.95) -> Estimate:
    """Return candidate / baseline, as the geometric mean over `pairs` of (candidate, baseline) launches.

    Each pair holds the launches of two configurations that differ in the compared thing only. The interval is Welch's
    t on the logarithms, the variances of the pairs added (Welch-Satterthwaite degrees of freedom): it holds the noise
    of the launches, not the differences between pairs. Absent unless every side of every pair has two launches. `n`
    is the smallest number of launches on a side. Raises ValueError for no pairs and for values that are not positive.
    """
    if not pairs:
        raise ValueError("wanted one or more pairs")
    sides = [(_logs(candidate), _logs(baseline)) for candidate, baseline in pairs]
    centre = sum(float(a.mean() - b.mean()) for a, b in sides) / len(sides)
    n = min(len(side) for pair in sides for side in pair)
    if n < 2:
        return Estimate(math.exp(centre), None, None, n)
    parts = [(float(x.var(ddof=1)) / len(x) / len(sides) ** 2, len(x) - 1) for pair in sides for x in pair]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(math.exp(centre), math.exp(centre), math.exp(centre), n)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    half = t_quantile(degrees, level) * math.sqrt(variance)
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def pooled(groups: Iterable[Iterable[float]]) -> tuple[float, int]:
    """Return the standard deviation of the logarithms of repeats, pooled over configurations, and its degrees of freedom.

    Groups of one launch tell nothing of noise; without any other it is (0, 0).
    """
    logs = [found for values in groups if len(found := _logs(values)) > 1]
    degrees = sum(len(each) - 1 for each in logs)
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs)
    return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)


def p_value(
    pairs: Sequence[tuple[Iterable[float], Iterable[float]]], noise: tuple[float, int], times: float = 1.0
) -> float:
    """Return the two-sided p-value of `ratio(pairs)` × `times` being 1, by t with the `noise` of `pooled`.

    A side that is noisier than the pooled noise counts with its own. A handful of launches knows its noise badly by itself;
    that of all configurations of an execution tells far more, as in an analysis of variance. 1 where no noise is known.
    """
    deviation, degrees = noise
    if degrees == 0:
        return 1.0
    sides = [(_logs(candidate), _logs(baseline)) for candidate, baseline in pairs]
    centre = math.log(times) + sum(float(a.mean() - b.mean()) for a, b in sides) / len(sides)
    own = [max(deviation, float(x.std(ddof=1)) if len(x) > 1 else 0.0) ** 2 / len(x) for pair in sides for x in pair]
    error = math.sqrt(sum(own)) / len(sides)
    if error == 0:
        return float(centre == 0)
    return float(2 * stats.t.sf(abs(centre) / error, degrees))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Say which hypotheses are rejected, so that any is falsely in `alpha` of cases at most.

    Holm (Scandinavian Journal of Statistics 6, 1979).
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
