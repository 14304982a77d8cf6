"""The queue of Slurm, by its commands alone: jobs are submitted, listed and cancelled. Each call ends within a minute."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.machine.cluster import ClusterProblem, ask_slurm

_FORMAT = "%i|%T|%j|%S|%N|%r"
"""Id, state, name, expected start, nodes and reason of a job. The reason comes last, as it is any text."""


@dataclass(frozen=True)
class QueuedJob:
    """A job as the queue lists it; words of Slurm are kept as they are."""

    id: str
    state: str
    name: str
    start: str = ""
    nodes: str = ""
    reason: str = ""


class Queue(Protocol):
    """What a controller asks of a queue. All calls raise ClusterProblem where the queue does not answer."""

    def submit(self, script: Path) -> str:
        """Submit a batch script; return the id of its job."""
        ...

    def listed(self) -> list[QueuedJob]:
        """Return the jobs of this user, also those that have just ended."""
        ...

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs; those that have ended stay as they are."""
        ...

    def failed_nodes(self, nodes: str) -> list[str]:
        """Return which nodes of a list, as a job has it, are not usable now."""
        ...

    def past(self, job: str) -> str:
        """Return the state of a job that is not listed any more, with who cancelled it; empty where nothing is known."""
        ...


class SlurmQueue(Queue):
    """The queue of the Slurm on PATH."""

    def submit(self, script: Path) -> str:
        """Submit a batch script; return the id of its job."""
        return ask_slurm("sbatch", "--parsable", str(script)).strip().partition(";")[0]

    def listed(self) -> list[QueuedJob]:
        """Return the jobs of this user, also those that have just ended."""
        jobs = list[QueuedJob]()
        for line in ask_slurm("squeue", "--me", "-h", "-t", "all", "-o", _FORMAT).splitlines():
            parts = line.split("|", 5)
            if len(parts) == 6:
                jobs.append(QueuedJob(*(part.strip() for part in parts)))
        return jobs

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs; those that have ended stay as they are."""
        for job in jobs:
            try:
                ask_slurm("scancel", job)
            except ClusterProblem as problem:
                if unreachable(problem):
                    raise

    def failed_nodes(self, nodes: str) -> list[str]:
        """Return which nodes of a list, as a job has it, are not usable now."""
        if not nodes:
            return []
        listed = ask_slurm("sinfo", "-h", "-N", "-n", nodes, "-o", "%N|%T").split()
        bad = ("down", "fail", "drain", "unknown", "boot", "not_responding", "*")
        rows = (line.partition("|") for line in listed)
        return sorted({name for name, _, state in rows if any(word in state.lower() for word in bad)})

    def past(self, job: str) -> str:
        """Return the state of a job that is not listed any more, with who cancelled it; empty where nothing is known."""
        if shutil.which("sacct") is None:
            return ""
        with suppress(ClusterProblem):  # most often there is no accounting
            return next(iter(ask_slurm("sacct", "-n", "-X", "-P", "-j", job, "-o", "State").splitlines()), "").strip()
        return ""


def tested(script: Path) -> tuple[bool, str]:
    """Ask Slurm whether it would take a batch script, without submitting it: whether it does, and what it says."""
    try:
        text = ask_slurm("sbatch", "--test-only", str(script), errors_too=True)
    except ClusterProblem as problem:
        words = str(problem).replace("sbatch: ", "").replace("error: ", "").replace("allocation failure: ", "")
        return False, words
    lines = [line.removeprefix("sbatch: ").strip() for line in text.splitlines()]
    return True, re.sub(r"^Job \d+ ", "", next((line for line in lines if line.startswith("Job ")), " ".join(lines)))


_SILENCE = (
    *("unable to contact", "did not answer", "timed out", "connection", "unable to connect", "communication"),
    *("zero bytes", "authentication error", "standby", "temporarily un"),
)


def unreachable(problem: ClusterProblem) -> bool:
    """Whether a command of Slurm failed because its controller does not answer."""
    return any(words in str(problem).lower() for words in _SILENCE)
