"""What the Scaling page shows of the laws: a line for each series and size of model, and its figures in tables and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from analytics import curves, laws, words
from analytics.answer import not_ok
from analytics.outlook import Outlook, preferred
from analytics.scaling import Point, SeriesFit
from analytics.words import FLAGS, between, number

FORMULAS = {
    "step": "T = n / (d · v), and what a step loses: exchanging gradients, fixed work, small models",
    "power": "T = n / (d · v) · d^p: one exponent for all that is lost",
    "ideal": "T = n / (d · v): nothing is lost",
}
MILLION = 1e6
ENDS = ("", "_low", "_high")
Known = tuple[float, float | None, float | None]
"""A value and the ends of its interval."""
MOST_TRIED = 40
"""Configurations of a series on which laws are tried: each is left out once, which takes long for more."""
MOST_SHOWN = 8
"""Series that are shown together: more can be chosen one by one."""
_FEW, _SAME_SIZE = 5, 0.005


@dataclass(frozen=True)
class Line:
    """One size of model of a series: its measured points, and what the law says of it.

    `place` is the place of the series on the page. Times are those of so many `samples`: of one, where no training is given.
    """

    place: int
    series: SeriesFit
    flops: float
    points: tuple[Point, ...]
    told: tuple[Outlook, ...]
    samples: float

    @property
    def name(self) -> str:
        """Series and work of a sample."""
        return f"{self.series.name}, {work_text(self.flops)}/sample"

    def seconds(self) -> list[tuple[Outlook, Known]]:
        """Return each number of devices with the time that the law says."""
        rates: list[tuple[Outlook, Known]] = [(one, (one.samples_per_second, one.high, one.low)) for one in self.told]
        return [(one, changed(rate, lambda x: self.samples / x)) for one, rate in rates]

    def measured(self, devices: int) -> bool:
        """Whether so many devices lie within what the series measured."""
        return min(self.series.devices) <= devices <= max(self.series.devices)


def work_text(flops: float) -> str:
    """Print work: `735.1 MFLOP`."""
    divisor, unit = words.scale(flops, "FLOP")
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
    tell: Callable[[SeriesFit, float], list[Outlook]],
    samples: Mapping[str, float],
    work: float | None = None,
) -> list[Line]:
    """Return the lines of the series of which `samples` are known: of all measured sizes, or of `work` FLOP a sample."""
    found = []
    for place, entry in enumerate(series):
        for flops in [work] if work else [size.flops_per_sample for size in entry.by_work]:
            near = tuple(p for p in entry.points if abs(p.flops_per_sample - flops) < _SAME_SIZE * flops)
            if entry.name in samples:
                found.append(Line(place, entry, flops, near, tuple(tell(entry, flops)), samples[entry.name]))
    return found


def largest(found: Sequence[Line]) -> list[Line]:
    """Return the line of the largest model of each series."""
    return list({line.series.name: line for line in sorted(found, key=lambda line: line.flops)}.values())


def unit(found: Sequence[Line]) -> tuple[float, str]:
    """Return seconds of the unit that suits the times of the lines, and its name."""
    longest = max((known[0] for line in found for _, known in line.seconds()), default=0.0)
    return (1.0, "s") if longest < 7200 else (3600.0, "h") if longest < 4 * 86400 else (86400.0, "days")


def changed(known: Known, by: Callable[[float], float]) -> Known:
    """Return a value and its interval in another unit."""
    value, low, high = known
    return by(value), None if low is None else by(low), None if high is None else by(high)


def predictions(found: Sequence[Line], devices: Sequence[int]) -> pd.DataFrame:
    """Return a row for each line and number of `devices` (all that are drawn, where none): what the law says, in SI units."""
    rows = []
    for line in found:
        for one, seconds in line.seconds():
            if devices and one.devices not in devices:
                continue
            row = {"series": line.series.name, "law": one.law, "flops_per_sample": line.flops, "samples": line.samples}
            row |= {"devices": one.devices, "extrapolated": not line.measured(one.devices)}
            row |= {"ideal_seconds": line.samples / one.ideal_samples_per_second}
            figures = {"seconds": seconds, "samples_per_second": (one.samples_per_second, one.low, one.high)}
            figures["device_hours"] = changed(seconds, (one.devices / 3600).__mul__)
            figures["efficiency"] = (one.efficiency, one.efficiency_low, one.efficiency_high)
            row |= {name + end: x for name, known in figures.items() for end, x in zip(ENDS, known, strict=True)}
            rows.append(row | {"flags": " ".join(one.flags)})
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
    texts[f"T = n/(d·v) says [{name}]"] = [f"~{number(x / seconds)}" for x in table["ideal_seconds"]]
    beyond = table["extrapolated"].map({True: ["extrapolated"], False: []})
    flags = table["flags"].str.split()
    texts["Beware"] = ["; ".join([*a, *(FLAGS[flag] for flag in b)]) for a, b in zip(beyond, flags, strict=True)]
    return pd.DataFrame(texts)


def beware(table: pd.DataFrame) -> list[str]:
    """Say what speaks against predictions, each flag once."""
    told: dict[tuple[str, str], list[str]] = {}
    for series, rows in table.assign(flag=table["flags"].str.split()).explode("flag").groupby("series", sort=False):
        for flag, at in rows.groupby("flag", sort=False)["devices"]:
            told.setdefault((str(flag), ", ".join(map(str, sorted(set(at))))), []).append(str(series))
    return [f"Beware at d = {at}: {FLAGS[flag]} ({'; '.join(names)})." for (flag, at), names in told.items()]


def judged(series: Sequence[SeriesFit], misses: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a row for each series and law, and for each curve that describes it; `misses` is by series, then law.

    Series on which laws were not tried are left out, but for one, where there is no other.
    """
    rows = []
    for entry in [entry for entry in series if entry.name in misses] or series[:1]:
        best = preferred(known) if (known := misses.get(entry.name)) else None
        for law, formula in FORMULAS.items():
            miss = known.get(law) if known else None
            rows.append((entry.name, law, formula, miss, "preferred" if law == best else "predicts"))
        for curve, miss in curves.described(entry.observations()):
            rows.append((entry.name, curve.name, f"speed = {curve.formula}", miss, "describes only"))
    table = pd.DataFrame(rows, columns=["Series", "Law", "What it says", "Misses the unseen by [%]", "Use"])
    table["Misses the unseen by [%]"] = [float("nan") if x is None else round(100 * x, 2) for x in table.iloc[:, 3]]
    return table


