"""What the confirming runs of a search say, in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analytics.judge import front as pareto
from analytics.judge.compare import Configurations, Effect
from analytics.runs.frame import asked
from analytics.say.search_words import called, neighbours, quantity
from analytics.text import between, printable, repeats_words
from bench.record import Status

if TYPE_CHECKING:
    from analytics.search.result import SearchResult, Tried


def confirmed(found: SearchResult, df: pd.DataFrame) -> list[str]:
    """Say what confirming runs (a frame) say of the points of a search: which are on the front, and which differ."""
    if not found.points:
        return ["There is nothing to confirm."]
    parts: dict[int, pd.DataFrame] = {}
    configurations: dict[int, str] = {}
    repeated: set[int] = set()
    for config, runs in df.groupby("config_id", sort=False):
        row = runs[asked(df)].to_dict("records")[0]  # of Python's own numbers
        params = found.space.params({str(name): value for name, value in row.items()})
        alike = {point.number for point in found.points if point.params == params}
        runs = runs[runs["status"] == Status.OK]
        told = runs[np.all([np.isfinite(one.values(runs)) for one in found.objectives], axis=0)]
        repeated |= alike
        parts |= dict.fromkeys(alike, told) if len(told) else {}
        configurations |= dict.fromkeys(alike, str(config)) if len(told) else {}
    points = [point for point in found.points if point.number in parts]
    lost = []
    for head, ran in (("No confirming run tells all of what counts of", True), ("Not repeated:", False)):
        gone = [called(p) for p in found.front if p.number not in parts and (p.number in repeated) == ran]
        lost += [f"{head} {', '.join(gone)}."] if gone else []
    if not points:
        return lost
    table = pareto.judged([parts[point.number] for point in points], found.objectives)
    out = [
        f"{called(p)}: {_told(found, row)}; {_place(p, row)}."
        for p, (_, row) in zip(points, table.iterrows(), strict=True)
    ]
    out += _pairs(found, Configurations(df), configurations)
    pairs = [(p.values[o.name], x) for o in found.objectives for p, x in zip(points, table[o.name], strict=True)]
    off = [100 * abs(before / now - 1) for before, now in pairs if now]
    far = f"{statistics.median(off):.2g} % (median), {max(off):.2g} % at most" if off else ""
    return [*out, *([f"The values of the search were off by {far}."] if far else []), *lost]


def _told(found: SearchResult, row: pd.Series) -> str:
    """Print what a configuration came to when it was repeated."""
    figures = [
        f"{one.name} {'~' * ('estimated' in one.column)}"
        + quantity(one.name, row[one.name], row[f"{one.name}_low"], row[f"{one.name}_high"])
        for one in found.objectives
    ]
    return ", ".join(figures)


def _place(point: Tried, row: pd.Series) -> str:
    """Say whether a configuration is on the front, and whether that is new."""
    sure = 1.0 if pd.isna(row["p_front"]) else float(row["p_front"])
    chance = "" if pd.isna(row["p_front"]) else f" ({100 * sure:.0f} % sure)"
    if row["front"]:
        return (
            ("still" if point.front else "now")
            + (" on the front" if sure >= 0.5 else " on the front, perhaps")
            + chance
        )
    return "no longer on the front" if point.front else "not on the front"


def _pairs(found: SearchResult, judge: Configurations, configurations: dict[int, str]) -> Iterator[str]:
    """Say what really differs of neighbours on the front, and of the knee and those behind it.

    `configurations` are the `config_id` of the trials.
    """
    metrics = [one.column for one in found.objectives]
    knee, behind = found.points[0], [point for point in found.points if not point.front]
    sides = dict.fromkeys((a.number, b.number) for a, b in [*neighbours(found), *((knee, point) for point in behind)])
    for a, b in (pair for pair in sides if configurations.keys() >= {*pair}):
        pair = configurations[a], configurations[b]
        one = judge.comparison(*pair, metrics, f"Trial {a}", f"trial {b}")
        verdicts = {effect.verdict for effect in one.effects}
        head = "are really different" if verdicts & {"better", "worse"} else "cannot be told apart"
        head = "are the same" if verdicts == {"equivalent"} else head
        told = {name: f"not compared ({printable(why, 120)})" for name, why in (one.not_compared or {}).items()}
        told |= {effect.metric: _verdict(effect) for effect in one.effects}
        yield f"{one.name} and {one.baseline} {head}: {'; '.join(f'{o.name} {told[o.column]}' for o in found.objectives)}."


def _verdict(effect: Effect) -> str:
    centre, what = (effect.ratio, "times") if effect.difference is None else (effect.difference, "more")
    what += " as fast" if effect.metric.endswith("_per_second") else ""
    more = f"; {repeats_words(effect.more_repeats)} would tell" if effect.more_repeats else ""
    return f"{effect.verdict}, {between(centre, effect.low, effect.high)} {what}{more}"
