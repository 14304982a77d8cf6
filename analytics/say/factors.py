"""What carbon and cost of stored runs rest on, in words: energy, PUE, carbon intensity and price."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from analytics.runs.hourly import Hourly, Starts
from analytics.runs.recost import factors as factors
from analytics.text import counted, number, printable
from bench.figures.regions import region_name
from bench.record import RunRecord

_VARIES = {"intensity": "kg_per_kwh", "price": "usd_per_kwh"}
"""Figures that may differ from run to run, where they are taken by the hour: they are told as a range."""


def lines(records: Sequence[RunRecord]) -> list[str]:
    """Say what carbon and cost rest on: a line each, and one of their sums."""
    said = words(records)
    carbons = [record.carbon.emissions_kg for record in records if record.carbon is not None]
    costs = [record.cost.cost_usd for record in records if record.cost is not None]
    sums = [f"{number(1000 * sum(carbons))} g CO2e ({counted(len(carbons), 'run')})"] if carbons else []
    sums += [f"{number(sum(costs))} USD ({counted(len(costs), 'run')})"] if costs else []
    total = [f"Sum of whole runs: {', '.join(sums)}"] if sums else []
    equation = f"Carbon = energy ({said['energy']}) × PUE ({said['pue']}) × intensity ({said['intensity']})"
    return [*total, equation, f"Cost: {said['price']}"]


def words(records: Sequence[RunRecord]) -> dict[str, str]:
    """Say each factor in words: `energy`, `pue`, `intensity`, `price`."""
    return {name: _joined(name, found) for name, found in factors(records).items()}


def _joined(name: str, found: list[dict[str, Any]]) -> str:
    varies = _VARIES.get(name, "")
    groups: dict[str, list[dict[str, Any]]] = {}
    for value in found:
        same = json.dumps({key: part for key, part in value.items() if key not in ("runs", varies)})
        groups.setdefault(same, []).append(value)
    said: Counter[str] = Counter()
    for group in groups.values():
        figures = sorted(value[varies] for value in group if varies in value)
        ends = dict.fromkeys(number(end) for end in (figures[:1] + figures[-1:]))
        said[_WORDS[name](group[0] | ({varies: " to ".join(ends)} if ends else {}))] += sum(v["runs"] for v in group)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{text} in {counted(runs, 'run')}" for text, runs in said.items())


_PROVENANCES = {
    "measured_counter": "by energy counters",
    "measured_counter_interp": "by energy counters",
    "integrated_samples": "from samples of power",
    "measured_external": "by an external meter",
    "attributed": "a share of a larger part",
    "estimated_model": "by CodeCarbon",
    "estimated_tdp": "from the rated power",
}


def energy_origin(provenance: str) -> str:
    """Say where an energy comes from: `by energy counters`, `~ by CodeCarbon`; nothing for an empty text."""
    estimated = provenance.startswith("estimated")
    return "~ " * estimated + _PROVENANCES.get(provenance, provenance.replace("_", " "))


def _energy(energy: dict[str, Any]) -> str:
    how = _PROVENANCES.get(energy["provenance"])
    lacks = f", without {' and '.join(energy['missing'])}" if energy["missing"] else ""
    return "absent" if energy["basis"] == "absent" else f"{energy['basis']}{f' {how}' if how else ''}{lacks}"


def _pue(pue: dict[str, Any]) -> str:
    return "not given: cooling is left out" if pue["pue"] is None else f"{number(pue['pue'])}, given"


def _intensity(factor: dict[str, Any]) -> str:
    if factor["region"] is None:
        return "no region: give --region FR"
    parts = (region_name(factor["region"]), factor["year"], factor["source"].replace("user_supplied", "given"))
    where = ", ".join(str(part) for part in parts if part is not None)
    return f"{factor['kg_per_kwh']} kg {factor['unit']}/kWh, {printable(where, 120)}"


def _price(price: dict[str, Any]) -> str:
    note = f" ({printable(price['price_note'], 200)})" if price.get("price_note") else ""
    if price["mode"] is None:
        return "no price is known: give --price, or --electricity-price and --capital-price"
    if price["mode"] == "rental":
        return f"rented at {number(price['usd_per_device_hour'])} USD per device-hour, power included{note}"
    parts = []
    if "usd_capital_per_device_hour" in price:
        parts.append(f"{number(price['usd_capital_per_device_hour'])} USD per device-hour")
    if "usd_per_kwh" in price:
        parts.append(f"energy × PUE × {price['usd_per_kwh']} USD per kWh")
    return f"owned, {' + '.join(parts)}{note}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "energy": _energy,
    "pue": _pue,
    "intensity": _intensity,
    "price": _price,
}


def by_the_hour(records: Sequence[RunRecord], hourly: Hourly) -> list[str]:
    """Say at which hour the runs would have met the least carbon, where that can be said, and what prices are not used."""
    carbons = [(record, record.carbon) for record in records if record.carbon is not None]
    runs = [(r.started_at, r.duration_seconds, c.energy_joules / 3.6e6 * c.pue) for r, c in carbons]
    name = printable(hourly.name)
    said = [*_best(hourly.starts(runs), name)] if runs else []
    if hourly.priced and any(record.site.usd_per_device_hour is not None for record in records):
        said.append(f"The prices of {name} are not used for rented devices: a rent includes power.")
    return said


def _best(starts: Starts | None, name: str) -> Iterator[str]:
    if starts is None:
        yield f"No best hour can be named: {name} covers less than a day, or none of it as long as the runs took."
        return
    was = number(1000 * starts.was)
    if starts.best is None:
        yield f"The hour of start does not matter by {name}: {was} g CO2e at any."
        return
    form = "%Y-%m-%d %H:%M" if starts.dated else "%H:%M"
    span = f" of those from {min(starts.kg):{form}} to {max(starts.kg):{form}}" if starts.dated else ""
    least = number(1000 * starts.kg[starts.best])
    yield (
        f"Best hour to start{span}: {starts.best:{form}} UTC, {least} g CO2e instead of {was} g from "
        f"{starts.began:{form}} on (by {name})."
    )
