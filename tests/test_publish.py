"""A suite that is fit to be published: nothing shorter than good practice asks for, nothing longer cut."""

from pathlib import Path
from typing import Any

import pytest

from bench.figures.flags import PUBLISH_SECONDS, PUBLISH_STEPS, PUBLISH_WARMUP_SECONDS, PUBLISH_WARMUP_STEPS
from bench.schema import Machine, RunSpec, Suite
from bench.suites.expand import expand
from bench.suites.load import SuiteError, load_suite
from bench.suites.publish import publishable
from tests.test_suite import BASE, CPU, SUITES, gpus

SHORT = {"warmup_steps": 10, "warmup_seconds": 30.0, "timeout_seconds": 600.0}
STEPS = {**BASE, "measure_steps": None}


def published(suite: Suite, machine: Machine = CPU) -> list[RunSpec]:
    """The configurations of a suite that is published, each once."""
    return list({run.config_id: run for run in expand(suite, machine, publish=True).runs}.values())


@pytest.mark.parametrize(
    ("defaults", "cpu", "gpu"),
    [
        ({}, {**SHORT, "measure_seconds": 60.0}, {}),
        (
            {"warmup_steps": 20, "warmup_seconds": 45.0, "measure_seconds": 90.0, "timeout_seconds": 900.0},
            {"warmup_steps": 20, "warmup_seconds": 45.0, "measure_seconds": 90.0, "timeout_seconds": 900.0},
            {},
        ),
        ({"measure_steps": 5}, {**SHORT, "measure_steps": 50, "measure_seconds": None}, {}),
        ({"measure_steps": 80, "measure_seconds": None}, {**SHORT, "measure_steps": 80, "measure_seconds": None}, {}),
        (
            {"warmup_steps": {"on": {"cpu": 3, "gpu": 12}}, "measure_steps": {"on": {"cpu": 5}}},
            {**SHORT, "measure_steps": 50, "measure_seconds": None},
            {"warmup_steps": 12, "measure_steps": None, "measure_seconds": 60.0},
        ),
        (
            {"workload": "command", "workload_args.argv": "true {batch_size_per_device}", "workload_args.preset": None},
            {**SHORT, "measure_steps": None, "measure_seconds": None},
            {},
        ),
    ],
)
def test_a_run_is_made_fit_to_be_published(defaults: dict[str, Any], cpu: dict[str, Any], gpu: dict[str, Any]) -> None:
    base = {name: value for name, value in STEPS.items() if name not in ("measure_steps", "workload_args.preset")}
    arguments = {} if "workload" in defaults else {"workload_args.preset": "tiny"}
    given = {name: value for name, value in defaults.items() if name != "workload_args.preset"}
    suite = Suite(name="s", defaults={**base, **arguments, **given})
    for machine, values in ((CPU, cpu), (gpus(1), cpu | gpu)):
        plan = expand(suite, machine, publish=True)
        assert (plan.suite.repeats, plan.suite.idle_seconds, len(plan.runs)) == (5, 60, 5)
        (run,) = published(suite, machine)
        assert {name: getattr(run, name) for name in values} == values
        assert publishable(run) == run
    assert (suite.repeats, suite.defaults) == (1, {**base, **arguments, **given})  # the suite itself is as it was


def test_values_that_a_floor_makes_equal_are_one_configuration() -> None:
    suite = Suite(
        name="s",
        defaults=STEPS,
        matrix={"measure_seconds": {"on": {"cpu": [5.0, 20.0, 120.0], "gpu": [5.0]}}, "warmup_steps": [3, 4, 20]},
        include=[{"measure_steps": 7, "measure_seconds": None}],
        exclude=[{"measure_seconds": 120.0, "warmup_steps": 3}, {"measure_seconds": 5.0}],
        repeats=7,
        idle_seconds=90,
    )
    plan = expand(suite, CPU, publish=True)
    assert (plan.suite.repeats, plan.suite.idle_seconds, len(plan.runs)) == (7, 90, 5 * 7)
    assert {(run.measure_seconds, run.measure_steps, run.warmup_steps) for run in plan.runs} == {
        (60.0, None, 10),
        (60.0, None, 20),
        (120.0, None, 10),  # what is left out is left out as written: 3 steps of warm-up, not 4
        (120.0, None, 20),
        (None, 50, 10),
    }
    assert len({run.config_id for run in plan.runs}) == 5
    counting = Suite(name="s", defaults={**BASE, "measure_steps": None}, include=[{"measure_steps": 7}])
    assert [(run.measure_steps, run.measure_seconds) for run in published(counting)] == [(50, None)]


@pytest.mark.parametrize("bad", [{"measure_steps": "many"}, {"warmup_steps": True}, {"warmup_steps": 0}])
def test_what_is_no_number_is_a_mistake_as_ever(bad: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match=next(iter(bad))):
        expand(Suite(name="s", defaults=STEPS | bad), CPU, publish=True)
    twice = Suite(name="s", defaults=STEPS, include=[{"warmup_steps": 3}, {}])
    with pytest.raises(SuiteError, match="duplicate runs"):
        expand(twice, CPU, publish=True)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", [CPU, gpus(2)], ids=["cpu", "two-gpus"])
def test_every_shipped_suite_can_be_published(path: Path, machine: Machine) -> None:
    for run in expand(load_suite(path), machine, publish=True).runs:
        assert run.warmup_steps >= PUBLISH_WARMUP_STEPS
        assert run.warmup_seconds >= PUBLISH_WARMUP_SECONDS
        assert (run.measure_seconds or 0) >= PUBLISH_SECONDS or (run.measure_steps or 0) >= PUBLISH_STEPS
