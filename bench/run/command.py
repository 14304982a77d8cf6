"""Run a command of the user, and read its steps.

Steps come from `bench.steps` in the script or from `step_pattern`: a regular expression that matches one line of output at
the end of each step, with the optional groups `samples`, `tokens` and `loss`. Without steps the window is the whole command.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from bench.figures.metrics import STARTUP_PHASES
from bench.folder import COMMAND_STEPS, RESULT, STEPS, WORKER_LOG, RankError, write_error
from bench.process import die_with_parent, signal_name
from bench.record import Measurement, Phase, Rank
from bench.schema import RunSpec
from bench.steps import VARIABLE
from bench.workloads.command import fill

OWN_PHASES = (*STARTUP_PHASES, "probe", "steady", "tail")
"""Names of phases with a fixed meaning; a phase of the user with such a name becomes `user_...`."""
LONGEST_LINE = 65_536
OUTPUT = -1
"""Instead of a rank: steps read from the output. They count if no process reports steps itself."""
NO_MEMORY = re.compile("(CUDA|HIP) out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory")
"""What the log of a process says whose memory ran out."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, with its exit code (negative: the number of a signal), and which resources it used.

    `peak_memory_bytes` is that of the largest of its processes. The kernel includes the memory of this process at the start;
    if the peak is not above that, it is None.
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
    first: Callable[[], None] | None = None,
) -> Ended:
    """Run a command and wait for its end; its steps go to the file `steps`. Raises OSError if it cannot be started.

    Output goes to that of this process, or to `output`. With a `pattern` each line is searched on its way; lines that a
    progress bar overwrites count too.
    """
    env = {**(os.environ if environment is None else environment), VARIABLE: str(steps)}
    piped = subprocess.PIPE if pattern else output
    if pattern:
        env.setdefault("PYTHONUNBUFFERED", "1")  # otherwise lines arrive in batches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic_ns()
    process = subprocess.Popen(
        argv, cwd=folder, env=env, stdout=piped, stderr=subprocess.STDOUT if pattern else None, preexec_fn=first
    )
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
    """Pass the output on as it arrives, and write a step for each line that matches.

    Neither a closed reader nor a full disk ends the command.
    """
    assert process.stdout is not None  # noqa: S101  requested above
    unfinished = b""
    with process.stdout, steps.open("ab", buffering=0) as file:
        while chunk := os.read(process.stdout.fileno(), LONGEST_LINE):
            with suppress(OSError):
                output.write(chunk)
                output.flush()
            *lines, unfinished = re.split(rb"[\r\n]", unfinished + chunk)
            unfinished = unfinished[-LONGEST_LINE:]
            with suppress(OSError):
                for line in lines:
                    file.write(_step(pattern, line))
        with suppress(OSError):
            file.write(_step(pattern, unfinished))


def _step(pattern: re.Pattern[str], line: bytes) -> bytes:
    """Return the line of the steps file for a line of output; empty if it reports no step."""
    match = pattern.search(line.decode(errors="replace")) if line else None
    if match is None:
        return b""
    values = {name: value for name, text in match.groupdict().items() if (value := _number(text)) is not None}
    counts = {name: round(value) for name, value in values.items() if name != "loss"}
    return (json.dumps({"t_ns": time.monotonic_ns(), "rank": OUTPUT, **values, **counts}) + "\n").encode()


def _number(text: str | None) -> float | None:
    """Return the number in a text such as 1,234.5, or None: lines of two processes may be mixed."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def measurement(steps: Path, ended: Ended, warmup_steps: int, device_type: str) -> Measurement:
    """Return the measurement of a command that ended well: from its steps after `warmup_steps`, or as a whole without steps.

    Marks are the ends of steps, so the window begins at a mark. Evaluation and checkpoints inside it are phases of their
    own, unless steps end in them. A loss that is not finite is left out, so that a diverged run has no last loss.
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
    inside = [pause for pause in pauses if times[0] <= pause.start_ns and pause.end_ns <= times[-1]]
    breaks = [pause for pause in inside if bisect_right(times, pause.start_ns) == bisect_left(times, pause.end_ns)]
    lengths = [(b - a) / 1e9 - _overlap(breaks, a, b) for a, b in pairwise(times)]
    edges = {rank: (lines[0]["t_ns"], lines[-1]["t_ns"]) for rank, lines in chosen.items()}
    windows = {rank: (b - a) / 1e9 - _overlap(breaks, a, b) for rank, (a, b) in edges.items()}
    losses = [line["loss"] if math.isfinite(line["loss"]) else None for line in leader if "loss" in line]
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
        phases=_phases(ended, marks, times, breaks, [pause for pause in pauses if pause.start_ns >= times[-1]]),
    )


