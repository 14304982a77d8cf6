"""The answer of `bench plan` as blocks: how many devices to take, the alternatives, what they rest on, and what to run next.

Nothing is computed here but by `analytics.plan`. Blocks of `detail` say how figures came about and what would change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from analytics.interval import Interval, plain
from analytics.plan.plan import MOST_DEVICES, Plan, PlanOption, Question, Step
from analytics.plan.speed import ELSEWHERE_SPREAD, LEVEL, SIZE, OwnSpeed, PriorSpeed, priors
from analytics.plan.tipping import Tip
from analytics.say.blocks import Block, Lines, Note, Sentence, Table
from analytics.say.law import FLAGS as LAW_FLAGS
from analytics.say.law import node_sentences
from analytics.say.names import joined
from analytics.text import devices_words, number, percent, printable, scale, written
from analytics.work import IMPLAUSIBLE, scaled, short
from bench.errors import UserError
from bench.figures.regions import intensity, region_name
from bench.record import Provenance

FLAGS = {
    "memory_tight": "the training state alone takes more than half of the memory",
    "power_of_other_nodes": "energy rests on the power of H100 SXM and B200 nodes",
    "electricity_unknown": "electricity is left out of the cost, as no power is known",
    "prior_of_language_models": "the published trainings are of language models, and other work may be slower",
    "mfu_implausible": f"a model FLOP utilization outside {IMPLAUSIBLE[0]:g} to {IMPLAUSIBLE[1]:g} (hours, tokens "
    "or parameters are probably wrong)",
}
_SAID_ELSEWHERE = {"size_outside_published", "pue_unknown", "budget_not_checked"}
"""Flags that the notes on what a plan rests on, assumes and leaves out put in words."""
ENERGY, CARBON = (3.6e6, "kWh", "MWh"), (1.0, "kg", "t")
SURE = 0.9


# --- figures


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the size in s and the name of the unit that suits a time."""
    units = ((365.25 * 86400, 3, "years"), (86400.0, 2, "days"), (3600.0, 2, "hours"), (60.0, 2, "minutes"))
    return next(((size, unit) for size, least, unit in units if seconds >= least * size), (1.0, "seconds"))


def span(figure: Interval, unit: str = "") -> str:
    """Print a figure with its interval, if it has one: `4.2 days (2.7-6.3)`."""
    exact = figure.low == figure.high
    return f"{number(figure.value)} {unit}".strip() if exact else written(figure, unit)


def duration(seconds: Interval) -> str:
    """Print a time for people: `21 days (16-28)`."""
    size, unit = time_unit(seconds.value)
    return span(seconds.times(1 / size), unit)


def amount(figure: Interval, size: float, small: str, large: str) -> str:
    """Print a figure of a model in the smaller unit, of `size`, or the one that is 1,000 times as large."""
    divisor, unit = _scaled(figure, size, small, large)
    return f"~{span(figure.times(1 / divisor), unit)}"


def likely(chance: float) -> str:
    """Print a chance in percent."""
    return f"{'>99' if chance > 0.99 else '<1' if chance < 0.01 else f'{100 * chance:.0f}'} %"


def _scaled(figure: Interval, size: float, small: str, large: str) -> tuple[float, str]:
    return (1000 * size, large) if figure.value >= 100 * size else (size, small)


def _rough(seconds: float, digits: int) -> str:
    """Print a time in the largest unit of which it has one: `30 days`, `1 hour`."""
    units = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))
    size, unit = next((pair for pair in units if seconds >= 0.95 * pair[0]), units[-1])
    count = float(f"{seconds / size:.{digits}g}")
    return f"{number(count)} {unit}{'s' * (count != 1)}"


def _exact(option: PlanOption) -> bool:
    return option.duration_seconds.low == option.duration_seconds.high


# --- the answer


def title(question: Question) -> str:
    """Say what is planned and what is allowed."""
    work = question.work
    if work.parameters is not None:
        what = f"{short(work.parameters)} parameters on {short(work.tokens or 0)} tokens"
    elif work.says:
        divisor, unit = scale(work.per_sample, "FLOP")
        what = f"{short(work.samples)} samples of {number(work.per_sample / divisor)} {unit}"
    else:
        what = "A training at the given speed"
    where = f" with {printable(question.device.name)} in {printable(question.precision)}" if question.device else ""
    limits = [] if question.deadline_seconds is None else [_rough(question.deadline_seconds, 4)]
    limits += [] if question.budget_usd is None else [f"{number(question.budget_usd)} USD"]
    return what + where + (f", within {' and '.join(limits)}" if limits else "")


