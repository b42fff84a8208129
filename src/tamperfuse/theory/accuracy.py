"""Accuracy xi of f-bar, f* and their mixture: exactly, and in the Gaussian limit of many spurious features.

The limit. Let D_k be a spurious feature's vote for the true class minus its vote for the wrong class k. From
P(vote y) = 1 - p + p/K and P(vote k) = p/K follow

    E D_k = 1 - p,    Var D_k = p (K + 2 - pK) / K,    Cov(D_k, D_l) = p (K + 1 - pK) / K        (k != l)

so the K - 1 margins of the true class over the wrong ones, for spurious weights w_j and invariant weight V, have mean
(1 - p) S1 + V and covariance S2 M, with S1 = sum w_j, S2 = sum w_j^2 and M the matrix of the D_k. Divided by sqrt(S2),

    xi -> F_p(x),   x = ((1 - p) S1 + V) / sqrt(S2),   F_p(x) = P(all K - 1 components of N(x 1, M) are positive).

M = c 1 1^T + b I with c = p (K + 1 - pK) / K and b = p / K, hence F_p(x) = E Phi((x + sqrt(c) g) / sqrt(b))^(K - 1)
over one standard normal g: increasing in x, strictly for p > 0. This is Lin et al.'s F_p; at lambda = 1/2, numerator and
denominator multiplied by 4, x is the expression in the SDD paper, with 2 n_so in the numerator and 14 n_so in the denominator.
Equations (7) to (11) of docs/theory.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

from tamperfuse.theory.exact import win_probability
from tamperfuse.theory.model import FeatureCounts, Vote, check_classes, check_probability

__all__ = ["Accuracies", "accuracies", "exact_accuracy", "limit_accuracy", "limit_argument", "limit_form"]


@lru_cache(maxsize=1)
def _normal_rule() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights for a mean over a standard normal: 40 panels of 16 Gauss-Legendre nodes on [-9, 9].

    The integrand rises over an interval of width about 1 / sqrt(K), which is too steep for Gauss-Hermite at a large K.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(-9.0, 9.0, 41)
    half = (edges[1] - edges[0]) / 2.0
    points = ((edges[:-1] + edges[1:])[:, None] / 2.0 + half * nodes).ravel()
    density = np.exp(-0.5 * points**2) / math.sqrt(2.0 * math.pi)
    return points, np.tile(weights * half, 40) * density


def limit_form(x: ArrayLike, classes: int, p: float) -> NDArray[np.float64]:
    """F_p(x), the probability that N(x 1, M) is positive in all K - 1 components: equation (10) (Lin et al.).

    Args:
        x: any shape, infinities allowed.
        classes: K >= 2.
        p: in [0, 1]; at p = 0 the covariance is zero, and F_0(x) is 0 for x < 0, 1/K for x = 0 and 1 for x > 0.

    Returns:
        values in [0, 1], of the shape of x.

    Raises:
        TheoryError: if K or p is out of range.
    """
    classes, p = check_classes(classes), check_probability("p", p)
    values = np.asarray(x, dtype=np.float64)
    if p == 0.0:
        return np.where(values > 0.0, 1.0, np.where(values < 0.0, 0.0, 1.0 / classes))
    shared, independent = p * (classes + 1 - p * classes) / classes, p / classes
    points, weights = _normal_rule()
    flat = np.clip(values.ravel(), -1e6, 1e6)
    chances = np.empty(len(flat))
    for start in range(0, len(flat), 1024):
        part = flat[start : start + 1024, None]
        logs = log_ndtr((part + math.sqrt(shared) * points) / math.sqrt(independent))
        chances[start : start + 1024] = np.exp((classes - 1) * logs) @ weights
    return np.clip(chances, 0.0, 1.0).reshape(values.shape)


def limit_argument(vote: Vote, p: float) -> float:
    """The argument of F_p, x = ((1 - p) S1 + V) / sqrt(S2), equation (9); at lambda = 1/2 it is (11).

    Without spurious features the vote has no variance: x is +inf if there is an invariant feature, and 0 (all classes
    tie) if there is none.

    Raises:
        TheoryError: if p is out of range.
    """
    p = check_probability("p", p)
    if not vote.weights:
        return math.inf if vote.invariant > 0.0 else 0.0
    return ((1.0 - p) * vote.mass + vote.invariant) / math.sqrt(vote.power)


def limit_accuracy(vote: Vote, classes: int, p: float) -> float:
    """Accuracy in the Gaussian limit, (9), in [0, 1].

    Without spurious features the exact value is returned: 1 with an invariant feature, 1 / K without any feature.

    Raises:
        TheoryError: if K or p is out of range.
    """
    classes = check_classes(classes)
    if not vote.weights:
        return 1.0 if vote.invariant > 0.0 else 1.0 / classes
    return float(limit_form(limit_argument(vote, p), classes, p))


def exact_accuracy(vote: Vote, classes: int, p: float) -> float:
    """Exact accuracy, (5), of the multinomial vote with random tie-breaking: in [0, 1], with an error of about 1e-10.

    Raises:
        TheoryError: if K or p is out of range, or the vote is too large to compute exactly.
    """
    return win_probability(vote, check_classes(classes), check_probability("p", p))


@dataclass(frozen=True)
class Accuracies:
    """Accuracy xi in [0, 1] of the hardened model and of its mixture with the attack's optimum; exact and in the limit."""

    hardened: float
    mixture: float
    hardened_limit: float
    mixture_limit: float


def accuracies(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> Accuracies:
    """All four values of xi for one setting.

    Args:
        counts: the features of both models and their overlap.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1]; 1 - lam is the attack's strength.

    Raises:
        TheoryError: if K, p or lam is out of range, or a vote is too large to compute exactly.
    """
    votes = (counts.hardened(), counts.mixture(lam))
    exact = [exact_accuracy(vote, classes, p) for vote in votes]
    limit = [limit_accuracy(vote, classes, p) for vote in votes]
    return Accuracies(*exact, *limit)
