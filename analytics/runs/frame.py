"""Rows of runs -> a tidy DataFrame, one row a run; and its summary, one row a configuration.

Columns are the names of `bench.figures.metrics.row`. A row holds what one run is; nothing is filled in: an absent figure is
NaN.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

from analytics.interval import geometric_mean
from analytics.quantities import CATALOGUE, pooled_by, quantity
from analytics.runs.recost import terms
from analytics.text import printable
from bench.figures.flags import grade
from bench.figures.metrics import TEXT_COLUMNS
from bench.record import Provenance, Status
from bench.schema import AXES, COMMAND, MEASURE, RunSpec, Scalar, names_in_braces

IDENTITY = ("suite", "execution", "environment", "config_id")
"""What repeats of one configuration share. Runs of other executions, hosts, drivers or commits are never pooled."""

WORDS = ("workload", *AXES, "launcher", "device_type", "meters")
COUNTS = (
    "devices",
    "num_nodes",
    "devices_per_node",
    "threads_per_device",
    "machine_devices",
    "batch_size_per_device",
    "global_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "measure_steps",
    "seed",
    "repeat",
    "ladder",
)
INTERVALS, MEDIANS = pooled_by("geometric"), pooled_by("median")
"""Figures that the summary gives as a geometric mean over repeats with `_low` and `_high` (95 %), and as a median."""
NUMBERS = (
    *CATALOGUE,
    *("warmup_seconds", "measure_seconds", "timeout_seconds", "power_watts_estimated", "steps", "trained_steps"),
    "data_wait_share",
)


_EXACT = 2**53
"""Whole numbers up to this size are exact in all columns."""


DECLARED = (*TEXT_COLUMNS, *WORDS, *COUNTS, *NUMBERS)
"""Columns that every frame has, with types that do not depend on its rows."""
_KINDS = dict.fromkeys((*TEXT_COLUMNS, *WORDS), "text") | dict.fromkeys(NUMBERS, "figure")
_KINDS |= dict.fromkeys(COUNTS, "count") | {"started_at": "time"}


def _typed(column: pd.Series, kind: str | None) -> pd.Series:
    """Return a column with the type of its kind; without a kind, numbers stay numbers."""
    if kind == "time":
        return pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601").astype("datetime64[us, UTC]")
    if kind == "count":
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
        no_count = (numbers.abs() > _EXACT) | (numbers % 1 != 0)  # a wrong count is left out: no figure is better
        return numbers.mask(no_count).astype("Int64")
    if kind == "figure":
        return pd.to_numeric(column, errors="coerce").astype("float64")
    if kind == "text":
        return column.astype("str")
    known = column.dropna()
    numeric = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in known]
    if numeric and all(numeric):
        return pd.to_numeric(column).astype("float64")
    return column.astype("str")


Rows = pd.DataFrame | Iterable[Mapping[str, Scalar]]
"""Runs as a frame, or as rows that one can be made of."""


def frame(rows: Rows) -> pd.DataFrame:
    """Return one row a run, sorted by start; what is a frame already is returned as it is.

    Columns are all of COUNTS, NUMBERS, WORDS and TEXT_COLUMNS, and, by name, what else the rows have. Types do not depend
    on the rows: counts are Int64, figures float64 (base SI units, NaN where absent), `started_at` a UTC datetime, the
    rest text. Of a run that was done again, or that the store holds twice, the last appears.
    """
    return rows if isinstance(rows, pd.DataFrame) else tidy(declared(rows))


def declared(rows: Iterable[Mapping[str, Scalar]]) -> pd.DataFrame:
    """Return the rows as they came, but for the columns of DECLARED, which are there and have their types."""
    given = pd.DataFrame(list(rows), dtype=object)
    others = sorted(set(map(str, given.columns)) - set(DECLARED))
    absent = {kind: _typed(pd.Series(index=given.index, dtype=object), kind) for kind in set(_KINDS.values())}
    plain = _plain(given)
    typed = {n: _typed(given[n], _KINDS[n]) if n in given else absent[_KINDS[n]] for n in DECLARED if n not in plain}
    columns = typed | plain | {name: given[name] for name in others}
    return pd.DataFrame({name: columns[name] for name in (*DECLARED, *others)}, index=given.index)


def _plain(given: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of COUNTS and NUMBERS, all at once, which is faster; nothing where a cell is no plain number."""
    cells = given.reindex(columns=[*COUNTS, *NUMBERS]).to_numpy(dtype=object)
    whole_numbers = (cell for cell in cells.flat if type(cell) is int)
    if not {*map(type, cells.flat)} <= {float, int, NoneType} or any(abs(cell) > _EXACT for cell in whole_numbers):
        return {}
    numbers = cells.astype(float)
    counts = numbers[:, : len(COUNTS)]
    with np.errstate(invalid="ignore"):
        no_count = ~((np.abs(counts) <= _EXACT) & (counts % 1 == 0))
    whole = np.where(no_count, 0, counts).astype("int64")
    out: dict[str, Any] = {n: pd.arrays.IntegerArray(whole[:, i], no_count[:, i]) for i, n in enumerate(COUNTS)}
    return out | dict(zip(NUMBERS, numbers[:, len(COUNTS) :].T, strict=True))


