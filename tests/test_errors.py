"""Errors for people: their messages, their exit codes, and how `bench.cli.main` shows them."""

import errno
from pathlib import Path
from unittest.mock import Mock

import click
import pytest

from bench.errors import FAILED, FAULT, STOPPED, WRONG_USE, BadValue, Stopped, UserError, located
from bench.files import write_text
from bench.run.launcher import LaunchError
from bench.store.tracker import StoreError
from bench.suites.load import SuiteError
from tests.commands import bench

FULL = OSError(errno.ENOSPC, "No space left on device", "/data/runs/x")
FREE = "free some space, then run the same command again"


def test_messages_are_kept_in_order_and_once() -> None:
    error = UserError("b", "a", "b")
    assert error.messages == ["b", "a"]
    assert str(error) == "b\na"
    assert error.code == WRONG_USE


def test_a_place_is_put_before_each_message_and_the_code_stays() -> None:
    with pytest.raises(UserError) as caught, located("--by"):
        raise BadValue("no such objective", "nor that one", code=FAILED)
    assert caught.value.messages == ["--by: no such objective", "--by: nor that one"]
    assert caught.value.code == FAILED


def test_a_bad_value_is_a_value_error_too() -> None:
    assert issubclass(BadValue, UserError)
    assert issubclass(BadValue, ValueError)


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UserError("one", "two"), WRONG_USE, ["bench: one", "bench: two"]),
        (UserError("nothing was found", code=FAILED), FAILED, ["bench: nothing was found"]),
        (SuiteError(["a.yaml: wrong"]), WRONG_USE, ["bench: a.yaml: wrong"]),
        (LaunchError("no node"), FAILED, ["bench: no node"]),
        (StoreError("down", code=FAULT), FAULT, ["bench: down"]),
        (Stopped("Stopped. Resume it."), STOPPED, ["bench: Stopped. Resume it."]),
        (UserError("\x1b[31mred"), WRONG_USE, ["bench: ?[31mred"]),
        (KeyboardInterrupt(), STOPPED, ["bench: Stopped."]),
        (click.Abort(), STOPPED, ["bench: Stopped."]),
        (OSError("the disk is full"), FAULT, ["bench: the disk is full"]),
        (FULL, FAULT, ["bench: No space left on device: /data/runs/x", FREE]),
    ],
)
def test_errors_are_shown_without_a_traceback(
    error: BaseException, code: int, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.cli.cli.main", Mock(side_effect=error))
    done = bench("run")
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.splitlines() == lines


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space") as caught:
        write_text(tmp_path / "record.json", "{}")
    assert caught.value.filename == str(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []
