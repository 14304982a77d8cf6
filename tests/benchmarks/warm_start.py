"""Warm runs against plain torchrun, side by side: the fixed cost of a run, and whether both give the same figures.

    python -m tests.benchmarks.warm_start

Runs alternate (ABBA), so that a slow minute hits both. The fixed cost of a warm run is the time from the end of the window
of the run before to its own first training step: teardown, recording, MLflow and start included. That of a cold run is
the time from its start to its first training step.
"""

import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from analytics.stats import ratio
from bench.figures.metrics import metrics
from bench.record import Phase, RunRecord
from bench.suites import yaml as yamlfile

SUITE = {
    "name": "warm-start",
    "defaults": {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "cpu",
        "devices": 2,
        "batch_size_per_device": 4,
        "measure_seconds": 3,
    },
    "matrix": {"cold": [False, True]},
    "repeats": 8,
}


def phase(record: RunRecord, name: str) -> Phase:
    """Return a phase of a run that ended well."""
    assert record.measurement is not None
    return next(phase for phase in record.measurement.phases if phase.name == name)


def main() -> None:
    """Run the suite in a temporary folder and print the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "suite.yaml").write_text(yamlfile.write(SUITE))
        command = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "run", "suite.yaml"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        paths = Path(folder).glob("runs/*/*/*/record.json")
        records = sorted((RunRecord.model_validate_json(p.read_text()) for p in paths), key=lambda r: r.started_at)
    warm = [record for record in records if not record.spec.cold]
    cold = [record for record in records if record.spec.cold]
    before = {after.run_id: first for first, after in pairwise(records)}
    since = [
        (phase(record, "warmup").start_ns - phase(before[record.run_id], "steady").end_ns) / 1e9
        for record in warm
        if record.run_id in before
    ]
    started = [(phase(record, "warmup").start_ns - phase(record, "start").start_ns) / 1e9 for record in cold]
    print(f"fixed cost, warm: median {median(since):.2f} s, largest {max(since):.2f} s (target: at most 2 s)")
    print(f"fixed cost, cold: median {median(started):.2f} s: {median(started) / median(since):.1f} times the warm one")
    for name in ("samples_per_second", "loss_first", "peak_memory_bytes"):
        found = ratio([([metrics(r)[name] for r in warm], [metrics(r)[name] for r in cold])])
        print(
            f"{name}, warm / cold: {found.value:.3f} ({found.low:.3f} to {found.high:.3f}), {len(warm)} launches each"
        )


if __name__ == "__main__":
    main()
