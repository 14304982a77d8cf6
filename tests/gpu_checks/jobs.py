"""Checks of whole jobs: perturbation, ranks that share a GPU, the main suite, two GPUs."""

import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path

from bench.figures.metrics import metrics, split_energy
from bench.meters.meter import INTERVAL
from bench.record import RunRecord
from tests.gpu_checks.figures import abba
from tests.gpu_checks.session import ROOT, Load, Nvml, Outcome, Skipped, job, record

BLOCKS = 10
NEEDED = ("transformers", "pyarrow", "click", "ruamel", "numpy")
"""What `bench run` cannot do without; MLflow, pandas, SciPy and Rich are for the store and the printed answer only."""
ANSWER = ("pandas", "scipy", "rich")


def absent(names):
    return [name for name in names if util.find_spec(name) is None]


def v8(session, seconds):
    """Training throughput with and without the sidecar, at its usual pace and at 10 ms."""
    if session.no_load:
        raise Skipped(session.no_load)
    out = Outcome()
    for interval in (INTERVAL, 0.01):
        options = {"segment_seconds": seconds / 2 / (4 * BLOCKS), "blocks": BLOCKS, "interval": interval}
        found = job(session.uuid, "perturbation", seconds * 2 + 180, uuid=session.uuid, **options)
        name = f"V8 slowdown at {interval * 1e3:.0f} ms"
        if found["error"] or "nvml" not in found["live"]:
            out.add(name, f"the sidecar did not read: {found['error'] or found['live']}", False)
            continue
        ratio, low, high = abba(found["times"])
        text = f"{ratio - 1:+.3%} ({low - 1:+.3%} to {high - 1:+.3%}), {BLOCKS} x ABBA of {found['steps']} steps"
        fine = high - 1 <= 0.005
        judged = interval == INTERVAL
        out.add(name, text, fine if judged else None, "upper bound 0.5 %" if judged else "shown only")
        out.figures[f"{interval * 1e3:.0f}_ms"] = {
            "ratio": ratio,
            "low": low,
            "high": high,
            "segment_seconds": [round(t, 6) for t in found["times"]],
        }
    return out


def v12(session, seconds):
    """Two gloo ranks on one GPU: its energy is counted once."""
    if session.no_load:
        raise Skipped(session.no_load)
    out = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "meeting")
        ranks = [Load(session.uuid, "rank", number=number, file=file) for number in range(2)]
        try:
            for load in ranks:
                load.wait_ready()
            with Nvml(session.uuid) as nvml:
                e0, began = nvml.counter(), time.monotonic()
                stretch = record(session.uuid, seconds, devices=[session.uuid, session.uuid])
                watts = (nvml.counter() - e0) / 1e3 / (time.monotonic() - began)
            for load in ranks:
                load.process.stdin.close()
            steps = [load.answer(60)["steps"] for load in ranks]
        finally:
            for load in ranks:
                load.stop()
    hardware, _ = split_energy(stretch.trace.energy(stretch.t0, stretch.t1))
    total = sum(r.power_watts_mean for r in hardware if r.component == "gpu")
    devices = [r.device for r in hardware if r.component == "gpu"]
    out.add(
        "V12 ranks that trained", f"{steps[0]} and {steps[1]} steps", steps[0] == steps[1] > 0, "the same, more than 0"
    )
    out.add("V12 readings of the GPU", f"{len(devices)}: {', '.join(devices)}", devices == [session.uuid], "one")
    text = f"{total:.1f} W, raw counter {watts:.1f} W"
    out.add("V12 energy of two ranks", text, 0.9 < total / watts < 1.1, "within 10 %, not twice")
    out.add("V12 how", "two processes, sidecar given the UUID twice, Trace.energy; not through bench")
    out.figures = {"watts": total, "counter_watts": watts, "steps": steps}
    return out


def bench_run(settings, seconds, suite="scaling", verb=("run",)):
    """Run a suite, or another verb on its file, through the command line. Returns the process and the records."""
    if missing := absent(NEEDED):
        raise Skipped(f"not installed: {', '.join(missing)}")
    suite = suite if isinstance(suite, Path) else ROOT / "suites" / f"{suite}.yaml"
    command = [sys.executable, "-P", "-c", "from bench.cli import main; main()", verb[0], str(suite), *verb[1:]]
    for setting in settings:
        command += ["--set", setting]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "WATTBENCH_"))}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=seconds + 60
            )
        except subprocess.TimeoutExpired:
            raise Skipped(f"not done in {seconds + 60:.0f} s") from None
        found = [RunRecord.model_validate_json(p.read_text()) for p in Path(folder).glob("runs/*/*/*/record.json")]
    return done, sorted(found, key=lambda r: str(r.spec.precision))


