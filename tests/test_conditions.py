"""What surrounds a window: clocks, heat, throttling, other users, and the load of the host."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from bench.figures.flags import THROTTLED_SHARE
from bench.figures.metrics import SLOWDOWNS
from bench.meters import conditions
from bench.meters.conditions import (
    EVENT,
    HOST,
    ConditionsMeter,
    gpu_conditions,
    host_conditions,
    host_facts,
    open_host_files,
    used_by_run,
)
from bench.meters.meter import Reading
from bench.meters.nvml import NvmlMeter
from bench.meters.trace import Trace
from bench.record import GpuConditions
from tests.fake_nvml import fake_gpu, install

S = 10**9
SINCE = 1000
NOT_SUPPORTED = 3


def facts_in(folder):
    """Facts of the host from a folder in place of /proc."""
    return host_facts(open_host_files(folder))


def events(
    monkeypatch: pytest.MonkeyPatch, gpu: dict[str, Any], seconds: int = 20, root: int | None = None
) -> list[Reading]:
    """Rows of the GPU's conditions, read once a second from SINCE on."""
    nvml, now = install(monkeypatch, gpu), [0]
    monkeypatch.setattr("bench.meters.gpu.time.monotonic_ns", lambda: now[0])
    nvml.now = SINCE
    meter, rows = NvmlMeter([gpu["uuid"]]), []
    for second in range(seconds):
        now[0] = (SINCE + second) * S
        nvml.now = Fraction(now[0], S)
        rows += meter.conditions(os.getpid() if root is None else root)
    meter.close()
    return rows


def around(
    monkeypatch: pytest.MonkeyPatch, gpu: dict[str, Any], t0: float = 2.5, t1: float = 17.5, root: int | None = None
) -> GpuConditions:
    rows = events(monkeypatch, gpu, root=root)
    found = gpu_conditions(rows, gpu["uuid"], round((SINCE + t0) * S), round((SINCE + t1) * S))
    return GpuConditions.model_validate_json(found.model_dump_json())


def fact(t: float, device: str = "GPU-0", **facts: Any) -> Reading:
    return Reading(t_ns=round(t * S), wall_ns=1, device=device, event=EVENT, message=json.dumps(facts))


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is no child of the one that counts as the root here."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


# --- a GPU


def test_plain_facts_have_the_units_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fake_gpu(0, sm_clock=1755, memory_clock=2619, temperature=61, memory_temperature=70, limit=650)
    found = around(monkeypatch, gpu | {"memory_used": 3 * 2**30})
    assert (found.sm_clock_hz_mean, found.memory_clock_hz_mean) == (1755e6, 2619e6)
    assert (found.temperature_celsius_max, found.memory_temperature_celsius_max) == (61, 70)
    assert (found.power_limit_watts, found.memory_used_bytes_max) == (650, 3 * 2**30)
    assert (found.sm_clock_drift, found.temperature_celsius_drift, found.throttled_share) == (0, 0, {})


def test_what_a_gpu_does_not_say_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sm_clock", "memory_clock", "temperature", "memory_temperature", "event_reasons", "limit", "pstate")
    functions = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetFieldValues")
    gpu = fake_gpu(0, **dict.fromkeys(names), errors=dict.fromkeys(functions, NOT_SUPPORTED))
    assert around(monkeypatch, gpu) == GpuConditions(device=gpu["uuid"])
    assert gpu_conditions([], "GPU-9", 0, S) == GpuConditions(device="GPU-9")


@pytest.mark.parametrize(("field", "name"), [(269, "sw_thermal"), (270, "hw_thermal"), (271, "power_brake")])
def test_a_slowdown_between_two_readings_is_seen_by_its_counter(
    monkeypatch: pytest.MonkeyPatch, field: int, name: str
) -> None:
    gpu = fake_gpu(0, throttle={field: 1.0}, throttled_between=(SINCE + 5.1, SINCE + 5.9))
    share = around(monkeypatch, gpu).throttled_share
    assert share == {name: pytest.approx(0.8 / 16)}  # from the reading before the window to the one after it
    assert share[name] > THROTTLED_SHARE
    assert name in SLOWDOWNS


@pytest.mark.parametrize(
    ("bit", "name"), [(0x8, "hw_slowdown"), (0x20, "sw_thermal"), (0x40, "hw_thermal"), (0x80, "power_brake")]
)
def test_a_slowdown_is_seen_by_its_bit(monkeypatch: pytest.MonkeyPatch, bit: int, name: str) -> None:
    gpu = fake_gpu(0, throttle={}, event_reasons=bit | 0x1, throttled_between=(SINCE + 9.5, SINCE + 12.5))
    assert around(monkeypatch, gpu).throttled_share == {name: pytest.approx(3 / 15)}
    assert name in SLOWDOWNS


