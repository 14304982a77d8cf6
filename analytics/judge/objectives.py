"""What counts in a choice among runs: time, energy, cost ... of an amount of work, and the columns that they follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
from pydantic import StringConstraints, model_validator

from analytics.quantities import quantity
from analytics.runs.frame import of_tables
from analytics.runs.recost import rent
from analytics.text import number, printable
from bench.record import Status
from bench.schema import COMMAND, Model, Positive

NAMES = ("time", "cost", "energy", "carbon", "memory", "loss", "accuracy")
OWN = "own."
"""Beginning of the names of the user's own metrics."""
Name = Annotated[str, StringConstraints(pattern=rf"^({'|'.join(NAMES)}|own\.[A-Za-z_]\w{{0,63}})$")]
Per = Literal["samples", "tokens", "target"]
"""What the figures of a run are counted for: work, or the way to its target."""
UNITS = {"time": "s", "energy": "J", "cost": "USD", "carbon": "kg CO2e", "memory": "bytes"}
"""Units of objectives for an amount of work; the catalogue of quantities has those of one sample, token or run."""
_COLUMNS = {
    "time": ("{work}s_per_second", "seconds_to_target"),
    "energy": ("joules_per_{work}", "energy_to_target_joules"),
    "cost": ("cost_usd_per_million_{work}s", "cost_to_target_usd"),
    "carbon": ("emissions_kg_per_million_{work}s", "emissions_to_target_kg"),
    "memory": ("peak_memory_bytes",),
    "quality": ("validation_loss",),
    "loss": ("validation_loss",),
    "accuracy": ("validation_accuracy",),
}
"""The column that tells of an objective for samples or tokens, and that for the way to a target if it is another."""
_OF_COMMANDS = {"loss": ("loss_median", "loss_last")}
"""The columns of runs of the user's own commands, where those are others."""
REMEDIES = {
    "time": "the runs tell no throughput",
    "energy": "no energy is known: bench doctor says what can be measured",
    "cost": "no price is known: give --price USD, or --electricity-price",
    "carbon": "no energy or no region is known: name one with bench run --region FR",
    "memory": "no run tells its peak memory",
    **dict.fromkeys(("quality", "loss"), "no run was validated: validation.samples in the suite"),
    "accuracy": "no run tells an accuracy: not every workload has one",
}


def remedy(name: str, rows: pd.DataFrame) -> str:
    """Say what to do where no run tells an objective."""
    if len(rows) and of_tables(rows).all():
        return "no column of the table tells it"
    if name.startswith(OWN):
        return f"no run tells it: a step pattern may have a group (?P<{name.removeprefix(OWN)}>...)"
    if name in ("loss", "quality") and len(rows) and rows["workload"].eq(COMMAND).all():
        return "no step tells a loss: step(loss=...), or a step pattern with a group (?P<loss>...)"
    return REMEDIES[name]


class Goal(Model):
    """An objective: what counts, and whether less or more of it is better."""

    name: Name
    direction: Literal["minimize", "maximize"]

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name.removeprefix(OWN)


class Amount(Model):
    """The work that objectives are counted for: so many samples or tokens, or the training until a target is reached."""

    samples: Positive | None = None
    tokens: Positive | None = None
    target: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.samples, self.tokens, self.target or None].count(None) != 2:
            raise ValueError("give {samples: NUMBER}, {tokens: NUMBER}, or target")
        return self


@dataclass(frozen=True)
class Objective:
    """One thing to be small (accuracy, and what is `maximized`: large), and the column of the frame that it follows from.

    `amount` is the number of samples or tokens, whichever the column speaks of, that time, energy, cost and carbon are for.
    """

    name: str
    column: str
    amount: float = 1e6
    maximized: bool = False

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name.removeprefix(OWN)

    @property
    def unit(self) -> str:
        """Unit of `values`, and whether they are estimated."""
        unit = UNITS.get(self.name, self.column.removeprefix("validation_").removeprefix(OWN))
        return f"{unit}, estimated" if "estimated" in self.column else unit

    @property
    def rising(self) -> bool:
        """Whether less is better."""
        return not self.maximized and self.column != "validation_accuracy"

    def rank(self, values: Mapping[str, float]) -> float:
        """Return the value of this objective, the smaller the better."""
        return values[self.name] if self.rising else -values[self.name]

    def values(self, runs: pd.DataFrame) -> np.ndarray:
        """Figures of the runs in `unit`: for `amount`, where they are of work; NaN where they are not known."""
        known: np.ndarray = runs[self.column].to_numpy(dtype=float)
        if self.column.endswith("_per_second"):
            return self.amount / known
        work = (
            self.amount if "joules_per" in self.column else self.amount / 1e6 if "_per_million" in self.column else 1.0
        )
        return known * work


