"""The pages in Streamlit's own test harness, and what they show."""

import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from analytics.judge import sides
from analytics.runs import selection, store
from analytics.runs.frame import frame
from analytics.search import session
from app import data, serve
from bench.store import tracker as tracking
from tests import rows

MAIN = Path(serve.__file__).parent / "pages" / "main.py"
EVIL = (rows.HOSTILE, rows.HOSTILE_LINK, rows.HOSTILE_FORMULA)
Open = Callable[..., AppTest]


def opened(name: str, query: dict[str, str], *, fresh: bool = True) -> AppTest:
    """Open a page, with nothing cached unless it is not to be `fresh`; what it raises fails the test."""
    if fresh:
        data.forget()
    app = AppTest.from_file(str(MAIN), default_timeout=300)
    app._page_hash = calc_hash(name)  # `switch_page` knows pages that are files only
    app._bidi_component_manager = BidiComponentManager()  # to look for components takes 0.4 s
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def opener(name: str) -> Any:
    """Return a fixture: a function that opens a page on rows of runs, documents of searches, or an error of the store."""

    @pytest.fixture
    def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
        def run(given: Any = (), on: str = name, **query: Any) -> AppTest:
            def load(*_: Any, **__: Any) -> Any:
                if isinstance(given, Exception):
                    raise given
                return given if on == "search" else named(given)

            for module in (store, selection, sides, session):  # all that have it by name, before a page imports them
                monkeypatch.setattr(module, "load", load)
            monkeypatch.setattr(tracking, "searches", load)
            return opened(on, query)

        yield run
        data.forget()
        if name in ("runs", "overview"):  # whose caches have not the content for a key
            st.cache_data.clear()

    return open_page


def named(given: Any) -> pd.DataFrame:
    """Rows of runs as a store has them, with names by which MLflow knows them."""
    return frame([row | {"mlflow_run_id": f"{index:032x}"} for index, row in enumerate(given)])


def texts(app: AppTest) -> str:
    return "\n".join([*answers(app), *(e.value for kind in (app.text, app.caption, app.subheader) for e in kind)])


def answers(app: AppTest) -> list[str]:
    """What stands in large type, without its markup."""
    bodies = (element.proto.body for element in app.get("html"))
    return [unescape(body.partition(">")[2].removesuffix("</p>")) for body in bodies if body.startswith("<p ")]


def table(app: AppTest, column: str) -> pd.DataFrame:
    """The table with a column: the one of the answer, or the only one of its details."""
    found, *whole = [one.value for one in app.dataframe if column in one.value.columns]
    assert len(whole) <= 1
    return found


def safe(app: AppTest, *evil: str) -> None:
    """Nothing hostile is markup, and no cell of a table is a formula."""
    for text in evil or EVIL:
        assert text not in markup(app)
    for shown in app.dataframe:
        assert not any(str(name).startswith("=") for name in shown.value)
        for column in shown.value:
            assert not shown.value[column].astype("str").str.startswith("=").any()


def markup(app: AppTest) -> str:
    """All that Streamlit renders as Markdown, and the tags of HTML."""
    kinds = (app.markdown, app.caption, app.title, app.subheader, app.header, app.error, app.info, app.warning)
    parts = [str(element.value) for kind in kinds for element in kind]
    parts += [tag for element in app.get("html") for tag in re.findall(r"<[^>]*>", element.proto.body)]
    return "\n".join([*parts, *(f"{tile.label} {tile.value} {tile.delta}" for tile in app.metric)])
