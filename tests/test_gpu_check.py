"""`tests.gpu_check` on the stand-in for NVML, and its pure figures."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.figures import sensors
from bench.meters import gpu, meter, sampler
from bench.meters.meter import INTERVAL, Reading
from bench.meters.sampler import Recorder, make_meters
from bench.meters.trace import Trace
from bench.schema import Gpu, Machine
from bench.suites.expand import expand
from bench.suites.load import load_suite
from tests import gpu_check
from tests.clock import Clock
from tests.fake_nvml import fake_gpu, install
from tests.gpu_checks import figures, load, packages, sensor, session, strategies
from tests.gpu_checks.figures import (
    abba,
    at_duty,
    duty,
    falls,
    histogram,
    hold_mean,
    plan,
    rise_seconds,
    spread,
    summary,
    t_quantile,
    variation,
)
from tests.gpu_checks.session import Load, Skipped

DRIVER = "580.82.07"
RESULTS = "nvidia-h100-80gb-hbm3.json"


class Turning(Clock):
    """A clock of NVML and of a sidecar in this process: its readings fall due as the clock is turned."""

    def __init__(self, library: Any) -> None:
        self.library, self.recorder, self.reading = library, None, False
        super().__init__(100.0, tick_ns=1000, moved=self.turn)

    def turn(self, seconds: float) -> None:
        self.library.now = seconds
        if self.recorder is not None and not self.reading:
            self.read(lambda: self.recorder.tick(seconds))

    def read(self, action: Callable[[], object]) -> None:
        self.reading = True
        action()
        self.reading = False


def sidecar(clock: Turning) -> type:
    class Sidecar:
        error = pid = None

        def __init__(self, meters: list[str], gpus: list[str] | None = None) -> None:
            self.recorder = Recorder(make_meters(meters, gpus), INTERVAL)

        def __enter__(self) -> "Sidecar":
            clock.recorder = self.recorder
            return self

        def __exit__(self, *_: object) -> None:
            clock.recorder = None

        def open(self, path: Path) -> None:
            clock.read(lambda: self.recorder.obey({"open": str(path)}))

        def close(self) -> None:
            clock.read(lambda: self.recorder.obey({"close": True}))

    return Sidecar


Check = Callable[..., SimpleNamespace]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run gpu_check on stand-ins, by a clock that no load of the machine slows; return its exit code and output."""

    def run(
        *arguments: str, gpus: list[dict[str, Any]] | None = None, loads: bool = False, driver: str = DRIVER
    ) -> SimpleNamespace:
        library = install(monkeypatch, *([fake_gpu(0)] if gpus is None else gpus), driver=driver)
        clock = Turning(library)
        for module in (gpu_check, session, sensor, meter, gpu, sampler):
            monkeypatch.setattr(module, "time", clock)
        for module in (session, sensor):
            monkeypatch.setattr(module, "Sidecar", sidecar(clock))
        monkeypatch.setattr(gpu_check, "why_no_load", lambda: None if loads else "no torch with CUDA here")
        monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # as it was, after the test
        monkeypatch.setattr("sys.argv", ["gpu_check", "--results", str(tmp_path / "results"), *arguments])
        capsys.readouterr()
        try:
            code = gpu_check.main()
        except SystemExit as end:
            code = end.code
        text = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=text.out, stderr=text.err)

    return run


def results() -> dict[str, Any]:
    return json.loads((Path("results") / RESULTS).read_text())["checks"]


# --- the command


def test_what_is_done_is_kept_and_not_done_again(check):
    first = check("--only", "v1,V2", "--seconds", "4")
    assert (first.returncode, first.stderr) == (0, "")
    assert "V2 period of the counter           median" in first.stdout
    assert "Everything was done, and all is as expected." in first.stdout
    kept = results()
    assert {name: entry["state"] for name, entry in kept.items()} == {"V1": "done", "V2": "done"}
    assert kept["V2"]["uuid"] == fake_gpu(0)["uuid"]
    again = check("--only", "V1,V2", "--seconds", "4")
    assert again.returncode == 0
    assert again.stdout.count("(earlier)") == first.stdout.count(" ok\n") + 2  # and the two that are only shown
    assert results() == kept


