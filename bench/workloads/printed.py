"""Steps that a command prints: which lines of its output mean a step, and how many.

A line that matches is not always a step: a script may print every tenth step, each rank may print the same one, and a
count may be the total so far. So lines are kept as they come (`Reader`), and counted once the command has ended (`count`),
when all of them are known. What cannot be counted for sure is left out, and a flag says why.
"""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import regex

from bench.record import Phase

GROUPS = ("step", "samples", "tokens", "samples_total", "tokens_total", "loss")
"""Names that groups of a pattern may have."""
FLAGS = (
    *("no_line_matched", "slow_pattern", "steps_in_disorder", "lines_are_not_steps", "steps_unchecked", "lines_repeat"),
    *("counter_restarts", "counts_only_grow", "counts_missing", "totals_fall", "totals_are_rounded"),
    *("output_in_blocks", "partial_world"),
)
"""Flags of steps that a command prints; `bench.figures.flags` has the meanings."""
OUTPUT = -1
"""Instead of a rank: steps read from the output. They count if no process reports steps itself."""
PATIENCE_SECONDS = 1.0
"""How long a pattern may take for one line: nested repetitions can take for ever."""
FAR = 10
"""A counter that goes on by so many times its usual step was another number."""
EXACT = 0.01
"""Largest share of a total that may be lost to the rounding of `12.3k`."""
LARGEST = 1e18
"""Steps, samples and tokens above this are none."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_NUMBER = re.compile(r"[+-]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NO_STEP = re.compile(r"\b\d+:\d\d(?::\d\d)?\b|\bepoch\b\W{0,4}\d+(?:/\d+)?", re.IGNORECASE)
"""Numbers that do not count steps: times of the day, and epochs."""
LONGEST_LINE = 65_536
_INTEGER = re.compile(r"(?<![\w.,+-])\d[\d,]*(?![\w.,]*\d)")
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


class BadPattern(ValueError):
    """A step pattern that cannot be used."""


def check_pattern(text: str) -> str:
    """Return a pattern as it was given. Raises BadPattern where it is no regular expression, or has unknown groups."""
    try:
        groups = set(regex.compile(text).groupindex)
    except regex.error as error:
        raise BadPattern(f"not a regular expression: {error}") from error
    if unknown := sorted(groups - {*GROUPS}):
        raise BadPattern(f"groups are {', '.join(GROUPS[:-1])} and {GROUPS[-1]}, not {', '.join(unknown)}")
    for name in ("samples", "tokens"):
        if {name, f"{name}_total"} <= groups:
            raise BadPattern(f"a pattern has {name} or {name}_total, not both")
    return text


@dataclass(frozen=True)
class Printed:
    """How a command prints its steps: `pattern`, and what each line or step stands for where no group says it."""

    pattern: str
    steps_per_line: int | None = None
    samples_per_step: int | None = None
    tokens_per_step: int | None = None


class Reader:
    """Turns output, as it arrives, into lines of the steps file: one for each line that matches."""

    def __init__(self, pattern: str) -> None:
        self._pattern = regex.compile(pattern)
        self._reads, self._too_slow, self._unfinished = 0, False, b""

    def read(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the lines say that end in a chunk of output; an empty one is its end."""
        self._reads += 1
        now = time.monotonic_ns()
        *lines, self._unfinished = re.split(rb"(?<=[\r\n])", self._unfinished + chunk)
        self._unfinished = self._unfinished[-LONGEST_LINE:]
        for line in lines if chunk else [self._unfinished]:
            text = _ESCAPES.sub("", line.decode(errors="replace").rstrip("\r\n"))
            if text and (values := self._values(text)) is not None:
                mark = {"t_ns": now, "rank": OUTPUT, "read": self._reads, **values}
                mark |= {"text": zlib.crc32(text.encode()), "integers": _integers(text)}
                yield (json.dumps(mark) + "\n").encode()

    def _values(self, text: str) -> dict[str, Any] | None:
        """Return the numbers of a line, with half of the last digit of each as `NAME_error`; None where it does not match."""
        if self._too_slow:
            return None
        try:
            found = self._pattern.search(text, timeout=PATIENCE_SECONDS)
        except TimeoutError:
            self._too_slow = True
            return {"too_slow": True}
        if found is None:
            return None
        out: dict[str, Any] = {}
        for name, group in found.groupdict().items():
            after = text[found.end(name) :] if group is not None and name != "step" else ""
            number = _number(group, after, whole=name != "loss")
            if number is not None and (name == "loss" or 0 <= number[0] <= LARGEST):
                out[name], out[f"{name}_error"] = number
            else:
                out[f"{name}_missing"] = True
        return out


