"""Planner: what a training takes on different numbers of devices, which is the best, and what would change that."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from analytics.amounts import amount as quantity
from analytics.amounts import counts, length, seconds, usd, usd_per
from analytics.interval import Interval
from analytics.plan import tipping
from analytics.plan.device import PRECISIONS, Device, devices
from analytics.plan.plan import Plan
from analytics.plan.question import Given, Own, question, ran_on, worded
from analytics.plan.speed import OwnSpeed, own_speed
from analytics.runs.export import to_csv
from analytics.runs.frame import frame
from analytics.say import plan as said
from analytics.say.blocks import Block, Commands, Note, Sentence
from analytics.say.plan import duration, span
from analytics.say.plan_next import proposed
from analytics.text import counted, devices_words, number, printable
from analytics.work import Work
from app import data, page
from app.charts.base import COLOURS, FRONT, KNEE, OTHERS
from app.charts.curves import Spot, extent, front_chart
from bench.errors import UserError
from bench.figures.regions import intensity
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
        "A country (FR, UK), a state or province (US-CA, CA-QC) or a cloud region (us-west-2).",
    ),
}
"""Label, examples and help of what can be given, by its option of `bench plan`; each is also its name in the address."""


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


def command(given: Mapping[str, str | bool | None]) -> str:
    """Return the line that asks `bench plan` the same, of its options as they were typed; quoted for a shell."""
    words = ["bench", "plan"]
    for name, text in given.items():
        words += [f"--{name}", *([] if text is True else [shlex.quote(printable(text, 400))])] if text else []
    return " ".join(words)


NAMES = {f"--{name}": f"“{label}”" for name, (label, *_) in FIELDS.items()} | {"--device": "“Device”"}
READ: dict[str, Callable[[Any], Any]] = {"devices": counts, "deadline": seconds, "recompute": bool, "priors": bool}
READ |= dict.fromkeys(("device", "precision", "region"), str)
READ |= {"budget": usd, "sequence": length, "price": usd_per("hour"), "capital-price": usd_per("hour")}
READ |= {"electricity-price": usd_per("kWh")}
COUNTS = [2**k for k in range(14)]
KINDS, SPEEDS = ("Language model", "Other work"), ("My own runs, where they apply", "Published trainings only")
PAID = {"Not given": (), "Rented": ("price",), "Owned": ("capital-price", "electricity-price")}
GROUPS = {"late or too dear": OTHERS, "within deadline and budget": FRONT, "recommended": KNEE}
EXAMPLE = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "deadline": "30d"}


def _fields(typed: dict[str, Any], *names: str) -> None:
    """Let values be chosen or typed; they stand in `typed` by the options of `bench plan`."""
    for name in names:
        label, examples, tip = FIELDS[name]
        more: Any = {"accept_new_options": True, "help": tip or None, "index": None, "placeholder": "Choose or type"}
        typed[name] = page.control("selectbox", label, examples.split(), name, at=st, **more)


def _one_of(label: str, options: Sequence[str], key: str) -> str:
    chosen: str = page.control("segmented_control", label, options, key, at=st, default=options[0], required=True)
    return chosen


def _trained(typed: dict[str, Any]) -> None:
    if _one_of("Training", KINDS, "kind") == KINDS[1]:
        _fields(typed, "flops-per-sample", "samples")
        return
    _fields(typed, "params", "tokens")
    with st.expander("Shape, experts, recomputing"):
        _fields(typed, "active-params", "sequence", "layers", "hidden")
        label = "Recompute activations: 4/3 of the work"
        typed["recompute"] = page.control("checkbox", label, key="recompute", at=st)


def _where(typed: dict[str, Any], runs: pd.DataFrame) -> None:
    names = list(dict.fromkeys([*ran_on(runs), *(device.name for device in devices())]))
    typed["device"] = page.control("selectbox", "Device", names, "device", index=None, help="Those of your runs first.")
    few, many = page.control("select_slider", "Numbers of devices, doubling", COUNTS, "span", value=(8, 512))
    typed["precision"] = page.control("selectbox", "Precision", PRECISIONS, "precision")
    typed["priors"] = _one_of("Speed from", SPEEDS, "speed") == SPEEDS[1]
    with st.expander("Other numbers, peak, power, batch"):
        _fields(typed, "devices", "peak-flops", "power-watts", "batch")
    typed["devices"] = typed["devices"] or f"{few}-{many}"


def _allowed(typed: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Ask for limits, prices and regions; return the regions to compare, and what has to be left out, and why."""
    _fields(typed, "deadline", "budget")
    _fields(typed, *PAID[_one_of("Devices are paid", list(PAID), "paid")], "pue", "region")
    names = FIELDS["region"][1].split()
    compared = page.control("multiselect", "Regions to compare", names, "regions", accept_new_options=True)
    known, unknown = known_regions(filter(None, [typed["region"]]))
    typed["region"] = known[0] if known else None
    regions, others = known_regions(compared)
    return regions, [*unknown, *others]


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


def planned(
    typed: dict[str, Any], load: Callable[[], pd.DataFrame], own: Own = own_speed
) -> tuple[Given, Plan, list[str]]:
    """Return what is given, its plan, and remarks on it. Raises UserError for what cannot be read or does not go together."""
    given = _given(typed)
    asked, remarks = question(given, load, own)
    return given, Plan(asked), remarks


