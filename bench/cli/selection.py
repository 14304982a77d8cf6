"""Which runs of the store a verb is about: those of a suite, of an execution, or of the newest execution of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.cli import fail
from bench.cli.options import store_option
from bench.schema import Scalar


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add SUITE, --execution, --all and --store: the arguments of `select`."""
    for decorate in reversed(
        (
            click.argument("suite", required=False),
            click.option("--execution", help="One execution by its name; otherwise the newest of each suite."),
            click.option("--all", "everything", is_flag=True, help="All executions, not the newest alone."),
            store_option,
        )
    ):
        command = decorate(command)
    return command


def suite_name(text: str) -> str:
    """Return the name of a suite, given that or its file."""
    from bench.suite import SuiteError, load_suite

    if not text.endswith((".yaml", ".yml")):
        return text
    try:
        return load_suite(Path(text)).name
    except SuiteError as error:
        fail(*error.messages)


def select(suite: str | None, execution: str | None, store: str | None, *, everything: bool) -> list[dict[str, Scalar]]:
    """Return the rows that are asked for, at least one; a name that is not there ends the command with exit code 2."""
    from analytics.frame import frame, latest_execution
    from bench import tracking
    from bench.registry import did_you_mean

    if suite is not None:
        suite = suite_name(suite)
    try:
        rows = tracking.load(store)
    except tracking.StoreError as error:
        fail(str(error))
    known = sorted({str(row["suite"]) for row in rows})
    if not rows:
        fail(f"no runs in {tracking.shown(store)} yet; make some with: bench run suites/scaling.yaml")
    if suite is not None:
        if suite not in known:
            fail(f"no runs of suite {suite!r} in {tracking.shown(store)}: {did_you_mean(suite, known)}")
        rows = [row for row in rows if row["suite"] == suite]
    if execution is not None:
        names = sorted({str(row["execution"]) for row in rows})
        if execution not in names:
            fail(f"no execution {execution!r}: {did_you_mean(execution, names)}")
        return [row for row in rows if row["execution"] == execution]
    if everything:
        return rows
    newest = set(latest_execution(frame(rows))["execution"])
    return [row for row in rows if row["execution"] in newest]
