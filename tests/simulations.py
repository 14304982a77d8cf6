"""How often comparisons say what is not so, and miss what is: `python -m tests.simulations [--seeds 10]` prints a table.

Launches are drawn with a known truth and compared as those of a frame are (`analytics.stats`). Noise is that of one
launch; launches that ran side by side share a drift of 5 % besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analytics import stats

TRIALS = 1000
DRIFT = 0.05


@dataclass(frozen=True)
class Case:
    """A truth, and the share of trials in which it may be wronged: `wrong` names the verdicts that count."""

    name: str
    repeats: int
    paired: bool
    ratio: float
    noise: float
    wrong: tuple[str, ...]
    limit: float

    def label(self) -> str:
        return f"{self.name}, {self.repeats} {'pairs' if self.paired else 'repeats'}, noise {self.noise:g}"

    def rate(self, seed: int, trials: int = TRIALS) -> float:
        """Share of trials that end in one of the verdicts `wrong`."""
        random = np.random.default_rng([seed, self.repeats, self.paired, round(1e6 * self.noise)])
        old, new = np.exp(random.normal(0, self.noise, (2, trials, self.repeats)))
        if self.paired:
            drift = np.exp(random.normal(0, DRIFT, (trials, self.repeats)))
            old, new = old * drift, new * drift
        return (
            sum(verdict(a, b, paired=self.paired) in self.wrong for a, b in zip(self.ratio * new, old, strict=True))
            / trials
        )


def verdict(new: np.ndarray, old: np.ndarray, *, paired: bool) -> str:
    found = stats.contrast(new, old, paired=paired)
    assert found.p_value is not None
    return stats.verdict(found.found, found.p_value)


def cases() -> Iterator[Case]:
    for paired in (False, True):
        for repeats in (3, 5, 10) if paired else (2, 3, 5, 10):
            for noise in (0.01, 0.05):
                yield Case("no difference, one is told", repeats, paired, 1.0, noise, ("less", "more"), 0.06)
        yield Case("5 % more, not told", 5, paired, 1.05, 0.01, ("less", "same", "cannot tell"), 0.05)
        for repeats, noise in ((3, 0.002), (5, 0.005), (10, 0.01)):
            yield Case("2 % more, the same is told", repeats, paired, 1.02, noise, ("same",), 0.05)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="repetitions of each 1,000 trials")
    seeds = parser.parse_args(arguments).seeds
    print(f"share of trials, {TRIALS:,} for each of {seeds} seeds\n")
    print(
        f"{'truth and what is told of it':<28} {'repeats':>7} {'paired':>6} {'noise':>6} {'mean':>7} {'worst':>7} "
        f"{'limit':>6}"
    )
    good = True
    for case in cases():
        rates = [case.rate(seed) for seed in range(seeds)]
        mean = sum(rates) / seeds
        good &= mean <= case.limit
        told = f"{mean:>7.2%} {max(rates):>7.2%} {case.limit:>6.0%}{'' if mean <= case.limit else '  MISSED'}"
        print(f"{case.name:<28} {case.repeats:>7} {'yes' if case.paired else 'no':>6} {case.noise:>6.1%} {told}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
