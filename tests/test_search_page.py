"""The Search page, run by Streamlit's own test harness on made-up documents, and its charts by their data."""

import json
from typing import Any

import pytest

from app.charts import bars, timeline
from app.pages import search
from app.pages.search import Document, table
from tests import rows
from tests.pages import EVIL, Open, answers, markup, opener, safe, texts
from tests.searches import document, thirty, three, trial

page = opener("search")


def read(given: dict[str, Any]) -> Document:
    return Document.model_validate(json.loads(json.dumps(given)))


@pytest.fixture
def open_page(page: Open) -> Open:
    return lambda *given, **query: page(given, **query)


def test_the_answer_comes_first(open_page: Open) -> None:
    app = open_page(document(three()))
    assert answers(app) == ["Least time: 2 devices bf16."]
    assert app.text[0].value == "Ended: the budget of 30 trials is spent. tpe on 2 × Synthetic CPU"
    assert "Least cost: 1 device bf16." in texts(app)
    app = open_page(document(three(), confirmed=["Still on the front: trial 1.", EVIL[0]]))
    assert answers(app) == ["Still on the front: trial 1."], "repeats count more"
    assert "Confirmed by repeats" in texts(app)
    assert EVIL[0] in texts(app)
    assert EVIL[0] not in markup(app)


def test_a_running_search_says_so_and_since_when(open_page: Open) -> None:
    app = open_page(document(three(), ended=None, written_at="2026-01-02T03:04:05Z"))
    assert app.text[0].value.startswith("Running, or stopped before its end, as of 2026-01-02 03:04:05 UTC.")


def test_a_search_without_trials(open_page: Open) -> None:
    app = open_page(document([], ended=None, sentences=[], importance={}))
    assert "The search has no result yet." in texts(app)


def test_a_search_in_which_nothing_ended_well(open_page: Open) -> None:
    bad = trial(0, {}, state="infeasible", stage=None, violations={"runs": 1.0}, why="out of memory", runs=[])
    heavy = trial(2, {"time": 1.0}, state="infeasible", violations={"memory": 0.123, "cost": -0.5})
    running = trial(1, {}, state="running", stage=None, runs=[])
    app = open_page(document([bad, running, heavy], sentences=["No trial met the constraints."]))
    assert "No trial met the constraints." in texts(app)
    assert "out of memory" in texts(app)
    assert "Pareto front of these two" not in texts(app)
    assert app.dataframe[0].value["why"].iloc[0] == "out of memory"
    app.selectbox(key="trial").select(2).run()
    assert "trial 2: infeasible, dominated, full\ntime: 1.00 s (0.95-1.06)\nbreaks memory by 12 %\nfrom" in texts(app)


def test_a_study_is_chosen_and_kept_in_the_address(open_page: Open) -> None:
    given = [document(three()), document([trial(7, {"time": 1.0, "cost": 2.0})], study="other-00000000")]
    app = open_page(*given)
    assert app.selectbox(key="study").value == "cost-efficiency-0a1b2c3d", "the newest, which comes first"
    assert app.selectbox(key="trial").value == 1, "its knee"
    app.selectbox(key="study").select("other-00000000").run()
    assert not app.exception
    assert app.dataframe[0].value["trial"].tolist() == [7]
    assert app.selectbox(key="trial").value == 7
    assert open_page(*given, study="other-00000000").dataframe[0].value["trial"].tolist() == [7]


def test_an_objective_that_no_run_tells_is_not_drawn(open_page: Open) -> None:
    app = open_page(document(three(), "time", "cost", "energy"))
    assert app.selectbox(key="objectives").options == ["time and cost"]
    assert "energy [J, estimated]" not in app.dataframe[0].value


def test_a_choice_may_be_nothing(open_page: Open) -> None:
    app = open_page(document([trial(0, {"time": 1.0, "cost": 1.0}, params={"compression": None})]))
    assert app.code[0].value == "compression: null"


