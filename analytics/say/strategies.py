"""Strategies and their options, as `bench show --options` explains them."""

from __future__ import annotations

from collections.abc import Iterator

from analytics.say.blocks import Block, Note, Sentence, Table
from bench.errors import UserError
from bench.registry import did_you_mean
from bench.strategies.catalog import CATALOG, Options, allowed


def blocks(name: str) -> Iterator[Block]:
    """Describe a strategy or all of an axis with their options, or list everything ("all"). Raises UserError."""
    strategies = [(axis, options) for axis, by_name in CATALOG.items() for options in by_name.values()]
    if name == "all":
        rows = tuple((axis, options.name, options.help()) for axis, options in strategies)
        yield Table("", ("field", "name", "what it does"), rows, figures=False)
        yield Note("bench show --options NAME explains the options of a strategy (lora) or of a field (precision)")
        return
    chosen = [options for axis, options in strategies if name in (axis, options.name)]
    if not chosen:
        names = {each for by_name in CATALOG.values() for each in by_name}
        raise UserError(f"no strategy {name!r}: {did_you_mean(name, names | set(CATALOG))}")
    for options in chosen:
        yield Sentence(f"{options.axis} {options.name}: {options.help()}", "title")
        if options.model_fields:
            yield Table("", ("option", "meaning", "values", "default"), tuple(_options(options)), figures=False)


def _options(options: type[Options]) -> Iterator[tuple[str, ...]]:
    for name, field in options.model_fields.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        yield name, field.description or "", allowed(field.annotation, tuple(field.metadata)), default
