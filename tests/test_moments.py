"""Signals at any moment of a measurement: while files are written, while MLflow is, and while no command runs."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench import folder as files
from bench.errors import STOPPED
from bench.files import held
from bench.record import Status
from bench.run.command import execute, failure_of
from bench.run.course import Follower
from bench.run.ending import Signals
from bench.run.own_steps import Ended
from bench.run.recover import left_running
from bench.run.watch import Tally
from bench.schema import Site
from bench.steps import VARIABLE
from bench.store.sync import sync
from bench.store.tracker import Tracker, load, records
from tests import commands, rows
from tests.processes import PATIENCE, gone, until
from tests.stores import empty_store

CUT = """
import os, signal, sys
from pathlib import Path
from bench import folder as files
from bench.machine.environment import find_machine
from bench.process import adopt_orphans
from bench.run import measure
from bench.run.recover import recover

number, machine, replace = int(sys.argv[1]), find_machine()[0], Path.replace
train = [sys.executable, "-c", "from bench.steps import step\\nfor _ in range(8): step(samples=4)"]
adopt_orphans()

def cut(folder, moment):
    left = [moment]
    def counted(path, target):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return replace(path, target)
    Path.replace = counted
    try:
        measure.measure(measure.MeasureOptions(argv=train, meters=(), idle_seconds=0), machine, folder)
    except KeyboardInterrupt:
        pass
    os._exit(0 if left[0] > 0 else 3)

for moment in range(1, 100):
    folder = Path(f"{moment}")
    folder.mkdir()
    pid = os.fork()
    if not pid:
        cut(folder, moment)
    over = os.waitpid(pid, 0)[1] == 0
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    recover(folder)
    (stepped,) = [*folder.glob("*/*/*/steps-*"), None][:1]
    steps = len(stepped.read_text().splitlines()) if stepped else 0
    for path in folder.glob("*/*/*/record.json"):
        record = files.RECORD.read(path.parent)
        measured = record.measurement.steps if record.measurement else 0
        print(moment, steps, record.status, measured, record.error.type if record.error else "-")
    if not list(folder.glob("*/*/*/record.json")):
        print(moment, steps, "none", 0, "-")
    if over:
        break
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_no_moment_at_which_a_file_is_written_costs_a_record(tmp_path: Path, name: str) -> None:
    number = str(int(signal.Signals[name]))
    cut = subprocess.run(
        [sys.executable, "-P", "-c", CUT, number],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    ends = [line.split() for line in cut.stdout.splitlines()]
    assert len(ends) > 6
    assert [end[0] for end in ends] == [str(1 + moment) for moment in range(len(ends))]  # one record of each at most
    for _, steps, status, measured, error in ends:
        if steps == "8":
            assert (status, measured, error) == ("ok", "5", "-")
        elif status != "none":  # ended before it had made all its steps
            assert (status, error) in {("ok", "-"), ("failed", "EndedEarly"), ("failed", "BenchKilled")}
    assert sum(end[1] == "8" for end in ends) > 3


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("handled", [True, False])
def test_a_signal_that_a_command_does_not_handle_is_what_ended_it(tmp_path: Path, handled: bool) -> None:
    handler = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))" if handled else ""
    code = f"import signal, sys, time\n{handler}\nopen({str(tmp_path / 'ready')!r}, 'w')\ntime.sleep(900)"
    sent: list[bool] = []

    def tick(_: Tally) -> None:
        if not sent and (tmp_path / "ready").exists():
            sent.append(True)
            os.kill(os.getpid(), signal.SIGUSR1)

    with Signals() as signals:
        end = execute(python(code), tmp_path / "steps", signals=signals, tick=tick)
    by = (0, None, "") if handled else (-signal.SIGUSR1, "signal", "SIGUSR1")
    assert (end.exitcode, end.by, end.signal) == by


