"""The Scaling page: what the law says of synthetic runs with planted truths, in tables, figures and words."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics.amounts import counts
from analytics.law import outlook
from analytics.law.series import SeriesFit, fit
from analytics.runs import store
from analytics.runs.frame import frame
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


def drawn(given: list[Any], *asked: int, samples: float = 1.0) -> list[scaling.Line]:
    series = fitted(given)

    def predict(entry: SeriesFit, flops: float) -> list[outlook.Outlook]:
        return outlook.outlook(entry, scaling.wanted(entry, asked), flops)

    return scaling.lines(series, predict, {entry.name: samples for entry in series})


def figures(given: list[Any]) -> list[Any]:
    lines, series = drawn(given), fitted(given)
    return [
        charts.time_chart(lines, (1.0, "s"), "one sample"),
        charts.residual_chart([(entry, scaling.residuals(entry)) for entry in series]),
        charts.efficiency_chart(series, scaling.largest(lines)),
        charts.parts_chart(scaling.largest(lines)),
    ]


def table(app: AppTest, column: str) -> pd.DataFrame:
    (found,) = [one.value for one in app.dataframe if column in one.value.columns]
    return found


def test_it_says_what_the_runs_say(open_page: Open) -> None:
    given = rows.grid(precisions={"fp32": 1, "bf16": 1.8}, loss={4: 0.8}, repeats=3)
    app = open_page(given)
    assert "breaks at 4 devices" in texts(app)
    assert re.search(r"bf16 is faster than fp32: 1\.\d+ \(1\.\d+ to 1\.\d+\) times", texts(app))
    assert "parameters × samples per second" in texts(app)
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
    newest, before = app.selectbox(key="execution").options
    assert app.selectbox(key="execution").value == newest
    assert "v = 3 GFLOP/s" in texts(app)
    app.selectbox(key="execution").select(before).run()
    assert "v = 1 GFLOP/s" in texts(app)
    assert "v = 1 GFLOP/s" in texts(open_page([*old, *new], execution=before)), "the address keeps it"


@pytest.mark.parametrize("given", [[rows.make()], [rows.make(status=Status.FAILED)], rows.grid((2,), repeats=1)])
def test_little_is_said_of_little(open_page: Open, given: list[Any]) -> None:
    app = open_page(given, devices="4,8", n="1000", unit="tokens")
    assert any(part in texts(app) for part in ("cannot be estimated", "do not identify", "nothing to fit"))
    assert "Unknown: no series ran on more" in texts(app) or "nothing to fit" in texts(app)


def test_runs_that_did_not_end_well_are_told(open_page: Open) -> None:
    bad = [rows.make(4, repeat=r, status=Status.OUT_OF_MEMORY, message="no room " + EVIL[0]) for r in range(2)]
    app = open_page([rows.make(), *bad])
    assert "2 of 3 runs did not end well. The fit is made without them:\nout_of_memory: " in texts(app)
    assert f"(and 1 more repeats): no room {EVIL[0]}" in texts(app)
    assert EVIL[0] not in markup(app)
    assert "did not end well" not in texts(open_page([rows.make()]))


def test_the_address_says_what_is_predicted(open_page: Open) -> None:
    given = rows.grid(tuple(LOSS), ("tiny",), loss=LOSS, cores=32)
    found = table(open_page(given, devices="16,64", n="100000", unit="samples"), "Devices d")
    assert found["Devices d"].tolist() == [16, 64]
    (entry,) = fitted(given)
    seconds = 1e5 * rows.SIZES["tiny"] / (16 * entry.v.value)
    assert float(found["T = n / (d · v) [s]"][0].lstrip("~")) == pytest.approx(seconds, rel=0.001)
    (sixteen, _) = outlook.outlook(entry, [16, 64])
    time = 1e5 / sixteen.samples_per_second.value
    assert time > seconds
    assert float(found["T [s], estimated"][0].split()[0].lstrip("~")) == pytest.approx(time, rel=0.001)
    assert float(found["Device-hours, estimated"][0].split()[0].lstrip("~")) == pytest.approx(
        16 * time / 3600, rel=0.001
    )
    assert found["Limits"][0] == "extrapolated"
    assert "more devices than this machine has (32)" in found["Limits"][1]


def test_limits_are_listed_once_with_their_devices(open_page: Open) -> None:
    app = open_page(rows.grid(tuple(LOSS), ("tiny",), loss=LOSS, cores=32), devices="16,64")
    assert "On 64 devices: more devices than this machine has (32) (fp32 ddp)." in texts(app)
    assert "On 64 devices: more than 4 times as many devices as were measured" in texts(app)


def test_an_address_that_is_wrong_shows_the_usual(open_page: Open) -> None:
    given = rows.grid((1, 2), ("tiny",))
    app = open_page(given, law="power", series="gone", devices="2;3", n="-5", unit="miles", flop="x", suite="gone")
    assert "law" not in [box.key for box in app.selectbox], "there is one law"
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
    assert other["Limits"].str.contains("a model with more or less work").all()


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
    assert all("estimated" in label and "~" in label for label in law.hovertext)
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
        f"{count} devices" for count in (1, 2, 4, 8, 16, 32)
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


def test_unseen_configurations_judge_the_law(open_page: Open) -> None:
    app = open_page(rows.grid(tuple(LOSS), ("tiny",), loss=LOSS))
    assert re.search(r"Unseen configurations are predicted within [\d.]+ %", texts(app))


def test_efficiency_of_a_prediction_has_an_interval() -> None:
    (entry,) = fitted(rows.grid(tuple(LOSS), ("tiny",), loss=LOSS))
    first, more = outlook.outlook(entry, [1, 16])
    assert (first.efficiency.value, first.efficiency.low) == (1.0, None)
    assert more.efficiency.low is not None
    assert more.efficiency.high is not None
    assert 0.8 < more.efficiency.low < more.efficiency.value < more.efficiency.high < 1.05
    wider = outlook.outlook(entry, [4], work=10 * rows.SIZES["tiny"])[0]
    assert "work_outside_measured" in wider.flags
    assert wider.samples_per_second.value == pytest.approx(4 * 0.93 * rows.V / (10 * rows.SIZES["tiny"]), rel=0.2)


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
