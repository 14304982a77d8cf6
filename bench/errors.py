"""Errors that a person can act on. They are raised anywhere and caught once, in `bench.cli.main`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

FAILED, WRONG_USE, FAULT, STOPPED = 1, 2, 70, 130
"""Exit codes: runs or checks failed; wrong use; a fault of wattbench or the machine (EX_SOFTWARE of sysexits.h); Ctrl-C."""


class UserError(Exception):
    """A mistake or a problem to be shown as it is, without a traceback.

    Each message has at most two lines: what was given, what is allowed, and where. `code` is the exit code of the command.
    """

    code = WRONG_USE

    def __init__(self, *messages: str, code: int | None = None) -> None:
        self.messages = list(dict.fromkeys(messages))
        self.code = type(self).code if code is None else code
        super().__init__("\n".join(self.messages))


class BadValue(UserError, ValueError):
    """A value that is not allowed; validators of pydantic see a ValueError."""


class Stopped(UserError):
    """Ctrl-C or SIGTERM, after all processes have ended; the message says how to resume."""

    code = STOPPED


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place of a mistake, such as an option or a file, before each message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{where}: {message}" for message in error.messages), code=error.code) from error
