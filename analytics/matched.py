"""Configurations that differ in one thing only, and what that thing changes: the comparisons that advice rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from analytics import stats
from analytics.compare import side_by_side
from analytics.frame import asked
from analytics.stats import Estimate
from analytics.words import printable
from bench.schema import RunSpec

_BESIDE = ("timeout_seconds", "batch_size_cap", "saves")
"""What a configuration may differ in beside the compared thing: it changes nothing of the steady speed."""
_RATE = "optimizer.learning_rate"
_FOLLOW = ("devices_per_node", "global_batch_size")
"""What follows from other fields, and so is nothing that a suite would have to set."""

_TIME = (("seconds_to_target", False), ("samples_per_second", True), ("duration_seconds", False))
MEASURES: dict[str, tuple[tuple[str, bool], ...]] = {
    **dict.fromkeys(("time", "knee", "device-hours"), _TIME),
    "time in use": (("inference_samples_per_second", True),),
    "energy": (("energy_to_target_joules", False), ("joules_per_sample", False)),
    "~energy": (("energy_to_target_joules_estimated", False), ("joules_per_sample_estimated", False)),
    "memory": (("peak_memory_bytes", False),),
    "size": (("model_bytes", False),),
    "validation loss": (("validation_loss", False),),
    "served loss": (("served_loss", False),),
}
"""What is compared for the same work: the first column that every run knows, and whether the inverse of it counts."""
_POWER = {"knee": 0.5, "device-hours": 1.0}
"""Measures that are time × a power of the number of devices.

