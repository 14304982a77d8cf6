"""What a figure of a run is: its title and unit, which way is better, and how those of repeats are summarised.

Frames, comparisons, objectives, tables and pages read it here. Columns that are not listed, such as the energy of one
component or a user's own metric, get what the end of their name says.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bench.figures.metrics import OWN

Better = Literal["more", "less"]
Pooled = Literal["geometric", "median", "largest"]
Basis = Literal["work", "run", "target"]
ESTIMATED = "_estimated"


@dataclass(frozen=True)
class Quantity:
    """A column of figures. `factor` turns a value into `unit`.

    `pooled` says how repeats are summarised: by their geometric mean with an interval, their median, or the largest. `per`
    is what the figure is counted for: an amount of work (or a moment), the whole `run`, or the way to a `target`. Energy is
    measured or `estimated`, never both; `quality` is that of a trained model. `rests_on` is the column that says what the
    figure was computed from: only equal bases may be compared.
    """

    name: str
    title: str
    unit: str = ""
    factor: float = 1.0
    better: Better | None = None
    pooled: Pooled | None = None
    per: Basis = "work"
    quality: bool = False
    rests_on: str | None = None

    @property
    def estimated(self) -> bool:
        """Whether it is the figure of a model instead of a measurement."""
        return ESTIMATED.strip("_") in self.name

    @property
    def energy(self) -> bool:
        """Whether it is energy, which is measured or estimated."""
        return "joules" in self.name

    @property
    def twin(self) -> str | None:
        """Name of the same energy by the other kind of source; None for other quantities."""
        if not self.energy:
            return None
        plain = self.name.replace(ESTIMATED, "")
        return plain if self.estimated else plain + ESTIMATED

    @property
    def heading(self) -> str:
        """Title and unit for the head of a column; ~ marks the figures of a model."""
        title = f"{'~ ' * self.estimated}{self.title}"
        return title if not self.unit or title.lower().endswith(self.unit.lower()) else f"{title} [{self.unit}]"


def _catalogue() -> Iterator[Quantity]:
    with Path(__file__).with_name("data").joinpath("quantities.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            known = {name: text for name, text in row.items() if text}
            yield Quantity(**known | {"factor": float(row["factor"]), "quality": row["quality"] == "yes"})


CATALOGUE = {listed.name: listed for listed in _catalogue()}
"""All quantities that wattbench summarises or compares by itself, by name."""

_UNITS = (
    (r"joules_per_(sample|token)$", 1.0, "J/{0}"),
    (r"emissions_kg_per_million_(\w+)$", 1000.0, "g CO2e/million {0}"),
    (r"cost_usd_per_million_(\w+)$", 1.0, "USD/million {0}"),
    (r"flops_per_second(?:_per_device)?$", 1e-9, "GFLOP/s"),
    (r"(samples|tokens)_per_second(?:_per_device)?$", 1.0, "{0}/s"),
    (r"flops_per_\w+$", 1e-9, "GFLOP"),
    (r"(?:^|_)joules(?:_cpu|_gpu|_dram|_node)?$", 1.0, "J"),
    (r"(?:^|_)(?:seconds|seconds_median|seconds_p95|seconds_to_target)$", 1.0, "s"),
    (r"(?:^|_)watts$", 1.0, "W"),
    (r"(?:^|_)bytes$", 1e-6, "MB"),
    (r"(?:^|_)kg$", 1000.0, "g CO2e"),
    (r"(?:^|_)usd$", 1.0, "USD"),
    (r"(?:^|_)hz(?:_mean)?$", 1e-9, "GHz"),
    (r"(?:^|_)celsius(?:_max)?$", 1.0, "°C"),
    (r"(?:^|_)(?:share|share_ideal|utilization|accuracy|accuracy_change|error)$", 100.0, "%"),
)
_MORE = re.compile(r"_per_second(_per_device)?$|accuracy|_utilization$|busy_share$")
_LESS = re.compile(
    r"seconds|joules|usd|emissions|loss|_bytes|bubble|communication_share|wait_share|straggler|throttled|steps_to_target"
)
_QUALITY = re.compile(r"loss|accuracy|target")


@cache
def quantity(name: str) -> Quantity:
    """Return what a column is: as listed, or else what its name says."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    factor, unit, own = 1.0, "", name.startswith(OWN)  # the unit of a user's own metric is not known
    for pattern, times, text in () if own else _UNITS:
        if found := re.search(pattern, name.removesuffix(ESTIMATED)):
            factor, unit = times, text.format(*found.groups())
            break
    better: Better | None = "more" if _MORE.search(name) else "less" if _LESS.search(name) else None
    basis = "cost_basis" if name.startswith("cost") else "emissions_basis" if name.startswith("emissions") else None
    title, quality = name.removeprefix(OWN), own or bool(_QUALITY.search(name))
    return Quantity(name, title, unit, factor, better, quality=quality, rests_on=basis)


def pooled_by(how: Pooled) -> tuple[str, ...]:
    """Return the names of all listed quantities that are summarised in one way."""
    return tuple(name for name, one in CATALOGUE.items() if one.pooled == how)
