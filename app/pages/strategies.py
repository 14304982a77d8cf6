"""Strategies: candidates against a baseline, a ladder step by step, what fits into memory, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import streamlit as st

from analytics.judge import compare
from analytics.judge.comparable import metric_names, usual_metrics
from analytics.judge.compare import Comparison, Matched
from analytics.judge.sides import Side
from analytics.judge.stats import SAME
from analytics.quantities import quantity
from analytics.runs.export import to_csv
from analytics.runs.frame import asked, latest_execution, summary
from analytics.say import advice
from analytics.say.answer import find
from analytics.say.blocks import Block, Sentence
from analytics.say.compare import blocks, doubt_words, labels
from analytics.say.names import metric_name, named, spoken
from analytics.say.ratios import ratios
from analytics.say.results import steps_table
from app import page
from app.charts.bars import memory_chart
from bench.record import Status
from bench.schema import AXES

FIRST, ALL = "First of each kind of work", "All strategies"
MOST = 100
"""Configurations that are compared at once: more take long."""
_cached = st.cache_data(ttl=60, max_entries=8, show_spinner="Comparing ...")


def metrics(df: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the metrics that configurations can be compared by, and the usual ones of them."""
    known, usual = metric_names(df), usual_metrics(df)
    targets = [metric for metric in compare.costs(df) if "target" in metric]
    usual = [*targets, *usual[1:]] if targets else usual  # the way to a target says more than the speed of it
    return [*usual, *(name for name in known if quantity(name).better and name not in usual)], usual


