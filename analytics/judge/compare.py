"""One comparison: a candidate against a baseline, with one verdict for every verb, page and report.

The verdict of two configurations of an execution follows from a table: each configuration against the one that equals the
baseline in all but the kind of work. It allows for the configurations of that table, metric by metric (Holm), so neither
other metrics nor filters change it. A pair has one verdict: asked the other way round, it is the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal, TypeVar

import pandas as pd

from analytics.interval import Interval
from analytics.judge import stats
from analytics.judge.comparable import (
    CONSTANT,
    Repeats,
    apart,
    constant_power,
    differences,
    doubts,
    equal_power,
    incomparable,
    metric_names,
    other_nodes,
)
from analytics.quantities import Better, quantity
from analytics.runs.frame import COUNTS, IDENTITY, asked, configurations, names, values, varied, work_arguments
from analytics.text import printable
from bench.record import Status
from bench.schema import AXES, COMMAND, MEASURE, RunSpec

PAIRS_FROM = 3
"""Launches are paired from this many pairs on: with two, Student's t has one degree of freedom and tells nothing."""
COSTS = (
    *("samples_per_second", "joules_per_sample", "joules_per_sample_estimated", "cost_usd_per_million_samples"),
    *("seconds_to_target", "energy_to_target_joules", "energy_to_target_joules_estimated", "cost_to_target_usd"),
)
"""Metrics of what the same work takes, or the way to the target."""
BESIDE = ("timeout_seconds", "batch_size_cap", "saves")
"""What configurations may differ in besides the compared thing: it does not change the steady speed."""
_BATCH = ("batch_size_per_device", "global_batch_size")

_Key = TypeVar("_Key", bound=Hashable)
Verdict = Literal["better", "worse", "less", "more", "equivalent", "cannot tell"]


@dataclass(frozen=True)
class Effect:
    """What a candidate does to a `metric`, as a multiple of the baseline (below 1 is less), with its 95 % interval.

    `value` and `baseline_value` are the figures of the summary (`runs.frame`). `spread`, `error` and `degrees` are those of
    `judge.stats.Contrast`. `probability_better` is the chance that the candidate is truly better. The verdict is `less` or
    `more` where no way is better. It follows `p_adjusted` (of no difference) and `p_equivalent` (of a difference that
    matters), which allow for all comparisons of the family; the interval does not. `probably` is the verdict of the interval
    alone where it cannot be told `among` so many comparisons. Where it cannot be told, `more_repeats` of each side would
    tell, if that is known.
    """

    metric: str
    ratio: float
    low: float | None
    high: float | None
    repeats: int
    value: float
    baseline_value: float
    paired: bool
    better: Better | None
    probability_better: float | None
    p_value: float | None
    spread: tuple[float, ...]
    error: float | None
    degrees: float | None
    verdict: Verdict = "cannot tell"
    p_adjusted: float | None = None
    p_equivalent: float | None = None
    more_repeats: int | None = None
    probably: Verdict | None = None
    among: int | None = None

    @property
    def interval(self) -> Interval:
        """The ratio with its interval."""
        return Interval(self.ratio, self.low, self.high, self.repeats)

    @property
    def cost(self) -> Interval:
        """The interval of what the same work takes: for a rate the inverse of the ratio."""
        return self.interval.inverse() if self.metric.endswith("_per_second") else self.interval

    def inverse(self) -> Effect:
        """Return the effect of the baseline compared with the candidate."""
        turned, chance = self.interval.inverse(), self.probability_better
        changed: dict[str, Any] = {
            "ratio": turned.value,
            "low": turned.low,
            "high": turned.high,
            "spread": self.spread[::-1],
        }
        changed |= {"value": self.baseline_value, "baseline_value": self.value}
        changed |= {
            name: _INVERSE.get(one, one) for name, one in (("verdict", self.verdict), ("probably", self.probably))
        }
        return replace(self, **changed, probability_better=None if chance is None else 1 - chance)


