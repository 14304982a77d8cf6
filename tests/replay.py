"""A full grid that was measured once, and a runner that plays it back."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
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


_SPECS: dict[str, dict[Any, Any]] = {}
_FRAMES: dict[str, pd.DataFrame] = {}


def _identity(over: Space) -> str:
    return json.dumps(over.identity(), sort_keys=True)


def space(searched: Search) -> Space:
    """Return the space of a search. Those of one identity share what they have expanded."""
    made = Space.of(searched, MACHINE)
    return replace(made, _specs=_SPECS.setdefault(_identity(made), {}))


@cache
def _rows() -> dict[tuple[str, ...], dict[str, Any]]:
    given = pd.read_csv(DATA / "decoder_grid.csv").to_dict("records")
    known = ({str(name): value for name, value in row.items() if not pd.isna(value)} for row in given)
    return {tuple(str(row[name]) for name in FIELDS): row for row in known}


class Recorded:
    """The runs of the grid: called with specs, it returns the rows that were recorded of them, and counts."""

    def __init__(self, over: Space) -> None:
        self.space = over
        self.configurations: list[tuple[str, ...]] = []

    @staticmethod
    def place(spec: RunSpec) -> tuple[str, ...]:
        told = parameters(spec)
        return tuple(str(told[name]) for name in FIELDS)

    def row(self, spec: RunSpec) -> dict[str, Any]:
        found = parameters(spec) | _rows()[self.place(spec)] | {"execution": "recorded", "config_id": spec.config_id}
        return found | {"run_id": spec.run_id, "repeat": spec.repeat, "started_at": "2026-11-22T16:00:00+00:00"}

    def __call__(self, specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        self.configurations += [place for spec in specs if (place := self.place(spec)) not in self.configurations]
        return [self.row(spec) for spec in specs]

    def frame(self) -> pd.DataFrame:
        """All of it, as if it came from a store."""
        same = _identity(self.space)
        if same not in _FRAMES:
            specs = {place: self.space.spec({name: row[name] for name in FIELDS}) for place, row in _rows().items()}
            _FRAMES[same] = frame({**self.row(spec), "run_id": str(place)} for place, spec in specs.items())
        return _FRAMES[same]
