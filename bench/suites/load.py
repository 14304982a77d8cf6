"""A suite file -> Suite, with the settings of the command line. All mistakes of its shape are listed at once."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench import registry
from bench.errors import UserError
from bench.schema import RunSpec, Site, Suite
from bench.suites import yaml as yamlfile

SITE_OPTIONS = {
    "region": "--region",
    "pue": "--pue",
    "usd_per_device_hour": "--price",
    "usd_per_kwh": "--electricity-price",
    "usd_capital_per_device_hour": "--capital-price",
    "price_note": "--price-note",
}
"""Fields of Site, and the options of the command line that give them."""
_RENTED, _OWNED = {"usd_per_device_hour"}, {"usd_per_kwh", "usd_capital_per_device_hour"}
_AnySite = TypeVar("_AnySite", bound=Site)
_SET_BY_EXPANSION = {"devices_per_node", "num_nodes", "repeat", "ladder"}
FIELDS = sorted((set(RunSpec.model_fields) - _SET_BY_EXPANSION) | {"devices", "global_batch_size"})


class SuiteError(UserError):
    """One or more mistakes in a suite, a search or their options."""

    def __init__(self, messages: Iterable[str]) -> None:
        super().__init__(*messages)


def load_suite(path: Path) -> Suite:
    """Read a suite file. Raises SuiteError with all mistakes of its outer shape."""
    try:
        value = yamlfile.read(path)
    except yamlfile.YamlError as error:
        raise SuiteError([f"{path}: {error}"]) from error
    if not isinstance(value, dict) or "space" in value:
        this = f"a search: bench search {path} --dry-run" if isinstance(value, dict) else _kind(value)
        raise SuiteError([f"{path}: a suite is a mapping with name, defaults, matrix ...; this is {this}"])
    mistakes: list[str] = []
    shapes = {
        name: Suite.model_fields[name].annotation for name in ("defaults", "matrix", "include", "exclude", "ladder")
    }
    sound = {name: value[name] for name, shape in shapes.items() if name in value and _has_shape(value[name], shape)}
    suite = Suite.model_validate({"name": "unnamed", **sound})
    try:
        suite = Suite.model_validate(value, strict=True)
    except ValidationError as error:
        mistakes += messages(error, Suite.model_fields)
    mistakes += _field_mistakes(suite)  # of what can be looked at, also where another part is wrong
    if mistakes:
        raise SuiteError(f"{path}: {message}" for message in mistakes)
    return suite


def _has_shape(value: Any, shape: Any) -> bool:
    try:
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {type(None): "empty", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "a mapping")


_BRANCHES = {"function-before[_short_forms()]", "constrained-int", "literal['max']"}
"""Names that pydantic gives to the alternatives of a field; nobody wrote them."""


def messages(error: ValidationError, allowed: Iterable[str] = ()) -> Iterator[str]:
    """Turn pydantic's findings into lines: where, what was given, what is allowed."""
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"] if str(part) not in _BRANCHES)
        if found["type"] == "extra_forbidden":
            names = list(allowed) if len(found["loc"]) == 1 else []
            hint = registry.did_you_mean(str(found["loc"][-1]), names) if names else "it is not a field here"
            yield f"unknown key {where!r}: {hint}"
        elif found["type"] == "missing":
            yield f"{where!r} is missing"
        elif "instance of Choice" in found["msg"]:
            given = reprlib.repr(found["input"])
            yield f"{where}: give one name, or {{name: ..., option: ...}}, not {given}; a list of them goes into the matrix"
        else:
            own = (
                isinstance(found["input"], dict) or found["type"] == "value_error"
            )  # such a message says what was given
            given = "" if own else f", not {reprlib.repr(found['input'])}"
            if isinstance(found["input"], dict) and set(found["input"]) & {"cpu", "cuda"}:
                given = "; a value that differs by machine is written {on: {cpu: ..., cuda: ...}}"
            yield f"{where + ': ' if where else ''}{found['msg'].removeprefix('Value error, ')}{given}"


