"""A command on several nodes: its words and variables, and what becomes of what each node saw of it."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bench import folder as files
from bench.errors import UserError
from bench.figures.metrics import row
from bench.record import RunRecord, Status
from bench.run.collect import Context, collect
from bench.run.ending import Signals
from bench.run.measure import MeasureOptions, specification
from bench.run.meeting import Meeting
from bench.run.nodes import put_together
from bench.run.on_nodes import check_for_nodes, run_on_nodes
from bench.schema import Machine, RunSpec, Site
from bench.workloads.command import Command, fill
from tests import processes, rows
from tests.test_collect import counter
from tests.test_hooks import JOINED, process
from tests.test_sources import printed

S = 10**9
NAMES = ["n1", "n2"]
WORLD = JOINED | {"world_size": 4, "local_world_size": 2}


def command(argv: str = "torchrun --nproc-per-node={devices_per_node} train.py", **more: Any) -> RunSpec:
    fields = {name: more.pop(name) for name in list(more) if name in RunSpec.model_fields}
    spec = {"workload": "command", "workload_args": {"argv": argv, **more}, "device_type": "cpu", "num_nodes": 2}
    return RunSpec.model_validate(spec | {"devices_per_node": 2, "warmup_steps": 3, "meters": ["rapl"]} | fields)


def ended(folder: Path, spec: RunSpec, *, by: str | None = None, codes: tuple[int, int] = (0, 0)) -> RunRecord:
    """Collect a run that took 9 s on each node, whose meters read 100 W and 300 W."""
    files.SPEC.write(folder, spec)
    for node, watts in enumerate((100, 300)):
        place = folder if node == 0 else files.NODE_FOLDERS.path(folder, node)
        start, stop = 0, 9 * S
        told = files.CommandEnd(exitcode=codes[node], start_ns=start, end_ns=stop, cpu_seconds=4, by=by)
        files.COMMAND_END.write(place, told)
        exit_ = files.Exit(how="ended", exitcode=min(1, codes[node]), start_ns=start, end_ns=stop)
        files.write_node_end(folder, files.NodeEnd(node=node, name=NAMES[node], boot_id=f"boot-{node}", exit=exit_))
        lines = [json.loads(line) for line in counter("intel-rapl:0", watts, "rapl", "cpu")]
        lines = [json.dumps(line | {"t_ns": line["t_ns"] - 10 * S}) for line in lines]
        files.RAW_METERS.path(folder, node).write_text("\n".join(lines) + "\n")
    put_together(folder, NAMES, 9.0, "")
    kind = rows.environment("x").changed(machine=Machine(cpu_model="Synthetic CPU", cpu_count=2))
    return collect(Context("s", "e", Site(), kind, [], nodes=[kind, kind]), spec, folder)


def seen(folder: Path, steps: tuple[int, int] = (8, 8), **facts: Any) -> None:
    """Write what hooks see on each node: two processes with steps of 1 s and 4 samples."""
    for node in range(2):
        place = folder if node == 0 else files.NODE_FOLDERS.path(folder, node)
        place.mkdir(exist_ok=True)
        for local in range(2):
            process(place, local, steps=steps[node], **WORLD | {"rank": 2 * node + local} | facts)


def joules(record: RunRecord) -> list[float]:
    assert record.measurement is not None
    return [reading.energy_joules for reading in record.measurement.energy]


def test_the_whole_world_is_counted_once(tmp_path: Path) -> None:
    seen(tmp_path)
    record = ended(tmp_path, command())
    measured = record.measurement
    assert measured is not None
    assert (measured.steps, measured.samples, measured.window_seconds) == (5, 2 * 2 * 4 * 5, 5)
    assert sum(joules(record)) == pytest.approx(400 * 5, rel=1e-3)
    assert measured.cpu_seconds == 8
    assert measured.seen is not None
    assert (measured.seen.processes, measured.seen.devices) == (4, ["cpu"] * 4)
    assert [rank.rank for rank in measured.ranks] == [0, 1, 2, 3]
    assert not {"this_node_only", "partial_world", "nodes_disagree", "world_unknown"} & set(record.flags)


@pytest.mark.parametrize("stated", [16, 8])
def test_stated_samples_are_those_of_all_nodes(tmp_path: Path, stated: int) -> None:
    seen(tmp_path)
    record = ended(tmp_path, command(samples_per_step=stated))
    assert record.measurement is not None
    assert record.measurement.samples == 5 * stated
    assert ("sources_differ" in record.flags) == (stated != 16)


@pytest.mark.parametrize(
    ("facts", "found"),
    [({"world_size": 1, "joined": False, "local_world_size": None}, "1 process"), ({"world_size": 2}, "2 processes")],
)
def test_two_trainings_are_no_run(tmp_path: Path, facts: dict[str, Any], found: str) -> None:
    seen(tmp_path, **facts)
    record = ended(tmp_path, command())
    assert record.status is Status.INVALID
    assert record.error is not None
    assert record.error.message.startswith(f"the nodes do not train together: torch.distributed has {found} on n1")
    assert "{master_addr}" in record.error.message


def test_a_world_that_is_larger_than_what_was_seen_has_no_samples(tmp_path: Path) -> None:
    seen(tmp_path, world_size=8)
    record = ended(tmp_path, command(samples_per_step=16))
    assert record.measurement is not None
    assert record.measurement.samples is None
    assert "partial_world" in record.flags


def test_nodes_that_count_other_steps_are_flagged(tmp_path: Path) -> None:
    seen(tmp_path, steps=(8, 7))
    record = ended(tmp_path, command())
    assert record.measurement is not None
    assert (record.measurement.samples, joules(record)) == (None, [])
    assert "nodes_disagree" in record.flags


def test_at_a_limit_all_nodes_are_measured_between_the_same_steps(tmp_path: Path) -> None:
    seen(tmp_path, steps=(8, 7))
    lost = files.RankError(kind="peer", type="ExitCode", message="Connection closed by peer", rank=2)
    files.write_error(tmp_path, lost)
    record = ended(tmp_path, command(measure_steps=4), by="limit", codes=(0, 1))
    assert record.status is Status.OK
    assert record.measurement is not None
    assert (record.measurement.steps, record.measurement.samples) == (4, 64)
    assert sum(joules(record)) == pytest.approx(400 * 4, rel=1e-3)
    assert "nodes_disagree" not in record.flags


def test_the_first_cause_names_its_node(tmp_path: Path) -> None:
    seen(tmp_path)
    for rank, kind, message in ((0, "peer", "Connection closed by peer"), (2, "failed", "exit code 3")):
        files.write_error(tmp_path, files.RankError(kind=kind, type="ExitCode", message=message, rank=rank))
    record = ended(tmp_path, command(), codes=(1, 3))
    assert record.status is Status.FAILED
    assert record.error is not None
    assert record.error.message == "n2: exit code 3"
    assert record.measurement is None


@pytest.mark.parametrize(("stated", "samples"), [({}, None), ({"samples_per_step": 16}, 80)])
def test_printed_steps_alone_do_not_say_whether_nodes_train_together(
    tmp_path: Path, stated: dict[str, int], samples: int | None
) -> None:
    files.NODE_FOLDERS.path(tmp_path, 1).mkdir()
    spec = command(step_pattern="(?P<step>.)(?P<samples>.)" if not stated else "(?P<step>.)", hooks=False, **stated)
    printed(tmp_path, range(1, 9), **({} if stated else {"samples": 16}))
    record = ended(tmp_path, spec)
    assert record.measurement is not None
    assert record.measurement.samples == samples
    assert {"world_unknown", "nodes_disagree"} <= set(record.flags)
    assert joules(record) == []


# --- the words and variables of a command


def test_names_of_the_meeting_become_values() -> None:
    spec = command("run --n={num_nodes} --k={node_rank} --at={master_addr}:{master_port}")
    meeting = Meeting(1, 2, "10.0.0.1", 4711, "ib0")
    words = fill(spec, meeting.values(spec.workload_args["argv"]))
    assert words == ["run", "--n=2", "--k=1", "--at=10.0.0.1:4711"]
    assert fill(spec)[2:] == ["--k={node_rank}", "--at={master_addr}:{master_port}"]


def test_torchrun_is_told_by_variables() -> None:
    from torch.distributed.run import get_args_parser

    found = Meeting(1, 2, "10.0.0.1", 4711, "ib0").variables({"NCCL_SOCKET_IFNAME": "mine"})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        options = get_args_parser().parse_args(["train.py"])
    assert (options.nnodes, options.node_rank, options.master_addr, options.master_port) == ("2", 1, "10.0.0.1", 4711)
    assert options.rdzv_backend == "static"
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("ib0", "mine")
    assert Meeting().variables({}) == {}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("srun -n 4 train", "srun starts processes on all nodes"),
        ("torchrun --standalone --nproc-per-node={devices_per_node} train.py", "--standalone is for one node"),
        ("torchrun --nnodes=4 train.py", r"--nnodes=4 is not the 2 nodes of this run: write \{num_nodes\}"),
        ("torchrun --nproc-per-node={devices} train.py", r"of one node are \{devices_per_node\}"),
    ],
)
def test_words_that_are_not_for_several_nodes_are_mistakes(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Command.check(command(argv))


IN_A_JOB = os.environ | {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_bench_measure_says_that_it_measures_one_machine(tmp_path: Path, nodes: int) -> None:
    options = ["--launcher", "local"] if nodes == 2 else []
    arguments = ["measure", *options, "--no-store", "--idle-seconds", "0", "--", "true"]
    done = processes.bench(tmp_path, *arguments, env=IN_A_JOB | {"SLURM_JOB_NUM_NODES": str(nodes)})
    assert done.returncode == 0, done.stderr
    assert ("this machine alone is measured" in done.stderr) == (nodes == 2)


@pytest.mark.parametrize("options", [["--live"], ["--enforce", "--budget", "1h"], ["--gpus", "0"]])
def test_bench_measure_refuses_what_several_nodes_cannot_do(tmp_path: Path, options: list[str]) -> None:
    done = processes.bench(tmp_path, "measure", *options, "--", "true", env=IN_A_JOB | {"SLURM_JOB_NUM_NODES": "2"})
    assert done.returncode == 2
    assert f"{options[0]} is for one machine" in done.stderr
    assert "--launcher local" in done.stderr
    assert not (tmp_path / ".wattbench").exists()


def test_bench_measure_submits_no_job(tmp_path: Path) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = processes.bench(tmp_path, "measure", "--launcher", "slurm", "--", "true", env=outside)
    assert done.returncode == 2
    assert "salloc or sbatch" in done.stderr


def measured(*argv: str, **settings: str) -> tuple[MeasureOptions, RunSpec]:
    """Return what `bench measure` asks of two nodes."""
    options = MeasureOptions(list(argv), settings=settings, on_nodes=True)
    return options, specification(options, Machine(cpu_model="x", cpu_count=2)).changed(num_nodes=2)


def test_a_measured_command_knows_the_names_of_nodes_without_set() -> None:
    argv = (
        "launch",
        "--rank={node_rank}",
        "--nodes={num_nodes}",
        "--at={master_addr}:{master_port}",
        "--lr={lr}",
        "{x}",
    )
    options, spec = measured(*argv[:5], lr="0.1")
    words = ["launch", "--rank=1", "--nodes=2", "--at=a:7", "--lr=0.1"]
    assert fill(spec, Meeting(1, 2, "a", 7).values(" ".join(argv))) == words
    check_for_nodes(options.argv, spec)
    _, plain = measured("sh", "-c", "echo ${HOME} {x}")
    assert fill(plain) == ["sh", "-c", "echo ${HOME} {x}"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--token", "hf_abcdefgh"], "COMMAND holds a secret"),
        (["srun", "train"], "COMMAND: srun starts processes on all nodes"),
        (["torchrun", "--standalone", "train.py"], "COMMAND: --standalone is for one node"),
    ],
)
def test_a_command_that_nodes_cannot_start_is_not_measured(argv: list[str], message: str) -> None:
    options, spec = measured(*argv)
    with pytest.raises(UserError, match=message):
        check_for_nodes(options.argv, spec)


def test_devices_of_a_measured_command_are_those_that_it_used(tmp_path: Path) -> None:
    """`bench measure` asks for none; on processors there is one for each process."""
    seen(tmp_path, devices=["cpu"])
    record = ended(tmp_path, command("torchrun train.py", devices_per_node=1, open_devices=True))
    figures = row(record)
    assert (figures["devices"], figures["num_nodes"], figures["devices_per_node"]) == (4, 2, 2)
    assert [node.first_rank for node in record.nodes] == [0, 2]
    assert figures["samples_per_second_per_device"] * 4 == pytest.approx(figures["samples_per_second"])


@pytest.mark.parametrize(("steps", "status"), [((8, 7), Status.OK), ((4, 4), Status.FAILED)])
def test_a_command_that_a_signal_ended_has_a_record_where_it_made_steps(
    tmp_path: Path, steps: tuple[int, int], status: Status
) -> None:
    seen(tmp_path, steps=steps)
    if status is not Status.OK:
        early = files.RankError(kind="failed", type="EndedEarly", message="ended by SIGTERM before 2 steps", rank=0)
        files.write_error(tmp_path, early)
    codes = (0, 1) if status is Status.OK else (1, 1)
    if status is Status.OK:
        lost = files.RankError(kind="peer", type="ExitCode", message="Connection closed by peer", rank=2)
        files.write_error(tmp_path, lost)
    record = ended(tmp_path, command(), by="signal", codes=codes)
    assert record.status is status
    assert ("ended_early" in record.flags) == (status is Status.OK)
    if record.measurement is not None:
        assert (record.measurement.steps, record.measurement.samples) == (4, 64)


class Agents:
    """Stands for the launcher: a run is ended by `end`, and leaves what a command with this exit code does."""

    def __init__(self, exitcode: int, *, result: bool) -> None:
        self.exitcode, self.result, self.ended_by = exitcode, result, None
        self.calls: list[str] = []

    def submit(self, folder: Path) -> None:
        self.show(b"first ")

    def end(self, name: str) -> None:
        self.calls.append(name)
        self.ended_by = name

    def wait(self, folder: Path, seconds: float, tick: Any) -> None:
        tick()
        tick()
        (folder / files.WORKER_LOG).write_bytes(b"first and last")
        files.EXIT.write(folder, files.Exit(how="ended", exitcode=self.exitcode))
        if self.result:
            (folder / files.RESULT.name).write_text("{}")


@pytest.mark.parametrize(
    ("exitcode", "result", "asked", "end"),
    [
        (0, True, None, ("ended", 0)),
        (5, False, None, ("ended", 5)),
        (0, False, None, ("ended", 1)),  # nodes that train by themselves
        (0, True, signal.SIGTERM, ("stopped", 143)),
    ],
)
def test_the_end_of_a_measured_command_has_its_exit_code(
    tmp_path: Path, exitcode: int, result: bool, asked: signal.Signals | None, end: tuple[str, int]
) -> None:
    files.SPEC.write(tmp_path, command())
    agents, signals, output = Agents(exitcode, result=result), Signals(), io.BytesIO()
    signals.asked, signals.deferred = asked, True
    run_on_nodes(agents, tmp_path, signals, output)  # type: ignore[arg-type]
    left = files.EXIT.read(tmp_path)
    assert (left.how, left.exitcode) == end
    assert output.getvalue() == b"first and last"
    assert agents.calls == ([] if asked is None else ["SIGTERM"])
    assert signals.deferred
