"""The files of a run and of an execution: their names, and the models of their content.

A run has the folder `RUNS/suite/execution/run_id`; files of the execution lie one level above. No other module spells
these names.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import TypeAdapter

from bench.cluster_options import ClusterOptions
from bench.files import write_bytes
from bench.record import Environment, LostAttempt, Measurement, NetworkFacts, Phase, RunRecord
from bench.schema import Model, RunSpec, Scalar, Site

T = TypeVar("T")
ErrorKind = Literal["out_of_memory", "unsupported", "invalid", "failed", "peer"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
"""Kinds of failures of a rank, the most telling one first."""


class Exit(Model):
    """How the processes of a run ended; times are CLOCK_MONOTONIC in nanoseconds.

    `ended`: the run ended by itself; `stopped`: a user or a limit ended it; `gone`: the runner disappeared. `exitcode` is
    negative for a signal, and None where no process reported it. `sidecar_error` says why the meters failed, `message` what
    else is known. `killed_for_memory`: the kernel ended some process for lack of memory meanwhile. `suspended`: the processes
    stood still for a time (SIGSTOP), as where Slurm suspends a job, and went on.
    """

    how: Literal["ended", "stopped", "timeout", "cancelled", "gone", "node_died"] = "node_died"
    exitcode: int | None = None
    start_ns: int = 0
    end_ns: int = 0
    started_at: datetime | None = None
    sidecar_error: str | None = None
    killed_for_memory: bool = False
    suspended: bool = False
    message: str | None = None


class RankError(Model):
    """The exception that ended a rank. `peer` means that the rank lost its connection: another rank failed first."""

    kind: ErrorKind
    type: str
    message: str
    rank: int = 0


class RankExit(Model):
    """Exit code of a rank that failed; negative for a signal."""

    rank: int
    exitcode: int


class Timeline(Model):
    """Times of the first rank of a node, by the clock of the node in nanoseconds.

    Its phases, the ends of its validations, and begin and end of its inference.
    """

    phases: list[Phase] = []
    read_ns: list[int] = []
    inference: tuple[int, int] | None = None


class CommandEnd(Model):
    """How a command ended on one of several nodes, as far as its measurement needs it; see `bench.run.own_steps.Ended`.

    `disk_full`: steps may be missing, as the disk was full.
    """

    exitcode: int
    start_ns: int
    end_ns: int
    cpu_seconds: float
    peak_memory_bytes: int | None = None
    by: Literal["limit", "signal"] | None = None
    disk_full: bool = False
    notes: dict[str, Scalar] = {}


class NodeEnd(Model):
    """How a run ended on one of several nodes, with the exit codes of its ranks that failed.

    `cpu_seconds` and `first_rank` are those of a command, as far as they are seen.
    """

    node: int
    name: str
    boot_id: str | None = None
    exit: Exit = Exit()
    ranks: list[RankExit] = []
    network: NetworkFacts | None = None
    timeline: Timeline | None = None
    cpu_seconds: float | None = None
    first_rank: int | None = None


class IdleTimes(Model):
    """When idle power was measured, as (from, to) in nanoseconds: without and with a context of torch on the GPUs."""

    idle: tuple[int, int]
    context: tuple[int, int] | None = None


class Beginning(Model):
    """What the record of a command needs besides its other files, written before it starts: `bench` may be killed."""

    suite: str
    execution: str
    site: Site
    environment: Environment
    gpus: list[str]
    started_at: datetime
    start_ns: int


class Needs(Model):
    """The folder of the run whose weights a run needs."""

    folder: Path


class JobBlock(Model):
    """The runs that one job of a cluster does, in this order, on `nodes` nodes within `minutes`, as `cluster` says.

    `givers` are runs whose weights they need, and which were done before. `again` has those that are done although they
    have a record. `after` are the numbers of earlier blocks with some of these runs, of which it is not certain that they
    have ended. `name` is that of the job, and of no other. `lost` are attempts at these runs that were lost before.
    """

    number: int
    name: str
    group: str
    nodes: int
    minutes: int
    runs: list[RunSpec]
    givers: list[RunSpec] = []
    again: set[str] = set()
    after: list[int] = []
    lost: dict[str, list[LostAttempt]] = {}
    cluster: ClusterOptions = ClusterOptions()


class BlockEnd(Model):
    """How a job has ended by its own account: `left` runs were not done, and why not; empty where nothing is wrong.

    `signalled`: Slurm told it to end, and knows why. `lost` is what the run that was under way had cost, by its id.
    """

    left: int
    why: str = ""
    signalled: bool = False
    lost: dict[str, LostAttempt] = {}


class BlockLine(Model):
    """A line of the journal of a block: a run began, or it ended with a status and took some seconds."""

    run: str
    status: str | None = None
    seconds: float = 0.0


class HeldNodes(Model):
    """For how many seconds nodes were held for runs, summed over the nodes, and for how many of them a run used them.

    `devices` are those of a node, each of as many processors as runs have threads; None where runs differ. A node is held
    from the first agent's start to the end of the last run.
    """

    devices: int | None
    held_seconds: float
    used_seconds: float


class SubmittedJob(Model):
    """What is known of the job of a block: its id (None: it may not have been accepted), and how it ended.

    `done` are the runs that it did; `lost` is the run that was under way when it ended, and the `attempt` what it had cost,
    `bad` are the nodes that failed under it. `at` is when it was submitted.
    """

    number: int
    name: str
    group: str
    minutes: int
    at: datetime
    id: str | None = None
    ended: str | None = None
    done: int = 0
    lost: str | None = None
    attempt: LostAttempt | None = None
    bad: list[str] = []


class ExecutionFacts(Model, extra="ignore"):
    """What identifies an execution: the hash of its runs (`plan_digest`) and that of its environment (`fingerprint`).

    `suite` and `environment` are kept for people. `study` is that of a search, whose runs are not known in advance.
    """

    fingerprint: str
    plan_digest: str
    started_at: datetime | None = None
    suite: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    runs: list[str] | None = None
    study: str | None = None


class JsonFile(Generic[T]):
    """A JSON file with a fixed name and a model."""

    def __init__(self, name: str, model: type[T]) -> None:
        self.name = name
        self._adapter = TypeAdapter(model)

    def read(self, folder: Path) -> T:
        """Return the content. Raises FileNotFoundError where it is absent, ValueError where it is torn or invalid."""
        return self._adapter.validate_json((folder / self.name).read_bytes())

    def find(self, folder: Path) -> T | None:
        """Return the content; None where the file is absent, torn or invalid."""
        try:
            return self.read(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def write(self, folder: Path, value: T) -> None:
        """Write the content whole or not at all. A folder that a program of the user has removed is made again."""
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / self.name, self._adapter.dump_json(value, indent=1) + b"\n")


class NumberedFiles:
    """Files of a folder that differ by a number, such as that of the rank or of the node."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def path(self, folder: Path, number: int | str) -> Path:
        """Return the path of one file."""
        return folder / self.pattern.replace("*", str(number))

    def paths(self, folder: Path) -> list[Path]:
        """Return the files that exist, by name."""
        return sorted(folder.glob(self.pattern))


