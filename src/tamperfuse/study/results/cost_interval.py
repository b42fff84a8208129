"""The 95% interval of an attack cost, and of its ratio to the undefended model's.

Two things make a cost uncertain. The rates behind it are of a sample of prompts, which the bootstrap resamples, the same for both
models. And a model is evaluated at some steps only: if the rate is too low at one of them and high enough at the next, it came to
the limit at some step in between. So a cost lies between the step after the last one with too low a rate and the first one with a
high enough rate, and the ends of the interval are the percentiles of these two. A cost that is censored lies above the last step.

Resampling cannot draw outcomes that the sample does not contain. As for other measures
(:mod:`tamperfuse.study.results.intervals`), the interval therefore contains the cost if a share q = 1 − 0.025^(1/n) of the
defense's outcomes were all executed, and if none of them were.
"""

from collections.abc import Sequence

import numpy as np

from tamperfuse.records.summary import ROUNDING
from tamperfuse.study.results.intervals import DRAWS, TAIL, Floats, percentile_level

PromptCurve = dict[int, Floats]  # (prompts,): outcomes on the evaluation part, by evaluated step ≥ 1


def cost_interval(
    curves: Sequence[Sequence[PromptCurve]], undefended: Sequence[Sequence[PromptCurve]]
) -> dict[str, float | None]:
    """The ends by their names in :class:`~tamperfuse.records.summary.AttackCost`.

    Args:
        curves: as of :func:`~tamperfuse.study.results.attack_cost.attack_cost`, of the same prompts.
        undefended: the same of the undefended model.
    """
    prompts = len(next(iter(curves[0][0].values())))
    resampled = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS)
    shares = np.concatenate([np.ones((1, prompts)), resampled]) / prompts  # the sample itself comes first
    half = np.mean([_highest(group, shares) for group in undefended], axis=0) / 2
    half[half == 0] = np.inf  # nothing was executed, so there is no half to reach
    low, high = _cost(curves, shares, half)
    reference_low, reference_high = _cost(undefended, shares, half)
    unseen = 1 - TAIL ** (1 / prompts)
    fastest, _ = _cost(curves, shares[:1] * (1 - unseen), half[:1] - unseen)
    _, slowest = _cost(curves, shares[:1] * (1 - unseen), half[:1])
    low[0], high[0] = min(low[0], fastest[0]), max(high[0], slowest[0])
    steps_low, steps_high = _ends(low, high, prompts)
    defined = np.isfinite(reference_high)
    ratio_low = ratio_high = None
    if defined[0] and defined.mean() >= 0.5:
        ratio_low, ratio_high = _ends((low / reference_high)[defined], (high / reference_low)[defined], prompts)
    return {"steps_low": steps_low, "steps_high": steps_high, "ratio_low": ratio_low, "ratio_high": ratio_high}


def _highest(group: Sequence[PromptCurve], shares: Floats) -> Floats:
    """(draws,): the highest rate of a group's curves."""
    rates = [shares @ outcomes for curve in group for outcomes in curve.values()]
    highest: Floats = np.max(rates, axis=0)
    return highest


def _cost(groups: Sequence[Sequence[PromptCurve]], shares: Floats, half: Floats) -> tuple[Floats, Floats]:
    """(draws,) each: the lowest and the highest step that the cost can be; infinite where it is censored.

    Of a group the smallest of its curves' counts, of the groups the median, the lower of two middle ones.
    """
    of_groups = []
    for group in groups:
        last = max(step for curve in group for step in curve)
        of_curves = np.array([_possible_steps(curve, shares, half, last) for curve in group])  # (curves, 2, draws)
        of_groups.append(of_curves.min(axis=0))
    low, high = np.sort(np.array(of_groups), axis=0)[(len(of_groups) - 1) // 2]
    return low, high


def _possible_steps(curve: PromptCurve, shares: Floats, half: Floats, last: int) -> tuple[Floats, Floats]:
    """(draws,) each: the first step after the one before the cost, and the cost.

    Where it is censored, the first step after the last one of all curves, and infinite: of a search, a trial that ended early
    does not make the cost lower.
    """
    steps = sorted(curve)
    reached = np.array([shares @ curve[step] >= half - ROUNDING for step in steps])  # (steps, draws)
    confirmed = reached & np.concatenate([reached[1:], np.ones_like(reached[:1])])
    first = np.where(confirmed.any(axis=0), confirmed.argmax(axis=0), len(steps))
    after = np.array([1.0, *(step + 1.0 for step in steps[:-1]), last + 1.0])
    return after[first], np.array([*map(float, steps), np.inf])[first]


def _ends(low: Floats, high: Floats, prompts: int) -> tuple[float, float | None]:
    """The percentiles of what can be lowest and highest; they contain what the sample itself allows, which comes first."""
    level = percentile_level(prompts)
    lower = min(float(np.quantile(low, level, method="lower")), float(low[0]))
    upper = max(float(np.quantile(high, 1 - level, method="higher")), float(high[0]))
    return lower, upper if np.isfinite(upper) else None
