"""Searching beats chance on a grid that was measured once; all of it: `python -m tests.searching`."""

import statistics

import pytest

from tests.searching import trials_to_front

SEEDS = range(9)


@pytest.mark.parametrize("task", ["[time, cost]"])
def test_a_search_needs_half_the_trials_of_chance_and_with_a_store_a_quarter(task: str) -> None:
    chance = statistics.median(trials_to_front(task, "random", seed) for seed in SEEDS)
    assert statistics.median(trials_to_front(task, "tpe", seed) for seed in SEEDS) <= 0.5 * chance
    assert statistics.median(trials_to_front(task, "tpe", seed, stored=True) for seed in SEEDS) <= 0.25 * chance
    assert trials_to_front(task, "grid", 0) > chance
