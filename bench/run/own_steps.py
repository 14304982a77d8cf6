"""The measurement of a command of the user: its steps, wherever they come from, become a window with work and phases."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from bench.figures.flags import loss_medians
from bench.figures.metrics import STARTUP_PHASES
from bench.record import Measurement, Phase, Rank
from bench.workloads.printed import OUTPUT, Printed
from bench.workloads.printed import count as count_printed

OWN_PHASES = (*STARTUP_PHASES, "probe", "steady", "tail")
"""Names of phases with a fixed meaning; a phase of the user with such a name becomes `user_...`."""


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


def measurement(
    steps: Path, ended: Ended, warmup_steps: int, device_type: str, how: Printed | None = None
) -> Measurement:
    """Return the measurement of a command that ended well: from its steps after `warmup_steps`, or as a whole without steps.

    `how` says how it prints steps; those that it reports by `bench.steps` go before them. Marks are the ends of steps, so
    the window begins at a mark. Evaluation and checkpoints inside it are phases of their own, unless steps end in them. A
    loss that is not finite is left out, so that a diverged run has no last loss.
    """
    marks, pauses, flags = _read(steps, how)
    peak = [ended.peak_memory_bytes] if device_type == "cpu" and ended.peak_memory_bytes else []
    count = min((len(lines) for lines in marks.values()), default=0)
    done = accumulate(line.get("steps", 1) for line in next(iter(marks.values()), []))
    first = next(
        (index for index, steps_ in enumerate(done) if steps_ >= warmup_steps), count
    )  # the window begins there
    whole = Phase(name="steady", start_ns=ended.start_ns, end_ns=ended.end_ns)
    cpu = Rank(rank=0, window_seconds=whole.seconds, cpu_seconds=ended.cpu_seconds)
    without = Measurement(
        window_seconds=whole.seconds, phases=[whole], peak_memory_bytes=peak, ranks=[cpu], step_flags=flags
    )
    if count < first + 2:
        return without
    chosen = {rank: lines[first:count] for rank, lines in sorted(marks.items())}
    leader = next(iter(chosen.values()))
    times = [line["t_ns"] for line in leader]
    inside = [pause for pause in pauses if times[0] <= pause.start_ns and pause.end_ns <= times[-1]]
    breaks = [pause for pause in inside if bisect_right(times, pause.start_ns) == bisect_left(times, pause.end_ns)]
    counts = [line.get("steps", 1) for line in leader[1:]]
    spans = ((b - a) / 1e9 - _overlap(breaks, a, b) for a, b in pairwise(times))
    lengths = [span / steps_ for span, steps_ in zip(spans, counts, strict=True) if steps_]
    edges = {rank: (lines[0]["t_ns"], lines[-1]["t_ns"]) for rank, lines in chosen.items()}
    windows = {rank: (b - a) / 1e9 - _overlap(breaks, a, b) for rank, (a, b) in edges.items()}
    if min(windows.values()) <= 0:  # all of it arrived at once
        return without
    losses = [line["loss"] if math.isfinite(line["loss"]) else None for line in leader if "loss" in line]
    return Measurement(
        step_seconds=[] if "output_in_blocks" in flags or min(lengths, default=0) <= 0 else lengths,
        step_flags=flags,
        window_seconds=max(windows.values()),
        steps=sum(counts),
        samples=_sum(chosen, "samples"),
        tokens=_sum(chosen, "tokens"),
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        loss_medians=loss_medians(known) if (known := [loss for loss in losses if loss is not None]) else None,
        peak_memory_bytes=peak,
        ranks=[Rank(rank=rank, window_seconds=seconds) for rank, seconds in windows.items()],
        phases=_phases(ended, marks, times, breaks, [pause for pause in pauses if pause.start_ns >= times[-1]]),
    )


def _read(steps: Path, how: Printed | None) -> tuple[dict[int, list[dict[str, Any]]], list[Phase], list[str]]:
    """Return marks of steps by rank, the pauses of rank 0, both in order of time, and flags, without damaged lines."""
    lines_printed: list[dict[str, Any]] = []
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
        if rank == OUTPUT:
            lines_printed.append(line)
        elif "phase" not in line:
            marks.setdefault(rank, []).append({"t_ns": t, **_numbers(line)})
        elif rank == 0 and line.get("begin"):
            begun[name] = t
        elif rank == 0 and name in begun:
            pauses.append(Phase(name=name, start_ns=begun.pop(name), end_ns=t))
    ordered = {rank: [at[t] for t in sorted(at)] for rank, ms in marks.items() if (at := {m["t_ns"]: m for m in ms})}
    if ordered or how is None:
        return ordered, _apart(pauses), []
    counted = count_printed(lines_printed, how)
    return {0: counted.marks} if counted.marks else {}, _apart([*pauses, *counted.breaks]), counted.flags


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
    stated = [count for count in counts if count is not None]
    return round(sum(stated)) or None if len(stated) == len(counts) else None


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
