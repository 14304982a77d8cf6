"""The page Trade-offs, run by Streamlit's own test harness on synthetic rows, and its figure by its data."""

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from analytics.judge import front as pareto
from analytics.runs import store
from analytics.runs.frame import frame
from analytics.runs.repeat import again
from app.pages import tradeoffs
from app.serve import TRACKING_URI
from bench.record import Status
from tests import rows
from tests.commands import bench
from tests.pages import Open, answers, opened, opener, table, texts
from tests.test_pareto import THREE, runs

FOUR = [*THREE, *runs("d", 400, 400)]


open_page = opener("tradeoffs")


def drawn(given: list[Any], *by: str, picked: int | None = None) -> tuple[go.Figure, pareto.Front]:
    (one,) = pareto.front(frame(given), by or ("time", "energy"))
    names = tradeoffs.in_words(one, frame(given))
    return tradeoffs.front_figure(one, [side.name for side in one.objectives][:3], names, picked), one


def known(app: AppTest) -> pd.DataFrame:
    """The table of all configurations, which stands in the details."""
    return [one.value for one in app.dataframe if "on the front" in one.value][-1]


def test_the_page_says_what_to_choose(open_page: Open) -> None:
    app = open_page(FOUR, y="energy")
    (text,) = answers(app)
    assert re.match(r"Take .* for time \(100 % sure\).* for .*balance \(the knee\)", text)
    assert "Runs of synthetic on synthetic-host: Synthetic CPU." in texts(app)
    assert "quality cannot be chosen: no run was validated" in texts(app)
    found = known(app)
    assert found["on the front"].tolist() == ["100 %", "100 % knee", "100 %", "0 %"]
    assert {"time, s", "energy, J", "cost, USD"} <= set(found)
    assert "(" in found["time, s"].iloc[0]


def test_one_is_picked_and_kept_in_the_address(open_page: Open) -> None:
    app = open_page(FOUR, y="energy", by=["time", "energy"])
    knee, *others = app.selectbox(key="point").options
    assert app.selectbox(key="point").value == knee
    assert len(table(app, "Run")) == 4
    assert "This is the knee of all 4." in texts(app)
    app.selectbox(key="point").select(others[-1]).run()
    assert f"4. {others[-1]}\non the Pareto front: no (0 % likely)\ntime: " in texts(app)
    said = r"Compared with b \(the knee\): 0\.(49|50)\d? times as fast, (2|1\.9\d|2\.0\d) times the energy"
    assert re.search(said, texts(app))
    assert open_page(FOUR, y="energy", point=others[-1]).selectbox(key="point").value == others[-1]


@pytest.mark.slow
def test_real_runs(recorded_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_URI, recorded_uri)
    for suite in ("scaling", "ladder", "search-cost-efficiency"):
        app = opened("tradeoffs", {"suites": suite, "third": "memory"})
        assert answers(app)[0].startswith("Take ")
        assert "energy: ~" in texts(app)
        assert any(code.value.startswith("bench run again.yaml --store sqlite:") for code in app.code)
    df = store.load(recorded_uri)
    for run in df.to_dict("records"):
        assert again(run, df)["include"], run["label"]


def test_two_or_three_objectives(open_page: Open) -> None:
    app = open_page(FOUR)
    assert [app.selectbox(key=key).value for key in ("x", "y", "third")] == ["time", "cost", "None"]
    assert app.selectbox(key="third").options == ["None", "energy", "memory", "carbon"], "what is known, and not chosen"
    app.selectbox(key="x").select("cost").run()
    assert not app.exception
    assert app.selectbox(key="y").value == "time"
    app.selectbox(key="third").select("memory").run()
    assert not app.exception
    assert "least memory" not in texts(app), "axes do not count by themselves"
    app.multiselect(key="by").select("memory").run()
    assert "least memory" in texts(app)


