"""Suites from the login node of a real Slurm with two virtual nodes: jobs are submitted, followed, cancelled, and killed."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import folder as files
from bench.record import Status
from tests.processes import PATIENCE, records, until
from tests.slurm import Slurm, missing, slurm
from tests.test_slurm import suite

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def run(cluster: Slurm, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return cluster.login(folder, "run", "nodes.yaml", "--launcher", "slurm", *arguments)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the end of a command; return its messages."""
    output, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == code, (output, errors)
    return errors


def journals(folder: Path) -> list[str]:
    """Return what the jobs of an execution have written of their runs, in the order of the jobs."""
    return [path.read_text() for path in sorted(folder.glob(f"runs/nodes/*/block-*/{files.JOURNAL}"))]


def test_jobs_of_each_size_do_the_runs_and_are_shown_before(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, devices=[2, 4])
    shown = cluster.login(tmp_path, "show", "nodes.yaml", "--launcher", "slurm", "--json", "--no-memory")
    output, errors = shown.communicate(timeout=PATIENCE)
    assert shown.returncode == 0, errors
    jobs = json.loads(output)["jobs"]
    assert [(job["nodes"], job["runs"], job["accepted"]) for job in jobs] == [(1, 1, True), (2, 1, True)]
    messages = ended(run(cluster, tmp_path, "--json"))
    assert "1 run on 1 node, " in messages
    found = {record.spec.num_nodes: record for record in records(tmp_path).values()}
    assert [found[nodes].status for nodes in (1, 2)] == [Status.OK, Status.OK]
    assert [node.name for node in found[2].nodes] == ["n1", "n2"]
    assert found[2].environment.cluster == {"engine": "slurm", "partition": "debug", "node": "n1"}
    until(lambda: cluster.left() == [])


def test_jobs_are_left_followed_and_cancelled(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, seconds=20, devices=[4])
    assert "job is left in the queue" in ended(run(cluster, tmp_path, "--detach"), 75)
    until(cluster.trains)
    assert "cancelled" in ended(run(cluster, tmp_path, "--cancel"))
    until(lambda: cluster.left() == [])
    assert records(tmp_path) == {}
    assert cluster.call("squeue", "-h", "-t", "PENDING,RUNNING").strip() == ""


def test_the_same_command_does_what_killed_processes_and_cancelled_jobs_leave(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, seconds=8, devices=[4], repeats=2)
    process = run(cluster, tmp_path)
    until(lambda: len(records(tmp_path)) == 1 and sum(each.count('"status":null') for each in journals(tmp_path)) == 2)
    process.kill()
    process.communicate()
    cluster.drivers()[0].kill()
    until(lambda: cluster.left() == [])
    process = run(cluster, tmp_path)
    until(cluster.trains)
    cluster.call("scancel", cluster.job())
    errors = ended(process, 1)
    assert "1 of its runs are left" in errors
    assert "the same command submits a new job" in errors
    until(lambda: cluster.left() == [])
    ended(run(cluster, tmp_path))
    assert [record.status for record in records(tmp_path).values()] == [Status.OK] * 2
    lost = [attempt.ended for record in records(tmp_path).values() for attempt in record.lost]
    assert lost == ["failed", "cancelled"]
    assert [journal.count('"status":"ok"') for journal in journals(tmp_path)] == [1, 0, 1]
    assert len(list(tmp_path.glob("runs/nodes/*/execution.json"))) == 1
    until(lambda: cluster.left() == [])


def test_jobs_that_were_left_are_followed_after_their_end(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, seconds=1, devices=[2])
    ended(run(cluster, tmp_path, "--detach"), 75)
    until(lambda: records(tmp_path) and cluster.left() == [])
    assert "[0/0]" not in ended(run(cluster, tmp_path))
    assert len(records(tmp_path)) == 1
    assert len(list(tmp_path.glob("runs/nodes/*/execution.json"))) == 1, "nothing was done again"


def test_a_job_that_is_preempted_is_followed_by_another(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, seconds=3, devices=[4])
    process = run(cluster, tmp_path)
    until(cluster.trains)
    cluster.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    messages = ended(process)
    assert "ended: it was preempted; 1 of its runs are left" in messages
    (record,) = records(tmp_path).values()
    assert record.status is Status.OK
    (lost,) = record.lost
    assert (lost.ended, lost.nodes, (lost.seconds or 0) > 0) == ("preempted", 2, True)
    until(lambda: cluster.left() == [])


def test_a_run_whose_job_was_suspended_is_invalid(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, seconds=6, devices=[4])
    process = run(cluster, tmp_path)
    until(cluster.trains)
    job = cluster.job()
    cluster.call("scontrol", "suspend", job)
    until(lambda: cluster.call("squeue", "-h", "-t", "SUSPENDED", "-o", "%i").strip() == job)
    time.sleep(2)
    cluster.call("scontrol", "resume", job)
    ended(process, 1)
    (record,) = records(tmp_path).values()
    assert (record.status, record.measurement) == (Status.INVALID, None)
    assert "the job was suspended during the run" in str(record.error)
    until(lambda: cluster.left() == [])


def test_what_slurm_refuses_is_told(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, devices=[4])
    refused = ended(run(cluster, tmp_path, "--set", "cluster.constraint=h100"), 1)
    assert "2 nodes: 1 run not done: sbatch" in refused
    assert "Invalid feature specification" in refused
    short = ended(run(cluster, tmp_path, "--set", "cluster.time_limit=1:00", "--set", "measure_seconds=90"), 1)
    assert "the job is too short: a run takes about" in short
    assert "2 jobs in a row ended without a finished run" in short