def test_another_board_is_checked_again_and_no_resume_too(check):
    assert check("--only", "V1", "--seconds", "4").returncode == 0
    first = results()["V1"]
    assert "(earlier)" not in check("--only", "V1", "--seconds", "4", gpus=[fake_gpu(7)]).stdout
    other = results()["V1"]
    assert (other["uuid"], first["uuid"]) == (fake_gpu(7)["uuid"], fake_gpu(0)["uuid"])
    assert "(earlier)" not in check("--only", "V1", "--no-resume", gpus=[fake_gpu(7)]).stdout


def test_what_does_not_fit_is_said(check):
    done = check("--only", "V1,V4", "--seconds", "3")
    assert done.returncode == 3
    assert "V4 energy and power agree          not done (time)" in done.stdout
    assert "Not reached: V4." in done.stdout
    assert "all is as expected" not in done.stdout
    assert set(results()) == {"V1"}
    done = check("--only", "V4", "--seconds", "1")  # nothing at all was checked
    assert done.returncode == 1


def test_what_cannot_be_done_is_skipped_with_its_reason(check):
    done = check("--only", "V5,DDP", "--seconds", "10")
    assert "skipped: no torch with CUDA here" in done.stdout
    assert "skipped: not verified: one GPU" in done.stdout
    assert {entry["state"] for entry in results().values()} == {"skipped"}
    assert "Skipped, see the reasons above: V5, DDP" in done.stdout
    assert done.returncode == 3


def test_no_gpu_is_one_clear_line(check):
    done = check(gpus=[])
    assert (done.returncode, done.stdout) == (1, "Nothing was checked: the NVIDIA driver lists no GPU.\n")


def test_an_unknown_check_is_named(check):
    done = check("--only", "V1,V99")
    assert done.returncode == 2
    assert "unknown check V99; there are V1, V2" in done.stderr


def test_a_gpu_in_use_is_not_as_expected(check):
    done = check("--only", "V1", gpus=[fake_gpu(0, pids=[1])])
    assert done.returncode == 1
    assert "NOT AS EXPECTED" in done.stdout
    assert "Not as expected: V1 GPU 0" in done.stdout


@pytest.mark.parametrize("reset_at", [None, 102.5])
def test_the_period_of_the_counter_and_its_falls_are_found(monkeypatch, reset_at):
    gpu = fake_gpu(0, reset_at=reset_at)
    library = install(monkeypatch, gpu)
    clock = Clock(100.0, moved=lambda seconds: setattr(library, "now", seconds))
    monkeypatch.setattr(session, "time", clock)
    out = sensor.v2(SimpleNamespace(uuid=gpu["uuid"]), 6)
    falls, period, _ = out.lines
    assert (falls.check, falls.found) == ("V2 falls of the counter", f"{int(reset_at is not None)} in 6000 reads")
    assert falls.ok == (reset_at is None)
    assert period.ok
    assert out.figures["counter_period_seconds"] == pytest.approx(0.1)
    assert out.figures["step_joules"]["p50"] == pytest.approx(30)


def test_a_sensor_is_validated_when_the_required_checks_are_there(check):
    command = ("--only", "V1,V2,V6,V10", "--seconds", "30")
    done = check(*command)
    assert done.returncode == 0, done.stdout
    for line in ("V1 driver", "V2 period", "V6 idle: sum of windows", "V10 idle: mean power"):
        assert line in done.stdout
    assert "NOT AS EXPECTED" not in done.stdout
    kept = results()
    assert check(*command).returncode == 0
    assert results() == kept
    assert sensors.find_check(fake_gpu(0)["uuid"], DRIVER) is None  # V4 is missing
    done = check("--only", "V4", "--seconds", "12")
    assert done.returncode == 0, done.stdout
    found = sensors.find_check(fake_gpu(0)["uuid"], DRIVER)
    assert found.counter_period_seconds == results()["V2"]["figures"]["counter_period_seconds"]
    assert found.counter_continuous is None
    assert {line.check.split()[0] for line in found.results} == {"V1", "V2", "V4", "V6", "V10"}
    assert "check of this sensor: not passed" in done.stdout  # an idle GPU alone is not enough
    assert not sensors.fresh(fake_gpu(0)["uuid"], DRIVER)


