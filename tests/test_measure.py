"""`bench measure` from end to end, on GPUs and processors whose energy is known exactly."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from bench import folder as files
from bench.figures.metrics import metrics, row
from bench.meters.meter import Reading
from bench.record import Measurement, Phase, RunRecord
from bench.run.collect import Context, collect
from bench.schema import RunSpec, Site
from tests import rows as rows_of_tests
from tests.fake_nvml import environment, fake_gpu, truth
from tests.test_meters_rapl import Powercap

S = 1_000_000_000
BENCH = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "measure"]
WAVE = {"high": 700, "low": 200, "period": 0.35, "duty": 0.5}


def bench(*arguments, **variables):
    """Run `bench measure`; the estimate takes time to start, so it is left out unless a test is about it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_NVML")} | variables
    return subprocess.run([*BENCH, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def measured(*arguments, **variables):
    done = bench("--json", "--no-store", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return RunRecord.model_validate_json(done.stdout)


def window(record):
    phases = record.measurement.phases
    return Fraction(phases[0].start_ns, S), Fraction(phases[-1].end_ns, S)


@pytest.fixture
def powercap(tmp_path):
    """Zones whose energy grows with the monotonic clock, in whole files: 100 + 120 W packages, 20 W DRAM each."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    tree = Powercap(tmp_path, zones)
    watts = {"package-0": 100, "package-1": 120, "dram": 20, "core": 60, "psys": 400}
    over = threading.Event()

    def go_on():
        while not over.is_set():
            for place, path in enumerate(tree.zones.values()):
                temporary = path / "next"
                power = watts[(path / "name").read_text().strip()]
                offset = place * 10**9  # or equal zones would be taken for one that is seen twice
                temporary.write_text(f"{(power * time.monotonic_ns() // 1000 + offset) % 262143328850}\n")
                temporary.replace(path / "energy_uj")
            over.wait(0.005)

    thread = threading.Thread(target=go_on)
    thread.start()
    yield tree.root
    over.set()
    thread.join()


@pytest.mark.slow
def test_ten_seconds_are_within_half_a_percent_of_the_truth(powercap):
    gpus = [fake_gpu(0, WAVE), fake_gpu(1, WAVE | {"phase": 0.1, "high": 500})]
    variables = environment(*gpus) | {"WATTBENCH_POWERCAP": str(powercap)}
    record = measured("--idle-seconds", "3", "--", "sleep", "10.05", **variables)
    t0, t1 = window(record)
    assert t1 - t0 >= 10.05
    by_device = {reading.device.rpartition("/")[2]: reading for reading in record.energy if reading.provenance.measured}
    for gpu in gpus:
        reading = by_device[gpu["uuid"]]
        true = float(truth(gpu, t0, t1))
        assert abs(reading.energy_joules / true - 1) <= 0.005
        assert abs(reading.energy_joules - true) <= reading.uncertainty_joules
        assert (reading.provenance.value, reading.gain_share) == ("measured_counter_interp", 0.05)
    zones = {"intel-rapl:0": 100, "intel-rapl:1": 120, "intel-rapl:0:1": 20, "intel-rapl:1:0": 20}
    for zone, watts in zones.items():
        assert by_device[zone].energy_joules == pytest.approx(watts * float(t1 - t0), rel=0.005)
    assert set(by_device) == {*zones, *(gpu["uuid"] for gpu in gpus)}
    known = metrics(record)
    total = sum(float(truth(gpu, t0, t1)) for gpu in gpus) + 260 * float(t1 - t0)
    assert known["energy_joules"] == pytest.approx(total, rel=0.005)
    # Idle power was that of the same waves: what is left above it is small.
    assert known.get("energy_above_idle_joules", 0) <= 0.15 * total
    assert {part.device.rpartition("/")[2] for part in record.idle} == set(by_device)
    assert {"partial_total", "gap", "window_too_short"}.isdisjoint(record.flags)
    assert {"exclusivity_unknown", "unvalidated_sensor", "short_window", "no_steps"} <= set(record.flags)
    assert record.grade == "B"


@pytest.mark.slow
def test_sleep_without_a_gpu_has_time_an_estimate_and_a_record(tmp_path):
    done = bench("--region", "FR", "--electricity-price", "0.2", "--", "sleep", "5", LD_LIBRARY_PATH="")
    assert done.returncode == 0
    assert done.stdout == ""
    (path,) = tmp_path.glob("runs/measure/*/*/record.json")
    record = RunRecord.model_validate_json(path.read_text())
    assert record.duration_seconds >= 5
    assert {r.source for r in record.energy} <= {"codecarbon", "rapl"}
    assert f"{record.duration_seconds:.4g} s" in done.stderr
    for word in ("estimated by a model", "g CO2e (estimated energy × ", "FRA", "USD (owned", "grade B", "no_steps"):
        assert word in done.stderr
    assert (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -9 $$", 128 + 9)],
)
def test_the_exit_code_is_passed_on(command, code, tmp_path):
    done = bench("--no-store", "--idle-seconds", "0", "--", "sh", "-c", command, **environment(fake_gpu(0)))
    assert done.returncode == code
    (path,) = tmp_path.glob("runs/measure/*/*/record.json")
    record = RunRecord.model_validate_json(path.read_text())
    assert record.status.value == ("ok" if code == 0 else "failed")


@pytest.mark.parametrize(("name", "code"), [("no-such-command", 127), ("./notes.txt", 126)])
def test_a_command_that_cannot_be_started_is_told_as_a_shell_does(name, code, tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    done = bench("--no-store", "--idle-seconds", "0", "--", name, **environment(fake_gpu(0)))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("bench: cannot start the command: ")
    assert "Traceback" not in done.stderr


def test_input_and_output_are_the_command_s_own():
    command = [*BENCH, "--no-store", "--idle-seconds", "0", "--", "cat"]
    done = subprocess.run(
        command, input="a\nb", env=os.environ | environment(fake_gpu(0)), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "a\nb")


def test_json_is_alone_on_stdout():
    done = bench("--json", "--no-store", "--idle-seconds", "0", "--", "echo", "hello", **environment(fake_gpu(0)))
    assert json.loads(done.stdout)["status"] == "ok"
    assert "hello" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--region", "Atlantis"], "region 'Atlantis' is not known"),
        (["--price", "1", "--electricity-price", "1"], "not both"),
        (["--pue", "0.5"], "--pue"),
        (["--step-pattern", "("], "is not a regular expression"),
        (["--gpus", "3"], "--gpus names '3'"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(options, message, tmp_path):
    done = bench(*options, "--", "touch", "ran", **environment(fake_gpu(0)))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    assert not (tmp_path / "ran").exists()


STEPS = """
import time
from bench.steps import phase, step
for i in range(12):
    time.sleep(0.02)
    step(samples=4, tokens=40, loss=5 - i / 10)
    if i == 7:
        with phase("eval"):
            time.sleep(0.3)
"""


def test_steps_of_a_script_give_throughput_and_its_evaluation_is_apart():
    record = measured("--idle-seconds", "0", "--", sys.executable, "-c", STEPS, **environment(fake_gpu(0, 300)))
    known = metrics(record)
    assert known["steps"] == 12 - 3
    steady = [phase.seconds for phase in record.measurement.phases if phase.name == "steady"]
    assert known["window_seconds"] == pytest.approx(sum(steady))
    assert known["window_seconds"] >= 9 * 0.02
    assert known["samples_per_second"] == pytest.approx(9 * 4 / known["window_seconds"])
    assert (known["loss_first"], known["loss_last"]) == (4.8, 3.9)
    names = [phase.name for phase in record.measurement.phases]
    assert names == ["start", "warmup", "steady", "eval", "steady", "tail"]
    evaluation = next(phase for phase in record.measurement.phases if phase.name == "eval")
    assert evaluation.seconds >= 0.3
    assert known["phase_eval_seconds"] == pytest.approx(evaluation.seconds)


def test_steps_are_found_in_the_output():
    script = "import time\nfor i in range(8):\n    time.sleep(0.02)\n"
    script += "    print(f'it {i} | {1024:,} tok | loss {3 - i / 9:.2f}')"
    pattern = r"^it \d+ \| (?P<tokens>[\d,]+) tok \| loss (?P<loss>[\d.]+)"
    record = measured(
        *("--idle-seconds", "0", "--warmup-steps", "2", "--step-pattern", pattern),
        *("--", sys.executable, "-c", script),
        **environment(fake_gpu(0, 300)),
    )
    known = metrics(record)
    assert known["steps"] == 6
    assert known["tokens_per_second"] == pytest.approx(6 * 1024 / known["window_seconds"])
    assert known["loss_last"] == 2.22


def test_ctrl_c_is_for_the_command_and_its_record_is_kept(tmp_path):
    script = (
        "import signal, sys, time\nsignal.signal(2, lambda *_: sys.exit(3))\nprint('up', flush=True)\ntime.sleep(30)"
    )
    process = subprocess.Popen(
        [*BENCH, "--no-store", "--idle-seconds", "0", "--", sys.executable, "-c", script],
        env=os.environ | environment(fake_gpu(0)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "exit code 3" in said
    assert len(list(tmp_path.glob("runs/measure/*/*/record.json"))) == 1


def test_a_secret_on_the_command_line_is_not_kept(tmp_path):
    arguments = ["--no-store", "--idle-seconds", "0", "--", "true", "--token=abc123secret"]
    assert bench(*arguments, **environment(fake_gpu(0))).returncode == 0
    kept = "".join(path.read_text(errors="replace") for path in Path(tmp_path, "runs").rglob("*.json"))
    assert "--token=***" in kept
    assert "abc123secret" not in kept


def test_gpus_that_a_command_does_not_use_are_counted_apart(tmp_path):
    """Of two GPUs a process of the command is seen on the first only; where none is seen all are taken for used."""
    uuids = [fake_gpu(number)["uuid"] for number in (0, 1)]
    rows = [
        Reading(t_ns=t * S // 10, wall_ns=1, source="nvml", component="gpu", device=uuid, energy_uj=t * (n + 1) * 10**7)
        for t in range(101)
        for n, uuid in enumerate(uuids)
    ]
    seen = [
        Reading(t_ns=5 * S, wall_ns=1, source="nvml", component="gpu", device=uuid, event="conditions", message=message)
        for uuid, message in zip(uuids, ['{"own":1,"foreign":0}', '{"own":0,"foreign":0}'], strict=True)
    ]
    spec = RunSpec(workload="command", workload_args={"argv": "train"}, device_type="cuda", devices_per_node=2)
    site = Site(usd_per_device_hour=3600)

    def collected(suite, name, readings):
        folder = tmp_path / name
        folder.mkdir()
        files.EXIT.write(folder, files.Exit(how="ended", exitcode=0, start_ns=0, end_ns=10 * S))
        result = Measurement(
            window_seconds=10, samples=100, phases=[Phase(name="steady", start_ns=0, end_ns=10 * S)], steps=1
        )
        files.RESULT.write(folder, result)
        lines = (reading.to_json() + "\n" for reading in readings)
        files.RAW_METERS.path(folder, 0).write_text("".join(lines))
        return collect(Context(suite, "e", site, rows_of_tests.environment(), uuids), spec, folder)

    for suite in ("measure", "commands"):
        apart = collected(suite, suite, [*rows, *seen])
        assert apart.spec == spec  # what was asked stays
        assert (apart.devices, [r.device for r in apart.energy], [r.device for r in apart.unused]) == (
            uuids[:1],
            uuids[:1],
            uuids[1:],
        )
        flat = row(apart)
        devices = 1 if suite == "measure" else 2  # a suite is billed for what it asks for, and says so by a flag
        per_device = flat["samples_per_second_per_device"]
        assert (flat["devices"], per_device, flat["cost_usd"]) == (devices, 10 / devices, 10 * devices)
        assert flat["label"] == f"train d{devices}"
        assert flat["unused_energy_joules"] == pytest.approx(2000)
        assert ("fewer_devices" in apart.flags) == (suite == "commands")
    unknown = collected("commands", "unknown", rows)
    assert (unknown.devices, unknown.unused) == (uuids, [])
    assert row(unknown)["devices"] == 2
    assert "fewer_devices" not in unknown.flags
