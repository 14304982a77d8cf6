"""The main job for real: training processes, meters, records, MLflow, the answer, the dashboard; and how it fails."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.files import is_held
from bench.folder import LOCK, PROGRESS
from bench.record import Status
from bench.store.progress import Flight, Seen, in_flight
from bench.store.tracker import flights, load
from tests import commands
from tests.commands import execute
from tests.fake_nvml import environment as with_fake_gpus
from tests.fake_nvml import fake_gpu, install
from tests.processes import BENCH, PATIENCE, QUICK, SCALING, Finished, bench, processes_in, records, until
from tests.stores import empty_store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def test_the_main_job(finished: Finished) -> None:
    assert finished.code == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert len(document["runs"]) == 4
    assert [c["devices"] for c in document["configurations"]] == [1, 2]
    (series,) = document["fit"]["series"]
    assert series["v_low"] < series["v"] < series["v_high"]
    assert {point["scaling"] for point in series["efficiency"]} == {"weak"}
    assert "[4/4]" in finished.stderr
    assert processes_in(finished.folder) == []
    assert list(finished.folder.glob("temporary/torchelastic_*")) == []


def test_without_a_network(finished: Finished) -> None:
    """The same, inside a network namespace where nothing but the loopback interface exists."""
    if not finished.offline:
        pytest.skip("NOT CHECKED WITHOUT A NETWORK: unshare -rn is not allowed here")
    assert finished.code == 0, finished.stderr


def test_the_records_are_true(finished: Finished) -> None:
    found = records(finished.folder)
    assert [(r.spec.world_size, r.spec.repeat) for r in found.values()] == [(1, 0), (2, 0), (2, 1), (1, 1)]
    for record in found.values():
        measured = record.measurement
        assert record.status is Status.OK
        assert measured is not None
        assert measured.window_seconds >= 1
        assert measured.steps == len(measured.step_seconds)
        assert sum(measured.step_seconds) == pytest.approx(measured.window_seconds, rel=0.1)
        assert measured.samples == measured.steps * 4 * record.spec.world_size
        assert measured.tokens == measured.samples * 128
        assert len(measured.peak_memory_bytes) == record.spec.world_size
        assert measured.loss_first == pytest.approx(5.5, abs=0.3)
        assert (
            min(measured.loss_last, measured.quality[-1].loss) < measured.loss_first
        )  # a last batch may be unlike the others
        names = [phase.name for phase in measured.phases]
        assert names == ["launch", "start", "build", "warmup", "probe", "steady", "validation", "probe", "tail"]
        kinds = {reading.provenance.value for reading in measured.energy}
        assert kinds <= {"estimated_model", "measured_counter_interp", "measured_counter"}
        assert measured.energy
        assert record.duration_seconds > measured.window_seconds
        assert sum(r.energy_joules for r in record.energy) > sum(r.energy_joules for r in measured.energy)
        assert record.carbon is not None
        assert record.carbon.intensity.region == "FRA"
        assert record.cost is not None
        assert record.cost.cost_usd == pytest.approx(record.spec.world_size * record.duration_seconds / 3600)
        assert record.spec.threads_per_device == 1
    first, second = (r for r in found.values() if r.spec.world_size == 1)
    assert first.config_id == second.config_id
    assert first.spec.seed != second.spec.seed


def test_a_run_is_a_folder(finished: Finished) -> None:
    for folder in finished.folder.glob("runs/scaling/*/*d2*/"):
        names = {"spec.json", "result.json", "record.json", "exit.json", "meters-0.parquet", "worker.log"}
        assert {path.name for path in folder.iterdir()} == names | {"steps-0.jsonl", "steps-1.jsonl"}
        lines = [json.loads(line) for line in (folder / "steps-1.jsonl").read_text().splitlines()]
        assert all(line["step_seconds"] > 0 for line in lines)


def test_the_answer_comes_again_from_the_store(finished: Finished) -> None:
    first = json.loads(finished.stdout)
    second = json.loads(commands.bench("fit", "scaling", "--json", "--store", finished.uri).stdout)
    assert second["configurations"] == first["configurations"]
    assert second["fit"] == first["fit"]
    plain = commands.bench("fit", "--store", finished.uri, charset="ascii")
    assert (plain.exit_code, plain.stdout.isascii()) == (0, True), plain.stderr
    assert plain.stdout
    assert commands.bench("fit", SCALING, "--store", finished.uri).exit_code == 0
    assert "no runs of suite 'scalling'" in commands.bench("fit", "scalling", "--store", finished.uri).stderr


def test_the_dashboard_shows_it(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pages import opened

    monkeypatch.setenv("WATTBENCH_TRACKING_URI", finished.uri)
    app = opened("scaling", {})
    assert len(app.dataframe) >= 1


FAILING = """
name: failing
defaults:
  workload: decoder_lm
  workload_args: {preset: tiny}
  device_type: cpu
  batch_size_per_device: 1
  warmup_seconds: 0
  measure_steps: 3
  validation.samples: 0
  devices: 2
