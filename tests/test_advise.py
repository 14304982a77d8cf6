"""Advice: planted causes are found, with their evidence; clean runs and bare noise give no such sentence."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest

from analytics.interval import Interval
from analytics.judge.advice import Advice
from analytics.judge.advise import advise
from analytics.judge.compare import within
from analytics.runs.frame import frame
from analytics.say.advice import ratio_words, recommendations
from analytics.say.terms import definitions
from bench import registry
from bench.cli import cli
from bench.figures.metrics import row
from bench.record import GpuConditions, Rank, Status
from bench.schema import Gpu, Machine, Scalar
from tests import rows
from tests.commands import bench, execute
from tests.stores import empty_store
from tests.test_tracking import logged

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


def table(*parts: Rows) -> pd.DataFrame:
    return frame([one for part in parts for one in part])


def advised(*parts: Rows) -> dict[str, Advice]:
    """The advice by topic; of one topic the first."""
    return {advice.topic: advice for advice in reversed(advise(table(*parts)))}


def sentence(topic: str, *parts: Rows) -> str:
    return next(one.sentence for one in recommendations(table(*parts)) if one.advice.topic == topic)


def measures(advice: Advice) -> tuple[str, ...]:
    (found,) = advice.changes.values()
    return found


def learned(given: Rows, loss: float) -> Rows:
    return [one | {"validation_loss": loss + 0.1 * float(one["repeat"]), "trained_steps": 103.0} for one in given]


FASTER = runs(1.5, precision="bf16")
CLEAN = [*runs(), *runs(precision="bf16"), *runs(attention="math"), *runs(memory="recompute")]
BAD = {"throttled", "shared", "input", "straggler", "communication", "memory to spare", "out of memory", "failures"}
BAD |= {"repeats", "steadiness", "start-up", "next"}


def test_clean_runs_without_a_difference_give_no_advice() -> None:
    assert advise(table(CLEAN)) == []


def test_a_precision_that_gains_is_told_with_its_evidence() -> None:
    advice = advised(runs(), FASTER)["precision"]
    assert (advice.claim, advice.action, measures(advice)) == ("use", "precision: bf16", ("time", "energy"))
    assert advice.saving == pytest.approx(1 / 3, abs=0.01)
    evidence = advice.evidence
    assert (evidence.runs, evidence.n, evidence.measure) == (8, 4, "time")
    assert evidence.configurations == (FASTER[0]["config_id"], runs()[0]["config_id"])
    assert (evidence.low or 0) < 2 / 3 < (evidence.high or 0) < 0.7
    assert advice.limits == ("quality_unknown",)
    text = sentence("precision", runs(), FASTER)
    assert text.startswith("Use bf16 instead of fp32 (precision: bf16): 33")
    assert "less time and 33" in text
    constant, same = runs(readings="e"), runs(1.5, precision="bf16", readings="e")
    assert measures(advised(constant, same)["precision"]) == ("time",), "estimated by a constant power it is time again"
    more = [row | {"power_watts_estimated": 1.1 * row["power_watts_estimated"]} for row in same]
    estimated = advised(constant, more)["precision"]
    assert (measures(estimated), estimated.limits) == (("time", "~energy"), ("quality_unknown", "estimated"))


@pytest.mark.parametrize(("loss", "head", "verdict"), [(3.0, "Use", "equivalent"), (3.3, "Consider", "worse")])
def test_quality_stands_beside_a_gain(loss: float, head: str, verdict: str) -> None:
    """Seeds differ by far more than the two sides do: repeats are paired."""
    given = learned(runs(), 3.0), learned(FASTER, loss)
    advice = advised(*given)["precision"]
    assert (advice.claim, measures(advice)) == (head.lower(), ("time", "energy", "validation loss"))
    assert sentence("precision", *given).startswith(head)
    assert f"3.150 -> {loss + 0.15:.3f} ({verdict})" in sentence("precision", *given)


def test_quality_after_unequal_training_is_not_compared() -> None:
    longer = [one | {"trained_steps": 300.0} for one in learned(FASTER, 3.3)]
    advice = advised(learned(runs(), 3.0), longer)["precision"]
    assert (measures(advice), advice.limits) == (("time", "energy"), ("quality_not_compared",))


def test_an_option_that_missed_the_target_is_no_gain() -> None:
    reached, missed = ({"target_reached": value} for value in (1.0, 0.0))
    assert "precision" not in advised(runs(more=reached), runs(1.5, precision="bf16", more=missed))


def test_what_costs_is_avoided_and_what_it_gives_is_told() -> None:
    given = runs(), runs(0.75, memory="recompute", more={"peak_memory_bytes": 5e8})
    advice = advised(*given)["memory"]
    assert (advice.claim, advice.action, advice.saving) == ("trade", "", None)
    assert measures(advice) == ("time", "memory")
    assert sentence("memory", *given).startswith("Avoid recompute unless memory is short: 33")
    slower = advised(runs(), runs(0.8, compile="default", more={"compile_seconds": 10.0}))["compile"]
    assert (slower.claim, measures(slower), slower.facts) == ("avoid", ("time",), {})


def test_memory_that_takes_no_time_is_free() -> None:
    advice = advised(runs(), runs(memory="recompute", more={"peak_memory_bytes": 5e8}))["memory"]
    assert (advice.claim, advice.action, measures(advice)) == ("use", "memory: recompute", ("memory",))


def test_compiling_pays_after_some_steps() -> None:
    """A step takes 0.4 s; at twice the speed it saves 0.2 s, so that 10 s are back after 50 steps."""
    given = runs(), runs(2, compile="default", more={"compile_seconds": 10.0})
    advice = advised(*given)["compile"]
    assert advice.facts["compile_seconds"] == 10
    assert advice.facts["steps"] == pytest.approx((50, 50, 50), rel=0.02)
    assert "payback" in advice.limits


def test_devices_to_use_and_to_stop_at() -> None:
    found = advise(frame(rows.grid((1, 2, 4), ("tiny", "small"), loss={1: 1.0, 2: 0.95, 4: 0.5})))
    by_claim = {one.claim: one for one in found if one.topic == "devices"}
    use, stop = by_claim["pay"], by_claim["stop"]
    assert use.action == stop.action == "devices: 2"
    assert (use.evidence.ratio, stop.evidence.ratio) == pytest.approx((1 / 1.9, 0.95), abs=0.01)
    assert stop.saving == pytest.approx(1 - 0.5 / 0.95, abs=0.01)
    assert measures(stop)[:2] == ("time", "device-hours")
    assert stop.evidence.runs == 16


def test_a_gain_that_differs_by_configuration_is_a_range() -> None:
    given = rows.grid((1,), ("small",), {"fp32": 1, "bf16": 3}), rows.grid((1,), ("tiny",), {"fp32": 1, "bf16": 1.2})
    evidence = advised(*given)["precision"].evidence
    assert (evidence.ratio, evidence.low, evidence.high) == (
        None, pytest.approx(1 / 3, rel=0.01), pytest.approx(1 / 1.2, rel=0.01),
    )  # fmt: skip
    assert "16.8 % less time (tiny) to 66.7 % less time (small)" in sentence("precision", *given)


def test_a_larger_batch_that_is_faster_is_told_with_its_limit() -> None:
    advice = advised(runs(), runs(1.4, batch=32))["batch"]
    assert (advice.claim, advice.action) == ("use", "batch_size_per_device: 32")
    assert "fewer_updates" in advice.limits


def test_of_several_parallelisms_the_fastest() -> None:
    given = runs(1, devices=2, parallelism="ddp"), runs(1.3, devices=2, parallelism="zero1")
    assert advised(*given)["parallelism"].action == "parallelism: zero1"


def test_in_use_quantization_counts_not_in_training() -> None:
    served: dict[str, Any] = {"model_bytes": 4e6, "served_loss": 3.0}
    random = np.random.default_rng(1)

    def noisy(given: Rows, factor: float) -> Rows:
        speeds = 100 * factor * np.exp(random.normal(0, 0.005, len(given)))
        return [one | {"inference_samples_per_second": float(x)} for one, x in zip(given, speeds, strict=True)]

    plain, int8 = runs(more=served), runs(quantization="int8", more=served | {"model_bytes": 1e6})
    fast, slow = (advised(noisy(plain, 1), noisy(int8, factor))["quantization"] for factor in (2, 0.5))
    assert (fast.claim, measures(fast)) == ("use", ("time in use", "served loss", "space on disk"))
    assert fast.saving == pytest.approx(0.5, abs=0.01)
    assert (slow.claim, measures(slow)) == ("avoid", ("time in use", "space on disk"))


GPU = {"device_type": "gpu", "flags": "", "throttled_share": 0.0}


def odd(**fields: Any) -> Rows:
    return runs(warmup_steps=9, **fields)


SYMPTOMS: dict[str, tuple[Rows, Any, str, dict[str, Any]]] = {
    "throttled": (odd(more=GPU | {"flags": "short_window throttled", "throttled_share": 0.3}), 0.3, "", {}),
    "shared": (odd(more=GPU | {"flags": "shared_gpu"}), None, "", {}),
    "input": (odd(more={"data_wait_share": 0.4}), 0.4, "workload_args.workers: 2", {}),
    "straggler": (
        odd(devices=4, more={"straggler_ratio": 1.3, "straggler_rank": 3, "straggler_device": "GPU-3"}),
        1.3,
        "",
        {"rank": 3, "device": "GPU-3"},
    ),
    "communication": (odd(devices=4, more={"exposed_communication_share": 0.3}), 0.3, "", {}),
    "memory to spare": (
        odd(more={"memory_available_bytes": 1e10}),
        1e9,
        "batch_size_per_device: max",
        {"peak_memory_bytes": 1e9, "memory_available_bytes": 1e10},
    ),
    "out of memory": (
        runs(batch=64, repeats=1, status=Status.OUT_OF_MEMORY), None, "batch_size_per_device: 8", {},
    ),
    "failures": (
        runs(repeats=1, batch=64, status=Status.FAILED, message="no [b]text[/b]\nhere"),
        None,
        "",
        {"message": "no [b]text[/b] here"},
    ),
    "repeats": (runs(noise=0.2, batch=16, seed=1), pytest.approx(0.1, abs=0.01), "repeats: 23", {}),
    "steadiness": (odd(more={"flags": "not_steady"}), None, "measure_steps: 500", {}),
    "start-up": (odd(more={"startup_seconds": 100.0}), 100, "", {"seconds": pytest.approx(2000)}),
}  # fmt: skip


@pytest.mark.parametrize("topic", SYMPTOMS)
def test_a_planted_cause_is_found_and_no_other(topic: str) -> None:
    planted, figure, action, facts = SYMPTOMS[topic]
    found = advised(runs(), planted)
    advice = found[topic]
    assert advice.evidence.runs == len(planted) * (2 if topic == "repeats" else 1)
    assert (advice.evidence.ratio, advice.action, advice.facts) == (figure, action, facts)
    assert set(found) & BAD - {topic, "next"} == set()
    assert "{" not in sentence(topic, runs(), planted)


def test_runs_that_heat_slowed_down_are_compared_with_nothing() -> None:
    found = advise(table(runs(), runs(0.5, precision="bf16", more={"flags": "throttled", "throttled_share": 0.5})))
    assert [(advice.topic, advice.first) for advice in found] == [("throttled", True), ("next", False)]


def test_a_straggler_that_chance_explains_is_none() -> None:
    given = runs(devices=4, more={"straggler_ratio": 1.3})
    assert "straggler" in advised([one | {"straggler_rank": 1} for one in given])
    moving = [one | {"straggler_rank": i % 4} for i, one in enumerate(given)]
    assert "straggler" not in advised(moving)
    assert "straggler" not in advised(given), "which rank it was is not known"
    pair = runs(devices=2, repeats=3, more={"straggler_ratio": 1.3, "straggler_rank": 1})
    assert "straggler" not in advised(pair), "one of two ranks is the slower one, three times of three"
    once = [given[0] | {"straggler_ratio": 1.3}, *[one | {"straggler_ratio": 1.0} for one in given[1:]]]
    assert "straggler" not in advised(once), "one run of four is chance"
    assert "straggler" not in advised([one | {"parallelism": "pp"} for one in given]), "stages differ by nature"


def over_nodes(ratios: list[float], names: str = "n1 n2 n3 n4", slow: str = "n3", **more: Any) -> Rows:
    fields = {"straggler_node_name": slow, "straggler_node": 2, "node_names": names}
    given = runs(devices=1, num_nodes=len(names.split()), repeats=len(ratios), **more)
    return [one | fields | {"straggler_node_ratio": ratio} for one, ratio in zip(given, ratios, strict=True)]


def test_a_node_that_is_slow_in_most_of_its_runs_is_to_be_left_out() -> None:
    found = advised(over_nodes([1.3, 1.3, 1.3, 1.3, 1.05]))["straggler node"]
    assert (found.facts, found.evidence.runs, found.weak) == ({"node": "n3", "took": 5, "nodes": 4}, 4, False)
    assert found.saving == pytest.approx(1 - 1 / 1.3)
    text = sentence("straggler node", over_nodes([1.3, 1.3, 1.3, 1.3, 1.05]))
    assert text == (
        "Leave out node n3 (in the suite `cluster.exclude: n3`, or salloc --exclude=n3): it takes 1.3 times as long as "
        "the others in 4 of 5 runs."
    )
    assert "straggler node" not in advised(over_nodes([1.3, 1.3, 1.05, 1.05])), "not in most"
    others = over_nodes([1.3, 1.3, 1.3]), over_nodes([1.0] * 9, names="n1 n2", slow="n1", batch=16)
    assert advised(*others)["straggler node"].facts["took"] == 3, "runs without it tell nothing of it"


def test_one_of_two_nodes_is_the_slower_one_by_chance() -> None:
    few = advised(over_nodes([1.3, 1.3, 1.3], names="n3 n4"))["straggler node"]
    assert (few.weak, few.saving, few.limits) == (True, None, ("few_runs",))
    said = recommendations(table(over_nodes([1.3, 1.3, 1.3], names="n3 n4")))
    told = next(one for one in said if one.advice.topic == "straggler node")
    assert told.sentence.startswith("Perhaps leave out node n3")
    assert told.limits == ("of 2 nodes, chance may pick one that often: run it again before acting on it",)
    assert not advised(over_nodes([1.3] * 6, names="n3 n4"))["straggler node"].weak


def test_another_parallelism_that_waits_less() -> None:
    def waits(share: float, factor: float = 1, **spec: Any) -> Rows:
        return runs(factor, devices=2, more={"exposed_communication_share": share}, **spec)

    slow = waits(0.4, 0.5, parallelism="fsdp2")
    better = advised(slow, waits(0.05))["communication"]
    assert (better.action, better.facts) == ("parallelism: ddp", {"parallelism": "ddp", "share": 0.05})
    for other in (
        (slow, waits(0.05, 0.4)),
        (slow, waits(0.05, preset="small")),
        (waits(0.16, preset="small"), waits(0.06)),
    ):
        advice = advised(*other)["communication"]
        assert (advice.action, advice.saving, advice.limits[0]) == ("", None, "untested")


def test_memory_to_spare_is_no_advice_where_a_larger_batch_was_measured() -> None:
    assert advise(table([one | {"memory_available_bytes": 1e10} for one in [*runs(), *runs(batch=32)]])) == []


def test_one_run_tells_what_to_run_next() -> None:
    (only,) = advise(table(runs(repeats=1)))
    assert only.topic == "next"
    (open_,) = advise(table(runs(repeats=1), runs(9, repeats=1, precision="bf16")))
    assert (open_.action, open_.evidence.measure, open_.evidence.ratio) == ("repeats: 3", "one repeat each", None)


def test_how_many_repeats_would_tell_is_one_rule() -> None:
    given = table(runs(noise=0.05, seed=3), runs(0.93, precision="bf16", noise=0.05, seed=5))
    (advice,) = advise(given)
    (effect,) = within(given, ["samples_per_second"]).comparisons[0].effects
    assert effect.more_repeats is not None
    assert advice.action == f"repeats: {4 + effect.more_repeats}"
    (change,) = advice.changes
    assert (change.title, change.more_repeats("time")) == ("precision bf16", effect.more_repeats)
    noisy = [*runs(noise=0.3), *runs(precision="bf16", noise=0.3)]
    (longer,) = advise(frame(noisy))
    assert (longer.claim, longer.action) == ("measure longer", "measure_steps: 500")
    few = ("config_id", "suite", "execution", "status", "samples_per_second", "precision")
    bare, *_ = advise(frame([{name: one.get(name) for name in few} | {"flags": "not_steady"} for one in noisy]))
    assert (bare.topic, bare.action) == ("repeats", "")


BUSY = {"flags": "short_window noisy_host"}


@pytest.mark.parametrize(("repeats", "more", "limit"), [(2, {}, "few_repeats"), (4, BUSY, "disturbed")])
def test_thin_evidence_makes_no_imperative(repeats: int, more: dict[str, Any], limit: str) -> None:
    """It is told as a guess, below the advice to measure better, with nothing to set."""
    keep: dict[str, Any] = {"repeats": repeats, "more": more}
    options = runs(1.5, precision="bf16", **keep), runs(0.5, memory="recompute", **keep)
    others = runs(0.5, compile="default", **keep), runs(0.45, devices=2, **keep)
    given = table(runs(**keep), *options, *others)
    found = advise(given)
    guesses = {one.topic: one for one in found if one.weak}
    assert [one.weak for one in found] == sorted(one.weak for one in found)
    claims = {"precision": "use", "memory": "avoid", "compile": "avoid", "devices": "stop"}
    assert {topic: one.claim for topic, one in guesses.items()} == claims
    assert {(one.action, one.saving, one.limits[0]) for one in guesses.values()} == {("", None, limit)}
    assert ("steadiness" in {one.topic for one in found}) == bool(more)
    texts = [one.sentence for one in recommendations(given) if one.advice.weak]
    assert all(text.startswith("Perhaps ") for text in texts)


def test_a_busy_machine_makes_guesses_of_symptoms() -> None:
    waits = advised(runs(more=BUSY | {"data_wait_share": 0.4}))["input"]
    slow = advised(runs(devices=4, more=BUSY | {"straggler_ratio": 1.3, "straggler_rank": 3}))["straggler"]
    assert {(one.action, one.saving, one.weak) for one in (waits, slow)} == {("", None, True)}


def test_ratios_in_words() -> None:
    assert ratio_words(Interval(0.76, 0.72, 0.8, 3), "time") == "24.0 % (20.0-28.0) less time"
    assert ratio_words(Interval(1.9, None, None, 1), "time") == "90 % more time"
    assert ratio_words(Interval(1234.5, 1200, 1300, 3), "time") == "1,230 (1,200-1,300) times the time"


@pytest.mark.parametrize("value", [0.0, -1.0, None])
def test_a_run_that_does_not_know_its_speed_is_compared_with_nothing(value: float | None) -> None:
    odd_one = [*FASTER]
    odd_one[2] = odd_one[2] | {"samples_per_second": value}  # type: ignore[dict-item]
    assert "precision" not in advised(runs(), odd_one)


@pytest.mark.parametrize(
    "column", ["config_id", "devices", "batch_size_per_device", "flags", "label", "repeat", "window_seconds"]
)
def test_tables_that_lack_a_column(column: str) -> None:
    given = [*runs(), *FASTER, *runs(0.5, devices=2)]
    found = advise(frame([{name: value for name, value in one.items() if name != column} for one in given]))
    assert any(one.topic == "precision" for one in found) == (column != "config_id")
    few = ("config_id", "suite", "execution", "status", "samples_per_second", "precision")
    (only,) = advise(frame([{name: one[name] for name in few} for one in given[:8]]))
    assert (only.claim, only.action) == ("use", "precision: bf16")


def test_nothing_ended_well() -> None:
    (only,) = advise(table(runs(repeats=3, status=Status.SKIPPED, message="no GPU")))
    assert (only.topic, only.evidence.runs, only.facts) == ("skipped", 3, {"message": "no GPU"})
    (lost,) = advise(table(runs(repeats=1, status=Status.OUT_OF_MEMORY)))
    assert (lost.topic, lost.action) == ("out of memory", "memory: recompute")
    assert advise(frame([])) == []


def test_at_most_ten_and_those_that_save_most_first() -> None:
    planted = [
        one | {"warmup_steps": 10 + i, "config_id": f"{i}"}
        for i, (given, *_) in enumerate(SYMPTOMS.values())
        for one in given
    ]
    options = runs(3, attention="efficient"), runs(0.5, memory="selective"), runs(2, compile="default")
    found = advise(table(CLEAN, planted, *options))
    assert len(found) == 10
    firsts = [advice.first for advice in found]
    assert firsts == sorted(firsts, reverse=True)
    savings = [advice.saving or 0 for advice in found if not advice.first]
    assert savings == sorted(savings, reverse=True)


@pytest.mark.parametrize(("repeats", "count"), [(3, 12), pytest.param(3, 25, marks=pytest.mark.slow)])
def test_noise_alone_gives_no_gain(repeats: int, count: int) -> None:
    """Of clean executions with three configurations that are all the same, at most 5 % claim any gain."""
    other: list[dict[str, Any]] = [{"precision": "bf16"}, {"memory": "recompute"}, {}]
    given = table(*(runs(repeats=repeats, noise=0, **spec) for spec in other))
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(count):
        factor = np.exp(random.normal(0, 0.03, len(given)))
        given["samples_per_second"], given["joules_per_sample"] = 20 * factor, 5 / factor
        given["peak_memory_bytes"] = 1e9 * np.exp(random.normal(0, 0.05, len(given)))
        wrong += any(one.saving or one.claim in ("use", "consider", "pay") for one in advise(given))
    assert wrong <= 0.05 * count


def test_columns_that_advice_rests_on() -> None:
    gpus = [Gpu(index=i, uuid=f"GPU-{i}", name="X", memory_bytes=10**10 * (i + 1)) for i in range(2)]
    made = rows.record(2)
    machine = Machine(cpu_model="X", cpu_count=2, gpus=gpus)
    ranks = [Rank(rank=i, device=f"GPU-{i}", window_seconds=1, forward_seconds_median=1 + i) for i in range(2)]
    assert made.measurement is not None
    made = made.model_copy(
        update={
            "devices": ["GPU-0", "GPU-1"],
            "spec": made.spec.model_copy(update={"device_type": "gpu"}),
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


@pytest.mark.slow
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
    assert " 1. Use bf16 instead of fp32 (precision: bf16)" in done.output
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


SLOW = """
import time
from bench.workloads.decoder_lm import DecoderLM
from bench.workloads.text import Windows
class Slow(Windows):
    def fetch(self, indices, seed):
        time.sleep(0.2)
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
  workload_args: {preset: tiny, sequence_length: 64}
  device_type: cpu
  batch_size_per_device: 4
  warmup_seconds: 0
  measure_steps: 8
  validation.samples: 0
  memory_limit_bytes: 20000000000
  meters: []
