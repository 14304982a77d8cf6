"""AMD GPUs for machines without one: a stand-in for the module `amdsmi`, whose energy is known exactly.

`install` is for this process, `environment` for its children. Functions, keys and errors are those that AMD SMI documents
for ROCm 6.4; `old` leaves out what came after 6.0. Times are those of `time.monotonic`, or of `now`.
"""

import enum
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RESOLUTION = 15.300000190734863
"""Microjoules of a tick of the accumulator, in 32 bits as AMD SMI says it."""
NOT_SUPPORTED, BUSY, NO_DEVICE = 2, 30, 5
DEFAULTS: dict[str, Any] = {
    "name": "AMD Instinct MI300X",
    "watts": 300,
    "counter": 1.0,
    "start_joules": 1000.0,
    "resolution": RESOLUTION,
    "old": False,
    "instant": True,
    "sensor": True,
    "lost_at": None,
    "reset_at": None,
    "failing": {},
    "partition": "SPX",
    "processes": [],
    "memory": 196_592,
    "memory_used": 300,
    "throttled": 0.0,
    "clock": 2100,
}


def fake_gpu(number: int = 0, **more: Any) -> dict[str, Any]:
    """Describe a GPU. `watts`: a number, or [(seconds, watts), ...] from which on it draws so much.

    `counter`: what the accumulator counts of the energy: 0 stands still, None is not supported. `instant`: power is instant
    power as on MI300, else an average as on MI200. `sensor`: False is a die whose board's sensor is that of the other die.
    `lost_at`, `reset_at`: times. `failing`: codes of errors by name of a function. `throttled`: share of
    the firmware's ticks.
    """
    if unknown := set(more) - {*DEFAULTS, "serial", "hip_id", "bdf"}:
        raise TypeError(f"unknown keys of a GPU: {sorted(unknown)}")
    identity = {"serial": f"0x{0xAB54 + number:016X}", "hip_id": number, "bdf": f"0000:{number + 1:02x}:00.0"}
    return {**DEFAULTS, **identity, **more}


def uuid(gpu: dict[str, Any]) -> str:
    """Return the name of a GPU in HIP."""
    return f"GPU-{int(gpu['serial'], 16):016x}"


def truth(gpu: dict[str, Any], begin: float, end: float) -> float:
    """Return the joules that a GPU draws between two times in seconds."""
    steps = gpu["watts"] if isinstance(gpu["watts"], list) else [(0.0, gpu["watts"])]
    edges = [*(since for since, _ in steps[1:]), float("inf")]
    parts = zip(steps, edges, strict=True)
    return sum(watts * max(0.0, min(end, until) - max(begin, since)) for (since, watts), until in parts)


class AmdSmiException(Exception):
    """Base of all errors."""


class AmdSmiLibraryException(AmdSmiException):
    """A call that failed."""

    def __init__(self, code: int) -> None:
        self.err_code = code
        super().__init__(f"Error code:\n\t{code} | AMDSMI_STATUS_{code}")


class AmdSmiInitFlags(enum.IntEnum):
    """What to initialise."""

    INIT_AMD_GPUS = 2


class AmdSmiClkType(enum.IntEnum):
    """Clocks."""

    GFX = 0
    MEM = 4


class AmdSmiTemperatureType(enum.IntEnum):
    """Sensors of temperature."""

    HOTSPOT = 1
    VRAM = 2


class AmdSmiTemperatureMetric(enum.IntEnum):
    """What to read of a sensor."""

    CURRENT = 0


