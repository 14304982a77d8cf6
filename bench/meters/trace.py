"""A meter trace: rows as the meters read them, and the energy of any window of time, computed from them afterwards.

On disk a trace is one JSON object per line while it grows, and parquet once it is complete. All times are CLOCK_MONOTONIC
in nanoseconds; the wall clock is recorded and never used. Energy is integer microjoules until a reading is made. The energy
of a window is the difference of one function of time at its two edges, so that adjacent windows add up exactly.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Self

from bench.meters.curve import DEFAULT_PERIOD_NS, SECOND, EnergyCurve
from bench.meters.meter import INTEGERS, Component, Meter, Reading, Scope, meter_class
from bench.record import EnergyReading, Provenance

MIN_WINDOW_NS = 2 * SECOND
"""Below this, and below 20 periods of a GPU's counter, a reading carries the flag `window_too_short`."""
MIN_WINDOW_PERIODS = 20
MIN_COVERAGE = 0.5
WIDE_EDGES = 0.1
"""A reading is flagged `wide_edges` if the bound of its edges is a larger share of its energy than this."""
MAX_ERROR_SHARE = 0.01
MAX_WRAP_GAP_NS = 10 * SECOND
MAX_ZONE_WATTS = 1000
"""More than any CPU package draws: a step of a counter that needs more is a reset or an unknown number of wraps."""
MIRROR_UJ = 1_000_000
GAIN_SHARE = {"gpu": 0.05, "cpu": 0.05, "dram": 0.10, "node": 0.05}
"""Assumed bounds of a sensor's gain. GPUs: a study of twelve models with an external meter (Yang, Adamek, Armour, SC'24), in
which data-centre parts erred by 5 %. RAPL packages and DRAM: a guess that published measurements make plausible."""
_MODE_FLAGS = {"mig": "mig_shared", "module": "module_scope", "board": "board_scope"}
_SCOPES: dict[Component, Scope] = {"gpu": "gpu", "cpu": "package", "dram": "dram"}


def _counter_curves(rows: list[Reading], *, late: bool) -> list[EnergyCurve]:
    """Return the curves through the counter of one device: a new one begins after every reset."""
    curves: list[list[tuple[int, int]]] = [[]]
    offset = 0
    last: tuple[int, int] | None = None
    for row in rows:
        if row.energy_uj is None or (last is not None and row.t_ns == last[0]):
            continue
        if last is not None:
            gap, step = row.t_ns - last[0], row.energy_uj - last[1]
            if step < 0 and row.wrap_uj is not None and gap <= MAX_WRAP_GAP_NS:
                step += row.wrap_uj
                offset += row.wrap_uj
            if step < 0 or (row.wrap_uj is not None and not _plausible(step, gap, row.wrap_uj)):
                curves.append([])
                offset = 0
        curves[-1].append((row.t_ns, row.energy_uj + offset))
        last = (row.t_ns, row.energy_uj)
    return [EnergyCurve(points, late=late) for points in curves if len(points) > 1]


def _plausible(step_uj: int, gap_ns: int, wrap_uj: int) -> bool:
    """Whether a RAPL counter can have made this step, and cannot have wrapped around unseen."""
    most = max(gap_ns, DEFAULT_PERIOD_NS) * MAX_ZONE_WATTS // 1000  # 1 µJ/ns is 1000 W
    return step_uj <= most < wrap_uj


