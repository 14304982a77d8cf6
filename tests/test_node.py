"""One run of a node by itself: `spec.json` in, files and an exit code out."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.process import module_command
from bench.record import Status
from bench.run.collect import Context, collect
from bench.run.launcher import LaunchError, LaunchOptions, LocalLauncher, make_launcher
from bench.schema import COMMAND, RunSpec, Site
from tests.fake_nvml import environment as with_fake_gpus
from tests.fake_nvml import fake_gpu
from tests.processes import PATIENCE, Finished, records, run, until

NODE = module_command("bench.run.node")


def command(argv: str, **more: Any) -> RunSpec:
    settings = {"workload": COMMAND, "workload_args": {"argv": argv}, "device_type": "cpu", "meters": []}
    return RunSpec(**settings | more)


def prepare(folder: Path, spec: RunSpec) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "spec.json").write_text(spec.model_dump_json())
    return run


def node(folder: Path, *arguments: str, **more: Any) -> tuple[int, dict[str, Any], str]:
    """Do one run; return exit code, what `exit.json` says, and what the node printed."""
    done = run([*NODE, str(folder), *arguments], **more)
    path = folder / "exit.json"
    return done.returncode, json.loads(path.read_text()) if path.exists() else {}, done.stderr


@pytest.mark.parametrize(
    ("argv", "more", "code", "how"),
    [
        ("true", {}, 0, ("ended", 0)),
        ("sh -c 'exit 5'", {}, 1, ("ended", 5)),
        ("sleep 60", {"timeout_seconds": 0.5}, 124, ("timeout", -signal.SIGKILL)),
    ],
)
def test_the_exit_code_says_how_a_run_ended(
    tmp_path: Path, argv: str, more: dict[str, Any], code: int, how: tuple[str, int]
) -> None:
    returncode, end, errors = node(prepare(tmp_path, command(argv, **more)))
    assert returncode == code, errors
    assert (end["how"], end["exitcode"]) == how
    assert end["end_ns"] > end["start_ns"]
    assert end["sidecar_error"] is None


def test_a_signal_cancels_a_run_with_all_its_processes(tmp_path: Path) -> None:
    folder = prepare(tmp_path, command("sh -c 'echo $$; sleep 600'"))
    process = subprocess.Popen([*NODE, str(folder)])
    log = folder / "worker.log"
    until(lambda: process.poll() is not None or (log.exists() and log.read_text().strip()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    assert json.loads((folder / "exit.json").read_text())["how"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_a_folder_without_a_spec_is_a_mistake(tmp_path: Path) -> None:
    code, end, errors = node(tmp_path)
    assert (code, end) == (2, {})
    assert "has no spec.json" in errors


def test_gpus_are_those_that_are_free_or_named(tmp_path: Path) -> None:
    gpus = [fake_gpu(0, 100, pids=[1]), fake_gpu(1, 200)]
    variables = os.environ | with_fake_gpus(*gpus)
    spec = command("sh -c 'echo $CUDA_VISIBLE_DEVICES'", device_type="gpu")
    folder = prepare(tmp_path, spec)
    assert node(folder, env=variables)[0] == 0
    assert (folder / "worker.log").read_text().strip() == gpus[1]["uuid"]
    (folder / "worker.log").unlink()
    assert node(folder, "--gpus", gpus[0]["uuid"], env=variables)[0] == 0
    assert (folder / "worker.log").read_text().strip() == gpus[0]["uuid"]
    (folder / "exit.json").unlink()
    (folder / "spec.json").write_text(command("true", device_type="gpu", devices_per_node=2).model_dump_json())
    code, end, errors = node(folder, env=variables)
    assert (code, end) == (1, {})
    assert "needs 2 GPUs, but only 1 are free here" in errors


# --- which launcher


def test_the_launcher_is_the_one_that_the_runs_name(tmp_path: Path) -> None:
    options = LaunchOptions(tmp_path)
    assert isinstance(make_launcher([command("true")], options), LocalLauncher)
    assert isinstance(make_launcher([], options), LocalLauncher)
    with pytest.raises(ValueError, match="unknown launcher 'slurn'"):
        make_launcher([command("true", launcher="slurn")], options)
    with pytest.raises(LaunchError, match="need the same launcher, not local, other"):
        make_launcher([command("true"), command("true", launcher="other")], options)


# --- a real run


def shape(value: Any) -> Any:
    """Keys, lengths and types: what two records of one configuration have in common."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value[:1]]
    return type(value).__name__


@pytest.mark.slow
def test_a_run_by_itself_leaves_what_a_warm_one_leaves(finished: Finished, tmp_path: Path) -> None:
    name, warm = next(item for item in records(finished.folder).items() if item[1].spec.world_size == 2)
    (left,) = finished.folder.glob(f"runs/*/*/{name}")
    folder = prepare(tmp_path, warm.spec)
    code, end, errors = node(folder)
    assert (code, end["how"], end["sidecar_error"]) == (0, "ended", None), errors
    site = Site(region="FR", usd_per_device_hour=1)
    alone = collect(Context(warm.suite, warm.execution, site, warm.environment, []), warm.spec, folder)
    assert alone.status is Status.OK
    assert {file.name for file in folder.iterdir()} == {file.name for file in left.iterdir()}
    dumps = [record.model_dump(mode="json", exclude={"flags", "quality", "grade"}) for record in (warm, alone)]
    for dump in dumps:  # how busy the host was differs from run to run
        dump["measurement"]["host"] = None
    assert shape(dumps[0]) == shape(dumps[1])
