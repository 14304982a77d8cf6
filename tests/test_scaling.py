"""The fit of the law to planted rows: v, its interval, losses, sizes, and what cannot be identified."""

import json
import math

import pandas as pd
import pytest

from analytics.judge.matched import Changes
from analytics.law import law as laws
from analytics.law.series import Host, ScalingFit, SeriesFit, fit
from analytics.runs.frame import frame
from analytics.say.law import FLAGS, series_sentences
from bench.record import Status
from bench.schema import Scalar
from tests import rows

Rows = list[dict[str, Scalar]]


def only(given: Rows) -> SeriesFit:
    found = fit(frame(given))
    assert len(found.series) == 1
    return found.series[0]


def test_planted_v_is_found() -> None:
    found = only(rows.grid())
    assert found.v.value == pytest.approx(rows.V, rel=0.01)
    assert (found.v.low or math.inf) < rows.V < (found.v.high or 0)
    assert found.error_max < 0.02
    assert (found.loss, found.breaks_at) == ("none visible", None)
    assert "work_and_devices_confounded" not in found.flags
    assert {point.scaling for point in found.efficiency} == {"weak"}
    assert found.plain_v == pytest.approx(rows.V / 600, rel=0.01), "a parameter is planted to cost 600 FLOP a sample"
    assert [point.repeats for point in found.points] == [4] * 6


def test_v_counts_configurations_and_not_runs() -> None:
    many = [rows.make(1, repeat=r, v=1e9) for r in range(9)]
    assert only([*many, rows.make(2, v=4e9)]).v.value == pytest.approx(2e9), (
        "the geometric mean of two, however often repeated"
    )


def test_interval_of_v_is_students_over_configurations() -> None:
    found = only([rows.make(d, v=v) for d, v in ((1, 1e9), (2, 2e9), (4, 4e9))])
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert found.v.value == pytest.approx(2e9)
    assert (found.v.low, found.v.high) == pytest.approx((2e9 * math.exp(-half), 2e9 * math.exp(half)))


def test_errors_of_the_law() -> None:
    found = only([rows.make(d, v=v) for d, v in ((1, 1e9), (2, 2e9), (4, 4e9))])
    assert [point.error for point in found.points] == pytest.approx([-0.5, 0.0, 1.0]), (
        "T_law / T - 1 = v_measured / v - 1"
    )
    assert (found.error_median, found.error_max) == pytest.approx((0.5, 1.0))
    assert (found.left_out_median, found.left_out_max) == pytest.approx((1 - 1 / math.sqrt(8), math.sqrt(8) - 1)), (
        "v of the other two"
    )


def test_planted_loss_is_found_where_it_begins() -> None:
    found = only(rows.grid((1, 2, 4, 8), loss={4: 0.85, 8: 0.6}))
    assert (found.loss, found.breaks_at) == ("visible", 4)
    for point in found.efficiency:
        truth = {2: 1.0, 4: 0.85, 8: 0.6}[point.devices]
        assert point.value == pytest.approx(truth, rel=0.01)
        low, high = point.low or math.inf, point.high or 0.0
        assert low < point.value < high < 1.03 * low


def test_loss_without_repeats_cannot_be_told() -> None:
    found = only(rows.grid(loss={4: 0.5}, repeats=1))
    assert (found.loss, found.breaks_at) == ("cannot tell", None)
    assert all(point.low is None for point in found.efficiency)
    assert "some_without_repeats" in found.flags


def test_noise_is_not_called_a_loss() -> None:
    false = sum(only(rows.grid((1, 2), ("tiny",), noise=0.1, repeats=3, seed=s)).loss == "visible" for s in range(15))
    assert false <= 1


