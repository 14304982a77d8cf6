"""What the pages read, cached: one reading of the store serves all pages and reruns for a minute."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import streamlit as st

from analytics import store
from app.serve import TRACKING_URI
from bench import tracking


def _read(where: str | None, what: str, _load: Callable[[str | None], Any]) -> tuple[Any, datetime]:
    return _load(where), datetime.now(UTC)


_cached = st.cache_data(_read, ttl=60, max_entries=8, show_spinner="Reading the store ...")


def uri() -> str | None:
    """Return the store that the server was started for; None for the usual one."""
    return os.environ.get(TRACKING_URI)


def load() -> tuple[pd.DataFrame, datetime]:
    """Return the frame of all runs (with `mlflow_run_id`) and when it was read (UTC).

    Raises `bench.tracking.StoreError`, which is not cached: the next rerun tries again.
    """
    found: tuple[pd.DataFrame, datetime] = _cached(uri(), "runs", lambda where: store.load(where, named=True))
    return found


def searches() -> tuple[list[dict[str, Any]], datetime]:
    """Return the documents of all searches, newest first, and when they were read (UTC); raises like `load`."""
    found: tuple[list[dict[str, Any]], datetime] = _cached(uri(), "searches", tracking.searches)
    return found


def refresh() -> None:
    """Forget what was read, so that the next page reads the whole store again."""
    _cached.clear()
    store.forget(uri())


def refresh_if(newer_than: datetime) -> bool:
    """Return whether a run that ended at a time (UTC) may be unknown yet: then `st.rerun()` reads what is new."""
    with suppress(tracking.StoreError):
        if load()[1] < newer_than:
            _cached.clear()
            return True
    return False
