"""Execute a suite: find or open its execution, launch what is missing, collect, record, index.

One failed run stops nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from bench import folder as files
from bench.errors import Stopped
from bench.files import held, write_json
from bench.machine.environment import EnvironmentProblem, check_torch, describe
from bench.record import Environment, RunRecord, Status
from bench.run.collect import Context, collect, oom_kills, save, skipped
from bench.run.launcher import Launcher, LaunchOptions, make_launcher, write_missing_exit
from bench.schema import COMMAND, Machine, RunSpec
from bench.store.progress import PATIENCE_SECONDS, Flight
from bench.store.tracker import Tracker
from bench.suites.expand import Expansion

RUN_OVERHEAD_SECONDS = 2.0
"""Fixed cost of a warm run, for estimates before anything was measured: see tests/benchmarks/warm_start.py."""
START_SECONDS = 12.0
"""Start of an execution: importing torch, transformers and mlflow on two cores."""


class Progress:
    """What a listener may show while a suite runs; this one shows nothing."""

    def begin(self, execution: Execution, to_do: int, done: int) -> None:
        """An execution was opened."""

    def note(self, text: str) -> None:
        """Something that the reader should know."""

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """A run begins."""

    def tick(self) -> None:
        """About a second has passed."""

    def done(self, record: RunRecord) -> None:
        """A run has ended and is recorded."""


@dataclass
class Execution:
    """One execution of a suite on one machine state: a folder, its records, and what is still missing."""

    folder: Path
    plan: Expansion
    resumed: bool
    records: dict[str, RunRecord] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its start time and the fingerprint of its environment."""
        return self.folder.name

    def missing(self, *, retry: bool = False) -> list[RunSpec]:
        """Runs without a record, in order; with `retry` also those that failed.

        A run whose saved weights are gone is done again if one of these needs them.
        """
        ended = {key: record for key, record in self.records.items() if not retry or record.status is Status.OK}
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
        """Whether a run ended well, but what it saved is not there any more."""
        record = self.records.get(giver.run_id)
        return record is not None and record.status is Status.OK and not self.checkpoint(giver).is_dir()

    def checkpoint(self, giver: RunSpec) -> Path:
        """Where the weights are that a run has saved."""
        return self.folder / giver.run_id / files.CHECKPOINT

    def unmet(self, spec: RunSpec) -> str | None:
        """Why the weights that a run needs are not there; None if they are, or it needs none."""
        given = self.plan.givers.of(spec)
        if given is None:
            return None
        record = self.records.get(given.run_id)
        if record is None:
            return f"needs {spec.needs!r}, which was not done"
        if record.status is not Status.OK:
            why = record.error.message.splitlines()[0] if record.error and record.error.message else ""
            return f"needs {spec.needs!r}, which ended as {record.status}: {why}"
        return None if self.checkpoint(given).is_dir() else f"needs {spec.needs!r}, which left no weights"


def plan_digest(plan: Expansion) -> str:
    """Hash of the runs that a suite means, and of region and prices: an execution continues only for the same."""
    meant = [plan.suite.site.model_dump(mode="json"), *sorted(run.run_id for run in plan.runs)]
    return hashlib.sha256(json.dumps(meant).encode()).hexdigest()[:16]


def open_execution(
    runs: Path, plan: Expansion, environment: Environment, *, new: bool = False, retry: bool = False
) -> Execution:
    """Find the newest unfinished execution of the same runs in the same environment, or open another.

    With `retry`, one with failed runs is unfinished.
    """
    suite_folder, digest = runs / plan.suite.name, plan_digest(plan)
    for folder in [] if new else earlier(suite_folder, environment, digest):
        execution = Execution(folder, plan, resumed=True, records=load_records(folder))
        if execution.missing(retry=retry):
            return execution
        break  # the newest of the same runs is complete
    folder = new_folder(suite_folder, environment)
    write_facts(folder, plan, environment, digest, runs=[run.run_id for run in plan.runs])
    return Execution(folder, plan, resumed=False)


def earlier(suite_folder: Path, environment: Environment, digest: str) -> Iterator[Path]:
    """Find the executions of the same runs, by their `plan_digest`, in the same environment, the newest first."""
    for folder in sorted(suite_folder.glob("*"), reverse=True):
        facts = files.EXECUTION.find(folder)
        if facts and (facts.fingerprint, facts.plan_digest) == (environment.fingerprint, digest):
            yield folder


def new_folder(suite_folder: Path, environment: Environment) -> Path:
    """Make the folder of an execution that begins now, which no other process takes too."""
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
        if record := files.RECORD.find(path.parent):  # one that is torn is missing: its run is done again
            records[record.run_id] = record
    return records


