"""Build the record of a run from its files. Every run has a record, however it ended."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bench import folder as files
from bench.base import in_words
from bench.figures.cost import price
from bench.figures.flags import COVERED, grade, judge
from bench.figures.metrics import split_energy, window
from bench.meters import windows as accounting
from bench.meters.conditions import gpu_conditions, host_conditions, used_by_run
from bench.meters.meter import Reading
from bench.process import signal_name
from bench.record import (
    EnergyReading,
    Environment,
    Failure,
    GpuConditions,
    HostConditions,
    IdlePower,
    LostAttempt,
    Measurement,
    Observation,
    Quality,
    RunRecord,
    Status,
    Trial,
)
from bench.redact import redact
from bench.run import nodes
from bench.run.own_steps import LEAST_STEPS, Ended, measurement, stalled
from bench.run.reserve import release
from bench.schema import COMMAND, RunSpec, Site
from bench.workloads.command import CommandArgs

_STATUS = {"out_of_memory": Status.OUT_OF_MEMORY, "unsupported": Status.SKIPPED, "invalid": Status.INVALID}
_TAIL_LINES = 40
_ATTEMPTED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)?) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


LOST_COVERED = 0.5
"""Share of a lost attempt from which on the readings of its meters say what it cost at least; they end before it does."""


@dataclass(frozen=True)
class Context:
    """What the runs of an execution share; `trial` is the current one of a search, `nodes` are those of a cluster.

    `place` has the idle power of these nodes, if the folder of the execution does not. `lost` are attempts at runs that were
    lost with their jobs.
    """

    suite: str
    execution: str
    site: Site
    environment: Environment
    gpus: list[str]
    trial: Trial | None = None
    nodes: list[Environment] = field(default_factory=list)
    place: Path | None = None
    lost: dict[str, list[LostAttempt]] = field(default_factory=dict)

    def devices(self, spec: RunSpec) -> list[str]:
        """Return the devices of a run, by rank."""
        if spec.device_type != "gpu":
            return ["cpu"] * spec.world_size
        gpus = [self.gpus]
        if self.nodes:
            gpus = [[gpu.uuid for gpu in node.machine.free_gpus] for node in self.nodes]
        return [gpu for some in gpus[: spec.num_nodes] for gpu in some[: spec.devices_per_node]]


def log_tail(folder: Path, node: int = 0) -> str:
    """Return the last lines of the log of the ranks of a node, without credentials."""
    path = files.LOGS.path(folder, node)
    path = path if path.exists() else folder / files.WORKER_LOG
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return redact("\n".join(text.splitlines()[-_TAIL_LINES:]))


def _stacks(folder: Path) -> list[str]:
    """Return the stack of each rank at its time limit, innermost calls first."""
    shown = []
    for path in files.STACKS.paths(folder):
        lines = path.read_text(errors="replace").splitlines()
        shown += [f"{path.stem}:", *(redact(line) for line in lines[:_TAIL_LINES])]
    return shown


def attempted_bytes(message: str) -> int | None:
    """Return the size of the failed allocation that torch's message names; None where it names none."""
    size = _ATTEMPTED.search(message)
    return max(1, round(float(size[1]) * _UNITS[size[2]])) if size else None


