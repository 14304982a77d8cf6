"""Files that several processes share: written under a temporary name, then renamed, so that nobody reads half a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NEEDS = "needs.json"
"""File in a run's folder that names the folder of the run that it needs."""
CHECKPOINT = "checkpoint"
"""Folder in a run's folder with the weights that the run has saved."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a failure leaves what was there, and nothing else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, allow_nan=False, indent=1) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the value in a JSON file, or None where there is no whole file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