def _field_mistakes(suite: Suite) -> Iterator[str]:
    """Names of fields, and the shapes of an axis, before anything is multiplied out."""
    parts: list[tuple[str, dict[str, Any]]] = [("defaults", suite.defaults), ("matrix", suite.matrix)]
    parts += [(f"include[{i}]", cell) for i, cell in enumerate(suite.include)]
    parts += [(f"exclude[{i}]", cell) for i, cell in enumerate(suite.exclude)]
    parts += [(f"ladder[{i}]", cell) for i, cell in enumerate(suite.ladder)]
    if suite.ladder and (suite.matrix or suite.include):
        yield "a ladder starts from the defaults alone: leave matrix and include out"
    for where, cell in parts:
        for name, value in cell.items():
            if name.partition(".")[0] not in FIELDS:
                yield f"{where}: unknown field {name!r}: {registry.did_you_mean(name, FIELDS)}"
            for branch in branches(value):
                if where == "matrix" and branch != "auto" and not isinstance(branch, list):
                    yield f"matrix: {name!r} must be a list of values, not {branch!r}"
                if where == "matrix" and branch == []:
                    yield f"matrix: {name!r} is empty; give at least one value or leave the line out"
                if branch == "auto" and name != "devices":
                    yield f"{where}: 'auto' is understood for devices only, not for {name!r}"
            if isinstance(value, dict) and "on" in value and (set(value) != {"on"} or not is_by_machine(value)):
                yield f"{where}: {name!r}: 'on' takes a mapping with cpu and/or cuda, and stands alone"


def is_by_machine(value: Any) -> bool:
    """Whether a value differs by machine: `{on: {cpu: ..., cuda: ...}}`."""
    inner = value.get("on") if isinstance(value, dict) else None
    return isinstance(inner, dict) and bool(inner) and set(inner) <= {"cpu", "cuda"}


def branches(value: Any) -> list[Any]:
    """Return what a value is, on each kind of machine that it names."""
    return list(value["on"].values()) if is_by_machine(value) else [value]


def for_device_type(cell: dict[str, Any], device_type: str) -> dict[str, Any]:
    """Resolve `on: {cpu: ..., cuda: ...}`; a field that says nothing about this type is left to its default."""
    out: dict[str, Any] = {}
    for name, value in cell.items():
        if not is_by_machine(value):
            out[name] = value
        elif device_type in value["on"]:
            out[name] = value["on"][device_type]
    return out


def override(suite: Suite, settings: Iterable[str]) -> Suite:
    """Apply `key=value` settings of the command line: a list replaces or adds an axis, one value fixes the field.

    `repeats`, `idle_seconds`, the fields of Site and all fields of a run are keys. Values are YAML.
    """
    defaults, matrix, top, mistakes = dict(suite.defaults), dict(suite.matrix), {}, []
    top_level = {"repeats", "idle_seconds", *Site.model_fields}
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            value = yamlfile.parse(text)
        except yamlfile.YamlError as error:
            mistakes.append(f"--set {setting}: {error}")
            continue
        if not equals or not key:
            mistakes.append(f"--set {setting!r}: give key=value")
        elif key in top_level:
            top[key] = value
        elif key in _argument_names(suite):
            _fix(f"workload_args.{key}", value, defaults, matrix)
        else:
            _fix(key, value, defaults, matrix)
    try:
        changed = Suite.model_validate(suite.model_dump() | top | {"defaults": defaults, "matrix": matrix}, strict=True)
    except ValidationError as error:
        raise SuiteError([*mistakes, *(f"--set: {message}" for message in messages(error))]) from error
    mistakes += [f"--set: {message}" for message in _field_mistakes(changed)]
    if mistakes:
        raise SuiteError(mistakes)
    return changed


def _fix(name: str, value: Any, defaults: dict[str, Any], matrix: dict[str, Any]) -> None:
    """Set a field for all runs: a list, or `auto`, becomes the axis; one value takes its place."""
    matrix.pop(name, None)
    (matrix if isinstance(value, list) or value == "auto" else defaults)[name] = value


def _argument_names(suite: Suite) -> set[str]:
    """Names of the arguments of the suite's workload, which may be set and filtered by their short names."""
    try:
        return set(registry.load("workload", str(suite.defaults.get("workload"))).Args.model_fields) - set(FIELDS)
    except ValueError:
        return set()


def with_site(site: _AnySite, given: dict[str, Any]) -> _AnySite:
    """Put region, PUE and prices of the command line into a suite or a site. Raises SuiteError naming the options.

    A rental price takes the place of those of an owned device, and the other way round; with a new price the note on the
    old one goes.
    """
    dropped: set[str] = set()
    if given.keys() & (_RENTED | _OWNED):
        dropped.add("price_note")
        dropped |= _OWNED if given.keys() & _RENTED else _RENTED
    try:
        kept = site.model_dump(exclude=dropped)
        return type(site).model_validate(kept | given, strict=True)
    except ValidationError as error:
        told = list(messages(error))
        for name, option in SITE_OPTIONS.items():
            told = [message.replace(name, option) for message in told]
        raise SuiteError(told) from error
