"""Figures of runs on several nodes."""

from __future__ import annotations

from statistics import median

from bench.record import EnergyReading, Observation
from bench.schema import COMMAND


def slow_node(run: Observation) -> dict[str, float]:
    """Return the slowest of several nodes against their median, by the median forward time of the ranks of each."""
    each = forward_seconds(run)
    if run.spec.num_nodes == 1 or len(each) < run.spec.num_nodes:
        return {}
    slowest = max(each, key=lambda node: each[node])
    others = median(seconds for node, seconds in each.items() if node != slowest)
    return {"straggler_node": slowest, "straggler_node_ratio": each[slowest] / others}


def forward_seconds(run: Observation) -> dict[int, float]:
    """Return the median forward time of the ranks of each node [s], by its number."""
    times: dict[int, list[float]] = {}
    for rank in run.measurement.ranks if run.measurement is not None else []:
        if rank.forward_seconds_median is not None:
            times.setdefault(rank.rank // run.spec.devices_per_node, []).append(rank.forward_seconds_median)
    return {node: median(times[node]) for node in sorted(times)}


def node_names(run: Observation) -> list[str]:
    """Return the names of the nodes of a run on a cluster; none elsewhere."""
    own = run.environment.cluster.get("node")
    return [node.name for node in run.nodes] or ([own] if own else [])


def passes_infiniband(run: Observation) -> bool:
    """Whether ranks use plain sockets although a node has active InfiniBand, as far as that is certain.

    They use gloo on processors, and else NCCL, which variables may keep from InfiniBand. What a command uses is not seen.
    """
    ports = [port for node in run.nodes if node.network is not None for port in node.network.ports]
    if run.spec.workload == COMMAND or not any(port.active_infiniband for port in ports):
        return False
    network, plugin, off = (
        run.environment.variables.get(f"NCCL_{name}", "").strip().lower()
        for name in ("NET", "NET_PLUGIN", "IB_DISABLE")
    )
    without = off not in ("", "0") and network == "" and plugin in ("", "none")
    return run.spec.device_type == "cpu" or network == "socket" or without


def energy_of_each(run: Observation) -> list[list[EnergyReading]]:
    """Return the readings of the window by node; no list where they cannot be told apart: nodes that share a boot."""
    boots = [(node.boot_id or node.name)[:8] for node in run.nodes]
    if run.measurement is None or len(set(boots)) < len(boots):
        return []
    node_of = {rank.device: rank.rank // run.spec.devices_per_node for rank in run.measurement.ranks}
    out: list[list[EnergyReading]] = [[] for _ in boots]
    for reading in run.measurement.energy:
        boot = reading.device.partition(":")[0]
        number = node_of.get(reading.device) if reading.component == "gpu" else None
        number = boots.index(boot) if number is None and boot in boots else number
        if number is None or number >= len(out):
            return []
        out[number].append(reading)
    return out
