"""What pages show of a store in each state it may be in, and while it is read; looking at it changes nothing."""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from urllib3.connection import HTTPConnection

from analytics.runs import store
from analytics.runs.frame import frame
from app import data, page, serve
from bench.errors import UserError
from bench.store import sqlite as database
from tests import rows
from tests.pages import MAIN, opened, texts

PAGES = sorted(set(page.PAGES) - {"planner"})
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
    assert "0 runs, as of" in text
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


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        *((name, "absent", "there is no store at") for name in PAGES),
        ("overview", "empty", "is empty, not an MLflow store"),
        ("overview", "text", "is not a readable MLflow store: file is not a database"),
        ("overview", "another tool's", "is not an MLflow store but"),
        ("overview", "locked", "is locked by a program that writes to it"),
        ("overview", "torn tables", "is not a readable MLflow store: no such column"),
    ],
)
def test_a_store_that_cannot_be_read(name: str, state: str, said: str, path: Path, monkeypatch: Any) -> None:
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
    text = looked(name, path)
    if holder:
        holder.close()
    assert "could not be read." in text
    assert said in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("name", "runs"),
    [*((name, []) for name in PAGES), ("runs", [FOREIGN]), ("search", TORN), ("runs", [FOREIGN, *TORN])],
)
def test_a_store_without_runs_of_ours(name: str, runs: list[Any], path: Path) -> None:
    make(path, *runs)
    text = looked(name, path)
    assert "There are no " in text
    assert "bench " in text
    assert str(path) in text
    if name != "search":
        assert ("runs of other tools, or half-written ones" in text) == bool(runs)


@pytest.mark.parametrize("name", PAGES)
def test_a_whole_run_among_others(name: str, path: Path) -> None:
    make(path, FOREIGN, *TORN, WHOLE)
    looked(name, path)
    assert [run["run_id"] for run in data.runs().content.to_dict("records")] == [rows.make()["run_id"]]


@pytest.mark.parametrize("name", ["overview", "search"])
def test_a_store_with_a_write_ahead_log_gets_no_files(name: str, path: Path) -> None:
    make(path, WHOLE)
    with closing(sqlite3.connect(path)) as file:
        file.execute("pragma journal_mode=wal")
    looked(name, path)
    assert len(data.runs().content) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overview", "search"])
def test_a_server_that_does_not_answer(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(serve.TRACKING_URI, "http://me:hunter2@127.0.0.1:9")
    tries: list[str] = []
    connect = HTTPConnection.connect
    monkeypatch.setattr(HTTPConnection, "connect", lambda self: tries.append(self.host) or connect(self))
    app = opened(name, {})
    assert 0 < len(tries) <= 4, "a person waits for each of them"
    assert "could not be read." in app.error[0].value
    assert "http://***@127.0.0.1:9 does not answer: Connection refused" in app.text[0].value
    assert "--store" in app.text[0].value
    assert "hunter2" not in texts(app)


def count_loads(monkeypatch: pytest.MonkeyPatch, *runs: Any) -> list[bool]:
    """Let the store hold some rows; return whether each reading was a whole one."""
    calls: list[bool] = []

    def load(uri: Any = None, *, refresh: bool = False, named: bool = False) -> pd.DataFrame:
        calls.append(refresh)
        return frame(list(runs))

    monkeypatch.setattr(store, "load", load)
    return calls


def test_one_reading_serves_all_pages_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_loads(monkeypatch, rows.make())
    first = data.runs()
    assert data.runs().at == first.at
    opened("overview", {}, fresh=False)
    opened("strategies", {}, fresh=False)
    assert calls == [False]
    data.forget()
    assert data.runs().at > first.at
    assert calls == [False, False]


def test_pages_that_open_at_once_share_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_loads(monkeypatch, rows.make())
    threads = [threading.Thread(target=data.runs) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [False]


def test_refreshing_reads_the_whole_store(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_loads(monkeypatch, rows.make())
    first = data.runs()
    data.refresh()
    assert data.runs().at > first.at
    assert calls == [False, True, False]


def test_a_page_cannot_spoil_what_others_see(monkeypatch: pytest.MonkeyPatch) -> None:
    count_loads(monkeypatch, rows.make())
    found = data.runs().content
    found["host"] = "spoilt"
    found["new"] = 1
    assert data.runs().content["host"].tolist() == ["synthetic-host"]
    assert "new" not in data.runs().content


@pytest.mark.parametrize(
    ("given", "address", "allowed"),
    [((), "127.0.0.1", []), (("192.0.2.1", ["bench.example"]), "192.0.2.1", ["192.0.2.1", "bench.example"])],
)
def test_the_server_is_for_this_machine_unless_another_address_is_given(
    given: tuple[Any, ...], address: str, allowed: list[str]
) -> None:
    script, *flags = serve.arguments(8501, *given)[1:]
    assert Path(script) == MAIN
    assert {f"--server.address={address}", "--browser.gatherUsageStats=false", "--server.fileWatcherType=none"} <= {
        *flags
    }
    hosts = [flag.split("=")[1] for flag in flags if "allowedHosts" in flag]
    assert hosts == ["localhost", "127.0.0.1", *allowed]


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
