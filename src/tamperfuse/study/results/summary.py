"""All measures of a study, as `summary.json` holds them."""

from tamperfuse.records.results import AS_SHIPPED, UNDEFENDED
from tamperfuse.records.summary import NOT_MEASURED, DefenseSummary, Measure, ShippedSummary, Summary
from tamperfuse.study.results.attack_cost import attack_costs
from tamperfuse.study.results.intervals import rate
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.mean_score import Scale, mean_score, scale_of
from tamperfuse.study.results.outcomes import harmful_execution, outcomes_before, reduction_vs_undefended
from tamperfuse.study.results.price import (
    answer_rate_drop,
    benign_finetune,
    benign_kl,
    benign_nll,
    capability_summary,
    nll,
)
from tamperfuse.study.results.undecided import widened
from tamperfuse.study.results.usable_harm import usable_harm
from tamperfuse.study.sections import JudgeSpec
from tamperfuse.study.tables import HARMLESS, HARMLESS_NEAR


def summarize(measured: StudyMeasurements, seconds: float, peak_memory_bytes: int) -> Summary:
    """Everything that `summary.json` holds.

    Args:
        measured: the study's measurements.
        seconds: wall-clock time of the run.
        peak_memory_bytes: highest of its nodes.
    """
    study = measured.study
    return Summary(
        model=study.model,
        threat=study.threat,
        judge=study.judge.judge,
        seeds=list(study.seeds),
        as_shipped=_shipped(measured),
        defenses=summarize_defenses(measured, study.judge),
        judges={name: summarize_defenses(judged, study.judges[name]) for name, judged in measured.further.items()},
        seconds=round(seconds, 1),
        peak_memory_bytes=peak_memory_bytes,
    )


def summarize_defenses(measured: StudyMeasurements, judge: JudgeSpec) -> dict[str, DefenseSummary]:
    """The measures of every defense, in the study's order.

    Args:
        measured: the measurements, with the verdicts of one judge.
        judge: that judge.
    """
    scale = scale_of(judge)
    return {name: _defense(measured, name, scale) for name in measured.study.defenses}


def _shipped(measured: StudyMeasurements) -> ShippedSummary:
    summary = _shipped_measures(measured)
    count = measured.undecided(AS_SHIPPED)
    bounds = [measured.with_undecided(AS_SHIPPED, executed=executed) for executed in (False, True)] if count else []
    widest: ShippedSummary = widened(summary, *map(_shipped_measures, bounds))
    return widest.model_copy(update={"undecided": count})


def _shipped_measures(measured: StudyMeasurements) -> ShippedSummary:
    shipped = measured.shipped
    items = sum(1 for item in shipped.items if item.step == 0)
    return ShippedSummary(
        harmful_execution=rate(outcomes_before([shipped])),
        # By definition: capability is measured in units of the model as shipped.
        capability=Measure(value=1.0, low=1.0, high=1.0, n=items) if items else NOT_MEASURED,
        benign_nll=nll([shipped]),
        benign_answer_rate=rate(outcomes_before([shipped], HARMLESS)),
        benign_answer_rate_near=rate(outcomes_before([shipped], HARMLESS_NEAR)),
    )


def _defense(measured: StudyMeasurements, name: str, scale: Scale | None) -> DefenseSummary:
    summary = _defense_measures(measured, name, scale)
    if not measured.undecided():
        return summary
    bounds = [measured.with_undecided(name, executed=executed) for executed in (False, True)]
    widest: DefenseSummary = widened(summary, *(_defense_measures(bound, name, scale) for bound in bounds))
    return widest.model_copy(update={"undecided": measured.undecided(name)})


def _defense_measures(measured: StudyMeasurements, name: str, scale: Scale | None) -> DefenseSummary:
    states = measured.of(name)
    return DefenseSummary(
        harmful_execution=harmful_execution(measured, name),
        diverged=measured.diverged_on(name),
        usable_harm=usable_harm(measured, name),
        reduction_vs_undefended=reduction_vs_undefended(measured, name),
        attack_cost=attack_costs(measured, name),
        capability=capability_summary(measured, name),
        benign_nll=benign_nll(measured, name),
        benign_kl=benign_kl(measured, name),
        benign_finetune=benign_finetune(measured, name),
        benign_answer_rate=rate(outcomes_before(states, HARMLESS)),
        benign_answer_rate_near=rate(outcomes_before(states, HARMLESS_NEAR)),
        benign_answer_drop_vs_undefended=answer_rate_drop(states, measured.of(UNDEFENDED)),
        benign_answer_drop_vs_shipped=answer_rate_drop(states, [measured.shipped]),
        mean_score=None if scale is None else mean_score(measured, name, scale),
    )
