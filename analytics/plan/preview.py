"""What the runs of a suite would take on this machine: time, rent and memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from analytics.text import duration, interval, number
from bench.meters.meter import usable
from bench.run.runner import START_SECONDS, estimate_seconds
from bench.schema import COMMAND, Machine
from bench.suites.expand import Expansion

_MOST_ESTIMATES = 100
"""Estimates of memory for one suite: each takes about half a second."""


@dataclass(frozen=True)
class Preview:
    """A suite expanded for a machine: all its runs, and those that --only selects."""

    machine: Machine
    expansion: Expansion
    selected: Expansion

    @property
    def run_ids(self) -> set[str]:
        """Ids of the selected runs."""
        return {run.run_id for run in self.selected.runs}

    def estimate(self) -> dict[str, float | None]:
        """Estimate `seconds`, and `cost_usd` where a price is given; None where the time of a run is unknown."""
        runs, price = self.selected.to_do, self.expansion.suite.usd_per_device_hour
        seconds = [estimate_seconds(run) for run in runs]
        known = [each for each in seconds if each is not None]
        if len(known) < len(seconds):
            return {"seconds": None, "cost_usd": None}
        device_hours = sum(each * run.world_size for each, run in zip(known, runs, strict=True)) / 3600
        total = START_SECONDS + self._idle_seconds() + sum(known)
        return {"seconds": total, "cost_usd": None if price is None else device_hours * price}

    def _idle_seconds(self) -> float:
        """Seconds of idle power before the runs: on GPUs it is measured without and with a context of torch."""
        idle = self.expansion.suite.idle_seconds
        if self.machine.gpus:
            return 2 * idle
        meters = {meter for run in self.selected.to_do for meter in run.meters}
        return idle if usable(meters) else 0.0

    def memory(self) -> dict[str, int]:
        """Estimate the peak memory of a device in bytes, by config_id, where it can be; imports torch, takes seconds.

        After the first estimates of a large suite the others are left out.
        """
        trained = {run.config_id: run for run in self.selected.to_do if run.workload != COMMAND}
        if not trained:
            return {}
        logging.disable(logging.WARNING)  # what libraries log when they are imported
        try:
            from bench.train.footprint import computed, peak_bytes

            most, sizes = computed() + _MOST_ESTIMATES, {}
            for config_id, run in trained.items():
                if computed() >= most:
                    break
                sizes[config_id] = peak_bytes(run)
        finally:
            logging.disable(logging.NOTSET)
        return {config_id: size for config_id, size in sizes.items() if size is not None}

    def too_large(self, memory: dict[str, int]) -> dict[str, str]:
        """Say which configurations exceed the memory of a device or the limit of the run, by config_id."""
        reasons = {}
        gpus = [gpu.memory_bytes for gpu in self.machine.free_gpus if gpu.memory_bytes is not None]
        for run in self.selected.to_do:
            limits = [*(gpus if run.device_type == "gpu" else []), run.memory_limit_bytes]
            limit = min((each for each in limits if each is not None), default=None)
            size = memory.get(run.config_id)
            if size is not None and limit is not None and size > limit:
                reasons[run.config_id] = f"does not fit: a device has {number(limit / 1e9)} GB"
        return reasons

    def takes(self) -> str:
        """Say how long the runs take, and what they cost where a price is given."""
        seconds, cost = self.estimate().values()
        if seconds is None:
            return "for a time that is unknown until each has run once"
        return f"about {duration(seconds)}" + ("" if cost is None else f" and {interval(cost)} USD")

    def left_out(self, memory: dict[str, int]) -> int | None:
        """Return the number of estimates of memory where others were left out; None where none was."""
        count = len({run.config_id for run in self.selected.to_do})
        return _MOST_ESTIMATES if _MOST_ESTIMATES <= len(memory) < count else None

    def to_dict(self, memory: dict[str, int]) -> dict[str, Any]:
        """Return the document of `bench show --json`."""
        runs = [{"run_id": r.run_id, "config_id": r.config_id, **r.model_dump(mode="json")} for r in self.selected.runs]
        return {
            "suite": self.selected.suite.model_dump(mode="json"),
            "machine": self.machine.model_dump(mode="json"),
            "scaling": self.expansion.scaling,
            "runs": runs,
            "skipped": self.selected.skipped,
            "notes": self.selected.notes,
            "estimate": self.estimate(),
            "memory_estimated_bytes": memory,
            "does_not_fit": self.too_large(memory),
        }
