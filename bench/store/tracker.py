"""MLflow as the index of the records; no other module but `script_run` imports mlflow. The run folders suffice to rebuild it.

Only the process that runs a suite writes, one batch per run. Reading never creates a store: one that does not exist is an
error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bench.figures.metrics import TEXT_COLUMNS, configured, labels, metrics
from bench.files import held
from bench.folder import METERS, RECORD, SEARCH, STEPS, WORKER_LOG
from bench.record import WANDB, RunRecord, Status
from bench.redact import redact
from bench.schema import Scalar
from bench.store import sqlite as database
from bench.store.progress import Flight, Seen, in_flight
from bench.store.sqlite import News as News
from bench.store.sqlite import StoredRow
from bench.store.sqlite import StoreError as StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_HISTORY_POINTS = 100
_ARTIFACTS = (RECORD.name, STEPS.pattern, METERS.pattern)
_LOG_BYTES = 200_000
_PROGRESS, _ROW = "bench.progress", "bench.row"
_SINGLY = 20
"""Most changed executions whose runs are read one by one."""
_SETTINGS = {
    # A server that is down must not delay a suite for minutes, and nothing reports usage.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def location(uri: str | None = None) -> str:
    """Return the tracking URI with an absolute path: `uri`, else MLFLOW_TRACKING_URI, else `mlflow.db` in this folder."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).expanduser().absolute()}"
    return uri


def shown(uri: str | None = None) -> str:
    """Return the location without credentials, for messages."""
    return redact(location(uri))


def writable(uri: str) -> bool:
    """Return whether a local store can be written or created; True for a server, which is not asked."""
    if not location(uri).startswith(_SQLITE):
        return True
    path = Path(location(uri).removeprefix(_SQLITE))
    folder = next(parent for parent in path.parents if parent.exists())
    return all(os.access(place, os.W_OK) for place in (folder, path) if place.exists())


def _client(uri: str) -> MlflowClient:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # A fresh store prints each step of its migration.
    for logger in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