def headline(plan: Plan) -> str:
    """Say how many devices to take, how long that takes, what it costs, and how likely it meets what is asked."""
    question, options = plan.question, plan.options
    if not question.counted:
        together = getattr(question.speed, "together", False)
        first = options[0].duration_seconds if together else options[0].device_hours
        return f"It takes {takes(options[0], duration(first) if together else f'{span(first)} device-hours')}."
    if all(set(option.reasons) - {"late", "budget"} for option in options):
        near, counts = max(options, key=lambda option: option.devices), sorted(option.devices for option in options)
        return f"It cannot run on {listed(counts)}: {obstacle(question, near, near.reasons[0])}."
    if _limits(plan):
        return _recommended(plan)
    if len(options) == 1:
        return f"{devices_words(options[0].devices)}: {takes(options[0])}."
    feasible = [option for option in options if option.feasible]
    fastest = min(feasible, key=lambda option: option.duration_seconds.value)
    kinds = {"Fastest": fastest} if options[0].cost_usd is None else {"Cheapest": options[0], "Fastest": fastest}
    return " ".join(f"{kind}: {devices_words(one.devices)}, {takes(one)}." for kind, one in kinds.items())


def takes(option: PlanOption, time: str = "", *, ends: bool = True) -> str:
    """Print time and cost, where it is known, with or without the ends of their intervals."""
    texts = [time or duration(option.duration_seconds), *([span(option.cost_usd, "USD")] if option.cost_usd else [])]
    return joined(texts if ends else [text.partition(" (")[0] for text in texts])


def _limits(plan: Plan) -> str:
    """Name what can be held against the figures: `in time`, `within budget` or both; "" for nothing."""
    question = plan.question
    timed = question.deadline_seconds is not None and question.counted
    priced = question.budget_usd is not None and plan.options[0].cost_usd is not None
    return ("in time and budget" if timed else "within budget") if priced else "in time" * timed


def _tried(plan: Plan) -> list[PlanOption]:
    """Return the options that were asked for, and those of the fewest devices that are in time by the median or surely."""
    fewest = dict.fromkeys(count for count in (plan.fewest(SURE), plan.fewest()) if count is not None)
    more = (plan.option(count) for count in fewest if count not in plan.question.devices)
    return [one for one in (*plan.options, *more) if one.chance is not None and "machine" not in one.reasons]


def choice(plan: Plan) -> PlanOption | None:
    """Return the option to take: the cheapest that is likely enough, without a deadline the fastest; None where none is."""

    def rank(option: PlanOption) -> tuple[float, float]:
        if plan.question.deadline_seconds is None:
            return option.duration_seconds.value, 0
        return option.cost_usd.value if option.cost_usd else 0.0, option.devices

    return min((option for option in _tried(plan) if (option.chance or 0) >= SURE), key=rank, default=None)


def _recommended(plan: Plan) -> str:
    words, take, options = _limits(plan), choice(plan), _tried(plan)
    if take is None:
        return _none(plan, words, nearest(plan, options)[0])
    several = any(option.devices > take.devices and (option.chance or 0) >= SURE for option in options)
    head = f"Take {devices_words(take.devices)}{' or more' * several}"
    if _exact(take):
        return f"{head}: {takes(take)}, {words}."
    even = [one for one in options if one.devices < take.devices and 0.4 <= (one.chance or 0) <= 0.65]
    tail = f" With {max(one.devices for one in even):,} it is a coin toss." if even else ""
    return f"{head}: about {takes(take, ends=False)}, {likely(take.chance or 0)} likely {words}.{tail}"


def _none(plan: Plan, words: str, near: PlanOption) -> str:
    """Say that no option is likely enough, and what the nearest one takes."""
    question, where = plan.question, "tried"
    if question.deadline_seconds is not None and not plan.fewest():
        where = f"up to {MOST_DEVICES:,}" if question.host is None else "of this machine"
    chance = "" if _exact(near) else f", {likely(near.chance or 0)} likely"
    sure = "" if _exact(near) else f"{100 * SURE:.0f} % likely "
    first = f"No number of devices {where} is {sure}{words}."
    return f"{first} Nearest: {devices_words(near.devices)}, {takes(near, ends=False)}{chance}."


