"""Launchers: they start runs somewhere and wait for them. They know nothing about measuring.

The local launcher keeps one node process warm. `bench.registry` maps the names of launchers to their classes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from bench import registry
from bench.errors import FAILED, WRONG_USE, UserError
from bench.folder import EXIT, NODE_LOG, Exit
from bench.pipe import Pipe
from bench.process import module_command, signal_name
from bench.schema import Machine, RunSpec

CHANGED, STARTED_IN = "WATTBENCH_CHANGED_VARIABLES", "WATTBENCH_STARTED_IN"
"""Variables of a node: what was changed in its environment (JSON; null: was not set), and the folder `bench` started in."""
_NODE_VARIABLES = {
    # Nothing opens a connection or reports usage.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch counts GPUs without initialising them, which would break forks
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}
START_SECONDS = 240.0
"""The longest that importing torch and querying meters and GPUs may take; measuring idle power adds to it."""


class LaunchError(UserError):
    """Runs cannot be started; the message says why and what to do."""

    code = FAILED


@dataclass(frozen=True)
class LaunchOptions:
    """What an execution tells its launcher.

    Logs and idle power, measured for `idle_seconds` at the start, go to `folder`. `gpus` are UUIDs, `threads` is the
    number of OpenMP threads that libraries see when they are imported. `machine` is where the runs are done.
    """

    folder: Path
    meters: Sequence[str] = ()
    workloads: Sequence[str] = ()
    gpus: Sequence[str] = ()
    threads: int = 1
    idle_seconds: float = 0.0
    machine: Machine | None = None


def no_tick() -> None:
    """Do nothing while a launcher waits."""


class Launcher(Protocol):
    """Starts runs, each described by `spec.json` in a folder of its own, and leaves all results in that folder.

    Whatever the launcher reports, the files of the folder are the truth: `exit.json` is there once the run has ended.
    """

    def __init__(self, options: LaunchOptions) -> None: ...

    def start(self, tick: Callable[[], None] = no_tick) -> dict[str, Any]:
        """Prepare for runs; return facts about the place where they run (`torch`, `gpus`). Raises LaunchError."""
        return {}

    def submit(self, folder: Path) -> None:
        """Begin the run of a folder that has a `spec.json`. Raises LaunchError."""
        ...

    def wait(self, folder: Path, timeout_seconds: float, tick: Callable[[], None] = no_tick) -> bool:
        """Block until the run has ended and call `tick` about once a second; return False if it ended without `exit.json`."""
        ...

    def cancel(self, folder: Path) -> None:
        """End the run with all its processes and wait until it has ended."""
        ...

    def close(self) -> None:
        """End everything that the launcher has started."""


def make_launcher(runs: Sequence[RunSpec], options: LaunchOptions) -> Launcher:
    """Return the launcher that these runs name. Raises LaunchError if they name several."""
    names = sorted({run.launcher for run in runs}) or ["local"]
    if len(names) > 1:
        message = f"the runs of one execution need the same launcher, not {', '.join(names)}: split the suite"
        raise LaunchError(message, code=WRONG_USE)
    launcher: Launcher = registry.load("launcher", names[0])(options)
    return launcher


def node_variables(threads: int) -> dict[str, str]:
    """Return the variables that a node process needs in addition to those of this process."""
    variables = _NODE_VARIABLES | {"OMP_NUM_THREADS": str(threads)}
    changed = {name: os.environ.get(name) for name in (*variables, "CUDA_DEVICE_ORDER")}
    return variables | {CHANGED: json.dumps(changed), STARTED_IN: str(Path.cwd())}


class LocalLauncher(Launcher):
    """One node process on this machine, started when it is first needed, and again if it has died. Its log is `node.log`."""

    _strict = True
    """Whether a line that is no message means that the node has died. Others may write between those of a step."""

    def __init__(self, options: LaunchOptions) -> None:
        self.folder = options.folder
        self._start_seconds = START_SECONDS + 2 * options.idle_seconds
        self._command = module_command("bench.run.node", "--idle-seconds", str(options.idle_seconds))
        for name in ("meters", "workloads", "gpus"):
            self._command += [f"--{name}", ",".join(getattr(options, name))]
        self._environment = os.environ | node_variables(options.threads)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None

    def start(self, tick: Callable[[], None] = no_tick) -> dict[str, Any]:
        """Start the node and wait until it has imported torch; return its facts. Raises LaunchError."""
        self._open()
        answer = self._answer(self._start_seconds, tick)
        if answer is None or "ready" not in answer:
            raise self._failed()
        facts: dict[str, Any] = answer["ready"]
        return facts

    def _open(self) -> None:
        """Start the process."""
        with (self.folder / NODE_LOG).open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the runner, which then cancels
            )
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  both are pipes
        self._process, self._pipe = process, Pipe(process.stdout.fileno(), process.stdin.fileno())

    def _failed(self, whose: str = "") -> LaunchError:
        """End the process, which did not start, and return the error that says so."""
        code = None if self._process is None else self._process.poll()
        how = "did not answer" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal_name(-code)}"
        self.close()
        where = f"its log is {self.folder / NODE_LOG}:\n{self._tail() or '(empty)'}"
        return LaunchError(f"the node process {whose}{' ' * bool(whose)}{how} while it started; {where}")

    def submit(self, folder: Path) -> None:
        """Begin the run of a folder that has a `spec.json`."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        self._send(run=str(folder))

    def wait(self, folder: Path, timeout_seconds: float, tick: Callable[[], None] = no_tick) -> bool:
        """Block until the run's `exit.json` is there; call `tick` once a second. Return False if the node died."""
        answer = self._answer(timeout_seconds, tick)
        while answer is not None and answer.get("done") != str(folder):
            answer = self._answer(timeout_seconds, tick)
        return answer is not None

    def cancel(self, folder: Path) -> None:
        """End the current run with all its processes, and wait until it has ended."""
        self._send(cancel=True)
        self.wait(folder, timeout_seconds=20)

    def close(self) -> None:
        """End the node process: it ends its run and its sidecar when its input closes."""
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return
        for file in (process.stdin, process.stdout):
            if file is not None:
                file.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, **message: Any) -> None:
        if self._pipe is not None:
            self._pipe.send(**message)  # a dead node is noticed while its answer is awaited

    def _answer(self, timeout_seconds: float, tick: Callable[[], None]) -> dict[str, Any] | None:
        """Return the next message of the node, or None if it has died or is silent for too long."""
        deadline = time.monotonic() + timeout_seconds
        while self._pipe is not None and time.monotonic() < deadline:
            try:
                answer = self._pipe.receive(1.0)
            except EOFError:
                return None
            except ValueError:
                if self._strict:
                    return None
                continue
            tick()
            if answer is not None:
                return answer
        return None

    def _tail(self, lines: int = 15) -> str:
        try:
            return "\n".join((self.folder / NODE_LOG).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def write_missing_exit(folder: Path, started_at: datetime, start_ns: int) -> None:
    """Write the end of a run whose node died without writing it: it began when it was submitted and ends now."""
    if not (folder / EXIT.name).exists():
        EXIT.write(folder, Exit(how="node_died", start_ns=start_ns, end_ns=time.monotonic_ns(), started_at=started_at))
