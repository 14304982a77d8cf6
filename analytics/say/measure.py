"""The record of one run in words, as `bench measure` prints it: each figure with its unit and its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analytics.text import number, scale
from bench.figures.flags import COVERED, meaning
from bench.figures.metrics import labels, metrics, split_energy, systematic
from bench.record import RunRecord


def lines(record: RunRecord) -> list[str]:
    """Return time, energy, carbon, cost, memory, steps, phases and the grade of a run, a line each."""
    figures = metrics(record)
    ended = "" if record.error is None else f", {record.error.message}"
    out = [f"wattbench: {number(record.duration_seconds)} s{ended}", *_energy(record), *_carbon(record), *_cost(record)]
    if "peak_memory_bytes" in figures:
        divisor, unit = scale(figures["peak_memory_bytes"], "B")
        owner = "of all processes on a GPU" if record.spec.device_type == "cuda" else "of the largest process"
        out.append(f"  peak memory {owner}: {number(figures['peak_memory_bytes'] / divisor)} {unit}")
    out += _steps(figures)
    if record.grade is not None:
        out.append(f"  grade {record.grade}")
        out += [f"    {flag}: {meaning(flag)}" for flag in record.flags]
    return out


def _energy(record: RunRecord) -> Iterator[str]:
    texts = labels(record)
    for readings, label in zip(split_energy(record.energy), ("measured", "estimated by a model"), strict=True):
        if not readings:
            continue
        joules = sum(reading.energy_joules for reading in readings)
        watts = sum(reading.power_watts_mean for reading in readings)
        divisor, unit = scale(joules, "J")
        parts = ", ".join(f"{r.component} {number(r.energy_joules)} J" for r in readings)
        spread = f" ± {number(systematic(readings))} J" if label == "measured" else ""
        yield f"  energy, {label}: {number(joules / divisor)} {unit}{spread} ({number(watts)} W mean): {parts}"
        for r in readings:
            if r.coverage < COVERED:
                share = f"{100 * r.coverage:.0f} %"
                yield f"    {r.component} {r.device} was read for only {share} of the time: all sums are too low"
    if not record.energy:
        yield "  energy: none, no meter could be read (bench doctor says why)"
    elif texts.get("energy_total") == "partial_total":
        yield f"  a partial total: {texts['energy_missing'].replace(' ', ' and ')} could not be measured"


def _carbon(record: RunRecord) -> Iterator[str]:
    if record.carbon is not None:
        carbon, grid = record.carbon, record.carbon.intensity
        factors = f"{1000 * grid.kg_per_kwh:.4g} g/kWh in {grid.region} {grid.year or ''}, PUE {carbon.pue:g}"
        basis = f"{carbon.energy_basis} energy"
        yield f"  carbon: {number(1000 * carbon.emissions_kg)} g CO2e ({basis} × {factors})"


def _cost(record: RunRecord) -> Iterator[str]:
    if record.cost is not None:
        lacks = record.cost.mode == "owned" and record.cost.usd_per_kwh is None
        mode = f"{record.cost.mode}, devices: {record.cost.devices}{', without electricity' if lacks else ''}"
        yield f"  cost: {number(record.cost.cost_usd)} USD ({mode})"


def _steps(figures: Mapping[str, float]) -> Iterator[str]:
    if not figures.get("steps"):
        return
    units = [unit for unit in ("samples", "tokens") if f"{unit}_per_second" in figures]
    rates = [f"{number(figures[f'{unit}_per_second'])} {unit}/s" for unit in units]
    rates.append(f"{number(figures['step_seconds_median'])} s per step")
    names = {"joules_per_sample": "J per sample", "joules_per_token": "J per token"}
    rates += [f"{number(figures[name])} {unit}" for name, unit in names.items() if name in figures]
    estimated = {f"{name}_estimated": unit for name, unit in names.items()}
    rates += [f"~{number(figures[name])} {unit} (estimated)" for name, unit in estimated.items() if name in figures]
    yield f"  {figures['steps']:.0f} steps in {number(figures['window_seconds'])} s: {', '.join(rates)}"
    phases = [name for name in figures if name.startswith("phase_") and name.endswith("_seconds")]
    if len(phases) > 1:
        parts = [f"{name.removeprefix('phase_').removesuffix('_seconds')} {number(figures[name])} s" for name in phases]
        yield f"  phases: {', '.join(parts)}"
