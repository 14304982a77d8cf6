"""Checks of what NVML says: inventory, counter, latency, agreement, additivity, plausibility, repeatability."""

import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import psutil

from bench.meters.sidecar import Sidecar
from tests.gpu_checks.figures import (
    changes,
    falls,
    histogram,
    hold_mean,
    summary,
    variation,
)
from tests.gpu_checks.session import AVERAGE, COUNTER, INSTANT, LoadFailed, Nvml, Outcome, Skipped

FIELDS = (
    *(("energy counter", COUNTER), ("average power", (AVERAGE, 0)), ("instant power", (INSTANT, 0))),
    *(("instant power of the module", (INSTANT, 1)), ("instant power of the memory", (INSTANT, 2))),
    *(("memory temperature", 82), ("throttled by power", 74), ("throttled by heat", 75)),
    *(("HW slowdown by heat", 269), ("HW slowdown by power brake", 270), ("SW slowdown by heat", 271)),
)
STRETCHES = {"idle": 0.2, "gemm": 0.2, "memory": 0.2, "training": 0.4}
"""Loads of V4, with their shares of its time."""
WINDOW_NS = 2 * 10**9


def v1(session, seconds):
    """Inventory: GPUs, driver, fields and scopes, MIG, power limits, processes."""
    out = Outcome()
    out.add("V1 driver", session.driver, True)
    for gpu in session.gpus:
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "memory unknown"
        state = f"used by {', '.join(gpu.used_by)}" if gpu.used_by else "free"
        mig = ", MIG" if gpu.mig else ""
        out.add(
            f"V1 GPU {gpu.index}",
            f"{gpu.name}, {memory}, {state}{mig}",
            not gpu.used_by and not gpu.mig,
            "free, no MIG",
        )
    with Nvml(session.uuid) as nvml:
        works = {}
        for name, wanted in FIELDS:
            try:
                (value,) = nvml.raw(wanted)
                works[name] = "ok" if value.nvmlReturn == 0 else str(nvml.module.NVMLError(value.nvmlReturn))
            except nvml.module.NVMLError as error:
                works[name] = str(error)
        limits = {
            "enforced": nvml.ask("nvmlDeviceGetEnforcedPowerLimit"),
            "default": nvml.ask("nvmlDeviceGetPowerManagementDefaultLimit"),
            "constraints": nvml.ask("nvmlDeviceGetPowerManagementLimitConstraints"),
        }
        first, power = nvml.counter(), nvml.fields((INSTANT, 0))[0]
        state = {name: nvml.ask(f"nvmlDeviceGet{name}") for name in ("PerformanceState", "PersistenceMode")}
    out.add("V1 energy counter, instant power", f"{first} mJ, {power} mW", bool(first and power), "both")
    missing = [name for name, how in works.items() if how != "ok"]
    out.add("V1 fields", f"{len(works) - len(missing)} work, not: {', '.join(missing) or 'none'}")
    out.add("V1 power limit", f"{(limits['enforced'] or 0) / 1e3:.0f} W enforced", limits["enforced"] is not None)
    out.figures = {"fields": works, "power_limits_milliwatts": limits, **state}
    return out


def v2(session, seconds):
    """Period and step of the counter, read as fast as it goes."""
    out = Outcome()
    with Nvml(session.uuid) as nvml:
        rows, took = nvml.watch(seconds, (COUNTER,))
        if all(values[0] is None for _, values in rows):
            end, rows = time.monotonic() + seconds, []
            while time.monotonic() < end:
                rows.append((time.monotonic_ns(), (nvml.ask("nvmlDeviceGetTotalEnergyConsumption"),)))
                time.sleep(0.001)
    counter = [(t, values[0]) for t, values in rows if values[0] is not None]
    steps = changes(counter)
    fell = falls(counter)
    out.add("V2 falls of the counter", f"{fell} in {len(counter)} reads", fell == 0, "0")
    if len(steps) < 3:
        out.add(
            "V2 period of the counter", f"{len(steps)} changes in {seconds:.0f} s", False, "10 to 200 ms, about 100"
        )
        return out
    periods = [(b[0] - a[0]) / 1e6 for a, b in pairwise(steps)]
    joules = [(b[1] - a[1]) / 1e3 for a, b in pairwise(steps)]
    found, energy = summary(periods, 2), summary(joules, 3)
    text = f"median {found['p50']:.1f} ms (5-95 %: {found['p5']:.1f} to {found['p95']:.1f})"
    out.add("V2 period of the counter", text, 10 < found["p50"] < 200, "10 to 200 ms, about 100")
    out.add("V2 step of the counter", f"median {energy['p50']:.2f} J ({len(steps)} changes)")
    out.figures = {
        "counter_period_seconds": round(median(periods) / 1e3, 6),
        "period_ms": found,
        "period_ms_histogram": histogram(periods, 5),
        "step_joules": energy,
        "read_ms": summary([s * 1e3 for s in took], 3),
    }
    return out


