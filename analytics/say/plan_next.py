"""What to run next to narrow the interval of a plan, with commands that run as they are pasted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analytics.plan.plan import Plan, Question, next_runs
from analytics.plan.speed import OwnSpeed
from analytics.say.blocks import Block, Commands, Note, Sentence
from analytics.say.plan import listed
from analytics.text import devices_words, printable
from analytics.work import short
from bench.errors import UserError
from bench.suites.load import load_suite

Proposal = tuple[list[dict[str, Any]], list[Block]]


def proposed(plan: Plan, run: str = "bench run") -> Proposal:
    """Return the runs that would narrow the interval most, as data and as blocks; `run` is how a suite is run."""
    speed, devices = plan.question.speed, plan.question.devices
    most = max([count for count in devices if plan.question.misfit(count) != "machine"] or devices)
    if not isinstance(speed, OwnSpeed):
        return _first(plan.question, most, run)
    runs = next_runs(speed, most)
    if not runs:
        return [], [Sentence(f"No run of at most {devices_words(most)} would narrow the interval noticeably.")]
    counts, before, after = (
        sorted({each["devices"] for each in runs}),
        runs[0]["factor_before"],
        runs[-1]["factor_after"],
    )
    narrower = f"the speed on {devices_words(most)} is known within a factor of {before:.3g} now, of {after:.3g} then"
    text = f"Repeat on {listed(counts)}, three more times each: {narrower}."
    if speed.imported:
        return runs, [Sentence(f"{text} Your runs were imported: add the new ones with bench import.")]
    if max(counts) > speed.per_node and not speed.host.shares:
        return runs, [Sentence(text), _own_script(max(counts), speed.per_node)]
    return runs, [Sentence(text), _more(speed, counts, run)]


def more(plan: Plan) -> Note:
    """Say which options of the command line tell more."""
    narrow = "" if plan.question.speed.source == "given" else "Narrower: --next. "
    return Note(f"{narrow}Why: --explain.")


def _more(speed: OwnSpeed, counts: Sequence[int], run: str) -> Block:
    """A plan rests on one execution, so all its numbers of devices are run again, with three more repeats."""
    devices = sorted({*map(int, speed.table["devices"]), *counts})
    words = ["--set", f"devices={devices}", "--set", f"repeats={speed.repeats + 3}"]
    alike = [f"{key}={speed.keys[key]}" for key in ("precision", "parallelism") if key in speed.keys]
    words += [word for setting in alike for word in ("--only", setting)]
    name = str(speed.keys["suite"])
    path = next((path for path in [*Path("suites").glob("*.yaml"), *Path().glob("*.yaml")] if _named(path, name)), None)
    if path is None:
        return Sentence(
            f"Run suite {printable(name)!r}, whose file is not in this folder, with {shlex.join(words[:4])}."
        )
    return Commands((f"{run} {shlex.join([str(path), *words])}",), "Run")


def _named(path: Path, name: str) -> bool:
    """Whether a file is the suite of this name; what cannot be read is none."""
    try:
        return load_suite(path).name == name
    except (UserError, OSError):
        return False


def _own_script(devices: int, node: int) -> Note:
    nodes = -(-devices // node)
    torchrun = f"torchrun {f'--nnodes={nodes} ' * (nodes > 1)}--nproc-per-node={min(devices, node)} SCRIPT"
    return Note(f"bench measure -- {torchrun}{', on each node' * (nodes > 1)}.", f"On {devices_words(devices)}")


def _first(question: Question, most: int, run: str) -> Proposal:
    """Without own runs: the fewest devices that hold the model, and the most of interest, across a node if they are."""
    node = question.device.per_node if question.device else 8
    least = min(1 << (question.least_devices - 1).bit_length(), most)
    here = sorted({count for count in (least, min(most, node)) if count <= node})
    chosen, scripts = sorted({*here, most}), [most] if most > node else []
    blocks: list[Block] = [Sentence(f"None of your runs is used. Most useful: {listed(chosen)}, three runs each.")]
    if question.work.shape is not None and here:
        blocks.append(Commands((_suite(question, here, run),), f"On {listed(here)}"))
    else:
        scripts = chosen
    return [{"devices": count, "repeats": 3} for count in chosen], [*blocks, *(_own_script(n, node) for n in scripts)]


def _suite(question: Question, devices: Sequence[int], run: str) -> str:
    """Return a command that writes a suite of the planned model and runs it."""
    deep, wide, length = question.work.shape or (1, 128, 128)
    heads = max(1, round(wide / 128))
    model = {"layers": max(1, round(deep)), "hidden": 128 * heads, "heads": heads, "sequence_length": round(length)}
    fixed: dict[str, Any] = {
        "workload": "decoder_lm",
        "workload_args": model,
        "parallelism": "fsdp2",
        "precision": question.precision,
    }
    fixed |= {"batch_size_per_device": 1, "measure_seconds": 30}
    name = re.sub(r"[^a-z0-9]+", "-", f"plan {short(question.work.parameters or 0)} {question.precision}".lower())
    suite = {"name": name, "defaults": fixed, "matrix": {"devices": list(devices)}, "repeats": 3}
    return f"echo {shlex.quote(json.dumps(suite))} > {name}.yaml && {run} {name}.yaml"
