"""MLflow's local database, read by plain SQL: many times as fast as through MLflow, and without changing it.

MLflow adds missing tables and an experiment to any database that it opens.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.errors import UserError
from bench.renamed import current_row
from bench.schema import Scalar

ENDED = ("FINISHED", "FAILED", "KILLED")
LOGGED, PARTLY = "bench.logged", "partly"
"""The tag that says how much of a run is logged, and its value until all of it is."""
_NAMED = ("run_id", "suite", "execution", "status")
"""Columns without which a row is incomplete."""
LOCKED_SECONDS = 5.0
"""Longest wait for a process that writes."""
_CHUNK = 500
"""Runs read at a time, so that a process that writes waits for a short time only."""


class StoreError(UserError):
    """The store is absent or does not answer; the message says what to do."""


def check_store(path: Path) -> None:
    """Raise StoreError where there is no MLflow store. Nothing is created or changed."""
    if not path.is_file():
        raise StoreError(f"there is no store at {path}\ncreate one with: bench measure -- python train.py")
    with connect(path) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master where type = 'table'")}
    if not tables:
        raise StoreError(f"{path} is empty, not an MLflow store\ncreate one with: bench measure -- python train.py")
    if not {"experiments", "runs", "tags", "latest_metrics", "alembic_version"} <= tables:
        raise StoreError(f"{path} is not an MLflow store but another database; name another store with --store")


@contextmanager
def connect(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a local store without changing it or its folder. Raises StoreError where it cannot be read."""
    try:
        with path.open("rb") as file:
            logged = file.read(20)[18:] == b"\x02\x02"  # reading would create the files of its write-ahead log
        alone = "&immutable=1" * (logged and not path.with_name(f"{path.name}-wal").exists())
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro{alone}", uri=True, timeout=LOCKED_SECONDS)) as database:
            yield database
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise StoreError(
                f"{path} is locked by a program that writes to it; try again when that has ended"
            ) from error
        raise StoreError(f"{path} is not a readable MLflow store: {error}; name another with --store") from error


StoredRow = tuple[str, str, dict[str, Scalar]]
"""Part of the store, id of a run in MLflow, and the row of the run."""


class News(NamedTuple):
    """What is new in a store since it was read.

    `parts` are the stamps of all parts of the store. `rows` are those of the parts whose stamp is new or empty, newest
    first.
    """

    rows: list[StoredRow]
    parts: dict[str, str]


_LISTED = """
select r.run_uuid, r.status, r.end_time from runs r join experiments e on e.experiment_id = r.experiment_id
join tags t on t.run_uuid = r.run_uuid and t.key = 'bench.kind' and t.value = 'run'
where r.lifecycle_stage = 'active' and e.lifecycle_stage = 'active' order by r.start_time desc, r.run_uuid"""
_TEXTS = """
select run_uuid, value from tags t where key = 'bench.row' and run_uuid in ({}) and not exists
(select 1 from tags where key = 'bench.logged' and run_uuid = t.run_uuid and value = 'partly')"""
_FIGURES = "select run_uuid, key, value from latest_metrics where is_nan = 0 and run_uuid in ({})"
_PARENTS = """
select r.run_uuid, r.artifact_uri, t.value from runs r join experiments e on e.experiment_id = r.experiment_id
join tags t on t.run_uuid = r.run_uuid and t.key = ? where (r.status = 'RUNNING' or not ?)
and r.lifecycle_stage = 'active' and e.lifecycle_stage = 'active' order by r.start_time desc, r.run_uuid"""


def news(path: Path, known: Mapping[str, str]) -> News:
    """Read the runs that are not in `known`, the newest first. See `tracker.news`."""
    rows: list[StoredRow] = []
    with connect(path) as database:
        listed = database.execute(_LISTED).fetchall()
        parts = {run: f"{status} {end}" if status in ENDED else "" for run, status, end in listed}
        wanted = [run for run, stamp in parts.items() if not stamp or known.get(run) != stamp]
        for first in range(0, len(wanted), _CHUNK):
            chunk = wanted[first : first + _CHUNK]
            marks = ",".join("?" * len(chunk))
            texts = dict(database.execute(_TEXTS.format(marks), chunk).fetchall())
            figures: dict[str, dict[str, float]] = {run: {} for run in chunk}
            for run, key, value in database.execute(_FIGURES.format(marks), chunk).fetchall():
                figures[run][key] = value
            rows += [(run, run, row) for run in chunk if (row := whole(texts.get(run), figures[run])) is not None]
    return News(rows, parts)


def parents(path: Path, tag: str, *, running: bool) -> list[tuple[str, str, str]]:
    """Return id, URI of the artifacts and value of a tag of the executions that have the tag, newest first."""
    with connect(path) as database:
        return list(database.execute(_PARENTS, (tag, running)))


def inhabited(path: Path) -> bool:
    """Return whether there are any runs, also of other tools."""
    with connect(path) as database:
        return database.execute("select 1 from runs where lifecycle_stage = 'active' limit 1").fetchone() is not None


def whole(text: str | None, figures: Mapping[str, float]) -> dict[str, Scalar] | None:
    """Return a row, made of the text in a tag and the numbers in the metrics; None where the tag is incomplete."""
    try:
        row: dict[str, Scalar] = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _NAMED):
        return None
    histories = ("step_seconds", "power_watts/")
    kept = {k: v for k, v in figures.items() if k != histories[0] and not k.startswith(histories[1])}
    return current_row(row | kept)
