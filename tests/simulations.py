"""How often comparisons say what is not so, and miss what is: `python -m tests.simulations [--seeds 10]` prints a table.

Launches are drawn with a known truth and compared as those of a frame are (`analytics.judge.stats`). Noise is that of one
launch; launches that ran side by side share a drift of 5 % besides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analytics.judge import stats
from analytics.judge.compare import Comparison, Effect, judged
from analytics.judge.gate import Condition, outcomes
from analytics.judge.matched import agree, pooled

TRIALS = 1000
DRIFT = 0.05
RATE = "samples_per_second"


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


@dataclass(frozen=True)
class Family:
    """Comparisons made together, of known `truths` (ratios), and the share of trials in which any may be told wrongly.

    Through `judged`: better or worse of what does not differ, equivalent of what is 2 % apart. Through a `gate` at 1: a
    failure of what does not differ.
    """

    name: str
    repeats: int
    truths: tuple[float, ...]
    noise: float
    limit: float
    gate: bool = False
    paired: bool = False

    def label(self) -> str:
        return f"{self.name}, {self.repeats} repeats"

    def rate(self, seed: int, trials: int = TRIALS) -> float:
        random = np.random.default_rng([seed, self.repeats, len(self.truths), self.gate])
        return sum(self._wrong(random) for _ in range(trials)) / trials

    def _wrong(self, random: np.random.Generator) -> bool:
        drawn = np.exp(random.normal(0, self.noise, (2, len(self.truths), self.repeats)))
        pairs = zip(np.array(self.truths)[:, None] * drawn[0], drawn[1], strict=True)
        family = judged({place: effect_of(*pair) for place, pair in enumerate(pairs)})
        if self.gate:
            comparisons = [Comparison("new", "old", "ok", "", (effect,)) for effect in family.values()]
            return any(found.state == "fails" for found in outcomes([Condition(RATE, "<", 1.0)], comparisons))
        wrong = {True: ("better", "worse"), False: ("equivalent",)}
        return any(family[place].verdict in wrong[truth == 1] for place, truth in enumerate(self.truths))


def effect_of(new: np.ndarray, old: np.ndarray) -> Effect:
    """Compare launches by their speed; how many repeats would tell is not asked."""
    found = stats.contrast(new, old, paired=False)
    interval, way = found.found, "more"
    return Effect(
        RATE, interval.value, interval.low, interval.high, interval.n, 1.0, 1.0, False, way,
        found.probability_more, found.p_value, (), found.error, found.degrees,
    )  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Cells of one option, all of the same true ratio, and the share of trials in which they are wronged.

    `disagree`: they are said to disagree (`matched.agree`). Otherwise the true ratio lies outside the interval of all.
    """

    name: str
    repeats: int
    cells: int
    noises: tuple[float, ...]
    limit: float
    disagree: bool = True
    paired: bool = False

    @property
    def noise(self) -> float:
        return max(self.noises)

    def label(self) -> str:
        return f"{self.name}, {self.cells} cells, {self.repeats} repeats, noise {self.noises}"

    def rate(self, seed: int, trials: int = TRIALS) -> float:
        random = np.random.default_rng([seed, self.repeats, self.cells, self.disagree])
        return sum(self._wrong(random) for _ in range(trials)) / trials

    def _wrong(self, random: np.random.Generator) -> bool:
        noise = np.resize(self.noises, self.cells)
        drawn = np.exp(random.normal(0, noise, (2, self.repeats, self.cells))).transpose(0, 2, 1)
        effects = [effect_of(1.5 * new, old) for new, old in zip(*drawn, strict=True)]
        if self.disagree:
            return not agree(effects)
        whole = pooled(effects)
        assert whole.low is not None
        assert whole.high is not None
        return not whole.low <= 1.5 <= whole.high


def pools() -> Iterator[Pool]:
    for repeats in (3, 5, 10):
        for cells in (2, 6):
            for noises in ((0.01,), (0.01, 0.03)):
                yield Pool("equal cells, disagree", repeats, cells, noises, 0.065)
                yield Pool("equal cells, missed", repeats, cells, noises, 0.065, disagree=False)


def families() -> Iterator[Family]:
    for repeats in (3, 5, 10):
        yield Family("any of 20 equal, one is told", repeats, (1.0,) * 20, 0.01, 0.06)
        yield Family("any of 20 equal, gate fails", repeats, (1.0,) * 20, 0.01, 0.06, gate=True)
    for repeats, noise in ((3, 0.002), (5, 0.005), (10, 0.01)):
        yield Family("any of 20 2 % off, the same", repeats, (1.02, 0.98) * 10, noise, 0.06)
        yield Family("10 equal, 10 2 % off, wrong", repeats, (1.0, 1.02) * 10, noise, 0.06)


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
    for case in (*cases(), *families(), *pools()):
        rates = [case.rate(seed) for seed in range(seeds)]
        mean = sum(rates) / seeds
        good &= mean <= case.limit
        told = f"{mean:>7.2%} {max(rates):>7.2%} {case.limit:>6.0%}{'' if mean <= case.limit else '  MISSED'}"
        print(f"{case.name:<28} {case.repeats:>7} {'yes' if case.paired else 'no':>6} {case.noise:>6.1%} {told}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