include:
  - {}
  - {workload: slow_lm, batch_size_per_device: 1, measure_steps: 5}
  - {batch_size_per_device: max, memory_limit_bytes: 2000000}
repeats: 3
"""


@pytest.mark.slow
def test_planted_causes_in_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow loader, memory to spare and none; nothing of heat, of stragglers, or of this machine's speeds."""
    (tmp_path / "slowdata.py").write_text(SLOW)
    info = tmp_path / "slowdata-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slowdata\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wattbench.workloads]\nslow_lm = slowdata:SlowLM\n")
    (tmp_path / "planted.yaml").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    registry.names.cache_clear()
    empty_store(tmp_path)
    done = execute(tmp_path, "run", "planted.yaml")
    registry.names.cache_clear()
    assert "9/9" in done.stderr, done.stderr
    answer = bench("advise", "planted", "--json")
    assert answer.exit_code == 0, answer.stderr
    (document,) = json.loads(answer.stdout)["executions"]
    found = {one["topic"]: one for one in document["advice"]}
    assert "training waits for data" in found["input"]["sentence"]
    assert found["input"]["evidence"]["configurations"] != []
    assert found["input"]["evidence"]["runs"] == 3
    assert found["memory to spare"]["action"] == "batch_size_per_device: max"
    assert "does not fit into memory" in found["out of memory"]["sentence"]
    assert not {"throttled", "shared", "failures"} & set(found)


