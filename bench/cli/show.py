"""`bench show SUITE`: what would be run here, how long it takes, and what is skipped and why."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option, print_blocks, print_json, program, read_suite, runs_option, suite_options
from bench.redact import redact

if TYPE_CHECKING:
    from analytics.plan.preview import Preview
    from bench.jobs.session import PlannedBlock


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
@click.option("--no-submit-test", "untested", is_flag=True, help="Do not ask Slurm whether it would take the jobs.")
@runs_option
def show(runs: Path, as_json: bool, with_memory: bool, untested: bool, **options: Any) -> None:
    """List the runs of a suite on this machine, in order, with time, cost and memory. Nothing is started.

    For a cluster, from its login node, the jobs with their batch scripts follow, and what Slurm says of them.
    """
    echo(read_suite(**options), runs, as_json=as_json, with_memory=with_memory, test=not untested)


def echo(preview: Preview, runs: Path, *, as_json: bool, with_memory: bool = True, test: bool = True) -> None:
    """Print what would be run."""
    from analytics.say.blocks import Commands
    from analytics.say.jobs import job_blocks
    from analytics.say.runs import blocks
    from bench.machine.partition import Partition

    memory = preview.memory() if with_memory else {}
    jobs: list[PlannedBlock] = []
    if isinstance(preview.machine, Partition):
        from bench.jobs.session import planned_blocks

        jobs = planned_blocks(preview.selected, preview.machine, runs, test=test)
    if as_json:
        print_json(preview.to_dict(memory) | ({"jobs": [asdict(job) for job in jobs]} if jobs else {}))
        return
    typed: list[str] = click.get_current_context().find_root().obj or ["show"]
    left_out = {"--dry-run", "--memory", "--no-memory", "--no-submit-test"}
    words = [program(), "run", *(word for word in typed[1:] if word not in left_out)]
    possible = bool(preview.selected.to_do) and (not jobs or any(job.accepted is not False for job in jobs))
    following = [Commands((shlex.join(map(redact, words)),))] if possible else []
    print_blocks([*blocks(preview, memory), *job_blocks(jobs), *following])
