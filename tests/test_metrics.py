"""Derived numbers: throughput, energy, MFU; and carbon and cost with their factors."""

from typing import Any

import pytest
from pydantic import ValidationError

from bench.figures.carbon import carbon
from bench.figures.cost import cost, recost
from bench.figures.metrics import headline, labels, metrics, missing_components, parameters, peak_flops, row, systematic
from bench.figures.regions import intensity
from bench.record import (
    GpuConditions,
    IdlePower,
    Inference,
    Phase,
    Provenance,
    Quality,
    Rank,
    RunRecord,
    Status,
)
from bench.schema import Gpu, Machine, RunSpec, Site
from tests import rows
from tests.rows import measured, reading


def metrics_with(**changes: Any) -> dict[str, float]:
    return metrics(measured(rows.record(), **changes))


def on_gpus(record: RunRecord, name: str, precision: str, flops_per_device: float) -> RunRecord:
    """Return the record as if it had been run on GPUs of this name, each doing so many FLOP/s."""
    found = [Gpu(index=i, uuid=f"GPU-{i}", name=name) for i in range(record.spec.world_size)]
    machine = Machine(cpu_model="Synthetic", cpu_count=8, gpus=found)
    spec = RunSpec.model_validate(record.spec.model_dump() | {"device_type": "gpu", "precision": precision})
    seconds = record.measurement.samples * record.measurement.flops_per_sample / (spec.world_size * flops_per_device)
    environment = record.environment.changed(machine=machine)
    changed = record.changed(spec=spec, devices=[gpu.uuid for gpu in found], environment=environment)
    return measured(changed, window_seconds=seconds)


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 1), (4, 1), (2, 3)])
def test_throughput_counts_all_devices_and_micro_batches(devices: int, accumulation: int) -> None:
    record = rows.record(devices, gradient_accumulation_steps=accumulation)
    found = metrics(record)
    samples = 100 * 8 * devices * accumulation
    assert found["samples_per_second"] * record.measurement.window_seconds == pytest.approx(samples)
    assert found["tokens_per_second"] == pytest.approx(128 * found["samples_per_second"])
    assert found["samples_per_second_per_device"] * devices == pytest.approx(found["samples_per_second"])
    assert found["flops_per_second_per_device"] == pytest.approx(rows.V)
    assert found["flops_per_token"] * 128 == pytest.approx(record.measurement.flops_per_sample)
    assert parameters(record.spec)["devices"] == devices


def test_measured_and_estimated_energy_are_never_added() -> None:
    found = metrics(rows.record(readings="me"))
    assert found["energy_joules_estimated"] == pytest.approx(1.5 * found["energy_joules"])
    assert found["joules_per_sample"] == pytest.approx(found["energy_joules"] / 800)
    assert found["joules_per_sample_estimated"] == pytest.approx(found["energy_joules_estimated"] / 800)
    only_model = metrics(rows.record(readings="e"))
    assert "energy_joules" not in only_model
    assert "joules_per_sample" not in only_model
    nothing = row(rows.record(readings=""))
    assert not [key for key in nothing if "joules" in key or "emissions" in key or "cost" in key]


def test_missing_components_are_named() -> None:
    record = rows.record(readings="m")
    assert labels(record)["energy_missing"] == "dram"
    assert labels(record)["energy_provenance"] == "measured_counter"
    assert labels(on_gpus(record, "NVIDIA H200", "bf16", 1e12))["energy_missing"] == "gpu dram"


