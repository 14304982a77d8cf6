"""`bench sync`: bring the store up to date with the run folders."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import store_option
from bench.errors import UserError
from bench.folder import OWN_RUNS, RECORD, RUNS


@click.command()
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder of the runs. Default: {RUNS} and {OWN_RUNS}.",
)
@store_option
def sync(runs: Path | None, store: str | None) -> None:
    """Log to MLflow the runs that it lacks: after its server was down, or into another store.

    Measurements whose `bench measure` was killed get their records first. Processes that they have left are named.
    """
    from analytics.text import counted
    from bench.run.recover import recover
    from bench.store.sync import sync as log_all
    from bench.store.tracker import shown

    folders = [folder for folder in ([Path(RUNS), Path(OWN_RUNS)] if runs is None else [runs]) if folder.is_dir()]
    if not folders:
        where = f"{RUNS} or {OWN_RUNS} in {Path.cwd()}" if runs is None else runs.absolute()
        raise UserError(f"no folder of runs at {where}; name it with --runs")
    count = 0
    for folder in folders:
        for _, place in recover(folder):
            click.echo(f"Record of a measurement that was cut short: {place / RECORD.name}")
        tell_left(folder)
        logged, unreadable = log_all(folder, store)
        count += logged
        for path in unreadable:
            click.echo(f"bench: {path} cannot be read; bench run repeats that run", err=True)
    done = f"{counted(count, 'run')} logged to {shown(store)}"
    click.echo(done if count else f"Nothing to log: {shown(store)} has all runs")


def tell_left(runs: Path) -> None:
    """Name the processes that a killed `bench measure` has left: nobody else knows of one that prints nothing."""
    from bench.run.recover import left_running

    for pid, words in left_running(runs).items():
        click.echo(f"bench: a process that was measured runs on without bench: {words[:100]}", err=True)
        click.echo(f"bench: end it with: kill {pid}", err=True)
