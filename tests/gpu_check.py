"""Check meters and runs on a machine with a real NVIDIA GPU: `python -m tests.gpu_check [--only V4,V8] [--seconds 540]`.

Does the checks that are missing in the results folder, in order of importance, and keeps the results of each at once:
what does not fit into the time is done by the next call. Prints what was checked, what was found and whether it is as
expected; ends with 0 if all that was done is. When V2, V4, V6 and V10 are there, they are kept as the sensor check of this
GPU's sensor (`bench.figures.sensors`). Agreement between counter and power shows that the software is right: both come from
one sensor, so it says nothing about its gain.
"""

import argparse
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import sensors
from bench.figures.sensors import REQUIRED, Check
from bench.files import read_json, write_json
from bench.machine.environment import commit, torch_build
from bench.meters.nvml import list_gpus
from tests.gpu_checks import dynamics, jobs, sensor, strategies
from tests.gpu_checks.figures import plan
from tests.gpu_checks.session import ROOT, Outcome, Session, Skipped

LOAD_SECONDS = 12.0
"""Start of a load: torch, CUDA, first kernels."""
OTHER_SECONDS = 1.5
"""Start and end of whatever else a check needs."""


@dataclass(frozen=True)
class Spec:
    """A check: seconds of measuring, as specified and at least, and how many loads it starts.

    `without` is its share of the time where nothing can work on the GPU; 0: then it is skipped at once. `shares` are
    checks whose stretches it looks at.
    """

    title: str
    function: object
    full: float
    least: float
    loads: int = 0
    without: float = 0.0
    shares: tuple = ()


CHECKS = {
    "V1": Spec("inventory", sensor.v1, 1, 1, without=1),
    "V2": Spec("counter period", sensor.v2, 20, 2, without=1),
    "V4": Spec("agreement", sensor.v4, 300, 30, 3, 0.1),
    "V6": Spec("additivity", sensor.v6, 120, 5, 1, 1, ("V4",)),
    "V10": Spec("plausibility", sensor.v10, 120, 5, 1, 1, ("V4", "V6")),
    "V3": Spec("latency and cost of reading", sensor.v3, 40, 20, 1, 0.5),
    "V5": Spec("part-time sampling", dynamics.v5, 340, 51, 1),
    "V8": Spec("perturbation", jobs.v8, 320, 80, 2),
    "RUN": Spec("main job", jobs.main_job, 120, 90),
    "DDP": Spec("two GPUs", jobs.two_gpus, 90, 60),
    "V9": Spec("step response", dynamics.v9, 16, 8, 1),
    "V12": Spec("two ranks on a GPU", jobs.v12, 20, 6, 2),
    "V7": Spec("repeatability", sensor.v7, 235, 35, 1),
    "LOOP": Spec("speed of a step", strategies.speed, 150, 100),
    "SEARCH": Spec("a short search", strategies.search, 150, 100),
    "SUITES": Spec("every strategy", strategies.suites, 600, 240),
}
OF_A_BOARD = ("V1", *REQUIRED)
"""What is found out about one board; the rest holds for all of a model and driver."""
SITE = "V15", "skipped: needs a site meter (PDU, Redfish, IPMI)"


def show(check, found, expected="", verdict=""):
    print(f"{check:<34} {found:<56} {expected:<36} {verdict}".rstrip(), flush=True)


def costs(names, session):
    """Return (least, full) seconds of checks, starts included."""
    found = {}
    for name in names:
        spec = CHECKS[name]
        if session.no_load:
            least, full, starts = spec.least * spec.without, spec.full * spec.without, 0
        else:
            least, full, starts = spec.least, spec.full, spec.loads
        if name in ("DDP",) and len(session.gpus) < 2:
            least, full = 0.0, 0.0
        if spec.shares and (session.stretches or any(other in names for other in spec.shares)):
            least, full, starts = 0.0, 0.0, 0
        overhead = starts * LOAD_SECONDS + (OTHER_SECONDS if full else 0.0)
        found[name] = (least + overhead, full + overhead)
    return found


def clean(value):
    """Return a value that JSON can hold: what is not finite is None."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def do(name, session, seconds):
    """Do a check and return its entry in the results. Whatever goes wrong in it is an entry too."""
    began, spec = time.monotonic(), CHECKS[name]
    entry = {"title": spec.title, "uuid": session.uuid, "commit": commit(), "date": datetime.now(UTC).isoformat()}
    try:
        outcome, state = spec.function(session, seconds), "done"
    except Skipped as reason:
        outcome, state = Outcome([Check(check=f"{name} {spec.title}", found=f"skipped: {reason}")]), "skipped"
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        outcome, state = Outcome([Check(check=f"{name} {spec.title}", found=message[:300], ok=False)]), "error"
    entry |= {"state": state, "seconds": round(seconds, 1), "wall_seconds": round(time.monotonic() - began, 1)}
    return entry | {"lines": [line.model_dump() for line in outcome.lines], "figures": clean(outcome.figures)}


def overhead(name, session):
    """Return the seconds of a check's plan that it does not measure in."""
    spec = CHECKS[name]
    least, _ = costs([name], session)[name]
    return max(0.0, least - spec.least * (spec.without if session.no_load else 1.0))


