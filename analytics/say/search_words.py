"""What a search found, in words: what to choose, what it costs, what mattered, what could not be, and what is not known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from analytics.judge.objectives import UNITS, Objective
from analytics.runs.frame import piece
from analytics.text import between, number, printable, scale

if TYPE_CHECKING:
    from analytics.search.result import SearchResult, Tried

_MOST = 10
_LITTLE, _CLEAR = 0.05, 2.0
"""With a smaller share in all objectives a parameter hardly matters; above so often an even share one stands out."""
_LIKELY = 0.25
"""From this chance on, a trial that is not on the front may well be."""


def configuration(trial: Tried) -> str:
    """Say what a trial set, as summaries name it."""
    return " ".join(filter(None, (piece(name, value) for name, value in trial.params.items()))) or "plain"


def called(trial: Tried) -> str:
    """Name a trial by its number and what it set."""
    return f"trial {trial.number} ({configuration(trial)})"


def quantity(name: str, value: float, low: float | None = None, high: float | None = None) -> str:
    """Print the value of an objective with its interval, in a unit for people: `12.3 (12 to 12.7) GB`."""
    unit = UNITS.get(name, "").replace("bytes", "B")
    size, unit = scale(value, unit) if name in ("memory", "energy") else (1.0, unit)
    return between(value / size, low and low / size, high and high / size, unit)


def figure(one: Objective, trial: Tried, *ends: float | None) -> str:
    """Print what a trial came to in an objective, with a ~ where that is estimated, and its interval if it is given."""
    return "~" * ("estimated" in one.column) + quantity(one.name, trial.values[one.name], *ends)


def sentences(found: SearchResult) -> list[str]:
    """Say what a stranger should do, in ten sentences at most: the last two are how much was tried, and what it took."""
    lines = [*_best(found), *_trade(found), *_unmet(found), *_apart(found), *_mattered(found), *_lacking(found)]
    return [*lines[: _MOST - 2], _tried(found), _spent(found)]


def _best(found: SearchResult) -> Iterator[str]:
    """The best of each objective, and the knee."""
    asked = found.space.search.work
    amount = f"for {number(asked.samples or asked.tokens or 0)} {'samples' if asked.samples else 'tokens'}"
    for trial in found.front:
        names = [
            f"{'highest' if not one.rising else 'lowest' if one.name == 'loss' else 'least'} {one.name}"
            for one in found.objectives
            if all(one.rank(trial.values) <= one.rank(point.values) for point in found.points)
        ]
        names += ["in between, nearest to the best of all (the knee)"] if trial.knee and len(found.front) > 2 else []
        head = "the only one to choose from" if len(found.points) == 1 else " and ".join(names)
        told = ", ".join(f"{one.name} {figure(one, trial)}" for one in found.objectives)
        if names:
            yield f"{head[0].upper()}{head[1:]}: {called(trial)}: {told} {'to the target' if asked.target else amount}."


def _trade(found: SearchResult) -> Iterator[str]:
    """What the best in the first objective takes, against the knee or the best in the last one."""
    front = found.front
    if len(front) < 2:
        return
    fast, other = front[0], next((trial for trial in front[1:] if trial.knee), front[-1])
    changed = [
        f"{name.rpartition('.')[2]}={fast.params.get(name, 'unset')} instead of {other.params.get(name, 'unset')}"
        for name in dict.fromkeys([*fast.params, *other.params])
        if fast.params.get(name) != other.params.get(name)
    ]
    pairs = [(one.name, fast.values[one.name], other.values[one.name]) for one in found.objectives]
    told = ", ".join(change(name, new / old) for name, new, old in pairs if new > 0 and old > 0)
    yield f"Trial {fast.number} instead of trial {other.number} ({printable(', '.join(changed), 160)}): {told}."


def change(name: str, ratio: float) -> str:
    """Say what a ratio of an objective, new / old, means: `1.3 times as fast`, `12 % less cost`."""
    if name == "time":
        return f"{1 / ratio:.3g} times as fast"
    if not 2 / 3 < ratio < 1.5:
        return f"{ratio:.3g} times the {name}"
    return f"{100 * abs(ratio - 1):.2g} % {'more' if ratio > 1 else 'less'} {name}"


def neighbours(found: SearchResult) -> list[tuple[Tried, Tried]]:
    """Pairs of the front that stand next to each other; of a single objective, the best and the one after it."""
    return list(pairwise(found.front if len(found.objectives) > 1 else found.points[:2]))


def _apart(found: SearchResult) -> Iterator[str]:
    """Whether the intervals of neighbours let them be told apart, and what else may well be on the front."""
    pairs = neighbours(found)
    once = [f"{a.number} and {b.number}" for a, b in pairs if not (a.low and b.low)]
    alike = [
        f"{a.number} and {b.number}"
        for a, b in pairs
        if a.low and b.low and all(a.low[name] <= b.high[name] and b.low[name] <= a.high[name] for name in a.low)
    ]
    told = [f"the intervals of trials {printable(', '.join(alike), 100)} overlap"] if alike else []
    told += [f"one ran once of trials {printable(', '.join(once), 100)}"] if once else []
    others = [(p.p_front or 0.0, p.number) for p in found.points if not p.front]
    likely = [f"{n} ({100 * sure:.0f} %)" for sure, n in sorted(others, reverse=True) if sure >= _LIKELY]
    told += [f"perhaps on the front as well: {printable(', '.join(likely), 100)}"] if likely else []
    if told:
        yield f"Cannot tell all choices apart: {'; '.join(told)}. --confirm repeats the best ones."
    elif pairs:
        yield "All choices that stand next to each other differ by more than their intervals in something."


def _mattered(found: SearchResult) -> Iterator[str]:
    """Which parameter mattered most for each objective that varies, where one stands out, and which did not."""
    shares = {}
    for one in found.objectives:
        values = sorted(point.values[one.name] for point in found.points)
        if found.importance.get(one.name) and values and not math.isclose(values[0], values[-1]):
            shares[one.name] = found.importance[one.name]
    tops = [(name, *max(told.items(), key=lambda item: item[1])) for name, told in shares.items()]
    tops = [(name, param, share) for name, param, share in tops if share * len(shares[name]) > _CLEAR]
    params = dict.fromkeys(param for told in shares.values() for param in told)
    little = [p for p in params if all(told.get(p, 0.0) < _LITTLE for told in shares.values())]
    if tops:
        most = ", ".join(f"{param} for {name} ({100 * share:.0f} %)" for name, param, share in tops)
        hardly = f"; hardly at all: {', '.join(little)}" if little else ""
        yield printable(f"What mattered most among the best trials: {most}{hardly}.", 300)


def _unmet(found: SearchResult) -> Iterator[str]:
    """Constraints that nobody meets, and by how much the nearest misses them; only where no trial meets all."""
    states = {trial.state for trial in found.trials}
    if "complete" in states or "infeasible" not in states:
        return
    yield "No trial is feasible, so there is nothing to choose."
    ran = [trial for trial in found.trials if trial.violations and "runs" not in trial.violations]
    for name, limit in found.space.search.constraints.items():
        if ran and all(trial.violations.get(name, 0.0) > 0 for trial in ran):
            nearest = min(ran, key=lambda trial: trial.violations[name])
            ends = [("≥", limit.min), ("≤", limit.max)]
            told = " and ".join(f"{sign} {quantity(name, end)}" for sign, end in ends if end is not None)
            missed = f"{called(nearest)}, misses it by {100 * nearest.violations[name]:.3g} %"
            yield f"Nobody meets {name} {told}: the nearest, {missed}."


def _lacking(found: SearchResult) -> Iterator[str]:
    """Objectives that no run tells, why trials came to nothing, and what was never launched."""
    if found.absent:
        yield f"Left out: {'; '.join(f'{name} ({reason})' for name, reason in found.absent.items())}."
    lost = [trial for trial in found.trials if trial.state == "infeasible"]
    never = [trial for trial in lost if not _launched(trial)]
    lost = [trial for trial in lost if _launched(trial)]
    if lost:
        yield f"{len(lost)} of {len(found.trials) - len(never)} trials came to nothing: {_reasons(lost)}."
    if never:
        yield f"Proposed and never launched, as they cannot run here: {_reasons(never)}."


def _launched(trial: Tried) -> bool:
    """Whether something of a trial was run; one in which the search was killed left no runs."""
    return bool(trial.runs or trial.stage or "was killed" in (trial.why or ""))


def _reasons(trials: Sequence[Tried]) -> str:
    """Count why trials came to nothing, with an example of each reason."""
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        broken = [name for name, excess in trial.violations.items() if excess > 0 and name != "runs"]
        why = f"beyond the limit of {' and '.join(broken)}" if broken else trial.why or "no reason is known"
        reasons.setdefault(why.partition(":")[0].replace("_", " "), []).append(why.partition(": ")[2])
    most = sorted(reasons.items(), key=lambda item: -len(item[1]))[:5]
    told = [f"{len(all_)} × {head}{f' (such as: {all_[0]})' * bool(all_[0])}" for head, all_ in most]
    return "; ".join(printable(one, 120) for one in [*told, *["..."] * (len(reasons) > len(most))])


def _tried(found: SearchResult) -> str:
    """How much of the space was tried."""
    ran = {tuple(trial.params.items()) for trial in found.trials if trial.runs}
    known = {tuple(trial.params.items()) for trial in found.trials if trial.runs and trial.source == "store"}
    size = found.space_size
    whole = "of a space too large to list" if size is None else f"of {size} that are possible"
    stored = f", {'all' if known == ran else len(known)} of them by earlier runs" if known else ""
    return f"Configurations measured: {len(ran) or 'none'} {whole}{stored}; {printable(found.ended, 200)}."


def _spent(found: SearchResult) -> str:
    """What the search itself took."""
    spent = found.spent
    if not spent.runs:
        return "The search itself started no run."
    made = [trial for trial in found.trials if trial.source == "search" and trial.seconds]
    least = {name: "at least " * any(getattr(trial, name) is None for trial in made) for name in ("joules", "usd")}
    energy = "" if spent.joules is None else "~" * spent.joules_estimated + quantity("energy", spent.joules)
    told = [f"{number(spent.seconds)} s", least["joules"] + energy if energy else "energy unknown"]
    told += [] if spent.usd is None else [f"{least['usd']}{number(spent.usd)} USD"]
    return f"The search itself took {', '.join(told)}; runs made for it: {spent.runs}."
