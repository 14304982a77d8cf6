"""A meter trace: rows as the meters read them, and the energy of any window of time, made from them afterwards.

On disk a trace is one JSON object a line while it grows, and parquet when it is kept. All times are CLOCK_MONOTONIC in
nanoseconds; the wall clock is recorded and never used. Energy is integer microjoules until a reading is made: that of a
window is the difference of one function of time at its two edges, so that adjacent windows add up exactly.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal, Self, get_args

from bench.record import EnergyReading, Provenance

Source = Literal["nvml", "rapl", "codecarbon", "replay"]
Component = Literal["gpu", "cpu", "dram", "node"]
_SOURCES, _COMPONENTS = get_args(Source), get_args(Component)
_INTEGERS = ("t_ns", "wall_ns", "energy_uj", "power_mw", "wrap_uj")

SECOND = 1_000_000_000
INTERVAL = 0.095
"""Seconds between readings of a GPU: a little less than the 100 ms between two steps of its counter, so that none is missed
and the times of the steps come out, which readings in step with it would not tell (see `_steps`)."""
MIN_WINDOW_NS = 2 * SECOND
"""Below this, and below 20 periods of a GPU's counter, a reading carries the flag `window_too_short`."""
MIN_WINDOW_PERIODS = 20
DEFAULT_PERIOD_NS = 100_000_000
"""Period of an energy counter that was never seen to change twice: that of NVIDIA GPUs."""
MIN_COVERAGE = 0.5
MIN_STEPS, MAX_CHANGED_SHARE = 8, 0.98
"""A counter is taken for one that is published in steps when so many were seen, and readings between them found none."""
FIT_STEPS, MAX_OUTSIDE_SHARE = 300, 0.1
MAX_GAP_NS = SECOND
WIDE_EDGES = 0.1
"""Share of the energy of a window that the bound of its edges may be before the reading says so."""
MAX_ERROR_SHARE = 0.01
MAX_WRAP_GAP_NS = 10 * SECOND
MAX_ZONE_WATTS = 1000
"""More than any CPU package draws: a counter step that needs more is a reset or an unknown number of wraps."""
MIRROR_UJ = 1_000_000
GAIN_SHARE = {"gpu": 0.05, "cpu": 0.05, "dram": 0.10, "node": 0.05}
"""Bounds of a sensor's gain, assumed: GPUs by a study of twelve models with an external meter (Yang, Adamek, Armour, SC'24),
of which data-centre parts erred by 5 %; RAPL packages and DRAM by a guess that papers make plausible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of one device, or an event.

    `energy_uj` is a cumulative counter in microjoules, `power_mw` instant power in milliwatts, `wrap_uj` the range
    after which the counter starts again. What a device does not report is None. Raises ValueError for anything else.
    """

    t_ns: int
    wall_ns: int
    source: Source | None = None
    component: Component | None = None
    device: str | None = None
    energy_uj: int | None = None
    power_mw: int | None = None
    wrap_uj: int | None = None
    mode: str | None = None
    event: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        numbers = self.t_ns, self.wall_ns, self.energy_uj or 0, self.power_mw or 0, self.wrap_uj or 0
        if any(type(value) is not int or value < 0 for value in numbers):
            given = {name: getattr(self, name) for name in _INTEGERS}
            raise ValueError(f"t_ns, wall_ns and counters must be whole numbers from 0: {given}")
        if self.event is None:
            if self.source not in _SOURCES or self.component not in _COMPONENTS or not self.device:
                raise ValueError(f"a reading needs a source, a component and a device: {self}")
            if self.energy_uj is None and self.power_mw is None:
                raise ValueError(f"a reading needs energy or power: {self}")

    def to_json(self) -> str:
        """Return one line of JSON without its end; what is None is left out."""
        return _encode({name: value for name in _NAMES if (value := getattr(self, name)) is not None})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Return the row of a line; unknown fields are ignored. Raises ValueError for a damaged line."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"not a row: {line[:80]!r}")
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except TypeError as error:
            raise ValueError(f"not a row: {line[:80]!r}") from error


_NAMES = tuple(f.name for f in fields(Reading))
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: the sampler writes ten rows a second for each GPU


