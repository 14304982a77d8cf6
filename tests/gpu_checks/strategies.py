"""Checks of strategies: every shipped suite once, and the speed of a training step against a loop by hand."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.gpu_checks.jobs import ANSWER, NEEDED, absent, bench_run
from tests.gpu_checks.session import ROOT, Outcome, Skipped

SHORT = {
    "measure_steps": 4,
    "measure_seconds": 0.5,
    "warmup_steps": 2,
    "warmup_seconds": 0,
    "validation.samples": 32,
    "inference_seconds": 0.2,
    "repeats": 1,
    "idle_seconds": 0,
}
"""Values of a suite that only asks whether its configurations run."""
LEAST_SPEED, LEAST_MFU = 0.98, {"NVIDIA H100 80GB HBM3": 0.42}


def short(suite):
    """Return the text of a suite whose runs are as short as possible: whether they run is asked, not how fast."""
    from ruamel.yaml import YAML  # absent on some machines

    yaml = YAML()
    tree = yaml.load(suite.read_text())

    def shorten(value):
        if isinstance(value, dict):
            for name in list(value):
                value[name] = SHORT[name] if name in SHORT else shorten(value[name])
        elif isinstance(value, list):
            value[:] = [shorten(item) for item in value]
        return value

    tree = shorten(tree)
    tree["repeats"] = 1
    tree["defaults"] |= {"warmup_seconds": 0, "warmup_steps": 2}
    text = io.StringIO()
    yaml.dump(tree, text)
    return text.getvalue()


def suites(session, seconds):
    """Each run of each shipped suite, short and once, several suites side by side: does it end as it should?"""
    if session.no_load:
        raise Skipped(session.no_load)
    if missing := absent(NEEDED):
        raise Skipped(f"not installed: {', '.join(missing)}")
    out, known = Outcome(), session.earlier.get("SUITES") or {}
    same = known.get("driver") == session.driver
    finished = dict((known.get("figures") or {}).get("suites") or {}) if same else {}
    names = sorted(path.stem for path in (ROOT / "suites").glob("*.yaml"))
    names = [name for name in names if not name.startswith("search_")]
    left = [name for name in names if name not in finished]
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 3))) as workers:
        end = time.monotonic() + seconds
        ended = workers.map(lambda name: one_suite(name, session.gpu.index, end), left)
        finished |= {name: runs for name, runs in zip(left, ended, strict=True) if runs is not None}
    for name in names:
        runs = finished.get(name)
        if runs is None:
            out.unreached.append(name)
            out.add(f"SUITE {name}", "not done (time)")
            continue
        wrong = [run for run in runs if run["status"] not in ("ok", "skipped")]
        counts = Counter(run["status"] for run in runs)
        text = ", ".join(f"{count} {status}" for status, count in counts.items())
        out.add(f"SUITE {name}", text or "no runs", counts["ok"] > 0 and not wrong, "all ok or skipped")
        for run in wrong:
            out.add(f"  {run['label'][:60]}", f"{run['status']}: {run['message'][:90]}", False)
    out.figures = {"suites": finished}
    return out


def one_suite(name, gpu, end):
    """Run a suite in its short form; return its runs, or None if it has not ended in time."""
    if time.monotonic() >= end:
        return None
    settings = ("device_type=gpu", "idle_seconds=0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(short(ROOT / "suites" / path.name))
        try:
            done, records = bench_run(settings, end - time.monotonic() - 60, path, ("run", "--gpus", str(gpu)))
        except Skipped:
            return None
    if not records:
        message = (done.stderr.strip().splitlines() or ["no records"])[-1]
        return [{"label": name, "status": f"exit code {done.returncode}", "message": message}]
    return [
        {"label": run.spec.label, "status": str(run.status), "message": run.error.message if run.error else ""}
        for run in records
    ]


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
