"""The page of strategies: candidates against a baseline, a ladder, what fits into memory; on synthetic rows."""

import math
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics.judge.compare import Comparison, ladder, within
from analytics.runs import store
from analytics.runs.frame import frame
from app.charts import bars, forest
from app.charts.forest import Ratio
from app.pages import strategies
from app.pages.strategies import Goal
from app.serve import TRACKING_URI
from bench.record import Status
from bench.schema import Scalar
from bench.store import tracker as tracking
from tests import rows
from tests.pages import EVIL, Open, answers, markup, opened, texts

PRECISIONS = {"fp32": 1.0, "bf16": 2.0, "fp16": 0.5}
Rows = list[dict[str, Scalar]]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    def run(given: Any, **query: str) -> AppTest:
        def load(uri: str | None = None, **_: Any) -> pd.DataFrame:
            if isinstance(given, Exception):
                raise given
            return frame(given)

        monkeypatch.setattr(store, "load", load)
        return opened("strategies", query)

    yield run
    st.cache_data.clear()


def grid(**fields: Any) -> Rows:
    """Three configurations, begun in the order of PRECISIONS."""
    given = rows.grid((1,), ("tiny",), PRECISIONS, repeats=3, **fields)
    begun = [list(PRECISIONS).index(str(row["precision"])) for row in given]
    return [
        row | {"started_at": f"2026-01-02T03:0{row['repeat']}:0{i}+00:00"} for row, i in zip(given, begun, strict=True)
    ]


def climbed() -> Rows:
    """A ladder whose steps make it 2 and 4 times as fast, and one that does not fit."""
    factors = {"fp32": 1.0, "bf16": 2.0, "fp16": 8.0}
    given = rows.grid((1,), ("tiny",), factors, repeats=3)
    out = [row | {"ladder": list(factors).index(str(row["precision"]))} for row in given]
    return [*out, rows.make(precision="fp8", status=Status.OUT_OF_MEMORY, message="no room") | {"ladder": 3}]


def goal(given: Rows, name: str, amount: str = "same samples") -> Goal:
    return next(one for one in strategies.goals(frame(given), amount) if one.name == name)


def compared(given: Rows, *names: str) -> list[Comparison]:
    return within(frame(given), [goal(given, name).column for name in names]).comparisons


# --- what is compared


def test_goals_of_the_same_samples() -> None:
    given = grid()
    known = {one.name: one for one in strategies.goals(frame(given), "same samples")}
    assert list(known) == ["time", "energy", "carbon", "cost", "memory"]
    assert known["energy"].column == "joules_per_sample", "measured, where there is one"
    assert not any(one.estimated for one in known.values())
    assert known["time"].told(known["time"].value(4.0)) == "0.25 s/sample"
    assert known["memory"].told(known["memory"].value(3e9)) == "3 GB"
    assert known["carbon"].unit == "g a million samples"
    assert strategies.unknown(list(known.values())) == [
        "No quality: no run was validated: validation.samples in the suite."
    ]


def test_what_rests_on_a_model_is_marked() -> None:
    given = grid(readings="e")
    known = {one.name: one for one in strategies.goals(frame(given), "same samples")}
    assert (known["energy"].title, known["carbon"].title) == ("~energy, estimated", "~CO2e, estimated")
    assert known["energy"].told(3.0) == "~3 J/sample"
    assert known["cost"].title == "cost", "rent is no model"


def test_runs_with_a_target_are_compared_on_the_way_to_it() -> None:
    given = [row | {"seconds_to_target": 4.0, "target_reached": 1.0} for row in grid()]
    assert strategies.amounts(frame(given)) == ["way to the target", "same samples", "same tokens"]
    assert goal(given, "time", "way to the target").told(4.0) == "4 s"


def test_commands_that_tell_nothing_are_compared_as_whole_runs() -> None:
    silent = {"samples_per_second": None, "tokens_per_second": None}
    given = [row | silent for row in grid()]
    assert strategies.amounts(frame(given)) == [strategies.WHOLE_RUN]
    assert goal(given, "time", strategies.WHOLE_RUN).column == "duration_seconds"
    assert goal(given, "energy", strategies.WHOLE_RUN).column == "run_energy_joules"


def test_speed_is_told_as_time() -> None:
    given = grid()
    fast, slow = strategies.ratios(compared(given, "time"), goal(given, "time"))
    assert (fast.name, fast.verdict, slow.verdict) == ("bf16", "better", "worse")
    assert (fast.x, slow.x) == (pytest.approx(0.5, rel=0.02), pytest.approx(2, rel=0.02))
    assert fast.low is not None
    assert fast.high is not None
    assert fast.low < fast.x < fast.high
    assert fast.figures.startswith("0.0")
    assert fast.figures.endswith(" s/sample")
    assert fast.words.endswith(") better")


