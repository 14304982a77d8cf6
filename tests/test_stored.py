"""The files of one stored run: all of them, of that run only, and of no other place."""

import json
import sqlite3
from pathlib import Path

import pytest

from analytics.runs import store
from bench.store import artifacts as stored
from bench.store.tracker import StoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]
RUN = "0123456789abcdef0123456789abcdef"


def test_files_and_courses_of_real_runs(recorded_uri: str) -> None:
    df = store.load(recorded_uri, named=True)
    run = df[df["status"] == "ok"].iloc[0]
    found = stored.files(run["mlflow_run_id"], recorded_uri)
    assert {"record.json", "steps-0.jsonl", "meters-0.parquet", "worker.log"} <= set(found.files)
    assert json.loads(found.files["record.json"])["run_id"] == run["run_id"]
    assert found.experiment.isdecimal()
    courses = stored.courses([*df["mlflow_run_id"], "nonsense"], recorded_uri)
    assert len(courses) == (df["status"] == "ok").sum(), "runs that failed have none"
    steps = json.loads(found.files["record.json"])["measurement"]["step_seconds"]
    assert courses[run["mlflow_run_id"]] == steps[:: max(1, -(-len(steps) // 100))]


@pytest.mark.parametrize("run", ["", "../../etc/passwd", RUN.upper(), RUN + "\n", "' or 1=1 --", RUN[:-1]])
def test_only_names_that_mlflow_gives(run: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not the id of a run"):
        stored.files(run, f"sqlite:///{tmp_path}/none.db")
    assert stored.courses([run], f"sqlite:///{tmp_path}/none.db") == {}


def made(folder: Path, place: str, status: str = "FINISHED") -> str:
    path = folder / "mlflow.db"
    with sqlite3.connect(path) as database:
        for table in ("experiments", "alembic_version", "tags", "latest_metrics"):
            database.execute(f"create table {table} (x)")
        database.execute("create table runs (run_uuid, experiment_id, artifact_uri, status, lifecycle_stage)")
        database.execute("insert into runs values (?, 1, ?, ?, 'active')", (RUN, place, status))
    database.close()
    return f"sqlite:///{path}"


def test_nothing_is_read_outside_the_place_of_the_run(tmp_path: Path) -> None:
    here = tmp_path / RUN / "artifacts"
    here.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (here / "link").symlink_to(tmp_path / "secret")
    (here / "kept.txt").write_text("kept")
    (here / "folder").mkdir()
    uri = made(tmp_path, here.as_uri())
    assert stored.files(RUN, uri) == stored.Stored("1", {"kept.txt": b"kept"}, {})
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="not where MLflow stores files"):
        stored.files(RUN, made(tmp_path / "other", tmp_path.as_uri()))


@pytest.mark.parametrize(
    "place",
    [
        *("{0}", "{0}/", "file:{0}", "FILE://{0}", "http://127.0.0.1:9/x", "ftp://127.0.0.1:9/x", "runs:/x/y"),
        *("mlflow-artifacts://127.0.0.1:9/x", "models:/x/1", "https://server.invalid/x", "sftp://h/x", ""),
    ],
)
@pytest.mark.parametrize("server", [False, True])
def test_a_store_cannot_name_any_place(
    place: str, server: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").write_text("secret")
    named = place.format(tmp_path / "private")
    uri = "http://server.invalid" if server else made(tmp_path, named)
    if server:
        monkeypatch.setattr(stored, "_place", lambda *_: ("1", named, "FINISHED"))
    with pytest.raises(StoreError, match="not where MLflow stores files"):
        stored.files(RUN, uri)


def test_a_plain_folder_of_the_run_is_read(tmp_path: Path) -> None:
    here = tmp_path / RUN / "artifacts"
    here.mkdir(parents=True)
    (here / "kept.txt").write_text("kept")
    assert stored.files(RUN, made(tmp_path, str(here))).files == {"kept.txt": b"kept"}


@pytest.mark.parametrize("place", ["s3://bucket/x", "mlflow-artifacts:/x", "https://server.invalid/x"])
def test_a_server_need_not_tell_sizes_nor_truly(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.entities import FileInfo
    from mlflow.store.artifact import artifact_repository_registry as registry

    class Repository:
        def list_artifacts(self) -> list[FileInfo]:
            sizes = [("a", 1), ("b", None), ("c", 1), ("d", 99), ("../e", 1)]
            return [FileInfo(name, False, size) for name, size in sizes]

        def download_artifacts(self, name: str, folder: str) -> str:
            path = Path(folder) / name
            path.write_bytes(b"x" * (99 if name == "c" else 1))
            assert name in ("a", "c"), "not even fetched"
            return str(path)

    monkeypatch.setattr(registry, "get_artifact_repository", lambda *_, **__: Repository())
    monkeypatch.setattr(stored, "_place", lambda *_: ("1", place, "FINISHED"))
    monkeypatch.setattr(stored, "LARGEST", 10)
    found = stored.files(RUN, "https://me:secret@server.invalid")
    assert found == stored.Stored("1", {"a": b"x"}, {"b": None, "c": 99, "d": 99})


def test_all_files_of_a_run_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / RUN / "artifacts"
    here.mkdir(parents=True)
    for name, size in (("a", 6), ("b", 3), ("c", 7)):
        (here / name).write_bytes(b"x" * size)
    monkeypatch.setattr(stored, "LARGEST", 10)
    found = stored.files(RUN, made(tmp_path, here.as_uri()))
    assert (set(found.files), found.left_out) == ({"a", "b"}, {"c": 7})


def test_what_is_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / RUN / "artifacts"
    here.mkdir(parents=True)
    (here / "large").write_bytes(b"x" * 11)
    monkeypatch.setattr(stored, "LARGEST", 10)
    assert stored.files(RUN, made(tmp_path, here.as_uri())) == stored.Stored("1", {}, {"large": 11})


def test_runs_without_files_and_runs_that_are_not_there(tmp_path: Path) -> None:
    uri = made(tmp_path, (tmp_path / RUN / "artifacts").as_uri())
    assert stored.files(RUN, uri).files == {}, "imported runs have none"
    with pytest.raises(StoreError, match="does not have this run"):
        stored.files(RUN[::-1], uri)
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="still being logged"):
        stored.files(RUN, made(tmp_path / "other", "file:///x", "RUNNING"))
    with pytest.raises(StoreError, match="there is no store"):
        stored.files(RUN, f"sqlite:///{tmp_path}/none.db")


def test_courses_that_cannot_be_had_are_absent() -> None:
    assert stored.courses([RUN], "http://127.0.0.1:9") == {}
    assert stored.courses([RUN], "postgresql://nowhere/x") == {}