def _power_curve(rows: list[Reading]) -> EnergyCurve | None:
    """Return the integral of the power samples of one device, each held until the next (zero-order hold)."""
    samples = sorted({row.t_ns: row.power_mw for row in rows if row.power_mw is not None}.items())
    if len(samples) < 2:
        return None
    total, points = 0, [(samples[0][0], 0)]
    for (t0, milliwatts), (t1, _) in pairwise(samples):
        total += milliwatts * (t1 - t0)
        points.append((t1, total // 1_000_000))  # mW·ns are picojoules
    return EnergyCurve(points)


@dataclass
class _Channel:
    """All rows of one device by one source, in order of time, and the curves through them."""

    source: str
    component: Component
    device: str
    rows: list[Reading]
    error_times: list[int]
    meter: type[Meter] = field(init=False)
    counters: list[EnergyCurve] = field(init=False)
    integral: EnergyCurve | None = field(init=False)

    def __post_init__(self) -> None:
        self.meter = meter_class(self.source)
        self.counters = _counter_curves(self.rows, late=self.meter.steps)
        self.integral = _power_curve(self.rows)

    def mirrors(self, other: _Channel) -> bool:
        """Whether both are one counter seen twice, through two dies of a package: same start and same energy within 1 J."""
        if not self.meter.mirrored or (self.source, self.component) != (other.source, other.component):
            return False
        if not self.counters or not other.counters:
            return False
        mine, theirs = self.counters[0].energies, other.counters[0].energies
        return abs(mine[0] - theirs[0]) <= MIRROR_UJ and abs(mine[-1] - mine[0] - theirs[-1] + theirs[0]) <= MIRROR_UJ

    def reading(self, t0: int, t1: int, without: Sequence[tuple[int, int]] = ()) -> EnergyReading | None:
        """Return the energy between t0 and t1 without that of the pauses `without`, or None if the rows cannot tell."""
        counter, flags = self._whole_counter(t0, t1)
        flags += ["unverified_meter"] if self.meter.unverified else []
        provenance = self._provenance(counter, t0, t1)
        curve = counter or self.integral
        if curve is None:
            return None
        a, b = max(t0, curve.start), min(t1, curve.end)
        if b <= a or (b - a) / (t1 - t0) < MIN_COVERAGE:
            return None
        if curve.late and not curve.changes(a, b) and b - a < 2 * curve.period:
            return None  # not read inside the window, or not published since: unknown, not 0
        period = curve.period if self.component == "gpu" and provenance is not Provenance.INTEGRATED_SAMPLES else 0
        if self.meter.always_moves and not curve.changes(a, b) and b - a > MIN_WINDOW_NS:
            return None  # a processor that runs draws power: this counter does not work
        paused = sum(max(0, min(t1, end) - max(t0, start)) for start, end in without)
        if t1 - t0 - paused < max(MIN_WINDOW_NS, MIN_WINDOW_PERIODS * period):
            flags.append("window_too_short")
        if self.component == "gpu" and provenance is Provenance.INTEGRATED_SAMPLES:
            flags.append("sampled_power")
        errors = bisect_right(self.error_times, t1) - bisect_left(self.error_times, t0)
        if curve.gap(a, b) or errors > MAX_ERROR_SHARE * (errors + curve.count(a, b)):
            flags.append("gap")
        pauses = [(max(a, start), min(b, end)) for start, end in without if max(a, start) < min(b, end)]
        return self._make(curve, a, b, t1 - t0 - paused, provenance, flags, pauses)

    def _whole_counter(self, t0: int, t1: int) -> tuple[EnergyCurve | None, list[str]]:
        """Return the counter curve that is valid for the whole window, or a flag that says why there is none."""
        for i, curve in enumerate(self.counters):
            opens = i == 0 or t0 >= curve.start
            closes = i == len(self.counters) - 1 or t1 <= curve.end
            if opens and closes:
                long = curve.end - curve.start >= 2 * curve.period
                if long and len(curve.knot_times) == 1 and self.integral is not None and self.integral.energies[-1]:
                    return None, ["counter_stuck"]  # it stands still while power flows
                return (None, ["counter_stuck"]) if self._stuck(curve, t0, t1) else (curve, [])
        return None, ["counter_reset"] if self.counters else []

    def _stuck(self, curve: EnergyCurve, t0: int, t1: int) -> bool:
        """Whether a counter stands still for too long in the window although power samples show that power flows."""
        if self.integral is None or not self.meter.steps:
            return False
        a, b = curve.still(t0, t1)
        a, b = max(a, self.integral.start), min(b, self.integral.end)
        patience = max(MIN_WINDOW_NS, MIN_WINDOW_PERIODS * curve.period)
        return b - a > patience and self.integral.at(b) > self.integral.at(a)

    def _provenance(self, counter: EnergyCurve | None, t0: int, t1: int) -> Provenance:
        if self.meter.nature == "imported":
            return Provenance.IMPORTED
        if self.meter.nature == "estimated":
            constant = self.rows[-1].mode == "constant"
            return Provenance.ESTIMATED_TDP if constant else Provenance.ESTIMATED_MODEL
        if counter is None:
            return Provenance.INTEGRATED_SAMPLES
        exact = all(counter.exact(min(max(t, counter.start), counter.end)) for t in (t0, t1))
        return Provenance.MEASURED_COUNTER if exact else Provenance.MEASURED_COUNTER_INTERP

    def _make(
        self,
        curve: EnergyCurve,
        a: int,
        b: int,
        window: int,
        provenance: Provenance,
        flags: list[str],
        pauses: list[tuple[int, int]],
    ) -> EnergyReading | None:
        edges = [a, b, *(edge for pause in pauses for edge in pause)]
        joules = (curve.at(b) - curve.at(a) - sum(curve.at(end) - curve.at(start) for start, end in pauses)) / 1e6
        seconds = (b - a - sum(end - start for start, end in pauses)) / 1e9
        if seconds <= 0:
            return None
        powers = [row.power_mw for row in self.rows if row.power_mw is not None and a <= row.t_ns <= b]
        mode = self.rows[-1].mode
        if mode in _MODE_FLAGS:
            flags.append(_MODE_FLAGS[mode])
        bound = sum(map(curve.edge_bound, edges)) / 1e6 if len(curve.knot_times) > 1 else None
        if provenance.measured and bound is not None and bound > WIDE_EDGES * joules:
            flags.append("wide_edges")
        return EnergyReading(
            component=self.component,
            device=self.device,
            energy_joules=joules,
            seconds=seconds,
            power_watts_mean=joules / seconds,
            power_watts_max=max(powers) / 1e3 if powers else None,
            source=self.source,
            provenance=provenance,
            coverage=min(1.0, seconds * 1e9 / window),
            # Samples say nothing about the power between them, so they have no bound.
            uncertainty_joules=bound if provenance.measured and "sampled_power" not in flags else None,
            gain_share=GAIN_SHARE[self.component] if provenance.measured else None,
            scope=self._scope(mode),
            samples=curve.count(a, b),
            detail=mode or "",
            flags=flags,
        )

    def _scope(self, mode: str | None) -> Scope | None:
        if self.component == "gpu" and mode == "module":
            return "module"
        return self.meter.scope or _SCOPES.get(self.component)


class Trace:
    """The rows of one node's meters, and the energy of any window of them."""

    def __init__(self, rows: Iterable[Reading]) -> None:
        self.rows = sorted(rows, key=lambda row: row.t_ns)
        self.events = [row for row in self.rows if row.event is not None]
        self.damaged_lines = 0
        groups: dict[tuple[str, Component, str], list[Reading]] = {}
        errors: dict[tuple[str | None, str | None], list[int]] = {}
        for row in self.rows:
            if row.event is None and row.source and row.component and row.device:
                groups.setdefault((row.source, row.component, row.device), []).append(row)
            elif row.event == "error":
                errors.setdefault((row.source, row.device), []).append(row.t_ns)
        self._channels: list[_Channel] = []
        for (source, component, device), group in sorted(groups.items()):
            channel = _Channel(source, component, device, group, errors.get((source, device), []))
            if not any(channel.mirrors(kept) for kept in self._channels):
                self._channels.append(channel)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `.jsonl` or `.parquet` trace. Damaged lines (from a crash while writing) are counted and left out."""
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with path.open("rb") as file:  # its name may be more than UTF-8, which pyarrow refuses
                return cls(Reading(**values) for values in pq.read_table(file).to_pylist())
        rows, damaged = [], 0
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    rows.append(Reading.from_json(line))
                except ValueError:
                    damaged += bool(line.strip())
        trace = cls(rows)
        trace.damaged_lines = damaged
        return trace

    def write_parquet(self, path: Path) -> None:
        """Write all rows; the file appears complete or not at all. Raises OSError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(f.name, pa.int64() if f.name in INTEGERS else pa.string()) for f in fields(Reading)])
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            table = pa.Table.from_pylist([asdict(row) for row in self.rows], schema)
            with temporary.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def devices(self) -> list[tuple[str, Component, str]]:
        """Source, component and device of everything that was read; mirrored counters once."""
        return [(c.source, c.component, c.device) for c in self._channels]

    def energy(self, t0_ns: int, t1_ns: int, without: Sequence[tuple[int, int]] = ()) -> list[EnergyReading]:
        """Return one reading for each source, component and device whose energy between the two times is known.

        A counter gives a difference, interpolated between the changes around each edge. Power samples are integrated if
        there is no counter, or if it was reset inside the window. A reading is left out if it spans less than half of the
        window, or if its counter did not change in less than two of its periods: absent, never 0. `energy_joules` and
        `seconds` are those of the part that the readings span (`coverage`). `uncertainty_joules` is the energy of the
        steps of the curve that contain the edges; estimates have none, because the error of their model is larger.
        `without` are pauses in the window, as (start, end), that do not overlap: their energy and time are left out, however
        short they are. Raises ValueError for an empty window.
        """
        if t1_ns <= t0_ns:
            raise ValueError(f"a window must end after it starts, not {t0_ns} to {t1_ns}")
        readings = (channel.reading(t0_ns, t1_ns, without) for channel in self._channels)
        return [reading for reading in readings if reading is not None]

    def power(self, component: Component, device: str) -> list[tuple[int, float]]:
        """Return (time in ns, watts) of a device for a plot: its power samples, or the slope of its counter without them."""
        for channel in self._channels:
            if (channel.component, channel.device) != (component, device):
                continue
            samples = [(row.t_ns, row.power_mw / 1e3) for row in channel.rows if row.power_mw is not None]
            return samples or [
                (t1, (e1 - e0) / (t1 - t0) * 1e3)
                for curve in channel.counters
                for (t0, e0), (t1, e1) in pairwise(zip(curve.knot_times, curve.energies, strict=True))
            ]
        return []
