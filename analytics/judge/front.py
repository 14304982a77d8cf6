"""Which configurations no other beats: time, cost, energy, carbon, memory and quality for the same work.

Repeats scatter, so there is not one front: it is found anew in many draws of what the true means may be, and each
configuration is told how often it was on it (its probability of not being dominated). Measured and estimated energy never
meet in one front, nor do runs that do other work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analytics.interval import Interval, geometric_mean
from analytics.judge.advice import weaknesses
from analytics.judge.comparable import Repeats, unequal_training
from analytics.judge.objectives import Objective, Per, columns, estimated, mixed, remedy, unequal_terms
from analytics.runs.frame import IDENTITY, names, of_tables, summary, telling, work_arguments
from analytics.text import number, printable
from analytics.work import short
from bench.errors import BadValue
from bench.record import Status
from bench.schema import COMMAND

if TYPE_CHECKING:
    from analytics.judge.objectives import Amount

OBJECTIVES = ("time", "energy", "cost", "carbon", "memory", "quality")
DEFAULT = ("time", "energy", "cost", "quality")
_UNLIKELY = 0.05
"""Up to this probability a configuration is not on the front."""
_LIGHTER = ("finetune", "pruning")
"""Methods that take fewer FLOP for the same work by their nature: that is their gain, and no other work."""


@dataclass(frozen=True)
class Front:
    """The configurations of one kind of work.

    `table` has a row a configuration, those of the front first: IDENTITY, `host`, `device_name`, `name`, `repeats`; each
    objective with `_low` and `_high` (95 %); `front` by the values alone; `p_front`, the share of draws in which no other
    configuration was better in all objectives, and `p_best_OBJECTIVE`, both NaN where one repeat tells no spread; and
    `knee`, true for the one of the front that is nearest to the best values of all. `others` are in the table, but do not
    count. `dropped` says why an objective is left out, `estimated` names those that rest on the energy of a model,
    `notes` tell of several prices or regions. `weak` are codes of why no choice is sure, `apart` says whether those that may
    be on the front did not run side by side.
    """

    work: str
    per: str
    objectives: tuple[Objective, ...]
    table: pd.DataFrame
    dropped: dict[str, str]
    estimated: tuple[str, ...] = ()
    others: tuple[Objective, ...] = ()
    notes: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    apart: bool = False


def front(df: pd.DataFrame, objectives: Sequence[str] = DEFAULT, draws: int = 1000, seed: int = 0) -> list[Front]:
    """Return a front for each kind of work in a frame of runs: workload, data and model.

    The means of a configuration are drawn jointly over the objectives (on logarithms; Student's t with n - 1 degrees of
    freedom, with the covariance of the residuals of its repeats), so that time and energy of a run stay together. The knee
    is the point nearest to the ideal one, on logarithms scaled to the front's range (compromise programming: Zeleny,
    Multiple Criteria Decision Making, 1982). Raises ValueError for an objective that is not one of OBJECTIVES.
    """
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown or not objectives:
        raise BadValue(f"objective {', '.join(unknown) or 'missing'}: allowed are {', '.join(OBJECTIVES)}")
    trained, _ = without_probes(df)
    command = tuple(objectives) == DEFAULT and trained["workload"].eq(COMMAND).all()  # it has no held-out samples here
    objectives = [name for name in dict.fromkeys(objectives) if not (command and name == "quality")]
    return [front_of(work, runs, objectives, draws=draws, seed=seed) for work, runs in works(trained)]


def without_probes(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Leave out the probes of searches, unless there is nothing else; return the rest and how many were left out."""
    probes = runs["stage"] == "probe"
    return (runs, 0) if probes.all() else (runs[~probes].reset_index(drop=True), int(probes.sum()))


