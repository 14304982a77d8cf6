"""Suites in an allocation of a real Slurm with two virtual nodes: what is recorded, and what becomes of it after a fault."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.folder import EXIT
from bench.record import RunRecord, Status
from tests.processes import BENCH, PATIENCE, records, run, until, youngest
from tests.slurm import Slurm, missing, slurm
from tests.test_collect import counter

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
WATTS = 100.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def suite(folder: Path, *, seconds: float = 2, repeats: int = 1, **matrix: list[object]) -> str:
    """Write a suite whose meters replay 100 W of a processor, for half an hour; return its name."""
    trace = folder / "trace.jsonl"
    trace.write_text("\n".join(counter("cpu", WATTS, "rapl", "cpu", until=1800)) + "\n")
    document = {
        "name": "nodes",
        "idle_seconds": 0,
        "repeats": repeats,
        "defaults": {
            "workload": "lstm_lm",
            "workload_args": {"preset": "tiny", "sequence_length": 8},
            "batch_size_per_device": 4,
            "measure_seconds": seconds,
            "meters": [f"replay:{trace}"],
            "device_type": "cpu",
        },
        "matrix": matrix,
    }
    (folder / "nodes.yaml").write_text(json.dumps(document))  # JSON is YAML
    return "nodes.yaml"


def begun(process: subprocess.Popen[str], folder: Path, number: int = 1) -> None:
    """Wait until so many runs have begun."""
    until(lambda: len(list(folder.glob("runs/*/*/*/spec.json"))) >= number or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def by_nodes(folder: Path) -> dict[int, RunRecord]:
    return {record.spec.num_nodes: record for record in records(folder).values()}


def test_runs_on_one_and_two_nodes_are_recorded_with_the_energy_of_each(cluster: Slurm, tmp_path: Path) -> None:
    process = cluster.bench(tmp_path, "run", suite(tmp_path, devices=[2, 4]), "--json")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    runs, held = by_nodes(tmp_path), json.loads(output)["held_nodes"]
    for nodes, record in runs.items():
        measured = record.measurement
        assert record.status is Status.OK
        assert measured is not None
        assert measured.samples == 8 * nodes * measured.steps
        assert [rank.rank for rank in measured.ranks] == list(range(2 * nodes))
        assert [reading.energy_joules / reading.seconds for reading in measured.energy] == pytest.approx(
            [WATTS] * nodes
        )
        assert sum(each.energy_joules / each.seconds for each in record.energy) == pytest.approx(
            nodes * WATTS, rel=0.01
        )
    assert runs[1].nodes == []
    assert [(node.name, node.first_rank, node.ended, node.exitcode) for node in runs[2].nodes] == [
        ("n1", 0, "ended", 0),
        ("n2", 2, "ended", 0),
    ]
    assert [node.network and node.network.interface for node in runs[2].nodes] == ["lo", "lo"]
    assert runs[2].environment.cluster == {"engine": "slurm", "partition": "debug", "node": "n1"}
    assert held["used_seconds"] == pytest.approx(sum(nodes * record.duration_seconds for nodes, record in runs.items()))
    assert held["held_seconds"] >= 2 * sum(record.duration_seconds for record in runs.values())
    assert (held["devices"], held["jobs_without"]) == (2, 0)
    for path in tmp_path.glob("runs/*/*/*/record.json"):
        assert len(list(path.parent.iterdir())) <= 8, sorted(path.parent.iterdir())
        assert [each.name for each in path.parent.glob("meters*")] == ["meters-0.parquet"]
    until(lambda: cluster.left() == [])


def kill_rank(cluster: Slurm) -> None:
    ranks = [each for each in cluster.agents()[1].children(recursive=True) if not each.children()]
    youngest([each for each in ranks if "bench.run.agent" in each.cmdline()]).kill()


def kill_agent(cluster: Slurm) -> None:
    cluster.agents()[1].kill()


def kill_srun(cluster: Slurm) -> None:
    for process in cluster.processes("srun"):
        with suppress(psutil.NoSuchProcess):  # one that another one has left
            if process.name() == "srun":
                process.kill()


FAULTS = {
    kill_rank: "rank 3 on n2 was ended by SIGKILL",
    kill_agent: "no answer from n2: srun: error: n2: task 1: Killed",
    kill_srun: "no answer from n1, n2: ",
}


def test_a_fault_costs_one_run_and_the_next_goes_on(cluster: Slurm, tmp_path: Path) -> None:
    name = suite(tmp_path, seconds=3, devices=[4], repeats=len(FAULTS) + 1)
    process = cluster.bench(tmp_path, "run", name, "--json")
    for number, fault in enumerate(FAULTS, 1):
        begun(process, tmp_path, number)
        until(cluster.trains)
        fault(cluster)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    found = sorted(records(tmp_path).values(), key=lambda record: record.started_at)
    assert [record.status for record in found] == [Status.FAILED] * len(FAULTS) + [Status.OK], errors
    for record, message in zip(found, FAULTS.values(), strict=False):
        assert record.error is not None
        assert record.error.message.startswith(message)
    until(lambda: cluster.left() == [])


def test_a_second_bench_in_the_same_job_is_refused_and_ctrl_c_ends_the_first(cluster: Slurm, tmp_path: Path) -> None:
    name = suite(tmp_path, seconds=90, devices=[4])
    process = cluster.bench(tmp_path, "run", name)
    until(cluster.trains)
    (bench,) = psutil.Process(process.pid).children()
    second = run([*BENCH, "run", name, "--runs", "others"], cwd=tmp_path, env=bench.environ())
    assert second.returncode == 2, second.stderr
    assert f" in job {cluster.job()}: wait until it has ended" in second.stderr
    assert process.poll() is None
    bench.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "Stopped. Run the same command again to resume." in errors
    until(lambda: cluster.left() == [])
    assert not list(tmp_path.glob(f"runs/*/*/*/{EXIT.name}"))


def test_nothing_is_left_where_bench_or_its_job_ends_and_the_same_command_resumes(
    cluster: Slurm, tmp_path: Path
) -> None:
    name = suite(tmp_path, seconds=3, devices=[4])
    for killed in (True, False):
        process = cluster.bench(tmp_path, "run", name)
        until(cluster.trains)
        if killed:
            psutil.Process(process.pid).children()[0].kill()
        else:
            cluster.call("scancel", cluster.job())
        process.communicate(timeout=PATIENCE)
        until(lambda: cluster.left() == [])
        assert records(tmp_path) == {}
    again = cluster.bench(tmp_path, "run", name)
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    assert len(list(tmp_path.glob("runs/nodes/*/execution.json"))) == 1
    assert [record.status for record in records(tmp_path).values()] == [Status.OK]


def test_wrong_use_is_told(cluster: Slurm, tmp_path: Path) -> None:
    name = suite(tmp_path, devices=[3])
    shown = cluster.bench(tmp_path, "show", name)
    _, errors = shown.communicate(timeout=PATIENCE)
    assert shown.returncode == 2
    assert "more than the 2 of one node must be a multiple of them, such as 2 or 4" in errors
    gpus = cluster.bench(tmp_path, "show", name, "--gpus", "0")
    assert "In an allocation Slurm says which GPUs are used" in gpus.communicate(timeout=PATIENCE)[1]
    local = cluster.bench(tmp_path, "show", name, "--launcher", "local")
    assert local.communicate(timeout=PATIENCE)[1].strip() == ""
