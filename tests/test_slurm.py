"""Suites in an allocation of a real Slurm with two virtual nodes: what is recorded, and what becomes of it after a fault."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bench.folder import EXIT
from bench.record import RunRecord, Status
from tests.processes import PATIENCE, records, until
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
            "workload": "decoder_lm",
            "workload_args": {"preset": "tiny", "sequence_length": 32},
            "batch_size_per_device": 4,
            "measure_seconds": seconds,
            "meters": [f"replay:{trace}"],
            "device_type": "cpu",
        },
        "matrix": matrix,
    }
    (folder / "nodes.yaml").write_text(json.dumps(document))  # JSON is YAML
    return "nodes.yaml"


def begun(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until a run has begun."""
    until(lambda: list(folder.glob("runs/*/*/*/spec.json")) or process.poll() is not None)
    assert process.poll() is None, process.communicate()


@pytest.fixture(scope="module")
def finished(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a suite that ran on one and on two nodes, and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    process = cluster.bench(folder, "run", suite(folder, devices=[2, 4]), "--json")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return folder, output, errors


def by_nodes(folder: Path) -> dict[int, RunRecord]:
    return {record.spec.num_nodes: record for record in records(folder).values()}


def test_devices_beyond_one_node_train_on_two(finished: tuple[Path, str, str], cluster: Slurm) -> None:
    one, two = (by_nodes(finished[0])[nodes] for nodes in (1, 2))
    assert one.status is two.status is Status.OK
    assert one.measurement is not None
    assert two.measurement is not None
    assert [rank.rank for rank in two.measurement.ranks] == [0, 1, 2, 3]
    assert two.measurement.samples == 16 * two.measurement.steps
    assert [(node.name, node.first_rank, node.ended, node.exitcode) for node in two.nodes] == [
        ("n1", 0, "ended", 0),
        ("n2", 2, "ended", 0),
    ]
    assert [node.network and node.network.interface for node in two.nodes] == ["lo", "lo"]
    assert one.nodes == []
    assert two.environment.cluster == {"engine": "slurm", "partition": "debug", "node": "n1"}
    until(lambda: cluster.left() == [])


def test_the_energy_of_both_nodes_is_counted_once_each(finished: tuple[Path, str, str]) -> None:
    for nodes, record in by_nodes(finished[0]).items():
        measured = record.measurement
        assert measured is not None
        joules = sum(reading.energy_joules for reading in measured.energy)
        assert joules == pytest.approx(nodes * WATTS * measured.window_seconds, rel=0.1)  # readings once a second
        assert len(measured.energy) == nodes
        whole = sum(reading.energy_joules / reading.seconds for reading in record.energy)
        assert whole == pytest.approx(nodes * WATTS, rel=0.01)


def test_the_answer_tells_how_long_nodes_were_held_and_used(finished: tuple[Path, str, str]) -> None:
    held, runs = json.loads(finished[1])["held_nodes"], by_nodes(finished[0])
    assert held["used_seconds"] == pytest.approx(sum(nodes * runs[nodes].duration_seconds for nodes in (1, 2)))
    assert held["held_seconds"] >= 2 * sum(run.duration_seconds for run in runs.values())
    assert (held["devices"], held["jobs_without"]) == (2, 0)


def test_a_run_leaves_few_files(finished: tuple[Path, str, str]) -> None:
    for path in finished[0].glob("runs/*/*/*/record.json"):
        assert len(list(path.parent.iterdir())) <= 8, sorted(path.parent.iterdir())
        assert [each.name for each in path.parent.glob("meters*")] == ["meters-0.parquet"]


def kill_rank(cluster: Slurm) -> None:
    ranks = [each for each in cluster.agents()[1].children(recursive=True) if not each.children()]
    max((each for each in ranks if "bench.run.agent" in each.cmdline()), key=lambda each: each.create_time()).kill()


def kill_agent(cluster: Slurm) -> None:
    cluster.agents()[1].kill()


def kill_srun(cluster: Slurm) -> None:
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "srun" and cluster._ours(process):
            process.kill()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (kill_rank, "rank 3 on n2 was ended by SIGKILL"),
        (kill_agent, "no answer from n2: srun: error: n2: task 1: Killed"),
        (kill_srun, "no answer from n1, n2: "),
    ],
)
def test_a_fault_costs_one_run_and_the_next_goes_on(
    fault: Callable[[Slurm], None], message: str, cluster: Slurm, tmp_path: Path
) -> None:
    process = cluster.bench(tmp_path, "run", suite(tmp_path, seconds=3, devices=[4], repeats=2), "--json")
    begun(process, tmp_path)
    until(lambda: len(cluster.agents()) == 2 and len(cluster.agents()[1].children(recursive=True)) > 3)
    fault(cluster)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    found = sorted(records(tmp_path).values(), key=lambda record: record.started_at)
    assert [record.status for record in found] == [Status.FAILED, Status.OK]
    assert found[0].error is not None
    assert found[0].error.message.startswith(message)
    until(lambda: cluster.left() == [])


def test_a_run_whose_allocation_ends_is_done_again(cluster: Slurm, tmp_path: Path) -> None:
    name = suite(tmp_path, seconds=3, devices=[4], repeats=2)
    process = cluster.bench(tmp_path, "run", name)
    begun(process, tmp_path)
    cluster.call("scancel", cluster.job())
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    until(lambda: cluster.left() == [])
    before = set(records(tmp_path))
    assert len(before) < 2
    again = cluster.bench(tmp_path, "run", name)
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    assert len(list(tmp_path.glob("runs/nodes/*/execution.json"))) == 1
    assert [record.status for record in records(tmp_path).values()] == [Status.OK] * 2


def test_nothing_is_left_where_bench_is_killed(cluster: Slurm, tmp_path: Path) -> None:
    process = cluster.bench(tmp_path, "run", suite(tmp_path, seconds=30, devices=[4]))
    begun(process, tmp_path)
    (bench,) = psutil.Process(process.pid).children()
    bench.kill()
    process.communicate(timeout=PATIENCE)
    until(lambda: cluster.left() == [])
    assert records(tmp_path) == {}


def test_ctrl_c_ends_the_ranks_of_both_nodes_and_the_same_command_resumes(cluster: Slurm, tmp_path: Path) -> None:
    process = cluster.bench(tmp_path, "run", suite(tmp_path, seconds=30, devices=[4]))
    begun(process, tmp_path)
    (bench,) = psutil.Process(process.pid).children()
    bench.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "Stopped. Run the same command again to resume." in errors
    assert not list(tmp_path.glob(f"runs/*/*/*/{EXIT.name}"))
    until(lambda: cluster.left() == [])


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
