"""Configurations that differ in one thing only, and what that thing changes, cell by cell and in all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from analytics.interval import Interval, exponential, t_quantile
from analytics.judge import stats
from analytics.judge.compare import BESIDE, Configurations, Effect, Verdict, judged
from analytics.runs.frame import IDENTITY, LOADER, asked, names, values, varied, work_arguments
from analytics.text import printable
from bench.record import Status
from bench.schema import RunSpec

_RATE = "optimizer.learning_rate"
FOLLOW = ("devices_per_node", "global_batch_size")
"""What follows from other fields, and so is nothing that a suite would have to set."""

_PLACED = ("num_nodes", "devices_per_node")
"""Where devices are: a number of devices takes as few nodes as it can."""
_TIME = ("seconds_to_target", "samples_per_second", "duration_seconds")
MEASURES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("time", "knee", "device-hours"), _TIME),
    "time in use": ("inference_samples_per_second",),
    "energy": ("energy_to_target_joules", "joules_per_sample"),
    "~energy": ("energy_to_target_joules_estimated", "joules_per_sample_estimated"),
    "memory": ("peak_memory_bytes",),
    "space on disk": ("model_bytes",),
    "validation loss": ("validation_loss",),
    "served loss": ("served_loss",),
}
"""What is compared for the same work: the first metric that every run knows; of a rate the inverse counts."""
_POWER = {"knee": 0.5, "device-hours": 1.0}
"""Measures that are time × a power of the number of devices.

The knee is that of the profile of time and efficiency (Eager, Zahorjan, Lazowska, IEEE Trans. Computers 38, 1989): where
time × device-hours is least. Beyond it device-hours grow by a larger factor than time falls.
"""
UNKNOWN = Interval(math.nan, None, None, 0)


@dataclass(frozen=True)
class Topic:
    """One thing in which configurations differ: its columns (and their options), and those that may follow it.

    `noun` puts a number into words; the numbers are compared with the smallest one, names with their default.
    """

    name: str
    columns: tuple[str, ...]
    follows: tuple[str, ...] = ()
    noun: str = "{}"

    def covers(self, column: str) -> bool:
        """Whether a column may differ between the two sides."""
        own = any(column == name or column.startswith(f"{name}.") for name in self.columns) and column != _RATE
        return own or column in self.follows or any(column.startswith(f"{name}.") for name in self.follows)

    def option(self, row: pd.Series) -> str:
        """Name what a configuration has here: `fsdp2 reshard=False`, `2 devices`."""
        column = self.columns[0]
        options = [c for c in map(str, row.index) if c.startswith(f"{column}.") and c != _RATE]
        first = re.sub(r"^1 (.*)s$", r"1 \1", self.noun.format(plain(row[column])))
        others = [c for c in (*options, *self.columns[1:]) if pd.notna(row.get(c))]
        return " ".join([first, *(f"{c.split('.')[-1]}={plain(row[c])}" for c in others)])

    def pairs(self, group: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
        """Yield (candidate, baseline) of configurations that are alike in all else."""
        column = self.columns[0]
        if self.name == "devices":
            yield from _neighbours(group)
            return
        bare = [c for c in map(str, group) if c.startswith(f"{column}.") and c != _RATE]
        first = group.drop_duplicates([*(c for c in self.columns if c in group), *bare])
        usual = RunSpec.model_fields[column].default if column in RunSpec.model_fields else None
        numbers = pd.to_numeric(first[column], errors="coerce")  # 3e-4 is text, as it was typed
        if numbers.notna().all():
            first = first.loc[numbers.sort_values(kind="stable").index]
        elif usual is not None:
            worse = (first[column] != usual.name).astype(int) * 100 + first[bare].notna().sum(axis=1)
            first = first.loc[worse.sort_values(kind="stable").index]
        base = first.iloc[0]
        yield from ((row, base) for _, row in first.iloc[1:].iterrows())


def _neighbours(group: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Each number of devices against the next smaller one of the same parallelism; one device has none.

    Of several divisions among nodes, the one with the fewest nodes counts; `nodes` compares the others with it.
    """
    ways = [c for c in map(str, group) if c.split(".")[0] == "parallelism"]
    known = group.dropna(subset=["devices"])
    known = known.sort_values("num_nodes", kind="stable") if "num_nodes" in known else known
    first = known.loc[known.drop_duplicates(["devices", *ways]).index.sort_values()]
    rows = [(int(row["devices"]), str(row[ways].to_dict()), row) for _, row in first.iterrows()]
    for count, way, row in rows:
        below = [one for one in rows if one[0] < count and (one[1] == way or one[0] == 1)]
        if below:
            yield row, max(below, key=lambda one: one[0])[2]


