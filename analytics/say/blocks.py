"""The blocks that an answer consists of: sentences, tables, figures, commands and notes, as data.

An answer is a sequence of blocks, made once for every output: the title, the answer, how sure it is, what to do next, then
tables and figures, and notes last. `analytics.render` prints blocks for terminals and files, `app.page` shows them in the
dashboard. All text is plain: it is escaped where it is rendered, never here. Blocks of `detail` (definitions, limits,
evidence) are for those who ask: behind `--explain` in a terminal, folded elsewhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from analytics.text import interval, printable
from bench.redact import redact


@dataclass(frozen=True)
class Sentence:
    """One or more sentences of running text. The `title` says what was looked at, an `answer` is what people came for."""

    text: str
    role: Literal["title", "answer", "plain"] = "plain"
    detail: bool = False


@dataclass(frozen=True)
class Note:
    """A remark under what it is about, such as `~ estimated by CodeCarbon`; `label` is its first word, such as Careful."""

    text: str
    label: str = ""
    detail: bool = False


@dataclass(frozen=True)
class Commands:
    """Commands that can be pasted as they are; `label` says what for."""

    commands: tuple[str, ...]
    label: str = "Next"
    detail: bool = False

    def without(self, option: str) -> Commands:
        """Leave out the commands that end with an option, which the reader has given."""
        return replace(self, commands=tuple(line for line in self.commands if not line.endswith(f" {option}")))

    def besides(self, typed: Sequence[str]) -> Commands:
        """Leave out the command whose words the reader has just typed, in whatever order."""
        others = (line for line in self.commands if sorted(shlex.split(line)[1:]) != sorted(typed))
        return replace(self, commands=tuple(others))


def command(*words: str, store: str | None = None) -> str:
    """Return a `bench` command as a shell takes it. A store whose address has a password is not named: see `unnamed`."""
    where = ["--store", store] if store and redact(store) == store else []
    return shlex.join(["bench", *(printable(word, 1000) for word in (*words, *where))])


def unnamed(store: str | None) -> Iterator[Note]:
    """Say how commands find a store that they do not name."""
    if store and redact(store) != store:
        yield Note("set MLFLOW_TRACKING_URI to its address, which has a password and is not printed.", "Store")


@dataclass(frozen=True)
class Lines:
    """Sentences, one an entry. `command` is to be typed, `quote` to be quoted."""

    lines: tuple[str, ...]
    kind: Literal["list", "command", "quote"] = "list"


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first column names the row.

    `figures`: the other columns are numbers, except those named in `words`. Columns named in `details` are for those who
    ask, like a whole table of `detail`.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: bool = True
    detail: bool = False
    words: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    def brief(self) -> Table:
        """Return the table without the columns of `details`."""
        places = [place for place, name in enumerate(self.columns) if name not in self.details]
        columns, *rows = (tuple(cells[place] for place in places) for cells in (self.columns, *self.rows))
        return replace(self, columns=columns, rows=tuple(rows), details=())

    def is_number(self, place: int) -> bool:
        """Return whether the cells of a column are numbers, which are aligned to the right."""
        return self.figures and place > 0 and self.columns[place] not in self.words


@dataclass(frozen=True)
class Mark:
    """A value with its interval, if there is one; `name` says of what, `x` where it stands along a numeric axis.

    `estimated`: a model predicts it.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    x: float = 0.0
    estimated: bool = False


@dataclass(frozen=True)
class Group:
    """Marks of one look, and the line of a law through (x, y), if there is one."""

    name: str
    marks: tuple[Mark, ...]
    law: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """Marks by name, one under the other, or along numbers of devices (`along`); `reference` is a line to compare with.

    `axis` names the values and their unit; it ends at `most`, where bars that go on have an arrow. Numbers of devices beyond
    `node` are those of several nodes.
    """

    title: str
    axis: str
    groups: tuple[Group, ...]
    along: str = ""
    reference: float | None = None
    log: bool = False
    most: float | None = None
    detail: bool = False
    node: float | None = None

    @property
    def words(self) -> str:
        """The figure in words: its title, and each value with its 95 % interval."""
        texts = []
        for group in self.groups:
            head = f"{group.name}: " if len(self.groups) > 1 else ""
            marks = (f"{mark.name} {interval(mark.value, mark.low, mark.high)}" for mark in group.marks)
            texts.append(head + "; ".join(marks))
        return printable(f"{self.title} ({self.axis}). {'. '.join(texts)}.", 4000)


Block = Sentence | Note | Commands | Lines | Table | Figure
