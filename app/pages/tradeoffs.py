"""Trade-offs: the Pareto front of two or three of time, energy, cost, carbon, memory and quality."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from analytics.judge import front as pareto
from analytics.judge.front import Front
from analytics.judge.objectives import UNITS, Amount, Objective, Per
from analytics.runs.frame import IDENTITY, latest_execution, tidy
from analytics.runs.repeat import CannotRepeat, again
from analytics.say import front as said
from analytics.text import between, printable, scale
from app import page
from app.charts.base import FRONT, KNEE, OTHERS, plain
from app.charts.curves import Extent, Spot, front_chart
from bench.record import Status
from bench.suites import yaml as yamlfile

RUNS = {"run_id": "Run", "repeat": "Repeat", "samples_per_second": "Samples/s", "duration_seconds": "Whole run [s]"}
RUNS |= {"grade": "Grade", "flags": "Flags", "started_at": "Started (UTC)", "mlflow_run_id": "Run in MLflow"}
SAID = {"knee": "yes, the knee", "Pareto front": "yes", "dominated": "no"}
GROUPS = {"dominated": OTHERS, "Pareto front": FRONT, "knee": KNEE}


@dataclass(frozen=True)
class Side:
    """An objective of a front for people: its values are shown divided by `divisor`; ~ marks what rests on a model."""

    objective: Objective
    divisor: float
    unit: str
    estimated: bool

    @classmethod
    def of(cls, one: Front, objective: Objective) -> Side:
        """Choose the unit that suits the values of all configurations."""
        unit = UNITS.get(objective.name, "").replace("bytes", "B")
        divisor = 1.0
        if objective.name in ("energy", "memory"):
            divisor, unit = scale(float(one.table[objective.name].median()), unit)
        return cls(objective, divisor, unit, objective.name in one.estimated)

    @property
    def name(self) -> str:
        """Name of the objective, of quality what it is."""
        return f"validation {self.objective.unit}" if self.objective.name == "quality" else self.objective.name

    @property
    def title(self) -> str:
        """Name and unit, and which is better where that is not the least."""
        brackets = ", ".join(filter(None, [self.unit, "estimated" * self.estimated]))
        better = "" if self.objective.rising else ", more is better"
        return "~" * self.estimated + self.name + (f" [{brackets}]" if brackets else "") + better

    def values(self, table: pd.DataFrame, end: str = "") -> list[float]:
        """Values of a table of configurations, or an `end` of their intervals (`_low`, `_high`), in the unit."""
        return [float(value) / self.divisor for value in table[self.objective.name + end]]

    def known(self, table: pd.DataFrame) -> list[Extent]:
        """Values with the ends of their intervals, in the unit."""
        return list(zip(*(self.values(table, end) for end in ("", "_low", "_high")), strict=True))

    def cells(self, table: pd.DataFrame, unit: str = "") -> list[str]:
        """Values with their intervals as text."""
        return ["~" * self.estimated + between(*known, unit) for known in self.known(table)]


def sides(one: Front) -> list[Side]:
    """Return the objectives of a front for people, then those that do not count."""
    return [Side.of(one, objective) for objective in (*one.objectives, *one.others)]


def places(table: pd.DataFrame) -> list[str]:
    """Return the group of each configuration, one of GROUPS."""
    return [
        "knee" if knee else "Pareto front" if front else "dominated"
        for knee, front in table[["knee", "front"]].to_numpy()
    ]


def table(one: Front) -> pd.DataFrame:
    """Return a row a configuration, as text, with its number in the figure."""
    out: dict[str, Any] = {"No.": range(1, len(one.table) + 1), "Configuration": one.table["name"].map(plain)}
    out |= {
        "On the Pareto front": [SAID[stands] for stands in places(one.table)],
        "Chance to be on it": _chances(one.table),
    }
    out |= {side.title: side.cells(one.table) for side in sides(one)}
    out |= {"Runs": one.table["repeats"], "Suite": one.table["suite"], "Execution": one.table["execution"]}
    return pd.DataFrame(out | {"Host": one.table["host"], "Devices": one.table["device_name"]})


def told(one: Front) -> list[list[str]]:
    """Say what is known of each configuration, in lines."""
    shown = [(side, side.cells(one.table, side.unit)) for side in sides(one)]
    stand, likely, out = places(one.table), _chances(one.table), list[list[str]]()
    for index, row in enumerate(one.table.to_dict("records")):
        lines = [f"{side.name}: {cells[index]}{', estimated' * side.estimated}" for side, cells in shown]
        chance = f" ({likely[index]} likely)" if likely[index] else ""
        runs = f"{row['repeats']} {'run' if row['repeats'] == 1 else 'runs'} of {row['suite']}"
        head = [f"{index + 1}. {plain(row['name'])}", f"on the Pareto front: {SAID[stand[index]]}{chance}"]
        out.append([*head, *lines, f"{runs} on {row['host']} ({row['device_name']})"])
    return out


def _chances(table: pd.DataFrame) -> list[str]:
    """Say how likely each configuration is on the front; nothing where it ran once."""
    return ["" if pd.isna(chance) else f"{100 * chance:.0f} %" for chance in table["p_front"]]


def newest(df: pd.DataFrame) -> list[str]:
    """Return the suite of the last run that ended well in a newest execution, or none."""
    well = latest_execution(df).sort_values("started_at").query("status == 'ok'")
    return list(well["suite"].dropna()[-1:])


def machines(runs: pd.DataFrame) -> pd.Series:
    """Name the machine of each run: its host and devices."""
    return runs["host"].fillna("unknown host") + ": " + runs["device_name"].fillna("unknown devices")


def runs_of(one: Front, index: int, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of a configuration, by its index in the table."""
    wanted = one.table[list(IDENTITY)].astype("str").iloc[index]
    return runs.loc[(runs[list(IDENTITY)].astype("str") == wanted).all(axis=1)]


