"""Derived numbers of a run; no other module computes them.

`row(record)` is one flat mapping per run, whose keys are the columns of the DataFrame. Its three parts are `parameters`
(what was asked), `metrics` (numbers) and `labels` (text). A figure that is unknown has no key. Measured energy
(`energy_joules`) and estimated energy (`energy_joules_estimated`) are never added.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib import resources
from statistics import mean, median, quantiles

from bench.figures.nodes import node_names, slow_node
from bench.record import EnergyReading, Measurement, Observation, Provenance, Rank, RunRecord, Status
from bench.schema import AXES, COMMAND, RunSpec, Scalar

TEXT_COLUMNS = (
    *("run_id", "config_id", "suite", "execution", "status", "label", "started_at", "device_name", "dataset"),
    *("dataset_digest", "energy_provenance", "energy_components", "energy_missing", "energy_total", "emissions_basis"),
    *("cost_basis", "region", "site", "flags", "grade", "error_type", "error_message", "host"),
    *("straggler_device", "straggler_node_name", "node_names"),
    *("environment", "commit", "study", "trial", "stage", "work", "script_torch", "script_python"),
)
"""Columns of a row that hold text."""
STARTUP_PHASES = ("launch", "start", "find_batch", "build", "warmup")
"""Phases that a run pays for once."""
OWN = "own."
"""Start of the names of columns with metrics of the user."""
_PEAK_OF = {"bf16_params": "bf16"}
"""Precisions whose matrix products have the peak of another precision."""
_PLAIN_OPTIMIZERS = {"AdamW": "adamw", "Adam": "adam", "SGD": "sgd"}
"""Classes of torch whose names an axis has, too."""
_AS_MEASURED = (
    *("parameters", "trainable_parameters", "flops_per_sample", "loss_first", "loss_last"),
    *("compile_seconds", "memory_estimated_bytes"),
)
SLOWDOWNS = ("hw_slowdown", "hw_thermal", "sw_thermal", "thermal_policy", "power_brake")
"""Reasons for lower clocks that spoil a measurement. A software power cap is normal for a GPU at its power limit."""


@cache
def _peak_table() -> dict[tuple[str, str], float]:
    text = resources.files("bench.figures").joinpath("gpu_peak_flops.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {(row["device_name"], row["precision"]): float(row["dense_tflops"]) * 1e12 for row in rows}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the dense peak of a device in FLOP/s for a precision; None where its exact name is not in the table.

    `gpu_peak_flops.csv` gives the source of each row. There is no fallback: H200 is not H20, L40S is not L4.
    """
    return _peak_table().get((device_name, precision))


def split_energy(readings: Iterable[EnergyReading]) -> tuple[list[EnergyReading], list[EnergyReading]]:
    """Split readings into measured and estimated ones."""
    readings = list(readings)
    return [r for r in readings if r.provenance.measured], [r for r in readings if not r.provenance.measured]


def _by_tag(readings: Iterable[EnergyReading]) -> list[tuple[list[EnergyReading], str]]:
    """Return measured and estimated readings, as far as there are any, with the end of the names of their sums."""
    return [(some, tag) for some, tag in zip(split_energy(readings), ("", "_estimated"), strict=True) if some]


def missing_components(readings: Iterable[EnergyReading], gpus: Iterable[str]) -> list[str]:
    """Name the components that a sum of measured readings lacks: cpu, dram, gpu (`gpu(1/8)`: one of eight used GPUs)."""
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


def device_name(record: Observation) -> str:
    """Return the name of the devices that the run used; several names are joined."""
    if record.on_cpu:
        return record.environment.machine.cpu_model
    names = {gpu.uuid: gpu.name for gpu in record.environment.machine.gpus}
    return " + ".join(sorted({names[uuid] for uuid in record.devices if uuid in names})) or "unknown"


_WHERE_SET = ("open_devices", "max_restarts")
"""Fields that are no column where they have their default: rows of earlier versions do not have them."""


