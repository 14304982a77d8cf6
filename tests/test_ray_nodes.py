"""Nodes of Ray and seats on them, without a Ray: what is refused, and what is taken from where."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from bench import folder as files
from bench.cluster_options import ClusterOptions
from bench.machine import ray, seat
from bench.machine.cluster import ClusterProblem, least
from bench.machine.ray import RayCluster, find_ray
from bench.machine.seat import SEAT, find_seat
from bench.run import step
from bench.run.launcher import LaunchError, LaunchOptions
from bench.run.ray import RayLauncher
from bench.run.srun import SrunLauncher
from bench.schema import Gpu, Machine
from bench.suites.expand import expand
from bench.suites.load import SuiteError
from tests.test_nodes import SPEC, allocation, node, suite


def nodes_of_ray(**more: Any) -> RayCluster:
    like = dict(allocation()) | {"job": "127.0.0.1:6379", "ids": ["a" * 8, "b" * 8]}
    return RayCluster(**like | more)


def refused(asked: ClusterOptions | None = None) -> str:
    with pytest.raises(ClusterProblem) as problem:
        find_ray(asked)
    return str(problem.value)


def test_keys_of_slurm_are_refused_by_name() -> None:
    asked = ClusterOptions(partition="gpu", exclusive=False, max_nodes=2, env={"NCCL_DEBUG": "INFO"})
    assert refused(asked).startswith("cluster.partition, cluster.exclusive: not for --launcher ray, which has ")


def test_where_ray_is_not_installed_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    assert "pip install 'wattbench[ray]'" in refused()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265", "local", "head"])
def test_an_address_of_something_else_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: name)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert "give HOST:PORT of the head node" in refused()


def test_an_address_where_nobody_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert nodes_of_ray(job=address).running()
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert "nobody answers there" in refused()
    assert not nodes_of_ray(job=address).running()


def test_a_step_names_its_nodes_and_the_variables_that_they_get() -> None:
    asked = ClusterOptions(env={"NCCL_DEBUG": "INFO"})
    cluster = nodes_of_ray(asked=asked)
    command = cluster.command("bench.run.agent", "--gpus", "/runs")
    assert command[command.index("--on") + 1] == "aaaaaaaa,bbbbbbbb"
    assert command[command.index("--export") + 1] == "NCCL_DEBUG"
    assert command[command.index("--") + 1 :] == ["bench.run.agent", "--gpus", "/runs"]
    assert cluster.variables["NCCL_DEBUG"] == "INFO"


def test_a_seat_is_that_of_ray_or_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slurm = {"SLURM_NODEID": "1", "SLURMD_NODENAME": "n2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3"}
    slurm |= {"SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_PARTITION": "gpu", "SLURM_TMPDIR": str(tmp_path)}
    monkeypatch.setattr(seat.os, "cpu_count", lambda: 4)
    own = find_seat(slurm)
    assert (own.number, own.name, own.job, own.step, own.base) == (1, "n2", "7", "3", str(tmp_path))
    assert own.facts == {"engine": "slurm", "partition": "gpu", "node": "n2"}
    assert "shared" in find_seat(slurm | {"SLURM_CPUS_ON_NODE": "3"}).facts
    told = {"number": 0, "name": "pod", "job": "ab", "step": "01", "processors": 4}
    assert find_seat(slurm | {SEAT: json.dumps(told)}).facts == {"engine": "ray", "node": "pod"}


def test_nodes_on_one_machine_are_marked() -> None:
    alone = [node("x").changed(boot_id="a"), node("y").changed(boot_id="b")]
    assert ray._apart(alone) == alone
    same = [each.changed(boot_id="a") for each in alone]
    assert all("shared" in each.cluster for each in ray._apart(same))
    unknown = [each.changed(boot_id=None) for each in alone]
    assert ray._apart(unknown) == unknown


def test_a_node_has_no_more_devices_than_are_asked_for() -> None:
    gpus = [Gpu(index=k, uuid=f"g{k}", name="H100") for k in range(4)]
    few, many = Machine(cpu_model="x", cpu_count=8), Machine(cpu_model="x", cpu_count=64, gpus=gpus)
    assert least([few.changed(cpu_count=64), few])["cpu_count"] == 8
    assert least([few, few], 2)["cpu_count"] == 2
    assert least([many, many], 8)["gpus"] == gpus
    assert (least([many, many], 2)["gpus"], least([many, many], 2)["cpu_count"]) == (gpus[:2], 64)


def test_runs_on_nodes_of_ray_are_launched_there() -> None:
    plan = expand(suite(devices=[2, 4, 6]), nodes_of_ray())
    assert [(run.launcher, run.num_nodes) for run in plan.runs] == [("ray", 1), ("ray", 2), ("ray", 3)]
    assert list(plan.skipped.values()) == ["needs 3 nodes; there are 2"]
    with pytest.raises(SuiteError, match=r"launcher 'ray': this is not on nodes of Ray; .* --launcher ray"):
        expand(suite(launcher=["ray"]), Machine(cpu_model="x", cpu_count=2))
    with pytest.raises(SuiteError, match="launcher 'slurm': this is on nodes of Ray"):
        expand(suite(launcher=["slurm"]), nodes_of_ray())


def test_a_launcher_without_nodes_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="give --launcher ray"):
        RayLauncher(LaunchOptions(tmp_path))
    with pytest.raises(LaunchError, match="not inside a Slurm allocation"):
        SrunLauncher(LaunchOptions(tmp_path))


def test_a_limit_after_another_node_has_failed_gives_all_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command may fail on the second node because the first has reached its limit, of which is told a moment later."""
    launcher = SrunLauncher(LaunchOptions(tmp_path, machine=allocation()))
    folder = tmp_path / "run"
    folder.mkdir()
    files.SPEC.write(folder, SPEC)
    clock = [0.0]
    monkeypatch.setattr(step.time, "monotonic", lambda: clock[0])
    failed = {"node": 1, "done": "run", "how": "ended", "well": False}
    answers = [(0.0, failed), (1.0, {"limit": "run"}), (30.0, {"node": 0, "done": "run", "how": "ended", "well": True})]
    sent: list[dict[str, Any]] = []

    def answer(seconds: float, tick: Any) -> dict[str, Any] | None:
        at, message = answers[0]
        if at > clock[0] + seconds:
            clock[0] += seconds
            return None
        clock[0] = at
        del answers[0]
        return message

    monkeypatch.setattr(launcher, "_answer", answer)
    monkeypatch.setattr(launcher, "_send", lambda **message: sent.append(message))
    launcher._waiting = {0, 1}
    launcher._gather(folder, 600, lambda: None)
    assert sent == [{"end": True}], "nobody is cancelled"
    assert answers == []
