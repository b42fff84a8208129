"""Describe both theorems at one setting in sentences, for `tamperfuse theory --counts`."""

from __future__ import annotations

import math

from tamperfuse.theory.model import FeatureCounts
from tamperfuse.theory.region import Change, required_change
from tamperfuse.theory.theorems import TheoremCheck, theorem_one, theorem_two

__all__ = ["judge_setting"]


def judge_setting(counts: FeatureCounts, classes: int, p: float, lam: float = 0.5) -> list[str]:
    """Accuracy before and after the attack, both theorems, the edge of the region (12), and the changes that enter it.

    Args:
        counts: the features of both models and their overlap.
        classes: K >= 2.
        p: in [0, 1].
        lam: the hardened model's share in [0, 1]; 1 - lam is the attack's strength.

    Returns:
        Sentences, one per line of output.

    Raises:
        TheoryError: if K, p or lam is out of range, or a vote is too large to compute exactly.
    """
    two = theorem_two(counts, classes, p, lam)
    a = two.values
    if math.isfinite(two.threshold):
        edge = f"In the limit the attack lowers accuracy if and only if n_v exceeds {two.threshold + 0.0:.2f}, for every K."
    else:
        edge = "In the limit no number of invariant features makes this attack lower accuracy."
    return [
        f"Accuracy {a.hardened:.4f} before the attack, {a.mixture:.4f} after it (exact); {a.hardened_limit:.4f} and "
        f"{a.mixture_limit:.4f} in the limit.",
        _theorem(theorem_one(counts, classes, p, lam), "alignment accuracy"),
        _theorem(two, "general accuracy"),
        edge,
        _change(required_change(counts, classes, p, lam)),
    ]


def _theorem(check: TheoremCheck, measure: str) -> str:
    missed = [condition for condition, met in check.conditions if not met]
    conditions = f"its conditions are not met (false: {'; '.join(missed)})" if missed else "its conditions are met"
    exact, limit = ("falls" if falls else "does not fall" for falls in (check.holds_exactly, check.holds_in_limit))
    return (
        f"Theorem {check.theorem} (read as features of {measure}): {conditions}; accuracy {exact} in the exact form and "
        f"{limit} in the limit."
    )


def _change(change: Change) -> str:
    if change.inside:
        return "The model is inside the region: the attack lowers its accuracy."
    ways = []
    if change.extra_invariant is not None:
        ways.append(f"{change.extra_invariant} more invariant features")
    if change.fewer_spurious is not None:
        ways.append(f"{change.fewer_spurious} fewer spurious ones")
    if change.mixed is not None and all(change.mixed):
        ways.append(f"{change.mixed[0]} more invariant and {change.mixed[1]} fewer spurious ones together")
    if not ways:
        return "No number of added invariant or removed spurious features makes this attack lower the model's accuracy."
    return f"To enter the region (exact form): {'; or '.join(ways)}."
