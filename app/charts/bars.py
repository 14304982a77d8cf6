"""Bars: phases of a run, memory of its ranks, energy and cost by suite, carbon by region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from app.charts.base import COLOURS, PATTERNS, blank, faint, headed, looks, text

MOST = 40
"""More rows than this are not drawn."""


def amounts_chart(parts: Mapping[str, Mapping[str, float]], title: str, mode: str = "stack") -> go.Figure:
    """Draw amounts by name: the parts of each stand in one bar, or side by side in the mode `group`."""
    figure, names = blank(300, barmode=mode, showlegend=True), list[str]()
    for index, (part, amounts) in enumerate(parts.items()):
        look = {"color": looks(index)[0], "pattern": {"shape": PATTERNS[index % len(PATTERNS)]}}
        names += amounts
        x, y = list(amounts.values()), list(map(text, amounts))
        figure.add_bar(orientation="h", x=x, y=y, name=text(part), marker=look)
    figure.update_layout(height=150 + 26 * len(set(names)))
    figure.update_xaxes(title=text(title), rangemode="tozero")
    return figure.update_yaxes(type="category", autorange="reversed")


def phases_chart(phases: pd.DataFrame) -> go.Figure:
    """Draw the share of each phase in time and energy of a run, in percent; `phases` has a row a phase."""
    figure = blank(300, barmode="stack")
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
    figure.update_layout(height=250 + 22 * len(sums))
    return figure.update_xaxes(title="share of the run [%]", range=[0, 100]).update_yaxes(autorange="reversed")


def memory_chart(cells: pd.DataFrame, words: Sequence[Sequence[str]]) -> go.Figure:
    """Draw which batches fit into memory: a row a strategy and model, a column a batch; darker is fuller.

    `cells` is that of `app.pages.strategies.memory_map`, `words` what stands in each.
    """
    names = [f"{model}, {strategy}" for model, strategy in zip(cells["model"], cells["strategy"], strict=True)]
    told = cells.assign(name=names, words=["<br>".join(map(text, lines)) for lines in words])
    share = cells["share"].fillna(cells["peak_memory_bytes"] / cells["peak_memory_bytes"].max()).fillna(0.5)
    told["shade"] = share.clip(0, 1).where(cells["outcome"] == "fits", 2.0)
    told = told.drop_duplicates(["name", "batch"])
    rows = list(dict.fromkeys(names))[:MOST]
    shades, filled = (told.pivot(index="name", columns="batch", values=c).reindex(rows) for c in ("shade", "words"))
    scale = [[0, faint(COLOURS[0], 0.05)], [0.5, faint(COLOURS[0], 0.35)]]
    scale += [[place, faint(COLOURS[1], 0.25)] for place in (0.51, 1)]
    figure, at = blank(300), {"x": [f"{batch:,}" for batch in shades], "y": list(range(len(rows)))}
    figure.add_heatmap(**at, z=shades, zmin=0, zmax=2, colorscale=scale, showscale=False, xgap=4, hoverinfo="skip")
    for row, cells_ in enumerate(filled.fillna("not tried").to_numpy()):
        for column, words_ in enumerate(cells_):
            figure.add_annotation(x=column, y=row, text=words_, showarrow=False, font_size=12)
    figure.update_xaxes(title="batch size per device [samples]", type="category", showgrid=False, fixedrange=True)
    return headed(figure, [(row,) for row in rows], 32, 70)
