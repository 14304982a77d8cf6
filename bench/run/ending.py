"""How a command is ended before its time: signals to this process go on to it, and a limit ends it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import psutil

from bench.errors import STOPPED, Stopped
from bench.process import GroupListener, signals_of
from bench.run.watch import Tally

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PASSED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are passed on to a command: those that ask it to end, and those that mean what it makes of them."""
GRACE_SECONDS = 20.0
"""How long a command may take to end after SIGINT, and then after SIGTERM: it may write a checkpoint."""
FIRST_STEP_SECONDS = 60.0
"""After this time without any step, seconds to measure count from the start of the command, or from its last step."""


@dataclass(frozen=True)
class WindowLength:
    """After how many steps, or seconds, of its window a command is ended; None: not at all."""

    steps: int | None = None
    seconds: float | None = None

    def reached(self, progress: Tally, start_ns: int, now_ns: int) -> bool:
        """Return whether it is time to end the command."""
        if self.steps is not None and progress.began_ns is not None and progress.steps >= self.steps:
            return True
        if self.seconds is None:
            return False
        if progress.began_ns is not None:
            return now_ns - progress.began_ns >= self.seconds * 1e9
        if progress.last_ns is not None:  # the warm-up never ends if what made its steps makes no more
            return now_ns - progress.last_ns >= (FIRST_STEP_SECONDS + self.seconds) * 1e9
        return now_ns - start_ns >= max(FIRST_STEP_SECONDS, self.seconds) * 1e9


NO_LIMIT = WindowLength()


class Processes:
    """A command and what it has started: signals go to the process itself, to those of its group, or to all of them.

    `pid` must not be reaped while this is used: a number that is free may soon be that of a stranger.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._family: dict[int, psutil.Process] = {}
        self._sent: int | None = None

    def send(self, number: int) -> None:
        """Send a signal to the process itself; if it ends by that, those that it leaves behind get it from `release`."""
        self._look()
        if self._sent not in ENDING:
            self._sent = number
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def send_all(self, number: int, *, group: bool) -> bool:
        """Send a signal to the command and its descendants, or to those of them that Ctrl-C would reach.

        A process that ignores SIGINT, as what a shell starts with `&` does, gets SIGTERM instead. Return whether any got
        more than SIGINT.
        """
        self._look()
        forced = number != signal.SIGINT
        for process in self._family.values():
            with suppress(psutil.Error, ProcessLookupError):
                if not group or os.getpgid(process.pid) == os.getpgid(self._pid):
                    deaf = number == signal.SIGINT and bool(signals_of(process.pid, "SigIgn") >> (number - 1) & 1)
                    process.send_signal(signal.SIGTERM if deaf else number)
                    forced |= deaf
        return forced

    def release(self, exitcode: int) -> None:
        """Send the signal by which the command has ended to those of its group that are left: a shell passes none on."""
        self._family.pop(self._pid, None)
        if self._sent not in ENDING and self._sent != -exitcode:
            return
        for process in self._family.values():
            with suppress(psutil.Error, ProcessLookupError):
                if self._sent is not None and os.getpgid(process.pid) == os.getpgrp():
                    process.send_signal(self._sent)

    @property
    def alive(self) -> bool:
        """Whether any of them still runs."""
        return any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in self._family.values())

    def _look(self) -> None:
        """Find the descendants, and keep those of before, whose parent may have ended."""
        with suppress(psutil.Error):
            process = psutil.Process(self._pid)
            self._family |= {each.pid: each for each in (process, *process.children(recursive=True))}


class Ending:
    """The end of a command by a limit: SIGINT, after a grace period SIGTERM, then SIGKILL. `before` is called first."""

    def __init__(
        self,
        processes: Processes,
        before: Callable[[], object] | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        if before is not None:
            before()
        self._processes, self._grace = processes, grace_seconds
        self._left = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
        self._next, self._forced = 0.0, False

    def go_on(self) -> None:
        """Send the next signal where it is time for it."""
        if self._left and time.monotonic() >= self._next:
            number = self._left.pop(0)
            self._forced |= self._processes.send_all(number, group=number == signal.SIGINT)
            self._next = time.monotonic() + self._grace

    def finish(self) -> None:
        """Wait for what a command has left, and end it, where the command did not end by SIGINT alone."""
        while self._forced and self._left and self._processes.alive:
            self.go_on()
            time.sleep(0.05)


@contextmanager
def unless_stopped(message: str, code: int) -> Iterator[None]:
    """Raise Stopped where a signal ends the block; its exit code is that of what was done before, if that failed."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped: {message}", code=code or STOPPED) from error


class Signals:
    """A block in which signals to this process go on to the command that runs, if there is one.

    Without a command, one that asks for an end raises KeyboardInterrupt; while `deferred`, it ends the next command, and
    `asked` names it. Others then mean nothing. A signal that this process ignores, as under nohup, stays ignored. The
    command does not get a signal twice that its whole process group has got, as by Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.deferred = False
        self._passed: set[signal.Signals] = set()
        self._on_resize: Callable[[], None] | None = None
        self._processes: Processes | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._early: list[signal.Signals] = []

    def __enter__(self) -> Self:
        self._listener = GroupListener([*ENDING, *PASSED])
        for number in (*ENDING, *PASSED, signal.SIGWINCH):
            before = signal.getsignal(number)
            if before is not None and (before is not signal.SIG_IGN):
                self._before[number] = before
                signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._listener.close()

    def attach(self, processes: Processes, on_resize: Callable[[], None] | None) -> None:
        """Pass signals on to a command that has started, first those that came before and ask it to end."""
        self._processes, self._on_resize = processes, on_resize
        for number in self._early:
            processes.send(number)

    def detach(self) -> None:
        """Pass nothing on any more, as the command has ended."""
        self._processes = self._on_resize = None

    def cause(self, exitcode: int) -> signal.Signals | None:
        """Return the signal that asked a command to end, or that was passed on and ended it as it had no handler."""
        return self.asked or next((name for name in self._passed if name == -exitcode), None)

    def _take(self, number: int, _: object) -> None:
        name = signal.Signals(number)
        if name == signal.SIGWINCH:
            if self._on_resize is not None:
                self._on_resize()
            return
        if name in ENDING:
            self.asked = name
        if self._processes is not None:
            self._passed.add(name)
            if not self._listener.got(number):
                self._processes.send(number)
        elif name in ENDING and self.deferred:
            self._early.append(name)
        elif name in ENDING:
            raise KeyboardInterrupt(name.name)
