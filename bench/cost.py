"""Seconds and joules -> money, from prices that the user gives; no price list is shipped."""

from __future__ import annotations

from bench.carbon import basis
from bench.schema import Cost, EnergyReading, Site


def cost(site: Site, devices: int, seconds: float, energy: list[EnergyReading]) -> Cost | None:
    """Cost of a whole run in USD; None where no price is given, or a tariff meets no energy figure.

    Rented devices are paid by the hour for the whole run, start-up included, and their power is inside. Owned ones pay
    energy × PUE × tariff.
    """
    if site.usd_per_device_hour is not None:
        usd = devices * seconds / 3600 * site.usd_per_device_hour
        return Cost(
            mode="rental",
            price_usd=site.usd_per_device_hour,
            price_unit="device_hour",
            devices=devices,
            billed_seconds=seconds,
            cost_usd=usd,
        )
    chosen = basis(energy)
    if site.usd_per_kwh is None or chosen is None:
        return None
    kind, readings = chosen
    pue = site.pue if site.pue is not None else 1.0
    kwh = sum(reading.energy_joules for reading in readings) / 3.6e6 * pue
    return Cost(
        mode="electricity",
        price_usd=site.usd_per_kwh,
        price_unit="kwh",
        devices=devices,
        billed_seconds=seconds,
        energy_basis=kind,
        pue=pue,
        cost_usd=kwh * site.usd_per_kwh,
    )
