"""What all pages share: the runs, or the reason why there are none.

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
