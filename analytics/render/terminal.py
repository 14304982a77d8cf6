"""Blocks for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
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
_COMMAND = re.compile(r"(^|: |&& )bench (?=[a-z])")
_INTERVAL = re.compile(r" \((?=-?[\d.,]+ ?(?:-|to ))")


def show(blocks: Iterable[Block], console: Console, *, explain: bool = False, program: str = "bench") -> None:
    """Print blocks; details only where the reader asked to `explain`. Figures are left to files and pages.

    `program` is what the reader types for `bench`.
    """
    chosen = [block for block in blocks if not isinstance(block, Figure)]
    if explain:
        chosen = [block.without("--explain") if isinstance(block, Commands) else block for block in chosen]
    else:
        shown = (block for block in chosen if not getattr(block, "detail", False))
        chosen = [block.brief() if isinstance(block, Table) else block for block in shown]
    chosen = [block for block in chosen if not isinstance(block, Commands) or block.commands]
    for place, (_, group) in enumerate(groupby(chosen, key=_kind)):
        if place:
            console.print()
        for block in group:
            for part in _parts(_typed(block, program), console.width):
                console.print(part, soft_wrap=isinstance(block, Commands))


def _typed(block: Block, program: str) -> Block:
    """Put what the reader types in the place of `bench` in commands, and in sentences that end with one."""
    if isinstance(block, Commands):
        return replace(block, commands=tuple(_COMMAND.sub(rf"\1{program} ", line) for line in block.commands))
    if isinstance(block, Sentence | Note):
        return replace(block, text=_COMMAND.sub(rf"\1{program} ", block.text))
    return block


def _kind(block: Block) -> object:
    """Blocks of one kind follow each other without an empty line; every table stands alone."""
    if isinstance(block, Table):
        return id(block)
    return (type(block), getattr(block, "role", None), getattr(block, "detail", False))


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
    for cells in table.rows:
        drawn.add_row(*(Text(cell if fits else _INTERVAL.sub("\n(", cell)) for cell in cells))
    return drawn
