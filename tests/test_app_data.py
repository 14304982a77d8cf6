"""What pages show of a store in each state it may be in, and while it is read; looking at it changes nothing."""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from urllib3.connection import HTTPConnection

from analytics import store
from analytics.frame import frame
from app import data, serve, views
from bench.errors import UserError
from bench.store import sqlite as database
from bench.store import tracker as tracking
from tests import rows
from tests.pages import MAIN, opened, texts

PAGES = sorted(
    path.stem for path in Path(str(views.__file__)).parent.glob("*.py") if path.stem not in ("__init__", "planner")
)
"""All but the planner, which goes on with published trainings."""
TABLES = """
create table alembic_version (version_num text);
create table experiments (experiment_id integer, name text, lifecycle_stage text);
create table runs (run_uuid text, status text, start_time integer, end_time integer, experiment_id integer,
                   lifecycle_stage text, artifact_uri text);
create table tags (run_uuid text, key text, value text);
create table latest_metrics (run_uuid text, key text, value real, is_nan integer);
insert into experiments values (1, 'one', 'active'), (2, 'two', 'active');
"""
OURS = {"bench.kind": "run"}


@pytest.fixture(autouse=True)
def nothing_read() -> Iterator[None]:
    data.forget()
    yield
    data.forget()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the dashboard's store is to be made."""
    found = tmp_path / "store" / "mlflow.db"
    found.parent.mkdir()
    monkeypatch.setenv(serve.TRACKING_URI, f"sqlite:///{found}")
    return found


def make(path: Path, *runs: tuple[str, dict[str, str]]) -> None:
    """Make a store in MLflow's tables of runs with a status and tags."""
    with closing(sqlite3.connect(path)) as file:
        file.executescript(TABLES)
        for number, (status, tags) in enumerate(runs):
            name = f"run{number}"
            file.execute(
                "insert into runs values (?, ?, ?, 1, ?, 'active', '')", (name, status, number, 1 + number % 2)
            )
            file.executemany("insert into tags values (?, ?, ?)", [(name, key, value) for key, value in tags.items()])
        file.commit()


def row(**given: Any) -> dict[str, str]:
    return OURS | {"bench.row": json.dumps(rows.make(readings="") | given)}


FOREIGN = ("FINISHED", {"mlflow.runName": "somebody else's"})
TORN = [("FINISHED", OURS | {"bench.row": text}) for text in ("{torn", "[]", "{}", "5", '{"suite": 5, "run_id": "x"}')]
TORN += [("RUNNING", OURS), ("RUNNING", {})]
WHOLE = ("FINISHED", OURS | {"bench.row": json.dumps({k: v for k, v in rows.make().items() if isinstance(v, str)})})


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_planner_goes_on_without_runs(path: Path) -> None:
    assert "Your runs could not be read" in looked("planner", path)
    make(path)
    data.forget()
    text = looked("planner", path)
    assert "0 runs, read at" in text
    assert "what is trained?" in text


def looked(name: str, path: Path) -> str:
    """Open a page on the store, twice; return what it says."""
    before = snapshot(path.parent)
    app = opened(name, {})
    app.run()
    assert not app.exception
    assert snapshot(path.parent) == before, "looking changes nothing, and leaves nothing beside the store"
    return "\n".join(
        [texts(app), *(found.value for kind in (app.error, app.warning, app.info, app.code) for found in kind)]
    )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("absent", "there is no store at"),
        ("empty", "is empty, not an MLflow store"),
        ("text", "is not a readable MLflow store: file is not a database"),
        ("another tool's", "is not an MLflow store but"),
        ("locked", "is locked by a program that writes to it"),
        ("torn tables", "is not a readable MLflow store: no such column"),
    ],
)
def test_a_store_that_cannot_be_read(page: str, state: str, said: str, path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.01)
    holder = None
    if state in ("empty", "text"):
        path.write_text({"empty": "", "text": "not a database, but long enough" * 100}[state])
    elif state == "another tool's":
        sqlite3.connect(path).execute("create table runs (x)").connection.close()
    elif state != "absent":
        make(path, WHOLE)
        holder = sqlite3.connect(path)
        if state == "locked":
            holder.execute("begin exclusive")
        else:
            holder.execute("alter table runs rename column lifecycle_stage to stage")
    text = looked(page, path)
    if holder:
        holder.close()
    assert "could not be read." in text
    assert said in text
    assert str(path) in text


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("runs", [[], [FOREIGN], TORN, [FOREIGN, *TORN]])
def test_a_store_without_runs_of_ours(page: str, runs: list[Any], path: Path) -> None:
    make(path, *runs)
    text = looked(page, path)
    assert "There are no " in text
    assert "bench " in text
    assert str(path) in text
    if page != "search":
        assert ("runs of other tools only, or half-written ones" in text) == bool(runs)


