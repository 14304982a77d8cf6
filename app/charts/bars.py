"""Bars: phases of a run, memory of its ranks, energy and cost by suite, carbon by region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from app.charts.base import COLOURS, GREY, PATTERNS, faint, frame, headed, looks, text

MOST = 40
"""More rows than this are not drawn."""
OUTCOMES = {"fits": (COLOURS[0], ""), "skipped": (GREY, "."), "failed": (COLOURS[4], "/")}
OUTCOMES |= {"out of memory": (COLOURS[1], "x")}
"""Colour and pattern of how the runs of a cell ended, the worst last."""


def amounts_chart(parts: Mapping[str, Mapping[str, float]], title: str, mode: str = "stack") -> go.Figure:
    """Draw amounts by name: the parts of each stand in one bar, or side by side in the mode `group`."""
    figure, names = go.Figure(layout=frame(300) | {"barmode": mode}), list[str]()
    for index, (part, amounts) in enumerate(parts.items()):
        look = {"color": looks(index)[0], "pattern": {"shape": PATTERNS[index % len(PATTERNS)]}}
        names += amounts
        x, y = list(amounts.values()), list(map(text, amounts))
        figure.add_bar(orientation="h", x=x, y=y, name=text(part), marker=look)
    figure.update_layout(height=150 + 26 * len(set(names)), showlegend=True)
    figure.update_xaxes(title=text(title), rangemode="tozero")
    return figure.update_yaxes(type="category", autorange="reversed")


def phases_chart(phases: pd.DataFrame) -> go.Figure:
    """Draw the share of each phase in time and energy of a run, in percent; `phases` has a row a phase."""
    figure = go.Figure(layout=frame(300) | {"barmode": "stack"})
    titles = {"seconds": "time", "energy_joules": "energy, measured", "energy_joules_estimated": "~ energy, estimated"}
    shown = {name: title for name, title in titles.items() if phases[name].notna().any()}
    sums, inks = phases.groupby("phase", sort=False)[list(shown)].sum(), (*COLOURS[:4], COLOURS[5])
    for index, (phase, values) in enumerate(sums.iterrows()):
        x = [100 * values[name] / sums[name].sum() for name in shown]
        hover = [f"{values[name]:.4g} {'s' if name == 'seconds' else 'J'}" for name in shown]
        name, look = text(phase), {"color": inks[index % 5], "pattern": {"shape": PATTERNS[1 + index % 3]}}
        if phase == "steady":
            name, look = "measured window", {"color": COLOURS[4]}
        bar = {"orientation": "h", "y": list(shown.values()), "x": x, "marker": look, "hovertext": hover}
        figure.add_bar(**bar, name=name, hovertemplate="%{fullData.name}: %{hovertext}, %{x:.3g} %<extra></extra>")
    return figure.update_xaxes(title="share of the run [%]", range=[0, 100]).update_yaxes(autorange="reversed")


def memory_chart(cells: pd.DataFrame, words: Sequence[Sequence[str]]) -> go.Figure:
    """Draw which batches fit into memory: a row a strategy and model, a column a batch; darker is fuller.

    `cells` is that of `app.pages.strategies.memory_map`, `words` what stands in each.
    """
    figure = go.Figure(layout={"barmode": "overlay"})
    keys = list(zip(cells["strategy"], cells["model"], strict=True))
    rows, batches = list(dict.fromkeys(keys))[:MOST], sorted(cells["batch"].unique())
    cells = cells.assign(column=cells["batch"].map(batches.index), words=["<br>".join(map(text, w)) for w in words])
    cells = cells.assign(row=[rows.index(key) if key in rows else math.nan for key in keys]).dropna(subset="row")
    full = cells["share"].fillna(cells["peak_memory_bytes"] / cells["peak_memory_bytes"].max()).fillna(0.5).clip(0, 1)
    for outcome, (colour, pattern) in OUTCOMES.items():
        here = cells[cells["outcome"] == outcome]
        shades = 0.05 + 0.25 * full[here.index] if outcome == "fits" else pd.Series(0.15, here.index)
        look: dict[str, Any] = {"color": [faint(colour, shade) for shade in shades]}
        look["line"] = {"color": colour, "width": 1}
        look["pattern"] = {"shape": pattern, "fgcolor": faint(colour, 0.55), "size": 12, "solidity": 0.15}
        at = {"y": here["row"], "base": here["column"] - 0.48, "x": [0.96] * len(here), "width": 0.5}
        figure.add_bar(**at, orientation="h", marker=look, name=outcome, hoverinfo="skip")
    filled = {(entry.row, entry.column): entry.words for entry in cells.itertuples()}
    places = list(product(range(len(rows)), range(len(batches))))
    at = {"x": [column for _, column in places], "y": [row for row, _ in places]}
    at["text"] = [filled.get(place, "not tried") for place in places]
    figure.add_scatter(**at, mode="text", textfont_size=12, showlegend=False, hoverinfo="skip")
    ticks = {"tickvals": list(range(len(batches))), "ticktext": [f"{batch:,}" for batch in batches]}
    figure.update_xaxes(**ticks, range=[-0.5, len(batches) - 0.5], showgrid=False, zeroline=False, fixedrange=True)
    figure.update_xaxes(title="batch size per device [samples]")
    return headed(figure, [(f"{model}, {how}",) for how, model in rows], "", 76, 20)
