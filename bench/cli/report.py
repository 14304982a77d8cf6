"""`bench report`: stored runs as a file for others, or printed; with carbon and cost by other factors or by the hour."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option, site_fields, site_options
from bench.cli.selection import repriced, select, selection_options, suite_name
from bench.record import RunRecord
from bench.suites.load import SITE_OPTIONS

if TYPE_CHECKING:
    import pandas as pd

    from analytics.report import Report
    from bench.figures.hourly import Hourly

_FORMATS = ("html", "md", "csv", "parquet", "json")


@click.command()
@selection_options
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="FILE",
    help="Write a file: .html, .md, .csv, .parquet or .json; - is standard output. May be given several times.",
)
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Format of the files, whatever their names.")
@click.option(
    "--with-hosts",
    "--unscrubbed",
    "unscrubbed",
    is_flag=True,
    help="Leave names of hosts, users and folders in the files; otherwise they are taken out.",
)
@site_options
@click.option(
    "--hourly",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="Carbon and electricity by the hours in which the runs ran. Columns: time (ISO 8601) or hour (0-23, UTC), "
    "kg_per_kwh or g_per_kwh, and perhaps usd_per_kwh.",
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
    """Report the results of SUITE (a name), or of all suites: print them, or write one self-contained file with -o.

    Carbon and cost are made anew by another region, PUE, prices or hours; what is not given stays as it was when the
    runs were made. Nothing is run, and the store is not changed.
    """
    import pandas as pd

    from analytics.factors import by_the_hour
    from analytics.frame import declared, tidy
    from bench.figures.metrics import row

    targets = [(name, _format(name, form)) for name in outputs]
    if form is not None and not outputs:
        fail("--format says what a file is: name one with -o (- is standard output)")
    if as_json and outputs:
        fail("--json prints the report, -o writes it: give one of them; -o FILE.json writes what --json prints")
    given = site_fields(options)
    rates = _hourly(hourly, given)
    chosen = select(store=store, **options)
    records, others = repriced(chosen, store, given, rates)
    if targets and not unscrubbed:
        from analytics.scrub import cleaner, scrubbed, scrubbed_rows

        clean = cleaner(records, others)
        records, others = scrubbed(records, clean), scrubbed_rows(others, clean)
    df = declared(row(record) for record in records)
    if len(others):
        df = pd.concat([df, others], ignore_index=True)
    df = tidy(df)
    remarks = [] if rates is None else by_the_hour(records, rates)
    if not targets and not as_json:
        _print(df, records, remarks)
        return
    from analytics.report import make

    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    made = make(df, records, now.replace(microsecond=0), _command(records, given, hourly, options), remarks)
    if targets:
        _write(made, targets)
    else:
        click.echo(json.dumps(made.to_dict(), indent=1, allow_nan=False))


def _format(name: str, form: str | None) -> str:
    suffix = Path(name).suffix.lower().lstrip(".")
    found = form or {"htm": "html", "markdown": "md"}.get(suffix, suffix)
    if found not in _FORMATS:
        wanted = "--format" if name == "-" else "a suffix"
        fail(f"-o {name}: {wanted} says what it is: {', '.join(_FORMATS)}")
    if name != "-" and Path(name).is_dir():
        fail(f"-o {name} is a folder; name a file in it")
    folder = Path(name).parent
    if not folder.is_dir():
        fail(f"-o {name} cannot be written: {os.strerror(errno.ENOTDIR if folder.exists() else errno.ENOENT)}")
    return found


def _hourly(path: Path | None, given: dict[str, Any]) -> Hourly | None:
    if path is None:
        return None
    from bench.figures.hourly import read_hourly

    if "region" in given:
        fail("give --region or --hourly, not both: the file says the carbon intensity")
    try:
        rates = read_hourly(path)
    except OSError as error:
        fail(f"--hourly {path}: {error.strerror}")
    except ValueError as error:
        fail(f"--hourly {error}")
    if rates.priced and given.keys() & {"usd_per_kwh", "usd_per_device_hour"}:
        fail(f"--hourly {path.name} has prices of electricity: leave --price and --electricity-price out")
    return rates


def _command(
    records: Sequence[RunRecord], given: dict[str, Any], hourly: Path | None, options: dict[str, Any]
) -> list[str]:
    """Return the command that makes the report of these runs again."""
    executions = list(dict.fromkeys(record.execution for record in records))
    suite = [suite_name(options["suite"])] if options["suite"] else []
    which = ["--execution", executions[0]] if len(executions) == 1 else ["--all"] if options["everything"] else []
    factors = [text for field, value in given.items() for text in (SITE_OPTIONS[field], f"{value}")]
    hours = ["--hourly", hourly.name] if hourly is not None else []
    return ["bench", "report", *suite, *which, *factors, *hours, "-o", "report.html"]


def _write(made: Report, targets: Sequence[tuple[str, str]]) -> None:
    """Write every file whole or not at all."""
    from analytics.render import FORMATS
    from bench.files import write_bytes

    for name, form in targets:
        content = FORMATS[form](made)
        data = content.encode() if isinstance(content, str) else content
        if name == "-":
            sys.stdout.buffer.write(data)
            continue
        try:
            write_bytes(Path(name), data)
        except OSError as error:
            fail(f"-o {name} cannot be written: {error.strerror}")
        click.echo(f"{name}: {len(made.runs)} runs, {len(data) / 1000:.0f} kB")


def _print(df: pd.DataFrame, records: Sequence[RunRecord], remarks: Sequence[str]) -> None:
    from analytics.factors import lines
    from bench.cli import answer

    for line in (*lines(records), *remarks):
        click.echo(line)
    answer.show(df)
