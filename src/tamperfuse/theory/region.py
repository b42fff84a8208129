"""The region of settings in which an attack lowers accuracy, its edge, and the changes that bring a model into it.

In the limit form accuracy falls if and only if its argument falls (F_p is strictly increasing for p > 0):

    ((1 - p) S1 + V) / sqrt(S2)  <  ((1 - p) n_s + n_v) / sqrt(n_s)

with n_v, n_s the hardened model's features, S1, S2, V those of the mixture. V = a n_v + c, a = lambda^2 and c free
of n_v, so with rho = sqrt(S2 / n_s) this is n_v (rho - a) > (1 - p)(S1 - rho n_s) + c. Since S2 >= a^2 n_s, rho >= a,
with equality only if the attack neither brings nor shares a spurious feature (or lambda = 1); hence a threshold:

    n_v > ((1 - p)(S1 - rho n_s) + c) / (rho - a).

At lambda = 1/2 without overlap, with N = n_s + n*_s, it is n_v > (1 - p) sqrt(n_s N) + n*_v / (sqrt(N / n_s) - 1).
Equations (12) and (13) of docs/theory.md, which has the proofs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tamperfuse.theory.accuracy import exact_accuracy, limit_accuracy, limit_argument
from tamperfuse.theory.model import FeatureCounts, TheoryError, check_classes, check_count, check_probability

__all__ = [
    "Change",
    "Counterexample",
    "RegionMap",
    "entry_frontier",
    "falls_exactly",
    "falls_in_limit",
    "limit_threshold",
    "map_region",
    "required_change",
    "search_counterexamples",
]

Form = Literal["exact", "limit"]
Disagreement = Literal["rises", "rises-in-limit", "limit-falls-exact-rises", "limit-rises-exact-falls"]

#: Exact accuracies that differ by less count as equal (their error is about 1e-10).
RESOLUTION = 1e-9


def falls_exactly(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> bool:
    """Whether the attack lowers exact accuracy by more than 1e-9.

    Raises:
        TheoryError: if K, p or lam is out of range, or a vote is too large to compute exactly.
    """
    after = exact_accuracy(counts.mixture(lam), classes, p)
    return after < exact_accuracy(counts.hardened(), classes, p) - RESOLUTION


def falls_in_limit(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> bool:
    """Whether the attack lowers accuracy in the Gaussian limit.

    Compares arguments instead of values of F_p, since F_p(x) is 1 to machine precision for x >= 9.

    Raises:
        TheoryError: if K, p or lam is out of range.
    """
    classes, p = check_classes(classes), check_probability("p", p)
    before, after = counts.hardened(), counts.mixture(lam)
    if p > 0.0 and before.weights and after.weights:
        # A relative tolerance, so that identical models do not seem to fall because of rounding.
        return limit_argument(after, p) < limit_argument(before, p) * (1.0 - 1e-12)
    if p > 0.0 and before.invariant > 0.0 and after.weights:
        return True  # always right before the attack, not after it
    return limit_accuracy(after, classes, p) < limit_accuracy(before, classes, p)


def limit_threshold(counts: FeatureCounts, p: float, lam: float = 0.5) -> float:
    """Number of invariant features above which the attack lowers accuracy in the limit, for every K: (12).

    Args:
        counts: the setting; `counts.invariant` has no effect except that it bounds the overlap.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1].

    Returns:
        A real number t: accuracy falls if and only if counts.invariant > t (and the model has a feature); inf if no number
        is enough (p = 0, lambda = 1, or an attack without spurious features).

    Raises:
        TheoryError: if p or lam is out of range.
    """
    p, lam = check_probability("p", p), check_probability("lambda", lam)
    mixed, weight, number = counts.mixture(lam), lam * lam, counts.spurious
    if p == 0.0 or (not mixed.weights and mixed.invariant > 0.0):
        return math.inf
    if not mixed.weights:  # the mixture has no feature: every model that is better than chance falls
        return -(1.0 - p) * number
    if number == 0:
        return 0.0  # always right before the attack, not after it
    rho = math.sqrt(mixed.power / number)
    if rho <= weight * (1.0 + 1e-12):
        return math.inf
    constant = mixed.invariant - weight * counts.invariant
    return ((1.0 - p) * (mixed.mass - rho * number) + constant) / (rho - weight)


@dataclass(frozen=True)
class Change:
    """The smallest changes that bring the hardened model into the region; None where there is no such change.

    Attributes:
        inside: the model is in the region already; the other three are 0.
        extra_invariant: invariant features to add, if nothing else changes.
        fewer_spurious: unshared spurious features to remove, if nothing else changes.
        mixed: (invariant features to add, spurious features to remove) with the smallest sum.
    """

    inside: bool
    extra_invariant: int | None
    fewer_spurious: int | None
    mixed: tuple[int, int] | None


def _predicate(form: Form) -> Callable[[FeatureCounts, int, float, float], bool]:
    if form not in ("exact", "limit"):
        raise TheoryError(f"form is {form!r}: choose 'exact' or 'limit'.")
    return falls_exactly if form == "exact" else falls_in_limit


def _most_extra(counts: FeatureCounts, p: float, lam: float, form: Form) -> int:
    """The largest number of extra invariant features that can bring the model into the region."""
    if form == "limit":
        limit = limit_threshold(counts, p, lam)
        return max(0, math.floor(limit) + 1 - counts.invariant) if math.isfinite(limit) else -1
    # In the exact form, an attack whose spurious features cannot outvote the invariant ones causes no errors.
    mixed = counts.mixture(lam)
    if lam == 0.0:
        return max(0, counts.spurious + 1 - counts.invariant)
    return max(0, math.ceil((mixed.mass - mixed.invariant) / (lam * lam)) + 1)


def required_change(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5, form: Form = "exact") -> Change:
    """The smallest changes after which the attack lowers the model's accuracy.

    Args:
        counts: the setting to start from; features that are added or removed are not shared with the attack.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1].
        form: "exact", or "limit" for the Gaussian form (whose result does not depend on K).

    Raises:
        TheoryError: if K, p, lam or form is out of range, or a vote is too large to compute exactly.
    """
    frontier = entry_frontier(counts, classes, p, lam, form)
    entries = [(extra, fewer) for fewer, extra in frontier if extra is not None]
    mixed = min(
        entries, key=lambda change: (sum(change), all(change)), default=None
    )  # of equal ones, one that is not mixed
    fewer_only = next((fewer for fewer, extra in frontier if extra == 0), None)
    return Change(mixed == (0, 0), frontier[0][1], fewer_only, mixed)


def entry_frontier(
    counts: FeatureCounts, classes: int, p: float, lam: float = 0.5, form: Form = "exact"
) -> list[tuple[int, int | None]]:
    """For each number of removed spurious features, the fewest extra invariant ones that enter the region.

    Args:
        counts: the setting to start from.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1].
        form: "exact", or "limit".

    Returns:
        (removed spurious, extra invariant) pairs, for 0 up to all unshared spurious features; None where no number is enough.

    Raises:
        TheoryError: if K, p, lam or form is out of range, or a vote is too large to compute exactly.
    """
    frontier: list[tuple[int, int | None]] = []
    for fewer in range(counts.spurious - counts.shared_spurious + 1):
        here = replace(counts, spurious=counts.spurious - fewer)
        holds = _predicate(form)
        extras = range(max(0, _most_extra(here, p, lam, form)) + 1)
        enough = (e for e in extras if holds(replace(here, invariant=here.invariant + e), classes, p, lam))
        frontier.append((fewer, next(enough, None)))
    return frontier


@dataclass(frozen=True)
class RegionMap:
    """Drop in accuracy over a grid; positive inside the region.

    Attributes:
        invariant: (R,) values of the hardened model's invariant features.
        attack_spurious: (C,) values of the attack's spurious features.
        drop: (R, C) exact accuracy before minus after.
        drop_limit: (R, C) the same in the limit.
        threshold: (C,) the limit's edge in invariant features, inf where there is none.
    """

    invariant: NDArray[np.intp]
    attack_spurious: NDArray[np.intp]
    drop: NDArray[np.float64]
    drop_limit: NDArray[np.float64]
    threshold: NDArray[np.float64]


def map_region(
    counts: FeatureCounts,
    invariant: Sequence[int],
    attack_spurious: Sequence[int],
    classes: int,
    p: float,
    lam: float = 0.5,
) -> RegionMap:
    """Map both forms over invariant x attack_spurious, everything else as in `counts`.

    Raises:
        TheoryError: if a value is out of range, or a vote is too large to compute exactly.
    """
    shape = (len(invariant), len(attack_spurious))
    drop, drop_limit = np.empty(shape), np.empty(shape)
    for (row, n_v), (column, n_s) in itertools.product(enumerate(invariant), enumerate(attack_spurious)):
        here = replace(counts, invariant=n_v, attack_spurious=n_s)
        before, after = here.hardened(), here.mixture(lam)
        drop[row, column] = exact_accuracy(before, classes, p) - exact_accuracy(after, classes, p)
        drop_limit[row, column] = limit_accuracy(before, classes, p) - limit_accuracy(after, classes, p)
    edge = [limit_threshold(replace(counts, attack_spurious=n_s), p, lam) for n_s in attack_spurious]
    return RegionMap(np.asarray(invariant), np.asarray(attack_spurious), drop, drop_limit, np.asarray(edge))


@dataclass(frozen=True)
class Counterexample:
    """A setting that meets Theorem 2's conditions, with exact accuracy before and after."""

    counts: FeatureCounts
    before: float
    after: float


