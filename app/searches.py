"""The document of a search as the Search page reads it: what is torn is told there, not drawn."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pandas as pd

from analytics.words import between, number
from bench.schema import Model, Scalar


class Goal(Model, extra="ignore"):
    """An objective: what counts, and whether less or more is better. The unit says so where figures are estimated."""

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return 1 if self.direction == "minimize" else -1

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]"


class Spent(Model, extra="ignore"):
    """What runs took, in s, J (measured, or by a model) and USD."""

    seconds: float
    joules: float | None
    joules_estimated: bool
    usd: float | None

    @property
    def took(self) -> dict[str, str]:
        """Time, energy and money for people; what is not known is absent, and ~ marks the figure of a model."""
        known = {"Time": ("", self.seconds, "s"), "Energy": ("~" * self.joules_estimated, self.joules, "J")}
        known["Money"] = ("", self.usd, "USD")
        return {name: f"{mark}{number(x)} {unit}" for name, (mark, x, unit) in known.items() if x is not None}


class Trial(Spent):
    """A configuration that was tried; `values`, `low` and `high` (95 %) are by objective, in its unit."""

    number: int
    state: str
    stage: str | None
    source: str
    front: bool
    knee: bool
    p_front: float | None
    params: dict[str, Scalar | None]
    values: dict[str, float]
    low: dict[str, float | None]
    high: dict[str, float | None]
    violations: dict[str, float]
    runs: list[str]
    why: str | None

    @property
    def kind(self) -> tuple[str, str]:
        """Whether it is on the front, and its knee; and how it was measured."""
        return "knee" if self.knee else "front" if self.front else "others", self.stage or "not run"

    def lines(self, goals: list[Goal]) -> list[str]:
        """Say what is known of it."""
        chance = "" if self.p_front is None else f", {100 * self.p_front:.0f} % likely on the front"
        lines = [f"trial {self.number}: {self.state}, {', '.join(self.kind)}{chance}"]
        for goal in (goal for goal in goals if goal.name in self.values):
            ends = self.low.get(goal.name), self.high.get(goal.name)
            lines.append(f"{goal.name}: {between(self.values[goal.name], *ends, goal.unit)}")
        lines += [f"breaks {name}" for name, excess in self.violations.items() if excess > 0 and name != "runs"]
        return [*lines, self.why] if self.why else lines


class Document(Model, extra="ignore"):
    """The answer of a search: so far, or for good where it says why it `ended`."""

    study: str
    sampler: str
    machine: str
    written_at: datetime | None = None
    objectives: list[Goal]
    spent: Spent
    ended: str | None
    trials: list[Trial]
    hypervolume: list[dict[Literal["trial", "share"], float]]
    importance: dict[str, dict[str, float]]
    sentences: list[str]
    notes: list[str]

    @property
    def complete(self) -> list[Trial]:
        """The trials that may be chosen and of which all objectives are known."""
        wanted = {goal.name for goal in self.objectives}
        return [trial for trial in self.trials if trial.state == "complete" and wanted <= set(trial.values)]


def table(shown: Document) -> pd.DataFrame:
    """Return a row a trial: what it is, what it took, its parameters, its values with intervals, what it breaks."""
    rows: list[dict[str, Any]] = [trial.model_dump() | {"runs": " ".join(trial.runs)} for trial in shown.trials]
    titles = {f"values.{goal.name}": goal.title for goal in shown.objectives}
    titles |= {f"{end}.{goal.name}": f"{end} {goal.title}" for goal in shown.objectives for end in ("low", "high")}
    return pd.json_normalize(rows).rename(columns=titles).dropna(axis="columns", how="all")
