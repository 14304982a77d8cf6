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
from analytics.judge.objectives import Amount, Objective, Per
from analytics.runs.export import to_csv
from analytics.runs.frame import IDENTITY, latest_execution, summary, tidy
from analytics.runs.repeat import CannotRepeat, again
from analytics.say import front as said
from analytics.say.blocks import Block, Commands, Note, Sentence
from analytics.say.names import named, word
from analytics.say.search import unit_of
from analytics.text import interval, printable
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

    def cells(self, table: pd.DataFrame) -> list[str]:
        """Values with their intervals and unit as text."""
        return ["~" * self.estimated + interval(*ends, self.unit) for ends in self.known(table)]


def sides(one: Front) -> list[Side]:
    """Return the objectives of a front for people, then those that do not count."""
    every = (*one.objectives, *one.others)
    return [
        Side(each, *unit_of(each.name, float(one.table[each.name].max())), each.name in one.estimated) for each in every
    ]


def places(table: pd.DataFrame) -> list[str]:
    """Return the group of each configuration, one of GROUPS."""
    stands = zip(table["knee"], table["front"], strict=True)
    return ["knee" if knee else "Pareto front" if front else "dominated" for knee, front in stands]


def told(one: Front, names: Sequence[str]) -> list[list[str]]:
    """Say what is known of each configuration, in lines."""
    cells = {side.name: side.cells(one.table) for side in sides(one)}
    out = list[list[str]]()
    for index, (row, stands) in enumerate(zip(one.table.to_dict("records"), places(one.table), strict=True)):
        chance = "" if pd.isna(row["p_front"]) else f" ({100 * row['p_front']:.0f} % likely)"
        runs = f"{row['repeats']} {'run' if row['repeats'] == 1 else 'runs'} of {row['suite']}"
        head = [f"{index + 1}. {names[index]}", f"on the Pareto front: {SAID[stands]}{chance}"]
        figures = [f"{name}: {of[index]}" for name, of in cells.items()]
        out.append([*head, *figures, f"{runs} on {row['host']} ({row['device_name']})"])
    return out


def in_words(one: Front, runs: pd.DataFrame) -> list[str]:
    """Name the configurations of a front by what tells them apart; those that share a name have their number too."""
    table = summary(runs).drop_duplicates("config_id").set_index("config_id")
    words = named(table).loc[one.table["config_id"], "change"].tolist()
    return [name if words.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(words)]


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
    names = sorted(df["suite"].dropna().unique())
    more = {"default": newest(df), "placeholder": "All suites", "help": "The newest execution of each."}
    suites = page.control("multiselect", "Suites", names, "suites", **more)
    runs = latest_execution(df[df["suite"].isin(suites)] if suites else df)
    runs, probes = pareto.without_probes(runs[runs["status"] == Status.OK])
    if probes:
        st.sidebar.caption(f"Without {probes:,} short probes of searches.")
    hosts = machines(runs)
    if hosts.nunique() > 1:
        host = page.control("selectbox", "Machine", [ALL, *sorted(hosts.unique())], "machine")
        runs = runs if host == ALL else runs[hosts == host]
    works: dict[str, pd.DataFrame] = {}
    for name, some in pareto.works(tidy(runs)):
        name = plain(name) if "=" in name else word("workload", name)
        works[name if name not in works else f"{name} ({len(works)})"] = some
    if not works:
        page.show([Sentence("No run of these ended well, so there is nothing to choose from.", "answer")])
        page.code("bench run suites/precision.yaml")
        st.stop()
    names = sorted(works, key=lambda name: -works[name]["config_id"].nunique())
    tip = "Runs on the same model and data are compared."
    work = page.control("selectbox", "Work", names, "work", help=tip)
    return work, works[work]


def _amount(units: list[Per]) -> Amount | None:
    """Ask for how much work; None where it is the way to a target."""
    if units == ["target"]:
        st.sidebar.caption("All reached the same target: figures are those of the training up to it.")
        return None
    unit = units[0]
    if len(units) > 1:
        unit = page.control("segmented_control", "Counted in", units, "unit", default=unit, required=True)
    more = {"min_value": 1e-6, "max_value": 1e9, "value": 1.0, "format": "%g"}
    millions = page.control("number_input", f"Amount of work [million {unit}]", key="amount", **more)
    return Amount(**{unit: millions * 1e6})


def _axes(names: list[str]) -> list[str]:
    """Let two or three objectives be chosen that are drawn."""
    if len(names) < 2:
        return names
    x = page.control("selectbox", "Horizontal", names, "x")
    y = page.control("selectbox", "Vertical", [name for name in names if name != x], "y")
    third = page.control("selectbox", "Colour", [NONE, *(name for name in names if name not in (x, y))], "third")
    return [x, y, *([third] if third != NONE else [])]


