"""`bench run SUITE`: run it, show progress, print the answer."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import options as shared
from bench.errors import FAILED, UserError
from bench.record import Status

if TYPE_CHECKING:
    from analytics.plan.preview import Preview
    from bench.cli.progress import Lines
    from bench.machine.partition import Partition
    from bench.run.runner import Execution


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number of minutes")
    return value


@click.command()
@shared.suite_options
@shared.runs_option
@shared.store_option
@click.option("--new", is_flag=True, help="Start a new execution, even if one can be resumed.")
@click.option("--retry", is_flag=True, help="Re-run the failed runs of the execution being resumed.")
@click.option(
    "--max-minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=_finite,
    help="Start no run that would end after this time.",
)
@click.option("--detach", is_flag=True, help="Submit the jobs of a cluster and leave them.")
@click.option("--cancel", is_flag=True, help="Cancel the jobs of this suite on a cluster.")
@click.option("--dry-run", is_flag=True, help="List the runs and start nothing, like bench show.")
@shared.json_option
def run(runs: Path, store: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run a suite and print the answer. The same command resumes an unfinished execution.

    Exit codes: 0 all runs ended well or were skipped for a stated reason, 1 some failed or were given up, 2 wrong use, 75
    jobs are left in the queue, 130 stopped, 70 a fault of wattbench or of the machine.
    """
    from bench.cli import show
    from bench.cli.progress import Lines
    from bench.machine.cluster import in_allocation
    from bench.machine.partition import Partition
    from bench.run.runner import run_suite

    choices: dict[str, Any] = {name: options.pop(name) for name in ("new", "retry", "max_minutes")}
    jobs = {name: options.pop(name) for name in ("detach", "cancel")}
    if all(jobs.values()):
        raise UserError("--detach leaves jobs in the queue and --cancel ends them: give one of them")
    preview, problems = shared.read_suite(**options), list[str]()
    choices |= {"runs": runs, "store": store, "selected": preview.run_ids}
    if dry_run:
        show.echo(preview, runs, as_json=as_json)
        return
    with Lines(preview.takes()) as progress:
        if isinstance(preview.machine, Partition):
            execution, problems = _by_jobs(preview, preview.machine, progress, choices, **jobs)
        elif any(jobs.values()):
            remedy = "inside an allocation nothing is submitted" if in_allocation() else "add --launcher slurm"
            raise UserError(f"--detach and --cancel are for jobs that are submitted from a login node: {remedy}")
        else:
            execution = run_suite(preview.expansion, preview.machine, progress=progress, **choices)
    asked = [["--cluster", options["cluster"]], ["--nodes", options["nodes"]]]
    asked += [["--set", setting] for setting in options["settings"] if setting.startswith("cluster.")]
    words = [str(word) for pair in asked if pair[1] is not None for word in pair]
    _answer(execution, store, preview.run_ids, str(options["suite"]), words, as_json=as_json, new=choices["new"])
    statuses = {ended.status for run_id, ended in execution.ended.items() if run_id in preview.run_ids}
    sys.exit(0 if statuses <= {Status.OK, Status.SKIPPED} and not problems else FAILED)


def _by_jobs(
    preview: Preview, partition: Partition, progress: Lines, choices: dict[str, Any], *, detach: bool, cancel: bool
) -> tuple[Execution, list[str]]:
    """Do the runs by jobs of a cluster; return the execution, and why runs were given up."""
    from bench.jobs.session import SUBMITTED, cancel_jobs, left_words, run_on_cluster

    if cancel:
        cancelled = cancel_jobs(preview.expansion, partition, runs=choices["runs"], progress=progress)
        progress.note(f"cancelled {', '.join(cancelled) or 'nothing: no job was left'}")
        sys.exit(0)
    followed = run_on_cluster(
        preview.expansion, partition, progress=progress, ask=_confirm_cancel, detach=detach, **choices
    )
    if followed.left or followed.unclear or followed.open:
        progress.note(left_words(followed))
        sys.exit(SUBMITTED if followed.left else FAILED)
    return followed.execution, followed.problems


def _confirm_cancel() -> bool:
    """Ask on a terminal whether to cancel the jobs."""
    return sys.stdin.isatty() and click.confirm("Cancel the jobs too?", default=False, err=True)


def _answer(
    execution: Execution,
    store: str | None,
    selected: set[str],
    suite_file: str,
    asked: list[str],
    *,
    as_json: bool,
    new: bool,
) -> None:
    from analytics.runs.frame import frame
    from analytics.say.answer import document
    from analytics.say.blocks import Note, command
    from analytics.say.jobs import held_text, lost_words
    from analytics.say.results import results
    from analytics.text import counted
    from bench.figures.metrics import row
    from bench.folder import read_held
    from bench.jobs.ledger import lost_attempts, read_jobs
    from bench.run.runner import resume
    from bench.store.tracker import shown

    specs = {spec.run_id: spec for spec in execution.plan.runs}
    order = {run_id: position for position, run_id in enumerate(specs)}
    lost, rows = lost_attempts(read_jobs(execution.folder)), []
    for record in execution.stored():
        lost[record.run_id] = record.lost
        rows.append(row(record))
    df = frame(sorted(rows, key=lambda each: order.get(str(each["run_id"]), len(order))))
    held, silent = read_held(execution.folder)
    if as_json:
        more: dict[str, Any] = {"held_nodes": None if held is None else held.model_dump() | {"jobs_without": silent}}
        more["lost_attempts"] = [
            {"run_id": run_id, **attempt.model_dump()} for run_id, attempts in lost.items() for attempt in attempts
        ]
        shared.print_json({"runs_folder": str(execution.folder), "store": shown(store), **more, **document(df)})
        return
    rent = execution.plan.suite.usd_per_device_hour
    missing = [spec.run_id in selected for spec in execution.missing()]
    texts = [f"{execution.folder}; to browse them: {command('dashboard', store=store)}"]
    if held is not None:
        texts.append(held_text(held, silent, rent))
    if any(missing):
        texts.append(
            f"{counted(sum(missing), 'run')} {'is' if sum(missing) == 1 else 'are'} missing. {resume(new=new)}"
        )
    if not all(missing):
        texts.append(f"{len(missing) - sum(missing)} of the suite were not selected (--only).")
    attempts = [(specs[run_id], attempt) for run_id, some in lost.items() if run_id in specs for attempt in some]
    texts += filter(None, [lost_words(attempts, rent)])
    notes = [Note(text, "" if place else "Runs") for place, text in enumerate(texts)]
    shared.print_blocks(results(df, store=store, suite_file=suite_file, notes=notes, asked=asked))
