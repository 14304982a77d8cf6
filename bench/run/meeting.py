"""Where the processes of a command on several nodes meet, told to launchers by variables and by `{name}` in `argv`."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.pipe import Pipe
from bench.schema import names_in_braces
from bench.workloads.command import MEETING

_SIZES = (
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
)
"""Variables of a step from which scripts take the number of their processes: a run may have fewer nodes than the step."""


@dataclass(frozen=True)
class Meeting:
    """The place of a node among those of a command, and the address and port at which the first node is reached.

    `channel` is a descriptor on which the launcher hears messages of the command's runner, which passes its output on if that
    is to `show`.
    """

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int | None = None
    interface: str = "lo"
    channel: int | None = None
    show: bool = False

    def values(self, argv: str) -> dict[str, Any]:
        """Return the values of the names in a command that are known only where it starts. On one node a port is free."""
        named = names_in_braces(argv)
        port = self.port or (_free_port() if "master_port" in named else 0)
        return dict(zip(MEETING, (self.node, self.address, port), strict=True))

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a command: torchrun takes its options from PET_*, scripts read the others.

        RANK and WORLD_SIZE are left to launchers. Interfaces that the user has chosen stay.
        """
        sizes = {} if "SLURM_STEP_NUM_TASKS" not in base else {name: str(self.nodes) for name in _SIZES if name in base}
        if self.nodes == 1:
            return sizes
        place = {"MASTER_ADDR": self.address, "MASTER_PORT": str(self.port)}
        torchrun = {f"PET_{name}": value for name, value in place.items()}
        torchrun |= {"PET_NNODES": str(self.nodes), "PET_NODE_RANK": str(self.node)}
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        return sizes | place | torchrun | {name: base.get(name, self.interface) for name in names}

    def tell(self, **message: Any) -> None:
        """Send a message to the launcher."""
        if self.channel is not None:
            Pipe(0, self.channel).send(node=self.node, **message)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
