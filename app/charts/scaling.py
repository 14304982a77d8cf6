"""Figures of a fitted law: times, residuals, efficiency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from analytics.scaling import Efficiency, Point, SeriesFit
from analytics.words import between, number, scale
from app.charts.base import DASHES, faint, frame, log_ticks, looks, text


def _layout(figure: go.Figure, x: str, y: str, devices: Sequence[int], height: int = 420) -> go.Figure:
    ticks = sorted(set(devices))
    figure.update_xaxes(title=x, type="log", tickvals=ticks, ticktext=[str(d) for d in ticks], minor_ticks="")
    if len(ticks) == 1:
        figure.update_xaxes(range=[math.log10(ticks[0] / 2), math.log10(ticks[0] * 2)])
    figure.update_yaxes(title=y)
    return figure.update_layout(**frame(height))


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
        colour, symbol = looks(index)
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
                fillcolor=faint(colour, 0.18 if len(lines) < 3 else 0.08),
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
    ticks = log_ticks(times)
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[number(tick) for tick in ticks])
    # A band over few configurations can be wider than all times; the factor keeps at least one tick in sight.
    figure.update_yaxes(range=[math.log10(min(times) / 1.7), math.log10(max(times) * 1.7)])
    return figure


def _aside(devices: float, index: int, count: int) -> float:
    """Move a marker a little along a logarithmic axis, so that those of other series stay visible."""
    return float(devices * 1.03 ** (index - (count - 1) / 2))


def residual_chart(series: Sequence[SeriesFit]) -> go.Figure:
    """Draw by how many percent the law misses each configuration; above 0 it says longer than it took."""
    figure = go.Figure()
    for index, fit in enumerate(series):
        colour, symbol = looks(index)
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
        colour, symbol = looks(index)
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
