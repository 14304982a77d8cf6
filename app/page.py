"""What all pages share: the runs or the reason why there are none, and tables that are safe to show and to download.

Text of runs comes from whoever wrote to the store. It is shown by `st.text` and `st.dataframe` only, which interpret
neither Markdown nor HTML.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import data
from bench import tracking


def runs(title: str) -> pd.DataFrame:
    """Show the title and when the store was read; return its runs, or say what to do and stop the page."""
    st.title(title)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Read again", icon=":material/refresh:"):
            data.refresh()
        when = st.empty()
    try:
        df, read_at = data.load()
    except tracking.StoreError as error:
        st.error("The runs could not be read.", icon=":material/error:")
        st.text(str(error))
        st.stop()
    when.caption(f"Read at {read_at:%Y-%m-%d %H:%M:%S} UTC")
    if df.empty:
        st.info("There are no runs yet. Type in a terminal:", icon=":material/info:")
        st.code("bench run suites/scaling.yaml", language=None)
        st.text(f"Looked in: {tracking.shown(data.uri())}")
        st.stop()
    return df


def plain(df: pd.DataFrame) -> pd.DataFrame:
    """Return a copy to show: text that spreadsheets take for a formula gets an apostrophe, times are plain UTC."""
    copy = df.copy()
    for name in copy.columns:
        if isinstance(copy[name].dtype, pd.DatetimeTZDtype):
            copy[name] = copy[name].dt.tz_convert(None)
        elif not pd.api.types.is_numeric_dtype(copy[name].dtype):
            text = copy[name].astype("str")
            copy[name] = text.mask(text.str.match(r"[=+\-@\t\r\n]", na=False), "'" + text)
    return copy