def test_a_power_cap_is_told_and_is_no_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fake_gpu(0, throttle={74: 0.5}, event_reasons=0x4)
    assert around(monkeypatch, gpu).throttled_share == {"sw_power_cap": 1.0}
    assert "sw_power_cap" not in SLOWDOWNS
    gpu = fake_gpu(0, throttle={74: 0.5}, event_reasons=0x1)
    assert around(monkeypatch, gpu).throttled_share == {"sw_power_cap": pytest.approx(0.5)}


def test_a_gpu_that_is_idle_or_has_clocks_set_is_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around(monkeypatch, fake_gpu(0, event_reasons=0x1 | 0x2 | 0x10 | 0x100)).throttled_share == {}


def test_a_drop_of_the_clocks_is_a_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fake_gpu(0, sm_clock=2000, sm_clock_throttled=1500, throttled_between=(SINCE + 10, None))
    assert around(monkeypatch, gpu).sm_clock_drift == pytest.approx(-0.25, abs=0.03)


def test_a_gpu_that_is_idle_before_and_after_the_window_has_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fake_gpu(0, sm_clock=1980, sm_clock_throttled=345, throttled_between=(SINCE + 5, None))
    found = around(monkeypatch, gpu, 1.5, 4.5)  # readings at 2, 3, 4; the next one is of an idle GPU
    assert (found.sm_clock_drift, found.sm_clock_hz_mean) == (0, 1980e6)
    rows = [fact(t, temperature=30 if t in (0, 6) else 70, sm_mhz=345 if t in (0, 6) else 1980) for t in range(7)]
    found = gpu_conditions(rows, "GPU-0", S // 2, round(5.5 * S))
    assert (found.temperature_celsius_drift, found.sm_clock_drift) == (0, 0)


def test_warming_is_a_drift_in_degrees() -> None:
    rows = [fact(t, temperature=50 + t) for t in range(11)]
    found = gpu_conditions(rows, "GPU-0", 0, 10 * S)
    assert (found.temperature_celsius_drift, found.temperature_celsius_max) == (10, 60)


@pytest.mark.parametrize("at", [[], [5.0], [4.0, 4.0], [1.0], [30.0]])
def test_windows_with_hardly_an_event_have_no_shares_and_no_drift(at: list[float]) -> None:
    rows = [fact(t, sm_mhz=1000, temperature=50, reasons=0x40, throttled_ns={"hw_thermal": 1}) for t in at]
    found = gpu_conditions(rows, "GPU-0", 3 * S, 10 * S)
    assert found.throttled_share == {}
    assert (found.temperature_celsius_max, found.sm_clock_hz_mean) == ((50, 1e9) if at else (None, None))


def test_a_counter_that_starts_again_is_not_negative() -> None:
    rows = [fact(t, throttled_ns={"hw_thermal": 9 * S - t * S}) for t in range(5)]
    assert gpu_conditions(rows, "GPU-0", 0, 4 * S).throttled_share == {}


def test_events_of_other_devices_and_other_kinds_do_not_count() -> None:
    other = Reading(t_ns=2 * S, wall_ns=1, device="GPU-0", event="error", message="lost")
    rows = [fact(1, "GPU-1", temperature=90), other, fact(3, temperature=40)]
    assert gpu_conditions(rows, "GPU-0", 0, 4 * S).temperature_celsius_max == 40


# --- other users of a GPU


def test_a_process_of_others_makes_a_gpu_shared(monkeypatch: pytest.MonkeyPatch, stranger: int) -> None:
    rows = events(monkeypatch, fake_gpu(0, pids=[os.getpid(), os.getppid()]))
    window = (SINCE + 2) * S, (SINCE + 10) * S
    uuid = rows[0].device or ""
    assert gpu_conditions(rows, uuid, *window).shared is True
    assert around(monkeypatch, fake_gpu(0, pids=[stranger])).shared is False  # a child of ours
    assert used_by_run(rows, uuid, *window)


def test_a_process_of_others_alone_counts_where_all_processes_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, stranger: int
) -> None:
    gpu = fake_gpu(0, pids=[os.getppid()])
    for sees_all, shared in ((True, True), (False, None)):
        monkeypatch.setattr(conditions, "sees_all_processes", lambda sees_all=sees_all: sees_all)
        assert around(monkeypatch, gpu, root=stranger).shared is shared


