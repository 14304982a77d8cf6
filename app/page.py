"""What all pages share: their list, the answer in large type, the runs of the store, tables and figures with downloads.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe`, which interpret neither
Markdown nor HTML; the answer and figures escape it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from importlib import import_module
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analytics.runs.export import defused, to_csv
from analytics.runs.frame import latest_execution
from analytics.runs.store import MLFLOW_RUN
from analytics.say.blocks import Block, Commands, Figure, Lines, Note, Sentence, Table
from analytics.text import printable
from app import data
from app.charts.curves import block_chart
from bench.store import tracker as tracking

FORMATS = ("png", "svg")
"""What the browser can save a figure as, by the camera that stands above each."""
PAGES = {"overview": ("Overview", "list"), "runs": ("Runs", "table_rows"), "scaling": ("Scaling", "show_chart")}
PAGES |= {"strategies": ("Strategies", "balance"), "tradeoffs": ("Trade-offs", "join_inner")}
PAGES |= {"planner": ("Planner", "calculate"), "search": ("Search", "search")}
"""Title and icon of each page, by its module in `app.pages`, which is also its address."""
BOUND: Any = {"bind": "query-params"}
_ANSWER = '<p style="font-size:1.5rem;font-weight:600;line-height:1.35;margin:0;overflow-wrap:anywhere">{}</p>'


def pages() -> list[Any]:
    """Return the pages for the navigation; each is imported when it is opened first."""
    return [_page(name) for name in PAGES]


def _page(name: str) -> Any:
    title, icon = PAGES[name]
    options = {"title": title, "icon": f":material/{icon}:", "url_path": name, "default": name == "overview"}
    return st.Page(partial(_open, name), **options)


def _open(name: str) -> None:
    import_module(f"app.pages.{name}").main()


def link(name: str, label: str, **query: str) -> None:
    """Link to a page; `query` is what its address chooses. The label is text of our own."""
    st.page_link(_page(name), label=label, icon=":material/arrow_forward:", query_params=query)


def runs(title: str, first: Callable[[], None] | None = None) -> pd.DataFrame:
    """Show the title, and return the runs of the store; or say what to do, and stop the page.

    `first` is shown whatever is in the store.
    """
    found: pd.DataFrame = _read(title, "runs", data.runs, "bench run suites/scaling.yaml", first)
    return found


def searches(title: str) -> list[dict[str, Any]]:
    """Do the same for the documents of the searches, newest first."""
    found: list[dict[str, Any]] = _read(
        title, "searches", data.searches, "bench search suites/search_cost_efficiency.yaml"
    )
    return found


def header(title: str) -> Any:
    """Show the title of a page with what all pages offer; return where the time of the reading is shown."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{title}**", width="content")
        when = st.container(width="stretch")
        if st.button("Refresh", icon=":material/refresh:", type="tertiary"):
            data.refresh()
        with st.popover("Figures", icon=":material/photo_camera:", type="tertiary"):
            label = "The camera above a figure saves it as"
            st.segmented_control(label, FORMATS, default=FORMATS[0], key="figures", required=True, **BOUND)
    return when


def _read(
    title: str, what: str, read: Callable[[], data.Snapshot], command: str, first: Callable[[], None] | None = None
) -> Any:
    when = header(title)
    if first is not None:
        first()
    try:
        found = read()
    except tracking.StoreError as error:
        st.error(f"The {what} could not be read.", icon=":material/error:")
        st.text(str(error))
        st.stop()
    when.caption(f"as of {found.at:%Y-%m-%d %H:%M:%S} UTC")
    if not len(found.content):
        if found.foreign:
            st.info("The store holds runs of other tools, or half-written ones, which are not shown.")
        st.info(f"There are no {what} yet. Run in a terminal:", icon=":material/info:")
        code(command + store_option())
        st.text(f"Store: {tracking.shown(data.uri())}")
        st.stop()
    return found.content


