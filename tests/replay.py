"""A full grid that was measured once, and a runner that plays it back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.runs.frame import frame
from analytics.search.file import Search
from analytics.search.space import Space
from bench.figures.metrics import parameters
from bench.schema import Machine, RunSpec
from bench.suites import yaml as yamlfile

DATA = Path(__file__).parent / "data" / "recorded"
FIELDS = ("batch_size_per_device", "precision", "optimizer", "memory", "devices", "parallelism")
MACHINE = Machine(cpu_model="a processor", cpu_count=2)


def search(objectives: str = "[time, cost]", seed: int = 0, **fields: Any) -> Search:
    """Return the search over the grid that was recorded: the suite `decoder_grid.yaml`, its matrix as the space."""
    suite = yamlfile.read(DATA / "decoder_grid.yaml")
    written = {
        "name": "replay",
        "defaults": suite["defaults"] | {"device_type": "cpu"},
        "space": suite["matrix"],
        "exclude": suite["exclude"],
        "objectives": yamlfile.parse(objectives),
        "budget": {"trials": 400},
        "repeats": 1,
        "seed": seed,
        "region": suite["region"],
        "usd_per_device_hour": suite["usd_per_device_hour"],
    }
    return Search.model_validate(written | fields, strict=True)


def space(searched: Search) -> Space:
    return Space.of(searched, MACHINE)


class Recorded:
    """The runs of the grid: called with specs, it returns the rows that were recorded of them, and counts."""

    def __init__(self, over: Space) -> None:
        self.rows: dict[tuple[str, ...], dict[str, Any]] = {}
        self.configurations: list[tuple[str, ...]] = []
        for row in pd.read_csv(DATA / "decoder_grid.csv").to_dict("records"):
            known = {str(name): value for name, value in row.items() if not pd.isna(value)}
            spec = over.spec({name: known[name] for name in FIELDS})
            self.rows[self.place(spec)] = (
                parameters(spec) | known | {"execution": "recorded", "config_id": spec.config_id}
            )

    @staticmethod
    def place(spec: RunSpec) -> tuple[str, ...]:
        told = parameters(spec)
        return tuple(str(told[name]) for name in FIELDS)

    def row(self, spec: RunSpec) -> dict[str, Any]:
        place = self.place(spec)
        found = self.rows[place]
        return found | {"run_id": spec.run_id, "repeat": spec.repeat, "started_at": "2026-11-22T16:00:00+00:00"}

    def __call__(self, specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        self.configurations += [place for spec in specs if (place := self.place(spec)) not in self.configurations]
        return [self.row(spec) for spec in specs]

    def frame(self) -> pd.DataFrame:
        """All of it, as if it came from a store."""
        return frame(
            {**row, "run_id": str(place), "started_at": "2026-11-22T16:00:00+00:00"} for place, row in self.rows.items()
        )
