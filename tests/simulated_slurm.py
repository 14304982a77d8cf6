"""A queue with a clock of its own, in which jobs do their runs, fail, vanish and are preempted as a script says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench import folder as files
from bench.cluster_options import ClusterOptions
from bench.jobs.follow import Controller, ControllerClock
from bench.jobs.queue import Queue, QueuedJob
from bench.machine.cluster import ClusterProblem
from bench.machine.partition import Partition
from bench.run.collect import save_record
from bench.run.runner import Execution, Progress, Reporter, load_briefs
from bench.schema import RunSpec, Suite
from bench.store.tracker import Tracker
from bench.suites.expand import Expansion
from tests.benchmarks.planning import recorded

LISTED_SECONDS = 300.0
"""How long a job is listed after its end."""
FAULTS = (
    *("none", "none", "none", "node_fail", "preempted", "timeout", "failed", "vanished", "lost_but_runs", "cancelled"),
    *("accepted_without_a_word", "not_accepted_without_a_word", "requeued", "too_short"),
)


class ControllerKilled(BaseException):
    """The controller was ended by kill -9."""


@dataclass
class SimulatedJob:
    """A job: when it is to start, what becomes of it and after how many of its runs."""

    id: str
    name: str
    folder: Path
    fault: str
    after_runs: int
    start: float
    end_of_time: float
    state: str = "PENDING"
    reason: str = "Priority"
    nodes: str = ""
    alive: bool = False
    over_at: float | None = None
    listed: bool = True
    steps: Iterator[float] | None = None
    due: float = 0.0


@dataclass
class SimulatedSlurm(Queue):
    """A queue that listens to a script: the faults of its jobs in order, how long they wait, and how long a run takes.

    `told` is how jobs that are lost end by their own account, by id.
    """

    execution: Path
    faults: Sequence[str] = ()
    waits: Sequence[float] = (1.0,)
    run_seconds: float = 4.0
    after_runs: Sequence[int] = (0, 1, 2)
    silent: Sequence[tuple[float, float]] = ()
    kill_at: list[float] = field(default_factory=list)
    refuses: str | None = None
    most_jobs: int = 1_000_000
    free: int = 1_000_000
    now: float = 1.8e9
    jobs: list[SimulatedJob] = field(default_factory=list)
    executed: Counter[str] = field(default_factory=Counter)
    asked_at: list[float] = field(default_factory=list)
    most_in_queue: int = 0
    after_record: list[str] = field(default_factory=list)
    told: dict[str, files.BlockEnd] = field(default_factory=dict)

    @property
    def clock(self) -> ControllerClock:
        """The clock of the controller."""
        return ControllerClock(lambda: self.now, self.pass_time)

    def submit(self, script: Path) -> str:
        """Accept a job, or do what the script says of it."""
        self._speak()
        if self.refuses is not None and self.refuses in script.read_text():
            raise ClusterProblem("sbatch: error: Requested node configuration is not available")
        if sum(each.state in ("PENDING", "RUNNING") for each in self.jobs) >= self.most_jobs:
            raise ClusterProblem("sbatch: error: AssocMaxSubmitJobLimit")
        number, folder = len(self.jobs), script.parent
        fault = self.faults[number] if number < len(self.faults) else "none"
        block = files.BLOCK.read(folder)
        wait = self.waits[number % len(self.waits)]
        job = SimulatedJob(
            id=str(1000 + number),
            name=block.name,
            folder=folder,
            fault=fault,
            after_runs=self.after_runs[number % len(self.after_runs)],
            start=self.now + wait,
            end_of_time=self.now + wait + 60 * block.minutes,
        )
        self.jobs.append(job)
        if fault == "not_accepted_without_a_word":
            job.listed, job.state = False, "CANCELLED"
            raise ClusterProblem("sbatch: Unable to contact slurm controller")
        if fault == "accepted_without_a_word":
            raise ClusterProblem("sbatch: Socket timed out on send/recv operation")
        self.most_in_queue = max(
            self.most_in_queue, sum(each.listed and each.state in ("PENDING", "RUNNING") for each in self.jobs)
        )
        return job.id

    def listed(self) -> list[QueuedJob]:
        """List the jobs, as long as they are known."""
        self.asked_at.append(self.now)
        self._speak()
        return [
            QueuedJob(job.id, job.state, job.name, nodes=job.nodes, reason=job.reason)
            for job in self.jobs
            if job.listed
        ]

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs."""
        for job in self.jobs:
            if job.id in set(jobs) and job.state in ("PENDING", "RUNNING"):
                self._over(job, "CANCELLED")

    def failed_nodes(self, nodes: str) -> list[str]:
        """Return a node of those."""
        return [nodes] if nodes else []

    def past(self, job: str) -> str:
        """There is no accounting."""
        return ""

    def _speak(self) -> None:
        if any(start <= self.now - 1.8e9 < end for start, end in self.silent):
            raise ClusterProblem("squeue: error: Unable to contact slurm controller (connect failure)")

    def pass_time(self, seconds: float) -> None:
        """Let time pass: jobs begin, go on and end. Raises ControllerKilled when its time has come."""
        self.now += seconds
        for job in self.jobs:
            self._go_on(job)
        if self.kill_at and self.now - 1.8e9 >= self.kill_at[0]:
            self.kill_at.pop(0)
            raise ControllerKilled

    def _go_on(self, job: SimulatedJob) -> None:
        if job.over_at is not None and self.now > job.over_at + LISTED_SECONDS:
            job.listed = False
        if job.state == "PENDING" and self.now >= job.start:
            job.state, job.reason, job.nodes, job.alive = "RUNNING", "None", f"n{job.id}", True
            job.steps, job.due = self._work(job), self.now
        while job.alive and job.steps is not None and self.now >= job.due:
            try:
                job.due += next(job.steps)
            except StopIteration:
                job.alive = False

    def _work(self, job: SimulatedJob) -> Iterator[float]:
        """Do the runs of a block as its process does; yield the seconds until the next step."""
        block = files.BLOCK.read(job.folder)
        before = {files.BLOCKS.path(self.execution, f"{number:04d}") for number in block.after}
        while any(other.alive for other in self.jobs if other.folder in before):
            yield 2.0
        left = [spec for spec in block.runs if not (self.execution / spec.run_id / files.RECORD.name).exists()]
        again = {spec.run_id: spec for spec in block.runs if spec.run_id in block.again}
        left = [*again.values(), *(spec for spec in left if spec.run_id not in again)]
        if job.fault == "vanished_at_once":
            self._over(job, "FAILED")
            job.listed = False
            return
        if job.fault == "too_short":
            self._finish(job, len(left), "the job is too short")
            return
        for position, spec in enumerate(left):
            if (job.folder / files.REVOKED).exists() or job.due + self.run_seconds + 20 > job.end_of_time:
                self._finish(job, len(left) - position)
                return
            self._journal(job, spec)
            if position >= job.after_runs and job.fault not in ("none", "accepted_without_a_word"):
                yield self.run_seconds / 2
                if self._fails(job):
                    return
            yield self.run_seconds / 2
            self._record(job, spec)
        self._finish(job, 0)

    def _fails(self, job: SimulatedJob) -> bool:
        """Do what the script says of a job in the middle of a run; return whether that is its end."""
        states = {"node_fail": "NODE_FAIL", "preempted": "PREEMPTED", "timeout": "TIMEOUT", "failed": "FAILED"}
        states |= {"cancelled": "CANCELLED by 0"}
        if job.fault in states:
            if job.id in self.told:
                files.BLOCK_END.write(job.folder, self.told[job.id])
            self._over(job, states[job.fault])
        elif job.fault == "vanished":
            self._over(job, "NODE_FAIL")
            job.listed = False
        elif job.fault == "lost_but_runs":
            job.listed = False
            return False
        elif job.fault == "requeued":
            job.state, job.start, job.fault, job.alive = "PENDING", self.now + 120, "none", False
            job.end_of_time = job.start + 60 * files.BLOCK.read(job.folder).minutes
        else:
            return False
        return True

    def _journal(self, job: SimulatedJob, spec: RunSpec, **how: object) -> None:
        line = files.BlockLine(run=spec.run_id, **how)
        with (job.folder / files.JOURNAL).open("a") as journal:
            journal.write(line.model_dump_json() + "\n")

    def _record(self, job: SimulatedJob, spec: RunSpec) -> None:
        folder = self.execution / spec.run_id
        if (folder / files.RECORD.name).exists() and spec.run_id not in files.BLOCK.read(job.folder).again:
            self.after_record.append(spec.run_id)
        folder.mkdir(exist_ok=True)
        lost = files.BLOCK.read(job.folder).lost.get(spec.run_id, [])
        save_record(recorded(spec, datetime.fromtimestamp(self.now, UTC)).changed(lost=lost), folder)
        self.executed[spec.run_id] += 1
        self._journal(job, spec, status="ok", seconds=4.0)

    def _finish(self, job: SimulatedJob, left: int, why: str = "") -> None:
        files.BLOCK_END.write(job.folder, files.BlockEnd(left=left, why=why))
        self._over(job, "COMPLETED")

    def _over(self, job: SimulatedJob, state: str) -> None:
        job.state, job.alive, job.over_at = state, False, self.now


