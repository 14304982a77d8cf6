"""MLflow as an index: what goes in comes out, and nothing is made by reading."""

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.figures.metrics import metrics, row
from bench.record import RunRecord, Status
from bench.store import tracker as tracking
from bench.store.sync import sync
from bench.store.tracker import StoreError, Tracker, load, location, searches, shown
from tests import rows
from tests.stores import empty_store

pytestmark = pytest.mark.slow


def saved(folder: Path, record: RunRecord) -> Path:
    """Write what a run leaves behind, as far as the index wants it."""
    place = folder / "runs" / record.suite / record.execution / record.run_id
    place.mkdir(parents=True)
    (place / "record.json").write_text(record.model_dump_json())
    (place / "steps-0.jsonl").write_text('{"step_seconds": 1}\n')
    (place / "worker.log").write_text("TOKEN=hunter2 and more\n")
    return place


def logged(folder: Path, records: list[RunRecord]) -> str:
    uri = empty_store(folder / "store")
    tracker = Tracker(uri, records[0].suite, records[0].execution)
    tracker.open()
    for record in records:
        tracker.log(record, saved(folder, record))
    tracker.close(finished=True)
    assert tracker.error is None, tracker.error
    return uri


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    records = [
        rows.record(2, repeat=0),
        rows.record(1, readings="", repeat=1),
        rows.record(4, status=Status.OUT_OF_MEMORY, message=rows.HOSTILE + "\nsecond line" + "x" * 20_000),
    ]
    uri = logged(tmp_path, records)
    found = {str(r["run_id"]): r for r in load(uri)}
    for record in records[:2]:
        assert found[record.run_id] == row(record)
    failed = found[records[2].run_id]
    assert failed["status"] == "out_of_memory"
    assert str(failed["error_message"]).startswith(rows.HOSTILE)
    assert load(uri, suite="synthetic") == load(uri)
    assert load(uri, suite="other") == []


def test_a_name_that_mlflow_refuses_costs_no_other_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = rows.record(1)
    assert record.measurement is not None
    folder = saved(tmp_path, record)
    text = record.changed(measurement=record.measurement.changed(own={"acc": 0.5})).model_dump_json()
    (folder / "record.json").write_text(text.replace('"acc"', '"acc@1"'))  # of an older version
    uri = empty_store(tmp_path / "store")
    assert sync(tmp_path / "runs", uri) == (1, [])
    (found,) = load(uri)
    assert found == row(record) | {"own.acc_1": 0.5}
    figures = metrics(record)
    monkeypatch.setattr(tracking, "metrics", lambda _: {**figures, "a//b": 1.0, "own.b": 2.0, "c@": 3.0})
    monkeypatch.setattr(tracking, "configured", lambda _: {"workload_args.@": 1, "devices": 1})
    uri = logged(tmp_path / "other", [record])
    (found,) = load(uri)
    assert {name: n for name, n in found.items() if isinstance(n, float)} == figures | {"own.b": 2.0}


def test_the_store_is_one_that_mlflow_understands(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    record = rows.record(2)
    uri = logged(tmp_path, [record])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("synthetic")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "store" / "mlartifacts" / "synthetic").as_uri()
    (run,) = client.search_runs([experiment.experiment_id], "tags.`bench.kind` = 'run'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`bench.kind` = 'suite'")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.status == parent.info.status == "FINISHED"
    assert run.data.params["devices"] == "2"
    assert (
        run.data.tags["bench.energy_provenance"] == "estimated_model"
        or run.data.tags["bench.energy_provenance"] == "measured_counter"
    )
    assert run.data.metrics["samples_per_second"] == pytest.approx(row(record)["samples_per_second"])
    assert 2 <= len(client.get_metric_history(run.info.run_id, "step_seconds")) <= 100
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"record.json", "steps-0.jsonl", "worker.log"}
    log = client.download_artifacts(run.info.run_id, "worker.log", str(tmp_path))
    assert Path(log).read_text() == "TOKEN=*** and more\n"
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_an_execution_that_goes_on_has_one_parent(tmp_path: Path) -> None:
    uri = logged(tmp_path, [rows.record(1)])
    logged(tmp_path, [rows.record(2)])
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as connection:
        (count,) = connection.execute(
            "select count(*) from tags where key = 'bench.kind' and value = 'suite'"
        ).fetchone()
    connection.close()
    assert count == 1
    assert len(load(uri)) == 2


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"there is no store at {tmp_path}/mlflow.db\ncreate one with: bench measure"):
        load()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="not a readable MLflow store"):
        load(f"sqlite:///{tmp_path}/text.db")
    sqlite3.connect(tmp_path / "other.db").execute("create table t (x)").connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(StoreError, match="another database"):
        load(f"sqlite:///{tmp_path}/other.db")
    assert (tmp_path / "other.db").read_bytes() == before
    with pytest.raises(StoreError, match="write it as sqlite:"):
        load(f"sqlite+pysqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()


def test_locations_are_absolute_and_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert location() == f"sqlite:///{tmp_path}/mlflow.db"
    assert location("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@team.example/x")
    assert location() == "https://me:hunter2@team.example/x"
    assert shown() == "https://***@team.example/x"


def document(study: str, trials: int) -> dict[str, Any]:
    return {"study": study, "trials": [{"number": number} for number in range(trials)], "sentences": ["é"]}


def searched(uri: str, suite: str, execution: str, found: dict[str, Any], *, finished: bool = True) -> None:
    tracker = Tracker(uri, suite, execution)
    tracker.open()
    tracker.attach(found)
    if finished:
        tracker.close(finished=True)
    assert tracker.error is None, tracker.error


@pytest.mark.parametrize("server", [False, True])
def test_searches_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: bool) -> None:
    uri = logged(tmp_path, [rows.record(1)])  # no search
    assert searches(uri) == []
    searched(uri, "a", "1", document("a-1", 2))
    searched(uri, "a", "1", document("a-1", 4))  # of one worker the last
    searched(uri, "a", "2", document("a-1", 3))  # of several the one that knows more
    searched(uri, "b", "3", document("b-1", 1), finished=False)
    if server:  # as a server is read: through MLflow only
        monkeypatch.setattr(tracking, "local", lambda _: None)
    assert searches(uri) == [document("b-1", 1), document("a-1", 4)]
    (torn,) = tmp_path.glob("store/mlartifacts/b/*/artifacts/search.json")
    torn.write_text(torn.read_text()[:30])
    assert searches(uri) == [document("a-1", 4)]
    for found in ("[]", '{"study": 1, "trials": []}', '{"study": "a-1"}'):
        torn.write_text(found)
        assert searches(uri) == [document("a-1", 4)]
    torn.unlink()
    assert searches(uri) == [document("a-1", 4)]


