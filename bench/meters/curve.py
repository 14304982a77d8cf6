"""Cumulative energy of one device as a function of time, from the readings of its counter or of its power."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cached_property
from itertools import pairwise
from statistics import median

SECOND = 1_000_000_000
DEFAULT_PERIOD_NS = 100_000_000
"""Period of an energy counter that was not seen to change twice: that of NVIDIA GPUs."""
MIN_STEPS, MAX_CHANGED_SHARE = 8, 0.98
"""A counter is taken to be published in steps if at least so many changes were seen, and some readings saw no change."""
FIT_STEPS, MAX_OUTSIDE_SHARE = 300, 0.1
MAX_GAP_NS = SECOND


class EnergyCurve:
    """Cumulative energy of a device in integer microjoules as a function of time, linear between knots.

    The knots of integrated power, and of a counter that is published more often than it is read, are its readings. The
    knots of a counter that is published in steps (every 100 ms on NVIDIA GPUs) are the steps, see `_steps`: the energy
    between two steps is exact, and only the energy at the edges of a window is interpolated.
    """

    def __init__(self, points: list[tuple[int, int]], *, late: bool = False) -> None:
        """Take at least two points (time, cumulative energy) in order of time. With `late`, a reading may be out of date."""
        self.late = late
        self.times = [t for t, _ in points]
        self.values = [e for _, e in points]
        self.start, self.end = self.times[0], self.times[-1]
        changed = [i for i in range(1, len(points)) if self.values[i] != self.values[i - 1]]
        self.stepped = late and MIN_STEPS <= len(changed) < MAX_CHANGED_SHARE * (len(points) - 1)
        self.energies = [self.values[0], *(self.values[i] for i in changed)]
        if self.stepped:
            steps = _steps([(self.times[i - 1], self.times[i]) for i in changed])
            self.knot_times = [2 * steps[0] - steps[1], *steps]
            if self.end - steps[-1] <= 2 * self.period:  # it continues: energy was drawn after the last step
                self.knot_times.append(2 * steps[-1] - steps[-2])
                self.energies.append(2 * self.energies[-1] - self.energies[-2])
        else:
            self.knot_times = [self.start, *(self.times[i] for i in changed)]

    def at(self, t: int) -> int:
        """Return the energy until t, between start and end; it is rounded down, so that differences add up."""
        i = bisect_right(self.knot_times, t) - 1
        if i < 0 or i + 1 == len(self.knot_times):
            return self.energies[max(i, 0)]
        t0, t1 = self.knot_times[i : i + 2]
        e0, e1 = self.energies[i : i + 2]
        return e0 + (e1 - e0) * (t - t0) // (t1 - t0)

    def edge_bound(self, t: int) -> int:
        """Return a bound of the error of `at`.

        Energy that was read until t had been drawn by t. A reading at t or later contains all energy drawn until t; if
        readings may be out of date, a reading one period later does.
        """
        before = max(bisect_right(self.times, t) - 1, 0)
        after = bisect_left(self.times, t + (self.period if self.late else 0))
        low = self.values[before]
        high = self.values[after] if after < len(self.values) else 2 * self.energies[-1] - self.energies[-2]
        return max(self.at(t) - low, high - self.at(t))

    def exact(self, t: int) -> bool:
        """Whether t is the time of a reading that was up to date."""
        i = bisect_left(self.times, t)
        return not self.late and i < len(self.times) and self.times[i] == t

    def changes(self, t0: int, t1: int) -> int:
        """Count the changes after t0 and until t1."""
        return bisect_right(self.knot_times, t1) - bisect_right(self.knot_times, t0)

    def count(self, t0: int, t1: int) -> int:
        """Count the readings from t0 to t1."""
        return bisect_right(self.times, t1) - bisect_left(self.times, t0)

    def still(self, t0: int, t1: int) -> tuple[int, int]:
        """Return first and last time of the longest sequence of readings from t0 to t1 that show the same value."""
        longest, begin = (0, 0), bisect_left(self.times, t0)
        for i in range(begin, bisect_right(self.times, t1)):
            begin = begin if self.values[i] == self.values[begin] else i
            longest = max(longest, (self.times[begin], self.times[i]), key=lambda edges: edges[1] - edges[0])
        return longest

    @cached_property
    def period(self) -> int:
        """Median time between changes in nanoseconds."""
        if len(self.knot_times) < 3:
            return DEFAULT_PERIOD_NS
        return int(median(b - a for a, b in pairwise(self.knot_times)))

    @cached_property
    def longest_gap(self) -> int:
        """Allowed nanoseconds between readings: 1 s, or three times their median distance if that is more."""
        return max(MAX_GAP_NS, 3 * int(median(b - a for a, b in pairwise(self.times))))

    def gap(self, t0: int, t1: int) -> bool:
        """Whether readings around and inside the window are further apart than `longest_gap`."""
        inside = self.times[max(bisect_right(self.times, t0) - 1, 0) : bisect_left(self.times, t1) + 1]
        return any(b - a > self.longest_gap for a, b in pairwise(inside))


def _steps(brackets: list[tuple[int, int]]) -> list[int]:
    """Estimate when a counter was published, from the times (before, after) of the readings between which it changed.

    It is published at a steady rate and read at a slightly higher one. So almost only one line, time over number of the
    step, passes through all brackets, and it gives the times of the steps to a few milliseconds. A step may have been missed
    if a reading came late: a new line begins there. If the rate is not steady, the middles of the brackets are used.
    """
    pace = (brackets[-1][1] - brackets[0][1]) / (len(brackets) - 1)
    stretches: list[list[tuple[int, int]]] = [[]]
    for a, b in brackets:
        if b - a > 1.2 * pace or len(stretches[-1]) == FIT_STEPS:
            stretches.append([])
        stretches[-1].append((a, b))
    return [t for stretch in stretches for t in _on_a_line(stretch, pace)]


def _on_a_line(brackets: list[tuple[int, int]], pace: float) -> list[int]:
    """Put steps on the line with the most room within all brackets; each step stays within its own bracket."""
    middles = [(a + b) // 2 for a, b in brackets]
    if len(brackets) < MIN_STEPS:
        return middles

    def room(slope: float) -> tuple[float, float]:
        """Smallest and largest start of a line of this slope; their distance is a concave function of the slope."""
        starts = [(a - slope * n, b - slope * n) for n, (a, b) in enumerate(brackets)]
        return max(a for a, _ in starts), min(b for _, b in starts)

    low, high = 0.8 * pace, 1.2 * pace
    while high - low > 1_000:  # a microsecond
        left, right = low + (high - low) / 3, high - (high - low) / 3
        (a0, b0), (a1, b1) = room(left), room(right)
        low, high = (left, high) if b0 - a0 < b1 - a1 else (low, right)
    first, last = room(low)
    if first - last > MAX_OUTSIDE_SHARE * pace:
        return middles
    start = (first + last) / 2
    return [min(max(round(start + low * n), a), b) for n, (a, b) in enumerate(brackets)]