def _latencies(nvml, seconds):
    calls = {
        "fields 83, 185, 186": lambda: nvml.raw(COUNTER, (AVERAGE, 0), (INSTANT, 0)),
        "fields 83, 186": lambda: nvml.raw(COUNTER, (INSTANT, 0)),
        "field 83": lambda: nvml.raw(COUNTER),
        "field 186": lambda: nvml.raw((INSTANT, 0)),
    }
    names = ("TotalEnergyConsumption", "ComputeRunningProcesses", "MemoryInfo", "MigMode")
    names += ("CurrentClocksEventReasons", "EnforcedPowerLimit", "PerformanceState")
    for name in names:
        calls[name] = lambda name=name: getattr(nvml.module, f"nvmlDeviceGet{name}")(nvml.handle)
    found = {}
    for name, call in calls.items():
        took, failed, end = [], 0, time.monotonic() + seconds / len(calls)
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                call()
            except Exception:
                failed += 1
            took.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.002)
        known = summary(took, 4)
        found[name] = {"n": known["n"], "p50_ms": known["p50"], "p99_ms": known["p99"], "failed": failed}
    return found


def _sidecar_share(uuid, seconds):
    """Return the share of a core that a reading sidecar takes."""
    with Sidecar(["nvml", "rapl"], gpus=[uuid]) as sidecar, TemporaryDirectory() as folder:
        sidecar.open(Path(folder) / "meters.jsonl")
        if sidecar.error or sidecar.pid is None:
            return None
        process = psutil.Process(sidecar.pid)
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
        sidecar.close()
        return share


def v3(session, seconds):
    """Latency of every NVML call, and the sidecar's share of a core, idle and under load."""
    out = Outcome()
    for kind in ("idle", "gemm"):
        try:
            with session.load(kind), Nvml(session.uuid) as nvml:
                found = _latencies(nvml, seconds / 4)
                share = _sidecar_share(session.uuid, seconds / 4)
        except (Skipped, LoadFailed) as reason:
            out.add(f"V3 {kind}", f"not done: {reason}", False if isinstance(reason, LoadFailed) else None)
            continue
        both = found["fields 83, 186"]
        text = f"p50 {both['p50_ms']:.2f} ms, p99 {both['p99_ms']:.2f} ms"
        out.add(f"V3 {kind}: read of both fields", text, both["p99_ms"] < 50, "p99 below 50 ms")
        slow = max(found, key=lambda name: found[name]["p99_ms"])
        out.add(f"V3 {kind}: slowest call", f"{slow}: p99 {found[slow]['p99_ms']:.2f} ms")
        failed = f"{both['failed']} of {both['n']}"
        out.add(f"V3 {kind}: failed reads", failed, both["failed"] <= both["n"] / 100, "at most 1 %")
        text = "the sidecar did not start" if share is None else f"{share:.2%} of a core"
        out.add(f"V3 {kind}: sidecar at 100 ms", text, share is not None and share < 0.01, "below 1 %")
        out.figures[kind] = {"calls": found, "sidecar_core_share": share}
    return out


def v4(session, seconds):
    """Agreement of the counter with the integral of INSTANT, of AVERAGE, and with the driver's own samples."""
    out = Outcome()
    for kind, share in STRETCHES.items():
        if kind != "idle" and session.no_load:
            out.add(f"V4 {kind}", f"not done: {session.no_load}")
            continue
        length = seconds if session.no_load else seconds * share
        try:
            _agreement(out, session, kind, session.record(kind, length))
        except (Skipped, LoadFailed) as reason:
            out.add(f"V4 {kind}", f"not done: {reason}", False if isinstance(reason, LoadFailed) else None)
    return out


def _agreement(out, session, kind, stretch):
    if stretch.error:
        out.add(f"V4 {kind}: sidecar", stretch.error, False, "no error")
    counter, power = stretch.energy(), stretch.energy("power_mw")
    if counter is None or power is None:
        out.add(f"V4 {kind}", "no energy by counter or by power", False, "both")
        return
    joules, integral = counter.energy_joules, power.energy_joules
    difference = (integral - joules) / joules if joules else 1.0
    text = f"{joules:.1f} J counter, {integral:.1f} J INSTANT: {difference:+.2%}"
    out.add(f"V4 {kind}: counter and INSTANT", text, abs(difference) <= 0.02, "within 2 %")
    figures = {
        "seconds": counter.seconds,
        "counter_watts": counter.power_watts_mean,
        "instant_difference": difference,
        "provenance": str(counter.provenance),
        "flags": counter.flags,
        "edges_joules": counter.uncertainty_joules,
        "driver_samples": stretch.driver_samples,
    }
    inner = (stretch.t0 + 10**9, stretch.t1)  # AVERAGE looks back over a second
    watts = hold_mean(stretch.averages, *inner) if len(stretch.averages) > 10 else None
    window = stretch.only("energy_uj").energy(*inner) if watts and inner[1] > inner[0] + 10**9 else []
    if window:
        difference = watts / 1e3 / window[0].power_watts_mean - 1
        text = f"{window[0].power_watts_mean:.1f} W counter, {watts / 1e3:.1f} W AVERAGE: {difference:+.2%}"
        out.add(f"V4 {kind}: counter and AVERAGE", text, abs(difference) <= 0.02, "within 2 %")
        figures["average_difference"] = difference
    else:
        out.add(f"V4 {kind}: counter and AVERAGE", "not done: no AVERAGE here, or too short")
    if samples := stretch.driver_samples:
        text = f"{samples['watts']:.1f} W over {samples['seconds']:.1f} s, {samples['n']} samples"
        out.add(f"V4 {kind}: samples of the driver", text)
    out.figures[kind] = figures


