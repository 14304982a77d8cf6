"""YAML, read safely: size, depth and aliases are limited, duplicate keys refused, and only true/false are booleans.

PyYAML follows YAML 1.1, where `on`, `no` and `yes` are booleans and `1e-3` is text. Suites use `on` as a key and `NO` as
a country, so the core schema of YAML 1.2 is put in its place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 50_000
MAX_ALIASES = 50


class YamlError(UserError):
    """The text is not acceptable; the message says what and in which line."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own protocol: a table by first character

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._nodes = self._aliases = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes += 1
        self._depth += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
        for value, limit, what in (
            (self._depth, MAX_DEPTH, "nested more than"),
            (self._nodes, MAX_NODES, "has more nodes than"),
            (self._aliases, MAX_ALIASES, "uses more aliases than"),
        ):
            if value > limit:
                raise YamlError(f"line {mark.line + 1}: the file {what} {limit}")
        before, event = self._nodes, self.peek_event()  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self._nodes += self._sizes.get(event.anchor or "", 0)  # what it stands for counts again
        elif event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before + 1
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise YamlError(f"line {line}: a key must be text, not {key!r}")
            if key in seen:
                raise YamlError(f"line {line}: the key {key!r} stands twice")
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


def _decimal(loader: _Loader, node: Any) -> int:
    return int(loader.construct_scalar(node), 10)  # YAML 1.1 would read 010 as 8


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def _core_schema() -> None:
    tags = (
        ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
        ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
        ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    )
    for tag, pattern, first in tags:
        _Loader.add_implicit_resolver(
            tag, re.compile(rf"^(?:{pattern})$"), list(first) + ([""] if "null" in tag else [])
        )


_core_schema()


def parse(text: str) -> Any:
    """Return the value of a YAML text. Raises YamlError with the line for anything that is refused."""
    if len(text.encode()) > MAX_BYTES:
        raise YamlError(f"the text has more than {MAX_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader with limits
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{where}not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(f"not YAML: {str(error).splitlines()[0]}") from error


def read(path: Path) -> Any:
    """Read and parse a file. Raises YamlError where it is missing, not a file, too large, or not UTF-8."""
    try:
        if not path.is_file():
            raise YamlError("is a folder, not a file" if path.is_dir() else "no such file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise YamlError(f"has {size} bytes; a suite has at most {MAX_BYTES}")
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 text: byte {error.start}") from error
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from error
