"""The meter of AMD GPUs on a stand-in for AMD SMI: joules against the planted truth, and what must not be believed."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.machine import doctor, environment
from bench.machine.environment import EnvironmentProblem, TorchBuild, check_no_gpu_is_hidden, check_torch
from bench.meters import amd, gpu, meter, nvml
from bench.meters.amd import AmdMeter, list_gpus
from bench.meters.conditions import gpu_conditions
from bench.meters.meter import INTERVAL, Reading
from bench.meters.sidecar import Sidecar
from bench.meters.trace import Trace
from bench.record import Provenance
from bench.schema import Gpu, Machine, RunSpec
from bench.suites import combine
from bench.suites.expand import expand
from bench.suites.load import load_suite
from bench.vendors import FILTERS
from tests import fake_amdsmi
from tests.clock import Clock
from tests.fake_amdsmi import BUSY, NO_DEVICE, NOT_SUPPORTED, Library, fake_gpu, install, truth, uuid
from tests.fake_nvml import install as install_nvml

S = 10**9
SINCE = 1000.0
RAMP = [(0.0, 150), (SINCE + 4, 700), (SINCE + 9, 300)]


@pytest.fixture
def amdsmi(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Library, Clock]]:
    """Give this process AMD GPUs, and a clock that also moves their energy."""
    for name in FILTERS:
        monkeypatch.delenv(name, raising=False)

    def make(*gpus: dict[str, Any]) -> tuple[Library, Clock]:
        library = install(monkeypatch, *gpus)
        clock = Clock(SINCE - 1, moved=lambda seconds: setattr(library, "now", seconds))
        for module in (amd, gpu, meter):
            monkeypatch.setattr(module, "time", clock)
        return library, clock

    return make


def record(made: tuple[Library, Clock], seconds: float = 12, *, conditions: bool = False) -> tuple[AmdMeter, Trace]:
    """Read all GPUs as the sidecar does from SINCE on."""
    library, clock = made
    found = AmdMeter([uuid(gpu) for gpu in library.gpus])
    clock.sleep(SINCE - library.now)
    rows: list[Reading] = []
    while library.now < SINCE + seconds:
        rows += found.read()
        rows += found.conditions(os.getpid()) if conditions else []
        clock.sleep(INTERVAL)
    found.close()
    assert library.started == 0
    return found, Trace(rows)


def window(trace: Trace, begin: float, end: float) -> list[Any]:
    return trace.energy(round((SINCE + begin) * S), round((SINCE + end) * S))


# --- energy


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("begin", "end"), [(1, 3.9), (2, 6.3), (3.03, 11)])
def test_joules_are_the_accumulator_times_its_resolution(amdsmi: Any, begin: float, end: float, old: bool) -> None:
    one = fake_gpu(0, watts=RAMP, old=old)
    _, trace = record(amdsmi(one))
    (reading,) = window(trace, begin, end)
    true = truth(one, SINCE + begin, SINCE + end)
    assert abs(reading.energy_joules - true) <= reading.uncertainty_joules
    assert reading.energy_joules == pytest.approx(true, rel=0.01)
    assert reading.provenance is Provenance.MEASURED_COUNTER_INTERP
    assert (reading.source, reading.device) == ("amdsmi", uuid(one))
    assert set(reading.flags) - {"wide_edges"} == {"unverified_meter"}
    assert reading.power_watts_max == 700 if end > 4.1 else 150


@pytest.mark.parametrize(
    "broken",
    [
        {"counter": 0},  # MI100: it stands still until the machine starts again
        {"counter": 0.1},
        {"counter": 16.0},  # another unit
        {"counter": None},
        {"resolution": 0.0},
        {"resolution": "N/A"},
        {"failing": {"energy_count": NOT_SUPPORTED}},
    ],
    ids=str,
)
@pytest.mark.parametrize("instant", [True, False])
def test_a_counter_that_cannot_be_right_is_replaced_by_power(
    amdsmi: Any, broken: dict[str, Any], instant: bool
) -> None:
    one = fake_gpu(0, watts=RAMP, instant=instant, **broken)
    found, trace = record(amdsmi(one))
    (reading,) = window(trace, 1, 11)
    assert reading.provenance is Provenance.INTEGRATED_SAMPLES
    assert {"sampled_power", "unverified_meter"} <= set(reading.flags)
    assert reading.uncertainty_joules is None
    assert reading.energy_joules == pytest.approx(truth(one, SINCE + 1, SINCE + 11), rel=0.02)
    assert (uuid(one) in found.doubts) == (broken.get("counter") in (0, 0.1, 16.0))


def test_a_counter_that_stops_or_starts_again_is_not_continued(amdsmi: Any) -> None:
    again = fake_gpu(0, reset_at=SINCE + 5)
    _, trace = record(amdsmi(again))
    (before,), (across,), (after,) = (window(trace, *edges) for edges in ((1, 4), (3, 8), (6, 10)))
    assert "counter_reset" in across.flags
    assert across.provenance is Provenance.INTEGRATED_SAMPLES
    for reading, seconds in ((before, 3), (across, 5), (after, 4)):
        assert reading.energy_joules == pytest.approx(300 * seconds, rel=0.01)


def test_a_gpu_without_counter_and_power_is_absent_never_zero(amdsmi: Any) -> None:
    found, trace = record(amdsmi(fake_gpu(0, counter=None, sensor=False), fake_gpu(1)), 4)
    assert [reading.device for reading in window(trace, 1, 3.5)] == [uuid(fake_gpu(1))]
    assert "reports neither energy nor power" in found.unread[uuid(fake_gpu(0))]
    alone, _ = record(amdsmi(fake_gpu(0, counter=None, sensor=False)), 1)
    assert alone.reason == alone.unread[uuid(fake_gpu(0))]


def test_the_die_with_the_sensor_speaks_for_its_board(amdsmi: Any) -> None:
    first, second = (fake_gpu(n, name="AMD Instinct MI250X", instant=False, sensor=n == 0) for n in (0, 1))
    found, trace = record(amdsmi(first, second))
    (reading,) = window(trace, 1, 11)
    assert (reading.device, reading.flags) == (uuid(first), ["unverified_meter", "board_scope"])
    assert "spans both" in found.unread[uuid(second)]


@pytest.mark.parametrize("lost", [{"lost_at": SINCE + 3}, {"failing": {}}], ids=["lost", "failing"])
def test_reads_that_fail_are_errors_and_gaps(amdsmi: Any, lost: dict[str, Any]) -> None:
    one = fake_gpu(0, **lost)
    library, clock = amdsmi(one)
    found, rows = AmdMeter([uuid(one)]), []
    clock.sleep(SINCE - library.now)
    while library.now < SINCE + 8:
        if "failing" in lost:
            calls = ("energy_count", "power_info") if SINCE + 3 < library.now < SINCE + 5 else ()
            one["failing"] = dict.fromkeys(calls, BUSY)
        rows += found.read()
        clock.sleep(INTERVAL)
    errors = [row.message for row in rows if row.event == "error"]
    assert found.errors == len(errors) > 10
    assert all(f"{BUSY if 'failing' in lost else NO_DEVICE} |" in str(message) for message in errors)
    readings = window(Trace(rows), 1, 7)
    assert [reading.flags for reading in readings] in ([], [["unverified_meter", "gap"]])
    assert bool(readings) == ("failing" in lost)  # of the lost GPU, less than half of the window


# --- conditions


def test_conditions_of_a_gpu(amdsmi: Any) -> None:
    one = fake_gpu(0, throttled=0.25, processes=[os.getpid(), 1])
    _, trace = record(amdsmi(one), conditions=True)
    seen = gpu_conditions(trace.events, uuid(one), round((SINCE + 1) * S), round((SINCE + 11) * S))
    assert (seen.temperature_celsius_max, seen.memory_temperature_celsius_max) == (61, 48)
    assert (seen.sm_clock_hz_mean, seen.memory_clock_hz_mean) == (2.1e9, 1.3e9)
    assert (seen.power_limit_watts, seen.memory_used_bytes_max) == (750, 300 * 2**20)
    assert seen.throttled_share == pytest.approx({"hw_thermal": 0.25, "sw_power_cap": 1.0}, abs=0.01)
    assert seen.shared is True


def test_what_a_version_lacks_is_absent(amdsmi: Any) -> None:
    one = fake_gpu(0, old=True, failing={"gpu_metrics_info": NOT_SUPPORTED})
    amdsmi(one)
    module = sys.modules["amdsmi"]
    for name in ("amdsmi_get_temp_metric", "amdsmi_get_gpu_process_list", "amdsmi_get_gpu_vram_usage"):
        delattr(module, name)
    (row,) = AmdMeter([uuid(one)]).conditions(os.getpid())
    facts = json.loads(row.message or "")
    assert facts == {"sm_mhz": 2100, "memory_mhz": 1300, "limit_mw": 750_000, "own": 0, "foreign": 0, "unknown": 0}


# --- which GPUs are here


def test_gpus_are_described(amdsmi: Any) -> None:
    library, _ = amdsmi(fake_gpu(1, partition="CPX"), fake_gpu(0, partition=None, processes=[1]))
    gpus, driver, reason = list_gpus()
    assert (driver, reason, library.started) == ("6.12.12", None, 0)
    assert [(gpu.index, gpu.uuid, gpu.mig, gpu.vendor) for gpu in gpus] == [
        (0, uuid(fake_gpu(0)), False, "amd"),
        (1, uuid(fake_gpu(1)), True, "amd"),
    ]
    assert gpus[0].name == "AMD Instinct MI300X"
    assert gpus[0].memory_bytes == 196_592 * 2**20
    assert [name.rpartition("(")[2] for name in gpus[0].used_by] == ["pid 1)"]


@pytest.mark.parametrize(
    ("variables", "indices"),
    [
        ({}, [0, 1, 2]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "2,1"}, [2, 1]),
        ({"ROCR_VISIBLE_DEVICES": "2,1", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "GPU-000000000000ab55"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "0"}, []),
        ({"ROCR_VISIBLE_DEVICES": "7"}, []),
    ],
)
def test_only_visible_gpus_are_listed(
    amdsmi: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], indices: list[int]
) -> None:
    amdsmi(fake_gpu(2), fake_gpu(0), fake_gpu(1))  # AMD SMI has another order than HIP
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    gpus, _, reason = list_gpus()
    assert [gpu.index for gpu in gpus] == indices
    assert [gpu.uuid for gpu in gpus] == [uuid(fake_gpu(index)) for index in indices]
    assert (reason is None) == bool(indices)


def test_indices_that_cannot_be_mapped_are_refused(amdsmi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    amdsmi(fake_gpu(0, old=True), fake_gpu(1, old=True))
    assert len(list_gpus()[0]) == 2
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", uuid(fake_gpu(1)))
    assert [gpu.uuid for gpu in list_gpus()[0]] == [uuid(fake_gpu(1))]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    gpus, _, reason = list_gpus()
    assert not gpus
    assert "give UUIDs" in str(reason)


def test_partitions_with_one_name_cannot_be_told_apart(amdsmi: Any) -> None:
    twins = [fake_gpu(0), fake_gpu(1, serial=fake_gpu(0)["serial"])]
    amdsmi(*twins)
    assert [gpu.mig for gpu in list_gpus()[0]] == [True, True]
    assert "several partitions" in str(AmdMeter([uuid(twins[0])]).reason)


def test_without_amd_there_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amd.util, "find_spec", lambda name: None)
    monkeypatch.setattr(amd, "VENDORS", {"amd": amd.VENDORS["nvidia"].__class__(*("",) * 4, "no-such-file*", "")})
    assert list_gpus() == ([], None, None)
    assert "pip install" in str(AmdMeter([]).reason)


# --- what else the machine decides by its vendor


MACHINE = Machine(
    cpu_model="x", cpu_count=8, gpus=[Gpu(index=0, uuid="GPU-1", name="AMD Instinct MI300X", vendor="amd")]
)


@pytest.mark.parametrize(
    ("build", "fits"),
    [
        (TorchBuild("2.13", rocm="7.0"), True),
        (TorchBuild("2.13", cuda="12.8"), False),
        (TorchBuild("2.13"), False),
    ],
)
def test_torch_must_be_built_for_the_vendor(monkeypatch: pytest.MonkeyPatch, build: TorchBuild, fits: bool) -> None:
    monkeypatch.setattr(environment, "torch_build", lambda: build)
    if fits:
        check_torch(MACHINE, for_gpus=True)
        return
    with pytest.raises(EnvironmentProblem, match="Install a ROCm build of torch"):
        check_torch(MACHINE, for_gpus=True)


@pytest.mark.parametrize("rocm", [None, "7.0"])
def test_graphics_of_a_processor_are_no_hidden_gpu(monkeypatch: pytest.MonkeyPatch, rocm: str | None) -> None:
    monkeypatch.setattr(environment, "torch_build", lambda: TorchBuild("2.13", rocm=rocm))
    monkeypatch.setattr(environment.Path, "glob", lambda self, pattern: iter([Path("kfd")] if pattern == "kfd" else []))
    reason = "the package amdsmi is not installed"
    if rocm is None:
        check_no_gpu_is_hidden(reason)
        return
    with pytest.raises(EnvironmentProblem, match="there seem to be GPUs"):
        check_no_gpu_is_hidden(reason)


SUITE = """
name: amd
defaults: {workload: decoder_lm, workload_args.preset: tiny, batch_size_per_device: 2, measure_steps: 3}
include:
  - {precision: bf16}
  - {precision: tf32}
  - {attention: cudnn}
  - {quantization: int4, precision: bf16}
  - {pruning: semi_structured, precision: bf16}