@pytest.mark.parametrize("axes", [{}, {"x": "energy", "y": "time"}, {"third": "memory"}])
def test_the_knee_is_that_of_the_command(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, axes: dict[str, str]
) -> None:
    given = [*FOUR, *[row | {"stage": "probe"} for row in runs("p", 1, 1, repeats=1)]]
    monkeypatch.setattr("analytics.runs.selection.load", lambda *_, **__: frame(given))
    (front,) = json.loads(bench("pareto", "synthetic", "--json").stdout)["fronts"]
    (knee,) = (one["name"] for one in front["configurations"] if one["knee"])
    app = open_page(given, **axes)
    order = [one["name"] for one in front["configurations"]]
    told = known(app)["on the front"].tolist()
    assert [order[place] for place, text in enumerate(told) if "knee" in text] == [knee]
    assert f"{order.index(knee) + 1}. {app.selectbox(key='point').value}\n" in texts(app)


def test_an_amount_of_work(open_page: Open) -> None:
    app = open_page(FOUR, amount="25")
    assert "for 25,000,000 samples" in texts(app)
    assert known(app)["time, h"].iloc[0].startswith("0.69")
    assert "for 2,000,000 tokens" in texts(open_page(FOUR, amount="2", unit="tokens"))
    aim = {"target_reached": 1.0, "seconds_to_target": 9.0, "target.value": 3.0, "target.metric": "validation_loss"}
    app = open_page([row | aim for row in FOUR])
    assert not app.number_input
    assert "to the target" in texts(app)


def test_other_work_suites_and_machines_are_chosen_apart(open_page: Open) -> None:
    larger = [row | {"workload_args.preset": "small", "suite": "other"} for row in runs("e", 1, 1)]
    elsewhere = [row | {"host": "elsewhere", "environment": "f"} for row in runs("f", 90, 90)]
    app = open_page([*FOUR, *larger, *elsewhere], suites=["synthetic", "other"])
    assert app.selectbox(key="work").options == ["tiny", "small"]
    assert "These are different machines" in texts(app)
    app.selectbox(key="machine").select("synthetic-host: Synthetic CPU").run()
    assert "different machines" not in texts(app)
    assert len(known(app)) == 4
    app = open_page([*FOUR, *larger], suites="other")
    assert "Runs of other on" in texts(app)
    assert "nothing to choose from" in texts(app)


def test_the_newest_suite_comes_first_and_all_can_be_chosen(open_page: Open) -> None:
    newer = [row | {"suite": "newer", "started_at": "2026-03-01T00:00:00+00:00"} for row in runs("e", 1, 1)]
    newest = [rows.make(status=Status.FAILED) | {"suite": "newest", "started_at": "2026-04-01T00:00:00+00:00"}]
    app = open_page([*FOUR, *newer, *newest])
    assert app.multiselect(key="suites").value == ["newer"], "nothing of the newest one ended well"
    assert "Runs of newer on" in texts(app)
    app.multiselect(key="suites").set_value([]).run()
    assert "Runs of newer, synthetic on" in texts(app)


def test_probes_of_a_search_are_left_out_unless_there_is_nothing_else(open_page: Open) -> None:
    probes = [row | {"stage": "probe"} for row in runs("p", 1, 1, repeats=1)]
    app = open_page([*FOUR, *probes])
    assert len(known(app)) == 4
    assert "1 short probes of searches" in texts(app)
    assert "1 short probes" not in texts(open_page(probes))


def test_cost_of_several_prices_is_left_out_with_the_reason(open_page: Open) -> None:
    app = open_page([row | {"cost_usd": 0.03 if row["config_id"] == "a" else 0.01} for row in FOUR])
    assert "cost" not in app.selectbox(key="x").options
    assert "cost cannot be chosen: it is that of several prices, 3.6 to 10.8 USD" in texts(app)
    assert any(code.value.startswith("bench pareto synthetic --price 2") for code in app.code)


def test_addresses_of_what_is_not_there_show_the_default(open_page: Open) -> None:
    wrong = dict.fromkeys(("suites", "machine", "work", "x", "y", "third", "unit", "point"), "nothing of the kind")
    app = open_page(FOUR, **wrong, amount="-1")
    assert app.selectbox(key="point").value == app.selectbox(key="point").options[0]
    assert "per million samples" in texts(app)


def test_it_can_be_run_again_or_that_cannot_be(open_page: Open) -> None:
    given = rows.grid((1, 2), ("tiny",))
    app = open_page(given)
    assert any(code.value.startswith("bench run again.yaml") for code in app.code)
    assert "does not tell all that was asked of it" in texts(open_page(FOUR)), "whose config_id is made up"
    assert "it was imported" in texts(open_page([row | {"flags": "imported"} for row in given]))


