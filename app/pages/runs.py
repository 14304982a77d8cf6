"""Runs: the list of all runs with filters; one of them in full, or two side by side (see `app.pages.run`)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import pandas as pd
import streamlit as st
from pandas.api import types

from analytics.judge.compare import Configurations, Effect
from analytics.quantities import quantity
from analytics.runs.export import defused, to_csv
from analytics.runs.frame import asked
from analytics.runs.store import MLFLOW_RUN
from analytics.say.blocks import Block, Sentence
from analytics.say.names import plain as worded
from analytics.say.table import verdict
from analytics.text import number, printable, repeats_words, written
from app import data, page
from app.charts.base import plain
from app.pages.overview import outcomes
from bench.errors import UserError
from bench.registry import did_you_mean
from bench.store import artifacts as stored

AT_ONCE = 200
"""Rows of a page of the table."""
_FACTS = {
    "label": "Configuration",
    "suite": "Suite",
    "status": "Outcome",
    "devices": "Devices",
    "emissions_basis": "CO2e from energy",
    "grade": "Grade",
    "started_at": "Started (UTC)",
    "precision": "Precision",
    "flags": "Flags",
    "device_name": "Device",
    "host": "Host",
    "execution": "Execution",
    "repeat": "Repeat",
}
"""Headings of columns that are no quantities."""
USUAL = (
    *("label", "suite", "status", "devices", "samples_per_second", "joules_per_sample", "joules_per_sample_estimated"),
    *("emissions_kg", "emissions_basis", "cost_usd", "step_seconds_median", "peak_memory_bytes", "grade", "started_at"),
    *("precision", "validation_loss", "duration_seconds", "flags", "device_name", "host", "execution", "repeat"),
)
"""Columns that are shown unless others are chosen."""

QUICK = {"suite": "Suite", "execution": "Execution", "status": "Outcome", "device_name": "Device", "host": "Host"}
QUICK |= {"grade": "Grade"}
SEARCHED = ("label", "run_id", "error_type", "error_message", "flags")


def title(name: str) -> str:
    """Return the heading of a column: its name and unit; ~ before the figures of a model."""
    return _FACTS.get(name) or quantity(name).heading


def columns(df: pd.DataFrame) -> list[str]:
    """Return all columns in the order of the table, those that nothing is known of last."""
    usual = [name for name in USUAL if name in df]
    rest = sorted((str(name) for name in df if name not in usual), key=lambda name: (bool(df[name].isna().all()), name))
    return [*usual, *rest]


def scaled(df: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return some columns in the units of their headings, which `title` gives."""
    return pd.DataFrame({name: df[name] * quantity(name).factor if numeric(df[name]) else df[name] for name in names})


def headings(df: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """Return the headings of some columns; none with a unit over text that only has a name like a figure's."""
    return {name: title(name) if name in USUAL or numeric(df[name]) else name for name in names}


def numeric(column: pd.Series) -> bool:
    """Whether a column has numbers, which can have a unit."""
    return types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)


class FilterError(UserError):
    """A condition cannot be understood; the message names the field and says what can be."""


_COMPARED: dict[str, Callable[[Any, Any], Any]] = {"=": operator.eq, "==": operator.eq, "!=": operator.ne}
_COMPARED |= {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r'\s*([^\s<>=!"]+)(?:\s*(>=|<=|==|!=|=|>|<)|\s+(contains|is)\s)\s*("[^"]*"|[^"]*?)\s*', re.I)
_HEADINGS = {title(name).casefold(): name for name in USUAL}
_AND = re.compile(r'("[^"]*")|\s+and\s+', re.I)


def matching(df: pd.DataFrame, where: str) -> pd.Series:
    """Say of each run whether it fulfils all conditions, `devices >= 2 and precision == bf16`; all do without one.

    A condition is FIELD OPERATOR VALUE, in base units. Numbers and times: == != > >= < <=; text: == != contains, upper
    and lower case alike, in double quotes where it has signs or `and`; `FIELD is known` and `is unknown`. What is not
    known fulfils no other condition. Raises FilterError.
    """
    kept = pd.Series(True, index=df.index)
    if not where.strip():
        return kept
    if where.count('"') % 2:
        raise FilterError(f'a quotation mark is open: {printable(where)!r} needs another "')
    parts = _AND.sub(lambda found: found[1] or "\0", where.replace("\0", " ")).split("\0")
    for part in parts:
        found = _CONDITION.fullmatch(part)
        if found is None or not found[4]:
            example = "devices >= 2 and precision == bf16"
            raise FilterError(f"{printable(part)!r} is no condition: write FIELD OPERATOR VALUE, such as {example}")
        name, sign, value = found[1], (found[2] or found[3]).lower(), found[4].strip('"')
        name = _HEADINGS.get(name.casefold(), name)
        if value.startswith("'"):
            raise FilterError(f'{printable(value)} is in single quotes: write "..."')
        if name not in df:
            near = did_you_mean(name, map(str, df.columns)).partition("allowed:")[0].strip()
            raise FilterError(
                f"there is no field {printable(name)!r}: {near or 'see the list of fields, under Choose columns'}"
            )
        kept &= _condition(df[name], name, sign, value)
    return kept


