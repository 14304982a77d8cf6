"""Places as people name them -> the carbon intensity of their power grid, from the data files of CodeCarbon.

Countries: yearly averages of Our World in Data. States: eGRID. Provinces of Canada: their mix of sources by the factor of
each. Provinces of China: official factors, CO2 alone. Zones of Norway and Sweden. Cloud regions: Google's own figures, and
for AWS and Azure the grid of the state or country in which they are. An own factor is `30g` or `0.03kg` CO2e per kWh.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import unicodedata
from functools import cache
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any

from bench.errors import BadValue
from bench.record import CarbonIntensity, Provenance

_KG_PER_POUND = 0.45359237
_GRAMS = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(k?g)\s*(?:CO2(?:e|eq)?)?\s*(?:(?:/|per)\s*kWh)?", re.IGNORECASE)
_MOST_KG = 3.0
"""More kg CO2e per kWh than any power station emits."""
_ALSO = {"uk": "GBR", "great britain": "GBR", "england": "GBR", "america": "USA", "united states of america": "USA"}
_ALSO |= {"south korea": "KOR", "russia": "RUS", "uae": "ARE", "holland": "NLD", "turkey": "TUR"}
_MIX = {"naturalGas": "natural_gas", "hydro": "hydroelectricity"}


@cache
def _data(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_folder() / "private_infra" / name).read_text(encoding="utf-8"))
    return loaded


def _folder() -> Path:
    spec = util.find_spec("codecarbon")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("codecarbon is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"


def _key(text: str) -> str:
    """Return a name in small letters without accents, for Québec and quebec."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(plain.lower().replace("_", " ").split())


