"""Nodes of a Ray that the user has started: who they are, how a step is started on them, and whether it still runs.

Ray itself is imported by the process of a step alone (`bench.run.ray_step`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec

from bench.cluster_options import ClusterOptions
from bench.errors import WRONG_USE
from bench.machine.cluster import FACTS_SECONDS, Cluster, ClusterProblem, described, least
from bench.process import module_command
from bench.record import Environment

OF_RAY = ("devices_per_node", "env", "max_nodes", "network_interface")
"""Keys of `cluster` that nodes of Ray have."""
_HOW = "ray start --head on one node, and on each of the others what that prints"
_REACHED_SECONDS = 10.0


class RayCluster(Cluster):
    """Nodes of Ray. `job` is the address of Ray; `ids` are those of the nodes, of which each start has another one."""

    ids: list[str]

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which a step is started."""
        return os.environ | self.asked.env

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command that starts a module of wattbench once on each node."""
        return _step(self.job, self.asked, ["--on", ",".join(self.ids)], module, *arguments)

    @property
    def launcher(self) -> str:
        """Launcher of runs on it."""
        return "ray"

    def running(self) -> bool:
        """Whether Ray can still be reached."""
        return _reached(self.job)

    def end_step(self, number: str) -> None:
        """Do nothing: Ray ends a step whose process has ended."""


def _step(address: str, asked: ClusterOptions, nodes: list[str], module: str, *arguments: str) -> list[str]:
    how = ["--address", address, "--export", ",".join(asked.env), *nodes]
    return module_command("bench.run.ray_step", *how, "--", module, *arguments)


def _reached(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _REACHED_SECONDS):
        return True
    return False


def _address(variables: Mapping[str, str] = os.environ) -> str:
    """Return the address of Ray; `auto` where that of this machine is meant. Raises ClusterProblem."""
    address = variables.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        return address
    if "://" in address or not address.rpartition(":")[2].isdecimal():
        raise ClusterProblem(
            f"RAY_ADDRESS is {address!r}: give HOST:PORT of the head node, usually of port 6379, and start bench there",
            code=WRONG_USE,
        )
    if not _reached(address):
        raise ClusterProblem(f"RAY_ADDRESS is {address!r}: nobody answers there. Start Ray: {_HOW}")
    return address


def find_ray(asked: ClusterOptions | None = None) -> RayCluster:
    """Ask the nodes of Ray who they are. Raises ClusterProblem."""
    asked = asked or ClusterOptions()
    plain = ClusterOptions()
    strange = [name for name in ClusterOptions.model_fields if getattr(asked, name) != getattr(plain, name)]
    if strange := [name for name in strange if name not in OF_RAY]:
        raise ClusterProblem(
            f"cluster.{', cluster.'.join(strange)}: not for --launcher ray, which has {', '.join(OF_RAY)}",
            code=WRONG_USE,
        )
    if find_spec("ray") is None:
        raise ClusterProblem("--launcher ray: Ray is not installed here: pip install 'wattbench[ray]'", code=WRONG_USE)
    most = ["--devices", str(asked.devices_per_node or 1), "--nodes", str(asked.max_nodes or 0)]
    command = _step(_address(), asked, most, "bench.machine.cluster")
    try:
        done = subprocess.run(
            command, env=os.environ | asked.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=FACTS_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterProblem(f"--launcher ray: the nodes did not answer within {FACTS_SECONDS:g} s") from error
    told, found = done.stdout.partition(b"\n")[0], described(done.stdout)
    if done.returncode or not found:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        own = [line.removeprefix("ray: error: ") for line in lines if line.startswith("ray: error: ")]
        raise ClusterProblem("--launcher ray: " + ("\n".join(own or lines[-8:]) or "(no message)"))
    facts, order = json.loads(told), sorted(found)
    nodes = _apart([found[number][1] for number in order])
    return RayCluster(
        **least([node.machine for node in nodes], asked.devices_per_node),
        job=facts["address"],
        ids=[node["id"] for node in facts["nodes"]],
        names=[found[number][0] for number in order],
        nodes=nodes,
        addresses=[node["address"] for node in facts["nodes"]],
        asked=asked,
    )


def _apart(nodes: list[Environment]) -> list[Environment]:
    """Mark nodes that share a machine with another one, as containers do."""
    boots = Counter(node.boot_id for node in nodes if node.boot_id is not None)
    shared = {"shared": "another node of Ray is on the same machine"}
    return [node.changed(cluster=node.cluster | shared) if boots[node.boot_id or ""] > 1 else node for node in nodes]
