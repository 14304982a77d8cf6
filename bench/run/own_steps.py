"""The measurement of a command of the user: its steps, wherever they come from, become a window with work and phases."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from bench.figures.flags import loss_medians
from bench.figures.metrics import STARTUP_PHASES
from bench.folder import ELSEWHERE
from bench.record import RESTART, Measurement, Phase, Rank
from bench.run.marks import full_sum, is_number, json_lines
from bench.run.planned import planned_length
from bench.run.restarts import Marks, Restarts, one_training
from bench.run.seen import SeenSteps, seen_steps
from bench.workloads.counted import count as count_printed
from bench.workloads.printed import LARGEST, OUTPUT, Printed

OWN_PHASES = (*STARTUP_PHASES, "probe", "steady", "tail", RESTART)
"""Names of phases with a fixed meaning; a phase of the user with such a name becomes `user_...`."""
DIFFERENCE = 0.02
"""Relative difference by which two sources of steps or samples may differ."""
LEAST_TOTALS = 8
"""So many counts of steps that only grow are totals."""
MUCH = 0.05
"""Share of the time between steps above which it is told that evaluation is left out."""
TIMES_SUM = 0.05
"""Share of a window by which the sum of the script's own times of steps may differ from it."""
OF_PROCESSES = ("partial_world", "this_node_only", "separate_trainings")
"""Flags of hooks that hold whatever the source of steps is."""
LEAST_STEPS = 2
"""A command that was ended before its time is measured by at least so many steps after its warm-up."""
_Name = Literal["script", "hooks", "output"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, with its exit code (negative: the number of a signal), and which resources it used.

    `by` says who ended it before its time: a `limit`, or somebody's `signal`, whose name is `signal`. `peak_memory_bytes` is
    that of the largest of its processes. The kernel includes the memory of this process at the start; if the peak is not
    above that, it is None. `killed_for_memory`: it failed while the kernel ended some process for lack of memory. `tail` is
    the end of its output, where that was read. `disk_full`: for a time there was no space for its
    steps; `lines_lost`: also at its end, so that lines of its output are missing.
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
    disk_full: bool = False
    lines_lost: bool = False


@dataclass(frozen=True)
class _Command:
    """A command that has ended, and what its window is made of besides steps."""

    ended: Ended
    warmup_steps: int
    device_type: str
    how: Printed
    between: tuple[int, int] | None = None

    def source(self, name: _Name, marks: Marks, pauses: list[Phase], flags: list[str]) -> _Source:
        """Return the steps that ended before the command did: a process of its own may have outlived it."""
        before = {rank: [mark for mark in own if mark["t_ns"] <= self.ended.end_ns] for rank, own in marks.items()}
        return _Source(self, name, {rank: own for rank, own in sorted(before.items()) if own}, _apart(pauses), flags)

    def whole(self, flags: list[str], **fields: Any) -> Measurement:
        """Return the measurement of the command as a whole, but for some fields."""
        ended = self.ended
        phase = Phase(name="steady", start_ns=ended.start_ns, end_ns=ended.end_ns)
        peak = [ended.peak_memory_bytes] if self.device_type == "cpu" and ended.peak_memory_bytes else []
        rank = Rank(rank=0, window_seconds=phase.seconds, cpu_seconds=ended.cpu_seconds)
        whole = {"window_seconds": phase.seconds, "phases": [phase], "ranks": [rank], "cpu_seconds": ended.cpu_seconds}
        return Measurement(**{"peak_memory_bytes": peak, "step_flags": flags, **whole, **fields})


@dataclass(frozen=True)
class _Source:
    """Steps from one source: marks by rank and the pauses of rank 0, both in order of time, and flags of the marks."""

    command: _Command
    name: _Name
    marks: Marks
    pauses: list[Phase]
    flags: list[str]

    @property
    def leading(self) -> list[dict[str, Any]]:
        """The marks of the first rank."""
        return next(iter(self.marks.values()))

    @cached_property
    def window(self) -> Measurement:
        """The measurement of the window that the steps make, or of the whole command if they are too few."""
        return _window(self)


def measurement(
    steps: Path,
    ended: Ended,
    warmup_steps: int,
    device_type: str,
    how: Printed | None = None,
    *,
    nodes: int = 1,
    between: tuple[int, int] | None = None,
) -> Measurement:
    """Return the measurement of a command: from its steps after `warmup_steps`, or as a whole without steps.

    Steps that the script reports go before those that hooks saw (in the folder of `steps`), and these before those that it
    prints (`how`). Marks are the ends of steps, so the window begins at a mark. Evaluation and checkpoints inside it are
    phases of their own, unless steps end in them. A loss that is not finite is left out, so that a diverged run has no last
    loss. Of a command on several `nodes` this is the measurement of one. `between` are the numbers of steps, from the first,
    after which the window begins and ends.
    """
    command, lines = _Command(ended, warmup_steps, device_type, how or Printed(), between), _lines(steps)
    counted = count_printed([line for line in lines if line["rank"] == OUTPUT], command.how)
    marks, pauses, flags, again = _reported(lines)
    seen = seen_steps(steps.parent, nodes)
    of_hooks = ({}, [], []) if seen is None else (seen.marks, [*pauses, *seen.pauses], seen.flags)
    script = command.source("script", marks, [*pauses, *again.phases], flags)
    hooks = command.source("hooks", *of_hooks)
    printed = command.source("output", {0: counted.marks}, [*pauses, *counted.breaks], counted.flags)
    first = next((source for source in (script, hooks, printed) if source.marks), None)
    elsewhere = ["this_node_only" if first in (script, hooks) else "other_hosts"] * bool(ELSEWHERE.paths(steps.parent))
    if first is None:
        notes = {"output_format": counted.known, "nearest_line": counted.nearest}
        notes |= dict(zip(("pattern_offered", "pattern_example"), counted.offer, strict=True))
        facts = {"seen": seen and seen.facts, "notes": {name: note for name, note in notes.items() if note}}
        return command.whole([*printed.flags, *hooks.flags, *elsewhere], **facts)
    if first is script:
        out = _beside_hooks(script, hooks, seen.facts.world_size if seen is not None else None)
    else:
        out = _beside_lines(hooks, printed, _share(seen)) if first is hooks else printed.window
    if out.step_source == "output" and counted.known:
        out = out.changed(notes={"output_format": counted.known})
    if elsewhere and "partial_world" not in out.step_flags:
        out = out.changed(step_flags=list(dict.fromkeys([*out.step_flags, *elsewhere])))
    out = out.changed(planned=planned_length(lines, first.leading))
    if first is printed:
        again = Restarts(sum(phase.name == RESTART for phase in counted.breaks), repeated=None)
    out = _with_restarts(out, [Restarts() if first is hooks else again, seen.restarts if seen else Restarts()])
    return out if seen is None else _with_model(out, seen)


def _with_restarts(measured: Measurement, sources: Sequence[Restarts]) -> Measurement:
    """Return a measurement with its restarts as one source or the other saw them, and their flags."""
    count = max(each.count for each in sources)
    if not count:
        return measured
    repeated = next((each.repeated for each in sources if each.count == count and each.repeated is not None), None)
    names = [phase.name for phase in measured.phases]
    within = RESTART in names[names.index("steady") :]
    flags = ["restarted", *["repeats_unknown"] * (within and repeated is None)]
    return measured.changed(restarts=count, repeated_steps=repeated, step_flags=[*measured.step_flags, *flags])


def _beside_hooks(script: _Source, hooks: _Source, world_size: int | None) -> Measurement:
    """Return a measurement of steps that the script reports, with what only hooks saw, and a flag where they disagree.

    They are compared while both see steps. Fewer ranks may report than train, if their samples are those of all.
    """
    out, flags = script.window, [*script.window.step_flags, *(flag for flag in OF_PROCESSES if flag in hooks.flags)]
    if hooks.marks and out.steps == hooks.window.steps:
        absent = (name for name in ("samples", "tokens") if getattr(out, name) is None)
        out = out.changed(**{name: getattr(hooks.window, name) for name in absent})
    if "partial_world" in flags and len(script.marks) < (world_size or 0):
        out = out.changed(samples=None, tokens=None)
    if hooks.marks and out.steps:
        others = hooks.marks.get(next(iter(script.marks)), hooks.leading)
        start = next(phase.start_ns for phase in out.phases if phase.name == "steady")
        end = min(script.leading[-1]["t_ns"], others[-1]["t_ns"])
        ranks = [_between(own[1:], start, end) for own in hooks.marks.values()]  # a step begins at a mark
        counts = [sum(mark.get("steps", 1) for mark in own) for own in ranks]
        each = [
            (full_sum(mark.get("samples") for mark in own) or 0) / max(1, count)
            for own, count in zip(ranks, counts, strict=True)
        ]
        alike = _alike(_of_step(out, "samples"), sum(each) if all(each) else None)
        fewer = len(script.marks) < len(hooks.marks) and not alike
        differ = alike is False or fewer or not _as_many(script.leading, others[1:], start, end)
        flags += ["sources_differ"] * (differ and len(_between(others[1:], start, end)) >= LEAST_STEPS)
    return out.changed(step_flags=list(dict.fromkeys(flags)))


def _share(seen: SeenSteps | None) -> float:
    """Return the share of all processes that are on this node, of whose steps lines of the output tell the whole."""
    known = seen is not None and "this_node_only" in seen.flags and seen.facts.world_size
    return seen.facts.processes / known if seen is not None and known else 1.0


def _beside_lines(hooks: _Source, printed: _Source, share: float) -> Measurement:
    """Return a measurement from hooks beside what the user states and what the script prints; a flag where they disagree.

    Hooks see a `share` of the samples of a line. Samples that the hooks cannot be sure of are those of the lines, where a
    pattern has them. Known formats give the loss.
    """
    how = hooks.command.how
    out, confirmed = _with_stated(hooks.window, how), how.samples_per_step is not None
    flags = out.step_flags
    if printed.marks:
        lines, other = printed.leading, printed.window
        of_line = _of_step(other, "samples")
        alike = _alike(_of_step(out, "samples"), None if of_line is None else share * of_line)
        confirmed |= alike is True
        as_many = _as_many(lines, hooks.leading, lines[0]["t_ns"], lines[-1]["t_ns"])
        unlike = alike is False or not (as_many or "output_in_blocks" in printed.flags)
        differ = how.pattern is not None and unlike
        again = any(phase.name == RESTART for phase in hooks.pauses)  # at which printed counters may go back
        differ, printed_alone = (
            differ and not again,
            not again and out.samples is None and other.samples is not None and "partial_world" not in hooks.flags,
        )
        if how.pattern and out.steps and printed_alone and not differ:
            kept = [flag for flag in OF_PROCESSES if flag in hooks.flags]
            return other.changed(step_flags=[*other.step_flags, *kept])
        out, flags = _with_losses(out, printed), [*flags, *["sources_differ"] * differ]
    elif how.pattern is not None:
        flags = [*flags, *printed.flags]
    unclear = out.steps and out.samples is None and "partial_world" not in flags
    inferred = out.samples is not None and not confirmed
    doubts = {"samples_unclear": unclear, "samples_from_input": inferred, "much_left_out": _much_left_out(out)}
    return out.changed(step_flags=[*flags, *(flag for flag, holds in doubts.items() if holds)])


def _alike(count: float | None, other: float | None, least: float = 0.0) -> bool | None:
    """Return whether two sources agree on a count, which may differ by `least`; None where one of them has none."""
    return None if count is None or other is None else abs(count - other) <= max(DIFFERENCE * other, least)


def _as_many(lines: list[dict[str, Any]], others: list[dict[str, Any]], start_ns: int, end_ns: int) -> bool:
    """Return whether two sources have as many steps in a time; at its edges they may differ by a mark of the first."""
    steps, count = (
        sum(int(mark.get("steps", 1)) for mark in _between(own, start_ns, end_ns)) for own in (lines, others)
    )
    return _alike(steps, count, max(1, int(lines[-1].get("steps", 1)))) is True


def _between(lines: list[dict[str, Any]], start_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Return the marks of the steps that end in a time, after its start."""
    times = [line["t_ns"] for line in lines]
    return lines[bisect_right(times, start_ns) : bisect_right(times, end_ns)]


def _of_step(measured: Measurement, name: str) -> float | None:
    """Return the samples or tokens of a step; None where they are not known."""
    count: int | None = getattr(measured, name)
    return count / measured.steps if count and measured.steps else None


def _much_left_out(measured: Measurement) -> bool:
    """Return whether passes without gradients took a large share of the time from the first to the last step."""
    names = [phase.name for phase in measured.phases]
    if "eval" not in names or "steady" not in names:
        return False
    first, last = names.index("steady"), len(names) - names[::-1].index("steady")
    inside = measured.phases[first:last]
    left_out = sum(phase.seconds for phase in inside if phase.name == "eval")
    return left_out > MUCH * sum(phase.seconds for phase in inside)


def _window(source: _Source) -> Measurement:
    """Return the measurement of the window that the steps of a source make, or of the whole command if they are too few."""
    marks, leading, flags, command = source.marks, source.leading, source.flags, source.command
    count = min(len(lines) for lines in marks.values())
    done = list(accumulate(line.get("steps", 1) for line in leading))
    first = next((index for index, steps in enumerate(done) if steps >= command.warmup_steps), count)
    first = max([first, *(index for index, line in enumerate(leading) if "flops" in line)])  # counting takes its time
    if command.between is not None:
        first, count = bisect_left(done, command.between[0]), min(count, bisect_right(done, command.between[1]))
    if count < first + 2:
        return command.whole(flags)
    chosen, leader = {rank: lines[first:count] for rank, lines in marks.items()}, leading[first:count]
    times = [line["t_ns"] for line in leader]
    inside = [pause for pause in source.pauses if times[0] <= pause.start_ns and pause.end_ns <= times[-1]]
    breaks = [pause for pause in inside if bisect_right(times, pause.start_ns) == bisect_left(times, pause.end_ns)]
    windows = {rank: _seconds(lines[0]["t_ns"], lines[-1]["t_ns"], breaks) for rank, lines in chosen.items()}
    if min(windows.values()) <= 0:  # all of it arrived at once
        return command.whole(flags)
    counts = [line.get("steps", 1) for line in leader[1:]]
    spans = [(_seconds(a, b, breaks), steps) for (a, b), steps in zip(pairwise(times), counts, strict=True) if steps]
    lengths = [span / steps for span, steps in spans]
    own_seconds = [seconds for line in leader[1:] for seconds in line.get("each_seconds", ())]
    each = command.how if source.name != "hooks" else Printed()
    return command.whole(
        [*flags, *["times_differ"] * (not _adds_up(leader, [span for span, _ in spans]))],
        step_seconds=own_seconds or ([] if "output_in_blocks" in flags or min(lengths, default=0) <= 0 else lengths),
        own=_own(leader),
        step_source=source.name,
        window_seconds=max(windows.values()),
        steps=sum(counts),
        steps_before=leader[0].get("made", done[first]) or None,
        samples=_work(chosen, "samples", each.samples_per_step),
        tokens=_work(chosen, "tokens", each.tokens_per_step),
        ranks=[Rank(rank=rank, window_seconds=seconds) for rank, seconds in windows.items()],
        phases=_phases(source, times, breaks),
        **_losses(leader),
    )


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


def _losses(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of the losses of some steps."""
    losses = [line["loss"] if math.isfinite(line["loss"]) else None for line in lines if "loss" in line]
    finite = [loss for loss in losses if loss is not None]
    medians = loss_medians(finite) if finite else None
    return {"loss_first": losses[0], "loss_last": losses[-1], "loss_medians": medians} if losses else {}


def _with_losses(measured: Measurement, printed: _Source) -> Measurement:
    """Return a measurement from hooks with the losses and own metrics that the script printed in its window."""
    steady = [phase for phase in measured.phases if phase.name == "steady"]
    lines = [line for line in printed.leading if steady[0].start_ns <= line["t_ns"]]
    lines = [line for line in lines if line["t_ns"] <= steady[-1].end_ns] or lines
    return measured.changed(own=_own(lines), **_losses(lines))


def _with_stated(measured: Measurement, how: Printed) -> Measurement:
    """Return a measurement with the samples and tokens of a step that the user states; a flag if hooks saw others."""
    if {"partial_world", "this_node_only"} & {*measured.step_flags} or not measured.steps:  # those of all nodes
        return measured
    stated = {"samples": how.samples_per_step, "tokens": how.tokens_per_step}
    differ = any(_alike(count, _of_step(measured, name)) is False for name, count in stated.items())
    counts = {name: count * measured.steps for name, count in stated.items() if count}
    return measured.changed(**counts, step_flags=[*measured.step_flags, *["sources_differ"] * differ])


def _with_model(measured: Measurement, seen: SeenSteps) -> Measurement:
    """Return a measurement with what hooks saw of the model, and the FLOP of a sample.

    These are as counted, or 6 a parameter and token where none is frozen and no other model passes.
    """
    sizes = seen.parameters, seen.trainable_parameters
    out = measured.changed(seen=seen.facts, parameters=sizes[0], trainable_parameters=sizes[1])
    for line in next(iter(seen.marks.values())):
        if line.get("flops") and line.get("samples"):
            return out.changed(flops_per_sample=line["flops"] / line["samples"])
    if seen.others or not (out.samples and out.tokens and sizes[0] and sizes[0] == sizes[1]):
        return out
    flops = 6 * sizes[0] * out.tokens / out.samples
    return out.changed(flops_per_sample=flops, step_flags=[*out.step_flags, "flops_estimated"])


def _reported(lines: list[dict[str, Any]]) -> tuple[Marks, list[Phase], list[str], Restarts]:
    """Return the marks of the steps that the script reports, by rank, its phases, flags, and restarts of its processes.

    Of several processes with one rank, the first counts, but for those that were started again. A begin of a phase before a
    step has no end after that step.
    """
    marks: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    pauses: list[Phase] = []
    processes: dict[tuple[int, int], str] = {}
    begun: dict[str, list[tuple[str, int]]] = {}
    flags: list[str] = []
    lines = [line for line in lines if line["rank"] != OUTPUT]
    lead = min((line["rank"] for line in lines), default=0)
    for line in sorted(lines, key=lambda line: line["t_ns"]):
        rank, t, process = line["rank"], line["t_ns"], str(line.get("pid"))
        restart = line.get("restart", 0)
        key = (restart if type(restart) is int and restart > 0 else 0, rank)
        open_, name = begun.setdefault(f"{rank} {process}", []), _phase_name(str(line.get("phase", "")))
        if "phase" not in line:
            open_.clear()
            if processes.setdefault(key, process) == process:
                marks.setdefault(key, {})[t] = {"t_ns": t, **_numbers(line)}
            else:
                flags = ["separate_trainings"]
        elif line.get("begin"):
            open_.append((name, t))
        elif rank == lead and (own := [begin for begin in open_ if begin[0] == name]):
            open_.remove(own[-1])
            pauses.append(Phase(name=name, start_ns=own[-1][1], end_ns=t))
    each = {key: list(steps.values()) for key, steps in marks.items()}
    totals = [name for name in ("samples", "tokens") if _without_totals(each, name)]
    starts: dict[int, Marks] = {}
    for (number, rank), steps in each.items():
        starts.setdefault(number, {})[rank] = steps
    joined, restarts = one_training(starts)
    return joined, pauses, [*flags, *["counts_only_grow"] * bool(totals)], restarts


def _without_totals(marks: dict[tuple[int, int], list[dict[str, Any]]], name: str) -> bool:
    """Leave out counts that grow with each step, as totals of all steps do; return whether there are any."""
    columns = [[mark.get(name) for mark in own] for own in marks.values()]
    grow = any(
        len(counts) >= LEAST_TOTALS and all(a is not None and b is not None and a < b for a, b in pairwise(counts))
        for counts in columns
    )
    for mark in (mark for own in marks.values() for mark in own if grow):
        mark.pop(name, None)
    return grow


def stalled(measured: Measurement, end_ns: int) -> bool:
    """Return whether a command made no step for long before it was ended: more than 10 s, and than ten of its longest."""
    last = max(phase.end_ns for phase in measured.phases if phase.name == "steady")
    return end_ns - last > 1e10 * max(1.0, *measured.step_seconds, measured.window_seconds / max(1, measured.steps))


def _lines(steps: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that have a rank and a time."""
    out = []
    for line in json_lines(steps.read_text(errors="replace").splitlines() if steps.exists() else []):
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            out.append(line | {"rank": int(line["rank"]), "t_ns": int(line["t_ns"])})
    return out


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a mark besides its time; only a loss may be NaN or infinite."""
    numbers = {name: line[name] for name in ("samples", "tokens", "number") if is_number(line.get(name), LARGEST)}
    numbers = {name: n for name, n in numbers.items() if n >= 0}
    if type(loss := line.get("loss")) is float or is_number(loss):
        numbers["loss"] = loss
    own = line["own"].items() if isinstance(line.get("own"), dict) else ()
    kept = {name: n for name, n in own if is_number(n)}
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


def _seconds(start_ns: int, end_ns: int, breaks: list[Phase]) -> float:
    """Return the time between two marks without the breaks in it."""
    left_out = sum(max(0, min(end_ns, pause.end_ns) - max(start_ns, pause.start_ns)) for pause in breaks)
    return (end_ns - start_ns) / 1e9 - left_out / 1e9


def _work(chosen: Marks, name: str, each: int | None) -> int | None:
    """Return the work of all ranks in the window; None if a step does not state it. `each` is that of all where none does."""
    counts = [line.get(name) for lines in chosen.values() for line in lines[1:]]
    if each is not None and not any(count is not None for count in counts):
        return each * sum(int(line.get("steps", 1)) for line in next(iter(chosen.values()))[1:])
    return round(full_sum(counts) or 0) or None


def _around(name: str, start_ns: int, end_ns: int, breaks: list[Phase]) -> list[Phase]:
    """Return phases of a name with the breaks between them."""
    out, begin = [], start_ns
    for pause in breaks:
        if pause.start_ns > begin:
            out.append(Phase(name=name, start_ns=begin, end_ns=pause.start_ns))
        out.append(pause)
        begin = pause.end_ns
    return [*out, Phase(name=name, start_ns=begin, end_ns=end_ns)] if end_ns > begin else out


def _phases(source: _Source, times: list[int], breaks: list[Phase]) -> list[Phase]:
    """Return `start` until the end of the first step, `warmup`, the window with its pauses, and what came after it."""
    first = min(lines[0]["t_ns"] for lines in source.marks.values())
    out = [Phase(name="start", start_ns=source.command.ended.start_ns, end_ns=first)]
    again = [pause for pause in source.pauses if pause.name == RESTART and pause.end_ns <= times[0]]
    out += [*_around("warmup", first, times[0], again), *_around("steady", times[0], times[-1], breaks)]
    for pause in (pause for pause in source.pauses if pause.start_ns >= times[-1]):
        out += [Phase(name="tail", start_ns=out[-1].end_ns, end_ns=pause.start_ns), pause]
    return out
