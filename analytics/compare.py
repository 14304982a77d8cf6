"""A candidate against a baseline: any figure of the runs, or what the same work costs, with a verdict.

A ladder is a chain of such comparisons: each step against the one below it, and the whole against the foot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import pandas as pd

from analytics import stats
from analytics.comparable import Better, better, differences, doubts, figures, incomparable, same_runs
from analytics.frame import IDENTITY, MEDIANS, asked, names, summary
from analytics.words import printable
from bench.record import Status
from bench.schema import COMMAND

COSTS = {
    "seconds": ("samples_per_second", True),
    "joules": ("joules_per_sample", False),
    "joules_estimated": ("joules_per_sample_estimated", False),
    "usd": ("cost_usd_per_million_samples", False),
    "seconds_to_target": ("seconds_to_target", False),
    "joules_to_target": ("energy_to_target_joules", False),
    "joules_to_target_estimated": ("energy_to_target_joules_estimated", False),
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
    is a `difference` instead of a ratio (NaN), and the interval is its; `vanished` is a candidate without any figure above 0
    where all of the baseline's are. `value` and `baseline_value` are the figures of the summary (`analytics.frame`): medians
    of some, geometric means of others. The verdict follows `p_adjusted` (of no difference) and `p_equivalent` (of a
    difference that matters), which allow for all comparisons that were made together; the interval does not: `among` is
    their number where the interval alone would tell, and all together do not. `probability_better` is the chance that the
    candidate is truly better. Where it cannot be told, `more_repeats` of each side would tell
    (`analytics.stats.more_repeats`), if that is known. `spread`, `error`, `degrees`: see `analytics.stats.Contrast`.
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
    p_equivalent: float | None
    spread: tuple[float, ...]
    error: float | None
    degrees: float | None
    more_repeats: int | None
    among: int | None
    vanished: bool


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline. `status` is `ok` where runs of both ended well; then there are effects.

    Otherwise it is that of the candidate, or of the baseline where that alone failed, and `reason` tells why.
    `quality` and `baseline_quality` are medians on held-out samples: `validation_loss` and, where there is one,
    `validation_accuracy`; they belong beside every effect, and are absent where the data differ. `flags` are those of
    either side. `not_compared` says of a metric that was asked for why it has no effect, `notes` where the two sides
    did different work, and `doubts` what else may have made a difference. `ended` counts the runs that ended well, and all.
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
    doubts: tuple[str, ...] = ()
    ended: tuple[int, int] = (0, 0)
    baseline_ended: tuple[int, int] = (0, 0)

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
    ended = [(len(side), len(runs)) for side, runs in zip(sides, (candidate, baseline), strict=True)]
    effects, reasons = [], {}
    same = "the same runs stand on both sides" if same_runs(*sides) else None
    wanted = COSTS if metrics is None else {metric: (metric, False) for metric in metrics}
    for cost, (metric, inverse) in wanted.items():
        why_not = same or incomparable(metric, sides[0], sides[1])
        if why_not is not None:
            reasons[cost] = why_not
        elif metrics is not None or all((figures(side, metric) > 0).all() for side in sides):
            effects.append(_effect(cost, metric, sides, inverse=inverse))
    flags = sorted({flag for side in sides for text in side["flags"].dropna() for flag in str(text).split()})
    same_data = set(sides[0]["dataset_digest"].dropna()) == set(sides[1]["dataset_digest"].dropna())
    quality = [_quality(side) if same_data else None for side in sides]
    notes = differences(candidate, baseline, [effect.metric for effect in effects])
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
        doubts=tuple(doubts(*sides)),
        ended=ended[0],
        baseline_ended=ended[1],
    )


def _effect(cost: str, metric: str, sides: Sequence[pd.DataFrame], *, inverse: bool) -> Effect:
    """Compare one metric that both sides know; the verdict is still to be made."""
    pairs = side_by_side(metric, sides)
    known = [figures(side, metric) for side in sides]
    values = pairs or [side.tolist() for side in known]
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
        value=_shown(metric, known[0]),
        baseline_value=_shown(metric, known[1]),
        paired=pairs is not None,
        better=way,
        probability_better=None if more is None or way is None else more if way == "more" else 1 - more,
        p_value=found.p_value,
        p_adjusted=found.p_value,
        p_equivalent=None,
        spread=found.spread,
        error=found.error,
        degrees=found.degrees,
        more_repeats=None,
        among=None,
        vanished=bool((known[1] > 0).all() and (known[0] <= 0).all()),
    )


def _shown(metric: str, values: pd.Series) -> float:
    """The figure of several runs that the summary shows."""
    if metric == "peak_memory_bytes":
        return float(values.max())
    if metric in MEDIANS or (values <= 0).any():
        return float(values.median())
    return stats.geometric_mean(values, resamples=1).value


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
    mean. Of all that are called better or worse any is wrong in 5 % at most, and of all that are called equivalent too (two
    families: being equivalent is another question). `costs`: each cost is asked about by itself, as they follow from each
    other, and verdicts are less, more, same.
    """
    comparisons = list(comparisons)
    found = [(e, _scale(e, equivalence)) for c in comparisons for e in c.effects]
    told: dict[int, Effect] = {}
    for family in dict.fromkeys(e.cost if costs else "" for e, _ in found):
        here = [(e, s) for e, s in found if e.p_value is not None and (not costs or e.cost == family)]
        apart = stats.holm([e.p_value or 0.0 for e, _ in here])
        same = stats.holm([s.p_same(e) for e, s in here])
        for (effect, scale), p_apart, p_same in zip(here, apart, same, strict=True):
            known = replace(effect, p_adjusted=p_apart, p_equivalent=p_same)
            told[id(effect)] = _judge(known, scale, len(here), costs=costs)
    return [replace(c, effects=tuple(told.get(id(e), e) for e in c.effects)) for c in comparisons]


