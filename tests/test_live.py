"""What runs now: told by the runner, read from folders and from the index, without disturbing what runs."""

import fcntl
import json
import os
import socket
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app import live as panel
from bench.files import Busy, held, is_held
from bench.folder import LOCK, PROGRESS
from bench.store import tracker as tracking
from bench.store.progress import Flight, in_flight
from bench.store.sync import sync
from tests import rows
from tests.test_tracking import logged

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
HERE = socket.gethostname()


def flight(execution: str = "20260102T1", ago: float = 60, **fields: Any) -> Flight:
    began = NOW - timedelta(seconds=ago)
    given = {"suite": "s", "host": HERE, "to_do": 4, "done": 1, "began_at": began, "updated_at": began}
    return Flight.model_validate({**given, "execution": execution, **fields})


def written(runs: Path, told: Flight) -> Path:
    folder = runs / told.suite / told.execution
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    (folder / PROGRESS).write_text(told.model_dump_json())
    return folder


def states(*given: Any) -> list[tuple[str, str]]:
    return [(seen.flight.execution, seen.state) for seen in in_flight(*given, NOW)]


def test_a_lock_is_looked_at_without_taking_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert is_held(lock) is False
    assert not lock.exists()
    with held(lock, "busy"):
        before = lock.read_bytes(), lock.stat()
        assert is_held(lock) is True
        assert (lock.read_bytes(), lock.stat()) == before
        with pytest.raises(Busy), held(lock, "busy"):
            pass
    assert is_held(lock) is False
    lock.unlink()
    lock.mkdir()
    assert is_held(lock) in (False, None)  # whatever that is, nobody holds it and nothing is raised


def test_who_looks_keeps_nobody_from_starting(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.03, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        letting_go.start()
        with held(lock, "busy"):
            assert lock.read_text() == f"{os.getpid()}\n"
        letting_go.join()


def test_what_runs_is_told_by_its_lock(tmp_path: Path) -> None:
    folder = written(tmp_path, flight(ago=10**7))
    names = sorted(path.name for path in folder.iterdir())
    assert states(tmp_path, []) == [("20260102T1", "stopped")]
    with held(folder / LOCK, "busy"):
        assert states(tmp_path, []) == [("20260102T1", "running")], "however long ago it said something"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert in_flight(tmp_path / "nothing here", [], NOW) == []


def test_what_has_ended_is_told_only_where_runs_are_missing(tmp_path: Path) -> None:
    written(tmp_path, flight(done=4, ended=True))
    written(tmp_path, flight(suite="search", unit="trials", ended=True))
    folder = written(tmp_path, flight(suite="half", ended=True))
    assert states(tmp_path, []) == [("20260102T1", "stopped")]
    stopped = flight(suite="search", unit="trials", host="far", ended=True, stopped=True)
    assert states(tmp_path / "nothing", [stopped]) == [("20260102T1", "stopped")], "it said goodbye"
    with held(folder / LOCK, "busy"):
        assert states(tmp_path, []) == [], "it lets go, or goes on, in a moment"


def test_an_execution_that_another_one_has_followed_is_not_told(tmp_path: Path) -> None:
    written(tmp_path, flight("20260101T1"))
    running = written(tmp_path, flight("20260101T2"))
    written(tmp_path, flight("20260103T1", done=4, ended=True))
    with held(running / LOCK, "busy"):
        assert states(tmp_path, []) == [("20260101T2", "running")]


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"suite": "s"}', "\xff"])
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, torn: str) -> None:
    (written(tmp_path, flight()) / PROGRESS).write_bytes(torn.encode("latin-1"))
    written(tmp_path, flight(suite="other"))
    assert len(states(tmp_path, [])) == 1


@pytest.mark.parametrize(
    "torn",
    [{"silent_seconds": "1e300"}, {"remaining_seconds": "1e300"}, {"remaining_seconds": "-1"}]
    + [{name: value} for name in ("done", "to_do", "failed") for value in ("-1", "1" + "0" * 400)],
)
def test_figures_that_cannot_be_are_passed_over(tmp_path: Path, torn: dict[str, str]) -> None:
    fields = json.loads(flight().model_dump_json())
    text = "{" + ", ".join(f'"{name}": {torn.get(name, json.dumps(value))}' for name, value in fields.items()) + "}"
    (written(tmp_path, flight()) / PROGRESS).write_text(text)
    assert states(tmp_path, []) == []


