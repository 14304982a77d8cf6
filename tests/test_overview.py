"""The Overview: what runs now, a row a suite, and what failed and why."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics.runs import store
from analytics.runs.frame import frame
from app import live
from app.pages import overview
from bench.files import held
from bench.folder import LOCK, PROGRESS
from bench.record import Status
from bench.store import tracker as tracking
from bench.store.progress import Flight, Seen
from tests import rows
from tests.pages import EVIL, Open, markup, opener, texts
from tests.test_live import HERE, NOW, flight, written

OOM = Status.OUT_OF_MEMORY


page = opener("overview")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (86400 * 3 + 4 * 3600, "3 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert live.duration(seconds) == words


def test_what_runs_is_told_with_what_is_left() -> None:
    running = flight(
        ago=90, run_began_at=NOW - timedelta(seconds=12), current="tiny r1", remaining_seconds=60, failed=2
    )
    assert live.words(running, NOW) == [
        f"s on {HERE}: 1 of 4 runs done, 2 runs failed",
        "Now: tiny r1, for 12 s",
        "Began 1 min 30 s ago, about 48 s left",
    ]
    assert live.words(flight(to_do=None, unit="trials"), NOW)[:2] == [f"s on {HERE}: 1 trial done", "Now: starting"]
    assert live.words(running.model_copy(update={"remaining_seconds": 3}), NOW)[2].endswith("about to end")
    assert "left" not in live.words(running.model_copy(update={"remaining_seconds": None}), NOW)[2]


def test_what_stopped_and_what_is_silent() -> None:
    stopped, silent = live.past_words(Seen(flight(), "stopped")), live.past_words(Seen(flight(), "silent"))
    assert stopped.endswith("2026-01-02 11:59:00 UTC, after 1 of 4 runs done. Run the same command again to resume.")
    assert "no news since 2026-01-02 11:59:00 UTC" in silent


def test_a_row_a_suite_is_its_newest_execution() -> None:
    given = [rows.make(4, v=9e9, execution="20250101T000000-old")]
    given[0]["started_at"] = "2025-01-01T00:00:00+00:00"
    given += [rows.make(1, repeat=r, v=2e9 * (1 + 0.1 * r)) for r in range(2)] + [rows.make(2, "small", readings="e")]
    given += [rows.make(2, status=Status.FAILED, readings=""), rows.make(4, status=Status.SKIPPED, readings="")]
    given.append(rows.make(suite="later", repeat=50, readings=""))
    later, row = overview.suites(frame(given)).to_dict("records")
    assert later["suite"] == "later"
    assert all(later[name] is None or later[name] != later[name] for name in ("joules", "grams", "usd")), "never 0"
    assert row["runs"] == "3 ok, 1 failed, 1 skipped"
    assert (row["executions"], row["host"]) == (2, "synthetic-host")
    best = (20 * 22) ** 0.5
    assert row["best"] == f"{best:.3g}", "a mean over repeats, not the luckiest run, nor that of the old one"
    given.append(rows.make(1, repeat=2, v=2e9 * 1.05))
    assert overview.suites(frame(given))["best"][1].startswith("21.0 (18.6-"), "three have an interval"
    assert row["fastest"] == "synthetic tiny 1 device batch 8 per device fp32 ddp"
    assert (row["joules"], row["joules_estimated"]) == (200, 450)
    assert row["grams"] == pytest.approx(200 / 3.6e6 * 400)
    assert row["grams_estimated"] == pytest.approx(150 / 3.6e6 * 400)
    assert row["usd"] == pytest.approx(0.03)


def test_runs_that_failed_alike_are_one_reason() -> None:
    message = "rank {0}: tried to allocate {1}.5 GiB\nmore in another line"
    given = [rows.make(2, repeat=r, status=OOM, message=message.format(r, 10 + r)) for r in range(3)]
    given += [rows.make(4, repeat=9, status=Status.FAILED, message="another cause"), rows.make(1, batch=4)]
    given.append(rows.make(4, repeat=8, status=Status.SKIPPED, message="needs a GPU"))
    other, memory, skip = overview.reasons(frame(given)).itertuples()
    assert (memory.runs, memory.outcome, memory.suites) == (3, "out of memory", "synthetic")
    assert memory.reason == "SyntheticError: rank 2: tried to allocate 12.5 GiB more in another line"
    assert memory.remedy.startswith("Make it smaller (")
    assert "batch_size_per_device: 4" in memory.remedy
    assert other.reason == "SyntheticError: another cause"
    assert "--retry" in other.remedy
    (measured,) = overview.reasons(frame(given[3:4]).assign(open_devices=True)).itertuples()
    assert "measure it again" in measured.remedy
    assert "--retry" not in measured.remedy
    assert other.newest > memory.newest
    assert overview.lines(skip) == ["skipped: 1 run (synthetic): needs a GPU"]
    assert overview.lines(memory)[0].startswith("out of memory: 3 runs, the newest 2026-01-02 03:06:05 UTC")
    assert overview.reasons(frame(given[4:5])).empty


def test_the_newest_suite_without_a_run_that_ended_well_has_no_speed() -> None:
    given = [rows.make(2, readings="e"), rows.make(suite="later", repeat=50, status=Status.INVALID, readings="")]
    newest, _ = overview.suites(frame(given)).itertuples()
    first, second = (str(block.text) for block in overview.answer(newest, ""))
    assert first == "later: 1 invalid."
    assert "nan" not in second


@pytest.mark.parametrize(("message", "asks"), [("the loss went from 2 to nan", True), ("nodes train apart", False)])
def test_the_remedy_of_an_invalid_run_is_of_its_reason(message: str, asks: bool) -> None:
    (reason,) = overview.reasons(frame([rows.make(status=Status.INVALID, message=message)])).itertuples()
    assert ("learning rate" in reason.remedy) == asks


@pytest.mark.parametrize("status", [Status.TIMEOUT, Status.INVALID, Status.FAILED, OOM, "of another version"])
def test_every_failure_is_told(status: Any) -> None:
    given = rows.make(status=Status.FAILED) | {"status": status}
    for name in ("error_message", "error_type", "config_id", "label"):
        given.pop(name)
    (reason,) = overview.reasons(frame([given, given | {"repeat": 1, "run_id": "x"}])).itertuples()
    assert reason.runs == 2
    assert bool(reason.remedy) == (status in set(Status))
    assert "no reason is known" in overview.lines(reason)


def test_the_page_of_suites_and_reasons(page: Open) -> None:
    given = [rows.make(), rows.make(2, status=OOM, message="no room"), rows.make(suite="other")]
    app = page([*given, rows.make(4, status=Status.SKIPPED, message="needs a GPU")])
    assert app.dataframe[0].value["suite"].tolist() == ["synthetic", "other"]
    assert "CO2e [g]" in str(app.dataframe[0].proto.columns)
    assert "out of memory: 1 run" in texts(app)
    assert "SyntheticError: no room" in texts(app)
    assert "skipped: 1 run (synthetic): needs a GPU" in texts(app)
    assert "Nothing is running." in texts(app)
    assert "did not end well" not in texts(page([rows.make()]))


def test_throughput_over_time_is_that_of_one_configuration() -> None:
    old = [rows.make(1, repeat=r, v=2e9, execution="20250101T000000-old") for r in range(3)]
    old = [row | {"started_at": "2025-01-01T00:00:00+00:00"} for row in old]
    new = [rows.make(1, repeat=r, v=3e9 * (1 + r / 100)) for r in range(3)]
    fast = [rows.make(1, "tiny", "bf16", repeat=9, v=9e9)]
    (group,) = overview.trends(frame([*old, *new, *fast])).groups
    assert group.name == "synthetic"
    assert [mark.value for mark in group.marks] == [pytest.approx(20), pytest.approx(30.3, rel=0.01)]
    last = group.marks[1]
    assert (last.low or 99) < last.value < (last.high or 0)
    assert overview.trends(frame(fast)).groups[0].marks[0].low is None
    other = [row | {"suite": "other"} for row in (*old, *new)]
    twice = overview.trends(frame([*old, *new, *other, rows.make(suite="once")]))
    assert {group.name for group in twice.groups} == {"synthetic", "other"}, "what ran once has no course"
    assert {group.marks[0].value for group in twice.groups} == {1.0}, "samples of two suites have no axis in common"
    there = [row | {"host": "another", "samples_per_second": 1e6} for row in new]
    (here,) = overview.trends(frame([*old, *new, *(row | {"execution": "x"} for row in there)])).groups
    assert len(here.marks) == 2, "another machine is no part of the course"
    assert overview.trends(frame([rows.make(status=Status.FAILED)])).groups == ()


def test_energy_and_cost_by_suite() -> None:
    table = overview.suites(frame([rows.make(), rows.make(2, readings="e", suite="other")]))
    energy = overview.taken(table, {"joules": "measured", "joules_estimated": "estimated"}, "energy", 0.5)
    shown = {group.name: {mark.name: mark.value for mark in group.marks} for group in energy.groups}
    assert shown == {"measured": {"synthetic": 50.0}, "estimated": {"other": 75.0, "synthetic": 75.0}}
    assert overview.taken(table, {"usd_owned": "owned"}, "cost").groups == ()
    assert overview.taken(table, {"joules_estimated": "~ estimated"}, "energy").axis == "energy, ~ estimated"


def test_a_suite_leads_to_its_figures(page: Open) -> None:
    given = [rows.make(), rows.make() | {"suite": "a b&c"}]
    links = page(given, suite="a b&c").get("page_link")[:4]
    assert len(links) == 4
    for link in links:
        assert "a b&c" in str(link.proto.query_string).replace("%20", " ").replace("+", " ").replace("%26", "&")
    assert page(given, suite="gone").selectbox(key="suite").value == "All suites"


def flying(runs: Path, **fields: Any) -> Path:
    now = datetime.now(UTC)
    return written(runs, flight(**{"began_at": now, "updated_at": now, **fields}))


def test_the_page_shows_what_runs(page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(live.RUNS, str(tmp_path / "elsewhere"))
    folder = flying(tmp_path / "elsewhere", current="tiny r1")
    flying(tmp_path / "elsewhere", suite="killed")
    with held(folder / LOCK, "busy"):
        app = page([rows.make()])
        assert "Running: " in texts(app)
        assert f"s on {HERE}: 1 of 4 runs done" in texts(app)
        assert "killed on" in texts(app)
        assert "Run the same command again to resume." in texts(app)
        (bar,) = app.get("progress")
        assert bar.proto.value == 25
    assert "Nothing is running." in texts(page([rows.make()]))


def test_what_runs_is_shown_before_there_are_runs(page: Open, tmp_path: Path) -> None:
    with held(flying(tmp_path / "runs") / LOCK, "busy"):
        for given in ([], tracking.StoreError("there is no store")):
            app = page(given)
            assert "Running: " in texts(app)
            assert not app.metric


def test_numbers_follow_when_a_run_has_ended(page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = flying(tmp_path / "runs")
    with held(folder / LOCK, "busy"):
        app = page([rows.make()])
        before = live._ended(live.look())
        text = (folder / PROGRESS).read_text()
        (folder / PROGRESS).write_text(text.replace('"current":null', '"current":"the next run"'))
        assert live._ended(live.look()) == before, "nothing has ended"
        monkeypatch.setattr(store, "load", lambda uri=None, **_: frame([rows.make(), rows.make(2)]))
        app.run()
        assert "1 run in 1 suite" in texts(app)
        (folder / PROGRESS).write_text(text.replace('"done":1', '"done":2'))
        assert live._ended(live.look()) != before
        app.run()
        assert "2 runs in 1 suite" in texts(app), "what is new was read"
    assert live._ended(live.look()) == frozenset()


def test_the_store_is_asked_for_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [[flight()], tracking.StoreError("down")]

    def flights(uri: str | None) -> Any:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    live._flights.clear()
    monkeypatch.setattr(tracking, "flights", flights)
    assert live._flights("x") == [flight()]
    del answers[0]
    assert live._flights("x") == [flight()], "asked a moment ago"
    live._flights.clear()
    assert live._flights("x") == []


def test_hostile_text_of_what_runs_and_failed_is_never_markup(page: Open, tmp_path: Path) -> None:
    given = [rows.make()]
    for index, evil in enumerate(EVIL):
        over = dict.fromkeys(("label", "suite", "error_message", "error_type", "host", "device_name"), evil)
        given.append(rows.make(repeat=index, status=Status.FAILED) | over | {"run_id": evil})
        given.append(rows.make(repeat=index, status=Status.SKIPPED) | over | {"status": "skipped"})
    locks = []
    for index, evil in enumerate(EVIL):
        folder = flying(tmp_path / "runs", suite=f"s{index}")
        told = Flight.model_validate_json((folder / PROGRESS).read_text())
        hostile = dict.fromkeys(("suite", "current", "host"), evil)
        (folder / PROGRESS).write_text(told.model_copy(update=hostile).model_dump_json())
        locks.append(os.fspath(folder / LOCK))
    with held(Path(locks[0]), "busy"):
        app = page(given, suite=EVIL[0])
        whole = page(given)
    for shown in (app, whole):
        for evil in EVIL:
            assert evil not in markup(shown)
    assert EVIL[0] in texts(whole)


def test_a_mean_of_many_repeats_is_bootstrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    once = overview.geometric_mean
    monkeypatch.setattr(overview, "geometric_mean", lambda rates: asked.append(len(rates)) or once(rates))
    overview._mean.cache_clear()
    df = frame([rows.make(repeat=number) for number in range(25)])
    assert overview.suites(df)["best"].tolist() == overview.suites(df)["best"].tolist()
    assert asked == [25]
