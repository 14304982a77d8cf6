"""A partition of Slurm as its login node sees it: how many nodes of which kind there are, and how long a job may take."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.cluster_options import ClusterOptions, clock_seconds
from bench.errors import WRONG_USE
from bench.machine.cluster import ClusterProblem, ask_slurm, time_left
from bench.machine.environment import commit, describe
from bench.record import Environment
from bench.redact import redact_argv
from bench.schema import Gpu, Machine
from bench.vendors import Vendor

MOST_SECONDS = 4 * 3600.0
"""The longest that a job asks for unless `time_limit` says more."""
_FORMAT = "%P|%a|%l|%D|%c|%m|%G"


class Partition(Machine):
    """Nodes that can be asked for: as a machine it is what each of them has, as far as Slurm knows it.

    `name` is that of the partition; `most_nodes` may be asked for by a job, for `limit_seconds`; None: without a limit.
    """

    name: str
    most_nodes: int
    limit_seconds: float | None = None
    asked: ClusterOptions

    @property
    def num_nodes(self) -> int:
        """Number of nodes that a run may use."""
        return min(self.most_nodes, self.asked.max_nodes or self.most_nodes)

    @property
    def launcher(self) -> str:
        """Launcher of runs on it."""
        return "slurm"

    @property
    def most_seconds(self) -> float:
        """The longest that a job may ask for."""
        own = clock_seconds(self.asked.time_limit) if self.asked.time_limit is not None else MOST_SECONDS
        return own if self.limit_seconds is None else min(own, self.limit_seconds)

    @cached_property
    def environment(self) -> Environment:
        """What an execution on it is known by: the software here, the kind of node, and what is asked of Slurm."""
        asked = self.asked
        parts = {"partition": self.name, "constraint": asked.constraint, "gres": asked.gres}
        parts |= {"container": asked.container or " ".join(asked.container_command) or None}
        cluster = {"engine": "slurm"} | {name: value for name, value in parts.items() if value is not None}
        plain = Machine(**{name: getattr(self, name) for name in Machine.model_fields})
        here = describe(plain).changed(argv=redact_argv(sys.argv), folder_commit=commit(Path.cwd()))
        return here.changed(cluster=cluster)


@dataclass(frozen=True)
class _Nodes:
    """A row of `sinfo`: nodes of one kind in one partition."""

    partition: str
    limit: float | None
    count: int
    processors: int
    memory_bytes: int
    gpus: int
    gpu_name: str

    @property
    def gres(self) -> str:
        return f"gpu:{self.gpus} ({self.count} node{'s' * (self.count != 1)})"


def gpus_of(gres: str) -> tuple[int, str]:
    """Return the number of GPUs that a node has by the `Gres` of Slurm, and their type: gpu:h100:8(S:0-1),nvme:1."""
    count, names = 0, list[str]()
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        match = re.fullmatch(r"gpu(?::([^:]+))??(?::(\d+))?", entry)
        if match is not None:
            count += int(match[2] or 1)
            names += [match[1]] if match[1] else []
    return count, " and ".join(dict.fromkeys(names))


def find_partition(options: ClusterOptions) -> Partition:
    """Ask Slurm for the nodes of the partition that the options name, or of its default one. Raises ClusterProblem."""
    lacking = [tool for tool in ("sbatch", "squeue", "sinfo", "scancel") if shutil.which(tool) is None]
    if lacking:
        raise ClusterProblem(
            f"--launcher slurm: there is no {', '.join(lacking)} on PATH.\n"
            "Run this on a login node, or inside an allocation without --launcher",
            code=WRONG_USE,
        )
    try:
        rows = [_row(line) for line in ask_slurm("sinfo", "-h", "-o", _FORMAT).splitlines()]
    except ClusterProblem as problem:
        raise ClusterProblem(
            f"Slurm does not answer here: {str(problem).splitlines()[-1]}\n"
            "Run this on a login node, or leave out --launcher slurm"
        ) from problem
    everything = [row for row in rows if row is not None]
    starred = [row.partition.rstrip("*") for row in everything if row.partition.endswith("*")]
    wanted = options.partition.split(",") if options.partition else starred
    found = [row for row in everything if row.partition.rstrip("*") in wanted]
    names = ", ".join(dict.fromkeys(row.partition.rstrip("*") for row in everything)) or "none"
    unknown = [name for name in wanted if name not in {row.partition.rstrip("*") for row in found}]
    if not found or unknown:
        what = f"there is no partition {unknown[0]!r}" if unknown else "no partition is the default one"
        raise ClusterProblem(f"{what}: set cluster.partition to one of {names}", code=WRONG_USE)
    found, name = _equal(found, options), ",".join(dict.fromkeys(row.partition.rstrip("*") for row in found))
    first, limits = found[0], [row.limit for row in found if row.limit is not None]
    wide = options.devices_per_node or first.gpus
    cpus = min(row.processors for row in found)
    if not first.gpus and options.devices_per_node:
        cpus = min(cpus, options.devices_per_node)
    vendor: Vendor = "amd" if re.match(r"mi\d", first.gpu_name, re.IGNORECASE) else "nvidia"
    titles = (first.gpu_name or "GPU" for _ in range(wide if first.gpus else 0))
    gpus = [Gpu(index=k, uuid=f"gpu-{k}", name=each, vendor=vendor) for k, each in enumerate(titles)]
    return Partition(
        cpu_model=f"partition {name}",
        cpu_count=cpus,
        memory_bytes=min(row.memory_bytes for row in found) or None,
        gpus=gpus,
        name=name,
        most_nodes=sum(row.count for row in found),
        limit_seconds=min(limits, default=None),
        asked=options,
    )


def _row(line: str) -> _Nodes | None:
    """Read a row of `sinfo`; None for a partition that is not up, or a row that cannot be read."""
    parts = line.split("|")
    if len(parts) != 7 or parts[1] != "up":
        return None
    count, processors, memory = (int(re.sub(r"\D", "", part) or 0) for part in parts[3:6])
    gpus, name = gpus_of(parts[6])
    return _Nodes(parts[0], time_left(parts[2]), count, max(1, processors), memory << 20, gpus, name)


def _equal(rows: list[_Nodes], options: ClusterOptions) -> list[_Nodes]:
    """Return the nodes that have the devices that are asked for. Raises ClusterProblem where that is none, or unclear."""
    where = f"partition {options.partition or rows[0].partition.rstrip('*')!r}"
    if any(row.gpus for row in rows):
        if options.devices_per_node is None and len({row.gpus for row in rows}) > 1:
            counts = Counter({gpus: sum(r.count for r in rows if r.gpus == gpus) for gpus in {r.gpus for r in rows}})
            kinds = ", ".join(f"gpu:{gpus} ({count} nodes)" for gpus, count in sorted(counts.items()))
            raise ClusterProblem(f"{where} has nodes with {kinds}: set cluster.devices_per_node", code=WRONG_USE)
        fitting = [row for row in rows if row.gpus and row.gpus >= (options.devices_per_node or 1)]
    else:
        fitting = [row for row in rows if row.processors >= (options.devices_per_node or 1)]
    if not fitting:
        most = max(rows, key=lambda row: (row.gpus, row.processors))
        what, has = ("GPUs", most.gres) if most.gpus else ("processors", f"{most.processors} processors")
        raise ClusterProblem(
            f"{where} has no node with {options.devices_per_node} {what}: sinfo shows {has}; "
            f"set cluster.devices_per_node: {most.gpus or most.processors}",
            code=WRONG_USE,
        )
    return fitting
