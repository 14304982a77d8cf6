"""Two figures of each thing: Pareto fronts, time against cost, values along numbers of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import plotly.graph_objects as go

from analytics.say.blocks import Figure
from analytics.text import between
from app.charts.base import COLOURS, GREY, axis, frame, looks, text, with_ends

Extent = tuple[float, float, float]
"""A value and the ends of its interval; NaN where there is none."""


@dataclass(frozen=True)
class Spot:
    """A marker of a front: its place, the group that gives its look, lines for hovering, and its label."""

    x: Extent
    y: Extent
    group: str
    hover: Sequence[str]
    label: str = ""
    colour: float | None = None


def front_chart(
    spots: Sequence[Spot],
    groups: Mapping[str, tuple[str, str, int]],
    titles: tuple[str, str],
    signs: tuple[int, int] | None = None,
    colours: str = "",
    picked: int | None = None,
) -> go.Figure:
    """Draw markers with their intervals, a trace each of the `groups` (colour, symbol, size).

    With `signs` (1: less is better, -1: more is better) there is the line of the front of the two axes. `colours` is the
    title of a third figure that is shown as colour. The one that is `picked`, an index of `spots`, has a ring; `customdata`
    of a marker is its index.
    """
    figure, points = go.Figure(layout=frame(480)), [(spot.x[0], spot.y[0]) for spot in spots]
    if signs is not None and len((line := edge(points, signs))["x"]) > 1:
        figure.add_scatter(**line, name="Pareto front of these two")
    if picked is not None:
        ring = {"size": 26, "symbol": "circle-open", "color": COLOURS[2], "line": {"width": 3}}
        x, y = points[picked]
        figure.add_scatter(x=[x], y=[y], name="picked", hoverinfo="skip", mode="markers", marker=ring)
    for name, (colour, symbol, size) in groups.items():
        here = [(index, spot) for index, spot in enumerate(spots) if spot.group == name]
        if not here:
            continue
        at: dict[str, Any] = {"name": text(name), "customdata": [[index] for index, _ in here], "hoverinfo": "text"}
        at |= {"hovertext": ["<br>".join(map(text, spot.hover)) for _, spot in here], "textposition": "top right"}
        labels = [text(spot.label) for _, spot in here]
        at |= {"mode": "markers+text" if any(labels) else "markers", "text": labels}
        at |= {"marker": {"color": colour, "size": size, "symbol": symbol}, "unselected": {"marker": {"opacity": 1}}}
        if colours:
            shades = {"color": [spot.colour for _, spot in here], "coloraxis": "coloraxis"}
            at["marker"] |= shades | {"line": {"width": 1, "color": GREY}, "size": size + 3}
        for way in ("x", "y"):
            known = [getattr(spot, way) for _, spot in here]
            at |= with_ends(way, [value for value, *_ in known], [(low, high) for _, low, high in known])
        figure.add_scatter(**at)
    if colours:
        bar = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "thickness": 12}
        bar["title"] = {"text": text(colours), "side": "top"}
        figure.update_layout(coloraxis={"colorscale": [[0, COLOURS[5]], [1, COLOURS[1]]], "colorbar": bar})
    figure.update_xaxes(**_axis([spot.x for spot in spots], titles[0]))
    return figure.update_yaxes(**_axis([spot.y for spot in spots], titles[1]))


def edge(points: Sequence[tuple[float, float]], signs: tuple[int, int]) -> dict[str, Any]:
    """Return the line through the points that no other beats in both coordinates; a sign of -1 where more is better."""
    found: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (signs[0] * point[0], signs[1] * point[1])):
        if not found or signs[1] * point[1] < signs[1] * found[-1][1]:
            found.append(point)
    line = {"color": COLOURS[0], "shape": "hv", "width": 1.5}
    return {"x": [x for x, _ in found], "y": [y for _, y in found], "line": line, "mode": "lines", "hoverinfo": "skip"}


def _axis(known: Sequence[Extent], title: str) -> dict[str, Any]:
    """An axis for the values; intervals that are far wider, as two repeats have them, leave the figure."""
    values = [value for value, *_ in known]
    low, high = min(values) / 2, max(values) * 2
    ends = [end for end in chain.from_iterable(ends for _, *ends in known) if math.isfinite(end)]
    out = axis([*values, *(min(max(end, low), high) for end in ends)], title)
    if low > 0 and any(not low <= end <= high for end in ends):
        out["range"] = [math.log10(low), math.log10(high)] if out["type"] == "log" else [low, high]
    return out


def block_chart(block: Figure) -> go.Figure:
    """Draw the figure of an answer: marks with their intervals by name or along numbers of devices, and lines of laws."""
    value, place = ("y", "x") if block.along else ("x", "y")
    names = {mark.name for group in block.groups for mark in group.marks}
    figure = go.Figure(layout=frame(380 if block.along else 140 + 30 * len(names)))
    for index, group in enumerate(block.groups):
        colour, symbol = looks(index)
        ends = [(math.nan if m.low is None else m.low, math.nan if m.high is None else m.high) for m in group.marks]
        at = with_ends(value, [mark.value for mark in group.marks], ends)
        at |= {place: [mark.x if block.along else text(mark.name) for mark in group.marks]}
        hover = [f"{text(mark.name)}<br>{between(mark.value, mark.low, mark.high)}" for mark in group.marks]
        look = {"color": colour, "symbol": symbol, "size": 10}
        figure.add_scatter(**at, mode="markers", marker=look, name=text(group.name), hovertext=hover, hoverinfo="text")
        if group.law:
            x, y = zip(*group.law, strict=True)
            figure.add_scatter(x=x, y=y, mode="lines", line_color=colour, showlegend=False, hoverinfo="skip")
    values = [mark.value for group in block.groups for mark in group.marks]
    scale: dict[str, Any] = (
        axis(values, block.axis) if block.log else {"title": text(block.axis), "rangemode": "tozero"}
    )
    if block.most is not None:
        scale["range"] = [0, block.most]
    figure.update_layout({f"{value}axis": scale, "title": text(block.title)}, showlegend=len(block.groups) > 1)
    if block.reference is not None:
        draw = figure.add_hline if block.along else figure.add_vline
        draw(block.reference, line_width=1, line_color=GREY)
    if not block.along:
        return figure.update_yaxes(type="category", autorange="reversed")
    places = sorted({mark.x for group in block.groups for mark in group.marks})
    ticks = {"tickvals": places, "ticktext": [f"{x:g}" for x in places], "title": text(block.along), "type": "log"}
    return figure.update_xaxes(**ticks)
