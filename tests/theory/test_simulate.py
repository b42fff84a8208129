"""Monte Carlo in logit space, against the exact form and against feature vectors drawn one by one."""

import numpy as np
import pytest

from tamperfuse.theory import (
    FeatureCounts,
    TheoryError,
    compare,
    draw_design,
    exact_accuracy,
    limit_good_from,
    plain_vote,
    predict,
    sample_logits,
)


def test_a_design_of_200_settings_agrees_with_the_exact_form() -> None:
    design = draw_design(200, np.random.default_rng(11), largest=20)
    assert all(0.5 <= setting.exact <= 0.99 for setting in design)
    comparison = compare(design, 3000, np.random.default_rng(12))
    assert comparison.max_abs_z < 4.0
    assert comparison.chi2_p > 1e-3
    assert comparison.z.shape == comparison.simulated.shape == comparison.limit_error.shape == (200,)


def test_the_same_seed_gives_the_same_samples() -> None:
    first, second = (sample_logits(plain_vote(2, 9), 4, 0.8, 50, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_logits_are_votes() -> None:
    labels, logits = sample_logits(plain_vote(2, 9), 4, 0.8, 500, np.random.default_rng(3))
    assert labels.shape == (500,) and logits.shape == (500, 4)
    assert set(labels) == {0, 1, 2, 3}
    assert np.all(logits.sum(axis=1) == 11)
    assert np.all(logits[np.arange(500), labels] >= 2)


def test_logits_have_the_law_of_feature_vectors() -> None:
    """Draw feature vectors as the model defines them, noise and all, and compare mean and spread of each margin."""
    counts, classes, p, lam, sigma = FeatureCounts(2, 4, 1, 5, 1, 1), 3, 0.7, 0.4, 0.3
    rng, samples = np.random.default_rng(5), 6000
    invariant, spurious = [lam, 1.0], [lam] * 3 + [1 - lam] * 4 + [1.0]  # mask = head, feature by feature
    weights = np.array(invariant + spurious)
    size = len(weights) * classes
    head = np.vstack([w * np.eye(classes) for w in weights])  # (features x K, K): mu_j e_k is a basis vector
    drawn = np.empty((samples, classes))
    for i in range(samples):  # true class 0
        votes = np.where(rng.random(len(weights)) < p, rng.integers(classes, size=len(weights)), 0)
        votes[: len(invariant)] = 0
        vectors = sigma * rng.standard_normal((len(weights), size))
        vectors[np.arange(len(weights)), np.arange(len(weights)) * classes + votes] += 1.0
        drawn[i] = (weights @ vectors) @ head
    labels, logits = sample_logits(counts.mixture(lam), classes, p, samples, rng, noise=sigma)
    by_margin = np.stack([np.roll(row, -label) for row, label in zip(logits, labels, strict=True)])
    for column in range(classes):
        error = by_margin[:, column].std() * np.sqrt(2 / samples)
        assert by_margin[:, column].mean() == pytest.approx(drawn[:, column].mean(), abs=4 * error)
        assert by_margin[:, column].std() == pytest.approx(drawn[:, column].std(), rel=0.05)


def test_small_noise_breaks_ties_at_random() -> None:
    vote, samples = plain_vote(1, 3), 40_000
    rng = np.random.default_rng(8)
    labels, logits = sample_logits(vote, 4, 1.0, samples, rng, noise=1e-6)
    share = float((logits.argmax(axis=1) == labels).mean())
    exact = exact_accuracy(vote, 4, 1.0)
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / samples)


def test_predict_shares_ties_evenly() -> None:
    chosen = predict(np.tile([1.0, 2.0, 2.0, 2.0], (30_000, 1)), np.random.default_rng(1))
    counts = np.bincount(chosen, minlength=4)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] - 10_000) < 400)


def test_from_where_the_limit_is_good() -> None:
    assert limit_good_from(3, 0.9, largest=60) == 28
    assert limit_good_from(10, 0.9, largest=40) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: draw_design(0, np.random.default_rng(0)),
        lambda: draw_design(3, np.random.default_rng(0), low=0.9, high=0.5),
        lambda: sample_logits(plain_vote(1, 2), 3, 0.5, -1, np.random.default_rng(0)),
        lambda: sample_logits(plain_vote(1, 2), 3, 0.5, 1, np.random.default_rng(0), noise=-1.0),
    ],
)
def test_bad_input(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TheoryError):
        call()
