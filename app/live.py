"""The panel of what runs now: from progress files and progress tags only, never from the runs of the store."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Lock, Thread

import streamlit as st

from app import data, overview
from bench.store import tracker as tracking
from bench.store.progress import Flight, Seen, in_flight

RUNS = "WATTBENCH_RUNS"
"""Environment variable that names the folder of runs; otherwise `runs`, as where `bench run` is typed."""
_SECONDS, _ASK_SECONDS, _WAIT_SECONDS = 2.0, 10.0, 0.3
"""How often folders are looked at and the store is asked, and how long a page waits for the store."""


class _Index:
    """What a store told last of executions in flight, asked in a thread of its own: a server may be slow or down."""

    def __init__(self, where: str) -> None:
        self._where, self._asked, self._thread, self._lock = where, float("-inf"), Thread(), Lock()
        self._told: list[Flight] = []

    def told(self) -> list[Flight]:
        with self._lock:  # for all pages and browsers
            due = time.monotonic() > self._asked + _ASK_SECONDS and not self._thread.is_alive()
            if due:
                self._asked, self._thread = time.monotonic(), Thread(target=self._ask, daemon=True)
                self._thread.start()
            thread = self._thread
        if due:
            thread.join(_WAIT_SECONDS)
        return self._told

    def _ask(self) -> None:
        with suppress(tracking.StoreError):  # the page itself says so
            self._told = tracking.flights(self._where)


_index = cache(_Index)


def _look() -> list[Seen]:
    told = _index(tracking.location(data.uri())).told()
    return in_flight(Path(os.environ.get(RUNS) or "runs"), told, datetime.now(UTC))


def _ended(seen: list[Seen]) -> frozenset[tuple[str, ...]]:
    """What changes when a run ends."""
    told = [(one.flight, one.state) for one in seen]
    return frozenset((f.suite, f.execution, str(f.done), str(f.failed)) for f, state in told if state == "running")


def catch_up() -> None:
    """Let the page read what is new in the store, if a run has ended since it was read last."""
    data.refresh_if(*(one.flight.updated_at for one in _look()))


def panel() -> None:
    """Show what runs now; while the page is open it is looked at again, and when a run has ended the page follows."""
    _panel(_ended(_look()))


@st.fragment(run_every=_SECONDS)  # type: ignore[untyped-decorator]
def _panel(known: frozenset[tuple[str, ...]]) -> None:
    seen, now = _look(), datetime.now(UTC)
    if _ended(seen) != known and data.refresh_if(now):
        st.rerun()
    running = [one.flight for one in seen if one.state == "running"]
    if running:
        st.subheader("Running now")
    else:
        st.caption("Nothing runs now, as far as is known.")
    for flight in running:
        head, *lines = overview.told(flight, now)
        with st.container(border=True):
            st.text(head)
            if flight.to_do:
                st.progress(min(1.0, flight.done / flight.to_do))
            st.text("\n".join(lines))
    if past := [overview.past(one) for one in seen if one.state != "running"]:
        st.text("\n".join(past))
