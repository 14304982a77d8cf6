"""What would change the choice of a plan: for each input the nearest value at which another number of devices is the best.

Each input is moved alone, the rest as given, from a tenth of its value to ten times it (a PUE from 1 to 5), in twelve steps
each way; where the choice changes, the value is found by bisection. What changes and changes back in one step is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from analytics.plan.plan import Question, best
from analytics.plan.question import Given, work_of
from analytics.plan.speed import Draws, GivenSpeed, OwnSpeed, PriorSpeed

REACH, STEPS, EXACT = 10.0, 12, 1e-3
_FIELDS = {
    "--price": "usd_per_device_hour",
    "--electricity-price": "usd_per_kwh",
    "--capital-price": "usd_capital_per_device_hour",
    "--pue": "pue",
    "--deadline": "deadline_seconds",
    "--budget": "budget_usd",
    "--batch": "batch",
    "--power-watts": "watts",
}
"""The field of the site or of the question that an input sets; the work follows from the others."""


Moved = Callable[[float], Question]
"""The question with another value of an input."""


@dataclass(frozen=True)
class Tip:
    """An input (by its option), its `value`, and the best number of devices there (None where none meets what is asked).

    `below` and `above` are the nearest values at which the best is another one, and which; None where there is none.
    """

    name: str
    value: float
    devices: int | None
    below: tuple[float, int | None] | None
    above: tuple[float, int | None] | None


@dataclass(frozen=True)
class _Drawn(GivenSpeed):
    """Speeds that were drawn once: what the inputs change does not change them."""

    kept: Draws = field(kw_only=True)

    def draws(self, devices: Sequence[int]) -> Draws:
        return self.kept


def tips(given: Given, question: Question) -> list[Tip]:
    """Return what each input would change of the answer to a question, which was made of what is given."""
    drawn = _Drawn(0.0, source=question.speed.source, kept=question.speed.draws(tuple(sorted(question.devices))))
    fixed, out = replace(question, speed=drawn), []
    now = best(fixed)
    for name, value, at in _inputs(given, question, fixed):
        low, high = (1.0, 5.0) if name == "--pue" else (value / REACH, value * REACH)
        chosen = partial(_best, at, now)
        out.append(Tip(name, value, now, _nearest(chosen, value, low, now), _nearest(chosen, value, high, now)))
    return out


def _best(at: Moved, now: int | None, x: float) -> int | None:
    """Return the best where an input is x; what cannot be meant changes nothing."""
    try:
        return best(at(x))
    except ValueError:
        return now


def _nearest(chosen: Callable[[float], int | None], value: float, end: float, now: int | None) -> Any:
    """Return the nearest value towards an end at which another one is chosen, and that one; None where there is none."""
    inside = outside = value
    for outside in np.geomspace(value, end, STEPS + 1)[1:].tolist():
        if chosen(outside) != now:
            break
        inside = outside
    if inside == outside:
        return None
    while abs(math.log(outside / inside)) > EXACT:
        middle = math.sqrt(inside * outside)
        inside, outside = (middle, outside) if chosen(middle) == now else (inside, middle)
    return outside, chosen(outside)


def _inputs(given: Given, question: Question, fixed: Question) -> Iterator[tuple[str, float, Moved]]:
    """Yield each input that is given: its option, its value, and the question with another value."""
    device, work, amount = question.device, question.work, given.tokens or given.samples
    for name, of in _FIELDS.items():
        if value := getattr(question if hasattr(question, of) else question.site, of):
            yield name, value, partial(_changed, fixed, of)
    if device is not None and device.watts is not None and question.watts is None:
        yield "--power-watts", device.watts, lambda x: replace(fixed, device=replace(device, watts=x))
    if amount and work.says:
        name = "--tokens" if given.tokens else "--samples"
        yield name, amount, lambda x: replace(fixed, work=work.times(x / amount))
    if given.params and given.layers is None and work.shape is not None and not given.rates:
        yield "--params", given.params, partial(_larger, given, question)


def _changed(question: Question, of: str, x: Any) -> Question:
    if hasattr(question, of):
        return replace(question, **{of: x})
    return replace(question, site=question.site.changed(**{of: x}))


def _larger(given: Given, question: Question, parameters: float) -> Question:
    """Return the question for a model of another size, of a typical shape; one's own runs are taken to apply to it too."""
    size, speed = parameters / (given.params or parameters), question.speed
    active = given.active_params and given.active_params * size
    length = question.work.shape[2] if question.work.shape else None
    work = work_of(replace(given, params=parameters, active_params=active, sequence=length))
    if isinstance(speed, PriorSpeed):
        speed = replace(speed, parameters=parameters)
    elif isinstance(speed, OwnSpeed):
        speed = replace(speed, per_sample=work.per_sample)
    return replace(question, work=work, speed=speed)
