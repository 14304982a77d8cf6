"""The frame with a cache is the frame without one, whatever happened to the store; it reads only what is new."""

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analytics.runs import store
from analytics.runs.frame import frame
from bench.record import RunRecord, Status
from bench.store import tracker as tracking
from tests import rows
from tests.test_tracking import logged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an execution of three runs, made once."""
    folder = tmp_path_factory.mktemp("template")
    logged(folder, [rows.record(d) for d in (1, 2)] + [rows.record(4, status=Status.FAILED)])
    return folder / "store" / "mlflow.db"


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(params=["local", "server"])
def either(request: pytest.FixtureRequest, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store, read as a local database or only through MLflow, as a server is."""
    if request.param == "server":
        monkeypatch.setattr(tracking, "local", lambda _: None)
    return uri


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each load has read from the store."""
    found: list[int] = []
    real = tracking.news

    def news(*given: Any) -> tracking.News:
        got = real(*given)
        found.append(len(got.rows))
        return got

    monkeypatch.setattr(tracking, "news", news)
    return found


def log(uri: str, *records: RunRecord, finished: bool = True) -> None:
    tracker = tracking.Tracker(uri, records[0].suite, records[0].execution)
    tracker.open()
    for record in records:
        tracker.log(record, Path("nowhere"))
    if finished:
        tracker.close(finished=True)
    assert tracker.error is None, tracker.error


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def one(uri: str, **tags: str) -> Any:
    where = " and ".join(f"tags.`{name.replace('_', '.')}` = '{value}'" for name, value in tags.items())
    found = client(uri)
    ids = [experiment.experiment_id for experiment in found.search_experiments()]
    return found.search_runs(ids, where)[0].info


def same(uri: str) -> pd.DataFrame:
    """Load twice with the cache; both are what is there without one."""
    wanted = frame(tracking.load(uri))
    for _ in range(2):
        pd.testing.assert_frame_equal(store.load(uri), wanted)
    return wanted


def test_a_load_reads_only_what_is_new(either: str, reads: list[int]) -> None:
    assert len(same(either)) == 3
    log(either, rows.record(8))
    assert len(same(either)) == 4
    log(either, rows.record(1, suite="another"))
    assert len(same(either)) == 5
    loads = [count for index, count in enumerate(reads) if index % 3]  # `same` itself reads everything first
    whole = 1 if loads[2] == 1 else 4  # of a server, the execution that has changed
    assert loads == [3, 0, whole, 0, 1, 0]
    assert store.load(either, refresh=True).shape[0] == reads[-1] == 5


def test_long_rows_are_whole_and_runs_that_were_logged_in_part_do_not_count(either: str) -> None:
    long = rows.record(1, suite="long")
    words = {f"a{number}": chr(97 + number) * 990 for number in range(12)}
    log(either, long.changed(spec=long.spec.changed(workload_args=words)))
    run = one(either, bench_suite="long", bench_kind="run").run_id
    (row,) = tracking.load(either, "long")
    assert {name: row[f"workload_args.{name}"] for name in words} == words
    assert len(client(either).get_run(run).data.tags["bench.row"]) > 9000
    assert len(same(either)) == 4
    client(either).set_tag(run, "bench.logged", "partly")
    assert tracking.load(either, "long") == []
    client(either).delete_tag(run, "bench.logged")  # as older versions logged it
    assert tracking.load(either, "long") == [row]


def test_a_run_that_is_logged_late_but_began_early(either: str) -> None:
    same(either)
    early = rows.record(16)
    log(either, early.model_copy(update={"started_at": early.started_at - timedelta(days=300)}))
    assert same(either)["devices"].iloc[0] == 16


def test_a_column_that_turns_out_to_be_text(either: str) -> None:
    numbers = [
        rows.record(d, suite="columns", memory={"name": "none", "depth": depth}) for d, depth in ((1, 2), (2, 3))
    ]
    log(either, *numbers)
    assert same(either)["memory.depth"].dtype == "float64"
    log(either, rows.record(1, suite="text", memory={"name": "none", "depth": "auto"}))
    assert set(same(either)["memory.depth"].dropna()) == {"2", "3", "auto"}
    found = client(either)
    found.delete_experiment(found.get_experiment_by_name("text").experiment_id)
    assert same(either)["memory.depth"].dtype == "float64"
    found.delete_experiment(found.get_experiment_by_name("columns").experiment_id)
    assert "memory.depth" not in same(either)


def test_what_is_deleted_in_mlflow_is_gone(uri: str) -> None:
    same(uri)
    gone = one(uri, bench_status="failed").run_id
    client(uri).delete_run(gone)
    assert len(same(uri)) == 2
    client(uri).restore_run(gone)
    assert len(same(uri)) == 3


def test_an_execution_that_is_deleted_on_a_server_leaves_its_runs(either: str) -> None:
    log(either, rows.record(1, suite="another"))
    same(either)
    parent = one(either, bench_kind="suite")
    client(either).delete_run(parent.run_id)
    assert len(same(either)) == 4
    client(either).restore_run(parent.run_id)
    assert len(same(either)) == 4


def test_many_executions(either: str, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SINGLY", 2)
    for number in range(3):
        log(either, rows.record(1, suite=f"suite-{number}"))
    assert len(same(either)) == 6
    assert reads[1:] == [6, 0]


def test_what_is_under_way_is_read_anew(either: str, reads: list[int]) -> None:
    log(either, rows.record(1, suite="slow"), finished=False)
    parent = one(either, bench_suite="slow", bench_kind="run")
    run = client(either).create_run(parent.experiment_id, start_time=parent.start_time)
    tags = {"bench.kind": "run", "bench.row": "{torn"}
    tags["mlflow.parentRunId"] = client(either).get_run(parent.run_id).data.tags["mlflow.parentRunId"]
    for name, value in tags.items():
        client(either).set_tag(run.info.run_id, name, value)
    assert len(same(either)) == 4
    client(either).set_tag(run.info.run_id, "bench.row", json.dumps(rows.make(2, suite="slow")))
    assert len(same(either)) == 5
    assert len(same(either)) == 5
    assert reads[-1] >= 1


def test_a_store_that_was_made_anew_at_the_same_place(uri: str, template: Path, tmp_path: Path) -> None:
    same(uri)
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(tracking.StoreError, match="there is no store"):
        store.load(uri)
    shutil.copy(template, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table in ("tags", "latest_metrics", "metrics", "params", "runs"):
            database.execute(f"delete from {table}")  # noqa: S608
    database.close()
    assert same(uri).empty
    log(uri, rows.record(2, v=3e9))
    assert len(same(uri)) == 1


def test_runs_of_other_tools_are_passed_over(either: str) -> None:
    found = client(either)
    found.create_run(found.create_experiment("someone else's"), tags={"x": "y"})
    run = found.create_run("1", tags={"bench.kind": "run", "bench.row": "{torn"})
    found.set_terminated(run.info.run_id)
    assert len(same(either)) == 3


@pytest.mark.parametrize("harm", ["empty", "text", "cut", "flipped", "another version", "another table", "a folder"])
def test_a_cache_that_is_damaged_is_read_over(uri: str, harm: str, capfd: Any, monkeypatch: Any) -> None:
    wanted = same(uri)
    path = store._path(uri)
    assert path is not None
    kept = path.read_bytes()
    if harm == "another version":
        monkeypatch.setattr(store, "_VERSION", "2")
    elif harm == "another table":
        pd.DataFrame({"x": [1]}).to_parquet(path)
    elif harm == "a folder":
        path.unlink()
        path.mkdir()
    else:
        middle = len(kept) // 3
        flipped = kept[:middle] + bytes([kept[middle] ^ 255]) + kept[middle + 1 :]
        path.write_bytes({"empty": b"", "text": b"PAR1" * 9, "cut": kept[:-50], "flipped": flipped}[harm])
    capfd.readouterr()
    pd.testing.assert_frame_equal(store.load(uri), wanted)
    assert capfd.readouterr() == ("", "")
    if harm != "a folder":
        assert tracking.news(uri, store._read(path)[1]).rows == []
    assert list(path.parent.iterdir()) == [path], "nothing temporary is left behind"


@pytest.mark.parametrize("place", ["a file", "relative", "nowhere"])
def test_without_a_folder_for_the_cache(uri: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    homes = {"a file": tmp_path / "file", "relative": "here", "nowhere": "/proc/none"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(homes[place]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(same(uri)) == 3
    assert not (tmp_path / "here").exists()
    assert (tmp_path / "home" / ".cache" / "wattbench").exists() == (place == "relative")


def test_the_name_of_the_cache_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [store._path(f"https://{who}@team.example/x") for who in ("me:hunter2", "you:hunter3")]
    assert paths[0] == paths[1] != store._path("https://team.example/y")
    assert "hunter" not in str(paths[0])
    assert "team" not in str(paths[0])


def test_several_at_once(uri: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda _: store.load(uri), range(16)))
    for found in frames:
        pd.testing.assert_frame_equal(found, frames[0])
    same(uri)


def test_one_suite(either: str) -> None:
    log(either, rows.record(1, suite="other", memory={"name": "none", "depth": "x"}))
    assert len(store.load(either)) == 4
    pd.testing.assert_frame_equal(store.load(either, "synthetic"), frame(tracking.load(either, "synthetic")))
    assert store.load(either, "none at all").empty


def test_the_name_by_which_mlflow_knows_a_run(either: str) -> None:
    for _ in range(2):  # read, then from the cache
        found = store.load(either, named=True)
        assert sorted(found[store.MLFLOW_RUN]) == sorted(run for _, run, _ in tracking.news(either, {}).rows)
        pd.testing.assert_frame_equal(found.drop(columns=store.MLFLOW_RUN), store.load(either))
