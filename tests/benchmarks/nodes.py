"""The fixed cost of a warm run on two nodes beside that of one, in an allocation of a Slurm of its own with virtual nodes.

    python -m tests.benchmarks.nodes [--repeats 12]

Two ranks train on one node, or one on each of two. The fixed cost is the time from the end of the window of a run to the
first training step of the next one of its kind, as in tests/benchmarks/warm_start.py. Beside it stand the costs of runs on
two nodes for which agents are started anew: a step of Slurm for each, and a job for each.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from bench.folder import RECORD
from bench.suites import yaml as yamlfile
from tests.benchmarks.warm_start import parts
from tests.processes import BENCH
from tests.slurm import Slurm, missing, slurm

LARGEST = 1.5
"""Target: the fixed cost on two nodes over that on one."""


def suite(repeats: int, layouts: Sequence[str] = ("1x2", "2x1"), name: str = "nodes") -> str:
    """Return a suite of short runs on one node and on two."""
    defaults = {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "cpu",
        "batch_size_per_device": 4,
        "warmup_seconds": 0.5,
        "measure_seconds": 2,
    }
    document = {"name": name, "defaults": defaults, "matrix": {"layout": list(layouts)}, "repeats": repeats}
    return yamlfile.write(document | {"idle_seconds": 0})


def anew(cluster: Slurm, folder: Path, runs: int = 4) -> dict[str, list[float]]:
    """Return the fixed costs in seconds of runs on two nodes with a step for each, and with a job for each."""
    names = [f"step{number}" for number in range(runs)]
    for name in names:
        (folder / f"{name}.yaml").write_text(suite(1, ["2x1"], name))
    lines = [shlex.join([*BENCH, "run", f"{name}.yaml", "--json"]) for name in names]
    steps = [*("salloc", "--quiet", "--nodes=2", "--exclusive"), "bash", "-c", " && ".join(lines)]
    subprocess.run(steps, cwd=folder, env=cluster.variables, check=True, capture_output=True)
    (folder / "jobs.yaml").write_text(suite(runs, ["2x1"], "jobs"))
    jobs = ["run", "jobs.yaml", "--launcher", "slurm", "--set", "cluster.jobs=each_run", "--json"]
    subprocess.run([*BENCH, *jobs], cwd=folder, env=cluster.variables, check=True, capture_output=True)
    found = {"a step for each": "step*", "a job for each": "jobs"}
    return {how: costs(folder, f"{name}/*/*/{RECORD.name}")[2] for how, name in found.items()}


def costs(folder: Path, where: str = f"nodes/*/*/{RECORD.name}") -> dict[int, list[float]]:
    """Return the fixed costs in seconds by the number of nodes: of runs that follow one of their kind."""
    out: dict[int, list[float]] = {1: [], 2: []}
    found = (RECORD.read(path.parent) for path in folder.glob(f"runs/{where}"))
    ordered = sorted(found, key=lambda record: record.started_at)
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
        seconds, others = costs(folder), anew(cluster, folder)
    rows = {f"{nodes} node{'s' * (nodes > 1)}, warm": each for nodes, each in seconds.items()}
    for name, each in (rows | {f"2 nodes, {how}": each for how, each in others.items()}).items():
        low, _, high = quantiles(each, n=4)
        print(f"{name}: {median(each):.2f} s a run (quartiles {low:.2f} to {high:.2f}, {len(each)} runs)")
    ratio = median(seconds[2]) / median(seconds[1])
    print(f"two nodes / one: {ratio:.2f} (target: at most {LARGEST})")
    return int(ratio > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
