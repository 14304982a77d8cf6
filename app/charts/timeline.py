"""Figures along time: throughput of suites, power, step times and loss of runs, the course of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pandas as pd
import plotly.graph_objects as go

from app.charts.base import COLOURS, DASHES, GREY, SYMBOLS, axis, blank, faint, text
from bench.record import Quality

_INK, _WINDOW = COLOURS[:6], COLOURS[4]
OUTLIER = 1.5
"""A step that takes so many times the median is marked."""
NAMED = 0.05
"""Share of a run that a phase must take for its name to be written into the figure; hovering tells all of them."""


def power_chart(
    power: Mapping[str, Sequence[tuple[float, float]]], spans: Sequence[tuple[str, float, float]] = ()
) -> go.Figure:
    """Draw watts over seconds since the start, a line a device, and the phases of the run; the window is shaded more."""
    figure = blank(400)
    for index, (name, points) in enumerate(power.items()):
        look = {"color": _INK[index % len(_INK)], "dash": DASHES[index % len(DASHES)], "width": 2}
        few = "lines+markers" if len(points) < 20 else "lines"
        marker = {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7}
        x, y = [t for t, _ in points], [w for _, w in points]
        figure.add_scatter(x=x, y=y, mode=few, line=look, marker=marker, name=text(name))
    total = max((end for *_, end in spans), default=0.0)
    for index, (name, start, end) in enumerate(spans):
        shade, label = faint(GREY, 0.08 + 0.1 * (index % 2)), {"text": text(name), "textangle": -90}
        if name == "steady":
            shade, label = faint(_WINDOW, 0.25), {"text": "measured window", "textposition": "top center"}
        label = label if end - start >= NAMED * total else {}
        figure.add_vrect(x0=start, x1=end, fillcolor=shade, line_width=0, layer="below", label=label)
    figure.update_xaxes(title="time since the start of the run [s]")
    top = max((watts for points in power.values() for _, watts in points), default=0) or 1
    return figure.update_yaxes(title="power [W]", range=[0, 1.15 * top])


def steps_chart(runs: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw the time of each step of runs: of the warm-up in grey and open, outliers as crosses, the median as a line."""
    figure = blank(360)
    for index, (name, steps) in enumerate(runs.items()):
        colour, symbol, head = _INK[index], SYMBOLS[index], f"{text(name)}: " * (len(runs) > 1)
        known = steps.dropna(subset="seconds")
        inside = known[known["window"]]
        middle = inside["seconds"].median()
        far = inside["seconds"] > OUTLIER * middle
        parts = [("step", inside[~far], symbol, colour), (f"over {OUTLIER} × the median", inside[far], "x", colour)]
        for kind, part, mark, ink in (*parts, ("warm-up", known[~known["window"]], f"{symbol}-open", GREY)):
            if len(part):
                marker = {"symbol": mark, "color": ink, "size": 8 if len(known) < 300 else 4}
                figure.add_scatter(x=part["step"], y=part["seconds"], mode="markers", marker=marker, name=head + kind)
        if len(inside):
            ends, line = [inside["step"].min(), inside["step"].max()], {"color": colour, "dash": DASHES[index]}
            name = f"{head}median {middle:.4g} s"
            figure.add_scatter(x=ends, y=[middle, middle], mode="lines", line=line, name=name)
    figure.update_xaxes(title="step of the training")
    return figure.update_yaxes(title="time of a step [s]", rangemode="tozero")


def loss_chart(steps: pd.DataFrame, quality: Sequence[Quality] = ()) -> go.Figure:
    """Draw the loss of each step, and the loss on held-out samples, with the accuracy in percent beside it."""
    figure = blank(360)
    known = steps.dropna(subset="loss")
    if len(known):
        figure.add_scatter(x=known["step"], y=known["loss"], mode="lines", line_color=_INK[0], name="training loss")
    if quality:
        x, y = [point.step for point in quality], [point.loss for point in quality]
        accuracy = ["" if point.accuracy is None else f"{100 * point.accuracy:.3g} % correct" for point in quality]
        look = {"mode": "markers+text", "textposition": "top left", "name": "loss on held-out samples"}
        figure.add_scatter(x=x, y=y, text=accuracy, marker={"size": 11, "symbol": "square", "color": _INK[1]}, **look)
    return figure.update_xaxes(title="step of the training").update_yaxes(title="loss")


def history_chart(title: str, points: Sequence[tuple[float, float]], sign: int) -> go.Figure:
    """Draw figures over the numbers of their trials, and the best so far: the least, or with `sign` -1 the largest."""
    numbers, values = [x for x, _ in points], [y for _, y in points]
    best = list(accumulate(values, min if sign > 0 else max))
    line = {"color": COLOURS[0], "shape": "hv", "width": 2}
    figure = blank(260, showlegend=False, xaxis_title="trial")
    figure.add_scatter(x=numbers, y=values, mode="markers", marker={"color": GREY}, name="trial")
    figure.add_scatter(x=numbers, y=best, mode="lines", line=line, name="best so far")
    return figure.update_yaxes(**axis(values if sign > 0 else [0, *values], title))
