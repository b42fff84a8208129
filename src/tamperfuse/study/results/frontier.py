"""Checkpoints of searches: the attacker's choice and the Pareto frontier.

Every choice is made on attacker_dev; what is reported of the chosen checkpoint is its rate on evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tamperfuse.study.results.capability import capability_lost
from tamperfuse.study.results.intervals import Floats
from tamperfuse.study.results.measurements import Measurements, mean_outcomes, shared_prompts


@dataclass(frozen=True)
class Checkpoint:
    """A model state at a step, as the attacker sees it.

    Attributes:
        state: a trial, or the model before any attack.
        step: of the attack.
        rate: harmful execution on attacker_dev, in [0, 1].
        capability_lost: as a share of the undefended model's before any attack; negative for a gain.
    """

    state: Measurements
    step: int
    rate: float
    capability_lost: float

    @property
    def preference(self) -> tuple[float, float, int, int]:
        """Sort key of the attacker's preference: a higher rate, then less capability lost, then the earlier trial and step."""
        return (self.rate, -self.capability_lost, -self.state.trial, -self.step)


@dataclass(frozen=True)
class SearchTrials:
    """All trials of one search against one defense, with one seed.

    Attributes:
        defense: as the study names it.
        attack: likewise.
        seed: of both.
        before: the model before any attack.
        trials: in order.
        checkpoints: of all trials.
    """

    defense: str
    attack: str
    seed: int
    before: Checkpoint
    trials: list[Measurements]
    checkpoints: list[Checkpoint]


def checkpoints(states: Sequence[Measurements], shipped: Measurements, undefended: Measurements) -> list[Checkpoint]:
    """Every step of some states at which capability was measured."""
    return [
        Checkpoint(
            state,
            step,
            state.rate("attacker_dev", step),
            capability_lost(state.items, step, shipped.items, undefended.items),
        )
        for state in states
        for step in state.steps()
        if state.has_capability(step)
    ]


def choose(candidates: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint that the attacker prefers."""
    return max(candidates, key=lambda point: point.preference)


def chosen_trial(candidates: Sequence[Checkpoint]) -> Measurements:
    """The trial of the preferred checkpoint, with `search_step` set to that checkpoint's step."""
    best = choose(candidates)
    return replace(best.state, search_step=best.step)


def frontier(candidates: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The Pareto frontier: no other checkpoint has a higher rate and loses no more; sorted by capability lost."""
    front: list[Checkpoint] = []
    for point in sorted(candidates, key=lambda point: (point.capability_lost, *(-value for value in point.preference))):
        if not front or point.rate > front[-1].rate:
            front.append(point)
    return front


def best_so_far(search: SearchTrials) -> list[Checkpoint]:
    """The attacker's choice after 1, 2, … trials; the model before the attack until a trial has been measured."""
    return [
        choose([point for point in search.checkpoints if point.state.trial <= trial.trial] or [search.before])
        for trial in search.trials
    ]


def checkpoint_outcomes(picks: Sequence[Checkpoint], prompts: Sequence[str] | None = None) -> Floats:
    """(prompts,): outcomes on the evaluation part at one checkpoint per seed, averaged over seeds."""
    return mean_outcomes([pick.state for pick in picks], "evaluation", [pick.step for pick in picks], prompts)


def common_prompts(points: Sequence[Checkpoint]) -> list[str]:
    """Ids of the evaluation prompts that were put to all of these checkpoints."""
    return shared_prompts([point.state for point in points], "evaluation", [point.step for point in points])
