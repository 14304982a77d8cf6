"""No test reads the settings or the stores of the person who runs it."""

import os
import warnings
from pathlib import Path

import pytest

from tests.recorded import recorded_store

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("WATTBENCH_", "MLFLOW_TRACKING", "CODECARBON_")) or name == "CUDA_VISIBLE_DEVICES":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("WATTBENCH_LOCKS", str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setenv("WATTBENCH_SENSOR_CHECKS", str(tmp_path / "sensor-checks"))


@pytest.fixture(scope="session")
def recorded_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with real runs, see tests.recorded. Nobody may change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow; which test asks for the store first is left to chance
        return recorded_store(tmp_path_factory.mktemp("recorded"))
