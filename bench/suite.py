"""YAML -> Suite -> the runs of a machine. All mistakes are found before anything starts, and told at once."""

from __future__ import annotations

import inspect
import itertools
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench import needs, registry, yamlfile
from bench.metrics import parameters
from bench.schema import AXES, COMMAND, Choice, Machine, RunSpec, Site, Suite, devices_per_copy, why_not_shared

MAX_RUNS = 10_000
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


class SuiteError(Exception):
    """One or more mistakes of the user, each a message of at most two lines."""

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages = list(dict.fromkeys(messages))
        super().__init__("\n".join(self.messages))


@dataclass(frozen=True)
class Plan:
    """What a suite means on a machine: `runs` in the order they are done, and why some configurations are not.

    `skipped` maps a config_id of `runs` to the reason. `scaling` says what stays constant while devices are added:
    the work of a device (`weak`), the work of all (`strong`), neither (`mixed`), or `none` for one device count.
    """

    suite: Suite
    runs: list[RunSpec]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def scaling(self) -> Literal["weak", "strong", "mixed", "none"]:
        """Weak or strong scaling, read off the batch sizes."""
        if len({run.world_size for run in self.runs}) < 2:
            return "none"
        strong = len({run.global_batch_size for run in self.runs}) == 1
        weak = len({(run.global_batch_size or 0) / run.world_size for run in self.runs}) == 1
        return "weak" if weak else "strong" if strong else "mixed"

    @property
    def to_do(self) -> list[RunSpec]:
        """Runs that are not skipped, in order."""
        return [run for run in self.runs if run.config_id not in self.skipped]


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


def expand(suite: Suite, machine: Machine) -> Plan:
    """Multiply a suite out for a machine. Raises SuiteError with all mistakes; asks nothing of the hardware."""
    given = suite.matrix.get("device_type", [suite.defaults.get("device_type", machine.device_type)])
    mistakes: list[str] = []
    notes: list[str] = []
    specs: dict[str, RunSpec] = {}
    for device_type in given if isinstance(given, list) else [given]:
        for cell in _cells(suite, str(device_type), machine, notes):
            try:
                spec = _run_spec(cell)
            except SuiteError as error:
                mistakes += error.messages
                continue
            if spec.config_id in specs:
                mistakes.append(f"duplicate runs: {spec.label} stands twice in matrix and include")
            specs[spec.config_id] = spec
    mistakes = mistakes or list(needs.mistakes(specs.values()))
    if mistakes:
        raise SuiteError(mistakes)
    if not specs:
        raise SuiteError(
            [f"suite {suite.name!r} has no runs on this machine: the matrix and include are empty or all excluded"]
        )
    if len(specs) * suite.repeats > MAX_RUNS:
        raise SuiteError(
            [f"{len(specs)} configurations × {suite.repeats} repeats; at most {MAX_RUNS} runs are allowed"]
        )
    skipped = {key: reason for key, spec in specs.items() if (reason := _why_not(spec, machine))}
    configurations = list(specs.values())
    skipped = needs.pass_on(configurations, skipped)
    return Plan(suite, _interleave(configurations, suite.repeats), skipped, notes)


