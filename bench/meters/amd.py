"""AMD GPUs through AMD SMI: which are present, their energy accumulator and their power. Not yet run on an AMD GPU.

Only this module imports `amdsmi`, which comes with ROCm. Its interface changed often: whatever a version lacks is absent,
as is a value of `N/A` or of all ones. Energy is the accumulator times its resolution, which AMD SMI gives in microjoules.
GPUs are named as HIP names them: `GPU-` and the unique id of the kernel's driver.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

from bench.meters.gpu import (
    GpuMeter,
    LibraryErrors,
    OpenGpu,
    UnavailableError,
    ask,
    process_name,
    process_tree,
    visible_gpus,
)
from bench.meters.meter import Listing
from bench.schema import Gpu
from bench.vendors import VENDORS

CHECK_SECONDS = 0.5
MOST_APART = 2.0
"""The counter is compared with power for `CHECK_SECONDS`. One that is further off by this factor is not used: on some
GPUs it stands still, or counts wrongly (github.com/ROCm/amdsmi/issues/38)."""
ALL_ONES = (2**16 - 1, 2**32 - 1, 2**64 - 1)
"""Values of fields that the firmware does not fill."""
DOUBLE_DIES = "MI250"
"""Boards with two dies that are two GPUs for HIP. Only one has a sensor, and it spans both."""
_RESIDENCIES = {
    "ppt_residency_acc": "sw_power_cap",
    "prochot_residency_acc": "hw_slowdown",
    "socket_thm_residency_acc": "hw_thermal",
    "hbm_thm_residency_acc": "hw_thermal",
    "vr_thm_residency_acc": "hw_thermal",
}
"""Counters of the firmware's ticks with lowered clocks, of all in `accumulation_counter`."""


def _start() -> Any:
    if util.find_spec("amdsmi") is None:
        raise UnavailableError("the package amdsmi is not installed: pip install /opt/rocm/share/amd_smi")
    try:
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):  # it prints if it misses its library
            import amdsmi
    except Exception as error:  # noqa: BLE001  OSError, KeyError and AttributeError if it does not fit to the library
        raise UnavailableError(f"the package amdsmi cannot be imported: {error!r}") from None
    try:
        amdsmi.amdsmi_init(amdsmi.AmdSmiInitFlags.INIT_AMD_GPUS)
    except _failures(amdsmi) as error:
        raise UnavailableError(f"AMD SMI did not start: {error}") from None
    return amdsmi


def _failures(library: Any) -> LibraryErrors:
    """Errors of a call; functions and keys that this version of the library lacks are like calls that fail."""
    return (library.AmdSmiException, AttributeError, KeyError, TypeError, ValueError)


def _number(value: Any) -> float | None:
    """Return a value of the library, None if it is absent: `N/A`, or all ones."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and value not in ALL_ONES and value >= 0 else None


def list_gpus(own_pids: Collection[int] = ()) -> Listing:
    """Return the GPUs that ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES show, the driver's version, and why there is none.

    There is no reason where nothing points to AMD. `used_by` names the compute processes of others: not this process,
    `own_pids`, or the children of these. Indices are HIP's.
    """
    if not list(Path("/dev").glob(VENDORS["amd"].files)) and util.find_spec("amdsmi") is None:
        return [], None, None
    try:
        amdsmi = _start()
    except UnavailableError as error:
        return [], None, str(error)
    try:
        ours = process_tree(own_pids)
        handles = amdsmi.amdsmi_get_processor_handles()
        gpus = [_describe(amdsmi, handle, number, ours) for number, handle in enumerate(handles)]
        twice = {gpu.uuid for gpu in gpus if [other.uuid for other in gpus].count(gpu.uuid) > 1}
        gpus = [gpu.changed(mig=gpu.mig or gpu.uuid in twice) for gpu in sorted(gpus, key=lambda gpu: gpu.index)]
        driver = _ask(amdsmi, lambda: amdsmi.amdsmi_get_gpu_driver_info(handles[0])["driver_version"])
        mapped = len(gpus) < 2 or all(_hip(amdsmi, handle, "hip_id") is not None for handle in handles)
    except _failures(amdsmi) as error:
        return [], None, f"AMD SMI does not answer: {error}"
    finally:
        amdsmi.amdsmi_shut_down()
    return _visible(gpus, mapped=mapped, driver=driver)


def _visible(gpus: list[Gpu], *, mapped: bool, driver: str | None) -> Listing:
    """Choose the visible GPUs; without a map from HIP's indices to those of AMD SMI only by UUIDs."""
    environment = os.environ
    chosen = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"
    shown = gpus
    for name in ("ROCR_VISIBLE_DEVICES", chosen):
        value = environment.get(name)
        if not mapped and value is not None and any(part.strip().isdecimal() for part in value.split(",")):
            return [], driver, f"{name} has indices, which this version of amdsmi cannot map to GPUs: give UUIDs"
        if value is not None:
            counted = [gpu.changed(index=number) for number, gpu in enumerate(shown)]
            kept = [gpu.uuid for gpu in visible_gpus(counted, value, lambda _: None)]
            shown = [gpu for uuid in kept for gpu in gpus if gpu.uuid == uuid]
        if not shown:
            return [], driver, f"{name} leaves no GPU visible" if gpus else None
    return shown, driver, None


