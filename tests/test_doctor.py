"""`bench doctor` on machines that are made up: each source with its reading, its pace, and a remedy where it is not there."""

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from analytics.say.blocks import Lines, Sentence
from analytics.say.doctor import blocks
from bench.machine import doctor
from bench.machine.doctor import Finding, changes, findings, period
from bench.meters import gpu, meter
from bench.schema import Machine
from tests import fake_nvml
from tests.clock import Clock
from tests.fake_nvml import fake_gpu
from tests.processes import PATIENCE, bench
from tests.test_meters_rapl import SERVER, Powercap, hide

MS, S = 1_000_000, 1_000_000_000
NO_COUNTER = {83: 3, "nvmlDeviceGetTotalEnergyConsumption": 3}
NO_POWER = {186: 3, "nvmlDeviceGetPowerUsage": 3}
WAVE = {"high": 700, "low": 200, "period": 0.03, "duty": 0.5}


class Ticking(Clock):
    """A clock that calls `ticks` when time has passed; processes use no processor."""

    def __init__(self) -> None:
        self.ticks: list[Callable[[], None]] = []
        super().__init__(1000.0, moved=lambda seconds: [tick() for tick in self.ticks])

    def process_time(self) -> float:
        return 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    """The clock of the doctor and of the meters that it reads: a loaded machine changes nothing."""
    clock = Ticking()
    for module in (doctor, meter, gpu):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_estimate", lambda: Finding("energy estimate", "ok", "not asked"))


def found(monkeypatch: pytest.MonkeyPatch, clock: Ticking, *gpus: dict[str, Any]) -> dict[str, Finding]:
    library = fake_nvml.install(monkeypatch, *gpus, found=bool(gpus))
    clock.ticks.append(lambda: setattr(library, "now", Fraction(clock.ns, S)))
    clock.ticks[-1]()
    return {finding.subject: finding for finding in findings()}


# --- how often a reading changes


