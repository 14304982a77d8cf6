"""`bench report`: the answer of stored runs by another region, PUE and prices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option, site_fields, site_options
from bench.cli.selection import select, selection_options
from bench.record import CarbonIntensity, Provenance, RunRecord, Status
from bench.schema import Site

if TYPE_CHECKING:
    import pandas as pd

Priced = tuple[RunRecord, Site]
"""A record, and the region, PUE and prices that its carbon and cost were made with."""


@click.command()
@selection_options
@site_options
@json_option
def report(store: str | None, as_json: bool, **options: Any) -> None:
    """Print the results of SUITE (a name), or of all suites, with carbon and cost by another region, PUE and prices.

    What is not given stays as it was when the runs were made. Nothing is run, and the store is not changed.
    """
    from bench import tracking
    from bench.cli import answer

    given = site_fields(options)
    df = select(store=store, **options)
    imported = df["flags"].str.contains(r"\bimported\b", na=False)
    try:
        records = tracking.records((run for _, run in df[~imported].iterrows()), store)
    except tracking.StoreError as error:
        fail(str(error))
    if imported.any():
        click.echo(
            f"bench: {imported.sum()} imported runs have no record: their carbon and cost stay as they are", err=True
        )
    priced = _priced(records, given)
    if as_json:
        click.echo(json.dumps(_document(priced, df[imported]), indent=1, allow_nan=False))
        return
    for line in _lines(priced):
        click.echo(line)
    answer.show(_frame(priced, df[imported]))


def _priced(records: Iterable[RunRecord], given: dict[str, Any]) -> list[Priced]:
    """Make carbon and cost anew where something is given; a mistake ends the command with exit code 2."""
    from bench.cost import recost
    from bench.suite import SuiteError, with_site

    out = []
    try:
        for record in records:
            site = with_site(record.site, given)
            if not given:
                out.append((record, site))
                continue
            kept = record.carbon.intensity if record.carbon is not None and "region" not in given else None
            out.append((recost(record, site, kept), site))
    except SuiteError as error:
        fail(*error.messages)
    except ValueError as error:
        fail(str(error))
    return out


def _frame(priced: Sequence[Priced], imported: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    from analytics.frame import declared, tidy
    from bench.metrics import row

    made = declared(row(record) for record, _ in priced)
    return tidy(pd.concat([made, imported], ignore_index=True) if len(imported) else made)


def _document(priced: Sequence[Priced], imported: pd.DataFrame) -> dict[str, Any]:
    from bench.cli import answer

    document = answer.document(_frame(priced, imported))
    records = {
        (r.suite, r.execution, r.environment.fingerprint, r.run_id): r
        for r, _ in sorted(priced, key=lambda one: one[0].started_at)
    }
    for run in document["runs"]:
        record = records.get((run["suite"], run["execution"], run["environment"], run["run_id"]))
        for name in ("carbon", "cost"):
            value = getattr(record, name, None)
            run[name] = None if value is None else value.model_dump(mode="json")
    return {"factors": {name: _counted(priced, of) for name, of in _FACTORS.items()}, **document}


# --- the factors, each with its label


def _energy(one: Priced) -> dict[str, Any]:
    from bench.carbon import basis
    from bench.metrics import missing_components, used_gpus

    record, _ = one
    kind, readings = basis(record.energy) or ("absent", [])
    missing = missing_components(readings, used_gpus(record)) if kind == "measured" else []
    return {"basis": kind, "provenance": str(Provenance.worst([r.provenance for r in readings])), "missing": missing}


def _pue(one: Priced) -> dict[str, Any]:
    pue = one[1].pue
    return {"pue": pue, "provenance": str(Provenance.ABSENT if pue is None else Provenance.USER_SUPPLIED)}


def _intensity(one: Priced) -> dict[str, Any]:
    from bench.carbon import intensity

    record, site = one
    factor: CarbonIntensity | None = None
    if record.carbon is not None:
        factor = record.carbon.intensity
    elif site.region is not None:
        factor = intensity(site.region)
    return {"region": None} if factor is None else factor.model_dump(mode="json")


def _price(one: Priced) -> dict[str, Any]:
    known = one[1].model_dump(exclude={"region", "pue"}, exclude_defaults=True)
    if not known.keys() - {"price_note"}:
        return {"mode": None}
    return {"mode": "rental" if "usd_per_device_hour" in known else "owned", **known}


_FACTORS: dict[str, Callable[[Priced], dict[str, Any]]] = {
    "energy": _energy,
    "pue": _pue,
    "intensity": _intensity,
    "price": _price,
}


def _counted(priced: Sequence[Priced], of: Callable[[Priced], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the distinct values of a factor, the most frequent first, with the number of runs that each holds for."""
    ran = [one for one in priced if one[0].status is not Status.SKIPPED] or priced
    counts = Counter(json.dumps(of(one)) for one in ran)
    return [{**json.loads(text), "runs": runs} for text, runs in counts.most_common()]


