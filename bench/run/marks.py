"""What the readers of a command's steps share, while it runs and once it has ended: lines, leading optimizers, sums."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard


def json_lines(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of lines in JSON; other lines, such as torn ones, are left out."""
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def each_step(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of hooks, in which steps that are alike are one line, with a line for each step."""
    for line in lines:
        times = line.get("t_ns")
        yield from ({**line, "t_ns": each} for each in times) if isinstance(times, list) else (line,)


class NewLines:
    """The lines of a file that grows, each once and whole; at most so many bytes of it are read at a time."""

    def __init__(self, path: Path, most: int = -1) -> None:
        self._path, self._most, self._place = path, most, 0

    def read(self) -> list[bytes]:
        """Return the lines since the last call; all of them where the file was made anew."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._place if self._place <= file.seek(0, 2) else 0)
                start, data = file.tell(), file.read(self._most)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._place = start + len(whole)
        return whole.splitlines()


class Leaders:
    """Which optimizers of a process make its steps: the first one, and the next to begin where that has ended for good.

    An optimizer that begins after the last step of the leading one leads, until that makes another step. So `chain`, those
    that lead one after another, is final once all steps are added.
    """

    def __init__(self) -> None:
        self.chain: list[Any] = []
        self._others: set[Any] = set()

    def place(self, optimizer: Any) -> int | None:
        """Add a step; return the place of its optimizer in the chain, which it ends now, or None where it does not lead."""
        if optimizer in self._others:
            return None
        if optimizer not in self.chain:
            self.chain.append(optimizer)
        place = self.chain.index(optimizer)
        self._others.update(self.chain[place + 1 :])
        del self.chain[place + 1 :]
        return place


def full_sum(counts: Iterable[float | None]) -> float | None:
    """Return the sum of counts; None where one of them is not known."""
    total: float = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def is_number(value: Any, largest: float = sys.float_info.max) -> TypeGuard[float]:
    """Return whether a value is a finite number that is not too large: a whole one may be larger than any float."""
    return type(value) in (int, float) and abs(value) <= largest
