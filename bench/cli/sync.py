"""`bench sync`: bring the store up to date with the run folders."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import runs_option, store_option
from bench.errors import UserError


@click.command()
@runs_option
@store_option
def sync(runs: Path, store: str | None) -> None:
    """Log records to MLflow that are missing there: after its server was down, or into another store."""
    from bench.store.sync import sync as log_all
    from bench.store.tracker import shown

    if not runs.is_dir():
        raise UserError(f"no folder of runs at {runs.absolute()}; name it with --runs")
    count, unreadable = log_all(runs, store)
    for path in unreadable:
        click.echo(f"bench: {path} holds no record; bench run does that run again", err=True)
    click.echo(f"{count} records logged to {shown(store)}")
