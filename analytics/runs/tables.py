"""A file with a table -> its columns and rows as text: CSV of any kind, Markdown, JSON, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.amounts import written
from analytics.text import counted, printable
from bench.errors import UserError

FileRow = tuple[int, dict[Any, Any]]
"""The line in the file and the cells by column; None holds those beyond the last column."""
_DELIMITERS = ",;\t|"
_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
_EMPHASIS = re.compile(r"(\*\*|__|[*_`])(?=\S)(.+?)(?<=\S)\1")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|</?[a-z][^>]*>", re.IGNORECASE)
_NESTED = 4
REPEATED = "\0repeated"
"""Name of a cell that no file has: a key that stands twice in a JSON object."""


@dataclass
class FileTable:
    """A table as it stands in a file; `delimiter` is what separates its cells, | in Markdown and "" where they have types."""

    names: list[str]
    rows: list[FileRow]
    delimiter: str = ""
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> FileTable:
    """Return the table of a file, whatever its encoding, with lines before its header left out.

    Raises UserError for a file without a table, and where two columns have one name.
    """
    try:
        table = _parquet(path) if path.suffix == ".parquet" else _of_text(_text(path.read_bytes()), path.suffix)
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        why = printable(getattr(error, "strerror", None) or error, 200)
        raise UserError(f"{path} cannot be read as a table: {why}") from error
    for name in table.names:
        if (its := f"{name}_unit") in table.names:  # throughput 54100, throughput_unit tokens/s
            for _, cells in table.rows:
                if cells.get(name) and cells.get(its):
                    cells[name] = f"{cells[name]} {cells[its]}"
    return table


def _text(content: bytes) -> str:
    """Decode UTF-8, UTF-16 or, where it is neither, Windows-1252."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if b"\0" in content[:400]:
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _of_text(text: str, suffix: str) -> FileTable:
    lines = text.splitlines()
    if suffix in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] in ("[", "{"):
        return _json(text, lines=suffix in (".jsonl", ".ndjson"))
    rules = [i for i, line in enumerate(lines) if i and _RULE.fullmatch(line) and "|" in line and "|" in lines[i - 1]]
    return _markdown(lines, rules) if rules else _delimited(text)


def _parquet(path: Path) -> FileTable:
    frame = pd.read_parquet(path)
    rows: list[FileRow] = [
        (line, {str(k): v for k, v in row.items() if pd.api.types.is_scalar(v) and pd.notna(v)})
        for line, row in enumerate(frame.to_dict("records"), 1)
    ]
    return FileTable([str(name) for name in frame.columns], rows)


def _json(text: str, *, lines: bool) -> FileTable:
    """Read an array of objects, an object, or a line each; the line of an array's element is its place, from 1 on."""
    objects: list[tuple[int, Any]]
    try:
        document = None if lines else json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        lines = True
        document = None
    if lines:
        objects = [(line, _object(part)) for line, part in enumerate(text.splitlines(), 1) if part.strip()]
    elif isinstance(document, dict) and isinstance(document.get("columns"), list):
        cells = [dict(zip(document["columns"], row, strict=False)) for row in document.get("data", [])]
        objects = list(enumerate(cells, 1))
    else:
        objects = list(enumerate(document if isinstance(document, list) else [document], 1))
    rows: list[FileRow] = [(line, dict(_flat(each))) for line, each in objects]
    if not (names := dict.fromkeys(name for _, row in rows for name in row if name != REPEATED)):
        raise ValueError("no line is a JSON object")
    return FileTable(list(names), rows)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a key that stands twice is kept as REPEATED."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    return dict(pairs) | ({REPEATED: twice[0]} if twice else {})


