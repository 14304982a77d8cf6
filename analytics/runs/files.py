"""Rows of runs in files: saved baselines, and tables that others hand in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analytics.runs.frame import COUNTS
from bench.errors import UserError
from bench.figures.metrics import TEXT_COLUMNS
from bench.files import write_text
from bench.record import Status
from bench.registry import did_you_mean
from bench.renamed import current_row
from bench.schema import Scalar

SUPPORTED = (
    "supported are CSV, Parquet and JSON with the columns of `bench fit --json`, one row a run and config_id in each: "
    "the output of `bench fit --json`, a baseline of `bench baseline save`, a table of imported runs"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_rows(path: Path) -> list[dict[str, Scalar]]:
    """Return the rows of a file, at least one; what is absent has no key. Without a column `status` all ended well.

    Raises UserError where the file cannot be read, is of another kind, or has no `config_id`.
    """
    read = _READERS.get(path.suffix)
    if read is None or (path.exists() and not path.is_file()):  # a pipe would be waited for
        raise UserError(f"{path}: a file of another kind; {SUPPORTED}")
    try:
        found = read(path)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"{path} cannot be read: {why or str(error).partition(chr(10))[0][:200]}; {SUPPORTED}"
        ) from error
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path} holds no rows of runs; {SUPPORTED}")
    rows = [current_row(_plain(row)) for row in found]
    without = sum("config_id" not in row for row in rows)
    if without:
        raise UserError(f"{path}: {without} of {len(rows)} rows have no config_id; {SUPPORTED}")
    strange = {str(row["status"]) for row in rows if "status" in row} - set(Status)
    if strange:
        raise UserError(f"{path}: unknown status {min(strange)!r}; allowed: {', '.join(Status)}")
    for name in COUNTS:
        broken = [value for row in rows if not _countable(value := row.get(name))]
        if broken:
            raise UserError(f"{path}: {name} is a whole number, not {broken[0]!r}")
    told = any("status" in row for row in rows)
    return rows if told else [{**row, "status": "ok"} for row in rows]


def _json_rows(path: Path) -> Any:
    document = json.loads(path.read_text(encoding="utf-8"))
    return document.get("runs") if isinstance(document, dict) else document


_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), low_memory=False).to_dict("records"),
    ".parquet": lambda path: pd.read_parquet(path).to_dict("records"),
    ".json": _json_rows,
}


def _number(value: object) -> float | None:
    """The number that a cell is or spells, infinite beyond what a float holds; None for other text and what is absent."""
    try:
        return float(value) if isinstance(value, (str, int, float)) else None
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def _countable(value: Scalar | None) -> bool:
    """Whether a count is one; text such as `max` counts as absent."""
    number = _number(value)
    return number is None or (number.is_integer() and abs(number) < 2**53)


def _plain(row: Mapping[Any, Any]) -> dict[str, Scalar]:
    """What a row knows: text that can be written and finite numbers, however they are spelt."""
    known: dict[str, Scalar] = {}
    for key, cell in row.items():
        name, value = _writable(str(key)), cell.item() if isinstance(cell, np.generic) else cell
        if isinstance(value, datetime) and pd.notna(value):
            value = value.isoformat()
        text = isinstance(value, str) and name in TEXT_COLUMNS
        if text or (isinstance(value, (str, int, float)) and math.isfinite(_number(value) or 0.0)):
            known[name] = _writable(value) if isinstance(value, str) else value
    return known


def _writable(text: str) -> str:
    """Put ? for halves of characters (lone surrogates), which JSON may spell and nothing can write."""
    return text.encode("utf-8", "replace").decode("utf-8")


def baseline_path(folder: Path, name: str) -> Path:
    """Return the file of a baseline. Raises UserError for a name that is not one of a file in the folder."""
    if not _NAME.fullmatch(name):
        raise UserError(f"a baseline cannot be called {name!r}: letters, digits and . _ - are allowed, 64 at most")
    return folder / f"{name}.json"


def save_baseline(folder: Path, name: str, rows: Iterable[Mapping[Any, Any]], *, force: bool) -> Path:
    """Write rows as a baseline, one line a run, in an order and form that do not change, and return the file.

    Raises UserError for a bad name, and for one that is taken unless `force`.
    """
    path = baseline_path(folder, name)
    if path.exists() and not force:
        raise UserError(f"{path} is there already; replace it with --force")
    kept = [_plain(row) for row in rows]
    by = ("suite", "execution", "config_id", "repeat", "started_at")
    kept.sort(key=lambda row: [(name not in row, str(row.get(name, "")).zfill(9)) for name in by])
    lines = ",\n".join(json.dumps(row, sort_keys=True, allow_nan=False, ensure_ascii=False) for row in kept)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, f'{{"wattbench_baseline": 1, "runs": [\n{lines}\n]}}\n')
    return path


def remove_baseline(folder: Path, name: str) -> Path:
    """Remove a baseline and return its file. Raises UserError where there is none of that name."""
    path, names = baseline_path(folder, name), baselines(folder)
    if name not in names:
        raise UserError(f"no baseline {name!r} in {folder}: {did_you_mean(name, names) if names else 'there are none'}")
    path.unlink()
    return path


def baselines(folder: Path) -> list[str]:
    """Name the baselines of a folder, in alphabetical order; what else is there does not count."""
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem) and _is_baseline(path))


def _is_baseline(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).startswith(b'{"wattbench_baseline":')