SPEC = JsonFile("spec.json", RunSpec)
EXIT = JsonFile("exit.json", Exit)
RESULT = JsonFile("result.json", Measurement)
PARTIAL = JsonFile("partial.json", Measurement)
"""What was seen of a command until it failed."""
BEGINNING = JsonFile("begin.json", Beginning)
RECORD = JsonFile("record.json", RunRecord)
NEEDS = JsonFile("needs.json", Needs)
RANK_EXITS = JsonFile("ranks.json", list[RankExit])
TIMELINE = JsonFile("timeline.json", Timeline)
COMMAND_END = JsonFile("ended.json", CommandEnd)
NODES = JsonFile("nodes.json", list[NodeEnd])
"""How a run on several nodes ended on each of them, in order."""
EXECUTION = JsonFile("execution.json", ExecutionFacts)
PROGRAMS = JsonFile("programs.json", dict[str, str])
"""Hashes of what the commands of a measurement run, by their words."""
IDLE_TIMES = JsonFile("idle.json", IdleTimes)
FOOTPRINTS = JsonFile("footprints.json", dict[str, int | None])
"""Estimated memory of a rank in bytes by configuration; None where it cannot be estimated."""

ERRORS = NumberedFiles("error-*.json")
"""A RankError for each rank that failed."""
STEPS = NumberedFiles("steps-*.jsonl")
"""Steps by rank; those of a user's command have `command` in place of a rank."""
SEEN = NumberedFiles("seen-*.jsonl")
"""What hooks saw, one file a process of a user's command."""
FAILED = ".failed"
"""Behind the name of such a file: an empty one beside it, where the hooks failed."""
ELSEWHERE = NumberedFiles("seen-*.elsewhere")
"""Empty files, one for each process of the command that made steps on another host: by a clock of its own."""
METERS = NumberedFiles("meters-*.parquet")
RAW_METERS = NumberedFiles("meters-*.jsonl")
"""Readings of the meters by node, as they are written and as they are kept."""
NODE_ENDS = NumberedFiles("node-*.json")
"""The NodeEnd of each node, as long as they are not put together."""
LOGS = NumberedFiles("worker-*.log")
"""Output of the ranks of the nodes that failed, but for the first node."""
STACKS = NumberedFiles("stack-*.txt")
"""Where each rank was at its time limit."""

