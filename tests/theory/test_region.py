"""Theorems, region and counterexamples."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamperfuse.theory import (
    Change,
    FeatureCounts,
    TheoryError,
    accuracies,
    entry_frontier,
    falls_exactly,
    falls_in_limit,
    limit_argument,
    limit_threshold,
    map_region,
    required_change,
    search_counterexamples,
    strongest_attack,
    theorem_one,
    theorem_two,
)

quick = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def feature_counts(draw: st.DrawFn) -> FeatureCounts:
    n_v, n_s, a_v, a_s = (draw(st.integers(0, 60)) for _ in range(4))
    return FeatureCounts(n_v, n_s, a_v, a_s, draw(st.integers(0, min(n_v, a_v))), draw(st.integers(0, min(n_s, a_s))))


def test_counterexamples_of_the_documentation() -> None:
    first = accuracies(FeatureCounts(3, 20, 2, 21), 3, 0.9)
    assert (first.hardened, first.mixture) == (pytest.approx(0.8414, abs=5e-5), pytest.approx(0.9198, abs=5e-5))
    assert (first.hardened_limit, first.mixture_limit) == (
        pytest.approx(0.8530, abs=5e-5),
        pytest.approx(0.9248, abs=5e-5),
    )
    second = accuracies(FeatureCounts(5, 20, 1, 30), 3, 0.9)
    assert (second.hardened, second.mixture) == (pytest.approx(0.9417, abs=5e-5), pytest.approx(0.9426, abs=5e-5))
    assert second.mixture_limit < second.hardened_limit


def test_both_forms_of_the_first_rise_and_of_the_second_disagree() -> None:
    first = theorem_two(FeatureCounts(3, 20, 2, 21), 3, 0.9)
    assert first.conditions_met and not first.holds_exactly and not first.holds_in_limit and first.drop < 0
    second = theorem_two(FeatureCounts(5, 20, 1, 30), 3, 0.9)
    assert second.conditions_met and not second.holds_exactly and second.holds_in_limit
    assert second.drop < 0 < second.drop_limit


def test_a_model_that_never_errs_cannot_gain() -> None:
    """Without spurious features accuracy is 1: in the smallest setting, (1, 0, 0, 1), it falls, as Theorem 2 says."""
    check = theorem_two(FeatureCounts(1, 0, 0, 1), 3, 0.9)
    assert check.conditions_met and check.holds_exactly and check.holds_in_limit
    assert (check.values.hardened, check.values.mixture) == (1.0, pytest.approx(0.7))


def test_the_smallest_setting_that_errs_breaks_both_theorems() -> None:
    """(1, 1, 0, 2) is the least with n_s >= 1 that meets Theorem 2's conditions; K = 3 in closed form, with q = 2p/3.

    Before, one wrong vote ties with the invariant one: error q/2. After, error q^3 + 3/4 q^2 (1 - q), which is less
    for q < (sqrt(17) - 3) / 2, p < 0.842.
    """
    counts = FeatureCounts(1, 1, 0, 2)
    for p in (0.1, 0.5, 0.84):
        q = 2 * p / 3
        values = accuracies(counts, 3, p)
        assert values.hardened == pytest.approx(1 - q / 2, abs=1e-10)
        assert values.mixture == pytest.approx(1 - q**3 - 0.75 * q * q * (1 - q), abs=1e-10)
        for check in (theorem_one(counts, 3, p), theorem_two(counts, 3, p)):
            assert check.conditions_met and not check.holds_exactly
    assert theorem_two(counts, 3, 0.85).holds_exactly


@pytest.mark.parametrize(
    ("classes", "p", "kind", "expected"),
    [
        (3, 0.5, "rises", (1, 1, 0, 2)),
        (2, 0.9, "rises", (2, 2, 1, 3)),
        (3, 0.9, "rises", (2, 2, 1, 3)),
        (10, 0.9, "rises", (1, 2, 0, 3)),
        (3, 1.0, "rises", (2, 3, 1, 4)),
        (3, 0.9, "rises-in-limit", (2, 2, 1, 3)),
        (3, 0.9, "limit-falls-exact-rises", (2, 2, 1, 4)),
        (3, 0.9, "limit-rises-exact-falls", (3, 2, 2, 3)),
    ],
)
def test_smallest_counterexamples(classes: int, p: float, kind: str, expected: tuple[int, ...]) -> None:
    counterexamples = search_counterexamples(classes, p, kind)  # type: ignore[arg-type]
    assert FeatureCounts(*expected) in [c.counts for c in counterexamples]
    for c in counterexamples:
        assert theorem_two(c.counts, classes, p).conditions_met
        if kind == "rises":
            assert c.after > c.before


def test_no_counterexample_within_reach() -> None:
    assert search_counterexamples(3, 0.0, largest=8) == []


@quick
@given(feature_counts(), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_the_threshold_decides_the_limit(counts: FeatureCounts, p: float, lam: float) -> None:
    if counts.spurious == 0 and counts.invariant == 0:
        return
    edge = limit_threshold(counts, p, lam)
    if abs(edge - counts.invariant) < 1e-6 * (1 + abs(edge)):
        return
    assert falls_in_limit(counts, 3, p, lam) is (counts.invariant > edge)


@quick
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50), st.floats(0.0, 1.0, exclude_min=True))
def test_the_threshold_at_one_half(n_s: int, a_s: int, a_v: int, p: float) -> None:
    ratio = math.sqrt(1 + a_s / n_s)
    expected = (1 - p) * n_s * ratio + a_v / (ratio - 1)
    assert limit_threshold(FeatureCounts(1, n_s, a_v, a_s), p) == pytest.approx(expected, rel=1e-9)


def test_the_optimum_must_have_less_than_root_two_minus_one() -> None:
    for n_v in (10, 100, 1000):
        for a_v in (math.ceil((math.sqrt(2) - 1) * n_v), n_v - 1):
            assert limit_threshold(FeatureCounts(n_v, 5000, a_v, 5000), 1.0) > n_v
        less = math.floor((math.sqrt(2) - 1) * n_v)
        assert falls_in_limit(FeatureCounts(n_v, 5000, less, 5000), 3, 1.0)


def test_edges_of_the_threshold() -> None:
    assert limit_threshold(FeatureCounts(3, 5, 1, 6), 0.0) == math.inf
    assert limit_threshold(FeatureCounts(3, 5, 1, 6), 0.9, 1.0) == math.inf
    assert limit_threshold(FeatureCounts(3, 5, 1, 0), 0.9) == math.inf
    assert limit_threshold(FeatureCounts(3, 0, 1, 6), 0.9) == 0.0
    assert limit_threshold(FeatureCounts(3, 5, 0, 0), 0.9, 0.0) == pytest.approx(-0.5)
    assert falls_in_limit(FeatureCounts(3, 0, 1, 6), 3, 0.9)
    assert not falls_in_limit(FeatureCounts(3, 5, 3, 5, 3, 5), 3, 0.9)


@pytest.mark.parametrize("form", ["exact", "limit"])
@pytest.mark.parametrize("start", [FeatureCounts(3, 20, 2, 21), FeatureCounts(4, 14, 4, 15, 1, 1)])
def test_required_change_is_the_least(start: FeatureCounts, form: str) -> None:
    holds = falls_exactly if form == "exact" else falls_in_limit
    change = required_change(start, 3, 0.9, form=form)  # type: ignore[arg-type]
    assert not change.inside
    if change.extra_invariant is not None:
        extra = change.extra_invariant
        assert holds(replace(start, invariant=start.invariant + extra), 3, 0.9)
        assert not any(holds(replace(start, invariant=start.invariant + e), 3, 0.9) for e in range(extra))
    if change.fewer_spurious is not None:
        fewer = change.fewer_spurious
        assert holds(replace(start, spurious=start.spurious - fewer), 3, 0.9)
        assert not any(holds(replace(start, spurious=start.spurious - f), 3, 0.9) for f in range(fewer))
    assert change.mixed is not None
    ends = [n for n in (change.extra_invariant, change.fewer_spurious) if n is not None]
    assert sum(change.mixed) <= min(ends, default=math.inf)
    extra, fewer = change.mixed
    assert holds(replace(start, invariant=start.invariant + extra, spurious=start.spurious - fewer), 3, 0.9)


def test_a_mixed_change_can_need_fewer_features() -> None:
    start = FeatureCounts(0, 1, 1, 1)
    change = required_change(start, 3, 0.9, form="limit")
    assert change.mixed == (1, 1) and change.fewer_spurious is None
    assert change.extra_invariant is None or change.extra_invariant > 2
    assert falls_in_limit(replace(start, invariant=1, spurious=0), 3, 0.9)


def test_a_change_of_both_kinds_is_found_where_neither_alone_is_enough() -> None:
    change = required_change(FeatureCounts(0, 2, 0, 2, 0, 1), 2, 0.9, lam=0.3, form="limit")
    assert change == Change(inside=False, extra_invariant=None, fewer_spurious=None, mixed=(1, 1))


def test_required_changes_of_the_documentation() -> None:
    change = required_change(FeatureCounts(3, 20, 2, 21), 3, 0.9)
    assert (change.extra_invariant, change.fewer_spurious) == (5, 16)
    assert required_change(FeatureCounts(9, 20, 2, 30), 3, 0.9).inside
    frontier = entry_frontier(FeatureCounts(3, 20, 2, 21), 3, 0.9, form="limit")
    assert frontier[0] == (0, 5) and frontier[15] == (15, 0)


def test_no_change_suffices_against_an_attack_that_changes_nothing() -> None:
    change = required_change(FeatureCounts(3, 5, 1, 6), 3, 0.9, lam=1.0)
    assert (change.extra_invariant, change.fewer_spurious, change.mixed) == (None, None, None)


def test_the_exact_region_is_bounded_above() -> None:
    """With more invariant votes than spurious ones the exact accuracy is 1 before and after: nothing falls."""
    grid = map_region(FeatureCounts(2, 4, 1, 6), range(2, 16), [6], 3, 0.9)
    falls = (grid.drop[:, 0] > 1e-9).tolist()
    assert falls[2] and not falls[-1]
    assert grid.drop_limit[-1, 0] >= 0 and grid.threshold.shape == (1,)


def test_the_drop_of_theorem_one_has_a_maximum() -> None:
    """At lambda = 1/2 without overlap the limit's drop is deepest at n_s + n*_s = (n_v + n*_v) / (1 - p)."""
    base = FeatureCounts(4, 10, 0, 5)
    assert strongest_attack(base, 0.9) == pytest.approx(30)
    assert strongest_attack(base, 1.0) == math.inf
    before, after = (
        theorem_one(replace(base, attack_spurious=29), 3, 0.9),
        theorem_one(replace(base, attack_spurious=31), 3, 0.9),
    )
    assert before.growth is not None and before.growth.in_limit
    assert after.growth is not None and not after.growth.in_limit
    beyond = theorem_one(replace(base, attack_spurious=60), 3, 0.8)
    assert beyond.conditions_met and not beyond.holds_exactly and not beyond.holds_in_limit


