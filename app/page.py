"""What all pages share: what was read from the store, or the reason why there is nothing; tables and figures with downloads.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe` only, which interpret
neither Markdown nor HTML; figures escape it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analytics.export import defused, to_csv
from analytics.frame import latest_execution
from analytics.store import MLFLOW_RUN
from analytics.words import printable
from app import data
from bench.store import tracker as tracking

FORMATS = ("png", "svg")
"""What the browser can save a figure as, by the camera that stands above each."""


def runs(title: str, first: Callable[[], None] | None = None) -> pd.DataFrame:
    """Show the title and when the store was read; return its runs, or say what to do and stop the page.

    `first` is shown whatever is known of the runs.

    While a store is read for the first time these are the runs read so far, those of the newest suite first.
    """
    found: pd.DataFrame = _read(title, "runs", "bench run suites/scaling.yaml", first)
    return found


def searches(title: str) -> list[dict[str, Any]]:
    """Do the same for the documents of its searches, newest first."""
    found: list[dict[str, Any]] = _read(title, "searches", "bench search suites/search_cost_efficiency.yaml")
    return found


def header(title: str) -> Any:
    """Show the title of a page with what all pages offer; return where it says as of when its figures are."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title(title, width="stretch")
        when = st.container(width="content")
        if st.button("Read again", icon=":material/refresh:"):
            data.refresh()
        with st.popover("Figures", icon=":material/photo_camera:"):
            label = "The camera above a figure saves it as"
            st.segmented_control(label, FORMATS, default=FORMATS[0], key="figures", bind="query-params", required=True)
    return when


def _read(title: str, what: data.Kind, command: str, first: Callable[[], None] | None = None) -> Any:
    when = header(title)
    if first is not None:
        first()
    state = data.look(what)
    try:
        found, read_at = data.shown(state)
    except tracking.StoreError as error:
        st.error(f"The {what} could not be read.", icon=":material/error:")
        st.text(str(error))
        st.stop()
    if state.read_at is not None:
        when.caption(f"Read at {read_at:%Y-%m-%d %H:%M:%S} UTC")
    if state.error is not None:
        st.warning(f"The {what} could not be read again: this is how they were.", icon=":material/error:")
        st.text(str(state.error))
    if state.begun is not None:
        with when if state.read_at else st.container():
            _awaited(what, state.read_at is not None, state.done, bool(len(found)))
    if not len(found):
        if state.read_at is None:
            st.stop()
        if state.strangers:
            st.info("The store holds runs of other tools only, or half-written ones, which are not shown.")
        st.info(f"There are no {what} yet. Type in a terminal:", icon=":material/info:")
        store = f" --store {shlex.quote(tracking.shown(data.uri()))}" if data.uri() else ""
        st.code(printable(command + store, 500), language=None)
        st.text(f"Looked in: {tracking.shown(data.uri())}")
        st.stop()
    return found


@st.fragment(run_every=0.5)  # type: ignore[untyped-decorator]
def _awaited(what: data.Kind, again: bool, seen: int, some: bool) -> None:
    """Say how far the reading is; run the page again when it has ended or has twice as much as was seen."""
    state = data.known(what)
    if state.begun is None or (not again and state.done >= max(1, 2 * seen)):
        st.rerun()
        return
    if again:
        st.caption("Reading what is new ...")
        return
    if not state.done:
        waited = (datetime.now(UTC) - state.begun).total_seconds()
        st.progress(0.0, f"Reading the {what}: waiting for the store to answer, for {waited:.0f} s")
        kept = " Below is what an earlier reading has kept." if some else ""
        st.text(f"Asked: {tracking.shown(data.uri())}. The answer appears here, or why there is none.{kept}")
        return
    of = f"{state.done:,} of {state.of:,}" if state.of else f"{state.done:,}"
    text = f"Read {of} {what}. Until all are read, this page shows the newest suite first, and its sums are not whole."
    st.progress(min(1.0, state.done / state.of) if state.of else 0.0, text)


def absent(key: str, there: Iterable[Any], what: str) -> None:
    """Say that the address asks for what is not there; to be called before the widget of that key."""
    asked = None if key in st.session_state else st.query_params.get(key)
    if asked is not None and asked not in set(map(str, there)):
        st.warning(
            f"The store has no such {what} as the address asks for; this is another.", icon=":material/link_off:"
        )


def execution(df: pd.DataFrame) -> pd.DataFrame:
    """Let a suite and one of its executions be chosen, the newest of each by default; return its runs."""
    left, right = st.columns(2)
    newest = df.sort_values("started_at", ascending=False)
    absent("suite", newest["suite"], "suite")
    suite = left.selectbox("Suite", list(newest["suite"].dropna().unique()), key="suite", bind="query-params")
    of_suite: pd.DataFrame = newest[newest["suite"] == suite]
    executions = [*latest_execution(of_suite)["execution"].unique()[:1], *of_suite["execution"].dropna().unique()]
    label = "Execution (newest first; executions are never mixed)"
    absent("execution", executions, "execution")
    chosen = right.selectbox(label, list(dict.fromkeys(executions)), key="execution", bind="query-params")
    found: pd.DataFrame = df[(df["suite"] == suite) & (df["execution"] == chosen)]
    return found


def opens(runs: pd.DataFrame, label: Callable[[Any], str]) -> None:
    """Link to each of some runs on the page Runs; `label` makes text of our own of a row."""
    with st.container(horizontal=True):
        for _, run in runs[runs[MLFLOW_RUN].notna()].iterrows() if MLFLOW_RUN in runs else ():
            icon, query = ":material/arrow_forward:", {"run": str(run[MLFLOW_RUN])}
            st.page_link("views/runs.py", label=label(run), icon=icon, query_params=query)


def lines(sentences: Sequence[str]) -> None:
    """Show sentences in a box, as text."""
    with st.container(border=True):
        st.text("\n".join(sentences))


def table(df: pd.DataFrame, name: str, *, full: pd.DataFrame | None = None, **options: Any) -> Any:
    """Show a table and offer it as `wattbench-NAME.csv`, or what is `full` of it; return what `st.dataframe` does.

    `options` are those of `st.dataframe`. Text that a spreadsheet would run is made text in both.
    """
    shown = st.dataframe(defused(df), key=f"table-{name}", **{"hide_index": True, "placeholder": "", **options})
    whole = df if full is None else full
    _download("Download as CSV", lambda: to_csv(whole), f"wattbench-{name}.csv", "text/csv")
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


def _download(label: str, content: Callable[[], str], name: str, mime: str) -> None:
    icon = ":material/download:"
    st.download_button(label, content, name, mime, key=f"get-{name}", on_click="ignore", icon=icon, type="tertiary")
