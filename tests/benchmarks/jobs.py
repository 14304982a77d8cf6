"""10,000 runs on up to 1,000 nodes by jobs of a simulated queue, and 1,000 random histories of faults.

    python -m tests.benchmarks.jobs

The clock is simulated, jobs wait from a second to two days, and one in three fails. The controller is the real one, with
the real files. What is counted: runs lost or done twice, jobs in the queue at once, questions to the queue, files of a run,
memory, and the time of planning again when all is done.
"""

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.run.runner import load_briefs
from tests.simulated_slurm import FAULTS, Notes, SimulatedSlurm, controller, specs, until_done

SIZES, CONFIGURATIONS, REPEATS = [1, 2, 4, 8, 16, 64, 256, 1000], 125, 10
MEMORY_BYTES, PLAN_SECONDS, MAX_JOBS, FILES = 200e6, 5.0, 8, 9
HISTORIES = 1000


def many() -> list[str]:
    """Do 10,000 runs; print the figures, and return what misses a target."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs, choose = specs(SIZES, CONFIGURATIONS, REPEATS), random.Random(1)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faults = [choose.choice(FAULTS) if choose.random() < 1 / 3 else "none" for _ in range(5000)]
        waits = [choose.choice([1.0, 60.0, 3600.0, 48 * 3600.0]) for _ in range(500)]
        slurm = SimulatedSlurm(folder, faults=faults, waits=waits)
        began = time.perf_counter()
        _, typed = until_done(folder, runs, slurm, max_jobs=MAX_JOBS, time_limit="20:00")
        took = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        began = time.perf_counter()
        left = controller(folder, runs, slurm, Notes(), max_jobs=MAX_JOBS).to_do
        planned = time.perf_counter() - began
        twice = sum(count > 1 for count in slurm.executed.values())
        most_files = max(len(list((folder / run.run_id).iterdir())) for run in runs)
        days = (slurm.now - 1.8e9) / 86400
        asked = len(slurm.asked_at) / ((slurm.now - 1.8e9) / 30)
        lost = len(runs) - len(load_briefs(folder))
    print(
        f"{len(runs)} runs by {len(slurm.jobs)} jobs in {days:.1f} days, {took:.0f} s of this machine, {typed} commands"
    )
    print(f"lost: {lost}, done twice: {twice}, left to do: {left}")
    print(f"most jobs in the queue: {slurm.most_in_queue} (at most {MAX_JOBS})")
    print(f"files of a run: {most_files} (at most {FILES})")
    print(f"questions to the queue: {asked:.2f} in 30 s (at most 1)")
    print(f"memory: {grown / 1e6:.0f} MB (at most {MEMORY_BYTES / 1e6:g})")
    print(f"planned again in {planned:.1f} s (at most {PLAN_SECONDS:g})")
    missed = {
        "runs": lost or twice or left,
        "jobs": slurm.most_in_queue > MAX_JOBS,
        "files": most_files > FILES,
        "questions": asked > 1,
        "memory": grown > MEMORY_BYTES,
        "planning": planned > PLAN_SECONDS,
    }
    return [name for name, wrong in missed.items() if wrong]


def histories() -> list[str]:
    """Live through random histories; print and return those with a run that was lost or done twice."""
    wrong, fates = list[str](), Counter[str]()
    for seed in range(HISTORIES):
        choose = random.Random(seed)  # noqa: S311
        with tempfile.TemporaryDirectory() as name:
            folder, runs = Path(name), specs(choose.choice([[1], [1, 2], [1, 2, 4]]), 2, 2)
            slurm = SimulatedSlurm(
                folder,
                faults=[choose.choice(FAULTS) for _ in range(12)],
                waits=[choose.choice([1.0, 50.0, 4000.0]) for _ in range(3)],
                silent=[(choose.uniform(0, 900), choose.uniform(0, 1800))],
                kill_at=sorted(choose.uniform(0, 3000) for _ in range(choose.randrange(4))),
            )
            until_done(
                folder, runs, slurm, time_limit="10:00", max_jobs=2, jobs=choose.choice(["by_size", "one", "each_run"])
            )
            briefs = load_briefs(folder)
            fates.update(job.fault for job in slurm.jobs)
            done = [run_id for run_id, brief in briefs.items() if brief.status == "ok"]
            twice = any(slurm.executed[run_id] != 1 for run_id in done) or slurm.after_record
            if len(briefs) < len(runs) or twice or slurm.most_in_queue > 2:
                wrong.append(f"history {seed}")
    print(f"{HISTORIES} random histories, {sum(fates.values())} jobs: {dict(fates)}")
    print(f"histories with a run lost or done twice: {wrong or 'none'}")
    return wrong


def main() -> None:
    """Print the figures, and fail if a target is missed."""
    missed = [*many(), *histories()]
    if missed:
        sys.exit(f"a target is missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
