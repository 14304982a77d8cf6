"""Which runs of the store a verb is about: those of a suite, of an execution, or of the newest execution of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import store_option

if TYPE_CHECKING:
    import pandas as pd

    from bench.figures.hourly import Hourly
    from bench.record import RunRecord


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add SUITE, --execution, --all, --store and --refresh: the arguments of `select`."""
    for decorate in reversed(
        (
            click.argument("suite", required=False),
            click.option("--execution", help="One execution by its name; otherwise the newest of each suite."),
            click.option("--all", "everything", is_flag=True, help="All executions, not the newest alone."),
            store_option,
            click.option("--refresh", is_flag=True, help="Read all runs from the store, not only what is new in it."),
        )
    ):
        command = decorate(command)
    return command


def suite_name(text: str) -> str:
    """Return the name of a suite, given that or its file."""
    from bench.suites.load import SuiteError, load_suite

    if not text.endswith((".yaml", ".yml")):
        return text
    try:
        return load_suite(Path(text)).name
    except SuiteError as error:
        fail(*error.messages)


def select(
    suite: str | None, execution: str | None, store: str | None, *, everything: bool, refresh: bool = False
) -> pd.DataFrame:
    """Return the runs that are asked for, at least one; a name that is not there ends the command with exit code 2."""
    from analytics.frame import latest_execution, tidy
    from analytics.store import load
    from bench.registry import did_you_mean
    from bench.store import tracker as tracking

    if suite is not None:
        suite = suite_name(suite)
    try:
        df = load(store, refresh=refresh)
    except tracking.StoreError as error:
        fail(str(error))
    if df.empty:
        fail(f"no runs in {tracking.shown(store)} yet; make some with: bench run suites/scaling.yaml")
    if suite is not None:
        known = set(df["suite"].dropna())
        if suite not in known:
            fail(f"no runs of suite {suite!r} in {tracking.shown(store)}: {did_you_mean(suite, known)}")
        df = df[df["suite"] == suite]
    if execution is not None:
        names = set(df["execution"].dropna())
        if execution not in names:
            fail(f"no execution {execution!r}: {did_you_mean(execution, names)}")
        df = df[df["execution"] == execution]
    elif not everything:
        df = latest_execution(df)
    return tidy(df)  # without the columns of other suites


def repriced(
    runs: pd.DataFrame, store: str | None, given: dict[str, Any], rates: Hourly | None = None
) -> tuple[list[RunRecord], pd.DataFrame]:
    """Return the records of some runs, with carbon and cost made anew, and the imported runs, which have none.

    That imported runs stay as they are is told on stderr; a mistake in what is given ends the command with exit code 2.
    """
    from analytics.factors import reprice
    from bench.store import tracker as tracking
    from bench.suites.load import SuiteError

    imported = runs["flags"].str.contains(r"\bimported\b", na=False)
    try:
        records = reprice(tracking.records((run for _, run in runs[~imported].iterrows()), store), given, rates)
    except SuiteError as error:
        fail(*error.messages)
    except (tracking.StoreError, ValueError) as error:
        fail(str(error))
    if imported.any():
        note = f"bench: {imported.sum()} imported runs have no record: their carbon and cost stay as they are"
        click.echo(note, err=True)
    return records, runs[imported]
