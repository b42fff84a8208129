"""Intervals: Wilson's for rates, the paired bootstrap for everything built from several of them. All at 95%."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tamperfuse.records.results import Measure

Floats = NDArray[np.float64]
Z = 1.959963984540054
DRAWS = 2_000


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a rate.

    Args:
        hits: successes, 0 to n.
        n: trials; 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    rate = hits / n
    middle = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * np.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def rate(outcomes: Floats) -> Measure:
    """A rate with Wilson's interval.

    Args:
        outcomes: (trials,), 0 or 1; averages over seeds may lie between.
    """
    low, high = wilson(float(outcomes.sum()), len(outcomes))
    return Measure(value=float(outcomes.mean()) if len(outcomes) else None, low=low, high=high, n=len(outcomes))


def resamples(groups: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Indices of bootstrap resamples that draw whole groups.

    Args:
        groups: (items,), the group of every item; items of a group come and go together.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return [np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(DRAWS)]


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], groups: NDArray[np.int64], *, difference: bool, seed: int = 0
) -> Measure:
    """A statistic of items with its percentile interval.

    Args:
        statistic: of the items at the given indices; all measurements that it compares are taken at the same indices,
            which makes the bootstrap a paired one. Not-a-number where it is undefined.
        groups: (items,), see :func:`resamples`.
        difference: whether zero means no effect; the measure is then resolved only if the interval leaves zero out.
        seed: of the draws.
    """
    value = statistic(np.arange(len(groups)))
    draws = np.array([statistic(indices) for indices in resamples(groups, seed)])
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(draws) < DRAWS // 2:
        return Measure(value=None, n=len(groups), resolved=not difference)
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    return Measure(
        value=float(value), low=low, high=high, n=len(groups), resolved=not (difference and low <= 0.0 <= high)
    )
