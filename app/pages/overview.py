"""Overview: the newest suite and its answer, figures of all suites over time, and what failed and why."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from pandas.util import hash_pandas_object

from analytics.interval import Interval, geometric_mean
from analytics.runs.frame import latest_execution, measured_commands
from analytics.say.advice import listed, remedy
from analytics.say.answer import find, totals
from analytics.say.blocks import Block, Figure, Group, Mark, Sentence
from analytics.say.results import answers
from analytics.text import counted, interval, printable
from app import data, live, page
from app.charts.base import plain
from bench.record import Status

ALL = "All suites"
SHOWN = 8
"""Reasons that are shown in full, and suites that are drawn: the newest ones; the tables have all."""
_NUMBERS = r"0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*"
"""What differs between messages that say the same."""
_COSTS = ("rental", "owned")
_REMEDIES = {
    Status.OUT_OF_MEMORY: "Try half the batch, bf16, or recomputed activations.",
    Status.TIMEOUT: "Raise timeout_seconds, or read at the end of its worker.log where it was at the limit.",
    Status.INVALID: "Its speed cannot be right, so none is kept. Mend what the reason says, then repeat the command.",
    Status.FAILED: "Its worker.log, in the folder of the run, says more. Mend that, then repeat the command with --retry.",
}
_LOSS = "Is the learning rate too high, or the precision too low?"
FIGURES = {
    "joules": "Energy [J]",
    "joules_estimated": "~Energy [J]",
    "grams": "CO2e [g]",
    "grams_estimated": "~CO2e [g]",
}
FIGURES |= {"usd": "Rent [USD]", "usd_owned": "Owned [USD]"}
WHEN = "YYYY-MM-DD HH:mm"
SUITES: dict[str, Any] = {"suite": st.column_config.TextColumn("Suite", width=170)}
SUITES |= {
    "began": st.column_config.DatetimeColumn("Began (UTC)", format=WHEN),
    "runs": "Runs",
    "best": "Most samples/s",
}
SUITES |= {"fastest": st.column_config.TextColumn("Fastest configuration", width="medium")}
SUITES |= {name: st.column_config.NumberColumn(title, format="%.4g") for name, title in FIGURES.items()}
SUITES |= {"host": "Host", "devices": "Devices", "executions": "Executions"}
LINKS = {"runs": "Runs", "scaling": "Scaling", "strategies": "Strategies", "tradeoffs": "Trade-offs"}


def suites(df: pd.DataFrame) -> pd.DataFrame:
    """Return a row a suite, the newest first: figures of its newest execution alone. What is not known is absent.

    Energies [J], CO2e [g] and costs [USD] are sums over whole runs, measured and estimated ones apart.
    """
    executions = df.groupby("suite", dropna=False)["execution"].nunique()
    runs = latest_execution(df)
    grams, basis, usd = 1000 * runs["emissions_kg"], runs["emissions_basis"], runs["cost_usd"]
    took = {"joules": runs["run_energy_joules"], "joules_estimated": runs["run_energy_joules_estimated"]}
    took |= {"grams": grams.where(basis == "measured"), "grams_estimated": grams.where(basis == "estimated")}
    took["usd"], took["usd_owned"] = (usd.where(runs["cost_basis"].str.startswith(b, na=False)) for b in _COSTS)
    sums = pd.DataFrame(took).groupby(runs["suite"], sort=False, dropna=False).sum(min_count=1).to_dict("records")
    rows = []
    for (suite, own), added in zip(runs.groupby("suite", sort=False, dropna=False), sums, strict=True):
        host, devices = (listed(sorted(own[name].dropna().unique())) for name in ("host", "device_name"))
        about: dict[Any, Any] = {"suite": suite, "began": own["started_at"].min(), "runs": outcomes(own)}
        where = {"host": host, "devices": devices, "executions": int(executions[suite])}
        rows.append(about | _fastest(own) | added | where)
    return pd.DataFrame(rows).sort_values("began", ascending=False, kind="stable", ignore_index=True)


def outcomes(runs: pd.DataFrame) -> str:
    """Return how runs ended: `3 ok, 1 failed, 1 skipped`."""
    counts = runs["status"].value_counts()
    order = sorted(counts.index, key=lambda status: (status != Status.OK, status == Status.SKIPPED, status))
    return ", ".join(f"{counts[status]} {printable(status).replace('_', ' ')}" for status in order)


def _timed(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[(runs["status"] == Status.OK) & (runs["samples_per_second"] > 0)]


def _fastest(runs: pd.DataFrame) -> dict[str, str | None]:
    """Return samples/s of the fastest configuration, as a geometric mean with its 95 % interval, and its name."""
    known = _timed(runs)
    if known.empty:
        return {"best": None, "fastest": None}
    means = np.log(known["samples_per_second"]).groupby(known["config_id"], dropna=False).transform("mean")
    best = known[means == means.max()]
    mean = _mean(tuple(best["samples_per_second"]))
    ends = (mean.low, mean.high) if len(best) > 2 else (None, None)  # that of two says nothing
    return {"best": interval(mean.value, *ends), "fastest": plain(str(best["label"].iloc[0]))}


@lru_cache(512)
def _mean(rates: tuple[float, ...]) -> Interval:
    """Return the mean of repeats, the same for every look at the page: of many, its interval takes a while."""
    return geometric_mean(rates)


def trends(df: pd.DataFrame) -> Figure:
    """Return the figure of the throughput of each of the newest suites over its executions.

    It is that of one configuration on one machine, so that points can be compared: the one that ran in most executions, of
    several the fastest. Of one suite it is in samples/s. Samples of several suites are unlike things, so each is a multiple
    of its own first execution, and has two or more. Points have an interval from three repeats on.
    """
    known, groups = _timed(df), list[Group]()
    newest = known.groupby("suite")["started_at"].max().sort_values(ascending=False, kind="stable")
    for suite in newest.index[:SHOWN]:
        runs = known[known["suite"] == suite]
        where = runs[["config_id", "host", "device_name"]].astype("str").fillna("").agg("\0".join, axis=1)
        ran = runs.groupby(where)[["execution", "samples_per_second"]]
        order = ran.agg({"execution": "nunique", "samples_per_second": "mean"})
        chosen = order.sort_values(["execution", "samples_per_second"]).index[-1:]
        marks = []
        for _, own in runs[where.isin(chosen)].groupby("execution"):
            mean = _mean(tuple(own["samples_per_second"]))
            low, high = (mean.low, mean.high) if len(own) > 2 else (None, None)
            marks.append(Mark(suite, mean.value, low, high, own["started_at"].min().timestamp() / 86400))
        marks.sort(key=lambda mark: mark.x)
        if len(newest) > 1:
            marks = [_multiple(mark, marks[0].value) for mark in marks] if len(marks) > 1 else []
        groups += [Group(suite, tuple(marks), tuple((mark.x, mark.value) for mark in marks))] if marks else []
    axis = "samples/s, multiple of the first execution" if len(newest) > 1 else "samples/s"
    return Figure("Throughput by suite", axis, tuple(groups), "time (UTC)")


def _multiple(mark: Mark, first: float) -> Mark:
    """Return a mark as a multiple of the first one of its suite."""
    low, high = (None if end is None else end / first for end in (mark.low, mark.high))
    return replace(mark, value=mark.value / first, low=low, high=high)


def taken(table: pd.DataFrame, columns: dict[str, str], axis: str, factor: float = 1.0) -> Figure:
    """Return the figure of columns of `suites`, by their titles; what is not known is left out."""
    groups = []
    for name, title in columns.items():
        own = table.head(SHOWN).dropna(subset=name)
        amounts = zip(own["suite"].fillna("no name"), factor * own[name].astype(float), strict=True)
        marks = tuple(Mark(suite, amount) for suite, amount in amounts)
        groups += [Group(title, marks)] if marks else []
    axis = f"{axis}, {groups[0].name}" if len(groups) == 1 else axis
    return Figure(axis, axis, tuple(groups))


def reasons(df: pd.DataFrame) -> pd.DataFrame:
    """Return why runs failed, and then why some were skipped, in the words of the newest, with a remedy if one is known.

    A row is a reason, the newest first; those that differ in numbers only are one.
    """
    lost = df[df["status"] != Status.OK]
    alike = lost["error_message"].fillna("").str.split("\n").str[0].str.replace(_NUMBERS, "#", regex=True)
    found = []
    for _, same in lost.groupby([lost["status"], lost["error_type"], alike], dropna=False, sort=False):
        last = same.iloc[-1]
        skipped = last["status"] == Status.SKIPPED
        kind = "" if skipped or pd.isna(last["error_type"]) else f"{printable(last['error_type'])}: "
        why = "no reason is known" if pd.isna(last["error_message"]) else printable(last["error_message"], 400)
        names = {c: [printable(plain(name), 80) for name in same[c].dropna().unique()] for c in ("label", "suite")}
        row = {"outcome": printable(last["status"]).replace("_", " "), "reason": kind + why, "runs": len(same)}
        row |= {"configurations": listed(names["label"]), "suites": listed(names["suite"])}
        found.append({**row, "newest": last["started_at"], "remedy": _remedy(df, same), "skipped": skipped})
    table = pd.DataFrame(found)
    order = ["skipped", "newest"]
    return table if table.empty else table.sort_values(order, ascending=[True, False], kind="stable", ignore_index=True)


def _remedy(df: pd.DataFrame, same: pd.DataFrame) -> str:
    """Return a remedy: out of memory also what is nearest of that which fitted in the same execution."""
    last = same.iloc[-1]
    if last["status"] == Status.OUT_OF_MEMORY:
        there = df[(df["suite"] == last["suite"]) & (df["execution"] == last["execution"])]
        if text := remedy(same.loc[[last.name]], there[there["status"] == Status.OK]):
            return plain(text)
    if last["status"] == Status.INVALID and "loss" in str(last["error_message"]):
        return f"{_REMEDIES[Status.INVALID].partition(' Mend')[0]} {_LOSS}"
    again = "Mend that, then measure it again."
    if last["status"] == Status.FAILED and measured_commands(same):
        return f"{_REMEDIES[Status.FAILED].partition(' Mend')[0]} {again}"
    return _REMEDIES.get(last["status"], "")


def lines(reason: Any) -> list[str]:
    """Return a row of `reasons` in words, with when and where it was, and its remedy."""
    many = f"{reason.runs} run{'s' * (reason.runs != 1)}"
    if reason.skipped:
        return [f"skipped: {many} ({reason.suites}): {reason.reason}"]
    when = "" if pd.isna(reason.newest) else f", the newest {reason.newest:%Y-%m-%d %H:%M:%S} UTC"
    out = [f"{reason.outcome}: {many}{when}", reason.reason, f"In: {reason.configurations} ({reason.suites})"]
    return [*out, f"Remedy: {reason.remedy}"] if reason.remedy else out


def answer(newest: Any, first: str) -> list[Block]:
    """Return the `first` sentence of the answer of the newest suite, a row of `suites`, and when and where it ran.

    Without such a sentence it is how fast the fastest is, or how the runs ended.
    """
    speed = "" if pd.isna(newest.best) else f"{newest.fastest}, {newest.best} samples/s."
    first, fastest = first or speed or f"{newest.runs}.", f" Fastest: {speed}" * bool(first and speed)
    where = f"began {newest.began:%Y-%m-%d %H:%M} UTC on {newest.host} ({newest.devices})"
    return [
        Sentence(f"{newest.suite}: {first}", "answer"),
        Sentence(f"Newest suite: {newest.runs}, {where}.{fastest}"),
    ]


@st.cache_data(show_spinner=False, max_entries=20)  # type: ignore[untyped-decorator]
def _first(key: str, _runs: pd.DataFrame) -> str:
    """Return the first sentence of the answer of an execution of several configurations; `key` tells its runs from others."""
    return next((next(answers(one)) for one in find(_runs)), "") if _runs["config_id"].nunique() > 1 else ""


def _tiles(df: pd.DataFrame) -> None:
    with st.container(horizontal=True):
        for label, value, note in totals(df):
            with st.container(border=True, width=295, gap="xsmall"):
                st.metric(label, f"~{value}" if "estimated" in label and value[:1].isdecimal() else value)
                st.caption(note)
    lacking = {"carbon": ("emissions_kg", "region"), "cost": ("cost_usd", "price")}
    absent = [
        f"No {what}: the suites name no {why}." for what, (column, why) in lacking.items() if df[column].isna().all()
    ]
    st.caption(" ".join(["Totals are of whole runs, with starting up and failed runs.", *absent]))


def figures(df: pd.DataFrame, table: pd.DataFrame) -> dict[str, Figure]:
    """Return throughput over time, and energy and cost of the suites of a `table`, by their headings."""
    energy = {"joules": "measured", "joules_estimated": "~ estimated"}
    cost = {"usd": "rent", "usd_owned": "owned"}
    found = {"Throughput by suite": trends(df)}
    found["Energy by suite"] = taken(table, energy, "newest execution [Wh]", 1 / 3.6e3)
    found["Cost by suite"] = taken(table, cost, "newest execution [USD]")
    return {heading: figure for heading, figure in found.items() if figure.groups}


def _figures(shown: dict[str, Figure]) -> None:
    left, right = st.columns(2)
    for heading, figure in shown.items():
        with left if figure.along else right:
            st.subheader(heading)
            page.picture(figure, heading.split()[0].lower())
            if figure.along:
                st.caption(
                    "A point is an execution: of the configuration and machine with most executions. Bars: 95 % intervals."
                )


def _reasons(table: pd.DataFrame) -> None:
    st.subheader("Runs that did not end well")
    for reason in table.head(SHOWN).itertuples():
        page.lines(lines(reason))
    with st.expander(f"All reasons ({len(table)})"):
        full = table.drop(columns="skipped")
        page.table(full.loc[:, (full != "").any()].rename(columns=str.capitalize), "failures", full=full)


def main() -> None:
    """Show the page."""
    df = page.runs("Overview", live.panel)
    page.absent("suite", df["suite"], "suite")
    suite = page.control("selectbox", "Suite", [ALL, *sorted(df["suite"].dropna().unique())], "suite")
    runs = df if suite == ALL else df[df["suite"] == suite]
    table = suites(runs)
    count = f"{counted(len(runs), 'run')} in {counted(runs['suite'].nunique(), 'suite')}: {outcomes(runs)}"
    newest = table["suite"].iloc[0]
    own = latest_execution(runs[runs["suite"].isna() if pd.isna(newest) else runs["suite"] == newest])
    key = str(hash_pandas_object(own[["run_id", "started_at", "status"]].astype("str")).sum())
    page.show([*answer(next(table.itertuples()), _first(f"{data.uri()} {key}", own)), Sentence(count)])
    with st.container(horizontal=True):
        for name, label in LINKS.items():
            page.link(name, label, **{"suites" if name == "tradeoffs" else "suite": str(table["suite"].iloc[0])})
    _figures(figures(runs, table))
    _tiles(runs)
    st.subheader("Suites")
    shown = table[[name for name in SUITES if table[name].notna().any()]]
    page.table(shown, "suites", full=table, column_config=SUITES)
    st.caption("A row is the newest execution of a suite, with totals of whole runs. ~ is estimated by a model.")
    if len(failed := reasons(runs)):
        _reasons(failed)
