"""What the pages read from the store. It serves all browsers for a minute; then only what is new is read.

Frames are shared: pandas copies what a page changes, so no page sees the changes of another.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from analytics.runs import store
from app.serve import TRACKING_URI
from bench.store import tracker as tracking

FRESH_SECONDS = 60.0


@dataclass(frozen=True)
class Snapshot:
    """A frame of runs with `mlflow_run_id`, or documents of searches, as of a time (UTC).

    `foreign`: the store holds runs of other tools, or half-written ones, and nothing else.
    """

    content: Any
    at: datetime
    foreign: bool = False


def uri() -> str | None:
    """Return the store that the server was started for; None for the usual one."""
    return os.environ.get(TRACKING_URI)


@st.cache_resource(ttl=FRESH_SECONDS, show_spinner="Reading the runs ...", show_time=True)  # type: ignore[untyped-decorator]
def _runs(where: str) -> Snapshot:
    at, runs = datetime.now(UTC), store.load(where, named=True)
    foreign = False
    with suppress(tracking.StoreError):
        foreign = runs.empty and tracking.inhabited(where)
    return Snapshot(runs, at, foreign)


@st.cache_resource(ttl=FRESH_SECONDS, show_spinner="Reading the searches ...", show_time=True)  # type: ignore[untyped-decorator]
def _searches(where: str) -> Snapshot:
    return Snapshot(tracking.searches(where), datetime.now(UTC))


def runs() -> Snapshot:
    """Return the runs of the store. Raises `bench.store.tracker.StoreError`, which is not kept."""
    found: Snapshot = _runs(tracking.location(uri()))
    return Snapshot(found.content.copy(deep=False), found.at, found.foreign)


def searches() -> Snapshot:
    """Return the documents of the searches, newest first. Raises `bench.store.tracker.StoreError`."""
    found: Snapshot = _searches(tracking.location(uri()))
    return found


def refresh() -> None:
    """Read the whole store again, also what was kept of finished runs."""
    with suppress(tracking.StoreError):  # the page says so
        store.load(uri(), refresh=True, named=True)
    forget()


def forget() -> None:
    """Let the next page read what is new."""
    _runs.clear()
    _searches.clear()
