"""The parent's end of the meter sidecar: start it, say where its rows go, stop it.

Starts no threads, so that the process that holds it may fork. Nothing here raises or blocks for long: a sidecar that
cannot be started, dies or hangs becomes inert, and `error` says why; the runs go on without it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench.meters.trace import INTERVAL

START_SECONDS = 30.0
"""Loading NVML takes seconds on a machine of many GPUs without persistence mode."""
ANSWER_SECONDS = 5.0


class Sidecar:
    """A sampler process. `live`, `starting` and `absent` (with reasons) name its meters as they were when it started.

    Start it early: CodeCarbon joins about two seconds later.
    """

    def __init__(
        self,
        meters: Sequence[str],
        gpus: Sequence[str] | None = None,
        interval: float = INTERVAL,
        *,
        answer: float = ANSWER_SECONDS,
    ) -> None:
        self.error: str | None = None
        self.live: list[str] = []
        self.starting: list[str] = []
        self.absent: dict[str, str] = {}
        self._command = [sys.executable, "-P", "-m", "bench.meters.sampler"]
        self._command += ["--interval", str(interval), "--meters", ",".join(meters)]
        if gpus is not None:
            self._command += ["--gpus", ",".join(gpus)]
        self._answer_seconds = answer
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Start the process and wait until its meters are open."""
        if self._process is not None:
            return self
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self.error = f"the meter sidecar did not start: {error}"
            return self
        line = self._line(START_SECONDS)
        try:
            state = json.loads(line.removeprefix("ready ")) if line else {}
            self.live, self.starting, self.absent = state["live"], state["starting"], state["absent"]
        except (ValueError, KeyError):
            self._give_up(f"the meter sidecar did not start: {line or 'no answer'}")
        return self

    def open(self, path: Path) -> None:
        """Write all rows from now on to this file; returns when a reading of all meters is in it."""
        if self._process is not None:
            self.error = None
        self._tell(f"open {path.absolute()}")

    def wait(self, seconds: float) -> None:
        """Wait until no meter is starting any more, at most so long."""
        self._tell(f"wait {round(seconds)}", seconds)

    def close(self) -> None:
        """Take a last reading of all meters and write no more."""
        self._tell("close")

    def stop(self) -> None:
        """Let the process end, or end it."""
        if self._process is not None:
            self._end(self._answer_seconds)

    def forget(self) -> None:
        """Let go of the pipes in a forked child, where they would keep the sidecar from seeing its parent's end."""
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _tell(self, command: str, patience: float = 0.0) -> None:
        if self._process is None or self._process.stdin is None:
            self.error = self.error or "the meter sidecar was not started"
            return
        try:
            self._process.stdin.write(os.fsencode(f"{command}\n"))
        except OSError:
            self._give_up("the meter sidecar has died")
            return
        answer = self._line(self._answer_seconds + patience)
        if answer is None:
            dead = self._process.poll() is not None
            self._give_up("the meter sidecar has died" if dead else "the meter sidecar does not answer")
        elif answer != "ok":
            self.error = answer.removeprefix("error: ")

    def _line(self, seconds: float) -> str | None:
        """Return the next line of the sidecar, or None if it ends or is silent for so long."""
        if self._process is None or self._process.stdout is None:
            return None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._received:
                data = b""
                if selector.select(max(0.0, deadline - time.monotonic())):
                    data = os.read(descriptor, 65536)
                if not data:
                    return None
                self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    def _give_up(self, error: str) -> None:
        self.error = error
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        """Close the pipes, which ends a healthy sidecar, and kill one that is not."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                process.wait(self._answer_seconds)
            except subprocess.TimeoutExpired:  # stuck in a driver call: it goes when the call returns
                self.error = "the meter sidecar cannot be ended"
        process.stdout.close()