def test_mfu_of_a_known_device_and_of_no_other() -> None:
    record = on_gpus(rows.record(2), "NVIDIA H100 80GB HBM3", "bf16", 494.7e12)
    assert metrics(record)["model_flops_utilization"] == pytest.approx(0.5)
    assert "model_flops_utilization" not in metrics(on_gpus(rows.record(2), "NVIDIA H20", "bf16", 1e12))
    assert "model_flops_utilization" not in metrics(rows.record())
    stored = on_gpus(rows.record(2), "NVIDIA H100 80GB HBM3", "bf16_params", 494.7e12)
    assert metrics(stored)["model_flops_utilization"] == pytest.approx(0.5)  # its products are in bf16 too
    narrow = on_gpus(rows.record(2), "NVIDIA H100 80GB HBM3", "fp8", 494.75e12)
    assert metrics(narrow)["model_flops_utilization"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"MFU 2\.00 above 1"):
        metrics(on_gpus(rows.record(2), "NVIDIA H100 80GB HBM3", "bf16", 2 * 989.4e12))


def test_peaks_by_exact_name_only() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA L4", "bf16") != peak_flops("NVIDIA L40S", "bf16")
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == pytest.approx(156e12)
    assert peak_flops("NVIDIA H20", "bf16") is None
    assert peak_flops("H200", "bf16") is None
    assert peak_flops("Tesla T4", "bf16") is None


@pytest.mark.parametrize(
    "changes",
    [{"status": "failed"}, {"measurement": None}, {"duration_seconds": float("nan")}, {"duration_seconds": -1.0}],
)
def test_a_wrong_record_cannot_be_built(changes: dict[str, Any]) -> None:
    record = rows.record()
    with pytest.raises(ValidationError):
        record.changed(**changes)
    for wrong in ({"loss_last": float("inf")}, {"step_seconds": [0.0]}):
        with pytest.raises(ValidationError):
            measured(record, **wrong)


def test_regions() -> None:
    france = intensity("FR")
    assert france.region == "FRA"
    assert france == intensity("fra")
    assert 0.01 < france.kg_per_kwh < 0.12
    assert intensity("PL").kg_per_kwh > 5 * france.kg_per_kwh
    california = intensity("US-CA")
    assert california.kg_per_kwh == pytest.approx(394.769 * 0.45359237 / 1000)
    assert california.year == 2023
    assert "codecarbon 3" in california.source
    for wrong in ("XX", "Narnia", "US-ZZ", "", "QC"):
        with pytest.raises(ValueError, match="not known"):
            intensity(wrong)


def test_carbon_is_three_factors_with_labels() -> None:
    energy = [reading(3.6e6), reading(9e6, Provenance.ESTIMATED_MODEL)]
    found = carbon(energy, Site(region="FR", pue=1.2), gpus=[])
    assert found.energy_joules == 3.6e6  # the estimate is not added
    assert (found.energy_basis, found.energy_missing) == ("measured", ["dram"])
    assert found.emissions_kg == pytest.approx(1.2 * intensity("FR").kg_per_kwh)
    assert found.pue_provenance is Provenance.USER_SUPPLIED
    estimated = carbon(energy[1:], Site(region="FR"), gpus=[])
    assert (estimated.energy_basis, estimated.pue, estimated.pue_provenance) == ("estimated", 1.0, Provenance.ABSENT)
    assert carbon(energy, Site(), gpus=[]) is None
    assert carbon([], Site(region="FR"), gpus=[]) is None


def test_cost_is_rent_or_what_owned_devices_take() -> None:
    rent = cost(Site(usd_per_device_hour=2, price_note="spot, May"), devices=4, seconds=1800, energy=[], gpus=[])
    assert (rent.cost_usd, rent.mode, rent.note) == (pytest.approx(4.0), "rental", "spot, May")
    energy = [reading(7.2e6)]
    power = cost(Site(usd_per_kwh=0.2, pue=1.5), 4, 1800, energy, [])
    assert (power.cost_usd, power.mode) == (pytest.approx(0.6), "owned")
    both = cost(Site(usd_per_kwh=0.2, pue=1.5, usd_capital_per_device_hour=1.1), 4, 1800, energy, ["GPU-7"])
    assert (both.cost_usd, both.energy_missing) == (pytest.approx(0.6 + 2.2), ["gpu", "dram"])
    capital = cost(Site(usd_capital_per_device_hour=1.1), 4, 1800, [], [])
    assert (capital.cost_usd, capital.energy_basis) == (pytest.approx(2.2), None)
    assert cost(Site(), 1, 1, [], []) is None
    assert cost(Site(usd_per_kwh=0.2), 1, 1, [], []) is None
    for owned in ("usd_per_kwh", "usd_capital_per_device_hour"):
        with pytest.raises(ValidationError, match="not both"):
            Site(usd_per_device_hour=1, **{owned: 1})


