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
from collections.abc import Iterable, Iterator, Mapping
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
_TEXTS = ("device_name", "dataset", "host", "region", "started_at")
_RATES = tuple(f"{name}_per_device" for name in SPEEDS)
_FIGURES = {*NUMBERS, *_RATES, "flops_per_token"} - {"parameters", "flops_per_sample"}
TARGETS = {*COUNTS, *_FIGURES, "parameters", "flops_per_sample", *WORDS, *_TEXTS, *_ALIASES}
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
    execution: str = ""
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
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
            if path.suffix in (".jsonl", ".ndjson"):
                objects = [(n, dict(json.loads(line))) for n, line in enumerate(file, 1) if line.strip()]
                return list(dict.fromkeys(name for _, row in objects for name in row)), objects
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count), strict=True)
            return list(reader.fieldnames or []), [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ImportProblem(f"{path} cannot be read as a table: {printable(error, 200)}") from error


def read_columns(
    names: Iterable[str], maps: Iterable[str], settings: Iterable[str]
) -> tuple[list[Column], dict[str, str]]:
    """Say what each column is: `--map COLUMN=OURS`, `COLUMN=OURS:FACTOR`, else its own name; and what `--set` fixes.

    Raises ImportProblem with all mistakes, a line each.
    """
    names, wrong = list(names), []
    fixed: dict[str, str] = {}
    mapped: dict[str, Column] = {}
    for text in settings:
        target, _, value = text.partition("=")
        fixed[_ALIASES.get(target, target)] = value
        wrong += [f"--set {text}: {why}" for why in _unknown(target)] + (
            [] if value else [f"--set {text}: wanted NAME=VALUE"]
        )
    for text in maps:
        name, _, rest = text.rpartition("=")
        target, _, factor = rest.partition(":")
        if name not in names:
            wrong.append(f"--map {text}: no column {printable(name)!r}; {did_you_mean(name, names)}")
        wrong += [f"--map {text}: {why}" for why in _unknown(target)]
        scale = _number(factor or "1")
        if not isinstance(scale, float) or scale <= 0:
            wrong.append(f"--map {text}: a factor is a positive number, such as 0.001")
        else:
            mapped[name] = Column(name, _ALIASES.get(target, target), scale)
    own = [Column(name, _ALIASES.get(name, name)) for name in names if name not in mapped and not list(_unknown(name))]
    taken = {column.target for column in mapped.values()} | set(fixed)
    columns = [*mapped.values(), *(column for column in own if column.target not in taken)]
    targets = [column.target for column in columns] + list(fixed)
    wrong += [f"{target} is given twice" for target in sorted({t for t in targets if targets.count(t) > 1})]
    speeds = {*SPEEDS, *_RATES}
    if not speeds & set(targets) and not {"step_seconds_median", "global_batch_size"} <= set(targets):
        shown = ", ".join(printable(name) for name in names)
        wrong.append(
            f"no column is samples_per_second or tokens_per_second: give --map COLUMN=tokens_per_second; columns: {shown}"
        )
    if "devices" not in targets:
        wrong.append("no column is devices: give --map COLUMN=devices, or --set devices=8 for all rows")
    if wrong:
        raise ImportProblem("\n".join(wrong))
    return columns, fixed


def _unknown(target: str) -> Iterator[str]:
    if target not in TARGETS and not _OPTION.fullmatch(target):
        yield f"unknown name {printable(target)!r}: {did_you_mean(target, [*TARGETS, 'workload_args.NAME'])}"


def _number(text: Any) -> float | str:
    """Return a finite number, or why it is none."""
    shown = printable(text, 30)
    try:
        value = float(text) if "_" not in str(text) and not isinstance(text, bool) else math.nan
    except (TypeError, ValueError):
        return f"{shown!r} is no number"
    return value if math.isfinite(value) else f"{shown!r} is no number"


def _value(target: str, text: Any, factor: float = 1.0) -> Scalar:
    """Read a cell. Raises ValueError with the reason where it is of no use."""
    found = _number(text)
    counted = target in COUNTS
    if not counted and target not in TARGETS - {*WORDS, *_TEXTS} and target != LENGTH:
        if target == "started_at":
            moment = datetime.fromisoformat(str(text))
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        return found if isinstance(found, float) and "." in target and factor == 1 else printable(text, 200)
    if isinstance(found, str):
        raise ValueError(f"{target}: {found}")
    value = found * factor
    if (value < 0 and not _ANY_SIGN.search(target)) or (value == 0 and not _ZERO_TOO.search(target)):
        raise ValueError(f"{target}: {value:g} is not positive")
    if value > 1 and _RATIO.search(target):
        raise ValueError(f"{target}: {value:g} is above 1, a ratio is from 0 to 1: for percent give the factor :0.01")
    if counted or target == LENGTH:
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
        if speed not in row and f"{speed}_per_device" in row:
            row[speed] = row[f"{speed}_per_device"] * devices
    if not set(SPEEDS) & row.keys() and {"global_batch_size", "step_seconds_median"} <= row.keys():
        row["samples_per_second"] = row["global_batch_size"] / row["step_seconds_median"]
    if not set(SPEEDS) & row.keys():
        raise ValueError("no speed: samples_per_second and tokens_per_second are empty")
    if length and "samples_per_second" not in row:
        row["samples_per_second"] = row["tokens_per_second"] / length
    elif length and "tokens_per_second" not in row:
        row["tokens_per_second"] = row["samples_per_second"] * length
    if length and "parameters" in row and "flops_per_sample" not in row:
        row["flops_per_sample"] = 6.0 * row["parameters"] * length
    for speed in SPEEDS:
        if speed in row:
            row[f"{speed}_per_device"] = row[speed] / devices
            unit = speed.split("_")[0].removesuffix("s")
            if "power_watts" in row:
                row.setdefault(f"joules_per_{unit}", row["power_watts"] / row[speed])
    if "flops_per_sample" in row and "samples_per_second" in row:
        row["flops_per_second_per_device"] = row["flops_per_sample"] * row["samples_per_second"] / devices
    for names, provenance in (
        (("joules", "watts"), "energy_provenance"),
        (("emissions",), "emissions_basis"),
        (("cost",), "cost_basis"),
    ):
        if any(name in key for key in row for name in names):
            row[provenance] = str(Provenance.IMPORTED)
    return row


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def imported(
    path: Path, maps: Iterable[str], settings: Iterable[str], suite: str, now: datetime | None = None
) -> Imported:
    """Read a table of results as runs of a suite; rows of one configuration are its repeats.

    A run began when it was imported, unless the file has a column `started_at`. The name of the execution follows from the
    rows, so that the same file gives the same execution. Raises ImportProblem; rows that are of no use do not.
    """
    names, lines = read_table(path)
    columns, fixed = read_columns(names, maps, settings)
    mapped = {column.name for column in columns}
    out = Imported(suite, columns=columns, ignored=[name for name in names if name not in mapped])
    seen: dict[str, int] = {}
    groups: dict[str, list[tuple[dict[str, Scalar], Mapping[str, Any]]]] = defaultdict(list)
    for line, cells in lines:
        try:
            constants = {target: _value(target, text) for target, text in fixed.items()}
            given = [
                (c, cells.get(c.name))
                for c in columns
                if str(cells.get(c.name) or "").strip() or cells.get(c.name) == 0
            ]
            known = constants | {c.target: _value(c.target, text, c.factor) for c, text in given}
            row = _derived(known)
            asked = {
                k: v
                for k, v in known.items()
                if k not in _FIGURES and k not in ("repeat", "seed", "started_at", "region")
            }
            config = _hash([suite, asked])[:10]
            key = _hash([config, known["repeat"]] if "repeat" in known else known)
            if key in seen:
                raise ValueError(f"the same run as line {seen[key]}")
        except ValueError as error:
            out.refused.append((line, printable(error, 200)))
            continue
        seen[key] = line
        row |= {"config_id": config, "repeat": known.get("repeat", len(groups[config]))}
        row["run_id"] = f"imported-{config}-r{row['repeat']}"
        row["label"] = printable(" ".join(f"{k.split('.')[-1]}={v}" for k, v in asked.items()), 200)
        groups[config].append((row, cells))
        out.rows.append(row)
    _identify(out, now or datetime.now(UTC))
    _remark(out, groups.values())
    return out


def _identify(out: Imported, now: datetime) -> None:
    """Give the rows what all runs have; they keep their order, a microsecond apart."""
    out.execution = f"imported-{_hash(out.rows)[:8]}"
    own: dict[str, Scalar] = {"suite": out.suite, "execution": out.execution, "environment": "imported"}
    own |= {"status": "ok", "flags": "imported"}
    for index, row in enumerate(out.rows):
        began = (now + timedelta(microseconds=index)).isoformat()
        default: dict[str, Scalar] = {"workload": "imported", "device_name": "unknown", "started_at": began}
        out.rows[index] = default | row | own


def _remark(out: Imported, groups: Iterable[list[tuple[dict[str, Scalar], Mapping[str, Any]]]]) -> None:
    """Say what was added, and which columns differ between rows that are taken for repeats."""
    given = {column.target for column in out.columns}
    if any("flops_per_sample" in row for row in out.rows) and "flops_per_sample" not in given:
        out.notes.append(
            "flops_per_sample = 6 × parameters × sequence length: attention is left out, which counts in long sequences"
        )
    pooled = [group for group in groups if len(group) > 1]
    if pooled and "repeat" not in given:
        apart = [n for n in out.ignored if any(len({str(cells.get(n)) for _, cells in group}) > 1 for group in pooled)]
        between = (
            f"; these columns differ between them and are not mapped: {', '.join(map(printable, apart))}"
            if apart
            else ""
        )
        out.notes.append(f"{len(pooled)} configurations have several rows, which count as repeats{between}")
