"""The measurement of a command of the user: its steps, wherever they come from, become a window with work and phases."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from bench.figures.flags import loss_medians
from bench.figures.metrics import STARTUP_PHASES
from bench.record import Measurement, Phase, Rank
from bench.run.seen import SeenSteps, seen_steps
from bench.workloads.counted import Counted
from bench.workloads.counted import count as count_printed
from bench.workloads.printed import OUTPUT, Printed

OWN_PHASES = (*STARTUP_PHASES, "probe", "steady", "tail")
"""Names of phases with a fixed meaning; a phase of the user with such a name becomes `user_...`."""
DIFFERENCE = 0.02
"""Relative difference by which two sources of steps or samples may differ."""
MUCH = 0.2
"""Share of the time between steps above which it is told that evaluation is left out."""
TIMES_SUM = 0.05
"""Share of a window by which the sum of the script's own times of steps may differ from it."""
OF_PROCESSES = ("partial_world", "this_node_only", "separate_trainings")
"""Flags of hooks that hold whatever the source of steps is."""
LEAST_STEPS = 2
"""A command that was ended before its time is measured by at least so many steps after its warm-up."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, with its exit code (negative: the number of a signal), and which resources it used.

    `by` says who ended it before its time: a `limit`, or somebody's `signal`, whose name is `signal`. `peak_memory_bytes` is
    that of the largest of its processes. The kernel includes the memory of this process at the start; if the peak is not
    above that, it is None. `killed_for_memory`: it failed while the kernel ended some process for lack of memory. `tail` is
    the end of its output, where that was read.
    """

    exitcode: int
    start_ns: int
    end_ns: int
    cpu_seconds: float
    peak_memory_bytes: int | None = None
    by: Literal["limit", "signal"] | None = None
    signal: str = ""
    killed_for_memory: bool = False
    tail: bytes = b""


@dataclass(frozen=True)
class _Source:
    """Steps from one source: marks by rank and the pauses of rank 0, both in order of time, and flags of the marks."""

    name: Literal["script", "hooks", "output"]
    marks: dict[int, list[dict[str, Any]]]
    pauses: list[Phase]
    flags: list[str]

    def until(self, end_ns: int) -> _Source:
        """Return the steps that ended before the command did: a process of its own may have outlived it."""
        marks = {rank: before for rank, ms in self.marks.items() if (before := [m for m in ms if m["t_ns"] <= end_ns])}
        return replace(self, marks=marks)


def measurement(
    steps: Path, ended: Ended, warmup_steps: int, device_type: str, how: Printed | None = None
) -> Measurement:
    """Return the measurement of a command: from its steps after `warmup_steps`, or as a whole without steps.

    Steps that the script reports go before those that hooks saw (in the folder of `steps`), and these before those that it
    prints (`how`). Marks are the ends of steps, so the window begins at a mark. Evaluation and checkpoints inside it are
    phases of their own, unless steps end in them. A loss that is not finite is left out, so that a diverged run has no last
    loss.
    """
    how = how or Printed()
    script, printed, counted = _read(steps, how)
    seen = seen_steps(steps.parent)
    hooks = None if seen is None else _Source("hooks", seen.marks, _apart([*script.pauses, *seen.pauses]), seen.flags)
    sources = [source.until(ended.end_ns) for source in (script, hooks, printed) if source is not None]
    first = next((source for source in sources if source.marks), None)
    if first is None:
        notes = {"output_format": counted.known, "nearest_line": counted.nearest}
        flags = [*counted.flags, *(seen.flags if seen is not None else [])]
        whole = _whole(ended, device_type, flags).changed(notes={k: note for k, note in notes.items() if note})
        return whole if seen is None else whole.changed(seen=seen.facts)
    out = _window(first, ended, warmup_steps, device_type, how)
    if first.name == "script" and hooks is not None:
        out = _completed(out, _window(hooks, ended, warmup_steps, device_type, how))
        out = _compared(out, first, hooks, seen.facts.world_size if seen is not None else None)
    if first.name == "hooks":
        out = _checked(out, first, sources[-1], how, ended, warmup_steps, device_type)
    if out.step_source == "output" and counted.known:
        out = out.changed(notes=out.notes | {"output_format": counted.known})
    if seen is None:
        return out
    out = out.changed(seen=seen.facts, parameters=seen.parameters, trainable_parameters=seen.trainable_parameters)
    return _with_flops(out, seen)


def _completed(out: Measurement, seen: Measurement) -> Measurement:
    """Return a measurement of steps that the script reports, with the work that only hooks saw in the same steps."""
    if out.steps != seen.steps:
        return out
    return out.changed(**{name: getattr(seen, name) for name in ("samples", "tokens") if getattr(out, name) is None})