def test_one_trial_with_what_is_known_of_it(open_page: Open) -> None:
    app = open_page(document(three()))
    assert "trial 1: complete, knee, full, 100 % likely on the Pareto front\ntime: 60.0 s (57.0-63.6)" in texts(app)
    assert app.code[0].value == "devices: 2"
    assert "breaks" not in texts(app)
    app.selectbox(key="trial").select(2).run()
    assert "trial 2: complete, dominated, probe\ntime: 120 s\ncost: 1.5 USD" in texts(app), "a probe has no interval"
    assert "run probe-r0" in texts(app)
    assert app.code[0].value == "precision: bf16"


def test_the_table_has_units_and_the_front_first(open_page: Open) -> None:
    found = open_page(document(three())).dataframe[0].value
    assert found["trial"].tolist() == [1, 0, 2]
    first = ["trial", "state", "stage", "front", "knee", "time [s]", "cost [USD]", "precision", "devices"]
    assert sorted(found.columns[:9], key=first.index) == first
    assert list(found.columns[5:7]) == first[5:7], "what counts comes first"
    assert not [name for name in found if "." in name or "_" in name]
    assert found["time [s]"].tolist() == [60.0, 100.0, 120.0]
    assert found["low time [s]"].tolist()[:2] == [57.0, 95.0]
    assert "why" not in found, "nothing is known of it"
    assert {"took [s]", "took [USD]", "chance to be on the Pareto front"} <= set(found)


@pytest.mark.parametrize("names", [("time",), ("time", "cost", "energy", "accuracy")])
def test_one_to_four_objectives(open_page: Open, names: tuple[str, ...]) -> None:
    app = open_page(document([trial(n, dict.fromkeys(names, 0.5 + n)) for n in range(3)], *names))
    pairs = [box.options for box in app.selectbox if box.key == "objectives"]
    assert [len(options) for options in pairs] == ([6] if len(names) == 4 else [])


def test_a_table_whose_names_meet_keeps_both() -> None:
    found = table(read(document([trial(0, {"time": 1.0}, params={"trial": 5})])))
    assert (found["trial"].tolist(), found["params.trial"].tolist()) == ([0], [5])


@pytest.mark.parametrize(
    ("torn", "where"),
    [
        ({"study": "a", "trials": []}, "sampler: Field required"),
        (document([{"number": 1}]), "trials.0.state: Field required"),
        (
            document([trial(0, {}) | {"values": {"time": "fast"}}]),
            "trials.0.values.time: must be a number",
        ),
        (document([], objectives=[{"name": "time", "direction": "sideways", "unit": "s"}]), "objectives.0.direction"),
    ],
)
def test_a_torn_document_is_told(open_page: Open, torn: dict[str, Any], where: str) -> None:
    app = open_page(torn, document(three(), study="other-00000000"))
    assert "damaged or of another version" in app.error[0].value
    assert where in texts(app)
    assert not app.dataframe
    app.selectbox(key="study").select("other-00000000").run()
    assert not app.error, "the others are shown"


def hostile(evil: str) -> dict[str, Any]:
    over: dict[str, Any] = dict.fromkeys(("state", "stage", "source", "why"), evil)
    over |= {"params": {evil: evil}, "runs": [evil], "violations": {evil: 1.0}}
    goals = [{"name": name, "direction": "minimize", "unit": evil, "column": evil} for name in (evil, "time")]
    values = {evil: 1.0, "time": 1.0}
    trials = [trial(0, values, **over), trial(1, values, front=True, knee=True, params={evil: evil}), trial(2, values)]
    text = dict.fromkeys(("study", "name", "description", "sampler", "machine", "ended"), evil)
    importance = {evil: {evil: 1.0}}
    return document(trials, objectives=goals, importance=importance, sentences=[evil], notes=[evil], **text)


def test_hostile_text_is_never_markup(open_page: Open) -> None:
    for evil in EVIL:
        app = open_page(hostile(evil))
        assert evil in texts(app)
        safe(app, evil)


def test_charts_escape_what_the_document_says() -> None:
    shown = read(hostile(rows.HOSTILE))
    x, y = shown.objectives
    figures = [search.front_figure(shown, x, y), timeline.history_chart(x.title, [(0, 1.0)], 1)]
    figures += [bars.amounts_chart(shown.importance, "importance", "group")]
    for figure in figures:
        assert "<img" not in figure.to_json().replace("\\u003c", "<")
        assert "&lt;img" in figure.to_json().replace("\\u0026", "&")


