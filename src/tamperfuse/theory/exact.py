"""Exact accuracy, equations (5) and (6): the probability that the true class wins, to about 1e-10, without sampling.

For fixed weights the K class scores depend on how many features of each group vote for each class; these numbers are
multinomial. If the number of features in each group is replaced by a Poisson variable, the classes become independent, and
the true class wins with probability

    G(z) = sum over its counts t of  true_t(z) * integral over u in [0, 1] of (less_t(z) + u tie_t(z))^(K - 1)

where less_t and tie_t sum the Poisson weights of one wrong class over the scores below, or equal to, that of the true
class, and the exponent of z (one variable per group) counts features. u is the true class's rank in a random order, so that
the integral gives 1 / (m + 1) for a tie with m other classes. The coefficient of z^n in G, divided by the Poisson probability
of n, is the accuracy with exactly n features. It is computed by a discrete Fourier transform over points on a circle.

With T = prod (n_g + 1) joint counts over the groups g, time is O(T^2 log K) for up to 16 nodes in u (exact up to K = 32, with
an error far below 1e-10 beyond); memory is bounded by working on a few points z at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from tamperfuse.theory.model import TIE_TOLERANCE, TheoryError, Vote

__all__ = ["win_probability"]

Complex = NDArray[np.complex128]
Index = NDArray[np.intp]

_CHUNK_CELLS = 400_000  # joint counts x points in memory at a time: about 30 MB
_MAX_CELLS = 3_000_000_000  # joint counts x points in total: about two minutes
_MOST_CLASSES = 1_000_000  # up to 10**7 rounding errors, which grow with K, stay below the resolution of comparisons


@dataclass(frozen=True)
class _Circle:
    """The points at which one group's variable z is evaluated, and the factor that gives the coefficient of z^n."""

    rate: float  # the Poisson mean
    points: int
    scale: float  # 1 / P(Poisson(rate) = n)