def stepped(step: int, reading: int, count: int) -> list[tuple[int, int]]:
    return [(t * MS, t // step) for t in range(0, count * reading, reading)]


@pytest.mark.parametrize("step", [20, 100, 7])
def test_the_period_of_a_counter(step: int) -> None:
    assert period(stepped(step, 1, 1000)) == pytest.approx(step / 1000, rel=0.02)
    assert period(stepped(step, 3, 300)) == pytest.approx(step / 1000, rel=0.05)


def test_a_change_that_was_not_seen_does_not_lengthen_the_period() -> None:
    points = [point for point in stepped(100, 5, 200) if not 290 * MS < point[0] < 510 * MS]
    assert period(points) == pytest.approx(0.1, rel=0.03)


def test_no_period_where_none_can_be_told() -> None:
    assert period(stepped(5, 5, 100)) is None  # new at every reading
    assert period(stepped(10_000, 5, 100)) is None
    assert period([(1, 1)]) is None
    assert changes([]) == []


# --- GPUs


def test_every_source_of_a_gpu(monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking) -> None:
    said = found(
        monkeypatch,
        clock,
        fake_gpu(0, 300, memory_used=2**30),
        fake_gpu(1, WAVE, period=0.02, power_scopes={0: 0}, event_reasons=0x40),
        fake_gpu(2, {**WAVE, "period": 0.4}, errors=NO_COUNTER, power_period=0.1),
        fake_gpu(3, errors=NO_POWER),
        fake_gpu(4, errors={**NO_COUNTER, **NO_POWER}),
    )
    counter = said["GPU 0 energy counter"]
    assert counter.state == "ok"
    assert counter.values["period_seconds"] == pytest.approx(0.1, rel=0.01)
    assert counter.values["power_watts"] == pytest.approx(300, rel=0.01)
    assert said["GPU 1 energy counter"].values["period_seconds"] == pytest.approx(0.02, rel=0.02)
    assert said["GPU 0 power"].values == {"power_watts": 300}
    assert "period_seconds" in said["GPU 2 power"].values
    states = {subject: finding.state for subject, finding in said.items()}
    assert states["GPU 2 energy counter"] == states["GPU 3 power"] == states["GPU 4 energy"] == "absent"
    assert (states["GPU 3 energy counter"], states["GPU 1 clocks"]) == ("ok", "problem")
    assert "throttled now by hw_thermal" in said["GPU 1 clocks"].detail
    assert said["GPU 0"].values["memory_used_bytes"] == 2**30
    assert "torch" in said


def test_who_else_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking) -> None:
    said = found(
        monkeypatch,
        clock,
        fake_gpu(0, pids=[os.getpid()]),
        fake_gpu(1, pids=[1]),
        fake_gpu(2, memory_used=2**30),
        fake_gpu(3, mig=["MIG-a"]),
    )
    assert said["GPU 0"].state == "ok"
    assert said["GPU 1"].state == "problem"
    assert "used by " in said["GPU 1"].remedy
    assert "--gpus 1" in said["GPU 1"].remedy
    assert said["GPU 2"].state == "problem"
    assert "--pid=host" in said["GPU 2"].remedy
    assert "nvidia-smi -mig 0" in said["GPU 3"].remedy
    assert "of the whole board (MIG)" in said["GPU 3 energy counter"].detail


def test_a_container_with_process_ids_of_its_own(
    monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking
) -> None:
    monkeypatch.setattr(doctor, "sees_all_processes", lambda: False)
    processes = found(monkeypatch, clock, fake_gpu(0, pids=[2**22 + 1]))["GPU processes"]
    assert processes.state == "unknown"
    assert "1 that it lists are unknown here" in processes.detail
    assert "--pid=host" in processes.remedy
    without = found(monkeypatch, clock)["GPUs"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in without.remedy
    monkeypatch.setattr(doctor, "sees_all_processes", lambda: True)
    monkeypatch.setattr(doctor, "CONTAINER_MARKS", ())
    assert found(monkeypatch, clock)["GPUs"].remedy == "runs use CPU processes"
    assert found(monkeypatch, clock, fake_gpu(0))["GPU processes"].state == "ok"


def test_whether_the_sensor_was_checked(monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking) -> None:
    asked = []
    monkeypatch.setattr(doctor, "fresh", lambda uuid, driver: asked.append((uuid, driver)) or uuid.endswith("4"))
    gpu = fake_gpu(0)
    sensor = found(monkeypatch, clock, gpu, {**fake_gpu(1), "uuid": "GPU-1x"})
    assert asked == [(gpu["uuid"], "580.82.07"), ("GPU-1x", "580.82.07")]
    assert sensor["GPU 0 sensor"].state == "ok"
    assert sensor["GPU 1 sensor"].state == "unknown"
    assert "tests.gpu_check" in sensor["GPU 1 sensor"].remedy


def test_readings_that_fail_are_told(monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking) -> None:
    said = found(monkeypatch, clock, fake_gpu(0, errors={83: 999}, errors_between=(1000.5, None)))
    assert said["GPU 0 energy counter"].state == "problem"
    assert "readings failed: energy: " in said["GPU 0 energy counter"].detail
    assert said["GPU 0 power"].state == "ok"
    still = found(monkeypatch, clock, fake_gpu(0, period=1000))["GPU 0 energy counter"]
    assert still.state == "problem"
    assert "did not change" in still.detail


# --- CPU and memory


def ticking(powercap: Powercap, clock: Ticking) -> Callable[[], None]:
    """Let all zones count 5 J every 50 ms."""
    start = {zone: int((zone / "energy_uj").read_text()) for zone in powercap.zones.values()}
    began, steps = clock.ns, [0]

    def tick() -> None:
        step = (clock.ns - began) // (50 * MS)
        if step != steps[-1]:
            steps.append(step)
            for zone, energy in start.items():
                (zone / "energy_uj").write_text(f"{(energy + step * 5_000_000) % 262143328850}\n")

    return tick


def test_rapl_zones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_estimate: None, clock: Ticking) -> None:
    powercap = Powercap(tmp_path, SERVER)
    powercap.set("intel-rapl:1", 262143328850 - 20_000_000)  # begins again while it is read
    monkeypatch.setenv("WATTBENCH_POWERCAP", str(powercap.root))
    clock.ticks.append(ticking(powercap, clock))
    said = found(monkeypatch, clock)
    for subject in ("RAPL intel-rapl:0 package-0", "RAPL intel-rapl:0:1 dram", "RAPL intel-rapl:1 package-1"):
        assert said[subject].state == "ok", said[subject]
        assert said[subject].values["period_seconds"] == pytest.approx(0.05, rel=0.01)
        assert said[subject].values["power_watts"] == pytest.approx(100, rel=0.01)
        assert said[subject].values["energy_joules"] >= 0
    not_added = [text.split()[0] for text in said["RAPL not added"].detail.split("; ")]
    assert set(not_added) == {
        "intel-rapl-mmio:0", "intel-rapl-mmio:0:0", "intel-rapl:0:0", "intel-rapl:1:0", "intel-rapl:2"
    }  # fmt: skip


def test_rapl_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_estimate: None, clock: Ticking
) -> None:
    powercap = Powercap(tmp_path, SERVER)
    monkeypatch.setenv("WATTBENCH_POWERCAP", str(powercap.root))
    hide(powercap, "intel-rapl:1:1")
    said = found(monkeypatch, clock)
    assert said["RAPL intel-rapl:1:1 dram"].state == "absent"
    assert "chmod a+r" in said["RAPL intel-rapl:1:1 dram"].remedy
    assert said["RAPL intel-rapl:1 package-1"].state == "problem"  # nothing ticks
    hide(powercap, "intel-rapl:0")
    said = found(monkeypatch, clock)
    absent = said["CPU and DRAM energy"]
    assert absent.state == "absent"
    assert f"chmod a+r {powercap.root}/intel-rapl:*/energy_uj" in absent.remedy
    assert "udev" in absent.remedy
    assert not any(subject.startswith("RAPL intel") for subject in said)


