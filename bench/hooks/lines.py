"""A file that grows by lines, for which the system is called once in many steps."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic_ns

LATE_NS, SHARE = 500_000_000, 32
"""A step waits at most for the next one after so long, or after this part of the time since the first line."""
MOST = 2**16
"""So many lines are kept while the folder is missing, which is soon made again."""


def restartable():
    """Whether torchrun starts all processes again when one is lost, as which this one may be killed at any time."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def on_another_host():
    """Whether this process runs on another machine than `bench`, by its boot: containers have names of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return False
    return os.environ.get("WATTBENCH_BOOT", boot) not in ("", boot)


def new_file(folder):
    """Return the path of the file of this process. On another host, whose clock is another one, only tell that it is there.

    Raises RuntimeError there, which ends the watch.
    """
    path = os.path.join(folder, "seen-%s-%d" % (os.uname().nodename.replace("/", "_"), os.getpid()))
    if on_another_host():
        os.close(os.open(path + ".elsewhere", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        raise RuntimeError("another host")
    while os.path.exists(path + ".jsonl"):  # of a program that was in this process before
        path += "-next"
    return path + ".jsonl"


class LineFile:
    """Lines on their way into a file. Equal steps are one line; a process that is killed loses the last ones.

    Where it may be started again, each step is written at once.
    """

    def __init__(self, path):
        self.path, self.late, self.times, self.rest = path, [], [], None
        self.begun = self.due = monotonic_ns()
        self.late_ns = 0 if restartable() else LATE_NS

    def step(self, now, rest):
        """Add a step: when it ended, and what follows in its line, without the end."""
        if rest is not self.rest:
            self.fold()
            self.rest = rest
        self.times.append(now)
        if now >= self.due:
            self.flush()

    def fold(self):
        """Make a line of the last steps."""
        times, self.times = self.times, []
        if times:
            self.late.append('{"t_ns":%s%s}\n' % (times, self.rest))

    def write(self, text):
        """Add a line without its end, and write all of them."""
        self.fold()
        self.late.append(text + "\n")
        self.flush()

    def flush(self):
        """Write the lines. The file is opened each time, as the script may close descriptors that it did not open."""
        self.fold()
        now = monotonic_ns()
        self.due = now + min(self.late_ns, (now - self.begun) // SHARE)
        late, self.late = self.late, []
        text = "".join(late).encode()
        try:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            if len(late) > MOST:
                raise
            self.late = late + self.late
            return
        try:
            while text:
                text = text[os.write(number, text) :]
        finally:
            os.close(number)

    def close(self):
        """Write the last lines, where their folder was removed, too."""
        self.fold()
        if self.late:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self.flush()
