"""Raw measurement -> derived numbers: the only place where they are made.

`row(record)` is what everyone else reads: one flat mapping a run, whose keys are the columns of the DataFrame. Its three
parts are `parameters` (what was asked), `metrics` (numbers) and `labels` (text about the numbers). Absent figures have no
key. Measured energy (`energy_joules`) and the model's figure (`energy_joules_estimated`) are never added.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import resources
from statistics import mean, median, quantiles
from string import Formatter

from bench.record import EnergyReading, Measurement, Provenance, Rank, RunRecord, Status
from bench.schema import AXES, COMMAND, RunSpec, Scalar

TEXT_COLUMNS = (
    "run_id",
    "config_id",
    "suite",
    "execution",
    "status",
    "label",
    "started_at",
    "device_name",
    "dataset",
    "dataset_digest",
    "energy_provenance",
    "energy_components",
    "energy_missing",
    "emissions_basis",
    "cost_basis",
    "region",
    "flags",
    "grade",
    "energy_total",
    "straggler_device",
    "error_type",
    "error_message",
    "host",
    "environment",
    "commit",
    "study",
    "trial",
    "stage",
)

UNKNOWN_OF_COMMANDS = (
    *AXES,
    *("threads_per_device", "gradient_accumulation_steps", "seed", "cold", "warmup_seconds"),
    *("validation", "inference_seconds"),
)
STARTUP_PHASES = ("launch", "start", "find_batch", "build", "warmup")
"""What a run pays once: processes, importing, looking for the batch, building, then compiling and warming up."""
_PEAK_OF = {"bf16_params": "bf16"}
"""Precisions whose products are those of another one in the table of peaks."""
_AS_MEASURED = (
    *("parameters", "trainable_parameters", "flops_per_sample", "loss_first", "loss_last"),
    *("compile_seconds", "memory_estimated_bytes"),
)
SLOWDOWNS = ("hw_slowdown", "hw_thermal", "sw_thermal", "thermal_policy", "power_brake")
"""Reasons of lower clocks that make a measurement unfit. A software power cap is normal on a part at its power limit."""


@cache
def _peak_table() -> dict[tuple[str, str], float]:
    text = resources.files("bench.figures").joinpath("gpu_peak_flops.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {(row["device_name"], row["precision"]): float(row["dense_tflops"]) * 1e12 for row in rows}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a device in FLOP/s for a precision, by its exact name; None where it is not in the table.

    Sources are in `gpu_peak_flops.csv`, beside each row. There is no fallback: H200 is not H20, L40S is not L4.
    """
    return _peak_table().get((device_name, precision))


def split_energy(readings: Iterable[EnergyReading]) -> tuple[list[EnergyReading], list[EnergyReading]]:
    """Split readings into those read from hardware and those of a model."""
    readings = list(readings)
    return [r for r in readings if r.provenance.measured], [r for r in readings if not r.provenance.measured]


def missing_components(readings: Iterable[EnergyReading], gpus: Iterable[str]) -> list[str]:
    """Name what a sum of measured readings lacks: GPUs that were used (`gpu`, or `gpu(1/8)` for one of eight), cpu, dram."""
    measured = [r for r in readings if r.provenance.measured]
    present = {r.component for r in measured}
    if "node" in present:
        return []
    if any(r.scope == "module" for r in measured):
        present |= {"cpu", "dram"}  # a superchip's sensor spans its CPU and memory too
    used = set(gpus)
    unread = used - {r.device for r in measured if r.component == "gpu"}
    out = [component for component in ("cpu", "dram") if component not in present]
    if unread:
        out.insert(0, "gpu" if unread == used else f"gpu({len(unread)}/{len(used)})")
    return out


def device_name(record: RunRecord) -> str:
    """Name of the devices that the run used; several names are joined."""
    if record.spec.device_type == "cpu":
        return record.environment.machine.cpu_model
    names = {gpu.uuid: gpu.name for gpu in record.environment.machine.gpus}
    return " + ".join(sorted({names[uuid] for uuid in record.devices if uuid in names})) or "unknown"


def used_gpus(record: RunRecord) -> list[str]:
    """UUIDs of the GPUs that the ranks used."""
    return record.devices if record.spec.device_type == "cuda" else []


