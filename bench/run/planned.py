"""How long the whole training is, as a script states it: by a callback, or by a counter of its output with a total.

A counter counts where it grows with the steps, by one or by a whole number for each: then it counts batches or samples, and
its total is so many times too large. A bar may be that of an epoch, which is known where its line says which one, or it
began anew. Under "Epoch" without a number it may as well be that over all epochs, and states nothing. A counter that begins
far above the steps made is that of a training that was resumed.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, dropwhile, pairwise
from typing import Any, NamedTuple

from pydantic import ValidationError

from bench.record import PlannedLength
from bench.workloads.counted import RESUMED
from bench.workloads.formats import EVALUATION, PREPARATION, trainer_bar
from bench.workloads.printed import LARGEST, OUTPUT

WHOLE, EPOCH = ("megatron", "llm_c", "transformers"), ("keras", "lightning", "timm")
"""Formats whose total is that of the whole training, and of an epoch."""
LEAST_STEPS, ALIKE = 20, 0.02
"""So many steps a counter must have gone along with, and the share by which it may differ, or by one step.

Of 20 steps a counter that grows by 0.9 differs by two.
"""
LEAST_TOP = 4
"""A counter that falls below half of a value above this begins anew."""
PATTERN = "pattern"
ONE_FIT = ("transformers", "keras", "lightning")
"""Formats of libraries with which a script may train several times."""
_OF_EPOCH = re.compile(r"epoch[\W_]*#")
"""A title with the number of an epoch."""
_Until = Callable[[dict[str, Any]], int]


class _Pass(NamedTuple):
    """One time that a counter ran through: its lines, and the steps between the first and the last of them."""

    lines: list[dict[str, Any]]
    steps: int

    @property
    def grown(self) -> int:
        return round(float(self.lines[-1]["step"]) - float(self.lines[0]["step"]))

    @property
    def over_epochs(self) -> bool:
        """Whether it goes on in a later epoch than that in which it began. At 0 its title may be that of the last one."""
        tops = {line["epoch"]: line["step"] for line in self.lines if "epoch" in line and line["step"]}
        return any(tops[one] < tops[two] for one, two in pairwise(sorted(tops)))


@dataclass
class _Bar:
    """A counter with a total: its lines, and each time that it ran through."""

    name: str
    kind: str
    total: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    passes: list[_Pass] = field(default_factory=list)

    @property
    def each(self) -> int:
        """By how much it grows in a step; 0 where that is no whole number, or too few steps were seen."""
        parts = [(one.grown, one.steps) for one in self.trained]
        grown, steps = (sum(part) for part in zip((0, 0), *parts, strict=True))
        each = round(grown / steps) if steps else 0
        alike = all(abs(more - each * count) <= max(each, ALIKE * more) for more, count in [(grown, steps), *parts])
        return each if steps >= max(LEAST_STEPS, 8 * each) and alike else 0

    @property
    def trained(self) -> list[_Pass]:
        """The passes with steps in them, which those of an evaluation have not."""
        return [one for one in self.passes if one.steps > 1]

    @property
    def again(self) -> bool:
        """Whether several trainings drew it: they state other numbers of epochs, or an epoch began once more."""
        begun = [int(one.lines[-1]["header"]) for one in self.trained if one.lines[-1].get("header")]
        stated = {line.get("epochs") for line in self.lines}
        return self.name in EPOCH and (len(stated) > 1 or begun != sorted({*begun}))

    @property
    def counting(self) -> list[dict[str, Any]]:
        """Its lines from the first one above 0."""
        return list(dropwhile(lambda line: not line["step"], self.lines))

    @property
    def leaps(self) -> bool:
        """Whether it begins far above 0, by more than it ever grows between two lines: its training was resumed."""
        distances = [two["step"] - one["step"] for one, two in pairwise(self.counting)]
        return bool(distances) and bool(self.counting[0]["step"] > RESUMED * max(distances))

    def ahead(self, until: _Until) -> float:
        """Return by how many steps it was ahead of those made when it began; below 0 it was behind."""
        first = self.counting[0]
        ahead = float(first["step"] / self.each - until(first))
        small = abs(ahead) <= max(2, ALIKE * self.total / self.each)
        return 0.0 if small or (ahead > 0 and not self.leaps) else ahead

    def length(self, earlier_steps: int, *, partial: bool) -> PlannedLength | None:
        """Return what its total says; `partial`: there is more than it counts."""
        steps, over = math.ceil(self.total / self.each), any(one.over_epochs for one in self.trained)
        if self.name in EPOCH:
            return self._of_epoch(steps)
        if ("epoch" in self.kind and not _OF_EPOCH.search(self.kind)) or (over and len(self.passes) > 1):
            return None
        apart = {line.get("epoch_apart", False) for line in self.lines if "epoch" in line}
        in_epoch = "epoch" in self.kind or False in apart
        if self.name not in WHOLE and len(self.passes) == 1 and apart == {True} and not (in_epoch or over):
            return None
        if self.name not in WHOLE and (len(self.passes) > 1 or (in_epoch and not over)):
            return PlannedLength(epoch_steps=steps, source=self.name)
        if len(self.passes) > 1 or (partial and self.name not in WHOLE) or steps <= earlier_steps:
            return None
        assumed = self.name not in WHOLE or self.name in ONE_FIT
        return PlannedLength(
            steps=steps - earlier_steps, earlier_steps=earlier_steps, source=self.name, assumed=assumed
        )

    def _of_epoch(self, steps: int) -> PlannedLength:
        """Return what the bar of an epoch of so many steps says; the first epoch is that with which the training began."""
        epochs, first = self.lines[0].get("epochs"), self.lines[0].get("header")
        if not epochs or not first:
            return PlannedLength(epoch_steps=steps, source=self.name)
        earlier = steps * (int(first) - (self.name == "keras"))  # Lightning counts epochs from 0
        return PlannedLength(
            steps=steps * epochs - earlier, earlier_steps=earlier, epoch_steps=steps, source=self.name, assumed=True
        )


def planned_length(lines: Sequence[dict[str, Any]], marks: Sequence[dict[str, Any]]) -> PlannedLength | None:
    """Return what the lines of a steps file say of the length; `marks` are the steps of the first rank, in order of time.

    None where nothing does, where two trainings do, or where it is not sure what the counter counts.
    """
    stated = [line["planned"] for line in lines if line["rank"] == 0 and "planned" in line]
    if stated:
        try:
            return PlannedLength.model_validate(stated[0]) if len(stated) == 1 else None
        except ValidationError:
            return None
    times, done = [int(mark["t_ns"]) for mark in marks], [0, *accumulate(int(mark.get("steps", 1)) for mark in marks)]

    def until(line: dict[str, Any]) -> int:
        return done[bisect_right(times, line["t_ns"])]

    bars = _bars([line for line in lines if line["rank"] == OUTPUT and "kind" in line], until)
    choice = [bar for bar in bars if bar.each]
    if len(choice) != 1 or choice[0].again:
        return None
    (own,) = choice
    ahead = own.ahead(until)
    if ahead < 0:  # another training, or a part of it
        return None
    others = [bar for bar in bars if bar is not own and not PREPARATION.search(bar.kind)]
    outer = any(bar.lines[-1]["step"] < bar.total for bar in others)
    last = own.lines[-1]
    return own.length(round(ahead), partial=outer or (last["step"] == own.total and done[-1] > until(last) + 1))


def _bars(lines: Sequence[dict[str, Any]], until: _Until) -> list[_Bar]:
    """Return the counters with a total, but for those of an evaluation; `until` counts the steps before a line.

    A number that a counter passes is no total of it.
    """
    lines = sorted(lines, key=lambda line: line["t_ns"])
    own = trainer_bar(lines) if all("format" in line for line in lines) else set()
    bars: dict[tuple[str, str, int], _Bar] = {}
    passed = set[tuple[str, str]]()
    for index, line in enumerate(lines):
        total = str(line.get("total", "")).replace(",", "")
        if "step" in line and total.isdecimal() and 0 < float(total) <= LARGEST and not EVALUATION.search(line["kind"]):
            name = "transformers" if index in own else line.get("format", PATTERN)
            key = (name, line["kind"], int(total))
            bars.setdefault(key, _Bar(*key)).lines.append(line)
            passed |= {key[:2]} if line["step"] > int(total) else set()
    sound = [bar for bar in bars.values() if (bar.name, bar.kind) not in passed]
    for bar in sound:
        bar.passes = list(_passes(bar.counting if bar.leaps else bar.lines, until))
    return sound


def _passes(lines: Sequence[dict[str, Any]], until: _Until) -> Iterator[_Pass]:
    """Yield each time that a counter ran through, until it began anew.

    Lines of other ranks, a little late, are left out.
    """
    own = [lines[0]]
    for line in [*lines[1:], None]:
        last = own[-1]
        if line is not None and line["step"] >= last["step"]:
            own.append(line)
        elif line is None or (line["step"] < last["step"] / 2 and last["step"] > LEAST_TOP):
            yield _Pass(own, until(last) - until(own[0]))
            own = [line or last]
