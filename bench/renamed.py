"""Names that stored runs of version 0.1 use -> today's: records, rows of the store, files of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ESTIMATED = re.compile(r"_estimated_(joules|watts)(_[a-z]+)?$")
_NAMES = {"quality": "grade", "workload_args.checkpoint": "workload_args.pretrained"}
_MEMORY = {"checkpoint": "recompute"}
_FLAGS = {"fewer_devices": "devices_differ"}
MACHINES = {"cuda": "gpu"}
"""Former names of kinds of machines, and today's."""


def current_machine(name: Any) -> Any:
    """Return a kind of machine by today's name: `cuda` -> `gpu`."""
    return MACHINES.get(name, name) if isinstance(name, str) else name


def former_machine(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a spec with the kind of machine by its former name: `gpu` -> `cuda`."""
    former = {today: name for name, today in MACHINES.items()}
    return {**spec} | (
        {"device_type": former.get(spec["device_type"], spec["device_type"])} if "device_type" in spec else {}
    )


def current_flags(flags: Iterable[str]) -> list[str]:
    """Return flags under today's names, each once."""
    return list(dict.fromkeys(_FLAGS.get(flag, flag) for flag in flags))


def current_name(name: str) -> str:
    """Return today's name of a column: `energy_estimated_joules` -> `energy_joules_estimated`."""
    return _NAMES.get(name) or _ESTIMATED.sub(r"_\1\2_estimated", name)


def current_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat row of a run under today's names; one of today comes back as it is."""
    out = {current_name(name): value for name, value in row.items()}
    if "device_type" in out:
        out["device_type"] = current_machine(out["device_type"])
    if out.get("workload") == "command":
        out.pop("batch_size_cap", None)  # nobody asked for it
    if isinstance(flags := out.get("flags"), str):
        out["flags"] = " ".join(current_flags(flags.split()))
    if (memory := out.get("memory")) in _MEMORY:
        out["memory"] = _MEMORY[memory]
        out["label"] = re.sub(rf" {memory}\b", f" {_MEMORY[memory]}", str(out.get("label", "")))
    return out


def current_request(spec: Any) -> Any:
    """Return the content of a spec without the threads of a command for which nobody asked: earlier versions wrote them."""
    earlier = isinstance(spec, dict) and spec.get("workload") == "command" and "batch_size_cap" in spec
    return {name: spec[name] for name in spec if name != "threads_per_device"} if earlier else spec


def current_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `record.json` of schema version 1 as one of version 2."""
    out = {current_name(name): value for name, value in record.items()} | {"schema_version": 2}
    if isinstance(spec := record.get("spec"), dict):
        out["spec"] = _spec(spec)
    if isinstance(measured := record.get("measurement"), dict):
        points = [{current_name(name): value for name, value in point.items()} for point in measured.get("quality", [])]
        out["measurement"] = measured | {"quality": points}
    return out


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    arguments = spec.get("workload_args", {})
    out = spec | {"workload_args": {("pretrained" if k == "checkpoint" else k): v for k, v in arguments.items()}}
    memory = spec.get("memory")
    if isinstance(memory, dict):
        out["memory"] = memory | {"name": _MEMORY.get(memory["name"], memory["name"])}
    elif memory is not None:
        out["memory"] = _MEMORY.get(memory, memory)
    return out


def former_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a spec under the names of version 0.1, whose hash identifies stored configurations."""
    former = {today: name for name, today in _MEMORY.items()}
    out = former_machine(spec)
    if arguments := spec.get("workload_args"):
        out["workload_args"] = {("checkpoint" if k == "pretrained" else k): v for k, v in arguments.items()}
    if (memory := spec.get("memory")) in former:
        out["memory"] = former[memory]
    return out
