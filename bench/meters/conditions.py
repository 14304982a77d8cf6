"""Conditions of a measurement: clocks, temperature, throttling and other users of the GPUs, and the load of the host.

They are read once a second and kept in the trace as events. `gpu_conditions` and `host_conditions` summarise them for a
window. What the machine does not report is absent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from bench.meters.meter import Meter, Reading
from bench.record import GpuConditions, HostConditions

EVENT = "conditions"
HOST = "host"
REASON_BITS = {0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x20: "sw_thermal", 0x40: "hw_thermal", 0x80: "power_brake"}
"""Bits of NVML's mask of clock event reasons that mean throttling; others (idle, clocks set by an application) do not."""
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"


class ConditionsMeter(Meter):
    """Reads the conditions of the devices of `meters`, and of the host. Runs are descendants of `root_pid`."""

    def __init__(self, meters: Sequence[Meter], root_pid: int, proc: Path = Path("/proc")) -> None:
        self._meters = meters
        self._root_pid = root_pid
        self._files = open_host_files(proc)

    def read(self) -> list[Reading]:
        """Return one event row for each GPU and one for the host."""
        rows = [row for meter in self._meters for row in meter.conditions(self._root_pid)]
        facts = host_facts(self._files)
        if facts:
            t_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            rows.append(Reading(t_ns=t_ns, wall_ns=wall_ns, device=HOST, event=EVENT, message=json.dumps(facts)))
        return rows

    def close(self) -> None:
        """Close the files of the host."""
        for file in self._files.values():
            os.close(file)


def open_host_files(proc: Path = Path("/proc")) -> dict[str, int]:
    """Open the files that `host_facts` reads, as far as they exist; return descriptors by name."""
    files: dict[str, int] = {}
    for name in ("stat", "loadavg", "pressure/cpu"):
        with suppress(OSError):
            files[name] = os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
    return files


def _read(file: int) -> str:
    return os.pread(file, 512, 0).decode()


