"""What matched configurations say: which option to use, what it costs in quality, at how many devices to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analytics.judge.advice import Advice, Case, Evidence, weighed
from analytics.judge.matched import Change, flagged
from analytics.judge.stats import LOSS, SAME
from analytics.runs.frame import of_tables
from bench.schema import COMMAND

_TIMES = ("time", "time in use")
_REASONS = {
    **dict.fromkeys(("memory", "accumulation", "optimizer", "attention"), "memory"),
    **dict.fromkeys(("quantization", "pruning"), "space on disk"),
}
"""Topics in which memory, or the size of the served model, is a reason of its own."""


def options(case: Case) -> Iterator[Advice]:
    """For each topic: the option that gains most, or what to avoid because it costs time."""
    for topic in dict.fromkeys(change.topic.name for change in case.changes if change.topic.name != "devices"):
        here = [change for change in case.changes if change.topic.name == topic]
        gains = {change: measure for change in here if (measure := _gain(change))}
        worse = [change for change in here if differs(change, change.main) > 1 + SAME]
        mixed = [change for change in here if change.mixed(change.main)]
        if gains:
            best = min(gains, key=lambda one: (gains[one] not in _TIMES, one.ratio(gains[one]).value))
            yield _use(best, gains[best])
        elif worse:
            given = {change: (change.main, *_gives(change)) for change in worse[:3]}
            claim = "trade" if any("memory" in measures for measures in given.values()) else "avoid"
            yield _advice(claim, worse[0].main, given, limits=_quality(worse[0])[1])
        elif mixed:
            yield _advice("depends", mixed[0].main, {mixed[0]: (mixed[0].main,)})


def differs(change: Change, measure: str) -> float:
    """Return the ratio of a measure where the verdict is that it differs; else 1."""
    return change.ratio(measure).value if change.verdict(measure) in ("better", "worse") else 1.0


def undecided(change: Change) -> bool:
    """Whether a change may be larger than LOSS, but the repeats do not tell."""
    ratio = change.ratio(change.main)
    if not ratio.n or change.verdict(change.main) != "cannot tell" or change.mixed(change.main):
        return False
    return ratio.low is None or ratio.high is None or not 1 - LOSS <= ratio.low <= ratio.high <= 1 + LOSS


def _gain(change: Change) -> str:
    """The measure in which a change gains, or nothing: time, else energy, memory or size that take no visible time."""
    if (change.runs[0]["target_reached"] == 0).any():
        return ""
    if differs(change, change.main) < 1 - SAME:
        return change.main
    highs = [change.ratio(measure).high for measure in {"time", change.main}]
    free = all(high is not None and high <= 1 + LOSS for high in highs)
    reasons = filter(None, ("energy", _REASONS.get(change.topic.name)))
    return next((measure for measure in reasons if free and differs(change, measure) < 1 - LOSS), "")


def _use(change: Change, measure: str) -> Advice:
    quality, limits = _quality(change)
    beside = [*(_energy(change) if measure == "time" else ()), *quality]
    beside += ["space on disk"] if measure != "space on disk" and differs(change, "space on disk") != 1 else []
    saving = 1 - change.ratio(measure).value if measure in _TIMES else None
    facts = _payback(change) if change.topic.name == "compile" else {}
    claim = "consider" if change.verdict(change.quality) == "worse" else "use"
    limits += ("payback",) if facts else ()
    return _advice(claim, measure, {change: (measure, *beside)}, change.action, saving, limits, facts)


def _gives(change: Change) -> Iterator[str]:
    """The measures in which a change that costs time is better."""
    measure = "space on disk" if change.main == "time in use" else "memory"
    if differs(change, measure) < 1 - LOSS:
        yield measure
    if measure == "memory" and change.verdict("validation loss") == "better":
        yield "validation loss"


def _energy(change: Change) -> Iterator[str]:
    """The energy beside the time: measured if known, else that of a model (~), and only if the repeats tell it."""
    measure = "energy" if change.found("energy") else "~energy"
    if change.verdict(measure) in ("better", "worse"):
        yield measure


def _quality(change: Change) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the measure of quality that has a verdict, or else the limit that it has none."""
    measure = change.quality
    if change.metric(measure) is None:
        if all(of_tables(side).all() for side in change.runs):
            return (), ("quality_of_table",)
        if not any(side["workload"].eq(COMMAND).any() for side in change.runs):
            return (), ("quality_unknown",)
        known = all("loss_median" in side and side["loss_median"].notna().any() for side in change.runs)
        return (), ("quality_of_command" if known else "loss_unknown",)
    if change.refusal(measure) is not None:
        return (), ("quality_not_compared",)
    return ((), ("quality_unclear",)) if change.verdict(measure) == "cannot tell" else ((measure,), ())


