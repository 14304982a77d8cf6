"""What a whole training takes, from windows whose truth is planted."""

from typing import Any

import numpy as np
import pytest

from analytics.amounts import budget
from analytics.plan.forecast import TrainingForecast, TrainingLength, forecast
from analytics.say.forecast import blocks
from bench.errors import BadValue
from bench.record import Phase, RunRecord, Status
from bench.schema import Site
from tests import commands, rows
from tests.approve import command_record

S = 1_000_000_000
STEP = 0.1
TRAINING = TrainingLength(100_000)


def record(
    steps: Any = None, *, phases: Any = (), readings: str = "m", watts: float = 50.0, **changed: Any
) -> RunRecord:
    """A run with a start-up of 20 s and a warm-up of 3 steps; in its window each step takes 0.1 s, unless `steps` says."""
    seconds = [STEP] * 100 if steps is None else [float(second) for second in steps]
    window = sum(seconds)
    ends = (20, 20.3, 20.3 + window)
    own = [("start", 0, ends[0]), ("warmup", ends[0], ends[1]), *(phases or [("steady", ends[1], ends[2])])]
    one = command_record("python train.py", readings)
    assert one.measurement is not None
    energy = [
        each.changed(
            energy_joules=watts * window, seconds=window, gain_share=0.05 if each.provenance.measured else None
        )
        for each in one.measurement.energy
    ]
    measured = one.measurement.changed(
        step_seconds=seconds,
        window_seconds=window,
        steps=len(seconds),
        samples=32 * len(seconds),
        tokens=None,
        energy=energy,
        phases=[Phase(name=name, start_ns=round(a * S), end_ns=round(b * S)) for name, a, b in own],
        **changed,
    )
    return one.changed(measurement=measured, flags=[])


def told(*records: RunRecord, length: TrainingLength = TRAINING) -> TrainingForecast:
    found = forecast(records, length)
    assert isinstance(found, TrainingForecast), found
    return found


def test_the_start_is_paid_once_and_each_step_after_the_warm_up_takes_its_time() -> None:
    found = told(record())
    seconds = 20.3 + (100_000 - 3) * STEP
    assert found.figures["seconds"].value == pytest.approx(seconds)
    assert found.figures["energy_joules"].value == pytest.approx(50 * seconds, rel=0.01)
    assert found.figures["emissions_kg"].value == pytest.approx(50 * seconds / 3.6e6 * 0.056, rel=0.01)
    assert found.figures["cost_usd"].value == pytest.approx(seconds / 3600 * 3.6)
    assert (found.steps, found.pauses, found.absent, found.doubts) == (100_000, 0, {}, ())


@pytest.mark.parametrize(("unit", "amount"), [("samples", 3_200_000), ("steps", 100_000)])
def test_the_length_may_be_given_in_samples(unit: Any, amount: float) -> None:
    assert told(record(), length=TrainingLength(amount, unit)).steps == 100_000


def test_pauses_continue_at_their_share_and_the_end_is_paid_once() -> None:
    """Ten evaluations of 0.5 s in 100 steps; in the end a checkpoint takes 4 s."""
    at, phases = 20.3, []
    for _ in range(10):
        phases += [("steady", at, at + 0.95), ("eval", at + 0.95, at + 1.45)]
        at += 1.45
    phases += [("steady", at, at + 0.5), ("checkpoint", at + 0.5, at + 4.5)]
    found = told(record(phases=phases))
    assert found.pauses == 10
    figure = found.figures["seconds"]
    assert figure.value == pytest.approx(24.3 + 1.5 * (100_000 - 3) * STEP, rel=0.005)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low / figure.value == pytest.approx(1 - 0.055 / 3, abs=0.005)  # nine to eleven distances fit


