"""Someone else's table of results -> rows of runs, of provenance `imported`. What cannot be used is told line by line.

A row is what `metrics.row` would make of a run. Nothing is guessed: a column counts by its name or by what the user
says it is. Only what follows is added: rates from each other, and the work from parameters and sequence, as plans count it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from analytics.runs.frame import COUNTS, NUMBERS, WORDS
from analytics.text import counted, number, printable
from analytics.work import Work, language_model
from bench.errors import UserError
from bench.files import write_text
from bench.folder import IMPORTED
from bench.record import Provenance
from bench.registry import did_you_mean
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
_GROUPED, _POINT = re.compile(r"[1-9]\d{0,2}(\.\d{3})+"), re.compile(r"[+-]?\d*\.\d+")
"""Digits that may be in groups, and a number with a point."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_MOST = 1e33
_ROUNDED = 0.02
"""Figures above it, or below its inverse, cannot be meant, and what is made of them has no floating-point number."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2101, 1, 1, tzinfo=UTC)
_FEW = 15
_USUAL = ("devices", *SPEEDS, "step_seconds", "parameters", "sequence_length", "precision", "parallelism")


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

    Raises UserError for a file that is none of them.
    """
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            return [str(name) for name in table.columns], [
                (line, {str(k): v for k, v in row.items() if pd.notna(v)})
                for line, row in enumerate(table.to_dict("records"), 1)
            ]
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                rows = [(line, _object(text)) for line, text in enumerate(file, 1) if text.strip()]
                if not (names := dict.fromkeys(name for _, row in rows for name in row)):
                    raise ValueError("no line is a JSON object")
                return list(names), rows
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            cells = [(reader.line_num, row) for row in reader]
            return list(reader.fieldnames or []), _unambiguous(cells) if delimiter == ";" else cells
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        why = printable(getattr(error, "strerror", None) or error, 200)
        raise UserError(f"{path} cannot be read as a table: {why}") from error


