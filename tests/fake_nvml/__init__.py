"""GPUs for machines without one: a library for the real pynvml, whose energy is known exactly.

`install` is for this process, `environment` for its children. `truth` is the energy of a GPU, worked out here a second
time: the library's counter is the same integral until its last step. Times are CLOCK_MONOTONIC in seconds.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pynvml
import pytest

LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("nvml.c")
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
NEVER = 2**62

DEFAULTS = {
    "name": "NVIDIA H100 80GB HBM3",
    "architecture": 9,  # NVML_DEVICE_ARCH_HOPPER
    "memory": 85_520_809_984,
    "memory_used": 0,
    "memory_reserved": 0,
    "period": 0.1,
    "power_period": 0,
    "power_window": 0,
    "power_scopes": {0: 0},
    "reset_at": None,
    "lost_at": None,
    "errors": {},
    "errors_between": (0, None),
    "mig": None,
    "pids": [],
    "graphics_pids": [],
    "sm_clock": 1980,
    "sm_clock_throttled": None,
    "sm_clock_max": 1980,
    "memory_clock": 2619,
    "memory_clock_max": 2619,
    "event_reasons": 0,
    "throttle": dict.fromkeys([74, 75, 269, 270, 271], 0),
    "throttled_between": (0, None),
    "temperature": 45,
    "memory_temperature": 55,
    "limit": 700,
    "limit_default": 700,
    "limit_min": 200,
    "limit_max": 700,
    "pstate": 0,
}


def fake_gpu(number=0, watts=300, **more):
    """Describe a GPU. `watts`: a number, or {high, low, period, duty, phase}: high while (t + phase) % period is less
    than duty * period.

    `period`: seconds between steps of the energy counter; `power_period`: of instant power, 0 for continuous;
    `power_window`: instant power is a mean over so many seconds; `power_scopes`: watts that a scope has more.
    `errors`: NVML codes by field number or by name of a C function, in the time `errors_between`; `reset_at`, `lost_at`:
    times; `mig`: UUIDs of slices, None for a GPU that has no MIG. `pids`, `graphics_pids`: processes, or their bytes by
    process. `throttle`: by field number, the share of the time `throttled_between` by which this counter of nanoseconds
    grows; only in that time `event_reasons` (a bit mask) and `sm_clock_throttled` hold. `limit` and others: watts.
    None: the GPU does not support it.
    """
    unknown = set(more) - {*DEFAULTS, "uuid", "pci"}
    if unknown:
        raise TypeError(f"unknown keys of a GPU: {sorted(unknown)}")
    identity = {
        "uuid": f"GPU-{number:08x}-1111-2222-3333-444444444444",
        "pci": f"00000000:{number + 1:02X}:00.0",
    }
    return {**DEFAULTS, **identity, "watts": watts, **more}


def truth(gpu, t0, t1):
    """Return the joules that a GPU draws between two times in seconds, a Fraction."""
    high, low, period, width, phase = _wave(gpu["watts"])

    def high_ns(t):
        periods = t // period
        return periods * width + min(t - periods * period, width)

    start, end = (Fraction(t) * 10**9 + phase for t in (t0, t1))
    return (low * (end - start) + (high - low) * (high_ns(end) - high_ns(start))) / 10**12


def counter(gpu, t):
    """Return what the energy counter of a GPU without errors says at a time: whole millijoules."""
    period, now, reset = _ns(gpu["period"]), _ns(t), _ns(gpu["reset_at"])
    updated = now - now % period if period else now
    start = reset if 0 <= reset <= updated else 0
    return int(truth(gpu, Fraction(start, 10**9), Fraction(updated, 10**9)) * 1000)


def environment(*gpus, **config):
    """Return the variables that give a child process these GPUs. `config`: `driver` (version), `init_error` (code)."""
    path = os.pathsep.join(filter(None, [str(build().parent), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_LIBRARY_PATH": path, "FAKE_NVML": _text(gpus, config)}


def install(monkeypatch, *gpus, found=True, **config):
    """Give this process these GPUs until the test ends; with `found=False` it has no library of NVIDIA's."""
    path = build()

    def load(name):
        if name != LIBRARY or not found:
            raise OSError(f"{name}: cannot open shared object file")
        return ctypes.CDLL(str(path))

    monkeypatch.setenv("FAKE_NVML", _text(gpus, config))
    monkeypatch.setattr(pynvml, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return FakeNvml(path)


class FakeNvml:
    """The library in this process. `now`: its time in seconds, None for CLOCK_MONOTONIC; set anew by every `install`."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        self._now = ctypes.c_int64.in_dll(library, "fake_nvml_now")
        self._started = ctypes.c_int.in_dll(library, "fake_nvml_started")
        self.now = None
        self._started.value = 0

    @property
    def now(self):
        return self._now.value / 1e9 if self._now.value >= 0 else None

    @now.setter
    def now(self, seconds):
        self._now.value = _ns(seconds)

    @property
    def started(self):
        """How many initialisations no shutdown has answered."""
        return self._started.value


@functools.cache
def build():
    """Compile the library once for all processes and return its path; skip the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT CHECKED: no C compiler for the stand-in of NVML")
    version = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:16]
    path = SOURCE.parent / "__pycache__" / version / LIBRARY
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{os.getpid()}.tmp")
        subprocess.run([compiler, *FLAGS, "-o", temporary, SOURCE], check=True)
        temporary.replace(path)
    return path