@dataclass(frozen=True)
class _Scale:
    """What an effect is judged on: `region` of the same and `neutral` value, and as logarithms, `distance` and `bounds`."""

    region: tuple[float, float]
    neutral: float
    distance: float
    bounds: tuple[float, float]

    def p_same(self, effect: Effect) -> float:
        """The p-value of two one-sided tests."""
        inside = min(self.bounds[1] - self.distance, self.distance - self.bounds[0])
        return stats.p_beyond(inside, effect.error or 0.0, effect.degrees or math.inf)


def _scale(effect: Effect, share: float) -> _Scale:
    if effect.difference is None:
        bounds = (math.log1p(-share), math.log1p(share))
        return _Scale((1 - share, 1 + share), 1.0, math.log(effect.ratio), bounds)
    reach = share * abs(effect.baseline_value)
    return _Scale((-reach, reach), 0.0, effect.difference, (-reach, reach))


def _judge(effect: Effect, scale: _Scale, tests: int, *, costs: bool) -> Effect:
    centre = effect.ratio if effect.difference is None else effect.difference
    found = stats.Estimate(centre, effect.low, effect.high, effect.repeats)
    p_values = effect.p_adjusted or 0.0, effect.p_equivalent or 0.0
    plain = stats.verdict(found, p_values[0], scale.region, scale.neutral, p_values[1])
    verdict: Verdict = plain
    if plain == "cannot tell":
        more = stats.more_repeats(effect.spread, effect.repeats, scale.distance, scale.bounds, tests)
        alone = stats.verdict(found, 0.0, scale.region, scale.neutral) != "cannot tell"
        return replace(effect, more_repeats=more, among=tests if alone else None)
    if not costs and plain == "same":
        verdict = "equivalent"
    elif not costs and effect.better is not None:
        verdict = "better" if plain == effect.better else "worse"
    return replace(effect, verdict=verdict)


def _quality(runs: pd.DataFrame) -> dict[str, float] | None:
    found = {name: figures(runs, name) for name in ("validation_loss", "validation_accuracy")}
    known = {name: float(values.median()) for name, values in found.items() if len(values)}
    return known or None


@dataclass(frozen=True)
class Matched:
    """Sets of runs, configuration by configuration, and the names of those that stand on one side alone.

    `lost` are those of `only_baseline` that ended well there. `notes` say what was left out.
    """

    comparisons: list[Comparison]
    only_baseline: list[str]
    only_candidate: list[str]
    lost: list[str]
    notes: list[str]


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
    gone = [config for config in old if config not in new]
    notes = [*_older("BASE", baseline, newest[1]), *_older("NEW", candidate, newest[0])]
    return Matched(
        judged(compared, equivalence),
        [called[config] for config in gone],
        [called[config] for config in new if config not in old],
        [called[config] for config in gone if (old[config]["status"] == Status.OK).any()],
        notes,
    )


