"""NVIDIA GPUs through NVML: which are present, their energy counter and their instant power.

Only this module imports `pynvml` (distribution `nvidia-ml-py`). NVML is initialised in the process that reads. On Ampere
and newer chips `nvmlDeviceGetPowerUsage` is not used: on most of them it is a 1 s average.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from ctypes import byref, c_int32
from dataclasses import dataclass
from typing import Any, Self

import psutil

from bench.meters.meter import INTERVAL, Listing, Meter, Reading
from bench.process import descends_from
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


class NvmlUnavailableError(Exception):
    """NVML cannot be used here; the message says why."""


def _start_nvml() -> Any:
    """Import and initialise NVML. Raises NvmlUnavailableError."""
    try:
        import pynvml
    except ImportError:
        raise NvmlUnavailableError("the package nvidia-ml-py is not installed") from None
    if not hasattr(pynvml, "_nvmlGetFunctionPointer"):
        raise NvmlUnavailableError("the module pynvml is not NVIDIA's: uninstall pynvml and install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        raise NvmlUnavailableError("NVML library not found: no NVIDIA driver on this machine") from None
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(f"NVML did not start: {error}") from None
    return pynvml


def list_gpus(own_pids: Collection[int] = ()) -> Listing:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves visible, the driver's version, and why there is none.

    `used_by` names the compute processes of others: not this process, `own_pids`, or the children of these. Indices are
    NVML's, in PCI order. On a node with different GPUs they are CUDA's only with CUDA_DEVICE_ORDER=PCI_BUS_ID, so map
    ranks by UUID. Inside a container NVML may list no processes, or processes of the host that have no name here.
    """
    try:
        nvml = _start_nvml()
    except NvmlUnavailableError as error:
        return [], None, str(error)
    try:
        ours = _process_tree({os.getpid(), *own_pids})
        gpus = [_describe(nvml, index, ours) for index in range(nvml.nvmlDeviceGetCount())]
        driver = str(nvml.nvmlSystemGetDriverVersion())
        visible = _visible(nvml, gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
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
        used_by=[_process_name(pid) for pid in pids if pid not in ours],
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


def _ask(nvml: Any, question: Any) -> Any:
    """Return the answer, or None if this GPU does not support the question."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _mig(nvml: Any, handle: Any) -> bool:
    return bool((_ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)) or [0])[0])


def _process_tree(pids: set[int]) -> set[int]:
    tree = set(pids)
    for pid in pids:
        try:
            tree |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.Error:
            continue
    return tree


def _process_name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"


def _visible(nvml: Any, gpus: list[Gpu], variable: str | None) -> list[Gpu]:
    """Return the GPUs that CUDA shows: those up to the first invalid entry, and none if an entry repeats."""
    if variable is None:
        return gpus
    chosen: list[Gpu] = []
    seen: set[str] = set()
    for entry in (part.strip() for part in variable.split(",")):
        if entry.isdecimal():
            matches = [gpu for gpu in gpus if gpu.index == int(entry)]
        elif entry.startswith("GPU-"):
            matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        elif entry.startswith("MIG-"):
            matches = [gpu for gpu in gpus if gpu.uuid == _ask(nvml, lambda mig=entry: _parent_uuid(nvml, mig))]
        else:
            matches = []
        if len(matches) != 1:
            break
        if entry in seen or (matches[0] in chosen and not entry.startswith("MIG-")):
            return []
        seen.add(entry)
        if matches[0] not in chosen:  # two slices of one GPU are one device to read
            chosen.append(matches[0])
    return chosen


def _parent_uuid(nvml: Any, mig_uuid: str) -> str:
    slice_handle = nvml.nvmlDeviceGetHandleByUUID(mig_uuid)
    return str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle)))


@dataclass
class _Device:
    uuid: str
    handle: Any
    mode: str | None
    by_call: bool = False
    """The counter is read by its own function because the field is not supported."""
    energy: bool = True
    power: bool = True
    scope: int = GPU_SCOPE
    fields: Any = None
    """Buffers for energy and power, and the call that fills them."""
    by_usage: bool = False
    """Power is read by nvmlDeviceGetPowerUsage, which returns instant power on this old chip."""


class NvmlMeter(Meter):
    """Energy counter and instant power of some GPUs; for a MIG GPU, those of the whole board.

    `reason` says why nothing can be read, `unread` why single GPUs cannot be read, `errors` counts failed reads.
    """

    source = "nvml"
    components = ("gpu",)
    period = INTERVAL
    steps = True
    list_gpus = staticmethod(list_gpus)

    @classmethod
    def open(cls, argument: str, gpus: Sequence[str] | None) -> Self:
        """Return the meter of the GPUs with these UUIDs, or of all visible ones."""
        visible, _, reason = list_gpus()
        meter = cls([gpu.uuid for gpu in visible] if gpus is None else gpus)
        meter.reason = (reason or meter.reason) if meter.reason else None
        return meter

    def __init__(self, uuids: Sequence[str]) -> None:
        self.errors = 0
        self.unread: dict[str, str] = {}
        self._devices: list[_Device] = []
        self._asked: dict[tuple[str, str], bool] = {}
        try:
            self._nvml = _start_nvml()
        except NvmlUnavailableError as error:
            self.reason = str(error)
            return
        for uuid in dict.fromkeys(uuids):  # a GPU named twice is one GPU
            try:
                handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError as error:
                self.unread[uuid] = f"{uuid}: {error}"
                continue
            device = _Device(uuid, handle, "mig" if _mig(self._nvml, handle) else None)
            self._probe(device)
            if device.energy or device.power:
                self._devices.append(device)
            else:
                self.unread[uuid] = f"{uuid} reports neither energy nor power"
        if not self._devices:
            self.reason = "; ".join(self.unread.values()) or "no GPU to read"

    def read(self) -> list[Reading]:
        """Return one row for each GPU, with the time in the middle of the call."""
        rows = []
        for device in self._devices:
            before = time.monotonic_ns()
            energy, power, trouble = self._values(device)
            t_ns = (before + time.monotonic_ns()) // 2
            if energy is not None or power is not None:
                energy_uj = None if energy is None else energy * 1000
                values = {"energy_uj": energy_uj, "power_mw": power, "mode": device.mode}
                rows.append(self.row("gpu", device.uuid, t_ns=t_ns, **values))
            if trouble:
                self.errors += 1
                rows.append(self.row("gpu", device.uuid, t_ns=t_ns, event="error", message=trouble))
        return rows

    def close(self) -> None:
        """Leave NVML."""
        if self._devices:
            self._devices = []
            self._nvml.nvmlShutdown()

    def _probe(self, device: _Device) -> None:
        """Find out once what the device supports; otherwise a missing counter would be an error ten times a second."""
        energy, power = self._codes(device)
        unsupported = (self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_INVALID_ARGUMENT)
        if power in unsupported and energy in unsupported:
            device.scope, device.fields = MODULE_SCOPE, None  # only without a counter, which is that of the GPU alone
            energy, power = self._codes(device)
            if power not in unsupported:
                device.mode = "module"
            elif _ask(self._nvml, lambda: self._nvml.nvmlDeviceGetArchitecture(device.handle)) in range(AMPERE):
                device.by_usage = _ask(self._nvml, lambda: self._usage(device)) is not None
        device.power = power not in unsupported or device.by_usage
        device.by_call = energy in unsupported and device.mode != "module"
        device.energy = energy not in unsupported
        if device.by_call:
            device.energy = _ask(self._nvml, lambda: self._energy_call(device)) is not None

    def _codes(self, device: _Device) -> tuple[int, int]:
        try:
            energy, power = self._fields(device)
        except self._nvml.NVMLError:
            return self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_NOT_SUPPORTED
        return energy.nvmlReturn, power.nvmlReturn

    def _fields(self, device: _Device) -> Any:
        """Read energy and power in one call.

        The arguments are made once, and the library's function is called as pynvml calls it. Its own wrapper takes more
        time than the rest of a reading.
        """
        if device.fields is None:
            fields = (self._nvml.c_nvmlFieldValue_t * 2)()
            fields[0].fieldId = ENERGY_FIELD
            fields[1].fieldId, fields[1].scopeId = POWER_FIELD, device.scope
            function = self._nvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
            device.fields = fields, lambda: function(device.handle, c_int32(2), byref(fields))
        values, call = device.fields
        self._nvml._nvmlCheckReturn(call())
        return values

    def _usage(self, device: _Device) -> int:
        return int(self._nvml.nvmlDeviceGetPowerUsage(device.handle))

    def _energy_call(self, device: _Device) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device.handle))

    def _values(self, device: _Device) -> tuple[int | None, int | None, str]:
        """Return energy in mJ, power in mW, and what went wrong; the value of a failed field is undefined."""
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
        except self._nvml.NVMLError as error:
            trouble.append(str(error))
        return energy, power, "; ".join(trouble)

    def _decode(self, value: Any) -> tuple[int | None, str]:
        if value.nvmlReturn != self._nvml.NVML_SUCCESS:
            return None, str(self._nvml.NVMLError(value.nvmlReturn))
        return int(getattr(value.value, _VALUES[value.valueType])), ""

    def conditions(self, root_pid: int) -> list[Reading]:
        """Return an event row for each GPU; its message is JSON with the conditions of the readings.

        Clocks are in MHz, temperatures in °C, the enforced power limit in mW, used memory in bytes, and cumulative throttled
        time in nanoseconds by reason. `reasons` is the mask of clock event reasons. `own` counts compute processes below
        `root_pid`, `foreign` others, `unknown` those without a process here (in a container NVML may list pids of the
        host). What a GPU does not support has no key and is not queried again.
        """
        rows = []
        for device in self._devices:
            facts = {**self._slow_facts(device), **self._throttled(device), **_whose(self._pids(device), root_pid)}
            message = json.dumps(facts, separators=(",", ":"))
            rows.append(self.row("gpu", device.uuid, event="conditions", message=message))
        return rows

    def _slow_facts(self, device: _Device) -> dict[str, int]:
        nvml, handle = self._nvml, device.handle
        questions = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature": lambda: nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU),
            "limit_mw": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
            "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
            "pstate": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
            "memory_used": lambda: _used_memory(nvml, handle),
        }
        facts = {}
        for name, question in questions.items():
            if self._asked.get((device.uuid, name), True):
                value = _ask(nvml, question)
                self._asked.setdefault((device.uuid, name), value is not None)
                if value is not None:
                    facts[name] = int(value)
        return facts

    def _throttled(self, device: _Device) -> dict[str, Any]:
        fields = [*THROTTLE_FIELDS, MEMORY_TEMPERATURE_FIELD]
        values = _ask(self._nvml, lambda: self._nvml.nvmlDeviceGetFieldValues(device.handle, fields)) or []
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
        return _processes(self._nvml, device.handle)


def _whose(pids: list[int], root_pid: int) -> dict[str, int]:
    kin = [descends_from(pid, root_pid) for pid in pids]
    return {"own": kin.count(True), "foreign": kin.count(False), "unknown": kin.count(None)}
