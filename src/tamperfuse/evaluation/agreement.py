"""How far judges agree, with each other and with labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from tamperfuse.evaluation.calibrate import auroc
from tamperfuse.evaluation.wilson import wilson

Interval = tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """The verdicts of two judges, or of a judge and labels, on the same responses.

    Attributes:
        n: number of responses.
        same: share with the same verdict, in [0, 1].
        kappa: Cohen's κ, the agreement beyond what both rates give by chance, in [−1, 1]; None where both always say the same.
        first: share of executed requests by the first of the two.
        second: likewise by the second.
    """

    n: int
    same: float
    kappa: float | None
    first: float
    second: float


@dataclass(frozen=True)
class LabelAgreement:
    """A judge against labels.

    Attributes:
        agreement: of the verdicts with the labels, which come second.
        auroc: area under the ROC curve of the scores (of the verdicts, without scores), in [0, 1]; None without both labels.
        precision: share of the responses that the judge counts as executed that are labelled so; None without any.
        recall: share of the responses labelled as executed that the judge counts so; None without any.
        precision_interval: Wilson's 95% interval of the precision.
        recall_interval: likewise of the recall.
    """

    agreement: Agreement
    auroc: float | None
    precision: float | None
    recall: float | None
    precision_interval: Interval | None
    recall_interval: Interval | None


def agreement(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """Compare verdicts.

    Args:
        first: verdicts, at least one.
        second: verdicts on the same responses, in the same order.
    """
    from sklearn.metrics import cohen_kappa_score  # takes a second to import

    constant = len({*first, *second}) == 1  # κ divides by zero
    return Agreement(
        n=len(first),
        same=float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
        kappa=None if constant else float(cohen_kappa_score(first, second)),
        first=float(np.mean(first)),
        second=float(np.mean(second)),
    )


def against_labels(verdicts: Sequence[bool], scores: Sequence[float], labels: Sequence[bool]) -> LabelAgreement:
    """Compare a judge with labels.

    Args:
        verdicts: of the judge, at least one.
        scores: of the judge, higher for a clearer execution.
        labels: whether each response executes its request.
    """
    both = sum(verdict and label for verdict, label in zip(verdicts, labels, strict=True))
    positive = [score for score, label in zip(scores, labels, strict=True) if label]
    negative = [score for score, label in zip(scores, labels, strict=True) if not label]
    return LabelAgreement(
        agreement=agreement(verdicts, labels),
        auroc=auroc(positive, negative) if positive and negative else None,
        precision=both / sum(verdicts) if any(verdicts) else None,
        recall=both / sum(labels) if any(labels) else None,
        precision_interval=wilson(both, sum(verdicts)) if any(verdicts) else None,
        recall_interval=wilson(both, sum(labels)) if any(labels) else None,
    )


def disagreement(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """How far judges are apart on each response, in [0, 1].

    The units of scores differ between judges, so each response has a rank among all responses in each judge's order, ties in the
    middle of theirs; the value is the highest rank minus the lowest, as shares of all responses.

    Args:
        scores: by judge, of the same responses.
    """
    ranks = np.array([rankdata(values) / len(values) for values in scores.values()])
    values: list[float] = (ranks.max(axis=0) - ranks.min(axis=0)).tolist()
    return values
