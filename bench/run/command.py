"""Run a command of the user, and read its steps.

Steps come from `bench.steps` in the script or from `step_pattern`, a regular expression for the lines that it prints
(`bench.workloads.printed`). Without steps the window is the whole command.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from bench.folder import COMMAND_STEPS, RESULT, STEPS, WORKER_LOG, RankError, write_error
from bench.process import die_with_parent, signal_name
from bench.run.own_steps import Ended, measurement
from bench.schema import RunSpec
from bench.steps import VARIABLE
from bench.workloads.command import fill, printed
from bench.workloads.printed import LONGEST_LINE, Printed, Reader

NO_MEMORY = re.compile("(CUDA|HIP) out of memory|OutOfMemoryError|BLAS_STATUS_ALLOC_FAILED|can't allocate memory")
"""What the log of a process says whose memory ran out."""


def execute(
    argv: list[str],
    steps: Path,
    *,
    how: Printed | None = None,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    first: Callable[[], None] | None = None,
) -> Ended:
    """Run a command and wait for its end; its steps go to the file `steps`. Raises OSError if it cannot be started.

    Output goes to that of this process, or to `output`. Where it prints its steps, each line is searched on its way;
    lines that a progress bar overwrites count too.
    """
    env = {**(os.environ if environment is None else environment), VARIABLE: str(steps)}
    piped = subprocess.PIPE if how else output
    if how:
        env.setdefault("PYTHONUNBUFFERED", "1")  # otherwise lines arrive in batches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic_ns()
    process = subprocess.Popen(
        argv, cwd=folder, env=env, stdout=piped, stderr=subprocess.STDOUT if how else None, preexec_fn=first
    )
    started(process)
    if how:
        _watch(process, Reader(how.pattern), steps, output or sys.stdout.buffer)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(
        exitcode=process.returncode,
        start_ns=start,
        end_ns=time.monotonic_ns(),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024 if usage.ru_maxrss > before else None,
    )


def _watch(process: subprocess.Popen[bytes], reader: Reader, steps: Path, output: IO[bytes]) -> None:
    """Pass the output on as it arrives, and write a line for each one that matches.

    Neither a closed reader nor a full disk ends the command.
    """
    assert process.stdout is not None  # noqa: S101  requested above
    with process.stdout, steps.open("ab", buffering=0) as file:
        while chunk := os.read(process.stdout.fileno(), LONGEST_LINE):
            with suppress(OSError):
                output.write(chunk)
                output.flush()
            with suppress(OSError):
                file.writelines(reader.read(chunk))
        with suppress(OSError):
            file.writelines(reader.read(b""))


def run(spec: RunSpec, folder: Path, environment: Mapping[str, str], here: Path) -> int:
    """Do one run of a suite: write `result.json` or what went wrong, and return the exit code."""
    steps, where = STEPS.path(folder, COMMAND_STEPS), here / str(spec.workload_args.get("folder") or ".")
    try:
        ended = execute(
            fill(spec), steps, how=printed(spec), folder=str(where), environment=environment, first=die_with_parent
        )
    except OSError as error:
        message = f"the command cannot be started: {error}"
        write_error(folder, RankError(kind="failed", type=type(error).__name__, message=message))
        return 1
    leave(spec, ended, folder)
    return 0 if ended.exitcode == 0 else 1


def leave(spec: RunSpec, ended: Ended, folder: Path) -> None:
    """Write `result.json` of a command that has ended, or how it failed."""
    if ended.exitcode == 0:
        steps, how = STEPS.path(folder, COMMAND_STEPS), printed(spec)
        result = measurement(steps, ended, spec.warmup_steps, spec.device_type, how)
        if how is not None and _several_nodes(fill(spec)):
            result = result.changed(samples=None, tokens=None, step_flags=[*result.step_flags, "partial_world"])
        RESULT.write(folder, result)
    else:
        write_error(folder, failure_of(ended.exitcode, folder / WORKER_LOG))


def _several_nodes(argv: Sequence[str]) -> bool:
    """Return whether a command line starts one of several nodes, whose script counts the work of all of them."""
    option = r"--(?:nnodes|num[-_]machines|num[-_]nodes|nodes)[= ]|\bsrun (?:\S+ )*?-N ?"
    found = re.finditer(rf"(?:{option})(?:\d+[:-])?(\d+)", " ".join(argv))
    return any(int(number[1]) > 1 for number in found)


def failure_of(exitcode: int, log: Path) -> RankError:
    """Describe how a command failed as a rank would; it is out of memory if the end of its log says so."""
    text = log.read_bytes()[-16_384:].decode(errors="replace") if log.exists() else ""
    how = f"exit code {exitcode}" if exitcode >= 0 else signal_name(-exitcode)
    if NO_MEMORY.search(text):
        return RankError(kind="out_of_memory", type="OutOfMemory", message=f"the command ran out of memory ({how})")
    return RankError(kind="failed", type="ExitCode", message=f"the command ended with {how}")