def columns(name: str, per: Per) -> tuple[str, ...]:
    """Name the columns that tell of an objective for samples, tokens or the way to a target, the better ones first."""
    if name.startswith(OWN):
        return (name,)
    column = _COLUMNS[name][-1 if per == "target" else 0].format(work=per.removesuffix("s"))
    other = "validation_accuracy" if name == "quality" else quantity(column).twin
    return (column, other) if other else (column,)


def column(name: str, work: Amount, rows: pd.DataFrame) -> str | None:
    """Choose the column that an objective, or a limit on it, follows in all runs of a search.

    That is the one which most runs that ended well know, and of two the measured one. None where no run knows any:
    then REMEDIES says what to do.
    """
    ok = rows[rows["status"] == Status.OK]
    per: Per = "target" if work.target else "tokens" if work.tokens else "samples"
    commands = len(ok) and ok["workload"].eq(COMMAND).all()
    names = _OF_COMMANDS.get(name, columns(name, per)) if commands else columns(name, per)
    known = {one: int(ok[one].notna().sum()) for one in names if one in ok}
    best = max(known, key=known.__getitem__, default=None)
    return best if best is not None and known[best] else None


def objective(goal: Goal, work: Amount, rows: pd.DataFrame) -> Objective | None:
    """Return a goal of a search as its runs can tell it, for the work asked for; None where no run can."""
    found = column(goal.name, work, rows)
    amount = work.samples or work.tokens or 1.0
    return None if found is None else Objective(goal.name, found, amount, goal.direction == "maximize")


def _basis(column: str) -> str | None:
    """Name the column that says what an objective rests on, by its own column."""
    return "energy_components" if quantity(column).energy else quantity(column).rests_on


def estimated(runs: pd.DataFrame, objective: Objective) -> bool:
    """Whether an objective is the figure of a model, or rests on energy that is."""
    basis = quantity(objective.column).rests_on
    if basis is None:
        return "estimated" in objective.column
    return bool(runs[basis].str.contains("estimated").fillna(False).any())


def unequal_terms(runs: pd.DataFrame, objective: Objective) -> str:
    """Say that cost or carbon of these runs is that of several prices or regions; nothing where it is not."""
    if objective.name == "carbon" and runs["region"].nunique() > 1:
        regions = ", ".join(sorted(map(printable, runs["region"].dropna().unique())))
        return f"carbon is that of several regions: {regions}"
    prices = _several_prices(rent(runs)) if objective.name == "cost" else ""
    return f"cost is that of several devices with {prices}" if prices else ""


def _several_prices(rents: pd.Series) -> str:
    if not rents.max() > 1.01 * rents.min():
        return ""
    ends = f"{number(float(rents.min()))} to {number(float(rents.max()))}"
    return f"several prices, {ends} USD per device and hour: bench pareto --price makes it anew by one"


def mixed(runs: pd.DataFrame, objective: Objective) -> str:
    """Say that an objective rests on several things in these runs, which are not to be compared; nothing where on one.

    Of cost that are bases, and prices of the same device: those of several devices may differ.
    """
    basis = _basis(objective.column)
    if basis is None or "estimated" in objective.column:
        return ""
    bases = runs[basis].fillna(runs["energy_provenance"] if objective.name == "energy" else "unknown").fillna("unknown")
    found = sorted({printable(basis, 40) for basis in bases})
    if len(found) > 1:
        return f"it is that of {' and '.join(found)}, which are never mixed"
    if objective.name != "cost":
        return ""
    by_device = rent(runs).groupby(runs["device_name"].fillna(""))
    return next((f"it is that of {prices}" for _, rents in by_device if (prices := _several_prices(rents))), "")
