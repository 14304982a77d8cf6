"""Planner: what a training takes on different numbers of devices, which is the best, and what would change that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from bench.errors import UserError
from bench.schema import Site
from bench.store import tracker as tracking
from bench.suites.load import SITE_OPTIONS, with_site

NAMES = {f"--{name}": f"“{label}”" for name, (label, *_) in shown.FIELDS.items()} | {"--device": "“Device”"}
READ: dict[str, Callable[[Any], Any]] = {"devices": counts, "deadline": seconds, "recompute": bool, "priors": bool}
READ |= dict.fromkeys(("device", "precision", "region"), str)
COUNTS = [2**k for k in range(14)]
KINDS, SPEEDS = ("Language model", "Other work"), ("My own runs, where they apply", "Published trainings only")
PAID = {"Not given": (), "Rented": ("price",), "Owned": ("capital-price", "electricity-price")}
EXAMPLE = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "deadline": "30d"}

typed: dict[str, Any] = {}  # what is given, by the options of the command line


def _fields(*names: str) -> None:
    """Let values be chosen or typed."""
    for name in names:
        label, examples, tip = shown.FIELDS[name]
        options: Any = {"key": name, "bind": "query-params", "accept_new_options": True, "help": tip or None}
        typed[name] = st.selectbox(label, examples.split(), index=None, placeholder="Choose or type", **options)


def _one_of(label: str, options: Sequence[str], key: str) -> str:
    chosen: str = st.segmented_control(label, options, default=options[0], key=key, bind="query-params", required=True)
    return chosen


def _trained() -> None:
    st.subheader("What is trained")
    if _one_of("Kind", KINDS, "kind") == KINDS[1]:
        _fields("flops-per-sample", "samples")
        return
    _fields("params", "tokens")
    with st.expander("Shape, experts, recomputing"):
        _fields("active-params", "sequence", "layers", "hidden")
        label = "Recompute activations: 4/3 of the work"
        typed["recompute"] = st.checkbox(label, key="recompute", bind="query-params")


def _where(runs: pd.DataFrame) -> None:
    st.subheader("On which devices")
    names, bound = list(dict.fromkeys([*ran_on(runs), *(device.name for device in devices())])), "query-params"
    typed["device"] = st.selectbox("Device (those of your runs first)", names, index=None, key="device", bind=bound)
    few, many = st.select_slider("Numbers of devices, doubling", COUNTS, (8, 512), key="span", bind=bound)
    typed["precision"] = st.selectbox("Precision", PRECISIONS, key="precision", bind=bound)
    typed["priors"] = _one_of("Speed from", SPEEDS, "speed") == SPEEDS[1]
    with st.expander("Other numbers, peak, power, batch"):
        _fields("devices", "peak-flops", "power-watts", "batch")
    typed["devices"] = typed["devices"] or f"{few}-{many}"


def _allowed() -> list[str]:
    """Return what has to be left out, and why."""
    st.subheader("What is allowed, what it costs")
    _fields("deadline", "budget")
    _fields(*PAID[_one_of("Devices are paid", list(PAID), "paid")], "pue", "region")
    known, unknown = shown.known_regions(filter(None, [typed["region"]]))
    typed["region"] = known[0] if known else None
    return unknown


def _given() -> Given:
    """Read what was typed. Raises UserError with a message for each value that cannot be read."""
    values, wrong = dict[str, Any](), list[str]()
    for name, text in typed.items():
        try:
            values |= {f"--{name}": READ.get(name, amount)(text)} if text else {}
        except UserError as error:
            wrong.append(printable(f"{shown.FIELDS[name][0]}: {error}", 300))
    if wrong:
        raise UserError(*wrong)
    site = with_site(Site(), {of: values.pop(name) for of, name in SITE_OPTIONS.items() if name in values})
    return Given(site=site, **{name[2:].replace("-", "_"): value for name, value in values.items()})


def _runs() -> tuple[pd.DataFrame, str]:
    """Return the runs of the store and a name of what they are; none where it cannot be: published trainings remain."""
    when, state = page.header("Planner"), data.look("runs")
    try:
        found, read_at = data.shown(state)
    except tracking.StoreError as error:
        st.warning("Your runs could not be read; published trainings can be asked.", icon=":material/warning:")
        st.text(str(error))
        return frame([]), ""
    whole = state.found is not None
    if whole:
        when.caption(f"{len(found):,} runs, read at {read_at:%Y-%m-%d %H:%M:%S} UTC")
    else:
        with when:
            _awaited(len(found))
    return (found if len(found) else frame([])), f"{read_at} {len(found)} {whole or state.done}"


@st.fragment(run_every=1.0)  # type: ignore[untyped-decorator]
def _awaited(seen: int) -> None:
    """Say that a first reading goes on; run the page again when it has ended."""
    if data.known("runs").begun is None:
        st.rerun()
    st.caption(f"{seen:,} runs so far; the others are being read")


def _own(runs: pd.DataFrame, device: Device, precision: str, work: Work) -> tuple[OwnSpeed | None, str]:
    """Return the speeds of the runs that apply: fitted once for all prices, deadlines and numbers of devices."""
    key = f"{device} {precision} {work.parameters} {work.per_sample} {work.shape}"
    found: tuple[OwnSpeed | None, str] = _cached(key, as_of, lambda: own_speed(runs, device, precision, work))
    return found


def _made(key: str, as_of: str, _make: Callable[[], Any]) -> Any:
    return _make()


_cached = st.cache_data(_made, max_entries=256, show_spinner="Working it out ...")


def _say(sentences: Sequence[str]) -> None:
    page.lines([worded(sentence, NAMES) for sentence in sentences])


def _best(plan: Plan) -> None:
    st.subheader("The best three")
    if not plan.options[0].feasible:
        st.text("None of these numbers of devices meets what is asked.")
    for rank, (column, option) in enumerate(zip(st.columns(3), shown.nearest(plan), strict=False), 1):
        with column, st.container(border=True):
            rank_of = f"{rank}." if option.feasible else "No:"
            st.markdown(f"**{rank_of} {planned.devices_words(option.devices)}**")
            known = [f"{name}: {fact}" for name, fact in shown.facts(option).items() if fact]
            beware = [f"Beware: {line.partition(': ')[2]}" for line in planned.flags([option])]
            st.text("\n".join([*known, shown.why(plan, option), *beware]))
    st.caption("In brackets: 80 % intervals. ~ is estimated by a model, not measured.")


def _all(plan: Plan) -> None:
    st.subheader("All numbers of devices")
    st.caption("Bars are 80 % intervals, numbers beside the marks are devices; broken lines are what is allowed.")
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
    names, options = shown.FIELDS["region"][1].split(), {"key": "regions", "bind": "query-params"}
    chosen, unknown = shown.known_regions(
        st.multiselect("Regions to compare", names, accept_new_options=True, **options)
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


runs, as_of = _runs()
with st.container(border=True):
    columns = st.columns(3)
    with columns[0]:
        _trained()
    with columns[1]:
        _where(runs)
    with columns[2]:
        left_out = _allowed()
try:
    given = _given()
    asked, notes = question(given, lambda: runs, _own)
    plan = Plan(asked)
    rests = planned.head(plan, notes, compared=False)
except UserError as error:
    st.info("There is no plan yet:", icon=":material/info:")
    _say(str(error).splitlines())
    st.button("Fill in an example", on_click=st.session_state.update, args=(EXAMPLE,), icon=":material/edit:")
    st.stop()
if left_out:
    page.lines(left_out)
_best(plan)
st.subheader("What would change the choice")
_say(_cached(shown.command(typed), as_of, lambda: tipping.sentences(tipping.tips(given, asked))))
_all(plan)
regions = _regions(plan)
st.subheader("What this rests on")
_say([*rests, *planned.flags(plan.options)])
st.subheader("The same in a terminal")
typed["regions"] = ",".join(regions)
typed["store"] = tracking.shown(data.uri()) if data.uri() and not given.priors else None
st.code(shown.command(typed), language=None, wrap_lines=True)
with st.expander("Runs to make next", expanded=isinstance(asked.speed, OwnSpeed)):
    st.code("\n".join(planned.next_words(plan)[1]), language=None, wrap_lines=True)
