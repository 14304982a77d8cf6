"""Comparisons of repeated measurements: differences, equivalence, their p-values, and how many repeats would decide.

Values are those of independent launches of a configuration, on logarithms where they are positive (`analytics.interval`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from analytics.interval import (
    BOOTSTRAP_FROM,
    MOST_REPEATS,
    Interval,
    exponential,
    geometric_mean,
    logarithms_of,
    t_quantile,
)

POWER = 0.8
"""Chance of telling that such a number of repeats has, if differences and noise are as they were observed."""

SAME = 0.02
"""Two figures whose ratio lies within ± this share of 1, interval and all, are called the same."""
LOSS = 0.05
"""Share of the ideal speed that must be gone, interval and all, before a loss is called visible."""
REACH = 4
"""A law is not to be trusted beyond this many times the largest measured number of devices."""


Verdict = Literal["less", "more", "same", "cannot tell"]


def verdict(
    found: Interval,
    p_value: float = 0.0,
    region: tuple[float, float] = (1 - SAME, 1 + SAME),
    neutral: float = 1.0,
    p_same: float = 0.0,
) -> Verdict:
    """Say what the interval of a ratio, or of another figure with its `neutral` value, allows to say; without one, nothing.

    `same` is an interval within `region` (two one-sided tests, Schuirmann 1987) and a `p_same` of 5 % at most. `less` and
    `more` take an interval that leaves out `neutral` and a `p_value` of 5 % at most. Both are adjusted where there are many.
    """
    if found.low is None or found.high is None:
        return "cannot tell"
    if found.low >= region[0] and found.high <= region[1] and p_same <= 0.05:
        return "same"
    if p_value > 0.05:
        return "cannot tell"
    return "more" if found.low > neutral else "less" if found.high < neutral else "cannot tell"


def welch(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return standard error and degrees of freedom (Welch-Satterthwaite) of a sum of means: (variance, degrees) of each."""
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / free for part, free in parts)
    return math.sqrt(variance), variance**2 / spread if spread else math.inf


def ratio(pairs: Sequence[tuple[Iterable[float], Iterable[float]]], level: float = 0.95) -> Interval:
    """Return candidate / baseline, as the geometric mean over `pairs` of (candidate, baseline) launches.

    Each pair holds the launches of two configurations that differ in the compared thing only. The interval is Welch's
    t on the logarithms, the variances of the pairs added (Welch-Satterthwaite degrees of freedom): it holds the noise
    of the launches, not the differences between pairs. Absent unless every side of every pair has two launches. `n`
    is the smallest number of launches on a side. Raises ValueError for no pairs and for values that are not positive.
    """
    if not pairs:
        raise ValueError("wanted one or more pairs")
    parts = [contrast([*candidate], [*baseline], paired=False) for candidate, baseline in pairs]
    centre = math.fsum(math.log(part.found.value) for part in parts) / len(parts)
    n = min(part.found.n for part in parts)
    if n < 2:
        return Interval(exponential(centre), None, None, n)
    error, degrees = welch([(((part.error or 0.0) / len(parts)) ** 2, part.degrees or math.inf) for part in parts])
    half = t_quantile(degrees, level) * error if error else 0.0
    return Interval(exponential(centre), exponential(centre - half), exponential(centre + half), n)


@dataclass(frozen=True)
class Contrast:
    """A candidate against a baseline: candidate / baseline, or the difference of what has no logarithm.

    `found` has the 95 % interval. `p_value` (two-sided, of no difference) and `probability_more` (that the candidate's true
    figure is the larger one, nothing being known before) are Student's, by the standard `error` and its `degrees` of
    freedom. `spread` holds standard deviations of one launch: the candidate's and the baseline's, or one of the differences
    of pairs. Errors and spread are of logarithms where there are some. All are absent without two launches on a side, or
    two pairs.
    """

    found: Interval
    p_value: float | None = None
    probability_more: float | None = None
    spread: tuple[float, ...] = ()
    error: float | None = None
    degrees: float | None = None


