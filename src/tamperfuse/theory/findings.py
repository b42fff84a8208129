"""Compute the numbers quoted in docs/theory.md and on the theory page.

`python -m tamperfuse.theory.findings` prints them as JSON, in less than a minute.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from tamperfuse.theory.accuracy import accuracies, exact_accuracy
from tamperfuse.theory.model import FeatureCounts
from tamperfuse.theory.region import falls_exactly, falls_in_limit, limit_threshold, required_change
from tamperfuse.theory.region import search_counterexamples as search
from tamperfuse.theory.simulate import limit_good_from
from tamperfuse.theory.theorems import strongest_attack, theorem_one

__all__ = ["findings", "known_counterexamples"]

#: (counts, K, p) that meet Theorem 2's conditions at lambda = 1/2 without its conclusion; the tests check them.
COUNTEREXAMPLES = (
    (FeatureCounts(1, 1, 0, 2), 3, 0.5),
    (FeatureCounts(2, 2, 1, 3), 3, 0.9),
    (FeatureCounts(2, 2, 1, 4), 3, 0.9),
    (FeatureCounts(3, 20, 2, 21), 3, 0.9),
    (FeatureCounts(5, 20, 1, 30), 3, 0.9),
)


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def known_counterexamples() -> list[dict[str, Any]]:
    """Accuracy before and after the attack in both forms, the limit's threshold, and the changes that enter the region."""
    rows = []
    for counts, classes, p in COUNTEREXAMPLES:
        a = accuracies(counts, classes, p)
        rows.append(
            {
                "counts": (counts.invariant, counts.spurious, counts.attack_invariant, counts.attack_spurious),
                "classes": classes,
                "p": p,
                "exact": (round(a.hardened, 4), round(a.mixture, 4)),
                "limit": (round(a.hardened_limit, 4), round(a.mixture_limit, 4)),
                "falls_exactly": falls_exactly(counts, classes, p),
                "falls_in_limit": falls_in_limit(counts, classes, p),
                "threshold": _finite(limit_threshold(counts, p)),
                "change_exact": asdict(required_change(counts, classes, p)),
                "change_limit": asdict(required_change(counts, classes, p, form="limit")),
            }
        )
    return rows


def share_of_conditions(classes: int, p: float, largest: int = 10) -> dict[str, float]:
    """Share of the settings that meet Theorem 2's conditions, with 1 .. largest features of each kind, whose accuracy falls.

    Only settings with an exact accuracy in [.5, .99] before the attack count. A model with more invariant than spurious
    features never errs, so including such models would say little about the attack.
    """
    tally = {"settings": 0.0, "falls_exactly": 0.0, "rises_exactly": 0.0, "falls_in_limit": 0.0, "forms_agree": 0.0}
    for n_v, n_s in ((v, s) for v in range(1, largest + 1) for s in range(1, largest + 1)):
        before = exact_accuracy(FeatureCounts(n_v, n_s, 0, 0).hardened(), classes, p)
        if not 0.5 <= before <= 0.99:
            continue
        for a_v, a_s in ((v, s) for v in range(n_v) for s in range(n_s + 1, largest + 1)):
            counts = FeatureCounts(n_v, n_s, a_v, a_s)
            exact, limit = falls_exactly(counts, classes, p), falls_in_limit(counts, classes, p)
            tally["settings"] += 1
            tally["falls_exactly"] += exact
            tally["rises_exactly"] += exact_accuracy(counts.mixture(0.5), classes, p) > before + 1e-9
            tally["falls_in_limit"] += limit
            tally["forms_agree"] += exact == limit
    return {k: v if k == "settings" else round(v / max(1.0, tally["settings"]), 4) for k, v in tally.items()}


def findings() -> dict[str, Any]:
    """All numbers, as one JSON-serialisable dictionary."""
    smallest = {}
    for classes, p in ((2, 0.9), (3, 0.5), (3, 0.9), (3, 1.0), (10, 0.9)):
        for kind in ("rises", "rises-in-limit", "limit-falls-exact-rises", "limit-rises-exact-falls"):
            first = search(classes, p, kind)[:1]
            smallest[f"K={classes} p={p} {kind}"] = [
                (tuple(asdict(c.counts).values())[:4], round(c.before, 4), round(c.after, 4)) for c in first
            ]
    one = FeatureCounts(4, 10, 0, 60)
    return {
        "counterexamples": known_counterexamples(),
        "smallest": smallest,
        "theorem_2_conditions": {f"K={k} p={p}": share_of_conditions(k, p) for k, p in ((3, 0.5), (3, 0.9), (10, 0.9))},
        "theorem_1": {
            "setting": asdict(one),
            "strongest": {p: _finite(strongest_attack(one, p)) for p in (0.8, 0.9, 0.95, 1.0)},
            "drop": {p: round(theorem_one(one, 3, p).drop, 4) for p in (0.8, 0.9, 0.95, 1.0)},
        },
        "limit_good_to_1_percent_from": {
            f"K={k} p={p}": limit_good_from(k, p, largest=200) for k in (2, 3, 10) for p in (0.3, 0.5, 0.9)
        },
    }


if __name__ == "__main__":
    print(json.dumps(findings(), indent=1))
