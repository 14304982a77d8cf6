"""Whether a measurement survives what ends it: signals to `bench measure`, to its script, to one of two ranks.

    python -m tests.benchmarks.signals [--moments N] [--side-by-side N] [--only NAME]

A script of 150 steps of 20 ms is ended in each way at moments spread over its 3 seconds, beside a GPU of 300 W that a
stand-in for NVML reports. Printed for each way: how many records there are, their states, and the least share of steps and
of joules in them. A step that the script has made counts as soon as it is written; joules are those from the start of the
command to the last of these steps. Exit code 1 where a record is missing or a share is below `LEAST`. A record counts as
missing too where SIGUSR1 or SIGUSR2 did not reach a script that went on. `tests/test_moments.py` has the moments at which
no script runs.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import folder as files
from bench.record import RunRecord
from tests.fake_nvml import environment, fake_gpu

LEAST = 0.95
WATTS, STEPS, WARMUP_STEPS = 300, 150, 3
PASSED_NS = 10**9
"""A script that lives on for so long after SIGUSR1 or SIGUSR2 must have got it: it is passed on after 0.1 s."""
GPU = fake_gpu(0, WATTS, period=0.02)
"""Its counter is so fine that no energy is uncertain at the edges of a second."""
BENCH = """
import functools, sys
from bench.cli import main
from bench.run import measure
measure.MeasureOptions = functools.partial(measure.MeasureOptions, meters=("nvml",))
main(sys.argv[1:])
"""
SCRIPT = """
import os, signal, sys, time
from bench.steps import step
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.write(2, b"got " + signal.Signals(number).name.encode()))
own = os.open(f"made-{os.environ.get('RANK', '0')}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(own, f"{os.getpid()}\\n".encode())
for i in range(int(sys.argv[1])):
    time.sleep(0.02)
    step(samples=4, loss=5 - i / 100)
    os.write(own, f"{time.monotonic_ns()}\\n".encode())
"""
LAUNCHER = """
import os, subprocess, sys, time
ranks = [
    subprocess.Popen([sys.executable, *sys.argv[1:]], env=os.environ | {"RANK": rank}, start_new_session=True)
    for rank in "01"
]
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.05)
if any(rank.poll() for rank in ranks):  # as torchrun does
    for rank in ranks:
        rank.kill()
    sys.exit(1)
sys.exit(max(rank.wait() for rank in ranks))
"""


@dataclass(frozen=True)
class Case:
    """The end of one command: its record, if there is one, and the shares of its steps and joules that it has."""

    record: RunRecord | None
    code: int
    steps_share: float | None = None
    joules_share: float | None = None


def _twice(process: subprocess.Popen[str], _: int) -> None:
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)


def _as_timeout(process: subprocess.Popen[str], _: int) -> None:
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)


def _to(number: int, *, group: bool = False) -> Callable[[subprocess.Popen[str], int], None]:
    return lambda process, _: os.killpg(process.pid, number) if group else process.send_signal(number)


WAYS: dict[str, Callable[[subprocess.Popen[str], int], None]] = {
    "SIGTERM": _to(signal.SIGTERM),
    "SIGTERM twice": _twice,
    "SIGTERM by timeout": _as_timeout,
    "SIGINT": _to(signal.SIGINT),
    "Ctrl-C": _to(signal.SIGINT, group=True),
    "SIGHUP": _to(signal.SIGHUP),
    "terminal closed": _to(signal.SIGHUP, group=True),
    "SIGUSR1": _to(signal.SIGUSR1),
    "SIGUSR2": _to(signal.SIGUSR2),
    "kill -9 of bench": _to(signal.SIGKILL),
    "kill -9 of the script": lambda _, pid: os.kill(pid, signal.SIGKILL),
    "kill -9 of one of two ranks": lambda _, pid: os.kill(pid, signal.SIGKILL),
}


def _made(folder: Path, rank: int) -> list[int]:
    """Return the process id of a rank, and the times of the steps that it has made."""
    with contextlib.suppress(OSError):
        return [int(line) for line in (folder / f"made-{rank}").read_text().split("\n")[:-1]]
    return []


def ended(folder: Path, way: str, after: int, steps: int = STEPS, patience: float = 600) -> Case:
    """Run the script in an empty folder, end it in this way once it has made so many steps, and return what is left."""
    ranks = 2 if way.endswith("ranks") else 1
    (folder / "train.py").write_text(SCRIPT)
    (folder / "launch.py").write_text(LAUNCHER)
    script = [sys.executable, *(["launch.py"] if ranks > 1 else []), "train.py", str(steps)]
    command = [sys.executable, "-P", "-c", BENCH, "measure", "--no-store", "--idle-seconds", "0", "--", *script]
    variables = os.environ | environment(GPU)
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + patience
    while len(_made(folder, ranks - 1)) <= after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    WAYS[way](process, _made(folder, ranks - 1)[0])
    sent = time.monotonic_ns()
    _, text = process.communicate(timeout=patience)
    if way == "kill -9 of bench":
        with contextlib.suppress(ProcessLookupError):
            os.kill(_made(folder, 0)[0], signal.SIGKILL)
        synced = [*command[:3], BENCH, "sync", "--store", f"sqlite:///{folder}/mlflow.db"]
        subprocess.run(synced, cwd=folder, env=variables, check=True, capture_output=True, timeout=patience)
    found = list(folder.glob(f"{files.OWN_RUNS}/*/*/*/{files.RECORD.name}"))
    times = min((_made(folder, rank)[1:] for rank in range(ranks)), key=len)
    lost = "USR" in way and f"got {way}" not in text and times[-1] - sent > PASSED_NS
    if not found or lost:
        return Case(None, process.returncode)
    record = files.RECORD.read(found[0].parent)
    if way == "kill -9 of bench":
        times = [t for t in times if t <= sent]
    measured = record.measurement or record.partial
    if len(times) - WARMUP_STEPS < 2:
        return Case(record, process.returncode)
    if measured is None:
        return Case(record, process.returncode, 0.0, 0.0)
    joules = sum(reading.energy_joules for reading in record.energy)
    return Case(
        record,
        process.returncode,
        measured.steps / (len(times) - WARMUP_STEPS),
        joules / (WATTS * (times[-1] - measured.phases[0].start_ns) / 1e9),
    )


def _row(way: str, cases: Sequence[Case]) -> tuple[str, bool]:
    """Return a line about all ends of one way, and whether they are as they should be."""
    states = Counter(str(case.record.status) for case in cases if case.record is not None)
    steps = [case.steps_share for case in cases if case.steps_share is not None]
    joules = [case.joules_share for case in cases if case.joules_share is not None]
    good = sum(states.values()) == len(cases) and min([*steps, *joules], default=0.0) >= LEAST
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    figures = (
        f"{sum(states.values()):3}/{len(cases)}  {told:20} {min(steps, default=0):7.1%} {min(joules, default=0):8.1%}"
    )
    return f"{way:28} {figures}", good


def main() -> int:
    """Print the table; return 1 where a measurement is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--side-by-side", type=int, default=3)
    parser.add_argument("--only", choices=list(WAYS))
    options = parser.parse_args()
    all_good = bool(environment(GPU))  # its library is built once
    print(f"{'ended by':28} records  states            steps >=  joules >=")
    for way in [options.only] if options.only else WAYS:
        moments = [round(STEPS * (i + 0.5) / options.moments) for i in range(options.moments)]
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(options.side_by_side) as pool:
            folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in moments]
            cases = list(pool.map(ended, folders, [way] * len(moments), moments))
        line, good = _row(way, cases)
        all_good &= good
        print(line, flush=True)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
