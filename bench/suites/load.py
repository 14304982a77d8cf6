"""From a suite file and the settings of the command line to a Suite. All mistakes of its form are reported at once."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bench import registry
from bench.base import in_words
from bench.cluster_options import ClusterOptions
from bench.errors import UserError
from bench.renamed import MACHINES as FORMER_MACHINES
from bench.renamed import current_machine
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
"""Fields of Site and the options of the command line that set them."""
_RENTED, _OWNED = {"usd_per_device_hour"}, {"usd_per_kwh", "usd_capital_per_device_hour"}
_AnySite = TypeVar("_AnySite", bound=Site)
_PARTS = ("defaults", "matrix", "include", "exclude", "ladder")
_SET_BY_EXPANSION = {"devices_per_node", "num_nodes", "repeat", "ladder", "open_devices", "words", "work"}
_INSTEAD = {
    "repeat": "did you mean 'repeats', of the whole suite?",
    "num_nodes": "nodes follow from devices; layout: 2x4 asks for 2 nodes x 4 devices (exclude understands num_nodes)",
}
_SAME = {"devices": "layout", "layout": "devices"}
FIELDS = sorted((set(RunSpec.model_fields) - _SET_BY_EXPANSION) | {"devices", "layout", "global_batch_size"})


class SuiteError(UserError):
    """One or more mistakes in a suite, a search or their options."""

    def __init__(self, messages: Iterable[str]) -> None:
        super().__init__(*messages)


def load_suite(path: Path) -> Suite:
    """Read a suite file. Raises SuiteError with all mistakes of its form."""
    try:
        value = yamlfile.read(path)
    except yamlfile.YamlError as error:
        raise SuiteError([f"{path}: {error}"]) from error
    if not isinstance(value, dict) or "space" in value:
        this = f"a search: bench search {path} --dry-run" if isinstance(value, dict) else _kind(value)
        raise SuiteError([f"{path}: a suite is a mapping with name, defaults, matrix ...; this is {this}"])
    mistakes: list[str] = []
    try:
        suite = Suite.model_validate(value, strict=True)
    except ValidationError as error:
        mistakes += messages(error, Suite.model_fields)
        bad = {name for mistake in error.errors() for name in mistake["loc"][:1]}
        sound = {name: value[name] for name in _PARTS if name in value and name not in bad}
        suite = Suite.model_validate({"name": "unnamed", **sound})  # so that its other parts are checked too
    mistakes += _field_mistakes(suite)
    try:
        registry.check("launcher", suite.launcher or "local")
    except ValueError as error:
        mistakes.append(f"launcher: {error}")
    if mistakes:
        raise SuiteError(f"{path}: {message}" for message in mistakes)
    return suite


def _kind(value: Any) -> str:
    """Name the type of a value in words of YAML."""
    names = {type(None): "empty", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "a mapping")


_BRANCHES = {"function-before[_short_forms()]", "constrained-int", "literal['max']", "bool", "int", "float", "str"}
"""Names that pydantic gives to the alternatives of a field. They do not occur in a suite."""
_PREFIX = "must be "


_FOR_A_CLUSTER = {
    "nodes": "nodes follow from devices; max_nodes bounds devices: auto, and nodelist names nodes",
    "gpus": "GPUs follow from devices; devices_per_node are those of a node that runs may use",
    "gpus_per_node": "did you mean 'devices_per_node'?",
    "time": "did you mean 'time_limit'?",
}


def _hint(place: tuple[int | str, ...], allowed: Iterable[str]) -> str:
    """Return what may stand in place of an unknown key, which is the last part of its place."""
    name = str(place[-1])
    if len(place) == 1:
        at_top = list(allowed)
        if name in FIELDS and "defaults" in at_top:
            return "it is a field of runs: write it under defaults or in the matrix"
        return registry.did_you_mean(name, at_top) if at_top else "it is not a field here"
    if place[0] != "cluster":
        return "it is not a field here"
    return _FOR_A_CLUSTER.get(name) or registry.did_you_mean(name, ClusterOptions.model_fields)


def _place(mistake: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in mistake["loc"] if str(part) not in _BRANCHES)


def messages(error: ValidationError, allowed: Iterable[str] = ()) -> Iterator[str]:
    """Turn the errors of pydantic into messages: where, what was given, what is allowed. Alternatives share one message."""
    alternatives: dict[str, list[str]] = {}
    for mistake in error.errors():
        alternatives.setdefault(_place(mistake), []).append(in_words(mistake).removeprefix(_PREFIX))
    for mistake in error.errors():
        where, value, text = _place(mistake), mistake["input"], in_words(mistake)
        if mistake["type"] == "extra_forbidden":
            yield f"unknown key {where!r}: {_hint(mistake['loc'], allowed)}"
        elif mistake["type"] == "missing":
            yield f"{where!r} is missing"
        elif "instance of Choice" in mistake["msg"]:
            shown = reprlib.repr(value)
            yield f"{where}: give one name, or {{name: ..., option: ...}}, not {shown}; a list of them goes into the matrix"
        else:
            if text.startswith(_PREFIX):
                text = _PREFIX + " or ".join(alternatives[where])
            # A mapping would be long, and our own validators say what was given.
            rest = "" if isinstance(value, dict) or mistake["type"] == "value_error" else f", not {reprlib.repr(value)}"
            if isinstance(value, dict) and set(value) & {*MACHINES, *FORMER_MACHINES}:
                rest = "; a value that differs by machine is written {on: {cpu: ..., gpu: ...}}"
            yield f"{where + ': ' if where else ''}{text}{rest}"


def _field_mistakes(suite: Suite) -> Iterator[str]:
    """Yield the mistakes in names of fields and in the form of axes, before anything is expanded."""
    parts: list[tuple[str, dict[str, Any]]] = [("defaults", suite.defaults), ("matrix", suite.matrix)]
    for name in ("include", "exclude", "ladder"):
        parts += [(f"{name}[{i}]", cell) for i, cell in enumerate(getattr(suite, name))]
    if suite.ladder and (suite.matrix or suite.include):
        yield "a ladder starts from the defaults alone: leave out matrix and include"
    for where, cell in parts:
        for name, value in cell.items():
            if name == "num_nodes" and where.startswith("exclude"):
                counts = [
                    count for branch in branches(value) for count in (branch if isinstance(branch, list) else [branch])
                ]
                if not all(type(count) is int and count >= 1 for count in counts):
                    yield f"{where}: num_nodes must be a whole number from 1, or a list of them, not {value!r}"
            elif name.partition(".")[0] not in FIELDS:
                hint = _INSTEAD.get(name) or registry.did_you_mean(name, FIELDS)
                yield f"{where}: unknown field {name!r}: {hint}"
            for branch in branches(value):
                if where == "matrix" and branch != "auto" and not isinstance(branch, list):
                    yield f"matrix: {name!r} must be a list of values, not {branch!r}"
                if where == "matrix" and branch == []:
                    yield f"matrix: {name!r} is empty; give at least one value or leave the line out"
                if branch == "auto" and name != "devices":
                    yield f"{where}: 'auto' is allowed for devices only, not for {name!r}"
            if isinstance(value, dict) and "on" in value and (set(value) != {"on"} or not is_by_machine(value)):
                yield f"{where}: {name!r}: 'on' takes a mapping with cpu and/or gpu, and stands alone"


MACHINES = ("cpu", "gpu")
"""Kinds of machines for which a suite may have values of its own."""


def is_by_machine(value: Any) -> bool:
    """Whether a value differs by machine: `{on: {cpu: ..., gpu: ...}}`."""
    inner = value.get("on") if isinstance(value, dict) else None
    return isinstance(inner, dict) and bool(inner) and set(inner) <= {*MACHINES, *FORMER_MACHINES}


def branches(value: Any) -> list[Any]:
    """Return the values of a field, one for each kind of machine that it names."""
    return list(value["on"].values()) if is_by_machine(value) else [value]


def for_device_type(cell: dict[str, Any], device_type: str) -> dict[str, Any]:
    """Resolve `on: {cpu: ..., gpu: ...}`. A field without a value for this device type is left out."""
    out = {}
    for name, value in cell.items():
        if name == "device_type":
            out[name] = [current_machine(kind) for kind in value] if isinstance(value, list) else current_machine(value)
        elif not is_by_machine(value):
            out[name] = value
        else:
            parts = {current_machine(kind): part for kind, part in value["on"].items()}
            out |= {name: parts[device_type]} if device_type in parts else {}
    return out


def override(suite: Suite, settings: Iterable[str]) -> Suite:
    """Apply `key=value` settings of the command line. A list becomes an axis, a single value fixes the field.

    Keys are `repeats`, `idle_seconds`, the fields of Site, `cluster.` and its keys, and the fields of a run. Values are YAML.
    """
    defaults, matrix, mistakes = dict(suite.defaults), dict(suite.matrix), list[str]()
    top: dict[str, Any] = {"cluster": suite.cluster.model_dump(exclude_unset=True)}
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
        elif key.startswith("cluster."):
            top["cluster"][key.removeprefix("cluster.")] = value
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


def with_cluster(suite: Suite, profile: dict[str, Any], **given: Any) -> Suite:
    """Fill what a suite says about its cluster from the profile of a site, and change what was `given`. Raises SuiteError."""
    own = suite.cluster.model_dump(exclude_unset=True)
    cluster = profile | own | {name: value for name, value in given.items() if value is not None}
    try:
        return suite.changed(cluster=cluster)
    except ValidationError as error:
        raise SuiteError(messages(error)) from error


def load_profile(name: str | None) -> dict[str, Any]:
    """Return a named profile of the clusters of this site, or `default` where there is one. Raises SuiteError.

    They are mappings in `clusters.yaml`, in the folder `wattbench` of the configuration of the user, or in the file that
    WATTBENCH_CLUSTERS names.
    """
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "wattbench" / "clusters.yaml"
    path = Path(os.environ.get("WATTBENCH_CLUSTERS") or base)
    if not path.exists() and name is None and "WATTBENCH_CLUSTERS" not in os.environ:
        return {}
    try:
        profiles = yamlfile.read(path)
    except yamlfile.YamlError as error:
        raise SuiteError([f"{path}: {error}"]) from error
    if not isinstance(profiles, dict) or not all(isinstance(each, dict) for each in profiles.values()):
        raise SuiteError([f"{path}: give a mapping of names to the keys of cluster: {{h100: {{partition: gpu}}}}"])
    if name is not None and name not in profiles:
        raise SuiteError([f"--cluster {name!r} is not in {path}: {registry.did_you_mean(name, profiles)}"])
    profile: dict[str, Any] = profiles.get(name or "default", {})
    try:
        ClusterOptions.model_validate(profile, strict=True)
    except ValidationError as error:
        raise SuiteError(
            f"{path}: {name or 'default'}: {text}" for text in messages(error, ClusterOptions.model_fields)
        ) from error
    return profile


def _fix(name: str, value: Any, defaults: dict[str, Any], matrix: dict[str, Any]) -> None:
    """Set a field for all runs. A list or `auto` becomes its axis, a single value replaces the axis.

    Devices and layout say the same: one takes the place of the other.
    """
    matrix.pop(name, None)
    for part in (defaults, matrix):
        part.pop(_SAME.get(name, ""), None)
    (matrix if isinstance(value, list) or value == "auto" else defaults)[name] = value


def _argument_names(suite: Suite) -> set[str]:
    """Return the names of the workload's arguments, which may be set and filtered without their prefix."""
    written = {name for part in (suite.defaults, suite.matrix, *suite.include) for name in part}
    own = {name.partition(".")[2] for name in written if name.startswith("workload_args.")} | set(suite.words)
    try:
        own |= set(registry.load("workload", str(suite.defaults.get("workload"))).Args.model_fields)
    except ValueError:
        return set()
    return own - set(FIELDS)


def with_site(site: _AnySite, values: dict[str, Any]) -> _AnySite:
    """Return a suite or a site with region, PUE and prices of the command line. Raises SuiteError naming the options.

    A rental price replaces the prices of an owned device and vice versa. A new price also drops the note on the old one.
    """
    dropped: set[str] = set()
    if values.keys() & (_RENTED | _OWNED):
        dropped = {"price_note"} | (_OWNED if values.keys() & _RENTED else _RENTED)
    try:
        return type(site).model_validate(site.model_dump(exclude=dropped, exclude_unset=True) | values, strict=True)
    except ValidationError as error:
        text = "\n".join(messages(error))
        for name, option in SITE_OPTIONS.items():
            text = text.replace(name, option)
        raise SuiteError(text.splitlines()) from error