def _condition(column: pd.Series, name: str, sign: str, value: str) -> pd.Series:
    if sign == "is":
        if value.lower() not in ("known", "unknown"):
            raise FilterError(f"{name} is {printable(value)!r}: write {name} is known, or {name} is unknown")
        return column.notna() if value.lower() == "known" else column.isna()
    wanted: Any = value
    if types.is_numeric_dtype(column.dtype):
        kind = "a number"
        try:
            wanted = float(value)
        except ValueError:
            wanted = math.nan
    elif types.is_datetime64_any_dtype(column.dtype):
        kind = "a time in UTC, such as 2026-01-31 or 2026-01-31T12:30"
        wanted = pd.to_datetime(value, utc=True, errors="coerce", format="ISO8601")
    else:
        if sign not in ("=", "==", "!=", "contains"):
            raise FilterError(f"{name} is text: use ==, != or contains, not {sign}")
        column, wanted = column.astype("str").str.casefold(), value.casefold()
        if sign == "contains":
            return column.str.contains(wanted, regex=False, na=False).astype(bool)
        kept: pd.Series = column.notna() & _COMPARED[sign](column, wanted)
        return kept
    if sign == "contains" or pd.isna(wanted) or wanted in (math.inf, -math.inf):
        raise FilterError(f"{name} is {kind}: {sign} {printable(value)!r} says nothing of it")
    numbers: pd.Series = column.notna() & _COMPARED[sign](column, wanted).fillna(False).astype(bool)
    return numbers


def chosen(df: pd.DataFrame, quick: Mapping[str, Sequence[str]], text: str, where: str) -> pd.DataFrame:
    """Return the runs with one of the values of each quick filter that has any, with a text, and by conditions."""
    kept = matching(df, where)
    for name, values in quick.items():
        if values:
            kept &= df[name].isin(list(values))
    if text.strip():
        sought = text.strip().casefold()
        hits = [df[name].str.casefold().str.contains(sought, regex=False, na=False) for name in SEARCHED]
        kept &= pd.concat(hits, axis=1).any(axis=1)
    return df[kept]


def ordered(df: pd.DataFrame, by: str, *, descending: bool) -> pd.DataFrame:
    """Return the runs sorted by a column; what is not known comes last."""
    return df.sort_values(by, ascending=not descending, kind="stable", na_position="last")


def shown(value: Any) -> str:
    """Print a value of any column; nothing for what is not known."""
    if value is None or (not isinstance(value, (list, dict)) and pd.isna(value)):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return number(float(value)) if isinstance(value, float) else printable(value, 300)


def facts(a: Mapping[str, str], b: Mapping[str, str]) -> pd.DataFrame:
    """Return a row a fact of two runs: what, in the first, in the second."""
    names = [*a, *(name for name in b if name not in a)]
    return pd.DataFrame([(name, a.get(name, ""), b.get(name, "")) for name in names], columns=["What", "A", "B"])


def wanted(df: pd.DataFrame, run: pd.Series) -> dict[str, str]:
    """Return what was asked of a run, as text."""
    names = [*asked(df), "seed", "repeat"]
    return {name: text for name in names if (text := shown(run.get(name)))}


_ABOUT = ("suite", "execution", "host", "device_name", "environment", "commit", "dataset", "dataset_digest")


def surroundings(run: pd.Series) -> dict[str, str]:
    """Return where a run ran, as far as its row says."""
    return {name: text for name in _ABOUT if (text := shown(run.get(name)))}


def measured(df: pd.DataFrame) -> list[str]:
    """Return the columns with figures: numbers that were not asked for."""
    fixed = {*asked(df), "seed", "repeat", "ladder"}
    return [name for name in columns(df) if types.is_float_dtype(df[name].dtype) and name not in fixed]


