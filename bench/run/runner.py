"""Execute a suite: find or create its execution, launch the missing runs, collect, record and index them.

A failed run does not stop the suite.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

from bench import folder as files
from bench.errors import Stopped
from bench.files import held, read_json, write_json
from bench.machine.cluster import Cluster
from bench.machine.environment import EnvironmentProblem, check_torch, describe
from bench.machine.partition import Partition
from bench.record import Environment, Failure, LostAttempt, RunRecord, Status
from bench.run.collect import Context, cancelled_attempt, collect, save_record, skipped
from bench.run.launcher import Launcher, LaunchOptions, make_launcher, write_missing_exit
from bench.schema import COMMAND, Machine, RunSpec
from bench.store.progress import PATIENCE_SECONDS, Flight
from bench.store.tracker import Tracker
from bench.suites.expand import Expansion, devices_of

RUN_OVERHEAD_SECONDS = 1.0
"""Fixed cost of a warm run, for estimates before the first measurement (tests/benchmarks/warm_start.py)."""
END_SECONDS = 20.0
"""A run is begun in an allocation only if it is expected to end so long before it."""
START_SECONDS = 12.0
"""Start of an execution: importing torch, transformers and mlflow on two cores."""


class Progress:
    """Listener to the events of a suite; this one ignores them."""

    def begin(self, execution: Execution, to_do: int, done: int) -> None:
        """An execution was found or created."""

    def note(self, text: str) -> None:
        """There is a note for the user."""

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """A run begins."""

    def tick(self) -> None:
        """About a second has passed."""

    def done(self, record: RunRecord) -> None:
        """A run has ended and is recorded."""

    def waits(self, text: str) -> None:
        """A job of a cluster waits, or runs."""

    def skipped(self, reasons: Mapping[str, str]) -> None:
        """Configurations cannot run here and are recorded: the reason of each, by config_id."""


@dataclass(frozen=True)
class Brief:
    """How a run ended: the part of its record that is needed to go on, a hundredth of it."""

    run_id: str
    config_id: str
    status: Status
    duration_seconds: float
    started_at: datetime
    error: Failure | None = None

    @classmethod
    def of(cls, record: RunRecord) -> Brief:
        """Return the brief of a record."""
        fields = ("run_id", "config_id", "status", "duration_seconds", "started_at", "error")
        return cls(**{name: getattr(record, name) for name in fields})


@dataclass
class Execution:
    """One execution of a suite in one environment: its folder, its records, and the runs that are missing.

    How all its runs `ended` is known, also where their records are not kept in memory.
    """

    folder: Path
    plan: Expansion
    resumed: bool
    records: dict[str, RunRecord] = field(default_factory=dict)
    ended: dict[str, Brief] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ended = self.ended | {run_id: Brief.of(record) for run_id, record in self.records.items()}

    def add(self, record: RunRecord) -> None:
        """Add the record of a run that has ended."""
        self.records[record.run_id], self.ended[record.run_id] = record, Brief.of(record)

    def stored(self, wanted: Callable[[Brief], bool] = lambda _: True) -> Iterator[RunRecord]:
        """Yield the records of the runs that have ended, all or those `wanted`, from memory or from their folders."""
        for run_id in [run_id for run_id, brief in self.ended.items() if wanted(brief)]:
            record = self.records.get(run_id) or files.RECORD.find(self.folder / run_id)
            if record is not None:
                yield record

    @property
    def name(self) -> str:
        """Start time and fingerprint of the environment."""
        return self.folder.name

    def missing(self, *, retry: bool = False) -> list[RunSpec]:
        """Return the runs without a record, in order; with `retry` also those that failed.

        A run whose saved weights are gone is repeated if one of these needs them.
        """
        ended = {key for key, record in self.ended.items() if not retry or record.status is Status.OK}
        out = []
        wanted: set[str] = set()
        for spec in reversed(self.plan.to_do):  # a giver comes after those that need it
            if spec.run_id not in ended or spec.run_id in wanted:
                out.append(spec)
                given = self.plan.givers.of(spec)
                if given is not None and self._gone(given):
                    wanted.add(given.run_id)
        return out[::-1]

    def _gone(self, giver: RunSpec) -> bool:
        """Return whether a run succeeded, but its saved weights are gone."""
        record = self.ended.get(giver.run_id)
        return record is not None and record.status is Status.OK and not self.checkpoint(giver).is_dir()

    def checkpoint(self, giver: RunSpec) -> Path:
        """Return the folder with the weights that a run has saved."""
        return self.folder / giver.run_id / files.CHECKPOINT

    def unmet(self, spec: RunSpec) -> str | None:
        """Return why the weights that a run needs are missing; None if they exist, or it needs none."""
        given = self.plan.givers.of(spec)
        if given is None:
            return None
        record = self.ended.get(given.run_id)
        if record is None:
            return f"needs {spec.needs!r}, which was not done"
        if record.status is not Status.OK:
            why = record.error.message.splitlines()[0] if record.error and record.error.message else ""
            return f"needs {spec.needs!r}, which ended as {record.status}: {why}"
        return None if self.checkpoint(given).is_dir() else f"needs {spec.needs!r}, which left no weights"


def plan_digest(plan: Expansion) -> str:
    """Return a hash of the runs of a suite, region and prices; an execution is resumed only for the same hash."""
    meant = [plan.suite.site.model_dump(mode="json"), *sorted(run.run_id for run in plan.runs)]
    return hashlib.sha256(json.dumps(meant).encode()).hexdigest()[:16]


def open_execution(
    runs: Path,
    plan: Expansion,
    environment: Environment,
    *,
    new: bool = False,
    retry: bool = False,
    brief: bool = False,
) -> Execution:
    """Return the newest unfinished execution of the same runs in the same environment, or create one.

    With `retry`, one with failed runs is unfinished. With `brief`, what is kept of its records is how the runs ended.
    """
    suite_folder, digest = runs / plan.suite.name, plan_digest(plan)
    for folder in [] if new else earlier(suite_folder, environment, digest):
        ended = load_briefs(folder) if brief else {}
        execution = Execution(folder, plan, resumed=True, records={} if brief else load_records(folder), ended=ended)
        if execution.missing(retry=retry):
            return execution
        break  # the newest of the same runs is complete
    folder = new_folder(suite_folder, environment)
    write_facts(folder, plan, environment, digest, runs=[run.run_id for run in plan.runs])
    return Execution(folder, plan, resumed=False)


def earlier(suite_folder: Path, environment: Environment, digest: str) -> Iterator[Path]:
    """Yield the folders of executions with this `plan_digest` in the same environment, newest first."""
    for folder in sorted(suite_folder.glob("*"), reverse=True):
        facts = files.EXECUTION.find(folder)
        if facts and (facts.fingerprint, facts.plan_digest) == (environment.fingerprint, digest):
            yield folder


def new_folder(suite_folder: Path, environment: Environment) -> Path:
    """Create the folder of an execution that starts now; no other process gets the same one."""
    folder = suite_folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{environment.fingerprint}"
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(f"{folder.name}x")
        else:
            return folder


def write_facts(folder: Path, plan: Expansion, environment: Environment, digest: str, **more: Any) -> None:
    """Write `execution.json`, by which `earlier` finds an execution."""
    facts = files.ExecutionFacts(
        suite=plan.suite.model_dump(mode="json"),
        fingerprint=environment.fingerprint,
        plan_digest=digest,
        started_at=datetime.now(UTC),
        environment=environment.model_dump(mode="json"),
        **more,
    )
    files.EXECUTION.write(folder, facts)


def load_records(folder: Path) -> dict[str, RunRecord]:
    """Return the records of an execution by run id."""
    records = {}
    for path in sorted(folder.glob(f"*/{files.RECORD.name}")):
        if record := files.RECORD.find(path.parent):  # a torn one counts as missing
            records[record.run_id] = record
    return records


def load_briefs(folder: Path) -> dict[str, Brief]:
    """Return how the runs of an execution ended, by run id."""
    briefs = {}
    for path in folder.glob(f"*/{files.RECORD.name}"):
        fields = read_json(path) or {}
        with suppress(KeyError, TypeError, ValueError):  # a torn one counts as missing
            error = fields["error"] and Failure.model_validate(fields["error"])
            status, started = Status(fields["status"]), datetime.fromisoformat(fields["started_at"])
            identity = (fields["run_id"], fields["config_id"])
            briefs[fields["run_id"]] = Brief(*identity, status, float(fields["duration_seconds"]), started, error)
    return briefs


def estimate_seconds(spec: RunSpec) -> float | None:
    """Estimate how long a run takes from what its spec asks for; None if unknown."""
    if spec.measure_seconds is None or spec.workload == COMMAND:  # so many steps; or a start of which nothing is known
        return None
    start = RUN_OVERHEAD_SECONDS + (START_SECONDS if spec.cold else 0)
    return start + spec.warmup_seconds + 1.2 * spec.measure_seconds


class Forecast:
    """Estimate of the remaining time: from earlier runs of the same configurations, else by `estimate_seconds`.

    An update after a run costs the same however many runs there are.
    """

    def __init__(self, left: Iterable[RunSpec], records: Iterable[RunRecord | Brief] = ()) -> None:
        self._longest: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self._total, self._unknown = 0.0, 0
        for record in records:
            self._learn(record)
        for spec in left:
            self._left[spec.config_id] = self._left.get(spec.config_id, 0) + 1
            self._count(self.seconds(spec), 1)

    def _learn(self, record: RunRecord | Brief) -> None:
        if record.status is Status.OK:
            seconds = max(record.duration_seconds, self._longest.get(record.config_id, 0.0))
            self._longest[record.config_id] = seconds

    def _count(self, seconds: float | None, runs: int) -> None:
        if seconds is None:
            self._unknown += runs
        else:
            self._total += runs * seconds

    def seconds(self, spec: RunSpec) -> float | None:
        """Return how long one run will take; None if that is unknown."""
        return self._longest.get(spec.config_id, estimate_seconds(spec))

    @property
    def remaining_seconds(self) -> float | None:
        """How long all that is left will take; None as soon as one run is unknown."""
        return None if self._unknown else max(0.0, self._total)

    def ended(self, spec: RunSpec, record: RunRecord | Brief) -> None:
        """Leave out a run that has ended, and take what it took for the others of its configuration."""
        left = self._left[spec.config_id]
        self._count(self.seconds(spec), -left)
        self._left[spec.config_id] = left - 1
        self._learn(record)
        self._count(self.seconds(spec), left - 1)


def surroundings(plan: Expansion, machine: Machine) -> Environment:
    """Return the environment of the runs. Raises EnvironmentProblem where torch cannot do them."""
    trained = [run for run in plan.to_do if run.workload != COMMAND]
    if trained and not (isinstance(machine, Partition) and machine.asked.brings_python):
        check_torch(machine, for_gpus=any(run.device_type == "gpu" for run in trained))
    return machine.environment if isinstance(machine, Cluster | Partition) else describe(machine)


def locked(folder: Path) -> AbstractContextManager[None]:
    """Lock an execution for this process. Raises Busy where another process runs it."""
    return held(folder / files.LOCK, f"another process runs this execution: {folder}")


def resume(*, new: bool = False) -> str:
    """Say how an execution is resumed; with `new` the same command would start another one."""
    return f"Run the same command again{', without --new,' * new} to resume."


@contextmanager
def terminable(advice: str = "", *, new: bool = False) -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C: raise Stopped, with further advice, once a suite or a search has ended in good order.

    With `new` the same command would start anew.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"Stopped. {resume(new=new)}{advice}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Reporter:
    """What tells of an execution: progress for the user, and records and progress for the index."""

    execution: Execution
    tracker: Tracker
    progress: Progress
    flight: Flight

    @classmethod
    def of(cls, execution: Execution, store: str | None, progress: Progress) -> Reporter:
        """Return what tells of an execution; nothing is written."""
        now, who = datetime.now(UTC), {"suite": execution.plan.suite.name, "execution": execution.name}
        where = {"host": socket.gethostname(), "folder": str(execution.folder)}
        flight = Flight(**who, **where, began_at=now, updated_at=now)
        return Reporter(execution, Tracker(store, **who), progress, flight)

    def index(self) -> None:
        """Open the index, and log the records that it lacks."""
        self.noted(self.tracker.open)
        for record in self.execution.stored(lambda brief: self.tracker.lacks(brief.run_id, brief.started_at)):
            self.noted(partial(self.tracker.log, record, self.execution.folder / record.run_id))
        self.tell()

    def tell(self, **news: Any) -> None:
        """Write the progress of the execution to its folder and to the index. A failure does not stop the runs."""
        self.flight = self.flight.changed(**news, updated_at=datetime.now(UTC))
        with suppress(OSError):
            write_json(self.execution.folder / files.PROGRESS, self.flight.model_dump(mode="json"))
        self.noted(lambda: self.tracker.tell(self.flight))

    def begin(self, spec: RunSpec, done: int, left: float | None, *, of: str = "") -> None:
        """Write that a run begins. `left`: seconds until all runs end (None: unknown); `of`: a prefix, such as a trial."""
        limit, now = spec.timeout_seconds + PATIENCE_SECONDS, datetime.now(UTC)
        current = f"{of}{spec.label[:300]} r{spec.repeat}"
        self.tell(current=current, done=done, run_began_at=now, remaining_seconds=left, silent_seconds=limit)

    def noted(self, action: Callable[[], object]) -> None:
        """Do something with the index; note the first failure."""
        failed_before = self.tracker.error
        action()
        if self.tracker.error and not failed_before:
            self.progress.note(f"{self.tracker.error}\nThe runs continue; bench sync logs them later.")

    def keep(self, record: RunRecord) -> None:
        """Add a record to the execution and to the index."""
        self.execution.add(record)
        self.log(record)

    def log(self, record: RunRecord) -> None:
        """Add a record to the index, and tell of it."""
        failed = self.flight.failed + (record.status not in (Status.OK, Status.SKIPPED))
        self.flight = self.flight.changed(failed=failed)
        self.noted(lambda: self.tracker.log(record, self.execution.folder / record.run_id))
        self.progress.done(record)


@dataclass
class Runner(Reporter):
    """The parts of a running execution."""

    context: Context
    launcher: Launcher
    began: float | None = None
    used_seconds: float = 0.0
    lost: LostAttempt | None = None

    @classmethod
    def make(
        cls,
        execution: Execution,
        machine: Machine,
        environment: Environment,
        store: str | None,
        progress: Progress,
        place: Path | None = None,
    ) -> Self:
        """Assemble the parts; nothing is started. Log and idle power go to `place`, if not to the execution."""
        plan = execution.plan
        gpus = [gpu.uuid for gpu in machine.free_gpus]
        uses_gpus = any(run.device_type == "gpu" for run in plan.to_do)
        options = LaunchOptions(
            place or execution.folder,
            meters=sorted({meter for run in plan.to_do for meter in run.meters}),
            workloads=sorted({run.workload for run in plan.to_do}),
            gpus=gpus if uses_gpus else [],
            threads=max((run.threads for run in plan.to_do), default=1),
            idle_seconds=plan.suite.idle_seconds,
            machine=machine,
        )
        launcher = make_launcher(plan.to_do, options)
        nodes = machine.nodes if isinstance(machine, Cluster) else []
        context = Context(plan.suite.name, execution.name, plan.suite.site, environment, gpus, nodes=nodes, place=place)
        telling = Reporter.of(execution, store, progress)
        return cls(telling.execution, telling.tracker, telling.progress, telling.flight, context, launcher)

    def start(self) -> None:
        """Start the node and check that torch can use the GPUs that the runs need."""
        self.began = time.monotonic()
        runs = [run for run in self.execution.plan.to_do if run.workload != COMMAND]
        needed = max((run.devices_per_node for run in runs if run.device_type == "gpu"), default=0)
        facts = self.launcher.start(tick=self.progress.tick)
        seen = facts.get("gpus")
        if needed and seen is not None and seen["count"] < needed:
            reason = seen["error"] or f"it sees {seen['count']} of {len(self.context.gpus)} GPUs"
            remedy = f"Install a torch built for this driver ({self.context.environment.machine.driver_version})"
            if seen["spoiled"]:
                remedy = "Remove or update the library that initialises the GPUs when it is imported"
            raise EnvironmentProblem(
                f"the driver lists {len(self.context.gpus)} GPU(s), but torch {facts['torch']} cannot use them: {reason}\n"
                f"{remedy}, or measure the CPU on purpose: --set device_type=cpu"
            )

    def one(self, spec: RunSpec) -> RunRecord:
        """Do one run in its own folder and return its record."""
        folder = self.execution.folder / spec.run_id
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted or failed attempt
        if reason := self.execution.unmet(spec):
            return save_record(skipped(self.context, spec, reason), folder)
        folder.mkdir()
        files.SPEC.write(folder, spec)
        if given := self.execution.plan.givers.of(spec):
            files.NEEDS.write(folder, files.Needs(folder=self.execution.folder / given.run_id))
        started, start_ns = datetime.now(UTC), time.monotonic_ns()
        try:
            self.launcher.submit(folder)
            # The node enforces the time limit; the extra minute is for a node that hangs.
            if not self.launcher.wait(folder, spec.timeout_seconds + 60, self.progress.tick):
                self.launcher.close()
                write_missing_exit(folder, started, start_ns)
        except KeyboardInterrupt:
            try:
                self.launcher.cancel(folder)
            finally:
                self._lose(spec, folder)
            raise
        except Stopped:  # the place where runs are done has ended
            self._lose(spec, folder)
            raise
        record = collect(self.context, spec, folder)
        self.used_seconds += spec.num_nodes * record.duration_seconds
        return record

    def close(self) -> None:
        """End the node process, and write how long the nodes of a cluster were held."""
        self.launcher.close()
        if self.began is None or not (nodes := self.context.nodes):
            return
        seconds, machine = len(nodes) * (time.monotonic() - self.began), nodes[0].machine
        devices = devices_of(len(machine.gpus), machine.cpu_count, self.execution.plan.to_do)
        held = files.HeldNodes(devices=devices, held_seconds=seconds, used_seconds=min(seconds, self.used_seconds))
        with suppress(OSError), ((self.context.place or self.execution.folder) / files.HELD).open("ab") as file:
            file.write(held.model_dump_json().encode() + b"\n")

    def _lose(self, spec: RunSpec, folder: Path) -> None:
        """Remove what a run that will be repeated has left; in a job, keep what it has cost."""
        with suppress(OSError, ValueError):
            self.lost = cancelled_attempt(self.context, spec, folder) if self.context.place is not None else None
        shutil.rmtree(folder, ignore_errors=True)


def run_suite(
    plan: Expansion,
    machine: Machine,
    *,
    runs: Path,
    store: str | None = None,
    progress: Progress | None = None,
    new: bool = False,
    retry: bool = False,
    selected: set[str] | None = None,
    max_minutes: float | None = None,
) -> Execution:
    """Do the missing runs of a plan in order, and return the execution with its records.

    `selected` restricts this call to some run ids; with `max_minutes` no run is started that would end later. The next call
    does the rest. Raises Busy, EnvironmentProblem or LaunchError before the first run; Stopped after Ctrl-C or SIGTERM, with
    all processes ended and the execution ready to be resumed.
    """
    began = time.monotonic()
    progress = progress or Progress()
    environment = surroundings(plan, machine)
    execution = open_execution(runs.absolute(), plan, environment, new=new, retry=retry)
    with locked(execution.folder), terminable(new=new):
        chosen = [spec for spec in execution.missing(retry=retry) if selected is None or spec.run_id in selected]
        progress.begin(execution, len(chosen), len(execution.records))
        runner, to_do = Runner.make(execution, machine, environment, store, progress), len(chosen)
        forecast = Forecast(chosen, execution.records.values())
        runner.tell(to_do=to_do)
        done = 0
        try:
            if chosen:
                runner.start()
            record_skipped(runner, runner.context)
            runner.index()
            for spec in chosen:
                expected = forecast.seconds(spec) or 0.0
                if max_minutes is not None and time.monotonic() - began + expected > max_minutes * 60:
                    progress.note(f"--max-minutes {max_minutes:g}: no time for the remaining {to_do - done} runs")
                    break
                if machine.seconds_left is not None and expected + END_SECONDS > machine.seconds_left:
                    progress.note(
                        f"The allocation ends in {machine.seconds_left:.0f} s: no time for the remaining {to_do - done} runs"
                    )
                    break
                left = forecast.remaining_seconds
                progress.start(spec, left)
                runner.begin(spec, done, left)
                record = runner.one(spec)
                done += 1  # it counts also where telling of it fails
                runner.keep(record)
                forecast.ended(spec, record)
        finally:
            runner.close()
            runner.tell(done=done, current=None, ended=True)
            runner.tracker.close(finished=not execution.missing())
    return execution


def record_skipped(reporter: Reporter, context: Context) -> None:
    """Record each skipped configuration once, with its reason."""
    execution = reporter.execution
    plan, known = execution.plan, execution.ended
    first = {spec.config_id: spec for spec in plan.runs if spec.repeat == 0}
    new = {config: reason for config, reason in plan.skipped.items() if first[config].run_id not in known}
    for spec, reason in ((first[config], reason) for config, reason in new.items()):
        execution.add(save_record(skipped(context, spec, reason), execution.folder / spec.run_id))
    reporter.progress.skipped(new)
