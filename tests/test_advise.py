"""Advice: planted causes are found, with their evidence; clean runs and bare noise give no such sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analytics.interval import Interval
from analytics.judge.advice import Advice, ratio_words
from analytics.judge.advise import advise
from analytics.judge.compare import Configurations, Effect, within
from analytics.judge.stats import pooled
from analytics.runs.frame import frame
from bench.figures.metrics import row
from bench.record import GpuConditions, Rank, Status
from bench.schema import Gpu, Machine, Scalar
from bench.store import tracker as tracking
from tests import rows
from tests.commands import bench
from tests.test_tracking import logged

quiet = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]
Rows = list[dict[str, Scalar]]


def runs(
    speed: float = 1.0, repeats: int = 4, noise: float = 0.001, seed: int = 0, more: Any = None, **spec: Any
) -> Rows:
    """Repeats of one configuration at a planted speed; `more` are figures that the row has beside."""
    random = np.random.default_rng([seed, *json.dumps(spec, sort_keys=True).encode()])
    devices = spec.pop("devices", 1)
    factors = np.exp(random.normal(0, noise, repeats))
    made = [rows.make(devices, repeat=i, v=rows.V * speed * float(f), **spec) for i, f in enumerate(factors)]
    return [one | (more or {}) for one in made]


def said(*parts: Rows) -> dict[str, Advice]:
    """The advice by topic; of one topic the first."""
    found = advise(frame([one for part in parts for one in part]))
    return {advice.topic: advice for advice in reversed(found)}


def learned(table: Rows, loss: float) -> Rows:
    return [one | {"validation_loss": loss + 0.1 * float(one["repeat"]), "trained_steps": 103.0} for one in table]


CLEAN = [*runs(), *runs(precision="bf16"), *runs(attention="math"), *runs(memory="recompute")]
BAD = {"throttled", "shared", "input", "straggler", "communication", "memory to spare", "out of memory", "failures"}
BAD |= {"repeats", "steadiness", "start-up", "next"}


def test_clean_runs_without_a_difference_give_no_sentence() -> None:
    assert advise(frame(CLEAN)) == []


def test_a_precision_that_gains_is_told_with_its_evidence() -> None:
    advice = said(runs(), runs(1.5, precision="bf16"))["precision"]
    assert advice.sentence.startswith("Use precision bf16 instead of fp32: the same work takes 33 % less time")
    assert " and 33 % less energy." in advice.sentence
    assert advice.action == "precision: bf16"
    assert advice.saving == pytest.approx(1 / 3, abs=0.01)
    evidence = advice.evidence
    assert (evidence.runs, evidence.n, evidence.measure) == (8, 4, "time")
    assert evidence.configurations == ("bf16", "fp32")
    assert evidence.low is not None
    assert evidence.high is not None
    assert evidence.low < 2 / 3 < evidence.high < 0.7
    assert "quality was not looked at: set validation.samples" in advice.limits


def test_energy_of_a_model_is_marked() -> None:
    advice = said(runs(readings="e"), runs(1.5, precision="bf16", readings="e"))["precision"]
    assert "~33 % less energy" in advice.sentence
    assert "~ is energy by a model, not measured" in advice.limits


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3.0, "No loss of quality shows: validation loss 3.150 -> 3.150."),
        (3.3, "Its price: validation loss 3.150 -> 3.450."),
    ],
)
def test_quality_stands_beside_a_gain(loss: float, words: str) -> None:
    """Seeds differ by far more than the two sides do: repeats are paired."""
    advice = said(learned(runs(), 3.0), learned(runs(1.5, precision="bf16"), loss))["precision"]
    assert words in advice.sentence
    assert advice.sentence.startswith("Use" if loss == 3 else "Consider")


def test_quality_after_unequal_training_is_not_compared() -> None:
    longer = [one | {"trained_steps": 300.0} for one in learned(runs(1.5, precision="bf16"), 3.3)]
    advice = said(learned(runs(), 3.0), longer)["precision"]
    assert "price" not in advice.sentence
    assert any(limit.startswith("quality is not compared") for limit in advice.limits)


def test_an_option_that_missed_the_target_is_no_gain() -> None:
    reached, missed = ({"target_reached": value} for value in (1.0, 0.0))
    assert "precision" not in said(runs(more=reached), runs(1.5, precision="bf16", more=missed))


def test_what_costs_is_not_used_and_what_it_gives_is_told() -> None:
    less = {"peak_memory_bytes": 5e8}
    advice = said(runs(), runs(0.75, memory="recompute", more=less))["memory"]
    assert advice.sentence.startswith("Unless memory is short, stay with memory none: recompute takes 33 % more time (")
    assert advice.sentence.endswith("for 50 % less memory.")
    assert advice.saving is None


def test_memory_that_takes_no_time_is_free() -> None:
    advice = said(runs(), runs(memory="recompute", more={"peak_memory_bytes": 5e8}))["memory"]
    assert (
        advice.sentence
        == "Use memory recompute instead of none: it takes no visible time (5 % at most) and 50 % less memory."
    )
    assert advice.action == "memory: recompute"


def test_compiling_pays_after_some_steps() -> None:
    """A step takes 0.4 s; at twice the speed it saves 0.2 s, so that 10 s are back after 50 steps."""
    table = runs(2, compile="default", more={"compile_seconds": 10.0}, noise=0.001)
    advice = said(runs(noise=0.001), table)["compile"]
    assert "It pays after 50 steps (50 to 50): compiling takes 10 s once." in advice.sentence
    slower = said(runs(), runs(0.8, compile="default", more={"compile_seconds": 10.0}))["compile"]
    assert slower.sentence.startswith("Compiling does not pay: default takes 2")


def test_devices_to_use_and_to_stop_at() -> None:
    table = rows.grid((1, 2, 4), ("tiny", "small"), loss={1: 1.0, 2: 0.95, 4: 0.5})
    stop, use = (one for one in advise(frame(table)) if one.topic == "devices")
    if stop.sentence.startswith("Use"):
        stop, use = use, stop
    assert use.sentence.startswith("Use 2 devices if time counts: against 1 device the same work takes 47 % less time")
    assert use.action == "devices: 2"
    assert stop.sentence.startswith("Stop at 2 devices: 4 devices take 5.5 % less time (")
    assert "but 89 % more device-hours" in stop.sentence
    assert stop.saving == pytest.approx(1 - 0.5 / 0.95, abs=0.01)
    assert stop.action == "devices: 2"
    assert stop.evidence.runs == 16


def test_a_gain_that_differs_by_configuration_is_a_range() -> None:
    small = rows.grid((1,), ("small",), {"fp32": 1, "bf16": 3})
    advice = {one.topic: one for one in advise(frame([*small, *rows.grid((1,), ("tiny",), {"fp32": 1, "bf16": 1.2})]))}
    precision = advice["precision"]
    assert "17 % less time (preset=tiny) to 67 % less time (preset=small)" in precision.sentence
    assert precision.evidence.ratio is None
    assert precision.evidence.low == pytest.approx(1 / 3, rel=0.01)
    assert precision.evidence.high == pytest.approx(1 / 1.2, rel=0.01)


def _batch() -> Rows:
    return [*runs(), *runs(1.4, batch=32)]


def test_a_larger_batch_that_is_faster_is_told_with_its_limit() -> None:
    advice = said(_batch())["batch"]
    assert advice.sentence.startswith("Use a batch of 32 instead of a batch of 8")
    assert advice.action == "batch_size_per_device: 32"
    assert any("fewer updates" in limit for limit in advice.limits)


def test_of_several_parallelisms_the_fastest() -> None:
    table = [runs(1, devices=2, parallelism="ddp"), runs(1.3, devices=2, parallelism="zero1")]
    advice = said(*table)["parallelism"]
    assert advice.sentence.startswith("Use parallelism zero1 instead of ddp")


def test_in_use_quantization_counts_not_in_training() -> None:
    served: dict[str, Any] = {"inference_samples_per_second": 100.0, "model_bytes": 4e6, "served_loss": 3.0}
    random = np.random.default_rng(1)

    def noisy(table: Rows, factor: float) -> Rows:
        return [
            one | {"inference_samples_per_second": 100 * factor * float(np.exp(random.normal(0, 0.005)))}
            for one in table
        ]

    plain, int8 = runs(more=served), runs(quantization="int8", more=served | {"model_bytes": 1e6})
    advice = said(noisy(plain, 1), noisy(int8, 2))["quantization"]
    assert advice.sentence.startswith("Use quantization int8 instead of none: the model in use takes 50 % less time")
    assert "75 % less space on disk" in advice.sentence
    slow = said(noisy(plain, 1), noisy(int8, 0.5))["quantization"]
    assert slow.sentence.startswith("Stay with quantization none: int8 takes 2.01 times the time in use")


GPU = {"device_type": "cuda", "flags": "", "throttled_share": 0.0}


def odd(**fields: Any) -> Rows:
    return runs(warmup_steps=9, **fields)


SYMPTOMS: dict[str, tuple[Rows, str]] = {
    "throttled": (
        odd(more=GPU | {"flags": "short_window throttled", "throttled_share": 0.3}),
        "In 4 of 8 runs heat or a power brake slowed the GPU down, for up to 30% of the time.",
    ),
    "shared": (odd(more=GPU | {"flags": "shared_gpu"}), "In 4 of 8 runs other processes used the GPU."),
    "input": (odd(more={"data_wait_share": 0.4}), "The training waits for its data 40 % of the time"),
    "straggler": (
        odd(devices=4, more={"straggler_ratio": 1.3, "straggler_rank": 3, "straggler_device": "GPU-3"}),
        "One rank takes 1.3 times as long as the others, who wait for it; it is rank 3 (GPU-3) in all 4 runs",
    ),
    "communication": (
        odd(devices=4, more={"exposed_communication_share": 0.3}),
        "devices wait for each other up to 30 % of a step",
    ),
    "memory to spare": (odd(more={"memory_available_bytes": 1e10}), "Memory is to spare: 1 of 10 GB at most."),
    "out of memory": (
        runs(batch=64, repeats=1, status=Status.OUT_OF_MEMORY, more={"attempted_bytes": 3e9}),
        "does not fit into the memory (it asked for 3 GB more); the nearest that does has batch_size_per_device: 8.",
    ),
    "failures": (
        runs(repeats=1, batch=64, status=Status.FAILED, message="no [b]text[/b]\nhere"),
        "1 of 5 runs failed, the last one (failed): no [b]text[/b] here.",
    ),
    "repeats": (runs(noise=0.2, batch=16, seed=1), "Cannot tell yet (4 repeats that differ by"),
    "steadiness": (odd(more={"flags": "not_steady"}), "In 4 of 8 runs the speed was not steady"),
    "start-up": (
        odd(more={"startup_seconds": 100.0}),
        "it is more than 5 % of trainings shorter than 2,000 s",
    ),
}


@pytest.mark.parametrize("topic", SYMPTOMS)
def test_a_planted_cause_is_found_and_no_other(topic: str) -> None:
    planted, words = SYMPTOMS[topic]
    found = said(runs(), planted)
    assert words in found[topic].sentence
    assert found[topic].evidence.runs == len(planted) * (2 if topic == "repeats" else 1)
    wrong = set(found) & BAD - {topic, "next"}
    assert wrong == set()


def test_runs_that_heat_slowed_down_are_compared_with_nothing() -> None:
    hot = runs(0.5, precision="bf16", more={"flags": "throttled", "throttled_share": 0.5})
    found = advise(frame([*runs(), *hot]))
    assert [advice.topic for advice in found] == ["throttled", "next"]
    assert found[0].first


def test_a_straggler_that_chance_explains_is_none() -> None:
    table = runs(devices=4, more={"straggler_ratio": 1.3})
    assert "straggler" in said([one | {"straggler_rank": 1} for one in table])
    moving = [one | {"straggler_rank": i % 4} for i, one in enumerate(table)]
    assert "straggler" not in said(moving)
    assert "straggler" not in said(table), "which rank it was is not known"
    pair = runs(devices=2, repeats=3, more={"straggler_ratio": 1.3, "straggler_rank": 1})
    assert "straggler" not in said(pair), "one of two ranks is the slower one, three times of three"
    once = [table[0] | {"straggler_ratio": 1.3}, *[one | {"straggler_ratio": 1.0} for one in table[1:]]]
    assert "straggler" not in said(once), "one run of four is chance"
    assert "straggler" not in said([one | {"parallelism": "pp"} for one in table]), "stages differ by nature"


def test_another_parallelism_that_waits_less() -> None:
    waits = runs(0.5, devices=2, parallelism="fsdp2", more={"exposed_communication_share": 0.4})
    found = said(waits, runs(devices=2, more={"exposed_communication_share": 0.05}))
    assert found["communication"].action == "parallelism: ddp"
    assert "ddp waits 5 % and was faster; choose it" in found["communication"].sentence
    slower = said(waits, runs(0.4, devices=2, more={"exposed_communication_share": 0.05}))["communication"]
    other = said(waits, runs(devices=2, preset="small", more={"exposed_communication_share": 0.05}))["communication"]
    all_ddp = said(
        runs(devices=2, preset="small", more={"exposed_communication_share": 0.16}),
        runs(devices=2, more={"exposed_communication_share": 0.06}),
    )["communication"]
    for found_ in (slower, other, all_ddp):
        assert "would let them exchange less often" in found_.sentence
        assert (found_.action, found_.saving) == ("", None)
        assert "not measured: a thing to try" in found_.limits


def test_memory_to_spare_is_no_advice_where_a_larger_batch_was_measured() -> None:
    table = [one | {"memory_available_bytes": 1e10} for one in [*runs(), *runs(batch=32)]]
    assert advise(frame(table)) == []


def test_one_run_tells_what_to_run_next() -> None:
    (only,) = advise(frame(runs(repeats=1)))
    assert only.topic == "next"
    assert only.sentence.startswith("Only one configuration ran")
    (open_,) = advise(frame([*runs(repeats=1), *runs(9, repeats=1, precision="bf16")]))
    assert (
        open_.sentence
        == "Cannot tell yet: precision bf16 against fp32; each ran once, so that nothing is known of noise: "
        "ask for 3 repeats."
    )
    assert (open_.action, open_.evidence.measure, open_.evidence.ratio) == ("repeats: 3", "one repeat each", None)


def test_how_many_repeats_would_tell_is_one_rule() -> None:
    table = frame([*runs(noise=0.05, seed=3), *runs(0.93, precision="bf16", noise=0.05, seed=5)])
    (advice,) = advise(table)
    (effect,) = within(table, ["samples_per_second"]).comparisons[0].effects
    assert effect.more_repeats is not None
    assert f"precision bf16 against fp32 (+{effect.more_repeats} repeats); so many more" in advice.sentence
    assert advice.action == f"repeats: {4 + effect.more_repeats}"
    (noisy,) = advise(frame([*runs(noise=0.3), *runs(precision="bf16", noise=0.3)]))
    assert noisy.sentence.endswith("; measure longer, or on a quieter machine.")
    assert noisy.action == "measure_steps: 500"
    theirs = [
        {
            name: one.get(name)
            for name in ("config_id", "suite", "execution", "status", "samples_per_second", "precision")
        }
        for one in [*runs(noise=0.3), *runs(precision="bf16", noise=0.3)]
    ]
    (bare,) = advise(frame([one | {"flags": "not_steady"} for one in theirs]))[:1]
    assert (bare.topic, bare.action) == ("repeats", "")


BUSY = {"flags": "short_window noisy_host"}


@pytest.mark.parametrize(
    ("repeats", "more", "limit"),
    [
        (2, {}, "2 repeats: run it again before acting on it"),
        (4, BUSY, "4 repeats on a busy or unsteady machine: run it again before acting on it"),
    ],
)
def test_thin_evidence_makes_no_imperative(repeats: int, more: dict[str, Any], limit: str) -> None:
    """It is told as a guess, below the advice to measure better, with nothing to set."""
    keep: dict[str, Any] = {"repeats": repeats, "more": more}
    found = advise(
        frame(
            [
                *runs(**keep),
                *runs(1.5, precision="bf16", **keep),
                *runs(0.5, memory="recompute", **keep),
                *runs(0.5, compile="default", **keep),
                *runs(0.45, devices=2, **keep),
            ]
        )
    )
    guesses = {one.topic: one for one in found if one.weak}
    assert [one.weak for one in found] == sorted(one.weak for one in found)
    assert guesses["precision"].sentence.startswith(
        "It looks as if precision bf16 gains over fp32: the same work takes 33 % less time"
    )
    assert guesses["memory"].sentence.startswith("It looks as if memory none is the better choice: recompute takes")
    assert guesses["compile"].sentence.startswith("It looks as if compiling does not pay: default takes")
    assert guesses["devices"].sentence.startswith("It looks as if 2 devices cost more than they bring: they take 11 %")
    for one in guesses.values():
        assert (one.action, one.saving, one.limits[0]) == ("", None, limit)
    assert ("steadiness" in {one.topic for one in found}) == bool(more)


def test_a_busy_machine_makes_guesses_of_symptoms() -> None:
    input_ = said(runs(more=BUSY | {"data_wait_share": 0.4}))["input"]
    assert input_.sentence.startswith("It looks as if the training waits for its data 40 % of the time")
    assert (input_.action, input_.weak) == ("", True)
    slow = said(runs(devices=4, more=BUSY | {"straggler_ratio": 1.3, "straggler_rank": 3}))["straggler"]
    assert slow.sentence.startswith("It looks as if one rank takes 1.3 times as long as the others")
    assert (slow.saving, slow.weak) == (None, True)


def test_large_figures_are_plain_numbers() -> None:
    assert ratio_words(Interval(1.9, 1.44, 2.4, 3), "time") == "90 % more time (44 to 140 %)"
    assert ratio_words(Interval(1234.5, 12.34, 1e5, 3), "time") == "1,234 times the time (12.3 to 100,000)"


@pytest.mark.parametrize("value", [0.0, -1.0, None])
def test_a_run_that_does_not_know_its_speed_is_compared_with_nothing(value: float | None) -> None:
    odd_one = runs(1.5, precision="bf16")
    odd_one[2]["samples_per_second"] = value  # type: ignore[assignment]
    assert "precision" not in said(runs(), odd_one)


@pytest.mark.parametrize(
    "column", ["config_id", "devices", "batch_size_per_device", "flags", "label", "repeat", "window_seconds"]
)
def test_tables_that_lack_a_column(column: str) -> None:
    table = [*runs(), *runs(1.5, precision="bf16"), *runs(0.5, devices=2)]
    found = advise(frame([{name: value for name, value in one.items() if name != column} for one in table]))
    assert any(one.topic == "precision" for one in found) == (column != "config_id")
    few = ("config_id", "suite", "execution", "status", "samples_per_second", "precision")
    (only,) = advise(frame([{name: one[name] for name in few} for one in table[:8]]))
    assert only.sentence.startswith("Use precision bf16")


def test_nothing_ended_well() -> None:
    (only,) = advise(frame(runs(repeats=3, status=Status.SKIPPED, message="no GPU")))
    assert "3 of 3 runs were skipped, the last one: no GPU" in only.sentence
    (lost,) = advise(frame(runs(repeats=1, status=Status.OUT_OF_MEMORY)))
    assert "try half the batch" in lost.sentence
    assert advise(frame([])) == []


def test_at_most_ten_and_those_that_save_most_first() -> None:
    everything = [
        one | {"warmup_steps": 10 + i, "config_id": f"{i}"}
        for i, (planted, _) in enumerate(SYMPTOMS.values())
        for one in planted
    ]
    found = advise(
        frame(
            [
                *CLEAN,
                *everything,
                *runs(3, attention="efficient"),
                *runs(0.5, memory="selective"),
                *runs(2, compile="default"),
            ]
        )
    )
    assert len(found) == 10
    firsts = [advice.first for advice in found]
    assert firsts == sorted(firsts, reverse=True)
    savings = [advice.saving or 0 for advice in found if not advice.first]
    assert savings == sorted(savings, reverse=True)


def claims(found: Iterable[Advice]) -> bool:
    return any(one.saving or one.sentence.startswith(("Use", "Consider")) for one in found)


@pytest.mark.parametrize(("repeats", "count"), [(3, 12), pytest.param(3, 150, marks=pytest.mark.slow)])
def test_noise_alone_gives_no_gain(repeats: int, count: int) -> None:
    """Of clean executions with three configurations that are all the same, at most 5 % claim any gain."""
    other: list[dict[str, Any]] = [{"precision": "bf16"}, {"memory": "recompute"}, {}]
    table = frame([one for spec in other for one in runs(repeats=repeats, noise=0, **spec)])
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(count):
        factor = np.exp(random.normal(0, 0.03, len(table)))
        table["samples_per_second"], table["joules_per_sample"] = 20 * factor, 5 / factor
        table["peak_memory_bytes"] = 1e9 * np.exp(random.normal(0, 0.05, len(table)))
        wrong += claims(advise(table))
    assert wrong <= 0.05 * count


def test_pooled_noise() -> None:
    assert pooled([[1.0], [2.0]]) == (0.0, 0)
    deviation, degrees = pooled([[1.0, np.e], [1.0, np.e, 1.0, np.e]])
    assert (deviation**2, degrees) == (pytest.approx((0.5 + 1) / 4), 4)


def test_columns_that_advice_rests_on() -> None:
    gpus = [Gpu(index=i, uuid=f"GPU-{i}", name="X", memory_bytes=10**10 * (i + 1)) for i in range(2)]
    made = rows.record(2)
    machine = Machine(cpu_model="X", cpu_count=2, gpus=gpus)
    ranks = [Rank(rank=i, device=f"GPU-{i}", window_seconds=1, forward_seconds_median=1 + i) for i in range(2)]
    assert made.measurement is not None
    made = made.model_copy(
        update={
            "devices": ["GPU-0", "GPU-1"],
            "spec": made.spec.model_copy(update={"device_type": "cuda"}),
            "environment": made.environment.model_copy(update={"machine": machine}),
            "measurement": made.measurement.model_copy(
                update={"ranks": ranks, "gpus": [GpuConditions(device="GPU-0", throttled_share={"hw_thermal": 0.2})]}
            ),
        }
    )
    found = row(made)
    assert (found["straggler_rank"], found["straggler_device"], found["throttled_share"]) == (1, "GPU-1", 0.2)
    assert found["memory_available_bytes"] == 10**10
    limited = made.model_copy(update={"spec": made.spec.model_copy(update={"memory_limit_bytes": 10**9})})
    assert row(limited)["memory_available_bytes"] == 10**9
    assert "memory_available_bytes" not in rows.make(), "a CPU's memory is shared by the ranks"


def command(test: Any) -> Any:
    for mark in (pytest.mark.slow, *quiet):
        test = mark(test)
    return test


@command
def test_for_people_and_for_programs(tmp_path: Path) -> None:
    records = [
        rows.record(1, precision=p, repeat=r, v=rows.V * f * (1 + r / 999))
        for p, f in (("fp32", 1), ("bf16", 2))
        for r in range(3)
    ]
    records.append(rows.record(precision="fp16", status=Status.SKIPPED, message="no fp16 here"))
    store = logged(tmp_path, records)
    done = bench("advise", "synthetic", "--store", store)
    assert done.exit_code == 0, done.output
    assert " 1. Use precision bf16 instead of fp32" in done.output
    assert "time × 0.5" not in done.output
    assert "time × 0.5" in bench("advise", "synthetic", "--store", store, "--explain").output
    answer = json.loads(bench("advise", "--store", store, "--json").stdout)
    assert answer["limits"].startswith("this machine")
    (document,) = answer["executions"]
    assert (document["suite"], document["runs_ok"], document["runs_skipped"]) == ("synthetic", 6, 1)
    assert document["advice"][0]["evidence"]["ratio"] == pytest.approx(0.5)
    wrong = bench("advise", "synthetik", "--store", store)
    assert wrong.exit_code == 2
    assert "did you mean 'synthetic'" in wrong.output
    wrong = bench("advise", "--store", store, "--execution", "x")
    assert wrong.exit_code == 2


@command
def test_a_store_without_runs(tmp_path: Path) -> None:
    tracker = tracking.Tracker(f"sqlite:///{tmp_path}/mlflow.db", "s", "e")
    tracker.open()
    tracker.close(finished=True)
    for store in (f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/absent.db"):
        done = bench("advise", "--store", store)
        assert done.exit_code == 2
        assert "Traceback" not in done.output
        assert "bench run" in done.output


@command
def test_all_failed(tmp_path: Path) -> None:
    store = logged(tmp_path, [rows.record(status=Status.FAILED, message=rows.HOSTILE + "\x1b[31m")])
    done = bench("advise", "--store", store)
    assert done.exit_code == 0, done.output
    assert "1 of 1 runs failed" in done.output
    assert "\x1b" not in done.output


SLOW = """
import time
from bench.workloads.decoder_lm import DecoderLM
from bench.workloads.text import Windows
class Slow(Windows):
    def fetch(self, indices, seed):
        time.sleep(0.1)
        return super().fetch(indices, seed)
