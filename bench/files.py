"""Files shared by several processes: written under a temporary name and then renamed, so that none is read half-written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import UserError

_TRIES, _TRY_SECONDS = 5, 0.02
"""Attempts to take a lock, and the seconds between them: `is_held` of another process holds it for an instant."""


class Busy(UserError):
    """Another process holds a lock; the message says which."""


@contextmanager
def held(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, which contains the id of this process; the kernel releases it however the process ends.

    Where another process holds it, raises Busy with the message `busy`; without a message, waits for the release.
    """
    import fcntl  # not on Windows, where the dashboard may run

    with path.open("a+") as file:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
                break
            except BlockingIOError as error:
                if not left:
                    raise Busy(busy or f"{path} is held") from error
                time.sleep(_TRY_SECONDS)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_held(path: Path) -> bool | None:
    """Return whether a process holds a lock file; None where that is unknown. Other locks stay as they are."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if isinstance(error, BlockingIOError) else None
    finally:
        os.close(handle)
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: after a failure the old content is there, and no temporary file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a write names no file
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, allow_nan=False, indent=1) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the value in a JSON file; None where the file is absent or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
