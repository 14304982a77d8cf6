"""Jobs of a cluster: what they are asked for, how runs are divided among them, and what becomes of these whatever happens."""

import errno
import json
import os
import shlex
import threading
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics.say.jobs import held_text, lost_words
from bench import folder as files
from bench.cluster_options import ClusterOptions, clock_seconds
from bench.errors import UserError
from bench.files import Busy
from bench.jobs import block as block_module
from bench.jobs import blocks, session
from bench.jobs.block import Stop, Worker, same_kind
from bench.jobs.fate import fate
from bench.jobs.ledger import Ledger, attempt_of, lost_attempts, read_jobs
from bench.jobs.queue import QueuedJob, SlurmQueue, unreachable
from bench.jobs.session import leased
from bench.machine import partition as partitions
from bench.machine.cluster import ClusterProblem
from bench.machine.partition import Partition, find_partition, gpus_of
from bench.record import LostAttempt, Status
from bench.run.runner import load_briefs
from bench.schema import Gpu, RunSpec
from bench.suites.load import SuiteError, load_profile, load_suite, override, with_cluster
from bench.suites.needs import Givers
from tests.benchmarks.planning import ENVIRONMENT
from tests.simulated_slurm import FAULTS, Notes, SimulatedSlurm, controller, specs, until_done

SUITE = "name: a\ndefaults: {workload: decoder_lm, batch_size_per_device: 4}\n"


# What is asked for


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("02:00:00", 7200),
        ("1-00:00:00", 86400),
        ("30:00", 1800),
        ("90min", 5400),
        ("24h", 86400),
        ("1-12:30", 131400),
        ("1-00", 86400),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert clock_seconds(text) == seconds


def test_the_example_of_the_manual_is_a_suite(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/clusters.md").read_text()
    (example,) = (text for text in page.split("```text\n") if text.startswith("launcher: slurm"))
    path = tmp_path / "s.yaml"
    path.write_text(SUITE + example.partition("```")[0])
    asked = load_suite(path).cluster
    assert (asked.partition, asked.devices_per_node, asked.env) == ("gpu", 8, {"NCCL_IB_HCA": "mlx5"})
    assert asked.setup == "module load cuda\n"


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("{time_limit: 30}", "cluster.time_limit: give a length of time such as 02:00:00"),
        ("{nodes: 4}", "max_nodes bounds devices: auto"),
        ("{sbatch: --x}", "cluster.sbatch: must be a list: [a, b], not '--x'"),
        ("gpu", "cluster: must be a mapping: {name: value}, not 'gpu'"),
        ("{max_jobs: two}", "cluster.max_jobs: must be a whole number, not 'two'"),
        ("{time_limit: '1:99:99'}", "minutes and seconds after a larger unit end at 59, not '1:99:99'"),
        ("{time_limit: '1-24:00'}", "hours after days end at 23, not '1-24:00'"),
        ("{time_limit: soon}", "give a length of time such as 02:00:00"),
        ("{partiton: gpu}", "did you mean 'partition'?"),
        ("{sbatch: [--time=3]}", "--time is set by wattbench"),
        ("{sbatch: [-N2]}", "-N2 is set by wattbench"),
        ("{srun: [cpu-bind]}", "an option begins with a dash"),
        ("{env: {HF_TOKEN: hf_abcdefghijkl}}", "HF_TOKEN looks like a credential"),
        ('{partition: "gpu\\n#SBATCH --uid=0"}', "cluster.partition: give one line of text"),
        ('{partition: ""}', "cluster.partition: give one line of text"),
        ("{container: a.sqsh, container_command: [apptainer]}", "not both"),
        ("{jobs: many}", "'by_size', 'one' or 'each_run'"),
    ],
)
def test_mistakes_of_a_cluster_are_told(cluster: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"{SUITE}cluster: {cluster}\n")
    with pytest.raises(SuiteError, match=None) as caught:
        load_suite(path)
    assert message in str(caught.value)


def test_the_command_line_comes_before_the_suite_and_this_before_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = tmp_path / "clusters.yaml"
    profiles.write_text("h100: {partition: gpu, account: p1, qos: low, max_jobs: 3}\n")
    monkeypatch.setenv("WATTBENCH_CLUSTERS", str(profiles))
    path = tmp_path / "s.yaml"
    path.write_text(f"{SUITE}cluster: {{partition: big, qos: high}}\n")
    suite = override(load_suite(path), ["cluster.qos=debug"])
    asked = with_cluster(suite, load_profile("h100"), max_nodes=None).cluster
    assert (asked.partition, asked.account, asked.qos, asked.max_jobs) == ("big", "p1", "debug", 3)
    with pytest.raises(SuiteError, match="did you mean 'h100'"):
        load_profile("h10")
    profiles.write_text("h100: {patition: gpu}\n")
    with pytest.raises(SuiteError, match="did you mean 'partition'"):
        load_profile("h100")


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", (0, "")),
        ("gpu:8", (8, "")),
        ("gpu:h100:8(S:0-1)", (8, "h100")),
        ("nvme:1,gpu:a100:4", (4, "a100")),
        ("gpu:a100:4,gpu:v100:2", (6, "a100 and v100")),
        ("gpu", (1, "")),
        ("mps:100", (0, "")),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: tuple[int, str]) -> None:
    assert gpus_of(gres) == gpus