def figures(df: pd.DataFrame, a: pd.Series, b: pd.Series) -> pd.DataFrame:
    """Return a row a figure that both runs have: A, B, their ratio, and the verdict on their configurations."""
    effect, rows = _effects(df, a, b), []
    for name in measured(df):
        if pd.notna(a[name]) and pd.notna(b[name]):
            ratio = b[name] / a[name] if a[name] > 0 and b[name] > 0 else math.nan
            factor = quantity(name).factor
            rows.append((title(name), factor * a[name], factor * b[name], ratio, _verdict(effect(name))))
    return pd.DataFrame(rows, columns=["Figure", "A", "B", "B / A", "Configurations, B / A"])


def _effects(df: pd.DataFrame, a: pd.Series, b: pd.Series) -> Callable[[str], Effect | str]:
    """Return what the configuration of B does to a figure compared with that of A, or why that is not known."""
    pair = (b["config_id"], a["config_id"])
    here = df[(df["suite"] == a["suite"]) & (df["execution"] == a["execution"])]
    if any(map(pd.isna, pair)) or not {a.name, b.name} <= {*here.index}:
        return lambda _: "not runs of one execution"
    if pair[0] == pair[1]:
        return lambda _: "repeats of one configuration"
    return partial(Configurations(here).effect, *map(str, pair))


def _verdict(effect: Effect | str) -> str:
    if isinstance(effect, str):
        return worded(effect)
    more = "" if effect.more_repeats is None else f" ({repeats_words(effect.more_repeats)})"
    return f"{verdict(effect)}{more}: {written(effect.interval)}"


def by_name(df: pd.DataFrame, run: str | None) -> pd.Series | None:
    """Return the run that MLflow knows by a name, or None."""
    found = df[df[MLFLOW_RUN] == run] if MLFLOW_RUN in df else df[:0]
    return found.iloc[0] if len(found) else None


def about(run: pd.Series) -> list[str]:
    """Return the configuration of a run, how it ended and when, and where it ran."""
    names = ("suite", "host", "device_name", "commit")
    where = [f"{name.replace('_name', '')} {text}" for name in names if (text := shown(run[name]))]
    ended = f"{shown(run['status']).replace('_', ' ')}, started {shown(run['started_at'])} UTC"
    grade = f", grade {shown(run['grade'])} (A best, C worst)" if shown(run["grade"]) else ""
    return [plain(shown(run["label"])), f"{ended}{grade}", ", ".join(where)]


def answer(df: pd.DataFrame, found: pd.DataFrame) -> list[Block]:
    """Return how many runs match and how they ended, and which is the fastest."""
    count = f"{len(found):,}" if len(found) == len(df) else f"{len(found):,} of {len(df):,}"
    out: list[Block] = [
        Sentence(f"{count} run{'s' * (len(df) != 1)}{': ' * bool(len(found))}{outcomes(found)}", "answer")
    ]
    timed = found[found["samples_per_second"] > 0].sort_values("samples_per_second")
    for _, best in timed.tail(1).iterrows():
        speed = f"{number(best['samples_per_second'])} samples/s ({best['suite']})"
        out.append(Sentence(f"Fastest: {plain(shown(best['label']))}, {speed}"))
    return out


def _filtered(df: pd.DataFrame) -> pd.DataFrame:
    """Let runs be filtered; all of it is kept in the address."""
    hint = "devices >= 2 and precision == bf16"
    where = page.control("text_input", "Filter by any field", key="where", at=st, placeholder=hint, max_chars=1000)
    quick = {
        name: page.control("multiselect", label, sorted(df[name].dropna().unique()), name, placeholder="any")
        for name, label in QUICK.items()
    }
    text = page.control("text_input", "Text in configuration, error or flags", key="text")
    try:
        return chosen(df, quick, text, where)
    except FilterError as error:
        st.error("The filter is invalid and leaves no run out.", icon=":material/error:")
        st.text(str(error))
        return chosen(df, quick, text, "")


