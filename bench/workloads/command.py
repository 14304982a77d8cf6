"""The user's own command as a workload: any program, unchanged, over the devices and settings of a suite.

`argv` is split as a shell would, then `{name}` in it stands for a field of the run or for an argument of the suite's own:

    workload: command
    workload_args.argv: torchrun --nproc-per-node={devices} train.py --precision {precision} --layers {layers}
    workload_args.layers: 12

Steps come from `bench.steps` in the script, or from `step_pattern`, a regular expression that one line of output matches at
the end of each step, with the groups `samples`, `tokens`, `loss` as far as there are any. Without steps the window is the
whole command.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, field_validator

from bench.files import write_json, write_text
from bench.metrics import parameters
from bench.registry import did_you_mean
from bench.schema import Measurement, Phase, Rank, RunSpec
from bench.steps import VARIABLE

STEPS_FILE = "steps-command.jsonl"
OUTPUT = -1
"""In place of a rank: steps that were found in the output, which count where no process tells of its own."""
NO_MEMORY = (
    "CUDA out of memory",
    "OutOfMemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate",
)


class CommandArgs(BaseModel):
    """Arguments of the workload: the three below, and any of the user's own, for `{name}` in `argv`.

    `folder` is where the command runs, if not where `bench` was typed.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    argv: str
    step_pattern: str | None = None
    folder: str | None = None

    @field_validator("argv")
    @classmethod
    def _can_be_split(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("argv is empty: give a command")
        return value

    @field_validator("step_pattern")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            known = set(re.compile(value or "").groupindex)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if known - {"samples", "tokens", "loss"}:
            raise ValueError(f"groups are samples, tokens and loss, not {', '.join(sorted(known))}")
        return value


class Command:
    """The workload; it builds nothing, `execute` runs it."""

    Args = CommandArgs
    modules = ()

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the command cannot be put together."""
        fill(spec)


def fill(spec: RunSpec) -> list[str]:
    """Return the argument vector of a run. Raises ValueError for a `{name}` that is not there."""
    values = {**parameters(spec), **{name.partition(".")[2]: v for name, v in parameters(spec).items() if "." in name}}
    own = {"argv", "step_pattern", "folder"}
    try:
        words = shlex.split(str(spec.workload_args["argv"]))
        return [word.format_map({k: v for k, v in values.items() if k not in own}) for word in words]
    except KeyError as error:
        raise ValueError(
            f"argv: {{{error.args[0]}}} is not known; {did_you_mean(str(error.args[0]), set(values) - own)}"
        ) from error
    except (IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"argv: {error}; write {{{{ and }}}} for braces that are meant") from error


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the number of a signal), and what it took.

    `peak_memory_bytes` is that of the largest of its processes; None where that is not above what this process had when
    it started the command, as the kernel counts that in.
    """

    exitcode: int
    start_ns: int
    end_ns: int
    cpu_seconds: float
    peak_memory_bytes: int | None


def execute(
    argv: list[str],
    steps: Path,
    *,
    pattern: str | None = None,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> Ended:
    """Run a command to its end, blocking; its steps go into the file `steps`. Raises OSError where it cannot be started.

    Output goes where this process's does, or to `output`; with a `pattern` it is looked at on its way.
    """
    env = {**(os.environ if environment is None else environment), VARIABLE: str(steps)}
    piped = subprocess.PIPE if pattern else output
    if pattern:
        env.setdefault("PYTHONUNBUFFERED", "1")  # or lines would come in bunches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic_ns()
    process = subprocess.Popen(argv, cwd=folder, env=env, stdout=piped, stderr=subprocess.STDOUT if pattern else None)
    started(process)
    if pattern:
        _watch(process, re.compile(pattern), steps, output or sys.stdout.buffer)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(
        exitcode=process.returncode,
        start_ns=start,
        end_ns=time.monotonic_ns(),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024 if usage.ru_maxrss > before else None,
    )


def _watch(process: subprocess.Popen[bytes], pattern: re.Pattern[str], steps: Path, output: IO[bytes]) -> None:
    """Pass the output on, and note a step for each line that matches."""
    assert process.stdout is not None  # noqa: S101  asked for above
    with process.stdout, steps.open("a") as file:
        for line in process.stdout:
            output.write(line)
            output.flush()
            match = pattern.search(line.decode(errors="replace"))
            if match is None:
                continue
            found = {name: value for name, text in match.groupdict().items() if (value := _number(text)) is not None}
            counts = {name: round(value) for name, value in found.items() if name != "loss"}
            file.write(json.dumps({"t_ns": time.monotonic_ns(), "rank": OUTPUT, **found, **counts}) + "\n")


def _number(text: str | None) -> float | None:
    """Return the number in a text such as 1,234.5; None where it is none: lines of two processes may have run into one."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def measurement(steps: Path, ended: Ended, warmup_steps: int, device_type: str) -> Measurement:
    """What a command that ended well tells of itself: from its steps less `warmup_steps`, or as a whole if there are none.

    The marks are ends of steps, so the window begins with one; evaluation and checkpoints in it are phases of their own.
    """
    marks, pauses = _read(steps)
    peak = [ended.peak_memory_bytes] if device_type == "cpu" and ended.peak_memory_bytes else []
    count = min((len(lines) for lines in marks.values()), default=0)
    first = max(warmup_steps, 1) - 1  # the mark where the window begins
    if count < first + 2:
        whole = Phase(name="steady", start_ns=ended.start_ns, end_ns=ended.end_ns)
        seconds = whole.seconds
        cpu = Rank(rank=0, window_seconds=seconds, cpu_seconds=ended.cpu_seconds)
        return Measurement(window_seconds=seconds, phases=[whole], peak_memory_bytes=peak, ranks=[cpu])
    chosen = {rank: lines[first:count] for rank, lines in sorted(marks.items())}
    leader = next(iter(chosen.values()))
    times = [line["t_ns"] for line in leader]
    breaks = [pause for pause in pauses if times[0] <= pause.start_ns and pause.end_ns <= times[-1]]
    lengths = [(b - a) / 1e9 - _overlap(breaks, a, b) for a, b in pairwise(times)]
    paused = _overlap(breaks, times[0], times[-1])
    windows = {rank: (lines[-1]["t_ns"] - lines[0]["t_ns"]) / 1e9 - paused for rank, lines in chosen.items()}
    losses = [line["loss"] for line in leader if line.get("loss") is not None]
    return Measurement(
        step_seconds=lengths,
        window_seconds=max(windows.values()),
        steps=len(lengths),
        samples=_sum(chosen, "samples"),
        tokens=_sum(chosen, "tokens"),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        peak_memory_bytes=peak,
        ranks=[Rank(rank=rank, window_seconds=seconds) for rank, seconds in windows.items()],
        phases=_phases(ended, marks, times, breaks),
    )


def _read(steps: Path) -> tuple[dict[int, list[dict[str, Any]]], list[Phase]]:
    """Marks of steps by rank, and the pauses of the first rank; damaged lines are left out."""
    marks: dict[int, list[dict[str, Any]]] = {}
    pauses: list[Phase] = []
    begun: dict[str, int] = {}
    lines = steps.read_text(errors="replace").splitlines() if steps.exists() else []
    for text in lines:
        try:
            line = json.loads(text)
            rank, t = int(line["rank"]), int(line["t_ns"])
        except (ValueError, KeyError, TypeError):
            continue
        if "phase" not in line:
            marks.setdefault(rank, []).append(line)
        elif rank == 0 and line.get("begin"):
            begun[str(line["phase"])] = t
        elif rank == 0 and str(line["phase"]) in begun:
            pauses.append(Phase(name=str(line["phase"]), start_ns=begun.pop(str(line["phase"])), end_ns=t))
    found = marks.pop(OUTPUT, [])
    return marks or ({0: found} if found else {}), pauses


def _overlap(breaks: list[Phase], a: int, b: int) -> float:
    return sum(max(0, min(b, pause.end_ns) - max(a, pause.start_ns)) for pause in breaks) / 1e9


def _sum(chosen: dict[int, list[dict[str, Any]]], name: str) -> int | None:
    """Work of all ranks in the window; None where a step does not say."""
    counts = [line.get(name) for lines in chosen.values() for line in lines[1:]]
    known = [int(count) for count in counts if count is not None]
    return sum(known) or None if len(known) == len(counts) else None


def _phases(ended: Ended, marks: dict[int, list[dict[str, Any]]], times: list[int], breaks: list[Phase]) -> list[Phase]:
    """`start` until the first step has ended, `warmup`, and the window cut by its pauses."""
    first = min(lines[0]["t_ns"] for lines in marks.values())
    out = [Phase(name="start", start_ns=ended.start_ns, end_ns=first)]
    if first < times[0]:
        out.append(Phase(name="warmup", start_ns=first, end_ns=times[0]))
    begin = times[0]
    for pause in sorted(breaks, key=lambda pause: pause.start_ns):
        if pause.start_ns > begin:
            out.append(Phase(name="steady", start_ns=begin, end_ns=pause.start_ns))
        out.append(pause)
        begin = pause.end_ns
    return [*out, Phase(name="steady", start_ns=begin, end_ns=times[-1])] if times[-1] > begin else out


def run(spec: RunSpec, folder: Path, environment: Mapping[str, str], here: Path) -> int:
    """Do one run of a suite: execute, write `result.json` or what went wrong; return the exit code."""
    steps, where = folder / STEPS_FILE, here / str(spec.workload_args.get("folder") or ".")
    pattern = spec.workload_args.get("step_pattern")
    try:
        ended = execute(
            fill(spec), steps, pattern=str(pattern) if pattern else None, folder=str(where), environment=environment
        )
    except OSError as error:
        failure = {"kind": "failed", "type": type(error).__name__, "message": f"the command cannot be started: {error}"}
        write_json(folder / "error-0.json", failure | {"rank": 0})
        return 1
    if ended.exitcode == 0:
        result = measurement(steps, ended, spec.warmup_steps, spec.device_type)
        write_text(folder / "result.json", result.model_dump_json(indent=1) + "\n")
    else:
        write_json(folder / "error-0.json", failure_of(ended.exitcode, folder / "worker.log"))
    return 0 if ended.exitcode == 0 else 1


def failure_of(exitcode: int, log: Path) -> dict[str, Any]:
    """How a command failed, as a rank would tell it; out of memory where the end of its log says so."""
    text = log.read_bytes()[-16_384:].decode(errors="replace") if log.exists() else ""
    how = f"exit code {exitcode}" if exitcode >= 0 else f"signal {signal.Signals(-exitcode).name}"
    if any(word in text for word in NO_MEMORY):
        return {
            "kind": "out_of_memory",
            "type": "OutOfMemory",
            "message": f"the command ran out of memory ({how})",
            "rank": 0,
        }
    return {"kind": "failed", "type": "ExitCode", "message": f"the command ended with {how}", "rank": 0}
