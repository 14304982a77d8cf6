"""`bench fit`: the answer again, from the store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from bench.cli import fail
from bench.cli.options import json_option, store_option


@click.command()
@click.argument("suite", required=False)
@click.option("--execution", help="One execution by its name; otherwise the newest of each suite.")
@click.option("--all", "everything", is_flag=True, help="All executions, not the newest alone.")
@store_option
@json_option
def fit(suite: str | None, execution: str | None, everything: bool, store: str | None, as_json: bool) -> None:
    """Print the results and the fitted T = n / (d · v) of SUITE (a name), or of all suites in the store."""
    from analytics.frame import frame, latest_execution
    from bench import tracking
    from bench.cli import answer
    from bench.registry import did_you_mean
    from bench.suite import SuiteError, load_suite

    if suite is not None and suite.endswith((".yaml", ".yml")):
        try:
            suite = load_suite(Path(suite)).name
        except SuiteError as error:
            fail(*error.messages)
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
        rows = [row for row in rows if row["execution"] == execution]
    elif not everything:
        newest = set(latest_execution(frame(rows))["execution"])
        rows = [row for row in rows if row["execution"] in newest]
    if as_json:
        click.echo(json.dumps(answer.document(rows), indent=1, allow_nan=False))
    else:
        answer.show(rows)
