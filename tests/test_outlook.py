"""What more devices would bring, in numbers and in words."""

import json
from typing import Any

import pytest

from analytics.frame import frame
from analytics.outlook import outlook, sentences
from analytics.scaling import SeriesFit, fit
from bench.schema import Scalar
from tests import rows
from tests.commands import bench

LOSS = {1: 1.0, 2: 0.95, 4: 0.93, 8: 0.92}


def series(**fields: Any) -> SeriesFit:
    (found,) = fit(frame(rows.grid(tuple(LOSS), loss=LOSS, **fields))).series
    return found


def test_the_law_goes_on_where_the_plain_one_breaks() -> None:
    (more,) = outlook(series(presets=("tiny",)), [16])
    true = 16 * rows.V * 0.91 / rows.SIZES["tiny"]
    assert more.samples_per_second == pytest.approx(true, rel=0.04)
    assert more.low is not None
    assert more.high is not None
    assert more.low < true < more.high
    assert more.efficiency == pytest.approx(0.91, abs=0.04)
    assert sum(more.shares.values()) == pytest.approx(1)
    assert more.flags == ("first_node_boundary",)


def test_the_largest_model_is_asked_for_and_twice_and_four_times_the_devices() -> None:
    told = outlook(series())
    assert [one.devices for one in told] == [16, 32]
    assert {one.flops_per_sample for one in told} == {rows.SIZES["small"]}


def test_words_say_how_sure_and_what_is_not_known() -> None:
    found = series()
    lines = "\n".join(sentences(found, outlook(found, [64])))
    assert "On d = 64: " in lines
    assert "Beware: more than 4 times as many devices as were measured" in lines
    assert "several nodes, while all that was measured ran in one" in lines
    assert "What a law misses of a configuration that it has not seen" in lines
    assert "Not identified by these runs, so taken from what is usual: " in lines
    assert "latency" in lines
    assert sentences(found, []) == []


def test_the_ideal_law_has_no_parts() -> None:
    found = series()
    told = outlook(found, [16], "ideal")
    assert told[0].samples_per_second == pytest.approx(told[0].ideal_samples_per_second)
    assert not any("Time of a step" in line for line in sentences(found, told))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Scalar]]:
    made = rows.grid(tuple(LOSS), loss=LOSS)
    monkeypatch.setattr("analytics.selection.select", lambda **_: made)
    return made


@pytest.mark.usefixtures("stored")
def test_fit_predicts_what_is_asked_for() -> None:
    done = bench("fit", "--devices", "16,32")
    assert done.exit_code == 0, done.output
    assert "On d = 16: " in done.output
    assert "On d = 32: " in done.output
    document = json.loads(bench("fit", "--devices", "16", "--law", "power", "--json").stdout)
    (told,) = document["predictions"]
    assert (told["devices"], told["law"]) == (16, "power")
    assert json.loads(bench("fit", "--json").stdout)["predictions"] == []


@pytest.mark.parametrize("devices", ["0", "a", "8,", "-1", "9999999", "8;16"])
def test_wrong_devices_are_told(devices: str) -> None:
    done = bench("fit", "--devices", devices)
    assert done.exit_code == 2
    assert "give whole numbers from 1 to 1,000,000" in done.stderr
