"""The answer of `bench plan`: the document of --json, and the lines that are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analytics.plan import Plan, PlanOption, duration, plain
from analytics.planned import CARBON, ENERGY, amount, devices_words, flags, head, likely, next_words, statements
from analytics.speed import LEVEL

if TYPE_CHECKING:
    from collections.abc import Sequence


def answer(
    plan: Plan, notes: Sequence[str], regions: Sequence[str], *, ask_next: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the document and the lines; `notes` tell which device was taken, and why one's own runs do not apply.

    Raises ValueError for a region that is not known.
    """
    asked, best = plan.question, plan.options[0]
    compared = plan.regions(regions)
    top, told = head(plan, notes, compared=bool(compared)), statements(plan)
    document: dict[str, Any] = {
        "source": asked.speed.source,
        "says": top,
        "work_flops": asked.work.flops if asked.work.says else None,
        "interval_level": LEVEL,
        "options": [option.to_dict() for option in plan.options],
        "fewest_devices": plan.fewest(),
        "fewest_devices_90_percent_sure": plan.fewest(0.9),
        "statements": told,
        "regions": [
            {"region": name, "kg_per_kwh": kg, **plain(emissions_kg=one), "devices": best.devices}
            for name, kg, one in compared
        ],
    }
    lines = [*top, ""]
    for rank, option in enumerate(plan.options, 1):
        lines += _option(option, rank, asked.counted)
    lines += ["", *told] if told else []
    lines += ["", f"Carbon by region, on {devices_words(best.devices)}:"] if compared else []
    for name, kg, one in compared:
        lines.append(f"  {name}: {kg:.3f} kg CO2e/kWh, {amount(one, *CARBON)}")
    against = flags(plan.options)
    lines += ["", *against] if against else []
    if ask_next:
        document["next"], said = next_words(plan)
        lines += ["", *said]
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
    against = f" [{' '.join(option.flags)}]" if option.flags else ""
    sign = f"{rank}." if option.feasible else "no"
    return [f"{sign:>3} {', '.join(parts)}{against}", *(f"      {reason}" for reason in option.reasons)]
