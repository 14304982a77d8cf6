"""The figure of comparisons: each candidate as a multiple of its baseline, by verdict."""

from __future__ import annotations

from collections.abc import Iterable

from analytics.judge.compare import Comparison
from analytics.quantities import quantity
from analytics.say.blocks import Figure, Group, Mark
from analytics.say.names import metric_name
from analytics.say.table import verdict

_DECIDED = ("better", "worse", "less", "more", "same")
VERDICTS = (*_DECIDED, *(f"probably {verdict}" for verdict in _DECIDED), "undecided")


def ratios(compared: Iterable[tuple[str, Comparison]], metric: str) -> Figure | None:
    """Draw candidates, by name, as multiples of their baselines in one metric; None where there is no ratio.

    95 % intervals. A candidate without repeats has no interval, and cannot be told.
    """
    known = [(name, e) for name, one in compared if (e := one.effect(metric))]
    marks = [(verdict(e), Mark(name, e.ratio, e.low, e.high, place)) for place, (name, e) in enumerate(known)]
    groups = [Group(each, tuple(mark for told, mark in marks if told == each)) for each in VERDICTS]
    way = {"more": "right of 1 is better", "less": "left of 1 is better"}.get(quantity(metric).better or "", "")
    title, axis = metric_name(metric, mark=True), f"multiple of the baseline{f'; {way}' if way else ''}"
    groups = [group for group in groups if group.marks]
    return Figure(title, axis, tuple(groups), reference=1.0, log=True) if groups else None
