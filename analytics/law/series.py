"""How training time depends on work and devices: the law T = n / (d · v), fitted to measured runs.

T is time in seconds, n work in FLOP, d the number of devices and v the measured FLOP/s of one device. The plain law says
that v is constant. The figures here show how far that holds: the spread of the runs around one v, the error for unseen
configurations, and how v falls with d (the efficiency E). T is the steady time of training, without start-up, compilation
and saving. Of a command whose FLOP are not known, n is counted in samples, or else in tokens: each thing that it trains is
a series then.

Fits are made on logarithms, since errors of times are factors, and on configurations: repeats are pooled first, so that
a configuration that was repeated more often does not count more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analytics.interval import Interval, geometric_mean, plain
from analytics.judge import stats
from analytics.judge.stats import LOSS
from analytics.law import law as laws
from analytics.runs.frame import IDENTITY, LOADER, summary, values, varied, work_arguments
from analytics.text import printable
from bench.record import Status
from bench.schema import AXES, COMMAND

Unit = Literal["FLOP", "samples", "tokens"]
RATE = "flops_per_second_per_device"
SERIES = ("suite", "execution", "environment", "host", "device_type", "device_name", "workload", "threads_per_device")
SIZES = (
    *("devices", "num_nodes", "devices_per_node", "timeout_seconds"),
    *("batch_size_per_device", "global_batch_size", "gradient_accumulation_steps"),
)


@dataclass(frozen=True)
class Point:
    """One configuration. `v` in FLOP/s per device has the interval of its repeats; errors are T_law / T - 1.

    `samples_per_second` holds the runs.
    """

    name: str
    config_id: str
    devices: int
    num_nodes: int | None
    batch_size_per_device: int | None
    global_batch_size: int | None
    flops_per_sample: float
    repeats: int
    samples_per_second: tuple[float, ...]
    v: Interval
    error: float


@dataclass(frozen=True, kw_only=True)
class Efficiency(Interval):
    """E = v(devices) / v(baseline_devices) of one curve, configurations that differ in devices only; 95 % interval.

    `curve` names what its configurations share, `flops_per_sample` is their work. On `weak` curves the batch per device stays
    the same, on `strong` curves the batch of all devices together; on those of `own` batches a command tells none.
    """

    curve: str
    flops_per_sample: float
    scaling: Literal["weak", "strong", "own"]
    devices: int
    baseline_devices: int


@dataclass(frozen=True)
class WorkPoint:
    """v in FLOP/s per device of one model size at `devices`, with the interval of the repeats of one configuration."""

    flops_per_sample: float
    devices: int
    v: Interval


@dataclass(frozen=True)
class Host:
    """How many `devices` the machine of a series has (None: unknown), and the most that were `measured`.

    CPU devices are `shares` of one host: more than it has cannot run.
    """

    devices: int | None
    measured: int
    shares: bool

    def flags(self, devices: int) -> tuple[str, ...]:
        """Return the flag of a number of devices beyond this machine, if it is (a key of `say.law.FLAGS`)."""
        if self.devices is not None:
            return ("beyond_this_machine",) if devices > self.devices else ()
        return ("beyond_measured_host",) if self.shares and devices > self.measured else ()


@dataclass(frozen=True)
class SeriesFit:
    """The law fitted to one series: configurations that share workload, strategy, precision, devices and execution.

    `v` [FLOP/s per device] is the geometric mean over configurations with Student's 95 % interval on logarithms: their
    spread around one law, so what the law leaves out as well as noise. Where work is counted in another `unit`, that takes
    the place of FLOP everywhere, and that of samples where it is tokens; the work of a sample is 1. `plain_v` is the same law
    in parameters × samples per second and device. `error_*` and `left_out_*` are medians and maxima of |T_law / T - 1| over
    `points`.
    """

    name: str
    keys: dict[str, Any]
    host: Host
    v: Interval
    plain_v: float | None
    error_median: float
    error_max: float
    left_out_median: float | None
    left_out_max: float | None
    loss: Literal["visible", "none visible", "cannot tell", "not measured"]
    breaks_at: int | None
    points: tuple[Point, ...]
    efficiency: tuple[Efficiency, ...]
    by_work: tuple[WorkPoint, ...]
    size_effect: Interval | None
    flags: tuple[str, ...]
    unit: Unit = "FLOP"

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of devices that were measured."""
        return tuple(sorted({point.devices for point in self.points}))

    def observations(self) -> pd.DataFrame:
        """Return the configurations as a table for `analytics.law.law.fit`: speed in FLOP/s, work in FLOP a sample.

        `spread` is the standard deviation of the logarithm of the mean of the repeats, pooled over configurations.
        """
        pooled, _ = stats.pooled(point.samples_per_second for point in self.points)
        rows = [
            {
                "devices": point.devices,
                "num_nodes": point.num_nodes,
                "speed": point.v.value * point.devices,
                "work": point.flops_per_sample,
                "batch_size_per_device": point.batch_size_per_device,
                "samples_per_device": (point.global_batch_size or math.nan) / point.devices,
                "spread": pooled / math.sqrt(point.repeats),
            }
            for point in self.points
        ]
        return pd.DataFrame(rows)

    def law(self) -> laws.Fit:
        """Return the law with losses, fitted to the same configurations (`analytics.law.law`)."""
        return laws.fit(self.observations())


