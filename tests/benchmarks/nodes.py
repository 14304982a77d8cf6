"""The fixed cost of a warm run on two nodes beside that of one, in an allocation of a Slurm of its own with virtual nodes.

    python -m tests.benchmarks.nodes [--repeats 12]

Two ranks train on one node, or one on each of two. The fixed cost is the time from the end of the window of a run to the
first training step of the next one of its kind, as in tests/benchmarks/warm_start.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from bench.suites import yaml as yamlfile
from tests.benchmarks.warm_start import parts
from tests.processes import records
from tests.slurm import missing, slurm

LARGEST = 1.5
"""Target: the fixed cost on two nodes over that on one."""


def suite(repeats: int) -> str:
    """Return a suite of short runs on one node and on two."""
    defaults = {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "cpu",
        "batch_size_per_device": 4,
        "warmup_seconds": 0.5,
        "measure_seconds": 2,
    }
    document = {"name": "nodes", "defaults": defaults, "matrix": {"layout": ["1x2", "2x1"]}, "repeats": repeats}
    return yamlfile.write(document | {"idle_seconds": 0})


def costs(folder: Path) -> dict[int, list[float]]:
    """Return the fixed costs in seconds by the number of nodes: of runs that follow one of their kind."""
    out: dict[int, list[float]] = {1: [], 2: []}
    ordered = sorted(records(folder).values(), key=lambda record: record.started_at)
    for before, record in pairwise(ordered):
        nodes = record.spec.num_nodes
        if before.spec.num_nodes == nodes and before.measurement is not None and record.measurement is not None:
            out[nodes].append(sum(parts(before, record).values()))
    return out


def main() -> int:
    """Run the suite and print the costs and their ratio. Return 1 where the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.nodes", description=__doc__)
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    if why := missing():
        print(why)
        return 0
    with tempfile.TemporaryDirectory() as name, slurm(Path(name) / "slurm") as cluster:
        folder = Path(name) / "suite"
        folder.mkdir()
        (folder / "nodes.yaml").write_text(suite(options.repeats))
        process = cluster.bench(folder, "run", "nodes.yaml", "--json")
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors)
        seconds = costs(folder)
    for nodes, each in seconds.items():
        low, _, high = quantiles(each, n=4)
        name = f"{nodes} node{'s' * (nodes > 1)}"
        print(f"{name}: {median(each):.2f} s a run (quartiles {low:.2f} to {high:.2f}, {len(each)} runs)")
    ratio = median(seconds[2]) / median(seconds[1])
    print(f"two nodes / one: {ratio:.2f} (target: at most {LARGEST})")
    return int(ratio > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
