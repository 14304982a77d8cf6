"""Figures of a plan: time against cost or devices, carbon by region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analytics.plan import Plan, PlanOption, Range, duration, time_unit
from analytics.words import number
from app.charts.base import COLOURS, GREY, PATTERNS, axis, frame, text

RANKS = {
    "the first choice": (COLOURS[1], "star", 16),
    "meets what is asked": (COLOURS[0], "circle", 11),
    "does not meet it": (GREY, "x", 9),
}


def _with_ends(along: str, ranges: Sequence[Range]) -> dict[str, Any]:
    up, down = [one.high - one.value for one in ranges], [one.value - one.low for one in ranges]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "visible": any(up + down)}
    return {along: [one.value for one in ranges], f"error_{along}": bars | {"thickness": 1}}


def options_chart(plan: Plan) -> go.Figure:
    """Draw the time of each option against its cost, or against its devices where no cost is known; 80 % intervals.

    Deadline and budget are lines, if they are given.
    """
    asked, figure, groups = plan.question, go.Figure(layout=frame(460)), dict[str, list[PlanOption]]()
    of, unit = time_unit(max(option.duration_seconds.value for option in plan.options))
    paid = all(option.cost_usd is not None for option in plan.options)
    for option in plan.options:
        fits = "the first choice" if option is plan.options[0] else "meets what is asked"
        groups.setdefault(fits if option.feasible else "does not meet it", []).append(option)
    xs, ys = list[float](), list[float]()
    for rank, shown in groups.items():
        colour, symbol, size = RANKS[rank]
        x = [option.cost_usd if paid and option.cost_usd else Range(*[option.devices] * 3) for option in shown]
        y = [option.duration_seconds.times(1 / of) for option in shown]
        xs += [end for one in x for end in (one.low, one.high)]
        ys += [end for one in y for end in (one.low, one.high)]
        look = {"mode": "markers+text", "marker": {"color": colour, "symbol": symbol, "size": size}}
        names = {"text": [f"{option.devices:,}" for option in shown], "textposition": "top right", "name": rank}
        hover = {"hovertext": ["<br>".join(map(text, _hover(option))) for option in shown], "hoverinfo": "text"}
        figure.add_scatter(**_with_ends("x", x), **_with_ends("y", y), **look, **names, **hover)
    x_ends, y_ends = [min(xs), max(xs)], [min(ys), max(ys)]
    if asked.deadline_seconds is not None:
        ys.append(asked.deadline_seconds / of)
        line = {"color": COLOURS[3], "dash": "dash"}
        figure.add_scatter(x=x_ends, y=ys[-1:] * 2, mode="lines", line=line, name=f"deadline, {number(ys[-1])} {unit}")
    if asked.budget_usd is not None and paid:
        xs.append(asked.budget_usd)
        line = {"color": COLOURS[2], "dash": "dot"}
        figure.add_scatter(x=xs[-1:] * 2, y=y_ends, mode="lines", line=line, name=f"budget, {number(xs[-1])} USD")
    figure.update_xaxes(**axis(xs, "cost [USD]" if paid else "devices"))
    return figure.update_yaxes(**axis(ys, f"time [{unit}]"))


def _hover(option: PlanOption) -> list[str]:
    cost = [f"{option.cost_usd} USD"] if option.cost_usd else []
    return [f"{option.devices:,} devices", duration(option.duration_seconds), *cost, *option.reasons]


def regions_chart(compared: Sequence[tuple[str, float, Range]]) -> go.Figure:
    """Draw the carbon of one option by region, the least on top, with 80 % intervals."""
    ordered = sorted(compared, key=lambda row: -row[2].value)
    of, unit = (1000, "t") if ordered[0][2].value >= 1000 else (1, "kg")
    x = _with_ends("x", [one.times(1 / of) for *_, one in ordered])
    y = [text(region) for region, *_ in ordered]
    hover = [f"~{one.times(1 / of)} {unit} CO2e, {number(kg)} kg CO2e/kWh" for _, kg, one in ordered]
    look = {"color": COLOURS[2], "pattern": {"shape": PATTERNS[1]}}
    figure = go.Figure(layout=frame(120 + 36 * len(ordered)) | {"showlegend": False})
    figure.add_bar(orientation="h", **x, y=y, marker=look, hovertext=hover, hoverinfo="text")
    figure.update_yaxes(type="category")
    return figure.update_xaxes(title=f"~ carbon, estimated [{unit} CO2e]", rangemode="tozero")
