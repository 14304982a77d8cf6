"""What a command has done and used so far while it runs: for the live line, the dashboard and budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures.carbon import carbon
from bench.figures.cost import cost
from bench.figures.metrics import split_energy
from bench.meters import windows as accounting
from bench.meters.conditions import used_by_run
from bench.meters.meter import Reading
from bench.meters.trace import MIN_WINDOW_NS, Trace
from bench.record import EnergyReading, RunRecord
from bench.run.marks import NewLines
from bench.run.watch import Tally
from bench.schema import Site

_LOOK_SECONDS = 1.0
"""Time between two looks at a command."""
_CONTEXT_NS = 5 * 10**9
"""Rows so long before a window are kept: its edges are interpolated."""


@dataclass(frozen=True)
class Course:
    """A running command: its steps, the seconds since its start, and its power in watts (None: not known).

    `used` is what all runs of the call have used so far: `seconds`, `energy_joules`, `emissions_kg`, `cost_usd`, as far as
    they are known. Where no energy is measured, these rest on an estimate. `left` is the time in seconds until its end,
    which is that of the window or of the training; `training_left` that of the whole training, if its length is known.
    """

    tally: Tally
    seconds: float
    left: float | None
    watts: float | None
    used: Mapping[str, float]
    training_left: float | None = None


class LiveEnergy:
    """Energy of a running command by device, from the rows that the meters append to a file; each is read once.

    Until a process of the command is seen on a GPU, all of `gpus` count.
    """

    def __init__(self, path: Path, meters: Sequence[str], gpus: Sequence[str], start_ns: int) -> None:
        self._lines, self._meters, self._gpus = NewLines(path), meters, gpus
        self._edge = self._start = start_ns
        self._rows: list[Reading] = []
        self._sums: dict[tuple[str, str, str], EnergyReading] = {}
        self._own: set[str] = set()
        self.watts: float | None = None

    @property
    def gpus(self) -> list[str]:
        """GPUs that count."""
        return [gpu for gpu in self._gpus if gpu in self._own] or list(self._gpus)

    def update(self) -> list[EnergyReading]:
        """Read the new rows and return the energy since the start, measured or estimated, one reading a device."""
        self._rows += self._new()
        newest = max((row.t_ns for row in self._rows if row.event is None), default=0) - MIN_WINDOW_NS // 2
        if newest - self._edge >= MIN_WINDOW_NS:
            trace = Trace(self._rows)
            self._own |= {gpu for gpu in self._gpus if used_by_run(trace.events, gpu, self._start, newest)}
            readings = accounting.energy(trace, self._edge, newest, self._meters)
            for reading in readings:
                key = (reading.source, reading.component, reading.device)
                last = self._sums.get(key)
                joules = reading.energy_joules + (last.energy_joules if last else 0.0)
                seconds = reading.seconds + (last.seconds if last else 0.0)
                self._sums[key] = reading.changed(energy_joules=joules, seconds=seconds)
            now = accounting.used(readings, self.gpus)[0]
            hardware, model = split_energy(now)
            self.watts = sum(reading.power_watts_mean for reading in hardware or model) if now else None
            self._edge = newest
            self._rows = [row for row in self._rows if row.t_ns >= newest - _CONTEXT_NS]
        return accounting.used(self._sums.values(), self.gpus)[0]

    def _new(self) -> Iterator[Reading]:
        """Yield the rows that the file has got since the last call; damaged ones are left out."""
        for line in self._lines.read():
            with suppress(ValueError):
                yield Reading.from_json(line.decode())


@dataclass
class Follower:
    """Looks at a command once a second and tells `listeners`. `over` is the first quantity of `limits` that is used up.

    `before` is what earlier runs have used. The command ends after so many `seconds` or `steps` of its window, or after
    `total_steps` from its start, where that is known. Without `energy`, none is read.
    """

    site: Site
    energy: LiveEnergy | None
    before: Mapping[str, float]
    limits: Mapping[str, float]
    listeners: Sequence[Callable[[Course], None]]
    window: tuple[float | None, int | None] = (None, None)
    total_steps: float | None = None
    over: str | None = None
    _start: float = field(default_factory=time.monotonic)
    _next: float = 0.0

    def tick(self, tally: Tally) -> bool:
        """Look if it is time to; return whether the command is to be ended."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOOK_SECONDS
            course = self._look(tally, now - self._start)
            used_up = (name for name, limit in self.limits.items() if course.used.get(name, 0.0) >= limit)
            self.over = self.over or next(used_up, None)
            for listen in self.listeners:
                with suppress(OSError):  # a terminal that is gone ends no command
                    listen(course)
        return self.over is not None

    def _look(self, tally: Tally, seconds: float) -> Course:
        energy = self.energy.update() if self.energy is not None else []
        gpus = self.energy.gpus if self.energy is not None else []
        used = used_until(energy, seconds, self.site, gpus, max(1, len(gpus)))
        whole = {name: self.before.get(name, 0.0) + used.get(name, 0.0) for name in {**self.before, **used}}
        watts = self.energy.watts if self.energy is not None else None
        training = _steps_left(tally, self.total_steps, tally.seen)
        window_seconds, window_steps = self.window
        left = training if window_steps is None else _steps_left(tally, window_steps, tally.steps)
        left = left if window_seconds is None else max(0.0, window_seconds - tally.seconds)
        return Course(tally, seconds, left, watts, whole, training)


def _steps_left(tally: Tally, steps: float | None, done: int) -> float | None:
    """Return the time in seconds that the rest of so many steps takes; None where that is not known, or over."""
    rate, left = tally.steps_per_second, (steps or 0) - done
    return left / rate if rate and left > 0 else None


def used_until(
    energy: list[EnergyReading], seconds: float, site: Site, gpus: list[str], devices: int
) -> dict[str, float]:
    """Return what a command has used, by quantity, as far as it is known."""
    hardware, model = split_energy(energy)
    out = {"seconds": seconds}
    if hardware or model:
        out["energy_joules"] = sum(reading.energy_joules for reading in hardware or model)
    if (emitted := carbon(energy, site, gpus)) is not None:
        out["emissions_kg"] = emitted.emissions_kg
    if (paid := cost(site, devices, seconds, energy, gpus)) is not None:
        out["cost_usd"] = paid.cost_usd
    return out


def used_by(record: RunRecord) -> dict[str, float]:
    """Return what a run has used that has ended, by quantity."""
    return used_until(record.energy, record.duration_seconds, record.site, record.gpus, record.billed_devices)