def nearest(plan: Plan, options: Sequence[PlanOption]) -> list[PlanOption]:
    """Sort options, the best first; those that do not meet what is asked by their chance, then by how far off they are."""
    limits = {"late": plan.question.deadline_seconds, "budget": plan.question.budget_usd}

    def rank(option: PlanOption) -> tuple[float, ...]:
        figures = {"late": option.duration_seconds, "budget": option.cost_usd}
        over = [figures[name].value / (limits[name] or 1) for name in option.reasons if name in limits]  # type: ignore[union-attr]
        impossible = len(option.reasons) > len(over)  # however late or dear it is
        return (0,) if option.feasible else (1, -round(option.chance or 0, 2), impossible, max(over, default=0))

    return sorted(options, key=rank)


def obstacle(question: Question, option: PlanOption, reason: str) -> str:
    """Say what one of the `reasons` of an option is."""
    if reason == "machine" and (host := question.host):
        most = f"has only {host.devices}" if host.devices else f"is known to have only {host.measured}"
        return f"this machine {most}"
    if reason == "late":
        return f"{_rough(option.duration_seconds.value - (question.deadline_seconds or 0), 1)} late"
    if reason == "budget":
        over = (option.cost_usd.value if option.cost_usd else 0) - (question.budget_usd or 0)
        return f"{number(float(f'{over:.1g}'))} USD over"
    if reason == "memory" and question.device is not None:
        divisor, unit = scale(question.state_bytes, "B")
        state, memory = question.state_bytes / divisor, (question.device.memory_bytes or 0) / 1e9
        return (
            f"the training state of {state:.3g} {unit} needs {devices_words(question.least_devices)} of {memory:g} GB"
        )
    if reason == "mfu":
        return f"impossible: {option.model_flops_utilization or 0:.3g} times the peak of the devices"
    where, count = (
        ("a batch", question.batch or 0) if reason == "batch" else ("the whole training", question.work.samples)
    )
    return f"{where} has only {number(count)} {'sequences' if question.work.parameters else 'samples'}"


def _meets(plan: Plan, option: PlanOption) -> str:
    """Fill the last cell of an option: how likely it meets what is asked, and what is in the way."""
    words = [obstacle(plan.question, option, reason) for reason in option.reasons]
    if option.chance is not None and _limits(plan) and "machine" not in option.reasons:
        words.insert(0, ("yes" if option.feasible else "no") if _exact(option) else likely(option.chance))
    return ", ".join(words)


def options_table(plan: Plan) -> Table:
    """Return the option to take and the others that are asked for, the best first. What is known of none has no column."""
    question, options, take = plan.question, nearest(plan, plan.options), choice(plan)
    if take is not None:
        options = [take, *(option for option in options if option.devices != take.devices)]
    columns: dict[str, list[str]] = {
        "devices": [f"{option.devices:,}" for option in options],
        "time": [duration(option.duration_seconds) for option in options],
        "cost, USD": [span(option.cost_usd) if option.cost_usd else "" for option in options],
    }
    if not question.counted:
        columns = {"device-hours": [span(options[0].device_hours)], "cost, USD": columns["cost, USD"]}
    for head, name, units in (
        ("energy~", "facility_energy_joules", ENERGY),
        ("CO2e~", "emissions_kg", CARBON),
        ("embodied CO2e~", "embodied_kg", CARBON),
    ):
        figures: list[Interval | None] = [getattr(option, name) for option in options]
        if figures[0] is not None:
            divisor, unit = _scaled(figures[0], *units)
            columns[f"{head}, {unit}"] = [span(figure.times(1 / divisor)) if figure else "" for figure in figures]
    last = _limits(plan) or "obstacles"
    columns[last] = [_meets(plan, option) for option in options]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return Table("", tuple(columns), tuple(zip(*columns.values(), strict=True)), words=("time", last))


def regions_table(option: PlanOption, compared: Sequence[tuple[str, float, Interval]]) -> Table:
    """Return the carbon of an option in several regions."""
    divisor, unit = _scaled(compared[0][2], *CARBON)
    rows = tuple((region_name(name), f"{kg:.3f}", span(mass.times(1 / divisor))) for name, kg, mass in compared)
    columns = ("region", "kg CO2e/kWh", f"CO2e~, {unit}")
    return Table(f"By region, with {devices_words(option.devices)}", columns, rows)


# --- what it rests on


