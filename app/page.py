"""What all pages share: what was read from the store, or the reason why there is nothing.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe` only, which interpret
neither Markdown nor HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from app import data
from bench import tracking

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


def lines(sentences: Sequence[str]) -> None:
    """Show sentences in a box, as text."""
    with st.container(border=True):
        st.text("\n".join(sentences))
