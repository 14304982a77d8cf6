"""A candidate against a baseline: time, energy and money for the same work, quality beside them, and a verdict.

A ladder is a chain of such comparisons: each step against the one below it, and the whole against the foot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from analytics import stats
from analytics.frame import IDENTITY, asked, summary
from analytics.words import printable
from bench.record import Status

COSTS = {
    "seconds": ("samples_per_second", True),
    "joules": ("joules_per_sample", False),
    "joules_estimated": ("joules_per_sample_estimated", False),
    "usd": ("cost_usd_per_million_samples", False),
    "seconds_to_target": ("seconds_to_target", False),
    "joules_to_target": ("energy_to_target_joules", False),
    "joules_to_target_estimated": ("energy_to_target_estimated_joules", False),
    "usd_to_target": ("cost_to_target_usd", False),
}
"""What the same work costs, or the way to the target: the column it follows from, and whether it is the inverse of that."""


@dataclass(frozen=True)
class Effect:
    """What a candidate costs of one thing, as a multiple of the baseline (below 1 is less), with its 95 % interval."""

    cost: str
    ratio: float
    low: float | None
    high: float | None
    repeats: int
    verdict: stats.Verdict


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline. `status` is that of the candidate's runs: effects are there where it is `ok`.

    `quality` and `baseline_quality` are medians on held-out samples: `validation_loss` and, where there is one,
    `validation_accuracy`; they belong beside every effect, and are absent where the data differ. `flags` are those of
    either side.
    """

    name: str
    baseline: str
    status: str
    reason: str
    effects: tuple[Effect, ...] = ()
    quality: dict[str, float] | None = None
    baseline_quality: dict[str, float] | None = None
    flags: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return asdict(self)


def compare(candidate: pd.DataFrame, baseline: pd.DataFrame, name: str, baseline_name: str) -> Comparison:
    """Compare the runs (rows of a frame) of two configurations; those that did not end well count for nothing.

    The interval is Welch's on the logarithms of the repeats (`analytics.stats.ratio`). A cost that either side does not
    know has no effect.
    """
    sides = [runs[runs["status"] == Status.OK] for runs in (candidate, baseline)]
    for side, runs, whose in zip(sides, (candidate, baseline), ("", "the baseline: "), strict=True):
        if side.empty:
            last = runs.iloc[-1]
            reason = whose + printable(
                last["error_message"] if pd.notna(last["error_message"]) else last["status"], 300
            )
            return Comparison(name, baseline_name, str(last["status"]), reason)
    effects = []
    for cost, (column, inverse) in COSTS.items():
        values = [side[column].dropna() if column in side else pd.Series(dtype=float) for side in sides]
        if any(known.empty or (known <= 0).any() for known in values):
            continue
        if "target" in cost and any(len(known) < len(side) for known, side in zip(values, sides, strict=True)):
            continue  # not all reached it
        pair = (values[1], values[0]) if inverse else (values[0], values[1])
        ratio = stats.ratio([pair])
        effects.append(Effect(cost, ratio.value, ratio.low, ratio.high, ratio.n, stats.verdict(ratio)))
    flags = sorted({flag for side in sides for text in side["flags"].dropna() for flag in str(text).split()})
    same_data = set(sides[0]["dataset_digest"].dropna()) == set(sides[1]["dataset_digest"].dropna())
    quality = [_quality(side) if same_data else None for side in sides]
    return Comparison(name, baseline_name, "ok", "", tuple(effects), quality[0], quality[1], tuple(flags))


def _quality(runs: pd.DataFrame) -> dict[str, float] | None:
    known = {
        name: float(runs[name].median())
        for name in ("validation_loss", "validation_accuracy")
        if name in runs and runs[name].notna().any()
    }
    return known or None


def against_first(df: pd.DataFrame) -> list[Comparison]:
    """Compare each configuration of one execution with the one that was begun first, which a suite names first.

    Samples of another workload are other work: its configurations are left out. So are those that are there to save their
    weights for others, unless there is nothing else.
    """
    table = summary(df)
    if len(table):
        table = table[table["workload"] == df[df["status"] == Status.OK].sort_values("started_at").iloc[0]["workload"]]
    if "saves" in table and table["saves"].isna().sum() > 1:
        table = table[table["saves"].isna()]
    if len(table) < 2:
        return []
    begun = df.groupby("config_id")["started_at"].min()
    order = table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")]
    runs = {row["config_id"]: df[df["config_id"] == row["config_id"]] for _, row in order.iterrows()}
    (first, base), *others = zip(order["config_id"], order["name"], strict=True)
    return [compare(runs[config], runs[first], name, base) for config, name in others]


def ladder(df: pd.DataFrame) -> list[Comparison]:
    """Compare each step of a ladder with the one below, and last the top with the foot; [] for no ladder.

    `df` holds the runs of one execution; the column `ladder` counts the steps. A step that did not run is told with its
    reason, and the next is compared with the last below it that did; the foot is the first step that ran.
    """
    if "ladder" not in df or df["ladder"].isna().all():
        return []
    rungs = [(int(str(number)), runs) for number, runs in df.dropna(subset=["ladder"]).groupby("ladder")]
    names = _added([runs.iloc[0] for _, runs in rungs], df)
    out: list[Comparison] = []
    stood = [(runs, name) for (_, runs), name in zip(rungs, names, strict=True) if (runs["status"] == Status.OK).any()]
    if not stood:
        return [compare(runs, rungs[0][1], name, names[0]) for (_, runs), name in zip(rungs, names, strict=True)]
    (foot, foot_name), below = stood[0], stood[0]
    for (_, runs), name in zip(rungs, names, strict=True):
        if runs is foot:
            continue
        out.append(compare(runs, below[0], name, below[1]))
        if out[-1].status == Status.OK:
            below = runs, name
    if below[0] is not foot:
        out.append(compare(below[0], foot, "all steps", foot_name))
    return out


def _added(rungs: list[pd.Series], df: pd.DataFrame) -> list[str]:
    """Name each step by what it changes of the one below."""
    follows = ("devices_per_node", "global_batch_size")  # from devices and batch_size_per_device
    columns = [name for name in asked(df) if name not in (*IDENTITY, *follows)]
    out = ["baseline"]
    for below, above in pairwise(rungs):
        changed = [c for c in columns if str(below[c]) != str(above[c]) and pd.notna(above[c])]
        out.append("+ " + ", ".join(f"{printable(c, 40)}={printable(above[c], 40)}" for c in changed))
    return out
