"""`bench baseline`: runs kept in a file of their own, to compare later ones with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bench.cli import fail
from bench.cli.options import baselines_option, json_option, store_option


@click.group()
def baseline() -> None:
    """Keep runs as a baseline: a file that outlives the store, small enough to be committed to git."""


@baseline.command()
@click.argument("name")
@click.argument("suite", required=False)
@click.option("--execution", help="One execution by its name; otherwise the newest of each suite.")
@click.option("--force", is_flag=True, help="Replace a baseline of that name.")
@baselines_option
@store_option
@json_option
def save(
    name: str, suite: str | None, execution: str | None, force: bool, folder: Path, store: str | None, as_json: bool
) -> None:
    """Save the runs of SUITE, or of all suites, as NAME."""
    from analytics.frame import frame
    from analytics.rowfiles import RowsError, save_baseline
    from bench.cli.selection import select

    rows = frame(select(suite, execution, store, everything=False)).to_dict("records")
    try:
        path = save_baseline(folder, name, rows, force=force)
    except RowsError as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps({"name": name, "file": str(path), "runs": len(rows)}))
    else:
        other = f"suite:{rows[0]['suite']}" if suite else "SUITE"
        click.echo(f"{path}: {len(rows)} runs; compare with: bench compare baseline:{name} {other}")


@baseline.command("list")
@baselines_option
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the baselines that are there."""
    from analytics.rowfiles import RowsError, baseline_path, baselines, read_rows
    from analytics.words import printable

    found: list[dict[str, Any]] = []
    for name in baselines(folder):
        try:
            rows = read_rows(baseline_path(folder, name))
        except RowsError as error:
            click.echo(printable(f"{name}: {error}", 300), err=True)
            continue
        columns = ("suite", "execution", "commit", "host")
        facts = {f"{key}s": sorted({str(row[key]) for row in rows if key in row}) for key in columns}
        found.append({"name": name, "runs": len(rows), **facts})
    if as_json:
        click.echo(json.dumps({"baselines": found}, indent=1, allow_nan=False))
        return
    for one in found:
        told = "; ".join(", ".join(names) for names in one.values() if isinstance(names, list) and names)
        click.echo(printable(f"{one['name']}: {one['runs']} runs; {told}", 300))
    if not found:
        click.echo(f"no baselines in {folder}; make one with: bench baseline save NAME SUITE")


@baseline.command()
@click.argument("name")
@baselines_option
def remove(name: str, folder: Path) -> None:
    """Remove the baseline NAME."""
    from analytics.rowfiles import RowsError, baseline_path, baselines
    from bench.registry import did_you_mean

    try:
        path = baseline_path(folder, name)
    except RowsError as error:
        fail(str(error))
    there = baselines(folder)
    if name not in there:
        fail(f"no baseline {name!r} in {folder}: {did_you_mean(name, there) if there else 'there are none'}")
    path.unlink()
    click.echo(f"{path} is removed")
