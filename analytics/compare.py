"""A candidate against a baseline: any figure of the runs, or what the same work costs, with a verdict.

A ladder is a chain of such comparisons: each step against the one below it, and the whole against the foot.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import pandas as pd

from analytics import stats
from analytics.comparable import Better, better, differences, figures, incomparable
from analytics.frame import IDENTITY, asked, names, summary
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

PAIRED_BY = ["suite", "execution", "environment", "host", "devices", "repeat", "seed"]
"""What two launches of an interleaved execution share that ran side by side."""
PAIRS_FROM = 3
"""Launches are paired from this many pairs on: with two, Student's t has one degree of freedom and tells nothing."""

Verdict = Literal["less", "more", "same", "better", "worse", "equivalent", "cannot tell"]


@dataclass(frozen=True)
class Effect:
    """What a candidate does to one figure, as a multiple of the baseline (below 1 is less), with its 95 % interval.

    `cost` is one of COSTS, or the `metric` itself: a column of the frame. Where a figure is not positive on some side there
    is a `difference` instead of a ratio (NaN), and the interval is its. `value` and `baseline_value` are (geometric) means.
    The verdict follows `p_adjusted`, which allows for all comparisons that were made together; the interval does not.
    `probability_better` is the chance that the candidate is truly better. Where it cannot be told, `more_repeats` of each
    side would tell (`analytics.stats.more_repeats`), if that is known. `spread`: see `analytics.stats.Contrast`.
    """

    cost: str
    ratio: float
    low: float | None
    high: float | None
    repeats: int
    verdict: Verdict
    metric: str
    difference: float | None
    value: float
    baseline_value: float
    paired: bool
    better: Better | None
    probability_better: float | None
    p_value: float | None
    p_adjusted: float | None
    spread: tuple[float, ...]
    more_repeats: int | None


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline. `status` is `ok` where runs of both ended well; then there are effects.

    Otherwise it is that of the candidate, or of the baseline where that alone failed, and `reason` tells why.
    `quality` and `baseline_quality` are medians on held-out samples: `validation_loss` and, where there is one,
    `validation_accuracy`; they belong beside every effect, and are absent where the data differ. `flags` are those of
    either side. `not_compared` says of a metric that was asked for why it has no effect, and `notes` where the two sides
    did different work.
    """

    name: str
    baseline: str
    status: str
    reason: str
    effects: tuple[Effect, ...] = ()
    quality: dict[str, float] | None = None
    baseline_quality: dict[str, float] | None = None
    flags: tuple[str, ...] = ()
    baseline_status: str = "ok"
    not_compared: dict[str, str] | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        told = asdict(self)
        for effect in told["effects"]:
            effect["ratio"] = effect["ratio"] if effect["difference"] is None else None
        return told


def compare(
    candidate: pd.DataFrame,
    baseline: pd.DataFrame,
    name: str,
    baseline_name: str,
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Compare the runs (rows of a frame) of two configurations; those that did not end well count for nothing.

    Each of `metrics`, columns of the frame, has an effect or a reason why not; without them, what the same work costs has
    (COSTS), as far as both sides know it. Launches that ran side by side are compared in pairs, others by Welch's t
    (`analytics.stats.contrast`). Verdicts are made by `judged`, of all that is compared together.
    """
    sides = [runs[runs["status"] == Status.OK] for runs in (candidate, baseline)]
    statuses = [
        str(Status.OK if len(side) else r["status"].iloc[-1])
        for side, r in zip(sides, (candidate, baseline), strict=True)
    ]
    for side, runs, whose, status in zip(sides, (candidate, baseline), ("", "the baseline: "), statuses, strict=True):
        if side.empty:
            last = runs.iloc[-1]
            reason = whose + printable(
                last["error_message"] if pd.notna(last["error_message"]) else last["status"], 300
            )
            return Comparison(name, baseline_name, status, reason, baseline_status=statuses[1])
    effects, reasons = [], {}
    wanted = COSTS if metrics is None else {metric: (metric, False) for metric in metrics}
    for cost, (metric, inverse) in wanted.items():
        why_not = incomparable(metric, sides[0], sides[1])
        if why_not is not None:
            reasons[cost] = why_not
        elif metrics is not None or all((figures(side, metric) > 0).all() for side in sides):
            effects.append(_effect(cost, metric, sides, inverse=inverse))
    flags = sorted({flag for side in sides for text in side["flags"].dropna() for flag in str(text).split()})
    same_data = set(sides[0]["dataset_digest"].dropna()) == set(sides[1]["dataset_digest"].dropna())
    quality = [_quality(side) if same_data else None for side in sides]
    notes = differences(candidate, baseline, sides, wanted)
    refused = reasons if metrics is not None and reasons else None
    return Comparison(
        name,
        baseline_name,
        "ok",
        "",
        tuple(effects),
        quality=quality[0],
        baseline_quality=quality[1],
        flags=tuple(flags),
        not_compared=refused,
        notes=tuple(notes),
    )


