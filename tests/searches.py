"""Made-up documents of searches, as `bench search --json` prints them, and the recorded one."""

import json
import random
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from analytics.judge.objectives import Objective
from analytics.search.file import load_search
from analytics.search.result import SearchResult, Spent, Tried
from analytics.search.space import Space
from bench.schema import Machine
from tests.recorded import ARCHIVE, SEARCHES

ROOT = Path(__file__).parent.parent

UNITS = {"time": "s", "cost": "USD", "energy": "J, estimated", "memory": "bytes", "accuracy": "accuracy"}


def trial(number: int, values: dict[str, float], **fields: Any) -> dict[str, Any]:
    """A trial that ended well, measured in full, off the front."""
    full = fields.get("stage", "full") == "full"
    return {
        "number": number,
        "state": "complete",
        "stage": "full",
        "source": "search",
        "params": {"devices": 1, "precision": "fp32"},
        "values": values,
        "low": {name: value * 0.95 for name, value in values.items()} if full else {},
        "high": {name: value * 1.06 for name, value in values.items()} if full else {},
        "violations": {},
        "front": False,
        "knee": False,
        "p_front": None,
        "runs": [f"tiny-d1-0123456789-r{number}"],
        "seconds": 12.5,
        "joules": 250.0,
        "joules_estimated": True,
        "usd": 0.001,
        "why": None,
        **fields,
    }


def document(trials: list[dict[str, Any]], *objectives: str, **fields: Any) -> dict[str, Any]:
    """A search that has ended, for time and cost unless other objectives are named."""
    names = objectives or ("time", "cost")
    goals = [
        {
            "name": name,
            "direction": "maximize" if name == "accuracy" else "minimize",
            "unit": UNITS.get(name, ""),
            "column": name,
        }
        for name in names
    ]
    return {
        "study": "cost-efficiency-0a1b2c3d",
        "name": "cost-efficiency",
        "description": "What is a good way to train?",
        "sampler": "tpe",
        "machine": "2 × Synthetic CPU",
        "storage": "runs/cost-efficiency/journal.log",
        "work": {"samples": 1e6},
        "objectives": goals,
        "constraints": {"memory": {"max": 2e9}},
        "space": {"devices": {"choices": [1, 2]}, "precision": {"choices": ["fp32", "bf16"]}},
        "space_size": 96,
        "budget": {"trials": 30},
        "spent": {
            "trials": len(trials),
            "runs": len(trials),
            "seconds": 12.5 * len(trials),
            "joules": 250.0 * len(trials),
            "joules_estimated": True,
            "usd": 0.001 * len(trials),
        },
        "ended": "the budget of 30 trials is spent",
        "trials": trials,
        "hypervolume": [{"trial": one["number"], "share": (k + 1) / len(trials)} for k, one in enumerate(trials)],
        "reference": dict.fromkeys(names, 1.0),
        "importance": {name: {"devices": 0.7, "precision": 0.3} for name in names},
        "sentences": ["Least time: devices=2 precision=bf16.", "Least cost: devices=1 precision=bf16."],
        "notes": [],
        "front_file": None,
        **fields,
    }


def three() -> list[dict[str, Any]]:
    """Two on the front, of which the second is the knee, and one that a probe found to be beaten."""
    return [
        trial(0, {"time": 100.0, "cost": 1.0}, front=True, p_front=0.9),
        trial(1, {"time": 60.0, "cost": 1.2}, front=True, knee=True, p_front=1.0, params={"devices": 2}),
        trial(2, {"time": 120.0, "cost": 1.5}, stage="probe", runs=["probe-r0"], params={"precision": "bf16"}),
    ]