def parameters(spec: RunSpec) -> dict[str, Scalar]:
    """Return what was asked, flat: one entry per field, dotted names for mappings, `devices` for the number of ranks."""
    flat: dict[str, Scalar] = {"devices": spec.world_size}
    fields = spec.model_dump(mode="json", exclude={"meters", "words", "work", *_WHERE_SET})
    if spec.global_batch_size is not None and "batch_size_per_device" in fields:
        flat["global_batch_size"] = spec.global_batch_size
    for name, value in fields.items():
        if name in AXES:
            choice = getattr(spec, name)
            flat[name] = choice.name
            flat |= {f"{name}.{key}": option for key, option in choice.options.items()}
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items() if entry is not None}
        elif value is not None:
            flat[name] = value
    flat |= {name: getattr(spec, name) for name in _WHERE_SET if getattr(spec, name)}
    flat["meters"] = " ".join(spec.meters)
    return flat


def configured(record: RunRecord) -> dict[str, Scalar]:
    """Return what was asked, flat, with what hooks saw of a command in its place.

    Text alone; numbers that were seen are in `metrics`.
    """
    asked = parameters(record.spec) | ({"device_type": "cpu"} if record.on_cpu else {})
    seen = record.measurement.seen if record.measurement is not None else None
    if seen is None:
        return asked
    compiled = None if seen.compiled is None else "default" if seen.compiled else "eager"
    optimizer = None if seen.optimizer is None else _PLAIN_OPTIMIZERS.get(seen.optimizer, seen.optimizer)
    facts = {"precision": seen.precision, "parallelism": seen.parallelism, "optimizer": optimizer, "compile": compiled}
    return asked | {name: fact for name, fact in facts.items() if fact is not None}


def _work_of_steps(measured: Measurement, devices: int) -> dict[str, float]:
    """Return the batch of a command, where all steps had one: seen in its passes, or its samples / its steps."""
    out: dict[str, float] = {}
    whole, rest = divmod(measured.samples or 0, measured.steps) if measured.steps else (0, 0)
    if whole and not rest:
        out["global_batch_size"] = whole
        if not whole % devices:
            out["batch_size_per_device"] = whole // devices
    seen = measured.seen
    if seen is not None and seen.batch_size is not None:
        out["batch_size_per_device"] = seen.batch_size
    if seen is not None and seen.threads is not None:
        out["threads_seen"] = seen.threads
    return out


