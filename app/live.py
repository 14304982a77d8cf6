"""The panel of running executions: from progress files and progress tags only, never from the runs of the store."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from analytics.text import counted, number, printable
from app import data
from app.serve import RUNS
from bench.store import tracker as tracking
from bench.store.progress import Flight, Seen, in_flight

_SECONDS, _ASK_SECONDS = 2.0, 10.0
"""How often folders are looked at, and how often the store is asked."""


@st.cache_data(ttl=_ASK_SECONDS, show_spinner=False)  # type: ignore[untyped-decorator]
def _flights(where: str) -> list[Flight]:
    with suppress(tracking.StoreError):  # the page itself says so
        return tracking.flights(where)
    return []


def look() -> list[Seen]:
    """Return the executions that run, and those that stopped before their end."""
    flights = _flights(tracking.location(data.uri()))
    return in_flight(Path(os.environ.get(RUNS) or "runs"), flights, datetime.now(UTC))


def _ended(seen: list[Seen]) -> frozenset[tuple[str, ...]]:
    """Return what changes when a run ends."""
    running = [entry.flight for entry in seen if entry.state == "running"]
    return frozenset((f.suite, f.execution, str(f.done), str(f.failed)) for f in running)


def panel() -> None:
    """Show what runs now, every two seconds; when a run has ended, the page reads what is new."""
    seen = _ended(look())
    if seen != st.session_state.get("ended", seen):
        data.forget()
    st.session_state["ended"] = seen
    _panel(seen)


@st.fragment(run_every=_SECONDS)  # type: ignore[untyped-decorator]
def _panel(before: frozenset[tuple[str, ...]]) -> None:
    seen, now = look(), datetime.now(UTC)
    if _ended(seen) != before:
        st.rerun()
    running = [entry.flight for entry in seen if entry.state == "running"]
    if not running:
        st.caption("Nothing is running.")
    for flight in running:
        head, *lines = words(flight, now)
        with st.container(border=True):
            st.text(f"Running: {head}")
            if flight.to_do:
                st.progress(min(1.0, flight.done / flight.to_do))
            st.text("\n".join(lines))
    if past := [past_words(entry) for entry in seen if entry.state != "running"]:
        st.text("\n".join(past))


def duration(seconds: float) -> str:
    """Return a duration in words: `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    for size, name, part, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {rest}"
    return f"{whole} s"


def _progress(flight: Flight) -> str:
    if flight.to_do is None:
        return f"{counted(flight.done, flight.unit[:-1])} done"
    return f"{flight.done} of {counted(flight.to_do, flight.unit[:-1])} done"


def words(flight: Flight, now: datetime) -> list[str]:
    """Return lines on an execution: its progress, the run under way, and the time that is left."""
    failed = f", {flight.failed} run{'s' * (flight.failed != 1)} failed" if flight.failed else ""
    since = (now - (flight.run_began_at or now)).total_seconds()
    current = "starting" if flight.current is None else f"{printable(flight.current, 200)}, for {duration(since)}"
    if flight.steps:
        rate = f" at {number(flight.steps_per_second)} steps/s" if flight.steps_per_second else ""
        current += f", {counted(flight.steps, 'step')}{rate}"
    times = f"Began {duration((now - flight.began_at).total_seconds())} ago"
    if flight.remaining_seconds is not None:
        left = flight.remaining_seconds - since
        times += f", about {duration(left)} left" if left > 0 else ", about to end"
    head = f"{printable(flight.suite)} on {printable(flight.host)}: {_progress(flight)}{failed}"
    return [head, f"Now: {current}", times]


def past_words(seen: Seen) -> str:
    """Return a sentence on an execution that stopped before its end, or that is silent for too long."""
    flight = seen.flight
    head, when = f"{printable(flight.suite)} on {printable(flight.host)}", f"{flight.updated_at:%Y-%m-%d %H:%M:%S} UTC"
    if seen.state == "silent":
        return f"{head}: no news since {when}, after {_progress(flight)}. Whether it still runs is not known."
    return f"{head} stopped at {when}, after {_progress(flight)}. Run the same command again to resume."
