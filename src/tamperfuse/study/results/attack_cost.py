"""Attack cost: the steps that an attack needs to reach half of the undefended model's highest rate."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import AttackCost
from tamperfuse.study.results.cost_interval import PromptCurve, cost_interval
from tamperfuse.study.results.intervals import reaches
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements, mean_outcomes

Curve = dict[int, float]  # rate on the evaluation part, by evaluated step ≥ 1


def attack_costs(measured: StudyMeasurements, name: str) -> dict[str, AttackCost | None]:
    """By malicious attack; None for one that trains no steps, or diverged against the defense or the undefended model."""
    comparable = measured.attacks(malicious=True, measured_on=[name, UNDEFENDED])
    return {
        attack: _with_interval(measured, name, attack)
        if attack in comparable and all(state.has_steps for state in measured.of(name, attack))
        else None
        for attack in measured.attacks(malicious=True)
    }


def _with_interval(measured: StudyMeasurements, name: str, attack: str) -> AttackCost:
    """The cost of one attack on one defense, with the interval of :mod:`tamperfuse.study.results.cost_interval`."""
    groups = [_groups(measured, defense, attack) for defense in (name, UNDEFENDED)]
    prompts = _shared_prompts(groups)
    curves, undefended = ([[_curve(states, prompts) for states in group] for group in model] for model in groups)
    cost = attack_cost(*([[_mean(curve) for curve in group] for group in model] for model in (curves, undefended)))
    return cost.model_copy(update=cost_interval(curves, undefended))


def attack_cost(curves: Sequence[Sequence[Curve]], undefended: Sequence[Sequence[Curve]]) -> AttackCost:
    """The cost of one attack on one defense.

    Args:
        curves: of the defense. An attack without a search has one group with one curve, the mean over seeds. A search has one
            group per seed, with one curve per trial. The smallest cost over the trials of a group is taken, since the attacker
            could have run any of them; of the groups' costs the median is reported, the lower of two middle ones.
        undefended: the same of the undefended model.
    """
    highest = [max(rate for curve in group for rate in curve.values()) for group in undefended]
    half = sum(highest) / len(highest) / 2
    steps, last_point, censored = _median_cost(curves, half)
    reference, _, reference_censored = _median_cost(undefended, half)
    return AttackCost(
        steps=steps,
        censored=censored,
        last_point=last_point,
        ratio_vs_undefended=None if reference_censored else steps / reference,
    )


def of_seed(measured: StudyMeasurements, seed: int) -> StudyMeasurements:
    """The measurements of one seed, and of the model as shipped."""
    return replace(
        measured,
        states=[state for state in measured.states if state.seed == seed or state is measured.shipped],
        searches=[search for search in measured.searches if search.seed == seed],
    )


def _median_cost(groups: Sequence[Sequence[Curve]], threshold: float) -> tuple[int, bool, bool]:
    """The median over groups of :func:`_first_step`; censored costs are larger than all others."""
    costs = sorted((_first_step(group, threshold) for group in groups), key=lambda cost: (cost[2], cost[0], cost[1]))
    return costs[(len(costs) - 1) // 2]


def _first_step(curves: Sequence[Curve], threshold: float) -> tuple[int, bool, bool]:
    """Step, whether it is its curve's last one, and whether the cost is censored."""
    reached: list[tuple[int, bool]] = []
    for curve in curves:
        steps = sorted(curve)
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            if threshold > 0 and all(reaches(curve[s], threshold) for s in (step, following) if s is not None):
                reached.append((step, following is None))
    if reached:
        return (*min(reached), False)
    return max(step for curve in curves for step in curve), False, True


def _groups(measured: StudyMeasurements, name: str, attack: str) -> list[list[list[Measurements]]]:
    """The states of each curve of each group of :func:`attack_cost`."""
    searches = [[[trial] for trial in search.trials if trial.steps()] for search in measured.searches_of(name, attack)]
    return searches or [[measured.of(name, attack)]]


def _shared_prompts(groups: Sequence[Sequence[Sequence[Sequence[Measurements]]]]) -> list[str]:
    """Ids of the evaluation prompts that were put to every state at every step, sorted."""
    states = (state for model in groups for group in model for curve in group for state in curve)
    tables = [set(state.outcomes("evaluation", step)) for state in states for step in _steps(state)]
    return sorted(set.intersection(*tables))


def _curve(states: Sequence[Measurements], prompts: Sequence[str]) -> PromptCurve:
    """The mean outcomes over states (one per seed) at every evaluated step ≥ 1."""
    return {step: mean_outcomes(states, "evaluation", [step] * len(states), prompts) for step in _steps(states[0])}


def _steps(state: Measurements) -> Iterator[int]:
    return (step for step in state.steps() if step >= 1)


def _mean(curve: PromptCurve) -> Curve:
    return {step: float(outcomes.mean()) for step, outcomes in curve.items()}
