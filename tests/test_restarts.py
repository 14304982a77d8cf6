"""Workers that torchrun starts again after one was lost: counted once, with the seconds and joules that this took."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.figures.metrics import STARTUP_PHASES
from bench.folder import RECORD, STACKS
from bench.meters.meter import Reading
from bench.record import Measurement, RunRecord, Status
from bench.run.own_steps import Ended, measurement
from bench.workloads.printed import Printed
from tests import commands, test_hooks, test_printed
from tests.processes import BENCH, PATIENCE, records, until
from tests.test_hooks import JOINED, S, step

SCRIPT = Path(__file__).parent / "scripts" / "restarted.py"
WATTS = 100


def measured(folder: Path) -> Measurement:
    ended = Ended(exitcode=0, start_ns=0, end_ns=10**19, cpu_seconds=1.0)
    return measurement(folder / "steps-command.jsonl", ended, 3, "cpu")


def worker(
    folder: Path, number: int, rank: int, restart: int, times: Any, made: int | None = None, **more: Any
) -> None:
    facts = JOINED | {"local_world_size": 2, "rank": rank, "restart": restart, "made": made} | more
    test_hooks.process(folder, number, *(step(t) for t in times), **facts)


def phases(out: Measurement) -> list[tuple[str, float, float]]:
    return [(each.name, each.start_ns / S, each.end_ns / S) for each in out.phases]


def test_steps_before_and_after_a_loss_are_those_of_one_training(tmp_path: Path) -> None:
    """Steps 1 to 8, of which the second rank made 7; restored after step 4, and on to step 10 from 31 s."""
    worker(tmp_path, 1, 0, 0, range(1, 9), made=1)
    worker(tmp_path, 2, 1, 0, range(1, 8), made=1)
    worker(tmp_path, 3, 0, 1, range(31, 37), made=5)
    worker(tmp_path, 4, 1, 1, range(31, 37), made=5)
    out = measured(tmp_path)
    assert (out.restarts, out.repeated_steps) == (1, 3)  # 5, 6, 7
    assert phases(out) == [("start", 0, 1), ("warmup", 1, 3), ("steady", 3, 7), ("restart", 7, 31), ("steady", 31, 36)]
    assert (out.steps, out.samples, out.tokens, out.window_seconds) == (9, 72, 144, 9)  # of both ranks
    assert out.step_seconds == [1.0] * 9
    assert out.seen is not None
    assert (out.seen.processes, len(out.seen.devices), len(out.ranks)) == (2, 2, 2)
    assert "restarted" in out.step_flags
    assert not {"repeats_unknown", "separate_trainings", "partial_world"} & {*out.step_flags}


@pytest.mark.parametrize(
    ("before", "after", "repeated"),
    [
        (1, 8, 0),  # a checkpoint after the last step
        (1, 1, None),  # a fresh optimizer: from the beginning, or on without its state
        (None, None, None),  # SGD counts no steps
        (101, 105, 3),  # the first workers went on from a checkpoint, too
    ],
)
def test_which_steps_are_repeated_is_known_or_it_is_said(
    tmp_path: Path, before: int | None, after: int | None, repeated: int | None
) -> None:
    for rank in (0, 1):
        worker(tmp_path, rank, rank, 0, range(1, 8), made=before)
        worker(tmp_path, rank + 2, rank, 1, range(31, 37), made=after)
    out = measured(tmp_path)
    assert (out.restarts, out.repeated_steps) == (1, repeated)
    assert ("repeats_unknown" in out.step_flags) == (repeated is None)


def test_workers_lost_before_their_first_common_step_repeat_nothing(tmp_path: Path) -> None:
    worker(tmp_path, 1, 0, 0, [1])
    for rank in (0, 1):
        worker(tmp_path, rank + 2, rank, 1, range(31, 39))
    out = measured(tmp_path)
    assert (out.restarts, out.repeated_steps, out.steps, out.samples) == (1, 0, 5, 40)
    assert phases(out) == [("start", 0, 31), ("warmup", 31, 33), ("steady", 33, 38)]
    assert "restarted" in out.step_flags, "the start-up has the loss in it"
    assert not {"repeats_unknown", "separate_trainings", "partial_world"} & {*out.step_flags}


def test_a_loss_in_the_warmup_is_a_phase_before_the_window(tmp_path: Path) -> None:
    for rank in (0, 1):
        worker(tmp_path, rank, rank, 0, [1, 2], made=1)
        worker(tmp_path, rank + 2, rank, 1, range(31, 39), made=2)
    out = measured(tmp_path)
    expected = [("start", 0, 1), ("warmup", 1, 2), ("restart", 2, 31), ("warmup", 31, 32), ("steady", 32, 38)]
    assert phases(out) == expected
    assert (out.restarts, out.repeated_steps, out.steps) == (1, 1, 6)
    assert "restarted" in out.step_flags
    assert "repeats_unknown" not in out.step_flags


def test_two_losses(tmp_path: Path) -> None:
    for rank in (0, 1):
        worker(tmp_path, rank, rank, 0, range(1, 8), made=1)
        worker(tmp_path, rank + 2, rank, 1, range(31, 36), made=5)
        worker(tmp_path, rank + 4, rank, 2, range(61, 66), made=9)
    out = measured(tmp_path)
    assert (out.restarts, out.repeated_steps, out.steps, out.samples) == (2, 4, 12, 96)
    assert [each[1:] for each in phases(out) if each[0] == "restart"] == [(7, 31), (35, 61)]


def test_processes_that_nobody_started_again_are_still_separate(tmp_path: Path) -> None:
    for rank in (0, 1):
        worker(tmp_path, rank, rank, 0, range(1, 9))
        worker(tmp_path, rank + 2, rank, 0, range(31, 39))
    out = measured(tmp_path)
    assert (out.restarts, out.repeated_steps, out.steps) == (0, None, 5)
    assert "separate_trainings" in out.step_flags


@pytest.mark.parametrize(("numbers", "repeated"), [(range(5, 11), 3), (range(1, 7), 7), (None, None)])
def test_steps_of_the_script(tmp_path: Path, numbers: Any, repeated: int | None) -> None:
    """What the script numbers is known, from the beginning, too."""
    lines = []
    for rank in (0, 1):
        first = [(t, t if numbers else None, 10 + rank, None) for t in range(1, 8)]
        again = [(31 + i, numbers[i] if numbers else None, 20 + rank, 1) for i in range(6)]
        for t, number, pid, restart in [*first, *again]:
            line = {"t_ns": t * S, "rank": rank, "pid": pid, "samples": 4, "number": number, "restart": restart}
            lines.append({name: value for name, value in line.items() if value is not None})
    (tmp_path / "steps-command.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = measured(tmp_path)
    assert (out.step_source, out.restarts, out.repeated_steps) == ("script", 1, repeated)
    assert (out.steps, out.samples, out.window_seconds) == (9, 72, 9)
    flags = ["restarted"] if repeated is not None else ["restarted", "repeats_unknown"]
    assert out.step_flags == flags


@pytest.mark.slow
@pytest.mark.parametrize("report", [False, True], ids=["hooks", "script"])
def test_a_process_killed_once_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: bool) -> None:
    """Step 10 is the last before the loss; a checkpoint was made after step 8, so steps 9 and 10 are repeated."""
    trace, truth = tmp_path / "trace.jsonl", tmp_path / "truth"
    readings = (
        Reading(t_ns=t * S, wall_ns=1, source="rapl", component="cpu", device="p0", energy_uj=t * WATTS * 10**6)
        for t in range(1, 600)
    )
    trace.write_text("".join(row.to_json() + "\n" for row in readings))
    environment = {"TRUTH": truth, "CHECKPOINT": tmp_path / "saved", "LOST": 10, "OMP_NUM_THREADS": 1}
    # Processes that are started again would find the addresses of those before them in a store that is shared.
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": 1} | ({"REPORT": 1} if report else {})
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1"
    defaults = {"workload": "command", "workload_args": {"argv": f"{torchrun} {SCRIPT}"}, "meters": [f"replay:{trace}"]}
    suite = {
        "name": "restarted",
        "defaults": {**defaults, "device_type": "cpu", "devices": 2},
        "repeats": 1,
        "idle_seconds": 0,
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    result = commands.execute(tmp_path, "run", "suite.yaml")
    (path,) = tmp_path.glob(f"runs/*/*/*/{RECORD.name}")
    record = RunRecord.model_validate_json(path.read_text())
    out = record.measurement
    assert out is not None, (result.output, record.error)
    assert (out.step_source, out.restarts, out.repeated_steps) == ("script" if report else "hooks", 1, 2)
    assert out.seen is not None
    assert (out.seen.world_size, out.seen.processes, len(record.devices)) == (2, 2, 2)
    steps = [json.loads(line) for rank in (0, 1) for line in Path(f"{truth}-{rank}").read_text().splitlines()]
    counted = [amount for _, amount, number, restart in steps if number > (9 if restart else 3)]
    assert (out.steps, out.samples) == (len(counted) // 2, sum(counted))
    assert {"restarted"} <= {*record.flags}
    assert not {"repeats_unknown", "separate_trainings", "sources_differ"} & {*record.flags}
    (restart,) = [phase for phase in out.phases if phase.name == "restart"]
    assert [reading.energy_joules for reading in restart.energy] == pytest.approx([WATTS * restart.seconds])
    (whole,) = out.energy
    assert whole.energy_joules == pytest.approx(WATTS * whole.seconds)
    assert whole.seconds == pytest.approx(sum(p.seconds for p in out.phases if p.name == "steady"))


def test_a_loss_that_torchrun_tells_between_printed_steps_is_a_restart(tmp_path: Path) -> None:
    """Printed steps at 1 to 10 s and, after the workers were started again, at 41 to 50 s; their counter goes on."""
    lines = [(float(t), f"step {t}\n") for t in range(1, 11)]
    lines.append((11.0, "E1203 06:38 api.py:984] failed (exitcode: 3) local_rank: 1 (pid: 77) of binary: python\n"))
    lines += [(float(40 + t), f"step {10 + t}\n") for t in range(1, 11)]
    found = test_printed.arrived(r"step (?P<step>\d+)", [(t, text.encode()) for t, text in lines])
    (tmp_path / "steps-command.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in found))
    how = Printed(pattern=r"step (?P<step>\d+)", samples_per_step=8)
    ended = Ended(exitcode=0, start_ns=0, end_ns=10**19, cpu_seconds=1.0)
    out = measurement(tmp_path / "steps-command.jsonl", ended, 4, "cpu", how)
    assert (out.steps, out.samples, out.window_seconds) == (15, 120, 15)
    assert (out.restarts, out.repeated_steps) == (1, None)
    assert ("restart", 10, 41) in phases(out)
    assert {"restarted", "repeats_unknown"} <= {*out.step_flags}


@pytest.mark.slow
def test_ranks_of_which_one_was_killed_start_again_warm_and_cold(tmp_path: Path) -> None:
    """Each run loses a rank once while it trains; the last one may not start again."""
    trace = tmp_path / "trace.jsonl"
    readings = (
        Reading(t_ns=t * S, wall_ns=1, source="rapl", component="cpu", device="p0", energy_uj=t * WATTS * 10**6)
        for t in range(1, 100_000)
    )
    trace.write_text("".join(row.to_json() + "\n" for row in readings))
    more = {"workload_args": {"preset": "tiny"}, "measure_seconds": 2, "validation": {"samples": 0}}
    defaults = {"workload": "lstm_lm", "device_type": "cpu", "devices": 2, "batch_size_per_device": 2, **more}
    cells = [{"max_restarts": 1}, {"max_restarts": 1, "cold": True}, {"max_restarts": 0}]
    suite = {
        "name": "lost",
        "idle_seconds": 0,
        "defaults": {**defaults, "meters": [f"replay:{trace}"]},
        "include": cells,
    }
    (tmp_path / "lost.yaml").write_text(json.dumps(suite))
    process = subprocess.Popen([*BENCH, "run", "lost.yaml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def ranks() -> list[psutil.Process]:
        below = psutil.Process(process.pid).children(recursive=True)
        leaves = [each for each in below if not each.children() and "bench.meters.sampler" not in each.cmdline()]
        return leaves if len(leaves) == 2 else []

    stack = STACKS.path(Path(), 1)  # is there while rank 1 runs
    for number in range(3):
        until(lambda number=number: len(records(tmp_path)) == number and [*tmp_path.glob(f"runs/*/*/*/{stack}")])
        until(ranks)[1].kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    found = {(each.spec.max_restarts, each.spec.cold): each for each in records(tmp_path).values()}
    for key in ((1, False), (1, True)):
        record, out = found[key], found[key].measurement
        assert record.status is Status.OK, record.error
        assert out is not None
        assert out.restarts == 1
        assert "restarted" in record.flags
        assert [phase.name for phase in out.phases][:3] == ["launch", "restart", "start"]
        before = sum(phase.seconds for phase in out.phases if phase.name in STARTUP_PHASES)
        for readings, seconds in ((out.phases[1].energy, out.phases[1].seconds), (out.startup, before)):
            (reading,) = readings  # a meter that has just begun may miss the first second
            assert reading.energy_joules == pytest.approx(WATTS * reading.seconds)
            assert seconds - 1 < reading.seconds < seconds + 0.001
    failed = found[0, False]
    assert failed.error is not None
    assert failed.error.message.endswith("was ended by SIGKILL")
