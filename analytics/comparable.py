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
_TOTALS = re.compile(r"^((run_)?energy_(estimated_)?joules|(duration|window)_seconds|emissions_kg|cost_usd)$")
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
    work = [(side["steps"] * side["global_batch_size"]).astype("float64").median() for side in sides.values()]
    if _TOTALS.search(metric) and max(work) > 1.01 * min(work):
        told = " against ".join(number(samples) for samples in work)
        return f"the sides did not do the same work ({told} samples): compare figures of a sample or a second"
    return _other_basis(metric, candidate, baseline)


def _other_kind(metric: str, side: pd.DataFrame) -> str | None:
    """The estimated counterpart of a measured metric, or the other way round, where the side has that."""
    plain = metric.replace("_estimated", "")
    twins = {plain, f"{plain}_estimated", plain.replace("_joules", "_estimated_joules")} - {metric}
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


def differences(
    candidate: pd.DataFrame, baseline: pd.DataFrame, sides: Sequence[pd.DataFrame], metrics: Iterable[str]
) -> list[str]:
    """Say where two sides did different work, or not all of their runs ended well (`sides` are those that did)."""
    out = [f"other {name}: {told}" for column, name in _WORK.items() if (told := _differ(sides, column))]
    for runs, whose in ((candidate, "the candidate"), (baseline, "the baseline")):
        bad = runs[runs["status"] != Status.OK]
        if len(bad):
            how = ", ".join(sorted(set(bad["status"])))
            out.append(f"{len(bad)} of {len(runs)} runs of {whose} did not end well ({how}); the others are compared")
    trained = [(side["trained_steps"] * side["global_batch_size"]).astype("float64").median() for side in sides]
    if max(trained) > 1.1 * min(trained) and any(_QUALITY.search(metric) for metric in metrics):
        told = " against ".join(number(samples) for samples in trained)
        out.append(f"other training: quality is that after {told} samples")
    identities = [set(zip(side["execution"], side["run_id"], strict=True)) for side in sides]
    if identities[0] & identities[1] and candidate["run_id"].notna().all():
        out.append("the same runs stand on both sides")
    return out