def test_one_run_of_each_is_not_enough() -> None:
    given = rows.grid((1,), ("tiny",), PRECISIONS, repeats=1)
    (one, _) = strategies.ratios(compared(given, "time"), goal(given, "time"))
    assert (one.verdict, one.low) == ("not enough repeats", None)
    assert one.words.endswith(" not enough repeats")


def test_remarks_tell_failures_and_refusals_once() -> None:
    bad = [rows.make(precision="fp8", repeat=r, status=Status.OUT_OF_MEMORY, message="no room") for r in range(3)]
    estimated = [rows.make(precision="tf32", repeat=r, readings="e") for r in range(3)]
    given = [*grid(), *bad, *estimated]
    said = strategies.remarks(compared(given, "energy", "carbon"))
    assert any(line.endswith(": out of memory: no room") for line in said)
    assert len([line for line in said if "measured and estimated energy are never compared" in line]) == 1
    table = strategies.table(compared(given, "energy"), [goal(given, "energy")]).set_index("Candidate")
    assert table.loc["tf32", "energy ×"] == "not compared"
    assert table["Ended"].tolist()[-1] == "out of memory"
    assert table["energy ×"].tolist()[-1] == ""
    full = strategies.effects(compared(given, "energy"))
    assert len(full) == 4
    assert full["verdict"].tolist()[:2] == ["better", "worse"]


# --- the ladder


def test_steps_multiply() -> None:
    given = climbed()
    time = goal(given, "time")
    foot, bf16, fp16, failed, whole = strategies.steps(ladder(frame(given)), time)
    assert (foot.verdict, foot.x) == (forest.FOOT, foot.start)
    assert bf16.start == foot.x
    assert fp16.start == bf16.x
    assert bf16.x / bf16.start == pytest.approx(1 / 2, rel=0.02)
    assert fp16.x / fp16.start == pytest.approx(1 / 4, rel=0.02)
    assert whole.start == foot.x
    assert whole.x == pytest.approx(fp16.x, rel=0.01)
    assert "no room" in failed.words
    assert math.isnan(failed.x)
    assert bf16.low is not None
    assert bf16.low < bf16.x, "the interval of its factor, in seconds"
    figure = forest.waterfall_chart([foot, bf16, fp16, failed, whole], time.title, time.unit)
    bar, *marks = figure.data
    assert list(bar.y) == [0, 1, 2, 4]
    assert [base + x for base, x in zip(bar.base, bar.x, strict=True)] == pytest.approx(
        [foot.x, bf16.x, fp16.x, whole.x]
    )
    assert {mark.name for mark in marks} == {"better", forest.FOOT}
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("log", "time [s/sample]")
    heads = [note.text for note in figure.layout.annotations]
    assert heads[0].startswith("baseline<br>0.049")
    assert heads[1].startswith("+ bf16<br>× 0.5")
    assert len(figure.layout.shapes) == 2, "a line from each step to the next"


# --- figures


def test_forest_chart_tells_verdicts_without_colour() -> None:
    shown = [
        Ratio("a", 0.5, 0.4, 0.6, "better", "0.5 better"),
        Ratio("b", 2.0, 1.5, 1e9, "worse", "2 worse"),
        Ratio("c", 1.1, None, None, "not enough repeats", "1.1 not enough repeats"),
        Ratio("none", math.nan, None, None, "cannot tell", "difference"),
    ]
    figure = forest.forest_chart(shown, "accuracy", "above")
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"better", "worse", "not enough repeats", "baseline"}
    better, worse, few = (traces[name] for name in ("better", "worse", "not enough repeats"))
    assert (list(better.x), list(better.y), list(worse.y)) == ([0.5], [0], [1])
    assert better.error_x.array[0] == pytest.approx(0.1)
    assert not few.error_x.visible, "no interval is no bar"
    assert len({trace.marker.symbol for trace in (better, worse, few)}) == 3
    assert figure.layout.xaxis.type == "log"
    assert 10 ** figure.layout.xaxis.range[1] < 30, "an endless interval does not hide the others"
    assert "above 1 is better" in figure.layout.xaxis.title.text
    assert [note.text for note in figure.layout.annotations][2] == "c<br>1.1 not enough repeats"


def tried() -> Rows:
    room = {"memory_available_bytes": 4e9}
    given = [rows.make(preset=p, batch=b) | room for p in ("tiny", "small") for b in (8, 16)]
    full = {"status": "out_of_memory", "error_message": "no room", "attempted_bytes": 8e9, "peak_memory_bytes": None}
    given += [rows.make(preset="small", batch=16, repeat=1, status=Status.FAILED) | room | full]
    given += [rows.make(preset="small", batch=32, status=Status.FAILED, memory="recompute") | room]
    return given


