import dataclasses
import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.meters.meter import Reading
from bench.meters.trace import Trace
from bench.record import Provenance

S = 1_000_000_000


def row(t, *, source="nvml", component="gpu", device="GPU-0", watts=None, **more):
    """A row at t seconds; joules as `energy`, watts as `watts`."""
    energy = more.pop("energy", None)
    return Reading(
        t_ns=round(t * S),
        wall_ns=more.pop("wall_ns", 1),
        source=source,
        component=component,
        device=device,
        energy_uj=None if energy is None else round(energy * 1e6),
        power_mw=None if watts is None else round(watts * 1e3),
        **more,
    )


def sampled(joules, stop, *, start=0.0, step=0.1, period=0.1, jitter=0.0, **more):
    """Rows of a counter that shows joules(t) every `period` seconds, read every `step` seconds."""
    rng = random.Random(1)  # noqa: S311
    rows, t = [], start
    while t <= stop + 1e-9:
        at = t + rng.uniform(0, jitter)
        rows.append(row(at, energy=joules(math.floor(at / period + 1e-9) * period), **more))
        t += step
    return rows


def one(trace, t0, t1):
    (reading,) = trace.energy(round(t0 * S), round(t1 * S))
    return reading


def microjoules(reading):
    return round(reading.energy_joules * 1e6)


# --- windows of a counter


def test_constant_power_is_found_within_one_step_of_the_counter():
    trace = Trace(sampled(lambda t: 1000 + 300 * t, 20, jitter=0.02))
    reading = one(trace, 3.217, 9.951)
    assert reading.energy_joules == pytest.approx(300 * 6.734, abs=30)
    assert abs(reading.energy_joules - 300 * 6.734) <= reading.uncertainty_joules <= 130
    assert reading.power_watts_mean == pytest.approx(reading.energy_joules / 6.734)
    assert (reading.provenance, reading.coverage, reading.flags) == ("measured_counter_interp", 1.0, [])
    assert (reading.source, reading.component, reading.device) == ("nvml", "gpu", "GPU-0")
    assert (reading.samples, reading.power_watts_max) == (67, None)


def test_a_window_between_two_readings_is_a_plain_difference():
    reading = one(Trace(sampled(lambda t: 250 * t, 10, source="rapl", component="cpu")), 2, 8)
    assert (reading.energy_joules, reading.provenance) == (1500, "measured_counter")


def test_interpolated_edges_are_as_exact_as_they_should_be():
    """A step of 350 ms at 700 and 200 W: 95 % of windows err by at most 1 % in 2 s and 0.3 % in 10 s."""

    def joules(t):
        whole, part = divmod(t / 0.35, 1.0)
        high = whole * 0.7 + min(part, 0.7)
        return 0.35 * (700 * high + 200 * (whole + part - high))

    trace = Trace(sampled(joules, 120, jitter=0.003))
    rng = random.Random(2)  # noqa: S311
    for length, most in ((2, 0.015), (10, 0.0035)):
        errors = []
        for _ in range(200):
            t0 = rng.uniform(1, 100)
            truth = joules(t0 + length) - joules(t0)
            errors.append(abs(one(trace, t0, t0 + length).energy_joules / truth - 1))
        assert sorted(errors)[189] < most


