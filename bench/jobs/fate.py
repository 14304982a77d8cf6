"""What becomes of a job: what it has left in its folder, which is believed first, and the words of Slurm for its state."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from bench import folder as files
from bench.jobs.queue import QueuedJob

Kind = Literal[
    "waits", "runs", "done", "preempted", "node_failed", "timeout", "cancelled", "failed", "hopeless", "held"
]
LOST: tuple[Kind, ...] = ("node_failed", "timeout")
"""Ends that count against the run which was under way: after some of them it has failed."""


class Fate(NamedTuple):
    """What a job does, or how it has ended; `why` is for people."""

    kind: Kind
    why: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.kind not in ("waits", "runs", "held", "hopeless")


_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"}
_WAITS = {
    "Resources": "no nodes are free",
    "Priority": "other jobs come first",
    "BeginTime": "its time to begin has not come",
    "Licenses": "a licence is in use",
    "None": "Slurm has not looked at it yet",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "nodes that it asks for are not available",
    "Reservation": "its reservation has not begun",
}
_HOPELESS = {
    "PartitionTimeLimit": "the partition allows less time: set cluster.time_limit",
    "PartitionNodeLimit": "the partition allows other numbers of nodes: use --nodes, or another cluster.partition",
    "PartitionConfig": "the partition does not allow it: choose another cluster.partition",
    "BadConstraints": "no node has what cluster.constraint asks for",
    "InvalidAccount": "cluster.account is not valid",
    "InvalidQOS": "cluster.qos is not valid",
    "QOSNotAllowed": "the partition does not allow this cluster.qos",
    "AccountNotAllowed": "the partition does not allow this cluster.account",
    "JobLaunchFailure": "Slurm could not start it",
    "DependencyNeverSatisfied": "it depends on a job that failed",
}
"""Reasons for which a job would wait for ever, with the remedy. Limits of one job of a QOS or an account are others."""
_HELD = {"JobHeldUser", "JobHeldAdmin", "launch_failed_requeued_held", "job_requeued_in_held_state"}


def fate(
    job: QueuedJob | None, end: files.BlockEnd | None, *, past: str = "", log: str = "", ours: bool = False
) -> Fate:
    """Return what becomes of a job: by the mark of its end if there is one, then by its state in the queue.

    `past` is its state where the queue does not list it any more, `log` the end of its log, `ours` says that we cancelled it.
    """
    if end is not None and not end.signalled:
        return Fate("failed", end.why) if end.why else Fate("done")
    if ours and (job is None or job.state.startswith("CANCELLED")):
        return Fate("cancelled")
    if end is not None and (job is None or job.state in ("PENDING", "COMPLETED")):
        return Fate("done")
    if job is None:
        was = _past(past, log)  # accounting may not know yet that it does not run any more
        said = f"; its log ends: {last}" if (last := _last(log)) else ""
        return was if was.ended else Fate("node_failed", f"it has left the queue without a word{said}")
    if job.state == "PENDING":
        return _pending(job.reason)
    if job.state in _RUNNING:
        return Fate("runs")
    return _past(job.state, log, job.reason)


def queued(listed: Iterable[QueuedJob], names: Collection[str]) -> list[QueuedJob]:
    """Return which jobs of a queue have one of the names and have not ended."""
    return [job for job in listed if job.name in names and not fate(job, None).ended]


def _pending(reason: str) -> Fate:
    word = re.split(r"[ ,(]", reason.strip("()"))[0]
    if word in _HELD or reason.replace(" ", "_") in _HELD:
        return Fate("held", f"it is held ({reason}): release it with scontrol release, or cancel it with --cancel")
    if word in _HOPELESS:
        return Fate("hopeless", f"{word}: {_HOPELESS[word]}")
    if "PerJob" in word or word.startswith("QOSMin"):
        return Fate("hopeless", f"{word}: a limit of the QOS or the account for one job; ask for less, or for another")
    words = _WAITS.get(word)
    return Fate("waits", reason if words is None else words if word == "None" else f"{reason}: {words}")


def _past(state: str, log: str, reason: str = "") -> Fate:
    """Judge the state of a job that did not say itself how it ended."""
    word = state.split()[0].rstrip("+") if state else ""
    last = _last(log)
    if word == "PREEMPTED" or "DUE TO PREEMPTION" in log:
        return Fate("preempted", "it was preempted")
    if word in ("NODE_FAIL", "BOOT_FAIL") or "DUE TO NODE FAILURE" in log:
        return Fate("node_failed", word or "NODE_FAIL")
    if word == "TIMEOUT" or reason == "TimeLimit" or "DUE TO TIME LIMIT" in log:
        return Fate("timeout", "its time was over")
    if word == "CANCELLED":
        by = re.search(r"CANCELLED by (\d+)", state)
        return Fate("cancelled", f"it was cancelled{f' by uid {by[1]}' if by else ' by somebody else'}")
    if word == "OUT_OF_MEMORY":
        return Fate("failed", "it had more memory than Slurm allows: ask for more with cluster.sbatch: [--mem=...]")
    if word in ("FAILED", "COMPLETED"):
        words = f"{state}{f' ({reason})' if reason not in ('', 'None') else ''}"
        return Fate("failed", f"{words}: {last}" if last else words)
    return Fate("runs", state)  # a word that we do not know is no end


def _last(log: str) -> str:
    return next((line for line in reversed(log.splitlines()) if line.strip()), "")
