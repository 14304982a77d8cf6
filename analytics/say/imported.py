"""What became of an imported table, in words: its columns, the rows that were left out, and how many are usable."""

from __future__ import annotations

from collections.abc import Iterator

from analytics.runs.imported import Imported
from analytics.text import printable

_FEW = 10
"""Lines that were left out are listed up to this number."""


def lines(table: Imported, logged: int | None) -> Iterator[str]:
    """Describe an imported table; `logged` rows were new in the store, None where nothing was written."""
    for column in table.columns:
        factor = f" × {column.factor:g}" if column.factor != 1 else ""
        yield f"{printable(column.name)}{factor} -> {column.target}"
    if table.ignored:
        yield f"not used: {', '.join(map(printable, table.ignored))}"
    for row in table.rows[:3] if logged is None else []:
        yield f"  {', '.join(f'{key} {printable(value)}' for key, value in sorted(row.items()))}"
    for line, reason in table.refused[:_FEW]:
        yield f"line {line} is left out: {printable(reason, 200)}"
    if len(table.refused) > _FEW:
        yield f"... and {len(table.refused) - _FEW} more lines (--json lists them)"
    yield from table.notes
    usable = f"{len(table.rows)} of {len(table.rows) + len(table.refused)} rows"
    dry = "can be imported; nothing was written"
    yield f"{usable} {dry if logged is None else f'are runs of {table.suite}, {logged} of them new'}"
