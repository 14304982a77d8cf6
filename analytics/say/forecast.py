"""What the whole training takes, in words: the answer first, how sure it is, and whether budgets suffice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analytics.interval import Interval
from analytics.plan.forecast import TrainingForecast
from analytics.say.blocks import Block, Note, Sentence
from analytics.say.plan import likely, span, time_unit
from analytics.text import counted, number
from bench.figures.flags import meaning

_SURE = 0.8
_UNITS = {"hours": "h", "minutes": "min", "seconds": "s"}
Budgets = Sequence[tuple[str, str, float]]
"""Each as it was typed, its quantity and its amount."""


def blocks(told: TrainingForecast | str, budgets: Budgets = ()) -> Iterator[Block]:
    """Yield the forecast, or why there is none."""
    if isinstance(told, str):
        yield Sentence(f"There is no forecast: {told}.", "answer")
        return
    length = told.length
    of = f"{told.steps:,} steps" if length.unit == "steps" else f"{number(length.amount)} {length.unit}"
    yield Sentence(f"The whole training of {of} takes {', '.join(_figures(told))}.", "answer")
    yield from (Sentence(line, "answer") for line in _budgets(told, budgets))
    yield Note(" ".join(_basis(told)), "Forecast")
    for name, why in told.absent.items():
        yield Note(f"{name.partition('_')[0]}, as {why}.", "Not known")
    if told.doubts:
        yield Note("; ".join(meaning(flag) for flag in told.doubts) + ". So the forecast may be wrong.", "Careful")


def _figures(told: TrainingForecast) -> Iterator[str]:
    estimated = "~" if "energy_joules_estimated" in told.figures else ""
    for name, figure in told.figures.items():
        if name == "seconds":
            size, unit = time_unit(figure.value)
            yield span(figure.times(1 / size), _UNITS.get(unit, unit))
        elif name == "cost_usd":
            yield span(figure, "USD")
        elif name == "emissions_kg":
            yield f"{estimated}{_scaled(figure, ((1e3, 't'), (1.0, 'kg'), (1e-3, 'g')))} CO2e"
        else:
            yield f"{estimated}{_scaled(figure, ((3.6e9, 'MWh'), (3.6e6, 'kWh'), (3.6e3, 'Wh')))}"


def _scaled(figure: Interval, units: Sequence[tuple[float, str]]) -> str:
    """Print a figure in the largest unit of which it has one, or in the smallest."""
    size, unit = next((pair for pair in units if figure.value >= pair[0]), units[-1])
    return span(figure.times(1 / size), unit)


def _budgets(told: TrainingForecast, budgets: Budgets) -> Iterator[str]:
    """Say of each budget whether it suffices."""
    for text, name, limit in budgets:
        chance = told.chance({name: limit})
        figure = told.figures.get(name) or told.figures.get(f"{name}_estimated")
        if figure is None:
            yield f"Whether {text} suffices is not known, as {told.absent.get(name, 'the figure is absent')}."
        elif chance is None:
            yield f"{text} {'suffices' if figure.value <= limit else 'does not suffice'} {_by(told)}."
        elif chance >= _SURE:
            yield f"{text} suffices, {likely(chance)} likely."
        elif chance <= 1 - _SURE:
            yield f"{text} does not suffice, {likely(1 - chance)} likely."
        else:
            yield f"Whether {text} suffices is open: {likely(chance)} likely."


def _by(told: TrainingForecast) -> str:
    """Say what a figure without an interval rests on."""
    if told.figures["seconds"].low is None:
        return "at this speed"
    estimated = "energy_joules_estimated" in told.figures
    return "by the estimate of energy, whose error is not known" if estimated else "at this power"


def _basis(told: TrainingForecast) -> Iterator[str]:
    """Say what the forecast rests on."""
    exact = told.figures["seconds"].low is None
    yield f"from {number(told.window_seconds)} s of steps in {counted(told.launches, 'run')}"
    if exact:
        unsteady = {"not_steady", "steady_unknown"} & {*told.doubts}
        why = "the speed may not be steady" if unsteady else "the steps are too few or have no times"
        yield f"without intervals, as {why}."
    else:
        yield "with 80 % intervals."
    if told.launches < 2 and not exact:
        yield "Other launches may be faster or slower: --repeats 3 includes that."
    yield (
        f"{counted(told.pauses, 'pause')} for evaluation or checkpoints continue at their share."
        if told.pauses
        else "No evaluation or checkpoint was in the window; they come on top."
    )
    if any(name.startswith("energy") for name in told.figures):
        yield "Its power is that of the window."
    if not exact and any(figure.low is None for figure in told.figures.values()):
        why = ", as it is an estimate" if "energy_joules_estimated" in told.figures else ""
        yield f"What follows from energy has no interval: its error is not known{why}."
