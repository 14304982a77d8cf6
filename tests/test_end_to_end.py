"""The main job for real: training processes, meters, records, MLflow, the answer, the dashboard; and how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.record import RunRecord, Status
from bench.store.tracker import load
from tests.fake_nvml import environment as with_fake_gpus
from tests.fake_nvml import fake_gpu

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 with SQLAlchemy 2.1, and its connections that are left to the garbage collector.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parent.parent
SCALING = str(ROOT / "suites" / "scaling.yaml")
BENCH = [sys.executable, "-P", "-c", "from bench.cli import main; main()"]
BEFORE = set(Path(tempfile.gettempdir()).glob("torchelastic_*"))
QUICK = ["--set", "device_type=cpu", "--set", "devices=[1, 2]", "--set", "precision=fp32", "--set", "measure_seconds=1"]
QUICK += ["--set", "workload_args.preset=tiny", "--region", "FR", "--price", "1"]


def bench(folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, **more)


def records(folder: Path) -> dict[str, RunRecord]:
    paths = sorted(folder.glob("runs/*/*/*/record.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: RunRecord.model_validate_json(path.read_text()) for path in paths}


def processes_in(folder: Path) -> list[str]:
    """Command lines of our processes whose working folder is below this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            other = entry.name.isdigit() and int(entry.name) != os.getpid()
            if other and (entry / "cwd").readlink().is_relative_to(folder):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("main")
    return folder, bench(folder, "run", SCALING, *QUICK, "--set", "repeats=2", "--json")


