"""The figure of a front: two objectives as axes, a third one as colour."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from analytics.pareto import Front
from app.charts.base import COLOURS, GREY, RANKS, axis, edge, frame, text, with_ends
from app.tradeoffs import Side, places, told

NAMES = {"knee": "knee: nearest to the best of all", "front": "on the front", "others": "beaten by another"}


def front_chart(one: Front, x: Side, y: Side, third: Side | None = None, picked: int | None = None) -> go.Figure:
    """Draw the configurations of a front with 95 % intervals, and the line beyond which there is none.

    The line is the front of the two axes alone. A third objective is the colour of the markers. The one that is `picked`,
    an index of the table, has a ring. Those of the front have their number; `customdata` of a marker is its index.
    """
    figure, at = go.Figure(layout=frame(560)), dict[str, Any]()
    points = list(zip(x.values(one.table), y.values(one.table), strict=True))
    signs = (1 if x.objective.rising else -1, 1 if y.objective.rising else -1)
    line = edge(points, signs)
    if len(line["x"]) > 1:
        figure.add_scatter(**line, name="no other is better in these two")
    if picked is not None:
        ring = {"size": 26, "symbol": "circle-open", "color": COLOURS[2], "line": {"width": 3}}
        at = {"x": [points[picked][0]], "y": [points[picked][1]], "name": "the one picked below", "hoverinfo": "skip"}
        figure.add_scatter(**at, mode="markers", marker=ring)
    lines, ranks = told(one), places(one.table)
    for rank in (rank for rank in RANKS if rank in ranks):
        here = [index for index, stands in enumerate(ranks) if stands == rank]
        rows = one.table.iloc[here]
        colour, symbol, size = RANKS[rank]
        at = {"name": NAMES[rank], "customdata": [[index] for index in here], "hoverinfo": "text"}
        at |= {"hovertext": ["<br>".join(map(text, lines[index])) for index in here], "textposition": "top right"}
        at |= {"mode": "markers" if rank == "others" else "markers+text", "text": [str(index + 1) for index in here]}
        at |= {"marker": {"color": colour, "size": size, "symbol": symbol}, "unselected": {"marker": {"opacity": 1}}}
        if third is not None:
            colours = {"color": third.values(rows), "coloraxis": "coloraxis", "line": {"width": 1, "color": GREY}}
            at["marker"] |= colours | {"size": size + 3}
        for name, side in (("x", x), ("y", y)):
            ends = list(zip(side.values(rows, "_low"), side.values(rows, "_high"), strict=True))
            at |= with_ends(name, side.values(rows), ends)
        figure.add_scatter(**at)
    if third is not None:
        bar = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "thickness": 12}
        bar["title"] = {"text": text(third.title), "side": "top"}
        figure.update_layout(coloraxis={"colorscale": [[0, COLOURS[5]], [1, COLOURS[1]]], "colorbar": bar})
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
