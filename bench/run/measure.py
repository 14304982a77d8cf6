"""Measure one command: time, energy by component, carbon, cost, memory. Its record is like that of any run."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from bench import folder as files
from bench.errors import BadValue, UserError
from bench.machine.environment import EnvironmentProblem, describe
from bench.meters import windows as accounting
from bench.meters.sidecar import Sidecar
from bench.process import adopt_orphans
from bench.record import RunRecord
from bench.redact import redact_argv
from bench.run.collect import Context, collect
from bench.run.command import execute, leave
from bench.schema import COMMAND, MEASURE, Machine, RunSpec, Site
from bench.workloads.command import printed
from bench.workloads.printed import check_pattern

EXIT_CODES: dict[type[OSError], int] = {FileNotFoundError: 127, PermissionError: 126}
"""Exit codes of a shell for a command that it cannot start."""


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure, and how. `printed` says how it prints its steps. Output goes to `output`, or else to the terminal."""

    argv: list[str]
    meters: Sequence[str] | None = None
    site: Site = field(default_factory=Site)
    warmup_steps: int = 3
    idle_seconds: float = 3.0
    printed: Mapping[str, str | int] = field(default_factory=dict)
    output: IO[bytes] | None = None


def step_pattern(text: str) -> str:
    """Return a step pattern as it was given. Raises BadValue where it cannot be one."""
    try:
        return check_pattern(text)
    except ValueError as error:
        raise BadValue(f"{text!r}: {error}") from error


def _gpus(machine: Machine) -> list[str]:
    return [gpu.uuid for gpu in machine.gpus if not gpu.used_by]


def specification(options: MeasureOptions, machine: Machine) -> RunSpec:
    """Describe the command as a run on all visible GPUs that others do not use, or as one process of the CPU."""
    text = shlex.join(redact_argv(options.argv)).replace("{", "{{").replace("}", "}}")
    return RunSpec(
        workload=COMMAND,
        workload_args={"argv": text, **options.printed},
        device_type="gpu" if _gpus(machine) else "cpu",
        devices_per_node=max(1, len(_gpus(machine))),
        warmup_steps=options.warmup_steps,
        meters=machine.meters if options.meters is None else list(options.meters),
        timeout_seconds=2_000_000,
    )


def measure(options: MeasureOptions, machine: Machine, runs: Path) -> tuple[RunRecord, Path]:
    """Run the command with the input and output of the terminal; return its record and its folder.

    Raises UserError with the exit code of a shell where the command cannot be started, and EnvironmentProblem where its
    record cannot be written.
    """
    adopt_orphans()
    environment, spec = describe(machine), specification(options, machine)
    gpus = _gpus(machine)
    now = datetime.now(UTC)
    execution = runs.absolute() / MEASURE / f"{now:%Y%m%dT%H%M%S.%fZ}-{environment.fingerprint}"
    folder = execution / spec.run_id
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot make the folder {execution} ({problem.strerror}); choose another one with --runs"
        ) from problem
    files.SPEC.write(folder, spec)
    sidecar = Sidecar(spec.meters, gpus).start() if spec.meters else None
    try:
        if sidecar is not None:
            _ready(sidecar, options.idle_seconds, execution)
            sidecar.open(files.RAW_METERS.path(folder, 0))
        end = _execute(options, spec, folder)
    finally:
        if sidecar is not None:
            sidecar.close()
            sidecar.stop()
    if isinstance(end, OSError):
        if type(end) not in EXIT_CODES:
            raise end
        raise UserError(f"cannot start {options.argv[0]}: {end.strerror}", code=EXIT_CODES[type(end)]) from end
    files.EXIT.write(folder, end.changed(sidecar_error=sidecar.error if sidecar is not None else None))
    context = Context(MEASURE, execution.name, options.site, environment, gpus)
    return collect(context, spec, folder), folder


def _ready(sidecar: Sidecar, idle_seconds: float, execution: Path) -> None:
    """Wait for a meter that is still starting if there is no other, and measure idle power if hardware can be read."""
    hardware = sidecar.measured
    if sidecar.starting and "gpu" not in hardware:  # there is no other meter, or its start is work for the measured CPU
        sidecar.wait(accounting.CODECARBON_SECONDS)
    if hardware and idle_seconds:
        sidecar.open(execution / files.IDLE_TRACE)
        start = time.monotonic_ns()
        time.sleep(idle_seconds)
        files.IDLE_TIMES.write(execution, files.IdleTimes(idle=(start, time.monotonic_ns())))


def _execute(options: MeasureOptions, spec: RunSpec, folder: Path) -> files.Exit | OSError:
    """Run the command; Ctrl-C and SIGTERM go to it, and this process waits for its end."""
    steps, started = files.STEPS.path(folder, files.COMMAND_STEPS), datetime.now(UTC)
    interrupt, terminate = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))

    def forward(process: subprocess.Popen[bytes]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))

    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the command, too
    try:
        ended = execute(options.argv, steps, how=printed(spec), output=options.output, started=forward)
    except OSError as error:
        return error
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    leave(spec, ended, folder)
    return files.Exit(
        how="ended", exitcode=ended.exitcode, start_ns=ended.start_ns, end_ns=ended.end_ns, started_at=started
    )
