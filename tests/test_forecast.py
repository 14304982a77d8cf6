"""What a whole training takes, from windows whose truth is planted."""

import sys
from typing import Any

import numpy as np
import pytest

from analytics.amounts import budget
from analytics.plan.forecast import TrainingForecast, TrainingLength, forecast, stated_length
from analytics.say.blocks import Sentence
from analytics.say.forecast import blocks
from bench.errors import BadValue
from bench.record import Phase, PlannedLength, RunRecord, Status
from bench.run.planned import EPOCH, WHOLE
from bench.schema import Site
from tests import commands, rows
from tests.approve import command_record
from tests.test_measure import one_gpu  # noqa: F401  a fixture

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


def test_steps_that_the_start_up_includes_are_not_counted_again() -> None:
    found = told(record(steps_before=100), record(steps_before=200))
    assert found.figures["seconds"].value == pytest.approx(20.3 + (100_000 - 150) * STEP)
    assert "no more than" in str(forecast([record(steps_before=100)], TrainingLength(100)))


@pytest.mark.parametrize(("unit", "amount"), [("samples", 3_200_000), ("steps", 100_000)])
def test_the_length_may_be_given_in_samples(unit: Any, amount: float) -> None:
    assert told(record(), length=TrainingLength(amount, unit)).steps == 100_000


PLAN = PlannedLength(steps=1000, epoch_steps=100, source="HuggingFaceCallback", assumed=True)


def words(found: TrainingForecast | str) -> list[str]:
    return [str(getattr(block, "text", "")) for block in blocks(found)]


def test_the_length_may_be_that_which_the_script_states() -> None:
    one = record(planned=PLAN)
    length = stated_length([one])
    assert length == TrainingLength(1000, "steps", PLAN)
    found = told(one, length=length)
    assert found.steps == 1000
    assert (
        "If the script trains once and to the end, its 1,000 steps (as the Hugging Face Trainer states)"
        in words(found)[0]
    )
    assert stated_length([record()]) is None
    assert stated_length([one, record(planned=PLAN.changed(steps=999))]) is None
    assert stated_length([record(planned=PLAN.changed(steps=None))]) is None


@pytest.mark.parametrize(
    ("source", "condition"), [("tqdm", "bar of tqdm"), ("lightning", "all its epochs"), ("pattern", "counter")]
)
def test_a_length_that_is_not_sure_names_its_condition(source: str, condition: str) -> None:
    one = record(planned=PlannedLength(steps=1000, source=source, assumed=True))
    length = stated_length([one])
    assert length is not None
    answer = words(told(one, length=length))[0]
    assert answer.startswith("If ")
    assert condition in answer


@pytest.mark.parametrize(
    ("source", "subject"),
    [
        ("megatron", "The last 200 of 1,000 steps (as Megatron-LM states) take "),
        (
            "KerasCallback",
            "If the script trains once and to the end, its last 200 of 1,000 steps (as Keras states) take ",
        ),
        ("tqdm", "If the bar of tqdm is that of the whole training, its last 200 of 1,000 steps take "),
    ],
)
def test_a_training_that_was_resumed_has_its_last_steps_left(source: str, subject: str) -> None:
    one = record(planned=PlannedLength(steps=200, earlier_steps=800, source=source))
    length = stated_length([one])
    assert length is not None
    found = told(one, length=length)
    assert found.steps == 200
    assert words(found)[0].startswith(subject)
    for steps, differs in ((200, False), (1000, False), (500, True)):
        careful = any("states 1,000 steps" in text for text in words(told(one, length=TrainingLength(steps))))
        assert careful is differs or source == "tqdm"


def test_the_condition_of_a_stated_length_is_that_of_its_source() -> None:
    """Megatron-LM trains once; of Trainer, Lightning and Keras there may be several trainings in a script."""
    for source in (*WHOLE, *EPOCH, "HuggingFaceCallback", "LightningCallback", "KerasCallback"):
        one = record(planned=PlannedLength(steps=200, source=source))
        answer = words(told(one, length=stated_length([one]) or TRAINING))[0]
        assert answer.startswith("If ") is (source not in {"megatron", "llm_c", "timm"}), answer


def test_epochs_are_as_long_as_the_script_states() -> None:
    found = told(record(planned=PLAN), length=TrainingLength(3, "epochs"))
    assert found.steps == 300
    assert any("An epoch has 100 steps" in text for text in words(found))
    for plan in (None, PLAN.changed(epoch_steps=None)):
        assert "--total-samples" in str(forecast([record(planned=plan)], TrainingLength(3, "epochs")))


@pytest.mark.parametrize(
    ("steps", "source", "differs"), [(2000, PLAN.source, True), (1005, PLAN.source, False), (2000, "tqdm", False)]
)
def test_a_length_that_contradicts_the_script_says_so(steps: int, source: str, differs: bool) -> None:
    found = told(record(planned=PLAN.changed(source=source)), length=TrainingLength(steps))
    assert found.steps == steps
    assert any("states 1,000 steps in one training, not 2,000" in text for text in words(found)) is differs


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


