"""What would change the choice of a plan: for each input the nearest value at which another number of devices is the best.

Each input is moved alone, the rest as given, from a tenth of its value to ten times it, in steps of a fifth; where the choice
changes, the value is found by bisection. A choice that changes and changes back within one step is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from analytics.plan import Question, best
from analytics.question import Given, work_of
from analytics.speed import Draws, GivenSpeed, OwnSpeed, PriorSpeed
from analytics.words import number
from analytics.work import short

REACH, STEPS, EXACT = 10.0, 12, 1e-4
_MOST = {"--pue": (1.0, 5.0)}
"""Values beyond which an input has no meaning."""
_SITE = {
    "--price": "usd_per_device_hour",
    "--electricity-price": "usd_per_kwh",
    "--capital-price": "usd_capital_per_device_hour",
    "--pue": "pue",
}
_WORDS = {
    "--price": ("a price", "{} USD per device-hour"),
    "--electricity-price": ("a price of electricity", "{} USD per kWh"),
    "--capital-price": ("a capital cost", "{} USD per device-hour"),
    "--pue": ("a PUE", "{}"),
    "--deadline": ("a deadline", "{}"),
    "--budget": ("a budget", "{} USD"),
    "--batch": ("a batch", "{} sequences"),
    "--power-watts": ("a power", "{} W a device"),
    "--tokens": ("a training", "{} tokens"),
    "--samples": ("a training", "{} samples"),
    "--params": ("a model", "{} parameters"),
}


@dataclass(frozen=True)
class Tip:
    """An input (by its option), its `value`, and the best number of devices there (None where none meets what is asked).

    `below` and `above` are the nearest values at which the best is another one, and which; None where there is none down to
    `low`, up to `high`.
    """

    name: str
    value: float
    devices: int | None
    low: float
    high: float
    below: tuple[float, int | None] | None
    above: tuple[float, int | None] | None


@dataclass(frozen=True)
class _Drawn(GivenSpeed):
    """Speeds that were drawn once: what the inputs change does not change them."""

    kept: Draws = field(kw_only=True)

    def draws(self, devices: Sequence[int]) -> Draws:
        return self.kept


def tips(given: Given, asked: Question) -> list[Tip]:
    """Return what each input would change of the answer to a question, which was made of what is given."""
    drawn = _Drawn(0.0, source=asked.speed.source, kept=asked.speed.draws(tuple(sorted(asked.devices))))
    fixed, now = replace(asked, speed=drawn), best(asked)
    out = []
    for name, value, at in _inputs(given, asked, fixed):
        least, most = _MOST.get(name, (0.0, math.inf))
        low, high = max(value / REACH, least), min(value * REACH, most)
        ends = [_nearest(at, value, end, now) for end in (low, high)]
        out.append(Tip(name, value, now, low, high, *ends))
    return out


def _nearest(at: Callable[[float], Question], value: float, end: float, now: int | None) -> Any:
    """Return the nearest value towards an end at which another one is chosen, and that one; None where there is none."""
    inside = value
    for outside in np.geomspace(value, end, STEPS + 1)[1:].tolist() if end != value else ():
        if best(at(outside)) != now:
            break
        inside = outside
    else:
        return None
    while abs(math.log(outside / inside)) > EXACT:
        middle = math.sqrt(inside * outside)
        inside, outside = (middle, outside) if best(at(middle)) == now else (inside, middle)
    return outside, best(at(outside))


def _inputs(given: Given, asked: Question, fixed: Question) -> Iterator[tuple[str, float, Callable[[float], Question]]]:
    """Yield each input that is given: its option, its value, and the question with another value."""
    for name, of in _SITE.items():
        value = getattr(asked.site, of)
        if value:
            yield name, value, partial(_sited, fixed, of)
    plain = (
        ("--deadline", "deadline_seconds"),
        ("--budget", "budget_usd"),
        ("--batch", "batch"),
        ("--power-watts", "watts"),
    )
    for name, of in plain:
        if value := getattr(asked, of):
            yield name, value, partial(_changed, fixed, of)
    device = asked.device
    if device is not None and device.watts is not None and asked.watts is None:
        yield "--power-watts", device.watts, lambda x: replace(fixed, device=replace(device, watts=x))
    amount, work = given.tokens or given.samples, asked.work
    if amount and work.says:
        name = "--tokens" if given.tokens else "--samples"
        yield name, amount, lambda x: replace(fixed, work=_more(asked, x / amount))
    if given.params and given.layers is None and work.shape is not None and not given.rates:
        yield "--params", given.params, lambda x: _larger(given, asked, x)


def _sited(asked: Question, of: str, x: float) -> Question:
    return replace(asked, site=asked.site.model_copy(update={of: x}))


def _changed(asked: Question, of: str, x: Any) -> Question:
    return replace(asked, **{of: x})


def _more(asked: Question, factor: float) -> Any:
    return replace(asked.work, flops=asked.work.flops * factor, model_flops=asked.work.model_flops * factor)


def _larger(given: Given, asked: Question, parameters: float) -> Question:
    """Return the question for a model of another size, of a typical shape; one's own runs are taken to apply to it too."""
    size, speed = parameters / (given.params or parameters), asked.speed
    active = given.active_params and given.active_params * size
    length = asked.work.shape[2] if asked.work.shape else None
    work = work_of(replace(given, params=parameters, active_params=active, sequence=length))
    if isinstance(speed, PriorSpeed):
        speed = replace(speed, parameters=parameters)
    elif isinstance(speed, OwnSpeed):
        speed = replace(speed, per_sample=work.per_sample)
    return replace(asked, work=work, speed=speed)


def sentences(found: Sequence[Tip]) -> list[str]:
    """Say what would change the choice, what is nearest first, and which inputs do not."""
    lines: list[tuple[float, str]] = []
    idle = []
    for tip in found:
        what, unit = _WORDS[tip.name]
        for side, end in (("Up to", tip.below), ("From", tip.above)):
            if end is not None:
                value = unit.format(_written(tip.name, end[0], up=side == "From"))
                on = " on" if side == "From" else ""
                line = f"{side} {what} of {value}{on}, {_choice(end[1], tip.devices)}."
                lines.append((abs(math.log(end[0] / tip.value)), line))
        if tip.below is None and tip.above is None:
            idle.append(f"{what.removeprefix('a ')} ({unit.format(_written(tip.name, tip.value, up=None))})")
    told = [line for _, line in sorted(lines)]
    if idle:
        told.append(f"Moved alone to a tenth or to ten times what is given, these change nothing: {', '.join(idle)}.")
    return told


def _choice(then: int | None, now: int | None) -> str:
    if then is None:
        return "none of these numbers of devices meets what is asked"
    many = f"{then:,} device{'s' if then > 1 else ''}"
    return f"{many} instead of {now:,}" if now is not None else f"{many} would meet what is asked"


_TIMES = ((2 * 86400, 86400, "days"), (7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


def _written(name: str, value: float, *, up: bool | None) -> str:
    """Print a value; with `up` in three digits, rounded up or down."""
    of, unit = next((of, unit) for least, of, unit in _TIMES if value >= least) if name == "--deadline" else (1, "")
    value /= of
    if up is not None:
        size = 10.0 ** (math.floor(math.log10(value)) - 2)
        value = (math.ceil if up else math.floor)(value / size) * size
    text = short(value) if name in ("--tokens", "--params", "--samples") else number(value)
    return f"{text} {unit}".strip()
