"""`bench run SUITE`: execute, show progress, print the answer."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail, program
from bench.cli.options import json_option, read_suite, runs_option, store_option, suite_options
from bench.figures.metrics import headline, row
from bench.files import Busy
from bench.record import RunRecord, Status
from bench.run.runner import Execution, Progress, run_suite
from bench.schema import RunSpec

if TYPE_CHECKING:
    from bench.cli.options import Asked


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number of minutes")
    return value


class Lines(Progress):
    """Progress as lines on stderr; in a terminal the last one is alive and says what runs and how long it takes."""

    def __init__(self) -> None:
        self._alive = sys.stderr.isatty()
        self._began = time.monotonic()
        self._to_do = self._finished = 0
        self._current = "starting"
        self._left: tuple[float, float] | None = None

    def begin(self, execution: Execution, to_do: int, done: int) -> None:
        """Say where the runs go."""
        self._to_do = to_do
        resumed = f", goes on: {done} were done before" if execution.resumed else ""
        self._line(f"{to_do} runs in {execution.folder}{resumed}")

    def note(self, text: str) -> None:
        """Print what the reader should know."""
        self._line(text)

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs and the time that is left."""
        self._current = f"{spec.label} r{spec.repeat}"
        self._left = (time.monotonic(), remaining_seconds) if remaining_seconds is not None else None
        self.tick()

    def tick(self) -> None:
        """Draw the last line anew, about once a second: cheap enough not to disturb what is measured."""
        if not self._alive:
            return
        now = time.monotonic()
        left = f", about {_clock(max(0.0, self._left[1] - (now - self._left[0])))} left" if self._left else ""
        text = f"{self._head()} {_clock(now - self._began)}{left}  {self._current}"
        sys.stderr.write(f"\r\x1b[2K{text[:150]}")
        sys.stderr.flush()

    def done(self, record: RunRecord) -> None:
        """Print how a run ended."""
        self._finished += record.status is not Status.SKIPPED or record.duration_seconds > 0
        left = ""
        if self._left and not self._alive:
            left = f"  {_clock(max(0.0, self._left[1] - record.duration_seconds))} left"
        self._line(f"{self._head()} {record.spec.label} r{record.spec.repeat}: {headline(record)}{left}")

    def _head(self) -> str:
        return f"[{self._finished}/{self._to_do}]"

    def _line(self, text: str) -> None:
        clear = "\r\x1b[2K" if self._alive else ""
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        sys.stderr.write(f"{clear}{printable}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave no live line behind."""
        if self._alive:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


@click.command()
@suite_options
@runs_option
@store_option
@click.option("--new", is_flag=True, help="Begin another execution, even if one is unfinished.")
@click.option("--retry", is_flag=True, help="Do runs again that failed in the execution that goes on.")
@click.option(
    "--max-minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=_number,
    help="Begin no run that would end later.",
)
@click.option("--dry-run", is_flag=True, help="The same as bench show.")
@json_option
def run(
    runs: Path,
    store: str | None,
    new: bool,
    retry: bool,
    max_minutes: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Execute the runs of a suite, and print the results and the fitted T = n / (d · v).

    The same command again goes on where it was stopped. Exit code: 0 all runs ended well or were skipped for a stated
    reason, 1 some failed, 2 the command or the suite is wrong.
    """
    from bench.cli import show

    asked = read_suite(**options)
    if dry_run:
        show.echo(asked, as_json=as_json)
        return
    click.echo(show.takes(asked), err=True)
    execution = execute(asked, runs, store, new=new, retry=retry, max_minutes=max_minutes)
    selected = {spec.run_id for spec in asked.narrowed.runs}
    _answer(execution, store, selected, as_json=as_json)
    ended = [record.status for run_id, record in execution.records.items() if run_id in selected]
    failed = [status for status in ended if status not in (Status.OK, Status.SKIPPED)]
    sys.exit(1 if failed else 0)


def execute(asked: Asked, runs: Path, store: str | None, **choices: Any) -> Execution:
    """Do the runs that are asked for with progress on stderr; what goes wrong ends the command with a message."""
    from bench.machine.environment import EnvironmentProblem
    from bench.run.launcher import LaunchError

    progress = Lines()
    selected = {spec.run_id for spec in asked.narrowed.runs}
    try:
        return run_suite(
            asked.plan, asked.machine, runs=runs, store=store, progress=progress, selected=selected, **choices
        )
    except (Busy, EnvironmentProblem) as error:
        fail(str(error))
    except LaunchError as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        progress.end()
        click.echo("bench: stopped; the same command goes on where this one ended", err=True)
        sys.exit(130)
    finally:
        progress.end()


def _answer(execution: Execution, store: str | None, selected: set[str], *, as_json: bool) -> None:
    from analytics.answer import document
    from analytics.frame import frame
    from bench.cli import answer
    from bench.store import tracker as tracking

    order = {spec.run_id: position for position, spec in enumerate(execution.plan.runs)}
    records = sorted(execution.records.values(), key=lambda record: order.get(record.run_id, len(order)))
    df = frame(row(record) for record in records)
    if as_json:
        paths = {"runs_folder": str(execution.folder), "store": tracking.shown(store)}
        click.echo(json.dumps({**paths, **document(df)}, indent=1, allow_nan=False))
        return
    answer.show(df)
    click.echo(f"\nruns:  {execution.folder}\nstore: {tracking.shown(store)}")
    again = f" --store {store}" if store else ""
    click.echo(f"Look at them with:     {program()} dashboard{again}")
    click.echo(
        f"Print this again with: {program()} fit {execution.plan.suite.name} --execution {execution.name}{again}"
    )
    left = [spec.run_id in selected for spec in execution.missing()]
    if any(left):
        click.echo(f"{sum(left)} runs are missing; the same command does them")
    if not all(left):
        click.echo(f"{len(left) - sum(left)} runs of the suite were not asked for (--only)")