@quick
@given(feature_counts(), st.floats(0.0, 0.99), st.floats(0.05, 0.95))
def test_the_strongest_attack_is_the_lowest_point(counts: FeatureCounts, p: float, lam: float) -> None:
    turn = strongest_attack(counts, p, lam)
    lowest = max(counts.shared_spurious, math.floor(turn))

    def at(number: int) -> float:
        return limit_argument(replace(counts, attack_spurious=number).mixture(lam), p)

    if lowest + 1 > turn and lowest > counts.shared_spurious:
        assert at(lowest) <= at(lowest - 1) * (1 + 1e-9) + 1e-12
    assert at(lowest + 2) >= at(lowest + 1) * (1 - 1e-9) - 1e-12


@pytest.mark.parametrize(
    "call",
    [
        lambda: required_change(FeatureCounts(3, 5, 1, 6), 3, 0.9, form="both"),  # type: ignore[arg-type]
        lambda: search_counterexamples(3, 0.9, "falls"),  # type: ignore[arg-type]
        lambda: search_counterexamples(1, 0.9),
        lambda: limit_threshold(FeatureCounts(3, 5, 1, 6), 2.0),
        lambda: theorem_two(FeatureCounts(3, 5, 1, 6), 3, 0.9, -0.1),
    ],
)
def test_bad_input(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TheoryError):
        call()
