"""What `bench doctor` says: what each source of energy reads now, how often that changes, and what to do about the rest.

Sources are read for a second, as fast as their meters may be; CodeCarbon estimates in a process of its own afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from bench.meters.nvml import NvmlMeter
from bench.meters.rapl import POWERCAP, RaplMeter
from bench.meters.trace import MAX_ERROR_SHARE, Reading, Trace
from bench.schema import Gpu, Machine

READING_SECONDS = 1.0
READING_INTERVAL = 0.005
"""Seconds between readings; more often than any known counter changes, and not so often that an answer is refused."""
ESTIMATE_SECONDS = 10.0
"""After so long CodeCarbon is given up; it takes three on a small machine."""
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
DOCKER_GPUS = "in a container: docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
DOCKER_PIDS = "in a container: docker run --pid=host, so that others on a GPU can be told from your runs"
DOCKER_RAPL = "in a container: docker run -v /sys:/host-sys:ro -e WATTBENCH_POWERCAP=/host-sys/class/powercap"
ESTIMATE_INSTEAD = "CodeCarbon's model gives an estimate instead"
UDEV_RULE = 'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod a+r %S%p/energy_uj"'


@dataclass(frozen=True)
class Finding:
    """One line of `bench doctor`: what, how it stands here, from where or why, and a remedy; figures by name with unit.

    `state` is ok, absent, problem, or unknown.
    """

    subject: str
    state: str
    detail: str
    remedy: str = ""
    values: dict[str, float] = field(default_factory=dict)


def findings() -> list[Finding]:
    """Say what can be measured here, from which source, and what to do about what cannot."""
    machine, no_gpu = find_machine()
    watch = Watch(machine)
    return [
        Finding("processors", "ok", f"{machine.cpu_count} usable, {machine.cpu_model}"),
        _host(watch, machine),
        *_gpus(watch, machine, no_gpu),
        _torch(machine),
        *_rapl(watch),
        _estimate(),
        *_software(),
    ]


class Watch:
    """What all meters said in a second of readings."""

    def __init__(self, machine: Machine, seconds: float = READING_SECONDS) -> None:
        self.nvml = NvmlMeter([gpu.uuid for gpu in machine.gpus]) if machine.gpus else None
        self.rapl = RaplMeter()
        self.rows: list[Reading] = []
        self.gpu_facts: dict[str, dict[str, Any]] = {}
        if self.nvml is not None:
            facts = self.nvml.conditions(os.getpid())
            self.gpu_facts = {row.device: json.loads(row.message or "{}") for row in facts if row.device}
        files = open_host_files()
        self.host_before, own = host_facts(files), time.process_time()
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            for meter in (self.nvml, self.rapl):
                self.rows += meter.read() if meter is not None and not meter.reason else []
            time.sleep(max(0.0, now + READING_INTERVAL - time.monotonic()))
        self.seconds = time.monotonic() - began
        self.own_cpu_seconds = time.process_time() - own
        self.host_after = host_facts(files)
        for file in files.values():
            os.close(file)
        for meter in (self.nvml, self.rapl):
            if meter is not None:
                meter.close()

    def of(self, device: str) -> list[Reading]:
        """Rows of one device, its errors left out."""
        return [row for row in self.rows if row.device == device and row.event is None]

    def errors(self, device: str) -> list[str]:
        """What went wrong when a device was read."""
        return [row.message or "" for row in self.rows if row.device == device and row.event is not None]


# --- how often a reading changes


def changes(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (time in ns, value) of the readings that differ from the one before."""
    return [after for before, after in pairwise(points) if after[1] != before[1]]


def period(points: list[tuple[int, int]]) -> float | None:
    """Return the seconds between changes of a reading; None where it changed less than thrice, or at every reading.

    Where a change was not seen, because a reading came late, the distance over it is left out.
    """
    times = [t for t, _ in changes(points)]
    if len(times) < 3 or _at_every_reading(points):
        return None
    gaps = [b - a for a, b in pairwise(times)]
    usual = median(gaps)
    return mean(gap for gap in gaps if gap < 1.75 * usual) / 1e9


def _at_every_reading(points: list[tuple[int, int]]) -> bool:
    return len(changes(points)) > 0.9 * (len(points) - 1)


def _pace(points: list[tuple[int, int]]) -> str:
    """Say how often a reading changes."""
    between = (points[-1][0] - points[0][0]) / max(1, len(points) - 1) / 1e6
    found = period(points)
    if found is not None:
        return f"changes every {found * 1000:.3g} ms"
    seen = len(changes(points))
    if seen > 1:
        return f"new at every reading, {between:.2g} ms apart" if _at_every_reading(points) else f"changed {seen} times"
    return f"did not change in {(points[-1][0] - points[0][0]) / 1e9:.2g} s" if seen == 0 else "changed once"


