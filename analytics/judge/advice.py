"""What an advice is: a topic, what to change, what that saves, and the evidence. `say.advice` puts it into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analytics.judge.matched import Change, Changes, flagged
from analytics.runs.frame import of_tables

SOUND = 3
"""Repeats of each side from which on an advice may be an imperative."""


@dataclass(frozen=True)
class Evidence:
    """What an advice rests on: `ratio` of a measure of `matched.MEASURES` with its interval (95 %).

    Of another `measure` it is the median share or figure, `low` and `high` the least and the largest of the runs.

    `runs` counts runs, `n` the repeats of the side that has fewest; `configurations` are the `config_id` of what was
    looked at.
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
    """What to do about a topic. `action` is what to set in a suite, empty where a suite can do nothing.

    `changes` are options with the measures that tell of them. `claim` is what to do about these: use the option, consider
    it (at a price in quality), use it where time counts (pay), stop before it, avoid it, trade it (time for memory), or it
    depends on the configuration. Otherwise a claim tells two advices of a topic apart. `facts` are other values.
    `saving` is the share of time (for a smaller number of devices: of device-hours) that it saves at best; None where
    nothing is known to be saved. `limits` are codes. `first`: it must be mended before others are believed. `weak`: the
    evidence is no ground to act on, so there is neither action nor saving, and it comes after all others.
    """

    topic: str
    evidence: Evidence
    action: str = ""
    saving: float | None = None
    limits: tuple[str, ...] = ()
    first: bool = False
    weak: bool = False
    claim: str = ""
    changes: Mapping[Change, tuple[str, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What rules look at: `df` all runs of one execution, `ok` those that ended well, and their matched `changes`."""

    df: pd.DataFrame
    ok: pd.DataFrame
    changes: Changes


def weaknesses(n: int, runs: pd.DataFrame) -> list[str]:
    """Return why runs of configurations with at least `n` repeats are no ground to act on: few repeats, or a flag of most."""
    flags = ("noisy_host", "not_steady")
    busy = 2 * int(flagged(runs, *flags).sum()) > len(runs)
    return ["few_repeats"] * (n < SOUND) + [flag for flag in flags if busy and flagged(runs, flag).any()]


def weighed(advice: Advice, runs: pd.DataFrame) -> Advice:
    """Return an advice as its runs allow it: weak with few repeats, or where most of the runs were disturbed."""
    runs = runs[~runs.index.duplicated()]
    weak = weaknesses(advice.evidence.n, runs)
    if not weak:
        return advice
    few = "few_rows" if of_tables(runs).all() else "few_repeats"
    limits = (few if weak == ["few_repeats"] else "disturbed", *(one for one in advice.limits if one != "unsteady"))
    return replace(advice, action="", saving=None, limits=limits, weak=True)
