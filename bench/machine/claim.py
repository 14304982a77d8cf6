"""Locks on devices: each worker of a search holds its devices, so that no worker disturbs another."""

from __future__ import annotations

import os
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path

from bench.files import Busy, held
from bench.schema import Machine, RunSpec


def _folder() -> Path:
    """Return the folder of this user's lock files on this host; it does not depend on the folder of runs. Raises Busy."""
    usual = f"{tempfile.gettempdir()}/wattbench-{os.getuid()}-{os.uname().nodename}"
    folder = Path(os.environ.get("WATTBENCH_LOCKS", usual))
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Busy(f"{folder}, the folder for locks on devices, must be writable by you alone; remove it")
    return folder


@contextmanager
def claim(machine: Machine, runs: Iterable[RunSpec]) -> Iterator[None]:
    """Hold the devices of runs until the context ends: the free GPUs, or the processors of this process if no run uses GPUs.

    Each device has a lock file, which the kernel releases however the process ends. Raises Busy if another process of this
    user holds one of them; then nothing is held.
    """
    if gpus := bool(machine.gpus) and any(spec.device_type == "gpu" for spec in runs):
        names = {gpu.index: gpu.uuid for gpu in machine.free_gpus}
    else:
        names = {number: f"cpu{number}" for number in sorted(os.sched_getaffinity(0))}
    folder = _folder()
    taken: dict[str, list[int]] = defaultdict(list)
    with ExitStack() as stack:
        with held(
            folder / "claim"
        ):  # one process claims at a time, so that two which want the same devices do not both fail
            for number, name in names.items():
                path = folder / name
                try:
                    stack.enter_context(held(path, f"{name} is held"))
                except Busy:
                    taken[path.read_text().strip()].append(number)
        if taken:
            raise Busy(_why(taken, names, gpus=gpus))
        yield


def _why(taken: dict[str, list[int]], devices: Iterable[int], *, gpus: bool) -> str:
    """Say which of the devices are held by which process, and what to do."""
    kind, option = ("GPUs", "--gpus") if gpus else ("processors", "taskset -c")
    holders = "; ".join(f"{_listed(numbers)} by process {process}" for process, numbers in taken.items())
    free = sorted(set(devices) - {number for numbers in taken.values() for number in numbers})
    numbers = ",".join(map(str, free)) if gpus else _listed(free)
    remedy = f"use the free ones ({option} {numbers})" if free else f"give each worker its own ({option} ...)"
    return f"{kind} are held by another search or worker: {holders}\n{remedy}, or wait until it has ended"


def _listed(numbers: Iterable[int]) -> str:
    """Write sorted numbers as `0-3,8`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