ALL, NONE = "All machines", "None"
ORDER = ["time", "cost", "energy", "quality", "memory", "carbon"]
_front = st.cache_data(pareto.front_of, max_entries=16, show_spinner="Comparing ...", hash_funcs={Amount: repr})


def _pick(df: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Let suites, a machine and a kind of work be chosen; stop the page where no run ended well."""
    side = st.sidebar
    names = sorted(df["suite"].dropna().unique())
    label = "Suites (newest execution of each)"
    suites = side.multiselect(label, names, newest(df), placeholder="All suites", key="suites", **page.BOUND)
    runs = latest_execution(df[df["suite"].isin(suites)] if suites else df)
    runs, probes = pareto.without_probes(runs[runs["status"] == Status.OK])
    if probes:
        side.caption(f"Without {probes:,} short probes of searches.")
    places = machines(runs)
    if places.nunique() > 1:
        place = side.selectbox("Machine", [ALL, *sorted(places.unique())], key="machine", **page.BOUND)
        runs = runs if place == ALL else runs[places == place]
    works: dict[str, pd.DataFrame] = {}
    for name, some in pareto.works(tidy(runs)):
        name = plain(name)
        works[name if name not in works else f"{name} ({len(works)})"] = some
    if not works:
        page.answer("No run of these ended well, so there is nothing to choose from.")
        page.code(f"bench run suites/precision.yaml{page.store_option()}")
        st.stop()
    names = sorted(works, key=lambda name: -works[name]["config_id"].nunique())
    label = "Work: runs on the same model and data are compared"
    work = side.selectbox(label, names, key="work", **page.BOUND)
    return work, works[work]


def _amount(units: list[Per]) -> Amount | None:
    """Ask for how much work; None where it is the way to a target."""
    if units == ["target"]:
        st.sidebar.caption("All reached the same target: figures are those of the training up to it.")
        return None
    unit = units[0]
    if len(units) > 1:
        unit = st.sidebar.segmented_control("Counted in", units, default=unit, key="unit", required=True, **page.BOUND)
    label = f"Amount of work [million {unit}]"
    millions = st.sidebar.number_input(label, 1e-6, 1e9, 1.0, format="%g", key="amount", **page.BOUND)
    return Amount(**{unit: millions * 1e6})


def _counted(names: list[str]) -> list[str]:
    """Let the objectives of the front be chosen: those of `bench pareto` unless others are."""
    usual = [name for name in names if name in pareto.DEFAULT]
    return st.sidebar.multiselect("Objectives of the front", names, usual, key="by", **page.BOUND) or usual


def _axes(names: list[str]) -> list[str]:
    """Let two or three objectives be chosen that are drawn."""
    if len(names) < 2:
        return names
    x = st.sidebar.selectbox("Horizontal", names, key="x", **page.BOUND)
    others = [name for name in names if name != x]
    y = st.sidebar.selectbox("Vertical", others, key="y", **page.BOUND)
    thirds = [NONE, *(name for name in others if name != y)]
    third = st.sidebar.selectbox("Colour", thirds, key="third", **page.BOUND)
    return [x, y, *([third] if third != NONE else [])]


def front_figure(one: Front, axes: Sequence[str], picked: int | None = None) -> Any:
    """Draw two objectives of a front, and a third as colour; the Pareto front has its numbers."""
    by_name = {side.objective.name: side for side in sides(one)}
    x, y, *more = (by_name[name] for name in axes)
    third = more[0] if more else None
    colours = third.values(one.table) if third is not None else [None] * len(one.table)
    known = zip(x.known(one.table), y.known(one.table), places(one.table), told(one), colours, strict=True)
    spots = [
        Spot(at, up, group, lines, "" if group == "dominated" else str(index + 1), colour)
        for index, (at, up, group, lines, colour) in enumerate(known)
    ]
    across, upwards = (1 if side.objective.rising else -1 for side in (x, y))
    title = third.title if third is not None else ""
    return front_chart(spots, GROUPS, (x.title, y.title), (across, upwards), title, picked)


def _figure(one: Front, axes: Sequence[str]) -> int:
    """Show the front and let a configuration be picked, in the figure or by name; return its index in the table."""
    spot = st.container()
    order = sorted(range(len(one.table)), key=lambda index: not one.table["knee"][index])
    called = [plain(name) for name in one.table["name"]]
    names = {called[index]: index for index in order}

    def clicked() -> None:
        for point in st.session_state["figure-front"].selection.points:
            st.session_state["point"] = called[point["customdata"][0]]

    picked = names[
        st.selectbox("Configuration (or click on one in the figure)", list(names), key="point", **page.BOUND)
    ]
    if len(one.table) > 1 and len(axes) > 1:
        with spot:
            alt = "Two objectives of the configurations, and their Pareto front"
            page.figure(front_figure(one, axes, picked), "front", alt, on_select=clicked, selection_mode="points")
            st.caption("Bars are 95 % intervals of the repeats; wide ones leave the figure. ~ is estimated by a model.")
    return picked


def _again(run: dict[Any, Any], df: pd.DataFrame) -> None:
    st.caption("To repeat it three times, download the suite and run in the same folder:")
    try:
        suite = again(run, df)
    except CannotRepeat as error:
        st.text(printable(f"It cannot be repeated: {error}.", 300))
        return
    page.code(f"bench run again.yaml{page.store_option()}")
    content = yamlfile.write(suite)
    options = {"key": "get-again", "on_click": "ignore", "icon": ":material/download:", "type": "tertiary"}
    st.download_button("Download again.yaml", content, "again.yaml", "application/yaml", **options)
    if pd.notna(run["cost_usd"]) and "usd_per_device_hour" not in suite:
        st.caption("The file names no price: add `--electricity-price`, or `--capital-price`, as for the first run.")


def answer(one: Front) -> str:
    """Return what to choose for what, or why there is nothing to choose."""
    if not one.objectives:
        return "These runs have nothing to choose by."
    if len(one.table) == 1:
        return "One configuration of this work was measured, so there is nothing to choose from."
    return said.answer(one, [plain(name) for name in one.table["name"]])


def main() -> None:
    """Show the page."""
    df = page.runs("Trade-offs")
    work, runs = _pick(df)
    amount = _amount(pareto.units(runs))
    _, known, dropped = pareto.known(runs, amount=amount)
    names = sorted((objective.name for objective in known), key=ORDER.index)
    one = _front(work, runs, _counted(names) or pareto.DEFAULT, amount, names)
    axes = _axes(names)
    hosts = sorted(machines(runs).unique())
    where = f"{', '.join(sorted(runs['suite'].unique()))} on {'; '.join(hosts)}"
    page.answer(answer(one), f"For the same work, {one.per}, without starting up; runs of {where}.")
    if len(hosts) > 1:
        st.text("These are different machines: the table says which ran what.")
    notes = [plain(": ".join(filter(None, (note.label, note.text)))) for note in said.notes([one], {id(one): one.work})]
    notes += [f"{name} cannot be chosen: {why}" for name, why in dropped.items() if name not in one.dropped]
    if not one.objectives:
        page.lines([printable(line, 600) for line in notes])
        page.code(f"bench run suites/precision.yaml --price 2 --region FR{page.store_option()}")
        return
    picked = _figure(one, axes)
    page.lines([printable(plain(line), 600) for line in (*told(one)[picked], *said.against(one, picked))])
    own = runs_of(one, picked, runs)
    with st.expander("Its runs, and how to repeat them"):
        page.table(own[[name for name in RUNS if name in own]].rename(columns=RUNS), "runs", full=own)
        page.run_links(own, lambda run: f"Repeat {int(run['repeat']) + 1}")
        _again(own.to_dict("records")[0], df)
    st.subheader("Configurations")
    page.table(table(one), "front", full=one.table)
    if notes:
        page.lines([printable(line, 600) for line in notes])
    st.caption("With other prices, PUE or region, in a terminal:")
    for suite in sorted(runs["suite"].dropna().unique())[:1]:
        page.code(f"bench pareto {shlex.quote(printable(suite))} --price 2 --pue 1.2 --region FR{page.store_option()}")
