"""What runs now: each execution says how far it is, in its folder and with its parent run in the index; who reads that."""

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
from bench.folder import LOCK, PROGRESS
from bench.schema import Model

PATIENCE_SECONDS = 300.0
"""So much longer than its time limit a run, or the start of the first one, may be silent."""

_MOST = 10**15
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Seconds = Annotated[float, Field(ge=0, le=_MOST)]


class Flight(Model, extra="ignore"):
    """An execution under way, as its process said at `updated_at`, when its last run began, or when it `ended` or `stopped`.

    `done` of `to_do` (None: not known) have ended since the command began; they count `unit`. `failed` are runs that did not
    end well, `current` is the run under way. `remaining_seconds` count from `run_began_at`. More is said within
    `silent_seconds`. `folder` is absent where it is nobody's business: on servers.
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

    @property
    def finished(self) -> bool:
        """Whether it ended with nothing left to do; a search ends when its budget does."""
        return (
            self.ended and not self.stopped and (self.unit == "trials" or self.to_do is None or self.done >= self.to_do)
        )

    def silent(self, now: datetime) -> bool:
        """Whether it has said nothing for longer than its run may take."""
        return (now - self.updated_at).total_seconds() > self.silent_seconds


State = Literal["running", "stopped", "silent"]


@dataclass(frozen=True)
class Seen:
    """An execution that runs, or stopped before its end, or was last heard of longer ago than its run may take."""

    flight: Flight
    state: State


def in_flight(runs: Path, told: Iterable[Flight], now: datetime) -> list[Seen]:
    """Return what runs under a folder of runs, and of what an index tells (`bench.store.tracker.flights`), the newest first.

    What is in the folder counts more than what is told. What does not run any more appears if no later execution of its suite
    is known.
    """
    found: dict[tuple[str, str], tuple[Flight, State | None]] = {}
    for path in runs.glob(f"*/*/{PROGRESS}"):
        if (flight := _read(path)) is not None:
            found[flight.suite, flight.execution] = flight, _state(flight, path.parent, now)
    for flight in told:
        if (flight.suite, flight.execution) not in found:
            here = Path(flight.folder) if flight.folder and flight.host == socket.gethostname() else None
            own = _read(here / PROGRESS) if here else None
            found[flight.suite, flight.execution] = own or flight, _state(own or flight, here if own else None, now)
    newest: dict[str, str] = {}
    for suite, execution in found:
        newest[suite] = max(execution, newest.get(suite, ""))
    seen = [Seen(f, s) for f, s in found.values() if s and (s == "running" or f.execution == newest[f.suite])]
    return sorted(seen, key=lambda one: one.flight.began_at, reverse=True)


def _read(path: Path) -> Flight | None:
    """Read a progress file; None where it is absent, torn or of another version."""
    try:
        facts = path.stat()
        return _parsed(path, (facts.st_mtime_ns, facts.st_ino, facts.st_size))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _parsed(path: Path, stamp: tuple[int, ...]) -> Flight:
    return Flight.model_validate_json(path.read_bytes())


def _state(flight: Flight, folder: Path | None, now: datetime) -> State | None:
    """Say what has become of an execution: by its lock where that can be known, else by time; None if it is finished."""
    if flight.finished:
        return None
    held = is_held(folder / LOCK) if folder is not None else None
    if held:
        return None if flight.ended else "running"  # it is about to let go, or goes on in a moment
    if flight.ended or (held is False and flight.host == socket.gethostname()):
        return "stopped"
    return "silent" if flight.silent(now) else "running"
