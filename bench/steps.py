"""Tell wattbench about the steps of your own training loop: `from bench.steps import step`, then `step(...)` after each.

Needs nothing but Python, and does nothing unless wattbench runs the script (`bench measure`, or the workload `command` of a
suite): then each call appends a line of JSON to the file that the variable WATTBENCH_STEPS names. A script that is to run
without wattbench installed can copy this file, or write such lines itself: {"t_ns": CLOCK_MONOTONIC in nanoseconds,
"rank": 0, "samples": 32, "tokens": 4096, "loss": 2.3}.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "WATTBENCH_STEPS"
_RANK = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK") if name in os.environ), "0")


def _append(**line: object) -> None:
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = {"t_ns": time.monotonic_ns(), "rank": int(_RANK) if _RANK.isdecimal() else 0, **line}
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps({k: v for k, v in line.items() if v is not None}) + "\n").encode())
        finally:
            os.close(file)
    except OSError:
        return  # a full disk must not end a training


def step(*, samples: int | None = None, tokens: int | None = None, loss: float | None = None) -> None:
    """Say that a step of the optimizer has ended, and what this process consumed in it.

    Call it once a step in every process. `loss` is a number: making one of a tensor on a GPU waits for the GPU. Nothing
    here waits; on a GPU the host runs ahead of the device by a constant number of steps, which cancels over a window.
    """
    counts = {"samples": samples, "tokens": tokens}
    whole = {name: None if count is None else int(count) for name, count in counts.items()}
    _append(**whole, loss=None if loss is None else float(loss))


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark time that is no training, `eval` or `checkpoint`: a context. It is measured apart, and is not in the steps."""
    _append(phase=name, begin=True)
    try:
        yield
    finally:
        _append(phase=name, begin=False)