ROWS = """cpu*|up|infinite|10|48+|190000|(null)
gpu|up|2-00:00:00|12|64|500000|gpu:h100:8(S:0-1)
mixed|up|4:00:00|12|64|500000|gpu:a100:4
mixed|up|4:00:00|2|64|900000|gpu:a100:8
old|down|1:00|2|64|9000|gpu:8
"""


def found(monkeypatch: pytest.MonkeyPatch, **asked: object) -> Partition:
    monkeypatch.setattr(partitions, "ask_slurm", lambda *command: ROWS)
    monkeypatch.setattr(partitions.shutil, "which", lambda tool: tool)
    return find_partition(ClusterOptions(**asked))


def test_slurm_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> str:
        raise ClusterProblem(
            "sinfo: error: fetch_config failed\nsinfo: fatal: Could not establish a configuration source"
        )

    found(monkeypatch)
    monkeypatch.setattr(partitions, "ask_slurm", refuse)
    with pytest.raises(ClusterProblem) as caught:
        find_partition(ClusterOptions())
    said = "Slurm does not answer here: sinfo: fatal: Could not establish a configuration source"
    assert caught.value.messages == [f"{said}\nRun this on a login node, or leave out --launcher slurm"]


def test_a_partition_is_what_its_nodes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = found(monkeypatch)
    assert (cpu.name, cpu.cpu_count, cpu.gpus, cpu.num_nodes, cpu.most_seconds) == ("cpu", 48, [], 10, 4 * 3600)
    gpu = found(monkeypatch, partition="gpu", time_limit="3-00:00:00")
    assert [each.name for each in gpu.gpus] == ["h100"] * 8
    assert (gpu.num_nodes, gpu.most_seconds, gpu.launcher, gpu.device_type) == (12, 2 * 86400, "slurm", "gpu")
    eight = found(monkeypatch, partition="mixed", devices_per_node=8, max_nodes=1)
    assert (eight.most_nodes, eight.num_nodes, len(eight.gpus)) == (2, 1, 8)
    assert gpu.environment.fingerprint != eight.environment.fingerprint


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"partition": "gpu,gpus"}, "there is no partition 'gpus': set cluster.partition to one of cpu, gpu, mixed"),
        ({"partition": "gpus"}, "there is no partition 'gpus': set cluster.partition to one of cpu, gpu, mixed"),
        ({"partition": "old"}, "there is no partition 'old'"),
        ({"partition": "mixed"}, "gpu:4 (12 nodes), gpu:8 (2 nodes): set cluster.devices_per_node"),
        ({"partition": "gpu", "devices_per_node": 16}, "no node with 16 GPUs: sinfo shows gpu:8 (12 nodes)"),
    ],
)
def test_a_partition_that_does_not_fit_is_told(
    asked: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterProblem) as caught:
        found(monkeypatch, **asked)
    assert message in str(caught.value)


# Blocks


def test_runs_are_grouped_by_their_nodes_with_what_they_need() -> None:
    one, two = specs([1, 2], 1, 1)
    giver, taker = one.changed(saves="w"), two.changed(needs="w")
    alone = one.changed(batch_size_per_device=9)
    runs = [giver, taker, alone]
    by_size = blocks.grouped(runs, Givers(runs), "by_size")
    assert {name: (group.nodes, group.runs) for name, group in by_size.items()} == {
        "2 nodes": (2, [giver, taker]),
        "1 node": (1, [alone]),
    }
    assert [group.nodes for group in blocks.grouped(runs, Givers(runs), "one").values()] == [2]
    assert [len(group.runs) for group in blocks.grouped(runs, Givers(runs), "each_run").values()] == [2, 1]


def cut(runs: list[RunSpec], most_seconds: float, seconds: float | None = 60.0) -> blocks.Cut:
    made = blocks.next_cut(runs, lambda _: seconds, lambda *_: True, most_seconds=most_seconds, idle_seconds=0)
    assert made is not None
    return made


def test_a_job_has_all_runs_or_whole_repeats_or_one_run() -> None:
    runs = specs([1], 3, 4)
    everything = cut(runs, 3600)
    assert everything.runs == runs
    assert everything.minutes * 60 > 12 * 60 + 52 + blocks.SIGNAL_SECONDS
    assert len(cut(runs, 900).runs) == 6, "two whole repeats"
    assert len(cut(runs, 400).runs) == 3
    assert len(cut(runs, 200).runs) == 1
    assert len(cut(runs, 30).runs) == 1
    assert cut(runs, 900).minutes <= 15
    assert cut(runs, 7200, None).minutes == 120, "of an unknown length: all the time there is"