def _watts(points: list[tuple[int, int]]) -> float | None:
    """Return the mean power of a counter in µJ between its first and its last change."""
    seen = changes(points)
    if len(seen) < 2:
        return None
    (t0, first), (t1, last) = seen[0], seen[-1]
    return (last - first) * 1e3 / (t1 - t0)


def _counter(rows: list[Reading]) -> list[tuple[int, int]]:
    """Return (time, µJ) of a counter, with its range added where it began again."""
    points: list[tuple[int, int]] = []
    offset = 0
    for row in rows:
        if row.energy_uj is None:
            continue
        if points and row.energy_uj + offset < points[-1][1]:
            offset += row.wrap_uj or 0
        points.append((row.t_ns, row.energy_uj + offset))
    return points


def _figures(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


# --- the host


def _host(watch: Watch, machine: Machine) -> Finding:
    before, after = watch.host_before, watch.host_after
    passed = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    everything = passed.get("all")
    if not everything:
        return Finding("host", "unknown", "the system does not say how busy it is")
    steal = passed["steal"] / everything
    others = max(0.0, passed["busy"] - watch.own_cpu_seconds) / everything
    waited = min(1.0, passed["waited"] / watch.seconds) if "waited" in passed else None
    parts = [f"load {after['load']:.2g} on {machine.cpu_count} processors"] if "load" in after else []
    parts += [f"other processes take {others:.1%} of the processors' time", f"other virtual machines {steal:.1%}"]
    parts += [f"tasks waited for a processor {waited:.1%} of the time"] if waited is not None else []
    busy = steal > NOISE_SHARE or others > OTHER_SHARE
    remedy = "end what else runs here: measurements on a busy machine are flagged noisy_host" if busy else ""
    values = _figures(load_average=after.get("load"), steal_share=steal, other_share=others, pressure_share=waited)
    return Finding("host", "problem" if busy else "ok", "; ".join(parts), remedy, values)


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    return any(mark.exists() for mark in CONTAINER_MARKS) or not sees_all_processes()


# --- GPUs


def _gpus(watch: Watch, machine: Machine, no_gpu: str | None) -> Iterator[Finding]:
    if no_gpu or not machine.gpus:
        detail = no_gpu or "no GPU is visible (CUDA_VISIBLE_DEVICES hides all, or none is installed)"
        try:
            check_no_gpu_is_hidden(no_gpu)
            state, remedy = "absent", "runs use CPU processes"
        except EnvironmentProblem as error:
            state, remedy = "problem", str(error).splitlines()[1]
        yield Finding("GPUs", state, detail, f"{remedy}\n{DOCKER_GPUS}" if in_container() else remedy)
    for gpu in machine.gpus:
        name, facts, rows = f"GPU {gpu.index}", watch.gpu_facts.get(gpu.uuid, {}), watch.of(gpu.uuid)
        yield _gpu(name, gpu, facts)
        reason = watch.nvml.unread.get(gpu.uuid, watch.nvml.reason) if watch.nvml is not None else None
        if not rows:
            why = reason or next(iter(watch.errors(gpu.uuid)), "it was not read")
            yield Finding(f"{name} energy", "absent", why, "nvidia-smi should show its power; if not, mend the driver")
            continue
        yield _gpu_counter(name, rows, [said for said in watch.errors(gpu.uuid) if not _of_power_alone(said)])
        yield _gpu_power(name, rows, [said for said in watch.errors(gpu.uuid) if "energy: " not in said])
        yield _gpu_clocks(name, facts)
        checked = fresh(gpu.uuid, machine.driver_version or "")
        said = "checked here in the last 30 days" if checked else "not checked here in the last 30 days"
        remedy = "" if checked else "python -m tests.gpu_check takes some minutes on a free GPU"
        yield Finding(f"{name} sensor", "ok" if checked else "unknown", said, remedy)
    if machine.gpus:
        yield _processes(watch)


def _gpu(name: str, gpu: Gpu, facts: dict[str, Any]) -> Finding:
    parts = [gpu.name, gpu.uuid]
    used = facts.get("memory_used")
    if used is not None:
        total = f" of {gpu.memory_bytes / 2**30:.3g}" if gpu.memory_bytes else ""
        parts.append(f"{used / 2**30:.3g}{total} GiB in use")
    parts.append(f"used by {', '.join(gpu.used_by)}" if gpu.used_by else "no other process is listed")
    remedies = []
    if gpu.used_by:
        remedies.append(f"used by {', '.join(gpu.used_by)}: left out unless named with --gpus {gpu.index}")
    elif (gpu.foreign_memory_bytes or 0) > FOREIGN_BYTES:
        parts.append("yet memory is in use: others may be on it")
        remedies.append(DOCKER_PIDS)
    if gpu.mig:
        parts.append("MIG is on: energy is that of the whole board, and runs cannot use it")
        remedies.append("an administrator can end it: nvidia-smi -mig 0")
    state, remedy = "problem" if remedies else "ok", "\n".join(remedies)
    values = _figures(memory_used_bytes=used, memory_bytes=gpu.memory_bytes)
    return Finding(name, state, ", ".join(parts), remedy, values)


_SCOPES = {
    None: "of the GPU with its memory",
    "mig": "of the whole board (MIG)",
    "module": "of the whole module, its CPU included",
}


def _gpu_counter(name: str, rows: list[Reading], errors: list[str]) -> Finding:
    subject, points = f"{name} energy counter", _counter(rows)
    failed = _failed(points, errors)
    if not points:
        detail = "this GPU has none (older than Volta, or a virtual GPU)"
        return Finding(subject, "absent", detail + failed, "its power is read ten times a second and summed up instead")
    watts, joules = _watts(points), points[-1][1] / 1e6
    mean = f", {watts:.4g} W over {(points[-1][0] - points[0][0]) / 1e9:.2g} s" if watts is not None else ""
    detail = f"{joules / 1000:,.1f} kJ since the driver was loaded{mean}, {_pace(points)}, {_SCOPES[rows[-1].mode]}"
    moves = bool(changes(points))
    remedy = "" if moves else "power samples are summed up where a counter stands still"
    values = _figures(energy_joules=joules, power_watts=watts, period_seconds=period(points))
    return Finding(subject, "ok" if moves and not failed else "problem", detail + failed, remedy, values)


def _of_power_alone(error: str) -> bool:
    return error.startswith("power: ") and "energy: " not in error


def _failed(points: list[tuple[int, int]], errors: list[str]) -> str:
    """Say how many readings failed; a few of so many in a second are nothing."""
    share = len(errors) / max(1, len(points) + len(errors))
    return f"; {share:.0%} of the readings failed: {errors[0]}" if share > MAX_ERROR_SHARE else ""


def _gpu_power(name: str, rows: list[Reading], errors: list[str]) -> Finding:
    points = [(row.t_ns, row.power_mw) for row in rows if row.power_mw is not None]
    failed = _failed(points, errors)
    if not points:
        return Finding(f"{name} power", "absent", "this GPU reports no instant power" + failed, "its counter is enough")
    watts = points[-1][1] / 1e3
    detail = f"{watts:.4g} W now, {_pace(points)}, {_SCOPES[rows[-1].mode]}{failed}"
    values = _figures(power_watts=watts, period_seconds=period(points))
    return Finding(f"{name} power", "problem" if failed else "ok", detail, "", values)


def _gpu_clocks(name: str, facts: dict[str, Any]) -> Finding:
    held = [reason for bit, reason in REASON_BITS.items() if facts.get("reasons", 0) & bit]
    shown = {"sm_mhz": "SM {} MHz", "memory_mhz": "memory {} MHz", "temperature": "{} °C"}
    shown |= {"memory_temperature": "memory {} °C", "pstate": "P{}"}
    parts = [text.format(facts[key]) for key, text in shown.items() if key in facts]
    if "limit_mw" in facts:
        parts.append(f"power limit {facts['limit_mw'] / 1000:.4g} W")
    if "reasons" in facts:
        parts.append(f"held down now by {', '.join(held)}" if held else "not held down")
    slow = [reason for reason in held if reason in SLOWDOWNS]
    remedy = "look after its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE" if slow else ""
    values = _figures(
        temperature_celsius=facts.get("temperature"),
        power_limit_watts=facts["limit_mw"] / 1000 if "limit_mw" in facts else None,
        sm_clock_hz=facts["sm_mhz"] * 1e6 if "sm_mhz" in facts else None,
        memory_clock_hz=facts["memory_mhz"] * 1e6 if "memory_mhz" in facts else None,
    )
    state = "problem" if slow else "ok" if parts else "unknown"
    return Finding(f"{name} clocks", state, ", ".join(parts) or "this GPU does not say", remedy, values)


def _processes(watch: Watch) -> Finding:
    """Say whether NVML's list of processes can be trusted: it holds ids of the host, also inside a container."""
    nameless = sum(facts.get("unknown", 0) for facts in watch.gpu_facts.values())
    if sees_all_processes():
        return Finding("GPU processes", "ok", "NVML's ids are those of this machine: others on a GPU are seen")
    listed = f"; {nameless} that it lists are not known here" if nameless else ""
    detail = f"process ids here are not those of the machine, so NVML may not list your runs as yours{listed}"
    return Finding("GPU processes", "unknown", detail, DOCKER_PIDS)


# --- CPU and memory


def _rapl(watch: Watch) -> Iterator[Finding]:
    root = Path(os.environ.get("WATTBENCH_POWERCAP") or POWERCAP)
    zones = {path: _text(path / "name") for path in sorted(root.glob("intel-rapl*:*"))}
    if watch.rapl.reason and zones and not any(zones.values()):
        detail = f"{root} lists RAPL zones that cannot be opened from here, as in a container"
        yield Finding("CPU and DRAM energy", "absent", detail, f"{DOCKER_RAPL}\n{ESTIMATE_INSTEAD}")
        return
    if watch.rapl.reason:
        yield Finding("CPU and DRAM energy", "absent", watch.rapl.reason, _rapl_remedy(watch.rapl.reason, root))
    trace = Trace(row for row in watch.rows if row.source == "rapl")
    once = {device for _, _, device in trace.devices}
    read = {row.device for row in watch.rows if row.source == "rapl"}
    not_added = []
    for path, name in zones.items():
        subject, why = f"RAPL {path.name} {name}", _why_not_added(path, name)
        if str(path) in once:
            yield _zone(subject, watch.of(str(path)))
        elif why or str(path) in read:
            not_added.append(f"{path.name} {name} ({why or 'the same counter as another package'})")
        elif not watch.rapl.reason:
            yield Finding(subject, "absent", "cannot be read", _rapl_remedy("root only", root))
    if not_added:
        yield Finding("RAPL not added", "ok", "; ".join(not_added))


def _zone(subject: str, rows: list[Reading]) -> Finding:
    points = _counter(rows)
    if not points:
        return Finding(subject, "problem", "its readings failed")
    watts = _watts(points)
    mean = f", {watts:.3g} W over {(points[-1][0] - points[0][0]) / 1e9:.2g} s" if watts is not None else ""
    joules = (rows[-1].energy_uj or 0) / 1e6
    values = _figures(energy_joules=joules, power_watts=watts, period_seconds=period(points))
    state = "ok" if changes(points) else "problem"
    return Finding(subject, state, f"{joules:,.1f} J on its counter{mean}, {_pace(points)}", "", values)


def _why_not_added(path: Path, name: str) -> str:
    if path.name.startswith("intel-rapl-mmio"):
        return "the same zone once more"
    if name == "psys":
        return "contains the packages"
    return "" if name.startswith("package") or name == "dram" else "inside its package"


def _rapl_remedy(reason: str, root: Path) -> str:
    if "root only" in reason:
        return (
            f"until the next boot: sudo chmod a+r {root}/intel-rapl:*/energy_uj\n"
            f"for good, in /etc/udev/rules.d/90-rapl.rules: {UDEV_RULE}\n{ESTIMATE_INSTEAD}"
        )
    return f"{ESTIMATE_INSTEAD}\n{DOCKER_RAPL}" if in_container() else ESTIMATE_INSTEAD


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _estimate() -> Finding:
    """Let CodeCarbon estimate once, in a process of its own: it takes settings, HOME and folder out of the one it is in."""
    subject = "energy estimate"
    try:
        version = metadata.version("codecarbon")
    except metadata.PackageNotFoundError:
        return Finding(subject, "absent", "codecarbon is not installed", "pip install codecarbon")
    command = [sys.executable, "-P", "-m", "bench.meters.estimate"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ESTIMATE_SECONDS, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        detail = f"CodeCarbon did not answer within {ESTIMATE_SECONDS:g} s"
        return Finding(subject, "problem", detail, "try again when the machine is less busy")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return Finding(subject, "problem", f"CodeCarbon's process failed: {error}")
    if said["reason"]:
        return Finding(subject, "absent", said["reason"])
    parts = [f"{part['component']} by {part['mode']} {part['power_watts']:.3g} W" for part in said["estimates"]]
    values = {f"power_watts_{part['component']}_estimated": part["power_watts"] for part in said["estimates"]}
    return Finding(subject, "ok", f"codecarbon {version}: {', '.join(parts)} (a model, labelled estimated)", "", values)


# --- software


def _torch(machine: Machine) -> Finding:
    version, cuda = torch_build()
    try:
        check_torch(machine, for_gpus=True)
        return Finding("torch", "ok", f"{version}, {f'CUDA {cuda}' if cuda else 'built for CPU'}")
    except EnvironmentProblem as error:
        what, _, remedy = str(error).partition("\n")
        return Finding("torch", "problem", what, remedy)


def _software() -> Iterator[Finding]:
    if util.find_spec("codecarbon") is None:
        yield Finding("carbon", "absent", "codecarbon ships the intensities", "pip install codecarbon")
    else:
        yield Finding("carbon", "ok", "needs a region: key `region` of the suite, --region, or WATTBENCH_REGION")
    for package in ("bench", "analytics", "app"):
        origin = getattr(util.find_spec(package), "origin", None)
        yield Finding(f"import {package}", "ok", str(Path(origin).parent) if origin else "not importable")