def test_cost_and_carbon_of_a_million_tokens_come_from_the_window() -> None:
    record = rows.record(2, readings="m")
    found = metrics(record)
    tokens = found["tokens_per_second"]
    assert found["cost_usd_per_million_tokens"] == pytest.approx(record.cost.devices * 3.6 / 3600 / tokens * 1e6)
    assert found["emissions_kg_per_million_tokens"] == pytest.approx(found["joules_per_token"] * 1e6 / 3.6e6 * 0.4)


def test_every_gpu_that_was_used_must_have_been_read() -> None:
    readings = [reading(100, component="gpu", device=f"GPU-{i}") for i in range(3)]
    assert missing_components(readings, [f"GPU-{i}" for i in range(4)]) == ["gpu(1/4)", "cpu", "dram"]
    assert missing_components(readings, ["GPU-0", "GPU-1"]) == ["cpu", "dram"]
    assert missing_components([], ["GPU-0"]) == ["gpu", "cpu", "dram"]


def test_a_reading_of_half_the_window_does_not_halve_the_figures() -> None:
    whole = rows.record(readings="m")
    (found,) = whole.measurement.energy
    half = found.changed(energy_joules=found.energy_joules / 2, seconds=found.seconds / 2, coverage=0.5)
    before, after = metrics(whole), metrics(measured(whole, energy=[half]))
    assert after["energy_joules"] == pytest.approx(before["energy_joules"] / 2)
    for name in ("power_watts", "joules_per_sample", "joules_per_token"):
        assert after[name] == pytest.approx(before[name])


def test_cost_of_estimated_energy_says_so() -> None:
    record = rows.record(readings="e")
    power = cost(Site(usd_per_kwh=0.2), 1, 10, record.energy, [])
    assert labels(record.changed(cost=power))["cost_basis"] == "owned_estimated"


# --- energy of a window, a run and its phases


def test_gains_of_one_kind_add_up_and_the_rest_adds_in_quadrature() -> None:
    parts = [
        reading(100, component="gpu", device="GPU-0", gain_share=0.05, uncertainty_joules=1),
        reading(300, component="gpu", device="GPU-1", gain_share=0.05, uncertainty_joules=2),
        reading(50, device="p", gain_share=0.1),
    ]
    assert systematic(parts) == pytest.approx((20**2 + 5**2 + 1 + 2**2) ** 0.5)
    assert systematic([]) == 0
    assert metrics_with(energy=parts)["energy_systematic_joules"] == systematic(parts)


def idle(component: str, device: str, watts: float, context: float | None = None) -> IdlePower:
    return IdlePower(
        component=component, device=device, power_watts=watts, power_watts_context=context, seconds=3,
        provenance=Provenance.MEASURED_COUNTER,
    )  # type: ignore[arg-type]  # fmt: skip


def test_energy_above_idle_takes_the_idle_power_with_a_context() -> None:
    parts = [
        reading(1000, component="gpu", device="GPU-0"),
        reading(500, device="p"),
    ]
    record = measured(rows.record(), energy=parts)
    known = record.changed(idle=[idle("gpu", "GPU-0", 50, 70), idle("cpu", "p", 20), idle("gpu", "GPU-1", 50)])
    found = metrics(known)
    assert found["energy_above_idle_joules"] == pytest.approx(1500 - 700 - 200)  # over 10 s
    assert found["idle_power_watts"] == 120
    for part in ([idle("gpu", "GPU-0", 50, 70)], [idle("cpu", "GPU-0", 50), idle("cpu", "p", 20)], []):
        assert "energy_above_idle_joules" not in metrics(record.changed(idle=part))
    above = record.changed(idle=[idle("gpu", "GPU-0", 150), idle("cpu", "p", 20)])
    assert "energy_above_idle_joules" not in metrics(above)  # negative: idle was not idle


