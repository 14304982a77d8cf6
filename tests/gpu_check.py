"""Check meters and runs on a machine with a real NVIDIA GPU: `python -m tests.gpu_check [--only V4,V8] [--seconds 480]`.

Does the checks that are missing in the results folder, in order of importance, and keeps the results of each at once:
what does not fit into the time is done by the next call. `--plan` prints what would be done in that time. The results are in
`<name of the GPU>.json`, and as a table beside it. Ends with 0 if all was done and is as expected, with 1 if something is
not, and with 3 if something was skipped or not reached. When V2, V4, V6 and V10 are there, they are kept as the sensor check
of this GPU's sensor (`bench.figures.sensors`). Agreement between counter and power shows that the software is right: both
come from one sensor, so it says nothing about its gain.

Not checked: V11 (linearity over power limits) needs root on a machine of one's own. V13 (CodeCarbon) and V14 (nvidia-smi)
read the same counter and sensor as V2 and V4. V15 needs a meter of the site.
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

from tests.gpu_checks import packages

if __name__ == "__main__":
    packages.require()  # before anything is imported that may be absent

from bench.figures import sensors
from bench.figures.sensors import REQUIRED, Check
from bench.files import read_json, write_json, write_text
from bench.machine.environment import commit, torch_build
from bench.meters.nvml import list_gpus
from bench.schema import Gpu
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
    "SUITES": Spec("every shipped suite runs", strategies.suites, 400, 140),
    "V4": Spec("energy and power agree", sensor.v4, 300, 30, 3, 0.1),
    "V6": Spec("additivity", sensor.v6, 120, 5, 1, 1, ("V4",)),
    "V10": Spec("plausibility", sensor.v10, 120, 5, 1, 1, ("V4", "V6")),
    "LOOP": Spec("speed by hand, MFU", strategies.speed, 150, 90),
    "V8": Spec("observer effect", jobs.v8, 320, 60, 2),
    "RUN": Spec("main job", jobs.main_job, 120, 90),
    "V3": Spec("latency and cost of reading", sensor.v3, 40, 20, 1, 0.5),
    "V5": Spec("part-time sampling", dynamics.v5, 340, 51, 1),
    "DDP": Spec("two GPUs", jobs.two_gpus, 90, 60),
    "V9": Spec("step response", dynamics.v9, 16, 8, 1),
    "V12": Spec("two ranks on a GPU", jobs.v12, 20, 6, 2),
    "V7": Spec("repeatability", sensor.v7, 235, 35, 1),
    "SEARCH": Spec("a short search", strategies.search, 150, 100),
}
"""The checks, the most important first."""
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
    entry = {"title": spec.title, "uuid": session.uuid, "driver": session.driver, "commit": commit()}
    entry["date"] = datetime.now(UTC).isoformat()
    try:
        outcome = spec.function(session, seconds)
        state = "partial" if outcome.unreached else "done"
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


def is_missing(entry, name, session):
    """Whether a check is still to be done: not yet, in part, by another driver, or on another board where that matters."""
    if entry is None or entry["state"] != "done" or entry.get("driver") != session.driver:
        return True
    return name in OF_A_BOARD and entry["uuid"] != session.uuid


def rows(entry, earlier=False):
    """Return the lines of an entry as (check, found, expected, verdict)."""
    verdicts = {True: "ok", False: "NOT AS EXPECTED", None: ""}
    for line in entry["lines"]:
        undone = line["ok"] is None and line["found"].startswith("not done")
        verdict = "skipped" if entry["state"] == "skipped" else "not done" if undone else verdicts[line["ok"]]
        yield line["check"], line["found"], line["expected"], f"{verdict} (earlier)" if earlier else verdict


def show_entry(entry, earlier):
    for row in rows(entry, earlier):
        show(*row)


def table(checks):
    """Return the results as a Markdown table."""
    lines = [row for name in CHECKS if name in checks for row in rows(checks[name])]
    head = ["| check | found | expected | verdict |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)]) + "\n"


def conclusion(names, entries):
    """Return the last lines, which say what was not reached, and the exit code."""
    done = [line for entry in entries.values() for line in entry["lines"]]
    failed = [line["check"] for line in done if line["ok"] is False]
    skipped = [name for name, entry in entries.items() if entry["state"] == "skipped"]
    unreached = [name for name in names if name not in entries or entries[name]["state"] == "partial"]
    lines = [f"{sum(line['ok'] is True for line in done)} verdicts as expected, {len(failed)} not."]
    lines += [f"Not as expected: {', '.join(failed)}"] if failed else []
    lines += [f"Skipped, see the reasons above: {', '.join(skipped)}"] if skipped else []
    lines += [f"Not reached: {', '.join(unreached)}. The same command goes on with them."] if unreached else []
    if not (failed or skipped or unreached):
        lines.append("Everything was done, and all is as expected.")
    return lines, 1 if failed or not done else 3 if skipped or unreached else 0


def print_plan(names, session, checks, seconds):
    """Print what would be done in this time, with the estimated seconds of each part."""
    missing = [name for name in names if is_missing(checks.get(name), name, session)]
    fits, begin = plan(costs(missing, session), seconds), 0.0
    print(f"{'check':<34} {'from, s':>8} {'takes, s':>9}   of a full check, s")
    for name in missing:
        if name in fits:
            full = costs(missing, session)[name][1]
            print(f"{name + ' ' + CHECKS[name].title:<34} {begin:>8.0f} {fits[name]:>9.0f}   {full:.0f}")
            begin += fits[name]
    print(f"{'in all':<34} {'':>8} {begin:>9.0f}   of {seconds:g}")
    later = [name for name in missing if name not in fits]
    print(f"Not reached in this call: {', '.join(later) or 'nothing'}.")
    print(f"Done before: {', '.join(name for name in names if name not in missing) or 'nothing'}.")


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
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all checks together")
    parser.add_argument("--plan", action="store_true", help="print what would be done in that time, and end")
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
    torch = torch_build()
    if torch.version is None:
        return "torch is not installed"
    return None if torch.cuda else f"no torch with CUDA here (torch {torch.version})"


def earlier(given, path):
    """Return the entries of earlier calls; none with --no-resume, unless it is for single checks."""
    return (read_json(path) or {}).get("checks", {}) if not given.no_resume or given.only else {}


def run(given, session, path):
    """Do what is missing and fits, keep it, print all; return the entries of the checks that were asked for."""
    checks = earlier(given, path)
    again = set(given.names) if given.no_resume else set()
    missing = [n for n in given.names if n in again or is_missing(checks.get(n), n, session)]
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
        write_text(path.with_suffix(".md"), f"# {session.gpu.name}, driver {session.driver}\n\n{table(checks)}")
    if not given.only:
        show(*SITE, "", "skipped")
    return entries, checks


def main():
    """Run the checks that are asked for."""
    given = options()
    began = time.monotonic()
    gpus, driver, reason = list_gpus()
    if not gpus and not given.plan:
        print(f"Nothing was checked: {reason}.")
        return 1
    gpus = gpus or [Gpu(index=0, uuid="GPU-none", name="none")]  # a plan needs none
    # Children find the source tree, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    no_load = None if gpus[0].name == "none" else why_no_load()
    session = Session(gpus[0], gpus, driver or "", no_load, began + given.seconds)
    slug = re.sub(r"[^a-z0-9.]+", "-", gpus[0].name.lower()).strip("-")
    path = given.results.absolute() / f"{slug}.json"
    if given.plan:
        print_plan(given.names, session, earlier(given, path), given.seconds)
        return 0
    given.results.mkdir(parents=True, exist_ok=True)
    entries, checks = run(given, session, path)
    if (kept := validate(session, checks)) is not None:
        verdict = "passed" if sensors.fresh(session.uuid, session.driver) else "not passed"
        print(f"check of this sensor: {verdict}, {kept}")
    print(f"results: {path}")
    lines, code = conclusion(given.names, entries)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
