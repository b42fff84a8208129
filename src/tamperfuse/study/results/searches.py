"""Every search against the undefended model's: does the defense lower the ceiling, or at least slow the climb?"""

import numpy as np

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.searches import Climb, Searches, Tried
from tamperfuse.study.results.frontier import Checkpoint, best_so_far, choose, frontier, mean_outcomes, shared_prompts
from tamperfuse.study.results.intervals import bootstrap, rate
from tamperfuse.study.results.load import States


def summarise_searches(states: States) -> Searches:
    """What every search found of every defense.

    Differences are bootstrapped over prompts, the same for both models; that another seed would search differently is not in
    their intervals.
    """
    return Searches(
        searches=[_climb(states, name, attack) for attack in states.searches() for name in states.study.defenses]
    )


def _climb(states: States, name: str, attack: str) -> Climb:
    """A defense's search beside the undefended model's."""
    sides = [states.found(defense, attack) for defense in (name, UNDEFENDED)]
    best = [[best_so_far(found) for found in side] for side in sides]
    prompts = shared_prompts([point for side in best for found in side for point in found])
    trials = len(best[0][0])
    # (trials, prompts) for each side
    ours, theirs = (
        np.array([mean_outcomes([found[k] for found in side], prompts) for k in range(trials)]) for side in best
    )
    reached = [k + 1 for k in range(trials) if theirs[-1].mean() > 0 and ours[k].mean() >= theirs[-1].mean() / 2]
    groups = np.arange(len(prompts))
    return Climb(
        defense=name,
        attack=attack,
        trials=trials,
        best_so_far=[rate(outcomes) for outcomes in ours],
        ceiling_vs_undefended=bootstrap(lambda i: float((theirs - ours)[-1, i].mean()), groups, difference=True),
        climb_vs_undefended=bootstrap(lambda i: float((theirs - ours)[:, i].mean()), groups, difference=True),
        half=reached[0] if reached else trials,
        censored=not reached,
        tried=[
            _tried(found.seed, choose(points))
            for found in sides[0]
            for trial in found.trials
            if (points := [point for point in found.points if point.state.trial == trial.trial])
        ],
        frontier=[_tried(found.seed, point) for found in sides[0] for point in frontier(found.points)],
    )


def _tried(seed: int, point: Checkpoint) -> Tried:
    return Tried(
        seed=seed,
        trial=point.state.trial,
        parameters=point.state.setting,
        stopped=point.state.samples is None,  # only an attack that came to its end says how many
        step=point.step,
        dev=point.rate,
        evaluation=rate(mean_outcomes([point], shared_prompts([point]))),
        lost=point.lost,
    )
