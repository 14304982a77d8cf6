"""Someone else's table of results -> rows of runs, of provenance `imported`. What cannot be used is told line by line.

A row is what `bench.metrics.row` would make of a run. Nothing is guessed: a column counts by its name or by what the user
says it is. Only what follows is added: rates from each other, and the work by 6 × parameters × tokens.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.frame import COUNTS, NUMBERS, WORDS
from analytics.words import printable
from bench.record import Provenance
from bench.registry import did_you_mean
from bench.schema import AXES, Scalar

LENGTH = "workload_args.sequence_length"
SPEEDS = ("samples_per_second", "tokens_per_second")
_ALIASES = {"sequence_length": LENGTH, "step_seconds": "step_seconds_median"}
_RATES = tuple(f"{name}_per_device" for name in SPEEDS)
_NUMBERS = {*COUNTS, *NUMBERS, *_RATES, LENGTH}
TARGETS = {*_NUMBERS, *WORDS, "device_name", "dataset", "host", "region", "started_at", *_ALIASES}
_NOT_ASKED = {*NUMBERS, *_RATES, "repeat", "seed", "started_at", "region", "host"} - {"parameters", "flops_per_sample"}
_OPTION = re.compile(rf"(workload_args|{'|'.join(AXES)})\.[A-Za-z0-9_-]{{1,60}}")
_ANY_SIGN, _ZERO_TOO = (
    re.compile("loss|error"),
    re.compile("loss|error|accuracy|share|warmup|repeat|seed|ladder|reached"),
)
_RATIO = re.compile("share|accuracy|utilization")


class ImportProblem(ValueError):
    """What is wrong with the file or with how its columns are named, ready to be shown."""


@dataclass(frozen=True)
class Column:
    """A column of the file, what it is called here, and what its numbers are multiplied by."""

    name: str
    target: str
    factor: float = 1.0


@dataclass
class Imported:
    """What became of a file: rows of runs, lines that are no use with the reason, and what is to be known of the rest."""

    suite: str
    columns: list[Column]
    ignored: list[str]
    execution: str = ""
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Return the names of the columns, and each row with its line: of CSV (also ; or tab), JSON lines (.jsonl) or Parquet.

    Raises ImportProblem for a file that is none of them.
    """
    try:
        if path.suffix == ".parquet":
            found = pd.read_parquet(path)
            cells = [{str(k): v for k, v in row.items() if pd.notna(v)} for row in found.to_dict("records")]
            return [str(name) for name in found.columns], list(enumerate(cells, 1))
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                objects = [(n, dict(json.loads(line))) for n, line in enumerate(file, 1) if line.strip()]
                return list(dict.fromkeys(name for _, row in objects for name in row)), objects
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count), strict=True)
            return list(reader.fieldnames or []), [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ImportProblem(f"{path} cannot be read as a table: {printable(error, 200)}") from error


def read_columns(
    names: list[str], maps: Iterable[str], settings: Iterable[str]
) -> tuple[list[Column], dict[str, Scalar]]:
    """Say what each column is: `COLUMN=OURS` or `COLUMN=OURS:FACTOR`, else its own name; and what `OURS=VALUE` fixes.

    Raises ImportProblem with all mistakes, a line each.
    """
    wrong: list[str] = []
    fixed: dict[str, Scalar] = {}
    columns: list[Column] = []
    for text in settings:
        target, _, value = text.partition("=")
        try:
            if not value:
                raise ValueError("wanted NAME=VALUE")
            fixed[_known(target)] = _value(_known(target), value)
        except ValueError as error:
            wrong.append(f"--set {text}: {error}")
    for text in maps:
        name, _, rest = text.rpartition("=")
        target, _, factor = rest.partition(":")
        try:
            if name not in names:
                raise ValueError(f"no column {printable(name)!r}; {did_you_mean(name, names)}")
            columns.append(Column(name, _known(target), float(_value("factor", factor or 1))))
        except ValueError as error:
            wrong.append(f"--map {text}: {error}")
    taken = {*(column.target for column in columns), *fixed}
    mapped = {column.name for column in columns}
    own = [name for name in names if name not in mapped and (name in TARGETS or _OPTION.fullmatch(name))]
    columns += [Column(name, _known(name)) for name in own if _known(name) not in taken]
    targets = [*(column.target for column in columns), *fixed]
    wrong += [f"{target} is given twice" for target in sorted({t for t in targets if targets.count(t) > 1})]
    for wanted in (("tokens_per_second", "samples_per_second", *_RATES), ("devices",)):
        if not wrong and not set(wanted) & set(targets):
            told = ", ".join(map(printable, names))
            wrong.append(
                f"no column is {' or '.join(wanted[:2])}: give --map COLUMN={wanted[0]}, or --set; columns: {told}"
            )
    if wrong:
        raise ImportProblem("\n".join(wrong))
    return columns, fixed


def _known(target: str) -> str:
    if target not in TARGETS and not _OPTION.fullmatch(target):
        raise ValueError(
            f"unknown name {printable(target)!r}: {did_you_mean(target, [*TARGETS, 'workload_args.NAME'])}"
        )
    return _ALIASES.get(target, target)


def _value(target: str, text: Any, factor: float = 1.0) -> Scalar:
    """Read a cell. Raises ValueError with the reason where it is of no use."""
    if target == "started_at":
        moment = datetime.fromisoformat(str(text))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
    try:
        value = float(text) * factor if "_" not in str(text) else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if target not in _NUMBERS and target != "factor":
        return value if math.isfinite(value) and "." in target else printable(text, 200)
    if not math.isfinite(value):
        raise ValueError(f"{target}: {printable(text, 30)!r} is no number")
    if (value < 0 and not _ANY_SIGN.search(target)) or (value == 0 and not _ZERO_TOO.search(target)):
        raise ValueError(f"{target}: {value:g} is not positive")
    if value > 1 and _RATIO.search(target):
        raise ValueError(f"{target}: {value:g} is above 1, a ratio is from 0 to 1: for percent give the factor :0.01")
    if target in (*COUNTS, LENGTH):
        if not value.is_integer():
            raise ValueError(f"{target}: {value:g} is no whole number")
        return int(value)
    return value


def _derived(known: dict[str, Any]) -> dict[str, Scalar]:
    """Add what follows. Raises ValueError where there is no speed or no number of devices."""
    row = dict(known)
    if "devices" not in row:
        raise ValueError("devices: no number")
    devices, length = row["devices"], row.get(LENGTH)
    for speed in SPEEDS:
        if f"{speed}_per_device" in row:
            row.setdefault(speed, row[f"{speed}_per_device"] * devices)
    if not set(SPEEDS) & row.keys():
        raise ValueError("no speed: samples_per_second and tokens_per_second are empty")
    if length and "samples_per_second" not in row:
        row["samples_per_second"] = row["tokens_per_second"] / length
    elif length and "tokens_per_second" not in row:
        row["tokens_per_second"] = row["samples_per_second"] * length
    if length and "parameters" in row:
        row.setdefault("flops_per_sample", 6.0 * row["parameters"] * length)
    row |= {f"{speed}_per_device": row[speed] / devices for speed in SPEEDS if speed in row}
    if {"flops_per_sample", "samples_per_second"} <= row.keys():
        row["flops_per_second_per_device"] = row["flops_per_sample"] * row["samples_per_second"] / devices
    for part, label in (("joules", "energy_provenance"), ("emissions", "emissions_basis"), ("cost", "cost_basis")):
        if any(part in key for key in row):
            row[label] = str(Provenance.IMPORTED)
    return row


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def imported(
    path: Path, maps: Iterable[str], settings: Iterable[str], suite: str, now: datetime | None = None
) -> Imported:
    """Read a table of results as runs of a suite; rows of one configuration are its repeats.

    A run began when it was imported, unless the file has a column `started_at`. The name of the execution follows from the
    rows, so that the same file gives the same execution. Raises ImportProblem; rows that are of no use do not.
    """
    names, lines = read_table(path)
    columns, fixed = read_columns(names, maps, settings)
    out = Imported(suite, columns, [name for name in names if name not in {column.name for column in columns}])
    seen: dict[str, int] = {}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line, cells in lines:
        try:
            filled = [(c, text) for c in columns if (text := cells.get(c.name)) is not None and str(text).strip()]
            known = fixed | {c.target: _value(c.target, text, c.factor) for c, text in filled}
            row = _derived(known)
            asked = {key: value for key, value in known.items() if key not in _NOT_ASKED}
            config = _hash([suite, asked])
            key = _hash([config, known["repeat"]] if "repeat" in known else known)
            if key in seen:
                raise ValueError(f"the same run as line {seen[key]}")
        except ValueError as error:
            out.refused.append((line, printable(error, 200)))
            continue
        seen[key] = line
        repeat = known.get("repeat", len(groups[config]))
        label = printable(" ".join(f"{key.split('.')[-1]}={value}" for key, value in asked.items()), 200)
        row |= {"config_id": config, "repeat": repeat, "run_id": f"imported-{config}-r{repeat}", "label": label}
        groups[config].append(cells)
        out.rows.append(row)
    _identify(out, now or datetime.now(UTC))
    _remark(out, [group for group in groups.values() if len(group) > 1])
    return out


def _identify(out: Imported, now: datetime) -> None:
    """Give the rows what all runs have; they keep their order, a microsecond apart."""
    out.execution = f"imported-{_hash(out.rows)}"
    own: dict[str, Scalar] = {"suite": out.suite, "execution": out.execution, "environment": "imported"}
    own |= {"status": "ok", "flags": "imported"}
    for index, row in enumerate(out.rows):
        began = (now + timedelta(microseconds=index)).isoformat()
        out.rows[index] = {"workload": "imported", "device_name": "unknown", "started_at": began, **row, **own}


def _remark(out: Imported, pooled: list[list[Mapping[str, Any]]]) -> None:
    """Say what was added, and which columns differ between rows that are taken for repeats."""
    given = {column.target for column in out.columns}
    if any("flops_per_sample" in row for row in out.rows) and "flops_per_sample" not in given:
        out.notes.append(
            "flops_per_sample = 6 × parameters × sequence length, without attention: that counts if it is long"
        )
    if pooled and "repeat" not in given:
        apart = [n for n in out.ignored if any(len({str(cells.get(n)) for cells in group}) > 1 for group in pooled)]
        told = f"; not mapped, though they differ: {', '.join(map(printable, apart))}" if apart else ""
        out.notes.append(f"{len(pooled)} configurations have several rows, which count as repeats{told}")