def parameters(spec: RunSpec) -> dict[str, Scalar]:
    """What was asked, flat: one entry a field, mappings by dotted names, `devices` for the number of ranks."""
    flat: dict[str, Scalar] = {"devices": spec.world_size}
    if spec.global_batch_size is not None:
        flat["global_batch_size"] = spec.global_batch_size
    told = names_in_braces(str(spec.workload_args.get("argv")))
    for name, value in spec.model_dump(mode="json", exclude={"meters"}).items():
        if spec.workload == COMMAND and name in UNKNOWN_OF_COMMANDS and name not in told:
            continue  # what the command is not told is not known of it
        if name in AXES:
            choice = getattr(spec, name)
            flat[name] = choice.name
            flat |= {f"{name}.{key}": option for key, option in choice.options.items()}
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items() if entry is not None}
        elif value is not None:
            flat[name] = value
    flat["meters"] = " ".join(spec.meters)
    return flat


def names_in_braces(text: str) -> set[str]:
    """Names that `str.format` would look up in a text; none where its braces do not fit."""
    with suppress(ValueError):
        return {re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(text) if name}
    return set()


def _throughput(measured: Measurement, devices: int) -> dict[str, float]:
    """Rates over the window: global work / the longest window over ranks, so a straggler is not averaged away."""
    seconds = measured.window_seconds
    steps = sorted(measured.step_seconds)
    out: dict[str, float] = {"window_seconds": seconds, "steps": measured.steps}
    for name in _AS_MEASURED:
        value = getattr(measured, name)
        if value is not None:
            out[name] = value
    if steps:
        out["step_seconds_median"] = median(steps)
        out["step_seconds_p95"] = quantiles(steps, n=20, method="inclusive")[-1] if len(steps) > 1 else steps[0]
    for unit, count in (("samples", measured.samples), ("tokens", measured.tokens)):
        if count is not None:
            out[f"{unit}_per_second"] = count / seconds
            out[f"{unit}_per_second_per_device"] = count / seconds / devices
    if measured.flops_per_sample is not None and measured.samples is not None:
        out["flops_per_second_per_device"] = measured.flops_per_sample * measured.samples / seconds / devices
        if measured.tokens is not None:
            out["flops_per_token"] = measured.flops_per_sample * measured.samples / measured.tokens
    if measured.peak_memory_bytes:
        out["peak_memory_bytes"] = max(measured.peak_memory_bytes)
        if measured.memory_estimated_bytes is not None:
            out["memory_estimate_error"] = measured.memory_estimated_bytes / max(measured.peak_memory_bytes) - 1
    if measured.data_wait_seconds is not None:
        out["data_wait_share"] = measured.data_wait_seconds / seconds
    return out


def _ranks(measured: Measurement) -> dict[str, float]:
    """What ranks say of themselves: the slowest against the median, and their device's speed at plain matrix products.

    Shares are means over the ranks, of a few profiled steps. A pipeline's bubble is the time in which a stage computes
    nothing: waiting for others, but also transfers and, on a small model, the host's own work; beside it stands the bubble
    of a schedule whose stages all take the same time, (p - 1) / (m + p - 1) of p stages and m micro-batches.
    """
    out: dict[str, float] = {}
    for name in ("communication_share", "exposed_communication_share", "busy_share"):
        told = [share for rank in measured.ranks if (share := getattr(rank, name)) is not None]
        if told:
            out[name] = mean(told)
    ideal = measured.notes.get("pipeline_bubble_share_ideal")
    if ideal is not None:
        out["pipeline_bubble_share_ideal"] = float(ideal)
        if "busy_share" in out:
            out["pipeline_bubble_share"] = max(0.0, 1 - out["busy_share"])
    forward = [rank.forward_seconds_median for rank in measured.ranks if rank.forward_seconds_median is not None]
    if len(forward) > 1:
        out["straggler_ratio"] = max(forward) / median(forward) if len(forward) > 2 else max(forward) / min(forward)
        out["straggler_rank"] = _slowest(measured).rank
    products = [speed for rank in measured.ranks for speed in rank.matmul_flops_per_second]
    if products:
        out["matmul_flops_per_second"] = max(products)
    return out


def _slowest(measured: Measurement) -> Rank:
    """Return the rank with the longest forward pass."""
    return max(measured.ranks, key=lambda rank: rank.forward_seconds_median or 0)


def _available(record: RunRecord) -> dict[str, float]:
    """What a rank may take: of the smallest GPU that was used, and of its limit. On a CPU the limit alone: ranks share."""
    gpus = [gpu.memory_bytes for gpu in record.environment.machine.gpus if gpu.uuid in used_gpus(record)]
    known = [size for size in (*gpus, record.spec.memory_limit_bytes) if size is not None]
    return {"memory_available_bytes": min(known)} if known else {}


