"""Warm runs against plain torchrun, side by side: whether both give the same figures, and the fixed cost of a run.

    python -m tests.benchmarks.warm_start [--pairs 24] [--devices 2]

Runs alternate (ABBA), so that a slow minute hits both; the interval is that of the ratios of the pairs. The fixed cost of a
warm run is the time from the end of the window of a warm run to the first training step of the next one: validation,
probes, the end of the ranks, recording, MLflow, fork and build included. That of a cold run is the time from its start to
its first training step. Other work on the machine hits both alike, but widens the interval.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from analytics.interval import Interval, geometric_mean
from bench.figures.metrics import metrics
from bench.record import Phase, RunRecord
from bench.suites import yaml as yamlfile

RATIO, FIXED_SECONDS = (0.985, 1.015), 1.0
"""Targets: where the interval of warm / cold samples per second lies, and the fixed cost of a warm run."""
WARMUP_SECONDS = 8
"""Warm-up of both kinds of runs: on a virtual machine the speed rises for about 8 s after idleness, and a cold
run has already been busy with imports for 5 s when it begins."""
PARTS = {
    "validation": "validation of the run before",
    "probe": "its probes of speed and communication",
    "tail": "the end of its ranks and meters",
    "record": "its record and MLflow",
    "launch": "fork of the agent, start of the trace",
    "start": "fork of the ranks, and their meeting",
    "build": "build of model, optimizer and data",
}


def suite(pairs: int, devices: int) -> dict[str, Any]:
    """Return the suite of so many pairs."""
    defaults = {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "cpu",
        "devices": devices,
        "batch_size_per_device": 4,
        "warmup_seconds": WARMUP_SECONDS,
        "measure_seconds": 3,
    }
    return {"name": "warm-start", "defaults": defaults, "matrix": {"cold": [False, True]}, "repeats": pairs}


def phases(record: RunRecord) -> list[Phase]:
    """Return the phases of a run that ended well; they fill it without gaps."""
    assert record.measurement is not None
    return record.measurement.phases


def parts(before: RunRecord, record: RunRecord) -> dict[str, float]:
    """Return the seconds of each part of the fixed cost, from the window of a run to the first step of the next."""
    seconds = dict.fromkeys(PARTS, 0.0)
    first, second = phases(before), phases(record)
    steady = max(index for index, phase in enumerate(first) if phase.name == "steady")
    warmup = next(index for index, phase in enumerate(second) if phase.name == "warmup")
    for phase in [*first[steady + 1 :], *second[:warmup]]:
        seconds[phase.name] += (phase.end_ns - phase.start_ns) / 1e9
    seconds["record"] = (second[0].start_ns - first[-1].end_ns) / 1e9
    return seconds


def paired(records: Iterable[RunRecord], name: str) -> Interval:
    """Return warm / cold of a metric, with the interval of the ratios of the pairs."""
    values: dict[int, dict[bool, float]] = {}
    for record in records:
        values.setdefault(record.spec.repeat, {})[record.spec.cold] = metrics(record)[name]
    return geometric_mean([pair[False] / pair[True] for pair in values.values()])


def measured(pairs: int, devices: int) -> list[RunRecord]:
    """Run the suite in a temporary folder and return the records, in the order in which they began."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "suite.yaml").write_text(yamlfile.write(suite(pairs, devices)))
        command = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "run", "suite.yaml"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        paths = Path(folder).glob("runs/*/*/*/record.json")
        return sorted((RunRecord.model_validate_json(p.read_text()) for p in paths), key=lambda r: r.started_at)


def main() -> None:
    """Print the comparison, and fail if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--devices", type=int, default=2)
    args = parser.parse_args()
    records = measured(args.pairs, args.devices)
    costs = [parts(a, b) for a, b in pairwise(records) if not (a.spec.cold or b.spec.cold)]
    fixed = median(sum(cost.values()) for cost in costs)
    print(f"fixed cost, warm: median {fixed:.2f} s of {len(costs)} (target: at most {FIXED_SECONDS:g} s), of which")
    for name, meaning in PARTS.items():
        print(f"  {median(cost[name] for cost in costs):5.2f} s  {meaning}")
    starts = [
        sum((p.end_ns - p.start_ns) / 1e9 for p in phases(record) if p.name in ("launch", "start", "build"))
        for record in records
        if record.spec.cold
    ]
    print(f"fixed cost, cold: median {median(starts):.2f} s before the first step alone")
    for name in ("samples_per_second", "loss_first", "peak_memory_bytes"):
        found = paired(records, name)
        print(f"{name}, warm / cold: {found.value:.3f} ({found.low:.3f} to {found.high:.3f}), {found.n} pairs")
    speed = paired(records, "samples_per_second")
    print(f"target for samples_per_second: an interval within {RATIO[0]} and {RATIO[1]}")
    same = speed.low is not None and speed.high is not None and RATIO[0] <= speed.low <= speed.high <= RATIO[1]
    if not same or fixed > FIXED_SECONDS:
        sys.exit("a target is missed")


if __name__ == "__main__":
    main()
