"""Carbon intensity and price of electricity by the hour, from a file of the user's: what a run met while it ran.

Energy is taken as spread evenly over a run's seconds, so a run meets the time-weighted mean of the hours that it touched.
Nothing is filled in: hours that the file does not cover are an error.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from bench.errors import BadValue

_Value = TypeVar("_Value")
_HOUR = timedelta(hours=1)
_KG = {"kg_per_kwh": 1.0, "g_per_kwh": 1e-3}
_USD = "usd_per_kwh"
_MOST = 3.0
"""kg CO2e/kWh: what the dirtiest coal plant emits is about a third of it, so more is another unit."""
_MOST_STARTS = 24 * 31
_SAME = 1e-3
"""Starts that differ by less than this share are equal."""
_WANTED = "wanted columns: time (ISO 8601) or hour (0 to 23, UTC), kg_per_kwh or g_per_kwh, and perhaps usd_per_kwh"


@dataclass(frozen=True)
class Rates:
    """What one kWh takes: kg CO2e and, where the file says it, USD."""

    kg_per_kwh: float
    usd_per_kwh: float | None


@dataclass(frozen=True)
class Starts:
    """kg CO2e of runs by the hour (UTC) at which they would begin, and `was` as they began; `dated`: no day that repeats."""

    kg: dict[datetime, float]
    was: float
    began: datetime
    dated: bool

    @property
    def best(self) -> datetime | None:
        """The hour of the least, the first of equals; None where it does not matter."""
        best = min(self.kg, key=lambda start: self.kg[start])
        return best if self.kg[best] < (1 - _SAME) * max(*self.kg.values(), self.was) else None


@dataclass(frozen=True)
class Hourly:
    """Rates by slots of time, each `step` long, counted from `first`, or from midnight UTC in a day that repeats (None)."""

    name: str
    first: datetime | None
    step: timedelta
    rows: dict[int, Rates]

    @property
    def priced(self) -> bool:
        """Whether the file has prices too."""
        return next(iter(self.rows.values())).usd_per_kwh is not None

    def mean(self, start: datetime, seconds: float) -> Rates:
        """Return the time-weighted mean over `seconds` from `start`. Raises ValueError for time that is not covered."""
        parts = list(self._parts(start.astimezone(UTC), timedelta(seconds=seconds)))
        whole = math.fsum(weight for weight, _ in parts)
        kg = math.fsum(weight * rates.kg_per_kwh for weight, rates in parts) / whole
        usd = math.fsum(weight * (rates.usd_per_kwh or 0) for weight, rates in parts) / whole
        return Rates(kg, usd if self.priced else None)

    def _parts(self, now: datetime, length: timedelta) -> Iterator[tuple[float, Rates]]:
        """Yield the seconds that fall into each slot, with its rates; an instant weighs 1."""
        end = now + length
        while True:
            origin = self.first or now.replace(hour=0, minute=0, second=0, microsecond=0)
            slot = (now - origin) // self.step
            begin = origin + slot * self.step
            if slot not in self.rows:
                raise BadValue(f"{self.name} says nothing of {begin:%Y-%m-%d %H:%M} UTC; it has {self._covers()}")
            until = min(begin + self.step, end)
            yield (until - now).total_seconds() if length else 1.0, self.rows[slot]
            now = until
            if now >= end:
                return

    def _covers(self) -> str:
        if self.first is None:
            return f"the hours {', '.join(map(str, sorted(self.rows)))}"
        last = self.first + (max(self.rows) + 1) * self.step
        return f"{len(self.rows)} rows from {self.first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"

    def starts(self, runs: Sequence[tuple[datetime, float, float]]) -> Starts | None:
        """Return what the runs would have emitted, begun on each hour; None for a file of less than a day, and without runs.

        `runs` are (start, seconds, kWh with PUE); all are moved together, so that the first begins on the hour: of the day
        in which they ran, or, where the file names days, of its span (31 days of it, from that of the runs). Hours at which
        the file does not cover them to their end cannot be chosen.
        """
        if not runs or not self._whole_day:
            return None
        begun = min(start for start, _, _ in runs).astimezone(UTC)

        def kg(shift: timedelta) -> float:
            return math.fsum(kwh * self.mean(start + shift, seconds).kg_per_kwh for start, seconds, kwh in runs)

        first, hours = begun.replace(hour=0, minute=0, second=0, microsecond=0), 24
        if self.first is not None:
            start = self.first.replace(minute=0, second=0, microsecond=0)
            start += _HOUR * (start < self.first)
            hours = (self.first + (max(self.rows) + 1) * self.step - start) // _HOUR
            if hours > _MOST_STARTS:
                start = min(max(start, first), start + (hours - _MOST_STARTS) * _HOUR)
            first, hours = start, min(hours, _MOST_STARTS)
        found = {}
        for hour in range(hours):
            with suppress(ValueError):
                found[first + hour * _HOUR] = kg(first + hour * _HOUR - begun)
        return Starts(found, kg(timedelta()), begun, dated=self.first is not None) if found else None

    @property
    def _whole_day(self) -> bool:
        return self.first is None or (max(self.rows) + 1) * self.step >= timedelta(hours=24)


def read_hourly(path: Path) -> Hourly:
    """Read a CSV file of rates.

    Columns: `time` (ISO 8601; UTC where it names no zone) or `hour` (0 to 23, UTC), `kg_per_kwh` or `g_per_kwh` (CO2e) and,
    if there are prices, `usd_per_kwh`. A row holds for an hour, or until the next where rows are closer. Raises BadValue
    where the file cannot be read, and with the line of the first mistake.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            names = [name.strip() for name in table.fieldnames or []]
            table.fieldnames = names
            rows = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadValue(f"{path.name} is not a CSV file: {error}") from error
    except OSError as error:
        raise BadValue(f"{path}: {error.strerror}") from error
    when, kg = ([name for name in known if name in names] for known in (("time", "hour"), _KG))
    if len(when) != 1 or len(kg) != 1 or not rows:
        raise BadValue(f"{path.name} has {'the columns ' + ', '.join(names) if rows else 'no rows'}; {_WANTED}")
    slots: dict[datetime | int, Rates] = {}
    for line, row in rows:
        place = f"{path.name}, line {line}"
        parse: Callable[[str], datetime | int] = _time if when[0] == "time" else _hour_of_day
        key = _read(row, when[0], place, parse)
        if key in slots:
            raise BadValue(f"{place}: {when[0]} {row[when[0]]!r} is there twice")
        usd = _read(row, _USD, place, _amount) if _USD in names else None
        carbon = _read(row, kg[0], place, _amount) * _KG[kg[0]]
        if carbon > _MOST:
            hint = " (g given as kg? then call the column g_per_kwh)" if _KG[kg[0]] == 1 else ""
            raise BadValue(
                f"{place}: {kg[0]} {row[kg[0]].strip()} is above {_MOST / _KG[kg[0]]:g}, which no grid emits{hint}"
            )
        slots[key] = Rates(carbon, usd)
    return _slotted(path.name, slots)


def _slotted(name: str, rates: dict[datetime | int, Rates]) -> Hourly:
    times = sorted(key for key in rates if isinstance(key, datetime))
    if not times:
        return Hourly(name, None, _HOUR, {key: value for key, value in rates.items() if isinstance(key, int)})
    step = min([_HOUR, *(later - earlier for earlier, later in pairwise(times))])
    odd = next((time for time in times if (time - times[0]) % step), None)
    if odd is not None:
        raise BadValue(f"{name}: {odd.isoformat()} is not a whole number of steps of {step} after the first row")
    return Hourly(name, times[0], step, {(time - times[0]) // step: rates[time] for time in times})


def _read(row: dict[str, str], name: str, place: str, parse: Callable[[str], _Value]) -> _Value:
    text = (row[name] or "").strip()
    try:
        return parse(text)
    except ValueError as error:
        raise BadValue(f"{place}: {name} {text!r} is not {error}") from error


def _time(text: str) -> datetime:
    try:
        read = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("a time as 2026-01-31T13:00Z") from error
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def _hour_of_day(text: str) -> int:
    if not text.isdecimal() or int(text) > 23:
        raise ValueError("an hour from 0 to 23")
    return int(text)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("a number of 0 or more")
    return value
