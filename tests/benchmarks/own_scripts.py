"""People's own scripts: what wattbench measures beside what the script itself counts and times.

    python -m tests.benchmarks.own_scripts [--only NAME ...]

Scripts of `tests/scripts` run unchanged under `bench measure`: seen by hooks, read from their output, and told by a
call; on one process and on two. For each: the steps of the window, its samples and tokens and its length over those of the
script, and the flags that say why a figure is left out. A deviation of more than 2 % without a flag of grade C is marked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures.flags import FLAGS

SCRIPTS = Path(__file__).parent.parent / "scripts"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
LARGEST = 0.02


@dataclass(frozen=True)
class Script:
    """A script, on how many processes it can run, and the pattern for its output; the launcher is torchrun or its own."""

    name: str
    pattern: str
    processes: tuple[int, ...] = (1,)
    launcher: str = "torchrun"


OWN = (
    Script("gpt_loop", r"iter (?P<step>\d+): loss (?P<loss>\S+), time (?P<milliseconds>\S+)ms", (1, 2)),
    Script("class_of_trainer", r"iter (?P<step>\d+): train loss (?P<loss>\S+)"),
    Script("digits", r"Train Epoch: \d+ \[(?P<samples_total>\d+)/.*Loss: (?P<loss>\S+)"),
    Script("images", r"Epoch: \[0\]\[ *(?P<step>\d+)/.*Loss (?P<loss>\S+)", (1, 2), "spawn"),
    Script("word_lm", r"\| *(?P<step>\d+)/.*loss +(?P<loss>\S+)"),
    Script("augmented", r"Train: \d+ \[ *(?P<step>\d+)/.*Loss: (?P<loss>\S+)"),
    Script("sharded", r"step: +(?P<step>\d+)  loss: +(?P<loss>\S+)", (2,)),
    Script("without_torch", r"step: (?P<step>\d+), loss: (?P<loss>[\d.]+)"),
)


def truth(prefix: Path) -> list[list[Any]]:
    """Return the steps that the ranks noted: [seconds of rank 0, samples, tokens of all ranks]."""
    ranks = [json.loads(path.read_text()) for path in sorted(prefix.parent.glob(f"{prefix.name}-*"))]
    return [
        [steps[0][0], sum(s[1] for s in steps), sum(s[2] for s in steps) if steps[0][2] is not None else None]
        for steps in zip(*ranks, strict=True)
    ]


def run(script: Script, processes: int, source: str, folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    """Return the record of a script that runs under `bench measure`, and what it noted."""
    noted = folder / "truth"
    environment = os.environ | {"TRUTH": str(noted), "OMP_NUM_THREADS": "1", "PROCESSES": str(processes)}
    environment |= {"RENDEZVOUS": str(folder / "rendezvous")} | ({"REPORT": "1"} if source == "call" else {})
    torchrun = processes > 1 and script.launcher == "torchrun"
    argv = [*(TORCHRUN if torchrun else (sys.executable,)), str(SCRIPTS / f"{script.name}.py")]
    options = {"hooks": [], "pattern": ["--no-hooks", "--step-pattern", script.pattern], "call": ["--no-hooks"]}[source]
    bench = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "measure", "--json", "--no-store"]
    command = [*bench, "--idle-seconds", "0", "--runs", str(folder / "runs"), *options, "--", *argv]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout), truth(noted)


def spans(measured: dict[str, Any]) -> list[tuple[float, float]]:
    """Return the times in which the steps of the window were made, in seconds: with evaluations, without pauses."""
    out: list[tuple[float, float]] = []
    joined = False
    for phase in measured["phases"]:
        start, stop = phase["start_ns"] / 1e9, phase["end_ns"] / 1e9
        if phase["name"] == "steady":
            out[-1:] = [(out[-1][0], stop)] if joined else [*out[-1:], (start, stop)]
        joined = bool(out) and phase["name"] != "pause"
    return out


def line(script: Script, processes: int, source: str) -> str:
    """Return the line of the table of one run."""
    with tempfile.TemporaryDirectory() as name:
        record, noted = run(script, processes, source, Path(name))
    measured, flags = record["measurement"], record["measurement"]["step_flags"]
    steps = measured["steps"]
    doubts = [flag for flag in flags if FLAGS[flag].grade == "C"]
    cells = [f"{script.name:14} {processes} {source:8} {measured['step_source'] or '-':7}"]
    if not steps:
        return " ".join([*cells, f"no steps ({', '.join(doubts) or 'none seen'})"])
    ends = [step[0] for step in noted]
    edges = [[min(range(len(ends)), key=lambda i: abs(ends[i] - edge)) for edge in span] for span in spans(measured)]
    seconds, counted = sum(stop - start for start, stop in spans(measured)), sum(last - first for first, last in edges)
    ratios = {"time": seconds / sum(ends[last] - ends[first] for first, last in edges)}
    ratios |= {"steps": steps / counted} if steps != counted else {}
    for place, unit in ((1, "samples"), (2, "tokens")):
        if measured.get(unit) is not None:
            ratios[unit] = measured[unit] / sum(step[place] for a, b in edges for step in noted[a + 1 : b + 1])
    cells.append(f"{steps:4} of {len(noted):4} steps  " + "  ".join(f"{k} {v:.4f}" for k, v in ratios.items()))
    wrong = any(abs(value - 1) > LARGEST for value in ratios.values()) and not doubts
    return " ".join([*cells, f"flags {', '.join(flags)}" if flags else "", "WRONG" if wrong else ""]).rstrip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    only = parser.parse_args().only
    print("script processes told-by source: window of the script's steps; figures over those of the script")
    for script in OWN:
        for processes in script.processes if only is None or script.name in only else ():
            for source in ("hooks", "pattern", "call"):
                print(line(script, processes, source), flush=True)


if __name__ == "__main__":
    main()
