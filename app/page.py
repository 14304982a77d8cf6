"""What all pages share: their list, the answer in large type, the runs of the store, tables and figures with downloads.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe`, which interpret neither
Markdown nor HTML; the answer and figures escape it.
"""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from html import escape
from importlib import import_module
from itertools import groupby, takewhile
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analytics.render.svg import svg
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
WHOLE = 25
"""A table of an answer with more rows than this is scrolled."""
_ANSWER = '<p style="font-size:1.5rem;font-weight:600;line-height:1.35;margin:0;overflow-wrap:anywhere">{}</p>'
_STORED = re.compile(r"(.*&& )?bench (run|fit|compare|advise|pareto|report|plan|search|show)\b(?!.* --store )")


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


# --- what is read


def runs(title: str, first: Callable[[], None] | None = None) -> pd.DataFrame:
    """Show the title, and return the runs of the store; or say what to do, and stop the page.

    `first` is shown whatever is in the store.
    """
    found: pd.DataFrame = _read(title, "runs", data.runs, "bench run suites/scaling.yaml", first)
    return found


def searches(title: str) -> list[dict[str, Any]]:
    """Do the same for the documents of the searches, newest first."""
    command = "bench search suites/search_cost_efficiency.yaml"
    found: list[dict[str, Any]] = _read(title, "searches", data.searches, command)
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
            control("segmented_control", label, FORMATS, "figures", at=st, default=FORMATS[0], required=True)
    return when


def _read(
    title: str, what: str, read: Callable[[], data.Snapshot], command: str, first: Callable[[], None] | None = None
) -> Any:
    when = header(title)
    if first is not None:
        first()
    try:
        snapshot = read()
    except tracking.StoreError as error:
        st.error(f"The {what} could not be read.", icon=":material/error:")
        st.text(str(error))
        st.stop()
    when.caption(f"as of {snapshot.at:%Y-%m-%d %H:%M:%S} UTC")
    if not len(snapshot.content):
        if snapshot.foreign:
            st.info("The store holds runs of other tools, or half-written ones, which are not shown.")
        st.info(f"There are no {what} yet. Run in a terminal:", icon=":material/info:")
        code(command)
        st.text(f"Store: {tracking.shown(data.uri())}")
        st.stop()
    return snapshot.content


# --- what is chosen


def control(kind: str, label: str, options: Any = None, key: str = "", at: Any = None, **more: Any) -> Any:
    """Show a widget of Streamlit whose value is kept in the address, in the sidebar unless it stands elsewhere (`at`)."""
    first = () if options is None else (options,)
    return getattr(st.sidebar if at is None else at, kind)(label, *first, key=key, bind="query-params", **more)


def absent(key: str, options: Iterable[Any], what: str) -> None:
    """Say that the address asks for what the store has not; to be called before the widget of that key."""
    asked = None if key in st.session_state else st.query_params.get(key)
    if asked is not None and asked not in set(map(str, options)):
        st.warning(f"The store has no {what} of this address; this is another.", icon=":material/link_off:")


def execution(df: pd.DataFrame) -> pd.DataFrame:
    """Let a suite and one of its executions be chosen in the sidebar, the newest by default; return its runs."""
    newest = df.sort_values("started_at", ascending=False)
    absent("suite", newest["suite"], "suite")
    suite = control("selectbox", "Suite", list(newest["suite"].dropna().unique()), "suite")
    of_suite: pd.DataFrame = newest[newest["suite"] == suite]
    began = of_suite.groupby("execution", sort=False)["started_at"].min()
    first = [*latest_execution(of_suite)["execution"].unique()[:1], *began.index]
    labels = {f"{began[name]:%Y-%m-%d %H:%M:%S} UTC": name for name in reversed(dict.fromkeys(first))}
    options = list(reversed(labels))
    absent("execution", options, "execution")
    chosen = control("selectbox", "Execution", options, "execution", help="Executions are never mixed.")
    found: pd.DataFrame = df[(df["suite"] == suite) & (df["execution"] == labels[chosen])]
    return found


# --- what is shown


def show(blocks: Iterable[Block], name: str = "answer", draw: Callable[[], Any] | None = None) -> None:
    """Show blocks: the first sentence of the page's `answer` in large type, then the rest, details in a closed expander.

    `draw` is called below the sentences that come first. Other blocks of a page have another `name`.
    """
    every = list(enumerate(blocks))
    plain = [
        (place, block.brief() if isinstance(block, Table) else block)
        for place, block in every
        if not getattr(block, "detail", False)
    ]
    plain.sort(key=lambda pair: isinstance(pair[1], Commands))
    details = [
        (place + len(every), block)
        for place, block in every
        if getattr(block, "detail", False) or getattr(block, "details", ())
    ]
    for place, block in plain if name == "answer" else ():
        if isinstance(block, Sentence) and block.role == "answer":
            st.html(_ANSWER.format(escape(printable(block.text, 2000))))
            plain.remove((place, block))
            break
    lead = list(takewhile(lambda pair: isinstance(pair[1], Sentence), plain))
    _show(lead, name)
    if draw is not None:
        draw()
    _show(plain[len(lead) :], name)
    if details:
        with st.expander("How this was computed"):
            _show(details, name)