def _arranged(df: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Let the order and the columns be chosen; return the runs of one page, and the columns."""
    every = columns(df)
    usual = [name for name in every if name in USUAL and df[name].notna().any()]
    by = page.control("selectbox", "Sort by", every, "sort", index=every.index("started_at"), format_func=title)
    ways = ["largest first", "smallest first"]
    way = page.control("segmented_control", "Order", ways, "order", default=ways[0], required=True)
    everything = page.control("toggle", "All columns", key="all")
    with st.sidebar.popover("Choose columns; names of fields"):
        names = page.control("multiselect", "Columns", every, "columns", at=st, default=usual, format_func=title)
        factors = [quantity(name).factor for name in every]
        fields = pd.DataFrame({"Field": every, "Heading": map(title, every), "= field ×": factors})
        st.dataframe(defused(fields), hide_index=True, height=300)
    pages = max(1, -(-len(found) // AT_ONCE))
    place = min(pages, st.pagination(pages, key="page", bind="query-params")) if pages > 1 else 1
    first = AT_ONCE * (place - 1)
    part = ordered(found, by, descending=way == ways[0])[first : first + AT_ONCE]
    if len(part):
        st.caption(
            f"{first + 1:,} to {first + len(part):,} of {len(found):,} runs that match, {len(df):,} in all. "
            "Select a row to open its run below, or two rows to compare them."
        )
    return part, every if everything else names or usual


def _courses(ids: list[str], at: Any) -> list[list[float] | None]:
    """Return the step times of the runs of a table; absent ones are asked for anew when the store was read again."""
    kept = st.session_state.get("courses", {})
    known = {run: kept[run] for run in ids if run in kept and (kept[run][0] or kept[run][1] == at)}
    found = stored.courses([run for run in ids if run not in known], data.uri())
    st.session_state["courses"] = known = {run: known.get(run) or (found.get(run), at) for run in ids}
    return [known[run][0] for run in ids]


def _list(df: pd.DataFrame) -> list[str]:
    """Show the runs that match; return MLflow's names of those that are picked."""
    spot = st.container()
    found = _filtered(df)
    with spot:
        page.show(answer(df, found))
    part, names = _arranged(df, found)
    if part.empty:
        st.info("No run matches the filters.", icon=":material/filter_alt_off:")
        return []
    table = scaled(part, names)
    if "label" in table:
        table["label"] = table["label"].map(plain, na_action="ignore")
    if "status" in table:
        table["status"] = table["status"].str.replace("_", " ")
    config: dict[str, Any] = {**headings(part, names)}
    digits = [name for name in names if part[name].dtype == "float64"]
    config |= {name: st.column_config.NumberColumn(config[name], format="%.4g") for name in digits}
    config["label"] = st.column_config.TextColumn(title("label"), width=280)
    ids = list(part[MLFLOW_RUN])
    table = defused(table)
    if any(courses := _courses(ids, data.runs().at)):
        table.insert(min(8, len(names)), "course", courses)
        config["course"] = st.column_config.LineChartColumn("Step times", y_min=0)
    key = f"list-{crc32(''.join(ids).encode())}"
    picked = st.dataframe(table, column_config=config, key=key, hide_index=True, placeholder="", on_select="rerun")
    page.download(f"Download all {len(found):,} as CSV", lambda: to_csv(found), "wattbench-runs.csv", "text/csv")
    labels = {run: " · ".join(about(row)[:2]) for run, (_, row) in zip(ids, part.iterrows(), strict=True)}
    a, b = (
        place.selectbox(label, ids, None, labels.get, key=key, placeholder=hint)
        for place, label, key, hint in zip(
            st.columns(2), ("Open", "Compare with"), ("open", "with"), ("a run", "another run"), strict=True
        )
    )
    rows = [ids[index] for index in picked.selection.rows]
    return rows or [run for run in (a, b) if run]


def _go(*names: str) -> None:
    """Put MLflow's names of the runs that are shown alone into the address, or none."""
    for key in ("run", "other"):
        st.query_params.pop(key, None)
    st.query_params.update(zip(("run", "other"), names, strict=False))


def main() -> None:
    """Show the page."""
    from app.pages import run

    df = page.runs("Runs")
    named = [st.query_params[name] for name in ("run", "other") if name in st.query_params]
    picked = [row for name in named if (row := by_name(df, name)) is not None]
    if picked:
        st.button("Back to the list", icon=":material/arrow_back:", on_click=_go)
    if len(picked) < len(named):
        rest = "only one of the two runs of this address." if picked else "no run of this address; here are all."
        st.info(f"The store has {rest}", icon=":material/info:")
    if not picked:
        names = _list(df)
        picked = [row for name in names[:2] if (row := by_name(df, name)) is not None]
        if picked:
            st.divider()
            st.button("Show this alone, at an address to share", icon=":material/link:", on_click=_go, args=names[:2])
        if len(names) > 2:
            st.caption("More than two runs are picked: the first two of them are compared.")
    if picked:
        (run.two if len(picked) == 2 else run.one)(df, *picked)
