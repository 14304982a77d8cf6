"""A clock that tests turn, and a count of calls: durations and costs that no load of the machine changes."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Clock:
    """A stand-in for the module `time`: sleeping takes exactly its seconds, reading the time takes `tick_ns`."""

    def __init__(self, seconds: float = 100.0, tick_ns: int = 0, moved: Callable[[float], None] | None = None) -> None:
        self.ns, self.tick_ns, self._moved = round(seconds * 1e9), tick_ns, moved or (lambda seconds: None)
        self._moved(seconds)

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        self._moved(self.ns / 1e9)

    def monotonic_ns(self) -> int:
        self.sleep(self.tick_ns / 1e9)
        return self.ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    perf_counter = monotonic
    time = monotonic
    time_ns = monotonic_ns


def python_calls(function: Callable[[], Any], *, built_in: bool = False) -> int:
    """Return how many calls of Python functions one call makes; with `built_in` those of built-in functions count too."""
    count, events = 0, ("call", "c_call") if built_in else ("call",)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in events

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count
