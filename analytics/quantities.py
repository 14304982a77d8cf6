"""What a figure of a run is: its title and unit, which way is better, and how those of repeats are summarised.

Frames, comparisons, objectives, tables and pages read it here. Columns that are not listed, such as the energy of one
component or a user's own metric, get what the end of their name says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

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


def _rates() -> Iterator[Quantity]:
    for work in ("samples", "tokens"):
        each = work[:-1]
        yield Quantity(f"{work}_per_second", f"{work.capitalize()}/s", f"{work}/s", 1.0, "more", "geometric")
        yield Quantity(
            f"{work}_per_second_per_device", f"{work.capitalize()}/s of one device", f"{work}/s", 1.0, "more"
        )
        for end in ("", ESTIMATED):
            yield Quantity(f"joules_per_{each}{end}", f"J/{each}", f"J/{each}", 1.0, "less", "geometric")
        for name, title, unit, factor, basis in (
            ("cost_usd", "USD", "USD", 1.0, "cost_basis"),
            ("emissions_kg", "g CO2e", "g CO2e", 1000.0, "emissions_basis"),
        ):
            million = f"million {work}"
            yield Quantity(
                f"{name}_per_million_{work}", f"{title}/{million}", f"{unit}/{million}", factor, "less", "geometric",
                rests_on=basis,
            )  # fmt: skip
    yield Quantity("flops_per_second_per_device", "Speed of one device", "GFLOP/s", 1e-9, "more", "geometric")
    yield Quantity("step_seconds_median", "Median step", "s", 1.0, "less", "geometric")


def _totals() -> Iterator[Quantity]:
    yield Quantity("duration_seconds", "Whole run", "s", 1.0, "less", "geometric", "run")
    yield Quantity("window_seconds", "Measured window", "s", 1.0, "less", None, "run")
    yield Quantity(
        "emissions_kg", "CO2e, whole run", "g CO2e", 1000.0, "less", "median", "run", rests_on="emissions_basis"
    )
    yield Quantity("cost_usd", "Cost, whole run", "USD", 1.0, "less", "median", "run", rests_on="cost_basis")
    for end in ("", ESTIMATED):
        yield Quantity(f"energy_joules{end}", "Energy of the window", "J", 1.0, "less", "median", "run")
        yield Quantity(f"run_energy_joules{end}", "Energy of the run", "J", 1.0, "less", "median", "run")
        yield Quantity(f"startup_energy_joules{end}", "Energy of the start-up", "J", 1.0, "less", "median")
        yield Quantity(f"inference_joules_per_sample{end}", "J/sample in use", "J/sample", 1.0, "less", "median")


def _to_target() -> Iterator[Quantity]:
    yield Quantity("target_reached", "Target reached", "", 1.0, "more", "median", "target", quality=True)
    yield Quantity("seconds_to_target", "Time to target", "s", 1.0, "less", "median", "target", quality=True)
    yield Quantity("steps_to_target", "Steps to target", "", 1.0, "less", "median", "target", quality=True)
    for end in ("", ESTIMATED):
        yield Quantity(
            f"energy_to_target_joules{end}", "Energy to target", "J", 1.0, "less", "median", "target", quality=True
        )
    yield Quantity(
        "emissions_to_target_kg", "CO2e to target", "g CO2e", 1000.0, "less", "median", "target", quality=True,
        rests_on="emissions_basis",
    )  # fmt: skip
    yield Quantity(
        "cost_to_target_usd",
        "Cost to target",
        "USD",
        1.0,
        "less",
        "median",
        "target",
        quality=True,
        rests_on="cost_basis",
    )


_OTHERS = (
    Quantity("peak_memory_bytes", "Peak memory", "MB", 1e-6, "less", "largest"),
    Quantity("memory_estimated_bytes", "Estimated peak memory", "MB", 1e-6, "less", "median"),
    Quantity("memory_estimate_error", "Error of the memory estimate", "%", 100.0, None, "median"),
    Quantity("validation_loss", "Validation loss", "", 1.0, "less", "median", quality=True),
    Quantity("validation_accuracy", "Validation accuracy", "%", 100.0, "more", "median", quality=True),
    Quantity("served_loss", "Loss of the served model", "", 1.0, "less", "median", quality=True),
    Quantity("served_accuracy", "Accuracy of the served model", "%", 100.0, "more", "median", quality=True),
    Quantity("loss_first", "Loss of the first step", "", 1.0, None, "median", quality=True),
    Quantity("loss_last", "Loss of the last step", "", 1.0, "less", "median", quality=True),
    Quantity("communication_share", "Time with communication", "%", 100.0, "less", "median"),
    Quantity("exposed_communication_share", "Time with communication alone", "%", 100.0, "less", "median"),
    Quantity("busy_share", "Time with computation", "%", 100.0, "more", "median"),
    Quantity("pipeline_bubble_share", "Pipeline bubble", "%", 100.0, "less", "median"),
    Quantity("model_flops_utilization", "Model FLOP utilization", "%", 100.0, "more", "median"),
    Quantity("matmul_utilization", "Share of the matrix speed", "%", 100.0, "more", "median"),
    Quantity("inference_samples_per_second", "Samples/s in use", "samples/s", 1.0, "more", "median"),
    Quantity("model_bytes", "Size of the served model", "MB", 1e-6, "less", "median"),
    Quantity("zeros_share", "Zeros in the served model", "%", 100.0, None, "median"),
    Quantity("compile_seconds", "Compilation", "s", 1.0, "less", "median"),
    Quantity("startup_seconds", "Start-up", "s", 1.0, "less", "median"),
    Quantity("power_watts", "Power", "W", 1.0, None, "median"),
    Quantity("idle_power_watts", "Idle power", "W", 1.0, None, "median"),
    Quantity("energy_systematic_joules", "Systematic error of the energy", "J", 1.0, "less", "median"),
    Quantity("energy_above_idle_joules", "Energy above idle", "J", 1.0, "less", "median"),
    Quantity("parameters", "Parameters", "", 1.0, None, "median"),
    Quantity("trainable_parameters", "Trained parameters", "", 1.0, None, "median"),
    Quantity("flops_per_sample", "Work of a sample", "GFLOP", 1e-9, None, "median"),
)

CATALOGUE = {one.name: one for one in (*_rates(), *_totals(), *_to_target(), *_OTHERS)}
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
    factor, unit = 1.0, ""
    for pattern, times, text in _UNITS:
        if found := re.search(pattern, name.removesuffix(ESTIMATED)):
            factor, unit = times, text.format(*found.groups())
            break
    better: Better | None = "more" if _MORE.search(name) else "less" if _LESS.search(name) else None
    basis = "cost_basis" if name.startswith("cost") else "emissions_basis" if name.startswith("emissions") else None
    return Quantity(name, name, unit, factor, better, quality=bool(_QUALITY.search(name)), rests_on=basis)


def pooled_by(how: Pooled) -> tuple[str, ...]:
    """Return the names of all listed quantities that are summarised in one way."""
    return tuple(name for name, one in CATALOGUE.items() if one.pooled == how)