def _cells(suite: Suite, device_type: str, machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """All cells of one device type: matrix less exclude, then include, with `devices: auto` made numbers; or a ladder."""
    defaults = for_device_type(suite.defaults, device_type) | {"device_type": device_type}
    if suite.ladder:
        yield from _rungs(suite, defaults, machine, notes)
        return
    matrix = for_device_type(suite.matrix, device_type)
    matrix.pop("device_type", None)
    axes = [
        [(name, value) for value in (values if isinstance(values, list) else [values])]
        for name, values in matrix.items()
    ]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MAX_RUNS:
        raise SuiteError([f"matrix: {count} configurations; at most {MAX_RUNS} runs are allowed"])
    excluded = [for_device_type(rule, device_type) for rule in suite.exclude]
    # Without an axis the defaults alone are the one configuration, unless others are listed.
    for combination in itertools.product(*axes) if axes or not suite.include else []:
        for cell in _with_devices(_merged(defaults, dict(combination)), machine, notes):
            if not any(rule and _matches(cell, rule) for rule in excluded):
                yield cell
    for extra in suite.include:
        yield from _with_devices(_merged(defaults, for_device_type(extra, device_type)), machine, notes)


def _rungs(suite: Suite, defaults: dict[str, Any], machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The defaults, then each step of the ladder on top of all before; `devices: auto` is the most that are free."""
    cell, below = _merged(defaults, {}), None
    for rung, step in enumerate([{}, *suite.ladder]):
        change = for_device_type(step, defaults["device_type"])
        if rung and not change:
            notes.append(f"ladder: step {rung} says nothing about {defaults['device_type']} and is left out")
            continue
        cell = _merged(cell, change)
        *_, most = _with_devices(cell, machine, notes)
        if most == below:
            notes.append(f"ladder: step {rung} changes nothing on this machine and is left out")
            continue
        below = most
        yield most | {"ladder": rung}


def _merged(defaults: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Defaults under a cell; a dotted name sets one entry of a mapping, or one option of an axis."""
    out: dict[str, Any] = {}
    for name, value in [*defaults.items(), *cell.items()]:
        outer, dot, inner = name.partition(".")
        if not dot:
            out[name] = value
            continue
        held = out.get(outer, {})
        out[outer] = {**(held if isinstance(held, dict) else {"name": held}), inner: value}
    return out


def _matches(cell: dict[str, Any], rule: dict[str, Any]) -> bool:
    def value(name: str) -> Any:
        outer, dot, inner = name.partition(".")
        held = cell.get(outer)
        return held.get(inner) if dot and isinstance(held, dict) else held

    return all(value(name) in (want if isinstance(want, list) else [want]) for name, want in rule.items())


def available_devices(machine: Machine, device_type: str, threads_per_device: int) -> int:
    """Devices that are here and free: GPUs without other users, or processors / threads of a process."""
    return len(machine.free_gpus) if device_type == "cuda" else machine.cpu_count // threads_per_device


def _with_devices(cell: dict[str, Any], machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Replace `devices: auto` by 1, 2, 4 ... up to what is free, with that number itself last."""
    if cell.get("devices") != "auto":
        yield cell
        return
    threads = cell.get("threads_per_device", 1)
    most = available_devices(machine, cell["device_type"], threads if isinstance(threads, int) and threads > 0 else 1)
    counts = [2**k for k in range(20) if 2**k <= most]
    if most and most not in counts:
        counts.append(most)
    total = cell.get("global_batch_size")
    accumulation = cell.get("gradient_accumulation_steps", 1)
    for devices in counts or [1]:
        if isinstance(total, int) and isinstance(accumulation, int) and total % (_copies(cell, devices) * accumulation):
            notes.append(f"devices: auto leaves out {devices}: it does not divide global_batch_size {total}")
        else:
            yield {**cell, "devices": devices}


def _copies(cell: dict[str, Any], devices: int) -> int:
    """Return between how many copies of the model a global batch is divided; a wrong parallelism is told elsewhere."""
    try:
        return max(1, devices // devices_per_copy(Choice.model_validate(cell.get("parallelism", "ddp")), devices))
    except (ValueError, TypeError):
        return devices


def _run_spec(cell: dict[str, Any]) -> RunSpec:
    """Check one cell and build its spec (repeat 0). Raises SuiteError with all mistakes of the cell."""
    cell, mistakes = dict(cell), []
    devices = cell.pop("devices", 1)
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        mistakes.append(f"devices: must be a whole number of at least 1, or auto, not {devices!r}")
        devices = 1
    cell["devices_per_node"] = devices
    if "global_batch_size" in cell:
        total, accumulation = cell.pop("global_batch_size"), cell.get("gradient_accumulation_steps", 1)
        copies = _copies(cell, devices)
        accumulation = accumulation if isinstance(accumulation, int) and accumulation > 0 else 1
        if "batch_size_per_device" in cell:
            mistakes.append("give global_batch_size (strong scaling) or batch_size_per_device (weak scaling), not both")
        elif not isinstance(total, int) or total < 1 or total % (copies * accumulation):
            shared = f"{devices} devices" if copies == devices else f"{copies} copies of the model"
            parts = f"{shared} × {accumulation} accumulation steps"
            mistakes.append(f"global_batch_size {total!r} is no multiple of {parts}")
            cell["batch_size_per_device"] = 1
        else:
            cell["batch_size_per_device"] = total // (copies * accumulation)
    if cell.get("measure_steps") is None and cell.get("measure_seconds") is None and cell.get("workload") != COMMAND:
        cell["measure_seconds"] = 3.0
    for kind in AXES:
        if isinstance(cell.get(kind), dict) and "name" not in cell[kind]:  # options of what it is by default
            cell[kind] = {"name": RunSpec.model_fields[kind].default.name, **cell[kind]}
        try:
            if kind in cell:
                _check_options(kind, Choice.model_validate(cell[kind]))
        except ValidationError:
            continue  # told below, with the rest of the spec
        except ValueError as error:
            mistakes.append(str(error))
    arguments = _workload_arguments(cell, mistakes)
    try:
        spec = RunSpec.model_validate(cell, strict=True)
    except ValidationError as error:
        mistakes += messages(error, FIELDS)
    if mistakes:
        raise SuiteError(mistakes)
    spec = spec.model_copy(update={"workload_args": arguments})
    try:
        getattr(registry.load("workload", spec.workload), "check", lambda spec: None)(spec)
    except ValueError as error:
        raise SuiteError([f"workload_args: {error}"]) from error
    return spec


def _workload_arguments(cell: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """Check the arguments of the workload and fill in its defaults; add what is wrong to `mistakes`."""
    name, given = cell.get("workload"), cell.get("workload_args", {})
    if not isinstance(name, str) or not isinstance(given, dict):
        return {}
    try:
        arguments = registry.load("workload", name).Args
        checked: dict[str, Any] = arguments.model_validate(given, strict=True).model_dump(
            mode="json", exclude_none=True
        )
        return checked
    except ValidationError as error:
        mistakes += [f"workload_args: {message}" for message in messages(error, arguments.model_fields)]
    except ValueError as error:
        mistakes.append(str(error))
    return {}


def _check_options(kind: str, choice: Choice) -> None:
    """Check the options of an axis against the keyword arguments of what it names. Raises ValueError."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(registry.load(kind, choice.name)).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, value in choice.options.items():
        if name not in known:
            hint = registry.did_you_mean(name, known) if known else "it has none"
            raise ValueError(f"{kind} {choice.name!r} has no option {name!r}: {hint}")
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type(known[name])]
        accepted = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(known[name], bool):
            raise ValueError(f"{kind} {choice.name!r}: {name} must be {wanted}, not {value!r}")


def _why_not(spec: RunSpec, machine: Machine) -> str | None:
    """Reason why this machine cannot do a run; None if it can, as far as is known without the hardware."""
    if spec.device_type == "cuda" and not machine.gpus:
        return "needs an NVIDIA GPU; none is visible here (bench doctor says more)"
    free = available_devices(machine, spec.device_type, spec.threads_per_device)
    if spec.world_size > free and spec.device_type == "cuda":
        why = [f"GPU {g.index} is used by {', '.join(g.used_by)}" for g in machine.gpus if g.used_by]
        why += [f"GPU {g.index} is cut into slices (MIG), which runs cannot use" for g in machine.gpus if g.mig]
        reasons = f": {'; '.join(why)}" if why else ""
        return f"needs {spec.world_size} GPUs, {free} of {len(machine.gpus)} are free{reasons}"
    if spec.world_size > free:
        return f"needs {spec.world_size} × {spec.threads_per_device} threads, {machine.cpu_count} processors are here"
    if spec.precision.name == "tf32" and spec.device_type == "cpu":
        return "tf32 exists on NVIDIA GPUs only"
    return why_not_shared(spec)


def _interleave(specs: list[RunSpec], repeats: int) -> list[RunSpec]:
    """All configurations once, then all again in the other direction: a slow minute hits no configuration alone.

    In either direction a run comes after the one whose weights it needs.
    """
    runs = []
    for repeat in range(repeats):
        for spec in needs.in_order(specs if repeat % 2 == 0 else specs[::-1]):
            runs.append(spec.model_copy(update={"repeat": repeat, "seed": (spec.seed + repeat) % 2**31}))
    return runs


def only(plan: Plan, filters: Iterable[str]) -> Plan:
    """Keep the runs that match all `field=value[,value]` filters, and those whose weights they need.

    A short name stands for an entry of workload_args.
    """
    runs = plan.runs
    for text in filters:
        name, equals, wanted = text.partition("=")
        flat = [parameters(run) for run in plan.runs]
        known = sorted({key for row in flat for key in row})
        full = name if name in known else f"workload_args.{name}"
        if not equals or full not in known:
            raise SuiteError([f"--only {text!r}: give field=value[,value]; {registry.did_you_mean(name, known)}"])
        values = {value.strip() for value in wanted.split(",")}
        there = {str(row.get(full)) for row in flat}
        if any("=" in value for value in values):
            raise SuiteError([f"--only {text!r}: give each field an --only of its own"])
        if values - there:
            strangers = ", ".join(sorted(values - there))
            raise SuiteError([f"--only {text!r}: no run has {name}={strangers}; there are {', '.join(sorted(there))}"])
        keep = {run.run_id for run, row in zip(plan.runs, flat, strict=True) if str(row.get(full)) in values}
        runs = [run for run in runs if run.run_id in keep]
        if not runs:
            raise SuiteError([f"--only {text!r} leaves no run together with the other filters"])
    runs = needs.with_givers(runs, plan.runs)
    kept = {run.config_id for run in runs}
    return replace(plan, runs=runs, skipped={key: why for key, why in plan.skipped.items() if key in kept})
