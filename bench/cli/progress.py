"""The progress of runs, and answers, in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from bench.figures.metrics import headline
from bench.record import RunRecord, Status
from bench.run.runner import Execution, Progress
from bench.schema import RunSpec

if TYPE_CHECKING:
    import rich.console
    from rich.table import Table

_CLEAR = "\r\x1b[2K"


class Lines(Progress):
    """Progress as lines on stderr. In a terminal the last line is live: what runs now, and the time left.

    Use it in a `with` block, which clears the live line at its end.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._to_do = self._finished = 0
        self._current = "starting"
        self._left: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def begin(self, execution: Execution, to_do: int, done: int) -> None:
        """Print where the runs are written."""
        self._to_do = to_do
        resumed = f", resumed: {done} runs were done before" if execution.resumed else ""
        self.note(f"{to_do} runs in {execution.folder}{resumed}")

    def note(self, text: str) -> None:
        """Print a line."""
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        sys.stderr.write(f"{_CLEAR if self._live else ''}{printable}\n")
        sys.stderr.flush()

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs now and the time left."""
        self._current = f"{spec.label} r{spec.repeat}"
        self._left = (time.monotonic(), remaining_seconds) if remaining_seconds is not None else None
        self.tick()

    def tick(self) -> None:
        """Redraw the live line, about once a second: cheap enough not to disturb what is measured."""
        if not self._live:
            return
        now = time.monotonic()
        left = f", about {_clock(self._left[1] - (now - self._left[0]))} left" if self._left else ""
        text = f"{self._head()} {_clock(now - self._began)}{left}  {self._current}"
        sys.stderr.write(f"{_CLEAR}{text[:150]}")
        sys.stderr.flush()

    def done(self, record: RunRecord) -> None:
        """Print how a run ended."""
        self._finished += record.status is not Status.SKIPPED or record.duration_seconds > 0
        left = f"  {_clock(self._left[1] - record.duration_seconds)} left" if self._left and not self._live else ""
        self.note(f"{self._head()} {record.spec.label} r{record.spec.repeat}: {headline(record)}{left}")

    def _head(self) -> str:
        return f"[{self._finished}/{self._to_do}]"


def _clock(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def screen() -> rich.console.Console:
    """Return the console for answers: as wide as the terminal, or 160 columns without one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160)


def print_parts(parts: Iterable[str | Table]) -> None:
    """Print sentences and tables."""
    console = screen()
    for part in parts:
        console.print(part)