def _seen(record: Observation) -> RunSpec:
    """Return the spec with the number of devices and the batch size that were seen in place of those that were asked."""
    fields: dict[str, int] = {}
    if record.device_count != record.spec.world_size:
        nodes = 1 if record.device_count % record.spec.num_nodes else record.spec.num_nodes
        fields |= {"num_nodes": nodes, "devices_per_node": record.device_count // nodes}
    if record.spec.batch_size_per_device == "max" and record.measurement and record.measurement.batch_size_per_device:
        fields["batch_size_per_device"] = record.measurement.batch_size_per_device
    return record.spec.changed(**fields) if fields else record.spec


def _throughput(measured: Measurement, devices: int) -> dict[str, float]:
    """Return rates over the window: the work of all ranks / the longest window, so that a straggler counts in full."""
    seconds = measured.window_seconds
    steps = sorted(measured.step_seconds)
    out: dict[str, float] = {"window_seconds": seconds, "steps": measured.steps}
    out |= {name: value for name in _AS_MEASURED if (value := getattr(measured, name)) is not None}
    if measured.loss_medians is not None:
        out["loss_median"] = measured.loss_medians[1]
    out |= {f"own.{name}": value for name, value in measured.own.items()}
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
    return out | {f"{OWN}{name}": value for name, value in measured.own.items()}


def _ranks(measured: Measurement) -> dict[str, float]:
    """Return the slowest rank against the median, the speed of plain matrix products, and shares of profiled steps.

    Shares are means over the ranks. A pipeline's bubble is the share of time in which a stage computes nothing: it waits,
    transfers, or (with a small model) is held up by the host. The ideal bubble assumes stages of equal length: (p - 1) /
    (m + p - 1) for p stages and m micro-batches.
    """
    out: dict[str, float] = {}
    for name in ("communication_share", "exposed_communication_share", "busy_share"):
        if shares := [share for rank in measured.ranks if (share := getattr(rank, name)) is not None]:
            out[name] = mean(shares)
    if (ideal := measured.notes.get("pipeline_bubble_share_ideal")) is not None:
        out["pipeline_bubble_share_ideal"] = float(ideal)
        if "busy_share" in out:
            out["pipeline_bubble_share"] = max(0.0, 1 - out["busy_share"])
    forward = [rank.forward_seconds_median for rank in measured.ranks if rank.forward_seconds_median is not None]
    if len(forward) > 1:
        out["straggler_ratio"] = max(forward) / median(forward) if len(forward) > 2 else max(forward) / min(forward)
        out["straggler_rank"] = _slowest(measured).rank
    if products := [speed for rank in measured.ranks for speed in rank.matmul_flops_per_second]:
        out["matmul_flops_per_second"] = max(products)
    return out


def _slowest(measured: Measurement) -> Rank:
    """Return the rank with the longest forward pass."""
    return max(measured.ranks, key=lambda rank: rank.forward_seconds_median or 0)


def _available(record: Observation) -> dict[str, float]:
    """Return how many devices a machine has, and the memory that a rank may take.

    CPU devices share the processors. The memory is that of the smallest GPU, or the limit; on a CPU there is the limit alone.
    """
    machine, spec = record.environment.machine, record.spec
    gpus = [gpu.memory_bytes for gpu in machine.gpus if gpu.uuid in record.gpus]
    sizes = [size for size in (*gpus, spec.memory_limit_bytes) if size is not None]
    devices: float = len(machine.gpus) if spec.device_type == "gpu" else machine.cpu_count // spec.threads
    return {"machine_devices": devices} | ({"memory_available_bytes": min(sizes)} if sizes else {})


def _energy(record: Observation, measured: Measurement) -> dict[str, float]:
    """Return energy, power and energy per work of the window, never as means of ratios.

    `energy_joules` covers the time that the readings span. Where that is less than the window (flagged), power is that of
    the spanned part, and energy per work is that power × window / work; otherwise it would be too low.
    """
    out: dict[str, float] = {}
    for readings, tag in _by_tag(measured.energy):
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
    if hardware := split_energy(measured.energy)[0]:
        out["energy_systematic_joules"] = systematic(hardware)
        if (above := _above_idle(record, hardware)) is not None:
            out["energy_above_idle_joules"] = above
    return out


def systematic(readings: list[EnergyReading]) -> float:
    """Return a bound in joules of the error that repeats do not show: of the sensors and of the edges of the window.

    Gain errors of sensors of one kind are taken to be equal, so they add up within a component. Components and edges are
    added in quadrature.
    """
    gains: dict[str, float] = {}
    for reading in readings:
        gains[reading.component] = gains.get(reading.component, 0) + (reading.gain_share or 0) * reading.energy_joules
    return math.hypot(*gains.values(), *(reading.uncertainty_joules or 0 for reading in readings))


def _above_idle(record: Observation, hardware: list[EnergyReading]) -> float | None:
    """Return energy less idle power × time; None where the idle power of a part is not known."""
    idle = {(part.component, part.device): part.power_watts_context or part.power_watts for part in record.idle}
    if any((reading.component, reading.device) not in idle for reading in hardware):
        return None
    above = sum(r.energy_joules - idle[r.component, r.device] * r.seconds for r in hardware)
    return above if above >= 0 else None


def _phases(measured: Measurement) -> dict[str, float]:
    """Return seconds and joules by phase; `startup` is all time before the first measured step.

    The energy of the start-up is absent where it lacks a component that the window has, and that of phases of a name where
    one of them has none.
    """
    out: dict[str, float] = {}
    told = Counter(f"{phase.name}{tag}" for phase in measured.phases for _, tag in _by_tag(phase.energy))
    times = Counter(phase.name for phase in measured.phases)
    for phase in measured.phases:
        sums = {f"phase_{phase.name}_seconds": phase.seconds}
        for readings, tag in _by_tag(phase.energy):
            if told[f"{phase.name}{tag}"] == times[phase.name]:
                sums[f"phase_{phase.name}_energy_joules{tag}"] = sum(r.energy_joules for r in readings)
        for name, value in sums.items():
            out[name] = out.get(name, 0) + value
    if before := [phase.seconds for phase in measured.phases if phase.name in STARTUP_PHASES]:
        out["startup_seconds"] = sum(before)
    for readings, tag in _by_tag(measured.startup):
        needed = {(r.component, r.device) for r in measured.energy if r.provenance.measured == (not tag)}
        if {(r.component, r.device) for r in readings} >= needed:
            out[f"startup_energy_joules{tag}"] = sum(r.energy_joules for r in readings)
    return out


def metrics(record: RunRecord) -> dict[str, float]:
    """Return all numbers of a run: totals over all devices, and `_per_device` figures.

    Numbers that were seen replace those that were asked: devices, batch size. Raises ValueError as `window` does.
    """
    out: dict[str, float] = {"duration_seconds": record.duration_seconds, **_available(record)}
    for readings, tag in _by_tag(record.energy):
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
        out |= {"billed_devices": record.cost.devices} if record.cost.devices > record.device_count else {}
    if record.error is not None and record.error.attempted_bytes is not None:
        out["attempted_bytes"] = record.error.attempted_bytes
    asked, seen = record.spec, _seen(record)
    if seen.world_size != asked.world_size:
        out |= {"devices": seen.world_size, "devices_per_node": seen.devices_per_node}
    if record.measurement is not None and asked.workload == COMMAND:
        out |= _work_of_steps(record.measurement, record.device_count)
    if isinstance(seen.batch_size_per_device, int) and seen.batch_size_per_device != asked.batch_size_per_device:
        out["batch_size_per_device"] = seen.batch_size_per_device
        out["global_batch_size"] = seen.global_batch_size or 0
    if record.measurement is not None:
        out |= window(record)
        out |= _per_million(record, out) | _quality(record, record.measurement)
    return out


def window(record: Observation) -> dict[str, float]:
    """Return the numbers of the measured window, before carbon and cost; none without a measurement.

    Raises ValueError where a figure is impossible (MFU above 1): then an input is wrong.
    """
    measured = record.measurement
    if measured is None:
        return {}
    out = _throughput(measured, record.device_count) | _ranks(measured) | slow_node(record) | _energy(record, measured)
    out |= _phases(measured) | _conditions(measured) | _inference(measured)
    return out | _utilization(record, out)


def _inference(measured: Measurement) -> dict[str, float]:
    """Return size, quality, speed and energy of the model in the form in which it would be served.

    A change is the served model's value less the trained model's, on the same held-out samples.
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
    for readings, tag in _by_tag(served.energy):
        watts = sum(r.energy_joules / r.seconds for r in readings)
        out[f"inference_joules_per_sample{tag}"] = watts * served.seconds / served.samples
    return out


def _conditions(measured: Measurement) -> dict[str, float]:
    """Return the worst conditions during the window over the GPUs."""
    out: dict[str, float] = {}
    for name in ("temperature_celsius_max", "power_limit_watts", "sm_clock_hz_mean"):
        values = [value for gpu in measured.gpus if (value := getattr(gpu, name)) is not None]
        if values:
            out[name] = max(values) if name.endswith("max") else min(values)
    throttled = [gpu.throttled_share.get(name, 0.0) for gpu in measured.gpus for name in SLOWDOWNS]
    return out | ({"throttled_share": max(throttled)} if throttled else {})


def _utilization(record: Observation, figures: dict[str, float]) -> dict[str, float]:
    """Return model FLOP/s against two peaks of the device: that of its data sheet, and that of plain matrix products."""
    speed = figures.get("flops_per_second_per_device")
    if speed is None:
        return {}
    out: dict[str, float] = {}
    if "matmul_flops_per_second" in figures:
        out["matmul_utilization"] = speed / figures["matmul_flops_per_second"]
    used = precision_of(record)
    precision = _PEAK_OF.get(used, used) if used is not None else ""
    peak = None if record.on_cpu else peak_flops(device_name(record), precision)
    if peak is None:
        return out
    out["model_flops_utilization"] = speed / peak
    if speed > peak:
        raise ValueError(
            f"MFU {speed / peak:.2f} above 1: {speed:.3g} FLOP/s on {device_name(record)}, whose dense "
            f"{precision} peak is {peak:.3g}"
        )
    return out


def precision_of(record: Observation) -> str | None:
    """Return the precision that a run trained in: seen in a command, else asked for; None where it is neither."""
    seen = record.measurement.seen if record.measurement is not None else None
    if seen is not None and seen.precision is not None:
        return seen.precision
    asked = record.spec.workload != COMMAND or "precision" in record.spec.placeholders
    return record.spec.precision.name if asked else None


def priced(record: RunRecord, seconds: float, joules: dict[str, float | None]) -> dict[str, float]:
    """Return carbon and cost of a part of a run, from its seconds and its joules by basis; unknown ones are absent."""
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


def _per_million(record: RunRecord, figures: dict[str, float]) -> dict[str, float]:
    """Return carbon and cost of the window per million samples or tokens; the start-up is left out."""
    out: dict[str, float] = {}
    for unit in ("sample", "token"):
        rate = figures.get(f"{unit}s_per_second")
        if rate is not None:
            names = {"measured": f"joules_per_{unit}", "estimated": f"joules_per_{unit}_estimated"}
            joules = {basis: figures[name] * 1e6 if name in figures else None for basis, name in names.items()}
            out |= {f"{name}_per_million_{unit}s": value for name, value in priced(record, 1e6 / rate, joules).items()}
    return out


def _quality(record: RunRecord, measured: Measurement) -> dict[str, float]:
    """Return quality on held-out samples at the end, and what the training took to reach the target."""
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
    for name, value in priced(record, reached.seconds, joules).items():
        quantity, unit = name.split("_")
        out[f"{quantity}_to_target_{unit}"] = value
    return out


def labels(record: RunRecord) -> dict[str, str]:
    """Return identity, outcome and provenance of a run as text. Keys are among TEXT_COLUMNS."""
    out = {
        "run_id": record.run_id,
        "config_id": record.config_id,
        "suite": record.suite,
        "execution": record.execution,
        "status": str(record.status),
        "label": _seen(record).label if record.device_count != record.spec.world_size else record.spec.label,
        "started_at": record.started_at.isoformat(),
        "device_name": device_name(record),
        "host": record.environment.host,
        "environment": record.environment.fingerprint,
        "commit": record.environment.folder_commit or record.environment.wattbench_commit or "",
        "flags": " ".join(record.flags),
        "grade": record.grade or "",
    }
    out |= {"work": " ".join(record.spec.work), "node_names": " ".join(node_names(record))}
    if (site := record.site.model_dump_json(exclude_defaults=True)) != "{}":
        out["site"] = site
    if record.trial is not None:
        out |= {"study": record.trial.study, "trial": str(record.trial.number), "stage": record.trial.stage}
    if record.measurement is not None:
        hardware, model = split_energy(record.measurement.energy)
        shown = hardware or model
        out["energy_provenance"] = str(Provenance.worst([r.provenance for r in shown]))
        out["energy_components"] = " ".join(sorted({r.component for r in shown}))
        missing = missing_components(hardware, record.gpus)
        out["energy_missing"] = " ".join(missing)
        out["energy_total"] = "" if not hardware else "partial_total" if missing else "total"
        if "straggler_rank" in _ranks(record.measurement):
            out["straggler_device"] = _slowest(record.measurement).device
        if record.nodes and (slow := slow_node(record).get("straggler_node")) is not None:
            out["straggler_node_name"] = record.nodes[int(slow)].name
        seen = record.measurement.seen
        out |= {f"script_{name}": getattr(seen, name, None) or "" for name in ("torch", "python")}
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
    """Return one flat mapping of a run: its parameters, metrics and labels."""
    return {**configured(record), **metrics(record), **labels(record)}


def headline(record: RunRecord) -> str:
    """Return one line on how a run ended, for live progress."""
    if record.status is not Status.OK:
        message = record.error.message.splitlines()[0] if record.error and record.error.message else ""
        size = record.error.attempted_bytes if record.error else None
        attempt = "" if size is None else f"tried to allocate {size / 1e9:.3g} GB; "
        return f"{str(record.status).replace('_', ' ')}: {attempt}{message}"
    figures = metrics(record)
    rate = f"{figures['samples_per_second']:.4g} samples/s" if "samples_per_second" in figures else ""
    loss = (
        f"loss {figures['loss_first']:.3f} -> {figures.get('loss_last', math.nan):.3f}"
        if "loss_first" in figures
        else ""
    )
    if "validation_loss" in figures:
        loss = f"validation loss {figures['validation_loss']:.3f}"
    return ", ".join(filter(None, [rate, loss])) or f"{figures['duration_seconds']:.4g} s"
