"""`bench search SEARCH.yaml`: find good ways to train within a budget, instead of trying all of them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench.cli import fail, program
from bench.cli.options import json_option, runs_option, site_options, store_option
from bench.redact import redact

if TYPE_CHECKING:
    from analytics.searched import SearchResult
    from bench.cli.searching import Session

_ONCE = {"path", "new", "show_only", "confirm", "dry_run", "as_json"}
"""Options that are not repeated in the command that is proposed next."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="SEARCH.yaml")
@click.option("--trials", type=click.IntRange(1), help="Most trials of the study, earlier ones included.")
@click.option("--minutes", type=click.FloatRange(0, 1e6, min_open=True), help="Most minutes of it, likewise.")
@click.option("--sampler", help="auto, tpe, gp, nsga2, nsga3, random or grid, instead of the file's.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of the sampler, instead of the file's.")
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

    if show_only + dry_run + confirm > 1 or (show_only and options["new"]):
        fail("--show and --dry-run run nothing: give one of them alone, or --confirm; and no --new with --show")
    session = read(path, **options)
    if dry_run:
        _describe(session, as_json=as_json)
        return
    found, sentences = session.shown() if show_only else session.go(confirm=confirm)
    if as_json:
        click.echo(json.dumps(found.document() | {"confirmed": sentences}, indent=1, allow_nan=False))
    else:
        _print(session, found, sentences)
    sys.exit(0 if found.front else 1)


def _describe(session: Session, *, as_json: bool) -> None:
    """Say what would be searched."""
    session.opened(make=False)  # a storage that cannot be one is told
    space, asked = session.space, session.space.search
    combinations, possible = (None if some is None else len(some) for some in (space.listed(), space.possible))
    budget = asked.budget.model_dump(exclude_none=True)
    told: dict[str, Any] = {
        "combinations": combinations,
        "possible": possible,
        "refused": dict(space.refused.most_common()),
    }
    told |= {"known": session.known(), "sampler": session.sampler, "budget": budget}
    if as_json:
        click.echo(json.dumps(told, indent=1, allow_nan=False))
        return
    size = "more than can be listed" if possible is None else f"{possible} different ones can run here"
    click.echo(f"{asked.name}: {'' if combinations is None else f'{combinations} combinations, '}{size}")
    for why, count in space.refused.most_common(5):
        click.echo(f"  {count} cannot: {why}")
    click.echo(f"  for the best {', '.join(goal.name for goal in asked.objectives)}; sampler {session.sampler}")
    limits = ", ".join(f"{value:g} {name}" for name, value in budget.items())
    click.echo(f"  budget: {limits}; {told['known']} configurations are known from stored runs of this machine")


def _print(session: Session, found: SearchResult, sentences: list[str]) -> None:
    from bench.cli.search_answer import show

    show(found)
    if sentences:
        click.echo("\n".join(["\nRepeated in turn, the best come to this:", *(f"  {line}" for line in sentences)]))
    again = f" --store {shlex.quote(_public(session.store))}" if session.store else ""
    click.echo(f"\nstudy: {found.study} in {found.storage}")
    click.echo(f"Look at it with:  {program()} dashboard{again}")
    click.echo(f"and with:         optuna-dashboard {shlex.quote(found.storage)}  (pip install optuna-dashboard)")
    if found.front_file and not sentences:
        click.echo(f"Confirm it with:  {_again('--confirm')}")
    if not found.points:
        fail("nothing that is allowed was found", code=1)


def _public(value: object) -> str:
    return redact(str(value)) if "://" in str(value) else str(value)


def _again(*more: str) -> str:
    """Return this command with what makes its study, as it can be pasted but for passwords, and more options."""
    context = click.get_current_context()
    words = [program(), "search", str(context.params["path"])]
    for param in context.command.params:
        name, value = str(param.name), context.params[str(param.name)]
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _ONCE:
            for one in value if param.multiple else [value]:
                words += [param.opts[0]] if one is True else [param.opts[0], _public(one)]
    return shlex.join([*words, *more])