def test_strong_scaling_is_recognised() -> None:
    found = only([rows.make(d, repeat=r, batch=16 // d, v=rows.V / d**0.2) for d in (1, 2, 4) for r in range(2)])
    assert {point.scaling for point in found.efficiency} == {"strong"}
    assert {point.devices: point.value for point in found.efficiency} == pytest.approx({2: 2**-0.2, 4: 4**-0.2})
    assert "batch 16 in all" in found.efficiency[0].curve


def test_different_work_on_different_devices_is_not_comparable() -> None:
    found = only([rows.make(1, "tiny"), rows.make(2, "small")])
    assert found.loss == "not measured"
    assert found.efficiency == ()
    assert "work_and_devices_confounded" in found.flags


def test_single_device_count_is_not_identified() -> None:
    found = only(rows.grid((2,)))
    assert found.efficiency == ()
    assert "devices_not_identified" in found.flags


def test_observations_are_what_a_law_is_fitted_to() -> None:
    found = only(rows.grid(noise=0.05))
    seen = found.observations()
    assert len(seen) == len(found.points) == 6
    assert seen["speed"].tolist() == pytest.approx([point.v.value * point.devices for point in found.points])
    assert (seen["samples_per_device"] == seen["batch_size_per_device"]).all()
    assert seen["spread"].nunique() == 1, "pooled over configurations"
    assert seen["spread"].iloc[0] == pytest.approx(0.05 / 2, rel=0.4)
    one = laws.fit(seen, plain=True).predict(pd.DataFrame({"devices": [1]}))
    assert one["speed"].iloc[0] == pytest.approx(found.v.value)


def test_an_outlier_is_named() -> None:
    given = [rows.make(d, p, v=rows.V * (0.8 if (d, p) == (4, "tiny") else 1)) for d in (1, 2, 4) for p in rows.SIZES]
    found = only(given)
    worst = max(found.points, key=lambda point: abs(point.error))
    assert worst.name == "preset=tiny d=4"
    assert "tiny 4 devices" in " ".join(series_sentences(found))


def test_size_effect() -> None:
    given = [
        rows.make(1, p, repeat=r, v=v * (1 + r / 100)) for p, v in (("tiny", 1e9), ("small", 3e9)) for r in range(3)
    ]
    found = only(given)
    assert found.size_effect is not None
    assert found.size_effect.value == pytest.approx(3.0)
    assert [point.v.value for point in found.by_work] == pytest.approx([1e9, 3e9], rel=0.02)
    assert found.size_effect.excludes()
    level = only(rows.grid((1,), noise=0.01)).size_effect
    assert level is not None
    assert not level.excludes()


@pytest.mark.parametrize(
    ("factor", "repeats", "noise", "verdict"),
    [
        (1.5, 3, 0.01, "better"),
        (0.7, 3, 0.01, "worse"),
        (1.0, 5, 0.001, "equivalent"),
        (1.02, 2, 0.1, "cannot tell"),
        (1.5, 1, 0.01, "cannot tell"),
    ],
)
def test_gain_of_precision(factor: float, repeats: int, noise: float, verdict: str) -> None:
    table = frame(rows.grid((1, 2), precisions={"bf16": factor, "fp32": 1.0}, repeats=repeats, noise=noise))
    assert len(fit(table).series) == 2
    changes = Changes(table)
    (change,) = (one for one in changes if one.topic.name == "precision")
    assert (change.option, change.baseline, len(change.cells)) == ("bf16", "fp32", 4)
    assert change.verdict("time") == verdict
    assert (change.ratio("time").low is None) == (repeats == 1)
    if noise < 0.1:
        assert 1 / change.ratio("time").value == pytest.approx(factor, rel=0.03)


def test_devices_are_compared_across_nodes_and_divisions_among_nodes_too() -> None:
    places = {(1, 1): 1.0, (2, 1): 1.0, (4, 1): 1.0, (2, 2): 0.8, (4, 2): 0.8}
    given = [
        rows.make(each, repeat=repeat, num_nodes=nodes, v=1e9 * share * (1 + 0.002 * repeat))
        for (each, nodes), share in places.items()
        for repeat in range(3)
    ]
    changes = {(one.option, one.baseline): one for one in Changes(frame(given))}
    chain = [("2 devices", "1 device"), ("4 devices", "2 devices"), ("8 devices", "4 devices")]
    assert [*changes] == [*chain, ("2 nodes", "1 node")]
    speeds = [1 / change.ratio("time").value for change in changes.values()]
    assert speeds == pytest.approx([2, 2, 1.6, 0.8], rel=0.01)
    assert changes["8 devices", "4 devices"].action == "devices: 8"
    assert changes["2 nodes", "1 node"].action == "layout: 2x2"


def test_precisions_on_different_hosts_are_not_compared() -> None:
    given = rows.grid((1, 2)) + rows.grid((1, 2), precisions={"bf16": 2.0}, host="another")
    found = fit(frame(given))
    assert len(found.series) == 2
    assert [one for one in Changes(frame(given)) if one.topic.name == "precision"] == []


def test_executions_are_series_of_their_own_with_names_apart() -> None:
    found = fit(frame(rows.grid() + rows.grid(execution="later")))
    assert len({series.name for series in found.series}) == 2


def test_failures_and_missing_energy_do_not_matter() -> None:
    clean = only(rows.grid(readings=""))
    failed = [rows.make(8, status=status) for status in Status if status is not Status.OK]
    assert only(rows.grid(readings="") + failed).v == clean.v


@pytest.mark.parametrize("given", [[], [rows.make(status=Status.FAILED)], [{"status": "ok"}]])
def test_nothing_to_fit(given: Rows) -> None:
    assert fit(frame(given)) == ScalingFit(())


def test_one_run() -> None:
    found = only([rows.make()])
    assert (found.v.low, found.left_out_median) == (None, None)
    assert {"one_configuration", "devices_not_identified", "some_without_repeats"} <= set(found.flags)


@pytest.mark.parametrize("given", [rows.grid(precisions={"fp32": 1, "bf16": 2}), [rows.make()], []])
def test_json_holds_only_json(given: Rows) -> None:
    found = fit(frame(given))
    text = json.dumps(found.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert [series["v"] for series in back["series"]] == [series.v.value for series in found.series]
    if len(given) == 1:
        assert back["series"][0]["v_low"] is None


def test_every_flag_has_words() -> None:
    for given in (rows.grid(), [rows.make()], [rows.make(1, "tiny"), rows.make(2, "small")]):
        found = only(given)
        told = found.law().predict(pd.DataFrame({"devices": [99], "work": [1e20]}))["flags"].iloc[0].split()
        assert set(found.flags) | set(told) <= set(FLAGS)


def test_hostile_names_come_out_as_one_printable_line() -> None:
    evil = {"workload_args.preset": "\x1b[2Jx\ny", "device_name": rows.HOSTILE, "precision": rows.HOSTILE_LINK}
    other = {"workload_args.preset": "\x00", "device_name": rows.HOSTILE, "config_id": "b"}
    found = fit(frame([rows.make(repeat=r) | evil for r in range(2)] + [rows.make(2) | other]))
    assert all(line.isprintable() for series in found.series for line in series_sentences(series))


def test_the_machine_of_a_series_is_known() -> None:
    found = only(rows.grid((1, 2), cores=4, threads_per_device=2))
    assert found.host == Host(2, 2, shares=True)
    assert [found.host.flags(d) for d in (1, 2, 3)] == [(), (), ("beyond_this_machine",)]
    assert fit(frame(rows.grid((1, 2), cores=4))).to_dict()["series"][0]["host"]["devices"] == 4
    older = only([row | {"machine_devices": None} for row in rows.grid((1, 2))])
    assert older.host == Host(None, 2, shares=True)
    assert [older.host.flags(d) for d in (2, 4)] == [(), ("beyond_measured_host",)]
    node = only([row | {"device_type": "gpu", "machine_devices": 8} for row in rows.grid((1, 2))])
    assert node.host == Host(8, 2, shares=False)
    assert [node.host.flags(d) for d in (8, 16)] == [(), ("beyond_this_machine",)]
    cluster = only([row | {"device_type": "gpu", "machine_devices": 8, "num_nodes": 2} for row in rows.grid((2, 4))])
    assert cluster.host.devices is None, "a cluster may have any number of nodes"
    assert cluster.host.flags(64) == ()
