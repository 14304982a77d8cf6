"""Scaling: the measured points and the law T = n / (d · v), its residuals, the efficiency, and what that means."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analytics import words
from analytics.frame import latest_execution, summary
from analytics.scaling import ScalingFit, SeriesFit, fit
from app import page
from app.charts import scaling as charts

ALL = "All series"
TABLE = {
    "name": ("Configuration", None),
    "repeats": ("Repeats", None),
    "samples_per_second": ("Samples/s", 1.0),
    "tokens_per_second": ("Tokens/s", 1.0),
    "joules_per_sample": ("J/sample, measured", 1.0),
    "joules_per_sample_estimated": ("J/sample, estimated by a model", 1.0),
    "emissions_kg_per_million_tokens": ("g CO2e per million tokens", 1000.0),
    "emissions_basis": ("CO2e from energy", None),
    "cost_usd_per_million_tokens": ("USD per million tokens", 1.0),
    "peak_memory_bytes": ("Peak memory [MB]", 1e-6),
    "loss_last": ("Last loss", 1.0),
    "flags": ("Flags", None),
}


def _pick(df: pd.DataFrame) -> pd.DataFrame:
    """Let a suite and one of its executions be chosen; the newest of each is the default."""
    left, right = st.columns(2)
    newest = df.sort_values("started_at", ascending=False)
    suite = left.selectbox("Suite", list(newest["suite"].dropna().unique()), key="suite", bind="query-params")
    of_suite: pd.DataFrame = newest[newest["suite"] == suite]
    executions = [*latest_execution(of_suite)["execution"].unique()[:1], *of_suite["execution"].dropna().unique()]
    execution = right.selectbox(
        "Execution (newest first; executions are never mixed)",
        list(dict.fromkeys(executions)),
        key="execution",
        bind="query-params",
    )
    chosen: pd.DataFrame = df[(df["suite"] == suite) & (df["execution"] == execution)]
    return chosen


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the summary as text with intervals, without columns that nothing is known of."""
    columns: dict[str, Any] = {}
    for name, (title, factor) in TABLE.items():
        if table[name].isna().all() or (table[name].astype("str") == "").all():
            continue
        if factor is None:
            columns[title] = table[name]
            continue
        low, high = (
            table.get(name + tail, pd.Series(index=table.index, dtype="float64")) for tail in ("_low", "_high")
        )
        cells = zip(table[name] * factor, low * factor, high * factor, strict=True)
        columns[title] = [words.between(*cell) for cell in cells]
    return pd.DataFrame(columns)


def _words(found: ScalingFit, series: list[SeriesFit]) -> None:
    """Say what the runs say, in text only: names of series are those of the store."""
    page.lines([*words.in_short(series), *words.LAW, *map(words.gain_sentence, found.gains)])
    for pair in (series[i : i + 2] for i in range(0, len(series), 2)):
        for column, entry in zip(st.columns(len(pair)), pair, strict=True):
            with column:
                page.lines([f"{entry.name}", *(f"• {sentence}" for sentence in entry.sentences())])


def _charts(series: list[SeriesFit]) -> None:
    st.subheader("Measured times and the law")
    st.caption("Each marker is a run, each line the law with one v for its series, its band the 95 % interval of v.")
    page.figure(charts.time_chart(series), "times", "Time per sample against devices: runs and the law")
    left, right = st.columns(2)
    with left:
        st.subheader("What the law misses")
        st.caption("Above 0 the law says longer than it took. One marker a configuration.")
        if any(len(entry.points) > 1 for entry in series):
            page.figure(charts.residual_chart(series), "residuals", "By how much the law misses each configuration")
        else:
            st.text("Not known: one configuration always fits.")
    with right:
        st.subheader("Efficiency")
        st.caption("What a device does compared with the fewest devices; bars are 95 % intervals of the repeats.")
        if any(entry.efficiency for entry in series):
            page.figure(charts.efficiency_chart(series), "efficiency", "Efficiency against devices")
        else:
            st.text("Not known: no configuration ran on more than one number of devices.")


runs = _pick(page.runs("Scaling"))
found = fit(runs)
if found.series:
    names = [entry.name for entry in found.series]
    choice = st.selectbox("Series", [ALL, *names], key="series", bind="query-params") if len(names) > 1 else ALL
    chosen = [entry for entry in found.series if choice in (ALL, entry.name)]
    _words(found, chosen)
    _charts(chosen)
else:
    page.lines(found.sentences())
table = summary(runs)
if not table.empty:
    st.subheader("Configurations")
    st.caption("Geometric means of the repeats with 95 % intervals; without repeats there is no interval.")
    page.table(_shown(table), "configurations", full=table)
