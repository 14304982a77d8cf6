"""No test reads the settings or the stores of the person who runs it. Folders of tests are in memory, where it has room."""

import functools
import gc
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bench.files import held
from bench.run import measure as measuring
from tests.processes import Finished
from tests.recorded import recorded_store

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
settings.register_profile("wattbench", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("wattbench")
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


gc.disable()  # until everything is imported: what stays for good is never looked at


LEAKS = ("ignore:unclosed:ResourceWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning")
"""MLflow leaves connections to the garbage collector, Selenium the pipe of a driver that it has stopped."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            for leak in LEAKS:
                item.add_marker(pytest.mark.filterwarnings(leak))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _own(patch: pytest.MonkeyPatch, folder: Path, cache: Path, locks: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("WATTBENCH_", "MLFLOW_TRACKING", "CODECARBON_")) or name == "CUDA_VISIBLE_DEVICES":
            patch.delenv(name)
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("WATTBENCH_LOCKS", str(locks))
    patch.setenv("WATTBENCH_SENSOR_CHECKS", str(folder / "sensor-checks"))


@pytest.fixture(scope="session", autouse=True)
def own_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for what several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("session")
        _own(patch, folder, folder / "cache", folder / "locks")
        yield


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path.parent / f".{tmp_path.name}"  # what a test finds in its folder is its own
    beside.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    _own(monkeypatch, tmp_path, beside / "cache", beside / "locks")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, once for all the workers that run the tests side by side."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, complete = root / name, root / f"{name}.complete"
    with held(root / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def recorded_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with real runs, see tests.recorded. Nobody may change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow; which test asks for the store first is left to chance
        folder = once(tmp_path_factory, "recorded", recorded_store)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one, for trainings in this process."""
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Real runs for tests that only look at them."""
    return Finished(once(tmp_path_factory, "finished", Finished.make))


@pytest.fixture
def no_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench measure` reads no meters, and its tests adopt no processes."""
    monkeypatch.setattr(measuring, "MeasureOptions", functools.partial(measuring.MeasureOptions, meters=()))
    monkeypatch.setattr(measuring, "adopt_orphans", lambda: None)