def test_a_gpu_on_which_no_process_is_listed_may_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around(monkeypatch, fake_gpu(0, pids=[])).shared is None
    assert around(monkeypatch, fake_gpu(0, pids=[2**22 + 1])).shared is None  # a pid of the host, not of this container
    rows = events(monkeypatch, fake_gpu(0, pids=[]))
    assert not used_by_run(rows, rows[0].device or "", SINCE * S, (SINCE + 9) * S)


# --- the host


def proc(folder: Path, ticks: tuple[int, ...] = (10, 20, 30, 4000, 50, 6, 7, 80), total: int = 2_500_000) -> Path:
    (folder / "pressure").mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {' '.join(map(str, ticks))} 0 0\ncpu0 1 2 3\n")
    (folder / "loadavg").write_text("1.25 0.5 0.1 1/100 4242\n")
    (folder / "pressure" / "cpu").write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull total=9\n")
    return folder


def test_facts_of_the_host_are_seconds(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    facts = facts_in(proc(tmp_path))
    assert facts == {
        "busy": pytest.approx(73 / hertz),
        "steal": pytest.approx(80 / hertz),
        "all": pytest.approx((73 + 80 + 4050) / hertz),
        "load": 1.25,
        "waited": 2.5,
    }


@pytest.mark.parametrize(
    ("missing", "lost"),
    [("stat", {"busy", "steal", "all"}), ("loadavg", {"load"}), ("pressure/cpu", {"waited"})],
)
def test_a_file_that_is_missing_or_odd_costs_only_its_own_facts(tmp_path: Path, missing: str, lost: set[str]) -> None:
    whole = facts_in(proc(tmp_path))
    for text in ("", "cpu 1 2\n", "x y z"):
        (tmp_path / missing).write_text(text)
        assert set(facts_in(tmp_path)) == set(whole) - lost
    (tmp_path / missing).unlink()
    assert set(facts_in(tmp_path)) == set(whole) - lost
    assert facts_in(tmp_path / "none") == {}


def test_a_host_without_facts_has_no_row(tmp_path: Path) -> None:
    assert ConditionsMeter([], 1, tmp_path).read() == []
    (row,) = ConditionsMeter([], 1, proc(tmp_path)).read()
    assert (row.device, row.event) == (HOST, EVENT)
    assert Trace([row]).devices == []  # an event, no reading of energy


def host(t: float, **facts: float) -> Reading:
    return fact(t, HOST, **facts)


def test_shares_of_the_host_are_of_all_processors_over_the_window() -> None:
    rows = [host(t, busy=10 + 3 * t, steal=0.4 * t, all=8 * t, load=2 + t, waited=0.25 * t) for t in range(12)]
    found = host_conditions(rows, 2 * S, 10 * S, own_cpu_seconds=16.0)
    assert found.load_average == 3  # before the window: what is there without the run
    assert found.steal_share == pytest.approx(0.05)
    assert found.other_share == pytest.approx((3 - 2) / 8)
    assert found.pressure_share == pytest.approx(0.25)


def test_without_the_time_of_the_run_that_of_others_is_not_known() -> None:
    rows = [host(t, busy=t, steal=0, all=2 * t) for t in range(5)]
    found = host_conditions(rows, S, 3 * S, None)
    assert (found.other_share, found.steal_share, found.load_average, found.pressure_share) == (None, 0, None, None)
    more = host_conditions(rows, S, 3 * S, own_cpu_seconds=99)
    assert more.other_share == 0  # never negative


def test_windows_with_hardly_an_event_of_the_host_tell_nothing_but_the_load() -> None:
    assert host_conditions([], 0, S, 1.0) is None
    for at in (0.5, 2.0, 9.0):
        found = host_conditions([host(at, busy=1, steal=0, all=2, load=0.5, waited=1)], S, 3 * S, 1.0)
        assert (found.load_average, found.steal_share, found.other_share, found.pressure_share) == (
            0.5,
            None,
            None,
            None,
        )
    frozen = [host(t, busy=0, steal=0, all=0) for t in range(5)]  # a sandbox whose /proc/stat stands still
    found = host_conditions(frozen, S, 3 * S, 1.0)
    assert (found.steal_share, found.other_share) == (None, None)


def test_others_are_seen_by_the_time_they_take(tmp_path: Path) -> None:
    rows = [host(0, **facts_in(proc(tmp_path, (0, 0, 0, 0, 0, 0, 0, 0))))]
    rows.append(host(10, **facts_in(proc(tmp_path, (1000, 0, 100, 900, 0, 0, 0, 0)))))
    found = host_conditions(rows, S, 9 * S, own_cpu_seconds=8.0)
    hertz = os.sysconf("SC_CLK_TCK")
    assert found.other_share == pytest.approx((1100 / hertz - 10) / (2000 / hertz))
