"""Options that several verbs share, and how a suite is read with them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from analytics.amounts import amount, budget, counts, usd_per
from bench.cluster_options import ClusterOptions
from bench.errors import BadValue, UserError, located
from bench.folder import OWN_RUNS, RUNS
from bench.suites.load import SITE_OPTIONS

if TYPE_CHECKING:
    import pandas as pd

    from analytics.plan.preview import Preview
    from analytics.say.blocks import Block
    from bench.schema import Machine

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Read(click.ParamType):  # type: ignore[type-arg]  # older versions are not generic
    """A type of an option: what a function makes of its text; the option is named in a mistake."""

    name = "text"

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of a text. Raises UserError."""
        with located(param.opts[0] if param is not None else str(value)):
            return self._read(value) if isinstance(value, str) else value


class Sections(click.Command):
    """A command whose help lists its options in sections: `sections` has the names of parameters by heading."""

    sections: ClassVar[dict[str, tuple[str, ...]]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of no section first, then the sections."""
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        rows = {option.name: row for option in options if (row := option.get_help_record(ctx)) is not None}
        parts = {heading: [rows.pop(name) for name in names] for heading, names in self.sections.items()}
        for heading, lines in {"Options": list(rows.values()), **parts}.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


device_counts = Read(counts)
"""Numbers of devices: 8,64,512, or 8-512 for 8, 16, 32 ... 512."""


def _folder(flag: str, default: str, text: str) -> _Decorator:
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option(flag, type=kind, default=Path(default), show_default=True, help=text)


def _all(*decorators: _Decorator) -> _Decorator:
    """Return a decorator that adds several options, which appear in the help in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _address(text: str) -> str:
    if not text.strip():
        raise BadValue("wanted the URI of a store, got nothing")
    return text


def _own_factor(text: str) -> str:
    from bench.figures.regions import own_factor

    return own_factor(text)


_STORE = "MLflow tracking URI. Default: MLFLOW_TRACKING_URI, else mlflow.db in this folder."
store_option = click.option("--store", metavar="URI", type=Read(_address), help=_STORE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
explain_option = click.option("--explain", is_flag=True, help="Add definitions, limits and evidence.")
baselines_option = _folder("--folder", "baselines", "Folder of the baselines.")
runs_option = _folder("--runs", RUNS, "Folder of the runs.")
own_runs_option = _folder("--runs", OWN_RUNS, "Folder of the runs.")
gpus_option = click.option(
    "--gpus", metavar="0,1", help="Use only these GPUs (indices or UUIDs), even if other processes use them."
)
launcher_option = click.option(
    "--launcher",
    type=click.Choice(["local", "slurm", "ray"]),
    help="Where runs are done: on this machine; on nodes of Slurm, for which jobs are submitted outside of an allocation; or "
    "on nodes of Ray (RAY_ADDRESS). Default: on all nodes of the allocation around this command, else on this machine.",
)
cluster_options = _all(
    click.option("--cluster", metavar="NAME", help="Profile of the site's clusters.yaml: partition, account, limits."),
    click.option("--nodes", type=click.IntRange(1, 1_000_000), metavar="N", help="Most nodes of a run on a cluster."),
)
execution_option = click.option("--execution", help="One execution, by name. Default: the newest of each suite.")

site_options = _all(
    click.option(
        "--region", help="Region of the power grid: FR, UK, US-CA, us-west-2. Default for new runs: WATTBENCH_REGION."
    ),
    click.option(
        "--carbon-intensity",
        type=Read(_own_factor),
        metavar="30g",
        help="CO2e per kWh of your own, instead of --region.",
    ),
    click.option("--pue", type=float, help="Power usage effectiveness of the data centre, 1 or more."),
    click.option(
        "--price",
        type=Read(usd_per("hour")),
        metavar="USD",
        help="Price of renting one device for one hour, power included.",
    ),
    click.option(
        "--electricity-price", type=Read(usd_per("kWh")), metavar="USD", help="Price of one kWh, for devices you own."
    ),
    click.option(
        "--capital-price",
        type=Read(usd_per("hour")),
        metavar="USD",
        help="Cost of one hour of a device you own, without power: its price divided by its hours of use.",
    ),
    click.option("--price-note", metavar="TEXT", help="Source of the price: provider, date, spot or list price."),
)
"""Region, PUE and prices; `site_fields` takes their values."""


def _budget(text: str) -> tuple[str, str, float]:
    return (text.strip(), *budget(text))


forecast_options = _all(
    click.option("--total-steps", type=Read(amount), metavar="N", help="Forecast a training of N steps: 5000, 100k."),
    click.option("--total-samples", type=Read(amount), metavar="N", help="Forecast a training of N samples."),
    click.option("--total-tokens", type=Read(amount), metavar="N", help="Forecast a training of N tokens."),
    click.option(
        "--total-epochs", type=Read(amount), metavar="N", help="Forecast N epochs, where the script states their steps."
    ),
    click.option(
        "--budget",
        "budgets",
        type=Read(_budget),
        multiple=True,
        metavar="LIMIT",
        help="Say whether the whole training stays within 50usd, 10kWh, 5kg (of CO2e) or 12h. Can be repeated.",
    ),
    click.option(
        "--enforce", is_flag=True, help="End COMMAND when its runs have used up a budget, as far as measured."
    ),
    click.option(
        "--live",
        is_flag=True,
        help="Show steps, speed, power and time left on one line of the terminal, which the output of COMMAND may break.",
    ),
)
"""The length of a whole training, and budgets for it, as (text, quantity, amount)."""

_SET = "Set a field for all runs, or vary it: KEY=[a, b]. Can be repeated."
_ONLY = "Select only runs with these values. Can be repeated."
suite_options = _all(
    click.argument("suite", type=click.Path(path_type=Path), metavar="SUITE.yaml"),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=_SET),
    click.option("--only", "filters", multiple=True, metavar="KEY=VALUE[,VALUE]", help=_ONLY),
    click.option(
        "--publish",
        is_flag=True,
        help="Measure long enough to publish: 60 s windows after 30 s of warm-up, at least 5 repeats.",
    ),
    gpus_option,
    launcher_option,
    cluster_options,
    site_options,
)
"""A suite, and how it is adapted to this machine; `read_suite` takes their values."""

_selection = _all(
    execution_option,
    click.option("--all", "everything", is_flag=True, help="All executions, not only the newest."),
    store_option,
    click.option("--refresh", is_flag=True, help="Read the whole store again, not only what is new in it."),
)
selection_options = _all(click.argument("suite", required=False), _selection)
"""The arguments of `analytics.runs.selection.select`."""
several_selection_options = _all(click.argument("suites", nargs=-1, metavar="[SUITE]..."), _selection)
"""The arguments of `analytics.runs.selection.selected` and `together`."""


def site_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Take the values of `site_options` out of the options of a command; return those given, by field of Site."""
    factor = options.pop("carbon_intensity", None)
    values = {field: options.pop(option.removeprefix("--").replace("-", "_")) for field, option in SITE_OPTIONS.items()}
    if factor is not None and values["region"] is not None:
        raise UserError("give --region or --carbon-intensity, not both")
    values["region"] = values["region"] or factor
    return {field: value for field, value in values.items() if value is not None}


def place(options: dict[str, Any]) -> dict[str, Any]:
    """Do the same for a command that runs something: without --region, WATTBENCH_REGION counts."""
    region = os.environ.get("WATTBENCH_REGION")
    return ({"region": region} if region else {}) | site_fields(options)


def find(gpus: str | None, launcher: str | None, asked: ClusterOptions | None = None) -> tuple[Machine, str | None]:
    """Return where runs are done, and the reason if it has no GPU.

    That is this machine, the allocation of Slurm around this command, what jobs are asked for, or nodes of Ray.
    """
    from bench.machine.cluster import find_cluster, in_allocation, several_nodes
    from bench.machine.environment import find_machine
    from bench.machine.partition import find_partition
    from bench.machine.ray import find_ray

    if launcher not in (None, "ray", "slurm") or (launcher is None and not several_nodes()):
        return find_machine(gpus)
    if gpus is not None:
        raise UserError(
            "--gpus is for one machine: add --launcher local. In an allocation Slurm says which GPUs are used: "
            "salloc --gpus-per-node=2.\nOf nodes of Ray, cluster.devices_per_node says how many"
        )
    if launcher == "ray":
        return find_ray(asked), None
    if in_allocation():
        return find_cluster(asked), None
    return find_partition(asked or ClusterOptions()), None


def read_suite(
    suite: Path,
    settings: tuple[str, ...],
    filters: tuple[str, ...],
    gpus: str | None,
    launcher: str | None,
    cluster: str | None,
    nodes: int | None,
    *,
    publish: bool,
    **site: Any,
) -> Preview:
    """Read a suite, apply the options, and expand it for this machine. Raises UserError with all mistakes."""
    from analytics.plan.preview import Preview
    from bench.figures.regions import intensity
    from bench.machine.cluster import in_allocation
    from bench.machine.environment import check_no_gpu_is_hidden
    from bench.machine.partition import Partition
    from bench.suites.expand import expand, only
    from bench.suites.load import load_profile, load_suite, override, with_cluster, with_site

    fields = place(site)
    definition = with_site(override(load_suite(suite), settings), fields)
    definition = with_cluster(definition, load_profile(cluster), max_nodes=nodes)
    machine, no_gpu = find(gpus, launcher or definition.launcher, definition.cluster)
    given = [name for name, value in (("--cluster", cluster), ("--nodes", nodes)) if value is not None]
    given += [f"--set {setting}" for setting in settings if setting.startswith("cluster.")]
    if given and machine.launcher == "local" and not in_allocation():
        raise UserError(f"{given[0]} is for a cluster, and this would run on this machine: add --launcher slurm or ray")
    open_ended = "auto" in (definition.defaults.get("devices"), definition.matrix.get("devices"))
    if open_ended and isinstance(machine, Partition) and machine.asked.max_nodes is None:
        raise UserError(
            f"devices: auto on a cluster needs --nodes N, or cluster.max_nodes: partition {machine.name} has "
            f"{machine.most_nodes} nodes"
        )
    if "device_type" not in {**definition.defaults, **definition.matrix}:
        check_no_gpu_is_hidden(no_gpu)
    expansion = expand(definition, machine, publish=publish)
    if expansion.suite.region is not None:
        intensity(expansion.suite.region)
    return Preview(machine, expansion, only(expansion, filters))


def print_json(document: Any) -> None:
    """Print a document as JSON; NaN and infinity are refused."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))


def print_answer(blocks: Iterable[Block], runs: pd.DataFrame, store: str | None, *, explain: bool) -> None:
    """Print the answer of stored runs, and how far their executions are."""
    from analytics.say.runs import so_far
    from bench.store.tracker import unfinished

    print_blocks(so_far(blocks, runs, unfinished(store)), explain=explain)


def print_blocks(blocks: Iterable[Block], *, explain: bool = False, stderr: bool = False) -> None:
    """Print an answer; what is behind --explain where the reader asked to `explain`. No command is the one just typed."""
    from analytics.render.terminal import show
    from analytics.say.blocks import Commands
    from bench.cli.progress import screen

    context = click.get_current_context(silent=True)
    typed: list[str] = (context.find_root().obj if context else None) or []
    blocks = [block.besides(typed) if isinstance(block, Commands) else block for block in blocks]
    show(blocks, screen(stderr=stderr), explain=explain, program=program())


def program() -> str:
    """Return what the user has to type for this command: `bench`, or its path where it is not on PATH."""
    path = Path(sys.argv[0])
    installed = shutil.which("bench")
    if path.name != "bench" or (installed is not None and Path(installed).resolve() == path.resolve()):
        return "bench"
    return os.path.relpath(path)
