"""Planner: what a training takes on different numbers of devices, which is the best, and what would change that."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analytics.amounts import amount as quantity
from analytics.amounts import counts, seconds
from analytics.interval import Interval
from analytics.plan import tipping
from analytics.plan.device import PRECISIONS, Device, devices
from analytics.plan.plan import Plan, PlanOption
from analytics.plan.question import Given, question, ran_on, worded
from analytics.plan.speed import OwnSpeed, own_speed
from analytics.runs.frame import frame
from analytics.say import plan as said
from analytics.say.blocks import Note
from analytics.say.plan import CARBON, ENERGY, amount, duration, likely, span
from analytics.say.plan_next import proposed
from analytics.text import devices_words, number, printable
from analytics.work import Work
from app import data, page
from app.charts.bars import amounts_chart
from app.charts.base import COLOURS, FRONT, KNEE, OTHERS
from app.charts.curves import Extent, Spot, front_chart
from bench.errors import UserError
from bench.figures.carbon import intensity
from bench.schema import Site
from bench.store import tracker as tracking
from bench.suites.load import SITE_OPTIONS, with_site

FIELDS = {
    "params": ("Parameters", "1B 3B 7B 13B 34B 70B 175B 405B", ""),
    "tokens": ("Tokens", "20B 100B 300B 1T 2T 15T", ""),
    "active-params": ("Active parameters", "3B 17B", "Those that work on one token, of a mixture of experts."),
    "sequence": ("Sequence [tokens]", "2048 4096 8192", ""),
    "layers": ("Layers", "32 80", "With the hidden size; otherwise a typical shape is assumed."),
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
        "Cost": span(option.cost_usd, "USD") if option.cost_usd else None,
        "Energy, ~ estimated": amount(energy, *ENERGY) if energy else None,
        "Carbon, ~ estimated": amount(carbon, *CARBON) if carbon else None,
        "Chance within deadline and budget": None if option.chance is None else likely(option.chance),
    }


def why(plan: Plan, option: PlanOption) -> str:
    """Return why an option has its rank."""
    first, cost = plan.options[0], option.cost_usd
    if not option.feasible:
        return f"No: {'; '.join(said.obstacle(plan.question, option, reason) for reason in option.reasons)}."
    asked = plan.question.deadline_seconds is not None or plan.question.budget_usd is not None
    among = " of those within deadline and budget" if asked else ""
    if option is first:
        return f"First: the cheapest{among}." if cost else f"First: the fastest{among}; no cost is known."
    time = option.duration_seconds.value / first.duration_seconds.value
    dearer = f"{cost.value / first.cost_usd.value:.3g} times the cost and " if cost and first.cost_usd else ""
    return f"{dearer}{time:.3g} times the time of the first."


def options_table(plan: Plan) -> pd.DataFrame:
    """Return a row an option as text, the best first, without what is not known of any."""
    rows = [
        {"Rank": str(rank) if option.feasible else "no", "Devices": option.devices}
        | facts(option)
        | {"Why": why(plan, option), "Device-hours": span(option.device_hours)}
        | {"Careful": "; ".join(said.cautions([option]))}
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


def regions_table(names: Sequence[str], compared: Sequence[tuple[str, float, Interval]]) -> pd.DataFrame:
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


NAMES = {f"--{name}": f"“{label}”" for name, (label, *_) in FIELDS.items()} | {"--device": "“Device”"}
READ: dict[str, Callable[[Any], Any]] = {"devices": counts, "deadline": seconds, "recompute": bool, "priors": bool}
READ |= dict.fromkeys(("device", "precision", "region"), str)
COUNTS = [2**k for k in range(14)]
KINDS, SPEEDS = ("Language model", "Other work"), ("My own runs, where they apply", "Published trainings only")
PAID = {"Not given": (), "Rented": ("price",), "Owned": ("capital-price", "electricity-price")}
GROUPS = {"late or too dear": OTHERS, "meets deadline and budget": FRONT, "first choice": KNEE}
EXAMPLE = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "deadline": "30d"}


def _fields(typed: dict[str, Any], *names: str) -> None:
    """Let values be chosen or typed; they stand in `typed` by the options of `bench plan`."""
    for name in names:
        label, examples, tip = FIELDS[name]
        options: Any = {"key": name, **page.BOUND, "accept_new_options": True, "help": tip or None}
        typed[name] = st.selectbox(label, examples.split(), index=None, placeholder="Choose or type", **options)


def _one_of(label: str, options: Sequence[str], key: str) -> str:
    chosen: str = st.segmented_control(label, options, default=options[0], key=key, **page.BOUND, required=True)
    return chosen


def _trained(typed: dict[str, Any]) -> None:
    if _one_of("Training", KINDS, "kind") == KINDS[1]:
        _fields(typed, "flops-per-sample", "samples")
        return
    _fields(typed, "params", "tokens")
    with st.expander("Shape, experts, recomputing"):
        _fields(typed, "active-params", "sequence", "layers", "hidden")
        label = "Recompute activations: 4/3 of the work"
        typed["recompute"] = st.checkbox(label, key="recompute", **page.BOUND)


def _where(typed: dict[str, Any], runs: pd.DataFrame) -> None:
    names = list(dict.fromkeys([*ran_on(runs), *(device.name for device in devices())]))
    typed["device"] = st.selectbox("Device (those of your runs first)", names, index=None, key="device", **page.BOUND)
    few, many = st.select_slider("Numbers of devices, doubling", COUNTS, (8, 512), key="span", **page.BOUND)
    typed["precision"] = st.selectbox("Precision", PRECISIONS, key="precision", **page.BOUND)
    typed["priors"] = _one_of("Speed from", SPEEDS, "speed") == SPEEDS[1]
    with st.expander("Other numbers, peak, power, batch"):
        _fields(typed, "devices", "peak-flops", "power-watts", "batch")
    typed["devices"] = typed["devices"] or f"{few}-{many}"


def _allowed(typed: dict[str, Any]) -> list[str]:
    """Return what has to be left out, and why."""
    _fields(typed, "deadline", "budget")
    _fields(typed, *PAID[_one_of("Devices are paid", list(PAID), "paid")], "pue", "region")
    known, unknown = known_regions(filter(None, [typed["region"]]))
    typed["region"] = known[0] if known else None
    return unknown


def _given(typed: dict[str, Any]) -> Given:
    """Read what was typed. Raises UserError with a message for each value that cannot be read."""
    values, wrong = dict[str, Any](), list[str]()
    for name, text in typed.items():
        try:
            values |= {f"--{name}": READ.get(name, quantity)(text)} if text else {}
        except UserError as error:
            wrong.append(printable(f"{FIELDS[name][0]}: {error}", 300))
    if wrong:
        raise UserError(*wrong)
    site = with_site(Site(), {of: values.pop(name) for of, name in SITE_OPTIONS.items() if name in values})
    return Given(site=site, **{name[2:].replace("-", "_"): value for name, value in values.items()})


def _runs() -> tuple[pd.DataFrame, str]:
    """Return the runs of the store and a name of what they are; none where it cannot be read: published ones remain."""
    when = page.header("Planner")
    try:
        found = data.runs()
    except tracking.StoreError as error:
        st.warning("Your runs could not be read; published trainings can be asked.", icon=":material/warning:")
        st.text(str(error))
        return frame([]), ""
    when.caption(f"{len(found.content):,} runs, as of {found.at:%Y-%m-%d %H:%M:%S} UTC")
    return found.content if len(found.content) else frame([]), str(found.at)


@st.cache_data(max_entries=256, show_spinner="Computing ...")  # type: ignore[untyped-decorator]
def _cached(key: str, as_of: str, _make: Callable[[], Any]) -> Any:
    return _make()


def _say(sentences: Sequence[str]) -> None:
    page.lines([worded(sentence, NAMES) for sentence in sentences])


def _notes(notes: Iterable[Note]) -> None:
    _say([f"{note.label}: {note.text}" if note.label else note.text for note in notes])


def spots(plan: Plan) -> list[Spot]:
    """Return time against cost of each option, or against its devices where no cost is known; 80 % intervals."""
    divisor, _ = said.time_unit(max(option.duration_seconds.value for option in plan.options))
    out = []
    for option in plan.options:
        group = list(GROUPS)[2 if option is plan.options[0] else 1] if option.feasible else "late or too dear"
        cost = [span(option.cost_usd, "USD")] if option.cost_usd else []
        reasons = [said.obstacle(plan.question, option, reason) for reason in option.reasons]
        hover = [devices_words(option.devices), duration(option.duration_seconds), *cost, *reasons]
        across = option.cost_usd if _paid(plan) and option.cost_usd else Interval(option.devices)
        x, y = _extent(across), _extent(option.duration_seconds.times(1 / divisor))
        out.append(Spot(x, y, group, hover, f"{option.devices:,}"))
    return out


def _extent(figure: Interval) -> Extent:
    low, high = (math.nan if end is None else end for end in (figure.low, figure.high))
    return figure.value, low, high


def _paid(plan: Plan) -> bool:
    return all(option.cost_usd is not None for option in plan.options)


def options_chart(plan: Plan) -> Any:
    """Draw the options; deadline and budget are lines, where they are given."""
    divisor, unit = said.time_unit(max(option.duration_seconds.value for option in plan.options))
    titles = "cost [USD]" if _paid(plan) else "devices", f"time [{unit}]"
    marks, asked = spots(plan), plan.question
    figure = front_chart(marks, GROUPS, titles)
    xs, ys = ([min(v), max(v)] for v in zip(*((s.x[0], s.y[0]) for s in marks), strict=True))
    if asked.deadline_seconds is not None:
        late = asked.deadline_seconds / divisor
        line = {"mode": "lines", "line": {"color": COLOURS[3], "dash": "dash"}}
        figure.add_scatter(x=xs, y=[late] * 2, name=f"deadline, {number(late)} {unit}", **line)
    if asked.budget_usd is not None and _paid(plan):
        line = {"mode": "lines", "line": {"color": COLOURS[2], "dash": "dot"}}
        figure.add_scatter(x=[asked.budget_usd] * 2, y=ys, name=f"budget, {number(asked.budget_usd)} USD", **line)
    return figure


def _options(plan: Plan) -> None:
    page.figure(options_chart(plan), "plan", "Time against cost, or devices, of each number of devices")
    st.caption("Numbers beside the marks are devices; bars are 80 % intervals.")
    full = pd.DataFrame([option.to_dict() for option in plan.options])
    full[["reasons", "flags"]] = full[["reasons", "flags"]].map("; ".join)
    page.table(options_table(plan), "plan", full=full)


def _regions(plan: Plan, chosen: Sequence[str]) -> None:
    if chosen and (compared := plan.regions(chosen)):
        st.subheader("Carbon by region")
        ordered = sorted(compared, key=lambda row: row[2].value)
        figure = amounts_chart({"~ estimated": {name: one.value for name, _, one in ordered}}, "carbon [kg CO2e]")
        page.figure(figure, "plan-regions", "Carbon of the best option by region")
        st.caption(f"Of {devices_words(plan.options[0].devices)}; 80 % intervals.")
        page.table(regions_table(chosen, compared), "plan-regions")
    elif chosen:
        st.text(worded("No carbon is known, as no power is known: give --power-watts.", NAMES))


def main() -> None:
    """Show the page."""
    runs, as_of = _runs()
    typed = dict[str, Any]()
    with st.sidebar:
        _trained(typed)
        _where(typed, runs)
        left_out = _allowed(typed)
        label, names = "Regions to compare", FIELDS["region"][1].split()
        regions, unknown = known_regions(
            st.multiselect(label, names, accept_new_options=True, key="regions", **page.BOUND)
        )

    def own(runs: pd.DataFrame, device: Device, precision: str, work: Work) -> tuple[OwnSpeed | None, str]:
        """Return the speeds of the runs that apply: fitted once for all prices, deadlines and numbers of devices."""
        key = f"{device} {precision} {work.parameters} {work.per_sample} {work.shape}"
        speed: tuple[OwnSpeed | None, str] = _cached(key, as_of, lambda: own_speed(runs, device, precision, work))
        return speed

    try:
        given = _given(typed)
        asked, notes = question(given, lambda: runs, own)
        plan = Plan(asked)
        rests = list(said.notes(plan, notes))
    except UserError as error:
        page.answer("Say what is trained, and on which device: in the sidebar.")
        _say(str(error).splitlines())
        st.button("Fill in an example", on_click=st.session_state.update, args=(EXAMPLE,), icon=":material/edit:")
        return
    page.answer(worded(said.headline(plan), NAMES), "Intervals are 80 %; ~ is estimated by a model.")
    if left_out or unknown:
        page.lines([*left_out, *unknown])
    _options(plan)
    st.subheader("What would change the choice")
    tips = _cached(command(typed), as_of, lambda: list(said.changes(tipping.tips(given, asked))))
    _notes([*tips, *said.steps(plan)])
    _regions(plan, regions)
    st.subheader("In a terminal")
    typed["regions"] = ",".join(regions)
    typed["store"] = tracking.shown(data.uri()) if data.uri() and not given.priors else None
    page.code(command(typed))
    with st.expander("Runs to make next", expanded=isinstance(asked.speed, OwnSpeed)):
        page.show(proposed(plan)[1], "next")
    with st.expander("How this was computed"):
        _notes([*rests, *said.computed(plan)])
