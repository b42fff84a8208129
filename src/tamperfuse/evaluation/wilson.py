"""Wilson's 95% interval of a rate (Wilson, Journal of the American Statistical Association 22(158), 1927)."""

import math

Z = 1.959963984540054  # 97.5% quantile of the normal distribution


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a rate.

    Args:
        hits: number of successes, 0 to n.
        n: number of trials; 0 gives (0, 1).

    Returns:
        Its ends, in [0, 1]: exactly 0 at the lower end without a success, exactly 1 at the upper end without a failure.
    """
    if n == 0:
        return 0.0, 1.0
    rate = hits / n
    center = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, center - half) if hits > 0 else 0.0, min(1.0, center + half) if hits < n else 1.0
