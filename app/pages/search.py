"""Search: what a search found, how it went, what is known of each trial, and what the search itself took."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from itertools import combinations
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from pydantic import ValidationError

from analytics.say.blocks import Block, Note, Sentence
from analytics.search.result import Tried
from analytics.text import interval, number, printable
from app import page
from app.charts.bars import amounts_chart
from app.charts.base import FRONT, KNEE, OTHERS, plain
from app.charts.curves import Extent, Spot, extent, front_chart
from app.charts.timeline import history_chart
from bench.base import in_words
from bench.schema import Model
from bench.suites import yaml as yamlfile

RANKS = {"knee": KNEE, "Pareto front": FRONT, "dominated": OTHERS}


class Goal(Model, extra="ignore"):
    """An objective: what counts, and whether less or more is better. The unit says so where figures are estimated."""

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str | None

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return 1 if self.direction == "minimize" else -1

    @property
    def title(self) -> str:
        """Name and unit."""
        return self.name if self.unit in (self.name, None) else f"{self.name} [{self.unit}]"


class Document(Model, extra="ignore"):
    """The answer of a search: so far, or for good where it says why it `ended`."""

    study: str
    sampler: str
    machine: str
    written_at: datetime | None = None
    objectives: list[Goal]
    ended: str | None
    trials: list[Tried]
    hypervolume: list[dict[Literal["trial", "share"], float]]
    importance: dict[str, dict[str, float]]
    sentences: list[str]
    confirmed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def goals(self) -> list[Goal]:
        """The objectives that runs tell."""
        return [goal for goal in self.objectives if any(goal.name in trial.values for trial in self.trials)]

    @property
    def complete(self) -> list[Tried]:
        """The trials that may be chosen and of which all of them are known."""
        wanted = {goal.name for goal in self.goals}
        return [trial for trial in self.trials if trial.state == "complete" and wanted <= set(trial.values)]


def took(of: Tried) -> dict[str, str]:
    """Say what runs took: time, energy and money. What is not known is absent, and ~ marks the figure of a model."""
    known = {"Time": ("", of.seconds, "s"), "Energy": ("~" * of.joules_estimated, of.joules, "J")}
    known["Money"] = ("", of.usd, "USD")
    return {name: f"{mark}{number(x)} {unit}" for name, (mark, x, unit) in known.items() if x is not None}


def kind(trial: Tried) -> tuple[str, str]:
    """Return the rank of a trial, one of RANKS, and how it was measured."""
    return "knee" if trial.knee else "Pareto front" if trial.front else "dominated", trial.stage or "not run"


def groups(trials: list[Tried]) -> dict[str, tuple[str, str, int]]:
    """Return the looks of trials by rank and stage: filled marks were measured in full, open ones by a probe."""
    out = {}
    for rank, stage in sorted(set(map(kind, trials))):
        colour, symbol, size = RANKS[rank]
        out[f"{rank}, {stage}"] = (colour, symbol + ("" if stage == "full" else "-open"), size)
    return out


def front_figure(document: Document, x: Goal, y: Goal) -> go.Figure:
    """Draw two objectives of the complete trials, and their Pareto front."""
    spots = [
        Spot(_known(trial, x), _known(trial, y), ", ".join(kind(trial)), told(trial, document.goals))
        for trial in document.complete
    ]
    return front_chart(spots, groups(document.complete), (x.title, y.title), (x.sign, y.sign))


def _known(trial: Tried, goal: Goal) -> Extent:
    return extent(trial.values[goal.name], trial.low.get(goal.name), trial.high.get(goal.name))


def told(trial: Tried, goals: list[Goal]) -> list[str]:
    """Say what is known of a trial."""
    chance = "" if trial.p_front is None else f", {100 * trial.p_front:.0f} % likely on the Pareto front"
    lines = [f"trial {trial.number}: {trial.state}, {', '.join(kind(trial))}{chance}"]
    for goal in (goal for goal in goals if goal.name in trial.values):
        ends = trial.low.get(goal.name), trial.high.get(goal.name)
        lines.append(f"{goal.name}: {interval(trial.values[goal.name], *ends, goal.unit or '')}")
    broken = {name: excess for name, excess in trial.violations.items() if excess > 0 and name != "runs"}
    lines += [f"breaks {name} by {100 * excess:.2g} %" for name, excess in broken.items()]
    return [*lines, trial.why] if trial.why else lines


_NAMES = {"number": "trial", "p_front": "chance to be on the Pareto front", "violations.runs": "cannot run"}
_NAMES |= {"seconds": "took [s]", "joules": "took [J]", "joules_estimated": "[J] estimated", "usd": "took [USD]"}
_BEGINNINGS = {"params.": "", "values.": "", "violations.": "share beyond "}
_FIRST = ("number", "state", "stage", "front", "knee", "values.", "params.")


def table(document: Document) -> pd.DataFrame:
    """Return a row a trial: what it is, its values, its parameters, then intervals, what it breaks, what it took."""
    rows = [asdict(trial) | {"runs": " ".join(trial.runs)} for trial in document.trials]
    names = _NAMES | {f"values.{goal.name}": goal.title for goal in document.goals}
    names |= {f"{end}.{goal.name}": f"{end} {goal.title}" for goal in document.goals for end in ("low", "high")}
    found = pd.json_normalize(rows).dropna(axis="columns", how="all")
    titles: dict[str, str] = {}
    for name in sorted(map(str, found), key=lambda name: [name.startswith(start) for start in _FIRST], reverse=True):
        start = next((one for one in _BEGINNINGS if name.startswith(one)), "")
        title = names.get(name) or _BEGINNINGS.get(start, "") + name.removeprefix(start)
        titles[name] = name if title in titles.values() else title
    return found[list(titles)].rename(columns=titles)


def _pick() -> Document:
    """Let a study be chosen, the newest first; stop the page where its document cannot be read."""
    studies = {printable(document["study"]): document for document in page.searches("Search")}
    page.absent("study", studies, "study")
    study = page.control("selectbox", "Study", list(studies), "study")
    try:
        return Document.model_validate(studies[study])
    except ValidationError as error:
        wrong = error.errors()[0]
        st.error("This search is damaged or of another version.", icon=":material/error:")
        st.text(printable(f"{'.'.join(map(str, wrong['loc']))}: {in_words(wrong)}", 300))
        st.stop()
        raise


def answer(document: Document) -> list[Block]:
    """Return what was found, first what repeats have confirmed, and how the search ended."""
    ended = f"Ended: {document.ended}" if document.ended else "Running, or stopped before its end"
    when = f", as of {document.written_at:%Y-%m-%d %H:%M:%S} UTC" if document.written_at else ""
    lines = [plain(line) for line in (*document.confirmed, *document.sentences, *document.notes)]
    first, *others = lines or ["The search has no result yet."]
    about = [f"{ended}{when}. {document.sampler} on {document.machine}"]
    about += ["Confirmed by repeats, which count more than what the search alone says."] * bool(document.confirmed)
    return [Sentence(first[:1].upper() + first[1:], "answer"), *map(Sentence, about), *map(Note, others)]


def _front(document: Document) -> None:
    pairs = {f"{x.name} and {y.name}": (x, y) for x, y in combinations(document.goals, 2)}
    if pairs and document.complete:
        x, y = pairs[page.control("selectbox", "Objectives", list(pairs), "objectives")]
        page.figure(front_figure(document, x, y), "front", "Two objectives of the trials, and their Pareto front")
        st.caption(
            "Open marks are short probes; bars are 95 % intervals. The knee is nearest to the best of all objectives."
        )


def _trials(document: Document) -> None:
    st.subheader("Trials")
    order = sorted(document.trials, key=lambda trial: (not trial.knee, not trial.front, trial.state != "complete"))
    found = table(document.changed(trials=order))
    digits = {name: st.column_config.NumberColumn(format="%.6g") for name in found.select_dtypes("float")}
    page.table(found, "search", column_config=digits)
    numbers = {trial.number: trial for trial in order}
    trial = numbers[st.selectbox("One trial (the knee and the Pareto front first)", list(numbers), key="trial")]
    cost = f"from the {trial.source}; its runs took {', '.join(took(trial).values())}"
    lines = [*told(trial, document.goals), cost, *(f"run {run}" for run in trial.runs)]
    page.lines(lines)
    with st.expander("Parameters of this trial, as in a suite"):
        st.code(yamlfile.write(trial.params), language="yaml")


def _course(document: Document) -> None:
    st.subheader("Course of the search")
    complete = document.complete
    parts = [(g.title, [(float(t.number), t.values[g.name]) for t in complete], g.sign) for g in document.goals]
    shares = [(step["trial"], 100 * step["share"]) for step in document.hypervolume]
    parts += [("hypervolume [% of final]", shares, -1)] if shares else []
    columns = st.columns(3 if len(parts) % 3 == 0 else 2)
    for index, part in enumerate(parts):
        with columns[index % len(columns)]:
            page.figure(history_chart(*part), f"history-{index}", "Figures of the trials and the best so far")
    st.caption("Grey marks are trials, lines the best so far. Hypervolume: the space that the front dominates.")
    if any(document.importance.values()):
        st.subheader("Importance of the parameters")
        importance = {
            goal: {name: 100 * share for name, share in shares.items()} for goal, shares in document.importance.items()
        }
        figure = amounts_chart(importance, "importance [%]", "group")
        page.figure(figure, "importance", "The importance of each parameter")


def main() -> None:
    """Show the page."""
    document = _pick()
    page.show(answer(document), draw=lambda: _front(document))
    if document.trials:
        _trials(document)
    if document.complete:
        _course(document)
