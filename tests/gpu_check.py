"""Check meters and runs on a machine with a real NVIDIA GPU: `python -m tests.gpu_check [--seconds 20]`.

Prints what was checked, what was found and whether it is as expected; ends with 0 if all of it is. Agreement between
counter and power shows that the software is right: both come from one sensor, so it says nothing about its gain.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import psutil

from bench.meters.nvml import NvmlMeter, list_gpus
from bench.meters.sidecar import Sidecar
from bench.meters.trace import Row, Trace
from bench.metrics import metrics
from bench.schema import RunRecord

_failed: list[str] = []


def report(check: str, found: str, ok: bool | None = None, expected: str = "") -> None:
    """Print a line of the table; `ok` is None for what is only shown."""
    verdict = {None: "", True: "ok", False: "NOT AS EXPECTED"}[ok]
    print(f"{check:<34} {found:<44} {expected:<30} {verdict}", flush=True)
    if ok is False:
        _failed.append(check)


def check_inventory() -> str:
    """V1: what is here. Returns the UUID of the GPU that is checked."""
    gpus, driver, _ = list_gpus()
    report("V1 driver", str(driver), driver is not None)
    for gpu in gpus:
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "memory unknown"
        busy = f", used by {', '.join(gpu.used_by)}" if gpu.used_by else ""
        report(f"V1 GPU {gpu.index}", f"{gpu.name}, {memory}{busy}", not gpu.used_by and not gpu.mig, "free, no MIG")
    meter = NvmlMeter([gpus[0].uuid])
    energies, powers = ([getattr(row, name) for row in meter.read()] for name in ("energy_uj", "power_mw"))
    report("V1 energy counter, instant power", f"{energies} µJ, {powers} mW", all(energies + powers))
    meter.close()
    return gpus[0].uuid


def check_counter(uuid: str, seconds: float) -> None:
    """V2 and V3: read as fast as it goes; period and step of the counter, latency of a read."""
    meter = NvmlMeter([uuid])
    rows: list[Row] = []
    latencies = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        rows += meter.read()
        latencies.append(time.monotonic() - began)
        time.sleep(0.001)
    meter.close()
    counter = [(row.t_ns, row.energy_uj) for row in rows if row.energy_uj is not None]
    changes = [b for a, b in pairwise(counter) if a[1] != b[1]]
    falls = sum(b[1] < a[1] for a, b in pairwise(counter))
    report("V10 counter never falls", f"{falls} falls in {len(counter)} reads", falls == 0, "0 falls")
    if len(changes) > 2:
        periods = [(b[0] - a[0]) / 1e6 for a, b in pairwise(changes)]
        steps = [(b[1] - a[1]) / 1e6 for a, b in pairwise(changes)]
        low, high = quantiles(periods, n=20)[0], quantiles(periods, n=20)[-1]
        found = f"median {median(periods):.1f} ms (5-95 %: {low:.1f} to {high:.1f})"
        report("V2 period of the counter", found, 10 < median(periods) < 200, "10 to 200 ms, about 100")
        report("V2 step of the counter", f"median {median(steps):.2f} J")
    p99 = quantiles(latencies, n=100)[-1]
    report(
        "V3 latency of a read",
        f"median {median(latencies) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms",
        p99 < 0.05,
        "p99 < 50 ms",
    )
    report(
        "V3 failed reads", f"{meter.errors} of {len(latencies)}", meter.errors <= len(latencies) / 100, "at most 1 %"
    )


def measure(uuid: str, seconds: float, load: Callable[[], None] | None) -> tuple[Trace, int, int, float]:
    """Record a stretch by the sidecar, as a run does. Returns its trace, its edges and the sidecar's CPU share."""
    stop = threading.Event()

    def work() -> None:
        while load is not None and not stop.is_set():
            load()

    worker = threading.Thread(target=work)
    with tempfile.TemporaryDirectory() as folder, Sidecar(["nvml", "rapl"], gpus=[uuid]) as sidecar:
        path = Path(folder) / "meters.jsonl"
        worker.start()
        time.sleep(2.0)
        sidecar.open(path)
        process = psutil.Process(sidecar.pid)
        before, t0 = sum(process.cpu_times()[:2]), time.monotonic_ns()
        time.sleep(seconds)
        t1, after = time.monotonic_ns(), sum(process.cpu_times()[:2])
        time.sleep(0.3)
        sidecar.close()
        stop.set()
        worker.join()
        report("sidecar", sidecar.error or "no error", sidecar.error is None)
        return Trace.read(path), t0, t1, (after - before) / ((t1 - t0) / 1e9)


def only(trace: Trace, what: str) -> Trace:
    """Return the trace with nothing but counter (`energy_uj`) or power (`power_mw`) of the GPU."""
    other = {"energy_uj": "power_mw", "power_mw": "energy_uj"}[what]
    rows = [row for row in trace.rows if row.component == "gpu" and getattr(row, what) is not None]
    return Trace(replace(row, **{other: None}) for row in rows)


