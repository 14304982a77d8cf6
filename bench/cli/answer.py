"""The answer of a suite: the table of results and the fitted law, for `bench run` and `bench fit` alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.schema import Scalar

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_ESTIMATED = "~ is the figure of a model (CodeCarbon), not a measurement."


def document(rows: Sequence[dict[str, Scalar]]) -> dict[str, Any]:
    """The answer as JSON: every run, one entry a configuration, and the fit. Absent figures are null."""
    from analytics.frame import frame, summary
    from analytics.scaling import fit

    df = frame(rows)
    return {
        "runs": _records(df),
        "configurations": _records(summary(df)),
        "fit": fit(df).to_dict(),
    }


def _records(df: pd.DataFrame) -> list[dict[str, Any]]:
    text = df.to_json(orient="records", date_format="iso", double_precision=15)
    records: list[dict[str, Any]] = json.loads(text)
    return records


def show(rows: Sequence[dict[str, Scalar]]) -> None:
    """Print the answer for people: the table, what is missing in it and why, and the law in words."""
    from rich.console import Console

    from analytics.frame import frame, summary
    from analytics.scaling import fit
    from analytics.words import printable

    df = frame(rows)
    results = summary(df)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=140)
    for suite, execution in dict.fromkeys(zip(results["suite"], results["execution"], strict=True)):
        one = results[(results["suite"] == suite) & (results["execution"] == execution)]
        devices = " and ".join(sorted(set(one["device_name"])))
        console.print(f"\n{printable(suite)} {printable(execution)} on {printable(devices)}")
        console.print(_table(one))
        for line in _remarks(one):
            console.print(f"  {line}")
    failed = df[~df["status"].isin(["ok"])]
    for _, run in failed.iterrows():
        console.print(f"  {run['status']}: {printable(run['run_id'], 160)}: {printable(run['error_message'], 300)}")
    law = fit(df) if len(results) else None
    if law is not None and law.series:
        console.print()
        for sentence in law.sentences():
            console.print(sentence)
    elif law is not None:
        console.print("  no law is fitted: these runs do not say how much work (FLOP) a sample takes")


def _table(results: pd.DataFrame) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns: dict[str, list[str]] = {
        "runs": [str(count) for count in results["repeats"]],
        "seconds (95 %)": _whole_runs(results),
        **_of_whole_runs(results),
        "samples/s (95 %)": [_with_interval(row, "samples_per_second") for _, row in results.iterrows()],
        "J/sample": [_energy(row) for _, row in results.iterrows()],
        "g CO2e/Mtoken": _figures(results["emissions_kg_per_million_tokens"] * 1000, results["emissions_basis"]),
        "USD/Mtoken": _figures(results["cost_usd_per_million_tokens"], results["cost_basis"]),
        "loss": [_loss(row) for _, row in results.iterrows()],
        "quality": [str(grade) for grade in results["quality"].fillna("-")],
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("configuration", no_wrap=True)
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {"-"}}
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=heading == "loss")
    for name, *cells in zip(results["name"], *shown.values(), strict=True):
        table.add_row(*(Text(cell) for cell in (name, *cells)))
    return table


def _figures(values: pd.Series, basis: pd.Series) -> list[str]:
    return [_number(value, "~" if "estimated" in str(on) else "") for value, on in zip(values, basis, strict=True)]


def _number(value: float, mark: str = "") -> str:
    return "-" if math.isnan(value) else f"{mark}{value:.3g}"


def _loss(row: pd.Series) -> str:
    return "-" if math.isnan(row["loss_first"]) else f"{row['loss_first']:.2f} -> {row['loss_last']:.2f}"


def _whole_runs(results: pd.DataFrame) -> list[str]:
    """Seconds of whole runs, where some tell no throughput: a command of the user that reports no steps."""
    if results["samples_per_second"].notna().all():
        return ["-"] * len(results)
    return [_with_interval(row, "duration_seconds") for _, row in results.iterrows()]


def _of_whole_runs(results: pd.DataFrame) -> dict[str, list[str]]:
    """Energy, carbon and money of a whole run, for the same runs as `_whole_runs`."""
    if results["samples_per_second"].notna().all():
        return {}
    joules = results["run_energy_joules"]
    energy = joules.fillna(results["run_energy_estimated_joules"])
    basis = joules.notna().map({True: "measured", False: "estimated"})
    return {
        "J": _figures(energy, basis),
        "g CO2e": _figures(results["emissions_kg"] * 1000, results["emissions_basis"]),
        "USD": _figures(results["cost_usd"], results["cost_basis"]),
    }


def _with_interval(row: pd.Series, name: str) -> str:
    if math.isnan(row[name]):
        return "-"
    if math.isnan(row[f"{name}_low"]):
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} ({row[f'{name}_low']:.4g} to {row[f'{name}_high']:.4g})"


def _energy(row: pd.Series) -> str:
    if not math.isnan(row["joules_per_sample"]):
        return _number(row["joules_per_sample"])
    return _number(row["joules_per_sample_estimated"], "~")


def _systematic(measured: pd.DataFrame) -> list[str]:
    """What repeats do not show of measured energy, what of it is idle power, and what a start takes."""
    out = []
    share = (measured["energy_systematic_joules"] / measured["energy_joules"]).max()
    if share > 0:
        out.append(f"measured energy: repeats aside, ±{100 * share:.2g} % (gain of the sensors, assumed, and edges)")
    idle = (1 - measured["energy_above_idle_joules"] / measured["energy_joules"]).median()
    if not math.isnan(idle):
        out.append(f"of it {100 * idle:.2g} % would be drawn idle too (attributed: idle power × time)")
    joules = measured["startup_energy_joules"].median()
    if not math.isnan(joules):
        seconds = measured["startup_seconds"].median()
        out.append(f"a start takes {seconds:.2g} s and {joules:.3g} J, once (median), and is not in the figures above")
    return out


def _remarks(results: pd.DataFrame) -> list[str]:
    """What a reader of the table must know: estimates, missing parts, what to give for carbon and cost."""
    from analytics.words import printable
    from bench.quality import meaning

    out = []
    measured = results["energy_joules"].notna()
    estimated = results["run_energy_estimated_joules"].notna()
    missing = " ".join(
        sorted({word for text in results.loc[measured, "energy_missing"].dropna() for word in text.split()})
    )
    if measured.any() and missing:
        out.append(
            f"energy is a partial total: {missing.replace(' ', ' and ')} could not be measured (bench doctor says why)"
        )
    if (~measured & estimated).any():
        out.append(_ESTIMATED)
    elif not measured.all():
        out.append("no energy: no meter could read any (bench doctor says why)")
    out += _systematic(results[measured])
    energy = measured | estimated
    if energy.any() and results["emissions_kg"].isna().all():
        out.append("no carbon: give a region, the power of which is used (bench report --region FR)")
    if results["cost_usd"].isna().all():
        out.append(
            "no cost: give USD per device-hour (bench report --price 2.10) or per kWh (--electricity-price 0.20)"
        )
    out.append("quality: A fit to be published, B sound with the limits below, C a figure may be wrong")
    if (results["repeats"] < 2).any():
        out.append("one repeat has no interval: give repeats of 3 or more")
    flags = {flag for text in results["flags"] for flag in str(text).split()} - {"energy_estimated", "energy_absent"}
    for flag in sorted(flags):
        named = [row["name"] for _, row in results.iterrows() if flag in str(row["flags"]).split()]
        which = "all" if len(named) == len(results) else ", ".join(map(printable, named))
        if len(named) > 3 and len(named) < len(results):
            which = f"{len(named)} of {len(results)}"
        out.append(f"{flag} ({which}): {meaning(flag)}")
    return out
