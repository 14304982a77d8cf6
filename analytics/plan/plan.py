"""What a training would take on different numbers of devices: time, money, energy and carbon, ranked, with reasons.

T = n / (d · v) with n of `analytics.work` and v drawn from `plan.speed`. One draw of T goes into all that follows from
it: energy = power × T (times PUE at the meter of the building), carbon = energy × intensity of the region, cost = d × T ×
price, or capital and electricity as in `bench.figures.cost`. Intervals are the middle 80 % of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from analytics.interval import Interval, plain
from analytics.law import law as laws
from analytics.law.series import Host
from analytics.plan.device import Device
from analytics.plan.speed import LEVEL, SIZE, Draws, OwnSpeed, Speed, priors
from analytics.work import Work, implied_mfu
from bench.errors import BadValue
from bench.figures.regions import intensity
from bench.schema import Site

MOST_DEVICES = 1_000_000
_STATE_BYTES = 16
"""Bytes a parameter in mixed precision with Adam: weights 2, gradients 2, master weights 4, two moments 8."""
_NODES_MEASURED = ("H100-SXM", "B200")
REASONS = ("machine", "memory", "batch", "samples", "mfu", "late", "budget")
"""What can be in the way of a number of devices."""


def middle(draws: np.ndarray) -> Interval:
    """Return the median of draws and their middle 80 %. Raises BadValue where they are not finite."""
    low, value, high = np.quantile(draws, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadValue("a figure is beyond what can be computed: check the numbers")
    return Interval(float(value), float(low), float(high), level=LEVEL)


@dataclass(frozen=True)
class PlanOption:
    """One number of devices: what the training takes there, whether it meets what was asked, and if not why.

    `reasons` are of REASONS. `chance` is the share of draws that meet deadline and budget together.
    `energy_joules_estimated` is that of the machines, `facility_energy_joules` that with PUE. `model_flops_utilization` is
    what the time implies. Absent is None.
    """

    devices: int
    feasible: bool
    reasons: tuple[str, ...]
    chance: float | None
    duration_seconds: Interval
    device_hours: Interval
    cost_usd: Interval | None
    energy_joules_estimated: Interval | None
    facility_energy_joules: Interval | None
    emissions_kg: Interval | None
    embodied_kg: Interval | None
    model_flops_utilization: float | None
    source: str
    flags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return plain(**vars(self))


@dataclass(frozen=True)
class Step:
    """From one number of devices to the next larger: cost and energy as factors, and the seconds that are saved."""

    devices: int
    to_devices: int
    cost_ratio: Interval | None
    energy_ratio: Interval | None
    saved_seconds: Interval


@dataclass(frozen=True)
class Question:
    """What is asked: the work, where the speed comes from, the numbers of devices, and what is allowed.

    `watts` is what one device draws with its share of the node, if known; otherwise it follows from the device's limit.
    `embodied_kg_per_hour` is what making a device emitted, per hour of its use; its figure is never added to others.
    `counted` is False where only the sum over all devices is known, and `devices` is (1,).
    """

    work: Work
    speed: Speed
    devices: tuple[int, ...]
    device: Device | None = None
    precision: str = "bf16"
    site: Site = field(default_factory=Site)
    watts: float | None = None
    deadline_seconds: float | None = None
    budget_usd: float | None = None
    batch: float | None = None
    embodied_kg_per_hour: float | None = None
    counted: bool = True

    @property
    def state_bytes(self) -> float:
        """Return the size of the training state of a language model; 0 where it is not known."""
        return (self.work.parameters or 0) * _STATE_BYTES if self.counted else 0

    @property
    def least_devices(self) -> int:
        """Return how many devices hold the training state; 1 where that is not known."""
        memory = self.device.memory_bytes if self.device else None
        return 1 if memory is None else max(1, math.ceil(self.state_bytes / memory))

    @property
    def host(self) -> Host | None:
        """Return the machine of the user's runs whose cores CPU devices share; None for other devices."""
        host = self.speed.host if isinstance(self.speed, OwnSpeed) else None
        return host if host is not None and host.shares else None

    def misfit(self, devices: int) -> str:
        """Return what keeps the training from so many devices, of REASONS; "" where nothing is known to."""
        if self.host is not None and self.host.flags(devices):
            return "machine"
        if self.device is not None and self.device.memory_bytes is not None and devices < self.least_devices:
            return "memory"
        if self.batch is not None and devices > self.batch:
            return "batch"
        return "samples" if self.work.says and devices > self.work.samples else ""


