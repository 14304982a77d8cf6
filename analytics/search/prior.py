"""What the law of scaling expects of configurations that were not tried: where to look first, never a result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analytics.law import law as laws
from analytics.search.space import Impossible, Key, Space

GAIN = 0.05
"""A configuration is worth a look if it is expected to be better by more than this share than any that is known."""
_SCALED = ("devices", "batch_size_per_device", "global_batch_size", "gradient_accumulation_steps")
"""Fields whose effect the law knows; configurations that differ in others are different series."""
_MOST_SERIES = 8
_TOO_FAR = {"devices_not_identified", "devices_beyond_reach"}


def promising(space: Space, known: Mapping[Key, tuple[Mapping[str, Any], float, bool]]) -> dict[str, Any] | None:
    """Return the configuration that is expected to be better in time and cost than all that is allowed, if any.

    `known` has by key the parameters, the seconds of the work, and whether all constraints are met. Series of two or more
    configurations are extended by the law with losses.
    """
    if space.possible is None or not {"time", "cost"} & {goal.name for goal in space.search.objectives}:
        return None
    series: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], float]]] = defaultdict(list)
    for params, seconds, _ in known.values():
        series[_series(params)].append((params, seconds))
    left: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for key, params in space.possible.items():
        if key not in known and len(series.get(_series(params), ())) > 1:
            left[_series(params)].append(params)
    best = [_judged(space, params, seconds) for params, seconds, allowed in known.values() if allowed]
    found = []
    fastest = sorted(left, key=lambda name: min(seconds for _, seconds in series[name]))
    for name, candidates in ((name, left[name]) for name in fastest[:_MOST_SERIES]):
        for params, seconds in _expected(space, series[name], candidates):
            here = _judged(space, params, seconds)
            if not any(np.all(other <= here * (1 + GAIN)) for other in best):
                found.append((seconds, params))
    return min(found, key=lambda one: one[0])[1] if found else None


def _series(params: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((name, str(value)) for name, value in params.items() if name not in _SCALED))


def _judged(space: Space, params: Mapping[str, Any], seconds: float) -> np.ndarray:
    """Time, and what the devices cost in it, as far as they are objectives: smaller is better."""
    goals = {goal.name for goal in space.search.objectives}
    devices = space.spec(params).world_size
    return np.array([seconds * (devices if name == "cost" else 1) for name in ("time", "cost") if name in goals])


def _expected(
    space: Space, measured: Sequence[tuple[Mapping[str, Any], float]], candidates: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], float]]:
    """Return candidates of one series with the seconds that the law expects."""
    table = pd.DataFrame([_covariates(space, params) | {"speed": 1 / seconds} for params, seconds in measured])
    try:
        told = laws.fit(table).predict(pd.DataFrame([_covariates(space, params) for params in candidates]))
    except (laws.LawError, Impossible):
        return []
    return [
        (params, 1 / speed)
        for params, speed, flags in zip(candidates, told["speed"], told["flags"], strict=True)
        if math.isfinite(speed) and not _TOO_FAR & set(flags.split())
    ]


def _covariates(space: Space, params: Mapping[str, Any]) -> dict[str, float]:
    spec = space.spec(params)
    batch = spec.batch_size_per_device if isinstance(spec.batch_size_per_device, int) else math.nan
    total = spec.global_batch_size or math.nan
    return {
        "devices": spec.world_size,
        "batch_size_per_device": batch,
        "samples_per_device": total / spec.world_size,
    }
