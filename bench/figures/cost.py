"""Cost of a run from its seconds, its joules and the prices that the user gives. No price list is shipped."""

from __future__ import annotations

from typing import NamedTuple

from bench.figures.carbon import basis, carbon
from bench.figures.flags import grade, site_flags
from bench.figures.metrics import missing_components
from bench.record import Carbon, CarbonIntensity, Cost, EnergyReading, Observation, RunRecord
from bench.schema import Site


def cost(site: Site, devices: int, seconds: float, energy: list[EnergyReading], gpus: list[str]) -> Cost | None:
    """Return the cost of a whole run in USD; None without prices, or with an electricity price but no energy figure.

    Rented devices are paid by the hour from the start of the run to its end, power included. Owned devices cost capital by
    the hour, and energy × PUE × price. `gpus` are the UUIDs of the used GPUs, by which missing components are named.
    """
    if site.usd_per_device_hour is not None:
        return Cost(
            mode="rental",
            usd_per_device_hour=site.usd_per_device_hour,
            devices=devices,
            billed_seconds=seconds,
            cost_usd=devices * seconds / 3600 * site.usd_per_device_hour,
            note=site.price_note,
        )
    chosen = basis(energy) if site.usd_per_kwh is not None else None
    if site.usd_capital_per_device_hour is None and chosen is None:
        return None
    kind, readings = chosen or (None, [])
    pue = site.pue if site.pue is not None else 1.0
    joules = sum(reading.energy_joules for reading in readings)
    capital = devices * seconds / 3600 * (site.usd_capital_per_device_hour or 0)
    return Cost(
        mode="owned",
        usd_capital_per_device_hour=site.usd_capital_per_device_hour,
        usd_per_kwh=site.usd_per_kwh if kind else None,
        devices=devices,
        billed_seconds=seconds,
        energy_joules=joules if kind else None,
        energy_basis=kind,
        energy_missing=missing_components(readings, gpus) if kind == "measured" else [],
        pue=pue,
        cost_usd=capital + joules / 3.6e6 * pue * (site.usd_per_kwh or 0),
        note=site.price_note,
    )


class Price(NamedTuple):
    """What follows from a site for a run: carbon, cost, and the flags of what is unknown."""

    carbon: Carbon | None
    cost: Cost | None
    flags: set[str]


def price(
    run: Observation, energy: list[EnergyReading], seconds: float, site: Site, factor: CarbonIntensity | None = None
) -> Price:
    """Return the price of a run with this energy and duration at a site.

    `factor` is a carbon intensity that takes the place of the region's. Raises ValueError for an unknown region.
    """
    flags = site_flags(site)
    if factor is not None and site.pue is None:
        flags.add("pue_unknown")
    if site.usd_per_kwh is not None and basis(energy) is None:
        flags.add("electricity_unknown")
    amount = cost(site, run.billed_devices, seconds, energy, run.gpus)
    return Price(carbon(energy, site, run.gpus, factor), amount, flags)


def recost(record: RunRecord, site: Site, factor: CarbonIntensity | None = None) -> RunRecord:
    """Return the record with carbon, cost and grade for another site (see `price`); what was measured stays."""
    new = price(record, record.energy, record.duration_seconds, site, factor)
    flags = {*record.flags} - {"pue_unknown", "electricity_unknown"} | new.flags
    verdict = grade(flags) if record.grade is not None else None
    return record.changed(site=site, carbon=new.carbon, cost=new.cost, flags=sorted(flags), grade=verdict)