def _autoregressive(random: np.random.Generator, count: int, correlation: float, spread: float) -> np.ndarray:
    noise = random.normal(0, spread * np.sqrt(1 - correlation**2), count)
    out = np.empty(count)
    state = random.normal(0, spread)
    for place in range(count):
        state = correlation * state + noise[place]
        out[place] = STEP * np.exp(state)
    return out


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_interval_of_one_launch_holds_the_truth_in_about_80_percent(correlation: float) -> None:
    """Neighbouring steps are alike: were they taken for independent, the interval would hold it in 30 %."""
    random = np.random.default_rng(1)
    truth = 20.3 + (100_000 - 3) * STEP * np.exp(0.1**2 / 2)
    hits = 0
    for _ in range(200):
        figure = told(record(_autoregressive(random, 600, correlation, 0.1))).figures["seconds"]
        assert figure.low is not None
        assert figure.high is not None
        hits += figure.low <= truth <= figure.high
    assert 0.72 <= hits / 200 <= 0.93


@pytest.mark.parametrize("launches", [2, 5])
def test_the_interval_of_several_launches_holds_a_further_one_in_about_80_percent(launches: int) -> None:
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        speeds = np.exp(random.normal(0, 0.05, launches + 1))
        figure = told(*(record([STEP * speed] * 60) for speed in speeds[1:])).figures["seconds"]
        assert figure.low is not None
        assert figure.high is not None
        hits += figure.low <= 20.3 + (100_000 - 3) * STEP * speeds[0] <= figure.high
    assert 0.72 <= hits / 200 <= 0.92


def test_energy_is_uncertain_by_its_sensor() -> None:
    figure = told(record()).figures["energy_joules"]
    assert figure.low is not None
    assert figure.high is not None
    assert (figure.high - figure.low) / figure.value == pytest.approx(0.08, abs=0.005)  # 80 % of -5 to +5 %


def test_estimated_energy_has_no_interval_and_no_chance() -> None:
    random = np.random.default_rng(4)
    one = record(_autoregressive(random, 600, 0.5, 0.1), readings="e")
    for found in (told(one), told(one, one, one)):
        sure = {name for name, figure in found.figures.items() if figure.low is not None}
        assert sure == {"seconds", "cost_usd"}  # a rent needs no energy
        assert set(found.figures) == {*sure, "energy_joules_estimated", "emissions_kg"}
        assert found.chance({"energy_joules": 1e12}) is None
        assert found.chance({"emissions_kg": 1e12}) is None
        assert found.chance({"seconds": 1e12}) == 1
        said = [block.text for block in blocks(found, [("1MWh", "energy_joules", 3.6e9)]) if hasattr(block, "role")]
        assert said[1] == "1MWh suffices by the estimate of energy, whose error is not known."


def test_electricity_of_estimated_energy_gives_the_cost_no_interval() -> None:
    one = record(_autoregressive(np.random.default_rng(4), 600, 0.5, 0.1), readings="e")
    assert one.cost is not None
    prices = {"usd_per_device_hour": None, "usd_per_kwh": 0.2, "energy_joules": 1.0, "energy_basis": "estimated"}
    owned = one.changed(cost=one.cost.changed(mode="owned", **prices))
    assert told(owned).figures["cost_usd"].value > 0
    assert told(owned).figures["cost_usd"].low is None


def test_power_is_uncertain_by_its_sensor_or_by_launches() -> None:
    one = record(_autoregressive(np.random.default_rng(4), 600, 0.5, 0.1))
    assert one.measurement is not None
    energy = [reading.changed(gain_share=0.0, uncertainty_joules=0.0) for reading in one.measurement.energy]
    plain = one.changed(measurement=one.measurement.changed(energy=energy))
    assert told(plain).figures["energy_joules"].low is None
    double = [reading.changed(energy_joules=2 * reading.energy_joules) for reading in energy]
    other = plain.changed(measurement=one.measurement.changed(energy=double))
    figure = told(plain, other).figures["energy_joules"]
    assert figure.low is not None
    assert figure.high is not None
    assert figure.high / figure.low > 4  # two launches, one of twice the power


