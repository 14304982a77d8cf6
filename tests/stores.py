"""Empty MLflow stores, copied from one: to make a store takes a second, and where disks are slow many more."""

import functools
import os
import tempfile
from pathlib import Path

from bench.store.tracker import _client

MEMORY = "/dev/shm"


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        client = _client(f"sqlite:///{folder}/mlflow.db")
        client.search_experiments()
        client._tracking_client.store.engine.dispose()
        return Path(folder, "mlflow.db").read_bytes()


def empty_store(folder: Path) -> str:
    """Put an empty store into a folder, as `mlflow.db`, unless it has one; return its URI."""
    path = folder / "mlflow.db"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty())
    return f"sqlite:///{path}"
