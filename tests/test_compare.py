"""Candidates against baselines: planted factors are found, and nothing is said that the repeats do not tell."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from analytics.compare import Comparison, against_first, ladder
from analytics.frame import frame
from bench.record import Status
from bench.schema import Scalar
from tests import rows
from tests.rows import START


def runs(factor: float, repeats: int, noise: float, seed: int = 0, **fields: object) -> list[dict[str, Scalar]]:
    random = np.random.default_rng(seed)
    begun = START if not fields.keys() - {"readings"} else START + timedelta(seconds=30)  # the baseline comes first
    return [
        rows.make(repeat=r, v=rows.V * factor * float(np.exp(random.normal(0, noise))), **fields)
        | {"started_at": (begun + timedelta(minutes=r)).isoformat()}
        for r in range(repeats)
    ]


def effects(comparison: Comparison) -> dict[str, tuple[float, str]]:
    return {effect.cost: (effect.ratio, effect.verdict) for effect in comparison.effects}


def rung(number: int, factor: float, repeats: int = 4, **fields: object) -> list[dict[str, Scalar]]:
    return [row | {"ladder": number} for row in runs(factor, repeats, 0.005, seed=number, **fields)]


STEPS = [*rung(0, 1), *rung(1, 2, precision="bf16"), *rung(2, 1, precision="bf16", compile="default")]


def test_each_step_is_compared_with_the_one_below_and_the_top_with_the_foot() -> None:
    first, second, whole = ladder(frame(STEPS))
    assert (first.name, first.baseline) == ("+ precision=bf16", "baseline")
    assert (second.name, second.baseline) == ("+ compile=default", "+ precision=bf16")
    assert (whole.name, whole.baseline) == ("all steps", "baseline")
    found = [effects(step) for step in (first, second, whole)]
    assert [f["seconds"][1] for f in found] == ["less", "more", "same"]
    assert [f["seconds"][0] for f in found] == pytest.approx([0.5, 2, 1], rel=0.02)
    assert [f["usd"][0] for f in found] == pytest.approx([0.5, 2, 1], rel=0.02), "rent follows the time"


def test_a_step_that_did_not_run_is_told_and_the_next_stands_on_the_last_that_did() -> None:
    failed = [rows.make(precision="fp16", status=Status.OUT_OF_MEMORY, message="no room") | {"ladder": 1}]
    out, stood, _ = ladder(frame([*rung(0, 1), *failed, *rung(2, 2, precision="bf16")]))
    assert (out.status, out.reason, out.effects) == ("out_of_memory", "no room", ())
    assert stood.baseline == "baseline"
    assert effects(stood)["seconds"] == (pytest.approx(0.5, rel=0.02), "less")


def test_runs_without_a_ladder_have_none() -> None:
    assert ladder(frame(runs(1, 2, 0))) == []
    assert ladder(frame([])) == []


def test_one_repeat_tells_nothing() -> None:
    (only,) = against_first(frame([*runs(1, 1, 0), *runs(3, 1, 0, precision="bf16")]))
    assert effects(only)["seconds"] == (pytest.approx(1 / 3), "cannot tell")


def test_an_absent_figure_has_no_effect() -> None:
    (only,) = against_first(frame([*runs(1, 2, 0, readings=""), *runs(3, 2, 0, precision="bf16", readings="")]))
    assert set(effects(only)) == {"seconds"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.3, "less")])
def test_intervals_hold_the_truth_as_often_as_they_say(factor: float, verdict: str) -> None:
    """Of 100 comparisons of 4 repeats with noise, 95 % intervals hold the planted factor in 89 to 99 %."""
    held, right, wrong = 0, 0, 0
    for seed in range(100):
        table = frame([*runs(1, 4, 0.02, seed), *runs(factor, 4, 0.02, 1000 + seed, precision="bf16")])
        (only,) = against_first(table)
        effect = next(e for e in only.effects if e.cost == "seconds")
        assert effect.low is not None
        assert effect.high is not None
        held += effect.low <= 1 / factor <= effect.high
        right += effect.verdict in (verdict, "cannot tell")
        wrong += effect.verdict == "more"
    assert 89 <= held <= 99
    assert wrong <= 5
    assert right >= 90


def test_quality_stands_beside_speed() -> None:
    table = frame([*runs(1, 2, 0), *runs(2, 2, 0, precision="bf16")])
    table["validation_loss"] = np.where(table["precision"] == "bf16", 3.5, 3.0)
    (only,) = against_first(table)
    assert (only.baseline_quality, only.quality) == ({"validation_loss": 3.0}, {"validation_loss": 3.5})
    assert pd.isna(table["validation_accuracy"]).all()


def test_a_ladder_whose_foot_did_not_run_stands_on_the_first_step_that_did() -> None:
    foot = [rows.make(status=Status.OUT_OF_MEMORY, message="no room") | {"ladder": 0}]
    first, second, whole = ladder(frame([*foot, *STEPS[4:]]))
    assert (first.status, first.reason) == ("out_of_memory", "no room")
    assert effects(second)["seconds"][1] == "more"
    assert (whole.name, whole.baseline) == ("all steps", "+ precision=bf16")


def test_runs_that_save_weights_for_others_are_no_baseline() -> None:
    later = [row | {"started_at": (START + timedelta(hours=1)).isoformat()} for row in runs(2, 2, 0, precision="bf16")]
    table = frame([*runs(9, 2, 0, saves="x"), *runs(1, 2, 0, needs="x"), *later])
    (only,) = against_first(table)
    assert effects(only)["seconds"][0] == pytest.approx(0.5)


def test_quality_on_other_data_is_not_compared() -> None:
    table = frame([*runs(1, 2, 0), *runs(2, 2, 0, precision="bf16")])
    table["validation_loss"] = 3.0
    table["dataset_digest"] = table["precision"]
    (only,) = against_first(table)
    assert (only.quality, only.baseline_quality) == (None, None)
