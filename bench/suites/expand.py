"""Expansion of a suite into the runs of a machine. All mistakes are found before anything starts, and listed together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from bench import registry
from bench.figures.metrics import parameters
from bench.meters.meter import check_meter
from bench.renamed import current_machine
from bench.schema import AXES, COMMAND, Choice, Machine, RunSpec, Suite, devices_per_copy, word_key
from bench.strategies import catalog
from bench.suites import combine, needs
from bench.suites.load import FIELDS, SuiteError, for_device_type, messages
from bench.suites.publish import publishable
from bench.workloads import command

MAX_RUNS, MAX_DEVICES = 10_000, 1_000_000


@dataclass(frozen=True)
class Expansion:
    """The runs of a suite on a machine, in order of execution; some configurations are skipped.

    `skipped` maps the config_id of a skipped configuration to the reason. `scaling` says what stays constant as devices are
    added: the work per device (`weak`), the total work (`strong`), or neither (`mixed`); `none` for one device count, `own`
    where commands decide on their batches themselves.
    """

    suite: Suite
    runs: list[RunSpec]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def scaling(self) -> Literal["weak", "strong", "mixed", "none", "own"]:
        """Weak or strong scaling, derived from the batch sizes."""
        if len({run.world_size for run in self.runs}) < 2:
            return "none"
        if any(run.batch_size_per_device is None for run in self.runs):
            return "own"
        strong = len({run.global_batch_size for run in self.runs}) == 1
        weak = len({(run.global_batch_size or 0) / run.world_size for run in self.runs}) == 1
        return "weak" if weak else "strong" if strong else "mixed"

    @cached_property
    def to_do(self) -> list[RunSpec]:
        """Runs that are not skipped, in order of execution."""
        return [run for run in self.runs if run.config_id not in self.skipped]

    @cached_property
    def givers(self) -> needs.Givers:
        """The runs whose weights other runs need."""
        return needs.Givers(self.runs)


def expand(suite: Suite, machine: Machine, *, publish: bool = False) -> Expansion:
    """Expand a suite for a machine, without touching the hardware. Raises SuiteError with all mistakes.

    With `publish`, short windows, warm-ups and repeats are raised to the floors of `bench.suites.publish`, and
    configurations that become equal are merged.
    """
    if publish:
        suite = publishable(suite)
    device_types = suite.matrix.get("device_type", [suite.defaults.get("device_type", machine.device_type)])
    mistakes: list[str] = []
    notes: list[str] = []
    specs: dict[str, RunSpec] = {}
    for name in device_types if isinstance(device_types, list) else [device_types]:
        for cell in _cells(suite, current_machine(str(name)), machine, notes):
            try:
                spec = _run_spec(cell, suite, machine)
            except SuiteError as error:
                mistakes += error.messages
                continue
            wrong = list(_workload_mistakes(spec))
            mistakes += wrong
            if spec.config_id in specs and not wrong:
                mistakes.append(f"duplicate runs: {spec.label} appears twice in matrix and include")
            specs[spec.config_id] = spec
    mistakes += command.same_commands(spec for spec in specs.values() if spec.workload == COMMAND)
    mistakes = list(dict.fromkeys(mistakes)) or list(needs.mistakes(specs.values()))
    if mistakes:
        raise SuiteError(mistakes)
    if not specs:
        raise SuiteError(
            [f"suite {suite.name!r} has no runs on this machine: the matrix and include are empty or all excluded"]
        )
    if publish:
        specs = {spec.config_id: spec for spec in map(publishable, specs.values())}
    if len(specs) * suite.repeats > MAX_RUNS:
        raise SuiteError(
            [f"{len(specs)} configurations × {suite.repeats} repeats; at most {MAX_RUNS} runs are allowed"]
        )
    configurations = list(specs.values())
    givers = needs.Givers(configurations)
    skipped = {key: why for key, spec in specs.items() if (why := why_not(spec, machine, givers.of(spec)))}
    skipped = needs.pass_on(configurations, skipped)
    return Expansion(suite, _interleave(configurations, suite.repeats), skipped, notes)


def _cells(suite: Suite, device_type: str, machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield all cells of one device type: the matrix without `exclude`, then `include`; or the ladder."""
    defaults = {"meters": machine.meters, **for_device_type(suite.defaults, device_type), "device_type": device_type}
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
    # Without a matrix and `include`, the defaults are the only configuration.
    for combination in itertools.product(*axes) if axes or not suite.include else []:
        for cell in _with_devices(_merged(defaults, dict(combination)), machine, notes):
            placed = _placed(cell, machine) if any("num_nodes" in rule for rule in excluded) else cell
            if not any(rule and _matches(placed, rule) for rule in excluded):
                yield cell
    for extra in suite.include:
        yield from _with_devices(_merged(defaults, for_device_type(extra, device_type)), machine, notes)