def _ask(amdsmi: Any, query: Callable[[], Any]) -> Any:
    return ask(query, _failures(amdsmi))


def _hip(amdsmi: Any, handle: Any, name: str) -> Any:
    """Return `hip_id` or `hip_uuid` of a GPU; None before ROCm 6.4."""
    value = _ask(amdsmi, lambda: amdsmi.amdsmi_get_gpu_enumeration_info(handle)[name])
    return None if value == "N/A" else value


def _uuid(amdsmi: Any, handle: Any) -> str:
    """Return the name of a GPU in HIP; its address on the bus if it has none, which no run can use."""
    uuid = str(_hip(amdsmi, handle, "hip_uuid") or "")
    if uuid.startswith("GPU-"):
        return uuid.lower().replace("gpu-", "GPU-")
    serial = _ask(amdsmi, lambda: int(amdsmi.amdsmi_get_gpu_asic_info(handle)["asic_serial"], 16))
    return f"GPU-{serial:016x}" if serial else f"PCI-{amdsmi.amdsmi_get_gpu_device_bdf(handle)}"


def _name(amdsmi: Any, handle: Any) -> str:
    return str(_ask(amdsmi, lambda: amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"]) or "AMD GPU")


def _memory(amdsmi: Any, handle: Any, name: str) -> int | None:
    """Return `vram_total` or `vram_used` in bytes; AMD SMI reports MiB."""
    value = _ask(amdsmi, lambda: _number(amdsmi.amdsmi_get_gpu_vram_usage(handle)[name]))
    return None if value is None else int(value) * 2**20


def _processes(amdsmi: Any, handle: Any) -> list[int]:
    processes = _ask(amdsmi, lambda: amdsmi.amdsmi_get_gpu_process_list(handle)) or []
    return [process["pid"] for process in processes if isinstance(process, dict) and "pid" in process]


def _describe(amdsmi: Any, handle: Any, number: int, ours: set[int]) -> Gpu:
    pids, hip_id = _processes(amdsmi, handle), _hip(amdsmi, handle, "hip_id")
    partition = _ask(amdsmi, lambda: amdsmi.amdsmi_get_gpu_compute_partition(handle))
    uuid = _uuid(amdsmi, handle)
    return Gpu(
        index=number if hip_id is None else int(hip_id),
        uuid=uuid,
        name=_name(amdsmi, handle),
        memory_bytes=_memory(amdsmi, handle, "vram_total"),
        used_by=[process_name(pid) for pid in pids if pid not in ours],
        foreign_memory_bytes=None if ours & set(pids) else _memory(amdsmi, handle, "vram_used"),
        mig=partition not in (None, "", "N/A", "SPX") or uuid.startswith("PCI-"),
        vendor="amd",
    )


@dataclass
class _Device(OpenGpu):
    ticks: tuple[int, float, dict[str, float]] | None = None
    """Time in ns, ticks, and ticks with lowered clocks by counter at the last query of the conditions."""
    throttled: dict[str, float] = field(default_factory=dict)
    """Nanoseconds with lowered clocks since the first query, by counter."""


class AmdMeter(GpuMeter):
    """Energy accumulator and power of some GPUs; on boards with two dies, those of both."""

    source = "amdsmi"
    shut_down = "amdsmi_shut_down"
    unverified = "not yet run on an AMD GPU"
    list_gpus = staticmethod(list_gpus)
    start = staticmethod(_start)
    failure = staticmethod(_failures)

    def _find(self, uuid: str) -> _Device:
        amdsmi = self._library
        handles = [h for h in amdsmi.amdsmi_get_processor_handles() if _uuid(amdsmi, h) == uuid]
        if len(handles) != 1:
            raise ValueError("AMD SMI lists no such GPU" if not handles else "several partitions have this name")
        device = _Device(uuid, handles[0])
        power = self._ask(lambda: self._power(device))
        if DOUBLE_DIES in _name(amdsmi, device.handle):
            device.mode = "board"
            if power is None:
                device.energy = device.power = False
                self.unread[uuid] = f"{uuid} is a die without a sensor: that of the other die of its board spans both"
                return device
        device.power = power is not None
        device.energy = self._ask(lambda: self._energy(device)) is not None
        return device

    def _verify(self, devices: Sequence[OpenGpu]) -> None:
        """Compare each accumulator with power for a moment, and give up those that disagree."""
        seen = {d.uuid: (time.monotonic(), self._values(d)) for d in devices if d.energy}
        if seen:
            time.sleep(CHECK_SECONDS)
        for device in (d for d in devices if d.uuid in seen):
            (since, (first, power, _)), (last, later, _) = seen[device.uuid], self._values(device)
            seconds, powers = time.monotonic() - since, [p / 1e3 for p in (power, later) if p is not None]
            if first is None or last is None:
                continue  # a reading that fails is an error, not a counter that is wrong
            joules, expected = (last - first) / 1e6, seconds * sum(powers) / max(1, len(powers))
            wrong = expected and not expected / MOST_APART <= joules <= expected * MOST_APART
            if wrong or joules <= 0:
                device.energy = False
                there = f" where power gives {expected:.3g} J" if expected else ""
                self.doubts[device.uuid] = f"its counter gives {joules:.3g} J in {seconds:.2g} s{there}: it is not used"

    def _energy(self, device: OpenGpu) -> int | None:
        """Return the accumulator in µJ; the key was `power` before ROCm 6.2."""
        answer = self._library.amdsmi_get_energy_count(device.handle)
        ticks = _number(answer["energy_accumulator"] if "energy_accumulator" in answer else answer["power"])
        resolution = _number(answer["counter_resolution"])
        return int(ticks * resolution) if ticks and resolution else None

    def _power(self, device: OpenGpu) -> int | None:
        """Return the power in mW: instant where the chip has it (MI300), else the average of the firmware (MI200)."""
        answer = self._library.amdsmi_get_power_info(device.handle)
        names = ("current_socket_power", "average_socket_power", "socket_power")
        watts = (_number(answer.get(name)) for name in names)
        return next((round(1000 * value) for value in watts if value), None)

    def _values(self, device: OpenGpu) -> tuple[int | None, int | None, str]:
        """Ask for both; an answer without a value is trouble, because the GPU had one before."""
        values: dict[str, int | None] = {"energy": None, "power": None}
        trouble = []
        for name, present, query in (
            ("energy", device.energy, self._energy),
            ("power", device.power, self._power),
        ):
            try:
                values[name] = query(device) if present else None
            except self.failure(self._library) as error:
                trouble.append(f"{name}: {error}")
            else:
                trouble += [f"{name}: no value"] if present and values[name] is None else []
        return values["energy"], values["power"], "; ".join(trouble)

    def _queries(self, device: OpenGpu) -> dict[str, Callable[[], Any]]:
        amdsmi, handle = self._library, device.handle

        def clock(kind: str) -> Any:
            answer = amdsmi.amdsmi_get_clock_info(handle, getattr(amdsmi.AmdSmiClkType, kind))
            return _number(answer["clk"] if "clk" in answer else answer["cur_clk"])

        def temperature(kind: str) -> Any:
            now = amdsmi.AmdSmiTemperatureMetric.CURRENT
            sensor = getattr(amdsmi.AmdSmiTemperatureType, kind)
            return _number(amdsmi.amdsmi_get_temp_metric(handle, sensor, now))

        return {
            "sm_mhz": lambda: clock("GFX"),
            "memory_mhz": lambda: clock("MEM"),
            "temperature": lambda: temperature("HOTSPOT"),
            "memory_temperature": lambda: temperature("VRAM"),
            "limit_mw": lambda: amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"] // 1000,  # of microwatts
            "memory_used": lambda: _memory(amdsmi, handle, "vram_used"),
        }

    def _more_conditions(self, device: _Device) -> dict[str, Any]:
        """Return the time with lowered clocks: the share of the firmware's ticks, times the time between two queries."""
        metrics = self._ask(lambda: self._library.amdsmi_get_gpu_metrics_info(device.handle)) or {}
        ticks, now = _number(metrics.get("accumulation_counter")), time.monotonic_ns()
        counts = {name: count for name in _RESIDENCIES if (count := _number(metrics.get(name))) is not None}
        if ticks is None:
            return {}
        if device.ticks is not None and ticks > device.ticks[1]:
            since, before, earlier = device.ticks
            for name in counts.keys() & earlier.keys():
                share = min(1.0, max(0.0, (counts[name] - earlier[name]) / (ticks - before)))
                device.throttled[name] = device.throttled.get(name, 0.0) + share * (now - since)
        device.ticks = now, ticks, counts
        throttled: dict[str, int] = {}
        for name in counts:  # reasons may hold at the same time: the longest counts
            reason = _RESIDENCIES[name]
            throttled[reason] = max(throttled.get(reason, 0), round(device.throttled.get(name, 0.0)))
        return {"throttled_ns": throttled}

    def _pids(self, device: OpenGpu) -> list[int]:
        return _processes(self._library, device.handle)