@pytest.mark.parametrize("when", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
def test_any_time_can_be_told(tmp_path: Path, when: str) -> None:
    told = flight(host="far", updated_at=when, began_at=when, run_began_at=when, silent_seconds=1e15)
    seen = in_flight(tmp_path, [told, flight(suite="other", host="far")], NOW)
    assert [one.state for one in seen] == ["running", "running"]
    assert [len(panel.words(one.flight, NOW)) for one in seen] == [3, 3]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    folder = written(tmp_path, flight())
    assert in_flight(tmp_path, [], NOW)[0].flight.done == 1
    (folder / "new").write_text(flight(done=2).model_dump_json())
    os.utime(folder / "new", ns=(0, (folder / PROGRESS).stat().st_mtime_ns))  # a coarse clock
    (folder / "new").replace(folder / PROGRESS)
    assert in_flight(tmp_path, [], NOW)[0].flight.done == 2


def test_other_hosts_are_told_by_time(tmp_path: Path) -> None:
    def told(ago: float, **fields: Any) -> Flight:
        return flight(host="far", ago=ago, silent_seconds=100, **fields)

    assert states(tmp_path, [told(99), told(101, suite="late")]) == [
        ("20260102T1", "running"),
        ("20260102T1", "silent"),
    ]
    folder = written(tmp_path, told(101))  # on a disk that both share, whose locks may not be
    assert states(tmp_path, []) == [("20260102T1", "silent")]
    with held(folder / LOCK, "busy"):
        assert states(tmp_path, []) == [("20260102T1", "running")]


def test_without_locks_time_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folder = written(tmp_path, flight(silent_seconds=100))
    assert is_held(folder / LOCK) is None
    assert states(tmp_path, []) == [("20260102T1", "running")]
    (folder / PROGRESS).write_text(flight(silent_seconds=10).model_dump_json())
    assert states(tmp_path, []) == [("20260102T1", "silent")]


def test_the_folder_counts_more_than_what_the_index_says(tmp_path: Path) -> None:
    folder = written(tmp_path / "elsewhere", flight(done=3))
    told = flight(folder=str(folder))
    with held(folder / LOCK, "busy"):
        (seen,) = in_flight(tmp_path / "runs", [told], NOW)
        assert (seen.state, seen.flight.done) == ("running", 3)
        (seen,) = in_flight(tmp_path / "elsewhere", [told.model_copy(update={"done": 0})], NOW)
        assert (seen.state, seen.flight.done) == ("running", 3)
    assert states(tmp_path / "runs", [told]) == [("20260102T1", "stopped")]
    (folder / PROGRESS).write_text(flight(done=4, ended=True).model_dump_json())
    assert states(tmp_path / "runs", [told]) == []
    gone = told.model_copy(update={"folder": str(tmp_path / "gone")})
    assert states(tmp_path / "runs", [gone]) == [("20260102T1", "running")], "nothing is known but its time"


def tracker(uri: str) -> tracking.Tracker:
    found = tracking.Tracker(uri, "synthetic", "20260102T030405-aaaa")
    found.open()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("server", [False, True])
def test_progress_stands_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: bool) -> None:
    uri = logged(tmp_path, [rows.record(1)])
    if server:  # as a server is read: through MLflow only
        monkeypatch.setattr(tracking, "local", lambda _: None)
    one, told = tracker(uri), flight(folder="/x", current=rows.HOSTILE)
    assert tracking.flights(uri) == []
    one.tell(told)
    one.tell(told.model_copy(update={"done": 2}))
    assert tracking.flights(uri) == [told.model_copy(update={"done": 2})]
    one._client.set_tag(one._parent, "bench.progress", '{"torn')  # type: ignore[union-attr]
    assert tracking.flights(uri) == []
    one.tell(told)
    one.close(finished=True)
    assert tracking.flights(uri) == [], "it has ended"
    assert one.error is None


@pytest.mark.slow
def test_no_folder_goes_to_a_server_or_comes_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = logged(tmp_path, [rows.record(1)])
    one = tracker(uri)
    monkeypatch.setattr(tracking, "_SQLITE", "no such scheme")
    monkeypatch.setattr(tracking, "local", lambda uri: None)
    one.tell(flight(folder="/home/me"))
    assert tracking.flights(uri) == [flight()]
    text = flight(folder="/home/me").model_dump_json()
    one._client.set_tag(one._parent, "bench.progress", text)  # type: ignore[union-attr]
    assert tracking.flights(uri)[0].folder is None


def test_progress_before_there_is_an_index_is_no_failure() -> None:
    one = tracking.Tracker(None, "s", "x")
    one.tell(flight())
    assert one.error is None


@pytest.mark.slow
def test_bench_sync_lets_a_running_suite_run(tmp_path: Path) -> None:
    uri = logged(tmp_path, [rows.record(1)])
    one = tracker(uri)
    one.tell(flight())
    folder = next(tmp_path.glob("runs/*/*"))
    with held(folder / LOCK, "busy"):
        sync(tmp_path / "runs", uri)
        assert len(tracking.flights(uri)) == 1
    sync(tmp_path / "runs", uri)
    assert tracking.flights(uri) == []