def works(df: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split the runs that ended well into those that do the same work, each with a name.

    That is: the same workload, data, model and FLOP of a sample. Commands of different suites are different work.
    """
    df = df[df["status"] == Status.OK]
    shared = ["workload", "dataset", "dataset_digest", *work_arguments(df)]
    shared += ["suite"] * bool(df["workload"].eq(COMMAND).any())
    methods = [name for name in df.columns if name.split(".")[0] in _LIGHTER]
    texts = df[[*shared, *methods]].astype("str").fillna("")
    sizes = df["flops_per_sample"].groupby([texts[name] for name in texts]).transform(_sizes)
    keys = texts[shared].assign(flops_per_sample=sizes)
    by_flops = len(keys.drop_duplicates()) > len(keys[shared].drop_duplicates())
    groups = [runs for _, runs in df.groupby([keys[name] for name in keys], sort=False)]
    firsts = pd.DataFrame([runs.iloc[0] for runs in groups]).reindex(columns=shared).reset_index(drop=True)
    labels = names(firsts) if telling(firsts) else pd.Series("", index=firsts.index)
    if labels.duplicated().any():
        labels += (" " + firsts["dataset"]).fillna("") if firsts["dataset"].nunique() > 1 else ""
    for runs, label in zip(groups, labels, strict=True):
        size = f"{short(runs['flops_per_sample'].iloc[0])} FLOP a sample" * by_flops
        yield printable(" ".join(filter(None, (label.strip(), size))) or runs["workload"].iloc[0], 200), runs


def _sizes(flops: pd.Series) -> pd.Series:
    """Number the sizes of work: figures within 1 % are one size; those that are not known are one, too."""
    known = np.sort(flops.dropna().unique())
    starts: list[float] = []
    for value in known:
        if not starts or value > 1.01 * starts[-1]:
            starts.append(float(value))
    return pd.Series(np.searchsorted(starts, flops.fillna(-1), side="right"), index=flops.index)


def units(runs: pd.DataFrame) -> list[Per]:
    """Name what time, energy ... can be counted for in all of some runs: the target alone where all reached the same."""
    if runs["target_reached"].eq(1).all() and runs.get("target.value", pd.Series(dtype=float)).nunique() == 1:
        return ["target"]
    both: tuple[Per, ...] = ("samples", "tokens")
    return [unit for unit in both if runs[f"{unit}_per_second"].gt(0).all()] or ["samples"]


def known(
    runs: pd.DataFrame, wanted: Sequence[str] = OBJECTIVES, amount: Amount | None = None
) -> tuple[str, list[Objective], dict[str, str]]:
    """Choose what time, energy ... are counted for, and the column of each objective that all runs know.

    `amount` is a number of samples or of tokens; without one it is a million of what is known. What leads to a target is
    counted to there, whatever the amount.
    """
    per = units(runs)[0]
    size = 1e6
    if amount is not None and per != "target":
        per, size = ("tokens", amount.tokens) if amount.tokens else ("samples", amount.samples or size)
    found, dropped = [], {}
    for name in wanted:
        told = [c for c in columns(name, per) if c in runs and runs[c].notna().any()]
        complete = [Objective(name, c, size) for c in told if np.isfinite(runs[c]).all()]
        why = remedy(name, runs) if not told else _incomplete(name, told) if not complete else ""
        if name != "quality" and complete and not (runs[complete[0].column] > 0).all():
            why = "some figures are not above 0"
        why = why or (_unequal(runs) if name == "quality" and per != "target" else "") or mixed(runs, complete[0])
        if why:
            dropped[name] = why
        else:
            found.append(complete[0])
    each = f"per million {per}" if size == 1e6 else f"for {number(size)} {per}"
    return ("to the target" if per == "target" else each), found, dropped


def _incomplete(name: str, known: Sequence[str]) -> str:
    if name == "energy" and len(known) > 1:
        return "measured for some and estimated for others, which are never mixed"
    return "not known for all of them"


def _unequal(runs: pd.DataFrame) -> str:
    """Say that quality was read after unequal training; nothing where it was not, or where that is not known."""
    if (seen := unequal_training(runs)) is None:
        return ""
    after = f"it is that after {number(seen[0])} to {number(seen[1])} samples"
    return f"{after}: give all the same measure_steps and batch, or a target that all reach"


def front_of(
    work: str,
    runs: pd.DataFrame,
    wanted: Sequence[str] = DEFAULT,
    amount: Amount | None = None,
    also: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
) -> Front:
    """Return the front of runs that do the same work, one of `works`, for an amount of it (see `known`).

    Objectives that it should tell `also`, where they are known, are in its table and do not count.
    """
    per, objectives, dropped = known(runs, wanted, amount)
    others = known(runs, [name for name in also if name not in wanted], amount)[1]
    table = summary(runs)[[*IDENTITY, "host", "device_name", "name", "repeats"]]
    if not objectives:
        return Front(work, per, (), table, dropped)
    keys = [df[list(IDENTITY)].astype("str").fillna("").agg("\0".join, axis=1) for df in (runs, table)]
    of = dict(iter(runs.groupby(keys[0], sort=False)))
    parts = [of[key] for key in keys[1]]
    table = table.join(judged(parts, objectives, draws, seed).drop(columns="repeats"))
    doubts = _doubts([parts[place] for place in np.flatnonzero(table["front"] | ~(table["p_front"] <= _UNLIKELY))])
    table = table.assign(**_figures(others, *_values(parts, others)))
    first = objectives[0]
    table = table.sort_values(["front", first.name], ascending=[False, first.rising], kind="stable", ignore_index=True)
    every = [*objectives, *others]
    models = tuple(one.name for one in every if estimated(runs, one))
    notes = tuple(filter(None, (unequal_terms(runs, one) for one in every)))
    return Front(work, per, tuple(objectives), table, dropped, models, tuple(others), notes, *doubts)


def _doubts(parts: Sequence[pd.DataFrame]) -> tuple[tuple[str, ...], bool]:
    """Return why the figures of some configurations make no choice sure, and whether they did not run side by side."""
    runs = pd.concat(parts)
    weak = [*weaknesses(min(map(len, parts)), runs), *(["grade C"] if runs["grade"].eq("C").any() else [])]
    turns = [{*Repeats(part).turns.values()} - {""} for part in parts]
    return tuple(weak), len(parts) > 1 and not set.intersection(*turns) and not of_tables(runs).any()


def judged(
    parts: Sequence[pd.DataFrame], objectives: Sequence[Objective], draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Judge configurations by their runs, one frame of them each, that know all objectives: the columns of `Front.table`.

    There is a row a configuration, in their order; they are all held against each other, whatever work they do.
    """
    raw, logs = _values(parts, objectives)
    signs = np.array([1.0 if objective.rising else -1.0 for objective in objectives])
    scaled = [signs * np.where(logs, np.log(np.where(logs, x, 1.0)), x) for x in raw]
    centres = np.array([x.mean(axis=0) for x in scaled])
    table = pd.DataFrame({"repeats": [len(part) for part in parts], **_figures(objectives, raw, logs)})
    table["front"] = _nondominated(centres[None])[0]
    drawn = _draws(scaled, draws, np.random.default_rng(seed))
    known = (table["repeats"] > 1).to_numpy(dtype=bool)
    table["p_front"] = np.where(known, _nondominated(drawn).mean(axis=0), math.nan)
    for k, objective in enumerate(objectives):
        best = drawn[:, :, k] <= drawn[:, :, k].min(axis=1, keepdims=True)
        table[f"p_best_{objective.name}"] = np.where(known, best.mean(axis=0), math.nan)
    table["knee"] = np.arange(len(table)) == _knee(centres, table["front"].to_numpy())
    return table


def _values(parts: Sequence[pd.DataFrame], objectives: Sequence[Objective]) -> tuple[list[np.ndarray], list[bool]]:
    """Values of each part, of shape (runs, objectives), and which objectives count by their logarithm."""
    raw = [np.array([one.values(part) for one in objectives], dtype=float).T for part in parts]
    # A loss or an accuracy may be 0.
    return raw, [bool((np.concatenate(raw)[:, k] > 0).all()) for k in range(len(objectives))]


def _figures(objectives: Sequence[Objective], raw: Sequence[np.ndarray], logs: Sequence[bool]) -> dict[str, Any]:
    """Values and intervals by column of the table."""
    out: dict[str, Any] = {}
    for k, objective in enumerate(objectives):
        columns = [x[:, k] for x in raw]
        found = [geometric_mean(x) if logs[k] else Interval(x.mean(), None, None, len(x)) for x in columns]
        out[objective.name] = [estimate.value for estimate in found]
        for end in ("low", "high"):
            out[f"{objective.name}_{end}"] = np.array([getattr(one, end) for one in found], dtype=float)
    return out


def _draws(values: Sequence[np.ndarray], draws: int, random: np.random.Generator) -> np.ndarray:
    """Draw means, of shape (draws, configurations, objectives), from runs by configuration of shape (repeats, objectives).

    A sum of the residuals with normal weights has their covariance, also where there are fewer repeats than objectives.
    """
    out = np.empty((draws, len(values), values[0].shape[1]))
    for index, x in enumerate(values):
        n, centre = len(x), x.mean(axis=0)
        out[:, index] = centre
        if n > 1:
            normal = random.standard_normal((draws, n)) @ (x - centre) / math.sqrt(n * (n - 1))
            out[:, index] += normal / np.sqrt(random.chisquare(n - 1, draws) / (n - 1))[:, None]
    return out


def _nondominated(points: np.ndarray) -> np.ndarray:
    """Say which points no other beats, smaller being better: shape (draws, configurations, objectives).

    All draws at once: the first of those left by its sum is beaten by none, and beats many.
    """
    flat, of = points.reshape(-1, points.shape[2]), np.repeat(np.arange(len(points)), points.shape[1])
    out = np.zeros(len(of), dtype=bool)
    # Sums of unlike points may be equal after rounding: then the coordinates decide, so that what beats comes first.
    left = np.lexsort((*flat.T, flat.sum(axis=1), of))
    while len(left):
        starts = np.flatnonzero(np.diff(of[left], prepend=-1))
        pivots = left[starts]
        out[pivots] = True
        here, there = flat[left], flat[pivots.repeat(np.diff(starts, append=len(left)))]
        beaten = np.asarray((there <= here).all(axis=1) & (there < here).any(axis=1))
        beaten[starts] = True
        left = left[~beaten]
    return out.reshape(points.shape[:2])


def _knee(centres: np.ndarray, on_front: np.ndarray) -> int:
    """Index of the point of the front that is nearest to the best value of each objective, in units of the front's range."""
    here = np.flatnonzero(on_front)
    low, high = centres[here].min(axis=0), centres[here].max(axis=0)
    distance = np.linalg.norm((centres[here] - low) / np.where(high > low, high - low, 1.0), axis=1)
    return int(here[distance.argmin()])


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume of what points dominate within a reference point, smaller being better: shape (points, objectives).

    A coordinate in which all points and the reference are positive counts by its logarithm. Exact, by slicing along the
    last objective (While et al., IEEE Trans. Evolutionary Computation 10, 2006): meant for up to four.
    """
    both = np.vstack([reference, points])
    both = np.where((both > 0).all(axis=0), np.log(np.where(both > 0, both, 1.0)), both)
    if both.shape[1] == 1:  # a length is an area of height 1
        both = np.column_stack([np.append(1.0, np.zeros(len(points))), both])
    reference, points = both[0], both[1:]
    points = points[(points < reference).all(axis=1)]
    return _volume(np.unique(points[_nondominated(points[None])[0]], axis=0), reference)


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    points = points[points[:, -1].argsort()]
    heights = np.diff(np.append(points[:, -1], reference[-1]))
    if points.shape[1] == 2:
        return float(heights @ (reference[0] - np.minimum.accumulate(points[:, 0])))
    slices = (_volume(points[: k + 1, :-1], reference[:-1]) for k in np.flatnonzero(heights))
    return float(sum(height * area for height, area in zip(heights[heights > 0], slices, strict=True)))
