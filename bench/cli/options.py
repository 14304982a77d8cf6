"""Options that several verbs share, and how a suite is read with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.cli import fail
from bench.schema import Machine
from bench.suite import Plan, SuiteError, expand, load_suite, only, override, with_site

STORE_HELP = "Tracking URI of MLflow; otherwise MLFLOW_TRACKING_URI, otherwise mlflow.db in this folder."


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --store."""
    return click.option("--store", metavar="URI", help=STORE_HELP)(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(command)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --runs."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--runs", type=kind, default=Path("runs"), show_default=True, help="Folder of the runs.")(
        command
    )


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the suite and what fits it to the machine and the day."""
    for decorate in (
        click.argument("suite", type=click.Path(path_type=Path), metavar="SUITE.yaml"),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Fix a field, or give a list of values."
        ),
        click.option("--only", "filters", multiple=True, metavar="KEY=VALUE[,VALUE]", help="Do these runs only."),
        click.option("--region", help="Where the power comes from: FR, FRA, US-CA. Otherwise WATTBENCH_REGION."),
        click.option("--pue", type=float, help="Power usage effectiveness of the data centre, 1 or more."),
        click.option("--price", type=float, metavar="USD", help="Rental price of one device for one hour."),
        click.option("--electricity-price", type=float, metavar="USD", help="Price of one kWh, for devices you own."),
        click.option("--gpus", metavar="0,1", help="Use these GPUs (indices or UUIDs), even if others use them too."),
    ):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Asked:
    """A suite as the command line asks for it: for this machine, whole and narrowed down."""

    machine: Machine
    plan: Plan
    narrowed: Plan


def read_suite(
    suite: Path,
    settings: tuple[str, ...],
    filters: tuple[str, ...],
    region: str | None,
    pue: float | None,
    price: float | None,
    electricity_price: float | None,
    gpus: str | None,
) -> Asked:
    """Read, override and expand a suite; every mistake ends the command with exit code 2 and all messages."""
    from bench.carbon import intensity
    from bench.environment import EnvironmentProblem, check_no_gpu_is_hidden, find_machine

    region = region or os.environ.get("WATTBENCH_REGION")
    given = {"region": region, "pue": pue, "usd_per_device_hour": price, "usd_per_kwh": electricity_price}
    try:
        machine, no_gpu = find_machine(gpus)
        asked = with_site(
            override(load_suite(suite), settings), {name: value for name, value in given.items() if value is not None}
        )
        if "device_type" not in {**asked.defaults, **asked.matrix}:
            check_no_gpu_is_hidden(no_gpu)
        plan = expand(asked, machine)
        if plan.suite.region is not None:
            intensity(plan.suite.region)
        return Asked(machine, plan, only(plan, filters))
    except SuiteError as error:
        fail(*error.messages)
    except (EnvironmentProblem, ValueError) as error:
        fail(str(error))
