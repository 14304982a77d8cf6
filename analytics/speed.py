"""How fast devices would work: from one's own runs, from published trainings, or as given. Draws, not single figures.

The speed of d devices together is v(d) · d. From published trainings: v = peak × MFU × E(d) / E(d of those trainings). MFU
is log-normal with t tails, per family of devices, pooled over families of models; `data/plan_priors.json` holds it, and
`python -m tests.published_plan` makes that file anew from the published tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from analytics import laws, scaling
from analytics.hardware import Device
from analytics.stats import REACH
from analytics.words import printable
from analytics.work import IMPLAUSIBLE
from bench.record import Status
from bench.schema import RunSpec

SIZE = 4000
LEVEL = 0.8
_SEED = 5
_CHANGES = ("finetune", "pruning", "quantization", "distillation")


@dataclass(frozen=True)
class Draws:
    """Speeds of some numbers of devices, drawn jointly: column j belongs to `devices[j]`, a row is one possible world.

    `rate` (SIZE, k) is the FLOP/s of all devices together; `load` (SIZE, k) the efficiency relative to one node, at most 1,
    which power follows; `flags` (k) say what speaks against each column.
    """

    rate: np.ndarray
    load: np.ndarray
    flags: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class GivenSpeed:
    """A rate that the user gives, in FLOP/s: of one device, or (`together`) of all of them whatever their number."""

    flops_per_second: float
    says: tuple[str, ...] = ()
    together: bool = False
    source: str = "given"  # the label

    def draws(self, devices: Sequence[int]) -> Draws:
        """Return the same rate in every draw."""
        factor = np.ones(len(devices)) if self.together else np.asarray(devices, dtype=float)
        rate = np.tile(self.flops_per_second * factor, (SIZE, 1))
        return Draws(rate, np.ones_like(rate), ((),) * len(devices))


@cache
def priors() -> dict[str, Any]:
    """Return what published tables say: `mfu` by family of devices, and `node_power`; see the file for the sources."""
    loaded: dict[str, Any] = json.loads(resources.files("analytics").joinpath("data/plan_priors.json").read_text())
    return loaded


@dataclass(frozen=True)
class PriorSpeed:
    """Speeds by the prior of a device's family; that of all families, which is wider, where it has none of its own."""

    device: Device
    precision: str
    source: str = "published_prior"

    @property
    def _prior(self) -> dict[str, Any]:
        table = priors()["mfu"]
        # Trainings in bf16 and fp16 made the priors; what share of another peak is reached is less sure.
        own = self.device.family in table and self.precision in ("bf16", "fp16")
        prior: dict[str, Any] = table[self.device.family if own else "other"]
        return prior

    @property
    def says(self) -> tuple[str, ...]:
        """Return the prior in words, and the peak that it is a share of."""
        prior = self._prior
        whose = f"{self.device.family} devices" if prior is not priors()["mfu"]["other"] else "all devices"
        pooled = (
            "" if whose != "all devices" else "; none applies to this device and precision, so the interval is wider"
        )
        peak = self.device.peak_flops(self.precision)
        return (
            f"from published trainings: {100 * prior['mfu']:.3g} % of the peak of {peak / 1e12:,.4g} TFLOP/s "
            f"({self.precision}, dense) at {prior['devices']:,} devices, restarts included ({prior['runs']} trainings of "
            f"{prior['families']} families of models on {whose}{pooled})",
        )

    def draws(self, devices: Sequence[int]) -> Draws:
        """Draw MFU once for all numbers of devices, and how the efficiency falls with them."""
        prior = self._prior
        random = np.random.default_rng(_SEED)
        # Whole trainings above the limit are not known; beyond it lie the tails of the distribution alone.
        mfu = np.minimum(
            prior["mfu"] * np.exp(prior["log_sd"] * random.standard_t(prior["degrees"], SIZE)), IMPLAUSIBLE[1]
        )
        columns = np.asarray([*devices, self.device.per_node, prior["devices"]])
        nodes = np.ceil(columns / self.device.per_node)
        efficiency = laws.prior_efficiency(columns, nodes, SIZE, seed=_SEED)
        share = np.minimum(mfu[:, None] * efficiency[:, :-2] / efficiency[:, -1:], IMPLAUSIBLE[1])
        rate = self.device.peak_flops(self.precision) * share * np.asarray(devices, dtype=float)
        load = np.minimum(efficiency[:, :-2] / efficiency[:, -2:-1], 1)
        return Draws(rate, load, ((),) * len(devices))


