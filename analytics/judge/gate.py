"""A gate for continuous integration: conditions on ratios that fail a change only when the interval says so."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from analytics.judge import stats
from analytics.judge.comparable import LOST, VANISHED
from analytics.judge.compare import Comparison
from analytics.quantities import quantity
from bench.errors import BadValue

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
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
            raise BadValue(
                f"--fail-if {text!r}: wanted METRIC OP RATIO with OP one of < <= > >= and RATIO = NEW / BASE above 0, "
                "as in 'tokens_per_second < 0.97'"
            )
        return cls(found[1], found[2], float(found[3]))

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.ratio:g}"

    def state(self, low: float, high: float) -> State:
        """Say whether all of an interval is a regression, nothing of it, or some."""
        inside = {_OPERATORS[self.operator](end, self.ratio) for end in (low, high)}
        return "cannot tell" if len(inside) > 1 else "fails" if inside == {True} else "holds"


REPEATS = 3
"""Repeats of each side that a condition takes to fail: with two, the spread is hardly known."""


@dataclass(frozen=True)
class Outcome:
    """What became of a condition in one configuration, and why it cannot be told, with the repeats that would tell.

    `reason` is a code: few_repeats, chance (alone it would fail, `among` so many it may be chance), limit (the interval
    includes it); or why the metric cannot be compared. `doubts` are what else may have made the difference.
    """

    condition: str
    name: str
    state: State
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    repeats: int | None = None
    among: int | None = None
    more_repeats: int | None = None
    p_adjusted: float | None = None
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def outcomes(conditions: Sequence[Condition], comparisons: Sequence[Comparison]) -> list[Outcome]:
    """Put every condition to every configuration that ended well on both sides.

    A condition fails where the interval says so and the one-sided p-value too, adjusted by Holm's method for all of them:
    of gates whose every candidate is at its limit, 5 % at most fail.
    """
    pairs = [(condition, c) for condition in conditions for c in comparisons if _ran(c)]
    found = [_outcome(*pair) for pair in pairs]
    tests = [place for place, outcome in enumerate(found) if outcome.p_adjusted is not None]
    for place, adjusted in zip(tests, stats.holm([found[place].p_adjusted or 0.0 for place in tests]), strict=True):
        found[place] = _among(len(tests), replace(found[place], p_adjusted=adjusted), *pairs[place])
    return found


def _outcome(condition: Condition, comparison: Comparison) -> Outcome:
    """What the interval says, and the p-value of the regression while it is the only one that is looked at."""
    found = Outcome(str(condition), comparison.name, "cannot tell", doubts=comparison.doubts)
    effect = comparison.effect(condition.metric)
    if effect is None:
        reason = comparison.not_compared.get(condition.metric, "it is not known")
        # No training costs nothing: a figure of 0 is no measurement. No speed at all is one.
        gone = condition.state(0.0, 0.0)
        gone = "cannot tell" if gone == "holds" and _never_zero(condition.metric) else gone
        states: dict[str, State] = {VANISHED: gone, LOST: "fails"}
        return replace(found, reason=reason, state=states.get(reason, "cannot tell"))
    found = replace(found, ratio=effect.ratio, low=effect.low, high=effect.high, repeats=effect.repeats)
    if effect.low is None or effect.high is None or effect.repeats < REPEATS:
        return replace(found, reason="few_repeats")
    distance = math.log(effect.ratio / condition.ratio) * (-1 if "<" in condition.operator else 1)
    p_value = stats.p_beyond(distance, effect.error or 0.0, effect.degrees or math.inf)
    return replace(found, state=condition.state(effect.low, effect.high), p_adjusted=p_value)


def _never_zero(metric: str) -> bool:
    return quantity(metric).better == "less" and re.search("share|bubble|loss", metric) is None


def _among(tests: int, found: Outcome, condition: Condition, comparison: Comparison) -> Outcome:
    """What may be said after all were looked at."""
    effect, fails = comparison.effect(condition.metric), found.state == "fails"
    if effect is None or found.state == "holds" or (fails and (found.p_adjusted or 0.0) <= 0.05):
        return found
    more = stats.more_repeats(effect.spread, effect.repeats, math.log(effect.ratio / condition.ratio), tests=tests)
    why: dict[str, Any] = {"reason": "chance", "among": tests} if fails else {"reason": "limit"}
    return replace(found, state="cannot tell", more_repeats=more, **why)


def broken(comparisons: Sequence[Comparison], *, skipped: bool) -> list[tuple[str, str]]:
    """Return the configurations that ended well in the baseline and not in the candidate, and how they ended.

    Those count too of which every second run failed, if twice as many of the baseline ended well; those `skipped` only if
    asked.
    """
    out = []
    for c in comparisons:
        (good, every), (good_before, every_before) = c.ended, c.baseline_ended
        if c.baseline_status == "ok" and c.status != "ok" and (skipped or c.status != "skipped"):
            out.append((c.name, f"it ended well in BASE, but not in NEW: {c.status}: {c.reason}"))
        elif _ran(c) and 2 * good <= every and 2 * good * every_before <= good_before * every:
            before = f"{every_before - good_before} of {every_before}" if good_before < every_before else "none"
            out.append((c.name, f"{every - good} of {every} runs of NEW did not end well, and {before} of BASE"))
    return out


def incomparable_conditions(conditions: Sequence[Condition], decided: Sequence[Outcome]) -> list[Condition]:
    """Return the conditions by which no configuration could be compared: the gate decides nothing about them."""
    compared = {one.condition for one in decided if one.state != "cannot tell" or one.ratio is not None}
    return [condition for condition in conditions if str(condition) not in compared]


def _ran(comparison: Comparison) -> bool:
    return comparison.status == "ok" and comparison.baseline_status == "ok"
