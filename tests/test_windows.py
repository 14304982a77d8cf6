"""Energy of a run by window, phase and node: every joule once."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.folder import IDLE_TIMES, IDLE_TRACE
from bench.meters.meter import Reading
from bench.meters.sidecar import Sidecar
from bench.meters.trace import Trace
from bench.meters.windows import (
    CountedTwice,
    contiguous,
    energy,
    idle_power,
    over_nodes,
    read_trace,
    used,
)
from bench.record import EnergyReading, Phase, Provenance
from bench.run.node import Node, measure_idle
from tests import rows
from tests.fake_nvml import environment, fake_gpu

ROOT = Path(__file__).parent.parent
S = 10**9


def reading(component: str = "gpu", device: str = "GPU-0", joules: float = 100.0) -> EnergyReading:
    return rows.reading(joules, component=component, device=device)


def node(gpus: int = 8) -> list[EnergyReading]:
    out = [reading(device=f"GPU-{i}") for i in range(gpus)]
    return [*out, reading("cpu", "intel-rapl:0"), reading("dram", "intel-rapl:0:0", 10)]


def gpu(t: float, joules: float, device: str = "GPU-0", **more: object) -> Reading:
    values = {"source": "nvml", "component": "gpu", "device": device, "energy_uj": round(joules * 1e6)} | more
    return Reading(t_ns=round(t * S), wall_ns=1, **values)  # type: ignore[arg-type]


def cpu(t: float, joules: float) -> Reading:
    return gpu(t, joules, "intel-rapl:0", source="rapl", component="cpu", wrap_uj=262_143_328_850)


def phases(*cuts: int) -> list[Phase]:
    return [Phase(name=f"p{i}", start_ns=a, end_ns=b) for i, (a, b) in enumerate(pairwise(cuts))]


# --- which readings are the run's


def test_gpus_that_no_rank_used_are_apart_and_nothing_is_lost() -> None:
    readings = node(4)
    mine, idle = used(readings, ["GPU-1", "GPU-1", "GPU-3"])
    assert [r.device for r in mine] == ["GPU-1", "GPU-3", "intel-rapl:0", "intel-rapl:0:0"]
    assert [r.device for r in idle] == ["GPU-0", "GPU-2"]
    assert sorted(r.device for r in mine + idle) == sorted(r.device for r in readings)
    assert used(iter(readings), [])[1] == readings[:4]
    assert used([], ["GPU-0"]) == ([], [])


def test_eight_ranks_of_one_node_count_its_processors_once() -> None:
    found = over_nodes([("boot-a", node(8))])
    assert sum(r.energy_joules for r in found) == 8 * 100 + 100 + 10
    assert [r.device for r in found] == [r.device for r in node(8)]


def test_nodes_with_processors_of_one_name_are_both_counted() -> None:
    second = [reading(device=f"GPU-{i + 8}") if r.component == "gpu" else r for i, r in enumerate(node(8))]
    found = over_nodes([("aaaaaaaa-1", node(8)), ("bbbbbbbb-2", second)])
    assert sum(r.energy_joules for r in found) == 2 * (800 + 110)
    assert len({(r.component, r.device) for r in found}) == len(found) == 20
    assert {r.device for r in found if r.component == "cpu"} == {"aaaaaaaa:intel-rapl:0", "bbbbbbbb:intel-rapl:0"}


def test_a_gpu_that_two_nodes_list_is_an_error() -> None:
    with pytest.raises(CountedTwice, match="gpu GPU-0 of boot b is counted twice"):
        over_nodes([("a", [reading()]), ("b", [reading()])])


def test_two_sidecars_on_one_node_are_an_error_and_not_twice_the_energy() -> None:
    with pytest.raises(CountedTwice, match="two sidecars on one node"):
        over_nodes([("a", [reading("cpu", "p0")]), ("a", [reading("cpu", "p0")])])
    with pytest.raises(CountedTwice):
        over_nodes([("a", [reading(), reading()])])
    assert over_nodes([]) == []


# --- pauses


def test_pauses_are_left_out_however_near_they_are_to_each_other() -> None:
    """Evaluation and, a hair later, a checkpoint: what lies between them is too short for a reading of its own."""
    trace = Trace([gpu(t * 0.095, 300 * (t * 95 // 100) * 0.1) for t in range(400)])
    pauses = [(10 * S, 12 * S), (12 * S + 180_000, 15 * S), (20 * S, 20 * S + 50_000_000)]
    (found,) = energy(trace, 5 * S, 25 * S, ["nvml"], pauses)
    trained = 20 - 5 - 0.05 + 180e-6
    assert found.seconds == pytest.approx(trained)
    assert found.energy_joules == pytest.approx(300 * trained, rel=0.002)
    assert (found.coverage, found.flags) == (1, [])
    assert found.uncertainty_joules == pytest.approx(
        sum(r.uncertainty_joules or 0 for a, b in [(5 * S, 25 * S), *pauses] for r in trace.energy(a, b)), rel=0.5
    )
    (short,) = energy(trace, 5 * S, 25 * S, ["nvml"], [(5 * S, 24 * S)])
    assert "window_too_short" in short.flags
    assert energy(trace, 5 * S, 25 * S, ["nvml"], [(5 * S, 25 * S)]) == []


# --- phases


def test_phases_fill_the_run() -> None:
    made = contiguous(phases(10, 20, 30), 5, 40)
    assert [(p.name, p.start_ns, p.end_ns) for p in made] == [
        ("launch", 5, 10), ("p0", 10, 20), ("p1", 20, 30), ("tail", 30, 40),
    ]  # fmt: skip
    apart = [Phase(name="a", start_ns=10, end_ns=12), Phase(name="b", start_ns=20, end_ns=30)]
    assert [(p.name, p.start_ns, p.end_ns) for p in contiguous(apart, 10, 30)] == [("a", 10, 20), ("b", 20, 30)]
    assert contiguous([], 0, 10) == []


@given(
    steps=st.lists(st.tuples(st.integers(S // 12, S // 3), st.integers(1, 10**9)), min_size=60, max_size=80),
    cuts=st.dictionaries(st.integers(1, 8), st.integers(0, 30_000), min_size=2),
    source=st.sampled_from(["nvml", "rapl", "power"]),
    grid=st.booleans(),
)
def test_phases_add_up_to_the_whole_run_to_the_microjoule(
    steps: list[tuple[int, int]], cuts: dict[int, int], source: str, grid: bool
) -> None:
    t, total, rows = 3, 17, []
    for gap, size in steps:
        t, total = t + (S // 11 if grid else gap), total + size % (90 * S // 1000)
        if source == "power":
            rows.append(gpu(t / S, 0, energy_uj=None, power_mw=size // 1000))
        else:
            rows.append(gpu(t / S, total / 1e6) if source == "nvml" else cpu(t / S, total / 1e6))
    trace, first, last = Trace(rows), rows[0].t_ns, rows[-1].t_ns
    inner = sorted(first + (last - first) * (111_111 * n + off) // 10**6 for n, off in cuts.items())
    filled = contiguous(phases(*inner), first, last)
    assert [p.start_ns for p in filled[1:]] == [p.end_ns for p in filled[:-1]]
    assert (filled[0].start_ns, filled[-1].end_ns) == (first, last)
    meters = ["rapl" if source == "rapl" else "nvml"]
    parts = [energy(trace, p.start_ns, p.end_ns, meters) for p in filled]
    assume(all(parts))  # a phase without a reading inside is absent, not 0
    (whole,) = energy(trace, first, last, meters)
    assert sum(round(r.energy_joules * 1e6) for (r,) in parts) == round(whole.energy_joules * 1e6)
    (rest,) = energy(trace, first, last, meters, [(p.start_ns, p.end_ns) for p in filled[1::2]])
    assert rest.energy_joules == pytest.approx(sum(r.energy_joules for (r,) in parts[::2]), abs=2e-6)
    assert rest.seconds == pytest.approx(sum(p.seconds for p in filled[::2]))


def test_only_the_meters_that_were_asked_for_count() -> None:
    trace = Trace([row for t in range(20) for row in (gpu(t, 100 * t), cpu(t, 50 * t))])
    assert {r.source for r in energy(trace, 2 * S, 10 * S, ["nvml", "rapl"])} == {"nvml", "rapl"}
    assert [r.energy_joules for r in energy(trace, 2 * S, 10 * S, ["rapl"])] == [400]
    assert energy(trace, 2 * S, 10 * S, []) == []
    replay = Trace([gpu(t, 100 * t, source="replay") for t in range(20)])
    assert [r.provenance for r in energy(replay, 2 * S, 10 * S, ["replay:x.jsonl"])] == [Provenance.IMPORTED]


def test_no_trace_and_no_time_are_no_energy_and_no_error() -> None:
    assert energy(None, 0, S, ["nvml"]) == energy(Trace([]), 0, S, ["nvml"]) == []
    assert energy(Trace([gpu(1, 5)]), 0, 2 * S, ["nvml"]) == []
    assert energy(Trace([gpu(t, t) for t in range(9)]), 5 * S, 5 * S, ["nvml"]) == []


# --- files


def test_a_trace_is_kept_once_and_read_again(tmp_path: Path) -> None:
    assert read_trace(tmp_path) is None
    rows = [gpu(t, t) for t in range(5)]
    (tmp_path / "meters-0.jsonl").write_text("".join(row.to_json() + "\n" for row in rows) + '{"torn')
    for _ in range(2):
        trace = read_trace(tmp_path)
        assert trace.rows == rows
        assert [path.name for path in tmp_path.iterdir()] == ["meters-0.parquet"]
    assert read_trace(tmp_path, node=1) is None


def idle(folder: Path, times: dict[str, list[int]]) -> Path:
    """An execution: 80 W for 30 s, then 120 W with a context; a processor at 50 W, an estimate at 9 W."""
    rows = []
    for i in range(700):
        t = i * 0.09
        rows.append(gpu(t, 80 * min(t, 30) + 120 * max(t - 30, 0)))
        if i % 11 == 0:
            rows.append(cpu(t, 50 * t))
            rows.append(gpu(t, 9 * t, "machine", source="codecarbon", component="node"))
    (folder / IDLE_TRACE).write_text("".join(row.to_json() + "\n" for row in rows))
    (folder / IDLE_TIMES.name).write_text(json.dumps(times))
    return folder


METERS = ["nvml", "rapl", "codecarbon"]


def test_idle_power_without_and_with_a_context(tmp_path: Path) -> None:
    found = idle_power(idle(tmp_path, {"idle": [5 * S, 25 * S], "context": [35 * S, 55 * S]}), METERS)
    assert [(p.component, p.device) for p in found] == [("gpu", "GPU-0"), ("cpu", "intel-rapl:0")]
    assert [p.power_watts for p in found] == pytest.approx([80, 50], rel=0.01)
    assert found[0].power_watts_context == pytest.approx(120, rel=0.01)
    assert found[1].power_watts_context is None
    assert found[0].seconds == 20


def test_idle_power_without_a_context_says_so(tmp_path: Path) -> None:
    found = idle_power(idle(tmp_path, {"idle": [5 * S, 25 * S]}), METERS)
    assert [p.power_watts_context for p in found] == [None, None]
    assert [p.component for p in idle_power(tmp_path, ["rapl"])] == ["cpu"]
    assert idle_power(tmp_path, []) == idle_power(tmp_path, ["codecarbon"]) == []


def test_idle_power_that_was_not_measured_is_absent(tmp_path: Path) -> None:
    assert idle_power(tmp_path, METERS) == []
    idle(tmp_path, {"idle": [500 * S, 525 * S]})
    assert idle_power(tmp_path, METERS) == []  # outside of the trace
    (tmp_path / IDLE_TRACE).write_text("")
    assert idle_power(tmp_path, METERS) == []
    (tmp_path / IDLE_TRACE).unlink()
    assert idle_power(tmp_path, METERS) == []
    (tmp_path / IDLE_TIMES.name).write_text('{"idle": [1')
    assert idle_power(tmp_path, METERS) == []


def test_without_meters_or_time_no_idle_power_is_measured(tmp_path: Path) -> None:
    measure_idle(Node(None, None, []), tmp_path, 1.0, with_context=False)
    measure_idle(Node(None, Sidecar(["nvml"]), ["GPU-0"]), tmp_path, 0.0, with_context=False)
    assert list(tmp_path.iterdir()) == []


FAKE_TORCH = """
import os
def zeros(*_, device): return device
class cuda:
    @staticmethod
    def synchronize(index): pass
