"""What more devices would bring, in numbers and in words."""

import json
import math
from typing import Any

import pytest

from analytics.law.outlook import outlook
from analytics.law.series import ScalingFit, SeriesFit, fit
from analytics.runs.frame import frame, summary
from analytics.say.blocks import Commands
from analytics.say.curves import curves
from analytics.say.law import flag_words
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
    speed = more.samples_per_second
    assert speed.value == pytest.approx(true, rel=0.04)
    assert speed.low is not None
    assert speed.high is not None
    assert speed.low < true < speed.high
    assert speed.level == more.efficiency.level == 0.8
    assert more.efficiency.value == pytest.approx(0.91, abs=0.04)
    assert sum(more.shares.values()) == pytest.approx(1)
    assert more.flags == (), "the host has 64 cores, and is one node"


def test_the_largest_model_on_twice_and_four_times_the_devices_is_predicted() -> None:
    predictions = outlook(series())
    assert [one.devices for one in predictions] == [16, 32]
    assert {one.flops_per_sample for one in predictions} == {rows.SIZES["small"]}


def test_devices_that_the_machine_lacks_are_flagged_everywhere() -> None:
    runs = series(cores=8)
    inside, beyond = outlook(runs, [8, 16])
    assert (inside.flags, beyond.flags) == ((), ("beyond_this_machine",))
    assert beyond.to_dict()["flags"] == ["beyond_this_machine"]
    assert flag_words(beyond.flags, runs.host) == ["more devices than this machine has (8)"]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Scalar]]:
    made = rows.grid(tuple(LOSS), loss=LOSS)
    monkeypatch.setattr("analytics.runs.selection.select", lambda *_, **__: made)
    return made


@pytest.mark.usefixtures("stored")
def test_fit_predicts_what_is_asked_for() -> None:
    done = bench("fit", "--devices", "16,32")
    assert done.exit_code == 0, done.output
    predicted = done.output.split("80 % intervals")[1]
    assert [line.split()[:3] for line in predicted.splitlines()[2:4]] == [["tiny,", "fp32", n] for n in ("16", "32")]
    predictions = json.loads(bench("fit", "--devices", "16", "--json").stdout)["predictions"]
    assert len({prediction["flops_per_sample"] for prediction in predictions}) == len(rows.SIZES) == len(predictions)
    for prediction in predictions:
        assert prediction["devices"] == 16
        assert 0 < prediction["samples_per_second_low"] < prediction["samples_per_second"]
        assert prediction["efficiency"] < prediction["efficiency_high"]
    assert json.loads(bench("fit", "--json").stdout)["predictions"] == []


def test_a_host_of_two_cores_has_no_eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rows.grid((1, 2), cores=2)
    monkeypatch.setattr("analytics.runs.selection.select", lambda *_, **__: made)
    four, eight = json.loads(bench("fit", "--devices", "4,8", "--json").stdout)["predictions"][:2]
    assert "beyond_this_machine" in four["flags"]
    assert "beyond_this_machine" in eight["flags"]
    predicted = bench("fit", "--devices", "4,8").output.split("80 % intervals")[1]
    assert "more devices than this machine has (2) (all)" in " ".join(predicted.split())


@pytest.mark.parametrize(
    ("kept", "noise", "refused"),
    [
        (0.4, 0.3, True),  # seen: 2 devices were slower than 1, and the law gave 4 devices 1.8 times the speed of 1
        (0.3, 0.03, False),  # clear measurements are followed
        (0.9, 0.03, False),
        (0.8, 0.3, False),  # the repeats explain what the law misses
    ],
)
def test_a_law_that_contradicts_what_was_measured_predicts_nothing(
    monkeypatch: pytest.MonkeyPatch, kept: float, noise: float, refused: bool
) -> None:
    made = rows.grid((1, 2), presets=("tiny",), loss={2: kept}, repeats=5, noise=noise)
    (found,) = fit(frame(made)).series
    (four,) = outlook(found, [4])
    assert four.refused is refused
    (measured,) = found.efficiency
    assert measured.high is not None
    assert refused or four.efficiency.value <= measured.high
    assert math.isnan(four.samples_per_second.value) is refused
    assert (four.to_dict()["efficiency"] is None) is refused
    monkeypatch.setattr("analytics.runs.selection.select", lambda *_, **__: made)
    output = bench("fit", "--devices", "4").output
    assert ("80 % intervals" in output) is not refused
    assert ("Not predicted: each of 2 devices keeps" in output) is refused
    assert ("--devices" in bench("fit").output) is not refused, "what is refused is no next step"
    predicted = {
        prediction.devices
        for curve in curves(ScalingFit((found,)), summary(frame(made)))
        for prediction in curve.predictions
    }
    assert (predicted == set()) is refused


def test_one_configuration_leaves_nothing_to_decide_and_the_command_just_typed_is_no_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = rows.grid((1,), presets=("tiny",), repeats=1)
    monkeypatch.setattr("analytics.runs.selection.together", lambda *_, **__: made)
    suite = str(made[0]["suite"])
    for typed in (["fit", suite], ["fit", suite, "--devices", "4"]):
        output = bench(*typed).output
        assert "To decide" not in output
        assert "For intervals: " in output
        assert "bench fit" not in output
        assert f"bench advise {suite}" in output


def test_commands_leave_out_the_one_just_typed_in_whatever_order() -> None:
    both = Commands(("bench compare a b --store 'my store'", "bench advise a"))
    assert both.besides(["compare", "--store", "my store", "a", "b"]).commands == ("bench advise a",)
    assert both.besides(["advise", "a", "--json"]) == both
