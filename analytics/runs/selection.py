"""Which runs of the store a command means: those of a suite, of an execution, or of the newest execution of each suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.runs.frame import declared, frame, latest_execution, measured_commands, of_tables, tidy
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


def selected(suites: Sequence[str], execution: str | None, store: str | None, **how: bool) -> pd.DataFrame:
    """Return the selected runs of several suites, or of all where none is named."""
    parts = [select(suite, execution, store, **how) for suite in suites] or [select(None, execution, store, **how)]
    return parts[0] if len(parts) == 1 else tidy(pd.concat(parts, ignore_index=True))


def as_one(runs: pd.DataFrame, *, named: bool = False) -> pd.DataFrame:
    """Return runs of several names of `bench measure` as those of one suite; of other suites as they are.

    They have one command, so that a law spans the numbers of devices of `python train.py` and `torchrun train.py`; or each
    has its name for a command, so that the names are told apart.
    """
    if runs["suite"].nunique() < 2 or not measured_commands(runs):
        return runs
    one = {name: TOGETHER.join(dict.fromkeys(runs[name])) for name in ("suite", "execution")}
    return runs.assign(**one, **{"workload_args.argv": runs["suite"] if named else one["suite"]})


def together(suites: Sequence[str], execution: str | None, store: str | None, **how: bool) -> pd.DataFrame:
    """Return the selected runs of several suites; those that are named are looked at `as_one`."""
    runs = selected(suites, execution, store, **how)
    return as_one(runs) if suites else runs


def repriced(
    runs: pd.DataFrame, store: str | None, site: dict[str, Any], rates: Hourly | None = None
) -> tuple[list[RunRecord], pd.DataFrame, list[str]]:
    """Recompute carbon and cost of stored runs from fields of Site and hourly rates.

    Return the records, the rows of imported runs, which have no records, and notes on those. Raises UserError for a wrong
    field and for records that cannot be read.
    """
    imported = of_tables(runs)
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
