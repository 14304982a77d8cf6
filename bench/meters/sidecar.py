"""The parent's side of the meter sidecar: start it, tell it where to write rows, stop it.

It starts no threads, so that the process that holds it may fork. Nothing here raises or blocks for long. A sidecar that does
not start, dies or hangs is given up, and `error` says why; the runs continue without it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from bench.meters.meter import INTERVAL, Component, meter_class
from bench.pipe import Pipe
from bench.process import module_command

START_SECONDS = 30.0
"""Loading NVML takes seconds on a machine with many GPUs and no persistence mode."""
ANSWER_SECONDS = 5.0
CODECARBON_SECONDS = 10.0
"""How long to wait for CodeCarbon to start, at most."""


class Sidecar:
    """A process that reads meters. `live`, `starting` and `absent` (with reasons) name its meters as they were at its start.

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
        self._meters = meters
        self._command = module_command("bench.meters.sampler", "--interval", str(interval))
        self._command += ["--meters", ",".join(meters)]
        if gpus is not None:
            self._command += ["--gpus", ",".join(gpus)]
        self._answer_seconds = answer
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def measured(self) -> set[Component]:
        """Components that a live meter may measure by hardware."""
        classes = [meter_class(name) for name in self._meters if name in self.live]
        return {component for cls in classes if cls.nature == "measured" for component in cls.components}

    def start(self) -> Self:
        """Start the process and wait until its meters are open."""
        if self._process is not None:
            return self
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self.error = f"the meter sidecar did not start: {error}"
            return self
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
        self._process, self._pipe = process, Pipe(process.stdout.fileno(), process.stdin.fileno())
        answer = self._answer(START_SECONDS)
        if answer is None or "ready" not in answer:
            self._give_up(f"the meter sidecar did not start: {answer or 'no answer'}")
        else:
            state = answer["ready"]
            self.live, self.starting, self.absent = state["live"], state["starting"], state["absent"]
        return self

    def open(self, path: Path) -> None:
        """Write all rows from now on to this file; returns when it contains a reading of all meters."""
        if self._process is not None:
            self.error = None
        self._request(open=str(path.absolute()))

    def wait(self, seconds: float) -> None:
        """Wait until no meter is starting, for at most this many seconds."""
        self._request(seconds, wait=seconds)

    def settle(self) -> None:
        """Wait for a meter that is still starting, unless another one measures GPUs and its start disturbs none of a CPU."""
        if self.starting and ("cpu" in self.measured or "gpu" not in self.measured):
            self.wait(CODECARBON_SECONDS)

    def close(self) -> None:
        """Take a last reading of all meters and stop writing."""
        self._request(close=True)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._end(self._answer_seconds)

    def forget(self) -> None:
        """Close the pipes in a forked child, where they would hide the parent's end from the sidecar."""
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _request(self, patience: float = 0.0, **request: Any) -> None:
        if self._process is None or self._pipe is None:
            self.error = self.error or "the meter sidecar was not started"
            return
        answer = self._answer(self._answer_seconds + patience) if self._pipe.send(**request) else None
        if answer is None:
            dead = self._process.poll() is not None
            self._give_up("the meter sidecar has died" if dead else "the meter sidecar does not answer")
        elif "error" in answer:
            self.error = answer["error"]

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message of the sidecar, or None if it ends or is silent for this time."""
        try:
            return self._pipe.receive(seconds) if self._pipe is not None else None
        except (EOFError, ValueError):
            return None

    def _give_up(self, error: str) -> None:
        self.error = error
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        """Close the pipes, which ends a healthy sidecar, and kill one that hangs."""
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
            except subprocess.TimeoutExpired:  # stuck in a driver call: it ends when the call returns
                self.error = "the meter sidecar cannot be ended"
        process.stdout.close()
