"""Progress of running executions: written to the run folder and to MLflow, read back by the dashboard."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from bench.files import is_held
from bench.folder import LOCK, OWN_RUNS, PROGRESS
from bench.schema import Model

PATIENCE_SECONDS = 300.0
"""Allowance beyond the time limit of a run before its execution counts as silent."""

_MOST = 10**15
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Seconds = Annotated[float, Field(ge=0, le=_MOST)]


class Flight(Model, extra="ignore"):
    """Progress of an execution, written by its process at `updated_at`: at the begin of each run and at the end.

    `done` of `to_do` (None: unknown) runs or trials (`unit`) have ended since the command began; `failed` counts failed
    runs. `current` is the run in progress. `remaining_seconds` count from `run_began_at`. The next update is due within
    `silent_seconds`. `stopped` marks a search that was interrupted. Servers are not sent the `folder`.
    `steps` and their rate are those of a command so far, where they are seen.
    """

    suite: str
    execution: str
    host: str
    folder: str | None = None
    unit: Literal["runs", "trials"] = "runs"
    to_do: _Count | None = None
    done: _Count = 0
    failed: _Count = 0
    current: str | None = None
    began_at: AwareDatetime
    run_began_at: AwareDatetime | None = None
    remaining_seconds: _Seconds | None = None
    silent_seconds: _Seconds = PATIENCE_SECONDS
    updated_at: AwareDatetime
    ended: bool = False
    stopped: bool = False
    steps: _Count | None = None
    steps_per_second: Annotated[float, Field(ge=0)] | None = None

    @property
    def finished(self) -> bool:
        """Whether it ended with nothing left to do. A search is complete when its budget is spent."""
        return (
            self.ended and not self.stopped and (self.unit == "trials" or self.to_do is None or self.done >= self.to_do)
        )

    def silent(self, now: datetime) -> bool:
        """Whether the last update is older than a run may take."""
        return (now - self.updated_at).total_seconds() > self.silent_seconds


State = Literal["running", "stopped", "silent"]


@dataclass(frozen=True)
class Seen:
    """An execution that is not complete: it runs, was stopped, or has not reported for longer than a run may take."""

    flight: Flight
    state: State


def in_flight(runs: Path, indexed: Iterable[Flight], now: datetime) -> list[Seen]:
    """Return the executions in progress in a folder of runs and in an index (`bench.store.tracker.flights`), newest first.

    The folder of `bench measure` beside that of the runs is read too. Folders take precedence over the index. An execution
    that does not run any more is listed if it is the newest of its suite.
    """
    states: dict[tuple[str, str], tuple[Flight, State | None]] = {}
    for path in (path for folder in (runs, runs.parent / OWN_RUNS) for path in folder.glob(f"*/*/{PROGRESS}")):
        if (flight := _read(path)) is not None:
            states[flight.suite, flight.execution] = flight, _state(flight, path.parent, now)
    for flight in indexed:
        if (flight.suite, flight.execution) not in states:
            folder = Path(flight.folder) if flight.folder and flight.host == socket.gethostname() else None
            own = _read(folder / PROGRESS) if folder else None
            states[flight.suite, flight.execution] = own or flight, _state(own or flight, folder if own else None, now)
    newest = dict(sorted(states))  # the last execution of each suite wins
    seen = [Seen(f, s) for f, s in states.values() if s and (s == "running" or f.execution == newest[f.suite])]
    return sorted(seen, key=lambda entry: entry.flight.began_at, reverse=True)


def _read(path: Path) -> Flight | None:
    """Return the content of a progress file; None where it is absent, torn or of another version."""
    try:
        facts = path.stat()
        return _parsed(path, (facts.st_mtime_ns, facts.st_ino, facts.st_size))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _parsed(path: Path, stamp: tuple[int, ...]) -> Flight:
    return Flight.model_validate_json(path.read_bytes())


def _state(flight: Flight, folder: Path | None, now: datetime) -> State | None:
    """Return the state of an execution, by its lock if possible, otherwise by time; None if it is complete."""
    if flight.finished:
        return None
    held = is_held(folder / LOCK) if folder is not None else None
    if held:
        return None if flight.ended else "running"  # it is about to release the lock, or to resume
    if flight.ended or (held is False and flight.host == socket.gethostname()):
        return "stopped"
    return "silent" if flight.silent(now) else "running"
