"""`bench run` from a login node: the jobs of a suite are submitted, followed, left alone, or cancelled."""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench import folder as files
from bench.errors import Stopped, UserError
from bench.files import Busy, read_json, write_json
from bench.jobs import blocks
from bench.jobs.fate import queued
from bench.jobs.follow import Controller
from bench.jobs.ledger import read_jobs
from bench.jobs.queue import SlurmQueue, tested
from bench.machine.cluster import ClusterProblem
from bench.machine.partition import Partition
from bench.process import boot_id
from bench.record import Environment
from bench.run.collect import Context
from bench.run.runner import (
    Execution,
    Forecast,
    Progress,
    Reporter,
    earlier,
    load_briefs,
    locked,
    open_execution,
    plan_digest,
    record_skipped,
    surroundings,
)
from bench.schema import RunSpec
from bench.suites.expand import Expansion, devices_of

LEASE_SECONDS, RENEWAL_SECONDS = 180.0, 30.0
"""How long the lease of a controller holds, and how often it is renewed."""
SUBMITTED = 75
"""Exit code where jobs are submitted and left to themselves (EX_TEMPFAIL of sysexits.h)."""
AGAIN = "Run the same command again to follow them, or with --cancel to cancel them."


class _Terminated(KeyboardInterrupt):
    """SIGTERM, or the terminal is gone (SIGHUP): nobody is there to be asked."""


@contextmanager
def leased(folder: Path) -> Iterator[None]:
    """Hold the lease of an execution, also where locks do not reach other machines. Raises Busy."""
    path, me = folder / files.LEASE, {"host": socket.gethostname(), "pid": os.getpid(), "boot_id": boot_id()}
    held = read_json(path)
    if held and time.time() - held["at"] < LEASE_SECONDS and not _gone(held, me):
        raise Busy(f"process {held['pid']} on {held['host']} follows the jobs of this execution: {folder}")
    over = threading.Event()

    def mine() -> bool:
        return {**me, "at": 0} == {**(read_json(path) or me), "at": 0}

    def renew() -> None:
        while not over.wait(RENEWAL_SECONDS):
            with suppress(OSError):
                if not mine():  # this process stood still for so long that another one has taken over
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                write_json(path, {**me, "at": time.time()})

    write_json(path, {**me, "at": time.time()})
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
        with suppress(OSError):  # a shared folder may have become read-only
            if mine():
                path.unlink(missing_ok=True)


def hold(stack: ExitStack, folder: Path) -> None:
    """Be the only controller of an execution, also on shared folders without locks. Raises Busy."""
    try:
        stack.enter_context(locked(folder))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    stack.enter_context(leased(folder))