def test_advice_on_a_measured_command_is_in_the_options_of_bench_measure() -> None:
    busy = [row | {"open_devices": True, "flags": "noisy_host"} for row in runs()]
    found = advised(busy)
    assert "next" not in found, "one measurement has nothing to vary"
    assert found["steadiness"].action.startswith(("--seconds ", "--steps "))
    ended_by_itself = [row | {"workload": "command", "workload_args.argv": "x", "measure_steps": None} for row in busy]
    assert advised(ended_by_itself)["steadiness"].action == "", "no option makes it train longer"
    failed = rows.make(repeat=9, status=Status.FAILED, message="no file") | {"open_devices": True}
    assert "failed command" in advised(busy, [failed])
    assert "next" in advised(runs())


def test_commands_are_told_only_what_they_can_be_told() -> None:
    """A command has no `memory`, and its batch is not searched for; it has what its text names, and own arguments."""

    def of(rows_: Rows, amp: str, **more: Any) -> Rows:
        command = {
            "workload": "command",
            "workload_args.argv": "train {amp}",
            "workload_args.amp": amp,
            "parallelism": None,
        }
        return [one | command | {"config_id": amp, "run_id": f"{amp}{one['repeat']}"} | more for one in rows_]

    slow, fast = of(runs(), "fp32"), of(runs(1.5), "bf16")
    room = {"memory_available_bytes": 1e11}
    lost = of([rows.make(status=Status.OUT_OF_MEMORY, message="no room", precision="bf16")], "fp32")
    suite = advised(of(runs(), "fp32", **room), fast)
    assert suite["amp"].action == "workload_args.amp: bf16"
    assert suite["memory to spare"].action == ""
    assert advised(lost)["out of memory"].action == ""
    measured = [[one | {"open_devices": True} for one in part] for part in (slow, fast, lost)]
    assert advised(*measured[:2])["amp"].action == "--set amp=bf16"
    assert advised(measured[2])["out of memory"].action == ""
    assert advised(runs(), [rows.make(status=Status.OUT_OF_MEMORY, precision="bf16")])["out of memory"].action != ""