def test_memory_map() -> None:
    found = strategies.memory_map(frame(tried()))
    assert found[["strategy", "model", "batch", "outcome", "worst", "runs"]].to_numpy().tolist() == [
        ["plain", "tiny", 8, "fits", 1, 1],
        ["plain", "tiny", 16, "fits", 1, 1],
        ["plain", "small", 8, "fits", 1, 1],
        ["plain", "small", 16, "out of memory", 1, 2],
        ["recompute", "small", 32, "failed", 1, 1],
    ]
    assert found["share"].tolist()[0] == 0.25
    assert found["parameters"].notna().all(), "a run that failed is as large as those that did not"
    words = [strategies.cell(row) for row in found.itertuples()]
    assert words[0] == ["✓ 1 GB", "25 % of 4 GB"]
    assert words[3:] == [["✗ out of memory", "wanted 8 GB", "1 of 2 runs"], ["! failed"]]
    assert strategies.memory_map(frame([rows.make() | {"batch_size_per_device": None}])).empty


def test_learning_rates_and_one_accumulation_step_are_no_strategies() -> None:
    given = [rows.make(optimizer={"name": "adamw", "learning_rate": rate}) for rate in (0.1, 0.2)]
    found = strategies.memory_map(frame(given))
    assert found["runs"].tolist() == [2]


def test_a_model_without_arguments_is_called_by_its_workload() -> None:
    given = [rows.make() | {"workload_args.layers": layers} for layers in (None, 2.0)]
    assert strategies.memory_map(frame([given[0], given[1] | {"config_id": "b", "run_id": "b"}]))["model"].tolist() == [
        "layers 2",
        "synthetic",
    ]


def test_memory_chart() -> None:
    figure = drawn(strategies.memory_map(frame(tried())))
    cells = {trace.name: trace for trace in figure.data if trace.type == "bar"}
    assert list(cells["fits"].y) == [0, 0, 1]
    assert list(cells["fits"].base) == pytest.approx([-0.48, 0.52, -0.48])
    assert (list(cells["out of memory"].y), list(cells["failed"].y)) == ([1], [2])
    patterns = [cells[name].marker.pattern.shape for name in ("fits", "out of memory", "failed")]
    assert len(set(patterns)) == 3, "told apart without colour"
    words = figure.data[-1]
    assert list(words.text).count("not tried") == 9 - 5
    assert words.text[0] == "✓ 1 GB<br>25 % of 4 GB"
    assert list(figure.layout.xaxis.ticktext) == ["8", "16", "32"]
    heads = [note.text for note in figure.layout.annotations]
    assert heads == [
        "tiny, plain",
        "small, plain",
        "small, recompute",
    ]


def test_figures_of_very_many_rows_end() -> None:
    shown = [Ratio(str(row), 1.5, 1.4, 1.6, "worse", "") for row in range(100)]
    figure = forest.forest_chart(shown, "time", "below")
    assert len(figure.data[0].x) == len(figure.layout.annotations) == forest.MOST
    told = strategies.memory_map(frame([rows.make() | {"memory": f"m{i}", "config_id": str(i)} for i in range(100)]))
    figure = drawn(told)
    assert len(figure.data[0].x) == len(figure.layout.annotations) == forest.MOST


def test_charts_escape_names() -> None:
    evil = rows.HOSTILE
    shown = [Ratio(evil, 2.0, 1.0, 3.0, "better", evil, evil, start=1.0)]
    told = strategies.memory_map(frame([row | {"memory": evil, "workload": evil} for row in tried()]))
    told["strategy"] = told["model"] = told["outcome"] = evil
    for figure in (forest.forest_chart(shown, evil, "below"), forest.waterfall_chart(shown, evil, "s"), drawn(told)):
        assert "<img" not in figure.to_json().replace("\\u003c", "<")
        assert "&lt;img" in figure.to_json().replace("\\u0026", "&")


def drawn(cells: pd.DataFrame) -> Any:
    return bars.memory_chart(cells, [strategies.cell(row) for row in cells.itertuples()])


# --- the page


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")
def test_real_runs(recorded_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_URI, recorded_uri)
    app = opened("strategies", {"suite": "ladder"})
    steps = app.dataframe[0].value
    assert steps["Candidate"].tolist()[-1] == "all steps"
    assert re.match(r"0\.\d+ \(0\.\d+ to \d\.\d+\) (better|cannot tell)", steps["time ×"].tolist()[-1])
    assert "~energy, estimated ×" in steps
    app.selectbox(key="suite").select("batches").run()
    assert not app.exception
    assert "does not fit into the memory" in answers(app)[0], "what to do, first"
    cells = app.dataframe[1].value
    assert (cells["outcome"] == "out of memory").sum() == 6
    assert cells["attempted_bytes"].min() > 1e11
    assert "not enough repeats" in app.dataframe[0].value["time ×"].tolist()[0]


