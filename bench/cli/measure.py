"""`bench measure -- COMMAND`: time, energy, carbon, cost and memory of any command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bench.cli import options as shared
from bench.cli.progress import LiveLine
from bench.errors import BadValue
from bench.figures.metrics import headline
from bench.figures.regions import intensity
from bench.folder import EXIT, OWN_RUNS, RECORD, Exit
from bench.machine.environment import find_machine
from bench.record import RunRecord, Status
from bench.run import measure as measuring
from bench.run.recover import recover
from bench.schema import MEASURE, Site
from bench.suites.load import with_site

if TYPE_CHECKING:
    from analytics.plan.forecast import LengthUnit, TrainingForecast, TrainingLength
    from analytics.say.blocks import Block


class _Measure(shared.Sections):
    sections: ClassVar = {
        "Name and repeats": ("name", "repeats", "settings"),
        "Steps": (
            "warmup_steps",
            "seconds",
            "steps",
            "step_pattern",
            "steps_per_line",
            "samples_per_step",
            "tokens_per_step",
        ),
        "Whole training": ("total_steps", "total_samples", "total_tokens", "budgets", "enforce", "live"),
        "Place and prices": ("region", "pue", "price", "electricity_price", "capital_price", "price_note"),
    }


@click.command(cls=_Measure, context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--name",
    type=shared.Read(measuring.measurement_name),
    default=MEASURE,
    metavar="NAME",
    help="Name of the measurement. Later calls with the name add to it; `bench compare X Y` and `bench report X` take it.",
)
@click.option(
    "--repeats", type=click.IntRange(1, 1000), default=1, show_default=True, help="Run COMMAND so many times."
)
@click.option(
    "--set",
    "settings",
    type=shared.Read(measuring.setting),
    multiple=True,
    metavar="NAME=VALUE",
    help="Record an argument of your own. {NAME} in COMMAND becomes its value; without {NAME} it is only a label. "
    "Can be repeated.",
)
@shared.forecast_options
@shared.site_options
@shared.gpus_option
@click.option(
    "--warmup-steps",
    type=click.IntRange(1, 10**6),
    default=3,
    show_default=True,
    help="Steps to leave out at the start.",
)
@click.option(
    "--seconds", type=click.FloatRange(0, 10**7, min_open=True), help="End COMMAND this long after its warm-up."
)
@click.option("--steps", type=click.IntRange(1, 10**9), help="End COMMAND this many steps after its warm-up.")
@click.option(
    "--step-pattern", type=shared.Read(measuring.step_pattern), metavar="REGEX", help="Lines of output that end a step."
)
@click.option("--steps-per-line", type=click.IntRange(1), help="Steps that a matching line stands for.")
@click.option("--no-hooks", is_flag=True, help="Put nothing into torch to see steps.")
@click.option("--samples-per-step", type=click.IntRange(1), help="Samples of a step, over all processes.")
@click.option("--tokens-per-step", type=click.IntRange(1), help="Tokens of a step, over all processes.")
@click.option(
    "--idle-seconds",
    type=click.FloatRange(0, 600),
    default=3.0,
    show_default=True,
    help="Measure idle power first, for this time: at least 2.5 s, or 0 for not at all.",
)
@shared.own_runs_option
@shared.store_option
@click.option(
    "--into-mlflow-run",
    "script_run",
    metavar="auto|RUN_ID",
    help="Add the figures to the MLflow run of the script, as wattbench.*; auto finds the one that it has made.",
)
@click.option("--no-store", is_flag=True, help="Do not log to MLflow.")
@shared.explain_option
@shared.json_option
def measure(command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND and measure it: `bench measure -- python train.py`. Its exit code is passed on.

    Throughput is known if the script trains with torch, prints a known format or calls wattbench.step; else give
    --step-pattern. GPUs that COMMAND does not use are not counted, where that can be seen. With --json, stdout has the
    record (a list of several repeats) and stderr the output of COMMAND. A repeat that fails is the last one.
    """
    from analytics.plan.forecast import forecast
    from analytics.say.forecast import blocks as forecast_blocks

    as_json, repeats = options["as_json"], options["repeats"]
    if options["steps"] and options["seconds"]:
        raise BadValue("give --steps or --seconds, not both")
    length, site, line = _length(options), _site(options), LiveLine()
    machine, _ = find_machine(options["gpus"])
    asked = measuring.MeasureOptions(
        argv=list(command),
        name=options["name"],
        settings=dict(options["settings"]),
        site=site,
        warmup_steps=options["warmup_steps"],
        idle_seconds=options["idle_seconds"],
        steps=options["steps"],
        seconds=options["seconds"],
        printed=_printed(options),
        output=sys.stderr.buffer if as_json else None,
        repeats=repeats,
        total_steps=options["total_steps"],
        limits=_limits(options, site),
        listen=line.draw if options["live"] else None,
    )
    if options["runs"] == Path(OWN_RUNS) and measuring.make_own_folder():
        click.echo(f"bench: records go to {OWN_RUNS}/ in this folder (--runs names another one)", err=True)
    before = recover(options["runs"])
    runs: list[tuple[RunRecord, Path]] = []
    with measuring.session(asked, machine, options["runs"]) as session:
        if session.renewed:
            parts, have = " and ".join(session.renewed), "has" if len(session.renewed) == 1 else "have"
            click.echo(
                f"bench: {parts} {have} changed since the last runs of {asked.name}: a new series begins", err=True
            )
        while len(runs) < repeats and all(_went_on(*run) for run in runs):
            runs.append(session.run())
            line.clear()
            _ended(*runs[-1], f"run {len(runs)} of {repeats}" if repeats > 1 else "")
    _enforced(options, session)
    if not options["no_store"]:
        for execution in ([run] for run in before):
            _log(execution, options["store"])
        _log(runs, options["store"], options["script_run"])
    told = None if length is None else forecast([record for record, _ in runs], length)
    if as_json:
        shared.print_json(_document(runs, told, repeats))
    else:
        ahead = [] if told is None else forecast_blocks(told, options["budgets"])
        shared.print_blocks([*ahead, *_answer(runs, options)], stderr=True, explain=options["explain"])
    sys.exit(_exit_code(runs[-1][1]))


