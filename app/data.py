"""What the pages read. Each store is read by one thread at a time, while pages show what is known already.

What was read serves all pages and browsers for a minute. After that it is shown on while the next reading, which reads only
what is new, goes on. Threads call nothing of Streamlit: they belong to no page.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Lock, Thread
from typing import Any, Literal

import pandas as pd

from analytics import store
from app.serve import TRACKING_URI
from bench.store import tracker as tracking

FRESH = timedelta(seconds=60)
"""For how long what was read is not read again, unless asked for."""
PATIENCE = 1.0
"""Seconds that a page waits for a reading before it shows what has come so far."""
Kind = Literal["runs", "searches"]
Found = tuple[Any, bool]
"""A frame or documents; and whether the store holds runs though none of them is ours and whole."""


@dataclass(frozen=True)
class State:
    """What is known of a store at a moment. Times are UTC; what was read is as of when its reading began.

    `found` is None before everything was read once, `begun` while nothing is being read; `so_far` makes what the reading
    that is under way knows, after `done` runs of `of` (None where that is not known).
    """

    found: Any = None
    read_at: datetime | None = None
    strangers: bool = False
    error: tracking.StoreError | None = None
    begun: datetime | None = None
    done: int = 0
    of: int | None = None
    so_far: Callable[[], Any] | None = None


class Source:
    """A store, and the thread that reads it: `read(whole, progress)` reads everything anew, or what is new only."""

    def __init__(self, read: Callable[[bool, store.Progress], Found]) -> None:
        self.state = State()
        self._read = read
        self._lock = Lock()
        self._thread = Thread()
        self._tried = datetime.min.replace(tzinfo=UTC)
        self._ended = frozenset[datetime]()
        self._whole = self._wanted = False
        self._told: tracking.StoreError | None = None

    def look(self) -> State:
        """Return what is known; wait a moment where nothing is, or where a reading was asked for.

        Where there is nothing but an error, it is returned once, then the store is asked again.
        """
        with self._lock:
            nothing = self.state.found is None
            stale = datetime.now(UTC) > self._tried + FRESH
            wait = self._wanted or nothing
            if self.state.begun is None and (self._wanted or stale or (nothing and self.state.error is self._told)):
                self._begin()
            thread = self._thread
        if wait and thread.ident is not None:
            thread.join(PATIENCE)
        self._told = (state := self.state).error
        return state

    def want(self, *, whole: bool = False) -> None:
        """Let the next look read again; `whole`: also what was read before."""
        self._whole, self._wanted = self._whole or whole, True

    def want_since(self, *ended: datetime) -> bool:
        """Let the next look read again if a run has ended after the last reading began; return whether that is so."""
        later = frozenset(at for at in ended if at > self._tried)
        new, self._ended = later - self._ended, later  # the clock of another machine may be ahead: once for each run
        self._wanted = self._wanted or bool(new)
        return bool(new)

    def _begin(self) -> None:
        self._tried, whole = datetime.now(UTC), self._whole
        self._wanted = self._whole = False
        self.state = replace(self.state, begun=self._tried, error=None, done=0, of=None, so_far=None)
        self._thread = Thread(target=self._run, args=(whole, self._tried), daemon=True)
        self._thread.start()

    def _run(self, whole: bool, begun: datetime) -> None:
        def tell(done: int, of: int | None, so_far: Callable[[], Any]) -> None:
            self.state = replace(self.state, done=done, of=of, so_far=so_far)

        try:
            found, strangers = self._read(whole, tell)
            self.state = State(found, begun, strangers)
        except Exception as error:
            if not isinstance(error, tracking.StoreError):
                logging.getLogger(__name__).exception("A store could not be read.")
                error = tracking.StoreError(f"reading failed: {type(error).__name__}: {error}")
            self.state = replace(self.state, error=error, begun=None, so_far=None)


def uri() -> str | None:
    """Return the store that the server was started for; None for the usual one."""
    return os.environ.get(TRACKING_URI)


_sources: dict[tuple[str, Kind], Source] = {}


def _source(kind: Kind) -> Source:
    where = uri()

    def read(whole: bool, progress: store.Progress) -> Found:
        if kind == "searches":
            return tracking.searches(where), False
        found = store.load(where, refresh=whole, named=True, progress=progress)
        strangers = False
        with suppress(tracking.StoreError):
            strangers = found.empty and tracking.inhabited(where)
        return found, strangers

    return _sources.setdefault((tracking.location(where), kind), Source(read))


def look(kind: Kind) -> State:
    """Return what is known of the runs (a frame with `mlflow_run_id`) or of the searches, which is shared by all pages."""
    return _source(kind).look()


def known(kind: Kind) -> State:
    """Return the same, and neither wait nor ask for more."""
    return _source(kind).state


def load() -> tuple[pd.DataFrame, datetime]:
    """Return the frame of the runs that are known, and as of when (UTC); while a store is read first, those read so far.

    Raises `bench.store.tracker.StoreError`, which is not kept: the next rerun tries again.
    """
    found: tuple[pd.DataFrame, datetime] = shown(look("runs"))
    return found


def shown(state: State) -> tuple[Any, datetime]:
    """Return what a page can show of a state, which it may change, and as of when; raises like `load`."""
    if state.error is not None and state.found is None:
        raise state.error
    found, at = (
        (state.found, state.read_at) if state.found is not None else (state.so_far and state.so_far(), state.begun)
    )
    found = pd.DataFrame() if found is None else found
    return (found.copy(deep=False) if isinstance(found, pd.DataFrame) else list(found)), at or datetime.now(UTC)


def refresh() -> None:
    """Let the next page read the whole store again."""
    for kind in ("runs", "searches"):
        _source(kind).want(whole=True)


def refresh_if(*ended: datetime) -> bool:
    """Return whether a run that ended at one of some times (UTC) may be unknown yet: then `st.rerun()` reads what is new."""
    return _source("runs").want_since(*ended)


def forget() -> None:
    """Forget all that was read, for tests."""
    _sources.clear()
