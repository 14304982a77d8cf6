"""Services of Linux for processes."""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path

SCRIPT = Path(__file__).parent / "script"
"""The folder of the import `wattbench`."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends in any way. Only Linux does this."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request took effect
        os.kill(os.getpid(), signal.SIGKILL)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of wattbench as a process, whatever modules PYTHONPATH leads to."""
    return [sys.executable, "-P", str(SCRIPT / "wattbench_command.py"), module, *arguments]


def boot_id() -> str | None:
    """Return the id of this start of the machine, which containers on it share; None where the kernel does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def began_ns() -> int:
    """Return when this process began, by the monotonic clock; without Linux, now."""
    now = time.monotonic_ns()
    with suppress(OSError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - round((time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) * 1e9)
    return now


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since boot; None where that is unknown."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None


def signal_name(number: int) -> str:
    """Return the name of a signal, such as `SIGKILL`; real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def adopt_orphans() -> None:
    """Ask the kernel to make this process the parent of descendants whose parent ends. Only Linux does this."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def drop_lost_output() -> None:
    """Send output to nowhere whose terminal or reader is gone: no line of it may end this process any more."""
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)  # errors are always told
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def descends_from(pid: int, root: int) -> bool | None:
    """Whether a process is `root` or one of its descendants; None if there is no such process."""
    while pid != root:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
        if pid <= 1:
            return root == pid
    return True


def signals_of(pid: int, field: str) -> int:
    """Return a mask of signals in the status of a process, such as `SigIgn`; 0 as far as the kernel does not tell."""
    with suppress(OSError):
        found = re.search(rf"^{field}:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1], 16) if found is not None else 0
    return 0


def pending(pid: int, number: int) -> bool:
    """Return whether a process has not taken a signal yet that it has got."""
    return bool((signals_of(pid, "SigPnd") | signals_of(pid, "ShdPnd")) >> (number - 1) & 1)


class GroupListener:
    """A child that notes which signals the whole process group gets, as by Ctrl-C in a terminal or from `timeout`.

    A command in the group has got these itself. Only Linux ends the child with this process, so there is none elsewhere:
    there Ctrl-C counts as sent to the group, and nothing else.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._times: dict[int, float] = {}
        self._reader: int | None = None
        if not sys.platform.startswith("linux"):
            return
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, numbers
        )  # so that the child gets each, from its first moment on
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _listen(writer, set(numbers))
            finally:
                os._exit(0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)

    def got(self, number: int) -> bool:
        """Return whether the group got a signal in the last second; one that is just on its way is waited for."""
        if self._reader is None:
            return number == signal.SIGINT
        end = time.monotonic() + 0.1
        while time.monotonic() - self._times.get(number, -inf) > 1.0:
            if not select.select([self._reader], [], [], max(0.0, end - time.monotonic()))[0]:
                return pending(self._pid, number)  # it had no processor
            with suppress(BlockingIOError):  # a signal within the handler of another one has read it
                numbers = os.read(self._reader, 64)
                if not numbers:
                    return False
                self._times |= dict.fromkeys(numbers, time.monotonic())
        return True

    def close(self) -> None:
        """End the child."""
        if self._reader is not None:
            os.close(self._reader)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._reader = None


def _listen(writer: int, numbers: set[signal.Signals]) -> None:
    """Write the number of each signal that arrives; hold nothing else open that others wait for."""
    die_with_parent()
    os.dup2(writer, 0)
    os.closerange(1, 65_536)
    while True:
        os.write(0, bytes([signal.sigwait(numbers)]))