def _rungs(suite: Suite, defaults: dict[str, Any], machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the defaults, then each step of the ladder on top of the previous ones; `devices: auto` is the maximum."""
    cell, below = _merged(defaults, {}), None
    for rung, step in enumerate([{}, *suite.ladder]):
        change = for_device_type(step, defaults["device_type"])
        if rung and not change:
            notes.append(f"ladder: step {rung} has no value for {defaults['device_type']} and is left out")
            continue
        cell = _merged(cell, change)
        *_, most = _with_devices(cell, machine, notes)
        if most == below:
            notes.append(f"ladder: step {rung} changes nothing on this machine and is left out")
            continue
        below = most
        yield most | {"ladder": rung}


def _merged(defaults: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Merge the defaults with a cell; a dotted name sets one entry of a mapping, or one option of an axis."""
    out: dict[str, Any] = {}
    for name, value in [*defaults.items(), *cell.items()]:
        outer, dot, inner = name.partition(".")
        if not dot:
            out[name] = value
            continue
        entries = out.get(outer, {})
        out[outer] = {**(entries if isinstance(entries, dict) else {"name": entries}), inner: value}
    return out


def _matches(cell: dict[str, Any], rule: dict[str, Any]) -> bool:
    def value(name: str) -> Any:
        outer, dot, inner = name.partition(".")
        entry = cell.get(outer)
        return entry.get(inner) if dot and isinstance(entry, dict) else entry

    return all(value(name) in (values if isinstance(values, list) else [values]) for name, values in rule.items())


def available_devices(machine: Machine, device_type: str, threads_per_device: int) -> int:
    """Return the number of free devices: GPUs without other users, or processors divided by threads per device."""
    return len(machine.free_gpus) if device_type == "gpu" else machine.cpu_count // threads_per_device


def _with_devices(cell: dict[str, Any], machine: Machine, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Replace `devices: auto` by 1, 2, 4 ... and the number of free devices; then those of 2, 4 ... and of all nodes."""
    if cell.get("devices") != "auto":
        yield cell
        return
    threads = cell.get("threads_per_device", 1)
    most = available_devices(machine, cell["device_type"], threads if isinstance(threads, int) and threads > 0 else 1)
    counts = _doubled(most) + [most * nodes for nodes in _doubled(machine.num_nodes)[1:]]
    total = cell.get("global_batch_size")
    accumulation = cell.get("gradient_accumulation_steps", 1)
    for devices in counts or [1]:
        if isinstance(total, int) and isinstance(accumulation, int) and total % (_copies(cell, devices) * accumulation):
            notes.append(f"devices: auto leaves out {devices}: it does not divide global_batch_size {total}")
        else:
            yield {**cell, "devices": devices}


def _doubled(most: int) -> list[int]:
    """Return 1, 2, 4 ... and the largest number itself; nothing for 0."""
    counts = [2**k for k in range(20) if 2**k <= most]
    return counts if not most or most in counts else [*counts, most]


_LAYOUT = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")


def _spread(cell: dict[str, Any], machine: Machine, mistakes: list[str]) -> int:
    """Set the nodes of a cell and their devices, by its `devices` or its `layout`; return the number of devices.

    More devices than those of one node take whole nodes, as far as the machine has several.
    """
    devices, layout = cell.pop("devices", 1), cell.pop("layout", None)
    if layout is not None:
        match = _LAYOUT.fullmatch(str(layout))
        if match is None:
            mistakes.append(f"layout: give nodes x devices of each, such as 2x4, not {layout!r}")
            return 1
        cell |= {"num_nodes": int(match[1]), "devices_per_node": int(match[2])}
        if devices not in (1, int(match[1]) * int(match[2])):
            mistakes.append(f"give devices or layout, not both: {devices!r} and {layout!r}")
        return int(match[1]) * int(match[2])
    if not isinstance(devices, int) or isinstance(devices, bool) or not 1 <= devices <= MAX_DEVICES:
        mistakes.append(f"devices: must be a whole number from 1 to {MAX_DEVICES:,}, or auto, not {devices!r}")
        devices = 1
    threads = cell.get("threads_per_device", 1)
    free = available_devices(machine, cell["device_type"], threads if isinstance(threads, int) and threads > 0 else 1)
    if machine.num_nodes == 1 or not free or devices <= free:
        cell["devices_per_node"] = devices
        return devices
    if devices % free:
        below = devices // free * free
        mistakes.append(
            f"devices {devices}: more than the {free} of one node must be a multiple of them, such as {below} or "
            f"{below + free}; other divisions are written as layout: [nodes x devices]"
        )
    cell |= {"num_nodes": max(1, devices // free), "devices_per_node": free}
    return devices


def _placed(cell: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Return a cell with the number of its nodes, for rules; without it where its devices cannot be spread."""
    spread, mistakes = dict(cell), list[str]()
    _spread(spread, machine, mistakes)
    return cell if mistakes else {**cell, "num_nodes": spread.get("num_nodes", 1)}


def _by_node(cell: dict[str, Any]) -> None:
    """Let groups of devices be those of a node where a run crosses nodes and its parallelism leaves their size open."""
    given = cell.get("parallelism")
    choice = dict(given) if isinstance(given, dict) else {"name": given}
    kind = registry.strategies("parallelism").get(str(choice.get("name")))
    group, own = kind.group if kind else None, cell.get("devices_per_node", 1)
    if group and group not in choice and cell.get("num_nodes", 1) > 1 and own > 1 and cell.get("workload") != COMMAND:
        cell["parallelism"] = {**choice, group: own}


def _copies(cell: dict[str, Any], devices: int) -> int:
    """Return how many copies of the model share a global batch; an invalid parallelism is reported elsewhere."""
    try:
        return max(1, devices // devices_per_copy(Choice.model_validate(cell.get("parallelism", "ddp")), devices))
    except (ValueError, TypeError):
        return devices


def _words(cell: dict[str, Any], suite: Suite, mistakes: list[str]) -> dict[str, Any]:
    """Return what a cell has of the words of a suite, and of its kinds of work; append errors to `mistakes`."""
    if not suite.words and not suite.work:
        return {}
    if cell.get("workload") != COMMAND:
        mistakes.append("words and work are for the workload command: name the values of a field in a list")
        return {}
    arguments, words = cell.get("workload_args", {}), dict[str, list[str]]()
    arguments = arguments if isinstance(arguments, dict) else {}
    for name, listed in suite.words.items():
        field = name if name in FIELDS else f"workload_args.{name}"
        value = cell.get(name) if name in FIELDS else arguments.get(name)
        key = word_key(value["name"] if isinstance(value, dict) and "name" in value else value)
        if value is None:
            mistakes.append(
                f"{field}: its values have words; give one of {', '.join(listed)}, or list them in the matrix"
            )
        elif key not in listed:
            mistakes.append(f"{field}: there are no words for {key!r}; {registry.did_you_mean(key, listed)}")
        else:
            words[name] = listed[key]
    for name in suite.work:
        outer, _, inner = name.partition(".")
        if outer != "workload_args" or inner not in arguments:
            known = [f"workload_args.{argument}" for argument in arguments]
            mistakes.append(f"work: {name!r} is no argument of the command: {registry.did_you_mean(name, known)}")
    return {"words": words, "work": suite.work}


def _run_spec(cell: dict[str, Any], suite: Suite, machine: Machine) -> RunSpec:
    """Check one cell and build its spec (repeat 0). Raises SuiteError with all mistakes of the cell."""
    cell, mistakes = dict(cell), list[str]()
    cell |= _words(cell, suite, mistakes)
    devices = _spread(cell, machine, mistakes)
    _by_node(cell)
    launcher = cell.setdefault("launcher", machine.launcher)
    if launcher != machine.launcher and any(each in ("ray", "slurm") for each in (launcher, machine.launcher)):
        here = {"slurm": "inside a Slurm allocation", "ray": "on nodes of Ray"}
        where = here.get(machine.launcher) or f"not {here[launcher]}"
        remedy = "leave the field out, or give --launcher local"
        if machine.launcher == "local":
            remedy = f"leave it out of the runs, and write it at the top of the suite, or give --launcher {launcher}"
        mistakes.append(f"launcher {launcher!r}: this is {where}; {remedy}")
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
        if isinstance(cell.get(kind), dict) and "name" not in cell[kind]:  # options of the default strategy
            cell[kind] = {"name": RunSpec.model_fields[kind].default.name, **cell[kind]}
        try:
            if kind in cell:
                catalog.options(kind, Choice.model_validate(cell[kind]))
        except ValidationError:
            continue  # reported below, with the rest of the spec
        except ValueError as error:
            mistakes += str(error).splitlines()
    arguments = _workload_arguments(cell, mistakes)
    try:
        spec = RunSpec.model_validate(cell, strict=True)
    except ValidationError as error:
        mistakes += messages(error, FIELDS)
    if mistakes:
        raise SuiteError(mistakes)
    try:
        registry.check("launcher", spec.launcher)
        for name in spec.meters:
            check_meter(name)
    except ValueError as error:
        raise SuiteError([str(error)]) from error
    return spec.changed(workload_args=arguments)


def _workload_mistakes(spec: RunSpec) -> Iterator[str]:
    """Yield what the workload of a run says against it."""
    try:
        getattr(registry.load("workload", spec.workload), "check", lambda spec: None)(spec)
    except ValueError as error:
        yield from (f"workload_args: {line}" for line in str(error).splitlines())


def _workload_arguments(cell: dict[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """Check the arguments of the workload and fill in its defaults; append errors to `mistakes`."""
    name, values = cell.get("workload"), cell.get("workload_args", {})
    if not isinstance(name, str) or not isinstance(values, dict):
        return {}
    try:
        arguments = registry.load("workload", name).Args
        checked: dict[str, Any] = arguments.model_validate(values, strict=True).model_dump(
            mode="json", exclude_none=True
        )
        return checked
    except ValidationError as error:
        mistakes += [f"workload_args: {message}" for message in messages(error, arguments.model_fields)]
    except ValueError as error:
        mistakes.append(str(error))
    return {}


def devices_of(gpus: int, processors: int, runs: Iterable[RunSpec]) -> int | None:
    """Return how many devices a node has for runs: GPUs, or shares of its processors; None where their threads differ."""
    threads = {spec.threads for spec in runs}
    return gpus or (processors // threads.pop() if len(threads) == 1 else None)


def why_not(spec: RunSpec, machine: Machine, giver: RunSpec | None) -> str | None:
    """Return why this machine cannot do a run; None if nothing is known against it without touching the hardware."""
    if spec.device_type == "gpu" and not machine.gpus:
        return "needs a GPU; none is visible here (bench doctor says more)"
    free = available_devices(machine, spec.device_type, spec.threads)
    if spec.num_nodes > machine.num_nodes:
        return f"needs {spec.num_nodes} nodes; " + (
            f"there are {machine.num_nodes}" if machine.num_nodes > 1 else "this is one machine"
        )
    if spec.num_nodes > 1 and spec.cold:
        return "cold runs are those of one machine: leave out cold, or take fewer devices"
    if spec.num_nodes > 1 and spec.max_restarts and spec.workload != COMMAND:
        return f"max_restarts works on one node; this needs {spec.num_nodes}: leave it out, or take fewer devices"
    if spec.devices_per_node > free and spec.device_type == "gpu":
        why = [f"GPU {g.index} is used by {', '.join(g.used_by)}" for g in machine.gpus if g.used_by]
        why += [f"GPU {g.index} is cut into slices, which runs cannot use" for g in machine.gpus if g.mig]
        reasons = f": {'; '.join(why)}" if why else ""
        return f"needs {spec.devices_per_node} GPUs, {free} of {len(machine.gpus)} are free{reasons}"
    if spec.devices_per_node > free:
        where = "this machine" if machine.launcher == "local" else "a node"
        return f"needs {spec.devices_per_node} × {spec.threads} threads; {where} has {machine.cpu_count} processors"
    return combine.why_impossible(spec, giver, vendor=machine.vendor if spec.device_type == "gpu" else None)


def _interleave(specs: list[RunSpec], repeats: int) -> list[RunSpec]:
    """Order the repeats: all configurations once, then in reverse, so that a slow minute hits no configuration alone.

    A run always comes after the run whose weights it needs.
    """
    runs = []
    for repeat in range(repeats):
        for spec in needs.in_order(specs if repeat % 2 == 0 else specs[::-1]):
            runs.append(spec.changed(repeat=repeat, seed=(spec.seed + repeat) % 2**31))
    return runs


def only(plan: Expansion, filters: Iterable[str]) -> Expansion:
    """Keep the runs that match all `field=value[,value]` filters, and those whose weights they need.

    A short name stands for an entry of workload_args.
    """
    runs = plan.runs
    for text in filters:
        name, equals, listed = text.partition("=")
        flat = [parameters(run) for run in plan.runs]
        fields = sorted({key for row in flat for key in row})
        full = name if name in fields else f"workload_args.{name}"
        if not equals or full not in fields:
            raise SuiteError([f"--only {text!r}: give field=value[,value]; {registry.did_you_mean(name, fields)}"])
        values = {value.strip() for value in listed.split(",")}
        values = {current_machine(value) for value in values} if name == "device_type" else values
        existing = {str(row.get(full)) for row in flat}
        if any("=" in value for value in values):
            raise SuiteError([f"--only {text!r}: use a separate --only for each field"])
        if values - existing:
            missing, allowed = (", ".join(sorted(some)) for some in (values - existing, existing))
            raise SuiteError([f"--only {text!r}: no run has {name}={missing}; allowed: {allowed}"])
        keep = {run.run_id for run, row in zip(plan.runs, flat, strict=True) if str(row.get(full)) in values}
        runs = [run for run in runs if run.run_id in keep]
        if not runs:
            raise SuiteError([f"--only {text!r}: no run matches all filters"])
    runs = needs.with_givers(runs, plan.runs)
    kept = {run.config_id for run in runs}
    return replace(plan, runs=runs, skipped={key: why for key, why in plan.skipped.items() if key in kept})