def estimate_seconds(spec: RunSpec) -> float | None:
    """Estimate how long a run takes from what its spec asks for; None if unknown."""
    if spec.measure_seconds is None:  # so many steps, or a command
        return None
    start = RUN_OVERHEAD_SECONDS + (START_SECONDS if spec.cold else 0)
    return start + spec.warmup_seconds + 1.2 * spec.measure_seconds


class Forecast:
    """How long the runs that are left will take: as their configurations took before, else as `estimate_seconds` says.

    It is kept up to date run by run, each at the same cost, however many runs there are.
    """

    def __init__(self, left: Iterable[RunSpec], records: Iterable[RunRecord] = ()) -> None:
        self._longest: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self._total, self._unknown = 0.0, 0
        for record in records:
            self._learn(record)
        for spec in left:
            self._left[spec.config_id] = self._left.get(spec.config_id, 0) + 1
            self._count(self.seconds(spec), 1)

    def _learn(self, record: RunRecord) -> None:
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

    def ended(self, spec: RunSpec, record: RunRecord) -> None:
        """Leave out a run that has ended, and take what it took for the others of its configuration."""
        left = self._left[spec.config_id]
        self._count(self.seconds(spec), -left)
        self._left[spec.config_id] = left - 1
        self._learn(record)
        self._count(self.seconds(spec), left - 1)


