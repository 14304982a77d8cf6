"""Follow the jobs of a suite from a login node: submit blocks, log what comes back, and submit again what is left.

The folders of the runs are the truth, the queue is a hint: no run is done, failed or lost by what the queue says if its
folder says otherwise. A controller may end at any time, and another one goes on, on this or another login node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from bench import folder as files
from bench.cluster_options import clock_seconds
from bench.files import write_text
from bench.jobs import blocks
from bench.jobs.fate import LOST, Fate, fate, queued
from bench.jobs.ledger import TRIES, Ledger, attempt_of, lost_attempts
from bench.jobs.queue import Queue, QueuedJob, unreachable
from bench.machine.cluster import ClusterProblem
from bench.machine.partition import Partition
from bench.record import RunRecord
from bench.run.collect import Context, collect
from bench.run.runner import Brief, Forecast, Reporter
from bench.schema import RunSpec

FIRST_POLL_SECONDS, POLL_SECONDS, SLOWEST_POLL_SECONDS = 10.0, 30.0, 120.0
"""The queue is asked so long after a submission, then at growing intervals; never more often than once in 30 s."""
DETACH_SECONDS = 120.0
"""Jobs that are to be left to themselves wait so long for a Slurm that does not answer."""
WAIT_MINUTES = 3
"""More time for a job that may have to wait until it is sure that an earlier one does not go on."""


@dataclass
class ControllerClock:
    """Time as a controller sees it, in seconds since the epoch."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Active:
    """A job that has not ended, as far as is known: the runs that are left of it, and how far its journal is read.

    `begun` is the run under way, `late` are runs that ended but whose records are not to be seen yet. `ours`: we have
    cancelled it. `completed`: Slurm has said so, but the job has not.
    """

    job: files.SubmittedJob
    folder: Path
    left: dict[str, RunSpec]
    read: int = 0
    begun: str | None = None
    late: set[str] = field(default_factory=set)
    state: str = ""
    nodes: str = ""
    ours: bool = False
    completed: bool = False