TOPICS = (
    Topic("devices", ("devices",), (*_PLACED, "global_batch_size", "parallelism"), "{} devices"),
    Topic("devices", ("devices",), (*_PLACED, "batch_size_per_device", "parallelism"), "{} devices"),
    *(Topic(name, (name,)) for name in ("precision", "compile", "attention", "optimizer", "memory", "pruning")),
    Topic("parallelism", ("parallelism",), ("batch_size_per_device",)),
    Topic("quantization", ("quantization",)),
    Topic("distillation", ("distillation",), ("needs",)),
    Topic("finetune", ("finetune",), (_RATE,)),
    Topic("batch", ("batch_size_per_device",), ("global_batch_size",), "a batch of {}"),
    Topic("nodes", ("num_nodes",), ("devices_per_node",), "{} nodes"),
    Topic("accumulation", ("gradient_accumulation_steps",), ("batch_size_per_device",), "{} accumulation steps"),
    Topic("threads", ("threads_per_device",), (), "{} threads a device"),
    Topic("loader", ("workload_args.workers", "workload_args.pin_memory"), (), "{} loader workers"),
)


@dataclass(frozen=True)
class CellEffects:
    """What one option does to a metric in several cells: models, devices, whatever else the configurations differ in.

    `effects` are those of `judge.compare` by cell, `names` say what tells the cells apart. `whole` is the effect in all,
    their geometric mean; None where they disagree (Cochran's Q): then there is no mean that holds for any of them, and only
    a direction that all verdicts share is a verdict.
    """

    names: tuple[str, ...]
    effects: tuple[Effect, ...]
    whole: Effect | None

    @property
    def verdict(self) -> Verdict:
        """The verdict in all. It says nothing that no cell says, and what all cells say."""
        cells = {effect.verdict for effect in self.effects}
        told = cells - {"cannot tell"}
        if len(cells) == 1:
            return cells.pop()
        if self.whole is None:
            return told.pop() if len(told) == 1 and "equivalent" not in told else "cannot tell"
        return self.whole.verdict if self.whole.verdict in told else "cannot tell"

    @property
    def probably(self) -> Verdict | None:
        """What the interval in all excludes while there is no verdict; of cells that disagree what each of them does."""
        effects = self.effects if self.whole is None else (self.whole,)
        leanings = {effect.probably or effect.verdict for effect in effects} - {"cannot tell"}
        alike = len(leanings) == 1 and all(effect.probably or effect.verdict in leanings for effect in effects)
        return leanings.pop() if alike and self.verdict == "cannot tell" else None


def agree(effects: Sequence[Effect]) -> bool:
    """Whether effects differ by no more than their errors: Cochran's Q on the logarithms, at 5 %.

    Errors of a few repeats are uncertain themselves; Q is corrected for that (Welch, Biometrika 38, 1951). Effects without
    error do not disagree.
    """
    known = [e for e in effects if e.error is not None]
    count = len(known)
    if count < 2:
        return True
    logs = np.log([e.ratio for e in known])
    weights = np.array([max(e.error or 0.0, 1e-9) for e in known]) ** -2.0
    shares = weights / weights.sum()
    q = float(weights @ (logs - shares @ logs) ** 2) / (count - 1)
    lost = float((((1 - shares) ** 2) / [e.degrees or math.inf for e in known]).sum()) / (count**2 - 1)
    return bool(special.fdtrc(count - 1, 1 / max(3 * lost, 1e-12), q / (1 + 2 * (count - 2) * lost)) > 0.05)


def pooled(effects: Sequence[Effect]) -> Effect:
    """Return the geometric mean of effects with its error (Welch-Satterthwaite), still without verdict."""
    if len(effects) == 1:
        return effects[0]
    count, centre = len(effects), float(np.log([effect.ratio for effect in effects]).mean())
    low = high = error = degrees = p_value = None
    if all(effect.error is not None for effect in effects):
        error, degrees = stats.welch([((e.error or 0.0) ** 2 / count**2, e.degrees or math.inf) for e in effects])
        half = t_quantile(degrees, 0.95) * error if error else 0.0
        low, high, p_value = exponential(centre - half), exponential(centre + half), _p_value(centre, error, degrees)
    repeats, paired = min(effect.repeats for effect in effects), all(effect.paired for effect in effects)
    spread = tuple(deviation / count for effect in effects for deviation in effect.spread)
    first, nothing = effects[0], math.nan
    return Effect(
        first.metric, exponential(centre), low, high, repeats, nothing, nothing, paired, first.better, None,
        p_value, spread, error, degrees,
    )  # fmt: skip


