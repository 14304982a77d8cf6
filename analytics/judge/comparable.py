"""What may be compared: which figures are known, and why two sides cannot be compared by one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analytics.quantities import quantity
from analytics.runs.frame import COUNTS, asked
from analytics.text import number, printable
from bench.record import Provenance, Status

_WORK = {"workload": "workload", "dataset_digest": "data", "global_batch_size": "batch"}
_WORK |= {"device_name": "device", "region": "region"}
_LAUNCH = ["suite", "execution", "environment", "host", "devices", "repeat", "seed"]
"""What two launches of an interleaved execution share that ran side by side."""


def metric_names(*frames: pd.DataFrame) -> list[str]:
    """Name the columns with figures of runs that ended well; what was asked of a run is none."""
    names = dict.fromkeys(
        name
        for df in frames
        for name in df.columns.difference([*asked(df), *COUNTS], sort=False)
        if pd.api.types.is_float_dtype(df[name]) and df.loc[df["status"] == Status.OK, name].notna().any()
    )
    return list(names)


def usual_metrics(*frames: pd.DataFrame) -> list[str]:
    """Choose the metrics of a comparison by default: speed, energy of a sample, memory and loss, where all know them."""
    known = set(metric_names(frames[0])).intersection(*(metric_names(df) for df in frames))
    usual = (
        ("tokens_per_second", "samples_per_second", "duration_seconds"),
        ("joules_per_sample", "joules_per_sample_estimated"),
        ("peak_memory_bytes",),
        ("validation_loss",),
    )
    return [name for names in usual for name in [n for n in names if n in known][:1]]


class Repeats:
    """The runs of one configuration that ended well. What comparisons ask of them is computed once."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self.runs = runs[runs["status"] == Status.OK]
        self._figures: dict[str, dict[Any, float]] = {}
        self._by_launch: dict[str, dict[str, float]] = {}
        self._pooled: dict[str, float] = {}
        self._texts: dict[str, list[str]] = {}

    def figures(self, metric: str) -> dict[Any, float]:
        """Return the figures of a metric whose squares are finite, by the index of the runs."""
        if metric not in self._figures:
            values = self.runs[metric].astype(float) if metric in self.runs else pd.Series(dtype=float)
            self._figures[metric] = values[values.abs() < 1e150].to_dict()
        return self._figures[metric]

    def by_launch(self, metric: str) -> dict[str, float]:
        """Return the figures of a metric by `launches`; nothing where a run does not say with which it ran."""
        if metric not in self._by_launch:
            figures = self.figures(metric)
            named = {self.launches[at]: value for at, value in figures.items()}
            self._by_launch[metric] = {} if "" in named or len(named) < len(figures) else named
        return self._by_launch[metric]

    def pooled(self, metric: str) -> float:
        """Return the figure of all runs that the summary shows."""
        if metric not in self._pooled:
            values, how = np.array([*self.figures(metric).values()]), quantity(metric).pooled
            median = how == "median" or min(values) <= 0
            self._pooled[metric] = float(
                max(values) if how == "largest" else np.median(values) if median else np.exp(np.log(values).mean())
            )
        return self._pooled[metric]

    def texts(self, column: str) -> list[str]:
        """Return the different values of a column as text, sorted."""
        if column not in self._texts:
            self._texts[column] = sorted(set(self.runs[column].dropna().astype(str)))
        return self._texts[column]

    @cached_property
    def launches(self) -> dict[Any, str]:
        """What each run shares with those that ran side by side with it; empty text where that is not known."""
        names = self.runs[_LAUNCH].astype("str").fillna("").agg("\0".join, axis=1)
        known = self.runs["execution"].notna() & self.runs["repeat"].notna()
        return {at: name if sure else "" for at, name, sure in zip(self.runs.index, names, known, strict=True)}

    @cached_property
    def identities(self) -> set[tuple[str, ...]]:
        """Which runs these are, as far as they say so."""
        known = self.runs.dropna(subset=["execution", "run_id"])[["suite", "execution", "environment", "run_id"]]
        return set(known.astype(str).itertuples(index=False, name=None))

    @cached_property
    def samples(self) -> float:
        """Median number of samples of the measured steps."""
        return float((self.runs["steps"] * self.runs["global_batch_size"]).astype("float64").median())

    @cached_property
    def training(self) -> tuple[float, float, bool]:
        """Fewest and most samples of the training, and whether a run had a target."""
        return _training(self.runs)

    @cached_property
    def flags(self) -> set[str]:
        """Flags of all runs."""
        return {flag for text in self.runs["flags"].dropna() for flag in str(text).split()}