class SlowLM(DecoderLM):
    def __init__(self, args):
        super().__init__(args)
        self.train = Slow(self.train.text, self.train.length)
"""
PLANTED = """
name: planted
idle_seconds: 0
defaults:
  workload: decoder_lm
  workload_args: {preset: small, sequence_length: 64}
  device_type: cpu
  batch_size_per_device: 4
  warmup_seconds: 0
  measure_steps: 14
  memory_limit_bytes: 20000000000
  meters: []
include:
  - {precision: fp32}
  - {precision: bf16}
  - {workload: slow_lm, workload_args.preset: tiny}
  - {batch_size_per_device: max, memory_limit_bytes: 2000000}
repeats: 3
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_planted_causes_in_real_runs(tmp_path: Path) -> None:
    """A slow loader, a useful precision, memory to spare and none; nothing of heat or stragglers."""
    (tmp_path / "slowdata.py").write_text(SLOW)
    info = tmp_path / "slowdata-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slowdata\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wattbench.workloads]\nslow_lm = slowdata:SlowLM\n")
    (tmp_path / "planted.yaml").write_text(PLANTED)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-c", "from bench.cli import main; main()"]
    keep: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 380}
    done = subprocess.run([*command, "run", "planted.yaml"], env=os.environ | {"PYTHONPATH": path}, **keep)
    assert "12/12" in done.stderr, done.stderr
    done = subprocess.run([*command, "advise", "planted", "--json"], **keep)
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)["executions"]
    found = {one["topic"]: one for one in document["advice"]}
    assert "training waits for its data" in found["input"]["sentence"]
    assert found["input"]["evidence"]["configurations"] != []
    assert found["input"]["evidence"]["runs"] == 3
    assert found["memory to spare"]["action"] == "batch_size_per_device: max"
    assert "does not fit into the memory" in found["out of memory"]["sentence"]
    assert not {"throttled", "shared", "failures", "next"} & set(found)
    among = Configurations(frame(tracking.load(f"sqlite:///{tmp_path}/mlflow.db")))
    plain = {row["precision"]: config for config, row in among.rows.items() if row["workload"] == "decoder_lm"}
    faster = among.effect(plain["bf16"], plain["fp32"], "samples_per_second")
    assert isinstance(faster, Effect)
    assert faster.low is not None
    assert faster.high is not None
    if faster.verdict == "better" and faster.ratio > 1.1:
        how = found["precision"]["sentence"].split(" precision bf16")[0]
        assert how in ("Use", "Consider", "It looks as if")
    elif faster.verdict == "cannot tell" and faster.high - faster.low > 0.2:  # a busy machine may not tell
        assert "precision bf16 against fp32" in found["repeats"]["evidence"]["configurations"]
