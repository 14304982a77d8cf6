"""A measurement is never lost: what ends a command leaves a record of what was seen until then."""

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import folder as files
from bench.files import held
from bench.record import Measurement, Phase, RunRecord, Status
from bench.run import ending
from bench.run.collect import Context, collect, stalled
from bench.run.command import execute, leave
from bench.run.ending import Ending, Processes, WindowLength
from bench.run.kept import KeptFiles
from bench.run.own_steps import Ended
from bench.run.recover import recover
from bench.run.watch import Tally, Watch
from bench.schema import RunSpec, Site
from bench.workloads.printed import Printed
from tests import commands, rows
from tests.benchmarks.signals import LEAST, WAYS, ended
from tests.processes import PATIENCE, gone, until

S = 10**9
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# --- from end to end


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_measurement_survives(way: str, tmp_path: Path) -> None:
    case = ended(tmp_path, way, after=40, steps=60)
    record = case.record
    assert record is not None
    assert case.steps_share is not None and case.steps_share >= LEAST  # noqa: PT018  both of one share
    assert case.joules_share is not None and case.joules_share >= LEAST  # noqa: PT018
    alone = "USR" in way  # the command goes on to its end
    assert record.status is (Status.FAILED if "of the script" in way or "ranks" in way else Status.OK)
    assert ("ended_early" in record.flags) == (record.status is Status.OK and not alone)
    assert (case.code == 0) == alone


# --- what is read while a command runs


def written(path: Path, *lines: Any) -> None:
    with path.open("a") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def test_steps_are_counted_as_they_come_and_unknown_lines_are_ignored(tmp_path: Path) -> None:
    path, watch = files.STEPS.path(tmp_path, files.COMMAND_STEPS), Watch(tmp_path, warmup_steps=2)
    assert watch.update() == Tally()
    odd = ["torn", "[]", {"t_ns": "x", "rank": 0}, {"t_ns": 1, "rank": 0, "phase": "eval", "begin": True}]
    odd.append({"t_ns": 1, "rank": -1, "step": "x"})
    written(path, *odd, *({"t_ns": t * S, "rank": 0, "samples": 4, "loss": 9 - t} for t in (1, 2, 3)))
    with path.open("a") as file:
        file.write('{"t_ns": 4000000000, "ra')  # a line that is being written
    first = watch.update()
    assert (first.seen, first.steps, first.samples, first.tokens) == (3, 1, 4, None)
    assert (first.seconds, first.loss, first.began_ns, first.last_ns) == (1, 6, 2 * S, 3 * S)
    assert first.steps_per_second == 1
    assert watch.update() == first
    with path.open("a") as file:
        file.write('nk": 0, "samples": 4}\n')
    assert watch.update().steps == 2
    path.unlink()
    written(path, {"t_ns": 5 * S, "rank": 0, "samples": 4})  # made anew
    assert watch.update().steps == 3


def test_ranks_are_summed_and_the_script_s_own_steps_go_before_hooks_and_output(tmp_path: Path) -> None:
    watch, path = Watch(tmp_path, warmup_steps=1), files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    written(path, *({"t_ns": t * S, "rank": -1, "step": 10 * t, "samples": 2, "tokens_total": 100 * t} for t in (1, 2)))
    tally = watch.update()
    assert (tally.steps, tally.samples, tally.tokens) == (10, 20, 100)
    for process in (7, 8):
        seen = files.SEEN.path(tmp_path, f"host-{process}")
        written(seen, {"facts": {}}, {"t_ns": [S, 2 * S, 3 * S], "rank": process, "samples": 3})
    assert (watch.update().steps, watch.update().samples) == (2, 12)
    written(path, *({"t_ns": t * S, "rank": 0, "samples": 5} for t in (1, 2)))
    assert (watch.update().steps, watch.update().samples) == (1, 5)


def test_samples_that_cannot_be_meant_are_not_known(tmp_path: Path) -> None:
    watch, path = Watch(tmp_path, warmup_steps=1), files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    written(path, *({"t_ns": t * S, "rank": 0, "samples": 10**30, "loss": 10**400} for t in range(1, 4)))
    assert (watch.update().steps, watch.update().samples, watch.update().loss) == (2, None, None)


