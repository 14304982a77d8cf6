"""Carbon of a run: energy × PUE × carbon intensity, each factor with its own label.

Intensities are yearly averages of `bench.figures.regions`. The network is never asked. An unknown region is an error, never
a default country.
"""

from __future__ import annotations

from typing import Literal

from bench.figures.metrics import missing_components, split_energy
from bench.figures.regions import intensity
from bench.record import Carbon, CarbonIntensity, EnergyReading, Provenance
from bench.schema import Site


def basis(energy: list[EnergyReading]) -> tuple[Literal["measured", "estimated"], list[EnergyReading]] | None:
    """Return the energy for carbon and electricity: measured if there is any, else estimated; None for neither."""
    hardware, model = split_energy(energy)
    if hardware:
        return "measured", hardware
    return ("estimated", model) if model else None


def carbon(
    energy: list[EnergyReading], site: Site, gpus: list[str], factor: CarbonIntensity | None = None
) -> Carbon | None:
    """Return the emissions of a run from its whole energy; None without an intensity or without an energy figure.

    The intensity is `factor` if given, else that of the site's region. `gpus` are the UUIDs of the used GPUs, by which
    missing components are named. Without a PUE its factor is 1.0 and its label `absent`: IT equipment alone.
    """
    chosen = basis(energy)
    if chosen is not None and factor is None and site.region is not None:
        factor = intensity(site.region)
    if chosen is None or factor is None:
        return None
    kind, readings = chosen
    joules = sum(reading.energy_joules for reading in readings)
    pue = site.pue if site.pue is not None else 1.0
    return Carbon(
        energy_joules=joules,
        energy_basis=kind,
        energy_provenance=Provenance.worst([reading.provenance for reading in readings]),
        energy_missing=missing_components(readings, gpus) if kind == "measured" else [],
        pue=pue,
        pue_provenance=Provenance.USER_SUPPLIED if site.pue is not None else Provenance.ABSENT,
        intensity=factor,
        emissions_kg=joules / 3.6e6 * pue * factor.kg_per_kwh,
    )
