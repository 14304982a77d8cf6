"""Derived numbers: throughput, energy, MFU; and carbon and cost with their factors."""

import pytest
from pydantic import ValidationError

from bench.carbon import carbon, intensity
from bench.cost import cost
from bench.metrics import labels, metrics, missing_components, parameters, peak_flops, row
from bench.schema import EnergyReading, Gpu, Machine, Measurement, Provenance, RunRecord, RunSpec, Site, Status
from tests import rows


def reading(joules: float, provenance: Provenance, component: str = "cpu", device: str = "x") -> EnergyReading:
    source = "codecarbon" if provenance is Provenance.ESTIMATED_MODEL else "nvml" if component == "gpu" else "rapl"
    return EnergyReading.model_validate(
        {"component": component, "device": device, "energy_joules": joules, "seconds": 10, "power_watts_mean": joules / 10,
         "source": source, "provenance": provenance}
    )  # fmt: skip


def on_gpus(record: RunRecord, name: str, precision: str, flops_per_device: float) -> RunRecord:
    """Return the record as if it had been run on GPUs of this name, each doing so many FLOP/s."""
    found = [Gpu(index=i, uuid=f"GPU-{i}", name=name) for i in range(record.spec.world_size)]
    machine = Machine(cpu_model="Synthetic", cpu_count=8, gpus=found)
    spec = RunSpec.model_validate(record.spec.model_dump() | {"device_type": "cuda", "precision": precision})
    assert record.measurement is not None
    seconds = record.measurement.samples * record.measurement.flops_per_sample / (spec.world_size * flops_per_device)
    return record.model_copy(
        update={
            "spec": spec,
            "devices": [gpu.uuid for gpu in found],
            "environment": record.environment.model_copy(update={"machine": machine}),
            "measurement": record.measurement.model_copy(update={"window_seconds": seconds}),
        }
    )


@pytest.mark.parametrize(("devices", "accumulation"), [(1, 1), (4, 1), (2, 3)])
def test_throughput_counts_all_devices_and_micro_batches(devices: int, accumulation: int) -> None:
    record = rows.record(devices, gradient_accumulation_steps=accumulation)
    found, measured = metrics(record), record.measurement
    assert measured is not None
    samples = 100 * 8 * devices * accumulation
    assert found["samples_per_second"] * measured.window_seconds == pytest.approx(samples)
    assert found["tokens_per_second"] == pytest.approx(128 * found["samples_per_second"])
    assert found["samples_per_second_per_device"] * devices == pytest.approx(found["samples_per_second"])
    assert found["flops_per_second_per_device"] == pytest.approx(rows.V)
    assert found["flops_per_token"] * 128 == pytest.approx(measured.flops_per_sample)
    assert parameters(record.spec)["devices"] == devices


def test_measured_and_estimated_energy_are_never_added() -> None:
    found = metrics(rows.record(readings="me"))
    assert found["energy_estimated_joules"] == pytest.approx(1.5 * found["energy_joules"])
    assert found["joules_per_sample"] == pytest.approx(found["energy_joules"] / 800)
    assert found["joules_per_sample_estimated"] == pytest.approx(found["energy_estimated_joules"] / 800)
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
    with pytest.raises(ValueError, match=r"MFU 2\.00 above 1"):
        metrics(on_gpus(rows.record(2), "NVIDIA H100 80GB HBM3", "bf16", 2 * 989.4e12))


def test_peaks_by_exact_name_only() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA L4", "bf16") != peak_flops("NVIDIA L40S", "bf16")
    assert peak_flops("NVIDIA A100-SXM4-80GB", "tf32") == pytest.approx(156e12)
    assert peak_flops("NVIDIA H20", "bf16") is None
    assert peak_flops("H200", "bf16") is None
    assert peak_flops("Tesla T4", "bf16") is None


def test_a_wrong_record_cannot_be_built() -> None:
    good = rows.record().model_dump()
    for change in (
        {"status": "failed"},
        {"measurement": None},
        {"duration_seconds": float("nan")},
        {"duration_seconds": -1.0},
        {"unknown": 1},
    ):
        with pytest.raises(ValidationError):
            RunRecord.model_validate(good | change)
    with pytest.raises(ValidationError):
        Measurement.model_validate(good["measurement"] | {"loss_last": float("inf")})
    with pytest.raises(ValidationError):
        Measurement.model_validate(good["measurement"] | {"step_seconds": [0.0]})
    record = rows.record()
    with pytest.raises(ValidationError):
        record.status = Status.FAILED  # type: ignore[misc]
    assert RunRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("label", list(Provenance))
