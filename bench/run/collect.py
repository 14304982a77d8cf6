"""The files of a run -> its record. Whatever became of the run, there is one."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.figures.cost import recost
from bench.figures.flags import judge
from bench.figures.metrics import metrics, split_energy, used_gpus
from bench.files import read_json, write_text
from bench.meters import windows as accounting
from bench.meters.conditions import gpu_conditions, host_conditions, used_by_run
from bench.meters.meter import Reading
from bench.meters.trace import Trace
from bench.process import signal_name
from bench.record import EnergyReading, Environment, Failure, Measurement, Phase, Quality, RunRecord, Status, Trial
from bench.redact import redact
from bench.schema import COMMAND, MEASURE, RunSpec, Site

_WORST_FIRST = ("out_of_memory", "unsupported", "invalid", "failed", "peer")
_STATUS = {"out_of_memory": Status.OUT_OF_MEMORY, "unsupported": Status.SKIPPED, "invalid": Status.INVALID}
_TAIL_LINES = 40
_ATTEMPTED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)?) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Context:
    """What runs of an execution have in common; `trial` is that of a search."""

    suite: str
    execution: str
    site: Site
    environment: Environment
    gpus: list[str]
    trial: Trial | None = None

    def devices(self, spec: RunSpec) -> list[str]:
        """Devices of the ranks of a run, by rank."""
        if spec.device_type == "cuda":
            return self.gpus[: spec.world_size]
        return ["cpu"] * spec.world_size


def log_tail(folder: Path) -> str:
    """Return the last lines of the log of the ranks, without credentials."""
    try:
        with (folder / "worker.log").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return redact("\n".join(text.splitlines()[-_TAIL_LINES:]))


def _stacks(folder: Path) -> list[str]:
    """Return where each rank was at its time limit, the innermost calls of its threads first."""
    shown = []
    for path in sorted(folder.glob("stack-*.txt")):
        lines = path.read_text(errors="replace").splitlines()
        shown += [f"{path.stem}:", *(redact(line) for line in lines[:_TAIL_LINES])]
    return shown


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for memory since boot; None where it does not say."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None


def attempted_bytes(message: str) -> int | None:
    """Read from torch's message how much memory it asked for in vain; None where it does not say."""
    found = _ATTEMPTED.search(message)
    return max(1, round(float(found[1]) * _UNITS[found[2]])) if found else None


def _failure(folder: Path, spec: RunSpec, end: dict[str, Any], *, killed_for_memory: bool) -> tuple[Status, Failure]:
    """Find out how a run failed: the first cause, not the ranks that only lost their peer."""
    tail = log_tail(folder)
    if end["how"] == "timeout":
        message = f"did not end within timeout_seconds = {spec.timeout_seconds:g}; all its processes were ended"
        return Status.TIMEOUT, Failure(type="Timeout", message=message, log_tail="\n".join([tail, *_stacks(folder)]))
    if end["how"] == "node_died":
        return Status.FAILED, Failure(type="NodeDied", message="the node process ended during the run", log_tail=tail)
    errors = [error for path in sorted(folder.glob("error-*.json")) if (error := read_json(path)) is not None]
    codes = {row["rank"]: row["exitcode"] for row in read_json(folder / "ranks.json") or []}
    signals = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if signals and not any(error["kind"] != "peer" for error in errors):
        rank, number = next(iter(signals.items()))
        name = signal_name(number)
        killed_for_memory = killed_for_memory and number == signal.SIGKILL
        why = " (the kernel ran out of memory)" if killed_for_memory else ""
        status = Status.OUT_OF_MEMORY if killed_for_memory else Status.FAILED
        return status, Failure(type=name, message=f"rank {rank} was ended by {name}{why}", log_tail=tail)
    if errors:
        first = min(errors, key=lambda error: (_WORST_FIRST.index(error["kind"]), error["rank"]))
        status = _STATUS.get(first["kind"], Status.FAILED)
        everywhere = spec.workload == COMMAND or first["kind"] == "unsupported"  # no rank could do it
        where = "" if everywhere else f"rank {first['rank']}: "
        message = redact(f"{where}{first['message']}")
        wanted = attempted_bytes(message) if status is Status.OUT_OF_MEMORY else None
        return status, Failure(type=first["type"], message=message, log_tail=tail, attempted_bytes=wanted)
    if codes:
        rank, code = next(iter(codes.items()))
        return Status.FAILED, Failure(
            type="ExitCode", message=f"rank {rank} ended with exit code {code}", log_tail=tail
        )
    message = f"the run ended with exit code {end.get('exitcode')} and left no result"
    return Status.FAILED, Failure(type="NoResult", message=message, log_tail=tail)


def skipped(context: Context, spec: RunSpec, reason: str) -> RunRecord:
    """Record a run that is not done, and why."""
    return RunRecord(
        run_id=spec.run_id,
        config_id=spec.config_id,
        suite=context.suite,
        execution=context.execution,
        trial=context.trial,
        spec=spec,
        status=Status.SKIPPED,
        error=Failure(type="Skipped", message=reason),
        started_at=datetime.now(UTC),
        duration_seconds=0,
        environment=context.environment,
    )


