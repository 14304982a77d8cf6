"""Overview: what runs now, which suites were run, what they took together, and what failed and why."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analytics.answer import totals
from app import live, page
from app.overview import lines, reasons, suites
from bench.record import Status

ALL = "All suites"
MOST = 8  # reasons that are told in full; the table has all
TALL = 20  # rows up to which the table of suites is shown whole
FIGURE = "%.4g"
SUITES = {
    "suite": st.column_config.TextColumn("Suite", width=170),
    "began": st.column_config.DatetimeColumn("Newest began (UTC)", format="YYYY-MM-DD HH:mm"),
    "runs": "Its runs",
    "best": "Most samples/s (95 %)",
    "joules": st.column_config.NumberColumn("Energy [J], measured", format=FIGURE),
    "joules_estimated": st.column_config.NumberColumn("~Energy [J], estimated", format=FIGURE),
    "grams": st.column_config.NumberColumn("CO2e [g], energy measured", format=FIGURE),
    "grams_estimated": st.column_config.NumberColumn("~CO2e [g], energy estimated", format=FIGURE),
    "usd": st.column_config.NumberColumn("Rent [USD]", format=FIGURE),
    "usd_owned": st.column_config.NumberColumn("Owned [USD]", format=FIGURE),
    "fastest": st.column_config.TextColumn("Fastest configuration", width="medium"),
    "host": "Host",
    "devices": "Devices",
    "executions": "Executions in all",
}
REASONS = {
    "outcome": "Outcome",
    "reason": st.column_config.TextColumn("Why", width="large"),
    "runs": "Runs",
    "configurations": "Configurations",
    "suites": "Suites",
    "newest": st.column_config.DatetimeColumn("Newest (UTC)", format="YYYY-MM-DD HH:mm"),
    "remedy": st.column_config.TextColumn("What to do", width="large"),
}
PAGES = {
    "views/runs.py": "Its runs",
    "views/scaling.py": "How it scales",
    "views/strategies.py": "Its strategies compared",
    "views/tradeoffs.py": "Its trade-offs",
}


def _show_totals(df: pd.DataFrame) -> None:
    counts = df["status"].value_counts()
    ended = [("Suites", df["suite"].nunique()), ("Runs", len(df))]
    ended += [(str(status).replace("_", " "), int(counts.get(status, 0))) for status in Status if counts.get(status, 0)]
    with st.container(horizontal=True):
        for label, count in ended:
            st.metric(label, count, border=True, width=160)
    with st.container(horizontal=True):
        for label, value, note in totals(df):
            with st.container(border=True, width=295, gap="xsmall"):
                st.metric(label, f"~{value}" if "estimated" in label and value[:1].isdecimal() else value)
                st.caption(note)
    lacking = {"carbon": ("emissions_kg", "region"), "cost": ("cost_usd", "price")}
    for what, (column, why) in lacking.items():
        if df[column].isna().all():
            st.caption(f"No {what}: the suites name no {why}, and none is guessed.")
    st.caption("Totals are of whole runs: starting up and runs that failed were paid for too.")


def _show_suites(df: pd.DataFrame, chosen: str) -> None:
    st.subheader("Suites")
    found = suites(df)
    shown = found[[name for name in SUITES if found[name].notna().any()]]
    options = {"column_config": SUITES, "height": "content" if len(found) <= TALL else "auto"}
    choice = page.table(shown, "suites", full=found, on_select="rerun", selection_mode="single-row", **options)
    st.caption(
        "A row is the newest execution of a suite. Most samples/s: of its fastest configuration, whatever it trains; a mean "
        "over repeats, from three on with its 95 % interval. Energy, CO2e and cost are of whole runs; ~ marks what rests on "
        "a model."
    )
    rows = [row for row in choice.selection.rows if row < len(found)]
    suite = found["suite"].iloc[rows[0]] if rows else chosen
    if suite == ALL:
        st.caption("Choose a suite, in the table or above, to go on to its figures.")
        return
    with st.container(horizontal=True):
        for view, label in PAGES.items():
            key = "suites" if view == "views/tradeoffs.py" else "suite"
            st.page_link(view, label=label, icon=":material/arrow_forward:", query_params={key: str(suite)})


def _show_table(found: pd.DataFrame, name: str) -> None:
    with st.expander(f"All {len(found)} reasons as a table" if len(found) > MOST else "As a table"):
        page.table(found.loc[:, (found != "").any()], name, full=found, column_config=REASONS)


live.catch_up()
df = page.runs("Overview", live.panel)
page.absent("suite", df["suite"], "suite")
suite = st.selectbox("Suite", [ALL, *sorted(df["suite"].dropna().unique())], key="suite", bind="query-params")
shown = df if suite == ALL else df[df["suite"] == suite]
_show_totals(shown)
_show_suites(shown, suite)
st.subheader("What failed, and why")
failed, left_out = reasons(shown), reasons(shown, skipped=True)
for reason in failed.head(MOST).itertuples():
    page.lines(lines(reason))
if failed.empty:
    st.text("Every run ended well, or was skipped for a stated reason.")
else:
    _show_table(failed, "failures")
if not left_out.empty:
    st.subheader("What was skipped, and why")
    st.caption("These are no failures: this machine, or a library, cannot do them, or what they need was not there.")
    page.lines([line for reason in left_out.head(MOST).itertuples() for line in lines(reason, short=True)])
    _show_table(left_out, "skips")