def test_phases_are_summed_by_name_and_startup_is_what_was_paid_before() -> None:
    def part(name: str, start: float, end: float, *joules: float) -> Phase:
        energy = [reading(j, device=f"p{i}") for i, j in enumerate(joules)]
        energy += rows.energy(False, 1, 7)
        return Phase(name=name, start_ns=round(start * 1e9), end_ns=round(end * 1e9), energy=energy)

    parts = [
        part("launch", 0, 1, 10), part("start", 1, 3, 20, 5), part("probe", 3, 4, 1), part("build", 4, 5, 30),
        part("warmup", 5, 9, 40), part("steady", 9, 19, 100), part("eval", 19, 20, 8), part("steady", 20, 30, 100),
        part("probe", 30, 31, 1),
    ]  # fmt: skip
    found = metrics_with(phases=parts)
    assert (found["phase_steady_seconds"], found["phase_steady_energy_joules"]) == (20, 200)
    assert (found["phase_probe_energy_joules"], found["phase_probe_energy_joules_estimated"]) == (2, 14)
    assert found["startup_seconds"] == 8
    assert "startup_energy_joules" not in found
    parts[7] = parts[7].changed(energy=rows.energy(False, 1, 7))
    partly = metrics_with(phases=parts)
    assert "phase_steady_energy_joules" not in partly, "one of two parts is no sum"
    assert partly["phase_steady_energy_joules_estimated"] == 14
    twice = [part("warmup", 0, 1, 10), part("warmup", 1, 3, 20), part("steady", 3, 9, 50)]
    assert metrics_with(phases=twice)["startup_seconds"] == 3


def test_energy_of_the_startup_that_lacks_a_component_is_absent() -> None:
    window, startup = (
        [reading(10 * joules, device="p"), reading(joules, component="dram", device="p:0"), *rows.energy(False, 1, 7)]
        for joules in (50, 10)
    )
    found = metrics_with(energy=window, startup=startup)
    assert (found["startup_energy_joules"], found["startup_energy_joules_estimated"]) == (110, 7)
    found = metrics_with(energy=window, startup=startup[1:])
    assert ("startup_energy_joules" in found, found["startup_energy_joules_estimated"]) == (False, 7)


def test_the_slowest_rank_is_told_against_the_others() -> None:
    def ratio(*seconds: float | None) -> float | None:
        ranks = [Rank(rank=i, window_seconds=1, forward_seconds_median=s) for i, s in enumerate(seconds)]
        return metrics_with(ranks=ranks).get("straggler_ratio")

    assert ratio(1.0, 1.0, 1.0, 1.3) == pytest.approx(1.3)
    assert ratio(1.0, 1.3) == ratio(1.3, 1.0) == pytest.approx(1.3)
    assert ratio(1.3) is ratio(None, 1.3) is ratio() is None


def test_the_bubble_of_a_pipeline_is_what_its_stages_do_not_compute() -> None:
    ranks = [
        Rank(rank=i, window_seconds=1, busy_share=busy, communication_share=0.5) for i, busy in enumerate((0.6, 0.7))
    ]
    found = metrics_with(ranks=ranks, notes={"pipeline_bubble_share_ideal": 0.2})
    assert found["pipeline_bubble_share"] == pytest.approx(0.35)
    assert (found["pipeline_bubble_share_ideal"], found["communication_share"]) == (0.2, 0.5)
    assert "exposed_communication_share" not in found
    assert "pipeline_bubble_share" not in metrics_with(ranks=ranks)