include:
  - {workload_args: {layers: 1, hidden: 262144, heads: 1}}
  - {measure_steps: 1000000, timeout_seconds: 5, devices: 1}
  - {workload_args: {preset: tiny, text: ODD}}
  - {devices: 4096}
  - {optimizer: {name: sgd, learning_rate: 1e30}}
  - {seed: 5}
"""


def test_every_way_to_end_is_recorded_and_the_suite_goes_on(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes(b"x" * 70_000 + b"\0")
    (tmp_path / "failing.yaml").write_text(FAILING.replace("ODD", "odd.txt"))
    uri = empty_store(tmp_path)
    process = execute(tmp_path, "run", "failing.yaml")
    assert process.exit_code == 1, process.stderr
    found = sorted(records(tmp_path).values(), key=lambda r: r.started_at)
    ended = {r.status: r for r in found}
    assert set(ended) == {
        Status.OUT_OF_MEMORY,
        Status.TIMEOUT,
        Status.FAILED,
        Status.SKIPPED,
        Status.INVALID,
        Status.OK,
    }
    messages = {status: r.error.message for status, r in ended.items() if r.error}
    assert "can't allocate memory" in messages[Status.OUT_OF_MEMORY]
    assert ended[Status.OUT_OF_MEMORY].error is not None
    assert (ended[Status.OUT_OF_MEMORY].error.attempted_bytes or 0) > 2**38
    assert "out of memory: tried to allocate " in process.stderr + process.stdout
    assert "timeout_seconds = 5" in messages[Status.TIMEOUT]
    assert ended[Status.TIMEOUT].error is not None
    assert "worker.py" in ended[Status.TIMEOUT].error.log_tail  # where the ranks were
    assert "no text in" in messages[Status.FAILED]
    assert "processors" in messages[Status.SKIPPED]
    assert "the loss went from" in messages[Status.INVALID]
    assert ended[Status.TIMEOUT].energy
    assert ended[Status.TIMEOUT].duration_seconds >= 5
    assert {row["status"] for row in load(uri)} == {str(status) for status in ended}
    assert processes_in(tmp_path) == []
    process = execute(tmp_path, "run", "failing.yaml", "--retry", "--only", "optimizer.learning_rate=1e+30")
    assert process.exit_code == 1
    assert len(list(tmp_path.glob("runs/failing/*"))) == 1
    again = {r.status: r for r in records(tmp_path).values()}
    assert again[Status.INVALID].started_at > ended[Status.INVALID].started_at
    assert {status for status in ended if again[status] != ended[status]} == {Status.INVALID}
    document = json.loads(commands.bench("fit", "--json", "--store", uri).stdout)
    assert len(document["runs"]) == 6  # the one that was done again counts once


INTERRUPTED = """
name: interrupted
idle_seconds: 0
repeats: 3
defaults: {workload: decoder_lm, workload_args.preset: tiny, device_type: cpu, devices: 2, batch_size_per_device: 2,
  warmup_seconds: 0, measure_seconds: 1.5, validation.samples: 0, meters: []}
"""
RUN = ("run", "interrupted.yaml", "--price", "1")


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the suite in a process of its own, which is killed at the end."""
    outputs: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*BENCH, *RUN], cwd=folder, **outputs) as process:
        try:
            yield process
        finally:
            process.kill()


def listening(process: subprocess.Popen[str]) -> set[str]:
    """Addresses at which the processes below this one listen."""
    ours = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    return {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in ours}


def node_of(process: subprocess.Popen[str]) -> psutil.Process:
    (node,) = (child for child in psutil.Process(process.pid).children() if "bench.run.node" in child.cmdline())
    return node


