"""Options that several verbs share, and how a suite is read with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from analytics.amounts import counts
from bench.cli import fail
from bench.schema import Machine
from bench.suites.expand import Expansion, expand, only
from bench.suites.load import SITE_OPTIONS, SuiteError, load_suite, override, with_site

STORE_HELP = "Tracking URI of MLflow; otherwise MLFLOW_TRACKING_URI, otherwise mlflow.db in this folder."


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --store."""
    return click.option("--store", metavar="URI", help=STORE_HELP)(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def baselines_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --folder, where baselines are kept."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option(
        "--folder", type=kind, default=Path("baselines"), show_default=True, help="Folder of the baselines."
    )(command)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --runs."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--runs", type=kind, default=Path("runs"), show_default=True, help="Folder of the runs.")(
        command
    )


def site_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add region, PUE and prices; `site_fields` takes what they give."""
    for decorate in reversed(
        (  # the last one added is the first in the help
            click.option(
                "--region", help="Where the power comes from: FR, FRA, US-CA. For new runs otherwise WATTBENCH_REGION."
            ),
            click.option("--pue", type=float, help="Power usage effectiveness of the data centre, 1 or more."),
            click.option("--price", type=float, metavar="USD", help="Rental price of one device for one hour."),
            click.option(
                "--electricity-price", type=float, metavar="USD", help="Price of one kWh, for devices you own."
            ),
            click.option(
                "--capital-price",
                type=float,
                metavar="USD",
                help="What one hour of a device you own costs: its price / the hours of its use.",
            ),
            click.option("--price-note", metavar="TEXT", help="Whose price it is: provider, date, spot."),
        )
    ):
        command = decorate(command)
    return command


def site_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Take what `site_options` adds out of the options of a command; return it by field of Site, what is given only."""
    values = {field: options.pop(option.removeprefix("--").replace("-", "_")) for field, option in SITE_OPTIONS.items()}
    return {field: value for field, value in values.items() if value is not None}


def place(options: dict[str, Any]) -> dict[str, Any]:
    """Take `site_fields` out of the options of a command that runs something: WATTBENCH_REGION stands in for --region."""
    region = os.environ.get("WATTBENCH_REGION")
    return ({"region": region} if region else {}) | site_fields(options)


def reading(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type of an option: what `read` makes of its text, and the message of its ValueError."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


device_counts = reading(counts)
"""Numbers of devices: 8,64,512, or 8-512 for 8, 16, 32 ... 512."""


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the suite and what fits it to the machine and the day."""
    for decorate in reversed(
        (
            click.argument("suite", type=click.Path(path_type=Path), metavar="SUITE.yaml"),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="Fix a field, or give a list of values: [a, b].",
            ),
            click.option("--only", "filters", multiple=True, metavar="KEY=VALUE[,VALUE]", help="Do these runs only."),
            click.option(
                "--publish",
                is_flag=True,
                help="Measure what is fit to be published: windows of 60 s, warm-up of 30 s, 5 repeats or more.",
            ),
            click.option(
                "--gpus", metavar="0,1", help="Use these GPUs (indices or UUIDs), even if others use them too."
            ),
            site_options,
        )
    ):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Asked:
    """A suite as the command line asks for it: for this machine, whole and narrowed down."""

    machine: Machine
    plan: Expansion
    narrowed: Expansion


def read_suite(
    suite: Path,
    settings: tuple[str, ...],
    filters: tuple[str, ...],
    gpus: str | None,
    *,
    publish: bool,
    **site: Any,
) -> Asked:
    """Read, override and expand a suite; every mistake ends the command with exit code 2 and all messages.

    `site` are the values of `site_options`; without --region the variable WATTBENCH_REGION counts, then the suite's.
    """
    from bench.figures.carbon import intensity
    from bench.machine.environment import EnvironmentProblem, check_no_gpu_is_hidden, find_machine

    given = place(site)
    try:
        machine, no_gpu = find_machine(gpus)
        asked = with_site(override(load_suite(suite), settings), given)
        if "device_type" not in {**asked.defaults, **asked.matrix}:
            check_no_gpu_is_hidden(no_gpu)
        plan = expand(asked, machine, publish=publish)
        if plan.suite.region is not None:
            intensity(plan.suite.region)
        return Asked(machine, plan, only(plan, filters))
    except SuiteError as error:
        fail(*error.messages)
    except (EnvironmentProblem, ValueError) as error:
        fail(str(error))
