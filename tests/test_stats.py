import numpy as np
import pytest
from scipy import stats as reference

from analytics.interval import MOST_REPEATS, Interval, geometric_mean
from analytics.judge import stats
from analytics.judge.matched import agree
from tests.simulations import Case, Family, Pool, cases, effect_of, families, pools


def covered(n: int, trials: int, **options: int) -> float:
    random = np.random.default_rng(n)
    truth, hits = 100.0, 0
    for _ in range(trials):
        found = geometric_mean(truth * np.exp(random.normal(0, 0.1, n)), **options)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / trials


@pytest.mark.parametrize("n", [2, 3, 5, 19])
def test_few_launches_are_covered_by_student(n: int) -> None:
    assert 0.93 <= covered(n, 1500) <= 0.97


@pytest.mark.parametrize("n", [20, 40])
def test_many_launches_are_covered_by_the_bootstrap(n: int) -> None:
    assert 0.92 <= covered(n, 400, resamples=999) <= 0.97


def test_student_on_logarithms_is_scipys() -> None:
    values = [9.0, 10.0, 12.0]
    found = geometric_mean(values)
    assert found.value == pytest.approx(reference.gmean(values))
    wanted = reference.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(wanted)))


def test_bootstrap_is_used_from_twenty_and_follows_skew() -> None:
    random = np.random.default_rng(1)
    values = np.exp(random.exponential(0.5, 20))
    found = geometric_mean(values)
    assert geometric_mean(values) == found, "the same launches give the same interval"
    assert found.low is not None
    assert found.high is not None
    assert found.high / found.value != pytest.approx(found.value / found.low, rel=1e-6), "Student's would be symmetric"


def test_one_launch_has_no_interval_and_equal_ones_a_narrow_one() -> None:
    assert geometric_mean([5.0]) == Interval(pytest.approx(5.0), None, None, 1)
    same = geometric_mean([5.0] * 30)
    assert (same.low, same.high) == pytest.approx((5.0, 5.0))


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_what_has_no_logarithm_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(values)


def test_ratio_is_welchs() -> None:
    candidate, baseline = [20.0, 21.0, 22.0], [10.0, 10.1, 9.8, 10.4]
    found = stats.ratio([(candidate, baseline)])
    wanted = reference.ttest_ind(np.log(candidate), np.log(baseline), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(wanted)))
    assert found.value == pytest.approx(reference.gmean(candidate) / reference.gmean(baseline))
    assert found.n == 3


def test_ratio_without_repeats_has_no_interval() -> None:
    assert stats.ratio([([2.0], [1.0, 1.1])]).low is None
    assert stats.ratio([([2.0], [1.0])]).value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="pairs"):
        stats.ratio([])


NEW, OLD = [20.0, 21.0, 22.0, 19.0], [10.0, 10.1, 9.8, 10.4]


def test_a_contrast_of_two_samples_is_welchs_and_one_of_pairs_students() -> None:
    apart, pairs = stats.contrast(NEW, OLD, paired=False), stats.contrast(NEW, OLD, paired=True)
    welch = reference.ttest_ind(np.log(NEW), np.log(OLD), equal_var=False)
    student = reference.ttest_rel(np.log(NEW), np.log(OLD))
    for found, wanted in ((apart, welch), (pairs, student)):
        interval = wanted.confidence_interval(0.95)
        assert (found.found.low, found.found.high) == pytest.approx(tuple(np.exp(interval)))
        assert found.p_value == pytest.approx(wanted.pvalue)
        assert found.probability_more == pytest.approx(1 - wanted.pvalue / 2)
    same = stats.ratio([(NEW, OLD)])
    assert (apart.found.low, apart.found.high) == pytest.approx((same.low, same.high))
    assert len(apart.spread), len(pairs.spread) == (2, 1)


def test_many_pairs_are_bootstrapped() -> None:
    random = np.random.default_rng(2)
    new, old = np.exp(random.normal(0, 0.1, (2, 25)))
    found, wanted = stats.contrast(new, old, paired=True).found, geometric_mean(new / old)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_a_shared_drift_is_taken_out_by_pairs() -> None:
    drift = np.array([1.0, 1.5, 0.7, 1.2])
    old, new = drift * [1.0, 1.01, 0.99, 1.0], 1.05 * drift * [1.01, 1.0, 1.0, 0.99]
    found = {paired: stats.contrast(new, old, paired=paired) for paired in (True, False)}
    told = {paired: stats.verdict(c.found, c.p_value or 0.0) for paired, c in found.items()}
    assert told == {True: "more", False: "cannot tell"}


