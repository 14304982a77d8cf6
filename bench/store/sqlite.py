"""MLflow's local database, read by plain SQL: many times as fast as through MLflow, and nothing is changed by it.

MLflow itself adds tables and an experiment to a database that lacks them, only by opening it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.errors import UserError
from bench.renamed import current_row
from bench.schema import Scalar

ENDED = ("FINISHED", "FAILED", "KILLED")
_NAMED = ("run_id", "suite", "execution", "status")
"""What tells a whole row."""
LOCKED_SECONDS = 5.0
"""How long whoever writes is waited for."""
_CHUNK = 500
"""Runs read at a time, so that whoever writes waits for no more."""


class StoreError(UserError):
    """The store is absent or does not answer; the message says what to do."""


def check(path: Path) -> None:
    """Raise StoreError where there is no MLflow store; nothing is created or changed."""
    if not path.is_file():
        raise StoreError(f"there is no store at {path}\nmake one with: bench run suites/scaling.yaml")
    with reading(path) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master where type = 'table'")}
    if not tables:
        raise StoreError(f"{path} is empty, no MLflow store yet\nfill one with: bench run suites/scaling.yaml")
    if not {"experiments", "runs", "tags", "latest_metrics", "alembic_version"} <= tables:
        raise StoreError(f"{path} is a database of something else, not an MLflow store; name another with --store")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a local store so that nothing is changed beside it either; raise StoreError where it cannot be read."""
    try:
        with path.open("rb") as file:
            logged = file.read(20)[18:] == b"\x02\x02"  # a reader would make the files of its write-ahead log
        alone = "&immutable=1" * (logged and not path.with_name(f"{path.name}-wal").exists())
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro{alone}", uri=True, timeout=LOCKED_SECONDS)) as database:
            yield database
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise StoreError(f"{path} is locked by a program that writes to it; try again when it has ended") from error
        raise StoreError(f"{path} is not a readable MLflow store: {error}; name another with --store") from error


Row = tuple[str, str, dict[str, Scalar]]
"""A part of the store, MLflow's name of a run in it, and the row of the run."""


class News(NamedTuple):
    """What a store has that its reader does not know.

    `parts` are all parts of the store with their stamps, also those known. `rows` are those of the parts whose stamp is new
    or empty, newest first, each with its part and MLflow's name of the run.
    """

    rows: list[Row]
    parts: dict[str, str]


Progress = Callable[[int, int | None, News], None]
"""Told how many runs were read, of how many (None where a server does not say), and the news so far, whose rows grow."""


_LISTED = """
select r.run_uuid, r.status, r.end_time, r.experiment_id from runs r join experiments e on e.experiment_id = r.experiment_id
join tags t on t.run_uuid = r.run_uuid and t.key = 'bench.kind' and t.value = 'run'
where r.lifecycle_stage = 'active' and e.lifecycle_stage = 'active' order by r.start_time desc, r.run_uuid"""
_TEXTS = "select run_uuid, value from tags where key = 'bench.row' and run_uuid in ({})"
_FIGURES = "select run_uuid, key, value from latest_metrics where is_nan = 0 and run_uuid in ({})"
_PARENTS = """
select r.run_uuid, r.artifact_uri, t.value from runs r join experiments e on e.experiment_id = r.experiment_id
join tags t on t.run_uuid = r.run_uuid and t.key = ? where (r.status = 'RUNNING' or not ?)
and r.lifecycle_stage = 'active' and e.lifecycle_stage = 'active' order by r.start_time desc, r.run_uuid"""


def news(path: Path, known: Mapping[str, str], progress: Progress) -> News:
    """Read the runs that are not in `known`: suite by suite, that with the newest run first. See `tracker.news`."""
    rows: list[Row] = []
    with reading(path) as database:
        listed = database.execute(_LISTED).fetchall()
        parts = {run: f"{status} {end}" if status in ENDED else "" for run, status, end, _ in listed}
        suites = list(dict.fromkeys(suite for *_, suite in listed))
        by_suite = sorted(listed, key=lambda run: suites.index(run[3]))
        wanted = [run for run, *_ in by_suite if not parts[run] or known.get(run) != parts[run]]
        progress(0, len(wanted), News(rows, parts))
        for first in range(0, len(wanted), _CHUNK):
            chunk = wanted[first : first + _CHUNK]
            marks = ",".join("?" * len(chunk))
            texts = dict(database.execute(_TEXTS.format(marks), chunk).fetchall())
            figures: dict[str, dict[str, float]] = {run: {} for run in chunk}
            for run, key, value in database.execute(_FIGURES.format(marks), chunk).fetchall():
                figures[run][key] = value
            rows += [(run, run, row) for run in chunk if (row := whole(texts.get(run), figures[run])) is not None]
            progress(first + len(chunk), len(wanted), News(rows, parts))
    order = {run: number for number, run in enumerate(parts)}
    return News(sorted(rows, key=lambda row: order[row[1]]), parts)


def parents(path: Path, tag: str, *, running: bool) -> list[tuple[str, str, str]]:
    """Return name, place of the artifacts and value of a tag of the executions that have it, the newest first."""
    with reading(path) as database:
        found: list[tuple[str, str, str]] = database.execute(_PARENTS, (tag, running)).fetchall()
    return found


def inhabited(path: Path) -> bool:
    """Whether there are runs at all, anybody's."""
    with reading(path) as database:
        return database.execute("select 1 from runs where lifecycle_stage = 'active' limit 1").fetchone() is not None


def whole(text: str | None, figures: Mapping[str, float]) -> dict[str, Scalar] | None:
    """Put a row together again: asked and labels from one tag, numbers from the metrics; None for a torn run."""
    try:
        row: dict[str, Scalar] = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _NAMED):
        return None
    histories = ("step_seconds", "power_watts/")
    kept = {k: v for k, v in figures.items() if k != histories[0] and not k.startswith(histories[1])}
    return current_row(row | kept)