def _effect(cost: str, metric: str, sides: Sequence[pd.DataFrame], *, inverse: bool) -> Effect:
    """Compare one metric that both sides know; the verdict is still to be made."""
    pairs = side_by_side(metric, sides)
    values = pairs or [figures(side, metric).tolist() for side in sides]
    new, old = reversed(values) if inverse else values
    logarithms = min(min(new), min(old)) > 0
    found = stats.contrast(new, old, paired=pairs is not None, logarithms=logarithms)
    way = "less" if inverse else better(metric)
    more = found.probability_more
    centre = found.found.value
    return Effect(
        cost=cost,
        ratio=centre if logarithms else math.nan,
        low=found.found.low,
        high=found.found.high,
        repeats=found.found.n,
        verdict="cannot tell",
        metric=metric,
        difference=None if logarithms else centre,
        value=_centre(values[0], logarithms=logarithms),
        baseline_value=_centre(values[1], logarithms=logarithms),
        paired=pairs is not None,
        better=way,
        probability_better=None if more is None or way is None else more if way == "more" else 1 - more,
        p_value=found.p_value,
        p_adjusted=found.p_value,
        spread=found.spread,
        more_repeats=None,
    )


def _centre(values: Sequence[float], *, logarithms: bool) -> float:
    return stats.geometric_mean(values, resamples=1).value if logarithms else sum(values) / len(values)


def _launches(runs: pd.DataFrame) -> list[str]:
    """Say of each run what those share that ran side by side with it; nothing where that is not known."""
    facts = zip(*(runs[name] for name in PAIRED_BY), strict=True)
    known = runs["execution"].notna() & runs["repeat"].notna()
    return ["\0".join(map(str, shared)) if sure else "" for shared, sure in zip(facts, known, strict=True)]


def side_by_side(metric: str, sides: Sequence[pd.DataFrame]) -> list[list[float]] | None:
    """Return the figures of launches that ran side by side; None where they are few, or most launches have no such mate."""
    known = [figures(side, metric) for side in sides]
    launches = [_launches(side.loc[values.index, PAIRED_BY]) for side, values in zip(sides, known, strict=True)]
    new, old = (dict(zip(names, values, strict=True)) for names, values in zip(launches, known, strict=True))
    both = [name for name in new if name in old]
    alone = any(len(set(names)) < len(names) or "" in names for names in launches)
    if alone or len(both) < PAIRS_FROM or 2 * len(both) <= max(map(len, sides)):
        return None
    return [[new[name] for name in both], [old[name] for name in both]]


def judged(
    comparisons: Iterable[Comparison], equivalence: float = stats.SAME, *, costs: bool = False
) -> list[Comparison]:
    """Make the verdicts of comparisons that were made together, their p-values adjusted by Holm's method.

    Equivalent (or the same) is an interval within 1 ± `equivalence`; of a difference, within that share of the baseline's
    mean. `costs`: each cost is a family of its own, as they follow from each other, and verdicts are less, more, same.
    """
    comparisons = list(comparisons)
    p_values: defaultdict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        for effect in comparison.effects:
            if effect.p_value is not None:
                p_values[effect.cost if costs else ""].append(effect.p_value)
    adjusted = {name: dict(zip(family, stats.holm(family), strict=True)) for name, family in p_values.items()}

    def verdict(effect: Effect) -> Effect:
        if effect.p_value is None:
            return effect
        family = effect.cost if costs else ""
        known = replace(effect, p_adjusted=adjusted[family][effect.p_value])
        return _judge(known, len(p_values[family]), equivalence, costs=costs)

    return [replace(c, effects=tuple(map(verdict, c.effects))) for c in comparisons]


def _judge(effect: Effect, tests: int, share: float, *, costs: bool) -> Effect:
    if effect.difference is None:
        centre, region, neutral = effect.ratio, (1 - share, 1 + share), 1.0
        distance, bounds = math.log(centre), (math.log1p(-share), math.log1p(share))
    else:
        reach = share * abs(effect.baseline_value)
        centre = distance = effect.difference
        region, neutral, bounds = (-reach, reach), 0.0, (-reach, reach)
    found = stats.Estimate(centre, effect.low, effect.high, effect.repeats)
    plain = stats.verdict(found, effect.p_adjusted or 0.0, region, neutral)
    verdict: Verdict = plain
    if not costs and plain == "same":
        verdict = "equivalent"
    elif not costs and plain != "cannot tell" and effect.better is not None:
        verdict = "better" if plain == effect.better else "worse"
    more = (
        stats.more_repeats(effect.spread, effect.repeats, distance, bounds, tests) if plain == "cannot tell" else None
    )
    return replace(effect, verdict=verdict, more_repeats=more)


def _quality(runs: pd.DataFrame) -> dict[str, float] | None:
    found = {name: figures(runs, name) for name in ("validation_loss", "validation_accuracy")}
    known = {name: float(values.median()) for name, values in found.items() if len(values)}
    return known or None