def _compared(out: Measurement, script: _Source, hooks: _Source, world_size: int | None) -> Measurement:
    """Return a measurement of steps that the script reports, with the flags of hooks, and one where they disagree.

    They are compared while both see steps. Fewer ranks may report than train, if their samples are those of all.
    """
    flags = [*out.step_flags, *(flag for flag in OF_PROCESSES if flag in hooks.flags)]
    if "partial_world" in flags and len(script.marks) < (world_size or 0):
        out = out.changed(samples=None, tokens=None)
    rank, leading = min(script.marks.items())
    others = hooks.marks.get(rank) or next(iter(hooks.marks.values()))
    if out.steps:
        start = next(phase.start_ns for phase in out.phases if phase.name == "steady")
        end = min(leading[-1]["t_ns"], others[-1]["t_ns"])
        reported, seen = (len(_between(lines, start, end)) - 1 for lines in (leading, others))
        sums = [
            (_sum({0: own}, "samples", None), len(own) - 1)
            for own in (_between(lines, start, end) for lines in hooks.marks.values())
        ]
        each = sum(total / steps for total, steps in sums if total and steps) if all(total for total, _ in sums) else 0
        alike = abs(out.samples / out.steps / each - 1) <= DIFFERENCE if out.samples and each else None
        differ = abs(reported - seen) > max(DIFFERENCE * seen, 1) or alike is False
        fewer = len(script.marks) < len(hooks.marks) and not alike
        flags += ["sources_differ"] * (seen >= LEAST_STEPS and (differ or fewer))
    return out.changed(step_flags=list(dict.fromkeys(flags)))