class _Curve:
    """Cumulative energy of a device as a function of time, straight between knots: in integer microjoules.

    The knots of integrated power, and of a counter that is read more seldom than it is published, are its readings. Of a
    counter that is published in steps (every 100 ms on NVIDIA GPUs) they are the steps, see `_steps`: the energy between
    two of them is known exactly, and only that at the edges of a window is interpolated.
    """

    def __init__(self, points: list[tuple[int, int]], *, late: bool = False) -> None:
        """Take (time, cumulative energy) points, at least two, in order of time; `late`: a reading may be out of date."""
        self.late = late
        self.times = [t for t, _ in points]
        self.values = [e for _, e in points]
        self.start, self.end = self.times[0], self.times[-1]
        changed = [i for i in range(1, len(points)) if self.values[i] != self.values[i - 1]]
        self.stepped = late and MIN_STEPS <= len(changed) < MAX_CHANGED_SHARE * (len(points) - 1)
        self.energies = [self.values[0], *(self.values[i] for i in changed)]
        if self.stepped:
            steps = _steps([(self.times[i - 1], self.times[i]) for i in changed])
            self.knot_times = [2 * steps[0] - steps[1], *steps]
            if self.end - steps[-1] <= 2 * self.period:  # it goes on: the last step is not the end of the energy
                self.knot_times.append(2 * steps[-1] - steps[-2])
                self.energies.append(2 * self.energies[-1] - self.energies[-2])
        else:
            self.knot_times = [self.start, *(self.times[i] for i in changed)]

    def at(self, t: int) -> int:
        """Return the energy until t, which lies between start and end, rounded down: so that differences add up."""
        i = bisect_right(self.knot_times, t) - 1
        if i < 0 or i + 1 == len(self.knot_times):
            return self.energies[max(i, 0)]
        t0, t1 = self.knot_times[i : i + 2]
        e0, e1 = self.energies[i : i + 2]
        return e0 + (e1 - e0) * (t - t0) // (t1 - t0)

    def edge_bound(self, t: int) -> int:
        """Return a bound of the error of `at`.

        What was read until t had been drawn by then; what is read at t or later contains all that was, if only one period
        later where readings may be out of date.
        """
        before = max(bisect_right(self.times, t) - 1, 0)
        after = bisect_left(self.times, t + (self.period if self.late else 0))
        low = self.values[before]
        high = self.values[after] if after < len(self.values) else 2 * self.energies[-1] - self.energies[-2]
        return max(self.at(t) - low, high - self.at(t))

    def exact(self, t: int) -> bool:
        """Whether t is the time of a reading that was up to date, and not between two."""
        i = bisect_left(self.times, t)
        return not self.late and i < len(self.times) and self.times[i] == t

    def changes(self, t0: int, t1: int) -> int:
        """Count the new values seen after t0 until t1."""
        return bisect_right(self.knot_times, t1) - bisect_right(self.knot_times, t0)

    def count(self, t0: int, t1: int) -> int:
        """Count the readings from t0 to t1."""
        return bisect_right(self.times, t1) - bisect_left(self.times, t0)

    def still(self, t0: int, t1: int) -> tuple[int, int]:
        """Return the first and the last time of the longest stretch of readings from t0 to t1 that show one value."""
        found, begin = (0, 0), bisect_left(self.times, t0)
        for i in range(begin, bisect_right(self.times, t1)):
            begin = begin if self.values[i] == self.values[begin] else i
            found = max(found, (self.times[begin], self.times[i]), key=lambda edges: edges[1] - edges[0])
        return found

    @cached_property
    def period(self) -> int:
        """Median time between changes in nanoseconds."""
        if len(self.knot_times) < 3:
            return DEFAULT_PERIOD_NS
        return int(median(b - a for a, b in pairwise(self.knot_times)))

    @cached_property
    def longest_gap(self) -> int:
        """Nanoseconds that readings may be apart: 1 s, or three of their median distances where that is more."""
        return max(MAX_GAP_NS, 3 * int(median(b - a for a, b in pairwise(self.times))))

    def gap(self, t0: int, t1: int) -> bool:
        """Whether readings around and inside the window are further apart than `longest_gap`."""
        inside = self.times[max(bisect_right(self.times, t0) - 1, 0) : bisect_left(self.times, t1) + 1]
        return any(b - a > self.longest_gap for a, b in pairwise(inside))


def _steps(brackets: list[tuple[int, int]]) -> list[int]:
    """Estimate when a counter was published, from the times (before, after) of the readings between which it changed.

    It is published at a steady pace and read at another, quicker one: so there is next to one line only, time over number
    of the step, that goes through all brackets, and it tells the steps to a few milliseconds. Where readings came late
    a step may have been missed: a new line begins there. Where the pace is not steady the middles are taken.
    """
    pace = (brackets[-1][1] - brackets[0][1]) / (len(brackets) - 1)
    stretches: list[list[tuple[int, int]]] = [[]]
    for a, b in brackets:
        if b - a > 1.2 * pace or len(stretches[-1]) == FIT_STEPS:
            stretches.append([])
        stretches[-1].append((a, b))
    return [t for stretch in stretches for t in _on_a_line(stretch, pace)]