def _payback(change: Change) -> dict[str, Any]:
    """What compiling takes, and after how many steps it has paid; nothing where it was not timed."""
    option, baseline = change.runs
    ratio, seconds = change.ratio("time"), option["compile_seconds"].median()
    step = baseline["step_seconds_median"].median()
    if ratio.low is None or ratio.high is None or not seconds > 0 or ratio.high >= 1 or change.range("time"):
        return {}
    steps = [seconds / (step * (1 - value)) for value in (ratio.value, ratio.low, ratio.high)]
    return {"compile_seconds": float(seconds), "steps": tuple(map(float, steps))}


def _advice(
    claim: str,
    measure: str,
    changes: Mapping[Change, tuple[str, ...]],
    action: str = "",
    saving: float | None = None,
    limits: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> Advice:
    """Make an advice of changes; its evidence is that of the first, its ends the cells that differ most if they disagree."""
    change = next(iter(changes))
    runs, ratio, ends = pd.concat(change.runs), change.ratio(measure), change.range(measure)
    figure, low, high = (None, ends[0][1].value, ends[1][1].value) if ends else (ratio.value, ratio.low, ratio.high)
    configurations = tuple(dict.fromkeys(config for side in zip(*change.pairs, strict=True) for config in side))
    larger = change.topic.name in ("batch", "devices") and runs["global_batch_size"].nunique() > len(change.cells)
    conditions = {
        "unsteady": flagged(runs, "noisy_host", "not_steady").any(),
        "fewer_updates": larger,
        "estimated": any("~energy" in measures for measures in changes.values()),
    }
    limits = (*limits, *(limit for limit, holds in conditions.items() if holds))
    evidence = Evidence(change.count, configurations, measure, figure, low, high, ratio.n)
    advice = Advice(
        change.topic.name, evidence, action, saving, limits, claim=claim, changes=changes, facts=facts or {}
    )
    return weighed(advice, runs)


def devices(case: Case) -> Iterator[Advice]:
    """Up to how many devices to go: the last step that brings more than it costs, and the first that does not."""
    chain: dict[int, Change] = {}
    for change in case.changes:
        if change.topic.name == "devices" and change.found("time"):
            count = int(change.runs[0]["devices"].iloc[0])
            best = chain.get(count, change)  # of several kinds of parallelism the fastest
            chain[count] = min(best, change, key=lambda one: (-len(one.cells), one.ratio("time").value))
    worth: Change | None = None
    for _, change in sorted(chain.items()):
        if change.verdict("knee") != "better":
            if change.verdict("knee") == "worse":
                action, saving = f"devices: {change.baseline.split()[0]}", 1 - 1 / change.ratio("device-hours").value
                yield _advice("stop", "time", _costs(change), action, saving)
            break
        worth = change
    if worth is not None:
        yield _advice("pay", "time", _costs(worth), worth.action, 1 - worth.ratio("time").value)


def _costs(change: Change) -> dict[Change, tuple[str, ...]]:
    return {change: ("time", "device-hours", *_energy(change))}
