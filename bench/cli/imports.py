"""`bench import`: someone else's results, from a file, beside one's own."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
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
    logged = None if dry_run or not found.rows else _keep(found, runs, store)
    if as_json:
        click.echo(json.dumps({**asdict(found), "logged": logged}, indent=1))
    else:
        _show(found, logged)
    if not found.rows:
        fail(f"nothing in {file} can be used, so nothing was imported")


def _keep(found: Imported, runs: Path, store: str | None) -> int:
    """Write the rows into a folder of their own, unless it is there, and log them; return how many were logged now."""
    from bench.files import write_text
    from bench.folder import IMPORTED
    from bench.store.sync import sync
    from bench.store.tracker import StoreError

    folder = runs / found.suite / found.execution
    if not (folder / IMPORTED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / IMPORTED, "".join(json.dumps(row, allow_nan=False) + "\n" for row in found.rows))
    click.echo(f"logging {len(found.rows)} runs ...", err=True)
    try:
        return sync(runs, store, folder)[0]
    except StoreError as error:
        fail(str(error), "the rows are kept: bench sync logs them later", code=1)


def _show(found: Imported, logged: int | None) -> None:
    from analytics.words import printable

    for column in found.columns:
        click.echo(
            f"{printable(column.name)}{f' × {column.factor:g}' if column.factor != 1 else ''} -> {column.target}"
        )
    lines = [f"not used: {', '.join(map(printable, found.ignored))}"] if found.ignored else []
    for row in found.rows[:3] if logged is None else []:
        lines.append(f"  {', '.join(f'{key} {printable(value)}' for key, value in sorted(row.items()))}")
    lines += [f"line {line} is left out: {printable(reason, 200)}" for line, reason in found.refused[:_SHOWN]]
    if len(found.refused) > _SHOWN:
        lines.append(f"... and {len(found.refused) - _SHOWN} more lines (--json lists them)")
    usable = f"{len(found.rows)} of {len(found.rows) + len(found.refused)} rows"
    told = (
        "can be imported; nothing was written" if logged is None else f"are runs of {found.suite}, {logged} of them new"
    )
    for line in (*lines, *found.notes, f"{usable} {told}"):
        click.echo(line)
    if logged is not None:
        click.echo(f"Look at them with: {program()} fit {found.suite}")
