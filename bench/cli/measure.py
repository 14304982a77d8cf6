"""`bench measure -- COMMAND`: time, energy, carbon, cost and memory of any command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import Signals as Signal
from typing import TYPE_CHECKING, Any, ClassVar

import click

from bench.cli import options as shared
from bench.cli.progress import LiveLine
from bench.cli.sync import tell_left
from bench.errors import BadValue, UserError
from bench.figures.metrics import headline
from bench.figures.regions import intensity
from bench.folder import EXIT, OWN_RUNS, RECORD, RUNS, Exit
from bench.machine.cluster import in_allocation, several_nodes
from bench.record import RunRecord, Status
from bench.redact import redact
from bench.run import measure as measuring
from bench.run.ending import Signals, unless_stopped
from bench.run.program import check_program
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
        "Whole training": (
            "total_steps",
            "total_samples",
            "total_tokens",
            "total_epochs",
            "budgets",
            "enforce",
            "live",
        ),
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
    "--launcher",
    type=click.Choice(["local", "slurm"]),
    help="Where COMMAND runs: on this machine, or once on each node of the allocation of Slurm around this command. "
    "Default: the latter in an allocation.",
)
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
    from analytics.say.forecast import blocks as forecast_blocks

    as_json, repeats = options["as_json"], options["repeats"]
    if options["steps"] and options["seconds"]:
        raise BadValue("give --steps or --seconds, not both")
    length, site, line = _length(options), _site(options), LiveLine()
    launcher = _launcher(options)
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
        before_end=lambda: _before_end(line),
        on_nodes=launcher != "local",
    )
    check_program(asked.filled[0])
    machine, _ = shared.find(options["gpus"], launcher)
    if options["runs"] == Path(OWN_RUNS) and measuring.make_own_folder():
        _tell_places(options)
    before = recover(options["runs"])
    tell_left(options["runs"])
    runs: list[tuple[RunRecord, Path]] = []
    with Signals() as signals:
        with measuring.session(asked, machine, options["runs"], signals) as session:
            if session.renewed:
                parts, have = " and ".join(session.renewed), "has" if len(session.renewed) == 1 else "have"
                _tell(f"{parts} {have} changed since the last runs of {asked.name}: a new series begins")
            while not runs or (len(runs) < repeats and signals.asked is None and _went_on(*runs[-1])):
                runs.append(_next(session, runs, options))
                line.clear()
                _ended(*runs[-1], f"run {len(runs)} of {repeats}" if repeats > 1 else "", options, signals)
        _enforced(options, session)
        _not_made(len(runs), repeats, signals.asked)
        signals.deferred = False  # all records are written
        if not options["no_store"]:
            folder = runs[-1][1]
            with unless_stopped(_lacking(runs, options["store"]), _exit_code(folder)):
                _log(runs, options["store"], options["script_run"])
                for run in before:
                    _log([run], options["store"])
    told = _forecast([record for record, _ in runs], length, options)
    if as_json:
        shared.print_json(_document(runs, told, repeats))
    else:
        ahead = [] if told is None else forecast_blocks(told, options["budgets"])
        shared.print_blocks([*ahead, *_answer(runs, options)], stderr=True, explain=options["explain"])
    sys.exit(_exit_code(runs[-1][1]))


def _launcher(options: dict[str, Any]) -> str:
    """Return where the command runs; say so where that is one of several nodes. Raises UserError for what nodes cannot do.

    A `bench` that `srun` has started on each node measures its own.
    """
    copies = os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    launcher = str(options["launcher"] or ("slurm" if several_nodes() and not copies else "local"))
    if launcher == "local":
        if several_nodes() and not copies:
            _tell("this machine alone is measured, not all nodes of the job")
        return launcher
    if not in_allocation():
        raise UserError(
            "--launcher slurm: this is no allocation of Slurm; start this command in one, by salloc or sbatch"
        )
    for name, why in (("live", "the meters of nodes are read"), ("enforce", "what a command has used is known")):
        if options[name]:
            raise UserError(
                f"--{name} is for one machine: {why} at the end; use --steps or --seconds, or --launcher local"
            )
    return launcher


def _tell(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


def _tell_places(options: dict[str, Any]) -> None:
    """Say what is written into this folder, at the first measurement in it."""
    default = not (options["no_store"] or options["store"] or os.environ.get("MLFLOW_TRACKING_URI"))
    index = ", and to mlflow.db and mlartifacts/ (--store)" if default else ""
    _tell(f"records go to {OWN_RUNS}/ in this folder (--runs names another one){index}")


def _not_made(made: int, repeats: int, stop: Signal | None) -> None:
    """Say which repeats were not made, and why."""
    if made < repeats:
        left = f"run {repeats} of {repeats} was" if made + 1 == repeats else f"runs {made + 1} to {repeats} were"
        name = "Ctrl-C" if stop is Signal.SIGINT else stop.name if stop is not None else None
        why = f"run {made} did not end well" if name is None else f"stopped by {name}"
        _tell(f"{why}: {left} not made")


def _length(options: dict[str, Any]) -> TrainingLength | None:
    from analytics.plan.forecast import TrainingLength

    units: tuple[LengthUnit, ...] = ("steps", "samples", "tokens", "epochs")
    lengths = {unit: value for unit in units if (value := options[f"total_{unit}"]) is not None}
    if len(lengths) > 1:
        raise BadValue(f"give only one of {' and '.join(f'--total-{unit}' for unit in lengths)}")
    if options["enforce"] and not options["budgets"]:
        raise BadValue("--enforce needs a --budget")
    return next((TrainingLength(value, unit) for unit, value in lengths.items()), None)


def _forecast(
    records: Sequence[RunRecord], length: TrainingLength | None, options: dict[str, Any]
) -> TrainingForecast | str | None:
    """Return the forecast or why there is none; None where nobody asks for it.

    Without a length it is that which the script states. Then JSON has it only for a budget, so that its form does not depend
    on the script.
    """
    from analytics.plan.forecast import cut, forecast, stated_length

    asked = length is not None or (bool(options["budgets"]) and not options["enforce"])
    length = length or stated_length(records)
    if length is None:
        return "the script does not state its length: give --total-steps" if asked else None
    if asked:
        return forecast(records, length)
    told = forecast(records, length) if not options["as_json"] and any(map(cut, records)) else None
    return None if isinstance(told, str) else told


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
            _tell(f"the command was ended: the budget of {text} is used up")
        elif quantity not in runs.used:
            _tell(f"the budget of {text} was not enforced: no meter could be read (bench doctor)")


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
            _tell(told)
        tracker.log(record, folder, theirs)
    tracker.close(finished=True)
    if tracker.error:
        _tell(f"{tracker.error}\nbench: {_sync(runs, store)} logs it later")


def _sync(runs: Sequence[tuple[RunRecord, Path]], store: str | None) -> str:
    """Return the commands that log the records of runs: those of a full disk may be in several folders."""
    usual = [Path(name).absolute() for name in (RUNS, OWN_RUNS)]
    more = f" --store {shlex.quote(redact(store))}" if store else ""
    roots = dict.fromkeys(folder.absolute().parents[2] for _, folder in runs)
    places = ("" if root in usual else f" --runs {shlex.quote(str(root))}" for root in roots)
    return " and ".join(f"bench sync{place}{more}" for place in places)


def _lacking(runs: Sequence[tuple[RunRecord, Path]], store: str | None) -> str:
    from analytics.text import counted

    earlier = f" and {counted(len(runs) - 1, 'earlier record')}" if runs[1:] else ""
    return f"MLflow lacks {runs[-1][1] / RECORD.name}{earlier}\nto log: {_sync(runs, store)}"


def _next(
    session: measuring.CommandRuns, runs: Sequence[tuple[RunRecord, Path]], options: dict[str, Any]
) -> tuple[RunRecord, Path]:
    """Do one more run. Where that is impossible, say how the records of earlier ones are logged."""
    done = None
    try:
        done = session.run()
    finally:
        if done is None and runs:
            _tell(f"to log what was measured before: {_sync(runs, options['store'])}")
    return done


def _went_on(record: RunRecord, folder: Path) -> bool:
    return _exit_code(folder) == 0 and "ended_early" not in record.flags


def _before_end(line: LiveLine) -> None:
    line.clear()
    _tell("measured long enough; stopping the command, which may print a traceback")


def _ended(record: RunRecord, folder: Path, run: str, options: dict[str, Any], signals: Signals) -> None:
    """Tell how one of several runs ended, what ended it before its time, and where its record is."""
    if options["runs"].absolute() not in folder.absolute().parents:
        where = f"the record is in {folder}, as the disk of {options['runs']} is full"
        _tell(f"{where}; to log it later: {_sync([(record, folder)], options['store'])}")
    end = EXIT.find(folder) or Exit()
    if end.how == "stopped":
        name = signals.cause(end.exitcode or 0)
        if record.status is Status.OK and "ended_early" not in record.flags:
            _tell("measured for as long as asked")
        elif name is not None:
            _tell(f"the command got {name.name}")
    if run:
        _tell(f"{run}: {headline(record)}")


def _exit_code(folder: Path) -> int:
    code = (EXIT.find(folder) or Exit()).exitcode or 0
    return 128 - code if code < 0 else code  # as a shell reports a signal