def test_candidates(open_page: Open) -> None:
    app = open_page(grid())
    table = app.dataframe[0].value
    assert table["Candidate"].tolist() == ["bf16", "fp16"]
    assert table["time ×"].str.endswith(") better").tolist() == [True, False]
    assert "bench run suites/ladder.yaml" in [code.value for code in app.code]
    assert "Limits of all" in texts(app)
    app.selectbox(key="baseline").select("bf16").run()
    assert not app.exception
    table = app.dataframe[0].value
    assert table["Baseline"].tolist() == ["bf16", "bf16"]
    assert table["Candidate"].tolist() == ["fp32", "fp16"]
    app.multiselect(key="goals").set_value(["cost"]).run()
    assert [name for name in app.dataframe[0].value if "×" in name] == ["cost ×"]


def test_the_address_keeps_what_is_seen(open_page: Open) -> None:
    app = open_page(grid(), baseline="bf16", amount="same tokens")
    assert app.selectbox(key="baseline").value == "bf16"
    assert app.selectbox(key="amount").value == "same tokens"
    gone = dict.fromkeys(("suite", "execution", "baseline", "amount", "goals", "strategy", "step"), "gone")
    app = open_page(climbed(), **gone)
    assert app.selectbox(key="baseline").value == "First of each kind of work"
    assert app.selectbox(key="strategy").value == "All strategies"
    assert app.selectbox(key="step").value == "time"


def test_a_ladder_on_the_page(open_page: Open) -> None:
    app = open_page(climbed())
    assert not app.code
    steps = app.dataframe[0].value
    assert steps["Candidate"].tolist() == ["bf16", "fp16", "fp8", "all steps"]
    assert "out of memory: no room" in texts(app)
    assert app.selectbox(key="step").options[:2] == ["time", "energy"]
    app.selectbox(key="strategy").select("bf16").run()
    assert app.dataframe[2].value["strategy"].astype(str).unique().tolist() == ["bf16"]


def test_other_work_is_not_compared(open_page: Open) -> None:
    given = [*grid(), *rows.grid((1,), ("small",), {"fp32": 1}, repeats=3)]
    app = open_page(given)
    assert "no other configuration does the work of small fp32" in texts(app)
    assert "preset=small fp32" not in app.selectbox(key="baseline").options


@pytest.mark.parametrize("given", [[rows.make()], [rows.make(status=Status.FAILED)], rows.grid((1,), repeats=1)])
def test_little(open_page: Open, given: Rows) -> None:
    assert "Nothing to compare" in texts(open_page(given))


def test_runs_without_a_batch(open_page: Open) -> None:
    app = open_page([row | {"batch_size_per_device": None} for row in grid()])
    assert app.code[-1].value == "bench run suites/memory.yaml"


def test_nothing_and_no_answer(open_page: Open) -> None:
    assert "bench run" in open_page([]).code[0].value
    app = open_page(tracking.StoreError("there is no store at x"))
    assert app.text[0].value == "there is no store at x"


def test_hostile_text_is_never_markup(open_page: Open) -> None:
    names = ("label", "suite", "host", "device_name", "precision", "memory", "flags", "error_message", "execution")
    for evil in EVIL:
        over = dict.fromkeys((*names, "workload", "workload_args.preset", "emissions_basis"), evil)
        given = [rows.make(batch=b, repeat=r) | over | {"ladder": b // 8} for b in (8, 16) for r in range(3)]
        given.append(rows.make(batch=32, status=Status.FAILED) | over | {"ladder": 4})
        given.append(rows.make(batch=64) | over | {"status": evil, "ladder": 8})
        app = open_page(given)
        assert evil not in markup(app)
        for table in app.dataframe:
            assert not any(str(cell).startswith("=") for name in table.value for cell in table.value[name])


def test_cost_at_one_rent_is_no_question_of_its_own(open_page: Open) -> None:
    rented = [row | {"cost_usd_per_million_samples": 1e3 / float(str(row["samples_per_second"]))} for row in grid()]
    assert strategies.follows(frame(rented), strategies.goals(frame(rented), "same samples"))["cost"] == "time"
    app = open_page(rented)
    assert "cost" not in app.multiselect(key="goals").value
    assert any("Cost is time times one number here" in caption.value for caption in app.caption)
    app.multiselect(key="goals").select("cost").run()
    assert "cost" in app.multiselect(key="goals").value, "it can be asked for"
    dear = [row | {"cost_usd_per_million_samples": 1.0 + i} for i, row in enumerate(rented)]
    assert "cost" not in strategies.follows(frame(dear), strategies.goals(frame(dear), "same samples"))


def test_of_very_many_configurations_the_first_are_compared(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "MOST", 2)
    app = open_page(grid())
    assert app.dataframe[0].value["Candidate"].tolist() == ["bf16"]
    assert "Compared are the first 2 of 3 configurations" in texts(app)