def _settings(total: int) -> Iterator[FeatureCounts]:
    """Every setting of `total` features without overlap that meets Theorem 2's conditions, n_s >= 1."""
    for spurious in range(1, total):
        for attack_spurious in range(spurious + 1, total - spurious):
            invariant_total = total - spurious - attack_spurious
            for attack_invariant in range((invariant_total + 1) // 2):
                yield FeatureCounts(invariant_total - attack_invariant, spurious, attack_invariant, attack_spurious)


def search_counterexamples(
    classes: int, p: float, kind: Disagreement = "rises", *, lam: float = 0.5, largest: int = 40
) -> list[Counterexample]:
    """The smallest settings (by total number of features) that meet Theorem 2's conditions without its conclusion.

    Only models with a spurious feature (n_s >= 1) are searched: without one a model is always right, so accuracy cannot rise.

    Args:
        classes: K >= 2.
        p: in [0, 1].
        kind: "rises": exact accuracy rises; "rises-in-limit": it rises in the limit; or the two forms disagree,
            "limit-falls-exact-rises" or "limit-rises-exact-falls".
        lam: the hardened model's share in [0, 1].
        largest: the largest total n_v + n_s + n*_v + n*_s to search.

    Returns:
        All counterexamples with the smallest total that has any; empty if there is none up to `largest`.

    Raises:
        TheoryError: if K, p, lam, kind or largest is out of range.
    """
    classes, p, largest = check_classes(classes), check_probability("p", p), check_count("largest", largest)
    directions = {
        "rises": (None, False),
        "rises-in-limit": (False, None),
        "limit-falls-exact-rises": (True, False),
        "limit-rises-exact-falls": (False, True),
    }.get(kind)
    if directions is None:
        kinds = ", ".join(map(repr, get_args(Disagreement)))
        raise TheoryError(f"kind is {kind!r}: choose one of {kinds}.")
    limit_falls, exact_falls = directions
    for total in range(4, largest + 1):
        counterexamples = []
        for counts in _settings(total):
            if limit_falls is not None and falls_in_limit(counts, classes, p, lam) is not limit_falls:
                continue
            before, after = counts.hardened(), counts.mixture(lam)
            here = Counterexample(counts, exact_accuracy(before, classes, p), exact_accuracy(after, classes, p))
            rise = here.after - here.before
            if exact_falls is None or (rise < -RESOLUTION if exact_falls else rise > RESOLUTION):
                counterexamples.append(here)
        if counterexamples:
            return counterexamples
    return []
