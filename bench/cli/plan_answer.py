"""The answer of `bench plan`: the document of --json, and the lines that are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analytics.plan import FLAGS, Plan, PlanOption, Step, duration, next_runs
from analytics.speed import LEVEL, OwnSpeed
from analytics.stats import REACH
from analytics.words import FLAGS as LAW_FLAGS
from analytics.words import printable
from bench.carbon import intensity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def answer(plan: Plan, why: str, regions: Sequence[str], *, ask_next: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the document and the lines; `why` tells why one's own runs do not apply.

    Raises ValueError for a region that is not known.
    """
    asked, best = plan.question, plan.options[0]
    compared = plan.regions(regions)
    speed = f"Speed: {', '.join(asked.speed.says)}."
    head = [*asked.work.says, speed, *([why] if why else []), *_factors(plan)]
    statements = _statements(plan)
    document: dict[str, Any] = {
        "source": asked.speed.source,
        "says": head,
        "work_flops": asked.work.flops if asked.work.says else None,
        "interval_level": LEVEL,
        "options": [option.to_dict() for option in plan.options],
        "fewest_devices": plan.fewest(),
        "fewest_devices_90_percent_sure": plan.fewest(0.9),
        "statements": statements,
        "regions": [
            {
                "region": name,
                "kg_per_kwh": kg,
                "emissions_kg": one.value,
                "emissions_kg_low": one.low,
                "emissions_kg_high": one.high,
            }
            for name, kg, one in compared
        ],
    }
    lines = [
        *head,
        "",
        *(line for rank, option in enumerate(plan.options, 1) for line in _option(option, rank, asked.counted)),
    ]
    lines += ["", *statements] if statements else []
    lines += [
        f"  {name}: {kg:.3f} kg CO2e/kWh, ~{one.times(1e-3)} t CO2e ({best.devices:,} devices)"
        for name, kg, one in compared
    ]
    flags = dict.fromkeys(flag for option in plan.options for flag in option.flags)
    lines += ["", *(f"{flag}: {(FLAGS | LAW_FLAGS).get(flag, flag)}." for flag in flags)] if flags else []
    if ask_next:
        document["next"], told = _next(plan)
        lines += ["", *told]
    return document, lines


def _factors(plan: Plan) -> Iterator[str]:
    """Say what energy, carbon and cost rest on, with labels."""
    asked, option = plan.question, plan.options[0]
    site, speed = asked.site, asked.speed
    if option.energy_estimated_joules is None:
        yield "Energy and carbon are absent: no power is known (give --power-watts)."
    else:
        own = isinstance(speed, OwnSpeed) and asked.watts == speed.watts
        label = speed.watts_label if isinstance(speed, OwnSpeed) and own else "user_supplied"
        model = "estimated, from the devices' limits and the power of measured nodes, host included"
        power = model if asked.watts is None else f"{asked.watts:,.4g} W a device ({label})"
        yield f"Energy: {power}; PUE {'absent' if site.pue is None else f'{site.pue:g} (user_supplied)'}."
        if site.region is None:
            yield "Carbon is absent: no region (give --region FR)."
        else:
            factor = intensity(site.region)
            where = printable(", ".join(str(x) for x in (factor.region, factor.year, factor.source) if x), 120)
            yield f"Carbon: energy × {factor.kg_per_kwh:.3g} kg {factor.unit}/kWh, location-based ({where})."
    if option.cost_usd is None:
        yield "Cost is absent: no price (give --price, or --electricity-price and --capital-price)."
    if option.duration_seconds.low != option.duration_seconds.high:
        yield f"In brackets: {100 * LEVEL:.0f} % intervals."


def _option(option: PlanOption, rank: int, counted: bool) -> list[str]:
    time = duration(option.duration_seconds)
    if counted:
        parts = [f"{option.devices:,} device{'s' if option.devices > 1 else ''}: {time}"]
    else:
        hours = f"{option.device_hours} device-hours"
        parts = [hours if option.cost_usd or option.facility_energy_joules or option.model_flops_utilization else time]
    if option.cost_usd is not None:
        parts.append(f"{option.cost_usd} USD")
    for amount, size, large, small in (
        (option.facility_energy_joules, 3.6e6, "MWh", "kWh"),
        (option.emissions_kg, 1.0, "t CO2e", "kg CO2e"),
        (option.embodied_kg, 1.0, "t CO2e embodied (not in the other)", "kg CO2e embodied (not in the other)"),
    ):
        if amount is not None:
            divisor, unit = (1000 * size, large) if amount.value >= 100 * size else (size, small)
            parts.append(f"~{amount.times(1 / divisor)} {unit}")
    if option.model_flops_utilization is not None:
        parts.append(f"MFU {option.model_flops_utilization:.2f}")
    if option.feasible and option.chance is not None:
        parts.append(f"{100 * option.chance:.0f} % likely to meet what is asked")
    flags = f" [{' '.join(option.flags)}]" if option.flags else ""
    sign = f"{rank}." if option.feasible else "no"
    return [f"{sign:>3} {', '.join(parts)}{flags}", *(f"      {reason}" for reason in option.reasons)]


