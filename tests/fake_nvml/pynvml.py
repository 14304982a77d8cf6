# ruff: noqa: F821, N802  the names of NVIDIA's module
"""A stand-in for NVML: NVIDIA's own module with its functions replaced by GPUs that follow the monotonic clock.

Put this folder first on PYTHONPATH and describe the GPUs in the variable FAKE_NVML (JSON), see
`tests.fake_nvml.fake_gpu`. Because energy is a function of CLOCK_MONOTONIC, all processes see the same GPUs.
"""

import importlib.machinery
import importlib.metadata
import json
import os
import sys
import time
from types import SimpleNamespace

_genuine = importlib.metadata.distribution("nvidia-ml-py").locate_file("pynvml.py")
importlib.machinery.SourceFileLoader(__name__, str(_genuine)).exec_module(sys.modules[__name__])

clock = time.monotonic
config = json.loads(os.environ.get("FAKE_NVML", '{"gpus": []}'))
_started = 0
GARBAGE = 12345678  # what a failed field holds: never to be looked at


def _watts(gpu, t):
    wave = gpu["watts"]
    if not isinstance(wave, dict):
        return wave
    return wave["high"] if (t / wave["period"]) % 1.0 < wave["duty"] else wave["low"]


def _joules(gpu, t):
    """The integral of `_watts` from 0 to t."""
    wave = gpu["watts"]
    if not isinstance(wave, dict):
        return wave * t
    whole, part = divmod(t / wave["period"], 1.0)
    high = whole * wave["duty"] + min(part, wave["duty"])
    return wave["period"] * (high * wave["high"] + (whole + part - high) * wave["low"])


def _millijoules(gpu):
    t = int(clock() / gpu["period"] + 1e-9) * gpu["period"]
    start = gpu.get("reset_at")
    if start is None or t < start:
        start = 0.0
    return int(1000 * (_joules(gpu, t) - _joules(gpu, start)))


def _gpu(handle):
    if not _started:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    gpu = config["gpus"][handle]
    if clock() >= gpu.get("lost_at", float("inf")):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)
    return gpu


def _error(gpu, name):
    since, until = gpu.get("errors_between", (0, float("inf")))
    return gpu.get("errors", {}).get(str(name), 0) if since <= clock() < until else 0


def nvmlInit():
    global _started
    if config.get("init_error"):
        raise NVMLError(config["init_error"])
    _started += 1


def nvmlShutdown():
    global _started
    _started -= 1


def nvmlSystemGetDriverVersion():
    return config.get("driver", "580.82.07")


def nvmlDeviceGetCount():
    return len(config["gpus"])


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetHandleByUUID(uuid):
    for index, gpu in enumerate(config["gpus"]):
        if gpu["uuid"] == uuid or uuid in gpu.get("mig", []):
            return index
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle):
    return handle


def nvmlDeviceGetUUID(handle):
    return _gpu(handle)["uuid"]


def nvmlDeviceGetEnforcedPowerLimit(handle):
    return _gpu(handle).get("limit", 700_000)


def nvmlDeviceGetName(handle):
    return _gpu(handle)["name"]


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=_gpu(handle)["memory"])


def nvmlDeviceGetMigMode(handle):
    if "mig" not in _gpu(handle):
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return [1, 1]


def nvmlDeviceGetComputeRunningProcesses(handle):
    return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in _gpu(handle).get("pids", [])]


def nvmlDeviceGetTotalEnergyConsumption(handle):
    gpu = _gpu(handle)
    if _error(gpu, "call"):
        raise NVMLError(_error(gpu, "call"))
    return _millijoules(gpu)


def nvmlDeviceGetPowerUsage(handle):
    raise AssertionError("nvmlDeviceGetPowerUsage means different things on different chips")


def nvmlDeviceGetFieldValues(handle, field_ids):
    gpu = _gpu(handle)
    if _error(gpu, "fields"):
        raise NVMLError(_error(gpu, "fields"))
    values = (c_nvmlFieldValue_t * len(field_ids))()
    for value, field in zip(values, field_ids, strict=True):
        value.fieldId, value.scopeId = field if isinstance(field, tuple) else (field, 0)
        value.nvmlReturn = _error(gpu, value.fieldId)
        value.value.ullVal = GARBAGE
        if value.nvmlReturn:
            continue
        if value.fieldId == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            value.valueType, value.value.ullVal = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, _millijoules(gpu)
        elif value.fieldId == NVML_FI_DEV_POWER_INSTANT and value.scopeId == NVML_POWER_SCOPE_GPU:
            value.valueType, value.value.uiVal = NVML_VALUE_TYPE_UNSIGNED_INT, int(1000 * _watts(gpu, clock()))
        else:
            value.nvmlReturn = NVML_ERROR_NOT_SUPPORTED
    return values