def _number(text: str | None, after: str, *, whole: bool) -> tuple[float, float] | None:
    """Return the number in a text such as `1,234.5` or `12.3k`, and half of the value of its last digit where it is rounded.

    The letter may follow the group at once. A `whole` number has no fraction, unless a letter or an exponent follows it. Not
    a finite number is None: lines of two processes may be mixed.
    """
    text = (text or "").strip()
    found = _NUMBER.match(text)
    if found is None:
        return None
    rest = text[found.end() :].strip() or (re.match(r"([kKMGB])\b", after) or ["", ""])[1]
    rest = rest.rstrip(",;:|)]}'\"")
    if rest not in _SCALES:
        return None
    plain, scale = found[0].replace(",", "").replace("_", "").lower(), _SCALES[rest]
    digits, _, power = plain.partition("e")
    if whole and "." in digits and not rest and not power:
        return None
    value = float(plain) * scale
    last = 0.5 * scale * 10.0 ** (int(power or 0) - len(digits.partition(".")[2])) if rest or power else 0.0
    return (value, last) if math.isfinite(value) else None


def _integers(text: str) -> list[int]:
    """Return the whole numbers in a text that may count steps."""
    found = _INTEGER.findall(_NO_STEP.sub(" ", text))
    return [int(digits.replace(",", "")) for digits in found[:20] if len(digits) < 16]


@dataclass
class Counted:
    """Steps: marks in order of time with `steps`, the number of steps since the mark before, and what each consumed.

    `breaks` are times between passes of a counter that begins anew, whose steps are not known. `flags` say what is left out.
    """

    marks: list[dict[str, Any]] = field(default_factory=list)
    breaks: list[Phase] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def doubt(self, flag: str) -> None:
        """Add a flag once."""
        if flag not in self.flags:
            self.flags.append(flag)


def count(lines: Sequence[dict[str, Any]], how: Printed) -> Counted:
    """Count the steps of lines that a Reader has kept, in order of their arrival. Never raises."""
    out = Counted()
    lines = [line for line in lines if {"read", "text", "integers"} <= {*line}]
    if any(line.get("too_slow") for line in lines):
        return Counted(flags=["slow_pattern"])
    if not lines:
        return Counted(flags=["no_line_matched"])
    counted = all("step" in line for line in lines)
    marks = _by_counter(lines, out) if counted else _by_line(lines, how, out)
    for name, each in (("samples", how.samples_per_step), ("tokens", how.tokens_per_step)):
        _amounts(name, each, marks, out)
    out.marks = _by_read(marks, out)
    return out


