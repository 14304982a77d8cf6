"""A recorded trace in place of hardware: for tests, and to try a suite on a machine that measures nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from bench.meters.trace import Reading, Trace


class ReplayMeter:
    """Gives the readings of a recorded trace again, at the pace of the recording, from the first read on.

    Its rows have the source `replay`, so that nothing made from them counts as measured. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.errors = 0
        self._rows = [row for row in Trace.read(path).rows if row.event is None]
        self._shift: int | None = None
        self.reason = None if self._rows else f"{path} holds no readings"

    def read(self) -> list[Reading]:
        """Return the rows that have become due since the last read, with the times of now."""
        now, wall_ns = time.monotonic_ns(), time.time_ns()
        if self._shift is None and self._rows:
            self._shift = now - self._rows[0].t_ns
        shift = self._shift or 0
        due = [row for row in self._rows if row.t_ns + shift <= now]
        self._rows = self._rows[len(due) :]
        return [replace(row, t_ns=row.t_ns + shift, wall_ns=wall_ns, source="replay") for row in due]

    def close(self) -> None:
        """Nothing is held open."""