def test_estimated_energy_has_the_interval_of_repeats_and_no_chance() -> None:
    random = np.random.default_rng(4)
    one = record(_autoregressive(random, 600, 0.5, 0.1), readings="e")
    for found in (told(one), told(one, one, one)):
        sure = {"seconds", "cost_usd"}  # a rent needs no energy
        known = {name for name, figure in found.figures.items() if figure.low is not None}
        assert known == (sure if found.launches == 1 else {*found.figures})
        assert set(found.figures) == {*sure, *found.estimated} == {*sure, "energy_joules_estimated", "emissions_kg"}
        assert found.chance({"energy_joules": 1e12}) is None
        assert found.chance({"emissions_kg": 1e12}) is None
        assert found.chance({"seconds": 1e12}) == 1
        said = [block.text for block in blocks(found, [("1MWh", "energy_joules", 3.6e9)]) if hasattr(block, "role")]
        assert said[1] == "By the estimate of energy, whose error is not known, the training stays within 1MWh."


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
def test_one_launch_whose_speed_may_not_be_steady_has_about_two_digits(flag: str) -> None:
    one = record(_autoregressive(np.random.default_rng(4), 600, 0.5, 0.1)).changed(flags=[flag])
    found = told(one)
    assert {figure.low for figure in found.figures.values()} == {None}
    assert found.chance({"seconds": 1e12}) is None
    assert found.doubts == (flag,)
    shown = blocks(found, [("1h", "seconds", 3600.0)])
    answer, budgets = (block.text for block in shown if isinstance(block, Sentence))
    assert "takes about 2.8 h, about 140 Wh" in answer
    assert budgets == "At this speed the training takes more than 1h."


@pytest.mark.parametrize("flag", ["not_steady", "steady_unknown"])
@pytest.mark.parametrize("readings", ["m", "e"])
def test_the_spread_of_repeats_is_the_interval_where_speeds_may_not_be_steady(flag: str, readings: str) -> None:
    """As a user saw it: three repeats that differ threefold."""
    runs = [record([STEP * x] * 60, readings=readings).changed(flags=[flag]) for x in (0.6, 1.0, 1.8)]
    found = told(*runs)
    figure = found.figures["seconds"]
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < 0.6 * STEP * 100_000 < figure.value < 1.8 * STEP * 100_000 < figure.high
    assert all(one.low is not None for one in found.figures.values())
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


COMMAS = ["1,5kg", "2,5kWh", "1,50usd", "$1,5", "0,500usd", "1,5kusd", "1.234,5kg", "1,5h", "0,500h", "1,00,000usd"]


@pytest.mark.parametrize("text", ["", "50", "kg", "5x", "-1h", "$5kWh", "0usd", *COMMAS])
def test_a_wrong_budget_is_refused(text: str) -> None:
    with pytest.raises(BadValue, match=r"is no (budget|number)|a point begins a fraction"):
        budget(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--enforce"], "--enforce needs a --budget"),
        (["--total-steps", "5", "--total-epochs", "5"], "give only one of"),
        (["--total-steps", "many"], "--total-steps"),
    ],
)
def test_contradictions_end_before_anything_runs(options: list[str], message: str) -> None:
    done = commands.bench("measure", *options, "--", "touch", "ran")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


COUNTED = """
import time, wattbench
wattbench._append(phase="training", begin=True, planned={"steps": 400, "source": "HuggingFaceCallback"})
for _ in range(400):
    time.sleep(0.01)
    wattbench.step(samples=4)
"""


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--steps", "60"],
            "If the script trains once and to the end, its 400 steps (as the Hugging Face Trainer states) take",
        ),
        (["--steps", "60", "--total-steps", "1k"], "The whole training of 1,000 steps takes"),
        (["--steps", "60", "--budget", "1h"], "1h"),
        (["--steps", "60", "--total-epochs", "3"], "There is no forecast: the script does not state how many steps"),
        ([], ""),
    ],
)
def test_a_script_that_is_cut_and_states_its_length_has_a_forecast(options: list[str], said: str) -> None:
    own = ["--no-store", "--idle-seconds", "0", *options]
    done = commands.bench("measure", *own, "--", sys.executable, "-c", COUNTED)
    assert done.exit_code == 0, done.stderr
    answer = " ".join(done.stderr.split())
    assert said in answer
    assert any(words in answer for words in ("states) take", "whole training", "no forecast")) is bool(said)


@pytest.mark.usefixtures("one_gpu")
def test_a_budget_needs_a_length_that_somebody_states() -> None:
    done = commands.bench("measure", "--no-store", "--idle-seconds", "0", "--budget", "5usd", "--", "true")
    assert "There is no forecast: the script does not state its length: give --total-steps." in done.stderr