@cache
def _google() -> dict[str, float]:
    """Return g CO2e per kWh of the regions of Google Cloud, as it publishes them."""
    with (_folder() / "cloud" / "impact.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["region"]: float(row["impact"]) for row in csv.DictReader(file) if row["provider"] == "gcp"}


@cache
def _clouds() -> dict[str, tuple[str, str]]:
    """Return provider and place of the regions of AWS and Azure."""
    text = resources.files("bench.figures").joinpath("cloud_regions.csv").read_text()
    return {row["region"]: (row["provider"], row["place"]) for row in csv.DictReader(text.splitlines())}


@cache
def _parts() -> dict[str, dict[str, Any]]:
    """Return the states, provinces and zones with a factor by their code (US-CA, CA-QC, CN-BJ, SE3), with their `name`."""
    import pycountry

    states = _data("2023/usa_emissions.json").items()
    parts = {f"US-{row['regionCode']}": {"name": name} for name, row in states if len(row.get("regionCode", "")) == 2}
    codes = {_key(one.name): one.code for one in pycountry.subdivisions.get(country_code="CA")}
    mixes = _data("2023/canada_energy_mix.json")
    parts |= {codes[name]: {"name": name, "mix": mix} for name, mix in mixes.items() if name in codes}
    provinces, zones = (
        _data(name)["data"] for name in ("2023/china_provincial_emissions.json", "nordic_emissions.json")
    )
    parts |= {code: {"name": _key(row["description"]), "row": row} for code, row in provinces.items()}
    return parts | {code: {"name": code.lower(), "row": row} for code, row in zones.items() if code != "FI"}


@cache
def _names() -> dict[str, set[str]]:
    """Return the codes of all countries and parts of countries by their names."""
    import pycountry

    names = {"korea": {"KOR", "PRK"}}
    for country in pycountry.countries:
        for field in ("name", "common_name", "official_name"):
            if (name := getattr(country, field, None)) is not None:
                names.setdefault(_key(name), set()).add(country.alpha_3)
    for name, code in _ALSO.items():
        names.setdefault(name, set()).add(code)
    for code, part in _parts().items():
        names.setdefault(part["name"], set()).add(code)
    return names


def _found(region: str) -> str:
    """Return the code of a country (FRA), state or province (US-CA). Raises ValueError with what may be meant."""
    import pycountry

    code, key = region.strip().upper(), _key(region)
    if code in _parts():
        return code
    country = pycountry.countries.get(alpha_2=code) if len(code) == 2 else pycountry.countries.get(alpha_3=code)
    if country is not None and len(code) in (2, 3):
        return str(country.alpha_3)
    codes = _names().get(key, set())
    if len(codes) > 1:
        raise BadValue(f"region {region!r} may be {' or '.join(sorted(codes))}: say which")
    if codes:
        return next(iter(codes))
    known = [*_names(), *_google(), *_clouds()]
    near = difflib.get_close_matches(key, known, 3, 0.75) if key else []
    states = ", ".join(sorted(code for code in _parts() if code.startswith("US-")))
    hint = f"did you mean {' or '.join(near)}?" if near else f"US states are {states}" if code.startswith("US-") else ""
    kinds = "a country (FR, France), a state or province (US-CA, CA-QC) or a cloud region (us-west-2, europe-west4)"
    raise BadValue(f"region {region!r} is not known: {hint or f'give {kinds}'}")


def own_factor(text: str) -> str:
    """Return a carbon intensity of one's own, 30g or 0.03kg CO2e per kWh, as a region of `intensity`. Raises ValueError."""
    parts = _GRAMS.fullmatch(text.strip())
    kg = float(parts[1]) / (1 if parts[2].lower() == "kg" else 1000) if parts else -1.0
    if not 0 <= kg <= _MOST_KG:
        raise BadValue(f"{text!r} is no carbon intensity: give grams or kg CO2e per kWh, up to 3 kg: 30g, 0.03kg")
    return f"{1000 * kg:.10g} g/kWh"


@cache
def intensity(region: str) -> CarbonIntensity:
    """Return the carbon intensity of a place: FR, France, US-CA, California, CA-QC, us-west-2, europe-west4, or 30 g/kWh.

    Raises ValueError for an unknown region or one that may be several, and where the package with the data is missing.
    """
    if _GRAMS.fullmatch(region.strip()):
        text = own_factor(region)
        kg = float(text.split()[0]) / 1000
        return CarbonIntensity(kg_per_kwh=kg, region=text, source=str(Provenance.USER_SUPPLIED))
    try:
        import pycountry  # noqa: F401 - the names of countries

        version = f"codecarbon {metadata.version('codecarbon')}"
    except (ImportError, metadata.PackageNotFoundError) as error:
        raise BadValue(f"region {region!r} needs the package codecarbon ({error}): pip install codecarbon") from error
    cloud = region.strip().lower()
    if cloud in _google():
        source = f"{version} impact.csv (Google Cloud)"
        return CarbonIntensity(kg_per_kwh=_google()[cloud] / 1000, region=cloud, source=source)
    if cloud in _clouds():
        provider, place = _clouds()[cloud]
        return _grid(place, version, f"; {provider} {cloud} is there")
    return _grid(_found(region), version)


def _grid(code: str, version: str, why: str = "") -> CarbonIntensity:
    """Return the intensity of the grid of a country, state, province or zone by its code."""
    part, given = _parts().get(code), {"region": code}
    if part is None:
        row = _data("global_energy_mix.json").get(code)
        if row is None or row.get("carbon_intensity") is None:
            raise BadValue(f"the carbon intensity of region {code!r} is not known: give --carbon-intensity 30g")
        source, kg, year = "global_energy_mix.json", row["carbon_intensity"] / 1000, row.get("year")
    elif "mix" in part:
        factors, mix = _data("carbon_intensity_per_source.json"), {k: v for k, v in part["mix"].items() if k != "total"}
        # The shares of sources, each with the emissions of its whole life, as those of countries.
        grams = sum(share * factors[_MIX.get(name, name)] for name, share in mix.items() if share) / sum(mix.values())
        source, kg, year = "canada_energy_mix.json and carbon_intensity_per_source.json", grams / 1000, 2023
    elif "row" in part:
        row = part["row"]
        given |= {"unit": "CO2e" if "eq" in row["unit"] else "CO2"}
        name = "china_provincial_emissions.json" if code.startswith("CN-") else "nordic_emissions.json"
        source, kg, year = name, row["emission_factor"] / 1000, row["year"]
    else:
        table = _data("2023/usa_emissions.json")
        kg, year = table[part["name"]]["emissions"] * _KG_PER_POUND / 1000, table["_source"]["year"]
        source = "usa_emissions.json (eGRID, total output)"
    return CarbonIntensity(kg_per_kwh=kg, year=year, source=f"{version} {source}{why}", **given)


def region_name(region: str) -> str:
    """Return the name of a region of `intensity`: `France` for FRA, `California` for US-CA; others stay as they are."""
    if util.find_spec("pycountry") is None:
        return region
    import pycountry

    inner = re.fullmatch(r"[A-Z]{2}-[A-Z]{2}", region) is not None
    table = pycountry.subdivisions if inner else pycountry.countries
    place = table.get(**{"code" if inner else "alpha_3": region}) if inner or len(region) == 3 else None
    alone = " (CO2 alone)" if region.startswith("CN-") else ""
    return region if place is None else f"{place.name}{alone}"
