"""A plan in words, for terminal and dashboard alike: what its figures rest on, what more devices bring, what to run next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analytics.plan import FLAGS as PLAN_FLAGS
from analytics.plan import MOST_DEVICES, Plan, Range, Step, duration, next_runs
from analytics.speed import LEVEL, OwnSpeed
from analytics.words import FLAGS as LAW_FLAGS
from analytics.words import printable
from bench.figures.carbon import intensity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from analytics.plan import PlanOption

ENERGY, CARBON = (3.6e6, "kWh", "MWh"), (1.0, "kg CO2e", "t CO2e")


def head(plan: Plan, notes: Sequence[str], *, compared: bool) -> list[str]:
    """Say what all figures rest on; `compared` if regions are. Raises ValueError for a region that is not known."""
    asked = plan.question
    return [*asked.work.says, f"Speed: {', '.join(asked.speed.says)}.", *notes, *_factors(plan, compared=compared)]


def flags(options: Sequence[PlanOption]) -> list[str]:
    """Say what speaks against figures of these options."""
    found = dict.fromkeys(flag for option in options for flag in option.flags)
    return [f"{flag}: {(PLAN_FLAGS | LAW_FLAGS).get(flag, flag)}." for flag in found]


def likely(chance: float) -> str:
    """Print a chance in percent."""
    return f"{'> 99' if chance > 0.99 else f'{100 * chance:.0f}'} %"


def _factors(plan: Plan, *, compared: bool) -> Iterator[str]:
    """Say what energy, carbon and cost rest on, with labels."""
    asked, option = plan.question, plan.options[0]
    site, speed = asked.site, asked.speed
    if option.energy_joules_estimated is None:
        yield "Energy and carbon are absent: no power is known (give --power-watts)."
    else:
        own = isinstance(speed, OwnSpeed) and asked.watts == speed.watts
        label = speed.watts_label if isinstance(speed, OwnSpeed) and own else "user_supplied"
        model = "estimated, from the devices' limits and the power of measured nodes, host included"
        power = model if asked.watts is None else f"{asked.watts:,.4g} W a device ({label})"
        yield f"Energy: {power}; PUE {'absent' if site.pue is None else f'{site.pue:g} (user_supplied)'}."
        if site.region is None and compared:
            yield "Carbon: energy × intensity of each region, location-based, below."
        elif site.region is None:
            yield "Carbon is absent: no region (give --region FR)."
        else:
            factor = intensity(site.region)
            where = printable(", ".join(str(x) for x in (factor.region, factor.year, factor.source) if x), 120)
            yield f"Carbon: energy × {factor.kg_per_kwh:.3g} kg {factor.unit}/kWh, location-based ({where})."
    note = f": {printable(site.price_note, 200)}" if site.price_note else ""
    if option.cost_usd is None and site.usd_per_kwh is not None:
        yield "Cost is absent: electricity alone has a price, and no power is known (give --power-watts)."
    elif option.cost_usd is None:
        yield "Cost is absent: no price (give --price, or --electricity-price and --capital-price)."
    elif site.usd_per_device_hour is not None:
        yield f"Cost: {site.usd_per_device_hour:g} USD per device-hour, power inside (user_supplied{note})."
    else:
        owned = f"{site.usd_capital_per_device_hour or 0:g} USD per device-hour, {site.usd_per_kwh or 0:g} USD per kWh"
        yield f"Cost: {owned} (user_supplied{note})."
    if option.duration_seconds.low != option.duration_seconds.high:
        yield f"In brackets: {100 * LEVEL:.0f} % intervals."


def amount(one: Range, size: float, small: str, large: str) -> str:
    """Print a figure of a model in the smaller unit, of `size`, or the one that is 1,000 times as large."""
    divisor, unit = (1000 * size, large) if one.value >= 100 * size else (size, small)
    return f"~{one.times(1 / divisor)} {unit}"


def devices_words(count: int) -> str:
    """Print a number of devices: `1 device`, `64 devices`."""
    return f"{count:,} device{'s' if count > 1 else ''}"


def statements(plan: Plan) -> list[str]:
    """Say what more devices bring, the fewest that meet the deadline, and the cheapest that meets all."""
    lines = [_step(step) for step in plan.steps]
    if plan.question.deadline_seconds is not None and plan.question.counted:
        fewest, sure = plan.fewest(), plan.fewest(0.9)
        here = "of this machine" if getattr(plan.question.speed, "shared", False) else f"up to {MOST_DEVICES:,}"
        none = f"no number {here} does"
        also = f"; to be 90 % sure: {f'about {sure:,}' if sure else none}" if fewest else ""
        lines.append(f"Fewest devices that meet the deadline: {f'about {fewest:,}' if fewest else none}{also}.")
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


def next_words(plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """Say which runs would narrow the interval most, with the lines to type."""
    asked, speed = plan.question, plan.question.speed
    most = max(asked.devices)
    if not isinstance(speed, OwnSpeed):
        return _first(plan, most)
    name = str(speed.keys.get("suite"))
    suite = f"suites/{name}.yaml" if Path(f"suites/{name}.yaml").exists() else f"{name}.yaml"
    suite = shlex.quote(printable(suite))  # it comes from the store, and goes into a shell
    found = next_runs(speed, most)
    lines = [
        f"Runs that narrow the interval of the speed on {devices_words(most)} most for their device-hours, one after another:"
    ]
    for run in found:
        gain = f"interval ×/÷ {run['factor_before']:.3g} -> ×/÷ {run['factor_after']:.3g}"
        one = f"bench run {suite} --set devices={run['devices']} --set repeats=3"
        if run["devices"] > speed.per_node and not speed.shared:
            one = _torchrun(run["devices"], speed.per_node)
        lines.append(f"  {devices_words(run['devices']) if speed.imported else one}   # {gain}")
    return found, [
        *lines,
        *(["Your runs were imported: add what these give with bench import."] if speed.imported else []),
    ]


def _torchrun(devices: int, node: int) -> str:
    nodes = -(-devices // node)
    across = f"--nnodes={nodes} " if nodes > 1 else ""
    return f"bench measure -- torchrun {across}--nproc-per-node={min(devices, node)} train.py"


def _first(plan: Plan, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Without own runs: the fewest devices that hold the model, and the most of interest, across a node if they are."""
    asked = plan.question
    node = asked.device.per_node if asked.device else 8
    least = min(1 << (asked.least_devices - 1).bit_length(), most)
    here = sorted({count for count in (least, min(most, node)) if count <= node})
    lines = [
        "None of your own runs applies. Runs on the fewest devices that hold the model and on the most of interest say most.",
        "Repeat them before a third number of devices; by how much they narrow the interval is known once there are some.",
    ]
    if asked.work.shape is not None and here:
        deep, wide, length = asked.work.shape
        heads = max(1, round(wide / 128))
        lines += [
            "",
            "Write plan.yaml:",
            "",
            "name: plan",
            "defaults: {workload: decoder_lm, parallelism: fsdp2, batch_size_per_device: 1, measure_seconds: 30,",
            f"  precision: {asked.precision}, workload_args: {{layers: {max(1, round(deep))}, hidden: {128 * heads}, "
            f"heads: {heads}, sequence_length: {length:.0f}}}}}",
            f"matrix: {{devices: {here}}}",
            "repeats: 3",
        ]
        commands = ["bench run plan.yaml"]
    else:
        commands = [_torchrun(count, node) for count in here]
    if most > node:
        commands.append(f"{_torchrun(most, node)}   # {most:,} devices, your own training script")
    lines += ["", "Then run:", "", *commands]
    return [{"devices": count, "repeats": 3} for count in sorted({*here, most})], lines
