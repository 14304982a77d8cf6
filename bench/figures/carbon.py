"""Carbon of a run: energy × PUE × carbon intensity, each factor with its own label.

Intensities are yearly averages from the data files of CodeCarbon: countries from Our World in Data, US states from eGRID.
The network is never asked. An unknown region is an error, never a default country.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from bench.errors import BadValue
from bench.figures.metrics import missing_components, split_energy
from bench.record import Carbon, CarbonIntensity, EnergyReading, Provenance
from bench.schema import Site

_KG_PER_POUND = 0.45359237


@cache
def _data(name: str) -> dict[str, Any]:
    spec = util.find_spec("codecarbon")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("codecarbon is not installed")
    path = Path(spec.submodule_search_locations[0]) / "data" / "private_infra" / name
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@cache
def intensity(region: str) -> CarbonIntensity:
    """Return the carbon intensity of a region: ISO 3166 `FR` or `FRA`, or a US state as `US-CA`.

    Raises ValueError for an unknown region, and where the package with the data is missing.
    """
    try:
        import pycountry

        version = metadata.version("codecarbon")
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise BadValue(f"region {region!r} needs the package codecarbon ({error}): pip install codecarbon") from error
    code = region.strip().upper()
    if code.startswith("US-"):
        return _us_state(code, version)
    country = pycountry.countries.get(alpha_2=code) if len(code) == 2 else pycountry.countries.get(alpha_3=code)
    entry = _data("global_energy_mix.json").get(country.alpha_3) if country is not None else None
    if entry is None or entry.get("carbon_intensity") is None:
        raise BadValue(
            f"region {region!r} is not known: give an ISO 3166 country (FR, FRA, DEU ...) or a US state (US-CA)"
        )
    return CarbonIntensity(
        kg_per_kwh=entry["carbon_intensity"] / 1000,
        region=country.alpha_3,
        year=entry.get("year"),
        source=f"codecarbon {version} global_energy_mix.json",
    )


def region_name(region: str) -> str:
    """Return the name of a region of `intensity`: `France` for FRA, `California` for US-CA; others stay as they are."""
    if util.find_spec("pycountry") is None:
        return region
    import pycountry

    table = pycountry.subdivisions if region.startswith("US-") else pycountry.countries
    place = table.get(**{"code" if region.startswith("US-") else "alpha_3": region})
    return region if place is None else str(place.name)


def _us_state(code: str, version: str) -> CarbonIntensity:
    table = _data("2023/usa_emissions.json")
    states = {
        f"US-{row['regionCode']}": row for row in table.values() if "emissions" in row and len(row["regionCode"]) == 2
    }
    if code not in states:
        raise BadValue(f"region {code!r} is not known: US states are {', '.join(sorted(states))}")
    return CarbonIntensity(
        kg_per_kwh=states[code]["emissions"] * _KG_PER_POUND / 1000,
        region=code,
        year=table["_source"]["year"],
        source=f"codecarbon {version} usa_emissions.json (eGRID, total output)",
    )


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
