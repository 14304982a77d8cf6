"""A figure with its interval, and the interval of repeated measurements.

Times, rates and energies are positive and their noise is multiplicative, so everything is done on logarithms: the
centre is the geometric mean and an interval is a factor. Values are those of independent launches of a configuration,
never the steps of one launch, which share its luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy import special, stats

BOOTSTRAP_FROM = 20
"""Number of launches from which on the interval is bootstrapped; below, a bootstrap is too narrow."""


MOST_REPEATS = 1000
"""As many more repeats are looked at when it is asked how many would tell."""


@dataclass(frozen=True)
class Interval:
    """A figure from `n` launches with the interval that contains the true one at `level`.

    Without an interval (None) where nothing can be said about the spread.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    level: float = 0.95

    def times(self, factor: float) -> Self:
        """Return the same figure in another unit: multiplied by a positive `factor`."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high)

    def inverse(self) -> Interval:
        """Return the inverse of a positive figure: the time of a unit of work for a rate."""
        low, high = (None if end is None else 1 / end for end in (self.high, self.low))
        return replace(self, value=1 / self.value, low=low, high=high)

    def excludes(self, neutral: float = 1.0) -> bool:
        """Return whether there is an interval and `neutral` lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= neutral <= self.high


def plain(**values: Any) -> dict[str, Any]:
    """Return values for JSON: plain mappings, lists, numbers and text; what is absent or not finite is None.

    An interval becomes `name`, `name_low` and `name_high`; other dataclasses become mappings of their fields.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        out[name] = _plain(value.value if isinstance(value, Interval) else value)
        if isinstance(value, Interval):
            out |= {f"{name}_low": _plain(value.low), f"{name}_high": _plain(value.high)}
    return out


def _plain(value: Any) -> Any:
    if is_dataclass(value) or isinstance(value, Mapping):
        return plain(**(value if isinstance(value, Mapping) else vars(value)))
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (bool, int, float)) else str(value)


@cache
def t_quantile(degrees: float, level: float) -> float:
    """Return the factor of a two-sided interval of Student's t at `level`."""
    return float(special.stdtrit(degrees, (1 + level) / 2))


def logarithms_of(values: Iterable[float]) -> np.ndarray:
    """Return the logarithms of positive finite numbers. Raises ValueError for none, and for others."""
    array = np.asarray(list(values), dtype=float)
    if array.size == 0 or not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError(f"wanted one or more positive numbers, got {array.tolist()[:5]}")
    logs: np.ndarray = np.log(array)
    return logs


def exponential(value: float) -> float:
    """Return e to a power, within what a float holds: few launches that differ wildly have endless intervals."""
    return math.exp(max(-708.0, min(value, 709.0)))


def geometric_mean(values: Iterable[float], level: float = 0.95, resamples: int = 9999) -> Interval:
    """Return the geometric mean of positive `values` (any unit) and the interval that holds the true one at `level`.

    Below 20 values: Student's t on the logarithms. From 20 on: the BCa bootstrap of the mean of the logarithms
    (Efron, JASA 82, 1987; `scipy.stats.bootstrap`, seeded) at a level widened from a normal to a t quantile (the
    expanded interval of Hesterberg, The American Statistician 69, 2015), without which it covers 93 instead of 95 %
    at n = 20. One value has no interval. Raises ValueError for no values and for values that are not positive and
    finite.
    """
    logs = logarithms_of(values)
    n, centre = len(logs), float(logs.mean())
    if n == 1:
        return Interval(exponential(centre), None, None, n)
    deviation = float(logs.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(logs).max())):  # what rounding leaves of equal figures
        deviation = 0.0
    if n < BOOTSTRAP_FROM or deviation == 0:
        half = t_quantile(n - 1, level) * deviation / math.sqrt(n)
        return Interval(exponential(centre), exponential(centre - half), exponential(centre + half), n)
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
    return Interval(exponential(centre), exponential(found.low), exponential(found.high), n)
