"""Intervals against published ones, and small samples that must not look certain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperfuse.evaluation.wilson import wilson
from tamperfuse.records.summary import Measure
from tamperfuse.study.results.intervals import bootstrap, mean_rate, rate, rate_difference


def mean(values: np.ndarray, groups: np.ndarray | None = None, *, difference: bool = False) -> Measure:
    """The mean of unbounded values."""
    table = np.column_stack([values, np.ones(len(values))])
    return bootstrap(table, lambda sums: sums[..., 0] / sums[..., 1], groups=groups, difference=difference)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 200), st.data())
def test_wilson_contains_its_rate(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0.0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1.0


def test_wilson_ends_exactly_at_rates_of_zero_and_one() -> None:
    for n in range(1, 1000):
        low, high = wilson(0, n)
        assert low == 0.0 and 0.0 < high < 1.0
        low, high = wilson(float(n), n)
        assert high == 1.0 and 0.0 < low < 1.0


def test_a_difference_is_resolved_only_if_its_interval_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    assert not mean(rng.normal(0, 1, 200), difference=True).resolved
    assert mean(rng.normal(1, 1, 200), difference=True).resolved


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    measure = mean(values)
    assert measure.low is not None and measure.high is not None
    assert (measure.high - measure.low) / 2 == pytest.approx(1.966 * values.std(ddof=1) / np.sqrt(400), rel=0.05)


def test_few_observations_widen_the_interval() -> None:
    """The plain percentile interval covers the mean of five normal values in about 80% of samples, not 95%."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        measure = mean(rng.normal(0, 1, 5))
        assert measure.low is not None and measure.high is not None
        covered += measure.low <= 0 <= measure.high
    assert covered >= 182


def test_clusters_widen_the_interval() -> None:
    """Ten templates whose items all agree are ten observations, not a thousand."""
    values = np.repeat(np.arange(10) % 2, 100).astype(float)

    def width(groups: np.ndarray) -> float:
        measure = mean(values, groups)
        assert measure.low is not None and measure.high is not None
        return measure.high - measure.low

    assert width(np.repeat(np.arange(10), 100)) > 5 * width(np.arange(1000))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 4, 20, 400])
def test_equal_outcomes_are_not_certain(value: float, n: int) -> None:
    """The exact interval of n equal outcomes (Clopper and Pearson, 1934): 0 to 1 − 0.025^(1/n)."""
    measure = mean_rate(np.full(n, value))
    limit = 1 - 0.025 ** (1 / n)
    ends = (measure.low, measure.high)
    assert ends == pytest.approx((0, limit) if value == 0 else (1 - limit, 1)) and measure.value == value


def test_four_prompts_resolve_no_difference() -> None:
    """Also four that all differ: the sign test gives p = 1/8."""
    same = rate_difference(np.zeros(4), np.zeros(4))
    assert same.value == 0 and not same.resolved and same.low == pytest.approx(-0.602, abs=1e-3)
    all_differ = rate_difference(np.ones(4), np.zeros(4))
    assert all_differ.value == 1 and not all_differ.resolved
    assert rate_difference(np.ones(6), np.zeros(6)).resolved, "the sign test gives p = 1/32"


outcomes = st.lists(st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0]), min_size=1, max_size=4)


@given(st.data(), outcomes)
def test_up_to_four_prompts_show_nothing(data: st.DataObject, first: list[float]) -> None:
    """Whatever they are: rates may be 60% higher or lower, differences may be zero."""
    second = data.draw(st.lists(st.sampled_from([0.0, 1 / 3, 2 / 3, 1.0]), min_size=len(first), max_size=len(first)))
    mean_of_first, difference = mean_rate(np.array(first)), rate_difference(np.array(first), np.array(second))
    assert mean_of_first.high is not None and mean_of_first.low is not None
    assert mean_of_first.high >= 0.6 and mean_of_first.low <= 0.4
    assert not difference.resolved


def test_many_items_are_not_widened() -> None:
    rng = np.random.default_rng(3)
    first, second = (rng.random((2, 4000)) < 0.5).astype(float)
    difference = rate_difference(first, second)
    assert difference.low is not None and difference.high is not None
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * np.sqrt(0.5 / 4000), rel=0.06)


def test_equal_unbounded_values_have_no_interval() -> None:
    measure = mean(np.full(8, 2.5))
    assert (measure.value, measure.low, measure.high, measure.n) == (2.5, None, None, 8)
    assert not mean(np.zeros(8), difference=True).resolved


def test_three_documents_that_agree_in_sign_resolve_no_rise() -> None:
    assert not mean(np.array([1e-3, 2e-3, 3e-3]), difference=True).resolved


def test_an_end_at_which_the_statistic_is_undefined_is_unbounded() -> None:
    """1 − a / b on three items: where the others might all be wrong for b, there is no lower limit."""
    table, extremes = np.ones((3, 2)), (np.array([3.0, -3.0]), np.array([0.0, 3.0]))

    def drop(sums: np.ndarray) -> np.ndarray:
        return np.where(sums[..., 1] > 0, 1 - sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], 1), np.nan)

    measure = bootstrap(table, drop, difference=True, extremes=extremes)
    assert measure.low is None and measure.high is not None and measure.high > 0.7 and not measure.resolved


def test_undefined_statistics() -> None:
    table = np.ones((5, 1))
    undefined = bootstrap(table, lambda sums: np.full(sums.shape[:-1], np.nan), difference=True)
    assert undefined.value is None and not undefined.resolved
    assert rate(np.array([])).value is None
    assert rate_difference(np.array([]), np.array([])) == Measure(value=None, n=0, resolved=False)
