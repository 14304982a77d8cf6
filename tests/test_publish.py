"""A suite that is fit to be published: nothing shorter than good practice asks for, nothing longer cut."""

from pathlib import Path
from typing import Any

import pytest

from bench.figures.flags import PUBLISH_SECONDS, PUBLISH_STEPS, PUBLISH_WARMUP_SECONDS, PUBLISH_WARMUP_STEPS
from bench.schema import Machine, Suite
from bench.suites.expand import expand
from bench.suites.load import load_suite
from bench.suites.publish import publishable
from tests.test_suite import BASE, CPU, SUITES, gpus

SHORT = {"warmup_steps": 10, "warmup_seconds": 30.0, "timeout_seconds": 600.0}


@pytest.mark.parametrize(
    ("defaults", "matrix", "published"),
    [
        ({}, {}, {**SHORT, "measure_seconds": 60.0}),
        (
            {"warmup_steps": 20, "warmup_seconds": 45, "measure_seconds": 90, "timeout_seconds": 900},
            {},
            {"warmup_steps": 20, "warmup_seconds": 45, "measure_seconds": 90, "timeout_seconds": 900},
        ),
        ({"measure_steps": 5}, {}, {**SHORT, "measure_steps": 50}),
        ({"measure_steps": 80, "measure_seconds": None}, {}, {**SHORT, "measure_steps": 80, "measure_seconds": None}),
        (
            {"warmup_steps": {"on": {"cpu": 3, "cuda": 12}}, "measure_steps": {"on": {"cpu": 5}}},
            {},
            {
                "warmup_steps": {"on": {"cpu": 10, "cuda": 12}},
                "warmup_seconds": 30.0,
                "timeout_seconds": 600.0,
                "measure_steps": {"on": {"cpu": 50}},
                "measure_seconds": {"on": {"cuda": 60.0}},
            },
        ),
        ({"workload": "command"}, {}, {"workload": "command", **SHORT}),
        ({"measure_steps": "many", "warmup_steps": True}, {}, {**SHORT, "measure_steps": "many", "warmup_steps": True}),
    ],
)
def test_a_suite_is_made_fit_to_be_published(
    defaults: dict[str, Any], matrix: dict[str, Any], published: dict[str, Any]
) -> None:
    suite = Suite(name="s", defaults=defaults, matrix=matrix)
    made = publishable(suite)
    assert made.defaults == published
    assert (made.repeats, made.idle_seconds) == (5, 60)
    assert publishable(made) == made
    assert suite.defaults == defaults  # the suite itself is as it was


def test_axes_and_cells_of_a_published_suite(tmp_path: Path) -> None:
    suite = Suite(
        name="s",
        defaults={**BASE, "measure_steps": None},
        matrix={"measure_seconds": {"on": {"cpu": [5, 20, 120], "cuda": [5]}}, "warmup_steps": [3, 4, 20]},
        include=[{"measure_steps": 7, "measure_seconds": None}],
        exclude=[{"measure_seconds": 120, "warmup_steps": 3}],
        repeats=7,
        idle_seconds=90,
    )
    made = publishable(suite)
    assert made.matrix == {
        "measure_seconds": {"on": {"cpu": [60.0, 120], "cuda": [60.0]}},
        "warmup_steps": [10, 20],
    }
    assert made.include == [{"measure_steps": 50, "measure_seconds": None}]
    assert made.exclude == [{"measure_seconds": 120, "warmup_steps": 10}]
    assert (made.repeats, made.idle_seconds) == (7, 90)
    runs = expand(made, CPU).runs
    assert len({run.config_id for run in runs}) == 4
    counting = publishable(Suite(name="s", defaults={"workload": "decoder_lm"}, include=[{"measure_steps": 7}]))
    assert counting.defaults["measure_seconds"] == 60
    assert counting.include == [{"measure_steps": 50, "measure_seconds": None}]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", [CPU, gpus(2)], ids=["cpu", "two-gpus"])
def test_every_shipped_suite_can_be_published(path: Path, machine: Machine) -> None:
    for run in expand(publishable(load_suite(path)), machine).runs:
        assert run.warmup_steps >= PUBLISH_WARMUP_STEPS
        assert run.warmup_seconds >= PUBLISH_WARMUP_SECONDS
        assert (run.measure_seconds or 0) >= PUBLISH_SECONDS or (run.measure_steps or 0) >= PUBLISH_STEPS
