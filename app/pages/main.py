"""Entry of the dashboard, started by `app.serve`.

It lies beside the pages: Streamlit would serve a folder `pages` below the folder of the entry by rules of its own.
"""

from pathlib import Path

import streamlit as st

from app import page

icon = Path(page.__file__).with_name("icon.svg")
st.set_page_config(page_title="wattbench", page_icon=str(icon), layout="wide")
st.html("<style>.stMainBlockContainer { padding-top: 4.5rem }</style>")  # six lines of nothing otherwise
st.navigation(page.pages(), position="top").run()