def _length(options: dict[str, Any]) -> TrainingLength | None:
    from analytics.plan.forecast import TrainingLength

    units: tuple[LengthUnit, ...] = ("steps", "samples", "tokens")
    lengths = {unit: value for unit in units if (value := options[f"total_{unit}"]) is not None}
    if len(lengths) > 1:
        raise BadValue(f"give only one of {' and '.join(f'--total-{unit}' for unit in lengths)}")
    if options["budgets"] and not (lengths or options["enforce"]):
        raise BadValue("--budget needs the length of the whole training (--total-steps 100k), or --enforce")
    if options["enforce"] and not options["budgets"]:
        raise BadValue("--enforce needs a --budget")
    return next((TrainingLength(value, unit) for unit, value in lengths.items()), None)


def _limits(options: dict[str, Any], site: Site) -> dict[str, float]:
    """Return the budgets that end the command, by quantity; the smallest counts."""
    budgets = options["budgets"] if options["enforce"] else ()
    prices = (site.usd_per_device_hour, site.usd_per_kwh, site.usd_capital_per_device_hour)
    for text, quantity, _ in budgets:
        if quantity == "emissions_kg" and site.region is None:
            raise BadValue(f"--budget {text} needs --region to be enforced")
        if quantity == "cost_usd" and prices == (None, None, None):
            raise BadValue(f"--budget {text} needs --price to be enforced")
    return {quantity: min(value for _, one, value in budgets if one == quantity) for _, quantity, _ in budgets}


