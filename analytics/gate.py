"""A gate for continuous integration: conditions on ratios that fail a change only when the interval says so."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analytics import stats
from analytics.compare import Comparison

State = Literal["fails", "holds", "cannot tell"]
_CONDITION = re.compile(r"\s*([A-Za-z]\w*)\s*(<=|>=|<|>)\s*(\d+(?:\.\d*)?|\.\d+)\s*")


@dataclass(frozen=True)
class Condition:
    """What is a regression: candidate / baseline of `metric` beyond `ratio`."""

    metric: str
    operator: str
    ratio: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `METRIC OP RATIO`, as in `tokens_per_second < 0.97`. Raises ValueError for anything else."""
        found = _CONDITION.fullmatch(text)
        if found is None or not 0 < float(found[3]) < math.inf:
            raise ValueError(
                f"--fail-if {text!r}: wanted METRIC OP RATIO with OP one of < <= > >= and RATIO = NEW / BASE above 0, "
                "as in 'tokens_per_second < 0.97'"
            )
        return cls(found[1], found[2], float(found[3]))

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.ratio:g}"

    def state(self, low: float, high: float) -> State:
        """Say whether all of an interval is a regression, nothing of it, or some."""
        inside = {
            "<": (high < self.ratio, low >= self.ratio),
            "<=": (high <= self.ratio, low > self.ratio),
            ">": (low > self.ratio, high <= self.ratio),
            ">=": (low >= self.ratio, high < self.ratio),
        }[self.operator]
        return "fails" if inside[0] else "holds" if inside[1] else "cannot tell"


@dataclass(frozen=True)
class Outcome:
    """What became of a condition in one configuration, and why it cannot be told, with the repeats that would tell."""

    condition: str
    name: str
    state: State
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    more_repeats: int | None = None


def outcomes(conditions: Sequence[Condition], comparisons: Sequence[Comparison]) -> list[Outcome]:
    """Put every condition to every configuration that ended well on both sides."""
    return [_outcome(condition, c) for condition in conditions for c in comparisons if _ran(c)]


def _outcome(condition: Condition, comparison: Comparison) -> Outcome:
    found = Outcome(str(condition), comparison.name, "cannot tell")
    effect = next((e for e in comparison.effects if e.metric == condition.metric), None)
    if effect is None:
        return replace(found, reason=(comparison.not_compared or {}).get(condition.metric, "it is not known"))
    if effect.difference is not None:
        return replace(found, reason="figures that are not above 0 have no ratio")
    found = replace(found, ratio=effect.ratio, low=effect.low, high=effect.high)
    if effect.low is None or effect.high is None:
        return replace(found, reason="it takes two or more repeats of each")
    state = condition.state(effect.low, effect.high)
    if state != "cannot tell":
        return replace(found, state=state)
    more = stats.more_repeats(effect.spread, effect.repeats, math.log(effect.ratio / condition.ratio))
    return replace(found, reason="the interval holds the limit", more_repeats=more)


def broken(comparisons: Sequence[Comparison], *, skipped: bool) -> list[Comparison]:
    """Return the configurations that ended well in the baseline and not in the candidate; those `skipped` only if asked."""
    return [
        c for c in comparisons if c.baseline_status == "ok" and c.status != "ok" and (skipped or c.status != "skipped")
    ]


def _ran(comparison: Comparison) -> bool:
    return comparison.status == "ok" and comparison.baseline_status == "ok"