def _read(steps: Path) -> tuple[dict[int, list[dict[str, Any]]], list[Phase]]:
    """Return marks of steps by rank and the pauses of rank 0, both in order of time, without damaged lines."""
    marks: dict[int, list[dict[str, Any]]] = {}
    pauses: list[Phase] = []
    begun: dict[str, int] = {}
    lines = steps.read_text(errors="replace").splitlines() if steps.exists() else []
    for text in lines:
        try:
            line = json.loads(text)
            rank, t = int(line["rank"]), int(line["t_ns"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        name = _phase_name(line.get("phase", ""))
        if "phase" not in line:
            marks.setdefault(rank, []).append({"t_ns": t, **_numbers(line)})
        elif rank == 0 and line.get("begin"):
            begun[name] = t
        elif rank == 0 and name in begun:
            pauses.append(Phase(name=name, start_ns=begun.pop(name), end_ns=t))
    ordered = {rank: [at[t] for t in sorted(at)] for rank, ms in marks.items() if (at := {m["t_ns"]: m for m in ms})}
    printed = ordered.pop(OUTPUT, [])
    return ordered or ({0: printed} if printed else {}), _apart(pauses)


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a mark besides its time; only a loss may be NaN."""
    numbers = {name: line[name] for name in ("samples", "tokens", "loss") if type(line.get(name)) in (int, float)}
    return {name: n for name, n in numbers.items() if name == "loss" or (math.isfinite(n) and n >= 0)}


def _phase_name(name: Any) -> str:
    """Return the name of a phase of the user in a form that can be part of the name of a metric."""
    plain = re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")[:40] or "pause"
    return f"user_{plain}" if plain in OWN_PHASES else plain


def _apart(pauses: list[Phase]) -> list[Phase]:
    """Return pauses in order of time without overlap; a pause inside another one belongs to the outer one."""
    out: list[Phase] = []
    for pause in sorted(pauses, key=lambda pause: (pause.start_ns, -pause.end_ns)):
        start = max(pause.start_ns, out[-1].end_ns) if out else pause.start_ns
        if pause.end_ns > start:
            out.append(pause.changed(start_ns=start))
    return out


def _overlap(breaks: list[Phase], a: int, b: int) -> float:
    return sum(max(0, min(b, pause.end_ns) - max(a, pause.start_ns)) for pause in breaks) / 1e9


def _sum(chosen: dict[int, list[dict[str, Any]]], name: str) -> int | None:
    """Return the work of all ranks in the window; None if a step does not state it."""
    counts = [line.get(name) for lines in chosen.values() for line in lines[1:]]
    stated = [int(count) for count in counts if count is not None]
    return sum(stated) or None if len(stated) == len(counts) else None


def _phases(
    ended: Ended, marks: dict[int, list[dict[str, Any]]], times: list[int], breaks: list[Phase], later: list[Phase]
) -> list[Phase]:
    """Return `start` until the end of the first step, `warmup`, the window with its pauses, and what came after it."""
    first = min(lines[0]["t_ns"] for lines in marks.values())
    out = [Phase(name="start", start_ns=ended.start_ns, end_ns=first)]
    if first < times[0]:
        out.append(Phase(name="warmup", start_ns=first, end_ns=times[0]))
    begin = times[0]
    for pause in breaks:
        if pause.start_ns > begin:
            out.append(Phase(name="steady", start_ns=begin, end_ns=pause.start_ns))
        out.append(pause)
        begin = pause.end_ns
    if times[-1] > begin:
        out.append(Phase(name="steady", start_ns=begin, end_ns=times[-1]))
    for pause in later:
        out += [Phase(name="tail", start_ns=out[-1].end_ns, end_ns=pause.start_ns), pause]
    return out


def run(spec: RunSpec, folder: Path, environment: Mapping[str, str], here: Path) -> int:
    """Do one run of a suite: write `result.json` or what went wrong, and return the exit code."""
    steps, where = STEPS.path(folder, COMMAND_STEPS), here / str(spec.workload_args.get("folder") or ".")
    pattern = str(spec.workload_args.get("step_pattern") or "") or None
    try:
        ended = execute(
            fill(spec), steps, pattern=pattern, folder=str(where), environment=environment, first=die_with_parent
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
        result = measurement(STEPS.path(folder, COMMAND_STEPS), ended, spec.warmup_steps, spec.device_type)
        RESULT.write(folder, result)
    else:
        write_error(folder, failure_of(ended.exitcode, folder / WORKER_LOG))


def failure_of(exitcode: int, log: Path) -> RankError:
    """Describe how a command failed as a rank would; it is out of memory if the end of its log says so."""
    text = log.read_bytes()[-16_384:].decode(errors="replace") if log.exists() else ""
    how = f"exit code {exitcode}" if exitcode >= 0 else signal_name(-exitcode)
    if NO_MEMORY.search(text):
        return RankError(kind="out_of_memory", type="OutOfMemory", message=f"the command ran out of memory ({how})")
    return RankError(kind="failed", type="ExitCode", message=f"the command ended with {how}")
