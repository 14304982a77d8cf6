"""`bench sync`: bring the index up to date with the run folders."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import fail
from bench.cli.options import runs_option, store_option


@click.command()
@runs_option
@store_option
def sync(runs: Path, store: str | None) -> None:
    """Log records to MLflow that are not there yet: after its server was down, or into another store."""
    from bench.store import tracker as tracking
    from bench.store.sync import sync as log_all

    if not runs.is_dir():
        fail(f"no folder of runs at {runs.absolute()}; name it with --runs")
    try:
        count, unreadable = log_all(runs, store)
    except tracking.StoreError as error:
        fail(str(error), code=1)
    for path in unreadable:
        click.echo(f"bench: no record in {path}: bench run does that run again", err=True)
    click.echo(f"{count} records logged to {tracking.shown(store)}")
