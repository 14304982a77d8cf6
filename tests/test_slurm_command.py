"""Commands in an allocation of a real Slurm with two virtual nodes: one record a run, which counts the whole world once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.record import RunRecord, Status
from tests.processes import PATIENCE, records, until
from tests.slurm import Slurm, missing, slurm
from tests.test_collect import counter

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
TORCHRUN = f"{sys.executable} -m torch.distributed.run --nproc-per-node={{devices_per_node}} train.py"
WATTS, BATCH, STEPS = 100.0, 4, 40
SCRIPT = f"""\
import json, os, sys, time
import torch
import torch.distributed as dist

together = "RANK" in os.environ
if together:
    dist.init_process_group("gloo")
rank = dist.get_rank() if together else 0
samples, ends = 0, []

model = torch.nn.Linear(8, 1)
if together:
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(int(sys.argv[1])):
    inputs = torch.randn({BATCH}, 8)
    optimizer.zero_grad()
    model(inputs).sum().backward()
    optimizer.step()
    samples += len(inputs)
    ends.append(time.monotonic())
    time.sleep(0.05)
if together:
    total = torch.tensor(samples)
    dist.all_reduce(total)
    samples = int(total)
if rank == 0:
    with open(sys.argv[2], "w") as file:
        json.dump({{"samples": samples, "ends": ends}}, file)
if together:
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo may abort the usual end: "terminate called without an active exception"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def suite(folder: Path, argv: str, **more: object) -> str:
    """Write a suite of a command on 2 x 2 devices, whose meters replay 100 W of a processor; return its name."""
    trace = folder / "trace.jsonl"
    trace.write_text("\n".join(counter("cpu", WATTS, "rapl", "cpu", until=1800)) + "\n")
    (folder / "train.py").write_text(SCRIPT)
    document = {
        "name": "own",
        "idle_seconds": 0,
        "defaults": {
            "workload": "command",
            "workload_args": {"argv": argv},
            "warmup_steps": 5,
            "meters": [f"replay:{trace}"],
            "device_type": "cpu",
        }
        | more,
        "matrix": {"layout": ["2x2"]},
    }
    (folder / "own.yaml").write_text(json.dumps(document))  # JSON is YAML
    return "own.yaml"


def only(folder: Path) -> RunRecord:
    (record,) = records(folder).values()
    return record


def test_torchrun_on_two_nodes_is_one_record_of_the_whole_world(cluster: Slurm, tmp_path: Path) -> None:
    argv = f"{TORCHRUN} {STEPS} {tmp_path}/own-count.json"
    process = cluster.bench(tmp_path, "run", suite(tmp_path, argv), "--json")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    record, own = only(tmp_path), json.loads((tmp_path / "own-count.json").read_text())
    measured = record.measurement
    assert record.status is Status.OK
    assert measured is not None
    assert own["samples"] == 4 * BATCH * STEPS
    assert measured.steps_before == 5
    assert measured.steps == STEPS - 5
    assert measured.samples == own["samples"] * measured.steps / STEPS
    assert measured.window_seconds == pytest.approx(own["ends"][-1] - own["ends"][4], rel=0.05)
    assert measured.seen is not None
    assert (measured.seen.world_size, measured.seen.processes) == (4, 4)
    assert not {"this_node_only", "partial_world", "other_hosts", "world_unknown", "nodes_disagree"} & set(record.flags)
    joules = sum(reading.energy_joules for reading in measured.energy)
    assert joules == pytest.approx(2 * WATTS * measured.window_seconds, rel=0.2)  # readings once a second
    assert [(node.name, node.exitcode) for node in record.nodes] == [("n1", 0), ("n2", 0)]
    until(lambda: cluster.left() == [])


