"""The answer of a search as it is printed."""

from dataclasses import replace

import pytest
from rich.console import Console

from analytics.say.search import parts
from bench.cli import progress
from tests import rows
from tests.test_searched import GIVEN, TRIALS, find, oom, tried


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, *args: object) -> str:
    screen = Console(highlight=False, markup=False, width=width)
    monkeypatch.setattr(progress, "screen", lambda: screen)
    progress.print_parts(parts(find(*args)))  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_the_answer_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wide = printed(monkeypatch, capsys, 160, GIVEN, TRIALS)
    table = [line.split() for line in wide.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in table if row[1] in "abcd"] == ["0", "2", "1", "3"]
    assert "120 (117.1 to 123) s   150 (146.3 to 153.8) J    3 full   yes 100 % knee" in wide
    assert "310 J   1 probe               no" in wide
    assert "Least time: trial 0" in wide
    assert "95 % of the final hypervolume after 3 of 5 launched trials." in wide
    assert max(map(len, wide.splitlines())) <= 160


def test_narrow_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = printed(monkeypatch, capsys, 80, GIVEN, TRIALS)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "knee" in narrow
    assert "…" not in narrow, "cells are broken, not cut"


def test_what_was_stored_already(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [replace(trial, source="store") for trial in TRIALS[:3]]
    assert "hypervolume after the stored runs alone" in printed(monkeypatch, capsys, 120, GIVEN, [*stored, TRIALS[3]])


def test_what_was_never_launched_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = [oom(number, "e", runs=(), stage=None) for number in (5, 6)]
    first = replace(never[0], number=-1)
    told = printed(monkeypatch, capsys, 120, GIVEN, [first, *TRIALS, *never])
    assert "95 % of the final hypervolume after 3 of 5 launched trials." in told


def test_nothing_to_print(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for trials in ([], [oom(0, "a")]):
        told = printed(monkeypatch, capsys, 80, GIVEN, trials)
        assert "nothing is on it" in told
        assert "hypervolume" not in told


def test_hostile_text_stays_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bad = f"[bold]{rows.HOSTILE}\x1b[31m\nx"
    trials = [tried(0, "a", params={"precision": bad}), oom(1, "b", why=bad, params={"precision": bad})]
    told = printed(monkeypatch, capsys, 160, GIVEN, trials)
    assert "\x1b" not in told
    assert "[bold]" in told
