"""The SDD paper's feature model, made runnable: accuracies, theorems, the region in which they hold.

Stands alone on numpy and scipy. Equation numbers in its docstrings are those of docs/theory.md, which derives them;
`python -m tamperfuse.theory.findings` prints the numbers that the chapter quotes, `tamperfuse.report` draws the figures.

    >>> from tamperfuse.theory import FeatureCounts, theorem_two
    >>> verdict = theorem_two(FeatureCounts(3, 20, 2, 21), classes=3, p=0.9)
    >>> verdict.conditions_met, verdict.holds_exactly
    (True, False)
    >>> round(verdict.values.hardened, 3), round(verdict.values.mixture, 3)
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
from tamperfuse.theory.theorems import Growth, Verdict, strongest_attack, theorem_one, theorem_two

__all__ = [
    "Accuracies",
    "Change",
    "Comparison",
    "Counterexample",
    "FeatureCounts",
    "Growth",
    "RegionMap",
    "Setting",
    "TheoryError",
    "Verdict",
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