def _energy(record: RunRecord, measured: Measurement) -> dict[str, float]:
    """Energy of the window. Intensities are energy / work, power is energy / time: never means of ratios.

    `energy_joules` is what the readings span. Where they span less than the window (coverage below 1, flagged), power is
    that of the part they span, and intensities are that power × window / work: else they would come out too low.
    """
    out: dict[str, float] = {}
    hardware, model = split_energy(measured.energy)
    for readings, tag in ((hardware, ""), (model, "_estimated")):
        if not readings:
            continue
        joules = sum(r.energy_joules for r in readings)
        watts = sum(r.energy_joules / r.seconds for r in readings)
        out[f"energy_joules{tag}"] = joules
        out[f"power_watts{tag}"] = watts
        whole = watts * measured.window_seconds
        for unit, count in (("sample", measured.samples), ("token", measured.tokens)):
            if count is not None:
                out[f"joules_per_{unit}{tag}"] = whole / count
        for component in {r.component for r in readings}:
            part = sum(r.energy_joules for r in readings if r.component == component)
            out[f"energy_joules_{component}{tag}"] = part
    if hardware:
        out["energy_systematic_joules"] = systematic(hardware)
        above = _above_idle(record, hardware)
        if above is not None:
            out["energy_above_idle_joules"] = above
    return out


def systematic(readings: list[EnergyReading]) -> float:
    """Bound of the error that repeats do not show, in joules: of sensors and of the edges of the window.

    Gains of sensors of one kind err alike, so they add up within a component; components and edges are added in quadrature.
    """
    gains: dict[str, float] = {}
    for reading in readings:
        gains[reading.component] = gains.get(reading.component, 0) + (reading.gain_share or 0) * reading.energy_joules
    return math.hypot(*gains.values(), *(reading.uncertainty_joules or 0 for reading in readings))


def _above_idle(record: RunRecord, hardware: list[EnergyReading]) -> float | None:
    """Energy less idle power × time (attributed): None where the idle power of a part is not known."""
    idle = {(part.component, part.device): part.power_watts_context or part.power_watts for part in record.idle}
    if any((reading.component, reading.device) not in idle for reading in hardware):
        return None
    above = sum(r.energy_joules - idle[r.component, r.device] * r.seconds for r in hardware)
    return above if above >= 0 else None


def _phases(measured: Measurement) -> dict[str, float]:
    """Seconds and joules by phase; `startup` is all that was paid before the first measured step.

    Its energy is absent where it lacks a component of the window's.
    """
    out: dict[str, float] = {}
    for phase in measured.phases:
        sums = {f"phase_{phase.name}_seconds": phase.seconds}
        for readings, tag in zip(split_energy(phase.energy), ("", "_estimated"), strict=True):
            if readings:
                sums[f"phase_{phase.name}_energy_joules{tag}"] = sum(r.energy_joules for r in readings)
        for name, value in sums.items():
            out[name] = out.get(name, 0) + value
    before = [phase.seconds for phase in measured.phases if phase.name in STARTUP_PHASES]
    if before:
        out["startup_seconds"] = sum(before)
    pairs = zip(split_energy(measured.startup), split_energy(measured.energy), ("", "_estimated"), strict=True)
    for readings, window, tag in pairs:
        known, wanted = ({(r.component, r.device) for r in some} for some in (readings, window))
        if known and known >= wanted:
            out[f"startup_energy_joules{tag}"] = sum(r.energy_joules for r in readings)
    return out


def metrics(record: RunRecord) -> dict[str, float]:
    """All numbers of a run. Totals are the whole job; `_per_device` variants say so.

    Raises ValueError where a figure is impossible (MFU above 1): then an input is wrong, and no figure is better.
    """
    out: dict[str, float] = {"duration_seconds": record.duration_seconds}
    for readings, tag in zip(split_energy(record.energy), ("", "_estimated"), strict=True):
        if readings:
            out[f"run_energy_joules{tag}"] = sum(r.energy_joules for r in readings)
    if record.unused:
        out["unused_devices"] = len(record.unused)
        out["unused_energy_joules"] = sum(r.energy_joules for r in record.unused)
    if record.idle:
        out["idle_power_watts"] = sum(part.power_watts for part in record.idle)
    if record.carbon is not None:
        out["emissions_kg"] = record.carbon.emissions_kg
    if record.cost is not None:
        out["cost_usd"] = record.cost.cost_usd
    if record.error is not None and record.error.attempted_bytes is not None:
        out["attempted_bytes"] = record.error.attempted_bytes
    out |= _available(record)
    measured = record.measurement
    if measured is None:
        return out
    if record.spec.batch_size_per_device == "max" and measured.batch_size_per_device is not None:
        found = record.spec.model_copy(update={"batch_size_per_device": measured.batch_size_per_device})
        out["batch_size_per_device"] = measured.batch_size_per_device
        out["global_batch_size"] = found.global_batch_size or 0
    out |= _throughput(measured, record.spec.world_size) | _ranks(measured) | _energy(record, measured)
    out |= _phases(measured) | _conditions(measured) | _inference(measured)
    out |= _utilization(record, out)
    out |= _per_million(record, out) | _quality(record, measured)
    return out