def store_option() -> str:
    """Return what a command needs to work on the store of the dashboard; nothing where that is the usual one."""
    return f" --store {shlex.quote(tracking.shown(data.uri()))}" if data.uri() else ""


def code(command: str) -> None:
    """Show a command to copy."""
    st.code(printable(command, 1000), language=None, wrap_lines=True)


def absent(key: str, options: Iterable[Any], what: str) -> None:
    """Say that the address asks for what the store has not; to be called before the widget of that key."""
    asked = None if key in st.session_state else st.query_params.get(key)
    if asked is not None and asked not in set(map(str, options)):
        st.warning(f"The store has no {what} of this address; this is another.", icon=":material/link_off:")


def execution(df: pd.DataFrame) -> pd.DataFrame:
    """Let a suite and one of its executions be chosen in the sidebar, the newest by default; return its runs."""
    newest = df.sort_values("started_at", ascending=False)
    absent("suite", newest["suite"], "suite")
    suite = st.sidebar.selectbox("Suite", list(newest["suite"].dropna().unique()), key="suite", **BOUND)
    of_suite: pd.DataFrame = newest[newest["suite"] == suite]
    began = of_suite.groupby("execution", sort=False)["started_at"].min()
    first = [*latest_execution(of_suite)["execution"].unique()[:1], *began.index]
    labels = {f"{began[name]:%Y-%m-%d %H:%M:%S} UTC": name for name in reversed(dict.fromkeys(first))}
    options = list(reversed(labels))
    absent("execution", options, "execution")
    label = "Execution, newest first"
    chosen = st.sidebar.selectbox(label, options, key="execution", help="Executions are never mixed.", **BOUND)
    found: pd.DataFrame = df[(df["suite"] == suite) & (df["execution"] == labels[chosen])]
    return found


def run_links(runs: pd.DataFrame, label: Callable[[Any], str]) -> None:
    """Link to each of some runs on the page Runs; `label` makes text of our own of a row."""
    with st.container(horizontal=True):
        for _, run in runs[runs[MLFLOW_RUN].notna()].iterrows() if MLFLOW_RUN in runs else ():
            link("runs", label(run), run=str(run[MLFLOW_RUN]))


def answer(text: str, *plain: str) -> None:
    """Show the answer of a page in large type, and sentences that limit it below."""
    show([Sentence(text, "answer"), *map(Sentence, plain)])


def show(blocks: Sequence[Block | Lines], name: str = "answer") -> None:
    """Show blocks; those of `detail` stand in one closed expander. `name` keeps their downloads apart."""
    parts = [(getattr(block, "detail", False), f"{name}-{place}", block) for place, block in enumerate(blocks)]
    for detail, key, block in parts:
        if not detail:
            _block(block, key)
    if any(detail for detail, *_ in parts):
        with st.expander("How this was computed"):
            for detail, key, block in parts:
                if detail:
                    _block(block, key)


def _block(block: Block | Lines, key: str) -> None:
    if isinstance(block, Sentence):
        text = printable(block.text, 2000)
        if block.role == "answer":
            st.html(_ANSWER.format(escape(text)))
        else:
            st.text(text)
    elif isinstance(block, Note):
        st.text(printable(f"{block.label}: {block.text}" if block.label else block.text, 2000))
    elif isinstance(block, Commands):
        st.text(f"{block.label}:")
        for command in block.commands:
            code(command)
    elif isinstance(block, Lines):
        if block.kind == "command":
            code("\n".join(block.lines))
        else:
            st.text("\n".join(printable(line, 2000) for line in block.lines))
    elif isinstance(block, Table):
        st.text(printable(block.caption, 500))
        table(pd.DataFrame(block.rows, columns=list(block.columns)), key)
    elif isinstance(block, Figure):
        figure(block_chart(block), key, f"{len(block.groups)} groups of values with their intervals")


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