def check_energy(name: str, uuid: str, seconds: float, load: Callable[[], None] | None, limit_watts: float) -> None:
    """V4, V6 and V10 over one stretch, and the sidecar's own cost (V3)."""
    trace, t0, t1, share = measure(uuid, seconds, load)
    by_counter, by_power = only(trace, "energy_uj").energy(t0, t1), only(trace, "power_mw").energy(t0, t1)
    if not by_counter or not by_power:
        report(f"V4 {name}", "no energy by counter or by power", False)
        return
    counter, power = by_counter[0], by_power[0]
    found = f"{counter.energy_joules:.1f} J counter, {power.energy_joules:.1f} J integral"
    difference = abs(counter.energy_joules - power.energy_joules) / counter.energy_joules
    report(f"V4 {name}: agreement", f"{found}: {difference:.2%}", difference <= 0.02, "at most 2 %")
    edges = [*range(t0, t1 - 10**9, 2 * 10**9), t1]
    parts = [reading for a, b in pairwise(edges) for reading in only(trace, "energy_uj").energy(a, b)]
    total = sum(round(reading.energy_joules * 1e6) for reading in parts)
    error = total - round(counter.energy_joules * 1e6)
    report(
        f"V6 {name}: sum of {len(parts)} windows",
        f"{error} µJ off",
        error == 0 and len(parts) == len(edges) - 1,
        "0 µJ",
    )
    watts = counter.power_watts_mean
    report(
        f"V10 {name}: mean power",
        f"{watts:.1f} W",
        0 < watts <= 1.02 * limit_watts,
        f"at most 1.02 x {limit_watts:.0f} W",
    )
    bound = counter.uncertainty_joules or 0.0
    report(f"{name}: reading", f"{counter.provenance}, ±{bound:.1f} J at the edges, flags {counter.flags or 'none'}")
    report(f"V3 {name}: sidecar", f"{share:.2%} of a core", share < 0.01, "below 1 %")


def check_runs(settings: tuple[str, ...]) -> None:
    """The main job, one run a precision: ranks forked warm can use the device, energy is measured, MFU is possible."""
    suite = Path(__file__).parent.parent / "suites" / "scaling.yaml"
    command = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "run", str(suite)]
    for setting in ("devices=1", "repeats=1", *settings):
        command += ["--set", setting]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        found = [RunRecord.model_validate_json(p.read_text()) for p in Path(folder).glob("runs/*/*/*/record.json")]
    report(
        "suites/scaling.yaml",
        f"exit code {done.returncode}, {len(found)} runs",
        done.returncode == 0 and len(found) > 0,
    )
    if done.returncode:
        print(done.stderr[-2000:])
    for record in sorted(found, key=lambda r: str(r.spec.precision)):
        name = f"run {record.spec.precision} on {record.spec.device_type}"
        if record.measurement is None:
            report(
                name,
                f"{record.status}: {record.error.message[:80] if record.error else ''}",
                record.status == "skipped",
            )
            continue
        known = metrics(record)
        report(
            f"{name}: loss",
            f"{known['loss_first']:.2f} -> {known['loss_last']:.2f}",
            known["loss_last"] < known["loss_first"],
        )
        figures = (
            f"{known['tokens_per_second']:.4g} tokens/s, {known.get('joules_per_token', float('nan')):.3g} J/token"
        )
        report(f"{name}: energy", figures, "joules_per_token" in known or record.spec.device_type == "cpu", "measured")
        steps = sum(record.measurement.step_seconds) / record.measurement.window_seconds
        report(f"{name}: steps / window", f"{steps:.4f}", 0.97 <= steps <= 1.01, "0.97 to 1.01")
        share = known.get("model_flops_utilization")
        report(
            f"{name}: MFU",
            "absent" if share is None else f"{share:.3f}",
            share is None or 0.01 < share < 1,
            "0.01 to 1",
        )


def gemm() -> Callable[[], None] | None:
    """Return a bf16 load for the GPU, or None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def load() -> None:
        for _ in range(10):
            torch.mm(a, a)
        torch.cuda.synchronize()

    return load


def power_limit(uuid: str) -> float:
    """Return the enforced power limit in watts."""
    import pynvml

    pynvml.nvmlInit()
    limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    pynvml.nvmlShutdown()
    return float(limit / 1e3)


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each stretch")
    seconds = parser.parse_args().seconds
    gpus, _, reason = list_gpus()
    if not gpus:
        print(f"Nothing was checked: {reason}.")
        return 1
    uuid = check_inventory()
    limit = power_limit(uuid)
    check_counter(uuid, seconds)
    # Before this process itself uses the GPU: then it would be taken for somebody else's.
    check_runs(("workload_args.preset=gpt2-124m", "measure_seconds=5", "device_type=cuda"))
    check_energy("idle", uuid, seconds, None, limit)
    load = gemm()
    if load is None:
        report("V4 bf16 GEMM", "left out: no torch with CUDA here")
    else:
        check_energy("bf16 GEMM", uuid, seconds, load, limit)
    print(f"{len(_failed)} not as expected: {', '.join(_failed)}" if _failed else "All as expected.")
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
