"""A step pattern for the output of a command that has none, made from its lines with a counter, and tried on them."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from bench.redact import redact
from bench.workloads.counted import count
from bench.workloads.printed import COUNTERS, Printed, Reader

KEPT, LONGEST, LEAST = 500, 500, 5
"""So many lines are kept, of so many characters at most; and so many must count steps."""
DOUBTS = {"steps_in_disorder", "passes_differ", "slow_pattern"}
"""Flags with which a pattern is not offered."""
_COUNTER = re.compile(
    rf"((?:(?<!\w)[^\W\d]\w*_|(?<![^\W_]))(?:{'|'.join(COUNTERS)}))([ :=#\[(]{{0,12}})\d+(?![.,]?\d|\w)", re.IGNORECASE
)
"""A name that ends in a counter, what is between, and its number. Words are looked at once: a line may be all underscores."""


class Candidates:
    """The first lines of an output that have a counter of steps, with the times and reads in which they arrived."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, int, int]] = []

    def add(self, text: str, t_ns: int, read: int) -> None:
        """Keep a line if it has a counter."""
        if len(self._lines) < KEPT and len(text) <= LONGEST and _COUNTER.search(text):
            self._lines.append((text, t_ns, read))

    def offer(self) -> dict[str, Any] | None:
        """Return the pattern of the counter that most lines have and that counts steps, a line of it and how many it counts.

        A counter of epochs comes last: it is not that of steps.
        """
        heads = Counter(_head(*match.groups()) for text, *_ in self._lines for match in _COUNTER.finditer(text))
        for pattern, _ in sorted(heads.most_common(10), key=lambda head: "epoch" in head[0].lower()):
            lines = self._matching(pattern)
            counted = count([values for values, _ in lines], Printed(pattern))
            if len(counted.marks) >= LEAST and not DOUBTS & {*counted.flags}:
                return {"offer": pattern, "example": redact(lines[0][1])[:200], "score": len(counted.marks)}
        return None

    def _matching(self, pattern: str) -> list[tuple[dict[str, Any], str]]:
        """Return what a pattern reads of the lines, as they arrived, each with its text."""
        reader = Reader(pattern)
        return [
            (json.loads(values) | {"t_ns": t_ns, "read": read}, text)
            for text, t_ns, read in self._lines
            for values in reader.read(text.encode(errors="replace") + b"\n")
        ]


def _head(name: str, between: str) -> str:
    """Return the pattern of a counter with a name, and what stands between both: blanks may be more or fewer."""
    plain = re.sub(r"[\[(]", r"\\\g<0>", between)
    return rf"\b{name}{re.sub(' +', ' *', plain)}(?P<step>\d+)"