RUNS, OWN_RUNS = "runs", ".wattbench"
"""Folders of runs: of suites, and of `bench measure`, which runs in folders where `runs` belongs to others."""
IGNORE = ".gitignore"
COMMAND_STEPS = "command"
WORKER_LOG = "worker.log"
CHECKPOINT = "checkpoint"
"""Folder with the weights that a run has saved."""
SCRATCH = ".scratch"
"""Folder in which the processes of a run find each other; removed at its end."""

NODE_FOLDERS = NumberedFiles("node-*")
"""Folders of the nodes but for the first: of an execution, with their idle power, and of a command, with what it left."""
BLOCKS = NumberedFiles("block-*")
"""Folders of the blocks of an execution: what a job does, its script, log and idle power, and how it ended."""
BLOCK = JsonFile("block.json", JobBlock)
BLOCK_END = JsonFile("end.json", BlockEnd)
JOURNAL, JOB_SCRIPT, JOB_LOG = "journal.jsonl", "job.sh", "job.log"
ALIVE, REVOKED = ".alive", ".revoked"
"""Changed every few seconds while a job works on its block; and there once other jobs may do its runs."""
HELD = "held.jsonl"
"""Lines of HeldNodes, one for each time that runs were done on nodes of a cluster: of an execution, and of a block."""
JOBS = "jobs.jsonl"
"""Lines of SubmittedJob: the last one of a number counts."""
NODE_KIND = JsonFile("node.json", Environment)
"""The environment of a node of the first job; others do nothing on nodes of another kind."""
LEASE = "lease.json"
"""Who follows the jobs of an execution, where locks do not reach other machines."""
IDLE_TRACE = "idle.jsonl"
PROGRESS = "progress.json"
LOCK = ".lock"
"""Locked (bench.files.held) while a process does the runs of the execution."""
RESERVE = ".reserve"
"""Space that is kept for the record of a command, in case it fills the disk."""
ASKED_TO_END = ".end"
"""Says that a command ends on all nodes: the first one has reached its limit, or the signal that is named in it was asked."""
FULL = ".full"
"""Says that the disk of a command was full for a time; the reserve of before, as nothing new could be written."""
NODE_LOG = "node.log"
IMPORTED = "imported.jsonl"
"""Rows of runs that were imported, one a line."""
SEARCH = "search.json"
"""State of a search; also an artifact of its parent run in the store."""


def write_node_end(folder: Path, end: NodeEnd) -> None:
    """Write how a run ended on a node."""
    JsonFile(NODE_ENDS.path(folder, end.node).name, NodeEnd).write(folder, end)


def find_node_end(folder: Path, node: int) -> NodeEnd | None:
    """Return how a run ended on a node; None where it has not told."""
    return JsonFile(NODE_ENDS.path(folder, node).name, NodeEnd).find(folder)


def write_error(folder: Path, error: RankError) -> None:
    """Write how a rank failed."""
    JsonFile(ERRORS.path(folder, error.rank).name, RankError).write(folder, error)


def read_errors(folder: Path) -> list[RankError]:
    """Return how the ranks of a run failed; torn files are left out."""
    found = (JsonFile(path.name, RankError).find(folder) for path in ERRORS.paths(folder))
    return [error for error in found if error is not None]


def clear_results(folder: Path) -> None:
    """Remove what an earlier attempt left in the folder of a run; its `spec.json` and `needs.json` stay."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (SPEC.name, NEEDS.name):
            path.unlink()


def read_held(execution: Path) -> tuple[HeldNodes | None, int]:
    """Return how long the nodes of a cluster were held for an execution, and how many jobs left nothing about it.

    Such a job still runs, or was killed. None where no node was held, or nodes with other numbers of devices.
    """
    blocks = [place for place in BLOCKS.paths(execution) if (place / ALIVE).exists()]
    lines = list[HeldNodes]()
    for place in (execution, *blocks):
        with suppress(FileNotFoundError, ValueError):  # the last line may be torn
            for line in (place / HELD).read_bytes().splitlines():
                lines.append(HeldNodes.model_validate_json(line))
    silent = sum(not (place / HELD).exists() for place in blocks)
    if len({line.devices for line in lines}) != 1:
        return None, silent
    held, used = sum(line.held_seconds for line in lines), sum(line.used_seconds for line in lines)
    return HeldNodes(devices=lines[0].devices, held_seconds=held, used_seconds=used), silent
