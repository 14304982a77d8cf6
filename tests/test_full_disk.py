"""Disks that fill while a command is measured: its record is kept, or the figures are shown; never lost in silence."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from bench import folder as files
from bench.errors import FAULT, UserError
from bench.folder import FULL, OWN_RUNS, RECORD, RESERVE
from bench.record import Status
from bench.run import command, reserve
from bench.run.recover import recover
from bench.run.streams import Streams
from bench.schema import RunSpec
from tests import commands
from tests.stores import empty_store
from tests.test_measure import one_gpu  # noqa: F401  a fixture
from tests.test_signals import beginning, marks

SCRIPT = "import time\nfor i in range(6):\n    time.sleep(0.01)\n    print(f'iter {i} loss 1.0', flush=True)\n"
MEASURE = ("measure", "--idle-seconds", "0", "--step-pattern", r"iter (?P<step>\d+) loss", "--samples-per-step", "4")


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Results cannot be written in the folder of the runs; return the folder of temporary files.

    The parameter is a part of the names of the runs for which this holds.
    """
    part = getattr(request, "param", "")
    temporary, write = tmp_path / "temporary", files.write_bytes
    temporary.mkdir()
    monkeypatch.setattr(reserve.tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(reserve, "_MEMORY", str(temporary / "none"))
    monkeypatch.setattr(
        files,
        "write_bytes",
        lambda path, data: (
            full()
            if path.name == files.RESULT.name and OWN_RUNS in path.parts and part in path.parent.name
            else write(path, data)
        ),
    )
    return temporary


@pytest.mark.usefixtures("one_gpu")
def test_the_record_goes_elsewhere_and_is_logged_from_there(tmp_path: Path, full_disk: Path) -> None:
    store = empty_store(tmp_path)
    done = commands.bench(*MEASURE, "--no-store", "--", sys.executable, "-c", SCRIPT)
    assert done.exit_code == 0, done.stderr
    (path,) = full_disk.glob(f"*/measure/*/*/{RECORD.name}")
    folder = path.parent
    assert (RECORD.read(folder).status, RECORD.read(folder).measurement.steps) == ("ok", 3)
    root = folder.parents[2]
    assert f"bench sync --runs {root}" in done.stderr
    assert recover(tmp_path / OWN_RUNS) == []  # there is no second record of it
    assert "1 run logged" in commands.bench("sync", "--runs", str(root), "--store", store).stdout


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("full_disk", ["-r1"], indirect=True)
def test_records_in_several_places_are_all_logged_later(tmp_path: Path, full_disk: Path) -> None:
    store = f"sqlite:///{tmp_path}"  # a folder
    done = commands.bench(*MEASURE, "--repeats", "2", "--store", store, "--", sys.executable, "-c", SCRIPT)
    (root,) = full_disk.iterdir()
    assert f"bench sync --store {store} and bench sync --runs {root} --store {store} logs it later" in done.stderr


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("full_disk", ["-r1"], indirect=True)
def test_a_run_without_any_place_does_not_hide_earlier_records(tmp_path: Path, full_disk: Path) -> None:
    full_disk.rmdir()
    done = commands.bench(*MEASURE, "--repeats", "2", "--", sys.executable, "-c", SCRIPT)
    assert done.exit_code == FAULT
    assert "to log what was measured before: bench sync\n" in done.stderr
    assert len(list(tmp_path.glob(f"{OWN_RUNS}/measure/*/*/{RECORD.name}"))) == 1


def test_that_a_disk_was_full_is_known_without_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "is_full", lambda _: True)
    folder = tmp_path / "measure" / "execution" / "run"
    beginning(folder)

    def noted(_: object) -> bool:
        return (folder / FULL).exists() and not (folder / RESERVE).exists()

    assert command.execute(["sleep", "900"], folder / "steps", tick=noted).disk_full
    assert (folder / FULL).read_bytes() == b""
    marks(folder, [1, 2, 3, 4, 5, 6])
    (folder / RESERVE).write_bytes(b"0")  # bench was killed
    ((record, _),) = recover(tmp_path)
    assert (record.status, record.grade) == (Status.OK, "C")
    assert {"disk_full", "ended_early"} <= set(record.flags)
    assert not (folder / RESERVE).exists()
    for name in (files.RECORD.name, files.EXIT.name, *(path.name for path in files.STEPS.paths(folder))):
        (folder / name).unlink()
    marks(folder, [1, 2])
    ((record, _),) = recover(tmp_path)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert "disk" in record.error.message


@pytest.mark.usefixtures("one_gpu", "full_disk")
def test_without_any_place_the_figures_are_shown(tmp_path: Path) -> None:
    (tmp_path / "temporary").rmdir()
    done = commands.bench(*MEASURE, "--no-store", "--live", "--", sys.executable, "-c", SCRIPT)
    assert done.exit_code == FAULT
    assert "no other place took the record: " in done.stderr


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def refuse(_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        reserve.written(tmp_path, refuse, "")
    with pytest.raises(UserError, match="12 steps"):
        reserve.written(tmp_path / "a" / "b" / "c", full, "12 steps")


def test_space_is_held_while_a_command_runs_only(tmp_path: Path) -> None:
    with reserve.reserved(tmp_path):
        assert (tmp_path / RESERVE).stat().st_blocks * 512 >= reserve.RESERVE_BYTES
    with reserve.reserved(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lines_of_steps_wait_for_space(tmp_path: Path) -> None:
    steps = tmp_path / "later" / "steps.jsonl"
    with (tmp_path / "out").open("wb") as output:
        streams = Streams(r"iter (?P<step>\d+)", steps, output)
        for number in range(2):
            os.write(streams.stdout, f"iter {number}\n".encode())
            streams.read(streams.open[0])
            if not number:
                assert streams.unwritten > 0
                steps.parent.mkdir()
        assert streams.unwritten == 0
        streams.started()
        streams.drain()
    assert steps.read_text().count('"step"') == 2


@pytest.mark.parametrize(("lost", "flagged"), [({}, False), ({"lines_lost": True}, True), ({"disk_full": True}, True)])
def test_steps_that_may_be_missing_are_flagged(lost: dict[str, bool], flagged: bool, tmp_path: Path) -> None:
    spec = RunSpec(workload="command", workload_args={"argv": "x"}, device_type="cpu", open_devices=True)
    ended = command.Ended(exitcode=0, start_ns=0, end_ns=10**9, cpu_seconds=1.0, **lost)
    assert command.leave(spec, ended, tmp_path)
    assert ("disk_full" in files.RESULT.read(tmp_path).step_flags) is flagged
