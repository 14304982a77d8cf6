"""Runs on several nodes: how they are planned, what each node leaves, and energy that every node reads by its own clock."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analytics.judge.compare import within
from analytics.law.series import fit
from analytics.runs.frame import frame
from analytics.runs.share import scrubbed
from analytics.say import curves
from analytics.say.blocks import Figure, Group, Mark
from app.charts.curves import block_chart
from app.pages.nodes import nodes as nodes_of
from bench import folder as files
from bench.figures.flags import judge
from bench.figures.metrics import metrics, row
from bench.figures.nodes import energy_of_each, forward_seconds
from bench.machine import cluster
from bench.machine.cluster import Cluster
from bench.meters.trace import Trace
from bench.record import Environment, LostAttempt, NetworkFacts, NodeFacts, Phase, Provenance, Rank, RunRecord, Status
from bench.run.collect import Context, cancelled_attempt, collect
from bench.run.nodes import NodeTrace, node_facts, put_together
from bench.schema import Machine, RunSpec, Site, Suite
from bench.suites.expand import expand
from bench.suites.load import SuiteError, override
from tests import rows
from tests.test_collect import counter, phase

S = 10**9
SPEC = RunSpec(
    workload="synthetic",
    device_type="cpu",
    num_nodes=2,
    devices_per_node=2,
    batch_size_per_device=1,
    measure_steps=1,
    meters=["rapl"],
)
NAMES = ["n1", "n2"]


def node(host: str, **machine: Any) -> Environment:
    values = {"cpu_model": "Synthetic CPU", "cpu_count": 2} | machine
    return rows.environment(host).changed(machine=Machine(**values), cluster={"engine": "slurm", "partition": "p"})


def allocation(nodes: int = 2, cpus: int = 2, **more: Any) -> Cluster:
    machines = [node(f"host{k}", cpu_count=cpus) for k in range(nodes)]
    names = [f"n{k}" for k in range(1, nodes + 1)]
    return Cluster(
        **dict(machines[0].machine), **{"job": "7", "names": names, "nodes": machines, "addresses": names} | more
    )


def suite(**fields: Any) -> Suite:
    arguments = {"preset": "tiny"}
    defaults = {"workload": "decoder_lm", "workload_args": arguments, "batch_size_per_device": 1, "device_type": "cpu"}
    return Suite(name="s", defaults=defaults, matrix=dict(fields.items()))


# --- the plan


def test_more_devices_than_a_node_has_take_whole_nodes() -> None:
    plan = expand(suite(devices=[1, 2, 4, 8]), allocation(nodes=4))
    assert [(run.num_nodes, run.devices_per_node, run.world_size) for run in plan.runs] == [
        (1, 1, 1),
        (1, 2, 2),
        (2, 2, 4),
        (4, 2, 8),
    ]
    assert {run.launcher for run in plan.runs} == {"slurm"}
    assert plan.skipped == {}
    auto = expand(suite(devices="auto"), allocation(nodes=3, cpus=4))
    assert [run.world_size for run in auto.runs] == [1, 2, 4, 8, 12]


def test_a_layout_divides_devices_over_nodes_otherwise() -> None:
    plan = expand(suite(layout=["2x1", "1x2"]), allocation())
    assert [(run.num_nodes, run.devices_per_node) for run in plan.runs] == [(2, 1), (1, 2)]
    assert len({run.config_id for run in plan.runs}) == 2
    for wrong in ("2", "2x", "0x2", "2 x 2", 4):
        with pytest.raises(SuiteError, match="layout: give nodes x devices"):
            expand(suite(layout=[wrong]), allocation())
    with pytest.raises(SuiteError, match="give devices or layout, not both"):
        expand(suite(layout=["2x1"], devices=[4]), allocation())


def test_rules_know_the_nodes_of_a_cell() -> None:
    def left(exclude: list[Any], **axes: Any) -> list[tuple[int, int, str]]:
        plan = expand(suite(**axes).changed(exclude=exclude), allocation(nodes=4))
        return [(run.num_nodes, run.devices_per_node, run.precision.name) for run in plan.runs]

    axes: dict[str, Any] = {"devices": [2, 4], "precision": ["fp32", "bf16"]}
    assert left([{"num_nodes": 2, "precision": "fp32"}], **axes) == [(1, 2, "fp32"), (1, 2, "bf16"), (2, 2, "bf16")]
    assert left([{"num_nodes": [2, 4]}], devices="auto") == [(1, 1, "fp32"), (1, 2, "fp32")]
    assert left([{"num_nodes": 2}], layout=["2x1", "1x2"]) == [(1, 2, "fp32")]
    assert left([{"num_nodes": 1}], devices=[1, 2, 8]) == [(4, 2, "fp32")]
    with pytest.raises(SuiteError, match="must be a multiple"):  # a mistake is told, never left out
        left([{"num_nodes": [1, 2]}], devices=[5])


@pytest.mark.parametrize("value", ["two", 0, 2.0, True, [2, "x"]])
def test_a_rule_with_no_number_of_nodes_is_a_mistake(value: Any) -> None:
    with pytest.raises(SuiteError, match=r"exclude\[0\]: num_nodes must be a whole number from 1"):
        override(suite(devices=[1, 2]).changed(exclude=[{"num_nodes": value}]), [])


def test_only_a_rule_has_a_number_of_nodes() -> None:
    for part in ({"include": [{"num_nodes": 2}]}, {"matrix": {"num_nodes": [2]}}, {"defaults": {"num_nodes": 2}}):
        with pytest.raises(
            SuiteError, match="unknown field 'num_nodes': nodes follow from devices; layout: 2x4 asks for 2"
        ):
            override(Suite.model_validate({"name": "x", **part}), [])


@pytest.mark.parametrize(("name", "option"), [("hsdp", "shard"), ("fsdp_tp", "size")])
def test_groups_are_nodes_where_a_run_crosses_them(name: str, option: str) -> None:
    def of(value: Any, **axes: Any) -> dict[str, Any]:
        (run,) = expand(suite(parallelism=[value], **axes), allocation(nodes=4, cpus=4)).runs
        return run.parallelism.options

    assert of(name, devices=[8]) == {option: 4}
    assert of({"name": name}, layout=["4x3"]) == {option: 3}
    assert of({"name": name, option: 2}, devices=[8]) == {option: 2}  # as asked
    assert of(name, devices=[4]) == {}  # one node
    assert of(name, layout=["4x1"]) == {}  # no group of one device


def test_a_count_that_is_no_multiple_names_the_two_nearest() -> None:
    with pytest.raises(SuiteError, match="more than the 2 of one node must be a multiple of them, such as 4 or 6"):
        expand(suite(devices=[5]), allocation(nodes=4))


def test_what_the_allocation_cannot_do_is_skipped_with_the_reason() -> None:
    reasons = expand(suite(devices=[8]), allocation()).skipped.values()
    assert list(reasons) == ["needs 4 nodes; there are 2"]
    here = Machine(cpu_model="x", cpu_count=2)
    assert list(expand(suite(layout=["2x1"]), here).skipped.values()) == ["needs 2 nodes; this is one machine"]
    cold = expand(suite(devices=[4], cold=[True]), allocation()).skipped.values()
    assert list(cold) == ["cold runs are those of one machine: leave out cold, or take fewer devices"]


def test_a_configuration_is_the_same_whoever_launches_it() -> None:
    here = expand(suite(devices=[2]), Machine(cpu_model="x", cpu_count=2)).runs[0]
    there = expand(suite(devices=[2]), allocation()).runs[0]
    assert (here.launcher, there.launcher) == ("local", "slurm")
    assert here.config_id == there.config_id
    assert here.config_id != expand(suite(devices=[4]), allocation()).runs[0].config_id


# --- the allocation


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("29:58", 1798), ("1:00:00", 3600), ("2-03:04:05", 183_845), ("UNLIMITED", None), ("INVALID", None), ("0:00", 0)],
)
def test_the_time_left_is_read_as_squeue_writes_it(left: str, seconds: int | None) -> None:
    assert cluster.time_left(left) == seconds


@pytest.mark.parametrize(
    ("listed", "state", "left"),
    [
        ("7|RUNNING|29:58|NO\n", "RUNNING", "29:58"),
        (
            "8|PENDING|1:00:00|OK\n7|RUNNING|0:30|NO\n9|RUNNING|0:40|OK\n",
            "RUNNING",
            "0:30",
        ),  # an array with the same id
        ("8|RUNNING|1:00:00|NO\n", "", ""),
        ("", "", ""),
    ],
)
def test_a_job_is_told_from_others_of_its_array(
    listed: str, state: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ask_slurm", lambda *command: listed)
    assert cluster._asked("7") == (state, left, "NO" if state else "")
    assert allocation().running() is (state == "RUNNING")


def test_slurm_that_does_not_answer_is_no_end_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(message: str) -> Any:
        def call(*command: str) -> str:
            raise cluster.ClusterProblem(message)

        return call

    monkeypatch.setattr(cluster, "ask_slurm", fail("squeue did not answer within 60 s"))
    assert allocation().running()
    monkeypatch.setattr(cluster, "ask_slurm", fail("slurm_load_jobs error: Invalid job id specified"))
    assert not allocation().running()


def test_a_job_that_slurm_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*command: str) -> str:
        if command[0] == "squeue":
            raise cluster.ClusterProblem("squeue: slurm_load_jobs error: Invalid job id specified")
        return "n1 n2"

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    monkeypatch.setattr(cluster, "ask_slurm", ask)
    monkeypatch.setattr(cluster.shutil, "which", lambda tool: tool)
    with pytest.raises(cluster.ClusterProblem, match="SLURM_JOB_ID is 7, which this Slurm does not know"):
        cluster.find_cluster()


def test_a_job_of_one_node_is_this_machine_where_it_runs_there() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    assert not cluster.several_nodes({})
    assert cluster.several_nodes(job)  # a shell of salloc on a login node
    assert not cluster.several_nodes(job | {"SLURMD_NODENAME": "n1"})
    assert cluster.several_nodes(job | {"SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "2"})


def test_a_launcher_that_the_place_does_not_have_is_a_mistake() -> None:
    here = Machine(cpu_model="x", cpu_count=2)
    with pytest.raises(SuiteError, match="launcher 'slurm': this is not inside a Slurm allocation"):
        expand(suite(launcher=["slurm"]), here)
    with pytest.raises(SuiteError, match="launcher 'local': this is inside a Slurm allocation"):
        expand(suite(launcher=["local"], devices=[4]), allocation())


def test_an_execution_is_resumed_on_other_nodes_of_the_same_kind() -> None:
    one, other = node("a"), node("b")
    assert one.fingerprint == other.fingerprint == one.kind
    assert one.fingerprint != node("a", cpu_count=4).fingerprint
    assert one.fingerprint != one.changed(cluster={"engine": "slurm", "partition": "q"}).fingerprint
    assert one.fingerprint == one.changed(cluster={**one.cluster, "node": "n7"}).fingerprint
    alone = rows.environment("a")
    assert alone.fingerprint != rows.environment("b").fingerprint


# --- how a run ended


def end(number: int, how: str = "ended", exitcode: int | None = 0, **more: Any) -> files.NodeEnd:
    exit_ = files.Exit(how=how, exitcode=exitcode, start_ns=S, end_ns=3 * S)
    return files.NodeEnd(node=number, name=NAMES[number], boot_id=f"boot-{number}", exit=exit_, **more)


@pytest.mark.parametrize(
    ("ends", "how", "exitcode"),
    [
        ([end(0), end(1)], "ended", 0),
        ([end(0, "cancelled", None), end(1, exitcode=1)], "ended", 1),
        ([end(0, exitcode=1), end(1, "cancelled", None)], "ended", 1),
        ([end(0, "timeout", None), end(1, exitcode=1)], "timeout", None),
        ([end(0)], "node_died", None),
        ([end(0, exitcode=1)], "ended", 1),
        ([], "node_died", None),
        ([end(0, "cancelled", None), end(1, "cancelled", None)], "cancelled", None),
    ],
)
def test_the_first_failure_decides_how_a_run_ended(
    ends: list[files.NodeEnd], how: str, exitcode: int | None, tmp_path: Path
) -> None:
    for each in ends:
        files.write_node_end(tmp_path, each)
    found = put_together(tmp_path, NAMES, 5.0, "no answer from n2")
    assert (found.how, found.exitcode) == (how, exitcode)
    assert (found.message == "no answer from n2") == (how == "node_died")
    assert [each.name for each in files.NODES.read(tmp_path)] == NAMES
    assert files.EXIT.read(tmp_path) == found
    assert files.NODE_ENDS.paths(tmp_path) == []
    first = any(each.node == 0 for each in ends)
    assert (found.start_ns, found.end_ns) == ((S, 3 * S) if first else (0, 5 * S))


# --- energy: what each node read, by its own clock

OFFSET = 500.0
"""How far the clock of the second node is ahead of that of the first, in seconds."""
PHASES = [phase("start", 12, 15), phase("warmup", 15, 20), phase("steady", 20, 30), phase("eval", 30, 33)]
PHASES += [phase("steady", 33, 40)]


def later(lines: list[str]) -> list[str]:
    return [json.dumps(row | {"t_ns": row["t_ns"] + round(OFFSET * S)}) for row in map(json.loads, lines)]


def cpu(watts: float) -> list[str]:
    return counter("intel-rapl:0", watts, "rapl", "cpu")


def two_nodes(
    folder: Path,
    meters: list[list[str]],
    boots: tuple[str, str] = ("a" * 8, "b" * 8),
    spec: RunSpec = SPEC,
    second: Sequence[dict[str, Any]] = PHASES,
) -> RunRecord:
    """Collect a run whose window took 17 s on each node, with what their meters read."""
    folder.mkdir()
    ranks = [Rank(rank=k, device="cpu", window_seconds=17, forward_seconds_median=0.1 * (1 + k // 2)) for k in range(4)]
    measured = rows.record(4, readings="").measurement
    assert measured is not None
    result = measured.changed(phases=[Phase(**each) for each in PHASES], ranks=ranks, window_seconds=17)
    files.RESULT.write(folder, result)
    for number, lines in enumerate(meters):
        shift = round(OFFSET * S) * number
        phases = [
            Phase(**each).changed(start_ns=each["start_ns"] + shift, end_ns=each["end_ns"] + shift)
            for each in (second if number else PHASES)
        ]
        exit_ = files.Exit(how="ended", exitcode=0, start_ns=11 * S + shift, end_ns=50 * S + shift)
        one = files.NodeEnd(node=number, name=NAMES[number], boot_id=boots[number], exit=exit_)
        network = NetworkFacts(interface=f"eth{number}")
        files.write_node_end(folder, one.changed(timeline=files.Timeline(phases=phases), network=network))
        if lines:
            rows_ = later(lines) if number else lines
            files.RAW_METERS.path(folder, number).write_text("\n".join(rows_) + "\n")
    put_together(folder, NAMES, 39.0, "")
    kinds = [node("x"), node("y")]
    record = collect(Context("s", "e", Site(), kinds[0], [], nodes=kinds), spec, folder)
    assert RunRecord.model_validate_json((folder / "record.json").read_text()) == record
    return record


def test_the_energy_of_two_nodes_is_the_sum_over_the_window_of_each(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(300)])
    assert record.status is Status.OK
    assert record.measurement is not None
    joules = {reading.device: reading.energy_joules for reading in record.measurement.energy}
    assert joules == pytest.approx({"aaaaaaaa:intel-rapl:0": 1700, "bbbbbbbb:intel-rapl:0": 5100}, rel=1e-3)
    assert sum(reading.energy_joules for reading in record.energy) == pytest.approx(400 * 39, rel=1e-3)
    phases = {each.name: sum(r.energy_joules for r in each.energy) for each in record.measurement.phases}
    assert phases["eval"] == pytest.approx(400 * 3, rel=1e-3)
    assert sum(r.energy_joules for r in record.measurement.startup) == pytest.approx(400 * 9, rel=1e-3)
    assert [(each.name, each.first_rank, each.window_seconds) for each in record.nodes] == [
        ("n1", 0, 17),
        ("n2", 2, 17),
    ]
    assert metrics(record)["joules_per_sample"] == pytest.approx(6800 / record.measurement.samples, rel=1e-3)


def test_phases_that_one_node_alone_has_get_no_energy_of_the_others(tmp_path: Path) -> None:
    """Rank 0 alone validates, so that the first part of its window would be taken for all of the window of the other."""
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(300)], second=[*PHASES[:2], phase("steady", 20, 40)])
    assert record.measurement is not None
    assert [each.energy for each in record.measurement.phases] == [[]] * len(record.measurement.phases)
    assert record.measurement.energy
    assert not [name for name in metrics(record) if name.startswith("phase_") and "energy" in name]


def test_what_a_cancelled_run_has_cost_is_known_where_all_nodes_tell(tmp_path: Path) -> None:
    context = Context("s", "e", Site(), node("x"), [], nodes=[node("x"), node("y")])
    assert cancelled_attempt(context, SPEC, tmp_path) is None, "nothing was delivered"
    early = [[line for line in cpu(watts) if json.loads(line)["t_ns"] <= 40 * S] for watts in (100, 300)]
    for name, meters in (("both", [cpu(100), cpu(300)]), ("one", [cpu(100), []]), ("early", early)):
        folder = tmp_path / name
        folder.mkdir()
        files.SPEC.write(folder, SPEC)
        for number, lines in enumerate(meters):
            shift = round(OFFSET * S) * number
            exit_ = files.Exit(how="cancelled", start_ns=11 * S + shift, end_ns=50 * S + shift)
            one = files.NodeEnd(node=number, name=NAMES[number], boot_id=f"boot-{number}", exit=exit_)
            files.write_node_end(folder, one)
            if lines:
                text = "\n".join(later(lines) if number else lines)
                files.RAW_METERS.path(folder, number).write_text(text + "\n")
        put_together(folder, NAMES, 39.0, "")
    both, one_only, least = (cancelled_attempt(context, SPEC, tmp_path / name) for name in ("both", "one", "early"))
    assert both is not None
    assert both.energy_joules == pytest.approx(400 * 39, rel=1e-3)
    assert both.changed(energy_joules=None) == LostAttempt(nodes=2, seconds=39, components=["cpu"])
    assert one_only == LostAttempt(nodes=2, seconds=39), "no smaller sum"
    assert least is not None
    assert (least.energy_joules, least.energy_at_least) == (pytest.approx(400 * 29, rel=1e-3), True)


def test_the_page_of_a_run_has_a_row_for_each_node(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(300)])
    table = nodes_of(record)
    assert list(table["Network"]) == ["eth0", "eth1"]
    assert list(table["Node"]) == ["n1", "n2"]
    assert list(table["Ranks"]) == ["0 to 1", "2 to 3"]
    assert list(table["Energy [J]"]) == pytest.approx([1700, 5100], rel=1e-3)
    assert list(table["Window [s]"]) == [17, 17]
    assert list(table["Against the others"]) == pytest.approx([0.5, 2])
    alike = two_nodes(tmp_path / "alike", [cpu(100), cpu(100)], boots=("c" * 8, "c" * 8))
    assert "Energy [J]" not in nodes_of(alike), "nodes that cannot be told apart"


def test_the_figure_marks_where_nodes_are_crossed() -> None:
    def curve(*points: tuple[int, int | None]) -> Any:
        found = [SimpleNamespace(devices=devices, num_nodes=nodes) for devices, nodes in points]
        return SimpleNamespace(series=SimpleNamespace(points=found))

    edge = curves.boundary([curve((1, 1), (4, 1)), curve((8, 2), (16, 4))])
    assert edge is not None
    assert 4 < edge < 8
    marks = (Mark("a", 9, x=4), Mark("b", 12, x=8))
    drawn = block_chart(Figure("Speed", "samples/s", (Group("a", marks),), "devices", node=edge))
    assert [10**note.x for note in drawn.layout.annotations] == pytest.approx([edge])
    assert [line.x0 for line in drawn.layout.shapes] == pytest.approx([edge])
    assert curves.boundary([curve((1, 1), (4, 1))]) is None
    assert curves.boundary([curve((4, 1), (4, 2))]) is None, "devices that say nothing about nodes"
    assert curves.boundary([curve((4, None), (8, None))]) is None


def test_a_node_without_readings_leaves_no_smaller_sum(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), []])
    assert record.measurement is not None
    assert record.measurement.energy == record.energy == []
    assert "energy_absent" in record.flags
    dram = counter("intel-rapl:0:0", 10, "rapl", "dram")
    record = two_nodes(tmp_path / "other", [[*cpu(100), *dram], cpu(300)])
    assert record.measurement is not None
    assert {reading.component for reading in record.measurement.energy} == {"cpu"}
    assert "partial_total" in record.flags


def test_what_one_node_measures_and_another_estimates_is_no_measured_sum(tmp_path: Path) -> None:
    estimated = counter("cpu", 50, "codecarbon", "cpu")
    spec = SPEC.changed(meters=["rapl", "codecarbon"])
    record = two_nodes(tmp_path / "run", [[*cpu(100), *estimated], estimated], spec=spec)
    assert record.measurement is not None
    assert {reading.source for reading in record.measurement.energy} == {"codecarbon"}
    assert "energy_estimated" in record.flags
    assert sum(r.energy_joules for r in record.measurement.energy) == pytest.approx(2 * 50 * 17, rel=1e-2)


def test_what_two_nodes_of_one_machine_share_counts_once(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(100)], boots=("c" * 8, "c" * 8))
    assert record.measurement is not None
    assert sum(r.energy_joules for r in record.measurement.energy) == pytest.approx(1700, rel=1e-3)


def test_the_readings_of_all_nodes_are_kept_in_one_file_by_the_clock_of_the_first(tmp_path: Path) -> None:
    two_nodes(tmp_path / "run", [cpu(100), cpu(300)])
    assert [path.name for path in (tmp_path / "run").glob("meters-*")] == ["meters-0.parquet"]
    trace = Trace.read(tmp_path / "run" / "meters-0.parquet")
    assert [device for _, _, device in trace.devices] == ["node-0:intel-rapl:0", "node-1:intel-rapl:0"]
    joules = {reading.device: reading.energy_joules for reading in trace.energy(20 * S, 40 * S)}
    assert joules == pytest.approx({"node-0:intel-rapl:0": 2000, "node-1:intel-rapl:0": 6000}, rel=1e-3)


def test_a_slow_node_and_nodes_of_different_kinds_are_flagged(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(300)])
    found = metrics(record)
    assert (found["straggler_node"], found["straggler_node_ratio"]) == (1, pytest.approx(2))
    assert "straggler_node" in record.flags
    assert not {"mixed_nodes", "windows_differ"} & set(record.flags)
    from bench.figures.flags import judge

    fact = NodeFacts(name="n1", kind="k", first_rank=0, ended="ended", exitcode=0, window_seconds=17)
    nodes = [fact, fact.changed(name="n2", kind="other", window_seconds=17.2)]
    assert {"mixed_nodes", "windows_differ"} <= judge(record.changed(nodes=nodes), found)
    part = record.environment.changed(cluster={"engine": "slurm", "shared": "others may use the rest of the node"})
    assert "shared_node" in judge(record.changed(environment=part), found)
    assert "shared_node" not in judge(record.changed(environment=cluster._alone(part)), found)


@pytest.mark.parametrize(
    ("kind", "message"), [("peer", "no answer from n2"), ("failed", "rank 1 on n1: Connection closed by peer")]
)
def test_a_node_without_an_answer_is_the_cause_where_the_others_only_lost_their_peer(
    kind: files.ErrorKind, message: str, tmp_path: Path
) -> None:
    lost = files.RankError(kind=kind, type="RuntimeError", message="Connection closed by peer", rank=1)
    files.write_error(tmp_path, lost)
    files.write_node_end(tmp_path, end(0, exitcode=1, ranks=[files.RankExit(rank=1, exitcode=1)]))
    put_together(tmp_path, NAMES, 5.0, "no answer from n2")
    record = collect(Context("s", "e", Site(), node("x"), []), SPEC, tmp_path)
    assert record.error is not None
    assert record.error.message == message


def test_a_failure_names_the_node(tmp_path: Path) -> None:
    files.write_node_end(tmp_path, end(0, "cancelled", None, ranks=[files.RankExit(rank=0, exitcode=1)]))
    files.write_node_end(tmp_path, end(1, exitcode=1, ranks=[files.RankExit(rank=3, exitcode=-9)]))
    put_together(tmp_path, NAMES, 5.0, "")
    record = collect(Context("s", "e", Site(), node("x"), []), SPEC, tmp_path)
    assert record.error is not None
    assert record.error.message == "rank 3 on n2 was ended by SIGKILL"
    assert [(each.name, each.ended, each.exitcode) for each in record.nodes] == [
        ("n1", "cancelled", None),
        ("n2", "ended", 1),
    ]


def test_what_each_node_took_adds_up_to_the_whole(tmp_path: Path) -> None:
    record = two_nodes(tmp_path / "run", [cpu(100), cpu(300)])
    each = [sum(reading.energy_joules for reading in some) for some in energy_of_each(record)]
    assert each == pytest.approx([1700, 5100], rel=1e-3)
    assert forward_seconds(record) == pytest.approx({0: 0.1, 1: 0.2})
    shared = two_nodes(tmp_path / "shared", [cpu(100), cpu(300)], boots=("a" * 8, "a" * 8))
    assert energy_of_each(shared) == [], "nodes of one boot cannot be told apart"


def test_gpus_belong_to_the_node_of_their_rank() -> None:
    record = rows.record(2, num_nodes=2, readings="")
    assert record.measurement is not None
    ranks = [Rank(rank=k, device=f"GPU-{k}", window_seconds=1) for k in range(4)]
    energy = [rows.reading(10.0 * (k + 1), Provenance.MEASURED_COUNTER_INTERP, "gpu", f"GPU-{k}") for k in range(4)]
    measured = record.measurement.changed(ranks=ranks, energy=energy)
    facts = [NodeFacts(name=f"n{k}", boot_id=f"{k}" * 8, first_rank=2 * k, ended="ended") for k in range(2)]
    run = record.changed(measurement=measured, nodes=facts)
    assert [[r.energy_joules for r in some] for some in energy_of_each(run)] == [[10, 20], [30, 40]]
    stray = measured.changed(energy=[*energy, rows.reading(1.0, Provenance.MEASURED_COUNTER_INTERP, "gpu", "GPU-9")])
    assert energy_of_each(run.changed(measurement=stray)) == [], "no smaller sums"


@pytest.mark.parametrize(
    ("began", "lasted", "skew", "flagged"),
    [
        (0.0, 2.0, 0.0, False),
        (5.0, 2.0, 5.0, True),
        (-3.0, 2.0, -3.0, True),
        (1.5, 0.5, 0.0, False),
        (0.8, 2, 0.8, False),
    ],
)
def test_a_wall_clock_that_is_ahead_is_told(
    began: float, lasted: float, skew: float, flagged: bool, tmp_path: Path
) -> None:
    """A node that begins late ends with the others: that is no skew."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number, late, seconds in ((0, 0.0, 2.0), (1, began, lasted)):
        exit_ = files.Exit(how="ended", exitcode=0, start_ns=S, end_ns=S + round(seconds * S))
        exit_ = exit_.changed(started_at=start + timedelta(seconds=late))
        files.write_node_end(tmp_path, files.NodeEnd(node=number, name=NAMES[number], exit=exit_))
    put_together(tmp_path, NAMES, 5.0, "")
    traces = [NodeTrace(name, None, S, 3 * S) for name in NAMES]
    facts = node_facts(tmp_path, SPEC, traces, [])
    assert [each.clock_skew_seconds for each in facts] == [0.0, pytest.approx(skew)]
    run = rows.record(2, num_nodes=2, readings="").changed(nodes=facts)
    assert ("clocks_differ" in judge(run, {})) == flagged


