"""The stand-in for NVML is exact, and what our meter makes of it through the real pynvml is near enough to the truth."""

import bisect
import ctypes
import os
import sys
import time
from fractions import Fraction

import numpy as np
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.meters.meter import INTERVAL
from bench.meters.nvml import NvmlMeter
from bench.meters.trace import Trace
from tests.fake_nvml import LIBRARY, build, counter, environment, fake_gpu, install, truth
from tests.processes import run

S = 1_000_000_000
WAVE = {"high": 700, "low": 200, "period": 0.35, "duty": 0.5}
UNKNOWN, NOT_SUPPORTED = 999, 3
NO_COUNTER = {83: NOT_SUPPORTED, "nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}


def first():
    """Initialise NVML and return the handle of the first GPU."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def fields(handle, *wanted):
    """Values of fields, or the code of the error."""
    got = pynvml.nvmlDeviceGetFieldValues(handle, list(wanted))
    kinds = {pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal", pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal"}
    return [-v.nvmlReturn if v.nvmlReturn else getattr(v.value, kinds[v.valueType]) for v in got]


# --- the library: energy and power


@given(
    watts=st.tuples(st.integers(0, 1200), st.integers(0, 1200)),
    period=st.floats(0.001, 10),
    duty=st.floats(0, 1),
    phase=st.floats(0, 20),
    step=st.sampled_from([0, 0.02, 0.1, 0.7]),
    reset_at=st.none() | st.floats(0, 2000),
    t=st.floats(0, 1_000_000) | st.floats(0, 2000),
)
def test_the_counter_is_the_integral_of_power_to_the_millijoule(watts, period, duty, phase, step, reset_at, t):
    wave = {"high": max(watts), "low": min(watts), "period": period, "duty": duty, "phase": phase}
    gpu = fake_gpu(0, wave, period=step, reset_at=reset_at)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, gpu).now = t
        handle = first()
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == counter(gpu, t)
        assert fields(handle, 83) == [counter(gpu, t)]


def test_the_truth_is_the_sum_of_small_steps():
    gpu = fake_gpu(0, {**WAVE, "duty": 0.3, "phase": 0.1})
    steps = [700 if (t / 1000 + 0.1 + 1e-9) % 0.35 < 0.105 else 200 for t in range(250, 5250)]
    assert float(truth(gpu, 0.25, 5.25)) == pytest.approx(sum(steps) / 1000, abs=1)
    assert truth(gpu, 1, 2) + truth(gpu, 2, 7.5) == truth(gpu, 1, 7.5)
    assert truth(fake_gpu(0, 300), 5, 15) == 3000


@pytest.mark.parametrize("t", [1000.0, 1000.05, 1234.567])
def test_power_is_instant_or_a_mean_over_the_sensor_s_window(monkeypatch, t):
    continuous = fake_gpu(0, WAVE)
    sensor = fake_gpu(1, WAVE, power_period=0.1, power_window=0.025)
    install(monkeypatch, continuous, sensor).now = t
    updated = Fraction(int(t * 10), 10)
    part = int(truth(sensor, updated - Fraction(25, 1000), updated) / Fraction(25, 1000) * 1000)
    second = int(truth(continuous, Fraction(round(t * 1000), 1000) - 1, Fraction(round(t * 1000), 1000)) * 1000)
    assert fields(first(), 186, 185) == [700_000 if (t + 1e-9) % 0.35 < 0.175 else 200_000, second]
    assert fields(pynvml.nvmlDeviceGetHandleByIndex(1), 186) == [part]


def test_a_field_that_fails_holds_garbage(monkeypatch):
    nvml = install(monkeypatch, fake_gpu(0, 300, errors={186: UNKNOWN}, errors_between=(10, 20)))
    nvml.now = 10.0
    power, energy = pynvml.nvmlDeviceGetFieldValues(first(), [(186, 0), 83])
    assert (power.nvmlReturn, power.valueType, power.value.ullVal) == (UNKNOWN, 99, 12345678)
    assert (energy.nvmlReturn, energy.value.ullVal, energy.latencyUsec) == (0, 3_000_000, 20)
    nvml.now = None
    before = int(time.time() * 1e6)
    (energy,) = pynvml.nvmlDeviceGetFieldValues(first(), [83])
    assert before <= energy.timestamp <= time.time() * 1e6


# --- the library: context, identity, failures


FORKED = """
import os, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print(pynvml.nvmlDeviceGetName(handle), open("/proc/self/maps").read().count("/libnvidia-ml.so.1") > 0, flush=True)
if not os.fork():
    try:
        pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        print(error, flush=True)
    pynvml.nvmlInit()
    print(pynvml.nvmlDeviceGetCount(), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_child_finds_the_library_by_its_name_and_a_fork_starts_anew():
    variables = os.environ | environment(fake_gpu(0, name="Fake GPU"))
    child = run([sys.executable, "-c", FORKED], env=variables)
    assert child.stdout.splitlines() == ["Fake GPU True", "Uninitialized", "1"], child.stderr
    assert build().name == LIBRARY


def test_without_a_description_there_is_no_driver(monkeypatch):
    install(monkeypatch, fake_gpu(0))
    monkeypatch.delenv("FAKE_NVML")
    with pytest.raises(pynvml.NVMLError_LibraryNotFound):
        pynvml.nvmlInit()
    assert ctypes.CDLL(str(build())).nvmlShutdown() == pynvml.NVML_ERROR_UNINITIALIZED


# --- our meter and our trace against the truth


def record(monkeypatch, gpu, times):
    """Rows of our meter, read at these times in seconds."""
    nvml, now = install(monkeypatch, gpu), [0]
    monkeypatch.setattr("bench.meters.gpu.time.monotonic_ns", lambda: now[0])
    meter, rows = None, []
    for seconds in times:
        now[0] = round(seconds * S)
        nvml.now = Fraction(now[0], S)
        meter = meter or NvmlMeter([gpu["uuid"]])
        rows += meter.read()
    meter.close()
    return rows


def ticks(seconds, interval=0.1, lag=0.0, dither=0.002, since=1000):
    """Times of readings, a little late each, `lag` after the counter's steps."""
    late = lag + dither * np.random.default_rng(7).random(int(seconds / interval))
    return (since + interval * np.arange(len(late)) + late).tolist()


def joules(gpu, t0, t1):
    return float(truth(gpu, Fraction(t0, S), Fraction(t1, S)))


def errors(gpu, rows, seconds, windows=150):
    """Relative errors of windows at random times: of our readings, and of readings not interpolated. Sorted.

    Each error lies within the bound that the reading states.
    """
    trace, times = Trace(rows), [row.t_ns for row in rows]
    ours, quantised = [], []
    for t0 in np.random.default_rng(11).integers(times[0], times[-1] - seconds * S, windows).tolist():
        t1 = t0 + seconds * S
        true = joules(gpu, t0, t1)
        (reading,) = trace.energy(t0, t1)
        a, b = (rows[bisect.bisect_right(times, t) - 1].energy_uj for t in (t0, t1))
        assert abs(reading.energy_joules - true) <= reading.uncertainty_joules
        ours.append(abs(reading.energy_joules / true - 1))
        quantised.append(abs((b - a) / 1e6 / true - 1))
    return sorted(ours), sorted(quantised)


@pytest.mark.parametrize(
    ("interval", "lag", "limits"),
    [
        (INTERVAL, 0.001, {2: 0.02, 10: 0.005, 60: 0.001}),
        (INTERVAL, 0.03, {2: 0.02, 10: 0.005, 60: 0.001}),
        (INTERVAL, 0.09, {2: 0.02, 10: 0.005, 60: 0.001}),
        (0.02, 0.013, {2: 0.02, 10: 0.005, 60: 0.001}),
        (0.1, 0.09, {2: 0.06, 10: 0.011, 60: 0.002}),  # readings in step with the counter see each step 90 ms late
    ],
)
def test_energy_of_a_square_wave_is_near_the_truth(monkeypatch, interval, lag, limits):
    gpu = fake_gpu(0, WAVE)
    rows = record(monkeypatch, gpu, ticks(130, interval, lag))
    for seconds, limit in limits.items():
        ours, quantised = errors(gpu, rows, seconds)
        assert ours[-1] <= limit
        assert ours[int(0.95 * len(ours))] < 0.9 * quantised[int(0.95 * len(quantised))]


def test_energy_of_constant_power_is_exact(monkeypatch):
    gpu = fake_gpu(0, 300)
    rows = record(monkeypatch, gpu, ticks(30, dither=0))
    (reading,) = Trace(rows).energy(1002 * S, 1022 * S)
    assert reading.energy_joules == pytest.approx(6000, rel=1e-6)
    assert (reading.provenance.value, reading.flags) == ("measured_counter_interp", [])


def test_a_gpu_without_counter_is_integrated_if_readings_do_not_keep_step_with_the_load(monkeypatch):
    gpu = fake_gpu(0, WAVE, errors=NO_COUNTER)
    window = (1002 * S, 1062 * S)
    off = {}
    for dither in (0.002, 0.1):
        (reading,) = Trace(record(monkeypatch, gpu, ticks(70, dither=dither))).energy(*window)
        assert (reading.provenance.value, reading.power_watts_max) == ("integrated_samples", 700)
        off[dither] = abs(reading.energy_joules / joules(gpu, *window) - 1)
    assert off[0.1] < 0.02
    assert 0.05 < off[0.002] < 0.1  # 100 ms in 350 ms: four readings of seven meet the high power, or three


# --- failures never become 0


def test_a_reset_is_bridged_by_power_and_windows_beside_it_are_counted(monkeypatch):
    gpu = fake_gpu(0, 400, reset_at=1030.05)
    trace = Trace(record(monkeypatch, gpu, ticks(60)))
    before, across, after = (trace.energy(a * S, b * S)[0] for a, b in ((1005, 1025), (1020, 1040), (1035, 1055)))
    assert [r.energy_joules for r in (before, across, after)] == pytest.approx([8000] * 3, rel=0.002)
    assert [r.provenance.value for r in (before, across, after)] == [
        "measured_counter_interp",
        "integrated_samples",
        "measured_counter_interp",
    ]
    assert (across.flags, across.uncertainty_joules) == (["counter_reset", "sampled_power"], None)


def test_a_reset_of_a_gpu_without_instant_power_is_absent_or_partial(monkeypatch):
    gpu = fake_gpu(0, 400, reset_at=1030.05, power_scopes={})
    trace = Trace(record(monkeypatch, gpu, ticks(60)))
    assert trace.energy(1020 * S, 1040 * S) == []
    assert trace.energy(1035 * S, 1055 * S)[0].energy_joules == pytest.approx(8000, rel=0.002)


def test_a_lost_gpu_has_the_energy_until_then_or_none(monkeypatch):
    gpu = fake_gpu(0, 400, lost_at=1030)
    rows = record(monkeypatch, gpu, ticks(60))
    assert {row.message for row in rows if row.event} == {"GPU is lost"}
    trace = Trace(rows)
    (reading,) = trace.energy(1015 * S, 1035 * S)
    assert reading.energy_joules == pytest.approx(6000, rel=0.01)
    assert reading.coverage == pytest.approx(0.75, abs=0.01)
    assert trace.energy(1025 * S, 1045 * S) == []
    assert trace.energy(1035 * S, 1045 * S) == []


@pytest.mark.parametrize(
    "planted",
    [{83: UNKNOWN}, {186: UNKNOWN}, {83: UNKNOWN, 186: UNKNOWN}, {"nvmlDeviceGetFieldValues": UNKNOWN}],
)
def test_a_burst_of_errors_costs_no_energy(monkeypatch, planted):
    gpu = fake_gpu(0, 400, errors=planted, errors_between=(1020, 1022.5))
    trace = Trace(record(monkeypatch, gpu, ticks(60)))
    (reading,) = trace.energy(1010 * S, 1030 * S)
    assert reading.energy_joules == pytest.approx(8000, rel=0.002)
    assert "gap" in reading.flags
    assert reading.power_watts_max == 400
    (beside,) = trace.energy(1030 * S, 1050 * S)
    assert (beside.flags, len(trace.events)) == ([], 25)
