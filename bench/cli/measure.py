"""`bench measure -- COMMAND`: time, energy, carbon, cost and memory of any command."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option, runs_option, site_fields, site_options, store_option

if TYPE_CHECKING:
    from bench.record import RunRecord
    from bench.schema import Site

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a shell for a command that it cannot start."""


def _pattern(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from error
    return value


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@site_options
@click.option("--gpus", metavar="0,1", help="Count these GPUs only (indices or UUIDs); otherwise all visible ones.")
@click.option(
    "--warmup-steps", type=click.IntRange(0), default=3, show_default=True, help="Reported steps to leave out."
)
@click.option("--step-pattern", callback=_pattern, metavar="REGEX", help="A line of output that ends a step.")
@click.option(
    "--idle-seconds",
    type=click.FloatRange(0, 600),
    default=3.0,
    show_default=True,
    help="Idle power, first: 2.5 s or more, or 0.",
)
@runs_option
@store_option
@click.option("--no-store", is_flag=True, help="Do not log to MLflow.")
@json_option
def measure(command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND and measure it: `bench measure -- python train.py`. Its exit code is passed on.

    GPUs are those that the command is seen to use, else all that are visible. Steps are known where the script calls
    bench.steps.step, or with --step-pattern. With --json the record goes to stdout, and the command's output to stderr.
    """
    from bench.folder import RECORD
    from bench.machine.environment import EnvironmentProblem, find_machine
    from bench.run.measure import MeasureOptions
    from bench.run.measure import measure as run

    as_json = options["as_json"]
    try:
        machine, _ = find_machine(options["gpus"])
        asked = MeasureOptions(
            argv=list(command),
            site=_site(options),
            warmup_steps=options["warmup_steps"],
            idle_seconds=options["idle_seconds"],
            pattern=options["step_pattern"],
            output=sys.stderr.buffer if as_json else None,
        )
        record, folder = run(asked, machine, options["runs"])
    except EnvironmentProblem as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail(f"cannot start the command: {error}", code=NOT_FOUND)
    except PermissionError as error:
        fail(f"cannot start the command: {error}", code=NOT_EXECUTABLE)
    if not options["no_store"]:
        _log(record, folder, options["store"])
    if as_json:
        click.echo(record.model_dump_json(indent=1))
    else:
        click.echo("\n".join(lines(record)) + f"\n  record: {folder / RECORD.name}", err=True)
    sys.exit(_exit_code(folder))


def _site(options: dict[str, Any]) -> Site:
    from bench.figures.carbon import intensity
    from bench.schema import Site
    from bench.suites.load import SuiteError, with_site

    given = site_fields(options)
    if region := os.environ.get("WATTBENCH_REGION"):
        given.setdefault("region", region)
    try:
        site = with_site(Site(), given)
        if site.region is not None:
            intensity(site.region)
    except SuiteError as error:
        fail(*error.messages)
    except ValueError as error:
        fail(str(error))
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
    from bench.folder import EXIT, Exit

    code = (EXIT.find(folder) or Exit()).exitcode or 0
    return 128 - code if code < 0 else code  # as a shell tells a signal


def lines(record: RunRecord) -> list[str]:
    """The record in words: each figure with its unit and where it comes from."""
    from analytics.words import number, scale
    from bench.figures.flags import COVERED, meaning
    from bench.figures.metrics import labels, metrics, split_energy, systematic

    known, texts = metrics(record), labels(record)
    ended = "" if record.error is None else f", {record.error.message}"
    out = [f"wattbench: {number(record.duration_seconds)} s{ended}"]
    for readings, label in zip(split_energy(record.energy), ("measured", "estimated by a model"), strict=True):
        joules = sum(reading.energy_joules for reading in readings)
        parts = ", ".join(f"{r.component} {number(r.energy_joules)} J" for r in readings)
        if readings:
            divisor, unit = scale(joules, "J")
            watts = sum(reading.power_watts_mean for reading in readings)
            spread = f" ± {number(systematic(readings))} J" if label == "measured" else ""
            out.append(
                f"  energy, {label}: {number(joules / divisor)} {unit}{spread} ({number(watts)} W mean): {parts}"
            )
            out += [
                f"    {r.component} {r.device} was read for {100 * r.coverage:.0f} % of the time only: all sums are too low"
                for r in readings
                if r.coverage < COVERED
            ]
    if not record.energy:
        out.append("  energy: none, no meter could read any (bench doctor says why)")
    elif texts.get("energy_total") == "partial_total":
        out.append(f"  a partial total: {texts['energy_missing'].replace(' ', ' and ')} could not be measured")
    if record.carbon is not None:
        carbon, grid = record.carbon, record.carbon.intensity
        factors = f"{1000 * grid.kg_per_kwh:.4g} g/kWh in {grid.region} {grid.year or ''}, PUE {carbon.pue:g}"
        basis = f"{carbon.energy_basis} energy"
        out.append(f"  carbon: {number(1000 * carbon.emissions_kg)} g CO2e ({basis} × {factors})")
    if record.cost is not None:
        lacking = record.cost.mode == "owned" and record.cost.usd_per_kwh is None
        how = f"{record.cost.mode}, devices: {record.cost.devices}{', electricity not in it' if lacking else ''}"
        out.append(f"  cost: {number(record.cost.cost_usd)} USD ({how})")
    if "peak_memory_bytes" in known:
        divisor, unit = scale(known["peak_memory_bytes"], "B")
        of = "of all processes on a GPU" if record.spec.device_type == "cuda" else "of the largest process"
        out.append(f"  peak memory {of}: {number(known['peak_memory_bytes'] / divisor)} {unit}")
    if known.get("steps"):
        units = [unit for unit in ("samples", "tokens") if f"{unit}_per_second" in known]
        rates = [f"{number(known[f'{unit}_per_second'])} {unit}/s" for unit in units]
        rates.append(f"{number(known['step_seconds_median'])} s a step")
        names = {"joules_per_sample": "J a sample", "joules_per_token": "J a token"}
        rates += [f"{number(known[name])} {unit}" for name, unit in names.items() if name in known]
        names = {f"{name}_estimated": unit for name, unit in names.items()}
        rates += [f"~{number(known[name])} {unit} (estimated)" for name, unit in names.items() if name in known]
        out.append(f"  {known['steps']:.0f} steps in {number(known['window_seconds'])} s: {', '.join(rates)}")
    phases = [name for name in known if name.startswith("phase_") and name.endswith("_seconds")]
    if len(phases) > 1 and known.get("steps"):
        told = [f"{name.removeprefix('phase_').removesuffix('_seconds')} {number(known[name])} s" for name in phases]
        out.append(f"  phases: {', '.join(told)}")
    if record.grade is not None:
        out.append(f"  grade {record.grade}")
        out += [f"    {flag}: {meaning(flag)}" for flag in record.flags]
    return out
