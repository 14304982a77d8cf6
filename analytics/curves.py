"""Descriptive curves: they sum measured runs up in one or two numbers, and are not to be extrapolated.

Terms that are linear in d run away in weak scaling, where nothing of the kind happens; Amdahl's and Gustafson's shares
hold for the one way of scaling each that they are about. To predict, use `analytics.laws`. Where tensor, pipeline and data
parallelism vary over many configurations, `fit_strategies` says what takes the time of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from analytics.laws import LawError
from bench.schema import Choice, devices_per_copy

Array = np.ndarray[Any, np.dtype[np.float64]]
STRATEGY_ROWS = 20
"""So many configurations make the parts of a step by strategy worth telling."""


@dataclass(frozen=True)
class Curve:
    """A curve over the devices: its parameters by name, the fitted speeds, and the median of |fitted / measured - 1|.

    `function` takes devices and the parameters.
    """

    name: str
    formula: str
    parameters: dict[str, float]
    speeds: tuple[float, ...]
    error_median: float
    function: Callable[..., Array] = field(repr=False, compare=False)

    def at(self, devices: float) -> float:
        """Return the speed on a number of devices: to judge the curve, not to predict."""
        return float(self.function(np.array([devices]), *self.parameters.values())[0])


def _amdahl(d: Array, v: float, serial: float) -> Array:
    return v * d / (1 + serial * (d - 1))


def _usl(d: Array, v: float, contention: float, coherency: float) -> Array:
    return v * d / (1 + contention * (d - 1) + coherency * d * (d - 1))


CURVES: dict[str, tuple[Callable[..., Array], tuple[str, ...], str]] = {
    "amdahl": (_amdahl, ("v", "serial"), "v d / (1 + serial (d - 1))"),
    "usl": (_usl, ("v", "contention", "coherency"), "v d / (1 + contention (d - 1) + coherency d (d - 1))"),
}


def _measured(devices: Sequence[float], speeds: Sequence[float], least: int) -> tuple[Array, Array]:
    d, x = np.asarray(devices, dtype=float), np.asarray(speeds, dtype=float)
    if len(d) != len(x) or not (np.isfinite(d) & np.isfinite(x) & (d >= 1) & (x > 0)).all():
        raise LawError("a curve needs as many speeds as devices, all positive and finite")
    if len(np.unique(d)) < least:
        raise LawError(f"this curve needs {least} or more numbers of devices, there are {len(np.unique(d))}")
    return d, x


def curve(name: str, devices: Sequence[float], speeds: Sequence[float]) -> Curve:
    """Fit `amdahl` (AFIPS 1967), `gustafson` (CACM 31, 1988), `usl` (Gunther 1993) or `ernest` (NSDI 2016) to speeds.

    `speeds` are those of all devices together, in any unit. Amdahl and USL are fitted on logarithms. Gustafson's share s is
    that of the scaled speed-up s + (1 - s) d. Ernest's time of a unit of work, a + b / d + c log2(d) + e d, is fitted by
    non-negative least squares, relative to the measured time. Raises LawError for too few numbers of devices.
    """
    if name == "gustafson":
        return _gustafson(*_measured(devices, speeds, 2))
    if name == "ernest":
        return _ernest(*_measured(devices, speeds, 3))
    if name not in CURVES:
        raise LawError(f"no curve {name!r}; there are {', '.join([*CURVES, 'gustafson', 'ernest'])}")
    function, names, formula = CURVES[name]
    d, x = _measured(devices, speeds, len(names))
    start = [x[d.argmin()] / d.min(), *[0.01] * (len(names) - 1)]
    found = optimize.least_squares(
        lambda p: np.log(function(d, p[0] * start[0], *p[1:]) / x),
        [1.0, *start[1:]],
        bounds=([1e-12, *[0.0] * (len(names) - 1)], np.inf),
    ).x
    return _curve(name, formula, dict(zip(names, [found[0] * start[0], *found[1:]], strict=True)), d, x, function)


def _curve(name: str, formula: str, parameters: dict[str, float], d: Array, x: Array, function: Any) -> Curve:
    fitted = np.asarray(function(d, *parameters.values()))
    known = {key: float(value) for key, value in parameters.items()}
    error = float(np.median(np.abs(fitted / x - 1)))
    return Curve(name, formula, known, tuple(map(float, fitted)), error, function)


def _gustafson(d: Array, x: Array) -> Curve:
    one = float(np.exp(np.log(x[d == d.min()]).mean()))
    ratio, base = x / one, d / d.min()
    share = float(np.clip(((base - ratio) @ (base - 1)) / ((base - 1) @ (base - 1)), 0, 1))
    formula = "speed of the fewest devices × (serial + (1 - serial) d / fewest)"
    return _curve(
        "gustafson",
        formula,
        {"speed": one, "serial": share},
        d,
        x,
        lambda d_, v, s: v * (s + (1 - s) * d_ / d.min()),
    )


def _ernest(d: Array, x: Array) -> Curve:
    features = np.column_stack([np.ones_like(d), 1 / d, np.log2(d), d])
    weights, _ = optimize.nnls(features * x[:, None], np.ones_like(x))
    names = dict(zip(("fixed", "parallel", "tree", "linear"), weights, strict=True))
    formula = "1 / (fixed + parallel / d + tree log2(d) + linear d)"
    return _curve(
        "ernest", formula, names, d, x, lambda d, *w: 1 / (np.column_stack([np.ones_like(d), 1 / d, np.log2(d), d]) @ w)
    )


def critical_batch(batch: Sequence[float], samples_to_target: Sequence[float]) -> tuple[float, float]:
    """Return (samples, batch_critical) of samples(B) = samples (1 + B / batch_critical), to reach one target.

    The statistical inefficiency S(B) = 1 + B / batch_critical of McCandlish et al. (arXiv 1812.06162); infinite where larger
    batches need no more samples. Non-negative least squares, relative to what was needed. Raises LawError for one batch.
    """
    b, needed = _measured(batch, samples_to_target, 2)
    (samples, slope), _ = optimize.nnls(np.column_stack([np.ones_like(b), b]) / needed[:, None], np.ones_like(b))
    return float(samples), float(samples / slope) if slope > 0 else float("inf")


@dataclass(frozen=True)
class StrategyFit:
    """Seconds of a step by what takes them: non-negative weights of the parts, and errors of left-out configurations.

    `flops_per_second` is what one device does at its best (1 / the weight of computing). `left_out_median` is the median of
    |predicted / measured - 1| when each configuration is left out once; `ideal_left_out_median` that of one v for all.
    """

    weights: dict[str, float]
    flops_per_second: float
    left_out_median: float
    ideal_left_out_median: float
    flags: tuple[str, ...]

    def step_seconds(self, table: pd.DataFrame) -> Array:
        """Seconds of a step of configurations (see `fit_strategies`)."""
        return np.asarray(_features(table)[list(self.weights)].to_numpy() @ np.array(list(self.weights.values())))

    def shares(self, table: pd.DataFrame) -> pd.DataFrame:
        """Where the time of a step goes, a row a configuration: shares that add up to 1."""
        parts = _features(table)[list(self.weights)] * np.array(list(self.weights.values()))
        return parts.div(parts.sum(axis=1), axis=0)


def _features(table: pd.DataFrame) -> pd.DataFrame:
    """What a step does of each kind: FLOP a device, bubble, passes, bytes over the wires."""
    column = {name: pd.to_numeric(table[name]).astype(float) for name in table if name != "step_seconds"}
    one = pd.Series(1.0, index=table.index)
    d, flops = column["devices"], column["flops"]
    tp, pp = column.get("tensor_parallel", one), column.get("pipeline_parallel", one)
    micro = column.get("microbatches", one)
    dp = d / (tp * pp)
    out = {"computing": flops / d, "bubble": flops / d * (pp - 1) / micro, "step": one}
    if "layers" in column:
        out["passes"] = micro * column["layers"] / pp
    if {"layers", "hidden", "sequence", "micro_batch"} <= set(column):
        tokens = column["micro_batch"] * column["sequence"]
        out["small_products"] = flops / d / (tokens * column["hidden"] / tp)
        out["tensor_bytes"] = tokens * column["hidden"] * column["layers"] / pp * micro * (tp - 1) / tp
    if "parameters" in column:
        out["data_bytes"] = column["parameters"] / (tp * pp) * (dp - 1) / dp
    return pd.DataFrame(out)


def fit_strategies(table: pd.DataFrame) -> StrategyFit:
    """Fit the seconds of a step as a sum of parts with weights >= 0 (Ernest, NSDI 2016, with physical features).

    Columns, one row a configuration of one kind of device and precision: `devices`, `flops` and `step_seconds` of a step,
    and where they are known `tensor_parallel`, `pipeline_parallel`, `microbatches`, `micro_batch` (samples), `sequence`,
    `hidden`, `layers`, `parameters`. Non-negative least squares, relative to the measured time. Raises LawError for fewer
    than three configurations; below STRATEGY_ROWS a flag says that it is few.
    """
    missing = [name for name in ("devices", "flops", "step_seconds") if name not in table]
    if missing or len(table) < 3:
        raise LawError(
            f"parts of a step by strategy need 3 rows or more with devices, flops, step_seconds; lacks {missing}"
        )
    features = _features(table)
    seconds = pd.to_numeric(table["step_seconds"]).to_numpy(dtype=float)
    values = features.to_numpy(dtype=float)
    if not (np.isfinite(values).all() and (values >= 0).all() and np.isfinite(seconds).all() and (seconds > 0).all()):
        raise LawError(
            "devices, flops, step_seconds and what the strategies say must be positive and finite everywhere"
        )
    seen = [str(name) for name in features if features[name].any()]
    values = features[seen].to_numpy(dtype=float)
    weights = _relative_nnls(values, seconds)
    left, ideal = [], []
    for i in range(len(seconds)):
        others = np.delete(np.arange(len(seconds)), i)
        left.append(values[i] @ _relative_nnls(values[others], seconds[others]) / seconds[i] - 1)
        rate = np.log(values[others, 0] / seconds[others]).mean()
        ideal.append(values[i, 0] / np.exp(rate) / seconds[i] - 1)
    flags = ("few_configurations",) if len(table) < STRATEGY_ROWS else ()
    best = 1 / weights[0] if weights[0] > 0 else float("inf")
    known = dict(zip(seen, map(float, weights), strict=True))
    return StrategyFit(known, float(best), float(np.median(np.abs(left))), float(np.median(np.abs(ideal))), flags)


def _relative_nnls(values: Array, seconds: Array) -> Array:
    scale = values.max(axis=0)
    scale[scale == 0] = 1
    found, _ = optimize.nnls(values / scale / seconds[:, None], np.ones_like(seconds))
    return np.asarray(found / scale)


def strategies(table: pd.DataFrame) -> pd.DataFrame:
    """Return the configurations of a summary (`analytics.frame.summary`) as a table for `fit_strategies`."""
    known = table[
        (table["samples_per_second"] > 0) & (table["flops_per_sample"] > 0) & table["global_batch_size"].notna()
    ]
    rows = []
    for _, row in known.iterrows():
        devices, name = int(row["devices"]), str(row["parallelism"])
        copy = devices_per_copy(Choice(name=name, options=_options(row)), devices)
        stages = copy if name == "pp" else 1
        asked = row.get("parallelism.microbatches")
        each = float(asked) if pd.notna(asked) and float(asked) > 0 else min(2.0 * stages, row["batch_size_per_device"])
        rows.append(
            {
                "devices": devices,
                "flops": row["flops_per_sample"] * row["global_batch_size"],
                "step_seconds": row["global_batch_size"] / row["samples_per_second"],
                "tensor_parallel": copy if name in ("tp", "fsdp_tp") else 1,
                "pipeline_parallel": stages,
                "microbatches": each * row["gradient_accumulation_steps"] if stages > 1 else 1,
                "parameters": row["parameters"],
            }
        )
    return pd.DataFrame(rows)


def _options(row: pd.Series) -> dict[str, Any]:
    size = row.get("parallelism.size")
    return {"size": int(float(size))} if pd.notna(size) else {}


def left_out(name: str, devices: Sequence[float], speeds: Sequence[float]) -> float | None:
    """Return the median of |predicted / measured - 1| of the time when each is left out once; None for too few devices."""
    d, x = list(devices), list(speeds)
    try:
        told = [curve(name, d[:i] + d[i + 1 :], x[:i] + x[i + 1 :]).at(d[i]) for i in range(len(d))]
    except LawError:
        return None
    return float(np.median(np.abs(np.array(x) / np.array(told) - 1)))


def described(seen: pd.DataFrame) -> list[tuple[Curve, float | None]]:
    """Return the curves of one series (`SeriesFit.observations`), each with its `left_out`.

    They are those of its largest model on three numbers of devices or more.
    """
    largest = seen[seen["work"] >= 0.999 * seen["work"].max()]
    if largest["devices"].nunique() < 3:
        return []
    given = largest["devices"].tolist(), largest["speed"].tolist()
    return [(curve(name, *given), left_out(name, *given)) for name in (*CURVES, "gustafson", "ernest")]


def sentences(seen: pd.DataFrame) -> list[str]:
    """Describe one series by its curves (`described`)."""
    said = []
    for found, _ in described(seen):
        shares = ", ".join(f"{key} {value:.3g}" for key, value in found.parameters.items() if key not in ("v", "speed"))
        said.append(f"{found.name.capitalize()} ({shares}; misses by {100 * found.error_median:.2g} %)")
    return [f"Described, not to be extrapolated: {'; '.join(said)}."] if said else []


def strategy_sentences(table: pd.DataFrame) -> list[str]:
    """Say what takes the time of a step over the configurations of a summary, where there are STRATEGY_ROWS or more."""
    seen = strategies(table)
    if len(seen) < STRATEGY_ROWS or (seen["tensor_parallel"].nunique() < 2 and seen["pipeline_parallel"].nunique() < 2):
        return []
    found = fit_strategies(seen)
    shares = {str(name).replace("_", " "): share for name, share in found.shares(seen).mean().items()}
    parts = [f"{100 * share:.0f} % {name}" for name, share in shares.items() if share >= 0.005]
    return [
        f"Over {len(seen)} strategies a step takes on average {', '.join(parts)}; a strategy that was left out is missed by "
        f"{100 * found.left_out_median:.2g} % (by one v for all: {100 * found.ideal_left_out_median:.2g} %)."
    ]