def test_what_a_shell_leaves_behind_gets_the_signal_that_it_did_not_handle(tmp_path: Path) -> None:
    sent: list[int] = []

    def tick(_: Tally) -> None:
        if not sent and (tmp_path / "inner").exists() and (text := (tmp_path / "inner").read_text()).endswith("\n"):
            sent.append(int(text))
            os.kill(os.getpid(), signal.SIGUSR2)

    shell = ["sh", "-c", f"sleep 900 & echo $! > {tmp_path / 'inner'}; wait"]
    with Signals() as signals:
        execute(shell, tmp_path / "steps", signals=signals, tick=tick)
    until(lambda: gone(sent[0]))


def test_signals_without_a_command_end_what_may_be_ended_and_mean_nothing_else() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.asked is None
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.asked == signal.SIGHUP


def test_a_signal_before_a_command_ends_it_at_its_start_unless_it_asks_for_no_end(tmp_path: Path) -> None:
    for number, end in ((signal.SIGUSR1, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with Signals() as signals:
            signals.deferred = True
            os.kill(os.getpid(), number)
            code = "import time; time.sleep(900)" if end else ""
            done = execute(python(code), tmp_path / "steps", signals=signals)
        assert (done.exitcode, done.by) == (end, "signal" if end else None)


def test_a_terminal_that_is_gone_ends_no_command() -> None:
    def draw(_: Any) -> None:
        raise OSError("Input/output error")

    follower = Follower(Site(), None, {}, {}, [draw])
    assert follower.tick(Tally()) is False


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (-9, "", "the command ended with SIGKILL"),
        (137, "Killed", "the command ended with exit code 137 (SIGKILL)"),
        (255, "", "the command ended with exit code 255"),
        (
            1,
            "E run.py] failed (exitcode: -9) local_rank: 1 (pid: 77) of binary: python\n exitcode: -15 (pid: 76)",
            "the command ended with exit code 1: process 77 (local rank 1) was ended by SIGKILL",
        ),
        (
            1,
            "failed (exitcode: 3) local_rank: 0 (pid: 5) of binary: python",
            "the command ended with exit code 1: process 5 (local rank 0) ended with exit code 3",
        ),
        (
            1,
            "ProcessExitedException: process 1 terminated with signal SIGKILL\n",
            "the command ended with exit code 1: process 1 terminated with signal SIGKILL",
        ),
    ],
)
def test_the_process_that_failed_first_is_named(tmp_path: Path, code: int, log: str, message: str) -> None:
    end = Ended(exitcode=code, start_ns=0, end_ns=1, cpu_seconds=0.0, tail=log.encode())
    assert failure_of(end, tmp_path / "none.log").message == message