def _inference(measured: Measurement) -> dict[str, float]:
    """The served form of the model: its size, its quality and what compressing took from it, speed and energy of its use.

    The changes are served less trained, by the same held-out samples.
    """
    served = measured.inference
    if served is None:
        return {}
    out: dict[str, float] = {"model_bytes": served.model_bytes, "zeros_share": served.zeros_share}
    for name in ("loss", "accuracy"):
        value = getattr(served, name)
        before = getattr(measured.quality[-1], name) if measured.quality else None
        if value is not None:
            out[f"served_{name}"] = value
            if before is not None:
                out[f"served_{name}_change"] = value - before
    if served.samples is None or served.seconds is None:
        return out
    out["inference_samples_per_second"] = served.samples / served.seconds
    for readings, tag in zip(split_energy(served.energy), ("", "_estimated"), strict=True):
        if readings:
            watts = sum(r.energy_joules / r.seconds for r in readings)
            out[f"inference_joules_per_sample{tag}"] = watts * served.seconds / served.samples
    return out


def _conditions(measured: Measurement) -> dict[str, float]:
    """The worst of what surrounded the window, over GPUs."""
    out: dict[str, float] = {}
    for name in ("temperature_celsius_max", "power_limit_watts", "sm_clock_hz_mean"):
        values = [value for gpu in measured.gpus if (value := getattr(gpu, name)) is not None]
        if values:
            out[name] = max(values) if name.endswith("max") else min(values)
    throttled = [share for gpu in measured.gpus for name, share in gpu.throttled_share.items() if name in SLOWDOWNS]
    if measured.gpus:
        out["throttled_share"] = max(throttled, default=0.0)
    return out


def _utilization(record: RunRecord, known: dict[str, float]) -> dict[str, float]:
    """Model FLOP/s against two peaks of the device: the data sheet's, and that of plain matrix products measured on it."""
    speed = known.get("flops_per_second_per_device")
    if speed is None:
        return {}
    out: dict[str, float] = {}
    if "matmul_flops_per_second" in known:
        out["matmul_utilization"] = speed / known["matmul_flops_per_second"]
    precision = _PEAK_OF.get(record.spec.precision.name, record.spec.precision.name)
    peak = peak_flops(device_name(record), precision) if record.spec.device_type == "cuda" else None
    if peak is None:
        return out
    out["model_flops_utilization"] = speed / peak
    if speed > peak:
        raise ValueError(
            f"MFU {speed / peak:.2f} above 1: {speed:.3g} FLOP/s on {device_name(record)}, whose dense "
            f"{precision} peak is {peak:.3g}"
        )
    return out


def _price(record: RunRecord, seconds: float, joules: dict[str, float | None]) -> dict[str, float]:
    """Carbon and money of a part of a run that took so many seconds, and joules by basis; absent where a part is."""
    out: dict[str, float] = {}
    if record.carbon is not None and (drawn := joules[record.carbon.energy_basis]) is not None:
        out["emissions_kg"] = drawn / 3.6e6 * record.carbon.pue * record.carbon.intensity.kg_per_kwh
    if record.cost is None:
        return out
    hourly = record.cost.usd_per_device_hour or record.cost.usd_capital_per_device_hour or 0.0
    dollars = record.cost.devices * hourly * seconds / 3600
    if record.cost.energy_basis is not None:
        if (drawn := joules[record.cost.energy_basis]) is None:
            return out
        dollars += drawn / 3.6e6 * record.cost.pue * (record.cost.usd_per_kwh or 0)
    return out | {"cost_usd": dollars}