def incomparable(metric: str, candidate: Repeats, baseline: Repeats) -> str | None:
    """Say why two configurations cannot be compared by a metric; None where they can."""
    sides = {"the candidate": candidate, "the baseline": baseline}
    about = quantity(metric)
    for name, side in sides.items():
        known = len(side.figures(metric))
        if not known and about.twin is not None and len(side.figures(about.twin)):
            return f"{name} has {about.twin} only; measured and estimated energy are never compared"
        if not known:
            return f"{name} has no {metric}"
        if "_to_target" in metric and known < len(side.runs):
            return f"{len(side.runs) - known} of {len(side.runs)} runs of {name} did not reach the target"
    if about.quality and _differ(candidate, baseline, "dataset_digest", absent_too=True):
        return "the data differ, and so does what a loss or an accuracy means"
    if about.quality and metric != "loss_first" and (seen := _unequal(candidate.training, baseline.training)):
        least, most = map(number, seen)
        return (
            f"quality is that after {least} to {most} samples: give both the same measure_steps and batch, or a target"
        )
    work = [side.samples for side in sides.values()]
    if about.per == "run" and max(work) > 1.01 * min(work):
        amounts = " against ".join(number(samples) for samples in work)
        return f"the sides did not do the same work ({amounts} samples): compare figures of a sample or a second"
    if about.rests_on and (bases := _differ(candidate, baseline, about.rests_on, absent_too=True)):
        return f"they rest on different figures: {bases}"
    return _other_energy(candidate, baseline) if about.energy and not about.estimated else None


def _other_energy(candidate: Repeats, baseline: Repeats) -> str | None:
    """Say why measured energy of two sides is not the same figure; None where it is."""
    kinds = [sorted({_kind(label) for label in side.texts("energy_provenance")}) for side in (candidate, baseline)]
    if kinds[0] != kinds[1]:
        labels = " against ".join(" and ".join(kind) or "absent" for kind in kinds)
        return f"the energy has different provenance: {labels}"
    components = _differ(candidate, baseline, "energy_components")
    return f"the energy is that of different components: {components}" if components else None


def _kind(label: str) -> str:
    known = label in set(Provenance)
    return "measured" if known and Provenance(label).measured else printable(label, 40)


def _training(runs: pd.DataFrame) -> tuple[float, float, bool]:
    seen = (runs["trained_steps"] * runs["global_batch_size"]).astype("float64")
    return float(seen.min()), float(seen.max()), bool(runs["target_reached"].notna().any())


def _unequal(*training: tuple[float, float, bool]) -> tuple[float, float] | None:
    least = min((low for low, *_ in training if low == low), default=0.0)
    most = max((high for _, high, _ in training if high == high), default=0.0)
    return None if most <= 1.1 * least or any(target for *_, target in training) else (least, most)


def unequal_training(*runs: pd.DataFrame) -> tuple[float, float] | None:
    """Return the fewest and the most samples that runs saw, where that makes their quality incomparable.

    They differ by more than 10 % there, and no run trained to a target. None where they do not, or it is not known.
    """
    return _unequal(*map(_training, runs))


def _differ(candidate: Repeats, baseline: Repeats, column: str, *, absent_too: bool = False) -> str | None:
    """Say what two sides have in a column where that differs; `absent_too` counts what one side does not know."""
    known = [candidate.texts(column), baseline.texts(column)]
    if known[0] == known[1] or not (absent_too or all(known)):
        return None
    return " against ".join(printable(", ".join(values), 80) or "unknown" for values in known)


def differences(sides: Sequence[Repeats], ended: Sequence[pd.DataFrame], metrics: Iterable[str]) -> list[str]:
    """Say where two sides did different work, or not all of their runs (`ended`) ended well or know a metric."""
    out = [
        f"other {name}: {values}" for column, name in _WORK.items() if (values := _differ(sides[0], sides[1], column))
    ]
    for side, runs, whose in zip(sides, ended, ("the candidate", "the baseline"), strict=True):
        bad = runs[runs["status"] != Status.OK]
        if len(bad):
            how = ", ".join(sorted(set(bad["status"])))
            out.append(f"{len(bad)} of {len(runs)} runs of {whose} did not end well ({how}); the others are compared")
        for metric in metrics:
            absent = len(side.runs) - len(side.figures(metric))
            if absent:
                out.append(f"{absent} of {len(side.runs)} runs of {whose} have no {metric}; the others are compared")
    return out


def same_runs(candidate: Repeats, baseline: Repeats) -> bool:
    """Whether two sides share runs: then there is nothing to compare. Runs that do not say which they are share none."""
    return not candidate.identities.isdisjoint(baseline.identities)


DOUBTFUL = ("shared_gpu", "throttled", "noisy_host")
"""Flags that may make a difference by themselves."""


def doubts(candidate: Repeats, baseline: Repeats) -> list[str]:
    """Say what may make a difference besides the thing compared: flags and bad grades that one side alone has."""
    known = [
        {flag for flag in side.flags if flag in DOUBTFUL} | {"grade C" for grade in side.texts("grade") if grade == "C"}
        for side in (candidate, baseline)
    ]
    apart = (("the candidate", known[0] - known[1]), ("the baseline", known[1] - known[0]))
    return [f"{whose} alone has {' and '.join(sorted(flags))}" for whose, flags in apart if flags]