def verdicts(series: Sequence[SeriesFit], misses: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Say which law each series prefers and why, and of which that cannot be said."""
    for entry in series:
        if not (known := misses.get(entry.name)):
            continue
        best = preferred(known)
        each = {name: number(float(f"{100 * miss:.2g}")) for name, miss in known.items()}
        others = ", ".join(f"{name} {miss} %" for name, miss in each.items() if name != best)
        why = "the usual one; no other does clearly better" if best == "step" else "the least"
        limits = [f"from {len(entry.points)} configurations only"] if len(entry.points) < _FEW else []
        limits += ["on one number of devices only"] if len(entry.devices) < 2 else []
        tail = f"; but that is known {' and '.join(limits)}" if limits else ""
        miss = f"misses a configuration that it has not seen by {each[best]} % (median), {why} ({others})"
        yield f"{entry.name}: the law {best} is preferred. It {miss}{tail}."
    if single := [entry.name for entry in series if not misses.get(entry.name)]:
        yield f"Which law is best cannot be said, for want of other configurations to try it on: {'; '.join(single)}."


def residuals(series: SeriesFit, law: str) -> list[float]:
    """Return T of the law / measured T - 1 of each configuration."""
    seen = series.observations()
    told = laws.fit(seen, law).predict(seen)["speed"]
    return list(np.asarray(seen["speed"] / told - 1, dtype=float))


def not_well(runs: pd.DataFrame) -> list[str]:
    """Say how many runs did not end well, and why the first did not; nothing where all did."""
    bad = runs["status"] != "ok"
    head = f"{bad.sum()} of {len(runs)} runs did not end well. The fit is made without them:"
    return [head, *islice(not_ok(runs), 5)] if bad.any() else []
