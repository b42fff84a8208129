"""The exact vote against enumeration in fractions, closed forms, the limit, and properties that it must have."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from tamperfuse.theory import (
    FeatureCounts,
    TheoryError,
    exact_accuracy,
    limit_accuracy,
    limit_argument,
    limit_form,
    plain_vote,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


def enumerated(invariant: Fraction, features: list[Fraction], classes: int, p: Fraction) -> Fraction:
    """P(class 0 wins) by summing over every way in which the features can vote."""
    chances = [1 - p + p / classes] + [p / classes] * (classes - 1)
    total = Fraction(0)
    for votes in itertools.product(range(classes), repeat=len(features)):
        scores = [Fraction(0)] * classes
        scores[0] += invariant
        chance = Fraction(1)
        for weight, vote in zip(features, votes, strict=True):
            scores[vote] += weight
            chance *= chances[vote]
        best = max(scores)
        if scores[0] == best:
            total += chance / scores.count(best)
    return total


def enumerated_mixture(counts: FeatureCounts, classes: int, p: Fraction, lam: Fraction) -> Fraction:
    hardened, optimum = lam**2, (1 - lam) ** 2
    invariant = (
        hardened * (counts.invariant - counts.shared_invariant)
        + optimum * (counts.attack_invariant - counts.shared_invariant)
        + counts.shared_invariant
    )
    shared = counts.shared_spurious
    features = (
        [hardened] * (counts.spurious - shared) + [optimum] * (counts.attack_spurious - shared) + [Fraction(1)] * shared
    )
    return enumerated(invariant, features, classes, p)


@pytest.mark.parametrize(
    ("counts", "classes", "p", "lam"),
    [
        (FeatureCounts(1, 1, 0, 2), 3, Fraction(1, 2), Fraction(1, 2)),
        (FeatureCounts(2, 2, 1, 3), 3, Fraction(9, 10), Fraction(1, 2)),
        (FeatureCounts(1, 4, 1, 4, 0, 2), 3, Fraction(9, 10), Fraction(1, 2)),
        (FeatureCounts(1, 4, 2, 3, 1, 1), 3, Fraction(7, 10), Fraction(1, 3)),
        (FeatureCounts(0, 3, 1, 5, 0, 1), 2, Fraction(1), Fraction(3, 10)),
        (FeatureCounts(1, 3, 0, 3), 5, Fraction(4, 5), Fraction(2, 3)),
        (FeatureCounts(1, 3, 1, 2), 6, Fraction(1), Fraction(0)),
        (FeatureCounts(0, 5, 0, 2), 4, Fraction(1, 4), Fraction(1)),
        (FeatureCounts(0, 4, 0, 3), 3, Fraction(0), Fraction(1, 2)),
    ],
)
def test_exact_form_equals_enumeration(counts: FeatureCounts, classes: int, p: Fraction, lam: Fraction) -> None:
    expected = enumerated_mixture(counts, classes, p, lam)
    assert exact_accuracy(counts.mixture(float(lam)), classes, float(p)) == pytest.approx(float(expected), abs=1e-10)


@quick
@given(st.integers(0, 3), st.integers(0, 6), st.integers(2, 4), st.integers(0, 10))
def test_plain_vote_equals_enumeration(n_v: int, n_s: int, classes: int, tenths: int) -> None:
    expected = enumerated(Fraction(n_v), [Fraction(1)] * n_s, classes, Fraction(tenths, 10))
    assert exact_accuracy(plain_vote(n_v, n_s), classes, tenths / 10) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 7, 40, 333, 1200])
@pytest.mark.parametrize("classes", [2, 3, 50, 200])
def test_pure_chance_is_one_in_k(n: int, classes: int) -> None:
    assert exact_accuracy(plain_vote(0, n), classes, 1.0) == pytest.approx(1 / classes, abs=1e-10)


def test_two_classes_are_a_binomial() -> None:
    n, p, n_v = 60, 0.9, 3
    right = 1 - p / 2
    chance = [math.comb(n, k) * right**k * (1 - right) ** (n - k) for k in range(n + 1)]
    margins = [n_v + 2 * k - n for k in range(n + 1)]
    expected = math.fsum(c * (1.0 if m > 0 else 0.5 * (m == 0)) for c, m in zip(chance, margins, strict=True))
    assert exact_accuracy(plain_vote(n_v, n), 2, p) == pytest.approx(expected, abs=1e-10)


@quick
@given(st.integers(0, 5), st.integers(0, 14), st.integers(2, 12), st.floats(0, 1))
def test_accuracy_is_a_probability_and_rises_with_invariant_features(
    n_v: int, n_s: int, classes: int, p: float
) -> None:
    here, more = (exact_accuracy(plain_vote(n_v + extra, n_s), classes, p) for extra in (0, 1))
    assert 1 / classes - 1e-10 <= here <= more + 1e-10 <= 1 + 2e-10


@quick
@given(st.integers(0, 5), st.integers(0, 9), st.integers(2, 6), st.floats(0, 1), st.integers(0, 9), st.integers(0, 5))
def test_the_ends_of_the_mixture_are_the_two_models(
    n_v: int, n_s: int, classes: int, p: float, a_s: int, a_v: int
) -> None:
    counts = FeatureCounts(n_v, n_s, a_v, a_s)
    assert counts.mixture(1.0) == counts.hardened()
    assert counts.mixture(0.0) == counts.optimum()
    mirrored = FeatureCounts(a_v, a_s, n_v, n_s)
    there, back = exact_accuracy(counts.mixture(0.3), classes, p), exact_accuracy(mirrored.mixture(0.7), classes, p)
    assert there == pytest.approx(back, abs=1e-10)


def test_a_model_mixed_with_itself_is_itself() -> None:
    counts = FeatureCounts(3, 8, 3, 8, 3, 8)
    for lam in (0.0, 0.25, 0.5, 0.9):
        assert counts.mixture(lam) == counts.hardened()


def test_classes_whose_rounding_errors_would_decide_are_refused() -> None:
    with pytest.raises(TheoryError, match="up to 1,000,000 classes"):
        exact_accuracy(FeatureCounts(3, 20, 2, 21).hardened(), 10**8, 0.9)


def test_without_spurious_features() -> None:
    assert exact_accuracy(plain_vote(2, 0), 5, 0.9) == limit_accuracy(plain_vote(2, 0), 5, 0.9) == 1.0
    assert exact_accuracy(plain_vote(0, 0), 5, 0.9) == limit_accuracy(plain_vote(0, 0), 5, 0.9) == 0.2
    assert limit_argument(plain_vote(2, 0), 0.9) == math.inf
    assert limit_argument(plain_vote(0, 0), 0.9) == 0.0


@pytest.mark.parametrize(("classes", "p"), [(2, 0.9), (3, 0.9), (4, 0.3), (5, 1.0)])
def test_limit_form_is_the_gaussian_orthant(classes: int, p: float) -> None:
    size = classes - 1
    variance, cross = p * (classes + 2 - p * classes) / classes, p * (classes + 1 - p * classes) / classes
    covariance = np.full((size, size), cross) + (variance - cross) * np.eye(size)
    for x in (-0.5, 0.0, 0.7, 1.8):
        expected = multivariate_normal.cdf(np.full(size, x), np.zeros(size), covariance, abseps=1e-7, releps=1e-7)
        assert limit_form(x, classes, p) == pytest.approx(expected, abs=2e-5)


def test_margins_have_the_mean_and_covariance_of_the_limit() -> None:
    classes, p = 4, 0.7
    chances = np.array([1 - p + p / classes] + [p / classes] * (classes - 1))
    margins = np.vstack([np.ones(classes - 1), -np.eye(classes - 1)])  # what a vote for class i adds
    mean = chances @ margins
    covariance = margins.T @ np.diag(chances) @ margins - np.outer(mean, mean)
    assert mean == pytest.approx(np.full(classes - 1, 1 - p))
    assert np.diag(covariance) == pytest.approx(np.full(classes - 1, p * (classes + 2 - p * classes) / classes))
    assert covariance[0, 1] == pytest.approx(p * (classes + 1 - p * classes) / classes)


def test_argument_at_one_half_is_the_papers_formula() -> None:
    n_v, n_s, a_v, a_s, vo, so, p = 7, 20, 4, 30, 2, 5, 0.9
    paper = ((1 - p) * (n_s + a_s + 2 * so) + n_v + a_v + 2 * vo) / math.sqrt(n_s + a_s + 14 * so)
    assert limit_argument(FeatureCounts(n_v, n_s, a_v, a_s, vo, so).mixture(0.5), p) == pytest.approx(paper)


def test_the_limit_is_approached() -> None:
    for classes, p, n_v in ((3, 0.9, 25), (10, 0.95, 40)):
        vote = plain_vote(n_v, 1200)
        assert exact_accuracy(vote, classes, p) == pytest.approx(limit_accuracy(vote, classes, p), abs=3e-3)


def test_limit_form_at_its_ends() -> None:
    assert limit_form([-math.inf, math.inf], 3, 0.9).tolist() == pytest.approx([0.0, 1.0])
    assert limit_form([-1.0, 0.0, 1.0], 4, 0.0).tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureCounts(-1, 2, 0, 3),
        lambda: FeatureCounts(1.0, 2, 0, 3),  # type: ignore[arg-type]
        lambda: FeatureCounts(1, "2", 0, 3),  # type: ignore[arg-type]
        lambda: FeatureCounts(1, True, 0, 3),
        lambda: FeatureCounts(3, 2, 1, 3, shared_invariant=2),
        lambda: FeatureCounts(3, 2, 1, 3, shared_spurious=3),
        lambda: FeatureCounts(3, 2, 1, 3).mixture(1.5),
        lambda: FeatureCounts(3, 2, 1, 3).mixture(math.nan),
        lambda: exact_accuracy(plain_vote(1, 2), 1, 0.5),
        lambda: exact_accuracy(plain_vote(1, 2), 3, -0.1),
        lambda: limit_accuracy(plain_vote(1, 2), 3, 1.1),
        lambda: limit_form(0.0, 2.5, 0.5),  # type: ignore[arg-type]
        lambda: exact_accuracy(FeatureCounts(1, 300, 0, 300, 0, 100).mixture(0.3), 3, 0.9),
    ],
)
def test_bad_input_raises_an_error_of_one_sentence(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TheoryError) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
