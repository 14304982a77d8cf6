"""What all figures share. No Streamlit in this folder: a figure can be tested, saved and put into a report.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by colour-blind readers; series differ in
marker and dash as well. Names come from the store, so they are escaped: Plotly renders some HTML in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from analytics.words import number, printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", ".", "x")
GREY = "#888888"


def text(value: object) -> str:
    """Return text of unknown origin as one escaped line for a figure."""
    return escape(printable(value, 60), quote=False)


def looks(index: int) -> tuple[str, str]:
    """Return colour and symbol of a series."""
    return COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]


def frame(height: int) -> dict[str, Any]:
    """Return the layout of every figure: legend below, hover on what is nearest."""
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}
    return {"height": height, "margin": {"l": 10, "r": 10, "t": 30, "b": 10}, "legend": legend, "hovermode": "closest"}


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2, 5, 10, ... over the values; only powers of ten if they span more than three decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [m * 10.0**power for power in range(low, high + 1) for m in ((1, 2, 5) if high - low <= 3 else (1,))]


def faint(colour: str, opacity: float) -> str:
    """Return a colour, #rrggbb, that what is behind it shines through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """Return an axis with a title, logarithmic where its values are positive and far apart."""
    ticks = log_ticks(values) if values and max(values) > 5 * min(values) > 0 else []
    log = {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return {"title": text(title)} | (log if ticks else {"type": "linear"})
