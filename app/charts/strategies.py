"""Figures of strategies: ratios to a baseline, the steps of a ladder, what fits into memory.

Each row has its words above it, so that long names are read on narrow screens too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise, product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analytics.words import number, printable, scale
from app.charts.base import COLOURS, GREY, faint, frame, log_ticks, text
from app.strategies import FOOT, OUTCOMES, Goal, Mark, cell

LESS, MORE, SAME = (COLOURS[0], "circle", ""), (COLOURS[1], "x", "/"), (COLOURS[2], "diamond", ".")
VERDICTS = {"better": LESS, "less": LESS, "worse": MORE, "more": MORE, "equivalent": SAME, "same": SAME}
VERDICTS |= {"cannot tell": (GREY, "circle-open", "x"), "not enough repeats": (GREY, "square-open", "x")}
VERDICTS |= {FOOT: (GREY, "triangle-down", "")}
"""Colour, symbol and pattern of a verdict."""
MOST = 40
"""More rows than this are not drawn."""
CELLS = dict(zip(OUTCOMES, ((COLOURS[0], ""), (GREY, "."), (COLOURS[4], "/"), (COLOURS[1], "x")), strict=True))


def _rows(figure: go.Figure, heads: Sequence[Sequence[str]], title: str, height: int = 58, lift: int = 8) -> go.Figure:
    """Put lines over each row, `lift` pixels above its middle, the first row at the top."""
    words = list[dict[str, Any]]()
    for row, head in enumerate(heads):
        at = {"x": 0, "xref": "x domain", "xanchor": "left", "y": row, "yref": "y", "yanchor": "bottom", "yshift": lift}
        lines = "<br>".join(escape(printable(line, 120), quote=False) for line in head)
        words.append(at | {"text": lines, "showarrow": False, "align": "left"})
    figure.update_layout(annotations=[*figure.layout.annotations, *words])
    hidden = {"showticklabels": False, "showgrid": False, "zeroline": False, "fixedrange": True}
    figure.update_yaxes(range=[len(heads) - 0.5, -50 / height], **hidden)
    title_of = {"title": {"text": text(title), "font": {"size": 15}}, "showlegend": True}
    return figure.update_layout(**frame(height * len(heads) + 140) | title_of).update_layout(margin_t=40)


def _points(figure: go.Figure, points: Sequence[Mark], title: str, *also: float) -> None:
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


def forest_chart(shown: Sequence[Mark], goal: Goal) -> go.Figure:
    """Draw what candidates do in one goal as multiples of their baseline, with 95 % intervals, on a logarithmic axis."""
    figure, shown = go.Figure(), [mark for mark in shown if mark.x > 0][:MOST]
    _points(figure, shown, f"multiple of the baseline ({goal.good} 1 is better)", 1.0)
    at = {"x": [1, 1, None] * len(shown), "y": [y for row in range(len(shown)) for y in (row - 0.15, row + 0.3, None)]}
    figure.add_scatter(**at, mode="lines", line={"color": GREY, "width": 1}, name="1: the baseline", hoverinfo="skip")
    return _rows(figure, [(mark.name, mark.words) for mark in shown], goal.title)


def waterfall_chart(shown: Sequence[Mark], goal: Goal) -> go.Figure:
    """Draw from where to where each step of a ladder leads, on a logarithmic axis: there factors add up.

    A mark stands at the end of a step, with the 95 % interval of its factor.
    """
    figure = go.Figure()
    known = [(row, step) for row, step in enumerate(shown) if math.isfinite(step.x)]
    looks = [VERDICTS[step.verdict] for _, step in known]
    look = {"color": [faint(look[0], 0.5) for look in looks], "pattern": {"shape": [look[2] for look in looks]}}
    at = {"y": [row for row, _ in known], "base": [step.start for _, step in known]}
    at["x"] = [step.x - step.start for _, step in known]
    figure.add_bar(**at, orientation="h", width=0.24, marker=look, showlegend=False, hoverinfo="skip")
    for (row, step), (below, after) in pairwise(known):
        if after.start == step.x:
            at = {"x0": step.x, "x1": step.x, "y0": row, "y1": below, "layer": "below"}
            figure.add_shape(type="line", **at, line={"color": GREY, "width": 1, "dash": "dot"})
    _points(figure, shown, f"{goal.title} [{goal.unit}]")
    return _rows(figure, [(step.name, step.words) for step in shown], f"{goal.title}, step by step")


def memory_chart(told: pd.DataFrame) -> go.Figure:
    """Draw what of `app.strategies.memory_map` fits: a row a strategy and model, a column a batch; darker is fuller."""
    figure = go.Figure(layout={"barmode": "overlay"})
    sizes = dict(zip(zip(told["strategy"], told["model"], strict=True), told["parameters"], strict=True))
    rows, batches = list(sizes)[:MOST], sorted(told["batch"].unique())
    told = told.assign(row=[list(sizes).index(key) for key in zip(told["strategy"], told["model"], strict=True)])
    told = told[told["row"] < MOST]
    told["column"] = told["batch"].map(batches.index)
    full = told["share"].fillna(told["peak_memory_bytes"] / told["peak_memory_bytes"].max()).fillna(0.5).clip(0, 1)
    for outcome, (colour, pattern) in CELLS.items():
        here = told[told["outcome"] == outcome]
        shades = 0.05 + 0.25 * full[here.index] if outcome == "fits" else pd.Series(0.15, here.index)
        look = {"color": [faint(colour, shade) for shade in shades], "line": {"color": colour, "width": 1}}
        look["pattern"] = {"shape": pattern, "fgcolor": faint(colour, 0.55), "size": 12, "solidity": 0.15}
        at = {"y": here["row"], "base": here["column"] - 0.48, "x": [0.96] * len(here), "width": 0.5}
        figure.add_bar(**at, orientation="h", marker=look, name=outcome, hoverinfo="skip")
    words = {(entry.row, entry.column): "<br>".join(map(text, cell(entry))) for entry in told.itertuples()}
    places = list(product(range(len(rows)), range(len(batches))))
    at = {"x": [column for _, column in places], "y": [row for row, _ in places]}
    at["text"] = [words.get(place, "not tried") for place in places]
    figure.add_scatter(**at, mode="text", textfont_size=12, showlegend=False, hoverinfo="skip")
    ticks = {"tickvals": list(range(len(batches))), "ticktext": [f"{batch:,}" for batch in batches]}
    figure.update_xaxes(**ticks, range=[-0.5, len(batches) - 0.5], showgrid=False, zeroline=False, fixedrange=True)
    figure.update_xaxes(title="batch size per device [samples]")
    heads = [(f"{how} · {model}{_size(sizes[how, model])}",) for how, model in rows]
    return _rows(figure, heads, "Peak memory of the fullest device", 76, 20)


def _size(parameters: float) -> str:
    divisor, unit = scale(parameters, "")
    return "" if math.isnan(parameters) else f", {parameters / divisor:.3g} {unit} parameters"