def _enforced(options: dict[str, Any], runs: measuring.CommandRuns) -> None:
    """Say which budget has ended the command, and which could not end it."""
    for text, quantity, _ in options["budgets"] if options["enforce"] else ():
        if runs.over == quantity:
            click.echo(f"bench: the command was ended: the budget of {text} is used up", err=True)
        elif quantity not in runs.used:
            click.echo(f"bench: the budget of {text} was not enforced: no meter could be read (bench doctor)", err=True)


def _document(
    runs: Sequence[tuple[RunRecord, Path]], told: TrainingForecast | str | None, repeats: int
) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the record of one run, the list of several; with a forecast both under names of their own."""
    records = [record.model_dump(mode="json") for record, _ in runs]
    if told is None:
        return records if repeats > 1 else records[0]
    return {"records": records, "forecast": {"refused": told} if isinstance(told, str) else told.to_dict()}


def _answer(runs: Sequence[tuple[RunRecord, Path]], options: dict[str, Any]) -> list[Block]:
    """Return the answer: of several repeats it is that of `bench fit` for all runs of the configuration under the name.

    Of one run that is not the first of its name it comes after the record.
    """
    from analytics.runs.frame import frame
    from analytics.runs.selection import of_configuration, own_runs
    from analytics.say import measure as say
    from analytics.say.answer import find
    from analytics.say.blocks import Note, Sentence
    from analytics.say.results import execution_blocks
    from bench.figures.metrics import row

    record, folder = runs[-1]
    well = [one for one, _ in runs if one.status is Status.OK]
    stored = frame([]) if options["no_store"] else own_runs(options["store"])
    pooled, made = of_configuration(stored, record), frame(map(row, well))
    pooled = pooled if len(pooled) >= len(made) else made
    told = [block for one in find(pooled) for block in execution_blocks(one)] if well and len(pooled) > 1 else []
    brief = [block for block in told if isinstance(block, Sentence) and block.role != "plain"]
    said = told if len(well) > 1 else [*say.blocks(record), *brief]
    said.append(Note(str(folder / RECORD.name), "Record"))
    if not options["no_store"]:
        said += say.next_steps(record, stored, options["store"])
    return said


def _printed(options: dict[str, Any]) -> dict[str, str | int]:
    names = ("step_pattern", "steps_per_line", "samples_per_step", "tokens_per_step")
    given = {name: options[name] for name in names if options[name] is not None}
    measuring.check_printed(given)
    return given | ({"hooks": False} if options["no_hooks"] else {})


def _site(options: dict[str, Any]) -> Site:
    site = with_site(Site(), shared.place(options))
    if site.region is not None:
        intensity(site.region)
    return site


def _log(runs: Sequence[tuple[RunRecord, Path]], store: str | None, script_run: str | None = None) -> None:
    from bench.store.script_run import join
    from bench.store.tracker import Tracker

    tracker = Tracker(store, runs[0][0].suite, runs[0][0].execution)
    tracker.open()
    for record, folder in runs:
        theirs, told = join(record, script_run) if script_run else (None, "")
        if told:
            click.echo(f"bench: {told}", err=True)
        tracker.log(record, folder, theirs)
    tracker.close(finished=True)
    if tracker.error:
        click.echo(f"bench: {tracker.error}\nbench: bench sync logs it later", err=True)


def _went_on(record: RunRecord, folder: Path) -> bool:
    return _exit_code(folder) == 0 and "ended_early" not in record.flags


def _ended(record: RunRecord, folder: Path, run: str) -> None:
    """Tell how one of several runs ended, and that a command was interrupted as it was asked to be."""
    end = EXIT.find(folder) or Exit()
    if end.how == "stopped" and end.exitcode == 0:
        click.echo("bench: measured for as long as asked; the interruption may have left a traceback above", err=True)
    if run:
        click.echo(f"bench: {run}: {headline(record)}", err=True)


def _exit_code(folder: Path) -> int:
    code = (EXIT.find(folder) or Exit()).exitcode or 0
    return 128 - code if code < 0 else code  # as a shell reports a signal
