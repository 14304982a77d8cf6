"""What the checks share: the GPU, raw NVML, loads in child processes, and recorded stretches."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from bench.figures.sensors import Check
from bench.meters.sidecar import Sidecar
from bench.meters.trace import Trace
from bench.schema import Gpu
from tests.gpu_checks.figures import hold_mean

ROOT = Path(__file__).parent.parent.parent
COUNTER, AVERAGE, INSTANT = 83, 185, 186
START_SECONDS = 120
"""A load may take so long to begin: torch from a cold disk, the first CUDA context."""


class Skipped(Exception):
    """A check cannot be done here; the message says why."""


class LoadFailed(Exception):
    """A load that should work does not; the message is the end of its log."""


@dataclass
class Outcome:
    """Lines of the table, and the figures that are kept in the results."""

    lines: list[Check] = field(default_factory=list)
    figures: dict = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    """Parts that did not fit into the time."""

    def add(self, check, found, ok=None, expected=""):
        self.lines.append(Check(check=check, found=found, expected=expected, ok=ok))


class Nvml:
    """Raw access to one GPU. `fields` gives numbers, None for those that fail; `ask` None for what is not supported."""

    def __init__(self, uuid):
        import pynvml

        self.module = pynvml
        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.errors = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.module.nvmlShutdown()

    def raw(self, *wanted):
        return self.module.nvmlDeviceGetFieldValues(self.handle, list(wanted))

    def fields(self, *wanted):
        names = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
        try:
            values = self.raw(*wanted)
        except self.module.NVMLError:
            self.errors += 1
            return [None] * len(wanted)
        self.errors += any(value.nvmlReturn for value in values)
        return [None if v.nvmlReturn else getattr(v.value, names[v.valueType]) for v in values]

    def counter(self):
        """Return the energy counter in mJ, by field or by its own function."""
        (value,) = self.fields(COUNTER)
        return value if value is not None else self.ask("nvmlDeviceGetTotalEnergyConsumption")

    def ask(self, function, *arguments):
        try:
            return getattr(self.module, function)(self.handle, *arguments)
        except Exception:
            return None

    def watch(self, seconds, wanted, pause=0.001):
        """Read fields as fast as it goes: (middle of the call in ns, values) and the seconds of every call."""
        rows, took, end = [], [], time.monotonic() + seconds
        while time.monotonic() < end:
            before = time.monotonic_ns()
            values = self.fields(*wanted)
            after = time.monotonic_ns()
            rows.append(((before + after) // 2, values))
            took.append((after - before) / 1e9)
            time.sleep(pause)
        return rows, took


class Load:
    """A child process that works on the GPU between `with` and its end. Raises Skipped where there is no CUDA, LoadFailed."""

    def __init__(self, visible, kind, /, **options):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible} if visible else dict(os.environ)
        command = [sys.executable, "-m", "tests.gpu_checks.load", kind, json.dumps(options)]
        self.kind, self._pending = kind, b""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the load
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT, env=environment
        )

    def __enter__(self):
        return self.wait_ready()

    def wait_ready(self):
        line = self.line(START_SECONDS)
        if line != "ready":
            problem = self._problem(line)
            self.stop()
            raise problem
        return self

    def line(self, seconds):
        """Return the next line that the child says, None when it ends or is silent for so long."""
        end, output = time.monotonic() + seconds, self.process.stdout
        while b"\n" not in self._pending:
            data = b""
            if select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
                data = os.read(output.fileno(), 1 << 20)
            if not data:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace")

    def line_waits(self):
        """Whether the child has said something that was not read yet."""
        return b"\n" in self._pending or bool(select.select([self.process.stdout], [], [], 0)[0])

    def answer(self, seconds):
        """Return the next line as JSON. Raises Skipped with the reason that the child gives, or LoadFailed."""
        line = self.line(seconds)
        if not line or not line.startswith("{") or line.startswith('{"reason"'):
            raise self._problem(line)
        return json.loads(line)

    def _problem(self, line):
        if line and line.startswith('{"reason"'):
            return Skipped(json.loads(line)["reason"])
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()
        return LoadFailed(f"the load {self.kind} failed: {tail[-1][:200] if tail else line or 'it says nothing'}")

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()

    def __exit__(self, *_):
        self.stop()


@dataclass
class Stretch:
    """A recorded time: the sidecar's trace, its window, AVERAGE as (ns, mW), and the sidecar's share of a core."""

    trace: Trace
    t0: int
    t1: int
    averages: list
    sidecar_share: float
    error: str | None
    driver_samples: dict | None

    def only(self, what):
        """Return the trace with nothing but counter (`energy_uj`) or power (`power_mw`) of the GPU."""
        other = {"energy_uj": "power_mw", "power_mw": "energy_uj"}[what]
        rows = [row for row in self.trace.rows if row.component == "gpu" and getattr(row, what) is not None]
        return Trace(replace(row, **{other: None}) for row in rows)

    def readings(self, uuid):
        """Return (ns, counter in µJ) of a GPU."""
        return [(r.t_ns, r.energy_uj) for r in self.trace.rows if r.device == uuid and r.energy_uj is not None]

    def energy(self, what="energy_uj"):
        """Return the reading of the window by counter or by power; None where there is none."""
        found = self.only(what).energy(self.t0, self.t1)
        return found[0] if found else None


@dataclass
class Session:
    """The machine as it is checked. `no_load` says why nothing can work on the GPU here."""

    gpu: Gpu
    gpus: list[Gpu]
    driver: str
    no_load: str | None
    deadline: float
    earlier: dict = field(default_factory=dict)
    stretches: dict = field(default_factory=dict)

    @property
    def uuid(self):
        return self.gpu.uuid

    def load(self, kind, **options):
        """Return a load to use in `with`; `idle` is none. Raises Skipped where there can be none."""
        if kind == "idle":
            return nullcontext()
        if self.no_load:
            raise Skipped(self.no_load)
        return Load(self.uuid, kind, **options)

    def remaining(self):
        return self.deadline - time.monotonic()

    def record(self, kind, seconds, settle=3.0, devices=None):
        """Record a stretch under a load, and keep it for other checks."""
        with self.load(kind):
            time.sleep(min(settle, seconds / 4) if kind != "idle" else 0.2)
            self.stretches[kind] = stretch = record(self.uuid, seconds, devices)
        return stretch

    def limit_watts(self):
        with Nvml(self.uuid) as nvml:
            milliwatts = nvml.ask("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1e3


def record(uuid, seconds, devices=None):
    """Record the GPU by the sidecar, as a run does, and AVERAGE ten times a second."""
    averages = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Sidecar(["nvml"], gpus=devices or [uuid]) as sidecar,
        Nvml(uuid) as nvml,
    ):
        path = Path(folder) / "meters.jsonl"
        path.touch()
        sidecar.open(path)
        time.sleep(0.3)
        process = psutil.Process(sidecar.pid) if sidecar.pid else psutil.Process()
        before, wall_us, t0 = sum(process.cpu_times()[:2]), time.time_ns() // 1000, time.monotonic_ns()
        while time.monotonic_ns() < t0 + seconds * 1e9:
            if (value := nvml.fields((AVERAGE, 0))[0]) is not None:
                averages.append((time.monotonic_ns(), value))
            time.sleep(min(0.1, max(0.0, seconds - (time.monotonic_ns() - t0) / 1e9)))
        t1, after = time.monotonic_ns(), sum(process.cpu_times()[:2])
        samples = driver_samples(nvml, wall_us)
        time.sleep(0.3)
        sidecar.close()
        trace = Trace.read(path)
        return Stretch(trace, t0, t1, averages, (after - before) / ((t1 - t0) / 1e9), sidecar.error, samples)


def driver_samples(nvml, since_us):
    """Return count, covered seconds and mean watts of the driver's own buffer of power samples; None without one."""
    answer = nvml.ask("nvmlDeviceGetSamples", nvml.module.NVML_TOTAL_POWER_SAMPLES, since_us)
    samples = [(s.timeStamp, s.sampleValue.uiVal) for s in answer[1]] if answer else []
    samples = sorted((t, value) for t, value in samples if t > since_us)
    if len(samples) < 2:
        return None
    mean = hold_mean(samples, samples[0][0], samples[-1][0])
    return {
        "n": len(samples),
        "seconds": round((samples[-1][0] - samples[0][0]) / 1e6, 3),
        "watts": round((mean or 0) / 1e3, 2),
    }


def job(visible, kind, seconds, /, **options):
    """Let a child do a piece of work that ends by itself; return its answer. Raises Skipped with its reason."""
    load = Load(visible, kind, **options)
    try:
        return load.answer(seconds)
    finally:
        load.stop()
