"""What all figures share. No Streamlit in this folder: a figure can be tested and saved without a page.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by colour-blind readers; series differ in
marker and dash as well. Names come from the store, so they are escaped: Plotly renders some HTML in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from analytics.say.names import spoken
from analytics.text import number, printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", ".", "x")
GREY = "#888888"
OTHERS, FRONT, KNEE = (GREY, "diamond", 9), (COLOURS[0], "circle", 12), (COLOURS[1], "star", 16)
"""Colour, symbol and size of what is on a front or not."""


def plain(name: str) -> str:
    """Return the name of a configuration as people say it: `tiny 2 devices bf16` of `preset=tiny d=2 bf16`."""
    return spoken(name)


def text(value: object) -> str:
    """Return text of unknown origin as one escaped line for a figure."""
    return escape(printable(value, 60), quote=False)


def looks(index: int) -> tuple[str, str]:
    """Return colour and symbol of a series."""
    return COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]


def blank(height: int, **layout: Any) -> go.Figure:
    """Return an empty figure with the layout that all have: legend below, hover on what is nearest."""
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "traceorder": "normal"}
    margin = {"l": 10, "r": 10, "t": 40, "b": 10}
    return go.Figure(layout={"height": height, "margin": margin, "legend": legend, "hovermode": "closest", **layout})


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2, 5, 10, ... over the values; only powers of ten if they span more than three decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [m * 10.0**power for power in range(low, high + 1) for m in ((1, 2, 5) if high - low <= 3 else (1,))]


def faint(colour: str, opacity: float) -> str:
    """Return a colour, #rrggbb, that what is behind it shines through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def axis(values: Sequence[float], title: str, *, log: bool = False) -> dict[str, Any]:
    """Return an axis with a title, logarithmic where that is asked for, or its values are positive and far apart."""
    ticks = log_ticks(values) if log or (values and max(values) > 5 * min(values) > 0) else []
    marked = {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return {"title": text(title)} | (marked if ticks else {"type": "linear"})


def with_ends(axis: str, values: Sequence[float], ends: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the coordinates of markers on an axis (x or y) and the bars of their intervals, low and high; NaN: none."""
    known = [
        (value, *(value if math.isnan(end) else end for end in pair)) for value, pair in zip(values, ends, strict=True)
    ]
    up, down = [high - value for value, _, high in known], [value - low for value, low, _ in known]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "visible": any(up + down)}
    return {axis: list(values), f"error_{axis}": bars | {"thickness": 1, "color": GREY}}


def headed(figure: go.Figure, heads: Sequence[Sequence[str]], lift: int = 8, body: int = 22) -> go.Figure:
    """Put lines above each row, the first row at the top: long names fit narrow screens.

    A row is as high as its `body` and the most lines, which begin `lift` pixels above its middle.
    """
    wrapped = [[part for line in head for part in wrap(printable(line, 160), 50)] for head in heads]
    above = 17 * max(map(len, wrapped), default=1)
    at = {"x": 0, "xref": "x domain", "xanchor": "left", "yref": "y", "yanchor": "bottom", "yshift": lift}
    for row, lines in enumerate(wrapped):
        words = "<br>".join(escape(line, quote=False) for line in lines)
        figure.add_annotation(**at, y=row, text=words, showarrow=False, align="left")
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "fixedrange": True}
    figure.update_traces(ygap=above + 10, selector={"type": "heatmap"})
    figure.update_yaxes(range=[len(heads) - 0.5, -(lift + above + 8) / (body + above)], **hidden)
    return figure.update_layout(height=140 + len(heads) * (body + above))