@pytest.mark.parametrize("page", PAGES)
def test_a_whole_run_among_others(page: str, path: Path) -> None:
    make(path, FOREIGN, *TORN, WHOLE)
    looked(page, path)
    assert [run["run_id"] for run in data.load()[0].to_dict("records")] == [rows.make()["run_id"]]


@pytest.mark.parametrize("page", PAGES)
def test_a_store_with_a_write_ahead_log_gets_no_files(page: str, path: Path) -> None:
    make(path, WHOLE)
    with closing(sqlite3.connect(path)) as file:
        file.execute("pragma journal_mode=wal")
    looked(page, path)
    assert len(data.load()[0]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_server_that_does_not_answer(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(serve.TRACKING_URI, "http://me:hunter2@127.0.0.1:9")
    tries: list[str] = []
    connect = HTTPConnection.connect
    monkeypatch.setattr(HTTPConnection, "connect", lambda self: tries.append(self.host) or connect(self))
    app = opened(page, {})
    assert 0 < len(tries) <= 4, "a person waits for each of them"
    assert "could not be read." in app.error[0].value
    assert "http://***@127.0.0.1:9 does not answer: Connection refused" in app.text[0].value
    assert "--store" in app.text[0].value
    assert "hunter2" not in texts(app)


class Reader:
    """Stands for `analytics.store.load`; it reads when it is let, and tells of parts of the runs before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *runs: Any) -> None:
        self.rows, self.calls, self.most, self.now = list(runs), [], 0, 0
        self.go = threading.Event()
        self.parts: list[int] = []
        self.error: Exception | None = None
        monkeypatch.setattr(store, "load", self.load)
        monkeypatch.setattr(data, "PATIENCE", 0.02)

    def load(self, uri: Any = None, *, refresh: bool, named: bool, progress: Any) -> pd.DataFrame:
        self.calls.append(refresh)
        self.now += 1
        self.most = max(self.most, self.now)
        for part in self.parts:
            progress(part, 2 * len(self.rows), lambda part=part: frame(self.rows[:part]))
        assert self.go.wait(20)
        self.now -= 1
        if self.error is not None:
            raise self.error
        return frame(self.rows)

    def end(self) -> None:
        self.go.set()
        for source in data._sources.values():
            if source._thread.ident:
                source._thread.join()


def page() -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=30)
    app.run()
    assert not app.exception
    return app


def tiles(app: AppTest) -> dict[str, Any]:
    return {tile.label: tile.value for tile in app.metric}


def bar(app: AppTest) -> str:
    return " ".join(str(found.proto.text) for found in app.get("progress"))


def older(by: timedelta = timedelta(minutes=5)) -> None:
    for source in data._sources.values():
        source._tried -= by


def test_what_has_been_read_so_far_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch, rows.make(1), rows.make(2), rows.make(4))
    app = page()
    assert "waiting for the store to answer" in bar(app)
    assert not app.metric
    assert not app.info, "that there are no runs is not known yet"
    reader.end()
    app.run()
    assert not bar(app)
    assert tiles(app)["Runs"] == "3"
    data.forget()
    reader.go.clear()
    reader.parts = [2]
    app = page()
    assert "Read 2 of 6 runs" in bar(app)
    assert tiles(app)["Runs"] == "2"
    assert "Read at" not in texts(app)
    reader.end()
    assert len(data.load()[0]) == 3


def test_never_two_readings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch, rows.make())
    threads = [threading.Thread(target=data.look, args=("runs",)) for _ in range(16)]
    for thread in threads:
        thread.start()
    data.refresh()
    for thread in threads:
        thread.join()
    assert reader.calls in ([False], [True])
    reader.end()
    data.refresh()
    data.load()
    data.load()
    assert reader.most == 1
    assert reader.calls[-1] is True, "what was kept is not trusted where somebody asks"
    assert len(reader.calls) == 2


def test_an_old_frame_is_shown_while_it_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch, rows.make())
    reader.go.set()
    monkeypatch.setattr(data, "PATIENCE", 20.0)
    first = data.load()
    assert data.load()[1] == first[1]
    reader.rows.append(rows.make(2))
    assert len(reader.calls) == 1, "kept for a minute"
    older()
    reader.go.clear()
    found, at = data.load()
    assert (len(found), at) == (1, first[1]), "the time is that of what is shown"
    app = page()
    assert "Reading what is new" in texts(app)
    assert tiles(app)["Runs"] == "1"
    reader.end()
    found, at = data.load()
    assert len(found) == 2
    assert at > first[1]
    assert reader.calls == [False, False]


def test_a_page_cannot_spoil_what_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    Reader(monkeypatch, rows.make()).go.set()
    monkeypatch.setattr(data, "PATIENCE", 20.0)
    found, _ = data.load()
    found["host"] = "spoilt"
    found["new"] = 1
    assert data.load()[0]["host"].tolist() == ["synthetic-host"]
    assert "new" not in data.load()[0]


@pytest.mark.parametrize("error", [tracking.StoreError("it is down"), ValueError("it is down")])
@pytest.mark.filterwarnings("ignore")
def test_errors_of_the_thread(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reader = Reader(monkeypatch, rows.make())
    app = page()
    reader.error = error
    reader.end()
    app.run()
    assert app.error[0].value == "The runs could not be read."
    assert app.text[0].value in ("it is down", "reading failed: ValueError: it is down")
    assert len(reader.calls) == 1, "the reason is seen before the store is asked again"
    reader.error = None
    reader.end()
    monkeypatch.setattr(data, "PATIENCE", 20.0)
    assert tiles(page())["Runs"] == "1"
    older()
    reader.error = error
    data.look("runs")
    reader.end()
    app = page()
    assert tiles(app)["Runs"] == "1", "what is known stays"
    assert "could not be read again" in app.warning[0].value


def test_a_run_that_has_ended_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch, rows.make())
    monkeypatch.setattr(data, "PATIENCE", 20.0)
    reader.go.set()
    _, at = data.load()
    assert not data.refresh_if(at - timedelta(seconds=1))
    ahead = datetime.now(UTC) + timedelta(hours=1)
    assert data.refresh_if(ahead)
    assert not data.refresh_if(ahead), "a clock that is ahead is asked after once"
    assert data.refresh_if(ahead, datetime.now(UTC)), "and keeps no other run from being read"
    data.load()
    assert reader.calls == [False, False]


def test_the_newest_suite_comes_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_CHUNK", 2)
    names = ["old", "new"]
    make(path, *[("FINISHED", row(suite=names[n % 2], run_id=f"r{n}")) for n in range(6)])
    told: list[tuple[int, int | None, list[str]]] = []

    def progress(done: int, of: int | None, so_far: Callable[[], pd.DataFrame]) -> None:
        told.append((done, of, sorted(so_far()["suite"])))

    found = store.load(f"sqlite:///{path}", progress=progress)
    parts = [], ["new"] * 2, ["new"] * 3 + ["old"], ["new"] * 3 + ["old"] * 3
    assert told == [(2 * number, 6, part) for number, part in enumerate(parts)]
    assert len(found) == 6
    told.clear()
    store.load(f"sqlite:///{path}", progress=progress)
    assert [(done, of, len(suites)) for done, of, suites in told] == [(0, None, 6), (0, 0, 6)], "kept: seen at once"


def test_arguments_of_the_server() -> None:
    given = serve.arguments(8501, "192.0.2.1", ["bench.example"])
    hosts = [flag.split("=")[1] for flag in given if "allowedHosts" in flag]
    assert hosts == ["localhost", "127.0.0.1", "192.0.2.1", "bench.example"]
    assert "--server.address=192.0.2.1" in given


@pytest.mark.parametrize(
    ("host", "allowed", "said"),
    [
        ("192.0.2.1", [], "--host 192.0.2.1: this machine has no such address"),
        ("", [], "--host '': wanted a name or address of this machine"),
        ("a b", [], "--host 'a b': wanted a name or address of this machine"),
        ("127.0.0.1", [""], "--allowed-host '': wanted a name or address alone"),
        ("127.0.0.1", ["http://x"], "--allowed-host 'http://x': wanted"),
        ("127.0.0.1", ["*"], "--allowed-host '\\*': wanted"),
    ],
)
def test_hosts_that_cannot_be(host: str, allowed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        serve.serve(18501, host=host, allowed=allowed, open_browser=False)


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_who_can_read_it_is_said(host: str, warned: bool, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    from streamlit import net_util
    from streamlit.web import cli

    monkeypatch.setattr(net_util, "get_external_ip", None)
    monkeypatch.setattr(cli, "main", lambda *_, **__: None)
    monkeypatch.setattr(serve, "_prepare", lambda: None)
    monkeypatch.setenv(serve.RUNS, "before")
    serve.serve(18501, host=host, open_browser=False, runs=Path("there"))
    said = capsys.readouterr().out
    assert ("Everybody who reaches this address can read all runs: there is no password." in said) == warned
    assert "http://127.0.0.1:18501" in said
    assert os.environ[serve.RUNS] == str(tmp_path / "there")