def seen(folder: Path) -> list[Seen]:
    return in_flight(folder / "runs", [], datetime.now(UTC))


def test_a_suite_resumes_after_whatever_interrupted_it(tmp_path: Path) -> None:
    """First its node dies, which fails one run alone; then it is killed; then Ctrl-C; then it is run to its end."""
    uri = empty_store(tmp_path)
    (tmp_path / "interrupted.yaml").write_text(INTERRUPTED)
    with started(tmp_path) as process:
        (flight,) = until(lambda: seen(tmp_path))
        assert (flight.state, flight.flight.current, flight.flight.done) == ("running", None, 0)
        assert until(lambda: listening(process)) == {"127.0.0.1"}, "no port is open to other machines"
        node_of(process).kill()
        (second,) = until(lambda: [flight for flight in seen(tmp_path) if flight.flight.done == 1])
        told = second.flight
        host = socket.gethostname()
        assert (told.to_do, told.failed, told.unit, told.host, told.ended) == (3, 1, "runs", host, False)
        assert (told.current or "").endswith(" r1")
        assert (told.remaining_seconds or 0) > 2 * 1.5
        (tag,) = flights(uri)
        assert tag.folder == told.folder
        execution = Path(tag.folder or "")
        assert is_held(execution / LOCK)
        until(lambda: len(records(tmp_path)) == 2 and len(list(execution.glob("*/spec.json"))) == 3)
        process.send_signal(signal.SIGSTOP)  # it still holds its execution
        busy = execute(tmp_path, *RUN)
        assert busy.exit_code == 2
        assert "another process runs this execution" in busy.stderr
        process.kill()
        process.communicate(timeout=PATIENCE)
    until(lambda: not processes_in(tmp_path))
    (stopped,) = seen(tmp_path)
    assert (stopped.state, stopped.flight.to_do, stopped.flight.done) == ("stopped", 3, 2)
    assert len(flights(uri)) == 1, "MLflow does not know that it was killed"
    before = records(tmp_path)
    failed, ok = before.values()
    assert (failed.status, ok.status) == (Status.FAILED, Status.OK)
    assert failed.duration_seconds > 0
    assert failed.cost is not None
    assert failed.cost.cost_usd > 0
    now = datetime.now(UTC)
    with started(tmp_path) as process:  # its own, as a transaction that Ctrl-C cuts off ends with its process
        until(lambda: [each for each in seen(tmp_path) if (each.flight.run_began_at or now) > now])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Stopped. Run the same command again to resume." in errors
    assert records(tmp_path) == before
    until(lambda: not processes_in(tmp_path))
    again = execute(tmp_path, *RUN, "--retry")
    assert again.exit_code == 0, again.stderr
    after = records(tmp_path)
    assert [record.status for record in after.values()] == [Status.OK] * 3
    assert after[ok.run_id] == ok
    assert list(tmp_path.glob("runs/interrupted/2*")) == [execution]
    assert (seen(tmp_path), flights(uri)) == ([], [])
    kept = Flight.model_validate_json((execution / PROGRESS).read_text())
    assert (kept.to_do, kept.done, kept.ended, kept.current) == (2, 2, True, None)
    assert len(json.loads(commands.bench("fit", "--json", "--store", uri).stdout)["runs"]) == 3


COLD = """
name: cold
idle_seconds: 0
defaults: {workload: decoder_lm, workload_args.preset: tiny, device_type: cpu, devices: 2, batch_size_per_device: 2,
  measure_steps: 3, meters: [], cold: true}
include: [{}, {devices: 1, measure_steps: 1000000, timeout_seconds: 3}]
"""


def test_cold_runs_go_through_plain_torchrun_and_leave_no_rank_behind(tmp_path: Path) -> None:
    empty_store(tmp_path)
    (tmp_path / "cold.yaml").write_text(COLD)
    process = execute(tmp_path, "run", "cold.yaml")
    assert process.exit_code == 1, process.stderr
    short, late = sorted(records(tmp_path).values(), key=lambda record: record.spec.measure_steps or 0)
    assert (short.status, late.status) == (Status.OK, Status.TIMEOUT), short.error
    assert short.measurement is not None
    start = next(phase for phase in short.measurement.phases if phase.name == "start")
    assert start.seconds > 0.05
    assert processes_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_no_traceback(tmp_path: Path) -> None:
    process = commands.bench("run", SCALING, *QUICK, "--runs", "/proc/nope")
    assert process.exit_code == 70
    assert "Traceback" not in process.stderr
    assert "/proc/nope" in process.stderr


