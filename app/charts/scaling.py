"""Figures of a fitted law: times, residuals, efficiency, where the time goes.

Full marks are measured. Open ones are predicted by the law: a line joins them, dashed where nothing was measured, and the
band is the 80 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from analytics.interval import Interval
from analytics.law.outlook import PARTS
from analytics.law.series import Efficiency, SeriesFit
from analytics.text import bounded, number
from app.charts.base import COLOURS, GREY, PATTERNS, SYMBOLS, faint, frame, log_ticks, text
from app.scaling import Line

FEW = 4
"""So many bands over one another can be read."""


def _layout(figure: go.Figure, y: str, devices: Iterable[int], height: int = 420) -> go.Figure:
    ticks = sorted(set(devices))
    figure.update_xaxes(title="devices", type="log", tickvals=ticks, ticktext=list(map(str, ticks)), minor_ticks="")
    if ticks:
        edge = 2 if len(ticks) == 1 else (ticks[-1] / ticks[0]) ** 0.04
        figure.update_xaxes(range=[math.log10(ticks[0] / edge), math.log10(ticks[-1] * edge)])
    figure.update_yaxes(title=y)
    return figure.update_layout(**frame(height))


def _look(index: int, series: int) -> dict[str, Any]:
    """Return the marker of a curve: the colour of its series, a symbol of its own."""
    symbol = SYMBOLS[(index + index // len(SYMBOLS)) % len(SYMBOLS)]  # seven on, no pair of the two comes again
    return {"color": COLOURS[series % len(COLOURS)], "symbol": symbol, "size": 10}


def _law(figure: go.Figure, index: int, line: Line, values: Sequence[Interval], unit: str, *, band: bool) -> None:
    """Draw the predictions of a line, a value with its interval for each number of devices."""
    d, look = [one.devices for one in line.predictions], _look(index, line.place)
    group: dict[str, Any] = {"legendgroup": f"{index}", "showlegend": False}
    if band and any(x.low is not None for x in values):
        edge = [x.high or x.value for x in values] + [x.low or x.value for x in reversed(values)]
        fill: dict[str, Any] = {"fill": "toself", "fillcolor": faint(look["color"], 0.15), "line": {"width": 0}}
        figure.add_scatter(x=[*d, *reversed(d)], y=edge, mode="lines", hoverinfo="skip", **fill, **group)
    says = [f"{text(line.name)}<br>{n} devices: ~{bounded(x, unit)}, estimated" for n, x in zip(d, values, strict=True)]
    marker = look | {"symbol": look["symbol"] + "-open", "size": 9}
    dashed: dict[str, Any] = {"mode": "lines+markers", "line": {"color": look["color"], "dash": "dash", "width": 2}}
    figure.add_scatter(
        x=d, y=[x.value for x in values], marker=marker, hovertext=says, hoverinfo="text", **dashed, **group
    )
    inside = [(n, x.value) for n, x in zip(d, values, strict=True) if line.measured(n)]
    solid: dict[str, Any] = {"mode": "lines", "line": {"color": look["color"], "width": 2}, "hoverinfo": "skip"}
    figure.add_scatter(x=[x for x, _ in inside], y=[y for _, y in inside], **solid, **group)


def time_chart(lines: Sequence[Line], unit: tuple[float, str], what: str) -> go.Figure:
    """Draw the time of `what` (one sample, a training) against devices, log-log: the runs and the law, in `unit`."""
    figure, (seconds, name), times = go.Figure(), unit, list[float]()
    for index, line in enumerate(lines):
        predicted = [time.times(1 / seconds) for _, time in line.seconds()]
        _law(figure, index, line, predicted, name, band=len(lines) <= FEW)
        runs = [
            (point, rate, line.samples / rate / seconds) for point in line.points for rate in point.samples_per_second
        ]
        figure.add_scatter(
            x=[point.devices for point, *_ in runs],
            y=[time for *_, time in runs],
            mode="markers",
            marker=_look(index, line.place) | {"line": {"width": 1, "color": "white"}},
            name=text(line.name),
            legendgroup=str(index),
            hovertext=[f"{text(p.name)}<br>{number(time)} {name}, {number(rate)} samples/s" for p, rate, time in runs],
            hoverinfo="text",
        )
        times += [*(time for *_, time in runs), *(x.value for x in predicted)]
    figure = _layout(
        figure, f"time of {what} [{name}]", [one.devices for line in lines for one in line.predictions], 480
    )
    ticks = log_ticks(times)
    # A band over few configurations can be wider than all times; the factor keeps at least one tick in sight.
    ends = [math.log10(min(times) / 1.7), math.log10(max(times) * 1.7)]
    return figure.update_yaxes(type="log", tickvals=ticks, ticktext=[number(tick) for tick in ticks], range=ends)


def _aside(devices: float, index: int, count: int) -> float:
    """Move a marker a little along a logarithmic axis, so that those of other series stay visible."""
    return float(devices * 1.03 ** (index - (count - 1) / 2))


def residual_chart(errors: Sequence[tuple[SeriesFit, Sequence[float]]]) -> go.Figure:
    """Draw by how many percent the law misses each configuration; above 0 it predicts longer than measured."""
    figure = go.Figure()
    for index, (fit, missed) in enumerate(errors):
        figure.add_scatter(
            x=[_aside(point.devices, index, len(errors)) for point in fit.points],
            y=[100 * error for error in missed],
            mode="markers",
            marker=_look(index, index),
            name=text(fit.name),
            hovertext=[f"{text(p.name)}<br>{100 * error:+.2g} %" for p, error in zip(fit.points, missed, strict=True)],
            hoverinfo="text",
        )
    figure.add_hline(y=0, line_width=1, line_color=GREY)
    return _layout(figure, "law / measured time - 1 [%]", [d for fit, _ in errors for d in fit.devices], 380)


def efficiency_chart(series: Sequence[SeriesFit], lines: Sequence[Line]) -> go.Figure:
    """Draw the efficiency E by devices of every measured curve, with 95 % intervals, and the predictions of `lines`."""
    figure = go.Figure()
    curves: dict[tuple[int, str], list[Efficiency]] = {}
    for place, fit in enumerate(series):
        for point in fit.efficiency:
            curves.setdefault((place, point.curve), []).append(point)
    for index, line in enumerate(lines):
        shares = [one.efficiency.times(100) for one in line.predictions]
        _law(figure, index, line, shares, "%", band=len(lines) <= FEW)
    for index, ((place, curve), points) in enumerate(curves.items()):
        figure.add_scatter(
            x=[_aside(p.devices, index, len(curves)) for p in points],
            y=[100 * p.value for p in points],
            error_y=_bars(points),
            mode="markers",
            marker=_look(index, place),
            name=f"{text(series[place].name)}: {text(curve)}",
            hovertext=[_efficiency_text(point) for point in points],
            hoverinfo="text",
        )
    figure.add_hline(y=100, line_width=1, line_color=GREY)
    devices = [p.baseline_devices for points in curves.values() for p in points]
    devices += [d for fit in series for d in fit.devices] + [one.devices for line in lines for one in line.predictions]
    return _layout(figure, "efficiency E [%]", devices, 380).update_yaxes(rangemode="tozero")


def _bars(points: Sequence[Efficiency]) -> dict[str, Any]:
    up = [100 * (p.high - p.value) if p.high is not None else 0.0 for p in points]
    down = [100 * (p.value - p.low) if p.low is not None else 0.0 for p in points]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def _efficiency_text(point: Efficiency) -> str:
    interval = "" if point.low is not None else " (one run: no interval)"
    return f"{point.devices} devices: {bounded(point.times(100), '%')}{interval}<br>{text(point.curve)}"


def parts_chart(lines: Sequence[Line]) -> go.Figure:
    """Draw the shares of the time of a step by the law, in percent: a bar for each series and number of devices."""
    labelled = [
        (f"{text(line.series.name)}, {one.devices} devices", one.shares) for line in lines for one in line.predictions
    ]
    figure = go.Figure(layout=frame(140 + 26 * len(labelled)) | {"barmode": "stack", "legend_traceorder": "normal"})
    for index, (part, name) in enumerate(PARTS.items()):
        shares = [100 * found[part] for _, found in labelled]
        look = {"color": COLOURS[index], "pattern": {"shape": (*PATTERNS, "-", "+")[index]}}
        says = [f"{name}: ~{number(share)} %, estimated" for share in shares]
        if any(share >= 0.5 for share in shares):
            at = {"x": shares, "y": [label for label, _ in labelled], "hovertext": says, "hoverinfo": "text"}
            figure.add_bar(**at, orientation="h", name=name, marker=look)
    figure.update_xaxes(title="share of the time of a step, estimated by the law [%]", range=[0, 100])
    return figure.update_yaxes(type="category", autorange="reversed")
