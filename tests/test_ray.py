"""Suites on a real Ray with two nodes on this machine: what is recorded, and what becomes of it after a fault."""

import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.folder import EXIT
from bench.record import RunRecord, Status
from tests import test_slurm_command as own
from tests.processes import PATIENCE, records, until, youngest
from tests.ray import Ray, missing, nodes_of_ray
from tests.test_slurm import WATTS, begun, suite

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    with nodes_of_ray() as running:
        yield running


def finish(cluster: Ray, folder: Path, *arguments: str, code: int = 0) -> tuple[list[RunRecord], str]:
    """Do runs; return their records in the order of their start, and what was said."""
    process = cluster.bench(folder, "run", *arguments)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    until(lambda: cluster.left() == [])
    return sorted(records(folder).values(), key=lambda record: record.started_at), errors


def test_runs_on_one_and_two_nodes_are_recorded_with_the_energy_of_each(cluster: Ray, tmp_path: Path) -> None:
    found, errors = finish(cluster, tmp_path, suite(tmp_path, devices=[2, 4]), "--json")
    assert [record.status for record in found] == [Status.OK] * 2, errors
    for record in found:
        nodes, measured = record.spec.num_nodes, record.measurement
        assert measured is not None
        assert measured.samples == nodes * 8 * measured.steps
        assert [reading.energy_joules / reading.seconds for reading in measured.energy] == pytest.approx(
            [WATTS] * nodes
        )
        assert sum(each.energy_joules / each.seconds for each in record.energy) == pytest.approx(
            nodes * WATTS, rel=0.01
        )
        assert [rank.rank for rank in measured.ranks] == list(range(2 * nodes))
    two = next(record for record in found if record.spec.num_nodes == 2)
    assert [(node.name, node.first_rank, node.exitcode) for node in two.nodes] == [("n1", 0, 0), ("n2", 2, 0)]
    assert {"engine": "ray", "node": "n1"}.items() <= two.environment.cluster.items()
    for path in tmp_path.glob("runs/*/*/*/record.json"):
        assert len(list(path.parent.iterdir())) <= 8, sorted(path.parent.iterdir())


def test_a_command_runs_on_both_nodes(cluster: Ray, tmp_path: Path) -> None:
    argv = f"{own.TORCHRUN} {own.STEPS} {tmp_path}/own-count.json"
    (record,), _ = finish(cluster, tmp_path, own.suite(tmp_path, argv))
    assert record.status is Status.OK
    assert record.measurement is not None
    assert record.measurement.samples == 4 * own.BATCH * record.measurement.steps
    assert not {"partial_world", "nodes_disagree"} & set(record.flags)


def test_a_fault_costs_one_run_and_the_next_goes_on(cluster: Ray, tmp_path: Path) -> None:
    process = cluster.bench(tmp_path, "run", suite(tmp_path, seconds=3, devices=[4], repeats=4), "--json")
    for number in range(1, 4):
        begun(process, tmp_path, number)
        until(cluster.trains)
        agent = cluster.agents()[1]
        if number == 1:
            ranks = [each for each in agent.children(recursive=True) if not each.children()]
            youngest([each for each in ranks if "bench.run.agent" in each.cmdline()]).kill()
        elif number == 2:
            agent.kill()
        else:
            cluster.steps()[0].kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    found = sorted(records(tmp_path).values(), key=lambda record: record.started_at)
    assert [record.status for record in found] == [Status.FAILED] * 3 + [Status.OK], errors
    messages = [record.error.message for record in found if record.error is not None]
    assert messages[0] == "rank 3 on n2 was ended by SIGKILL"
    assert messages[1] == "no answer from n2: ray: error: n2: its process was ended by SIGKILL"
    assert messages[2].startswith("no answer from n1, n2: ")
    until(lambda: cluster.left() == [])


def test_nothing_is_left_where_bench_or_ray_ends(tmp_path: Path) -> None:
    name = suite(tmp_path, seconds=60, devices=[4])
    with nodes_of_ray() as cluster:
        ends = {
            partial(subprocess.Popen.kill): "",
            partial(subprocess.Popen.send_signal, sig=signal.SIGINT): "Run the same command again to resume.",
            lambda process: cluster.kill("gcs_server", "raylet/raylet"): f"Ray at {cluster.address} has ended",
        }
        for end, said in ends.items():
            process = cluster.bench(tmp_path, "run", name)
            begun(process, tmp_path)
            until(cluster.trains)  # a run that was killed leaves a folder in which the next one has not begun
            end(process)
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode != 0
            assert said in errors
            until(lambda: cluster.left() == [])
            assert records(tmp_path) == {}
            assert not list(tmp_path.glob(f"runs/*/*/*/{EXIT.name}"))
    assert len(list(tmp_path.glob("runs/nodes/*/execution.json"))) == 1


def test_wrong_use_is_told(cluster: Ray, tmp_path: Path) -> None:
    name = suite(tmp_path, devices=[2])
    wide = cluster.bench(tmp_path, "show", name, "--set", "cluster.devices_per_node=9")
    assert "no node has 9 of what Ray calls CPU: it has 2 on n1, 2 on n2" in wide.communicate(timeout=PATIENCE)[1]
    _, errors = finish(cluster, tmp_path, name, "--runs", "unseen-by-n2", code=2)
    assert "is not seen by n2: choose a folder that all nodes share, with --runs" in errors