def _on_a_line(brackets: list[tuple[int, int]], pace: float) -> list[int]:
    """Put steps on the line that leaves most room within all brackets; each stays within its own."""
    middles = [(a + b) // 2 for a, b in brackets]
    if len(brackets) < MIN_STEPS:
        return middles

    def room(slope: float) -> tuple[float, float]:
        """Least and greatest start of a line of this slope; the distance is a concave function of it."""
        starts = [(a - slope * n, b - slope * n) for n, (a, b) in enumerate(brackets)]
        return max(a for a, _ in starts), min(b for _, b in starts)

    low, high = 0.8 * pace, 1.2 * pace
    while high - low > 1_000:  # a microsecond
        left, right = low + (high - low) / 3, high - (high - low) / 3
        (a0, b0), (a1, b1) = room(left), room(right)
        low, high = (left, high) if b0 - a0 < b1 - a1 else (low, right)
    first, last = room(low)
    if first - last > MAX_OUTSIDE_SHARE * pace:
        return middles
    start = (first + last) / 2
    return [min(max(round(start + low * n), a), b) for n, (a, b) in enumerate(brackets)]


def _counter_curves(rows: list[Reading]) -> list[_Curve]:
    """Return the curves through the counter of one device: one, and one more after every reset."""
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
    late = rows[0].source == "nvml" if rows else False  # others are read more seldom than they are published
    return [_Curve(points, late=late) for points in curves if len(points) > 1]


def _plausible(step_uj: int, gap_ns: int, wrap_uj: int) -> bool:
    """Whether a RAPL counter can have made this step, and cannot have gone all the way round unseen."""
    most = max(gap_ns, DEFAULT_PERIOD_NS) * MAX_ZONE_WATTS // 1000  # 1 µJ/ns is 1000 W
    return step_uj <= most < wrap_uj


def _power_curve(rows: list[Reading]) -> _Curve | None:
    """Return the integral of the power samples of one device, each held until the next (zero-order hold)."""
    samples = sorted({row.t_ns: row.power_mw for row in rows if row.power_mw is not None}.items())
    if len(samples) < 2:
        return None
    total, points = 0, [(samples[0][0], 0)]
    for (t0, milliwatts), (t1, _) in pairwise(samples):
        total += milliwatts * (t1 - t0)
        points.append((t1, total // 1_000_000))  # mW·ns are picojoules
    return _Curve(points)


@dataclass
class _Channel:
    """All rows of one device by one source, in order of time, and the curves through them."""

    source: Source
    component: Component
    device: str
    rows: list[Reading]
    error_times: list[int]
    counters: list[_Curve] = field(init=False)
    integral: _Curve | None = field(init=False)

    def __post_init__(self) -> None:
        self.counters = _counter_curves(self.rows)
        self.integral = _power_curve(self.rows)

    def mirrors(self, other: _Channel) -> bool:
        """Whether both are one RAPL counter seen through two dies of a package: same start, same energy, within 1 J."""
        if (self.source, self.component) != ("rapl", other.component) or other.source != "rapl":
            return False
        if not self.counters or not other.counters:
            return False
        mine, theirs = self.counters[0].energies, other.counters[0].energies
        return abs(mine[0] - theirs[0]) <= MIRROR_UJ and abs(mine[-1] - mine[0] - theirs[-1] + theirs[0]) <= MIRROR_UJ

    def reading(self, t0: int, t1: int, without: Sequence[tuple[int, int]] = ()) -> EnergyReading | None:
        """Return the energy between t0 and t1 less that of the pauses `without`, or None when the rows do not tell."""
        counter, flags = self._whole_counter(t0, t1)
        provenance = self._provenance(counter, t0, t1)
        curve = counter or self.integral
        if curve is None:
            return None
        a, b = max(t0, curve.start), min(t1, curve.end)
        if b <= a or (b - a) / (t1 - t0) < MIN_COVERAGE:
            return None
        if curve.late and not curve.changes(a, b) and b - a < 2 * curve.period:
            return None  # not read inside the window, or read and not published: unknown, not 0
        period = curve.period if self.component == "gpu" and provenance is not Provenance.INTEGRATED_SAMPLES else 0
        if self.source == "rapl" and not curve.changes(a, b) and b - a > MIN_WINDOW_NS:
            return None  # a processor that runs draws something: this zone is not counting
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

    def _whole_counter(self, t0: int, t1: int) -> tuple[_Curve | None, list[str]]:
        """Return the counter curve that holds for the whole window, or why there is none."""
        for i, curve in enumerate(self.counters):
            opens = i == 0 or t0 >= curve.start
            closes = i == len(self.counters) - 1 or t1 <= curve.end
            if opens and closes:
                long = curve.end - curve.start >= 2 * curve.period
                if long and len(curve.knot_times) == 1 and self.integral is not None and self.integral.energies[-1]:
                    return None, ["counter_stuck"]  # it stands still while power flows
                return (None, ["counter_stuck"]) if self._stuck(curve, t0, t1) else (curve, [])
        return None, ["counter_reset"] if self.counters else []

    def _stuck(self, curve: _Curve, t0: int, t1: int) -> bool:
        """Whether a GPU's counter stands still for too long in the window while its power samples say that power flows."""
        if self.integral is None or self.source != "nvml":
            return False
        a, b = curve.still(t0, t1)
        a, b = max(a, self.integral.start), min(b, self.integral.end)
        patience = max(MIN_WINDOW_NS, MIN_WINDOW_PERIODS * curve.period)
        return b - a > patience and self.integral.at(b) > self.integral.at(a)

    def _provenance(self, counter: _Curve | None, t0: int, t1: int) -> Provenance:
        if self.source == "replay":
            return Provenance.IMPORTED
        if self.source == "codecarbon":
            constant = self.rows[-1].mode == "constant"
            return Provenance.ESTIMATED_TDP if constant else Provenance.ESTIMATED_MODEL
        if counter is None:
            return Provenance.INTEGRATED_SAMPLES
        exact = all(counter.exact(min(max(t, counter.start), counter.end)) for t in (t0, t1))
        return Provenance.MEASURED_COUNTER if exact else Provenance.MEASURED_COUNTER_INTERP

    def _make(
        self,
        curve: _Curve,
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
        if mode in ("mig", "module"):
            flags.append(f"{mode}_shared" if mode == "mig" else "module_scope")
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
            # Samples say nothing of what was drawn between them, so they have no bound.
            uncertainty_joules=bound if provenance.measured and "sampled_power" not in flags else None,
            gain_share=GAIN_SHARE[self.component] if provenance.measured else None,
            scope=self._scope(mode),
            samples=curve.count(a, b),
            detail=mode or "",
            flags=flags,
        )

    def _scope(self, mode: str | None) -> Literal["gpu", "module", "package", "dram", "machine"] | None:
        if self.source == "codecarbon":
            return "machine"
        if self.component == "gpu":
            return "module" if mode == "module" else "gpu"
        return {"cpu": "package", "dram": "dram"}.get(self.component)  # type: ignore[return-value]


class Trace:
    """The rows of one node's meters, and the energy of any window of them."""

    def __init__(self, rows: Iterable[Reading]) -> None:
        self.rows = sorted(rows, key=lambda row: row.t_ns)
        self.events = [row for row in self.rows if row.event is not None]
        self.damaged_lines = 0
        groups: dict[tuple[Source, Component, str], list[Reading]] = {}
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
        """Read a `.jsonl` or `.parquet` trace. A damaged line (a crash while writing) is counted and left out."""
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return cls(Reading(**values) for values in pq.read_table(path).to_pylist())
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
        """Write all rows; the file appears whole or not at all. Raises OSError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(f.name, pa.int64() if f.name in _INTEGERS else pa.string()) for f in fields(Reading)])
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(
                pa.Table.from_pylist([asdict(row) for row in self.rows], schema), temporary, compression="zstd"
            )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def devices(self) -> list[tuple[Source, Component, str]]:
        """Source, component and device of everything that was read; mirrored RAPL packages once."""
        return [(c.source, c.component, c.device) for c in self._channels]

    def energy(self, t0_ns: int, t1_ns: int, without: Sequence[tuple[int, int]] = ()) -> list[EnergyReading]:
        """Return one reading for each source, component and device that can tell its energy between the two times.

        Counters are differences, interpolated between the changes around each edge; where there is no counter, or a
        reset inside the window, power samples are integrated. A reading that spans less than half of the window, or a
        counter that did not move in less than two of its periods, is left out: absent, never 0. `energy_joules` and
        `seconds` are those of the part that the readings span (`coverage`). `uncertainty_joules` is the energy of the
        steps of the curve that hold the edges; estimates carry none, their model errs by more. `without` are pauses in
        the window, from and to, that do not overlap: their energy and time are left out, however short they are. Raises
        ValueError for an empty window.
        """
        if t1_ns <= t0_ns:
            raise ValueError(f"a window ends after it starts, not {t0_ns} to {t1_ns}")
        readings = (channel.reading(t0_ns, t1_ns, without) for channel in self._channels)
        return [reading for reading in readings if reading is not None]

    def power(self, component: Component, device: str) -> list[tuple[int, float]]:
        """Return (time in ns, watts) of a device for a plot: its power samples, or else the slope of its counter."""
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