@pytest.mark.parametrize("flag", ["not_steady", "steady_unknown"])
def test_a_speed_that_may_not_be_steady_gives_no_intervals(flag: str) -> None:
    one = record(_autoregressive(np.random.default_rng(4), 600, 0.5, 0.1)).changed(flags=[flag])
    for found in (told(one), told(one, one, one)):
        assert {figure.low for figure in found.figures.values()} == {None}
        assert found.chance({"seconds": 1e12}) is None
        assert found.doubts == (flag,)


def test_what_cannot_be_known_is_absent_with_the_reason() -> None:
    nothing = record(readings="e").changed(energy=[], carbon=None, cost=None, site=Site())
    found = told(nothing)
    assert set(found.figures) == {"seconds"}
    assert set(found.absent) == {"energy_joules", "emissions_kg", "cost_usd"}
    assert "no region" in told(record().changed(carbon=None)).absent["emissions_kg"]
    assert "no price" in told(record().changed(cost=None)).absent["cost_usd"]
    short = told(record().changed(flags=["window_too_short"]))
    assert set(short.figures) == {"seconds", "cost_usd"}  # a rent needs no energy
    assert "too short" in short.absent["energy_joules"]


def test_doubtful_windows_refuse_or_say_so() -> None:
    assert "not single steps" in str(forecast([record().changed(flags=["lines_are_not_steps"])], TRAINING))
    assert told(record().changed(flags=["throttled", "short_window"])).doubts == ("throttled",)
    assert told(record().changed(flags=["not_steady"])).doubts == ("not_steady",)
    assert forecast([record()], TrainingLength(1e9, "tokens")) == "no tokens were seen"
    failed = rows.record(status=Status.FAILED, readings="")
    assert forecast([failed], TRAINING) == "no steps were seen"
    assert "warm-up" in str(forecast([record()], TrainingLength(2)))


def test_too_few_steps_give_no_interval() -> None:
    figure = told(record([STEP] * 5)).figures["seconds"]
    assert (figure.low, figure.high) == (None, None)
    assert told(record([STEP] * 5)).chance({"seconds": 1e9}) is None


def test_a_budget_is_kept_with_a_probability() -> None:
    random = np.random.default_rng(3)
    found = told(record(_autoregressive(random, 600, 0.5, 0.1)))
    middle = found.figures["seconds"].value
    assert found.chance({"seconds": middle}) == pytest.approx(0.5, abs=0.02)
    assert found.chance({"seconds": 2 * middle}) == 1
    assert found.chance({"seconds": 2 * middle, "cost_usd": 0.1}) == 0
    assert found.chance({"energy_joules": 1e12}) == 1
    said = [block.text for block in blocks(found, [("12d", "seconds", 12 * 86400.0)]) if hasattr(block, "role")]
    assert said[1].startswith("12d suffices")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50usd", ("cost_usd", 50.0)),
        ("$20k", ("cost_usd", 20_000.0)),
        ("1,000 USD", ("cost_usd", 1000.0)),
        ("10kWh", ("energy_joules", 36e6)),
        ("2MWh", ("energy_joules", 7.2e9)),
        ("5kg", ("emissions_kg", 5.0)),
        ("300 g", ("emissions_kg", 0.3)),
        ("12h", ("seconds", 43_200.0)),
        ("45m", ("seconds", 2700.0)),
    ],
)
def test_budgets_are_read_as_people_write_them(text: str, expected: tuple[str, float]) -> None:
    quantity, value = budget(text)
    assert quantity == expected[0]
    assert value == pytest.approx(expected[1])


@pytest.mark.parametrize("text", ["", "50", "kg", "5x", "-1h", "$5kWh", "0usd"])
def test_a_wrong_budget_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match=r"is no (budget|number)"):
        budget(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "5usd"], "needs the length of the whole training"),
        (["--enforce"], "--enforce needs a --budget"),
        (["--total-steps", "5", "--total-tokens", "5"], "give only one of"),
        (["--total-steps", "many"], "--total-steps"),
    ],
)
def test_contradictions_end_before_anything_runs(options: list[str], message: str) -> None:
    done = commands.bench("measure", *options, "--", "touch", "ran")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
