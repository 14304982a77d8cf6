"""Blocks for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import rich.table
from rich.padding import Padding
from rich.text import Text

from analytics.say.blocks import Block, Commands, Figure, Lines, Note, Sentence, Table
from analytics.text import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_LONGEST, _NAME = 2000, 40


def show(blocks: Iterable[Block], console: Console, *, explain: bool = False) -> None:
    """Print blocks; those of `detail` only where the reader asked to `explain`. Figures are left to files and pages."""
    chosen = [block for block in blocks if not isinstance(block, Figure) and (explain or not _detail(block))]
    for place, (_, group) in enumerate(groupby(chosen, key=_kind)):
        if place:
            console.print()
        for block in group:
            for part in _parts(block, console.width):
                console.print(part, soft_wrap=isinstance(block, Commands))


def _detail(block: Block) -> bool:
    return getattr(block, "detail", False)


def _kind(block: Block) -> object:
    """Blocks of one kind follow each other without an empty line; every table stands alone."""
    if isinstance(block, Table):
        return id(block)
    return (type(block), getattr(block, "role", None), _detail(block))


def _parts(block: Block, width: int) -> Iterator[RenderableType]:
    if isinstance(block, Sentence):
        text = Text(printable(block.text, _LONGEST), "bold" if block.role == "title" else "")
        yield Padding(text, (0, 0, 0, 2), expand=False) if block.role == "answer" else text
    elif isinstance(block, Note):
        label = f"{block.label}: " if block.label else ""
        yield Text.assemble((label, "bold"), printable(block.text, _LONGEST))
    elif isinstance(block, Commands):
        yield from _commands(block)
    elif isinstance(block, Lines):
        yield from (Text(f"  {printable(line, _LONGEST)}") for line in block.lines)
    elif isinstance(block, Table):
        if block.caption:
            yield Text(printable(block.caption, _LONGEST))
        yield Padding(_table(block, width - 2), (0, 0, 0, 2), expand=False)


def _commands(block: Commands) -> Iterator[Text]:
    """One line where the commands are short, otherwise one line each."""
    one = f"{block.label}: {' | '.join(block.commands)}"
    if len(one) <= 120:
        yield Text(one)
    else:
        yield Text(f"{block.label}:")
        yield from (Text(f"  {command}") for command in block.commands)


def _table(table: Table, width: int) -> rich.table.Table:
    """Numbers and short names are not broken into lines. Where they do not fit, intervals stand below their figures."""
    columns = zip(table.columns, *table.rows, strict=True)
    fits = sum(max(map(len, cells)) + 2 for cells in columns) <= width + 2
    drawn = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(table.columns):
        number = table.is_number(place)
        short = (fits or place == 0) and all(len(cells[place]) <= _NAME for cells in table.rows)
        drawn.add_column(heading, justify="right" if number else "left", no_wrap=number or short, overflow="fold")
    break_ = " (" if fits else "\n("
    for cells in table.rows:
        drawn.add_row(*(Text(cell.replace(" (", break_)) for cell in cells))
    return drawn