def test_utilization_against_products_measured_on_the_device() -> None:
    ranks = [Rank(rank=i, window_seconds=1, matmul_flops_per_second=[3 * rows.V, 4 * rows.V]) for i in range(2)]
    found = metrics(measured(rows.record(2), ranks=ranks))
    assert found["matmul_flops_per_second"] == 4 * rows.V
    assert found["matmul_utilization"] == pytest.approx(0.25)
    assert "matmul_utilization" not in metrics(rows.record(2))


def test_gpus_that_were_not_used_are_apart() -> None:
    unused = [reading(70, component="gpu", device=f"GPU-{i}") for i in (4, 5)]
    record = rows.record(readings="m")
    found = metrics(record.changed(unused=unused))
    assert (found["unused_devices"], found["unused_energy_joules"]) == (2, 140)
    assert {key: found[key] for key in metrics(record)} == metrics(record)


def test_a_module_is_a_whole_and_is_not_missing_its_processor() -> None:
    module = reading(100, Provenance.INTEGRATED_SAMPLES, "gpu", "GPU-0", scope="module")
    assert missing_components([module], ["GPU-0"]) == []
    assert missing_components([module], ["GPU-0", "GPU-1"]) == ["gpu(1/2)"]
    plain = module.changed(scope="gpu")
    assert missing_components([plain], ["GPU-0"]) == ["cpu", "dram"]


def test_the_worst_of_the_conditions_is_shown() -> None:
    gpus = [
        GpuConditions(device="GPU-0", temperature_celsius_max=60, sm_clock_hz_mean=1.9e9, power_limit_watts=700),
        GpuConditions(device="GPU-1", temperature_celsius_max=80, throttled_share={"hw_thermal": 0.3}),
        GpuConditions(device="GPU-2", sm_clock_hz_mean=1.5e9, throttled_share={"sw_power_cap": 1.0}),
    ]
    found = metrics_with(gpus=gpus)
    assert (found["temperature_celsius_max"], found["sm_clock_hz_mean"]) == (80, 1.5e9)
    assert (found["power_limit_watts"], found["throttled_share"]) == (700, 0.3)


def test_a_sum_over_every_pair_of_labels_never_gets_better() -> None:
    order = list(Provenance)
    for first in Provenance:
        for second in Provenance:
            parts = [reading(1, first, device="a"), reading(2, second, device="b")]
            assert Provenance.worst([first, second]) is max(first, second, key=order.index)
            found = metrics_with(energy=parts)
            counted = [p for p in parts if p.provenance.measured]
            assert found.get("energy_joules", 0) == sum(p.energy_joules for p in counted)
            assert found.get("energy_joules_estimated", 0) == 3 - sum(p.energy_joules for p in counted)
            shown = labels(measured(rows.record(), energy=parts))["energy_provenance"]
            assert shown == str(Provenance.worst(p.provenance for p in counted or parts))
    assert Provenance.worst([]) is Provenance.ABSENT


# --- another place


def test_another_place_changes_carbon_cost_and_grade_and_nothing_that_was_measured() -> None:
    record = rows.record(readings="m").changed(flags=["pue_unknown"], grade="B", carbon=None)
    found = recost(record, Site(region="FR", pue=1.2, usd_per_kwh=0.5))
    assert (found.flags, found.grade) == ([], "A")
    assert found.carbon.emissions_kg == pytest.approx(100 / 3.6e6 * 1.2 * intensity("FR").kg_per_kwh)
    assert found.cost.cost_usd == pytest.approx(100 / 3.6e6 * 1.2 * 0.5)
    nowhere = recost(found, Site())
    assert (nowhere.carbon, nowhere.cost, nowhere.flags, nowhere.grade) == (None, None, [], "A")
    for site in (Site(region="FR"), Site(usd_per_kwh=0.5)):
        again = recost(found, site)
        assert (again.flags, again.grade) == (["pue_unknown"], "B")
    assert recost(recost(record, Site(region="FR")), Site(region="FR")).flags == ["pue_unknown"]
    assert found.measurement == record.measurement
    worse = recost(record.changed(flags=["gap"], grade="C"), Site(region="FR"))
    assert (worse.flags, worse.grade) == (["gap", "pue_unknown"], "C")
    assert recost(rows.record(status=Status.FAILED), Site(region="FR")).grade is None
    with pytest.raises(ValueError, match="is not known"):
        recost(record, Site(region="XX"))