def effects(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return all that is known of the comparisons, a row an effect or a reason why there is none."""
    rows = list[dict[str, Any]]()
    for one in found:
        about = {"candidate": one.name, "baseline": one.baseline, "status": one.status, "reason": one.reason}
        about |= {"flags": " ".join(one.flags), "notes": "; ".join([*one.notes, *doubt_words(one.doubts)])}
        refused = [{"metric": metric, "reason": why} for metric, why in one.not_compared.items()]
        rows += [about | more for more in [*map(asdict, one.effects), *refused] or [{}]]
    return pd.DataFrame(rows).drop(columns=["spread"], errors="ignore")


@_cached  # type: ignore[untyped-decorator]
def _compared(
    df: pd.DataFrame, names: list[str], baseline: str | None, only: Collection[str] | None, side: str
) -> tuple[Matched, dict[str, str], list[Block]]:
    """Compare the configurations of an execution; return them, their names in words, and the answer."""
    found, sides = compare.within(df, names, baseline=baseline, only=only), [Side("suite", side, df)]
    if not found.comparisons:
        return found, {}, []
    called = {name: label.title for name, label in labels(sides, found).items()}
    return found, called, list(blocks(sides, found, SAME))


@_cached  # type: ignore[untyped-decorator]
def _more(df: pd.DataFrame) -> tuple[list[Comparison], list[Block], list[Block]]:
    """Return the steps of a ladder, what they say, and the advice that follows from the runs."""
    (found,) = find(df)
    return list(found.steps), [steps_table(found.steps)] if found.steps else [], list(advice.blocks(df))


def _candidates(df: pd.DataFrame, runs: pd.DataFrame) -> None:
    begun = runs.sort_values("started_at", kind="stable")["config_id"].dropna().unique()
    only = list(begun[:MOST]) if len(begun) > MOST else None
    names, usual = metrics(runs)
    chosen = (
        page.control("multiselect", "Compared by", names, "metrics", default=usual, format_func=metric_name) or usual
    )
    table = summary(runs)
    words = named(table)
    several = words["work"].nunique() > 1
    called = (f"{change} ({work})" if several else change for work, change in words.itertuples(index=False))
    bases = {FIRST: None} | dict(zip(called, table["name"], strict=True))
    base = bases[page.control("selectbox", "Baseline", list(bases), "baseline")]
    suite, execution = (str(runs[column].iloc[0]) for column in ("suite", "execution"))
    newest = latest_execution(df[df["suite"] == suite])["execution"].iloc[0] == execution
    found, titles, answer = _compared(runs, chosen, base, only, suite if newest else f"{suite}@{execution}")
    if not found.comparisons:
        page.show([Sentence("Nothing to compare: it takes two configurations that do the same work.", "answer")])
        return
    pairs = [(titles.get(one.name, one.name), one) for one in found.comparisons]
    drawn = [figure for name in chosen if (figure := ratios(pairs, name))]
    page.show(answer, draw=lambda: page.figure(drawn[0], "ratios-0") if drawn else None)
    places = st.columns(2)
    for index, figure in enumerate(drawn[1:]):
        with places[index % 2]:
            page.figure(figure, f"ratios-{index + 1}")
    if only:
        st.caption(f"Compared are the first {MOST} of {len(begun):,} configurations, as they were begun.")
    page.download(
        "Download all comparisons as CSV", lambda: to_csv(effects(found.comparisons)), "wattbench-compare.csv"
    )


# --- what fits into memory

OUTCOMES = ("fits", "skipped", "failed", "out of memory")
"""How the runs of a cell ended, the worst last."""
_OUTCOME = {Status.OK: "fits", Status.SKIPPED: "skipped", Status.OUT_OF_MEMORY: "out of memory"}
_HOW = {*AXES, "devices", "memory_limit_bytes"} - {"schedule"}
_BYTES = {"peak_memory_bytes": "max", "attempted_bytes": "max", "memory_available_bytes": "min"}


def memory_map(df: pd.DataFrame) -> pd.DataFrame:
    """Return a row a strategy, model and batch per device that was tried: how that ended, the worst run first.

    Columns: strategy, parameters (of the whole model; NaN where no run tells), model, batch, outcome (of OUTCOMES), worst
    (how many runs ended so), runs, those of _BYTES, share (peak of available), reason. Models in order of their size;
    strategies as they were begun, those that were only skipped last.
    """
    df = df[df["batch_size_per_device"].notna()].reset_index(drop=True)
    if df.empty:
        return df
    how = [name for name in asked(df) if name.split(".")[0] in _HOW and name != "optimizer.learning_rate"]
    fields = df[["config_id", "workload", *how, *(name for name in asked(df) if name.startswith("workload_args."))]]
    words = named(fields.drop_duplicates("config_id").set_index("config_id"))
    df["strategy"], df["model"] = df["config_id"].map(words["change"]), df["config_id"].map(words["work"])
    df["model"] = df["model"].mask(df["model"] == "", df["workload"])
    df["parameters"] = df.groupby("model")["parameters"].transform("max")
    df["batch"] = df["batch_size_per_device"].astype(int)
    ended = [_OUTCOME.get(status, "failed") for status in df["status"]]
    df["outcome"] = pd.Categorical(ended, [*OUTCOMES], ordered=True)
    df = df.assign(**{name: df.get(name, math.nan) for name in _BYTES})
    ran = df.sort_values("outcome", key=lambda outcome: outcome == "skipped", kind="stable")
    df["strategy"] = pd.Categorical(df["strategy"], ran["strategy"].unique())
    keys, rows = ["strategy", "parameters", "model", "batch"], []
    for key, runs in df.groupby(keys, dropna=False, observed=True):
        bad = runs[runs["outcome"] == runs["outcome"].max()]
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"outcome": bad["outcome"].iloc[0]}
        row |= {"worst": len(bad), "runs": len(runs), **runs.agg(_BYTES), "reason": bad["error_message"].iloc[0]}
        rows.append(row | {"share": row["peak_memory_bytes"] / row["memory_available_bytes"]})
    return pd.DataFrame(rows)


def cell(row: Any) -> list[str]:
    """Say in a few words how a cell ended: `✓ 3.2 GB`, `12 % of 26 GB`; `✗ out of memory`, `wanted 80 GB`."""
    peak, wanted, there = (
        f"{size / 1e9:.3g} GB" for size in (row.peak_memory_bytes, row.attempted_bytes, row.memory_available_bytes)
    )
    if row.outcome == "fits":
        share = [] if math.isnan(row.share) else [f"{100 * row.share:.2g} % of {there}"]
        return ["✓ fits" if math.isnan(row.peak_memory_bytes) else f"✓ {peak}", *share]
    full = row.outcome == "out of memory"
    out = [f"{'✗' if full else '!'} {row.outcome}"]
    out += [f"wanted {wanted}"] if full and not math.isnan(row.attempted_bytes) else []
    return [*out, f"{row.worst} of {row.runs} runs"] if row.worst < row.runs else out


_FORMATS = {"peak_memory_bytes": ("Peak memory", "bytes"), "attempted_bytes": ("Attempted", "bytes")}
_FORMATS |= {"memory_available_bytes": ("Memory of a device", "bytes"), "share": ("Share", "percent")}
_FORMATS |= {"parameters": ("Parameters", "compact"), "batch": ("Batch per device", "localized")}
MEMORY = {name: st.column_config.NumberColumn(title, format=how) for name, (title, how) in _FORMATS.items()}
MEMORY |= {"worst": "Runs that ended so", "runs": "Runs", "reason": "Reason"}
MEMORY |= {"strategy": "Strategy", "model": "Model", "outcome": "Outcome"}


def _memory(cells: pd.DataFrame) -> None:
    strategy = page.control("selectbox", "Memory of", [ALL, *cells["strategy"].unique()], "strategy")
    cells = cells if strategy == ALL else cells[cells["strategy"] == strategy]
    words = [cell(row) for row in cells.itertuples()]
    page.figure(memory_chart(cells, words), "memory", "Which batches fit into memory")
    st.caption("Peak of the fullest device (on a CPU: the growth of the process), or how the worst run ended.")
    page.table(cells.dropna(axis="columns", how="all"), "memory", column_config=MEMORY)


def main() -> None:
    """Show the page."""
    df = page.runs("Strategies")
    runs = page.execution(df)
    _candidates(df, runs)
    ladder, climbed, advised = _more(runs)
    if ladder:
        st.subheader("The ladder, step by step")
        metric = next(iter(compare.costs(runs)), "samples_per_second")
        if figure := ratios([(spoken(one.name), one) for one in ladder], metric):
            page.figure(figure, "ladder")
        page.show(climbed, "ladder")
    cells = _memory_map(runs)
    if len(cells):
        st.subheader("Batches that fit into memory")
        _memory(cells)
    st.subheader("What to do next")
    page.show([block for block in advised if getattr(block, "role", "") != "title"], "advice")


_memory_map = _cached(memory_map)