def test_no_run_is_cut_from_the_weights_that_it_needs() -> None:
    runs = specs([1], 2, 1)
    ready = blocks.next_cut(
        runs, lambda _: 1.0, lambda spec, before: spec is runs[1] or runs[1].run_id in before, most_seconds=600,
        idle_seconds=0,
    )  # fmt: skip
    assert ready is not None
    assert ready.runs == [runs[1]]


def test_the_batch_script_asks_for_what_the_suite_says(tmp_path: Path) -> None:
    asked = ClusterOptions(
        partition="gpu",
        account="p 1",
        exclude="n9",
        setup="module load cuda\nsource ~/venv/bin/activate",
        env={"NCCL_IB_HCA": "mlx5 0"},
        sbatch=["--switches=1"],
    )
    gpus = [Gpu(index=k, uuid=f"{k}", name="h100") for k in range(8)]
    place = Partition(cpu_model="any", cpu_count=64, gpus=gpus, name="gpu", most_nodes=4, asked=asked)
    block = files.JobBlock(number=1, name="wb-a-1", group="2 nodes", nodes=2, minutes=44, runs=[])
    lines = blocks.batch_script(block, tmp_path / "block-0001", place, ["n3"]).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--time=44", "--gres=gpu:8", "--exclude=n9,n3", "--switches=1", "--no-requeue"} < set(options)
    assert {"--account='p 1'", "--mem=0", "--exclusive", "--signal=B:USR1@120"} < set(options)
    body = lines[len(options) + 1 :]
    assert body.index("trap '' USR1 TERM  # until Python has handlers of its own") < body.index("module load cuda")
    assert body[-2] == "export NCCL_IB_HCA='mlx5 0'"
    assert shlex.split(body[-1])[-2:] == ["bench.jobs.block", str(tmp_path / "block-0001")]
    shared = place.changed(asked=asked.changed(exclusive=False))
    assert "--exclusive" not in blocks.batch_script(block, tmp_path, shared)


# What becomes of a job