@dataclass(frozen=True)
class _Drawn:
    """Draws for some numbers of devices, (SIZE, k), columns as in `devices`; None for what is not known."""

    devices: tuple[int, ...]
    seconds: np.ndarray
    hours: np.ndarray
    joules: np.ndarray | None
    usd: np.ndarray | None
    flags: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plan:
    """The answer to a question."""

    question: Question

    @cached_property
    def _drawn(self) -> _Drawn:
        question = self.question
        node = question.device.per_node if question.device else 8
        # Numbers in between tell how few devices would do.
        between = {2**k for k in range(node.bit_length())} | {node * round(2 ** (k / 4)) for k in range(80)}
        more = {count for count in between if count <= MOST_DEVICES and question.deadline_seconds is not None}
        return _draw(question, tuple(sorted({*question.devices, *more})))

    @cached_property
    def options(self) -> tuple[PlanOption, ...]:
        """Return one option a number of devices: those that meet what is asked first, then by cost, then by time."""
        made = [self.option(count) for count in self.question.devices]

        def rank(one: PlanOption) -> tuple[bool, float, float]:
            return not one.feasible, one.cost_usd.value if one.cost_usd else 0.0, one.duration_seconds.value

        return tuple(sorted(made, key=rank))

    def option(self, devices: int) -> PlanOption:
        """Return the option of a number of devices that is asked for, or that `fewest` returned."""
        return _option(self.question, self._drawn, devices)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return what each larger number of devices changes, of those that can run the training."""
        drawn, out = self._drawn, []
        for few, many in pairwise(sorted(count for count in self.question.devices if not self.question.misfit(count))):
            a, b = drawn.devices.index(few), drawn.devices.index(many)
            cost, energy = (
                middle(every[:, b] / every[:, a]) if every is not None and (every > 0).all() else None
                for every in (drawn.usd, drawn.joules)
            )
            out.append(Step(few, many, cost, energy, middle(drawn.seconds[:, a] - drawn.seconds[:, b])))
        return tuple(out)

    def fewest(self, sure: float = 0.5) -> int | None:
        """Return about how few devices meet the deadline with at least this chance; None where none of those tried does.

        Numbers between and beyond the planned ones count too, a fifth apart, up to MOST_DEVICES or to those of the one host
        whose cores CPU devices share.
        """
        deadline, drawn = self.question.deadline_seconds, self._drawn
        for count, seconds in zip(drawn.devices, drawn.seconds.T, strict=True):
            if deadline is not None and (seconds <= deadline).mean() >= sure and not self.question.misfit(count):
                return count
        return None

    def regions(self, names: Iterable[str], option: PlanOption) -> list[tuple[str, float, Interval]]:
        """Return region, kg CO2e per kWh and kg CO2e of an option; [] where no energy is known.

        Raises ValueError for a region that is not known.
        """
        energy, found = option.facility_energy_joules, [intensity(name) for name in names]
        return [
            (one.region, one.kg_per_kwh, energy.times(one.kg_per_kwh / 3.6e6)) for one in found if energy is not None
        ]


def _draw(question: Question, devices: tuple[int, ...]) -> _Drawn:
    """Draw time, energy and cost for some numbers of devices, the same time in each."""
    found, site = question.speed.draws(devices), question.site
    seconds = question.work.flops / found.rate
    hours = seconds * np.asarray(devices, dtype=float) / 3600
    watts = _watts(question, found)
    joules = None if watts is None else hours * 3600 * watts
    usd = None
    if site.usd_per_device_hour is not None:
        usd = hours * site.usd_per_device_hour
    elif site.usd_capital_per_device_hour is not None or (site.usd_per_kwh is not None and joules is not None):
        electricity = 0 if joules is None else joules / 3.6e6 * (site.pue or 1) * (site.usd_per_kwh or 0)
        usd = hours * (site.usd_capital_per_device_hour or 0) + electricity
    return _Drawn(devices, seconds, hours, joules, usd, found.flags)


def _watts(question: Question, found: Draws) -> np.ndarray | float | None:
    """Draw the power of one device with its share of the node, (SIZE, k): P(d) = P(1 node) (phi + (1 - phi) E(d)).

    P of one node is the devices' limits × a factor from measured nodes (MLPerf training with power): the host is in it.
    """
    if question.watts is not None or question.device is None or question.device.watts is None:
        return question.watts
    prior, random = priors()["node_power"], np.random.default_rng(7)
    spread = prior["log_sd"] * (1 if question.device.name in _NODES_MEASURED else 2)
    factor = prior["ratio"] * np.exp(spread * random.standard_t(prior["degrees"], SIZE))[:, None]
    phi = np.clip(random.normal(prior["phi"], prior["phi_sd"], SIZE), 0, 1)[:, None]
    drawn: np.ndarray = question.device.watts * factor * (phi + (1 - phi) * found.load)
    return drawn


def _option(question: Question, drawn: _Drawn, devices: int) -> PlanOption:
    j, site = drawn.devices.index(devices), question.site
    seconds, hours = middle(drawn.seconds[:, j]), middle(drawn.hours[:, j])
    usd, energy = (None if every is None else middle(every[:, j]) for every in (drawn.usd, drawn.joules))
    facility = energy.times(site.pue or 1) if energy else None
    kg_per_joule = intensity(site.region).kg_per_kwh / 3.6e6 if site.region is not None else None
    emissions = facility.times(kg_per_joule) if facility and kg_per_joule is not None else None
    mfu, flags = _mfu(question, hours.value)
    broken = _broken(question, devices, seconds.value, hours.value, usd.value if usd else None)
    met = np.full(SIZE, broken <= {"late", "budget"})
    if question.deadline_seconds is not None and question.counted:
        met &= drawn.seconds[:, j] <= question.deadline_seconds
    if question.budget_usd is not None and drawn.usd is not None:
        met &= drawn.usd[:, j] <= question.budget_usd
    return PlanOption(
        devices=devices,
        feasible=not broken,
        reasons=tuple(name for name in REASONS if name in broken),
        chance=None if question.deadline_seconds is None and question.budget_usd is None else float(met.mean()),
        duration_seconds=seconds,
        device_hours=hours,
        cost_usd=usd,
        energy_joules_estimated=energy,
        facility_energy_joules=facility,
        emissions_kg=emissions,
        embodied_kg=None if question.embodied_kg_per_hour is None else hours.times(question.embodied_kg_per_hour),
        model_flops_utilization=mfu,
        source=question.speed.source,
        flags=(*drawn.flags[j], *flags, *_flags(question, devices, energy, usd)),
    )


def _broken(question: Question, devices: int, seconds: float, hours: float, usd: float | None) -> set[str]:
    """Return what speaks against a number of devices, by medians of time, device-hours and cost."""
    deadline, budget = question.deadline_seconds if question.counted else None, question.budget_usd
    broken = {
        question.misfit(devices): True,
        "mfu": (_mfu(question, hours)[0] or 0) > 1,
        "late": deadline is not None and seconds > deadline,
        "budget": budget is not None and usd is not None and usd > budget,
    }
    return {name for name, true in broken.items() if true and name}


def best(question: Question) -> int | None:
    """Return the devices of the first option of a plan, without its intervals: quick; None where none meets what is asked."""
    drawn = _draw(question, tuple(sorted(question.devices)))
    seconds, hours = np.median(drawn.seconds, axis=0).tolist(), np.median(drawn.hours, axis=0).tolist()
    usd = [None] * len(seconds) if drawn.usd is None else np.median(drawn.usd, axis=0).tolist()
    rows = zip(drawn.devices, seconds, hours, usd, strict=True)
    fit = [(cost or 0.0, time, n) for n, time, spent, cost in rows if not _broken(question, n, time, spent, cost)]
    return min(fit)[2] if fit else None


def _mfu(question: Question, device_hours: float) -> tuple[float | None, tuple[str, ...]]:
    if question.device is None or not question.work.says:
        return None, ()
    try:
        return implied_mfu(question.work.model_flops, device_hours, question.device.peak_flops(question.precision))
    except ValueError:  # no peak is known of a device of one's own runs, or of one whose rate is given
        return None, ()


def _flags(question: Question, devices: int, energy: Interval | None, usd: Interval | None) -> tuple[str, ...]:
    device = question.device
    memory = device.memory_bytes if device else None
    said = {
        "memory_tight": memory is not None and memory * devices / 2 < question.state_bytes <= memory * devices,
        "power_of_other_nodes": energy is not None
        and question.watts is None
        and device is not None
        and device.name not in _NODES_MEASURED,
        "pue_unknown": energy is not None and question.site.pue is None,
        "electricity_unknown": question.site.usd_per_kwh is not None and energy is None and usd is not None,
        "prior_of_language_models": question.speed.source == "published_prior" and question.work.parameters is None,
        "budget_not_checked": question.budget_usd is not None and usd is None,
    }
    return tuple(name for name, true in said.items() if true)


def next_runs(own: OwnSpeed, most: int, count: int = 3) -> list[dict[str, Any]]:
    """Return the runs, of up to `most` devices, that narrow the interval there most per device-hour, the best first.

    `factor_before` and `factor_after` say how wide it is: the 80 % interval is the value × or ÷ that factor.
    """
    measured = set(map(int, own.table["devices"]))
    more = {2**k for k in range(most.bit_length())} | {most}
    if own.host.shares:  # on one host a second number of devices tells more than the first again
        more = {2 * count for count in measured if len(measured) == 1 and 2 * count <= (own.host.devices or 2 * count)}
    found = laws.next_runs(own.fit(), own.at([most]), own.at(sorted(measured | more)), count)
    found = found[found["sd_after"] < 0.995 * found["sd_before"]]
    z = 1.2816  # of a normal distribution, for 80 %
    return [
        {
            "devices": int(row["devices"]),
            "device_hours": float(row["device_hours"]),
            "factor_before": math.exp(z * row["sd_before"]),
            "factor_after": math.exp(z * row["sd_after"]),
        }
        for _, row in found.iterrows()
    ]