def test_a_process_that_a_killed_bench_left_is_named_until_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "measure" / "execution" / "run"
    folder.mkdir(parents=True)
    inner = "import time; time.sleep(900)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    variables = os.environ | {VARIABLE: str(files.STEPS.path(folder, files.COMMAND_STEPS))}
    with subprocess.Popen(python(outer), env=variables, start_new_session=True) as process:
        try:
            until(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            assert list(left_running(tmp_path)) == [process.pid]
            assert left_running(tmp_path / "other") == {}
            with held(folder.parent / files.LOCK):
                assert left_running(tmp_path) == {}
            files.RECORD.write(folder, rows.record())
            for how, pids in (("gone", [process.pid]), ("ended", []), ("stopped", [])):
                files.EXIT.write(folder, files.Exit(how=how, exitcode=0))
                assert list(left_running(tmp_path)) == pids
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    until(lambda: left_running(tmp_path) == {})


# --- the index


class _Cut:
    """A client of MLflow that is interrupted at one of its calls."""

    def __init__(self, client: Any, calls: int) -> None:
        self._client, self.left = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return getattr(self._client, name)(*arguments, **more)

        return call


@pytest.mark.slow
@pytest.mark.parametrize("length", [10, 990])
def test_a_record_that_was_logged_in_part_is_logged_once_more(tmp_path: Path, length: int) -> None:
    uri, record = empty_store(tmp_path), rows.record()
    words = {f"a{number}": "x" * length for number in range(12)}
    record = record.changed(spec=record.spec.changed(workload_args=words))
    folder = tmp_path / "runs" / record.suite / record.execution / record.run_id
    folder.mkdir(parents=True)
    files.RECORD.write(folder, record)
    for calls in range(100):
        tracker = Tracker(uri, record.suite, record.execution)
        tracker.open()
        tracker._client = _Cut(tracker._client, calls)
        try:
            tracker.log(record, folder)
        except KeyboardInterrupt:
            kept = len(load(uri))
        else:
            break
    assert (calls > 3, kept) == (True, 1)  # the end of the run in MLflow was not reached, but its mark
    sync(tmp_path / "runs", uri)
    tracker = Tracker(uri, record.suite, record.execution)
    tracker.open()
    assert not tracker.log(record, folder)
    sync(tmp_path / "runs", uri)
    stored = load(uri)
    assert len(stored) == 1
    assert records(stored, uri) == [record]


MIGRATED_IN_PART = """
import os, sys
import mlflow.store.db.utils as utils
from bench.store.tracker import Tracker
utils._upgrade_db = lambda engine: os._exit(9)
Tracker(sys.argv[1], "suite", "execution").open()
"""


@pytest.mark.slow
def test_a_store_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "other").mkdir()
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "other" / "store.db")
    cut = subprocess.run([sys.executable, "-P", "-c", MIGRATED_IN_PART, uri], check=False, timeout=PATIENCE)
    assert cut.returncode == 9
    tracker = Tracker(uri, "suite", "execution")
    tracker.open()
    assert tracker.error is None
    assert load(uri) == []
    assert {path.name for path in tmp_path.rglob("*.db*")} == {"mlflow.db", "mlflow.db.lock", "store.db"}
    assert (tmp_path / "mlflow.db").is_symlink()


# --- what a user sees


@pytest.mark.usefixtures("no_meters")
def test_a_signal_between_repeats_keeps_the_runs_and_starts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = import_module("bench.cli.measure")
    monkeypatch.setattr(verb, "_ended", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    done = commands.bench("measure", "--no-store", "--repeats", "3", "--idle-seconds", "0", "--json", "--", "true")
    assert [run["status"] for run in json.loads(done.stdout)] == ["ok"]


@pytest.mark.usefixtures("no_meters")
def test_a_command_that_ends_as_it_likes_after_a_signal_was_not_measured_as_asked() -> None:
    code = (
        "import os, signal, time\n"
        "signals = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: signals.append(1))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "while not signals:\n    time.sleep(0.01)"
    )
    done = commands.bench("measure", "--no-store", "--repeats", "3", "--idle-seconds", "0", "--", *python(code))
    lines = done.stderr.splitlines()
    assert done.exit_code == 0
    assert "bench: the command got SIGTERM" in lines
    assert "bench: stopped by SIGTERM: runs 2 to 3 were not made" in lines
    assert "as long as asked" not in done.stderr


@pytest.mark.usefixtures("no_meters")
def test_a_command_that_a_limit_ends_was_measured_as_asked() -> None:
    code = "import time, wattbench\nwhile True:\n    wattbench.step(samples=4)\n    time.sleep(0.01)"
    done = commands.bench("measure", "--no-store", "--steps", "3", "--idle-seconds", "0", "--", *python(code))
    assert done.exit_code == 0
    assert "bench: measured for as long as asked" in done.stderr.splitlines()
    assert "the command got" not in done.stderr


@pytest.mark.usefixtures("no_meters")
def test_a_signal_while_mlflow_is_written_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "open", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    stopped = commands.bench("measure", "--idle-seconds", "0", "--", "true")
    assert stopped.exit_code == STOPPED
    (path,) = tmp_path.glob(".wattbench/measure/*/*/record.json")
    assert files.RECORD.read(path.parent).status is Status.OK
    assert str(path) in stopped.stderr
    assert "bench sync" in stopped.stderr