def _statements(plan: Plan) -> list[str]:
    """Say what more devices bring, the fewest that meet the deadline, and the cheapest that meets all."""
    lines = [_step(step) for step in plan.steps]
    if plan.question.deadline_seconds is not None and plan.question.counted:
        fewest, sure = plan.fewest(), plan.fewest(0.9)
        most = f"none up to {REACH * max(plan.question.devices):,}"
        also = f"about {sure:,}" if sure else most
        lines.append(
            f"Fewest devices that meet the deadline: {f'about {fewest:,}' if fewest else most}; to be 90 % sure: {also}."
        )
    fit = [option for option in plan.options if option.feasible]
    if len(fit) > 1 and fit[0].cost_usd is not None:
        sure = next((option.devices for option in fit if (option.chance or 0) >= 0.9), None)
        tail = f"; to be 90 % sure: {sure:,}" if sure else ""
        lines.append(f"Cheapest that meets what is asked, in devices: {fit[0].devices:,}{tail}.")
    return lines


def _step(step: Step) -> str:
    ratios = (("cost", step.cost_ratio), ("energy", step.energy_ratio))
    parts = [f"{what} × {ratio}" for what, ratio in ratios if ratio is not None]
    saves = f"saves {duration(step.saved_seconds)}" if step.saved_seconds.value > 0 else "saves no time"
    return f"{step.devices:,} -> {step.to_devices:,} devices: {', '.join([*parts, saves])}."


def _next(plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """Say which runs would narrow the interval most, with the lines to type."""
    asked, speed = plan.question, plan.question.speed
    most = max(asked.devices)
    if not isinstance(speed, OwnSpeed):
        return _first(plan, most)
    name = str(speed.keys.get("suite"))
    suite = f"suites/{name}.yaml" if Path(f"suites/{name}.yaml").exists() else f"{name}.yaml"
    found = next_runs(speed, most)
    lines = ["Runs that narrow the interval most for their device-hours:"]
    for run in found:
        gain = f"interval ×/÷ {run['factor_before']:.3g} -> ×/÷ {run['factor_after']:.3g}"
        lines.append(f"  bench run {printable(suite)} --set devices={run['devices']} --set repeats=3   # {gain}")
    return found, lines


def _first(plan: Plan, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Without own runs: the fewest devices that hold the model, and the most of interest, across a node if they are."""
    asked = plan.question
    node = asked.device.per_node if asked.device else 8
    least = min(1 << (asked.least_devices - 1).bit_length(), most)
    here = sorted({count for count in (least, min(most, node)) if count <= node})
    lines = ["None of your own runs applies. The fewest devices that hold the model and the most of interest say most:"]
    if asked.work.shape is not None and here:
        deep, wide, length = asked.work.shape
        heads = max(1, round(wide / 128))
        lines += [
            "repeat them before a third number of devices. As plan.yaml, for bench run plan.yaml:",
            "  name: plan",
            "  defaults: {workload: decoder_lm, parallelism: fsdp2, batch_size_per_device: 1, measure_seconds: 30,",
            f"    precision: {asked.precision}, workload_args: {{layers: {max(1, round(deep))}, hidden: {128 * heads}, "
            f"heads: {heads}, sequence_length: {length:.0f}}}}}",
            f"  matrix: {{devices: {here}}}",
            "  repeats: 3",
        ]
    else:
        lines += [f"  bench measure -- torchrun --nproc-per-node={count} train.py" for count in here]
    if most > node:
        nodes = -(-most // node)
        lines.append(
            f"  bench measure -- torchrun --nnodes={nodes} --nproc-per-node={node} train.py   # {most:,} devices"
        )
    return [{"devices": count, "repeats": 3} for count in sorted({*here, most})], lines
