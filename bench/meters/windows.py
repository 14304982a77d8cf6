"""A trace and the times of a run -> its energy by window, by phase, when idle and over nodes. Every joule counts once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.folder import IDLE_TIMES, IDLE_TRACE, METERS, RAW_METERS
from bench.meters.trace import Trace
from bench.record import EnergyReading, IdlePower, Phase


class CountedTwice(ValueError):
    """The energy of one component would be added a second time."""


def read_trace(folder: Path, node: int = 0) -> Trace | None:
    """Return the rows of the meters of a node and store them as parquet; None if nothing was read."""
    raw, kept = RAW_METERS.path(folder, node), METERS.path(folder, node)
    if raw.exists():
        Trace.read(raw).write_parquet(kept)
        raw.unlink()
    return Trace.read(kept) if kept.exists() else None


def energy(
    trace: Trace | None, start_ns: int, end_ns: int, meters: Iterable[str], without: Sequence[tuple[int, int]] = ()
) -> list[EnergyReading]:
    """Return the energy of a node between two times by component and by the named meters, of all GPUs, used or not.

    `without` are pauses (start, end) that are left out.
    """
    if trace is None or end_ns <= start_ns:
        return []
    sources = {meter.partition(":")[0] for meter in meters}
    return [reading for reading in trace.energy(start_ns, end_ns, without) if reading.source in sources]


def used(readings: Iterable[EnergyReading], gpus: Iterable[str]) -> tuple[list[EnergyReading], list[EnergyReading]]:
    """Split readings into those of a run on these GPUs (with the processors of the node) and those of other GPUs."""
    own, readings = set(gpus), list(readings)
    mine = [r for r in readings if r.component != "gpu" or r.device in own]
    return mine, [r for r in readings if r.component == "gpu" and r.device not in own]


def over_nodes(nodes: Iterable[tuple[str, list[EnergyReading]]]) -> list[EnergyReading]:
    """Combine the readings of several nodes, given as (boot id, readings).

    The windows of the nodes must have been matched by steps. A GPU counts once by its UUID. Processors and memory count
    once per node, and its boot id becomes part of their name. Raises CountedTwice for a second contribution.
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
                    f"{what} of boot {boot_id} is counted twice: two sidecars on one node, or one node given twice"
                )
            seen.add(key)
            apart = len(nodes) > 1 and place
            out.append(reading.changed(device=f"{place[:8]}:{reading.device}") if apart else reading)
    return out


def contiguous(phases: list[Phase], start_ns: int, end_ns: int) -> list[Phase]:
    """Return phases that fill a run without gaps: `launch`, each phase until the next one begins, and `tail`."""
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
    """Return the idle power of each component, measured at the start of an execution; empty if it was not measured."""
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
