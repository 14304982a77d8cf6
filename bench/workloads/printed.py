"""Steps that a command prints: which lines of its output mean a step, and the numbers in them.

A line that matches is not always a step: a script may print every tenth step, each rank may print the same one, and a
count may be the total so far. So lines are kept as they come (`Reader`), and counted (`bench.workloads.counted`) once the
command has ended, when all of them are known.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count as numbers_from
from typing import TYPE_CHECKING, Any

import regex

from bench.record import Measurement
from bench.redact import redact
from bench.workloads.formats import EPOCH_BAR, FORMATS, HEADER

if TYPE_CHECKING:
    from bench.workloads.candidates import Candidates

GROUPS = ("step", "samples", "tokens", "samples_total", "tokens_total", "seconds", "milliseconds", "loss")
"""Names of groups of a pattern with a fixed meaning; a group with another name is a metric of the user."""
COUNTERS = ("step", "iter", "iteration", "batch", "epoch")
"""Names of counters in lines; an epoch is no step."""
OUTPUT = -1
"""Instead of a rank: steps read from the output. They count if no process reports steps itself."""
PATIENCE_SECONDS = 1.0
"""How long a pattern may take for one line: nested repetitions can take for ever."""
LARGEST = 1e18
"""Steps, samples and tokens above this are none."""
LONGEST_LINE, LONGEST_KNOWN = 65_536, 2_000
"""Lines are cut to so many characters; those of known formats are short, and a long line costs little."""
NEAR = 100
"""Within so many characters before a number its unit is looked for."""
ALIKE = 0.85
"""Share of letters (difflib) from which the name of a group is taken for a mistyped one."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_ENDS = re.compile(rb"[\r\n\b]+")
"""What ends a line: a bar is drawn again after a carriage return or backspaces."""
_NUMBER = re.compile(r"[+-]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?(?:[eE].*)?")
_NO_STEP = re.compile(r"\b\d+:\d\d(?::\d\d)?\b|\bepoch\b\W{0,4}\d+(?:/\d+)?", re.IGNORECASE)
"""Numbers that do not count steps: times of the day, and epochs."""
_INTEGER = re.compile(r"(?<![\w.,+-])\d[\d,]*+(?![\w.,]*\d)")
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_UNITS = {"seconds": "s", "milliseconds": "ms"}
_COUNTS = ("step", "samples", "tokens", "samples_total", "tokens_total")
_PER_TIME = r"(?: ?/ ?s(?:ec(?:ond)?s?)?|(?:[ _]per|_p)[ _]s(?:ec(?:ond)?s?)?)(?![^\W_])"
_RATE = re.compile(rf" ?[(\[]?[kKMGB]?(?: ?[^\W\d_]+)?{_PER_TIME}| ?(?:m?s|sec\w*) ?(?:/|per) ?[^\W\d_]+")
_RATE_BEFORE = re.compile(
    rf"(?:{_PER_TIME}[\"']? ?[:=]|\b(?:[fituw]ps|throughput|speed)[\"']?(?: ?[:=])?) ?$", re.IGNORECASE
)
"""What stands behind a number, or before it, that says how many there are in a second, or how long each takes."""
_CUT = re.compile(r"[._]?\d|[,'\u2019\u00a0\u202f]\d{3}(?!\d)|[eE][+-]?\d")
_CUT_AMOUNT = re.compile(r" \d{3}(?!\d)| ?[kKMGBT]i\b| [kKMGBT]\b")
"""What stands behind the digits of a number that goes on; of `2 M` only where it is no counter of steps."""
_COUNT_BEFORE = re.compile(r"\b\w*(?:sample|tok|example|image|seq|step|iter|it|batch|size)\w*[ :=]+$", re.IGNORECASE)
_NEXT = re.compile(r"[ :=]{1,3}[+-]?\d")
_BAR = re.compile(r"(?<!\s)\s*+\d{1,3}%\|.*|(?<![\s━╸╺█#=>.-])[\s━╸╺█#=>.-]++$")
_TOTAL = re.compile(r" ?(?:/|of) *(\d[\d,]*+(?!\.\d| ?[a-z]*/s)|\?)")
"""A whole number that is no rate: `step 100 / 12 it/s` has no total."""
_EPOCH = re.compile(r"epoch[\W_]*(\d{1,9})", re.IGNORECASE)
_EPOCH_LINE = re.compile(rf"[\W_]*{_EPOCH.pattern}", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SYNTAX = re.compile(r"\(\?P?<\w+>?|\\.|\[[^\]]*\]|\W")
"""What in a pattern is no plain text."""
_LOST = re.compile(r"failed \(exitcode: -?\d+\) local_rank: \d+ \(pid: \d+\) of ")
"""What torchrun says of a worker that was lost; it may start all workers again."""
_READS = numbers_from()


def check_pattern(text: str) -> str:
    """Return a pattern as it was given. Raises ValueError where it is no regular expression, or has groups that cannot be."""
    try:
        groups = set(regex.compile(text).groupindex)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    for name in sorted(groups - {*GROUPS}):
        if near := difflib.get_close_matches(name, GROUPS, n=1, cutoff=ALIKE):
            raise ValueError(f"unknown group {name!r}: did you mean {near[0]!r}? A metric of yours needs another name")
        if name in Measurement.model_fields:
            raise ValueError(f"group {name!r}: wattbench has a figure of this name; choose another one for your metric")
    for name, other in (("samples", "samples_total"), ("tokens", "tokens_total"), ("seconds", "milliseconds")):
        if {name, other} <= groups:
            raise ValueError(f"a pattern has {name} or {other}, not both")
    return text


@dataclass(frozen=True)
class Printed:
    """How a command prints its steps: `pattern`, and what each line or step stands for where no group says it.

    Without a pattern, lines in known formats are recognised. Raises ValueError where `steps_per_line` contradicts it.
    """

    pattern: str | None = None
    steps_per_line: int | None = None
    samples_per_step: int | None = None
    tokens_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.steps_per_line is None:
            return
        if self.pattern is None:
            raise ValueError("needs a step pattern, which says what a line of a step looks like")
        if "step" in regex.compile(self.pattern).groupindex:
            raise ValueError("the pattern has the group step, which counts the steps of a line; leave one of them out")


class Reader:
    """Turns output, as it arrives, into lines of the steps file: one for each line that matches a pattern or known format.

    The other lines go to `candidates`, for a pattern that would match them.
    """

    def __init__(self, pattern: str | None, candidates: Candidates | None = None) -> None:
        self._candidates = candidates
        self._pattern = None if pattern is None else regex.compile(pattern)
        self._too_slow, self._unfinished, self._header = False, b"", ""
        self._epochs: int | None = None
        self._epoch: int | None = None
        self._arrived = (0, 0)
        self._nearest = None if pattern is None else Nearest(pattern)

    def read(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the lines say that end in a chunk of output; an empty one is its end.

        A line has the time at which its last character arrived: a bar is ended by the next one that is drawn.
        """
        now = (time.monotonic_ns(), next(_READS))
        *ended, unfinished = _ENDS.split(chunk) if chunk else (b"", b"")
        for index, part in enumerate(ended):
            if part or index:
                self._arrived = now
            yield from self._line(self._unfinished + part)
            self._unfinished = b""
        if unfinished:
            self._unfinished, self._arrived = (self._unfinished + unfinished)[-LONGEST_LINE:], now
        if not chunk and self._nearest is not None and (line := self._nearest.line()):
            yield self._written({"nearest": redact(line[1])[:200], "score": line[0]})
        if not chunk and self._candidates is not None and (offer := self._candidates.offer()):
            yield self._written(offer)

    def _line(self, line: bytes) -> Iterator[bytes]:
        text = _ESCAPES.sub("", line.decode(errors="replace"))
        if not text or text.isspace():
            return
        if _LOST.search(text):
            yield self._written({"lost": True})
            return
        if self._pattern is None:
            values = self._in_known_format(text)
            if values is None and self._candidates is not None:
                self._candidates.add(text, *self._arrived)
        else:
            values = self._values(self._pattern, text)
            if values is not None:
                self._nearest = None
            elif self._nearest is not None:
                self._nearest.add(text)
        if values is None and (title := _EPOCH_LINE.match(text)):
            self._epoch = int(title[1])
        if values is not None:
            if self._epoch is not None and "epoch" not in values:
                values |= {"epoch": self._epoch, "epoch_apart": True}  # a line of its own says which
            yield self._written(values | {"text": zlib.crc32(text.encode()), "integers": _integers(text)})

    def _written(self, values: dict[str, Any]) -> bytes:
        t, read = self._arrived
        return (json.dumps({"t_ns": t, "rank": OUTPUT, "read": read, **values}) + "\n").encode()

    def _in_known_format(self, text: str) -> dict[str, Any] | None:
        if header := HEADER.fullmatch(text):
            self._header, self._epochs = header[1], int(header[2])
            return None
        text = text[:LONGEST_KNOWN]
        for known in FORMATS:
            if known.sign in text and (values := self._values(known.pattern, text)) is not None:
                values = {name: value for name, value in values.items() if not name.endswith("_missing")}
                state: dict[str, Any] = {"header": self._header, "epochs": self._epochs}
                if of_epoch := EPOCH_BAR.match(text):
                    state = {"header": of_epoch[1], "epochs": int(of_epoch[2]) + 1}
                return values | {"format": known.name, **state}
        return None

    def _values(self, pattern: Any, text: str) -> dict[str, Any] | None:
        """Return the numbers of a line, with half of the last digit of each as `NAME_error`; None where it does not match.

        `kind` is what stands before the counter and its total, `epoch` the number of an epoch there, else behind it, `words`
        the hash of all words: the lines of a validation differ in them.
        """
        if self._too_slow:
            return None
        try:
            found = pattern.search(text, timeout=PATIENCE_SECONDS)
        except TimeoutError:
            self._too_slow = True
            return {"too_slow": True}
        if found is None:
            return None
        groups, own = found.groupdict(), dict[str, float]()
        start, end = found.span("step" if groups.get("step") is not None else 0)
        total = _TOTAL.match(text, end)
        kind = re.sub(r"\d+", "#", _BAR.sub("", text[:start])).strip().lower()[-80:]
        out: dict[str, Any] = {"kind": kind, "total": total[1] if total and "step" in groups else ""}
        if epochs := [*_EPOCH.findall(text, end)[:1], *_EPOCH.findall(text[:start])]:
            out["epoch"] = int(epochs[-1])
        out["words"] = zlib.crc32(" ".join(sorted({*_WORD.findall(text.lower())})).encode())
        for name, group in groups.items():
            after = text[found.end(name) :] if group is not None and name != "step" else ""
            if group is not None and name in _COUNTS and _is_rate(text, *found.span(name)):
                out[f"{name}_rate"] = True
                if name != "step":  # that is told by its growth
                    continue
            if group is not None and name in _UNITS:
                group = group.rstrip(",;:|)]").removesuffix(_UNITS[name])
            fraction = name not in GROUPS or name in ("loss", *_UNITS)
            cut = group is not None and name in _COUNTS and _is_cut(text, found.span(name), found.end(), name == "step")
            number = None if cut else _number(group, after, whole=not fraction)
            if name not in GROUPS:
                own |= {name: number[0]} if number is not None else {}
            elif number is not None and (name == "loss" or 0 <= number[0] <= LARGEST):
                out[name], out[f"{name}_error"] = number
            else:
                out[f"{name}_missing"] = True
        return out | ({"own": own} if own else {})


class Nearest:
    """The line that came nearest to a pattern: with the longest beginning or end of the pattern that matches it."""

    KEPT = 200
    """So many lines are looked at, each with other text than those before."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._lines: dict[str, str] = {}

    def add(self, text: str) -> None:
        """Keep a line unless one like it, but for its numbers, is there."""
        if len(self._lines) < self.KEPT:
            self._lines.setdefault(re.sub(r"\d+", "#", text[:200]), text[:1000])

    def line(self) -> tuple[int, str] | None:
        """Return how many plain letters of the pattern match, and the line; None where nothing of it does.

        Where no letters do, it is the line with most words of the pattern, the names of its groups included.
        """
        ends = {part for size in range(2, len(self._pattern)) for part in (self._pattern[:size], self._pattern[-size:])}
        ranked = sorted(((len(_SYNTAX.sub("", part)), len(part), part) for part in ends), reverse=True)
        limit = time.monotonic() + PATIENCE_SECONDS
        for letters, _, part in ranked:
            if letters < 2 or time.monotonic() > limit:
                break
            with suppress(regex.error, TimeoutError):
                piece = regex.compile(part)
                for line in self._lines.values():
                    if piece.search(line, timeout=max(0.01, limit - time.monotonic())):
                        return letters, line
        words = {*_WORD.findall(self._pattern.lower())}
        words |= {*COUNTERS} if "step" in words else set()
        shared = {
            line: len(words & {*_WORD.findall(line.lower())}) for line in self._lines.values() if _INTEGER.search(line)
        }
        best = max(shared, key=shared.__getitem__, default="")
        return (0, best) if shared.get(best) else None


def _number(text: str | None, after: str, *, whole: bool) -> tuple[float, float] | None:
    """Return the number in a text such as `1,234.5` or `12.3k`, and half of the value of its last digit where it is rounded.

    The letter may follow the group at once. A `whole` number has no fraction, unless a letter or an exponent follows it; any
    other is rounded. Not a finite number is None: lines of two processes may be mixed. So is one with a decimal comma, or
    what may be one.
    """
    text = (text or "").strip()
    found = _NUMBER.match(text)
    if found is None:
        return None
    rest = text[found.end() :].strip() or (re.match(r"([kKMGB])\b", after) or ["", ""])[1]
    rest = rest.rstrip(",;:|)]}'\"")
    if rest not in _SCALES:
        return None
    commas = found[0].rstrip(",").count(",")
    if commas and not (_GROUPED.fullmatch(found[0].rstrip(",")) and (whole or commas > 1 or "." in found[0])):
        return None
    plain, scale = found[0].replace(",", "").replace("_", "").lower(), _SCALES[rest]
    digits, _, power = plain.partition("e")
    if whole and "." in digits and not rest and not power:
        return None
    value = float(plain) * scale
    rounded = rest or power or not whole
    place = int(power or 0) - len(digits.partition(".")[2])
    last = 0.5 * scale * float(f"1e{place}") if rounded else 0.0
    return (value, last) if math.isfinite(value) else None


def _is_cut(text: str, span: tuple[int, int], end: int, counts_steps: bool) -> bool:
    """Return whether a group has only a part of a number, as two digits of `12,288`; a match that goes on may divide it."""
    start, stop = span
    if text[start - 1 : start].isdigit() and text[start : start + 1].isdigit():
        return True
    whole = counts_steps or not _CUT_AMOUNT.match(text, stop)
    return not whole or (stop == end and _CUT.match(text, stop) is not None)


def _is_rate(text: str, start: int, end: int) -> bool:
    """Return whether a number in a text has a unit of a rate, such as samples/s or ms/step, behind it or before it."""
    unit, before = _RATE.match(text, end), text[max(0, start - NEAR) : start]
    if unit is not None and _NEXT.match(text, unit.end()) and _COUNT_BEFORE.search(before):
        return False  # `tokens 64 tok/s 5000`: the unit is that of the next number
    return unit is not None or _RATE_BEFORE.search(before) is not None


def _integers(text: str) -> list[int]:
    """Return the whole numbers in a text that may count steps."""
    found = _INTEGER.findall(_NO_STEP.sub(" ", text))
    return [int(digits.replace(",", "")) for digits in found[:20] if len(digits) < 16]
