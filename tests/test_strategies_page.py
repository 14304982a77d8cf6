"""The page of strategies: candidates against a baseline, a ladder, what fits into memory; on synthetic rows."""

from typing import Any

import pandas as pd
import pytest

from analytics.judge.compare import Comparison, ladder, within
from analytics.runs.frame import frame
from analytics.say.blocks import Figure, Group, Mark
from analytics.say.ratios import ratios
from app.charts import bars, curves
from app.pages import strategies
from app.serve import TRACKING_URI
from bench.record import Status
from bench.schema import Scalar
from tests import rows
from tests.pages import Open, answers, opened, opener, table, texts

PRECISIONS = {"fp32": 1.0, "bf16": 2.0, "fp16": 0.5}
SPEED, ENERGY = "samples_per_second", "joules_per_sample"
Rows = list[dict[str, Scalar]]
open_page = opener("strategies")


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


def marks(compared: list[Comparison], metric: str) -> dict[str, tuple[str, Mark]]:
    """Verdict and mark of each candidate in a figure of ratios."""
    figure = ratios([(one.name, one) for one in compared], metric)
    return {mark.name: (group.name, mark) for group in figure.groups for mark in group.marks} if figure else {}


def test_ratios_have_their_intervals_and_verdicts() -> None:
    (fast, quick), (slow, half) = marks(within(frame(grid()), [SPEED]).comparisons, SPEED).values()
    assert (fast, slow) == ("better", "worse")
    assert (quick.value, half.value) == (pytest.approx(2, rel=0.02), pytest.approx(0.5, rel=0.02))
    assert (quick.low or 9) < quick.value < (quick.high or 0)
    once = within(frame(rows.grid((1,), ("tiny",), PRECISIONS, repeats=1)), [SPEED]).comparisons
    assert [(verdict, mark.low) for verdict, mark in marks(once, SPEED).values()] == [("undecided", None)] * 2
    steps = marks(ladder(frame(climbed())), SPEED)
    assert [mark.value for _, mark in steps.values()] == pytest.approx([2, 4, 8], rel=0.02), "they multiply"
    assert ratios([], SPEED) is None


def test_what_is_compared_by_default() -> None:
    given = grid()
    assert strategies.metrics(frame(given))[1] == ["samples_per_second", ENERGY, "peak_memory_bytes"]
    reached = [row | {"seconds_to_target": 4.0, "target_reached": 1.0} for row in given]
    assert strategies.metrics(frame(reached))[1][0] == "seconds_to_target"
    silent = [row | {"samples_per_second": None, "tokens_per_second": None} for row in given]
    assert strategies.metrics(frame(silent))[1][0] == "duration_seconds"


def test_ratios_are_drawn_by_verdict_without_colour_alone() -> None:
    shown = [("better", Mark("a", 0.5, 0.4, 0.6)), ("worse", Mark("b", 2.0, 1.5, 1e9)), ("undecided", Mark("c", 1.1))]
    block = Figure("time", "multiple", tuple(Group(verdict, (mark,)) for verdict, mark in shown), reference=1, log=True)
    figure = curves.block_chart(block)
    _, better, worse, few = figure.data
    assert (list(better.x), list(better.y), list(worse.y)) == ([0.5], [0], [1])
    assert better.error_x.array[0] == pytest.approx(0.1)
    assert not few.error_x.visible, "no interval is no bar"
    assert len({trace.marker.symbol for trace in (better, worse, few)}) == 3
    assert max(figure.layout.xaxis.range) < 30, "an endless interval does not hide the others"
    assert [note.text for note in figure.layout.annotations][2] == "c<br>1.1 undecided"
    many = tuple(Mark(str(row), 1.5) for row in range(100))
    assert len(curves.block_chart(Figure("", "", (Group("worse", many),))).layout.annotations) == curves.MOST


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
        ["default", "tiny", 8, "fits", 1, 1],
        ["default", "tiny", 16, "fits", 1, 1],
        ["default", "small", 8, "fits", 1, 1],
        ["default", "small", 16, "out of memory", 1, 2],
        ["recompute", "small", 32, "failed", 1, 1],
    ]
    assert found["share"].tolist()[0] == 0.25
    assert found["parameters"].notna().all(), "a run that failed is as large as those that did not"
    words = [strategies.cell(row) for row in found.itertuples()]
    assert words[0] == ["✓ 1 GB", "25 % of 4 GB"]
    assert words[3:] == [["✗ out of memory", "wanted 8 GB", "1 of 2 runs"], ["! failed"]]
    figure = drawn(found)
    notes = [note.text for note in figure.layout.annotations]
    assert notes.count("not tried") == 9 - 5
    assert notes[0] == "✓ 1 GB<br>25 % of 4 GB"
    assert list(figure.data[0].x) == ["8", "16", "32"]
    heads = ["tiny, default", "small, default", "small, recompute"]
    assert notes[-3:] == heads
    assert strategies.memory_map(frame([rows.make() | {"batch_size_per_device": None}])).empty
    rates = [rows.make(optimizer={"name": "adamw", "learning_rate": rate}) for rate in (0.1, 0.2)]
    assert strategies.memory_map(frame(rates))["runs"].tolist() == [2], "a learning rate is no strategy"
    layers = [rows.make() | {"workload_args.layers": 2.0, "config_id": "b", "run_id": "b"}, rows.make()]
    assert strategies.memory_map(frame(layers))["model"].tolist() == ["2 layers", "synthetic"]
    many = [rows.make() | {"memory": f"m{i}", "config_id": str(i)} for i in range(60)]
    assert len(drawn(strategies.memory_map(frame(many))).data[0].y) == bars.MOST


