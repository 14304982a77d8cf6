"""What became of an imported table: how many rows are runs, which are left out and why, and how each column was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analytics.runs.imported import Imported
from analytics.say.blocks import Block, Lines, Note, Sentence, Table
from analytics.text import counted, number, printable

_FEW = 10
"""Lines that were left out are listed up to this number."""
_SHOWN = 3


def blocks(table: Imported, logged: int | None, namesakes: int = 0) -> Iterator[Block]:
    """Describe an imported table; `logged` rows were new in the store, None where nothing was written.

    So many `namesakes` are runs that the store has under the same name.
    """
    of = f"{len(table.rows)} of {counted(len(table.rows) + len(table.refused), 'row')}"
    if logged is None:
        yield Sentence(f"{table.suite}: {of} can be imported; nothing was written", "title")
    else:
        yield Sentence(f"{table.suite}: {of} imported, {logged} of them new", "title")
    if namesakes:
        others = f"{table.suite} is also the name of {counted(namesakes, 'other run')}"
        yield Sentence(f"{others}. bench fit shows the newest execution only: --suite NAME keeps them apart.", "answer")
    left_out = [f"line {line} is left out: {printable(reason, 200)}" for line, reason in table.refused[:_FEW]]
    if len(table.refused) > _FEW:
        left_out.append(f"and {counted(len(table.refused) - _FEW, 'more line')} (--json lists them)")
    if left_out:
        yield Lines(tuple(left_out))
    rows = tuple(
        (printable(column.name), column.target + (f" x {number(column.factor)}" if column.factor != 1 else ""))
        for column in table.columns
    )
    yield Table("", ("column", "read as"), rows, figures=False)
    if logged is None and table.rows:
        names = tuple(sorted({column.target for column in table.columns}))
        cells = tuple(tuple(_cell(row.get(name, "-")) for name in names) for row in table.rows[:_SHOWN])
        yield Table("First rows", names, cells, figures=False)
    if table.ignored:
        yield Note(", ".join(map(printable, table.ignored)), "Not used")
    yield from (Note(note) for note in table.notes)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else printable(value, 30)