def _object(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _flat(value: Any, before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the cells of an object, those of objects in it with dotted names; lists and null are none."""
    for name, cell in value.items() if isinstance(value, dict) else ():
        if isinstance(cell, dict) and depth < _NESTED:
            yield from _flat(cell, f"{before}{name}.", depth + 1)
        elif isinstance(cell, str | int | float) and not (isinstance(cell, float) and math.isnan(cell)):
            yield (REPEATED if name == REPEATED else f"{before}{str(name).strip()}"), cell


def _markdown(lines: Sequence[str], rules: Sequence[int]) -> FileTable:
    """Read the first table of a Markdown file."""
    start = rules[0]
    table: list[tuple[int, list[str]]] = [(start, _pipes(lines[start - 1]))]
    for number, line in enumerate(lines[start + 1 :], start + 2):
        if "|" not in line:
            break
        table.append((number, _pipes(line)))
    found = _rows(table, "|")
    if len(rules) > 1:
        found.notes.append(f"The file has {len(rules)} tables; the first one was read")
    return found


def _pipes(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", re.sub(r"^\s*\||(?<!\\)\|\s*$", "", line))
    return [_plain(cell.replace("\\|", "|")) for cell in cells]


def _plain(cell: str) -> str:
    """Take the marks of Markdown and HTML out of a cell."""
    return _EMPHASIS.sub(r"\2", _LINK.sub(r"\1", cell).strip()).strip()


def _delimited(text: str) -> FileTable:
    """Read cells between commas, semicolons, tabs or bars: what makes most rows of one width, of two cells or more."""
    text = re.sub(r"\Asep=([,;\t|])\r?\n", "\n", text)
    best: tuple[int, int, str, list[tuple[int, list[str]]]] = (0, 0, ",", [])
    problem: csv.Error | None = None
    for delimiter in _DELIMITERS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        except csv.Error as error:
            problem = problem or error
            continue
        rows = [(line, cells) for line, cells in rows if any(cells)]
        widths = Counter(len(cells) for _, cells in rows)
        width, count = max(widths.items(), key=lambda pair: (pair[0] > 1, pair[1], pair[0]), default=(0, 0))
        if not best[3] or (width > 1, count) > (best[1] > 1, best[0]):
            best = (count, width, delimiter, rows)
    count, width, delimiter, rows = best
    if not rows:
        raise problem or ValueError("it is empty")
    start = _header(rows, width)
    table = _rows(rows[start:], delimiter)
    if start:
        table.notes.append(
            f"{counted(start, 'line')} before the header left out: {printable(' '.join(rows[0][1]), 80)}"
        )
    return table


def _header(rows: Sequence[tuple[int, list[str]]], width: int) -> int:
    """Return the place of the header: the first row of names, as wide as the others or nearly so."""
    leading = []
    for place, (_, cells) in enumerate(rows):
        names = [cell for cell in cells if cell]
        figures = sum(map(_is_figure, names))
        if 2 * figures > len(names):
            break
        if figures:  # such as a title with a year
            continue
        leading.append((place, len(names), names[0].startswith("#")))
    least = [width, max(2, width - 1), 2]  # an index has no name; rows may be wider than their header
    wide = next((some for size in least if (some := [row for row in leading if row[1] >= size])), [])
    plain = [place for place, _, comment in wide if not comment]
    # `# GPUs` may begin a header; a comment stands before one.
    return plain[0] if plain else wide[0][0] if wide else 0


def _is_figure(cell: str) -> bool:
    """Say whether a cell is a number, perhaps with a unit: no name of a column begins like this."""
    parts = written(cell)
    return parts is not None and len(parts.unit) < 12


def _rows(lines: Sequence[tuple[int, list[str]]], delimiter: str) -> FileTable:
    """Return the rows below a header. Raises ValueError where two columns have one name."""
    names = [" ".join(name.split()) or f"column {place}" for place, name in enumerate(lines[0][1], 1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"line {lines[0][0]}: the column {printable(twice[0])!r} stands twice")
    rows: list[FileRow] = []
    for line, cells in lines[1:]:
        row: dict[Any, Any] = dict(zip(names, cells, strict=False))
        rows.append((line, row | ({None: cells[len(names) :]} if any(cells[len(names) :]) else {})))
    return FileTable(names, rows, delimiter)
