"""The feature model: the features of a model, their weights in a fine-tuned mixture, and how to sample votes.

    feature     invariant                          spurious
    votes for   the true class y, always           y with probability 1 - p + p/K, any other class with p/K

    mask, head  only in f-bar   only in f*       in both
    counts      lambda^2        (1 - lambda)^2   1          in f~ = lambda f-bar + (1 - lambda) f*

A model's logit of class k is the weighted number of its features that vote for k, so a model is fully described by
its *vote*: the weight V of its invariant features, and groups of spurious features that share a weight.

Source: Lin et al., ICLR 2024 (arXiv 2309.17230), the multi-class feature model and weight-space ensembles; used by
Chen et al., ACL 2025 (arXiv 2507.21182) for alignment accuracy and general accuracy. Equation numbers refer to
`docs/theory.md`, which has the derivations.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FeatureCounts",
    "TheoryError",
    "Vote",
    "check_classes",
    "check_count",
    "check_probability",
    "plain_vote",
    "predict",
    "sample_logits",
]

#: Two weights, or two scores, closer than this (relative to the largest weight) are the same number.
TIE_TOLERANCE = 1e-9


class TheoryError(ValueError):
    """An invalid input; the message states what is wrong, where, and how to correct it."""


def check_count(name: str, value: object) -> int:
    """Return `value` as a count of features: a whole number, at least 0.

    Raises:
        TheoryError: if it is negative or not an integer.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TheoryError(f"{name} is {value!r}: a number of features must be an integer, 0 or more.") from None
    if count < 0:
        raise TheoryError(f"{name} is {count}: a number of features cannot be negative; give 0 or more.")
    return count


def check_probability(name: str, value: object) -> float:
    """Return `value` as a float in [0, 1].

    Raises:
        TheoryError: if it is not a number in [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TheoryError(f"{name} is {value!r}: it must be a number in [0, 1].")
    if not 0.0 <= float(value) <= 1.0:
        raise TheoryError(f"{name} is {float(value)!r}: it must lie in [0, 1].")
    return float(value)


def check_classes(value: object) -> int:
    """Return the number of classes K, at least 2.

    Raises:
        TheoryError: if it is below 2 or not an integer.
    """
    count = check_count("K (the number of classes)", value)
    if count < 2:
        raise TheoryError(f"K (the number of classes) is {count}: a vote needs at least 2 classes.")
    return count


@dataclass(frozen=True)
class Vote:
    """The weights with which one model's features vote.

    Attributes:
        invariant: V >= 0, the summed weight of the invariant features, all of which vote for the true class.
        weights: one weight > 0 for each group of spurious features, distinct, in decreasing order.
        spurious: number of features in each group, at least 1.
    """

    invariant: float
    weights: tuple[float, ...]
    spurious: tuple[int, ...]

    @property
    def mass(self) -> float:
        """S_1 of equation (4), the summed weight of the spurious features."""
        return math.fsum(w * n for w, n in zip(self.weights, self.spurious, strict=True))

    @property
    def power(self) -> float:
        """S_2 of equation (4), the summed squared weight of the spurious features: the scale of the vote's variance."""
        return math.fsum(w * w * n for w, n in zip(self.weights, self.spurious, strict=True))


def _vote(invariant: float, groups: list[tuple[float, int]]) -> Vote:
    """Drop empty groups and merge groups of equal weight (at lambda = 1/2 both models' unshared features form one group)."""
    joined: dict[float, int] = {}
    for weight, number in groups:
        if weight <= 0.0 or number == 0:
            continue
        same = next((w for w in joined if abs(w - weight) < TIE_TOLERANCE * max(w, weight)), weight)
        joined[same] = joined.get(same, 0) + number
    ordered = sorted(joined.items(), reverse=True)
    return Vote(invariant, tuple(w for w, _ in ordered), tuple(n for _, n in ordered))


def plain_vote(invariant: int, spurious: int) -> Vote:
    """The vote of a trained model: n_v invariant and n_s spurious features, each of weight 1 ((3), (4) at lambda = 1).

    Raises:
        TheoryError: if a count is negative or not an integer.
    """
    return _vote(float(check_count("n_v", invariant)), [(1.0, check_count("n_s", spurious))])


