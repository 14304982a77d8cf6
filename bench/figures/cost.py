"""Seconds and joules -> money, from prices that the user gives; no price list is shipped."""

from __future__ import annotations

from bench.figures.carbon import basis, carbon
from bench.figures.flags import grade, site_flags
from bench.figures.metrics import missing_components, used_gpus
from bench.record import CarbonIntensity, Cost, EnergyReading, RunRecord
from bench.schema import Site


def cost(site: Site, devices: int, seconds: float, energy: list[EnergyReading], gpus: list[str]) -> Cost | None:
    """Cost of a whole run in USD; None where no price is given, or nothing but a tariff and no energy figure.

    Rented devices are paid by the hour from allocation to the end, start-up included, and their power is inside. Owned
    ones cost their capital by the hour, and energy × PUE × tariff. `gpus` are those that the run used, to name what the
    energy lacks.
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


def recost(record: RunRecord, site: Site, factor: CarbonIntensity | None = None) -> RunRecord:
    """Return the record with carbon and cost by another region, PUE and prices; what was measured stays as it is.

    A record that has a grade gets the one that follows from its flags now. `factor` is the carbon intensity to use where
    it is not to be looked up anew. Raises ValueError for a region that is not known.
    """
    gpus = used_gpus(record)
    flags = {*record.flags} - {"pue_unknown", "electricity_unknown"} | site_flags(site)
    if factor is not None and site.pue is None:
        flags.add("pue_unknown")
    if site.usd_per_kwh is not None and basis(record.energy) is None:
        flags.add("electricity_unknown")
    return record.model_copy(
        update={
            "site": site,
            "carbon": carbon(record.energy, site, gpus, factor),
            "cost": cost(site, record.spec.world_size, record.duration_seconds, record.energy, gpus),
            "flags": sorted(flags),
            "grade": grade(flags) if record.grade is not None else None,
        }
    )
