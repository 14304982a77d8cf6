"""`bench show SUITE`: what would be run here, how long it takes, and what is skipped and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option, print_json, read_suite, suite_options

if TYPE_CHECKING:
    from analytics.preview import Preview


@click.command()
@suite_options
@json_option
@click.option("--memory/--no-memory", "with_memory", default=True, help="Estimate memory per device; imports torch.")
def show(as_json: bool, with_memory: bool, **options: Any) -> None:
    """List the runs of a suite on this machine, in order, with time, cost and memory. Nothing is started."""
    echo(read_suite(**options), as_json=as_json, with_memory=with_memory)


def echo(preview: Preview, *, as_json: bool, with_memory: bool = True) -> None:
    """Print what would be run."""
    memory = preview.memory() if with_memory else {}
    if as_json:
        print_json(preview.to_dict(memory))
    else:
        click.echo("\n".join(preview.lines(memory)))
