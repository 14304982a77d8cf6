"""What may be compared: which way a figure is better, and why two sides cannot be held against each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd

from analytics.frame import COUNTS, asked
from analytics.words import number, printable
from bench.record import Provenance, Status

_MORE = re.compile(r"(_per_second(_per_device)?|accuracy|_utilization|busy_share|target_reached)$")
_LESS = re.compile(
    r"seconds|joules|usd|emissions|loss|_bytes|bubble|communication_share|wait_share|straggler|throttled|steps_to_target"
)
_TOTALS = re.compile(r"^((run_)?energy_joules(_estimated)?|(duration|window)_seconds|emissions_kg|cost_usd)$")
_QUALITY = re.compile(r"loss|accuracy|target")
_BASES = ((re.compile("^emissions"), "emissions_basis"), (re.compile("^cost"), "cost_basis"))
_WORK = {"workload": "workload", "dataset_digest": "data", "global_batch_size": "batch"}
_WORK |= {"device_name": "device", "region": "region"}

Better = Literal["more", "less"]


def better(metric: str) -> Better | None:
    """Say whether more or less of a figure is better; None where that is not known, as of one that is not ours."""
    if metric == "loss_first":
        return None
    return "more" if _MORE.search(metric) else "less" if _LESS.search(metric) else None


def metric_names(*frames: pd.DataFrame) -> list[str]:
    """Name the columns that hold figures which some run that ended well has, and not what was asked of it."""
    found = dict.fromkeys(
        name
        for df in frames
        for name in df.columns.difference([*asked(df), *COUNTS], sort=False)
        if pd.api.types.is_float_dtype(df[name]) and df.loc[df["status"] == Status.OK, name].notna().any()
    )
    return list(found)


def usual_metrics(*frames: pd.DataFrame) -> list[str]:
    """Choose what is compared unless it is said: speed, energy of a sample, memory and loss, as far as all know them."""
    known = set(metric_names(frames[0])).intersection(*(metric_names(df) for df in frames))
    wanted = (
        ("tokens_per_second", "samples_per_second", "duration_seconds"),
        ("joules_per_sample", "joules_per_sample_estimated"),
        ("peak_memory_bytes",),
        ("validation_loss",),
    )
    return [name for names in wanted for name in [n for n in names if n in known][:1]]


def figures(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return what runs know of a metric: figures whose squares are finite, on the index of `runs`."""
    if metric not in runs:
        return pd.Series(dtype=float)
    values = runs[metric].astype(float)
    return values[values.abs() < 1e150]


def incomparable(metric: str, candidate: pd.DataFrame, baseline: pd.DataFrame) -> str | None:
    """Say why runs that ended well cannot be compared by a metric; None where they can."""
    sides = {"the candidate": candidate, "the baseline": baseline}
    for name, side in sides.items():
        known = len(figures(side, metric))
        other = _other_kind(metric, side)
        if not known and other:
            return f"{name} has {other} only; measured and estimated energy are never compared"
        if not known:
            return f"{name} has no {metric}"
        if "_to_target" in metric and known < len(side):
            return f"{len(side) - known} of {len(side)} runs of {name} did not reach the target"
    if _QUALITY.search(metric) and _differ((candidate, baseline), "dataset_digest", absent_too=True):
        return "the data differ, and so does what a loss or an accuracy means"
    if _QUALITY.search(metric) and metric != "loss_first" and (seen := unequal_training(candidate, baseline)):
        least, most = map(number, seen)
        return (
            f"quality is that after {least} to {most} samples: give both the same measure_steps and batch, or a target"
        )
    work = [(side["steps"] * side["global_batch_size"]).astype("float64").median() for side in sides.values()]
    if _TOTALS.search(metric) and max(work) > 1.01 * min(work):
        told = " against ".join(number(samples) for samples in work)
        return f"the sides did not do the same work ({told} samples): compare figures of a sample or a second"
    return _other_basis(metric, candidate, baseline)