def host_facts(files: dict[str, int]) -> dict[str, float]:
    """Return seconds of all processors since boot (busy, steal, all), the load, and seconds that tasks waited for a CPU."""
    facts: dict[str, float] = {}
    try:
        ticks = [int(word) for word in _read(files["stat"]).split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, waiting, irq, softirq, steal = ticks
        hertz = os.sysconf("SC_CLK_TCK")
        facts["busy"] = (user + nice + system + irq + softirq) / hertz
        facts["steal"] = steal / hertz
        facts["all"] = facts["busy"] + facts["steal"] + (idle + waiting) / hertz
    except (KeyError, OSError, ValueError, IndexError):
        facts = {}
    with suppress(KeyError, OSError, ValueError, IndexError):
        facts["load"] = float(_read(files["loadavg"]).split()[0])
    with suppress(KeyError, OSError, ValueError):
        facts["waited"] = int(_read(files["pressure/cpu"]).split("\n", 1)[0].rpartition("total=")[2]) / 1e6
    return facts


def _around(events: Iterable[Reading], device: str, t0: int, t1: int) -> list[tuple[int, dict[str, Any]]]:
    """Return facts of a device inside the window, the last before it and the first after it."""
    rows = [row for row in events if row.event == EVENT and row.device == device and row.message]
    before = [row for row in rows if row.t_ns < t0][-1:]
    inside = [row for row in rows if t0 <= row.t_ns <= t1]
    after = [row for row in rows if row.t_ns > t1][:1]
    return [(row.t_ns, json.loads(row.message or "{}")) for row in [*before, *inside, *after]]


def gpu_conditions(events: Iterable[Reading], device: str, t0: int, t1: int) -> GpuConditions:
    """Return the conditions of a window on one GPU, from the events of its trace (times in CLOCK_MONOTONIC nanoseconds).

    Of instant values such as clocks, only readings inside the window count if there are any: the GPU may be idle again at
    the next one. Cumulative counters need a reading on either side.
    """
    around = _around(events, device, t0, t1)
    facts = [fact for _, fact in around]
    inside = [fact for t, fact in around if t0 <= t <= t1] or facts

    def values(name: str) -> list[float]:
        return [fact[name] for fact in inside if name in fact]

    temperatures, clocks, memory_clocks = values("temperature"), values("sm_mhz"), values("memory_mhz")
    half = len(clocks) // 2
    return GpuConditions(
        device=device,
        temperature_celsius_max=max(temperatures, default=None),
        temperature_celsius_drift=temperatures[-1] - temperatures[0] if len(temperatures) > 1 else None,
        memory_temperature_celsius_max=max(values("memory_temperature"), default=None),
        sm_clock_hz_mean=mean(clocks) * 1e6 if clocks else None,
        sm_clock_drift=mean(clocks[-half:]) / mean(clocks[:half]) - 1 if half and mean(clocks[:half]) else None,
        memory_clock_hz_mean=mean(memory_clocks) * 1e6 if memory_clocks else None,
        power_limit_watts=min(values("limit_mw")) / 1e3 if values("limit_mw") else None,
        memory_used_bytes_max=int(max(values("memory_used"))) if values("memory_used") else None,
        throttled_share=_throttled(around, [fact["reasons"] for fact in inside if "reasons" in fact]),
        shared=_shared(facts),
    )


def used_by_run(events: Iterable[Reading], device: str, t0: int, t1: int) -> bool:
    """Whether a process of the run was seen on a GPU between two times."""
    return any(fact.get("own") for _, fact in _around(events, device, t0, t1))


def _throttled(around: list[tuple[int, dict[str, Any]]], masks: list[int]) -> dict[str, float]:
    """Share of the time by reason: by the cumulative counter or by the bit of the mask, whichever is larger."""
    if len(around) < 2 or around[0][0] == around[-1][0]:
        return {}
    (t0, first), (t1, last) = around[0], around[-1]
    shares: dict[str, float] = {}
    for bit, name in REASON_BITS.items():
        if masks:
            shares[name] = sum(bool(mask & bit) for mask in masks) / len(masks)
    begin, end = first.get("throttled_ns", {}), last.get("throttled_ns", {})
    for name in begin.keys() & end.keys():
        if end[name] >= begin[name]:
            counted = min(1.0, (end[name] - begin[name]) / (t1 - t0))
            shares[name] = max(shares.get(name, 0.0), counted)  # some drivers number these counters differently
    return {name: share for name, share in sorted(shares.items()) if share > 0}


def _shared(facts: list[dict[str, Any]]) -> bool | None:
    """Whether others used the GPU; None if NVML lists no process of ours: then it may not list theirs either."""
    listed = [fact for fact in facts if "own" in fact]
    foreign = any(fact["foreign"] for fact in listed)
    if any(fact["own"] for fact in listed) or (foreign and sees_all_processes()):
        return foreign
    return None


def sees_all_processes() -> bool:
    """Whether process ids here are those of the machine, which NVML lists. In most containers they are not."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def host_conditions(
    events: Iterable[Reading], t0: int, t1: int, own_cpu_seconds: float | None
) -> HostConditions | None:
    """Return the conditions of a window on the host; `own_cpu_seconds` is the CPU time of the run in it, None if unknown."""
    around = _around(events, HOST, t0, t1)
    if not around:
        return None
    (ta, first), (tb, last) = around[0], around[-1]

    def passed(name: str) -> float | None:
        return last[name] - first[name] if name in last and name in first else None

    everything, stolen, busy, waited = (passed(name) for name in ("all", "steal", "busy", "waited"))
    steal_share = stolen / everything if stolen is not None and everything else None
    other = None
    if own_cpu_seconds is not None and busy is not None and everything:
        ours = own_cpu_seconds * (tb - ta) / (t1 - t0)  # the readings span slightly more than the window
        other = max(0.0, busy - ours) / everything
    return HostConditions(
        load_average=first.get("load"),
        steal_share=steal_share,
        other_share=other,
        pressure_share=min(1.0, waited / ((tb - ta) / 1e9)) if waited is not None and tb > ta else None,
    )
