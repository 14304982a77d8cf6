"""The figure of a front: two objectives as axes, a third one as colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analytics.pareto import Front
from analytics.words import number
from app.charts.base import COLOURS, GREY, RANKS, axis, edge, frame, text, with_ends
from app.tradeoffs import Side, places, told

NAMES = {"knee": "knee: nearest to the best of all", "front": "on the front", "others": "beaten by another"}


def front_chart(one: Front, x: Side, y: Side, third: Side | None = None, picked: int | None = None) -> go.Figure:
    """Draw the configurations of a front with 95 % intervals, and the line beyond which there is none.

    The line is the front of the two axes alone. A third objective is the colour of the markers. The one that is `picked`,
    an index of the table, has a ring. Those of the front have their number; `customdata` of a marker is its index.
    """
    figure = go.Figure(layout=frame(560))
    points = list(zip(x.values(one.table), y.values(one.table), strict=True))
    signs = (1 if x.objective.rising else -1, 1 if y.objective.rising else -1)
    line = edge(points, signs)
    if len(line["x"]) > 1:
        figure.add_scatter(**line, name="no other is better in these two")
    if picked is not None:
        ring = {"size": 26, "color": "rgba(0,0,0,0)", "symbol": "circle", "line": {"width": 3, "color": COLOURS[2]}}
        where = {"x": [points[picked][0]], "y": [points[picked][1]]}
        figure.add_scatter(**where, mode="markers", marker=ring, name="the one picked below", hoverinfo="skip")
    lines, ranks = told(one), places(one.table)
    for rank in (rank for rank in RANKS if rank in ranks):
        here = [index for index, stands in enumerate(ranks) if stands == rank]
        rows = one.table.iloc[here]
        colour, symbol, size = RANKS[rank]
        marker: dict[str, Any] = {"color": colour, "size": size, "symbol": symbol}
        if third is not None:
            scaled = _coloured(third.values(rows), _is_log(third.values(one.table)))
            marker |= {"color": scaled, "coloraxis": "coloraxis", "line": {"width": 1, "color": GREY}, "size": size + 3}
        at: dict[str, Any] = {}
        for name, side in (("x", x), ("y", y)):
            ends = list(zip(side.values(rows, "_low"), side.values(rows, "_high"), strict=True))
            at |= with_ends(name, side.values(rows), ends)
            at[f"error_{name}"]["color"] = GREY if third is not None else colour
        texts = ["<br>".join(map(text, lines[index])) for index in here]
        figure.add_scatter(
            **at,
            mode="markers" if rank == "others" else "markers+text",
            text=[str(index + 1) for index in here],
            textposition="top right",
            marker=marker,
            name=NAMES[rank],
            hovertext=texts,
            hoverinfo="text",
            customdata=[[index] for index in here],
            unselected={"marker": {"opacity": 1}},
        )
    if third is not None:
        figure.update_layout(coloraxis=_colour_axis(third, one))
    figure.update_xaxes(**_axis(x, one))
    return figure.update_yaxes(**_axis(y, one))


def _axis(side: Side, one: Front) -> dict[str, Any]:
    """An axis for the values; intervals that are far wider, as two repeats have them, leave the figure."""
    values = side.values(one.table)
    low, high = min(values) / 2, max(values) * 2
    ends = [end for tail in ("_low", "_high") for end in side.values(one.table, tail) if math.isfinite(end)]
    out = axis([*values, *(min(max(end, low), high) for end in ends)], side.title)
    if low > 0 and any(not low <= end <= high for end in ends):
        out["range"] = [math.log10(low), math.log10(high)] if out["type"] == "log" else [low, high]
    return out


def _is_log(values: Sequence[float]) -> bool:
    return bool(axis(values, "")["type"] == "log")


def _coloured(values: Sequence[float], log: bool) -> list[float]:
    return [math.log10(value) if log else value for value in values]


def _colour_axis(side: Side, one: Front) -> dict[str, Any]:
    """A bar above the figure with the values of the third objective, on logarithms where they are far apart."""
    values = side.values(one.table)
    bar: dict[str, Any] = {
        "orientation": "h",
        "y": 1.02,
        "yanchor": "bottom",
        "thickness": 12,
        "title": text(side.title),
    }
    if _is_log(values):
        ticks = axis(values, "")["tickvals"]
        bar |= {"tickvals": _coloured(ticks, True), "ticktext": [number(tick) for tick in ticks]}
    return {"colorscale": "Cividis", "colorbar": bar | {"title": {"text": text(side.title), "side": "top"}}}
