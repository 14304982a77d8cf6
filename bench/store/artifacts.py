"""What a store keeps of one run besides its row: its files, and the course of a metric. Read only.

Names of runs come from an address that anybody can type, so they are checked before anything is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bench.store.sqlite import ENDED, reading
from bench.store.tracker import StoreError, local, location, reader, reason

LARGEST = 32 * 2**20
"""Bytes of the files of a run that are read, the smallest first; the others are named."""
_REMOTE = ("s3", "gs", "wasbs", "abfss", "dbfs", "hdfs")
"""Where files may lie besides folders and the tracking server itself; others lead to wherever a server likes."""
_RUN = re.compile(r"[0-9a-f]{32}")
_PLACE = "select experiment_id, artifact_uri, status from runs where run_uuid = ? and lifecycle_stage = 'active'"
_COURSE = (
    "select run_uuid, value from metrics where key = ? and is_nan = 0 and run_uuid in ({}) order by run_uuid, step"
)
_BULK, _AT_ONCE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", 100


class Stored(NamedTuple):
    """Files of a run by name, those not read with their bytes or None, and MLflow's number of its experiment."""

    experiment: str
    files: dict[str, bytes]
    left_out: dict[str, int | None]


def files(run: str, uri: str | None = None) -> Stored:
    """Read the files of a run, which has ended, by MLflow's name of it; none for one that was imported.

    Raises StoreError where there is no such run, where it is still being logged, and where its files cannot be had.
    """
    uri = location(uri)
    if not _RUN.fullmatch(run):
        raise StoreError("that is no name that MLflow gives to a run: 32 digits and letters from a to f")
    experiment, place, status = _place(uri, run)
    if status not in ENDED:
        raise StoreError("the run is still being logged: read again in a moment")
    found = Stored(experiment, {}, {})
    try:
        with TemporaryDirectory() as folder:
            listed, room = _listed(uri, run, place, Path(folder)), LARGEST
            for name, told, fetch in sorted(listed, key=lambda file: (file[1] or 0, file[0])):
                path = fetch() if told is not None and told <= room else None
                size = path.stat().st_size if path is not None else told  # a server may have told less
                if path is None or size is None or size > room:
                    found.left_out[name] = size
                else:
                    found.files[name] = path.read_bytes()
                    room -= size
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"the files of the run cannot be had: {reason(error)}") from error
    return found


def _place(uri: str, run: str) -> tuple[str, str, str]:
    path = local(uri)
    if path is not None:
        with reading(path) as database:
            found = database.execute(_PLACE, [run]).fetchone()
        if found is None:
            raise StoreError("the store has no such run (any more)")
        return str(found[0]), str(found[1]), str(found[2])
    try:
        info = reader(uri).get_run(run).info
    except Exception as error:
        raise StoreError(f"the run cannot be had: {reason(error)}") from error
    return str(info.experiment_id), str(info.artifact_uri), str(info.status)


def _listed(uri: str, run: str, place: str, folder: Path) -> Iterator[tuple[str, int | None, Callable[[], Path]]]:
    """Yield name, bytes if known, and a way to get each file that lies directly in the place; links are passed over."""
    at, server = urlsplit(place), urlsplit(uri)
    if at.scheme in ("", "file"):
        here = Path(url2pathname(at.path if at.scheme else place))
        if here.parts[-2:] != (run, "artifacts"):  # a server could name any folder of this machine
            raise StoreError("the files of the run are not where MLflow keeps files")
        for path in sorted(here.iterdir()) if here.is_dir() else []:
            if path.is_file() and not path.is_symlink():
                yield path.name, path.stat().st_size, path.absolute
        return
    host = server.netloc.rpartition("@")[2]
    own = {("mlflow-artifacts", ""), ("mlflow-artifacts", host), (server.scheme, host)}
    if at.scheme not in _REMOTE and (at.scheme, at.netloc) not in own:
        raise StoreError("the files of the run are not where MLflow keeps files")
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    kept = get_artifact_repository(place, tracking_uri=uri)  # a client would ask for the place again
    for info in kept.list_artifacts():
        if not info.is_dir and info.path not in ("", ".", "..") and not set(info.path) & set("/\\"):

            def fetch(name: str = info.path) -> Path:
                return Path(kept.download_artifacts(name, str(folder)))

            yield info.path, info.file_size, fetch


def courses(runs: Sequence[str], uri: str | None = None, metric: str = "step_seconds") -> dict[str, list[float]]:
    """Return the values of a metric over the steps of some runs, about 100 of each; nothing where they cannot be had."""
    uri, wanted = location(uri), [run for run in runs if _RUN.fullmatch(run)]
    found: dict[str, list[float]] = {}
    read = {"sqlite": _local, "http": _served, "https": _served}.get(urlsplit(uri).scheme)
    with suppress(Exception):  # an ornament of a table: its absence is no error
        for first in range(0, len(wanted) if read else 0, _AT_ONCE):
            for run, value in read(uri, wanted[first : first + _AT_ONCE], metric):  # type: ignore[misc]
                found.setdefault(run, []).append(value)
    return found


def _local(uri: str, runs: list[str], metric: str) -> Iterable[tuple[str, float]]:
    path = local(uri)
    if path is None:
        return []
    with reading(path) as database:
        return database.execute(_COURSE.format(",".join("?" * len(runs))), [metric, *runs]).fetchall()


def _served(uri: str, runs: list[str], metric: str) -> Iterable[tuple[str, float]]:
    """Ask a server as MLflow's own charts do: its REST store would ask for run after run, which takes long."""
    from mlflow.utils.rest_utils import http_request

    credentials: Any = reader(uri)._tracking_client.store.get_host_creds()
    asked = {"run_ids": runs, "metric_key": metric, "max_results": _AT_ONCE}
    answer = http_request(credentials, _BULK, "GET", params=asked, timeout=10, max_retries=0)
    return [(str(point["run_id"]), float(point["value"])) for point in answer.json().get("metrics", [])]
