"""How long a law takes to fit: `python -m tests.benchmarks.laws [--rounds 5]`. Target: 1 s for 100 runs and 1,000 draws.

Beside it stands the plain law with scipy's bootstrap of 1,000 resamples, in the same process and turn by turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pandas as pd
from scipy import stats

from analytics.law import law as laws

RUNS, DRAWS = 100, 1000


def table(seed: int = 0) -> pd.DataFrame:
    """100 configurations: seven numbers of devices, three sizes of model."""
    random = np.random.default_rng(seed)
    devices, work = random.choice([1, 2, 4, 8, 16, 32, 64], RUNS), random.choice([1e9, 3e9, 1e10], RUNS)
    speed = devices * 1e14 / (1 + 0.1 * (1 - 1 / devices)) * np.exp(0.01 * random.normal(size=RUNS))
    return pd.DataFrame({"devices": devices, "num_nodes": np.ceil(devices / 8), "work": work, "speed": speed})


def main() -> None:
    """Print the median of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seen, at = table(), pd.DataFrame({"devices": [64, 128, 256]})
    taken: dict[str, list[float]] = {"step, fitted, 1,000 draws": [], "plain law, 1,000 resamples": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        laws.fit(seen).draws(at, DRAWS)
        between = time.perf_counter()
        logs = np.log(seen["speed"] / seen["devices"]).to_numpy()
        stats.bootstrap((logs,), np.mean, n_resamples=DRAWS, rng=np.random.default_rng(0))
        for name, seconds in zip(taken, (between - begun, time.perf_counter() - between), strict=True):
            taken[name].append(seconds)
    for name, seconds in taken.items():
        print(f"{name}: {statistics.median(seconds):.3f} s (slowest {max(seconds):.3f} s)")
    met = "met" if statistics.median(taken["step, fitted, 1,000 draws"]) <= 1 else "missed"
    print(f"target for {RUNS} runs: 1 s, {met}")


if __name__ == "__main__":
    main()
