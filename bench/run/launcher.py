"""Start the node process on this machine and hand it runs. Knows nothing about measuring."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.errors import FAILED, UserError
from bench.folder import EXIT, NODE_LOG, Exit

_SILENT = {
    # Nothing here opens a connection or reports usage.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # libraries may ask whether there is CUDA; asking CUDA would spoil the forks
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}


START_SECONDS = 240.0
"""The longest that importing torch and asking the meters and CUDA may take; idle power is measured on top of it."""


class LaunchError(UserError):
    """Runs cannot be started on this machine; the message says why and what to do."""

    code = FAILED


class LocalLauncher:
    """One node process, started when first needed, and again should it have died.

    `folder` receives its log (`node.log`) and the idle power, measured for `idle_seconds` at its start. `threads` is the
    number of OpenMP threads that libraries are told at import.
    """

    def __init__(
        self,
        folder: Path,
        meters: list[str],
        workloads: list[str],
        gpus: list[str],
        threads: int,
        idle_seconds: float = 0.0,
    ) -> None:
        self.folder = folder
        arguments = {
            "--meters": meters,
            "--workloads": workloads,
            "--gpus": gpus,
            "--idle-seconds": [str(idle_seconds)],
        }
        self._start_seconds = START_SECONDS + 2 * idle_seconds
        self._command = [sys.executable, "-P", "-m", "bench.run.node"]
        for name, values in arguments.items():
            self._command += [name, ",".join(values)]
        ours = _SILENT | {"OMP_NUM_THREADS": str(threads)}
        changed = {name: os.environ.get(name) for name in (*ours, "CUDA_DEVICE_ORDER")}
        ours |= {"WATTBENCH_CHANGED_VARIABLES": json.dumps(changed), "WATTBENCH_STARTED_IN": str(Path.cwd())}
        self._environment = os.environ | ours
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def start(self, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Start the node and wait until it has imported torch; return its facts. Raises LaunchError."""
        with (self.folder / NODE_LOG).open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the runner, which then cancels
            )
        answer = self._answer(self._start_seconds, tick)
        if answer is None or "ready" not in answer:
            self.close()
            raise LaunchError(f"the node process did not start; its log is {self.folder / NODE_LOG}:\n{self._tail()}")
        facts: dict[str, Any] = answer["ready"]
        return facts

    def submit(self, folder: Path) -> None:
        """Begin the run of a folder that has a `spec.json`."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        self._send({"run": str(folder)})

    def wait(self, folder: Path, timeout_seconds: float, tick: Callable[[], None] = lambda: None) -> bool:
        """Block until the run's `exit.json` is there; `tick` is called once a second. False if the node died."""
        answer = self._answer(timeout_seconds, tick)
        while answer is not None and answer.get("done") != str(folder):
            answer = self._answer(timeout_seconds, tick)
        return answer is not None

    def cancel(self, folder: Path) -> None:
        """End the run in progress with all its processes, and wait until it has ended."""
        self._send({"cancel": True})
        self.wait(folder, timeout_seconds=20)

    def close(self) -> None:
        """End the node process: it ends its run and its sidecar when its stdin closes."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            return  # the death of the node is noticed where its answer is awaited

    def _answer(self, timeout_seconds: float, tick: Callable[[], None]) -> dict[str, Any] | None:
        """Wait for the next line of the node; None when it has died or is silent for too long."""
        if self._process is None or self._process.stdout is None:
            return None
        output = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._unread:
            readable, _, _ = select.select([output], [], [], 1.0)
            tick()
            if readable:
                chunk = os.read(output, 65536)
                if not chunk:
                    return None
                self._unread += chunk
            elif time.monotonic() > deadline:
                return None
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self, lines: int = 15) -> str:
        try:
            return "\n".join((self.folder / NODE_LOG).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def write_missing_exit(folder: Path, started_at: datetime, start_ns: int) -> None:
    """Describe the end of a run whose node died without doing so: it began when it was submitted, and it ends now."""
    if not (folder / EXIT.name).exists():
        EXIT.write(folder, Exit(how="node_died", start_ns=start_ns, end_ns=time.monotonic_ns(), started_at=started_at))
