"""Flags and grades: each is planted once, and speed is called steady when it is."""

import itertools
import random
import typing
from typing import Any

import pytest

from bench.figures import flags as quality
from bench.figures.flags import FLAGS, STEP_FLAGS, grade, judge, loss_medians, meaning, site_flags, steady
from bench.figures.metrics import window
from bench.record import EnergyReading, GpuConditions, HostConditions, IdlePower, Provenance, Rank, RunRecord, Status
from bench.schema import Choice, Gpu, Machine, RunSpec, Site
from tests import rows

UUID = "GPU-0"


def parts() -> list[EnergyReading]:
    devices = (("gpu", UUID), ("cpu", "p0"), ("dram", "p0:0"))
    return [rows.reading(20_000, Provenance.MEASURED_COUNTER_INTERP, *device, seconds=100) for device in devices]


def good(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> RunRecord:
    """Return a record of a GPU run that has no flag, with changes of its measurement or its idle power."""
    monkeypatch.setattr(quality, "fresh", lambda uuid, driver: True)
    gpu = Gpu(index=0, uuid=UUID, name="NVIDIA Synthetic", foreign_memory_bytes=0)
    base = rows.record(readings="")
    noise = random.Random(1)  # noqa: S311
    of_measurement = {
        "window_seconds": 100.0,
        "steps": 1000,
        "step_seconds": [0.1 * noise.gauss(1, 0.01) for _ in range(1000)],
        "energy": parts(),
        "gpus": [GpuConditions(device=UUID, shared=False, temperature_celsius_drift=1, sm_clock_drift=0.001)],
        "host": HostConditions(load_average=1, steal_share=0.0, other_share=0.01),
        "ranks": [Rank(rank=r, window_seconds=100, forward_seconds_median=0.03) for r in range(2)],
    }
    own = {name: changes.pop(name) for name in ("idle",) if name in changes}
    machine = Machine(cpu_model="Synthetic", cpu_count=8, gpus=[gpu], driver_version="1")
    of_record = {
        "spec": RunSpec.model_validate(base.spec.model_dump() | {"device_type": "gpu"}),
        "devices": [UUID],
        "idle": [
            IdlePower(component=r.component, device=r.device, power_watts=50, seconds=30, provenance=r.provenance)
            for r in parts()
        ],
        "environment": base.environment.changed(machine=machine),
        "measurement": base.measurement.changed(**(of_measurement | changes)),
    }
    return base.changed(**(of_record | own))


def flags(record: RunRecord, site: Site | None = None, *, meter_failed: bool = False) -> list[str]:
    return sorted(judge(record, window(record), meter_failed=meter_failed) | site_flags(site or Site()))


def test_a_record_without_any_flag_is_fit_to_be_published(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flags(good(monkeypatch), Site(region="FR", pue=1.2)) == []
    assert grade([]) == "A"


def with_(component: str, **more: Any) -> list[EnergyReading]:
    return [r.changed(**more) if r.component == component else r for r in parts()]


def gpu_(**more: Any) -> dict[str, Any]:
    return {"gpus": [GpuConditions(device=UUID, **({"shared": False} | more))]}


def ranks(*forward: float) -> dict[str, Any]:
    return {"ranks": [Rank(rank=i, window_seconds=100, forward_seconds_median=s) for i, s in enumerate(forward)]}


def probes(*speeds: float, spread: float = 0.0) -> dict[str, Any]:
    return {"ranks": [Rank(rank=0, window_seconds=100, matmul_flops_per_second=list(speeds), matmul_spread=spread)]}


MODEL = rows.energy(False, 100, 5000)

PLANTED: list[tuple[str, str, dict[str, Any]]] = [
    ("shared_gpu", "C", gpu_(shared=True)),
    ("throttled", "C", gpu_(throttled_share={"hw_thermal": 0.011})),
    ("gap", "C", {"energy": with_("cpu", flags=["gap"])}),
    ("window_too_short", "C", {"energy": with_("gpu", flags=["window_too_short"])}),
    ("energy_partly_covered", "C", {"energy": with_("gpu", coverage=0.97)}),
    ("mig_shared", "C", {"energy": with_("gpu", flags=["mig_shared"])}),
    ("loss_not_decreasing", "C", {"loss_last": 5.0}),
    ("loss_not_decreasing", "C", {"loss_last": None}),
    ("above_matmul_peak", "C", probes(1.0)),
    ("exclusivity_unknown", "B", gpu_(shared=None)),
    ("sampled_power", "B", {"energy": with_("gpu", flags=["sampled_power"])}),
    ("counter_reset", "B", {"energy": with_("gpu", flags=["counter_reset"])}),
    ("counter_stuck", "B", {"energy": with_("gpu", flags=["counter_stuck"])}),
    ("energy_absent", "B", {"energy": []}),
    ("energy_estimated", "B", {"energy": MODEL}),
    ("partial_total", "B", {"energy": parts()[:2]}),
    ("partial_total", "B", {"energy": parts()[1:]}),
    ("idle_unknown", "B", {"idle": []}),
    ("short_window", "B", {"window_seconds": 59.0}),
    ("short_window", "B", {"step_seconds": [2.1] * 49}),
    ("not_steady", "B", {"step_seconds": [0.1] * 500 + [0.2] * 500}),
    ("not_steady", "B", gpu_(temperature_celsius_drift=-2.1)),
    ("not_steady", "B", gpu_(sm_clock_drift=-0.021)),
    ("noisy_host", "B", {"host": HostConditions(steal_share=0.021)}),
    ("noisy_host", "B", {"host": HostConditions(other_share=0.051)}),
    ("noisy_host", "B", probes(1e15, 0.97e15)),
    ("straggler", "B", ranks(0.10, 0.10, 0.12)),
    ("straggler", "B", ranks(0.10, 0.12)),
    *((flag, FLAGS[flag].grade, {"step_flags": [flag]}) for flag in (*STEP_FLAGS, "ended_early")),
]


@pytest.mark.parametrize(
    ("flag", "best", "changes"), PLANTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_mistake_has_its_flag_and_no_other(
    monkeypatch: pytest.MonkeyPatch, flag: str, best: str, changes: dict[str, Any]
) -> None:
    assert flags(good(monkeypatch, **changes)) == [flag]
    assert (FLAGS[flag].grade, grade([flag])) == (best, best)


def test_flags_that_depend_on_more_than_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    record = good(monkeypatch)
    assert flags(record, meter_failed=True) == ["meter_failed"]
    for site in (Site(region="FR"), Site(usd_per_kwh=0.2)):
        assert flags(record, site) == ["pue_unknown"]
    assert flags(record, Site(usd_per_device_hour=2)) == []  # a rent includes cooling power
    monkeypatch.setattr(quality, "fresh", lambda uuid, driver: False)
    assert flags(record) == ["unvalidated_sensor"]


def test_a_command_without_steps_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flags(good(monkeypatch, step_seconds=[], steps=0)) == ["no_steps"]
    assert flags(good(monkeypatch, step_seconds=[0.1] * 11)) == ["short_window", "steady_unknown"]


def test_a_module_has_its_processor_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    module = [parts()[0].changed(scope="module", flags=["module_scope"])]
    assert flags(good(monkeypatch, energy=module)) == ["module_scope"]


def test_memory_of_others_before_the_run_makes_a_gpu_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    record = good(monkeypatch)
    for size, found in ((200 * 2**20, []), (200 * 2**20 + 1, ["shared_gpu"]), (None, [])):
        gpus = [record.environment.machine.gpus[0].changed(foreign_memory_bytes=size)]
        machine = record.environment.machine.changed(gpus=gpus)
        environment = record.environment.changed(machine=machine)
        assert flags(record.changed(environment=environment)) == found


def test_every_flag_but_that_of_repeats_can_be_set() -> None:
    elsewhere = {"meter_failed", "pue_unknown", "unvalidated_sensor", "no_steps", "steady_unknown", "module_scope"}
    elsewhere |= {
        *("energy_components_differ", "lengths_differ", "costs_differ", "carbon_differs"),
        "wide_edges",
        "electricity_unknown",
        *("devices_differ", "precision_differs"),
        "imported",
        *("board_scope", "unverified_meter"),
        "disk_full",
        *("mixed_nodes", "windows_differ", "straggler_node", "tensor_parallel_across_nodes"),
        *("clocks_differ", "other_nodes", "shared_node", "slow_network"),
    }  # by analytics, trace, cost, a command
    assert {flag for flag, *_ in PLANTED} | elsewhere == set(FLAGS)


@pytest.mark.parametrize(
    ("parallelism", "nodes", "each", "flagged"),
    [
        ({"name": "tp"}, 2, 2, True),
        ({"name": "tp"}, 1, 4, False),
        ({"name": "fsdp_tp", "options": {"size": 2}}, 2, 4, False),
        ({"name": "fsdp_tp", "options": {"size": 8}}, 4, 4, True),
        ({"name": "fsdp_tp"}, 4, 1, True),
        ({"name": "fsdp_tp", "options": {"size": 2}}, 2, 3, True),  # the second group has devices of both nodes
        ({"name": "fsdp2"}, 2, 2, False),
        ({"name": "pp"}, 2, 2, False),
    ],
)
def test_layers_that_are_divided_across_nodes_are_flagged(
    monkeypatch: pytest.MonkeyPatch, parallelism: dict[str, Any], nodes: int, each: int, flagged: bool
) -> None:
    record = good(monkeypatch)
    spec = record.spec.changed(parallelism=Choice.model_validate(parallelism), num_nodes=nodes, devices_per_node=each)
    assert ("tensor_parallel_across_nodes" in flags(record.changed(spec=spec))) == flagged


def test_what_stays_below_the_thresholds_has_no_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = gpu_(throttled_share={"hw_thermal": 0.01}, temperature_celsius_drift=2.0, sm_clock_drift=0.02)
    assert flags(good(monkeypatch, **edge)) == []
    assert flags(good(monkeypatch, **gpu_(throttled_share={"sw_power_cap": 1.0}))) == []
    assert flags(good(monkeypatch, host=HostConditions(steal_share=0.02, other_share=0.05))) == []
    assert flags(good(monkeypatch, host=None, ranks=[])) == []
    assert flags(good(monkeypatch, **ranks(0.100, 0.109))) == []
    assert flags(good(monkeypatch, **probes(1e15, 0.97e15, spread=0.04))) == []  # it varies so by itself
    assert flags(good(monkeypatch, energy=with_("gpu", coverage=0.98))) == []
    assert flags(good(monkeypatch, window_seconds=60.0, step_seconds=[1.2] * 50)) == []


def test_an_estimate_beside_measured_energy_does_not_spoil_it(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [MODEL[0].changed(coverage=0.6, flags=["gap"])]
    assert flags(good(monkeypatch, energy=[*parts(), *late])) == []
    assert flags(good(monkeypatch, energy=late)) == ["energy_estimated", "energy_partly_covered", "gap"]


def test_without_meters_nothing_is_said_of_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    record = good(monkeypatch, energy=[])
    assert flags(record.changed(spec=record.spec.changed(meters=[]))) == []


def test_a_run_that_failed_has_no_grade() -> None:
    record = rows.record(status=Status.FAILED)
    assert judge(record, {}, meter_failed=True) == set()


def test_the_worst_flag_makes_the_grade() -> None:
    assert grade([]) == "A"
    assert grade(["short_window", "pue_unknown"]) == "B"
    assert grade(["short_window", "gap", "pue_unknown"]) == "C"
    assert grade(["never heard of"]) == grade(["short_window", "never heard of"]) == "C"
    assert meaning("never heard of") == "see the record"
    assert {flag.grade for flag in FLAGS.values()} <= set(typing.get_args(quality.Grade)) - {"A"}
    assert all(meaning(flag) for flag in FLAGS)


# --- steady state


def speeds(count: int, seed: int, noise: float = 0.01, shape: Any = lambda x: 1.0) -> list[float]:
    source = random.Random(seed)  # noqa: S311
    return [0.25 * shape(i / (count - 1)) * source.gauss(1, noise) for i in range(count)]


def judged_steady(count: int, shape: Any = lambda x: 1.0, noise: float = 0.01) -> float:
    """Share of 200 windows that are called steady."""
    return sum(steady(speeds(count, seed, noise, shape)) is True for seed in range(200)) / 200


@pytest.mark.parametrize("count", [12, 40, 240])
def test_stationary_noise_is_steady(count: int) -> None:
    assert judged_steady(count) >= 0.95


@pytest.mark.parametrize("count", [40, 240])
def test_a_drift_or_a_jump_of_five_percent_is_not_steady(count: int) -> None:
    assert judged_steady(count, lambda x: 1 + 0.05 * x) <= 0.05
    assert judged_steady(count, lambda x: 1 - 0.05 * x) <= 0.05
    assert judged_steady(count, lambda x: 1.05 if x > 0.5 else 1) <= 0.05


def test_a_drift_below_one_percent_and_rare_slow_steps_are_steady() -> None:
    assert judged_steady(240, lambda x: 1 + 0.005 * x, noise=0.005) >= 0.95
    assert steady([0.25] * 100 + [0.3] + [0.25] * 139) is True


def test_twelve_steps_are_needed() -> None:
    assert steady([]) is steady([1.0]) is steady([1.0] * 11) is None
    assert steady([1.0] * 12) is True
    assert steady([1.0] * 6 + [2.0] * 6) is False


@pytest.mark.parametrize(
    ("losses", "medians"),
    [
        ([3.0], (3, 3)),
        ([3.0, 2.0], (3, 2)),
        ([3.0, 9.0, 2.9, 2.0, 1.9, 7.0], (3, 2)),
        ([*[5.0] * 20, *[4.0] * 170, *[9.0] * 4, *[3.0] * 6], (5, 4)),
    ],
)
def test_one_unusual_batch_moves_no_median_of_the_losses(losses: list[float], medians: tuple[float, float]) -> None:
    assert loss_medians(losses) == medians


@pytest.mark.parametrize(("last", "medians", "flagged"), [(9.0, (5, 4.9), False), (1.0, (5, 5.1), True)])
def test_the_loss_is_judged_by_its_medians(last: float, medians: tuple[float, float], flagged: bool) -> None:
    record = rows.record()
    judged = record.changed(measurement=record.measurement.changed(loss_last=last, loss_medians=medians))
    assert ("loss_not_decreasing" in judge(judged, window(judged))) == flagged


def test_a_loss_that_was_low_before_may_stay_where_it_is() -> None:
    record = rows.record()
    trained = (record.spec.changed(needs="x"), record.spec.changed(workload_args={"pretrained": "/weights"}))
    for spec, (last, flagged) in itertools.product(trained, ((5.2, False), (6.0, True))):
        measured = record.measurement.changed(loss_last=last)
        judged = record.changed(measurement=measured, spec=spec)
        assert ("loss_not_decreasing" in judge(judged, window(judged))) == flagged
