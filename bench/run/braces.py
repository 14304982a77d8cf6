"""Placeholders in the command of `bench measure`: `{NAME}` stands for the value of `--set NAME=VALUE`.

They are only looked for where something is set. Braces of a shell and of JSON stay: `${NAME}`, `{}`, `{"a": 1}`; a doubled
`{{NAME}}` is the text `{NAME}`. In a word that is itself a script or JSON, an unknown name is that of its own braces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bench.errors import BadValue
from bench.registry import did_you_mean

_CODE = re.compile(r"[\s'\"();]")
"""What is in a word that is a script or JSON, whose own braces are no placeholders."""
_BRACES = re.compile(r"\{\{([^\W\d]\w*)\}\}|(?<![{$])\{([^\W\d]\w*)\}")
_FOREIGN = ("%", "@", "#", "\\")
"""What stands before the braces of others, such as `%{http_code}` and `HEAD@{upstream}`."""


def filled(argv: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """Return a command with the values of its settings. Raises BadValue for a placeholder that is none of them."""
    return ["".join(settings[name] if name else text for text, name in _pieces(word, settings)) for word in argv]


def template(argv: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """Return a command as `str.format` fills it in: only the placeholders of its settings have single braces."""
    pieces = (_pieces(word, settings) for word in argv)
    return ["".join(f"{{{name}}}" if name else _doubled(text) for text, name in word) for word in pieces]


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _pieces(word: str, settings: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a word: plain text, or an empty one and the name of a setting."""
    place, code = 0, _CODE.search(word)
    for braces in _BRACES.finditer(word) if settings else ():
        doubled, name = braces.groups()
        if name not in settings and (code or (name and word[: braces.start()].endswith(_FOREIGN))):
            continue
        if doubled is None and name not in settings:
            raise BadValue(
                f"COMMAND has {{{name}}}, which --set does not give: {did_you_mean(name, settings)}; "
                f"for these braces themselves write {{{{{name}}}}}"
            )
        yield word[place : braces.start()] + (f"{{{doubled}}}" if doubled else ""), ""
        yield "", name or ""
        place = braces.end()
    yield word[place:], ""