@pytest.mark.parametrize(
    ("state", "reason", "kind"),
    [
        ("PENDING", "Resources", "waits"),
        ("PENDING", "Priority", "waits"),
        ("PENDING", "(Nodes required for job are DOWN, DRAINED or reserved)", "waits"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "waits"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "waits"),
        ("PENDING", "SomethingNew", "waits"),
        ("PENDING", "PartitionTimeLimit", "hopeless"),
        ("PENDING", "BadConstraints", "hopeless"),
        ("PENDING", "QOSMaxNodePerJobLimit", "hopeless"),
        ("PENDING", "AssocMaxWallDurationPerJobLimit", "hopeless"),
        ("PENDING", "QOSMinCpuNotSatisfied", "hopeless"),
        ("PENDING", "JobHeldUser", "held"),
        ("PENDING", "launch_failed_requeued_held", "held"),
        ("PENDING", "launch failed requeued held", "held"),
        *((word, "None", "runs") for word in ("RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "RESIZING")),
        *((word, "None", "runs") for word in ("SUSPENDED", "STOPPED", "REVOKED", "SPECIAL_EXIT", "NEW_WORD")),
        ("TIMEOUT", "TimeLimit", "timeout"),
        ("PREEMPTED", "None", "preempted"),
        ("NODE_FAIL", "None", "node_failed"),
        ("BOOT_FAIL", "None", "node_failed"),
        ("CANCELLED", "None", "cancelled"),
        ("OUT_OF_MEMORY", "None", "failed"),
        ("FAILED", "NonZeroExitCode", "failed"),
        ("COMPLETED", "None", "failed"),
    ],
)
def test_the_word_of_slurm_for_a_job_without_a_mark_of_its_end(state: str, reason: str, kind: str) -> None:
    assert fate(QueuedJob("1", state, "wb", reason=reason), None).kind == kind


def test_the_folder_of_a_job_is_believed_before_the_queue() -> None:
    lost = QueuedJob("1", "NODE_FAIL", "wb")
    assert fate(lost, files.BlockEnd(left=0)).kind == "done"
    assert fate(None, files.BlockEnd(left=2, why="the nodes are of another kind")).kind == "failed"
    told = files.BlockEnd(left=2, signalled=True)
    states = {
        "CANCELLED": "cancelled",
        "PREEMPTED": "preempted",
        "COMPLETED": "done",
        "COMPLETING": "runs",
        "TIMEOUT": "timeout",
    }
    assert {state: fate(QueuedJob("1", state, "wb"), told).kind for state in states} == states
    assert fate(None, told).kind == "done"
    assert fate(None, None).kind == "node_failed"
    assert fate(None, None, past="RUNNING").kind == "node_failed", "accounting that has lost sight of a job"
    assert fate(None, None, past="CANCELLED by 0") == ("cancelled", "it was cancelled by uid 0")
    job = QueuedJob("1", "FAILED", "wb", reason="NonZeroExitCode")
    assert fate(job, None, log="slurmstepd: *** JOB 1 CANCELLED DUE TO PREEMPTION ***").kind == "preempted"
    assert fate(job, None, log="module: command not found\n").why.endswith("module: command not found")


# Following


def test_all_runs_are_done_by_a_job_of_each_size(tmp_path: Path) -> None:
    runs = specs([1, 2], 2, 3)
    slurm = SimulatedSlurm(tmp_path)
    notes, typed = until_done(tmp_path, runs, slurm)
    assert typed == 1
    assert slurm.executed == Counter(run.run_id for run in runs)
    assert len(slurm.jobs) == 2
    assert "job 1000: 6 runs on 1 node, 3 min asked" in " ".join(notes.texts)
    assert controller(tmp_path, runs, slurm, notes).to_do == 0


def typed_once(tmp_path: Path, faults: list[str], runs: list[RunSpec], **asked: object) -> tuple[SimulatedSlurm, Notes]:
    slurm, notes = SimulatedSlurm(tmp_path, faults=faults, after_runs=[0]), Notes()
    controller(tmp_path, runs, slurm, notes, **asked).follow()
    return slurm, notes


@pytest.mark.parametrize("fault", ["node_fail", "preempted", "timeout", "vanished", "lost_but_runs", "requeued"])
def test_what_a_lost_job_leaves_is_done_by_another(fault: str, tmp_path: Path) -> None:
    runs = specs([2], 2, 2)
    slurm, notes = typed_once(tmp_path, [fault], runs)
    assert slurm.executed == Counter(run.run_id for run in runs)
    assert len(slurm.jobs) == 1 + (fault != "requeued"), notes.texts


def test_a_node_that_failed_is_excluded(tmp_path: Path) -> None:
    slurm, notes = typed_once(tmp_path, ["node_fail"], specs([2], 1, 2))
    assert "--exclude=n1000" in (slurm.jobs[1].folder / files.JOB_SCRIPT).read_text()
    assert any(text.startswith("n1000 failed (NODE_FAIL) in job 1000; 2 of its runs are left") for text in notes.texts)


def test_a_run_during_which_three_nodes_failed_has_failed(tmp_path: Path) -> None:
    runs = specs([2], 1, 2)
    slurm, notes = SimulatedSlurm(tmp_path, faults=["node_fail"] * 3, after_runs=[0]), Notes()
    controller(tmp_path, runs, slurm, notes, jobs="each_run", max_jobs=1).follow()
    first, second = (load_briefs(tmp_path)[run.run_id] for run in runs)
    assert (first.status, second.status) == (Status.FAILED, Status.OK)
    assert "3 jobs ended during this run, the last one, 1002, as NODE_FAIL" in str(first.error)


def test_a_run_that_failed_is_done_again_by_a_job_where_that_is_asked(tmp_path: Path) -> None:
    runs = specs([2], 1, 2)
    slurm, notes = SimulatedSlurm(tmp_path, faults=["node_fail"] * 3, after_runs=[0]), Notes()
    controller(tmp_path, runs, slurm, notes, jobs="each_run", max_jobs=1).follow()
    controller(tmp_path, runs, slurm, notes).follow()
    assert slurm.executed == {runs[1].run_id: 1}, "without --retry nothing is done again"
    controller(tmp_path, runs, slurm, notes, retry=True).follow()
    assert slurm.executed == {run.run_id: 1 for run in runs}
    assert [load_briefs(tmp_path)[run.run_id].status for run in runs] == [Status.OK, Status.OK]


def test_attempts_that_were_lost_with_their_jobs_are_in_the_record(tmp_path: Path) -> None:
    """A job that had time to end itself tells what its run had cost, one that was killed shows for how long it worked."""
    runs, notes = specs([2], 1, 2), Notes()
    slurm = SimulatedSlurm(
        tmp_path, faults=["preempted", "node_fail", "cancelled", "node_fail"], after_runs=[0, 0, 0, 1]
    )
    known = {"seconds": 90, "energy_joules": 18_000, "components": ["cpu"]}
    own = {runs[0].run_id: LostAttempt(nodes=2, **known)}
    slurm.told = {"1000": files.BlockEnd(left=2, signalled=True, lost=own)}
    controller(tmp_path, runs, slurm, notes).follow()
    until_done(tmp_path, runs, slurm)  # by another controller
    first, second = (files.RECORD.read(tmp_path / run.run_id).lost for run in runs)
    assert first == [
        LostAttempt(job="1000", ended="preempted", nodes=2, **known),
        LostAttempt(job="1001", ended="node_failed", nodes=2),
        LostAttempt(job="1002", ended="cancelled", nodes=2),
    ]
    assert second == [LostAttempt(job="1003", ended="node_failed", nodes=2)]
    assert lost_attempts(read_jobs(tmp_path)) == {runs[0].run_id: first, runs[1].run_id: second}


def test_a_job_that_was_killed_shows_how_long_its_last_run_took_at_least(tmp_path: Path) -> None:
    (spec,) = specs([2], 1, 1)
    at = datetime.fromtimestamp(0, UTC)
    job = files.SubmittedJob(number=1, name="wb", group="2 nodes", minutes=9, at=at, id="7")
    for name, changed in ((files.JOURNAL, 1000.0), (files.ALIVE, 1240.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    assert attempt_of(tmp_path, job, spec, "node_failed") == LostAttempt(
        job="7", ended="node_failed", nodes=2, seconds=240, at_least=True
    )
    os.utime(tmp_path / files.ALIVE, (990.0, 990.0))
    assert attempt_of(tmp_path, job, spec, "timeout").seconds is None, "it did not show itself since"
    other = files.BlockEnd(left=1, signalled=True, lost={"another": LostAttempt(nodes=2, seconds=5)})
    files.BLOCK_END.write(tmp_path, other)
    assert attempt_of(tmp_path, job, spec, "timeout").seconds is None, "what it says is of another run"


@pytest.mark.parametrize(
    ("attempts", "words"),
    [
        ([], ""),
        (
            [LostAttempt(nodes=2, seconds=360, energy_joules=12_000), LostAttempt(nodes=2, seconds=360, at_least=True)],
            "2 attempts were lost with their jobs: at least 0.4 node-hours, 12 kJ, energy of 1 of them not known.",
        ),
        ([LostAttempt(nodes=1)], "1 attempt was lost with its job: time not known, energy not known."),
        (
            [LostAttempt(nodes=1, seconds=3600, energy_joules_estimated=5000)],
            "1 attempt was lost with its job: 1 node-hours, about 5 kJ by a model.",
        ),
        (
            [LostAttempt(nodes=1, seconds=3600, energy_joules=5000, energy_at_least=True)],
            "1 attempt was lost with its job: 1 node-hours, at least 5 kJ.",
        ),
        (
            [
                LostAttempt(nodes=1, seconds=3600, energy_joules=5000, energy_joules_estimated=7000),
                LostAttempt(nodes=4),
            ],
            "2 attempts were lost with their jobs: at least 1 node-hours, 5 kJ, energy of 1 of them not known.",
        ),
    ],
)
def test_lost_attempts_in_words(attempts: list[LostAttempt], words: str) -> None:
    (spec,) = specs([2], 1, 1)
    said = lost_words([(spec, attempt) for attempt in attempts])
    assert said == (f"{words} No figure of a run includes that." if words else "")


def test_lost_attempts_cost_the_rent_of_their_devices() -> None:
    (spec,) = specs([4], 1, 1)  # nodes of 2 devices
    lost = [(spec, LostAttempt(nodes=spec.num_nodes, seconds=1800)), (spec, LostAttempt(nodes=spec.num_nodes))]
    hours = 0.5 * spec.num_nodes
    assert f": at least {hours:g} node-hours, at least {0.5 * spec.world_size * 3:g} USD, energy" in lost_words(
        lost, 3.0
    )


def test_two_jobs_in_a_row_that_did_nothing_stop_their_group(tmp_path: Path) -> None:
    slurm, notes = typed_once(tmp_path, ["too_short"] * 9, specs([1], 1, 2))
    assert len(slurm.jobs) == 2
    assert notes.texts[-1].startswith("1 node: 2 runs not done: 2 jobs in a row ended without a finished run")
    first, second = (files.BLOCK.read(job.folder).minutes for job in slurm.jobs)
    assert second > 1.5 * first, "the second one asks for more time"


def test_jobs_that_vanish_before_they_did_anything_are_no_endless_loop(tmp_path: Path) -> None:
    slurm, notes = typed_once(tmp_path, ["vanished_at_once"] * 99, specs([1], 1, 2))
    assert len(slurm.jobs) == 3
    assert "3 jobs in a row ended without a finished run, the last one: it has left the queue" in notes.texts[-1]


def test_a_node_that_failed_is_used_again_where_too_few_others_are_left(tmp_path: Path) -> None:
    slurm, notes = SimulatedSlurm(tmp_path, faults=["node_fail"], after_runs=[0], refuses="--exclude="), Notes()
    controller(tmp_path, specs([2], 1, 2), slurm, notes).follow()
    assert "Slurm takes no job of 2 nodes without n1000: it may use them again" in notes.texts
    assert len(load_briefs(tmp_path)) == 2


def test_no_more_jobs_at_once_than_an_account_allows(tmp_path: Path) -> None:
    runs = specs([1], 3, 2)
    slurm, notes = SimulatedSlurm(tmp_path, waits=[500.0], most_jobs=2), Notes()
    controller(tmp_path, runs, slurm, notes, jobs="each_run").follow()
    assert slurm.executed == Counter(run.run_id for run in runs)
    assert slurm.most_in_queue == 2
    assert sum("so many jobs at once are not allowed" in text for text in notes.texts) == 1


def test_a_job_left_to_itself_that_died_is_noticed_by_the_next_command(tmp_path: Path) -> None:
    runs = specs([1], 1, 2)
    slurm, notes = SimulatedSlurm(tmp_path, faults=["node_fail"], after_runs=[0]), Notes()
    controller(tmp_path, runs, slurm, notes).follow(detach=True)
    slurm.pass_time(30)
    slurm.pass_time(30)
    controller(tmp_path, runs, slurm, notes).follow(detach=True)
    assert [job.state for job in slurm.jobs] == ["NODE_FAIL", "PENDING"]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    now = datetime.now(UTC)
    first = files.SubmittedJob(number=1, name="wb-1", group="1 node", minutes=3, at=now)
    ledger.change(first)
    with (tmp_path / files.JOBS).open("ab") as jobs:
        jobs.write(b'{"number":1,"name":"w')
    ledger.change(first, id="77")
    assert [(job.number, job.id) for job in read_jobs(tmp_path)] == [(1, "77")]


def test_losses_of_a_run_are_counted_by_all_commands(tmp_path: Path) -> None:
    runs, slurm, notes = specs([2], 1, 1), SimulatedSlurm(tmp_path, faults=["node_fail"] * 9, after_runs=[0]), Notes()
    for _ in range(3):
        controller(tmp_path, runs, slurm, notes).follow(detach=True)
        slurm.pass_time(30)
        slurm.pass_time(30)
    controller(tmp_path, runs, slurm, notes).follow(detach=True)
    assert load_briefs(tmp_path)[runs[0].run_id].status is Status.FAILED
    assert len(slurm.jobs) == 3


def test_a_refusal_is_no_silence_whatever_the_folder_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "sbatch"
    tool.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ClusterProblem, match=r"^sbatch: error: invalid partition specified$") as caught:
        SlurmQueue().submit(tmp_path / "communication" / "job.sh")
    assert not unreachable(caught.value)
    assert unreachable(ClusterProblem("sbatch: error: Batch job submission failed: Zero Bytes were transmitted"))


def test_preempted_again_and_again_is_no_endless_loop(tmp_path: Path) -> None:
    slurm, notes = typed_once(tmp_path, ["preempted"] * 99, specs([1], 1, 1))
    assert len(slurm.jobs) == 5
    assert "5 of its jobs were preempted within an hour" in notes.texts[-1]


def test_a_job_that_somebody_else_cancelled_is_not_submitted_again(tmp_path: Path) -> None:
    slurm, notes = typed_once(tmp_path, ["cancelled"], specs([1], 1, 2))
    assert len(slurm.jobs) == 1
    assert "it was cancelled by uid 0; the same command submits a new job" in notes.texts[-1]


def test_a_job_that_would_wait_for_ever_is_cancelled(tmp_path: Path) -> None:
    slurm, notes = SimulatedSlurm(tmp_path, waits=[1e6]), Notes()
    followed = controller(tmp_path, specs([1], 1, 1), slurm, notes)
    followed._submit_what_is_due()
    slurm.jobs[0].reason = "PartitionTimeLimit"
    followed.follow()
    assert slurm.jobs[0].state == "CANCELLED"
    assert "would wait for ever: PartitionTimeLimit: the partition allows less time" in notes.texts[-1]


def test_a_job_waits_no_longer_than_is_allowed(tmp_path: Path) -> None:
    slurm, notes = SimulatedSlurm(tmp_path, waits=[1e6]), Notes()
    controller(tmp_path, specs([1], 1, 1), slurm, notes, max_pending="2h").follow()
    assert slurm.jobs[0].state == "CANCELLED"
    assert 7200 < slurm.now - 1.8e9 < 7200 + 150
    assert "waited for more than 2h (max_pending)" in notes.texts[-1]


def test_a_silent_queue_proves_nothing(tmp_path: Path) -> None:
    runs = specs([1], 2, 2)
    slurm = SimulatedSlurm(tmp_path, waits=[400.0], silent=[(5, 2000)])
    notes, _ = until_done(tmp_path, runs, slurm)
    assert len(slurm.jobs) == 1
    assert sum("does not answer" in text for text in notes.texts) == 1


def test_runs_that_are_due_while_the_queue_is_silent_are_submitted_when_it_answers(tmp_path: Path) -> None:
    runs, notes = specs([1, 2], 1, 1), Notes()
    slurm = SimulatedSlurm(tmp_path, silent=[(3, 2000)])
    follower = controller(tmp_path, runs, slurm, notes, max_jobs=1)
    follower.follow()
    assert slurm.executed == Counter(run.run_id for run in runs)
    assert (follower.open_runs, follower.unclear_jobs) == ([], [])


@pytest.mark.parametrize(("until", "jobs"), [(60, 2), (5000, 0)])
def test_jobs_that_are_to_be_left_wait_for_a_queue_that_is_silent(until: int, jobs: int, tmp_path: Path) -> None:
    runs, notes = specs([1, 2], 1, 1), Notes()
    slurm = SimulatedSlurm(tmp_path, waits=[1e5], silent=[(0, until)])
    follower = controller(tmp_path, runs, slurm, notes)
    follower.follow(detach=True)
    assert len(slurm.jobs) == jobs
    assert (len(follower.unclear_jobs), len(follower.open_runs)) == ((0, 0) if jobs else (1, 1))
    assert slurm.now - 1.8e9 < 300


def test_jobs_are_cancelled_by_their_names(tmp_path: Path) -> None:
    runs = specs([1, 2], 1, 1)
    slurm, notes = SimulatedSlurm(tmp_path, waits=[1e5]), Notes()
    controller(tmp_path, runs, slurm, notes).follow(detach=True)
    assert [job.state for job in slurm.jobs] == ["PENDING", "PENDING"]
    assert controller(tmp_path, runs, slurm, notes).cancel() == ["1000", "1001"]
    assert [job.state for job in slurm.jobs] == ["CANCELLED", "CANCELLED"]
    notes, _ = until_done(tmp_path, runs, SimulatedSlurm(tmp_path))
    assert len(load_briefs(tmp_path)) == 2


def test_jobs_of_other_executions_of_a_suite_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nodes").mkdir()
    first, second = tmp_path / "nodes/1", tmp_path / "nodes/2"
    slurm, notes = SimulatedSlurm(first, waits=[1e5]), Notes()
    first.mkdir()
    controller(first, specs([1, 2], 1, 1), slurm, notes).follow(detach=True)
    monkeypatch.setattr(session, "SlurmQueue", lambda: slurm)
    assert "jobs 1000, 1001 of another execution" in (said := session.jobs_of_others(second.parent, second))
    assert said.endswith("scancel 1000 1001")
    assert session.jobs_of_others(first.parent, first) == ""
    slurm.cancel(["1000", "1001"])
    assert session.jobs_of_others(second.parent, None) == ""


HISTORIES = {
    "faults": st.lists(st.sampled_from(FAULTS), max_size=12),
    "waits": st.lists(st.sampled_from([1.0, 50.0, 4000.0]), min_size=1, max_size=3),
    "silent": st.lists(st.tuples(st.floats(0, 900), st.floats(0, 1800)), max_size=1),
    "kills": st.lists(st.floats(0, 3000), max_size=3),
    "sizes": st.sampled_from([[1], [1, 2], [1, 2, 4]]),
    "jobs": st.sampled_from(["by_size", "one", "each_run"]),
}


def live_through(folder: Path, history: dict[str, object]) -> SimulatedSlurm:
    """Live through a history; check that each run was done once and nothing was lost."""
    runs = specs(history["sizes"], 2, 2)  # type: ignore[arg-type]
    slurm = SimulatedSlurm(
        folder,
        faults=history["faults"],  # type: ignore[arg-type]
        waits=history["waits"],  # type: ignore[arg-type]
        silent=history["silent"],  # type: ignore[arg-type]
        kill_at=sorted(history["kills"]),  # type: ignore[call-overload]
    )
    notes, _ = until_done(folder, runs, slurm, time_limit="10:00", max_jobs=2, jobs=history["jobs"])
    briefs = load_briefs(folder)
    assert set(briefs) == {run.run_id for run in runs}, notes.texts
    done = Counter(run_id for run_id, brief in briefs.items() if brief.status is Status.OK)
    assert {run_id: slurm.executed[run_id] for run_id in done} == dict(done)
    assert slurm.after_record == []
    assert slurm.most_in_queue <= 2
    return slurm


@given(st.fixed_dictionaries(HISTORIES))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_run_is_lost_or_done_twice(tmp_path_factory: pytest.TempPathFactory, history: dict[str, object]) -> None:
    live_through(tmp_path_factory.mktemp("history"), history)


# Inside a job


def worker(execution: Path, number: int, **more: object) -> Worker:
    folder = files.BLOCKS.path(execution, f"{number:04d}")
    folder.mkdir(parents=True)
    block = files.JobBlock(number=number, name=f"wb-{number}", group="1 node", nodes=1, minutes=3, runs=[], **more)
    return Worker(folder, block)


def test_a_job_waits_for_one_that_may_still_do_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    first, second = worker(tmp_path, 1), worker(tmp_path, 2, after=[1])
    first.me, second.me = "7.0", "8.0"
    first_alive, slept = first.folder / files.ALIVE, list[float]()

    def sleep(duration: float) -> None:
        seconds[0] += duration
        slept.append(seconds[0])
        if seconds[0] in (40, 100):  # it goes on for a while, then there is nothing to be seen of it
            first_alive.write_text(f"7.0 {seconds[0]}")

    monkeypatch.setattr(block_module.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(block_module.time, "sleep", sleep)
    monkeypatch.setattr(Worker, "live", lambda self: None)
    second.wait_for_others()
    assert slept == [], "nobody was there"
    first_alive.write_text("7.0 0")
    second.wait_for_others()
    assert slept[-1] == pytest.approx(100 + block_module.STALE_SECONDS, abs=4)
    files.BLOCK_END.write(first.folder, files.BlockEnd(left=0))
    slept.clear()
    second.wait_for_others()
    assert slept == []
    (second.folder / files.ALIVE).write_text("8.1 3")
    second.wait_for_others()
    assert slept, "the same job, started twice"
    (second.folder / files.REVOKED).touch()
    with pytest.raises(Stop):
        second.wait_for_others()


def test_a_job_on_another_kind_of_node_does_nothing(tmp_path: Path) -> None:
    same_kind(tmp_path, ENVIRONMENT, ClusterOptions())
    same_kind(tmp_path, ENVIRONMENT.changed(host="other"), ClusterOptions())
    other = ENVIRONMENT.changed(machine=ENVIRONMENT.machine.changed(cpu_count=64))
    with pytest.raises(UserError, match=r"another kind \(64 x Any CPU\) than those before \(8 x Any CPU\)") as caught:
        same_kind(tmp_path, other, ClusterOptions())
    assert "set cluster.constraint" in str(caught.value)


def test_nodes_that_were_held_are_told_beside_those_that_runs_used(tmp_path: Path) -> None:
    assert files.read_held(tmp_path) == (None, 0)
    for number, lines in enumerate([[(7200, 3600), (3600, 1800)], [(3600, 1800)], None]):
        place = tmp_path if number == 0 else files.BLOCKS.path(tmp_path, number)
        place.mkdir(exist_ok=True)
        (place / files.ALIVE).touch()
        for held, used in lines or []:
            line = files.HeldNodes(devices=8, held_seconds=held, used_seconds=used).model_dump_json()
            with (place / files.HELD).open("a") as file:
                file.write(f"{line}\n")
    held, silent = files.read_held(tmp_path)
    assert held is not None
    assert (held.held_seconds, held.used_seconds, silent) == (14_400, 7_200, 1)
    text = "Nodes were held for 4 node-hours since the agents started; runs used 50% of that"
    assert held_text(held, 0, None) == f"{text}."
    assert held_text(held, silent, 2.5) == f"{text}. Holding them cost 80 USD. Without 1 job that did not say how long."
    with files.BLOCKS.path(tmp_path, 1).joinpath(files.HELD).open("a") as file:
        file.write('{"devices": 8, "held')  # torn
    assert files.read_held(tmp_path) == (held, silent)


def test_only_one_controller_follows_an_execution(tmp_path: Path) -> None:
    lease = {"host": "login2", "pid": 1, "boot_id": "b", "at": time.time() - 60}
    (tmp_path / files.LEASE).write_text(json.dumps(lease))
    with pytest.raises(Busy, match="process 1 on login2 follows"), leased(tmp_path):
        pass
    (tmp_path / files.LEASE).write_text(json.dumps(lease | {"at": time.time() - 500}))
    with leased(tmp_path):
        assert json.loads((tmp_path / files.LEASE).read_text())["host"] != "login2"
    assert not (tmp_path / files.LEASE).exists()


def test_without_locks_of_files_the_lease_keeps_a_second_controller_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(folder: Path) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(session, "locked", no_locks)
    with ExitStack() as first, ExitStack() as second:
        session.hold(first, tmp_path)
        with pytest.raises(Busy, match="follows the jobs of this execution"):
            session.hold(second, tmp_path)
    with ExitStack() as third:
        session.hold(third, tmp_path)


def test_a_controller_that_stood_still_ends_when_another_one_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RENEWAL_SECONDS", 0.01)
    told = threading.Event()
    monkeypatch.setattr(session.os, "kill", lambda process, number: told.set())
    with leased(tmp_path):
        (tmp_path / files.LEASE).write_text(json.dumps({"host": "login2", "pid": 1, "boot_id": "b", "at": time.time()}))
        assert told.wait(60)
    assert json.loads((tmp_path / files.LEASE).read_text())["host"] == "login2", "it is not ours to remove"
