"""Figures of runs on several nodes."""

from __future__ import annotations

from statistics import median

from bench.record import Observation


def slow_node(run: Observation) -> dict[str, float]:
    """Return the slowest of several nodes against their median, by the median forward time of the ranks of each."""
    if run.measurement is None or run.spec.num_nodes == 1:
        return {}
    ranks = sorted(run.measurement.ranks, key=lambda rank: rank.rank)
    times: dict[int, list[float]] = {}
    for rank in ranks:
        if rank.forward_seconds_median is not None:
            times.setdefault(rank.rank // run.spec.devices_per_node, []).append(rank.forward_seconds_median)
    if len(times) < run.spec.num_nodes:
        return {}
    each = {node: median(some) for node, some in times.items()}
    slowest = max(each, key=lambda node: each[node])
    others = median(seconds for node, seconds in each.items() if node != slowest)
    return {"straggler_node": slowest, "straggler_node_ratio": each[slowest] / others}