def test_the_launcher_asks_cuda_nothing_before_it_forks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from bench.run import node
    from bench.schema import RunSpec

    def asked() -> int:
        raise AssertionError("CUDA was asked before the fork: no forked rank could use it")

    def rank(folder: str) -> None:
        (Path(folder) / os.environ["RANK"]).touch()

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", asked, raising=False)
    monkeypatch.setattr(node, "_rank", rank)
    spec = RunSpec(workload="x", device_type="gpu", devices_per_node=2, batch_size_per_device=1, measure_steps=1)
    assert node.train(spec, tmp_path, 0) == []
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


def test_gpus_that_torch_cannot_use_are_an_error_not_a_cpu_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "+cpu" not in __import__("importlib.metadata").metadata.version("torch"):
        pytest.skip("NOT CHECKED: this torch is built for CUDA")
    install(monkeypatch, fake_gpu(0, 300))
    process = commands.bench("run", SCALING)
    assert process.exit_code == 2
    assert "1 NVIDIA GPU(s) are here, but the installed torch" in process.stderr
    assert "--set device_type=cpu" in process.stderr
    assert not list(tmp_path.glob("runs/*/*/*/record.json"))


COMMANDS = """
name: own
idle_seconds: 2.5
defaults:
  workload: command
  workload_args.argv: sh -c 'echo visible=$CUDA_VISIBLE_DEVICES safe=$PYTHONSAFEPATH; sleep {seconds}; exit {code}'
  workload_args.seconds: 1.5
  workload_args.code: 0
matrix:
  devices: [1, 2]
include:
  - {devices: 1, workload_args.code: 5}
"""


def test_commands_of_the_user_run_on_gpus_that_are_named_by_uuid(tmp_path: Path) -> None:
    """GPUs in another order than NVML's: energy, idle power and unused GPUs are told apart by UUID, never by place."""
    gpus = [fake_gpu(number, watts) for number, watts in ((0, 100), (1, 200), (2, 400))]
    variables = os.environ | with_fake_gpus(*gpus) | {"CUDA_VISIBLE_DEVICES": "2,0,1"}
    (tmp_path / "own.yaml").write_text(COMMANDS)
    process = bench(tmp_path, "run", "own.yaml", "--price", "3600", env=variables)
    assert process.returncode == 1, process.stderr
    found = {(r.spec.world_size, r.spec.workload_args["code"]): r for r in records(tmp_path).values()}
    one, two, failed = (found[key] for key in ((1, 0), (2, 0), (1, 5)))
    uuids = [gpus[place]["uuid"] for place in (2, 0, 1)]
    assert (one.devices, two.devices) == (uuids[:1], uuids[:2])
    for record in (one, two):
        log = (tmp_path / f"runs/own/{record.execution}/{record.run_id}/worker.log").read_text()
        assert log == f"visible={','.join(record.devices)} safe=\n"
        assert record.measurement is not None
        true = dict(zip(uuids, (400, 100), strict=False))
        drawn = {r.device: r for r in record.energy if r.source == "nvml"}
        assert drawn.keys() == set(record.devices)
        for uuid, reading in drawn.items():
            assert abs(reading.energy_joules - true[uuid] * reading.seconds) <= reading.uncertainty_joules
        assert {r.device for r in record.unused} == set(uuids) - set(record.devices)
        idle = {part.device: part.power_watts for part in record.idle if part.component == "gpu"}
        assert idle == pytest.approx(dict(zip(uuids, (400, 100, 200), strict=True)), rel=0.2)
        assert record.cost is not None
        assert record.cost.cost_usd == pytest.approx(record.spec.world_size * record.duration_seconds)
        assert "exclusivity_unknown" in record.flags
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert failed.error.message == "the command ended with exit code 5"
    (reading,) = (r for r in failed.energy if r.source == "nvml")
    assert abs(reading.energy_joules - 400 * reading.seconds) <= reading.uncertainty_joules
    assert reading.seconds >= 1.5
