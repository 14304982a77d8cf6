"""The output of a command, read on its way: it is passed on as it arrives, and its lines of steps are kept."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import sys
import termios
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from bench.workloads.candidates import Candidates
from bench.workloads.printed import LONGEST_LINE, Reader

QUIET_SECONDS, LONGEST_DRAIN_SECONDS = 0.5, 5.0
"""How long no output must come after the end of a command until it is complete, and the longest that is waited."""

TAIL_BYTES = 16_384


class _Channel(NamedTuple):
    """What is read from a command: where it goes, its lines, and the terminal in its place."""

    target: IO[bytes]
    reader: Reader
    terminal: int | None


class Streams:
    """Standard output and standard error of a command, which go to those of this process, or the output to `output`.

    Where both are one file or one terminal, they stay one, so that their order stays. In place of a terminal the command
    gets another one of the same size, so that it still draws bars. Neither a reader that is gone nor a full disk ends it.
    `tail` is the end of what was read.
    """

    def __init__(self, pattern: str | None, steps: Path, output: IO[bytes] | None) -> None:
        self._steps, self._ends, self._lines = steps, list[int](), b""  # lines that are not written yet
        self.tail = b""
        self._channels: dict[int, _Channel] = {}
        out = _raw(1 if output is None else output)
        error = _raw(2) if output is None or _number(output) is not None else output
        self.stdout = self._open(out, pattern)
        self.stderr = self.stdout if _same(out, error) else self._open(error, pattern)

    def _open(self, target: IO[bytes], pattern: str | None) -> int:
        """Return the end of a pipe or of a terminal for the command."""
        number = _number(target)
        terminal = number if number is not None and os.isatty(number) else None
        ours, theirs = os.pipe() if terminal is None else pty.openpty()
        if terminal is not None:
            modes = termios.tcgetattr(theirs)
            modes[1] &= ~termios.OPOST  # the terminal itself ends lines
            termios.tcsetattr(theirs, termios.TCSANOW, modes)
        self._channels[ours] = _Channel(target, Reader(pattern, None if pattern else Candidates()), terminal)
        self._ends.append(theirs)
        self.resize()
        return theirs

    def started(self) -> None:
        """Close the ends that the command has got, so that its end is seen."""
        while self._ends:
            os.close(self._ends.pop())

    def resize(self) -> None:
        """Give the terminals of the command the size of those of this process."""
        for ours, channel in self._channels.items():
            if channel.terminal is not None:
                with suppress(OSError):
                    size = fcntl.ioctl(channel.terminal, termios.TIOCGWINSZ, bytes(8))
                    fcntl.ioctl(ours, termios.TIOCSWINSZ, size)

    @property
    def open(self) -> list[int]:
        """Descriptors from which output may still come."""
        return list(self._channels)

    @property
    def unwritten(self) -> int:
        """Bytes of lines of steps that a full disk did not take."""
        return len(self._lines)

    def read(self, ours: int) -> None:
        """Pass on what has arrived at a descriptor, and write a line for each step in it."""
        channel = self._channels[ours]
        try:
            chunk = os.read(ours, LONGEST_LINE)
        except OSError:  # how a terminal ends
            chunk = b""
        with suppress(OSError):
            _write(channel.target, chunk)
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        self._keep(channel.reader.read(chunk))
        if not chunk:
            os.close(ours)
            del self._channels[ours]

    def drain(self) -> None:
        """Read what a command has left behind. A process that outlives it may hold its output open, and is not waited for."""
        end = time.monotonic() + LONGEST_DRAIN_SECONDS
        while self._channels and (left := end - time.monotonic()) > 0:
            ready = select.select(self.open, [], [], min(left, QUIET_SECONDS))[0]
            if not ready:
                break
            for ours in ready:
                self.read(ours)
        for ours, channel in self._channels.items():
            self._keep(channel.reader.read(b""))
            os.close(ours)
        self._channels.clear()
        self._keep([])

    def _keep(self, lines: Iterable[bytes]) -> None:
        """Append lines of steps; what a full disk does not take is tried again with the next ones."""
        self._lines += b"".join(lines)
        if self._lines:
            with suppress(OSError), self._steps.open("ab", buffering=0) as file:
                self._lines = self._lines[file.write(self._lines) or 0 :]


def _raw(file: int | IO[bytes]) -> IO[bytes]:
    """Return a file without a buffer, which would keep what could not be written."""
    number = file if isinstance(file, int) else _number(file)
    if number is None:
        assert not isinstance(file, int)  # noqa: S101
        return file
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return open(number, "wb", buffering=0, closefd=False)


def _number(file: IO[bytes]) -> int | None:
    try:
        return file.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return None


def _same(one: IO[bytes], other: IO[bytes]) -> bool:
    """Whether two files are one file, pipe or terminal."""
    numbers = (_number(one), _number(other))
    if None in numbers:
        return one is other
    a, b = (os.fstat(number) for number in numbers if number is not None)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _write(file: IO[bytes], data: bytes) -> None:
    """Write all of the data, also to a file that takes a part at a time, or none just now."""
    rest = memoryview(data)
    while rest:
        count = file.write(rest)
        if not count:
            time.sleep(0.01)
        rest = rest[count or 0 :]
    file.flush()
