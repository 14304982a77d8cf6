"""The question of a plan, from what is given, and the command line that asks the same."""

from dataclasses import fields, replace

import pandas as pd
import pytest

from analytics.plan.plan import Plan
from analytics.plan.question import Given, question, ran_on, worded
from analytics.plan.speed import OwnSpeed, PriorSpeed
from analytics.runs.frame import frame
from app.pages.planner import FIELDS
from bench.schema import Site
from tests import rows

GIVEN = Given(params=7e9, tokens=1e12, device="H100-SXM", devices=(8, 64, 512), priors=True)


def not_called() -> pd.DataFrame:
    raise AssertionError("the runs are not wanted")


def test_published_trainings_do_not_read_the_runs() -> None:
    asked, notes = question(GIVEN, not_called)
    assert isinstance(asked.speed, PriorSpeed)
    assert notes == [], "the device is called by its own name"
    assert asked.deadline_seconds is asked.budget_usd is asked.batch is asked.watts is None, "nothing is assumed"
    assert asked.site == Site()
    rate = Given(tokens=1e9, tokens_per_second_per_device=1e6, devices=(8,))
    (option,) = Plan(question(rate, not_called)[0]).options
    assert option.duration_seconds.value == pytest.approx(125)


def test_own_runs_are_taken_where_they_apply() -> None:
    runs = frame(rows.grid((1, 2), ("tiny",)))
    given = Given(params=1e8 / 600, tokens=1e9, precision="fp32", devices=(1, 2))
    asked, notes = question(given, lambda: runs)
    assert isinstance(asked.speed, OwnSpeed)
    assert notes == ["Device: Synthetic CPU, that of all your runs."]
    assert asked.work.shape is not None
    assert asked.work.shape[2] == 128, "the length of the sequences of the runs"
    assert ran_on(runs) == ["Synthetic CPU"]
    fitted = asked.speed
    asked, notes = question(given, lambda: runs, lambda *_: (fitted, "a reason"))
    assert notes[1] == "Some of your runs are left out: a reason."
    with pytest.raises(
        ValueError, match=r"^Your 8 runs do not apply: none of those on this device was in bf16\.\nno peak"
    ):
        question(replace(given, precision="bf16"), lambda: runs)


@pytest.mark.parametrize("name", ["peak_flops", "power_watts", "embodied"])
def test_what_cannot_be_meant(name: str) -> None:
    most = {"peak_flops": 1e21}.get(name, 1e6)
    replace(GIVEN, **{name: most})
    with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} .* cannot be meant: at most"):
        replace(GIVEN, **{name: 1.01 * most})
    with pytest.raises(ValueError, match=r"^--electricity-price 2000 cannot be meant"):
        Given(site=Site(usd_per_kwh=2000))


def test_messages_with_other_names() -> None:
    names = {"--peak-flops": "“Peak”", "--device": "“Device”"}
    assert worded("give --device X, or --peak-flops; --devices, a--b", names) == (
        "give “Device” X, or “Peak”; --devices, a--b"
    )


def test_the_page_has_a_field_for_what_a_plan_takes() -> None:
    wanted = {field.name.replace("_", "-") for field in fields(Given)} - {"site", "device", "precision", "recompute"}
    rates = {name for name in wanted if "per-second" in name or name == "accelerator-hours"}
    assert wanted - rates - {"priors", "embodied"} <= set(FIELDS)