def _between(lines: list[dict[str, Any]], start_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Return the marks of the steps in a time, after the mark at which the first of them begins."""
    times = [line["t_ns"] for line in lines]
    return lines[max(0, bisect_right(times, start_ns) - 1) : bisect_right(times, end_ns)]


def _checked(
    out: Measurement,
    hooks: _Source,
    printed: _Source,
    how: Printed,
    ended: Ended,
    warmup_steps: int,
    device_type: str,
) -> Measurement:
    """Return a measurement from hooks beside what the user states and what the script prints; a flag where they disagree.

    Samples that the hooks cannot be sure of are those of the lines, where a pattern has them. Known formats give the loss.
    """
    out, confirmed = _stated(out, how), how.samples_per_step is not None
    if printed.marks:
        other = _window(printed, ended, warmup_steps, device_type, how)
        alike = _alike(out, other)
        confirmed |= alike is True
        disagree = ["sources_differ"] * (how.pattern is not None and (_differ(hooks.marks, printed) or alike is False))
        printed_alone = out.samples is None and other.samples is not None and "partial_world" not in hooks.flags
        if how.pattern and out.steps and printed_alone and not disagree:
            kept = [flag for flag in OF_PROCESSES if flag in hooks.flags]
            return other.changed(step_flags=[*other.step_flags, *kept])
        out = _with_losses(out, printed).changed(step_flags=[*out.step_flags, *disagree])
    elif how.pattern is not None:
        out = out.changed(step_flags=[*out.step_flags, *printed.flags])
    if out.steps and out.samples is None and "partial_world" not in out.step_flags:
        out = out.changed(step_flags=[*out.step_flags, "samples_unclear"])
    inferred = ["samples_from_input"] * (out.samples is not None and not confirmed)
    return out.changed(step_flags=[*out.step_flags, *inferred, *["much_left_out"] * _much_left_out(out)])


def _alike(out: Measurement, other: Measurement) -> bool | None:
    """Return whether two measurements agree on the samples of a step; None where one of them has none."""
    if not (out.steps and other.steps and out.samples and other.samples):
        return None
    return abs(out.samples / out.steps / (other.samples / other.steps) - 1) <= DIFFERENCE


def _much_left_out(measured: Measurement) -> bool:
    """Return whether passes without gradients took a large share of the time from the first to the last step."""
    names = [phase.name for phase in measured.phases]
    if "eval" not in names or "steady" not in names:
        return False
    first, last = names.index("steady"), len(names) - names[::-1].index("steady")
    inside = measured.phases[first:last]
    left_out = sum(phase.seconds for phase in inside if phase.name == "eval")
    return left_out > MUCH * sum(phase.seconds for phase in inside)


def _whole(ended: Ended, device_type: str, flags: list[str]) -> Measurement:
    """Return the measurement of a command as a whole."""
    whole = Phase(name="steady", start_ns=ended.start_ns, end_ns=ended.end_ns)
    return Measurement(
        window_seconds=whole.seconds,
        phases=[whole],
        peak_memory_bytes=_peak(ended, device_type),
        ranks=[Rank(rank=0, window_seconds=whole.seconds, cpu_seconds=ended.cpu_seconds)],
        cpu_seconds=ended.cpu_seconds,
        step_flags=flags,
    )


def _peak(ended: Ended, device_type: str) -> list[int]:
    return [ended.peak_memory_bytes] if device_type == "cpu" and ended.peak_memory_bytes else []


def _window(source: _Source, ended: Ended, warmup_steps: int, device_type: str, how: Printed) -> Measurement:
    """Return the measurement of the window that the steps of a source make, or of the whole command if they are too few."""
    marks, pauses, flags = source.marks, source.pauses, source.flags
    without = _whole(ended, device_type, flags)
    count = min(len(lines) for lines in marks.values())
    leading = next(iter(marks.values()))
    done = accumulate(line.get("steps", 1) for line in leading)
    first = next(
        (index for index, steps_ in enumerate(done) if steps_ >= warmup_steps), count
    )  # the window begins there
    first = max([first, *(index for index, line in enumerate(leading) if "flops" in line)])  # counting takes its time
    if count < first + 2:
        return without
    chosen = {rank: lines[first:count] for rank, lines in sorted(marks.items())}
    leader = next(iter(chosen.values()))
    times = [line["t_ns"] for line in leader]
    inside = [pause for pause in pauses if times[0] <= pause.start_ns and pause.end_ns <= times[-1]]
    breaks = [pause for pause in inside if bisect_right(times, pause.start_ns) == bisect_left(times, pause.end_ns)]
    counts = [line.get("steps", 1) for line in leader[1:]]
    spans = [(b - a) / 1e9 - _overlap(breaks, a, b) for a, b in pairwise(times)]
    lengths = [span / steps_ for span, steps_ in zip(spans, counts, strict=True) if steps_]
    edges = {rank: (lines[0]["t_ns"], lines[-1]["t_ns"]) for rank, lines in chosen.items()}
    windows = {rank: (b - a) / 1e9 - _overlap(breaks, a, b) for rank, (a, b) in edges.items()}
    if min(windows.values()) <= 0:  # all of it arrived at once
        return without
    if not _adds_up(leader, [span for span, steps_ in zip(spans, counts, strict=True) if steps_]):
        without = without.changed(step_flags=[*flags, "times_differ"])
    own_seconds = [seconds for line in leader[1:] for seconds in line.get("each_seconds", ())]
    per_step = (None, None) if source.name == "hooks" else (how.samples_per_step, how.tokens_per_step)
    out = without.changed(
        step_seconds=own_seconds or ([] if "output_in_blocks" in flags or min(lengths, default=0) <= 0 else lengths),
        own=_own(leader),
        step_source=source.name,
        window_seconds=max(windows.values()),
        steps=sum(counts),
        samples=_sum(chosen, "samples", per_step[0]),
        tokens=_sum(chosen, "tokens", per_step[1]),
        ranks=[Rank(rank=rank, window_seconds=seconds) for rank, seconds in windows.items()],
        phases=_phases(ended, marks, times, breaks, [pause for pause in pauses if pause.start_ns >= times[-1]]),
    )
    return _losses(out, leader)


def _adds_up(lines: Sequence[dict[str, Any]], spans: Sequence[float]) -> bool:
    """Return whether the script's own times of steps add up to those measured, as far as it printed times for them."""
    pairs = [line["script_seconds"] for line in lines[1:] if line.get("steps") and "script_seconds" in line]
    if not pairs or len(pairs) != len(spans):
        return True
    total, rounding = (sum(part) for part in zip(*pairs, strict=True))
    return bool(abs(total - sum(spans)) <= TIMES_SUM * sum(spans) + rounding)


def _own(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the last values of the user's own metrics."""
    return {name: value for line in lines for name, value in line.get("own", {}).items()}


def _losses(measured: Measurement, lines: Sequence[dict[str, Any]]) -> Measurement:
    """Return a measurement with the losses of its steps."""
    losses = [line["loss"] if math.isfinite(line["loss"]) else None for line in lines if "loss" in line]
    finite = [loss for loss in losses if loss is not None]
    if not losses:
        return measured
    medians = loss_medians(finite) if finite else None
    return measured.changed(loss_first=losses[0], loss_last=losses[-1], loss_medians=medians)


def _with_losses(measured: Measurement, printed: _Source) -> Measurement:
    """Return a measurement from hooks with the losses and own metrics that the script printed in its window."""
    steady = [phase for phase in measured.phases if phase.name == "steady"]
    start, end = steady[0].start_ns, steady[-1].end_ns
    lines = [line for line in printed.marks[0] if start <= line["t_ns"]]
    inside = [line for line in lines if line["t_ns"] <= end]
    return _losses(measured.changed(own=_own(inside or lines)), inside or lines)


def _differ(marks: dict[int, list[dict[str, Any]]], printed: _Source) -> bool:
    """Return whether a script prints more or fewer steps than hooks saw between its first and its last such line."""
    lines = printed.marks[0]
    if "output_in_blocks" in printed.flags:
        return False
    stated = sum(int(line.get("steps", 1)) for line in lines[1:])
    times = [line["t_ns"] for line in next(iter(marks.values()))]
    between = bisect_right(times, lines[-1]["t_ns"]) - bisect_right(times, lines[0]["t_ns"])
    return abs(stated - between) > max(DIFFERENCE * between, int(lines[-1].get("steps", 1)), 1)


def _stated(measured: Measurement, how: Printed) -> Measurement:
    """Return a measurement with the samples and tokens of a step that the user states; a flag if hooks saw others."""
    if {"partial_world", "this_node_only"} & {*measured.step_flags}:  # it would be the work of all nodes
        return measured
    each = {"samples": how.samples_per_step, "tokens": how.tokens_per_step}
    counts = {name: count * measured.steps for name, count in each.items() if count and measured.steps}
    seen = {name: getattr(measured, name) for name in counts}
    differ = any(seen[name] and abs(count / seen[name] - 1) > DIFFERENCE for name, count in counts.items())
    return measured.changed(**counts, step_flags=[*measured.step_flags, *["sources_differ"] * differ])


def _with_flops(measured: Measurement, seen: SeenSteps) -> Measurement:
    """Return a measurement with the FLOP of a sample: as counted, or 6 a parameter and token where none is frozen."""
    for line in next(iter(seen.marks.values())):
        if line.get("flops") and line.get("samples"):
            return measured.changed(flops_per_sample=line["flops"] / line["samples"])
    if not (measured.samples and measured.tokens and seen.parameters and seen.parameters == seen.trainable_parameters):
        return measured
    flops = 6 * seen.parameters * measured.tokens / measured.samples
    return measured.changed(flops_per_sample=flops, step_flags=[*measured.step_flags, "flops_estimated"])


def _read(steps: Path, how: Printed) -> tuple[_Source, _Source, Counted]:
    """Return the steps that the script reports and those that it prints, without damaged lines.

    Of several processes with one rank, the first counts. A begin of a phase before a step has no end after that step.
    """
    lines = _lines(steps)
    marks: dict[int, dict[int, dict[str, Any]]] = {}
    pauses: list[Phase] = []
    processes: dict[int, str] = {}
    begun: dict[str, list[tuple[str, int]]] = {}
    flags: list[str] = []
    for line in sorted((line for line in lines if line["rank"] != OUTPUT), key=lambda line: line["t_ns"]):
        rank, t, process = line["rank"], line["t_ns"], str(line.get("pid"))
        open_, name = begun.setdefault(f"{rank} {process}", []), _phase_name(line.get("phase", ""))
        if "phase" not in line:
            open_.clear()
            if processes.setdefault(rank, process) == process:
                marks.setdefault(rank, {})[t] = {"t_ns": t, **_numbers(line)}
            else:
                flags = ["separate_trainings"]
        elif line.get("begin"):
            open_.append((name, t))
        elif rank == 0 and (own := [begin for begin in open_ if begin[0] == name]):
            open_.remove(own[-1])
            pauses.append(Phase(name=name, start_ns=own[-1][1], end_ns=t))
    script = _Source("script", {rank: list(own.values()) for rank, own in marks.items()}, _apart(pauses), flags)
    counted = count_printed([line for line in lines if line["rank"] == OUTPUT], how)
    marks_printed = {0: counted.marks} if counted.marks else {}
    return script, _Source("output", marks_printed, _apart([*pauses, *counted.breaks]), counted.flags), counted


def _lines(steps: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that have a rank and a time."""
    out = []
    for text in steps.read_text(errors="replace").splitlines() if steps.exists() else []:
        try:
            line = json.loads(text)
            out.append(line | {"rank": int(line["rank"]), "t_ns": int(line["t_ns"])})
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return out


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a mark besides its time; only a loss may be NaN."""
    numbers = {name: line[name] for name in ("samples", "tokens", "loss") if type(line.get(name)) in (int, float)}
    own = line.get("own")
    kept = (
        {name: n for name, n in own.items() if type(n) in (int, float) and math.isfinite(n)}
        if isinstance(own, dict)
        else {}
    )
    numbers = {name: n for name, n in numbers.items() if name == "loss" or (math.isfinite(n) and n >= 0)}
    return numbers | ({"own": kept} if kept else {})


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


def _sum(chosen: dict[int, list[dict[str, Any]]], name: str, each: int | None) -> int | None:
    """Return the work of all ranks in the window; None if a step does not state it. `each` is that of all where none does."""
    counts = [line.get(name) for lines in chosen.values() for line in lines[1:]]
    stated = [count for count in counts if count is not None]
    if each is not None and not stated:
        return each * sum(int(line.get("steps", 1)) for line in next(iter(chosen.values()))[1:])
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
