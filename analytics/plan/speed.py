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

from analytics.judge.stats import REACH
from analytics.law import law as laws
from analytics.law import series as scaling
from analytics.law.outlook import contradictions
from analytics.plan.device import Device, same
from analytics.work import IMPLAUSIBLE, TYPICAL_SEQUENCE, Work
from bench.record import Status
from bench.schema import RunSpec

SIZE = 4000
LEVEL = 0.8
_SEED = 5
_SIZE_SPREAD = 0.2
"""Standard deviation of the logarithm of MFU that each doubling beyond the sizes of the published trainings adds: assumed."""
ELSEWHERE_SPREAD = 0.15
"""Standard deviation of the logarithm of the speed that the same devices reach on another machine: half of that between
published trainings, assumed."""
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
    parameters: float | None = None
    source: str = "published_prior"

    @property
    def prior(self) -> dict[str, Any]:
        """Return the prior that applies, an entry of `priors()["mfu"]`."""
        table = priors()["mfu"]
        # Trainings in bf16 and fp16 made the priors; what share of another peak is reached is less sure.
        own = self.device.family in table and self.precision in ("bf16", "fp16")
        prior: dict[str, Any] = table[self.device.family if own else "other"]
        return prior

    @property
    def pooled(self) -> bool:
        """Whether the prior is that of all families of devices, as none applies to this device and precision."""
        return self.prior is priors()["mfu"]["other"]

    @property
    def away(self) -> float:
        """How many times the model is smaller or larger than all those of the published trainings; 1 for one between."""
        sizes, n = priors()["parameters"], self.parameters
        return 1.0 if n is None else max(sizes["least"] / n, n / sizes["most"], 1.0)

    def draws(self, devices: Sequence[int]) -> Draws:
        """Draw MFU once for all numbers of devices, and how the efficiency falls with them."""
        prior = self.prior
        random = np.random.default_rng(_SEED)
        spread = math.hypot(prior["log_sd"], _SIZE_SPREAD * math.log2(self.away))
        # Whole trainings above the limit are not known; beyond it lie the tails of the distribution alone.
        mfu = np.minimum(prior["mfu"] * np.exp(spread * random.standard_t(prior["degrees"], SIZE)), IMPLAUSIBLE[1])
        columns = np.asarray([*devices, self.device.per_node, prior["devices"]])
        nodes = np.ceil(columns / self.device.per_node)
        efficiency = laws.prior_efficiency(columns, nodes, SIZE, seed=_SEED)
        share = np.minimum(mfu[:, None] * efficiency[:, :-2] / efficiency[:, -1:], IMPLAUSIBLE[1])
        rate = self.device.peak_flops(self.precision) * share * np.asarray(devices, dtype=float)
        load = np.minimum(efficiency[:, :-2] / efficiency[:, -2:-1], 1)
        return Draws(rate, load, (("size_outside_published",) if self.away > 1 else (),) * len(devices))


@dataclass(frozen=True)
class OwnSpeed:
    """Speeds by the law fitted to one series of runs, one's own or `imported`.

    `table` holds its configurations, `keys` what they share, `per_sample` is the work of a sample of the planned training in
    FLOP, `sequence` how many tokens a sample of these runs has, `watts` what one device drew, with `watts_label` saying how
    that is known. `host` is the machine of these runs, `repeats` the most runs of one configuration.
    """

    name: str
    keys: dict[str, Any]
    table: pd.DataFrame
    per_sample: float
    per_node: int
    host: scaling.Host
    sequence: float | None = None
    watts: float | None = None
    watts_label: str = ""
    imported: bool = False
    repeats: int = 1

    @property
    def source(self) -> str:
        """Return the label."""
        return "imported_runs" if self.imported else "own_runs"

    def fit(self) -> laws.Fit:
        """Return the law of the series."""
        return laws.fit(self.table)

    def at(self, devices: Sequence[int]) -> pd.DataFrame:
        """Return the rows that the law is asked about."""
        counts = np.asarray(devices)
        nodes = np.ones(len(counts)) if self.host.shares else np.ceil(counts / self.per_node)
        return pd.DataFrame({"devices": counts, "num_nodes": nodes, "work": self.per_sample})

    def draws(self, devices: Sequence[int]) -> Draws:
        """Draw from the fitted law; its flags say where it is asked about what was not measured."""
        node = min(self.per_node, int(self.table["devices"].max()))
        at = self.at([*devices, node])
        fit = self.fit()
        rate = fit.draws(at, SIZE, seed=_SEED)
        if self.imported:  # the machine that is planned for is not the one that was measured
            apart = np.random.default_rng(_SEED + 1).standard_normal((SIZE, 1))
            rate = rate * np.exp(ELSEWHERE_SPREAD * (apart - np.median(apart)))
        each = rate / at["devices"].to_numpy(dtype=float)
        limits = zip(devices, fit.predict(at, LEVEL)["flags"], strict=False)  # without the node, which comes last
        wrong = contradictions(fit, self.table)
        flags = tuple((*str(text).split(), *wrong, *self.host.flags(count)) for count, text in limits)
        return Draws(rate[:, :-1], np.minimum(each[:, :-1] / each[:, -1:], 1), flags)


Speed = GivenSpeed | PriorSpeed | OwnSpeed