def _gone(held: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that is no more."""
    here = held["host"] == me["host"] and held["boot_id"] == me["boot_id"]
    return here and not psutil.pid_exists(held["pid"])


@contextmanager
def _terminable() -> Iterator[None]:
    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _jobs(count: int) -> str:
    return f"{count} job{'s are' if count != 1 else ' is'}"


def left_words(followed: Followed) -> str:
    """Say what is left after jobs were submitted, and how it is taken up again."""
    said = [f"{_jobs(len(followed.left))} left in the queue: {', '.join(followed.left)}"] if followed.left else []
    if followed.unclear:
        said.append(f"Slurm did not say whether it has accepted {', '.join(followed.unclear)}")
    if followed.open:
        said.append(f"{followed.open} run{'s are' if followed.open != 1 else ' is'} not submitted yet")
    return f"{'. '.join(said)}. {AGAIN}"


@dataclass(frozen=True)
class Followed:
    """What became of the jobs of a suite: its execution, why runs were given up, and what is left to itself.

    That are the jobs in the queue, those of which it is not known whether Slurm has accepted them, and `open` runs that no
    job has.
    """

    execution: Execution
    problems: list[str]
    left: list[str]
    unclear: list[str]
    open: int


def run_on_cluster(
    plan: Expansion,
    partition: Partition,
    *,
    runs: Path,
    store: str | None,
    progress: Progress,
    ask: Callable[[], bool],
    new: bool = False,
    retry: bool = False,
    selected: set[str] | None = None,
    max_minutes: float | None = None,
    detach: bool = False,
) -> Followed:
    """Do the missing runs of a plan by jobs of a cluster; the arguments are those of `run_suite`.

    With `detach` the jobs are left to themselves. After Ctrl-C `ask` says whether to cancel them. Raises Busy, or Stopped
    where the jobs were left or cancelled before their end.
    """
    environment = surroundings(plan, partition)
    execution = None if new else _followed_before(plan, environment, runs.absolute())
    execution = execution or open_execution(runs.absolute(), plan, environment, new=new, retry=retry, brief=True)
    with ExitStack() as stack:
        hold(stack, execution.folder)
        stack.enter_context(_terminable())
        chosen = [spec for spec in execution.missing(retry=retry) if selected is None or spec.run_id in selected]
        progress.begin(execution, len(chosen), len(execution.ended))
        chosen = _within(chosen, max_minutes, execution, progress)
        reporter = Reporter.of(execution, store, progress)
        reporter.tell(to_do=len(chosen))
        record_skipped(reporter, Context(plan.suite.name, execution.name, plan.suite.site, environment, []))
        reporter.index()
        if others := jobs_of_others(execution.folder.parent, execution.folder):
            progress.note(others)
        controller = Controller(reporter, partition, SlurmQueue())
        controller.prepare(chosen)
        try:
            controller.follow(detach=detach)
        except KeyboardInterrupt as stop:
            if not isinstance(stop, _Terminated) and ask():
                cancelled = controller.cancel()
                raise Stopped(f"{_jobs(len(cancelled))} cancelled. Run the same command again to resume.") from stop
            raise Stopped(f"{_jobs(len(controller.active))} left in the queue. {AGAIN}") from stop
        finally:
            reporter.tell(done=controller.done, current=None, ended=True)
            reporter.tracker.close(finished=not execution.missing())
        left = [active.job.id for active in controller.active.values() if active.job.id is not None]
        open_runs, stopped = len(controller.open_runs), list(controller.stopped.values())
        return Followed(execution, stopped, left, controller.unclear_jobs, open_runs)


def cancel_jobs(plan: Expansion, partition: Partition, *, runs: Path, progress: Progress) -> list[str]:
    """Cancel the jobs of the newest execution of a plan; return their ids. Raises UserError where there is none."""
    environment, suite = surroundings(plan, partition), runs.absolute() / plan.suite.name
    folder = next(earlier(suite, environment, plan_digest(plan)), None)
    others = jobs_of_others(suite, folder)
    if folder is None:
        why = f"there is no execution of this suite as it is now in {suite}"
        raise UserError(f"{why}; {others}" if others else f"{why}: nothing to cancel")
    if others:
        progress.note(others)
    execution = Execution(folder, plan, resumed=True, ended=load_briefs(folder))
    with ExitStack() as stack:
        hold(stack, folder)
        reporter = Reporter.of(execution, None, progress)
        reporter.tracker = reporter.tracker.off(plan.suite.name, execution.name)
        controller = Controller(reporter, partition, SlurmQueue())
        controller.prepare(execution.missing())
        return controller.cancel()


def jobs_of_others(suite: Path, mine: Path | None) -> str:
    """Say which jobs of other executions in the folder of a suite are still in the queue, and how to end them.

    A suite that was changed has an execution of its own, as has one with `--new`. Empty where there is none, or where
    Slurm does not answer.
    """
    folders = [path.parent for path in suite.glob(f"*/{files.JOBS}") if path.parent != mine]
    names = {job.name for folder in folders for job in read_jobs(folder) if job.ended is None}
    ids = list[str]()
    with suppress(ClusterProblem):
        ids = sorted(job.id for job in queued(SlurmQueue().listed(), names)) if names else []
    if not ids:
        return ""
    jobs, them = (f"job {ids[0]}", "it") if len(ids) == 1 else (f"jobs {', '.join(ids)}", "them")
    why = "the suite was changed, or --new was given"
    return f"{jobs} of another execution of this suite may still run ({why}). To end {them}: scancel {' '.join(ids)}"


def _followed_before(plan: Expansion, environment: Environment, runs: Path) -> Execution | None:
    """Return the newest execution of a plan if it has jobs whose end nobody has seen; it may be complete."""
    folder = next(earlier(runs / plan.suite.name, environment, plan_digest(plan)), None)
    if folder is None or all(job.ended is not None for job in read_jobs(folder)):
        return None
    return Execution(folder, plan, resumed=True, ended=load_briefs(folder))


def _within(chosen: list[RunSpec], minutes: float | None, execution: Execution, progress: Progress) -> list[RunSpec]:
    """Return the first runs, as many as are expected to compute no longer than some minutes, summed over all jobs."""
    if minutes is None:
        return chosen
    forecast, total, kept = Forecast(chosen, execution.ended.values()), 0.0, list[RunSpec]()
    for spec in chosen:
        total += forecast.seconds(spec) or 0.0
        if total > minutes * 60:
            progress.note(f"--max-minutes {minutes:g}: no time for the remaining {len(chosen) - len(kept)} runs")
            break
        kept.append(spec)
    return kept


@dataclass(frozen=True)
class PlannedBlock:
    """A job that a suite would submit: what it asks for, its batch script, and what Slurm says of it without submitting it.

    `accepted` is None where Slurm was not asked.
    """

    nodes: int
    devices_per_node: int
    runs: int
    minutes: int
    usd: float | None
    script: str
    accepted: bool | None
    said: str

    @property
    def node_hours(self) -> float:
        """Hours of nodes that it asks for."""
        return self.nodes * self.minutes / 60


def planned_blocks(plan: Expansion, partition: Partition, runs: Path, *, test: bool) -> list[PlannedBlock]:
    """Return the jobs that the runs of a plan would need, by estimates; with `test`, Slurm is asked whether it takes them."""
    forecast, out, seen = Forecast(plan.to_do), list[PlannedBlock](), dict[tuple[int, int], tuple[bool, str]]()
    folder, ended = runs.absolute() / plan.suite.name / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", set[str]()

    def ready(spec: RunSpec, before: Collection[str]) -> bool:
        giver = plan.givers.of(spec)
        return giver is None or giver.run_id in before or giver.run_id in ended

    most, idle = partition.most_seconds, plan.suite.idle_seconds
    for group in blocks.grouped(plan.to_do, plan.givers, partition.asked.jobs).values():
        left = group.runs
        while cut := blocks.next_cut(left, forecast.seconds, ready, most_seconds=most, idle_seconds=idle):
            ended |= {spec.run_id for spec in cut.runs}
            left = [spec for spec in left if spec.run_id not in ended]
            price = plan.suite.usd_per_device_hour
            out.append(_planned(group, cut, partition, folder, len(out) + 1, price, seen, test=test))
    return out


def _planned(
    group: blocks.SizeGroup,
    cut: blocks.Cut,
    partition: Partition,
    folder: Path,
    number: int,
    price: float | None,
    seen: dict[tuple[int, int], tuple[bool, str]],
    *,
    test: bool,
) -> PlannedBlock:
    name = f"wb-{folder.name}-{number}"
    block = files.JobBlock(
        number=number, name=name, group=group.name, nodes=group.nodes, minutes=cut.minutes, runs=cut.runs
    )
    script = blocks.batch_script(block, files.BLOCKS.path(folder, f"{number:04d}"), partition)
    size = (group.nodes, cut.minutes)
    if test and size not in seen:
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(script)
            file.flush()
            seen[size] = tested(Path(file.name))
    accepted, said = seen.get(size, (None, ""))
    if accepted is not False and partition.limit_seconds is not None and cut.minutes * 60 > partition.limit_seconds:
        accepted, said = False, f"partition {partition.name} allows {math.floor(partition.limit_seconds / 60)} min"
    devices = devices_of(len(partition.gpus), partition.cpu_count, cut.runs)
    usd = None if price is None or devices is None else price * devices * group.nodes * cut.minutes / 60
    return PlannedBlock(
        group.nodes, devices or partition.cpu_count, len(cut.runs), cut.minutes, usd, script, accepted, said
    )
