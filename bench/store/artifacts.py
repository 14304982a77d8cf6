"""Files of one run in the store, and the course of a metric. Read only.

Ids of runs come from addresses that anybody can type, so they are checked before they are used.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bench.store.sqlite import ENDED, connect
from bench.store.tracker import StoreError, local, location, reader, reason

LARGEST = 32 * 2**20
"""Most bytes of the files of a run that are read, smallest first; the other files are only named."""
_REMOTE = ("s3", "gs", "wasbs", "abfss", "dbfs", "hdfs")
"""Schemes of places that are read besides folders and the tracking server; a server could name any other place."""
_RUN = re.compile(r"[0-9a-f]{32}")
_PLACE = "select experiment_id, artifact_uri, status from runs where run_uuid = ? and lifecycle_stage = 'active'"
_COURSE = (
    "select run_uuid, value from metrics where key = ? and is_nan = 0 and run_uuid in ({}) order by run_uuid, step"
)
_AT_ONCE = 100


class Stored(NamedTuple):
    """Files of a run by name, sizes of those that were not read (None: unknown), and the id of its experiment."""

    experiment: str
    files: dict[str, bytes]
    left_out: dict[str, int | None]


def files(run: str, uri: str | None = None) -> Stored:
    """Read the files of a run that has ended, by its id in MLflow. An imported run has none.

    Raises StoreError where there is no such run, where it is still being logged, and where its files cannot be read.
    """
    uri = location(uri)
    if not _RUN.fullmatch(run):
        raise StoreError("this is not the id of a run: 32 digits and letters from a to f")
    experiment, place, status = _place(uri, run)
    if status not in ENDED:
        raise StoreError("the run is still being logged: refresh in a moment")
    stored = Stored(experiment, {}, {})
    try:
        with TemporaryDirectory() as folder:
            listed, room = _listed(uri, run, place, Path(folder)), LARGEST
            for name, listed_size, fetch in sorted(listed, key=lambda file: (file[1] or 0, file[0])):
                path = fetch() if listed_size is not None and listed_size <= room else None
                size = path.stat().st_size if path is not None else listed_size  # a server may have listed less
                if path is None or size is None or size > room:
                    stored.left_out[name] = size
                else:
                    stored.files[name] = path.read_bytes()
                    room -= size
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"the files of the run cannot be read: {reason(error)}") from error
    return stored


def _place(uri: str, run: str) -> tuple[str, str, str]:
    path = local(uri)
    if path is not None:
        with connect(path) as database:
            place = database.execute(_PLACE, [run]).fetchone()
        if place is None:
            raise StoreError("the store does not have this run")
        return str(place[0]), str(place[1]), str(place[2])
    try:
        info = reader(uri).get_run(run).info
    except Exception as error:
        raise StoreError(f"the run cannot be read: {reason(error)}") from error
    return str(info.experiment_id), str(info.artifact_uri), str(info.status)


def _listed(uri: str, run: str, place: str, folder: Path) -> Iterator[tuple[str, int | None, Callable[[], Path]]]:
    """Yield name, size in bytes (None: unknown) and a way to fetch each file in a place, without subfolders and links."""
    at, server = urlsplit(place), urlsplit(uri)
    if at.scheme in ("", "file"):
        here = Path(url2pathname(at.path if at.scheme else place))
        if here.parts[-2:] != (run, "artifacts"):  # a server could name any folder of this machine
            raise StoreError("the files of the run are not where MLflow stores files")
        for path in sorted(here.iterdir()) if here.is_dir() else []:
            if path.is_file() and not path.is_symlink():
                yield path.name, path.stat().st_size, path.absolute
        return
    host = server.netloc.rpartition("@")[2]
    own = {("mlflow-artifacts", ""), ("mlflow-artifacts", host), (server.scheme, host)}
    if at.scheme not in _REMOTE and (at.scheme, at.netloc) not in own:
        raise StoreError("the files of the run are not where MLflow stores files")
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(place, tracking_uri=uri)  # a client would look the place up again
    for info in repository.list_artifacts():
        if not info.is_dir and info.path not in ("", ".", "..") and not set(info.path) & set("/\\"):

            def fetch(name: str = info.path) -> Path:
                return Path(repository.download_artifacts(name, str(folder)))

            yield info.path, info.file_size, fetch


def courses(runs: Sequence[str], uri: str | None = None, metric: str = "step_seconds") -> dict[str, list[float]]:
    """Return the values of a metric over the steps of runs in a local store, about 100 of each; none from a server."""
    values: dict[str, list[float]] = {}
    ids = [run for run in runs if _RUN.fullmatch(run)]
    with suppress(StoreError, sqlite3.Error):  # a table is shown without them too
        path = local(location(uri))
        for first in range(0, len(ids) if path else 0, _AT_ONCE):
            chunk = ids[first : first + _AT_ONCE]
            with connect(path) as database:  # type: ignore[arg-type]
                for run, value in database.execute(_COURSE.format(",".join("?" * len(chunk))), [metric, *chunk]):
                    values.setdefault(run, []).append(value)
    return values