def _ended(out, name, done, records):
    """Judge the exit code: where the packages that print the answer are absent, that alone may have failed."""
    missing = absent(ANSWER)
    excused = re.search(rf"^ModuleNotFoundError: No module named '({'|'.join(ANSWER)})", done.stderr, re.MULTILINE)
    text = f"exit code {done.returncode}, {len(records)} runs"
    if excused:
        text += f"; the answer was not printed, not installed: {', '.join(missing)}"
    out.add(name, text, bool(records) and (done.returncode == 0 or excused is not None), "0")
    if done.returncode and not excused:
        out.figures["stderr"] = done.stderr[-2000:]


def main_job(session, seconds):
    """The main job, one run a precision: ranks forked warm can use the device, energy is measured, MFU is possible."""
    out = Outcome()
    settings = ("devices=1", "repeats=1", "workload_args.preset=gpt2-124m", "measure_seconds=5", "device_type=gpu")
    if session.no_load:
        raise Skipped(session.no_load)
    done, records = bench_run(settings, seconds)
    _ended(out, "RUN suites/scaling.yaml", done, records)
    for run in records:
        name = f"RUN {run.spec.precision}"
        if run.measurement is None:
            why = f": {run.error.message[:80]}" if run.error else ""
            out.add(name, f"{run.status}{why}", run.status == "skipped", "a measurement")
            continue
        _judge(out, name, run)
    return out


def _judge(out, name, run):
    known = metrics(run)
    first, last = known["loss_first"], known["loss_last"]
    out.add(f"{name}: loss", f"{first:.2f} -> {last:.2f}", last < first, "falls")
    joules = known.get("joules_per_token")
    text = f"{known['tokens_per_second']:.4g} tokens/s, {'no energy' if joules is None else f'{joules:.3g} J/token'}"
    out.add(f"{name}: energy", text, joules is not None, "measured")
    share = sum(run.measurement.step_seconds) / run.measurement.window_seconds
    out.add(f"{name}: steps / window", f"{share:.4f}", 0.97 <= share <= 1.01, "0.97 to 1.01")
    mfu = known.get("model_flops_utilization")
    text = "absent: no peak for this GPU" if mfu is None else f"{mfu:.3f}"
    out.add(f"{name}: MFU", text, None if mfu is None else 0.01 < mfu < 1, "0.01 to 1")
    kept = ("tokens_per_second", "joules_per_token", "model_flops_utilization", "power_watts")
    out.figures[name.removeprefix("RUN ")] = {k: known[k] for k in kept if k in known} | {"flags": run.flags}


def two_gpus(session, seconds):
    """DDP on two GPUs: both are measured, each by its UUID."""
    free = [gpu.uuid for gpu in session.gpus if not gpu.used_by and not gpu.mig]
    if len(free) < 2:
        raise Skipped("not verified: one GPU")
    if session.no_load:
        raise Skipped(session.no_load)
    out = Outcome()
    settings = ("devices=2", "repeats=1", "precision=[bf16]", "workload_args.preset=gpt2-124m", "measure_seconds=5")
    before = _counters(free)
    done, records = bench_run((*settings, "device_type=gpu"), seconds)
    raw = {uuid: e - before[uuid] for uuid, e in _counters(free).items()}
    _ended(out, "DDP on two GPUs", done, records)
    for run in records:
        if run.measurement is None:
            out.add("DDP run", f"{run.status}: {run.error.message[:80] if run.error else ''}", False, "a measurement")
            continue
        used = {r.device: r.energy_joules for r in run.energy if r.component == "gpu" and r.source == "nvml"}
        expected = set(run.devices)
        text = ", ".join(f"{uuid[:12]} {joules:.0f} J" for uuid, joules in used.items())
        fine = set(used) == expected and len(expected) == 2
        out.add("DDP energy by UUID", text or "none", fine, "both GPUs of the ranks, once each")
        inside = all(0 < used[uuid] <= raw[uuid] / 1e3 for uuid in used)
        out.add("DDP energy and raw counters", f"{sum(raw.values()) / 1e3:.0f} J around the job", inside, "not more")
        out.figures["joules"] = used
    return out


def _counters(uuids):
    found = {}
    for uuid in uuids:
        with Nvml(uuid) as nvml:
            found[uuid] = nvml.counter()
    return found
