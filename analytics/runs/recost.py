"""Carbon and cost of stored runs, computed again; and what they rest on: energy, PUE, intensity and price."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from analytics.runs.hourly import Hourly
from bench.figures.carbon import basis
from bench.figures.cost import recost
from bench.figures.metrics import missing_components
from bench.figures.regions import intensity
from bench.record import CarbonIntensity, Provenance, RunRecord, Status
from bench.schema import Site
from bench.suites.load import with_site

_REGION = re.compile(r"[A-Z]{3}|[A-Z]{2}-[A-Z]{2}|[A-Z]{2}\d|[a-z]+-[a-z]+\d+|[\d.]+ g/kWh")


def reprice(records: Iterable[RunRecord], given: dict[str, Any], hourly: Hourly | None = None) -> list[RunRecord]:
    """Make carbon and cost anew by what is given (fields of Site) and by the hours in which each run ran.

    What is not given stays as it was. Prices of `hourly` hold for devices that are not rented: a rent includes power.
    Raises SuiteError for a mistake in `given`, and ValueError for an unknown region and hours that are not covered.
    """
    out = []
    for record in records:
        if not given and hourly is None:
            out.append(record)
            continue
        site = with_site(record.site, given)
        factor = record.carbon.intensity if record.carbon is not None and "region" not in given else None
        if hourly is not None and basis(record.energy) is not None:  # without energy there is nothing to weigh
            rates = hourly.mean(record.started_at, record.duration_seconds)
            source = f"{Provenance.USER_SUPPLIED}, mean of the hours of the run"
            factor = CarbonIntensity(kg_per_kwh=rates.kg_per_kwh, region=hourly.name, source=source)
            if rates.usd_per_kwh is not None and site.usd_per_device_hour is None:
                note = {"price_note": given.get("price_note", f"by the hour, {hourly.name}"[:200])}
                site = with_site(site, {"usd_per_kwh": rates.usd_per_kwh, **note})
        out.append(recost(record, site, factor))
    return out


def factors(records: Sequence[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """Return the distinct values of `energy`, `pue`, `intensity` and `price`, the most frequent first.

    `runs` is the number of runs that each holds for.
    """
    ran = [record for record in records if record.status is not Status.SKIPPED] or list(records)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("energy", "pue", "intensity", "price")}
    for record in ran:
        for name, value in _factors(record).items():
            counts[name][json.dumps(value)] += 1
    return {
        name: [{**json.loads(text), "runs": runs} for text, runs in found.most_common()]
        for name, found in counts.items()
    }


def _factors(record: RunRecord) -> dict[str, dict[str, Any]]:
    kind, readings = basis(record.energy) or ("absent", [])
    missing = missing_components(readings, record.gpus) if kind == "measured" else []
    pue, region = record.site.pue, record.site.region
    grid = record.carbon.intensity if record.carbon is not None else intensity(region) if region is not None else None
    price = record.site.model_dump(exclude={"region", "pue"}, exclude_defaults=True)
    mode = "rental" if "usd_per_device_hour" in price else "owned" if price.keys() - {"price_note"} else None
    return {
        "energy": {
            "basis": kind,
            "provenance": str(Provenance.worst([r.provenance for r in readings])),
            "missing": missing,
        },
        "pue": {"pue": pue, "provenance": str(Provenance.ABSENT if pue is None else Provenance.USER_SUPPLIED)},
        "intensity": {"region": None} if grid is None else grid.model_dump(mode="json"),
        "price": {"mode": mode, **(price if mode else {})},
    }


def rent(runs: pd.DataFrame) -> pd.Series:
    """Price of an hour of a device that was rented, which follows from what a run cost; NaN for others."""
    devices = runs.get("billed_devices", runs["devices"]).fillna(runs["devices"])
    prices = runs["cost_usd"] * 3600 / (runs["duration_seconds"] * devices).astype("float64")
    return prices.where(runs["cost_basis"] == "rental")


def sites(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the different sites of runs, as the fields of Site that are known; of older rows region and rent are."""
    out: list[dict[str, Any]] = []
    runs = runs.reindex(columns=[*runs.columns, *({"site", "region"} - {*runs.columns})])
    older = runs["site"].isna()
    for text in runs["site"].dropna().unique():
        out.append(_site(text).model_dump(exclude_defaults=True))
    for region, price in zip(runs.loc[older, "region"], rent(runs[older]), strict=True):
        known = {"region": region} if _REGION.fullmatch(str(region)) else {}
        out.append(known | ({"usd_per_device_hour": float(f"{price:.6g}")} if price >= 0 else {}))
    return [site for place, site in enumerate(out) if site not in out[:place]]


def terms(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Return what cost and carbon of each run rest on besides its seconds and joules, by `cost_basis` and `emissions_basis`.

    Empty where a run has no such figure.
    """
    stated = {text: _site(text) for text in runs["site"].dropna().unique()}
    out: dict[str, list[str]] = {"cost_basis": [], "emissions_basis": []}
    columns = (runs[name].tolist() for name in ("site", "cost_basis", "emissions_basis", "region"))
    for text, cost, carbon, region, price in zip(*columns, rent(runs).tolist(), strict=True):
        site = stated.get(text, Site())
        rented = site.usd_per_device_hour if text in stated else round(price, 6)
        owned = (site.usd_per_kwh, site.usd_capital_per_device_hour, site.pue)
        out["cost_basis"].append("" if pd.isna(cost) else f"{cost} {rented if cost == 'rental' else owned}")
        out["emissions_basis"].append("" if pd.isna(carbon) else f"{carbon} {region} {site.pue}")
    return out


def _site(text: object) -> Site:
    with suppress(ValueError):  # of a file that others wrote
        return Site.model_validate_json(str(text))
    return Site()