@dataclass(frozen=True)
class ScalingFit:
    """All series of a set of runs."""

    series: tuple[SeriesFit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text for JSON; what is absent is None."""
        return plain(series=self.series)


def _key(row: pd.Series, columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in columns)


def _split(table: pd.DataFrame, columns: list[str]) -> list[pd.DataFrame]:
    """Split a table by columns (absent is a value too), in order of appearance."""
    cells = [["" if value is None else str(value) for value in values(table[column])] for column in columns]
    places: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(zip(*cells, strict=True)):
        places.setdefault(key, []).append(place)
    return [table] if len(places) == 1 else [table.iloc[part] for part in places.values()]


def fit(df: pd.DataFrame) -> ScalingFit:
    """Fit the law to a frame of runs (`analytics.runs.frame.frame`), a series at a time.

    Runs that did not end well or lack v are left out. Executions, hosts and environments become series of their own:
    pass `latest_execution(df)` for one of each suite. A frame without usable runs gives a fit without series.
    """
    parts: list[tuple[pd.DataFrame, list[str], Unit]] = []
    for unit, usable in _counted(df):
        table = summary(usable).copy()  # in one block of memory
        exchanged = table["launcher"].isin(["ray", "slurm"])  # a node for others of its kind
        table["host"] = table["host"].mask(exchanged)
        kinds = {*work_arguments(table), *LOADER} if unit == "FLOP" else {}
        own = [c for c in varied(table) if c.startswith("workload_args.") and c not in kinds]
        columns = [*SERIES, *(c for c in varied(table) if c.split(".")[0] in AXES), *own]
        runs = {_key(part.iloc[0], IDENTITY): part for part in _split(usable, list(IDENTITY))}
        table["_runs"] = pd.Series([runs[_key(row, IDENTITY)] for _, row in table.iterrows()], dtype=object)
        parts += [(part, columns, unit) for part in _split(table, columns)]
    every = list(dict.fromkeys(column for _, columns, _ in parts for column in columns))
    labels = _series_names([part.iloc[0].reindex(list(dict.fromkeys([*part, *every]))) for part, *_ in parts], every)
    return ScalingFit(tuple(_fit_series(*part, label) for part, label in zip(parts, labels, strict=True)))


def _counted(df: pd.DataFrame) -> Iterator[tuple[Unit, pd.DataFrame]]:
    """Yield the runs that ended well by the unit in which their work is known, as if that were FLOP: only of commands."""
    ok = df[df["status"] == Status.OK]
    known = (ok[RATE] > 0) & (ok["flops_per_sample"] > 0)
    if known.any():
        yield "FLOP", ok[known]
    left = ok[~known & ok["workload"].eq(COMMAND)]
    units: tuple[Unit, ...] = ("samples", "tokens")
    for unit in units:
        speed = left[f"{unit}_per_second"]
        here, left = left[speed > 0], left[~(speed > 0)]
        if len(here):
            here = here.assign(samples_per_second=speed, flops_per_sample=1.0)
            here[RATE] = speed / here["devices"].astype(float)
            yield unit, here


def _series_names(rows: list[pd.Series], columns: list[str]) -> list[str]:
    """Name each series by its precision, parallelism and what else differs between series."""
    shown = ["precision", "parallelism"]
    rest = [c for c in ("workload", *columns) if c not in shown and len({str(row[c]) for row in rows}) > 1]
    apart = len({_key(row, shown) for row in rows})
    for column in dict.fromkeys(rest):
        groups = len({_key(row, [*shown, column]) for row in rows})
        if groups > apart:
            shown, apart = [*shown, column], groups
    texts = (" ".join(printable(row[c], 40) for c in shown if pd.notna(row[c])) for row in rows)
    return [text or str(row["workload"]) for text, row in zip(texts, rows, strict=True)]


def _fit_series(table: pd.DataFrame, columns: list[str], unit: Unit, name: str) -> SeriesFit:
    logs = np.log(table[RATE].to_numpy(dtype=float))
    errors = np.expm1(logs - logs.mean())
    left = np.expm1((logs - logs.mean()) * len(logs) / (len(logs) - 1)) if len(logs) > 1 else None
    points = tuple(
        Point(
            name=row["name"],
            config_id=row["config_id"],
            devices=int(row["devices"]),
            num_nodes=_count(row["num_nodes"]),
            batch_size_per_device=_count(row["batch_size_per_device"]),
            global_batch_size=_count(row["global_batch_size"]),
            flops_per_sample=float(row["flops_per_sample"]),
            repeats=len(row["_runs"]),
            samples_per_second=tuple(row["_runs"]["samples_per_second"].astype(float)),
            v=_speed(row),
            error=float(errors[i]),
        )
        for i, (_, row) in enumerate(table.iterrows())
    )
    curves = _efficiency(table)
    rate = table["parameters"] * table["samples_per_second"] / table["devices"].astype(float)
    loss, breaks_at = _loss(curves)
    return SeriesFit(
        name=name,
        keys={column: table.iloc[0][column] for column in columns if pd.notna(table.iloc[0][column])},
        host=_host(table),
        v=geometric_mean(table[RATE]),
        plain_v=geometric_mean(rate).value if (rate > 0).all() and unit == "FLOP" else None,
        error_median=float(np.median(np.abs(errors))),
        error_max=float(np.abs(errors).max()),
        left_out_median=float(np.median(np.abs(left))) if left is not None else None,
        left_out_max=float(np.abs(left).max()) if left is not None else None,
        loss=loss,
        breaks_at=breaks_at,
        points=points,
        efficiency=tuple(curves),
        by_work=tuple(_by_work(table)),
        size_effect=_size_effect(table),
        flags=_series_flags(table),
        unit=unit,
    )


def _count(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _speed(row: pd.Series) -> Interval:
    """Return v of one configuration with the interval of its repeats."""
    low, high = (None if pd.isna(end) else float(end) for end in (row[f"{RATE}_low"], row[f"{RATE}_high"]))
    return Interval(float(row[RATE]), low, high, int(row["repeats"]))


def _host(table: pd.DataFrame) -> Host:
    """Describe the machine of a series; the size of a cluster of several nodes is unknown."""
    devices = pd.concat([runs["machine_devices"] for runs in table["_runs"]]).max()
    several = table["num_nodes"].fillna(1).max() > 1
    shares = not several and bool((table["device_type"] == "cpu").all())
    return Host(None if several else _count(devices), int(table["devices"].max()), shares)


def _series_flags(table: pd.DataFrame) -> tuple[str, ...]:
    devices, work = (table[name].to_numpy(dtype=float) for name in ("devices", "flops_per_sample"))
    return (*laws.table_flags(devices, work), *(["some_without_repeats"] if (table["repeats"] < 2).any() else []))


def _efficiency(table: pd.DataFrame) -> list[Efficiency]:
    """Compare device counts in configurations that are otherwise the same: weak or strong curves, what covers more.

    A command whose batches are not known has curves too.
    """
    same = [column for column in varied(table) if column not in SIZES]
    ways: list[tuple[Literal["weak", "strong"], list[str]]] = [
        ("weak", ["batch_size_per_device", "gradient_accumulation_steps"]),
        ("strong", ["global_batch_size", "gradient_accumulation_steps"]),
        ("strong", ["global_batch_size", "batch_size_per_device"]),
    ]
    found = []
    for group in _split(table, same):
        best: list[pd.DataFrame] = []
        kind: Literal["weak", "strong", "own"] = "weak"
        for way, columns in ways:
            known = group[group[columns[0]].notna()]  # an imported run may not tell its batch
            curves = [part for part in _split(known, columns) if part["devices"].nunique() > 1]
            if sum(map(len, curves)) > sum(map(len, best)):
                best, kind = curves, way
        unknown = group[["batch_size_per_device", "global_batch_size"]].isna().all(axis=None)
        if unknown and group["workload"].eq(COMMAND).all() and group["devices"].nunique() > 1:
            best, kind = [group], "own"
        for curve in best:
            found += _curve(curve.sort_values("devices"), kind, table)
    return found


def _curve(curve: pd.DataFrame, kind: Literal["weak", "strong", "own"], table: pd.DataFrame) -> list[Efficiency]:
    batch = "batch_size_per_device" if kind == "weak" else "global_batch_size"
    varying = [c for c in varied(table) if c not in SIZES and len(set(values(table[c]))) > 1]
    pieces = [f"{c.split('.')[-1]}={printable(curve.iloc[0][c], 40)}" for c in varying if pd.notna(curve.iloc[0][c])]
    size = (
        "its own batch"
        if kind == "own"
        else f"batch {curve.iloc[0][batch]}{' a device' if kind == 'weak' else ' in all'}"
    )
    name = ", ".join([*pieces, size])
    base = curve.iloc[0]
    points = []
    for _, row in curve.iloc[1:].iterrows():
        e = stats.ratio([(row["_runs"][RATE], base["_runs"][RATE])])
        places = {"devices": int(row["devices"]), "baseline_devices": int(base["devices"])}
        work = float(base["flops_per_sample"])
        points.append(
            Efficiency(e.value, e.low, e.high, e.n, curve=name, flops_per_sample=work, scaling=kind, **places)
        )
    return points


def _loss(curves: list[Efficiency]) -> tuple[Any, int | None]:
    """Judge all curves: the first device count whose efficiency is below 1 - LOSS, interval and all."""
    if not curves:
        return "not measured", None
    lost = [point.devices for point in curves if point.high is not None and point.high < 1 - LOSS]
    if lost:
        return "visible", min(lost)
    clear = all(point.low is not None and point.low >= 1 - LOSS for point in curves)
    return ("none visible" if clear else "cannot tell"), None


def _by_work(table: pd.DataFrame) -> list[WorkPoint]:
    """Return v by model size, at the fewest devices that all sizes ran on, else at the fewest of each size."""
    sizes = [
        part for _, part in table.groupby(table["flops_per_sample"].map("{:.3g}".format).astype("float64"), sort=True)
    ]
    common = set.intersection(*(set(part["devices"]) for part in sizes))
    found = []
    for part in sizes:
        devices = min(common) if common else part["devices"].min()
        here = part[part["devices"] == devices]
        v = _speed(here.iloc[0]) if len(here) == 1 else Interval(geometric_mean(here[RATE]).value)
        found.append(WorkPoint(float(here["flops_per_sample"].iloc[0]), int(devices), v))
    return found


def _size_effect(table: pd.DataFrame) -> Interval | None:
    size = table["flops_per_sample"]
    ends = [table[np.isclose(size, end, rtol=1e-3)] for end in (size.max(), size.min())]
    if size.max() <= 1.001 * size.min():
        return None
    cells: list[dict[tuple[str, ...], pd.DataFrame]] = [
        {_key(row, SIZES): row["_runs"] for _, row in end.iterrows()} for end in ends
    ]
    pairs = [(runs[RATE], cells[1][cell][RATE]) for cell, runs in cells[0].items() if cell in cells[1]]
    return stats.ratio(pairs) if pairs else None
