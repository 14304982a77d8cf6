"""What the pages read, cached: one reading of the store serves all pages and reruns for a minute."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pandas as pd
import streamlit as st

from analytics import store
from app.serve import TRACKING_URI


def _read(where: str | None) -> tuple[pd.DataFrame, datetime]:
    return store.load(where), datetime.now(UTC)


_cached = st.cache_data(_read, ttl=60, max_entries=4, show_spinner="Reading the runs ...")


def uri() -> str | None:
    """Return the store that the server was started for; None for the usual one."""
    return os.environ.get(TRACKING_URI)


def load() -> tuple[pd.DataFrame, datetime]:
    """Return the frame of all runs and when it was read (UTC).

    Raises `bench.tracking.StoreError`, which is not cached: the next rerun tries again.
    """
    found: tuple[pd.DataFrame, datetime] = _cached(uri())
    return found


def refresh() -> None:
    """Forget what was read, so that the next page reads the whole store again."""
    _cached.clear()
    store.forget(uri())
