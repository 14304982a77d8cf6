"""What an advice is, and its words: factors of time, energy and memory as a newcomer says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analytics.interval import Interval
from analytics.judge.matched import Change, Changes, flagged

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
    """What rules look at: `df` all runs of one execution, `ok` those that ended well, and their matched `changes`."""

    df: pd.DataFrame
    ok: pd.DataFrame
    changes: Changes

    def names(self, config_ids: Sequence[str] | pd.Series) -> tuple[str, ...]:
        """Return the short names of some configurations."""
        table = self.changes.table
        return tuple(table[table["config_id"].isin(list(config_ids))]["name"])


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


_NOUNS = {"time in use": "time in use", "size": "space on disk", "~energy": "energy", "knee": "time"}


def amount(change: Change, measure: str) -> str:
    """Say what a change makes of a measure: `24 % less time (20 to 28 %)`; ~ is the figure of a model.

    Of cells that disagree it is the range: `5 % less time (preset=tiny) to 30 % less time (preset=base)`.
    """
    noun, mark = _NOUNS.get(measure, measure), "~" * measure.startswith("~")
    ends = sorted(change.range(measure), key=lambda cell: abs(cell[1].value - 1))
    words = [f"{ratio_words(replace(ratio, low=None), noun, mark)} ({name})" for name, ratio in ends]
    return " to ".join(words) or ratio_words(change.ratio(measure), noun, mark)


def ratio_words(ratio: Interval, noun: str, mark: str = "") -> str:
    """Say what a ratio means: `24 % less time (20 to 28 %)`, `9.2 times the time (8.9 to 9.4)`; `mark` ~ for a model."""
    if ratio.value >= 2:
        both = () if ratio.low is None or ratio.high is None else (digits(ratio.low, 3), digits(ratio.high, 3))
        inside = f" ({' to '.join(both)})" if both else ""
        return f"{mark}{digits(ratio.value, 3)} times the {noun}{inside}"
    sign, word = (-1, "less") if ratio.value < 1 else (1, "more")
    ends = [] if ratio.low is None or ratio.high is None else [ratio.low, ratio.high]
    shares = [digits(end) for end in sorted(100 * sign * (end - 1) for end in ends)]
    inside = f" ({shares[0]} to {shares[1]} %)" if len(set(shares)) > 1 else ""
    return f"{mark}{digits(100 * abs(ratio.value - 1))} % {word} {noun}{inside}"


def change_evidence(change: Change, measure: str) -> Evidence:
    """Return the evidence of a matched change in one measure; the lowest and the highest cell where they disagree."""
    names = tuple(dict.fromkeys(name for side in zip(*change.names, strict=True) for name in side))
    ratio = change.ratio(measure)
    if ends := change.range(measure):
        return Evidence(change.count, names, measure, None, ends[0][1].value, ends[1][1].value, ratio.n)
    return Evidence(change.count, names, measure, ratio.value, ratio.low, ratio.high, ratio.n)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first few of many: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
