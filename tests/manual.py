"""README and docs as data: their commands, YAML and links, and blocks that `python -m tests.manual` rewrites.

A block stands between `<!-- block: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from bench.schema import AXES, RunSpec
from bench.strategies.catalog import CATALOG

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
APPROVED = ROOT / "tests" / "approved" / "fit.txt"
PICTURE_LINES = 24
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(<!-- block: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a page, as words. A `whole` one stands in a block of shell, others in a sentence."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def fenced(page: Path, language: str) -> list[str]:
    """Return the contents of the code blocks of a page in one language."""
    return [text for name, text in _FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page: the lines of its shell blocks, and code in sentences that begins like a command."""
    for text in fenced(page, "sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            for is_and, part in groupby(words, key="&&".__eq__):
                if not is_and:
                    yield Command(page.name, tuple(part), True)
    for code in re.findall(r"`((?:bench|make|python) [^`]+)`", sentences(page)):
        yield Command(page.name, tuple(shlex.split(code.replace("\n", " "))), False)


def sentences(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of the links of a page, without those on the web."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]


def strategies() -> str:
    """Return all strategies as tables of names, help and options, the default of each field first."""
    tables = []
    for axis in AXES:
        default = RunSpec.model_fields[axis].default.name
        rows = [f"| `{axis}` | meaning | options |", "|---|---|---|"]
        for name in sorted(CATALOG[axis], key=default.__ne__):
            options = CATALOG[axis][name]
            fields = ", ".join(f"`{field}`" for field in options.model_fields)
            rows.append(f"| `{name}` | {options.help()} | {fields} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables) + "\n"


def picture() -> str | None:
    """Return the beginning of the approved answer as a block of text; None as long as none is approved."""
    if not APPROVED.exists():
        return None
    lines = [line.rstrip() for line in APPROVED.read_text().splitlines()]
    return "\n".join(["```text", *lines[:PICTURE_LINES], "```"]) + "\n"


BLOCKS: dict[str, Callable[[], str | None]] = {"strategies": strategies, "answer": picture}
"""What fills the blocks of the pages."""


def blocks(page: Path) -> dict[str, str]:
    """Return the contents of the blocks of a page by their names."""
    return {name: content for _, name, content, _ in _BLOCK.findall(page.read_text())}


def filled(text: str) -> str:
    """Return the text of a page with its blocks as the code prints them now."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]() or found[3]}{found[4]}", text)


def main() -> None:
    """Rewrite the blocks of all pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
