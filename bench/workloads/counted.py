"""How many steps the lines are that a command has printed (`bench.workloads.printed`), and what each of them consumed.

What cannot be counted for sure is left out, and a flag says why.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from statistics import median
from typing import Any

from bench.record import RESTART, Phase
from bench.workloads.formats import EVALUATION, TRAINING, recognised, with_reports
from bench.workloads.printed import Printed

FAR = 10
"""A counter that goes on by so many times its usual step was another number."""
RESUMED = 2
"""A counter that begins above so many times its largest growth is that of a training that was resumed."""
EXACT = 0.01
"""Largest share of a total that may be lost to the rounding of `12.3k`."""
UNLIKE = 1.5
"""Passes of a counter whose speeds differ by more are not all of a training."""
TIMES_ALIKE, TIMES_EQUAL = 0.1, 0.02
"""Shares by which the script's own times of steps may differ from the clock, and where they stand in for it."""
SINGLE, MOSTLY_SINGLE = 0.95, 0.75
"""Shares of lines that must arrive alone, where lines that arrive together are many of all lines or few."""
NEEDED = {"read", "text", "integers", "kind", "total", "words", "t_ns"}
AMOUNTS = ("samples", "tokens", "samples_total", "tokens_total")


@dataclass
class Counted:
    """Steps: marks in order of time with `steps`, the number of steps since the mark before, and what each consumed.

    `breaks` are times whose steps are not known: between passes of a counter that begins anew, around a validation,
    and where torchrun lost a worker and started all again.
    `flags` say what is left out, `known` names the format that was recognised. Without steps, `nearest` is the line of the
    output that came nearest to the pattern; where none was given, `offer` is one that would count, with a line of it.
    """

    marks: list[dict[str, Any]] = field(default_factory=list)
    breaks: list[Phase] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    known: str = ""
    nearest: str = ""
    offer: tuple[str, str] = ("", "")

    def doubt(self, flag: str) -> None:
        """Add a flag once."""
        if flag not in self.flags:
            self.flags.append(flag)


def count(lines: Sequence[dict[str, Any]], how: Printed) -> Counted:
    """Count the steps of lines that a Reader has kept. Never raises."""
    out = Counted()
    near = [line for line in lines if "nearest" in line]
    offers = [line for line in lines if "offer" in line]
    lost = sorted(line["t_ns"] for line in lines if "lost" in line)
    if any(line.get("too_slow") for line in lines):
        return Counted(flags=["slow_pattern"])
    lines = sorted((line for line in lines if {*line} >= NEEDED), key=lambda line: line["t_ns"])
    if how.pattern is None:
        best = max(offers, key=lambda line: line["score"], default={"offer": "", "example": ""})
        out.offer = best["offer"], best["example"]
        lines = [line for line in lines if "format" in line]
        out.known, own, out.flags = recognised(lines)
        lines = with_reports(lines, own)
    elif lines:
        own = _training(lines, out)
    else:
        best = max(near, key=lambda line: line["score"], default={"nearest": ""})
        return Counted(flags=["no_line_matched"], nearest=best["nearest"])
    if not own:
        return out
    training = [{**lines[place], "place": place} for place in sorted(own)]
    others = [i for i, line in enumerate(lines) if i not in own and line.get("format") != "transformers"]
    counted = all("step" in line for line in training)
    marks = _by_counter(training, out) if counted else _by_line(training, how, out)
    rates = {name for name in ("step", *AMOUNTS) if any(f"{name}_rate" in line for line in training)}
    if not marks and "step" in rates:
        out.flags = ["counts_are_rates"]
    marks = _without_breaks(marks, others, lost, out)
    for name, each in (("samples", how.samples_per_step), ("tokens", how.tokens_per_step)):
        if each is None and rates & {name, f"{name}_total"}:
            out.doubt("counts_are_rates")
        amounts = _amounts(name, each, marks, out)
        for index, mark in enumerate(marks):
            mark.pop(name, None)
            mark.update({name: amounts[index]} if amounts else {})
    out.marks = _by_read(marks, out)
    _check_times(out)
    sure = len(out.marks) > 1 or "output_in_blocks" in out.flags
    return out if sure or how.pattern is not None else Counted(offer=out.offer)


