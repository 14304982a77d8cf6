"""YAML 1.2 files, read with limits on size, depth and aliases, and written.

Values are plain Python: text, whole numbers and floats in decimal, true/false, null, lists, and mappings with text keys.
Dates, `.nan`, `.inf`, `0o7` and `1_000` stay text, so a field that needs a number refuses them.
"""

from __future__ import annotations

import difflib
import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from bench.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 50_000
MAX_ALIASES = 50
_WHOLE = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class YamlError(UserError):
    """The text is refused; the message gives the reason and, where known, the line."""


class _Composer(Composer):
    """Builds nodes and counts them. An alias counts as many nodes as the value it stands for."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self._levels = self._nodes = self._aliases = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        line, alias = event.start_mark.line + 1, isinstance(event, AliasEvent)
        before = self._nodes
        self._nodes += 1
        self._levels += 1
        self._aliases += alias
        for count, limit, what in (
            (self._levels, MAX_DEPTH, "is nested more than {} levels deep"),
            (self._nodes, MAX_NODES, "has more than {} nodes"),
            (self._aliases, MAX_ALIASES, "uses more than {} aliases"),
        ):
            if count > limit:
                raise YamlError(f"line {line}: the text {what.format(limit)}")
        node = super().compose_node(parent, index)
        self._levels -= 1
        if alias and event.anchor not in self._sizes:
            raise YamlError(f"line {line}: the alias {event.anchor!r} stands inside the value that it repeats")
        if alias:
            self._nodes += self._sizes[event.anchor]
        elif event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node


class _Constructor(SafeConstructor):
    """Makes values of nodes: no tags but those of the core schema, and keys that occur once: text, or values of lists."""

    yaml_constructors = {  # noqa: RUF012  the library's own protocol
        tag: construct
        for tag, construct in SafeConstructor.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "str", "seq", "map")
    }

    def flatten_mapping(self, node: Any) -> None:
        """Leave `<<` a key like any other: YAML 1.2 has no merge keys."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        line = key_node.start_mark.line + 1
        switch = isinstance(key, (bool, int, float)) and isinstance(value, list)  # {true: [--amp], false: []}
        if not isinstance(key, str) and not switch:
            raise YamlError(f"line {line}: a key must be text, not {key!r}")
        if key in mapping:
            raise YamlError(f"line {line}: the key {key!r} stands twice")
        return True

    def number(self, node: Any) -> int | float | str:
        """Return a decimal number; any other way to write one is text."""
        text: str = self.construct_scalar(node)
        return int(text) if _WHOLE.fullmatch(text) else float(text) if _FLOAT.fullmatch(text) else text


for _name in ("int", "float", "timestamp", "merge", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_name}", _Constructor.number)


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    return yaml


def parse(text: str) -> Any:
    """Return the value of a YAML text. Raises YamlError, with the line, for text that is refused."""
    if len(text.encode()) > MAX_BYTES:
        raise YamlError(f"the text has more than {MAX_BYTES} bytes")
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{where}not YAML: {(error.problem or error.context or '')[:200]}") from error
    except (YAMLError, ValueError, KeyError, RecursionError) as error:
        raise YamlError(f"not YAML: {str(error).splitlines()[0][:200]}") from error


def _near(path: Path) -> str:
    """Suggest the file of a suite that is named without its folder or ending."""
    folders = (path.parent, path.parent / "suites")
    files = [folder / f"{path.name.removesuffix('.yaml')}{end}" for folder in folders for end in (".yaml", ".yml")]
    found = next((file for file in files if file.is_file()), None)
    others = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.yaml"))]
    near = difflib.get_close_matches(path.stem, [file.stem for file in others], 1)
    found = found or next((file for file in others if [file.stem] == near), None)
    return "" if found is None else f"; did you mean {found}?"


def read(path: Path) -> Any:
    """Read and parse a file. Raises YamlError where it is missing, not a file, too large, or not UTF-8."""
    try:
        if not path.is_file():
            raise YamlError("is a folder, not a file" if path.is_dir() else f"no such file{_near(path)}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise YamlError(f"has {size} bytes; a suite has at most {MAX_BYTES}")
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 text: byte {error.start}") from error
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from error


def write(value: Any) -> str:
    """Return a value of plain Python types as YAML text, its keys in their order."""
    text = io.StringIO()
    _yaml().dump(value, text)
    return text.getvalue()
