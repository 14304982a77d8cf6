"""Blocks: the runs of a suite that one job does. How they are cut, and the batch script that does them."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import folder as files
from bench.machine.partition import Partition
from bench.process import SCRIPT
from bench.run.runner import END_SECONDS, START_SECONDS
from bench.schema import RunSpec
from bench.suites.needs import Givers

RESERVE = 1.2
"""A job asks for so much more time than its runs are expected to take."""
SIGNAL_SECONDS, SIGNAL_MINUTES = 120, 8
"""Slurm tells a job so long before its end, up to a minute early; shorter jobs go by their own clock alone."""
FIXED_SECONDS = 90.0
"""Time of a job besides its runs and idle power: nodes are asked who they are, and import torch from a shared folder."""


@dataclass
class SizeGroup:
    """Runs whose jobs ask for the same number of nodes; runs that need weights of each other are in the same group."""

    name: str
    nodes: int
    runs: list[RunSpec] = field(default_factory=list)


def grouped(
    runs: Sequence[RunSpec], givers: Givers, how: Literal["by_size", "one", "each_run"]
) -> dict[str, SizeGroup]:
    """Divide runs into groups, by name; each keeps the order of the runs."""
    roots = {run.run_id: _root(run, givers) for run in runs}
    nodes = dict[str, int]()
    for run in runs:
        root = roots[run.run_id]
        nodes[root] = max(nodes.get(root, 1), run.num_nodes)
    most, out = max(nodes.values(), default=1), dict[str, SizeGroup]()
    for run in runs:
        root = roots[run.run_id]
        count = most if how == "one" else nodes[root]
        name = root if how == "each_run" else f"{count} node{'s' * (count != 1)}"
        out.setdefault(name, SizeGroup(name, count)).runs.append(run)
    return out


def _root(run: RunSpec, givers: Givers) -> str:
    """Return the run at the beginning of those whose weights lead to a run."""
    seen = {run.run_id}
    while (giver := givers.of(run)) is not None and giver.run_id not in seen:
        run = giver
        seen.add(run.run_id)
    return run.run_id


@dataclass(frozen=True)
class Cut:
    """The runs of the next block of a group, and the minutes that its job asks for."""

    runs: list[RunSpec]
    minutes: int


def next_cut(
    left: Sequence[RunSpec],
    seconds: Callable[[RunSpec], float | None],
    ready: Callable[[RunSpec, Collection[str]], bool],
    *,
    most_seconds: float,
    idle_seconds: float,
    factor: float = 1.0,
) -> Cut | None:
    """Return as many runs, in order, as fit into a job of `most_seconds`: all, or whole repeats, or at least one run.

    `seconds` are what a run will take (None: unknown, which asks for all the time there is), `ready` says whether the runs
    that it needs are done or before it. The time is multiplied by a `factor`. None where no run is ready.
    """
    fixed = START_SECONDS + FIXED_SECONDS + 2 * idle_seconds
    chosen, ids, whole, needed, unknown = list[RunSpec](), set[str](), 0, 0.0, False
    for spec in left:
        if not ready(spec, ids):
            continue
        expected = seconds(spec)
        if chosen and spec.repeat != chosen[-1].repeat:
            whole = len(chosen)
        if chosen and asked_seconds(fixed, needed + (expected or 0.0), factor) > most_seconds:
            chosen = chosen[: whole or len(chosen)]
            break
        chosen.append(spec)
        ids.add(spec.run_id)
        needed += expected or 0.0
        unknown |= expected is None
    if not chosen:
        return None
    total = math.fsum(seconds(spec) or 0.0 for spec in chosen)
    wanted = most_seconds if unknown else min(most_seconds, asked_seconds(fixed, total, factor))
    return Cut(chosen, max(1, math.ceil(wanted / 60) if wanted < most_seconds else math.floor(wanted / 60)))


def asked_seconds(fixed: float, runs: float, factor: float) -> float:
    """Return the time that a job asks for, so that its last run may begin, and before Slurm tells it to end."""
    seconds = (fixed + runs) * RESERVE * factor + END_SECONDS
    return seconds if seconds <= 60 * (SIGNAL_MINUTES - 1) else seconds + 1.5 * SIGNAL_SECONDS


def batch_script(block: files.JobBlock, folder: Path, partition: Partition, exclude: Iterable[str] = ()) -> str:
    """Return the batch script of a block. Its folder has the files that it works with."""
    asked, excluded = partition.asked, [*filter(None, [partition.asked.exclude]), *exclude]
    options = {
        "job-name": block.name,
        "nodes": str(block.nodes),
        "ntasks-per-node": "1",
        "time": str(block.minutes),
        "output": str(folder / files.JOB_LOG).replace("%", "%%"),
        "open-mode": "append",
        "chdir": str(Path.cwd()),
        "partition": partition.name,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "gres": asked.gres or (f"gpu:{len(partition.gpus)}" if partition.gpus else None),
        "nodelist": asked.nodelist,
        "exclude": ",".join(dict.fromkeys(excluded)) or None,
        "reservation": asked.reservation,
        "licenses": asked.licenses,
        "nice": None if asked.nice is None else str(asked.nice),
        "cpus-per-task": None if asked.exclusive else str(partition.cpu_count),
        "mem": "0" if asked.exclusive and not any(word.startswith("--mem") for word in asked.sbatch) else None,
    }
    lines = [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --no-requeue", *(["#SBATCH --exclusive"] if asked.exclusive else [])]
    lines += [f"#SBATCH --signal=B:USR1@{SIGNAL_SECONDS}"] if block.minutes >= SIGNAL_MINUTES else []
    lines += [f"#SBATCH {word}" for word in asked.sbatch]
    python = asked.python if asked.python and not (asked.container or asked.container_command) else sys.executable
    command = [python, "-P", str(SCRIPT / "wattbench_command.py"), "bench.jobs.block", str(folder)]
    lines += ["", "trap '' USR1 TERM  # until Python has handlers of its own"]
    lines += asked.setup.rstrip().splitlines()
    lines += [f"export {name}={shlex.quote(value)}" for name, value in asked.env.items()]
    return "\n".join(["#!/bin/bash", *lines, f"exec {shlex.join(command)}", ""])
