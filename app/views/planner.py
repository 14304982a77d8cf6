"""Planner: what a training takes on different numbers of devices, which is the best, and what would change that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from analytics import planned, tipping
from analytics.amounts import amount, counts, seconds
from analytics.frame import frame
from analytics.hardware import PRECISIONS, Device, devices
from analytics.plan import Plan
from analytics.question import Given, question, ran_on, worded
from analytics.speed import OwnSpeed, own_speed
from analytics.words import printable
from analytics.work import Work
from app import data, page
from app import planner as shown
from app.charts import planner as charts
from bench import tracking
from bench.schema import Site
from bench.suite import SITE_OPTIONS, SuiteError, with_site

NAMES = {f"--{name}": f"“{label}”" for name, (label, *_) in shown.FIELDS.items()} | {"--device": "“Device”"}
READ: dict[str, Callable[[str], Any]] = {"devices": counts, "deadline": seconds, "region": str}
COUNTS = [2**k for k in range(14)]
KINDS, SPEEDS = ("Language model", "Other work"), ("My own runs, where they apply", "Published trainings only")
PAID = {"Not given": (), "Rented": ("price",), "Owned": ("capital-price", "electricity-price")}
EXAMPLE = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "deadline": "30d"}

wrong, left_out = list[str](), list[str]()  # what cannot be read, so that nothing is computed; and what can be left out
typed: dict[str, Any] = {}  # what was given, as options of the command line


def _fields(*names: str) -> dict[str, Any]:
    """Let values be chosen or typed; None where nothing is, or what cannot be read."""
    found: dict[str, Any] = {}
    for name in names:
        label, examples, tip = shown.FIELDS[name]
        options: Any = {"key": name, "bind": "query-params", "accept_new_options": True, "help": tip or None}
        text = st.selectbox(label, examples.split(), index=None, placeholder="Choose or type", **options)
        typed[name] = text
        try:
            found[name.replace("-", "_")] = READ.get(name, amount)(text) if text else None
        except ValueError as error:
            wrong.append(printable(f"{label}: {error}", 300))
    return found


def _one_of(label: str, options: Sequence[str], key: str) -> str:
    chosen: str = st.segmented_control(label, options, default=options[0], key=key, bind="query-params", required=True)
    return chosen


def _trained() -> dict[str, Any]:
    st.subheader("What is trained")
    if _one_of("Kind", KINDS, "kind") == KINDS[1]:
        return _fields("flops-per-sample", "samples")
    found = _fields("params", "tokens")
    with st.expander("Shape, experts, recomputing"):
        found |= _fields("active-params", "sequence", "layers", "hidden")
        label = "Recompute activations: 4/3 of the work"
        typed["recompute"] = st.checkbox(label, key="recompute", bind="query-params")
    return found | {"recompute": typed["recompute"]}


def _where(runs: pd.DataFrame) -> dict[str, Any]:
    st.subheader("On which devices")
    names = list(dict.fromkeys([*ran_on(runs), *(device.name for device in devices())]))
    device = st.selectbox("Device (those of your runs first)", names, index=None, key="device", bind="query-params")
    label = "Numbers of devices, doubling"
    few, many = st.select_slider(label, COUNTS, (8, 512), key="span", bind="query-params")
    precision = st.selectbox("Precision", PRECISIONS, key="precision", bind="query-params")
    priors = _one_of("Speed from", SPEEDS, "speed") == SPEEDS[1]
    with st.expander("Other numbers, peak, power, batch"):
        found = _fields("devices", "peak-flops", "power-watts", "batch")
    span = f"{few}-{many}"
    chosen = {"device": device, "precision": precision, "priors": priors}
    typed.update(chosen | {"devices": typed["devices"] or span})
    return found | chosen | {"devices": found.get("devices") or counts(span)}


def _allowed() -> dict[str, Any]:
    st.subheader("What is allowed, what it costs")
    found = _fields("deadline", "budget")
    place = _fields(*PAID[_one_of("Devices are paid", list(PAID), "paid")], "pue", "region")
    known, unknown = shown.known_regions(filter(None, [place["region"]]))
    left_out.extend(unknown)
    typed["region"] = place["region"] = known[0] if known else None
    site = {name: place.get(option[2:].replace("-", "_")) for name, option in SITE_OPTIONS.items()}
    try:
        return found | {"site": with_site(Site(), {name: x for name, x in site.items() if x is not None})}
    except SuiteError as error:
        wrong.extend(error.messages)
        return found


def _runs() -> tuple[pd.DataFrame, datetime | None]:
    """Return the runs of the store and when they were read; none where it cannot be: published trainings remain."""
    st.title("Planner")
    try:
        found, read_at = data.load()
    except tracking.StoreError as error:
        st.warning("Your runs could not be read; published trainings can be asked.", icon=":material/warning:")
        st.text(str(error))
        return frame([]), None
    st.caption(f"{len(found):,} runs in the store, read at {read_at:%Y-%m-%d %H:%M:%S} UTC")
    return found, read_at


def _own(runs: pd.DataFrame, device: Device, precision: str, work: Work) -> tuple[OwnSpeed | None, str]:
    """Return the speeds of the runs that apply: fitted once for all prices, deadlines and numbers of devices."""
    key = f"{device} {precision} {work.parameters} {work.per_sample} {work.shape}"
    found: tuple[OwnSpeed | None, str] = _cached(key, read_at, lambda: own_speed(runs, device, precision, work))
    return found


def _made(key: str, read_at: datetime | None, _make: Callable[[], Any]) -> Any:
    return _make()


_cached = st.cache_data(_made, max_entries=256, show_spinner="Working it out ...")


def _say(sentences: Sequence[str]) -> None:
    page.lines([worded(sentence, NAMES) for sentence in sentences])


def _best(plan: Plan) -> None:
    st.subheader("The best three")
    if not plan.options[0].feasible:
        st.text("None of these numbers of devices meets what is asked.")
    for rank, (column, option) in enumerate(zip(st.columns(3), plan.options, strict=False), 1):
        with column, st.container(border=True):
            rank_of = f"{rank}." if option.feasible else "No:"
            st.markdown(f"**{rank_of} {planned.devices_words(option.devices)}**")
            known = [f"{name}: {fact}" for name, fact in shown.facts(option).items() if fact]
            beware = [f"Beware: {line.partition(': ')[2]}" for line in planned.flags([option])]
            st.text("\n".join([*known, shown.why(plan, option), *beware]))
    st.caption("In brackets: 80 % intervals. ~ is estimated by a model, not measured.")


def _all(plan: Plan) -> None:
    st.subheader("All numbers of devices")
    st.caption("Bars are 80 % intervals, numbers beside the marks are devices; dashed lines are what is allowed.")
    page.figure(charts.options_chart(plan), "plan", "Time against cost, or devices, of each number of devices")
    full = pd.DataFrame([option.to_dict() for option in plan.options])
    full[["reasons", "flags"]] = full[["reasons", "flags"]].map("; ".join)
    page.table(shown.options_table(plan), "plan", full=full)
    if cannot := [option for option in plan.options if not option.feasible]:
        page.lines([f"{planned.devices_words(one.devices)}: {shown.why(plan, one)}" for one in cannot])
    if told := planned.statements(plan):
        st.subheader("What another number of devices would change")
        _say(told)


def _regions(plan: Plan) -> list[str]:
    st.subheader("Carbon by region")
    options: Any = {"key": "regions", "bind": "query-params", "accept_new_options": True, "max_selections": 20}
    chosen, unknown = shown.known_regions(
        st.multiselect("Regions to compare", shown.FIELDS["region"][1].split(), **options)
    )
    if unknown:
        page.lines(unknown)
    if chosen and (compared := plan.regions(chosen)):
        st.caption(f"Of the best option, {planned.devices_words(plan.options[0].devices)}. Bars are 80 % intervals.")
        page.figure(charts.regions_chart(compared), "plan-regions", "Carbon of the best option by region")
        page.table(shown.regions_table(chosen, compared), "plan-regions")
    elif chosen:
        st.text(worded("No carbon is known, as no power is known: give --power-watts.", NAMES))
    return chosen


runs, read_at = _runs()
with st.container(border=True):
    columns = st.columns(3)
    with columns[0]:
        fields = _trained()
    with columns[1]:
        fields |= _where(runs)
    with columns[2]:
        fields |= _allowed()
try:
    if wrong:
        raise ValueError("\n".join(wrong))
    given = Given(**fields)
    asked, notes = question(given, lambda: runs, _own)
    plan = Plan(asked)
    rests = planned.head(plan, notes, compared=False)
except ValueError as error:
    st.info("There is no plan yet:", icon=":material/info:")
    _say(str(error).splitlines())
    st.button("Fill in an example", on_click=st.session_state.update, args=(EXAMPLE,), icon=":material/edit:")
    st.stop()
if left_out:
    page.lines(left_out)
_best(plan)
st.subheader("What would change the choice")
_say(_cached(shown.command(typed), read_at, lambda: tipping.sentences(tipping.tips(given, asked))))
_all(plan)
regions = _regions(plan)
st.subheader("What this rests on")
_say([*rests, *planned.flags(plan.options)])
st.subheader("The same in a terminal")
typed |= {
    "regions": ",".join(regions),
    "store": tracking.shown(data.uri()) if data.uri() and not given.priors else None,
}
st.code(shown.command(typed), language=None, wrap_lines=True)
with st.expander("Runs to make next", expanded=isinstance(asked.speed, OwnSpeed)):
    st.code("\n".join(planned.next_words(plan)[1]), language=None, wrap_lines=True)