def test_a_limit_ends_both_nodes_and_a_script_that_knows_no_nodes_is_no_training_of_both(
    cluster: Slurm, tmp_path: Path
) -> None:
    start = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    name = suite(tmp_path, f"{sys.executable} {{start}} train.py 200 /dev/null", measure_steps=30)
    document = json.loads((tmp_path / name).read_text())
    document["matrix"]["workload_args.start"] = {"torchrun": start, "none": []}
    (tmp_path / name).write_text(json.dumps(document))
    process = cluster.bench(tmp_path, "run", name, "--json")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    found = {record.status: record for record in records(tmp_path).values()}
    assert set(found) == {Status.OK, Status.INVALID}, errors
    record, error = found[Status.OK], found[Status.INVALID].error
    assert record.measurement is not None
    assert record.measurement.steps >= 30
    assert record.measurement.samples == 4 * BATCH * record.measurement.steps
    first, second = (node.window_seconds for node in record.nodes)
    assert first == pytest.approx(second, rel=0.05)
    assert "nodes_disagree" not in record.flags
    assert error is not None
    assert error.message.startswith("the nodes do not train together: torch.distributed has 1 process on n1")
    assert "torchrun" in error.message
    until(lambda: cluster.left() == [])


def test_a_killed_rank_ends_the_command_on_both_nodes(cluster: Slurm, tmp_path: Path) -> None:
    argv = f"{TORCHRUN} 100000 /dev/null"
    process = cluster.bench(tmp_path, "run", suite(tmp_path, argv), "--json")

    def ranks() -> list[psutil.Process]:
        agents = cluster.agents()
        below = agents[1].children(recursive=True) if len(agents) == 2 else []
        return [each for each in below if "train.py" in each.cmdline() and "RANK" in each.environ()]

    until(lambda: len(ranks()) == 2 and list(tmp_path.glob("runs/*/*/*/spec.json")))
    max(ranks(), key=lambda each: int(each.environ()["RANK"])).kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    error = only(tmp_path).error
    assert error is not None
    assert error.message.startswith("n2: ")
    assert "SIGKILL" in error.message
    until(lambda: cluster.left() == [])


MEASURE = """\
import functools, sys
from bench.run import measure
measure.MeasureOptions = functools.partial(measure.MeasureOptions, meters=[sys.argv.pop(1)])
from bench.cli import main
main()
"""
"""`bench` with other meters for `bench measure`, which has no option for them."""


def measure(cluster: Slurm, folder: Path, *command: str) -> tuple[int, str, RunRecord]:
    """Measure a command in an allocation; return its exit code and output, and its record."""
    salloc = ["salloc", "--quiet", "--nodes=2", "--exclusive", "--time=10", sys.executable, "-P", "-c", MEASURE]
    options = [f"replay:{folder}/trace.jsonl", "measure", "--no-store", "--idle-seconds", "0", "--warmup-steps", "5"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*salloc, *options, "--", *command], cwd=folder, env=cluster.variables, **pipes)
    output, errors = process.communicate(timeout=PATIENCE)
    found = sorted(folder.glob(".wattbench/measure/*/*/record.json"))
    assert found, errors
    until(lambda: cluster.left() == [])
    return process.returncode, output, RunRecord.model_validate_json(found[-1].read_text())


def test_bench_measure_is_one_record_of_both_nodes(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, "unused")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py", str(STEPS), "own.json"]
    code, output, record = measure(cluster, tmp_path, *torchrun)
    measured, own = record.measurement, json.loads((tmp_path / "own.json").read_text())
    assert (code, record.status) == (0, Status.OK), output
    assert measured is not None
    assert own["samples"] == 4 * BATCH * STEPS
    assert (measured.steps_before, measured.steps) == (5, STEPS - 5)
    assert measured.samples == own["samples"] * measured.steps / STEPS
    joules = sum(reading.energy_joules for reading in measured.energy)
    assert joules == pytest.approx(2 * WATTS * measured.window_seconds, rel=0.2)  # readings once a second
    assert record.device_count == 4
    assert [(node.name, node.first_rank) for node in record.nodes] == [("n1", 0), ("n2", 2)]


def test_bench_measure_passes_on_the_exit_code_and_the_output_of_the_first_node(cluster: Slurm, tmp_path: Path) -> None:
    suite(tmp_path, "unused")
    code, output, record = measure(
        cluster, tmp_path, "sh", "-c", "echo here on {node_rank}; exit $((PET_NODE_RANK * 7))"
    )
    assert code == 7
    assert "here on 0" in output
    assert "here on 1" not in output
    assert record.error is not None
    assert record.error.message == "n2: the command ended with exit code 7"
