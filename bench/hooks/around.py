"""Functions of others that do something more."""

from __future__ import annotations

from functools import wraps
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


def preceded(function, before):
    """Return a function that calls another one before itself."""

    @wraps(function)
    def inner(*args, **kwargs):
        before()
        return function(*args, **kwargs)

    return inner
