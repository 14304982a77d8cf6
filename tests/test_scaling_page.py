"""The Scaling page: what the law says of synthetic runs with planted truths, in tables, figures and words."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from analytics.amounts import counts
from analytics.law import outlook
from analytics.law.series import SeriesFit, fit
from analytics.runs.frame import frame, summary
from analytics.say import curves
from app.charts.curves import block_chart
from app.pages import scaling
from bench.record import Status
from tests import rows
from tests.pages import Open, answers, opener, table, texts

LOSS = {1: 1.0, 2: 0.95, 4: 0.93, 8: 0.92}
open_page = opener("scaling")


def fitted(given: list[Any]) -> tuple[SeriesFit, ...]:
    return fit(frame(given)).series


def drawn(given: list[Any], devices: Sequence[int] = ()) -> list[curves.Curve]:
    df = frame(given)
    return curves.curves(fit(df), summary(df), devices)


def test_it_says_what_the_runs_say(open_page: Open) -> None:
    given = rows.grid(precisions={"fp32": 1, "bf16": 1.8}, loss={4: 0.8}, repeats=3)
    app = open_page(given)
    assert answers(app)[0].startswith("4 devices train 1.60x as fast as 2 devices (1.60-1.61): each keeps 80")
    assert re.search(r"bf16 (beats|trains) .*fp32", texts(app))
    assert app.selectbox(key="series").options == [
        scaling.ALL,
        *(f"{m}, {p}" for p in ("bf16", "fp32") for m in rows.SIZES),
    ]
    assert "FLOP/sample" not in texts(app), "series have people's names"
    found = table(app, "J/sample")
    assert len(found) == 12
    assert "(" in found["samples/s"].iloc[0], "numbers come with their interval"
    app.selectbox(key="series").select("tiny, bf16").run()
    assert not app.exception


def test_executions_are_kept_apart(open_page: Open) -> None:
    old, new = (rows.make(repeat=r, v=v, execution=name) for r, v, name in ((0, 1e9, "old"), (5, 3e9, "new")))
    app = open_page([old, new])
    newest, before = app.selectbox(key="execution").options
    assert app.selectbox(key="execution").value == newest
    assert "v = 3 GFLOP/s" in texts(app)
    app.selectbox(key="execution").select(before).run()
    assert "v = 1 GFLOP/s" in texts(app)
    assert "v = 1 GFLOP/s" in texts(open_page([old, new], execution=before)), "the address keeps it"


@pytest.mark.parametrize("given", [[rows.make()], [rows.make(status=Status.FAILED)], rows.grid((2,), repeats=1)])
def test_little_is_said_of_little(open_page: Open, given: list[Any]) -> None:
    app = open_page(given, devices="4,8")
    assert any(part in texts(app) for part in ("cannot be estimated", "do not identify", "no result"))
    assert "Losses" not in [heading.value for heading in app.subheader]


def test_runs_that_did_not_end_well_are_told(open_page: Open) -> None:
    bad = [rows.make(4, repeat=r, status=Status.OUT_OF_MEMORY, message="no room") for r in range(2)]
    assert "2 runs (4 devices) out of memory" in texts(open_page([rows.make(), *bad]))


def test_the_address_says_what_is_predicted(open_page: Open) -> None:
    given = rows.grid(tuple(LOSS), ("tiny",), loss=LOSS, cores=32)
    app = open_page(given, devices="16,64")
    found = table(app, "efficiency")
    assert found["devices"].tolist() == ["16", "64"]
    (entry,) = fitted(given)
    speed = outlook.outlook(entry, [16])[0].samples_per_second.value
    assert float(found["samples/s"][0].split()[0].replace(",", "")) == pytest.approx(speed, rel=0.01)
    assert "more devices than this machine has (32) (64 devices)" in texts(app), "16 devices are within it"
    wrong = open_page(given, series="gone", devices="2;3", suite="gone")
    assert "'2;3': give whole numbers from 1 to 1,000,000" in texts(wrong)


def test_of_very_many_series_the_first_are_shown_and_any_can_be_chosen(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "MOST", 1)
    app = open_page(rows.grid((1, 2), ("tiny",), {"fp32": 1.0, "bf16": 2.0}))
    assert "The first 1 of 2 series are shown." in texts(app)
    app.selectbox(key="series").select("fp32").run()
    assert "are shown" not in texts(app)


def test_speed_by_devices_has_every_run_and_the_law() -> None:
    figure = curves.speed_figure(drawn([rows.make(d, repeat=r) for d in (1, 2, 4) for r in range(2)]))
    (group,) = figure.groups
    runs = [mark for mark in group.marks if not mark.estimated]
    assert [(mark.x, mark.value) for mark in runs] == [(d, pytest.approx(20 * d)) for d in (1, 1, 2, 2, 4, 4)]
    assert [x for x, _ in group.law] == [1, 2, 4, 8, 16], "measured, twice and four times the most"
    assert [y for _, y in group.law] == pytest.approx([20 * x for x, _ in group.law], rel=0.1)
    beyond = [mark for mark in group.marks if mark.estimated]
    assert [mark.x for mark in beyond] == [8, 16]
    assert all((mark.low or 9e9) < mark.value < (mark.high or 0) for mark in beyond)
    solid, dashed, full, open_ = block_chart(figure).data
    assert (list(solid.x), list(dashed.x)) == ([1, 2, 4], [4, 8, 16])
    assert (solid.line.dash, dashed.line.dash) == ("solid", "dash"), "dashed where nothing was measured"
    assert open_.marker.symbol == full.marker.symbol + "-open"
    assert all("~" in label for label in open_.hovertext)


def test_figures_tell_series_apart_by_name_and_without_colour() -> None:
    found = drawn(rows.grid(precisions={"fp32": 1, "bf16": 2}))
    for block in (curves.speed_figure(found), curves.efficiency_figure(found), curves.residuals_figure(found)):
        marks = [
            trace for trace in block_chart(block).data if trace.mode == "markers" and trace.showlegend is not False
        ]
        assert len({trace.marker.symbol for trace in marks}) == len(marks) == len(block.groups) > 1
        assert not any("FLOP" in group.name or "=" in group.name for group in block.groups)


def test_efficiency_is_measured_with_an_interval_beside_the_law() -> None:
    found = drawn(rows.grid((1, 2), ("tiny",), loss={2: 0.5}))
    (group,) = curves.efficiency_figure(found).groups
    base, two = (mark for mark in group.marks if not mark.estimated)
    assert (base.value, two.value) == (100, pytest.approx(50, rel=0.02))
    assert (two.low or 99) < two.value < (two.high or 0)
    assert dict(group.law)[1] == pytest.approx(100)
    assert 40 < dict(group.law)[2] < 100
    (missed,) = curves.residuals_figure(found).groups
    assert len(missed.marks) == 2


def test_parts_of_a_step_add_up() -> None:
    shares = curves.time_shares(drawn(rows.grid(tuple(LOSS), loss=LOSS)))
    names = list(next(iter(shares.values())))
    assert [name.split(", ")[-1] for name in names][1:] == [f"{count} devices" for count in (2, 4, 8, 16, 32)]
    assert [sum(part[name] for part in shares.values()) for name in names] == pytest.approx([100] * 6, abs=1)
    assert len(shares) > 1


def test_more_devices_are_predicted_only_where_that_can_be_known() -> None:
    (one,), (two,) = fitted(rows.grid((2,), ("tiny",))), fitted(rows.grid((1, 2), ("tiny",)))
    assert (curves.counts(one), curves.counts(one, (8,))) == ([2], [2, 8])
    assert (curves.counts(two), curves.counts(two, (16,))) == ([1, 2, 4, 8], [1, 2, 16])


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
