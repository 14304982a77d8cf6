"""Plotly figures of a fit and of a search. No Streamlit here: a figure can be tested, saved and put into a report.

Colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by colour-blind readers; series differ in
marker and dash as well. Names come from the store, so they are escaped: Plotly renders some HTML in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from analytics.scaling import Efficiency, Point, SeriesFit
from analytics.searched import Tried
from analytics.words import between, number, printable, scale
from app.searches import Document, Goal, kind, told

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
PATTERNS = ("", "/", ".", "x")
GREY = "#888888"
RANKS = {"others": (GREY, "diamond", 9), "front": (COLOURS[0], "circle", 12), "knee": (COLOURS[1], "star", 16)}
"""Colour, symbol and size of a trial."""


def text(value: object) -> str:
    """Return text of unknown origin as one escaped line for a figure."""
    return escape(printable(value, 60), quote=False)


def _looks(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]


def _layout(figure: go.Figure, x: str, y: str, devices: Sequence[int], height: int = 420) -> go.Figure:
    ticks = sorted(set(devices))
    figure.update_xaxes(title=x, type="log", tickvals=ticks, ticktext=[str(d) for d in ticks], minor_ticks="")
    if len(ticks) == 1:
        figure.update_xaxes(range=[math.log10(ticks[0] / 2), math.log10(ticks[0] * 2)])
    figure.update_yaxes(title=y)
    return figure.update_layout(**_frame(height))


def _frame(height: int) -> dict[str, Any]:
    legend = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}
    return {"height": height, "margin": {"l": 10, "r": 10, "t": 30, "b": 10}, "legend": legend, "hovermode": "closest"}


def _sizes(fit: SeriesFit) -> Iterator[tuple[float, list[Point]]]:
    """Yield the points of each model size, smallest first."""
    for size in fit.by_work:
        near = 0.005 * size.flops_per_sample
        yield size.flops_per_sample, [p for p in fit.points if abs(p.flops_per_sample - size.flops_per_sample) < near]


def time_chart(series: Sequence[SeriesFit]) -> go.Figure:
    """Draw seconds per sample against devices, log-log: every run a marker, the law a line with its interval."""
    figure = go.Figure()
    lines = [(fit, flops, points) for fit in series for flops, points in _sizes(fit)]
    times = [1 / rate for fit in series for point in fit.points for rate in point.samples_per_second]
    for index, (fit, flops, points) in enumerate(lines):
        colour, symbol = _looks(index)
        divisor, unit = scale(flops, "FLOP")
        name = f"{text(fit.name)}, {number(flops / divisor)} {unit}/sample"
        devices = sorted({point.devices for point in points})
        law = [flops / (d * fit.v) for d in devices]
        if fit.v_low is not None and fit.v_high is not None:
            edge = [flops / (d * fit.v_high) for d in devices] + [flops / (d * fit.v_low) for d in reversed(devices)]
            figure.add_scatter(
                x=[*devices, *reversed(devices)],
                y=edge,
                fill="toself",
                mode="lines",
                fillcolor=_faint(colour, 0.18 if len(lines) < 3 else 0.08),
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=str(index),
                showlegend=False,
            )
        figure.add_scatter(
            x=devices,
            y=law,
            mode="lines",
            line={"color": colour, "dash": DASHES[index % len(DASHES)], "width": 2},
            name=f"law, {name}",
            legendgroup=str(index),
            showlegend=False,
            hoverinfo="skip",
        )
        measured = [(p, rate) for p in points for rate in p.samples_per_second]
        figure.add_scatter(
            x=[p.devices for p, _ in measured],
            y=[1 / rate for _, rate in measured],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 1, "color": "white"}},
            name=name,
            legendgroup=str(index),
            hovertext=[f"{text(p.name)}<br>{number(rate)} samples/s" for p, rate in measured],
            hoverinfo="text",
        )
    figure = _layout(figure, "devices d", "time per sample [s]", [d for f in series for d in f.devices])
    times += [flops / (point.devices * fit.v) for fit, flops, points in lines for point in points]
    ticks = _ticks(times)
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[number(tick) for tick in ticks])
    # A band over few configurations can be wider than all times; the factor keeps at least one tick in sight.
    figure.update_yaxes(range=[math.log10(min(times) / 1.7), math.log10(max(times) * 1.7)])
    return figure


def _ticks(values: Sequence[float]) -> list[float]:
    """Return 1, 2, 5, 10, ... over the values; only powers of ten if they span more than three decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [m * 10.0**power for power in range(low, high + 1) for m in ((1, 2, 5) if high - low <= 3 else (1,))]


