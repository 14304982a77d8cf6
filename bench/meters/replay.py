"""A recorded trace instead of hardware: for tests, and to try a suite on a machine without sensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from bench.meters.meter import INTERVAL, Meter, Reading
from bench.meters.trace import Trace


class ReplayMeter(Meter):
    """Returns the readings of a recorded trace at the pace of the recording, starting with the first read.

    Its rows have the source `replay`, so that no figure made from them counts as measured. Raises OSError.
    """

    source = "replay"
    components = ("gpu", "cpu", "dram", "node")
    period = INTERVAL
    nature = "imported"
    argument = "/path/to/a/trace"

    @classmethod
    def open(cls, argument: str, gpus: Sequence[str] | None) -> Self:
        """Replay the trace in this file."""
        return cls(Path(argument))

    def __init__(self, path: Path) -> None:
        self.errors = 0
        self._rows = [row for row in Trace.read(path).rows if row.event is None]
        self._shift: int | None = None
        self.reason = None if self._rows else f"{path} holds no readings"

    def read(self) -> list[Reading]:
        """Return the rows that became due since the last read, shifted to the present."""
        now, wall_ns = time.monotonic_ns(), time.time_ns()
        if self._shift is None and self._rows:
            self._shift = now - self._rows[0].t_ns
        shift = self._shift or 0
        due = [row for row in self._rows if row.t_ns + shift <= now]
        self._rows = self._rows[len(due) :]
        return [replace(row, t_ns=row.t_ns + shift, wall_ns=wall_ns, source="replay") for row in due]