def test_front_chart() -> None:
    shown = read(document([*three(), trial(3, {"time": 1.0, "cost": 0.1}, state="infeasible")]))
    figure = search.front_figure(shown, *shown.objectives)
    line, *marks = figure.data
    assert (list(line.x), list(line.y), line.line.shape) == ([60, 100], [1.2, 1.0], "hv"), "what is feasible only"
    by_name = {mark.name: mark for mark in marks}
    assert set(by_name) == {"knee, full", "Pareto front, full", "dominated, probe"}
    knee, probe = by_name["knee, full"], by_name["dominated, probe"]
    assert (list(knee.x), list(knee.y)) == ([60], [1.2])
    assert knee.error_x.array[0] == pytest.approx(3.6)
    assert knee.error_x.arrayminus[0] == pytest.approx(3.0)
    assert knee.error_x.visible
    assert not probe.error_x.visible, "no interval is no bar"
    assert len({mark.marker.symbol for mark in marks}) == 3, "told apart without colour"
    assert probe.marker.symbol.endswith("-open")
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("time [s]", "cost [USD]")
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "linear", "close together"
    lone = search.front_figure(read(document(three()[:1])), *shown.objectives)
    assert [mark.name for mark in lone.data] == ["Pareto front, full"], "one point has no line"
    bars = {"low": {"time": 1.0, "cost": 1.0}, "high": {"time": 400.0, "cost": 1.0}}
    long = read(document([trial(0, {"time": 30.0, "cost": 1.0}, **bars), trial(1, {"time": 180.0, "cost": 1.0})]))
    range_ = search.front_figure(long, *long.objectives).layout.xaxis.range
    assert [10**end for end in range_] == pytest.approx([15, 360]), "wide intervals leave the figure"
    wide = read(document([trial(0, {"time": 30.0, "cost": 9.0}), trial(1, {"time": 3000.0, "cost": 1.0})]))
    axis = search.front_figure(wide, *wide.objectives).layout.xaxis
    assert (axis.type, axis.ticktext[:3]) == ("log", ("10", "20", "50"))


def test_the_line_of_what_is_to_be_large_goes_the_other_way() -> None:
    values = [{"accuracy": 0.9, "energy": 50.0}, {"accuracy": 0.0, "energy": 20.0}, {"accuracy": 0.5, "energy": 60.0}]
    trials = [trial(number, value) for number, value in enumerate(values)]
    shown = read(document(trials, "accuracy", "energy"))
    figure = search.front_figure(shown, *shown.objectives)
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([0.9, 0.0], [50.0, 20.0])
    assert figure.layout.xaxis.type == "linear", "0 has no place on a logarithmic axis"
    titles = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    assert titles == ("accuracy", "energy [J, estimated]")


def test_history_chart() -> None:
    figure = timeline.history_chart("time [s]", [(0, 5.0), (2, 7.0), (3, 4.0)], 1)
    marks, best = figure.data
    assert (list(marks.x), list(marks.y), list(best.y)) == ([0, 2, 3], [5, 7, 4], [5, 5, 4])
    assert figure.layout.yaxis.title.text == "time [s]"
    assert list(timeline.history_chart("accuracy", [(0, 0.5), (1, 0.4)], -1).data[1].y) == [0.5, 0.5]


def test_importance_chart() -> None:
    figure = bars.amounts_chart({"time": {"devices": 80, "precision": 20}, "cost": {"devices": 10}}, "importance [%]")
    time, cost = figure.data
    assert (list(time.x), list(time.y)) == ([80, 20], ["devices", "precision"])
    assert (list(cost.x), list(cost.y)) == ([10], ["devices"])
    assert time.marker.pattern.shape != cost.marker.pattern.shape


def test_a_table_of_many_trials_is_whole() -> None:
    shown = read(thirty())
    found = table(shown)
    assert len(found) == 30
    assert found["time [s]"].isna().sum() == 30 - len(shown.complete) > 0
    assert found["parallelism.size"].notna().any()
