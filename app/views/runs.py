"""Runs: the list of all runs, one of them in full, or two side by side."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import Any
from zlib import crc32

import pandas as pd
import streamlit as st

from analytics import factors
from analytics.export import defused, to_csv
from analytics.store import MLFLOW_RUN
from analytics.words import printable
from app import data, onerun, page
from app import runs as listed
from app.charts import runs as charts
from bench.store import artifacts as stored
from bench.store.tracker import StoreError, location
from bench.suites import yaml as yamlfile

AT_ONCE = 200
BOUND = {"bind": "query-params"}
DIGITS = dict.fromkeys(["A", "B", "B / A", "Value", "Error at most [±]"], st.column_config.NumberColumn(format="%.4g"))


def _read(run: str, where: str | None) -> tuple[stored.Stored, onerun.Opened]:
    found = stored.files(run, where)
    return found, onerun.opened(found.files)


_files: Any = st.cache_data(_read, max_entries=16, show_spinner="Reading the files of the run ...")


def _filtered(df: pd.DataFrame) -> pd.DataFrame:
    """Let runs be filtered; all of it is kept in the address."""
    quick: dict[str, list[str]] = {}
    with st.container(horizontal=True):
        for name, label in listed.QUICK.items():
            options = sorted(df[name].dropna().unique())
            quick[name] = st.multiselect(label, options, key=name, placeholder="any", width=178, **BOUND)
    with st.container(horizontal=True):
        text = st.text_input("Text in configuration, error or flags", key="text", width=300, **BOUND)
        more = {"key": "where", "placeholder": "devices >= 2 and precision == bf16", "max_chars": 1000}
        where = st.text_input("More filters, by any field", width=500, **more, **BOUND)
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
            factors_ = [listed.unit(name)[0] for name in every]
            fields = pd.DataFrame({"Field": every, "Heading": map(listed.title, every), "= field ×": factors_})
            st.dataframe(defused(fields), hide_index=True, height=300)
    pages = max(1, -(-len(found) // AT_ONCE))
    number = min(pages, st.pagination(pages, key="page", **BOUND)) if pages > 1 else 1
    part = listed.ordered(found, by, descending=way == ways[0])[AT_ONCE * (number - 1) : AT_ONCE * number]
    first = AT_ONCE * (number - 1)
    if len(part):
        st.caption(
            f"Shows {first + 1:,} to {first + len(part):,} of {len(found):,} runs that match; {len(df):,} in all. "
            "Pick a row to open its run below, or two rows to compare them; without a mouse, by the fields below the table."
        )
    return part, every if everything else names or usual


def _courses(ids: list[str]) -> list[list[float] | None]:
    """Return the step times of the runs of a table; absent ones are asked for anew when the store was read again."""
    kept, at = st.session_state.get("courses", {}), data.known("runs").read_at
    known = {run: kept[run] for run in ids if run in kept and (kept[run][0] or kept[run][1] == at)}
    new = [run for run in ids if run not in known]
    found = stored.courses(new, data.uri())
    st.session_state["courses"] = known = known | {run: (found.get(run), at) for run in new}
    return [known[run][0] for run in ids]


def _list(df: pd.DataFrame) -> list[str]:
    """Show the runs that match; return MLflow's names of those that are picked."""
    found = _filtered(df)
    part, names = _arranged(df, found)
    if part.empty:
        st.info("No run matches: take a filter away.", icon=":material/filter_alt_off:")
        return []
    table = defused(listed.scaled(part, names))
    config: dict[str, Any] = {**listed.headings(part, names)}
    digits = [name for name in names if part[name].dtype == "float64"]
    config |= {name: st.column_config.NumberColumn(config[name], format="%.4g") for name in digits}
    config["label"] = st.column_config.TextColumn(listed.title("label"), width=280)
    ids = list(part[MLFLOW_RUN])
    courses = _courses(ids)
    if any(courses):
        table.insert(min(8, len(names)), "course", courses)
        config["course"] = st.column_config.LineChartColumn("Step times", y_min=0)
    key = f"list-{crc32(''.join(ids).encode())}"
    picked = st.dataframe(table, column_config=config, key=key, hide_index=True, placeholder="", on_select="rerun")
    name = "wattbench-runs.csv"
    st.download_button(
        f"Download all {len(found):,} as CSV", lambda: to_csv(found), name, "text/csv", on_click="ignore"
    )
    left, right = st.columns(2)
    told = {run: " · ".join(onerun.about(row)[:2]) for run, (_, row) in zip(ids, part.iterrows(), strict=True)}
    a = left.selectbox("Open", ids, None, told.get, key="open", placeholder="a run")
    b = right.selectbox("Compare with", ids, None, told.get, key="with", placeholder="another run")
    rows = [ids[index] for index in picked.selection.rows]
    return rows or [run for run in (a, b) if run]


def _opened(run: pd.Series) -> tuple[stored.Stored, onerun.Opened]:
    """Read the files of a run; where they cannot be had, the row alone is shown, and why."""
    try:
        found: tuple[stored.Stored, onerun.Opened] = _files(run[MLFLOW_RUN], data.uri())
    except StoreError as error:
        return stored.Stored("", {}, {}), onerun.Opened(problems=(str(error),))
    return found


