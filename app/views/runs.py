"""Runs: the list of all runs, one of them in full, or two side by side."""

from __future__ import annotations

from zlib import crc32

import pandas as pd
import streamlit as st
import yaml

from analytics import factors
from analytics.export import defused, to_csv
from analytics.store import MLFLOW_RUN
from app import data, onerun, page
from app import runs as listed
from app.charts import runs as charts
from bench import quality, stored
from bench.tracking import StoreError, shown

AT_ONCE = 200
BOUND = {"bind": "query-params"}
FIGURES = st.column_config.NumberColumn


@st.cache_data(max_entries=16, show_spinner="Reading the files of the run ...")
def _files(run: str, where: str | None) -> tuple[stored.Stored, onerun.Opened]:
    found = stored.files(run, where)
    return found, onerun.opened(found.files)


@st.cache_resource(max_entries=4)
def _courses(where: str | None) -> dict[str, list[float]]:
    return {}


def _filtered(df: pd.DataFrame) -> pd.DataFrame:
    """Let runs be filtered; all of it is kept in the address."""
    quick: dict[str, list[str]] = {}
    with st.container(horizontal=True):
        for name, label in listed.QUICK.items():
            options = sorted(df[name].dropna().unique())
            quick[name] = st.multiselect(label, options, key=name, placeholder="any", width=200, **BOUND)
    with st.container(horizontal=True):
        text = st.text_input("Text in configuration, error or flags", key="text", width=300, **BOUND)
        example = "devices >= 2 and precision == bf16"
        label = "More filters, by any field"
        where = st.text_input(label, key="where", placeholder=example, width=500, max_chars=1000, **BOUND)
    try:
        return listed.chosen(df, quick, text, where)
    except listed.FilterError as error:
        st.error("The filter is not understood, so no run is left out by it.", icon=":material/error:")
        st.text(str(error))
        return listed.chosen(df, quick, text, "")


