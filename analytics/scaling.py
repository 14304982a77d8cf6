"""How training time depends on work and devices: the law T = n / (d · v), fitted to measured runs.

T is time in seconds, n work in FLOP, d the number of devices and v the FLOP/s that one device really does. The ideal
law says that v is one constant; everything here says how far that is true: how much the runs spread around one v,
what the law would have said about a configuration it had not seen, and how v falls with d (the efficiency E). T is
the steady time of training: starting up, compiling and saving are not in it.

Fits are made on logarithms, since errors of times are factors, and on configurations: repeats are pooled first, so that
a configuration that was repeated more often does not count more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analytics import laws, stats, words
from analytics.frame import IDENTITY, asked, summary
from analytics.stats import LOSS
from analytics.words import printable
from bench.record import Status
from bench.schema import AXES

RATE = "flops_per_second_per_device"
SERIES = ("suite", "execution", "environment", "host", "device_type", "device_name", "workload", "threads_per_device")
SIZES = (
    *("devices", "num_nodes", "devices_per_node", "timeout_seconds"),
    *("batch_size_per_device", "global_batch_size", "gradient_accumulation_steps"),
)
Words = Literal["faster", "slower", "same", "cannot tell"]


@dataclass(frozen=True)
class Point:
    """One configuration. `v` in FLOP/s per device with the interval of its repeats; errors are T_law / T - 1.

    `samples_per_second` holds the runs. `error_left_out` is the error of the law fitted to all other configurations.
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
    v: float
    v_low: float | None
    v_high: float | None
    error: float
    error_left_out: float | None


@dataclass(frozen=True)
class Efficiency:
    """E = v(devices) / v(baseline_devices) of one curve, configurations that differ in devices only; 95 % interval.

    `curve` names what its configurations share. On `weak` curves the batch per device stays the same, on `strong`
    curves the batch of all devices together.
    """

    curve: str
    scaling: Literal["weak", "strong"]
    devices: int
    baseline_devices: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class WorkPoint:
    """v in FLOP/s per device of one model size at `devices`, with the interval of the repeats of one configuration."""

    flops_per_sample: float
    devices: int
    v: float
    v_low: float | None
    v_high: float | None


