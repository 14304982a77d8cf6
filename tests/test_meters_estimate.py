"""What CodeCarbon is trusted with, pinned to its behaviour: these fail loudly when a new release changes it."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.meters.estimate import CodecarbonMeter, _modes
from bench.meters.trace import Trace
from tests.processes import PATIENCE

SETTINGS = "[codecarbon]\npue=2.0\nforce_ram_power=1000\nforce_cpu_power=1000\nelectricitymaps_api_token=secret\n"


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    """A meter that was started among misleading settings, where every connection is a failure; and its rows."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        (folder / ".codecarbon.config").write_text(SETTINGS)
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.setenv("CODECARBON_PUE", "3.0")
        patch.setenv("SLURM_JOB_ID", "7")  # it would ask Slurm for the processors of the whole job
        patch.setenv("SLURM_JOBID", "7")
        patch.setenv("codecarbon_force_ram_power", "500")
        connections = []

        def connect(_socket, address):
            connections.append(address)
            raise OSError("no network in tests")

        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect)
        meter = CodecarbonMeter()
        assert meter.wait(PATIENCE)
        rows, spans = [], []
        for pause in (0.25, 0.25, 0.25, 0.25, 0.0, 0.0):
            before = time.monotonic()
            rows += meter.read()
            spans.append((before, time.monotonic()))
            time.sleep(pause)
        variables = [name for name in os.environ if name.lower().startswith(("codecarbon_", "slurm_job"))]
        yield meter, rows, {"connections": connections, "variables": variables, "spans": spans}
        meter.close()


def test_it_opens_no_connection(estimated):
    meter, _, facts = estimated
    assert meter.reason is None
    assert facts["connections"] == []


def test_nothing_waits_for_its_start(monkeypatch):
    started = threading.Event()
    monkeypatch.setattr("bench.meters.estimate._forget_settings", lambda: None)
    monkeypatch.setattr(CodecarbonMeter, "_start_tracker", lambda meter: started.wait(PATIENCE))
    meter = CodecarbonMeter()
    assert (meter.starting, meter.read(), meter.wait(0)) == (True, [], False)
    started.set()
    assert meter.wait(PATIENCE)


def test_settings_of_the_user_change_nothing(estimated):
    meter, _, facts = estimated
    assert facts["variables"] == []
    assert meter._tracker._external_conf == {}
    assert (meter._tracker._pue, meter._tracker._force_ram_power, meter._tracker._force_cpu_power) == (1.0, None, None)


def test_the_modes_are_known(estimated):
    _, rows, _ = estimated
    assert {(r.source, r.component, r.device) for r in rows} == {
        ("codecarbon", "cpu", "cpu"),
        ("codecarbon", "dram", "ram"),
    }
    assert {r.mode for r in rows if r.component == "cpu"} <= {"intel_rapl", "cpu_load", "constant"}
    assert {r.mode for r in rows if r.component == "dram"} == {"memory_size"}


def test_energy_is_power_times_time_within_one_percent(estimated):
    meter, rows, facts = estimated
    memory = [r for r in rows if r.component == "dram"]
    (model,) = [item for item in meter._tracker._hardware if type(item).__name__ == "RAM"]
    joules = (memory[-1].energy_uj - memory[0].energy_uj) / 1e6
    (first, second), (third, fourth) = facts["spans"][0], facts["spans"][-1]  # each reading is within its span
    watts = model.total_power().W
    assert 0.99 * watts * (third - second) <= joules <= 1.01 * watts * (fourth - first)
    cpu = [r.energy_uj for r in rows if r.component == "cpu"]
    assert cpu == sorted(set(cpu))


def test_two_reads_in_a_row_are_two_measurements(estimated):
    _, rows, _ = estimated
    last, before = [r for r in rows if r.component == "dram"][:-3:-1]
    assert last.t_ns - before.t_ns > 50_000_000
    assert last.energy_uj > before.energy_uj


def test_a_trace_of_it_is_an_estimate(estimated):
    _, rows, _ = estimated
    readings = Trace(rows).energy(rows[0].t_ns, rows[-1].t_ns)
    assert [(r.component, r.provenance) for r in readings] == [("cpu", "estimated_model"), ("dram", "estimated_model")]


def test_a_gpu_is_never_estimated():
    cpu, ram, gpu = (type(name, (), {"_mode": "constant"})() for name in ("CPU", "RAM", "GPU"))
    assert _modes([ram, cpu, gpu]) == {"dram": ("ram", "memory_size"), "cpu": ("cpu", "constant")}


@pytest.fixture
def _apart(monkeypatch, tmp_path):
    """Let a test make a meter, which changes its process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(Path.home()))


@pytest.mark.usefixtures("_apart")
def test_without_the_package_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    meter = CodecarbonMeter()
    assert meter.wait(PATIENCE)
    assert meter.reason == "the package codecarbon is not installed"
    assert meter.read() == []
    meter.close()


class HalfBuilt:
    """A tracker as CodeCarbon leaves it behind when it has swallowed an error."""

    def __init__(self, **_):
        self._external_conf = {}
        self._hardware = []

    def start(self):
        pass

    flush = stop = start


@pytest.mark.usefixtures("_apart")
def test_errors_that_it_swallows_are_noticed(monkeypatch):
    import codecarbon

    class Raises(HalfBuilt):
        def __init__(self, **_):
            raise TypeError("unexpected keyword")

    class Started(HalfBuilt):
        def start(self):
            self._start_time = 1.0

    for tracker, reason in ((HalfBuilt, "did not start"), (Raises, "unexpected keyword"), (Started, "nothing")):
        monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", tracker)
        meter = CodecarbonMeter()
        assert meter.wait(PATIENCE)
        assert reason in meter.reason
        assert meter.read() == []


@pytest.mark.usefixtures("_apart")
def test_a_flush_that_fails_is_an_event(estimated, monkeypatch):
    meter = estimated[0]
    monkeypatch.setattr(meter._tracker, "flush", lambda: None)
    (row,) = meter.read()
    assert (row.event, row.energy_uj, meter.errors) == ("error", None, 1)
