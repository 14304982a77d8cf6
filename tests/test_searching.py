"""Searching beats chance on a grid that was measured once; all of it: `python -m tests.searching`."""

import statistics

from tests.searching import trials_to_front

TASK = "[time, cost]"


def trials(sampler: str, *, stored: bool = False, most: int = 400) -> float:
    return statistics.median(trials_to_front(TASK, sampler, seed, stored=stored, most=most) for seed in range(9))


def test_a_search_needs_half_the_trials_of_chance_and_with_a_store_a_quarter() -> None:
    """Chance and a grid need at least so many: they are stopped there."""
    enough = round(max(2 * trials("tpe"), 4 * trials("tpe", stored=True)))
    assert 10 < enough < 100
    assert trials("random", most=enough) == enough
    assert trials_to_front(TASK, "grid", 0, most=enough) == enough