def _training(lines: Sequence[dict[str, Any]], out: Counted) -> set[int]:
    """Return the indices of the lines of the training where those of a validation match too.

    These name it before the counter, or their counter has another total, or begins anew with other words before it.
    """
    places = [i for i, line in enumerate(lines) if not EVALUATION.search(line["kind"])]
    if len(places) not in (0, len(lines)):
        out.doubt("validation_left_out")
    places = places or [*range(len(lines))]
    if not all("step" in lines[i] for i in places):
        return {*places}
    for name in ("total", "kind"):
        kinds: dict[str, list[int]] = {}
        for i in places:
            kinds.setdefault(lines[i][name], []).append(i)
        if len(kinds) > 1 and (name == "total" or not _goes_on([lines[i]["step"] for i in places])):
            named = [own for kind, own in kinds.items() if name == "kind" and TRAINING.search(kind)]
            out.doubt("validation_left_out" if len(named) == 1 else "passes_differ")
            places = max(
                named if len(named) == 1 else kinds.values(), key=lambda own: _grown(lines[i]["step"] for i in own)
            )
    return {*places}


def _grown(values: Iterable[float]) -> float:
    return sum(max(0, b - a) for a, b in pairwise(values))


def _by_counter(lines: Sequence[dict[str, Any]], out: Counted) -> list[dict[str, Any]]:
    """Return the lines at which the script's own counter of steps went on, each with the steps since the one before.

    Lines with an equal counter are one step: a bar that is drawn again, or other ranks. A counter that begins anew starts
    another pass; the steps between two passes are not known. `made` are all steps up to a line.
    """
    passes = _passes(lines)
    if not passes:
        out.doubt("steps_in_disorder")
        return []
    if len(passes) > 1:
        if not out.known:
            out.doubt("counter_restarts")
        if _differ(passes, words=not out.known) or out.known == "transformers":  # whose counter never begins anew
            out.doubt("passes_differ")
    marks: list[dict[str, Any]] = []
    made = 0
    for number, own in enumerate(passes):
        kept = own[:1]
        for before, line in pairwise(own):
            if line["step"] > kept[-1]["step"]:
                kept.append(line)
            elif {*AMOUNTS} & {*line} or line["step"] != before["step"]:
                out.doubt("lines_repeat")
        steps = [round(b["step"] - a["step"]) for a, b in pairwise(kept)]
        if len(steps) > 2 and max(steps) > FAR * median(steps):  # another number than that of the step
            out.doubt("steps_in_disorder")
            return []
        each = [0 if number else 1, *steps]
        so_far = accumulate(steps, initial=made + first_steps(kept[0]["step"], max(steps, default=0)))
        for line, count_, made in zip(kept, each, so_far, strict=True):
            marks.append({**line, "steps": count_, "made": made, "pass": number})
    return marks


def first_steps(value: float, largest: float) -> int:
    """Return for how many steps the first value of a counter stands that grows by `largest` at most from line to line.

    It is the value itself, or, if that is far above, as of a training that was resumed, as many as another line has.
    """
    return max(1, round(value if value <= RESUMED * largest else largest))


def _differ(passes: Sequence[Sequence[dict[str, Any]]], *, words: bool) -> bool:
    """Return whether passes differ by half in their speed or in their `words`, as those of a training and a validation do."""
    texts = {Counter(line["words"] for line in own).most_common(1)[0][0] for own in passes}
    speeds = [
        _grown(line["step"] for line in own) / max(1, own[-1]["t_ns"] - own[0]["t_ns"])
        for own in passes
        if len(own) > 1
    ]
    return (words and len(texts) > 1) or (len(speeds) > 1 and max(speeds) > UNLIKE * min(speeds))


def _without_breaks(
    marks: list[dict[str, Any]], others: Sequence[int], lost: Sequence[int], out: Counted
) -> list[dict[str, Any]]:
    """Take steps between two passes, or with a validation or the loss of a worker between, out of the count, as breaks.

    When the validation begins is not known, so the steps around it are left out with it.
    """
    for before, mark in pairwise(marks):
        validated = bisect_right(others, mark["place"]) > bisect_right(others, before["place"])
        restarted = bisect_right(lost, mark["t_ns"]) > bisect_right(lost, before["t_ns"])
        if validated or restarted:
            mark["steps"] = 0
        if mark["steps"] == 0 and mark["t_ns"] > before["t_ns"]:
            name = RESTART if restarted else "eval" if validated else "pause"
            out.breaks.append(Phase(name=name, start_ns=before["t_ns"], end_ns=mark["t_ns"]))
    return marks if any(mark["steps"] for mark in marks[1:]) or len(marks) == 1 else []


def _goes_on(values: Sequence[float]) -> bool:
    """Return whether numbers go on growing to their end, apart from those of other ranks, a little out of order."""
    top, before, last = values[0], values[0], 0
    for index, value in enumerate(values):
        if value > top:
            top, before, last = value, top, index
        elif value not in (top, before):
            return False
    return last >= len(values) - max(values.count(top), values.count(values[0]))