def test_looking_for_searches_makes_no_store(tmp_path: Path, broken_server: str) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        searches()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="does not answer"):
        searches(broken_server)


def test_searches_are_caught_up_with(tmp_path: Path) -> None:
    record = rows.record(1)
    folder = saved(tmp_path, record).parent
    (folder / "search.json").write_text(json.dumps(document("a-1", 3)))
    alone = tmp_path / "runs" / "b" / "1"  # all of its runs were there already
    alone.mkdir(parents=True)
    (alone / "search.json").write_text(json.dumps(document("b-1", 1)))
    (tmp_path / "runs" / "c" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "c" / "1" / "search.json").write_text("[1]")
    uri = empty_store(tmp_path / "later")
    assert sync(tmp_path / "runs", uri) == (1, [])
    assert {found["study"] for found in searches(uri)} == {"a-1", "b-1"}
    assert sync(tmp_path / "runs", uri) == (0, [])
    assert len(searches(uri)) == 2


def test_a_store_and_an_experiment_that_others_make_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from bench.store.tracker import Tracker; sys.stdin.readline(); t = Tracker(None, 'x', sys.argv[1]); "
    code += "t.open(); print(t.error)"
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "1"], **pipes) as first, subprocess.Popen([*command, "2"], **pipes) as second:
        for process in (first, second):
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.stdout.read() for process in (first, second)] == ["None\n"] * 2
    from mlflow import MlflowClient

    find = MlflowClient.get_experiment_by_name
    seen: list[str] = []

    def late(client: MlflowClient, name: str) -> Any:
        seen.append(name)
        return find(client, name) if len(seen) > 1 else None  # another process was between looking and making

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    tracker = Tracker(None, "x", "3")
    tracker.open()
    assert tracker.error is None
    assert len(seen) == 2


@pytest.fixture
def broken_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500, "out of order")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_fails_is_told_once_and_caught_up_with_later(tmp_path: Path, broken_server: str) -> None:
    record = rows.record(1)
    folder = saved(tmp_path, record)
    tracker = Tracker(broken_server.replace("http://", "http://me:hunter2@"), record.suite, record.execution)
    tracker.open()
    first = tracker.error
    assert first is not None
    assert "hunter2" not in first
    tracker.log(record, folder)
    tracker.close(finished=True)
    assert tracker.error == first
    with pytest.raises(StoreError, match="does not answer"):
        load(broken_server)
    with pytest.raises(StoreError):
        sync(tmp_path / "runs", broken_server)
    uri = empty_store(tmp_path / "later")
    assert sync(tmp_path / "runs", uri) == (1, [])
    assert sync(tmp_path / "runs", uri) == (0, [])
    assert [r["run_id"] for r in load(uri)] == [record.run_id]
    uri = empty_store(tmp_path / "rebuilt")
    (folder.parent / "torn").mkdir()
    (folder.parent / "torn" / "record.json").write_text('{"run_id"')
    assert sync(tmp_path / "runs", uri) == (1, [str(folder.parent / "torn" / "record.json")])
    assert [r["run_id"] for r in load(uri)] == [record.run_id]


def test_power_history_is_short(tmp_path: Path) -> None:
    record = rows.record(1)
    lines = [
        {"t_ns": i * 10**8, "wall_ns": 0, "source": "nvml", "component": "gpu", "device": "GPU-a", "power_mw": 1000 * i}
        for i in range(1000)
    ]
    (tmp_path / "meters-0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    from bench.meters.trace import Trace

    Trace.read(tmp_path / "meters-0.jsonl").write_parquet(tmp_path / "meters-0.parquet")
    points = list(tracking._history(tmp_path, record))
    assert len([p for p in points if p[0] == "step_seconds"]) == 100
    power = [p for p in points if p[0] == "power_watts/nvml/gpu/GPU-a"]
    assert 50 <= len(power) <= 100
    assert power[0][1] == 0
