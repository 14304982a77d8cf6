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
    """Log to MLflow the runs that it lacks: after its server was down, or into another store."""
    from analytics.text import counted
    from bench.store.sync import sync as log_all
    from bench.store.tracker import shown

    if not runs.is_dir():
        raise UserError(f"no folder of runs at {runs.absolute()}; name it with --runs")
    count, unreadable = log_all(runs, store)
    for path in unreadable:
        click.echo(f"bench: {path} cannot be read; bench run repeats that run", err=True)
    done = f"{counted(count, 'run')} logged to {shown(store)}"
    click.echo(done if count else f"Nothing to log: {shown(store)} has all runs")