# --- the factors in words


def _lines(priced: Sequence[Priced]) -> list[str]:
    """Say what carbon and cost rest on: a line each, and one of their sums."""
    energy, pue, intensity, price = (_joined(_counted(priced, _FACTORS[name]), words) for name, words in _WORDS.items())
    carbons = [record.carbon.emissions_kg for record, _ in priced if record.carbon is not None]
    costs = [record.cost.cost_usd for record, _ in priced if record.cost is not None]
    sums = [f"{1000 * sum(carbons):.3g} g CO2e ({len(carbons)} runs)"] if carbons else []
    sums += [f"{sum(costs):.3g} USD ({len(costs)} runs)"] if costs else []
    total = [f"sum of whole runs: {', '.join(sums)}"] if sums else []
    return [f"carbon = energy {energy} × PUE {pue} × intensity {intensity}", f"cost: {price}", *total]


def _joined(found: list[dict[str, Any]], words: Callable[[dict[str, Any]], str]) -> str:
    if len(found) == 1:
        return words(found[0])
    return " / ".join(f"{words(one)} in {one['runs']} runs" for one in found)


def _energy_words(energy: dict[str, Any]) -> str:
    lacks = f", lacks {' and '.join(energy['missing'])}" if energy["missing"] else ""
    return "absent" if energy["basis"] == "absent" else f"{energy['basis']} ({energy['provenance']}{lacks})"


def _pue_words(pue: dict[str, Any]) -> str:
    return (
        "absent (1.0 is used: cooling is left out)" if pue["pue"] is None else f"{pue['pue']:g} ({pue['provenance']})"
    )


def _intensity_words(factor: dict[str, Any]) -> str:
    from analytics.words import printable

    if factor["region"] is None:
        return "absent (no region: give --region FR)"
    where = ", ".join(str(factor[name]) for name in ("region", "year", "source") if factor[name] is not None)
    return f"{factor['kg_per_kwh']:.3g} kg {factor['unit']}/kWh ({printable(where, 120)})"


def _price_words(price: dict[str, Any]) -> str:
    from analytics.words import printable

    note = f" ({printable(price['price_note'], 200)})" if price.get("price_note") else ""
    if price["mode"] is None:
        return "no price is known: give --price, or --electricity-price and --capital-price"
    if price["mode"] == "rental":
        return f"rented at {price['usd_per_device_hour']:g} USD per device-hour, power inside{note}"
    parts = []
    if "usd_capital_per_device_hour" in price:
        parts.append(f"{price['usd_capital_per_device_hour']:g} USD per device-hour")
    if "usd_per_kwh" in price:
        parts.append(f"energy × PUE × {price['usd_per_kwh']:g} USD per kWh")
    return f"owned, {' + '.join(parts)}{note}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "energy": _energy_words,
    "pue": _pue_words,
    "intensity": _intensity_words,
    "price": _price_words,
}