@dataclass(frozen=True)
class OwnSpeed:
    """Speeds by the law fitted to one series of one's own runs. `table` holds its configurations, `keys` what they share.

    `per_sample` is the work of a sample of the planned training in FLOP, `sequence` how many tokens a sample of these runs
    has, `watts` what one device drew, with `watts_label` saying how that is known.
    """

    name: str
    keys: dict[str, Any]
    table: pd.DataFrame
    per_sample: float
    per_node: int
    sequence: float | None = None
    watts: float | None = None
    watts_label: str = ""
    source: str = "own_runs"

    @property
    def says(self) -> tuple[str, ...]:
        """Return which runs these are."""
        counts = ", ".join(str(count) for count in sorted(set(self.table["devices"])))
        tokens = f", sequences of {self.sequence:.0f} tokens" if self.sequence else ""
        return (
            f"from your own runs: {printable(self.name, 120)}, {len(self.table)} configurations on {counts} devices{tokens}",
        )

    def fit(self) -> laws.Fit:
        """Return the law of the series."""
        return laws.fit(self.table)

    def at(self, devices: Sequence[int]) -> pd.DataFrame:
        """Return the rows that the law is asked about."""
        counts = np.asarray(devices)
        nodes = np.ceil(counts / self.per_node)
        return pd.DataFrame({"devices": counts, "num_nodes": nodes, "work": self.per_sample})

    def draws(self, devices: Sequence[int]) -> Draws:
        """Draw from the fitted law; its flags say where it is asked about what was not measured."""
        node = min(self.per_node, int(self.table["devices"].max()))
        at = self.at([*devices, node])
        fit = self.fit()
        rate = fit.draws(at, SIZE, seed=_SEED)
        each = rate / at["devices"].to_numpy(dtype=float)
        flags = tuple(tuple(str(text).split()) for text in fit.predict(at, LEVEL)["flags"][:-1])
        return Draws(rate[:, :-1], np.minimum(each[:, :-1] / each[:, -1:], 1), flags)


Speed = GivenSpeed | PriorSpeed | OwnSpeed


def own_speed(
    df: pd.DataFrame,
    device: Device,
    precision: str,
    parameters: float | None,
    per_sample: float,
) -> tuple[OwnSpeed | None, str]:
    """Return the speeds of the runs (rows of a frame) that apply to a plan, or None, and in words why not.

    They apply on the same device, in the same precision, if they train all of a model of comparable size: parameters of a
    language model, otherwise work per sample, within a factor of REACH. Of several series that with the most numbers of
    devices is taken, then the one nearest in size.
    """
    here = df[(df["status"] == Status.OK) & (df["device_name"] == (device.device_name or device.name))]
    if here.empty:
        return None, "none of them was on this device"
    here = here[here["precision"].isin((precision, f"{precision}_params"))]
    if here.empty:
        return None, f"none of those on this device was in {precision}"
    for axis in _CHANGES:
        here = here[here[axis].isna() | (here[axis] == RunSpec.model_fields[axis].default.name)]
    if here.empty:
        return None, f"all of those in {precision} were fine-tuned, pruned, quantized or distilled"
    language, wanted, column = parameters is not None, per_sample, "flops_per_sample"
    if parameters is not None:
        here = here[here["tokens_per_second"].notna()] if "tokens_per_second" in here else here[:0]
        wanted, column = parameters, "parameters"
    far = np.exp(np.abs(np.log(here[column].where(here[column] > 0) / wanted)))
    near = here[far <= REACH]
    if near.empty:
        sizes = f"; the nearest is {far.min():.3g} times off" if far.notna().any() else ""
        return None, f"none was of a comparable {'language model' if language else 'work per sample'}{sizes}"
    found = scaling.fit(near).series
    if not found:
        return None, "none says how much work it did"

    def rank(one: scaling.SeriesFit) -> tuple[int, float]:
        away = min(abs(math.log(point.flops_per_sample / per_sample)) for point in one.points)
        return -len(one.devices), away

    best = min(reversed(found), key=rank)  # the newest of those that are as good
    watts, label = _watts(near, best.keys)
    name = f"{best.keys['suite']}: {best.keys['precision']} {best.keys['parallelism']}"
    tokens = (near["tokens_per_second"] / near["samples_per_second"]).median() if language else math.nan
    sequence = float(tokens) if tokens > 0 else None
    table = best.observations()
    return OwnSpeed(name, best.keys, table, per_sample, device.per_node, sequence, watts, label), ""


def _watts(df: pd.DataFrame, keys: dict[str, Any]) -> tuple[float | None, str]:
    """Power of one device in the runs of a series: measured where any of them was, else that of a model."""
    for key, value in keys.items():
        if key in df and key in ("suite", "execution", "environment"):
            df = df[df[key] == value]
    for column, label in (("power_watts", "measured"), ("power_estimated_watts", "estimated")):
        each = (df[column] / df["devices"].astype(float)).dropna() if column in df else pd.Series(dtype=float)
        each = each[each > 0]
        if len(each):
            lacks = " ".join(sorted({word for text in df["energy_missing"].dropna() for word in str(text).split()}))
            without = f", without {lacks}" if lacks and label == "measured" else ""
            return float(np.exp(np.log(each).mean())), f"{label} on your own runs{without}"
    return None, ""
