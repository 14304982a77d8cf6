"""Figures of a fitted law, as blocks: speed and efficiency by devices, residuals; series in people's names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analytics.law import law as laws
from analytics.law.outlook import PARTS, Outlook, outlook
from analytics.law.series import SIZES, Point, ScalingFit, SeriesFit
from analytics.runs.frame import telling
from analytics.say.blocks import Figure, Group, Mark
from analytics.say.law import same_work
from analytics.say.names import named, word, work_fields
from analytics.text import devices_words


@dataclass(frozen=True)
class Curve:
    """One model of a series: its configurations, and what the law predicts for them and for more devices.

    `name` is that of model and series, such as `tiny, bf16`; `label` that of the series alone.
    """

    name: str
    label: str
    series: SeriesFit
    points: tuple[Point, ...]
    predictions: tuple[Outlook, ...]

    def measured(self, devices: int) -> bool:
        """Whether so many devices lie within what the series measured."""
        return min(self.series.devices) <= devices <= max(self.series.devices)


def counts(series: SeriesFit, devices: Sequence[int] | None = ()) -> list[int]:
    """Return the numbers of devices to predict: the measured ones and `devices`, else twice and four times the most.

    Where one number of devices was measured, nothing is known about others: they are predicted only when asked for. With
    None, the measured ones alone.
    """
    if devices is None:
        return sorted(series.devices)
    most = max(series.devices)
    return sorted({*series.devices, *(devices or ((2 * most, 4 * most) if len(series.devices) > 1 else ()))})


def curves(law: ScalingFit, table: pd.DataFrame, devices: Sequence[int] | None = ()) -> list[Curve]:
    """Return a curve for each series and size of model; `table` is the summary of the configurations."""
    columns = [name for name in telling(table) if name not in {*SIZES, *work_fields(table)}]
    rows = table.assign(work=named(table)["work"]).drop_duplicates("config_id").set_index("config_id")
    found: list[Curve] = []
    for series in law.series:
        row = rows.loc[series.points[0].config_id]
        label = ", ".join(filter(None, (word(column, row[column]) for column in columns)))
        for size in series.by_work:
            near = tuple(p for p in series.points if same_work(p.flops_per_sample, size.flops_per_sample))
            work = str(rows["work"][near[0].config_id]) if rows["work"].nunique() > 1 or not label else ""
            name = ", ".join(filter(None, (work, label)))
            name = f"{name} ({series.name})" if name in {curve.name for curve in found} else name
            outlooks = outlook(series, counts(series, devices), size.flops_per_sample)
            predictions = tuple(one for one in outlooks if not one.refused)
            found.append(Curve(name, label or name, series, near, predictions))
    return found


def largest(found: Sequence[Curve]) -> list[Curve]:
    """Return the curve of the largest model of each series that ran on several numbers of devices."""
    several = [curve for curve in found if len(curve.series.devices) > 1]
    size = {curve.name: curve.points[0].flops_per_sample for curve in several}
    return list({curve.series.name: curve for curve in sorted(several, key=lambda curve: size[curve.name])}.values())


def boundary(found: Sequence[Curve]) -> float | None:
    """Return the number of devices beyond which all measured configurations used several nodes; None without such."""
    points = [point for curve in found for point in curve.series.points if point.num_nodes is not None]
    inside = max((point.devices for point in points if point.num_nodes == 1), default=0)
    beyond = min((point.devices for point in points if (point.num_nodes or 1) > 1), default=0)
    return math.sqrt(inside * beyond) if inside < beyond and inside else None


def _place(point: Point) -> str:
    """Name the devices of a configuration: `8 devices`, over several nodes `8 devices (2 nodes x 4)`."""
    nodes = point.num_nodes or 1
    return devices_words(point.devices) + (f" ({nodes} nodes x {point.devices // nodes})" if nodes > 1 else "")


def speed_figure(found: Sequence[Curve]) -> Figure:
    """Return the figure of samples/s by devices: every run, the law, and its predictions beyond with 80 % intervals."""
    groups = []
    for curve in found:
        runs = [
            Mark(f"{_place(point)}, {curve.name}", rate, x=point.devices)
            for point in curve.points
            for rate in point.samples_per_second
        ]
        law = [(one.devices, one.samples_per_second) for one in curve.predictions]
        beyond = [
            Mark(f"{devices_words(d)}, {curve.name}, predicted", rate.value, rate.low, rate.high, d, estimated=True)
            for d, rate in law
            if not curve.measured(d)
        ]
        groups.append(Group(curve.name, (*runs, *beyond), tuple((float(d), rate.value) for d, rate in law)))
    units = dict.fromkeys("tokens/s" if curve.series.unit == "tokens" else "samples/s" for curve in found)
    axis, edge = " or ".join(units) or "samples/s", boundary(found)
    return Figure("Speed by devices", axis, tuple(groups), "devices", log=True, node=edge)


def efficiency_figure(found: Sequence[Curve]) -> Figure:
    """Return the figure of the share of its speed that a device keeps: measured with 95 % intervals, and by the law."""
    groups = []
    for curve in largest(found):
        law = [(one.devices, one.efficiency.times(100)) for one in curve.predictions]
        beyond = [Mark(f"{devices_words(d)}, predicted", e.value, e.low, e.high, d, estimated=True) for d, e in law]
        beyond = [mark for mark in beyond if not curve.measured(round(mark.x))]
        ways = list(dict.fromkeys(point.curve for point in curve.series.efficiency)) or [""]
        for way in ways:
            points = [(p, p.times(100)) for p in curve.series.efficiency if p.curve == way]
            marks = [Mark(devices_words(p.devices), e.value, e.low, e.high, p.devices) for p, e in points]
            base = [Mark(devices_words(p.baseline_devices), 100, x=p.baseline_devices) for p, _ in points[:1]]
            head = f"{curve.label}: " * (curve.label != curve.name)  # without options, what differs is the model alone
            name = re.sub(r"\b\w+=", "", head + way) if len(ways) > 1 else curve.label
            last = way == ways[-1]
            line = tuple((float(d), e.value) for d, e in law) if last else ()
            if shown := (*base, *marks, *(beyond if last else ())):
                groups.append(Group(name, shown, line))
    marks = [mark for group in groups for mark in group.marks]
    most = max(150.0, *(1.1 * mark.value for mark in marks)) if marks else 0.0
    cut = any(mark.high is not None and mark.high > most for mark in marks)
    title, axis = f"Efficiency{'; arrows: the interval goes on' * cut}", "speed per device relative to the fewest, %"
    return Figure(
        title, axis, tuple(groups), "devices", reference=100, most=most if cut else None, node=boundary(found)
    )


def residuals_figure(found: Sequence[Curve]) -> Figure:
    """Return the figure of by how many percent the law misses the measured speed of each configuration."""
    groups = []
    for curve in {curve.series.name: curve for curve in found if len(curve.series.points) > 1}.values():
        table = curve.series.observations()
        missed = 100 * (laws.fit(table).predict(table)["speed"] / table["speed"] - 1)
        points = zip(curve.series.points, missed.astype(float), strict=True)
        groups.append(Group(curve.label, tuple(Mark(p.name, error, x=p.devices) for p, error in points)))
    return Figure("Residuals", "predicted / measured speed - 1, %", tuple(groups), "devices", reference=0)


def time_shares(found: Sequence[Curve]) -> dict[str, dict[str, float]]:
    """Return the shares of the time of a step by the law, in percent: by part, then by series and devices."""
    shares = {
        f"{curve.label}, {devices_words(one.devices)}": one.shares
        for curve in largest(found)
        for one in curve.predictions
    }
    out = {words: {name: 100 * parts[part] for name, parts in shares.items()} for part, words in PARTS.items()}
    return {words: parts for words, parts in out.items() if any(share >= 0.5 for share in parts.values())}
