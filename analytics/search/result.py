"""The answer of a search: its trials, the front among them with intervals, and how fast it was found.

A configuration is judged by the runs of its highest stage, all configurations in one front, whatever their model: a search
asks for one amount of work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analytics.judge.front import hypervolume, judged
from analytics.judge.objectives import Objective, mixed, objective, remedy
from bench.record import Status
from bench.schema import Scalar

if TYPE_CHECKING:
    from analytics.search.space import Space

Shares = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Tried:
    """One configuration that a search tried, or that stored runs told of (`source`: `search` or `store`).

    `state` is `complete`, `infeasible` (it could not run, or breaks a constraint) or `running`; `why` says why not.
    `stage` is `probe` or `full`, None where nothing ran. `params` are what it set; `values` are for the work asked for, by
    objective and constraint (s, J, USD, kg, bytes). `violations` has by constraint the share of the limit by which it is
    broken, and `runs` 1 where it could not run. `runs` name those of the highest stage: execution/run_id.
    `seconds`, `joules` and `usd` are what all of its runs took that were made for this search. The rest is found by
    `result`: 95 % intervals, as far as they are known, the place on the front, and the chance to be on it.
    """

    number: int
    state: str
    stage: str | None
    source: str
    params: dict[str, Scalar | None]
    values: dict[str, float]
    violations: dict[str, float]
    runs: tuple[str, ...]
    seconds: float
    joules: float | None
    joules_estimated: bool
    usd: float | None
    why: str | None
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    front: bool = False
    knee: bool = False
    p_front: float | None = None


@dataclass(frozen=True)
class Spent:
    """What the search itself took: trials that were no stored runs, all runs made for it, wall-clock, energy and money."""

    trials: int
    runs: int
    seconds: float
    joules: float | None
    joules_estimated: bool
    usd: float | None


@dataclass(frozen=True)
class SearchResult:
    """What a study came to.

    `trials` are all, those of the store first; `points` those of them that ran, meet all constraints and tell all
    `objectives`: the knee, the front, then the others, the less beaten the earlier. `absent` says why an objective is left
    out. `hypervolume` has the share of the final one (on logarithms) that was reached after a trial, by its number, and
    `reference` the point that it ends at. `importance` maps objective and parameter to a share of 1.
    """

    space: Space
    study: str
    trials: tuple[Tried, ...]
    points: tuple[Tried, ...]
    objectives: tuple[Objective, ...]
    absent: dict[str, str]
    hypervolume: tuple[tuple[int, float], ...]
    reference: dict[str, float]
    importance: Shares
    spent: Spent
    ended: str
    sampler: str = ""
    storage: str = ""
    front_file: str | None = None

    @property
    def front(self) -> list[Tried]:
        """The points that no other beats, by their first objective, its best first."""
        return sorted((p for p in self.points if p.front), key=lambda p: self.objectives[0].rank(p.values))

    @property
    def space_size(self) -> int | None:
        """Configurations of the space that can run on this machine; None where they are too many to list."""
        return None if self.space.possible is None else len(self.space.possible)

    def document(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text: what `--json` prints and `search.json` holds."""
        search, machine = self.space.search, self.space.machine
        parts = {name[7:]: value for name, value in search.defaults.items() if name.startswith("target.")}
        gpus = [f"{count} × {name}" for name, count in Counter(gpu.name for gpu in machine.free_gpus).items()]
        out = {name: getattr(self, name) for name in ("study", "sampler", "storage", "space_size", "ended")}
        out |= {name: getattr(self, name) for name in ("reference", "importance", "front_file")}
        out |= {"name": search.name, "description": search.description}
        out["machine"] = ", ".join(gpus) or f"{machine.cpu_model}, {machine.cpu_count} processors"
        out["work"] = (
            {"target": search.defaults.get("target") or parts}
            if search.work.target
            else search.work.model_dump(exclude_defaults=True)
        )
        nothing = {"unit": None, "column": None}
        told = {one.name: {"unit": one.unit, "column": one.column} for one in self.objectives}
        out["objectives"] = [goal.model_dump() | told.get(goal.name, nothing) for goal in search.objectives]
        out["constraints"] = {name: limit.model_dump(exclude_none=True) for name, limit in search.constraints.items()}
        out["space"] = {name: domain.model_dump(mode="json") for name, domain in self.space.fields.items()}
        out |= {"budget": search.budget.model_dump(exclude_none=True), "spent": asdict(self.spent)}
        out["trials"] = [asdict(trial) | {"runs": list(trial.runs)} for trial in self.trials]
        return out | {"hypervolume": [{"trial": number, "share": share} for number, share in self.hypervolume]}


