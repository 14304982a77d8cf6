"""A front as the page Trade-offs shows it: in units for people, its table, what is said of a configuration, its runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analytics.frame import IDENTITY, latest_execution
from analytics.objectives import UNITS, Objective
from analytics.pareto import Front
from analytics.words import between, scale

RUNS = {"run_id": "Run", "repeat": "Repeat", "samples_per_second": "Samples/s", "duration_seconds": "Whole run [s]"}
RUNS |= {"grade": "Grade", "flags": "Flags", "started_at": "Started (UTC)", "mlflow_run_id": "Run in MLflow"}
SAID = {"knee": "yes, the knee", "front": "yes", "others": "no"}


@dataclass(frozen=True)
class Side:
    """An objective of a front for people: its values are shown divided by `divisor`; ~ marks what rests on a model."""

    objective: Objective
    divisor: float
    unit: str
    estimated: bool

    @classmethod
    def of(cls, one: Front, objective: Objective) -> Side:
        """Choose the unit that suits the values of all configurations."""
        unit = UNITS.get(objective.name, "").replace("bytes", "B")
        divisor = 1.0
        if objective.name in ("energy", "memory"):
            divisor, unit = scale(float(one.table[objective.name].median()), unit)
        return cls(objective, divisor, unit, objective.name in one.estimated)

    @property
    def name(self) -> str:
        """Name of the objective, of quality what it is."""
        return f"validation {self.objective.unit}" if self.objective.name == "quality" else self.objective.name

    @property
    def title(self) -> str:
        """Name and unit, and which is better where that is not the least."""
        brackets = ", ".join(filter(None, [self.unit, "estimated" * self.estimated]))
        better = "" if self.objective.rising else ", more is better"
        return "~" * self.estimated + self.name + (f" [{brackets}]" if brackets else "") + better

    def values(self, table: pd.DataFrame, end: str = "") -> list[float]:
        """Values of a table of configurations, or an `end` of their intervals (`_low`, `_high`), in the unit."""
        return [float(value) / self.divisor for value in table[self.objective.name + end]]

    def cells(self, table: pd.DataFrame, unit: str = "") -> list[str]:
        """Values with their intervals as text."""
        columns = (self.values(table, end) for end in ("", "_low", "_high"))
        return ["~" * self.estimated + between(x, low, high, unit) for x, low, high in zip(*columns, strict=True)]


def sides(one: Front) -> list[Side]:
    """Return the objectives of a front for people, then those that do not count."""
    return [Side.of(one, objective) for objective in (*one.objectives, *one.others)]


def places(table: pd.DataFrame) -> list[str]:
    """Say where configurations stand: `knee`, `front` or `others`."""
    return ["knee" if knee else "front" if front else "others" for knee, front in table[["knee", "front"]].to_numpy()]


def table(one: Front) -> pd.DataFrame:
    """Return a row a configuration, as text, with its number in the figure."""
    out: dict[str, Any] = {"No.": range(1, len(one.table) + 1), "Configuration": one.table["name"]}
    out |= {"On the front": [SAID[stands] for stands in places(one.table)], "Chance to be on it": _chances(one.table)}
    out |= {side.title: side.cells(one.table) for side in sides(one)}
    out |= {"Runs": one.table["repeats"], "Suite": one.table["suite"], "Execution": one.table["execution"]}
    return pd.DataFrame(out | {"Host": one.table["host"], "Devices": one.table["device_name"]})


def told(one: Front) -> list[list[str]]:
    """Say what is known of each configuration, in lines."""
    shown = [(side, side.cells(one.table, side.unit)) for side in sides(one)]
    stand, likely, out = places(one.table), _chances(one.table), list[list[str]]()
    for index, row in enumerate(one.table.to_dict("records")):
        lines = [f"{side.name}: {cells[index]}{', estimated' * side.estimated}" for side, cells in shown]
        chance = f" ({likely[index]} likely)" if likely[index] else ""
        runs = f"{row['repeats']} {'run' if row['repeats'] == 1 else 'runs'} of {row['suite']}"
        head = [f"{index + 1}. {row['name']}", f"on the front: {SAID[stand[index]]}{chance}"]
        out.append([*head, *lines, f"{runs} on {row['host']} ({row['device_name']})"])
    return out


def _chances(table: pd.DataFrame) -> list[str]:
    """Say how likely each configuration is on the front; nothing where it ran once."""
    return ["" if pd.isna(chance) else f"{100 * chance:.0f} %" for chance in table["p_front"]]


def newest(df: pd.DataFrame) -> list[str]:
    """Return the suite of the last run that ended well in a newest execution, or none."""
    well = latest_execution(df).sort_values("started_at").query("status == 'ok'")
    return list(well["suite"].dropna()[-1:])


def without_probes(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Leave out the probes of searches, unless there is nothing else; return the rest and how many were left out."""
    probes = runs["stage"] == "probe"
    return (runs, 0) if probes.all() else (runs[~probes], int(probes.sum()))


def machines(runs: pd.DataFrame) -> pd.Series:
    """Name the machine of each run: its host and devices."""
    return runs["host"].fillna("unknown host") + ": " + runs["device_name"].fillna("unknown devices")


def runs_of(one: Front, index: int, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of a configuration, by its index in the table."""
    wanted = one.table[list(IDENTITY)].astype("str").iloc[index]
    return runs.loc[(runs[list(IDENTITY)].astype("str") == wanted).all(axis=1)]
