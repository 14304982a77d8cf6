"""`bench report`: stored runs as a file for others, or printed; with carbon and cost recomputed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import (
    json_option,
    print_blocks,
    print_json,
    several_selection_options,
    site_fields,
    site_options,
)
from bench.errors import UserError, located
from bench.suites.load import SITE_OPTIONS

if TYPE_CHECKING:
    from analytics.runs.hourly import Hourly


@click.command()
@several_selection_options
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Write a file: .html, .md, .csv, .parquet or .json; - is standard output. Can be repeated.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "md", "csv", "parquet", "json")),
    help="Format of the files, whatever their names.",
)
@click.option(
    "--with-hosts",
    "--unscrubbed",
    "unscrubbed",
    is_flag=True,
    help="Keep the names of hosts, users and folders in the files. Default: they are removed.",
)
@site_options
@click.option(
    "--hourly",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="Carbon and electricity prices by the hours in which the runs ran. Columns: time (ISO 8601) or hour (0-23, UTC), "
    "kg_per_kwh or g_per_kwh, and optionally usd_per_kwh.",
)
@json_option
def report(
    store: str | None,
    outputs: tuple[str, ...],
    form: str | None,
    hourly: Path | None,
    *,
    as_json: bool,
    unscrubbed: bool,
    **options: Any,
) -> None:
    """Print the results of SUITE, or write them to one self-contained file with -o.

    SUITE is a name, or several; without it, all suites in the store are reported. A region, PUE, price or hourly rate
    recomputes carbon and cost; all else stays as it was when the runs were made. Nothing is run, and the store is unchanged.
    """
    from analytics.render.outputs import Output, write
    from analytics.runs.selection import repriced, rows_of, selected
    from analytics.runs.share import cleaner, scrubbed, scrubbed_rows
    from analytics.say.blocks import Note
    from analytics.say.factors import by_the_hour, lines
    from analytics.say.report import make
    from analytics.say.results import results

    targets = [Output.of(name, form) for name in outputs]
    if form is not None and not outputs:
        raise UserError("--format is the format of a file: name one with -o (- is standard output)")
    if as_json and outputs:
        raise UserError("--json prints the report, -o writes it: give only one of them, or -o FILE.json")
    site = site_fields(options)
    rates = _hourly(hourly, site)
    selection = selected(store=store, **options)
    records, imported, notes = repriced(selection, store, site, rates)
    for note in notes:
        click.echo(f"bench: {note}", err=True)
    if targets and not unscrubbed:
        clean = cleaner(records, imported)
        records, imported = scrubbed(records, clean), scrubbed_rows(imported, clean)
    df = rows_of(records, imported)
    remarks = [] if rates is None else by_the_hour(records, rates)
    if not targets and not as_json:
        basis = [Note(line) for line in (*lines(records), *remarks)]
        print_blocks(results(df, store=store, notes=basis))
        return
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    executions = list(dict.fromkeys(record.execution for record in records))
    made = make(df, records, now.replace(microsecond=0), _command(executions, site, hourly, options), remarks)
    if as_json:
        print_json(made.to_dict())
    else:
        for line in write(made, targets):
            click.echo(line)


def _hourly(path: Path | None, site: dict[str, Any]) -> Hourly | None:
    from analytics.runs.hourly import read_hourly

    if path is None:
        return None
    if "region" in site:
        raise UserError("give --region or --hourly, not both: the file has the carbon intensity")
    with located("--hourly"):
        rates = read_hourly(path)
    if rates.priced and site.keys() & {"usd_per_kwh", "usd_per_device_hour"}:
        raise UserError(f"--hourly {path.name} has electricity prices: leave out --price and --electricity-price")
    return rates


def _command(executions: list[str], site: dict[str, Any], hourly: Path | None, options: dict[str, Any]) -> list[str]:
    """Return the command that makes the report of these runs again."""
    from analytics.runs.selection import suite_name

    suites = map(suite_name, options["suites"])
    which = ["--execution", executions[0]] if len(executions) == 1 else ["--all"] if options["everything"] else []
    factors = [text for field, value in site.items() for text in (SITE_OPTIONS[field], f"{value}")]
    hours = ["--hourly", hourly.name] if hourly is not None else []
    return ["bench", "report", *suites, *which, *factors, *hours, "-o", "report.html"]
