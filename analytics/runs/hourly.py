"""Carbon intensity and price of electricity by the hour, from a file of the user, and their means over a run.

The energy of a run is assumed to be spread evenly over its seconds, so its rate is the time-weighted mean of its hours.
Gaps are not filled: hours that the file does not cover are an error.
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
"""kg CO2e/kWh. The dirtiest coal plant emits about a third of this, so a larger value has another unit."""
_MOST_STARTS = 24 * 31
_SAME = 1e-3
"""Starts whose emissions differ by less than this share are equal."""
_COLUMNS = (
    "it needs the columns time (ISO 8601) or hour (0 to 23, UTC), kg_per_kwh or g_per_kwh; usd_per_kwh is optional"
)


@dataclass(frozen=True)
class Rates:
    """Emissions of one kWh in kg CO2e and, if the file has prices, its price in USD."""

    kg_per_kwh: float
    usd_per_kwh: float | None


@dataclass(frozen=True)
class Starts:
    """Emissions of runs in kg CO2e by the hour (UTC) of their start, and `was` for the real start `began`.

    `dated` is false where the file describes a day that repeats.
    """

    kg: dict[datetime, float]
    was: float
    began: datetime
    dated: bool

    @property
    def best(self) -> datetime | None:
        """The first hour with the lowest emissions; None if the hour does not matter."""
        best = min(self.kg, key=lambda start: self.kg[start])
        return best if self.kg[best] < (1 - _SAME) * max(*self.kg.values(), self.was) else None


@dataclass(frozen=True)
class Hourly:
    """Rates by slot. A slot is `step` long; slots count from `first`, or from midnight UTC of a day that repeats (None)."""

    name: str
    first: datetime | None
    step: timedelta
    rows: dict[int, Rates]

    @property
    def priced(self) -> bool:
        """Whether the file has prices."""
        return next(iter(self.rows.values())).usd_per_kwh is not None

    def mean(self, start: datetime, seconds: float) -> Rates:
        """Return the time-weighted mean rates over `seconds` from `start`. Raises ValueError where a slot is missing."""
        parts = list(self._parts(start.astimezone(UTC), timedelta(seconds=seconds)))
        whole = math.fsum(weight for weight, _ in parts)
        kg = math.fsum(weight * rates.kg_per_kwh for weight, rates in parts) / whole
        usd = math.fsum(weight * (rates.usd_per_kwh or 0) for weight, rates in parts) / whole
        return Rates(kg, usd if self.priced else None)

    def _parts(self, now: datetime, length: timedelta) -> Iterator[tuple[float, Rates]]:
        """Yield the seconds that fall into each slot and its rates; a length of 0 has the weight 1."""
        end = now + length
        while True:
            origin = self.first or now.replace(hour=0, minute=0, second=0, microsecond=0)
            slot = (now - origin) // self.step
            begin = origin + slot * self.step
            if slot not in self.rows:
                raise BadValue(f"{self.name} does not cover {begin:%Y-%m-%d %H:%M} UTC; it has {self._covers()}")
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
        """Return what the runs would have emitted for each hour of start; None without runs or a whole day of rates.

        `runs` are (start, seconds, kWh with PUE). They are shifted together, so that the first starts on the hour. The
        hours are those of the day of the runs or, for a file with dates, those of the file (at most 31 days, from the day
        of the runs on). Hours from which the file does not cover all runs are left out.
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
        emissions = {}
        for hour in range(hours):
            with suppress(ValueError):
                emissions[first + hour * _HOUR] = kg(first + hour * _HOUR - begun)
        return Starts(emissions, kg(timedelta()), begun, dated=self.first is not None) if emissions else None

    @property
    def _whole_day(self) -> bool:
        return self.first is None or (max(self.rows) + 1) * self.step >= timedelta(hours=24)


def read_hourly(path: Path) -> Hourly:
    """Read a CSV file of rates.

    Columns: `time` (ISO 8601, UTC by default) or `hour` (0 to 23, UTC), `kg_per_kwh` or `g_per_kwh` (CO2e) and optionally
    `usd_per_kwh`. A row is valid for an hour, or until the next row if that is closer. Raises BadValue with the line of
    the first mistake, and where the file cannot be read.
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
    when, kg = ([name for name in allowed if name in names] for allowed in (("time", "hour"), _KG))
    if len(when) != 1 or len(kg) != 1 or not rows:
        raise BadValue(f"{path.name} has {'the columns ' + ', '.join(names) if rows else 'no rows'}; {_COLUMNS}")
    slots: dict[datetime | int, Rates] = {}
    for line, row in rows:
        place = f"{path.name}, line {line}"
        parse: Callable[[str], datetime | int] = _time if when[0] == "time" else _hour_of_day
        key = _read(row, when[0], place, parse)
        if key in slots:
            raise BadValue(f"{place}: {when[0]} {row[when[0]]!r} is a duplicate")
        usd = _read(row, _USD, place, _amount) if _USD in names else None
        carbon = _read(row, kg[0], place, _amount) * _KG[kg[0]]
        if carbon > _MOST:
            hint = "; values in g belong in the column g_per_kwh" if _KG[kg[0]] == 1 else ""
            most = f"{_MOST / _KG[kg[0]]:g}, which no grid emits"
            raise BadValue(f"{place}: {kg[0]} {row[kg[0]].strip()} is above {most}{hint}")
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
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("a time such as 2026-01-31T13:00Z") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


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
