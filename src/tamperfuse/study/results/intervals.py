"""95% intervals: Wilson's for rates, the bootstrap over items for everything else.

The bootstrap is paired: all models are resampled at the same items, and whole groups (templates) are drawn where items belong
to groups. The textbook percentile interval is too short for small samples, so:

- Where outcomes are bounded, the percentiles are expanded as in Hesterberg, *What Teachers Should Know About the Bootstrap*, The
  American Statistician 69(4), 2015: for n groups the level is Φ(−√(n/(n−1)) t), with t the 97.5% quantile of Student's t with
  n − 1 degrees of freedom.
- Resampling cannot draw an outcome that the sample does not contain; a sample without variation would even give an interval of
  width zero. An outcome that was seen in none of n items may still have a probability of up to q = 1 − 0.025^(1/n) (the exact
  limit of Clopper and Pearson, Biometrika 26(4), 1934). Where outcomes are bounded, the interval therefore contains the statistic
  with a share q of the least favorable outcome mixed in, and that with a share q of the most favorable one. For a rate of 0 or 1
  this is the exact binomial interval. If no draw differs from another, n is the number of groups instead of items.
- Where outcomes are unbounded, the interval is the statistic ± t standard errors, estimated by the bootstrap (Efron and
  Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 12). Without variation there is none.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tamperfuse.evaluation.wilson import wilson
from tamperfuse.records.summary import NOT_MEASURED, ROUNDING, Measure

Floats = NDArray[np.float64]
#: Column sums (…, columns) → values (…); not-a-number where undefined.
Statistic = Callable[[Floats], Floats]

TAIL = 0.025
DRAWS = 2_000
DRAWS_AT_ONCE = 100  # bounds memory at 100 × groups


def reaches(value: float, threshold: float) -> bool:
    """Whether a computed share is at least a threshold, up to rounding: 16 of 20 prompts reach 80% with any number of seeds."""
    return value >= threshold - ROUNDING


def rate(outcomes: Floats) -> Measure:
    """A rate with Wilson's interval; without any outcomes it is not measured.

    Args:
        outcomes: (trials,), 0 or 1; averages over seeds may lie between.
    """
    if not len(outcomes):
        return NOT_MEASURED
    low, high = wilson(float(outcomes.sum()), len(outcomes))
    return Measure(value=float(outcomes.mean()), low=low, high=high, n=len(outcomes))


def bootstrap(
    table: Floats,
    statistic: Statistic,
    *,
    difference: bool,
    groups: NDArray[np.int64] | None = None,
    extremes: tuple[Floats, Floats] | None = None,
) -> Measure:
    """A statistic of column sums, with its bootstrap interval.

    Args:
        table: (items, columns), what was measured of each item.
        statistic: of the sums of the columns, vectorized over leading dimensions.
        difference: whether zero means no effect; the measure is then resolved only if its interval excludes zero. A statistic
            that is undefined is never resolved.
        groups: (items,), the group of each item; items of one group are drawn together. None: each item is its own.
        extremes: (columns,) each: the column sums if every item had the outcome that makes the statistic smallest, and those
            if every item had the one that makes it largest. None if outcomes are unbounded.
    """
    n = len(table)
    undefined = Measure(value=None, n=n, resolved=False)
    if n == 0:
        return undefined
    sums = _group_sums(table, groups)
    value = float(statistic(table.sum(axis=0)))
    draws = _draws(sums, statistic)
    if not np.isfinite(value) or np.isfinite(draws).mean() < 0.5:
        return undefined
    draws = draws[np.isfinite(draws)]
    constant = float(np.ptp(draws)) <= 1e-9 * max(1.0, abs(value))
    low: float | None
    high: float | None
    if extremes is None:
        low, high = (None, None) if constant else _t_interval(value, draws, len(sums))
    else:
        ends = _percentiles(draws, len(sums))
        limits = [_with_unseen(table.sum(axis=0), row, statistic, len(sums) if constant else n) for row in extremes]
        # An extreme can make the statistic undefined, such as a ratio to a capability of zero: that end is then unbounded.
        low = min(ends[0], limits[0]) if np.isfinite(limits[0]) else None
        high = max(ends[1], limits[1]) if np.isfinite(limits[1]) else None
    excludes_zero = (low is not None and low > 0) or (high is not None and high < 0)
    return Measure(value=value, low=low, high=high, n=n, resolved=excludes_zero or not difference)


def per_token(sums: Floats) -> Measure:
    """A mean per token, with its bootstrap interval over texts.

    Args:
        sums: (texts, 2): the sum over the tokens of each text, such as nats, and the number of its tokens.
    """
    return bootstrap(sums, lambda totals: totals[..., 0] / totals[..., 1], difference=False)


def mean_rate(outcomes: Floats) -> Measure:
    """The mean of outcomes in [0, 1] that are averages themselves, with its bootstrap interval.

    Args:
        outcomes: (items,).
    """
    n = float(len(outcomes))
    table = np.column_stack([outcomes, np.ones(len(outcomes))])
    extremes = np.array([0.0, n]), np.array([n, n])
    return bootstrap(table, lambda sums: sums[..., 0] / sums[..., 1], difference=False, extremes=extremes)


def rate_difference(first: Floats, second: Floats) -> Measure:
    """Rate of the first minus rate of the second, with its paired bootstrap interval.

    Args:
        first: (items,), outcomes in [0, 1].
        second: (items,), outcomes of another model on the same items.
    """
    n = float(len(first))
    table = np.column_stack([first, second, np.ones(len(first))])
    extremes = np.array([0.0, n, n]), np.array([n, 0.0, n])
    return bootstrap(
        table, lambda sums: (sums[..., 0] - sums[..., 1]) / sums[..., 2], difference=True, extremes=extremes
    )


def _with_unseen(sums: Floats, extreme: Floats, statistic: Statistic, n: int) -> float:
    """The statistic with the largest share of an extreme outcome that n observations without it allow."""
    share = 1 - TAIL ** (1 / n)
    return float(statistic((1 - share) * sums + share * extreme))


def _group_sums(table: Floats, groups: NDArray[np.int64] | None) -> Floats:
    """(groups, columns): the sums of the table's columns within each group."""
    if groups is None:
        return table
    names, members = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, members, table)
    return sums


def _draws(sums: Floats, statistic: Statistic) -> Floats:
    """(draws,): the statistic of resamples of the groups."""
    rng = np.random.default_rng(0)
    n, draws = len(sums), []
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, DRAWS - start)
        picks = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)
        draws.append(statistic(counts @ sums))
    return np.concatenate(draws)


def _t_interval(value: float, draws: Floats, groups: int) -> tuple[float, float]:
    """Student's t interval with the bootstrap's standard error; the factor makes its variance unbiased."""
    error = float(draws.std()) * np.sqrt(groups / (groups - 1))
    half = float(stats.t.ppf(1 - TAIL, groups - 1) * error)
    return value - half, value + half


def _percentiles(draws: Floats, groups: int) -> tuple[float, float]:
    """Percentiles of the draws, expanded for few groups."""
    level = percentile_level(groups)
    low, high = np.quantile(draws, [level, 1 - level])
    return float(low), float(high)


def percentile_level(groups: int) -> float:
    """The level of the lower percentile of a 95% interval, lower than 2.5% for few groups; 0 for a single one."""
    if groups < 2:
        return 0.0
    return float(stats.norm.cdf(-np.sqrt(groups / (groups - 1)) * stats.t.ppf(1 - TAIL, groups - 1)))
