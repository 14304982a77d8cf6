"""GPUs for machines without one: `install` for this process, `environment` for its children."""

import importlib.util
import json
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def fake_gpu(number=0, watts=300, **more):
    """Describe a GPU. `watts`: a number, or {high, low, period, duty}. `period`: seconds between steps of the counter.

    `errors`: NVML codes by field number, or by "fields" or "call" for a whole function, in the time `errors_between`;
    `reset_at`, `lost_at`: monotonic seconds; `mig`: UUIDs of slices; `pids`: compute processes.
    """
    uuid = f"GPU-{number:08x}-1111-2222-3333-444444444444"
    gpu = {"uuid": uuid, "name": "NVIDIA H100 80GB HBM3", "memory": 85_520_809_984, "watts": watts, "period": 0.1}
    return {**gpu, **more}


def environment(*gpus, **config):
    """Return the variables that make `import pynvml` of a child process this fake."""
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "FAKE_NVML": json.dumps({"gpus": gpus, **config})}


def install(monkeypatch, *gpus, **config):
    """Make `import pynvml` of this process a fresh fake and return it; its `clock` and `config` may be changed."""
    monkeypatch.setenv("FAKE_NVML", environment(*gpus, **config)["FAKE_NVML"])
    spec = importlib.util.spec_from_file_location("pynvml", FOLDER / "pynvml.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    spec.loader.exec_module(module)
    return module