def unequal_training(*runs: pd.DataFrame) -> tuple[float, float] | None:
    """Return how many samples the least and the most trained run saw, where that makes their quality incomparable.

    That is where they differ by more than 10 %, and no run trained to a target. None where they do not, or it is not known.
    """
    seen = pd.concat([df["trained_steps"] * df["global_batch_size"] for df in runs]).astype("float64").dropna()
    if seen.empty or seen.max() <= 1.1 * seen.min() or any(df["target_reached"].notna().any() for df in runs):
        return None
    return float(seen.min()), float(seen.max())


def _other_kind(metric: str, side: pd.DataFrame) -> str | None:
    """The estimated counterpart of a measured metric, or the other way round, where the side has that."""
    plain = metric.replace("_estimated", "")
    twins = {plain, f"{plain}_estimated"} - {metric}
    return next((twin for twin in sorted(twins) if "joules" in metric and len(figures(side, twin))), None)


def _other_basis(metric: str, candidate: pd.DataFrame, baseline: pd.DataFrame) -> str | None:
    """Whether carbon and money rest on the same kind of figure, and measured energy on the same components."""
    sides = (candidate, baseline)
    for pattern, column in _BASES:
        if pattern.search(metric) and (told := _differ(sides, column, absent_too=True)):
            return f"they rest on different figures: {told}"
    if "joules" in metric and "estimated" not in metric:
        kinds = [{_kind(label) for label in side["energy_provenance"].dropna()} for side in sides]
        if kinds[0] != kinds[1]:
            told = " against ".join(" and ".join(sorted(kind)) or "absent" for kind in kinds)
            return f"the energy has different provenance: {told}"
        if told := _differ(sides, "energy_components"):
            return f"the energy is that of different components: {told}"
    return None


def _kind(label: str) -> str:
    known = label in set(Provenance)
    return "measured" if known and Provenance(label).measured else printable(label, 40)


def _differ(sides: Sequence[pd.DataFrame], column: str, *, absent_too: bool = False) -> str | None:
    """Tell what two sides have in a column where that differs; what one side does not know may count as different."""
    known = [sorted(set(side[column].dropna().astype(str))) for side in sides]
    if known[0] == known[1] or not (absent_too or all(known)):
        return None
    return " against ".join(printable(", ".join(values), 80) or "unknown" for values in known)


def differences(candidate: pd.DataFrame, baseline: pd.DataFrame, metrics: Iterable[str]) -> list[str]:
    """Say where two sides did different work, or not all of their runs ended well or know a metric."""
    sides = [runs[runs["status"] == Status.OK] for runs in (candidate, baseline)]
    out = [f"other {name}: {told}" for column, name in _WORK.items() if (told := _differ(sides, column))]
    for runs, whose in ((candidate, "the candidate"), (baseline, "the baseline")):
        bad = runs[runs["status"] != Status.OK]
        if len(bad):
            how = ", ".join(sorted(set(bad["status"])))
            out.append(f"{len(bad)} of {len(runs)} runs of {whose} did not end well ({how}); the others are compared")
        good = runs[runs["status"] == Status.OK]
        for metric in metrics:
            absent = len(good) - len(figures(good, metric))
            if absent:
                out.append(f"{absent} of {len(good)} runs of {whose} have no {metric}; the others are compared")
    return out


def same_runs(candidate: pd.DataFrame, baseline: pd.DataFrame) -> bool:
    """Whether two sides share runs: then there is nothing to compare. Runs that do not say which they are share none."""
    identity = ["suite", "execution", "environment", "run_id"]
    sides = [side.dropna(subset=["execution", "run_id"])[identity].astype(str) for side in (candidate, baseline)]
    return len(sides[0].merge(sides[1], on=identity)) > 0


DOUBTFUL = ("shared_gpu", "throttled", "noisy_host")
"""Flags that may make a difference by themselves."""


def doubts(candidate: pd.DataFrame, baseline: pd.DataFrame) -> list[str]:
    """Say what may make a difference besides the thing compared: flags and bad grades that one side alone has."""
    known = []
    for side in (candidate, baseline):
        flags = {flag for text in side["flags"].dropna() for flag in str(text).split() if flag in DOUBTFUL}
        known.append(flags | ({"grade C"} if (side["grade"] == "C").any() else set()))
    apart = (("the candidate", known[0] - known[1]), ("the baseline", known[1] - known[0]))
    return [f"{whose} alone has {' and '.join(sorted(flags))}" for whose, flags in apart if flags]
