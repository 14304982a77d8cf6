import os
import subprocess
import sys
import time
from types import ModuleType

import pytest

from bench.meters.nvml import NvmlMeter, list_gpus
from tests.fake_nvml import fake_gpu, install

NOT_SUPPORTED, DRIVER_NOT_LOADED, UNKNOWN = 3, 9, 999
CALL, FIELDS = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues"


def uuids(*gpus):
    return [gpu["uuid"] for gpu in gpus]


# --- which GPUs are here


def test_gpus_are_described(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = install(monkeypatch, fake_gpu(0), fake_gpu(1, mig=["MIG-a"]), driver="570.1")
    gpus, driver, reason = list_gpus()
    assert (driver, reason) == ("570.1", None)
    assert [(g.index, g.uuid[:12], g.mig) for g in gpus] == [(0, "GPU-00000000", False), (1, "GPU-00000001", True)]
    assert gpus[0].name == "NVIDIA H100 80GB HBM3"
    assert gpus[0].memory_bytes == 85_520_809_984
    assert nvml.started == 0  # left as it was found


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("1,7,0", [1]),
        ("0,-1,1", [0]),
        ("0,0", []),
        ("nonsense", []),
        ("GPU-00000002", [2]),
        ("GPU-00000002-1111-2222-3333-444444444444,GPU-00000000", [2, 0]),
        ("GPU-0", []),  # more than one begins so
        ("GPU-00000001,GPU-99,GPU-00000000", [1]),
        ("MIG-b", [2]),
        ("MIG-a,MIG-b", [2]),
        ("MIG-x,0", []),
    ],
)
def test_only_visible_gpus_are_listed(monkeypatch, visible, indices):
    install(monkeypatch, fake_gpu(0), fake_gpu(1), fake_gpu(2, mig=["MIG-a", "MIG-b"]))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus, _, reason = list_gpus()
    assert [gpu.index for gpu in gpus] == indices
    assert (reason is None) == bool(indices)


