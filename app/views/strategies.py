"""Strategies: candidates against a baseline, a ladder step by step, and what fits into memory."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from analytics import compare
from analytics.advise import advise
from app import page, strategies
from app.charts import strategies as charts

FIRST, ALL = "The first of each kind of work", "All strategies"
FORMATS = {"peak_memory_bytes": ("Peak memory", "bytes"), "attempted_bytes": ("Wanted at last", "bytes")}
FORMATS |= {"memory_available_bytes": ("Memory of a device", "bytes"), "share": ("Share", "percent")}
FORMATS |= {"parameters": ("Parameters", "compact"), "batch": ("Batch per device", "localized")}
MEMORY = {name: st.column_config.NumberColumn(title, format=how) for name, (title, how) in FORMATS.items()}
MEMORY |= {"worst": "Runs that ended so", "runs": "Runs", "reason": "Reason"}
MEMORY |= {"strategy": "Strategy", "model": "Model", "outcome": "Outcome"}
CANDIDATES = (
    "Marks are multiples of the baseline, bars 95 % intervals. Better or worse: the interval lies on one side of 1. "
    "Equivalent: it lies within 2 % of 1. Cannot tell: neither; *+5 repeats*: about 5 more of each would tell. Verdicts "
    "allow for all that is compared (Holm): *cannot tell among 15* is an interval that alone would tell, but among so many "
    "it may be chance. ~ is the figure of a model, not a measurement. At most 40 rows are drawn; the table has all."
)
LADDER = (
    "Each step against the one below, last all steps against the foot. On this axis factors add up. A mark is the end of a "
    "step, its bar the 95 % interval of its factor. Less, more, same (within 2 %) or cannot tell: each step by itself."
)
CELLS = (
    "A cell is a batch: the peak memory of its fullest device (on a CPU what the process grew by), and its share of what a "
    "device has, where that is known; or how the worst of its runs ended. At most 40 rows are drawn; the table has all."
)
_cached = st.cache_data(ttl=60, max_entries=8, show_spinner="Comparing ...")
_within, _ladder, _advise = _cached(compare.within), _cached(compare.ladder), _cached(advise)
_memory_map = _cached(strategies.memory_map)


def _choose(runs: pd.DataFrame) -> tuple[compare.Matched, list[strategies.Goal]]:
    """Let amount, goals and baseline be chosen; return the comparisons."""
    left, middle, right = st.columns([1, 2, 1])
    amounts = strategies.amounts(runs)
    amount = left.selectbox("Time, energy, carbon, cost of", amounts, key="amount", bind="query-params")
    known = {goal.name: goal for goal in strategies.goals(runs, amount)}
    follows = strategies.follows(runs, list(known.values()))
    usual = [name for name in known if name not in follows and (name != "accuracy" or "loss" not in known)]
    label = "Compared in (the fewer, the more can be told)"
    chosen = middle.multiselect(label, list(known), usual, key="goals", bind="query-params")
    for name, of in follows.items():
        if name not in chosen:
            middle.caption(f"Left out: {name} is {of} times one number here, with the ratios and verdicts of {of}.")
    columns = [known[name].column for name in chosen]
    found = _within(runs, columns)
    bases = [name for one in found.comparisons for name in (one.baseline, *([one.name] * (one.ended[0] > 0)))]
    base = right.selectbox("Baseline", [FIRST, *dict.fromkeys(bases)], key="baseline", bind="query-params")
    return (found if base == FIRST else _within(runs, columns, baseline=base)), [known[name] for name in chosen]


def _candidates(runs: pd.DataFrame) -> None:
    if len(parts := strategies.parts(runs)) > 1:
        count = runs["config_id"].nunique()
        label = f"These of the {count:,} configurations, as begun; each part against the first, verdicts allow for that part"
        runs = parts[st.selectbox(label, list(parts), key="part", bind="query-params")]
    found, chosen = _choose(runs)
    if not found.comparisons:
        page.lines(["There is nothing to compare: it takes two configurations that do the same work.", *found.notes])
        return
    drawn = {goal: marks for goal in chosen if (marks := strategies.marks(found.comparisons, goal))}
    st.caption(CANDIDATES)
    for pair in (list(drawn.items())[i : i + 2] for i in range(0, len(drawn), 2)):
        for column, (goal, marks) in zip(st.columns(2), pair, strict=False):
            with column:
                page.figure(charts.forest_chart(marks, goal), f"ratios-{goal.name}", f"Ratios: {goal.name}")
    page.table(strategies.table(found.comparisons, chosen), "candidates", full=strategies.effects(found.comparisons))
    if said := [
        *strategies.remarks(found.comparisons),
        *found.notes,
        *strategies.unknown(strategies.goals(runs, strategies.amounts(runs)[0])),
    ]:
        page.lines(said)


def _steps(runs: pd.DataFrame) -> None:
    found = _ladder(runs)
    if not found:
        st.info("The runs of this execution are no ladder. Type in a terminal:", icon=":material/info:")
        st.code("bench run suites/ladder.yaml", language=None)
        return
    goals = strategies.goals(runs, strategies.amounts(runs)[0])
    drawn = {goal.name: (goal, steps) for goal in goals if (steps := strategies.steps(found, goal))}
    if drawn:
        st.caption(LADDER)
        name = st.selectbox("Figure", list(drawn), key="step", bind="query-params")
        goal, steps = drawn[name]
        page.figure(charts.waterfall_chart(steps, goal), "ladder", f"The ladder step by step: {name}")
    page.table(strategies.table(found, [goal for goal, _ in drawn.values()]), "steps", full=strategies.effects(found))
    if said := strategies.remarks(found):
        page.lines(said)


def _memory(runs: pd.DataFrame) -> None:
    told = _memory_map(runs)
    if told.empty:
        st.info("No run of this execution tells its batch. Type in a terminal:", icon=":material/info:")
        st.code("bench run suites/memory.yaml", language=None)
        return
    strategy = st.selectbox("Strategy", [ALL, *told["strategy"].unique()], key="strategy", bind="query-params")
    shown = told if strategy == ALL else told[told["strategy"] == strategy]
    st.caption(CELLS)
    page.figure(charts.memory_chart(shown), "memory", "What fits into memory, by strategy, model and batch")
    page.table(shown.dropna(axis="columns", how="all"), "memory", column_config=MEMORY)


runs = page.execution(page.runs("Strategies"))
page.lines(strategies.advised(_advise(runs)))
st.subheader("Candidates against a baseline")
_candidates(runs)
st.subheader("The ladder: what each step brings")
_steps(runs)
st.subheader("What fits into memory")
_memory(runs)