def test_power_that_disagrees_with_the_counter_is_not_as_expected(check):
    gpu = fake_gpu(0, power_scopes={0: 60})  # its power is 60 W above that of its counter
    done = check("--only", "V4,V6", "--seconds", "20", gpus=[gpu])
    assert done.returncode == 1
    assert "Not as expected: V4 idle: counter and INSTANT, V4 idle: counter and AVERAGE" in done.stdout
    assert "V6 idle: sum of windows" in done.stdout


def test_a_counter_that_falls_while_recording_is_found_by_v10():
    second = 10**9
    rows = [
        Reading(t_ns=t * second, wall_ns=1, source="nvml", component="gpu", device="GPU-0", energy_uj=joules * 10**6)
        for t, joules in enumerate((900, 1200, 1500, 300, 600))
    ]
    stretch = session.Stretch(Trace(rows), 0, 4 * second, [], 0.0, None, None)
    about = SimpleNamespace(uuid="GPU-0", stretches={"idle": stretch}, limit_watts=lambda: 700.0)
    out = sensor.v10(about, 20)
    assert (out.lines[0].check, out.lines[0].found) == ("V10 idle: falls of the counter", "1 in 5 reads")
    assert out.lines[0].ok is False


def test_latency_of_calls_is_found(check):
    done = check("--only", "V3", "--seconds", "15")
    calls = results()["V3"]["figures"]["idle"]["calls"]
    assert 0 < calls["fields 83, 186"]["p50_ms"] <= calls["fields 83, 186"]["p99_ms"]
    assert calls["fields 83, 186"]["failed"] == 0
    assert "V3 gemm                            not done: no torch with CUDA here" in done.stdout


def test_a_validation_is_that_of_its_own_board_and_needs_a_load():
    gpu = SimpleNamespace(uuid="GPU-1", name="NVIDIA H100")
    session = SimpleNamespace(gpu=gpu, uuid="GPU-1", driver="580")
    date = "2026-05-01T00:00:00+00:00"

    def entry(name, uuid="GPU-1", **found):
        line = {"check": f"{name} x", "found": "1", "expected": "", "ok": True}
        return {"state": "done", "uuid": uuid, "date": date, "lines": [line], "figures": found}

    checks = {name: entry(name) for name in ("V2", "V6", "V10")}
    assert gpu_check.validate(session, checks) is None
    checks["V4"] = entry("V4", "GPU-2", idle={"instant_difference": 0.0})
    assert gpu_check.validate(session, checks) is None
    checks["V4"] = entry("V4", idle={"instant_difference": 0.0})
    assert gpu_check.validate(session, checks) is not None
    found = sensors.find_check("GPU-1", "580", sensors.datetime.fromisoformat(date))
    assert not found.passed
    checks["V4"] = entry("V4", idle={"instant_difference": 0.0}, gemm={"instant_difference": 0.01})
    checks["V5"] = entry("V5", counter_continuous=True)
    gpu_check.validate(session, checks)
    assert sensors.find_check("GPU-1", "580", sensors.datetime.fromisoformat(date)).passed
    checks["V5"] = entry(
        "V5", counter_continuous=False
    )  # it sees a part of the time only: its energy is not to be relied on
    checks["V9"] = entry("V9", average_rise_seconds=[0.9, 1.0, 0.8])
    gpu_check.validate(session, checks)
    found = sensors.find_check("GPU-1", "580", sensors.datetime.fromisoformat(date))
    assert not found.passed
    assert found.counter_continuous is False
    assert found.facts == {"idle_difference": 0.0, "gemm_difference": 0.01, "average_rise_seconds": 0.9}