# --- the text that the library reads


def _ns(seconds):
    """Whole nanoseconds; -1 for None."""
    return -1 if seconds is None else round(seconds * 1_000_000_000)


def _until(seconds):
    return NEVER if seconds is None else _ns(seconds)


def _wave(watts):
    """Return high and low power in milliwatts, and period, time of high power and phase in nanoseconds."""
    wave = watts if isinstance(watts, dict) else {"high": watts, "low": watts, "period": 1, "duty": 1}
    period = _ns(wave["period"])
    power = round(1000 * wave["high"]), round(1000 * wave["low"])
    return *power, period, round(period * wave["duty"]), _ns(wave.get("phase", 0))


def _text(gpus, config):
    system = {"driver": "580.82.07", "init_error": 0} | config
    return "\n".join(_line(values) for values in (system, *map(_values, gpus)))


def _line(values):
    return "\t".join(f"{key}={value}" for key, value in values.items() if value != "")


def _values(gpu):
    """Return a GPU's keys as the library knows them."""
    plain = ("uuid", "name", "pci", "architecture", "memory", "memory_used", "memory_reserved")
    optional = ("sm_clock", "sm_clock_max", "memory_clock", "memory_clock_max", "event_reasons")
    optional += ("temperature", "memory_temperature", "pstate")
    values = {key: gpu[key] for key in plain}
    values |= {key: -1 if gpu[key] is None else gpu[key] for key in optional}
    values |= {key: _ns(gpu[key]) for key in ("period", "power_period", "power_window", "reset_at", "lost_at")}
    values |= {
        key: -1 if gpu[key] is None else round(1000 * gpu[key])
        for key in ("limit", "limit_default", "limit_min", "limit_max")
    }
    values |= zip(("high", "low", "wave_period", "wave_high", "wave_phase"), _wave(gpu["watts"]), strict=True)
    for name in ("errors", "throttled"):
        since, until = gpu[f"{name}_between"]
        values |= {f"{name}_since": _ns(since), f"{name}_until": _until(until)}
    throttled = gpu["sm_clock"] if gpu["sm_clock_throttled"] is None else gpu["sm_clock_throttled"]
    values["sm_clock_throttled"] = -1 if throttled is None else throttled
    values["mig_capable"] = int(gpu["mig"] is not None)
    lists = {"errors": gpu["errors"], "mig": dict.fromkeys(gpu["mig"] or [], 0)}
    lists["power_scopes"] = {scope: round(1000 * watts) for scope, watts in gpu["power_scopes"].items()}
    lists["throttle"] = {field: round(1e9 * share) for field, share in gpu["throttle"].items()}
    for name in ("pids", "graphics_pids"):
        processes = gpu[name] if isinstance(gpu[name], dict) else dict.fromkeys(gpu[name])
        lists[name] = {pid: -1 if size is None else size for pid, size in processes.items()}
    return values | {name: ",".join(f"{k}:{v}" for k, v in items.items()) for name, items in lists.items()}
