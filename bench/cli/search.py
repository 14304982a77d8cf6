"""`bench search SEARCH.yaml`: find good ways to train within a budget, instead of trying all of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench.cli.options import (
    gpus_option,
    json_option,
    place,
    print_blocks,
    print_json,
    program,
    runs_option,
    site_options,
    store_option,
)
from bench.errors import FAILED, UserError
from bench.machine.cluster import several_nodes
from bench.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analytics.search.result import SearchResult

_ONCE = {"path", "new", "show_only", "confirm", "dry_run", "explain", "as_json"}
"""Options that are not repeated in the command that is proposed next."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="SEARCH.yaml")
@click.option("--trials", type=click.IntRange(1), help="Limit the trials of the study, including earlier ones.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    help="Limit the minutes of the study, including earlier ones.",
)
@click.option("--sampler", help="auto, tpe, gp, nsga2, nsga3, random or grid, instead of the file's.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of the sampler, instead of the file's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a field, or search over a list of values: KEY=[a, b]. Can be repeated.",
)
@click.option("--storage", metavar="WHERE", help="A journal file, or the URL of a database that machines share.")
@click.option("--new", is_flag=True, help="Start a new study, even if one of this search can be resumed.")
@click.option("--ignore-stored", is_flag=True, help="Do not start from stored runs of this machine.")
@click.option("--show", "show_only", is_flag=True, help="Print the answer so far; run nothing.")
@click.option("--confirm", is_flag=True, help="Afterwards, repeat the best in turn, and answer by these runs.")
@click.option("--dry-run", is_flag=True, help="Print what would be searched and what is already known; run nothing.")
@gpus_option
@site_options
@runs_option
@store_option
@click.option("--explain", is_flag=True, help="Add what mattered, and what the words mean.")
@json_option
def search(
    path: Path, *, show_only: bool, confirm: bool, dry_run: bool, explain: bool, as_json: bool, **options: Any
) -> None:
    """Try some of the configurations in SEARCH.yaml, and print the best trade-offs.

    Every trial is a run like those of a suite. The same command resumes the search until its budget is spent; started
    again in parallel on other devices, it shares the work. Exit codes: 0 with an answer, 1 if nothing that is allowed was
    found, 2 wrong use, 130 stopped, 70 a fault of wattbench or of the machine.
    """
    from analytics.say.confirm import confirmed
    from analytics.say.search import blocks, preview_blocks, sentences
    from analytics.search.session import read
    from bench.cli.progress import Lines

    if show_only + dry_run + confirm > 1 or (show_only and options["new"]):
        raise UserError("give only one of --show, --dry-run and --confirm, and no --new with --show")
    budget = {name: value for name in ("trials", "minutes") if (value := options.pop(name)) is not None}
    changes = {name: value for name in ("sampler", "seed") if (value := options.pop(name)) is not None}
    options |= {"runs": options["runs"].absolute(), "sentences": sentences, "confirmed": confirmed}
    session = read(path, site=place(options), budget=budget, changes=changes, **options)
    if several_nodes():
        click.echo("bench: trials run on this machine alone, not on all nodes of the job", err=True)
    if dry_run:
        preview, goals = session.preview(), [goal.name for goal in session.search.objectives]
        if as_json:
            print_json(preview)
        else:
            print_blocks(preview_blocks(session.search.name, goals, preview, _again()))
        return
    if show_only:
        answer, repeated = session.shown()
    else:
        from bench.cli.search_progress import TrialLines

        with TrialLines() as progress, Lines() as confirming:
            answer, repeated = session.go(progress, confirming if confirm else None)
    if as_json:
        print_json(answer.document() | {"confirmed": repeated})
    else:
        print_blocks(blocks(answer, repeated, list(_next(answer, repeated))), explain=explain)
        if not answer.points:
            raise UserError("nothing that is allowed was found", code=FAILED)
    sys.exit(0 if answer.front else FAILED)


def _next(answer: SearchResult, repeated: list[str]) -> Iterator[str]:
    """Yield what to run next: the confirming runs, and why the answer is so."""
    if answer.front_file and not repeated:
        yield _again("--confirm")
    yield _again("--show", "--explain")


def _public(value: object) -> str:
    return redact(str(value)) if "://" in str(value) else str(value)


def _again(*more: str) -> str:
    """Return this command as it can be pasted, without passwords, and with more options."""
    context = click.get_current_context()
    words = [program(), "search", str(context.params["path"])]
    for param in context.command.params:
        name, value = str(param.name), context.params[str(param.name)]
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _ONCE:
            for each in value if param.multiple else [value]:
                words += [param.opts[0]] if each is True else [param.opts[0], _public(each)]
    return shlex.join([*words, *more])