def specs(sizes: Sequence[int], configurations: int, repeats: int) -> list[RunSpec]:
    """Return runs of several numbers of nodes, all repeats of a configuration after each other's."""
    base = RunSpec(
        workload="decoder_lm",
        device_type="cpu",
        launcher="slurm",
        batch_size_per_device=4,
        measure_seconds=3,
        devices_per_node=2,
        meters=[],
    )
    each = [
        base.changed(num_nodes=nodes, batch_size_per_device=1 + number)
        for number in range(configurations)
        for nodes in sizes
    ]
    return [spec.changed(repeat=repeat, seed=repeat) for repeat in range(repeats) for spec in each]


class Notes(Progress):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.texts = list[str]()

    def note(self, text: str) -> None:
        """Keep a note."""
        self.texts.append(text)


def controller(
    folder: Path, runs: list[RunSpec], slurm: SimulatedSlurm, notes: Notes, *, retry: bool = False, **asked: object
) -> Controller:
    """Return a controller as the same command makes it each time, also with --retry."""
    cluster = ClusterOptions(**asked)
    partition = Partition(cpu_model="any", cpu_count=2, name="gpu", most_nodes=1000, asked=cluster)
    plan = Expansion(Suite(name="planning", idle_seconds=0, cluster=cluster), runs)
    execution = Execution(folder, plan, resumed=True, ended=load_briefs(folder))
    reporter = Reporter.of(execution, None, notes)
    reporter.tracker = Tracker.off("planning", folder.name)
    made = Controller(reporter, partition, slurm, slurm.clock)
    made.prepare(execution.missing(retry=retry))
    return made


def until_done(
    folder: Path, runs: list[RunSpec], slurm: SimulatedSlurm, *, most: int = 40, **asked: object
) -> tuple[Notes, int]:
    """Type the same command until nothing is missing; return what was told, and how often it was typed."""
    notes, typed = Notes(), 0
    while len(load_briefs(folder)) < len(runs) and typed < most:
        typed += 1
        try:
            controller(folder, runs, slurm, notes, **asked).follow()
        except ControllerKilled:
            continue
    return notes, typed