"""


def test_idle_power_is_measured_with_a_context_too_and_its_process_ends(tmp_path: Path) -> None:
    """In a process of its own, as its child is forked: the context's process is gone afterwards, and with its parent."""
    script = (
        "import os, sys\nfrom pathlib import Path\nsys.path.insert(0, '.')\nfrom bench.run import node\n"
        "from bench.meters.sidecar import Sidecar\n"
        "with Sidecar(['nvml'], sys.argv[1:]) as sidecar:\n"
        "    node.measure_idle(node.Node(None, sidecar, sys.argv[1:]), Path.cwd(), 2.2, with_context=True)\n"
        "    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()\n"
        "    print(len(children), flush=True)\n"
    )
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    given = fake_gpu(0, 150)
    done = subprocess.run(
        [sys.executable, "-c", script, given["uuid"]],
        env=os.environ | environment(given) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "1", done.stderr  # the sidecar alone
    (found,) = idle_power(tmp_path, ["nvml"])
    assert found.power_watts == pytest.approx(150, rel=0.02)
    assert found.power_watts_context == pytest.approx(150, rel=0.02)


def test_idle_power_is_known_from_a_counter_that_is_a_little_slower(tmp_path: Path) -> None:
    rows = [gpu(t * 0.095, 150 * (t * 95 // 105) * 0.105) for t in range(40)]
    (tmp_path / "idle.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    (tmp_path / "idle.json").write_text(json.dumps({"idle": [S // 5, S // 5 + 3 * S]}))
    (found,) = idle_power(tmp_path, ["nvml"])
    assert found.power_watts == pytest.approx(150, rel=0.02)
    (tmp_path / "idle.json").write_text(json.dumps({"idle": [S // 5, S // 5 + S]}))
    assert idle_power(tmp_path, ["nvml"]) == []  # too short to tell
