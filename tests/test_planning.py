"""Planning again after each run costs the same for each, however many there are, and says what looking at all says."""

from pathlib import Path

import pytest

from bench.run.runner import Execution, estimate_seconds
from bench.suites.expand import Expansion, expand
from tests.benchmarks.planning import MACHINE, live, suite
from tests.clock import python_calls


def test_planning_costs_each_run_the_same(tmp_path: Path) -> None:
    def work(configurations: int) -> int:
        return python_calls(
            lambda: live(expand(suite(configurations, 2), MACHINE), tmp_path / str(configurations)), built_in=True
        )

    work(4)  # what is imported and compiled at first use
    few, many = work(40), work(160)
    assert many < 4.4 * few, "four times the runs take four times the calls"


def test_the_forecast_is_that_of_all_runs_that_are_left(tmp_path: Path) -> None:
    seen: list[float] = []

    def ended(execution: Execution, seconds: float | None) -> None:
        took = {}
        for record in execution.records.values():
            took[record.config_id] = max(record.duration_seconds, took.get(record.config_id, 0.0))
        left = [spec for spec in execution.plan.runs if spec.run_id not in execution.records]
        assert seconds == pytest.approx(sum(took.get(spec.config_id, estimate_seconds(spec)) for spec in left))
        seen.append(seconds or 0.0)

    live(expand(suite(6, 3), MACHINE), tmp_path, ended)
    assert len(seen) == 18
    assert seen[-1] == pytest.approx(0, abs=1e-9)


def test_the_forecast_is_unknown_while_one_run_is(tmp_path: Path) -> None:
    known, unknown = (run.changed(meters=[]) for run in expand(suite(2, 1), MACHINE).runs)
    unknown = unknown.changed(measure_seconds=None, measure_steps=5, saves=None, needs=None)
    plan = Expansion(suite(2, 1), [unknown, known])
    seen: list[float | None] = []
    live(plan, tmp_path, lambda _, seconds: seen.append(seconds))
    assert seen == [estimate_seconds(known), 0.0]