def trained_by_command(loss: float | None) -> list[Rows]:
    fields = {"workload": "command", "workload_args.argv": "train {precision}", "suite": "own", "loss_median": loss}
    return [[one | fields for one in part] for part in (runs(), FASTER)]


@pytest.mark.parametrize(("loss", "limit"), [(2.0, "quality_of_command"), (None, "loss_unknown")])
def test_the_loss_of_a_command_is_compared_or_is_to_be_reported(loss: float | None, limit: str) -> None:
    given = trained_by_command(loss)
    assert advised(*given)["precision"].limits == (limit,)
    (text,) = next(one.limits for one in recommendations(table(*given)) if one.advice.topic == "precision")
    if loss is None:
        assert "bench " not in text
        assert "wattbench.step(loss=...)" in text
        assert "(?P<loss>...)" in text
    else:
        assert text.endswith("bench compare own --metric loss_median")


def test_every_command_in_an_advice_is_complete() -> None:
    """A command stands at the end of a text; those that are made for the runs are made here."""
    made = [text for one in recommendations(table(*trained_by_command(2.0))) for text in one.limits]
    texts = [*made, *(text for part in definitions("advice").values() for text in part.values())]
    commands = [shlex.split(text[text.index("bench ") :])[1:] for text in texts if re.search(r"\bbench [a-z]", text)]
    assert ["compare", "own", "--metric", "loss_median"] in commands
    for verb, *words in commands:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None, verb
        command.make_context(verb, words)  # it refuses what lacks an argument


def test_a_command_that_lacks_an_argument_would_be_refused() -> None:
    command = cli.get_command(click.Context(cli), "compare")
    assert command is not None
    with pytest.raises(click.MissingParameter):
        command.make_context("compare", ["--metric", "loss_median"])