def _stretches(session, seconds):
    """Return the stretches of this call, or record one: of a training, or idle where nothing can work on the GPU."""
    if not session.stretches:
        session.record("idle" if session.no_load else "training", seconds)
    return session.stretches


def v6(session, seconds):
    """Additivity: windows of 2 s in a row against one window, and that against the raw counter."""
    out = Outcome()
    for kind, stretch in _stretches(session, seconds).items():
        whole, trace = stretch.energy(), stretch.only("energy_uj")
        if whole is None:
            out.add(f"V6 {kind}", "no energy by the counter", False, "a reading")
            continue
        edges = [*range(stretch.t0, stretch.t1 - WINDOW_NS // 2, WINDOW_NS), stretch.t1]
        parts = [reading for a, b in pairwise(edges) for reading in trace.energy(a, b)]
        error = sum(round(p.energy_joules * 1e6) for p in parts) - round(whole.energy_joules * 1e6)
        readings = stretch.readings(session.uuid)
        quantum = median(b - a for (_, a), (_, b) in pairwise(changes(readings)))
        complete = len(parts) == len(edges) - 1
        text = f"{error} µJ off, {len(parts)} of {len(edges) - 1} windows"
        out.add(f"V6 {kind}: sum of windows", text, complete and abs(error) <= 2 * quantum, "2 steps of the counter")
        raw = [max(e for t, e in readings if t <= edge) for edge in (stretch.t0, stretch.t1)]
        off = abs(raw[1] - raw[0] - whole.energy_joules * 1e6) / quantum
        out.add(f"V6 {kind}: window and raw counter", f"{off:.2f} steps apart", off <= 2, "at most 2 steps")
        out.figures[kind] = {"windows": len(parts), "error_microjoules": error, "step_microjoules": quantum}
    return out


def v7(session, seconds):
    """Repeatability: ten windows of one and the same load, after it has warmed up."""
    out = Outcome()
    stretch = session.record("gemm", seconds * 0.85, settle=seconds * 0.15)
    step = (stretch.t1 - stretch.t0) // 10
    trace = stretch.only("energy_uj")
    edges = [stretch.t0 + i * step for i in range(11)]
    watts = [r.power_watts_mean for a, b in pairwise(edges) for r in trace.energy(a, b)]
    if len(watts) < 10:
        out.add("V7 repeatability", f"{len(watts)} of 10 windows have energy", False, "10")
        return out
    share = variation(watts)
    text = f"{share:.2%} of {mean(watts):.1f} W, 10 x {step / 1e9:.1f} s"
    out.add("V7 variation of ten windows", text, share <= 0.01, "at most 1 %")
    out.figures = {"watts": [round(w, 2) for w in watts], "variation": share}
    return out


def v10(session, seconds):
    """Plausibility: power between idle and the limit, a counter that never falls."""
    out = Outcome()
    limit, stretches = session.limit_watts(), _stretches(session, seconds)
    idle = stretches["idle"].energy() if "idle" in stretches else None
    least = idle.power_watts_mean * 0.95 if idle else 0.0
    for kind, stretch in stretches.items():
        readings = stretch.readings(session.uuid)
        fell = falls(readings)
        out.add(f"V10 {kind}: falls of the counter", f"{fell} in {len(readings)} reads", fell == 0 < len(readings), "0")
        reading = stretch.energy()
        if reading is None:
            out.add(f"V10 {kind}: mean power", "no energy by the counter", False, "a reading")
            continue
        watts = reading.power_watts_mean
        if limit is None:
            out.add(f"V10 {kind}: mean power", f"{watts:.1f} W, the limit is not known", watts > 0)
        else:
            expected = f"{least:.0f} to {1.02 * limit:.0f} W"
            out.add(f"V10 {kind}: mean power", f"{watts:.1f} W", max(least, 1e-9) <= watts <= 1.02 * limit, expected)
        out.figures[kind] = {"watts": watts, "limit_watts": limit, "falls": fell}
    return out
