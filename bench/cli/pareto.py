"""`bench pareto`: what to choose, where less time costs more of something else."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option, site_fields, site_options
from bench.cli.selection import repriced, select, selection_options

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from analytics.pareto import Front


@click.command()
@selection_options
@click.option(
    "--by",
    metavar="time,energy,...",
    help="What counts, of time, energy, cost, carbon, memory and quality; by default time, energy, cost and quality.",
)
@site_options
@json_option
def pareto(by: str | None, as_json: bool, **selection: Any) -> None:
    """Say which configurations of SUITE (a name), or of all suites, no other beats in all that counts.

    Repeats scatter, so each has a probability of that. Only runs that do the same work are compared. Carbon and cost are
    made anew by another region, PUE or prices; the store is not changed.
    """
    from analytics.pareto import DEFAULT, front
    from analytics.words import printable

    given = site_fields(selection)
    df = select(**selection)
    df = _repriced(df, selection["store"], given) if given else df
    try:
        fronts = front(df, [name.strip() for name in by.split(",")] if by is not None else DEFAULT)
    except ValueError as error:
        fail(f"--by: {error}")
    if not fronts:
        fail("no run ended well, so there is nothing to choose from")
    if not any(one.objectives for one in fronts):
        fail(*dict.fromkeys(f"{name}: {reason}" for one in fronts for name, reason in one.dropped.items()))
    if as_json:
        click.echo(json.dumps({"fronts": [_document(one) for one in fronts]}, indent=1, allow_nan=False))
        return
    several = [one for one in fronts if len(one.table) > 1]
    for one in several:
        _show(one, alone=len(fronts) == 1)
    if len(several) < len(fronts):
        works = ", ".join(one.work for one in fronts if len(one.table) == 1)
        click.echo(f"\none configuration only, so there is nothing to choose from: {printable(works, 300)}")


def _repriced(df: pd.DataFrame, store: str | None, given: dict[str, Any]) -> pd.DataFrame:
    """Make carbon and cost of stored runs anew by what is given."""
    import pandas as pd

    from analytics.frame import declared, tidy
    from bench.figures.metrics import row

    records, imported = repriced(df, store, given)
    return tidy(pd.concat([declared(map(row, records)), imported], ignore_index=True))


def _document(one: Front) -> dict[str, Any]:
    objectives = {o.name: {"column": o.column, "unit": o.unit} for o in one.objectives}
    rows = json.loads(one.table.to_json(orient="records", double_precision=15))
    return {"work": one.work, "per": one.per, "objectives": objectives, "dropped": one.dropped, "configurations": rows}


def _show(one: Front, *, alone: bool) -> None:
    from analytics.pareto_words import sentences
    from bench.cli.answer import console

    screen = console()
    if not alone:
        screen.print(f"\n{one.work}")
    if one.objectives:
        screen.print(f"What the same work takes ({one.per}; 95 % intervals):")
        screen.print(_table(one))
    for line in sentences(one):
        screen.print(f"  {line}")


def _table(one: Front) -> Table:
    from rich import box
    from rich.table import Table

    from analytics.words import between

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("configuration")
    table.add_column("runs", justify="right")
    for objective in one.objectives:
        table.add_column(f"{objective.name} [{objective.unit}]", justify="right")
    table.add_column("front", justify="right")
    for _, row in one.table.iterrows():
        cells = [
            ("~" if o.name in one.estimated else "") + between(row[o.name], row[f"{o.name}_low"], row[f"{o.name}_high"])
            for o in one.objectives
        ]
        share = "" if math.isnan(row["p_front"]) else f" {100 * row['p_front']:.0f} %"
        mark = ("yes" if row["front"] else "no") + share + (" knee" if row["knee"] else "")
        table.add_row(row["name"], str(row["repeats"]), *cells, mark)
    return table