def _show(blocks: Iterable[tuple[int, Block]], name: str) -> None:
    for text, same in groupby(blocks, lambda pair: isinstance(pair[1], Sentence | Note)):
        if text:
            st.text("\n".join(_line(block) for _, block in same))
            continue
        for place, block in same:
            if isinstance(block, Commands):
                st.text(f"{block.label}:")
                for command in block.commands:
                    code(command)
            elif isinstance(block, Lines):
                st.text("\n".join(printable(line, 2000) for line in block.lines))
            elif isinstance(block, Table):
                _table(block, f"{name}-{place}")
            elif isinstance(block, Figure):
                figure(block, f"{name}-{place}")


def _line(block: Any) -> str:
    label = f"{block.label}: " if isinstance(block, Note) and block.label else ""
    above = "\n" if block.detail and getattr(block, "role", "") == "title" else ""
    return above + printable(label + block.text, 2000)


def _table(block: Table, key: str) -> None:
    if block.caption:
        st.text(printable(block.caption, 500))
    names = [name or " " * place for place, name in enumerate(block.columns)]
    numbers = [name for place, name in enumerate(names) if block.is_number(place)]
    config = {name: st.column_config.TextColumn(alignment="right") for name in numbers}
    rows = [["" if cell == "-" else cell.removeprefix("+ ") for cell in row] for row in block.rows]  # no formulas
    height = "content" if len(rows) <= WHOLE else "auto"
    table(pd.DataFrame(rows, columns=names), key, column_config=config, height=height)


def code(command: str) -> None:
    """Show a command to copy, which names the store of the dashboard where that is not the usual one."""
    line = printable(command, 2000)
    if data.uri() and _STORED.match(line):
        line += f" --store {shlex.quote(tracking.shown(data.uri()))}"
    st.code(line, language=None, wrap_lines=True)


def lines(sentences: Iterable[str]) -> None:
    """Show sentences in a box, as text."""
    with st.container(border=True):
        st.text("\n".join(printable(line, 1000) for line in sentences))


def run_links(runs: pd.DataFrame, label: Callable[[Any], str]) -> None:
    """Link to each of some runs on the page Runs; `label` makes text of our own of a row."""
    with st.container(horizontal=True):
        for _, run in runs[runs[MLFLOW_RUN].notna()].iterrows() if MLFLOW_RUN in runs else ():
            link("runs", label(run), run=str(run[MLFLOW_RUN]))


def table(df: pd.DataFrame, name: str, *, full: pd.DataFrame | None = None, **options: Any) -> Any:
    """Show a table and offer it as `wattbench-NAME.csv`, or what is `full` of it; return what `st.dataframe` does.

    `options` are those of `st.dataframe`. Text that a spreadsheet would run is made text in both.
    """
    shown = st.dataframe(defused(df), key=f"table-{name}", **{"hide_index": True, "placeholder": "", **options})
    download("Download as CSV", lambda: to_csv(df if full is None else full), f"wattbench-{name}.csv", "text/csv")
    return shown


def figure(drawn: go.Figure | Figure, name: str, alt: str = "", **options: Any) -> Any:
    """Show a figure, which its camera saves as a picture, and offer it as `wattbench-NAME.html`.

    `alt` says to a screen reader what it shows; no text of runs in it. `options` are those of `st.plotly_chart`, whose
    answer is returned.
    """
    if isinstance(drawn, Figure):
        drawn, alt = block_chart(drawn), alt or drawn.title
    picture = {"format": st.session_state.get("figures") or FORMATS[0], "filename": f"wattbench-{name}", "scale": 2}
    config = {"displaylogo": False, "toImageButtonOptions": picture}
    shown = st.plotly_chart(drawn, key=f"figure-{name}", alt=alt, config=config, **options)
    download("Download as HTML", lambda: drawn.to_html(include_plotlyjs=True), f"wattbench-{name}.html", "text/html")
    return shown


_INKS = "<style>svg{color:#31333f}@media(prefers-color-scheme:dark){svg{color:#fafafa;--accent:#56b4e9}}</style>"


@lru_cache(256)
def drawn_once(block: Figure) -> str:
    """Draw a figure as an SVG that is readable on white and on black."""
    head, end, rest = svg(block, 4.2).partition(">")
    return head + end + _INKS + rest


def picture(block: Figure, name: str) -> None:
    """Show a figure as a picture within the page: Plotly, which takes a second to load, is left to other pages."""
    drawn = drawn_once(block)
    source = f"data:image/svg+xml;base64,{b64encode(drawn.encode()).decode()}"
    st.html(f'<img alt="{escape(block.title)}" src="{source}" style="width:100%;max-width:42rem">')
    download("Download as SVG", drawn, f"wattbench-{name}.svg", "image/svg+xml")


def download(label: str, content: Any, name: str, mime: str | None = None) -> None:
    """Offer a file; `content` is its bytes or text, or what makes it when it is asked for."""
    icon = ":material/download:"
    st.download_button(label, content, name, mime, key=f"get-{name}", on_click="ignore", icon=icon, type="tertiary")
