"""What may be compared: which figures are known, and why two sides cannot be compared by one of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from analytics.quantities import quantity
from analytics.runs.frame import COUNTS, asked, interleaved, values
from analytics.runs.recost import terms
from analytics.text import number, printable
from bench.record import Provenance, Status
from bench.schema import COMMAND

_WORK = {"workload": "workload", "dataset_digest": "data", "global_batch_size": "batch"}
_WORK |= {"device_name": "device", "region": "region"}
_TURN = ("suite", "execution", "environment", "host", "repeat", "seed")
"""What two launches of an interleaved execution share that took one turn."""


def metric_names(*frames: pd.DataFrame) -> list[str]:
    """Name the columns with figures of runs that ended well; what was asked of a run is none."""
    names: dict[str, None] = {}
    for df in frames:
        figures = df.select_dtypes("float64")
        known = figures[df["status"] == Status.OK].notna().any()
        names |= dict.fromkeys(known[known].index.difference([*asked(df), *COUNTS], sort=False))
    return list(names)


def usual_metrics(*frames: pd.DataFrame) -> list[str]:
    """Choose the metrics of a comparison by default: speed, energy of a sample, memory and loss, where all know them."""
    known = set(metric_names(frames[0])).intersection(*(metric_names(df) for df in frames))
    usual = (
        ("samples_per_second", "tokens_per_second", "duration_seconds"),
        ("joules_per_sample", "joules_per_sample_estimated"),
        ("peak_memory_bytes",),
        ("validation_loss",),
    )
    return [name for names in usual for name in [n for n in names if n in known][:1]]


class Repeats:
    """The runs of one configuration, of which `runs` ended well. What comparisons ask of them is computed once."""

    def __init__(self, every: pd.DataFrame) -> None:
        well = every["status"] == Status.OK
        self.every, self.runs = every, every if well.all() else every[well]
        self.ended = len(self.runs), len(every)
        self.status = str(Status.OK if len(self.runs) else every["status"].iloc[-1])
        self.figures, self.by_launch = cache(self._figures), cache(self._by_launch)
        self.pooled, self.texts = cache(self._pooled), cache(self._texts)

    def _figures(self, metric: str) -> dict[Any, float]:
        """Return the figures of a metric whose squares are finite, by the index of the runs."""
        values = self.runs[metric].astype(float) if metric in self.runs else pd.Series(dtype=float)
        return dict(values[values.abs() < 1e150].to_dict())

    def _by_launch(self, metric: str) -> dict[str, float]:
        """Return the figures of a metric by `launches`; nothing where a run does not say with which it ran."""
        figures = self.figures(metric)
        named = {self.launches[at]: value for at, value in figures.items()}
        return {} if "" in named or len(named) < len(figures) else named

    def _pooled(self, metric: str) -> float:
        """Return the figure of all runs that the summary shows."""
        values, how = np.array([*self.figures(metric).values()]), quantity(metric).pooled
        if how == "largest":
            return float(max(values))
        return float(np.median(values) if how == "median" or min(values) <= 0 else np.exp(np.log(values).mean()))

    def _texts(self, column: str) -> list[str]:
        """Return the different values of a column as text, sorted."""
        return sorted(set(self.runs[column].dropna().astype(str)))

    @property
    def message(self) -> str:
        """What the last run said, or how it ended."""
        last = self.every.iloc[-1]
        return str(last["error_message"] if pd.notna(last["error_message"]) else last["status"])

    @property
    def quality(self) -> dict[str, float] | None:
        """Quality on held-out samples."""
        names = ("validation_loss", "validation_accuracy")
        return {name: self.pooled(name) for name in names if self.figures(name)} or None

    @cached_property
    def turns(self) -> dict[Any, str]:
        """What each run shares with those that took the same turn; empty text where that is not known."""
        columns = (values(self.runs[column]) for column in _TURN)
        names = ("\0".join("" if v is None else str(v) for v in turn) for turn in zip(*columns, strict=True))
        known = self.runs["execution"].notna() & self.runs["repeat"].notna() & interleaved(self.runs)
        return {at: name if sure else "" for at, name, sure in zip(self.runs.index, names, known, strict=True)}

    @cached_property
    def launches(self) -> dict[Any, str]:
        """What each run shares with those that ran side by side with it, on as many devices; empty text as in `turns`."""
        devices = dict(zip(self.runs.index, values(self.runs["devices"]), strict=True))
        return {at: turn and f"{turn}\0{devices[at]}" for at, turn in self.turns.items()}

    @cached_property
    def identities(self) -> set[tuple[Any, ...]]:
        """Which runs these are, as far as they say so."""
        columns = (values(self.runs[column]) for column in ("suite", "execution", "environment", "run_id"))
        return {one for one in zip(*columns, strict=True) if one[1] is not None and one[3] is not None}

    @cached_property
    def terms(self) -> dict[str, list[str]]:
        """What cost and carbon of the runs rest on."""
        return terms(self.runs)

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


VANISHED = "no figure of the candidate is above 0, all of the baseline are"
CONSTANT = "its power is estimated as equal, so it differs as time does"
LOST = "the baseline has it, the candidate does not"


def incomparable(metric: str, candidate: Repeats, baseline: Repeats) -> str | None:
    """Say why two configurations cannot be compared by a metric; None where they can.

    Runs that do not say which they are are no one else's.
    """
    if not candidate.identities.isdisjoint(baseline.identities):
        return "the same runs stand on both sides"
    sides = {"the candidate": candidate, "the baseline": baseline}
    about = quantity(metric)
    for name, side in sides.items():
        known = len(side.figures(metric))
        if not known and about.twin is not None and len(side.figures(about.twin)):
            return f"{name} has {about.twin} only; measured and estimated energy are never compared"
        if not known:
            return LOST if side is candidate and len(baseline.figures(metric)) else f"{name} has no {metric}"
        if "_to_target" in metric and known < len(side.runs):
            return f"{len(side.runs) - known} of {len(side.runs)} runs of {name} did not reach the target"
    if about.quality and _differ(candidate, baseline, "dataset_digest", absent_too=True):
        return "the data differ, and so does what a loss or an accuracy means"
    if about.quality and metric != "loss_first" and (seen := _unequal(candidate.training, baseline.training)):
        least, most = map(number, seen)
        return (
            f"quality is that after {least} to {most} samples: give both the same measure_steps and batch, or a target"
        )
    for name, side in sides.items():
        if about.rests_on and len({*side.terms[about.rests_on]}) > 1:
            what = "price" if about.rests_on == "cost_basis" else "region and PUE"
            return f"the runs of {name} have no common {what}"
    work = [side.samples for side in sides.values()]
    if about.per == "run" and max(work) > 1.01 * min(work):
        amounts = " against ".join(number(samples) for samples in work)
        return f"the sides did not do the same work ({amounts} samples): compare figures of a sample or a second"
    if about.rests_on and (bases := _differ(candidate, baseline, about.rests_on, absent_too=True)):
        return f"they rest on different figures: {bases}"
    if about.energy and not about.estimated and (other := _other_energy(candidate, baseline)):
        return other
    new, old = (side.figures(metric).values() for side in sides.values())
    if min(*new, *old) <= 0:
        vanished = min(old) > 0 >= max(new)
        return VANISHED if vanished else "figures that are not above 0 have no ratio"
    return None


def equal_power(*sides: Repeats) -> bool:
    """Whether the estimated power of all runs of some sides is one within 1 %: then estimated energy tells nothing new."""
    watts = [value for side in sides for value in side.figures("power_watts_estimated").values()]
    return bool(watts) and max(watts) <= 1.01 * min(watts)


def constant_power(*sides: pd.DataFrame) -> bool:
    """Whether the estimated power is one within 1 % in all runs, or in all on as many devices.

    Two or more configurations share it, where each side of a comparison has its own.
    """
    ok = pd.concat([side.assign(side=place) for place, side in enumerate(sides)], ignore_index=True)
    ok = ok.loc[ok["status"] == Status.OK, ["side", "config_id", "devices", "power_watts_estimated"]].dropna()
    for whose in (ok["devices"], pd.Series(0, index=ok.index)):
        watts = ok.groupby(whose)["power_watts_estimated"]
        several = ok.drop_duplicates(["side", "config_id"]).groupby(whose).size() > 1
        if len(ok) and bool(((watts.max() <= 1.01 * watts.min()) & several).all()):
            return True
    return False


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
    steps = runs["trained_steps"].fillna(runs["steps"].where(runs["workload"] == COMMAND))
    seen = (steps * runs["global_batch_size"]).astype("float64")
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


def differences(candidate: Repeats, baseline: Repeats, metrics: Iterable[str]) -> list[str]:
    """Say where two sides did different work, or not all of their runs ended well or know a metric."""
    out = [
        f"other {name}: {values}" for column, name in _WORK.items() if (values := _differ(candidate, baseline, column))
    ]
    for side, whose in ((candidate, "the candidate"), (baseline, "the baseline")):
        bad = side.every[side.every["status"] != Status.OK]
        if len(bad):
            how = ", ".join(sorted(set(bad["status"])))
            count = f"{len(bad)} of {len(side.every)} runs of {whose}"
            out.append(f"{count} did not end well ({how}); the others are compared")
        for metric in metrics:
            absent = len(side.runs) - len(side.figures(metric))
            if absent:
                out.append(f"{absent} of {len(side.runs)} runs of {whose} have no {metric}; the others are compared")
    return out


def apart(candidate: Repeats, baseline: Repeats) -> bool:
    """Whether no runs of both took one turn, so that what changed in between counts as well."""
    return not {*candidate.turns.values()} & {*baseline.turns.values()} - {""}


def other_nodes(candidate: Repeats, baseline: Repeats) -> tuple[str, ...]:
    """Return the flag of two sides that ran on nodes of a cluster and had none in common."""
    names = [{name for text in side.texts("node_names") for name in text.split()} for side in (candidate, baseline)]
    return ("other_nodes",) if all(names) and names[0].isdisjoint(names[1]) else ()


DOUBTFUL = ("shared_gpu", "throttled", "noisy_host", "grade C")
"""Flags and grades that may make a difference by themselves."""


def doubts(candidate: Repeats, baseline: Repeats) -> dict[str, tuple[str, ...]]:
    """Return what may make a difference besides the thing compared: flags and bad grades that one side alone has."""
    known = [side.flags | {f"grade {grade}" for grade in side.texts("grade")} for side in (candidate, baseline)]
    apart = {"candidate": known[0] - known[1], "baseline": known[1] - known[0]}
    codes_by_side = {side: tuple(sorted(codes.intersection(DOUBTFUL))) for side, codes in apart.items()}
    return {side: codes for side, codes in codes_by_side.items() if codes}