def _by_configuration(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(config): runs for config, runs in df.groupby("config_id", sort=False)}


def _newest(df: pd.DataFrame) -> pd.DataFrame:
    """Leave the newest execution of each configuration: launches of several share less than those of one."""
    keys = ["config_id", "suite", "execution", "environment"]
    last = df.sort_values("started_at", kind="stable", na_position="first").drop_duplicates("config_id", keep="last")
    return df.merge(last[keys], on=keys)


def _older(whose: str, given: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    count = len(given) - len(used)
    return [f"{count} of {len(given)} runs of {whose} are of older executions: not compared"] if count else []


def against_first(df: pd.DataFrame) -> list[Comparison]:
    """Compare what the same work costs in each configuration of one execution with the first of them.

    Samples of another workload are other work: its configurations are left out.
    """
    table = _in_order(df)
    if len(table):
        first = df[df["status"] == Status.OK].sort_values("started_at").iloc[0]["workload"]
        table = table[(table["workload"] == first) | (table["workload"].isna() & pd.isna(first))]
    if table.empty:
        return []
    runs = _by_configuration(df)
    (first, base), *others = zip(table["config_id"], table["name"], strict=True)
    return judged([compare(runs[config], runs[first], name, base) for config, name in others], costs=True)


def _in_order(df: pd.DataFrame) -> pd.DataFrame:
    """The summary in the order in which configurations were begun, which is that of the suite.

    Those that are there to save their weights for others are left out, unless there is nothing else.
    """
    table = summary(df)
    if "saves" in table and table["saves"].isna().sum() > 1:
        table = table[table["saves"].isna()]
    begun = df.groupby("config_id")["started_at"].min()
    return table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")]


def within(
    df: pd.DataFrame, metrics: Sequence[str], equivalence: float = stats.SAME, baseline: str | None = None
) -> Matched:
    """Compare each configuration of a suite with the first that did the same work: that of `_same_work`.

    With the name of a `baseline` in the summary (one that ended well), with that one: `notes` tell what did other work.
    """
    newest = _newest(df)
    table, others = _in_order(newest), list[str]()
    if baseline is not None:
        chosen = table[table["name"] == baseline].iloc[0]
        same = table.apply(_same_work, axis="columns", other=chosen).astype(bool)
        others = list(table["name"][~same])
        table = table[same].sort_values("name", key=lambda name: name != baseline, kind="stable")
    runs = _by_configuration(newest)
    bases: dict[str, pd.Series] = {}
    out: list[Comparison] = []
    alone: dict[str, None] = {}
    for _, row in table.iterrows():
        config, name = row["config_id"], row["name"]
        first = next((base for base in bases.values() if _same_work(row, base)), None)
        if first is None:
            bases[config] = row
            alone[name] = None
            continue
        alone.pop(first["name"], None)
        out.append(compare(runs[config], runs[first["config_id"]], name, first["name"], metrics))
    for of in runs.values():
        if bases and not (of["status"] == Status.OK).any():
            first = next((base for base in bases.values() if _same_work(of.iloc[0], base)), next(iter(bases.values())))
            out.append(compare(of, runs[first["config_id"]], of["label"].iloc[0], first["name"], metrics))
    out.sort(key=lambda c: [base["name"] for base in bases.values()].index(c.baseline))
    notes = [f"no other configuration does the work of {', '.join(alone)}"] if alone and out else []
    notes += [f"not compared with {baseline}, as they did other work: {', '.join(others)}"] if others else []
    return Matched(judged(out, equivalence), [], [], [], [*notes, *_older("BASE", df, newest)])


def _same_work(one: pd.Series, other: pd.Series) -> bool:
    """Whether a sample is the same work: the workload with the same arguments, or as much FLOP within 1 %.

    What a command does is its own affair.
    """
    if str(one["workload"]) != str(other["workload"]):
        return False
    arguments = [name for name in other.index if str(name).startswith("workload_args.")]
    if other["workload"] == COMMAND or all(str(one[name]) == str(other[name]) for name in arguments):
        return True
    return bool(abs(one["flops_per_sample"] - other["flops_per_sample"]) <= 0.01 * other["flops_per_sample"])


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
