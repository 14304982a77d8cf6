"""A front in words: what to choose and how sure that is, and what one configuration takes more or less than others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from analytics.searched_words import change

if TYPE_CHECKING:
    import pandas as pd

    from analytics.objectives import Objective
    from analytics.pareto import Front

BEST = {
    "time": "fastest",
    "energy": "least energy",
    "cost": "cheapest",
    "carbon": "least carbon",
    "memory": "least memory",
    "quality": "best quality",
}
_NOTABLE = 0.05
"""From which probability on another configuration is named that may be the best."""


def sentences(one: Front) -> list[str]:
    """Say what to choose, and what is not known."""
    lines = [
        f"{BEST[objective.name]}: {row['name']}{_sure(row, one.table, objective.name)}"
        for objective, row in _bests(one)
    ]
    if len(one.objectives) > 1:
        knee = one.table[one.table["knee"]].iloc[0]
        lines.append(f"in between (the knee, nearest to the best of all): {knee['name']}{_once(knee)}")
        lines.append("front: no other is better in all; %: how often that is so, given how the repeats scatter")
    single = one.table.loc[one.table["repeats"] < 2, "name"]
    if one.objectives and len(single):
        which = "all" if len(single) == len(one.table) else ", ".join(single)
        which = which if len(single) < 4 or which == "all" else f"{len(single)} of {len(one.table)}"
        lines.append(f"ran once, so the spread is not known ({which}): give repeats of 3 or more")
    if one.estimated:
        lines.append(f"~ {' and '.join(one.estimated)}: the figure of a model, not a measurement")
    return [*lines, *one.notes, *(f"{name} is left out: {reason}" for name, reason in one.dropped.items())]


def against(one: Front, index: int) -> Iterator[str]:
    """Say what a configuration, by its index in the table, takes more or less than the knee and the best of each objective.

    "Not told apart" are figures whose 95 % intervals hold no difference: half-widths on logarithms add in quadrature.
    """
    here = one.table.iloc[index]
    others: dict[int, list[str]] = {int(i): ["the knee"] for i in one.table.index[one.table["knee"]]}
    for objective, row in _bests(one):
        others.setdefault(int(str(row.name)), []).append(BEST[objective.name])
    for other, titles in others.items():
        if other == index and len(one.table) > 1:
            yield f"This is {', '.join(titles)} of all {len(one.table)}."
    for other, titles in others.items():
        if other != index:
            row = one.table.iloc[other]
            told = ", ".join(_difference(objective, here, row) for objective in (*one.objectives, *one.others))
            yield f"Compared with {row['name']} ({', '.join(titles)}): {told}."


def _bests(one: Front) -> Iterator[tuple[Objective, pd.Series]]:
    """The row of the table that is best in each objective."""
    for objective in one.objectives:
        values = one.table[objective.name].to_numpy(dtype=float)
        yield objective, one.table.iloc[int(values.argmin() if objective.rising else values.argmax())]


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


def _sure(row: pd.Series, table: pd.DataFrame, objective: str) -> str:
    """Say how sure it is that this configuration is the best, and which other one may be."""
    column = f"p_best_{objective}"
    if math.isnan(row[column]):
        return _once(row)
    others = table[(table["name"] != row["name"]) & (table[column] >= _NOTABLE)].sort_values(column)
    rival = f"; it may be {others.iloc[-1]['name']}" if len(others) else ""
    return f" ({100 * row[column]:.0f} % sure{rival})"


def _once(row: pd.Series) -> str:
    return " (ran once: how sure that is cannot be said)" if row["repeats"] < 2 else ""
