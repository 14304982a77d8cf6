"""What carbon and cost of stored runs rest on: energy, PUE, intensity and price, each with its label and in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from analytics.runs.hourly import Hourly, Starts
from analytics.text import number, printable
from bench.figures.carbon import basis, intensity
from bench.figures.cost import recost
from bench.figures.metrics import missing_components
from bench.record import CarbonIntensity, Provenance, RunRecord, Status
from bench.suites.load import with_site


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


def by_the_hour(records: Sequence[RunRecord], hourly: Hourly) -> list[str]:
    """Say at which hour the runs would have met the least carbon, where that can be said, and what prices are not used."""
    runs = [
        (r.started_at, r.duration_seconds, r.carbon.energy_joules / 3.6e6 * r.carbon.pue)
        for r in records
        if r.carbon is not None
    ]
    said, name = [*_best(hourly.starts(runs), printable(hourly.name))] if runs else [], printable(hourly.name)
    if hourly.priced and any(record.site.usd_per_device_hour is not None for record in records):
        said.append(f"the prices of {name} are not used for rented devices: a rent includes power")
    return said


def _best(starts: Starts | None, name: str) -> Iterator[str]:
    if starts is None:
        yield f"{name} covers less than a day, or none of it as long as the runs took: no best hour to start can be said"
        return
    if starts.best is None:
        yield f"by {name} it does not matter at which hour these runs start: {number(1000 * starts.was)} g CO2e at any"
        return
    form = "%Y-%m-%d %H:%M" if starts.dated else "%H:%M"
    than = f"{number(1000 * starts.kg[starts.best])} g CO2e instead of {number(1000 * starts.was)} g, begun at"
    span = f" of those from {min(starts.kg):{form}} to {max(starts.kg):{form}}" if starts.dated else ""
    best = f"best hour{span} to start these runs by {name}"
    yield f"{best}: {starts.best:{form}} UTC ({than} {starts.began:{form}})"


# --- the factors, each with its label


def _energy(record: RunRecord) -> dict[str, Any]:
    kind, readings = basis(record.energy) or ("absent", [])
    missing = missing_components(readings, record.gpus) if kind == "measured" else []
    return {"basis": kind, "provenance": str(Provenance.worst([r.provenance for r in readings])), "missing": missing}


def _pue(record: RunRecord) -> dict[str, Any]:
    pue = record.site.pue
    return {"pue": pue, "provenance": str(Provenance.ABSENT if pue is None else Provenance.USER_SUPPLIED)}


def _intensity(record: RunRecord) -> dict[str, Any]:
    factor: CarbonIntensity | None = None
    if record.carbon is not None:
        factor = record.carbon.intensity
    elif record.site.region is not None:
        factor = intensity(record.site.region)
    return {"region": None} if factor is None else factor.model_dump(mode="json")


def _price(record: RunRecord) -> dict[str, Any]:
    known = record.site.model_dump(exclude={"region", "pue"}, exclude_defaults=True)
    if not known.keys() - {"price_note"}:
        return {"mode": None}
    return {"mode": "rental" if "usd_per_device_hour" in known else "owned", **known}


_FACTORS: dict[str, Callable[[RunRecord], dict[str, Any]]] = {
    "energy": _energy,
    "pue": _pue,
    "intensity": _intensity,
    "price": _price,
}


def factors(records: Sequence[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """Return the distinct values of each factor, the most frequent first, with the number of runs that each holds for."""
    ran = [record for record in records if record.status is not Status.SKIPPED] or list(records)
    counts = {name: Counter(json.dumps(of(record)) for record in ran) for name, of in _FACTORS.items()}
    return {
        name: [{**json.loads(text), "runs": runs} for text, runs in found.most_common()]
        for name, found in counts.items()
    }


# --- the factors in words


def words(records: Sequence[RunRecord]) -> dict[str, str]:
    """Say each factor in words, with its label and its source: `energy`, `pue`, `intensity`, `price`."""
    return {name: _joined(found, name) for name, found in factors(records).items()}


def lines(records: Sequence[RunRecord]) -> list[str]:
    """Say what carbon and cost rest on: a line each, and one of their sums."""
    said = words(records)
    carbons = [record.carbon.emissions_kg for record in records if record.carbon is not None]
    costs = [record.cost.cost_usd for record in records if record.cost is not None]
    sums = [f"{1000 * sum(carbons):.3g} g CO2e ({len(carbons)} runs)"] if carbons else []
    sums += [f"{sum(costs):.3g} USD ({len(costs)} runs)"] if costs else []
    total = [f"sum of whole runs: {', '.join(sums)}"] if sums else []
    equation = f"carbon = energy {said['energy']} × PUE {said['pue']} × intensity {said['intensity']}"
    return [equation, f"cost: {said['price']}", *total]


_VARIES = {"intensity": ("kg_per_kwh", ".3g"), "price": ("usd_per_kwh", "g")}
"""Figures that may differ from run to run, where they are taken by the hour; many of them are told as a span."""
_FEW = 3


def _joined(found: list[dict[str, Any]], name: str) -> str:
    varies, form = _VARIES.get(name, ("", ""))
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        same = {key: value for key, value in one.items() if key != "runs" and (key != varies or len(found) <= _FEW)}
        groups.setdefault(json.dumps(same), []).append(one)
    said: Counter[str] = Counter()
    for group in groups.values():
        told = list(dict.fromkeys(f"{value:{form}}" for value in sorted(one[varies] for one in group if varies in one)))
        span = {varies: " to ".join(dict.fromkeys([told[0], told[-1]]))} if told else {}
        said[_WORDS[name]({**group[0], **span})] += sum(one["runs"] for one in group)
    return next(iter(said)) if len(said) == 1 else " / ".join(f"{text} in {runs} runs" for text, runs in said.items())


def _energy_words(energy: dict[str, Any]) -> str:
    lacks = f", lacks {' and '.join(energy['missing'])}" if energy["missing"] else ""
    return "absent" if energy["basis"] == "absent" else f"{energy['basis']} ({energy['provenance']}{lacks})"


def _pue_words(pue: dict[str, Any]) -> str:
    return (
        "absent (1.0 is used: cooling is left out)" if pue["pue"] is None else f"{pue['pue']:g} ({pue['provenance']})"
    )


def _intensity_words(factor: dict[str, Any]) -> str:
    if factor["region"] is None:
        return "absent (no region: give --region FR)"
    where = ", ".join(str(factor[name]) for name in ("region", "year", "source") if factor[name] is not None)
    return f"{factor['kg_per_kwh']} kg {factor['unit']}/kWh ({printable(where, 120)})"


def _price_words(price: dict[str, Any]) -> str:
    note = f" ({printable(price['price_note'], 200)})" if price.get("price_note") else ""
    if price["mode"] is None:
        return "no price is known: give --price, or --electricity-price and --capital-price"
    if price["mode"] == "rental":
        return f"rented at {price['usd_per_device_hour']:g} USD per device-hour, power inside{note}"
    parts = []
    if "usd_capital_per_device_hour" in price:
        parts.append(f"{price['usd_capital_per_device_hour']:g} USD per device-hour")
    if "usd_per_kwh" in price:
        parts.append(f"energy × PUE × {price['usd_per_kwh']} USD per kWh")
    return f"owned, {' + '.join(parts)}{note}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "energy": _energy_words,
    "pue": _pue_words,
    "intensity": _intensity_words,
    "price": _price_words,
}


def rent(runs: pd.DataFrame) -> pd.Series:
    """Price of an hour of a device that was rented, which follows from what a run cost; NaN for others."""
    prices = runs["cost_usd"] * 3600 / (runs["duration_seconds"] * runs["devices"]).astype("float64")
    return prices.where(runs["cost_basis"] == "rental")
