"""The answer of `bench plan`: the document of --json, and the lines that are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analytics.plan import Plan, PlanOption, duration, plain
from analytics.planned import CARBON, ENERGY, amount, devices_words, flags, head, likely, next_words, statements
from analytics.speed import LEVEL
from analytics.work import scaled
from bench.errors import UserError


def answer(
    plan: Plan, notes: Sequence[str], regions: Sequence[str], *, ask_next: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the document and the lines; `notes` say which device was taken, and why the user's runs do not apply.

    Raises BadValue for an unknown region.
    """
    question, best = plan.question, plan.options[0]
    compared = plan.regions(regions)
    top, sentences = head(plan, notes, compared=bool(compared)), statements(plan)
    document: dict[str, Any] = {
        "source": question.speed.source,
        "says": top,
        "work_flops": question.work.flops if question.work.says else None,
        "interval_level": LEVEL,
        "options": [option.to_dict() for option in plan.options],
        "fewest_devices": plan.fewest(),
        "fewest_devices_90_percent_sure": plan.fewest(0.9),
        "statements": sentences,
        "regions": [
            {"region": name, "kg_per_kwh": kg, **plain(emissions_kg=emissions), "devices": best.devices}
            for name, kg, emissions in compared
        ],
    }
    lines = [*top, ""]
    for rank, option in enumerate(plan.options, 1):
        lines += _option(option, rank, question.counted)
    lines += ["", *sentences] if sentences else []
    lines += ["", f"Carbon by region, on {devices_words(best.devices)}:"] if compared else []
    for name, kg, emissions in compared:
        lines.append(f"  {name}: {kg:.3f} kg CO2e/kWh, {amount(emissions, *CARBON)}")
    warnings = flags(plan.options)
    lines += ["", *warnings] if warnings else []
    if ask_next:
        document["next"], proposals = next_words(plan)
        lines += ["", *proposals]
    return document, lines


def _option(option: PlanOption, rank: int, counted: bool) -> list[str]:
    time = duration(option.duration_seconds)
    if counted:
        parts = [f"{devices_words(option.devices)}: {time}"]
    else:
        hours = f"{option.device_hours} device-hours"
        parts = [hours if option.cost_usd or option.facility_energy_joules or option.model_flops_utilization else time]
    if option.cost_usd is not None:
        parts.append(f"{option.cost_usd} USD")
    if option.facility_energy_joules is not None:
        parts.append(amount(option.facility_energy_joules, *ENERGY))
    if option.emissions_kg is not None:
        parts.append(amount(option.emissions_kg, *CARBON))
    if option.embodied_kg is not None:
        parts.append(f"{amount(option.embodied_kg, *CARBON)} embodied (not in the other)")
    if option.model_flops_utilization is not None:
        mfu = option.model_flops_utilization
        parts.append("MFU above 1" if mfu > 1 else f"MFU {mfu:.2f}" if mfu >= 0.01 else f"MFU {mfu:.2g}")
    if option.feasible and option.chance is not None:
        parts.append(f"{likely(option.chance)} likely to meet what is asked")
    warnings = f" [{' '.join(option.flags)}]" if option.flags else ""
    sign = f"{rank}." if option.feasible else "no"
    return [f"{sign:>3} {', '.join(parts)}{warnings}", *(f"      {reason}" for reason in option.reasons)]


def scaled_answer(
    known: dict[str, float], devices: Sequence[int] | None, claim: float | None, **training: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Scale a known training by T = n / (d · v): return the document and the arithmetic line by line.

    `training` has what is given of params, tokens and speed; `claim` is a time in seconds to be checked. Raises UserError.
    """
    if devices and len(devices) > 1:
        raise UserError("--known takes one number of --devices")
    given = {name: value for name, value in training.items() if value is not None}
    hours, lines = scaled(known, given | ({"devices": devices[0]} if devices else {}))
    document: dict[str, Any] = {"duration_seconds": hours * 3600, "arithmetic": list(lines)}
    if claim is not None:
        share = hours * 3600 / claim
        document |= {"claim_seconds": claim, "claim_relative_efficiency": share}
        beyond = ": faster than the law allows" if share > 1 else ""
        lines.append(f"{claim / 3600:,.4g} h would mean a relative efficiency of {share:.2f}{beyond}.")
    return document, lines