def notes(plan: Plan, remarks: Sequence[str] = ()) -> Iterator[Note]:
    """Say what the figures rest on, what is assumed, given, absent, and what speaks against them.

    `remarks` say which device was taken, and why the user's runs do not apply. Raises BadValue for an unknown region.
    """
    question = plan.question
    yield Note(" ".join([f"{_speed(question)}.", *remarks]), "Rests on")
    if isinstance(question.speed, OwnSpeed):
        yield from (Note(text, "Across nodes") for text in node_sentences(question.speed.fit()))
    unknown = plan.options[0].energy_joules_estimated is not None and question.site.pue is None
    assumed, given = ", ".join([*question.work.assumed, *["PUE 1 (no cooling)"] * unknown]), _given(question)
    if assumed or given:
        parts = [f"{assumed}."] * bool(assumed) + [f"{'Given: ' * bool(assumed)}{given}."] * bool(given)
        yield Note(" ".join(parts), "Assumed" if assumed else "Given")
    if absent := list(_absent(plan)):
        yield Note(f"{'; '.join(absent)}.", "Left out")
    if careful := list(cautions(plan.options)):
        yield Note(f"{'; '.join(careful)}.", "Careful")
    option = plan.options[0]
    parts = ["The speed is taken as given, without an interval"] if _exact(option) else []
    energy = option.facility_energy_joules
    intervals = not _exact(option) or (energy is not None and energy.low != energy.high)
    parts += [f"{100 * LEVEL:.0f} % intervals"] if intervals else []
    parts += ["~ estimated"] if energy is not None else []
    yield Note(f"{'; '.join(parts)}.")


def _speed(question: Question) -> str:
    speed = question.speed
    if isinstance(speed, PriorSpeed):
        prior, sizes = speed.prior, priors()["parameters"]
        text = f"{prior['runs']} published {'' if speed.pooled else speed.device.family + ' '}trainings "
        text += f"({100 * prior['mfu']:.0f} % of peak at {prior['devices']:,} devices)"
        text += "; none applies to this device and precision, so intervals are wider" if speed.pooled else ""
        span_of = f"{short(sizes['least'])} to {short(sizes['most'])} parameters"
        return text + (f"; all had {span_of}, so intervals are wider" if speed.away > 1 else "")
    if isinstance(speed, OwnSpeed):
        counts = sorted(set(map(int, speed.table["devices"])))
        many = f"{len(speed.table)} configuration{'s' if len(speed.table) > 1 else ''}"
        whose = "imported" if speed.imported else "your"
        text = f"{many} of {whose} runs on {listed(counts)} ({printable(speed.name, 120)})"
        apart = percent(round(ELSEWHERE_SPREAD, 2))
        return text + (f"; other machines differ by about {apart}, so intervals are wider" if speed.imported else "")
    return f"the given speed: {', '.join(map(printable, speed.says))}"


def listed(counts: Sequence[int]) -> str:
    """Print numbers of devices: `1, 2 and 4 devices`."""
    return f"{joined([f'{count:,}' for count in counts])} device{'s' if list(counts) != [1] else ''}"


def _given(question: Question) -> str:
    site, speed = question.site, question.speed
    prices = {
        "USD/device-hour with power": site.usd_per_device_hour,
        "USD/device-hour without power": site.usd_capital_per_device_hour,
        "USD/kWh": site.usd_per_kwh,
    }
    given = [f"{_money(usd)} {unit}" for unit, usd in prices.items() if usd is not None]
    given += [printable(site.price_note, 120)] if site.price_note else []
    given += [f"PUE {site.pue:g}"] if site.pue is not None else []
    if question.watts is not None:
        own = isinstance(speed, OwnSpeed) and question.watts == speed.watts
        given.append(f"{question.watts:,.4g} W a device" + (f" ({getattr(speed, 'watts_label', '')})" if own else ""))
    if site.region is not None:
        factor = intensity(site.region)
        of_year = f" ({factor.year})" if factor.year else ""
        own = factor.source == Provenance.USER_SUPPLIED
        grid = factor.region if own else f"{region_name(factor.region)} {factor.kg_per_kwh:.3f} kg/kWh{of_year}"
        given.append(grid)
    return ", ".join(given)


def _money(usd: float) -> str:
    return f"{usd:,.2f}" if round(usd, 2) == usd else number(usd)


