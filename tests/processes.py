"""The command line in processes of its own, and what these leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from bench.record import RunRecord

SCALING = str(Path(__file__).parent.parent / "suites" / "scaling.yaml")
QUICK = ["--set", "device_type=cpu", "--set", "devices=[1, 2]", "--set", "precision=fp32", "--set", "measure_seconds=1"]
QUICK += ["--set", "workload_args.preset=tiny", "--region", "FR", "--price", "1"]
BENCH = [sys.executable, "-P", "-c", "from bench.cli import main; main()"]
PATIENCE = 600.0
"""Seconds after which a process hangs: far more than any takes, also on a machine with ten times the work."""


def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Return the end of a process, with its output as text."""
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": PATIENCE} | more)


def bench(folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Return the end of `bench ARGUMENTS` in a folder."""
    return run([*BENCH, *arguments], cwd=folder, **more)


def records(folder: Path) -> dict[str, RunRecord]:
    """Return the records below `folder`/runs by the name of their folder, in the order in which they were written."""
    paths = sorted(folder.glob("runs/*/*/*/record.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: RunRecord.model_validate_json(path.read_text()) for path in paths}


def processes_in(folder: Path) -> list[str]:
    """Return command lines of other processes whose working folder is below this one."""
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            other = entry.name.isdigit() and int(entry.name) != os.getpid()
            if other and (entry / "cwd").readlink().is_relative_to(folder):
                lines.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return lines


def with_variable(variable: str, value: str, *names: str) -> list[psutil.Process]:
    """Return the processes whose environment has `variable` as `value` and whose command line has one of the names."""
    out = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        with suppress(psutil.Error):  # it has ended, or it is another user's
            if any(name in line for name in names) and process.environ().get(variable) == value:
                out.append(process)
    return out


def youngest(processes: list[psutil.Process]) -> psutil.Process:
    """Return the process that started last; the system tells starts by 0.01 s, and two forks may share one."""
    return max(processes, key=lambda each: (each.create_time(), each.pid))


def gone(pid: int) -> bool:
    """Say whether a process has ended, also one for which nobody has waited; it may end while it is asked."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a value that counts as true and return it; a process that ends while it is asked counts as false.

    Raises AssertionError when the patience is over.
    """
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(psutil.NoSuchProcess):
            if value := condition():
                return value
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@contextmanager
def interrupted(number: int, condition: Callable[[], Any]) -> Iterator[None]:
    """Send a signal to this process, as Ctrl-C or `kill` do, as soon as a condition holds within the block."""
    over = threading.Event()

    def interrupt() -> None:
        until(lambda: condition() or over.is_set())
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        signal.signal(number, lambda *_: None)  # should it come late
        over.set()
        thread.join()
        signal.signal(number, before)


def _offline() -> list[str]:
    """Return the start of a command that runs where nothing but the loopback interface exists; [] where none may."""
    if shutil.which("unshare") is None or run(["unshare", "-rn", "true"]).returncode:
        return []
    up = "import fcntl, socket, struct, os, sys; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1)); "
    up += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return ["unshare", "-rn", sys.executable, "-c", up]


class Finished:
    """An execution of four runs, on one and two devices, by `bench run --json`, without a network where that is allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.offline, self.code, self.stdout, self.stderr = json.loads((folder / "process.json").read_text())

    @staticmethod
    def make(folder: Path) -> None:
        """Do the runs in a folder."""
        (folder / "temporary").mkdir()
        start, variables = _offline(), os.environ | {"TMPDIR": str(folder / "temporary")}
        bench = [*start, *BENCH[1:]] if start else BENCH
        done = run([*bench, "run", SCALING, *QUICK, "--set", "repeats=2", "--json"], cwd=folder, env=variables)
        (folder / "process.json").write_text(json.dumps([bool(start), done.returncode, done.stdout, done.stderr]))
