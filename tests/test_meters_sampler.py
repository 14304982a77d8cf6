"""The sidecar process and its parent's end: schedule, commands, and that neither takes the other down."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.meters.estimate import CodecarbonMeter
from bench.meters.meter import Meter, Reading
from bench.meters.nvml import NvmlMeter
from bench.meters.rapl import RaplMeter
from bench.meters.replay import ReplayMeter
from bench.meters.sampler import Recorder, make_meters
from bench.meters.sidecar import Sidecar
from bench.meters.trace import Trace
from tests.fake_nvml import environment, fake_gpu
from tests.processes import PATIENCE, gone, until

S = 1_000_000_000


class Counter(Meter):
    """A meter that counts its reads, with the declaration of another one."""

    def __init__(self, like=NvmlMeter, reason=None):
        self.source, self.period, self.steps = like.source, like.period, like.steps
        self.reason, self.reads = reason, 0

    def read(self):
        self.reads += 1
        common = {"t_ns": time.monotonic_ns(), "wall_ns": 1, "source": self.source, "component": "cpu"}
        return [Reading(device="d", energy_uj=self.reads, **common)]


class Broken(Counter):
    def read(self):
        raise RuntimeError("the driver went away")


@pytest.fixture
def clock(monkeypatch):
    """Time that only the test moves, for the schedule."""
    times = [100.0]
    monkeypatch.setattr("bench.meters.sampler.time.monotonic", lambda: times[-1])
    return times


# --- schedule


def test_gpus_are_read_ten_times_as_often(tmp_path, clock):
    meters = {
        "nvml": Counter(),
        "rapl": Counter(RaplMeter),
        "codecarbon": Counter(CodecarbonMeter, reason="not installed"),
    }
    sampler = Recorder(meters, 0.1)
    assert sampler.obey({"open": f"{tmp_path}/a.jsonl"}) == ""
    for i in range(1, 200):
        clock.append(100 + i / 50 + 0.001)
        sampler.tick(clock[-1])
    assert [m.reads for m in meters.values()] == [1 + 39, 1 + 7, 1]


def test_ticks_do_not_drift_and_missed_ones_are_left_out(tmp_path, clock):
    sampler = Recorder({"nvml": Counter()}, 0.1)
    sampler.obey({"open": f"{tmp_path}/a.jsonl"})
    due = []
    for now in (100.13, 100.2, 100.57, 100.58, 100.61):
        sampler.tick(now)
        due.append(round(sampler._due["nvml"], 6))
    assert due == [100.2, 100.3, 100.6, 100.6, 100.7]


# --- commands


def test_a_run_lies_between_two_readings_and_the_next_begins_with_the_last(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    sampler = Recorder({"nvml": Counter()}, 0.1)
    requests = {"open": str(first)}, {"open": str(second)}, {"close": True}, {"close": True}
    assert [sampler.obey(request) for request in requests] == [""] * 4
    rows = [Trace.read(path).rows for path in (first, second)]
    assert [[r.event or r.energy_uj for r in file] for file in rows] == [
        [1, "start", 2, "stop"],
        [2, "start", 3, 4, 5, 6, "stop"],  # at the end a GPU's counter is given time to show all
    ]
    assert rows[0][2] == rows[1][0]
    assert json.loads(rows[0][1].message) == {"live": ["nvml"], "starting": [], "absent": {}}


@pytest.mark.parametrize(
    "request_", [{}, {"quit": True}, {"open": ""}, {"open": "relative.jsonl"}, {"open": "/nowhere/at/all.jsonl"}]
)
def test_a_wrong_request_is_answered_and_changes_nothing(request_, tmp_path):
    sampler = Recorder({"nvml": (meter := Counter())}, 0.1)
    sampler.tick(time.monotonic() + 5)
    assert meter.reads == 0  # as no file is open
    assert sampler.obey(request_)
    assert sampler.obey({"open": f"{tmp_path}/a.jsonl"}) == ""


def test_a_meter_that_raises_does_not_cost_the_others(tmp_path):
    sampler = Recorder({"nvml": Broken(), "rapl": Counter(RaplMeter)}, 0.1)
    assert sampler.obey({"open": f"{tmp_path}/a.jsonl"}) == ""
    sampler.obey({"close": True})
    trace = Trace.read(tmp_path / "a.jsonl")
    assert [r.energy_uj for r in trace.rows if r.event is None] == [1, 2]
    assert "the driver went away" in next(e.message for e in trace.events if e.event == "error")


def test_a_full_disk_is_told_and_survived(tmp_path, capfd):
    sampler = Recorder({"nvml": Counter()}, 0.1)
    assert "No space left" in sampler.obey({"open": "/dev/full"})
    for late in range(5):
        sampler.tick(time.monotonic() + 60 + late)
    assert capfd.readouterr().err.count("No space left") == 1
    assert sampler.obey({"open": f"{tmp_path}/a.jsonl"}) == ""
    assert Trace.read(tmp_path / "a.jsonl").rows[0].energy_uj == 7


def test_half_a_line_is_not_continued(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"t_ns":1,"wall')  # of a sidecar that was killed
    sampler = Recorder({"nvml": Counter()}, 0.1)
    sampler.obey({"open": str(path)})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("bench.meters.sampler.os.write", lambda fd, data: write(fd, data[:20]))
        sampler.tick(time.monotonic() + 60)
    assert sampler.obey({"close": True}) == ""
    trace = Trace.read(path)
    assert [r.energy_uj for r in trace.rows if r.event is None] == [1, 3, 4, 5, 6]
    assert trace.damaged_lines == 2


def test_unknown_meters_are_named():
    with pytest.raises(ValueError, match="unknown meter 'magic': allowed: amdsmi, codecarbon, nvml"):
        make_meters(["magic"], [])


# --- a recording in place of hardware


def test_a_recording_is_replayed_at_its_pace(tmp_path, monkeypatch):
    path = tmp_path / "recorded.jsonl"
    recorded = [
        Reading(t_ns=t * S, wall_ns=1, source="nvml", component="gpu", device="GPU-0", energy_uj=t * 300_000_000)
        for t in range(5, 25)
    ]
    path.write_text("".join(r.to_json() + "\n" for r in [*recorded, Reading(t_ns=1, wall_ns=1, event="start")]))
    now = [1000 * S]
    monkeypatch.setattr("bench.meters.replay.time.monotonic_ns", lambda: now[0])
    meter = ReplayMeter(path)
    rows = meter.read()
    assert [r.t_ns for r in rows] == [1000 * S]
    now[0] += 10 * S
    rows += meter.read()
    now[0] += 60 * S
    rows += meter.read()
    assert (len(rows), meter.read(), meter.reason) == (20, [], None)
    (reading,) = Trace(rows).energy(1002 * S, 1012 * S)
    assert (reading.energy_joules, reading.source, reading.provenance) == (3000, "replay", "imported")
    path.write_text("")
    assert "holds no readings" in ReplayMeter(path).reason


# --- two processes


def fake_machine(monkeypatch, *gpus):
    for name, value in environment(*gpus).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def readings(path):
    return sum(row.event is None for row in Trace.read(path).rows)


def test_a_run_is_measured_from_end_to_end(tmp_path, monkeypatch):
    fake_machine(monkeypatch, fake_gpu(0, watts=300), fake_gpu(1, watts=500))
    with Sidecar(["nvml", "rapl"], gpus=[fake_gpu(1)["uuid"]], interval=0.05) as sidecar:
        assert (sidecar.error, sidecar.live) == (None, ["nvml", "conditions"])
        assert "no RAPL package" in sidecar.absent["rapl"]
        sidecar.open(tmp_path / "missing" / "a.jsonl")
        assert "No such file" in sidecar.error
        monkeypatch.chdir(tmp_path)
        sidecar.open(tmp_path.relative_to(tmp_path) / "a b.jsonl")
        t0 = time.monotonic_ns()
        os.kill(sidecar.pid, signal.SIGINT)
        time.sleep(1.2)
        t1 = time.monotonic_ns()
        sidecar.close()
        assert sidecar.error is None
    trace = Trace.read(tmp_path / "a b.jsonl")
    (reading,) = trace.energy(t0, t1)
    assert reading.device == fake_gpu(1)["uuid"]
    assert abs(reading.energy_joules - 500 * (t1 - t0) / S) <= reading.uncertainty_joules
    assert reading.power_watts_max == 500
    assert reading.samples >= 2
    assert reading.coverage > 0.99
    assert (trace.damaged_lines, [e.event for e in trace.events if e.event != "conditions"]) == (0, ["start", "stop"])
    assert (sidecar.pid, sidecar.error) == (None, None)


def test_a_killed_sidecar_is_survived(tmp_path, monkeypatch):
    fake_machine(monkeypatch, fake_gpu(0))
    sidecar = Sidecar(["nvml"]).start()
    sidecar.open(tmp_path / "a.jsonl")
    until(lambda: readings(tmp_path / "a.jsonl") >= 3)
    pid = sidecar.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    sidecar.open(tmp_path / "b.jsonl")
    sidecar.close()
    sidecar.stop()
    assert sidecar.error == "the meter sidecar has died"
    assert readings(tmp_path / "a.jsonl") >= 3


def test_a_hung_sidecar_is_given_up(tmp_path, monkeypatch):
    fake_machine(monkeypatch, fake_gpu(0))
    sidecar = Sidecar(["nvml"], answer=0.3).start()
    pid = sidecar.pid
    os.kill(pid, signal.SIGSTOP)
    sidecar.open(tmp_path / "a.jsonl")
    assert sidecar.error == "the meter sidecar does not answer"
    assert gone(pid)


def test_a_sidecar_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr("bench.process.sys.executable", "/nowhere/python")
    assert "did not start" in Sidecar(["nvml"]).start().error
    monkeypatch.setattr("bench.process.sys.executable", "/bin/false")
    sidecar = Sidecar(["nvml"])
    sidecar.start()
    assert "did not start" in sidecar.error
    sidecar.open(Path("unused"))
    sidecar.close()
    assert "did not start" in sidecar.error
    never = Sidecar(["nvml"])
    never.close()
    assert "not started" in never.error


def test_a_forked_child_can_let_go_of_the_pipes(monkeypatch):
    fake_machine(monkeypatch, fake_gpu(0))
    sidecar = Sidecar(["nvml"]).start()
    process = sidecar._process
    sidecar.forget()
    assert (sidecar.pid, process.wait(PATIENCE)) == (None, 0)  # nobody holds its input any more
    sidecar.stop()


PARENT = r"""
import os, sys, time
from pathlib import Path
from bench.meters.sidecar import Sidecar
sidecar = Sidecar(["nvml"]).start()
sidecar.open(Path(sys.argv[1]))
trainer = os.fork()  # it holds the sidecar's pipes, as forked processes do
if trainer:
    os.write(1, f"{sidecar.pid} {trainer}\n".encode())
