"""The nodes of a run over several, as the page of a run shows them."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pandas as pd

from analytics.text import number, printable
from bench.figures.metrics import split_energy
from bench.figures.nodes import energy_of_each, forward_seconds
from bench.record import NetworkFacts, RunRecord


def nodes(record: RunRecord) -> pd.DataFrame:
    """Return a row a node of a run over several: its ranks, how it ended, its window, energy, forward time and network.

    Energy is absent where nodes cannot be told apart. The forward time is a median of its ranks, also relative to the
    others: above 1 the others wait for the node.
    """
    energy, times = energy_of_each(record), forward_seconds(record)
    rows = []
    for place, node in enumerate(record.nodes):
        parts = split_energy(energy[place]) if energy else ([], [])
        joules = [sum(reading.energy_joules for reading in part) if part else None for part in parts]
        others = [seconds for other, seconds in times.items() if other != place]
        own = times.get(place)
        slower = own / median(others) if own is not None and others else None
        first, each = node.first_rank, record.device_count // len(record.nodes)
        ranks = "" if first is None else f"{first} to {first + each - 1}" if each > 1 else str(first)
        skew = node.clock_skew_seconds
        figures = (node.window_seconds, *joules, own, slower, skew)
        rows.append((printable(node.name, 60), ranks, node.ended, *figures, network_words(node.network)))
    heads = ["Node", "Ranks", "Ended", "Window [s]", "Energy [J]", "~ Energy [J]", "Forward pass [s]"]
    table = pd.DataFrame(rows, columns=[*heads, "Against the others", "Clock ahead [s]", "Network"])
    table = table.astype(dict.fromkeys(table.columns[3:-1], "float64"))
    return table.loc[:, table.notna().any()]


def network_words(network: NetworkFacts | None) -> str | None:
    """Name the interface on which ranks meet, and the ports of adapters, alike ones together; None where nothing is known."""
    if network is None:
        return None
    speed = f"{number(network.bits_per_second / 1e9)} Gb/s" if network.bits_per_second is not None else ""
    mtu = f"MTU {network.mtu_bytes}" if network.mtu_bytes is not None else ""
    alike = Counter(" ".join(filter(None, (port.link, port.rate, port.state))) for port in network.ports)
    ports = [f"{count} x {words}" for words, count in alike.items()]
    return printable("; ".join([", ".join(filter(None, (network.interface, speed, mtu))), *ports]), 200)
