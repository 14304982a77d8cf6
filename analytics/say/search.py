"""The answer of `bench search` as blocks: what to take, how sure that is, the Pareto front, and what the search took."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analytics.quantities import quantity
from analytics.runs.frame import piece
from analytics.say.blocks import Block, Commands, Lines, Note, Sentence, Table
from analytics.say.names import joined, word
from analytics.text import interval, number, percent, printable, scale

if TYPE_CHECKING:
    from analytics.judge.objectives import Objective
    from analytics.search.result import SearchResult, Tried

_TOTALS = {"time": "duration_seconds", "energy": "energy_joules", "cost": "cost_usd", "carbon": "emissions_kg"}
_TOTALS |= {"memory": "peak_memory_bytes", "accuracy": "validation_accuracy"}
"""The quantity whose unit an objective has."""
_LITTLE, _CLEAR = 0.05, 2.0
"""With a smaller share in all objectives a parameter hardly matters; above so often an even share one stands out."""
_LIKELY = 0.25
"""From this probability on, a trial that is not on the front may well be."""
_MOST = 5
"""So many likely trials and reasons are shown."""


# --- trials and figures


def configuration(trial: Tried) -> str:
    """Say what a trial set: `bf16, 2 devices`."""
    return _words(trial.params) or "all defaults"


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(word(name, value) for name, value in params.items() if piece(name, value))


def chance(share: float) -> str:
    """Print a probability in percent."""
    return percent(round(share, 2))


def called(trial: Tried) -> str:
    """Name a trial by its number and what it set."""
    return f"trial {trial.number} ({configuration(trial)})"


def unit_of(name: str, largest: float) -> tuple[float, str]:
    """Return the divisor and the unit that suit figures of an objective, `largest` the largest of them."""
    if name == "time" and largest >= 7200:
        return 3600.0, "h"
    known = quantity(_TOTALS.get(name, name))
    size, unit = (1.0, "B") if known.unit == "MB" else (1 / known.factor, known.unit)
    if unit not in ("B", "J", "g CO2e"):
        return size, unit
    divisor, unit = scale(largest / size, unit)
    return size * divisor, unit


def figure(one: Objective, trial: Tried, divisor: float, unit: str = "") -> str:
    """Print what a trial came to in an objective, with its interval if there is one."""
    low, high = (end.get(one.name) for end in (trial.low, trial.high))
    return interval(trial.values[one.name] / divisor, low and low / divisor, high and high / divisor, unit)


def figures(result: SearchResult, trial: Tried, *, ends: bool = False) -> str:
    """Print what a trial came to in all objectives, on request with intervals: `2,365 s and 0.0657 USD`."""
    texts = []
    for one in result.objectives:
        divisor, unit = unit_of(one.name, trial.values[one.name])
        text = "~" * ("estimated" in one.column) + figure(one, trial, divisor, unit)
        texts.append(f"{one.title} " * (not unit or unit == "%") + (text if ends else text.partition(" (")[0]))
    return joined(texts)


def change(name: str, ratio: float) -> str:
    """Say what a ratio of an objective, new / old, means: `1.3 times as fast`, `12 % less cost`."""
    if name == "time":
        return f"{1 / ratio:.3g} times as fast"
    if not 2 / 3 < ratio < 1.5:
        return f"{ratio:.3g} times the {name}"
    return f"{100 * abs(ratio - 1):.2g} % {'more' if ratio > 1 else 'less'} {name}"


# --- the answer


def headline(result: SearchResult) -> str:
    """Say which configuration to take for what, and what it takes."""
    if not result.points:
        return _nothing(result)
    if len(result.points) == 1:
        return f"Take {configuration(result.points[0])}: {figures(result, result.points[0])}."
    titles: dict[int, list[str]] = {}
    for one in result.objectives:
        best = min(result.points, key=lambda point: one.rank(point.values))
        titles.setdefault(best.number, []).append(one.title)
    if len(titles) > 1:
        titles.setdefault(result.points[0].number, []).append("balance")
    points = {point.number: point for point in result.points}
    chosen = {n: points[n].params.items() for n in titles}
    shared = dict(set.intersection(*map(set, chosen.values()))) if len(titles) > 1 else {}
    parts = []
    for n, words in titles.items():
        own = _words({name: value for name, value in chosen[n] if name not in shared}) or "the defaults"
        parts.append(f"{own} for {joined(words)} ({figures(result, points[n])})")
    head = _words({name: value for name, value in chosen[n] if name in shared})
    return f"Take {f'{head}: ' * bool(head)}{'; or '.join(parts)}."


def _nothing(result: SearchResult) -> str:
    """Say why nothing can be chosen: of limits that nobody meets, by how much the nearest misses them."""
    states = {trial.state for trial in result.trials}
    if "complete" in states or "infeasible" not in states:
        return "Nothing can be chosen yet."
    out = ["No configuration is allowed"]
    ran = [trial for trial in result.trials if trial.violations and "runs" not in trial.violations]
    for name, limit in result.space.search.constraints.items():
        if ran and all(trial.violations.get(name, 0.0) > 0 for trial in ran):
            nearest = min(ran, key=lambda trial: trial.violations[name])
            ends = [("≥", limit.min), ("≤", limit.max)]
            units = ((sign, end, *unit_of(name, end)) for sign, end in ends if end is not None)
            limits = joined([f"{sign} {number(end / size)} {unit}".strip() for sign, end, size, unit in units])
            out.append(
                f"{name} {limits} is missed by {100 * nearest.violations[name]:.3g} % at least, {called(nearest)}"
            )
    return f"{'; '.join(out)}."


def _likely(result: SearchResult) -> list[Tried]:
    return [point for point in result.points if not point.front and (point.p_front or 0.0) >= _LIKELY]


def certainty(result: SearchResult) -> Iterator[str]:
    """Say how sure the Pareto front is, and which other trials may be on it."""
    probed = sum(trial.state == "complete" and trial.stage == "probe" for trial in result.trials)
    sure = [f"{chance(p.p_front)} sure (trial {p.number})" for p in result.front if p.p_front is not None]
    if sure:
        others = sorted(_likely(result), key=lambda point: -(point.p_front or 0.0))
        likely = [f"{p.number} ({chance(p.p_front or 0.0)})" for p in others[:_MOST]]
        more = f"; perhaps also trial{'s' * (len(likely) > 1)} {joined(likely)}" if likely else ""
        among = " among full runs" * bool(probed)
        yield f"Pareto front{among}: {printable(joined(sure), 200)}{more}."
    if probed:
        what = "1 configuration was" if probed == 1 else f"{probed} configurations were"
        yield f"{what} only probed, for a short time, and may be better: repeat with --confirm before you decide."
    if once := [str(trial.number) for trial in result.front if trial.p_front is None]:
        yield f"Trial{'s' * (len(once) > 1)} {printable(joined(once), 100)} ran once: how sure that is cannot be told."


def title(result: SearchResult) -> str:
    """Say what was searched, for what, and how much of it was measured."""
    work = result.space.search.work
    amount = f"{number(work.samples or work.tokens or 0)} {'samples' if work.samples else 'tokens'}"
    ran = {tuple(trial.params.items()) for trial in result.trials if trial.runs}
    size = "" if result.space_size is None else f" of {result.space_size:,}"
    goals = joined([goal.title for goal in result.space.search.objectives])
    what = f"{goals} {'to the target' if work.target else f'for {amount}'}"
    return f"{printable(result.study, 80)}: {what}; {len(ran)}{size} configurations measured"


def front_table(result: SearchResult, *, detail: bool = False) -> Table:
    """Return the Pareto front, and what may be on it: the second best at least; all points as `detail`."""
    others = [point for point in result.points if not point.front]
    likely = others if detail else _likely(result) or others[: len(result.front) == 1]
    shown = [*result.front, *likely]
    units = [unit_of(one.name, max(abs(point.values[one.name]) for point in result.front)) for one in result.objectives]
    heads = [
        f"{one.title}{'~' * ('estimated' in one.column)}{f', {unit}' * bool(unit)}"
        for one, (_, unit) in zip(result.objectives, units, strict=True)
    ]
    rows = []
    for point in shown:
        cells = [figure(one, point, size) for one, (size, _) in zip(result.objectives, units, strict=True)]
        runs = f"{len(point.runs)} {'stored' if point.source == 'store' else point.stage}"
        share = ("yes" if point.front else "no") if point.p_front is None else chance(point.p_front)
        rows.append(
            (
                str(point.number),
                configuration(point),
                *cells,
                runs,
                share + " knee" * (point.knee and len(result.front) > 1),
            )
        )
    columns = ("trial", "configuration", *heads, "runs", "on the front")
    caption = "All configurations that may be chosen" if detail else ""
    return Table(caption, columns, tuple(rows), detail=detail, words=("configuration", "runs", "on the front"))


# --- what it rests on


def notes(result: SearchResult) -> Iterator[Note]:
    """Say what the search took, and what is left out and why."""
    yield Note(f"{_spent(result)}; {printable(result.ended or 'not ended', 200)}.", "Search")
    if any("estimated" in one.column for one in result.objectives):
        yield Note("~ estimated by a model, not measured.")
    known = {point.number for point in result.points}
    untold = [str(t.number) for t in result.trials if t.state == "complete" and t.number not in known]
    absent = [f"{name} ({reason})" for name, reason in result.absent.items()]
    absent += [f"trials {joined(untold)}, which lack a figure that counts"] if untold else []
    if absent:
        yield Note(f"{printable('; '.join(absent), 300)}.", "Left out")
    lost = [trial for trial in result.trials if trial.state == "infeasible"]
    never = [trial for trial in lost if not (trial.runs or trial.stage or "was killed" in (trial.why or ""))]
    ran = [trial for trial in lost if trial not in never]
    if ran:
        yield Note(f"{len(ran)} of {len(result.trials) - len(never)} trials: {_reasons(ran)}.", "Failed")
    if never:
        yield Note(f"{_reasons(never)}.", "Impossible here, never started")


def _spent(result: SearchResult) -> str:
    spent = result.spent
    if not spent.runs:
        return "no run was started"
    made = [trial for trial in result.trials if trial.source == "search" and trial.seconds]
    least = {name: "at least " * any(getattr(trial, name) is None for trial in made) for name in ("joules", "usd")}
    parts = [f"{spent.runs} run{'s' * (spent.runs > 1)}", f"{number(round(spent.seconds))} s"]
    if spent.joules is None:
        parts.append("energy unknown")
    else:
        size, unit = unit_of("energy", spent.joules)
        parts.append(f"{least['joules']}{'~' * spent.joules_estimated}{interval(spent.joules / size)} {unit}")
    return ", ".join(parts + ([] if spent.usd is None else [f"{least['usd']}{interval(spent.usd)} USD"]))


def _reasons(trials: Sequence[Tried]) -> str:
    """Count why trials came to nothing, with an example of each reason."""
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        broken = [name for name, excess in trial.violations.items() if excess > 0 and name != "runs"]
        why = f"beyond the limit of {joined(broken)}" if broken else trial.why or "no reason is known"
        head, _, example = why.partition(": ")
        reasons.setdefault(head.replace("_", " "), []).append(example)
    most = sorted(reasons.items(), key=lambda item: -len(item[1]))
    texts = [f"{len(each)} × {head}{f' ({each[0]})' * bool(each[0])}" for head, each in most[:_MOST]]
    return "; ".join(printable(text, 120) for text in [*texts, *["..."] * (len(reasons) > _MOST)])


def details(result: SearchResult) -> Iterator[Note]:
    """Say what the choices cost against each other, and which parameters mattered."""
    front = result.front
    if len(front) > 1:
        a, b = front[0], next((trial for trial in front[1:] if trial.knee), front[-1])
        pairs = [(one.title, a.values[one.name], b.values[one.name]) for one in result.objectives]
        changes = joined([change(name, new / old) for name, new, old in pairs if new > 0 and old > 0])
        yield Note(f"{changes}.", f"Trial {a.number} instead of {b.number}", detail=True)
    yield from _mattered(result)
    if result.storage:
        command = f"optuna-dashboard {shlex.quote(result.storage)}"
        yield Note(f"{result.study} in {result.storage}; {command} shows it.", "Study", detail=True)
    if result.front_file:
        yield Note(f"{printable(result.front_file, 200)}.", "The best as a suite", detail=True)
    yield Note(
        "No other configuration beats one on the Pareto front in everything. Its percentage is in how many draws, given "
        "how the repeats scatter, that holds. The knee, the best balance, is the one nearest to the best of all objectives. "
        "A probe is a short first run; full runs are repeated. Intervals are 95 %.",
        detail=True,
    )


def _mattered(result: SearchResult) -> Iterator[Note]:
    """Which parameter mattered most for each objective that varies, where one stands out, and which did not."""
    shares = {}
    for one in result.objectives:
        values = sorted(point.values[one.name] for point in result.points)
        if result.importance.get(one.name) and values and not math.isclose(values[0], values[-1]):
            shares[one.title] = result.importance[one.name]
    tops = [(name, *max(each.items(), key=lambda item: item[1])) for name, each in shares.items()]
    tops = [(name, param, share) for name, param, share in tops if share * len(shares[name]) > _CLEAR]
    params = dict.fromkeys(param for each in shares.values() for param in each)
    little = [p for p in params if all(each.get(p, 0.0) < _LITTLE for each in shares.values())]
    if tops:
        most = ", ".join(f"{param} for {name} ({chance(share)})" for name, param, share in tops)
        hardly = f"; hardly: {', '.join(little)}" if little else ""
        yield Note(printable(f"{most}{hardly}.", 300), "Mattered most among the best trials", detail=True)


# --- all of it


def blocks(result: SearchResult, confirmed: Sequence[str] = (), commands: Sequence[str] = ()) -> list[Block]:
    """Return the answer of a search; `confirmed` are the sentences of its confirming run, `commands` what to run next."""
    first = confirmed[0] if confirmed else headline(result)
    out: list[Block] = [Sentence(title(result), "title"), Sentence(first, "answer")]
    out += [] if confirmed else [Sentence(text, "answer") for text in certainty(result)]
    out += [Commands(tuple(commands))] if commands else []
    out += [Lines(tuple(confirmed[1:]))] if confirmed[1:] else []
    caption = "Before the repeats" if confirmed else ""
    out += [replace(front_table(result), caption=caption)] if result.points else []
    every = [front_table(result, detail=True)] if len(result.points) > len(result.front) else []
    return [*out, *notes(result), *every, *details(result)]


def sentences(result: SearchResult) -> list[str]:
    """Return the answer without its table, for the dashboard."""
    texts = [
        f"{block.label}: {block.text}" if block.label else block.text for block in (*notes(result), *details(result))
    ]
    return [headline(result), *certainty(result), *texts]


def preview_blocks(name: str, objectives: Sequence[str], preview: dict[str, Any], command: str) -> list[Block]:
    """Say what would be searched, from `Session.preview`."""
    possible, combinations = preview["possible"], preview["combinations"]
    limits = joined([f"{value:g} {unit}" for unit, value in preview["budget"].items()])
    size = "Too many configurations to list" if possible is None else f"{possible:,} configurations can run here"
    total = "" if combinations is None else f", of {combinations:,} combinations"
    refused = list(preview["refused"].items())[:_MOST]
    return [
        Sentence(f"{name}: {joined(objectives)}, within {limits}, by {preview['sampler']}", "title"),
        Sentence(f"{size}{total}; stored runs of this machine tell {preview['known'] or 'none'} of them.", "answer"),
        *(Note(f"{count:,} cannot: {printable(reason, 200)}.") for reason, count in refused),
        Commands((command,)),
    ]
