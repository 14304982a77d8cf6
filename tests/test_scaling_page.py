"""The Scaling page: what the law says of synthetic runs with planted truths, in tables, figures and words."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics import curves, outlook, store
from analytics.amounts import counts
from analytics.frame import frame
from analytics.scaling import SeriesFit, fit
from app import scaling
from app.charts import scaling as charts
from bench.record import Status
from tests import rows
from tests.pages import EVIL, Open, markup, opened, texts

LOSS = {1: 1.0, 2: 0.95, 4: 0.93, 8: 0.92}


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    def run(given: Any, **query: str) -> AppTest:
        monkeypatch.setattr(store, "load", lambda uri=None, **_: frame(given))
        return opened("scaling", query)

    yield run
    st.cache_data.clear()


def fitted(given: list[Any]) -> tuple[SeriesFit, ...]:
    return fit(frame(given)).series


def drawn(given: list[Any], *asked: int, law: str = "step", samples: float = 1.0) -> list[scaling.Line]:
    series = fitted(given)

    def tell(entry: SeriesFit, flops: float) -> list[outlook.Outlook]:
        return outlook.outlook(entry, scaling.wanted(entry, asked), law, flops)

    return scaling.lines(series, tell, {entry.name: samples for entry in series})


def figures(given: list[Any]) -> list[Any]:
    lines, series = drawn(given), fitted(given)
    return [
        charts.time_chart(lines, (1.0, "s"), "one sample"),
        charts.residual_chart([(entry, scaling.residuals(entry, "step")) for entry in series]),
        charts.efficiency_chart(series, scaling.largest(lines)),
        charts.parts_chart(scaling.largest(lines)),
    ]


def table(app: AppTest, column: str) -> pd.DataFrame:
    (found,) = [one.value for one in app.dataframe if column in one.value.columns]
    return found


def test_it_says_what_the_runs_say(open_page: Open) -> None:
    given = rows.grid(precisions={"fp32": 1, "bf16": 1.8}, loss={4: 0.8}, repeats=3)
    app = open_page(given)
    assert "breaks at d = 4" in texts(app)
    assert re.search(r"bf16 is 1\.\d+ \(1\.\d+ to 1\.\d+\) times as fast as fp32", texts(app))
    assert "counted in parameters instead of FLOP" in texts(app)
    found = table(app, "Configuration")
    assert len(found) == 12
    assert " to " in found["Samples/s"].iloc[0], "numbers come with their interval"
    assert {"J/sample, measured", "J/sample, estimated by a model"} <= set(found.columns)
    app.selectbox(key="series").select("bf16 ddp").run()
    assert not app.exception
    assert "fp32 ddp\n" not in texts(app)
    assert set(table(app, "Devices d")["Series"]) == {"bf16 ddp"}


def test_executions_are_kept_apart(open_page: Open) -> None:
    old = [rows.make(repeat=0, v=1e9, execution="old")]
    new = [rows.make(repeat=5, v=3e9, execution="new")]
    app = open_page([*old, *new])
    assert app.selectbox(key="execution").value == "new"
    assert "v = 3 GFLOP/s" in texts(app)
    app.selectbox(key="execution").select("old").run()
    assert "v = 1 GFLOP/s" in texts(app)
    assert "v = 1 GFLOP/s" in texts(open_page([*old, *new], execution="old")), "the address keeps it"


@pytest.mark.parametrize("given", [[rows.make()], [rows.make(status=Status.FAILED)], rows.grid((2,), repeats=1)])
def test_little_is_said_of_little(open_page: Open, given: list[Any]) -> None:
    app = open_page(given, devices="4,8", law="power", n="1000", unit="tokens")
    assert "cannot be said" in texts(app) or "nothing to fit" in texts(app)
    assert "Not known: no series ran on more" in texts(app) or "nothing to fit" in texts(app)


def test_runs_that_did_not_end_well_are_told(open_page: Open) -> None:
    bad = [rows.make(4, repeat=r, status=Status.OUT_OF_MEMORY, message="no room " + EVIL[0]) for r in range(2)]
    app = open_page([rows.make(), *bad])
    assert "2 of 3 runs did not end well. The fit is made without them:\nout_of_memory: " in texts(app)
    assert f"(and 1 more repeats): no room {EVIL[0]}" in texts(app)
    assert EVIL[0] not in markup(app)
    assert "did not end well" not in texts(open_page([rows.make()]))


def test_the_address_says_what_is_predicted(open_page: Open) -> None:
    given = rows.grid(tuple(LOSS), ("tiny",), loss=LOSS)
    app = open_page(given, law="ideal", devices="16,64", n="100000", unit="samples")
    assert app.selectbox(key="law").value == "ideal"
    found = table(app, "Devices d")
    assert found["Devices d"].tolist() == [16, 64]
    (entry,) = fitted(given)
    seconds = 1e5 * rows.SIZES["tiny"] / (16 * entry.v)
    assert float(found["T [s], estimated"][0].split()[0].lstrip("~")) == pytest.approx(seconds, rel=0.001)
    assert float(found["T = n/(d·v) says [s]"][0].lstrip("~")) == pytest.approx(seconds, rel=0.001)
    assert float(found["Device-hours, estimated"][0].split()[0].lstrip("~")) == pytest.approx(
        16 * seconds / 3600, rel=0.001
    )
    assert found["Beware"][0] == "extrapolated; several nodes, while all that was measured ran in one"
    assert "Beware at d = 64: more than 4 times as many devices" in texts(app)


def test_an_address_that_is_wrong_shows_the_usual(open_page: Open) -> None:
    given = rows.grid((1, 2), ("tiny",))
    app = open_page(given, law="magic", series="gone", devices="2;3", n="-5", unit="miles", flop="x", suite="gone")
    assert app.selectbox(key="law").value == "step"
    assert "'2;3': give whole numbers from 1 to 1,000,000" in texts(app)
    found = table(app, "Devices d")
    assert found["Devices d"].tolist() == [1, 2, 4, 8], "measured, twice and four times the most"
    assert "Device-hours a million samples, estimated" in found


def test_a_training_in_tokens_and_another_model(open_page: Open) -> None:
    given = rows.grid((1, 2), ("tiny",), noise=0)
    of_samples = table(open_page(given, n="1000"), "Devices d")
    of_tokens = table(open_page(given, n="128000", unit="tokens"), "Devices d")
    assert of_samples["T [s], estimated"].tolist() == of_tokens["T [s], estimated"].tolist(), "128 tokens a sample"
    none = [row | {"tokens_per_second": None} for row in given]
    app = open_page(none, n="128000", unit="tokens")
    assert "Samples of these have no tokens, so give samples: fp32 ddp." in texts(app)
    assert not [one for one in app.dataframe if "Devices d" in one.value.columns]
    other = table(open_page(given, flop="3e8"), "Devices d")
    assert set(other["FLOP a sample"]) == {"300 MFLOP"}
    assert other["Beware"].str.contains("a model with more or less work").all()


def test_charts_show_every_run_and_escape_names() -> None:
    over = dict.fromkeys(("precision", "workload_args.preset", "device_name"), rows.HOSTILE)
    given = [rows.make(d, repeat=r) | over for d in (1, 2, 4) for r in range(2)]
    for figure in figures(given):
        assert "<img" not in figure.to_json().replace("\\u003c", "<")
    time = figures(given)[0]
    (runs,) = [trace for trace in time.data if trace.mode == "markers"]
    assert list(runs.x) == [1, 1, 2, 2, 4, 4]
    assert list(runs.y) == pytest.approx([1 / 20, 1 / 20, 1 / 40, 1 / 40, 1 / 80, 1 / 80])
    band, law, within, _ = time.data
    assert list(law.x) == [1, 2, 4, 8, 16]
    assert list(law.y) == pytest.approx([1 / (20 * d) for d in law.x], rel=0.1)
    assert (law.line.dash, law.marker.symbol, law.legendgroup) == (
        "dash",
        runs.marker.symbol + "-open",
        runs.legendgroup,
    )
    assert all("estimated" in told and "~" in told for told in law.hovertext)
    assert (list(within.x), within.line.dash) == ([1, 2, 4], None), "solid where it was measured"
    assert band.y[4] > law.y[4] > band.y[5], "to the end and back"
    assert time.layout.xaxis.type == time.layout.yaxis.type == "log"
    assert time.layout.yaxis.title.text == "time of one sample [s]"


def test_charts_tell_series_apart_without_colour() -> None:
    for figure in figures(rows.grid(precisions={"fp32": 1, "bf16": 2}))[:3]:
        marks = [trace for trace in figure.data if trace.mode == "markers"]
        assert len({trace.marker.symbol for trace in marks}) == len(marks) > 1
    assert len({(look["color"], look["symbol"]) for look in (charts._look(i, i) for i in range(49))}) == 49


def test_efficiency_is_measured_with_an_interval_beside_the_law() -> None:
    figure = figures(rows.grid((1, 2), ("tiny",), loss={2: 0.5}))[2]
    (measured,) = [trace for trace in figure.data if trace.mode == "markers"]
    assert measured.y[0] == pytest.approx(50, rel=0.02)
    assert measured.error_y.array[0] > 0
    assert measured.error_y.arrayminus[0] > 0
    (law,) = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert law.y[0] == pytest.approx(100)
    assert 40 < law.y[1] < 100


def test_parts_of_a_step_add_up_and_differ_in_pattern() -> None:
    figure = figures(rows.grid(tuple(LOSS), loss=LOSS))[3]
    assert [label.split(", ")[1] for label in figure.data[0].y] == [
        "d = 1",
        "d = 2",
        "d = 4",
        "d = 8",
        "d = 16",
        "d = 32",
    ]
    assert [sum(shares) for shares in zip(*(bar.x for bar in figure.data), strict=True)] == pytest.approx(
        [100] * 6, abs=1
    )
    assert len({bar.marker.pattern.shape for bar in figure.data}) == len(figure.data) > 1


def test_times_are_in_a_unit_that_suits() -> None:
    given = rows.grid((1, 2), ("tiny",), noise=0)
    units = [scaling.unit(drawn(given, samples=n))[1] for n in (1, 1e6, 1e9)]
    assert units == ["s", "h", "days"]


def test_more_devices_are_drawn_only_where_that_can_be_known() -> None:
    (one,), (two,) = fitted(rows.grid((2,), ("tiny",))), fitted(rows.grid((1, 2), ("tiny",)))
    assert (scaling.wanted(one, ()), scaling.wanted(one, (8,))) == ([2], [2, 8])
    assert (scaling.wanted(two, ()), scaling.wanted(two, (16,))) == ([1, 2, 4, 8], [1, 2, 16])


def test_laws_are_judged_and_one_is_preferred() -> None:
    assert outlook.preferred({"step": 0.1, "power": 0.095, "ideal": 0.3}) == "step", "no clear difference"
    assert outlook.preferred({"step": 0.1, "power": 0.05, "ideal": 0.05}) == "ideal", "of equals the plainest"
    series = fitted(rows.grid(tuple(LOSS), ("tiny",), loss=LOSS))
    misses = {series[0].name: {"step": 0.1, "power": 0.02, "ideal": 1.234}}
    found = scaling.judged(series, misses)
    assert found["Law"].tolist() == ["step", "power", "ideal", "amdahl", "usl", "gustafson", "ernest"]
    assert found["Use"].tolist() == ["predicts", "preferred", "predicts", *["describes only"] * 4]
    assert found["Misses the unseen by [%]"].tolist()[:3] == [10, 2, 123.4]
    other = fitted([rows.make(precision="bf16")])
    assert scaling.judged([*series, *other], misses).equals(found), "nothing was tried on the other"
    assert scaling.judged(series, {})["Misses the unseen by [%]"][:3].isna().all(), "nothing was tried"
    (said,) = scaling.verdicts(series, misses)
    assert (
        "the law power is preferred. It misses a configuration that it has not seen by 2 % (median), the least" in said
    )
    assert said.endswith("(step 10 %, ideal 120 %); but that is known from 4 configurations only.")
    assert list(scaling.verdicts(series, {})) == [
        "Which law is best cannot be said, for want of other configurations to try it on: fp32 ddp."
    ]


def test_curves_are_judged_by_what_they_have_not_seen() -> None:
    d = [1, 2, 4, 8, 16]
    amdahl = [one / (1 + 0.1 * (one - 1)) for one in d]
    assert curves.left_out("amdahl", d, amdahl) == pytest.approx(0, abs=1e-5)
    assert curves.curve("amdahl", d, amdahl).at(32) == pytest.approx(32 / 4.1)
    assert (curves.left_out("gustafson", d, amdahl) or 0) > 0.05
    assert curves.curve("gustafson", [2, 4], [2.0, 3.0]).at(4) == pytest.approx(3)
    assert curves.left_out("usl", d[:3], amdahl[:3]) is None, "three are needed to fit, so none can be left out"


def test_efficiency_of_a_prediction_has_an_interval() -> None:
    (entry,) = fitted(rows.grid(tuple(LOSS), ("tiny",), loss=LOSS))
    first, more = outlook.outlook(entry, [1, 16])
    assert (first.efficiency, first.efficiency_low) == (1.0, None)
    assert more.efficiency_low is not None
    assert more.efficiency_high is not None
    assert 0.8 < more.efficiency_low < more.efficiency < more.efficiency_high < 1.05
    wider = outlook.outlook(entry, [4], work=10 * rows.SIZES["tiny"])[0]
    assert "work_outside_measured" in wider.flags
    assert wider.samples_per_second == pytest.approx(4 * 0.93 * rows.V / (10 * rows.SIZES["tiny"]), rel=0.2)


@pytest.mark.parametrize(
    ("text", "found"), [("8", (8,)), ("1, 4,2", (1, 2, 4)), ("8-64", (8, 16, 32, 64)), ("3-10", (3, 6, 10))]
)
def test_numbers_of_devices_are_read(text: str, found: tuple[int, ...]) -> None:
    assert counts(text) == found


@pytest.mark.parametrize("text", ["", "0", "8-4", "1;2", "1e3", ",".join(map(str, range(1, 60)))])
def test_wrong_numbers_of_devices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"devices|give whole numbers"):
        counts(text)


def test_of_very_many_series_the_first_are_shown_and_any_can_be_chosen(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "MOST_SHOWN", 1)
    given = rows.grid((1, 2), ("tiny",), {"fp32": 1.0, "bf16": 2.0})
    app = open_page(given)
    assert any("Shown are the first 1 of 2 series." in caption.value for caption in app.caption)
    series = app.selectbox(key="series").options[1:]
    assert set(app.dataframe[0].value["Series"]) == {series[0]}
    app.selectbox(key="series").select(series[1]).run()
    assert set(app.dataframe[0].value["Series"]) == {series[1]}
    assert not any("Shown are the first" in caption.value for caption in app.caption)
