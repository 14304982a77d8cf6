"""`bench measure` from end to end, on GPUs and processors whose energy is known exactly."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from analytics.text import interval
from bench import folder as files
from bench.cli.measure import _not_made
from bench.figures.metrics import metrics, row
from bench.machine.environment import find_machine
from bench.meters.meter import Reading
from bench.record import Measurement, Phase, RunRecord
from bench.run import measure as measuring
from bench.run.collect import Context, collect
from bench.schema import RunSpec, Site
from tests import commands, processes
from tests import rows as rows_of_tests
from tests.fake_nvml import environment, fake_gpu, install, truth
from tests.processes import BENCH, PATIENCE
from tests.stores import empty_store
from tests.test_meters_rapl import Powercap

S = 1_000_000_000
WAVE = {"high": 700, "low": 200, "period": 0.35, "duty": 0.5}
ZONE_WATTS = {"package-0": 100, "package-1": 120, "dram": 20, "core": 60, "psys": 400}
QUIET = ("--no-store", "--idle-seconds", "0")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and its children have one GPU, and no other meter is started: the estimate takes seconds."""
    install(monkeypatch, fake_gpu(0, 300))
    for name, value in environment(fake_gpu(0, 300)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(measuring, "MeasureOptions", functools.partial(measuring.MeasureOptions, meters=("nvml",)))
    monkeypatch.setattr(measuring, "adopt_orphans", lambda: None)


def measured(*argv: str, **options: Any) -> RunRecord:
    asked = measuring.MeasureOptions(argv=list(argv), idle_seconds=0.0, **options)
    return measuring.measure(asked, find_machine()[0], Path("runs"))[0]


def kept(folder: Path) -> RunRecord:
    (path,) = folder.glob(".wattbench/measure/*/*/record.json")
    return RunRecord.model_validate_json(path.read_text())


class Zones:
    """Zones whose energy grows with the monotonic clock, in whole files: 100 + 120 W packages, 20 W DRAM each.

    `late` is the longest time in seconds for which a file was not written anew.
    """

    def __init__(self, folder: Path) -> None:
        zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
        zones |= {"intel-rapl:1": "package-1", "intel-rapl:1:0": "dram", "intel-rapl:2": "psys"}
        self.tree = Powercap(folder, zones | {"intel-rapl-mmio:0": "package-0"})
        self.late, self.over = 0.0, threading.Event()

    def count(self) -> None:
        before = time.monotonic()
        while not self.over.is_set():
            for place, path in enumerate(self.tree.zones.values()):
                power = ZONE_WATTS[(path / "name").read_text().strip()]
                offset = place * 10**9  # or equal zones would be taken for one that is seen twice
                temporary = path / "next"
                temporary.write_text(f"{(power * time.monotonic_ns() // 1000 + offset) % 262143328850}\n")
                temporary.replace(path / "energy_uj")
            before, self.late = time.monotonic(), max(self.late, time.monotonic() - before)
            self.over.wait(0.005)


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Zones]:
    made = Zones(tmp_path)
    thread = threading.Thread(target=made.count)
    thread.start()
    yield made
    made.over.set()
    thread.join()


