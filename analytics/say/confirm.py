"""What the confirming runs of a search say, in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analytics.judge import front as pareto
from analytics.judge.compare import Configurations
from analytics.runs.frame import asked
from analytics.say.search import called, chance, figures, headline
from analytics.search.result import placed
from analytics.text import number, repeats_words
from bench.record import Status

if TYPE_CHECKING:
    from analytics.search.result import SearchResult, Tried


def confirmed(result: SearchResult, df: pd.DataFrame) -> list[str]:
    """Say what confirming runs (a frame) say of the points of a search: what to take, and which really differ."""
    if not result.points:
        return ["There is nothing to confirm."]
    parts: dict[int, pd.DataFrame] = {}
    configurations: dict[int, str] = {}
    repeated: set[int] = set()
    for config, runs in df.groupby("config_id", sort=False):
        row = runs[asked(df)].to_dict("records")[0]  # of Python's own numbers
        params = result.space.params({str(name): value for name, value in row.items()})
        alike = {point.number for point in result.points if point.params == params}
        runs = runs[runs["status"] == Status.OK]
        complete = runs[np.all([np.isfinite(one.values(runs)) for one in result.objectives], axis=0)]
        repeated |= alike
        parts |= dict.fromkeys(alike, complete) if len(complete) else {}
        configurations |= dict.fromkeys(alike, str(config)) if len(complete) else {}
    lost = []
    for head, ran in (("No repeat tells all of what counts of", True), ("Not repeated:", False)):
        gone = [called(p) for p in result.front if p.number not in parts and (p.number in repeated) == ran]
        lost += [f"{head} {', '.join(gone)}."] if gone else []
    if not parts:
        return lost
    table = pareto.judged(list(parts.values()), result.objectives).set_axis(list(parts), axis=0)
    before = [point for point in result.points if point.number in parts]
    after = [placed(point, table, result.objectives) for point in before]
    after.sort(key=lambda point: (not point.knee, not point.front))
    out = [f"Confirmed by repeats in turn. {headline(replace(result, points=tuple(after)))}"]
    out += [f"T{called(p)[1:]}: {figures(result, p, ends=True)}; {_place(p, result)}." for p in after]
    out += _pairs(result, Configurations(df), configurations)
    again = {point.number: point.values for point in after}
    pairs = [(old.values[one.name], again[old.number][one.name]) for old in before for one in result.objectives]
    off = [100 * abs(old / new - 1) for old, new in pairs if new]
    if off:
        usual, most = (number(float(f"{miss:.2g}")) for miss in (statistics.median(off), max(off)))
        out.append(f"The values of the search were off by {usual} % (median), {most} % at most.")
    return [*out, *lost]


def _place(point: Tried, result: SearchResult) -> str:
    """Say whether a configuration is on the front, how sure that is, and whether that is new."""
    first = point.number in {trial.number for trial in result.front}
    sure = "" if point.p_front is None else f" ({chance(point.p_front)})"
    if point.front:
        return f"{'still' if first else 'now'} on the front{sure}"
    return f"{'no longer' if first else 'not'} on the front{sure}"


def _pairs(result: SearchResult, judge: Configurations, configurations: dict[int, str]) -> Iterator[str]:
    """Say which neighbours on the front, and which of those behind it and the knee, really differ.

    `configurations` are the `config_id` of the trials.
    """
    metrics = {one.column: one.name for one in result.objectives}
    knee, behind = result.points[0], [point for point in result.points if not point.front]
    neighbours = list(pairwise(result.front if len(metrics) > 1 else result.points[:2]))
    sides = dict.fromkeys((a.number, b.number) for a, b in [*neighbours, *((knee, point) for point in behind)])
    groups: dict[str, list[str]] = {}
    for a, b in (pair for pair in sides if configurations.keys() >= {*pair}):
        compared = judge.comparison(configurations[a], configurations[b], list(metrics), "", "")
        effects = compared.effects
        differ = [
            f"{metrics[effect.metric]} {effect.verdict}" for effect in effects if effect.verdict in ("better", "worse")
        ]
        differ += [f"{metrics[name]} not compared" for name in compared.not_compared] if differ else []
        more = max(
            (effect.more_repeats or 0 for effect in effects if effect.verdict not in ("better", "worse")), default=0
        )
        same = {effect.verdict for effect in effects} == {"equivalent"}
        head = (
            "Really different"
            if differ
            else "The same"
            if same
            else "Cannot be told apart"
            if effects
            else "Not compared"
        )
        tail = (
            f" ({', '.join(differ)})" if differ else f" ({repeats_words(more)} would tell)" if more and not same else ""
        )
        groups.setdefault(head, []).append(f"{a} and {b}{tail}")
    yield from (f"{head}: trials {'; '.join(pairs)}." for head, pairs in groups.items())
