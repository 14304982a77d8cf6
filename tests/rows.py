"""Synthetic rows of runs, with planted truths, through the real schema. Nothing here was measured."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from bench.figures.metrics import row
from bench.record import (
    Carbon,
    CarbonIntensity,
    Cost,
    EnergyReading,
    Environment,
    Failure,
    Measurement,
    Provenance,
    RunRecord,
    Status,
)
from bench.schema import Machine, RunSpec, Scalar, Site

V = 2e9
"""Planted FLOP/s of one device."""
SIZES = {"tiny": 1e8, "small": 4e8}
"""Planted FLOP per sample of a preset; its parameters are a 600th of them."""
HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_LINK = "[x](javascript:alert(1))"
HOSTILE_FORMULA = '=HYPERLINK("http://example.invalid","x")'
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def environment(host: str = "synthetic-host", cpu: str = "Synthetic CPU", cores: int = 64) -> Environment:
    machine = Machine(cpu_model=cpu, cpu_count=cores)
    return Environment(host=host, os="synthetic", kernel="0", python="3.11", packages={"torch": "0"}, machine=machine)


def reading(
    joules: float,
    provenance: Provenance = Provenance.MEASURED_COUNTER,
    component: str = "cpu",
    device: str = "x",
    seconds: float = 10,
    **more: Any,
) -> EnergyReading:
    """Return what a meter read of one device, or what CodeCarbon estimates."""
    source = "codecarbon" if provenance is Provenance.ESTIMATED_MODEL else "nvml" if component == "gpu" else "rapl"
    values = {"component": component, "device": device, "energy_joules": joules, "seconds": seconds, "source": source}
    return EnergyReading(**values | {"power_watts_mean": joules / seconds, "provenance": provenance} | more)


def energy(measured: bool, seconds: float, joules: float) -> list[EnergyReading]:
    if measured:
        return [reading(joules, component="cpu", device="synthetic", seconds=seconds)]
    return [reading(joules, Provenance.ESTIMATED_MODEL, "node", "synthetic", seconds)]


def _measurement(spec: RunSpec, v: float, readings: str) -> Measurement:
    flops = SIZES[str(spec.workload_args["preset"])]
    samples = 100 * spec.global_batch_size
    seconds = samples * flops / (spec.world_size * v)
    joules = 50.0 * seconds * spec.world_size
    found = [*(energy(True, seconds, joules) if "m" in readings else [])]
    found += energy(False, seconds, 1.5 * joules) if "e" in readings else []
    return Measurement(
        step_seconds=[seconds / 100] * 100,
        window_seconds=seconds,
        steps=100,
        samples=samples,
        tokens=samples * 128,
        peak_memory_bytes=[10**9] * spec.world_size,
        parameters=round(flops / 600),
        flops_per_sample=flops,
        loss_first=5.0,
        loss_last=4.0,
        dataset="synthetic",
        dataset_digest="0" * 16,
        energy=found,
    )


def record(
    devices: int = 1,
    preset: str = "tiny",
    precision: str = "fp32",
    repeat: int = 0,
    *,
    v: float = V,
    batch: int = 8,
    readings: str = "me",
    status: Status = Status.OK,
    message: str = "synthetic failure",
    execution: str = "20260102T030405-aaaa",
    suite: str = "synthetic",
    host: str = "synthetic-host",
    cpu: str = "Synthetic CPU",
    cores: int = 64,
    **fields: Any,
) -> RunRecord:
    """Return a run whose device does `v` FLOP/s; `readings` m: measured energy, e: estimated energy."""
    spec = RunSpec(
        workload="synthetic",
        workload_args={"preset": preset},
        precision=precision,
        device_type="cpu",
        devices_per_node=devices,
        batch_size_per_device=batch,
        measure_steps=100,
        repeat=repeat,
        **fields,
    )
    ok = status is Status.OK
    measurement = _measurement(spec, v, readings) if ok else None
    whole = [r for kind in readings for r in energy(kind == "m", 10.0, 100.0 * (1 if kind == "m" else 1.5))]
    carbon = cost = None
    if whole:
        basis = "measured" if "m" in readings else "estimated"
        carbon = Carbon(
            energy_joules=whole[0].energy_joules,
            energy_basis=basis,
            energy_provenance=whole[0].provenance,
            pue=1.0,
            pue_provenance=Provenance.USER_SUPPLIED,
            intensity=CarbonIntensity(kg_per_kwh=0.4, region="XX", source="synthetic"),
            emissions_kg=whole[0].energy_joules / 3.6e6 * 0.4,
        )
        cost = Cost(mode="rental", usd_per_device_hour=3.6, devices=1, billed_seconds=10, cost_usd=0.01)
    return RunRecord(
        run_id=spec.run_id,
        config_id=spec.config_id,
        suite=suite,
        execution=execution,
        spec=spec,
        status=status,
        error=None if ok else Failure(type="SyntheticError", message=message),
        started_at=START + timedelta(minutes=repeat),
        duration_seconds=10.0,
        devices=["cpu"] * devices,
        energy=whole,
        measurement=measurement,
        site=Site(region="XX", pue=1.0, usd_per_device_hour=3.6) if whole else Site(),
        carbon=carbon,
        cost=cost,
        environment=environment(host, cpu, cores),
    )


def measured(record: RunRecord, **changes: Any) -> RunRecord:
    """Return a record whose measurement has other values."""
    return record.changed(measurement=record.measurement.changed(**changes))


def make(*args: Any, **fields: Any) -> dict[str, Scalar]:
    """Return the row of `record`."""
    return row(record(*args, **fields))


def grid(
    devices: tuple[int, ...] = (1, 2, 4),
    presets: tuple[str, ...] = ("tiny", "small"),
    precisions: dict[str, float] | None = None,
    loss: dict[int, float] | None = None,
    *,
    repeats: int = 4,
    noise: float = 0.005,
    seed: int = 0,
    **fields: Any,
) -> list[dict[str, Scalar]]:
    """Return a full matrix. `precisions` maps to planted factors on v, `loss` a device count to its efficiency."""
    random = np.random.default_rng(seed)
    rows = []
    for d in devices:
        for preset in presets:
            for precision, factor in (precisions or {"fp32": 1.0}).items():
                for repeat in range(repeats):
                    v = V * factor * (loss or {}).get(d, 1.0) * float(np.exp(random.normal(0, noise)))
                    rows.append(make(d, preset, precision, repeat, v=v, **fields))
    return rows


def restored(df: pd.DataFrame) -> pd.DataFrame:
    """Return a table of text, as read from a CSV of ours, without the apostrophes that defuse formulas."""

    def plain(cell: object) -> object:
        return cell[1:] if isinstance(cell, str) and re.match(r"''*[=+\-@\t\r\n＝＋－＠]", cell) else cell

    return df.map(plain).rename(columns=plain).astype(df.dtypes.rename(plain).to_dict())