def surroundings(plan: Expansion, machine: Machine) -> Environment:
    """Describe where the runs of a plan are done. Raises EnvironmentProblem where torch cannot do them."""
    trained = [run for run in plan.to_do if run.workload != COMMAND]
    if trained:
        check_torch(machine, for_gpus=any(run.device_type == "cuda" for run in trained))
    return describe(machine)


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold an execution for this process. Raises Busy where another one runs it."""
    return held(folder / files.LOCK, f"another process runs this execution: {folder}")


@contextmanager
def terminable(advice: str = "") -> Iterator[None]:
    """Let SIGTERM end a suite or a search as Ctrl-C does; raise Stopped, with further advice, once all has ended."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"Stopped. Run the same command again to resume.{advice}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Runner:
    """The parts of an execution that live while it runs."""

    context: Context
    execution: Execution
    launcher: Launcher
    tracker: Tracker
    progress: Progress
    flight: Flight

    @classmethod
    def make(
        cls, execution: Execution, machine: Machine, environment: Environment, store: str | None, progress: Progress
    ) -> Self:
        """Put the parts together; nothing is started."""
        plan = execution.plan
        gpus = [gpu.uuid for gpu in machine.free_gpus]
        uses_gpus = any(run.device_type == "cuda" for run in plan.to_do)
        options = LaunchOptions(
            execution.folder,
            meters=sorted({meter for run in plan.to_do for meter in run.meters}),
            workloads=sorted({run.workload for run in plan.to_do}),
            gpus=gpus if uses_gpus else [],
            threads=max((run.threads_per_device for run in plan.to_do), default=1),
            idle_seconds=plan.suite.idle_seconds,
        )
        launcher = make_launcher(plan.to_do, options)
        context = Context(plan.suite.name, execution.name, plan.suite.site, environment, gpus)
        now, who = datetime.now(UTC), {"suite": plan.suite.name, "execution": execution.name}
        where = {"host": socket.gethostname(), "folder": str(execution.folder)}
        flight = Flight(**who, **where, began_at=now, updated_at=now)
        return cls(context, execution, launcher, Tracker(store, **who), progress, flight)

    def start(self) -> None:
        """Start the node and check that torch can use the GPUs that are asked of it."""
        runs = [run for run in self.execution.plan.to_do if run.workload != COMMAND]
        needed = max((run.world_size for run in runs if run.device_type == "cuda"), default=0)
        facts = self.launcher.start(tick=self.progress.tick)
        seen = facts.get("cuda")
        if needed and seen is not None and seen["count"] < needed:
            reason = seen["error"] or f"it sees {seen['count']} of {len(self.context.gpus)} GPUs"
            raise EnvironmentProblem(
                f"NVML sees {len(self.context.gpus)} GPU(s), but torch {facts['torch']} cannot use them: {reason}\n"
                f"Install a torch built for this driver ({self.context.environment.machine.driver_version}), "
                "or measure the CPU on purpose: --set device_type=cpu"
            )

    def one(self, spec: RunSpec) -> RunRecord:
        """Do one run in a folder of its own, from `spec.json` to `record.json`."""
        folder = self.execution.folder / spec.run_id
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted or failed try left
        if reason := self.execution.unmet(spec):
            return save(skipped(self.context, spec, reason), folder)
        folder.mkdir()
        files.SPEC.write(folder, spec)
        if given := self.execution.plan.givers.of(spec):
            files.NEEDS.write(folder, files.Needs(folder=self.execution.folder / given.run_id))
        kills, started, start_ns = oom_kills(), datetime.now(UTC), time.monotonic_ns()
        try:
            self.launcher.submit(folder)
            # The node keeps the time limit; the extra minute is for a node that hangs itself.
            if not self.launcher.wait(folder, spec.timeout_seconds + 60, self.progress.tick):
                self.launcher.close()
                write_missing_exit(folder, started, start_ns)
        except KeyboardInterrupt:
            self.launcher.cancel(folder)
            shutil.rmtree(folder, ignore_errors=True)  # it will be done again
            raise
        after = oom_kills()
        killed = kills is not None and after is not None and after > kills
        return collect(self.context, spec, folder, killed_for_memory=killed)

    def index(self) -> None:
        """Open the index, and log what an earlier call could not log any more."""
        self.noted(self.tracker.open)
        for record in self.execution.records.values():
            self.tracker.log(record, self.execution.folder / record.run_id)
        self.tell()

    def tell(self, **news: Any) -> None:
        """Say how far the execution is, in its folder and in the index. Where that fails, runs go on."""
        self.flight = self.flight.changed(**news, updated_at=datetime.now(UTC))
        with suppress(OSError):
            write_json(self.execution.folder / files.PROGRESS, self.flight.model_dump(mode="json"))
        self.noted(lambda: self.tracker.tell(self.flight))

    def begin(self, spec: RunSpec, done: int, left: float | None, *, of: str = "") -> None:
        """Say that a run begins, `of` a trial, say; `left` are the seconds until all runs have ended, None if unknown."""
        limit, now = spec.timeout_seconds + PATIENCE_SECONDS, datetime.now(UTC)
        current = f"{of}{spec.label[:300]} r{spec.repeat}"
        self.tell(current=current, done=done, run_began_at=now, remaining_seconds=left, silent_seconds=limit)

    def noted(self, action: Callable[[], object]) -> None:
        """Do something with the index; say it where that fails for the first time."""
        failed_before = self.tracker.error
        action()
        if self.tracker.error and not failed_before:
            self.progress.note(f"{self.tracker.error}\nruns go on; bench sync logs them later")

    def keep(self, record: RunRecord) -> None:
        """Remember a record and index it."""
        self.execution.records[record.run_id] = record
        failed = self.flight.failed + (record.status not in (Status.OK, Status.SKIPPED))
        self.flight = self.flight.changed(failed=failed)
        self.noted(lambda: self.tracker.log(record, self.execution.folder / record.run_id))
        self.progress.done(record)


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
    """Do the runs of a plan that are missing, in order, and return the execution with its records.

    `selected` restricts this call to some run ids, `max_minutes` begins no run that would not end in time; what is left
    is done by the next call. Raises Busy, EnvironmentProblem or LaunchError before anything has run, Stopped after Ctrl-C
    or SIGTERM with all processes ended and the execution ready to be resumed.
    """
    began = time.monotonic()
    progress = progress or Progress()
    environment = surroundings(plan, machine)
    execution = open_execution(runs.absolute(), plan, environment, new=new, retry=retry)
    with locked(execution.folder), terminable():
        chosen = [spec for spec in execution.missing(retry=retry) if selected is None or spec.run_id in selected]
        progress.begin(execution, len(chosen), len(execution.records))
        runner, to_do = Runner.make(execution, machine, environment, store, progress), len(chosen)
        forecast = Forecast(chosen, execution.records.values())
        runner.tell(to_do=to_do)
        done = 0
        try:
            if chosen:
                runner.start()
            runner.index()
            _record_skipped(runner)
            for spec in chosen:
                expected = forecast.seconds(spec) or 0.0
                if max_minutes is not None and time.monotonic() - began + expected > max_minutes * 60:
                    progress.note(f"--max-minutes {max_minutes:g}: no time for the {to_do - done} runs that are left")
                    break
                left = forecast.remaining_seconds
                progress.start(spec, left)
                runner.begin(spec, done, left)
                record = runner.one(spec)
                runner.keep(record)
                forecast.ended(spec, record)
                done += 1
        finally:
            runner.launcher.close()
            runner.tell(done=done, current=None, ended=True)
            runner.tracker.close(finished=not execution.missing())
    return execution


def _record_skipped(runner: Runner) -> None:
    """Record each configuration that is skipped, once, with its reason."""
    plan = runner.execution.plan
    for spec in plan.runs:
        if spec.repeat == 0 and spec.config_id in plan.skipped and spec.run_id not in runner.execution.records:
            record = skipped(runner.context, spec, plan.skipped[spec.config_id])
            runner.keep(save(record, runner.execution.folder / spec.run_id))
