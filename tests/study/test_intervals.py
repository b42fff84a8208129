import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperfuse.study.results.intervals import bootstrap, rate, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 200), st.data())
def test_wilson_holds_its_rate(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0.0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1.0


def test_a_difference_is_resolved_only_if_its_interval_leaves_zero_out() -> None:
    rng = np.random.default_rng(0)
    noise, shift = rng.normal(0, 1, 200), rng.normal(1, 1, 200)
    groups = np.arange(200)
    assert not bootstrap(lambda i: float(noise[i].mean()), groups, difference=True).resolved
    assert bootstrap(lambda i: float(shift[i].mean()), groups, difference=True).resolved


def test_clusters_widen_the_interval() -> None:
    """Ten templates whose items all agree are ten observations, not a thousand."""
    values = np.repeat(np.arange(10) % 2, 100).astype(float)

    def width(groups: np.ndarray) -> float:
        found = bootstrap(lambda i: float(values[i].mean()), groups, difference=False)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(np.repeat(np.arange(10), 100)) > 5 * width(np.arange(1000))


def test_what_is_undefined_says_so() -> None:
    found = bootstrap(lambda i: float("nan"), np.arange(5), difference=True)
    assert found.value is None
    assert not found.resolved
    assert rate(np.array([])).value is None