@dataclass(frozen=True)
class FeatureCounts:
    """The number of features of the hardened model f-bar, of the attack's optimum f*, and of those that both have.

    Attributes:
        invariant: invariant features of the hardened model (n-bar_v).
        spurious: spurious features of the hardened model (n-bar_s).
        attack_invariant: invariant features of the attack's optimum (n*_v).
        attack_spurious: spurious features of the attack's optimum (n*_s).
        shared_invariant: invariant features in both (n_vo), included in both numbers above.
        shared_spurious: spurious features in both (n_so), included in both numbers above.

    Raises:
        TheoryError: for a negative or non-integer count, or an overlap larger than one of the two numbers.
    """

    invariant: int
    spurious: int
    attack_invariant: int
    attack_spurious: int
    shared_invariant: int = 0
    shared_spurious: int = 0

    def __post_init__(self) -> None:
        """Check each count, and that neither overlap is larger than the sets that it is part of."""
        for field in fields(self):
            object.__setattr__(self, field.name, check_count(field.name, getattr(self, field.name)))
        for kind in ("invariant", "spurious"):
            shared, sides = getattr(self, f"shared_{kind}"), (getattr(self, kind), getattr(self, f"attack_{kind}"))
            if shared > min(sides):
                raise TheoryError(
                    f"shared_{kind} is {shared}, but {kind} is {sides[0]} and "
                    f"attack_{kind} is {sides[1]}: an overlap is part of both; give at most {min(sides)}."
                )

    def hardened(self) -> Vote:
        """The vote of f-bar, the model before the attack."""
        return plain_vote(self.invariant, self.spurious)

    def optimum(self) -> Vote:
        """The vote of f*, the model that the attack's data alone would lead to."""
        return plain_vote(self.attack_invariant, self.attack_spurious)

    def mixture(self, lam: float = 0.5) -> Vote:
        """The vote of f~ = lam f-bar + (1 - lam) f*, in mask and head: equations (3) and (4).

        Args:
            lam: the hardened model's share in [0, 1]; 1 - lam is the attack's strength.

        Raises:
            TheoryError: if lam lies outside [0, 1].
        """
        lam = check_probability("lambda", lam)
        hardened, optimum = lam * lam, (1.0 - lam) * (1.0 - lam)
        invariant = (
            hardened * (self.invariant - self.shared_invariant)
            + optimum * (self.attack_invariant - self.shared_invariant)
            + self.shared_invariant
        )
        groups = [
            (hardened, self.spurious - self.shared_spurious),
            (optimum, self.attack_spurious - self.shared_spurious),
            (1.0, self.shared_spurious),
        ]
        return _vote(invariant, groups)


def sample_logits(
    vote: Vote,
    classes: int,
    p: float,
    samples: int,
    rng: np.random.Generator,
    *,
    noise: float = 0.0,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Draw labels and logits under equations (1) and (2), without forming feature vectors.

    The columns of all mu are orthonormal, so a feature of weight w adds w to the logit of the class it votes for, and
    isotropic noise of standard deviation `noise` in each feature vector adds to every logit an independent normal of
    standard deviation noise * sum of weights (mask times head, both of which carry the root of the weight).

    Args:
        vote: the model.
        classes: K >= 2.
        p: probability in [0, 1] that a spurious feature votes at random.
        samples: number of draws, at least 0.
        rng: the source of randomness.
        noise: sigma >= 0 of the feature vectors; the theory takes the limit 0, in which ties are broken at random.

    Returns:
        labels: (samples,) in 0 .. K - 1, uniform.
        logits: (samples, K).

    Raises:
        TheoryError: if K, p, samples or noise is out of range.
    """
    classes, p, samples = check_classes(classes), check_probability("p", p), check_count("samples", samples)
    if not 0.0 <= noise < math.inf:
        raise TheoryError(f"noise is {noise!r}: a standard deviation must be finite, 0 or more.")
    chances = np.full(classes, p / classes)
    chances[0] = 1.0 - p * (classes - 1) / classes
    logits = np.zeros((samples, classes))
    for weight, number in zip(vote.weights, vote.spurious, strict=True):
        logits += weight * rng.multinomial(number, chances, size=samples)
    logits[:, 0] += vote.invariant
    labels = rng.integers(classes, size=samples)
    # The wrong classes are exchangeable, so swapping column 0 (the true class so far) with the label's column is enough.
    rows = np.arange(samples)
    moved = logits[rows, labels]
    logits[rows, labels] = logits[:, 0]
    logits[:, 0] = np.where(labels == 0, logits[:, 0], moved)
    if noise > 0.0:
        logits += noise * (vote.invariant + vote.mass) * rng.standard_normal(logits.shape)
    return labels, logits


def predict(logits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Class with the highest logit, ties broken at random: logits (samples, K) → classes (samples,)."""
    best = logits.max(axis=1, keepdims=True)
    tied = logits >= best - TIE_TOLERANCE * np.maximum(1.0, np.abs(best))
    # Choose the j-th of the m tied classes, with j uniform in 1 .. m.
    pick = 1 + np.floor(rng.random(len(logits)) * tied.sum(axis=1)).astype(np.intp)
    return np.asarray((tied.cumsum(axis=1) >= pick[:, None]).argmax(axis=1), dtype=np.intp)