def _passes(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split lines where their counter begins anew; nothing where it goes up and down.

    All passes must begin alike, and all but the last must end alike, as epochs do.
    """
    values = [line["step"] for line in lines]
    if any(value != round(value) or line["step_error"] for value, line in zip(values, lines, strict=True)):
        return []
    if _goes_on(values):
        return [list(lines)]
    passes: list[list[dict[str, Any]]] = [[lines[0]]]
    for before, line in pairwise(lines):
        if line["step"] < before["step"]:
            passes.append([])
        passes[-1].append(line)
    ends = [own[-1]["step"] for own in passes[:-1]]
    largest = max(b["step"] - a["step"] for own in passes for a, b in pairwise([own[0], *own]))
    starts = [own[0]["step"] for own in passes]
    alike = max(ends) - min(ends) < largest and all(len(own) > 1 for own in passes[:-1])
    alike &= max(starts) - min(starts) <= min(b - a for a, b in pairwise(sorted({*values})))
    return passes if alike and max(ends) >= passes[-1][-1]["step"] else []


def _by_line(lines: Sequence[dict[str, Any]], how: Printed, out: Counted) -> list[dict[str, Any]]:
    """Return the lines as steps, `steps_per_line` each. Without that, a counter in the lines must agree that each is one."""
    agrees = _agrees(lines, how.steps_per_line or 1)
    unread = how.steps_per_line is None and any("step_missing" in line for line in lines)
    if agrees is False or unread:
        out.doubt("lines_are_not_steps")
        return []
    if agrees is None and (how.steps_per_line is None or _doubtful(lines, how.steps_per_line)):
        out.doubt("steps_unchecked")
    counting = len({tuple(line["integers"]) for line in lines}) > 2
    key = "integers" if counting else "text"
    kept = [lines[0], *(b for a, b in pairwise(lines) if a[key] != b[key])]
    if len(kept) == 1 and not lines[0]["integers"]:  # nothing in the lines tells them apart
        kept = list(lines)
    elif len(kept) < len(lines):
        out.doubt("lines_repeat")
    return [{**line, "steps": how.steps_per_line or 1} for line in kept]


def _doubtful(lines: Sequence[dict[str, Any]], each: int) -> bool:
    """Return whether lines may be those of several ranks, or of a validation, although the user counts them as steps.

    Many follow another one at once, or a number that counts them begins anew.
    """
    gaps = [b["t_ns"] - a["t_ns"] for a, b in pairwise(lines)]
    if len(gaps) > 2 and sum(gap < sum(gaps) / len(gaps) / 10 for gap in gaps) > len(gaps) / 3:
        return True
    columns = zip(*(line["integers"] for line in lines), strict=False)
    grown = ([b - a for a, b in pairwise(column)] for column in columns)
    return any(min(by) < 0 and 2 * by.count(each) > len(by) for by in grown if by)


def _agrees(lines: Sequence[dict[str, Any]], each: int) -> bool | None:
    """Return whether a whole number in the lines grows by `each` from line to line; None where that cannot be told.

    Where another one grows by some other amount each time, either may be that of the steps.
    """
    width, by_each, counts = min(len(line["integers"]) for line in lines), False, False
    for place in range(width):
        values = [line["integers"][place] for line in lines]
        if len(values) > 1 and all(b - a == each for a, b in pairwise(values)):
            by_each = True
            continue
        counts |= len({*values}) > 2 and _goes_on(values) and _alike(lines, place)
        counts |= len(values) > 2 and sorted(values) == [*range(min(values), min(values) + len(values))]  # in disorder
    return None if counts == by_each else by_each


def _alike(lines: Sequence[dict[str, Any]], place: int) -> bool:
    """Return whether lines with an equal number in a place have all numbers equal, so that it counts all of them."""
    return len({line["integers"][place] for line in lines}) == len({tuple(line["integers"]) for line in lines})


def _amounts(name: str, each: int | None, marks: list[dict[str, Any]], out: Counted) -> list[float]:
    """Return the samples or tokens of each mark: from the group `name`, the differences of totals, or `each` step.

    Nothing where they are not sure.
    """
    total = f"{name}_total"
    if all(total in mark for mark in marks) and marks:
        values, error = [mark[total] for mark in marks], max(mark.get(f"{total}_error", 0) for mark in marks)
        grown = values[-1] - values[len(values) // 4]
        if any(b < a for a, b in pairwise(values)) or grown <= 0:
            out.doubt("totals_fall")
        elif 2 * error > EXACT * grown:
            out.doubt("totals_are_rounded")
        else:  # steps between two passes are not known
            differences = zip(marks, pairwise([values[0], *values]), strict=True)
            return [b - a if mark["steps"] else 0 for mark, (a, b) in differences]
    elif all(name in mark for mark in marks) and marks:
        values = [mark[name] for mark in marks]
        rounded = any(mark[f"{name}_error"] for mark in marks)
        if not _grow(values) and not (rounded and values[-1] > values[0] and all(b >= a for a, b in pairwise(values))):
            return [mark[name] * mark["steps"] for mark in marks]
        out.doubt("counts_only_grow")
    elif each is not None:
        return [each * mark["steps"] for mark in marks]
    elif any(part in mark or f"{part}_missing" in mark for mark in marks for part in (name, total)):
        out.doubt("counts_missing")
    return []


def _grow(values: Sequence[float]) -> bool:
    """Return whether most numbers belong to long runs that only grow, as totals do, also those of each epoch anew."""
    runs, length = list[int](), 1
    for a, b in pairwise(values):
        if b <= a:
            runs.append(length)
            length = 0
        length += 1
    runs.append(length)
    least = min(4, max(3, len(values)))
    return 2 * sum(run for run in runs if run >= least) > len(values)


def _by_read(marks: Sequence[dict[str, Any]], out: Counted) -> list[dict[str, Any]]:
    """Join marks that arrived in one read: their times are that of the read, so only the last of them has one.

    Each gets `own_seconds`: by line the script's own time in s, its rounding, and the steps that it stands for.
    """
    kept: list[dict[str, Any]] = []
    timed = all({"seconds", "milliseconds"} & {*mark} for mark in marks)
    for _, same in groupby(marks, key=lambda mark: (mark["read"], mark.get("pass"), mark["steps"] == 0)):
        joined = list(same)
        names = {"steps", "samples", "tokens"} & joined[-1].keys()
        sums = {name: sum(mark[name] for mark in joined) for name in names}
        own = [_own_seconds(mark) for mark in joined] if timed else []
        kept.append(joined[-1] | sums | {"own_seconds": own, "joined": len(joined)})
    largest = max((mark["joined"] for mark in kept), default=1)
    late = largest > 1 and largest > EXACT * len(marks)  # at an edge of the window, by so many lines
    if len(marks) > 2 and len(kept) < (SINGLE if late else MOSTLY_SINGLE) * len(marks):
        out.doubt("output_in_blocks")
    return kept


def _own_seconds(mark: dict[str, Any]) -> tuple[float, float, int]:
    if "seconds" in mark:
        return mark["seconds"], mark["seconds_error"], mark["steps"]
    return mark["milliseconds"] / 1e3, mark["milliseconds_error"] / 1e3, mark["steps"]


def _check_times(out: Counted) -> None:
    """Compare the script's own times of steps with the clock, and use them where output in blocks has no other ones.

    A time is that of a step, or of all steps of its line: whichever agrees. The median does not see a validation in a few
    of the spans, so each mark gets `script_seconds`, for a comparison of their sum with the window: that of its steps, and
    how much of it may be rounding. In blocks, the sum must agree.
    """
    spans = [((b["t_ns"] - a["t_ns"]) / 1e9, b["own_seconds"]) for a, b in pairwise(out.marks) if b["steps"]]
    spans = [(span, own) for span, own in spans if span > 0 and own]
    if len(spans) < 3:
        return
    blocks, clock = "output_in_blocks" in out.flags, sum(span for span, _ in spans)
    times = [time for _, own in spans for time in own]
    rounding = median(error / each if each else math.inf for each, error, _ in times)
    for by_line in (False, True):
        sums = [sum(each * (1 if by_line else steps) for each, _, steps in own) for _, own in spans]
        ratio = (
            sum(sums) / clock if blocks else median(total / span for total, (span, _) in zip(sums, spans, strict=True))
        )
        if abs(ratio - 1) <= (TIMES_EQUAL if blocks else TIMES_ALIKE + rounding):
            if blocks:
                out.flags.remove("output_in_blocks")
                out.doubt("times_of_script")
                for mark in out.marks:
                    mark["each_seconds"] = [
                        each / (steps if by_line else 1) for each, _, steps in mark["own_seconds"] if steps
                    ]
            else:
                for mark in out.marks:
                    shares = [(1 if by_line else steps, *pair) for *pair, steps in mark["own_seconds"]]
                    mark["script_seconds"] = [sum(n * part[i] for n, *part in shares) for i in (0, 1)]
            return
    out.doubt("times_differ")