def test_what_has_no_logarithm_has_a_difference() -> None:
    new, old = [0.0, -1.0, -2.0], [3.0, 4.0, 6.0]
    found = stats.contrast(new, old, paired=False, logarithms=False)
    wanted = reference.ttest_ind(new, old, equal_var=False)
    assert found.found.value == pytest.approx(np.mean(new) - np.mean(old))
    assert (found.found.low, found.found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    with pytest.raises(ValueError, match="positive"):
        stats.contrast(new, old, paired=False)


@pytest.mark.parametrize("n", [3, 24])
def test_rounding_is_no_spread(n: int) -> None:
    ratios = [(0.1 + 0.2) / 0.3 if place % 2 else 1.0 for place in range(n)]
    interval = geometric_mean(ratios)
    assert (interval.low, interval.high) == (interval.value, interval.value)


def test_equal_launches_are_the_same_and_wild_ones_tell_nothing() -> None:
    equal = stats.contrast([1e9] * 3, [1e9] * 3, paired=False)
    assert (equal.found.low, equal.found.high, equal.p_value, equal.probability_more) == (1, 1, 1, 0.5)
    steady = stats.contrast([3.0] * 3, [2.0] * 3, paired=True)
    assert (steady.p_value, stats.verdict(steady.found, 0.0)) == (0, "more")
    wild = stats.contrast([1e-300, 1e300], [1.0, 2.0], paired=False)
    assert stats.verdict(wild.found, wild.p_value or 0.0) == "cannot tell"
    assert stats.contrast([2.0], [1.0, 1.1], paired=False).p_value is None
    with pytest.raises(ValueError, match="2 and 3"):
        stats.contrast([1.0, 2.0], [1.0, 2.0, 3.0], paired=True)


def test_holm_is_the_textbooks() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1, 1]
    assert stats.holm([]) == []


@pytest.mark.parametrize(("spread", "distance", "rule"), [(0.06, 0.02, 142), (0.015, 0.02, 9), (0.03, 0.02, 35)])
def test_repeats_that_would_tell_follow_the_rule_of_thumb(spread: float, distance: float, rule: int) -> None:
    """15.7 (cv / delta)^2 of each is the normal approximation of it."""
    more = stats.more_repeats([spread, spread], 2, distance)
    assert more is not None
    assert rule <= 2 + more <= rule + 2


def test_repeats_that_would_tell_do_so_in_four_of_five() -> None:
    random = np.random.default_rng(5)
    for paired, spread in ((False, [0.02, 0.03]), (True, [0.03])):
        n = 3 + (stats.more_repeats(spread, 3, 0.02) or 0)
        told = 0
        for _ in range(500):
            old = np.exp(random.normal(0, 0.0 if paired else 0.03, n))
            new = np.exp(random.normal(0.02, spread[0], n))
            told += (stats.contrast(new, old, paired=paired).p_value or 0.0) < 0.05
        assert 0.75 <= told / 500 <= 0.87


def test_repeats_for_equivalence_for_many_tests_and_beyond_reach() -> None:
    region = (np.log(0.98), np.log(1.02))
    equal = stats.more_repeats([0.02, 0.02], 3, 0.0, region)
    assert equal is not None
    assert 15 <= equal <= 30
    few, many = (stats.more_repeats([0.06, 0.06], 3, 0.02, None, tests) for tests in (1, 20))
    assert few is not None
    assert many is not None
    assert many > 1.5 * few
    assert stats.more_repeats([0.2, 0.2], 3, 0.001) == MOST_REPEATS + 1
    assert stats.more_repeats([], 1, 0.1) is None


def test_pooled_noise() -> None:
    assert stats.pooled([[1.0], [2.0]]) == (0.0, 0)
    deviation, degrees = stats.pooled([[1.0, np.e], [1.0, np.e, 1.0, np.e]])
    assert (deviation**2, degrees) == (pytest.approx((0.5 + 1) / 4), 4)


@pytest.mark.parametrize("simulated", [*cases(), *families(), *pools()], ids=lambda simulated: simulated.label())
def test_verdicts_are_wrong_as_rarely_as_they_say(simulated: Case | Family | Pool) -> None:
    """Smaller than `python -m tests.simulations`: an exact 5 % is above 8 % in one of 500 samples of 400 trials."""
    trials = 400 if isinstance(simulated, Case) else 150
    rate = simulated.rate(1, trials)
    assert rate <= simulated.limit + (0.02 if trials == 400 else 0.035)
    if isinstance(simulated, Case) and (simulated.ratio, simulated.noise) == (1, 0.05):
        assert rate >= 0.01, "so wide an interval would find nothing"


def test_cells_that_differ_are_noticed() -> None:
    random = np.random.default_rng(3)
    told = 0
    for _ in range(100):
        old, new = np.exp(random.normal(0, 0.02, (2, 3, 4)))
        effects = [effect_of(gain * a, b) for gain, a, b in zip((1.1, 1.4, 1.5), new, old, strict=True)]
        told += not agree(effects)
    assert told >= 95


def test_the_simulation_notices_verdicts_that_allow_for_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "holm", list)
    assert all(family.rate(1, 30) > 0.15 for family in families())


def test_the_simulation_notices_intervals_that_are_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "t_quantile", lambda degrees, level: 1.96)
    monkeypatch.setattr(stats.special, "stdtr", lambda degrees, t: reference.norm.cdf(t))
    assert Case("", 3, True, 1.0, 0.05, ("less", "more"), 0.06).rate(0) > 0.1
