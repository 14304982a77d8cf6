"""What an advice is, and its words: factors of time, energy and memory as a newcomer says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analytics.matched import Change
from analytics.stats import Estimate

EVERYWHERE = "this machine, these workloads and batches; steady time, without starting up; intervals of 95 %"
"""Limits of every advice."""
SOUND = 3
"""Repeats of each side from which on an advice may be an imperative."""


@dataclass(frozen=True)
class Evidence:
    """What an advice rests on: `ratio` of a measure of `matched.MEASURES` with its interval (95 %).

    Of another `measure` it is the median share or figure, `low` and `high` the least and the largest of the runs.

    `runs` counts runs, `n` the repeats of the side that has fewest; `configurations` are names of what was looked at.
    """

    runs: int
    configurations: tuple[str, ...]
    measure: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Advice:
    """A sentence to act on. `action` is what to set in a suite, empty where a suite can do nothing.

    `saving` is the share of time (for a smaller number of devices: of device-hours) that it saves at best; None where
    nothing is known to be saved. `limits` hold beside EVERYWHERE. `first`: it must be mended before others are believed.
    `weak`: a guess from evidence that is no ground to act on (`thin`), without action and saving, told after all others.
    """

    topic: str
    sentence: str
    evidence: Evidence
    action: str = ""
    saving: float | None = None
    limits: tuple[str, ...] = ()
    first: bool = False
    weak: bool = False


@dataclass(frozen=True)
class Case:
    """What rules look at: `df` all runs of one execution, `ok` those that ended well, `table` their configurations.

    `table` has a row a configuration: IDENTITY, what was asked, host, device and the short `name`. `changes` are the matched
    comparisons among runs that nothing from outside has slowed down, `told` those measures of them that differ from 1 after
    all comparisons are counted.
    """

    df: pd.DataFrame
    ok: pd.DataFrame
    table: pd.DataFrame
    changes: tuple[Change, ...]
    told: frozenset[tuple[Change, str]]

    def names(self, config_ids: Sequence[str] | pd.Series) -> tuple[str, ...]:
        """Return the short names of some configurations."""
        return tuple(self.table[self.table["config_id"].isin(list(config_ids))]["name"])


def flagged(df: pd.DataFrame, *flags: str) -> pd.Series:
    """Return for each run whether it has one of some flags."""
    return df["flags"].fillna("").map(lambda text: not {*text.split()}.isdisjoint(flags)).astype(bool)


def thin(runs: pd.DataFrame, repeats: int) -> str:
    """Say why runs are no ground to act on: few repeats, or most of them unsteady; nothing where they are sound."""
    runs = runs[~runs.index.duplicated()]
    busy = 2 * int(flagged(runs, "noisy_host", "not_steady").sum()) > len(runs)
    if repeats >= SOUND and not busy:
        return ""
    made = f"{repeats} repeat{'s' * (repeats != 1)}" + (" on a busy or unsteady machine" if busy else "")
    return f"{made}: run it again before acting on it"


def digits(value: float, count: int = 2) -> str:
    """Write a number with so many digits, and none of an exponent: 1.2, 24, 140."""
    return f"{value:.{count}g}" if abs(value) < 10**count - 0.5 else f"{value:,.0f}"


def amount(ratio: Estimate, noun: str, mark: str = "") -> str:
    """Say what a ratio means: `24 % less time (20 to 28 %)`, `9.2 times the time (8.9 to 9.4)`; `mark` ~ for a model."""
    if ratio.value >= 2:
        both = () if ratio.low is None or ratio.high is None else (digits(ratio.low, 3), digits(ratio.high, 3))
        inside = f" ({' to '.join(both)})" if both else ""
        return f"{mark}{digits(ratio.value, 3)} times the {noun}{inside}"
    sign, word = (-1, "less") if ratio.value < 1 else (1, "more")
    ends = [digits(end) for end in sorted(100 * sign * (end - 1) for end in (ratio.low, ratio.high) if end is not None)]
    inside = f" ({ends[0]} to {ends[1]} %)" if len(set(ends)) > 1 else ""
    return f"{mark}{digits(100 * abs(ratio.value - 1))} % {word} {noun}{inside}"


def change_evidence(change: Change, measure: str) -> Evidence:
    """Return the evidence of a matched change in one measure."""
    found = change.ratio(measure)
    names = tuple(dict.fromkeys(name for side in zip(*change.names, strict=True) for name in side))
    return Evidence(change.count, names, measure, found.value, found.low, found.high, found.n)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first few of many: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
