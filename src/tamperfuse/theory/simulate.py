"""Compare the exact form with Monte Carlo: random settings, one z score for each, one chi-square test over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from tamperfuse.theory.accuracy import exact_accuracy, limit_accuracy
from tamperfuse.theory.model import FeatureCounts, TheoryError, check_count, predict, sample_logits

__all__ = ["Comparison", "Setting", "compare", "draw_design", "limit_good_from", "simulate"]


@dataclass(frozen=True)
class Setting:
    """One setting of a design: the mixture of `counts` at `lam` with `classes` classes and probability p; exact accuracy."""

    counts: FeatureCounts
    classes: int
    p: float
    lam: float
    exact: float


@dataclass(frozen=True)
class Comparison:
    """Results of Monte Carlo and of the exact form.

    Attributes:
        simulated: (S,) share of correct samples.
        z: (S,) (simulated - exact) / sqrt(exact (1 - exact) / samples).
        limit_error: (S,) limit form minus exact form.
        chi2_p: probability that a chi-square variable with S degrees of freedom exceeds sum z^2.
        samples: draws per setting.
    """

    simulated: NDArray[np.float64]
    z: NDArray[np.float64]
    limit_error: NDArray[np.float64]
    chi2_p: float
    samples: int

    @property
    def max_abs_z(self) -> float:
        """The largest |z| of the design."""
        return float(np.abs(self.z).max())


def draw_design(
    settings: int, rng: np.random.Generator, *, low: float = 0.5, high: float = 0.99, largest: int = 40
) -> list[Setting]:
    """Draw settings of the mixture with exact accuracy in [low, high]: K 2 to 10, any p, lambda and overlap.

    Half of them have lambda = 1/2; the others a multiple of 1/20, so that groups of different weight can tie.

    Args:
        settings: number of settings, at least 1.
        rng: the source of randomness.
        low: lowest exact accuracy.
        high: highest exact accuracy.
        largest: bound on the number of features of one kind in one model.

    Raises:
        TheoryError: if settings is 0 or the interval of accuracy is empty.
    """
    if check_count("settings", settings) < 1 or not 0.0 <= low < high <= 1.0:
        raise TheoryError(f"a design needs 1 setting or more and 0 <= low < high <= 1; got {settings}, {low}, {high}.")
    design: list[Setting] = []
    while len(design) < settings:
        counts = _draw_counts(rng, largest)
        classes, p = int(rng.integers(2, 11)), round(float(rng.uniform(0.3, 1.0)), 3)
        lam = 0.5 if rng.random() < 0.5 else int(rng.integers(1, 20)) / 20
        exact = exact_accuracy(counts.mixture(lam), classes, p)
        if low <= exact <= high:
            design.append(Setting(counts, classes, p, lam, exact))
    return design


def _draw_counts(rng: np.random.Generator, largest: int) -> FeatureCounts:
    """Small overlaps, so that the exact form of a whole design takes seconds."""
    spurious, attack_spurious = (int(n) for n in rng.integers(1, largest // 2 + 1, 2))
    invariant, attack_invariant = (int(n) for n in rng.integers(0, largest // 5 + 1, 2))
    shared_spurious = int(rng.integers(0, min(spurious, attack_spurious, 4) + 1)) if rng.random() < 0.5 else 0
    shared_invariant = int(rng.integers(0, min(invariant, attack_invariant) + 1)) if rng.random() < 0.5 else 0
    return FeatureCounts(invariant, spurious, attack_invariant, attack_spurious, shared_invariant, shared_spurious)


def simulate(setting: Setting, samples: int, rng: np.random.Generator, *, block: int = 50_000) -> float:
    """Share of `samples` draws that the mixture classifies correctly, drawn `block` at a time.

    Raises:
        TheoryError: if samples is 0 or a value of the setting is out of range.
    """
    if check_count("samples", samples) < 1:
        raise TheoryError("samples is 0: a simulation needs at least 1.")
    vote, right = setting.counts.mixture(setting.lam), 0
    for start in range(0, samples, block):
        size = min(block, samples - start)
        labels, logits = sample_logits(vote, setting.classes, setting.p, size, rng)
        right += int((predict(logits, rng) == labels).sum())
    return right / samples


def compare(design: Sequence[Setting], samples: int, rng: np.random.Generator) -> Comparison:
    """Simulate each setting with `samples` draws and compare with the exact and the limit form.

    Raises:
        TheoryError: if samples is 0, or a setting's exact accuracy is 0 or 1 (it has no z score).
    """
    exact = np.array([setting.exact for setting in design])
    if np.any((exact <= 0.0) | (exact >= 1.0)):
        raise TheoryError("a setting's exact accuracy is 0 or 1: draw the design with low > 0 and high < 1.")
    simulated = np.array([simulate(setting, samples, rng) for setting in design])
    z = (simulated - exact) / np.sqrt(exact * (1.0 - exact) / samples)
    limits = [limit_accuracy(s.counts.mixture(s.lam), s.classes, s.p) for s in design]
    return Comparison(simulated, z, np.asarray(limits) - exact, float(chi2.sf(float(z @ z), len(z))), samples)


def limit_good_from(
    classes: int, p: float, *, tolerance: float = 0.01, largest: int = 300, low: float = 0.5, high: float = 0.99
) -> int | None:
    """Number of spurious features from which the error of the limit form is at most `tolerance`, for one model.

    Checks all n_v with an exact accuracy in [low, high], for each n_s up to `largest`.

    Returns:
        The smallest n such that the error is within `tolerance` for all n_s in n .. largest, or None if it is not at `largest`.

    Raises:
        TheoryError: if K or p is out of range.
    """
    last_bad = 0
    for n_s in range(largest, 0, -1):
        if _limit_errs(classes, p, n_s, tolerance, (low, high)):
            last_bad = n_s
            break
    return None if last_bad == largest else last_bad + 1


def _limit_errs(classes: int, p: float, n_s: int, tolerance: float, interval: tuple[float, float]) -> bool:
    counts = (FeatureCounts(n_v, n_s, 0, 0) for n_v in range(n_s + 1))
    for vote in (c.hardened() for c in counts):
        exact = exact_accuracy(vote, classes, p)
        if exact > interval[1] or math.isclose(exact, 1.0):
            return False  # accuracy increases with n_v, so all larger n_v lie outside the interval
        if exact >= interval[0] and abs(limit_accuracy(vote, classes, p) - exact) > tolerance:
            return True
    return False
