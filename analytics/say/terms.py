"""Definitions of the words that answers use, from `terms.ini`, for `bench help`, pages and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from analytics.say.blocks import Block, Sentence, Table
from bench.figures.flags import FLAGS


@cache
def definitions(name: str = "terms") -> Mapping[str, Mapping[str, str]]:
    """Return the texts of a file of this folder by subject and name: for `terms` the meaning of each."""
    file = ConfigParser(delimiters=":", interpolation=None)
    file.optionxform = str  # type: ignore[method-assign,assignment]  # terms keep their capitals
    file.read_string(Path(__file__).with_name(f"{name}.ini").read_text(encoding="utf-8"))
    return {subject: dict(file[subject]) for subject in file.sections()}


def terms() -> list[Block]:
    """Return a table of definitions for each subject."""
    tables = (Table(name, ("term", "meaning"), tuple(of.items()), figures=False) for name, of in definitions().items())
    return [Sentence("Terms of wattbench", "title"), *tables]


def flags() -> list[Block]:
    """Return the meaning of each flag, and the best grade that a run with it can have."""
    rows = tuple((name, flag.grade, flag.meaning) for name, flag in FLAGS.items())
    return [Table("", ("flag", "grade at best", "meaning"), rows, figures=False)]


TOPICS: Mapping[str, Callable[[], list[Block]]] = {"terms": terms, "flags": flags}
"""The topics of `bench help`."""
