"""Search: what a search found, how it went, what is known of each trial, and what the search itself took."""

from __future__ import annotations

from itertools import combinations

import streamlit as st
from pydantic import ValidationError

from analytics.words import printable
from app import page
from app.charts import search as charts
from app.searches import Document, table, told, took
from bench.suites import yaml as yamlfile


def _pick() -> Document:
    """Let a study be chosen, the newest first; stop the page where its document cannot be read."""
    studies = {printable(document["study"]): document for document in page.searches("Search")}
    page.absent("study", studies, "study")
    study = st.selectbox("Study", list(studies), key="study", bind="query-params")
    try:
        shown = Document.model_validate(studies[study])
    except ValidationError as error:
        wrong = error.errors()[0]
        st.error("This search cannot be shown: its document is torn, or of another version.", icon=":material/error:")
        st.text(printable(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", 300))
        st.stop()
    return shown


def _front(shown: Document) -> None:
    pairs = {f"{x.name} and {y.name}": (x, y) for x, y in combinations(shown.goals, 2)}
    if pairs:
        st.subheader("What no other trial beats")
        st.caption(
            "Filled marks are full measurements, open ones probes: one short run. Bars are 95 % intervals. "
            "The star is the knee: of the front, the nearest to the best values of all objectives."
        )
        x, y = pairs[st.selectbox("Objectives", list(pairs), key="objectives", bind="query-params")]
        page.figure(charts.front_chart(shown, x, y), "front", "Two objectives of the trials, and the front")


def _trials(shown: Document) -> None:
    st.subheader("Trials")
    order = sorted(shown.trials, key=lambda trial: (not trial.knee, not trial.front, trial.state != "complete"))
    found = table(shown.changed(trials=order))
    digits = {name: st.column_config.NumberColumn(format="%.6g") for name in found.select_dtypes("float")}
    page.table(found, "search", column_config=digits)
    numbers = {trial.number: trial for trial in order}
    trial = numbers[st.selectbox("One trial (the knee and the front first)", list(numbers), key="trial")]
    cost = f"from the {trial.source}; its runs took {', '.join(took(trial).values())}"
    lines = [*told(trial, shown.goals), cost, *(f"run {run}" for run in trial.runs)]
    page.lines([printable(line, 500) for line in lines])
    with st.expander("What this trial set, as in a suite"):
        st.code(yamlfile.write(trial.params), language="yaml")


def _course(shown: Document) -> None:
    st.subheader("How the search went")
    st.caption("Grey marks are trials, lines the best so far. Hypervolume: what they beat, in all objectives at once.")
    parts = [(g.title, [(float(t.number), t.values[g.name]) for t in shown.complete], g.sign) for g in shown.goals]
    shares = [(step["trial"], 100 * step["share"]) for step in shown.hypervolume]
    parts += [("hypervolume [% of final]", shares, -1)] if shares else []
    columns = st.columns(3 if len(parts) % 3 == 0 else 2)
    for index, part in enumerate(parts):
        with columns[index % len(columns)]:
            page.figure(charts.history_chart(*part), f"history-{index}", "Figures of the trials and the best so far")
    if any(shown.importance.values()):
        st.subheader("What matters")
        page.figure(charts.importance_chart(shown.importance), "importance", "How much each parameter matters")
    st.subheader("Parameters and objectives")
    st.caption(
        "A line is a trial, orange on the front. Values stand in order, not to scale. Drag along an axis to pick."
    )
    page.figure(charts.parallel_chart(shown), "parallel", "Parameters and objectives of each trial")


shown = _pick()
ended = f"Ended: {shown.ended}" if shown.ended else "Running, or stopped before its end"
when = f", as of {shown.written_at:%Y-%m-%d %H:%M:%S} UTC" if shown.written_at else ""
st.text(printable(f"{ended}{when}. {shown.sampler} on {shown.machine}", 500))
if shown.confirmed:
    st.subheader("The best, repeated in turn")
    st.caption("Run again by turns and more often: where they differ from what the search found, these figures count.")
    page.lines(shown.confirmed)
    st.subheader("What the search found")
    st.caption("Sentences, front and table below are those of the search itself, before its best were repeated.")
page.lines([*shown.sentences, *shown.notes] or ["Nothing can be said yet."])
if shown.complete:
    _front(shown)
if shown.trials:
    _trials(shown)
if shown.complete:
    _course(shown)
st.subheader("What the search itself took")
with st.container(horizontal=True):
    for label, value in {"Trials": shown.spent.trials, "Runs": shown.spent.runs, **took(shown.spent)}.items():
        st.metric(label, value, border=True, width="content")
