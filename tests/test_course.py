"""A command while it runs: what it has used so far, by rows of meters that grow; budgets that end it; its live line."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.text import number
from app.live import words
from bench.cli.progress import LiveLine
from bench.folder import PROGRESS
from bench.meters.meter import Reading
from bench.record import RunRecord
from bench.run.course import Course, Follower, LiveEnergy
from bench.run.watch import Tally
from bench.schema import Site
from bench.store.progress import Flight, in_flight
from tests import commands
from tests.test_measure import one_gpu  # noqa: F401  a fixture

S = 10**9
ENDLESS = "import time\nfrom bench.steps import step\nwhile True:\n    time.sleep(0.01)\n    step(samples=4)"


def rows(first: float, last: float, watts: dict[str, float]) -> str:
    """Counters of GPUs every 0.1 s between two times, as the sidecar writes them."""
    times = [round(t * S / 10) for t in range(round(first * 10), round(last * 10))]
    readings = (
        Reading(t_ns=t, wall_ns=1, source="nvml", component="gpu", device=gpu, energy_uj=round(power * t / 1000))
        for t in times
        for gpu, power in watts.items()
    )
    return "".join(reading.to_json() + "\n" for reading in readings)


def seen(gpu: str, own: int, t: float) -> str:
    message = json.dumps({"own": own, "foreign": 0})
    row = Reading(
        t_ns=round(t * S), wall_ns=1, source="nvml", component="gpu", device=gpu, event="conditions", message=message
    )
    return row.to_json() + "\n"


def test_energy_so_far_adds_up_however_often_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "meters-0.jsonl"
    live = LiveEnergy(path, ["nvml"], ["a", "b"], start_ns=0)
    assert live.update() == []
    for begin in range(0, 60, 3):
        text = rows(begin, begin + 3, {"a": 100, "b": 40})
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):  # half a line is no row
            with path.open("a") as file:
                file.write(part)
            readings = live.update()
    joules = {reading.device: reading.energy_joules for reading in readings}
    seconds = readings[0].seconds
    assert 56.9 <= seconds <= 58.9  # the last three seconds are still open
    assert joules == {"a": pytest.approx(100 * seconds, abs=1), "b": pytest.approx(40 * seconds, abs=1)}
    assert live.watts == pytest.approx(140, rel=0.01)


def test_gpus_of_others_do_not_count_once_the_own_ones_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "meters-0.jsonl"
    path.write_text(rows(0, 10, {"a": 100, "b": 40}) + seen("a", 1, 5) + seen("b", 0, 5))
    live = LiveEnergy(path, ["nvml"], ["a", "b"], start_ns=0)
    assert [reading.device for reading in live.update()] == ["a"]
    assert live.gpus == ["a"]


def follower(told: list[Course], **fields: object) -> Follower:
    values = {"site": Site(), "energy": None, "before": {}, "limits": {}, "listeners": [told.append], **fields}
    return Follower(**values)  # type: ignore[arg-type]


def test_earlier_runs_count_for_a_budget() -> None:
    told: list[Course] = []
    assert follower(told, before={"seconds": 99.0}, limits={"seconds": 100.0}).tick(Tally()) is False
    assert follower(told, before={"seconds": 100.0}, limits={"seconds": 100.0}).tick(Tally()) is True
    assert follower(told, limits={"cost_usd": 0.1}).tick(Tally()) is False  # not known: nothing is ended


@pytest.mark.parametrize(
    ("fields", "left", "training_left"),
    [
        ({"window": (60.0, None)}, 50.0, None),
        ({"window": (None, 300)}, 20.0, None),
        ({"window": (None, 300), "total_steps": 1005.0}, 20.0, 90.0),
        ({"window": (60.0, None), "total_steps": 1005.0}, 50.0, 90.0),
        ({"total_steps": 1005.0}, 90.0, 90.0),
        ({}, None, None),
    ],
)
def test_the_time_left_follows_from_what_ends_the_command(
    fields: dict[str, object], left: float | None, training_left: float | None
) -> None:
    told: list[Course] = []
    follower(told, **fields).tick(Tally(steps=100, seconds=10.0, seen=105))
    assert (told[0].left, told[0].training_left) == (left, training_left)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("budget", ["3s", "0.3Wh"])
def test_a_budget_that_is_used_up_ends_the_command_and_its_measurement_is_kept(budget: str, tmp_path: Path) -> None:
    options = ["--no-store", "--idle-seconds", "0", "--runs", "runs", "--repeats", "3", "--budget", budget, "--enforce"]
    done = commands.bench("measure", *options, "--", sys.executable, "-c", ENDLESS)
    assert done.exit_code == 130
    assert f"the budget of {budget} is used up" in done.stderr
    (path,) = tmp_path.glob("runs/*/*/*/record.json")
    record = RunRecord.model_validate_json(path.read_text())
    assert record.status.value == "ok"
    assert "ended_early" in record.flags
    assert record.measurement is not None
    assert record.measurement.steps > 10
    assert in_flight(tmp_path / "runs", [], datetime.now(UTC)) == []


@pytest.mark.parametrize(("budget", "needs"), [("5kg", "--region"), ("5usd", "--price")])
def test_a_budget_that_cannot_be_enforced_is_refused(
    budget: str, needs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WATTBENCH_REGION", raising=False)
    done = commands.bench("measure", "--budget", budget, "--enforce", "--", "touch", "ran")
    assert done.exit_code == 2
    assert f"--budget {budget} needs {needs}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gpu")
def test_the_dashboard_shows_a_measurement_that_runs(tmp_path: Path) -> None:
    """The command itself looks, as soon as its steps are told; its folder lies beside that of the suites."""
    script = (
        "import json, pathlib, time\nfrom bench.steps import step\n"
        f"place = next(pathlib.Path('.wattbench').glob('*/*/{PROGRESS}'))\n"
        "while not (json.loads(place.read_text()).get('steps') or 0) > 4:\n    time.sleep(0.01)\n    step(samples=4)\n"
        "from pathlib import Path\nfrom datetime import UTC, datetime\nfrom bench.store.progress import in_flight\n"
        "seen = in_flight(Path('runs'), [], datetime.now(UTC))\n"
        "Path('seen.json').write_text(json.dumps([(one.state, one.flight.model_dump(mode='json')) for one in seen]))\n"
    )
    options = ["--no-store", "--idle-seconds", "0", "--name", "mine", "--repeats", "2"]
    done = commands.bench("measure", *options, "--", sys.executable, "-c", script)
    assert done.exit_code == 0, done.stderr
    ((state, fields),) = json.loads((tmp_path / "seen.json").read_text())
    flight = Flight.model_validate(fields)
    assert (state, flight.suite, flight.to_do, flight.done) == ("running", "mine", 2, 1)
    head, now, _ = words(flight, datetime.now(UTC))
    assert "1 of 2 runs done" in head
    assert f"{flight.steps} steps at {number(flight.steps_per_second or 0)} steps/s" in now
    assert in_flight(tmp_path / "runs", [], datetime.now(UTC)) == []


@pytest.mark.parametrize(
    ("joules", "left", "training", "words"),
    [
        (7.2e4, 95.0, 95.0, "72 kJ, 0.5 USD, about 1 min 35 s of the training left"),
        (56.2, 1.0, None, "56.2 J, 0.5 USD, about 1 s of the measurement left"),
        (56.2, 1.0, 95.0, "56.2 J, 0.5 USD, about 1 s of the measurement and 1 min 35 s of the training left"),
    ],
)
def test_the_live_line_is_for_terminals_only_and_says_of_what_the_time_is_left(
    joules: float,
    left: float,
    training: float | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {"energy_joules": joules, "cost_usd": 0.5}
    course = Course(Tally(steps=100, seconds=10.0, seen=105), 11.0, left, 230.0, used, training)
    LiveLine().draw(course)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    line = LiveLine()
    line.draw(course)
    line.clear()
    text = capsys.readouterr().err
    assert f"105 steps, 10 steps/s, 230 W, {words}" in text
    assert "\n" not in text