@dataclass(frozen=True)
class Matched:
    """Two sets of runs, configuration by configuration, and the names of those that one side alone has."""

    comparisons: list[Comparison]
    only_baseline: list[str]
    only_candidate: list[str]


def match(
    candidate: pd.DataFrame,
    baseline: pd.DataFrame,
    baseline_name: str,
    metrics: Sequence[str],
    equivalence: float = stats.SAME,
) -> Matched:
    """Compare configurations that were asked for on both sides (`config_id`), each by its newest execution on a side."""
    newest = [_newest(side) for side in (candidate, baseline)]
    new, old = (_by_configuration(side) for side in newest)
    table = pd.concat(newest).drop_duplicates("config_id").reset_index(drop=True)
    known = names(table[["config_id", *asked(table)]])
    twice = known.duplicated(keep=False)
    known = known.where(~twice, known.replace("plain", "") + " " + table["config_id"]).str.strip()
    called = dict(zip(table["config_id"], known, strict=True))
    both = [config for config in old if config in new]
    compared = [compare(new[config], old[config], called[config], baseline_name, metrics) for config in both]
    return Matched(
        judged(compared, equivalence),
        [called[config] for config in old if config not in new],
        [called[config] for config in new if config not in old],
    )


def _by_configuration(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(config): runs for config, runs in df.groupby("config_id", sort=False)}


def _newest(df: pd.DataFrame) -> pd.DataFrame:
    """Leave the newest execution of each configuration: launches of several share less than those of one."""
    keys = ["config_id", "suite", "execution", "environment"]
    last = df.sort_values("started_at", kind="stable", na_position="first").drop_duplicates("config_id", keep="last")
    return df.merge(last[keys], on=keys)


def against_first(
    df: pd.DataFrame, metrics: Sequence[str] | None = None, equivalence: float = stats.SAME
) -> list[Comparison]:
    """Compare each configuration of one execution with the one that was begun first, which a suite names first.

    Samples of another workload are other work: its configurations are left out. So are those that are there to save their
    weights for others, unless there is nothing else; and without `metrics`, those of which no run ended well.
    """
    table = summary(df)
    if len(table):
        first = df[df["status"] == Status.OK].sort_values("started_at").iloc[0]["workload"]
        table = table[(table["workload"] == first) | (table["workload"].isna() & pd.isna(first))]
    if "saves" in table and table["saves"].isna().sum() > 1:
        table = table[table["saves"].isna()]
    if table.empty:
        return []
    begun = df.groupby("config_id")["started_at"].min()
    order = table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")]
    runs = _by_configuration(df)
    (first, base), *others = zip(order["config_id"], order["name"], strict=True)
    if metrics is not None:
        good = set(df.loc[df["status"] == Status.OK, "config_id"])
        others += [(config, of["label"].iloc[0]) for config, of in runs.items() if config not in good]
    compared = [compare(runs[config], runs[first], name, base, metrics) for config, name in others]
    return judged(compared, equivalence, costs=metrics is None)


def ladder(df: pd.DataFrame) -> list[Comparison]:
    """Compare each step of a ladder with the one below, and last the top with the foot; [] for no ladder.

    `df` holds the runs of one execution; the column `ladder` counts the steps. A step that did not run is told with its
    reason, and the next is compared with the last below it that did; the foot is the first step that ran.
    """
    if "ladder" not in df or df["ladder"].isna().all():
        return []
    rungs = [(int(str(number)), runs) for number, runs in df.dropna(subset=["ladder"]).groupby("ladder")]
    called = _added([runs.iloc[0] for _, runs in rungs], df)
    out: list[Comparison] = []
    stood = [(runs, name) for (_, runs), name in zip(rungs, called, strict=True) if (runs["status"] == Status.OK).any()]
    if not stood:
        return [compare(runs, rungs[0][1], name, called[0]) for (_, runs), name in zip(rungs, called, strict=True)]
    (foot, foot_name), below = stood[0], stood[0]
    for (_, runs), name in zip(rungs, called, strict=True):
        if runs is foot:
            continue
        out.append(compare(runs, below[0], name, below[1]))
        if out[-1].status == Status.OK:
            below = runs, name
    if below[0] is not foot:
        out.append(compare(below[0], foot, "all steps", foot_name))
    return [judged([step], costs=True)[0] for step in out]  # each was a question of its own


def _added(rungs: list[pd.Series], df: pd.DataFrame) -> list[str]:
    """Name each step by what it changes of the one below."""
    follows = ("devices_per_node", "global_batch_size")  # from devices and batch_size_per_device
    columns = [name for name in asked(df) if name not in (*IDENTITY, *follows)]
    out = ["baseline"]
    for below, above in pairwise(rungs):
        changed = [c for c in columns if str(below[c]) != str(above[c]) and pd.notna(above[c])]
        out.append("+ " + ", ".join(f"{printable(c, 40)}={printable(above[c], 40)}" for c in changed))
    return out
