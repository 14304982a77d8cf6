"""A plan as the Planner page shows it: why options stand where they stand, and its tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analytics.plan import Plan, PlanOption, Range, duration
from analytics.planned import CARBON, ENERGY, amount, likely
from analytics.words import printable
from bench.figures.carbon import intensity

FIELDS = {
    "params": ("Parameters", "1B 3B 7B 13B 34B 70B 175B 405B", ""),
    "tokens": ("Tokens", "20B 100B 300B 1T 2T 15T", ""),
    "active-params": ("Active parameters", "3B 17B", "Those that work on one token, of a mixture of experts."),
    "sequence": ("Sequence [tokens]", "2048 4096 8192", ""),
    "layers": ("Layers", "32 80", "With the hidden size; otherwise a typical shape is assumed, and said."),
    "hidden": ("Hidden size", "4096 8192", ""),
    "flops-per-sample": ("FLOP per sample", "1e12", "Forward and backward pass of one sample."),
    "samples": ("Samples", "1M 1B", ""),
    "devices": ("Other numbers of devices", "8,64,512 1-8", "In place of the slider: 8,64,512 or 8-512 (doubling)."),
    "peak-flops": ("Peak [FLOP/s]", "1e15", "Dense, of a device that is not known here."),
    "power-watts": ("Power of a device [W]", "400 700 1200", "With its share of the node; otherwise estimated."),
    "batch": ("Batch [sequences]", "512 1024 4096", "Of all devices: more devices are of no use."),
    "deadline": ("Deadline", "1d 7d 14d 30d 60d 90d", "A number and w, d, h, m or s."),
    "budget": ("Budget [USD]", "10k 100k 200k 1M", ""),
    "price": ("Rent [USD per device-hour]", "1 2 2.5 4", "Electricity is inside."),
    "capital-price": ("Capital [USD per device-hour]", "0.5 1 1.5", "What a device costs / the hours of its use."),
    "electricity-price": ("Electricity [USD per kWh]", "0.1 0.2 0.3", ""),
    "pue": ("PUE", "1.1 1.2 1.4 1.6", "Energy of the whole building / energy of the machines."),
    "region": (
        "Region",
        "FR SE NO DE PL GB ES IN CN JP CA US-CA US-TX US-VA",
        "A country (FR, FRA) or US state (US-CA).",
    ),
}
"""Label, examples and help of what can be given, by its option of `bench plan`; each is also its name in the address."""


def facts(option: PlanOption) -> dict[str, str | None]:
    """Say what an option takes, each figure with its interval; ~ marks what a model estimates. None is not known."""
    energy, carbon = option.facility_energy_joules, option.emissions_kg
    return {
        "Time": duration(option.duration_seconds),
        "Cost": f"{option.cost_usd} USD" if option.cost_usd else None,
        "Energy, ~ estimated": amount(energy, *ENERGY) if energy else None,
        "Carbon, ~ estimated": amount(carbon, *CARBON) if carbon else None,
        "Chance to meet what is asked": None if option.chance is None else likely(option.chance),
    }


def why(plan: Plan, option: PlanOption) -> str:
    """Say why an option stands where it stands."""
    first, cost = plan.options[0], option.cost_usd
    if not option.feasible:
        return f"No: {'; '.join(option.reasons)}."
    asked = plan.question.deadline_seconds is not None or plan.question.budget_usd is not None
    among = " of those that meet what is asked" if asked else ""
    if option is first:
        return f"First: the cheapest{among}." if cost else f"First: the fastest{among}; no cost is known."
    time = option.duration_seconds.value / first.duration_seconds.value
    dearer = f"{cost.value / first.cost_usd.value:.3g} times the cost and " if cost and first.cost_usd else ""
    return f"{dearer}{time:.3g} times the time of the first."


def nearest(plan: Plan) -> list[PlanOption]:
    """Return the options, the best first; those that do not meet what is asked by their chance, then by how far off."""

    def rank(option: PlanOption) -> tuple[float, ...]:
        usd, asked = option.cost_usd, plan.question
        limits = (option.duration_seconds, asked.deadline_seconds), (usd, asked.budget_usd)
        over = [of.value / most for of, most in limits if of and most and of.value > most]
        impossible = len(option.reasons) > len(over)  # however late or dear it is
        return (0,) if option.feasible else (1, -(option.chance or 0), impossible, max(over, default=0))

    return sorted(plan.options, key=rank)


def options_table(plan: Plan) -> pd.DataFrame:
    """Return a row an option as text, the best first, without what is not known of any."""
    rows = [
        {"Rank": str(rank) if option.feasible else "no", "Devices": option.devices}
        | facts(option)
        | {"Why": why(plan, option), "Device-hours": str(option.device_hours), "Flags": " ".join(option.flags)}
        for rank, option in enumerate(plan.options, 1)
    ]
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def known_regions(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the regions whose intensity is known, and sentences on those of which it is not."""
    known, unknown = [], list[str]()
    for name in dict.fromkeys(names):
        try:
            intensity(name)
            known.append(name)
        except ValueError as error:
            unknown.append(f"Carbon is left out: {error}")
    return known, unknown


def regions_table(names: Sequence[str], compared: Sequence[tuple[str, float, Range]]) -> pd.DataFrame:
    """Return the carbon of the best option by region, with the intensity, its year and its source."""
    rows = []
    for factor, (region, kg, one) in zip(map(intensity, names), compared, strict=True):
        row = {"Region": region, "CO2e, ~ estimated": amount(one, *CARBON), f"kg {factor.unit} per kWh": round(kg, 4)}
        rows.append(row | {"Year": str(factor.year or ""), "Source": factor.source})
    return pd.DataFrame(rows)


def command(given: Mapping[str, str | bool | None]) -> str:
    """Return the line that asks `bench plan` the same, of its options as they were typed; quoted for a shell."""
    words = ["bench", "plan"]
    for name, text in given.items():
        words += [f"--{name}", *([] if text is True else [shlex.quote(printable(text, 400))])] if text else []
    return " ".join(words)
