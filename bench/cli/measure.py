"""`bench measure -- COMMAND`: time, energy, carbon, cost and memory of any command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bench.cli import options as shared
from bench.errors import BadValue
from bench.figures.carbon import intensity
from bench.folder import EXIT, RECORD, Exit
from bench.machine.environment import find_machine
from bench.record import RunRecord
from bench.run import measure as measuring
from bench.schema import MEASURE, Site
from bench.suites.load import with_site


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@shared.site_options
@shared.gpus_option
@click.option(
    "--warmup-steps", type=click.IntRange(0), default=3, show_default=True, help="Steps to leave out at the start."
)
@click.option(
    "--step-pattern", type=shared.Read(measuring.step_pattern), metavar="REGEX", help="Lines of output that end a step."
)
@click.option("--steps-per-line", type=click.IntRange(1), help="Steps that a matching line stands for.")
@click.option("--samples-per-step", type=click.IntRange(1), help="Samples of a step, over all processes.")
@click.option("--tokens-per-step", type=click.IntRange(1), help="Tokens of a step, over all processes.")
@click.option(
    "--idle-seconds",
    type=click.FloatRange(0, 600),
    default=3.0,
    show_default=True,
    help="Measure idle power first, for this time: at least 2.5 s, or 0 for not at all.",
)
@shared.runs_option
@shared.store_option
@click.option("--no-store", is_flag=True, help="Do not log to MLflow.")
@shared.explain_option
@shared.json_option
def measure(command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND and measure it: `bench measure -- python train.py`. Its exit code is passed on.

    Throughput is known if the script calls bench.steps.step, or with --step-pattern. GPUs that COMMAND does not use are not
    counted, where that can be seen. With --json, stdout has the record and stderr the output of COMMAND.
    """
    from analytics.say.blocks import Block, Commands, Note
    from analytics.say.blocks import command as printed_command
    from analytics.say.measure import blocks

    as_json = options["as_json"]
    machine, _ = find_machine(options["gpus"])
    asked = measuring.MeasureOptions(
        argv=list(command),
        site=_site(options),
        warmup_steps=options["warmup_steps"],
        idle_seconds=options["idle_seconds"],
        printed=_printed(options),
        output=sys.stderr.buffer if as_json else None,
    )
    record, folder = measuring.measure(asked, machine, options["runs"])
    if not options["no_store"]:
        _log(record, folder, options["store"])
    if as_json:
        click.echo(record.model_dump_json(indent=1))
    else:
        said: list[Block] = [*blocks(record), Note(str(folder / RECORD.name), "Record")]
        if not options["no_store"]:
            said.append(Commands((printed_command("report", MEASURE, "-o", "measure.html", store=options["store"]),)))
        shared.print_blocks(said, stderr=True, explain=options["explain"])
    sys.exit(_exit_code(folder))


def _printed(options: dict[str, Any]) -> dict[str, str | int]:
    names = ("step_pattern", "steps_per_line", "samples_per_step", "tokens_per_step")
    given = {name: options[name] for name in names if options[name] is not None}
    if given and "step_pattern" not in given:
        first = next(iter(given)).replace("_", "-")
        raise BadValue(f"--{first} needs --step-pattern, which says what a line of a step looks like")
    return given


def _site(options: dict[str, Any]) -> Site:
    site = with_site(Site(), shared.place(options))
    if site.region is not None:
        intensity(site.region)
    return site


def _log(record: RunRecord, folder: Path, store: str | None) -> None:
    from bench.store.tracker import Tracker

    tracker = Tracker(store, record.suite, record.execution)
    tracker.open()
    tracker.log(record, folder)
    tracker.close(finished=True)
    if tracker.error:
        click.echo(f"bench: {tracker.error}\nbench: bench sync logs it later", err=True)


def _exit_code(folder: Path) -> int:
    code = (EXIT.find(folder) or Exit()).exitcode or 0
    return 128 - code if code < 0 else code  # as a shell reports a signal