def _per_million(record: RunRecord, known: dict[str, float]) -> dict[str, float]:
    """Carbon and money of the steady window for a million samples or tokens: what longer training pays, start-up left out."""
    out: dict[str, float] = {}
    for unit in ("sample", "token"):
        rate = known.get(f"{unit}s_per_second")
        if rate is not None:
            each = {"measured": known.get(f"joules_per_{unit}"), "estimated": known.get(f"joules_per_{unit}_estimated")}
            joules = {basis: None if value is None else value * 1e6 for basis, value in each.items()}
            out |= {f"{name}_per_million_{unit}s": value for name, value in _price(record, 1e6 / rate, joules).items()}
    return out


def _quality(record: RunRecord, measured: Measurement) -> dict[str, float]:
    """Quality on held-out samples at the end, and what it took to reach the target, from the first step of the training."""
    if not measured.quality:
        return {}
    last, target = measured.quality[-1], record.spec.target
    out = {"validation_loss": last.loss, "trained_steps": float(last.step)}
    if last.accuracy is not None:
        out["validation_accuracy"] = last.accuracy
    if target is None:
        return out
    reached = next((point for point in measured.quality if point.reaches(target)), None)
    out["target_reached"] = float(reached is not None)
    if reached is None:
        return out
    out |= {"seconds_to_target": reached.seconds, "steps_to_target": reached.step}
    joules = {"measured": reached.energy_joules, "estimated": reached.energy_joules_estimated}
    for basis, name in (("measured", "energy_to_target_joules"), ("estimated", "energy_to_target_joules_estimated")):
        if (drawn := joules[basis]) is not None:
            out[name] = drawn
    for name, value in _price(record, reached.seconds, joules).items():
        quantity, unit = name.split("_")
        out[f"{quantity}_to_target_{unit}"] = value
    return out


def labels(record: RunRecord) -> dict[str, str]:
    """Text that belongs to the numbers: identity, outcome, provenance. Keys are among TEXT_COLUMNS."""
    out = {
        "run_id": record.run_id,
        "config_id": record.config_id,
        "suite": record.suite,
        "execution": record.execution,
        "status": str(record.status),
        "label": record.spec.label,
        "started_at": record.started_at.isoformat(),
        "device_name": device_name(record),
        "host": record.environment.host,
        "environment": record.environment.fingerprint,
        "commit": record.environment.folder_commit or record.environment.wattbench_commit or "",
        "flags": " ".join(record.flags),
        "grade": record.grade or "",
    }
    if record.trial is not None:
        out |= {"study": record.trial.study, "trial": str(record.trial.number), "stage": record.trial.stage}
    if record.measurement is not None:
        hardware, model = split_energy(record.measurement.energy)
        shown = hardware or model
        out["energy_provenance"] = str(Provenance.worst([r.provenance for r in shown]))
        out["energy_components"] = " ".join(sorted({r.component for r in shown}))
        missing = missing_components(hardware, used_gpus(record))
        out["energy_missing"] = " ".join(missing)
        out["energy_total"] = "" if not hardware else "partial_total" if missing else "total"
        if "straggler_rank" in _ranks(record.measurement):
            out["straggler_device"] = _slowest(record.measurement).device
        out["dataset"] = record.measurement.dataset or ""
        out["dataset_digest"] = record.measurement.dataset_digest or ""
    if record.carbon is not None:
        out["emissions_basis"] = record.carbon.energy_basis
        out["region"] = record.carbon.intensity.region
    if record.cost is not None:
        basis = record.cost.energy_basis
        out["cost_basis"] = f"{record.cost.mode}_{basis}" if basis else record.cost.mode
    if record.error is not None:
        out["error_type"] = record.error.type
        out["error_message"] = record.error.message
    return {key: value for key, value in out.items() if value != ""}


def row(record: RunRecord) -> dict[str, Scalar]:
    """One flat mapping of a run: its parameters, metrics and labels."""
    return {**parameters(record.spec), **metrics(record), **labels(record)}


def headline(record: RunRecord) -> str:
    """One line on how a run ended, for live progress."""
    if record.status is not Status.OK:
        message = record.error.message.splitlines()[0] if record.error and record.error.message else ""
        wanted = record.error.attempted_bytes if record.error else None
        asked = "" if wanted is None else f"tried to allocate {wanted / 1e9:.3g} GB; "
        return f"{record.status}: {asked}{message}"
    known = metrics(record)
    rate = f"{known['samples_per_second']:.4g} samples/s" if "samples_per_second" in known else ""
    loss = f"loss {known['loss_first']:.3f} -> {known.get('loss_last', math.nan):.3f}" if "loss_first" in known else ""
    if "validation_loss" in known:
        loss = f"validation loss {known['validation_loss']:.3f}"
    return ", ".join(filter(None, [rate, loss])) or f"{known['duration_seconds']:.4g} s"
