"""What is known of the jobs of an execution, in its file of jobs, and what follows for jobs that come after them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from bench import folder as files
from bench.jobs.fate import LOST, Fate
from bench.record import LostAttempt
from bench.schema import RunSpec

TRIES, EMPTY, PREEMPTIONS = 3, 2, 5
"""A run lost with so many jobs has failed. A group is stopped after so many jobs in a row that did nothing (TRIES where their
nodes failed), or that were preempted within an hour.
"""


class Ledger:
    """The jobs of an execution in the order of their last change; `before` are those whose end was known at the start."""

    def __init__(self, execution: Path) -> None:
        self._execution = execution
        self.jobs = {job.number: job for job in read_jobs(execution)}
        self._before = {job.number for job in self.jobs.values() if job.ended is not None}
        self.next_number = max(self.jobs, default=0) + 1

    def change(self, job: files.SubmittedJob, **fields: object) -> files.SubmittedJob:
        """Change what is known of a job, and add that to the file of all jobs."""
        job = job.changed(**fields)
        self.jobs.pop(job.number, None)
        self.jobs[job.number] = job
        self.next_number = max(self.next_number, job.number + 1)
        append_line(self._execution / files.JOBS, job)
        return job

    def ended(self, number: int) -> str | None:
        """Return how a job has ended; None where it has not, or nothing is known of it."""
        job = self.jobs.get(number)
        return job.ended if job is not None else None

    def losses(self, run_id: str) -> int:
        """Return with how many jobs a run was lost by a fault, whoever followed them."""
        return sum(job.lost == run_id and job.ended in LOST for job in self.jobs.values())

    def stops(self, group: str, what: Fate, now: datetime) -> str | None:
        """Return why a group is stopped, after a job of it has ended with runs left; None if it goes on."""
        ended = self._seen(group)
        if what.kind == "cancelled":
            return f"{what.why or 'its job was cancelled'}; the same command submits a new job"
        if what.kind == "preempted":
            hour = sum(job.ended == "preempted" and job.at > now - timedelta(hours=1) for job in ended)
            many = f"{PREEMPTIONS} of its jobs were preempted within an hour; the same command goes on"
            return many if hour >= PREEMPTIONS else None
        most = TRIES if what.kind == "node_failed" else EMPTY
        if len(ended) < most or any(job.done for job in ended[-most:]):
            return None
        return f"{most} jobs in a row ended without a finished run, the last one: {what.why or 'too short'}"

    def factor(self, group: str) -> float:
        """Return by how much more time than expected the next job of a group asks for: double after each that did nothing."""
        return 2.0 ** sum(
            not job.done and job.ended not in ("preempted", "node_failed", "cancelled") for job in self._seen(group)
        )

    def _seen(self, group: str) -> list[files.SubmittedJob]:
        """Return the jobs of a group that were accepted and have ended since the start, in the order of their ends."""
        jobs = (job for number, job in self.jobs.items() if number not in self._before and job.group == group)
        return [job for job in jobs if job.ended is not None and job.id is not None]


def read_jobs(execution: Path) -> list[files.SubmittedJob]:
    """Return what is known of the jobs of an execution; a torn line is left out, as the next one repeats it."""
    jobs = dict[int, files.SubmittedJob]()
    with suppress(FileNotFoundError):
        for line in (execution / files.JOBS).read_bytes().splitlines():
            with suppress(ValueError):
                job = files.SubmittedJob.model_validate_json(line)
                jobs[job.number] = job
    return list(jobs.values())


def lost_attempts(jobs: Iterable[files.SubmittedJob]) -> dict[str, list[LostAttempt]]:
    """Return the attempts that were lost with jobs, by run."""
    out = defaultdict[str, list[LostAttempt]](list)
    for job in jobs:
        if job.lost is not None and job.attempt is not None:
            out[job.lost].append(job.attempt)
    return out


def attempt_of(block: Path, job: files.SubmittedJob, spec: RunSpec, ended: str) -> LostAttempt:
    """Return what a job has lost of the run that was under way, by its own account or by what it has shown of itself."""
    end = files.BLOCK_END.find(block)
    own = end.lost.get(spec.run_id) if end is not None else None
    seconds = _shown_seconds(block)
    lost = own or LostAttempt(nodes=spec.num_nodes, seconds=seconds, at_least=seconds is not None)
    return lost.changed(job=job.id or "", ended=ended)


def _shown_seconds(block: Path) -> float | None:
    """Return how long a job has shown that it works after it wrote that its last run begins; None where it has not."""
    with suppress(OSError):
        seconds = (block / files.ALIVE).stat().st_mtime - (block / files.JOURNAL).stat().st_mtime
        return seconds if seconds > 0 else None
    return None


def append_line(path: Path, line: files.SubmittedJob | files.BlockLine) -> None:
    """Add a line to a file of lines. A full disk may have torn the one before: it begins with a line of its own."""
    with path.open("ab") as file:
        file.write(b"\n" + line.model_dump_json().encode() + b"\n")
