"""Space for the record of a command whose disk fills while it runs: a reserve in its folder, and other places."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from bench.errors import FAULT, UserError
from bench.folder import BEGINNING, FULL, RESERVE

T = TypeVar("T")
RESERVE_BYTES, _PLENTY = 4 * 2**20, 16
"""Space that is held, where so many times as much is free."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MEMORY = "/dev/shm"  # noqa: S108  a place for files that needs no disk


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Hold some space in the folder of a run; it is free again at the end of the block. No space where there is little."""
    with suppress(OSError):
        plenty = shutil.disk_usage(folder).free >= _PLENTY * RESERVE_BYTES
        number = os.open(folder / RESERVE, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if plenty:
                os.posix_fallocate(number, 0, RESERVE_BYTES)
        finally:
            os.close(number)
    try:
        yield
    finally:
        release(folder)


def note_full(folder: Path) -> None:
    """Note in the folder of a run that its disk was full, where space is held: for those who make the record later."""
    with suppress(OSError):
        (folder / RESERVE).replace(folder / FULL)


def release(folder: Path) -> None:
    """Free the space that is held in the folder of a run, also by a process that was killed."""
    (folder / RESERVE).unlink(missing_ok=True)
    with suppress(OSError):
        os.truncate(folder / FULL, 0)


def is_full(folder: Path) -> bool:
    """Return whether nobody can write into a folder now; False where that is unknown."""
    with suppress(OSError):
        space = os.statvfs(folder)
        return space.f_blocks > 0 and (space.f_bfree if os.geteuid() == 0 else space.f_bavail) == 0
    return False


def written(folder: Path, write: Callable[[Path], T], measured: str) -> tuple[T, Path]:
    """Write into the folder of a run; where its disk is full, into a copy of it among temporary files, or in memory.

    Return what `write` returns, and the folder. Raises UserError, which says what was `measured`, where no place is left.
    """
    try:
        return write(folder), folder
    except OSError as error:
        if error.errno not in _FULL:
            raise
    for place in (tempfile.gettempdir(), _MEMORY):
        root = None
        try:
            root = Path(tempfile.mkdtemp(prefix="wattbench-", dir=place))
            copy = root.joinpath(*folder.parts[-3:])
            copy.parent.mkdir(parents=True)
            for path in folder.parent.iterdir():  # idle power is among them
                if path.is_file():
                    shutil.copyfile(path, copy.parent / path.name)
            shutil.copytree(folder, copy)
            done = write(copy)
            with suppress(OSError):
                (folder / BEGINNING.name).unlink(missing_ok=True)  # else another record would be made of it (`recover`)
            return done, copy
        except OSError:
            if root is not None:
                shutil.rmtree(root, ignore_errors=True)
    raise UserError(f"the disk of {folder} is full, and no other place took the record: {measured}", code=FAULT)