def contrast(
    candidate: Sequence[float], baseline: Sequence[float], *, paired: bool, logarithms: bool = True
) -> Contrast:
    """Compare launches of two configurations; `paired`: the launches of equal position ran side by side.

    Pairs: Student's t of the differences, from 20 on as `geometric_mean`; otherwise Welch's. Raises ValueError for no
    values, for pairs of unequal number, and for values that are not positive where logarithms are taken.
    """
    candidate, baseline = [float(x) for x in candidate], [float(x) for x in baseline]
    if not candidate or not baseline or (paired and len(candidate) != len(baseline)):
        counts = f"{len(candidate)} and {len(baseline)}"
        raise ValueError(f"wanted launches on both sides, and as many where they are pairs; got {counts}")
    unit = 1.0 if logarithms else max(map(abs, (*candidate, *baseline))) or 1.0  # huge figures have huge squares
    a, b = ([math.log(x) if logarithms and x > 0 else x / unit for x in side] for side in (candidate, baseline))
    if logarithms and min(*candidate, *baseline) <= 0:
        raise ValueError("wanted positive numbers on both sides")
    back = exponential if logarithms else lambda value: value * unit
    sides = [[x - y for x, y in zip(a, b, strict=True)]] if paired else [a, b]
    n, centre = min(map(len, sides)), math.fsum(a) / len(a) - math.fsum(b) / len(b)
    if n < 2:
        return Contrast(Interval(back(centre), None, None, n))
    digits = 1e-12 * max(1.0, *map(abs, (*a, *b)))  # what rounding leaves of equal figures
    deviations = [s if (s := _deviation(x)) > digits else 0.0 for x in sides]
    error, degrees = welch([(s**2 / len(x), len(x) - 1) for s, x in zip(deviations, sides, strict=True)])
    spread = tuple(s * unit for s in deviations)
    if error == 0:
        more = 0.5 if abs(centre) <= digits else float(centre > 0)
        return Contrast(Interval(back(centre), back(centre), back(centre), n), float(more == 0.5), more, spread, 0.0)
    half = t_quantile(degrees, 0.95) * error
    found = Interval(back(centre), back(centre - half), back(centre + half), n)
    if paired and logarithms and n >= BOOTSTRAP_FROM:
        found = geometric_mean(np.exp(np.clip(sides[0], -700, 700)))
    p_value = float(2 * special.stdtr(degrees, -abs(centre) / error))
    more = float(special.stdtr(degrees, centre / error))
    return Contrast(found, p_value, more, spread, error * unit, degrees)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


def p_beyond(distance: float, error: float, degrees: float) -> float:
    """Return the p-value of a figure found `distance` beyond a limit, if the true one is not beyond it.

    Twice the one-sided p of Student's t, so that 5 % is where the limit leaves the 95 % interval.
    """
    if error == 0:
        return float(distance < 0)
    return min(1.0, 2 * float(special.stdtr(degrees, -distance / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in their order, by the step-down method of Holm (1979).

    To call those of 5 % at most a difference is wrong about any of them in 5 % at most, however they depend on each other.
    """
    out, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = largest
    return out


def more_repeats(
    spread: Sequence[float], n: int, centre: float, region: tuple[float, float] | None = None, tests: int = 1
) -> int | None:
    """Say how many launches of each side more than `n` would tell with a chance of 80 %, if all goes on as observed.

    `spread` is that of a Contrast. On its scale are `centre`, the distance from what is asked about (0: no difference), and
    `region`, the bounds of what is called the same. Either will do: a difference, by the noncentral t at 5 % / `tests`; or
    an interval within the region, by two one-sided tests at 2.5 % / `tests`. `MOST_REPEATS` + 1 stands for more than that;
    None where the spread is not known.
    """
    if not any(spread):
        return None
    unit = max(spread)
    variances = np.square(np.divide(spread, unit))
    centre /= unit
    low, high = (math.nan, math.nan) if region is None else (region[0] / unit, region[1] / unit)
    counts = n + np.arange(1, MOST_REPEATS + 1)
    error = np.sqrt(variances.sum() / counts)
    degrees = (counts - 1) * variances.sum() ** 2 / (variances**2).sum()
    quantile = special.stdtrit(degrees, 1 - 0.025 / tests)
    told = 1 - special.nctdtr(degrees, abs(centre) / error, quantile)
    above, below = (high - centre) / error - quantile, (centre - low) / error - quantile
    told = np.fmax(told, special.stdtr(degrees, above) + special.stdtr(degrees, below) - 1)
    enough = np.flatnonzero(told >= POWER)
    return int(enough[0]) + 1 if enough.size else MOST_REPEATS + 1


def pooled(groups: Iterable[Iterable[float]]) -> tuple[float, int]:
    """Return the standard deviation of the logarithms of repeats, pooled over configurations, and its degrees of freedom.

    Groups of one launch tell nothing of noise; without any other it is (0, 0).
    """
    logs = [found for values in groups if len(found := logarithms_of(values)) > 1]
    degrees = sum(len(each) - 1 for each in logs)
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in logs)
    return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)
