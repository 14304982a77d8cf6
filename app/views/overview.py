"""Overview: which suites were run, how the runs ended, what they took together, and what failed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analytics.answer import totals
from analytics.export import defused
from app import page
from bench.record import Status

ALL = "All suites"
TABLE = {
    "label": "Configuration",
    "suite": "Suite",
    "execution": "Execution",
    "repeat": "Repeat",
    "status": st.column_config.TextColumn("Outcome", width=130),
    "started_at": st.column_config.DatetimeColumn("Started (UTC)", format="YYYY-MM-DD HH:mm:ss"),
    "duration_seconds": st.column_config.NumberColumn("Whole run [s]", format="%.1f"),
    "samples_per_second": st.column_config.NumberColumn("Samples/s", format="%.4g"),
    "joules_per_sample": st.column_config.NumberColumn("J/sample, measured", format="%.4g"),
    "joules_per_sample_estimated": st.column_config.NumberColumn("J/sample, estimated by a model", format="%.4g"),
    "validation_loss": st.column_config.NumberColumn("Validation loss", format="%.4g"),
    "validation_accuracy": st.column_config.NumberColumn("Accuracy", format="%.4g"),
    "energy_provenance": "Energy from",
    "device_name": "Devices",
    "host": "Host",
    "quality": "Quality",
    "flags": "Flags",
}


def _show_totals(df: pd.DataFrame) -> None:
    counts = df["status"].value_counts()
    ended = [("Suites", df["suite"].nunique()), ("Runs", len(df))]
    ended += [(str(status).replace("_", " "), int(counts.get(status, 0))) for status in Status if counts.get(status, 0)]
    with st.container(horizontal=True):
        for label, count in ended:
            st.metric(label, count, border=True, width=160)
    with st.container(horizontal=True):
        for label, value, note in totals(df):
            with st.container(border=True, width=295, gap="xsmall"):
                st.metric(label, value)
                st.caption(note)
    lacking = [name for name, column in (("carbon", "emissions_kg"), ("cost", "cost_usd")) if df[column].isna().all()]
    if lacking:
        st.caption(f"No {' and no '.join(lacking)}: the suite names no region or price, and none is guessed.")
    st.caption("Totals are of whole runs: starting up and runs that failed were paid for too.")


df = page.runs("Overview")
suites = [ALL, *sorted(df["suite"].dropna().unique())]
suite = st.selectbox("Suite", suites, key="suite", bind="query-params")
shown = df if suite == ALL else df[df["suite"] == suite]
_show_totals(shown)
failed = shown[shown["status"] != Status.OK]
st.subheader("What did not end well")
if failed.empty:
    st.text("Every run ended well.")
else:
    columns = {"label": "Configuration", "status": "Outcome", "error_type": "Type", "error_message": "Message"}
    columns |= {"suite": "Suite", "execution": "Execution", "repeat": "Repeat"}
    st.dataframe(defused(failed[list(columns)]), column_config=columns, hide_index=True)
st.subheader("All runs")
newest = shown.sort_values("started_at", ascending=False)
st.dataframe(defused(newest[list(TABLE)]), column_config=TABLE, hide_index=True, placeholder="")