def test_the_main_job(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = done
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    assert len(document["runs"]) == 4
    assert [c["devices"] for c in document["configurations"]] == [1, 2]
    (series,) = document["fit"]["series"]
    assert series["v_low"] < series["v"] < series["v_high"]
    assert series["scaling"] == "weak"
    assert "[4/4]" in process.stderr
    assert " left" in process.stderr
    assert processes_in(folder) == []
    assert set(Path(tempfile.gettempdir()).glob("torchelastic_*")) <= BEFORE


def test_the_records_are_true(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    found = records(done[0])
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
        assert measured.loss_last < measured.loss_first - 0.3
        names = [phase.name for phase in measured.phases]
        assert names == ["launch", "start", "build", "warmup", "probe", "steady", "validation", "probe", "tail"]
        assert {r.provenance.value for r in measured.energy} <= {
            "estimated_model",
            "measured_counter_interp",
            "measured_counter",
        }
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


def test_a_run_is_a_folder(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    for folder in done[0].glob("runs/scaling/*/*d2*/"):
        names = {path.name for path in folder.iterdir()}
        wanted = {
            "spec.json",
            "result.json",
            "record.json",
            "exit.json",
            "meters-0.parquet",
            "worker.log",
        }
        assert names == wanted | {"steps-0.jsonl", "steps-1.jsonl"}
        lines = [json.loads(line) for line in (folder / "steps-1.jsonl").read_text().splitlines()]
        assert all(line["step_seconds"] > 0 for line in lines)


def test_the_answer_comes_again_from_the_store(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = done
    again = bench(folder, "fit", "scaling", "--json")
    first, second = json.loads(process.stdout), json.loads(again.stdout)
    assert second["configurations"] == first["configurations"]
    assert second["fit"] == first["fit"]
    words = bench(folder, "fit")
    assert words.returncode == 0
    for part in ("T = n / (d · v)", "samples/s (95 %)", "~", "d=2", "GFLOP/s"):
        assert part in words.stdout
    assert bench(folder, "fit", "scalling").stderr.startswith("bench: no runs of suite 'scalling'")


def test_the_dashboard_shows_it(
    done: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("WATTBENCH_TRACKING_URI", f"sqlite:///{done[0]}/mlflow.db")
    app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    assert not app.exception
    app.switch_page("views/scaling.py").run()
    assert not app.exception
    assert len(app.dataframe) >= 1


def test_without_a_network(tmp_path: Path) -> None:
    """The same inside a network namespace where nothing but the loopback interface exists."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("NOT CHECKED WITHOUT A NETWORK: unshare -rn is not allowed here")
    up = "import fcntl, socket, struct, os, sys; s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1)); "
    up += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = ["unshare", "-rn", sys.executable, "-c", up, *BENCH[1:], "run", SCALING, *QUICK, "--set", "repeats=1"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    assert "T = n / (d · v)" in process.stdout
    assert len(load(f"sqlite:///{tmp_path}/mlflow.db")) == 2


FAILING = """
name: failing
defaults:
  workload: decoder_lm
  workload_args: {preset: tiny}
  device_type: cpu
  batch_size_per_device: 1
  warmup_seconds: 0
  measure_steps: 3
  devices: 2
include:
  - {workload_args: {layers: 1, hidden: 262144, heads: 1}}
  - {measure_steps: 1000000, timeout_seconds: 6}
  - {workload_args: {preset: tiny, text: ODD}}
  - {devices: 4096}
  - {optimizer: {name: sgd, learning_rate: 1e30}}
  - {seed: 5}
"""


def test_every_way_to_end_is_recorded_and_the_suite_goes_on(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes(b"x" * 70_000 + b"\0")
    (tmp_path / "failing.yaml").write_text(FAILING.replace("ODD", "odd.txt"))
    process = bench(tmp_path, "run", "failing.yaml")
    assert process.returncode == 1, process.stderr
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
    assert "out_of_memory: tried to allocate " in process.stderr + process.stdout
    assert "timeout_seconds = 6" in messages[Status.TIMEOUT]
    assert ended[Status.TIMEOUT].error is not None
    assert "worker.py" in ended[Status.TIMEOUT].error.log_tail  # where the ranks were
    assert "no text in" in messages[Status.FAILED]
    assert "processors" in messages[Status.SKIPPED]
    assert "the loss went from" in messages[Status.INVALID]
    assert ended[Status.TIMEOUT].energy
    assert ended[Status.TIMEOUT].duration_seconds >= 6
    assert {row["status"] for row in load(f"sqlite:///{tmp_path}/mlflow.db")} == {str(status) for status in ended}
    assert "out_of_memory:" in process.stdout
    assert processes_in(tmp_path) == []
    process = bench(tmp_path, "run", "failing.yaml", "--retry", "--only", "measure_steps=1000000")
    assert process.returncode == 1
    assert len(list(tmp_path.glob("runs/failing/*"))) == 1
    again = {r.status: r for r in records(tmp_path).values()}
    assert again[Status.TIMEOUT].started_at > ended[Status.TIMEOUT].started_at
    assert again[Status.OK] == ended[Status.OK]
    document = json.loads(bench(tmp_path, "fit", "--json").stdout)
    assert len(document["runs"]) == 6  # the one that was done again counts once


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [*BENCH, "run", SCALING, *QUICK, "--set", "repeats=2", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's `&` has it ignored
    )


def wait_for(folder: Path, count: int) -> None:
    """Wait until so many runs are recorded and the next one has begun."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if len(records(folder)) >= count and len(list(folder.glob("runs/*/*/*/spec.json"))) > count:
            return
        time.sleep(0.1)
    raise AssertionError("nothing was recorded")


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 90
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_in(folder) == []


def test_ctrl_c_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        wait_for(tmp_path, 1)
        busy = bench(tmp_path, "run", SCALING, *QUICK, "--set", "repeats=2")
        assert busy.returncode == 2
        assert "another process runs this execution" in busy.stderr
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Run the same command again to resume" in said
    assert gone(tmp_path)
    before = records(tmp_path)
    assert 1 <= len(before) < 4
    again = bench(tmp_path, "run", SCALING, *QUICK, "--set", "repeats=2")
    assert again.returncode == 0, again.stderr
    assert f"resumed: {len(before)} runs were done before" in again.stderr
    after = records(tmp_path)
    assert len(after) == 4
    assert len(list(tmp_path.glob("runs/scaling/*"))) == 1
    assert all(after[key].started_at == record.started_at for key, record in before.items())
    assert len(load(f"sqlite:///{tmp_path}/mlflow.db")) == 4


def test_no_port_is_open_to_other_machines(tmp_path: Path) -> None:
    with started(tmp_path, "--only", "devices=2", "--set", "measure_seconds=4") as process:
        seen, deadline = set(), time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.5)
            ours = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
            found = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in ours]
            seen = {connection.laddr.ip for connection in found}
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert seen == {"127.0.0.1"}
    assert process.returncode == 130
    assert gone(tmp_path)


def test_nothing_survives_the_death_of_the_runner(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        wait_for(tmp_path, 1)
        assert processes_in(tmp_path)
        process.kill()
        process.communicate(timeout=30)
    assert gone(tmp_path)


def test_the_death_of_the_node_fails_its_run_alone(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        wait_for(tmp_path, 1)
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
                parent = (entry / "stat").read_text().rsplit(")")[1].split()[1] if words else ""
            except OSError:
                continue
            if "bench.run.node" in words and parent == str(process.pid):
                os.kill(int(entry.name), signal.SIGKILL)
        process.communicate(timeout=120)
    assert process.returncode == 1
    ended = [record.status for record in records(tmp_path).values()]
    assert sorted(ended) == sorted([Status.FAILED, Status.OK, Status.OK, Status.OK])
    (dead,) = (record for record in records(tmp_path).values() if record.status is Status.FAILED)
    assert dead.duration_seconds > 0
    assert dead.cost is not None
    assert dead.cost.cost_usd > 0
    assert gone(tmp_path)


def test_a_cold_run_goes_through_plain_torchrun(tmp_path: Path) -> None:
    process = bench(tmp_path, "run", SCALING, *QUICK, "--set", "repeats=1", "--set", "cold=true", "--only", "devices=2")
    assert process.returncode == 0, process.stderr
    (record,) = records(tmp_path).values()
    assert record.spec.cold
    assert record.measurement is not None
    start = next(phase for phase in record.measurement.phases if phase.name == "start")
    assert start.seconds > 0.05


def test_a_late_cold_run_leaves_no_rank_behind(tmp_path: Path) -> None:
    settings = [*QUICK, "--set", "cold=true", "--set", "timeout_seconds=3", "--set", "measure_seconds=600"]
    process = bench(tmp_path, "run", SCALING, *settings, "--set", "repeats=1", "--only", "devices=2")
    assert process.returncode == 1
    (record,) = records(tmp_path).values()
    assert record.status is Status.TIMEOUT
    assert processes_in(tmp_path) == []


def test_everyday_troubles_are_one_line(done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    plain = bench(done[0], "fit", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, "T = n / (d ? v)" in plain.stdout) == (0, True), plain.stderr
    assert "nothing" not in bench(done[0], "fit", SCALING).stderr
    process = bench(tmp_path, "run", SCALING, *QUICK, "--runs", "/proc/nope")
    assert process.returncode == 70
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
    spec = RunSpec(workload="x", device_type="cuda", devices_per_node=2, batch_size_per_device=1, measure_steps=1)
    assert node.train(spec, tmp_path) == []
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


def test_gpus_that_torch_cannot_use_are_an_error_not_a_cpu_run(tmp_path: Path) -> None:
    if "+cpu" not in __import__("importlib.metadata").metadata.version("torch"):
        pytest.skip("NOT CHECKED: this torch is built for CUDA")
    process = bench(tmp_path, "run", SCALING, env=os.environ | with_fake_gpus(fake_gpu(0, 300)))
    assert process.returncode == 2
    assert "1 NVIDIA GPU(s) are here, but the installed torch" in process.stderr
    assert "--set device_type=cpu" in process.stderr
    assert not list(tmp_path.glob("runs/*/*/*/record.json"))


COMMANDS = """
name: own
idle_seconds: 2.5
defaults:
  workload: command
  workload_args.argv: sh -c 'echo visible=$CUDA_VISIBLE_DEVICES safe=$PYTHONSAFEPATH; sleep {seconds}; exit {code}'
  workload_args.seconds: 3
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
        watts = {r.device: r.power_watts_mean for r in record.energy if r.source == "nvml"}
        true = dict(zip(uuids, (400, 100), strict=False))  # windows of 2 to 3 s, of which each edge may be off by 50 ms
        assert watts == pytest.approx({uuid: true[uuid] for uuid in record.devices}, rel=0.05)
        assert {r.device for r in record.unused} == set(uuids) - set(record.devices)
        idle = {part.device: part.power_watts for part in record.idle if part.component == "gpu"}
        assert idle == pytest.approx(dict(zip(uuids, (400, 100, 200), strict=True)), rel=0.05)
        assert record.cost is not None
        assert record.cost.cost_usd == pytest.approx(record.spec.world_size * record.duration_seconds)
        assert "exclusivity_unknown" in record.flags
        assert record.grade == "B", record.flags
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert failed.error.message == "the command ended with exit code 5"
    (drawn,) = (r for r in failed.energy if r.source == "nvml")
    assert drawn.energy_joules == pytest.approx(400 * drawn.seconds, rel=0.05)
    assert drawn.seconds >= 3
    assert "these runs do not say how much work" in process.stdout