time.sleep(60)
os._exit(0)
"""


def test_the_sidecar_ends_with_its_parent_although_a_trainer_lives_on(tmp_path, monkeypatch):
    fake_machine(monkeypatch, fake_gpu(0))
    path = tmp_path / "a.jsonl"
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True)
    sidecar, trainer = map(int, parent.stdout.readline().split())
    try:
        until(lambda: readings(path) >= 3)
        parent.kill()
        parent.wait()
        until(lambda: gone(sidecar))
        assert not gone(trainer)
    finally:
        parent.stdout.close()
        for pid in (sidecar, trainer):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
    trace = Trace.read(path)
    assert trace.damaged_lines == 0


NO_NETWORK = """
import os, socket
def refuse(self, address):
    os.write(2, f"CONNECTED {address}\\n".encode())
    raise OSError("no network in tests")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


@pytest.mark.slow
def test_the_whole_sidecar_opens_no_connection_and_codecarbon_joins(tmp_path, monkeypatch, capfd):
    fake_machine(monkeypatch, fake_gpu(0))
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    paths = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("CODECARBON_PUE", "7")
    path = tmp_path / "a.jsonl"

    def joined():
        return any(source == "codecarbon" for source, _, _ in Trace.read(path).devices)

    with Sidecar(["nvml", "rapl", "codecarbon"]) as sidecar:
        assert (sidecar.live, sidecar.starting) == (["nvml", "conditions"], ["codecarbon"])
        sidecar.open(path)
        until(joined)
        sidecar.close()
        assert sidecar.error is None
    trace = Trace.read(path)
    sources = {source for source, _, _ in trace.devices}
    assert sources == {"nvml", "codecarbon"}
    first = next(row.t_ns for row in trace.rows if row.source == "codecarbon")
    before = [row for row in trace.rows if row.source == "nvml" and row.event is None and row.t_ns < first]
    assert len(before) >= 5  # CodeCarbon's start does not keep the GPUs waiting
    assert "CONNECTED" not in capfd.readouterr().err