@dataclass(frozen=True)
class SeriesFit:
    """The law fitted to one series: configurations that share workload, strategy, precision, devices and execution.

    `v` [FLOP/s per device] is the geometric mean over configurations; `v_low` and `v_high` are Student's 95 %
    interval on logarithms over configurations: their spread around one law, so what the law leaves out as well as
    noise. `plain_v` is the same law for newcomers, in parameters × samples per second and device. `error_*` and
    `left_out_*` are medians and maxima of |T_law / T - 1| over `points`.
    """

    name: str
    keys: dict[str, Any]
    v: float
    v_low: float | None
    v_high: float | None
    plain_v: float | None
    error_median: float
    error_max: float
    left_out_median: float | None
    left_out_max: float | None
    scaling: Literal["weak", "strong", "both", "not comparable", "one device count"]
    loss: Literal["visible", "none visible", "cannot tell", "not measured"]
    breaks_at: int | None
    points: tuple[Point, ...]
    efficiency: tuple[Efficiency, ...]
    by_work: tuple[WorkPoint, ...]
    size_effect: stats.Estimate | None
    flags: tuple[str, ...]

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of devices that were measured."""
        return tuple(sorted({point.devices for point in self.points}))

    def observations(self) -> pd.DataFrame:
        """Return the configurations as a table for `analytics.laws.fit`: speed in FLOP/s, work in FLOP a sample.

        `spread` is the standard deviation of the logarithm of the mean of the repeats, pooled over configurations.
        """
        pooled, _ = stats.pooled(point.samples_per_second for point in self.points)
        rows = [
            {
                "devices": point.devices,
                "num_nodes": point.num_nodes,
                "speed": point.v * point.devices,
                "work": point.flops_per_sample,
                "batch_size_per_device": point.batch_size_per_device,
                "samples_per_device": (point.global_batch_size or math.nan) / point.devices,
                "spread": pooled / math.sqrt(point.repeats),
            }
            for point in self.points
        ]
        return pd.DataFrame(rows)

    def law(self, name: str = "step") -> laws.Fit:
        """Return a generalisation of the plain law, fitted to the same configurations (`analytics.laws`)."""
        return laws.fit(self.observations(), name)

    def sentences(self) -> list[str]:
        """Say in plain words what v is, how well the law holds and where it breaks."""
        return words.series_sentences(self)


@dataclass(frozen=True)
class Gain:
    """Speed of `precision` against `baseline`, all else equal: ratio of samples per second (above 1 is faster).

    Geometric mean over `configurations` matched pairs; the 95 % interval is Welch's, from repeats. `verdict` is `cannot
    tell` where the interval is absent or holds 1.
    """

    precision: str
    baseline: str
    where: str
    ratio: float
    low: float | None
    high: float | None
    configurations: int
    verdict: Words


@dataclass(frozen=True)
class ScalingFit:
    """All series of a set of runs, and what precision gains between them."""

    series: tuple[SeriesFit, ...]
    gains: tuple[Gain, ...]

    def sentences(self) -> list[str]:
        """Say in plain words what was found, series by series, then what precision gains."""
        return words.fit_sentences(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text for JSON; what is absent is None."""
        plain = {"series": [asdict(fit) for fit in self.series], "gains": [asdict(gain) for gain in self.gains]}
        cleaned = _clean(plain | {"sentences": self.sentences()})
        return dict(cleaned)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _clean(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(entry) for entry in value]
    if isinstance(value, (np.generic,)):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (bool, int, float)) else str(value)


def _key(row: pd.Series, columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in columns)


def _split(table: pd.DataFrame, columns: list[str]) -> list[pd.DataFrame]:
    """Split a table by columns (absent is a value too), in order of appearance."""
    return [part for _, part in table.groupby([table[c].astype("str").fillna("") for c in columns], sort=False)]


def fit(df: pd.DataFrame) -> ScalingFit:
    """Fit the law to a frame of runs (`analytics.frame.frame`), a series at a time.

    Runs that did not end well or lack v are left out. Executions, hosts and environments become series of their own:
    pass `latest_execution(df)` for one of each suite. A frame without usable runs gives a fit without series.
    """
    usable = df[(df["status"] == Status.OK) & (df[RATE] > 0) & (df["flops_per_sample"] > 0)]
    table = summary(usable)
    if table.empty:
        return ScalingFit((), ())
    options = [c for c in asked(table) if c.split(".")[0] in AXES]
    columns = [*SERIES, *options]
    runs = {_key(part.iloc[0], IDENTITY): part for part in _split(usable, list(IDENTITY))}
    table["_runs"] = pd.Series([runs[_key(row, IDENTITY)] for _, row in table.iterrows()], dtype=object)
    parts = _split(table, columns)
    labels = _series_names([part.iloc[0] for part in parts], columns)
    series = [_fit_series(part, columns, label) for part, label in zip(parts, labels, strict=True)]
    return ScalingFit(tuple(series), tuple(_gains(table, columns)))


def _series_names(rows: list[pd.Series], columns: list[str]) -> list[str]:
    """Name each series by its precision, parallelism and what else differs between series."""
    shown = ["precision", "parallelism"]
    rest = [c for c in ("workload", *columns) if c not in shown and len({str(row[c]) for row in rows}) > 1]
    apart = len({_key(row, shown) for row in rows})
    for column in dict.fromkeys(rest):
        groups = len({_key(row, [*shown, column]) for row in rows})
        if groups > apart:
            shown, apart = [*shown, column], groups
    return [" ".join(printable(row[c], 40) for c in shown if pd.notna(row[c])) for row in rows]


def _fit_series(table: pd.DataFrame, columns: list[str], name: str) -> SeriesFit:
    logs = np.log(table[RATE].to_numpy(dtype=float))
    over = stats.geometric_mean(table[RATE])
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
            v=float(row[RATE]),
            v_low=_none(row[f"{RATE}_low"]),
            v_high=_none(row[f"{RATE}_high"]),
            error=float(errors[i]),
            error_left_out=float(left[i]) if left is not None else None,
        )
        for i, (_, row) in enumerate(table.iterrows())
    )
    curves = _efficiency(table)
    plain = table["parameters"] * table["samples_per_second"] / table["devices"].astype(float)
    kinds = {point.scaling for point in curves}
    scaling: Any = "not comparable" if table["devices"].nunique() > 1 else "one device count"
    loss, breaks_at = _loss(curves)
    return SeriesFit(
        name=name,
        keys={column: table.iloc[0][column] for column in columns if pd.notna(table.iloc[0][column])},
        v=over.value,
        v_low=over.low,
        v_high=over.high,
        plain_v=stats.geometric_mean(plain).value if (plain > 0).all() else None,
        error_median=float(np.median(np.abs(errors))),
        error_max=float(np.abs(errors).max()),
        left_out_median=float(np.median(np.abs(left))) if left is not None else None,
        left_out_max=float(np.abs(left).max()) if left is not None else None,
        scaling=("both" if len(kinds) > 1 else next(iter(kinds))) if kinds else scaling,
        loss=loss,
        breaks_at=breaks_at,
        points=points,
        efficiency=tuple(curves),
        by_work=tuple(_by_work(table)),
        size_effect=_size_effect(table),
        flags=_series_flags(table),
    )


def _count(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _none(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _series_flags(table: pd.DataFrame) -> tuple[str, ...]:
    size, devices = (np.log(table[c].to_numpy(dtype=float)) for c in ("flops_per_sample", "devices"))
    vary = np.ptp(size) > 1e-3 and np.ptp(devices) > 0
    found = {
        "one_configuration": len(table) == 1,
        "devices_not_identified": np.ptp(devices) == 0,
        "work_and_devices_confounded": bool(vary) and abs(np.corrcoef(size, devices)[0, 1]) > 0.95,
        "some_without_repeats": bool((table["repeats"] < 2).any()),
    }
    return tuple(name for name, true in found.items() if true)


def _efficiency(table: pd.DataFrame) -> list[Efficiency]:
    """Compare device counts in configurations that are otherwise the same: weak or strong curves, what covers more."""
    same = [column for column in asked(table) if column not in SIZES]
    ways: list[tuple[Literal["weak", "strong"], list[str]]] = [
        ("weak", ["batch_size_per_device", "gradient_accumulation_steps"]),
        ("strong", ["global_batch_size", "gradient_accumulation_steps"]),
        ("strong", ["global_batch_size", "batch_size_per_device"]),
    ]
    found = []
    for group in _split(table, same):
        best: list[pd.DataFrame] = []
        kind: Literal["weak", "strong"] = "weak"
        for way, columns in ways:
            known = group[group[columns[0]].notna()]  # an imported run may not tell its batch
            curves = [part for part in _split(known, columns) if part["devices"].nunique() > 1]
            if sum(map(len, curves)) > sum(map(len, best)):
                best, kind = curves, way
        for curve in best:
            found += _curve(curve.sort_values("devices"), kind, table)
    return found


def _curve(curve: pd.DataFrame, kind: Literal["weak", "strong"], table: pd.DataFrame) -> list[Efficiency]:
    batch = "batch_size_per_device" if kind == "weak" else "global_batch_size"
    varying = [c for c in asked(table) if c not in SIZES and table[c].nunique(dropna=False) > 1]
    pieces = [f"{c.split('.')[-1]}={printable(curve.iloc[0][c], 40)}" for c in varying if pd.notna(curve.iloc[0][c])]
    name = ", ".join([*pieces, f"batch {curve.iloc[0][batch]}{' a device' if kind == 'weak' else ' in all'}"])
    base = curve.iloc[0]
    points = []
    for _, row in curve.iloc[1:].iterrows():
        e = stats.ratio([(row["_runs"][RATE], base["_runs"][RATE])])
        points.append(Efficiency(name, kind, int(row["devices"]), int(base["devices"]), e.value, e.low, e.high))
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
        low, high = (here.iloc[0][f"{RATE}_low"], here.iloc[0][f"{RATE}_high"]) if len(here) == 1 else (None, None)
        v = stats.geometric_mean(here[RATE]).value
        found.append(WorkPoint(float(here["flops_per_sample"].iloc[0]), int(devices), v, _none(low), _none(high)))
    return found


def _size_effect(table: pd.DataFrame) -> stats.Estimate | None:
    size = table["flops_per_sample"]
    ends = [table[np.isclose(size, end, rtol=1e-3)] for end in (size.max(), size.min())]
    if size.max() <= 1.001 * size.min():
        return None
    cells: list[dict[tuple[str, ...], pd.DataFrame]] = [
        {_key(row, SIZES): row["_runs"] for _, row in end.iterrows()} for end in ends
    ]
    pairs = [(runs[RATE], cells[1][cell][RATE]) for cell, runs in cells[0].items() if cell in cells[1]]
    return stats.ratio(pairs) if pairs else None


def _gains(table: pd.DataFrame, columns: list[str]) -> list[Gain]:
    """Compare every precision with fp32 (or else the first) where configurations differ in nothing else."""
    others = [c for c in columns if c.split(".")[0] != "precision"]
    same = [c for c in asked(table) if c.split(".")[0] != "precision"]
    gains = []
    for part in _split(table, others):
        precisions = list(dict.fromkeys(part["precision"]))
        baseline = "fp32" if "fp32" in precisions else precisions[0]
        for precision in precisions:
            if precision == baseline:
                continue
            pairs = []
            for cell in _split(part, same):
                a, b = (cell[cell["precision"] == name] for name in (precision, baseline))
                if len(a) == 1 and len(b) == 1:
                    pairs.append((a.iloc[0]["_runs"]["samples_per_second"], b.iloc[0]["_runs"]["samples_per_second"]))
            if pairs:
                r = stats.ratio(pairs)
                where = " ".join(printable(part.iloc[0][c], 40) for c in ("workload", "parallelism", "device_name"))
                gains.append(Gain(precision, baseline, where, r.value, r.low, r.high, len(pairs), _verdict(r)))
    return gains


def _verdict(speed: stats.Estimate) -> Words:
    words: dict[stats.Verdict, Words] = {"more": "faster", "less": "slower", "same": "same"}
    return words.get(stats.verdict(speed), "cannot tell")
