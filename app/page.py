"""What all pages share: what was read from the store, or the reason why there is nothing; tables and figures with downloads.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe` only, which interpret
neither Markdown nor HTML; figures escape it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analytics.export import defused, to_csv
from analytics.frame import latest_execution
from app import data
from bench import tracking

FORMATS = ("png", "svg")
"""What the browser can save a figure as, by the camera that stands above each."""

_Found = TypeVar("_Found", pd.DataFrame, list[dict[str, Any]])


def runs(title: str) -> pd.DataFrame:
    """Show the title and when the store was read; return its runs, or say what to do and stop the page."""
    return _read(title, data.load, "runs", "bench run suites/scaling.yaml")


def searches(title: str) -> list[dict[str, Any]]:
    """Do the same for the documents of its searches, newest first."""
    return _read(title, data.searches, "searches", "bench search suites/search_cost_efficiency.yaml")


def _read(title: str, load: Callable[[], tuple[_Found, datetime]], what: str, command: str) -> _Found:
    st.title(title)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Read again", icon=":material/refresh:"):
            data.refresh()
        when = st.empty()
        st.segmented_control(
            "The camera of a figure saves",
            FORMATS,
            default=FORMATS[0],
            key="figures",
            bind="query-params",
            required=True,
        )
    try:
        found, read_at = load()
    except tracking.StoreError as error:
        st.error(f"The {what} could not be read.", icon=":material/error:")
        st.text(str(error))
        st.stop()
    when.caption(f"Read at {read_at:%Y-%m-%d %H:%M:%S} UTC")
    if not len(found):
        st.info(f"There are no {what} yet. Type in a terminal:", icon=":material/info:")
        st.code(command, language=None)
        st.text(f"Looked in: {tracking.shown(data.uri())}")
        st.stop()
    return found


def execution(df: pd.DataFrame) -> pd.DataFrame:
    """Let a suite and one of its executions be chosen, the newest of each by default; return its runs."""
    left, right = st.columns(2)
    newest = df.sort_values("started_at", ascending=False)
    suite = left.selectbox("Suite", list(newest["suite"].dropna().unique()), key="suite", bind="query-params")
    of_suite: pd.DataFrame = newest[newest["suite"] == suite]
    executions = [*latest_execution(of_suite)["execution"].unique()[:1], *of_suite["execution"].dropna().unique()]
    label = "Execution (newest first; executions are never mixed)"
    chosen = right.selectbox(label, list(dict.fromkeys(executions)), key="execution", bind="query-params")
    found: pd.DataFrame = df[(df["suite"] == suite) & (df["execution"] == chosen)]
    return found


def lines(sentences: Sequence[str]) -> None:
    """Show sentences in a box, as text."""
    with st.container(border=True):
        st.text("\n".join(sentences))


def table(df: pd.DataFrame, name: str, *, full: pd.DataFrame | None = None, **options: Any) -> Any:
    """Show a table and offer it as `wattbench-NAME.csv`, or what is `full` of it; return what `st.dataframe` does.

    `options` are those of `st.dataframe`. Text that a spreadsheet would run is made text in both.
    """
    shown = st.dataframe(defused(df), key=f"table-{name}", **{"hide_index": True, "placeholder": "", **options})
    csv = to_csv(df if full is None else full)
    _download("Download as CSV", csv, f"wattbench-{name}.csv", "text/csv")
    return shown


def figure(drawn: go.Figure, name: str, alt: str, **options: Any) -> Any:
    """Show a figure, which its camera saves as a picture, and offer it as `wattbench-NAME.html`.

    `alt` says to a screen reader what it shows; no text of runs in it. `options` are those of `st.plotly_chart`, whose
    answer is returned.
    """
    picture = {"format": st.session_state.get("figures") or FORMATS[0], "filename": f"wattbench-{name}", "scale": 2}
    config = {"displaylogo": False, "toImageButtonOptions": picture}
    shown = st.plotly_chart(drawn, key=f"figure-{name}", alt=alt, config=config, **options)
    _download("Download as HTML", lambda: drawn.to_html(include_plotlyjs=True), f"wattbench-{name}.html", "text/html")
    return shown


def _download(label: str, content: str | Callable[[], str], name: str, mime: str) -> None:
    icon = ":material/download:"
    st.download_button(label, content, name, mime, key=f"get-{name}", on_click="ignore", icon=icon, type="tertiary")