def _failure(folder: Path, spec: RunSpec, end: files.Exit) -> tuple[Status, Failure]:
    """Return how a run failed: its first cause, not the ranks that only lost their peer."""
    tail, nodes = log_tail(folder), files.NODES.find(folder) or []
    hosts, lost = [node.name for node in nodes], [node.exit for node in nodes if node.exit.how == "node_died"]

    def name(rank: int) -> str:
        return f"rank {rank}" + (f" on {hosts[rank // spec.devices_per_node]}" if hosts else "")

    def log(rank: int) -> str:
        return log_tail(folder, rank // spec.devices_per_node if hosts else 0)

    if end.how == "timeout":
        message = f"the run exceeded timeout_seconds = {spec.timeout_seconds:g}; all its processes were ended"
        return Status.TIMEOUT, Failure(type="Timeout", message=message, log_tail="\n".join([tail, *_stacks(folder)]))
    errors = files.read_errors(folder)
    codes = {row.rank: row.exitcode for row in files.RANK_EXITS.find(folder) or []}
    signals = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    only_peers = all(error.kind == "peer" for error in errors)
    if end.how == "node_died" or (lost and errors and only_peers and not signals):
        said = (end.message if end.how == "node_died" else lost[0].message) or "the node process ended during the run"
        return Status.FAILED, Failure(type="NodeDied", message=said, log_tail=tail)
    if signals and only_peers:
        rank, number = next(iter(signals.items()))
        by = signal_name(number)
        killed_for_memory = end.killed_for_memory and number == signal.SIGKILL
        why = " (the kernel ran out of memory)" if killed_for_memory else ""
        status = Status.OUT_OF_MEMORY if killed_for_memory else Status.FAILED
        return status, Failure(type=by, message=f"{name(rank)} was ended by {by}{why}", log_tail=log(rank))
    if errors:
        first = min(errors, key=lambda error: (files.ERROR_KINDS.index(error.kind), error.rank))
        status = _STATUS.get(first.kind, Status.FAILED)
        who = name(first.rank)
        if spec.workload == COMMAND:
            who = hosts[first.rank // spec.devices_per_node] if hosts and first.kind != "invalid" else ""
        who = "" if first.kind == "unsupported" else who  # a rank has nothing to do with it
        message = redact(f"{who}: {first.message}" if who else first.message)
        size = attempted_bytes(message) if status is Status.OUT_OF_MEMORY else None
        return status, Failure(type=first.type, message=message, log_tail=log(first.rank), attempted_bytes=size)
    if codes:
        rank, code = next(iter(codes.items()))
        message = f"{name(rank)} ended with exit code {code}"
        return Status.FAILED, Failure(type="ExitCode", message=message, log_tail=log(rank))
    message = f"the run ended with exit code {end.exitcode} and left no result"
    return Status.FAILED, Failure(type="NoResult", message=message, log_tail=tail)


def _identity(context: Context, spec: RunSpec) -> dict[str, Any]:
    names = {"execution": context.execution, "trial": context.trial}
    return names | {"run_id": spec.run_id, "config_id": spec.config_id}


def skipped(context: Context, spec: RunSpec, reason: str) -> RunRecord:
    """Return the record of a run that is not done, with the reason."""
    return RunRecord(
        **_identity(context, spec),
        suite=context.suite,
        spec=spec,
        status=Status.SKIPPED,
        error=Failure(type="Skipped", message=reason),
        started_at=datetime.now(UTC),
        duration_seconds=0,
        environment=context.environment,
    )


class _Outcome(NamedTuple):
    """How a run ended: a measurement, or an error with what was measured until then, if anything."""

    status: Status
    error: Failure | None
    measured: Measurement | None = None


def _outcome(folder: Path, spec: RunSpec, end: files.Exit) -> _Outcome:
    if spec.workload == COMMAND and end.how in ("timeout", "gone", "node_died"):
        return _of_files(folder, spec, end)
    if not (folder / files.RESULT.name).exists() or not (
        end.how == "stopped" or (end.how, end.exitcode) == ("ended", 0)
    ):
        failure = _failure(folder, spec, end)
        return _Outcome(*failure, files.PARTIAL.find(folder))
    try:
        return _Outcome(Status.OK, None, files.RESULT.read(folder))
    except ValidationError as error:
        message = f"{files.RESULT.name} is not valid: {in_words(error.errors()[0])}"
        return _Outcome(Status.INVALID, Failure(type="InvalidResult", message=message, log_tail=log_tail(folder)))


def _of_files(folder: Path, spec: RunSpec, end: files.Exit) -> _Outcome:
    """Return what is known of a command whose runner has left no end of it: it is ok if it made steps until it was ended."""
    if (result := files.RESULT.find(folder)) is not None:
        return _Outcome(Status.OK, None, result)
    if spec.num_nodes > 1:
        return _Outcome(*_failure(folder, spec, end))
    if end.end_ns <= end.start_ns:  # not even the meters were read
        message = "bench was killed before anything was measured"
        return _Outcome(Status.FAILED, Failure(type="BenchKilled", message=message))
    ended = Ended(exitcode=-signal.SIGKILL, start_ns=end.start_ns, end_ns=end.end_ns, cpu_seconds=0.0)
    steps = files.STEPS.path(folder, files.COMMAND_STEPS)
    measured = measurement(steps, ended, spec.warmup_steps, spec.device_type, CommandArgs.of(spec).printed)
    full = (folder / files.FULL).exists()
    flags = ["ended_early", "disk_full"] if full else ["ended_early"]
    seen = measured.changed(step_flags=[*measured.step_flags, *flags]) if measured.steps >= LEAST_STEPS else None
    failed = bool(files.read_errors(folder))
    if seen is not None and not failed and end.how != "node_died" and not stalled(seen, end.end_ns):
        return _Outcome(Status.OK, None, seen)
    if end.how == "gone" and not failed:
        message = f"bench was killed, and the command made fewer than {LEAST_STEPS} steps, or none for long, until then"
        message += "; the disk of its folder was full for a time, so steps may be missing" * full
        return _Outcome(Status.FAILED, Failure(type="BenchKilled", message=message, log_tail=log_tail(folder)), seen)
    return _Outcome(*_failure(folder, spec, end), files.PARTIAL.find(folder) or seen)


def collect(context: Context, spec: RunSpec, folder: Path) -> RunRecord:
    """Build the record of a run from its files, write it to the run's folder and return it."""
    release(folder)
    end = files.EXIT.find(folder) or files.Exit()
    status, error, measured = _outcome(folder, spec, end)
    if end.suspended and measured is not None:
        message = (
            "the job was suspended during the run, and went on: its times and energy are not those of the training"
        )
        status, error, measured = Status.INVALID, Failure(type="Suspended", message=message), None
    boot_id = context.environment.boot_id or context.environment.host
    traces = nodes.traces(folder, spec, end, boot_id, measured)
    idle = nodes.idle_power_of_nodes(context.place or folder.parent, spec, traces)
    run = observe(context, spec, measured, traces, end, idle)
    run = run.changed(nodes=nodes.node_facts(folder, spec, traces, [node.kind for node in context.nodes]))
    energy, unused = accounting.used(nodes.energy_of_nodes(traces, lambda node: node.whole, spec.meters), run.gpus)
    figures: dict[str, float] = {}
    try:
        figures = window(run)
    except ValueError as impossible:
        status, error = Status.INVALID, Failure(type="ImpossibleFigure", message=str(impossible))
        run = run.changed(measurement=None)
    partial = run.measurement if error is not None else None
    run = run.changed(measurement=None) if partial is not None else run
    seconds = (end.end_ns - end.start_ns) / 1e9
    worth = price(run, energy, seconds, context.site)
    flags = worth.flags | judge(run, figures, meter_failed=bool(end.sidecar_error))
    if run.devices_differ:
        flags.add("devices_differ")
    record = RunRecord(
        **_identity(context, spec),
        **dict(run),
        status=status,
        error=error,
        started_at=end.started_at or datetime.now(UTC),
        duration_seconds=seconds,
        energy=energy,
        unused=unused,
        site=context.site,
        carbon=worth.carbon,
        cost=worth.cost,
        flags=sorted(flags),
        grade=grade(flags) if run.measurement is not None else None,
        partial=partial,
        lost=context.lost.get(spec.run_id, []),
    )
    save_record(record, folder)
    if spec.num_nodes > 1:
        nodes.keep(folder, traces)  # it takes the place of what the record was made from
    return record


def cancelled_attempt(context: Context, spec: RunSpec, folder: Path) -> LostAttempt | None:
    """Return what a cancelled run has cost, by what its nodes have left; None where they do not say how it ended."""
    end = files.EXIT.find(folder)
    if end is None:
        return None
    traces = nodes.traces(folder, spec, end, context.environment.boot_id or context.environment.host, None)
    gpus = context.devices(spec) if spec.device_type == "gpu" else []
    energy, _ = accounting.used(nodes.energy_of_nodes(traces, lambda node: node.whole, spec.meters), gpus)
    parts = [part if all(each.coverage >= LOST_COVERED for each in part) else [] for part in split_energy(energy)]
    measured, estimated = (sum(each.energy_joules for each in part) if part else None for part in parts)
    return LostAttempt(
        nodes=spec.num_nodes,
        seconds=(end.end_ns - end.start_ns) / 1e9,
        energy_joules=measured,
        energy_joules_estimated=estimated,
        energy_at_least=any(each.coverage < COVERED for part in parts for each in part),
        components=sorted({each.component for part in parts for each in part}),
    )


def observe(
    context: Context,
    spec: RunSpec,
    measured: Measurement | None,
    traces: list[nodes.NodeTrace],
    end: files.Exit,
    idle: list[IdlePower],
) -> Observation:
    """Return what was seen of a run: its devices, its idle power, and its measurement with energy and conditions."""
    events = _events(traces[0])
    devices = _devices(measured) or context.devices(spec)
    if spec.workload == COMMAND:
        used = [uuid for uuid in context.gpus if used_by_run(events, uuid, end.start_ns, end.end_ns)]
        for each, node in zip(traces[1:], context.nodes[1:], strict=False):
            gpus = [gpu.uuid for gpu in node.machine.free_gpus]
            used += [uuid for uuid in gpus if used_by_run(_events(each), uuid, each.start_ns, each.end_ns)]
        devices = _used(measured, used, on_cpu=spec.device_type == "cpu") or devices
    run = Observation(
        suite=context.suite,
        spec=spec,
        devices=devices,
        idle=idle,
        environment=context.environment,
    )
    return run if measured is None else run.changed(measurement=_accounted(measured, run, traces))


def _used(measured: Measurement | None, gpus: list[str], *, on_cpu: bool) -> list[str]:
    """Return the devices that a command used, on a CPU one for each process; nothing where that cannot be seen.

    GPUs are those that its processes were seen on by their driver, by hooks, or both. Without hooks the processes of a CPU
    are the ranks that report steps: a printed line does not say how many there are.
    """
    seen = measured.seen.devices if measured is not None and measured.seen is not None else []
    found = dict.fromkeys([*gpus, *(device for device in seen if device != "cpu")])
    if found or seen or measured is None or not on_cpu or measured.step_source == "output":
        return list(found) or seen
    return ["cpu"] * len(measured.ranks) if measured.steps else []


def _devices(measured: Measurement | None) -> list[str]:
    """Return the devices that hooks saw, or that the ranks reported; none unless all did."""
    if measured is not None and measured.seen is not None and measured.seen.devices:
        return measured.seen.devices
    devices = [rank.device for rank in measured.ranks] if measured is not None else []
    return devices if all(devices) else []


def _events(node: nodes.NodeTrace) -> list[Reading]:
    return node.trace.events if node.trace is not None else []


def _accounted(measured: Measurement, run: Observation, traces: list[nodes.NodeTrace]) -> Measurement:
    """Return a measurement with the energy of its window and of its phases, and the conditions during the window."""

    def energy(span: Callable[[nodes.NodeTrace], nodes.TimeSpan | None]) -> list[EnergyReading]:
        return accounting.used(nodes.energy_of_nodes(traces, span, run.spec.meters), run.gpus)[0]

    seen = Counter[str]()
    phases = []
    same = len({tuple(phase.name for phase in node.phases) for node in traces if node.timeline is not None}) <= 1
    for phase in traces[0].phases:
        name, number = phase.name, seen[phase.name]
        spent = energy(partial(nodes.NodeTrace.phase, name=name, number=number)) if same else []
        phases.append(phase.changed(energy=spent))
        seen[name] += 1
    quality = [
        _paid(point, energy(partial(nodes.NodeTrace.until, validation=number)))
        for number, point in enumerate(measured.quality)
    ]
    inference = measured.inference
    if inference is not None and traces[0].inference is not None:
        inference = inference.changed(energy=energy(lambda node: node.inference))
    gpus = []
    for node in traces:
        own = {event.device for event in _events(node)}
        some = run.gpus if len(traces) == 1 else [uuid for uuid in run.gpus if uuid in own]
        gpus += _gpu_conditions(node, some)
    memory = [gpu.memory_used_bytes_max for gpu in gpus if gpu.memory_used_bytes_max]
    return measured.changed(
        energy=energy(lambda node: node.window),
        startup=energy(lambda node: node.startup),
        phases=phases,
        quality=quality,
        inference=inference,
        gpus=gpus,
        host=_host(measured, run.spec, traces),
        peak_memory_bytes=measured.peak_memory_bytes or memory,
    )


def _gpu_conditions(node: nodes.NodeTrace, gpus: Iterable[str]) -> list[GpuConditions]:
    """Return the conditions on the GPUs of a run on their node."""
    events, (start, end, _) = _events(node), node.window or node.whole
    return [gpu_conditions(events, uuid, start, end) for uuid in dict.fromkeys(gpus)] if events else []


def _host(measured: Measurement, spec: RunSpec, traces: list[nodes.NodeTrace]) -> HostConditions | None:
    """Return the conditions on the host; of several nodes, the worst value of each."""
    hosts = []
    for number, node in enumerate(traces):
        ranks = measured.ranks
        if len(traces) > 1:
            ranks = [rank for rank in ranks if rank.rank // spec.devices_per_node == number]
        cpu = [rank.cpu_seconds for rank in ranks if rank.cpu_seconds is not None]
        start, stop, _ = node.window or node.whole
        hosts.append(host_conditions(_events(node), start, stop, sum(cpu) if cpu else None))
    if measured.cpu_seconds is not None:  # of a command it is known for its whole length only
        seconds = [measured.cpu_seconds] if len(traces) == 1 else [node.cpu_seconds for node in traces]
        hosts = [
            host_conditions(_events(node), node.start_ns, node.end_ns, each)
            for node, each in zip(traces, seconds, strict=True)
        ]
    known = [host for host in hosts if host is not None]
    if not known:
        return None
    values = {name: [getattr(host, name) for host in known] for name in HostConditions.model_fields}
    return HostConditions(
        **{name: max((value for value in some if value is not None), default=None) for name, some in values.items()}
    )


def _paid(point: Quality, readings: list[EnergyReading]) -> Quality:
    """Return a point of quality with the energy that the training took up to it."""
    sums = [sum(r.energy_joules for r in some) if some else None for some in split_energy(readings)]
    return point.changed(energy_joules=sums[0], energy_joules_estimated=sums[1])


def save_record(record: RunRecord, folder: Path) -> RunRecord:
    """Write `record.json` into the folder of a run, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    files.RECORD.write(folder, record)
    return record
