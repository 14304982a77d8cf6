"""What stored runs say, as data: executions with their law and comparisons, the document for programs, and totals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analytics.judge.compare import Comparison, costs, ladder, within
from analytics.judge.front import without_probes
from analytics.judge.matched import Changes
from analytics.law.series import ScalingFit, fit
from analytics.runs.frame import summary, total
from analytics.say.names import named
from analytics.text import interval, number, scale
from bench.record import Status


@dataclass(frozen=True)
class Found:
    """What the runs of one execution say: the law, a ladder, and each configuration against the first of its work.

    So many `probes` of a search, which are short, are left out.
    """

    runs: pd.DataFrame
    steps: tuple[Comparison, ...]
    probes: int = 0

    @cached_property
    def law(self) -> ScalingFit:
        """The fitted law, which takes a while."""
        return fit(self.runs)

    @cached_property
    def others(self) -> tuple[Comparison, ...]:
        """Each configuration that ended well against the first that did the same work."""
        return tuple(one for one in within(self.runs, costs(self.runs)).comparisons if one.status == Status.OK)

    @cached_property
    def changes(self) -> Changes:
        """What each option does where configurations differ in nothing else."""
        return Changes(self.runs)

    @cached_property
    def own(self) -> pd.DataFrame:
        """The summary of the configurations."""
        return summary(self.runs)

    @cached_property
    def names(self) -> pd.DataFrame:
        """The names of the configurations in words (`say.names.named`), on the index of `own`."""
        return named(self.own) if len(self.own) else pd.DataFrame(columns=["work", "change"], dtype="str")

    @property
    def models(self) -> dict[float, str]:
        """The names of kinds of work by FLOP of a sample."""
        return dict(zip(self.own["flops_per_sample"], self.names["work"], strict=True))

    @property
    def tested(self) -> bool:
        """Whether they put the law to a test: no ladder, but several numbers of devices, or three sizes of work."""
        return not self.steps and any(len(one.devices) > 1 or len(one.by_work) > 2 for one in self.law.series)


def find(df: pd.DataFrame) -> list[Found]:
    """Return what each execution in a frame of runs says."""
    found = (without_probes(part.reset_index(drop=True)) for _, part in df.groupby(["suite", "execution"], sort=False))
    return [Found(part, tuple(ladder(part)), probes) for part, probes in found]


def document(df: pd.DataFrame) -> dict[str, Any]:
    """The answer of a frame of runs as JSON: every run, one entry a configuration, comparisons, the fit. Absent is null."""
    return told(df, summary(df), find(df))


def told(df: pd.DataFrame, table: pd.DataFrame, found: Sequence[Found]) -> dict[str, Any]:
    """The answer as JSON, of a frame, its summary and what its executions say."""
    law = found[0].law if len(found) == 1 else fit(df)
    return {
        "runs": _records(df),
        "configurations": _records(table),
        "comparisons": [_told(one.runs, comparison) for one in found for comparison in one.others],
        "ladder": [_told(one.runs, step) for one in found for step in one.steps],
        "precisions": [
            {"suite": one.runs["suite"].iloc[0], "execution": one.runs["execution"].iloc[0], **change.to_dict("time")}
            for one in found
            for change in one.changes
            if change.topic.name == "precision"
        ],
        "fit": law.to_dict(),
    }


def _told(part: pd.DataFrame, comparison: Comparison) -> dict[str, Any]:
    return {"suite": part["suite"].iloc[0], "execution": part["execution"].iloc[0], **comparison.to_dict()}


def _records(df: pd.DataFrame) -> list[dict[str, Any]]:
    text = df.to_json(orient="records", date_format="iso", double_precision=15)
    records: list[dict[str, Any]] = json.loads(text)
    return records


_TOTALS = (
    ("Energy, measured", "run_energy_joules", "", ""),
    ("Energy, estimated by a model", "run_energy_joules_estimated", "", ""),
    ("CO2e, from measured energy", "emissions_kg", "emissions_basis", "measured"),
    ("CO2e, from energy estimated by a model", "emissions_kg", "emissions_basis", "estimated"),
    ("Cost, rent of devices", "cost_usd", "cost_basis", "rental"),
    ("Cost, owned devices", "cost_usd", "cost_basis", "owned"),
)
"""Label and column of each total, and of which runs it is: those whose basis begins so."""


def totals(df: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return label, value and small print of every total of whole runs. What rests on a model says so in its label."""
    taken = df[["run_energy_joules", "run_energy_joules_estimated", "cost_usd"]].notna().any(axis=1)
    skipped = int(((df["status"] == Status.SKIPPED) & ~taken).sum())  # others found out only when they had begun
    runs = f"{{}} of {len(df) - skipped} runs" + (f", {skipped} skipped before they began" if skipped else "")
    tiles = []
    for label, column, basis, begin in _TOTALS:
        value, known = total(df[df[basis].str.startswith(begin, na=False)] if basis else df, column)
        if value is None:
            tiles += [] if basis else [(label, "not known", runs.format(known))]
        elif column == "cost_usd":
            tiles.append((label, f"{number(value)} USD", runs.format(known)))
        else:
            amount, unit = (1000 * value, "g") if basis else (value, "J")
            divisor, unit = scale(amount, unit)
            kwh = "" if basis else f"{number(value / 3.6e6)} kWh, "
            tiles.append((label, f"{interval(amount / divisor)} {unit}", kwh + runs.format(known)))
    return tiles
