"""What would change the choice of a plan, where the values can be worked out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from analytics.plan.plan import Plan, Question, best
from analytics.plan.question import Given, question
from analytics.plan.speed import SIZE, Draws, GivenSpeed
from analytics.plan.tipping import Tip, tips
from analytics.runs.frame import frame
from analytics.work import sample_work
from bench.schema import Site
from tests.clock import python_calls

DAY, V, LOSS = 86400.0, 1e12, 0.1
COUNTS = (8, 16, 32, 64)
SAMPLES = 1e9
N = 1e9 * SAMPLES


@dataclass(frozen=True)
class Losing(GivenSpeed):
    """d devices do V · d^0.9 FLOP/s together: more devices are dearer."""

    def draws(self, devices: Sequence[int]) -> Draws:
        rate = np.tile(V * np.asarray(devices, dtype=float) ** (1 - LOSS), (SIZE, 1))
        return Draws(rate, np.ones_like(rate), ((),) * len(devices))


def seconds(devices: int) -> float:
    return float(N / (V * devices ** (1 - LOSS)))


def cost(devices: int, price: float = 2.0) -> float:
    return devices * seconds(devices) / 3600 * price


def asked(**fields: object) -> Question:
    usual: dict[str, object] = {"site": Site(usd_per_device_hour=2.0)}
    return Question(sample_work(1e9, SAMPLES), Losing(0.0), COUNTS, **(usual | fields))  # type: ignore[arg-type]


def found(one: Question) -> dict[str, Tip]:
    return {tip.name: tip for tip in tips(Given(flops_per_sample=1e9, samples=SAMPLES), one)}


def close(tip: tuple[float, int | None] | None, value: float, devices: int | None) -> None:
    assert tip is not None
    assert tip[0] == pytest.approx(value, rel=2e-3)
    assert tip[1] == devices


def test_a_deadline_changes_the_choice_where_the_next_number_is_in_time() -> None:
    one = asked(deadline_seconds=1.2 * seconds(32))
    assert best(one) == Plan(one).options[0].devices == 32
    tip = found(one)["--deadline"]
    close(tip.above, seconds(16), 16)
    close(tip.below, seconds(32), 64)


def test_more_work_is_a_shorter_deadline() -> None:
    tip = found(asked(deadline_seconds=1.2 * seconds(32)))["--samples"]
    close(tip.above, 1.2 * SAMPLES, 64)
    close(tip.below, SAMPLES * 1.2 * seconds(32) / seconds(16), 16)


def test_a_budget_and_a_price_are_the_same_thing() -> None:
    one = asked(budget_usd=2 * cost(8))
    tip = found(one)
    close(tip["--budget"].below, cost(8), None)
    close(tip["--price"].above, 4.0, None)
    assert tip["--budget"].above is None
    assert tip["--price"].below is None


def test_a_budget_between_deadline_and_money() -> None:
    one = asked(deadline_seconds=1.2 * seconds(32), budget_usd=1.01 * cost(32))
    tip = found(one)
    close(tip["--deadline"].below, seconds(32), None)
    close(tip["--price"].above, 2.02, None)


def test_electricity_counts_with_the_pue() -> None:
    site = Site(usd_per_kwh=0.2, pue=1.2)
    one = asked(site=site, watts=500.0, budget_usd=1.5 * cost(8, 0.5 * 1.2 * 0.2))
    tip = found(one)
    close(tip["--electricity-price"].above, 0.3, None)
    close(tip["--pue"].above, 1.8, None)
    close(tip["--power-watts"].above, 750.0, None)
    assert tip["--pue"].below is None, "there is no PUE below 1"


def test_without_limits_nothing_changes_the_choice() -> None:
    assert [(tip.name, tip.below, tip.above) for tip in tips(Given(), asked())] == [("--price", None, None)]


def test_what_is_beyond_ten_times_is_not_told() -> None:
    assert found(asked(deadline_seconds=11 * seconds(8)))["--deadline"].below is None
    assert found(asked(deadline_seconds=9 * seconds(8)))["--deadline"].below is not None


def test_where_nothing_meets_what_is_asked_it_says_what_would() -> None:
    one = asked(deadline_seconds=0.5 * seconds(64), batch=32.0)
    assert best(one) is None
    tip = found(one)["--deadline"]
    close(tip.above, seconds(32), 32)
    assert tip.below is None


H100 = Given(
    params=7e9,
    tokens=1e12,
    device="H100-SXM",
    devices=(8, 16, 32, 64, 128, 256, 512),
    deadline=30 * DAY,
    budget=3e5,
    batch=1024.0,
    priors=True,
    site=Site(pue=1.2, usd_per_device_hour=2.5),
)


def no_runs() -> pd.DataFrame:
    return frame([])


@pytest.mark.parametrize("name", ["deadline", "tokens", "params", "budget", "batch", "price"])
def test_at_the_value_that_is_told_the_plan_itself_chooses_that(name: str) -> None:
    one, _ = question(H100, no_runs)
    tip = next(tip for tip in tips(H100, one) if tip.name == f"--{name}")
    assert tip.devices == Plan(one).options[0].devices == 128
    assert tip.below or tip.above
    for end, outward in ((tip.below, 0.99), (tip.above, 1.01)):
        for factor, devices in ((outward, end[1]), (1 / outward, 128)) if end else ():
            x = end[0] * factor
            site = H100.site.model_copy(update={"usd_per_device_hour": x})
            moved = replace(H100, site=site) if name == "price" else replace(H100, **{name: x})
            first = Plan(question(moved, no_runs)[0]).options[0]
            assert (first.devices if first.feasible else None) == devices


def test_it_takes_no_time_and_no_number_breaks_it() -> None:
    one, _ = question(H100, no_runs)
    assert python_calls(lambda: tips(H100, one)) < 100_000
    huge = replace(H100, params=1e17, tokens=5e14, devices=(1_000_000,), batch=None)
    assert tips(huge, question(huge, no_runs)[0]), "ten times as many tokens cannot be meant"