def test_no_rapl_at_all_and_rapl_that_a_container_hides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_estimate: None, clock: Ticking
) -> None:
    root = tmp_path / "powercap"
    monkeypatch.setenv("WATTBENCH_POWERCAP", str(root))
    monkeypatch.setattr(doctor, "in_container", lambda: True)
    absent = found(monkeypatch, clock)["CPU and DRAM energy"]
    assert "no RAPL package" in absent.detail
    assert "-v /sys:/host-sys:ro -e WATTBENCH_POWERCAP=/host-sys/class/powercap" in absent.remedy
    root.mkdir()
    (root / "intel-rapl:0").symlink_to(tmp_path / "masked")
    hidden = found(monkeypatch, clock)["CPU and DRAM energy"]
    assert "cannot be opened from here" in hidden.detail
    assert "WATTBENCH_POWERCAP" in hidden.remedy


# --- the host, the estimate, the software


@pytest.mark.parametrize(
    ("busy", "steal", "state"),
    [(0.02, 0.0, "ok"), (0.5, 0.0, "problem"), (0.02, 0.2, "problem"), (None, None, "unknown")],
)
def test_the_host(
    monkeypatch: pytest.MonkeyPatch,
    no_estimate: None,
    clock: Ticking,
    busy: float | None,
    steal: float | None,
    state: str,
) -> None:
    before = {"busy": 10.0, "steal": 1.0, "all": 100.0, "load": 0.5, "waited": 1.0}
    after = {"busy": 10.0 + (busy or 0), "steal": 1.0 + (steal or 0), "all": 101.0, "load": 0.5, "waited": 1.001}
    answers = [{}, {}] if busy is None else [before, after]
    monkeypatch.setattr(doctor, "host_facts", lambda files: answers.pop(0))
    host = found(monkeypatch, clock)["host"]
    assert host.state == state
    if state != "unknown":
        assert host.values["steal_share"] == pytest.approx(steal)
    assert bool(host.remedy) == (state == "problem")


def test_the_estimate_is_made_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = os.environ.get("HOME")
    monkeypatch.setattr(doctor, "ESTIMATE_SECONDS", PATIENCE)
    finding = doctor._estimate()
    assert finding.state == "ok", finding
    assert " by " in finding.detail
    assert "a model, labelled estimated" in finding.detail
    assert finding.values["power_watts_dram_estimated"] > 0
    assert (Path.cwd(), os.environ.get("HOME")) == (tmp_path, home)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "ESTIMATE_SECONDS", 0.01)
    late = doctor._estimate()
    assert (late.state, late.detail) == ("problem", "CodeCarbon did not answer within 0.01 s")


def test_where_the_packages_are(monkeypatch: pytest.MonkeyPatch, no_estimate: None, clock: Ticking) -> None:
    said = found(monkeypatch, clock)
    for package in ("bench", "analytics", "app"):
        assert Path(said[f"import {package}"].detail) == Path(__file__).parent.parent / package
    assert said["carbon"].state == "ok"


def test_a_machine_is_watched_for_a_second(clock: Ticking) -> None:
    watch = doctor.Survey(Machine(cpu_model="x", cpu_count=1))
    assert watch.seconds == pytest.approx(1.0, abs=2 * doctor.READING_INTERVAL)


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([("GPU 0 power", {"power_watts": 9}), ("GPU 1 energy counter", {"energy_joules": 9})], "here: 2 GPUs"),
        ([("RAPL intel-rapl:0:1 dram", {"energy_joules": 9}), ("RAPL a p", {"energy_joules": 9})], "here: memory, CPU"),
        ([("energy estimate", {"power_watts_cpu_estimated": 9, "power_watts_dram_estimated": 3})], "about 12 W"),
        ([("host", {"steal_share": 0.0})], "neither measured nor estimated"),
    ],
)
def test_the_answer_says_whose_energy_can_be_measured(findings: list[tuple[str, dict[str, float]]], said: str) -> None:
    first, second, *_ = blocks([Finding(subject, "ok", "", "", values) for subject, values in findings])
    assert isinstance(first, Sentence)
    assert said in first.text
    assert second == Sentence("No problems.", "answer")
    broken = Finding("GPU 0 power", "problem", "", "repair it", {"power_watts": 9})
    shown = [*blocks([broken])]
    assert shown[0] == Sentence("Energy can be neither measured nor estimated here", "title"), "only what works counts"
    assert Lines(("GPU 0 power: repair it",)) in shown


@pytest.mark.slow
def test_the_verb_with_gpus(tmp_path: Path) -> None:
    variables = os.environ | fake_nvml.environment(*(fake_gpu(i) for i in range(8)))
    done = bench(tmp_path, "doctor", "--json", env=variables)
    said = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert {f"GPU {i} energy counter" for i in range(8)} <= set(said)
    assert said["GPU 7 energy counter"]["state"] == "ok"
    assert list(tmp_path.iterdir()) == []
