"""The process of a job: it does the runs of one block, on the nodes that the job has.

`python -P -m bench.jobs.block FOLDER`, started by the batch script of the block. Records go to the folders of the runs, as
always; the journal of the block names each run that began and that ended. It opens no connection to the index: whoever
follows the jobs logs the records. It ends with `end.json`, which says how many runs are left, and why.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

from bench import folder as files
from bench.cluster_options import ClusterOptions
from bench.errors import UserError
from bench.jobs.ledger import append_line
from bench.machine.cluster import Cluster, find_cluster, job_runs
from bench.record import Environment, LostAttempt, RunRecord
from bench.run.collect import save_record, skipped
from bench.run.runner import END_SECONDS, Execution, Forecast, Progress, Runner
from bench.run.srun import AllocationEnded
from bench.schema import RunSpec, Suite
from bench.store.tracker import Tracker
from bench.suites.expand import Expansion, why_not

ALIVE_SECONDS, STALE_SECONDS = 30.0, 120.0
"""How often a job shows that it works on its block, and after how long without that it counts as gone."""


class Stop(Exception):
    """The job is to end; the runs that are left stay missing."""


@dataclass
class Worker(Progress):
    """The work on one block: its folder, and what it is."""

    folder: Path
    block: files.JobBlock
    signalled: bool = False
    lost: dict[str, LostAttempt] = field(default_factory=dict)
    me: str = field(
        default_factory=lambda: f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    )

    @property
    def execution(self) -> Path:
        """Folder of the execution."""
        return self.folder.parent

    def live(self) -> None:
        """Show until the end of this process that this job works on its block."""

        def beat() -> None:
            for number in count():
                with suppress(OSError):  # the next one may succeed
                    (self.folder / files.ALIVE).write_text(f"{self.me} {number}")
                time.sleep(ALIVE_SECONDS)

        Thread(target=beat, daemon=True).start()

    def wait_for_others(self) -> None:
        """Wait until no other job works on this block, or on an earlier one with some of its runs. Raises Stop.

        Clocks of machines differ: a job works as long as what it shows of itself changes, by the clock of this process.
        """
        places = [files.BLOCKS.path(self.execution, f"{number:04d}") for number in self.block.after]
        watched = [place for place in [*places, self.folder] if self._shown(place) is not None]
        shown, until = {place: self._shown(place) for place in watched}, time.monotonic() + STALE_SECONDS
        while time.monotonic() < until and any(self._shown(place) is not None for place in watched):
            if self.revoked:
                raise Stop("other jobs do its runs")
            now = {place: self._shown(place) for place in watched}
            if now != shown:
                shown, until = now, time.monotonic() + STALE_SECONDS
            time.sleep(2)
        self.live()

    def _shown(self, place: Path) -> str | None:
        """Return what another job has shown of its work on a block; None where there is none, or it has ended."""
        if place != self.folder and files.BLOCK_END.find(place):
            return None
        with suppress(OSError):
            text = (place / files.ALIVE).read_text()
            return None if text.startswith(f"{self.me} ") else text
        return None

    @property
    def revoked(self) -> bool:
        """Whether the runs of this block have been given to another one."""
        return (self.folder / files.REVOKED).exists()

    def write(self, run: str, record: RunRecord | None = None) -> None:
        """Add to the journal that a run begins, or how it has ended."""
        line = files.BlockLine(run=run)
        if record is not None:
            line = line.changed(status=record.status.value, seconds=record.duration_seconds)
        append_line(self.folder / files.JOURNAL, line)

    def work(self) -> tuple[int, str]:
        """Do the runs; return how many are left, and why; nothing where that is as planned."""
        suite, asked = Suite.model_validate(files.EXECUTION.read(self.execution).suite), self.block.cluster
        cluster = find_cluster(asked)
        same_kind(self.execution, cluster.environment, asked)
        plan = self._plan(suite, cluster)
        records = {
            run.run_id: record for run in plan.runs if (record := files.RECORD.find(self.execution / run.run_id))
        }
        execution = Execution(self.execution, plan, resumed=True, records=records)
        chosen = [spec for spec in self.block.runs if spec.run_id not in records or spec.run_id in self.block.again]
        runner = Runner.make(execution, cluster, cluster.environment, None, self, place=self.folder)
        runner.tracker = Tracker.off(suite.name, execution.name)
        runner.context = replace(runner.context, lost=self.block.lost)
        try:
            if any(spec.config_id not in plan.skipped for spec in chosen):
                runner.start()
            return self._each(runner, chosen, cluster)
        finally:
            runner.close()

    def _plan(self, suite: Suite, cluster: Cluster) -> Expansion:
        """Return the runs of this block with those that give them weights; some cannot be done on these nodes."""
        runs = [*self.block.givers, *self.block.runs]
        bare = Expansion(suite, runs)
        reasons = {spec.config_id: why_not(spec, cluster, bare.givers.of(spec)) for spec in self.block.runs}
        return Expansion(suite, runs, {config: reason for config, reason in reasons.items() if reason is not None})

    def _each(self, runner: Runner, chosen: list[RunSpec], cluster: Cluster) -> tuple[int, str]:
        """Do runs in order, as long as there is time."""
        forecast = Forecast(chosen, runner.execution.records.values())
        for position, spec in enumerate(chosen):
            left, expected = len(chosen) - position, forecast.seconds(spec) or 0.0
            if self.revoked:
                return left, ""
            if cluster.seconds_left is not None and expected + END_SECONDS > cluster.seconds_left:
                return left, "" if position else (
                    f"the job is too short: a run takes about {expected:.0f} s, {cluster.seconds_left:.0f} s are left of it"
                )
            self.write(spec.run_id)
            try:
                record = self._one(runner, spec)
            except (AllocationEnded, KeyboardInterrupt):
                self.signalled, self.lost = True, {spec.run_id: runner.lost} if runner.lost is not None else {}
                return left, ""
            self.write(spec.run_id, record)
            self.note(f"{spec.run_id}: {record.status}")
            runner.execution.add(record)
            forecast.ended(spec, record)
        return 0, ""

    def _one(self, runner: Runner, spec: RunSpec) -> RunRecord:
        """Do one run, or record why it cannot be done on these nodes."""
        reason = runner.execution.plan.skipped.get(spec.config_id)
        if reason is None:
            return runner.one(spec)
        return save_record(skipped(runner.context, spec, reason), self.execution / spec.run_id)


def same_kind(execution: Path, here: Environment, asked: ClusterOptions) -> None:
    """Check that the nodes are of the kind of the first job of an execution, which leaves theirs. Raises UserError."""
    path = execution / files.NODE_KIND.name
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.environ.get('SLURM_JOB_ID')}")
        temporary.write_text(here.model_dump_json())
        with suppress(FileExistsError):
            os.link(temporary, path)  # whole, and by one job only
        temporary.unlink()
    first = files.NODE_KIND.read(execution)
    one = {"engine": "slurm"}  # nodes of two partitions may be equal
    if first.changed(cluster=one).kind != here.changed(cluster=one).kind:
        old, new = (_named(each) for each in (first, here))
        remedy = "" if asked.constraint else "; set cluster.constraint so that Slurm takes one kind"
        raise UserError(f"the nodes are of another kind ({new}) than those before ({old}){remedy}, or use --new")


def _named(environment: Environment) -> str:
    """Name a kind of node by its devices, its processor, or what else it has."""
    machine = environment.machine
    gpus = {gpu.name for gpu in machine.gpus}
    name = (
        f"{len(machine.gpus)} x {' and '.join(sorted(gpus))}" if gpus else f"{machine.cpu_count} x {machine.cpu_model}"
    )
    return f"{name}, driver {machine.driver_version}" if machine.driver_version else name


@contextmanager
def stopping() -> Iterator[None]:
    """Handle the signals by which Slurm announces the end of a job as Ctrl-C: the run under way is cancelled."""

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, stop)
    yield


def main() -> int:
    """Do the runs of a block. Return the exit code: 0 also where runs are left."""
    folder = Path(sys.argv[1])
    worker, why, code = Worker(folder, files.BLOCK.read(folder)), "", 0
    left = len(worker.block.runs)
    with stopping():
        try:
            worker.wait_for_others()
            left, why = worker.work()
        except (KeyboardInterrupt, AllocationEnded):
            worker.signalled = True
        except Stop as stop:
            worker.note(str(stop))
        except UserError as error:
            worker.note(str(error))
            worker.signalled = not job_runs(os.environ["SLURM_JOB_ID"])  # then Slurm knows better why
            why, code = ("", 0) if worker.signalled else (str(error), 1)
    files.BLOCK_END.write(folder, files.BlockEnd(left=left, why=why, signalled=worker.signalled, lost=worker.lost))
    worker.note(f"{left} of {len(worker.block.runs)} runs are left")
    return code


if __name__ == "__main__":
    sys.exit(main())