def test_little(open_page: Open) -> None:
    failed = open_page([rows.make(status=Status.FAILED)])
    assert "No run of these ended well" in texts(failed)
    assert "bench run" in failed.code[0].value
    assert "nothing to choose from" in texts(open_page([rows.make()]))
    bare = {"samples_per_second", "tokens_per_second", "peak_memory_bytes"}
    nothing = [{k: v for k, v in rows.make(readings="").items() if k not in bare}]
    assert "Left out: time: the runs tell no throughput" in texts(open_page(nothing))
    only = [row | {"peak_memory_bytes": math.nan} for row in rows.grid(presets=("tiny",), readings="")]
    assert " for time" in texts(open_page(only))


def test_the_figure_shows_all_with_their_intervals_and_the_front() -> None:
    figure, one = drawn(FOUR, picked=3)
    line, ring, others, front, knee = figure.data
    assert list(line.x) == pytest.approx(one.table["time"][:3].tolist())
    assert line.line.shape == "hv"
    assert (list(ring.x), list(ring.y)) == ([one.table["time"][3]], [one.table["energy"][3]])
    assert [trace.name for trace in (others, front, knee)] == [
        "dominated",
        "Pareto front",
        "knee",
    ]
    assert len({trace.marker.symbol for trace in (others, front, knee)}) == 3, "not by colour alone"
    assert [list(trace.customdata) for trace in (others, front, knee)] == [[[3]], [[0], [2]], [[1]]]
    assert (list(front.text), front.mode, others.mode) == (["1", "3"], "markers+text", "markers")
    high, low = one.table["time_high"], one.table["time_low"]
    assert front.error_x.array[1] == pytest.approx(high[2] - front.x[1])
    assert front.error_x.arrayminus[1] == pytest.approx(front.x[1] - low[2])
    assert "100 % likely" in front.hovertext[0]
    assert "energy: 300 J (297-303)" in front.hovertext[0]
    assert figure.layout.xaxis.title.text == "time [s]"


def test_names_are_escaped() -> None:
    over = dict.fromkeys(("precision", "host", "device_name"), rows.HOSTILE)
    figure, _ = drawn([row | over for row in FOUR])
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_values_far_apart_and_wide_intervals() -> None:
    far = [*runs("a", 10, 900), *runs("b", 1000, 9)]
    figure, _ = drawn(far)
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    wide = [*runs("a", 100, 300, repeats=2, noise=0.5), *runs("b", 150, 200, repeats=2, noise=0.5)]
    figure, one = drawn(wide)
    low, high = figure.layout.xaxis.range
    times = one.table["time"]
    assert (figure.layout.xaxis.type, low, high) == ("log", *np.log10([times.min() / 2, times.max() * 2]))
    assert one.table["time_high"].max() > 10**high, "it leaves the figure"


def test_a_third_objective_is_colour_and_text() -> None:
    scored = [row | {"validation_accuracy": 0.5 + 0.1 * (row["config_id"] == "b")} for row in FOUR]
    figure, _ = drawn(scored, "time", "energy", "quality")
    markers = [trace for trace in figure.data if trace.marker.coloraxis]
    assert sorted(value for trace in markers for value in trace.marker.color) == pytest.approx([0.5, 0.5, 0.5, 0.6])
    assert figure.layout.coloraxis.colorbar.title.text == "validation accuracy, more is better"
    assert all("validation accuracy: 0." in text for trace in markers for text in trace.hovertext)


def test_estimated_figures_are_marked() -> None:
    given = [
        {k: v for k, v in row.items() if k != "joules_per_sample"} | {"joules_per_sample_estimated": 1e3 / 1e6}
        for row in FOUR
    ]
    figure, _ = drawn(given)
    assert figure.layout.yaxis.title.text == "~energy [kJ, estimated]"
    assert "energy: ~1 kJ" in figure.data[-1].hovertext[0]


def test_units_for_people() -> None:
    (one,) = pareto.front(frame(FOUR), ("time", "memory"))
    memory = tradeoffs.sides(one)[1]
    assert memory.title == "memory [GB]"
    assert memory.values(one.table) == pytest.approx([1.0] * 4)
