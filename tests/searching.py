"""Trials that searches take to find the front, on a grid that was measured once: `python -m tests.searching [--seeds 30]`.

A search is played back until its points have 95 % of the hypervolume of the full grid (on logarithms, from the worst point of
the grid). With the store, the runs of a plain suite are known beforehand: DDP with AdamW and no checkpointing, in all
batches, precisions and numbers of devices (30 of 300).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import optuna

from analytics.judge.front import hypervolume
from analytics.judge.objectives import objective
from analytics.search.searcher import Scores, Searcher
from analytics.search.study import open_study
from bench.schema import RunSpec
from tests.replay import Recorded, search, space

SHARE = 0.95
TASKS = ("[time, cost]", "[time, cost, memory]", "[time, energy, memory]")


class _Found(Exception):
    """Enough of the front is known."""


@cache
def _grid(task: str) -> tuple[np.ndarray, float]:
    """Return the worst point of the full grid, and its hypervolume from there."""
    asked = search(task)
    df = Recorded(space(asked)).frame()
    found = [objective(goal, asked.work, df) for goal in asked.objectives]
    points = np.column_stack([one.values(df[df["status"] == "ok"]) for one in found if one])
    return points.max(axis=0), hypervolume(points, points.max(axis=0))


def trials_to_front(task: str, sampler: str, seed: int, *, stored: bool = False, most: int = 400) -> int:
    """Return how many configurations a search runs before it has 95 % of the hypervolume of the grid, or `most`."""
    asked = search(task, seed, sampler=sampler, budget={"trials": most})
    over = space(asked)
    recorded, score = Recorded(over), Scores(asked)
    goals = [goal.name for goal in asked.objectives]

    def point(rows: Sequence[dict[str, Any]]) -> np.ndarray | None:
        scored = score(rows)
        return np.array([scored.values[name] for name in goals]) if scored.why is None else None

    worst, whole = _grid(task)
    seen: list[np.ndarray] = []

    def done() -> bool:
        return bool(seen) and hypervolume(np.array(seen), worst) >= SHARE * whole

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        rows = recorded(specs, number, stage)
        if (known := point(rows)) is not None:
            seen.append(known)
        if done():
            raise _Found
        return rows

    one = Searcher(over, open_study(None, "replay", over, sampler), run, score)
    if stored:
        df = recorded.frame()
        plain = (df["parallelism"] == "ddp") & (df["memory"] == "none") & (df["optimizer"] == "adamw")
        one.add_known(df[plain])
        seen += [np.array(trial.values) for trial in one.study.trials if trial.values]
        if done():
            return 0
    with suppress(_Found):
        one.search()
    return len(recorded.configurations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--samplers", default="random,grid,tpe", help="also gp (slow), nsga2, nsga3")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        f"trials to {100 * SHARE:.0f} % of the hypervolume of 300 configurations; median (10 to 90 %) of {given.seeds} seeds"
    )
    for task in TASKS:
        base = 0.0
        for sampler in [*given.samplers.split(","), "tpe and the store"]:
            name, stored = sampler.split()[0], "store" in sampler
            counts = [
                trials_to_front(task, name, seed, stored=stored) for seed in range(given.seeds if name != "grid" else 1)
            ]
            middle = statistics.median(counts)
            base = base or middle
            low, high = np.quantile(counts, [0.1, 0.9])
            told = f"{middle:6.1f} ({low:.0f} to {high:.0f})   {middle / base:.2f} × the first"
            print(f"{task:24} {sampler:18} {told}", flush=True)


if __name__ == "__main__":
    main()
