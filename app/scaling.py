"""What the Scaling page shows of the law: a line for each series and size of model, and its figures in tables and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from analytics.interval import Interval, plain
from analytics.law import law as laws
from analytics.law.outlook import Outlook
from analytics.law.series import Point, SeriesFit
from analytics.say.answer import not_ok
from analytics.say.law import flag_words
from analytics.text import between, number, scale

MILLION = 1e6
ENDS = ("", "_low", "_high")
MOST_TRIED = 40
"""Configurations of a series that are left out one by one to judge the law, which takes long for more."""
MOST_SHOWN = 8
"""Series that are shown together: more can be chosen one by one."""
_SAME_SIZE = 0.005


@dataclass(frozen=True)
class Line:
    """One size of model of a series: its measured points, and what the law says of it.

    `place` is the place of the series on the page. Times are those of so many `samples`: of one, where no training is given.
    """

    place: int
    series: SeriesFit
    flops: float
    points: tuple[Point, ...]
    predictions: tuple[Outlook, ...]
    samples: float

    @property
    def name(self) -> str:
        """Series and work of a sample."""
        return f"{self.series.name}, {work_text(self.flops)}/sample"

    def seconds(self) -> list[tuple[Outlook, Interval]]:
        """Return each prediction with the time of the samples."""
        return [(one, _time(one.samples_per_second, self.samples)) for one in self.predictions]

    def measured(self, devices: int) -> bool:
        """Whether so many devices lie within what the series measured."""
        return min(self.series.devices) <= devices <= max(self.series.devices)


def _time(rate: Interval, samples: float) -> Interval:
    """Return the seconds of samples at a rate."""
    low, high = (None if end is None else samples / end for end in (rate.high, rate.low))
    return Interval(samples / rate.value, low, high, level=rate.level)


def work_text(flops: float) -> str:
    """Print work: `735.1 MFLOP`."""
    divisor, unit = scale(flops, "FLOP")
    return f"{number(flops / divisor)} {unit}"


def wanted(series: SeriesFit, asked: Sequence[int]) -> list[int]:
    """Return the devices to draw: the measured ones and those asked for, otherwise twice and four times the most.

    Where one number of devices was measured nothing is known about others: they are drawn only when asked for.
    """
    most = max(series.devices)
    return sorted({*series.devices, *(asked or ((2 * most, 4 * most) if len(series.devices) > 1 else ()))})


def tokens_per_sample(runs: pd.DataFrame, series: SeriesFit) -> float | None:
    """Return how many tokens a sample of the series has; None where its samples have none."""
    own = runs[runs["config_id"].isin([point.config_id for point in series.points])]
    found = (own["tokens_per_second"] / own["samples_per_second"]).median()
    return float(found) if found > 0 else None


def lines(
    series: Sequence[SeriesFit],
    predict: Callable[[SeriesFit, float], list[Outlook]],
    samples: Mapping[str, float],
    work: float | None = None,
) -> list[Line]:
    """Return the lines of the series of which `samples` are known: of all measured sizes, or of `work` FLOP a sample."""
    found = []
    for place, entry in enumerate(series):
        for flops in [work] if work else [size.flops_per_sample for size in entry.by_work]:
            near = tuple(p for p in entry.points if abs(p.flops_per_sample - flops) < _SAME_SIZE * flops)
            if entry.name in samples:
                found.append(Line(place, entry, flops, near, tuple(predict(entry, flops)), samples[entry.name]))
    return found


def largest(found: Sequence[Line]) -> list[Line]:
    """Return the line of the largest model of each series."""
    return list({line.series.name: line for line in sorted(found, key=lambda line: line.flops)}.values())


def unit(found: Sequence[Line]) -> tuple[float, str]:
    """Return seconds of the unit that suits the times of the lines, and its name."""
    longest = max((time.value for line in found for _, time in line.seconds()), default=0.0)
    return (1.0, "s") if longest < 7200 else (3600.0, "h") if longest < 4 * 86400 else (86400.0, "days")


def predictions(found: Sequence[Line], devices: Sequence[int]) -> pd.DataFrame:
    """Return a row for each line and number of `devices` (all that are drawn, where none): what the law says, in SI units."""
    rows = []
    for line in found:
        for one, seconds in line.seconds():
            if devices and one.devices not in devices:
                continue
            row = {"series": line.series.name, "flops_per_sample": line.flops, "samples": line.samples}
            row |= {"devices": one.devices, "extrapolated": not line.measured(one.devices)}
            row |= {"ideal_seconds": line.samples / one.ideal_samples_per_second, "seconds": seconds}
            row |= {"samples_per_second": one.samples_per_second, "device_hours": seconds.times(one.devices / 3600)}
            row |= {"efficiency": one.efficiency, "flags": " ".join(one.flags)}
            rows.append(plain(**row) | {"limits": "; ".join(flag_words(one.flags, line.series.host))})
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame, of: tuple[float, str]) -> pd.DataFrame:
    """Return predictions as text: estimates have a ~ and their interval; `of` is the unit of times."""
    seconds, name = of
    many = MILLION if (table["samples"] == 1).all() else 1.0
    hours = "Device-hours" + (" a million samples" if many > 1 else "")
    texts: dict[str, Any] = {"Series": table["series"], "FLOP a sample": table["flops_per_sample"].map(work_text)}
    texts["Devices d"] = table["devices"]
    columns = {f"T [{name}]": ("seconds", 1 / seconds), "Samples/s": ("samples_per_second", 1.0)}
    columns |= {hours: ("device_hours", many), "Efficiency [%]": ("efficiency", 100.0)}
    for title, (column, factor) in columns.items():
        cells = zip(*(factor * table[column + end].astype(float) for end in ENDS), strict=True)
        texts[f"{title}, estimated"] = [f"~{between(*cell)}" for cell in cells]
    texts[f"T = n / (d · v) [{name}]"] = [f"~{number(x / seconds)}" for x in table["ideal_seconds"]]
    beyond = table["extrapolated"].map({True: "extrapolated; ", False: ""})
    texts["Limits"] = (beyond + table["limits"]).str.removesuffix("; ")
    return pd.DataFrame(texts)


def limits(table: pd.DataFrame) -> list[str]:
    """Say what limits the predictions, each limit once."""
    names: dict[tuple[str, str], list[str]] = {}
    for series, rows in (
        table.assign(limit=table["limits"].str.split("; ")).explode("limit").groupby("series", sort=False)
    ):
        for limit, at in rows[rows["limit"] != ""].groupby("limit", sort=False)["devices"]:
            names.setdefault((str(limit), ", ".join(map(str, sorted(set(at))))), []).append(str(series))
    return [f"On {at} devices: {limit} ({'; '.join(series)})." for (limit, at), series in names.items()]


def residuals(series: SeriesFit) -> list[float]:
    """Return T of the law / measured T - 1 of each configuration."""
    table = series.observations()
    return list(np.asarray(table["speed"] / laws.fit(table).predict(table)["speed"] - 1, dtype=float))


def not_well(runs: pd.DataFrame) -> list[str]:
    """Say how many runs did not end well, and why the first did not; nothing where all did."""
    bad = runs["status"] != "ok"
    head = f"{bad.sum()} of {len(runs)} runs did not end well. The fit is made without them:"
    return [head, *islice(not_ok(runs), 5)] if bad.any() else []