"""


def test_what_only_nvidia_has_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combine.why_impossible, "__defaults__", (None, lambda name: name))
    (tmp_path / "amd.yaml").write_text(SUITE)
    plan = expand(load_suite(tmp_path / "amd.yaml"), MACHINE)
    run, *refused = plan.runs
    assert run.meters == ["amdsmi", "rapl", "codecarbon"]
    assert run.config_id not in plan.skipped
    assert all("NVIDIA GPUs" in plan.skipped[other.config_id] for other in refused)
    other = MACHINE.changed(gpus=[MACHINE.gpus[0].changed(vendor="nvidia")])
    plan = expand(load_suite(tmp_path / "amd.yaml"), other)
    assert (plan.skipped, plan.runs[0].meters) == ({}, RunSpec.model_fields["meters"].default)


def test_capabilities_of_amd_gpus_are_their_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from bench.strategies.parts import Unsupported, needs_capability
    from bench.train.worker import device_id

    bytes_as_uuid = "30303030-3030-3030-3030-303061623534"  # the letters 000000000000ab54
    board = type("Board", (), {"gcnArchName": "gfx90a:sramecc+:xnack-", "uuid": bytes_as_uuid})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: board)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AMD Instinct MI250X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda", 0)
    needs_capability(device, (9, 0), "fp8")  # as on a GPU of NVIDIA
    monkeypatch.setattr(torch.version, "hip", "7.0")
    needs_capability(device, (9, 5), "compile", amd=None)
    for allowed in ((), ("gfx942", "gfx950")):
        with pytest.raises(Unsupported, match="gfx90a"):
            needs_capability(device, (8, 9), "fp8", amd=allowed)
    assert device_id(device) == uuid(fake_gpu(0))


def test_the_doctor_says_that_the_meter_is_unverified(amdsmi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, found=False)
    amdsmi(fake_gpu(0), fake_gpu(1, counter=0), fake_gpu(2, name="AMD Instinct MI250X", sensor=False))
    clock = amd.time
    clock.tick_ns = 100_000
    clock.process_time = lambda: 0.0
    monkeypatch.setattr(doctor, "time", clock)
    monkeypatch.setattr(doctor, "_estimate", lambda: doctor.Finding("energy estimate", "absent", ""))
    assert nvml.list_gpus()[0] == []
    said = {finding.subject: finding for finding in doctor.findings()}
    assert said["GPU 0 energy counter"].values["power_watts"] == pytest.approx(300, rel=0.02)
    assert said["GPU 0 power"].values["power_watts"] == 300
    assert "not yet run on an AMD GPU" in said["GPU 0 sensor"].detail
    assert "it is not used" in said["GPU 1 energy counter"].detail
    assert "spans both" in said["GPU 2 energy"].detail
    assert "amd-smi" in said["GPU 2 energy"].remedy
    assert said["torch"].state == "problem"


# --- end to end


@pytest.mark.slow
def test_the_sidecar_reads_amd_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [fake_gpu(0, watts=250), fake_gpu(1, watts=400, counter=0), fake_gpu(2, sensor=False, counter=None)]
    for name, value in fake_amdsmi.environment(tmp_path, *gpus).items():
        monkeypatch.setenv(name, value)
    with Sidecar(["amdsmi"], [uuid(gpu) for gpu in gpus]) as sidecar:
        assert (sidecar.live, sidecar.absent, sidecar.error) == (["amdsmi", "conditions"], {}, None)
        sidecar.open(tmp_path / "meters.jsonl")
        begin = time.monotonic_ns()
        time.sleep(3)
        end = time.monotonic_ns()
        sidecar.close()
    readings = {reading.device: reading for reading in Trace.read(tmp_path / "meters.jsonl").energy(begin, end)}
    counted, sampled = (readings[uuid(gpu)] for gpu in gpus[:2])
    assert len(readings) == 2
    seconds = (end - begin) / S
    assert abs(counted.energy_joules - 250 * seconds) <= counted.uncertainty_joules
    assert sampled.energy_joules == pytest.approx(400 * sampled.seconds, rel=0.001)
    assert "sampled_power" in sampled.flags
    assert sampled.coverage > 0.9