def thirty(seed: int = 0) -> dict[str, Any]:
    """A search over five parameters with three objectives: probes, repeats, and trials that could not run."""
    draw = random.Random(seed)  # noqa: S311  made-up figures
    trials = []
    for number in range(30):
        devices, precision = draw.choice([1, 2, 4]), draw.choice(["fp32", "bf16", "fp16"])
        batch, parallelism = draw.randint(1, 64), draw.choice(["ddp", "fsdp", "tp"])
        params = {
            "devices": devices,
            "precision": precision,
            "batch_size_per_device": batch,
            "parallelism": parallelism,
        }
        params |= {"optimizer.learning_rate": 10 ** draw.uniform(-5, -2)}
        params |= {"parallelism.size": 2} if parallelism == "tp" else {}
        speed = devices**0.85 * (1 if precision == "fp32" else 1.7) * batch**0.3 * draw.uniform(0.9, 1.1)
        values = {"time": 4e4 / speed, "cost": 12 * devices / speed, "energy": 9e6 * devices**0.9 / speed}
        fields: dict[str, Any] = {"params": params, "stage": "probe" if number > 3 else "full"}
        if batch > 55:
            why = "CUDA out of memory. Tried to allocate 2.00 GiB: the batch is too large for this device"
            fields |= {"state": "infeasible", "violations": {"runs": 1.0}, "why": why, "joules": None}
            values = {}
        trials.append(trial(number, values, **fields))
    known = [one for one in trials if one["values"]]
    front = [a for a in known if not any(all(b["values"][k] < a["values"][k] for k in a["values"]) for b in known)]
    for one in front:
        ends = {"low": 0.93, "high": 1.07}
        one |= {end: {name: value * by for name, value in one["values"].items()} for end, by in ends.items()}
        one |= {"front": True, "stage": "full", "p_front": round(draw.uniform(0.5, 1), 2), "seconds": 41.0}
    front[len(front) // 2]["knee"] = True
    importance = {
        name: {"devices": 0.41, "batch_size_per_device": 0.3, "precision": 0.2, "parallelism": 0.05}
        for name in ("time", "cost", "energy")
    }
    shares = [{"trial": number, "share": 1 - 0.85 ** (number + 1)} for number in range(30)]
    words = [
        "For the least time choose devices=4 precision=bf16 batch_size_per_device=48: 5.6 (5.2 to 6) hours.",
        "For the least cost choose devices=1 precision=fp16 batch_size_per_device=52: 2.1 (2 to 2.2) USD.",
        "4 devices instead of 1 are 2.9 times as fast and 38 % dearer.",
        "devices mattered most, then batch_size_per_device; parallelism hardly did.",
        "4 trials could not run: out of memory.",
    ]
    return document(trials, "time", "cost", "energy", importance=importance, hypervolume=shares, sentences=words)


class _Listed(Space):
    """A space of so many configurations as a document says; none of them is expanded."""

    size = 0

    @property
    def possible(self) -> Any:
        return dict.fromkeys(range(self.size))


def recorded() -> tuple[SearchResult, list[str]]:
    """Return the recorded search as it ended, and the sentences of its confirming run."""
    with tarfile.open(ARCHIVE) as archive:
        (member,) = [member for member in archive.getmembers() if fnmatch(member.name, SEARCHES)]
        file = archive.extractfile(member)
        assert file is not None
        told = json.loads(file.read())
    machine = Machine(cpu_model="AMD EPYC", cpu_count=2)
    where = _Listed.of(load_search(ROOT / "suites/search_cost_efficiency.yaml"), machine)
    object.__setattr__(where, "size", told["space_size"])
    trials = tuple(Tried(**one | {"runs": tuple(one["runs"])}) for one in told["trials"])
    points = [one for one in trials if one.state == "complete"]
    points.sort(key=lambda point: (not point.knee, not point.front, point.values["time"]))
    return SearchResult(
        where,
        told["study"],
        trials,
        tuple(points),
        tuple(Objective(goal["name"], goal["column"], 1e6) for goal in told["objectives"]),
        {},
        tuple((step["trial"], step["share"]) for step in told["hypervolume"]),
        told["reference"],
        told["importance"],
        Spent(**told["spent"]),
        told["ended"],
        told["sampler"],
        told["storage"],
        told["front_file"],
    ), told["confirmed"]
