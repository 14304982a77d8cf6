"""`bench show SUITE`: what would be run here, how long it takes, and what is skipped and why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option, print_blocks, print_json, program, read_suite, suite_options
from bench.redact import redact

if TYPE_CHECKING:
    from analytics.plan.preview import Preview


def _print_options(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    from analytics.say.strategies import blocks

    if name is None or context.resilient_parsing:
        return
    print_blocks(blocks(name))
    context.exit()


@click.command()
@suite_options
@json_option
@click.option(
    "--options",
    metavar="[NAME]",
    is_flag=False,
    flag_value="all",
    is_eager=True,
    expose_value=False,
    callback=_print_options,
    help="List all strategies, or explain the options of one (lora) or of a field (precision), and exit.",
)
@click.option("--memory/--no-memory", "with_memory", default=True, help="Estimate memory per device; imports torch.")
def show(as_json: bool, with_memory: bool, **options: Any) -> None:
    """List the runs of a suite on this machine, in order, with time, cost and memory. Nothing is started."""
    echo(read_suite(**options), as_json=as_json, with_memory=with_memory)


def echo(preview: Preview, *, as_json: bool, with_memory: bool = True) -> None:
    """Print what would be run."""
    from analytics.say.blocks import Commands
    from analytics.say.runs import blocks

    memory = preview.memory() if with_memory else {}
    if as_json:
        print_json(preview.to_dict(memory))
        return
    typed: list[str] = click.get_current_context().find_root().obj or ["show"]
    left_out = {"--dry-run", "--memory", "--no-memory"}
    words = [program(), "run", *(word for word in typed[1:] if word not in left_out)]
    print_blocks([*blocks(preview, memory), Commands((shlex.join(map(redact, words)),))])