def is_missing(entry, name, uuid):
    """Whether a check is still to be done: never, in vain, or on another board where that matters."""
    return entry is None or entry["state"] != "done" or (name in OF_A_BOARD and entry["uuid"] != uuid)


def show_entry(entry, earlier):
    verdicts = {True: "ok", False: "NOT AS EXPECTED", None: ""}
    for line in entry["lines"]:
        undone = line["ok"] is None and line["found"].startswith("not done")
        verdict = "skipped" if entry["state"] == "skipped" else "not done" if undone else verdicts[line["ok"]]
        show(line["check"], line["found"], line["expected"], f"{verdict} (earlier)" if earlier else verdict)


def validate(session, checks):
    """Keep what is known of this board's sensor, once the required checks are there."""
    here = {n: e for n, e in checks.items() if e["state"] == "done" and e["uuid"] == session.uuid}
    if not set(REQUIRED) <= set(here):
        return None
    lines = [Check.model_validate(line) for entry in here.values() for line in entry["lines"]]
    if set(here["V4"]["figures"]) <= {"idle"}:  # an idle GPU shows little: V4 counts when it was done under load
        lines = [
            line.model_copy(update={"ok": line.ok and None}) if line.check.startswith("V4 ") else line for line in lines
        ]
    facts = {f"{kind}_difference": figures["instant_difference"] for kind, figures in here["V4"]["figures"].items()}
    for name, rises in here.get("V9", {}).get("figures", {}).items():
        facts[name] = sorted(rises)[len(rises) // 2]
    return sensors.save_check(
        session.gpu,
        session.driver,
        lines,
        commit=commit(),
        date=min(datetime.fromisoformat(here[name]["date"]) for name in REQUIRED),
        counter_period_seconds=here["V2"]["figures"].get("counter_period_seconds"),
        counter_continuous=here.get("V5", {}).get("figures", {}).get("counter_continuous"),
        facts=facts,
    )


def options():
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--only", help=f"checks, separated by commas: {', '.join(CHECKS)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="time for all checks together")
    parser.add_argument("--results", type=Path, default=ROOT / "tests" / "gpu_results", help="folder of the results")
    parser.add_argument("--no-resume", action="store_true", help="do checks again that were done before")
    given = parser.parse_args()
    given.names = [name.strip().upper() for name in given.only.split(",")] if given.only else list(CHECKS)
    if unknown := [name for name in given.names if name not in CHECKS]:
        parser.error(f"unknown check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    given.names = [name for name in CHECKS if name in given.names]
    return given


def why_no_load():
    """Return why nothing can work on the GPU here; None where torch is built for CUDA."""
    version, cuda = torch_build()
    if version is None:
        return "torch is not installed"
    return None if cuda else f"no torch with CUDA here (torch {version})"


def run(given, session, path):
    """Do what is missing and fits, keep it, print all; return the entries of the checks that were asked for."""
    known = read_json(path) or {}
    checks = known.get("checks", {}) if not given.no_resume or given.only else {}
    again = set(given.names) if given.no_resume else set()
    missing = [n for n in given.names if n in again or is_missing(checks.get(n), n, session.uuid)]
    session.earlier, entries = checks, {}
    for name in given.names:
        if name not in missing:
            entries[name] = checks[name]
            show_entry(checks[name], earlier=True)
            continue
        fits = plan(costs(missing, session), max(0.0, session.remaining()))  # what costs nothing always fits
        missing.remove(name)
        if name not in fits:
            show(f"{name} {CHECKS[name].title}", "not done (time)", "", "not done")
            continue
        seconds = max(fits[name] - overhead(name, session), 0.0)
        checks[name] = entries[name] = do(name, session, seconds)
        show_entry(entries[name], earlier=False)
        write_json(path, {"gpu": session.gpu.name, "driver": session.driver, "checks": checks})
    if not given.only:
        show(*SITE, "", "skipped")
    return entries, checks


def main():
    """Run the checks that are asked for."""
    given = options()
    began = time.monotonic()
    gpus, driver, reason = list_gpus()
    if not gpus:
        print(f"Nothing was checked: {reason}.")
        return 1
    # Children find the source tree, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    session = Session(gpus[0], gpus, driver or "", why_no_load(), began + given.seconds)
    slug = re.sub(r"[^a-z0-9.]+", "-", f"{gpus[0].name} {session.driver}".lower()).strip("-")
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results.absolute() / f"{slug}.json"
    entries, checks = run(given, session, path)
    done = [line for entry in entries.values() for line in entry["lines"]]
    failed = [line["check"] for line in done if line["ok"] is False]
    if (kept := validate(session, checks)) is not None:
        verdict = "passed" if sensors.fresh(session.uuid, session.driver) else "not passed"
        print(f"check of this sensor: {verdict}, {kept}")
    print(f"results: {path}")
    print(f"{len(failed)} not as expected: {', '.join(failed)}" if failed else "All that was done is as expected.")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
