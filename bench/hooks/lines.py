"""A file that grows by lines which are in it at once, however the process ends, without a call of the system for each."""

from __future__ import annotations

import os
from contextlib import suppress
from mmap import ALLOCATIONGRANULARITY, mmap

FIRST, MOST = 2**16, 2**22
"""The file is extended by so many bytes at first, twice as many each time, and by so many at most."""

MAPS: list[mmap] = []
"""All maps are kept until the process ends, also in forked ones: each holds a descriptor, whose number the script may have
closed and used again."""


class LineFile:
    """Writes through memory that is shared with the file. Where that cannot be, it writes as usual.

    Behind the last line there are zeros until `close`, or for good if the process is killed.
    """

    def __init__(self, path):
        self.path, self.size, self.late = path, FIRST, b""
        self.forget()

    def forget(self):
        """Forget which part of the file is in memory."""
        self.map, self.start, self.end, self.identity = b"", 0, 0, None

    def write(self, text):
        """Add a line without its end."""
        self.add((text + "\n").encode())

    def add(self, line):
        """Add a line with its end, as bytes. It is kept for later while the folder is missing, which is soon made again."""
        end = self.end + len(line)
        if self.late or end > len(self.map):
            line = self.late = self.late + line
            try:
                mapped = self.extend(line)
            except FileNotFoundError:
                if len(line) > MOST:
                    raise
                return
            self.late = b""
            if not mapped:
                return
            end = self.end + len(line)
        self.map[self.end : end] = line
        self.end = end

    def extend(self, line):
        """Map the next part of the file, or of a new one where the script has removed it; write the line where that fails."""
        number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            end = self.place(number)
            start = end - end % ALLOCATIONGRANULARITY
            size = end - start + max(self.size, len(line))
            try:
                os.posix_fallocate(number, start, size)  # a full disk is an error here, and a signal later
                self.map = mmap(number, size, offset=start)
            except (AttributeError, OSError, ValueError):
                os.ftruncate(number, end)
                self.map, self.start, self.end = b"", end, 0
                while line:
                    written = os.pwrite(number, line, self.start)
                    self.start, line = self.start + written, line[written:]
                return False
        finally:
            os.close(number)
        MAPS.append(self.map)
        self.start, self.end, self.size = start, end - start, min(2 * self.size, MOST)
        return True

    def place(self, number):
        """Return where the lines of an open file end."""
        status = os.fstat(number)
        same, self.identity = self.identity, (status.st_dev, status.st_ino)
        if same == self.identity:
            return self.start + self.end
        return len(os.pread(number, status.st_size, 0).rstrip(b"\0"))

    def close(self):
        """Remove the zeros behind the last line; a later line opens the file again."""
        with suppress(OSError):
            if self.late:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                self.add(b"")
            number = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(number, self.place(number))
            finally:
                os.close(number)
        self.forget()
