"""How far a command is while it runs: its steps are read from the files into which it, its hooks or `bench` write them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.folder import COMMAND_STEPS, SEEN, STEPS
from bench.run.marks import Leaders, NewLines, each_step, full_sum, is_number, json_lines
from bench.workloads.counted import first_steps
from bench.workloads.printed import LARGEST, OUTPUT

_BYTES = 2**22
"""At most so much of a file is read at a time."""


@dataclass(frozen=True)
class Tally:
    """Steps after the warm-up, and what they consumed over all processes where each of them says it.

    `seconds` is the time from `began_ns`, the end of the warm-up, to the last of these steps. `seen` counts all steps, the
    last of which ended at `last_ns`.
    """

    steps: int = 0
    samples: int | None = None
    tokens: int | None = None
    seconds: float = 0.0
    loss: float | None = None
    began_ns: int | None = None
    last_ns: int | None = None
    seen: int = 0

    @property
    def steps_per_second(self) -> float | None:
        """Speed in the window so far; None before its first step."""
        return self.steps / self.seconds if self.steps and self.seconds > 0 else None


class Watch:
    """Reads what is new in the folder of a command that runs. Steps of the script go before those of hooks and of the output.

    Lines of the output are counted by their counter `step`, or as `steps_per_line` steps each; at the end
    `bench.workloads.printed` counts them with more care.
    """

    def __init__(self, folder: Path, warmup_steps: int, steps_per_line: int = 1) -> None:
        self._folder, self._warmup, self._each = folder, warmup_steps, steps_per_line
        self._files: dict[Path, NewLines] = {}
        self._counts: dict[tuple[int, str], _Process] = {}

    def update(self) -> Tally:
        """Read the new lines and return how far the command is. Unknown lines are ignored."""
        for path in (STEPS.path(self._folder, COMMAND_STEPS), *SEEN.paths(self._folder)):
            hooks = path.match(SEEN.pattern)
            lines = json_lines(self._files.setdefault(path, NewLines(path, _BYTES)).read())
            for line in each_step(lines) if hooks else lines:
                rank = line.get("rank")
                if type(line.get("t_ns")) is not int or {"phase", "facts"} & line.keys():
                    continue
                key = (1, path.name) if hooks else (2 if rank == OUTPUT else 0, f"{rank} {line.get('pid')}")
                each = self._each if rank == OUTPUT else 1
                self._counts.setdefault(key, _Process(_Count(self._warmup, each))).add(line)
        counts = [self._counts[key].newest for key in sorted(self._counts) if key[0] == min(self._counts)[0]]
        if not counts:
            return Tally()
        first = max(counts, key=lambda count: count.seen)
        samples, tokens = (full_sum(count.amounts[name] for count in counts) for name in ("samples", "tokens"))
        return Tally(
            steps=first.steps,
            samples=None if samples is None else round(samples),
            tokens=None if tokens is None else round(tokens),
            seconds=0.0 if first.began_ns is None else (first.last_ns - first.began_ns) / 1e9,
            loss=first.loss,
            began_ns=first.began_ns,
            last_ns=first.last_ns or None,
            seen=first.seen,
        )


class _Process:
    """The steps of one process: those of its leading optimizers, with the count at the end of each."""

    def __init__(self, count: _Count) -> None:
        self._leaders, self._counts = Leaders(), [count]

    @property
    def newest(self) -> _Count:
        return self._counts[-1]

    def add(self, mark: dict[str, Any]) -> None:
        """Count a mark if it is one of a leading optimizer."""
        place = self._leaders.place(str(mark.get("optimizer", 0)))
        if place is not None:
            del self._counts[place + 2 :]
            if place + 1 == len(self._counts):
                self._counts.append(deepcopy(self._counts[place]))
            self.newest.add(mark)


class _Count:
    """The steps of one process, or of the output."""

    def __init__(self, warmup_steps: int, each: int) -> None:
        self._warmup, self._each = warmup_steps, each
        self._totals: dict[str, float] = {}
        self.steps, self.last_ns = 0, 0
        self._done = 0  # as `steps`, but from the first line, which is one step here
        self._first, self._largest, self._again = 1.0, 0.0, 0
        self.began_ns: int | None = None
        self.loss: float | None = None
        self.amounts: dict[str, float | None] = {"samples": 0, "tokens": 0}

    @property
    def seen(self) -> int:
        """All steps so far, with those before the first line."""
        return self._done and self._done - 1 + first_steps(self._first, self._largest) + self._again

    def add(self, mark: dict[str, Any]) -> None:
        """Count a mark: steps that have ended."""
        before = self._totals.get("step", 0)
        steps = self._grown(mark, "step") if "step" in mark else mark.get("steps", self._each)
        now = self._totals.get("step", 0)
        if "step" in mark and now < before / 2:  # it begins anew, as those of epochs do
            self._again += first_steps(now, self._largest)
        amounts = {name: self._amount(mark, name, steps) for name in self.amounts}
        if not steps or not is_number(steps) or steps < 0:
            return
        if "step" in mark and not self._done:
            self._first = mark["step"]
        elif "step" in mark:
            self._largest = max(self._largest, steps)
        self._done += int(steps)
        if self.began_ns is None:
            self.began_ns = mark["t_ns"] if self._done >= self._warmup else None
        else:
            self.steps += int(steps)
            self.amounts = {name: full_sum((self.amounts[name], amount)) for name, amount in amounts.items()}
        self.last_ns = mark["t_ns"]
        if type(mark.get("loss")) is float or is_number(mark.get("loss")):
            self.loss = mark["loss"]

    def _grown(self, mark: dict[str, Any], name: str) -> Any:
        """Return by how much a counter has grown since the mark before, 1 for its first value; None where it is none."""
        value, before = mark[name], self._totals.get(name)
        if not is_number(value):
            return None
        self._totals[name] = value
        return 1 if before is None else max(0, value - before)

    def _amount(self, mark: dict[str, Any], name: str, steps: Any) -> Any:
        """Return what the steps of a mark consumed; a line of the output says it of one step, or of all so far."""
        value, total = mark.get(name), f"{name}_total"
        if is_number(value, LARGEST):
            return value * (steps or 0) if mark.get("rank") == OUTPUT else value
        return self._grown(mark, total) if total in mark else None
