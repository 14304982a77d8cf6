"""A report as a file: HTML, Markdown, CSV, Parquet or JSON. Text of runs is shown as text in all of them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING

from analytics.render.svg import svg
from analytics.runs.export import to_csv
from analytics.say.blocks import Block, Commands, Figure, Lines, Note, Sentence, Table
from analytics.say.report import Report
from analytics.text import printable

if TYPE_CHECKING:
    from jinja2 import Template

_LONGEST = 1000


def as_html(report: Report) -> str:
    """Return one page that needs nothing else: no script, and nothing from a network."""
    return _template().render(report=report, svg=svg, plain=lambda text: printable(text, _LONGEST))


def _plain(blocks: Sequence[Block]) -> list[Lines | Table | Figure]:
    """Return blocks in the three forms that files have, sentences that follow each other as one list."""
    plain: list[Lines | Table | Figure] = []
    for block in map(_as_lines, blocks):
        last = plain[-1] if plain else None
        if isinstance(last, Lines) and isinstance(block, Lines) and last.kind == block.kind == "list":
            plain[-1] = Lines((*last.lines, *block.lines))
        else:
            plain.append(block)
    return plain


def _groups(blocks: Sequence[Block]) -> list[tuple[str, list[Lines | Table | Figure]]]:
    """Join neighbours of one kind, so that figures stand side by side."""
    return [
        (kind, list(same)) for kind, same in groupby(_plain(blocks), key=lambda block: type(block).__name__.lower())
    ]


def _as_lines(block: Block) -> Lines | Table | Figure:
    """Return running text and commands as lines, the one form that files have for them."""
    if isinstance(block, Sentence):
        return Lines((block.text,))
    if isinstance(block, Note):
        return Lines((f"{block.label}: {block.text}" if block.label else block.text,))
    return Lines(block.commands, "command") if isinstance(block, Commands) else block


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["groups"] = _groups
    return environment.from_string(
        resources.files("analytics.render").joinpath("report.html.j2").read_text(encoding="utf-8")
    )


def as_markdown(report: Report) -> str:
    """Return the report as Markdown (CommonMark with tables); figures are told in words."""
    parts = [f"# {_escaped(report.title)}", _items(report.in_short)]
    for section in report.sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += map(_block, _plain(section.blocks))
    return "\n\n".join([*parts, f"Made at {report.made_at:%Y-%m-%d %H:%M:%S} UTC by wattbench."]) + "\n"


def _block(block: Lines | Table | Figure) -> str:
    if isinstance(block, Figure):
        return f"*{_escaped(block.words)}*"
    if isinstance(block, Table):
        head = [_row(block.columns), "|" + " --- |" * len(block.columns)]
        caption = [f"**{_escaped(block.caption)}**", ""] if block.caption else []
        return "\n".join([*caption, *head, *map(_row, block.rows)])
    if block.kind == "command":
        lines = [printable(line, _LONGEST) for line in block.lines]
        fence = "`" * max(3, *(1 + len(run) for line in lines for run in re.findall("`+", line)), 3)
        return "\n".join([fence, *lines, fence])
    return "\n>\n".join("> " + _escaped(line) for line in block.lines) if block.kind == "quote" else _items(block.lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _items(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _escaped(text: str) -> str:
    """Escape what Markdown, its tables, its formulas and its own links take for markup."""
    line = re.sub(r"([\\`*_{}\[\]<>#|~$&^!])|(?<=www)(\.)|(:)(?=//)", r"\\\1\2\3", printable(text, _LONGEST))
    return re.sub(r"^([-+=])|^(\d+)([.)])(?=\s|$)", r"\2\\\1\3", line)


def _parquet(report: Report) -> bytes:
    file = io.BytesIO()
    report.runs.to_parquet(file, index=False)
    return file.getvalue()


FORMATS: dict[str, Callable[[Report], str | bytes]] = {
    "html": as_html,
    "md": as_markdown,
    "csv": lambda report: to_csv(report.runs),
    "parquet": _parquet,
    "json": lambda report: json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n",
}
"""What a report can be made: suffix of the file -> how. CSV and Parquet hold the runs, a row each."""