def own_speed(df: pd.DataFrame, device: Device, precision: str, work: Work) -> tuple[OwnSpeed | None, str]:
    """Return the speeds of the runs (rows of a frame) that apply to a plan, or None, and in words why not (or not all).

    They apply on the same device, in the same precision, if they train all of a model of comparable size: parameters of a
    language model, otherwise work per sample, within a factor of REACH. A language model's work is counted anew by the rule
    of the plan. Of several series that with the most numbers of devices is taken, then the one nearest in size.
    """
    names = [name for name in df["device_name"].dropna().unique() if same(name, device)]
    here = df[(df["status"] == Status.OK) & df["device_name"].isin(names)]
    if here.empty:
        return None, "none of them was on this device"
    untold = (
        ", and that of some is not told (bench import --set precision=...)" if here["precision"].isna().any() else ""
    )
    here = here[here["precision"].isin((precision, f"{precision}_params"))]
    if here.empty:
        return None, f"none of those on this device was in {precision}{untold}"
    for axis in _CHANGES:
        here = here[here[axis].isna() | (here[axis] == RunSpec.model_fields[axis].default.name)]
    if here.empty:
        return None, f"all of those in {precision} were fine-tuned, pruned, quantized or distilled"
    language, wanted, column = work.parameters is not None, work.per_sample, "flops_per_sample"
    if work.parameters is not None:
        here, wanted, column = here[here["tokens_per_second"] > 0], work.parameters, "parameters"
    far = np.exp(np.abs(np.log(here[column].where(here[column] > 0) / wanted)))
    near = here[far <= REACH]
    if near.empty:
        sizes = f"; the nearest is {far.min():.3g} times off" if far.notna().any() else ""
        return None, f"none was of a comparable {'language model' if language else 'work per sample'}{sizes}"
    # Where the number of nodes is not told, it is that of the plan.
    nodes = np.ceil(near["devices"].astype(float) / device.per_node).astype("Int64")
    near = near.assign(num_nodes=near["num_nodes"].fillna(nodes))
    near, why = _possible(_recounted(near, work) if language else near, device, precision)
    found = scaling.fit(near).series
    if not found:
        return None, why or "none says how much work it did"

    def rank(one: scaling.SeriesFit) -> tuple[int, float]:
        away = min(abs(math.log(point.flops_per_sample / work.per_sample)) for point in one.points)
        return -len(one.devices), away

    best = min(reversed(found), key=rank)  # the newest of those that are as good
    for key, value in best.keys.items():
        near = near[near[key] == value]
    return _of(best, near, work, device, language=language), why


def _recounted(df: pd.DataFrame, work: Work) -> pd.DataFrame:
    """Count the work of runs of language models as the plan counts its own, so that the same model has the same work."""
    usual = work.shape[2] if work.shape else TYPICAL_SEQUENCE
    length = (df["tokens_per_second"] / df["samples_per_second"]).fillna(usual)
    flops = [work.counted(*pair) for pair in zip(df["parameters"], length, strict=True)]
    samples = df["tokens_per_second"] / length
    rate = flops * samples / df["devices"].astype(float)
    return df.assign(
        flops_per_sample=flops, samples_per_second=samples, flops_per_second_per_device=rate, sequence=length
    )


def _possible(df: pd.DataFrame, device: Device, precision: str) -> tuple[pd.DataFrame, str]:
    """Leave out executions with a speed above the peak of the device, and say why."""
    try:
        share = df[scaling.RATE] / device.peak_flops(precision)
    except ValueError:  # no peak is known
        return df, ""
    wrong = df["execution"].isin(df["execution"][share > 1])
    why = (
        f"a speed of theirs would be a model FLOP utilization of {share.max():.3g}, above 1: their parameters, rates, "
    )
    return df[~wrong], why + "precision or device must be wrong" if wrong.any() else ""


def _of(best: scaling.SeriesFit, df: pd.DataFrame, work: Work, device: Device, *, language: bool) -> OwnSpeed:
    """Describe a series and the runs it is of."""
    imported = bool(df["flags"].fillna("").str.split().map(lambda words: "imported" in words).any())
    watts, label = _watts(df)
    return OwnSpeed(
        f"{best.keys['suite']}: " + " ".join(str(best.keys[k]) for k in ("precision", "parallelism") if k in best.keys),
        best.keys,
        best.observations(),
        work.per_sample,
        device.per_node,
        best.host,
        float(df["sequence"].median()) if language else None,
        watts,
        f"{label} on {'the imported' if imported else 'your own'} runs",
        imported,
        repeats=max(point.repeats for point in best.points),
    )


def _watts(df: pd.DataFrame) -> tuple[float | None, str]:
    """Power of one device in runs: measured where any of them was, else that of a model."""
    for column, label in (("power_watts", "measured"), ("power_watts_estimated", "estimated")):
        each = (df[column] / df["devices"].astype(float)).dropna()
        each = each[each > 0]
        if len(each):
            lacks = " ".join(sorted({word for text in df["energy_missing"].dropna() for word in str(text).split()}))
            without = f", without {lacks}," if lacks and label == "measured" else ""
            return float(np.exp(np.log(each).mean())), f"{label}{without}"
    return None, ""
