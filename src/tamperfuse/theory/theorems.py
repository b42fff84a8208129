"""Check the SDD paper's two theorems at a setting: their conditions and their conclusions, exact and in the limit.

Theorem 1: malicious fine-tuning lowers alignment accuracy, by an amount that grows with the attack's spurious features n*_s.
Its conditions as formalised in this module: the attack's data contain no invariant feature of alignment that the model lacks,
and spurious features that it lacks. Theorem 2: with n-bar_v > n*_v and n-bar_s < n*_s general accuracy falls as well.
Neither conclusion follows from its conditions; `tamperfuse.theory.region` gives sufficient ones.

Source: Chen et al., ACL 2025 (arXiv 2507.21182), Theorems 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tamperfuse.theory.accuracy import Accuracies, accuracies, exact_accuracy, limit_argument
from tamperfuse.theory.model import FeatureCounts, check_probability
from tamperfuse.theory.region import RESOLUTION, falls_exactly, falls_in_limit, limit_threshold

__all__ = ["Growth", "TheoremCheck", "strongest_attack", "theorem_one", "theorem_two"]


@dataclass(frozen=True)
class Growth:
    """Second part of Theorem 1: whether one more spurious feature in the attack lowers accuracy further.

    Attributes:
        exactly: it lowers exact accuracy after the attack by more than 1e-9.
        in_limit: it lowers accuracy in the limit.
        strongest: n*_s (a real number) at which accuracy in the limit is lowest; it rises again beyond.
    """

    exactly: bool
    in_limit: bool
    strongest: float


@dataclass(frozen=True)
class TheoremCheck:
    """Conditions and conclusion of one theorem at one setting.

    Attributes:
        theorem: 1 or 2.
        conditions: description of each condition, and whether it is met.
        holds_exactly: exact accuracy falls by more than 1e-9.
        holds_in_limit: accuracy falls in the Gaussian limit.
        threshold: the invariant features above which it falls in the limit, see `limit_threshold`.
        values: all accuracies, before and after, in both forms.
        growth: second part of Theorem 1; None for Theorem 2.
    """

    theorem: int
    conditions: tuple[tuple[str, bool], ...]
    holds_exactly: bool
    holds_in_limit: bool
    threshold: float
    values: Accuracies
    growth: Growth | None = None

    @property
    def conditions_met(self) -> bool:
        """Whether every condition is met."""
        return all(met for _, met in self.conditions)

    @property
    def drop(self) -> float:
        """Exact accuracy before minus after the attack, in [-1, 1]."""
        return self.values.hardened - self.values.mixture

    @property
    def drop_limit(self) -> float:
        """Accuracy in the limit before minus after the attack, in [-1, 1]: the bound of Theorem 1, which may be negative."""
        return self.values.hardened_limit - self.values.mixture_limit


def strongest_attack(counts: FeatureCounts, p: float, lam: float = 0.5) -> float:
    """Number of spurious features n*_s at which accuracy after the attack is lowest in the limit: (14).

    With b new ones of weight w = (1 - lambda)^2 beside S1, S2 and V of the rest, x(b) = ((1 - p)(S1 + w b) + V) /
    sqrt(S2 + w^2 b) falls while w ((1 - p)(S1 + w b) + V) > 2 (1 - p)(S2 + w^2 b), and rises from there on. At
    lambda = 1/2 without overlap the minimum lies at n_s + n*_s = (n_v + n*_v) / (1 - p).

    Returns:
        A real number >= n_so; inf if accuracy falls with every further feature (p = 1) or does not depend on them (lambda = 1).

    Raises:
        TheoryError: if p or lam is out of range.
    """
    p, lam = check_probability("p", p), check_probability("lambda", lam)
    weight = (1.0 - lam) ** 2
    if p == 1.0 or weight == 0.0:
        return math.inf
    rest = replace(counts, attack_spurious=counts.shared_spurious).mixture(lam)
    minimum = (rest.mass + rest.invariant / (1.0 - p)) / weight - 2.0 * rest.power / weight**2
    return counts.shared_spurious + max(0.0, minimum)


def theorem_one(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> TheoremCheck:
    """Theorem 1: the attack lowers alignment accuracy, by an amount that grows with its spurious features.

    Args:
        counts: features of the alignment task.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1]; 1 - lam is the attack's strength.

    Raises:
        TheoryError: if K, p or lam is out of range, or a vote is too large to compute exactly.
    """
    more = replace(counts, attack_spurious=counts.attack_spurious + 1)
    values = accuracies(counts, classes, p, lam)
    now, next_ = counts.mixture(lam), more.mixture(lam)
    new_invariant = counts.attack_invariant - counts.shared_invariant
    new_spurious = counts.attack_spurious - counts.shared_spurious
    conditions = (
        ("the attack brings no invariant feature that the model lacks", new_invariant == 0),
        ("the attack brings spurious features that the model lacks", new_spurious > 0),
    )
    growth = Growth(
        exact_accuracy(next_, classes, p) < values.mixture - RESOLUTION,
        p > 0.0 and limit_argument(next_, p) < limit_argument(now, p) * (1.0 - 1e-12),
        strongest_attack(counts, p, lam),
    )
    return _check(1, conditions, counts, classes, p, lam, values, growth)


def theorem_two(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> TheoremCheck:
    """Theorem 2: the attack lowers general accuracy if its optimum has fewer invariant and more spurious features.

    Args:
        counts: features of the general task.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1]; 1 - lam is the attack's strength.

    Raises:
        TheoryError: if K, p or lam is out of range, or a vote is too large to compute exactly.
    """
    conditions = (
        ("more invariant features than the attack's optimum", counts.invariant > counts.attack_invariant),
        ("fewer spurious features than the attack's optimum", counts.spurious < counts.attack_spurious),
    )
    return _check(2, conditions, counts, classes, p, lam, accuracies(counts, classes, p, lam), None)


def _check(
    theorem: int,
    conditions: tuple[tuple[str, bool], ...],
    counts: FeatureCounts,
    classes: int,
    p: float,
    lam: float,
    values: Accuracies,
    growth: Growth | None,
) -> TheoremCheck:
    exactly, in_limit = falls_exactly(counts, classes, p, lam), falls_in_limit(counts, classes, p, lam)
    return TheoremCheck(theorem, conditions, exactly, in_limit, limit_threshold(counts, p, lam), values, growth)
