"""Raw measurement -> derived numbers: the only place where they are made.

`row(record)` is what everyone else reads: one flat mapping a run, whose keys are the columns of the DataFrame. Its three
parts are `parameters` (what was asked), `metrics` (numbers) and `labels` (text about the numbers). Absent figures have no
key. Measured energy (`energy_joules`) and the model's figure (`energy_estimated_joules`) are never added.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from importlib import resources
from statistics import median, quantiles

from bench.schema import EnergyReading, Measurement, Provenance, RunRecord, RunSpec, Scalar, Status

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
    "error_type",
    "error_message",
    "host",
    "environment",
)


@cache
def _peak_table() -> dict[tuple[str, str], float]:
    text = resources.files("bench").joinpath("gpu_peak_flops.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {(row["device_name"], row["precision"]): float(row["dense_tflops"]) * 1e12 for row in rows}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a device in FLOP/s for a precision, by its exact name; None where it is not in the table.

    Sources stand beside each row of `bench/gpu_peak_flops.csv`. There is no fallback: H200 is not H20, L40S is not L4.
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


def parameters(spec: RunSpec) -> dict[str, Scalar]:
    """What was asked, flat: one entry a field, mappings by dotted names, `devices` for the number of ranks."""
    flat: dict[str, Scalar] = {"devices": spec.world_size, "global_batch_size": spec.global_batch_size}
    for name, value in spec.model_dump(mode="json", exclude={"meters"}).items():
        if name in ("parallelism", "precision", "optimizer"):
            choice = getattr(spec, name)
            flat[name] = choice.name
            flat |= {f"{name}.{key}": option for key, option in choice.options.items()}
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        elif value is not None:
            flat[name] = value
    flat["meters"] = " ".join(spec.meters)
    return flat


def _throughput(measured: Measurement, devices: int) -> dict[str, float]:
    """Rates over the window: global work / the longest window over ranks, so a straggler is not averaged away."""
    seconds = measured.window_seconds
    steps = sorted(measured.step_seconds)
    out: dict[str, float] = {
        "window_seconds": seconds,
        "steps": measured.steps,
        "samples_per_second": measured.samples / seconds,
        "samples_per_second_per_device": measured.samples / seconds / devices,
        "step_seconds_median": median(steps),
        "step_seconds_p95": quantiles(steps, n=20, method="inclusive")[-1] if len(steps) > 1 else steps[0],
        "parameters": measured.parameters,
        "flops_per_sample": measured.flops_per_sample,
        "flops_per_second_per_device": measured.flops_per_sample * measured.samples / seconds / devices,
        "loss_first": measured.loss_first,
        "loss_last": measured.loss_last,
    }
    if measured.tokens is not None:
        out["tokens_per_second"] = measured.tokens / seconds
        out["tokens_per_second_per_device"] = measured.tokens / seconds / devices
        out["flops_per_token"] = measured.flops_per_sample * measured.samples / measured.tokens
    if measured.peak_memory_bytes:
        out["peak_memory_bytes"] = max(measured.peak_memory_bytes)
    if measured.data_wait_seconds is not None:
        out["data_wait_share"] = measured.data_wait_seconds / seconds
    return out


def _energy(measured: Measurement, devices: int) -> dict[str, float]:
    """Energy of the window. Intensities are energy / work, power is energy / time: never means of ratios.

    `energy_joules` is what the readings span. Where they span less than the window (coverage below 1, flagged), power is
    that of the part they span, and intensities are that power × window / work: else they would come out too low.
    """
    out: dict[str, float] = {}
    hardware, model = split_energy(measured.energy)
    for readings, tag in ((hardware, ""), (model, "estimated_")):
        if not readings:
            continue
        joules = sum(r.energy_joules for r in readings)
        watts = sum(r.energy_joules / r.seconds for r in readings)
        out[f"energy_{tag}joules"] = joules
        out[f"power_{tag}watts"] = watts
        whole = watts * measured.window_seconds
        out[f"joules_{'per_sample' if not tag else 'per_sample_estimated'}"] = whole / measured.samples
        if measured.tokens is not None:
            out[f"joules_{'per_token' if not tag else 'per_token_estimated'}"] = whole / measured.tokens
        for component in {r.component for r in readings}:
            part = sum(r.energy_joules for r in readings if r.component == component)
            out[f"energy_{tag}joules_{component}"] = part
    return out


def metrics(record: RunRecord) -> dict[str, float]:
    """All numbers of a run. Totals are the whole job; `_per_device` variants say so.

    Raises ValueError where a figure is impossible (MFU above 1): then an input is wrong, and no figure is better.
    """
    out: dict[str, float] = {"duration_seconds": record.duration_seconds}
    hardware, model = split_energy(record.energy)
    for readings, name in ((hardware, "run_energy_joules"), (model, "run_energy_estimated_joules")):
        if readings:
            out[name] = sum(r.energy_joules for r in readings)
    if record.carbon is not None:
        out["emissions_kg"] = record.carbon.emissions_kg
    if record.cost is not None:
        out["cost_usd"] = record.cost.cost_usd
    if record.measurement is None:
        return out
    devices = record.spec.world_size
    out |= _throughput(record.measurement, devices) | _energy(record.measurement, devices)
    peak = peak_flops(device_name(record), record.spec.precision.name) if record.spec.device_type == "cuda" else None
    if peak is not None:
        out["model_flops_utilization"] = out["flops_per_second_per_device"] / peak
        if out["model_flops_utilization"] > 1:
            raise ValueError(
                f"MFU {out['model_flops_utilization']:.2f} above 1: {out['flops_per_second_per_device']:.3g} FLOP/s on "
                f"{device_name(record)}, whose dense {record.spec.precision.name} peak is {peak:.3g}"
            )
    out |= _per_million_tokens(record, out)
    return out


def _per_million_tokens(record: RunRecord, known: dict[str, float]) -> dict[str, float]:
    """Carbon and money of the steady window for a million tokens: what longer training pays, start-up left out."""
    out: dict[str, float] = {}
    rate = known.get("tokens_per_second")
    if rate is None:
        return out
    if record.carbon is not None:
        name = "joules_per_token" if record.carbon.energy_basis == "measured" else "joules_per_token_estimated"
        if name in known:
            kwh = known[name] * 1e6 / 3.6e6
            out["emissions_kg_per_million_tokens"] = kwh * record.carbon.pue * record.carbon.intensity.kg_per_kwh
    if record.cost is not None and record.cost.mode == "rental":
        out["cost_usd_per_million_tokens"] = record.cost.devices * record.cost.price_usd / 3600 / rate * 1e6
    elif record.cost is not None:
        name = "joules_per_token" if record.cost.energy_basis == "measured" else "joules_per_token_estimated"
        if name in known:
            kwh = known[name] * 1e6 / 3.6e6 * record.cost.pue
            out["cost_usd_per_million_tokens"] = kwh * record.cost.price_usd
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
        "flags": " ".join(record.flags),
    }
    if record.measurement is not None:
        hardware, model = split_energy(record.measurement.energy)
        shown = hardware or model
        out["energy_provenance"] = str(Provenance.worst([r.provenance for r in shown]))
        out["energy_components"] = " ".join(sorted({r.component for r in shown}))
        gpus = record.devices if record.spec.device_type == "cuda" else []
        out["energy_missing"] = " ".join(missing_components(hardware, gpus))
        out["dataset"] = record.measurement.dataset
        out["dataset_digest"] = record.measurement.dataset_digest
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
        return f"{record.status}: {message}"
    known = metrics(record)
    return f"{known['samples_per_second']:.4g} samples/s, loss {known['loss_first']:.3f} -> {known['loss_last']:.3f}"