def _arranged(df: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Let the order and the columns be chosen; return the runs of one page, and the columns."""
    every = listed.columns(df)
    usual = [name for name in every if name in listed.TITLES and df[name].notna().any()]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = st.selectbox("Sort by", every, every.index("started_at"), listed.title, key="sort", width=260, **BOUND)
        ways = ["largest first", "smallest first"]
        way = st.segmented_control("Order", ways, default=ways[0], key="order", required=True, **BOUND)
        everything = st.toggle("All columns", key="all", **BOUND)
        with st.popover("Choose columns; names of fields"):
            names = st.multiselect("Columns", every, usual, listed.title, key="columns", **BOUND)
            fields = pd.DataFrame({"Field": every, "Heading": map(listed.title, every)})
            st.dataframe(defused(fields), hide_index=True, height=300)
    pages = max(1, -(-len(found) // AT_ONCE))
    number = min(pages, st.pagination(pages, key="page", **BOUND)) if pages > 1 else 1
    part = listed.ordered(found, by, descending=way == ways[0])[AT_ONCE * (number - 1) : AT_ONCE * number]
    first = AT_ONCE * (number - 1) + 1
    st.caption(f"Shows {first:,} to {first + len(part) - 1:,} of {len(found):,} runs that match; {len(df):,} in all.")
    return part, every if everything else names or usual


def _list(df: pd.DataFrame) -> list[str]:
    """Show the runs that match; return MLflow's names of those that are picked."""
    found = _filtered(df)
    part, names = _arranged(df, found)
    if part.empty:
        st.info("No run matches: take a filter away.", icon=":material/filter_alt_off:")
        return []
    table = defused(listed.scaled(part, names))
    config = {
        name: FIGURES(listed.title(name), format="%.4g") if part[name].dtype == "float64" else listed.title(name)
        for name in names
    }
    known, ids = _courses(data.uri()), list(part[MLFLOW_RUN])
    known |= stored.courses([run for run in ids if run not in known], data.uri())
    if any(run in known for run in ids):
        table.insert(min(8, len(names)), "steps", [known.get(run) for run in ids])
        config["steps"] = st.column_config.LineChartColumn("Step times", y_min=0)
    key = f"list-{crc32(''.join(ids).encode())}"
    picked = st.dataframe(table, column_config=config, key=key, hide_index=True, placeholder="", on_select="rerun")
    label = f"Download all {len(found):,} as CSV"
    icon = ":material/download:"
    csv = "wattbench-runs.csv"
    st.download_button(label, lambda: to_csv(found), csv, "text/csv", on_click="ignore", icon=icon, type="tertiary")
    st.caption("Pick a row to open the run, or two rows to compare them; or choose here:")
    left, right = st.columns(2)
    names_of = {run: f"{row['label']} · {row['started_at']:%m-%d %H:%M:%S}" for run, (_, row) in zip(ids, part.iterrows())}
    a = left.selectbox("Open", ids, None, names_of.get, key="open", placeholder="a run")
    b = right.selectbox("Compare with", ids, None, names_of.get, key="with", placeholder="another run")
    rows = [ids[index] for index in picked.selection.rows]
    return rows or [run for run in (a, b) if run]


def _opened(run: pd.Series) -> tuple[stored.Stored, onerun.Opened]:
    """Read the files of a run; where they cannot be had, say why and go on with what the row says."""
    try:
        return _files(run[MLFLOW_RUN], data.uri())
    except StoreError as error:
        return stored.Stored("", {}, {}), onerun.Opened(problems=(str(error),))


def _one(df: pd.DataFrame, run: pd.Series) -> None:
    files, one = _opened(run)
    page.lines(onerun.about(run))
    with st.container(horizontal=True):
        for label, value, note in onerun.headline(run, one.record):
            with st.container(border=True, width=260, gap="xsmall"):
                st.metric(label, value)
                st.text(note)
    if one.problems:
        st.info("Not everything is known of this run; what follows is what there is.", icon=":material/info:")
        st.text("\n".join(one.problems))
    flags = [f"{flag}: {quality.meaning(flag)}" for flag in str(run["flags"] or "").split() if run["flags"] == run["flags"]]
    if flags:
        st.subheader("What limits its quality")
        page.lines(flags)
    _failure(run, one)
    _figures(one)
    _tables(df, run, files, one)


def _failure(run: pd.Series, one: onerun.Opened) -> None:
    error = one.record.error if one.record is not None else None
    if error is None and pd.isna(run["error_type"]):
        return
    st.subheader("Why it did not end well")
    st.text(f"{error.type}: {error.message}" if error else f"{run['error_type']}: {run['error_message']}")
    if error is not None and error.log_tail:
        st.caption("The end of its log:")
        st.code(error.log_tail, language=None, height=300)


def _figures(one: onerun.Opened) -> None:
    record = one.record
    left, right = st.columns(2)
    with left:
        if one.power:
            st.subheader("Power")
            page.figure(charts.power_chart(one.power, one.spans), "power", "Power over the run, by device")
            st.caption("Shaded: phases of the run, the measured window most. A line marked ~ is a model's estimate.")
        if record is not None and record.measurement is not None and record.measurement.phases:
            st.subheader("Where time and energy went")
            page.figure(charts.phases_chart(onerun.phases(record)), "phases", "Shares of the phases of the run")
    with right:
        if len(one.steps):
            st.subheader("Step times")
            page.figure(charts.steps_chart({"": one.steps}), "steps", "Time of each step")
        if record is not None and record.measurement is not None and record.measurement.peak_memory_bytes:
            st.subheader("Memory")
            measured, limit = record.measurement, metrics(record).get("memory_available_bytes")
            drawn = charts.memory_chart(measured.peak_memory_bytes, measured.memory_estimated_bytes, limit)
            page.figure(drawn, "memory", "Peak of memory of each rank")
