"""What takes the time of a step where tensor, pipeline and data parallelism vary over many configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from bench.schema import Choice, devices_per_copy

LEAST = 20
"""Fewest configurations from which the parts of a step are estimated."""
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class StepTime:
    """Mean `shares` of the time of a step by part, and the median errors for a configuration that is left out.

    `plain_left_out` is the error of one speed for all configurations.
    """

    configurations: int
    shares: Mapping[str, float]
    left_out: float
    plain_left_out: float


def step_time(table: pd.DataFrame) -> StepTime | None:
    """Split the time of a step over the configurations of a summary; None for few, or without tensor or pipeline parallelism.

    The seconds are a sum of parts with weights >= 0 (Ernest, NSDI 2016, with physical features): non-negative least squares,
    relative to the measured time.
    """
    steps = configurations(table)
    if len(steps) < LEAST or steps[["tensor_parallel", "pipeline_parallel"]].nunique().max() < 2:
        return None
    features, seconds = _features(steps), steps["step_seconds"].to_numpy(dtype=float)
    features = features[[name for name in features if features[name].any()]]
    values = features.to_numpy(dtype=float)
    parts = values * _weights(values, seconds)
    errors, plain = [], []
    for i in range(len(seconds)):
        others = np.arange(len(seconds)) != i
        errors.append(values[i] @ _weights(values[others], seconds[others]) / seconds[i] - 1)
        plain.append(values[i, 0] / seconds[i] / np.exp(np.log(values[others, 0] / seconds[others]).mean()) - 1)
    shares = dict(zip(map(str, features), (parts / parts.sum(axis=1, keepdims=True)).mean(axis=0), strict=True))
    return StepTime(len(seconds), shares, *(float(np.median(np.abs(each))) for each in (errors, plain)))


def _features(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the work of a step by kind: FLOP of a device, pipeline bubble, one step, bytes of gradients."""
    one_device = steps["flops"] / steps["devices"]
    copies = steps["devices"] / (steps["tensor_parallel"] * steps["pipeline_parallel"])
    sharded = steps["parameters"] / (steps["tensor_parallel"] * steps["pipeline_parallel"])
    parts = {"computing": one_device, "bubble": one_device * (steps["pipeline_parallel"] - 1) / steps["microbatches"]}
    return pd.DataFrame(parts | {"step": 1.0, "data_bytes": sharded * (copies - 1) / copies})


def _weights(values: Array, seconds: Array) -> Array:
    scale = np.where(values.max(axis=0) > 0, values.max(axis=0), 1)
    weights, _ = optimize.nnls(values / scale / seconds[:, None], np.ones_like(seconds))
    return np.asarray(weights / scale)


def configurations(table: pd.DataFrame) -> pd.DataFrame:
    """Return devices, FLOP, seconds of a step and degrees of parallelism of a summary (`analytics.runs.frame.summary`)."""
    complete = (table["samples_per_second"] > 0) & (table["flops_per_sample"] > 0) & table["global_batch_size"].notna()
    rows = []
    for _, row in table[complete & (table["parameters"] > 0)].iterrows():
        devices, name = int(row["devices"]), str(row["parallelism"])
        size = row.get("parallelism.size")
        options = {"size": int(float(size))} if pd.notna(size) else {}
        copy = devices_per_copy(Choice(name=name, options=options), devices)
        stages = copy if name == "pp" else 1
        micro = row.get("parallelism.microbatches")
        each = float(micro) if pd.notna(micro) and float(micro) > 0 else min(2.0 * stages, row["batch_size_per_device"])
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
