"""NVIDIA GPUs through NVML: which are present, their energy counter and their instant power.

Only this module imports `pynvml` (distribution `nvidia-ml-py`). NVML is initialised in the process that reads. On Ampere
and newer chips `nvmlDeviceGetPowerUsage` is not used: on most of them it is a 1 s average.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from ctypes import byref, c_int32
from dataclasses import dataclass
from typing import Any

from bench.meters.gpu import GpuMeter, OpenGpu, UnavailableError, ask, process_name, process_tree, visible_gpus
from bench.meters.meter import Listing
from bench.schema import Gpu

ENERGY_FIELD = 83  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: millijoules since the driver was loaded, Volta and newer
POWER_FIELD = 186  # NVML_FI_DEV_POWER_INSTANT: milliwatts
GPU_SCOPE, MODULE_SCOPE = 0, 1  # NVML_POWER_SCOPE_GPU, _MODULE: a Grace superchip may know the sum with its CPU only
AMPERE = 7  # NVML_DEVICE_ARCH_AMPERE
THROTTLE_FIELDS = {74: "sw_power_cap", 75: "thermal_policy", 269: "sw_thermal", 270: "hw_thermal", 271: "power_brake"}
"""Cumulative nanoseconds in which the clocks were held down, by reason (nvml.h, NVML_FI_DEV_CLOCKS_EVENT_REASON_*)."""
MEMORY_TEMPERATURE_FIELD = 82
RESERVED_BYTES = 2**30
"""Memory that the driver itself may use on a GPU, if it does not report its own share."""
_VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


def _start_nvml() -> Any:
    """Import and initialise NVML. Raises UnavailableError."""
    try:
        import pynvml
    except ImportError:
        raise UnavailableError("the package nvidia-ml-py is not installed") from None
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise UnavailableError("the module pynvml is not NVIDIA's: uninstall pynvml and install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        raise UnavailableError("NVML library not found: no NVIDIA driver on this machine") from None
    except pynvml.NVMLError as error:
        raise UnavailableError(f"NVML did not start: {error}") from None
    return pynvml


def list_gpus(own_pids: Collection[int] = ()) -> Listing:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves visible, the driver's version, and why there is none.

    `used_by` names the compute processes of others: not this process, `own_pids`, or the children of these. Indices are
    NVML's, in PCI order. On a node with different GPUs they are CUDA's only with CUDA_DEVICE_ORDER=PCI_BUS_ID, so map
    ranks by UUID. Inside a container NVML may list no processes, or processes of the host that have no name here.
    """
    try:
        nvml = _start_nvml()
    except UnavailableError as error:
        return [], None, str(error)
    try:
        ours = process_tree(own_pids)
        gpus = [_describe(nvml, index, ours) for index in range(nvml.nvmlDeviceGetCount())]
        driver = str(nvml.nvmlSystemGetDriverVersion())
        visible = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), lambda mig: _parent_uuid(nvml, mig))
    except nvml.NVMLError as error:
        return [], None, f"NVML does not answer: {error}"
    finally:
        nvml.nvmlShutdown()
    if not gpus:
        return [], driver, "the NVIDIA driver lists no GPU"
    return visible, driver, None if visible else "CUDA_VISIBLE_DEVICES leaves no GPU visible"


def _describe(nvml: Any, index: int, ours: set[int]) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    pids = _processes(nvml, handle)
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=_ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        used_by=[process_name(pid) for pid in pids if pid not in ours],
        foreign_memory_bytes=None if ours & set(pids) else _used_memory(nvml, handle),
        mig=_mig(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> list[int]:
    processes = _ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return [process.pid for process in processes]


def _used_memory(nvml: Any, handle: Any) -> int | None:
    """Bytes in use on a GPU, without those of the driver if it reports them."""
    info = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2))
    if info is not None:
        return int(info.used)
    info = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return None if info is None else max(0, int(info.used) - RESERVED_BYTES)


def _ask(nvml: Any, query: Callable[[], Any]) -> Any:
    return ask(query, nvml.NVMLError)


def _mig(nvml: Any, handle: Any) -> bool:
    return bool((_ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)) or [0])[0])


def _parent_uuid(nvml: Any, mig_uuid: str) -> str | None:
    def parent() -> str:
        slice_handle = nvml.nvmlDeviceGetHandleByUUID(mig_uuid)
        return str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle)))

    uuid: str | None = _ask(nvml, parent)
    return uuid


@dataclass
class _Device(OpenGpu):
    by_call: bool = False
    """The counter is read by its own function because the field is not supported."""
    scope: int = GPU_SCOPE
    fields: Any = None
    """Buffers for energy and power, and the call that fills them."""
    by_usage: bool = False
    """Power is read by nvmlDeviceGetPowerUsage, which returns instant power on this old chip."""


