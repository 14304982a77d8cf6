"""What the whole training takes, in words: the answer first, how sure it is, and whether budgets suffice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analytics.interval import Interval
from analytics.plan.forecast import TrainingForecast
from analytics.say.blocks import Block, Note, Sentence
from analytics.say.plan import likely, span, time_unit
from analytics.text import counted, number, two_digits
from bench.figures.flags import meaning
from bench.record import PlannedLength
from bench.workloads.formats import TITLES

_SURE = 0.8
_ALIKE = 0.01
"""Share by which two lengths of one training may differ."""
_UNITS = {"hours": "h", "minutes": "min", "seconds": "s"}
_AUTHORS = {
    **TITLES,
    "HuggingFaceCallback": "the Hugging Face Trainer",
    "LightningCallback": "Lightning",
    "KerasCallback": "Keras",
    "pattern": "the counter in the output",
}
_ONCE = "If the script trains once and to the end"
_ONE_FIT = {"HuggingFaceCallback", "LightningCallback", "KerasCallback", "transformers", "keras"}
"""Sources that know the length of one training; a script may make several, or end it early."""
_ASSUMED = {
    **dict.fromkeys(_ONE_FIT, _ONCE),
    "tqdm": "If the bar of tqdm is that of the whole training",
    "lightning": "If Lightning trains all its epochs",
    "pattern": "If the counter in the output is that of the whole training",
}
"""The condition under which a length is that of the whole training, by its source."""
Budgets = Sequence[tuple[str, str, float]]
"""Each as it was typed, its quantity and its amount."""


def blocks(told: TrainingForecast | str, budgets: Budgets = ()) -> Iterator[Block]:
    """Yield the forecast, or why there is none."""
    if isinstance(told, str):
        yield Sentence(f"There is no forecast: {told}.", "answer")
        return
    yield Sentence(f"{_subject(told)} {', '.join(_figures(told))}.", "answer")
    yield from (Sentence(line, "answer") for line in _budgets(told, budgets))
    yield Note(" ".join(_basis(told)), "Forecast")
    if told.length.by is None and told.planned is not None:
        yield from _contradiction(told.steps, told.planned)
    for name, why in told.absent.items():
        yield Note(f"{name.partition('_')[0]}, as {why}.", "Not known")
    if told.doubts:
        yield Note("; ".join(meaning(flag) for flag in told.doubts) + ". So the forecast may be wrong.", "Careful")


def _contradiction(steps: int, stated: PlannedLength) -> Iterator[Block]:
    """Say where the user gives another length than the script states: neither all its steps nor those that are left."""
    if stated.steps is None or (stated.assumed and stated.source not in _ONE_FIT):
        return
    whole, author = stated.steps + stated.earlier_steps, _AUTHORS.get(stated.source, stated.source)
    if all(abs(steps / count - 1) > _ALIKE for count in (stated.steps, whole)):
        author, one = author[:1].upper() + author[1:], " in one training" if stated.source in _ONE_FIT else ""
        yield Note(f"{author} states {number(whole)} steps{one}, not {number(steps)}.", "Careful")


def _subject(told: TrainingForecast) -> str:
    """Say what takes the figures that follow, and who states its length."""
    length, stated = told.length, told.length.by
    steps = f"{told.steps:,} steps"
    if stated is not None:
        left = f"last {told.steps:,} of {told.steps + stated.earlier_steps:,} steps" if stated.earlier_steps else ""
        author, condition = f"(as {_AUTHORS.get(stated.source, stated.source)} states)", _ASSUMED.get(stated.source)
        if condition is not None:
            return f"{condition}, its {left or steps}{f' {author}' if stated.source in _ONE_FIT else ''} take"
        return f"The {left} {author} take" if left else f"The whole training of {steps} {author} takes"
    if length.unit == "epochs":
        return f"The whole training of {number(length.amount)} epochs ({steps}) takes"
    return (
        f"The whole training of {steps if length.unit == 'steps' else f'{number(length.amount)} {length.unit}'} takes"
    )


def _figures(told: TrainingForecast) -> Iterator[str]:
    estimated = "~" if "energy_joules_estimated" in told.figures else ""
    for name, figure in told.figures.items():
        if name == "seconds":
            size, unit = time_unit(figure.value)
            yield _rounded(figure.times(1 / size), _UNITS.get(unit, unit))
        elif name == "cost_usd":
            yield _rounded(figure, "USD")
        elif name == "emissions_kg":
            yield f"{_scaled(figure, ((1e3, 't'), (1.0, 'kg'), (1e-3, 'g')), estimated)} CO2e"
        else:
            yield _scaled(figure, ((3.6e9, "MWh"), (3.6e6, "kWh"), (3.6e3, "Wh")), estimated)


def _scaled(figure: Interval, units: Sequence[tuple[float, str]], mark: str) -> str:
    """Print a figure in the largest unit of which it has one, or in the smallest."""
    size, unit = next((pair for pair in units if figure.value >= pair[0]), units[-1])
    return _rounded(figure.times(1 / size), unit, mark)


def _rounded(figure: Interval, unit: str, mark: str = "") -> str:
    """Print a figure with its interval, or about two digits of one without: `about 4.9 min`; `mark` is that of estimates."""
    if figure.low is not None:
        return f"{mark}{span(figure, unit)}"
    return f"{mark or 'about '}{two_digits(figure.value)} {unit}"


def _budgets(told: TrainingForecast, budgets: Budgets) -> Iterator[str]:
    """Say of each budget whether it suffices."""
    for text, name, limit in budgets:
        chance = told.chance({name: limit})
        figure = told.figures.get(name) or told.figures.get(f"{name}_estimated")
        if figure is None:
            yield f"Whether {text} suffices is not known, as {told.absent.get(name, 'the figure is absent')}."
        elif chance is None:
            yield f"{_by(told)} the training {'stays within' if figure.value <= limit else 'takes more than'} {text}."
        elif chance >= _SURE:
            yield f"{text} suffices, {likely(chance)} likely."
        elif chance <= 1 - _SURE:
            yield f"{text} does not suffice, {likely(1 - chance)} likely."
        else:
            yield f"Whether {text} suffices is open: {likely(chance)} likely."


def _by(told: TrainingForecast) -> str:
    """Say what a figure without an interval rests on."""
    if told.figures["seconds"].low is None:
        return "At this speed"
    estimated = "energy_joules_estimated" in told.figures
    return "By the estimate of energy, whose error is not known," if estimated else "At this power"


def _basis(told: TrainingForecast) -> Iterator[str]:
    """Say what the forecast rests on."""
    exact = told.figures["seconds"].low is None
    yield f"from {number(told.window_seconds)} s of steps in {counted(told.launches, 'run')}"
    if exact:
        unsteady = {"not_steady", "steady_unknown"} & {*told.doubts}
        why = "the speed may not be steady" if unsteady else "the steps are too few or have no times"
        yield f"without intervals, as {why}. --repeats 3 gives them."
    else:
        yield f"with 80 % intervals{' from the spread of these runs' * (told.launches > 1)}."
    if told.launches < 2 and not exact:
        yield "Other launches may be faster or slower: --repeats 3 includes that."
    yield (
        f"{counted(told.pauses, 'pause')} for evaluation or checkpoints continue at their share."
        if told.pauses
        else "No evaluation or checkpoint was in the window; they are not included."
    )
    if told.length.unit == "epochs" and told.planned is not None and told.planned.epoch_steps:
        yield f"An epoch has {told.planned.epoch_steps:,} steps, by {_AUTHORS.get(told.planned.source, 'the script')}."
    if any(name.startswith("energy") for name in told.figures):
        yield "It assumes the power of the measured window."
    if not exact and any(figure.low is None for figure in told.figures.values()):
        why = ", as it is an estimate" if told.estimated else ""
        yield f"What follows from energy has no interval: its error is not known{why}."
    elif told.estimated and not exact:
        yield "Intervals of what follows from energy leave out the error of its estimate, which is not known."
