"""`bench baseline`: runs saved to a file, to compare later runs with."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import baselines_option, execution_option, json_option, print_json, store_option


@click.group()
def baseline() -> None:
    """Save runs as a baseline: a file that outlives the store, small enough to commit to git."""


@baseline.command()
@click.argument("name")
@click.argument("suite", required=False)
@execution_option
@click.option("--force", is_flag=True, help="Replace an existing baseline of that name.")
@baselines_option
@store_option
@json_option
def save(
    name: str, suite: str | None, execution: str | None, force: bool, folder: Path, store: str | None, as_json: bool
) -> None:
    """Save the runs of SUITE, or of all suites, as NAME."""
    from analytics.runs.files import save_baseline
    from analytics.runs.frame import frame
    from analytics.runs.selection import select

    rows = frame(select(suite, execution, store, everything=False)).to_dict("records")
    path = save_baseline(folder, name, rows, force=force)
    if as_json:
        print_json({"name": name, "file": str(path), "runs": len(rows)})
    else:
        other = f"suite:{rows[0]['suite']}" if suite else "SUITE"
        click.echo(f"{path}: {len(rows)} runs; compare with: bench compare baseline:{name} {other}")


@baseline.command("list")
@baselines_option
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the baselines."""
    from analytics.judge.sides import list_baselines
    from analytics.text import printable

    facts, problems = list_baselines(folder)
    for problem in problems:
        click.echo(printable(problem, 300), err=True)
    if as_json:
        print_json({"baselines": facts})
        return
    for each in facts:
        details = "; ".join(", ".join(names) for names in each.values() if isinstance(names, list) and names)
        click.echo(printable(f"{each['name']}: {each['runs']} runs; {details}", 300))
    if not facts:
        click.echo(f"no baselines in {folder}; make one with: bench baseline save NAME SUITE")


@baseline.command()
@click.argument("name")
@baselines_option
def remove(name: str, folder: Path) -> None:
    """Remove the baseline NAME."""
    from analytics.runs.files import remove_baseline

    click.echo(f"removed {remove_baseline(folder, name)}")
