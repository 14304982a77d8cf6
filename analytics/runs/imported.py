"""Someone else's table of results -> rows of runs, of provenance `imported`. What cannot be used is told line by line.

A row is what `metrics.row` would make of a run. Nothing is guessed: a column counts by its name or by what the user
says it is. Only what follows is added: rates from each other, and the work from parameters and sequence, as plans count it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.runs.frame import COUNTS, NUMBERS, WORDS
from analytics.text import printable
from analytics.work import Work, language_model
from bench.errors import UserError
from bench.files import write_text
from bench.folder import IMPORTED
from bench.record import Provenance
from bench.registry import did_you_mean
from bench.registry import names as registered
from bench.schema import AXES, Scalar
from bench.store.sync import sync
from bench.store.tracker import StoreError

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
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_MOST = 1e33
"""Figures above it, or below its inverse, cannot be meant, and what is made of them has no floating-point number."""
_YEARS = range(1970, 2101)
_FEW = 15
_USUAL = (
    "devices",
    *SPEEDS,
    "step_seconds",
    "parameters",
    "sequence_length",
    "flops_per_sample",
    "precision",
    "parallelism",
)


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


Cells = dict[str, Any] | ValueError
"""The cells of a line by column, or why it has none."""


def read_table(path: Path) -> tuple[list[str], list[tuple[int, Cells]], bool]:
    """Return the names of the columns, and each row with its line: of CSV (also ; or tab), JSON lines (.jsonl) or Parquet.

    Last, whether commas group thousands: not where ; stands between cells, as there they may be those of fractions. Raises
    UserError for a file that is none of them.
    """
    try:
        if path.suffix == ".parquet":
            found = pd.read_parquet(path)
            cells = [{str(k): v for k, v in row.items() if pd.notna(v)} for row in found.to_dict("records")]
            return [str(name) for name in found.columns], list(enumerate(cells, 1)), True
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                objects = [(n, _object(line)) for n, line in enumerate(file, 1) if line.strip()]
                if not (keys := dict.fromkeys(name for _, row in objects if isinstance(row, dict) for name in row)):
                    raise ValueError("no line is a JSON object")
                return list(keys), objects, True
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            return list(reader.fieldnames or []), [(reader.line_num, row) for row in reader], delimiter != ";"
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {printable(error, 200)}") from error


def _object(line: str) -> Cells:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        return ValueError(f"no JSON object: {error}")


def read_columns(
    names: list[str], maps: Iterable[str], settings: Iterable[str]
) -> tuple[list[Column], dict[str, Scalar]]:
    """Say what each column is: `COLUMN=OURS` or `COLUMN=OURS:FACTOR`, else its own name; and what `OURS=VALUE` fixes.

    Raises UserError with all mistakes, a line each.
    """
    wrong: list[str] = []
    fixed: dict[str, Scalar] = {}
    columns: list[Column] = []
    for text in settings:
        target, _, value = text.partition("=")
        try:
            if not value:
                raise ValueError("wanted NAME=VALUE")
            if _known(target) in fixed:
                raise ValueError(f"{_known(target)} is given twice")
            fixed[_known(target)] = _value(_known(target), value)
        except ValueError as error:
            wrong.append(f"--set {text}: {error}")
    for text in maps:
        name, _, rest = text.rpartition("=")
        target, _, factor = rest.partition(":")
        try:
            if name not in names:
                raise ValueError(f"no column {printable(name)!r}; {_near(name, names)}")
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
            told = ", ".join(map(printable, names[:_FEW])) + (" ..." if len(names) > _FEW else "")
            wrong.append(
                f"no column is {' or '.join(wanted[:2])}: give --map COLUMN={wanted[0]}, or --set; columns: {told}"
            )
    if wrong:
        raise UserError(*wrong)
    return columns, fixed


def _known(target: str) -> str:
    if target not in TARGETS and not _OPTION.fullmatch(target):
        raise ValueError(f"unknown name {printable(target)!r}: {_near(target, [*TARGETS], _USUAL)}")
    return _ALIASES.get(target, target)


def _near(given: str, allowed: Sequence[str], usual: Sequence[str] = ()) -> str:
    """What may be meant; where nothing is near, what is usual."""
    return did_you_mean(given, allowed if get_close_matches(given, allowed) else usual or allowed[:_FEW])


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment.year in _YEARS and moment.timestamp() >= 0:
            return moment.isoformat()
    except ValueError:
        pass
    raise ValueError(f"started_at: {printable(text, 40)!r} is no time from 1970 to 2100, such as 2026-01-31T13:00Z")


def _value(target: str, text: Any, factor: float = 1.0, *, thousands: bool = True) -> Scalar:
    """Read a cell. Raises ValueError with the reason where it is of no use."""
    if target == "started_at":
        return _moment(str(text))
    plain = str(text).strip()
    grouped = thousands and _THOUSANDS.fullmatch(plain) is not None
    try:
        value = float(plain.replace(",", "") if grouped else text) * factor if "_" not in plain else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if target not in _NUMBERS and target != "factor":
        word = printable(text, 200)
        return (
            value if _meant(value) and "." in target else _PRECISIONS.get(word, word) if target == "precision" else word
        )
    if not math.isfinite(value):
        hint = "; commas may group three digits each (3,600), fractions take a point" if "," in plain else ""
        raise ValueError(f"{target}: {printable(text, 30)!r} is no number{hint}")
    if (value < 0 and not _ANY_SIGN.search(target)) or (value == 0 and not _ZERO_TOO.search(target)):
        raise ValueError(f"{target}: {value:g} is not positive")
    if value > 1 and _RATIO.search(target):
        raise ValueError(f"{target}: {value:g} is above 1, a ratio is from 0 to 1: for percent give the factor :0.01")
    if not _meant(value):
        raise ValueError(f"{target}: {value:g} cannot be meant")
    if target in (*COUNTS, LENGTH):
        if not value.is_integer():
            raise ValueError(f"{target}: {value:g} is no whole number")
        if value > 2**53:
            raise ValueError(f"{target}: {value:g} cannot be meant")
        return int(value)
    return value


def _meant(value: float) -> bool:
    return value == 0 or 1 / _MOST <= abs(value) <= _MOST


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
        row.setdefault("flops_per_sample", _work(row).per_sample)
    row |= {f"{speed}_per_device": row[speed] / devices for speed in SPEEDS if speed in row}
    if {"flops_per_sample", "samples_per_second"} <= row.keys():
        row["flops_per_second_per_device"] = row["flops_per_sample"] * row["samples_per_second"] / devices
    for part, label in (("joules", "energy_provenance"), ("emissions", "emissions_basis"), ("cost", "cost_basis")):
        if any(part in key for key in row):
            row[label] = str(Provenance.IMPORTED)
    beyond = [name for name, value in row.items() if isinstance(value, float) and not _meant(value)]
    if beyond:
        raise ValueError(f"{beyond[0]} follows as {row[beyond[0]]:g}, which cannot be meant")
    return row


def _work(row: Mapping[str, Any]) -> Work:
    """The work of a sample by parameters and sequence; by layers and hidden size too, where both are known as numbers."""
    shape = [row.get(f"workload_args.{name}") for name in ("layers", "hidden")]
    layers, hidden = shape if all(isinstance(v, float) and v > 0 for v in shape) else (None, None)
    return language_model(row["parameters"], row[LENGTH], sequence=row[LENGTH], layers=layers, hidden=hidden)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def imported(
    path: Path, maps: Iterable[str], settings: Sequence[str], suite: str, now: datetime | None = None
) -> Imported:
    """Read a table of results as runs of a suite; rows of one configuration are its repeats.

    A run began when it was imported, unless the file has a column `started_at`. The name of the execution follows from the
    rows, so that the same file gives the same execution. Raises UserError; rows that are of no use do not.
    """
    names, lines, thousands = read_table(path)
    columns, fixed = read_columns(names, maps, settings)
    out = Imported(suite, columns, [name for name in names if name not in {column.name for column in columns}])
    seen: dict[str, int] = {}
    said = {("precision", text.partition("=")[2]) for text in settings if text.startswith("precision=")}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line, cells in lines:
        try:
            if isinstance(cells, ValueError):
                raise cells
            filled = [(c, text) for c in columns if (text := cells.get(c.name)) is not None and str(text).strip()]
            known = fixed | {c.target: _value(c.target, text, c.factor, thousands=thousands) for c, text in filled}
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
        said |= {(c.target, str(text).strip()) for c, text in filled if c.target == "precision" or "," in str(text)}
        repeat = known.get("repeat", len(groups[config]))
        label = printable(" ".join(f"{key.split('.')[-1]}={value}" for key, value in asked.items()), 200)
        row |= {"config_id": config, "repeat": repeat, "run_id": f"imported-{config}-r{repeat}", "label": label}
        groups[config].append(cells)
        out.rows.append(row)
    _identify(out, now or datetime.now(UTC))
    _remark(out, said, [group for group in groups.values() if len(group) > 1])
    return out


def _identify(out: Imported, now: datetime) -> None:
    """Give the rows what all runs have; they keep their order, a microsecond apart."""
    out.execution = f"imported-{_hash(out.rows)}"
    own: dict[str, Scalar] = {"suite": out.suite, "execution": out.execution, "environment": "imported"}
    own |= {"status": "ok", "flags": "imported"}
    for index, row in enumerate(out.rows):
        began = (now + timedelta(microseconds=index)).isoformat()
        out.rows[index] = {"workload": "imported", "device_name": "unknown", "started_at": began, **row, **own}


def _remark(out: Imported, said: set[tuple[str, str]], pooled: list[list[Mapping[str, Any]]]) -> None:
    """Say what was added, how cells (`said`, by target) were read, and what differs between rows taken for repeats."""
    given = {column.target for column in out.columns}
    added = [row for row in out.rows if "flops_per_sample" in row]
    if added and "flops_per_sample" not in given:
        work = _work(added[0])
        says = "; assumed: ".join(filter(None, (work.says[1], ", ".join(work.assumed))))
        out.notes.append(
            f"flops_per_sample = (6 × parameters + attention) × sequence length, as bench plan counts; first run: {says}"
        )
    if any(target in _NUMBERS for target, _ in said):
        out.notes.append("commas in numbers group thousands: 3,600 is 3600")
    words = {word for target, word in said if target == "precision"}
    out.notes += [f"precision {word} is called {_PRECISIONS[word]} here" for word in sorted(words & _PRECISIONS.keys())]
    strange = sorted(words - _PRECISIONS.keys() - (ours := registered("precision")).keys())
    if strange:
        told = f"{', '.join(printable(word) for word in strange[:_FEW])}{' ...' if strange[_FEW:] else ''}"
        out.notes.append(
            f"no precisions of ours: {told}; they are kept as they are. If they are one of {', '.join(ours)}, say so: "
            "--set precision=NAME instead of the column"
        )
    if pooled and "repeat" not in given:
        apart = [n for n in out.ignored if any(len({str(cells.get(n)) for cells in group}) > 1 for group in pooled)]
        told = f"; not mapped, though they differ: {', '.join(map(printable, apart))}" if apart else ""
        out.notes.append(
            f"several rows of one configuration count as its repeats ({len(pooled)} such configurations){told}"
        )


def suite_of(path: Path, name: str | None) -> str:
    """Return the name of the suite of a table: as given, or that of the file. Raises UserError for a bad name."""
    suite = name if name is not None else re.sub(r"[^a-z0-9_]+", "-", path.stem.lower()).strip("-_")[:64]
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", suite):
        raise UserError(f"--suite {suite}: only lower-case letters, digits, - and _ are allowed, at most 64")
    return suite


def keep(table: Imported, runs: Path, store: str | None) -> int:
    """Write the rows to a folder of their own, unless it exists, and log them; return how many were new in the store.

    Raises StoreError where the store fails; the rows are kept even then.
    """
    folder = runs / table.suite / table.execution
    if not (folder / IMPORTED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / IMPORTED, "".join(json.dumps(row, allow_nan=False) + "\n" for row in table.rows))
    try:
        return sync(runs, store, folder)[0]
    except StoreError as error:
        raise StoreError(*error.messages, "the rows are kept: bench sync logs them later", code=error.code) from error
