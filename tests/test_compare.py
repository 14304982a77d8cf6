"""Candidates against baselines: planted factors are found, and nothing is said that the repeats do not tell."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analytics.judge import stats
from analytics.judge.comparable import CONSTANT, LOST, VANISHED, Repeats, metric_names, unequal_training, usual_metrics
from analytics.judge.compare import Comparison, Effect, costs, effect_of, judged, ladder, match, within
from analytics.quantities import quantity
from analytics.runs.frame import frame, summary
from bench.record import Status
from bench.schema import Scalar
from tests import rows
from tests.rows import SIZES, START

RATE = "samples_per_second"


def runs(factor: float, repeats: int, noise: float, seed: int = 0, **fields: object) -> list[dict[str, Scalar]]:
    random = np.random.default_rng(seed)
    begun = START if not fields.keys() - {"readings"} else START + timedelta(seconds=30)  # the baseline comes first
    return [
        rows.make(repeat=r, v=rows.V * factor * float(np.exp(random.normal(0, noise))), **fields)
        | {"started_at": (begun + timedelta(minutes=r)).isoformat()}
        for r in range(repeats)
    ]


def effects(comparison: Comparison) -> dict[str, tuple[float, str]]:
    return {effect.metric: (effect.ratio, effect.verdict) for effect in comparison.effects}


def alone(new: pd.DataFrame, old: pd.DataFrame, *among: pd.DataFrame, metric: str = RATE) -> list[Effect]:
    """The effects of candidates on one baseline, the first `new`, judged together."""
    sides = {id(one): Repeats(one) for one in (new, old, *among)}
    outcomes = {place: effect_of(metric, sides[id(one)], sides[id(old)]) for place, one in enumerate((new, *among))}
    return [*judged(outcomes).values()]


def others(df: pd.DataFrame) -> list[Comparison]:
    return within(df, costs(df)).comparisons


def rung(number: int, factor: float, repeats: int = 4, **fields: object) -> list[dict[str, Scalar]]:
    return [row | {"ladder": number} for row in runs(factor, repeats, 0.005, seed=number, **fields)]


STEPS = [*rung(0, 1), *rung(1, 2, precision="bf16"), *rung(2, 1, precision="bf16", compile="default")]


def test_each_step_is_compared_with_the_one_below_and_the_top_with_the_foot() -> None:
    first, second, whole = ladder(frame(STEPS))
    assert (first.name, first.baseline) == ("+ precision=bf16", "baseline")
    assert (second.name, second.baseline) == ("+ compile=default", "+ precision=bf16")
    assert (whole.name, whole.baseline) == ("all steps", "baseline")
    found = [effects(step) for step in (first, second, whole)]
    assert [f[RATE][1] for f in found] == ["better", "worse", "equivalent"]
    assert [f[RATE][0] for f in found] == pytest.approx([2, 0.5, 1], rel=0.02)
    rent = [f["cost_usd_per_million_samples"][0] for f in found]
    assert rent == pytest.approx([0.5, 2, 1], rel=0.02), "rent follows the time"


def test_a_step_that_did_not_run_is_told_and_the_next_stands_on_the_last_that_did() -> None:
    failed = [rows.make(precision="fp16", status=Status.OUT_OF_MEMORY, message="no room") | {"ladder": 1}]
    out, stood, _ = ladder(frame([*rung(0, 1), *failed, *rung(2, 2, precision="bf16")]))
    assert (out.status, out.reason, out.effects) == ("out_of_memory", "no room", ())
    assert stood.baseline == "baseline"
    assert effects(stood)[RATE] == (pytest.approx(2, rel=0.02), "better")


def test_runs_without_a_ladder_have_none() -> None:
    assert ladder(frame(runs(1, 2, 0))) == []
    assert ladder(frame([])) == []


def test_one_repeat_tells_nothing() -> None:
    (only,) = others(frame([*runs(1, 1, 0), *runs(3, 1, 0, precision="bf16")]))
    assert effects(only)[RATE] == (pytest.approx(3), "cannot tell")


def test_an_absent_figure_has_no_effect() -> None:
    (only,) = others(frame([*runs(1, 2, 0, readings=""), *runs(3, 2, 0, precision="bf16", readings="")]))
    assert set(effects(only)) == {RATE}


def test_quality_stands_beside_speed() -> None:
    table = frame([*runs(1, 2, 0), *runs(2, 2, 0, precision="bf16")])
    table["validation_loss"] = np.where(table["precision"] == "bf16", 3.5, 3.0)
    (only,) = others(table)
    assert (only.baseline_quality, only.quality) == ({"validation_loss": 3.0}, {"validation_loss": 3.5})
    assert pd.isna(table["validation_accuracy"]).all()


def test_a_ladder_whose_foot_did_not_run_stands_on_the_first_step_that_did() -> None:
    foot = [rows.make(status=Status.OUT_OF_MEMORY, message="no room") | {"ladder": 0}]
    first, second, whole = ladder(frame([*foot, *STEPS[4:]]))
    assert (first.status, first.reason) == ("out_of_memory", "no room")
    assert effects(second)[RATE][1] == "worse"
    assert (whole.name, whole.baseline) == ("all steps", "+ precision=bf16")


def test_runs_that_save_weights_for_others_are_no_baseline() -> None:
    later = [row | {"started_at": (START + timedelta(hours=1)).isoformat()} for row in runs(2, 2, 0, precision="bf16")]
    table = frame([*runs(9, 2, 0, saves="x"), *runs(1, 2, 0, needs="x"), *later])
    (only,) = others(table)
    assert effects(only)[RATE][0] == pytest.approx(2)


def test_quality_on_other_data_is_not_compared() -> None:
    table = frame([*runs(1, 2, 0), *runs(2, 2, 0, precision="bf16")])
    table["validation_loss"] = 3.0
    table["dataset_digest"] = table["precision"]
    (only,) = others(table)
    assert (only.quality, only.baseline_quality) == (None, None)


OTHER = "20260103T030405-bbbb"


def only(
    candidate: list[dict[str, Scalar]], baseline: list[dict[str, Scalar]], *metrics: str, **options: Any
) -> Comparison:
    (found,) = match(frame(candidate), frame(baseline), "base", metrics or (RATE,), **options).comparisons
    return found


def effect(comparison: Comparison) -> Effect:
    (found,) = comparison.effects
    return found


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        *((name, "more") for name in ("tokens_per_second", "samples_per_second_per_device", "validation_accuracy")),
        *((name, "more") for name in ("model_flops_utilization", "inference_samples_per_second", "busy_share")),
        *((name, "less") for name in ("step_seconds_median", "joules_per_sample", "peak_memory_bytes", "cost_usd")),
        *(
            (name, "less")
            for name in ("validation_loss", "loss_last", "emissions_kg", "data_wait_share", "straggler_ratio")
        ),
        *((name, None) for name in ("loss_first", "parameters", "temperature_celsius_max", "my_own_figure")),
    ],
)
def test_it_is_known_which_way_a_figure_is_better(metric: str, way: str | None) -> None:
    assert quantity(metric).better == way


def test_runs_side_by_side_are_pairs_and_others_two_samples() -> None:
    old, new = runs(1, 4, 0.01), runs(1.1, 4, 0.01, seed=1, precision="bf16")
    values = [[row[RATE] for row in side] for side in (new, old)]
    (first,) = within(frame([*old, *new]), [RATE]).comparisons
    pair = effect(first)
    assert pair.paired
    assert (pair.ratio, pair.p_value) == pytest.approx(_contrast(values, paired=True))
    apart = effect(only(runs(1.1, 4, 0.01, seed=1, execution=OTHER), old))
    assert not apart.paired
    assert (apart.ratio, apart.p_value) == pytest.approx(_contrast(values, paired=False))
    assert (pair.verdict, apart.verdict) == ("better", "better")
    assert pair.value == pytest.approx(float(np.exp(np.mean(np.log(np.array(values[0], dtype=float))))))


@pytest.mark.parametrize("absent", ["seed", "devices", "host", "execution", "repeat", "started_at", "environment"])
def test_what_runs_do_not_say_of_themselves_is_no_error(absent: str) -> None:
    old, new = runs(1, 4, 0.01), runs(1.1, 4, 0.01, seed=1, precision="bf16")
    bare = [frame([{k: v for k, v in row.items() if k != absent} for row in side]) for side in (new, old)]
    (found,) = alone(*bare)
    assert (found.paired, found.verdict) == (absent not in ("execution", "repeat"), "better")


def _contrast(values: list[list[Any]], *, paired: bool) -> tuple[float, float]:
    found = stats.contrast(*values, paired=paired)
    assert found.p_value is not None
    return found.found.value, found.p_value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:2],
        lambda rows: [*rows, rows[0] | {"run_id": "again"}],
        lambda rows: [row | {"repeat": int(str(row["repeat"])) + 3} for row in rows],
        lambda rows: [row | {"seed": 9} for row in rows],
        lambda rows: [row | {"devices": 2} for row in rows],
        lambda rows: [row | {"environment": "other"} for row in rows],
    ],
    ids=["two pairs", "a repeat twice", "few of the same repeat", "other seed", "other devices", "other machine"],
)
def test_what_did_not_run_side_by_side_is_no_pair(
    spoil: Callable[[list[dict[str, Scalar]]], list[dict[str, Scalar]]],
) -> None:
    old, new = frame(runs(1, 4, 0.01)), frame(spoil(runs(2, 4, 0.01, seed=1, precision="bf16")))
    assert not alone(new, old)[0].paired


def test_a_difference_within_the_region_is_equivalent_and_the_region_is_ones_own() -> None:
    old, new = runs(1, 5, 0.001), runs(1.01, 5, 0.001, seed=1, execution=OTHER)
    assert effect(only(new, old)).verdict == "equivalent"
    assert effect(only(new, old, equivalence=0.005)).verdict == "better"
    assert effect(only(old, new, equivalence=0.0)).verdict == "worse"


def test_what_cannot_be_told_says_how_many_more_repeats_would_tell() -> None:
    noisy = effect(only(runs(1.03, 3, 0.03, seed=4, execution=OTHER), runs(1, 3, 0.03, seed=3)))
    assert noisy.verdict == "cannot tell"
    assert noisy.more_repeats is not None
    assert noisy.more_repeats >= 1
    single = effect(only(runs(2, 1, 0, execution=OTHER), runs(1, 1, 0)))
    assert (single.verdict, single.low, single.more_repeats) == ("cannot tell", None, None)


def test_verdicts_allow_for_the_other_comparisons() -> None:
    old = frame(runs(1, 4, 0.02, seed=1))
    new = frame(runs(1.05, 4, 0.02, seed=2, precision="bf16"))
    (single,) = alone(new, old)
    assert (single.verdict, single.among) == ("better", None)
    other = frame(runs(1, 4, 0.02, seed=3, precision="bf16"))
    first, *_ = alone(new, old, *[other] * 19)
    assert first.verdict == "cannot tell"
    assert first.p_adjusted == pytest.approx(min(1.0, 20 * (single.p_value or 0)))
    assert (first.low, first.high) == (single.low, single.high)
    assert first.among == 20, "alone the interval would tell"


def test_equivalence_allows_for_the_other_comparisons_too() -> None:
    old = frame(runs(1, 4, 0.008, seed=1))
    new = frame(runs(1.002, 4, 0.008, seed=2, precision="bf16"))
    far = frame(runs(2, 4, 0.005, seed=3, precision="bf16"))
    assert alone(new, old)[0].verdict == "equivalent"
    first, second, *_ = alone(new, old, *[far] * 40)
    assert (first.verdict, first.among, second.verdict) == ("cannot tell", 41, "better")
    assert (first.probably, second.probably) == ("equivalent", None)


def test_a_suite_is_compared_where_the_work_is_the_same() -> None:
    big = [row | {"started_at": (START + timedelta(hours=1)).isoformat()} for row in runs(1, 3, 0.01, preset="small")]
    later = (START + timedelta(hours=2)).isoformat()
    faster = [row | {"started_at": later} for row in runs(2, 3, 0.01, preset="small", precision="bf16")]
    other = [row | {"started_at": later} for row in runs(1, 3, 0.01, seed=5)]
    other = [row | {"workload_args.preset": "alone", "config_id": "x", "flops_per_sample": 7e9} for row in other]
    like = [row | {"workload_args.preset": "like", "config_id": "y", "flops_per_sample": 7.05e9} for row in other]
    less = [row | {"flops_per_sample": 1e7} for row in runs(3, 3, 0.01, finetune="lora")]
    found = within(frame([*runs(1, 3, 0.01), *big, *faster, *less]), [RATE])
    told = [(c.baseline, c.name) for c in found.comparisons]
    assert told == [("preset=tiny fp32", "preset=tiny fp32 lora"), ("preset=small fp32", "preset=small bf16")]
    assert [effect(c).verdict for c in found.comparisons] == ["better", "better"]
    found = within(frame([*runs(1, 3, 0.01), *less, *other]), [RATE])
    assert found.notes == ["no other configuration does the work of preset=alone"]
    assert len(within(frame([*other, *like]), [RATE]).comparisons) == 1, "as much work within 1 %"


def test_figures_are_those_of_the_summary() -> None:
    losses = [3.0, 3.1, 9.0]
    old = [row | {"validation_loss": loss} for row, loss in zip(runs(1, 3, 0.01), losses, strict=True)]
    new = [
        row | {"validation_loss": 2 * loss, "peak_memory_bytes": loss}
        for row, loss in zip(runs(1, 3, 0.01, execution=OTHER), losses, strict=True)
    ]
    shown = {e.metric: e for e in only(new, old, RATE, "validation_loss", "peak_memory_bytes").effects}
    table = summary(frame(new)).iloc[0]
    assert {name: e.value for name, e in shown.items()} == pytest.approx({name: table[name] for name in shown})
    assert shown["validation_loss"].baseline_value == 3.1


def test_quality_after_unequal_training_is_not_compared() -> None:
    old = [row | {"validation_loss": 3.0 + r / 10, "trained_steps": 100.0} for r, row in enumerate(runs(1, 3, 0))]
    new = [row | {"trained_steps": 111.0} for row in old]
    for row in new:
        row["execution"] = OTHER
    assert "after 800 to 888 samples" in refused(new, old, "validation_loss")
    assert unequal_training(frame([*old, *new])) == (800, 888)
    assert effect(only(new, old, RATE)).verdict == "equivalent"
    near = [row | {"trained_steps": 110.0} for row in new]
    assert effect(only(near, old, "validation_loss")).verdict == "cannot tell"
    target = [row | {"target_reached": 1.0} for row in new]
    assert effect(only(target, old, "validation_loss")).verdict == "cannot tell"
    unknown = [{k: v for k, v in row.items() if k != "trained_steps"} for row in new]
    assert unequal_training(frame(unknown)) is None


def test_what_else_may_make_a_difference_is_told() -> None:
    busy = [row | {"flags": "noisy_host short_window", "grade": "C"} for row in runs(1, 3, 0.01, execution=OTHER)]
    assert only(busy, runs(1, 3, 0.01)).doubts == {"candidate": ("grade C", "noisy_host")}
    assert only(busy, [row | {"flags": "noisy_host", "grade": "C"} for row in runs(1, 3, 0.01)]).doubts == {}


@pytest.mark.parametrize(
    ("fields", "apart"),
    [({}, False), ({"open_devices": True}, True), ({"stage": "full"}, True), ({"flags": "imported"}, True)],
)
def test_only_a_suite_repeats_its_configurations_by_turns(fields: dict[str, Any], apart: bool) -> None:
    """Repeats of one number in a name of `bench measure` may be hours apart: they are no pairs."""
    both = [row | fields for row in [*runs(1, 4, 0.01), *runs(2, 4, 0.01, precision="bf16")]]
    (one,) = within(frame(both), [RATE]).comparisons
    assert (one.apart, effect(one).paired) == (apart, not apart)


def test_two_repeats_took_their_turns_though_they_are_no_pairs() -> None:
    (one,) = within(frame([*runs(1, 2, 0.01), *runs(2, 2, 0.01, precision="bf16")]), [RATE]).comparisons
    assert (one.apart, effect(one).paired) == (False, False)
    devices = [*runs(1, 4, 0.01), *(rows.make(2, repeat=r) for r in range(4))]
    (other,) = within(frame(devices), [RATE]).comparisons
    assert (other.apart, effect(other).paired) == (False, False)


def test_runs_that_are_left_out_are_counted() -> None:
    new = runs(1, 4, 0.01, execution=OTHER)
    del new[1][RATE]
    found = match(frame(new), frame([*runs(1, 4, 0.01), *runs(1, 2, 0.01, execution="0")]), "base", [RATE])
    assert found.notes == ["2 of 6 runs of BASE are of older executions: not compared"]
    both = [*new, *runs(2, 4, 0.01, execution=OTHER, precision="bf16")]
    (one,) = within(frame([*both, *runs(1, 2, 0.01, execution="0")]), [RATE]).comparisons
    assert effect(one).ratio == pytest.approx(0.5, rel=0.03), "older executions are no configurations of their own"
    assert f"1 of 4 runs of the candidate have no {RATE}; the others are compared" in found.comparisons[0].notes


def test_less_is_better_where_it_is_and_more_or_less_is_said_of_what_is_not_known() -> None:
    old = [row | {"validation_loss": 2.0 + i / 1000, "colour": 1.0 + i / 1000} for i, row in enumerate(runs(1, 4, 0))]
    new = [row | {"validation_loss": 3.0, "colour": 2.0} for row in runs(1, 4, 0, execution=OTHER)]
    loss, colour = only(new, old, "validation_loss", "colour").effects
    assert (loss.verdict, colour.verdict) == ("worse", "more")
    assert colour.probability_better is None
    assert loss.probability_better == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_figures_that_are_not_positive_have_no_ratio(value: float) -> None:
    old = [row | {"validation_loss": 1.0} for row in runs(1, 3, 0)]
    new = [
        row | {"validation_loss": value if place else 1.0} for place, row in enumerate(runs(1, 3, 0, execution=OTHER))
    ]
    assert "have no ratio" in refused(new, old, "validation_loss")
    assert "no figure of the candidate is above 0" in refused(
        [row | {"validation_loss": value} for row in new], old, "validation_loss"
    )


def refused(candidate: list[dict[str, Scalar]], baseline: list[dict[str, Scalar]], metric: str) -> str:
    found = only(candidate, baseline, metric)
    assert found.effects == ()
    return found.not_compared[metric]


def test_figures_of_different_provenance_are_never_compared() -> None:
    measured, estimated = runs(1, 3, 0.01, readings="m"), runs(1, 3, 0.01, readings="e", execution=OTHER)
    assert "measured and estimated energy are never compared" in refused(estimated, measured, "joules_per_sample")
    assert "measured and estimated energy are never compared" in refused(
        measured, estimated, "joules_per_sample_estimated"
    )
    assert "estimated against measured" in refused(estimated, measured, "emissions_kg")
    imported = [row | {"energy_provenance": "imported"} for row in runs(1, 3, 0.01, readings="m", execution=OTHER)]
    assert "imported against measured" in refused(imported, measured, "joules_per_sample")
    less = [row | {"energy_components": "gpu"} for row in runs(1, 3, 0.01, readings="m", execution=OTHER)]
    assert "different components: gpu against cpu" in refused(less, measured, "joules_per_sample")
    none = runs(1, 3, 0.01, readings="", execution=OTHER)
    assert refused(none, measured, "joules_per_sample") == LOST
    assert refused(measured, none, "joules_per_sample") == "the baseline has no joules_per_sample"


def test_other_work_is_told_and_totals_of_it_are_not_compared() -> None:
    old = [row | {"validation_loss": 3.0, "trained_steps": 10.0} for row in runs(1, 3, 0.01)]
    new = [
        row | {"dataset_digest": "f" * 16, "global_batch_size": 64, "trained_steps": 10.0}
        for row in runs(1, 3, 0.01, execution=OTHER)
    ]
    found = only([row | {"validation_loss": 3.0} for row in new], old, RATE, "validation_loss", "cost_usd")
    assert [e.metric for e in found.effects] == [RATE]
    told = found.not_compared
    assert "the data differ" in told["validation_loss"]
    assert "did not do the same work (6,400 against 800 samples)" in told["cost_usd"]
    assert f"other data: {'f' * 16} against {'0' * 16}" in found.notes
    assert "other batch: 64 against 8" in found.notes


def test_runs_that_did_not_end_well_are_told() -> None:
    bad = [rows.make(repeat=9, status=Status.TIMEOUT, execution=OTHER)]
    found = only([*runs(1, 3, 0.01, execution=OTHER), *bad], runs(1, 3, 0.01))
    assert "1 of 4 runs of the candidate did not end well (timeout); the others are compared" in found.notes
    lost = only(bad, runs(1, 3, 0.01))
    assert (lost.status, lost.baseline_status, lost.reason) == ("timeout", "ok", "synthetic failure")
    healed = only(runs(1, 3, 0.01), bad)
    assert (healed.effects, healed.baseline_status) == ((), "timeout")


def test_a_way_to_a_target_counts_only_where_all_reached_it() -> None:
    old = [row | {"seconds_to_target": 10.0 + i} for i, row in enumerate(runs(1, 3, 0))]
    new = [row | {"seconds_to_target": 5.0} for row in runs(1, 2, 0, execution=OTHER)] + runs(1, 3, 0, execution=OTHER)[
        2:
    ]
    assert refused(new, old, "seconds_to_target") == "1 of 3 runs of the candidate did not reach the target"


def test_configurations_are_matched_by_what_was_asked_and_the_newest_execution_counts() -> None:
    later = [row | {"started_at": (START + timedelta(days=1)).isoformat()} for row in runs(2, 3, 0.01, execution=OTHER)]
    base = frame([*runs(1, 3, 0.01), *runs(1, 3, 0.01, precision="fp16"), *later])
    new = frame([*runs(2, 3, 0.01, execution="x"), *runs(1, 3, 0.01, precision="bf16", execution="x")])
    found = match(new, base, "base", [RATE])
    assert (found.only_baseline, found.only_candidate) == (["fp16"], ["bf16"])
    (pair,) = found.comparisons
    assert pair.name == "fp32"
    assert effect(pair).repeats == 3
    assert effect(pair).ratio == pytest.approx(1, rel=0.03), "the older execution was half as fast"


def test_the_same_runs_on_both_sides_are_told() -> None:
    same = runs(1, 3, 0.01)
    assert refused(same, same, RATE) == "the same runs stand on both sides"
    unnamed = [{k: v for k, v in row.items() if k != "execution"} for row in same]
    assert effect(only(unnamed, unnamed)).verdict == "equivalent", "equal names alone do not tell"


def test_what_is_compared_unless_it_is_said() -> None:
    both, estimated = frame(runs(1, 2, 0.01)), frame(runs(1, 2, 0.01, readings="e"))
    assert usual_metrics(both) == ["samples_per_second", "joules_per_sample", "peak_memory_bytes"]
    assert usual_metrics(both, estimated)[1] == "joules_per_sample_estimated"
    command = frame([{"config_id": "a", "status": "ok", "duration_seconds": 3.0, "run_id": "r"}])
    assert usual_metrics(command) == ["duration_seconds"]
    assert {"tokens_per_second", "cost_usd"} <= set(metric_names(both))
    assert "devices" not in metric_names(both)


@pytest.mark.parametrize("value", [np.nan, np.inf, None, "fast", 0.0, -3.0])
def test_spoilt_figures_make_no_confident_number(value: Any) -> None:
    spoilt = [row | {RATE: value} for row in runs(1, 3, 0.01, execution=OTHER)]
    why = VANISHED if value in (0.0, -3.0) else LOST
    assert refused(spoilt, runs(1, 3, 0.01), RATE) == why


@pytest.mark.parametrize("values", [[1e-149, 1e149, 1.0], [1e-149] * 3, [1e149] * 3])
def test_wild_figures_end_in_a_verdict(values: list[float]) -> None:
    wild = [row | {RATE: value} for row, value in zip(runs(1, 3, 0.01, execution=OTHER), values, strict=True)]
    for new, old in ((wild, runs(1, 3, 0.01)), (runs(1, 3, 0.01), wild)):
        found = effect(only(new, old))
        told = [v for v in (found.ratio, found.low, found.high, found.p_adjusted) if v is not None]
        assert np.isfinite(told).all()
        if len(set(values)) > 2:
            assert found.verdict == "cannot tell"


def test_within_a_suite_any_configuration_is_the_baseline() -> None:
    given = rows.grid((1,), ("tiny", "small"), {"fp32": 1, "bf16": 2, "fp16": 4}, repeats=3)
    found = within(frame(given), ["samples_per_second"], baseline="preset=tiny bf16")
    assert {c.baseline for c in found.comparisons} == {"preset=tiny bf16", "preset=small bf16"}, "each its own size"
    ratios = {c.name: round(c.effects[0].ratio, 1) for c in found.comparisons}
    assert ratios == {f"preset={size} {name}": x for size in SIZES for name, x in (("fp32", 0.5), ("fp16", 2.0))}
    lonely = [row for row in given if row["precision"] != "bf16" or row["workload_args.preset"] == "tiny"]
    found = within(frame(lonely), ["samples_per_second"], baseline="preset=tiny bf16")
    assert {c.baseline for c in found.comparisons} == {"preset=tiny bf16"}
    (note,) = found.notes
    assert note.startswith("not compared with preset=tiny bf16, as they did other work: preset=small ")


def test_energy_that_rests_on_one_estimated_power_is_not_compared_between_sides() -> None:
    base, new = (frame([rows.make(d, repeat=r, v=v, readings="e") for r in range(3)]) for d, v in ((1, 2e9), (2, 1e9)))
    metric = "joules_per_sample_estimated"
    same = {"config_id": "one"}
    equal = [side.assign(**same, power_watts_estimated=28.0) for side in (new, base)]
    (comparison,) = match(*equal, "base", [metric]).comparisons
    assert comparison.not_compared == {metric: CONSTANT}
    (comparison,) = match(equal[0].assign(power_watts_estimated=30.0), equal[1], "base", [metric]).comparisons
    assert comparison.effect(metric) is not None