def _aside(devices: float, index: int, count: int) -> float:
    """Move a marker a little along a logarithmic axis, so that those of other series stay visible."""
    return float(devices * 1.03 ** (index - (count - 1) / 2))


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def residual_chart(series: Sequence[SeriesFit]) -> go.Figure:
    """Draw by how many percent the law misses each configuration; above 0 it says longer than it took."""
    figure = go.Figure()
    for index, fit in enumerate(series):
        colour, symbol = _looks(index)
        figure.add_scatter(
            x=[_aside(point.devices, index, len(series)) for point in fit.points],
            y=[100 * point.error for point in fit.points],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            name=text(fit.name),
            hovertext=[f"{text(point.name)}<br>{100 * point.error:+.2g} %" for point in fit.points],
            hoverinfo="text",
        )
    figure.add_hline(y=0, line_width=1)
    devices = [d for fit in series for d in fit.devices]
    return _layout(figure, "devices d", "law / measured time - 1 [%]", devices, height=340)


def efficiency_chart(series: Sequence[SeriesFit]) -> go.Figure:
    """Draw the efficiency E by devices of every curve, in percent, with its 95 % interval; 100 % is the ideal law."""
    figure = go.Figure()
    curves: dict[tuple[str, str], list[Efficiency]] = {}
    for fit in series:
        for point in fit.efficiency:
            curves.setdefault((fit.name, point.curve), []).append(point)
    for index, ((name, curve), points) in enumerate(curves.items()):
        colour, symbol = _looks(index)
        shown = [(p.devices, p.value, p.low, p.high) for p in points]
        figure.add_scatter(
            x=[_aside(d, index, len(curves)) for d in (points[0].baseline_devices, *(d for d, *_ in shown))],
            y=[100.0, *(100 * value for _, value, _, _ in shown)],
            error_y=_bars(shown),
            mode="markers+lines",
            line={"color": colour, "dash": DASHES[index % len(DASHES)], "width": 1},
            marker={"color": colour, "symbol": symbol, "size": 10},
            name=f"{text(name)}: {text(curve)}",
            hovertext=["baseline", *(_efficiency_text(point) for point in points)],
            hoverinfo="text",
        )
    figure.add_hline(y=100, line_width=1)
    devices = [d for points in curves.values() for p in points for d in (p.devices, p.baseline_devices)]
    figure = _layout(figure, "devices d", "efficiency E [%]", devices, height=340)
    top = max((100 * (p.high or p.value) for points in curves.values() for p in points), default=100)
    figure.update_yaxes(range=[0, 1.08 * max(top, 100)])
    return figure


def _bars(shown: Sequence[tuple[int, float, float | None, float | None]]) -> dict[str, Any]:
    up = [0.0, *(100 * (high - value) if high is not None else 0.0 for _, value, _, high in shown)]
    down = [0.0, *(100 * (value - low) if low is not None else 0.0 for _, value, low, _ in shown)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def _efficiency_text(point: Efficiency) -> str:
    low, high = (None if bound is None else 100 * bound for bound in (point.low, point.high))
    interval = "" if low is not None else " (one run: no interval)"
    return f"d = {point.devices}: {between(100 * point.value, low, high, '%')}{interval}<br>{text(point.curve)}"


def front_chart(shown: Document, x: Goal, y: Goal) -> go.Figure:
    """Draw two objectives of the complete trials with 95 % intervals, and the line beyond which there is none.

    The line is the front of these two; filled marks were measured in full, open ones by a probe.
    """
    figure, edge = go.Figure(layout=_frame(480)), list[Tried]()
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
    figure.update_xaxes(**_axis(_reach(shown.complete, x), x.title))
    return figure.update_yaxes(**_axis(_reach(shown.complete, y), y.title))


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


def _axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """Logarithmic where values are positive and far apart."""
    ticks = _ticks(values) if values and max(values) > 5 * min(values) > 0 else []
    log = {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return {"title": text(title)} | (log if ticks else {"type": "linear"})


def history_chart(title: str, points: Sequence[tuple[float, float]], sign: int) -> go.Figure:
    """Draw figures over the numbers of their trials, and the best so far: the least, or with `sign` -1 the largest."""
    numbers, values = [x for x, _ in points], [y for _, y in points]
    best = list(accumulate(values, min if sign > 0 else max))
    line = {"color": COLOURS[0], "shape": "hv", "width": 2}
    figure = go.Figure(layout=_frame(260) | {"showlegend": False, "xaxis_title": "trial"})
    figure.add_scatter(x=numbers, y=values, mode="markers", marker={"color": GREY}, name="trial")
    figure.add_scatter(x=numbers, y=best, mode="lines", line=line, name="best so far")
    return figure.update_yaxes(**_axis(values if sign > 0 else [0, *values], title))


def importance_chart(importance: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw how much of what each objective varies is told by each parameter, in percent."""
    figure = go.Figure(layout=_frame(420))
    for index, (goal, shares) in enumerate(importance.items()):
        look = {"color": _looks(index)[0], "pattern": {"shape": PATTERNS[index % len(PATTERNS)]}}
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
    figure = go.Figure(go.Parcoords(dimensions=sides, line=line | {"cmin": 0, "cmax": 1}, labelangle=-15))
    return figure.update_layout(height=480, margin={"l": 50, "r": 50, "t": 90, "b": 20})
