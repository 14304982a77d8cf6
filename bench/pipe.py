"""Messages between two processes: one JSON object a line, over file descriptors.

A pipe starts no thread, so that the process that holds it may fork.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import suppress
from typing import Any


class Pipe:
    """One end of a conversation: it reads messages from one file descriptor and writes them to another."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._unread = b""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a message arrives."""
        return self._reader

    @property
    def pending(self) -> bool:
        """Whether a message was received that nobody has taken yet; the descriptor does not show it any more."""
        return b"\n" in self._unread

    def send(self, **message: Any) -> bool:
        """Write a message. Return False if the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._writer, data) :]
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Return the next message, or None if none arrives within `seconds`; without a limit, wait for one.

        Raises EOFError when the other end is gone, and ValueError for a line that is not a JSON object.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._reader], [], [], left)[0]:
                return None
            data = os.read(self._reader, 65536)
            if not data:
                raise EOFError("the other end of the pipe is closed")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"a message must be a JSON object, not {line[:80]!r}")
        return message

    def second(self) -> int:
        """Return another descriptor on which messages are written."""
        return os.dup(self._writer)

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in {self._reader, self._writer}:
            with suppress(OSError):
                os.close(descriptor)
