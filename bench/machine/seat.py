"""The seat of a process that is started once on each node of a cluster: which of the nodes it is on, and who started it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SEAT = "WATTBENCH_SEAT"
"""Variable that holds the seat of a process on a node of Ray (JSON); Slurm has variables of its own."""


@dataclass(frozen=True)
class Seat:
    """The `number` of the node, its `name`, and the `processors` of it that belong to a `job`, of which this is a `step`."""

    number: int
    name: str
    job: str
    step: str
    processors: int
    engine: str = "ray"
    partition: str | None = None
    folder: str = ""

    @property
    def base(self) -> str:
        """The folder of this node in which agents work: that of the job, or that of temporary files."""
        return self.folder if self.folder and Path(self.folder).is_dir() else tempfile.gettempdir()

    @property
    def facts(self) -> dict[str, str]:
        """What an environment says of the cluster."""
        own = {"engine": self.engine, "node": self.name}
        own |= {"partition": self.partition} if self.partition is not None else {}
        alone = self.processors >= (os.cpu_count() or 1)
        return own if alone else own | {"shared": "others may use the rest of the node"}


def find_seat(variables: Mapping[str, str] = os.environ) -> Seat:
    """Return the seat of this process, as its variables state it."""
    if SEAT in variables:
        return Seat(**json.loads(variables[SEAT]))
    return Seat(
        number=int(variables["SLURM_NODEID"]),
        name=variables["SLURMD_NODENAME"],
        job=variables["SLURM_JOB_ID"],
        step=variables["SLURM_STEP_ID"],
        processors=int(variables.get("SLURM_CPUS_ON_NODE", "0")),
        engine="slurm",
        partition=variables.get("SLURM_JOB_PARTITION", ""),
        folder=variables.get("SLURM_TMPDIR", ""),
    )
