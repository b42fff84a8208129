"""The SDD paper's feature model: accuracy before and after an attack, the two theorems, the region in which they hold.

Depends on numpy and scipy only. Equation numbers in the docstrings refer to docs/theory.md, which derives the equations.
`python -m tamperfuse.theory.findings` prints the numbers quoted there; :mod:`tamperfuse.report.theory_figures` draws the
figures.

    >>> from tamperfuse.theory import FeatureCounts, theorem_two
    >>> check = theorem_two(FeatureCounts(3, 20, 2, 21), classes=3, p=0.9)
    >>> check.conditions_met, check.holds_exactly
    (True, False)
    >>> round(check.values.hardened, 3), round(check.values.mixture, 3)
    (0.841, 0.92)
"""

from tamperfuse.theory.accuracy import (
    Accuracies,
    accuracies,
    exact_accuracy,
    limit_accuracy,
    limit_argument,
    limit_form,
)
from tamperfuse.theory.model import FeatureCounts, TheoryError, Vote, plain_vote, predict, sample_logits
from tamperfuse.theory.region import (
    Change,
    Counterexample,
    RegionMap,
    entry_frontier,
    falls_exactly,
    falls_in_limit,
    limit_threshold,
    map_region,
    required_change,
    search_counterexamples,
)
from tamperfuse.theory.simulate import Comparison, Setting, compare, draw_design, limit_good_from, simulate
from tamperfuse.theory.theorems import Growth, TheoremCheck, strongest_attack, theorem_one, theorem_two

__all__ = [
    "Accuracies",
    "Change",
    "Comparison",
    "Counterexample",
    "FeatureCounts",
    "Growth",
    "RegionMap",
    "Setting",
    "TheoremCheck",
    "TheoryError",
    "Vote",
    "accuracies",
    "compare",
    "draw_design",
    "entry_frontier",
    "exact_accuracy",
    "falls_exactly",
    "falls_in_limit",
    "limit_accuracy",
    "limit_argument",
    "limit_form",
    "limit_good_from",
    "limit_threshold",
    "map_region",
    "plain_vote",
    "predict",
    "required_change",
    "sample_logits",
    "search_counterexamples",
    "simulate",
    "strongest_attack",
    "theorem_one",
    "theorem_two",
]
