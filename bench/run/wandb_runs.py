"""The runs of Weights & Biases that a command has made itself, by the names of their folders: nothing is opened or changed.

`wandb sync` uploads a binary file of each run and nothing beside it, so that figures of ours could not be added to it.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

_NAME = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")
_GRACE_SECONDS = 2.0


def wandb_runs(folder: Path, start_ns: int, end_ns: int) -> list[str]:
    """Return the ids of the runs that began between two monotonic times in a working folder, or in WANDB_DIR."""
    offset = time.time() - time.monotonic_ns() / 1e9
    begin, end = start_ns / 1e9 + offset - _GRACE_SECONDS, end_ns / 1e9 + offset + _GRACE_SECONDS
    root = folder / os.environ.get("WANDB_DIR", "")
    ids = []
    for path in sorted((*root.glob("wandb/*run-*"), *root.glob(".wandb/*run-*"))):
        found = _NAME.fullmatch(path.name)
        with suppress(ValueError):  # no date
            if found is not None and begin <= datetime.strptime(found[1], "%Y%m%d_%H%M%S").timestamp() <= end:
                ids.append(found[2])
    return list(dict.fromkeys(ids))