def test_parts_of_samples_add_up(tmp_path: Path) -> None:
    watch, path = Watch(tmp_path, warmup_steps=1), files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    written(path, *({"t_ns": t * S, "rank": 0, "samples": 2.5} for t in range(1, 12)))
    assert (watch.update().steps, watch.update().samples) == (10, 25)


@pytest.mark.parametrize(
    ("optimizers", "steps"),
    [
        ([0, 0, 1, 1, 1, 2, 2], 7),  # one after another
        ([0, 1, 0, 1, 0, 1], 3),  # in turns
        ([0, 1, 1, 1, 0, 1, 1, 1, 0], 3),
        ([0, 0, 1, 2, 1, 2, 1, 2], 5),
        ([0, 1, 0, 1, 1, 1], 2),  # the second has begun before the first one's end
    ],
)
def test_steps_are_those_of_the_leading_optimizer(tmp_path: Path, optimizers: list[int], steps: int) -> None:
    watch, path = Watch(tmp_path, warmup_steps=1), files.SEEN.path(tmp_path, "host-1")
    for t, number in enumerate(optimizers):  # read one by one
        written(path, {"t_ns": [(t + 1) * S], "optimizer": optimizers.index(number)})
        tally = watch.update()
    assert (tally.seen, tally.steps) == (steps, steps - 1)


def test_processes_with_one_rank_are_counted_apart(tmp_path: Path) -> None:
    watch, path = Watch(tmp_path, warmup_steps=1), files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    written(path, *({"t_ns": t * S, "rank": 0, "pid": pid} for t in range(1, 6) for pid in (7, 8)))
    assert watch.update().steps == 4


@pytest.mark.parametrize(
    ("length", "tally", "now", "reached"),
    [
        (WindowLength(), Tally(steps=10**6, began_ns=0, seen=10**6), 10**6, False),
        (WindowLength(steps=5), Tally(steps=4, began_ns=S, seen=7), 100, False),
        (WindowLength(steps=5), Tally(steps=5, began_ns=S, seen=8), 100, True),
        (WindowLength(seconds=5), Tally(seen=2, last_ns=950 * S), 1000, False),  # still warming up
        (WindowLength(seconds=5), Tally(seen=2, last_ns=934 * S), 1000, True),  # what trains makes other steps
        (WindowLength(seconds=5), Tally(began_ns=10 * S, seen=4), 14, False),
        (WindowLength(seconds=5), Tally(began_ns=10 * S, seen=4), 15, True),
        (WindowLength(seconds=5), Tally(), ending.FIRST_STEP_SECONDS - 1, False),
        (WindowLength(seconds=5), Tally(), ending.FIRST_STEP_SECONDS, True),
        (WindowLength(seconds=500), Tally(), ending.FIRST_STEP_SECONDS, False),
        (WindowLength(seconds=500), Tally(), 500, True),
    ],
)
def test_a_window_is_as_long_as_was_asked(length: WindowLength, tally: Tally, now: float, reached: bool) -> None:
    assert length.reached(tally, 0, round(now * S)) is reached


# --- how a command is ended

STEPPING = "import time\nfrom bench.steps import step\nwhile True: time.sleep(0.01); step(samples=2)"


def command(**more: Any) -> RunSpec:
    return RunSpec(workload="command", workload_args={"argv": "train"}, device_type="cpu", **more)


def test_a_command_is_ended_after_its_steps_and_counts_as_ok(tmp_path: Path) -> None:
    steps = files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    done = execute(python(STEPPING), steps, limit=WindowLength(steps=20), warmup_steps=3)
    assert (done.by, done.exitcode) == ("limit", -signal.SIGINT)
    assert leave(command(), done, tmp_path)
    measured = files.RESULT.read(tmp_path)
    assert measured.steps >= 20
    assert measured.step_flags == []  # it is as long as was asked


def test_a_command_that_does_not_want_to_end_is_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending.Ending.__init__, "__defaults__", (0.2,))
    deaf = "import signal\nfor n in (2, 15): signal.signal(n, lambda *_: print('no', flush=True))\n"
    steps = files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    done = execute(python(deaf + STEPPING), steps, limit=WindowLength(steps=1), warmup_steps=1)
    assert (done.by, done.exitcode) == ("limit", -signal.SIGKILL)