def tidy(given: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of rows from `declared`: all columns typed, sorted by start, each run once."""
    others = sorted(name for name in set(given.columns) - set(DECLARED) if given[name].notna().any())
    df = pd.concat([given[[*DECLARED]], *(_typed(given[name], None).rename(name) for name in others)], axis=1)
    begun = df[[*IDENTITY, "run_id", "started_at"]].sort_values("started_at", kind="stable")
    older = begun.duplicated([*IDENTITY, "run_id"], keep="last") & begun["run_id"].notna()
    return df.loc[begun.index[~older]].reset_index(drop=True)


def asked(df: pd.DataFrame) -> list[str]:
    """Name the columns that hold what was asked of a run (fields of RunSpec, flat), without seed and repeat."""
    fields = {*RunSpec.model_fields, "devices", "global_batch_size"} - {"seed", "repeat", "ladder", "words", "work"}
    return [name for name in df.columns if name in fields or name.split(".")[0] in fields]


def measured_commands(df: pd.DataFrame) -> bool:
    """Whether all runs are those of `bench measure`."""
    return "open_devices" in df and bool(df["open_devices"].notna().all())


def of_tables(df: pd.DataFrame) -> pd.Series:
    """Say of each run whether it was imported from a table of others."""
    return df["flags"].astype("string").str.contains(r"\bimported\b", na=False).astype(bool)


def interleaved(df: pd.DataFrame) -> pd.Series:
    """Say of each run whether its execution repeats all configurations by turns, as that of a suite does.

    Calls of `bench measure` and searches repeat one configuration after another, and tables do not say.
    """
    alone = df["stage"].notna() | of_tables(df)
    return ~(alone | df["open_devices"].notna() if "open_devices" in df else alone)


LOADER = ("workload_args.workers", "workload_args.pin_memory")
"""Arguments of a workload that change neither its model nor its data."""
_COUNTING = tuple(
    f"workload_args.{name}" for name in ("step_pattern", "steps_per_line", "samples_per_step", "tokens_per_step")
)
"""Arguments of a command that say how its output is read."""
_SEEN = ("precision", "parallelism", "optimizer", "compile", "batch_size_per_device", "global_batch_size")
"""Columns of commands that hold what was seen, unless the text of the command asks for it."""


def varied(df: pd.DataFrame) -> list[str]:
    """Name those columns of `asked` in which configurations may differ: of commands not those that were only seen."""
    columns = asked(df)
    if "workload" not in df or "workload_args.argv" not in df or not df["workload"].eq(COMMAND).all():
        return columns
    named = set().union(*map(names_in_braces, df["workload_args.argv"].dropna().unique()))
    named |= set(_SEEN[-2:]) if named & set(_SEEN[-2:]) else set()
    return [name for name in columns if name not in _COUNTING and (name in named or name not in _SEEN)]


def work_arguments(df: pd.DataFrame) -> list[str]:
    """Name the arguments of workloads that say what is trained, not how: of commands those that their suite names.

    What `bench measure` runs is told by the command itself.
    """
    own = [name for name in map(str, df) if name.startswith("workload_args.") and name not in LOADER]
    if "workload" not in df:
        return own
    commands = df["workload"].eq(COMMAND)
    named = {name for text in df.get("work", pd.Series(dtype=str)).dropna() for name in str(text).split()}
    named |= {"workload_args.argv"} if "suite" in df and df["suite"].eq(MEASURE).any() else set()
    others = df[~commands]
    return [name for name in own if name in named or (len(others) and others[name].notna().any())]


def latest_execution(df: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the execution of each suite that was begun last; executions are not mixed."""
    begun = df.groupby(["suite", "execution"], dropna=False)[["started_at"]].min().reset_index()
    last = begun.sort_values(["started_at", "execution"], kind="stable").drop_duplicates("suite", keep="last")
    return df.merge(last[["suite", "execution"]], on=["suite", "execution"])


_ABOUT = ("host", "device_name", "label", "ladder", "work")


def _estimate(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """A figure of several runs and its interval; NaN where none knows it."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, None, None
    if (known <= 0).any():
        return float(np.median(known)), None, None
    found = geometric_mean(known)
    return found.value, found.low, found.high


def values(column: pd.Series) -> list[Any]:
    """Return the values of a column as Python has them, None where one is absent: they can be compared and hashed."""
    return [None if absent else value for value, absent in zip(column.tolist(), column.isna(), strict=True)]


def _union(texts: Iterable[Any]) -> str:
    return " ".join(sorted({word for text in texts if pd.notna(text) for word in str(text).split()}))


_TERMS = {"cost_basis": "costs_differ", "emissions_basis": "carbon_differs"}
"""What cost and carbon rest on, and the flag of repeats that have no common one: then no figure is that of all."""


def _texts(of: Mapping[str, Sequence[Any]], differ: Sequence[str]) -> dict[str, str | None]:
    """Summarise the texts of the repeats of one configuration; `differ` are flags of what they have not in common."""
    known = [Provenance(label) for label in of["energy_provenance"] if label in set(Provenance)]
    row = {"energy_provenance": str(Provenance.worst(known)) if known else None}
    row |= {name: _union(of[name]) or None for name in ("energy_missing", "emissions_basis", "cost_basis")}
    mixed = ["energy_components_differ", *differ] if len(set(of["energy_components"])) > 1 else [*differ]
    if not any(pd.notna(rate) for name in _RATES for rate in of[name]):
        different = any(len({length for length in of[name] if pd.notna(length)}) > 1 for name in _LENGTHS)
        some = any(0 < sum(map(pd.notna, of[name])) < len(of[name]) for name in _LENGTHS)
        mixed += ["lengths_differ"] * (different or some)
    grades = [*filter(pd.notna, of["grade"]), *([grade(mixed)] if mixed else [])]
    return row | {"flags": " ".join([*_union(of["flags"]).split(), *mixed]), "grade": max(grades, default=None)}


_RATES, _LENGTHS = ("samples_per_second", "tokens_per_second"), ("measure_steps", "measure_seconds")
_TEXTS = ("energy_provenance", "energy_missing", "emissions_basis", "cost_basis", "flags", "grade")


_ORDER = ["suite", "execution", "ladder", "workload", "flops_per_sample", "precision", "parallelism", "devices"]


def _ended(df: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return `configurations`, the number of the configuration of each run that ended well or -1, and failures of each."""
    whose = [*zip(*(values(df[name]) for name in IDENTITY), strict=True)]
    numbers = {identity: number for number, identity in enumerate(dict.fromkeys(whose))}
    number = np.array([numbers[identity] for identity in whose], dtype=int)
    well = np.flatnonzero(df["status"] == Status.OK)
    of, first, repeats = np.unique(number[well], return_index=True, return_counts=True)
    flops = df["flops_per_sample"].iloc[well].groupby(number[well]).median().to_numpy()
    kinds = [name for name in work_arguments(df) if df["workload"].eq(COMMAND).all()]
    keys = df[[*_ORDER, *kinds]].iloc[well[first]].reset_index(drop=True).assign(flops_per_sample=flops)
    order = keys.sort_values([*_ORDER[:5], *kinds, *_ORDER[5:]], kind="stable").index.to_numpy()
    table = df[[*IDENTITY, *_ABOUT, *asked(df)]].iloc[well[first][order]].reset_index(drop=True)
    table = table.assign(flops_per_sample=flops[order], name=names(table))
    place = np.full(len(numbers), -1)
    place[of[order]] = np.arange(len(of))
    whole = np.bincount(number, minlength=1)
    return table, np.where(df["status"] == Status.OK, place[number], -1), (whole[of] - repeats)[order]


def configurations(df: pd.DataFrame) -> pd.DataFrame:
    """Return the summary without its figures: IDENTITY, what was asked, `name` and `flops_per_sample`."""
    return _ended(df)[0]


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """Return one row a configuration of each execution and environment, from runs that ended well, in readable order.

    Columns: IDENTITY, what was asked, `name` (short, see `names`), `repeats` and `failures` (counts of runs), the
    figures of INTERVALS with `_low` and `_high`, the medians of MEDIANS, the largest `peak_memory_bytes`, the worst
    `energy_provenance` and `grade`, and the union of `flags`. With one repeat an interval is NaN. A figure that is 0 has no
    logarithm: then it is the median, without interval. Measured and estimated energy stay two columns.
    """
    table, place, failures = _ended(df)
    well = place.argsort(kind="stable")[(place < 0).sum() :]
    repeats = np.bincount(place[well], minlength=len(table))
    ends = repeats.cumsum()
    spans = [*zip(ends - repeats, ends, strict=True)]
    columns: dict[str, Any] = {"name": table.pop("name"), **table.drop(columns="flops_per_sample")}
    columns |= {name: pd.array(count, dtype="Int64") for name, count in (("repeats", repeats), ("failures", failures))}
    figures = df[list(INTERVALS)].to_numpy(dtype=float)[well]
    estimates = np.full((len(INTERVALS), len(spans), 3), math.nan)
    for known in np.flatnonzero(~np.isnan(figures).all(axis=0)):
        estimates[known] = [_estimate(figures[start:end, known]) for start, end in spans]
    for name, ends_of in zip(INTERVALS, estimates, strict=True):
        columns |= {name + tail: ends_of[:, index] for index, tail in enumerate(("", "_low", "_high"))}
    of_each = df[[*MEDIANS, "peak_memory_bytes"]].iloc[well].groupby(place[well])
    columns |= dict(of_each[list(MEDIANS)].median())
    columns["peak_memory_bytes"] = of_each["peak_memory_bytes"].max().to_numpy()
    inner = (*_TEXTS, "energy_components", *_RATES, *_LENGTHS)
    lists = {name: df[name].iloc[well].tolist() if name in df else [None] * len(well) for name in inner}
    differ: list[list[str]] = [[] for _ in spans]
    for basis, keys in terms(df.iloc[well]).items():
        apart = np.array([len(set(keys[start:end])) > 1 for start, end in spans], dtype=bool)
        for name in (name for name in columns if quantity(re.sub("_(low|high)$", "", name)).rests_on == basis):
            columns[name] = np.where(apart, math.nan, columns[name])
        for flags in itertools.compress(differ, apart):
            flags.append(_TERMS[basis])
    told = [
        _texts({name: cells[start:end] for name, cells in lists.items()}, flags)
        for (start, end), flags in zip(spans, differ, strict=True)
    ]
    columns |= {name: pd.array([one[name] for one in told], dtype="str") for name in _TEXTS}
    return pd.DataFrame(columns)


_SHOWN = {
    "devices": "d={}",
    "precision": "{}",
    "parallelism": "{}",
    "optimizer": "{}",
    **dict.fromkeys(AXES[3:], "{}"),
    "compile": "compile={}",
    "workload": "{}",
    "saves": "saves {}",
    "needs": "from {}",
    "batch_size_per_device": "b={}",
    "global_batch_size": "batch={}",
    "gradient_accumulation_steps": "accumulation={}",
    "threads_per_device": "threads={}",
}


_PLAIN = {axis: RunSpec.model_fields[axis].default.name for axis in AXES[2:]}
"""What an axis does where nothing was asked: it goes without saying."""


def piece(column: str, value: Any) -> str:
    """Name one field of a configuration: `d=2`, `bf16`, `preset=small`; nothing for what an axis does by default."""
    if pd.isna(value) or value == _PLAIN.get(column):
        return ""
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value)) if whole else printable(value, 40)
    return _SHOWN[column].format(text) if column in _SHOWN else f"{printable(column.split('.', 1)[-1], 40)}={text}"


