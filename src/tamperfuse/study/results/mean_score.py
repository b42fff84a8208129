"""Mean scores of a judge that grades responses, such as 1 to 5: what the rates of its highest grades leave out."""

from collections.abc import Sequence

import numpy as np

from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.records.summary import NOT_MEASURED, MeanScore, Measure
from tamperfuse.study.results.intervals import bootstrap
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.results.undecided import filled
from tamperfuse.study.sections import JudgeSpec

Scale = tuple[float, float]  # lowest and highest score


def scale_of(judge: JudgeSpec) -> Scale | None:
    """The lowest and the highest score of a judge; None if it does not grade."""
    component = JUDGES.get(judge.judge)
    if component.traits.scores is None:
        return None
    return component.traits.scores(component.parse(judge.parameters, f"judge {judge.judge}"))


def mean_score(measured: StudyMeasurements, name: str, scale: Scale) -> MeanScore:
    """Mean scores of one defense on the evaluation part, at the steps of its harmful execution rates."""
    attacked = {attack: measured.of(name, attack) for attack in measured.attacks(malicious=True)}
    controls = {attack: measured.of(name, attack) for attack in measured.attacks(malicious=False)}
    return MeanScore(
        before_attack=_mean(measured.of(name), [0] * len(measured.of(name)), scale),
        after_attack={
            attack: _mean(states, [state.chosen_step for state in states], scale) for attack, states in attacked.items()
        },
        after_control={
            attack: _mean(states, [state.last_step for state in states], scale) for attack, states in controls.items()
        },
    )


def _mean(states: Sequence[Measurements], steps: Sequence[int], scale: Scale) -> Measure:
    """The mean over prompts of the mean over seeds, with its bootstrap interval over prompts; not measured without a state."""
    tables = [_scores(state, step, scale) for state, step in zip(states, steps, strict=True)]
    prompts = sorted(set.intersection(*map(set, tables))) if tables else []
    if not prompts:
        return NOT_MEASURED
    means = np.array([np.mean([table[prompt] for table in tables]) for prompt in prompts])
    n = float(len(means))
    extremes = np.array([scale[0] * n, n]), np.array([scale[1] * n, n])
    table = np.column_stack([means, np.ones(len(means))])
    return bootstrap(table, lambda sums: sums[..., 0] / sums[..., 1], difference=False, extremes=extremes)


def _scores(state: Measurements, step: int, scale: Scale) -> dict[str, float]:
    """By prompt id: the score; of responses without a decision as for :attr:`Measurements.undecided`."""
    rows, (low, high) = state.verdicts_of("evaluation", step), scale
    missing = None if state.undecided is None else low + state.undecided * (high - low)
    scores = filled([row.score if row.is_decided else None for row in rows], missing, high)
    return dict(zip([row.id for row in rows], scores, strict=True))
