"""Which runs of the store a command means: those of a suite, of an execution, or of the newest execution of each suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.runs.frame import declared, frame, latest_execution, measured_commands, tidy
from analytics.runs.hourly import Hourly
from analytics.runs.recost import reprice
from analytics.runs.store import load
from bench.errors import UserError
from bench.figures.metrics import row
from bench.record import RunRecord
from bench.registry import did_you_mean
from bench.store import tracker as tracking
from bench.suites.load import load_suite


def suite_name(text: str) -> str:
    """Return the name of a suite, given the name or its file. Raises SuiteError for a file that is wrong."""
    return load_suite(Path(text)).name if text.endswith((".yaml", ".yml")) else text


def select(
    suite: str | None, execution: str | None, store: str | None, *, everything: bool, refresh: bool = False
) -> pd.DataFrame:
    """Return the selected runs, one row each, at least one.

    Raises UserError for an empty store and for a name that is not there.
    """
    name = None if suite is None else suite_name(suite)
    df = load(store, refresh=refresh)
    if df.empty:
        raise UserError(f"no runs in {tracking.shown(store)} yet; make some with: bench run suites/scaling.yaml")
    for column, value in (("suite", name), ("execution", execution)):
        if value is not None:
            known = set(df[column].dropna())
            if value not in known:
                where = tracking.shown(store)
                raise UserError(f"no runs of {column} {value!r} in {where}: {did_you_mean(value, known)}")
            df = df[df[column] == value]
    if execution is None and not everything:
        df = latest_execution(df)
    return tidy(df)  # without the columns of other suites


TOGETHER = " and "
"""Between the names of suites that are looked at as one."""


def together(suites: Sequence[str], execution: str | None, store: str | None, **how: bool) -> pd.DataFrame:
    """Return the selected runs of several suites. Names of `bench measure` become one suite of one command.

    So a law spans the numbers of devices of `python train.py` and `torchrun train.py`.
    """
    parts = [select(suite, execution, store, **how) for suite in suites] or [select(None, execution, store, **how)]
    df = parts[0] if len(parts) == 1 else tidy(pd.concat(parts, ignore_index=True))
    if len(parts) == 1 or not measured_commands(df):
        return df
    one = {name: TOGETHER.join(dict.fromkeys(df[name])) for name in ("suite", "execution")}
    return df.assign(**one, **{"workload_args.argv": one["suite"]})


def repriced(
    runs: pd.DataFrame, store: str | None, site: dict[str, Any], rates: Hourly | None = None
) -> tuple[list[RunRecord], pd.DataFrame, list[str]]:
    """Recompute carbon and cost of stored runs from fields of Site and hourly rates.

    Return the records, the rows of imported runs, which have no records, and notes on those. Raises UserError for a wrong
    field and for records that cannot be read.
    """
    imported = runs["flags"].str.contains(r"\bimported\b", na=False)
    records = reprice(tracking.records((run for _, run in runs[~imported].iterrows()), store), site, rates)
    count = int(imported.sum())
    notes = [f"{count} imported runs have no records: their carbon and cost are unchanged"] if count else []
    return records, runs[imported], notes


def rows_of(records: list[RunRecord], imported: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of records, followed by those of imported runs, as one tidy table."""
    df = declared(map(row, records))
    return tidy(pd.concat([df, imported], ignore_index=True) if len(imported) else df)


def own_runs(store: str | None) -> pd.DataFrame:
    """Return the runs of the store; no rows where none is named and there is no store in this folder."""
    location = tracking.location(store)
    if store is None and location.startswith("sqlite:///") and not Path(location.removeprefix("sqlite:///")).exists():
        return frame([])
    return load(store)


def of_configuration(runs: pd.DataFrame, record: RunRecord) -> pd.DataFrame:
    """Return the runs of the execution and configuration of a record."""
    return tidy(runs[(runs["execution"] == record.execution) & (runs["config_id"] == record.config_id)])
