"""What launchers on several nodes share: one warm step with an agent on each node (bench.run.agent), whatever carries it."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

from bench import folder as files
from bench.errors import WRONG_USE, Stopped
from bench.machine.cluster import Cluster
from bench.run.launcher import LaunchError, LaunchOptions, LocalLauncher, no_tick, node_variables
from bench.run.nodes import put_together, well

GRACE_SECONDS, PATIENCE_SECONDS, DELIVERY_SECONDS, LIMIT_SECONDS = 2.0, 10.0, 600.0, 60.0
"""After one node has failed: how long the others may take to end by themselves, as the first cause may be theirs; how long
after they were cancelled; how long a node may take to copy the files of a run that has ended; and how long the others may
take to end where the first has reached the limit of a command.
"""


class AllocationEnded(Stopped):
    """The allocation has ended, and with it the run under way, which stays missing."""


class StepLauncher(LocalLauncher):
    """Agents on all nodes of a cluster, in one step that stays for all runs; its process carries their lines.

    A run on one node is done by the first of them. When one node fails, the others are cancelled. What a command prints on
    the first node is given to `show`. `ended_by` says what has ended one before its time: `limit`, or the name of a signal.
    """

    _strict = False
    _nowhere, _over = "", ""
    """What is said without a cluster, and where the cluster has ended: `{job}` names it."""
    _errors: tuple[str, ...] = ()
    """How the lines begin by which the process of the step says what has failed."""

    def __init__(self, options: LaunchOptions) -> None:
        super().__init__(options)
        if not isinstance(options.machine, Cluster):
            raise LaunchError(self._nowhere, code=WRONG_USE)
        self._cluster = options.machine
        self._names = options.machine.names
        arguments = ["--idle-seconds", str(options.idle_seconds), "--addresses", ",".join(options.machine.addresses)]
        for name in ("meters", "workloads"):
            arguments += [f"--{name}", ",".join(getattr(options, name))]
        arguments += ["--gpus"] if options.gpus else []
        wire = options.machine.asked.network_interface
        arguments += ["--interface", wire] if wire is not None else []
        self._command = options.machine.command("bench.run.agent", *arguments, str(options.folder))
        self._environment = options.machine.variables | node_variables(options.threads)
        self._waiting: set[int] = set()
        self._began = 0.0
        self._step: str | None = None
        self.ended_by: str | None = None
        self.show: Callable[[bytes], None] | None = None

    def start(self, tick: Callable[[], None] = no_tick) -> dict[str, Any]:
        """Start the step and wait until all nodes are ready; return the facts of the first. Raises LaunchError."""
        self._open()
        deadline, facts = time.monotonic() + self._start_seconds, dict[int, dict[str, Any]]()
        while len(facts) < len(self._names):
            answer = self._answer(deadline - time.monotonic(), tick)
            if answer is not None and "ready" in answer:
                facts[answer["node"]] = answer["ready"]
                continue
            if answer is not None and "refused" in answer:
                self.close()
                raise LaunchError(answer["refused"], code=WRONG_USE)
            silent = ", ".join(name for number, name in enumerate(self._names) if number not in facts)
            if not self._cluster.running():
                self.close()
                raise self._ended()
            raise self._failed(f"on {silent}" if silent else "")
        self._step = facts[0].pop("step")
        return facts[0] | {"gpus": _least([facts[number].get("gpus") for number in sorted(facts)])}

    def submit(self, folder: Path) -> None:
        """Begin the run of a folder that has a `spec.json`: tell the agents, and where the ranks of several nodes meet."""
        nodes = files.SPEC.read(folder).num_nodes
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        self._waiting, self._began, store = set(range(nodes)), time.monotonic(), None
        self.ended_by = None
        if nodes > 1:
            self._send(listen=True)
            answer = self._answer(PATIENCE_SECONDS, no_tick)
            if answer is None or "listens" not in answer:
                self.close()  # nobody runs it: `wait` notices
                return
            store = answer["listens"]
        self._send(run=str(folder), nodes=nodes, store=store, show=self.show is not None)

    def wait(self, folder: Path, timeout_seconds: float, tick: Callable[[], None] = no_tick) -> bool:
        """Block until all nodes of the run have ended, and put together what they left. Always True.

        Raises AllocationEnded.
        """
        if not well(self._gather(folder, timeout_seconds, tick)) and not self._cluster.running():
            raise self._ended()
        return True

    def end(self, signal: str) -> None:
        """Let the command that runs end on all nodes, as by a signal of this name."""
        self._send(end=True, signal=signal)
        self.ended_by = signal

    def cancel(self, folder: Path) -> None:
        """End the current run on all nodes, and wait until it has ended."""
        self._send(cancel=True)
        self._gather(folder, 20, no_tick)

    def _gather(self, folder: Path, timeout_seconds: float, tick: Callable[[], None]) -> files.Exit:
        """Wait for all nodes of a run. When one has failed, the others may end by themselves, and are then cancelled."""
        deadline, cancel_at = time.monotonic() + timeout_seconds, inf
        while self._waiting:
            answer = self._answer(min(deadline, cancel_at) - time.monotonic(), tick)
            now = time.monotonic()
            if answer is None and now >= cancel_at:
                self._send(cancel=True)
                deadline, cancel_at = now + PATIENCE_SECONDS, inf
            elif answer is None:
                break
            elif answer.get("limit") == folder.name:
                self._send(end=True)
                self.ended_by = self.ended_by or "limit"
                cancel_at = now + LIMIT_SECONDS if cancel_at < inf else inf
            elif "output" in answer and self.show is not None:
                self.show(base64.b64decode(answer["output"]))
            elif answer.get("ended") == folder.name:  # it delivers its files now
                deadline = max(deadline, now + DELIVERY_SECONDS)
            elif answer.get("done") == folder.name:
                self._waiting.discard(answer["node"])
                if answer["how"] == "timeout":
                    self._send(late=True)
                elif not answer["well"]:
                    cancel_at = min(cancel_at, now + (LIMIT_SECONDS if self.ended_by else GRACE_SECONDS))
        if self._waiting:
            self.close()  # a step that has lost a node; the next run starts another one
        names = self._names[: files.SPEC.read(folder).num_nodes]
        seconds = time.monotonic() - self._began
        return put_together(folder, names, seconds, self._silent(), datetime.now(UTC) - timedelta(seconds=seconds))

    def close(self) -> None:
        """End the step: its agents end when their input closes. One that has lost its process or an agent is killed."""
        process, number = self._process, self._step
        super().close()
        self._step = None
        if process is not None and process.returncode != 0 and number is not None:
            self._cluster.end_step(number)

    def _ended(self) -> AllocationEnded:
        return AllocationEnded(self._over.format(job=self._cluster.job))

    def _silent(self) -> str:
        """Say which nodes have not answered at the end of a run, with what its process says about it."""
        if not self._waiting:
            return ""
        told = [line for line in self._tail(40).splitlines() if line.startswith(self._errors)]
        names = ", ".join(self._names[number] for number in sorted(self._waiting))
        return f"no answer from {names}: {'; '.join(told[-3:]) or 'their agents ended or hang'}"


def _least(gpus: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return what torch sees of the GPUs of the node where it sees the fewest; None where that was not asked."""
    return min((facts for facts in gpus if facts is not None), key=lambda facts: int(facts["count"]), default=None)
