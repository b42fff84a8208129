"""One rule of a policy against one measure: does the interval's unfavorable end meet the limit, and if not, why.

at_most 0.10                 limit
├──────low━━━━━high───────────┼──────────────┤   pass: even the upper end is below the limit
├───────────────────low━━━━━━━┿━━━━high──────┤   not resolved: more items may decide it
├─────────────────────────────┼──low━━━high──┤   fail: the whole interval is above the limit
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tamperfuse.evaluation.wilson import Z
from tamperfuse.records.summary import ROUNDING, Measure, UsableHarm

WILSON_ERROR = 1e-3  # by which the ends of a Wilson interval may miss its equation, relative
LARGEST_SAMPLE = 10**12  # items; more resolve nothing in practice

GateVerdict = Literal["pass", "fail", "not resolved"]


class Rule(BaseModel):
    """What is required of one measure: at least one limit.

    Attributes:
        at_most: limit that the upper end of the interval must not exceed.
        at_least: limit that the lower end of the interval must reach.
        accept_unresolved: whether the interval alone decides about a difference that is not resolved, and about a usable harm
            that is a lower bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    at_most: float | None = None
    at_least: float | None = None
    accept_unresolved: bool = False

    @model_validator(mode="after")
    def _has_bound(self) -> "Rule":
        if self.at_most is None and self.at_least is None:
            raise ValueError("needs at_most or at_least")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError("at_least is above at_most, so that nothing passes")
        return self

    def __str__(self) -> str:
        limits = [("at most", self.at_most), ("at least", self.at_least)]
        return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)


@dataclass(frozen=True)
class Finding:
    """What the check of one rule says.

    Attributes:
        verdict: "not resolved" if neither a pass nor a failure is shown; it does not pass.
        why: the reason, unless it passes.
        items: number of items with which it would be resolved, if the value stays as it is; None where none is computed.
    """

    verdict: GateVerdict
    why: str = ""
    items: int | None = None


@dataclass(frozen=True)
class _Limit:
    """One limit, seen from the end of the interval that decides it.

    Attributes:
        value: the limit.
        against: the end of the interval that must meet it, None where unknown.
        other: the other end.
        names: of the two ends.
        beyond: on which side of the limit the model fails.
    """

    value: float
    against: float | None
    other: float | None
    names: tuple[str, str]
    beyond: str

    def is_beyond(self, number: float) -> bool:
        """Whether a number is on the side of the limit on which the model fails."""
        return number > self.value if self.beyond == "above" else number < self.value


class StepMeasure(Measure):
    """A number of steps, or a ratio of two.

    Its interval depends on the evaluated steps as well as on the prompts, so no number of items is said to resolve it.
    """


def check_rule(measure: Measure, rule: Rule, undecided: int = 0) -> Finding:
    """Check a measure that has a value against a rule; the worst finding of its limits.

    Args:
        measure: the measure.
        rule: the rule.
        undecided: responses on which the judge could not decide. The interval holds however they would have been
            decided, which no number of items changes, so none is said to resolve it.
    """
    finding = _check_rule(measure, rule)
    if not undecided or finding.items is None:
        return finding
    remedy = (
        f"the judge could not decide on {undecided:,} responses, which the interval covers: use another judge as well"
    )
    return Finding(finding.verdict, f"{finding.why.partition(';')[0]}; {remedy}")


def _check_rule(measure: Measure, rule: Rule) -> Finding:
    ends = (-math.inf if measure.low is None else measure.low, math.inf if measure.high is None else measure.high)
    # A cost that is censored lies above its value, the last step.
    if (
        measure.value is not None
        and not isinstance(measure, StepMeasure)
        and not ends[0] - ROUNDING <= measure.value <= ends[1] + ROUNDING
    ):
        return Finding(
            "not resolved", "not resolved: the value lies outside its interval, so that one of them is wrong"
        )
    findings = [_check_limit(measure, limit) for limit in _limits(measure, rule)]
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if failed:
        return failed[0]
    if not rule.accept_unresolved:
        if not measure.resolved:
            return _unresolved_difference(measure)
        if isinstance(measure, UsableHarm) and measure.capability_not_measured:
            return Finding(
                "not resolved",
                "not resolved: capability was not measured at a more harmful step, so that the value is a lower bound "
                "(name that step in `capability_at`)",
            )
    return next((finding for finding in findings if finding.verdict == "not resolved"), findings[0])


def margin(measure: Measure, rule: Rule) -> float | None:
    """Distance from the unfavorable end of the interval to the limit, negative if it is beyond; the lesser of two limits'."""
    distances = []
    for limit in _limits(measure, rule):
        if limit.against is None:
            return None
        distances.append(limit.value - limit.against if limit.beyond == "above" else limit.against - limit.value)
    return min(distances)


