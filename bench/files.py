"""Files that several processes share: written under a temporary name, then renamed, so that nobody reads half a file."""

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
"""How often, and how far apart, a lock is asked for that may be held for an instant by one who only looks (`is_held`)."""


class Busy(UserError):
    """Another process holds what is needed; the message says what."""


@contextmanager
def held(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, in which the id of this process stands; the kernel lets go of it however the process ends.

    Where another process holds it, raises Busy with the message `busy`; without a message, waits until it lets go.
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
    """Whether a process holds a lock file; None where that cannot be known. Nothing is made, and nobody's lock is lost."""
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
