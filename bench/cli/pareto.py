"""`bench pareto`: what to choose, where less time costs more of something else."""

from __future__ import annotations

from typing import Any

import click

from bench.cli import options as shared
from bench.errors import UserError, located


@click.command()
@shared.several_selection_options
@click.option(
    "--by",
    metavar="time,energy,...",
    help="Objectives: time, energy, cost, carbon, memory, quality. Default: time, energy, cost and quality.",
)
@shared.site_options
@shared.explain_option
@shared.json_option
def pareto(by: str | None, as_json: bool, explain: bool, **selection: Any) -> None:
    """Find the configurations of SUITE that no other one beats in all objectives: the Pareto front.

    SUITE is a name; without it, all suites in the store are used. Several names of `bench measure` are compared with each
    other. Repeats scatter, so each configuration has a probability
    of being on the front. Only runs of the same work are compared. A region, PUE or price recomputes carbon and cost; the
    store is not changed.
    """
    from analytics.judge.front import DEFAULT, front
    from analytics.runs.selection import as_one, repriced, rows_of, selected
    from analytics.say.front import blocks, document

    site = shared.site_fields(selection)
    df = selected(**selection)
    if site:
        records, imported, notes = repriced(df, selection["store"], site)
        df = rows_of(records, imported)
        for note in notes:
            click.echo(f"bench: {note}", err=True)
    if selection["suites"]:
        df = as_one(df, named=True)
    with located("--by"):
        fronts = front(df, [name.strip() for name in by.split(",")] if by is not None else DEFAULT)
    if not fronts:
        raise UserError("no run ended well, so there is nothing to choose from")
    if not any(each.objectives for each in fronts):
        raise UserError(*(f"{name}: {reason}" for each in fronts for name, reason in each.dropped.items()))
    if as_json:
        shared.print_json({"fronts": [document(each) for each in fronts]})
    else:
        shared.print_answer(blocks(fronts, df, selection["store"]), df, selection["store"], explain=explain)
