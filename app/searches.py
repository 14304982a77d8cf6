"""The document of a search as the Search page reads it: what is torn is told there, not drawn."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Literal

import pandas as pd

from analytics.searched import Spent, Tried
from analytics.words import between, number
from bench.schema import Model


class Goal(Model, extra="ignore"):
    """An objective: what counts, and whether less or more is better. The unit says so where figures are estimated."""

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str | None

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return 1 if self.direction == "minimize" else -1

    @property
    def title(self) -> str:
        """Name and unit."""
        return self.name if self.unit in (self.name, None) else f"{self.name} [{self.unit}]"


class Document(Model, extra="ignore"):
    """The answer of a search: so far, or for good where it says why it `ended`."""

    study: str
    sampler: str
    machine: str
    written_at: datetime | None = None
    objectives: list[Goal]
    spent: Spent
    ended: str | None
    trials: list[Tried]
    hypervolume: list[dict[Literal["trial", "share"], float]]
    importance: dict[str, dict[str, float]]
    sentences: list[str]
    confirmed: tuple[str, ...] = ()
    notes: list[str]

    @property
    def goals(self) -> list[Goal]:
        """The objectives that runs tell."""
        return [goal for goal in self.objectives if any(goal.name in trial.values for trial in self.trials)]

    @property
    def complete(self) -> list[Tried]:
        """The trials that may be chosen and of which all of them are known."""
        wanted = {goal.name for goal in self.goals}
        return [trial for trial in self.trials if trial.state == "complete" and wanted <= set(trial.values)]


def took(of: Spent | Tried) -> dict[str, str]:
    """Say what runs took: time, energy and money. What is not known is absent, and ~ marks the figure of a model."""
    known = {"Time": ("", of.seconds, "s"), "Energy": ("~" * of.joules_estimated, of.joules, "J")}
    known["Money"] = ("", of.usd, "USD")
    return {name: f"{mark}{number(x)} {unit}" for name, (mark, x, unit) in known.items() if x is not None}


def kind(trial: Tried) -> tuple[str, str]:
    """Whether a trial is on the front, and its knee; and how it was measured."""
    return "knee" if trial.knee else "front" if trial.front else "others", trial.stage or "not run"


def told(trial: Tried, goals: list[Goal]) -> list[str]:
    """Say what is known of a trial."""
    chance = "" if trial.p_front is None else f", {100 * trial.p_front:.0f} % likely on the front"
    lines = [f"trial {trial.number}: {trial.state}, {', '.join(kind(trial))}{chance}"]
    for goal in (goal for goal in goals if goal.name in trial.values):
        ends = trial.low.get(goal.name), trial.high.get(goal.name)
        lines.append(f"{goal.name}: {between(trial.values[goal.name], *ends, goal.unit or '')}")
    broken = {name: excess for name, excess in trial.violations.items() if excess > 0 and name != "runs"}
    lines += [f"breaks {name} by {100 * excess:.2g} %" for name, excess in broken.items()]
    return [*lines, trial.why] if trial.why else lines


_NAMES = {"number": "trial", "p_front": "chance to be on the front", "violations.runs": "cannot run"}
_NAMES |= {"seconds": "took [s]", "joules": "took [J]", "joules_estimated": "[J] estimated", "usd": "took [USD]"}
_BEGINNINGS = {"params.": "", "values.": "", "violations.": "share beyond "}
_FIRST = ("number", "state", "stage", "front", "knee", "values.", "params.")


def table(shown: Document) -> pd.DataFrame:
    """Return a row a trial: what it is, its values, its parameters, then intervals, what it breaks, what it took."""
    rows = [asdict(trial) | {"runs": " ".join(trial.runs)} for trial in shown.trials]
    names = _NAMES | {f"values.{goal.name}": goal.title for goal in shown.goals}
    names |= {f"{end}.{goal.name}": f"{end} {goal.title}" for goal in shown.goals for end in ("low", "high")}
    found = pd.json_normalize(rows).dropna(axis="columns", how="all")
    titles: dict[str, str] = {}
    for name in sorted(map(str, found), key=lambda name: [name.startswith(start) for start in _FIRST], reverse=True):
        start = next((one for one in _BEGINNINGS if name.startswith(one)), "")
        title = names.get(name) or _BEGINNINGS.get(start, "") + name.removeprefix(start)
        titles[name] = name if title in titles.values() else title
    return found[list(titles)].rename(columns=titles)
