"""A stand-in for analytics.laws with a planted truth: E(d) = d^-gamma, known exactly or nearly so. Nothing is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

GAMMA = 0.05
NOISE = 0.02


def prior_efficiency(devices: np.ndarray, num_nodes: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    gamma = GAMMA * np.exp(0.2 * np.random.default_rng(seed).standard_normal(size))
    return np.asarray(devices, dtype=float)[None, :] ** -gamma[:, None]


@dataclass(frozen=True)
class Series:
    name: str
    keys: dict[str, Any]
    table: pd.DataFrame


def observations(df: pd.DataFrame) -> dict[str, Series]:
    out = {}
    for (suite, precision), runs in df.groupby(["suite", "precision"]):
        rate = runs["flops_per_second_per_device"] * runs["devices"].astype(float)
        table = pd.DataFrame(
            {"devices": runs["devices"].astype(int), "num_nodes": 1.0, "speed": rate, "work": runs["flops_per_sample"]}
        )
        grouped = table.groupby(["devices", "num_nodes", "work"], as_index=False)["speed"].median()
        out[f"{suite} {precision}"] = Series(f"{suite} {precision}", {"suite": suite, "precision": precision}, grouped)
    return out


@dataclass(frozen=True)
class Fit:
    v: float
    most: int

    def draws(self, at: pd.DataFrame, size: int, seed: int = 0) -> np.ndarray:
        noise = np.exp(NOISE * np.random.default_rng(seed).standard_normal((size, 1)))
        return self.v * at["devices"].to_numpy(dtype=float)[None, :] ** (1 - GAMMA) * noise

    def predict(self, at: pd.DataFrame, level: float = 0.8) -> pd.DataFrame:
        speed = self.v * at["devices"].to_numpy(dtype=float) ** (1 - GAMMA)
        flags = ["devices_beyond_reach" if d > 4 * self.most else "" for d in at["devices"]]
        return pd.DataFrame({"speed": speed, "low": 0.97 * speed, "high": 1.03 * speed, "flags": flags})


def fit(table: pd.DataFrame, law: str = "blend", sigma: float = 0.01) -> Fit:
    d = table["devices"].to_numpy(dtype=float)
    return Fit(float(np.exp(np.mean(np.log(table["speed"] / d ** (1 - GAMMA))))), int(d.max()))


def next_runs(table: pd.DataFrame, target: pd.DataFrame, candidates: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    out = candidates.sort_values("devices", ascending=False).head(count).copy()
    return out.assign(sd_before=0.2, sd_after=[0.1, 0.08, 0.07][: len(out)], device_hours=out["devices"] / 60)
