"""`bench import`: results that others measured, from a file, next to your own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench.cli.options import json_option, print_blocks, print_json, runs_option, store_option
from bench.errors import UserError


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="COLUMN=NAME[:FACTOR]",
    help="Map a column of FILE to a name of wattbench; step_ms=step_seconds:0.001 also converts it, and "
    "COLUMN= leaves it out. Can be repeated.",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a value for all rows.")
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="The mark before fractions: 11.216 is eleven with . and eleven thousand with , here. Default: as FILE shows.",
)
@click.option("--suite", help="Name of the suite. Default: the name of the file.")
@runs_option
@store_option
@click.option("--dry-run", is_flag=True, help="Show the columns and the first rows as they would be imported.")
@json_option
def import_(
    file: Path, suite: str | None, runs: Path, store: str | None, dry_run: bool, as_json: bool, **naming: Any
) -> None:
    """Import a table of results that others measured: CSV, Markdown, JSON or Parquet; exports of codecarbon, MLflow or W&B.

    Columns are used by their names and units: devices, GPUs, tok/s, step time (ms). What is not sure is listed: map it with
    --map. Each row needs devices, and a speed, a duration or an energy. Other rows are left out and listed.
    """
    from analytics.runs.imported import imported, keep, namesakes, suite_of
    from analytics.say.blocks import Commands, command, unnamed
    from analytics.say.imported import blocks

    table = imported(file, suite=suite_of(file, suite), **naming)
    others, logged = namesakes(table, store), None
    if table.rows and not dry_run:
        click.echo(f"logging {len(table.rows)} runs ...", err=True)
        logged = keep(table, runs, store)
    if as_json:
        print_json({**asdict(table), "logged": logged, "namesakes": others})
    else:
        pairs = [("--map", text) for text in naming["maps"]] + [("--set", text) for text in naming["settings"]]
        pairs += [("--decimal", naming["decimal"])] * (naming["decimal"] is not None)
        pairs += [("--suite", suite)] * (suite is not None) + [("--runs", str(runs))] * (runs != Path("runs"))
        really = command("import", str(file), *(word for pair in pairs for word in pair), store=store)
        following = really if logged is None else command("fit", table.suite, store=store)
        print_blocks([*blocks(table, logged, others), Commands((following,) * bool(table.rows)), *unnamed(store)])
    if not table.rows:
        raise UserError(f"no row of {file} can be used, so nothing was imported")