@pytest.mark.slow
def test_energy_of_a_command_is_the_truth_within_its_bounds(zones: Zones, tmp_path: Path) -> None:
    gpus = [fake_gpu(0, WAVE), fake_gpu(1, WAVE | {"phase": 0.1, "high": 500})]
    variables = os.environ | environment(*gpus) | {"WATTBENCH_POWERCAP": str(zones.tree.root)}
    arguments = ["--json", "--no-store", "--idle-seconds", "3", "--", "sleep", "4.05"]
    done = processes.bench(tmp_path, "measure", *arguments, env=variables)
    assert done.returncode == 0, done.stderr
    record = RunRecord.model_validate_json(done.stdout)
    assert record.measurement is not None
    phases = record.measurement.phases
    t0, t1 = Fraction(phases[0].start_ns, S), Fraction(phases[-1].end_ns, S)
    assert t1 - t0 >= 4.05
    by_device = {reading.device.rpartition("/")[2]: reading for reading in record.energy if reading.provenance.measured}
    bound = 0.0
    for gpu in gpus:
        reading = by_device[gpu["uuid"]]
        assert reading.uncertainty_joules is not None
        assert abs(reading.energy_joules - float(truth(gpu, t0, t1))) <= reading.uncertainty_joules
        assert (reading.provenance.value, reading.gain_share) == ("measured_counter_interp", 0.05)
        bound += reading.uncertainty_joules
    watts = {"intel-rapl:0": 100, "intel-rapl:1": 120, "intel-rapl:0:1": 20, "intel-rapl:1:0": 20}
    for zone, power in watts.items():
        off = power * (0.05 + 2 * zones.late)
        assert by_device[zone].energy_joules == pytest.approx(power * float(t1 - t0), abs=off)
        bound += off
    assert set(by_device) == {*watts, *(gpu["uuid"] for gpu in gpus)}
    total = sum(float(truth(gpu, t0, t1)) for gpu in gpus) + 260 * float(t1 - t0)
    assert metrics(record)["energy_joules"] == pytest.approx(total, abs=bound)
    assert {part.device.rpartition("/")[2] for part in record.idle} == set(by_device)
    assert {"partial_total", "window_too_short"}.isdisjoint(record.flags)
    assert {"exclusivity_unknown", "unvalidated_sensor", "short_window", "no_steps"} <= set(record.flags)


@pytest.mark.slow
def test_sleep_without_a_gpu_has_time_an_estimate_and_a_record(tmp_path: Path) -> None:
    empty_store(tmp_path)
    arguments = ["--region", "FR", "--electricity-price", "0.2", "--", "sleep", "1"]
    done = processes.bench(tmp_path, "measure", *arguments, env=os.environ | {"LD_LIBRARY_PATH": ""})
    assert (done.returncode, done.stdout) == (0, "")
    record = kept(tmp_path)
    assert record.duration_seconds >= 1
    assert {reading.source for reading in record.energy} <= {"codecarbon", "rapl"}
    assert record.energy
    assert record.carbon is not None
    assert record.carbon.intensity.region == "FRA"
    assert record.cost is not None
    assert record.cost.mode == "owned"
    assert "no_steps" in record.flags
    assert f"sleep 1: {interval(record.duration_seconds)} s, " in done.stderr
    assert f"Grade {record.grade}" in done.stderr


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -9 $$", 128 + 9)],
)
def test_the_exit_code_is_passed_on(command: str, code: int, tmp_path: Path) -> None:
    assert commands.bench("measure", *QUIET, "--", "sh", "-c", command).exit_code == code
    assert kept(tmp_path).status.value == ("ok" if code == 0 else "failed")


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("name", "code"), [("no-such-command", 127), ("./notes.txt", 126)])
def test_a_command_that_cannot_be_started_ends_as_in_a_shell(name: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    done = commands.bench("measure", *QUIET, "--", name)
    assert (done.exit_code, done.stdout) == (code, "")
    assert f"cannot start {name}: " in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_input_and_output_are_the_command_s_own(as_json: bool, tmp_path: Path) -> None:
    arguments = [*QUIET, *(["--json"] if as_json else []), "--", "cat"]
    done = processes.bench(tmp_path, "measure", *arguments, input="a\nb", env=os.environ | environment(fake_gpu(0)))
    assert done.returncode == 0
    if as_json:
        assert json.loads(done.stdout)["status"] == "ok"
        assert "a\nb" in done.stderr
    else:
        assert done.stdout == "a\nb"


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--region", "Atlantis"], "region 'Atlantis' is not known"),
        (["--price", "1", "--electricity-price", "1"], "not both"),
        (["--pue", "0.5"], "--pue"),
        (["--step-pattern", "("], "not a regular expression"),
        (["--gpus", "3"], "--gpus names '3'"),
    ],
)
def test_wrong_options_end_before_anything_runs(options: list[str], message: str, tmp_path: Path) -> None:
    done = commands.bench("measure", *options, "--", "touch", "ran")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.usefixtures("one_gpu")