@given(
    steps=st.lists(st.tuples(st.integers(1, 3 * S), st.integers(0, 10**9)), min_size=5, max_size=40),
    cuts=st.lists(st.integers(0, 10**6), min_size=3, max_size=6, unique=True),
    kind=st.sampled_from(["counter", "power", "wrapping"]),
)
def test_adjacent_windows_add_up_to_the_microjoule(steps, cuts, kind):
    t, energy, rows = 7, 500, []
    for gap, size in steps:
        t += max(gap, S // 5)
        if kind == "wrapping":
            energy += size % 190_000_000  # below 1000 W
            rows.append(_rapl(t, energy % 200_000_000_000, 200_000_000_000))
        elif kind == "counter":
            energy += size
            rows.append(Reading(t_ns=t, wall_ns=1, source="nvml", component="gpu", device="a", energy_uj=energy))
        else:
            rows.append(Reading(t_ns=t, wall_ns=1, source="nvml", component="gpu", device="a", power_mw=size // 1000))
    trace = Trace(rows)
    first, last = rows[0].t_ns, rows[-1].t_ns
    edges = sorted({first + (last - first) * cut // 10**6 for cut in cuts})
    parts = [trace.energy(a, b) for a, b in pairwise(edges)]
    assume(len(edges) > 1 and all(parts))  # a part without a reading inside is absent, not 0
    assert sum(microjoules(r) for (r,) in parts) == microjoules(trace.energy(edges[0], edges[-1])[0])


def _rapl(t, energy, wrap):
    return Reading(t_ns=t, wall_ns=1, source="rapl", component="cpu", device="z", energy_uj=energy, wrap_uj=wrap)


# --- absent, never 0


def test_a_counter_that_did_not_move_in_a_short_window_is_absent():
    trace = Trace(sampled(lambda t: 300 * t, 10, step=0.02))
    assert trace.energy(round(3.01 * S), round(3.05 * S)) == []
    assert one(trace, 3.05, 3.15).flags == ["window_too_short", "wide_edges"]


def test_a_counter_that_stands_still_is_0_only_in_a_long_window_and_without_power():
    assert one(Trace([row(t / 10, energy=5) for t in range(50)]), 1, 4).energy_joules == 0
    stuck = one(Trace([row(t / 10, energy=5, watts=100) for t in range(50)]), 1, 4)
    assert (stuck.energy_joules, stuck.provenance, stuck.flags) == (
        300,
        "integrated_samples",
        ["counter_stuck", "sampled_power"],
    )


def test_a_counter_that_stops_while_power_flows_is_not_believed():
    rows = [row(0.09 * i, energy=300 * min(int(0.9 * i) / 10, 10), watts=300) for i in range(400)]
    for t0, t1 in ((2, 30), (12, 30), (5, 14)):
        reading = one(Trace(rows), t0, t1)
        assert reading.energy_joules == pytest.approx(300 * (t1 - t0), rel=0.002)
        assert (reading.provenance, reading.flags) == ("integrated_samples", ["counter_stuck", "sampled_power"])
    assert one(Trace(rows), 2, 9).flags == []
    off = [row(0.09 * i, energy=300 * min(int(0.9 * i) / 10, 10), watts=300 if i < 111 else 0) for i in range(400)]
    assert one(Trace(off), 12, 30).energy_joules == 0  # it may: no power flows


def test_windows_without_readings_are_absent():
    trace = Trace(sampled(lambda t: 300 * t, 10))
    for t0, t1 in ((11, 15), (-5, -1), (9, 12), (-7, 4)):
        assert trace.energy(round(t0 * S), round(t1 * S)) == []
    assert Trace([]).energy(0, S) == Trace([row(1, energy=5)]).energy(0, 2 * S) == []
    with pytest.raises(ValueError, match="a window must end after it starts"):
        trace.energy(5, 5)


def test_coverage_is_the_share_of_the_window_that_was_read():
    reading = one(Trace(sampled(lambda t: 300 * t, 10)), 4, 12)
    assert (reading.coverage, reading.seconds, reading.energy_joules) == (0.75, 6, 1800)
    assert reading.power_watts_mean == 300


# --- resets, wraps, gaps, errors


def test_a_reset_counter_is_integrated_from_power_or_absent():
    before = sampled(lambda t: 1000 + 300 * t, 5, watts=290)
    after = sampled(lambda t: 300 * (t - 5), 10, start=5.1, watts=290)
    reading = one(Trace(before + after), 3, 8)
    assert reading.energy_joules == pytest.approx(290 * 5)
    assert (reading.provenance, reading.flags) == ("integrated_samples", ["counter_reset", "sampled_power"])
    trace = Trace([dataclasses.replace(r, power_mw=None) for r in before + after])
    assert trace.energy(3 * S, 8 * S) == []
    assert one(trace, 1, 4).energy_joules == pytest.approx(900, abs=30)
    assert one(trace, 6, 9).energy_joules == pytest.approx(900, abs=30)


def _zone_rows(watts, wrap, stop, *, gap_at=None, gap=0, start=0.0, device="zone"):
    times = [float(t) for t in range(stop) if gap_at is None or not gap_at < t < gap_at + gap]
    common = {"source": "rapl", "component": "cpu", "device": device, "wrap_uj": round(wrap * 1e6)}
    return [row(t, energy=(start + watts * t) % wrap, **common) for t in times]


def test_a_wrapped_counter_goes_on():
    trace = Trace(_zone_rows(120, 1000.5, 60))
    assert one(trace, 2, 58).energy_joules == pytest.approx(120 * 56)


def test_what_may_have_wrapped_unseen_is_absent():
    short = Trace(_zone_rows(100, 60_000, 700, gap_at=590, gap=20))
    assert short.energy(580 * S, 650 * S) == []  # a wrap inside a gap of 20 s
    assert one(short, 620, 690).energy_joules == 7000
    double = Trace(_zone_rows(100, 1000, 100, gap_at=40, gap=25))
    assert double.energy(20 * S, 90 * S) == []  # 2500 J, seen as 500 J
    no_wrap = Trace(_zone_rows(100, 60_000, 100, gap_at=40, gap=25))
    assert one(no_wrap, 20, 90).energy_joules == 7000


def test_a_zone_that_starts_again_is_no_wrap():
    common = {"source": "rapl", "component": "cpu", "device": "z", "wrap_uj": 262_143_328_850}
    rows = [row(t, energy=5000 + 100 * t, **common) for t in range(10)]
    rows += [row(t, energy=100 * (t - 10), **common) for t in range(10, 20)]
    assert Trace(rows).energy(5 * S, 15 * S) == []


def test_a_gap_is_flagged_where_it_is():
    rows = [r for r in sampled(lambda t: 300 * t, 20) if not 9.95 < r.t_ns / S < 12.0]
    trace = Trace(rows)
    assert one(trace, 5, 15).flags == ["gap"]
    assert one(trace, 13, 18).flags == one(trace, 2, 9).flags == []
    slow = Trace([row(t, energy=50 * t, source="rapl", component="cpu") for t in (*range(10), *range(15, 30))])
    assert one(slow, 5, 20).flags == ["gap"]
    assert one(slow, 16, 28).flags == []


def test_failed_reads_are_flagged_from_one_percent_on():
    rows = sampled(lambda t: 300 * t, 60)
    bad = [Reading(t_ns=round(t * S), wall_ns=1, source="nvml", device="GPU-0", event="error") for t in (31, 32, 33)]
    assert one(Trace(rows + bad), 30, 40).flags == ["gap"]
    assert one(Trace(rows + bad), 1, 59).flags == []
    assert one(Trace(rows + [dataclasses.replace(b, device="GPU-1") for b in bad]), 30, 40).flags == []


def test_a_jump_of_the_wall_clock_changes_nothing():
    rows = sampled(lambda t: 300 * t, 20)
    hour = 3600 * S
    jumped = [dataclasses.replace(r, wall_ns=10 * hour + (-1) ** i * hour) for i, r in enumerate(rows)]
    assert Trace(jumped).energy(3 * S, 9 * S) == Trace(rows).energy(3 * S, 9 * S)


# --- power samples


def test_power_is_held_between_samples_and_cut_at_the_edges():
    trace = Trace([row(t, watts=w) for t, w in ((0, 100), (1, 300), (2, 100), (3, 500), (4, 100), (5, 100))])
    reading = one(trace, 0.5, 3.5)
    assert reading.energy_joules == 50 + 300 + 100 + 250
    assert (reading.provenance, reading.power_watts_max, reading.samples) == ("integrated_samples", 500, 3)
    assert trace.power("gpu", "GPU-0")[1] == (S, 300.0)


def test_peaks_do_not_become_triangles():
    """100 W with peaks of 100 ms to 300 W every 10 s; keeping only changes and trapezoids gives 19980 J."""
    trace = Trace([row(t / 10, watts=300 if t % 100 == 50 else 100) for t in range(1001)])
    assert one(trace, 0, 100).energy_joules == pytest.approx(10_200, rel=1e-9)


def test_power_of_a_counter_is_its_slope():
    trace = Trace(sampled(lambda t: 300 * t, 5))
    assert {round(watts) for _, watts in trace.power("gpu", "GPU-0")} == {300}
    assert trace.power("gpu", "GPU-9") == []


def test_the_highest_power_is_of_the_window_only():
    trace = Trace([row(t / 10, energy=30 * t, watts=900 if t == 10 else 300) for t in range(100)])
    assert one(trace, 0.5, 4).power_watts_max == 900
    assert one(trace, 2, 6).power_watts_max == 300


# --- sources


def test_each_device_is_counted_once_however_often_it_was_read():
    mine, theirs = sampled(lambda t: 300 * t, 10), sampled(lambda t: 300 * t, 10, start=0.05)
    other = sampled(lambda t: 200 * t, 10, device="GPU-1")
    readings = Trace(mine + mine + theirs + other).energy(2 * S, 8 * S)
    assert [(r.device, round(r.energy_joules, -2)) for r in readings] == [("GPU-0", 1800), ("GPU-1", 1200)]


def test_two_values_at_one_time_are_one_reading():
    rows = [row(t, energy=300 * t + extra) for t in range(10) for extra in (0, 1)]
    assert one(Trace(rows), 2, 8).energy_joules == 1800
    assert {watts for _, watts in Trace(rows).power("gpu", "GPU-0")} == {300}


def test_mirrored_packages_count_once_and_equal_ones_twice():
    def packages(second_start):
        first = _zone_rows(68, 262_143, 60, start=5000, device="intel-rapl:0")
        return Trace(first + _zone_rows(68.005, 262_143, 60, start=second_start, device="intel-rapl:1"))

    assert [r.device for r in packages(5000.3).energy(0, 50 * S)] == ["intel-rapl:0"]
    assert len(packages(7000).energy(0, 50 * S)) == 2


@pytest.mark.parametrize(
    ("source", "mode", "provenance"),
    [
        ("codecarbon", "cpu_load", Provenance.ESTIMATED_MODEL),
        ("codecarbon", "intel_rapl", Provenance.ESTIMATED_MODEL),
        ("codecarbon", "constant", Provenance.ESTIMATED_TDP),
        ("replay", None, Provenance.IMPORTED),
        ("rapl", None, Provenance.MEASURED_COUNTER_INTERP),
    ],
)
def test_estimates_and_recordings_are_not_measurements(source, mode, provenance):
    rows = [row(t, energy=5 * t, source=source, component="cpu", device="cpu", mode=mode) for t in range(20)]
    reading = one(Trace(rows), 2.5, 17.5)
    assert (reading.provenance, reading.energy_joules, reading.detail) == (provenance, 75, mode or "")
    assert (reading.uncertainty_joules is None) == (not provenance.measured)


def test_a_mig_gpu_is_marked():
    assert one(Trace(sampled(lambda t: 300 * t, 10, mode="mig")), 2, 8).flags == ["mig_shared"]


# --- files


def test_a_trace_survives_both_formats(tmp_path):
    rows = [
        row(1, energy=10, watts=300, wall_ns=2**62),
        row(2, source="rapl", component="dram", device="/z", energy=2**50 / 1e6, wrap_uj=2**60),
        Reading(t_ns=3 * S, wall_ns=5, event="error", source="nvml", device="GPU-0", message="GPU is lost, ü"),
    ]
    lines = tmp_path / "meters.jsonl"
    lines.write_text("".join(r.to_json() + "\n" for r in rows))
    assert "null" not in lines.read_text()
    trace = Trace.read(lines)
    trace.write_parquet(tmp_path / "meters.parquet")
    assert trace.rows == Trace.read(tmp_path / "meters.parquet").rows == rows
    assert trace.devices == [("nvml", "gpu", "GPU-0"), ("rapl", "dram", "/z")]
    assert [e.message for e in trace.events] == ["GPU is lost, ü"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meters.jsonl", "meters.parquet"]


def test_an_empty_trace_is_a_trace(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    Trace.read(tmp_path / "a.jsonl").write_parquet(tmp_path / "a.parquet")
    assert Trace.read(tmp_path / "a.parquet").rows == []


def test_torn_lines_cost_only_themselves(tmp_path):
    good = sampled(lambda t: 300 * t, 10)
    text = "".join(r.to_json() + "\n" for r in good)
    torn = text[:2000] + '\n{"t_ns":1,"ene\n\n\xff[3]\n' + text[text.index("\n", 2000) + 1 :] + good[-1].to_json()[:40]
    path = tmp_path / "meters.jsonl"
    path.write_bytes(torn.encode("latin-1"))
    trace = Trace.read(path)
    assert len(trace.rows) == len(good) - 1
    assert trace.damaged_lines == 4


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "meters.parquet"
    Trace(sampled(lambda t: 300 * t, 1)).write_parquet(path)
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OSError, match="No space"):
        Trace([]).write_parquet(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [{"energy_uj": -1}, {"energy_uj": 1.5}, {"power_mw": True}, {"source": "magic"}, {"device": ""}, {"t_ns": None}],
)
def test_a_wrong_row_cannot_be_made(change):
    values = {"t_ns": 1, "wall_ns": 1, "source": "nvml", "component": "gpu", "device": "a", "energy_uj": 1, **change}
    with pytest.raises(ValueError, match=r"must be whole numbers|a reading needs"):
        Reading.from_json(json.dumps(values))


def test_a_row_of_a_later_version_is_read():
    values = {"t_ns": 1, "wall_ns": 1, "source": "nvml", "component": "gpu", "device": "a", "energy_uj": 1, "sm_mhz": 3}
    assert Reading.from_json(json.dumps(values)).energy_uj == 1
    with pytest.raises(ValueError, match="not a row"):
        Reading.from_json('{"t_ns": 1}')