def test_sides_on_disjoint_nodes_are_flagged() -> None:
    def side(names: str, precision: str) -> list[dict[str, Any]]:
        return [rows.make(2, precision=precision, repeat=k, num_nodes=2) | {"node_names": names} for k in range(3)]

    def flags(a: str, b: str) -> bool:
        (found,) = within(frame([*side(a, "fp32"), *side(b, "bf16")]), ["samples_per_second"], 0.02).comparisons
        return "other_nodes" in found.flags

    assert flags("n1 n2", "n3 n4")
    assert not flags("n1 n2", "n2 n3")
    assert not flags("n1 n2", "")
    record = rows.record(num_nodes=2, devices=2)
    assert "node_names" not in row(record)
    on = record.changed(environment=node("x").changed(cluster={"engine": "slurm", "node": "n5"}))
    assert row(on)["node_names"] == "n5"
    facts = [NodeFacts(name=name, first_rank=0, ended="ended") for name in NAMES]
    assert row(on.changed(nodes=facts))["node_names"] == "n1 n2"


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
def test_a_resumed_suite_on_other_nodes_has_one_law(launcher: str) -> None:
    records = [rows.record(d, repeat=k, launcher=launcher) for d in (1, 2) for k in range(2)]
    made = [row(one.changed(environment=node(f"host{one.spec.world_size}"))) for one in records]
    assert [one.devices for one in fit(frame(made)).series] == [(1, 2)]
    alone = [rows.make(d, repeat=k, host=f"host{d}") for d in (1, 2) for k in range(2)]
    assert len(fit(frame(alone)).series) == 2


def test_names_of_nodes_are_not_handed_on() -> None:
    record = rows.record(host="n1.site").changed(environment=node("n1.site").changed(cluster={"node": "n1"}))
    text = scrubbed([record])[0].model_dump_json()
    assert "n1" not in text
