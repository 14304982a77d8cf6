"""`bench baseline`: runs saved to a file, to compare later runs with."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import options as shared


@click.group()
def baseline() -> None:
    """Save runs as a baseline: a file that outlives the store, small enough to commit to git."""


@baseline.command()
@click.argument("name")
@click.argument("suite", required=False)
@shared.execution_option
@click.option("--force", is_flag=True, help="Replace an existing baseline of that name.")
@shared.baselines_option
@shared.store_option
@shared.json_option
def save(
    name: str, suite: str | None, execution: str | None, force: bool, folder: Path, store: str | None, as_json: bool
) -> None:
    """Save the runs of SUITE, or of all suites, as NAME."""
    from analytics.runs.files import save_baseline
    from analytics.runs.frame import frame
    from analytics.runs.selection import select
    from analytics.say.blocks import Commands, Sentence, command

    rows = frame(select(suite, execution, store, everything=False)).to_dict("records")
    path = save_baseline(folder, name, rows, force=force)
    if as_json:
        shared.print_json({"name": name, "file": str(path), "runs": len(rows)})
        return
    new = f"suite:{rows[0]['suite']}" if suite else "SUITE"
    elsewhere = [] if folder == Path("baselines") else ["--folder", str(folder)]
    compare = command("compare", f"baseline:{name}", new, *elsewhere, store=store)
    shared.print_blocks([Sentence(f"{path}: {len(rows)} runs saved", "title"), Commands((compare,), "After new runs")])


@baseline.command("list")
@shared.baselines_option
@shared.json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the baselines."""
    from analytics.judge.sides import list_baselines
    from analytics.say.blocks import Table
    from analytics.text import printable

    facts, problems = list_baselines(folder)
    for problem in problems:
        click.echo(printable(problem, 300), err=True)
    if as_json:
        shared.print_json({"baselines": facts})
        return
    if not facts:
        click.echo(f"no baselines in {folder}; save one with: bench baseline save NAME SUITE")
        return
    columns = tuple(name for name in facts[0] if name != "executions")
    texts = ([", ".join(v) if isinstance(v, list) else v for v in map(each.get, columns)] for each in facts)
    shared.print_blocks([Table("", columns, tuple(tuple(map(printable, cells)) for cells in texts), figures=False)])


@baseline.command()
@click.argument("name")
@shared.baselines_option
def remove(name: str, folder: Path) -> None:
    """Remove the baseline NAME."""
    from analytics.runs.files import remove_baseline

    click.echo(f"removed {remove_baseline(folder, name)}")