def _runs() -> tuple[pd.DataFrame, str]:
    """Return the runs of the store and a name of what they are; none where it cannot be read: published ones remain."""
    when = page.header("Planner")
    try:
        found = data.runs()
    except tracking.StoreError as error:
        st.warning("Your runs could not be read; published trainings can be asked.", icon=":material/warning:")
        st.text(str(error))
        return frame([]), ""
    when.caption(f"{counted(len(found.content), 'run')}, as of {found.at:%Y-%m-%d %H:%M:%S} UTC")
    return found.content if len(found.content) else frame([]), str(found.at)


@st.cache_data(max_entries=256, show_spinner="Computing ...")  # type: ignore[untyped-decorator]
def _cached(key: str, as_of: str, _make: Callable[[], Any]) -> Any:
    return _make()


def _worded(blocks: Iterable[Block]) -> Iterator[Block]:
    """Call what is given by its label instead of its option, but in commands."""
    for block in blocks:
        yield replace(block, text=worded(block.text, NAMES)) if isinstance(block, Sentence | Note) else block


def options_chart(plan: Plan) -> Any:
    """Draw time against cost of each option, or against its devices where no cost is known; 80 % intervals.

    The option to take stands out; deadline and budget are lines, where they are given.
    """
    asked, take = plan.question, said.choice(plan)
    options = [*([] if take is None or take in plan.options else [take]), *plan.options]
    divisor, unit = said.time_unit(max(option.duration_seconds.value for option in options))
    paid = all(option.cost_usd is not None for option in options)
    spots = []
    for option in options:
        group = list(GROUPS)[2 if option == take else 1 if option.feasible else 0]
        cost = [span(option.cost_usd, "USD")] if option.cost_usd else []
        reasons = [said.obstacle(asked, option, reason) for reason in option.reasons]
        hover = [devices_words(option.devices), duration(option.duration_seconds), *cost, *reasons]
        across = option.cost_usd if paid and option.cost_usd else Interval(option.devices)
        x, y = (
            extent(figure.value, figure.low, figure.high)
            for figure in (across, option.duration_seconds.times(1 / divisor))
        )
        spots.append(Spot(x, y, group, hover, f"{option.devices:,}"))
    figure = front_chart(spots, GROUPS, ("cost [USD]" if paid else "devices", f"time [{unit}]"))
    xs, ys = ([min(v), max(v)] for v in zip(*((spot.x[0], spot.y[0]) for spot in spots), strict=True))
    limits: list[tuple[str, float | None, str]] = [("deadline", asked.deadline_seconds, unit)]
    limits += [("budget", asked.budget_usd, "USD")] if paid else []
    for index, (name, limit, unit_) in enumerate(limits):
        if limit is not None:
            value = limit / (divisor if name == "deadline" else 1)
            at_ = {"x": xs, "y": [value] * 2} if name == "deadline" else {"x": [value] * 2, "y": ys}
            line = {"color": COLOURS[3 - index], "dash": ("dash", "dot")[index]}
            figure.add_scatter(**at_, mode="lines", line=line, name=f"{name}, {number(value)} {unit_}")
    return figure


def main() -> None:
    """Show the page."""
    runs, as_of = _runs()
    typed = dict[str, Any]()
    with st.sidebar:
        _trained(typed)
        _where(typed, runs)
        regions, left_out = _allowed(typed)

    def own(runs: pd.DataFrame, device: Device, precision: str, work: Work) -> tuple[OwnSpeed | None, str]:
        """Return the speeds of the runs that apply: fitted once for all prices, deadlines and numbers of devices."""
        key = f"{device} {precision} {work.parameters} {work.per_sample} {work.shape}"
        speed: tuple[OwnSpeed | None, str] = _cached(key, as_of, lambda: own_speed(runs, device, precision, work))
        return speed

    try:
        given, plan, remarks = planned(typed, lambda: runs, own)
        _, blocks = said.answer(plan, remarks, regions)
    except UserError as error:
        page.show([Sentence("Say what is trained, and on which device: in the sidebar.", "answer")])
        page.lines(worded(line, NAMES) for line in str(error).splitlines())
        st.button("Fill in an example", on_click=st.session_state.update, args=(EXAMPLE,), icon=":material/edit:")
        return

    def draw() -> None:
        page.figure(options_chart(plan), "plan", "Time against cost, or devices, of each number of devices")
        st.caption("Numbers beside the marks are devices; bars are 80 % intervals.")

    tips = _cached(command(typed), as_of, lambda: list(tipping.tips(given, plan.question)))
    typed["regions"] = ",".join(regions)
    line = Commands((command(typed),), "In a terminal")
    page.show([*_worded([*blocks, *map(Note, left_out)]), line, *_worded(said.explained(plan, tips))], draw=draw)
    full = pd.DataFrame([option.to_dict() for option in plan.options])
    full[["reasons", "flags"]] = full[["reasons", "flags"]].map("; ".join)
    page.download("Download all figures as CSV", lambda: to_csv(full), "wattbench-plan-figures.csv")
    st.subheader("Runs to make next")
    page.show(proposed(plan)[1], "next")