def _log_poisson(n: int | NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    number = np.asarray(n, dtype=np.float64)
    return np.asarray(number * math.log(rate) - rate - gammaln(number + 1.0))


@lru_cache(maxsize=4096)
def _circle(n: int) -> _Circle:
    """The smallest number of points for which the aliased coefficients (n + points, ...) are below 1e-13 of the n-th.

    A low Poisson rate makes the aliased coefficients small, but also the n-th, by which rounding errors are divided. The rate
    is about the lowest one at which the n-th coefficient is at least a third of its maximum.
    """
    rate = float(n)
    least = float(_log_poisson(n, rate)) - math.log(3.0)
    while float(_log_poisson(n, rate * 0.95)) > least:
        rate *= 0.95
    log_target = float(_log_poisson(n, rate))
    points = n + 1
    while float(_log_poisson(n + points, rate)) - log_target > math.log(1e-13):
        points += 1
    return _Circle(rate, points, math.exp(-log_target))


def _powers(number: int, chance: float, circle: _Circle) -> Complex:
    """Poisson weights times z^i for i = 0 .. number at every point of the circle, shape (number + 1, points)."""
    mean = circle.rate * chance
    counts = np.arange(number + 1, dtype=np.float64)
    weights = (counts == 0).astype(np.float64) if mean == 0.0 else np.exp(_log_poisson(counts, mean))
    angles = 2j * np.pi / circle.points * np.outer(counts, np.arange(circle.points))
    return np.asarray(weights[:, None] * np.exp(angles))


def _integer_power(base: Complex, exponent: int) -> Complex:
    """base**exponent by squaring; numpy's complex power uses logarithms and is about ten times slower."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result


@dataclass(frozen=True)
class _Ranking:
    """The joint counts of one class sorted by score, and how the true class ranks among them.

    Attributes:
        counts: (T, groups), in increasing order of score.
        starts: (R,) index of the first joint count of the true class with each of the R ranks.
        below: (R,) at each rank, the number of joint counts of a wrong class with a lower score.
        upto: (R,) at each rank, the number of joint counts of a wrong class with a lower or equal score.
    """

    counts: Index
    starts: Index
    below: Index
    upto: Index


def _rank(vote: Vote) -> _Ranking:
    grids = np.meshgrid(*(np.arange(n + 1) for n in vote.spurious), indexing="ij")
    counts = np.stack([grid.ravel() for grid in grids], axis=1)
    scores = counts @ np.asarray(vote.weights)
    by_score = np.argsort(scores, kind="stable")
    counts, scores = counts[by_score], scores[by_score]
    slack = TIE_TOLERANCE * vote.weights[0]
    below = np.searchsorted(scores, scores + vote.invariant - slack, side="left")
    upto = np.searchsorted(scores, scores + vote.invariant + slack, side="right")
    # Both are non-decreasing in the score, so equal ranks are adjacent.
    starts = np.flatnonzero(np.r_[True, (np.diff(below) != 0) | (np.diff(upto) != 0)])
    return _Ranking(counts, starts, below[starts], upto[starts])


def _products(tables: list[Complex], counts: Index, points: Index) -> Complex:
    """Product of the groups' tables, shape (T, number of points)."""
    result = tables[0][np.ix_(counts[:, 0], points[0])]
    for group in range(1, len(tables)):
        result = result * tables[group][np.ix_(counts[:, group], points[group])]
    return np.asarray(result)


def _generating_function(
    ranking: _Ranking, true: list[Complex], wrong: list[Complex], points: Index, classes: int
) -> Complex:
    """G at the given points, shape (number of points,)."""
    one_wrong = _products(wrong, ranking.counts, points)
    total = np.zeros((len(one_wrong) + 1, one_wrong.shape[1]), dtype=np.complex128)
    np.cumsum(one_wrong, axis=0, out=total[1:])
    winner = np.add.reduceat(_products(true, ranking.counts, points), ranking.starts, axis=0)
    less, tie = total[ranking.below], total[ranking.upto] - total[ranking.below]
    if not np.any(ranking.upto > ranking.below):
        return np.asarray((winner * _integer_power(less, classes - 1)).sum(axis=0))
    nodes, weights = np.polynomial.legendre.leggauss(min((classes + 1) // 2, 16))
    result = np.zeros(one_wrong.shape[1], dtype=np.complex128)
    for node, weight in zip((nodes + 1.0) / 2.0, weights / 2.0, strict=True):
        result += weight * (winner * _integer_power(less + node * tie, classes - 1)).sum(axis=0)
    return result


@lru_cache(maxsize=65536)
def win_probability(vote: Vote, classes: int, p: float) -> float:
    """Exact probability in [0, 1] that the true class has the highest score, ties broken at random: equation (5).

    Args:
        vote: the model; without any feature all classes tie and the result is 1 / K.
        classes: K >= 2.
        p: in [0, 1].

    Raises:
        TheoryError: if the groups hold so many features that the exact form would take minutes, or there are so many classes that
            rounding errors, which grow with K, would decide.
    """
    if classes > _MOST_CLASSES:
        raise TheoryError(
            f"the exact form is computed for up to {_MOST_CLASSES:,} classes, not {classes:,}: use the limit form."
        )
    if not vote.weights:
        return 1.0 if vote.invariant > 0.0 else 1.0 / classes
    if vote.invariant > vote.mass + TIE_TOLERANCE * vote.weights[0]:
        return 1.0  # the spurious features cannot outvote the invariant ones
    circles = [_circle(n) for n in vote.spurious]
    joint = math.prod(n + 1 for n in vote.spurious)
    # G has real coefficients: values on the other half of the first circle are the conjugates of those on this half.
    half = circles[0].points // 2 + 1
    shape = (half, *(circle.points for circle in circles[1:]))
    if joint * math.prod(shape) > _MAX_CELLS:
        raise TheoryError(
            f"the exact vote over groups of {vote.spurious} spurious features is too large to compute: "
            "use fewer features, lambda = 1/2 without overlap, the limit form, or sampling."
        )
    ranking = _rank(vote)
    right = 1.0 - p * (classes - 1) / classes
    true = [_powers(n, right, c) for n, c in zip(vote.spurious, circles, strict=True)]
    wrong = [_powers(n, p / classes, c) for n, c in zip(vote.spurious, circles, strict=True)]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*(np.arange(m) for m in shape), indexing="ij")])
    phase = sum(points[g] * (vote.spurious[g] / circles[g].points) for g in range(len(circles)))
    mirrored = (points[0] > 0) & (2 * points[0] != circles[0].points)
    factors = np.where(mirrored, 2.0, 1.0) * np.exp(-2j * np.pi * np.asarray(phase))
    answer, step = 0.0, max(1, _CHUNK_CELLS // joint)
    for start in range(0, points.shape[1], step):
        part = slice(start, start + step)
        values = _generating_function(ranking, true, wrong, points[:, part], classes)
        answer += float((factors[part] * values).sum().real)
    answer *= math.prod(c.scale / c.points for c in circles)
    return min(max(answer, 0.0), 1.0)
