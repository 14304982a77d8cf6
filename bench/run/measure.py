"""Measure one command as it is: time, energy by component, carbon, cost, memory. Its record is like that of any run."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from bench import folder as files
from bench.machine.environment import EnvironmentProblem, describe
from bench.meters import windows as accounting
from bench.meters.sidecar import Sidecar
from bench.process import adopt_orphans
from bench.record import RunRecord
from bench.redact import redact
from bench.run.collect import Context, collect
from bench.run.command import execute, leave
from bench.schema import COMMAND, MEASURE, Machine, RunSpec, Site


@dataclass(frozen=True)
class Request:
    """What to measure and how. `pattern` finds steps in the output, `output` takes it where not the terminal."""

    argv: list[str]
    meters: Sequence[str] = ("nvml", "rapl", "codecarbon")
    site: Site = field(default_factory=Site)
    warmup_steps: int = 3
    idle_seconds: float = 3.0
    pattern: str | None = None
    output: IO[bytes] | None = None


def _gpus(machine: Machine) -> list[str]:
    return [gpu.uuid for gpu in machine.gpus if not gpu.used_by]


def specification(request: Request, machine: Machine) -> RunSpec:
    """Describe the command as a run: on all GPUs that are visible and not used by others, or one process of the CPU."""
    text = redact(shlex.join(request.argv)).replace("{", "{{").replace("}", "}}")
    return RunSpec(
        workload=COMMAND,
        workload_args={"argv": text} | ({"step_pattern": request.pattern} if request.pattern else {}),
        device_type="cuda" if _gpus(machine) else "cpu",
        devices_per_node=max(1, len(_gpus(machine))),
        warmup_steps=request.warmup_steps,
        meters=list(request.meters),
        timeout_seconds=2_000_000,
    )


def measure(request: Request, machine: Machine, runs: Path) -> tuple[RunRecord, Path]:
    """Run the command, with the terminal's input and output, and return its record and its folder.

    Raises FileNotFoundError or PermissionError where the command cannot be started, EnvironmentProblem where nothing can
    be kept.
    """
    adopt_orphans()
    environment, spec = describe(machine), specification(request, machine)
    gpus = _gpus(machine)
    now = datetime.now(UTC)
    execution = runs.absolute() / MEASURE / f"{now:%Y%m%dT%H%M%S.%fZ}-{environment.fingerprint}"
    folder = execution / spec.run_id
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        raise EnvironmentProblem(
            f"{execution} cannot be made ({problem.strerror}); name another folder with --runs"
        ) from problem
    files.SPEC.write(folder, spec)
    sidecar = Sidecar(request.meters, gpus).start() if request.meters else None
    try:
        if sidecar is not None:
            _ready(sidecar, request.idle_seconds, execution)
            sidecar.open(files.RAW_METERS.path(folder, 0))
        end = _execute(request, spec, folder)
    finally:
        if sidecar is not None:
            sidecar.close()
            sidecar.stop()
    if isinstance(end, OSError):
        raise end
    files.EXIT.write(folder, end.changed(sidecar_error=sidecar.error if sidecar is not None else None))
    context = Context(MEASURE, execution.name, request.site, environment, gpus)
    return collect(context, spec, folder), folder


def _ready(sidecar: Sidecar, idle_seconds: float, execution: Path) -> None:
    """Wait for a meter that is still starting where there is no other, and measure idle power where it can be."""
    hardware = {"nvml", "rapl"} & set(sidecar.live)
    if sidecar.starting and "nvml" not in hardware:  # nothing else could say anything, or its start is work for the CPU
        sidecar.wait(accounting.CODECARBON_SECONDS)
    if hardware and idle_seconds:
        sidecar.open(execution / files.IDLE_TRACE)
        start = time.monotonic_ns()
        time.sleep(idle_seconds)
        files.IDLE_TIMES.write(execution, files.IdleTimes(idle=(start, time.monotonic_ns())))


def _execute(request: Request, spec: RunSpec, folder: Path) -> files.Exit | OSError:
    """Run the command; Ctrl-C and SIGTERM are for it, and this process waits for its end."""
    steps, started = files.STEPS.path(folder, files.COMMAND_STEPS), datetime.now(UTC)
    interrupt, terminate = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))

    def forward(process: subprocess.Popen[bytes]) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal has sent it to the command too
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))

    try:
        ended = execute(request.argv, steps, pattern=request.pattern, output=request.output, started=forward)
    except OSError as error:
        return error
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    leave(spec, ended, folder)
    return files.Exit(
        how="ended", exitcode=ended.exitcode, start_ns=ended.start_ns, end_ns=ended.end_ns, started_at=started
    )