def test_what_a_command_leaves_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending.Ending.__init__, "__defaults__", (0.2,))
    deaf = f"""
import os, signal
for n in (2, 15): signal.signal(n, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
{STEPPING}"""
    steps = files.STEPS.path(tmp_path, files.COMMAND_STEPS)
    (tmp_path / "train.py").write_text(deaf)
    argv = ["bash", "-c", f"trap '' INT; {sys.executable} {tmp_path / 'train.py'}; true"]
    done = execute(argv, steps, limit=WindowLength(steps=1), warmup_steps=1)
    assert (done.by, done.exitcode) == ("limit", -signal.SIGTERM)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: gone(pid))


def test_all_processes_of_a_command_are_ended(tmp_path: Path) -> None:
    inner = "import os, time; open('inner', 'w').write(str(os.getpid())); time.sleep(900)"
    outer = (
        f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], cwd={str(tmp_path)!r}).wait()"
    )
    with subprocess.Popen(python(outer)) as process:
        pid = int(until(lambda: (tmp_path / "inner").exists() and (tmp_path / "inner").read_text()))
        Ending(Processes(process.pid)).go_on()
        process.wait()
    until(lambda: gone(pid))


def test_only_what_the_whole_group_got_counts_as_sent_to_it() -> None:
    code = """
import os, signal, sys
from bench.process import GroupListener
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGUSR2, lambda *_: None)
listener = GroupListener([signal.SIGUSR1, signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGUSR1)
os.killpg(0, signal.SIGUSR2)
print(listener.got(signal.SIGUSR1), listener.got(signal.SIGUSR2), listener.got(signal.SIGUSR2))
listener.close()
"""
    done = subprocess.run(python(code), capture_output=True, text=True, start_new_session=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_a_signal_within_the_handler_of_another_holds_nothing_up() -> None:
    code = """
import os, select, signal
from bench.process import GroupListener
signal.signal(signal.SIGUSR1, lambda *_: None)
listener, inner, real = GroupListener([signal.SIGUSR1]), [], select.select
def interrupted(*arguments):
    ready = real(*arguments)
    if ready[0] and not inner:  # the next signal is handled between the news and its reading
        inner.append(None)
        inner.append(listener.got(signal.SIGUSR1))
    return ready
select.select = interrupted
os.killpg(0, signal.SIGUSR1)
print(listener.got(signal.SIGUSR1), inner[1])
listener.close()
"""
    done = subprocess.run(
        python(code), capture_output=True, text=True, start_new_session=True, check=True, timeout=PATIENCE
    )
    assert done.stdout.split() == ["True", "True"]


def test_a_process_that_outlives_the_command_holds_nothing_up(tmp_path: Path) -> None:
    shell = ["sh", "-c", "sleep 600 & echo $! > helper; for i in 1 2 3; do echo step $i; done"]
    output = io.BytesIO()
    begun = time.monotonic()
    try:
        done = execute(
            shell, tmp_path / "steps", how=Printed(r"step (?P<step>\d)"), output=output, folder=str(tmp_path)
        )
    finally:
        os.kill(int((tmp_path / "helper").read_text()), signal.SIGKILL)
    assert time.monotonic() - begun < 300
    assert output.getvalue() == b"step 1\nstep 2\nstep 3\n"
    assert (done.exitcode, len((tmp_path / "steps").read_text().splitlines())) == (0, 3)


# --- what is made of it


def marks(folder: Path, times: list[float], rank: int = 0) -> None:
    path = files.STEPS.path(folder, files.COMMAND_STEPS)
    written(path, *({"t_ns": round(t * S), "rank": rank, "samples": 4, "loss": 9 - t / 100} for t in times))


def done(code: int, end: float, **more: Any) -> Ended:
    return Ended(exitcode=code, start_ns=0, end_ns=round(end * S), cpu_seconds=1.0, **more)


@pytest.mark.parametrize(
    ("end", "count", "ok", "flags"),
    [
        (done(0, 9), 8, True, []),
        (done(-15, 9, by="signal", signal="SIGTERM"), 8, True, ["ended_early"]),
        (done(143, 9, by="signal", signal="SIGTERM"), 8, True, ["ended_early"]),
        (done(0, 9, by="signal", signal="SIGTERM"), 0, True, ["ended_early"]),
        (done(-15, 9, by="signal", signal="SIGTERM"), 4, False, None),  # one step after the warm-up
        (done(-2, 9, by="limit"), 8, True, []),
        (done(-2, 9, by="limit"), 0, True, []),
        (done(1, 9), 8, False, []),
        (done(-9, 9), 8, False, []),
        (done(1, 9), 2, False, None),
    ],
)
def test_an_end_is_told_as_it_was(tmp_path: Path, end: Ended, count: int, ok: bool, flags: list[str] | None) -> None:
    marks(tmp_path, list(range(1, count + 1)))
    assert leave(command(), end, tmp_path) is ok
    kept = files.RESULT.find(tmp_path) if ok else files.PARTIAL.find(tmp_path)
    assert (None if kept is None else kept.step_flags) == flags
    assert bool(files.read_errors(tmp_path)) is not ok


def collected(folder: Path, how: Any, end: float, code: int | None = None) -> RunRecord:
    files.EXIT.write(folder, files.Exit(how=how, exitcode=code, start_ns=0, end_ns=round(end * S)))
    return collect(Context("commands", "e", Site(), rows.environment(), []), command(), folder)


@pytest.mark.parametrize("how", ["timeout", "gone"])
def test_a_command_that_was_training_until_its_end_is_measured(tmp_path: Path, how: str) -> None:
    marks(tmp_path, [1, 2, 3, 4, 5, 6, 7])
    record = collected(tmp_path, how, 7.5)
    assert (record.status, record.partial) == (Status.OK, None)
    assert record.measurement is not None
    assert (record.measurement.steps, record.measurement.samples) == (4, 16)
    assert "ended_early" in record.flags


@pytest.mark.parametrize(("how", "status"), [("timeout", Status.TIMEOUT), ("gone", Status.FAILED)])
def test_a_command_that_made_no_step_for_long_had_failed(tmp_path: Path, how: str, status: Status) -> None:
    marks(tmp_path, [1, 2, 3, 4, 5, 6, 7])
    record = collected(tmp_path, how, 107)
    assert (record.status, record.measurement) == (status, None)
    assert record.partial is not None
    assert record.partial.steps == 4


def test_long_steps_are_no_stand_still() -> None:
    steady = [Phase(name="steady", start_ns=0, end_ns=100 * S)]
    slow = Measurement(window_seconds=100, steps=2, step_seconds=[50, 50], phases=steady)
    assert not stalled(slow, 500 * S)
    assert stalled(slow, 700 * S)


def test_a_failed_command_keeps_what_was_seen_of_it(tmp_path: Path) -> None:
    marks(tmp_path, [1, 2, 3, 4, 5])
    leave(command(), done(1, 6), tmp_path)
    record = collected(tmp_path, "ended", 6, code=1)
    assert (record.status, record.measurement, record.grade) == (Status.FAILED, None, None)
    assert record.partial is not None
    assert record.partial.samples == 8


def beginning(folder: Path) -> None:
    folder.mkdir(parents=True)
    files.SPEC.write(folder, command())
    files.BEGINNING.write(
        folder,
        files.Beginning(
            suite="measure",
            execution=folder.parent.name,
            site=Site(),
            environment=rows.environment(),
            gpus=[],
            started_at=STARTED,
            start_ns=0,
        ),
    )


def test_what_a_killed_bench_has_left_becomes_a_record_once(tmp_path: Path) -> None:
    folder = tmp_path / "measure" / "execution" / "run"
    beginning(folder)
    marks(folder, [1, 2, 3, 4, 5, 6])
    ((record, place),) = recover(tmp_path)
    assert (place, record.status, record.duration_seconds, record.started_at) == (folder, Status.OK, 6, STARTED)
    assert recover(tmp_path) == []
    assert files.RECORD.read(folder) == record


def test_a_measurement_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "measure" / "execution" / "run"
    beginning(folder)
    marks(folder, [1, 2, 3, 4, 5, 6])
    with held(folder.parent / files.LOCK):
        assert recover(tmp_path) == []
    assert len(recover(tmp_path)) == 1


def test_files_outlive_a_script_that_removes_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    path, other = folder / "a", folder / "b"
    path.write_text("1\n")
    renewed = []

    def renew() -> None:
        folder.mkdir(parents=True)
        renewed.append(path.write_text("2\n"))

    kept = KeptFiles([path, other], list, renew)
    kept.look()
    path.unlink()
    folder.rmdir()
    kept.look()
    kept.look()
    assert len(renewed) == 1
    other.write_text("x")
    kept.restore()
    assert (path.read_text(), other.read_text()) == ("1\n2\n", "x")


# --- what a user sees


def test_a_command_in_a_terminal_keeps_one_of_its_size(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    code = "import os, sys; print(sys.stdout.isatty(), *os.get_terminal_size(1), end='\\rstep 1')"
    with open(theirs, "wb", buffering=0) as terminal:  # noqa: PTH123  a descriptor
        ended_ = execute(python(code), tmp_path / "steps", how=Printed("step (?P<step>.)"), output=terminal)
        text = os.read(ours, 1000)
    os.close(ours)
    assert (ended_.exitcode, text) == (0, b"True 77 33\rstep 1")
    assert len((tmp_path / "steps").read_text().splitlines()) == 1


@pytest.mark.usefixtures("no_meters")
def test_the_folder_of_measurements_is_ours_and_is_named_once(tmp_path: Path) -> None:
    first = commands.bench("measure", "--no-store", "--idle-seconds", "0", "--", "true")
    again = commands.bench("measure", "--no-store", "--idle-seconds", "0", "--", "true")
    assert ("records go to .wattbench/" in first.stderr, "records go to" in again.stderr) == (True, False)
    assert (tmp_path / ".wattbench" / ".gitignore").read_text() == "*\n"
    assert not (tmp_path / "runs").exists()
    assert len(list(tmp_path.glob(".wattbench/measure/*/*/record.json"))) == 2


@pytest.mark.usefixtures("no_meters")
def test_a_script_without_a_first_line_ends_as_in_a_shell_with_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text("echo hello")
    script.chmod(0o755)
    tried = commands.bench("measure", "--no-store", "--idle-seconds", "0", "--", "./train.sh")
    assert tried.exit_code == 126
    assert "#!/bin/sh" in tried.stderr
    assert recover(tmp_path / ".wattbench") == []  # nothing began


@pytest.mark.usefixtures("no_meters")
def test_odd_bytes_are_recorded_with_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    monkeypatch.chdir(odd)
    Path(os.fsdecode(b"arg\xfe")).touch()
    tried = commands.bench("measure", "--no-store", "--idle-seconds", "0", "--", "true", os.fsdecode(b"arg\xfe"))
    assert tried.exit_code == 0
    (path,) = odd.glob(".wattbench/measure/*/*/record.json")
    record = RunRecord.model_validate_json(path.read_bytes())
    assert record.spec.workload_args["argv"] == "true 'arg\ufffd'"


def test_memory_that_ran_out_is_told_though_a_signal_came_before(tmp_path: Path) -> None:
    marks(tmp_path, [1, 2, 3, 4, 5, 6, 7])
    end = done(1, 9, by="signal", signal="SIGHUP", tail=b"torch.OutOfMemoryError: CUDA out of memory.")
    assert leave(command(), end, tmp_path) is False
    (failure,) = files.read_errors(tmp_path)
    assert failure.kind == "out_of_memory"


def test_what_a_shell_leaves_behind_gets_the_signal_that_ended_it(tmp_path: Path) -> None:
    shell = ["sh", "-c", "sleep 900 & echo $! > inner; wait"]
    with subprocess.Popen(shell, cwd=tmp_path) as process:
        pid = int(until(lambda: (tmp_path / "inner").exists() and (tmp_path / "inner").read_text()))
        processes = Processes(process.pid)
        processes.send(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        processes.release(process.returncode)
    until(lambda: gone(pid))