@dataclass
class Controller:
    """The jobs of one execution, and the runs that are left for them."""

    reporter: Reporter
    partition: Partition
    queue: Queue
    clock: ControllerClock = field(default_factory=ControllerClock)
    active: dict[int, Active] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.reporter.execution.folder
        self.plan = self.reporter.execution.plan
        self.groups = dict[str, blocks.SizeGroup]()
        self._left = dict[str, dict[str, RunSpec]]()
        self._group_of = dict[str, str]()
        self._owners = dict[str, list[int]]()
        self._again = set[str]()
        self._forecast = Forecast(())
        self.ledger = Ledger(self.folder)
        self._bad = set[str]()
        self._most_jobs = self.partition.asked.max_jobs
        self._next_poll = self._interval = 0.0
        self._last_poll = -POLL_SECONDS
        self._unreachable = False
        self.done = self.to_do = 0

    def prepare(self, chosen: Sequence[RunSpec]) -> None:
        """Take up the runs that are to be done, and the jobs of this execution that are still known."""
        execution = self.reporter.execution
        self.groups = blocks.grouped(chosen, self.plan.givers, self.partition.asked.jobs)
        self._again = {spec.run_id for spec in chosen if spec.run_id in execution.ended}
        self._forecast = Forecast(chosen, execution.ended.values())
        self._left = {name: {spec.run_id: spec for spec in group.runs} for name, group in self.groups.items()}
        self._group_of = {run: name for name, runs in self._left.items() for run in runs}
        self.to_do = len(chosen)
        for job in self.ledger.jobs.values():
            folder = self._place(job.number)
            block = files.BLOCK.find(folder)
            if block is not None:
                for spec in block.runs:
                    self._owners.setdefault(spec.run_id, []).append(job.number)
            if block is not None and job.ended is None:
                mine = {spec.run_id: self._taken(spec.run_id) for spec in block.runs if spec.run_id in self._group_of}
                self.active[job.number] = Active(job, folder, {run: spec for run, spec in mine.items() if spec})

    def follow(self, *, detach: bool = False) -> None:
        """Submit jobs and follow them until no run is left that could be done.

        With `detach`, only submit them, and wait for a while if Slurm does not answer.
        """
        self._read_journals()
        self._poll()
        patience = self.clock.now() + DETACH_SECONDS
        while True:
            self._submit_what_is_due()
            waits = self._unreachable and bool(self.open_runs)
            if detach and (self.clock.now() >= patience or not (waits or self.unclear_jobs)):
                return
            if not self.active and not waits:
                return
            self._wait()
            self._poll()

    @property
    def open_runs(self) -> list[str]:
        """The runs that no job has and that have not been given up."""
        return [run for name, runs in self._left.items() if name not in self.stopped for run in runs]

    @property
    def unclear_jobs(self) -> list[str]:
        """The names of jobs of which it is not known whether Slurm has accepted them."""
        return [active.job.name for active in self.active.values() if active.job.id is None]

    def cancel(self) -> list[str]:
        """Cancel all jobs that have not ended, and wait until they are gone; return their ids."""
        for active in self.active.values():
            active.ours = True
        ours = {job.name for job in self.ledger.jobs.values()}  # also one that was accepted after all
        mine = [each.id for each in queued(self.queue.listed(), ours)]
        self.queue.cancel(mine)
        end = self.clock.now() + 120
        while self.active and self.clock.now() < end:
            self._ask()
            if self.active:
                self.clock.sleep(2)
        if self.active:
            self._note(f"{len(self.active)} cancelled jobs have not ended yet")
        return mine

    def _place(self, number: int) -> Path:
        return files.BLOCKS.path(self.folder, f"{number:04d}")

    def _taken(self, run_id: str) -> RunSpec | None:
        """Take a run out of those that no job has; None where it is not among them."""
        return self._left[self._group_of[run_id]].pop(run_id, None)

    # Submission

    def _submit_what_is_due(self) -> None:
        for name in [name for name, runs in self._left.items() if runs and name not in self.stopped]:
            while self._left[name] and name not in self.stopped and len(self.active) < self._most_jobs:
                if self._unreachable or not self._submit(self.groups[name]):
                    break

    def _submit(self, group: blocks.SizeGroup) -> bool:
        """Submit a job for runs of a group; return whether there was one to submit."""
        cut = blocks.next_cut(
            list(self._left[group.name].values()),
            self._forecast.seconds,
            self._ready,
            most_seconds=self.partition.most_seconds,
            idle_seconds=self.plan.suite.idle_seconds,
            factor=self.ledger.factor(group.name),
        )
        if cut is None:
            if not self.active:
                self.stopped[group.name] = "runs whose weights they need were not done"
            return False
        number = self.ledger.next_number
        block, folder = self._block(number, group, cut), self._place(number)
        folder.mkdir(exist_ok=True)
        files.BLOCK.write(folder, block)
        at = datetime.fromtimestamp(self.clock.now(), UTC)
        job = files.SubmittedJob(number=number, name=block.name, group=group.name, minutes=block.minutes, at=at)
        active = Active(job, folder, {spec.run_id: spec for spec in cut.runs})
        for run_id in active.left:
            self._taken(run_id)
            self._owners.setdefault(run_id, []).append(number)
        self.active[number] = active
        self._change(active)
        try:
            self._change(active, id=self._accepted(active, block))
        except ClusterProblem as problem:
            if "SubmitJob" in str(problem) and len(self.active) > 1:
                self._end(active, Fate("failed", "so many jobs at once are not allowed; it waits for others to end"))
                self._most_jobs = len(self.active)
                return False
            if not unreachable(problem):
                self._give_up(active, str(problem))
                return False
            self._silent(problem)  # whether it was accepted, its name in the queue will tell
        minutes = f"{block.minutes} min asked"
        runs = f"{len(cut.runs)} run{'s' * (len(cut.runs) != 1)} on {group.nodes} node{'s' * (group.nodes != 1)}"
        self._note(f"job {active.job.id or active.job.name}: {runs}, {minutes}")
        self._interval = POLL_SECONDS / 2
        self._next_poll = max(self.clock.now() + FIRST_POLL_SECONDS, self._last_poll + POLL_SECONDS)
        return not self._unreachable

    def _accepted(self, active: Active, block: files.JobBlock) -> str:
        """Submit the job of a block without nodes that failed, or with them where there are too few others; return its id."""
        script, exclude = active.folder / files.JOB_SCRIPT, sorted(self._bad)
        write_text(script, blocks.batch_script(block, active.folder, self.partition, exclude))
        try:
            return self.queue.submit(script)
        except ClusterProblem as problem:
            if not exclude or unreachable(problem):
                raise
            self._bad.clear()
            self._note(f"Slurm takes no job of {block.nodes} nodes without {', '.join(exclude)}: it may use them again")
            return self._accepted(active, block)

    def _block(self, number: int, group: blocks.SizeGroup, cut: blocks.Cut) -> files.JobBlock:
        """Return the block of a cut, after those that had some of its runs, whose files say that they are to stop."""
        before = sorted({owner for spec in cut.runs for owner in self._owners.get(spec.run_id, [])})
        for owner in before:
            (self._place(owner) / files.REVOKED).touch()
        unclear = [owner for owner in before if self.ledger.ended(owner) == "node_failed"]
        ids, givers = {spec.run_id for spec in cut.runs}, dict[str, RunSpec]()
        for spec in cut.runs:
            giver = self.plan.givers.of(spec)
            if giver is not None and giver.run_id not in ids:
                givers[giver.run_id] = giver
        return files.JobBlock(
            number=number,
            name=f"wb-{self.folder.name}-{number}-{uuid4().hex[:8]}",
            group=group.name,
            nodes=group.nodes,
            minutes=cut.minutes + (WAIT_MINUTES if unclear else 0),
            runs=cut.runs,
            givers=list(givers.values()),
            again=self._again & ids,
            after=unclear,
            lost={run: lost for run, lost in lost_attempts(self.ledger.jobs.values()).items() if run in ids},
            cluster=self.partition.asked,
        )

    def _ready(self, spec: RunSpec, before: Collection[str]) -> bool:
        """Whether the weights that a run needs exist, or will before it."""
        giver = self.plan.givers.of(spec)
        if giver is None or giver.run_id in before:
            return True
        return giver.run_id in self.reporter.execution.ended and giver.run_id not in self._group_of

    # Time

    def _wait(self) -> None:
        """Wait until a job tells of a run, or the queue is to be asked."""
        while self.clock.now() < self._next_poll:
            if self._read_journals():
                return
            self.reporter.progress.tick()
            self.clock.sleep(1)

    def _poll(self) -> None:
        """Ask the queue if it is time to."""
        now = self.clock.now()
        if (self.active or self._unreachable) and now >= self._next_poll:
            self._ask()
            self._interval = min(SLOWEST_POLL_SECONDS, max(POLL_SECONDS, 2 * self._interval))
            self._next_poll = now + self._interval

    # What jobs have done

    def _read_journals(self) -> bool:
        """Read what jobs have written; return whether one has ended."""
        ended = False
        for active in list(self.active.values()):
            self._read(active)
            end = files.BLOCK_END.find(active.folder)
            if end is not None and end.signalled:  # the queue knows whether it was preempted or cancelled
                self._next_poll = min(self._next_poll, max(self.clock.now(), self._last_poll + FIRST_POLL_SECONDS))
            elif end is not None:
                self._end(active, fate(None, end, ours=active.ours))
                ended = True
        return ended

    def _read(self, active: Active) -> None:
        """Read the journal of a job; take in the records of runs that have ended."""
        for line in self._news(active):
            if line.status is None:
                active.begun = line.run
            else:
                active.late.add(line.run)
                active.begun = None if active.begun == line.run else active.begun
        for run_id in list(active.late):
            record, before = files.RECORD.find(self.folder / run_id), self.reporter.execution.ended.get(run_id)
            old = record is not None and before is not None and record.started_at == before.started_at
            if record is not None and not old:  # a shared folder may show it a little later
                active.late.discard(run_id)
                self._ended(active, record)

    def _news(self, active: Active) -> Iterator[files.BlockLine]:
        try:
            with (active.folder / files.JOURNAL).open("rb") as journal:
                journal.seek(active.read)
                whole = journal.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return
        active.read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            with suppress(ValueError):
                yield files.BlockLine.model_validate_json(line)

    def _ended(self, active: Active, record: RunRecord) -> None:
        """Take in the record of a run of a job."""
        spec = active.left.pop(record.run_id, None)
        if spec is None:
            return
        self._group_of.pop(record.run_id)
        self._again.discard(record.run_id)
        self.reporter.execution.ended[record.run_id] = Brief.of(record)
        self._forecast.ended(spec, record)
        self.done += 1
        active.job = active.job.changed(done=active.job.done + 1)
        self.reporter.log(record)
        self.reporter.tell(done=self.done)

    # What the queue says

    def _ask(self) -> None:
        """Ask the queue for all jobs, and judge each."""
        self._last_poll = self.clock.now()
        try:
            rows = {job.name: job for job in self.queue.listed()}
            self._unreachable = False
        except ClusterProblem as problem:
            self._silent(problem)
            return
        for active in list(self.active.values()):
            self._read(active)
            self._judge(active, rows.get(active.job.name))

    def _judge(self, active: Active, row: QueuedJob | None) -> None:
        """Go by what a job has left in its folder, then by its row in the queue."""
        job, end = active.job, files.BLOCK_END.find(active.folder)
        if row is not None and job.id is None:
            self._change(active, id=row.id)
        if row is None and end is None and job.id is None:
            self._end(active, Fate("failed", "it was not accepted"))
            return
        past = self.queue.past(job.id) if row is None and end is None and job.id is not None else ""
        active.nodes = row.nodes if row is not None and row.nodes else active.nodes
        what = fate(row, end, past=past, log=self._log(active), ours=active.ours)
        if what.ended:
            if row is not None and row.state == "COMPLETED" and end is None and not active.completed:
                active.completed = True  # a shared folder may show the mark of its end a little later
                return
            self._end(active, what)
        elif what.kind == "hopeless":
            self._give_up(active, f"job {job.id} would wait for ever: {what.why}")
        else:
            self._waits(active, row, what)

    def _waits(self, active: Active, row: QueuedJob | None, what: Fate) -> None:
        """Tell of a job that waits or runs, and cancel one that has waited for too long."""
        waited, most = self.clock.now() - active.job.at.timestamp(), self.partition.asked.max_pending
        if what.kind != "runs" and most is not None and waited > clock_seconds(most):
            self._give_up(active, f"job {active.job.id} waited for more than {most} (max_pending): {what.why}")
            return
        where = f" on {active.nodes}" if active.nodes and what.kind == "runs" else ""
        start = f"; Slurm expects {row.start}" if row and row.start not in ("", "N/A") and what.kind != "runs" else ""
        text = f"job {active.job.id} {'runs' if what.kind == 'runs' else 'waits'}{where}"
        text += f": {what.why}{start}" if what.why else ""
        if text.partition("; Slurm")[0] != active.state.partition("; Slurm")[0]:
            self._note(text)
        active.state = text
        self.reporter.progress.waits(text)

    def _log(self, active: Active) -> str:
        """Return the end of the log of a job."""
        with suppress(OSError), (active.folder / files.JOB_LOG).open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 4096))
            return log.read().decode(errors="replace")
        return ""

    def _end(self, active: Active, what: Fate) -> None:
        """A job has ended: what it has not done is left for others, unless its group is to stop."""
        job = active.job
        for run_id in list(active.left):  # a line of the journal may be lost, a record is not
            record = files.RECORD.find(self.folder / run_id) if run_id not in self._again else None
            if record is not None:
                self._ended(active, record)
        self.active.pop(job.number)
        bad = self._failed_nodes(active.nodes) if what.kind == "node_failed" else []
        spec = active.left.get(active.begun) if active.begun is not None else None
        lost = active.begun if spec is not None else None
        attempt = attempt_of(active.folder, job, spec, what.kind) if spec is not None else None
        self._change(active, ended=what.kind, lost=lost, attempt=attempt, bad=bad)
        self._bad |= set(bad)
        self._give_back(active.left)
        text = f"job {job.id or job.name} " + (f"ended: {what.why}" if what.why else "has ended")
        if bad:
            text = f"{', '.join(bad)} failed ({what.why}) in job {job.id}"
        if active.left and not active.ours and what.kind != "cancelled":
            text += f"; {len(active.left)} of its runs are left"
        self._note(text)
        if lost is not None and what.kind in LOST:
            self._count_loss(active, lost, what)
        why = self.ledger.stops(job.group, what, datetime.fromtimestamp(self.clock.now(), UTC))
        if why is not None and job.id is not None:
            self._stop(active, why)

    def _give_up(self, active: Active, why: str) -> None:
        """Cancel a job that will not do its runs, and stop its groups."""
        try:
            self.queue.cancel([active.job.id] if active.job.id else [])
        except ClusterProblem as problem:
            self._silent(problem)
            return
        self.active.pop(active.job.number)
        self._change(active, ended="cancelled")
        self._give_back(active.left)
        self._stop(active, why)

    def _failed_nodes(self, nodes: str) -> list[str]:
        with suppress(ClusterProblem):
            return self.queue.failed_nodes(nodes)
        return []

    def _give_back(self, runs: dict[str, RunSpec]) -> None:
        """Return runs to their groups, in the order of these."""
        for name in {self._group_of[run_id] for run_id in runs}:
            mine = self._left[name] | {run_id: spec for run_id, spec in runs.items() if self._group_of[run_id] == name}
            self._left[name] = {spec.run_id: spec for spec in self.groups[name].runs if spec.run_id in mine}

    def _count_loss(self, active: Active, run_id: str, what: Fate) -> None:
        """A run under way was lost with its job; after some of them it has failed."""
        if self.ledger.losses(run_id) % TRIES:  # it may have been tried again after that
            return
        spec = active.left[run_id]
        how = f"{TRIES} jobs ended during this run, the last one, {active.job.id}, as {what.why}"
        folder, now = self.folder / run_id, time.monotonic_ns()
        folder.mkdir(exist_ok=True)
        files.EXIT.write(
            folder,
            files.Exit(
                how="node_died",
                start_ns=now,
                end_ns=now,
                started_at=datetime.fromtimestamp(self.clock.now(), UTC),
                message=how,
            ),
        )
        suite, kind = self.plan.suite, files.NODE_KIND.find(self.folder)
        lost = lost_attempts(self.ledger.jobs.values())
        context = Context(suite.name, self.folder.name, suite.site, kind or self.partition.environment, [], lost=lost)
        self._left[self._group_of[run_id]].pop(run_id, None)
        self._ended(active, collect(context, spec, folder))

    # Telling

    def _stop(self, active: Active, why: str) -> None:
        """Submit no more jobs of the groups of the runs that a job has left."""
        for group in {self._group_of[run_id] for run_id in active.left}:
            self.stopped[group] = why
            count = len(self._left[group])
            self._note(f"{group}: {count} run{'s' * (count != 1)} not done: {why}")

    def _silent(self, problem: ClusterProblem) -> None:
        """Say once that the queue does not answer; nothing is concluded."""
        if not self._unreachable:
            self._note(f"Slurm does not answer, and is asked again: {problem}")
        self._unreachable = True

    def _note(self, text: str) -> None:
        self.reporter.progress.note(text)

    def _change(self, active: Active, **fields: object) -> None:
        active.job = self.ledger.change(active.job, **fields)
