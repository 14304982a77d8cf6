"""The files of a run that grow while a command of the user runs, kept where the command removes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.files import write_bytes


class KeptFiles:
    """Holds files open, so that their content outlives their names: `paths`, and `more` that appear later.

    `renew` makes anew what a run needs in its folder, once none of `paths` is there.

    A script may clear the folder in which its results were, and ours with it.
    """

    def __init__(self, paths: Sequence[Path], more: Callable[[], Iterable[Path]], renew: Callable[[], None]) -> None:
        self._paths, self._more, self._renew = paths, more, renew
        self._held: dict[Path, list[int]] = {}
        self.look()

    def look(self) -> None:
        """Hold the files that are new. Where one that was there has no name any more, renew the folder."""
        gone = False
        for path in (*self._paths, *self._more()):
            self._held.setdefault(path, [])
        for path, held in self._held.items():
            if held and os.fstat(held[-1]).st_nlink:
                continue
            gone |= bool(held)
            with suppress(OSError):
                held.append(os.open(path, os.O_RDONLY))
        if gone and not any(path.exists() for path in self._paths):
            with suppress(OSError):  # as long as there is no place for it
                self._renew()

    def restore(self) -> None:
        """Write the content of removed files before what was written under their names since."""
        for path, held in self._held.items():
            lost = [os.pread(number, status.st_size, 0) for number in held if not (status := os.fstat(number)).st_nlink]
            if lost:
                with suppress(OSError):
                    lost.append(path.read_bytes())
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, b"".join(lost))
            for number in held:
                os.close(number)
            held.clear()