def _unambiguous(rows: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """Return rows as they are. Raises ValueError where `11.216` may be eleven or eleven thousand.

    Tables with `;` between the cells come from places where a point often groups digits. A cell such as `0.5` or `3.25` shows
    that here it does not.
    """
    for name in dict.fromkeys(name for _, row in rows for name in row):
        cells = [(line, str(row.get(name)).strip()) for line, row in rows]
        grouped = next(((line, cell) for line, cell in cells if _GROUPED.fullmatch(cell)), None)
        fractions = (cell for _, cell in cells if _POINT.fullmatch(cell) and not _GROUPED.fullmatch(cell))
        if grouped is None or next(fractions, None) is not None:
            continue
        line, cell = grouped
        raise ValueError(
            f"line {line}: {cell!r} may be a fraction or have its digits in groups; write {cell}0 or {cell.replace('.', '')}"
        )
    return [*rows]


def _object(line: str) -> dict[str, Any]:
    """Return the object of a JSON line; what is none is an empty one."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return {}


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
        name, _, value = text.partition("=")
        try:
            target = _known(name)
            if not value or target in fixed:
                raise ValueError(f"{target} is given twice" if value else "give NAME=VALUE")
            fixed[target] = _value(target, value)
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
    taken, mapped = {*(column.target for column in columns), *fixed}, {column.name for column in columns}
    own = [Column(name, _known(name)) for name in names if name not in mapped and _is_known(name)]
    columns += [column for column in own if column.target not in taken]
    targets = [*(column.target for column in columns), *fixed]
    wrong += [f"{target} is given twice" for target in sorted({t for t in targets if targets.count(t) > 1})]
    for wanted in (("tokens_per_second", "samples_per_second", *_RATES), ("devices",)):
        if not wrong and not set(wanted) & set(targets):
            listed = ", ".join(map(printable, names[:_FEW])) + " ..." * (len(names) > _FEW)
            either = " or ".join(wanted[:2])
            wrong.append(f"no column is {either}: give --map COLUMN={wanted[0]}, or --set; columns: {listed}")
    if wrong:
        raise UserError(*wrong)
    return columns, fixed


def _is_known(target: str) -> bool:
    return target in TARGETS or _OPTION.fullmatch(target) is not None


def _known(target: str) -> str:
    if not _is_known(target):
        raise ValueError(f"unknown name {printable(target)!r}: {_near(target, [*TARGETS], _USUAL)}")
    return _ALIASES.get(target, target)


def _near(given: str, allowed: Sequence[str], usual: Sequence[str] = ()) -> str:
    """What may be meant; where nothing is near, what is usual."""
    return did_you_mean(given, allowed if get_close_matches(given, allowed) else usual or allowed[:_FEW])


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError("it is not between 1970 and 2100")
    return moment.isoformat()


def _figure(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ValueError("not a number; fractions take a point, and nothing groups digits (3600.5)")
    return float(value)


_MACHINES = ("devices", "num_nodes", "devices_per_node")
"""Counts of hardware, of which nobody has more than a million."""


@cache
def _check(target: str) -> TypeAdapter[Any]:
    """What the cells of a column may be: a time, a number within bounds, or text."""
    if target == "started_at":
        return TypeAdapter(Annotated[str, BeforeValidator(str), AfterValidator(_moment)])
    if target not in _NUMBERS and target != "factor":
        return TypeAdapter(Annotated[str, BeforeValidator(lambda value: printable(value, 200))])
    whole = target in (*COUNTS, LENGTH)
    most = 10**6 if target in _MACHINES else 2**53 if whole else _MOST
    bounds: dict[str, Any] = {"le": 1 if re.search("share|accuracy|utilization", target) else most}
    if re.search("accuracy|share|warmup|repeat|seed|ladder|reached", target):
        bounds["ge"] = 0
    elif not re.search("loss|error", target):
        bounds["gt"] = 0
    kind: Any = Annotated[int, Field(**bounds)] if whole else Annotated[float, Field(allow_inf_nan=False, **bounds)]
    return TypeAdapter(kind)


def _value(target: str, cell: Any, factor: float = 1.0) -> Scalar:
    """Read a cell. Raises ValueError with the reason where it is of no use."""
    value: Scalar
    try:
        if target in _NUMBERS or target == "factor":
            value = _check(target).validate_python(_figure(cell) * factor)
        elif "." in target and _NUMBER.fullmatch(str(cell).strip()):
            value = float(cell) * factor
        elif factor != 1:
            raise ValueError("a factor needs a number")
        else:
            word: str = _check(target).validate_python(cell)
            value = _PRECISIONS.get(word, word) if target == "precision" else word
    except (ValidationError, ValueError, TypeError, OverflowError) as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        percent = ": for percent give the factor :0.01" if str(reason).endswith("equal to 1") else ""
        raise ValueError(f"{target} {printable(cell, 30)!r}: {reason}{percent}") from error
    return value


def _agree(row: dict[str, Any], name: str, value: float) -> None:
    """Set a figure that follows from others; raise ValueError where another one was given, by more than its rounding."""
    given = row.setdefault(name, value)
    if abs(given / value - 1) > _ROUNDED:
        raise ValueError(f"{name} {number(given)} and the {number(value)} of the other columns disagree")


def _derived(known: dict[str, Any]) -> dict[str, Scalar]:
    """Add what follows. Raises ValueError where there is no speed or no number of devices, or a figure is out of range."""
    row = dict(known)
    if "devices" not in row:
        raise ValueError("no number of devices")
    devices, length = row["devices"], row.get(LENGTH)
    for speed in SPEEDS:
        if f"{speed}_per_device" in row:
            _agree(row, speed, row[f"{speed}_per_device"] * devices)
    if not set(SPEEDS) & row.keys():
        raise ValueError("no speed: samples_per_second and tokens_per_second are empty")
    if length and "tokens_per_second" in row:
        _agree(row, "samples_per_second", row["tokens_per_second"] / length)
    elif length:
        row["tokens_per_second"] = row["samples_per_second"] * length
    if length and "parameters" in row:
        row.setdefault("flops_per_sample", _work(row).per_sample)
    row |= {f"{speed}_per_device": row[speed] / devices for speed in SPEEDS if speed in row}
    if {"flops_per_sample", "samples_per_second"} <= row.keys():
        row["flops_per_second_per_device"] = row["flops_per_sample"] * row["samples_per_second"] / devices
    for part, label in (("joules", "energy_provenance"), ("emissions", "emissions_basis"), ("cost", "cost_basis")):
        if any(part in key for key in row):
            row[label] = str(Provenance.IMPORTED)
    figures = {name: abs(value) for name, value in row.items() if isinstance(value, float) and value}
    for name, value in figures.items():
        if not 1 / _MOST <= value <= _MOST:
            raise ValueError(f"{name} would be {number(value)}, which cannot be meant")
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
    names, lines = read_table(path)
    columns, fixed = read_columns(names, maps, settings)
    out = Imported(suite, columns, [name for name in names if name not in {column.name for column in columns}])
    seen: dict[str, int] = {}
    precisions = {text.partition("=")[2] for text in settings if text.startswith("precision=")}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line, cells in lines:
        try:
            if not cells:
                raise ValueError("no JSON object")
            if None in cells:
                raise ValueError("it has more cells than there are columns")
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
        precisions |= {str(text).strip() for c, text in filled if c.target == "precision"}
        repeat = known.get("repeat", len(groups[config]))
        label = printable(" ".join(f"{key.split('.')[-1]}={value}" for key, value in asked.items()), 200)
        row |= {"config_id": config, "repeat": repeat, "run_id": f"imported-{config}-r{repeat}", "label": label}
        groups[config].append(cells)
        out.rows.append(row)
    _identify(out, now or datetime.now(UTC))
    _remark(out, precisions, [group for group in groups.values() if len(group) > 1])
    return out


def _identify(out: Imported, now: datetime) -> None:
    """Give the rows what all runs have; they keep their order, a microsecond apart."""
    out.execution = f"imported-{_hash(out.rows)}"
    own: dict[str, Scalar] = {"suite": out.suite, "execution": out.execution, "environment": "imported"}
    own |= {"status": "ok", "flags": "imported"}
    for index, row in enumerate(out.rows):
        began = (now + timedelta(microseconds=index)).isoformat()
        out.rows[index] = {"workload": "imported", "device_name": "unknown", "started_at": began, **row, **own}


def _remark(out: Imported, precisions: set[str], pooled: list[list[Mapping[str, Any]]]) -> None:
    """Say what was added, which precisions are called otherwise here, and what differs between rows taken for repeats."""
    given = {column.target for column in out.columns}
    added = [row for row in out.rows if "flops_per_sample" in row]
    if added and "flops_per_sample" not in given:
        work = _work(added[0])
        says = "; assumed: ".join(filter(None, (work.says[1], ", ".join(work.assumed))))
        out.notes.append(f"Work per sample is (6 × parameters + attention) × sequence length; first run: {says}")
    out.notes += [
        f"Precision {name} is called {_PRECISIONS[name]} here" for name in sorted(precisions & _PRECISIONS.keys())
    ]
    if pooled and "repeat" not in given:
        apart = [n for n in out.ignored if any(len({str(cells.get(n)) for cells in group}) > 1 for group in pooled)]
        differ = f"; not mapped, though they differ: {', '.join(map(printable, apart))}" if apart else ""
        out.notes.append(
            f"Rows of one configuration count as its repeats: {counted(len(pooled), 'configuration')}{differ}"
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
