"""The list of runs as the Runs page shows it: headings with units, which runs match, how two of them differ."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.api import types

from analytics.frame import IDENTITY, asked
from analytics.store import MLFLOW_RUN
from analytics.words import number, printable
from bench.errors import UserError
from bench.record import Status
from bench.registry import did_you_mean

TITLES = {"label": "Configuration", "suite": "Suite", "status": "Outcome", "devices": "Devices"}
TITLES |= {"samples_per_second": "Samples/s", "joules_per_sample": "J/sample, measured"}
TITLES |= {"joules_per_sample_estimated": "~ J/sample, estimated", "emissions_kg": "CO2e, whole run [g]"}
TITLES |= {
    "emissions_basis": "CO2e from energy",
    "cost_usd": "Cost, whole run [USD]",
    "step_seconds_median": "Median step [s]",
}
TITLES |= {"peak_memory_bytes": "Peak memory [MB]", "grade": "Grade", "started_at": "Started (UTC)"}
TITLES |= {"precision": "Precision", "validation_loss": "Validation loss"}
TITLES |= {"duration_seconds": "Whole run [s]", "flags": "Flags", "device_name": "Device", "host": "Host"}
TITLES |= {"execution": "Execution", "repeat": "Repeat"}
"""Columns that are shown unless others are chosen, with their headings."""

QUICK = {"suite": "Suite", "execution": "Execution", "status": "Outcome", "device_name": "Device", "host": "Host"}
QUICK |= {"grade": "Grade"}
SEARCHED = ("label", "run_id", "error_type", "error_message", "flags")
_FROM_END = (
    (r"(joules)_per_(sample|token)$", 1.0, "J/{1}"),
    (r"(emissions)_kg_per_million_(\w+)$", 1000.0, "g CO2e/million {1}"),
    (r"(cost)_usd_per_million_(\w+)$", 1.0, "USD/million {1}"),
    (r"(flops)_per_second(_per_device)?$", 1e-9, "GFLOP/s"),
    (r"(samples|tokens)_per_second(_per_device)?$", 1.0, "{0}/s"),
    (r"(flops)_per_(\w+)$", 1e-9, "GFLOP"),
    (r"(^|_)joules(_cpu|_gpu|_dram|_node)?$", 1.0, "J"),
    (r"(^|_)(seconds|seconds_median|seconds_p95|seconds_to_target)$", 1.0, "s"),
    (r"(^|_)watts$", 1.0, "W"),
    (r"(^|_)bytes$", 1e-6, "MB"),
    (r"(^|_)kg$", 1000.0, "g CO2e"),
    (r"(^|_)usd$", 1.0, "USD"),
    (r"(^|_)hz(_mean)?$", 1e-9, "GHz"),
    (r"(^|_)celsius(_max)?$", 1.0, "°C"),
    (r"(^|_)(share|share_ideal|utilization|accuracy|accuracy_change|error)$", 100.0, "%"),
)


def unit(name: str) -> tuple[float, str]:
    """Return what a figure is multiplied by to be shown, and its unit; (1, "") for a plain number."""
    for pattern, factor, text in _FROM_END:
        found = re.search(pattern, name.removesuffix("_estimated"))
        if found:
            return factor, text.format(*found.groups())
    return 1.0, ""


def estimated(name: str) -> bool:
    """Whether a figure is that of a model, by its name."""
    return "estimated" in name


def title(name: str) -> str:
    """Return the heading of a column: its name and unit; ~ before the figures of a model."""
    shown = unit(name)[1]
    return TITLES.get(name) or f"{'~ ' * estimated(name)}{name}{f' [{shown}]' * bool(shown)}"


def columns(df: pd.DataFrame) -> list[str]:
    """Return all columns in the order of the table, those that nothing is known of last."""
    usual = [name for name in TITLES if name in df]
    rest = sorted((str(name) for name in df if name not in usual), key=lambda name: (bool(df[name].isna().all()), name))
    return [*usual, *rest]


def scaled(df: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return some columns in the units of their headings, which `title` gives."""
    return pd.DataFrame({name: df[name] * unit(name)[0] if numeric(df[name]) else df[name] for name in names})


def headings(df: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """Return the headings of some columns; none with a unit over text that only has a name like a figure's."""
    return {name: title(name) if name in TITLES or numeric(df[name]) else name for name in names}


def numeric(column: pd.Series) -> bool:
    """Whether a column has numbers, which can have a unit."""
    return types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)


class FilterError(UserError):
    """A condition cannot be understood; the message names the field and says what can be."""


_COMPARED: dict[str, Callable[[Any, Any], Any]] = {"=": operator.eq, "==": operator.eq, "!=": operator.ne}
_COMPARED |= {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r'\s*([^\s<>=!"]+)(?:\s*(>=|<=|==|!=|=|>|<)|\s+(contains|is)\s)\s*("[^"]*"|[^"]*?)\s*', re.I)
_HEADINGS = {heading.casefold(): name for name, heading in TITLES.items()}
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
    """Return a row a figure that both runs have: A, B, their ratio, and what that ratio can tell.

    Repeats of both configurations, of the same execution and machine, give a spread: a ratio within it is what repeats of
    one and the same configuration differ by as well.
    """
    groups, rows = [_repeats(df, run) for run in (a, b)], []
    for name in measured(df):
        if pd.notna(a[name]) and pd.notna(b[name]):
            ratio = b[name] / a[name] if a[name] > 0 and b[name] > 0 else math.nan
            told = _told(ratio, [group[name].dropna() for group in groups])
            rows.append((title(name), unit(name)[0] * a[name], unit(name)[0] * b[name], ratio, told))
    return pd.DataFrame(rows, columns=["Figure", "A", "B", "B / A", "What it tells"])


def _repeats(df: pd.DataFrame, run: pd.Series) -> pd.DataFrame:
    like = [df[name].eq(run[name]) if pd.notna(run[name]) else df[name].isna() for name in IDENTITY]
    return df[pd.concat([*like, df["status"] == Status.OK], axis=1).all(axis=1)]


def _told(ratio: float, groups: Sequence[pd.Series]) -> str:
    spreads = [values.max() / values.min() for values in groups if len(values) > 1 and values.min() > 0]
    if math.isnan(ratio):
        return ""
    if not spreads:
        return "cannot tell: one run of each, no repeats"
    within = "within" if max(ratio, 1 / ratio) <= max(spreads) else "more than"
    return f"{within} what repeats differ by ({number(round(100 * (max(spreads) - 1)))} %)"


def by_name(df: pd.DataFrame, run: str | None) -> pd.Series | None:
    """Return the run that MLflow knows by a name, or None."""
    found = df[df[MLFLOW_RUN] == run] if MLFLOW_RUN in df else df[:0]
    return found.iloc[0] if len(found) else None
