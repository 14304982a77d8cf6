import numpy as np
import pytest
from scipy import stats as reference

from analytics import stats


def covered(n: int, trials: int, **options: int) -> float:
    random = np.random.default_rng(n)
    truth, hits = 100.0, 0
    for _ in range(trials):
        found = stats.geometric_mean(truth * np.exp(random.normal(0, 0.1, n)), **options)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / trials


@pytest.mark.parametrize("n", [2, 3, 5, 19])
def test_few_launches_are_covered_by_student(n: int) -> None:
    assert 0.93 <= covered(n, 3000) <= 0.97


@pytest.mark.parametrize("n", [20, 40])
def test_many_launches_are_covered_by_the_bootstrap(n: int) -> None:
    assert 0.93 <= covered(n, 800, resamples=999) <= 0.97


def test_student_on_logarithms_is_scipys() -> None:
    values = [9.0, 10.0, 12.0]
    found = stats.geometric_mean(values)
    assert found.value == pytest.approx(reference.gmean(values))
    wanted = reference.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(wanted)))


def test_bootstrap_is_used_from_twenty_and_follows_skew() -> None:
    random = np.random.default_rng(1)
    values = np.exp(random.exponential(0.5, 20))
    found = stats.geometric_mean(values)
    assert stats.geometric_mean(values) == found, "the same launches give the same interval"
    assert found.low is not None
    assert found.high is not None
    assert found.high / found.value != pytest.approx(found.value / found.low, rel=1e-6), "Student's would be symmetric"


def test_one_launch_has_no_interval_and_equal_ones_a_narrow_one() -> None:
    assert stats.geometric_mean([5.0]) == stats.Estimate(pytest.approx(5.0), None, None, 1)
    same = stats.geometric_mean([5.0] * 30)
    assert (same.low, same.high) == pytest.approx((5.0, 5.0))


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_what_has_no_logarithm_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        stats.geometric_mean(values)


def test_ratio_is_welchs() -> None:
    candidate, baseline = [20.0, 21.0, 22.0], [10.0, 10.1, 9.8, 10.4]
    found = stats.ratio([(candidate, baseline)])
    wanted = reference.ttest_ind(np.log(candidate), np.log(baseline), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(wanted)))
    assert found.value == pytest.approx(reference.gmean(candidate) / reference.gmean(baseline))
    assert found.n == 3


def test_ratio_over_pairs_is_covered_although_the_pairs_differ() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        pairs = [
            (level * gain * np.exp(random.normal(0, 0.05, 3)), level * np.exp(random.normal(0, 0.02, 4)))
            for level, gain in ((1.0, 1.5), (100.0, 2.0))
        ]
        found = stats.ratio(pairs)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= np.sqrt(3.0) <= found.high
    assert 0.93 <= hits / 2000 <= 0.975


def test_ratio_without_repeats_has_no_interval() -> None:
    assert stats.ratio([([2.0], [1.0, 1.1])]).low is None
    assert stats.ratio([([2.0], [1.0])]).value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="pairs"):
        stats.ratio([])
