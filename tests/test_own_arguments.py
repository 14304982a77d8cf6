"""Commands of the user in answers: their own arguments say how by default, and what is trained where the suite says so."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analytics.judge.advise import advise
from analytics.judge.compare import within
from analytics.judge.front import front
from analytics.judge.matched import Changes
from analytics.law.outlook import outlook
from analytics.law.series import fit
from analytics.runs.frame import frame, names, summary, varied, work_arguments
from analytics.runs.recost import rent
from analytics.say.law import law_blocks, series_names, series_sentences
from analytics.say.names import named
from analytics.say.results import predictions
from bench.figures.metrics import row
from bench.record import Cost, Measurement, RunRecord, SeenFacts, Status
from bench.schema import RunSpec
from tests import rows

ARGV = "train {devices} --layers {layers} --amp {amp}"
SPEED = 100.0
"""Planted samples/s of one device with one layer."""
KEPT = 0.9
"""Planted share of its speed that each of two devices keeps."""


def record(
    devices: int = 1,
    layers: int = 1,
    amp: str = "fp32",
    repeat: int = 0,
    *,
    rate: float | None = None,
    argv: str = ARGV,
    suite: str = "mine",
    work: tuple[str, ...] = (),
    **measured: Any,
) -> RunRecord:
    """Return the run of a command that trains 50 samples a step and device."""
    noise = 1 + 0.004 * np.sin(7 * repeat + devices + 3 * layers)
    speed = SPEED / layers * (1.5 if amp == "bf16" else 1) * devices * (KEPT if devices > 1 else 1) * noise
    seconds = 500 * devices / (rate or speed)
    own = {"argv": argv, "layers": layers, "amp": amp}
    spec = RunSpec(
        workload="command", workload_args=own, device_type="cpu", devices_per_node=devices, repeat=repeat, work=[*work]
    )
    result = {"window_seconds": seconds, "steps": 10, "step_seconds": [seconds / 10] * 10, "samples": 500 * devices}
    return RunRecord(
        run_id=spec.run_id,
        config_id=spec.config_id,
        suite=suite,
        execution="20260102T030405-aaaa",
        spec=spec,
        status=Status.OK,
        started_at=rows.START + timedelta(minutes=repeat),
        duration_seconds=seconds + 1,
        devices=["cpu"] * devices,
        measurement=Measurement.model_validate(result | measured),
        environment=rows.environment(),
    )


def runs(**fields: Any) -> pd.DataFrame:
    """Return three runs each of 1 and 2 devices, 1 and 2 layers, fp32 and bf16."""
    cells = [(d, layers, amp, r) for layers in (1, 2) for amp in ("fp32", "bf16") for d in (1, 2) for r in range(3)]
    return frame(row(record(*cell, **fields)) for cell in cells)


WORK = ("workload_args.layers",)


def test_own_arguments_say_how_unless_the_suite_says_what() -> None:
    assert work_arguments(runs()) == []
    assert work_arguments(runs(work=WORK)) == [*WORK]
    assert work_arguments(runs(suite="measure")) == ["workload_args.argv"]
    assert work_arguments(frame(rows.grid(repeats=1))) == ["workload_args.preset"]


def test_how_is_compared_one_at_a_time_like_any_field() -> None:
    changes = {(one.topic.name, one.option, one.baseline): one for one in Changes(runs(work=WORK))}
    assert {name for name, *_ in changes} == {"devices", "amp"}
    amp = changes["amp", "bf16", "fp32"]
    assert len(amp.pairs) == 4  # 1 and 2 devices, 1 and 2 layers
    assert amp.ratio("time").value == pytest.approx(1 / 1.5, rel=0.01)
    assert amp.action == "workload_args.amp: bf16"
    assert {one.topic.name for one in Changes(runs())} == {"devices", "amp", "layers"}
    assert {advice.topic for advice in advise(runs(work=WORK))} >= {"devices", "amp"}


def test_what_is_trained_separates_comparisons_and_fronts() -> None:
    pairs = [(one.name, one.baseline) for one in within(runs(work=WORK), ["samples_per_second"]).comparisons]
    assert len(pairs) == 6
    assert all(("layers=1" in name) == ("layers=1" in base) for name, base in pairs)
    assert len(within(runs(), ["samples_per_second"]).comparisons) == 7
    assert [len(one.table) for one in front(runs(work=WORK), ["time"])] == [4, 4]
    assert [len(one.table) for one in front(runs(), ["time"])] == [8]


def test_names_tell_what_differs_and_the_kind_of_work_apart() -> None:
    table = summary(runs(work=WORK))
    words = named(table)
    assert words["work"].unique().tolist() == ["1 layer", "2 layers"]
    assert set(words["change"]) == {f"amp {a}, {d}" for a in ("fp32", "bf16") for d in ("1 device", "2 devices")}
    assert not any("train" in name for name in names(table))


@pytest.mark.parametrize(
    ("given", "unit", "speed"),
    [
        ({}, "samples", SPEED),
        ({"samples": None, "tokens": 64_000}, "tokens", None),
        ({"flops_per_sample": 1e9}, "FLOP", 1e11),
    ],
)
def test_the_law_is_fitted_in_what_is_known_of_the_work(given: dict[str, Any], unit: str, speed: float | None) -> None:
    df = frame(row(record(d, repeat=r, **given)) for d in (1, 2) for r in range(3))
    (series,) = fit(df).series
    assert (series.unit, series.devices) == (unit, (1, 2))
    if speed is not None:
        assert min(point.v.value for point in series.points) == pytest.approx(KEPT * speed, rel=0.01)
        (efficiency,) = series.efficiency
        assert efficiency.value == pytest.approx(KEPT, rel=0.01)
        assert efficiency.scaling == "weak"
    eight, _ = outlook(series, (8, 64))
    assert eight.unit == unit
    rate = eight.samples_per_second
    assert rate.low is not None
    measured = {point.devices: point.v.value for point in series.points}
    if unit == "samples":
        assert 8 * 0.6 * measured[1] < rate.value < 8 * measured[1]
        assert rate.value == pytest.approx(eight.ideal_samples_per_second, rel=0.3)
    text = " ".join(series_sentences(series)) + str([*law_blocks([series], {})])
    assert {"FLOP": "GFLOP/s", "samples": "samples/s", "tokens": "tokens/s"}[unit] in text
    assert unit == "FLOP" or "FLOP/s" not in text


def test_each_thing_that_is_trained_is_a_series_where_no_flop_are_known() -> None:
    found = fit(runs(work=WORK)).series
    assert sorted(series_names(found)) == [f"amp {a}, {n}" for a in ("bf16", "fp32") for n in ("1 layer", "2 layers")]
    assert {one["unit"] for one in predictions(runs(work=WORK), (4,))} == {"samples"}
    flops = frame(
        row(record(d, n, repeat=r, work=WORK, flops_per_sample=1e9 * n))
        for n in (1, 2)
        for d in (1, 2)
        for r in range(2)
    )
    (one,) = fit(flops).series
    assert [size.flops_per_sample for size in one.by_work] == [1e9, 2e9]
    assert one.v.value == pytest.approx(1e11 * KEPT**0.5, rel=0.01)


def test_a_command_that_tells_no_batch_has_an_efficiency() -> None:
    df = frame(row(record(d, repeat=r, samples=501 * d)) for d in (1, 2) for r in range(3))
    assert df["global_batch_size"].isna().all()
    (efficiency,) = fit(df).series[0].efficiency
    assert efficiency.scaling == "own"
    assert efficiency.value == pytest.approx(KEPT, rel=0.01)


def test_what_was_seen_follows_from_what_was_asked_and_hides_no_comparison() -> None:
    """Two processes train by DDP, and amp changes the precision that hooks see."""
    cells = [(d, 1, amp, r) for amp in ("fp32", "bf16") for d in (1, 2) for r in range(3)]
    df = frame(
        row(
            record(
                *cell, seen=SeenFacts(processes=cell[0], devices=["cpu"] * cell[0], precision=cell[2], parallelism=way)
            )
        )
        for cell in cells
        for way in ["ddp" if cell[0] > 1 else None]
    )
    assert df["precision"].unique().tolist() == ["fp32", "bf16"]
    assert not {"precision", "parallelism"} & set(varied(df))
    assert {change.topic.name for change in Changes(df)} == {"devices", "amp"}
    assert [series.devices for series in fit(df).series] == [(1, 2)] * 2
    asked = df.assign(**{"workload_args.argv": ARGV + " {precision}"})
    assert "precision" in varied(asked)


def test_losses_of_commands_are_compared_after_equal_training_alone() -> None:
    def losses(devices: int, amp: str, repeat: int) -> Any:
        return row(
            record(devices, 1, amp, repeat, loss_first=4.0, loss_last=1.0, loss_medians=(4.0, 2.0 + (amp == "bf16")))
        )

    df = frame(losses(d, amp, r) for d in (1, 2) for amp in ("fp32", "bf16") for r in range(3))
    found = {one.name: one for one in within(df, ["loss_median"]).comparisons}
    effects = {name: one.effect("loss_median") for name, one in found.items()}
    told = {name: effect.ratio for name, effect in effects.items() if effect is not None}
    assert [*told.values()] == [pytest.approx(1.5)]  # after other numbers of samples they are not compared
    assert all("samples" in one.not_compared["loss_median"] for one in found.values() if one.not_compared)


def test_a_command_that_uses_other_devices_is_the_first_thing_to_check() -> None:
    told = [record(d, repeat=r) for d in (1, 2) for r in range(3)]
    df = frame(
        row(one.changed(devices=["cpu"], flags=["devices_differ"] if one.spec.world_size > 1 else [])) for one in told
    )
    assert df["devices"].tolist() == [1] * 6
    assert advise(df)[0].topic == "unlike"
    assert advise(df)[0].evidence.runs == 3


def test_the_price_of_a_device_is_that_of_those_that_are_billed() -> None:
    cost = Cost(mode="rental", usd_per_device_hour=2.0, devices=2, billed_seconds=3600, cost_usd=4.0)
    told = record(2).changed(devices=["cpu"], cost=cost, duration_seconds=3600)
    df = frame([row(told)])
    assert df["billed_devices"].tolist() == [2]
    assert rent(df).tolist() == [2.0]
    assert rent(frame([row(told.changed(devices=["cpu"] * 2))])).tolist() == [2.0]


def test_a_series_of_which_nothing_is_known_has_a_name_all_the_same() -> None:
    series = fit(runs()).series[0]
    unknown = replace(series, keys={name: value for name, value in series.keys.items() if name != "precision"})
    assert series_names([unknown]) == ["all runs"]
