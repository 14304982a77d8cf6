"""The answer of `bench pareto` as JSON and as blocks: what to choose for what, how sure that is, and the front."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analytics.runs.frame import IDENTITY, summary
from analytics.say.blocks import Block, Commands, Note, Sentence, Table
from analytics.say.names import named, plain, ranged
from analytics.say.search_words import change
from analytics.text import interval, percent, printable, scale

if TYPE_CHECKING:
    from analytics.judge.front import Front
    from analytics.judge.objectives import Objective

BEST = {
    "time": "fastest",
    "energy": "least energy",
    "cost": "cheapest",
    "carbon": "least carbon",
    "memory": "least memory",
    "quality": "best quality",
}
_LIKELY = 0.25
"""From this probability of being on the front on, a configuration that is not may well be."""


def document(front: Front) -> dict[str, Any]:
    """Return a front as JSON."""
    objectives = {o.name: {"column": o.column, "unit": o.unit} for o in front.objectives}
    rows = json.loads(front.table.to_json(orient="records", double_precision=15))
    head = {"work": front.work, "per": front.per, "objectives": objectives, "dropped": front.dropped}
    return head | {"configurations": rows}


def blocks(fronts: Sequence[Front], runs: pd.DataFrame) -> Iterator[Block]:
    """Yield the fronts of `runs`: title, what to choose, a table for all with the same objectives, and notes."""
    words = _words(runs)
    shown = [one for one in fronts if len(one.table) > 1 and one.objectives]
    names = [[words[key] for key in _keys(one.table)] for one in fronts]
    works = {id(one): texts[0][0] for one, texts in zip(fronts, names, strict=True)}
    works = works if len({*works.values()}) == len(fronts) else {id(one): one.work for one in fronts}
    changes = {id(one): [text for _, text in texts] for one, texts in zip(fronts, names, strict=True)}
    suites = sorted({str(suite) for one in fronts for suite in one.table["suite"].dropna()})
    yield Sentence(f"{printable(', '.join(suites), 200)}: {_what(shown)}", "title")
    for one in shown:
        head = f"{works[id(one)]}: " if len(fronts) > 1 else ""
        yield Sentence(head + answer(one, changes[id(one)]), "answer")
    if not shown:
        yield Sentence("There is nothing to choose from.", "answer")
    groups: dict[tuple[str, ...], list[Front]] = {}
    for one in shown:
        groups.setdefault((one.per, *(o.column for o in one.objectives)), []).append(one)
    few = works if len(fronts) > 1 else {}
    for alike in groups.values():
        yield _table(alike, few, changes, alike[0].per if len(groups) > 1 else "")
    yield from notes(fronts, works)
    yield Commands(
        (
            f"bench pareto {shlex.quote(printable(suites[0]))} --explain"
            if len(suites) == 1
            else "bench pareto --explain",
        )
    )
    for alike in groups.values():
        yield _table(alike, few, changes, f"All configurations, {alike[0].per}", detail=True)
    for one in shown:
        yield from _chances(one, changes[id(one)], works[id(one)] if len(fronts) > 1 else "")
    yield Note(
        "No other configuration beats one on the Pareto front in everything. The percentage is in how many draws, given "
        "how the repeats scatter, that holds. The knee is the configuration of the front nearest to the best of all.",
        detail=True,
    )


def _keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(table[list(IDENTITY)].astype(str).itertuples(index=False, name=None))


def _words(runs: pd.DataFrame) -> dict[tuple[str, ...], tuple[str, str]]:
    """Kind of work and what else tells a configuration apart, by IDENTITY."""
    table = summary(runs)
    return dict(zip(_keys(table), named(table).itertuples(index=False, name=None), strict=True))


def _what(fronts: Sequence[Front]) -> str:
    objectives = ", ".join(dict.fromkeys(o.name for one in fronts for o in one.objectives))
    repeats = [int(n) for one in fronts for n in one.table["repeats"]]
    ends = "-".join(str(n) for n in dict.fromkeys([min(repeats), max(repeats)])) if repeats else ""
    per = " or ".join(dict.fromkeys(one.per for one in fronts))
    return f"{objectives} {per}; 95 %, {ends} run{'s' * (ends != '1')} each" if repeats else "no objective to choose by"


def answer(one: Front, names: Sequence[str]) -> str:
    """Say which configuration is best in what, how sure that is, and which stands in between; `names` are by row."""
    titles: dict[int, list[str]] = {}
    for objective, index in bests(one):
        chance = float(one.table[f"p_best_{objective.name}"].iloc[index])
        sure = "" if math.isnan(chance) else f" ({100 * chance:.0f} % sure)"
        titles.setdefault(index, []).append(objective.name + sure)
    if len(titles) > 1:
        titles.setdefault(int(one.table.index[one.table["knee"]][0]), []).append("balance (the knee)")
    parts = []
    for index, words in titles.items():
        goals = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        parts.append(f"{names[index].replace(', ', ' + ')} for {goals}")
    return f"Take {'; '.join(parts)}."


def bests(one: Front) -> Iterator[tuple[Objective, int]]:
    """Yield each objective with the row of the table that is best in it."""
    for objective in one.objectives:
        values = one.table[objective.name].to_numpy(dtype=float)
        yield objective, int(values.argmin() if objective.rising else values.argmax())


def _units(fronts: Sequence[Front], place: int) -> tuple[float, str]:
    """The divisor and the unit of a column that suit its largest figure."""
    name = fronts[0].objectives[place].name
    largest = max(float(one.table[name].max()) for one in fronts)
    if name in ("energy", "memory"):
        return scale(largest, "J" if name == "energy" else "B")
    if name == "time":
        return (3600.0, "h") if largest >= 7200 else (1.0, "s")
    if name == "carbon":
        return (1.0, "kg CO2e") if largest >= 1 else (1e-3, "g CO2e")
    return 1.0, fronts[0].objectives[place].unit if name == "cost" else ""


def _table(
    fronts: Sequence[Front],
    works: Mapping[int, str],
    changes: Mapping[int, list[str]],
    caption: str,
    *,
    detail: bool = False,
) -> Table:
    """Configurations of the front, and those that may well be on it; all as detail."""
    first = fronts[0]
    units = [_units(fronts, place) for place in range(len(first.objectives))]
    heads = [
        f"{o.unit if o.name == 'quality' else o.name}{'~' * any(o.name in one.estimated for one in fronts)}"
        + (f", {unit}" if unit else "")
        for o, (_, unit) in zip(first.objectives, units, strict=True)
    ]
    rows = []
    for one in fronts:
        likely = one.table["front"] | (one.table["p_front"] >= _LIKELY) | detail
        for place, (_, row) in enumerate(one.table[likely].iterrows()):
            figures = [
                interval(row[o.name] / divisor, row[f"{o.name}_low"] / divisor, row[f"{o.name}_high"] / divisor)
                for o, (divisor, _) in zip(one.objectives, units, strict=True)
            ]
            share = ("yes" if row["front"] else "no") if math.isnan(row["p_front"]) else f"{100 * row['p_front']:.0f} %"
            work = [works[id(one)] * (place == 0)] if works else []
            change = changes[id(one)][int(str(row.name))]
            rows.append((*work, change, *figures, share + " knee" * bool(row["knee"])))
    columns = (*(["model"] if works else []), "configuration", *heads, "on the front")
    return Table(caption, columns, tuple(rows), folded=detail, words=("configuration", "on the front"))


def notes(fronts: Sequence[Front], works: Mapping[int, str]) -> Iterator[Note]:
    """Say what is estimated, what ran once, and what is left out; `works` names the kind of work of a front by its id."""
    count = sum(len(one.table) for one in fronts)
    if once := sum(int((one.table["repeats"] < 2).sum()) for one in fronts):
        yield Note(f"{once} of {count} configurations ran once, so their spread is unknown: give repeats of 3 or more.")
    if estimated := dict.fromkeys(name for one in fronts for name in one.estimated):
        yield Note(f"~ {' and '.join(estimated)}: estimated, not measured.")
    for note in dict.fromkeys(note for one in fronts for note in one.notes):
        yield Note(f"{note}.", "Careful")
    reasons: dict[str, list[str]] = {}
    for one in fronts:
        for name, reason in one.dropped.items():
            reasons.setdefault(name, []).append(reason)
    for name, texts in reasons.items():
        for reason in ranged(texts):
            yield Note(f"{name}: {plain(reason)}.", "Left out")
    if alone := [works[id(one)] for one in fronts if len(one.table) == 1]:
        yield Note(f"{printable(', '.join(alone), 300)}.", "Nothing to choose, with one configuration")


def _chances(one: Front, names: Sequence[str], work: str) -> Iterator[Table]:
    columns = [f"p_best_{o.name}" for o in one.objectives]
    if one.table[columns].notna().any(axis=None):
        rows = [
            (name, *("-" if math.isnan(p) else percent(round(p, 2)) for p in row))
            for name, row in zip(names, one.table[columns].to_numpy(dtype=float), strict=True)
        ]
        heads = (BEST[o.name] for o in one.objectives)
        caption = f"Chance to be the best{f', {work}' * bool(work)}"
        yield Table(caption, ("configuration", *heads), tuple(rows), folded=True)


def against(one: Front, index: int) -> Iterator[str]:
    """Say what a configuration, by its index in the table, takes more or less than the knee and the best of each objective.

    "Not told apart" are figures whose 95 % intervals hold no difference: half-widths on logarithms add in quadrature.
    """
    here = one.table.iloc[index]
    others: dict[int, list[str]] = {int(i): ["the knee"] for i in one.table.index[one.table["knee"]]}
    for objective, best in bests(one):
        others.setdefault(best, []).append(BEST[objective.name])
    for other, titles in others.items():
        if other == index and len(one.table) > 1:
            yield f"This is {', '.join(titles)} of all {len(one.table)}."
    for other, titles in others.items():
        if other != index:
            row = one.table.iloc[other]
            told = ", ".join(_difference(objective, here, row) for objective in (*one.objectives, *one.others))
            yield f"Compared with {row['name']} ({', '.join(titles)}): {told}."


def _difference(objective: Objective, here: pd.Series, other: pd.Series) -> str:
    name = objective.unit if objective.name == "quality" else objective.name
    new, old = float(here[objective.name]), float(other[objective.name])
    if new == old:
        return f"the same {name}"
    if min(new, old) <= 0:
        return f"{name} {new:.3g} instead of {old:.3g}"
    ends = [(float(row[f"{objective.name}_low"]), float(row[f"{objective.name}_high"])) for row in (here, other)]
    half = math.hypot(*(math.log(high / low) / 2 for low, high in ends))  # not a number where one ran once
    return change(name, new / old) + (" (not told apart)" if abs(math.log(new / old)) <= half else "")