def _one(df: pd.DataFrame, run: pd.Series) -> None:
    files, one = _opened(run)
    page.lines(onerun.about(run))
    with st.container(horizontal=True):
        for label, value, note in onerun.headline(run):
            with st.container(border=True, width=232, gap="xsmall"):
                st.metric(label, value)
                st.text(note)
    if one.problems:
        st.info("Not everything is known of this run; what follows is what there is.", icon=":material/info:")
        st.text("\n".join(one.problems))
    why, tail = onerun.failure(run, one)
    if why:
        st.subheader("Why it did not end well")
        page.lines([why])
    if tail:
        st.caption("The end of its log:")
        st.code(tail, language=None, height=400)
    if limits := onerun.limits(run):
        st.subheader("What limits these figures")
        page.lines(limits)
    _draw(charts.of_run(one))
    _tabs(df, run, files, one)


def _draw(figures: Iterable[charts.Drawn]) -> None:
    places = st.columns(2)
    for index, (heading, name, figure, said) in enumerate(figures):
        with places[index % 2]:
            st.subheader(heading)
            page.figure(figure, name, said)
            st.caption(said)


def _tabs(df: pd.DataFrame, run: pd.Series, files: stored.Stored, one: onerun.Opened) -> None:
    record = one.record
    figures, asked, where, kept = st.tabs(["Every figure", "What was asked", "Environment", "Log, files, MLflow"])
    with figures:
        st.caption(
            "Where each comes from. Errors are bounds that the sensors give; what repeats differ by comes on top."
        )
        page.table(onerun.provenance(df, run, record), "figures", column_config=DIGITS)
        if record is not None:
            st.caption("What each sensor said of the window, or of the whole run where it has none:")
            page.table(onerun.readings(record), "readings")
            page.lines(factors.lines([record]))
    with asked:
        spec = record.spec.model_dump(mode="json", exclude_none=True) if record else listed.wanted(df, run)
        st.code(yamlfile.write(spec), language="yaml")
    with where:
        facts = onerun.environment(record.environment) if record else listed.surroundings(run)
        page.table(pd.DataFrame(facts.items(), columns=["What", "Value"]), "environment")
    with kept:
        st.code(one.log or "No log of this run can be shown.", language=None, height=400)
        if files.files:
            name = st.selectbox("Files of the run", list(files.files), key="file")
            content = files.files[name]
            st.download_button(f"Download it ({len(content):,} B)", lambda: content, name, on_click="ignore")
        sizes = {name: "size not known" if size is None else f"{size:,} B" for name, size in files.left_out.items()}
        st.text("\n".join(f"{name}: {size}, not read here: too large" for name, size in sizes.items()))
        if files.experiment.isdecimal():
            url, command = onerun.in_mlflow(location(data.uri()), files.experiment, run[MLFLOW_RUN])
            if command:
                st.caption("In MLflow's own pages: type the command, then follow the link.")
                st.code(command, language=None)
            if url:
                st.link_button("Open in MLflow", url, icon=":material/open_in_new:")


def _two(df: pd.DataFrame, a: pd.Series, b: pd.Series) -> None:
    ones = {"A": _opened(a)[1], "B": _opened(b)[1]}
    page.lines([f"A: {' · '.join(onerun.about(a)[:2])}", f"B: {' · '.join(onerun.about(b)[:2])}"])
    asked = listed.facts(listed.wanted(df, a), listed.wanted(df, b))
    facts = [onerun.environment(one.record.environment) for one in ones.values() if one.record is not None]
    where = listed.facts(*(facts if len(facts) == 2 else map(listed.surroundings, (a, b))))
    for heading, name, table in (("What was asked", "asked", asked), ("Environment and versions", "where", where)):
        st.subheader(f"{heading}: differences")
        differ = table[table["A"] != table["B"]]
        if len(differ):
            page.table(differ, f"differ-{name}")
        else:
            st.text("None.")
    st.subheader("Figures")
    figures = listed.figures(df, a, b)
    sides = dict.fromkeys(quote(printable(f"{run.suite}@{run.execution}", 400)) for run in (a, b))
    if len(sides) == 1 and a.config_id == b.config_id:
        st.caption("These are repeats of one configuration: what differs is noise.")
    else:
        st.caption("One run of each cannot tell whether a difference is real; several of each can:")
        st.code(f"bench compare {' '.join(sides)}", language=None)
    page.table(figures[figures["A"] != figures["B"]], "figures-of-two", column_config=DIGITS)
    _draw(charts.of_two(ones))
    with st.expander("What is equal"):
        for table in (asked, where, figures):
            st.dataframe(defused(table[table["A"] == table["B"]]), hide_index=True)


def _go(*names: str) -> None:
    """Put MLflow's names of the runs that are shown alone into the address, or none."""
    for key in ("run", "other"):
        st.query_params.pop(key, None)
    st.query_params.update(zip(("run", "other"), names, strict=False))


df = page.runs("Runs")
address = [listed.by_name(df, st.query_params.get(name)) for name in ("run", "other")]
picked = [run for run in address if run is not None]
if picked:
    st.button("Back to the list", icon=":material/arrow_back:", on_click=_go)
    if len(picked) < len([name for name in ("run", "other") if name in st.query_params]):
        st.info("The store has only one of the two runs of this address (any more).", icon=":material/info:")
else:
    if "run" in st.query_params or "other" in st.query_params:
        st.info("The store has no run of this address (any more); here are all.", icon=":material/info:")
    names = _list(df)
    picked = [run for name in names[:2] if (run := listed.by_name(df, name)) is not None]
    if picked:
        st.divider()
        st.button("Show this alone, at an address to share", icon=":material/link:", on_click=_go, args=names[:2])
    if len(names) > 2:
        st.caption("More than two runs are picked: the first two of them are compared.")
if len(picked) == 2:
    _two(df, *picked)
elif picked:
    _one(df, picked[0])