def telling(table: pd.DataFrame) -> list[str]:
    """Return the columns that tell the configurations of a table apart, as `names` uses them; [] for a single one."""
    own = {column: values(table[column]) for column in varied(table)}
    varying = [column for column, cells in own.items() if len(set(cells)) > 1]
    # An argument that one workload has and another has not tells nothing that the workload's name does not.
    kinds = set(own["workload"])
    pairs = {column: set(zip(own["workload"], own[column], strict=True)) for column in varying}
    varying = [c for c in varying if not c.startswith("workload_args.") or len(pairs[c]) > len(kinds)]
    follows = "workload_args.architecture"  # from a preset, mostly
    arguments = [column for column in varying if column.startswith("workload_args.") and column != follows]
    core = [column for column in ("workload", *arguments, "devices", "precision") if column in varying]
    rest = [column for column in _SHOWN if column in varying and column not in core]
    rest += [column for column in varying if column not in (*core, *rest)]
    others = [column for column in asked(table) if column not in own]  # that were seen alone
    others += [column for column in ("host", "environment", "execution", "suite") if column in table]
    own |= {column: values(table[column]) for column in others}
    rest += others
    chosen, apart = list(core), len(set(zip(*(own[c] for c in core), strict=True))) if core else min(len(table), 1)
    for column in rest:
        groups = len(set(zip(*(own[c] for c in (*chosen, column)), strict=True)))
        if groups > apart:
            chosen, apart = [*chosen, column], groups
    return chosen


def names(table: pd.DataFrame) -> pd.Series:
    """Name each configuration of a summary by the fields that vary in it, such as `preset=small d=2 bf16`.

    Workload and its arguments, devices and precision are named whenever they vary; another field only if configurations
    would otherwise share a name (so a batch that follows from the devices is left out). What an axis does by default is
    left out, and `plain` is all of that. One configuration alone is named by its workload and devices. Returns text on the
    index of `table`.
    """
    chosen = telling(table) or ["workload", "devices"]
    rows = table[chosen].to_dict("records")
    texts = [" ".join(filter(None, (piece(c, row[c]) for c in chosen))) or "plain" for row in rows]
    return pd.Series(texts, index=table.index, dtype="str")


def total(df: pd.DataFrame, column: str) -> tuple[float | None, int]:
    """Return the sum of a figure of whole runs and of how many runs it is known; (None, 0) where it never is."""
    known = df[column].dropna()
    return (float(known.sum()), len(known)) if len(known) else (None, 0)