class Tracker:
    """Log of the records of one execution, under a parent run. After a failure it does nothing; `error` gives the reason."""

    def __init__(self, uri: str | None, suite: str, execution: str) -> None:
        self.uri = location(uri)
        self.suite = suite
        self.execution = execution
        self.error: str | None = None
        self._client: Any = None
        self._experiment = self._parent = ""
        self._logged: dict[str, set[str]] = {}  # starts of the runs in the store, by run_id

    @classmethod
    def off(cls, suite: str, execution: str) -> Tracker:
        """Return one that does nothing, where another process logs the records."""
        tracker = cls(None, suite, execution)
        tracker.error = "the records are logged elsewhere"
        return tracker

    def open(self) -> None:
        """Find the store, the experiment and the parent run of this execution, or create them."""
        self._guarded(self._open)

    def log(self, record: RunRecord, folder: Path, script_run: str | None = None) -> bool:
        """Log one record with its artifacts, unless the store has it; return whether it was logged now.

        `script_run` is the run in MLflow that the script has made itself.
        """
        return self._once(record.run_id, record.started_at.isoformat(), lambda: self._log(record, folder, script_run))

    def lacks(self, run_id: str, started: datetime) -> bool:
        """Return whether the store has no run of this id that started then."""
        return self.error is None and started.isoformat() not in self._logged.get(run_id, ())

    def log_row(self, row: Mapping[str, Scalar]) -> bool:
        """Log the row of an imported run, unless the store has it; return whether it was logged now."""
        if row["run_id"] in self._logged:  # it starts when it is imported, which may be again
            return False
        text = {key: str(value) for key, value in row.items() if key in TEXT_COLUMNS}
        figures = {key: value for key, value in row.items() if isinstance(value, float)}
        parameters = {key: value for key, value in row.items() if key not in text and key not in figures}
        started = int(datetime.fromisoformat(text["started_at"]).timestamp() * 1000)

        def log() -> None:
            self._finish(self._create(started, parameters, text, figures), "FINISHED", started)

        return self._once(text["run_id"], text["started_at"], log)

    def _once(self, run_id: str, started: str, log: Callable[[], None]) -> bool:
        """Log a run, identified by its run_id and start, unless the store has it; return whether it was logged now."""
        if started in self._logged.get(run_id, ()):
            return False
        self._guarded(log)
        if self.error is None:
            self._logged.setdefault(run_id, set()).add(started)
        return self.error is None

    def attach(self, document: dict[str, Any]) -> None:
        """Store the document of a search with the parent run, whose tag `bench.search` names the study."""

        def attach() -> None:
            self._client.log_text(self._parent, json.dumps(document, indent=1, allow_nan=False), SEARCH)
            self._client.set_tag(self._parent, "bench.search", document["study"])

        self._guarded(attach)

    def tell(self, flight: Flight) -> None:
        """Store the progress of the execution with the parent run, if there is one; a server is not sent the folder."""
        if self._parent:
            text = flight.model_dump_json(exclude=None if self.uri.startswith(_SQLITE) else {"folder"})
            self._guarded(lambda: self._client.set_tag(self._parent, _PROGRESS, text))

    def close(self, *, finished: bool) -> None:
        """End the parent run: FINISHED, or KILLED where runs are still missing."""
        if self._parent:
            self._guarded(lambda: self._client.set_terminated(self._parent, "FINISHED" if finished else "KILLED"))

    def _guarded(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except Exception as error:  # noqa: BLE001  no failure of the index may stop a suite
                self.error = f"MLflow at {shown(self.uri)} failed: {reason(error)}"

    def _open(self) -> None:
        alone: Any = nullcontext()
        path: Path | None = None
        if self.uri.startswith(_SQLITE):
            path = Path(self.uri.removeprefix(_SQLITE))
            path.parent.mkdir(parents=True, exist_ok=True)
            if not writable(self.uri):  # MLflow would retry for minutes
                raise PermissionError(f"{path} cannot be written")
            with closing(sqlite3.connect(path, timeout=5)) as connection:
                connection.execute("pragma schema_version")
            alone = held(path.with_name(f"{path.name}.lock"))  # two processes that create a store at once corrupt it
        with alone:
            if path is not None and not path.stat().st_size:
                _create_store(path)
            self._client = client = _client(self.uri)
            self._experiment = self._made(client)
        where = f"tags.`bench.kind` = 'suite' and tags.`bench.execution` = '{self.execution}'"
        parents = client.search_runs([self._experiment], where, max_results=1)
        if parents:
            self._parent = parents[0].info.run_id
            client.update_run(self._parent, status="RUNNING")
            where = f"tags.`mlflow.parentRunId` = '{self._parent}'"
            runs = _pages(lambda token: client.search_runs([self._experiment], where, page_token=token))
            for row in filter(None, map(_row, runs)):
                self._logged.setdefault(str(row["run_id"]), set()).add(str(row["started_at"]))
        else:
            tags = {"bench.kind": "suite", "bench.execution": self.execution}
            self._parent = client.create_run(self._experiment, tags=tags, run_name=self.execution).info.run_id

    def _made(self, client: MlflowClient) -> str:
        """Return the experiment of the suite, which is created if it does not exist. Others may create it meanwhile.

        Artifacts of a local store lie beside it, not in the folder in which the command was typed.
        """
        from mlflow.exceptions import MlflowException

        beside = Path(self.uri.removeprefix(_SQLITE)).parent / "mlartifacts" / self.suite
        experiment = client.get_experiment_by_name(self.suite)
        if experiment is None:
            try:
                return str(
                    client.create_experiment(self.suite, beside.as_uri() if self.uri.startswith(_SQLITE) else None)
                )
            except MlflowException:
                experiment = client.get_experiment_by_name(self.suite)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _log(self, record: RunRecord, folder: Path, script_run: str | None) -> None:
        started = int(record.started_at.timestamp() * 1000)
        text = labels(record)
        text["error_message"] = text.get("error_message", "")[:1000]
        run = self._create(started, configured(record), text, metrics(record), _history(folder, record))
        if script_run is not None:
            self._client.set_tag(run, "bench.script_run", script_run)
        if record.measurement is not None and WANDB in record.measurement.notes:
            self._client.set_tag(run, f"bench.{WANDB}", str(record.measurement.notes[WANDB]))
        for pattern in _ARTIFACTS:
            for path in sorted(folder.glob(pattern)):
                self._client.log_artifact(run, str(path))
        log = folder / WORKER_LOG
        if log.exists():
            tail = log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
            self._client.log_text(run, redact(tail), WORKER_LOG)
        status = {Status.OK: "FINISHED", Status.SKIPPED: "KILLED"}.get(record.status, "FAILED")
        self._finish(run, status, started + int(record.duration_seconds * 1000))

    def _create(
        self,
        started: int,
        asked: Mapping[str, Scalar],
        text: Mapping[str, str],
        numbers: Mapping[str, float],
        history: Iterable[tuple[str, float, int, int]] = (),
    ) -> str:
        """Create a run that started at a time in milliseconds and log its row; return its id in MLflow.

        It is marked as partly logged until `_finish`: one that was cut short is logged once more. Runs of older versions have
        no mark. The row is set here, as MLflow cuts tags that are set later at 8,000 characters.
        """
        from mlflow.entities import Metric, Param

        short = {key: value[:1000] if isinstance(value, str) else value for key, value in {**asked, **text}.items()}
        row = json.dumps({key: value for key, value in short.items() if value != ""})
        tags = {f"bench.{key}": value[:5000] for key, value in text.items() if value}
        tags |= {"mlflow.parentRunId": self._parent, "bench.kind": "run", _ROW: row, database.LOGGED: database.PARTLY}
        run = self._client.create_run(self._experiment, start_time=started, run_name=text["run_id"], tags=tags)
        batch = [Metric(key, value, started, 0) for key, value in numbers.items()]
        params = [Param(key, str(value)[:500]) for key, value in asked.items()]
        self._log_all(run.info.run_id, [*batch, *(Metric(*point) for point in history)], params)
        return str(run.info.run_id)

    def _log_all(self, run: str, points: Sequence[Any], params: Sequence[Any]) -> None:
        """Log metrics and parameters, but for those that MLflow refuses: one bad name costs no other figure."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(run, metrics=points, params=params)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(points) + len(params) > 1:
                for part in (0, 1):
                    self._log_all(run, points[part::2], params[1 - part :: 2])

    def _finish(self, run: str, status: str, ended: int) -> None:
        self._client.set_tag(run, database.LOGGED, "wholly")
        self._client.set_terminated(run, status, ended)


def _create_store(path: Path) -> None:
    """Create a local store whole or not at all: one that was cut short could never be opened again."""
    store = path.resolve()  # it may be a link to another disk
    temporary = store.with_name(f".{store.name}.new")
    for name in (temporary.name, f"{temporary.name}-journal"):  # of a process that was killed
        store.with_name(name).unlink(missing_ok=True)
    _client(f"{_SQLITE}{temporary}").search_experiments(max_results=1)
    temporary.replace(store)


def reason(error: Exception) -> str:
    """Return in a few words why MLflow failed: the reason of the operating system where the message contains one."""
    text = redact(str(error))
    system = re.findall(r"\[Errno -?\d+\] ([\w ,]+)|(timed out)", text)
    lines = text.strip().splitlines() or [type(error).__name__]
    return " ".join(system[-1]).strip() if system else lines[0][:300]


def _history(folder: Path, record: RunRecord) -> Iterator[tuple[str, float, int, int]]:
    """Yield at most 100 points each of step times and power as (key, value, milliseconds, step), for MLflow's charts."""
    origin = int(record.started_at.timestamp() * 1000)
    if record.measurement is not None:
        seconds = record.measurement.step_seconds
        for step in range(0, len(seconds), max(1, -(-len(seconds) // _HISTORY_POINTS))):
            yield "step_seconds", seconds[step], origin + step, step
    for path in sorted(folder.glob(METERS.pattern)):
        from bench.meters.trace import Trace

        trace = Trace.read(path)
        for source, component, device in trace.devices:
            points = trace.power(component, device)
            for index in range(0, len(points), max(1, -(-len(points) // _HISTORY_POINTS))):
                since = (points[index][0] - points[0][0]) // 1_000_000
                name = f"power_watts/{source}/{component}"
                yield (
                    (f"{name}/{device}" if component == "gpu" or ":" in device else name),
                    points[index][1],
                    origin + since,
                    index,
                )


def local(uri: str) -> Path | None:
    """Return the file of a local store; None for a server. Raises StoreError where the file cannot be read."""
    if not uri.startswith(_SQLITE):
        if uri.startswith("sqlite"):
            raise StoreError(f"{shown(uri)} cannot be read as a store: write it as sqlite:////path/to/mlflow.db")
        return None
    path = Path(uri.removeprefix(_SQLITE))
    database.check_store(path)
    return path


def load(uri: str | None = None, suite: str | None = None) -> list[dict[str, Scalar]]:
    """Return the rows (see bench.figures.metrics.row) of all runs in the store or of one suite, newest first.

    Runs of other tools are left out. Raises StoreError; never creates a store.
    """
    return [row for *_, row in news(uri, {}).rows if suite in (None, row["suite"])]


def news(uri: str | None, known: Mapping[str, str]) -> News:
    """Read the runs of a store that are not in `known`, the stamps of the parts that were read before.

    A part of a local database is a run, whose stamp is empty until it has ended; SQL reads it many times as fast as MLflow.
    A part of a server is an execution, whose stamp changes when runs are logged, and is empty meanwhile. Runs that are
    deleted from a finished execution on a server, or restored, are not noticed. The newest runs come first. Raises
    StoreError; never changes a store.
    """
    uri = location(uri)
    path = local(uri)
    return database.news(path, known) if path is not None else _server_news(reader(uri), uri, known)


def inhabited(uri: str | None = None) -> bool:
    """Return whether a store has any runs, also of other tools. Raises StoreError."""
    uri = location(uri)
    path = local(uri)
    if path is not None:
        return database.inhabited(path)
    client = reader(uri)
    with _answering(uri):
        ids = _experiments(client)
        return bool(ids and client.search_runs(ids, max_results=1))


def _server_news(client: MlflowClient, uri: str, known: Mapping[str, str]) -> News:
    """Read the executions, then the runs of those that have changed, or all runs where many have.

    Runs of a known execution that has disappeared are read too, as they may still exist. It gets no stamp.
    """
    infos = [run.info for run in _runs(client, uri, kind="suite")]
    parts = {run.run_id: f"{run.status} {run.end_time}" if run.status in database.ENDED else "" for run in infos}
    kept = {part for part, stamp in parts.items() if stamp and known.get(part) == stamp}
    changed = [part for part in {**parts, **known} if part not in kept]
    wheres = [f" and tags.`mlflow.parentRunId` = '{part}'" for part in changed]
    if not known or len(changed) > _SINGLY or "" in changed:
        wheres = [""]
    rows: list[StoredRow] = []
    began: dict[str, int] = {}

    def take(runs: list[Any]) -> None:
        for run in runs:
            part = run.data.tags.get("mlflow.parentRunId", "")
            began[run.info.run_id] = run.info.start_time
            if part not in kept and (row := _row(run)) is not None:
                parts.setdefault(part, "")
                rows.append((part, run.info.run_id, row))

    for where in wheres:
        _runs(client, uri, where, take)
    return News(sorted(rows, key=lambda row: (-began[row[1]], row[1])), parts)


def records(rows: Iterable[Any], uri: str | None = None) -> list[RunRecord]:
    """Return the records of rows (of `load` or of a frame) in their order, from the artifacts of their runs.

    Raises StoreError where a record is missing; never changes a store.
    """
    uri = location(uri)
    client = reader(uri)
    wanted = [_identity(row) for row in rows]
    found: dict[tuple[str, ...], RunRecord] = {}
    for execution in dict.fromkeys(execution for _, execution, *_ in wanted):
        for run in _runs(client, uri, f" and tags.`bench.execution` = '{execution}'"):
            row = _row(run)
            if row is not None and (identity := _identity(row)) in wanted:
                found[identity] = _record(uri, run.info, f"{identity[2]} at {shown(uri)}")
    lost = [identity for identity in wanted if identity not in found]
    if lost:
        raise StoreError(f"the run {lost[0][2]} is not at {shown(uri)} any more")
    return [found[identity] for identity in wanted]


def _identity(row: Any) -> tuple[str, ...]:
    began = row.get("started_at")
    with suppress(TypeError, ValueError):  # rows of a store have text, those of a frame a time or nothing
        began = (datetime.fromisoformat(began) if isinstance(began, str) else began).timestamp()
    return tuple(str(value) for value in (row.get("suite"), row.get("execution"), row.get("run_id"), began))


_REMEDY = "bench sync --store URI makes another store from the folder of the runs"


def _record(uri: str, run: Any, which: str) -> RunRecord:
    text = _artifact(uri, run.run_id, run.artifact_uri, RECORD.name, which)
    try:
        return RunRecord.model_validate_json(text)
    except ValueError as error:
        raise StoreError(f"{RECORD.name} of {which} cannot be read by this version\n{_REMEDY}") from error


def _artifact(uri: str, run: str, place: str, name: str, which: str) -> str:
    """Return an artifact of a run, whose artifacts are at the URI `place`. Raises StoreError where it is missing."""
    address = urlsplit(place)
    try:
        if address.scheme == "file":  # MLflow would look up the place of each one, and copy it
            return (Path(url2pathname(address.path)) / name).read_text(encoding="utf-8")
        with TemporaryDirectory() as folder:
            return Path(_client(uri).download_artifacts(run, name, folder)).read_text(encoding="utf-8")
    except Exception as error:
        raise StoreError(f"no {name} of {which}: {reason(error)}\n{_REMEDY}") from error


def _parents(uri: str, tag: str, *, running: bool = False) -> list[tuple[str, str, str]]:
    """Return id, URI of the artifacts and value of a tag of the parent runs that have the tag, newest first."""
    path = local(uri)
    if path is not None:
        return database.parents(path, tag, running=running)
    where = f" and tags.`{tag}` != ''" + " and attributes.status = 'RUNNING'" * running
    runs = _runs(reader(uri), uri, where, kind="suite")
    return [(run.info.run_id, run.info.artifact_uri, run.data.tags[tag]) for run in runs]


def flights(uri: str | None = None) -> list[Flight]:
    """Return the progress of the executions in the store that have not ended (see Tracker.tell).

    A folder that a server names is ignored. Raises StoreError; never creates a store.
    """
    uri, out = location(uri), []
    for *_, text in _parents(uri, _PROGRESS, running=True):
        with suppress(ValueError):  # torn, or of another version
            flight = Flight.model_validate_json(text)
            out.append(flight if uri.startswith(_SQLITE) else flight.changed(folder=None))
    return out


def searches(uri: str | None = None) -> list[dict[str, Any]]:
    """Return the document of each search in the store (see Tracker.attach), newest first.

    Among the workers of a study, the document with the most trials counts. Damaged ones are left out. Raises StoreError;
    never creates a store.
    """
    uri = location(uri)
    best: dict[str, dict[str, Any]] = {}
    for run, place, _ in _parents(uri, "bench.search"):
        with suppress(StoreError, ValueError):
            document = json.loads(_artifact(uri, run, place, SEARCH, run))
            if is_search(document):
                known = best.setdefault(document["study"], document)
                if len(document["trials"]) > len(known["trials"]):
                    best[document["study"]] = document
    return list(best.values())


def is_search(value: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether the content of a file is the document of a search."""
    return isinstance(value, dict) and isinstance(value.get("study"), str) and isinstance(value.get("trials"), list)


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = f"the store at {shown(uri)} does not answer: {reason(error)}"
        raise StoreError(f"{message}\nstart MLflow's server there, or name another store with --store") from error


def reader(uri: str) -> MlflowClient:
    """Return a client of a store. Raises StoreError."""
    local(uri)
    with _answering(uri):
        return _client(uri)


def _runs(
    client: MlflowClient,
    uri: str,
    where: str = "",
    take: Callable[[list[Any]], None] = lambda page: None,
    kind: str = "run",
) -> list[Any]:
    """Return the runs of wattbench in the store (kind `suite`: its executions) that meet a further condition on tags."""
    with _answering(uri):
        ids = _experiments(client)
        query = f"tags.`bench.kind` = '{kind}'{where}"
        return _pages(lambda token: client.search_runs(ids, query, page_token=token), take) if ids else []


def _experiments(client: MlflowClient) -> list[str]:
    return [entry.experiment_id for entry in _pages(lambda token: client.search_experiments(page_token=token))]


def _pages(fetch: Any, take: Callable[[list[Any]], None] = lambda page: None) -> list[Any]:
    """Return all entries of a listing that comes in pages; each page goes to `take`."""
    entries: list[Any] = []
    token = None
    while token != "":
        page = fetch(token)
        entries += page
        token = page.token or ""
        take(page)
    return entries


def _row(run: Any) -> dict[str, Scalar] | None:
    tags = run.data.tags
    return None if tags.get(database.LOGGED) == database.PARTLY else database.whole(tags.get(_ROW), run.data.metrics)


def unfinished(uri: str | None = None) -> list[Seen]:
    """Return the executions that are not complete, by the folder `runs` and the store; none where it cannot be read."""
    with suppress(StoreError):
        return in_flight(Path("runs"), flights(uri), datetime.now(UTC))
    return []
