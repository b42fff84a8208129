"""Every search beside the same search against the undefended model, for searches.json."""

import numpy as np

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.searches import Searches, SearchResult, TrialResult
from tamperfuse.study.results.frontier import (
    Checkpoint,
    best_so_far,
    checkpoint_outcomes,
    choose,
    common_prompts,
    frontier,
)
from tamperfuse.study.results.intervals import rate, rate_difference, reaches
from tamperfuse.study.results.load import StudyMeasurements


def summarize_searches(measured: StudyMeasurements) -> Searches:
    """The result of every search against every defense.

    Differences are bootstrapped over prompts, the same for both models. Their intervals do not include the variation between
    seeds of the search.
    """
    return Searches(
        searches=[
            _search_result(measured, name, attack)
            for attack in measured.search_attacks()
            for name in measured.study.defenses
        ]
    )


def _search_result(measured: StudyMeasurements, name: str, attack: str) -> SearchResult:
    searches = [measured.searches_of(defense, attack) for defense in (name, UNDEFENDED)]
    best = [[best_so_far(search) for search in group] for group in searches]  # of the defense, of the undefended model
    prompts = common_prompts([point for group in best for search in group for point in search])
    trials = len(best[0][0])
    defended, undefended = (  # (trials, prompts) each
        np.array([checkpoint_outcomes([search[k] for search in group], prompts) for k in range(trials)])
        for group in best
    )
    half = undefended[-1].mean() / 2
    reached = [k + 1 for k in range(trials) if half > 0 and reaches(float(defended[k].mean()), half)]
    return SearchResult(
        defense=name,
        attack=attack,
        trials=trials,
        best_so_far=[rate(outcomes) for outcomes in defended],
        final_best_vs_undefended=rate_difference(undefended[-1], defended[-1]),
        best_so_far_vs_undefended=rate_difference(undefended.mean(axis=0), defended.mean(axis=0)),
        trials_to_half=reached[0] if reached else trials,
        censored=not reached,
        choices=[
            _trial_result(search.seed, choose(points))
            for search in searches[0]
            for trial in search.trials
            if (points := [point for point in search.checkpoints if point.state.trial == trial.trial])
        ],
        frontier=[
            _trial_result(search.seed, point) for search in searches[0] for point in frontier(search.checkpoints)
        ],
    )


def _trial_result(seed: int, point: Checkpoint) -> TrialResult:
    return TrialResult(
        seed=seed,
        trial=point.state.trial,
        parameters=point.state.setting,
        stopped=point.state.samples is None,  # only an attack that ran to its end reports its samples
        step=point.step,
        attacker_dev=point.rate,
        evaluation=rate(checkpoint_outcomes([point])),
        capability_lost=point.capability_lost,
    )
