"""Planning 10,000 runs: expanding the suite, and planning again after each run, from the first to the last.

    python -m tests.benchmarks.planning

Nothing is trained: each run is recorded as it is planned, so what is left is the cost of planning itself. The memory is what
the process grows by, plan and records included.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.record import Environment, Measurement, RunRecord, Status
from bench.run.runner import Execution, Forecast, open_execution
from bench.schema import Machine, RunSpec, Suite
from bench.suites.expand import Expansion, expand

CONFIGURATIONS, REPEATS = 1000, 10
TARGET_SECONDS, TARGET_BYTES = 5.0, 200e6
MACHINE = Machine(cpu_model="Any CPU", cpu_count=8)
ENVIRONMENT = Environment(host="any", os="Linux", kernel="6", python="3.11", packages={}, machine=MACHINE)


def suite(configurations: int = CONFIGURATIONS, repeats: int = REPEATS) -> Suite:
    """Return a suite of so many configurations: one in two saves its weights, which the other one needs."""
    defaults = {"workload": "decoder_lm", "workload_args": {"preset": "tiny"}, "measure_seconds": 3}
    pairs = [
        {"batch_size_per_device": 1 + number // 2, "saves" if number % 2 == 0 else "needs": f"weights-{number // 2}"}
        for number in range(configurations)
    ]
    return Suite(name="planning", defaults=defaults, include=pairs, repeats=repeats)


def recorded(spec: RunSpec, started: datetime) -> RunRecord:
    """Return the record of a run that ended well, with no more figures than it must have."""
    return RunRecord(
        run_id=spec.run_id,
        config_id=spec.config_id,
        suite="planning",
        execution="planned",
        spec=spec,
        status=Status.OK,
        started_at=started,
        duration_seconds=4.0 + spec.repeat,
        measurement=Measurement(window_seconds=3),
        environment=ENVIRONMENT,
    )


def live(plan: Expansion, folder: Path, ended: Callable[[Execution, float | None], None] | None = None) -> None:
    """Let each run of a plan end, one after the other, and plan the rest after each, as a suite does.

    `ended` is told the seconds that all runs without a record will take.
    """
    execution, started = open_execution(folder, plan, ENVIRONMENT), datetime.now(UTC)
    missing = execution.missing()
    forecast = Forecast(missing, execution.records.values())
    for spec in missing:
        execution.unmet(spec)
        execution.add(recorded(spec, started))
        forecast.ended(spec, execution.records[spec.run_id])
        if ended is not None:
            ended(execution, forecast.remaining_seconds)
    assert not execution.missing()


def main() -> None:
    """Print the seconds and the memory, and fail if a target is missed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    plan = expand(suite(), MACHINE)
    expanded = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        live(plan, Path(folder))
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(
        f"{len(plan.runs)} runs: expanded in {expanded:.2f} s, planned again after each in {seconds - expanded:.2f} s"
    )
    print(f"both: {seconds:.2f} s (target: at most {TARGET_SECONDS:g} s)")
    print(f"memory: {grown / 1e6:.0f} MB (target: at most {TARGET_BYTES / 1e6:g} MB)")
    if seconds > TARGET_SECONDS or grown > TARGET_BYTES:
        sys.exit("a target is missed")


if __name__ == "__main__":
    main()