def _p_value(centre: float, error: float | None, degrees: float | None) -> float | None:
    return None if error is None else stats.p_beyond(abs(centre) or -1.0, error, degrees or math.inf)


def scaled(effect: Effect, factor: float) -> Effect:
    """Return the effect on a multiple of the metric, still without verdict."""
    if factor == 1:
        return effect
    interval = effect.interval.times(factor)
    p_value = _p_value(math.log(interval.value), effect.error, effect.degrees)
    plain = replace(effect, ratio=interval.value, low=interval.low, high=interval.high, p_value=p_value)
    return replace(plain, verdict="cannot tell")


@dataclass(frozen=True, eq=False)
class Change:
    """One option against its baseline in all matched cells, by their `config_id` and by name: (option, baseline).

    `action` is what a suite has to say; `grew` is by what factor the number of devices did. `among` are all changes of the
    execution: verdicts over several cells allow for them.
    """

    topic: Topic
    option: str
    baseline: str
    action: str
    pairs: tuple[tuple[str, str], ...]
    names: tuple[tuple[str, str], ...]
    grew: float
    among: Changes

    @cached_property
    def cells(self) -> tuple[tuple[pd.DataFrame, pd.DataFrame], ...]:
        """The runs of (option, baseline) that ended well, by cell."""
        known = self.among.judge.sides
        return tuple((known[option].runs, known[baseline].runs) for option, baseline in self.pairs)

    @cached_property
    def places(self) -> tuple[str, ...]:
        """What tells the cells apart: of the name of each what not all have."""
        words = [option.split() for option, _ in self.names]
        return tuple(" ".join(w for w in own if not all(w in other for other in words)) for own in words)

    @property
    def title(self) -> str:
        """The option with its topic, where that does not go without saying: `precision bf16`, `2 devices`."""
        return self.option if self.topic.noun != "{}" else f"{self.topic.name} {self.option}"

    def metric(self, measure: str) -> str | None:
        """Return the metric of a measure; None where a run does not know it."""
        for metric in MEASURES[measure]:
            sides = [runs[metric] for cell in self.cells for runs in cell if metric in runs]
            if len(sides) == 2 * len(self.cells) and all((values > 0).all() for values in sides):
                return metric
            if metric == "samples_per_second" and any(values.notna().any() for values in sides):
                return None  # how long whole runs took would be another thing
        return None

    def found(self, measure: str) -> CellEffects | None:
        """Return what the option does to the metric of a measure; None where no cell can be compared by it."""
        return self.among.found(measure).get(self)

    def verdict(self, measure: str) -> Verdict:
        """Return the verdict on a measure in all cells."""
        found = self.found(measure)
        return "cannot tell" if found is None else found.verdict

    def mixed(self, measure: str) -> bool:
        """Whether cells disagree and have different verdicts, so that it depends on the cell."""
        found = self.found(measure)
        told = set() if found is None or found.whole else {effect.verdict for effect in found.effects}
        return len(told - {"cannot tell"}) > 1

    def range(self, measure: str) -> list[tuple[str, Interval]]:
        """Return the cells with the smallest and the largest ratio of a measure where they disagree; else nothing."""
        found = self.found(measure)
        if found is None or found.whole is not None:
            return []
        cells = [(name, effect.cost) for name, effect in zip(found.names, found.effects, strict=True)]
        cells.sort(key=lambda cell: cell[1].value)
        return [cells[0], cells[-1]]

    def ratio(self, measure: str) -> Interval:
        """Return option / baseline of a measure for the same work; UNKNOWN where no cell can be compared.

        Of cells that disagree it is the one that says least of those with the verdict, within the limits of all.
        """
        found = self.found(measure)
        if found is None:
            return UNKNOWN
        if found.whole is not None:
            return found.whole.cost
        cells = [(effect, effect.cost) for effect in found.effects]
        values = [ratio.value for effect, ratio in cells if found.verdict in ("cannot tell", effect.verdict)]
        lows, highs = ([end for _, x in cells if (end := getattr(x, name)) is not None] for name in ("low", "high"))
        value = min(values, key=lambda value: abs(math.log(value)))
        return Interval(value, min(lows, default=None), max(highs, default=None), min(x.n for _, x in cells))

    def more_repeats(self, measure: str) -> int | None:
        """Return how many more repeats of each side would tell; None where that is not known."""
        found = self.found(measure)
        if found is None:
            return None
        open_ = found.whole is not None and found.whole.verdict == "cannot tell"
        effects = (found.whole,) if open_ and found.whole else found.effects
        return max((effect.more_repeats for effect in effects if effect.more_repeats is not None), default=None)

    @property
    def main(self) -> str:
        """The measure that decides: quantisation after training changes the use of a model, not its training."""
        if self.topic.name == "devices":
            return "knee"
        return "time in use" if self.topic.name == "quantization" and self.metric("time in use") else "time"

    @property
    def quality(self) -> str:
        """The measure of quality: in use where that is what the change is for."""
        return "served loss" if self.main == "time in use" else "validation loss"

    def refusal(self, measure: str) -> str | None:
        """Return why some cell cannot be compared by a measure; None where all can, or no metric is known."""
        metric = self.metric(measure)
        effects = (self.among.judge.effect(*pair, metric) for pair in self.pairs) if metric else ()
        return next((effect for effect in effects if isinstance(effect, str)), None)

    @property
    def runs(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """All runs of the option and all of the baseline."""
        option, baseline = (pd.concat(side) for side in zip(*self.cells, strict=True))
        return option, baseline

    @property
    def count(self) -> int:
        """Number of different runs on both sides."""
        return len(set().union(*(side.index for side in self.runs)))

    def to_dict(self, measure: str) -> dict[str, Any]:
        """Return what the option does to the metric of a measure as plain mappings, lists, numbers and text."""
        found, keys = self.found(measure), ("ratio", "low", "high", "repeats", "verdict")
        head = {"topic": self.topic.name, "option": self.option, "baseline": self.baseline}
        if found is None:
            return head
        parts = zip(found.names, found.effects, strict=True)
        cells = [{"name": name, **{key: getattr(effect, key) for key in keys}} for name, effect in parts]
        ends = {key: getattr(found.whole, key, None) for key in keys[:3]}
        return head | {"metric": self.metric(measure), **ends, "verdict": found.verdict, "cells": cells}


DISTURBED = ("throttled", "shared_gpu", "mig_shared")
"""Flags of runs that something outside slowed down: their configurations are matched with nothing."""


class Changes(Sequence[Change]):
    """Every matched change among the configurations of one execution, and what each does.

    `table` has a row a configuration that ended well: IDENTITY, what was asked, host, device and the short `name`.
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self.judge = Configurations(df)
        ok = df[(df["status"] == Status.OK) & df["config_id"].notna()]
        table = ok[~ok[[*IDENTITY]].duplicated()][[*IDENTITY, "host", "device_name", "work", *asked(ok)]]
        self.table = table.assign(name=names(table)).reset_index(drop=True)
        disturbed = set(ok["config_id"][flagged(ok, *DISTURBED)])
        table = self.table[~self.table["config_id"].isin(disturbed)]
        begun = ok.groupby("config_id")["started_at"].min()
        self._all = self._changes(table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")])
        self._found: dict[str, dict[Change, CellEffects]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, place: Any) -> Any:
        return self._all[place]

    def found(self, measure: str) -> dict[Change, CellEffects]:
        """Return what each change does to its metric of a measure: verdicts allow for all changes of that metric."""
        if measure not in self._found:
            self._found[measure] = {}
            metrics = [change.metric(measure) for change in self._all]
            for metric in dict.fromkeys(filter(None, metrics)):
                family = [change for change, own in zip(self._all, metrics, strict=True) if own == metric]
                self._found[measure] |= self._judged(family, metric, _POWER.get(measure, 0.0))
        return self._found[measure]

    def _judged(self, family: Sequence[Change], metric: str, power: float) -> dict[Change, CellEffects]:
        """Judge the changes that are compared by one metric, × a power of the factor of devices."""
        cells = {change: self._effects(change, metric, power) for change in family if not power or change.grew != 1}
        cells = {change: parts for change, parts in cells.items() if parts}
        if power:  # not what `judge.compare` was asked
            every = judged(
                {(change, place): e for change, parts in cells.items() for place, (_, e) in enumerate(parts)}
            )
            cells = {
                c: [(name, every[c, place]) for place, (name, _) in enumerate(parts)] for c, parts in cells.items()
            }
        effects = {change: [effect for _, effect in parts] for change, parts in cells.items()}
        told = judged({change: pooled(parts) for change, parts in effects.items() if agree(parts)})
        told |= {change: parts[0] for change, parts in effects.items() if len(parts) == 1}
        named = {change: tuple(name for name, _ in parts) for change, parts in cells.items()}
        return {change: CellEffects(named[change], tuple(effects[change]), told.get(change)) for change in cells}

    def _effects(self, change: Change, metric: str, power: float) -> list[tuple[str, Effect]]:
        """The effects by cell on a metric, × a power of the factor of devices."""
        factor = change.grew ** (-power if metric.endswith("_per_second") else power)
        effects = (self.judge.effect(*pair, metric) for pair in change.pairs)
        cells = zip(change.places, effects, strict=True)
        return [(place, scaled(effect, factor)) for place, effect in cells if isinstance(effect, Effect)]

    def _changes(self, table: pd.DataFrame) -> list[Change]:
        several = table.loc[table["devices"] > 1, "parallelism"].nunique() > 1
        texts = {c: values(table[c]) for c in [*varied(table), "environment", "host", "device_name"]}
        varying = [c for c in texts if len(set(texts[c])) > 1]
        parts: list[list[Change]] = []
        for topic in (*TOPICS, *self._own_topics(varying)):
            same = [c for c in varying if c not in BESIDE and not topic.covers(c)]
            cells: dict[tuple[str, str], list[tuple[pd.Series, pd.Series]]] = {}
            compared = len(same) < len(varying) and topic.columns[0] in texts
            for places in _alike(len(table), [texts[c] for c in same]) if compared else []:
                for row, base in topic.pairs(table.iloc[places]):
                    way = f" ({plain(row['parallelism'])})" if topic.name == "devices" and several else ""
                    cells.setdefault((topic.option(row) + way, topic.option(base)), []).append((row, base))
            parts.append([self._change(topic, *key, pairs) for key, pairs in cells.items() if key[0] != key[1]])
        weak, strong, *rest = parts
        counts = [sum(len(change.pairs) for change in part) for part in (weak, strong)]
        return [change for part in ([weak, strong][counts[1] > counts[0]], *rest) for change in part]

    def _own_topics(self, varying: Sequence[str]) -> Iterator[Topic]:
        """Yield a topic for each argument of the user's own that says how a command trains."""
        kinds = {*work_arguments(self.table), *LOADER}
        for column in varying:
            if column.startswith("workload_args.") and column not in kinds:
                yield Topic(column.partition(".")[2], (column,))

    def _change(self, topic: Topic, option: str, baseline: str, rows: list[tuple[pd.Series, pd.Series]]) -> Change:
        row, base = rows[0]
        left_out = {*FOLLOW, *_PLACED}
        differ = [c for c in asked(row.to_frame().T) if topic.covers(c) and c not in left_out and pd.notna(row[c])]
        action = ", ".join(f"{c}: {plain(row[c])}" for c in differ if str(row[c]) != str(base[c]))
        if topic.name == "nodes":
            action = f"layout: {plain(row['num_nodes'])}x{plain(row['devices_per_node'])}"
        pairs, named = (tuple((str(a[column]), str(b[column])) for a, b in rows) for column in ("config_id", "name"))
        grew = (
            float(row["devices"] / base["devices"]) if pd.notna(row["devices"]) and pd.notna(base["devices"]) else 1.0
        )
        return Change(topic, option, baseline, action, pairs, named, grew, self)


def flagged(df: pd.DataFrame, *flags: str) -> pd.Series:
    """Return for each run whether it has one of some flags."""
    return df["flags"].fillna("").map(lambda text: not {*text.split()}.isdisjoint(flags)).astype(bool)


def _alike(count: int, columns: list[list[Any]]) -> list[list[int]]:
    """Return the places of so many rows that are alike in all columns, where there are two or more."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place in range(count):
        groups.setdefault(tuple(column[place] for column in columns), []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def plain(value: object) -> str:
    """Write a value of a field as a suite would have it."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole and isinstance(value, float) else printable(value, 40)
