"""Figures of a search: its front, its course, what mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from analytics.searched import Tried
from analytics.words import number
from app.charts.base import COLOURS, GREY, PATTERNS, axis, frame, looks, text
from app.searches import Document, Goal, kind, told

RANKS = {"others": (GREY, "diamond", 9), "front": (COLOURS[0], "circle", 12), "knee": (COLOURS[1], "star", 16)}
"""Colour, symbol and size of a trial."""


def front_chart(shown: Document, x: Goal, y: Goal) -> go.Figure:
    """Draw two objectives of the complete trials with 95 % intervals, and the line beyond which there is none.

    The line is the front of these two; filled marks were measured in full, open ones by a probe.
    """
    figure, edge = go.Figure(layout=frame(480)), list[Tried]()
    for trial in sorted(shown.complete, key=lambda t: (x.sign * t.values[x.name], y.sign * t.values[y.name])):
        if not edge or y.sign * trial.values[y.name] < y.sign * edge[-1].values[y.name]:
            edge.append(trial)
    at = {"x": _values(edge, x), "y": _values(edge, y), "line": {"color": COLOURS[0], "shape": "hv", "width": 1}}
    if len(edge) > 1:
        figure.add_scatter(**at, mode="lines", name="no other is better in both", hoverinfo="skip")
    for rank, stage in sorted(set(map(kind, shown.complete)), reverse=True):
        trials = [trial for trial in shown.complete if kind(trial) == (rank, stage)]
        colour, symbol, size = RANKS[rank]
        marker = {"color": colour, "size": size, "symbol": symbol + ("" if stage == "full" else "-open")}
        texts = ["<br>".join(map(text, told(trial, shown.goals))) for trial in trials]
        at = {"name": text(f"{rank}, {stage}"), **_with_ends("x", trials, x), **_with_ends("y", trials, y)}
        figure.add_scatter(**at, mode="markers", marker=marker, hovertext=texts, hoverinfo="text")
    figure.update_xaxes(**axis(_reach(shown.complete, x), x.title))
    return figure.update_yaxes(**axis(_reach(shown.complete, y), y.title))


def _values(trials: Sequence[Tried], goal: Goal) -> list[float]:
    return [trial.values[goal.name] for trial in trials]


def _reach(trials: Sequence[Tried], goal: Goal) -> list[float]:
    """Return values and the ends of their intervals."""
    ends = [end[goal.name] for trial in trials for end in (trial.low, trial.high) if goal.name in end]
    return [*_values(trials, goal), *ends]


def _with_ends(axis: str, trials: Sequence[Tried], goal: Goal) -> dict[str, Any]:
    values = _values(trials, goal)
    up = [trial.high.get(goal.name, value) - value for trial, value in zip(trials, values, strict=True)]
    down = [value - trial.low.get(goal.name, value) for trial, value in zip(trials, values, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "visible": any(up + down)}
    return {axis: values, f"error_{axis}": bars | {"thickness": 1}}


def history_chart(title: str, points: Sequence[tuple[float, float]], sign: int) -> go.Figure:
    """Draw figures over the numbers of their trials, and the best so far: the least, or with `sign` -1 the largest."""
    numbers, values = [x for x, _ in points], [y for _, y in points]
    best = list(accumulate(values, min if sign > 0 else max))
    line = {"color": COLOURS[0], "shape": "hv", "width": 2}
    figure = go.Figure(layout=frame(260) | {"showlegend": False, "xaxis_title": "trial"})
    figure.add_scatter(x=numbers, y=values, mode="markers", marker={"color": GREY}, name="trial")
    figure.add_scatter(x=numbers, y=best, mode="lines", line=line, name="best so far")
    return figure.update_yaxes(**axis(values if sign > 0 else [0, *values], title))


def importance_chart(importance: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw how much of what each objective varies is told by each parameter, in percent."""
    figure = go.Figure(layout=frame(420))
    for index, (goal, shares) in enumerate(importance.items()):
        look = {"color": looks(index)[0], "pattern": {"shape": PATTERNS[index % len(PATTERNS)]}}
        x = [100 * share for share in shares.values()]
        figure.add_bar(orientation="h", x=x, y=list(map(text, shares)), name=text(goal), marker=look)
    figure.update_xaxes(title="importance [%]", rangemode="tozero")
    return figure.update_yaxes(type="category", categoryorder="total ascending")


def parallel_chart(shown: Document) -> go.Figure:
    """Draw a line a complete trial, those of the front in orange; each axis has the values in order, not to scale."""
    trials = sorted(shown.complete, key=lambda trial: trial.front)
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    axes: dict[str, list[Any]] = {name: [trial.params.get(name) for trial in trials] for name in names}
    axes |= {goal.title: _values(trials, goal) for goal in shown.goals}
    sides = []
    for name, values in axes.items():
        order = sorted(set(values), key=lambda value: (value is None, isinstance(value, str), value))
        ticks = range(0, len(order), -(-len(order) // 8))
        names_of = [text("not set" if x is None else number(x) if isinstance(x, float) else x) for x in order]
        side = {"label": text(name), "values": [order.index(value) for value in values], "tickvals": list(ticks)}
        sides.append(side | {"ticktext": names_of[:: ticks.step]})
    line = {"color": [int(trial.front) for trial in trials], "colorscale": [[0, GREY], [1, COLOURS[1]]]}
    fonts = {"tickfont": {"size": 13}, "labelfont": {"size": 13}, "labelangle": -20}
    figure = go.Figure(go.Parcoords(dimensions=sides, line=line | {"cmin": 0, "cmax": 1}, **fonts))
    return figure.update_layout(height=520, margin={"l": 110, "r": 70, "t": 110, "b": 20})