def test_a_sum_has_the_worst_label_of_its_parts(label: Provenance) -> None:
    order = list(Provenance)
    for other in Provenance:
        assert Provenance.worst([label, other]) is order[max(order.index(label), order.index(other))]
    assert Provenance.worst([]) is Provenance.ABSENT


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
    energy = [reading(3.6e6, Provenance.MEASURED_COUNTER), reading(9e6, Provenance.ESTIMATED_MODEL)]
    found = carbon(energy, Site(region="FR", pue=1.2), gpus=[])
    assert found is not None
    assert found.energy_joules == 3.6e6  # the estimate is not added
    assert (found.energy_basis, found.energy_missing) == ("measured", ["dram"])
    assert found.emissions_kg == pytest.approx(1.2 * intensity("FR").kg_per_kwh)
    assert found.pue_provenance is Provenance.USER_SUPPLIED
    estimated = carbon(energy[1:], Site(region="FR"), gpus=[])
    assert estimated is not None
    assert (estimated.energy_basis, estimated.pue, estimated.pue_provenance) == ("estimated", 1.0, Provenance.ABSENT)
    assert carbon(energy, Site(), gpus=[]) is None
    assert carbon([], Site(region="FR"), gpus=[]) is None


def test_cost_is_rent_or_what_owned_devices_take() -> None:
    rent = cost(Site(usd_per_device_hour=2, price_note="spot, May"), devices=4, seconds=1800, energy=[], gpus=[])
    assert rent is not None
    assert (rent.cost_usd, rent.mode, rent.note) == (pytest.approx(4.0), "rental", "spot, May")
    energy = [reading(7.2e6, Provenance.MEASURED_COUNTER)]
    power = cost(Site(usd_per_kwh=0.2, pue=1.5), 4, 1800, energy, [])
    assert power is not None
    assert (power.cost_usd, power.mode) == (pytest.approx(0.6), "owned")
    both = cost(Site(usd_per_kwh=0.2, pue=1.5, usd_capital_per_device_hour=1.1), 4, 1800, energy, ["GPU-7"])
    assert both is not None
    assert (both.cost_usd, both.energy_missing) == (pytest.approx(0.6 + 2.2), ["gpu", "dram"])
    capital = cost(Site(usd_capital_per_device_hour=1.1), 4, 1800, [], [])
    assert capital is not None
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
    assert record.cost is not None
    assert record.carbon is not None
    assert found["cost_usd_per_million_tokens"] == pytest.approx(record.cost.devices * 3.6 / 3600 / tokens * 1e6)
    assert found["emissions_kg_per_million_tokens"] == pytest.approx(found["joules_per_token"] * 1e6 / 3.6e6 * 0.4)


def test_every_gpu_that_was_used_must_have_been_read() -> None:
    readings = [reading(100, Provenance.MEASURED_COUNTER, "gpu", f"GPU-{i}") for i in range(3)]
    assert missing_components(readings, [f"GPU-{i}" for i in range(4)]) == ["gpu(1/4)", "cpu", "dram"]
    assert missing_components(readings, ["GPU-0", "GPU-1"]) == ["cpu", "dram"]
    assert missing_components([], ["GPU-0"]) == ["gpu", "cpu", "dram"]


def test_a_reading_of_half_the_window_does_not_halve_the_figures() -> None:
    whole = rows.record(readings="m")
    assert whole.measurement is not None
    (found,) = whole.measurement.energy
    half = found.model_copy(
        update={"energy_joules": found.energy_joules / 2, "seconds": found.seconds / 2, "coverage": 0.5}
    )
    measured = whole.measurement.model_copy(update={"energy": [half]})
    before, after = metrics(whole), metrics(whole.model_copy(update={"measurement": measured}))
    assert after["energy_joules"] == pytest.approx(before["energy_joules"] / 2)
    for name in ("power_watts", "joules_per_sample", "joules_per_token"):
        assert after[name] == pytest.approx(before[name])


def test_cost_of_estimated_energy_says_so() -> None:
    record = rows.record(readings="e")
    power = cost(Site(usd_per_kwh=0.2), 1, 10, record.energy, [])
    assert labels(record.model_copy(update={"cost": power}))["cost_basis"] == "owned_estimated"
