"""Two figures of each thing: Pareto fronts, time against cost, values along numbers of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import plotly.graph_objects as go

from analytics.say.blocks import Figure, Mark
from analytics.text import interval
from app.charts.base import COLOURS, GREY, axis, blank, headed, looks, text, with_ends

Extent = tuple[float, float, float]
"""A value and the ends of its interval; NaN where there is none."""


def extent(value: float, low: float | None, high: float | None) -> Extent:
    """Return a value with the ends of its interval, if there is one."""
    return value, math.nan if low is None else low, math.nan if high is None else high


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
    figure, points = blank(480), [(spot.x[0], spot.y[0]) for spot in spots]
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


LESS, MORE = (COLOURS[0], "circle"), (COLOURS[1], "x")
VERDICTS = {"better": LESS, "less": LESS, "worse": MORE, "more": MORE}
VERDICTS |= {"same": (COLOURS[2], "diamond"), "undecided": (GREY, "circle-open")}
VERDICTS |= {f"probably {name}": (colour, f"{symbol}-open") for name, (colour, symbol) in VERDICTS.items()}
"""Colour and symbol of a verdict."""
MOST = 40
"""More rows than this are not drawn."""


def block_chart(block: Figure) -> go.Figure:
    """Draw the figure of an answer: marks along numbers of devices with the lines of laws, or one under the other."""
    return _along(block) if block.along else _by_name(block)


def _marks(marks: Sequence[Mark], way: str) -> dict[str, Any]:
    """Return values with their intervals along an axis, and what stands beside each when it is pointed at."""
    ends = [extent(mark.value, mark.low, mark.high)[1:] for mark in marks]
    hover = [
        f"{text(mark.name)}<br>{'~' * mark.estimated}{interval(mark.value, mark.low, mark.high)}" for mark in marks
    ]
    return with_ends(way, [mark.value for mark in marks], ends) | {"hovertext": hover, "hoverinfo": "text"}


def _by_name(block: Figure) -> go.Figure:
    marks = sorted(((mark, group) for group in block.groups for mark in group.marks), key=lambda pair: pair[0].x)
    heads: dict[str, list[str]] = {}
    for mark, group in marks:
        heads.setdefault(mark.name, []).append(f"{interval(mark.value, mark.low, mark.high)} {group.name}")
    rows = {name: row for row, name in enumerate(list(heads)[:MOST])}
    figure = blank(300, title=text(block.title), showlegend=len(block.groups) > 1)
    known: list[Extent] = [] if block.reference is None else [extent(block.reference, None, None)]
    if block.reference is not None:
        at = {"x": [block.reference, block.reference, None] * len(rows), "mode": "lines", "line_color": GREY}
        at["y"] = [y for row in range(len(rows)) for y in (row - 0.15, row + 0.3, None)]
        figure.add_scatter(**at, line_width=1, hoverinfo="skip", name="baseline")
    for index, group in enumerate(block.groups):
        here = [mark for mark in group.marks if mark.name in rows]
        colour, symbol = VERDICTS.get(group.name) or looks(index)
        look = {"color": colour, "symbol": symbol, "size": 11}
        at = _marks(here, "x") | {"y": [rows[mark.name] for mark in here]}
        figure.add_scatter(**at, mode="markers", marker=look, name=text(group.name))
        known += [extent(mark.value, mark.low, mark.high) for mark in here]
    figure.update_xaxes(**_axis(known, block.axis))
    return headed(figure, [(name, "; ".join(heads[name])) for name in rows])


def _along(block: Figure) -> go.Figure:
    figure = blank(400, title=text(block.title), showlegend=len(block.groups) > 1)
    for index, group in enumerate(block.groups):
        colour, symbol = looks(index)
        aside = 1.02 ** (index - (len(block.groups) - 1) / 2)  # those of several groups stay visible
        line = {"mode": "lines", "hoverinfo": "skip", "legendgroup": index, "showlegend": False}
        most = max((mark.x for mark in group.marks if not mark.estimated), default=0.0)
        for inside in (True, False) if group.law else ():
            part = [(x, y) for x, y in group.law if (x <= most if inside else x >= most)]
            dash = {"color": colour, "width": 2, "dash": "solid" if inside else "dash"}
            figure.add_scatter(x=[x for x, _ in part], y=[y for _, y in part], line=dash, **line)
        for estimated in (False, True):
            marks = [mark for mark in group.marks if mark.estimated == estimated]
            look = {"color": colour, "symbol": symbol + "-open" * estimated, "size": 10}
            at = _marks(marks, "y") | {"x": [mark.x * aside for mark in marks], "legendgroup": index}
            if marks:
                shown = {"name": text(group.name), "showlegend": not estimated}
                figure.add_scatter(**at, **shown, mode="markers", marker=look)
    marks = [mark for group in block.groups for mark in group.marks]
    if block.log:
        ends = min(mark.value for mark in marks), max(mark.value for mark in marks)
        limits = [math.log10(ends[0] / 1.7), math.log10(ends[1] * 1.7)]
        figure.update_yaxes(**axis(ends, block.axis, log=True), range=limits)
    else:
        figure.update_yaxes(title=text(block.axis), rangemode="tozero")
        figure.update_yaxes(range=None if block.most is None else [0, block.most])
    if block.reference is not None:
        figure.add_hline(block.reference, line_width=1, line_color=GREY)
    if block.node is not None:
        figure.add_vline(block.node, line_width=1, line_dash="dot", line_color=GREY)
        where = {"x": math.log10(block.node), "y": 1, "yref": "paper", "xanchor": "left", "showarrow": False}
        figure.add_annotation(
            text="several nodes", font_color=GREY, **where
        )  # on a logarithmic axis its x is an exponent
    places = sorted({mark.x for mark in marks})
    ticks = {"tickvals": places, "ticktext": [f"{x:,g}" for x in places], "title": text(block.along), "minor_ticks": ""}
    edge = 2 if len(places) == 1 else (places[-1] / places[0]) ** 0.05
    return figure.update_xaxes(**ticks, type="log", range=[math.log10(places[0] / edge), math.log10(places[-1] * edge)])
