"""What the whole of a training takes, from a short window of it: time, energy, carbon and cost, with 80 % intervals.

Time = start-up + steps · seconds of a step · (1 + share of pauses) + end. The start-up and the end are paid once. The
seconds of a step are uncertain by the spread of launches, or within one launch of blocks of steps (batch means; Law,
Simulation Modeling and Analysis), which are long enough to be nearly independent; what correlation is left between
neighbours widens the interval. Of one launch, nothing has an interval where the speed may not be steady, and no energy whose
error is not known. The interval of an estimated energy is the spread of launches alone: the error of the model comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np

from analytics.interval import Interval, plain
from bench.figures.carbon import basis
from bench.figures.flags import grade, meaning, steps_in_blocks
from bench.figures.metrics import metrics, priced
from bench.record import Phase, PlannedLength, RunRecord, Status

LEVEL, _DRAWS = 0.8, 4000
LEAST_BLOCKS = 6
_NO_STEPS = (
    "no_line_matched",
    "slow_pattern",
    "steps_in_disorder",
    "lines_are_not_steps",
    "passes_differ",
    "bar_unchecked",
    "sources_differ",
    "separate_trainings",
    "hooks_failed",
)
"""Flags of grade C with which the number of steps may be wrong."""
_NO_ENERGY = (
    *("shared_gpu", "gap", "window_too_short", "energy_partly_covered", "meter_failed", "mig_shared", "board_scope"),
    "energy_components_differ",
)
"""Flags of grade C with which the energy of the window may be wrong."""
_UNSTEADY = ("not_steady", "steady_unknown")
"""Flags with which the spread within the window says nothing of what comes later."""
_DOUBTS = (*_UNSTEADY, "noisy_host")
"""Flags of grade B that are said with a forecast: it takes the window for what comes later."""
LengthUnit = Literal["steps", "samples", "tokens", "epochs"]
_Draws = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TrainingLength:
    """How long the whole training is; `by` what the script states, where the user has not given it."""

    amount: float
    unit: LengthUnit = "steps"
    by: PlannedLength | None = None


@dataclass(frozen=True)
class TrainingForecast:
    """What a training of so many `steps` takes.

    `figures` are by quantity: `seconds`, `energy_joules` (or `energy_joules_estimated`), `emissions_kg`, `cost_usd`. `absent`
    says why others are not known, `doubts` are flags that may make all of it wrong. Of those that rest on `estimated` energy
    intervals are the spread of launches alone: the error of the estimate is not known. The window had so many `pauses`, for
    evaluation or checkpoints. `planned` is what the script states. `draws` are equally likely outcomes.
    """

    length: TrainingLength
    steps: int
    launches: int
    window_seconds: float
    pauses: int
    planned: PlannedLength | None
    figures: dict[str, Interval]
    absent: dict[str, str]
    estimated: tuple[str, ...]
    doubts: tuple[str, ...]
    draws: Mapping[str, _Draws] = field(repr=False, compare=False)

    def chance(self, limits: Mapping[str, float]) -> float | None:
        """Return how likely all limits are kept; None where a figure is not known, or its error."""
        names = {limit: f"{limit}_estimated" if f"{limit}_estimated" in self.draws else limit for limit in limits}
        unknown = {*names.values()} - {*self.draws} | {name for name, one in self.figures.items() if one.low is None}
        if (unknown | {*self.estimated}) & {*names.values()}:
            return None
        kept = [self.draws[name] <= limits[limit] for limit, name in names.items()]
        return float(np.logical_and.reduce(kept).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return plain(**{name: value for name, value in vars(self).items() if name != "draws"})


def planned(records: Sequence[RunRecord]) -> PlannedLength | None:
    """Return how long the script states the whole training to be; None where it does not, or its runs differ."""
    stated = [record.measurement.planned for record in records if record.measurement is not None]
    return stated[-1] if stated and all(one == stated[-1] for one in stated) else None


def stated_length(records: Sequence[RunRecord]) -> TrainingLength | None:
    """Return the length of the whole training as the script states it, where it does."""
    stated = planned(records)
    return None if stated is None or stated.steps is None else TrainingLength(stated.steps, "steps", stated)


def forecast(records: Sequence[RunRecord], length: TrainingLength) -> TrainingForecast | str:
    """Return what the whole training takes, from runs of one configuration; or why that cannot be said."""
    runs = [record for record in records if record.status is Status.OK and record.measurement is not None]
    flags = sorted({flag for record in runs for flag in record.flags})
    wrong = [flag for flag in _NO_STEPS if flag in flags]
    if wrong:
        return meaning(wrong[0])
    steps = [_steps(record, length) for record in runs]
    if length.unit == "epochs" and runs and all(run.measurement and run.measurement.steps for run in runs):
        stated = planned(runs)
        if stated is None or stated.epoch_steps is None:
            return "the script does not state how many steps an epoch has: give --total-samples or --total-steps"
    if not steps or any(count is None for count in steps):
        return (
            f"no {length.unit if runs and runs[-1].measurement and runs[-1].measurement.steps else 'steps'} were seen"
        )
    total = round(fmean(count for count in steps if count is not None))
    before = round(fmean(map(_before, runs)))
    if total <= before:
        return f"{total} steps are no more than those of the warm-up"
    random = np.random.default_rng(0)
    figures = [metrics(record) for record in runs]
    steady = not {*_UNSTEADY} & {*flags}
    step, spread_known = _step_seconds(runs, total - before, random, steady=steady)
    share, count = _pauses(runs, random)
    start, trained = fmean(one.get("startup_seconds", 0.0) for one in figures), step * (total - before)
    times = _Times(start, start + fmean(map(_end, runs)), trained, trained * share)
    draws: dict[str, _Draws] = {"seconds": times.whole}
    absent: dict[str, str] = {}
    energy = _energy(runs, figures, times, random)
    if isinstance(energy, str):
        absent["energy_joules"] = energy
    else:
        draws[energy.name] = energy.joules
    by_energy = _add_prices(runs[-1], draws, absent)
    exact = {*draws} if not spread_known else set() if isinstance(energy, str) or energy.spread_known else by_energy
    doubts = [flag for flag in flags if (grade([flag]) == "C" and flag not in _NO_ENERGY) or flag in _DOUBTS]
    return TrainingForecast(
        length=length,
        steps=total,
        launches=len(runs),
        window_seconds=sum(one["window_seconds"] for one in figures),
        pauses=count,
        planned=planned(runs),
        figures={name: _interval(values, len(runs), known=name not in exact) for name, values in draws.items()},
        absent=absent,
        estimated=tuple(name for name in draws if name in by_energy and "energy_joules_estimated" in draws),
        doubts=tuple(doubts),
        draws=draws,
    )


def _interval(draws: _Draws, launches: int, *, known: bool) -> Interval:
    value = float(np.median(draws))
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = map(float, ends) if known else (None, None)
    return Interval(value, low, high, launches, LEVEL)


def _steps(record: RunRecord, length: TrainingLength) -> float | None:
    """Return the number of steps of the whole training."""
    measured = record.measurement
    if measured is None or not measured.steps:
        return None
    if length.unit == "epochs":
        each = measured.planned.epoch_steps if measured.planned is not None else None
        return None if each is None else length.amount * each
    consumed = measured.steps if length.unit == "steps" else getattr(measured, length.unit)
    return None if not consumed else length.amount * measured.steps / consumed


def _before(record: RunRecord) -> int:
    """Return the number of steps that are made in the start-up and the warm-up."""
    made = record.measurement.steps_before if record.measurement is not None else None
    return made or max(1, record.spec.warmup_steps)


def _step_seconds(
    runs: Sequence[RunRecord], steps: float, random: np.random.Generator, *, steady: bool
) -> tuple[_Draws, bool]:
    """Draw the mean seconds of a step in a further launch of so many steps; and whether its spread is known.

    Of the spread of launches and that of blocks the wider one counts: two launches may agree by chance. Of one launch whose
    speed may not be steady, the blocks say nothing of what comes later.
    """
    windows = [(one.window_seconds, one) for run in runs if (one := run.measurement) is not None]
    logs = np.log([seconds / one.steps for seconds, one in windows])
    options: list[_Draws] = []
    if len(logs) > 1:
        deviation = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(logs))
        options.append(deviation * random.standard_t(len(logs) - 1, _DRAWS))
    for _, one in windows if steady or options else ():
        means = np.log(steps_in_blocks(one.step_seconds))
        if len(means) < LEAST_BLOCKS:
            continue
        future = max(1.0, steps / (len(one.step_seconds) / len(means)))
        centred = means - means.mean()
        alike = float(centred[:-1] @ centred[1:]) / max(float(centred @ centred), 1e-24)
        r = min(0.8, max(0.0, alike))
        wider = (1 + r) / (1 - r)
        error = float(means.std(ddof=1)) * math.sqrt(wider * (1 / len(means) + 1 / future))
        options.append(error / math.sqrt(len(logs)) * random.standard_t(len(means) - 1, _DRAWS))
    if not options:
        return np.full(_DRAWS, math.exp(logs.mean())), False
    widest = max(options, key=lambda draws: float(np.quantile(draws, 0.9) - np.quantile(draws, 0.1)))
    return np.exp(logs.mean() + np.clip(widest, -5, 5)), True


def _window(record: RunRecord) -> tuple[list[Phase], list[Phase]]:
    """Return the pauses inside the window, and the phases after it."""
    phases = record.measurement.phases if record.measurement is not None else []
    places = [place for place, phase in enumerate(phases) if phase.name == "steady"]
    if not places:
        return [], []
    inside = [phase for phase in phases[places[0] : places[-1]] if phase.name != "steady"]
    return inside, phases[places[-1] + 1 :]


def _pauses(runs: Sequence[RunRecord], random: np.random.Generator) -> tuple[_Draws, int]:
    """Draw the time of pauses per time of steps, and count the pauses.

    Pauses come at regular distances, so a window with k of them has between k - 1 and k + 1 times their distance.
    """
    pauses = [pause for run in runs for pause in _window(run)[0]]
    steady = sum(run.measurement.window_seconds for run in runs if run.measurement is not None)
    seconds, count = sum(pause.seconds for pause in pauses), len(pauses)
    if not count:
        return np.zeros(_DRAWS), 0
    share: _Draws = seconds / steady * random.triangular(count - 1, count, count + 1, _DRAWS) / count
    return share, count


def cut(record: RunRecord) -> bool:
    """Return whether a command was ended, or would have been, before its training was over."""
    spec = record.spec
    return spec.measure_seconds is not None or spec.measure_steps is not None or "ended_early" in record.flags


def _end(record: RunRecord) -> float:
    """Return the time after the window of a command that ended by itself; what it would be otherwise is not known."""
    return 0.0 if cut(record) else sum(phase.seconds for phase in _window(record)[1])


@dataclass(frozen=True)
class _Times:
    """Seconds of a whole training: `start` and `once` (which includes it) are paid once, `steps` and `pauses` are draws."""

    start: float
    once: float
    steps: _Draws
    pauses: _Draws

    @property
    def whole(self) -> _Draws:
        """All of it."""
        return self.once + self.steps + self.pauses


@dataclass(frozen=True)
class _Energy:
    """Draws of the energy of the whole training, the name of the figure, and whether its spread is known."""

    name: str
    joules: _Draws
    spread_known: bool


def _energy(
    runs: Sequence[RunRecord], figures: Sequence[Mapping[str, float]], times: _Times, random: np.random.Generator
) -> _Energy | str:
    """Draw the energy of the whole training; text says why it is not known.

    Pauses, start-up and end count with the power of the window, unless the energy of the start-up is known.
    """
    kind = basis(runs[-1].energy)
    wrong = next((flag for run in runs for flag in run.flags if flag in _NO_ENERGY), None)
    tag = "_estimated" if kind is not None and kind[0] == "estimated" else ""
    watts = [one.get(f"power_watts{tag}", 0.0) for one in figures]
    if kind is None or wrong is not None or min(watts) <= 0:
        return meaning(wrong) if wrong else "no meter could be read (bench doctor)"
    power = np.full(_DRAWS, math.exp(fmean(map(math.log, watts))))
    if len(watts) > 1:
        deviation = float(np.log(watts).std(ddof=1)) * math.sqrt(1 + 1 / len(watts))
        power = power * np.exp(np.clip(deviation * random.standard_t(len(watts) - 1, _DRAWS), -5, 5))
    gain = 0.0 if tag else max(one["energy_systematic_joules"] / one["energy_joules"] for one in figures)
    starts = [one[name] for one in figures if (name := f"startup_energy_joules{tag}") in one]
    known = len(starts) == len(figures)
    beside = fmean(starts) + power * (times.once - times.start) if known else power * times.once
    joules = (power * (times.steps + times.pauses) + beside) * random.uniform(1 - gain, 1 + gain, _DRAWS)
    return _Energy(f"energy_joules{tag}", joules, gain > 0 or len(watts) > 1)


def _add_prices(record: RunRecord, draws: dict[str, _Draws], absent: dict[str, str]) -> set[str]:
    """Add emissions and cost, which are linear in time and energy; return the figures that depend on energy."""
    kinds = {"measured": "energy_joules", "estimated": "energy_joules_estimated"}
    known: dict[str, float | None] = {kind: 0.0 if name in draws else None for kind, name in kinds.items()}
    joules = next((draws[name] for name in kinds.values() if name in draws), np.zeros(_DRAWS))
    second, joule = (
        priced(record, 1.0, known),
        priced(record, 0.0, {k: v if v is None else 1.0 for k, v in known.items()}),
    )
    for name in second:
        draws[name] = second[name] * draws["seconds"] + joule[name] * joules
    energy = absent.get("energy_joules")
    if "emissions_kg" not in draws:
        absent["emissions_kg"] = energy or "no region is given (--region)"
    if "electricity_unknown" in record.flags:
        draws.pop("cost_usd", None)
        absent["cost_usd"] = "the price of electricity needs an energy figure"
    elif "cost_usd" not in draws:
        absent["cost_usd"] = energy if energy and record.cost is not None else "no price is given (--price)"
    return {*kinds.values()} | {name for name in second if name in draws and np.any(joule[name])}
