"""Carbon intensity and price of electricity by the hour, from a file of the user, and their means over a run.

The energy of a run is assumed to be spread evenly over its seconds, so its rate is the time-weighted mean of its hours.
Gaps are not filled: hours that the file does not cover are an error.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from bench.base import in_words
from bench.errors import BadValue

_HOUR = timedelta(hours=1)
_MOST = 3.0
"""kg CO2e/kWh. The dirtiest coal plant emits about a third of this, so a larger value has another unit."""
_MOST_STARTS = 24 * 31
_SAME = 1e-3
"""Starts whose emissions differ by less than this share are equal."""
_CHECKS: dict[str, TypeAdapter[Any]] = {
    "time": TypeAdapter(Annotated[datetime, BeforeValidator(datetime.fromisoformat)]),
    "hour": TypeAdapter(Annotated[int, Field(ge=0, le=23)]),
    "kg_per_kwh": TypeAdapter(Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]),
    "g_per_kwh": TypeAdapter(Annotated[float, Field(ge=0, le=1000 * _MOST, allow_inf_nan=False)]),
    "usd_per_kwh": TypeAdapter(Annotated[float, Field(ge=0, allow_inf_nan=False)]),
}
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
        least = min(self.kg.values())
        best = next(start for start, kg in self.kg.items() if kg <= (1 + 1e-9) * least)  # ties differ by rounding
        return best if least < (1 - _SAME) * max(*self.kg.values(), self.was) else None


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

    @property
    def _last(self) -> datetime:
        return (self.first or datetime.min) + (max(self.rows) + 1) * self.step

    def mean(self, start: datetime, seconds: float) -> Rates:
        """Return the time-weighted mean rates over `seconds` from `start`. Raises BadValue where a slot is missing."""
        origin = self.first or _midnight(start)
        begin = (start - origin) / self.step
        end = begin + timedelta(seconds=seconds) / self.step
        slots = range(math.floor(begin), max(math.ceil(end - 1e-9), math.floor(begin) + 1))
        keys = [slot if self.first else slot % 24 for slot in slots]
        for slot, key in zip(slots, keys, strict=True):
            if key not in self.rows:
                missing = origin + slot * self.step
                raise BadValue(f"{self.name} does not cover {missing:%Y-%m-%d %H:%M} UTC; it has {self._covers()}")
        weights = [min(slot + 1, end) - max(slot, begin) if seconds else 1.0 for slot in slots]
        kg = fmean((self.rows[key].kg_per_kwh for key in keys), weights)
        usd = fmean((self.rows[key].usd_per_kwh or 0.0 for key in keys), weights)
        return Rates(kg, usd if self.priced else None)

    def _covers(self) -> str:
        if self.first is None:
            return f"the hours {', '.join(map(str, sorted(self.rows)))}"
        return f"{len(self.rows)} rows from {self.first:%Y-%m-%d %H:%M} to {self._last:%Y-%m-%d %H:%M} UTC"

    def starts(self, runs: Sequence[tuple[datetime, float, float]]) -> Starts | None:
        """Return what the runs would have emitted for each hour of start; None without runs or a whole day of rates.

        `runs` are (start, seconds, kWh with PUE). They are shifted together, so that the first starts on the hour. The
        hours are those of the day of the runs or, for a file with dates, those from the day of the runs on, at most 31
        days. Hours from which the file does not cover all runs are left out.
        """
        if not runs or (self.first is not None and self._last - self.first < timedelta(hours=24)):
            return None
        began = min(start for start, _, _ in runs).astimezone(UTC)
        first, hours = _midnight(began), 24
        if self.first is not None:
            first = max(first, self.first)
            first += (_midnight(first) - first) % _HOUR
            hours = min((self._last - first) // _HOUR, _MOST_STARTS)

        def kg(shift: timedelta) -> float:
            return math.fsum(kwh * self.mean(start + shift, seconds).kg_per_kwh for start, seconds, kwh in runs)

        emissions = {}
        for begin in (first + hour * _HOUR for hour in range(hours)):
            with suppress(BadValue):
                emissions[begin] = kg(begin - began)
        return Starts(emissions, kg(timedelta()), began, dated=self.first is not None) if emissions else None


def _midnight(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def read_hourly(path: Path) -> Hourly:
    """Read a CSV file of rates.

    Columns: `time` (ISO 8601, UTC by default) or `hour` (0 to 23, UTC), `kg_per_kwh` or `g_per_kwh` (CO2e) and optionally
    `usd_per_kwh`. A row is valid for an hour, or until the next row if that is closer. Raises BadValue with the line of
    the first mistake, and where the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            table.fieldnames = names = [name.strip() for name in table.fieldnames or []]
            rows = [(f"{path.name}, line {table.line_num}", row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadValue(f"{path.name} is not a CSV file: {error}") from error
    except OSError as error:
        raise BadValue(f"{path}: {error.strerror}") from error
    when, kg = ({*allowed} & {*names} for allowed in (("time", "hour"), ("kg_per_kwh", "g_per_kwh")))
    if len(when) != 1 or len(kg) != 1 or not rows:
        raise BadValue(f"{path.name} has {'the columns ' + ', '.join(names) if rows else 'no rows'}; {_COLUMNS}")
    slots: dict[datetime | int, Rates] = {}
    for place, row in rows:
        values = {name: _checked(place, name, row[name]) for name in _CHECKS if name in names}
        key = values[next(iter(when))]
        key = key.replace(tzinfo=key.tzinfo or UTC).astimezone(UTC) if isinstance(key, datetime) else key
        if key in slots:
            raise BadValue(f"{place}: {next(iter(when))} is a duplicate")
        slots[key] = Rates(values.get("kg_per_kwh", values.get("g_per_kwh", 0) / 1000), values.get("usd_per_kwh"))
    return _slotted(path.name, slots)


def _checked(place: str, name: str, text: str | None) -> Any:
    try:
        return _CHECKS[name].validate_python((text or "").strip())
    except ValidationError as error:
        hint = (
            " (g belong in g_per_kwh)"
            if name == "kg_per_kwh" and error.errors()[0]["type"] == "less_than_equal"
            else ""
        )
        raise BadValue(f"{place}: {name} {text or ''!r}: {in_words(error.errors()[0])}{hint}") from error


def _slotted(name: str, rates: dict[Any, Rates]) -> Hourly:
    times = sorted(rates)
    if isinstance(times[0], int):
        return Hourly(name, None, _HOUR, rates)
    step = min([_HOUR, *(later - earlier for earlier, later in pairwise(times))])
    odd = next((time for time in times if (time - times[0]) % step), None)
    if odd is not None:
        raise BadValue(f"{name}: {odd.isoformat()} is not a whole number of steps of {step} after the first row")
    return Hourly(name, times[0], step, {(time - times[0]) // step: rates[time] for time in times})