def test_an_error_in_a_check_is_a_line_and_is_done_again(monkeypatch):
    def broken(session, seconds):
        raise RuntimeError("boom")

    spec = gpu_check.Spec("broken", broken, 1, 1)
    monkeypatch.setitem(gpu_check.CHECKS, "V1", spec)
    board = SimpleNamespace(uuid="GPU-1", driver=DRIVER)
    entry = gpu_check.do("V1", board, 1)
    assert (entry["state"], entry["lines"][0]["ok"]) == ("error", False)
    assert "RuntimeError: boom" in entry["lines"][0]["found"]
    assert gpu_check.is_missing(entry, "V1", board)


def test_every_check_has_its_cost():
    session = SimpleNamespace(no_load=None, gpus=[1], stretches={})
    found = gpu_check.costs(list(gpu_check.CHECKS), session)
    assert all(0 <= least <= full for least, full in found.values())
    assert found["V6"] == found["V10"] == (0.0, 0.0)  # they look at what V4 recorded
    alone = gpu_check.costs(["V6", "V10"], session)
    assert alone["V6"][0] > 0 == alone["V10"][0]


FIRST = {"V1", "V2", "SUITES", "V4", "V6", "V10", "LOOP", "V8"}


def test_eight_minutes_give_the_most_important_verdicts(check):
    done = check("--plan", "--seconds", "480", gpus=[])
    assert (done.returncode, done.stderr) == (0, "")
    planned = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert planned.keys() >= FIRST
    assert float(planned["in"][2]) <= 480
    assert "Not reached in this call: RUN, V5, V7, SEARCH." in done.stdout
    assert not Path("results").exists()


