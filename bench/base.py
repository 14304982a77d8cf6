"""The base of all models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all models: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values of some fields, validated as a whole. Raises ValueError where the model forbids it.

        Parts that stay are not validated again, so that 10,000 copies of a RunSpec take about 0.2 s.
        """
        same = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(same | fields)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Do the same as `changed`: pydantic's own copy accepts whatever it is given."""
        return self.changed(**(update or {}))


_WORDS = {
    "string": "must be text",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "list": "must be a list: [a, b]",
    "dict": "must be a mapping: {name: value}",
    "model": "must be a mapping: {name: value}",
}
_TYPE = re.compile(r"(string|int|float|bool|list|dict|model)_(type|parsing|from_float)")


def in_words(mistake: Mapping[str, Any]) -> str:
    """Return what an error of pydantic says in words of the people who write suites and tables: what a value must be."""
    match = _TYPE.fullmatch(mistake["type"])
    if match is not None:
        return _WORDS[match[1]]
    return re.sub(
        r"^(Input|String|List|Dictionary|Value) should ", "must ", mistake["msg"].removeprefix("Value error, ")
    )