def _by_counter(lines: Sequence[dict[str, Any]], out: Counted) -> list[dict[str, Any]]:
    """Return the lines at which the script's own counter of steps went on, each with the steps since the one before.

    Lines with an equal counter are one step: a bar that is drawn again, or other ranks. A counter that begins anew starts
    another pass; the steps between two passes are not known, so the time between them is a break.
    """
    passes = _passes(lines)
    if len(passes) > 1:
        out.flags.append("counter_restarts")
    if not passes:
        out.flags.append("steps_in_disorder")
        return []
    marks: list[dict[str, Any]] = []
    for number, own in enumerate(passes):
        kept = own[:1]
        for before, line in pairwise(own):
            if line["step"] > kept[-1]["step"]:
                kept.append(line)
            elif {*GROUPS[1:-1]} & {*line} or line["step"] != before["step"]:
                out.doubt("lines_repeat")
        marks.append({**kept[0], "steps": 0 if number else 1, "pass": number})
        steps = [round(b["step"] - a["step"]) for a, b in pairwise(kept)]
        if len(steps) > 2 and max(steps) > FAR * median(steps):  # another number than that of the step
            out.doubt("steps_in_disorder")
            return []
        marks += [{**line, "steps": each, "pass": number} for line, each in zip(kept[1:], steps, strict=True)]
    for a, b in pairwise(marks):
        if b["steps"] == 0 and b["t_ns"] > a["t_ns"]:
            out.breaks.append(Phase(name="pause", start_ns=a["t_ns"], end_ns=b["t_ns"]))
    return marks


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

    All passes but the last must end alike, as epochs do.
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
    alike = max(ends) - min(ends) < largest and all(len(own) > 1 for own in passes[:-1])
    return passes if alike and max(ends) >= passes[-1][-1]["step"] else []


def _by_line(lines: Sequence[dict[str, Any]], how: Printed, out: Counted) -> list[dict[str, Any]]:
    """Return the lines as steps, `steps_per_line` each. Without that, a counter in the lines must agree that each is one."""
    agrees = _agrees(lines, how.steps_per_line or 1)
    if agrees is False:
        out.flags.append("lines_are_not_steps")
        return []
    if agrees is None and how.steps_per_line is None:
        out.flags.append("steps_unchecked")
    counting = len({tuple(line["integers"]) for line in lines}) > 2
    key = "integers" if counting else "text"
    kept = [lines[0], *(b for a, b in pairwise(lines) if a[key] != b[key])]
    if len(kept) == 1 and not lines[0]["integers"]:  # nothing in the lines tells them apart
        kept = list(lines)
    elif len(kept) < len(lines):
        out.flags.append("lines_repeat")
    return [{**line, "steps": how.steps_per_line or 1} for line in kept]


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


def _amounts(name: str, each: int | None, marks: list[dict[str, Any]], out: Counted) -> None:
    """Put the samples or tokens of each mark under `name`, from the group, the differences of totals, or `each` step."""
    total = f"{name}_total"
    if all(total in mark for mark in marks) and marks:
        values, error = [mark[total] for mark in marks], max(mark.get(f"{total}_error", 0) for mark in marks)
        grown = values[-1] - values[len(values) // 4]
        if any(b < a for a, b in pairwise(values)) or grown <= 0:
            out.flags.append("totals_fall")
        elif 2 * error > EXACT * grown:
            out.flags.append("totals_are_rounded")
        else:
            for mark, (a, b) in zip(marks, pairwise([values[0], *values]), strict=True):
                mark[name] = b - a if mark["steps"] else 0  # steps between two passes are not known
            return
    elif all(name in mark for mark in marks) and marks:
        values = [mark[name] for mark in marks]
        rounded = any(mark[f"{name}_error"] for mark in marks)
        if _grow(values) or (rounded and values[-1] > values[0] and all(b >= a for a, b in pairwise(values))):
            out.flags.append("counts_only_grow")
        else:
            for mark in marks:
                mark[name] *= mark["steps"]
            return
    elif each is not None:
        for mark in marks:
            mark[name] = each * mark["steps"]
        return
    elif any(part in mark or f"{part}_missing" in mark for mark in marks for part in (name, total)):
        out.flags.append("counts_missing")
    for mark in marks:
        mark.pop(name, None)


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
    """Join marks that arrived in one read: their times are that of the read, so only the last of them has one."""
    kept: list[dict[str, Any]] = []
    for _, same in groupby(marks, key=lambda mark: (mark["read"], mark.get("pass"))):
        *others, last = same
        names = [name for name in ("steps", "samples", "tokens") if name in last]
        kept.append(last | {name: sum(mark[name] for mark in (*others, last)) for name in names})
    if len(marks) > 2 and len(kept) < 0.75 * len(marks):
        out.flags.append("output_in_blocks")
    return kept
