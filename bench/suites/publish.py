"""Floors that `--publish` puts under a run and its suite; larger values stay. Thresholds: `bench.figures.flags`."""

from __future__ import annotations

from typing import TypeVar

from bench.figures import flags
from bench.schema import Model, RunSpec, Suite

_FLOORS: dict[type[Model], dict[str, float]] = {
    RunSpec: {
        "warmup_steps": flags.PUBLISH_WARMUP_STEPS,
        "warmup_seconds": flags.PUBLISH_WARMUP_SECONDS,
        "measure_steps": flags.PUBLISH_STEPS,
        "measure_seconds": flags.PUBLISH_SECONDS,
        "timeout_seconds": flags.PUBLISH_TIMEOUT_SECONDS,
    },
    Suite: {"repeats": flags.PUBLISH_REPEATS, "idle_seconds": flags.PUBLISH_IDLE_SECONDS},
}
_Raised = TypeVar("_Raised", RunSpec, Suite)


def publishable(model: _Raised) -> _Raised:
    """Return a run or a suite with each value raised to its floor; a field without a value keeps none."""
    floors = _FLOORS[type(model)].items()
    values = {name: getattr(model, name) for name, _ in floors}
    raised = {name: max(values[name], floor) for name, floor in floors if values[name] is not None}
    return model.changed(**raised)
