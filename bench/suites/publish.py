"""A suite -> one whose windows, warm-up, repeats and idle time are fit to be published; `flags` has the thresholds."""

from __future__ import annotations

from typing import Any

from bench.figures import flags
from bench.schema import COMMAND, Suite
from bench.suites.load import branches, for_device_type, is_by_machine

_AT_LEAST = {
    "warmup_steps": flags.PUBLISH_WARMUP_STEPS,
    "warmup_seconds": flags.PUBLISH_WARMUP_SECONDS,
    "measure_steps": flags.PUBLISH_STEPS,
    "measure_seconds": flags.PUBLISH_SECONDS,
    "timeout_seconds": flags.PUBLISH_TIMEOUT_SECONDS,
}


def publishable(suite: Suite) -> Suite:
    """Return the suite with windows, warm-up, repeats and idle time that are fit to be published (bench.figures.flags).

    What is larger already stays, what names no number is left to `expand` to judge. A cell that counts steps goes on to.
    """
    parts = [suite.defaults, suite.matrix, *suite.include]
    commands = any(COMMAND in _values(part.get("workload")) for part in parts)  # they take the time they take
    floors = {name: floor for name, floor in _AT_LEAST.items() if not commands or not name.startswith("measure_")}

    def raised(part: dict[str, Any]) -> dict[str, Any]:
        return {name: _at_least(value, floors[name]) if name in floors else value for name, value in part.items()}

    defaults, matrix = raised(suite.defaults), raised(suite.matrix)
    include = [raised(cell) for cell in suite.include]
    ways = {"measure_seconds", "measure_steps"} & floors.keys()
    for name in floors.keys() - ways:
        _fill(defaults, matrix, name, floors[name])
    if ways:
        _fill(defaults, matrix, "measure_seconds", floors["measure_seconds"], unless="measure_steps")
        for cell in include:
            if "measure_steps" in cell and "measure_steps" not in {**suite.defaults, **suite.matrix}:
                cell.setdefault("measure_seconds", None)
    return suite.changed(
        defaults=defaults,
        matrix=matrix,
        include=include,
        exclude=[raised(rule) for rule in suite.exclude],
        repeats=max(suite.repeats, flags.PUBLISH_REPEATS),
        idle_seconds=max(suite.idle_seconds, flags.PUBLISH_IDLE_SECONDS),
    )


def _values(value: Any) -> list[Any]:
    """All values that a field may take: those of an axis, and of each kind of machine."""
    return [one for branch in branches(value) for one in (branch if isinstance(branch, list) else [branch])]


def _at_least(value: Any, floor: float) -> Any:
    """Raise numbers to the floor, in lists (where equal ones become one) and in values that differ by machine too."""
    if is_by_machine(value):
        return {"on": {device_type: _at_least(one, floor) for device_type, one in value["on"].items()}}
    if isinstance(value, list):
        raised = [_at_least(one, floor) for one in value]
        return [one for i, one in enumerate(raised) if one not in raised[:i]]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return max(value, floor) if number else value


def _fill(defaults: dict[str, Any], matrix: dict[str, Any], name: str, floor: float, *, unless: str = "") -> None:
    """Give a field that has no value on some kind of machine its floor there, unless another one is given instead."""
    lacking = []
    for device_type in ("cpu", "cuda"):
        here = {**for_device_type(defaults, device_type), **for_device_type(matrix, device_type)}
        if here.get(name) is None and here.get(unless) is None:
            lacking.append(device_type)
    if len(lacking) == 2:
        defaults[name] = floor
    elif lacking:
        value: Any = defaults.get(name)
        known: dict[str, Any] = value["on"] if is_by_machine(value) else {}
        defaults[name] = {"on": {**known, **dict.fromkeys(lacking, floor)}}
