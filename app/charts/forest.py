"""Ratios with their intervals, one under the other: candidates against a baseline, the steps of a ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import plotly.graph_objects as go

from analytics.text import number
from app.charts.base import COLOURS, GREY, faint, headed, log_ticks, text

FOOT = "baseline"
"""The verdict of the foot of a ladder."""

LESS, MORE, SAME = (COLOURS[0], "circle", ""), (COLOURS[1], "x", "/"), (COLOURS[2], "diamond", ".")
VERDICTS = {"better": LESS, "less": LESS, "worse": MORE, "more": MORE, "equivalent": SAME}
VERDICTS |= {"cannot tell": (GREY, "circle-open", "x"), "not enough repeats": (GREY, "square-open", "x")}
VERDICTS |= {FOOT: (GREY, "triangle-down", "")}
"""Colour, symbol and pattern of a verdict."""
MOST = 40
"""More rows than this are not drawn."""


@dataclass(frozen=True)
class Ratio:
    """A row: `x` with the ends of its interval, its verdict, `words` in full, and the figures that it compares.

    In a forest `x` is a ratio (NaN where there is only a difference), in a ladder where a step leads to from `start`.
    """

    name: str
    x: float
    low: float | None
    high: float | None
    verdict: str
    words: str
    figures: str = ""
    start: float = math.nan


def _points(figure: go.Figure, points: Sequence[Ratio], title: str, *also: float) -> None:
    """Draw marks with their intervals, a trace a verdict; of an interval ten times all marks is in sight at most."""
    for verdict in (one for one in VERDICTS if any(point.verdict == one for point in points)):
        here = [(row, p, p.low or p.x, p.high or p.x) for row, p in enumerate(points) if p.verdict == verdict]
        bars = {"array": [high - p.x for _, p, _, high in here], "arrayminus": [p.x - low for _, p, low, _ in here]}
        at = {"x": [p.x for _, p, *_ in here], "y": [row for row, *_ in here]}
        at["error_x"] = {"type": "data", "symmetric": False, "visible": any(p.low for _, p, *_ in here), **bars}
        at["hovertext"] = ["<br>".join(map(text, (p.name, p.words, p.figures))) for _, p, *_ in here]
        look = {"color": VERDICTS[verdict][0], "symbol": VERDICTS[verdict][1], "size": 11}
        figure.add_scatter(**at, mode="markers", marker=look, name=verdict, hoverinfo="text")
    known = [*also, *(point.x for point in points if math.isfinite(point.x))]
    ends = [end for point in points for end in (point.low, point.high) if end is not None]
    seen = [*known, *(min(max(end, min(known) / 10), max(known) * 10) for end in ends)]
    low, high = min(seen) / 1.1, max(seen) * 1.1
    ticks = [tick for tick in log_ticks(seen) if low <= tick <= high]
    if len(ticks) < 3:
        size = 10 ** math.floor(math.log10(high - low))
        step = next(one for one in (size, size / 2, size / 5) if (high - low) / one >= 3)
        ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    names = [number(round(tick, 12)) for tick in ticks]
    figure.update_xaxes(type="log", range=[math.log10(low), math.log10(high)], minor_ticks="", title=text(title))
    figure.update_xaxes(tickvals=ticks, ticktext=names)


def forest_chart(ratios: Sequence[Ratio], title: str, better: str) -> go.Figure:
    """Draw multiples of the baseline with 95 % intervals on a logarithmic axis; `better` is the good side of 1."""
    figure, ratios = go.Figure(), [ratio for ratio in ratios if ratio.x > 0][:MOST]
    _points(figure, ratios, f"multiple of the baseline ({better} 1 is better)", 1.0)
    rows = len(ratios)
    at = {"x": [1, 1, None] * rows, "y": [y for row in range(rows) for y in (row - 0.15, row + 0.3, None)]}
    figure.add_scatter(**at, mode="lines", line={"color": GREY, "width": 1}, name="baseline", hoverinfo="skip")
    return headed(figure, [(ratio.name, ratio.words) for ratio in ratios], title)


def waterfall_chart(steps: Sequence[Ratio], title: str, unit: str) -> go.Figure:
    """Draw from where to where each step of a ladder leads, on a logarithmic axis: there factors add up.

    A mark stands at the end of a step, with the 95 % interval of its factor.
    """
    figure = go.Figure()
    known = [(row, step) for row, step in enumerate(steps) if math.isfinite(step.x)]
    looks = [VERDICTS[step.verdict] for _, step in known]
    look = {"color": [faint(look[0], 0.5) for look in looks], "pattern": {"shape": [look[2] for look in looks]}}
    at = {"y": [row for row, _ in known], "base": [step.start for _, step in known]}
    at["x"] = [step.x - step.start for _, step in known]
    figure.add_bar(**at, orientation="h", width=0.24, marker=look, showlegend=False, hoverinfo="skip")
    for (row, step), (below, after) in pairwise(known):
        if after.start == step.x:
            at = {"x0": step.x, "x1": step.x, "y0": row, "y1": below, "layer": "below"}
            figure.add_shape(type="line", **at, line={"color": GREY, "width": 1, "dash": "dot"})
    _points(figure, steps, f"{title} [{unit}]")
    return headed(figure, [(step.name, step.words) for step in steps], f"{title}, step by step")