@pytest.fixture
def fake_checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Checks that do nothing but take their time by the virtual clock; V4 fails, V5 cannot be done. Return what was done."""
    done: list[tuple[str, float]] = []

    def fake(name):
        def function(about, seconds):
            gpu_check.time.sleep(seconds + gpu_check.overhead(name, about))
            done.append((name, seconds))
            if name == "V5":
                raise Skipped("no wave here")
            out = session.Outcome()
            parts = ["a", "b"] if name == "SUITES" else []
            out.unreached = parts[1:] if seconds < 300 and "SUITES" not in about.earlier else []
            out.add(f"{name} figure", "1", name != "V4")
            return out

        return function

    for name, spec in list(gpu_check.CHECKS.items()):
        monkeypatch.setitem(gpu_check.CHECKS, name, replace(spec, function=fake(name)))
    monkeypatch.setattr(gpu_check, "validate", lambda session, checks: None)
    return done


def test_calls_go_on_where_the_last_one_ended(check, fake_checks, monkeypatch):
    calls = []
    for _ in range(6):
        fake_checks.clear()
        done = check("--seconds", "480", loads=True)
        calls.append([name for name, _ in fake_checks])
        if "Not reached" not in done.stdout:
            break
        assert done.returncode == 1  # V4
        assert "Everything was done" not in done.stdout
    assert set(calls[0]) >= FIRST
    assert set(calls[1]) >= {"SUITES", "RUN", "V5"}  # of the first call a suite was left
    assert not FIRST - {"SUITES"} & set(calls[1])
    everything = [name for call in calls for name in call]
    assert set(everything) == set(gpu_check.CHECKS)
    assert all(everything.count(name) == 1 for name in gpu_check.CHECKS if name not in ("SUITES", "V5", "DDP"))
    assert "Skipped, see the reasons above: V5" in done.stdout
    assert "Not as expected: V4 figure" in done.stdout
    table = (Path("results") / RESULTS).with_suffix(".md").read_text()
    assert "| V4 figure | 1 |  | NOT AS EXPECTED |" in table


@pytest.mark.parametrize("seconds", [30, 100, 250, 480])
def test_no_call_takes_longer_than_it_may(check, fake_checks, seconds):
    begin = 100.0
    check("--seconds", str(seconds), loads=True)
    assert gpu_check.time.ns / 1e9 - begin <= seconds + 0.1


def test_another_driver_is_checked_again(check, fake_checks):
    check("--only", "V1", loads=True)
    check("--only", "V1", loads=True)
    assert len(fake_checks) == 1
    check("--only", "V1", loads=True, driver="999.1")
    assert len(fake_checks) == 2


def test_all_suites_can_be_run_in_their_short_form(tmp_path):
    machine = Machine(cpu_model="x", cpu_count=16, gpus=[Gpu(index=0, uuid="GPU-0", name="x", memory_bytes=80 * 10**9)])
    for path in sorted((session.ROOT / "suites").glob("*.yaml")):
        if path.stem.startswith("search_"):
            continue
        (tmp_path / path.name).write_text(strategies.short(path))
        plan = expand(load_suite(tmp_path / path.name), machine)
        whole = expand(load_suite(path), machine)
        assert len(plan.runs) == len({run.config_id for run in whole.runs})
        for run in plan.runs:
            assert (run.measure_steps or 0) <= 4
            assert (run.measure_seconds or 0) <= 0.5
            assert (run.warmup_steps, run.validation.samples, run.repeat) == (
                2,
                32 if run.validation.samples < 64 else 64,
                0,
            )


def test_what_is_absent_is_said_first(monkeypatch, capsys):
    gone = {"pydantic", "click", "mlflow", "codecarbon", "ruamel.yaml", "torch"}
    monkeypatch.setattr(packages.util, "find_spec", lambda name: None if name in gone else name)
    with pytest.raises(SystemExit) as end:
        packages.require()
    said = capsys.readouterr().out
    assert end.value.code == 2
    assert "Nothing can be checked without pydantic." in said
    assert "pip install --target carried pydantic click ruamel.yaml\n" in said
    gone.remove("pydantic")
    packages.require()
    said = capsys.readouterr().out
    assert "Skipped without torch, click, ruamel.yaml: runs of suites." in said
    monkeypatch.setattr(packages.util, "find_spec", lambda name: name)
    assert packages.advice() == ([], True)


def test_the_check_starts_without_any_package():
    command = [sys.executable, "-S", "-m", "tests.gpu_check", "--plan"]
    done = subprocess.run(command, cwd=session.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "pip install --target carried pydantic psutil nvidia-ml-py" in done.stdout


def test_figures_are_json():
    assert gpu_check.clean({1: (math.nan, 2, True), "a": {"b": math.inf}}) == {"1": [None, 2, True], "a": {"b": None}}


# --- loads


def test_a_load_without_cuda_says_why():
    with pytest.raises(Skipped, match="cannot use CUDA here"), Load(None, "nonsense"):
        pass


def test_a_wave_has_its_duty_and_phase(monkeypatch, capsys):
    clock = Clock(tick_ns=1000)

    class FakeEvent:
        def __init__(self, enable_timing):
            self.at = 0

        def record(self):
            self.at = clock.ns

        def elapsed_time(self, other):
            return (other.at - self.at) / 1e6

    fake_torch = SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None, Event=FakeEvent))
    monkeypatch.setattr(load, "time", clock)
    monkeypatch.setattr(load, "gemm_step", lambda torch, size: lambda: clock.sleep(0.0005))
    monkeypatch.setattr(load, "ended", lambda: False)
    programme = [{"period": 0.1, "duty": d, "phase": f, "seconds": 0.5} for d, f in ((0.25, 0.5), (0.0, 0.0), (1.0, 0))]
    assert load.waves(fake_torch, programme) == {}
    ready, *said = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    quarter, none, all_ = map(json.loads, said)
    assert quarter["start_ns"] % 100_000_000 == 50_000_000
    assert [len(wave["bursts"]) for wave in (quarter, none, all_)] == [5, 5, 5]
    assert quarter["end_ns"] - quarter["start_ns"] == 500_000_000
    host = duty(quarter["bursts"], quarter["start_ns"], quarter["end_ns"])
    assert host == pytest.approx(0.25, abs=0.011)  # a step more than wanted at most
    assert quarter["event_duty"] == pytest.approx(host, abs=1e-3)
    assert none["event_duty"] < 1e-3
    assert all_["event_duty"] == pytest.approx(1, abs=0.011)


# --- figures


def test_the_plan_shares_what_is_left_and_drops_the_last():
    costs = {"a": (10, 20), "b": (5, 5), "c": (10, 50)}
    assert plan(costs, 100) == {"a": 20, "b": 5, "c": 50}
    assert plan(costs, 50) == {"a": 15, "b": 5, "c": 30}
    assert plan(costs, 25) == {"a": 10, "b": 5, "c": 10}
    assert plan(costs, 24) == {"a": 19, "b": 5}
    assert plan(costs, 9) == {"b": 5}
    assert plan(costs, 0) == plan({}, 5) == {}


def test_values_are_summarised():
    assert summary([]) == {"n": 0}
    found = summary([float(i) for i in range(1, 101)])
    assert found == {"n": 100, "min": 1, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert summary([7.0])["p99"] == 7
    assert histogram([0.1, 4.9, 5.0, 99, 100.2], 5) == {"0": 2, "5": 1, "95": 1, "100": 1}
    assert figures.changes([(0, 5), (1, 5), (2, 7), (3, 7), (4, 1)]) == [(2, 7), (4, 1)]
    assert falls([(0, 5), (1, 5), (2, 7), (3, 1)]) == 1


def test_samples_hold_until_the_next():
    samples = [(0, 100), (10, 300), (20, 100)]
    assert hold_mean(samples, 0, 20) == 200
    assert hold_mean(samples, 5, 15) == 200
    assert hold_mean(samples, 20, 40) == 100
    assert hold_mean(samples, 12, 13) == 300
    assert hold_mean(samples, -1, 5) is None
    assert hold_mean([], 0, 1) is None


def test_duty_is_that_of_the_part_inside():
    assert duty([(0, 25), (100, 125)], 0, 200) == 0.25
    assert duty([(-10, 10), (190, 300)], 0, 200) == 0.1
    assert duty([], 0, 200) == 0
    assert at_duty(power=200, low=100, real=0.2, wanted=0.25) == pytest.approx(225)


def test_spread_and_variation():
    assert spread([99, 100, 101]) == pytest.approx(0.02)
    assert variation([99, 100, 101]) == pytest.approx(0.01)


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_a_linear_rise_takes_eight_tenths_from_10_to_90_percent(seconds):
    samples = [
        (t * 1_000_000, 100 + 500 * min(1.0, max(0.0, (t - 1000) / (1000 * seconds)))) for t in range(0, 3000, 3)
    ]
    assert rise_seconds(samples, 10**9, 3 * 10**9) == pytest.approx(0.8 * seconds, abs=0.006)
    assert rise_seconds(samples, 10**9 * 5, 7 * 10**9) is None
    assert rise_seconds([(t, 100) for t, _ in samples], 10**9, 3 * 10**9) is None


@pytest.mark.parametrize("degrees", [1, 4, 9, 30])
def test_the_quantile_of_t_is_that_of_scipy(degrees):
    stats = pytest.importorskip("scipy.stats")
    for probability in (0.9, 0.95, 0.975):
        assert t_quantile(degrees, probability) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-5)


def test_abba_is_free_of_drift_and_covers_the_truth():
    drifting = [100 + i for i in range(8)]
    ratio, low, high = abba(drifting)
    assert ratio == pytest.approx(1, abs=1e-3)
    slower = [t * (1.01 if i % 4 in (1, 2) else 1.0) for i, t in enumerate([100.0] * 8)]
    ratio, low, high = abba(slower)
    assert (ratio, low, high) == pytest.approx((1.01, 1.01, 1.01))
    with pytest.raises(ValueError, match="two blocks"):
        abba([1.0] * 7)
    noise = random.Random(1)  # noqa: S311
    inside = 0
    for _ in range(400):
        times = [math.exp(noise.gauss(0, 0.01)) * (1.003 if i % 4 in (1, 2) else 1.0) for i in range(40)]
        _, low, high = abba(times)
        inside += low <= 1.003 <= high
    assert 0.92 <= inside / 400 <= 0.98
