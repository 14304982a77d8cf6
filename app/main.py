"""Entry of the dashboard, started by `app.serve`: its pages and nothing else."""

from pathlib import Path

import streamlit as st

st.set_page_config(page_title="wattbench", page_icon=str(Path(__file__).parent / "icon.svg"), layout="wide")
st.html("<style>.stMainBlockContainer { padding-top: 4.5rem }</style>")  # six lines of nothing otherwise
st.navigation(
    [
        st.Page("views/overview.py", title="Overview", icon=":material/list:", default=True),
        st.Page("views/runs.py", title="Runs", icon=":material/table_rows:"),
        st.Page("views/scaling.py", title="Scaling", icon=":material/show_chart:"),
        st.Page("views/strategies.py", title="Strategies", icon=":material/balance:"),
        st.Page("views/tradeoffs.py", title="Trade-offs", icon=":material/join_inner:"),
        st.Page("views/planner.py", title="Planner", icon=":material/calculate:"),
        st.Page("views/search.py", title="Search", icon=":material/search:"),
    ],
    position="top",
).run()