def _absent(plan: Plan) -> Iterator[str]:
    """Say which figures are left out, and what would bring them."""
    question, option = plan.question, plan.options[0]
    cost = "cost and budget" if question.budget_usd is not None else "cost"
    if option.cost_usd is None and question.site.usd_per_kwh is not None:
        yield f"{cost} (electricity alone has a price and no power is known: give --power-watts)"
    elif option.cost_usd is None:
        yield f"{cost} (give --price, or --electricity-price and --capital-price)"
    if option.energy_joules_estimated is None:
        yield "energy and CO2e (no power is known: give --power-watts)"
    elif question.site.region is None:
        yield "CO2e (give --region)"
    if question.deadline_seconds is not None and not question.counted:
        yield "the deadline (give --devices)"


def cautions(options: Sequence[PlanOption]) -> Iterator[str]:
    """Say what limits the figures of the options that can run, and of which if not of all."""
    options = [option for option in options if "machine" not in option.reasons]
    flags = dict.fromkeys(flag for option in options for flag in option.flags if flag not in _SAID_ELSEWHERE)
    for flag in flags:
        counts = sorted(option.devices for option in options if flag in option.flags)
        head = "" if len(counts) == len(options) else f"{listed(counts)}: "
        yield head + (FLAGS | LAW_FLAGS).get(flag, flag.replace("_", " "))


# --- for those who ask


def computed(plan: Plan) -> Iterator[Note]:
    """Say how the figures were computed."""
    question, option = plan.question, plan.options[0]
    site, speed = question.site, question.speed
    said = {
        "Time": "work / (devices × speed of one device); starting up is left out",
        "Work": "; ".join(question.work.says),
    }
    if isinstance(speed, PriorSpeed):
        prior, peak = speed.prior, speed.device.peak_flops(speed.precision) / 1e12
        share = f"{100 * prior['mfu']:.3g} % of {peak:,.4g} TFLOP/s ({speed.precision}, dense)"
        said["Speed"] = (
            f"{share} in {prior['families']} families of models, restarts included; more devices lose efficiency"
        )
    elif isinstance(speed, OwnSpeed):
        said["Speed"] = f"the law of {printable(speed.name, 120)}, sequences of {number(speed.sequence or 1)} tokens"
    if option.model_flops_utilization is not None:
        shares = (f"{one.model_flops_utilization:.2g} on {one.devices:,}" for one in plan.options)
        said["Model FLOP utilization"] = ", ".join(shares)
    if option.energy_joules_estimated is not None:
        model = "the devices' limits × a factor from measured nodes, host included"
        said["Energy"] = f"{model if question.watts is None else 'power of a device × device-hours'}, times PUE"
    if site.region is not None:
        source = intensity(site.region).source.replace("user_supplied", "given")
        said["CO2e"] = f"energy × intensity of the grid, location-based ({source})"
    if option.cost_usd is not None:
        owned = site.usd_per_device_hour is None
        price = "cost of the device, and electricity with PUE" if owned else "the price, which includes power"
        said["Cost"] = f"device-hours × {price}"
    if option.embodied_kg is not None:
        said["Embodied CO2e"] = "of making the devices; it is in no other figure"
    if option.chance is not None:
        said["Likely"] = f"the share of {SIZE:,} draws of speed and power that meet all limits at once"
    return (Note(f"{text}.", label, detail=True) for label, text in said.items() if text)


def steps(plan: Plan) -> Iterator[Note]:
    """Say what each larger number of devices changes."""
    for step in plan.steps:
        yield Note(_step(step), f"{step.devices:,} to {devices_words(step.to_devices)}", detail=True)


def _step(step: Step) -> str:
    ratios = (("cost", step.cost_ratio), ("energy", step.energy_ratio))
    parts = [f"{name} × {span(ratio)}" for name, ratio in ratios if ratio is not None]
    saves = f"saves {duration(step.saved_seconds)}" if step.saved_seconds.value > 0 else "saves no time"
    return f"{', '.join([*parts, saves])}."


def changes(tips: Sequence[Tip]) -> Iterator[Note]:
    """Say what would change the choice, what is nearest first, and which inputs, by their options, do not."""
    near, idle = list[tuple[float, Note]](), list[str]()
    for tip in tips:
        for end, side, away in ((tip.below, "less", math.floor), (tip.above, "more", math.ceil)):
            if end is not None:
                head = f"{tip.name} {_written(tip.name, end[0], away)} or {side}"
                near.append((abs(math.log(end[0] / tip.value)), Note(_choice(end[1], tip.devices), head, detail=True)))
        if tip.below is None and tip.above is None:
            reach = ", from 1 to 5" if tip.name == "--pue" else ""
            idle.append(f"{tip.name} ({_written(tip.name, tip.value)}{reach})")
    yield from (note for _, note in sorted(near, key=lambda pair: pair[0]))
    if idle:
        yield Note(f"{', '.join(idle)}.", "No change from a tenth to ten times", detail=True)


