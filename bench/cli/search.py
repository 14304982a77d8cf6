"""`bench search SEARCH.yaml`: find good ways to train within a budget, instead of trying all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail, program
from bench.cli.options import json_option, runs_option, site_options, store_option

if TYPE_CHECKING:
    from analytics.searched import SearchResult
    from bench.cli.searching import Session


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="SEARCH.yaml")
@click.option(
    "--trials", type=click.IntRange(1), help="Try so many configurations at most, instead of the file's budget."
)
@click.option("--minutes", type=click.FloatRange(0, 1e6, min_open=True), help="Take so long at most.")
@click.option("--sampler", help="auto, tpe, gp, nsga2, nsga3, random or grid, instead of the file's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Fix a field, or search over a list of values: [a, b].",
)
@click.option(
    "--storage", metavar="WHERE", help="A journal file, or the URL of a database that several machines share."
)
@click.option("--new", is_flag=True, help="Begin another study, even if one of this search can go on.")
@click.option("--ignore-stored", is_flag=True, help="Do not begin with what stored runs of this machine tell already.")
@click.option("--show", "show_only", is_flag=True, help="Print the answer of what was tried so far; run nothing.")
@click.option("--confirm", is_flag=True, help="Then repeat the best in turn, and say which are really different.")
@click.option("--dry-run", is_flag=True, help="Say what would be searched and what is known already; run nothing.")
@click.option("--gpus", metavar="0,1", help="Use these GPUs (indices or UUIDs), even if others use them too.")
@site_options
@runs_option
@store_option
@json_option
def search(path: Path, *, show_only: bool, confirm: bool, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Try some of the configurations in SEARCH.yaml, chosen by what is known, and print the best trade-offs.

    Every trial is a run like those of a suite. The same command again goes on until the budget is spent; a second one
    beside it, on other devices, shares the work. Exit code: 0 with an answer, 1 where nothing that is allowed was found,
    2 the command or the file is wrong.
    """
    from bench.cli.searching import read

    session = read(path, **options)
    if dry_run:
        _describe(session)
        return
    found = session.shown() if show_only else session.go()
    sentences = session.confirm(found) if confirm and found.points else []
    if as_json:
        click.echo(json.dumps(found.document() | {"confirmed": sentences}, indent=1, allow_nan=False))
    else:
        _print(session, found, sentences)
    sys.exit(0 if found.front else 1)


def _describe(session: Session) -> None:
    """Say what would be searched."""
    space, asked = session.space, session.space.search
    listed, possible = space.listed(), space.possible
    size = "more than can be listed" if possible is None else f"{len(possible)} different ones can run here"
    click.echo(f"{asked.name}: {'' if listed is None else f'{len(listed)} combinations, '}{size}")
    for why, count in space.refused.most_common(5):
        click.echo(f"  {count} cannot: {why}")
    click.echo(f"  for the least {', '.join(goal.name for goal in asked.objectives)}; sampler {session.sampler}")
    budget = ", ".join(f"{value:g} {name}" for name, value in asked.budget.model_dump(exclude_none=True).items())
    click.echo(f"  budget: {budget}; {session.known()} configurations are known from stored runs of this machine")


def _print(session: Session, found: SearchResult, sentences: list[str]) -> None:
    from bench.cli.search_answer import show

    show(found)
    if sentences:
        click.echo("\n".join(["\nRepeated in turn, the best come to this:", *(f"  {line}" for line in sentences)]))
    again = f" --store {session.store}" if session.store else ""
    click.echo(f"\nstudy: {found.study} in {session.storage}")
    if "://" not in session.storage:
        click.echo(f"Look at it with:  optuna-dashboard {session.storage}  (pip install optuna-dashboard)")
    click.echo(f"or with:          {program()} dashboard{again}")
    if found.front_file and not sentences:
        click.echo(f"Confirm it with:  {program()} search ... --confirm, or {program()} run {found.front_file}{again}")
    if not found.points:
        fail("nothing that is allowed was found", code=1)
