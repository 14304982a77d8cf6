"""What is given in people's terms (model, tokens, devices, prices) and the runs of a store -> the question of a plan.

Messages name what is given as the command line does, `--params`; `worded` puts other names in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analytics.plan.device import Device, find
from analytics.plan.plan import Question
from analytics.plan.speed import GivenSpeed, OwnSpeed, PriorSpeed, Speed, own_speed
from analytics.text import printable
from analytics.work import Work, language_model, sample_work
from bench.errors import BadValue
from bench.record import Status
from bench.schema import Site
from bench.suites.load import SITE_OPTIONS

RATES = ("tokens_per_second", "tokens_per_second_per_device", "flops_per_second_per_device", "accelerator_hours")
LIMITS = {"price": 1e6, "capital_price": 1e6, "electricity_price": 1e3, "power_watts": 1e6, "embodied": 1e6}
LIMITS["peak_flops"] = 1e21
"""The most that can be meant."""
Own = Callable[[pd.DataFrame, Device, str, Work], tuple[OwnSpeed | None, str]]


@dataclass(frozen=True)
class Given:
    """What is given of a plan, by the names of the options of `bench plan`; None is not given.

    Times are in s, money in USD, `embodied` in kg CO2e per device-hour. Raises ValueError for what cannot be meant.
    """

    params: float | None = None
    tokens: float | None = None
    active_params: float | None = None
    layers: float | None = None
    hidden: float | None = None
    sequence: float | None = None
    flops_per_sample: float | None = None
    samples: float | None = None
    device: str | None = None
    devices: tuple[int, ...] | None = None
    peak_flops: float | None = None
    power_watts: float | None = None
    precision: str = "bf16"
    recompute: bool = False
    batch: float | None = None
    deadline: float | None = None
    budget: float | None = None
    embodied: float | None = None
    tokens_per_second: float | None = None
    tokens_per_second_per_device: float | None = None
    flops_per_second_per_device: float | None = None
    accelerator_hours: float | None = None
    priors: bool = False
    site: Site = Site()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        prices = {option: getattr(self.site, field) for field, option in SITE_OPTIONS.items()}
        for name, most in LIMITS.items():
            option = f"--{name.replace('_', '-')}"
            value = prices[option] if option in prices else getattr(self, name)
            if (value or 0) > most:
                raise BadValue(f"{option} {value:g} cannot be meant: at most {most:,.0f}")

    @property
    def rates(self) -> list[str]:
        """Return which known speeds are given."""
        return [name for name in RATES if getattr(self, name) is not None]


def worded(message: str, names: Mapping[str, str]) -> str:
    """Return a message with other names for what is given, by the options of the command line: {"--params": ...}."""
    return re.sub(r"--[a-z]+(-[a-z]+)*", lambda found: names.get(found[0], found[0]), message)


def question(given: Given, load: Callable[[], pd.DataFrame], own: Own = own_speed) -> tuple[Question, list[str]]:
    """Return the question, and notes: which device was taken, and why one's own runs do not apply.

    `load` returns the frame of one's own runs; it is not called where they are not wanted. `own` finds the speeds of those
    that apply. Raises ValueError for what is missing, not known, or does not go together.
    """
    _check(given)
    work = work_of(given)
    if given.devices is None and not given.rates:
        named = given.device is not None or given.peak_flops is not None
        raise BadValue(f"on how many devices? give {'' if named else '--device H100-SXM and '}--devices 8,64,512")
    runs = None if given.rates or given.priors else load()
    device, notes = _device(given, runs)
    if device is None or given.rates:
        speed, why = _given_speed(given, work), ""
    else:
        speed, why = _speed(runs, device, work, given.precision, own)
    if isinstance(speed, OwnSpeed) and speed.sequence and given.sequence is None:
        # A length that was measured is a better guess than a typical one.
        work = work_of(replace(given, sequence=speed.sequence))
        speed = replace(speed, per_sample=work.per_sample)
    asked = Question(work, speed, given.devices or (1,), device, given.precision, given.site)
    watts, counted = given.power_watts or getattr(speed, "watts", None), given.devices is not None
    allowed: Any = {"deadline_seconds": given.deadline, "budget_usd": given.budget, "batch": given.batch}
    asked = replace(asked, watts=watts, counted=counted, embodied_kg_per_hour=given.embodied, **allowed)
    return asked, [*notes, *([why] if why else [])]


def _check(given: Given) -> None:
    """Refuse what does not go together. Raises ValueError."""
    rates = given.rates
    if len(rates) > 1:
        raise BadValue(f"give one of {' and '.join('--' + name.replace('_', '-') for name in rates)}")
    if rates and rates[0].startswith("tokens") and given.tokens is None:
        raise BadValue(f"--{rates[0].replace('_', '-')} takes --tokens")
    per_device = given.site != Site() or any((given.power_watts, given.device, given.peak_flops, given.deadline))
    if rates == ["tokens_per_second"] and (len(given.devices) > 1 if given.devices else per_device):
        raise BadValue("--tokens-per-second is of all devices together: give one number of --devices with it")


def work_of(given: Given) -> Work:
    """Return the work of the training. Raises ValueError where it is not told."""
    language, other = (given.params, given.tokens), (given.flops_per_sample, given.samples)
    if any(language) and any(other):
        raise BadValue("give --params and --tokens, or --flops-per-sample and --samples, not both")
    if given.params and given.tokens:
        shape: Any = {name: getattr(given, name) for name in ("layers", "hidden", "sequence", "recompute")}
        return language_model(given.params, given.tokens, active=given.active_params, plain=bool(given.rates), **shape)
    if given.flops_per_sample and given.samples:
        return sample_work(given.flops_per_sample, given.samples)
    # Without the parameters, hours of one device or tokens are counted instead of FLOP.
    hours, rates = given.accelerator_hours, given.rates
    amount = hours * 3600 if hours else given.tokens if rates and rates[0].startswith("tokens") else None
    if amount is None:
        raise BadValue("what is trained? give --params and --tokens (7e9, 1e12), or --flops-per-sample and --samples")
    return Work(amount, amount, 1.0, None, ())


def ran_on(runs: pd.DataFrame) -> list[str]:
    """Return the devices of the runs that ended well."""
    return sorted(set(runs.loc[runs["status"] == Status.OK, "device_name"].dropna()) - {"unknown"})


def _device(given: Given, runs: pd.DataFrame | None) -> tuple[Device | None, list[str]]:
    """Find the device: in the table, among one's own runs, or as given by its peak; and say which one was taken."""
    name, peak = given.device, given.peak_flops
    ran = [] if runs is None else ran_on(runs)
    known = f"; your runs were on {', '.join(map(printable, ran))}" if ran else ""
    if name is None and peak is not None:
        return Device("device", peak=peak), []
    if name is None and len(ran) != 1:
        if given.rates:
            return None, []
        raise BadValue(f"on which device? give --device H100-SXM, or --peak-flops and --power-watts{known}")
    wanted = ran[0] if name is None else name
    try:
        found = replace(find(wanted), peak=peak)
    except ValueError as error:
        if peak is None and wanted not in ran:
            raise BadValue(f"{error}{known}") from error
        found = Device(wanted, device_name=wanted, peak=peak)
    means = found.name if found.name == found.device_name else f"{found.name} ({found.device_name})"
    whose = "that of all your runs" if name is None else f"for {printable(name)}"
    return found, [] if name in (found.name, found.device_name) else [f"Device: {printable(means)}, {whose}."]


