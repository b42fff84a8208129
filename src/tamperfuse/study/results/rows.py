"""Rows of results.parquet: every measure of every model state at every step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tamperfuse.records.summary import Measure
from tamperfuse.study.results.attack_cost import attack_costs, of_seed
from tamperfuse.study.results.capability import capability
from tamperfuse.study.results.intervals import per_token, rate
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.results.undecided import judged_rate, undecided_count
from tamperfuse.study.tables import DIVERGED, HARMLESS, HARMLESS_NEAR, VerdictRow

#: The step at which the attacker of a malicious attack stops, one row per defense, attack and seed.
CHOSEN_STEP = "chosen_step"
#: The steps that a malicious attack needs (:mod:`tamperfuse.study.results.attack_cost`), one row per defense, attack and seed.
ATTACK_COST = "attack_cost"
#: Metrics that are computed from the judge's verdicts.
JUDGED = frozenset({"harmful_execution", "refusal_rate", "benign_answer_rate", "undecided", CHOSEN_STEP, ATTACK_COST})

PlacedMeasure = tuple[str, str, str, Measure]  # part, task, metric and the measure
StepMeasures = Callable[[Measurements, int, Measurements], Iterator[PlacedMeasure]]


def result_rows(measured: StudyMeasurements) -> list[dict[str, Any]]:
    """All rows, with the columns of :data:`tamperfuse.records.results.COLUMNS`.

    The measures that verdicts decide have a row for each judge. The steps at which attackers stop are those of the study's judge.

    Args:
        measured: the study's measurements.
    """
    rows = _judge_rows(measured, measured.study.judge.judge, _all_measures)
    for name, judged in measured.further.items():
        rows += _judge_rows(judged, name, _judged_measures)
    for state in measured.diverged:  # `step` is the last one at which the model was measured, `value` where it diverged
        place = {"part": "", "step": max(state.steps(), default=0), "judge": "", "task": "", "metric": DIVERGED}
        value = {"value": float(state.diverged or 0), "low": None, "high": None, "n": None}
        rows.append({**_about(measured, state), **place, **value})
    return rows


def _judge_rows(measured: StudyMeasurements, judge: str, measures: StepMeasures) -> list[dict[str, Any]]:
    """The rows of some measures, with the verdicts of one judge."""
    rows = []
    costs = {
        (seed, name): attack_costs(of_seed(measured, seed), name)
        for seed in measured.study.seeds
        for name in measured.study.defenses
    }
    for state in measured.with_trials():
        is_choice = state.trial < 0 or state.search_step is not None
        attack = state.attack if is_choice else f"{state.attack}#{state.trial:03d}"
        common = {**_about(measured, state), "attack": attack}
        for step in state.steps():
            for part, task, metric, measure in measures(state, step, measured.shipped):
                place = {"part": part, "step": step, "task": task, "metric": metric}
                rows.append({**common, "judge": judge if metric in JUDGED else "", **place, **measure.as_row()})
        if state.malicious and is_choice:
            counted = {"task": "", "judge": judge, "low": None, "high": None, "n": None}
            step = state.chosen_step
            choice = {"part": "attacker_dev", "step": step, "metric": CHOSEN_STEP, "value": float(step)}
            rows.append({**common, **counted, **choice})
            if cost := costs[state.seed, state.defense][state.attack]:
                place = {"part": "evaluation", "step": cost.steps, "metric": ATTACK_COST, "value": float(cost.steps)}
                rows.append({**common, **counted, **place, "censored": cost.censored})
    return rows


def _about(measured: StudyMeasurements, state: Measurements) -> dict[str, Any]:
    """What a row says about the model state that was measured."""
    return {
        "model": measured.study.model,
        "threat": measured.study.threat,
        "defense": state.defense,
        "attack": state.attack,
        "malicious": state.malicious,
        "samples": state.samples,
        "seed": state.seed,
        "censored": False,
        "node": state.node,
    }


def _judged_measures(state: Measurements, step: int, shipped: Measurements) -> Iterator[PlacedMeasure]:
    """What verdicts decide, of one model state at one step."""
    for part in ("evaluation", "attacker_dev"):
        if rows := state.verdicts_of(part, step):
            yield part, "", "harmful_execution", judged_rate(rows)
            yield from _undecided(rows, part, "")
        if refusals := state.refusals(part, step):
            yield part, "", "refusal_rate", _rate(list(refusals.values()))
    for task in (HARMLESS, HARMLESS_NEAR):
        if rows := state.verdicts_of(task, step):
            yield HARMLESS, task, "benign_answer_rate", judged_rate(rows)
            yield from _undecided(rows, HARMLESS, task)


def _all_measures(state: Measurements, step: int, shipped: Measurements) -> Iterator[PlacedMeasure]:
    """All measures of one model state at one step."""
    yield from _judged_measures(state, step, shipped)
    correct: dict[str, list[float]] = {}
    for item in state.items:
        if item.step == step:
            correct.setdefault(item.task, []).append(float(item.correct))
    for task, values in sorted(correct.items()):
        yield "", task, "accuracy", _rate(values)
    if correct:
        yield "", "", "capability", capability([state], [step], shipped)
    if documents := state.nll(step):
        yield "", "heldout", "benign_nll", per_token(np.array(list(documents.values())))
    if prompts := state.kl(step):
        yield HARMLESS, HARMLESS, "benign_kl", per_token(np.array(list(prompts.values())))
    for task, scores in sorted(state.task_scores(step).items()):
        yield "", task, "task_score", _rate(scores)


def _undecided(rows: list[VerdictRow], part: str, task: str) -> Iterator[PlacedMeasure]:
    """The number of responses without a decision, where there are any."""
    if count := undecided_count(rows):
        yield part, task, "undecided", Measure(value=float(count), n=len(rows))


def _rate(values: list[float]) -> Measure:
    return rate(np.array(values))