def test_steps_of_a_script_give_throughput_and_its_evaluation_is_apart() -> None:
    record = measured(sys.executable, "-c", STEPS)
    known = metrics(record)
    assert record.measurement is not None
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


@pytest.mark.usefixtures("one_gpu")
def test_steps_are_found_in_the_output() -> None:
    script = "import time\nfor i in range(8):\n    time.sleep(0.02)\n"
    script += "    print(f'it {i} | {1024:,} tok | loss {3 - i / 9:.2f}')"
    pattern = r"^it \d+ \| (?P<tokens>[\d,]+) tok \| loss (?P<loss>[\d.]+)"
    known = metrics(
        measured(sys.executable, "-c", script, warmup_steps=2, printed={"step_pattern": pattern}, output=io.BytesIO())
    )
    assert known["steps"] == 6
    assert known["tokens_per_second"] == pytest.approx(6 * 1024 / known["window_seconds"])
    assert known["loss_last"] == 2.22


@pytest.mark.parametrize(
    ("made", "repeats", "stop", "text"),
    [
        (1, 1, None, ""),
        (3, 3, None, ""),
        (1, 1, signal.SIGINT, ""),
        (1, 2, signal.SIGINT, "stopped by Ctrl-C: run 2 of 2 was not made\n"),
        (2, 2, signal.SIGTERM, ""),
        (1, 4, signal.SIGTERM, "stopped by SIGTERM: runs 2 to 4 were not made\n"),
        (2, 3, None, "run 2 did not end well: run 3 of 3 was not made\n"),
    ],
)
def test_runs_that_were_not_made_are_told(
    made: int, repeats: int, stop: signal.Signals | None, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _not_made(made, repeats, stop)
    assert capsys.readouterr().err == (f"bench: {text}" if text else "")


@pytest.mark.usefixtures("one_gpu")
def test_of_a_command_that_failed_no_report_is_proposed() -> None:
    failed = commands.bench("measure", "--idle-seconds", "0", "--", sys.executable, "absent.py")
    assert failed.exit_code == 2
    assert "the command ended with exit code 2" in failed.stderr
    assert "before a step was measured" in failed.stderr
    assert "bench report" not in failed.stderr
    assert "mlflow.db" in failed.stderr, "where things are written is told once"
    done = commands.bench("measure", "--idle-seconds", "0", "--", sys.executable, "-c", "pass")
    assert "bench report measure" in done.stderr
    assert "mlflow.db" not in done.stderr


def test_ctrl_c_is_for_the_command_and_its_record_is_kept(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\nsignal.signal(2, lambda *_: sys.exit(3))\nprint('up', flush=True)\ntime.sleep(900)"
    )
    process = subprocess.Popen(
        [*BENCH, "measure", *QUIET, "--repeats", "2", "--", sys.executable, "-c", script],
        env=os.environ | environment(fake_gpu(0)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, text
    assert kept(tmp_path).status.value == "failed"
    assert "stopped by Ctrl-C: run 2 of 2 was not made" in text


@pytest.mark.usefixtures("one_gpu")
def test_a_secret_on_the_command_line_is_not_kept(tmp_path: Path) -> None:
    assert commands.bench("measure", *QUIET, "--", "true", "--token=abc123secret").exit_code == 0
    text = "".join(path.read_text(errors="replace") for path in Path(tmp_path, ".wattbench").rglob("*.json"))
    assert "--token=***" in text
    assert "abc123secret" not in text


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
    spec = RunSpec(workload="command", workload_args={"argv": "train"}, device_type="gpu", devices_per_node=2)
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
        billed = 1 if suite == "measure" else 2  # a suite is billed for what it asks for, and says so by a flag
        per_device = flat["samples_per_second_per_device"]
        assert (flat["devices"], per_device, flat["cost_usd"]) == (1, 10, 10 * billed)
        assert flat["label"] == "train d1"
        assert flat["unused_energy_joules"] == pytest.approx(2000)
        assert ("devices_differ" in apart.flags) == (suite == "commands")
    unknown = collected("commands", "unknown", rows)
    assert (unknown.devices, unknown.unused) == (uuids, [])
    assert row(unknown)["devices"] == 2
    assert "devices_differ" not in unknown.flags