def test_a_loss_that_is_no_number_any_more_is_told() -> None:
    assert "loss 5.000 -> nan" in headline(measured(rows.record(), loss_last=None))


def test_a_batch_that_was_found_is_told_in_the_place_of_what_was_asked() -> None:
    record = rows.record(4, batch=8)
    spec = record.spec.changed(batch_size_per_device="max", gradient_accumulation_steps=2)
    found = measured(record.changed(spec=spec), batch_size_per_device=6)
    flat = row(found)
    assert (flat["batch_size_per_device"], flat["global_batch_size"]) == (6, 48)
    assert spec.label.split()[-3:] == ["bmax", "fp32", "ddp"]
    failed = rows.record(4, status=Status.OUT_OF_MEMORY).changed(spec=spec)
    assert "global_batch_size" not in row(failed)


def test_the_estimate_of_memory_stands_against_what_was_measured() -> None:
    record = measured(rows.record(2), memory_estimated_bytes=9 * 10**8, compile_seconds=2.5)
    found = metrics(record)
    assert found["memory_estimated_bytes"] == 9e8
    assert found["memory_estimate_error"] == pytest.approx(-0.1)
    assert found["compile_seconds"] == 2.5


def test_memory_that_was_asked_for_in_vain_is_told() -> None:
    record = rows.record(status=Status.OUT_OF_MEMORY, message="rank 0: CUDA out of memory.")
    asked = record.changed(error=record.error.changed(attempted_bytes=2 * 2**30))
    assert headline(asked) == "out of memory: tried to allocate 2.15 GB; rank 0: CUDA out of memory."
    assert metrics(asked)["attempted_bytes"] == 2 * 2**30
    assert headline(record) == "out of memory: rank 0: CUDA out of memory."


# --- the served form


def test_the_served_form_is_told_beside_the_trained_one() -> None:
    trained = Quality(step=5, read_ns=0, seconds=1, samples=8, loss=2.0, accuracy=0.5)
    energy = [reading(40.0), reading(90.0, Provenance.ESTIMATED_MODEL)]
    passes = {"samples": 200, "seconds": 5, "energy": energy, "start_ns": 0, "end_ns": 5}
    served = Inference(**passes, model_bytes=1000, zeros_share=0.25, loss=2.1, accuracy=0.4)
    found = metrics_with(quality=[trained], inference=served)
    wanted = {
        "model_bytes": 1000,
        "zeros_share": 0.25,
        "served_loss": 2.1,
        "served_accuracy": 0.4,
        "served_loss_change": 0.1,
        "served_accuracy_change": -0.1,
        "inference_samples_per_second": 40,
        "inference_joules_per_sample": 4.0 * 5 / 200,  # the readings span 10 s: their power for the 5 s of the passes
        "inference_joules_per_sample_estimated": 9.0 * 5 / 200,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    untimed = Inference(model_bytes=1000, zeros_share=0.0)
    less = metrics_with(inference=untimed)
    assert {name for name in wanted if name in less} == {"model_bytes", "zeros_share"}


def test_the_commit_of_a_run_is_the_users_before_that_of_wattbench() -> None:
    record = rows.record()
    assert "commit" not in labels(record)
    for known, told in (({"wattbench_commit": "b"}, "b"), ({"wattbench_commit": "b", "folder_commit": "a"}, "a")):
        environment = record.environment.changed(**known)
        assert labels(record.changed(environment=environment))["commit"] == told