def test_no_program_of_the_driver_is_needed(monkeypatch):
    """Trap: a tool that looks for the nvidia-smi program first counts no GPU, and 0 J, where it is missing."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu = fake_gpu(0, 300)
    install(monkeypatch, gpu)
    assert [found.uuid for found in list_gpus()[0]] == [gpu["uuid"]]
    assert NvmlMeter([gpu["uuid"]]).read()[0].power_mw == 300_000


def test_processes_of_others_are_named_and_ours_are_not(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        pids = [os.getpid(), child.pid, 1, 4_100_000, 4_200_000]
        install(monkeypatch, fake_gpu(0, pids=pids), fake_gpu(1))
        busy, free = list_gpus(own_pids=[4_200_000])[0]
    finally:
        child.communicate(b"\n")
    assert len(busy.used_by) == 2
    assert busy.used_by[0].endswith("(pid 1)")
    assert busy.used_by[1] == "pid 4100000"
    assert free.used_by == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"found": False}, "NVML library not found: no NVIDIA driver on this machine"),
        ({"init_error": DRIVER_NOT_LOADED}, "NVML did not start: Driver Not Loaded"),
        ({}, "the NVIDIA driver lists no GPU"),
    ],
)
def test_no_gpu_has_a_reason(monkeypatch, config, reason):
    install(monkeypatch, **config)
    assert list_gpus()[0] == []
    assert list_gpus()[2] == reason


def test_a_gpu_that_fell_off_the_bus_does_not_raise(monkeypatch):
    install(monkeypatch, fake_gpu(0, lost_at=0))
    gpus, _, reason = list_gpus()
    assert (gpus, reason) == ([], "NVML does not answer: GPU is lost")


def test_another_package_called_pynvml_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    assert "is not NVIDIA's" in list_gpus()[2]
    assert "is not NVIDIA's" in NvmlMeter(["GPU-0"]).reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlMeter(["GPU-0"]).reason == "the package nvidia-ml-py is not installed"


# --- readings


def test_energy_and_power_are_read_together(monkeypatch):
    gpu = fake_gpu(0, watts=300)
    nvml = install(monkeypatch, gpu)
    nvml.now = 1000.25
    meter = NvmlMeter(uuids(gpu, gpu))  # the same GPU twice is one GPU
    before = time.monotonic_ns()
    (row,) = meter.read()
    assert before <= row.t_ns <= time.monotonic_ns()
    assert (row.energy_uj, row.power_mw) == (300_060_000_000, 300_000)
    assert (row.source, row.component, row.device) == ("nvml", "gpu", gpu["uuid"])
    assert (meter.reason, meter.errors) == (None, 0)
    meter.close()
    assert (meter.read(), nvml.started) == ([], 0)


@pytest.mark.parametrize(
    ("errors", "energy", "power"),
    [
        ({83: NOT_SUPPORTED}, True, True),  # the counter has a function of its own
        ({83: NOT_SUPPORTED, CALL: NOT_SUPPORTED}, False, True),
        ({186: NOT_SUPPORTED}, True, False),
        ({FIELDS: NOT_SUPPORTED}, True, False),
    ],
)
def test_what_a_gpu_does_not_support_is_left_out(monkeypatch, errors, energy, power):
    gpu = fake_gpu(0, errors=errors)
    install(monkeypatch, gpu).now = 50.0
    meter = NvmlMeter(uuids(gpu))
    (row,) = meter.read()
    assert (row.energy_uj, row.power_mw) == (15_000_000_000 if energy else None, 300_000 if power else None)
    assert (meter.errors, row.event) == (0, None)


def test_a_gpu_that_reports_nothing_has_a_reason(monkeypatch):
    gpu = fake_gpu(0, errors={83: 3, 186: 3, CALL: 3})
    install(monkeypatch, gpu)
    assert NvmlMeter(uuids(gpu)).reason == f"{gpu['uuid']} reports neither energy nor power"
    assert NvmlMeter(["GPU-elsewhere"]).reason == "GPU-elsewhere: Not Found"
    assert NvmlMeter([]).reason == "no GPU to read"


@pytest.mark.parametrize(
    ("errors", "left", "message"),
    [
        ({83: UNKNOWN}, (None, 300_000), "energy: Unknown Error"),
        ({186: UNKNOWN}, (30_000_000_000, None), "power: Unknown Error"),
        ({83: UNKNOWN, 186: UNKNOWN}, None, "power: Unknown Error; energy: Unknown Error"),
        ({FIELDS: UNKNOWN}, None, "Unknown Error"),
        ({83: NOT_SUPPORTED}, (None, 300_000), "energy: Not Supported"),  # later on, it is an error
    ],
)
def test_a_burst_of_errors_is_events_and_never_0(monkeypatch, errors, left, message):
    gpu = fake_gpu(0, errors=errors, errors_between=[100, 200])
    nvml = install(monkeypatch, gpu)
    nvml.now = 50.0
    meter = NvmlMeter(uuids(gpu))
    nvml.now = 100.0
    *rows, event = meter.read()
    assert [(r.energy_uj, r.power_mw) for r in rows] == ([left] if left else [])
    assert (event.event, event.message, event.device, event.energy_uj) == ("error", message, gpu["uuid"], None)
    assert meter.errors == 1
    nvml.now = 200.0
    assert [r.event for r in meter.read()] == [None]


def test_a_lost_gpu_does_not_take_the_others_along(monkeypatch):
    gpus = [fake_gpu(0, lost_at=10), fake_gpu(1)]
    nvml = install(monkeypatch, *gpus)
    nvml.now = 5.0
    meter = NvmlMeter(uuids(*gpus))
    nvml.now = 15.0
    rows = meter.read()
    assert [(r.device[:12], r.message) for r in rows] == [("GPU-00000000", "GPU is lost"), ("GPU-00000001", None)]


def test_zero_watts_is_not_a_reading(monkeypatch):
    gpu = fake_gpu(0, watts=0)
    install(monkeypatch, gpu)
    assert NvmlMeter(uuids(gpu)).read()[0].power_mw is None


def test_a_mig_gpu_is_read_as_a_whole_and_says_so(monkeypatch):
    gpu = fake_gpu(0, mig=["MIG-a"])
    install(monkeypatch, gpu)
    assert NvmlMeter(uuids(gpu)).read()[0].mode == "mig"


def test_a_superchip_that_knows_its_module_only_is_read_by_that_and_says_so(monkeypatch):
    gpu = fake_gpu(0, 300, power_scopes={1: 150}, errors={83: NOT_SUPPORTED, "nvmlDeviceGetTotalEnergyConsumption": 3})
    install(monkeypatch, gpu)
    (row,) = NvmlMeter(uuids(gpu)).read()
    assert (row.power_mw, row.energy_uj, row.mode) == (450_000, None, "module")
    with_counter = fake_gpu(0, 300, power_scopes={1: 150})
    install(monkeypatch, with_counter)
    (row,) = NvmlMeter(uuids(with_counter)).read()
    assert (row.power_mw, row.mode) == (None, None)  # no power of another scope beside the GPU's own counter
    assert row.energy_uj > 0


def test_instant_power_of_an_old_chip_is_read_by_the_old_function(monkeypatch):
    old = fake_gpu(0, 300, architecture=6, power_scopes={}, errors={83: 3, "nvmlDeviceGetTotalEnergyConsumption": 3})
    install(monkeypatch, old)
    (row,) = NvmlMeter(uuids(old)).read()
    assert (row.power_mw, row.energy_uj) == (300_000, None)
    new = fake_gpu(0, 300, architecture=9, power_scopes={}, errors={83: 3, "nvmlDeviceGetTotalEnergyConsumption": 3})
    install(monkeypatch, new)
    assert "reports neither energy nor power" in NvmlMeter(uuids(new)).reason