def result(
    space: Space, study: str, tried: Sequence[Tried], rows: pd.DataFrame, importance: Shares, spent: Spent, ended: str
) -> SearchResult:
    """Judge the trials of a study by `rows` (see `analytics.runs.frame.frame`): those of the study, and of the store."""
    ok = rows[rows["status"] == Status.OK]
    tried = sorted(tried, key=lambda trial: (trial.source != "store", trial.number))
    names = ok["execution"] + "/" + ok["run_id"]
    runs = {trial.number: ok[names.isin(trial.runs)] for trial in tried}
    whole = [runs[trial.number] for trial in tried if trial.state == "complete"]
    pool = pd.concat([ok[:0], *(whole or runs.values())])
    found: list[Objective] = []
    absent: dict[str, str] = {}
    for goal in space.search.objectives if len(pool) else ():
        one = objective(goal, space.search.work, pool)
        why = mixed(pool, one) if one else remedy(goal.name, pool)
        absent |= {goal.name: why} if why else {}
        found += [one] if one and not why else []
    parts = {trial.number: runs[trial.number] for trial in tried if found and trial.state == "complete"}
    parts = {n: part[np.all([np.isfinite(one.values(part)) for one in found], axis=0)] for n, part in parts.items()}
    parts = {number: part for number, part in parts.items() if len(part)}
    table = judged(list(parts.values()), found).set_axis(list(parts), axis=0) if parts else pd.DataFrame()
    trials = tuple(placed(trial, table, found) for trial in tried)
    points = np.array([[one.rank(t.values) for one in found] for t in trials if t.number in parts])
    beaten = {number: int((points <= point).all(axis=1).sum()) for number, point in zip(parts, points, strict=True)}
    ranked = [trial for trial in trials if trial.number in parts]
    ranked.sort(key=lambda t: (not t.knee, not t.front, beaten[t.number], found[0].rank(t.values)))
    shares, reference = _shares(points) if parts else ([], np.empty(0))
    reached = dict(zip(parts, shares, strict=True))
    numbers = [trial.number for trial in trials if trial.state != "running"]
    history = tuple(zip(numbers, accumulate((reached.get(number, 0.0) for number in numbers), max), strict=True))
    ends = {one.name: float(end if one.rising else -end) for one, end in zip(found, reference, strict=False)}
    judgement = (trials, tuple(ranked), tuple(found), absent, history, ends, importance)
    return SearchResult(space, study, *judgement, spent, ended, space.search.sampler)


def placed(trial: Tried, table: pd.DataFrame, objectives: Sequence[Objective]) -> Tried:
    """Return a trial with the figures and the rank that a table of judged configurations gives to its number, if any."""
    if trial.number not in table.index:
        return trial
    row: Any = table.loc[trial.number]
    ends = ("", "_low", "_high")
    values, low, high = ({o.name: float(x) for o in objectives if pd.notna(x := row[o.name + end])} for end in ends)
    chance = None if pd.isna(row["p_front"]) else float(row["p_front"])
    trial = replace(trial, values=trial.values | values, low=low, high=high)
    return replace(trial, front=bool(row["front"]), knee=bool(row["knee"]), p_front=chance)


def _shares(points: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Return the share of the final hypervolume after each point, and the reference point: a tenth beyond the worst."""
    worst = points.max(axis=0)
    reference = worst + 0.1 * np.abs(worst) + (worst == 0)
    aside = np.where((points > 0).all(axis=0), 0.0, reference + 1)  # what has no logarithm at the end never has
    volumes = [0.0]
    for count, point in enumerate(points):
        beaten = (points[:count] <= point).all(axis=1).any()
        volumes.append(volumes[-1] if beaten else hypervolume(points[: count + 1] - aside, reference - aside))
    return [volume / volumes[-1] for volume in volumes[1:]], reference