def drawn(cells: pd.DataFrame) -> Any:
    return bars.memory_chart(cells, [strategies.cell(row) for row in cells.itertuples()])


def test_charts_escape_names() -> None:
    evil = rows.HOSTILE
    block = Figure(evil, evil, (Group(evil, (Mark(evil, 2.0, 1.0, 3.0, 1.0),)),))
    along = Figure(evil, evil, block.groups, evil)
    cells = strategies.memory_map(frame(tried()))
    cells["strategy"] = cells["model"] = evil
    for figure in (curves.block_chart(block), curves.block_chart(along), drawn(cells)):
        assert "<img" not in figure.to_json().replace("\\u003c", "<")
        assert "&lt;img" in figure.to_json().replace("\\u0026", "&")


# --- the page


@pytest.mark.slow
def test_real_runs(recorded_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_URI, recorded_uri)
    app = opened("strategies", {"suite": "ladder"})
    steps = table(app, "step")
    assert steps["step"].tolist()[-1] == "all steps"
    assert answers(app)[0].startswith("Better: ")
    assert any(code.value.startswith("bench compare ladder --explain --store sqlite:") for code in app.code)
    app.selectbox(key="suite").select("batches").run()
    assert not app.exception
    cells = table(app, "outcome")
    assert (cells["outcome"] == "out of memory").sum() == 6
    assert cells["attempted_bytes"].min() > 1e11
    assert "does not fit into memory" in texts(app)


def test_candidates_and_what_the_address_keeps(open_page: Open) -> None:
    app = open_page(grid())
    found = table(app, "change")
    assert found["change"].tolist() == ["bf16", "fp16"]
    assert found["samples/s"].str.contains(r"^2\.0.* better$").tolist() == [True, False]
    app.selectbox(key="baseline").select("bf16").run()
    assert not app.exception
    assert table(app, "change")["change"].tolist() == ["fp32", "fp16"]
    app.multiselect(key="metrics").set_value([ENERGY]).run()
    assert list(table(app, "change"))[1:] == ["J/sample"]
    app = open_page(grid(), baseline="bf16", metrics="J/sample")
    assert (app.selectbox(key="baseline").value, app.multiselect(key="metrics").value) == ("bf16", [ENERGY])


def test_a_ladder_and_its_memory(open_page: Open) -> None:
    app = open_page(climbed(), **dict.fromkeys(("suite", "execution", "baseline", "metrics", "strategy"), "gone"))
    assert app.selectbox(key="baseline").value == strategies.FIRST
    assert table(app, "step")["step"].str.removeprefix("+ ").tolist()[-1] == "all steps"
    assert "no room" in texts(app)
    app.selectbox(key="strategy").select("bf16").run()
    assert table(app, "outcome")["strategy"].astype(str).unique().tolist() == ["bf16"]


@pytest.mark.parametrize("given", [[rows.make()], [rows.make(status=Status.FAILED)], rows.grid((1,), repeats=1)])
def test_little(open_page: Open, given: Rows) -> None:
    assert "Nothing to compare" in texts(open_page(given))


def test_other_work_and_many_configurations(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page([*grid(), *rows.grid((1,), ("small",), {"fp32": 1}, repeats=3)])
    assert "No other configuration does the work of fp32 (small)" in texts(app)
    monkeypatch.setattr(strategies, "MOST", 2)
    app = open_page([row | {"batch_size_per_device": None} for row in grid()])
    assert table(app, "change")["change"].tolist() == ["bf16"]
    assert "Compared are the first 2 of 3 configurations" in texts(app)