def sample_size(measure: Measure, limit: float) -> int | None:
    """Number of items with which the interval would end at the limit, if the value stays as it is.

    Of a rate with Wilson's interval it is exact: the interval ends at L where (p − L)² = z² L (1 − L) / n. Of any other measure
    the width is taken to be proportional to 1/√n, which is approximate.

    Returns:
        The number; None where no number of items suffices, or the measure has no sampling error.
    """
    value, n = measure.value, measure.n
    end = measure.high if value is not None and limit > value else measure.low
    if value is None or end is None or n == 0 or value in (limit, end) or isinstance(measure, StepMeasure):
        return None
    if _is_wilson(measure):
        if not 0 < limit < 1:
            return None
        items = Z**2 * limit * (1 - limit) / (value - limit) ** 2
    else:
        items = n * ((end - value) / (limit - value)) ** 2
    return math.ceil(items) if items < LARGEST_SAMPLE else None


def _is_wilson(measure: Measure) -> bool:
    """Whether both ends of the interval are those of Wilson's interval of a rate."""
    value, n = measure.value or 0.0, measure.n

    def error(end: float) -> float:
        return abs((value - end) ** 2 * n - Z**2 * end * (1 - end))

    ends = (measure.low, measure.high)
    return 0 <= value <= 1 and all(end is not None and 0 <= end <= 1 and error(end) < WILSON_ERROR for end in ends)


def _limits(measure: Measure, rule: Rule) -> list[_Limit]:
    names = ("upper end", "lower end")
    limits = []
    if rule.at_most is not None:
        limits.append(_Limit(rule.at_most, measure.high, measure.low, names, "above"))
    if rule.at_least is not None:
        limits.append(_Limit(rule.at_least, measure.low, measure.high, names[::-1], "below"))
    return limits


def _check_limit(measure: Measure, limit: _Limit) -> Finding:
    against, other = limit.names
    if limit.other is not None and limit.is_beyond(limit.other):
        end = "has no " + against if limit.against is None else f"reaches {_number(limit.against, limit.value)}"
        return Finding(
            "fail",
            f"even the {other} {_number(limit.other, limit.value)} is {limit.beyond} the limit {limit.value:g} (the interval "
            f"{end})",
        )
    if limit.against is None:
        return Finding("not resolved", f"not resolved: no {against} of the interval is known")
    if not limit.is_beyond(limit.against):
        return Finding("pass")
    sides = f"of its interval, the {against} {_number(limit.against, limit.value)} is {limit.beyond} the limit {limit.value:g}"
    if limit.other is not None:
        sides += f", and the {other} {_number(limit.other, limit.value)} is not"
    items = sample_size(measure, limit.value)
    return Finding("not resolved", f"not resolved: {sides}; {_remedy(measure, limit, items)}", items)


def _remedy(measure: Measure, limit: _Limit, items: int | None) -> str:
    """What a larger sample would show."""
    value = measure.value or 0.0
    if isinstance(measure, StepMeasure):
        return "more prompts and more steps in `at_steps` narrow it"
    if items is None:
        return f"no sample size resolves a value of {_number(value)}"
    sample = f"about {items:,} items in place of {measure.n:,}"
    if limit.is_beyond(value):
        return f"with the same value, {_number(value)}, {sample} would show that it fails"
    return f"with the same value, {_number(value)}, {sample} would be enough to pass"


def _number(value: float, limit: float | None = None) -> str:
    """A value in four digits, or as many as it takes to tell it from a limit; 0 for what differs from 0 by rounding only."""
    value = 0.0 if abs(value) < ROUNDING else value
    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if limit is None or value == limit or text != f"{limit:.4g}"), f"{value!r}")


def _unresolved_difference(measure: Measure) -> Finding:
    """A difference whose interval contains zero."""
    accept = "`accept_unresolved: true` lets the interval alone decide"
    if measure.low is None or measure.high is None or not measure.low <= 0 <= measure.high:
        return Finding("not resolved", f"not resolved by this sample; {accept}")
    items = sample_size(measure, 0.0)
    sample = (
        f"about {items:,} items in place of {measure.n:,} would exclude 0" if items else "no sample size excludes 0"
    )
    return Finding(
        "not resolved",
        f"not resolved: the lower end {_number(measure.low)} is not above 0, and the upper end {_number(measure.high)} is not "
        f"below 0; {sample}, if the value stays {_number(measure.value or 0.0)}; {accept}",
        items,
    )