def collect(context: Context, spec: RunSpec, folder: Path, *, killed_for_memory: bool = False) -> RunRecord:
    """Read what a run left behind and write `record.json`."""
    end = read_json(folder / "exit.json") or {"how": "node_died", "exitcode": None}
    measured = error = None
    status = Status.OK
    result = folder / "result.json"
    if end["how"] == "ended" and end["exitcode"] == 0 and result.exists():
        try:
            measured = Measurement.model_validate_json(result.read_text())
        except ValidationError as problem:
            message = f"result.json is not valid: {problem.errors()[0]['msg']}"
            status, error = Status.INVALID, Failure(type="InvalidResult", message=message, log_tail=log_tail(folder))
    else:
        status, error = _failure(folder, spec, end, killed_for_memory=killed_for_memory)
    record = RunRecord(
        run_id=spec.run_id,
        config_id=spec.config_id,
        suite=context.suite,
        execution=context.execution,
        trial=context.trial,
        spec=spec,
        status=status,
        error=error,
        started_at=datetime.fromisoformat(end["started_at"]) if "started_at" in end else datetime.now(UTC),
        duration_seconds=(end.get("end_ns", 0) - end.get("start_ns", 0)) / 1e9,
        devices=_devices(measured) or context.devices(spec),
        idle=accounting.idle_power(folder.parent, spec.meters),
        measurement=measured,
        environment=context.environment,
    )
    trace = accounting.read_trace(folder)
    record = with_energy(record, trace, end.get("start_ns", 0), end.get("end_ns", 0))
    record = recost(record, context.site)
    return save(_checked(judge(record, context.site, meter_failed=bool(end.get("sidecar_error")))), folder)


def _devices(measured: Measurement | None) -> list[str]:
    """Devices as the ranks reported them."""
    devices = [rank.device for rank in measured.ranks] if measured is not None else []
    return devices if all(devices) else []


def with_energy(record: RunRecord, trace: Trace | None, start_ns: int, end_ns: int) -> RunRecord:
    """Put the energy of the whole run, of its window and of its phases into a record, and what surrounded the window."""
    meters, measured, events = record.spec.meters, record.measurement, trace.events if trace is not None else []
    if record.spec.workload == COMMAND and record.spec.device_type == "cuda":
        record = _seen_devices(record, events, start_ns, end_ns)
    gpus = used_gpus(record)
    boot_id = record.environment.boot_id or record.environment.host
    readings = accounting.over_nodes([(boot_id, accounting.energy(trace, start_ns, end_ns, meters))])
    whole, unused = accounting.used(readings, gpus)
    if measured is not None:

        def own(start: int, end: int, without: Sequence[Phase] = ()) -> list[EnergyReading]:
            pauses = [(phase.start_ns, phase.end_ns) for phase in without]
            return accounting.used(accounting.energy(trace, start, end, meters, pauses), gpus)[0]

        phases = [
            phase.model_copy(update={"energy": own(phase.start_ns, phase.end_ns)})
            for phase in accounting.contiguous(measured.phases, start_ns, end_ns)
        ]
        steady = [phase for phase in phases if phase.name == "steady"]
        edges = (steady[0].start_ns, steady[-1].end_ns) if steady else (start_ns, end_ns)
        pauses = [phase for phase in phases if phase.name != "steady" and edges[0] <= phase.start_ns < edges[1]]
        probes = [phase for phase in phases if phase.name == "probe" and phase.end_ns <= edges[0]]
        cpu = [rank.cpu_seconds for rank in measured.ranks if rank.cpu_seconds is not None]
        training = [phase.start_ns for phase in phases if phase.name == "warmup"]
        found = [gpu_conditions(events, uuid, *edges) for uuid in dict.fromkeys(gpus)] if events else []
        inference = measured.inference
        if inference is not None and inference.start_ns is not None and inference.end_ns is not None:
            inference = inference.model_copy(update={"energy": own(inference.start_ns, inference.end_ns)})
        memory = [gpu.memory_used_bytes_max for gpu in found if gpu.memory_used_bytes_max]
        measured = measured.model_copy(
            update={
                "energy": own(*edges, pauses) if steady else [],
                "startup": own(start_ns, edges[0], probes) if steady else [],
                "phases": phases,
                "quality": [
                    _paid(point, own(training[0], point.read_ns, probes) if training else [])
                    for point in measured.quality
                ],
                "inference": inference,
                "gpus": found,
                "host": host_conditions(events, *edges, sum(cpu) if cpu else None),
                "peak_memory_bytes": measured.peak_memory_bytes or memory,
            }
        )
    return record.model_copy(update={"energy": whole, "unused": unused, "measurement": measured})


def _paid(point: Quality, readings: list[EnergyReading]) -> Quality:
    """Put the energy of the training so far beside the quality that it bought."""
    sums = [sum(r.energy_joules for r in some) if some else None for some in split_energy(readings)]
    return point.model_copy(update={"energy_joules": sums[0], "energy_joules_estimated": sums[1]})


def _seen_devices(record: RunRecord, events: list[Reading], start_ns: int, end_ns: int) -> RunRecord:
    """Name the GPUs that a command was seen to use; where its processes cannot be seen those that it was given.

    What is measured without having been asked for so many devices (bench measure) has as many as it was seen to use.
    """
    devices = [uuid for uuid in record.devices if used_by_run(events, uuid, start_ns, end_ns)] or record.devices
    spec = record.spec
    if record.suite == MEASURE:
        spec = spec.model_copy(update={"devices_per_node": len(devices)})
    return record.model_copy(update={"devices": devices, "spec": spec})


def _checked(record: RunRecord) -> RunRecord:
    """Turn a record whose numbers are impossible into an invalid one."""
    try:
        metrics(record)
    except ValueError as error:
        why = Failure(type="ImpossibleFigure", message=str(error))
        return record.model_copy(update={"status": Status.INVALID, "measurement": None, "grade": None, "error": why})
    return record


def save(record: RunRecord, folder: Path) -> RunRecord:
    """Write `record.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "record.json", record.model_dump_json(indent=1) + "\n")
    return record