def _choice(then: int | None, now: int | None) -> str:
    if then is None:
        return "none of these numbers of devices meets what is asked."
    return f"{devices_words(then)} {'would meet what is asked' if now is None else f'instead of {now:,}'}."


def _written(name: str, value: float, away: Callable[[float], float] | None = None) -> str:
    """Print the value of an option, in three digits where it is rounded up or down (`away` from what is given)."""
    size, unit = time_unit(value) if name == "--deadline" else (1.0, "")
    value /= size
    if away is not None:
        digit = 10.0 ** (math.floor(math.log10(value)) - 2)
        value = away(value / digit) * digit
    return f"{short(value) if name in ('--tokens', '--samples', '--params') else number(value)} {unit}".strip()


# --- all of it


def answer(plan: Plan, remarks: Sequence[str] = (), regions: Sequence[str] = ()) -> tuple[dict[str, Any], list[Block]]:
    """Return the document of --json and the blocks; `remarks` as in `notes`.

    Raises BadValue for an unknown region.
    """
    question, best = plan.question, choice(plan) or plan.options[0]
    compared = plan.regions(regions, best)
    said = list(notes(plan, remarks))
    document: dict[str, Any] = {
        "source": question.speed.source,
        "answer": headline(plan),
        "notes": [f"{note.label}: {note.text}" for note in said if note.label],
        "work_flops": question.work.flops if question.work.says else None,
        "interval_level": LEVEL,
        "options": [option.to_dict() for option in plan.options],
        "fewest_devices": plan.fewest(),
        "fewest_devices_90_percent_sure": plan.fewest(SURE),
        "steps": [plain(**vars(step)) for step in plan.steps],
        "regions": [
            {"region": name, "kg_per_kwh": kg, **plain(emissions_kg=emissions), "devices": best.devices}
            for name, kg, emissions in compared
        ],
    }
    blocks: list[Block] = [Sentence(title(question), "title"), Sentence(headline(plan), "answer")]
    blocks += [table] if len((table := options_table(plan)).columns) > 1 else []
    blocks += [regions_table(best, compared)] if compared else []
    blocks += said
    return document, blocks


def explained(plan: Plan, tips: Sequence[Tip]) -> Iterator[Block]:
    """Return what is for those who ask: how it was computed, what more devices bring, what would change the choice."""
    counts = sorted(plan.question.devices)
    among = f" among {listed(counts)}" * (len(counts) > 1)
    for heading, details in (
        ("How this was computed", computed(plan)),
        ("What more devices bring", steps(plan)),
        (f"What would change the choice{among}", changes(tips)),
    ):
        told = list(details)
        if told:
            yield Sentence(heading, "title", detail=True)
            yield from told


def scaled_answer(
    known: dict[str, float], devices: Sequence[int] | None, claim: float | None, **training: float | None
) -> tuple[dict[str, Any], list[Block]]:
    """Scale a known training by T = n / (d · v): return the document and the blocks, the arithmetic line by line.

    `training` has what is given of params, tokens and speed; `claim` is a time in seconds to be checked. Raises UserError.
    """
    if devices and len(devices) > 1:
        raise UserError("--known takes one number of --devices")
    given = {name: value for name, value in training.items() if value is not None}
    hours, lines = scaled(known, given | ({"devices": devices[0]} if devices else {}))
    document: dict[str, Any] = {"duration_seconds": hours * 3600, "arithmetic": list(lines)}
    seconds = hours * 3600
    size, unit = time_unit(seconds)
    text = f"{number(hours)} hours" + (f" ({number(seconds / size)} {unit})" if unit in ("days", "years") else "")
    if claim is not None:
        share = seconds / claim
        document |= {"claim_seconds": claim, "claim_relative_efficiency": share}
        beyond = ", faster than the law allows" if share > 1 else ""
        text += f". {claim / 3600:,.4g} hours would take a relative efficiency of {share:.2f}{beyond}"
    return document, [
        Sentence(f"{text}.", "answer"),
        Sentence(lines[0]),
        Lines(tuple(line.strip() for line in lines[1:])),
    ]
