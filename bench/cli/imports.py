"""`bench import`: someone else's results, from a file, beside one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail, program
from bench.cli.options import json_option, runs_option, store_option

if TYPE_CHECKING:
    from analytics.imported import Imported

_SHOWN = 10


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="COLUMN=NAME[:FACTOR]",
    help="Call a column of FILE by its name here; step_ms=step_seconds:0.001 converts it.",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="The same for all rows.")
@click.option("--suite", help="Name of the suite; otherwise that of the file.")
@runs_option
@store_option
@click.option("--dry-run", is_flag=True, help="Show what the columns and the first rows become; write nothing.")
@json_option
def import_(
    file: Path, suite: str | None, runs: Path, store: str | None, dry_run: bool, as_json: bool, **naming: Any
) -> None:
    """Import a table of someone else's results (CSV, JSON lines, Parquet): one row a run, provenance `imported`.

    A column counts if it has the name of one here (devices, samples_per_second, workload_args.layers ...) or if --map says
    which it is. It takes devices, and samples_per_second or tokens_per_second. Rows that are of no use are listed.
    """
    from analytics.imported import ImportProblem, imported

    name = suite if suite is not None else re.sub(r"[^a-z0-9_]+", "-", file.stem.lower()).strip("-_")[:64]
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        fail(f"--suite {name}: lower-case letters, digits, - and _ only, 64 at most")
    try:
        found = imported(file, suite=name, **naming)
    except ImportProblem as problem:
        fail(*str(problem).splitlines())
    logged = 0 if dry_run or not found.rows else _keep(found, runs, store)
    if as_json:
        click.echo(json.dumps(_document(found, logged), indent=1))
    else:
        _show(found, runs, logged, dry_run=dry_run)
    if not found.rows:
        fail(f"nothing in {file} can be used, so nothing was imported")


def _keep(found: Imported, runs: Path, store: str | None) -> int:
    """Write the rows into a folder of their own, unless it is there, and log them; return how many were logged now."""
    from bench.files import write_text
    from bench.tracking import IMPORTED, StoreError, sync

    folder = runs / found.suite / found.execution
    if not (folder / IMPORTED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / IMPORTED, "".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows))
    click.echo(f"logging {len(found.rows)} runs ...", err=True)
    try:
        return sync(runs, store, folder)[0]
    except StoreError as error:
        fail(str(error), "the rows are kept: bench sync logs them later", code=1)


def _document(found: Imported, logged: int) -> dict[str, Any]:
    return {
        "suite": found.suite,
        "execution": found.execution,
        "columns": {column.name: column.target for column in found.columns},
        "factors": {column.name: column.factor for column in found.columns if column.factor != 1},
        "ignored": found.ignored,
        "refused": [{"line": line, "reason": reason} for line, reason in found.refused],
        "notes": found.notes,
        "logged": logged,
        "runs": found.rows,
    }


def _show(found: Imported, runs: Path, logged: int, *, dry_run: bool) -> None:
    from analytics.words import printable

    for column in found.columns:
        times = "" if column.factor == 1 else f" × {column.factor:g}"
        click.echo(f"{printable(column.name)}{times} -> {column.target}")
    if found.ignored:
        click.echo(f"not used: {', '.join(map(printable, found.ignored))}")
    for row in found.rows[:3] if dry_run else []:
        click.echo(f"  {', '.join(f'{key} {printable(value)}' for key, value in sorted(row.items()))}")
    for line, reason in found.refused[:_SHOWN]:
        click.echo(f"line {line} is left out: {printable(reason, 200)}")
    if len(found.refused) > _SHOWN:
        click.echo(f"... and {len(found.refused) - _SHOWN} more lines (--json lists them)")
    for note in found.notes:
        click.echo(note)
    usable = f"{len(found.rows)} of {len(found.rows) + len(found.refused)} rows"
    if dry_run:
        click.echo(f"{usable} can be imported; nothing was written")
    elif found.rows:
        click.echo(
            f"{usable} are runs of suite {found.suite}, {logged} of them new: {runs / found.suite / found.execution}"
        )
        click.echo(f"Look at them with: {program()} fit {found.suite}")