The knee is that of the profile of time and efficiency (Eager, Zahorjan, Lazowska, IEEE Trans. Computers 38, 1989): where
time × device-hours is least. Beyond it device-hours grow by a larger factor than time falls.
"""
UNKNOWN = Estimate(math.nan, None, None, 0)


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
        options = [c for c in map(str, row.index) if c.startswith(f"{column}.") and c != _RATE and pd.notna(row[c])]
        words = [
            re.sub(r"^1 (.*)s$", r"1 \1", self.noun.format(plain(row[column]))),
            *(f"{c.split('.')[-1]}={plain(row[c])}" for c in options),
        ]
        words += [f"{c.split('.')[-1]}={plain(row[c])}" for c in self.columns[1:] if pd.notna(row.get(c))]
        return " ".join(words)

    def pairs(self, group: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
        """Yield (candidate, baseline) of configurations that are alike in all else."""
        column = self.columns[0]
        if self.name == "devices":
            yield from _neighbours(group)
            return
        bare = [c for c in map(str, group) if c.startswith(f"{column}.") and c != _RATE]
        first = group.drop_duplicates([*(c for c in self.columns if c in group), *bare])
        usual = RunSpec.model_fields[column].default if column in RunSpec.model_fields else None
        if pd.api.types.is_numeric_dtype(first[column]):
            first = first.sort_values(column, kind="stable")
        elif usual is not None:
            worse = (first[column] != usual.name).astype(int) * 100 + first[bare].notna().sum(axis=1)
            first = first.loc[worse.sort_values(kind="stable").index]
        base = first.iloc[0]
        yield from ((row, base) for _, row in first.iloc[1:].iterrows())


def _neighbours(group: pd.DataFrame) -> Iterator[tuple[pd.Series, pd.Series]]:
    """Each number of devices against the next smaller one of the same parallelism; one device has none."""
    ways = [c for c in map(str, group) if c.split(".")[0] == "parallelism"]
    rows = [
        (int(row["devices"]), str(row[ways].to_dict()), row) for _, row in group.dropna(subset=["devices"]).iterrows()
    ]
    for count, way, row in rows:
        below = [one for one in rows if one[0] < count and (one[1] == way or one[0] == 1)]
        if below:
            yield row, max(below, key=lambda one: one[0])[2]


TOPICS = (
    Topic("devices", ("devices",), ("devices_per_node", "global_batch_size", "parallelism"), "{} devices"),
    Topic("devices", ("devices",), ("devices_per_node", "batch_size_per_device", "parallelism"), "{} devices"),
    *(Topic(name, (name,)) for name in ("precision", "compile", "attention", "optimizer", "memory", "pruning")),
    Topic("parallelism", ("parallelism",), ("batch_size_per_device",)),
    Topic("quantization", ("quantization",)),
    Topic("distillation", ("distillation",), ("needs",)),
    Topic("finetune", ("finetune",), (_RATE,)),
    Topic("batch", ("batch_size_per_device",), ("global_batch_size",), "a batch of {}"),
    Topic("accumulation", ("gradient_accumulation_steps",), ("batch_size_per_device",), "{} accumulation steps"),
    Topic("threads", ("threads_per_device",), (), "{} threads a device"),
    Topic("loader", ("workload_args.workers", "workload_args.pin_memory"), (), "{} loader workers"),
)


@dataclass(frozen=True, eq=False)
class Change:
    """One option against its baseline in all matched cells, each the runs of (option, baseline).

    `action` is what a suite has to say; `names` are those of (option, baseline) by cell; `grew` is by what factor the number
    of devices did.
    """

    topic: Topic
    option: str
    baseline: str
    action: str
    names: tuple[tuple[str, str], ...]
    grew: float
    cells: tuple[tuple[pd.DataFrame, pd.DataFrame], ...]

    @property
    def title(self) -> str:
        """The option with its topic, where that does not go without saying: `precision bf16`, `2 devices`."""
        return self.option if self.topic.noun != "{}" else f"{self.topic.name} {self.option}"

    def column(self, measure: str) -> tuple[str, bool] | None:
        """Return the column of a measure, and whether its inverse counts; None where a run does not know it."""
        for column, inverse in MEASURES[measure]:
            sides = [runs[column] for cell in self.cells for runs in cell if column in runs]
            if len(sides) == 2 * len(self.cells) and all((values > 0).all() for values in sides):
                return column, inverse
            if column == "samples_per_second" and any(values.notna().any() for values in sides):
                return None  # how long whole runs took would be another thing
        return None

    def pairs(self, measure: str) -> list[tuple[pd.Series, pd.Series]]:
        """Return (option, baseline) of a measure in each cell; [] where a run does not know it."""
        found = self.column(measure)
        if found is None:
            return []
        column, inverse = found
        return [(b[column], a[column]) if inverse else (a[column], b[column]) for a, b in self.cells]

    def times(self, measure: str) -> float:
        """Return what ratios of a measure are multiplied with: a power of the factor of devices."""
        return float(self.grew ** _POWER.get(measure, 0.0))

    @cached_property
    def _contrasts(self) -> dict[str, stats.Contrast]:
        return {}

    def contrast(self, measure: str) -> stats.Contrast:
        """Compare option with baseline in a measure, `times` left out; UNKNOWN where a run does not know it.

        In one cell as `analytics.compare` does it, by pairs of launches where they ran side by side; over several cells by
        `stats.ratio`, the spread of each side then counting by its weight.
        """
        if measure not in self._contrasts:
            self._contrasts[measure] = self._contrast(self.column(measure), self.pairs(measure))
        return self._contrasts[measure]

    def _contrast(self, column: tuple[str, bool] | None, pairs: list[tuple[pd.Series, pd.Series]]) -> stats.Contrast:
        if column is None:
            return stats.Contrast(UNKNOWN)
        if len(pairs) == 1:
            beside = side_by_side(column[0], self.cells[0])
            option, baseline = (
                (values.tolist() for values in pairs[0]) if beside is None else beside[:: -1 if column[1] else 1]
            )
            return stats.contrast(option, baseline, paired=beside is not None)
        found = stats.ratio(pairs)
        spread = [stats.pooled([side])[0] / len(pairs) for pair in pairs for side in pair] if found.n > 1 else []
        return stats.Contrast(found, spread=tuple(spread))

    def ratio(self, measure: str) -> Estimate:
        """Return option / baseline of a measure for the same work; UNKNOWN where a run does not know it."""
        found, times = self.contrast(measure).found, self.times(measure)
        low, high = (end and end * times for end in (found.low, found.high))
        return Estimate(found.value * times, low, high, found.n)

    def more_repeats(self, measure: str, tests: int) -> int | None:
        """How many more repeats of each side would tell, as `stats.more_repeats` has it; None where no spread is known."""
        found, ratio = self.contrast(measure), self.ratio(measure)
        region = (math.log1p(-stats.SAME), math.log1p(stats.SAME))
        return stats.more_repeats(found.spread, ratio.n, math.log(ratio.value), region, tests)

    @property
    def main(self) -> str:
        """The measure that decides: quantisation after training changes the use of a model, not its training."""
        if self.topic.name == "devices":
            return "knee"
        return "time in use" if self.topic.name == "quantization" and self.pairs("time in use") else "time"

    @property
    def runs(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """All runs of the option and all of the baseline."""
        option, baseline = (pd.concat(side) for side in zip(*self.cells, strict=True))
        return option, baseline

    @property
    def count(self) -> int:
        """Number of different runs on both sides."""
        return len(set().union(*(side.index for side in self.runs)))


def changes(df: pd.DataFrame, table: pd.DataFrame) -> list[Change]:
    """Return every matched change among runs `df` of one execution that ended well; `table` has their configurations."""
    begun = df.groupby("config_id")["started_at"].min()
    table = table.iloc[begun.loc[table["config_id"]].argsort(kind="stable")]
    runs = {str(config): part for config, part in df.groupby("config_id")}
    several = table.loc[table["devices"] > 1, "parallelism"].nunique() > 1
    texts = table[[*asked(table), "environment", "host", "device_name"]].astype("str").fillna("")
    varying = [c for c in map(str, texts) if texts[c].nunique() > 1]
    found: list[list[Change]] = []
    for topic in TOPICS:
        same = [c for c in varying if c not in _BESIDE and not topic.covers(c)]
        cells: dict[tuple[str, str], list[tuple[pd.Series, pd.Series]]] = {}
        for places in _alike(texts[same]) if len(same) < len(varying) and topic.columns[0] in texts else []:
            for row, base in topic.pairs(table.iloc[places]):
                way = f" ({plain(row['parallelism'])})" if topic.name == "devices" and several else ""
                cells.setdefault((topic.option(row) + way, topic.option(base)), []).append((row, base))
        found.append([_change(topic, *key, pairs, runs) for key, pairs in cells.items() if key[0] != key[1]])
    weak, strong, *rest = found
    counts = [sum(len(change.cells) for change in part) for part in (weak, strong)]
    return [change for part in ([weak, strong][counts[1] > counts[0]], *rest) for change in part]


def _change(
    topic: Topic, option: str, baseline: str, pairs: list[tuple[pd.Series, pd.Series]], runs: dict[str, pd.DataFrame]
) -> Change:
    row, base = pairs[0]
    differ = [c for c in asked(row.to_frame().T) if topic.covers(c) and c not in _FOLLOW and pd.notna(row[c])]
    action = ", ".join(f"{c}: {plain(row[c])}" for c in differ if str(row[c]) != str(base[c]))
    cells = tuple((runs[a["config_id"]], runs[b["config_id"]]) for a, b in pairs)
    grew = float(row["devices"] / base["devices"]) if pd.notna(row["devices"]) and pd.notna(base["devices"]) else 1.0
    return Change(
        topic, option, baseline, action, tuple((str(a["name"]), str(b["name"])) for a, b in pairs), grew, cells
    )


def _alike(texts: pd.DataFrame) -> list[list[int]]:
    """Return the places of rows that are alike, where there are two or more."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(texts.itertuples(index=False, name=None)):
        groups.setdefault(key, []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def plain(value: object) -> str:
    """Write a value of a field as a suite would have it."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole and isinstance(value, float) else printable(value, 40)


def apart(ratio: Estimate) -> bool:
    """Whether the interval of a ratio leaves 1 out."""
    return ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high