def front_figure(one: Front, axes: Sequence[str], names: Sequence[str], picked: int | None = None) -> Any:
    """Draw two objectives of a front, and a third as colour; the Pareto front has its numbers."""
    by_name = {side.objective.name: side for side in sides(one)}
    x, y, *more = (by_name[name] for name in axes)
    colours = more[0].values(one.table) if more else [None] * len(one.table)
    known = zip(x.known(one.table), y.known(one.table), places(one.table), told(one, names), colours, strict=True)
    spots = [
        Spot(at, up, group, lines, "" if group == "dominated" else str(index + 1), colour)
        for index, (at, up, group, lines, colour) in enumerate(known)
    ]
    across, upwards = (1 if side.objective.rising else -1 for side in (x, y))
    return front_chart(spots, GROUPS, (x.title, y.title), (across, upwards), more[0].title if more else "", picked)


def _again(run: dict[Any, Any], df: pd.DataFrame) -> None:
    st.caption("To repeat it three times, download the suite and run in the same folder:")
    try:
        suite = again(run, df)
    except CannotRepeat as error:
        st.text(printable(f"It cannot be repeated: {error}.", 300))
        return
    page.code("bench run again.yaml")
    page.download("Download again.yaml", yamlfile.write(suite), "again.yaml", "application/yaml")
    if pd.notna(run["cost_usd"]) and not any(name.startswith("usd_") for name in suite):
        st.caption("The file names no price: add `--electricity-price`, or `--capital-price`, as for the first run.")


def _picked(one: Front, names: Sequence[str], axes: Sequence[str]) -> int:
    """Show the front and let a configuration be picked, in the figure or by name; return its index in the table."""
    spot = st.container()
    order = sorted(range(len(names)), key=lambda index: not one.table["knee"][index])
    index = {names[place]: place for place in order}

    def clicked() -> None:
        for point in st.session_state["figure-front"].selection.points:
            st.session_state["point"] = names[point["customdata"][0]]

    label = "Configuration (or click on one in the figure)"
    chosen = index[page.control("selectbox", label, list(index), "point", at=st)]
    if len(one.table) > 1 and len(axes) > 1:
        with spot:
            alt = "Two objectives of the configurations, and their Pareto front"
            drawn = front_figure(one, axes, names, chosen)
            page.figure(drawn, "front", alt, on_select=clicked, selection_mode="points")
            st.caption("Bars are 95 % intervals of the repeats; wide ones leave the figure. ~ is estimated by a model.")
    return chosen


def main() -> None:
    """Show the page."""
    df = page.runs("Trade-offs")
    work, runs = _pick(df)
    amount = _amount(pareto.units(runs))
    _, known, dropped = pareto.known(runs, amount=amount)
    objectives = sorted((objective.name for objective in known), key=ORDER.index)
    usual = [name for name in objectives if name in pareto.DEFAULT]
    by = page.control("multiselect", "Objectives of the front", objectives, "by", default=usual) or usual
    one = _front(work, runs, by or pareto.DEFAULT, amount, objectives)
    axes = _axes(objectives)
    names = in_words(one, runs)
    left: list[Block] = [
        Note(f"{plain(why)}.", f"{name} cannot be chosen") for name, why in dropped.items() if name not in one.dropped
    ]
    prices = f"bench pareto {shlex.quote(str(runs['suite'].iloc[0]))} --price 2 --pue 1.2 --region FR"
    left.append(Commands((prices,), "With other prices, PUE or region"))
    hosts = machines(runs)
    where = f"Runs of {', '.join(sorted(runs['suite'].unique()))} on {'; '.join(sorted(hosts.unique()))}."
    where += " These are different machines: pointing at a mark says which ran what." * (hosts.nunique() > 1)
    picked = 0

    def draw() -> None:
        nonlocal picked
        st.text(printable(where, 600))
        picked = _picked(one, names, axes) if one.objectives else 0

    page.show([*said.blocks([one], runs), *left], draw=draw)
    if not one.objectives:
        page.code("bench run suites/precision.yaml --price 2 --region FR")
        return
    st.subheader("The configuration that is picked")
    page.lines([*told(one, names)[picked], *said.against(one, picked)])
    own = runs_of(one, picked, runs)
    with st.expander("Its runs, and how to repeat them"):
        page.table(own[[name for name in RUNS if name in own]].rename(columns=RUNS), "runs", full=own)
        page.run_links(own, lambda run: f"Repeat {int(run['repeat']) + 1}")
        _again(own.to_dict("records")[0], df)
    page.download("Download all configurations as CSV", lambda: to_csv(one.table), "wattbench-front.csv")
