"""The MLflow run of a script gets the figures of wattbench, and our run its id."""

import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.store.script_run import join
from tests import commands, rows
from tests.stores import empty_store
from tests.test_measure import one_gpu  # noqa: F401  a fixture

SCRIPT = """
import sqlite3, sys, time, uuid
now = int(time.time() * 1000)
with sqlite3.connect("mlflow.db") as store:
    for _ in range(int(sys.argv[1])):
        store.execute(
            "insert into runs (run_uuid, name, status, start_time, lifecycle_stage, experiment_id, artifact_uri, user_id)"
            " values (?, 'own', 'FINISHED', ?, 'active', 0, 'x', 'me')", (uuid.uuid4().hex, now))
"""


def tables(folder: Path, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        return store.execute(query).fetchall()


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("count", [1, 2])
def test_the_only_run_that_began_meanwhile_is_that_of_the_script(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    command = [sys.executable, "-c", SCRIPT, str(count)]
    done = commands.bench("measure", "--idle-seconds", "0", "--into-mlflow-run", "auto", "--", *command)
    assert done.exit_code == 0, done.stderr
    metrics = tables(tmp_path, "select run_uuid, key from metrics where key like 'wattbench.%'")
    tags = tables(tmp_path, "select value from tags where key = 'bench.script_run'")
    if count == 1:
        ((own,),) = set(tables(tmp_path, "select run_uuid from runs where name = 'own'"))
        assert (own, "wattbench.duration_seconds") in metrics
        assert tags == [(own,)]
        assert tables(tmp_path, "select run_uuid, value from tags where key = 'wattbench.suite'") == [(own, "measure")]
    else:
        assert "2 runs of MLflow" in done.stderr
        assert (metrics, tags) == ([], [])


WANDB_RUNS = """
import os, time
now, before = (time.strftime("%Y%m%d_%H%M%S", time.localtime(time.time() - ago)) for ago in (0, 60))
for name in (f"offline-run-{now}-own-1", f"run-{now}-online", f"offline-run-{before}-other", "run-99999999_999999-none"):
    os.makedirs(os.path.join(os.environ.get("WANDB_DIR", ""), "wandb", name))
"""


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_the_runs_of_wandb_that_a_script_has_made_are_recorded(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_DIR", folder) if folder else monkeypatch.delenv("WANDB_DIR", raising=False)
    done = commands.bench("measure", "--idle-seconds", "0", "--", sys.executable, "-c", WANDB_RUNS)
    assert done.exit_code == 0, done.stderr
    assert "Run in W&B: own-1, online" in done.stderr
    assert tables(tmp_path, "select value from tags where key = 'bench.wandb_runs'") == [("own-1, online",)]


def test_a_store_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    own, told = join(rows.record().changed(started_at=datetime.now(UTC)), "0123")
    assert own is None
    assert "MLflow run of the script: " in told