class NvmlMeter(GpuMeter):
    """Energy counter and instant power of some GPUs; for a MIG GPU, those of the whole board."""

    source = "nvml"
    shut_down = "nvmlShutdown"
    list_gpus = staticmethod(list_gpus)
    start = staticmethod(_start_nvml)

    @staticmethod
    def failure(library: Any) -> Any:
        """Return the class of NVML's errors."""
        return library.NVMLError

    def _find(self, uuid: str) -> _Device:
        handle = self._library.nvmlDeviceGetHandleByUUID(uuid)
        device = _Device(uuid, handle, "mig" if _mig(self._library, handle) else None)
        self._probe(device)
        return device

    def _probe(self, device: _Device) -> None:
        """Find out once what the device supports; otherwise a missing counter would be an error ten times a second."""
        energy, power = self._codes(device)
        unsupported = (self._library.NVML_ERROR_NOT_SUPPORTED, self._library.NVML_ERROR_INVALID_ARGUMENT)
        if power in unsupported and energy in unsupported:
            device.scope, device.fields = MODULE_SCOPE, None  # only without a counter, which is that of the GPU alone
            energy, power = self._codes(device)
            if power not in unsupported:
                device.mode = "module"
            elif self._ask(lambda: self._library.nvmlDeviceGetArchitecture(device.handle)) in range(AMPERE):
                device.by_usage = self._ask(lambda: self._usage(device)) is not None
        device.power = power not in unsupported or device.by_usage
        device.by_call = energy in unsupported and device.mode != "module"
        device.energy = energy not in unsupported
        if device.by_call:
            device.energy = self._ask(lambda: self._energy_call(device)) is not None

    def _codes(self, device: _Device) -> tuple[int, int]:
        try:
            energy, power = self._fields(device)
        except self._library.NVMLError:
            return self._library.NVML_ERROR_NOT_SUPPORTED, self._library.NVML_ERROR_NOT_SUPPORTED
        return energy.nvmlReturn, power.nvmlReturn

    def _fields(self, device: _Device) -> Any:
        """Read energy and power in one call.

        The arguments are made once, and the library's function is called as pynvml calls it. Its own wrapper takes more
        time than the rest of a reading.
        """
        if device.fields is None:
            fields = (self._library.c_nvmlFieldValue_t * 2)()
            fields[0].fieldId = ENERGY_FIELD
            fields[1].fieldId, fields[1].scopeId = POWER_FIELD, device.scope
            function = self._library._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
            device.fields = fields, lambda: function(device.handle, c_int32(2), byref(fields))
        values, call = device.fields
        self._library._nvmlCheckReturn(call())
        return values

    def _usage(self, device: _Device) -> int:
        return int(self._library.nvmlDeviceGetPowerUsage(device.handle))

    def _energy_call(self, device: _Device) -> int:
        return int(self._library.nvmlDeviceGetTotalEnergyConsumption(device.handle))

    def _values(self, device: _Device) -> tuple[int | None, int | None, str]:
        """The value of a failed field is undefined."""
        energy: int | None = None
        power: int | None = None
        trouble: list[str] = []
        try:
            fields_power = device.power and not device.by_usage
            if fields_power or not device.by_call:
                energy_field, power_field = self._fields(device)
                if fields_power:
                    power, problem = self._decode(power_field)
                    trouble += [f"power: {problem}"] if problem else []
                if device.energy and not device.by_call:
                    energy, problem = self._decode(energy_field)
                    trouble += [f"energy: {problem}"] if problem else []
            if device.by_usage:
                power = self._usage(device)
            power = power or None  # a GPU that reports 0 W was polled too fast
            if device.by_call and device.energy:
                energy = self._energy_call(device)
        except self._library.NVMLError as error:
            trouble.append(str(error))
        return None if energy is None else energy * 1000, power, "; ".join(trouble)

    def _decode(self, value: Any) -> tuple[int | None, str]:
        if value.nvmlReturn != self._library.NVML_SUCCESS:
            return None, str(self._library.NVMLError(value.nvmlReturn))
        return int(getattr(value.value, _VALUES[value.valueType])), ""

    def _queries(self, device: _Device) -> dict[str, Callable[[], Any]]:
        nvml, handle = self._library, device.handle
        return {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature": lambda: nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU),
            "limit_mw": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
            "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
            "pstate": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
            "memory_used": lambda: _used_memory(nvml, handle),
        }

    def _more_conditions(self, device: _Device) -> dict[str, Any]:
        fields = [*THROTTLE_FIELDS, MEMORY_TEMPERATURE_FIELD]
        values = self._ask(lambda: self._library.nvmlDeviceGetFieldValues(device.handle, fields)) or []
        numbers: dict[int, int] = {}
        for field, value in zip(fields, values, strict=False):
            number, problem = self._decode(value)
            if number is not None and not problem:
                numbers[field] = number
        facts: dict[str, Any] = {
            "throttled_ns": {THROTTLE_FIELDS[f]: v for f, v in numbers.items() if f in THROTTLE_FIELDS}
        }
        if MEMORY_TEMPERATURE_FIELD in numbers:
            facts["memory_temperature"] = numbers[MEMORY_TEMPERATURE_FIELD]
        return facts

    def _pids(self, device: _Device) -> list[int]:
        return _processes(self._library, device.handle)