class Library:
    """The functions of the module, on some GPUs. `started` counts initialisations that no shut-down has answered."""

    def __init__(self, gpus: list[dict[str, Any]], driver: str = "6.12.12") -> None:
        self.gpus, self.driver, self.started, self.now = gpus, driver, 0, None

    def _time(self) -> float:
        return time.monotonic() if self.now is None else self.now

    def _check(self, function: str, gpu: dict[str, Any]) -> None:
        if not self.started:
            raise AmdSmiLibraryException(32)
        if gpu["lost_at"] is not None and self._time() >= gpu["lost_at"]:
            raise AmdSmiLibraryException(NO_DEVICE)
        if function in gpu["failing"]:
            raise AmdSmiLibraryException(gpu["failing"][function])

    def functions(self) -> dict[str, Any]:
        """Return what the module has under these names."""
        names = [name for name in dir(self) if name.startswith("amdsmi_")]
        old = any(gpu["old"] for gpu in self.gpus)
        return {name: getattr(self, name) for name in names if not (old and name == "amdsmi_get_gpu_enumeration_info")}

    def amdsmi_init(self, flag: AmdSmiInitFlags) -> None:
        self.started += 1

    def amdsmi_shut_down(self) -> None:
        self.started -= 1

    def amdsmi_get_processor_handles(self) -> list[dict[str, Any]]:
        return self.gpus

    def amdsmi_get_gpu_enumeration_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check("enumeration_info", gpu)
        return {"drm_render": 128, "hip_id": gpu["hip_id"], "hip_uuid": uuid(gpu)}

    def amdsmi_get_gpu_asic_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check("asic_info", gpu)
        return {"market_name": gpu["name"], "vendor_id": "0x1002", "asic_serial": gpu["serial"], "oam_id": "N/A"}

    def amdsmi_get_gpu_device_bdf(self, gpu: dict[str, Any]) -> str:
        return gpu["bdf"]

    def amdsmi_get_gpu_driver_info(self, gpu: dict[str, Any]) -> dict[str, str]:
        return {"driver_name": "amdgpu", "driver_version": self.driver}

    def amdsmi_get_gpu_compute_partition(self, gpu: dict[str, Any]) -> str:
        if gpu["partition"] is None:
            raise AmdSmiLibraryException(NOT_SUPPORTED)
        return gpu["partition"]

    def amdsmi_get_gpu_vram_usage(self, gpu: dict[str, Any]) -> dict[str, int]:
        return {"vram_total": gpu["memory"], "vram_used": gpu["memory_used"]}

    def amdsmi_get_gpu_process_list(self, gpu: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": "python", "pid": pid, "mem": 1} for pid in gpu["processes"]]

    def amdsmi_get_energy_count(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check("energy_count", gpu)
        if gpu["counter"] is None:
            raise AmdSmiLibraryException(NOT_SUPPORTED)
        now, reset = self._time(), gpu["reset_at"]
        since = reset if reset is not None and now >= reset else 0.0
        joules = (0.0 if since else gpu["start_joules"]) + gpu["counter"] * truth(gpu, since, now)
        ticks = int(joules * 1e6 / RESOLUTION) if gpu["sensor"] else 0
        key = "power" if gpu["old"] else "energy_accumulator"
        return {key: ticks, "counter_resolution": gpu["resolution"], "timestamp": int(now * 1e9)}

    def amdsmi_get_power_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check("power_info", gpu)
        steps = gpu["watts"] if isinstance(gpu["watts"], list) else [(0.0, gpu["watts"])]
        watts = [watts for since, watts in steps if since <= self._time()][-1] if gpu["sensor"] else 0
        present = {"current_socket_power": watts, "average_socket_power": "N/A"}
        if not gpu["instant"]:
            present = {"current_socket_power": "N/A", "average_socket_power": watts}
        return present | {"gfx_voltage": "N/A", "power_limit": 750_000_000}

    def amdsmi_get_clock_info(self, gpu: dict[str, Any], kind: AmdSmiClkType) -> dict[str, Any]:
        clock = gpu["clock"] if kind is AmdSmiClkType.GFX else 1300
        return {"cur_clk" if gpu["old"] else "clk": clock, "min_clk": 132, "max_clk": 2100}

    def amdsmi_get_temp_metric(
        self, gpu: dict[str, Any], sensor: AmdSmiTemperatureType, metric: AmdSmiTemperatureMetric
    ) -> int:
        return 61 if sensor is AmdSmiTemperatureType.HOTSPOT else 48

    def amdsmi_get_power_cap_info(self, gpu: dict[str, Any]) -> dict[str, int]:
        return {"power_cap": 750_000_000, "default_power_cap": 750_000_000}

    def amdsmi_get_gpu_metrics_info(self, gpu: dict[str, Any]) -> dict[str, Any]:
        self._check("gpu_metrics_info", gpu)
        ticks = int(self._time() * 1000)
        held = {"socket_thm_residency_acc": int(ticks * gpu["throttled"]), "ppt_residency_acc": ticks}
        return {
            "accumulation_counter": ticks,
            **held,
            "vr_thm_residency_acc": "N/A",
            "hbm_thm_residency_acc": 2**64 - 1,
        }


def fill(module: ModuleType, library: Library) -> None:
    """Give a module the names of `amdsmi`."""
    kinds = (AmdSmiException, AmdSmiLibraryException, AmdSmiInitFlags, AmdSmiClkType)
    names = {kind.__name__: kind for kind in (*kinds, AmdSmiTemperatureType, AmdSmiTemperatureMetric)}
    for name, value in (library.functions() | names).items():
        setattr(module, name, value)


def install(patch: pytest.MonkeyPatch, *gpus: dict[str, Any]) -> Library:
    """Give this process these GPUs until the test ends."""
    library, module = Library(list(gpus)), ModuleType("amdsmi")
    module.__spec__ = __spec__
    fill(module, library)
    patch.setitem(sys.modules, "amdsmi", module)
    return library


def environment(folder: Path, *gpus: dict[str, Any]) -> dict[str, str]:
    """Return the variables that give a child process these GPUs; the module is written to a folder."""
    lines = (
        "import json, os, sys",
        "from tests import fake_amdsmi",
        "fake_amdsmi.fill(sys.modules[__name__], fake_amdsmi.Library(json.loads(os.environ['FAKE_AMDSMI'])))",
    )
    (folder / "amdsmi.py").write_text("\n".join(lines) + "\n")
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [str(folder), root, os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "FAKE_AMDSMI": json.dumps(gpus)}