_INVERSE: dict[Verdict | None, Verdict] = {"better": "worse", "worse": "better", "less": "more", "more": "less"}


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline. `status` is `ok` where runs of both ended well; then there are effects.

    Otherwise it is that of the candidate, or of the baseline where that alone failed, and `reason` tells why.
    `quality` and `baseline_quality` are medians on held-out samples: `validation_loss` and, where there is one,
    `validation_accuracy`; they belong beside every effect, and are absent where the data differ. `flags` are those of
    either side. `not_compared` says of a metric why it has no effect, `notes` where the two sides did different work.
    `doubts` are flags and grades of one side alone that may have made a difference too. `apart`: they did not run side by
    side. `ended` counts the runs that ended well, and all.
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
    not_compared: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    apart: bool = False
    ended: tuple[int, int] = (0, 0)
    baseline_ended: tuple[int, int] = (0, 0)

    def effect(self, metric: str) -> Effect | None:
        """Return the effect on a metric; None where there is none."""
        return next((effect for effect in self.effects if effect.metric == metric), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return asdict(self)


def compare(
    candidate: Repeats, baseline: Repeats, name: str, baseline_name: str, outcomes: Mapping[str, Effect | str]
) -> Comparison:
    """Compare two configurations by what is known of each metric: an effect, or why there is none.

    Runs that did not end well count for nothing.
    """
    for side, whose in ((candidate, ""), (baseline, "the baseline: ")):
        if side.status != Status.OK:
            reason = f"{whose}{printable(side.message, 300)}"
            return Comparison(name, baseline_name, side.status, reason, baseline_status=baseline.status)
    effects = tuple(outcome for outcome in outcomes.values() if isinstance(outcome, Effect))
    same_data = candidate.texts("dataset_digest") == baseline.texts("dataset_digest")
    quality = [side.quality if same_data else None for side in (candidate, baseline)]
    return Comparison(
        name,
        baseline_name,
        "ok",
        "",
        effects,
        quality=quality[0],
        baseline_quality=quality[1],
        flags=tuple(sorted({*candidate.flags, *baseline.flags, *other_nodes(candidate, baseline)})),
        not_compared={metric: why for metric, why in outcomes.items() if isinstance(why, str)},
        notes=tuple(differences(candidate, baseline, [effect.metric for effect in effects])),
        doubts=doubts(candidate, baseline),
        apart=apart(candidate, baseline),
        ended=candidate.ended,
        baseline_ended=baseline.ended,
    )


def effect_of(metric: str, candidate: Repeats, baseline: Repeats, *, constant: bool = False) -> Effect | str:
    """Return what a candidate does to one metric, without verdict, or the reason why that cannot be compared.

    Where the estimated power of a suite is `constant`, energy that rests on an equal power is nothing but time. Launches that
    ran side by side are compared in pairs, others by Welch's t (`judge.stats.contrast`).
    """
    if (reason := incomparable(metric, candidate, baseline)) is not None:
        return reason
    if constant and quantity(metric).estimated and quantity(metric).energy and equal_power(candidate, baseline):
        return CONSTANT
    pairs = _side_by_side(metric, candidate, baseline)
    new, old = pairs or [[*side.figures(metric).values()] for side in (candidate, baseline)]
    contrast = stats.contrast(new, old, paired=pairs is not None)
    way, more, found = quantity(metric).better, contrast.probability_more, contrast.found
    chance = None if more is None or way is None else more if way == "more" else 1 - more
    ends, figures = (found.value, found.low, found.high, found.n), (candidate.pooled(metric), baseline.pooled(metric))
    shared = {name: getattr(contrast, name) for name in ("p_value", "spread", "error", "degrees")}
    return Effect(metric, *ends, *figures, pairs is not None, way, chance, **shared)


def _side_by_side(metric: str, *sides: Repeats) -> list[list[float]] | None:
    """Return the figures of launches that ran side by side; None where they are few, or most launches have no such mate."""
    new, old = (side.by_launch(metric) for side in sides)
    both = [name for name in new if name in old]
    if len(both) < PAIRS_FROM or 2 * len(both) <= max(len(side.runs) for side in sides):
        return None
    return [[new[name] for name in both], [old[name] for name in both]]


def judged(outcomes: Mapping[_Key, Effect | str], equivalence: float = stats.SAME) -> dict[_Key, Effect]:
    """Make the verdicts of the effects on one metric that are compared together; reasons why there is none are left out.

    Equivalent is an interval within a factor of 1 + `equivalence` of 1. Of all that are called better or worse any is wrong
    in 5 % at most, and of all that are called equivalent too (two families: being equivalent is another question).
    """
    tests = adjusted(outcomes, equivalence)
    return {key: _verdict(e, tests.get(key), equivalence) for key, e in outcomes.items() if isinstance(e, Effect)}


Adjusted = tuple[float, float, int]


def adjusted(outcomes: Mapping[_Key, Effect | str], equivalence: float) -> dict[_Key, Adjusted]:
    """Return `p_adjusted` and `p_equivalent` by Holm's method, and the number of tests, of each effect with a p-value."""
    tests = {key: e for key, e in outcomes.items() if isinstance(e, Effect) and e.p_value is not None}
    apart = stats.holm([effect.p_value or 0.0 for effect in tests.values()])
    same = stats.holm([_p_equivalent(effect, equivalence) for effect in tests.values()])
    return {key: (p, q, len(tests)) for key, p, q in zip(tests, apart, same, strict=True)}


def _p_equivalent(effect: Effect, share: float) -> float:
    """The p-value of two one-sided tests."""
    distance = math.log(effect.ratio)
    inside = math.log1p(share) - abs(distance)
    return stats.p_beyond(inside, effect.error or 0.0, effect.degrees or math.inf)


def _verdict(effect: Effect, p_values: Adjusted | None, share: float) -> Effect:
    if p_values is None:
        return effect
    apart, same, tests = p_values
    effect = replace(effect, p_adjusted=apart, p_equivalent=same)
    region = 1 / (1 + share), 1 + share
    found = _named(effect, stats.verdict(effect.interval, apart, region, 1.0, same))
    if found != "cannot tell":
        return replace(effect, verdict=found)
    bounds = -math.log1p(share), math.log1p(share)
    more = stats.more_repeats(effect.spread, effect.repeats, math.log(effect.ratio), bounds, tests)
    alone = _named(effect, stats.verdict(effect.interval, 0.0, region))
    chance: dict[str, Any] = {} if alone == "cannot tell" else {"probably": alone, "among": tests}
    return replace(effect, more_repeats=more, **chance)


def _named(effect: Effect, plain: stats.Verdict) -> Verdict:
    """Say of more or less whether it is better or worse, where one of them is."""
    if plain == "same":
        return "equivalent"
    if plain == "cannot tell" or effect.better is None:
        return plain
    return "better" if plain == effect.better else "worse"


class Configurations:
    """The configurations of one execution by `config_id`, and what each does compared with another.

    Of several executions in a frame the newest of each configuration counts.
    """

    def __init__(self, df: pd.DataFrame, equivalence: float = stats.SAME) -> None:
        self.df, self.equivalence = _newest(df), equivalence
        self.sides = _by_configuration(self.df)
        table = _in_order(self.df)
        self.rows = {str(row["config_id"]): row for _, row in table.iterrows()}
        self.names = {config: str(row["name"]) for config, row in self.rows.items()}
        kinds = {"workload", *work_arguments(table)}
        own = [c for c in varied(table) if c not in BESIDE and c not in kinds]
        cells = {name: values(table[name]) for name in own}
        self._options = [
            dict(zip(self.rows, zip(*(cells[name] for name in options), strict=True), strict=True))
            for options in (own, [name for name in own if name not in _BATCH])
        ]
        order = sorted(self.rows, key=lambda config: _foremost(self.rows[config]))
        self._places = {config: place for place, config in enumerate(order)}
        self._constant = constant_power(self.df)
        self._plain, self._tests = cache(self._effect), cache(self._family)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The first configuration that does the same work as each."""
        out: dict[str, str] = {}
        for config, row in self.rows.items():
            same = (first for first in dict.fromkeys(out.values()) if _same_work(row, self.rows[first]))
            out[config] = next(same, config)
        return out

    def baselines(self, baseline: str) -> dict[str, str]:
        """Return by kind of work what equals a baseline in all else, but for the batch where nothing equals all."""
        bases = {self.kinds[baseline]: baseline}
        for options in self._options:
            for config, kind in self.kinds.items():
                if options[config] == options[baseline]:
                    bases.setdefault(kind, config)
        return bases

    def table(self, baseline: str) -> dict[str, str]:
        """Return the baseline of each configuration in the table of a `baseline`."""
        if baseline not in self.rows:
            return {}
        bases = self.baselines(baseline)
        pairs = {config: bases[kind] for config, kind in self.kinds.items() if kind in bases}
        return {config: base for config, base in pairs.items() if config != base}

    def effect(self, candidate: str, baseline: str, metric: str) -> Effect | str:
        """Return what a candidate does to a metric, with the verdict; or the reason why it cannot be compared.

        The verdict of a pair is that of its more usual side as baseline, whichever of both is asked for. A pair that stands
        in no table (of other work, or of weights saved for others) counts as one more comparison in that of its baseline.
        """
        pair = candidate, baseline
        plain = self._plain(*pair, metric)
        if isinstance(plain, str):
            return plain
        if self._places.get(candidate, math.inf) < self._places.get(baseline, math.inf):
            turned = self.effect(baseline, candidate, metric)
            return turned if isinstance(turned, str) else turned.inverse()
        tests = self._tests(baseline, metric)
        if pair not in tests and plain.p_value is not None:
            tests = adjusted({pair: plain, **{other: self._plain(*other, metric) for other in tests}}, self.equivalence)
        return _verdict(plain, tests.get(pair), self.equivalence)

    def comparison(
        self, candidate: str, baseline: str, metrics: Sequence[str], name: str = "", baseline_name: str = ""
    ) -> Comparison:
        """Compare two configurations; names are those of the summary unless they are given."""
        name, baseline_name = (
            given or self.names.get(config) or str(self.sides[config].every["label"].iloc[0])
            for config, given in ((candidate, name), (baseline, baseline_name))
        )
        outcomes = {metric: self.effect(candidate, baseline, metric) for metric in metrics}
        return compare(self.sides[candidate], self.sides[baseline], name, baseline_name, outcomes)

    def _effect(self, candidate: str, baseline: str, metric: str) -> Effect | str:
        return effect_of(metric, self.sides[candidate], self.sides[baseline], constant=self._constant)

    def _family(self, baseline: str, metric: str) -> dict[tuple[str, str], Adjusted]:
        pairs = self.table(baseline).items()
        return adjusted({pair: self._plain(*pair, metric) for pair in pairs}, self.equivalence)


def _foremost(row: pd.Series) -> tuple[float, ...]:
    """Sort the more usual configurations first: lower steps of a ladder, fewer devices, defaults, and smaller numbers."""
    unusual = sum(row[axis] != RunSpec.model_fields[axis].default.name for axis in AXES)
    options = sum(str(name).split(".")[0] in AXES and "." in str(name) and pd.notna(row[name]) for name in row.index)
    numbers = (row["ladder"], row["devices"], unusual, options, *(row.get(name) for name in COUNTS))
    return tuple(0.0 if pd.isna(number) else float(number) for number in numbers)


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
    """Compare configurations that were asked for on both sides (`config_id`), each by its newest execution on a side.

    The family of a verdict is the configurations, metric by metric.
    """
    newest = [_newest(side) for side in (candidate, baseline)]
    new, old = (_by_configuration(side) for side in newest)
    table = pd.concat(newest).drop_duplicates("config_id").reset_index(drop=True)
    known = names(table[["config_id", *asked(table)]])
    twice = known.duplicated(keep=False)
    known = known.where(~twice, known.replace("plain", "") + " " + table["config_id"]).str.strip()
    called = dict(zip(table["config_id"], known, strict=True))
    both, gone = ([config for config in old if (config in new) is there] for there in (True, False))
    constant = constant_power(*newest)
    plain = {m: {c: effect_of(m, new[c], old[c], constant=constant) for c in both} for m in metrics}
    outcomes = {metric: {**effects, **judged(effects, equivalence)} for metric, effects in plain.items()}
    comparisons = [
        compare(new[config], old[config], called[config], baseline_name, {m: outcomes[m][config] for m in metrics})
        for config in both
    ]
    notes = [*_older("BASE", baseline, newest[1]), *_older("NEW", candidate, newest[0])]
    return Matched(
        comparisons,
        [called[config] for config in gone],
        [called[config] for config in new if config not in old],
        [called[config] for config in gone if old[config].status == Status.OK],
        notes,
    )


def _by_configuration(df: pd.DataFrame) -> dict[str, Repeats]:
    return {str(config): Repeats(runs) for config, runs in df.groupby("config_id", sort=False)}


def _newest(df: pd.DataFrame) -> pd.DataFrame:
    """Leave the newest execution of each configuration: launches of several share less than those of one."""
    keys = ["config_id", "suite", "execution", "environment"]
    df = df[df["config_id"].notna()].reset_index(drop=True)
    order = df["started_at"].sort_values(kind="stable", na_position="first").index
    whose = [*zip(*(values(df[key]) for key in keys), strict=True)]
    last = {whose[place][0]: whose[place] for place in order}
    newest = [last[one[0]] == one for one in whose]
    return df if all(newest) else df[newest].reset_index(drop=True)


def _older(whose: str, given: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    count = len(given) - len(used)
    return [f"{count} of {len(given)} runs of {whose} are of older executions: not compared"] if count else []


def _in_order(df: pd.DataFrame) -> pd.DataFrame:
    """The configurations in the order in which configurations were begun, which is that of the suite.

    Those that are there to save their weights for others are left out, unless there is nothing else.
    """
    table = configurations(df)
    if "saves" in table and table["saves"].isna().sum() > 1:
        table = table[table["saves"].isna()]
    begun = df.groupby("config_id")["started_at"].min()
    return table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")]


def costs(df: pd.DataFrame) -> list[str]:
    """Name those of COSTS that some run knows."""
    known = metric_names(df)
    return [metric for metric in COSTS if metric in known]


def within(
    df: pd.DataFrame,
    metrics: Sequence[str],
    equivalence: float = stats.SAME,
    baseline: str | None = None,
    only: Collection[str] | None = None,
) -> Matched:
    """Compare each configuration of an execution with the first that did the same work.

    With the name of a `baseline` in the summary: with what equals it in all but the kind of work. `only` leaves some
    candidates, by `config_id`, without any change to their verdicts. `notes` tell what is not compared.
    """
    found = Configurations(df, equivalence)
    first = next((config for config, name in found.names.items() if baseline in (None, name)), None)
    bases = found.baselines(first) if first is not None else {}
    others = [found.names[config] for config, kind in found.kinds.items() if kind not in bases]
    if baseline is None:
        bases |= {kind: kind for kind in found.kinds.values() if kind not in bases}
        others = []
    pairs = {c: bases[kind] for c, kind in found.kinds.items() if kind in bases and c != bases[kind]}
    alone = [found.names[base] for base in bases.values() if base not in pairs.values()]
    for config, side in found.sides.items():
        if bases and side.status != Status.OK:
            same = (base for base in bases.values() if _same_work(side.every.iloc[0], found.rows[base]))
            pairs[config] = next(same, next(iter(bases.values())))
    order = list(bases.values())
    chosen = sorted((c for c in pairs if only is None or c in only), key=lambda config: order.index(pairs[config]))
    notes = [f"no other configuration does the work of {', '.join(alone)}"] if alone and pairs else []
    notes += [f"not compared with {baseline}, as they did other work: {', '.join(others)}"] if others else []
    comparisons = [found.comparison(config, pairs[config], metrics) for config in chosen]
    return Matched(comparisons, [], [], [], [*notes, *_older("BASE", df, found.df)])


def _same_work(one: pd.Series, other: pd.Series) -> bool:
    """Whether a sample is the same work: the workload with the same arguments, or as much FLOP within 1 %.

    Of a command those arguments count that say what is trained.
    """
    if str(one["workload"]) != str(other["workload"]):
        return False
    command = other["workload"] == COMMAND
    arguments = [name for name in map(str, other.index) if name.startswith("workload_args.")]
    if command:
        named = str(other["work"]).split()
        own = other["suite"] == MEASURE  # there the command itself says what it trains
        arguments = [name for name in arguments if name in named or (own and name == "workload_args.argv")]
    if all(str(one[name]) == str(other[name]) for name in arguments):
        return True
    near = abs(one["flops_per_sample"] - other["flops_per_sample"]) <= 0.01 * other["flops_per_sample"]
    return not command and bool(near)


def ladder(df: pd.DataFrame) -> list[Comparison]:
    """Compare each step of a ladder with the one below, and last the top with the foot, in COSTS; [] for no ladder.

    `df` holds the runs of one execution; the column `ladder` counts the steps. A step that did not run is told with its
    reason, and the next is compared with the last below it that did; the foot is the first step that ran.
    """
    if "ladder" not in df or df["ladder"].isna().all():
        return []
    found, metrics = Configurations(df), costs(df)
    rungs = [runs for _, runs in found.df.dropna(subset=["ladder"]).groupby("ladder")]
    steps = list(zip((str(runs["config_id"].iloc[0]) for runs in rungs), _added(rungs, df), strict=True))
    out: list[Comparison] = []
    ran = [step for step, runs in zip(steps, rungs, strict=True) if (runs["status"] == Status.OK).any()]
    below = foot = ran[0] if ran else steps[0]
    for step in steps:
        if step == foot and ran:
            continue
        out.append(found.comparison(step[0], below[0], metrics, step[1], below[1]))
        if out[-1].status == Status.OK:
            below = step
    if below != foot:
        out.append(found.comparison(below[0], foot[0], metrics, "all steps", foot[1]))
    return out


def _added(rungs: Sequence[pd.DataFrame], df: pd.DataFrame) -> list[str]:
    """Name each step by what it changes of the one below."""
    follows = ("devices_per_node", "global_batch_size")  # from devices and batch_size_per_device
    columns = [name for name in asked(df) if name not in (*IDENTITY, *follows)]
    out = ["baseline"]
    for below, above in pairwise(runs.iloc[0] for runs in rungs):
        changed = [c for c in columns if str(below[c]) != str(above[c]) and pd.notna(above[c])]
        out.append("+ " + ", ".join(f"{printable(c, 40)}={printable(above[c], 40)}" for c in changed))
    return out
