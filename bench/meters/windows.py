"""A trace and the times of a run -> its energy: by window, by phase, above idle, over nodes. Every joule is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.folder import IDLE_TIMES, IDLE_TRACE, METERS, RAW_METERS
from bench.meters.trace import Trace
from bench.record import EnergyReading, IdlePower, Phase

CODECARBON_SECONDS = 10.0
"""How long at most is waited for CodeCarbon to start."""


class CountedTwice(ValueError):
    """The energy of one component was about to be added a second time."""


def read_trace(folder: Path, node: int = 0) -> Trace | None:
    """Return the meters' rows of a node, kept as parquet from here on; None where nothing was read."""
    raw, kept = RAW_METERS.path(folder, node), METERS.path(folder, node)
    if raw.exists():
        Trace.read(raw).write_parquet(kept)
        raw.unlink()
    return Trace.read(kept) if kept.exists() else None


def energy(
    trace: Trace | None, start_ns: int, end_ns: int, meters: Iterable[str], without: Sequence[tuple[int, int]] = ()
) -> list[EnergyReading]:
    """Energy of a node by component between two times, of the meters that were asked for: all its GPUs, used or not.

    `without` are pauses, (from, to), that are left out.
    """
    if trace is None or end_ns <= start_ns:
        return []
    wanted = {meter.partition(":")[0] for meter in meters}
    return [reading for reading in trace.energy(start_ns, end_ns, without) if reading.source in wanted]


def used(readings: Iterable[EnergyReading], gpus: Iterable[str]) -> tuple[list[EnergyReading], list[EnergyReading]]:
    """Split readings into those of a run that uses these GPUs (and the node's processors), and those of idle GPUs."""
    known, readings = set(gpus), list(readings)
    mine = [r for r in readings if r.component != "gpu" or r.device in known]
    return mine, [r for r in readings if r.component == "gpu" and r.device not in known]


def over_nodes(nodes: Iterable[tuple[str, list[EnergyReading]]]) -> list[EnergyReading]:
    """Put the readings of several nodes together, given as (boot id, readings).

    Windows are matched by steps before: each node gives the readings of its own. A GPU counts once by its UUID; processors
    and memory once a node, whose boot id becomes part of their name. Raises CountedTwice for a second contribution.
    """
    out: list[EnergyReading] = []
    seen: set[tuple[str, str, str]] = set()
    nodes = list(nodes)
    for boot_id, readings in nodes:
        for reading in readings:
            place = "" if reading.component == "gpu" else boot_id
            key = (place, reading.component, reading.device)
            if key in seen:
                what = f"{reading.component} {reading.device}"
                raise CountedTwice(
                    f"{what} of boot {boot_id} is there already: two sidecars on one node, or one node twice"
                )
            seen.add(key)
            apart = len(nodes) > 1 and place
            out.append(reading.changed(device=f"{place[:8]}:{reading.device}") if apart else reading)
    return out


def step_window(steps: list[tuple[int, float]], first: int, last: int) -> tuple[int, int]:
    """Return the edges in this node's nanoseconds of the steps from `first` to `last` (counted from 0, inclusive).

    `steps` are (start in nanoseconds, seconds) of one rank of the node. Nodes are matched by steps, never by clocks. Raises
    ValueError for steps that were not made.
    """
    if not 0 <= first <= last < len(steps):
        raise ValueError(f"steps {first} to {last} were asked for, this rank made {len(steps)}")
    return steps[first][0], steps[last][0] + round(steps[last][1] * 1e9)


def contiguous(phases: list[Phase], start_ns: int, end_ns: int) -> list[Phase]:
    """Return phases that fill a run without gaps: `launch`, then each until the next begins, and `tail` to the end."""
    if not phases:
        return []
    borders = [phase.start_ns for phase in phases] + [phases[-1].end_ns]
    out = [phase.changed(start_ns=a, end_ns=b) for phase, a, b in zip(phases, borders, borders[1:], strict=False)]
    if start_ns < out[0].start_ns:
        out.insert(0, Phase(name="launch", start_ns=start_ns, end_ns=out[0].start_ns))
    if end_ns > out[-1].end_ns:
        out.append(Phase(name="tail", start_ns=out[-1].end_ns, end_ns=end_ns))
    return out


def idle_power(execution: Path, meters: Iterable[str]) -> list[IdlePower]:
    """Return the idle power of each component, as it was measured at the start of an execution; empty where it was not."""
    times, path = IDLE_TIMES.find(execution), execution / IDLE_TRACE
    if times is None or not path.exists():
        return []
    trace, meters = Trace.read(path), list(meters)
    context = times.context
    busy = {(r.component, r.device): r for r in energy(trace, context[0], context[1], meters)} if context else {}
    out = []
    for reading in energy(trace, times.idle[0], times.idle[1], meters):
        if not reading.provenance.measured or {"gap", "window_too_short"} & set(reading.flags):
            continue
        with_context = busy.get((reading.component, reading.device)) if reading.component == "gpu" else None
        out.append(
            IdlePower(
                component=reading.component,
                device=reading.device,
                power_watts=reading.power_watts_mean,
                power_watts_context=with_context.power_watts_mean if with_context else None,
                seconds=reading.seconds,
                provenance=reading.provenance,
            )
        )
    return out
