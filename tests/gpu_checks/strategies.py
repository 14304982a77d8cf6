"""Checks of strategies: every shipped suite once, and the speed of a training step against a loop by hand."""

import json
import subprocess
import sys

from bench.figures.metrics import metrics
from tests.gpu_checks.jobs import ANSWER, NEEDED, absent, bench_run
from tests.gpu_checks.session import ROOT, Outcome, Skipped

LEAST_SPEED, LEAST_MFU = 0.98, {"NVIDIA H100 80GB HBM3": 0.42}


def suites(session, seconds):
    """Each run of each suite, short and once: what it took, or why it was skipped."""
    if session.no_load:
        raise Skipped(session.no_load)
    names = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
    names = [name for name in names if name != "scaling" and not name.startswith("search_")]
    out = Outcome()
    for name in names:
        settings = ("repeats=1", "idle_seconds=0", "device_type=cuda", "warmup_seconds=0.5")
        done, records = bench_run(settings, seconds / len(names), name)
        missing = [package for package in ANSWER if package in absent(ANSWER)]
        told = done.stderr.strip().splitlines()[-1:] if done.returncode not in (0, 1) and not missing else []
        out.add(f"SUITE {name}", f"{len(records)} runs {' '.join(told)}", bool(records), "some")
        for run in records:
            known = metrics(run)
            rate = known.get("samples_per_second")
            found = (
                f"{run.status}" if rate is None else f"{rate:.4g} samples/s, {known.get('joules_per_sample', 0):.3g} J"
            )
            if run.error is not None:
                found = f"{run.status}: {run.error.message[:90]}"
            out.add(f"  {run.spec.label[:60]}", found, str(run.status) in ("ok", "skipped", "out_of_memory"))
            out.figures[run.run_id] = {"status": str(run.status), "flags": run.flags} | known
    return out


def search(session, seconds):
    """A short search on the GPU: trials run through one warm node, energy is measured, there is a front."""
    if session.no_load:
        raise Skipped(session.no_load)
    if missing := absent([*NEEDED, *ANSWER, "optuna"]):
        raise Skipped(f"not installed: {', '.join(missing)}")
    out, settings = Outcome(), ("objectives=[time, energy]", "repeats=2", "idle_seconds=0")
    arguments = ("--trials", "4", "--minutes", f"{max(seconds, 60) / 60:.1f}", "--json")
    done, records = bench_run(settings, seconds, "search_cost_efficiency", ("search", *arguments))
    out.add("SEARCH", f"exit code {done.returncode}, {len(records)} runs", done.returncode == 0, "0")
    if done.returncode:
        out.figures["stderr"] = done.stderr[-2000:]
        return out
    told = json.loads(done.stdout)
    ran = [trial for trial in told["trials"] if trial["state"] == "complete"]
    front = [trial["params"] for trial in ran if trial["front"]]
    out.add("SEARCH trials", f"{len(ran)} complete, {len(front)} on the front", bool(front), "a front")
    spent = told["spent"]
    text = "unknown" if spent["joules"] is None else f"{spent['joules']:.4g} J"
    out.add("SEARCH energy", text, spent["joules"] is not None and not spent["joules_estimated"], "measured")
    out.figures = {"spent": spent, "trials": told["trials"], "sentences": told["sentences"]}
    return out


def speed(session, seconds):
    """GPT-2 124M, bf16, compiled, fused AdamW: our step against a loop by hand, at the largest batch that fits."""
    if session.no_load:
        raise Skipped(session.no_load)
    out = Outcome()
    command = [sys.executable, "-m", "tests.benchmarks.loop", "--device", "cuda", "--json", "--steps", "4"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        raise Skipped(f"not done in {seconds + 60:.0f} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        out.add("LOOP", f"exit code {done.returncode}: {done.stderr.strip()[-200:]}", False, "figures")
        return out
    found = json.loads(lines[-1])
    ours = found["wattbench"]
    text = f"{1 / ours['ratio']:.3f} of the speed by hand, batch {ours['batch']}, {1e3 * ours['seconds']:.1f} ms a step"
    out.add("LOOP speed", text, 1 / ours["ratio"] >= LEAST_SPEED, f"at least {LEAST_SPEED}")
    mfu, least = ours.get("model_flops_utilization"), LEAST_MFU.get(session.gpu.name)
    told = "absent: no peak for this GPU" if mfu is None else f"{mfu:.3f}"
    out.add("LOOP MFU", told, None if mfu is None or least is None else mfu >= least, f"at least {least}")
    out.figures = found
    return out
