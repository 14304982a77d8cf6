"""Scaling: what more devices bring, what the law predicts, what is lost, and how well the law holds."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analytics.amounts import counts
from analytics.runs.export import to_csv
from analytics.say import curves
from analytics.say.answer import find
from analytics.say.blocks import Block
from analytics.say.curves import Curve
from analytics.say.results import execution_blocks
from app import data, page
from app.charts.bars import amounts_chart

ALL = "All series"
MOST = 8
"""Curves that are shown together: more can be chosen one by one."""


@st.cache_data(show_spinner="Fitting ...", max_entries=50)  # type: ignore[untyped-decorator]
def _answer(runs: pd.DataFrame, devices: tuple[int, ...]) -> tuple[list[Block], list[Curve], pd.DataFrame]:
    """Return the answer of one execution, the curves of its law, and its configurations."""
    (found,) = find(runs)
    drawn = curves.curves(found.law, found.own, devices) if len(found.own) else []
    return list(execution_blocks(found, devices, store=data.uri())), drawn, found.own


def _devices() -> tuple[int, ...]:
    """Ask for numbers of devices; none are the usual ones."""
    label, hint = "Devices to predict", "1,2,4,8 or 8-64"
    given = page.control("text_input", label, key="devices", placeholder=hint)
    try:
        return counts(given) if given else ()
    except ValueError as error:
        st.sidebar.text(str(error))
        return ()


def _chosen(found: list[Curve]) -> list[Curve]:
    """Let one curve be chosen, or all."""
    names = [curve.name for curve in found]
    choice = page.control("selectbox", "Series", [ALL, *names] if len(names) > 1 else names, "series")
    if choice == ALL and len(found) > MOST:
        st.sidebar.caption(f"The first {MOST} of {len(found):,} series are shown. Choose another to see it.")
    return [curve for curve in found if choice in (ALL, curve.name)][:MOST]


def _losses(found: list[Curve]) -> None:
    """Show what is lost on more devices, where the time goes, and by how much the law misses."""
    efficiency, residuals = curves.efficiency_figure(found), curves.residuals_figure(found)
    shares = curves.time_shares(found)
    drawn: list[tuple[Any, str, str]] = []
    if efficiency.groups:
        drawn.append(
            (efficiency, "efficiency", "Marks: measured, 95 % intervals. Lines and open marks: the law, 80 %.")
        )
    if residuals.groups:
        drawn.append(
            (residuals, "residuals", "A mark is a configuration; above 0 the law predicts more than measured.")
        )
    if len(shares) > 1:
        chart = amounts_chart(shares, "share of the time, estimated by the law [%]")
        chart.update_layout(title="Where the time of a step goes")
        drawn.append((chart, "parts", "Estimated from how speed falls with devices, not measured inside a step."))
    if drawn:
        st.subheader("Losses, and how well the law holds")
    places = st.columns(2)
    for index, (figure, name, caption) in enumerate(drawn):
        with places[index % 2]:
            page.figure(figure, name, caption)
            st.caption(caption)


def main() -> None:
    """Show the page."""
    runs = page.execution(page.runs("Scaling"))
    blocks, found, table = _answer(runs, _devices())
    chosen = _chosen(found) if found else []

    def draw() -> None:
        if chosen:
            page.figure(curves.speed_figure(chosen), "speed")
            st.caption(
                "Full marks: runs. Lines: the law; dashed and open: extrapolated, 80 % intervals of one more run."
            )

    page.show(blocks, draw=draw)
    _losses(chosen)
    page.download("Download the configurations as CSV", lambda: to_csv(table), "wattbench-configurations.csv")
    if chosen:
        row = runs.iloc[0]
        query = {"device": str(row["device_name"]), "precision": str(row["precision"])}
        page.link("planner", "Plan a whole training with these runs", **query)
