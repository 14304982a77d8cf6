"""`bench show SUITE`: what would be run here, how long it takes, and what is skipped and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option, print_json, read_suite, suite_options
from bench.errors import UserError
from bench.registry import did_you_mean
from bench.strategies.catalog import CATALOG, allowed

if TYPE_CHECKING:
    from analytics.plan.preview import Preview


def explain(name: str) -> str:
    """Describe a strategy, all of an axis, or everything ("all"). Raises UserError for another name."""
    lines = []
    for axis, strategies in CATALOG.items():
        for strategy, options in strategies.items():
            if name not in ("all", axis, strategy):
                continue
            lines.append(f"{axis} {strategy}: {options.help()}")
            for option, field in options.model_fields.items():
                default = str(field.default).lower() if isinstance(field.default, bool) else field.default
                values = allowed(field.annotation, tuple(field.metadata))
                lines.append(f"    {option}: {field.description} ({values}; default {default})")
    if not lines:
        raise UserError(f"no strategy {name!r}: {did_you_mean(name, {n for names in CATALOG.values() for n in names})}")
    return "\n".join(lines)


def _print_options(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is None or context.resilient_parsing:
        return
    click.echo(explain(name))
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
    help="Explain the options of a strategy (lora), of a field (precision), or of all, and exit.",
)
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
