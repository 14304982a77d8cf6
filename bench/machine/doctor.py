"""What `bench doctor` says: what each source of energy reads now, how often it changes, and how to get what is missing.

Meters are read for a second, as fast as they allow; CodeCarbon estimates afterwards, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata, util
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.figures.flags import FOREIGN_BYTES, NOISE_SHARE, OTHER_SHARE
from bench.figures.metrics import SLOWDOWNS
from bench.figures.sensors import fresh
from bench.machine.environment import EnvironmentProblem, check_no_gpu_is_hidden, check_torch, find_machine, torch_build
from bench.meters.conditions import REASON_BITS, host_facts, open_host_files, sees_all_processes
from bench.meters.meter import Meter, Reading, meter_classes
from bench.meters.rapl import RaplMeter, powercap, zone_names
from bench.meters.trace import MAX_ERROR_SHARE, Trace
from bench.process import module_command
from bench.schema import Gpu, Machine
from bench.vendors import VENDORS

READING_SECONDS = 1.0
READING_INTERVAL = 0.005
"""Seconds between readings: shorter than the period of any known counter, and long enough that drivers still answer."""
ESTIMATE_SECONDS = 10.0
"""CodeCarbon is given up after this time; it takes three seconds on a small machine."""
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
DOCKER_GPUS = "\n".join(f"in a container, {facts.title}: {facts.container}" for facts in VENDORS.values())
DOCKER_PIDS = "in a container: docker run --pid=host, so that processes of others on a GPU can be recognised"
DOCKER_RAPL = "in a container: docker run -v /sys:/host-sys:ro -e WATTBENCH_POWERCAP=/host-sys/class/powercap"
ESTIMATE_INSTEAD = "CodeCarbon's model gives an estimate instead"
UDEV_RULE = 'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod a+r %S%p/energy_uj"'
Points = list[tuple[int, int]]
"""Readings of one quantity: time in nanoseconds, and value."""


@dataclass(frozen=True)
class Finding:
    """One line of `bench doctor`: subject, state, details and a remedy; `values` are figures by name with unit.

    `state` is ok, absent, problem or unknown.
    """

    subject: str
    state: str
    detail: str
    remedy: str = ""
    values: dict[str, float] = field(default_factory=dict)


def findings() -> list[Finding]:
    """Return what can be measured here, by which source, and how to get what cannot."""
    machine, no_gpu = find_machine()
    watch = Survey(machine)
    return [
        Finding("processors", "ok", f"{machine.cpu_count} usable, {machine.cpu_model}"),
        _host(watch, machine),
        *_gpus(watch, machine, no_gpu),
        _torch(machine),
        *_rapl(watch),
        *_other_meters(watch),
        _estimate(),
        *_software(),
    ]


class Survey:
    """The rows of all hardware meters during a second, and the load of the host before and after it."""

    def __init__(self, machine: Machine, seconds: float = READING_SECONDS) -> None:
        uuids = [gpu.uuid for gpu in machine.gpus]
        self.meters: dict[str, Meter] = {
            cls.source: cls.open("", uuids)
            for cls in meter_classes()
            if cls.nature == "measured" and not cls.argument and (uuids or "gpu" not in cls.components)
        }
        self.rows: list[Reading] = []
        conditions = [row for meter in self.meters.values() for row in meter.conditions(os.getpid())]
        self.gpu_facts = {row.device: json.loads(row.message or "{}") for row in conditions if row.device}
        files = open_host_files()
        self.host_before, own = host_facts(files), time.process_time()
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            for meter in self.meters.values():
                self.rows += [] if meter.reason else meter.read()
            time.sleep(max(0.0, now + READING_INTERVAL - time.monotonic()))
        self.seconds = time.monotonic() - began
        self.own_cpu_seconds = time.process_time() - own
        self.host_after = host_facts(files)
        for file in files.values():
            os.close(file)
        for meter in self.meters.values():
            meter.close()

    def of(self, device: str) -> list[Reading]:
        """Return the readings of one device, without errors."""
        return [row for row in self.rows if row.device == device and row.event is None]

    def errors(self, device: str) -> list[str]:
        """Return the messages of failed readings of one device."""
        return [row.message or "" for row in self.rows if row.device == device and row.event is not None]

    def unread(self, device: str) -> str:
        """Return why a device was not read."""
        reasons = (meter.unread.get(device) for meter in self.meters.values())
        return next(filter(None, [*reasons, *self.errors(device)]), "it was not read")


# --- how often a reading changes


def changes(points: Points) -> Points:
    """Return (time in ns, value) of the readings that differ from the one before."""
    return [after for before, after in pairwise(points) if after[1] != before[1]]


def period(points: Points) -> float | None:
    """Return the seconds between changes of a reading; None if it changed fewer than three times or at every reading.

    A gap is left out if a change in it was missed because a reading came late.
    """
    times = [t for t, _ in changes(points)]
    if len(times) < 3 or _at_every_reading(points):
        return None
    gaps = [b - a for a, b in pairwise(times)]
    usual = median(gaps)
    return mean(gap for gap in gaps if gap < 1.75 * usual) / 1e9


def _at_every_reading(points: Points) -> bool:
    return len(changes(points)) > 0.9 * (len(points) - 1)


def _pace(points: Points) -> str:
    """Describe how often a reading changes."""
    seconds, count = (points[-1][0] - points[0][0]) / 1e9, len(changes(points))
    if (length := period(points)) is not None:
        return f"changes every {length * 1000:.3g} ms"
    if count > 1 and _at_every_reading(points):
        return f"changes at every reading, {seconds / (len(points) - 1) * 1000:.2g} ms apart"
    return f"did not change in {seconds:.2g} s" if count == 0 else f"changed {count} times"


def _watts(points: Points) -> float | None:
    """Return the mean power of a counter in µJ between its first and its last change."""
    changed = changes(points)
    return (changed[-1][1] - changed[0][1]) * 1e3 / (changed[-1][0] - changed[0][0]) if len(changed) > 1 else None


def _counter(rows: list[Reading]) -> Points:
    """Return (time, µJ) of a counter; its range is added after it wrapped."""
    points: Points = []
    offset = 0
    for row, energy in ((row, row.energy_uj) for row in rows if row.energy_uj is not None):
        offset += (row.wrap_uj or 0) if points and energy + offset < points[-1][1] else 0
        points.append((row.t_ns, energy + offset))
    return points


def _figures(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


# --- the host


def _host(watch: Survey, machine: Machine) -> Finding:
    before, after = watch.host_before, watch.host_after
    passed = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    if not passed.get("all"):
        return Finding("host", "unknown", "the system does not report its load")
    steal = passed["steal"] / passed["all"]
    others = max(0.0, passed["busy"] - watch.own_cpu_seconds) / passed["all"]
    waited = min(1.0, passed["waited"] / watch.seconds) if "waited" in passed else None
    detail = f"other programs use {others:.0%} of the processors, other virtual machines {steal:.0%}"
    busy = steal > NOISE_SHARE or others > OTHER_SHARE
    remedy = "end other programs: figures of a busy machine are less certain" if busy else ""
    values = _figures(load_average=after.get("load"), steal_share=steal, other_share=others, pressure_share=waited)
    return Finding("host", "problem" if busy else "ok", detail, remedy, values)


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    return any(mark.exists() for mark in CONTAINER_MARKS) or not sees_all_processes()


# --- GPUs


def _gpus(watch: Survey, machine: Machine, no_gpu: str | None) -> Iterator[Finding]:
    if no_gpu or not machine.gpus:
        detail = no_gpu or "no GPU is visible: none is installed, or a variable such as CUDA_VISIBLE_DEVICES hides them"
        try:
            check_no_gpu_is_hidden(no_gpu)
            state, remedy = "absent", "runs use CPU processes"
        except EnvironmentProblem as error:
            state, remedy = "problem", str(error).splitlines()[1]
        yield Finding("GPUs", state, detail, f"{remedy}\n{DOCKER_GPUS}" if in_container() else remedy)
    for gpu in machine.gpus:
        name, facts, rows = f"GPU {gpu.index}", watch.gpu_facts.get(gpu.uuid, {}), watch.of(gpu.uuid)
        meter, tool = watch.meters[VENDORS[gpu.vendor].meter], VENDORS[gpu.vendor].tool
        yield _gpu(name, gpu, facts)
        if not rows:
            remedy = f"check that {tool} shows its power; if it does not, repair the driver"
            yield Finding(f"{name} energy", "absent", watch.unread(gpu.uuid), remedy)
            continue
        errors = watch.errors(gpu.uuid)
        trouble = [e for e in errors if "energy: " in e or not e.startswith("power: ")]
        yield _gpu_counter(name, rows, trouble, meter.doubts.get(gpu.uuid))
        yield _gpu_power(name, rows, [e for e in errors if "energy: " not in e])
        yield _gpu_clocks(name, facts, tool)
        if meter.unverified:
            remedy = f"compare its energy with {tool} before you rely on it; its runs have grade B at best"
            yield Finding(f"{name} sensor", "unknown", f"this meter is unverified: {meter.unverified}", remedy)
            continue
        checked = fresh(gpu.uuid, machine.driver_version or "")
        detail = f"{'checked' if checked else 'not checked'} here in the last 30 days"
        remedy = "" if checked else "run python -m tests.gpu_check; it takes some minutes on a free GPU"
        yield Finding(f"{name} sensor", "ok" if checked else "unknown", detail, remedy)
    if machine.gpus:
        yield _processes(watch)


def _gpu(name: str, gpu: Gpu, facts: dict[str, Any]) -> Finding:
    parts, remedies, users = [gpu.name, gpu.uuid], [], ", ".join(gpu.used_by)
    used, total = facts.get("memory_used"), f" of {gpu.memory_bytes / 2**30:.3g}" if gpu.memory_bytes else ""
    parts += [f"{used / 2**30:.3g}{total} GiB in use"] if used is not None else []
    parts.append(f"used by {users}" if users else "no other process is listed")
    if users:
        remedies.append(f"used by {users}: runs leave it out unless you name it with --gpus {gpu.index}")
    elif (gpu.foreign_memory_bytes or 0) > FOREIGN_BYTES:
        parts.append("but memory is in use: others may be using it")
        remedies.append(DOCKER_PIDS)
    if gpu.mig:
        mig = gpu.vendor == "nvidia"
        cut = "MIG is on" if mig else "it is cut into partitions"
        parts.append(f"{cut}: energy is that of the whole board, and runs cannot use it")
        command = "nvidia-smi -mig 0" if mig else "amd-smi set --compute-partition SPX"
        remedies.append(f"an administrator can turn it off: {command}")
    values = _figures(memory_used_bytes=used, memory_bytes=gpu.memory_bytes)
    return Finding(name, "problem" if remedies else "ok", ", ".join(parts), "\n".join(remedies), values)


_WHOLE = {"mig": "of the whole board (MIG)", "module": "of the whole module with its CPU", "board": "of both dies"}


def _scope(rows: list[Reading]) -> str:
    return _WHOLE.get(rows[-1].mode or "", "of the GPU with its memory")


def _gpu_counter(name: str, rows: list[Reading], errors: list[str], doubt: str | None) -> Finding:
    subject, points = f"{name} energy counter", _counter(rows)
    failed = _failed(points, errors)
    if not points:
        detail = doubt or "this GPU has none (older than Volta, or a virtual GPU)"
        return Finding(
            subject, "absent", detail + failed, "its power is sampled ten times a second and integrated instead"
        )
    text, values = _counted(points)
    detail = f"{points[-1][1] / 1e9:,.1f} kJ since the driver was loaded{text}, {_scope(rows)}{failed}"
    moves = bool(changes(points))
    remedy = "" if moves else "power samples are integrated while the counter stands still"
    return Finding(subject, "ok" if moves and not failed else "problem", detail, remedy, values)


def _counted(points: Points) -> tuple[str, dict[str, float]]:
    """Return power and pace of a counter in words, and its figures."""
    watts, seconds = _watts(points), (points[-1][0] - points[0][0]) / 1e9
    values = _figures(energy_joules=points[-1][1] / 1e6, power_watts=watts, period_seconds=period(points))
    return (f", {watts:.4g} W over {seconds:.2g} s" if watts is not None else "") + f", {_pace(points)}", values


def _failed(points: Points, errors: list[str]) -> str:
    """Say how many readings failed; a few among many do not matter."""
    share = len(errors) / max(1, len(points) + len(errors))
    return f"; {share:.0%} of the readings failed: {errors[0]}" if share > MAX_ERROR_SHARE else ""


def _gpu_power(name: str, rows: list[Reading], errors: list[str]) -> Finding:
    points = [(row.t_ns, row.power_mw) for row in rows if row.power_mw is not None]
    failed = _failed(points, errors)
    if not points:
        return Finding(
            f"{name} power", "absent", f"this GPU reports no instant power{failed}", "its counter is sufficient"
        )
    watts = points[-1][1] / 1e3
    detail = f"{watts:.4g} W now, {_pace(points)}, {_scope(rows)}{failed}"
    values = _figures(power_watts=watts, period_seconds=period(points))
    return Finding(f"{name} power", "problem" if failed else "ok", detail, "", values)


def _gpu_clocks(name: str, facts: dict[str, Any], tool: str) -> Finding:
    reasons = [reason for bit, reason in REASON_BITS.items() if facts.get("reasons", 0) & bit]
    texts = {"sm_mhz": "SM {} MHz", "memory_mhz": "memory {} MHz", "temperature": "{} °C"}
    texts |= {"memory_temperature": "memory {} °C", "pstate": "P{}"}
    parts = [text.format(facts[key]) for key, text in texts.items() if key in facts]
    limit = facts["limit_mw"] / 1000 if "limit_mw" in facts else None
    parts += [f"power limit {limit:.4g} W"] if limit is not None else []
    if "reasons" in facts:
        parts.append(f"throttled now by {', '.join(reasons)}" if reasons else "not throttled")
    slow = any(reason in SLOWDOWNS for reason in reasons)
    remedy = f"check its cooling and power supply with {tool}" if slow else ""
    clocks = {f"{key}_clock_hz": facts[f"{key}_mhz"] * 1e6 for key in ("sm", "memory") if f"{key}_mhz" in facts}
    values = _figures(temperature_celsius=facts.get("temperature"), power_limit_watts=limit, **clocks)
    state = "problem" if slow else "ok" if parts else "unknown"
    return Finding(f"{name} clocks", state, ", ".join(parts) or "this GPU does not report them", remedy, values)


def _processes(watch: Survey) -> Finding:
    """Say whether the driver's list of processes can be trusted: NVML's has ids of the host, even inside a container."""
    unknown = sum(facts.get("unknown", 0) for facts in watch.gpu_facts.values())
    if sees_all_processes():
        return Finding(
            "GPU processes", "ok", "process ids of the driver are those of this machine: other users are seen"
        )
    listed = f"; {unknown} that it lists are unknown here" if unknown else ""
    detail = f"process ids here are not those of the machine, so the driver may not list your runs as yours{listed}"
    return Finding("GPU processes", "unknown", detail, DOCKER_PIDS)


# --- CPU, memory, and meters without a section of their own


def _rapl(watch: Survey) -> Iterator[Finding]:
    root, reason = powercap(), watch.meters[RaplMeter.source].reason
    zones = zone_names(root)
    if reason and zones and not any(zones.values()):
        detail = f"{root} lists RAPL zones that cannot be opened from here, as in a container"
        yield Finding("CPU and DRAM energy", "absent", detail, f"{DOCKER_RAPL}\n{ESTIMATE_INSTEAD}")
        return
    if reason:
        yield Finding("CPU and DRAM energy", "absent", reason, _rapl_remedy(reason, root))
    rows = [row for row in watch.rows if row.source == RaplMeter.source]
    counted, read = {device for _, _, device in Trace(rows).devices}, {row.device for row in rows}
    not_added = []
    for path, name in zones.items():
        subject, why = f"RAPL {path.name} {name}", _why_not_added(path, name)
        if str(path) in counted:
            yield _device(subject, watch.of(str(path)))
        elif why or str(path) in read:
            not_added.append(f"{path.name} {name} ({why or 'the same counter as another package'})")
        elif not reason:
            yield Finding(subject, "absent", "cannot be read", _rapl_remedy("root only", root))
    if not_added:
        yield Finding("RAPL not added", "ok", "; ".join(not_added))


def _other_meters(watch: Survey) -> Iterator[Finding]:
    for source, meter in watch.meters.items():
        if source == RaplMeter.source or "gpu" in meter.components:
            continue
        devices = {row.device: None for row in watch.rows if row.source == source and row.device}
        if meter.reason or not devices:
            yield Finding(f"{source} energy", "absent", meter.reason or "it returned no readings")
        for device in devices:
            yield _device(f"{source} {device}", watch.of(device))


def _device(subject: str, rows: list[Reading]) -> Finding:
    """Describe the counter of a device, or its power if it has none."""
    points, powers = _counter(rows), [row.power_mw / 1e3 for row in rows if row.power_mw is not None]
    if points:
        text, values = _counted(points)
        detail = f"{points[-1][1] / 1e6:,.1f} J on its counter{text}"
        return Finding(subject, "ok" if changes(points) else "problem", detail, "", values)
    if powers:
        return Finding(subject, "ok", f"{powers[-1]:.4g} W now", "", {"power_watts": powers[-1]})
    return Finding(subject, "problem", "its readings failed")


_NOT_ADDED = {"psys": "contains the packages"}


def _why_not_added(path: Path, name: str) -> str:
    if path.name.startswith("intel-rapl-mmio"):
        return "the same zone again"
    return "" if name.startswith("package") or name == "dram" else _NOT_ADDED.get(name, "inside its package")


def _rapl_remedy(reason: str, root: Path) -> str:
    if "root only" in reason:
        return (
            f"until the next boot: sudo chmod a+r {root}/intel-rapl:*/energy_uj\n"
            f"permanently, in /etc/udev/rules.d/90-rapl.rules: {UDEV_RULE}\n{ESTIMATE_INSTEAD}"
        )
    return f"{ESTIMATE_INSTEAD}\n{DOCKER_RAPL}" if in_container() else ESTIMATE_INSTEAD


def _estimate() -> Finding:
    """Let CodeCarbon estimate once, in a process of its own, because it changes settings, HOME and folder of its process."""
    subject = "energy estimate"
    try:
        version = metadata.version("codecarbon")
    except metadata.PackageNotFoundError:
        return Finding(subject, "absent", "codecarbon is not installed", "pip install codecarbon")
    command = module_command("bench.meters.estimate")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ESTIMATE_SECONDS, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        detail = f"CodeCarbon did not answer within {ESTIMATE_SECONDS:g} s"
        return Finding(subject, "problem", detail, "try again when the machine is less busy")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return Finding(subject, "problem", f"CodeCarbon's process failed: {error}")
    if answer["reason"]:
        return Finding(subject, "absent", answer["reason"])
    parts = [f"{part['component']} by {part['mode']} {part['power_watts']:.3g} W" for part in answer["estimates"]]
    values = {f"power_watts_{part['component']}_estimated": part["power_watts"] for part in answer["estimates"]}
    return Finding(subject, "ok", f"codecarbon {version}: {', '.join(parts)} (a model, labelled estimated)", "", values)


# --- software


def _torch(machine: Machine) -> Finding:
    torch = torch_build()
    try:
        check_torch(machine, for_gpus=True)
        return Finding("torch", "ok", f"{torch.version}, built for {torch.platform}")
    except EnvironmentProblem as error:
        problem, _, remedy = str(error).partition("\n")
        return Finding("torch", "problem", problem, remedy)


def _software() -> Iterator[Finding]:
    if util.find_spec("codecarbon") is None:
        yield Finding("carbon", "absent", "codecarbon contains the carbon intensities", "pip install codecarbon")
    else:
        yield Finding("carbon", "ok", "set a region: key `region` of the suite, --region, or WATTBENCH_REGION")
    for package in ("bench", "analytics", "app"):
        origin = getattr(util.find_spec(package), "origin", None)
        yield Finding(f"import {package}", "ok", str(Path(origin).parent) if origin else "cannot be imported")
