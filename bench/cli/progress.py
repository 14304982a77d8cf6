"""The progress of runs, and answers, in a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.figures.metrics import headline
from bench.folder import WORKER_LOG
from bench.record import RunRecord, Status
from bench.run.runner import Execution, Progress
from bench.schema import RunSpec

if TYPE_CHECKING:
    import rich.console

    from bench.run.course import Course

LAST_LINES = 5
"""Lines of the log of a failed run that are shown."""
_CLEAR = "\r\x1b[2K"


class Lines(Progress):
    """Progress as lines on stderr. In a terminal the last line is live: what runs now, and the time left.

    Use it in a `with` block, which clears the live line at its end. `folder` holds the runs.
    """

    folder = Path()

    def __init__(self, takes: str = "") -> None:
        self._takes = takes
        self._names: dict[str, str] = {}
        self._repeats = 1
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._to_do = self._finished = 0
        self._current = "starting"
        self._left: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._finished and error is None:
            self.note(f"done in {_clock(time.monotonic() - self._began)}")
        elif self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def begin(self, execution: Execution, to_do: int, done: int) -> None:
        """Print how many runs follow, how long they take, and where they are written."""
        from analytics.say.runs import run_names
        from analytics.text import counted

        self._to_do, self._repeats, self.folder = to_do, execution.plan.suite.repeats, execution.folder
        self._names = run_names(execution.plan.runs)
        takes = f", {self._takes}" if self._takes and to_do and not done else ""
        before = f" (resumed: {done} were done before)" if done else ""
        self.note(f"{counted(to_do, 'run')}{takes}{before}, in {execution.folder}")

    def note(self, text: str) -> None:
        """Print a line."""
        printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        sys.stderr.write(f"{_CLEAR if self._live else ''}{printable}\n")
        sys.stderr.flush()

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs now and the time left."""
        self._current = self._name(spec)
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
        self._finished += 1
        left = f"  {_clock(self._left[1] - record.duration_seconds)} left" if self._left and not self._live else ""
        self.note(f"{self._head()} {self._name(record.spec)}: {headline(record)}{left}")
        log = self.folder / record.run_id / WORKER_LOG
        if record.status not in (Status.OK, Status.SKIPPED, Status.OUT_OF_MEMORY) and log.exists():
            last = record.error.log_tail.splitlines()[-LAST_LINES:] if record.error is not None else []
            self.note("\n".join([*(f"  | {line[:200]}" for line in last), f"  its output: {log}"]))

    def waits(self, text: str) -> None:
        """Show what the last job does that was asked for."""
        self._current, self._left = text, None

    def skipped(self, reasons: Mapping[str, str]) -> None:
        """Print how many configurations cannot run here, by reason."""
        for reason, count in Counter(reasons.values()).items():
            self.note(f"skipped {count} configuration{'s' * (count != 1)}: {reason}")

    def _name(self, spec: RunSpec) -> str:
        from analytics.say.names import spoken

        repeat = f" ({spec.repeat + 1} of {self._repeats})" if self._repeats > 1 else ""
        return f"{self._names.get(spec.config_id) or spoken(spec.label)}{repeat}"

    def _head(self) -> str:
        return f"[{self._finished}/{self._to_do}]"


class LiveLine:
    """How a command goes, on one line of the terminal that is drawn anew on stderr; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def draw(self, course: Course) -> None:
        """Draw the line: steps, speed, power, energy and cost so far, and the time left and of what."""
        from analytics.text import counted, interval, number, scale

        if not self._live:
            return
        rate, joules, usd = (course.tally.steps_per_second, *map(course.used.get, ("energy_joules", "cost_usd")))
        texts = [counted(course.tally.seen, "step")] if course.tally.seen else [_clock(course.seconds)]
        texts += [f"{number(rate)} steps/s"] if rate else []
        texts += [f"{interval(course.watts)} W"] if course.watts is not None else []
        divisor, unit = scale(joules or 0.0, "J")
        texts += [f"{interval(joules / divisor)} {unit}"] if joules else []
        texts += [f"{interval(usd)} USD"] if usd else []
        whole = course.training_left
        measured = course.left if course.left != whole else None
        pairs = [(measured, "measurement"), (whole, "training")]
        parts = [f"{_clock(left)} of the {what}" for left, what in pairs if left is not None]
        texts += [f"about {' and '.join(parts)} left"] if parts else []
        sys.stderr.write(f"{_CLEAR}{', '.join(texts)[:150]}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Clear the line."""
        if self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def screen(*, stderr: bool = False) -> rich.console.Console:
    """Return the console for answers: as wide as the terminal, or 160 columns without one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, markup=False, stderr=stderr, width=160)
