"""Functions of others that do something more."""

from __future__ import annotations

from functools import update_wrapper, wraps
from time import monotonic_ns


def timed(function, then):
    """Return a function that calls another one with its start and end, in ns, after itself."""

    @wraps(function)
    def inner(*args, **kwargs):
        start = monotonic_ns()
        try:
            return function(*args, **kwargs)
        finally:
            then(start, monotonic_ns())

    return inner


class FlushedExit:
    """A function of `os` that calls another one first. It is pickled by its name and never bound, as it was before."""

    def __init__(self, function, before):
        update_wrapper(self, function)
        self.__module__ = "os"
        self.before = before

    def __call__(self, *args, **kwargs):
        """Call both."""
        self.before()
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self):
        return self.__name__
