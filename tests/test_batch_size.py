"""The search for the largest batch, and the line that is extended where nothing may be tried."""

import pytest

from bench.train.batch_size import line, search


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 63, 64, 100, 999, 1024, 5000])
def test_the_search_ends_at_the_largest_that_fits(largest: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= largest

    found = search(fits, 1024)
    assert found <= largest
    assert min(largest, 1024) - found <= max(0, found // 64)
    assert max(tried, default=1) <= 1024
    assert len(tried) <= 18
    assert len(set(tried)) == len(tried)


def test_a_line_through_the_peaks_ends_at_the_limit() -> None:
    mb = 1_000_000
    points = [(size, float(100 * mb + max(10, size * 5) * mb)) for size in (0, 1, 2, 4, 8, 16)]
    assert line(points, 300 * mb, 1024) == 40
    assert line(points, 300 * mb, 32) == 32
    assert line(points, 150 * mb, 1024) == 10  # the last that was tried was too large
    assert line([(0, 49.0), (1, 50.0), (2, 51.0)], 1e9, 64) == 64  # nothing grows: nothing stands in the way
    with pytest.raises(MemoryError, match=r"a batch of 1 needs 0\.11 GB; 0\.05 GB are available"):
        line(points, 50 * mb, 1024)