def _speed(runs: pd.DataFrame | None, device: Device, work: Work, precision: str, own: Own) -> tuple[Speed, str]:
    """Take one's own runs where they apply, else published trainings and a sentence on why."""
    found, why = (None, "") if runs is None or runs.empty else own(runs, device, precision, work)
    if found is not None:
        return found, f"Some of your runs are left out: {why}." if why else ""
    said = f"Your {0 if runs is None else len(runs)} runs do not apply: {why}." if why else ""
    try:
        device.peak_flops(precision)  # told before anything is drawn
    except ValueError as error:
        raise BadValue(*filter(None, (said, str(error)))) from error
    return PriorSpeed(device, precision, work.parameters), said


def _given_speed(given: Given, work: Work) -> Speed:
    """Turn a rate that is given into FLOP/s, and say it."""
    (name,) = given.rates
    value: float = getattr(given, name)
    if name == "accelerator_hours":
        return GivenSpeed(work.flops / value / 3600, (f"{value:,.10g} hours of all devices together",))
    if name == "flops_per_second_per_device":
        return GivenSpeed(value, (f"one device does {value / 1e12:,.4g} TFLOP/s",))
    together = name == "tokens_per_second"
    who = "all devices together do" if together else "one device does"
    return GivenSpeed(value * work.flops / (given.tokens or 1), (f"{who} {value:,.10g} tokens/s",), together)
