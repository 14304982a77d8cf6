"""Trade-offs: what no other configuration beats in two or three of time, energy, cost, carbon, memory and quality."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from analytics import pareto
from analytics.frame import latest_execution, tidy
from analytics.objectives import Per
from analytics.pareto_words import against, sentences
from analytics.repeat import CannotRepeat, again
from analytics.searchfile import Amount
from analytics.words import printable
from app import page
from app.charts.tradeoffs import front_chart
from app.tradeoffs import RUNS, machines, newest, runs_of, sides, table, told, without_probes
from bench.record import Status
from bench.suites import yaml as yamlfile

ALL, NONE = "All machines", "none"
BOUND: Any = {"bind": "query-params"}
ORDER = ["time", "cost", "energy", "quality", "memory", "carbon"]
_front = st.cache_data(pareto.front_of, max_entries=16, show_spinner="Comparing ...", hash_funcs={Amount: repr})


def _pick(df: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Let suites, a machine and a kind of work be chosen; stop the page where no run ended well."""
    left, right = st.columns(2)
    names = sorted(df["suite"].dropna().unique())
    label = "Suites (the newest execution of each; of the newest suite unless you choose)"
    suites = left.multiselect(label, names, newest(df), placeholder="All suites", key="suites", **BOUND)
    runs = latest_execution(df[df["suite"].isin(suites)] if suites else df)
    runs, probes = without_probes(runs[runs["status"] == Status.OK])
    if probes:
        left.caption(f"Left out: {probes:,} probes of searches, short runs that only sort out.")
    places = machines(runs)
    if places.nunique() > 1:
        place = right.selectbox("Machine", [ALL, *sorted(places.unique())], key="machine", **BOUND)
        runs = runs if place == ALL else runs[places == place]
    works: dict[str, pd.DataFrame] = {}
    for name, some in pareto.works(tidy(runs)):
        works[name if name not in works else f"{name} ({len(works)})"] = some
    if not works:
        page.lines(["No run of these ended well, so there is nothing to choose from."])
        st.code("bench run suites/precision.yaml", language=None)
        st.stop()
    names = sorted(works, key=lambda name: -works[name]["config_id"].nunique())
    label = "Work (only runs that train the same model on the same data are compared; most configurations first)"
    work = st.selectbox(label, names, key="work", **BOUND)
    return work, works[work]


def _amount(units: list[Per]) -> Amount | None:
    """Ask for how much work; None where it is the way to a target."""
    if units == ["target"]:
        st.caption("All reached the same target: figures are those of the training to there.")
        return None
    left, right = st.columns(2)
    unit = units[0]
    if len(units) > 1:
        unit = right.segmented_control("Counted in", units, default=unit, key="unit", required=True, **BOUND)
    label = f"Amount of work [million {unit}]"
    millions = left.number_input(label, 1e-6, 1e9, 1.0, format="%g", key="amount", **BOUND)
    return Amount(**{unit: millions * 1e6})


def _objectives(names: list[str]) -> list[str]:
    """Let two or three objectives be chosen of those that are known."""
    if len(names) < 2:
        return names
    columns = st.columns(3)
    x = columns[0].selectbox("Across", names, key="x", **BOUND)
    others = [name for name in names if name != x]
    y = columns[1].selectbox("Upwards", others, key="y", **BOUND)
    thirds = [NONE, *(name for name in others if name != y)]
    third = columns[2].selectbox("Third, as colour", thirds, key="third", **BOUND)
    return [x, y, *([third] if third != NONE else [])]


def _figure(one: pareto.Front) -> int:
    """Show the front and let a configuration be picked, in the figure or by name; return its index in the table."""
    spot = st.container()
    order = sorted(range(len(one.table)), key=lambda index: not one.table["knee"][index])
    names = {str(one.table["name"][index]): index for index in order}

    def clicked() -> None:
        for point in st.session_state["figure-front"].selection.points:
            st.session_state["point"] = one.table["name"][point["customdata"][0]]

    st.subheader("One configuration")
    label = "Pick one here (the knee first, then the front), or click on it in the figure"
    picked = names[st.selectbox(label, list(names), key="point", **BOUND)]
    shown = sides(one)
    if len(one.table) > 1 and len(one.objectives) > 1:
        third = shown[2] if len(one.objectives) > 2 else None
        figure = front_chart(one, shown[0], shown[1], third, picked)
        with spot:
            st.subheader("What no other beats")
            alt = "Two objectives of the configurations, and the front"
            page.figure(figure, "front", alt, on_select=clicked, selection_mode="points")
            st.caption(
                "Bars are 95 % intervals of the repeats; what ran once has none, and those of two repeats may leave the "
                "figure. Numbers are those of the table below. ~ marks the figure of a model."
            )
    return picked


def _again(run: dict[Any, Any], df: pd.DataFrame) -> None:
    st.caption("To run it again, three times:")
    try:
        suite = again(run, df)
    except CannotRepeat as error:
        st.text(printable(f"That cannot be done: {error}.", 300))
        return
    st.code("bench run again.yaml", language=None)
    content = yamlfile.write(suite)
    options = {"key": "get-again", "on_click": "ignore", "icon": ":material/download:", "type": "tertiary"}
    st.download_button("Download again.yaml", content, "again.yaml", "application/yaml", **options)
    if pd.notna(run["cost_usd"]) and "usd_per_device_hour" not in suite:
        st.caption("The file names no price: add `--electricity-price`, or `--capital-price`, as for the first run.")


df = page.runs("Trade-offs")
work, runs = _pick(df)
amount = _amount(pareto.units(runs))
_, known, dropped = pareto.known(runs, amount=amount)
names = sorted((objective.name for objective in known), key=ORDER.index)
one = _front(work, runs, _objectives(names) or pareto.DEFAULT, amount, names)
places = sorted(machines(runs).unique())
where = f"{', '.join(sorted(runs['suite'].unique()))} on {'; '.join(places)}"
said = [f"What the same work takes, {one.per}, starting up left out, by the runs of {where}."]
said += ["These are different machines: the table says which ran what."] if len(places) > 1 else []
alone = ["There is one configuration of this work, so nothing to choose from."]
said += alone if len(one.table) == 1 and one.objectives else sentences(one)
said += [f"{name} cannot be chosen: {why}" for name, why in dropped.items() if name not in one.dropped]
page.lines([printable(line, 600) for line in said])
if not one.objectives:
    st.code("bench run suites/precision.yaml --price 2 --region FR", language=None)
    st.stop()
picked = _figure(one)
page.lines([printable(line, 600) for line in (*told(one)[picked], *against(one, picked))])
own = runs_of(one, picked, runs)
page.table(own[[name for name in RUNS if name in own]].rename(columns=RUNS), "runs", full=own)
page.opens(own, lambda run: f"Repeat {int(run['repeat']) + 1}")
_again(own.to_dict("records")[0], df)
st.subheader("Configurations")
page.table(table(one), "front", full=one.table)
st.caption("By other prices, PUE or region, in a terminal: `bench pareto SUITE --price 2 --pue 1.2 --region FR`")
